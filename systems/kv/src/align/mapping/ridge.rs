//! `ridge`: one dense map for the keys and one for the values of every target layer.

use faer::{Mat, MatRef};

use super::super::affine::Solution;
use super::super::ridge;
use super::{Choice, Mapping, Part, Problem};
use crate::align::{Affine, AlignError, Moments};

/// Centred ridge regression of all heads of a target layer on all heads of its source layers, in
/// closed form (arXiv 2608.03893): `p · q` weights for each layer and side.
///
/// The best linear map in the squared error. Loses where that error is not what matters: large
/// channels and frequent tokens come first in it, and shrinkage makes predictions too small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ridge;

impl Ridge {
    pub(super) const NAME: &str = "ridge";
}

impl Mapping for Ridge {
    fn id(&self) -> &'static str {
        Self::NAME
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

/// Ridge maps of all inputs. `finish` turns a solution, given the target's `XᵀY`, into what is to
/// be stored.
pub(super) fn dense(
    problem: &Problem<'_>,
    moments: &Moments,
    choices: &[Choice],
    finish: impl Fn(Mat<f64>, MatRef<'_, f64>) -> Result<Solution, AlignError>,
) -> Result<Vec<Part>, AlignError> {
    let centred = moments.centred();
    let inputs = &problem.group.inputs;
    let columns = problem.columns();
    let lambdas = choices.iter().map(|choice| choice.lambda);
    let targets: Vec<_> = columns.iter().cloned().zip(lambdas).collect();
    let solutions = ridge::solve(&centred, &problem.blocks(inputs), &targets)?;
    let mut parts = Vec::with_capacity(targets.len());
    let targets = columns.into_iter().zip(&problem.group.targets);
    for (solution, (columns, outputs)) in solutions.into_iter().zip(targets) {
        let xty = centred.xty.subcols(columns.start, columns.len());
        let solution = finish(solution, xty)?;
        let mean_y = &centred.mean_y[columns];
        parts.push(Part {
            inputs: inputs.clone(),
            own: Vec::new(),
            outputs: outputs.clone(),
            affine: Affine::new(&solution, &centred.mean_x, mean_y, problem.storage)?,
        });
    }
    Ok(parts)
}
