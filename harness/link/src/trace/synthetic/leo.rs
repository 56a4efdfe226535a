//! Satellites in low earth orbit.

use std::time::Duration;

use rand::RngExt;
use serde::{Deserialize, Serialize};

use super::{Fading, Shape, check, check_common, normal, part, scale};
use crate::core::Steps;
use crate::trace::TraceError;

/// A rate, a delay and a loss like those of a link over satellites in low earth orbit, which are
/// given out anew at fixed intervals.
///
/// From measurements of Starlink: the interval of 15 s, bursts of loss at reconfigurations, and a
/// range of 20 ms of the round trip, 40 to 60 ms, of which each direction has half. Assumptions
/// of this model: that delay and mean rate are drawn anew at each interval, uniformly and
/// log-normally, and all other defaults.
///
/// The delay adds to a profile's `delay_ms`. Two directions with the same seed have the same
/// delay, and rates that rise and fall together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leo {
    /// Seed of the trace.
    pub seed: u64,
    /// Mean rate in Mbit/s.
    pub mean_mbit: f64,
    /// Length of the trace, after which it repeats, in seconds: a multiple of `interval_s`.
    #[serde(default = "Leo::duration_s")]
    pub duration_s: f64,
    /// Length of a step in milliseconds.
    #[serde(default = "Leo::step_ms")]
    pub step_ms: f64,
    /// Time from one reconfiguration to the next, in seconds.
    #[serde(default = "Leo::interval_s")]
    pub interval_s: f64,
    /// Standard deviation of the natural logarithm of an interval's rate.
    #[serde(default = "Leo::spread")]
    pub spread: f64,
    /// Standard deviation of the natural logarithm of the rate within an interval.
    #[serde(default = "Leo::fading")]
    pub fading: f64,
    /// Greatest delay, one way, that an interval adds, in milliseconds.
    #[serde(default = "Leo::delay_range_ms")]
    pub delay_range_ms: f64,
    /// Length of the burst of loss at the end of each interval, in milliseconds.
    #[serde(default = "Leo::handover_ms")]
    pub handover_ms: f64,
    /// Probability of loss during the burst.
    #[serde(default = "Leo::handover_loss")]
    pub handover_loss: f64,
}

impl Leo {
    /// The model with its defaults.
    #[must_use]
    pub fn new(seed: u64, mean_mbit: f64) -> Self {
        Self {
            seed,
            mean_mbit,
            duration_s: Self::duration_s(),
            step_ms: Self::step_ms(),
            interval_s: Self::interval_s(),
            spread: Self::spread(),
            fading: Self::fading(),
            delay_range_ms: Self::delay_range_ms(),
            handover_ms: Self::handover_ms(),
            handover_loss: Self::handover_loss(),
        }
    }

    fn duration_s() -> f64 {
        300.0
    }

    fn step_ms() -> f64 {
        100.0
    }

    fn interval_s() -> f64 {
        15.0
    }

    fn spread() -> f64 {
        0.3
    }

    fn fading() -> f64 {
        0.1
    }

    fn delay_range_ms() -> f64 {
        10.0
    }

    fn handover_ms() -> f64 {
        200.0
    }

    fn handover_loss() -> f64 {
        0.5
    }

    pub(super) fn generate(&self) -> Result<Steps, TraceError> {
        check_common(self.mean_mbit, self.duration_s, self.step_ms)?;
        check("interval_s", self.interval_s, 1.0, self.duration_s)?;
        check("spread", self.spread, 0.0, 2.0)?;
        check("fading", self.fading, 0.0, 2.0)?;
        check("delay_range_ms", self.delay_range_ms, 0.0, 1_000.0)?;
        let most = self.interval_s * 1e3 / 2.0;
        check("handover_ms", self.handover_ms, 0.0, most)?;
        check("handover_loss", self.handover_loss, 0.0, 1.0)?;
        let intervals = self.duration_s / self.interval_s;
        if (intervals - intervals.round()).abs() > 1e-6 {
            return Err(TraceError::Parameter {
                field: "duration_s",
                problem: format!(
                    "is {}; it must be a multiple of interval_s, {}",
                    self.duration_s, self.interval_s
                ),
            });
        }

        let step = Duration::from_secs_f64(self.step_ms / 1e3);
        let interval = Duration::from_secs_f64(self.interval_s);
        let handover = Duration::from_secs_f64(self.handover_ms / 1e3);
        let mut levels = part(self.seed, "leo", "level");
        let mut delays = part(self.seed, "leo", "delay");
        let fading = part(self.seed, "leo", "fading");
        let mut fading = Fading::new(self.fading, Duration::from_secs(1), step, fading);
        let mut shapes = Vec::new();
        for _ in 0..intervals.round() as usize {
            let level = (self.spread * normal(&mut levels)).exp();
            let range = self.delay_range_ms / 1e3;
            let delay = Duration::from_secs_f64(range * delays.random::<f64>());
            // The burst ends the interval, so that a link does not begin with one.
            for (part, loss) in [(interval - handover, 0.0), (handover, self.handover_loss)] {
                let mut rest = part;
                while !rest.is_zero() {
                    let length = rest.min(step);
                    shapes.push(Shape {
                        length,
                        weight: level * fading.next(),
                        delay,
                        loss,
                    });
                    rest -= length;
                }
            }
        }
        scale(&shapes, self.mean_mbit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_change_the_delay_and_end_with_a_burst_of_loss() {
        let trace = Leo::new(4, 100.0).generate().expect("a trace");
        assert_eq!(trace.period(), Duration::from_secs(300));
        let mut delays = Vec::new();
        for interval in trace.steps().chunk_by(|a, b| a.delay == b.delay) {
            let millis = interval[0].start.as_millis();
            assert_eq!(millis % 15_000, 0);
            for step in interval {
                let burst = (step.start.as_millis() - millis) >= 14_800;
                assert_eq!(step.loss, if burst { 0.5 } else { 0.0 });
            }
            delays.push(interval[0].delay);
        }
        assert_eq!(delays.len(), 20);
        assert!(
            delays
                .iter()
                .all(|delay| *delay <= Duration::from_millis(10))
        );
        let least = delays.iter().min().expect("delays");
        let most = delays.iter().max().expect("delays");
        assert!(*most - *least > Duration::from_millis(6));
        // The other direction has the same delays.
        let other = Leo::new(4, 10.0).generate().expect("a trace");
        assert!(
            trace
                .steps()
                .iter()
                .zip(other.steps())
                .all(|(a, b)| a.delay == b.delay)
        );
    }

    #[test]
    fn the_duration_is_a_multiple_of_the_interval() {
        let model = Leo {
            duration_s: 100.0,
            ..Leo::new(1, 10.0)
        };
        let error = model.generate().expect_err("no multiple").to_string();
        assert_eq!(
            error,
            "duration_s is 100; it must be a multiple of interval_s, 15"
        );
    }
}
