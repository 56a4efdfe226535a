//! Mappings: how the numbers of source layers become those of target layers.
//!
//! To add one: one file with a type that implements [`Mapping`], one `mod` line here, one variant
//! in [`MappingConfig`] and one line in [`mappings`].

mod config;
mod copy;
mod fuse;
mod head_ridge;
mod joint;
mod low_rank;
mod prefix;
mod procrustes;
mod registry;
mod ridge;
mod trained;
mod weighted_ridge;

pub use config::MappingConfig;
pub use copy::Copy;
pub use fuse::Fuse;
pub use head_ridge::HeadRidge;
pub use joint::{Joint, SourceSides};
pub use low_rank::LowRank;
pub use prefix::Prefix;
pub use procrustes::Procrustes;
pub use registry::{MappingEntry, mapping_names, mappings};
pub use ridge::Ridge;
pub use trained::Trained;
pub use weighted_ridge::WeightedRidge;

#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::ops::Range;

use super::slot::{KvSide, Slot, gather};
use super::{Affine, AlignError, Moments, SourceKind, Sources, Storage};
use crate::block::{KvBlock, KvShape};

/// Rows that are predicted at a time.
const BLOCK_ROWS: usize = 128;

/// A map of some source heads to some target heads; a bridge is a list of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// What a source row holds, in this order.
    pub inputs: Vec<Slot>,
    /// Heads of the target model's own KV that stand behind them in a row. Where there are any, the
    /// map says what is to be added to that KV, not what takes its place.
    pub own: Vec<Slot>,
    /// What a target row holds, ascending.
    pub outputs: Vec<Slot>,
    /// The map: `[inputs.len() * source head_dim + own.len() * target head_dim]` to
    /// `[outputs.len() * target head_dim]`.
    pub affine: Affine,
}

impl Part {
    /// The rows of all tokens that the part reads, `[tokens, source_width]`.
    ///
    /// # Errors
    /// [`AlignError::Block`] when a block lacks a layer, or there is none of the target model's.
    pub fn source_rows(&self, from: Sources<'_>) -> Result<Vec<f32>, AlignError> {
        let mut rows = Vec::new();
        self.gather(from, 0..from.source.num_tokens(), &mut rows)?;
        Ok(rows)
    }

    /// The rows of some tokens that the part reads, into `rows`.
    pub(super) fn gather(
        &self,
        from: Sources<'_>,
        tokens: Range<usize>,
        rows: &mut Vec<f32>,
    ) -> Result<(), AlignError> {
        gather("source", from.source, &self.inputs, tokens.clone(), rows)?;
        if self.own.is_empty() {
            return Ok(());
        }
        let mut own = Vec::new();
        gather("target", from.own()?, &self.own, tokens.clone(), &mut own)?;
        let count = tokens.len().max(1);
        let (first, second) = (rows.len() / count, own.len() / count);
        let mut joined = Vec::with_capacity(rows.len() + own.len());
        for token in 0..tokens.len() {
            joined.extend_from_slice(&rows[token * first..][..first]);
            joined.extend_from_slice(&own[token * second..][..second]);
        }
        *rows = joined;
        Ok(())
    }

    /// The rows of all tokens of a block of the target model that the part is to predict,
    /// `[tokens, target_width]`.
    ///
    /// # Errors
    /// As for [`Self::source_rows`].
    pub fn target_rows(&self, block: &KvBlock) -> Result<Vec<f32>, AlignError> {
        let mut rows = Vec::new();
        gather(
            "target",
            block,
            &self.outputs,
            0..block.num_tokens(),
            &mut rows,
        )?;
        Ok(rows)
    }
}

/// Targets whose maps come from the same source rows, so that their moments share one `XᵀX`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// What a source row may hold.
    pub inputs: Vec<Slot>,
    /// The outputs of each map, in the order of the columns of `XᵀY`.
    pub targets: Vec<Vec<Slot>>,
}

impl Group {
    pub(super) fn outputs(&self) -> Vec<Slot> {
        self.targets.concat()
    }
}

/// What is chosen for one target on the validation split.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Which of the group's inputs its map reads.
    pub inputs: Vec<usize>,
    /// Relative regularisation; 0 where the mapping has none.
    pub lambda: f64,
}

/// A pair of blocks that is kept to choose or to score on.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) source: KvBlock,
    pub(super) target: KvBlock,
    /// First token that takes part.
    pub(super) first: usize,
    /// One for each token of the block.
    pub(super) weights: Option<Vec<f32>>,
}

/// One group to be solved.
#[derive(Debug)]
pub struct Problem<'a> {
    pub(super) source: KvShape,
    pub(super) target: KvShape,
    pub(super) group: &'a Group,
    pub(super) storage: Storage,
    pub(super) lambdas: &'a [f64],
    pub(super) validation: &'a [Kept],
    pub(super) weighted: bool,
}

impl Problem<'_> {
    /// Columns of each target in the group's `XᵀY`.
    fn columns(&self) -> Vec<Range<usize>> {
        let mut start = 0;
        let run = |target: &Vec<Slot>| {
            let run = start..start + target.len() * self.target.head_dim;
            start = run.end;
            run
        };
        self.group.targets.iter().map(run).collect()
    }

    /// Every target reads all inputs.
    fn all_inputs(&self, lambda: f64) -> Vec<Choice> {
        let choice = Choice {
            inputs: (0..self.group.inputs.len()).collect(),
            lambda,
        };
        vec![choice; self.group.targets.len()]
    }

    /// Source channels of some of the group's inputs.
    fn channels(&self, inputs: &[usize]) -> Vec<usize> {
        let width = self.source.head_dim;
        let channels = inputs
            .iter()
            .flat_map(|input| input * width..(input + 1) * width);
        channels.collect()
    }

    fn slots(&self, inputs: &[usize]) -> Vec<Slot> {
        inputs
            .iter()
            .map(|input| self.group.inputs[*input])
            .collect()
    }

    /// Channels of each run of inputs of one layer and side, for the penalty of ridge.
    fn blocks(&self, inputs: &[Slot]) -> Vec<usize> {
        let of_one = |a: &Slot, b: &Slot| (a.layer, a.side) == (b.layer, b.side);
        let runs = inputs.chunk_by(of_one);
        runs.map(|run| run.len() * self.source.head_dim).collect()
    }

    /// R² of every part on the validation split.
    ///
    /// # Errors
    /// [`AlignError::Block`] when a block lacks a layer.
    fn scores(&self, parts: &[Part]) -> Result<Vec<f64>, AlignError> {
        let score = |part: &Part| {
            let mut errors = Errors::new(part.outputs.len(), self.target.head_dim);
            for kept in self.validation {
                errors.add(part, kept, self.weighted)?;
            }
            Ok(errors.r2(0..part.outputs.len()))
        };
        parts.iter().map(score).collect()
    }
}

/// How to map, given which source layers feed which target layer.
pub trait Mapping: Debug + Send + Sync {
    /// Name in configs, samples and bridges.
    fn id(&self) -> &'static str;

    /// What of the source model it reads.
    fn reads(&self) -> SourceKind {
        SourceKind::Kv
    }

    /// Which maps there are to be, and from which rows: by default one for the keys and one for
    /// the values of every target layer, from the same side of its source layers. `layer_map`
    /// has been checked. Where it reads hidden states, `source` is their shape.
    ///
    /// # Errors
    /// [`AlignError::Parameter`] for a parameter out of range.
    fn groups(
        &self,
        layer_map: &[Vec<usize>],
        source: KvShape,
        target: KvShape,
    ) -> Result<Vec<Group>, AlignError> {
        Ok(by_layer_and_side(layer_map, source, target))
    }

    /// Whether tokens are weighted, so that the moments passed on are weighted ones.
    fn needs_weights(&self) -> bool {
        false
    }

    /// Chooses for every target, on the validation split, from the moments of the fit split: by
    /// default all inputs and the lambda that explains most, the larger one on a tie.
    ///
    /// # Errors
    /// As for [`Self::solve`], if no lambda gives a solution.
    fn choose(&self, problem: &Problem<'_>, moments: &Moments) -> Result<Vec<Choice>, AlignError> {
        grid(problem, problem.all_inputs(0.0), |choices| {
            self.solve(problem, moments, choices)
        })
    }

    /// The maps, one for each target in order. What training alone makes has none to solve for.
    ///
    /// # Errors
    /// [`AlignError::Singular`], [`AlignError::NotFinite`], [`AlignError::Parameter`] or
    /// [`AlignError::NotFitted`].
    fn solve(
        &self,
        _problem: &Problem<'_>,
        _moments: &Moments,
        _choices: &[Choice],
    ) -> Result<Vec<Part>, AlignError> {
        Err(AlignError::NotFitted { mapping: self.id() })
    }
}

/// Checks a parameter that counts something.
fn at_least_one(name: &'static str, value: usize) -> Result<(), AlignError> {
    if value > 0 {
        return Ok(());
    }
    Err(AlignError::Parameter {
        name,
        value: 0.0,
        allowed: "at least 1",
    })
}

/// One target for each layer and side, grouped by what they are mapped from.
fn by_layer_and_side(layer_map: &[Vec<usize>], source: KvShape, target: KvShape) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (layer, layers) in layer_map.iter().enumerate() {
        for side in KvSide::ALL {
            let inputs: Vec<Slot> = layers
                .iter()
                .flat_map(|layer| Slot::heads(source, *layer, side))
                .collect();
            let outputs = Slot::heads(target, layer, side).collect();
            match groups.iter_mut().find(|group| group.inputs == inputs) {
                Some(group) => group.targets.push(outputs),
                None => groups.push(Group {
                    inputs,
                    targets: vec![outputs],
                }),
            }
        }
    }
    groups
}

/// For every target the lambda of the grid whose part explains most of the validation split.
fn grid(
    problem: &Problem<'_>,
    mut choices: Vec<Choice>,
    solve: impl Fn(&[Choice]) -> Result<Vec<Part>, AlignError>,
) -> Result<Vec<Choice>, AlignError> {
    let mut best: Option<Vec<(f64, f64)>> = None;
    let mut failure = AlignError::TooLittleData {
        what: "values of lambda",
        found: 0,
        needed: 1,
    };
    for lambda in problem.lambdas.iter().copied() {
        for choice in &mut choices {
            choice.lambda = lambda;
        }
        let parts = match solve(&choices) {
            Ok(parts) => parts,
            Err(error) => {
                failure = error;
                continue;
            }
        };
        let found = problem
            .scores(&parts)?
            .into_iter()
            .map(|score| (score, lambda));
        let found: Vec<(f64, f64)> = found.collect();
        match &mut best {
            None => best = Some(found),
            Some(best) => {
                for (best, found) in best.iter_mut().zip(found) {
                    if found.0 > best.0 || (found.0 == best.0 && found.1 > best.1) {
                        *best = found;
                    }
                }
            }
        }
    }
    let best = best.ok_or(failure)?;
    for (choice, (_, lambda)) in choices.iter_mut().zip(best) {
        choice.lambda = lambda;
    }
    Ok(choices)
}

/// Squared errors of a part, and the spread of what it predicts.
#[derive(Debug)]
pub(super) struct Errors {
    total: f64,
    head_dim: usize,
    /// Per output channel: Σ w (y − ŷ)², Σ w y, Σ w y².
    sums: Vec<[f64; 3]>,
}

impl Errors {
    pub(super) fn new(num_outputs: usize, head_dim: usize) -> Self {
        Self {
            total: 0.0,
            head_dim,
            sums: vec![[0.0; 3]; num_outputs * head_dim],
        }
    }

    /// Adds one context.
    pub(super) fn add(
        &mut self,
        part: &Part,
        kept: &Kept,
        weighted: bool,
    ) -> Result<(), AlignError> {
        let (mut x, mut y, mut found) = (Vec::new(), Vec::new(), Vec::new());
        let seq_len = kept.source.num_tokens();
        let weights = kept.weights.as_ref().filter(|_| weighted);
        for start in (kept.first..seq_len).step_by(BLOCK_ROWS) {
            let tokens = start..(start + BLOCK_ROWS).min(seq_len);
            gather("source", &kept.source, &part.inputs, tokens.clone(), &mut x)?;
            gather(
                "target",
                &kept.target,
                &part.outputs,
                tokens.clone(),
                &mut y,
            )?;
            found.resize(y.len(), 0.0);
            part.affine.apply(&x, 1.0, &mut found)?;
            let width = self.sums.len();
            let rows = y.chunks_exact(width).zip(found.chunks_exact(width));
            for (token, (y, found)) in tokens.zip(rows) {
                let weight = weights.map_or(1.0, |weights| f64::from(weights[token]));
                self.total += weight;
                for ((sums, y), found) in self.sums.iter_mut().zip(y).zip(found) {
                    let (y, error) = (f64::from(*y), f64::from(y - found));
                    sums[0] += weight * error * error;
                    sums[1] += weight * y;
                    sums[2] += weight * y * y;
                }
            }
        }
        Ok(())
    }

    /// Squared error over some outputs, and their squared distance from their mean.
    pub(super) fn squares(&self, outputs: Range<usize>) -> (f64, f64) {
        let sums = &self.sums[outputs.start * self.head_dim..outputs.end * self.head_dim];
        let mut squares = (0.0, 0.0);
        for [error, sum, square] in sums {
            squares.0 += error;
            squares.1 += (square - sum * sum / self.total).max(0.0);
        }
        squares
    }

    /// R² over some outputs; 0 where they do not vary.
    fn r2(&self, outputs: Range<usize>) -> f64 {
        let (error, spread) = self.squares(outputs);
        if spread > 0.0 {
            1.0 - error / spread
        } else {
            0.0
        }
    }
}
