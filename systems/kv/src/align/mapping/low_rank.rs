//! `low_rank`: reduced-rank ridge for every target layer and side.

use serde::{Deserialize, Serialize};

use super::super::affine::Solution;
use super::ridge::dense;
use super::{Choice, Group, Mapping, Part, Problem, by_layer_and_side};
use crate::align::spectrum::top_eigenvectors;
use crate::align::{AlignError, Moments};
use crate::block::KvShape;

/// Ridge of limited rank (reduced-rank regression, Izenman 1975): the ridge solution projected
/// onto the leading directions of its own outputs, which is the optimum of the ridge objective
/// among maps of that rank. `(p + q) · rank` weights for each layer and side.
///
/// Loses to [`Joint`](super::Joint) at the same cost, because layers cannot share directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LowRank {
    /// Rank of each map; the smaller of its widths where that is less.
    pub rank: usize,
}

impl Default for LowRank {
    fn default() -> Self {
        Self { rank: 64 }
    }
}

impl LowRank {
    pub(super) const NAME: &str = "low_rank";
}

impl Mapping for LowRank {
    fn id(&self) -> &'static str {
        Self::NAME
    }

    fn groups(
        &self,
        layer_map: &[Vec<usize>],
        source: KvShape,
        target: KvShape,
    ) -> Result<Vec<Group>, AlignError> {
        super::at_least_one("rank", self.rank)?;
        Ok(by_layer_and_side(layer_map, source, target))
    }

    fn solve(
        &self,
        problem: &Problem<'_>,
        moments: &Moments,
        choices: &[Choice],
    ) -> Result<Vec<Part>, AlignError> {
        dense(problem, moments, choices, |weight, xty| {
            let rank = self.rank.min(weight.nrows()).min(weight.ncols());
            // Of the fitted outputs, the penalty included.
            let covariance = weight.transpose() * xty;
            let directions = top_eigenvectors(&covariance, rank)?;
            Ok(Solution::Factored {
                down: &weight * &directions,
                up: directions.transpose().to_owned(),
            })
        })
    }
}
