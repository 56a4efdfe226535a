//! A fast cell that is blocked now and then.

use std::time::Duration;

use rand::RngExt;
use serde::{Deserialize, Serialize};

use super::{Fading, Shape, check, check_common, part, scale};
use crate::core::Steps;
use crate::trace::TraceError;

/// A 5G-like rate (5G's radio is called NR): fading as in [`Lte`](super::Lte), and a second state
/// in which the line of sight is blocked or the device has fallen back to a slower band.
///
/// Assumptions of this model, not measurements: everything but the mean. The two states follow
/// each other with exponentially distributed times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nr {
    /// Seed of the trace.
    pub seed: u64,
    /// Mean rate in Mbit/s, blocked times included.
    pub mean_mbit: f64,
    /// Length of the trace, after which it repeats, in seconds.
    #[serde(default = "Nr::duration_s")]
    pub duration_s: f64,
    /// Length of a step in milliseconds.
    #[serde(default = "Nr::step_ms")]
    pub step_ms: f64,
    /// Standard deviation of the rate's natural logarithm within a state.
    #[serde(default = "Nr::spread")]
    pub spread: f64,
    /// Time in which the fading's autocorrelation falls to 1/e, in seconds.
    #[serde(default = "Nr::correlation_s")]
    pub correlation_s: f64,
    /// Share of the time that is blocked, 0 to 0.9.
    #[serde(default = "Nr::blocked_share")]
    pub blocked_share: f64,
    /// Mean length of a blockage in seconds.
    #[serde(default = "Nr::blocked_s")]
    pub blocked_s: f64,
    /// Rate while blocked, as a fraction of that in the clear.
    #[serde(default = "Nr::blocked_rate")]
    pub blocked_rate: f64,
}

impl Nr {
    /// The model with its defaults.
    #[must_use]
    pub fn new(seed: u64, mean_mbit: f64) -> Self {
        Self {
            seed,
            mean_mbit,
            duration_s: Self::duration_s(),
            step_ms: Self::step_ms(),
            spread: Self::spread(),
            correlation_s: Self::correlation_s(),
            blocked_share: Self::blocked_share(),
            blocked_s: Self::blocked_s(),
            blocked_rate: Self::blocked_rate(),
        }
    }

    fn duration_s() -> f64 {
        300.0
    }

    fn step_ms() -> f64 {
        100.0
    }

    fn spread() -> f64 {
        0.3
    }

    fn correlation_s() -> f64 {
        1.0
    }

    fn blocked_share() -> f64 {
        0.15
    }

    fn blocked_s() -> f64 {
        1.0
    }

    fn blocked_rate() -> f64 {
        0.1
    }

    pub(super) fn generate(&self) -> Result<Steps, TraceError> {
        let count = check_common(self.mean_mbit, self.duration_s, self.step_ms)?;
        check("spread", self.spread, 0.0, 2.0)?;
        check("correlation_s", self.correlation_s, 0.01, 600.0)?;
        check("blocked_share", self.blocked_share, 0.0, 0.9)?;
        check("blocked_s", self.blocked_s, 0.01, 600.0)?;
        check("blocked_rate", self.blocked_rate, 0.0, 1.0)?;
        let length = Duration::from_secs_f64(self.step_ms / 1e3);
        let correlation = Duration::from_secs_f64(self.correlation_s);
        let rng = part(self.seed, "nr", "fading");
        let mut fading = Fading::new(self.spread, correlation, length, rng);
        let mut rng = part(self.seed, "nr", "blockage");
        // Chances to change within a step, for which the share of time is the one asked for.
        let ends = 1.0 - (-length.as_secs_f64() / self.blocked_s).exp();
        let begins = (ends * self.blocked_share / (1.0 - self.blocked_share)).min(1.0);
        let mut blocked = false;
        let shapes: Vec<Shape> = (0..count)
            .map(|_| {
                let change = if blocked { ends } else { begins };
                blocked ^= rng.random::<f64>() < change;
                let state = if blocked { self.blocked_rate } else { 1.0 };
                Shape {
                    length,
                    weight: state * fading.next(),
                    delay: Duration::ZERO,
                    loss: 0.0,
                }
            })
            .collect();
        scale(&shapes, self.mean_mbit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blockages_have_their_share_of_the_time() {
        let model = Nr {
            spread: 0.0,
            duration_s: 3600.0,
            ..Nr::new(5, 100.0)
        };
        let trace = model.generate().expect("a trace");
        let rates: Vec<u64> = trace
            .steps()
            .iter()
            .map(|step| step.bits_per_second)
            .collect();
        let clear = rates.iter().max().expect("steps");
        let blocked = rates.iter().filter(|rate| *rate < clear).count() as f64;
        // 540 blockages of 10 steps each on average.
        let share = blocked / rates.len() as f64;
        assert!((share - 0.15).abs() < 0.025, "{share}");
        let lengths: Vec<usize> = rates
            .split(|rate| rate == clear)
            .map(<[u64]>::len)
            .filter(|&len| len > 0)
            .collect();
        let mean = blocked / lengths.len() as f64;
        assert!((9.0..12.5).contains(&mean), "{mean}");
    }
}
