//! Packet loss.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::stream;

/// Independent, identically distributed loss.
#[derive(Clone, Debug)]
pub struct Loss {
    probability: f64,
    rng: ChaCha8Rng,
}

impl Loss {
    /// Loss of each packet with `probability` (0 to 1; what lies outside is cut).
    #[must_use]
    pub fn new(probability: f64, seed: u64, direction: &str) -> Self {
        Self {
            probability: probability.clamp(0.0, 1.0),
            rng: stream(seed, direction, "loss"),
        }
    }

    /// Whether the next packet is lost.
    pub fn draw(&mut self) -> bool {
        self.probability > 0.0 && self.rng.random::<f64>() < self.probability
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_lies_within_its_99_percent_interval() {
        for probability in [0.0037, 0.0116, 0.05, 0.5] {
            let draws = 1_000_000_f64;
            let mut loss = Loss::new(probability, 9, "downlink");
            let lost = (0..draws as u64).filter(|_| loss.draw()).count() as f64;
            let sigma = (draws * probability * (1.0 - probability)).sqrt();
            assert!(
                (lost - draws * probability).abs() < 2.576 * sigma,
                "{probability}: {lost}"
            );
        }
    }

    #[test]
    fn losses_are_independent_of_the_one_before() {
        let mut loss = Loss::new(0.2, 9, "downlink");
        let draws: Vec<bool> = (0..200_000).map(|_| loss.draw()).collect();
        let after_loss: Vec<bool> = draws
            .windows(2)
            .filter(|pair| pair[0])
            .map(|pair| pair[1])
            .collect();
        let n = after_loss.len() as f64;
        let lost = after_loss.iter().filter(|&&lost| lost).count() as f64;
        assert!((lost / n - 0.2).abs() < 2.576 * (0.2 * 0.8 / n).sqrt());
    }

    #[test]
    fn the_ends_of_the_range_are_exact() {
        let mut never = Loss::new(0.0, 1, "uplink");
        let mut always = Loss::new(1.0, 1, "uplink");
        assert!((0..1000).all(|_| !never.draw() && always.draw()));
    }
}
