//! From the arguments of `celslm run` to a plan, and the dry run that shows it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use celslm::catalogue::Catalogue;
use celslm::config::{Config, ConfigSource, ModelsConfig, Override};
use celslm::exit::Verdict;
use celslm::plan::{Inputs, KvEstimator, Plan, Shard, describe};
use celslm::store::resolved_config;
use celslm::{artefacts, bridges};
use celslm_kv::KvShape;
use celslm_model::store::ModelStore;
use celslm_model::{GgufFile, Tokenizer};
use clap::Args;

use super::listing;

/// Run an experiment, or go on with one
///
/// Reads an experiment file, checks all of it before anything starts, and makes every request of
/// its plan. Each finished request is on disk at once: Ctrl-C, a crash or a power cut leaves a run
/// that `--resume` continues. Without `--resume`, an earlier run of the same name is moved aside
/// to results/<experiment>.1 and kept.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  celslm run configs/experiments/quick.toml
  celslm run quick --dry-run
  celslm run quick --resume
  celslm run quick --set experiment.name=short --set generation.max_tokens=8
  celslm run quick --set 'grid.links=[\"none\"]' --set 'scenario.0.contracts=[\"warm\"]'
  celslm run results/quick/config.resolved.toml --out /tmp/again
  celslm run quick --shard 1/2          (and 2/2 elsewhere; then copy both cells/ together)

configs/experiments/example.toml documents every setting with its default.")]
pub(crate) struct RunArgs {
    /// Experiment file, or the name of one in configs/experiments
    #[arg(value_name = "CONFIG")]
    pub(crate) config: PathBuf,

    /// Replace one value: a dotted path and a TOML value; may be given more than once
    #[arg(long = "set", value_name = "PATH=VALUE")]
    pub(crate) sets: Vec<String>,

    /// Show cells, requests, estimated bytes and order; run nothing, write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Go on with the run in the output folder; its finished requests are not made again
    #[arg(long)]
    pub(crate) resume: bool,

    /// Run one share of the plan; the systems compared over one link stay in one share
    #[arg(long, value_name = "I/N")]
    pub(crate) shard: Option<Shard>,

    /// Folder in which the folder of the experiment is made
    #[arg(long, value_name = "DIR", default_value = "results")]
    pub(crate) out: PathBuf,
}

/// Everything that is known before a run starts.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// The configuration as given.
    pub(crate) config: Config,
    /// The configuration with every link written out, for `config.resolved.toml`.
    pub(crate) resolved: Config,
    /// What was read for the plan.
    pub(crate) inputs: Inputs,
    /// The plan.
    pub(crate) plan: Plan,
    /// The folder of configurations that the experiment belongs to.
    pub(crate) configs: PathBuf,
    /// The folder that the results go to.
    pub(crate) results_dir: PathBuf,
}

/// Reads the experiment file, whatever it describes.
pub(crate) fn read(args: &RunArgs) -> anyhow::Result<(ConfigSource, Catalogue)> {
    let overrides = args
        .sets
        .iter()
        .map(|set| Override::parse(set))
        .collect::<Result<Vec<_>, _>>()?;
    let path = Catalogue::experiment(&args.config)?;
    let source = ConfigSource::read(&path, overrides)?;
    Ok((source, Catalogue::of(&path)))
}

/// Reads and checks everything that the file names.
pub(crate) fn prepare(
    args: &RunArgs,
    source: &ConfigSource,
    catalogue: &Catalogue,
) -> anyhow::Result<Prepared> {
    let config = source.parse()?;
    let mut inputs = catalogue.gather(&config, source)?;
    let missing = |missing: Verdict| match args.dry_run {
        // A plan can be shown without what was fitted.
        true => {
            eprintln!("note: {missing}");
            Ok(())
        }
        false => Err(missing),
    };
    match bridges::resolve(&config, catalogue.root()) {
        Ok(found) => inputs.bridges = found,
        Err(fault) => missing(fault)?,
    }
    match artefacts::resolve(config.codecs(), &config.models, catalogue.root()) {
        Ok(found) => inputs.artefact = found,
        Err(fault) => missing(fault)?,
    }
    let plan = Plan::new(&config, &inputs)?;
    Ok(Prepared {
        resolved: resolved_config(&config, &inputs),
        configs: catalogue.root().to_owned(),
        results_dir: Path::new(&args.out).join(&config.experiment.name),
        config,
        inputs,
        plan,
    })
}

/// Prints the plan.
pub(crate) fn dry_run(args: &RunArgs, prepared: &Prepared) {
    let inputs = Inputs {
        kv: kv_estimator(&prepared.inputs, &prepared.config.models, &prepared.configs),
        ..prepared.inputs.clone()
    };
    listing::show(&describe(
        &prepared.config,
        &inputs,
        &prepared.plan,
        args.shard,
    ));
    listing::show(&format!(
        "\nresults would go to {}\n",
        prepared.results_dir.display()
    ));
}

/// Sizes of the documents' KV, if the edge's model is in the store. A file that does not load is
/// for the run to complain about: here it only means that bytes are not estimated.
fn kv_estimator(inputs: &Inputs, models: &ModelsConfig, configs: &Path) -> Option<KvEstimator> {
    let store = ModelStore::open_default().ok()?;
    let file = GgufFile::open(&store.path(&inputs.edge_model)?).ok()?;
    let tokenizer = Tokenizer::load(&file).ok()?;
    let shape = kv_shape(&file)?;
    let native = store.path(&inputs.cloud_model);
    let native = native.and_then(|path| kv_shape(&GgufFile::open(&path).ok()?));
    let mut context_tokens = Vec::new();
    for draw in &inputs.draws {
        let mut tokens = 0;
        for document in &draw.documents {
            tokens += tokenizer.encode(&document.text).ok()?.len() as u64;
        }
        context_tokens.push(tokens / draw.documents.len().max(1) as u64);
    }
    let artefact = match &inputs.artefact {
        Some(file) => Some(Arc::clone(&file.artefact)),
        // One that no codec needs still says what the KV is like.
        None => artefacts::read(&artefacts::path(models, configs)).ok(),
    };
    let estimator = KvEstimator::new(shape, context_tokens).with_native(native);
    Some(estimator.with_artefact(artefact))
}

fn kv_shape(file: &GgufFile) -> Option<KvShape> {
    Some(celslm_model::Config::read(file).ok()?.kv_shape())
}
