//! `copy`: the source's numbers as they are, cut or repeated to the target's shape.

use faer::Mat;

use super::super::affine::Solution;
use super::{Choice, Mapping, Part, Problem};
use crate::align::{Affine, AlignError, Moments, Slot};

/// Target head `h` gets the numbers of head `h mod num_kv_heads` of the first source layer,
/// channel `c` those of channel `c mod head_dim`. Nothing is fitted.
///
/// The control of every mapping: models trained apart share no basis, so it should be no better
/// than noise, and a task that it does not hurt says nothing about the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copy;

impl Copy {
    pub(super) const NAME: &str = "copy";
}

impl Mapping for Copy {
    fn id(&self) -> &'static str {
        Self::NAME
    }

    fn choose(&self, problem: &Problem<'_>, _moments: &Moments) -> Result<Vec<Choice>, AlignError> {
        let choice = Choice {
            inputs: (0..problem.source.num_kv_heads).collect(),
            lambda: 0.0,
        };
        Ok(vec![choice; problem.group.targets.len()])
    }

    fn solve(
        &self,
        problem: &Problem<'_>,
        _moments: &Moments,
        choices: &[Choice],
    ) -> Result<Vec<Part>, AlignError> {
        let (from, to) = (problem.source, problem.target);
        let part = |(choice, outputs): (&Choice, &Vec<Slot>)| {
            let (p, q) = (
                choice.inputs.len() * from.head_dim,
                outputs.len() * to.head_dim,
            );
            let weight = Mat::from_fn(p, q, |i, j| {
                let head = outputs[j / to.head_dim].head % choice.inputs.len();
                let channel = j % to.head_dim % from.head_dim;
                f64::from(u8::from(i == head * from.head_dim + channel))
            });
            // Without means there is no bias, and a gain stretches about zero.
            let solution = Solution::Dense(weight);
            let affine = Affine::new(&solution, &vec![0.0; p], &vec![0.0; q], problem.storage)?;
            Ok(Part {
                inputs: problem.slots(&choice.inputs),
                own: Vec::new(),
                outputs: outputs.clone(),
                affine,
            })
        };
        choices
            .iter()
            .zip(&problem.group.targets)
            .map(part)
            .collect()
    }
}
