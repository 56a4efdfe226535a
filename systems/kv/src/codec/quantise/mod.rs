//! Quantisers: where numbers become integers.
//!
//! [`Identity`] and [`GroupQuant`] write bytes by themselves. The others, and `group_quant` before
//! an entropy stage, hand integers ([`Symbols`]) to a coder of symbols, which without an entropy
//! stage packs them at fixed widths.

mod allocated;
mod bins;
mod group_quant;
mod identity;
mod lloyd_max;
mod pack;
mod progressive;
mod step;
mod vectorwise;

pub use allocated::{Allocated, Allocation};
pub use bins::Bins;
pub use group_quant::{GroupQuant, GroupQuantLayout};
pub use identity::Identity;
pub use lloyd_max::LloydMax;
pub use progressive::Progressive;
pub use step::Step;
pub use vectorwise::Vectorwise;

pub(super) use allocated::AllocatedQuantiser;
pub(super) use progressive::ProgressiveCodec;
pub(super) use step::StepQuantiser;

use std::fmt::Debug;

use half::f16;

use super::entropy::{Packed, Plane, SymbolCoder};
use super::frame::{Reader, number_len, put_section};
use super::{Codec, CodecError, Tile, TileMut, TileShape, TileSpec};

/// First byte of a side that the coder wrote, and of one that is packed at fixed widths.
const CODED: u8 = 1;
const PACKED: u8 = 0;

/// Names of the two sides, in the order in which they are coded.
pub(super) const SIDES: [&str; 2] = ["keys", "values"];

/// A tile's numbers as integers, each side `[num_kv_heads, tokens, head_dim]`.
#[derive(Debug)]
pub(super) struct Symbols {
    pub(super) k: Vec<i16>,
    pub(super) v: Vec<i16>,
}

impl Symbols {
    fn new(shape: TileShape) -> Self {
        let elements = shape.elements();
        Self {
            k: vec![0; elements],
            v: vec![0; elements],
        }
    }
}

/// Turns a tile into integers and back.
pub(super) trait Quantise: Debug + Send + Sync {
    /// Stage name.
    fn name(&self) -> &'static str;

    /// As [`Codec::check_shape`].
    fn check_shape(&self, shape: TileShape) -> Result<(), CodecError>;

    /// Bits that hold every symbol of a channel, by side and by `head * head_dim + channel`:
    /// symbols are in `-2^(w-1)..2^(w-1)`. At most 15; 0 for a channel that is not coded.
    fn widths(&self, spec: &TileSpec) -> [Vec<u8>; 2];

    /// Quantises; returns scales and the like.
    fn quantise(&self, tile: &Tile<'_>, symbols: &mut Symbols) -> Result<Vec<u8>, CodecError>;

    /// Reconstructs; every symbol is within its width.
    fn dequantise(
        &self,
        symbols: &Symbols,
        side: &[u8],
        tile: &mut TileMut<'_>,
    ) -> Result<(), CodecError>;

    /// Upper bound of what [`Self::quantise`] returns, in bytes.
    fn side_len(&self, shape: TileShape) -> usize;

    /// Upper bound of the bytes of all symbols at fixed widths, where these differ from layer to
    /// layer.
    fn longest(&self, _shape: TileShape) -> Option<usize> {
        None
    }

    /// As [`Codec::error_bound`].
    fn error_bound(&self, _min: f32, _max: f32) -> Option<f32> {
        None
    }

    /// Mean magnitude of the symbols to expect in each channel, by side, in 1/16: coders that
    /// adapt start from it. Both ends must compute the same, so no function of the maths library
    /// may take part.
    fn expected(&self, _spec: &TileSpec) -> Option<[Vec<u16>; 2]> {
        None
    }
}

/// A quantiser with a coder of its symbols.
///
/// Bytes: a section of scales and the like, a section of keys, then the values to the end. The
/// first byte of keys and of values says whether the coder wrote them or, where that would have
/// been longer, they are packed at fixed widths; so no coder can blow a payload up.
#[derive(Debug)]
pub(super) struct Coded {
    quantiser: Box<dyn Quantise>,
    coder: Box<dyn SymbolCoder>,
}

impl Coded {
    pub(super) fn new(quantiser: Box<dyn Quantise>, coder: Box<dyn SymbolCoder>) -> Self {
        Self { quantiser, coder }
    }

    fn encode_side(&self, plane: &Plane<'_>, symbols: &[i16]) -> Vec<u8> {
        let fixed = Packed::len(plane.shape, plane.widths);
        let mut bytes = vec![CODED];
        self.coder.encode(plane, symbols, &mut bytes);
        if bytes.len() > fixed + 1 {
            bytes.truncate(0);
            bytes.push(PACKED);
            Packed.encode(plane, symbols, &mut bytes);
        }
        bytes
    }

    fn decode_side(&self, plane: &Plane<'_>, bytes: &[u8], symbols: &mut [i16]) -> Option<()> {
        match bytes.split_first()? {
            (&CODED, bytes) if bytes.len() <= Packed::len(plane.shape, plane.widths) => {
                self.coder.decode(plane, bytes, symbols)
            }
            (&PACKED, bytes) => Packed.decode(plane, bytes, symbols),
            _ => None,
        }
    }

    fn corrupt(&self, reason: &str) -> CodecError {
        CodecError::Corrupt {
            codec: self.id(),
            reason: reason.to_owned(),
        }
    }
}

impl Codec for Coded {
    fn id(&self) -> String {
        format!("{}+{}", self.quantiser.name(), self.coder.name())
    }

    fn check_shape(&self, shape: TileShape) -> Result<(), CodecError> {
        self.quantiser.check_shape(shape)
    }

    fn encode(&self, tile: &Tile<'_>, out: &mut Vec<u8>) -> Result<(), CodecError> {
        self.check_shape(tile.shape())?;
        let spec = tile.spec();
        let mut symbols = Symbols::new(spec.shape);
        let side = self.quantiser.quantise(tile, &mut symbols)?;
        let widths = self.quantiser.widths(spec);
        let expected = self.quantiser.expected(spec);
        let plane = |index: usize| Plane {
            shape: spec.shape,
            widths: &widths[index],
            expected: expected.as_ref().map(|sides| sides[index].as_slice()),
        };
        put_section(out, &side);
        put_section(out, &self.encode_side(&plane(0), &symbols.k));
        out.extend(self.encode_side(&plane(1), &symbols.v));
        Ok(())
    }

    fn decode(&self, bytes: &[u8], tile: &mut TileMut<'_>) -> Result<(), CodecError> {
        self.check_shape(tile.shape())?;
        let spec = *tile.spec();
        let mut reader = Reader::new(bytes);
        let early = || self.corrupt("the bytes end early");
        let side = reader.section().ok_or_else(early)?;
        if side.len() > self.quantiser.side_len(spec.shape) {
            return Err(self.corrupt("more scales than the shape has"));
        }
        let framing = bytes.len() - reader.rest().len() - side.len();
        let after_side = reader.rest().len();
        let keys = reader.section().ok_or_else(early)?;
        let values = reader.rest();
        let framing = framing + after_side - keys.len() - values.len();
        let widths = self.quantiser.widths(&spec);
        let expected = self.quantiser.expected(&spec);
        let mut symbols = Symbols::new(spec.shape);
        let sides = [(keys, &mut symbols.k), (values, &mut symbols.v)];
        for (index, (bytes, symbols)) in sides.into_iter().enumerate() {
            let plane = Plane {
                shape: spec.shape,
                widths: &widths[index],
                expected: expected.as_ref().map(|sides| sides[index].as_slice()),
            };
            self.decode_side(&plane, bytes, symbols).ok_or_else(|| {
                self.corrupt(&format!("no encoder writes these {}", SIDES[index]))
            })?;
        }
        self.quantiser.dequantise(&symbols, side, tile)?;
        tile.count(self.quantiser.name(), "scales", side.len());
        tile.count(self.coder.name(), "lengths of sections", framing);
        tile.count(self.coder.name(), "symbols of keys", keys.len());
        tile.count(self.coder.name(), "symbols of values", values.len());
        Ok(())
    }

    fn encoded_len(&self, shape: TileShape) -> usize {
        let side = self.quantiser.side_len(shape);
        if let Some(both) = self.quantiser.longest(shape) {
            // A byte each for their form, and for the one more byte that two roundings can cost.
            return side + number_len(side) + number_len(both + 2) + both + 3;
        }
        let widths = self.quantiser.widths(&TileSpec::alone(shape));
        let [k, v] = widths.map(|widths| 1 + Packed::len(shape, &widths));
        side + number_len(side) + k + number_len(k) + v
    }

    fn nominal_bits(&self) -> f64 {
        // Counted on one large tile: scales and tables weigh less the larger it is.
        let shape = TileShape::new(2, 256, 64);
        shape.map_or(16.0, |shape| {
            self.encoded_len(shape) as f64 * 4.0 / shape.elements() as f64
        })
    }

    fn error_bound(&self, min: f32, max: f32) -> Option<f32> {
        self.quantiser.error_bound(min, max)
    }

    fn decodes_prefixes(&self) -> bool {
        false
    }
}

/// Checks that numbers can be quantised.
fn check_finite(codec: &str, tile: &Tile<'_>) -> Result<(), CodecError> {
    for (side, numbers) in SIDES.into_iter().zip([tile.k(), tile.v()]) {
        // Adding zeros up keeps the loop free of branches: a NaN or infinity poisons the sum.
        let bits = numbers
            .iter()
            .fold(0_u16, |worst, x| worst.max(x.to_bits() & 0x7fff));
        if bits >= 0x7c00 {
            return Err(CodecError::NotFinite {
                codec: codec.to_owned(),
                side,
            });
        }
    }
    Ok(())
}

/// The integer next to `x`, within `-most..=most`; 0 for NaN.
fn round_to(x: f32, most: i16) -> i16 {
    let most = f32::from(most);
    // A cast of a float saturates and turns NaN into 0.
    x.round_ties_even().clamp(-most, most) as i16
}

/// An fp16 number that is finite whatever `x` is.
fn finite(x: f32) -> f16 {
    f16::from_f32(if x.is_nan() {
        0.0
    } else {
        x.clamp(-65504.0, 65504.0)
    })
}

/// Reads fp16 scales; `None` unless they are finite and not negative, and all there.
fn read_scales(bytes: &[u8], count: usize) -> Option<Vec<f32>> {
    if bytes.len() != count * 2 {
        return None;
    }
    let scale = |pair: &[u8; 2]| {
        let bits = u16::from_le_bytes(*pair);
        (bits < 0x7c00).then(|| f16::from_bits(bits).to_f32())
    };
    bytes.as_chunks::<2>().0.iter().map(scale).collect()
}

fn bad_scales(codec: &str) -> CodecError {
    CodecError::Corrupt {
        codec: codec.to_owned(),
        reason: "scales that no encoder writes".to_owned(),
    }
}
