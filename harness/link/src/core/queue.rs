//! The packets in flight, and the bound on them.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::{Packet, QueueLimit};

/// The most packets of a queue that is bounded in bytes, so that small packets, each in a buffer
/// for a full one, cannot take more memory than about 2 GiB.
const MAX_PACKETS: usize = 1_000_000;

impl QueueLimit {
    /// Whether a packet of `len` bytes may join `packets` packets of `bytes` bytes.
    #[must_use]
    pub fn admits(self, packets: usize, bytes: usize, len: usize) -> bool {
        match self {
            Self::Packets(limit) => packets < limit,
            Self::Bytes(limit) => packets < MAX_PACKETS && bytes.saturating_add(len) <= limit,
        }
    }
}

/// Packets ordered by departure, first in first out among equals, but those sent at the head
/// before the others.
#[derive(Debug, Default)]
pub struct Queue {
    heap: BinaryHeap<Entry>,
    bytes: usize,
    next_order: u64,
}

#[derive(Debug)]
struct Entry {
    departure: Duration,
    rank: Rank,
    order: u64,
    packet: Packet,
}

/// Which of two packets that are due at the same time leaves first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// Before all others.
    Head,
    /// In its turn.
    Tail,
}

impl Queue {
    /// Adds a packet; whether it may join is the caller's to ask.
    pub fn insert(&mut self, departure: Duration, rank: Rank, packet: Packet) {
        self.bytes += packet.len();
        self.heap.push(Entry {
            departure,
            rank,
            order: self.next_order,
            packet,
        });
        self.next_order += 1;
    }

    /// The earliest departure.
    #[must_use]
    pub fn next_departure(&self) -> Option<Duration> {
        self.heap.peek().map(|entry| entry.departure)
    }

    /// Takes the packet that departs first.
    pub fn take(&mut self) -> Option<(Duration, Packet)> {
        let entry = self.heap.pop()?;
        self.bytes -= entry.packet.len();
        Some((entry.departure, entry.packet))
    }

    /// Packets in the queue.
    #[must_use]
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// IP bytes in the queue.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether no packet is in the queue.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// Drops everything and returns how many packets that was.
    pub fn flush(&mut self) -> usize {
        let dropped = self.heap.len();
        self.heap.clear();
        self.bytes = 0;
        dropped
    }
}

// The heap keeps its greatest entry on top, so the order is reversed: earliest first.
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.departure, other.rank, other.order).cmp(&(self.departure, self.rank, self.order))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}
