//! `vectorwise`: one scale for each token, levels by depth of the layer, as `CacheGen`'s released
//! code has it (in `LMCache`): no deltas, 32 bins in the first layers and 16 in the others.
//!
//! Described from the behaviour of that code, whose defaults for keys and values differ: keys
//! have fine bins for longer.

use half::f16;
use half::slice::HalfFloatSliceExt;
use serde::{Deserialize, Serialize};

use super::{Quantise, Symbols, bad_scales, check_finite, read_scales, round_to};
use crate::codec::{CodecError, Tile, TileMut, TileShape, TileSpec};

/// Divides a token's keys (values), all heads together, by their largest magnitude and rounds to
/// `fine` bins in the first layers, `coarse` in the others; an odd number of levels around zero.
///
/// Fine are the first 5/16 of the layers for keys and the first 1/16 for values (10 and 2 of 32 in
/// the released code). The scale is sent as fp16 per token and side. Loses on keys before RoPE:
/// their offsets fill the range, and all other channels share what is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Vectorwise {
    fine: usize,
    coarse: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(rename = "Vectorwise", deny_unknown_fields)]
struct Fields {
    #[serde(default = "default_fine")]
    fine: usize,
    #[serde(default = "default_coarse")]
    coarse: usize,
}

const fn default_fine() -> usize {
    Vectorwise::RELEASED.fine
}

const fn default_coarse() -> usize {
    Vectorwise::RELEASED.coarse
}

impl TryFrom<Fields> for Vectorwise {
    type Error = CodecError;

    fn try_from(fields: Fields) -> Result<Self, CodecError> {
        Self::new(fields.fine, fields.coarse)
    }
}

impl From<Vectorwise> for Fields {
    fn from(stage: Vectorwise) -> Self {
        let Vectorwise { fine, coarse } = stage;
        Self { fine, coarse }
    }
}

impl Vectorwise {
    pub(in crate::codec) const NAME: &str = "vectorwise";
    /// The released code's bins.
    pub const RELEASED: Self = Self {
        fine: 32,
        coarse: 16,
    };

    /// `fine` and `coarse` bins.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] unless both are even, 4 to 256.
    pub fn new(fine: usize, coarse: usize) -> Result<Self, CodecError> {
        for (parameter, value) in [("fine", fine), ("coarse", coarse)] {
            if !(4..=256).contains(&value) || value % 2 == 1 {
                return Err(CodecError::Parameter {
                    stage: Self::NAME,
                    parameter,
                    value,
                    allowed: "an even number from 4 to 256",
                });
            }
        }
        Ok(Self { fine, coarse })
    }

    /// Reads the parameters of an id, `f32-c16`.
    pub(in crate::codec) fn parse(text: &str) -> Option<Self> {
        let (fine, coarse) = text.strip_prefix('f')?.split_once("-c")?;
        Self::new(fine.parse().ok()?, coarse.parse().ok()?).ok()
    }

    pub(in crate::codec) fn id(&self) -> String {
        format!("{}-f{}-c{}", Self::NAME, self.fine, self.coarse)
    }

    /// The largest symbol of keys and of values.
    fn most(&self, spec: &TileSpec) -> [i16; 2] {
        let depth = spec.layer * 16 / spec.num_layers.max(1);
        [5, 1].map(|fine| {
            let bins = if depth < fine { self.fine } else { self.coarse };
            (bins / 2 - 1) as i16
        })
    }
}

impl Quantise for Vectorwise {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn check_shape(&self, _shape: TileShape) -> Result<(), CodecError> {
        Ok(())
    }

    fn widths(&self, spec: &TileSpec) -> [Vec<u8>; 2] {
        let channels = spec.shape.num_kv_heads() * spec.shape.head_dim();
        self.most(spec)
            .map(|most| vec![(most as u16 + 1).ilog2() as u8 + 1; channels])
    }

    fn quantise(&self, tile: &Tile<'_>, symbols: &mut Symbols) -> Result<Vec<u8>, CodecError> {
        check_finite(Self::NAME, tile)?;
        let shape = tile.shape();
        let head_dim = shape.head_dim();
        let most = self.most(tile.spec());
        let mut side = Vec::with_capacity(self.side_len(shape));
        let mut row = vec![0.0_f32; head_dim];
        let sides = [(tile.k(), &mut symbols.k), (tile.v(), &mut symbols.v)];
        for ((numbers, symbols), most) in sides.into_iter().zip(most) {
            for token in 0..shape.tokens() {
                let rows = (0..shape.num_kv_heads())
                    .map(|head| (head * shape.tokens() + token) * head_dim)
                    .map(|start| start..start + head_dim);
                let peak = rows
                    .clone()
                    .flat_map(|run| &numbers[run])
                    .fold(0_u16, |peak, x| peak.max(x.to_bits() & 0x7fff));
                side.extend_from_slice(&peak.to_le_bytes());
                let peak = f16::from_bits(peak).to_f32();
                let step = if peak > 0.0 {
                    f32::from(most) / peak
                } else {
                    0.0
                };
                for run in rows {
                    numbers[run.clone()].convert_to_f32_slice(&mut row);
                    for (symbol, x) in symbols[run].iter_mut().zip(&row) {
                        *symbol = round_to(x * step, most);
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
        let (tokens, head_dim) = (shape.tokens(), shape.head_dim());
        let most = self.most(tile.spec());
        let peaks = read_scales(side, 2 * tokens).ok_or_else(|| bad_scales(Self::NAME))?;
        let mut wide = vec![0.0_f32; head_dim];
        let sides = tile.sides().into_iter().zip([&symbols.k, &symbols.v]);
        for (((numbers, symbols), most), peaks) in sides.zip(most).zip(peaks.chunks_exact(tokens)) {
            let rows = numbers.chunks_exact_mut(head_dim);
            for ((row, symbols), peak) in rows
                .zip(symbols.chunks_exact(head_dim))
                .zip(peaks.iter().cycle())
            {
                let step = peak / f32::from(most);
                for (x, symbol) in wide.iter_mut().zip(symbols) {
                    *x = (f32::from(*symbol) * step).clamp(-65504.0, 65504.0);
                }
                row.convert_from_f32_slice(&wide);
            }
        }
        Ok(())
    }

    fn side_len(&self, shape: TileShape) -> usize {
        4 * shape.tokens()
    }

    fn error_bound(&self, min: f32, max: f32) -> Option<f32> {
        // Half a step of the coarsest bins of the largest magnitude there can be, and rounding.
        let peak = min.abs().max(max.abs());
        let most = (self.fine.min(self.coarse) / 2 - 1) as f32;
        Some(peak * (0.5002 / most + 2.0_f32.powi(-11)) + 2.0_f32.powi(-24))
    }
}
