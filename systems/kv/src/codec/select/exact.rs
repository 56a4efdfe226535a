//! `exact`: the first and the last tokens of a context unchanged, the rest through the chain.
//!
//! KIVI (arXiv 2402.02750) keeps a recent window in full precision, KVTC (arXiv 2511.01815) a
//! window and the attention sinks of Xiao et al. (arXiv 2309.17453): the first tokens, whose keys
//! and values lie far from all others and which nearly every query attends to.

use serde::{Deserialize, Serialize};

use crate::block::{read_f16_le, write_f16_le};
use crate::codec::frame::Reader;
use crate::codec::tile::{Part, gather, scatter};
use crate::codec::{Codec, CodecError, Held, Tile, TileMut, TileShape};

/// Sends tokens at absolute positions below `sinks`, and the last `window` of the context, as
/// fp16; the rest of the chain codes the others.
///
/// Bytes: keys, then values of the exact tokens, `[num_kv_heads, exact tokens, head_dim]` each;
/// then the other tokens, nothing if there is none. Which tokens are exact follows from their
/// place. Loses where the window is a large part of the context: 32 of 320 tokens in fp16 weigh
/// as much as the other 288 at 1.8 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exact {
    /// Tokens at the start of the context.
    #[serde(default = "default_sinks")]
    pub sinks: usize,
    /// Tokens at its end.
    #[serde(default)]
    pub window: usize,
}

const fn default_sinks() -> usize {
    4
}

impl Exact {
    pub(in crate::codec) const NAME: &str = "exact";

    /// Reads the parameters of an id, `s4-w32`.
    pub(in crate::codec) fn parse(text: &str) -> Option<Self> {
        let (sinks, window) = text.strip_prefix('s')?.split_once("-w")?;
        let (sinks, window) = (sinks.parse().ok()?, window.parse().ok()?);
        Some(Self { sinks, window })
    }

    pub(in crate::codec) fn id(&self) -> String {
        format!("{}-s{}-w{}", Self::NAME, self.sinks, self.window)
    }
}

/// The stage with the rest of its chain.
#[derive(Debug)]
pub(in crate::codec) struct ExactCodec {
    stage: Exact,
    inner: Box<dyn Codec>,
}

impl ExactCodec {
    pub(in crate::codec) fn new(stage: Exact, inner: Box<dyn Codec>) -> Self {
        Self { stage, inner }
    }

    /// Offsets of the exact tokens and of the others.
    fn split(
        &self,
        tokens: usize,
        end: usize,
        position: impl Fn(usize) -> usize,
    ) -> (Vec<usize>, Vec<usize>) {
        let window = end.saturating_sub(self.stage.window);
        (0..tokens).partition(|offset| {
            let at = position(*offset);
            at < self.stage.sinks || at >= window
        })
    }
}

impl Codec for ExactCodec {
    fn id(&self) -> String {
        format!("{}+{}", self.stage.id(), self.inner.id())
    }

    fn check_shape(&self, shape: TileShape) -> Result<(), CodecError> {
        self.inner.check_shape(shape)
    }

    fn encode(&self, tile: &Tile<'_>, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let shape = tile.shape();
        let (exact, rest) = self.split(shape.tokens(), tile.spec().end_token, |offset| {
            tile.position(offset)
        });
        if exact.is_empty() {
            return self.inner.encode(tile, out);
        }
        let start = out.len();
        for side in [tile.k(), tile.v()] {
            let rows = gather(side, shape, &exact);
            let at = out.len();
            out.resize(at + rows.len() * 2, 0);
            write_f16_le(&rows, &mut out[at..]);
        }
        if rest.is_empty() {
            return Ok(());
        }
        Part::of(tile, &rest)
            .and_then(|part| part.encode(|inner| self.inner.encode(inner, out)))
            .inspect_err(|_| out.truncate(start))
    }

    fn decode(&self, bytes: &[u8], tile: &mut TileMut<'_>) -> Result<(), CodecError> {
        let shape = tile.shape();
        let (exact, rest) = self.split(shape.tokens(), tile.spec().end_token, |offset| {
            tile.position(offset)
        });
        if exact.is_empty() {
            return self.inner.decode(bytes, tile);
        }
        let mut reader = Reader::new(bytes);
        let elements = shape.num_kv_heads() * exact.len() * shape.head_dim();
        let short = || CodecError::Length {
            codec: self.id(),
            expected: elements * 4,
            found: bytes.len(),
        };
        let mut rows = vec![half::f16::ZERO; elements];
        for side in tile.sides() {
            read_f16_le(reader.take(elements * 2).ok_or_else(short)?, &mut rows);
            scatter(&rows, side, shape, &exact);
        }
        tile.count(Exact::NAME, "exact tokens", elements * 4);
        if rest.is_empty() {
            return match reader.is_empty() {
                true => Ok(()),
                false => Err(short()),
            };
        }
        let part = Part::room(tile, &rest)?;
        let held =
            part.decode_into(tile, &rest, |inner| self.inner.decode(reader.rest(), inner))?;
        if let Held::Some(inner) = held {
            let mut held = exact;
            held.extend(inner.into_iter().map(|index| rest[index]));
            held.sort_unstable();
            tile.set_held(Held::Some(held));
        }
        Ok(())
    }

    fn encoded_len(&self, shape: TileShape) -> usize {
        let exact = self
            .stage
            .sinks
            .saturating_add(self.stage.window)
            .min(shape.tokens());
        exact * shape.num_kv_heads() * shape.head_dim() * 4 + self.inner.encoded_len(shape)
    }

    /// Of tiles without exact tokens.
    fn nominal_bits(&self) -> f64 {
        self.inner.nominal_bits()
    }

    fn token_group(&self) -> usize {
        self.inner.token_group()
    }

    fn error_bound(&self, min: f32, max: f32) -> Option<f32> {
        self.inner.error_bound(min, max)
    }

    fn prior_layers(&self) -> usize {
        self.inner.prior_layers()
    }

    fn looks_above(&self) -> bool {
        self.inner.looks_above()
    }

    /// A prefix that holds the exact tokens decodes if the rest does.
    fn decodes_prefixes(&self) -> bool {
        self.inner.decodes_prefixes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Identity, TileSpec};
    use half::f16;

    #[test]
    fn positions_decide_and_not_offsets() {
        let stage = Exact {
            sinks: 4,
            window: 3,
        };
        let codec = ExactCodec::new(stage, Box::new(Identity));
        let split = |first, tokens, end| codec.split(tokens, end, |offset| first + offset);
        assert_eq!(split(0, 10, 10).0, [0, 1, 2, 3, 7, 8, 9]);
        assert_eq!(split(2, 4, 100).0, [0, 1]);
        assert_eq!(split(50, 4, 100).0, [0; 0]);
        assert_eq!(split(96, 4, 100).0, [1, 2, 3]);
        assert_eq!(split(0, 2, 2).1, [0; 0]);
    }

    #[test]
    fn everything_exact_leaves_nothing_to_the_chain() {
        let shape = TileShape::new(2, 3, 8).unwrap();
        let side: Vec<f16> = (0..48).map(|i| f16::from_f32(i as f32)).collect();
        let stage = Exact {
            sinks: 4,
            window: 0,
        };
        let codec = ExactCodec::new(stage, Box::new(Identity));
        let mut bytes = Vec::new();
        let spec = TileSpec::alone(shape);
        codec
            .encode(&Tile::new(spec, &side, &side).unwrap(), &mut bytes)
            .unwrap();
        assert_eq!(bytes.len(), 48 * 4);
        let (mut k, mut v) = (vec![f16::ZERO; 48], vec![f16::ZERO; 48]);
        codec
            .decode(&bytes, &mut TileMut::new(spec, &mut k, &mut v).unwrap())
            .unwrap();
        assert_eq!((&k, &v), (&side, &side));
        bytes.push(0);
        let mut tile = TileMut::new(spec, &mut k, &mut v).unwrap();
        assert!(codec.decode(&bytes, &mut tile).is_err());
    }
}
