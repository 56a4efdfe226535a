//! Gaps between arrivals.

use serde::{Deserialize, Serialize};

use super::check_positive;
use crate::error::DatasetError;
use crate::rank;

/// How the gaps between arrivals are distributed around their mean.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ArrivalProcess {
    /// Exponential gaps: many users who do not know of each other.
    #[default]
    Poisson,
    /// Gamma gaps with the stated coefficient of variation (standard deviation /
    /// mean): bursts above 1, regularity below; 1 is Poisson.
    Gamma {
        /// Coefficient of variation.
        cv: f64,
    },
    /// Equal gaps.
    Constant,
}

impl ArrivalProcess {
    /// Refuses settings that give no distribution.
    pub(super) fn check(self) -> Result<(), DatasetError> {
        match self {
            Self::Gamma { cv } => {
                check_positive("cv", cv)?;
                if cv > 100.0 {
                    return Err(DatasetError::Setting {
                        setting: "cv",
                        value: cv.to_string(),
                        reason: "above 100 nearly all requests come at once",
                    });
                }
                Ok(())
            }
            Self::Poisson | Self::Constant => Ok(()),
        }
    }

    /// Gap `index` of a stream of mean 1. It depends on the seed, the stream's
    /// name and the index alone, so that a shorter run begins like a longer one
    /// and a faster one is the same pattern in less time.
    pub(super) fn gap(self, seed: u64, stream: &str, index: u64) -> f64 {
        let index = index.to_string();
        let draw = |what: &str| rank::uniform(seed, &["arrival", stream, &index, what]);
        match self {
            Self::Constant => 1.0,
            Self::Poisson => -draw("gap").ln(),
            Self::Gamma { cv } => {
                let shape = 1.0 / (cv * cv);
                gamma(shape, &draw) / shape
            }
        }
    }

    /// As it appears in a label.
    pub(super) fn label(self) -> String {
        match self {
            Self::Poisson => "poisson".to_owned(),
            Self::Gamma { cv } => format!("gamma{cv:?}"),
            Self::Constant => "constant".to_owned(),
        }
    }
}

/// A gamma variate of scale 1, by Marsaglia and Tsang (2000); `draw` gives
/// uniform numbers by name.
fn gamma(shape: f64, draw: &impl Fn(&str) -> f64) -> f64 {
    if shape < 1.0 {
        // The method needs a shape of at least 1; a power of a uniform lowers it.
        return gamma(shape + 1.0, draw) * draw("boost").powf(1.0 / shape);
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    // Each attempt succeeds with a probability above 95%.
    for attempt in 0..64 {
        let uniform = |what: &str| draw(&format!("{what}{attempt}"));
        let radius = (-2.0 * uniform("radius").ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * uniform("angle")).cos();
        let v = (1.0 + c * normal).powi(3);
        if v > 0.0 && uniform("accept").ln() < 0.5 * normal * normal + d - d * v + d * v.ln() {
            return d * v;
        }
    }
    // The mean, for the one in 10^80 that gets here.
    shape
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNT: u64 = 20_000;

    fn gaps(process: ArrivalProcess, seed: u64) -> Vec<f64> {
        (0..COUNT).map(|i| process.gap(seed, "t", i)).collect()
    }

    fn mean_and_cv(gaps: &[f64]) -> (f64, f64) {
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        (mean, variance.sqrt() / mean)
    }

    /// Largest distance between the empirical distribution and `cdf`, times √n:
    /// above 1.63 in one of a hundred seeds (Kolmogorov and Smirnov).
    fn kolmogorov(mut gaps: Vec<f64>, cdf: impl Fn(f64) -> f64) -> f64 {
        gaps.sort_by(f64::total_cmp);
        let n = gaps.len() as f64;
        gaps.iter()
            .enumerate()
            .map(|(i, &g)| {
                let there = cdf(g);
                (there - i as f64 / n)
                    .abs()
                    .max(((i + 1) as f64 / n - there).abs())
            })
            .fold(0.0, f64::max)
            * n.sqrt()
    }

    #[test]
    fn poisson_gaps_are_exponential() {
        let gaps = gaps(ArrivalProcess::Poisson, 1);
        let (mean, cv) = mean_and_cv(&gaps);
        assert!(
            (mean - 1.0).abs() < 0.03 && (cv - 1.0).abs() < 0.03,
            "{mean} {cv}"
        );
        let distance = kolmogorov(gaps, |g| 1.0 - (-g).exp());
        assert!(distance < 1.63, "{distance}");
    }

    #[test]
    fn poisson_counts_are_poisson() {
        // Arrivals per interval of mean 4: chi-square over 0..=9 and the rest.
        let mut counts = std::collections::BTreeMap::<u64, u64>::new();
        let mut at = 0.0;
        for gap in gaps(ArrivalProcess::Poisson, 2) {
            at += gap;
            *counts.entry((at / 4.0) as u64).or_default() += 1;
        }
        let intervals = (at / 4.0) as u64;
        let mut observed = [0.0; 11];
        for interval in 0..intervals {
            let n = counts.get(&interval).copied().unwrap_or(0);
            observed[n.min(10) as usize] += 1.0;
        }
        let mut expected = [0.0; 11];
        let mut probability = (-4.0f64).exp();
        for (n, expected) in expected.iter_mut().enumerate().take(10) {
            *expected = probability * intervals as f64;
            probability *= 4.0 / (n as f64 + 1.0);
        }
        expected[10] = intervals as f64 - expected[..10].iter().sum::<f64>();
        let chi: f64 = observed
            .iter()
            .zip(expected)
            .map(|(o, e)| (o - e).powi(2) / e)
            .sum();
        // 10 degrees of freedom: above 23.2 in one of a hundred seeds.
        assert!(chi < 23.2, "{chi}");
    }

    #[test]
    fn gamma_gaps_have_their_variation() {
        for cv in [0.25, 0.5, 1.0, 2.0, 4.0] {
            let gaps = gaps(ArrivalProcess::Gamma { cv }, 3);
            let (mean, found) = mean_and_cv(&gaps);
            assert!((mean - 1.0).abs() < 0.03 * cv.max(1.0), "{cv}: mean {mean}");
            assert!((found / cv - 1.0).abs() < 0.08, "{cv}: cv {found}");
            assert!(gaps.iter().all(|g| g.is_finite() && *g >= 0.0));
        }
        // cv 1 is exponential; cv √½ is an Erlang distribution of two stages.
        let one = kolmogorov(gaps(ArrivalProcess::Gamma { cv: 1.0 }, 4), |g| {
            1.0 - (-g).exp()
        });
        assert!(one < 1.63, "{one}");
        let cv = 0.5f64.sqrt();
        let two = kolmogorov(gaps(ArrivalProcess::Gamma { cv }, 5), |g| {
            1.0 - (1.0 + 2.0 * g) * (-2.0 * g).exp()
        });
        assert!(two < 1.63, "{two}");
    }

    #[test]
    fn gaps_are_drawn_by_name() {
        let process = ArrivalProcess::Gamma { cv: 2.0 };
        assert_eq!(process.gap(1, "a", 7), process.gap(1, "a", 7));
        assert_ne!(process.gap(1, "a", 7), process.gap(1, "b", 7));
        assert_ne!(process.gap(1, "a", 7), process.gap(2, "a", 7));
        assert_eq!(ArrivalProcess::Constant.gap(1, "a", 7), 1.0);
        for cv in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e6] {
            assert!(ArrivalProcess::Gamma { cv }.check().is_err(), "{cv}");
        }
    }
}
