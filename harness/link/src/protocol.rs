//! What the controller and the link host say to each other: one JSON value a line, one answer
//! to each request.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::calibration::{CalibrateOptions, Calibration};
use crate::counters::{Audit, Counters};
use crate::error::Fault;
use crate::facts::{BackendChoice, DeviceChoice, LinkFacts};
use crate::node::{Leg, Node, NodeCommand, NodeExit, NodeSignal, ProcessId};
use crate::probe::Capabilities;
use crate::profile::LinkProfile;

/// The longest line that either side accepts.
pub(crate) const MAX_LINE_BYTES: u64 = 4 << 20;

/// Where a node's namespaces can be opened, while the link host lives.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) user: Option<PathBuf>,
    pub(crate) network: Option<PathBuf>,
}

/// Most edges of a link.
pub(crate) const MAX_EDGES: usize = 64;

/// What the link host is told to build.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HostConfig {
    pub(crate) backend: BackendChoice,
    pub(crate) congestion_control: Option<String>,
    pub(crate) tcp_slow_start_after_idle: Option<bool>,
    pub(crate) tcp_buffer_max_bytes: Option<u64>,
    pub(crate) packet_cpu: Option<usize>,
    pub(crate) spin: bool,
    pub(crate) devices: DeviceChoice,
    pub(crate) edges: usize,
    pub(crate) neighbours: Vec<(usize, usize)>,
    pub(crate) seed: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// Says what this machine can do; the host ends afterwards.
    Probe,
    /// Builds the link. The first request of every other conversation.
    Start(HostConfig),
    SetProfile {
        leg: usize,
        profile: Box<LinkProfile>,
        seed: u64,
    },
    Counters {
        leg: usize,
    },
    Audit {
        leg: usize,
    },
    Calibrate {
        leg: usize,
        options: CalibrateOptions,
    },
    Spawn {
        node: Node,
        command: NodeCommand,
    },
    Signal {
        process: ProcessId,
        signal: NodeSignal,
    },
    Exits,
    /// Says where a node's namespaces are.
    Place {
        node: Node,
    },
    Shutdown,
}

impl Request {
    /// The request's name in messages.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::Start(_) => "start",
            Self::SetProfile { .. } => "set profile",
            Self::Counters { .. } => "counters",
            Self::Audit { .. } => "audit",
            Self::Calibrate { .. } => "calibrate",
            Self::Spawn { .. } => "spawn",
            Self::Signal { .. } => "signal",
            Self::Exits => "exits",
            Self::Place { .. } => "place",
            Self::Shutdown => "shutdown",
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Response {
    Capabilities(Capabilities),
    Started(Box<LinkFacts>),
    Done,
    Counters(Option<Counters>),
    Audit(Option<Audit>),
    Calibration(Box<Calibration>),
    Spawned(ProcessId),
    Exits(Vec<NodeExit>),
    Place(Place),
    Fault(Fault),
}

impl HostConfig {
    /// The legs, those to the cloud first.
    ///
    /// # Errors
    /// What is wrong with the edges asked for.
    pub(crate) fn legs(&self) -> Result<Vec<Leg>, String> {
        if !(1..=MAX_EDGES).contains(&self.edges) {
            return Err(format!(
                "edges must be 1 to {MAX_EDGES}, not {}",
                self.edges
            ));
        }
        let mut legs: Vec<Leg> = (0..self.edges)
            .map(|edge| Leg {
                near: Node::Edge(edge),
                far: Node::Cloud,
            })
            .collect();
        for &(near, far) in &self.neighbours {
            let leg = Leg {
                near: Node::Edge(near),
                far: Node::Edge(far),
            };
            let turned = Leg {
                near: leg.far,
                far: leg.near,
            };
            if near == far || near.max(far) >= self.edges {
                return Err(format!(
                    "neighbours must be two different edges below {}, not {near} and {far}",
                    self.edges
                ));
            }
            if legs.contains(&leg) || legs.contains(&turned) {
                return Err(format!("edges {near} and {far} are neighbours twice"));
            }
            legs.push(leg);
        }
        Ok(legs)
    }
}
