//! Segmentation offload at the devices, undone and redone around the emulated link.
//!
//! A kernel hands TCP data over in packets of up to 64 KiB if the device says that it can cut
//! them, and takes such packets back. That saves most of the system calls of a fast link. What
//! crosses the link must be packets of the path's MTU all the same, so [`split`] cuts what comes
//! from a device into the segments that a network card would have put on the wire, each of which
//! is impaired by itself, and [`Train`] joins those that leave at the same moment and are
//! neighbours in their connection, as a card that coalesces what it receives would.
//!
//! Where a device is an Ethernet one, the Ethernet header lies between the two headers; it never
//! crosses the link.
//!
//! Formats: the 10-byte `virtio_net_hdr` in front of every packet, IPv4 (RFC 791), TCP (RFC 9293),
//! the internet checksum (RFC 1071).

use std::io::IoSlice;

use crate::core::Packet;

/// Bytes of the header that the kernel puts in front of every packet.
pub(super) const HEADER_BYTES: usize = 10;
/// The greatest packet that a device hands over, its header included.
pub(super) const MAX_READ_BYTES: usize = HEADER_BYTES + ETHERNET_BYTES + 65_536;
/// Bytes of an Ethernet header.
pub(super) const ETHERNET_BYTES: usize = 14;
/// Most packets that are joined into one: what 64 KiB hold of common segments, and well below
/// the number of parts that one write may have.
const MAX_TRAIN: usize = 64;
/// The greatest length of an IPv4 packet.
const MAX_IP_BYTES: usize = 65_535;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP_V4: u8 = 1;

const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
/// Where a checksum lies behind the start of its header.
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

/// What a device said about a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Header {
    flags: u8,
    gso_type: u8,
    header_bytes: u16,
    gso_bytes: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

impl Header {
    fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        let short = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            header_bytes: short(2),
            gso_bytes: short(4),
            checksum_start: short(6),
            checksum_offset: short(8),
        }
    }

    fn bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        for (at, value) in [
            (2, self.header_bytes),
            (4, self.gso_bytes),
            (6, self.checksum_start),
            (8, self.checksum_offset),
        ] {
            bytes[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        }
        bytes
    }
}

/// The lengths of an IPv4 packet's headers, if it carries TCP whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tcp {
    ip_bytes: usize,
    headers: usize,
}

impl Tcp {
    fn parse(packet: &[u8]) -> Option<Self> {
        let ip_bytes = ipv4_header(packet)?;
        let fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff;
        if packet[9] != PROTOCOL_TCP || fragment != 0 {
            return None;
        }
        let offset = packet.get(ip_bytes + 12)? >> 4;
        let headers = ip_bytes + usize::from(offset) * 4;
        (offset >= 5 && headers <= packet.len()).then_some(Self { ip_bytes, headers })
    }
}

/// Bytes of the IPv4 header of a packet that is one.
fn ipv4_header(packet: &[u8]) -> Option<usize> {
    let first = *packet.first()?;
    let bytes = usize::from(first & 15) * 4;
    (first >> 4 == 4 && bytes >= 20 && bytes <= packet.len()).then_some(bytes)
}

/// Cuts what a device handed over, headers first, into packets as they would be on a wire. `link`
/// is the length of the header of the device's own layer.
///
/// `packet` is called for each of them with a function that fills the buffer it is given and
/// returns the length. With `complete` the packets bear their whole checksums, which the sender
/// has left to the device: for a link that corrupts, so that the receiver can notice.
///
/// Returns false, having passed nothing on, for what is no packet.
pub(super) fn split(
    read: &[u8],
    link: usize,
    complete: bool,
    mut packet: impl FnMut(&mut dyn FnMut(&mut Packet)),
) -> bool {
    let Some((header, rest)) = read.split_first_chunk() else {
        return false;
    };
    let Some(whole) = rest.get(link..) else {
        return false;
    };
    let header = Header::parse(header);
    let checksum_start = usize::from(header.checksum_start).saturating_sub(link);
    let pending = header.flags & NEEDS_CHECKSUM != 0;
    let gso_bytes = usize::from(header.gso_bytes);
    let tcp = (header.gso_type == GSO_TCP_V4 && gso_bytes > 0)
        .then(|| Tcp::parse(whole))
        .flatten();
    let Some(tcp) = tcp else {
        if header.gso_type != GSO_NONE || whole.is_empty() {
            return false;
        }
        packet(&mut |packet| {
            fill(packet, &[whole]);
            packet.checksum_pending = pending && checksum_place(whole).is_some();
            if pending && (complete || !packet.checksum_pending) {
                finish_at(
                    packet.bytes_mut(),
                    checksum_start,
                    header.checksum_offset.into(),
                );
                packet.checksum_pending = false;
            }
        });
        return true;
    };
    let (headers, payload) = whole.split_at(tcp.headers);
    let last = payload.len().div_ceil(gso_bytes).saturating_sub(1);
    for index in 0..=last {
        let from = index * gso_bytes;
        let part = &payload[from..payload.len().min(from + gso_bytes)];
        packet(&mut |packet| {
            fill(packet, &[headers, part]);
            let bytes = packet.bytes_mut();
            let id = u16::from_be_bytes([bytes[4], bytes[5]]).wrapping_add(index as u16);
            bytes[4..6].copy_from_slice(&id.to_be_bytes());
            let tcp_header = &mut bytes[tcp.ip_bytes..];
            let sequence = sequence(tcp_header).wrapping_add(from as u32);
            tcp_header[4..8].copy_from_slice(&sequence.to_be_bytes());
            if index < last {
                tcp_header[13] &= !(FIN | PSH);
            }
            if index > 0 {
                tcp_header[13] &= !CWR;
            }
            prepare_checksums(bytes, tcp.ip_bytes);
            packet.checksum_pending = true;
            if complete {
                finish(packet);
            }
        });
    }
    true
}

/// Fills a packet with parts.
fn fill(packet: &mut Packet, parts: &[&[u8]]) {
    let mut len = 0;
    for part in parts {
        // What the path's MTU bounds fits; anything longer is cut, as `set_len` would.
        let room = &mut packet.buffer_mut()[len..];
        let part = &part[..part.len().min(room.len())];
        room[..part.len()].copy_from_slice(part);
        len += part.len();
    }
    packet.set_len(len);
}

fn sequence(tcp_header: &[u8]) -> u32 {
    u32::from_be_bytes([tcp_header[4], tcp_header[5], tcp_header[6], tcp_header[7]])
}

/// Where the checksum of a TCP or UDP packet begins to count and where it lies behind that.
fn checksum_place(packet: &[u8]) -> Option<(usize, usize)> {
    let ip_bytes = ipv4_header(packet)?;
    let offset = match packet[9] {
        PROTOCOL_TCP => TCP_CHECKSUM,
        PROTOCOL_UDP => UDP_CHECKSUM,
        _ => return None,
    };
    (ip_bytes + offset + 2 <= packet.len()).then_some((ip_bytes, offset))
}

/// States the packet's length, and gives it the IP header's checksum and the part of TCP's that
/// the kernel expects before it, or a device, sums up the rest.
fn prepare_checksums(packet: &mut [u8], ip_bytes: usize) {
    let len = packet.len() as u16;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet[10..12].fill(0);
    let ip_sum = !fold(sum(&packet[..ip_bytes]));
    packet[10..12].copy_from_slice(&ip_sum.to_be_bytes());
    let tcp_bytes = packet.len() - ip_bytes;
    let pseudo = sum(&packet[12..20]) + u64::from(PROTOCOL_TCP) + tcp_bytes as u64;
    let at = ip_bytes + TCP_CHECKSUM;
    packet[at..at + 2].copy_from_slice(&fold(pseudo).to_be_bytes());
}

/// Sums up the rest of a pending checksum.
pub(super) fn finish(packet: &mut Packet) {
    if let Some((start, offset)) = checksum_place(packet.bytes()) {
        finish_at(packet.bytes_mut(), start, offset);
    }
    packet.checksum_pending = false;
}

fn finish_at(packet: &mut [u8], start: usize, offset: usize) {
    let at = start + offset;
    if at + 2 > packet.len() {
        return;
    }
    let checksum = match !fold(sum(&packet[start..])) {
        // To UDP, zero means that there is none.
        0 if offset == UDP_CHECKSUM => 0xffff,
        checksum => checksum,
    };
    packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// The sum of big-endian 16-bit words, an odd last byte padded with zero.
fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(4);
    let mut rest = [0; 4];
    rest[..words.remainder().len()].copy_from_slice(words.remainder());
    // Two words at once: the carry of the lower goes where folding puts it anyway.
    let all = words.map(|word| u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]])));
    all.sum::<u64>() + u64::from(u32::from_be_bytes(rest))
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// Packets that leave at the same moment and are written at once.
#[derive(Default)]
pub(super) struct Train {
    packets: Vec<Packet>,
    /// Of the first packet, if others may join it.
    tcp: Option<Tcp>,
    /// Payload of every packet but the last.
    payload: usize,
    bytes: usize,
    /// The sequence number that comes next.
    next: u32,
    /// Whether a packet came that ends what may be joined.
    closed: bool,
}

impl Train {
    pub(super) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Adds a packet, or gives it back where it does not belong to those before it.
    pub(super) fn add(&mut self, packet: Packet) -> Result<(), Packet> {
        let Some(first) = self.packets.first() else {
            self.begin(packet);
            return Ok(());
        };
        let Some(tcp) = self.tcp.filter(|_| !self.closed) else {
            return Err(packet);
        };
        let payload = packet.len().saturating_sub(tcp.headers);
        let fits = packet.checksum_pending
            && payload > 0
            && payload <= self.payload
            && self.bytes + payload <= MAX_IP_BYTES
            && self.packets.len() < MAX_TRAIN
            && continues(first.bytes(), packet.bytes(), tcp)
            && sequence(&packet.bytes()[tcp.ip_bytes..]) == self.next;
        if !fits {
            return Err(packet);
        }
        self.bytes += payload;
        self.next = self.next.wrapping_add(payload as u32);
        self.closed = payload < self.payload || ends(packet.bytes(), tcp);
        self.packets.push(packet);
        Ok(())
    }

    fn begin(&mut self, packet: Packet) {
        let bytes = packet.bytes();
        self.tcp = Tcp::parse(bytes).filter(|tcp| {
            let flags = bytes[tcp.ip_bytes + 13];
            packet.checksum_pending
                && bytes.len() > tcp.headers
                && flags & !(FIN | PSH | CWR) == ACK
                && declared_len(bytes) == bytes.len()
        });
        self.bytes = packet.len();
        if let Some(tcp) = self.tcp {
            self.payload = packet.len() - tcp.headers;
            self.next = sequence(&bytes[tcp.ip_bytes..]).wrapping_add(self.payload as u32);
            self.closed = ends(bytes, tcp);
        }
        self.packets.push(packet);
    }

    /// Passes on what is to be written, headers first, and gives the packets back to a pool. `link`
    /// is the header of the device's own layer.
    pub(super) fn write<T>(
        &mut self,
        link: &[u8],
        write: impl FnOnce(&[IoSlice<'_>]) -> T,
        pool: impl FnMut(Packet),
    ) -> T {
        let result = match (self.packets.as_slice(), self.tcp) {
            ([first, .., last], Some(tcp)) => {
                let mut headers = [0; 120];
                let headers = &mut headers[..tcp.headers];
                headers.copy_from_slice(&first.bytes()[..tcp.headers]);
                headers[tcp.ip_bytes + 13] |= last.bytes()[tcp.ip_bytes + 13] & (FIN | PSH);
                join_checksums(headers, tcp.ip_bytes, self.bytes);
                let header = Header {
                    flags: NEEDS_CHECKSUM,
                    gso_type: GSO_TCP_V4,
                    header_bytes: (link.len() + tcp.headers) as u16,
                    gso_bytes: self.payload as u16,
                    checksum_start: (link.len() + tcp.ip_bytes) as u16,
                    checksum_offset: TCP_CHECKSUM as u16,
                }
                .bytes();
                let mut parts = [IoSlice::new(&[]); MAX_TRAIN + 3];
                parts[0] = IoSlice::new(&header);
                parts[1] = IoSlice::new(link);
                parts[2] = IoSlice::new(headers);
                for (part, packet) in parts[3..].iter_mut().zip(&self.packets) {
                    *part = IoSlice::new(&packet.bytes()[tcp.headers..]);
                }
                write(&parts[..self.packets.len() + 3])
            }
            (packets, _) => {
                let bytes = packets.first().map_or(&[][..], Packet::bytes);
                let place = packets
                    .first()
                    .filter(|packet| packet.checksum_pending)
                    .and_then(|_| checksum_place(bytes));
                let header = place.map_or(Header::default(), |(start, offset)| Header {
                    flags: NEEDS_CHECKSUM,
                    checksum_start: (link.len() + start) as u16,
                    checksum_offset: offset as u16,
                    ..Header::default()
                });
                write(&[
                    IoSlice::new(&header.bytes()),
                    IoSlice::new(link),
                    IoSlice::new(bytes),
                ])
            }
        };
        self.packets.drain(..).for_each(pool);
        self.tcp = None;
        self.closed = false;
        result
    }
}

/// The length that the IP header states.
fn declared_len(packet: &[u8]) -> usize {
    usize::from(u16::from_be_bytes([packet[2], packet[3]]))
}

/// Whether nothing may follow a packet within a train.
fn ends(packet: &[u8], tcp: Tcp) -> bool {
    packet[tcp.ip_bytes + 13] & (FIN | PSH) != 0
}

/// Whether two packets have equal headers but for what differs between neighbouring segments.
fn continues(first: &[u8], next: &[u8], tcp: Tcp) -> bool {
    let (Some(a), Some(b)) = (first.get(..tcp.headers), next.get(..tcp.headers)) else {
        return false;
    };
    let ip = tcp.ip_bytes;
    // Version, length of header and service; not length, identification; fragment bits, TTL and
    // protocol; not the checksum; addresses and options, ports; not the sequence number;
    // acknowledgement and offset; flags but for the last packet's; window; not the checksum;
    // urgent pointer and options.
    a[..2] == b[..2]
        && a[6..10] == b[6..10]
        && a[12..ip + 4] == b[12..ip + 4]
        && a[ip + 8..ip + 13] == b[ip + 8..ip + 13]
        && a[ip + 13] & !(FIN | PSH | CWR) == b[ip + 13] & !(FIN | PSH)
        && a[ip + 14..ip + 16] == b[ip + 14..ip + 16]
        && a[ip + 18..] == b[ip + 18..]
        && declared_len(next) == next.len()
}

/// As [`prepare_checksums`], for headers whose packet of `bytes` lies elsewhere.
fn join_checksums(headers: &mut [u8], ip_bytes: usize, bytes: usize) {
    headers[2..4].copy_from_slice(&(bytes as u16).to_be_bytes());
    headers[10..12].fill(0);
    let ip_sum = !fold(sum(&headers[..ip_bytes]));
    headers[10..12].copy_from_slice(&ip_sum.to_be_bytes());
    let pseudo = sum(&headers[12..20]) + u64::from(PROTOCOL_TCP) + (bytes - ip_bytes) as u64;
    let at = ip_bytes + TCP_CHECKSUM;
    headers[at..at + 2].copy_from_slice(&fold(pseudo).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A packet as a sender with offload hands it over: headers with options, partial checksum.
    fn handed_over(payload: &[u8], gso_bytes: u16, options: usize, flags: u8) -> Vec<u8> {
        let headers = 20 + 20 + options * 4;
        let mut packet = vec![0; headers];
        packet[0] = 0x45;
        packet[4..6].copy_from_slice(&0xfffe_u16.to_be_bytes());
        packet[6] = 0x40;
        packet[8..10].copy_from_slice(&[64, PROTOCOL_TCP]);
        packet[12..20].copy_from_slice(&[10, 77, 0, 1, 10, 77, 0, 2]);
        packet[20..24].copy_from_slice(&[0x9c, 0x40, 0x1f, 0x90]);
        packet[24..28].copy_from_slice(&0xffff_fff0_u32.to_be_bytes());
        packet[28..32].copy_from_slice(&7_u32.to_be_bytes());
        packet[32] = ((5 + options) as u8) << 4;
        packet[33] = flags;
        packet[34..36].copy_from_slice(&500_u16.to_be_bytes());
        packet[40..].fill(1);
        packet.extend_from_slice(payload);
        prepare_checksums(&mut packet, 20);
        let header = Header {
            flags: NEEDS_CHECKSUM,
            gso_type: if gso_bytes > 0 { GSO_TCP_V4 } else { GSO_NONE },
            header_bytes: headers as u16,
            gso_bytes,
            checksum_start: 20,
            checksum_offset: TCP_CHECKSUM as u16,
        };
        [&header.bytes()[..], &packet].concat()
    }

    fn segments(read: &[u8], complete: bool) -> Vec<Packet> {
        let mut packets = Vec::new();
        let whole = split(read, 0, complete, |fill| {
            let mut packet = Packet::with_capacity(2048);
            fill(&mut packet);
            packets.push(packet);
        });
        assert!(whole);
        packets
    }

    /// What a train writes, as one buffer.
    fn written(packets: impl IntoIterator<Item = Packet>) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        let mut train = Train::default();
        let mut flush = |train: &mut Train| {
            let parts = train.write(
                &[],
                |parts| parts.iter().flat_map(|part| part.to_vec()).collect(),
                |_| {},
            );
            all.push(parts);
        };
        for packet in packets {
            if let Err(packet) = train.add(packet) {
                flush(&mut train);
                assert!(train.add(packet).is_ok());
            }
        }
        if !train.is_empty() {
            flush(&mut train);
        }
        all
    }

    /// Zero if every checksum of a packet is right.
    fn residue(packet: &[u8]) -> (u16, u16) {
        let pseudo = sum(&packet[12..20]) + u64::from(packet[9]) + (packet.len() - 20) as u64;
        (
            !fold(sum(&packet[..20])),
            !fold(sum(&packet[20..]) + pseudo),
        )
    }

    #[test]
    fn segments_are_what_a_card_would_send() {
        let payload: Vec<u8> = (0..3500).map(|i| (i * 7 % 251) as u8).collect();
        let read = handed_over(&payload, 1448, 3, ACK | PSH | FIN | CWR);
        let packets = segments(&read, true);
        assert_eq!(packets.len(), 3);
        let mut together = Vec::new();
        for (index, packet) in packets.iter().enumerate() {
            let bytes = packet.bytes();
            assert_eq!(residue(bytes), (0, 0), "segment {index}");
            assert_eq!(declared_len(bytes), bytes.len());
            assert!(!packet.checksum_pending);
            let id = u16::from_be_bytes([bytes[4], bytes[5]]);
            assert_eq!(id, 0xfffe_u16.wrapping_add(index as u16));
            assert_eq!(
                sequence(&bytes[20..]),
                0xffff_fff0_u32.wrapping_add(1448 * index as u32)
            );
            together.extend_from_slice(&bytes[52..]);
        }
        assert_eq!(together, payload);
        let flags: Vec<u8> = packets.iter().map(|packet| packet.bytes()[33]).collect();
        assert_eq!(flags, [ACK | CWR, ACK, ACK | PSH | FIN]);
    }

    #[test]
    fn a_datagram_gets_its_checksum_only_where_it_must_be_whole() {
        let mut packet = handed_over(b"datagram", 0, 0, ACK);
        packet[HEADER_BYTES + 9] = PROTOCOL_UDP;
        // The sender's part of the checksum: the pseudo header's sum.
        let len = packet.len() - HEADER_BYTES;
        packet.truncate(HEADER_BYTES + len);
        let pseudo = fold(
            sum(&packet[HEADER_BYTES + 12..HEADER_BYTES + 20])
                + u64::from(PROTOCOL_UDP)
                + (len - 20) as u64,
        );
        let at = HEADER_BYTES + 20 + UDP_CHECKSUM;
        packet[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
        packet[8..10].copy_from_slice(&(UDP_CHECKSUM as u16).to_ne_bytes());
        // Only segments state the length of their headers.
        packet[2..4].fill(0);
        let whole = &segments(&packet, true)[0];
        assert_eq!(residue(whole.bytes()).1, 0);
        let pending = segments(&packet, false);
        assert!(pending[0].checksum_pending);
        assert_eq!(written(pending), [packet]);
    }

    #[test]
    fn only_neighbours_of_one_connection_are_joined() {
        let payload = vec![5; 1000];
        let cut = |options| segments(&handed_over(&payload, 400, options, ACK), false);
        let lens = |packets: Vec<Packet>| -> Vec<usize> {
            let headers = HEADER_BYTES + 40;
            written(packets).iter().map(|w| w.len() - headers).collect()
        };
        assert_eq!(lens(cut(0)), [1000]);
        // A gap, an exchange, another window.
        let mut gap = cut(0);
        gap.remove(1);
        assert_eq!(lens(gap), [400, 200]);
        let mut exchanged = cut(0);
        exchanged.swap(0, 1);
        assert_eq!(lens(exchanged), [400, 400, 200]);
        let mut other = cut(0);
        other[1].bytes_mut()[34] ^= 1;
        assert_eq!(lens(other), [400, 400, 200]);
        // One whose checksum is whole may have been corrupted.
        let mut whole = cut(0);
        finish(&mut whole[1]);
        assert_eq!(lens(whole), [400, 400, 200]);
        // The short one ends the train.
        let twice = cut(0).into_iter().chain(cut(0)).collect();
        assert_eq!(lens(twice), [1000, 1000]);
    }

    #[test]
    fn an_ethernet_header_stays_at_the_device() {
        let payload = vec![9; 2000];
        let read = handed_over(&payload, 1000, 0, ACK);
        let ethernet = [0xee; ETHERNET_BYTES];
        let framed = [&read[..HEADER_BYTES], &ethernet, &read[HEADER_BYTES..]].concat();
        let mut train = Train::default();
        let mut count = 0;
        split(&framed, ETHERNET_BYTES, false, |fill| {
            let mut packet = Packet::with_capacity(2048);
            fill(&mut packet);
            assert_eq!(packet.bytes()[0], 0x45);
            assert!(train.add(packet).is_ok());
            count += 1;
        });
        assert_eq!(count, 2);
        let written: Vec<u8> = train.write(
            &ethernet,
            |parts| parts.iter().flat_map(|part| part.to_vec()).collect(),
            |_| {},
        );
        assert_eq!(written[HEADER_BYTES..], framed[HEADER_BYTES..]);
        let header = Header::parse(written.first_chunk().expect("a header"));
        assert_eq!((header.header_bytes, header.checksum_start), (54, 34));
    }

    proptest! {
        #[test]
        fn splitting_and_joining_gives_what_was_handed_over(
            len in 1_usize..60_000,
            gso_bytes in 1_000_u16..1_460,
            options in 0_usize..=10,
            last in prop::bool::ANY,
        ) {
            let payload: Vec<u8> = (0..len).map(|i| (i * 31 % 255) as u8).collect();
            let flags = if last { ACK | PSH } else { ACK };
            let read = handed_over(&payload, gso_bytes, options, flags);
            let joined = written(segments(&read, false));
            prop_assert_eq!(joined.len(), 1);
            if len > usize::from(gso_bytes) {
                prop_assert_eq!(&joined[0], &read);
            } else {
                // A single segment needs no cutting.
                prop_assert_eq!(&joined[0][HEADER_BYTES..], &read[HEADER_BYTES..]);
            }
        }

        #[test]
        fn foreign_bytes_neither_panic_nor_grow(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut total = 0;
            let mut packets = Vec::new();
            split(&bytes, 0, true, |fill| {
                let mut packet = Packet::with_capacity(2048);
                fill(&mut packet);
                total += packet.len();
                packets.push(packet);
            });
            // Headers are repeated in every segment, each of which has a byte of payload.
            prop_assert!(packets.len() <= bytes.len() + 1 && total <= 2048 * packets.len());
            written(packets);
        }
    }
}
