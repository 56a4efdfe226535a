//! The devices at the ends of the path. Every function works in the calling thread's namespace.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{setsockopt, sockopt};

use super::namespace::Namespace;
use super::netlink::{self, VethEnd};
use super::port::Port;
use super::sys;
use crate::error::Fault;
use crate::node::Node;

/// The name of a leg's device, the same at both ends.
pub(super) fn name(leg: usize) -> String {
    format!("link{leg}")
}

/// MTU of the path in bytes.
pub(super) const MTU: u32 = 1500;
/// MTU of the host's loopback in bytes, as Linux sets it.
pub(super) const LOOPBACK_MTU: u32 = 65_536;
/// Transmit queue of the devices: enough for the packet thread to be late by some milliseconds
/// at a gigabit without the kernel dropping what the profile would not.
pub(super) const TX_QUEUE_PACKETS: u32 = 5000;
/// Receive buffer asked for a packet socket, against bursts of whole windows.
const PORT_BUFFER_BYTES: usize = 16 << 20;
/// The prefix length of a leg's far end as a route.
pub(super) const PREFIX: u8 = 32;
/// Bytes that an Ethernet device counts for each packet beyond the IP packet.
pub(super) const ETHERNET_HEADER_BYTES: u64 = 14;

/// The address of a node at the devices of all its legs.
pub(crate) fn address(node: Node) -> Ipv4Addr {
    let host = match node {
        Node::Edge(0) => 1,
        Node::Cloud => 2,
        Node::Edge(number) => 2 + number.min(usize::from(u8::MAX) - 3) as u8,
    };
    Ipv4Addr::new(10, 77, 0, host)
}

/// A leg as one of its ends sees it.
#[derive(Clone, Debug)]
pub(super) struct Side {
    /// The device's name.
    pub(super) device: String,
    /// The address here.
    pub(super) local: Ipv4Addr,
    /// The address at the other end.
    pub(super) peer: Ipv4Addr,
}

/// A TUN device's packet end, without a device yet. Opening is what needs permission; the
/// namespace of the opening thread is the one that the device will be in.
pub(super) fn open_tun() -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
}

/// What to do where TUN devices are needed and cannot be had.
pub(super) fn no_tun(error: &io::Error) -> Fault {
    let advice = match error.kind() {
        io::ErrorKind::PermissionDenied => "run as root, or let this user open it",
        _ => "load the tun module, or give the container the device",
    };
    Fault::Environment(format!(
        "/dev/net/tun cannot be opened ({error}): {advice}, or use veth devices in place of TUN"
    ))
}

/// Makes a leg's TUN device and brings it up.
pub(super) fn create_tun(side: &Side) -> Result<Port, Fault> {
    let tun = open_tun().map_err(|error| no_tun(&error))?;
    sys::attach_tun(tun.as_fd(), &side.device).map_err(Fault::environment("make a TUN device"))?;
    configure(side)?;
    Ok(Port::tun(tun))
}

/// Makes a leg's device in the calling thread's namespace as one end of a veth pair, and opens a
/// packet socket on the other end, which goes to `hub`.
pub(super) fn create_port(side: &Side, hub: &Namespace, number: usize) -> Result<Port, Fault> {
    let name = format!("port{number}");
    create_veth(side, &name, hub)?;
    configure(side)?;
    netlink::add_neighbour(index(&side.device)?, side.peer, mac(side.peer))
        .map_err(Fault::failed("add the other end as a neighbour"))?;
    let (node, own) = (mac(side.local), mac(side.peer));
    hub.run(|| {
        let port = index(&name)?;
        netlink::bring_up(port, Some((MTU, TX_QUEUE_PACKETS)))
            .map_err(Fault::failed("bring the device up"))?;
        let socket =
            sys::packet_socket(port).map_err(Fault::environment("open a packet socket"))?;
        if setsockopt(&socket, sockopt::RcvBufForce, &PORT_BUFFER_BYTES).is_err() {
            // What the kernel grants instead bounds the bursts that a leg can take.
            let _ = setsockopt(&socket, sockopt::RcvBuf, &PORT_BUFFER_BYTES);
        }
        Ok(Port::socket(socket, node, own))
    })
}

/// Makes a leg's veth pair: one end here, the other, under the name `there`, in
/// `peer_namespace`. Whatever is at the other end answers to the far node's hardware address.
pub(super) fn create_veth(
    side: &Side,
    there: &str,
    peer_namespace: &Namespace,
) -> Result<(), Fault> {
    let end = VethEnd {
        name: &side.device,
        mac: mac(side.local),
    };
    let peer = VethEnd {
        name: there,
        mac: mac(side.peer),
    };
    netlink::create_veth(&end, &peer, peer_namespace.file().as_raw_fd()).map_err(
        Fault::environment("make a veth pair (is the veth module there?)"),
    )
}

/// Brings one end of the veth pair up, with segmentation off, so that packets are counted as they
/// would be on a wire, and with the other end as a fixed neighbour.
pub(super) fn configure_veth(side: &Side) -> Result<(), Fault> {
    switch_offloads_off(&side.device)?;
    configure(side)?;
    netlink::add_neighbour(index(&side.device)?, side.peer, mac(side.peer))
        .map_err(Fault::failed("add the other end as a neighbour"))
}

/// Brings a router's device towards a node up, with segmentation off, and tells the router that
/// the node's address is behind it. Returns the device's index.
pub(super) fn configure_router_veth(device: &str, side: &Side) -> Result<u32, Fault> {
    switch_offloads_off(device)?;
    let index = index(device)?;
    netlink::bring_up(index, Some((MTU, TX_QUEUE_PACKETS)))
        .map_err(Fault::failed("bring the router's device up"))?;
    netlink::add_host_route(index, side.local)
        .map_err(Fault::failed("add the router's route to a node"))?;
    netlink::add_neighbour(index, side.local, mac(side.local))
        .map_err(Fault::failed("add a node as the router's neighbour"))?;
    Ok(index)
}

/// Makes a device pass packets as they would be on a wire: none larger than its MTU.
fn switch_offloads_off(device: &str) -> Result<(), Fault> {
    const ETHTOOL_STSO: u32 = 0x1f;
    const ETHTOOL_SGSO: u32 = 0x24;
    const ETHTOOL_SGRO: u32 = 0x2c;
    let socket = any_socket()?;
    for (command, offload) in [
        (ETHTOOL_STSO, "TSO"),
        (ETHTOOL_SGSO, "GSO"),
        (ETHTOOL_SGRO, "GRO"),
    ] {
        sys::ethtool_set(&socket, device, command, 0).map_err(Fault::failed(format!(
            "switch {offload} off on the veth device"
        )))?;
    }
    Ok(())
}

/// Brings the namespace's loopback up: what runs there may expect it.
pub(super) fn loopback_up() -> Result<(), Fault> {
    let index = if_nametoindex("lo").map_err(Fault::failed("find the loopback device"))?;
    netlink::bring_up(index, None).map_err(Fault::failed("bring the loopback device up"))
}

/// Gives a device its sizes, its addresses and the flag that makes it work.
fn configure(side: &Side) -> Result<(), Fault> {
    let index = index(&side.device)?;
    netlink::add_address(index, side.local, side.peer, PREFIX)
        .map_err(Fault::failed("give the device its address"))?;
    netlink::bring_up(index, Some((MTU, TX_QUEUE_PACKETS)))
        .map_err(Fault::failed("bring the device up"))
}

/// A device's index.
pub(super) fn index(device: &str) -> Result<u32, Fault> {
    if_nametoindex(device).map_err(Fault::failed("find the link's device"))
}

/// What a device counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct DeviceCounters {
    pub(super) rx_bytes: u64,
    pub(super) rx_packets: u64,
    pub(super) tx_bytes: u64,
    pub(super) tx_packets: u64,
    pub(super) tx_dropped: u64,
}

impl DeviceCounters {
    /// Reads the counters of a leg's device.
    pub(super) fn read(device: &str) -> Result<Self, Fault> {
        // `/proc/net` would be the namespace of the process, not of the thread.
        let text = std::fs::read_to_string("/proc/thread-self/net/dev")
            .map_err(Fault::failed("read the device counters"))?;
        Self::parse(&text, device)
            .ok_or_else(|| Fault::Failed(format!("the kernel lists no counters of {device}")))
    }

    fn parse(text: &str, device: &str) -> Option<Self> {
        let line = text
            .lines()
            .find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':'))?;
        let values: Vec<u64> = line
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()
            .ok()?;
        Some(Self {
            rx_bytes: *values.first()?,
            rx_packets: *values.get(1)?,
            tx_bytes: *values.get(8)?,
            tx_packets: *values.get(9)?,
            tx_dropped: *values.get(11)?,
        })
    }

    /// Received IP bytes of an Ethernet device.
    pub(super) fn ip_rx_bytes(&self) -> u64 {
        self.rx_bytes
            .saturating_sub(self.rx_packets * ETHERNET_HEADER_BYTES)
    }

    /// Sent IP bytes of an Ethernet device.
    pub(super) fn ip_tx_bytes(&self) -> u64 {
        self.tx_bytes
            .saturating_sub(self.tx_packets * ETHERNET_HEADER_BYTES)
    }
}

/// A locally administered address made of the IP address.
fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x00, a, b, c, d]
}

/// Any socket of this namespace, for ioctls on devices.
fn any_socket() -> Result<UdpSocket, Fault> {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(Fault::failed("open a socket"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_counters_are_found_by_column() {
        let text = "Inter-|   Receive                            |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes packets\n    \
            lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n\
            link0: 2014 1 0 0 0 0 0 0 3028 2 0 7 0 0 0 0\n";
        let counters = DeviceCounters::parse(text, "link0").expect("listed");
        assert_eq!((counters.rx_packets, counters.ip_rx_bytes()), (1, 2000));
        assert_eq!((counters.tx_packets, counters.ip_tx_bytes()), (2, 3000));
        assert_eq!(counters.tx_dropped, 7);
        assert_eq!(DeviceCounters::parse(text, "link1"), None);
    }
}
