//! `lloyd_max`: the best scalar quantiser for normal numbers, scaled to each vector's norm, as in
//! `TurboQuant` (Zandieh et al., arXiv 2504.19874).
//!
//! After a random rotation the channels of a vector are nearly independent and nearly normal,
//! whatever the vector was; so one code book serves all, and only the norm is sent. Levels: Max,
//! "Quantizing for minimum distortion", 1960, computed here by Lloyd's iteration.

use half::slice::HalfFloatSliceExt;
use serde::{Deserialize, Serialize};

use super::{Quantise, Symbols, bad_scales, check_finite, finite, read_scales};
use crate::codec::{CodecError, Tile, TileMut, TileShape, TileSpec};

/// Quantises a vector (one head of one token) divided by its root mean square to the `2^bits`
/// levels that are best for the standard normal distribution; the root mean square is sent as
/// fp16.
///
/// The paper's unbiased variant for inner products is not here; `outliers` before it mixes widths.
/// Loses without a rotation before it, and on keys with
/// offsets: the rotation spreads them over all channels, where they eat the range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct LloydMax {
    bits: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(rename = "LloydMax", deny_unknown_fields)]
struct Fields {
    bits: usize,
}

impl TryFrom<Fields> for LloydMax {
    type Error = CodecError;

    fn try_from(fields: Fields) -> Result<Self, CodecError> {
        Self::new(fields.bits)
    }
}

impl From<LloydMax> for Fields {
    fn from(stage: LloydMax) -> Self {
        Self { bits: stage.bits }
    }
}

/// Positive levels of the best quantisers of a standard normal number, 1 to 5 bits. The levels
/// are symmetric; each is the mean of its cell, and cells meet half-way between levels.
pub(super) const LEVELS: [&[f32]; 5] = [
    &[0.797_885],
    &[0.452_78, 1.510_418],
    &[0.245_094, 0.756_005, 1.343_909, 2.151_946],
    &[
        0.128_395, 0.388_048, 0.656_759, 0.942_34, 1.256_231, 1.618_046, 2.069_017, 2.732_59,
    ],
    &[
        0.065_89, 0.198_052, 0.331_378, 0.466_7, 0.604_934, 0.747_136, 0.894_565, 1.048_783,
        1.211_804, 1.386_34, 1.576_228, 1.787_233, 2.028_728, 2.317_739, 2.691_12, 3.260_732,
    ],
];

impl LloydMax {
    pub(in crate::codec) const NAME: &str = "lloyd_max";

    /// A quantiser of `bits` bits.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] unless `bits` is 1 to 5.
    pub fn new(bits: usize) -> Result<Self, CodecError> {
        if (1..=LEVELS.len()).contains(&bits) {
            return Ok(Self { bits });
        }
        Err(CodecError::Parameter {
            stage: Self::NAME,
            parameter: "bits",
            value: bits,
            allowed: "1 to 5",
        })
    }

    /// The same with more bits.
    pub(in crate::codec) fn widened(&self, extra: usize) -> Result<Self, CodecError> {
        Self::new(self.bits.saturating_add(extra))
    }

    /// Reads the parameters of an id, `4b`.
    pub(in crate::codec) fn parse(text: &str) -> Option<Self> {
        Self::new(text.strip_suffix('b')?.parse().ok()?).ok()
    }

    pub(in crate::codec) fn id(&self) -> String {
        format!("{}-{}b", Self::NAME, self.bits)
    }

    fn levels(&self) -> &'static [f32] {
        LEVELS[self.bits - 1]
    }
}

/// The symbol of a number among levels at `±levels`: `i` for `levels[i]`, `-1 - i` for the same
/// below zero.
pub(super) fn nearest(levels: &[f32], x: f32) -> i16 {
    let magnitude = x.abs();
    let above = levels
        .windows(2)
        .filter(|pair| magnitude > f32::midpoint(pair[0], pair[1]))
        .count() as i16;
    if x < 0.0 { -1 - above } else { above }
}

/// The number of a symbol of [`nearest`].
pub(super) fn level(levels: &[f32], symbol: i16) -> f32 {
    match usize::try_from(symbol) {
        Ok(index) => levels[index],
        Err(_) => -levels[(-1 - symbol) as usize],
    }
}

impl Quantise for LloydMax {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn check_shape(&self, _shape: TileShape) -> Result<(), CodecError> {
        Ok(())
    }

    fn widths(&self, spec: &TileSpec) -> [Vec<u8>; 2] {
        let channels = spec.shape.num_kv_heads() * spec.shape.head_dim();
        [
            vec![self.bits as u8; channels],
            vec![self.bits as u8; channels],
        ]
    }

    fn quantise(&self, tile: &Tile<'_>, symbols: &mut Symbols) -> Result<Vec<u8>, CodecError> {
        check_finite(Self::NAME, tile)?;
        let shape = tile.shape();
        let head_dim = shape.head_dim();
        let levels = self.levels();
        let mut side = Vec::with_capacity(self.side_len(shape));
        let mut row = vec![0.0_f32; head_dim];
        for (numbers, symbols) in [(tile.k(), &mut symbols.k), (tile.v(), &mut symbols.v)] {
            let rows = numbers.chunks_exact(head_dim);
            for (numbers, symbols) in rows.zip(symbols.chunks_exact_mut(head_dim)) {
                numbers.convert_to_f32_slice(&mut row);
                let square: f32 = row.iter().map(|x| x * x).sum();
                let scale = finite((square / head_dim as f32).sqrt());
                side.extend_from_slice(&scale.to_le_bytes());
                let scale = scale.to_f32();
                let step = if scale > 0.0 { scale.recip() } else { 0.0 };
                for (symbol, x) in symbols.iter_mut().zip(&row) {
                    *symbol = nearest(levels, x * step);
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
        let levels = self.levels();
        let scales = read_scales(side, 2 * shape.rows()).ok_or_else(|| bad_scales(Self::NAME))?;
        let mut scales = scales.into_iter();
        for (numbers, symbols) in tile.sides().into_iter().zip([&symbols.k, &symbols.v]) {
            let rows = numbers.chunks_exact_mut(shape.head_dim());
            for ((row, symbols), scale) in rows
                .zip(symbols.chunks_exact(shape.head_dim()))
                .zip(&mut scales)
            {
                for (x, symbol) in row.iter_mut().zip(symbols) {
                    *x = finite(level(levels, *symbol) * scale);
                }
            }
        }
        Ok(())
    }

    fn side_len(&self, shape: TileShape) -> usize {
        4 * shape.rows()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lloyd's two conditions under a fine grid of the normal density: a level is the mean of
    /// its cell, and cells end half-way between levels.
    #[test]
    fn levels_are_the_means_of_their_cells() {
        for (levels, tolerance) in LEVELS.into_iter().zip([1e-5, 1e-5, 1e-4, 1e-4, 1e-3]) {
            for (index, level) in levels.iter().enumerate() {
                let middle = |a: usize, b: usize| f64::from(f32::midpoint(levels[a], levels[b]));
                let from = if index == 0 {
                    0.0
                } else {
                    middle(index - 1, index)
                };
                let to = if index + 1 == levels.len() {
                    9.0
                } else {
                    middle(index, index + 1)
                };
                let (mut mass, mut moment) = (0.0, 0.0);
                let steps = 20_000;
                for step in 0..steps {
                    let x = from + (to - from) * (f64::from(step) + 0.5) / f64::from(steps);
                    let density = (-x * x / 2.0).exp();
                    mass += density;
                    moment += density * x;
                }
                let mean = moment / mass;
                assert!(
                    (mean - f64::from(*level)).abs() < tolerance,
                    "{level} against {mean}"
                );
            }
        }
    }

    #[test]
    fn symbols_are_nearest_and_invert() {
        let levels = LEVELS[1];
        for (x, symbol) in [(0.0, 0), (0.97, 0), (0.99, 1), (-0.1, -1), (-3.0, -2)] {
            assert_eq!(nearest(levels, x), symbol, "{x}");
        }
        for symbol in -2..2 {
            assert_eq!(nearest(levels, level(levels, symbol)), symbol);
        }
    }
}
