//! Selections: which tokens the rest of the chain gets to see.
//!
//! [`Exact`] and [`Prefix`] drop nothing: one sends some tokens as they are, the other leaves out what
//! the receiver has; the rest of the chain codes the others. All other selections drop tokens; see [`Held`](super::Held) for what that means
//! to whoever attends to the rest.

mod exact;
mod knorm;
mod prefix;
mod random;
mod scored;
mod streaming;

pub use exact::Exact;
pub use knorm::Knorm;
pub use prefix::Prefix;
pub use random::Random;
pub use scored::{Scored, ScoredBy};
pub use streaming::Streaming;

pub(super) use exact::ExactCodec;
pub(super) use prefix::PrefixCodec;
pub(super) use random::mix;

use std::fmt::Debug;

use super::frame::Reader;
use super::tile::Part;
use super::{Codec, CodecError, Held, Tile, TileMut, TileShape, TileSpec};

/// A rule that says which tokens of a tile are kept.
pub(super) trait Selector: Debug + Send + Sync {
    /// Stage name.
    fn name(&self) -> &'static str;

    /// The kept tokens as ascending offsets, if both ends can tell from the place alone;
    /// `position` gives a token's absolute position.
    fn known(&self, spec: &TileSpec, position: &dyn Fn(usize) -> usize) -> Option<Vec<usize>>;

    /// The kept tokens as ascending offsets, chosen by the sender. They travel as one bit each.
    fn choose(&self, tile: &Tile<'_>) -> Result<Vec<usize>, CodecError>;
}

/// `percent` of `tokens`, rounded up, at least one.
fn share(tokens: usize, percent: usize) -> usize {
    (tokens * percent).div_ceil(100).clamp(1, tokens.max(1))
}

/// Ascending offsets of the `count` highest scores; of equal ones the earlier token is kept.
fn highest(scores: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    order.truncate(count);
    order.sort_unstable();
    order
}

/// Checks a share in percent.
fn check_keep(stage: &'static str, keep: usize) -> Result<(), CodecError> {
    if (1..=100).contains(&keep) {
        return Ok(());
    }
    Err(CodecError::Parameter {
        stage,
        parameter: "keep",
        value: keep,
        allowed: "a percentage from 1 to 100",
    })
}

/// A selector before the rest of a chain.
///
/// Bytes: where the sender chose, one bit for each token of the tile, the first in the lowest
/// bit of the first byte; then the kept tokens as the rest of the chain codes them, nothing if
/// none is kept.
#[derive(Debug)]
pub(super) struct Selected {
    selector: Box<dyn Selector>,
    inner: Box<dyn Codec>,
}

impl Selected {
    pub(super) fn new(selector: Box<dyn Selector>, inner: Box<dyn Codec>) -> Self {
        Self { selector, inner }
    }

    fn corrupt(&self, reason: &str) -> CodecError {
        CodecError::Corrupt {
            codec: self.selector.name().to_owned(),
            reason: reason.to_owned(),
        }
    }
}

impl Codec for Selected {
    fn id(&self) -> String {
        format!("{}+{}", self.selector.name(), self.inner.id())
    }

    fn check_shape(&self, shape: TileShape) -> Result<(), CodecError> {
        self.inner.check_shape(shape)
    }

    fn encode(&self, tile: &Tile<'_>, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let tokens = tile.shape().tokens();
        let known = self
            .selector
            .known(tile.spec(), &|offset| tile.position(offset));
        let start = out.len();
        let offsets = match known {
            Some(offsets) => offsets,
            None => {
                let offsets = self.selector.choose(tile)?;
                out.resize(start + tokens.div_ceil(8), 0);
                for offset in &offsets {
                    out[start + offset / 8] |= 1 << (offset % 8);
                }
                offsets
            }
        };
        if offsets.is_empty() {
            return Ok(());
        }
        Part::of(tile, &offsets)
            .and_then(|part| part.encode(|inner| self.inner.encode(inner, out)))
            .inspect_err(|_| out.truncate(start))
    }

    fn decode(&self, bytes: &[u8], tile: &mut TileMut<'_>) -> Result<(), CodecError> {
        let tokens = tile.shape().tokens();
        let known = self
            .selector
            .known(tile.spec(), &|offset| tile.position(offset));
        let mut reader = Reader::new(bytes);
        let offsets = match known {
            Some(offsets) => offsets,
            None => {
                let map = reader
                    .take(tokens.div_ceil(8))
                    .ok_or_else(|| self.corrupt("the bytes end inside the map of kept tokens"))?;
                tile.count(self.selector.name(), "map of kept tokens", map.len());
                let bit = |offset: &usize| map[offset / 8] >> (offset % 8) & 1 == 1;
                if (tokens..map.len() * 8).any(|offset| bit(&offset)) {
                    return Err(self.corrupt("the map keeps tokens behind the last"));
                }
                (0..tokens).filter(bit).collect()
            }
        };
        for side in tile.sides() {
            side.fill(half::f16::ZERO);
        }
        let held = if offsets.is_empty() {
            if !reader.is_empty() {
                return Err(self.corrupt("no token is kept, yet there are bytes"));
            }
            Held::All
        } else {
            let part = Part::room(tile, &offsets)?;
            part.decode_into(tile, &offsets, |inner| {
                self.inner.decode(reader.rest(), inner)
            })?
        };
        let kept = match held {
            Held::All => offsets,
            Held::Some(inner) => inner.into_iter().map(|index| offsets[index]).collect(),
        };
        tile.set_held(Held::Some(kept));
        Ok(())
    }

    fn encoded_len(&self, shape: TileShape) -> usize {
        shape.tokens().div_ceil(8) + self.inner.encoded_len(shape)
    }

    fn nominal_bits(&self) -> f64 {
        // The map costs a bit a token; how many elements share it depends on the shape, and a
        // head of eight channels is the least that there is.
        self.inner.nominal_bits() + 1.0 / 16.0
    }

    fn token_group(&self) -> usize {
        self.inner.token_group()
    }

    fn error_bound(&self, _min: f32, _max: f32) -> Option<f32> {
        None
    }

    fn prior_layers(&self) -> usize {
        self.inner.prior_layers()
    }

    fn looks_above(&self) -> bool {
        self.inner.looks_above()
    }

    fn decodes_prefixes(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_come_in_order_and_ties_go_to_the_earlier() {
        assert_eq!(highest(&[1.0, 3.0, 2.0, 3.0, 3.0], 2), [1, 3]);
        assert_eq!(highest(&[f32::NAN, 1.0], 5), [0, 1]);
        assert_eq!((share(10, 25), share(1, 1), share(7, 100)), (3, 1, 7));
    }
}
