//! The sections of an experiment file, and the ranges of their values.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use celslm_datasets::{DatasetConfig, EmbeddedConfig, WorkloadConfig};
use celslm_kv::align::AlignmentConfig;
use celslm_kv::codec::{Codec as _, CodecConfig};
use celslm_link::{BackendChoice, LinkProfile};
use celslm_model::Sampling;
use celslm_systems::mapping::codec_problem;
use celslm_systems::{Contract, ScheduleKind};
use serde::{Deserialize, Deserializer, Serialize, de};

use super::{ConfigError, ConfigSource, ServingConfig};
use crate::artefacts;
use crate::device::{DeviceProfile, HOST};

/// Name of the scenario that the top-level `[grid]` describes.
pub const MAIN_SCENARIO: &str = "main";

/// A day: longer waits than this are slips.
const LONGEST_WAIT_S: u64 = 24 * 60 * 60;

/// One experiment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Version of the file's format; only [`crate::SCHEMA_VERSION`] is read. Written into the
    /// resolved copy, and left out by users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_version: Option<u32>,
    /// Folder of data files: relative data set paths start here. When absent, the environment
    /// variable `CELSLM_DATA` says; embedded data needs neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// What the experiment is called.
    pub experiment: ExperimentConfig,
    /// Which pair of models is compared.
    #[serde(default)]
    pub models: ModelsConfig,
    /// How the two nodes and the link are set up.
    #[serde(default)]
    pub deployment: DeploymentConfig,
    /// What the edge computes on.
    #[serde(default)]
    pub edge: EdgeConfig,
    /// What the cloud computes on, and whether it computes while it is measured.
    #[serde(default)]
    pub cloud: CloudConfig,
    /// How answers are generated, in every system alike.
    #[serde(default)]
    pub generation: GenerationConfig,
    /// Which requests are made, and in which order.
    #[serde(default)]
    pub workload: WorkloadSettings,
    /// What a request under load must meet to be good.
    #[serde(default)]
    pub slo: SloConfig,
    /// Bounds of stores and messages.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// The combinations of the scenario [`MAIN_SCENARIO`].
    #[serde(default)]
    pub grid: Grid,
    /// Further grids, each by name.
    #[serde(default, rename = "scenario", skip_serializing_if = "Vec::is_empty")]
    pub scenarios: Vec<Scenario>,
    /// Link profiles defined here. A link that is not among them is read from
    /// `configs/links/NAME.toml`; the resolved copy holds every link of the run.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub links: BTreeMap<String, LinkProfile>,
    /// Device profiles defined here. A device that is not among them is read from
    /// `configs/devices/NAME.toml`; the resolved copy holds every device of the run.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub devices: BTreeMap<String, DeviceProfile>,
}

/// `[experiment]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExperimentConfig {
    /// Folder name under `results/`.
    pub name: String,
    /// Heading of the report; the name when empty.
    #[serde(default)]
    pub title: String,
    /// What the experiment asks, printed in the report.
    #[serde(default)]
    pub description: String,
    /// Root of every seed; components derive theirs from it by name.
    #[serde(default)]
    pub seed: u64,
}

/// `[models]`: file names in `configs/models`, without `.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelsConfig {
    /// The large model, at the cloud.
    pub cloud: String,
    /// The small model, at the edge (and at the cloud for `identity` alignment).
    pub edge: String,
    /// The file of the edge model's codec artefact, where it is not the one in `configs/codecs`;
    /// read only if a codec needs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub codec_artefact: Option<PathBuf>,
}

impl Default for ModelsConfig {
    fn default() -> Self {
        Self {
            cloud: "qwen2.5-coder-1.5b-instruct-q4_k_m".to_owned(),
            edge: "qwen2.5-coder-0.5b-instruct-q4_k_m".to_owned(),
            codec_artefact: None,
        }
    }
}

/// `[deployment]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeploymentConfig {
    /// What carries the packets between the nodes.
    pub backend: BackendChoice,
    /// TCP congestion control of both nodes; the kernel must have it.
    pub congestion_control: String,
    /// Edge processes, all connected to the one cloud, each over a link of its own.
    pub edges: usize,
    /// The links of the second edge, the third and so on, the same in every cell. Edges without an
    /// entry have the cell's link, as the first edge always has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub edge_links: Vec<String>,
    /// Which CPUs the processes may use.
    pub pinning: Pinning,
    /// Whether the packet thread waits out the last stretch before a departure awake: more
    /// punctual, for much of a CPU that the nodes then lack.
    pub packet_spin: bool,
    /// Compute threads of each node.
    pub threads: Threads,
    /// Longest wait for both nodes to hold their models, in seconds.
    pub startup_timeout_s: u64,
    /// Nodes that were started by hand, for example on two real machines. Then nothing is
    /// spawned, and `backend` must be `none` or `auto`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalNodes>,
}

impl Default for DeploymentConfig {
    fn default() -> Self {
        Self {
            backend: BackendChoice::default(),
            congestion_control: "cubic".to_owned(),
            edges: 1,
            edge_links: Vec::new(),
            pinning: Pinning::default(),
            packet_spin: false,
            threads: Threads::default(),
            startup_timeout_s: 120,
            external: None,
        }
    }
}

impl DeploymentConfig {
    /// Longest wait for both nodes to hold their models.
    #[must_use]
    pub fn startup_timeout(&self) -> Duration {
        Duration::from_secs(self.startup_timeout_s)
    }
}

/// `deployment.pinning`: an empty list leaves the choice to the scheduler.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pinning {
    /// CPUs of the edge processes. Several edges share the list out: each takes every n-th, and
    /// where there are fewer CPUs than edges the list begins again.
    pub edge_cpus: Vec<usize>,
    /// CPUs of the cloud process.
    pub cloud_cpus: Vec<usize>,
    /// CPU of the packet thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet_cpu: Option<usize>,
}

/// `deployment.threads`: 0 means every CPU that the node may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Threads {
    /// Compute threads of the edge.
    pub edge: usize,
    /// Compute threads of the cloud.
    pub cloud: usize,
}

/// `deployment.external`: control sockets of nodes started by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalNodes {
    /// Unix socket of `celslm edge`.
    pub edge_control: PathBuf,
    /// Unix socket of `celslm cloud`.
    pub cloud_control: PathBuf,
}

/// `[edge]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EdgeConfig {
    /// The device that every edge node is slowed down to; see `celslm device ls`. Nodes that were
    /// started by hand are named by it only.
    pub device: String,
}

impl Default for EdgeConfig {
    fn default() -> Self {
        Self {
            device: HOST.to_owned(),
        }
    }
}

/// `[cloud]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CloudConfig {
    /// The device that the cloud node is slowed down to, as the edge's.
    pub device: String,
    /// Whether the cloud computes while it is measured.
    pub compute: CloudCompute,
    /// The serving engine that the system `cloud_api` asks. It is neither slowed down nor replayed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serving: Option<ServingConfig>,
}

impl Default for CloudConfig {
    fn default() -> Self {
        Self {
            device: HOST.to_owned(),
            compute: CloudCompute::default(),
            serving: None,
        }
    }
}

/// `cloud.compute`
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloudCompute {
    /// It computes every answer and every context's KV when asked.
    #[default]
    Live,
    /// The named device's rates: outputs and KV are recorded by the live model before the first
    /// measured request, and served when that device would have computed them.
    Replay(String),
}

impl CloudCompute {
    /// What samples call the compute of a system that asks the cloud.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Replay(_) => "replayed",
        }
    }
}

/// `[generation]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GenerationConfig {
    /// Most tokens of one answer.
    pub max_tokens: usize,
    /// How the next token is chosen.
    pub sampling: Sampling,
}

impl Default for GenerationConfig {
    fn default() -> Self {
        Self {
            max_tokens: 32,
            sampling: Sampling::Greedy,
        }
    }
}

/// `[workload]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkloadSettings {
    /// Which question is asked when; see `celslm ls workloads`.
    pub arrivals: WorkloadConfig,
    /// Requests that a cell serves before the next cell has its turn.
    pub block_requests: usize,
    /// Order of the cells from one block to the next.
    pub interleave: Interleave,
    /// Requests of each cell before its first block; they are stored and not counted.
    pub warmup: usize,
    /// Longest time for one request, in seconds.
    pub request_timeout_s: u64,
    /// How often each cell runs a whole load, the cells in turns.
    pub rounds: u32,
    /// Share of a round under load, from its start, that is stored and not counted.
    pub warmup_share: f64,
    /// The same at its end.
    pub cooldown_share: f64,
    /// Most requests under way at once; an arrival beyond them is dropped and stored as failed.
    pub max_in_flight: usize,
    /// Highest 99th percentile of the time from an arrival until it is written to the edge, in
    /// milliseconds: a round beyond it is invalid.
    pub send_delay_p99_ms: f64,
    /// When a round under load ends early.
    pub overload: OverloadConfig,
}

/// `[workload.overload]`: signs, over a whole window, that more of the same says nothing new.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OverloadConfig {
    /// Highest share of requests that fail, dropped and refused ones among them; 1 turns it off.
    pub failed_share: f64,
    /// Highest median TTFT, as a multiple of `slo.ttft_ms`; 0 turns it off.
    pub ttft_factor: f64,
    /// Length of the window, in seconds.
    pub window_s: f64,
}

impl Default for OverloadConfig {
    fn default() -> Self {
        Self {
            failed_share: 0.5,
            ttft_factor: 10.0,
            window_s: 20.0,
        }
    }
}

/// `[slo]`: the objective of goodput, of overload and of a search for saturation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SloConfig {
    /// Longest time to the first token, counted from the planned arrival.
    pub ttft_ms: f64,
    /// Longest time per output token after it.
    pub tpot_ms: f64,
}

impl Default for SloConfig {
    fn default() -> Self {
        Self {
            ttft_ms: 2000.0,
            tpot_ms: 200.0,
        }
    }
}

impl Default for WorkloadSettings {
    fn default() -> Self {
        Self {
            arrivals: WorkloadConfig::default(),
            block_requests: 2,
            interleave: Interleave::default(),
            warmup: 1,
            request_timeout_s: 120,
            rounds: 2,
            warmup_share: 0.1,
            cooldown_share: 0.1,
            max_in_flight: 256,
            send_delay_p99_ms: 10.0,
            overload: OverloadConfig::default(),
        }
    }
}

impl WorkloadSettings {
    /// Longest time for one request.
    #[must_use]
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(self.request_timeout_s)
    }
}

/// Order of the compared cells over successive blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interleave {
    /// A B C, C B A, A B C, …: a drift of the machine touches every cell alike.
    #[default]
    Abba,
    /// All blocks of A, then all of B: for debugging, and stated in the report.
    Sequential,
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Most bytes of context KV that the cloud keeps.
    pub cloud_store_bytes: u64,
    /// Most bytes of context KV that the edge keeps.
    pub edge_cache_bytes: u64,
    /// Largest message on the wire, in bytes.
    pub message_bytes: u64,
    /// Most sessions that an engine computes at once.
    pub max_sessions: u64,
    /// Most sessions that wait for a place in an engine; further ones are refused.
    pub max_queue: u64,
    /// Most bytes of KV that an engine's sessions may grow to, a shared context counted once.
    pub session_kv_bytes: u64,
    /// Prompt tokens that one step of an engine takes in beside the sessions that generate, which
    /// wait for them between two tokens.
    pub step_tokens: u64,
    /// Most bytes that the recording of a replayed cloud may take on disk.
    pub recording_bytes: u64,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            cloud_store_bytes: 2 << 30,
            edge_cache_bytes: 256 << 20,
            message_bytes: 8 << 20,
            max_sessions: 64,
            max_queue: 256,
            session_kv_bytes: 512 << 20,
            step_tokens: 256,
            recording_bytes: 8 << 30,
        }
    }
}

/// `[grid]`: every combination of the lists is a cell, except that a system which moves no KV
/// has one cell per link, data set and contract, since the KV lists change nothing for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Grid {
    /// Systems to compare; see `celslm ls systems`.
    pub systems: Vec<SystemName>,
    /// Link profiles; see `celslm link profiles`.
    pub links: Vec<String>,
    /// Data sets; see `celslm ls datasets`.
    pub datasets: Vec<DatasetConfig>,
    /// Codec chains; see `celslm ls codecs`.
    pub codecs: Vec<CodecConfig>,
    /// Alignments; see `celslm ls alignments`.
    pub alignments: Vec<AlignmentConfig>,
    /// Schedules; see `celslm ls schedules`.
    pub schedules: Vec<ScheduleKind>,
    /// Tokens of one KV chunk on the wire.
    pub chunk_tokens: Vec<usize>,
    /// What the caches hold when a request arrives; under a load, when it begins.
    pub contracts: Vec<Contract>,
    /// How requests arrive, see `celslm ls workloads`; an empty list means `workload.arrivals`.
    pub loads: Vec<WorkloadConfig>,
}

impl Default for Grid {
    fn default() -> Self {
        Self {
            systems: celslm_systems::registry()
                .iter()
                .filter(|entry| !entry.echo && !entry.needs_serving)
                .map(|entry| SystemName(entry.name.to_owned()))
                .collect(),
            links: vec!["metro-100m-20ms".to_owned()],
            datasets: vec![DatasetConfig::Embedded(EmbeddedConfig {
                documents: Some(4),
                questions_per_document: Some(2),
                ..EmbeddedConfig::default()
            })],
            codecs: vec![CodecConfig::default()],
            alignments: vec![AlignmentConfig::Identity],
            schedules: vec![ScheduleKind::Layerwise],
            chunk_tokens: vec![256],
            contracts: vec![Contract::Primed],
            loads: Vec::new(),
        }
    }
}

/// `[[scenario]]`: a further grid. A list that is left out is the one of `[grid]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Name in cell ids and reports.
    pub name: String,
    /// See [`Grid::systems`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub systems: Option<Vec<SystemName>>,
    /// See [`Grid::links`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub links: Option<Vec<String>>,
    /// See [`Grid::datasets`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datasets: Option<Vec<DatasetConfig>>,
    /// See [`Grid::codecs`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codecs: Option<Vec<CodecConfig>>,
    /// See [`Grid::alignments`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alignments: Option<Vec<AlignmentConfig>>,
    /// See [`Grid::schedules`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedules: Option<Vec<ScheduleKind>>,
    /// See [`Grid::chunk_tokens`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk_tokens: Option<Vec<usize>>,
    /// See [`Grid::contracts`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contracts: Option<Vec<Contract>>,
    /// See [`Grid::loads`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loads: Option<Vec<WorkloadConfig>>,
}

impl Grid {
    /// Whether any of its systems asks a serving engine.
    fn asks_serving(&self) -> bool {
        self.systems.iter().any(|system| {
            celslm_systems::registry()
                .iter()
                .any(|entry| entry.name == system.as_str() && entry.needs_serving)
        })
    }
}

impl Scenario {
    /// The grid of this scenario, with the lists that it leaves out taken from `base`.
    #[must_use]
    pub fn grid(&self, base: &Grid) -> Grid {
        fn or<T: Clone>(own: Option<&Vec<T>>, base: &[T]) -> Vec<T> {
            own.map_or_else(|| base.to_vec(), Clone::clone)
        }
        Grid {
            systems: or(self.systems.as_ref(), &base.systems),
            links: or(self.links.as_ref(), &base.links),
            datasets: or(self.datasets.as_ref(), &base.datasets),
            codecs: or(self.codecs.as_ref(), &base.codecs),
            alignments: or(self.alignments.as_ref(), &base.alignments),
            schedules: or(self.schedules.as_ref(), &base.schedules),
            chunk_tokens: or(self.chunk_tokens.as_ref(), &base.chunk_tokens),
            contracts: or(self.contracts.as_ref(), &base.contracts),
            loads: or(self.loads.as_ref(), &base.loads),
        }
    }
}

/// Name of a registered system; any other does not parse.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct SystemName(String);

impl SystemName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for SystemName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The name is checked where it is read, so that the error points at it.
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = SystemName;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a system")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<SystemName, E> {
                let known: Vec<&str> = celslm_systems::registry().iter().map(|e| e.name).collect();
                if known.contains(&name) {
                    return Ok(SystemName(name.to_owned()));
                }
                let known = known.join(", ");
                Err(E::custom(format_args!(
                    "unknown system `{name}`; known: {known}"
                )))
            }
        }

        deserializer.deserialize_str(Visitor)
    }
}

/// Checks what every kind of experiment states first.
pub(super) fn validate_head(
    schema_version: Option<u32>,
    experiment: &ExperimentConfig,
    source: &ConfigSource,
) -> Result<(), ConfigError> {
    let fail = |path: &str, message: String| Err(source.error_at(path, message));
    if let Some(version) = schema_version
        && version != crate::SCHEMA_VERSION
    {
        return fail(
            "schema_version",
            format!(
                "version {version}; this build reads version {}",
                crate::SCHEMA_VERSION
            ),
        );
    }
    if !is_slug(&experiment.name) {
        return fail(
            "experiment.name",
            "use 1 to 64 letters, digits, `-`, `_` or `.`, starting with a letter or digit: it names a folder".to_owned(),
        );
    }
    // TOML integers are signed, and the resolved copy must hold every value.
    if experiment.seed > i64::MAX as u64 {
        return fail(
            "experiment.seed",
            format!("{} is outside 0 to {}", experiment.seed, i64::MAX),
        );
    }
    Ok(())
}

impl Config {
    /// Every default, under this name.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self {
            schema_version: None,
            experiment: ExperimentConfig {
                name: name.to_owned(),
                title: String::new(),
                description: String::new(),
                seed: 0,
            },
            models: ModelsConfig::default(),
            deployment: DeploymentConfig::default(),
            data_dir: None,
            edge: EdgeConfig::default(),
            cloud: CloudConfig::default(),
            generation: GenerationConfig::default(),
            workload: WorkloadSettings::default(),
            slo: SloConfig::default(),
            limits: LimitsConfig::default(),
            grid: Grid::default(),
            scenarios: Vec::new(),
            links: BTreeMap::new(),
            devices: BTreeMap::new(),
        }
    }

    /// The heading of the report.
    #[must_use]
    pub fn title(&self) -> &str {
        match self.experiment.title.as_str() {
            "" => &self.experiment.name,
            title => title,
        }
    }

    /// Every scenario in order, `main` first, each with its complete grid.
    #[must_use]
    pub fn grids(&self) -> Vec<(String, Grid)> {
        std::iter::once((MAIN_SCENARIO.to_owned(), self.grid.clone()))
            .chain(
                self.scenarios
                    .iter()
                    .map(|s| (s.name.clone(), s.grid(&self.grid))),
            )
            .map(|(name, mut grid)| {
                if grid.loads.is_empty() {
                    grid.loads.push(self.workload.arrivals.clone());
                }
                (name, grid)
            })
            .collect()
    }

    /// The codecs of all grids.
    #[must_use]
    pub fn codecs(&self) -> Vec<CodecConfig> {
        let grids = self.grids().into_iter();
        grids.flat_map(|(_, grid)| grid.codecs).collect()
    }

    /// The serving engine, if a system of any grid asks it.
    #[must_use]
    pub fn serving(&self) -> Option<&ServingConfig> {
        let asked = self.grids().iter().any(|(_, grid)| grid.asks_serving());
        self.cloud.serving.as_ref().filter(|_| asked)
    }

    /// The alignments of all grids that map through a fitted bridge, each once.
    #[must_use]
    pub fn bridged_alignments(&self) -> Vec<AlignmentConfig> {
        let mut found = Vec::new();
        for (_, grid) in self.grids() {
            for alignment in grid.alignments {
                if alignment.needs_bridge() && !found.contains(&alignment) {
                    found.push(alignment);
                }
            }
        }
        found
    }

    /// Checks every range that the types leave open.
    pub(super) fn validate(&self, source: &ConfigSource) -> Result<(), ConfigError> {
        let fail = |path: &str, message: String| Err(source.error_at(path, message));
        validate_head(self.schema_version, &self.experiment, source)?;
        let integers = [
            (
                "deployment.startup_timeout_s",
                self.deployment.startup_timeout_s,
                1,
                LONGEST_WAIT_S,
            ),
            ("deployment.edges", self.deployment.edges as u64, 1, 16),
            (
                "deployment.threads.edge",
                self.deployment.threads.edge as u64,
                0,
                1024,
            ),
            (
                "deployment.threads.cloud",
                self.deployment.threads.cloud as u64,
                0,
                1024,
            ),
            (
                "generation.max_tokens",
                self.generation.max_tokens as u64,
                1,
                65_536,
            ),
            (
                "workload.block_requests",
                self.workload.block_requests as u64,
                1,
                1 << 20,
            ),
            ("workload.warmup", self.workload.warmup as u64, 0, 1024),
            (
                "workload.request_timeout_s",
                self.workload.request_timeout_s,
                1,
                LONGEST_WAIT_S,
            ),
            ("workload.rounds", self.workload.rounds.into(), 1, 1000),
            (
                "workload.max_in_flight",
                self.workload.max_in_flight as u64,
                1,
                // The control socket carries no more.
                celslm_systems::control::MAX_OUTSTANDING as u64,
            ),
            (
                "limits.cloud_store_bytes",
                self.limits.cloud_store_bytes,
                1 << 20,
                1 << 50,
            ),
            (
                "limits.edge_cache_bytes",
                self.limits.edge_cache_bytes,
                1 << 20,
                1 << 50,
            ),
            (
                "limits.message_bytes",
                self.limits.message_bytes,
                64 << 10,
                1 << 30,
            ),
            ("limits.max_sessions", self.limits.max_sessions, 1, 4096),
            ("limits.max_queue", self.limits.max_queue, 0, 4096),
            (
                "limits.session_kv_bytes",
                self.limits.session_kv_bytes,
                1 << 20,
                1 << 50,
            ),
            ("limits.step_tokens", self.limits.step_tokens, 1, 1 << 16),
            (
                "limits.recording_bytes",
                self.limits.recording_bytes,
                1 << 20,
                1 << 50,
            ),
        ];
        for (path, value, least, most) in integers {
            if !(least..=most).contains(&value) {
                return fail(path, format!("{value} is outside {least} to {most}"));
            }
        }
        let longest = LONGEST_WAIT_S as f64;
        let Self { workload, slo, .. } = self;
        let numbers = [
            ("workload.warmup_share", workload.warmup_share, 0.0, 0.45),
            (
                "workload.cooldown_share",
                workload.cooldown_share,
                0.0,
                0.45,
            ),
            (
                "workload.send_delay_p99_ms",
                workload.send_delay_p99_ms,
                0.01,
                1e4,
            ),
            (
                "workload.overload.failed_share",
                workload.overload.failed_share,
                0.0,
                1.0,
            ),
            (
                "workload.overload.ttft_factor",
                workload.overload.ttft_factor,
                0.0,
                1e6,
            ),
            (
                "workload.overload.window_s",
                workload.overload.window_s,
                0.1,
                longest,
            ),
            ("slo.ttft_ms", slo.ttft_ms, 0.01, longest * 1e3),
            ("slo.tpot_ms", slo.tpot_ms, 0.001, longest * 1e3),
        ];
        for (path, value, least, most) in numbers {
            if !(least..=most).contains(&value) {
                return fail(path, format!("{value} is outside {least} to {most}"));
            }
        }
        if let Sampling::Nucleus { temperature, top_p } = self.generation.sampling {
            if !(temperature > 0.0 && temperature <= 10.0) {
                return fail(
                    "generation.sampling.nucleus.temperature",
                    format!(
                        "{temperature} is outside (0, 10]; for the most likely token use sampling = \"greedy\""
                    ),
                );
            }
            if !(top_p > 0.0 && top_p <= 1.0) {
                return fail(
                    "generation.sampling.nucleus.top_p",
                    format!("{top_p} is outside (0, 1]"),
                );
            }
        }
        let control = &self.deployment.congestion_control;
        if control.is_empty()
            || !control
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_')
        {
            return fail(
                "deployment.congestion_control",
                format!(
                    "`{control}` is no name of a congestion control; `sysctl net.ipv4.tcp_available_congestion_control` lists them"
                ),
            );
        }
        if self.deployment.external.is_some()
            && !matches!(
                self.deployment.backend,
                BackendChoice::Auto | BackendChoice::None
            )
        {
            return fail(
                "deployment.backend",
                "nodes started by hand use the network they are on: set backend = \"none\""
                    .to_owned(),
            );
        }
        if self.deployment.external.is_some() && self.deployment.edges != 1 {
            return fail(
                "deployment.edges",
                "nodes started by hand are one edge and one cloud".to_owned(),
            );
        }
        if self.deployment.edge_links.len() >= self.deployment.edges.max(1) {
            return fail(
                "deployment.edge_links",
                format!(
                    "{} links for the edges after the first, of which there are {}",
                    self.deployment.edge_links.len(),
                    self.deployment.edges.saturating_sub(1)
                ),
            );
        }
        if self.deployment.external.is_some() && self.cloud.compute != CloudCompute::Live {
            return fail(
                "cloud.compute",
                "a cloud that was started by hand computes for itself: use \"live\"".to_owned(),
            );
        }
        if self.models.cloud.is_empty() || self.models.edge.is_empty() {
            return fail(
                "models",
                "name both models; `celslm models ls` lists them".to_owned(),
            );
        }
        if let Some(serving) = &self.cloud.serving {
            serving.validate(source, self.deployment.external.is_some())?;
        }
        self.grid.validate(source, "grid", |_| true)?;
        for (index, (_, grid)) in self.grids().iter().enumerate() {
            let path = match index {
                0 => "grid".to_owned(),
                n => format!("scenario.{}", n - 1),
            };
            grid.check_codecs_of_maps(source, &path)?;
            if !grid.asks_serving() {
                continue;
            }
            if self.cloud.serving.is_none() {
                return fail(
                    &format!("{path}.systems"),
                    "cloud_api asks a serving engine: name it in [cloud] serving".to_owned(),
                );
            }
            if grid.contracts.contains(&Contract::Cold) {
                return fail(
                    &format!("{path}.contracts"),
                    "a serving engine's own cache cannot be emptied from here, so that cloud_api cannot be cold: leave out one of them".to_owned(),
                );
            }
        }
        let mut names = BTreeSet::from([MAIN_SCENARIO]);
        for (index, scenario) in self.scenarios.iter().enumerate() {
            let path = format!("scenario.{index}");
            if !is_slug(&scenario.name) {
                return fail(
                    &format!("{path}.name"),
                    "use 1 to 64 letters, digits, `-`, `_` or `.`, starting with a letter or digit"
                        .to_owned(),
                );
            }
            if !names.insert(&scenario.name) {
                return fail(
                    &format!("{path}.name"),
                    format!(
                        "`{}` names a scenario already; `main` is the [grid] itself",
                        scenario.name
                    ),
                );
            }
            scenario
                .grid(&self.grid)
                .validate(source, &path, |key| scenario.states(key))?;
        }
        Ok(())
    }
}

impl Scenario {
    fn states(&self, key: &str) -> bool {
        match key {
            "systems" => self.systems.is_some(),
            "links" => self.links.is_some(),
            "datasets" => self.datasets.is_some(),
            "codecs" => self.codecs.is_some(),
            "alignments" => self.alignments.is_some(),
            "schedules" => self.schedules.is_some(),
            "chunk_tokens" => self.chunk_tokens.is_some(),
            "loads" => self.loads.is_some(),
            _ => self.contracts.is_some(),
        }
    }
}

impl Grid {
    /// Refuses codecs that cannot carry the cloud model's own KV beside alignments that map at the
    /// edge. A scenario combines lists of its own with those of the `[grid]`, so that it is checked
    /// as a whole.
    fn check_codecs_of_maps(&self, source: &ConfigSource, path: &str) -> Result<(), ConfigError> {
        let mut alignments = self.alignments.iter();
        let Some(alignment) = alignments.find(|alignment| alignment.maps_at_edge()) else {
            return Ok(());
        };
        for codec in &self.codecs {
            if let Some(problem) = codec_problem(codec) {
                let name = artefacts::name(codec);
                return Err(source.error_at(
                    &format!("{path}.codecs"),
                    format!(
                        "codec {name} does not go with alignment {alignment}, which maps at the \
                         edge: {problem}; use another codec, or at = \"cloud\""
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Checks the lists for which `stated` holds; the others were checked where they are stated.
    fn validate(
        &self,
        source: &ConfigSource,
        path: &str,
        stated: impl Fn(&str) -> bool,
    ) -> Result<(), ConfigError> {
        let lists: [(&str, Distinct); 9] = [
            ("systems", distinct(&self.systems)),
            ("links", distinct(&self.links)),
            ("datasets", distinct(&self.datasets)),
            ("codecs", distinct(&self.codecs)),
            ("alignments", distinct(&self.alignments)),
            ("schedules", distinct(&self.schedules)),
            ("chunk_tokens", distinct(&self.chunk_tokens)),
            ("contracts", distinct(&self.contracts)),
            // Without a load of its own, a grid has the one of [workload].
            (
                "loads",
                distinct(&self.loads).or_else(|fault| {
                    if self.loads.is_empty() {
                        Ok(())
                    } else {
                        Err(fault)
                    }
                }),
            ),
        ];
        for (key, outcome) in lists {
            if let (true, Err((index, message))) = (stated(key), outcome) {
                let at = index.map_or_else(String::new, |i| format!(".{i}"));
                return Err(source.error_at(&format!("{path}.{key}{at}"), message));
            }
        }
        let datasets = self.datasets.iter().enumerate();
        for (index, dataset) in datasets.filter(|_| stated("datasets")) {
            if let Some(reason) = dataset.only_in_evaluations() {
                let message = format!("{reason}; use `{}` in an [evaluation]", dataset.name());
                return Err(source.error_at(&format!("{path}.datasets.{index}"), message));
            }
        }
        for (index, &tokens) in self.chunk_tokens.iter().enumerate() {
            if stated("chunk_tokens") && !(1..=65_536).contains(&tokens) {
                return Err(source.error_at(
                    &format!("{path}.chunk_tokens.{index}"),
                    format!("{tokens} is outside 1 to 65536"),
                ));
            }
            for codec in &self.codecs {
                let group = codec.build().token_group();
                if !tokens.is_multiple_of(group) {
                    return Err(source.error_at(
                        &format!("{path}.chunk_tokens.{index}"),
                        format!("{tokens} tokens are no whole number of the groups of {group} that {codec} codes together"),
                    ));
                }
            }
        }
        Ok(())
    }
}

/// The index of the entry at fault, if it is one entry, and the fault.
type Distinct = Result<(), (Option<usize>, String)>;

/// A list must hold something, and nothing twice: cells would share an id.
fn distinct<T: PartialEq>(list: &[T]) -> Distinct {
    if list.is_empty() {
        return Err((
            None,
            "the list is empty, so there is nothing to run".to_owned(),
        ));
    }
    for (index, entry) in list.iter().enumerate() {
        if list[..index].contains(entry) {
            return Err((Some(index), "the same entry is listed twice".to_owned()));
        }
    }
    Ok(())
}

/// Whether `name` can name a folder everywhere.
pub(super) fn is_slug(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{configs, parse};

    fn example() -> String {
        std::fs::read_to_string(configs().join("experiments/example.toml")).unwrap()
    }

    #[test]
    fn the_example_states_exactly_the_defaults() {
        assert_eq!(parse(&example(), &[]).unwrap(), Config::named("example"));
    }

    #[test]
    fn codecs_that_do_not_go_with_a_map_at_the_edge_are_refused_wherever_a_grid_combines_them() {
        const NAMED: &str = "[experiment]\nname = \"x\"\n";
        let grid = "grid.alignments=['identity', { depth = { at = 'edge' } }]";
        let far = "scenario=[{ name = 'far', alignments = [{ depth = { at = 'edge' } }] }]";
        for (sets, place) in [
            (
                vec![grid, "grid.codecs=['identity', 'kvtc']"],
                "grid.codecs",
            ),
            // The codecs are those of the [grid].
            (
                vec![far, "grid.codecs=['streaming-llm']"],
                "scenario.0.codecs",
            ),
        ] {
            let error = parse(NAMED, &sets).unwrap_err().to_string();
            for part in [place, "does not go with alignment depth@edge"] {
                assert!(error.contains(part), "{error}\nlacks {part}");
            }
        }
        let fine = [
            grid,
            "grid.codecs=['identity', { group_quant = { bits = 4 } }]",
        ];
        assert!(parse(NAMED, &fine).is_ok());
        let in_the_cloud = ["grid.alignments=['depth']", "grid.codecs=['kvtc']"];
        assert!(parse(NAMED, &in_the_cloud).is_ok());
        // In process nothing is at either end.
        let mapped =
            "[evaluation]\ncloud = [{ mapped = { alignment = { depth = { at = \"edge\" } } } }]";
        let source = ConfigSource::new("test.toml", &format!("{NAMED}{mapped}"), Vec::new());
        let error = source.parse_evaluation().unwrap_err().to_string();
        assert!(error.contains("no link with two ends"), "{error}");
    }

    #[test]
    fn the_example_states_every_default() {
        // Each key that the defaults serialise must be written out, not merely defaulted.
        fn missing(
            path: &str,
            defaults: &toml::Table,
            stated: &toml::Table,
            out: &mut Vec<String>,
        ) {
            for (key, value) in defaults {
                let at = format!("{path}{key}");
                match (value, stated.get(key)) {
                    (_, None) => out.push(at),
                    (toml::Value::Table(value), Some(toml::Value::Table(stated))) => {
                        missing(&format!("{at}."), value, stated, out);
                    }
                    _ => {}
                }
            }
        }
        let defaults = toml::Table::try_from(Config::named("example")).unwrap();
        let stated: toml::Table = toml::from_str(&example()).unwrap();
        let mut absent = Vec::new();
        missing("", &defaults, &stated, &mut absent);
        assert_eq!(absent, Vec::<String>::new());
    }

    #[test]
    fn optional_settings_stand_in_the_example_as_comments_that_work() {
        let mut text = String::new();
        let mut uncommented = 0;
        for line in example().lines() {
            let setting = line.strip_prefix("# ").filter(|rest| {
                rest.starts_with("[[")
                    || rest.starts_with("[links")
                    || rest.starts_with("[devices")
                    || rest.split_once(" = ").is_some_and(|(key, _)| {
                        key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
                    })
            });
            uncommented += usize::from(setting.is_some());
            text.push_str(setting.unwrap_or(line));
            text.push('\n');
        }
        assert!(uncommented >= 10, "{uncommented}");
        let config = parse(&text, &[]).unwrap();
        assert!(config.data_dir.is_some());
        assert!(config.deployment.external.is_some());
        assert!(config.deployment.pinning.packet_cpu.is_some());
        assert_eq!(config.scenarios.len(), 1);
        assert_eq!(config.links.len(), 1);
        assert_eq!(config.devices.len(), 1);
    }

    #[test]
    fn every_experiment_of_the_repository_parses_and_plans() {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(configs().join("experiments")).unwrap() {
            let path = entry.unwrap().path();
            let source = ConfigSource::read(&path, Vec::new()).unwrap();
            let stem = path.file_stem().unwrap().to_str().unwrap();
            if source.is_evaluation() {
                let file = source.parse_evaluation();
                let file = file.unwrap_or_else(|error| panic!("{error}"));
                assert_eq!(stem, file.experiment.name);
                assert!(!file.codecs().is_empty() || !file.evaluation.cloud.is_empty());
                continue;
            }
            let config = source.parse().unwrap_or_else(|error| panic!("{error}"));
            let (_, plan) = crate::fixture::planned(&config);
            assert!(!plan.blocks.is_empty());
            assert_eq!(stem, config.experiment.name);
            names.push(config.experiment.name);
        }
        for name in ["example", "quick", "smoke"] {
            assert!(names.iter().any(|n| n == name), "{name}");
        }
    }

    #[test]
    fn the_main_job_asks_what_its_documents_answer_and_what_they_do_not() {
        let path = configs().join("experiments/quick.toml");
        let config = ConfigSource::read(&path, Vec::new())
            .unwrap()
            .parse()
            .unwrap();
        let (inputs, _) = crate::fixture::planned(&config);
        let questions: Vec<_> = inputs.draws[0]
            .documents
            .iter()
            .flat_map(|document| &document.questions)
            .collect();
        let answerable = questions.iter().filter(|q| q.answerable).count();
        assert!(
            answerable > questions.len() / 2 && answerable < questions.len(),
            "{answerable}"
        );
    }

    #[test]
    fn a_configuration_survives_being_written() {
        let text = "[experiment]\nname = 'x'\nseed = 9\n[generation]\n\
                    sampling = { nucleus = { temperature = 0.5, top_p = 0.9 } }\n\
                    [grid]\ncodecs = ['identity', { group_quant = { bits = 4 } }]\n\
                    [[scenario]]\nname = 'warm'\ncontracts = ['warm']\n";
        let config = parse(text, &[]).unwrap();
        let written = toml::to_string_pretty(&config).unwrap();
        assert_eq!(parse(&written, &[]).unwrap(), config, "{written}");
    }

    #[test]
    fn edges_after_the_first_may_have_links_of_their_own() {
        let text = |edges| {
            format!(
                "[experiment]\nname = 'x'\n\
                 [deployment]\nedges = {edges}\nedge_links = ['a', 'b']\n"
            )
        };
        let config = parse(&text(3), &[]).unwrap();
        assert_eq!(config.deployment.edge_links, ["a", "b"]);
        let error = parse(&text(2), &[]).unwrap_err().to_string();
        assert!(
            error.contains("2 links for the edges after the first, of which there are 1"),
            "{error}"
        );
    }

    #[test]
    fn scenarios_inherit_the_lists_that_they_leave_out() {
        let text = "[experiment]\nname = 'x'\n[grid]\nlinks = ['a']\n\
                    [[scenario]]\nname = 'warm'\ncontracts = ['warm']\n";
        let grids = parse(text, &[]).unwrap().grids();
        assert_eq!(grids.len(), 2);
        let (name, grid) = &grids[1];
        assert_eq!(name, "warm");
        assert_eq!(grid.links, ["a"]);
        assert_eq!(grid.contracts, [Contract::Warm]);
        assert_eq!(grid.systems, grids[0].1.systems);
    }
}
