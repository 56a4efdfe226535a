//! What a link is made of, as the run's records state it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::node::Leg;

/// The backend that a configuration asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum BackendChoice {
    /// The best that works here, stated with the reason.
    #[default]
    Auto,
    /// TUN devices and a packet thread.
    Userspace,
    /// A router between veth pairs, with the kernel's netem on it.
    Kernel,
    /// Plain veth between the same namespaces.
    None,
    /// The host's loopback, without namespaces.
    Loopback,
}

/// The devices that the `userspace` backend gives its nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DeviceChoice {
    /// TUN devices, or where `/dev/net/tun` cannot be opened, veth devices; stated with the reason.
    #[default]
    Auto,
    /// TUN devices.
    Tun,
    /// One end of a veth pair, with a packet socket on the other.
    Veth,
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(Self::Auto),
            "tun" => Ok(Self::Tun),
            "veth" => Ok(Self::Veth),
            _ => Err(format!(
                "unknown devices \"{name}\"; known: auto, tun, veth"
            )),
        }
    }
}

impl FromStr for BackendChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let all = [
            Self::Auto,
            Self::Userspace,
            Self::Kernel,
            Self::None,
            Self::Loopback,
        ];
        all.into_iter()
            .find(|choice| choice.name() == name)
            .ok_or_else(|| {
                let known = all.map(Self::name).join(", ");
                format!("unknown backend \"{name}\"; known: {known}")
            })
    }
}

impl BackendChoice {
    /// The name in configurations.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Userspace => "userspace",
            Self::Kernel => "kernel",
            Self::None => "none",
            Self::Loopback => "loopback",
        }
    }
}

/// The backend that a link runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Backend {
    /// TUN devices and a packet thread that applies the profile.
    Userspace,
    /// A router between veth pairs, on whose two devices the kernel's netem applies the profile.
    Kernel,
    /// Plain veth: the same namespaces, nothing emulated.
    None,
    /// The host's loopback: no namespaces, no counters, nothing emulated.
    Loopback,
}

/// A backend in the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendInfo {
    /// The backend.
    pub backend: Backend,
    /// Its name in configurations.
    pub name: &'static str,
    /// One line for listings.
    pub summary: &'static str,
    /// Whether `auto` may take it. The kernel's netem draws other numbers than the harness's own
    /// emulation and knows fewer impairments, so a run has it only where it was asked for.
    pub automatic: bool,
}

/// The registry of backends; those that `auto` may take are in the order in which it tries them.
pub const BACKENDS: &[BackendInfo] = &[
    BackendInfo {
        backend: Backend::Userspace,
        name: "userspace",
        summary: "TUN devices in two network namespaces, packets shuttled and impaired by one thread",
        automatic: true,
    },
    BackendInfo {
        backend: Backend::Kernel,
        name: "kernel",
        summary: "veth pairs through a third namespace that routes, impaired by the kernel's netem; by explicit choice only",
        automatic: false,
    },
    BackendInfo {
        backend: Backend::None,
        name: "none",
        summary: "the same namespaces over plain veth: nothing emulated, the harness's own cost",
        automatic: true,
    },
    BackendInfo {
        backend: Backend::Loopback,
        name: "loopback",
        summary: "the host's loopback without namespaces: nothing emulated or counted, a last resort",
        automatic: true,
    },
];

impl Backend {
    /// The name in configurations.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Userspace => "userspace",
            Self::Kernel => "kernel",
            Self::None => "none",
            Self::Loopback => "loopback",
        }
    }

    /// Its line in the registry.
    pub(crate) fn info(self) -> Option<&'static BackendInfo> {
        BACKENDS.iter().find(|info| info.backend == self)
    }

    /// Whether the backend applies profiles that impair anything.
    #[must_use]
    pub fn emulates(self) -> bool {
        matches!(self, Self::Userspace | Self::Kernel)
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A backend that `auto` tried in vain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendAttempt {
    /// The backend.
    pub backend: Backend,
    /// Why it does not work here.
    pub problem: String,
}

/// How the packet thread is scheduled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduling {
    /// `fifo`, `other, 0.1 ms slice` or `other`.
    pub policy: String,
    /// Why a better policy was not to be had; empty if the best was.
    pub note: String,
    /// The thread's timer slack in nanoseconds; 0 under `SCHED_FIFO`, which has none.
    pub timer_slack_ns: u64,
    /// The CPU it is pinned to, if any.
    pub cpu: Option<usize>,
}

/// Everything about a link that a result depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkFacts {
    /// The backend asked for.
    pub requested: BackendChoice,
    /// The backend taken.
    pub backend: Backend,
    /// Why it was taken.
    pub reason: String,
    /// The backends that `auto` tried before.
    pub attempts: Vec<BackendAttempt>,
    /// Whether profiles are emulated at all.
    pub emulates: bool,
    /// Whether a user namespace stands in for root.
    pub user_namespace: bool,
    /// Kernel release.
    pub kernel: String,
    /// The first edge's address.
    pub edge_addr: IpAddr,
    /// The cloud's address.
    pub cloud_addr: IpAddr,
    /// What the nodes' devices are, and why not the usual ones.
    #[serde(default)]
    pub devices: String,
    /// The paths between nodes.
    #[serde(default)]
    pub legs: Vec<Leg>,
    /// MTU of the path in bytes.
    pub mtu: u32,
    /// Transmit queue length of the devices in packets; `None` on loopback.
    pub tx_queue_packets: Option<u32>,
    /// TCP congestion control, read back from a connection over the path.
    pub congestion_control: String,
    /// How the congestion control came to be.
    pub congestion_control_note: String,
    /// Sysctls of the namespaces that results depend on, by name; both ends agree.
    pub sysctls: BTreeMap<String, String>,
    /// How the packet thread is scheduled; `None` where there is none.
    pub scheduling: Option<Scheduling>,
    /// The seed of the link's random streams.
    pub seed: u64,
    /// Process id of the link host.
    pub host_pid: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registry_names_are_the_configuration_names() {
        for info in BACKENDS {
            assert_eq!(info.name, info.backend.name());
            let json = format!("\"{}\"", info.name);
            assert_eq!(
                serde_json::to_string(&info.backend).expect("serialise"),
                json
            );
            assert!(serde_json::from_str::<BackendChoice>(&json).is_ok());
            assert_eq!(info.backend.info(), Some(info));
        }
        // In this order, and never the kernel's netem.
        let automatic: Vec<&str> = BACKENDS
            .iter()
            .filter(|info| info.automatic)
            .map(|info| info.name)
            .collect();
        assert_eq!(automatic, ["userspace", "none", "loopback"]);
        let error = serde_json::from_str::<BackendChoice>("\"netem\"").expect_err("unknown");
        assert!(error.to_string().contains("`userspace`"), "{error}");
    }
}
