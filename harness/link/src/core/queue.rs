//! The bounded queue of packets in flight.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::Packet;

/// Packets ordered by departure, first in first out among equals.
///
/// The bound counts every packet on the link, those in propagation included, as netem's does:
/// a limit is the bandwidth-delay product plus the buffer.
#[derive(Debug)]
pub struct Queue {
    limit: usize,
    heap: BinaryHeap<Entry>,
    next_order: u64,
}

#[derive(Debug)]
struct Entry {
    departure: Duration,
    order: u64,
    packet: Packet,
}

impl Queue {
    /// An empty queue of at most `limit` packets.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            heap: BinaryHeap::new(),
            next_order: 0,
        }
    }

    /// Whether the next packet would be dropped.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.heap.len() >= self.limit
    }

    /// Adds a packet; the caller has asked [`Queue::is_full`] first.
    pub fn insert(&mut self, departure: Duration, packet: Packet) {
        self.heap.push(Entry {
            departure,
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
        self.heap.pop().map(|entry| (entry.departure, entry.packet))
    }

    /// Packets in the queue.
    #[must_use]
    pub fn len(&self) -> usize {
        self.heap.len()
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
        dropped
    }

    /// Sets another bound; packets already in the queue stay.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }
}

// The heap keeps its greatest entry on top, so the order is reversed: earliest first.
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.departure, other.order).cmp(&(self.departure, self.order))
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
