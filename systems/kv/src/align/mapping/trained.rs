//! `trained`: another mapping's numbers, trained on through the frozen edge model.

use super::Mapping;

/// The maps of another bridge, of whatever form, with numbers that gradients have found: what the
/// edge's attention reads from mapped KV, and the distributions that follow, are brought close to
/// what its own KV gives. Moments cannot say that, so that a fit refuses it; it starts at a fitted
/// bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trained;

impl Trained {
    pub(super) const NAME: &str = "trained";
}

impl Mapping for Trained {
    fn id(&self) -> &'static str {
        Self::NAME
    }
}
