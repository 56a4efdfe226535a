//! `manifest.json`: what a run was, so that it can be judged and repeated.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use celslm_datasets::DatasetConfig;
use celslm_kv::codec::ArtefactManifest;
use celslm_link::LinkFacts;
use celslm_model::store::ModelSpec;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::device::{DeviceProfile, ThrottleFacts};
use crate::environment::Environment;
use crate::plan::{ArtefactFile, DatasetDraw, Devices, Inputs, Plan, Seeds, Shard};
use crate::{catalogue, clock};

/// The lock file that the binary was built with.
const CARGO_LOCK: &[u8] = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock"));

/// The manifest of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this shape.
    pub schema_version: u32,
    /// Name of the experiment.
    pub experiment: String,
    /// Its heading.
    pub title: String,
    /// What it asks.
    pub description: String,
    /// How far the run came.
    pub state: RunState,
    /// [`Plan::hash`]: runs with one hash measure the same.
    pub plan_hash: String,
    /// Cells of the plan.
    pub cells: usize,
    /// Requests of the share that this folder holds, warm-up included.
    pub requests: usize,
    /// The share of the plan; `None` for all of it.
    pub shard: Option<Shard>,
    /// What computed the cloud's part of the answers: `live`, `replayed` or `simulated`.
    pub compute: String,
    /// Devices by role (`edge`, `cloud`, and `replay` for the one at whose rates recorded outputs
    /// were served), each with all of its profile.
    #[serde(default)]
    pub devices: BTreeMap<String, DeviceRecord>,
    /// Each time that `celslm run` worked on this folder.
    pub sessions: Vec<SessionRecord>,
    /// The binary.
    pub build: Build,
    /// Models by role, `cloud` and `edge`.
    pub models: BTreeMap<String, ModelRecord>,
    /// Data sets.
    pub datasets: Vec<DatasetRecord>,
    /// Fitted bridges by the name that cells give them.
    pub bridges: BTreeMap<String, BridgeRecord>,
    /// What codecs of the plan were fitted beforehand; `None` if none of them was.
    #[serde(default)]
    pub codec_artefact: Option<ArtefactRecord>,
    /// The root seed and the seeds derived from it for the whole run, by name.
    pub seeds: BTreeMap<String, u64>,
    /// The machine.
    pub environment: Environment,
    /// What the link was made of.
    pub link: Option<LinkFacts>,
    /// Figures measured on each link, by profile name; `calibration.json` has all of them.
    pub measured_links: BTreeMap<String, serde_json::Value>,
}

/// How far a run came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// Samples are being written, or the process was killed.
    Running,
    /// Every request of the share has its sample.
    Complete,
    /// Stopped by the user; `--resume` goes on.
    Interrupted,
    /// Stopped by an error; `--resume` tries again.
    Failed,
}

/// One time that the folder was worked on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// Wall-clock start, UTC.
    pub started_at: String,
    /// Wall-clock end, UTC; `None` while it runs or when it was killed.
    pub ended_at: Option<String>,
    /// The command line.
    pub command_line: Vec<String>,
    /// State of the source tree at the start, if git and the tree were at hand.
    pub source: Option<SourceTree>,
}

/// A state of the source tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceTree {
    /// Commit of HEAD.
    pub commit: String,
    /// Whether files differed from it; `None` when git did not say.
    pub dirty: Option<bool>,
}

/// What the binary was built from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// Version of the crate.
    pub version: String,
    /// The source tree; `None` for a build outside git or before the first commit.
    pub source: Option<SourceTree>,
    /// BLAKE3 (hex) of Cargo.lock.
    pub cargo_lock_blake3: String,
    /// The compiler.
    pub rustc: String,
    /// Its extra flags.
    pub rustflags: String,
    /// Target triple.
    pub target: String,
    /// Cargo's profile.
    pub profile: String,
    /// Optimisation level.
    pub opt_level: String,
    /// Instruction set extensions that the code was compiled for.
    pub target_features: Vec<String>,
}

/// A model of the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// Name in configurations.
    pub name: String,
    /// File name.
    pub file: String,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Length in bytes.
    pub bytes: u64,
    /// Licence of the weights.
    pub licence: String,
    /// BLAKE3 fingerprint of the file, which context ids build on; filled in by the run.
    pub fingerprint: Option<String>,
    /// BLAKE3 (hex) of tokenizer and chat template; filled in by the run.
    pub tokenizer: Option<String>,
}

/// A data set of the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DatasetRecord {
    /// The setting.
    pub config: DatasetConfig,
    /// BLAKE3 (hex) of the whole source.
    pub hash: String,
    /// Licence of the text.
    pub licence: String,
    /// Official home.
    pub source: String,
    /// Documents drawn.
    pub documents: usize,
    /// Questions drawn.
    pub questions: usize,
}

/// A device of the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceRecord {
    /// Its profile, as it was read.
    pub profile: DeviceProfile,
    /// How this host stood in for it; filled in by the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle: Option<ThrottleFacts>,
}

fn device_records(devices: &Devices) -> BTreeMap<String, DeviceRecord> {
    [("edge", &devices.edge), ("cloud", &devices.cloud)]
        .into_iter()
        .chain(devices.replay.iter().map(|profile| ("replay", profile)))
        .map(|(role, profile)| {
            let record = DeviceRecord {
                profile: profile.clone(),
                throttle: None,
            };
            (role.to_owned(), record)
        })
        .collect()
}

/// A fitted bridge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeRecord {
    /// The file.
    pub path: String,
    /// BLAKE3 (hex) of the file.
    pub blake3: String,
}

/// A codec artefact: a fixed cost at both ends, no part of any request's bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtefactRecord {
    /// The file.
    pub path: String,
    /// The name that ids of codecs give it: 16 digits of its BLAKE3.
    pub id: String,
    /// Length of the file.
    pub bytes: u64,
    /// The model whose KV it was fitted on.
    pub model: String,
    /// What it was fitted on.
    pub fitted: ArtefactManifest,
}

impl ArtefactRecord {
    /// What a run says of its artefact.
    #[must_use]
    pub fn new(file: &ArtefactFile) -> Self {
        let artefact = &file.artefact;
        Self {
            path: file.path.display().to_string(),
            id: artefact.id().to_string(),
            bytes: artefact.file_bytes(),
            model: artefact.model().fingerprint.to_string(),
            fitted: artefact.manifest().clone(),
        }
    }
}

impl Manifest {
    /// The manifest of a run that begins now. Fingerprints, bridges and the link are unknown yet.
    #[must_use]
    pub fn new(config: &Config, inputs: &Inputs, plan: &Plan, shard: Option<Shard>) -> Self {
        let seeds = Seeds::new(config.experiment.seed);
        Self {
            schema_version: crate::SCHEMA_VERSION,
            experiment: config.experiment.name.clone(),
            title: config.title().to_owned(),
            description: config.experiment.description.clone(),
            state: RunState::Running,
            plan_hash: plan.hash.clone(),
            cells: plan.cells.len(),
            requests: plan.requests_of(shard),
            shard,
            compute: config.cloud.compute.name().to_owned(),
            devices: device_records(&inputs.devices),
            sessions: vec![SessionRecord::begin()],
            build: Build::current(),
            models: BTreeMap::from([
                ("cloud".to_owned(), ModelRecord::new(&inputs.cloud_model)),
                ("edge".to_owned(), ModelRecord::new(&inputs.edge_model)),
            ]),
            datasets: inputs.draws.iter().map(DatasetRecord::new).collect(),
            bridges: BTreeMap::new(),
            codec_artefact: None,
            seeds: BTreeMap::from([
                ("root".to_owned(), config.experiment.seed),
                ("dataset".to_owned(), seeds.derive("dataset")),
                ("workload".to_owned(), seeds.derive("workload")),
            ]),
            environment: Environment::capture(),
            link: None,
            measured_links: BTreeMap::new(),
        }
    }

    /// Takes over the sessions of the manifest that a resumed run found.
    pub fn continue_from(&mut self, earlier: &Self) {
        let own = std::mem::take(&mut self.sessions);
        self.sessions = earlier.sessions.iter().cloned().chain(own).collect();
        // The same plan has the same models; what they and the link said of themselves is known.
        self.models.clone_from(&earlier.models);
        self.link.clone_from(&earlier.link);
        self.bridges.clone_from(&earlier.bridges);
        self.measured_links.clone_from(&earlier.measured_links);
    }

    /// States how the session ended.
    pub fn end(&mut self, state: RunState) {
        self.state = state;
        if let Some(session) = self.sessions.last_mut() {
            session.end();
        }
    }
}

impl SessionRecord {
    /// A session that begins now, with this process's command line.
    #[must_use]
    pub fn begin() -> Self {
        Self {
            started_at: clock::utc(),
            ended_at: None,
            command_line: std::env::args().collect(),
            source: SourceTree::at(&catalogue::build_root()),
        }
    }

    /// Ends the session now.
    pub fn end(&mut self) {
        self.ended_at = Some(clock::utc());
    }
}

impl DatasetRecord {
    /// What is known of a draw.
    #[must_use]
    pub fn new(draw: &DatasetDraw) -> Self {
        Self {
            config: draw.config.clone(),
            hash: draw.hash.clone(),
            licence: draw.licence.clone(),
            source: draw.source.clone(),
            documents: draw.documents.len(),
            questions: draw.documents.iter().map(|d| d.questions.len()).sum(),
        }
    }
}

impl SourceTree {
    /// Asks git about the tree at `root`.
    fn at(root: &Path) -> Option<Self> {
        let git = |arguments: &[&str]| {
            let output = Command::new("git")
                .arg("-C")
                .arg(root)
                .args(arguments)
                .output()
                .ok()?;
            let text = String::from_utf8(output.stdout).ok()?;
            output.status.success().then(|| text.trim().to_owned())
        };
        Some(Self {
            commit: git(&["rev-parse", "--verify", "HEAD"])?,
            dirty: git(&["status", "--porcelain"]).map(|changes| !changes.is_empty()),
        })
    }
}

impl Build {
    /// The running binary.
    #[must_use]
    pub fn current() -> Self {
        let source = match env!("CELSLM_COMMIT") {
            "" => None,
            commit => Some(SourceTree {
                commit: commit.to_owned(),
                dirty: env!("CELSLM_DIRTY").parse().ok(),
            }),
        };
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            source,
            cargo_lock_blake3: blake3::hash(CARGO_LOCK).to_hex().to_string(),
            rustc: env!("CELSLM_RUSTC").to_owned(),
            rustflags: env!("CELSLM_RUSTFLAGS").to_owned(),
            target: env!("CELSLM_TARGET").to_owned(),
            profile: env!("CELSLM_PROFILE").to_owned(),
            opt_level: env!("CELSLM_OPT_LEVEL").to_owned(),
            target_features: env!("CELSLM_TARGET_FEATURES")
                .split(',')
                .filter(|feature| !feature.is_empty())
                .map(str::to_owned)
                .collect(),
        }
    }
}

impl ModelRecord {
    /// What is known of a model before it is loaded.
    #[must_use]
    pub fn new(spec: &ModelSpec) -> Self {
        Self {
            name: spec.name.clone(),
            file: spec.file.clone(),
            sha256: spec.sha256.to_string(),
            bytes: spec.bytes,
            licence: spec.licence.clone(),
            fingerprint: None,
            tokenizer: None,
        }
    }
}
