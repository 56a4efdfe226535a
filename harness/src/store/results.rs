//! The results folder of one run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use celslm_reports::{
    CellFailure, LOAD_FILE, LoadFacts, LoadRound, Sample, read_load_facts, read_samples,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StoreError;
use super::folder::{ENVIRONMENT, Folder, MANIFEST, write_json};
use super::samples::{CellSamples, append, set_aside};
use crate::config::Config;
use crate::environment::Environment;
use crate::manifest::Manifest;
use crate::plan::{Block, Plan, Shard};

const CALIBRATION: &str = "calibration.json";
const FAILURE: &str = "failure.json";
const FAILURE_EARLIER: &str = "failure.earlier.json";
/// A results folder that this process alone writes to.
#[derive(Debug)]
pub struct Store {
    folder: Folder,
    done: BTreeMap<String, BTreeSet<u64>>,
    /// What is known of the loads of cells, by id.
    loads: BTreeMap<String, LoadFacts>,
}

/// How a store was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// The folder is new.
    New,
    /// An earlier run was moved to this folder, untouched.
    MovedAside(PathBuf),
    /// The run goes on.
    Resumed {
        /// Requests that have their sample already.
        samples: usize,
        /// Cells whose file ended in a torn line, which was cut off.
        repaired: Vec<String>,
        /// Cells with a round under load that was cut off, and how many samples of it were set
        /// aside: it is made again from its start.
        cut: Vec<(String, usize)>,
    },
}

/// A JSON file's content with the version of its shape.
#[derive(Serialize)]
struct Versioned<'a, T> {
    schema_version: u32,
    #[serde(flatten)]
    content: &'a T,
}

impl Store {
    /// Opens the folder for a new run. An earlier run in it is moved aside to `<dir>.1`, `.2`, …
    ///
    /// # Errors
    /// [`StoreError::Busy`] while another process writes to it, [`StoreError::NotResults`] when
    /// the folder holds something that is no run.
    pub fn create(dir: &Path) -> Result<(Self, Opened), StoreError> {
        let (folder, aside) = Folder::create(dir)?;
        let store = Self {
            folder,
            done: BTreeMap::new(),
            loads: BTreeMap::new(),
        };
        Ok((store, aside.map_or(Opened::New, Opened::MovedAside)))
    }

    /// Opens the folder to go on with `plan`. A folder that does not exist, or in which a run
    /// died before its first sample, is the same as a new one.
    ///
    /// # Errors
    /// [`StoreError::Changed`] with the changed keys when the folder belongs to another plan, and
    /// what [`Store::create`] refuses. Sample files with lines that are not samples of the plan.
    pub fn resume(
        dir: &Path,
        resolved: &Config,
        plan: &Plan,
    ) -> Result<(Self, Opened), StoreError> {
        if !dir.join(MANIFEST).exists() {
            return Self::create(dir);
        }
        let folder = Folder::open(dir)?;
        let earlier: Manifest = folder.read_json(MANIFEST)?;
        if earlier.plan_hash != plan.hash {
            return Err(folder.changed(resolved)?);
        }
        let mut planned: BTreeMap<&str, Vec<&Block>> = BTreeMap::new();
        for block in &plan.blocks {
            planned
                .entry(&plan.cells[block.cell].id)
                .or_default()
                .push(block);
        }
        let mut store = Self {
            folder,
            done: BTreeMap::new(),
            loads: BTreeMap::new(),
        };
        let mut samples = 0;
        let mut repaired = Vec::new();
        let mut cut = Vec::new();
        for (cell, blocks) in planned {
            let mut found = CellSamples::repair(&store.samples_path(cell), cell)?;
            if found.torn_bytes > 0 {
                repaired.push(cell.to_owned());
            }
            store.retire_failure(cell)?;
            let facts =
                read_load_facts(&store.cell_dir(cell).join(LOAD_FILE), cell).map_err(|source| {
                    StoreError::Samples {
                        cell: cell.to_owned(),
                        source,
                    }
                })?;
            store
                .loads
                .extend(facts.map(|facts| (cell.to_owned(), facts)));
            // A round without facts was cut off: its samples do not count.
            let lost: Vec<Range<u64>> = blocks
                .iter()
                .filter(|block| {
                    block
                        .round
                        .as_ref()
                        .is_some_and(|round| !store.has_rounds(cell, &round.rounds))
                })
                .map(|block| block.orders())
                .collect();
            let is_lost =
                |sample: &Sample| lost.iter().any(|orders| orders.contains(&sample.order));
            let set = set_aside(&store.samples_path(cell), &mut found.samples, is_lost)?;
            if set > 0 {
                cut.push((cell.to_owned(), set));
            }
            for sample in &found.samples {
                if !blocks
                    .iter()
                    .any(|block| block.orders().contains(&sample.order))
                {
                    return Err(StoreError::Unplanned {
                        cell: cell.to_owned(),
                        message: format!("the plan has no request {} in it", sample.order),
                    });
                }
                samples += 1;
                store.mark(cell, sample.order);
            }
        }
        Ok((
            store,
            Opened::Resumed {
                samples,
                repaired,
                cut,
            },
        ))
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.folder.dir()
    }

    /// The folder of a cell.
    #[must_use]
    pub fn cell_dir(&self, cell: &str) -> PathBuf {
        self.folder.cell_dir(cell)
    }

    /// Whether the request at `order` has its sample already.
    #[must_use]
    pub fn has(&self, cell: &str, order: u64) -> bool {
        self.done
            .get(cell)
            .is_some_and(|orders| orders.contains(&order))
    }

    /// Whether any of these rounds of a cell has its facts, and with them its samples.
    #[must_use]
    pub fn has_rounds(&self, cell: &str, rounds: &Range<u32>) -> bool {
        self.loads
            .get(cell)
            .is_some_and(|facts| facts.rounds.iter().any(|r| rounds.contains(&r.round)))
    }

    /// Rounds that do not count, by their cell, and why. A level of a search that does not count
    /// has not held, which is all that the search asks.
    #[must_use]
    pub fn invalid_rounds<'a>(&'a self, plan: &'a Plan) -> Vec<(&'a str, &'a str)> {
        let searches = |cell: &str| {
            plan.cell(cell)
                .is_some_and(|(_, cell)| cell.load.search.is_some())
        };
        self.loads
            .values()
            .filter(|facts| !searches(&facts.cell_id))
            .flat_map(|facts| {
                let reasons = facts
                    .rounds
                    .iter()
                    .filter_map(|r| r.invalid_reason.as_deref());
                reasons.map(|reason| (facts.cell_id.as_str(), reason))
            })
            .collect()
    }

    /// Whether nothing of a share of the plan is left to run.
    #[must_use]
    pub fn is_complete(&self, plan: &Plan, shard: Option<Shard>) -> bool {
        plan.blocks_of(shard).all(|block| {
            let cell = &plan.cells[block.cell].id;
            match &block.round {
                Some(round) => self.has_rounds(cell, &round.rounds),
                None => block
                    .requests
                    .iter()
                    .all(|request| self.has(cell, request.order)),
            }
        })
    }

    /// Samples in the folder.
    #[must_use]
    pub fn samples(&self) -> usize {
        self.done.values().map(BTreeSet::len).sum()
    }

    /// Appends a sample to its cell, at once.
    ///
    /// # Errors
    /// A sample that contradicts itself or is there already, and a full or read-only disk.
    pub fn append(&mut self, sample: &Sample) -> Result<(), StoreError> {
        self.append_all(std::slice::from_ref(sample))
    }

    /// Appends samples of one cell in a single write.
    ///
    /// # Errors
    /// As [`Store::append`]; none of them is in the folder then.
    pub fn append_all(&mut self, samples: &[Sample]) -> Result<(), StoreError> {
        let Some(first) = samples.first() else {
            return Ok(());
        };
        let cell = &first.cell_id;
        for sample in samples {
            if sample.cell_id != *cell || self.has(cell, sample.order) {
                return Err(StoreError::Unplanned {
                    cell: cell.clone(),
                    message: format!("request {} has its sample already", sample.order),
                });
            }
            sample.validate().map_err(|message| StoreError::Malformed {
                path: self.samples_path(cell),
                message: format!("request {}: {message}", sample.order),
            })?;
        }
        let dir = self.cell_dir(cell);
        fs::create_dir_all(&dir).map_err(StoreError::io("make", &dir))?;
        append(&self.samples_path(cell), samples)?;
        for sample in samples {
            self.mark(cell, sample.order);
        }
        Ok(())
    }

    /// Records the facts of rounds whose samples have all been appended. From then on they count.
    ///
    /// # Errors
    /// [`StoreError::Io`], and facts that contradict each other.
    pub fn finish_rounds(&mut self, cell: &str, rounds: Vec<LoadRound>) -> Result<(), StoreError> {
        let dir = self.cell_dir(cell);
        let path = dir.join(LOAD_FILE);
        let facts = self
            .loads
            .entry(cell.to_owned())
            .or_insert_with(|| LoadFacts::new(cell));
        facts.rounds.extend(rounds);
        facts.rounds.sort_by_key(|round| round.round);
        facts.validate().map_err(|message| StoreError::Malformed {
            path: path.clone(),
            message,
        })?;
        fs::create_dir_all(&dir).map_err(StoreError::io("make", &dir))?;
        write_json(&path, facts)
    }

    /// Every sample of the folder, cell by cell in plan order. Files are read, not repaired.
    ///
    /// # Errors
    /// [`StoreError::Samples`].
    pub fn read_samples(&self, plan: &Plan) -> Result<Vec<Sample>, StoreError> {
        let mut samples = Vec::new();
        for cell in &plan.cells {
            let path = self.samples_path(&cell.id);
            if path.exists() {
                let file = read_samples(&path).map_err(|source| StoreError::Samples {
                    cell: cell.id.clone(),
                    source,
                })?;
                samples.extend(file.samples);
            }
        }
        Ok(samples)
    }

    /// Writes `manifest.json`.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn write_manifest(&self, manifest: &Manifest) -> Result<(), StoreError> {
        self.folder.write_json(MANIFEST, manifest)
    }

    /// The manifest in the folder.
    ///
    /// # Errors
    /// A missing or malformed file.
    pub fn manifest(&self) -> Result<Manifest, StoreError> {
        self.folder.read_json(MANIFEST)
    }

    /// Writes `config.resolved.toml`.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn write_config(&self, resolved: &Config) -> Result<(), StoreError> {
        self.folder.write_config(resolved)
    }

    /// Writes `environment.json`.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn write_environment(&self, environment: &Environment) -> Result<(), StoreError> {
        self.folder.write_json(ENVIRONMENT, environment)
    }

    /// Writes `calibration.json`: `content` must serialise as a struct or map, and gets its
    /// `schema_version` here.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Malformed`] for content of another shape.
    pub fn write_calibration(&self, content: &impl Serialize) -> Result<(), StoreError> {
        let versioned = Versioned {
            schema_version: crate::SCHEMA_VERSION,
            content,
        };
        self.folder.write_json(CALIBRATION, &versioned)
    }

    /// What `calibration.json` holds; the default where there is none yet.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Malformed`] for content of another shape.
    pub fn calibration<T: DeserializeOwned + Default>(&self) -> Result<T, StoreError> {
        if !self.dir().join(CALIBRATION).exists() {
            return Ok(T::default());
        }
        self.folder.read_json(CALIBRATION)
    }

    /// Writes the `failure.json` of a cell that could not be run to its end. Requests that fail are
    /// samples. [`Store::resume`] sets the file aside, since the cell gets another chance.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn write_failure(&self, failure: &CellFailure) -> Result<(), StoreError> {
        let dir = self.cell_dir(&failure.cell_id);
        fs::create_dir_all(&dir).map_err(StoreError::io("make", &dir))?;
        write_json(&dir.join(FAILURE), failure)
    }

    fn retire_failure(&self, cell: &str) -> Result<(), StoreError> {
        let path = self.cell_dir(cell).join(FAILURE);
        if !path.exists() {
            return Ok(());
        }
        let aside = self.cell_dir(cell).join(FAILURE_EARLIER);
        fs::rename(&path, aside).map_err(StoreError::io("set aside", &path))
    }

    fn samples_path(&self, cell: &str) -> PathBuf {
        self.cell_dir(cell).join("samples.jsonl")
    }

    fn mark(&mut self, cell: &str, order: u64) {
        self.done.entry(cell.to_owned()).or_default().insert(order);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::fixture::{config, planned, sample_of};
    use crate::manifest::RunState;
    use crate::plan::Inputs;
    use crate::store::resolved_config;

    struct Run {
        root: tempfile::TempDir,
        config: Config,
        inputs: Inputs,
        plan: Plan,
    }

    impl Run {
        fn new(sets: &[&str]) -> Self {
            let config = config(sets);
            let (inputs, plan) = planned(&config);
            Self {
                root: tempfile::tempdir().unwrap(),
                config,
                inputs,
                plan,
            }
        }

        fn dir(&self) -> PathBuf {
            self.root.path().join("small")
        }

        fn resolved(&self) -> Config {
            resolved_config(&self.config, &self.inputs)
        }

        /// Begins a run and records its first `count` requests.
        fn begin(&self, count: usize) -> Store {
            let (mut store, opened) = Store::create(&self.dir()).unwrap();
            assert_eq!(opened, Opened::New);
            store.write_config(&self.resolved()).unwrap();
            let manifest = Manifest::new(&self.config, &self.inputs, &self.plan, None);
            store.write_manifest(&manifest).unwrap();
            store.write_environment(&manifest.environment).unwrap();
            for (cell, request) in self.requests().take(count) {
                store.append(&sample_of(cell, request)).unwrap();
            }
            store
        }

        fn requests(
            &self,
        ) -> impl Iterator<Item = (&crate::plan::Cell, &crate::plan::PlannedRequest)> {
            self.plan.blocks.iter().flat_map(|block| {
                let cell = &self.plan.cells[block.cell];
                block.requests.iter().map(move |request| (cell, request))
            })
        }

        fn resume(&self) -> Result<(Store, Opened), StoreError> {
            Store::resume(&self.dir(), &self.resolved(), &self.plan)
        }
    }

    #[test]
    fn a_resumed_run_knows_what_it_has() {
        let run = Run::new(&[]);
        drop(run.begin(9));
        let (mut store, opened) = run.resume().unwrap();
        let repaired = Vec::new();
        assert_eq!(
            opened,
            Opened::Resumed {
                samples: 9,
                repaired,
                cut: Vec::new()
            }
        );
        assert_eq!(store.samples(), 9);
        assert_eq!(store.read_samples(&run.plan).unwrap().len(), 9);
        for (index, (cell, request)) in run.requests().enumerate() {
            assert_eq!(store.has(&cell.id, request.order), index < 9);
        }
        let (cell, request) = run.requests().next().unwrap();
        let error = store.append(&sample_of(cell, request)).unwrap_err();
        assert!(
            error.to_string().contains("has its sample already"),
            "{error}"
        );
    }

    #[test]
    fn a_torn_line_is_cut_off_and_its_request_made_again() {
        let run = Run::new(&[]);
        let store = run.begin(5);
        let (cell, request) = run.requests().nth(5).unwrap();
        let path = store.samples_path(&cell.id);
        drop(store);
        let whole = fs::read(&path).unwrap();
        let line = serde_json::to_vec(&sample_of(cell, request)).unwrap();
        let mut file = fs::File::options().append(true).open(&path).unwrap();
        file.write_all(&line[..line.len() / 2]).unwrap();
        let (mut store, opened) = run.resume().unwrap();
        let repaired = vec![cell.id.clone()];
        assert_eq!(
            opened,
            Opened::Resumed {
                samples: 5,
                repaired,
                cut: Vec::new()
            }
        );
        assert_eq!(fs::read(&path).unwrap(), whole);
        store.append(&sample_of(cell, request)).unwrap();
        drop(store);
        let (store, _) = run.resume().unwrap();
        assert_eq!(store.samples(), 6);
    }

    #[test]
    fn a_whole_line_without_its_newline_counts() {
        let run = Run::new(&[]);
        let store = run.begin(1);
        let (cell, _) = run.requests().next().unwrap();
        let path = store.samples_path(&cell.id);
        drop(store);
        let mut bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.pop(), Some(b'\n'));
        fs::write(&path, &bytes).unwrap();
        let (store, _) = run.resume().unwrap();
        assert_eq!(store.samples(), 1);
        assert_eq!(fs::read(&path).unwrap().last(), Some(&b'\n'));
    }

    #[test]
    fn a_damaged_line_is_an_error_with_its_place() {
        let run = Run::new(&[]);
        let store = run.begin(1);
        let (cell, _) = run.requests().next().unwrap();
        let path = store.samples_path(&cell.id);
        drop(store);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{{}}\n{text}")).unwrap();
        let error = run.resume().unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("line 1"), "{error}: {cause}");
    }

    #[test]
    fn a_changed_configuration_is_refused_by_its_key() {
        let run = Run::new(&[]);
        drop(run.begin(3));
        let changed = Run {
            root: tempfile::tempdir().unwrap(),
            ..Run::new(&["generation.max_tokens=7", "grid.links=['none']"])
        };
        let error = Store::resume(&run.dir(), &changed.resolved(), &changed.plan).unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains("generation.max_tokens: 32 → 7"),
            "{message}"
        );
        assert!(message.contains("grid.links: "), "{message}");
        assert!(!message.contains("experiment"), "{message}");
        assert_eq!(
            crate::exit::ExitCode::of(&error),
            crate::exit::ExitCode::Config
        );
        // A changed link profile is a change too, though the experiment file is the same.
        let mut inputs = run.inputs.clone();
        let link = inputs.links.get_mut("slow-20m-60ms").unwrap();
        link.downlink.rate_mbit = Some(21.0);
        let plan = Plan::new(&run.config, &inputs).unwrap();
        let resolved = resolved_config(&run.config, &inputs);
        let error = Store::resume(&run.dir(), &resolved, &plan).unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains("links.slow-20m-60ms.downlink.rate_mbit: 20.0 → 21.0"),
            "{message}"
        );
    }

    #[test]
    fn an_earlier_run_is_moved_aside_and_never_overwritten() {
        let run = Run::new(&[]);
        let mut kept = Vec::new();
        for round in 1..=2 {
            drop(run.begin(round));
            let (store, opened) = Store::create(&run.dir()).unwrap();
            let aside = run.root.path().join(format!("small.{round}"));
            assert_eq!(opened, Opened::MovedAside(aside.clone()));
            drop(store);
            fs::remove_dir_all(run.dir()).unwrap();
            kept.push(aside);
        }
        for (aside, samples) in kept.iter().zip([1, 2]) {
            let (store, _) = Store::resume(aside, &run.resolved(), &run.plan).unwrap();
            assert_eq!(store.samples(), samples);
        }
    }

    #[test]
    fn foreign_folders_and_running_runs_are_left_alone() {
        let run = Run::new(&[]);
        let foreign = run.root.path().join("foreign");
        fs::create_dir(&foreign).unwrap();
        fs::write(foreign.join("thesis.tex"), "x").unwrap();
        let error = Store::create(&foreign).unwrap_err();
        assert!(matches!(error, StoreError::NotResults { .. }), "{error}");
        assert!(foreign.join("thesis.tex").exists());
        let held = run.begin(1);
        assert!(matches!(
            Store::create(&run.dir()),
            Err(StoreError::Busy { .. })
        ));
        assert!(matches!(run.resume(), Err(StoreError::Busy { .. })));
        drop(held);
        assert!(run.resume().is_ok());
    }

    #[test]
    fn resuming_nothing_begins_anew() {
        let run = Run::new(&[]);
        let (store, opened) = run.resume().unwrap();
        assert_eq!((store.samples(), opened), (0, Opened::New));
    }

    #[test]
    fn every_file_carries_the_version() {
        let run = Run::new(&[]);
        let store = run.begin(1);
        let (cell, _) = run.requests().next().unwrap();
        store
            .write_calibration(&std::collections::BTreeMap::from([("none", 1.5)]))
            .unwrap();
        let failure = CellFailure {
            schema_version: celslm_reports::SCHEMA_VERSION,
            cell_id: cell.id.clone(),
            error_kind: "prepare".into(),
            error: "x".into(),
        };
        store.write_failure(&failure).unwrap();
        let cell_dir = store.cell_dir(&cell.id);
        for (path, version) in [
            (run.dir().join(MANIFEST), crate::SCHEMA_VERSION),
            (run.dir().join(ENVIRONMENT), crate::SCHEMA_VERSION),
            (run.dir().join(CALIBRATION), crate::SCHEMA_VERSION),
            (cell_dir.join(FAILURE), celslm_reports::SCHEMA_VERSION),
            (
                cell_dir.join("samples.jsonl"),
                celslm_reports::SCHEMA_VERSION,
            ),
        ] {
            let value: serde_json::Value =
                serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            assert_eq!(value["schema_version"], version, "{}", path.display());
        }
        let text = fs::read_to_string(run.dir().join("config.resolved.toml")).unwrap();
        assert_eq!(crate::fixture::parse(&text, &[]).unwrap(), run.resolved());
        let mut manifest = store.manifest().unwrap();
        manifest.end(RunState::Complete);
        store.write_manifest(&manifest).unwrap();
        assert_eq!(store.manifest().unwrap(), manifest);
        assert!(manifest.sessions[0].ended_at.is_some());
        drop(store);
        drop(run.resume().unwrap());
        assert!(!cell_dir.join(FAILURE).exists());
        assert!(cell_dir.join(FAILURE_EARLIER).exists());
    }
}
