//! Tables of jitter distributions.
//!
//! netem draws a deviation by taking a random entry of a table, in units of sigma / 8192. These
//! tables are computed here from the distributions' closed forms, one entry for the middle of
//! each of [`ENTRIES`] equally likely parts; a backend that hands tables to the kernel hands it
//! these, so that both emulate the same distribution.

use std::sync::{Arc, LazyLock};

use super::Jitter;

/// Entries of a computed table, as many as netem's have.
pub(super) const ENTRIES: usize = 4096;

impl Jitter {
    /// The table of the distribution, in units of sigma / 8192; `None` where netem has none
    /// either, which draws uniform jitter directly.
    ///
    /// An entry is 16 bits wide, so that no deviation is above 4 sigma. The normal distribution
    /// loses nothing by that in 4096 entries. Of the Pareto distribution 0.8% lies beyond; what
    /// is cut off lowers the mean by 0.024 sigma.
    #[must_use]
    pub fn table(&self) -> Option<Arc<[i16]>> {
        static NORMAL: LazyLock<Arc<[i16]>> = LazyLock::new(|| tabulate(normal));
        static PARETO: LazyLock<Arc<[i16]>> = LazyLock::new(|| tabulate(pareto));
        static PARETO_NORMAL: LazyLock<Arc<[i16]>> = LazyLock::new(|| tabulate(pareto_normal));
        match self {
            Self::None | Self::Uniform { .. } => None,
            Self::Normal { .. } => Some(Arc::clone(&NORMAL)),
            Self::Pareto { .. } => Some(Arc::clone(&PARETO)),
            Self::ParetoNormal { .. } => Some(Arc::clone(&PARETO_NORMAL)),
            Self::Table { table, .. } => Some(Arc::clone(table)),
        }
    }
}

/// A quantile function, at the middle of each part.
fn tabulate(quantile: fn(f64) -> f64) -> Arc<[i16]> {
    (0..ENTRIES)
        .map(|part| {
            let deviation = quantile((part as f64 + 0.5) / ENTRIES as f64);
            // The cast cuts what is beyond the width of an entry.
            (deviation * Jitter::TABLE_UNIT as f64).round() as i16
        })
        .collect()
}

/// The quantile of the standard normal distribution: Newton's method on [`normal_cdf`].
fn normal(probability: f64) -> f64 {
    if probability < 0.5 {
        return -normal(1.0 - probability);
    }
    // Above the median the function is concave, so from 0 the iteration approaches from below.
    let mut x = 0.0_f64;
    for _ in 0..64 {
        let step = (probability - normal_cdf(x)) / normal_density(x);
        x += step;
        if step.abs() < 1e-12 {
            break;
        }
    }
    x
}

fn normal_density(x: f64) -> f64 {
    (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

/// Φ(x) = ½ + φ(x) · (x + x³/3 + x⁵/(3·5) + …), which converges everywhere.
fn normal_cdf(x: f64) -> f64 {
    let (mut term, mut sum, mut odd) = (x, x, 1.0);
    while term.abs() > 1e-17 {
        odd += 2.0;
        term *= x * x / odd;
        sum += term;
    }
    0.5 + normal_density(x) * sum
}

/// The quantile of a Pareto distribution of shape 3, whose mean is 3/2 and variance 3/4, moved
/// and scaled to a mean of 0 and a variance of 1.
fn pareto(probability: f64) -> f64 {
    ((1.0 / (1.0 - probability)).cbrt() - 1.5) / 0.75_f64.sqrt()
}

fn pareto_normal(probability: f64) -> f64 {
    0.25 * normal(probability) + 0.75 * pareto(probability)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SIGMA: Duration = Duration::from_millis(1);

    fn moments(jitter: &Jitter) -> (f64, f64) {
        let table = jitter.table().expect("a table");
        assert_eq!(table.len(), ENTRIES);
        assert!(table.is_sorted());
        let values: Vec<f64> = table.iter().map(|&x| f64::from(x) / 8192.0).collect();
        let mean = values.iter().sum::<f64>() / ENTRIES as f64;
        let variance = values.iter().map(|x| x * x).sum::<f64>() / ENTRIES as f64 - mean * mean;
        (mean, variance.sqrt())
    }

    #[test]
    fn quantiles_are_those_of_the_closed_forms() {
        // From tables of the normal distribution.
        for (probability, x) in [
            (0.5, 0.0),
            (0.841_344_746_068_543, 1.0),
            (0.975, 1.959_963_984_540_054),
            (0.001, -3.090_232_306_167_813),
        ] {
            assert!((normal(probability) - x).abs() < 1e-9, "{probability}");
        }
        assert!((pareto(0.875) - 0.5 / 0.75_f64.sqrt()).abs() < 1e-12);
        assert!((pareto(0.0) + 0.5 / 0.75_f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn tables_have_the_moments_that_are_documented() {
        let (mean, deviation) = moments(&Jitter::Normal { sigma: SIGMA });
        assert!(
            mean.abs() < 1e-4 && (deviation - 1.0).abs() < 2e-3,
            "{deviation}"
        );
        let (mean, deviation) = moments(&Jitter::Pareto { sigma: SIGMA });
        assert!((mean + 0.0235).abs() < 1e-3, "{mean}");
        assert!((0.7..0.9).contains(&deviation), "{deviation}");
        let (mean, deviation) = moments(&Jitter::ParetoNormal { sigma: SIGMA });
        assert!((-0.02..0.0).contains(&mean), "{mean}");
        assert!((0.7..1.0).contains(&deviation), "{deviation}");
        let greatest = Jitter::Pareto { sigma: SIGMA }.greatest();
        assert!(greatest.abs_diff(4 * SIGMA) < SIGMA / 1000);
        assert!(Jitter::Normal { sigma: SIGMA }.greatest() < 4 * SIGMA);
        assert_eq!(Jitter::Uniform { half_width: SIGMA }.greatest(), SIGMA);
    }
}
