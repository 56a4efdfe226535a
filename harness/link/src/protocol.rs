//! What the controller and the link host say to each other: one JSON value a line, one answer
//! to each request.

use serde::{Deserialize, Serialize};

use crate::calibration::{CalibrateOptions, Calibration};
use crate::counters::{Audit, Counters};
use crate::error::Fault;
use crate::facts::{BackendChoice, LinkFacts};
use crate::node::{Node, NodeCommand, NodeExit, NodeSignal, ProcessId};
use crate::probe::Capabilities;
use crate::profile::LinkProfile;

/// The longest line that either side accepts.
pub(crate) const MAX_LINE_BYTES: u64 = 4 << 20;

/// What the link host is told to build.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HostConfig {
    pub(crate) backend: BackendChoice,
    pub(crate) congestion_control: Option<String>,
    pub(crate) tcp_slow_start_after_idle: Option<bool>,
    pub(crate) tcp_buffer_max_bytes: Option<u64>,
    pub(crate) packet_cpu: Option<usize>,
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
        profile: LinkProfile,
        seed: u64,
    },
    Counters,
    Audit,
    Calibrate(CalibrateOptions),
    Spawn {
        node: Node,
        command: NodeCommand,
    },
    Signal {
        process: ProcessId,
        signal: NodeSignal,
    },
    Exits,
    Shutdown,
}

impl Request {
    /// The request's name in messages.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::Start(_) => "start",
            Self::SetProfile { .. } => "set profile",
            Self::Counters => "counters",
            Self::Audit => "audit",
            Self::Calibrate(_) => "calibrate",
            Self::Spawn { .. } => "spawn",
            Self::Signal { .. } => "signal",
            Self::Exits => "exits",
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
    Fault(Fault),
}
