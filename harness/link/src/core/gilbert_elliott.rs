//! Loss by a good and a bad state.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// The Gilbert–Elliott model; see [`LossModel::GilbertElliott`](super::LossModel) for its
/// parameters. Gilbert 1960, Elliott 1963; switching and draws as in netem.
#[derive(Clone, Debug)]
pub(super) struct GilbertElliott {
    good_to_bad: f64,
    bad_to_good: f64,
    good_loss: f64,
    bad_loss: f64,
    bad: bool,
}

impl GilbertElliott {
    pub(super) fn new(p: f64, r: f64, h: f64, k: f64) -> Self {
        Self {
            good_to_bad: p,
            bad_to_good: r,
            good_loss: 1.0 - k,
            bad_loss: 1.0 - h,
            bad: false,
        }
    }

    /// The probability with which a packet is lost in the present state.
    pub(super) fn loss(&self) -> f64 {
        if self.bad {
            self.bad_loss
        } else {
            self.good_loss
        }
    }

    /// Whether the next packet is lost: by the state before it, which then may change.
    pub(super) fn draw(&mut self, rng: &mut ChaCha8Rng) -> bool {
        let switch: f64 = rng.random();
        let lost = rng.random::<f64>() < self.loss();
        let probability = if self.bad {
            self.bad_to_good
        } else {
            self.good_to_bad
        };
        if switch < probability {
            self.bad = !self.bad;
        }
        lost
    }
}
