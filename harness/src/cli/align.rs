//! `celslm align`: fitted bridges between two models' KV.

use std::path::PathBuf;

use celslm::bridges;
use celslm::catalogue::Catalogue;
use celslm::config::ModelsConfig;
use celslm::exit::{ExitCode, Verdict};
use celslm::fit;
use celslm_kv::align::Bridge;
use celslm_kv::{AlignmentConfig, MappingConfig};
use clap::{Args, Subcommand};

use super::calibration::{CalibrationArgs, Fitting, make_folder_of, safetensors_in};

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
    /// Both models prefill the same contexts, cut from the text; the mapping relates each edge
    /// layer's keys (pre-RoPE) and values to those of the cloud layers that the alignment gives
    /// it. A tenth of the contexts chooses the regularisation, another tenth is held out for R².
    /// Use text that no evaluation asks about.
    #[command(after_help = "\
Examples:
  celslm align fit --text data/calibration
  celslm align fit --text data/calibration --alignment all --mapping joint
  celslm align fit --text books --tokens 8000 --out /tmp/small.safetensors")]
    Fit(FitArgs),
    /// List the bridges beside the configurations, with their fit
    Ls,
}

#[derive(Debug, Args)]
struct FitArgs {
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// Alignment to fit for
    #[arg(long, value_name = "NAME", default_value = "depth")]
    alignment: String,
    /// Mapping to fit; `celslm ls mappings` has them
    #[arg(long, value_name = "NAME", default_value = "ridge")]
    mapping: MappingConfig,
    /// Cloud model
    #[arg(long, value_name = "NAME", default_value_t = ModelsConfig::default().cloud)]
    cloud: String,
    /// Edge model
    #[arg(long, value_name = "NAME", default_value_t = ModelsConfig::default().edge)]
    edge: String,
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
    let alignment = alignment(&args.alignment)?.with_mapping(args.mapping.clone());
    let calibration = args.calibration.calibration();
    let mut fitting = Fitting::begin()?;
    let (cloud, edge) = (fitting.load(&args.cloud)?, fitting.load(&args.edge)?);
    let configs = fitting.catalogue.root();
    let out = args
        .out
        .clone()
        .unwrap_or_else(|| bridges::default_path(configs, &args.cloud, &args.edge, &alignment));
    make_folder_of(&out)?;
    let bridge = fitting.run(calibration.tokens, "tokens", |tell| {
        fit::fit(&cloud, &edge, &alignment, &calibration, tell)
    })?;
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
    let paths = safetensors_in(&folder);
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
