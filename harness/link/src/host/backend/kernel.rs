//! A routing namespace in the middle of every leg, with the kernel's netem on its two devices.
//!
//! ```text
//! near node: link0 ── veth ── near :router: far ── veth ── link0 :far node
//!                      netem: downlink   netem: uplink
//! ```
//!
//! It routes rather than bridges: that takes nothing of the kernel but IPv4 forwarding, no bridge
//! module, no learning and no frames of its own, and a router takes a packet from its sender's
//! socket, so that no sender is held back by the queue that it should overrun. Each of its devices
//! has the hardware address that the far node has on the other backends, so the nodes are set up
//! as there. What differs is the TTL, which a router lowers by one.
//!
//! When it loses: netem knows no traces, no active queue management, no bounds in bytes and no
//! outages; it states no lateness; it draws all of its impairments from one stream, which takes a
//! seed since Linux 6.7 only; it counts what its loss model takes together with what finds the
//! queue full; and its corruption may hit the Ethernet header, which loses the packet.

use std::mem;
use std::thread;
use std::time::Duration;

use rand::RngExt;

use super::{End, Ends, Path, Topology};
use crate::core::{DirectionSettings, LossModel, stream};
use crate::counters::{Audit, Counters, TrafficCounters};
use crate::error::Fault;
use crate::facts::Scheduling;
use crate::host::device::{self, Side};
use crate::host::namespace::Namespace;
use crate::host::netem;
use crate::host::netlink::QdiscState;
use crate::host::sysctl;
use crate::profile::LinkProfile;
use crate::protocol::HostConfig;

/// How long a profile change waits for packets to leave under the old profile.
const DRAIN: Duration = Duration::from_secs(1);
/// How often it looks.
const DRAIN_POLL: Duration = Duration::from_millis(5);

/// The `kernel` backend.
pub(super) struct Kernel {
    topology: Topology,
    /// Each leg's router.
    routed: Vec<Routed>,
}

/// The router of one leg.
struct Routed {
    wan: Namespace,
    uplink: Netem,
    downlink: Netem,
    seeded: bool,
}

/// The netem discipline of one direction.
struct Netem {
    /// The router's device that sends in this direction.
    device: u32,
    told: Told,
    /// What the disciplines before this one dropped.
    dropped: Drops,
}

/// What a discipline is told.
struct Told {
    options: Vec<u8>,
    /// Whether its loss model may take packets.
    loses: bool,
}

/// Packets dropped, by what can be said of the reason.
#[derive(Clone, Copy, Default)]
struct Drops {
    queue: u64,
    flush: u64,
    undistinguished: u64,
}

impl Netem {
    /// Puts a discipline that impairs nothing on a device. To be called where the device is, as
    /// all that follows.
    fn start(device: u32) -> Result<Self, Fault> {
        let told = Told {
            options: netem::unimpaired()?,
            loses: false,
        };
        netem::install(device, &told.options)?;
        Ok(Self {
            device,
            told,
            dropped: Drops::default(),
        })
    }

    /// Packets on the link.
    fn backlog(&self) -> Result<u32, Fault> {
        Ok(netem::state(self.device)?.backlog_packets)
    }

    /// Every packet dropped so far.
    fn drops(&self) -> Result<Drops, Fault> {
        Ok(self.drops_in(&netem::state(self.device)?))
    }

    fn drops_in(&self, state: &QdiscState) -> Drops {
        let mut drops = self.dropped;
        let counted = if self.told.loses {
            &mut drops.undistinguished
        } else {
            &mut drops.queue
        };
        *counted += u64::from(state.dropped_packets);
        drops
    }

    /// Puts a discipline that is told something else in place of this one, and returns what this
    /// one was told. Where the kernel refuses it, one like this one comes in its place.
    fn replace(&mut self, told: Told) -> Result<Told, Fault> {
        let state = netem::state(self.device)?;
        self.dropped = self.drops_in(&state);
        self.dropped.flush += u64::from(state.backlog_packets);
        if let Err(fault) = netem::install(self.device, &told.options) {
            netem::install(self.device, &self.told.options)?;
            return Err(fault);
        }
        Ok(mem::replace(&mut self.told, told))
    }
}

impl Drops {
    fn add_to(self, traffic: &mut TrafficCounters) {
        traffic.dropped_queue += self.queue;
        traffic.dropped_flush += self.flush;
        traffic.dropped_undistinguished += self.undistinguished;
    }
}

impl Kernel {
    pub(super) fn build(config: &HostConfig) -> Result<Self, Fault> {
        let topology = Topology::create(config)?;
        let routed: Result<_, _> = topology.legs().iter().map(Routed::build).collect();
        Ok(Self {
            topology,
            routed: routed?,
        })
    }

    /// A leg's router.
    fn routed(&mut self, leg: usize) -> Result<&mut Routed, Fault> {
        self.topology.leg(leg)?;
        Ok(&mut self.routed[leg])
    }
}

impl Routed {
    fn build(ends: &Ends) -> Result<Self, Fault> {
        let wan = Namespace::create()?;
        wan.run(|| {
            sysctl::disable_ipv6()?;
            sysctl::forward_ipv4()
        })?;
        let towards = |(end, side): (&End, &Side), device: &str| {
            end.run(|| {
                device::create_veth(side, device, &wan)?;
                device::configure_veth(side)
            })?;
            wan.run(|| device::configure_router_veth(device, side))
        };
        let [near, far] = ends.sides();
        let (to_near, to_far) = (towards(near, "near")?, towards(far, "far")?);
        let (uplink, downlink, seeded) = wan.run(|| {
            let uplink = Netem::start(to_far)?;
            let downlink = Netem::start(to_near)?;
            let seeded = netem::is_seeded(&netem::state(to_far)?.options);
            Ok((uplink, downlink, seeded))
        })?;
        Ok(Self {
            wan,
            uplink,
            downlink,
            seeded,
        })
    }

    /// Tells both disciplines something else, once what is on the link has left it or a second
    /// has passed.
    fn replace(&mut self, uplink: Told, downlink: Told) -> Result<(), Fault> {
        let (up, down) = (&mut self.uplink, &mut self.downlink);
        self.wan.run(|| {
            let polls = DRAIN.as_millis() / DRAIN_POLL.as_millis();
            for _ in 0..polls {
                if up.backlog()? == 0 && down.backlog()? == 0 {
                    break;
                }
                thread::sleep(DRAIN_POLL);
            }
            let before = up.replace(uplink)?;
            if let Err(fault) = down.replace(downlink) {
                up.replace(before)?;
                return Err(fault);
            }
            Ok(())
        })
    }
}

/// What netem is told for one direction.
fn encode(
    profile: &str,
    direction: &str,
    settings: &DirectionSettings,
    seed: u64,
) -> Result<Told, Fault> {
    let seed = stream(seed, direction, "netem").random();
    let options = netem::options(settings, seed).map_err(|fault| {
        let message = fault.message();
        Fault::Unsupported(format!("link profile \"{profile}\": {direction}.{message}"))
    })?;
    Ok(Told {
        options,
        loses: settings.loss != LossModel::None,
    })
}

impl Path for Kernel {
    fn set_profile(&mut self, leg: usize, profile: &LinkProfile, seed: u64) -> Result<(), Fault> {
        let (uplink, downlink) = profile.settings();
        // Both before either is applied, so that a profile that is refused changes nothing.
        let uplink = encode(&profile.name, "uplink", &uplink, seed)?;
        let downlink = encode(&profile.name, "downlink", &downlink, seed)?;
        self.routed(leg)?.replace(uplink, downlink)
    }

    fn counters(&mut self, leg: usize) -> Result<Option<Counters>, Fault> {
        let mut counters = self.topology.leg(leg)?.counters()?;
        let Routed {
            wan,
            uplink,
            downlink,
            ..
        } = &self.routed[leg];
        let (up, down) = wan.run(|| Ok((uplink.drops()?, downlink.drops()?)))?;
        up.add_to(&mut counters.uplink);
        down.add_to(&mut counters.downlink);
        Ok(Some(counters))
    }

    fn audit(&mut self, _leg: usize) -> Result<Option<Audit>, Fault> {
        Ok(None)
    }

    fn scheduling(&self) -> Option<Scheduling> {
        None
    }

    fn devices(&self) -> String {
        "veth devices, routed".to_owned()
    }

    fn remark(&self) -> Option<String> {
        let unseeded = self.routed.iter().any(|routed| !routed.seeded);
        unseeded.then(|| {
            "this kernel's netem takes no seed (Linux 6.7 is the first that does), so its random \
             numbers are not the run's to repeat"
                .to_owned()
        })
    }

    fn topology(&self) -> &Topology {
        &self.topology
    }
}
