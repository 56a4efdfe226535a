//! `svd`: low rank, found on the fly. Keys and values of a tile are nearly products of thin
//! matrices, as `Palu` (Chang et al., arXiv 2407.21118) and `xKV` (arXiv 2503.18893) use it; here
//! the factors are computed from each tile and both are sent.

use faer::{Mat, MatRef};
use half::f16;
use serde::{Deserialize, Serialize};

use crate::block::{read_f16_le, write_f16_le};
use crate::codec::frame::Reader;
use crate::codec::{Beside, Codec, CodecError, Tile, TileMut, TileShape, TileSpec};

/// Keeps the `rank` largest singular values of each side, `[tokens, num_kv_heads * head_dim]`,
/// about its mean. The right factor is sent as fp16, the left one, scaled by the singular values,
/// goes through the rest of the chain as a tile `[1, tokens, rank]`.
///
/// Bytes: per side the mean and the right factor; then the rest of the chain's. Loses on short
/// tiles: with 256 tokens and 128 channels a rank of 32 costs a quarter of fp16 for the factors
/// alone, which a basis fitted beforehand (`pca`) does not send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Svd {
    rank: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(rename = "Svd", deny_unknown_fields)]
struct Fields {
    rank: usize,
}

impl TryFrom<Fields> for Svd {
    type Error = CodecError;

    fn try_from(fields: Fields) -> Result<Self, CodecError> {
        Self::new(fields.rank)
    }
}

impl From<Svd> for Fields {
    fn from(stage: Svd) -> Self {
        Self { rank: stage.rank }
    }
}

impl Svd {
    pub(in crate::codec) const NAME: &str = "svd";

    /// The `rank` largest singular values.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] unless `rank` is 1 to 1024.
    pub fn new(rank: usize) -> Result<Self, CodecError> {
        if (1..=1024).contains(&rank) {
            return Ok(Self { rank });
        }
        Err(CodecError::Parameter {
            stage: Self::NAME,
            parameter: "rank",
            value: rank,
            allowed: "1 to 1024",
        })
    }

    /// Reads the parameters of an id, `r32`.
    pub(in crate::codec) fn parse(text: &str) -> Option<Self> {
        Self::new(text.strip_prefix('r')?.parse().ok()?).ok()
    }

    pub(in crate::codec) fn id(&self) -> String {
        format!("{}-r{}", Self::NAME, self.rank)
    }
}

/// The stage with the rest of its chain.
#[derive(Debug)]
pub(in crate::codec) struct SvdCodec {
    stage: Svd,
    inner: Box<dyn Codec>,
}

impl SvdCodec {
    pub(in crate::codec) fn new(stage: Svd, inner: Box<dyn Codec>) -> Self {
        Self { stage, inner }
    }

    fn inner_shape(&self, shape: TileShape) -> Result<TileShape, CodecError> {
        TileShape::new(1, shape.tokens(), self.stage.rank)
    }

    /// Bytes of one side's mean and right factor.
    const fn factor_bytes(&self, shape: TileShape) -> usize {
        (1 + self.stage.rank) * shape.num_kv_heads() * shape.head_dim() * 2
    }

    /// The left factor of a side; appends mean and right factor to `out`.
    fn factorise(&self, shape: TileShape, numbers: &[f16], out: &mut Vec<u8>) -> Option<Vec<f16>> {
        let (tokens, rank) = (shape.tokens(), self.stage.rank);
        let width = shape.num_kv_heads() * shape.head_dim();
        let mut rows =
            Mat::<f32>::from_fn(tokens, width, |t, c| numbers[place(shape, t, c)].to_f32());
        let means: Vec<f16> = (0..width)
            .map(|c| f16::from_f32((0..tokens).map(|t| rows[(t, c)]).sum::<f32>() / tokens as f32))
            .collect();
        for t in 0..tokens {
            for (c, mean) in means.iter().enumerate() {
                rows[(t, c)] -= mean.to_f32();
            }
        }
        let svd = rows.thin_svd().ok()?;
        let (u, s, v) = (svd.U(), svd.S().column_vector(), svd.V());
        let found = rank.min(s.nrows());
        let mut factor = means;
        for r in 0..rank {
            let column = (0..width).map(|c| if r < found { v[(c, r)] } else { 0.0 });
            factor.extend(column.map(f16::from_f32));
        }
        let mut left = Vec::with_capacity(tokens * rank);
        for t in 0..tokens {
            let row = (0..rank).map(|r| if r < found { u[(t, r)] * s[r] } else { 0.0 });
            left.extend(row.map(f16::from_f32));
        }
        let start = out.len();
        out.resize(start + factor.len() * 2, 0);
        write_f16_le(&factor, &mut out[start..]);
        Some(left)
    }
}

/// Where token and channel of all heads stand in a side.
const fn place(shape: TileShape, token: usize, channel: usize) -> usize {
    let head_dim = shape.head_dim();
    let head = channel / head_dim;
    (head * shape.tokens() + token) * head_dim + channel % head_dim
}

impl Codec for SvdCodec {
    fn id(&self) -> String {
        format!("{}+{}", self.stage.id(), self.inner.id())
    }

    fn check_shape(&self, shape: TileShape) -> Result<(), CodecError> {
        self.inner.check_shape(self.inner_shape(shape)?)
    }

    fn encode(&self, tile: &Tile<'_>, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let shape = tile.shape();
        self.check_shape(shape)?;
        let start = out.len();
        let mut sides = Vec::new();
        for (side, numbers) in [("keys", tile.k()), ("values", tile.v())] {
            // Factors of numbers that are not finite, or that overflow, are not finite.
            let finite = numbers.iter().all(|x| x.is_finite());
            let left = finite
                .then(|| self.factorise(shape, numbers, out))
                .flatten();
            let codec = self.stage.id();
            sides.push(left.ok_or(CodecError::NotFinite { codec, side })?);
        }
        let beside = Beside {
            positions: tile.beside().positions,
            prior: &[],
        };
        let spec: TileSpec = tile.spec().with_shape(self.inner_shape(shape)?);
        let inner = Tile::new(spec, &sides[0], &sides[1])?.with_beside(beside)?;
        self.inner
            .encode(&inner, out)
            .inspect_err(|_| out.truncate(start))
    }

    fn decode(&self, bytes: &[u8], tile: &mut TileMut<'_>) -> Result<(), CodecError> {
        let shape = tile.shape();
        self.check_shape(shape)?;
        let (tokens, rank) = (shape.tokens(), self.stage.rank);
        let width = shape.num_kv_heads() * shape.head_dim();
        let mut reader = Reader::new(bytes);
        let mut factors = Vec::new();
        for _side in 0..2 {
            let section =
                reader
                    .take(self.factor_bytes(shape))
                    .ok_or_else(|| CodecError::Corrupt {
                        codec: self.stage.id(),
                        reason: "the bytes end inside the factors".to_owned(),
                    })?;
            let mut factor = vec![f16::ZERO; (1 + rank) * width];
            read_f16_le(section, &mut factor);
            if !factor.iter().all(|x| x.is_finite()) {
                return Err(CodecError::Corrupt {
                    codec: self.stage.id(),
                    reason: "a factor that no encoder writes".to_owned(),
                });
            }
            factors.push(factor.iter().map(|x| x.to_f32()).collect::<Vec<f32>>());
        }
        tile.count(
            Svd::NAME,
            "means and right factors",
            2 * self.factor_bytes(shape),
        );
        let inner_shape = self.inner_shape(shape)?;
        let spec: TileSpec = tile.spec().with_shape(inner_shape);
        let mut left = vec![f16::ZERO; inner_shape.elements()];
        let mut other = left.clone();
        let beside = Beside {
            positions: tile.beside().positions,
            prior: &[],
        };
        let mut inner = TileMut::new(spec, &mut left, &mut other)?.with_beside(beside)?;
        tile.decode_inner(&mut inner, |inner| self.inner.decode(reader.rest(), inner))?;
        let sides = tile.sides().into_iter().zip([left, other]).zip(&factors);
        for ((numbers, left), factor) in sides {
            let left: Vec<f32> = left.iter().map(|x| x.to_f32()).collect();
            let (means, right) = factor.split_at(width);
            let product: Mat<f32> = MatRef::from_row_major_slice(&left, tokens, rank)
                * MatRef::from_row_major_slice(right, rank, width);
            for t in 0..tokens {
                for (c, mean) in means.iter().enumerate() {
                    let number = (product[(t, c)] + mean).clamp(-65504.0, 65504.0);
                    numbers[place(shape, t, c)] =
                        f16::from_f32(if number.is_nan() { *mean } else { number });
                }
            }
        }
        Ok(())
    }

    fn encoded_len(&self, shape: TileShape) -> usize {
        let inner = self.inner_shape(shape);
        2 * self.factor_bytes(shape) + inner.map_or(0, |shape| self.inner.encoded_len(shape))
    }

    fn nominal_bits(&self) -> f64 {
        let shape = TileShape::new(2, 256, 64);
        shape.map_or(16.0, |shape| {
            self.encoded_len(shape) as f64 * 4.0 / shape.elements() as f64
        })
    }

    fn token_group(&self) -> usize {
        self.inner.token_group()
    }

    fn error_bound(&self, _min: f32, _max: f32) -> Option<f32> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Identity;

    #[test]
    fn a_product_of_thin_matrices_comes_back() {
        let shape = TileShape::new(2, 20, 16).unwrap();
        let side: Vec<f16> = (0..shape.elements())
            .map(|i| {
                let (row, channel) = (i / 16, i % 16 + i / 320 * 16);
                let token = row % 20;
                f16::from_f32((token as f32 * 0.3).sin() * (channel as f32 - 10.0) + channel as f32)
            })
            .collect();
        let codec = SvdCodec::new(Svd { rank: 2 }, Box::new(Identity));
        let spec = TileSpec::alone(shape);
        let mut bytes = Vec::new();
        codec
            .encode(&Tile::new(spec, &side, &side).unwrap(), &mut bytes)
            .unwrap();
        assert_eq!(bytes.len(), 2 * (3 * 32 + 20 * 2) * 2);
        let (mut k, mut v) = (vec![f16::ZERO; 640], vec![f16::ZERO; 640]);
        codec
            .decode(&bytes, &mut TileMut::new(spec, &mut k, &mut v).unwrap())
            .unwrap();
        for (x, y) in side.iter().zip(&k) {
            assert!((x.to_f32() - y.to_f32()).abs() < 0.1, "{x} {y}");
        }
    }
}
