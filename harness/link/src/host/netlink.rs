//! The few rtnetlink messages that the link needs, built by hand.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const NLA_F_NESTED: u16 = 1 << 15;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;
const RTM_NEWQDISC: u16 = 36;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_TXQLEN: u16 = 13;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTAX_CC_ALGO: u16 = 16;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;

const HEADER_BYTES: usize = 16;

/// A request in the making: header, fixed part, attributes.
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn new(kind: u16, flags: u16, fixed: &[&[u8]]) -> Self {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        for part in fixed {
            bytes.extend_from_slice(part);
        }
        let mut message = Self { bytes };
        message.pad();
        message
    }

    /// Adds an attribute.
    fn attribute(mut self, kind: u16, payload: &[u8]) -> Self {
        self.bytes
            .extend_from_slice(&(4 + payload.len() as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(payload);
        self.pad();
        self
    }

    /// Adds a string with its terminating zero.
    fn string(self, kind: u16, text: &str) -> Self {
        self.attribute(kind, &[text.as_bytes(), &[0]].concat())
    }

    /// Adds an attribute that contains what `fill` adds.
    fn nested(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        let mut message = fill(self);
        let length = (message.bytes.len() - start) as u16;
        message.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        message.bytes[start + 2..start + 4].copy_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        message
    }

    /// Adds bytes that are no attribute, inside a nested one.
    fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes
    }

    /// Sends the request in the calling thread's namespace and waits for the kernel's answer.
    fn send(self) -> io::Result<()> {
        let socket: OwnedFd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(5))?;
        send(socket.as_raw_fd(), &self.finish(), MsgFlags::empty())?;
        let mut answer = [0_u8; 4096];
        let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, "malformed netlink answer");
        let answer = &answer[..length];
        let kind = answer.get(4..6).ok_or_else(malformed)?;
        let code = answer
            .get(HEADER_BYTES..HEADER_BYTES + 4)
            .ok_or_else(malformed)?;
        if kind != NLMSG_ERROR.to_ne_bytes() {
            return Err(malformed());
        }
        let code = i32::from_ne_bytes([code[0], code[1], code[2], code[3]]);
        if code == 0 {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(-code))
        }
    }
}

/// `struct ifinfomsg`: family, padding, type, index, flags, mask of flags to change.
fn link_message(index: u32, flags: u32) -> [u8; 16] {
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&flags.to_ne_bytes());
    fixed
}

/// One end of a veth pair.
pub(super) struct VethEnd<'a> {
    pub(super) name: &'a str,
    pub(super) mac: [u8; 6],
}

fn veth(end: &VethEnd<'_>, peer: &VethEnd<'_>, peer_namespace: RawFd) -> Message {
    Message::new(
        RTM_NEWLINK,
        NLM_F_CREATE | NLM_F_EXCL,
        &[&link_message(0, 0)],
    )
    .string(IFLA_IFNAME, end.name)
    .attribute(IFLA_ADDRESS, &end.mac)
    .nested(IFLA_LINKINFO, |info| {
        info.string(IFLA_INFO_KIND, "veth")
            .nested(IFLA_INFO_DATA, |data| {
                data.nested(VETH_INFO_PEER, |message| {
                    message
                        .raw(&link_message(0, 0))
                        .string(IFLA_IFNAME, peer.name)
                        .attribute(IFLA_ADDRESS, &peer.mac)
                        .attribute(IFLA_NET_NS_FD, &peer_namespace.to_ne_bytes())
                })
            })
    })
}

/// Makes a veth pair with one end in the calling thread's namespace and the other in
/// `peer_namespace`.
pub(super) fn create_veth(
    end: &VethEnd<'_>,
    peer: &VethEnd<'_>,
    peer_namespace: RawFd,
) -> io::Result<()> {
    veth(end, peer, peer_namespace).send()
}

/// Brings a device up, with an MTU and a transmit queue length where given.
pub(super) fn bring_up(index: u32, sizes: Option<(u32, u32)>) -> io::Result<()> {
    if let Some((mtu, tx_queue)) = sizes {
        Message::new(RTM_NEWLINK, 0, &[&link_message(index, 0)])
            .attribute(IFLA_MTU, &mtu.to_ne_bytes())
            .attribute(IFLA_TXQLEN, &tx_queue.to_ne_bytes())
            .send()?;
    }
    Message::new(RTM_NEWLINK, 0, &[&link_message(index, libc::IFF_UP as u32)]).send()
}

/// Gives a device an address, and the network that is reached through it: `prefix` bits of `peer`.
pub(super) fn add_address(
    index: u32,
    address: Ipv4Addr,
    peer: Ipv4Addr,
    prefix: u8,
) -> io::Result<()> {
    // struct ifaddrmsg: family, prefix length, flags, scope, index.
    let fixed = [libc::AF_INET as u8, prefix, 0, 0];
    Message::new(
        RTM_NEWADDR,
        NLM_F_CREATE | NLM_F_EXCL,
        &[&fixed, &index.to_ne_bytes()],
    )
    .attribute(IFA_LOCAL, &address.octets())
    .attribute(IFA_ADDRESS, &peer.octets())
    .send()
}

/// Tells a device for good where a neighbour is, so that no ARP frame crosses the link.
pub(super) fn add_neighbour(index: u32, address: Ipv4Addr, mac: [u8; 6]) -> io::Result<()> {
    const NUD_PERMANENT: u16 = 0x80;
    // struct ndmsg: family, padding, index, state, flags, type.
    let mut fixed = [0; 12];
    fixed[0] = libc::AF_INET as u8;
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
    Message::new(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &[&fixed])
        .attribute(NDA_DST, &address.octets())
        .attribute(NDA_LLADDR, &mac)
        .send()
}

/// Replaces the route to a device's own network or peer by one that names the congestion control.
pub(super) fn route_congestion_control(
    index: u32,
    network: Ipv4Addr,
    prefix: u8,
    source: Ipv4Addr,
    congestion_control: &str,
) -> io::Result<()> {
    const RT_TABLE_MAIN: u8 = 254;
    const RTPROT_KERNEL: u8 = 2;
    const RT_SCOPE_LINK: u8 = 253;
    const RTN_UNICAST: u8 = 1;
    // struct rtmsg: family, destination and source prefix lengths, tos, table, protocol, scope,
    // type, flags.
    let family = libc::AF_INET as u8;
    let fixed = [
        family,
        prefix,
        0,
        0,
        RT_TABLE_MAIN,
        RTPROT_KERNEL,
        RT_SCOPE_LINK,
        RTN_UNICAST,
        0,
        0,
        0,
        0,
    ];
    Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &[&fixed])
        .attribute(RTA_DST, &network.octets())
        .attribute(RTA_OIF, &index.to_ne_bytes())
        .attribute(RTA_PREFSRC, &source.octets())
        .nested(RTA_METRICS, |metrics| {
            metrics.string(RTAX_CC_ALGO, congestion_control)
        })
        .send()
}

/// Tries to put a netem discipline on a device: ENOENT says that the kernel has none.
pub(super) fn try_netem(index: u32) -> io::Result<()> {
    const TC_H_ROOT: u32 = 0xffff_ffff;
    // struct tcmsg: family and padding, index, handle, parent, info.
    let mut fixed = [0; 20];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[12..16].copy_from_slice(&TC_H_ROOT.to_ne_bytes());
    // struct tc_netem_qopt: latency, limit, loss, gap, duplicate, jitter.
    let mut options = [0; 24];
    options[4..8].copy_from_slice(&1000_u32.to_ne_bytes());
    Message::new(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &[&fixed])
        .string(TCA_KIND, "netem")
        .attribute(TCA_OPTIONS, &options)
        .send()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn attributes_are_padded_and_nested_lengths_add_up() {
        let bytes = Message::new(RTM_NEWLINK, 0, &[&[7; 4]])
            .string(IFLA_IFNAME, "ab")
            .nested(IFLA_LINKINFO, |info| info.string(IFLA_INFO_KIND, "veth"))
            .finish();
        #[rustfmt::skip]
        assert_eq!(bytes, [
            44, 0, 0, 0, 16, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            7, 7, 7, 7,
            7, 0, 3, 0, b'a', b'b', 0, 0,
            16, 0, 18, 0x80,
            9, 0, 1, 0, b'v', b'e', b't', b'h', 0, 0, 0, 0,
        ]);
    }

    #[test]
    fn an_impossible_request_is_answered_with_its_error() {
        // No device has this index, in whatever namespace and with whatever rights.
        let error = bring_up(u32::MAX >> 1, None).expect_err("no such device");
        let code = error.raw_os_error();
        assert!(
            code == Some(libc::ENODEV) || code == Some(libc::EPERM),
            "{error}"
        );
    }
}
