//! Bandwidth: when a packet's turn comes and when it has left.

use std::time::Duration;

use super::outages::Cuts;
use super::{Bandwidth, Framing};

/// The time for which a fixed rate is busy with so many bytes, to the nearest nanosecond. A rate
/// of 0 is taken as 1 bit/s.
#[must_use]
pub fn transmission(bits_per_second: u64, bytes: u64) -> Duration {
    let rate = u128::from(bits_per_second.max(1));
    let nanos = (u128::from(bytes) * 8_000_000_000 + rate / 2) / rate;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// The server that packets pass one after the other.
///
/// Times are translated into work that the bandwidth has offered by then: nanoseconds of a fixed
/// rate (and of an unlimited one, which takes none), bytes of delivery opportunities, bits of a
/// rate in steps. A packet's turn is at `max(offered before it is ready, where the last packet
/// ended)`, and it has left when its own work has been offered from there on. For a fixed rate
/// that is netem's `max(now + delay, last) + tx`; for opportunities it is Mahimahi's rule that
/// what is left of one is lost unless a packet is waiting at that very moment.
#[derive(Clone, Debug)]
pub struct Rate {
    bandwidth: Bandwidth,
    framing: Framing,
    cuts: Option<Cuts>,
    origin: Duration,
    /// Where the last packet ended.
    last: u128,
    /// When the last packet left, or the time before which none may.
    busy_until: Duration,
}

/// A packet's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// When the first bit is sent.
    pub begin: Duration,
    /// When the last bit has been sent.
    pub end: Duration,
    /// The work offered by then.
    work: u128,
}

impl Rate {
    /// A bandwidth whose trace, if it is one, starts at `origin`, and which rests during `cuts`
    /// that hold.
    #[must_use]
    pub fn new(bandwidth: Bandwidth, framing: Framing, cuts: &Cuts, origin: Duration) -> Self {
        Self {
            bandwidth,
            framing,
            cuts: cuts.hold().then(|| cuts.clone()),
            origin,
            last: 0,
            busy_until: Duration::ZERO,
        }
    }

    /// Whether the bandwidth bounds anything.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        !matches!(self.bandwidth, Bandwidth::Unlimited)
    }

    /// When the last packet left.
    #[must_use]
    pub fn busy_until(&self) -> Duration {
        self.busy_until
    }

    /// Lets nothing leave earlier than what was sent under other settings.
    pub fn wait_until(&mut self, time: Duration) {
        self.busy_until = time;
    }

    /// Forgets the packets sent so far.
    pub fn reset(&mut self) {
        self.last = 0;
        self.busy_until = Duration::ZERO;
    }

    /// The turn of a packet of `len` bytes that is ready at `ready`, if it is the next.
    #[must_use]
    pub fn turn(&self, ready: Duration, len: usize) -> Turn {
        let limited = self.is_limited();
        let ready = if limited && self.last == 0 {
            ready.max(self.busy_until)
        } else {
            ready
        };
        let mut work = self.work(len);
        let mut at = self.offered(ready);
        let mut earliest = ready;
        if limited {
            at = at.max(self.last);
        }
        let Some(cuts) = &self.cuts else {
            return self.turn_at(at, at + work, earliest, earliest);
        };
        // The part of the work before a cut is done before it, the rest after it.
        let mut begin = None;
        let from = if limited {
            ready.max(self.busy_until)
        } else {
            ready
        };
        for (down, up) in cuts.after(from) {
            let (low, high) = (self.offered(down), self.offered(up));
            if at + work < low || (work > 0 && at + work == low) {
                break;
            }
            if at < low {
                begin.get_or_insert((at, earliest));
                work -= low - at;
                at = high;
            } else {
                at = at.max(high);
            }
            earliest = earliest.max(up);
        }
        let (first, begin) = begin.unwrap_or((at, earliest));
        self.turn_at(first, at + work, begin, earliest)
    }

    /// Sends that packet, and returns when it leaves.
    pub fn send(&mut self, ready: Duration, len: usize) -> Duration {
        let turn = self.turn(ready, len);
        if self.is_limited() {
            self.last = turn.work;
            self.busy_until = turn.end;
        }
        turn.end
    }

    fn turn_at(&self, first: u128, end: u128, begin: Duration, earliest: Duration) -> Turn {
        let (begins, ends) = match &self.bandwidth {
            Bandwidth::Unlimited | Bandwidth::Fixed { .. } => (nanos(first), nanos(end)),
            Bandwidth::Trace(trace) => (
                self.origin.saturating_add(trace.resumed(first)),
                self.origin.saturating_add(trace.finished(end)),
            ),
        };
        Turn {
            begin: begins.max(begin),
            end: ends.max(earliest),
            work: end,
        }
    }

    fn offered(&self, time: Duration) -> u128 {
        match &self.bandwidth {
            Bandwidth::Unlimited | Bandwidth::Fixed { .. } => time.as_nanos(),
            Bandwidth::Trace(trace) => trace.offered(time.saturating_sub(self.origin)),
        }
    }

    fn work(&self, len: usize) -> u128 {
        let bytes = self.framing.charged_bytes(len);
        match &self.bandwidth {
            Bandwidth::Unlimited => 0,
            Bandwidth::Fixed { bits_per_second } => {
                transmission(*bits_per_second, bytes).as_nanos()
            }
            Bandwidth::Trace(trace) => trace.work(bytes),
        }
    }
}

fn nanos(nanos: u128) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::{
        BandwidthTrace, OPPORTUNITY_BYTES, Opportunities, Outage, OutageMode, Outages, Step, Steps,
    };
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn no_cuts() -> Cuts {
        Cuts::new(Outages::default(), Duration::ZERO)
    }

    fn held(start: Duration, duration: Duration, every: Option<Duration>) -> Cuts {
        let cut = Outage {
            start,
            duration,
            every,
        };
        let outages = Outages {
            cuts: Arc::new([cut]),
            mode: OutageMode::Hold,
        };
        Cuts::new(outages, Duration::ZERO)
    }

    fn rate(bandwidth: Bandwidth, cuts: &Cuts) -> Rate {
        Rate::new(bandwidth, Framing::default(), cuts, Duration::ZERO)
    }

    fn fixed(bits_per_second: u64) -> Bandwidth {
        Bandwidth::Fixed { bits_per_second }
    }

    fn mahimahi(times_ms: &[u32]) -> Bandwidth {
        let trace = Opportunities::new(times_ms.to_vec()).expect("valid");
        Bandwidth::Trace(Arc::new(BandwidthTrace::Opportunities(trace)))
    }

    fn steps(steps: &[(Duration, u64)], period: Duration) -> Bandwidth {
        let steps = steps
            .iter()
            .map(|&(start, bits_per_second)| Step {
                start,
                bits_per_second,
                delay: Duration::ZERO,
                loss: 0.0,
            })
            .collect();
        let trace = Steps::new(steps, period).expect("valid");
        Bandwidth::Trace(Arc::new(BandwidthTrace::Steps(trace)))
    }

    #[test]
    fn transmission_time_rounds() {
        for (rate, bytes, nanos) in [
            (1_000_000_000, 1500, 12_000),
            (20_000_000, 1500, 600_000),
            (8_000_000, 100, 100_000),
            (8_000_000, 0, 0),
            (7_000_000, 1500, 1_714_286),
        ] {
            let time = transmission(rate, bytes);
            assert_eq!(time, Duration::from_nanos(nanos));
        }
    }

    #[test]
    fn a_held_packet_is_sent_in_parts() {
        // 1 ms a packet; the link rests from 2 to 7 ms.
        let mut rate = rate(fixed(8_000_000), &held(2 * MS, 5 * MS, None));
        assert_eq!(rate.send(MS / 2, 1000), MS * 3 / 2);
        // Half of it before the cut, half after.
        assert_eq!(rate.turn(MS, 1000).begin, MS * 3 / 2);
        assert_eq!(rate.send(MS, 1000), MS * 15 / 2);
        assert_eq!(rate.send(MS, 1000), MS * 17 / 2);
        // One that ends just before the cut is not touched, and one that would begin in it waits.
        let mut rate = self::rate(fixed(8_000_000), &held(2 * MS, 5 * MS, None));
        assert_eq!(rate.send(MS, 1000), 2 * MS);
        assert_eq!(rate.turn(MS, 1000).begin, 7 * MS);
        assert_eq!(rate.send(3 * MS, 1000), 8 * MS);
    }

    #[test]
    fn an_unlimited_link_holds_until_the_end_of_the_cut() {
        let mut rate = rate(Bandwidth::Unlimited, &held(2 * MS, 5 * MS, None));
        assert_eq!(rate.send(MS, 1000), MS);
        assert_eq!(rate.send(2 * MS, 1000), 7 * MS);
        assert_eq!(rate.send(6 * MS, 1000), 7 * MS);
        // Nothing was sent in between, so nothing is behind it.
        assert_eq!(rate.send(MS, 1000), MS);
        assert_eq!(rate.send(7 * MS, 1000), 7 * MS);
    }

    #[test]
    fn opportunities_in_a_cut_are_lost() {
        let mut rate = rate(mahimahi(&[1, 2, 3, 4, 5]), &held(2 * MS, 2 * MS, None));
        assert_eq!(rate.send(Duration::ZERO, 1504), MS);
        assert_eq!(rate.turn(Duration::ZERO, 1504).begin, 4 * MS);
        assert_eq!(rate.send(Duration::ZERO, 1504), 4 * MS);
        assert_eq!(rate.send(Duration::ZERO, 1504), 5 * MS);
        assert_eq!(rate.send(Duration::ZERO, 1504), 6 * MS);
    }

    #[test]
    fn several_packets_share_an_opportunity_and_a_large_one_takes_two() {
        let mut rate = rate(mahimahi(&[5, 10, 10, 20]), &no_cuts());
        assert_eq!(rate.send(Duration::ZERO, 500), 5 * MS);
        assert_eq!(rate.send(5 * MS, 500), 5 * MS);
        assert_eq!(rate.send(5 * MS, 504), 5 * MS);
        // Two opportunities at 10 ms: 1504 + 1 bytes fit, and 1503 more.
        assert_eq!(rate.send(5 * MS, 1505), 10 * MS);
        assert_eq!(rate.send(10 * MS, 1503), 10 * MS);
        assert_eq!(rate.send(10 * MS, 1), 20 * MS);
        // What is left at 20 ms is lost once the moment is over; at 25 ms the trace has begun
        // again.
        assert_eq!(rate.send(20 * MS + MS / 1000, 1), 25 * MS);
        assert_eq!(rate.turn(26 * MS, 1).begin, 30 * MS);
    }

    #[test]
    fn a_saturated_mahimahi_link_delivers_the_bytes_of_the_opportunities() {
        let times = [1, 1, 2, 7, 7, 7, 30, 31, 50];
        let mut rate = rate(mahimahi(&times), &no_cuts());
        let mut sent = Vec::new();
        // Lengths with which opportunities never come out even.
        for packet in 0..2_000 {
            let len = 40 + packet * 977 % 1461;
            sent.push((rate.send(Duration::ZERO, len), len));
        }
        let end = sent[sent.len() - 1].0;
        for millis in 0..(end.as_millis() as u32) {
            let until = millis * MS;
            let offered: u64 = (0..=millis / 50)
                .flat_map(|lap| times.iter().map(move |at| lap * 50 + at))
                .filter(|&at| at <= millis)
                .map(|_| OPPORTUNITY_BYTES)
                .sum();
            let delivered: usize = sent
                .iter()
                .take_while(|(at, _)| *at <= until)
                .map(|(_, len)| len)
                .sum();
            // All but what a packet has used that is not through yet.
            let rest = offered - delivered as u64;
            assert!(rest < 1500, "{millis} ms: {rest} bytes are missing");
        }
    }

    #[test]
    fn a_packet_waits_through_a_step_of_rate_zero() {
        let bandwidth = steps(&[(Duration::ZERO, 8_000_000), (MS, 0)], 10 * MS);
        let mut rate = rate(bandwidth, &no_cuts());
        assert_eq!(rate.send(Duration::ZERO, 500), MS / 2);
        assert_eq!(rate.send(Duration::ZERO, 1000), 10 * MS + MS / 2);
        assert_eq!(rate.turn(2 * MS, 500).end, 11 * MS);
        assert_eq!(rate.send(12 * MS, 500), 20 * MS + MS / 2);
    }

    proptest! {
        /// Every packet's bits are exactly the integral of the rate since its turn.
        #[test]
        fn the_integral_of_a_stepwise_rate_is_exact(
            shape in prop::collection::vec((1_u64..20_000_000, 0_u64..300_000_000), 1..12),
            packets in prop::collection::vec((0_u64..3_000_000, 28_usize..1500), 1..100),
        ) {
            let mut list = Vec::new();
            let mut at = Duration::ZERO;
            for (length, rate) in shape {
                list.push((at, rate));
                at += Duration::from_nanos(length);
            }
            let period = at;
            let bits: u128 = list.iter().map(|(_, rate)| u128::from(*rate)).sum();
            prop_assume!(bits > 1_000_000);
            let traced: Vec<Step> = list.iter().map(|&(start, bits_per_second)| Step {
                start, bits_per_second, delay: Duration::ZERO, loss: 0.0,
            }).collect();
            prop_assume!(Steps::new(traced, period).is_ok());
            // The integral, step by step and without the code under test.
            let integral = |from: u128, to: u128| -> u128 {
                let period = period.as_nanos();
                let mut sum = 0;
                for lap in from / period..=to / period {
                    for (index, (start, rate)) in list.iter().enumerate() {
                        let end = list.get(index + 1).map_or(period, |next| next.0.as_nanos());
                        let low = (lap * period + start.as_nanos()).max(from);
                        let high = (lap * period + end).min(to);
                        sum += high.saturating_sub(low) * u128::from(*rate);
                    }
                }
                sum
            };
            let mut rate = rate(steps(&list, period), &no_cuts());
            let mut now = Duration::ZERO;
            let (mut busy_from, mut busy_work, mut last) = (Duration::ZERO, 0, Duration::ZERO);
            for (gap, len) in packets {
                now += Duration::from_nanos(gap);
                if now >= last {
                    (busy_from, busy_work) = (now, 0);
                }
                last = rate.send(now, len);
                busy_work += len as u128 * 8_000_000_000;
                // All bits since the queue was last empty fit by the departure, and would not
                // have a nanosecond earlier.
                let sent = integral(busy_from.as_nanos(), last.as_nanos());
                let earlier = integral(busy_from.as_nanos(), last.as_nanos() - 1);
                prop_assert!(sent >= busy_work && earlier < busy_work,
                    "{earlier} {busy_work} {sent}");
            }
        }

        /// A cut that holds takes its own time from a busy link and nothing else.
        #[test]
        fn cuts_that_hold_shift_a_busy_link(
            start in 0_u64..5_000, duration in 1_u64..3_000, every in 0_u64..4_000,
            packets in prop::collection::vec(28_usize..1500, 1..60),
        ) {
            let us = Duration::from_micros;
            let every = duration + 1 + every;
            let cuts = held(us(start), us(duration), Some(us(every)));
            let mut held = rate(fixed(8_000_000), &cuts);
            let mut plain = rate(fixed(8_000_000), &no_cuts());
            for len in packets {
                let with = held.send(Duration::ZERO, len).as_micros() as u64;
                let without = plain.send(Duration::ZERO, len).as_micros() as u64;
                // The time up to the departure that is not in a cut is that of the plain link.
                let up = (0..with).filter(|at| {
                    *at < start || (at - start) % every >= duration
                }).count() as u64;
                prop_assert_eq!(up, without);
            }
        }
    }
}
