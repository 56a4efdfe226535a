//! `head_ridge`: every target head from the few source heads that explain it best.

use serde::{Deserialize, Serialize};

use super::super::affine::Solution;
use super::super::ridge;
use super::{Choice, Group, Mapping, Part, Problem, by_layer_and_side, grid};
use crate::align::{Affine, AlignError, Moments, Slot};
use crate::block::KvShape;

/// Lambda of the single-head maps that heads are matched by.
const MATCH_LAMBDA: f64 = 1e-2;

/// Ridge from the `heads` source heads, among those of the source layers, whose own map explains
/// most of the target head on the validation split (`CacheBridge`'s head-restricted ridge). The
/// map of a layer has `heads / all heads` of the weights of [`Ridge`](super::Ridge)'s.
///
/// Loses where a target head's content is spread over many source heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeadRidge {
    /// Source heads of each target head; all where there are fewer.
    pub heads: usize,
}

impl Default for HeadRidge {
    fn default() -> Self {
        Self { heads: 1 }
    }
}

impl HeadRidge {
    pub(super) const NAME: &str = "head_ridge";
}

impl Mapping for HeadRidge {
    fn id(&self) -> &'static str {
        Self::NAME
    }

    fn groups(
        &self,
        layer_map: &[Vec<usize>],
        source: KvShape,
        target: KvShape,
    ) -> Result<Vec<Group>, AlignError> {
        super::at_least_one("heads", self.heads)?;
        let mut groups = by_layer_and_side(layer_map, source, target);
        for group in &mut groups {
            group.targets = group.outputs().into_iter().map(|slot| vec![slot]).collect();
        }
        Ok(groups)
    }

    fn choose(&self, problem: &Problem<'_>, moments: &Moments) -> Result<Vec<Choice>, AlignError> {
        let num_inputs = problem.group.inputs.len();
        let mut scores: Vec<Vec<f64>> = Vec::with_capacity(num_inputs);
        for input in 0..num_inputs {
            let single = Choice {
                inputs: vec![input],
                lambda: MATCH_LAMBDA,
            };
            let choices = vec![single; problem.group.targets.len()];
            scores.push(problem.scores(&self.solve(problem, moments, &choices)?)?);
        }
        let best = |target: usize| {
            let mut inputs: Vec<usize> = (0..num_inputs).collect();
            inputs.sort_by(|a, b| scores[*b][target].total_cmp(&scores[*a][target]));
            inputs.truncate(self.heads);
            inputs.sort_unstable();
            Choice {
                inputs,
                lambda: 0.0,
            }
        };
        let choices = (0..problem.group.targets.len()).map(best).collect();
        grid(problem, choices, |choices| {
            self.solve(problem, moments, choices)
        })
    }

    fn solve(
        &self,
        problem: &Problem<'_>,
        moments: &Moments,
        choices: &[Choice],
    ) -> Result<Vec<Part>, AlignError> {
        let centred = moments.centred();
        let targets = problem.columns().into_iter().zip(&problem.group.targets);
        let part =
            |(choice, (columns, outputs)): (&Choice, (std::ops::Range<usize>, &Vec<Slot>))| {
                let inputs = problem.slots(&choice.inputs);
                let some = centred.select(&problem.channels(&choice.inputs), columns.clone());
                let all = (0..columns.len(), choice.lambda);
                let mut solutions = ridge::solve(&some, &problem.blocks(&inputs), &[all])?;
                let solution = Solution::Dense(solutions.swap_remove(0));
                Ok(Part {
                    inputs,
                    own: Vec::new(),
                    outputs: outputs.clone(),
                    affine: Affine::new(&solution, &some.mean_x, &some.mean_y, problem.storage)?,
                })
            };
        choices.iter().zip(targets).map(part).collect()
    }
}
