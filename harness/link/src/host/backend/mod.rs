//! The backends: how the path between the two ends is made.

mod kernel;
mod loopback;
mod none;
mod userspace;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::device::{self, DeviceCounters, Side};
use super::namespace::Namespace;
use super::sysctl;
use crate::clock::Clock;
use crate::counters::{Audit, Counters, TrafficCounters};
use crate::error::Fault;
use crate::facts::{Backend, Scheduling};
use crate::node::{Leg, Node};
use crate::profile::LinkProfile;
use crate::protocol::HostConfig;

/// A path that exists.
pub(super) trait Path {
    /// Gives a leg another profile.
    fn set_profile(&mut self, leg: usize, profile: &LinkProfile, seed: u64) -> Result<(), Fault>;
    /// What passed over a leg so far, where that can be known.
    fn counters(&mut self, leg: usize) -> Result<Option<Counters>, Fault>;
    /// How punctual the emulation of a leg was, where there is one, since its profile was set or
    /// this was last asked.
    fn audit(&mut self, leg: usize) -> Result<Option<Audit>, Fault>;
    /// A clock that has run since a leg got its profile, by which traces and cuts go; `None` where
    /// that cannot be known, or nothing goes by it.
    fn applied(&self, _leg: usize) -> Option<Clock> {
        None
    }
    /// How the packet thread is scheduled, where there is one.
    fn scheduling(&self) -> Option<Scheduling>;
    /// What the nodes' devices are.
    fn devices(&self) -> String;
    /// What else has to be known about this path, for the facts.
    fn remark(&self) -> Option<String> {
        None
    }
    /// The nodes and legs.
    fn topology(&self) -> &Topology;
}

/// The nodes and the legs between them.
pub(super) struct Topology {
    nodes: BTreeMap<Node, End>,
    legs: Vec<Ends>,
}

/// The two ends of a leg.
pub(super) struct Ends {
    pub(super) leg: Leg,
    pub(super) near: End,
    pub(super) far: End,
    near_side: Side,
    far_side: Side,
}

/// A node's address and, unless it is the host itself, its namespace.
#[derive(Clone)]
pub(super) struct End {
    pub(super) address: Ipv4Addr,
    pub(super) namespace: Option<Arc<Namespace>>,
}

impl End {
    /// Runs `work` on a thread of its own at this end.
    pub(super) fn run<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, Fault> + Send,
    ) -> Result<T, Fault> {
        match &self.namespace {
            Some(namespace) => namespace.run(work),
            None => work(),
        }
    }

    /// The namespace of an end that must have one.
    fn namespace(&self) -> Result<&Namespace, Fault> {
        self.namespace
            .as_deref()
            .ok_or_else(|| Fault::Failed("an end of the path has no namespace".to_owned()))
    }

    /// Moves the calling thread, which must not do anything else, to this end.
    pub(super) fn enter(&self) -> Result<(), Fault> {
        self.namespace.as_ref().map_or(Ok(()), |n| n.enter())
    }
}

impl Ends {
    /// The near end's namespace and device, then the far end's.
    fn sides(&self) -> [(&End, &Side); 2] {
        [(&self.near, &self.near_side), (&self.far, &self.far_side)]
    }

    /// What the devices at both ends counted.
    fn device_counters(&self) -> Result<[DeviceCounters; 2], Fault> {
        let [near, far] = self
            .sides()
            .map(|(end, side)| end.run(|| DeviceCounters::read(&side.device)));
        Ok([near?, far?])
    }

    /// What passed over the leg, by its Ethernet devices.
    fn counters(&self) -> Result<Counters, Fault> {
        let [near, far] = self.device_counters()?;
        let traffic = |sender: DeviceCounters, receiver: DeviceCounters| TrafficCounters {
            packets: sender.tx_packets,
            bytes: sender.ip_tx_bytes(),
            delivered_packets: receiver.rx_packets,
            delivered_bytes: receiver.ip_rx_bytes(),
            ..TrafficCounters::default()
        };
        Ok(Counters {
            uplink: traffic(near, far),
            downlink: traffic(far, near),
        })
    }
}

impl Topology {
    /// A namespace for each node, with everything but the legs' devices.
    fn create(config: &HostConfig) -> Result<Self, Fault> {
        Self::with(config, |node| {
            let namespace = Namespace::create()?;
            namespace.run(|| {
                sysctl::disable_ipv6()?;
                sysctl::apply(config)?;
                device::loopback_up()
            })?;
            Ok(End {
                address: device::address(node),
                namespace: Some(Arc::new(namespace)),
            })
        })
    }

    /// The nodes that `end` makes and the legs that the configuration asks for.
    fn with(
        config: &HostConfig,
        mut end: impl FnMut(Node) -> Result<End, Fault>,
    ) -> Result<Self, Fault> {
        let legs = config.legs().map_err(Fault::Unsupported)?;
        let mut nodes = BTreeMap::new();
        for node in (0..config.edges).map(Node::Edge).chain([Node::Cloud]) {
            nodes.insert(node, end(node)?);
        }
        let legs = legs.into_iter().enumerate().map(|(index, leg)| {
            let (near, far) = (nodes[&leg.near].clone(), nodes[&leg.far].clone());
            let side = |here: &End, there: &End| Side {
                device: device::name(index),
                local: here.address,
                peer: there.address,
            };
            Ends {
                leg,
                near_side: side(&near, &far),
                far_side: side(&far, &near),
                near,
                far,
            }
        });
        Ok(Self {
            legs: legs.collect(),
            nodes,
        })
    }

    /// Every node, the edges first.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (Node, &End)> {
        self.nodes.iter().map(|(node, end)| (*node, end))
    }

    /// A node.
    pub(super) fn node(&self, node: Node) -> Result<&End, Fault> {
        self.nodes
            .get(&node)
            .ok_or_else(|| Fault::Unsupported(format!("the link has no {node}")))
    }

    /// Every leg.
    pub(super) fn legs(&self) -> &[Ends] {
        &self.legs
    }

    /// A leg.
    pub(super) fn leg(&self, index: usize) -> Result<&Ends, Fault> {
        self.legs.get(index).ok_or_else(|| {
            Fault::Unsupported(format!(
                "the link has legs 0 to {}, no leg {index}",
                self.legs.len() - 1
            ))
        })
    }

    /// The legs as a node sees them.
    pub(super) fn sides_of(&self, node: Node) -> Vec<Side> {
        let sides = self.legs.iter().flat_map(|ends| {
            [
                (ends.leg.near, &ends.near_side),
                (ends.leg.far, &ends.far_side),
            ]
        });
        sides
            .filter(|(at, _)| *at == node)
            .map(|(_, side)| side.clone())
            .collect()
    }
}

/// Builds a path.
pub(super) fn build(backend: Backend, config: &HostConfig) -> Result<Box<dyn Path>, Fault> {
    Ok(match backend {
        Backend::Userspace => Box::new(userspace::Userspace::build(config)?),
        Backend::Kernel => Box::new(kernel::Kernel::build(config)?),
        Backend::None => Box::new(none::Veth::build(config)?),
        Backend::Loopback => Box::new(loopback::Loopback::build(config)?),
    })
}

/// Refuses a profile that a backend which emulates nothing cannot apply.
fn refuse_impairments(backend: Backend, profile: &LinkProfile) -> Result<(), Fault> {
    if profile.impairs() {
        return Err(Fault::Unsupported(format!(
            "the link runs on backend \"{backend}\", which emulates nothing, so profile \"{}\" \
             cannot be applied: use profile \"none\", or backend \"userspace\" where the machine \
             allows it",
            profile.name
        )));
    }
    Ok(())
}
