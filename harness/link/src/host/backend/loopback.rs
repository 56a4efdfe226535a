//! The host's loopback, where nothing else works: the nodes run, nothing is emulated or counted.

use std::net::Ipv4Addr;

use super::{End, Path, Topology, refuse_impairments};
use crate::counters::{Audit, Counters};
use crate::error::Fault;
use crate::facts::{Backend, Scheduling};
use crate::profile::LinkProfile;
use crate::protocol::HostConfig;

/// The `loopback` backend.
pub(super) struct Loopback {
    topology: Topology,
}

impl Loopback {
    /// Refuses settings of the network, since they would be the host's own.
    pub(super) fn build(config: &HostConfig) -> Result<Self, Fault> {
        if config.congestion_control.is_some() || config.tcp_slow_start_after_idle.is_some() {
            return Err(Fault::Unsupported(
                "backend \"loopback\" uses the host's own network settings and leaves them alone: \
                 remove congestion_control and tcp_slow_start_after_idle"
                    .to_owned(),
            ));
        }
        let topology = Topology::with(config, |_| {
            Ok(End {
                address: Ipv4Addr::LOCALHOST,
                namespace: None,
            })
        })?;
        Ok(Self { topology })
    }
}

impl Path for Loopback {
    fn set_profile(&mut self, _leg: usize, profile: &LinkProfile, _seed: u64) -> Result<(), Fault> {
        refuse_impairments(Backend::Loopback, profile)
    }

    fn counters(&mut self, _leg: usize) -> Result<Option<Counters>, Fault> {
        Ok(None)
    }

    fn audit(&mut self, _leg: usize) -> Result<Option<Audit>, Fault> {
        Ok(None)
    }

    fn scheduling(&self) -> Option<Scheduling> {
        None
    }

    fn devices(&self) -> String {
        "the host's loopback".to_owned()
    }

    fn topology(&self) -> &Topology {
        &self.topology
    }
}
