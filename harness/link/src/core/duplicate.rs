//! Duplication.

use rand_chacha::ChaCha8Rng;

use super::chance::Chance;

/// Packets that come twice.
///
/// As in netem the draw comes before that of the loss model. A packet that is drawn for both
/// stays one packet; one that is drawn for duplication only gets a copy, made before the packet
/// may be corrupted. The copy has loss, corruption, reordering and delay of its own, takes its
/// own place in the queue and its own share of the bandwidth, and is not duplicated again.
#[derive(Clone, Debug)]
pub struct Duplicate(Chance);

impl Duplicate {
    /// Duplication of each packet with `probability`, 0 to 1.
    #[must_use]
    pub fn new(probability: f64, rng: ChaCha8Rng) -> Self {
        Self(Chance::new(probability, rng))
    }

    /// Whether the next packet is duplicated.
    pub fn draw(&mut self) -> bool {
        self.0.draw()
    }
}
