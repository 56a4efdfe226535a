//! A deployment: the link, the two node processes at its ends, and the controller's connections
//! to them. Dropping it ends all of it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use celslm_link::{
    Audit, CalibrateOptions, Calibration, Counters, HostOptions, Link, LinkError, LinkFacts,
    LinkProfile, Node, NodeCommand, NodeExit, Verdict,
};
use celslm_systems::control::{
    CloudCommand, CloudReply, ControlClient, ControlError, EdgeCommand, EdgeReply, PublishedContext,
};
use celslm_systems::{Answer, ContextRef, Contract, Request, SystemError, SystemSpec};

use crate::clock;
use crate::config::Config;

/// Longest wait for a reply that takes no computing.
const QUICK_REPLY: Duration = Duration::from_secs(30);
/// A node may use a little more than a request's time before its reply counts as missing.
const REPLY_SLACK: Duration = Duration::from_secs(30);
/// How often a starting node is looked for.
const START_POLL: Duration = Duration::from_millis(50);
/// Most bytes of a node's log that an error shows.
const LOG_TAIL_BYTES: usize = 2000;

type Edge = ControlClient<EdgeCommand, EdgeReply>;
type Cloud = ControlClient<CloudCommand, CloudReply>;

/// Why a deployment failed. A request that fails is no such failure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeploymentError {
    /// The link cannot be built or measured.
    #[error("set up the link")]
    Link(#[from] LinkError),
    /// A node ended before or while it was needed.
    #[error("the {node} node ended ({how}){log}")]
    NodeEnded {
        /// Which one.
        node: Node,
        /// Exit code or signal.
        how: String,
        /// The end of what it printed.
        log: String,
    },
    /// A node did not become ready in time.
    #[error(
        "the {node} node was not ready after {seconds} s: raise deployment.startup_timeout_s{log}"
    )]
    NotReady {
        /// Which one.
        node: Node,
        /// How long it was waited for.
        seconds: u64,
        /// The end of what it printed.
        log: String,
    },
    /// A node's control socket failed.
    #[error("control the {node} node")]
    Control {
        /// Which one.
        node: Node,
        /// The reason.
        #[source]
        source: ControlError,
    },
    /// A node refused a command that has nothing to do with one request.
    #[error("the {node} node refused to {what}: {source}")]
    Refused {
        /// Which one.
        node: Node,
        /// The command.
        what: &'static str,
        /// The reason.
        #[source]
        source: SystemError,
    },
    /// The nodes do not belong together.
    #[error("{0}")]
    Mismatch(String),
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
    /// Folder for the nodes' logs.
    pub logs: PathBuf,
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

/// Two nodes and the link between them.
#[must_use = "nodes and link are taken down when this is dropped"]
pub struct Deployment {
    edge: Edge,
    cloud: Cloud,
    cloud_addr: SocketAddr,
    facts: NodeFacts,
    logs: PathBuf,
    // Dropped last: the nodes are told to end before the link goes.
    link: Option<Link>,
    _sockets: Option<tempfile::TempDir>,
}

/// What was spawned here.
struct Spawned {
    link: Link,
    sockets: tempfile::TempDir,
}

impl Deployment {
    /// Starts link and nodes, or connects to nodes that were started by hand, and waits until
    /// both hold their models.
    ///
    /// # Errors
    /// [`DeploymentError`]; everything that was started is taken down.
    pub fn start(config: &Config, materials: &Materials) -> Result<Self, DeploymentError> {
        match &config.deployment.external {
            Some(external) => Self::finish(
                None,
                &external.cloud_control,
                &external.edge_control,
                config,
                materials,
            ),
            None => Self::spawn(config, materials),
        }
    }

    fn spawn(config: &Config, materials: &Materials) -> Result<Self, DeploymentError> {
        let deployment = &config.deployment;
        let mut options = HostOptions::new(&materials.exe, ["link-host"]);
        options.backend = deployment.backend;
        options.congestion_control = Some(deployment.congestion_control.clone());
        options.packet_cpu = deployment.pinning.packet_cpu;
        options.seed = materials.link_seed;
        let link = Link::start(&options)?;
        // Socket paths are short-lived and must be short: not in the results folder.
        let sockets = tempfile::Builder::new()
            .prefix("celslm-")
            .tempdir()
            .map_err(DeploymentError::Folder)?;
        std::fs::create_dir_all(&materials.logs).map_err(DeploymentError::Folder)?;
        let (edge_control, cloud_control) = (
            sockets.path().join("edge.sock"),
            sockets.path().join("cloud.sock"),
        );
        let message_bytes = config.limits.message_bytes.to_string();
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
            deployment.threads.cloud.to_string(),
        ];
        for bridge in &materials.bridges {
            cloud.extend(["--bridge".to_owned(), text(bridge)]);
        }
        let edge = vec![
            "edge".to_owned(),
            "--model".to_owned(),
            text(&materials.edge_model),
            "--control".to_owned(),
            text(&edge_control),
            "--cache-bytes".to_owned(),
            config.limits.edge_cache_bytes.to_string(),
            "--message-bytes".to_owned(),
            message_bytes,
            "--threads".to_owned(),
            deployment.threads.edge.to_string(),
        ];
        for (node, args, cpus) in [
            (Node::Cloud, cloud, &deployment.pinning.cloud_cpus),
            (Node::Edge, edge, &deployment.pinning.edge_cpus),
        ] {
            let command = NodeCommand {
                exe: materials.exe.clone(),
                args,
                env: Vec::new(),
                cpus: (!cpus.is_empty()).then(|| cpus.clone()),
                log: Some(log_path(&materials.logs, node)),
            };
            link.spawn(node, &command)?;
        }
        let spawned = Spawned { link, sockets };
        Self::finish(
            Some(spawned),
            &cloud_control,
            &edge_control,
            config,
            materials,
        )
    }

    fn finish(
        spawned: Option<Spawned>,
        cloud_control: &Path,
        edge_control: &Path,
        config: &Config,
        materials: &Materials,
    ) -> Result<Self, DeploymentError> {
        let (link, sockets) = spawned
            .map(|Spawned { link, sockets }| (link, sockets))
            .unzip();
        let patience = config.deployment.startup_timeout();
        let starting = Starting {
            link: link.as_ref(),
            logs: &materials.logs,
            timeout: patience,
        };
        let cloud: Cloud = starting.connect(Node::Cloud, cloud_control)?;
        let edge: Edge = starting.connect(Node::Edge, edge_control)?;
        // A node listens before it loads its model, and answers when it holds it.
        let hello = cloud
            .call(&CloudCommand::Hello, patience)
            .map_err(|source| starting.failed(Node::Cloud, source))?;
        let CloudReply::Cloud {
            fingerprint,
            tokenizer,
            edge_fingerprint: hosted,
            addr,
            threads,
        } = hello
        else {
            return Err(unexpected(Node::Cloud));
        };
        let hello = edge
            .call(&EdgeCommand::Hello, patience)
            .map_err(|source| starting.failed(Node::Edge, source))?;
        let EdgeReply::Edge {
            fingerprint: edge_fingerprint,
            tokenizer: edge_tokenizer,
            threads: edge_threads,
            ..
        } = hello
        else {
            return Err(unexpected(Node::Edge));
        };
        if hosted
            .as_ref()
            .is_some_and(|hosted| *hosted != edge_fingerprint)
        {
            return Err(DeploymentError::Mismatch(format!(
                "the edge runs model {edge_fingerprint}, the cloud hosts {} for it",
                hosted.unwrap_or_default()
            )));
        }
        Ok(Self {
            edge,
            cloud,
            cloud_addr: addr,
            facts: NodeFacts {
                cloud_fingerprint: fingerprint,
                cloud_tokenizer: tokenizer,
                edge_tokenizer,
                edge_fingerprint,
                cloud_threads: threads,
                edge_threads,
            },
            logs: materials.logs.clone(),
            link,
            _sockets: sockets,
        })
    }

    /// What the nodes say of themselves.
    pub fn facts(&self) -> &NodeFacts {
        &self.facts
    }

    /// What the link is made of; `None` where the nodes were started by hand.
    pub fn link_facts(&self) -> Option<&LinkFacts> {
        self.link.as_ref().map(Link::facts)
    }

    /// Gives the link a profile and the edge a fresh connection over it, so that no congestion
    /// window of another link is carried over.
    ///
    /// # Errors
    /// [`DeploymentError`].
    pub fn set_link(&mut self, profile: &LinkProfile, seed: u64) -> Result<(), DeploymentError> {
        if let Some(link) = &self.link {
            link.set_profile_with_seed(profile, seed)?;
        }
        let addr = self.cloud_addr;
        self.edge_done(
            "connect to the cloud",
            &EdgeCommand::Connect { addr },
            QUICK_REPLY,
        )
    }

    /// Measures the link; `None` where it is not ours to measure.
    ///
    /// # Errors
    /// [`DeploymentError::Link`].
    pub fn calibrate(&self) -> Result<Option<Calibration>, DeploymentError> {
        let Some(link) = &self.link else {
            return Ok(None);
        };
        let options = CalibrateOptions::default();
        let calibration = link.calibrate(&options)?;
        // A single stall of the machine spoils a percentile; a link that is off stays off.
        Ok(Some(match calibration.verdict {
            Verdict::Degraded => link.calibrate(&options)?,
            _ => calibration,
        }))
    }

    /// How well the emulator kept its times since the profile was set, where it emulates.
    ///
    /// # Errors
    /// [`DeploymentError::Link`].
    pub fn audit(&self) -> Result<Option<Audit>, DeploymentError> {
        match &self.link {
            Some(link) => Ok(link.audit()?),
            None => Ok(None),
        }
    }

    /// What passed over the link so far, if that can be counted.
    ///
    /// # Errors
    /// [`DeploymentError::Link`].
    pub fn counters(&self) -> Result<Option<Counters>, DeploymentError> {
        match &self.link {
            Some(link) => Ok(link.counters()?),
            None => Ok(None),
        }
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
                node: Node::Cloud,
                what: "publish a context",
                source,
            }),
            _ => Err(unexpected(Node::Cloud)),
        }
    }

    /// Brings both nodes' caches into the state that a contract names, unmeasured.
    ///
    /// # Errors
    /// [`DeploymentError`].
    pub fn prepare(
        &mut self,
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
                    node: Node::Cloud,
                    what: "prepare its store",
                    source,
                });
            }
            _ => return Err(unexpected(Node::Cloud)),
        }
        let command = EdgeCommand::Prepare {
            spec: spec.clone(),
            contract,
            context: context.clone(),
            timeout_ms: timeout.as_millis() as u64,
        };
        self.edge_done("prepare its cache", &command, timeout + REPLY_SLACK)
    }

    /// Has the edge answer a request. The inner result is the request's own outcome.
    ///
    /// # Errors
    /// [`DeploymentError`] when the edge cannot be reached.
    pub fn answer(
        &mut self,
        spec: &SystemSpec,
        request: &Request,
    ) -> Result<Result<Answer, SystemError>, DeploymentError> {
        let timeout = Duration::from_millis(request.timeout_ms) + REPLY_SLACK;
        let command = EdgeCommand::Answer {
            spec: spec.clone(),
            request: request.clone(),
        };
        match self.edge_call(&command, timeout)? {
            EdgeReply::Answered(answer) => Ok(Ok(*answer)),
            EdgeReply::Failed(error) => Ok(Err(error)),
            _ => Err(unexpected(Node::Edge)),
        }
    }

    /// Fails if a node has ended.
    ///
    /// # Errors
    /// [`DeploymentError::NodeEnded`].
    pub fn check_alive(&self) -> Result<(), DeploymentError> {
        check_alive(self.link.as_ref(), &self.logs)
    }

    fn edge_done(
        &mut self,
        what: &'static str,
        command: &EdgeCommand,
        timeout: Duration,
    ) -> Result<(), DeploymentError> {
        match self.edge_call(command, timeout)? {
            EdgeReply::Done => Ok(()),
            EdgeReply::Failed(source) => {
                // A dead cloud explains more than the edge's view of it.
                self.check_alive()?;
                Err(DeploymentError::Refused {
                    node: Node::Edge,
                    what,
                    source,
                })
            }
            _ => Err(unexpected(Node::Edge)),
        }
    }

    fn edge_call(
        &mut self,
        command: &EdgeCommand,
        timeout: Duration,
    ) -> Result<EdgeReply, DeploymentError> {
        self.edge
            .call(command, timeout)
            .map_err(|source| self.control_failed(Node::Edge, source))
    }

    fn cloud_call(
        &mut self,
        command: &CloudCommand,
        timeout: Duration,
    ) -> Result<CloudReply, DeploymentError> {
        self.cloud
            .call(command, timeout)
            .map_err(|source| self.control_failed(Node::Cloud, source))
    }

    fn control_failed(&self, node: Node, source: ControlError) -> DeploymentError {
        control_failed(self.link.as_ref(), &self.logs, node, source)
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        // In good order first; the link ends whatever is left.
        if self.link.is_some() {
            let _ = self
                .edge
                .call(&EdgeCommand::Shutdown, Duration::from_millis(500));
            let _ = self
                .cloud
                .call(&CloudCommand::Shutdown, Duration::from_millis(500));
        }
    }
}

/// Nodes that are starting.
struct Starting<'a> {
    link: Option<&'a Link>,
    logs: &'a Path,
    timeout: Duration,
}

impl Starting<'_> {
    fn failed(&self, node: Node, source: ControlError) -> DeploymentError {
        control_failed(self.link, self.logs, node, source)
    }

    fn connect<C: serde::Serialize, R: serde::de::DeserializeOwned + Send + 'static>(
        &self,
        node: Node,
        path: &Path,
    ) -> Result<ControlClient<C, R>, DeploymentError> {
        let start = clock::now();
        loop {
            let error = match ControlClient::connect(path) {
                Ok(client) => return Ok(client),
                Err(error) => error,
            };
            check_alive(self.link, self.logs)?;
            if self.link.is_none() {
                return Err(DeploymentError::Control {
                    node,
                    source: error,
                });
            }
            if start.elapsed() >= self.timeout {
                return Err(DeploymentError::NotReady {
                    node,
                    seconds: self.timeout.as_secs(),
                    log: log_tail(self.logs, node),
                });
            }
            std::thread::sleep(START_POLL);
        }
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn log_path(logs: &Path, node: Node) -> PathBuf {
    logs.join(format!("{node}.log"))
}

fn check_alive(link: Option<&Link>, logs: &Path) -> Result<(), DeploymentError> {
    let exits = link.map(Link::exits).transpose()?.unwrap_or_default();
    match exits.first() {
        Some(exit) => Err(node_ended(exit, logs)),
        None => Ok(()),
    }
}

/// A closed socket means a node that ended; the link host says how, once it has noticed.
fn control_failed(
    link: Option<&Link>,
    logs: &Path,
    node: Node,
    source: ControlError,
) -> DeploymentError {
    let give_up = clock::now() + Duration::from_secs(1);
    while link.is_some() && clock::now() < give_up {
        if let Err(error) = check_alive(link, logs) {
            return error;
        }
        std::thread::sleep(START_POLL);
    }
    DeploymentError::Control { node, source }
}

fn node_ended(exit: &NodeExit, logs: &Path) -> DeploymentError {
    let how = match (exit.code, exit.signal) {
        (Some(code), _) => format!("code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "in an unknown way".to_owned(),
    };
    DeploymentError::NodeEnded {
        node: exit.node,
        how,
        log: log_tail(logs, exit.node),
    }
}

fn log_tail(logs: &Path, node: Node) -> String {
    let path = log_path(logs, node);
    let bytes = std::fs::read(&path).unwrap_or_default();
    let tail = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_TAIL_BYTES)..]);
    match tail.trim() {
        "" => String::new(),
        tail => format!("; the end of {}:\n{tail}", path.display()),
    }
}

fn unexpected(node: Node) -> DeploymentError {
    DeploymentError::Mismatch(format!(
        "the {node} node gave a reply that does not belong to the command; is it the same version?"
    ))
}
