//! One direction of the link: its impairments in netem's order.

use std::time::Duration;

use super::{Delay, Loss, Packet, Queue, Rate};

/// What a direction does to packets, in integers and durations.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct DirectionSettings {
    /// Bits per second; `None` for no bound.
    pub rate_bits_per_second: Option<u64>,
    /// Bytes of lower layers counted for each packet by the rate.
    pub overhead_bytes: i32,
    /// One-way delay.
    pub delay: Duration,
    /// Half width of the uniform distribution around the delay.
    pub jitter: Duration,
    /// Probability that a packet is lost.
    pub loss: f64,
    /// Packets on the link at once, those in propagation included.
    pub limit_packets: usize,
}

impl Default for DirectionSettings {
    /// Nothing is impaired; the limit is netem's own default.
    fn default() -> Self {
        Self {
            rate_bits_per_second: None,
            overhead_bytes: 0,
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            limit_packets: 1000,
        }
    }
}

/// What became of a packet that was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// It is on the link and leaves it at this time.
    Queued {
        /// When the packet leaves the link.
        departure: Duration,
    },
    /// It is gone.
    Dropped(DropReason),
}

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DropReason {
    /// The loss model took it.
    Loss,
    /// The queue was full.
    Queue,
}

/// A packet that has left the link.
#[derive(Debug)]
pub struct Departure {
    /// When it was due.
    pub departure: Duration,
    /// The packet.
    pub packet: Packet,
}

/// What has passed through a direction since it was made; only ever grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirectionCounters {
    /// Packets offered by the sender.
    pub packets: u64,
    /// IP bytes offered by the sender.
    pub bytes: u64,
    /// Packets that left the link at the far end.
    pub delivered_packets: u64,
    /// IP bytes that left the link at the far end.
    pub delivered_bytes: u64,
    /// Packets taken by the loss model.
    pub dropped_loss: u64,
    /// Packets dropped because the queue was full.
    pub dropped_queue: u64,
    /// Packets dropped by a flush (see [`Direction::flush`]).
    pub dropped_flush: u64,
}

/// One direction of a link: loss, queue bound, delay, rate.
///
/// Every impairment draws once for each packet offered, dropped ones included, so that switching
/// one impairment on leaves the draws of the others where they were.
#[derive(Debug)]
pub struct Direction {
    name: &'static str,
    loss: Loss,
    delay: Delay,
    rate: Rate,
    queue: Queue,
    last: Duration,
    counters: DirectionCounters,
}

impl Direction {
    /// A direction; its `name` and `seed` fix its random streams.
    #[must_use]
    pub fn new(name: &'static str, settings: &DirectionSettings, seed: u64) -> Self {
        Self {
            name,
            loss: Loss::new(settings.loss, seed, name),
            delay: Delay::new(settings.delay, settings.jitter, seed, name),
            rate: Rate::new(settings.rate_bits_per_second, settings.overhead_bytes),
            queue: Queue::new(settings.limit_packets),
            last: Duration::ZERO,
            counters: DirectionCounters::default(),
        }
    }

    /// Takes other settings from now on and starts the random streams anew. Packets already on
    /// the link keep their departures; [`Direction::flush`] first where none may remain.
    pub fn reconfigure(&mut self, settings: &DirectionSettings, seed: u64) {
        self.loss = Loss::new(settings.loss, seed, self.name);
        self.delay = Delay::new(settings.delay, settings.jitter, seed, self.name);
        self.rate = Rate::new(settings.rate_bits_per_second, settings.overhead_bytes);
        self.queue.set_limit(settings.limit_packets);
        if self.queue.is_empty() {
            self.last = Duration::ZERO;
        }
    }

    /// Offers a packet to the link at `now`. Times passed in must not go back.
    pub fn push(&mut self, now: Duration, packet: Packet) -> Verdict {
        let len = packet.len();
        self.counters.packets += 1;
        self.counters.bytes += len as u64;
        let lost = self.loss.draw();
        let delay = self.delay.draw();
        if lost {
            self.counters.dropped_loss += 1;
            return Verdict::Dropped(DropReason::Loss);
        }
        if self.queue.is_full() {
            self.counters.dropped_queue += 1;
            return Verdict::Dropped(DropReason::Queue);
        }
        let mut departure = now + delay;
        if self.rate.is_limited() {
            departure = departure.max(self.last) + self.rate.transmission(len);
            self.last = departure;
        }
        self.queue.insert(departure, packet);
        Verdict::Queued { departure }
    }

    /// When the next packet leaves; `None` while the link is empty.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        self.queue.next_departure()
    }

    /// The next packet that has left the link by `now`; call until it returns `None`.
    pub fn pop(&mut self, now: Duration) -> Option<Departure> {
        if self.queue.next_departure()? > now {
            return None;
        }
        let (departure, packet) = self.queue.take()?;
        self.counters.delivered_packets += 1;
        self.counters.delivered_bytes += packet.len() as u64;
        Some(Departure { departure, packet })
    }

    /// Packets on the link.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether no packet is on the link.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Drops every packet on the link and counts them.
    pub fn flush(&mut self) -> usize {
        let dropped = self.queue.flush();
        self.counters.dropped_flush += dropped as u64;
        self.last = Duration::ZERO;
        dropped
    }

    /// What has passed so far.
    #[must_use]
    pub fn counters(&self) -> DirectionCounters {
        self.counters
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(index: usize, len: usize) -> Packet {
        let mut packet = Packet::with_capacity(len.max(8));
        packet.buffer_mut()[..8].copy_from_slice(&(index as u64).to_le_bytes());
        packet.set_len(len.max(8));
        packet
    }

    fn index(packet: &Packet) -> u64 {
        u64::from_le_bytes(packet.bytes()[..8].try_into().expect("eight bytes"))
    }

    fn settings(rate: Option<u64>, delay_us: u64, jitter_us: u64) -> DirectionSettings {
        DirectionSettings {
            rate_bits_per_second: rate,
            delay: Duration::from_micros(delay_us),
            jitter: Duration::from_micros(jitter_us),
            limit_packets: usize::MAX,
            ..DirectionSettings::default()
        }
    }

    #[test]
    fn a_burst_is_spread_at_the_rate_after_one_delay() {
        let mut link = Direction::new("uplink", &settings(Some(20_000_000), 30_000, 0), 0);
        let now = Duration::from_secs(1);
        for burst in 1..=3 {
            let Verdict::Queued { departure } = link.push(now, packet(0, 1500)) else {
                panic!("nothing drops here")
            };
            assert_eq!(departure, now + Duration::from_micros(30_000 + 600 * burst));
        }
    }

    #[test]
    fn the_limit_counts_packets_in_propagation() {
        let limited = DirectionSettings {
            limit_packets: 3,
            ..settings(None, 10_000, 0)
        };
        let mut link = Direction::new("uplink", &limited, 0);
        for _ in 0..3 {
            assert!(matches!(
                link.push(Duration::ZERO, packet(0, 100)),
                Verdict::Queued { .. }
            ));
        }
        let full = link.push(Duration::from_micros(9_999), packet(0, 100));
        assert_eq!(full, Verdict::Dropped(DropReason::Queue));
        assert!(link.pop(Duration::from_micros(9_999)).is_none());
        assert!(link.pop(Duration::from_micros(10_000)).is_some());
        assert!(matches!(
            link.push(Duration::from_micros(10_000), packet(0, 100)),
            Verdict::Queued { .. }
        ));
        let counters = link.counters();
        assert_eq!(
            (counters.packets, counters.bytes, counters.dropped_queue),
            (5, 500, 1)
        );
        assert_eq!(
            (counters.delivered_packets, counters.delivered_bytes),
            (1, 100)
        );
    }

    #[test]
    fn reconfigure_keeps_counters_and_flush_is_counted() {
        let mut link = Direction::new("uplink", &settings(Some(1_000_000), 10_000, 0), 0);
        link.push(Duration::ZERO, packet(0, 1000));
        assert_eq!(link.flush(), 1);
        link.reconfigure(&settings(None, 5_000, 0), 1);
        let verdict = link.push(Duration::from_secs(1), packet(1, 1000));
        assert_eq!(
            verdict,
            Verdict::Queued {
                departure: Duration::from_micros(1_005_000)
            }
        );
        let counters = link.counters();
        assert_eq!((counters.packets, counters.dropped_flush), (2, 1));
    }

    #[test]
    fn jitter_reorders_without_a_rate_and_never_with_one() {
        for (rate, reorders) in [(None, true), (Some(1_000_000_000), false)] {
            let mut link = Direction::new("uplink", &settings(rate, 10_000, 5_000), 7);
            for i in 0..1000 {
                link.push(Duration::from_micros(i as u64 * 100), packet(i, 200));
            }
            let mut order = Vec::new();
            while let Some(departure) = link.pop(Duration::MAX) {
                order.push(index(&departure.packet));
            }
            assert_eq!(order.len(), 1000);
            assert_eq!(!order.is_sorted(), reorders);
        }
    }

    proptest! {
        #[test]
        fn departures_follow_the_formula(
            rate in prop_oneof![Just(None), (1_000_000u64..2_000_000_000).prop_map(Some)],
            delay_us in 0u64..50_000,
            overhead in -14i32..40,
            packets in prop::collection::vec((0u64..2_000, 28usize..1500), 1..200),
        ) {
            let settings = DirectionSettings { overhead_bytes: overhead, ..settings(rate, delay_us, 0) };
            let mut link = Direction::new("uplink", &settings, 0);
            let (mut now, mut last) = (Duration::ZERO, Duration::ZERO);
            let mut expected = Vec::new();
            for (i, (gap_us, len)) in packets.iter().enumerate() {
                now += Duration::from_micros(*gap_us);
                let tx = rate.map_or(0, |rate| {
                    let bits = (*len as i128 + i128::from(overhead)) * 8;
                    ((bits * 1_000_000_000) as f64 / rate as f64).round() as u64
                });
                let due = (now + Duration::from_micros(delay_us)).max(last) + Duration::from_nanos(tx);
                last = due;
                let Verdict::Queued { departure } = link.push(now, packet(i, *len)) else {
                    panic!("nothing drops here")
                };
                prop_assert!(departure.abs_diff(due) <= Duration::from_nanos(i as u64 + 1));
                last = last.max(departure);
                expected.push(departure);
            }
            // Nothing leaves before its time, everything leaves at it, ties in order.
            for (i, due) in expected.iter().enumerate() {
                prop_assert_eq!(link.next_deadline(), Some(*due));
                if *due > Duration::ZERO {
                    prop_assert!(link.pop(*due - Duration::from_nanos(1)).is_none());
                }
                let popped = link.pop(*due).expect("due now");
                prop_assert_eq!(index(&popped.packet), i as u64);
            }
            prop_assert!(link.is_empty());
        }

        #[test]
        fn loss_shifts_no_delay_and_the_same_seed_gives_the_same_packets(
            seed in any::<u64>(), loss in 0.01f64..0.9,
        ) {
            let run = |loss: f64| -> Vec<Verdict> {
                let settings = DirectionSettings { loss, ..settings(None, 20_000, 10_000) };
                let mut link = Direction::new("downlink", &settings, seed);
                (0..100).map(|i| link.push(Duration::from_millis(i), packet(0, 100))).collect()
            };
            let (clean, lossy) = (run(0.0), run(loss));
            prop_assert_eq!(&lossy, &run(loss));
            for (clean, lossy) in clean.iter().zip(&lossy) {
                prop_assert!(clean == lossy || *lossy == Verdict::Dropped(DropReason::Loss));
            }
        }

        #[test]
        fn packets_are_conserved(
            loss in 0.0f64..1.0, limit in 1usize..50, pops in prop::collection::vec(any::<bool>(), 1..300),
        ) {
            let settings = DirectionSettings {
                loss, limit_packets: limit, ..settings(Some(10_000_000), 2_000, 1_000)
            };
            let mut link = Direction::new("uplink", &settings, 5);
            let mut now = Duration::ZERO;
            for pop in pops {
                now += Duration::from_micros(200);
                link.push(now, packet(0, 300));
                if pop { while link.pop(now).is_some() {} }
                prop_assert!(link.len() <= limit);
                let c = link.counters();
                prop_assert_eq!(
                    c.packets,
                    c.delivered_packets + c.dropped_loss + c.dropped_queue + link.len() as u64
                );
            }
        }
    }
}
