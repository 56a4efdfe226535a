//! TUN devices in two namespaces and a packet thread between them.

use super::{Ends, Path};
use crate::counters::{Audit, Counters};
use crate::error::Fault;
use crate::facts::Scheduling;
use crate::host::device::{self, DeviceCounters};
use crate::host::packet::PacketThread;
use crate::profile::LinkProfile;
use crate::protocol::HostConfig;

/// The `userspace` backend.
pub(super) struct Userspace {
    ends: Ends,
    packets: PacketThread,
    /// What the devices had dropped when the profile was last changed.
    device_drops: u64,
}

impl Userspace {
    pub(super) fn build(config: &HostConfig) -> Result<Self, Fault> {
        // Asked first, because it is what fails where anything does, and leaves nothing behind.
        drop(device::open_tun()?);
        let ends = Ends::create(config)?;
        let edge = ends.edge.run(|| device::create_tun(ends.edge.address))?;
        let cloud = ends.cloud.run(|| device::create_tun(ends.cloud.address))?;
        let packets = PacketThread::start(edge, cloud, config.packet_cpu, config.seed)?;
        Ok(Self {
            ends,
            packets,
            device_drops: 0,
        })
    }

    /// Packets that the senders' devices dropped before the packet thread could read them.
    fn device_drops(&self) -> Result<u64, Fault> {
        let edge = self.ends.edge.run(DeviceCounters::read)?;
        let cloud = self.ends.cloud.run(DeviceCounters::read)?;
        Ok(edge.tx_dropped + cloud.tx_dropped)
    }
}

impl Path for Userspace {
    fn set_profile(&mut self, profile: &LinkProfile, seed: u64) -> Result<(), Fault> {
        self.packets.reconfigure(profile.settings(), seed)?;
        self.device_drops = self.device_drops()?;
        Ok(())
    }

    fn counters(&mut self) -> Result<Option<Counters>, Fault> {
        Ok(Some(self.packets.counters()))
    }

    fn audit(&mut self) -> Result<Option<Audit>, Fault> {
        let device_drops = self.device_drops()?.saturating_sub(self.device_drops);
        Ok(Some(Audit {
            device_drops,
            ..self.packets.audit()?
        }))
    }

    fn scheduling(&self) -> Option<Scheduling> {
        Some(self.packets.scheduling().clone())
    }

    fn ends(&self) -> &Ends {
        &self.ends
    }
}
