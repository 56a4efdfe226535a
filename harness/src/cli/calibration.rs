//! What the commands that fit have in common: the text, the models, progress and Ctrl-C.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use celslm::calibration::Calibration;
use celslm::catalogue::Catalogue;
use celslm_model::store::{BarProgress, ModelSpec, ModelStore, find_spec};
use celslm_systems::LoadedModel;
use clap::Args;
use indicatif::ProgressBar;

/// The text that a fit reads.
#[derive(Debug, Args)]
pub(super) struct CalibrationArgs {
    /// Calibration text: files, or folders of .txt files
    #[arg(long, value_name = "PATH", required = true)]
    text: Vec<PathBuf>,
    /// Tokens to use
    #[arg(long, value_name = "N", default_value_t = 32_768)]
    tokens: usize,
    /// Words of one context
    #[arg(long, value_name = "N", default_value_t = 400)]
    context_words: usize,
    /// Seed: where in the texts the contexts start
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

impl CalibrationArgs {
    pub(super) fn calibration(&self) -> Calibration {
        Calibration {
            texts: self.text.clone(),
            tokens: self.tokens,
            context_words: self.context_words,
            seed: self.seed,
        }
    }
}

/// A fit at work.
pub(super) struct Fitting {
    pub(super) catalogue: Catalogue,
    specs: Vec<ModelSpec>,
    store: ModelStore,
    stop: Arc<AtomicBool>,
    progress: BarProgress,
}

impl Fitting {
    /// Finds the models' descriptions, and listens for Ctrl-C.
    pub(super) fn begin() -> anyhow::Result<Self> {
        celslm_model::set_threads(super::edge::threads(0))?;
        let catalogue = Catalogue::find();
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))
            .context("watch for Ctrl-C")?;
        Ok(Self {
            specs: catalogue.models()?,
            store: ModelStore::open_default()?,
            progress: BarProgress::new().cancel_on(Arc::clone(&stop)),
            catalogue,
            stop,
        })
    }

    /// Where a model's file is; fetches it first if it is not there.
    pub(super) fn path(&mut self, name: &str) -> anyhow::Result<PathBuf> {
        let spec = find_spec(&self.specs, name)?;
        Ok(self.store.fetch(spec, &mut self.progress)?)
    }

    /// Loads a model by its name; fetches it first if it is not there.
    pub(super) fn load(&mut self, name: &str) -> anyhow::Result<LoadedModel> {
        Ok(LoadedModel::load(&self.path(name)?)?)
    }

    /// Shows progress while `fit` works.
    pub(super) fn run<T>(
        &self,
        total: usize,
        unit: &str,
        fit: impl FnOnce(&mut dyn FnMut(usize, usize) -> bool) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let bar = ProgressBar::new(total as u64);
        let mut told = 0;
        let fitted = fit(&mut |used, all| {
            bar.set_length(all as u64);
            bar.set_position(used as u64);
            // A bar that is not drawn says nothing, so lines do.
            if bar.is_hidden() && used * 10 / all > told {
                told = used * 10 / all;
                eprintln!("{used} of {all} {unit}");
            }
            !self.stop.load(Ordering::Relaxed)
        })?;
        bar.finish_and_clear();
        Ok(fitted)
    }
}

/// Makes the folder that a file is to lie in.
pub(super) fn make_folder_of(file: &Path) -> anyhow::Result<()> {
    match file.parent() {
        Some(folder) => {
            std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))
        }
        None => Ok(()),
    }
}

/// The safetensors files in a folder, by name; empty where there is no folder.
pub(super) fn safetensors_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    paths.sort();
    paths
}
