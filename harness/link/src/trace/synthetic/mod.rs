//! Synthetic traces: own models of how a link's bandwidth varies.
//!
//! A model's shape is its author's assumption, stated with each parameter; its mean is whatever a
//! profile takes from a measurement. The same parameters always give the same trace. A synthetic
//! trace is for asking how a system takes a link that varies in such a way, not for predicting
//! what a certain operator's network does.

mod leo;
mod lte;
mod nr;

use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

pub use leo::Leo;
pub use lte::Lte;
pub use nr::Nr;

use super::{MAX_STEPS, TraceError};
use crate::core::{MAX_BITS_PER_SECOND, Step, Steps, stream};

/// A model and its parameters, as in a profile: `synthetic = { leo = { seed = 1, … } }`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Synthetic {
    /// Slow fading of a cell that is shared.
    Lte(Lte),
    /// A fast cell that is blocked now and then.
    Nr(Nr),
    /// Satellites in low earth orbit, with reconfigurations.
    Leo(Leo),
}

impl Synthetic {
    /// The trace. Its mean rate is the model's `mean_mbit`, to the rounding of its steps.
    ///
    /// # Errors
    /// [`TraceError::Parameter`] for a parameter out of range.
    pub fn generate(&self) -> Result<Steps, TraceError> {
        match self {
            Self::Lte(model) => model.generate(),
            Self::Nr(model) => model.generate(),
            Self::Leo(model) => model.generate(),
        }
    }

    /// The mean rate in Mbit/s.
    #[must_use]
    pub fn mean_mbit(&self) -> f64 {
        match self {
            Self::Lte(model) => model.mean_mbit,
            Self::Nr(model) => model.mean_mbit,
            Self::Leo(model) => model.mean_mbit,
        }
    }
}

/// The random stream of one part of a model.
fn part(seed: u64, model: &str, part: &str) -> ChaCha8Rng {
    stream(seed, model, part)
}

/// A standard normal draw, by Box and Muller.
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

/// A log-normal process whose logarithm is autoregressive: what fading and other users leave of a
/// cell's rate. Its values are factors with a median of 1.
struct Fading {
    spread: f64,
    keep: f64,
    state: f64,
    rng: ChaCha8Rng,
}

impl Fading {
    /// Fading with a standard deviation `spread` of the logarithm, whose autocorrelation falls to
    /// 1/e within `correlation`.
    fn new(spread: f64, correlation: Duration, step: Duration, mut rng: ChaCha8Rng) -> Self {
        Self {
            spread,
            keep: (-step.as_secs_f64() / correlation.as_secs_f64()).exp(),
            state: normal(&mut rng),
            rng,
        }
    }

    fn next(&mut self) -> f64 {
        let value = (self.spread * self.state).exp();
        self.state =
            self.keep * self.state + (1.0 - self.keep * self.keep).sqrt() * normal(&mut self.rng);
        value
    }
}

/// A step before its rate is scaled.
struct Shape {
    length: Duration,
    weight: f64,
    delay: Duration,
    loss: f64,
}

/// Scales weights to a mean, to the next kbit/s.
fn scale(shapes: &[Shape], mean_mbit: f64) -> Result<Steps, TraceError> {
    let period: Duration = shapes.iter().map(|shape| shape.length).sum();
    let weight = |shape: &Shape| shape.weight * shape.length.as_secs_f64();
    let mean = shapes.iter().map(weight).sum::<f64>() / period.as_secs_f64();
    let mut start = Duration::ZERO;
    let steps = shapes
        .iter()
        .map(|shape| {
            let kbit = (mean_mbit * 1e3 * shape.weight / mean).round() as u64;
            let step = Step {
                start,
                bits_per_second: kbit.saturating_mul(1000).min(MAX_BITS_PER_SECOND),
                delay: shape.delay,
                loss: shape.loss,
            };
            start += shape.length;
            step
        })
        .collect();
    Ok(Steps::new(steps, period)?)
}

/// Checks a parameter; the range is written so that NaN is outside of it.
fn check(field: &'static str, value: f64, low: f64, high: f64) -> Result<(), TraceError> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(TraceError::Parameter {
        field,
        problem: format!("is {value}; it must be {low} to {high}"),
    })
}

/// Checks what all models have in common, and returns the number of steps.
fn check_common(mean_mbit: f64, duration_s: f64, step_ms: f64) -> Result<usize, TraceError> {
    check("mean_mbit", mean_mbit, 0.1, 20_000.0)?;
    check("duration_s", duration_s, 1.0, 3_600.0)?;
    check("step_ms", step_ms, 1.0, 1_000.0)?;
    let steps = duration_s * 1e3 / step_ms;
    if steps.round() > MAX_STEPS as f64 {
        return Err(TraceError::Parameter {
            field: "step_ms",
            problem: format!("is {step_ms}; that is more than {MAX_STEPS} steps in {duration_s} s"),
        });
    }
    Ok(steps.round() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{BandwidthTrace, encoded_bytes};
    use crate::trace::{csv, mahimahi};

    fn models(seed: u64) -> [Synthetic; 3] {
        [
            Synthetic::Lte(Lte::new(seed, 20.0)),
            Synthetic::Nr(Nr::new(seed, 200.0)),
            Synthetic::Leo(Leo::new(seed, 100.0)),
        ]
    }

    #[test]
    fn a_seed_gives_a_trace_and_the_mean_is_the_one_asked_for() {
        for (model, other) in models(1).iter().zip(models(2)) {
            let trace = model.generate().expect("a trace");
            assert_eq!(trace, model.generate().expect("a trace"));
            assert_ne!(trace, other.generate().expect("a trace"));
            let mean = BandwidthTrace::Steps(trace).mean_bits_per_second();
            let expected = model.mean_mbit() * 1e6;
            assert!((mean / expected - 1.0).abs() < 1e-3, "{model:?}: {mean}");
        }
    }

    #[test]
    fn a_trace_can_be_written_in_both_formats_and_is_small() {
        for model in models(3) {
            let trace = BandwidthTrace::Steps(model.generate().expect("a trace"));
            assert!(encoded_bytes(&trace) < 200_000);
            let text = csv::format(&csv::from_trace(&trace).expect("steps"));
            let read = BandwidthTrace::Steps(csv::parse(text.as_bytes()).expect("the same"));
            assert_eq!(read.period(), trace.period());
            assert_eq!(read.mean_bits_per_second(), trace.mean_bits_per_second());
        }
        let trace = BandwidthTrace::Steps(models(3)[0].generate().expect("a trace"));
        let opportunities = mahimahi::from_trace(&trace).expect("opportunities");
        let mean = opportunities.times_ms().len() as f64 * 1504.0 * 8.0
            / opportunities.period().as_secs_f64();
        assert!((mean / trace.mean_bits_per_second() - 1.0).abs() < 1e-3);
    }

    #[test]
    fn parameters_out_of_range_are_named() {
        let error = |model: Synthetic| model.generate().expect_err("out of range").to_string();
        let slow = error(Synthetic::Lte(Lte::new(1, 0.0)));
        assert_eq!(slow, "mean_mbit is 0; it must be 0.1 to 20000");
        let long = Lte {
            step_ms: 1.0,
            duration_s: 3600.0,
            ..Lte::new(1, 5.0)
        };
        assert!(error(Synthetic::Lte(long)).contains("more than 200000 steps"));
        let nan = Nr {
            blocked_share: f64::NAN,
            ..Nr::new(1, 5.0)
        };
        assert!(error(Synthetic::Nr(nan)).starts_with("blocked_share is NaN"));
        let unknown =
            serde_json::from_str::<Synthetic>(r#"{"leo":{"seed":1,"mean_mbit":5,"x":1}}"#);
        assert!(unknown.is_err_and(|error| error.to_string().contains("unknown field `x`")));
    }

    #[test]
    fn fading_has_its_spread_and_its_correlation() {
        let ms = Duration::from_millis;
        let mut fading = Fading::new(0.5, ms(1000), ms(100), part(1, "test", "fading"));
        let logs: Vec<f64> = (0..100_000).map(|_| fading.next().ln()).collect();
        let n = logs.len() as f64;
        let variance = logs.iter().map(|x| x * x).sum::<f64>() / n;
        // Correlated over about 20 draws, so that the error is that of 5,000 draws.
        assert!((variance.sqrt() - 0.5).abs() < 0.02, "{variance}");
        let products = logs.windows(11).map(|pair| pair[0] * pair[10]);
        let correlation = products.sum::<f64>() / n / variance;
        assert!(
            (correlation - (-1.0_f64).exp()).abs() < 0.06,
            "{correlation}"
        );
    }
}
