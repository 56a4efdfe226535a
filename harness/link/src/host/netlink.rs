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
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLA_F_NESTED: u16 = 1 << 15;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;
const RTM_NEWQDISC: u16 = 36;
const RTM_GETQDISC: u16 = 38;

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
const TCA_STATS2: u16 = 7;
const TCA_STATS_QUEUE: u16 = 3;
/// The parent of a device's root discipline.
const TC_H_ROOT: u32 = 0xffff_ffff;

const HEADER_BYTES: usize = 16;
/// Bytes of `struct tcmsg`.
const TRAFFIC_MESSAGE_BYTES: usize = 20;
/// Bytes of one read of a dump: the kernel packs at most 32 KiB into one.
const DUMP_BYTES: usize = 64 << 10;

/// A request in the making: header, fixed part, attributes. Or, without a header, what one
/// attribute of a request will contain.
pub(super) struct Message {
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

    /// The content of an attribute: a fixed part, to which attributes may be added.
    pub(super) fn content(fixed: &[u8]) -> Self {
        Self { bytes: Vec::new() }.raw(fixed)
    }

    /// The bytes of what [`Message::content`] began.
    pub(super) fn into_content(self) -> Vec<u8> {
        self.bytes
    }

    /// Adds an attribute.
    pub(super) fn attribute(mut self, kind: u16, payload: &[u8]) -> Self {
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
    pub(super) fn nested(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
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
        let socket = self.post()?;
        let mut answer = [0_u8; 4096];
        let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        match messages(&answer[..length]).next() {
            Some((NLMSG_ERROR, payload)) => acknowledged(payload),
            _ => Err(malformed()),
        }
    }

    /// Sends a request for a list in the calling thread's namespace and gives each message of
    /// the kernel's answer to `each`, as its kind and its payload.
    fn dump(self, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let socket = self.post()?;
        let mut answer = vec![0_u8; DUMP_BYTES];
        loop {
            let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
            if length == 0 {
                return Err(malformed());
            }
            for (kind, payload) in messages(&answer[..length]) {
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return acknowledged(payload),
                    _ => each(kind, payload),
                }
            }
        }
    }

    /// Sends the request on a socket of its own, from which the answer can be read.
    fn post(self) -> io::Result<OwnedFd> {
        let socket: OwnedFd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(5))?;
        send(socket.as_raw_fd(), &self.finish(), MsgFlags::empty())?;
        Ok(socket)
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed netlink answer")
}

/// The verdict in an error message, which is also the acknowledgement.
fn acknowledged(payload: &[u8]) -> io::Result<()> {
    match number(payload, 0).ok_or_else(malformed)?.cast_signed() {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
    }
}

/// The messages in what was read from a socket, as kind and payload, up to the first that does
/// not fit.
fn messages(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = number(rest, 0)? as usize;
        let kind = half(rest, 4)?;
        let payload = rest.get(HEADER_BYTES..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// Attributes one after the other, as kind and payload, up to the first that does not fit.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(half(rest, 0)?);
        let kind = half(rest, 2)? & !NLA_F_NESTED;
        let payload = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// The payload of the first attribute of that kind.
fn find_attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(kind, payload)| (kind == wanted).then_some(payload))
}

/// The 32-bit number at an offset.
fn number(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

/// The 16-bit number at an offset.
fn half(bytes: &[u8], offset: usize) -> Option<u16> {
    let bytes = bytes.get(offset..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*bytes))
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

/// `struct rtmsg` of a route in the main table to what a device reaches by itself: family,
/// destination and source prefix lengths, tos, table, protocol, scope, type, flags.
fn link_route(prefix: u8, protocol: u8) -> [u8; 12] {
    const RT_TABLE_MAIN: u8 = 254;
    const RT_SCOPE_LINK: u8 = 253;
    const RTN_UNICAST: u8 = 1;
    let family = libc::AF_INET as u8;
    let [table, scope, kind] = [RT_TABLE_MAIN, RT_SCOPE_LINK, RTN_UNICAST];
    [
        family, prefix, 0, 0, table, protocol, scope, kind, 0, 0, 0, 0,
    ]
}

/// Adds the route to one address behind a device.
pub(super) fn add_host_route(index: u32, address: Ipv4Addr) -> io::Result<()> {
    const RTPROT_STATIC: u8 = 4;
    let fixed = link_route(32, RTPROT_STATIC);
    Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &[&fixed])
        .attribute(RTA_DST, &address.octets())
        .attribute(RTA_OIF, &index.to_ne_bytes())
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
    const RTPROT_KERNEL: u8 = 2;
    let fixed = link_route(prefix, RTPROT_KERNEL);
    Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &[&fixed])
        .attribute(RTA_DST, &network.octets())
        .attribute(RTA_OIF, &index.to_ne_bytes())
        .attribute(RTA_PREFSRC, &source.octets())
        .nested(RTA_METRICS, |metrics| {
            metrics.string(RTAX_CC_ALGO, congestion_control)
        })
        .send()
}

/// `struct tcmsg`: family and padding, index, handle, parent, info.
fn traffic_message(index: u32, handle: u32, parent: u32) -> [u8; TRAFFIC_MESSAGE_BYTES] {
    let mut fixed = [0; TRAFFIC_MESSAGE_BYTES];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&handle.to_ne_bytes());
    fixed[12..16].copy_from_slice(&parent.to_ne_bytes());
    fixed
}

fn root_qdisc(index: u32, handle: u32, kind: &str, options: &[u8]) -> Message {
    Message::new(
        RTM_NEWQDISC,
        NLM_F_CREATE | NLM_F_REPLACE,
        &[&traffic_message(index, handle, TC_H_ROOT)],
    )
    .string(TCA_KIND, kind)
    .attribute(TCA_OPTIONS, options)
}

/// Puts a discipline at a device's root, in place of the one there. With another handle than
/// that one's, it is a new one in which nothing of the old one is left. ENOENT says that the
/// kernel has no discipline of that kind.
pub(super) fn replace_root_qdisc(
    index: u32,
    handle: u32,
    kind: &str,
    options: &[u8],
) -> io::Result<()> {
    root_qdisc(index, handle, kind, options).send()
}

/// What the kernel says about a discipline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct QdiscState {
    /// Packets in it.
    pub(super) backlog_packets: u32,
    /// Packets that it dropped, for whatever reason.
    pub(super) dropped_packets: u32,
    /// Its options, as it states them itself.
    pub(super) options: Vec<u8>,
}

impl QdiscState {
    /// Reads a message about a discipline, if it is the one at that device's root.
    fn parse(message: &[u8], index: u32, handle: u32) -> Option<Self> {
        let about = (
            number(message, 4)?,
            number(message, 8)?,
            number(message, 12)?,
        );
        if about != (index, handle, TC_H_ROOT) {
            return None;
        }
        let found = message.get(TRAFFIC_MESSAGE_BYTES..)?;
        let counted = find_attribute(found, TCA_STATS2)?;
        // struct gnet_stats_queue: packets, bytes, drops, requeues, overlimits.
        let queue = find_attribute(counted, TCA_STATS_QUEUE)?;
        Some(Self {
            backlog_packets: number(queue, 0)?,
            dropped_packets: number(queue, 8)?,
            options: find_attribute(found, TCA_OPTIONS)
                .unwrap_or_default()
                .to_vec(),
        })
    }
}

/// The state of the discipline with that handle at a device's root; `None` if it is not there.
pub(super) fn root_qdisc_state(index: u32, handle: u32) -> io::Result<Option<QdiscState>> {
    let mut state = None;
    // A list of all of the namespace's disciplines: kernels differ in whether they answer a
    // question about a single one.
    Message::new(RTM_GETQDISC, NLM_F_DUMP, &[&traffic_message(index, 0, 0)]).dump(
        |kind, payload| {
            if kind == RTM_NEWQDISC
                && let Some(found) = QdiscState::parse(payload, index, handle)
            {
                state = Some(found);
            }
        },
    )?;
    Ok(state)
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

    #[test]
    #[cfg(target_endian = "little")]
    fn a_discipline_is_asked_for_at_the_root() {
        let bytes = root_qdisc(3, 0x2_0000, "netem", &[1, 2, 3, 4]).finish();
        #[rustfmt::skip]
        assert_eq!(bytes, [
            56, 0, 0, 0, 36, 0, 5, 5, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 2, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0,
            10, 0, 1, 0, b'n', b'e', b't', b'e', b'm', 0, 0, 0,
            8, 0, 2, 0, 1, 2, 3, 4,
        ]);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn an_acknowledgement_and_a_list_are_told_apart_from_rubbish() {
        let refused = [
            20, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff,
        ];
        let (kind, payload) = messages(&refused).next().expect("a message");
        assert_eq!(kind, NLMSG_ERROR);
        let error = acknowledged(payload).expect_err("it is a refusal");
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        assert!(acknowledged(&[0; 4]).is_ok() && acknowledged(&[0; 3]).is_err());
        // Lengths that lead out of the message, or nowhere.
        assert_eq!(messages(&[200, 0, 0, 0, 2, 0, 0, 0]).count(), 0);
        assert_eq!(messages(&[0; 64]).count(), 0);
        assert_eq!(attributes(&[200, 0, 1, 0]).count(), 0);
        assert_eq!(attributes(&[0; 64]).count(), 0);
        assert_eq!(QdiscState::parse(&[0; 16], 0, 0), None);
    }

    #[test]
    fn the_state_of_the_right_discipline_is_read() {
        let queue: Vec<u8> = [7_u32, 700, 3, 0, 0]
            .iter()
            .flat_map(|value| value.to_ne_bytes())
            .collect();
        let message = Message::content(&traffic_message(5, 0x1_0000, TC_H_ROOT))
            .string(TCA_KIND, "netem")
            .attribute(TCA_OPTIONS, &[9; 4])
            .nested(TCA_STATS2, |stats| {
                stats
                    .attribute(1, &[0; 12])
                    .attribute(TCA_STATS_QUEUE, &queue)
            })
            .into_content();
        let state = QdiscState {
            backlog_packets: 7,
            dropped_packets: 3,
            options: vec![9; 4],
        };
        assert_eq!(QdiscState::parse(&message, 5, 0x1_0000), Some(state));
        assert_eq!(QdiscState::parse(&message, 6, 0x1_0000), None);
        assert_eq!(QdiscState::parse(&message, 5, 0x2_0000), None);
    }

    #[test]
    fn the_loopback_device_is_asked_for_its_disciplines() {
        // Listing takes no rights; no discipline has this handle.
        let state = root_qdisc_state(1, 0xfff0_0000).expect("the kernel lists its disciplines");
        assert_eq!(state, None);
    }
}
