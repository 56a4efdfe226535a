//! The results folder of an evaluation: one file of rows for each arm over a data set.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use celslm_reports::evaluation::{ContextRow, EVALUATION_ROWS, read_rows};

use super::{EvaluationManifest, EvaluationPlan};
use crate::config::EvaluationFile;
use crate::environment::Environment;
use crate::store::{ENVIRONMENT, Folder, MANIFEST, StoreError};

/// A results folder that this process alone writes to.
#[derive(Debug)]
pub struct EvaluationStore {
    folder: Folder,
    done: BTreeMap<String, BTreeSet<String>>,
}

/// What was there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// An earlier run, which was moved to this folder, untouched.
    Earlier(PathBuf),
    /// This evaluation, with so many rows.
    Rows(usize),
}

impl EvaluationStore {
    /// Opens the folder for a new evaluation. An earlier run in it is moved aside.
    ///
    /// # Errors
    /// [`StoreError::Busy`] while another process writes to it, [`StoreError::NotResults`] when
    /// the folder holds something that is no run.
    pub fn create(dir: &Path) -> Result<(Self, Found), StoreError> {
        let (folder, aside) = Folder::create(dir)?;
        let store = Self {
            folder,
            done: BTreeMap::new(),
        };
        Ok((store, aside.map_or(Found::Nothing, Found::Earlier)))
    }

    /// Opens the folder to go on. A line that a kill has torn is cut off.
    ///
    /// The plan need not be the one that the folder was made by: a cell's name has a hash of all
    /// that decides its figures, so that arms which both plans have keep their rows, whatever else
    /// was added or left out.
    ///
    /// # Errors
    /// What [`EvaluationStore::create`] refuses, a folder whose manifest is of something else, and
    /// files with lines that are no rows of their cell.
    pub fn resume(dir: &Path, plan: &EvaluationPlan) -> Result<(Self, Found), StoreError> {
        if !dir.join(MANIFEST).exists() {
            return Self::create(dir);
        }
        let folder = Folder::open(dir)?;
        let _: EvaluationManifest = folder.read_json(MANIFEST)?;
        let mut done: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut rows = 0;
        for arm in &plan.arms {
            let cell = &arm.identity.cell_id;
            let path = folder.cell_dir(cell).join(EVALUATION_ROWS);
            let found = read_rows(&path).map_err(|source| StoreError::Samples {
                cell: cell.clone(),
                source,
            })?;
            if path.exists() {
                OpenOptions::new()
                    .write(true)
                    .open(&path)
                    .and_then(|file| file.set_len(found.whole_bytes))
                    .map_err(StoreError::io("cut the torn line of", &path))?;
            }
            for row in &found.rows {
                let own = done.entry(cell.clone()).or_default();
                if row.cell_id != *cell || !own.insert(row.context_id.clone()) {
                    return Err(StoreError::Unplanned {
                        cell: cell.clone(),
                        message: format!("its file holds context {} wrongly", row.context_id),
                    });
                }
            }
            rows += found.rows.len();
        }
        Ok((Self { folder, done }, Found::Rows(rows)))
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.folder.dir()
    }

    /// Whether a context has its row already.
    #[must_use]
    pub fn has(&self, cell: &str, context: &str) -> bool {
        self.done
            .get(cell)
            .is_some_and(|done| done.contains(context))
    }

    /// Rows in the folder.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.done.values().map(BTreeSet::len).sum()
    }

    /// Appends a row to its cell, at once and in one write.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn append(&mut self, row: &ContextRow) -> Result<(), StoreError> {
        let dir = self.folder.cell_dir(&row.cell_id);
        fs::create_dir_all(&dir).map_err(StoreError::io("make", &dir))?;
        let path = dir.join(EVALUATION_ROWS);
        let mut line = serde_json::to_vec(row).map_err(|error| StoreError::Malformed {
            path: path.clone(),
            message: error.to_string(),
        })?;
        line.push(b'\n');
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(&line))
            .map_err(StoreError::io("append to", &path))?;
        let done = self.done.entry(row.cell_id.clone()).or_default();
        done.insert(row.context_id.clone());
        Ok(())
    }

    /// Writes `manifest.json`.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn write_manifest(&self, manifest: &EvaluationManifest) -> Result<(), StoreError> {
        self.folder.write_json(MANIFEST, manifest)
    }

    /// The manifest in the folder.
    ///
    /// # Errors
    /// A missing or malformed file.
    pub fn manifest(&self) -> Result<EvaluationManifest, StoreError> {
        self.folder.read_json(MANIFEST)
    }

    /// Writes `config.resolved.toml` and `environment.json`.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn write_setting(
        &self,
        file: &EvaluationFile,
        environment: &Environment,
    ) -> Result<(), StoreError> {
        let mut resolved = file.clone();
        resolved.schema_version = Some(crate::SCHEMA_VERSION);
        self.folder.write_config(&resolved)?;
        self.folder.write_json(ENVIRONMENT, environment)
    }
}
