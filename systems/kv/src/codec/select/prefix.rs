//! `prefix`: tokens that every context begins with, which both ends have already.
//!
//! A context is a rendered system message, so that its first tokens are those of the template and
//! of the instruction, the same for every document. Attention is causal: their keys and values do
//! not depend on what follows. They hold the attention sinks, which no quantiser does justice to,
//! so that sending them exactly is a large part of a small payload.

use std::sync::Arc;

use half::f16;
use serde::{Deserialize, Serialize};

use crate::codec::frame::Reader;
use crate::codec::tile::{Part, gather, scatter};
use crate::codec::{ArtefactId, Codec, CodecArtefact, CodecError, Held, Tile, TileMut, TileShape};

/// Leaves out the tokens at the start of a context whose keys and values are, bit for bit, those
/// that the artefact holds; the receiver takes them from there.
///
/// Bytes: in a tile that has such positions, one byte that says whether they were left out; then
/// the other tokens, or all, as the rest of the chain codes them. Wins nothing for contexts that
/// begin otherwise than those the artefact was fitted on, or were computed by other kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prefix {
    /// The artefact; that of the context at hand when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artefact: Option<ArtefactId>,
}

impl Prefix {
    pub(in crate::codec) const NAME: &str = "prefix";

    /// Reads the parameters of an id: nothing, or an artefact.
    pub(in crate::codec) fn parse(text: &str) -> Option<Self> {
        let artefact = match text {
            "" => None,
            id => Some(id.parse().ok()?),
        };
        Some(Self { artefact })
    }

    pub(in crate::codec) fn id(&self) -> String {
        self.artefact.map_or_else(
            || Self::NAME.to_owned(),
            |artefact| format!("{}-{artefact}", Self::NAME),
        )
    }
}

/// The stage with its artefact and the rest of its chain.
#[derive(Debug)]
pub(in crate::codec) struct PrefixCodec {
    stage: Prefix,
    artefact: Option<Arc<CodecArtefact>>,
    inner: Box<dyn Codec>,
}

/// First byte of a tile whose first tokens were left out, and of one that has all.
const LEFT_OUT: u8 = 1;
const SENT: u8 = 0;

impl PrefixCodec {
    pub(in crate::codec) fn new(
        stage: Prefix,
        artefact: Option<Arc<CodecArtefact>>,
        inner: Box<dyn Codec>,
    ) -> Self {
        Self {
            stage,
            artefact,
            inner,
        }
    }

    fn artefact(&self) -> Result<&CodecArtefact, CodecError> {
        self.artefact
            .as_deref()
            .ok_or_else(|| CodecError::Artefact {
                codec: self.stage.id(),
                reason: "no artefact was given; fit one for the model".to_owned(),
            })
    }

    /// Keys and values that the artefact has for the tile's first tokens, and the offsets of
    /// these and of the others.
    fn known(
        &self,
        shape: TileShape,
        layer: usize,
        position: impl Fn(usize) -> usize,
    ) -> Result<Known, CodecError> {
        let artefact = self.artefact()?;
        let tokens = artefact.prefix_tokens();
        let (known, rest): (Vec<usize>, Vec<usize>) =
            (0..shape.tokens()).partition(|offset| position(*offset) < tokens);
        let rows = artefact.prefix(layer);
        let (row, head_dim) = (artefact.row(), shape.head_dim());
        let mut sides = [Vec::new(), Vec::new()];
        for (side, out) in sides.iter_mut().enumerate() {
            for head in 0..shape.num_kv_heads() {
                for offset in &known {
                    let start = position(*offset) * row + side * row / 2 + head * head_dim;
                    match rows.get(start..start + head_dim) {
                        Some(numbers) => out.extend_from_slice(numbers),
                        // A layer that the artefact does not have.
                        None => out.extend(std::iter::repeat_n(f16::NAN, head_dim)),
                    }
                }
            }
        }
        Ok(Known { known, rest, sides })
    }

    fn corrupt(&self, reason: &str) -> CodecError {
        CodecError::Corrupt {
            codec: self.stage.id(),
            reason: reason.to_owned(),
        }
    }
}

struct Known {
    known: Vec<usize>,
    rest: Vec<usize>,
    /// `[num_kv_heads, known tokens, head_dim]` each.
    sides: [Vec<f16>; 2],
}

impl Codec for PrefixCodec {
    fn id(&self) -> String {
        format!("{}+{}", self.stage.id(), self.inner.id())
    }

    fn check_shape(&self, shape: TileShape) -> Result<(), CodecError> {
        let (row, width) = (
            self.artefact()?.row(),
            shape.num_kv_heads() * shape.head_dim(),
        );
        if row != 2 * width {
            return Err(CodecError::UnsupportedShape {
                codec: self.stage.id(),
                reason: format!(
                    "the artefact is for {} numbers a side, not {width}",
                    row / 2
                ),
            });
        }
        self.inner.check_shape(shape)
    }

    fn encode(&self, tile: &Tile<'_>, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let shape = tile.shape();
        self.check_shape(shape)?;
        let Known { known, rest, sides } =
            self.known(shape, tile.spec().layer, |offset| tile.position(offset))?;
        if known.is_empty() {
            return self.inner.encode(tile, out);
        }
        let same = [tile.k(), tile.v()].iter().zip(&sides).all(|(own, held)| {
            let bits = |x: &f16| x.to_bits();
            let own = gather(own, shape, &known);
            own.iter().map(bits).eq(held.iter().map(bits))
        });
        if !same {
            out.push(SENT);
            return self.inner.encode(tile, out);
        }
        out.push(LEFT_OUT);
        if rest.is_empty() {
            return Ok(());
        }
        Part::of(tile, &rest)?.encode(|inner| self.inner.encode(inner, out))
    }

    fn decode(&self, bytes: &[u8], tile: &mut TileMut<'_>) -> Result<(), CodecError> {
        let shape = tile.shape();
        self.check_shape(shape)?;
        let Known { known, rest, sides } =
            self.known(shape, tile.spec().layer, |offset| tile.position(offset))?;
        if known.is_empty() {
            return self.inner.decode(bytes, tile);
        }
        let mut reader = Reader::new(bytes);
        match reader.take(1) {
            Some([SENT]) => {
                tile.count(Prefix::NAME, "whether tokens are left out", 1);
                return self.inner.decode(reader.rest(), tile);
            }
            Some([LEFT_OUT]) => tile.count(Prefix::NAME, "whether tokens are left out", 1),
            _ => return Err(self.corrupt("the first byte is no form of payload")),
        }
        if sides.iter().flatten().any(|x| !x.is_finite()) {
            return Err(self.corrupt("tokens are left out that the artefact does not have"));
        }
        for (side, held) in tile.sides().into_iter().zip(&sides) {
            scatter(held, side, shape, &known);
        }
        if rest.is_empty() {
            return match reader.is_empty() {
                true => Ok(()),
                false => Err(self.corrupt("every token is left out, yet there are bytes")),
            };
        }
        let part = Part::room(tile, &rest)?;
        let held =
            part.decode_into(tile, &rest, |inner| self.inner.decode(reader.rest(), inner))?;
        if let Held::Some(inner) = held {
            let mut held = known;
            held.extend(inner.into_iter().map(|index| rest[index]));
            held.sort_unstable();
            tile.set_held(Held::Some(held));
        }
        Ok(())
    }

    fn encoded_len(&self, shape: TileShape) -> usize {
        1 + self.inner.encoded_len(shape)
    }

    /// Of tiles that do not begin a context.
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

    fn decodes_prefixes(&self) -> bool {
        self.inner.decodes_prefixes()
    }
}
