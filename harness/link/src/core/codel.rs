//! CoDel: an AQM that looks at how long packets wait.

use std::collections::VecDeque;
use std::time::Duration;

use super::Packet;

/// The queue for the bandwidth under CoDel, RFC 8289 (Nichols, Jacobson and others, 2018).
///
/// Packets come into it at the end of their propagation, in the order in which they were sent,
/// and leave it when their turn for the bandwidth comes; what lies between is the time that CoDel
/// holds against its target. Decisions fall at that moment, when the queue behind the packet is
/// known, so that a packet's departure is not known when it is pushed. The algorithm and the
/// names of its variables are those of the RFC's section 5.
///
/// Where the bandwidth is scarcer than one packet in a target's time, CoDel keeps the last packet
/// and cannot reach its target. Packets that do not respond to drops are not held below it
/// either, because the rate of drops only grows with the root of their number.
#[derive(Debug)]
pub struct CoDel {
    target: Duration,
    interval: Duration,
    /// Packets in propagation.
    coming: VecDeque<Waiting>,
    /// Packets whose propagation is over.
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    bytes: usize,
    last_ready: Duration,
    max_packet: usize,
    first_above_time: Option<Duration>,
    dropping: bool,
    drop_next: Duration,
    count: u32,
    last_count: u32,
}

/// A packet that waits for its turn.
#[derive(Debug)]
pub struct Waiting {
    /// When its propagation was over.
    pub ready: Duration,
    /// The packet.
    pub packet: Packet,
}

/// The packet whose turn it is, and whether it may be dropped.
struct Judged {
    waiting: Waiting,
    ok_to_drop: bool,
}

impl CoDel {
    /// An empty queue.
    #[must_use]
    pub fn new(target: Duration, interval: Duration) -> Self {
        Self {
            target,
            interval,
            coming: VecDeque::new(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            bytes: 0,
            last_ready: Duration::ZERO,
            max_packet: 0,
            first_above_time: None,
            dropping: false,
            drop_next: Duration::ZERO,
            count: 0,
            last_count: 0,
        }
    }

    /// Adds a packet whose propagation is over at `ready`, or when that of the packet before it
    /// is, if that is later.
    pub fn push(&mut self, ready: Duration, packet: Packet) {
        self.last_ready = self.last_ready.max(ready);
        self.bytes += packet.len();
        self.max_packet = self.max_packet.max(packet.len());
        self.coming.push_back(Waiting {
            ready: self.last_ready,
            packet,
        });
    }

    /// The packet whose turn is next: when it is ready, and its length.
    #[must_use]
    pub fn head(&self) -> Option<(Duration, usize)> {
        let head = self.waiting.front().or_else(|| self.coming.front())?;
        Some((head.ready, head.packet.len()))
    }

    /// Takes the packet that is to be sent at `now`, the beginning of its turn, and says how many
    /// were dropped before it; `None` if all that waited were.
    pub fn dequeue(&mut self, now: Duration) -> (Option<Waiting>, u64) {
        while let Some(next) = self.coming.pop_front_if(|next| next.ready <= now) {
            self.waiting_bytes += next.packet.len();
            self.waiting.push_back(next);
        }
        let mut dropped = 0;
        let mut head = self.judge(now);
        let ok_to_drop = |head: &Option<Judged>| head.as_ref().is_some_and(|head| head.ok_to_drop);
        if self.dropping {
            if !ok_to_drop(&head) {
                self.dropping = false;
            }
            while self.dropping && now >= self.drop_next {
                dropped += 1;
                self.count = self.count.saturating_add(1);
                head = self.judge(now);
                if ok_to_drop(&head) {
                    self.drop_next = self.control_law(self.drop_next);
                } else {
                    self.dropping = false;
                }
            }
        } else if ok_to_drop(&head) {
            dropped += 1;
            head = self.judge(now);
            self.dropping = true;
            // If the last dropping state was left only just now, the rate of drops that
            // controlled the queue then is taken up again.
            let delta = self.count.saturating_sub(self.last_count);
            let recently = now.saturating_sub(self.drop_next) < self.interval * 16;
            self.count = if delta > 1 && recently { delta } else { 1 };
            self.drop_next = self.control_law(now);
            self.last_count = self.count;
        }
        (head.map(|head| head.waiting), dropped)
    }

    /// Takes every packet in its order, undecided.
    pub fn drain(&mut self) -> Vec<Waiting> {
        self.waiting_bytes = 0;
        self.bytes = 0;
        self.waiting
            .drain(..)
            .chain(self.coming.drain(..))
            .collect()
    }

    /// Packets in propagation or waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        self.coming.len() + self.waiting.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// IP bytes in propagation or waiting.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The RFC's `dodequeue`: the head, and whether the queue has been above target for an
    /// interval.
    fn judge(&mut self, now: Duration) -> Option<Judged> {
        let Some(waiting) = self.waiting.pop_front() else {
            self.first_above_time = None;
            return None;
        };
        self.waiting_bytes -= waiting.packet.len();
        self.bytes -= waiting.packet.len();
        let sojourn = now.saturating_sub(waiting.ready);
        let mut ok_to_drop = false;
        if sojourn < self.target || self.waiting_bytes <= self.max_packet {
            self.first_above_time = None;
        } else if let Some(first_above_time) = self.first_above_time {
            ok_to_drop = now >= first_above_time;
        } else {
            self.first_above_time = Some(now.saturating_add(self.interval));
        }
        Some(Judged {
            waiting,
            ok_to_drop,
        })
    }

    /// The time of the next drop after one at `time`.
    fn control_law(&self, time: Duration) -> Duration {
        let gap = self.interval.as_nanos() as f64 / f64::from(self.count.max(1)).sqrt();
        time.saturating_add(Duration::from_nanos(gap as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A queue with a packet ready at each millisecond.
    fn codel(packets: u32) -> CoDel {
        let mut codel = CoDel::new(5 * MS, 100 * MS);
        for i in 0..packets {
            codel.push(i * MS, Packet::from_bytes(&[0; 1000]));
        }
        codel
    }

    #[test]
    fn a_queue_below_target_is_left_alone() {
        let mut codel = codel(1000);
        for i in 0..1000 {
            let (head, dropped) = codel.dequeue(i * MS + 4 * MS);
            assert_eq!((head.expect("a packet").ready, dropped), (i * MS, 0));
        }
        assert!(codel.is_empty() && codel.bytes() == 0);
    }

    #[test]
    fn the_first_drop_falls_after_an_interval_and_the_next_by_the_control_law() {
        // Each packet has waited 10 ms, so the queue is above target from the first one on.
        let mut codel = codel(1000);
        let mut drops = Vec::new();
        let mut now = 10 * MS;
        while now < 600 * MS {
            let (head, dropped) = codel.dequeue(now);
            if dropped > 0 {
                drops.push(now);
            }
            // As many packets are sent as have come, so the wait stays what it is.
            assert!(head.is_some());
            now += (1 + dropped as u32) * MS;
        }
        let expected = [100.0, 100.0 / 2_f64.sqrt(), 100.0 / 3_f64.sqrt()];
        assert_eq!(drops[0], 110 * MS);
        for (gap, expected) in drops.windows(2).zip(expected) {
            let gap = (gap[1] - gap[0]).as_secs_f64() * 1e3;
            assert!((gap - expected).abs() <= 2.0, "{gap} instead of {expected}");
        }
    }

    #[test]
    fn the_last_packet_is_never_dropped() {
        let mut codel = CoDel::new(5 * MS, 100 * MS);
        for second in 0..20 {
            let now = Duration::from_secs(second);
            codel.push(now, Packet::from_bytes(&[0; 1000]));
            let (head, dropped) = codel.dequeue(now + 900 * MS);
            assert!(head.is_some() && dropped == 0);
        }
        let (head, dropped) = codel.dequeue(Duration::from_secs(30));
        assert!(head.is_none() && dropped == 0);
    }
}
