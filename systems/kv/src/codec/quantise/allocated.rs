//! `allocated`: a fixed number of bits for each principal component, by its variance (KVTC,
//! arXiv 2511.01815).

use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use serde::{Deserialize, Serialize};

use super::lloyd_max::{LEVELS, level, nearest};
use super::{Quantise, Symbols, bad_scales, check_finite, finite, read_scales};
use crate::codec::artefact::basis_of;
use crate::codec::{CodecArtefact, CodecError, Tile, TileMut, TileShape, TileSpec};

/// How bits are shared out among the components of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Allocation {
    /// Least sum of squared errors within the layer's budget, by dynamic programming over
    /// components and bits, the scale of every coded component counted.
    Dp,
    /// The fewest bits with which each component's error falls below one level for all, that of
    /// the water (Cover and Thomas, chapter 10).
    WaterFilling,
}

impl Allocation {
    const fn name(self) -> &'static str {
        match self {
            Self::Dp => "dp",
            Self::WaterFilling => "wf",
        }
    }
}

/// Codes components of `pca` with `tenths / 10` bits a number on average over the model, 0 to 5
/// bits each at the levels that are best for normal numbers. A component that gets any bits sends
/// its root mean square over the tile as fp16.
///
/// The layers' budgets follow from one water level for all of them. Loses against `step` with an
/// entropy coder by the space that fixed widths waste: about a quarter of a bit a component, and
/// more where coefficients are mostly small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Allocated {
    tenths: usize,
    by: Allocation,
}

#[derive(Serialize, Deserialize)]
#[serde(rename = "Allocated", deny_unknown_fields)]
struct Fields {
    tenths: usize,
    #[serde(default = "default_by")]
    by: Allocation,
}

const fn default_by() -> Allocation {
    Allocation::Dp
}

impl TryFrom<Fields> for Allocated {
    type Error = CodecError;

    fn try_from(fields: Fields) -> Result<Self, CodecError> {
        Self::new(fields.tenths, fields.by)
    }
}

impl From<Allocated> for Fields {
    fn from(stage: Allocated) -> Self {
        let Allocated { tenths, by } = stage;
        Self { tenths, by }
    }
}

/// Mean squared error of the best quantisers of a standard normal number, by bits.
const ERRORS: [f32; LEVELS.len() + 1] =
    [1.0, 0.363_380, 0.117_482, 0.034_548, 0.009_501, 0.002_505];
/// What a scale of 16 bits weighs in a tile of 128 to 256 tokens, in 1/16 bit per number.
const SCALE_COST: usize = 2;
/// Costs are counted in units of so many 1/16 bits, which divides all of them.
const UNIT: usize = 2;

impl Allocated {
    pub(in crate::codec) const NAME: &str = "allocated";

    /// `tenths / 10` bits a number.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] unless `tenths` is 1 to 50.
    pub fn new(tenths: usize, by: Allocation) -> Result<Self, CodecError> {
        if (1..=50).contains(&tenths) {
            return Ok(Self { tenths, by });
        }
        Err(CodecError::Parameter {
            stage: Self::NAME,
            parameter: "tenths",
            value: tenths,
            allowed: "1 to 50",
        })
    }

    /// Reads the parameters of an id, `t20-dp`.
    pub(in crate::codec) fn parse(text: &str) -> Option<Self> {
        let (tenths, by) = text.strip_prefix('t')?.split_once('-')?;
        let by = [Allocation::Dp, Allocation::WaterFilling]
            .into_iter()
            .find(|allocation| allocation.name() == by)?;
        Self::new(tenths.parse().ok()?, by).ok()
    }

    pub(in crate::codec) fn id(&self) -> String {
        format!("{}-t{}-{}", Self::NAME, self.tenths, self.by.name())
    }

    /// Bits of every component of every layer. Comparisons, products and sums only, in one
    /// order, so that both ends find the same.
    fn share_out(&self, artefact: &CodecArtefact) -> Vec<Vec<u8>> {
        let layers: Vec<&[f32]> = artefact
            .layers()
            .iter()
            .map(|layer| layer.variance.as_slice())
            .collect();
        let numbers: usize = layers.iter().map(|layer| layer.len()).sum();
        // In 1/16 bit.
        let budget = self.tenths * numbers * 16 / 10;
        let at_level = |level: f32| -> Vec<Vec<u8>> {
            let bits = |variance: &f32| {
                let enough = ERRORS.iter().position(|error| variance * error <= level);
                enough.unwrap_or(LEVELS.len()) as u8
            };
            layers
                .iter()
                .map(|layer| layer.iter().map(bits).collect())
                .collect()
        };
        let cost_of = |bits: &[Vec<u8>]| -> usize { bits.iter().flatten().map(|b| cost(*b)).sum() };
        // The level at which the budget is used up, by bisection.
        let (mut low, mut high) = (0.0_f32, 1.0e6_f32);
        for _ in 0..200 {
            let middle = f32::midpoint(low, high);
            if cost_of(&at_level(middle)) > budget {
                low = middle;
            } else {
                high = middle;
            }
        }
        let filled = at_level(high);
        match self.by {
            Allocation::WaterFilling => filled,
            Allocation::Dp => {
                // What all layers together leave over is shared out evenly.
                let spare = budget.saturating_sub(cost_of(&filled)) / layers.len().max(1);
                layers
                    .iter()
                    .zip(&filled)
                    .map(|(layer, bits)| {
                        let own: usize = bits.iter().map(|b| cost(*b)).sum();
                        least_error(layer, own + spare)
                    })
                    .collect()
            }
        }
    }
}

/// Cost of a component with so many bits, in 1/16 bit per number.
const fn cost(bits: u8) -> usize {
    if bits == 0 {
        0
    } else {
        bits as usize * 16 + SCALE_COST
    }
}

/// The bits of each component with the least sum of squared errors at a cost of at most `budget`.
fn least_error(variances: &[f32], budget: usize) -> Vec<u8> {
    let budget = budget / UNIT;
    let mut best = vec![0.0_f32; budget + 1];
    let mut choices = vec![0_u8; variances.len() * (budget + 1)];
    for (variance, choices) in variances.iter().zip(choices.chunks_exact_mut(budget + 1)) {
        // From the top, so that `best[spent - cost]` is still that of the components before.
        for spent in (0..=budget).rev() {
            let mut least = f32::INFINITY;
            for (bits, error) in ERRORS.iter().enumerate() {
                let cost = cost(bits as u8) / UNIT;
                if cost > spent {
                    break;
                }
                let total = best[spent - cost] + variance * error;
                if total < least {
                    least = total;
                    choices[spent] = bits as u8;
                }
            }
            best[spent] = least;
        }
    }
    let mut left = budget;
    let mut bits = vec![0; variances.len()];
    for (bits, choices) in bits.iter_mut().zip(choices.chunks_exact(budget + 1)).rev() {
        *bits = choices[left];
        left -= cost(*bits) / UNIT;
    }
    bits
}

/// The stage with the allocation that follows from its artefact.
#[derive(Debug)]
pub(in crate::codec) struct AllocatedQuantiser {
    artefact: Option<Arc<CodecArtefact>>,
    bits: Vec<Vec<u8>>,
}

impl AllocatedQuantiser {
    pub(in crate::codec) fn new(stage: &Allocated, artefact: Option<Arc<CodecArtefact>>) -> Self {
        let bits = artefact
            .as_ref()
            .map_or_else(Vec::new, |artefact| stage.share_out(artefact));
        Self { artefact, bits }
    }
}

impl Quantise for AllocatedQuantiser {
    fn name(&self) -> &'static str {
        Allocated::NAME
    }

    fn check_shape(&self, shape: TileShape) -> Result<(), CodecError> {
        let row = basis_of(self.artefact.as_ref(), Allocated::NAME, 0)?
            .variance
            .len();
        if 2 * shape.num_kv_heads() * shape.head_dim() == row {
            return Ok(());
        }
        Err(CodecError::UnsupportedShape {
            codec: Allocated::NAME.to_owned(),
            reason: format!("the artefact has {row} components a layer; put pca before"),
        })
    }

    fn widths(&self, spec: &TileSpec) -> [Vec<u8>; 2] {
        let channels = spec.shape.num_kv_heads() * spec.shape.head_dim();
        let Some(bits) = self.bits.get(spec.layer) else {
            return [vec![0; channels], vec![0; channels]];
        };
        [0, 1].map(|parity| bits.iter().skip(parity).step_by(2).copied().collect())
    }

    fn quantise(&self, tile: &Tile<'_>, symbols: &mut Symbols) -> Result<Vec<u8>, CodecError> {
        check_finite(Allocated::NAME, tile)?;
        basis_of(self.artefact.as_ref(), Allocated::NAME, tile.spec().layer)?;
        let shape = tile.shape();
        let head_dim = shape.head_dim();
        let mut side = Vec::new();
        let mut row = vec![0.0_f32; head_dim];
        let widths = self.widths(tile.spec());
        let sides = [(tile.k(), &mut symbols.k), (tile.v(), &mut symbols.v)];
        for ((numbers, symbols), widths) in sides.into_iter().zip(&widths) {
            let head_run = shape.tokens() * head_dim;
            let heads = numbers
                .chunks_exact(head_run)
                .zip(widths.chunks_exact(head_dim));
            for ((head, widths), symbols) in heads.zip(symbols.chunks_exact_mut(head_run)) {
                let mut squares = vec![0.0_f32; head_dim];
                for numbers in head.chunks_exact(head_dim) {
                    numbers.convert_to_f32_slice(&mut row);
                    squares
                        .iter_mut()
                        .zip(&row)
                        .for_each(|(sum, x)| *sum += x * x);
                }
                let mut steps = vec![0.0_f32; head_dim];
                for ((step, sum), width) in steps.iter_mut().zip(&squares).zip(widths) {
                    if *width > 0 {
                        let scale = finite((sum / shape.tokens() as f32).sqrt());
                        side.extend_from_slice(&scale.to_le_bytes());
                        let scale = scale.to_f32();
                        *step = if scale > 0.0 { scale.recip() } else { 0.0 };
                    }
                }
                let rows = head.chunks_exact(head_dim);
                for (numbers, symbols) in rows.zip(symbols.chunks_exact_mut(head_dim)) {
                    numbers.convert_to_f32_slice(&mut row);
                    let columns = symbols.iter_mut().zip(&row).zip(&steps).zip(widths);
                    for (((symbol, x), step), width) in columns {
                        if *width > 0 {
                            *symbol = nearest(LEVELS[usize::from(*width) - 1], x * step);
                        }
                    }
                }
            }
        }
        Ok(side)
    }

    fn dequantise(
        &self,
        symbols: &Symbols,
        side: &[u8],
        tile: &mut TileMut<'_>,
    ) -> Result<(), CodecError> {
        let shape = tile.shape();
        let head_dim = shape.head_dim();
        let widths = self.widths(tile.spec());
        let coded = widths.iter().flatten().filter(|width| **width > 0).count();
        let scales = read_scales(side, coded).ok_or_else(|| bad_scales(Allocated::NAME))?;
        let mut scales = scales.into_iter();
        let mut row = vec![0.0_f32; head_dim];
        let head_run = shape.tokens() * head_dim;
        let sides = tile.sides().into_iter().zip([&symbols.k, &symbols.v]);
        for ((numbers, symbols), widths) in sides.zip(&widths) {
            let heads = numbers
                .chunks_exact_mut(head_run)
                .zip(widths.chunks_exact(head_dim));
            for ((head, widths), symbols) in heads.zip(symbols.chunks_exact(head_run)) {
                let scales: Vec<f32> = widths
                    .iter()
                    .map(|width| match width {
                        0 => 0.0,
                        _ => scales.next().unwrap_or(0.0),
                    })
                    .collect();
                let rows = head.chunks_exact_mut(head_dim);
                for (numbers, symbols) in rows.zip(symbols.chunks_exact(head_dim)) {
                    let columns = row.iter_mut().zip(symbols).zip(&scales).zip(widths);
                    for (((x, symbol), scale), width) in columns {
                        let number = match width {
                            0 => 0.0,
                            _ => level(LEVELS[usize::from(*width) - 1], *symbol) * scale,
                        };
                        *x = number.clamp(-65504.0, 65504.0);
                    }
                    numbers.convert_from_f32_slice(&row);
                }
            }
        }
        Ok(())
    }

    fn side_len(&self, shape: TileShape) -> usize {
        4 * shape.num_kv_heads() * shape.head_dim()
    }

    fn longest(&self, shape: TileShape) -> Option<usize> {
        let longest = |bits: &Vec<u8>| -> usize {
            let sum: usize = bits.iter().map(|b| usize::from(*b)).sum();
            (sum * shape.tokens()).div_ceil(8) + 1
        };
        Some(self.bits.iter().map(longest).max().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dynamic_programming_finds_the_least_error() {
        let variances = [9.0, 4.0, 1.0, 0.1];
        let error = |bits: &[u8]| -> f32 {
            bits.iter()
                .zip(&variances)
                .map(|(bits, variance)| variance * ERRORS[usize::from(*bits)])
                .sum()
        };
        for budget in [0, 20, 50, 100, 170, 300] {
            let found = least_error(&variances, budget);
            let spend = |bits: &[u8]| -> usize { bits.iter().map(|b| cost(*b)).sum() };
            assert!(spend(&found) <= budget);
            for code in 0..6_usize.pow(4) {
                let other = [0, 1, 2, 3].map(|i| (code / 6_usize.pow(i) % 6) as u8);
                if spend(&other) <= budget / UNIT * UNIT {
                    assert!(error(&found) <= error(&other) + 1e-6, "{found:?} {other:?}");
                }
            }
        }
    }
}
