//! `progressive`: an embedded stream, decodable at every prefix, better with every byte.
//!
//! Bit planes from the highest to the lowest, as in embedded zerotree coding (Shapiro, 1993) and
//! JPEG 2000 (Taubman, 2000): each plane says which coefficients exceed its threshold and refines
//! those that exceeded an earlier one. A receiver that runs out of time or of link decodes what it
//! has; a sender may cut a payload anywhere.

use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;
use serde::{Deserialize, Serialize};

use super::{Step, check_finite, finite, step};
use crate::codec::entropy::{Bit, Decoder, Encoder};
use crate::codec::{Codec, CodecArtefact, CodecError, Tile, TileMut, TileShape, TileSpec};

/// Codes components of `pca` down to a step of `milli / 1000`.
///
/// Bytes: the number of planes, then bits of a range coder: plane by plane, keys then values, token
/// by token; no byte at all is a tile of zeros, that is, of means. Models are chosen by what the
/// artefact expects of the channel and by how many neighbours exceed the threshold. Loses a few
/// percent against `step` with `context` at the full length, and time: every coefficient is
/// visited once per plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Progressive {
    milli: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(rename = "Progressive", deny_unknown_fields)]
struct Fields {
    milli: usize,
}

impl TryFrom<Fields> for Progressive {
    type Error = CodecError;

    fn try_from(fields: Fields) -> Result<Self, CodecError> {
        Self::new(fields.milli)
    }
}

impl From<Progressive> for Fields {
    fn from(stage: Progressive) -> Self {
        Self { milli: stage.milli }
    }
}

/// Most planes: magnitudes are below `1 << PLANES` steps.
const PLANES: usize = 14;

impl Progressive {
    pub(in crate::codec) const NAME: &str = "progressive";

    /// Down to a step of `milli / 1000`.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] unless `milli` is 5 to 10000.
    pub fn new(milli: usize) -> Result<Self, CodecError> {
        if (5..=10_000).contains(&milli) {
            return Ok(Self { milli });
        }
        Err(CodecError::Parameter {
            stage: Self::NAME,
            parameter: "milli",
            value: milli,
            allowed: "5 to 10000",
        })
    }

    /// Reads the parameters of an id, `m250`.
    pub(in crate::codec) fn parse(text: &str) -> Option<Self> {
        Self::new(text.strip_prefix('m')?.parse().ok()?).ok()
    }

    pub(in crate::codec) fn id(&self) -> String {
        format!("{}-m{}", Self::NAME, self.milli)
    }
}

/// The stage with the artefact that says what to expect.
#[derive(Debug)]
pub(in crate::codec) struct ProgressiveCodec {
    stage: Progressive,
    artefact: Option<Arc<CodecArtefact>>,
}

impl ProgressiveCodec {
    pub(in crate::codec) fn new(stage: Progressive, artefact: Option<Arc<CodecArtefact>>) -> Self {
        Self { stage, artefact }
    }

    /// Size of every channel's magnitudes to expect, by side: 0 for less than 1/16 of a step, one
    /// more for each doubling.
    fn sizes(&self, spec: &TileSpec) -> [Vec<u8>; 2] {
        let step = Step::new(self.stage.milli, 0);
        let expected = step
            .ok()
            .and_then(|step| step::expected(self.artefact.as_ref(), &step, spec));
        let channels = spec.shape.num_kv_heads() * spec.shape.head_dim();
        expected.map_or_else(
            || [vec![5; channels], vec![5; channels]],
            |sides| {
                sides.map(|side| {
                    let size = |mean: &u16| (u16::BITS - mean.leading_zeros()) as u8;
                    side.iter().map(size).collect()
                })
            },
        )
    }
}

/// Sizes relative to a plane, from far below its threshold to far above.
const RELATIVE: usize = 8;
/// Neighbours that exceed the threshold, weighted: 0 to 4.
const AROUND: usize = 5;

/// Models of all bits of one payload.
struct Models {
    exceeds: Vec<Bit>,
    sign: Bit,
    refine: Vec<Bit>,
}

impl Models {
    fn new() -> Self {
        let exceeds = (0..RELATIVE * AROUND)
            .map(|index| {
                // The further below the threshold, the likelier a zero.
                let (relative, around) = (index / AROUND, index % AROUND);
                let zero = 65_536 - (1 << (8 + relative.min(6))) - 1_500 * around;
                Bit::sure(zero as u16, 2)
            })
            .collect();
        Self {
            exceeds,
            sign: Bit::sure(1 << 15, 6),
            refine: vec![Bit::sure(36_000, 2); PLANES * 2],
        }
    }
}

/// One pass over all coefficients of one plane; `code` gets the model and, while encoding, the
/// bit, and gives the bit, or `None` to stop.
struct Pass<'a> {
    plane: usize,
    shape: TileShape,
    sizes: &'a [u8],
}

impl Pass<'_> {
    /// Visits the coefficients of a side in order; returns how many were finished.
    fn run(
        &self,
        models: &mut Models,
        magnitudes: &mut [u16],
        negative: &mut [bool],
        mut code: impl FnMut(&mut Bit, usize, Kind) -> Option<bool>,
    ) -> Option<()> {
        let (tokens, head_dim) = (self.shape.tokens(), self.shape.head_dim());
        for index in 0..magnitudes.len() {
            let (row, channel) = (index / head_dim, index % head_dim);
            let head = row / tokens;
            let known = magnitudes[index];
            let bit = if known == 0 {
                // Two of weight two: the same channel of the token before, the channel before.
                let mut around = 0;
                if !row.is_multiple_of(tokens) && magnitudes[index - head_dim] > 0 {
                    around += 2;
                }
                if channel > 0 && magnitudes[index - 1] > 0 {
                    around += 1;
                }
                if channel > 1 && magnitudes[index - 2] > 0 {
                    around += 1;
                }
                // A size of 5 expects about one step, the threshold of plane 0.
                let size = i32::from(self.sizes[head * head_dim + channel]);
                let relative = (size - self.plane as i32).clamp(0, RELATIVE as i32 - 1) as usize;
                let model = &mut models.exceeds[relative * AROUND + around];
                let exceeds = code(model, index, Kind::Magnitude)?;
                if exceeds {
                    // A sign that did not arrive leaves the coefficient at zero.
                    negative[index] = code(&mut models.sign, index, Kind::Sign)?;
                }
                exceeds
            } else {
                let first = known.ilog2() as usize == self.plane + 1;
                let model = &mut models.refine[self.plane * 2 + usize::from(first)];
                code(model, index, Kind::Magnitude)?
            };
            magnitudes[index] |= u16::from(bit) << self.plane;
        }
        Some(())
    }
}

/// Which bit of a coefficient is coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Magnitude,
    Sign,
}

impl Codec for ProgressiveCodec {
    fn id(&self) -> String {
        self.stage.id()
    }

    fn check_shape(&self, _shape: TileShape) -> Result<(), CodecError> {
        Ok(())
    }

    fn encode(&self, tile: &Tile<'_>, out: &mut Vec<u8>) -> Result<(), CodecError> {
        check_finite(Progressive::NAME, tile)?;
        let shape = tile.shape();
        let inverse = 1000.0 / self.stage.milli as f32;
        let most = f32::from((1_u16 << PLANES) - 1);
        let mut planes = 0;
        let sides = [tile.k(), tile.v()].map(|numbers| {
            let mut wide = vec![0.0_f32; numbers.len()];
            numbers.convert_to_f32_slice(&mut wide);
            wide.iter()
                .map(|x| {
                    // Cut towards zero: planes halve cells, and the one around zero is twice as
                    // wide as the others.
                    let magnitude = (x.abs() * inverse).min(most) as u16;
                    planes = planes.max((u16::BITS - magnitude.leading_zeros()) as usize);
                    (magnitude, *x < 0.0)
                })
                .collect::<Vec<_>>()
        });
        let start = out.len();
        out.push(planes as u8);
        let sizes = self.sizes(tile.spec());
        let mut encoder = Encoder::new(out);
        let mut models = Models::new();
        let mut known = [(); 2].map(|()| vec![0_u16; shape.elements()]);
        let mut negative = [(); 2].map(|()| vec![false; shape.elements()]);
        for plane in (0..planes).rev() {
            for side in 0..2 {
                let pass = Pass {
                    plane,
                    shape,
                    sizes: &sizes[side],
                };
                let all = pass.run(
                    &mut models,
                    &mut known[side],
                    &mut negative[side],
                    |model, index, kind| {
                        let (magnitude, negative) = sides[side][index];
                        let bit = match kind {
                            Kind::Magnitude => magnitude >> plane & 1 == 1,
                            Kind::Sign => negative,
                        };
                        encoder.put(model, bit);
                        Some(bit)
                    },
                );
                debug_assert_eq!(all, Some(()), "an encoder never stops");
            }
        }
        encoder.finish();
        // Numbers that no model fits could take more than fp16; a prefix says nearly as much.
        out.truncate(start + self.encoded_len(shape));
        Ok(())
    }

    fn decode(&self, bytes: &[u8], tile: &mut TileMut<'_>) -> Result<(), CodecError> {
        let shape = tile.shape();
        let corrupt = |reason: &str| CodecError::Corrupt {
            codec: self.stage.id(),
            reason: reason.to_owned(),
        };
        let most = self.encoded_len(shape);
        if bytes.len() > most {
            return Err(CodecError::Length {
                codec: self.stage.id(),
                expected: most,
                found: bytes.len(),
            });
        }
        let Some((planes, bits)) = bytes.split_first() else {
            for side in tile.sides() {
                side.fill(f16::ZERO);
            }
            return Ok(());
        };
        let planes = usize::from(*planes);
        if planes > PLANES {
            return Err(corrupt("more bit planes than an encoder writes"));
        }
        let sizes = self.sizes(tile.spec());
        let mut decoder = Decoder::new(bits);
        let mut models = Models::new();
        let mut known = [(); 2].map(|()| vec![0_u16; shape.elements()]);
        let mut negative = [(); 2].map(|()| vec![false; shape.elements()]);
        // How many coefficients of each side know the lowest plane that was begun.
        let mut reached = [0; 2];
        let mut lowest = planes;
        'planes: for plane in (0..planes).rev() {
            lowest = plane;
            reached = [0; 2];
            for side in 0..2 {
                let pass = Pass {
                    plane,
                    shape,
                    sizes: &sizes[side],
                };
                let count = &mut reached[side];
                let all = pass.run(
                    &mut models,
                    &mut known[side],
                    &mut negative[side],
                    |model, index, _| {
                        // Bits made of bytes that did not arrive are not used.
                        if decoder.overran() {
                            return None;
                        }
                        *count = index;
                        Some(decoder.get(model))
                    },
                );
                if all.is_none() {
                    break 'planes;
                }
                *count = shape.elements();
            }
        }
        if !decoder.overran() && !decoder.is_done() {
            return Err(corrupt("bytes behind the last plane"));
        }
        let step = self.stage.milli as f32 / 1000.0;
        for (side, numbers) in tile.sides().into_iter().enumerate() {
            for (index, x) in numbers.iter_mut().enumerate() {
                let magnitude = known[side][index];
                if magnitude == 0 {
                    *x = f16::ZERO;
                    continue;
                }
                let plane = if index <= reached[side] {
                    lowest
                } else {
                    lowest + 1
                };
                // Below the middle of the cell, where most of its numbers lie.
                let number = (f32::from(magnitude) + 0.45 * (1_u32 << plane) as f32) * step;
                *x = finite(if negative[side][index] {
                    -number
                } else {
                    number
                });
            }
        }
        tile.count(Progressive::NAME, "number of planes", 1);
        tile.count(Progressive::NAME, "bit planes", bits.len());
        Ok(())
    }

    fn encoded_len(&self, shape: TileShape) -> usize {
        1 + shape.fp16_bytes()
    }

    fn nominal_bits(&self) -> f64 {
        16.0 + 1.0 / 8192.0
    }

    fn error_bound(&self, _min: f32, _max: f32) -> Option<f32> {
        None
    }

    fn decodes_prefixes(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bits that a range coder has use for can be more than an encoder ever writes.
    #[test]
    fn payloads_longer_than_any_are_refused() {
        let shape = TileShape::new(1, 1, 1).unwrap();
        let codec = ProgressiveCodec::new(Progressive::new(250).unwrap(), None);
        let (mut k, mut v) = ([f16::ZERO], [f16::ZERO]);
        let mut tile = TileMut::new(TileSpec::alone(shape), &mut k, &mut v).unwrap();
        let bytes = [8, 0xff, 0, 0xd2, 0x5c, 0x7c];
        let refused = codec.decode(&bytes, &mut tile);
        assert!(matches!(
            refused,
            Err(CodecError::Length {
                expected: 5,
                found: 6,
                ..
            })
        ));
        assert!(codec.decode(&bytes[..5], &mut tile).is_ok());
    }
}
