//! A deployment: the link, the processes at its ends (one cloud, one or more edges), and the
//! controller's connections to them. Dropping it ends all of it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use celslm_link::{
    Audit, Backend, BackendChoice, CalibrateOptions, Calibration, Counters, HostOptions, Link,
    LinkError, LinkFacts, LinkProfile, Node, NodeCommand, NodeExit, ProcessId, Verdict,
};
use celslm_systems::control::{
    CloudCommand, CloudReply, ControlClient, ControlError, EdgeCommand, EdgeReply,
    PublishedContext, RecordItem,
};
use celslm_systems::engine::NodeStats;
use celslm_systems::openai::Endpoint;
use celslm_systems::{Answer, ContextRef, Contract, Request, SystemError, SystemSpec};

use crate::clock;
use crate::config::{Config, ServingConfig};
use crate::device::{DeviceError, DeviceProfile, Subject, Throttling, throttle};
use crate::plan::{ArtefactFile, Devices};
use crate::relay::Exit;
use crate::serving;

/// Longest wait for a reply that takes no computing.
const QUICK_REPLY: Duration = Duration::from_secs(30);
/// A node may use a little more than a request's time before its reply counts as missing.
const REPLY_SLACK: Duration = Duration::from_secs(30);
/// How long an edge waits for a serving engine at a time, and how often it is sent to look.
const SERVING_PROBE: Duration = Duration::from_secs(3);
const SERVING_POLL: Duration = Duration::from_millis(250);
/// Where the relay listens: in a namespace of its own every port is free.
const RELAY_PORT: u16 = 8000;
/// How often a starting node is looked for.
const START_POLL: Duration = Duration::from_millis(50);
/// Most bytes of a node's log that an error shows.
const LOG_TAIL_BYTES: usize = 2000;

/// The connection to one edge.
pub type EdgeControl = ControlClient<EdgeCommand, EdgeReply>;
type Cloud = ControlClient<CloudCommand, CloudReply>;

/// One process of a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// The only edge.
    Edge,
    /// One of several edges, counted from 0.
    EdgeOf(usize),
    /// The cloud.
    Cloud,
    /// The serving engine that was started at the cloud's end of the link.
    Serving,
    /// What passes connections on to a serving engine elsewhere.
    Relay,
}

impl Process {
    /// Edge `index` of `edges`.
    fn edge(index: usize, edges: usize) -> Self {
        match edges {
            1 => Self::Edge,
            _ => Self::EdgeOf(index),
        }
    }

    /// Its name in files: `edge`, `edge-1`, `cloud`.
    fn file_stem(self) -> String {
        match self {
            Self::Edge => "edge".to_owned(),
            Self::EdgeOf(index) => format!("edge-{index}"),
            Self::Cloud => "cloud".to_owned(),
            Self::Serving => "serving".to_owned(),
            Self::Relay => "relay".to_owned(),
        }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Edge | Self::EdgeOf(_) | Self::Cloud => write!(f, "{} node", self.file_stem()),
            Self::Serving => f.write_str("serving engine"),
            Self::Relay => f.write_str("relay to the serving engine"),
        }
    }
}

/// Why a deployment failed. A request that fails is no such failure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeploymentError {
    /// The link cannot be built or measured.
    #[error("set up the link")]
    Link(#[from] LinkError),
    /// A node ended before or while it was needed.
    #[error("the {process} ended ({how}){log}")]
    NodeEnded {
        /// Which one.
        process: Process,
        /// Exit code or signal.
        how: String,
        /// The end of what it printed.
        log: String,
    },
    /// A node did not become ready in time.
    #[error(
        "the {process} was not ready after {seconds} s: raise deployment.startup_timeout_s{log}"
    )]
    NotReady {
        /// Which one.
        process: Process,
        /// How long it was waited for.
        seconds: u64,
        /// The end of what it printed.
        log: String,
    },
    /// A node's control socket failed.
    #[error("control the {process}")]
    Control {
        /// Which one.
        process: Process,
        /// The reason.
        #[source]
        source: ControlError,
    },
    /// A node refused a command that has nothing to do with one request.
    #[error("the {process} refused to {what}: {source}")]
    Refused {
        /// Which one.
        process: Process,
        /// The command.
        what: &'static str,
        /// The reason.
        #[source]
        source: SystemError,
    },
    /// This host cannot stand in for a device.
    #[error("stand in for a device")]
    Device(#[from] DeviceError),
    /// The nodes do not belong together.
    #[error("{0}")]
    Mismatch(String),
    /// The serving engine cannot be had.
    #[error("use the serving engine: {reason}{log}")]
    Serving {
        /// Why.
        reason: String,
        /// The end of what it printed, where it was started here.
        log: String,
    },
    /// A thread of the controller cannot be started.
    #[error("start a thread")]
    Thread(#[source] std::io::Error),
    /// A file of the deployment cannot be made.
    #[error("make the folder for control sockets and logs")]
    Folder(#[source] std::io::Error),
}

/// What a deployment is made from besides its configuration.
#[derive(Debug, Clone)]
pub struct Materials {
    /// The program that becomes link host and nodes.
    pub exe: PathBuf,
    /// The cloud model's file.
    pub cloud_model: PathBuf,
    /// The edge model's file.
    pub edge_model: PathBuf,
    /// Bridges that the cloud loads.
    pub bridges: Vec<PathBuf>,
    /// Bridges that every edge loads, to map by itself.
    pub edge_bridges: Vec<PathBuf>,
    /// The codec artefact that both nodes load.
    pub artefact: Option<ArtefactFile>,
    /// What the nodes stand in for.
    pub devices: Devices,
    /// Folder of a replayed cloud's recording.
    pub recording: PathBuf,
    /// Folder for the nodes' logs.
    pub logs: PathBuf,
    /// The links of the second edge and those after it, where they are not the cell's.
    pub edge_links: Vec<LinkProfile>,
    /// Seed of the link.
    pub link_seed: u64,
}

/// What the nodes say of themselves.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// Fingerprint of the cloud's model.
    pub cloud_fingerprint: String,
    /// Fingerprint of the edge's model.
    pub edge_fingerprint: String,
    /// BLAKE3 of the cloud's tokenizer.
    pub cloud_tokenizer: String,
    /// BLAKE3 of the edge's tokenizer.
    pub edge_tokenizer: String,
    /// Compute threads of the cloud.
    pub cloud_threads: usize,
    /// Compute threads of the edge.
    pub edge_threads: usize,
}

/// The nodes and the link between them.
#[must_use = "nodes and link are taken down when this is dropped"]
pub struct Deployment {
    edges: Vec<EdgeControl>,
    cloud: Cloud,
    cloud_addr: SocketAddr,
    edge_links: Vec<LinkProfile>,
    facts: NodeFacts,
    _exit: Option<Exit>,
    // Dropped last: the nodes are told to end before the link goes.
    stage: Stage,
}

/// Writes the profile down for the cloud node, where its recording lies.
fn replay_profile(device: &DeviceProfile, folder: &Path) -> Result<PathBuf, DeploymentError> {
    let path = folder.join(format!("{}.toml", device.name));
    let written = toml::to_string(device)
        .map_err(std::io::Error::other)
        .and_then(|text| {
            std::fs::create_dir_all(folder)?;
            std::fs::write(&path, text)
        });
    written.map_err(DeploymentError::Folder)?;
    Ok(path)
}

/// What the nodes are held down by: every edge's, and the cloud's.
fn throttles(
    config: &Config,
    materials: &Materials,
) -> Result<(Vec<Throttling>, Throttling), DeviceError> {
    let Config { deployment, .. } = config;
    let mut edges: Vec<Throttling> = Vec::new();
    for index in 0..deployment.edges {
        let cpus = share(&deployment.pinning.edge_cpus, index, deployment.edges);
        let subject = Subject {
            role: &Process::edge(index, deployment.edges).file_stem(),
            exe: &materials.exe,
            model: &materials.edge_model,
            threads: deployment.threads.edge,
            cpus: &cpus,
            host: edges.first().and_then(|first| first.facts.host),
        };
        edges.push(throttle(&materials.devices.edge, &subject)?);
    }
    let subject = Subject {
        role: "cloud",
        exe: &materials.exe,
        model: &materials.cloud_model,
        threads: deployment.threads.cloud,
        cpus: &deployment.pinning.cloud_cpus,
        host: None,
    };
    Ok((edges, throttle(&materials.devices.cloud, &subject)?))
}

/// Where the processes run, and which of them were started here.
struct Stage {
    /// `None` where the nodes were started by hand.
    link: Option<Link>,
    processes: BTreeMap<ProcessId, Process>,
    /// What holds the nodes down, edges first. Dropped after the link, which ends the nodes.
    throttles: Vec<Throttling>,
    logs: PathBuf,
    sockets: Option<tempfile::TempDir>,
}

impl Deployment {
    /// Starts link and nodes, or connects to nodes that were started by hand, and waits until
    /// both hold their models.
    ///
    /// # Errors
    /// [`DeploymentError`]; everything that was started is taken down.
    pub fn start(config: &Config, materials: &Materials) -> Result<Self, DeploymentError> {
        match &config.deployment.external {
            Some(external) => {
                let stage = Stage {
                    link: None,
                    processes: BTreeMap::new(),
                    throttles: vec![
                        Throttling::external("edge", &materials.devices.edge),
                        Throttling::external("cloud", &materials.devices.cloud),
                    ],
                    logs: materials.logs.clone(),
                    sockets: None,
                };
                let edges = std::slice::from_ref(&external.edge_control);
                Self::finish(stage, &external.cloud_control, edges, config, materials)
            }
            None => Self::spawn(config, materials),
        }
    }

    fn spawn(config: &Config, materials: &Materials) -> Result<Self, DeploymentError> {
        let deployment = &config.deployment;
        // Before anything else runs here, since this host may have to be measured.
        let (edge_throttles, cloud_throttle) = throttles(config, materials)?;
        let mut options = HostOptions::new(&materials.exe, ["link-host"]);
        options.backend = deployment.backend;
        // Loopback has no namespaces of its own whose settings could be set.
        options.congestion_control = (deployment.backend != BackendChoice::Loopback)
            .then(|| deployment.congestion_control.clone());
        options.packet_cpu = deployment.pinning.packet_cpu;
        options.spin = deployment.packet_spin;
        options.edges = deployment.edges;
        options.seed = materials.link_seed;
        let link = Link::start(&options)?;
        // Socket paths are short-lived and must be short: not in the results folder.
        let sockets = tempfile::Builder::new()
            .prefix("celslm-")
            .tempdir()
            .map_err(DeploymentError::Folder)?;
        std::fs::create_dir_all(&materials.logs).map_err(DeploymentError::Folder)?;
        let socket =
            |process: Process| sockets.path().join(format!("{}.sock", process.file_stem()));
        let cloud_control = socket(Process::Cloud);
        let message_bytes = config.limits.message_bytes.to_string();
        let threads =
            |throttle: &Throttling, setting: usize| throttle.threads.unwrap_or(setting).to_string();
        let mut cloud = vec![
            "cloud".to_owned(),
            "--model".to_owned(),
            text(&materials.cloud_model),
            "--edge-model".to_owned(),
            text(&materials.edge_model),
            "--listen".to_owned(),
            SocketAddr::new(link.addr(Node::Cloud), 0).to_string(),
            "--control".to_owned(),
            text(&cloud_control),
            "--store-bytes".to_owned(),
            config.limits.cloud_store_bytes.to_string(),
            "--message-bytes".to_owned(),
            message_bytes.clone(),
            "--threads".to_owned(),
            threads(&cloud_throttle, deployment.threads.cloud),
        ];
        cloud.extend(engine_args(config));
        for bridge in &materials.bridges {
            cloud.extend(["--bridge".to_owned(), text(bridge)]);
        }
        let artefact: Vec<String> = materials
            .artefact
            .iter()
            .flat_map(|file| ["--codec-artefact".to_owned(), text(&file.path)])
            .collect();
        cloud.extend(artefact.iter().cloned());
        if let Some(device) = &materials.devices.replay {
            let profile = replay_profile(device, &materials.recording)?;
            cloud.extend([
                "--replay".to_owned(),
                text(&materials.recording),
                "--replay-device".to_owned(),
                text(&profile),
                "--recording-bytes".to_owned(),
                config.limits.recording_bytes.to_string(),
            ]);
        }
        let mut starts = vec![(
            Process::Cloud,
            Node::Cloud,
            cloud,
            deployment.pinning.cloud_cpus.clone(),
            cloud_throttle,
        )];
        let mut edge_controls = Vec::new();
        for (index, throttle) in edge_throttles.into_iter().enumerate() {
            let process = Process::edge(index, deployment.edges);
            let control = socket(process);
            let mut args = vec![
                "edge".to_owned(),
                "--model".to_owned(),
                text(&materials.edge_model),
                "--control".to_owned(),
                text(&control),
                "--cache-bytes".to_owned(),
                config.limits.edge_cache_bytes.to_string(),
                "--message-bytes".to_owned(),
                message_bytes.clone(),
                "--threads".to_owned(),
                threads(&throttle, deployment.threads.edge),
            ];
            args.extend(engine_args(config));
            for bridge in &materials.edge_bridges {
                args.extend(["--bridge".to_owned(), text(bridge)]);
            }
            args.extend(artefact.iter().cloned());
            let cpus = share(&deployment.pinning.edge_cpus, index, deployment.edges);
            starts.push((process, Node::Edge(index), args, cpus, throttle));
            edge_controls.push(control);
        }
        let mut stage = Stage {
            link: Some(link),
            processes: BTreeMap::new(),
            throttles: Vec::new(),
            logs: materials.logs.clone(),
            sockets: Some(sockets),
        };
        for (process, node, mut args, cpus, throttle) in starts {
            args.extend(throttle.args.iter().cloned());
            let cpus = throttle.cpus.clone().unwrap_or(cpus);
            let exe = materials.exe.clone();
            if let Some(id) = stage.spawn(process, node, exe, &args, &cpus)? {
                throttle.hold(id.0)?;
            }
            stage.throttles.push(throttle);
        }
        Self::finish(stage, &cloud_control, &edge_controls, config, materials)
    }

    fn finish(
        stage: Stage,
        cloud_control: &Path,
        edge_controls: &[PathBuf],
        config: &Config,
        materials: &Materials,
    ) -> Result<Self, DeploymentError> {
        let patience = config.deployment.startup_timeout();
        let cloud: Cloud = stage.connect(Process::Cloud, cloud_control, patience)?;
        let name = |index| Process::edge(index, edge_controls.len());
        let edges = edge_controls
            .iter()
            .enumerate()
            .map(|(index, path)| stage.connect(name(index), path, patience))
            .collect::<Result<Vec<EdgeControl>, _>>()?;
        // A node listens before it loads its model, and answers when it holds it.
        let hello = cloud
            .call(&CloudCommand::Hello, patience)
            .map_err(|source| stage.control_failed(Process::Cloud, source))?;
        let CloudReply::Cloud {
            fingerprint,
            tokenizer,
            edge_fingerprint: hosted,
            codec_artefact,
            addr,
            threads,
        } = hello
        else {
            return Err(unexpected(Process::Cloud));
        };
        check_artefact(Process::Cloud, materials, codec_artefact.as_deref())?;
        let mut facts = NodeFacts {
            cloud_fingerprint: fingerprint,
            cloud_tokenizer: tokenizer,
            cloud_threads: threads,
            edge_fingerprint: String::new(),
            edge_tokenizer: String::new(),
            edge_threads: 0,
        };
        for (index, edge) in edges.iter().enumerate() {
            let hello = edge
                .call(&EdgeCommand::Hello, patience)
                .map_err(|source| stage.control_failed(name(index), source))?;
            // All edges were started with the same file and settings.
            let EdgeReply::Edge {
                fingerprint,
                tokenizer,
                codec_artefact,
                threads,
                ..
            } = hello
            else {
                return Err(unexpected(name(index)));
            };
            check_artefact(name(index), materials, codec_artefact.as_deref())?;
            facts.edge_fingerprint = fingerprint;
            facts.edge_tokenizer = tokenizer;
            facts.edge_threads = threads;
        }
        if let Some(hosted) = hosted
            && hosted != facts.edge_fingerprint
        {
            return Err(DeploymentError::Mismatch(format!(
                "the edge runs model {}, the cloud hosts {hosted} for it",
                facts.edge_fingerprint
            )));
        }
        let mut started = Self {
            edges,
            cloud,
            cloud_addr: addr,
            edge_links: materials.edge_links.clone(),
            facts,
            _exit: None,
            stage,
        };
        if let Some(serving) = config.serving() {
            started.start_serving(serving, config, materials)?;
        }
        Ok(started)
    }

    /// Starts the serving engine or the way to it, and waits until every edge finds it ready.
    fn start_serving(
        &mut self,
        serving: &ServingConfig,
        config: &Config,
        materials: &Materials,
    ) -> Result<(), DeploymentError> {
        let failed = |reason: String| DeploymentError::Serving {
            reason,
            log: String::new(),
        };
        let cloud = self.cloud_addr.ip();
        let mut via = None;
        let mut patience = QUICK_REPLY;
        if serving.command.is_some() {
            let threads = self.facts.cloud_threads;
            let line = serving::command_line(serving, &materials.cloud_model, cloud, threads);
            let (name, args) = line
                .split_first()
                .ok_or_else(|| failed("its command is empty".to_owned()))?;
            let exe = serving::program(name)
                .ok_or_else(|| failed(format!("there is no program {name}")))?;
            let cpus = &config.deployment.pinning.cloud_cpus;
            self.stage
                .spawn(Process::Serving, Node::Cloud, exe, args, cpus)?;
            patience = serving.ready_timeout();
        } else if let Some(base_url) = &serving.base_url {
            patience = serving.ready_timeout();
            let sockets = self.stage.sockets.as_ref().map(tempfile::TempDir::path);
            let apart = self
                .link_facts()
                .is_some_and(|f| f.backend != Backend::Loopback);
            if let Some(sockets) = sockets.filter(|_| apart) {
                let (host, port) = serving::host_and_port(base_url)
                    .ok_or_else(|| failed(format!("{base_url} names no host and port")))?;
                let exit = sockets.join("exit.sock");
                let opened = Exit::open(&exit, &host, port).map_err(DeploymentError::Folder)?;
                self._exit = Some(opened);
                let listen = SocketAddr::new(cloud, RELAY_PORT);
                let args = [
                    "relay",
                    "--listen",
                    &listen.to_string(),
                    "--exit",
                    &text(&exit),
                ]
                .map(str::to_owned);
                self.stage.spawn(
                    Process::Relay,
                    Node::Cloud,
                    materials.exe.clone(),
                    &args,
                    &[],
                )?;
                via = Some(listen);
            }
        }
        let endpoint = serving::endpoint(serving, cloud, via);
        let start = clock::now();
        for index in 0..self.edges() {
            while let Err(error) = self.edge_serves(index, &endpoint)? {
                // What time does not mend.
                let for_good = ["config", "unauthorised"].contains(&error.kind.as_str());
                let late = start.elapsed() >= patience;
                if for_good || late {
                    let waited = if for_good {
                        String::new()
                    } else {
                        format!(" after {} s", patience.as_secs())
                    };
                    return Err(DeploymentError::Serving {
                        reason: format!("it is not ready{waited}: {error}"),
                        log: self.stage.log_tail(Process::Serving),
                    });
                }
                std::thread::sleep(SERVING_POLL);
            }
        }
        Ok(())
    }

    /// Has an edge take the serving engine into use. The inner result says whether it is ready.
    fn edge_serves(
        &self,
        index: usize,
        endpoint: &Endpoint,
    ) -> Result<Result<(), SystemError>, DeploymentError> {
        // An engine that has ended explains more than the edge's view of it.
        if let Err(error) = self.check_alive() {
            return Err(match error {
                DeploymentError::NodeEnded {
                    process: process @ (Process::Serving | Process::Relay),
                    how,
                    log,
                } => DeploymentError::Serving {
                    reason: format!("the {process} ended ({how})"),
                    log,
                },
                other => other,
            });
        }
        let command = EdgeCommand::Serve {
            endpoint: endpoint.clone(),
            timeout_ms: SERVING_PROBE.as_millis() as u64,
        };
        match self.edge_call(index, &command, SERVING_PROBE + REPLY_SLACK)? {
            EdgeReply::Done => Ok(Ok(())),
            EdgeReply::Failed(error) => Ok(Err(error)),
            _ => Err(unexpected(self.edge_name(index))),
        }
    }

    /// How many edges there are: at least one.
    pub fn edges(&self) -> usize {
        self.edges.len()
    }

    /// The connection to an edge. Numbers from [`Deployment::edges`] on start again at 0, so
    /// that a client's or request's number chooses its edge, round-robin.
    pub fn edge(&self, index: usize) -> &EdgeControl {
        &self.edges[index % self.edges.len()]
    }

    /// What the nodes say of themselves.
    pub fn facts(&self) -> &NodeFacts {
        &self.facts
    }

    /// How the nodes stand in for their devices.
    pub fn throttles(&self) -> impl Iterator<Item = &Throttling> {
        self.stage.throttles.iter()
    }

    /// What the link is made of; `None` where the nodes were started by hand.
    pub fn link_facts(&self) -> Option<&LinkFacts> {
        self.stage.link.as_ref().map(Link::facts)
    }

    /// Gives the leg of every edge the link's profile or, where the edge has a link of its own,
    /// that one, each with random streams of its own, and every edge a fresh connection over it,
    /// so that no congestion window of another link is carried over.
    ///
    /// # Errors
    /// [`DeploymentError`].
    pub fn set_link(&mut self, profile: &LinkProfile, seed: u64) -> Result<(), DeploymentError> {
        if let Some(link) = &self.stage.link {
            for leg in 0..link.legs().len() {
                let seed = seed.wrapping_add((leg as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                let own = leg.checked_sub(1).and_then(|at| self.edge_links.get(at));
                link.set_profile_with_seed(leg, own.unwrap_or(profile), seed)?;
            }
        }
        let connect = EdgeCommand::Connect {
            addr: self.cloud_addr,
        };
        for edge in 0..self.edges() {
            self.edge_done(edge, "connect to the cloud", &connect, QUICK_REPLY)?;
        }
        Ok(())
    }

    /// Measures every leg of the link and returns the first that is degraded, or else the first;
    /// `None` where the link is not ours to measure.
    ///
    /// # Errors
    /// [`DeploymentError::Link`].
    pub fn calibrate(&self) -> Result<Option<Calibration>, DeploymentError> {
        let Some(link) = &self.stage.link else {
            return Ok(None);
        };
        let options = CalibrateOptions::default();
        let mut first = None;
        for leg in 0..link.legs().len() {
            let calibration = link.calibrate(leg, &options)?;
            // A single stall of the machine spoils a percentile; a link that is off stays off.
            let calibration = match calibration.verdict {
                Verdict::Degraded => link.calibrate(leg, &options)?,
                _ => calibration,
            };
            if calibration.verdict == Verdict::Degraded {
                return Ok(Some(calibration));
            }
            first.get_or_insert(calibration);
        }
        Ok(first)
    }

    /// How well the emulator kept its times since the profile was set or this was last asked, where
    /// it emulates: of each figure the worst of any leg, and the sums of what is counted.
    ///
    /// # Errors
    /// [`DeploymentError::Link`].
    pub fn audit(&self) -> Result<Option<Audit>, DeploymentError> {
        self.over_legs(Link::audit, Audit::with)
    }

    /// What passed over all legs of the link so far, if that can be counted.
    ///
    /// # Errors
    /// [`DeploymentError::Link`].
    pub fn counters(&self) -> Result<Option<Counters>, DeploymentError> {
        self.over_legs(Link::counters, Counters::with)
    }

    /// What each leg states, taken together.
    fn over_legs<T>(
        &self,
        ask: impl Fn(&Link, usize) -> Result<Option<T>, LinkError>,
        with: impl Fn(T, T) -> T,
    ) -> Result<Option<T>, DeploymentError> {
        let Some(link) = &self.stage.link else {
            return Ok(None);
        };
        let mut all = None;
        for leg in 0..link.legs().len() {
            let own = ask(link, leg)?;
            all = match (all, own) {
                (Some(all), Some(own)) => Some(with(all, own)),
                (all, own) => all.or(own),
            };
        }
        Ok(all)
    }

    /// Registers a shared context at the cloud, outside the measured path.
    ///
    /// # Errors
    /// [`DeploymentError`].
    pub fn publish(&mut self, system: &str) -> Result<PublishedContext, DeploymentError> {
        let command = CloudCommand::Publish {
            system: system.to_owned(),
        };
        match self.cloud_call(&command, QUICK_REPLY)? {
            CloudReply::Published(context) => Ok(context),
            CloudReply::Failed(source) => Err(DeploymentError::Refused {
                process: Process::Cloud,
                what: "publish a context",
                source,
            }),
            _ => Err(unexpected(Process::Cloud)),
        }
    }

    /// Has a replayed cloud's live models record something; gives the text of an answer.
    ///
    /// # Errors
    /// [`DeploymentError`].
    pub fn record(
        &mut self,
        item: &RecordItem,
        timeout: Duration,
    ) -> Result<Option<String>, DeploymentError> {
        let command = CloudCommand::Record { item: item.clone() };
        match self.cloud_call(&command, timeout)? {
            CloudReply::Recorded { text } => Ok(text),
            CloudReply::Failed(source) => Err(DeploymentError::Refused {
                process: Process::Cloud,
                what: "record its answers",
                source,
            }),
            _ => Err(unexpected(Process::Cloud)),
        }
    }

    /// Brings the caches of the cloud and of one edge into the state that a contract names,
    /// unmeasured.
    ///
    /// # Errors
    /// [`DeploymentError`].
    pub fn prepare(
        &mut self,
        edge: usize,
        spec: &SystemSpec,
        contract: Contract,
        context: &ContextRef,
        timeout: Duration,
    ) -> Result<(), DeploymentError> {
        let command = CloudCommand::Prepare {
            spec: spec.clone(),
            contract,
            context_id: context.context_id.clone(),
        };
        match self.cloud_call(&command, timeout + REPLY_SLACK)? {
            CloudReply::Done => {}
            CloudReply::Failed(source) => {
                return Err(DeploymentError::Refused {
                    process: Process::Cloud,
                    what: "prepare its store",
                    source,
                });
            }
            _ => return Err(unexpected(Process::Cloud)),
        }
        let command = EdgeCommand::Prepare {
            spec: spec.clone(),
            contract,
            context: context.clone(),
            timeout_ms: timeout.as_millis() as u64,
        };
        self.edge_done(edge, "prepare its cache", &command, timeout + REPLY_SLACK)
    }

    /// Has an edge answer a request. The inner result is the request's own outcome.
    ///
    /// # Errors
    /// [`DeploymentError`] when the edge cannot be reached.
    pub fn answer(
        &mut self,
        edge: usize,
        spec: &SystemSpec,
        request: &Request,
    ) -> Result<Result<Answer, SystemError>, DeploymentError> {
        let timeout = Duration::from_millis(request.timeout_ms) + REPLY_SLACK;
        let command = EdgeCommand::Answer {
            spec: spec.clone(),
            request: request.clone(),
        };
        match self.edge_call(edge, &command, timeout)? {
            EdgeReply::Answered(answer) => Ok(Ok(*answer)),
            EdgeReply::Failed(error) => Ok(Err(error)),
            _ => Err(unexpected(self.edge_name(edge))),
        }
    }

    /// What the edges, taken together, and the cloud say of their work and memory.
    ///
    /// # Errors
    /// [`DeploymentError`] when a node cannot be reached.
    pub fn stats(&self, reset: bool) -> Result<(NodeStats, NodeStats), DeploymentError> {
        let mut edges = NodeStats::default();
        for edge in 0..self.edges() {
            let EdgeReply::Stats(stats) =
                self.edge_call(edge, &EdgeCommand::Stats { reset }, QUICK_REPLY)?
            else {
                return Err(unexpected(self.edge_name(edge)));
            };
            edges.engines.extend(stats.engines);
            edges.cached_kv_bytes += stats.cached_kv_bytes;
            edges.rss_bytes += stats.rss_bytes;
            edges.peak_rss_bytes += stats.peak_rss_bytes;
        }
        match self.cloud_call(&CloudCommand::Stats { reset }, QUICK_REPLY)? {
            CloudReply::Stats(cloud) => Ok((edges, cloud)),
            _ => Err(unexpected(Process::Cloud)),
        }
    }

    /// What it means that the connection to an edge broke.
    pub fn edge_failed(&self, edge: usize, source: ControlError) -> DeploymentError {
        self.stage.control_failed(self.edge_name(edge), source)
    }

    /// Fails if a node has ended.
    ///
    /// # Errors
    /// [`DeploymentError::NodeEnded`].
    pub fn check_alive(&self) -> Result<(), DeploymentError> {
        self.stage.check_alive()
    }

    fn edge_name(&self, index: usize) -> Process {
        Process::edge(index % self.edges.len(), self.edges.len())
    }

    fn edge_done(
        &self,
        edge: usize,
        what: &'static str,
        command: &EdgeCommand,
        timeout: Duration,
    ) -> Result<(), DeploymentError> {
        match self.edge_call(edge, command, timeout)? {
            EdgeReply::Done => Ok(()),
            EdgeReply::Failed(source) => {
                // A dead cloud explains more than the edge's view of it.
                self.check_alive()?;
                Err(DeploymentError::Refused {
                    process: self.edge_name(edge),
                    what,
                    source,
                })
            }
            _ => Err(unexpected(self.edge_name(edge))),
        }
    }

    fn edge_call(
        &self,
        edge: usize,
        command: &EdgeCommand,
        timeout: Duration,
    ) -> Result<EdgeReply, DeploymentError> {
        self.edge(edge)
            .call(command, timeout)
            .map_err(|source| self.stage.control_failed(self.edge_name(edge), source))
    }

    fn cloud_call(
        &self,
        command: &CloudCommand,
        timeout: Duration,
    ) -> Result<CloudReply, DeploymentError> {
        self.cloud
            .call(command, timeout)
            .map_err(|source| self.stage.control_failed(Process::Cloud, source))
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        // In good order first; the link ends whatever is left.
        if self.stage.link.is_some() {
            for edge in &self.edges {
                let _ = edge.call(&EdgeCommand::Shutdown, Duration::from_millis(500));
            }
            let _ = self
                .cloud
                .call(&CloudCommand::Shutdown, Duration::from_millis(500));
        }
    }
}

impl Stage {
    /// Starts a program at one end of the link, with a log of its own.
    fn spawn(
        &mut self,
        process: Process,
        node: Node,
        exe: PathBuf,
        args: &[String],
        cpus: &[usize],
    ) -> Result<Option<ProcessId>, DeploymentError> {
        let command = NodeCommand {
            exe,
            args: args.to_vec(),
            env: Vec::new(),
            cpus: (!cpus.is_empty()).then(|| cpus.to_vec()),
            log: Some(self.log_path(process)),
        };
        // Without a link there is nowhere to start anything.
        let Some(link) = &self.link else {
            return Ok(None);
        };
        let id = link.spawn(node, &command)?;
        self.processes.insert(id, process);
        Ok(Some(id))
    }

    /// Connects to the control socket of a process that is starting.
    fn connect<C: serde::Serialize, R: serde::de::DeserializeOwned + Send + 'static>(
        &self,
        process: Process,
        path: &Path,
        timeout: Duration,
    ) -> Result<ControlClient<C, R>, DeploymentError> {
        let start = clock::now();
        loop {
            let source = match ControlClient::connect(path) {
                Ok(client) => return Ok(client),
                Err(source) => source,
            };
            self.check_alive()?;
            if self.link.is_none() {
                return Err(DeploymentError::Control { process, source });
            }
            if start.elapsed() >= timeout {
                return Err(DeploymentError::NotReady {
                    process,
                    seconds: timeout.as_secs(),
                    log: self.log_tail(process),
                });
            }
            std::thread::sleep(START_POLL);
        }
    }

    /// Fails if a process that was started here has ended.
    fn check_alive(&self) -> Result<(), DeploymentError> {
        let exits = self.link.as_ref().map(Link::exits).transpose()?;
        match exits.unwrap_or_default().first() {
            Some(exit) => Err(self.ended(exit)),
            None => Ok(()),
        }
    }

    fn ended(&self, exit: &NodeExit) -> DeploymentError {
        let how = match (exit.code, exit.signal) {
            (Some(code), _) => format!("code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "in an unknown way".to_owned(),
        };
        let started = self.processes.get(&exit.process).copied();
        let process = started.unwrap_or(match exit.node {
            Node::Cloud => Process::Cloud,
            _ => Process::Edge,
        });
        DeploymentError::NodeEnded {
            process,
            how,
            log: self.log_tail(process),
        }
    }

    /// A closed socket means a node that ended; the link host says how, once it has noticed.
    fn control_failed(&self, process: Process, source: ControlError) -> DeploymentError {
        let give_up = clock::now() + Duration::from_secs(1);
        while self.link.is_some() && clock::now() < give_up {
            if let Err(error) = self.check_alive() {
                return error;
            }
            std::thread::sleep(START_POLL);
        }
        DeploymentError::Control { process, source }
    }

    fn log_path(&self, process: Process) -> PathBuf {
        self.logs.join(format!("{}.log", process.file_stem()))
    }

    fn log_tail(&self, process: Process) -> String {
        let path = self.log_path(process);
        let bytes = std::fs::read(&path).unwrap_or_default();
        let tail = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_TAIL_BYTES)..]);
        match tail.trim() {
            "" => String::new(),
            tail => format!("; the end of {}:\n{tail}", path.display()),
        }
    }
}

/// The CPUs of edge `index` of `edges`: every `edges`-th of the list, or one of it where there
/// are fewer CPUs than edges.
fn share(cpus: &[usize], index: usize, edges: usize) -> Vec<usize> {
    match cpus.len() {
        0 => Vec::new(),
        n if n < edges => vec![cpus[index % n]],
        _ => cpus.iter().copied().skip(index).step_by(edges).collect(),
    }
}

/// The bounds of a node's engines, as its arguments.
fn engine_args(config: &Config) -> impl Iterator<Item = String> {
    let limits = &config.limits;
    [
        ("--max-sessions", limits.max_sessions),
        ("--max-queue", limits.max_queue),
        ("--session-kv-bytes", limits.session_kv_bytes),
        ("--step-tokens", limits.step_tokens),
    ]
    .into_iter()
    .flat_map(|(name, value)| [name.to_owned(), value.to_string()])
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A node that holds another artefact than the plan's codecs name would refuse every fetch.
fn check_artefact(
    process: Process,
    materials: &Materials,
    held: Option<&str>,
) -> Result<(), DeploymentError> {
    let Some(file) = &materials.artefact else {
        return Ok(());
    };
    let wanted = file.artefact.id().to_string();
    match held {
        Some(held) if held == wanted => Ok(()),
        held => Err(DeploymentError::Mismatch(format!(
            "the plan's codecs use the codec artefact {wanted} ({}), the {process} holds {}",
            file.path.display(),
            held.unwrap_or("none: start it with --codec-artefact FILE")
        ))),
    }
}

fn unexpected(process: Process) -> DeploymentError {
    DeploymentError::Mismatch(format!(
        "the {process} gave a reply that does not belong to the command; is it the same version?"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_share_the_cpus() {
        assert_eq!(share(&[], 1, 3), Vec::<usize>::new());
        assert_eq!(share(&[4, 5, 6], 0, 1), [4, 5, 6]);
        assert_eq!(share(&[4, 5, 6], 0, 2), [4, 6]);
        assert_eq!(share(&[4, 5, 6], 1, 2), [5]);
        // Fewer CPUs than edges: the list begins again.
        let few: Vec<_> = (0..4).flat_map(|i| share(&[7, 9], i, 4)).collect();
        assert_eq!(few, [7, 9, 7, 9]);
    }
}
