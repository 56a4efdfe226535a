//! Propagation delay with uniform jitter.

use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::stream;

/// One-way delay, uniform over `mean ± jitter`.
///
/// Without a rate, jitter reorders packets, as it does in netem; with a rate it does not.
#[derive(Clone, Debug)]
pub struct Delay {
    mean: Duration,
    jitter: Duration,
    rng: ChaCha8Rng,
}

impl Delay {
    /// A delay for one direction; jitter above the mean is cut to it, so that the mean holds.
    #[must_use]
    pub fn new(mean: Duration, jitter: Duration, seed: u64, direction: &str) -> Self {
        Self {
            mean,
            jitter: jitter.min(mean),
            rng: stream(seed, direction, "delay"),
        }
    }

    /// The delay of the next packet.
    pub fn draw(&mut self) -> Duration {
        if self.jitter.is_zero() {
            return self.mean;
        }
        let low = nanos(self.mean - self.jitter);
        let high = nanos(self.mean + self.jitter);
        Duration::from_nanos(self.rng.random_range(low..=high))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_without_jitter_is_constant() {
        let mut delay = Delay::new(Duration::from_millis(7), Duration::ZERO, 1, "uplink");
        assert!((0..100).all(|_| delay.draw() == Duration::from_millis(7)));
    }

    #[test]
    fn jitter_is_uniform_by_kolmogorov_smirnov() {
        let mut delay = Delay::new(
            Duration::from_millis(10),
            Duration::from_millis(4),
            3,
            "uplink",
        );
        let draws = 20_000;
        let mut values: Vec<f64> = (0..draws)
            .map(|_| delay.draw().as_secs_f64() * 1e3)
            .collect();
        values.sort_by(f64::total_cmp);
        assert!(values[0] >= 6.0 && values[draws - 1] <= 14.0);
        let distance = values
            .iter()
            .enumerate()
            .map(|(index, value)| {
                let expected = (value - 6.0) / 8.0;
                let below = index as f64 / draws as f64;
                let above = (index + 1) as f64 / draws as f64;
                (expected - below).abs().max((expected - above).abs())
            })
            .fold(0.0, f64::max);
        // The critical distance at the 1% level is 1.63/√n.
        assert!(
            distance < 1.63 / (draws as f64).sqrt(),
            "distance {distance}"
        );
    }
}
