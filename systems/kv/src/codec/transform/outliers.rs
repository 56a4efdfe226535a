//! `outliers`: channels with the most energy apart from the others, with more bits, as the
//! fractional widths of `TurboQuant` (Zandieh et al., arXiv 2504.19874) have it.
//!
//! The two sets are coded as if each were a tile of its own, so that a rotation behind this stage
//! stays within either and outliers do not eat the range of the others.

use half::f16;
use serde::{Deserialize, Serialize};

use crate::codec::frame::{Reader, number_len, put_section};
use crate::codec::{Beside, Codec, CodecError, Tile, TileMut, TileShape};

/// Takes the `percent` of a head's channels with the largest sums of squares over the tile, keys
/// and values by themselves, and codes them with `extra` bits more than `lloyd_max` says.
///
/// Mean bits follow: a quarter with two more bits make half a bit, and so do a half with one more.
/// Bytes: per side and head one bit for each channel, set for an outlier; a section of the
/// outliers, `[num_kv_heads, tokens, outliers]`; the other channels. Loses by the second norm that
/// every vector sends, a quarter of a bit a number with 64 channels, and where the channels are
/// alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Outliers {
    percent: usize,
    extra: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(rename = "Outliers", deny_unknown_fields)]
struct Fields {
    percent: usize,
    extra: usize,
}

impl TryFrom<Fields> for Outliers {
    type Error = CodecError;

    fn try_from(fields: Fields) -> Result<Self, CodecError> {
        Self::new(fields.percent, fields.extra)
    }
}

impl From<Outliers> for Fields {
    fn from(stage: Outliers) -> Self {
        let Outliers { percent, extra } = stage;
        Self { percent, extra }
    }
}

impl Outliers {
    pub(in crate::codec) const NAME: &str = "outliers";

    /// `percent` of the channels, with `extra` more bits.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] unless `percent` is 1 to 99 and `extra` 1 to 4.
    pub fn new(percent: usize, extra: usize) -> Result<Self, CodecError> {
        let refuse = |parameter, value, allowed| {
            Err(CodecError::Parameter {
                stage: Self::NAME,
                parameter,
                value,
                allowed,
            })
        };
        if !(1..=99).contains(&percent) {
            return refuse("percent", percent, "1 to 99");
        }
        if !(1..=4).contains(&extra) {
            return refuse("extra", extra, "1 to 4");
        }
        Ok(Self { percent, extra })
    }

    /// Reads the parameters of an id, `c25-b2`.
    pub(in crate::codec) fn parse(text: &str) -> Option<Self> {
        let (percent, extra) = text.strip_prefix('c')?.split_once("-b")?;
        Self::new(percent.parse().ok()?, extra.parse().ok()?).ok()
    }

    pub(in crate::codec) fn id(&self) -> String {
        format!("{}-c{}-b{}", Self::NAME, self.percent, self.extra)
    }

    /// Bits that the outliers have more.
    pub(in crate::codec) const fn extra(&self) -> usize {
        self.extra
    }

    /// Outliers of a head of `head_dim` channels; less than all, and possibly none.
    const fn count(&self, head_dim: usize) -> usize {
        head_dim * self.percent / 100
    }

    /// Which of a head's channels are outliers, `rows` being `[tokens, head_dim]`.
    fn choose(&self, rows: &[f16], head_dim: usize) -> Vec<bool> {
        let mut squares = vec![0.0_f64; head_dim];
        for row in rows.chunks_exact(head_dim) {
            for (sum, x) in squares.iter_mut().zip(row) {
                *sum += x.to_f64() * x.to_f64();
            }
        }
        let mut order: Vec<usize> = (0..head_dim).collect();
        order.sort_by(|a, b| squares[*b].total_cmp(&squares[*a]));
        let mut map = vec![false; head_dim];
        for channel in &order[..self.count(head_dim)] {
            map[*channel] = true;
        }
        map
    }
}

/// The stage with the codec of the outliers and that of the other channels.
#[derive(Debug)]
pub(in crate::codec) struct OutliersCodec {
    stage: Outliers,
    outliers: Box<dyn Codec>,
    others: Box<dyn Codec>,
}

impl OutliersCodec {
    pub(in crate::codec) fn new(
        stage: Outliers,
        outliers: Box<dyn Codec>,
        others: Box<dyn Codec>,
    ) -> Self {
        Self {
            stage,
            outliers,
            others,
        }
    }

    /// Shapes of the outliers and of the other channels.
    fn shapes(&self, shape: TileShape) -> Result<[TileShape; 2], CodecError> {
        let count = self.stage.count(shape.head_dim());
        if count == 0 {
            return Err(CodecError::UnsupportedShape {
                codec: self.stage.id(),
                reason: format!("of {} channels none is an outlier", shape.head_dim()),
            });
        }
        let part = |channels| TileShape::new(shape.num_kv_heads(), shape.tokens(), channels);
        Ok([part(count)?, part(shape.head_dim() - count)?])
    }

    fn map_bytes(shape: TileShape) -> usize {
        2 * shape.num_kv_heads() * shape.head_dim().div_ceil(8)
    }

    fn corrupt(&self, reason: &str) -> CodecError {
        CodecError::Corrupt {
            codec: self.stage.id(),
            reason: reason.to_owned(),
        }
    }
}

/// Copies between the rows of a side and those of one of its parts: `copy` is given a head's
/// number in the side, then in the part, for every channel that the maps give to the part.
fn pairs(
    shape: TileShape,
    maps: &[Vec<bool>],
    is_outlier: bool,
    mut copy: impl FnMut(usize, usize),
) {
    let (tokens, head_dim) = (shape.tokens(), shape.head_dim());
    let mut next = 0;
    for (head, map) in maps.iter().enumerate() {
        let channels: Vec<usize> = (0..head_dim).filter(|c| map[*c] == is_outlier).collect();
        for row in head * tokens..(head + 1) * tokens {
            for channel in &channels {
                copy(row * head_dim + channel, next);
                next += 1;
            }
        }
    }
}

impl Codec for OutliersCodec {
    fn id(&self) -> String {
        format!("{}+{}", self.stage.id(), self.others.id())
    }

    fn check_shape(&self, shape: TileShape) -> Result<(), CodecError> {
        let [outliers, others] = self.shapes(shape)?;
        self.outliers.check_shape(outliers)?;
        self.others.check_shape(others)
    }

    fn encode(&self, tile: &Tile<'_>, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let shape = tile.shape();
        self.check_shape(shape)?;
        let shapes = self.shapes(shape)?;
        let start = out.len();
        let mut parts = shapes.map(|shape| [(); 2].map(|()| vec![f16::ZERO; shape.elements()]));
        for (side, numbers) in [tile.k(), tile.v()].into_iter().enumerate() {
            let heads = numbers.chunks_exact(shape.tokens() * shape.head_dim());
            let maps: Vec<_> = heads
                .map(|head| self.stage.choose(head, shape.head_dim()))
                .collect();
            for map in &maps {
                let bits = |eight: &[bool]| {
                    let set = eight.iter().enumerate();
                    set.fold(0, |byte, (bit, is_set)| byte | u8::from(*is_set) << bit)
                };
                out.extend(map.chunks(8).map(bits));
            }
            for (part, is_outlier) in parts.iter_mut().zip([true, false]) {
                let part = &mut part[side];
                pairs(shape, &maps, is_outlier, |from, to| {
                    part[to] = numbers[from];
                });
            }
        }
        let beside = Beside {
            positions: tile.beside().positions,
            prior: &[],
        };
        let encode = |index: usize, codec: &dyn Codec, out: &mut Vec<u8>| {
            let [k, v] = &parts[index];
            let spec = tile.spec().with_shape(shapes[index]);
            codec.encode(&Tile::new(spec, k, v)?.with_beside(beside)?, out)
        };
        let mut section = Vec::new();
        encode(0, self.outliers.as_ref(), &mut section)
            .and_then(|()| {
                put_section(out, &section);
                encode(1, self.others.as_ref(), out)
            })
            .inspect_err(|_| out.truncate(start))
    }

    fn decode(&self, bytes: &[u8], tile: &mut TileMut<'_>) -> Result<(), CodecError> {
        let shape = tile.shape();
        self.check_shape(shape)?;
        let shapes = self.shapes(shape)?;
        let mut reader = Reader::new(bytes);
        let map = reader
            .take(Self::map_bytes(shape))
            .ok_or_else(|| self.corrupt("the bytes end inside the maps of outliers"))?;
        let mut maps = Vec::new();
        for map in map.chunks_exact(shape.head_dim().div_ceil(8)) {
            let set = |bit: usize| map[bit / 8] >> (bit % 8) & 1 == 1;
            let found = (0..map.len() * 8).filter(|bit| set(*bit)).count();
            let head: Vec<bool> = (0..shape.head_dim()).map(set).collect();
            let inside = head.iter().filter(|is_set| **is_set).count();
            if found != inside || found != shapes[0].head_dim() {
                return Err(self.corrupt("a map with another number of outliers"));
            }
            maps.push(head);
        }
        let before = reader.rest().len();
        let section = reader
            .section()
            .ok_or_else(|| self.corrupt("the bytes end inside the outliers"))?;
        let framing = before - section.len() - reader.rest().len();
        tile.count(Outliers::NAME, "maps of outliers", map.len());
        tile.count(Outliers::NAME, "lengths of sections", framing);
        let codecs = [
            (&self.outliers, section, true),
            (&self.others, reader.rest(), false),
        ];
        for ((codec, bytes, is_outlier), part) in codecs.into_iter().zip(shapes) {
            let mut sides = [(); 2].map(|()| vec![f16::ZERO; part.elements()]);
            let [k, v] = &mut sides;
            let beside = Beside {
                positions: tile.beside().positions,
                prior: &[],
            };
            let spec = tile.spec().with_shape(part);
            let mut inner = TileMut::new(spec, k, v)?.with_beside(beside)?;
            tile.decode_inner(&mut inner, |inner| codec.decode(bytes, inner))?;
            let maps = maps.chunks_exact(shape.num_kv_heads());
            for ((numbers, part), maps) in tile.sides().into_iter().zip(&sides).zip(maps) {
                pairs(shape, maps, is_outlier, |to, from| numbers[to] = part[from]);
            }
        }
        Ok(())
    }

    fn encoded_len(&self, shape: TileShape) -> usize {
        let Ok([outliers, others]) = self.shapes(shape) else {
            return 0;
        };
        let section = self.outliers.encoded_len(outliers);
        Self::map_bytes(shape) + number_len(section) + section + self.others.encoded_len(others)
    }

    fn nominal_bits(&self) -> f64 {
        let shape = TileShape::new(2, 256, 64);
        shape.map_or(16.0, |shape| {
            self.encoded_len(shape) as f64 * 4.0 / shape.elements() as f64
        })
    }

    fn token_group(&self) -> usize {
        self.others.token_group()
    }

    fn error_bound(&self, _min: f32, _max: f32) -> Option<f32> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Identity, TileSpec};

    #[test]
    fn outliers_are_the_channels_of_most_energy_and_both_parts_come_back() {
        let shape = TileShape::new(2, 3, 8).unwrap();
        let side: Vec<f16> = (0..48)
            .map(|i| f16::from_f32(if i % 8 == 5 || i % 8 == 1 { 100.0 } else { 1.0 } + i as f32))
            .collect();
        let stage = Outliers::new(25, 2).unwrap();
        let map = stage.choose(&side[..24], 8);
        let chosen: Vec<usize> = (0..8).filter(|c| map[*c]).collect();
        assert_eq!(chosen, [1, 5]);
        let codec = OutliersCodec::new(stage, Box::new(Identity), Box::new(Identity));
        let spec = TileSpec::alone(shape);
        let mut bytes = Vec::new();
        let tile = Tile::new(spec, &side, &side).unwrap();
        codec.encode(&tile, &mut bytes).unwrap();
        assert_eq!(bytes.len(), 4 + 1 + 48 * 4);
        let (mut k, mut v) = (vec![f16::ZERO; 48], vec![f16::ZERO; 48]);
        let mut tile = TileMut::new(spec, &mut k, &mut v).unwrap();
        codec.decode(&bytes, &mut tile).unwrap();
        assert_eq!((&k, &v), (&side, &side));
        bytes[0] ^= 1;
        let mut tile = TileMut::new(spec, &mut k, &mut v).unwrap();
        assert!(codec.decode(&bytes, &mut tile).is_err());
        assert!(codec.check_shape(TileShape::new(1, 1, 3).unwrap()).is_err());
    }
}
