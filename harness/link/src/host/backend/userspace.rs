//! Devices at both ends of every leg and a packet thread between them: TUN devices, or, where
//! `/dev/net/tun` cannot be opened, veth devices and packet sockets.

use super::{Path, Topology};
use crate::clock::Clock;
use crate::counters::{Audit, Counters};
use crate::error::Fault;
use crate::facts::{DeviceChoice, Scheduling};
use crate::host::device;
use crate::host::namespace::Namespace;
use crate::host::packet::PacketThread;
use crate::host::sysctl;
use crate::profile::LinkProfile;
use crate::protocol::HostConfig;

/// The `userspace` backend.
pub(super) struct Userspace {
    topology: Topology,
    packets: PacketThread,
    device_note: String,
    /// What the devices of each leg had dropped when it was last audited.
    device_drops: Vec<u64>,
    /// A clock for each leg, running since then.
    applied: Vec<Clock>,
}

impl Userspace {
    pub(super) fn build(config: &HostConfig) -> Result<Self, Fault> {
        let tun = match config.devices {
            DeviceChoice::Auto => device::open_tun()
                .map(drop)
                .map_err(|error| format!("since /dev/net/tun cannot be opened: {error}")),
            DeviceChoice::Tun => Ok(device::open_tun()
                .map(drop)
                .map_err(|error| device::no_tun(&error))?),
            DeviceChoice::Veth => Err("as asked for".to_owned()),
        };
        let topology = Topology::create(config)?;
        let mut devices = Vec::new();
        let device_note = match &tun {
            Ok(()) => {
                for ends in topology.legs() {
                    let [near, far] = ends
                        .sides()
                        .map(|(end, side)| end.run(|| device::create_tun(side)));
                    devices.push([near?, far?]);
                }
                "TUN devices".to_owned()
            }
            Err(reason) => {
                let hub = Namespace::create()?;
                hub.run(sysctl::disable_ipv6)?;
                for (leg, ends) in topology.legs().iter().enumerate() {
                    let [(near, near_side), (far, far_side)] = ends.sides();
                    devices.push([
                        near.run(|| device::create_port(near_side, &hub, 2 * leg))?,
                        far.run(|| device::create_port(far_side, &hub, 2 * leg + 1))?,
                    ]);
                }
                format!("veth devices and packet sockets, {reason}")
            }
        };
        let packets = PacketThread::start(devices, config)?;
        Ok(Self {
            device_drops: vec![0; topology.legs().len()],
            applied: vec![packets.clock(); topology.legs().len()],
            topology,
            packets,
            device_note,
        })
    }

    /// Packets that the senders' devices dropped before the packet thread could read them.
    fn device_drops(&self, leg: usize) -> Result<u64, Fault> {
        let [near, far] = self.topology.leg(leg)?.device_counters()?;
        Ok(near.tx_dropped + far.tx_dropped)
    }
}

impl Path for Userspace {
    fn set_profile(&mut self, leg: usize, profile: &LinkProfile, seed: u64) -> Result<(), Fault> {
        self.topology.leg(leg)?;
        self.applied[leg] = self.packets.reconfigure(leg, profile.settings(), seed)?;
        self.device_drops[leg] = self.device_drops(leg)?;
        Ok(())
    }

    fn counters(&mut self, leg: usize) -> Result<Option<Counters>, Fault> {
        self.topology.leg(leg)?;
        Ok(Some(self.packets.counters(leg)))
    }

    fn audit(&mut self, leg: usize) -> Result<Option<Audit>, Fault> {
        let drops = self.device_drops(leg)?;
        let audit = self.packets.audit(leg)?;
        let before = std::mem::replace(&mut self.device_drops[leg], drops);
        Ok(Some(Audit {
            device_drops: audit.device_drops + drops.saturating_sub(before),
            ..audit
        }))
    }

    fn applied(&self, leg: usize) -> Option<Clock> {
        self.applied.get(leg).copied()
    }

    fn scheduling(&self) -> Option<Scheduling> {
        Some(self.packets.scheduling().clone())
    }

    fn devices(&self) -> String {
        self.device_note.clone()
    }

    fn topology(&self) -> &Topology {
        &self.topology
    }
}
