//! `weighted_ridge`: ridge in which tokens count by the attention that they receive.

use super::super::affine::Solution;
use super::ridge::dense;
use super::{Choice, Mapping, Part, Problem};
use crate::align::{AlignError, Moments};

/// As [`Ridge`](super::Ridge), with every token weighted by the attention that it receives, as the
/// caller states it (`CacheBridge`'s attention-weighted ridge). The weights are shrunk towards
/// equal ones so far that `(Σ w)² / Σ w²` stays at or above `min(n, 2p)`, for `n` tokens and `p`
/// source channels: attention is so uneven that few tokens would decide the map.
///
/// Loses to plain ridge where questions attend to other tokens than the calibration text does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightedRidge;

impl WeightedRidge {
    pub(super) const NAME: &str = "weighted_ridge";
}

impl Mapping for WeightedRidge {
    fn id(&self) -> &'static str {
        Self::NAME
    }

    fn needs_weights(&self) -> bool {
        true
    }

    fn solve(
        &self,
        problem: &Problem<'_>,
        moments: &Moments,
        choices: &[Choice],
    ) -> Result<Vec<Part>, AlignError> {
        dense(problem, moments, choices, |weight, _| {
            Ok(Solution::Dense(weight))
        })
    }
}
