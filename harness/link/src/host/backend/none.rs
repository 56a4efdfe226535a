//! Plain veth between the same two namespaces: what the harness costs without emulation.

use super::{Ends, Path, refuse_impairments};
use crate::counters::{Audit, Counters, TrafficCounters};
use crate::error::Fault;
use crate::facts::{Backend, Scheduling};
use crate::host::device::{self, DeviceCounters};
use crate::host::namespace::Namespace;
use crate::profile::LinkProfile;
use crate::protocol::HostConfig;

/// The `none` backend.
pub(super) struct Veth {
    ends: Ends,
}

impl Veth {
    pub(super) fn build(config: &HostConfig) -> Result<Self, Fault> {
        let ends = Ends::create(config)?;
        let cloud: &Namespace = ends
            .cloud
            .namespace
            .as_ref()
            .ok_or_else(|| Fault::Failed("the cloud has no namespace".to_owned()))?;
        let (edge_address, cloud_address) = (ends.edge.address, ends.cloud.address);
        ends.edge.run(|| {
            device::create_veth(cloud)?;
            device::configure_veth(edge_address, cloud_address)
        })?;
        ends.cloud
            .run(|| device::configure_veth(cloud_address, edge_address))?;
        Ok(Self { ends })
    }
}

impl Path for Veth {
    fn set_profile(&mut self, profile: &LinkProfile, _seed: u64) -> Result<(), Fault> {
        refuse_impairments(Backend::None, profile)
    }

    fn counters(&mut self) -> Result<Option<Counters>, Fault> {
        let edge = self.ends.edge.run(DeviceCounters::read)?;
        let cloud = self.ends.cloud.run(DeviceCounters::read)?;
        let traffic = |sender: DeviceCounters, receiver: DeviceCounters| TrafficCounters {
            packets: sender.tx_packets,
            bytes: sender.ip_tx_bytes(),
            delivered_packets: receiver.rx_packets,
            delivered_bytes: receiver.ip_rx_bytes(),
            ..TrafficCounters::default()
        };
        Ok(Some(Counters {
            uplink: traffic(edge, cloud),
            downlink: traffic(cloud, edge),
        }))
    }

    fn audit(&mut self) -> Result<Option<Audit>, Fault> {
        Ok(None)
    }

    fn scheduling(&self) -> Option<Scheduling> {
        None
    }

    fn ends(&self) -> &Ends {
        &self.ends
    }
}
