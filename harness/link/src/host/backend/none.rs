//! Plain veth between the same namespaces: what the harness costs without emulation.

use super::{Path, Topology, refuse_impairments};
use crate::counters::{Audit, Counters};
use crate::error::Fault;
use crate::facts::{Backend, Scheduling};
use crate::host::device;
use crate::profile::LinkProfile;
use crate::protocol::HostConfig;

/// The `none` backend.
pub(super) struct Veth {
    topology: Topology,
}

impl Veth {
    pub(super) fn build(config: &HostConfig) -> Result<Self, Fault> {
        let topology = Topology::create(config)?;
        for ends in topology.legs() {
            let far = ends.far.namespace()?;
            let [(near, side), _] = ends.sides();
            near.run(|| device::create_veth(side, &side.device, far))?;
            for (end, side) in ends.sides() {
                end.run(|| device::configure_veth(side))?;
            }
        }
        Ok(Self { topology })
    }
}

impl Path for Veth {
    fn set_profile(&mut self, _leg: usize, profile: &LinkProfile, _seed: u64) -> Result<(), Fault> {
        refuse_impairments(Backend::None, profile)
    }

    fn counters(&mut self, leg: usize) -> Result<Option<Counters>, Fault> {
        Ok(Some(self.topology.leg(leg)?.counters()?))
    }

    fn audit(&mut self, _leg: usize) -> Result<Option<Audit>, Fault> {
        Ok(None)
    }

    fn scheduling(&self) -> Option<Scheduling> {
        None
    }

    fn devices(&self) -> String {
        "veth devices".to_owned()
    }

    fn topology(&self) -> &Topology {
        &self.topology
    }
}
