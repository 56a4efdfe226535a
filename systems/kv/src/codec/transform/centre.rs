//! `centre`: takes the mean over the tile's tokens off every channel.
//!
//! Keys before RoPE stand far from zero: in some layers the square of a channel's mean is hundreds
//! of times its variance. A quantiser whose scale is a token's norm (`TurboQuant`, `MiniCache`)
//! spends its bits on that offset; one whose scale is a channel's range (KIVI) does not see it.

use half::f16;
use half::slice::HalfFloatSliceExt;
use serde::{Deserialize, Serialize};

use crate::codec::{Codec, CodecError, Tile, TileMut, TileShape};

/// Sends each channel's mean as fp16, keys' then values', and hands the differences on.
///
/// Costs `4 / tokens` bytes for a channel's key and value. Loses where channels have no offset, and
/// on tiles of few tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Centre;

impl Centre {
    pub(in crate::codec) const NAME: &str = "centre";
}

/// The stage with the rest of its chain.
#[derive(Debug)]
pub(in crate::codec) struct CentreCodec {
    inner: Box<dyn Codec>,
}

impl CentreCodec {
    pub(in crate::codec) fn new(inner: Box<dyn Codec>) -> Self {
        Self { inner }
    }
}

/// Bytes of the means.
const fn means_len(shape: TileShape) -> usize {
    shape.num_kv_heads() * shape.head_dim() * 2 * size_of::<f16>()
}

/// Each channel's mean over the tokens, head by head; fp16, so that both ends take off the same.
fn means(shape: TileShape, side: &[f16]) -> Vec<f16> {
    let head_dim = shape.head_dim();
    let mut row = vec![0.0_f32; head_dim];
    let mut means = Vec::with_capacity(shape.num_kv_heads() * head_dim);
    for head in side.chunks_exact(shape.tokens() * head_dim) {
        let mut sums = vec![0.0_f64; head_dim];
        for numbers in head.chunks_exact(head_dim) {
            numbers.convert_to_f32_slice(&mut row);
            let pairs = sums.iter_mut().zip(&row);
            pairs.for_each(|(sum, x)| *sum += f64::from(*x));
        }
        let mean = |sum: f64| f16::from_f64(sum / shape.tokens() as f64);
        means.extend(sums.into_iter().map(mean));
    }
    means
}

/// Adds `sign` times its channel's mean to every number of a side.
fn shift(shape: TileShape, side: &mut [f16], means: &[f16], sign: f32) {
    let head_dim = shape.head_dim();
    let (mut row, mut mean) = (vec![0.0_f32; head_dim], vec![0.0_f32; head_dim]);
    let heads = side.chunks_exact_mut(shape.tokens() * head_dim);
    for (head, means) in heads.zip(means.chunks_exact(head_dim)) {
        means.convert_to_f32_slice(&mut mean);
        for numbers in head.chunks_exact_mut(head_dim) {
            numbers.convert_to_f32_slice(&mut row);
            for (x, mean) in row.iter_mut().zip(&mean) {
                *x = (*x + sign * mean).clamp(-65504.0, 65504.0);
            }
            numbers.convert_from_f32_slice(&row);
        }
    }
}

impl Codec for CentreCodec {
    fn id(&self) -> String {
        format!("{}+{}", Centre::NAME, self.inner.id())
    }

    fn check_shape(&self, shape: TileShape) -> Result<(), CodecError> {
        self.inner.check_shape(shape)
    }

    fn encode(&self, tile: &Tile<'_>, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let shape = tile.shape();
        self.check_shape(shape)?;
        let start = out.len();
        let mut sides = [tile.k().to_vec(), tile.v().to_vec()];
        for (name, side) in ["keys", "values"].into_iter().zip(&mut sides) {
            let means = means(shape, side);
            // A NaN or an infinity anywhere in a channel is in its mean.
            if !means.iter().all(|mean| mean.is_finite()) {
                out.truncate(start);
                return Err(CodecError::NotFinite {
                    codec: Centre::NAME.to_owned(),
                    side: name,
                });
            }
            shift(shape, side, &means, -1.0);
            out.extend(means.iter().flat_map(|mean| mean.to_le_bytes()));
        }
        let [k, v] = &sides;
        let centred = Tile::new(*tile.spec(), k, v)?.with_beside(tile.beside())?;
        self.inner
            .encode(&centred, out)
            .inspect_err(|_| out.truncate(start))
    }

    fn decode(&self, bytes: &[u8], tile: &mut TileMut<'_>) -> Result<(), CodecError> {
        let shape = tile.shape();
        self.check_shape(shape)?;
        let corrupt = |reason: &str| CodecError::Corrupt {
            codec: Centre::NAME.to_owned(),
            reason: reason.to_owned(),
        };
        let (means, rest) = bytes
            .split_at_checked(means_len(shape))
            .ok_or_else(|| corrupt("the bytes end inside the means"))?;
        let means: Vec<f16> = means
            .as_chunks::<2>()
            .0
            .iter()
            .map(|pair| f16::from_le_bytes(*pair))
            .collect();
        if !means.iter().all(|mean| mean.is_finite()) {
            return Err(corrupt("a mean is not finite"));
        }
        tile.count(Centre::NAME, "means", means.len() * 2);
        self.inner.decode(rest, tile)?;
        let (k, v) = means.split_at(means.len() / 2);
        for (side, means) in tile.sides().into_iter().zip([k, v]) {
            shift(shape, side, means, 1.0);
        }
        Ok(())
    }

    fn encoded_len(&self, shape: TileShape) -> usize {
        means_len(shape) + self.inner.encoded_len(shape)
    }

    fn nominal_bits(&self) -> f64 {
        // Two bytes over a chunk of 256 tokens.
        self.inner.nominal_bits() + 16.0 / 256.0
    }

    fn token_group(&self) -> usize {
        self.inner.token_group()
    }

    fn error_bound(&self, _min: f32, _max: f32) -> Option<f32> {
        None
    }

    fn decodes_prefixes(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{CodecConfig, TileSpec};

    /// The mean squared error of a chain on channels with offsets far larger than their spread.
    fn error(id: &str) -> f64 {
        let shape = TileShape::new(2, 64, 32).unwrap();
        let side: Vec<f16> = (0..shape.elements())
            .map(|index| {
                let (row, channel) = (index / 32, index % 32);
                let noise = (row * 37 + channel * 101) * 2_654_435_761 % 1009;
                f16::from_f32(20.0 * (channel % 5) as f32 + noise as f32 / 1009.0)
            })
            .collect();
        let codec = id.parse::<CodecConfig>().unwrap().build();
        let tile = Tile::new(TileSpec::alone(shape), &side, &side).unwrap();
        let mut bytes = Vec::new();
        codec.encode(&tile, &mut bytes).unwrap();
        assert!(bytes.len() <= codec.encoded_len(shape));
        let (mut k, mut v) = (vec![f16::ZERO; side.len()], vec![f16::ZERO; side.len()]);
        let mut out = TileMut::new(TileSpec::alone(shape), &mut k, &mut v).unwrap();
        codec.decode(&bytes, &mut out).unwrap();
        let squares = side
            .iter()
            .zip(&k)
            .map(|(x, y)| (x.to_f64() - y.to_f64()).powi(2));
        squares.sum::<f64>() / side.len() as f64
    }

    #[test]
    fn offsets_cost_a_norm_its_precision_and_centring_gives_it_back() {
        let (with, without) = (
            error("centre+hadamard-s0+lloyd_max-4b"),
            error("hadamard-s0+lloyd_max-4b"),
        );
        assert!(with * 100.0 < without, "{with} {without}");
        assert!(error("centre+identity") < 1e-3);
    }
}
