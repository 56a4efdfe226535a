//! Propagation delay with jitter.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::Jitter;

/// One-way delay: a mean and, for each packet, a deviation from it.
///
/// Without a rate, jitter reorders packets, as it does in netem; with a rate it does not.
#[derive(Clone, Debug)]
pub struct Delay {
    mean: Duration,
    deviation: Deviation,
    rng: ChaCha8Rng,
}

/// How deviations are drawn.
#[derive(Clone, Debug)]
enum Deviation {
    None,
    /// Uniform over ± so many nanoseconds.
    Uniform(i64),
    /// An entry of the table, in units of a sigma of so many nanoseconds / 8192.
    Table(i64, Arc<[i16]>),
}

impl Delay {
    /// A delay that draws from `rng`; uniform jitter above the mean is cut to it, so that the
    /// mean holds.
    #[must_use]
    pub fn new(mean: Duration, jitter: &Jitter, rng: ChaCha8Rng) -> Self {
        let deviation = match jitter {
            Jitter::Uniform { half_width } => Deviation::Uniform(nanos((*half_width).min(mean))),
            other => other
                .table()
                .filter(|table| !table.is_empty())
                .map_or(Deviation::None, |table| {
                    Deviation::Table(nanos(jitter.scale()), table)
                }),
        };
        let deviation = match deviation {
            Deviation::Uniform(0) | Deviation::Table(0, _) => Deviation::None,
            other => other,
        };
        Self {
            mean,
            deviation,
            rng,
        }
    }

    /// The delay of the next packet.
    pub fn draw(&mut self) -> Duration {
        self.draw_around(Duration::ZERO)
    }

    /// The delay of the next packet where the mean is greater by `more`; never below 0.
    pub fn draw_around(&mut self, more: Duration) -> Duration {
        let deviation = match &self.deviation {
            Deviation::None => 0,
            Deviation::Uniform(half) => {
                let width = self.rng.random_range(0..=2 * half.unsigned_abs());
                width.cast_signed() - half
            }
            Deviation::Table(sigma, table) => {
                let entry = table[self.rng.random_range(0..table.len())];
                let product = i128::from(*sigma) * i128::from(entry);
                // An entry is below 4 · 8192, so the quotient is below 4 · sigma.
                (product / i128::from(Jitter::TABLE_UNIT)) as i64
            }
        };
        let mean = self.mean.saturating_add(more);
        let size = Duration::from_nanos(deviation.unsigned_abs());
        if deviation < 0 {
            mean.saturating_sub(size)
        } else {
            mean.saturating_add(size)
        }
    }
}

/// Nanoseconds, cut far above every delay and far enough below the width for what is computed
/// from them.
fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos())
        .unwrap_or(i64::MAX)
        .min(i64::MAX / 8)
}

#[cfg(test)]
mod tests {
    use super::super::stream;
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// The Kolmogorov–Smirnov distance of draws, in ms, from a distribution function; only
    /// draws below `cut` are looked at.
    fn distance(jitter: &Jitter, cut: f64, cdf: impl Fn(f64) -> f64) -> (f64, usize) {
        let mut delay = Delay::new(20 * MS, jitter, stream(3, "uplink", "delay"));
        let draws = 20_000;
        let mut values: Vec<f64> = (0..draws)
            .map(|_| delay.draw().as_secs_f64() * 1e3)
            .collect();
        values.sort_by(f64::total_cmp);
        let distance = values
            .iter()
            .enumerate()
            .filter(|(_, value)| **value < cut)
            .map(|(index, value)| {
                let expected = cdf(*value);
                let below = index as f64 / draws as f64;
                let above = (index + 1) as f64 / draws as f64;
                (expected - below).abs().max((expected - above).abs())
            })
            .fold(0.0, f64::max);
        (distance, draws)
    }

    /// The critical distance at the 1% level.
    fn critical(draws: usize) -> f64 {
        1.63 / (draws as f64).sqrt()
    }

    /// Φ by Simpson's rule from −8, independent of how the table is made.
    fn normal_cdf(x: f64) -> f64 {
        let steps = 400;
        let width = (x + 8.0) / f64::from(steps);
        let density = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let weight = |i| match i {
            0 => 1.0,
            i if i == steps => 1.0,
            i if i % 2 == 1 => 4.0,
            _ => 2.0,
        };
        let sum: f64 = (0..=steps)
            .map(|i| weight(i) * density(-8.0 + f64::from(i) * width))
            .sum();
        sum * width / 3.0
    }

    fn pareto_cdf(deviation: f64) -> f64 {
        1.0 - (deviation * 0.75_f64.sqrt() + 1.5).max(1.0).powi(-3)
    }

    #[test]
    fn a_delay_without_jitter_is_constant() {
        for jitter in [
            Jitter::None,
            Jitter::Normal {
                sigma: Duration::ZERO,
            },
            Jitter::Table {
                sigma: MS,
                table: Arc::new([]),
            },
        ] {
            let mut delay = Delay::new(7 * MS, &jitter, stream(1, "uplink", "delay"));
            assert!((0..100).all(|_| delay.draw() == 7 * MS));
        }
    }

    #[test]
    fn uniform_jitter_by_kolmogorov_smirnov() {
        let jitter = Jitter::Uniform { half_width: 4 * MS };
        let (uniform, draws) = distance(&jitter, 24.1, |x| (x - 16.0) / 8.0);
        assert!(uniform < critical(draws), "{uniform}");
        // The test tells a distribution that is 4% wider.
        let (wider, _) = distance(&jitter, 24.1, |x| (x - 15.84) / 8.32);
        assert!(wider > critical(draws), "{wider}");
    }

    #[test]
    fn normal_jitter_by_kolmogorov_smirnov() {
        let jitter = Jitter::Normal { sigma: 2 * MS };
        let (normal, draws) = distance(&jitter, 100.0, |x| normal_cdf((x - 20.0) / 2.0));
        assert!(normal < critical(draws), "{normal}");
        let (wider, _) = distance(&jitter, 100.0, |x| normal_cdf((x - 20.0) / 2.2));
        assert!(wider > critical(draws), "{wider}");
    }

    #[test]
    fn pareto_jitter_by_kolmogorov_smirnov() {
        let jitter = Jitter::Pareto { sigma: 2 * MS };
        // Beyond 4 sigma the table is cut.
        let (pareto, draws) = distance(&jitter, 27.99, |x| pareto_cdf((x - 20.0) / 2.0));
        assert!(pareto < critical(draws), "{pareto}");
        let (normal, _) = distance(&jitter, 27.99, |x| normal_cdf((x - 20.0) / 2.0));
        assert!(normal > critical(draws), "{normal}");
    }

    #[test]
    fn pareto_normal_jitter_by_kolmogorov_smirnov() {
        // Its quantile is a weighted sum, so its distribution function is found by bisection.
        let quantile = |u: f64| {
            let (mut low, mut high) = (-8.0, 8.0);
            for _ in 0..50 {
                let middle = (low + high) / 2.0;
                if normal_cdf(middle) < u {
                    low = middle;
                } else {
                    high = middle;
                }
            }
            0.25 * low + 0.75 * ((1.0 - u).powf(-1.0 / 3.0) - 1.5) / 0.75_f64.sqrt()
        };
        let known: Vec<f64> = (1..1000).map(|i| quantile(f64::from(i) / 1000.0)).collect();
        let cdf = |deviation: f64| {
            let above = known.partition_point(|&q| q < deviation);
            if above == 0 || above == known.len() {
                return above as f64 / 1000.0;
            }
            let (low, high) = (known[above - 1], known[above]);
            (above as f64 + (deviation - low) / (high - low)) / 1000.0
        };
        let jitter = Jitter::ParetoNormal { sigma: 2 * MS };
        let (mixed, draws) = distance(&jitter, 27.99, |x| cdf((x - 20.0) / 2.0));
        assert!(mixed < critical(draws), "{mixed}");
        let (pareto, _) = distance(&jitter, 27.99, |x| pareto_cdf((x - 20.0) / 2.0));
        assert!(pareto > critical(draws), "{pareto}");
    }

    #[test]
    fn a_tables_entries_are_equally_likely_and_no_delay_is_negative() {
        let jitter = Jitter::Table {
            sigma: 8 * MS,
            table: Arc::new([-32768, 0, 4096, 4096]),
        };
        let mut delay = Delay::new(20 * MS, &jitter, stream(3, "uplink", "delay"));
        let mut counts = [0; 3];
        for _ in 0..40_000 {
            let value = delay.draw();
            let at = [Duration::ZERO, 20 * MS, 24 * MS]
                .iter()
                .position(|expected| *expected == value)
                .expect("an entry of the table");
            counts[at] += 1;
        }
        // 99% intervals of binomial counts.
        assert!((counts[0] - 10_000_i32).abs() < 224, "{counts:?}");
        assert!((counts[2] - 20_000_i32).abs() < 258, "{counts:?}");
    }

    #[test]
    fn a_greater_mean_moves_every_draw_by_as_much() {
        let jitter = Jitter::Uniform { half_width: 4 * MS };
        let mut delay = Delay::new(10 * MS, &jitter, stream(3, "uplink", "delay"));
        let mut same = delay.clone();
        for _ in 0..100 {
            assert_eq!(delay.draw() + 3 * MS, same.draw_around(3 * MS));
        }
    }
}
