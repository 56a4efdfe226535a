//! `merge`: neighbouring layers share the directions of their vectors, as in `MiniCache` (Liu et
//! al., arXiv 2405.14366).
//!
//! In the deeper part of large models the keys (values) of one token and head point the same way in
//! adjacent layers; lengths differ. So a pair of layers is sent as one direction and two lengths,
//! except for tokens whose directions lie too far apart.

use half::f16;
use serde::{Deserialize, Serialize};

use crate::block::{read_f16_le, write_f16_le};
use crate::codec::frame::Reader;
use crate::codec::tile::{Part, scatter};
use crate::codec::{Codec, CodecError, Held, Prior, Tile, TileMut, TileShape, TileSpec};

/// From `start` percent of the depth on, merges pairs of layers: tokens whose mean angle between
/// the layers, over heads, keys and values, is at most `angle` degrees.
///
/// The lower layer of a pair is coded by the rest of the chain after its vectors were turned 0.6 of
/// the way to those of the upper layer, where the sender has that one at hand (see
/// [`Tile::above`]; otherwise they stay as they are). The upper layer takes its directions from the
/// lower one as the receiver has it. Its bytes: one bit for each token, set for those that are not
/// merged; lengths of the merged vectors as fp16, `[num_kv_heads, merged tokens]`, keys then
/// values; the other tokens by the rest of the chain, nothing if there is none. A layer without a
/// partner is left to the rest of the chain.
///
/// Loses on small models, as its authors say: half of a right angle between the layers is an error
/// of 0.6 of a vector's length after merging, and between vectors drawn at random lies a right
/// angle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Merge {
    start: usize,
    angle: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(rename = "Merge", deny_unknown_fields)]
struct Fields {
    #[serde(default = "default_start")]
    start: usize,
    angle: usize,
}

const fn default_start() -> usize {
    50
}

impl TryFrom<Fields> for Merge {
    type Error = CodecError;

    fn try_from(fields: Fields) -> Result<Self, CodecError> {
        Self::new(fields.start, fields.angle)
    }
}

impl From<Merge> for Fields {
    fn from(stage: Merge) -> Self {
        let Merge { start, angle } = stage;
        Self { start, angle }
    }
}

/// How far the lower layer's directions are turned to the upper layer's: the paper's choice.
const TURN: f32 = 0.6;

impl Merge {
    pub(in crate::codec) const NAME: &str = "merge";

    /// Pairs from `start` percent of the depth on, tokens up to `angle` degrees apart.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] unless `start` is 0 to 99 and `angle` 1 to 180.
    pub fn new(start: usize, angle: usize) -> Result<Self, CodecError> {
        let refuse = |parameter, value, allowed| {
            Err(CodecError::Parameter {
                stage: Self::NAME,
                parameter,
                value,
                allowed,
            })
        };
        if start > 99 {
            return refuse("start", start, "0 to 99");
        }
        if !(1..=180).contains(&angle) {
            return refuse("angle", angle, "1 to 180");
        }
        Ok(Self { start, angle })
    }

    /// Reads the parameters of an id, `s50-a30`.
    pub(in crate::codec) fn parse(text: &str) -> Option<Self> {
        let (start, angle) = text.strip_prefix('s')?.split_once("-a")?;
        Self::new(start.parse().ok()?, angle.parse().ok()?).ok()
    }

    pub(in crate::codec) fn id(&self) -> String {
        format!("{}-s{}-a{}", Self::NAME, self.start, self.angle)
    }

    /// What a layer is in its pair.
    fn role(&self, spec: &TileSpec) -> Role {
        let first = (spec.num_layers * self.start).div_ceil(100);
        match spec.layer.checked_sub(first) {
            Some(depth) if depth % 2 == 1 => Role::Upper,
            Some(_) if spec.layer + 1 < spec.num_layers => Role::Lower,
            _ => Role::Alone,
        }
    }

    /// Offsets of the tokens that two layers share directions for.
    fn alike(&self, shape: TileShape, a: [&[f16]; 2], b: [&[f16]; 2]) -> Vec<usize> {
        let most = (self.angle as f32).to_radians() * 2.0 * shape.num_kv_heads() as f32;
        let mut sums = vec![0.0_f32; shape.tokens()];
        for (a, b) in a.into_iter().zip(b) {
            let rows = a.chunks_exact(shape.head_dim());
            for (row, (a, b)) in rows.zip(b.chunks_exact(shape.head_dim())).enumerate() {
                sums[row % shape.tokens()] += angle(a, b);
            }
        }
        (0..shape.tokens())
            .filter(|token| sums[*token] <= most)
            .collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Lower,
    Upper,
    Alone,
}

/// The length of a vector.
fn length(row: &[f16]) -> f32 {
    let square: f64 = row.iter().map(|x| x.to_f64() * x.to_f64()).sum();
    square.sqrt() as f32
}

/// The angle between two vectors; NaN where one is zero or not finite.
fn angle(a: &[f16], b: &[f16]) -> f32 {
    let dot: f64 = a.iter().zip(b).map(|(x, y)| x.to_f64() * y.to_f64()).sum();
    let lengths = f64::from(length(a)) * f64::from(length(b));
    (dot / lengths).clamp(-1.0, 1.0).acos() as f32
}

/// Turns `row` a part of the way to the direction of `other` on the great circle through both; its
/// length stays.
fn turn(row: &mut [f16], other: &[f16]) {
    let (between, own, theirs) = (angle(row, other), length(row), length(other));
    let sine = between.sin();
    // Along one line there is nothing to turn, or no one way to.
    if sine.is_nan() || sine < 1e-4 {
        return;
    }
    let keep = ((1.0 - TURN) * between).sin() / sine;
    let take = (TURN * between).sin() / sine * own / theirs;
    for (x, y) in row.iter_mut().zip(other) {
        let sum = x.to_f32() * keep + y.to_f32() * take;
        *x = f16::from_f32(sum.clamp(-65504.0, 65504.0));
    }
}

/// The stage with the rest of its chain.
#[derive(Debug)]
pub(in crate::codec) struct MergeCodec {
    stage: Merge,
    inner: Box<dyn Codec>,
}

impl MergeCodec {
    pub(in crate::codec) fn new(stage: Merge, inner: Box<dyn Codec>) -> Self {
        Self { stage, inner }
    }

    fn corrupt(&self, reason: &str) -> CodecError {
        CodecError::Corrupt {
            codec: self.stage.id(),
            reason: reason.to_owned(),
        }
    }

    /// The lower layer of a pair, `above` being the upper one.
    fn encode_lower(
        &self,
        tile: &Tile<'_>,
        above: Prior<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        let shape = tile.shape();
        let (tokens, head_dim) = (shape.tokens(), shape.head_dim());
        let alike = self
            .stage
            .alike(shape, [tile.k(), tile.v()], [above.k, above.v]);
        let mut sides = [tile.k().to_vec(), tile.v().to_vec()];
        for (side, above) in sides.iter_mut().zip([above.k, above.v]) {
            for head in 0..shape.num_kv_heads() {
                for token in &alike {
                    let row = (head * tokens + token) * head_dim;
                    let row = row..row + head_dim;
                    turn(&mut side[row.clone()], &above[row]);
                }
            }
        }
        let [k, v] = &sides;
        let merged = Tile::new(*tile.spec(), k, v)?.with_beside(tile.beside())?;
        self.inner.encode(&merged.with_scores(tile.scores()), out)
    }

    /// The upper layer of a pair, `below` being the lower one as the receiver has it.
    fn encode_upper(
        &self,
        tile: &Tile<'_>,
        below: Prior<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        let shape = tile.shape();
        let (tokens, head_dim) = (shape.tokens(), shape.head_dim());
        let alike = self
            .stage
            .alike(shape, [tile.k(), tile.v()], [below.k, below.v]);
        let others = other_offsets(tokens, &alike);
        let start = out.len();
        out.resize(start + tokens.div_ceil(8), 0);
        for token in &others {
            out[start + token / 8] |= 1 << (token % 8);
        }
        for side in [tile.k(), tile.v()] {
            let heads = side.chunks_exact(tokens * head_dim);
            let lengths: Vec<f16> = heads
                .flat_map(|head| {
                    alike
                        .iter()
                        .map(|token| &head[token * head_dim..][..head_dim])
                })
                .map(|row| f16::from_f32(length(row).min(65504.0)))
                .collect();
            let at = out.len();
            out.resize(at + lengths.len() * 2, 0);
            write_f16_le(&lengths, &mut out[at..]);
        }
        if others.is_empty() {
            return Ok(());
        }
        Part::of(tile, &others)
            .and_then(|part| part.encode(|inner| self.inner.encode(inner, out)))
            .inspect_err(|_| out.truncate(start))
    }

    fn decode_upper(&self, bytes: &[u8], tile: &mut TileMut<'_>) -> Result<(), CodecError> {
        let shape = tile.shape();
        let (tokens, head_dim) = (shape.tokens(), shape.head_dim());
        let Some(below) = tile.beside().prior.first().copied() else {
            return self.inner.decode(bytes, tile);
        };
        let mut reader = Reader::new(bytes);
        let early = || self.corrupt("the bytes end early");
        let map = reader.take(tokens.div_ceil(8)).ok_or_else(early)?;
        let bit = |token: &usize| map[token / 8] >> (token % 8) & 1 == 1;
        if (tokens..map.len() * 8).any(|token| bit(&token)) {
            return Err(self.corrupt("the map has tokens behind the last"));
        }
        let (others, alike): (Vec<usize>, Vec<usize>) = (0..tokens).partition(bit);
        let mut lengths = vec![f16::ZERO; shape.num_kv_heads() * alike.len()];
        let mut rows = vec![f16::ZERO; lengths.len() * head_dim];
        for (side, below) in tile.sides().into_iter().zip([below.k, below.v]) {
            read_f16_le(
                reader.take(lengths.len() * 2).ok_or_else(early)?,
                &mut lengths,
            );
            if lengths
                .iter()
                .any(|x| !x.is_finite() || x.is_sign_negative())
            {
                return Err(self.corrupt("a length that no encoder writes"));
            }
            let heads = below.chunks_exact(tokens * head_dim);
            let directions = heads.flat_map(|head| {
                alike
                    .iter()
                    .map(|token| &head[token * head_dim..][..head_dim])
            });
            for ((row, direction), own) in rows
                .chunks_exact_mut(head_dim)
                .zip(directions)
                .zip(&lengths)
            {
                let theirs = length(direction);
                let factor = if theirs > 0.0 {
                    own.to_f32() / theirs
                } else {
                    0.0
                };
                for (x, y) in row.iter_mut().zip(direction) {
                    let number = (y.to_f32() * factor).clamp(-65504.0, 65504.0);
                    *x = f16::from_f32(if number.is_nan() { 0.0 } else { number });
                }
            }
            scatter(&rows, side, shape, &alike);
        }
        tile.count(Merge::NAME, "map of tokens that are not merged", map.len());
        tile.count(Merge::NAME, "lengths of merged vectors", 4 * lengths.len());
        if others.is_empty() {
            return match reader.is_empty() {
                true => Ok(()),
                false => Err(self.corrupt("bytes behind the lengths, and no other token")),
            };
        }
        let part = Part::room(tile, &others)?;
        let held =
            part.decode_into(tile, &others, |part| self.inner.decode(reader.rest(), part))?;
        debug_assert_eq!(held, Held::All, "selections stand before transforms");
        Ok(())
    }
}

/// The offsets that are not among `some`, which ascend.
fn other_offsets(tokens: usize, some: &[usize]) -> Vec<usize> {
    (0..tokens)
        .filter(|token| some.binary_search(token).is_err())
        .collect()
}

impl Codec for MergeCodec {
    fn id(&self) -> String {
        format!("{}+{}", self.stage.id(), self.inner.id())
    }

    fn check_shape(&self, shape: TileShape) -> Result<(), CodecError> {
        self.inner.check_shape(shape)
    }

    fn encode(&self, tile: &Tile<'_>, out: &mut Vec<u8>) -> Result<(), CodecError> {
        self.check_shape(tile.shape())?;
        let below = tile.beside().prior.first().copied();
        match (self.stage.role(tile.spec()), tile.above(), below) {
            (Role::Lower, Some(above), _) => self.encode_lower(tile, above, out),
            (Role::Upper, _, Some(below)) => self.encode_upper(tile, below, out),
            _ => self.inner.encode(tile, out),
        }
    }

    fn decode(&self, bytes: &[u8], tile: &mut TileMut<'_>) -> Result<(), CodecError> {
        self.check_shape(tile.shape())?;
        match self.stage.role(tile.spec()) {
            Role::Upper => self.decode_upper(bytes, tile),
            Role::Lower | Role::Alone => self.inner.decode(bytes, tile),
        }
    }

    fn encoded_len(&self, shape: TileShape) -> usize {
        shape.tokens().div_ceil(8) + 4 * shape.rows() + self.inner.encoded_len(shape)
    }

    fn nominal_bits(&self) -> f64 {
        self.inner.nominal_bits() + 1.0 / 16.0
    }

    fn token_group(&self) -> usize {
        self.inner.token_group()
    }

    fn error_bound(&self, _min: f32, _max: f32) -> Option<f32> {
        None
    }

    fn prior_layers(&self) -> usize {
        self.inner.prior_layers().max(1)
    }

    fn looks_above(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Beside, Identity};

    fn numbers(count: usize, salt: usize) -> Vec<f16> {
        let number = |i: usize| ((i * 7919 + salt * 31) % 101) as f32 / 50.0 - 1.0;
        (0..count).map(|i| f16::from_f32(number(i))).collect()
    }

    #[test]
    fn pairs_begin_at_the_depth_that_was_asked_for() {
        let shape = TileShape::new(1, 1, 8).unwrap();
        let roles = |num_layers| -> Vec<Role> {
            let spec = |layer| TileSpec {
                layer,
                num_layers,
                ..TileSpec::alone(shape)
            };
            let stage = Merge::new(50, 30).unwrap();
            (0..num_layers)
                .map(|layer| stage.role(&spec(layer)))
                .collect()
        };
        use Role::{Alone, Lower, Upper};
        assert_eq!(roles(5), [Alone, Alone, Alone, Lower, Upper]);
        assert_eq!(roles(6), [Alone, Alone, Alone, Lower, Upper, Alone]);
        assert_eq!(roles(1), [Alone]);
    }

    /// A pair whose directions are equal for all tokens but one: that one comes back as it is, the
    /// others' directions from below with their own lengths.
    #[test]
    fn a_pair_shares_directions_and_keeps_lengths() {
        let shape = TileShape::new(2, 5, 8).unwrap();
        let spec = |layer| TileSpec {
            layer,
            num_layers: 2,
            ..TileSpec::alone(shape)
        };
        let lower = numbers(80, 1);
        let mut upper: Vec<f16> = lower
            .iter()
            .map(|x| f16::from_f32(x.to_f32() * 2.0))
            .collect();
        let odd = numbers(80, 9);
        for head in 0..2 {
            let row = (head * 5 + 3) * 8;
            upper[row..row + 8].copy_from_slice(&odd[row..row + 8]);
        }
        let codec = MergeCodec::new(Merge::new(0, 20).unwrap(), Box::new(Identity));
        let above = Prior {
            k: &upper,
            v: &upper,
        };
        let tile = Tile::new(spec(0), &lower, &lower).unwrap();
        let tile = tile.with_above(Some(above)).unwrap();
        let mut bytes = Vec::new();
        codec.encode(&tile, &mut bytes).unwrap();
        let mut decoded = [vec![f16::ZERO; 80], vec![f16::ZERO; 80]];
        let [k, v] = &mut decoded;
        codec
            .decode(&bytes, &mut TileMut::new(spec(0), k, v).unwrap())
            .unwrap();
        for (x, y) in lower.iter().zip(&decoded[0]) {
            assert!((x.to_f32() - y.to_f32()).abs() < 2e-3, "{x} {y}");
        }
        let prior = [Prior {
            k: &decoded[0],
            v: &decoded[1],
        }];
        let beside = Beside {
            positions: None,
            prior: &prior,
        };
        let tile = Tile::new(spec(1), &upper, &upper).unwrap();
        bytes.clear();
        codec
            .encode(&tile.with_beside(beside).unwrap(), &mut bytes)
            .unwrap();
        // A map, four lengths of each head and side, one token.
        assert_eq!(bytes.len(), 1 + 4 * 2 * 2 * 2 + 2 * 8 * 4);
        let (mut k, mut v) = (vec![f16::ZERO; 80], vec![f16::ZERO; 80]);
        let room = TileMut::new(spec(1), &mut k, &mut v).unwrap();
        codec
            .decode(&bytes, &mut room.with_beside(beside).unwrap())
            .unwrap();
        for (x, y) in upper.iter().zip(&k) {
            assert!((x.to_f32() - y.to_f32()).abs() < 4e-3, "{x} {y}");
        }
        assert_eq!(k[24..32], upper[24..32], "kept as it is");
        bytes[0] |= 0x80;
        let room = TileMut::new(spec(1), &mut k, &mut v).unwrap();
        assert!(
            codec
                .decode(&bytes, &mut room.with_beside(beside).unwrap())
                .is_err()
        );
    }

    #[test]
    fn turning_keeps_the_length_and_divides_the_angle() {
        let mut row = [3.0, 0.0, 0.0].map(f16::from_f32);
        let other = [0.0, 7.0, 0.0].map(f16::from_f32);
        turn(&mut row, &other);
        assert!((length(&row) - 3.0).abs() < 1e-2);
        assert!((angle(&row, &other).to_degrees() - 36.0).abs() < 0.1);
    }
}
