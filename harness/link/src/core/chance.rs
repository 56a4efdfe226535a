//! A probability with a random stream of its own.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// Something that happens to each packet with one probability, independently of the others.
#[derive(Clone, Debug)]
pub(super) struct Chance {
    probability: f64,
    rng: ChaCha8Rng,
}

impl Chance {
    /// `probability` from 0 to 1; what lies outside is cut, and what is no number is 0.
    pub(super) fn new(probability: f64, rng: ChaCha8Rng) -> Self {
        Self { probability, rng }
    }

    /// Whether it happens to the next packet. Draws nothing where it cannot.
    pub(super) fn draw(&mut self) -> bool {
        self.draw_at(self.probability)
    }

    /// As [`Chance::draw`], with another probability.
    pub(super) fn draw_at(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.rng.random::<f64>() < probability
    }

    /// The stream itself, for draws that belong to the same impairment.
    pub(super) fn rng(&mut self) -> &mut ChaCha8Rng {
        &mut self.rng
    }
}
