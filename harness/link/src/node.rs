//! The node processes at the ends of the link.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A place where programs run: a network namespace, where there are any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Node {
    /// A device at the users' side, by its number from 0.
    Edge(usize),
    /// The server.
    Cloud,
}

/// An emulated path between two nodes, with a profile, counters and an audit of its own.
///
/// The first legs join edge 0, 1, … to the cloud; behind them come those between edges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Leg {
    /// Where the uplink begins.
    pub near: Node,
    /// Where it ends.
    pub far: Node,
}

impl fmt::Display for Leg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\u{2013}{}", self.near, self.far)
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Edge(0) => f.write_str("edge"),
            Self::Edge(number) => write!(f, "edge-{number}"),
            Self::Cloud => f.write_str("cloud"),
        }
    }
}

/// A program to run at one end of the link.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCommand {
    /// The program.
    pub exe: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Variables set on top of the inherited environment.
    pub env: Vec<(String, String)>,
    /// The CPUs it may run on; `None` leaves that to the kernel.
    pub cpus: Option<Vec<usize>>,
    /// The file that standard output and standard error are appended to; without one, output is
    /// dropped and errors go where the controller's go.
    pub log: Option<PathBuf>,
}

/// A node process: its process id, as the controller sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProcessId(pub u32);

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A node process that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeExit {
    /// Which process it was.
    pub process: ProcessId,
    /// At which end it ran.
    pub node: Node,
    /// Its exit code, if it ended by itself.
    pub code: Option<i32>,
    /// The number of the signal that ended it, if one did.
    pub signal: Option<i32>,
}

impl NodeExit {
    /// Whether the process ended by itself with code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }
}

impl fmt::Display for NodeExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the {} node (process {}) ended ",
            self.node, self.process
        )?;
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "with code {code}"),
            (None, Some(signal)) => write!(f, "by signal {signal}"),
            (None, None) => write!(f, "in an unknown way"),
        }
    }
}

/// A signal for a node process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum NodeSignal {
    /// SIGTERM: end in good order.
    Terminate,
    /// SIGKILL: end now.
    Kill,
    /// SIGINT, as Ctrl-C sends it.
    Interrupt,
    /// SIGSTOP: stand still.
    Stop,
    /// SIGCONT: go on.
    Continue,
}
