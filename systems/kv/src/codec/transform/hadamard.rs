//! `hadamard`: a random rotation of each head's channels, as `QuaRot` (Ashkboos et al.,
//! arXiv 2404.00456) and `TurboQuant` (Zandieh et al., arXiv 2504.19874) use it.
//!
//! Random signs followed by the Hadamard matrix: an orthogonal map that takes `n log n` additions
//! and spreads every outlier over all channels.

use half::f16;
use half::slice::HalfFloatSliceExt;
use serde::{Deserialize, Serialize};

use crate::codec::select::mix;
use crate::codec::{Codec, CodecError, Tile, TileMut, TileShape};

/// Rotates every vector of `head_dim` channels, a power of two or three times one, with signs drawn
/// from `seed`, layer, side and channel. Nothing is sent.
///
/// Three runs of a power of two are mixed by a reflection of three coordinates, which spreads a
/// number over all of them less evenly than the Hadamard matrix: 1/9, 4/9 and 4/9 of its square.
///
/// Errors keep their length: the sum of squares over a vector is what it is before the inverse.
/// Loses against a fitted basis (`pca`), which knows where the variance is and can leave
/// channels out, and on keys, unless their offsets are taken off first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hadamard {
    /// Where the signs come from.
    #[serde(default)]
    pub seed: u64,
}

impl Hadamard {
    pub(in crate::codec) const NAME: &str = "hadamard";

    /// Reads the parameters of an id, `s0`.
    pub(in crate::codec) fn parse(text: &str) -> Option<Self> {
        let seed = text.strip_prefix('s')?.parse().ok()?;
        Some(Self { seed })
    }

    pub(in crate::codec) fn id(&self) -> String {
        format!("{}-s{}", Self::NAME, self.seed)
    }

    /// Signs of a side's channels, times the factor that makes the map orthogonal.
    fn signs(&self, layer: usize, side: usize, head_dim: usize) -> Vec<f32> {
        let factor = (run_of(head_dim) as f32).sqrt().recip();
        (0..head_dim)
            .map(|channel| {
                let place = (layer as u64) << 32 | (side as u64) << 31 | channel as u64;
                let draw = mix(self.seed ^ mix(place));
                if draw & 1 == 0 { factor } else { -factor }
            })
            .collect()
    }
}

/// The stage with the rest of its chain.
#[derive(Debug)]
pub(in crate::codec) struct HadamardCodec {
    stage: Hadamard,
    inner: Box<dyn Codec>,
}

impl HadamardCodec {
    pub(in crate::codec) fn new(stage: Hadamard, inner: Box<dyn Codec>) -> Self {
        Self { stage, inner }
    }
}

/// The largest power of two that divides a number of channels.
const fn run_of(head_dim: usize) -> usize {
    1 << head_dim.trailing_zeros()
}

/// A symmetric matrix times a row whose length is a power of two or three times one; applied twice
/// it multiplies by [`run_of`] the length.
fn rotate(row: &mut [f32]) {
    let run = run_of(row.len());
    row.chunks_exact_mut(run).for_each(butterflies);
    if row.len() > run {
        let (a, rest) = row.split_at_mut(run);
        let (b, c) = rest.split_at_mut(run);
        for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
            let shift = (*a + *b + *c) * (2.0 / 3.0);
            (*a, *b, *c) = (*a - shift, *b - shift, *c - shift);
        }
    }
}

/// Sums and differences of halves, quarters and so on: the Hadamard matrix times a row.
fn butterflies(row: &mut [f32]) {
    let mut half = row.len() / 2;
    while half > 0 {
        for pair in row.chunks_exact_mut(2 * half) {
            let (a, b) = pair.split_at_mut(half);
            for (x, y) in a.iter_mut().zip(b) {
                (*x, *y) = (*x + *y, *x - *y);
            }
        }
        half /= 2;
    }
}

impl Codec for HadamardCodec {
    fn id(&self) -> String {
        format!("{}+{}", self.stage.id(), self.inner.id())
    }

    fn check_shape(&self, shape: TileShape) -> Result<(), CodecError> {
        let head_dim = shape.head_dim();
        if matches!(head_dim / run_of(head_dim), 1 | 3) {
            return self.inner.check_shape(shape);
        }
        Err(CodecError::UnsupportedShape {
            codec: self.stage.id(),
            reason: format!("head_dim {head_dim} is neither a power of two nor three times one"),
        })
    }

    fn encode(&self, tile: &Tile<'_>, out: &mut Vec<u8>) -> Result<(), CodecError> {
        self.check_shape(tile.shape())?;
        let head_dim = tile.shape().head_dim();
        let mut row = vec![0.0_f32; head_dim];
        let mut rotated_side = |side: usize, numbers: &[f16]| {
            let signs = self.stage.signs(tile.spec().layer, side, head_dim);
            let mut rotated = vec![f16::ZERO; numbers.len()];
            let rows = numbers.chunks_exact(head_dim);
            for (numbers, rotated) in rows.zip(rotated.chunks_exact_mut(head_dim)) {
                numbers.convert_to_f32_slice(&mut row);
                row.iter_mut().zip(&signs).for_each(|(x, sign)| *x *= sign);
                rotate(&mut row);
                // An overflow becomes an infinity, which the quantiser refuses.
                rotated.convert_from_f32_slice(&row);
            }
            rotated
        };
        let (k, v) = (rotated_side(0, tile.k()), rotated_side(1, tile.v()));
        let rotated = Tile::new(*tile.spec(), &k, &v)?.with_beside(tile.beside())?;
        self.inner.encode(&rotated, out)
    }

    fn decode(&self, bytes: &[u8], tile: &mut TileMut<'_>) -> Result<(), CodecError> {
        self.check_shape(tile.shape())?;
        self.inner.decode(bytes, tile)?;
        let (layer, head_dim) = (tile.spec().layer, tile.shape().head_dim());
        let mut row = vec![0.0_f32; head_dim];
        for (side, numbers) in tile.sides().into_iter().enumerate() {
            let signs = self.stage.signs(layer, side, head_dim);
            for numbers in numbers.chunks_exact_mut(head_dim) {
                numbers.convert_to_f32_slice(&mut row);
                rotate(&mut row);
                for (x, sign) in row.iter_mut().zip(&signs) {
                    *x = (*x * sign).clamp(-65504.0, 65504.0);
                }
                numbers.convert_from_f32_slice(&row);
            }
        }
        Ok(())
    }

    fn encoded_len(&self, shape: TileShape) -> usize {
        self.inner.encoded_len(shape)
    }

    fn nominal_bits(&self) -> f64 {
        self.inner.nominal_bits()
    }

    fn token_group(&self) -> usize {
        self.inner.token_group()
    }

    fn error_bound(&self, _min: f32, _max: f32) -> Option<f32> {
        None
    }

    fn decodes_prefixes(&self) -> bool {
        self.inner.decodes_prefixes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Identity, TileSpec};

    #[test]
    fn the_rotation_is_orthogonal_and_spreads_an_outlier() {
        let shape = TileShape::new(1, 1, 64).unwrap();
        let mut side = vec![f16::ZERO; 64];
        side[17] = f16::from_f32(80.0);
        let codec = HadamardCodec::new(Hadamard { seed: 3 }, Box::new(Identity));
        let spec = TileSpec::alone(shape);
        let mut bytes = Vec::new();
        codec
            .encode(&Tile::new(spec, &side, &side).unwrap(), &mut bytes)
            .unwrap();
        let rotated: Vec<f32> = bytes
            .chunks_exact(2)
            .map(|pair| f16::from_le_bytes([pair[0], pair[1]]).to_f32())
            .collect();
        assert!(rotated.iter().all(|x| x.abs() == 10.0));
        let (mut k, mut v) = (vec![f16::ZERO; 64], vec![f16::ZERO; 64]);
        codec
            .decode(&bytes, &mut TileMut::new(spec, &mut k, &mut v).unwrap())
            .unwrap();
        assert_eq!((&k, &v), (&side, &side));
        for (head_dim, suits) in [(48, true), (3, true), (40, false), (7, false)] {
            let shape = TileShape::new(1, 1, head_dim).unwrap();
            assert_eq!(codec.check_shape(shape).is_ok(), suits, "{head_dim}");
        }
    }

    #[test]
    fn three_runs_keep_lengths_and_come_back() {
        let shape = TileShape::new(2, 5, 48).unwrap();
        let side: Vec<f16> = (0..480)
            .map(|i| f16::from_f32((i * 37 % 101) as f32))
            .collect();
        let codec = HadamardCodec::new(Hadamard { seed: 3 }, Box::new(Identity));
        let spec = TileSpec::alone(shape);
        let mut bytes = Vec::new();
        codec
            .encode(&Tile::new(spec, &side, &side).unwrap(), &mut bytes)
            .unwrap();
        let square = |row: &[f16]| row.iter().map(|x| x.to_f32().powi(2)).sum::<f32>();
        let rotated: Vec<f16> = bytes
            .chunks_exact(2)
            .map(|pair| f16::from_le_bytes([pair[0], pair[1]]))
            .collect();
        for (row, rotated) in side.chunks_exact(48).zip(rotated.chunks_exact(48)) {
            let (before, after) = (square(row), square(rotated));
            assert!((before / after - 1.0).abs() < 1e-3, "{before} {after}");
        }
        let (mut k, mut v) = (vec![f16::ZERO; 480], vec![f16::ZERO; 480]);
        let mut tile = TileMut::new(spec, &mut k, &mut v).unwrap();
        codec.decode(&bytes, &mut tile).unwrap();
        for (x, y) in side.iter().zip(&k) {
            assert!((x.to_f32() - y.to_f32()).abs() < 0.3, "{x} {y}");
        }
    }
}
