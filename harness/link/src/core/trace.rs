//! Bandwidth that changes over time: what a trace offers up to a moment, and when it has offered
//! so much.
//!
//! Both kinds of trace start at time 0, repeat at their end and never run dry, which their
//! constructors check. Work is counted in integers, so that no rounding adds up over packets.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::encoded::{Columns, Gaps};

/// Bytes of one delivery opportunity of a Mahimahi trace: an Ethernet payload of 1500 bytes and
/// the 4 bytes that Mahimahi's own tunnel device puts before it.
pub const OPPORTUNITY_BYTES: u64 = 1504;

/// Milliseconds of opportunities that count as a peak.
const PEAK_MILLIS: u64 = 20;
/// Nanoseconds in a millisecond.
const NANOS_PER_MILLI: u128 = 1_000_000;
/// Bits times nanoseconds per second: the work of a byte in the unit of [`Steps`].
const WORK_PER_BYTE: u128 = 8_000_000_000;

/// A trace of a link's bandwidth.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum BandwidthTrace {
    /// Moments at which so many bytes may leave, as Mahimahi records them.
    Opportunities(Opportunities),
    /// A rate that holds until the next one, with delay and loss where the trace states them.
    Steps(Steps),
}

impl BandwidthTrace {
    /// The mean rate in bits per second.
    #[must_use]
    pub fn mean_bits_per_second(&self) -> f64 {
        match self {
            Self::Opportunities(trace) => trace.mean_bits_per_second(),
            Self::Steps(trace) => trace.mean_bits_per_second(),
        }
    }

    /// The greatest rate in bits per second: of a step, or in the mean of any 20 ms of delivery
    /// opportunities.
    pub(crate) fn peak_bits_per_second(&self) -> f64 {
        match self {
            Self::Opportunities(trace) => trace.peak_bits_per_second(),
            Self::Steps(trace) => {
                let rates = trace.steps.iter().map(|step| step.bits_per_second);
                rates.max().unwrap_or(0) as f64
            }
        }
    }

    /// The time after which the trace repeats.
    #[must_use]
    pub fn period(&self) -> Duration {
        match self {
            Self::Opportunities(trace) => trace.period(),
            Self::Steps(trace) => trace.period(),
        }
    }

    /// The delay that the trace adds at a time.
    #[must_use]
    pub fn delay_at(&self, time: Duration) -> Duration {
        match self {
            Self::Opportunities(_) => Duration::ZERO,
            Self::Steps(trace) => trace.step_at(time).delay,
        }
    }

    /// The probability of loss that the trace adds at a time.
    #[must_use]
    pub fn loss_at(&self, time: Duration) -> f64 {
        match self {
            Self::Opportunities(_) => 0.0,
            Self::Steps(trace) => trace.step_at(time).loss,
        }
    }

    /// The greatest delay that the trace adds.
    #[must_use]
    pub fn greatest_delay(&self) -> Duration {
        match self {
            Self::Opportunities(_) => Duration::ZERO,
            Self::Steps(trace) => {
                let delays = trace.steps.iter().map(|step| step.delay);
                delays.max().unwrap_or_default()
            }
        }
    }

    /// Whether the trace states a loss anywhere.
    #[must_use]
    pub fn loses(&self) -> bool {
        match self {
            Self::Opportunities(_) => false,
            Self::Steps(trace) => trace.steps.iter().any(|step| step.loss > 0.0),
        }
    }

    /// The work of sending so many bytes, in the trace's own unit.
    pub(crate) fn work(&self, bytes: u64) -> u128 {
        match self {
            Self::Opportunities(_) => u128::from(bytes),
            Self::Steps(_) => u128::from(bytes) * WORK_PER_BYTE,
        }
    }

    /// The work offered before `time`.
    pub(super) fn offered(&self, time: Duration) -> u128 {
        match self {
            Self::Opportunities(trace) => trace.offered(time),
            Self::Steps(trace) => trace.offered(time),
        }
    }

    /// The first moment by which that work has been offered.
    pub(crate) fn finished(&self, work: u128) -> Duration {
        match self {
            Self::Opportunities(trace) => trace.finished(work),
            Self::Steps(trace) => trace.finished(work),
        }
    }

    /// The moment at which the offer goes on beyond that work.
    pub(super) fn resumed(&self, work: u128) -> Duration {
        match self {
            Self::Opportunities(trace) => trace.resumed(work),
            Self::Steps(trace) => trace.resumed(work),
        }
    }
}

/// Why values are no trace.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TraceProblem {
    /// There is nothing in it.
    #[error("the trace is empty")]
    Empty,
    /// It has no length.
    #[error("the trace lasts no time at all; its last timestamp must be above 0")]
    NoTime,
    /// A timestamp lies before the one ahead of it.
    #[error("entry {index} goes back in time")]
    Order {
        /// The entry, counted from 0.
        index: usize,
    },
    /// Several lists that describe the same steps differ in length.
    #[error("the trace's lists differ in length")]
    Lengths,
    /// It carries next to nothing, so that packets would wait for ever.
    #[error("the trace's mean rate is {bits_per_second} bit/s; it must be 10000 bit/s at least")]
    TooSlow {
        /// The mean rate, rounded down.
        bits_per_second: u64,
    },
    /// It carries more than the emulator can count.
    #[error("entry {index} is above the greatest {what}")]
    TooGreat {
        /// The entry, counted from 0.
        index: usize,
        /// What is too great.
        what: &'static str,
    },
}

/// The least mean rate of a trace in bits per second, the least of a profile's fixed rate too: at
/// this rate a full packet takes 1.2 s.
const MIN_MEAN_BITS_PER_SECOND: u128 = 10_000;
/// The greatest rate of a step in bits per second, that of a profile's fixed rate too.
pub(crate) const MAX_BITS_PER_SECOND: u64 = 100_000_000_000;
/// The longest trace: a day.
pub(crate) const MAX_PERIOD: Duration = Duration::from_secs(86_400);
/// The greatest delay of a step, that of a profile too.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(10);

/// Delivery opportunities in Mahimahi's sense.
///
/// At each opportunity [`OPPORTUNITY_BYTES`] may leave. A packet that is larger than what is left
/// of one goes on at the next; several small ones share one. Whatever an opportunity has left
/// when no packet is waiting is lost. The trace repeats after its last timestamp.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Gaps", into = "Gaps")]
pub struct Opportunities {
    times_ms: Box<[u32]>,
}

impl Opportunities {
    /// A trace of opportunities at these times, in milliseconds and in order.
    ///
    /// # Errors
    /// [`TraceProblem`], if there are none, if they go back in time, if the last is at 0 or
    /// beyond a day, or if they carry less than 10 kbit/s.
    pub fn new(times_ms: Vec<u32>) -> Result<Self, TraceProblem> {
        let Some(&last) = times_ms.last() else {
            return Err(TraceProblem::Empty);
        };
        if let Some(index) = times_ms.windows(2).position(|pair| pair[1] < pair[0]) {
            return Err(TraceProblem::Order { index: index + 1 });
        }
        if last == 0 {
            return Err(TraceProblem::NoTime);
        }
        if u128::from(last) > MAX_PERIOD.as_millis() {
            return Err(TraceProblem::TooGreat {
                index: times_ms.len() - 1,
                what: "time, a day",
            });
        }
        let bits = times_ms.len() as u128 * u128::from(OPPORTUNITY_BYTES) * 8;
        check_mean(bits * 1000 / u128::from(last))?;
        Ok(Self {
            times_ms: times_ms.into_boxed_slice(),
        })
    }

    /// The times of the opportunities in milliseconds.
    #[must_use]
    pub fn times_ms(&self) -> &[u32] {
        &self.times_ms
    }

    /// The last timestamp.
    #[must_use]
    pub fn period(&self) -> Duration {
        Duration::from_millis(u64::from(self.period_ms()))
    }

    fn period_ms(&self) -> u32 {
        self.times_ms[self.times_ms.len() - 1]
    }

    fn mean_bits_per_second(&self) -> f64 {
        let bits = self.times_ms.len() as f64 * (OPPORTUNITY_BYTES * 8) as f64;
        bits / self.period().as_secs_f64()
    }

    fn peak_bits_per_second(&self) -> f64 {
        let (count, period) = (self.times_ms.len(), u64::from(self.period_ms()));
        // Of the trace and its repetitions.
        let time = |at: usize| (at / count) as u64 * period + u64::from(self.times_ms[at % count]);
        let mut end = 0;
        let most = (0..count).map(|start| {
            while time(end) < time(start) + PEAK_MILLIS {
                end += 1;
            }
            end - start
        });
        let bytes = most.max().unwrap_or(0) as u64 * OPPORTUNITY_BYTES;
        (bytes * 8 * 1000 / PEAK_MILLIS) as f64
    }

    /// Bytes of the opportunities before `time`; one at that very moment can still be used.
    fn offered(&self, time: Duration) -> u128 {
        let millis = time.as_nanos().div_ceil(NANOS_PER_MILLI);
        let period = u128::from(self.period_ms());
        let laps = millis.saturating_sub(1) / period;
        let rest = millis - laps * period;
        let within = self.times_ms.partition_point(|&at| u128::from(at) < rest);
        (laps * self.times_ms.len() as u128 + within as u128) * u128::from(OPPORTUNITY_BYTES)
    }

    /// When byte `work` (the first is 1) leaves.
    fn finished(&self, work: u128) -> Duration {
        match work.checked_sub(1) {
            Some(last) => self.resumed(last),
            None => Duration::ZERO,
        }
    }

    /// The time of the opportunity with the byte after `work` bytes.
    fn resumed(&self, work: u128) -> Duration {
        let opportunity = work / u128::from(OPPORTUNITY_BYTES);
        let count = self.times_ms.len() as u128;
        let within = self.times_ms[(opportunity % count) as usize];
        let millis = opportunity / count * u128::from(self.period_ms()) + u128::from(within);
        nanos(millis.saturating_mul(NANOS_PER_MILLI))
    }
}

/// One step of a trace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// When it begins.
    pub start: Duration,
    /// The rate from then on; 0 for none.
    pub bits_per_second: u64,
    /// Propagation from then on, added to that of the settings.
    pub delay: Duration,
    /// Probability of loss from then on, beside the settings' loss model.
    pub loss: f64,
}

/// A rate that holds until the next one.
///
/// The time for a packet is exact across steps: it leaves as soon as the integral of the rate
/// since it was its turn is its length. Delay and loss are those of the moment at which a packet
/// comes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Columns", into = "Columns")]
pub struct Steps {
    steps: Box<[Step]>,
    /// The work offered before each step, and at last that of a whole period.
    before: Box<[u128]>,
    period: Duration,
}

impl Steps {
    /// A trace of steps, the first at time 0, that repeats after `period`.
    ///
    /// # Errors
    /// [`TraceProblem`], if there are none, if the first is not at 0, if two are not in order or
    /// the last is not before the end, if a value is beyond its range (100 Gbit/s, 10 s, a loss
    /// outside 0 to 1), if the period is beyond a day, or if the mean rate is below 10 kbit/s.
    pub fn new(steps: Vec<Step>, period: Duration) -> Result<Self, TraceProblem> {
        let Some(first) = steps.first() else {
            return Err(TraceProblem::Empty);
        };
        if period.is_zero() {
            return Err(TraceProblem::NoTime);
        }
        if !first.start.is_zero() {
            return Err(TraceProblem::Order { index: 0 });
        }
        let ends = steps.iter().skip(1).map(|step| step.start).chain([period]);
        let mut before = Vec::with_capacity(steps.len() + 1);
        let mut offered = 0_u128;
        for (index, (step, end)) in steps.iter().zip(ends).enumerate() {
            if end <= step.start {
                return Err(TraceProblem::Order { index: index + 1 });
            }
            let problem = |what| Err(TraceProblem::TooGreat { index, what });
            if step.bits_per_second > MAX_BITS_PER_SECOND {
                return problem("rate, 100 Gbit/s");
            }
            if step.delay > MAX_DELAY {
                return problem("delay, 10 s");
            }
            if !(0.0..=1.0).contains(&step.loss) {
                return problem("loss, 1");
            }
            before.push(offered);
            offered += u128::from(step.bits_per_second) * (end - step.start).as_nanos();
        }
        before.push(offered);
        if period > MAX_PERIOD {
            return Err(TraceProblem::TooGreat {
                index: steps.len() - 1,
                what: "time, a day",
            });
        }
        check_mean(offered / period.as_nanos())?;
        Ok(Self {
            steps: steps.into_boxed_slice(),
            before: before.into_boxed_slice(),
            period,
        })
    }

    /// The steps.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The time after which the trace repeats.
    #[must_use]
    pub fn period(&self) -> Duration {
        self.period
    }

    fn mean_bits_per_second(&self) -> f64 {
        self.total() as f64 / self.period.as_nanos() as f64
    }

    fn total(&self) -> u128 {
        self.before[self.steps.len()]
    }

    /// The step that holds at `time` of some lap.
    fn step_at(&self, time: Duration) -> &Step {
        let within = nanos(time.as_nanos() % self.period.as_nanos());
        &self.steps[self.index_at(within)]
    }

    /// The step that holds at a time of the first lap.
    fn index_at(&self, within: Duration) -> usize {
        // The first step starts at 0, so at least one does not start later.
        self.steps.partition_point(|step| step.start <= within) - 1
    }

    fn offered(&self, time: Duration) -> u128 {
        let period = self.period.as_nanos();
        let laps = time.as_nanos() / period;
        let within = nanos(time.as_nanos() % period);
        let index = self.index_at(within);
        let step = &self.steps[index];
        let part = u128::from(step.bits_per_second) * (within - step.start).as_nanos();
        laps * self.total() + self.before[index] + part
    }

    fn finished(&self, work: u128) -> Duration {
        let Some(last) = work.checked_sub(1) else {
            return Duration::ZERO;
        };
        let (laps, rest) = (last / self.total(), last % self.total() + 1);
        // The step that crosses the mark: more was offered after it than before it, so that its
        // rate is not 0.
        let index = self.before.partition_point(|&before| before < rest) - 1;
        self.within(laps, index, rest)
    }

    fn resumed(&self, work: u128) -> Duration {
        let (laps, rest) = (work / self.total(), work % self.total());
        let index = self.before.partition_point(|&before| before <= rest) - 1;
        self.within(laps, index, rest)
    }

    /// When a step of non-zero rate has brought a lap's offer to `rest`, to the next nanosecond.
    fn within(&self, laps: u128, index: usize, rest: u128) -> Duration {
        let step = &self.steps[index];
        let rate = u128::from(step.bits_per_second).max(1);
        let part = (rest - self.before[index]).div_ceil(rate);
        let start = laps.saturating_mul(self.period.as_nanos());
        nanos(start.saturating_add(step.start.as_nanos() + part))
    }
}

fn check_mean(bits_per_second: u128) -> Result<(), TraceProblem> {
    if bits_per_second < MIN_MEAN_BITS_PER_SECOND {
        // Below the bound it fits.
        let bits_per_second = bits_per_second as u64;
        return Err(TraceProblem::TooSlow { bits_per_second });
    }
    Ok(())
}

fn nanos(nanos: u128) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn step(start_ms: u64, bits_per_second: u64) -> Step {
        Step {
            start: Duration::from_millis(start_ms),
            bits_per_second,
            delay: Duration::ZERO,
            loss: 0.0,
        }
    }

    #[test]
    fn opportunities_repeat_after_the_last_timestamp() {
        let trace = Opportunities::new(vec![0, 2, 2, 5]).expect("valid");
        // 0 2 2 5 | 5 7 7 10 | 10 …
        for (time_us, opportunities) in [
            (0, 0),
            (1, 1),
            (2_000, 1),
            (2_001, 3),
            (5_000, 3),
            (5_001, 5),
            (10_000, 7),
            (10_001, 9),
        ] {
            assert_eq!(
                trace.offered(Duration::from_micros(time_us)),
                opportunities * 1504,
                "{time_us}"
            );
        }
        assert_eq!(trace.finished(1), Duration::ZERO);
        assert_eq!(trace.finished(1504), Duration::ZERO);
        assert_eq!(trace.finished(1505), 2 * MS);
        assert_eq!(trace.finished(3 * 1504 + 1), 5 * MS);
        assert_eq!(trace.finished(5 * 1504), 5 * MS);
        assert_eq!(trace.finished(5 * 1504 + 1), 7 * MS);
        assert_eq!(trace.resumed(1504), 2 * MS);
        assert_eq!(trace.period(), 5 * MS);
        // From 2 ms to just before 22 ms, in the fifth lap.
        assert_eq!(trace.peak_bits_per_second(), 16.0 * 1504.0 * 8.0 * 50.0);
        let trace = Opportunities::new(vec![0, 100, 110, 119, 120, 300]).expect("valid");
        assert_eq!(trace.peak_bits_per_second(), 3.0 * 1504.0 * 8.0 * 50.0);
    }

    #[test]
    fn steps_integrate_across_changes_and_laps() {
        // 8 Mbit/s for 1 ms, nothing for 2 ms, 16 Mbit/s for 1 ms: 1000 and 2000 bytes.
        let steps = vec![step(0, 8_000_000), step(1, 0), step(3, 16_000_000)];
        let trace = Steps::new(steps, 4 * MS).expect("valid");
        let bytes = |bytes: u128| bytes * WORK_PER_BYTE;
        assert_eq!(trace.offered(MS / 2), bytes(500));
        assert_eq!(trace.offered(2 * MS), bytes(1000));
        assert_eq!(trace.offered(4 * MS), bytes(3000));
        assert_eq!(trace.finished(bytes(1000)), MS);
        assert_eq!(trace.resumed(bytes(1000)), 3 * MS);
        assert_eq!(trace.finished(bytes(2000)), 3 * MS + MS / 2);
        assert_eq!(trace.finished(bytes(3000)), 4 * MS);
        assert_eq!(trace.resumed(bytes(3000)), 4 * MS);
        assert_eq!(trace.finished(bytes(3 * 3000 + 2000)), 15 * MS + MS / 2);
        assert!((trace.mean_bits_per_second() - 6e6).abs() < 1e-6);
    }

    #[test]
    fn what_is_no_trace_is_refused() {
        let problem = |times: &[u32]| Opportunities::new(times.to_vec()).expect_err("invalid");
        assert_eq!(problem(&[]), TraceProblem::Empty);
        assert_eq!(problem(&[0, 0]), TraceProblem::NoTime);
        assert_eq!(problem(&[1, 3, 2]), TraceProblem::Order { index: 2 });
        assert!(matches!(problem(&[10_000]), TraceProblem::TooSlow { .. }));
        assert!(matches!(
            problem(&[u32::MAX]),
            TraceProblem::TooGreat { .. }
        ));
        let problem =
            |steps: &[Step], period| Steps::new(steps.to_vec(), period).expect_err("invalid");
        assert_eq!(problem(&[], MS), TraceProblem::Empty);
        assert_eq!(
            problem(&[step(1, 1)], 2 * MS),
            TraceProblem::Order { index: 0 }
        );
        assert_eq!(
            problem(&[step(0, 1), step(0, 1)], MS),
            TraceProblem::Order { index: 1 }
        );
        assert_eq!(
            problem(&[step(0, 1), step(3, 1)], 3 * MS),
            TraceProblem::Order { index: 2 }
        );
        assert!(matches!(
            problem(&[step(0, 9_999)], MS),
            TraceProblem::TooSlow { .. }
        ));
        let lossy = Step {
            loss: f64::NAN,
            ..step(0, 1_000_000)
        };
        assert!(matches!(
            problem(&[lossy], MS),
            TraceProblem::TooGreat { .. }
        ));
    }

    proptest! {
        /// `finished` and `resumed` are the two inverses of `offered`.
        #[test]
        fn offers_and_times_are_inverse(
            gaps in prop::collection::vec((1_u64..5_000_000, prop_oneof![Just(0), 1_u64..2_000_000_000]), 1..20),
            works in prop::collection::vec(1_u128..1 << 60, 1..20),
        ) {
            let mut steps = Vec::new();
            let mut at = Duration::ZERO;
            for (gap, rate) in gaps {
                steps.push(Step { start: at, ..step(0, rate) });
                at += Duration::from_nanos(gap);
            }
            let Ok(trace) = Steps::new(steps, at) else { return Ok(()) };
            let ns = Duration::from_nanos(1);
            for work in works {
                let finished = trace.finished(work);
                prop_assert!(trace.offered(finished) >= work);
                prop_assert!(trace.offered(finished - ns) < work);
                let resumed = trace.resumed(work);
                prop_assert!(resumed >= finished);
                prop_assert!(trace.offered(resumed + ns) > work);
            }
        }
    }
}
