//! A shared cell with slow fading.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Fading, Shape, check, check_common, part, scale};
use crate::core::Steps;
use crate::trace::TraceError;

/// An LTE-like rate: one log-normal process for fading and the load of others.
///
/// Assumptions of this model, not measurements: the distribution's shape, `spread` and
/// `correlation_s`. A phone in a moving car has a shorter correlation than one on a desk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lte {
    /// Seed of the trace.
    pub seed: u64,
    /// Mean rate in Mbit/s.
    pub mean_mbit: f64,
    /// Length of the trace, after which it repeats, in seconds.
    #[serde(default = "Lte::duration_s")]
    pub duration_s: f64,
    /// Length of a step in milliseconds.
    #[serde(default = "Lte::step_ms")]
    pub step_ms: f64,
    /// Standard deviation of the rate's natural logarithm: 0.5 has a third of the time above 1.24
    /// times the median and a third below 0.81 times it.
    #[serde(default = "Lte::spread")]
    pub spread: f64,
    /// Time in which the autocorrelation falls to 1/e, in seconds.
    #[serde(default = "Lte::correlation_s")]
    pub correlation_s: f64,
}

impl Lte {
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
        }
    }

    fn duration_s() -> f64 {
        300.0
    }

    fn step_ms() -> f64 {
        100.0
    }

    fn spread() -> f64 {
        0.5
    }

    fn correlation_s() -> f64 {
        2.0
    }

    pub(super) fn generate(&self) -> Result<Steps, TraceError> {
        let count = check_common(self.mean_mbit, self.duration_s, self.step_ms)?;
        check("spread", self.spread, 0.0, 2.0)?;
        check("correlation_s", self.correlation_s, 0.01, 600.0)?;
        let length = Duration::from_secs_f64(self.step_ms / 1e3);
        let correlation = Duration::from_secs_f64(self.correlation_s);
        let rng = part(self.seed, "lte", "fading");
        let mut fading = Fading::new(self.spread, correlation, length, rng);
        let shapes: Vec<Shape> = (0..count)
            .map(|_| Shape {
                length,
                weight: fading.next(),
                delay: Duration::ZERO,
                loss: 0.0,
            })
            .collect();
        scale(&shapes, self.mean_mbit)
    }
}
