//! `joint`: one low-rank map from one set of source heads to all target layers and both sides.

use faer::Mat;
use serde::{Deserialize, Serialize};

use super::super::affine::Solution;
use super::super::ridge;
use super::{Choice, Group, Mapping, Part, Problem, grid};
use crate::align::spectrum::top_eigenvectors;
use crate::align::{Affine, AlignError, KvSide, Moments, Slot, SourceKind};
use crate::block::KvShape;

/// Target heads that lambda is chosen on; the equations for all take many times longer.
const CHOOSE_ON: usize = 8;

/// Which sides of the source layers are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceSides {
    /// Keys and values.
    #[default]
    Both,
    /// Keys only.
    Keys,
    /// Values only.
    Values,
}

impl SourceSides {
    const fn sides(self) -> &'static [KvSide] {
        match self {
            Self::Both => &KvSide::ALL,
            Self::Keys => &[KvSide::K],
            Self::Values => &[KvSide::V],
        }
    }
}

/// Reduced-rank ridge over all target layers and both sides together: `y = ȳ + (x − x̄) A B`,
/// with `x` the keys and values of every `stride`th of all source layers that the alignment
/// names, `A` `[p, rank]` and `B` `[rank, q]`. With `source = "states"`, `x` are the source's hidden
/// states before every `stride`th layer, that behind the last counted as one more.
///
/// Layers and sides count alike in the choice of directions, whatever their variance. A token
/// takes `(p + q) · rank` multiplications, 14 million for p = 7168, q = 6144 and rank 1024, and
/// as many weights. Fitting takes memory for about three `p x p` and three `p x q` matrices
/// in f64 (2.3 GB for those widths), and the first target layer cannot be mapped before the last
/// source layer has been computed.
///
/// Loses to [`Ridge`](super::Ridge) from as many layers where the rank is too small. States cost the
/// cloud a prefill of their own, also where it holds the context's KV.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Joint {
    /// Rank of the map; the smaller of its widths where that is less.
    pub rank: usize,
    /// Of the source layers, the first and every so manyeth after it are read.
    pub stride: usize,
    /// Which sides are read; both where the source is no KV.
    pub sides: SourceSides,
    /// What is read.
    #[serde(skip_serializing_if = "SourceKind::is_kv")]
    pub source: SourceKind,
}

impl Default for Joint {
    fn default() -> Self {
        Self {
            rank: 1024,
            stride: 2,
            sides: SourceSides::Both,
            source: SourceKind::Kv,
        }
    }
}

impl Joint {
    pub(super) const NAME: &str = "joint";
}

impl Mapping for Joint {
    fn id(&self) -> &'static str {
        Self::NAME
    }

    fn reads(&self) -> SourceKind {
        self.source
    }

    fn groups(
        &self,
        layer_map: &[Vec<usize>],
        source: KvShape,
        target: KvShape,
    ) -> Result<Vec<Group>, AlignError> {
        super::at_least_one("rank", self.rank)?;
        super::at_least_one("stride", self.stride)?;
        if self.source == SourceKind::States && self.sides != SourceSides::Both {
            return Err(AlignError::Source {
                mapping: Self::NAME,
                kind: self.source,
                reason: "they have no keys and values; leave `sides` out".to_owned(),
            });
        }
        let mut layers = layer_map.concat();
        layers.sort_unstable();
        layers.dedup();
        let heads = |shape, layer, sides: &[KvSide]| -> Vec<Slot> {
            let sides = sides.iter();
            sides
                .flat_map(|side| Slot::heads(shape, layer, *side))
                .collect()
        };
        let inputs = layers.iter().step_by(self.stride);
        let inputs = inputs.flat_map(|layer| heads(source, *layer, self.sides.sides()));
        let outputs = (0..target.num_layers).flat_map(|layer| heads(target, layer, &KvSide::ALL));
        Ok(vec![Group {
            inputs: inputs.collect(),
            targets: vec![outputs.collect()],
        }])
    }

    fn choose(&self, problem: &Problem<'_>, moments: &Moments) -> Result<Vec<Choice>, AlignError> {
        let head_dim = problem.target.head_dim;
        let heads = problem.group.outputs();
        // An odd step goes through both sides, and through all heads of a power of two.
        let step = (heads.len() / CHOOSE_ON) | 1;
        let centred = moments.centred();
        let inputs = &problem.group.inputs;
        grid(problem, problem.all_inputs(0.0), |choices| {
            let sample = (0..heads.len()).step_by(step);
            let columns = |head: usize| head * head_dim..(head + 1) * head_dim;
            let targets: Vec<_> = sample
                .clone()
                .map(|head| (columns(head), choices[0].lambda))
                .collect();
            let solutions = ridge::solve(&centred, &problem.blocks(inputs), &targets)?;
            let width = targets.len() * head_dim;
            let weight = Mat::from_fn(centred.mean_x.len(), width, |i, j| {
                solutions[j / head_dim][(i, j % head_dim)]
            });
            let means = targets
                .iter()
                .flat_map(|(columns, _)| &centred.mean_y[columns.clone()]);
            let means: Vec<f64> = means.copied().collect();
            let solution = Solution::Dense(weight);
            Ok(vec![Part {
                inputs: inputs.clone(),
                own: Vec::new(),
                outputs: sample.map(|head| heads[head]).collect(),
                affine: Affine::new(&solution, &centred.mean_x, &means, problem.storage)?,
            }])
        })
    }

    fn solve(
        &self,
        problem: &Problem<'_>,
        moments: &Moments,
        choices: &[Choice],
    ) -> Result<Vec<Part>, AlignError> {
        let centred = moments.centred();
        let inputs = &problem.group.inputs;
        let outputs = problem.group.outputs();
        let all = 0..centred.mean_y.len();
        let targets: Vec<_> = choices
            .iter()
            .map(|choice| (all.clone(), choice.lambda))
            .collect();
        let solutions = ridge::solve(&centred, &problem.blocks(inputs), &targets)?;
        let scale = scales(&outputs, problem.target.head_dim, &centred.yty);
        let mut parts = Vec::with_capacity(solutions.len());
        for mut weight in solutions {
            let (p, q) = weight.shape();
            let mut xty = centred.xty.clone();
            for (j, scale) in scale.iter().enumerate() {
                for i in 0..p {
                    weight[(i, j)] /= scale;
                    xty[(i, j)] /= scale;
                }
            }
            let rank = self.rank.min(p).min(q);
            let covariance = weight.transpose() * &xty;
            drop(xty);
            let directions = top_eigenvectors(&covariance, rank)?;
            let solution = Solution::Factored {
                down: &weight * &directions,
                up: Mat::from_fn(rank, q, |i, j| directions[(j, i)] * scale[j]),
            };
            drop(weight);
            let (mean_x, mean_y) = (&centred.mean_x, &centred.mean_y);
            parts.push(Part {
                inputs: inputs.clone(),
                own: Vec::new(),
                outputs: outputs.clone(),
                affine: Affine::new(&solution, mean_x, mean_y, problem.storage)?,
            });
        }
        Ok(parts)
    }
}

/// For every channel the spread of its layer and side, so that these count alike.
fn scales(outputs: &[Slot], head_dim: usize, yty: &[f64]) -> Vec<f64> {
    let mut scales = Vec::with_capacity(yty.len());
    for run in outputs.chunk_by(|a, b| (a.layer, a.side) == (b.layer, b.side)) {
        let width = run.len() * head_dim;
        let squares = &yty[scales.len()..scales.len() + width];
        let spread = (squares.iter().sum::<f64>() / width as f64).sqrt();
        let spread = if spread > 0.0 { spread } else { 1.0 };
        scales.resize(scales.len() + width, spread);
    }
    scales
}
