//! `bins`: equal bins that grow with the depth of the layer (`CacheGen`, Liu et al., SIGCOMM 2024,
//! arXiv 2310.07240).
//!
//! Errors in early layers spread through all later ones, so those get finer bins: widths of 0.5,
//! 1.0 and 1.5 in the first, second and last third of the layers.

use half::slice::HalfFloatSliceExt;
use serde::{Deserialize, Serialize};

use super::{Quantise, Symbols, bad_scales, check_finite, finite, read_scales, round_to};
use crate::codec::{CodecError, Tile, TileMut, TileShape, TileSpec};

/// Rounds to multiples of `width / 100` (0.5, 1.0, 1.5 times it by thirds of the layers) in units
/// of the root mean square of the channel, which is sent as fp16 for each tile.
///
/// Meant for deltas to anchors, which have no offsets; plain keys would waste their range on
/// offsets. Loses against bins of one width for all channels where errors of all channels
/// weigh the same: a wide channel's error is then larger than a narrow one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Bins {
    width: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(rename = "Bins", deny_unknown_fields)]
struct Fields {
    #[serde(default = "default_width")]
    width: usize,
}

const fn default_width() -> usize {
    100
}

impl TryFrom<Fields> for Bins {
    type Error = CodecError;

    fn try_from(fields: Fields) -> Result<Self, CodecError> {
        Self::new(fields.width)
    }
}

impl From<Bins> for Fields {
    fn from(stage: Bins) -> Self {
        Self { width: stage.width }
    }
}

/// Largest symbol.
const MOST: i16 = 127;

impl Bins {
    pub(in crate::codec) const NAME: &str = "bins";
    /// The paper's widths.
    pub const PAPER: Self = Self { width: 100 };

    /// Bins of `width` percent of the paper's.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] unless `width` is 5 to 1000.
    pub fn new(width: usize) -> Result<Self, CodecError> {
        if (5..=1000).contains(&width) {
            return Ok(Self { width });
        }
        Err(CodecError::Parameter {
            stage: Self::NAME,
            parameter: "width",
            value: width,
            allowed: "5 to 1000 percent",
        })
    }

    /// Reads the parameters of an id, `w100`.
    pub(in crate::codec) fn parse(text: &str) -> Option<Self> {
        Self::new(text.strip_prefix('w')?.parse().ok()?).ok()
    }

    pub(in crate::codec) fn id(&self) -> String {
        format!("{}-w{}", Self::NAME, self.width)
    }

    /// Bin width in units of a channel's scale.
    fn bin(&self, spec: &TileSpec) -> f32 {
        let third = (spec.layer * 3 / spec.num_layers.max(1)).min(2);
        [0.5, 1.0, 1.5][third] * self.width as f32 / 100.0
    }
}

impl Quantise for Bins {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn check_shape(&self, _shape: TileShape) -> Result<(), CodecError> {
        Ok(())
    }

    fn widths(&self, spec: &TileSpec) -> [Vec<u8>; 2] {
        let widths = vec![8; spec.shape.num_kv_heads() * spec.shape.head_dim()];
        [widths.clone(), widths]
    }

    fn quantise(&self, tile: &Tile<'_>, symbols: &mut Symbols) -> Result<Vec<u8>, CodecError> {
        check_finite(Self::NAME, tile)?;
        let shape = tile.shape();
        let (head_dim, bin) = (shape.head_dim(), self.bin(tile.spec()));
        let mut side = Vec::with_capacity(self.side_len(shape));
        let mut row = vec![0.0_f32; head_dim];
        for (numbers, symbols) in [(tile.k(), &mut symbols.k), (tile.v(), &mut symbols.v)] {
            let head_run = shape.tokens() * head_dim;
            let heads = numbers.chunks_exact(head_run);
            for (head, symbols) in heads.zip(symbols.chunks_exact_mut(head_run)) {
                let mut squares = vec![0.0_f32; head_dim];
                for numbers in head.chunks_exact(head_dim) {
                    numbers.convert_to_f32_slice(&mut row);
                    squares
                        .iter_mut()
                        .zip(&row)
                        .for_each(|(sum, x)| *sum += x * x);
                }
                let mut steps = vec![0.0_f32; head_dim];
                for (step, sum) in steps.iter_mut().zip(&squares) {
                    let scale = finite((sum / shape.tokens() as f32).sqrt());
                    side.extend_from_slice(&scale.to_le_bytes());
                    *step = inverse(scale.to_f32() * bin);
                }
                let rows = head.chunks_exact(head_dim);
                for (numbers, symbols) in rows.zip(symbols.chunks_exact_mut(head_dim)) {
                    numbers.convert_to_f32_slice(&mut row);
                    for ((symbol, x), step) in symbols.iter_mut().zip(&row).zip(&steps) {
                        *symbol = round_to(x * step, MOST);
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
        let (head_dim, bin) = (shape.head_dim(), self.bin(tile.spec()));
        let channels = shape.num_kv_heads() * head_dim;
        let scales = read_scales(side, 2 * channels).ok_or_else(|| bad_scales(Self::NAME))?;
        let head_run = shape.tokens() * head_dim;
        let mut scales = scales.chunks_exact(head_dim);
        let mut row = vec![0.0_f32; head_dim];
        for (numbers, symbols) in tile.sides().into_iter().zip([&symbols.k, &symbols.v]) {
            let heads = numbers.chunks_exact_mut(head_run);
            for ((head, symbols), scales) in
                heads.zip(symbols.chunks_exact(head_run)).zip(&mut scales)
            {
                let rows = head.chunks_exact_mut(head_dim);
                for (numbers, symbols) in rows.zip(symbols.chunks_exact(head_dim)) {
                    for ((x, symbol), scale) in row.iter_mut().zip(symbols).zip(scales) {
                        *x = (f32::from(*symbol) * (scale * bin)).clamp(-65504.0, 65504.0);
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
}

fn inverse(step: f32) -> f32 {
    if step > 0.0 { step.recip() } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_grow_by_thirds_of_the_layers() {
        let shape = TileShape::new(1, 1, 8).unwrap();
        let bins: Vec<f32> = (0..24)
            .map(|layer| {
                let spec = TileSpec {
                    layer,
                    num_layers: 24,
                    ..TileSpec::alone(shape)
                };
                Bins::PAPER.bin(&spec)
            })
            .collect();
        assert_eq!(
            (bins[0], bins[7], bins[8], bins[15], bins[16]),
            (0.5, 0.5, 1.0, 1.0, 1.5)
        );
        assert_eq!(bins[23], 1.5);
    }
}
