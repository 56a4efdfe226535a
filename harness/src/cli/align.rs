//! `celslm align`: fitted bridges between two models' KV.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use celslm::bridges;
use celslm::catalogue::Catalogue;
use celslm::config::ModelsConfig;
use celslm::exit::{ExitCode, Verdict};
use celslm::fit::{self, FitPlan};
use celslm_kv::AlignmentConfig;
use celslm_kv::align::Bridge;
use celslm_model::store::{BarProgress, ModelStore, find_spec};
use celslm_systems::LoadedModel;
use clap::{Args, Subcommand};
use indicatif::ProgressBar;

/// Fit and inspect bridges: maps of the cloud model's KV into the edge model's
#[derive(Debug, Args)]
pub(crate) struct AlignArgs {
    #[command(subcommand)]
    command: AlignCommand,
}

#[derive(Debug, Subcommand)]
enum AlignCommand {
    /// Fit a bridge on calibration text
    ///
    /// Both models prefill the same contexts, cut from the text; a centred ridge regression
    /// relates each edge layer to the cloud layer that the alignment gives it, keys (pre-RoPE)
    /// and values apart. A tenth of the contexts chooses the regularisation, another tenth is
    /// held out for R². Use text that no evaluation asks about.
    #[command(after_help = "\
Examples:
  celslm align fit --text data/calibration
  celslm align fit --text books --tokens 8000 --out /tmp/small.safetensors")]
    Fit(FitArgs),
    /// List the bridges beside the configurations, with their fit
    Ls,
}

#[derive(Debug, Args)]
struct FitArgs {
    /// Calibration text: files, or folders of .txt files
    #[arg(long, value_name = "PATH", required = true)]
    text: Vec<PathBuf>,
    /// Alignment to fit for
    #[arg(long, value_name = "NAME", default_value = "depth")]
    alignment: String,
    /// Cloud model
    #[arg(long, value_name = "NAME", default_value_t = ModelsConfig::default().cloud)]
    cloud: String,
    /// Edge model
    #[arg(long, value_name = "NAME", default_value_t = ModelsConfig::default().edge)]
    edge: String,
    /// Tokens to use
    #[arg(long, value_name = "N", default_value_t = 32_768)]
    tokens: usize,
    /// Words of one context
    #[arg(long, value_name = "N", default_value_t = 400)]
    context_words: usize,
    /// Seed, recorded in the bridge
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Where to write it; the pair's default place beside the configurations if absent
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(args: &AlignArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        AlignCommand::Fit(args) => fit(args),
        AlignCommand::Ls => ls(),
    }
}

fn fit(args: &FitArgs) -> anyhow::Result<ExitCode> {
    celslm_model::set_threads(super::edge::threads(0))?;
    let alignment = alignment(&args.alignment)?;
    let catalogue = Catalogue::find();
    let specs = catalogue.models()?;
    let store = ModelStore::open_default()?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed)).context("watch for Ctrl-C")?;
    let mut progress = BarProgress::new().cancel_on(Arc::clone(&stop));
    let mut load = |name: &str| -> anyhow::Result<LoadedModel> {
        let path = store.fetch(find_spec(&specs, name)?, &mut progress)?;
        Ok(LoadedModel::load(&path)?)
    };
    let (cloud, edge) = (load(&args.cloud)?, load(&args.edge)?);
    let out = args.out.clone().unwrap_or_else(|| {
        bridges::default_path(catalogue.root(), &args.cloud, &args.edge, &alignment)
    });
    if let Some(folder) = out.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let plan = FitPlan {
        alignment,
        texts: args.text.clone(),
        tokens: args.tokens,
        context_words: args.context_words,
        seed: args.seed,
    };
    let bar = ProgressBar::new(args.tokens as u64);
    let mut told = 0;
    let bridge = fit::fit(&cloud, &edge, &plan, |used, all| {
        bar.set_position(used as u64);
        // A bar that is not drawn says nothing, so lines do.
        if bar.is_hidden() && used * 10 / all > told {
            told = used * 10 / all;
            eprintln!("{used} of {all} tokens");
        }
        !stop.load(Ordering::Relaxed)
    })?;
    bar.finish_and_clear();
    bridge.save(&out)?;
    println!("{}\n{}", out.display(), fit::describe(&bridge));
    Ok(ExitCode::Ok)
}

/// The alignment of a name, with default parameters.
fn alignment(name: &str) -> Result<AlignmentConfig, Verdict> {
    let known = celslm_kv::align::names();
    let entry = celslm_kv::align::registry()
        .iter()
        .find(|entry| entry.name == name);
    let alignment = entry
        .map(|entry| (entry.example)())
        .filter(AlignmentConfig::needs_bridge);
    alignment.ok_or_else(|| {
        Verdict::Config(format!(
            "no alignment {name:?} that maps through a bridge; known alignments: {}",
            known.join(", ")
        ))
    })
}

fn ls() -> anyhow::Result<ExitCode> {
    let folder = Catalogue::find().root().join("bridges");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder)
        .map(|entries| {
            entries
                .filter_map(Result::ok)
                .map(|entry| entry.path())
                .collect()
        })
        .unwrap_or_default();
    paths.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "safetensors")
    });
    paths.sort();
    if paths.is_empty() {
        println!(
            "no bridge in {}; `celslm align fit` makes one",
            folder.display()
        );
    }
    for path in paths {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        match Bridge::read(&path) {
            Ok(bridge) => println!("{name}\n  {}", fit::describe(&bridge)),
            Err(error) => println!("{name}\n  unusable: {error}"),
        }
    }
    Ok(ExitCode::Ok)
}
