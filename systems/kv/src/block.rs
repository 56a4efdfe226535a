//! Keys and values of a run of tokens and layers, with what is needed to use them safely.

use std::fmt;
use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;
use serde::{Deserialize, Serialize};

use crate::ident::ModelFingerprint;

/// A block or slice that would not be well formed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KvError {
    /// A dimension is zero.
    #[error("{what} is zero: a KV block needs at least one layer, head, channel and token")]
    Zero {
        /// Which dimension.
        what: &'static str,
    },
    /// The declared dimensions do not fit into memory.
    #[error("a KV block of {shape} and {tokens} tokens does not fit into an address space")]
    TooLarge {
        /// Declared shape.
        shape: KvShape,
        /// Declared number of tokens.
        tokens: usize,
    },
    /// The number of layers differs from the declared one.
    #[error("{shape} declares {} layers, found {found}", shape.num_layers)]
    LayerCount {
        /// Declared shape.
        shape: KvShape,
        /// Number of layers given.
        found: usize,
    },
    /// A key or value buffer has the wrong length.
    #[error("layer {layer}: {side} hold {found} elements, {expected} are needed")]
    LayerLength {
        /// Absolute layer index.
        layer: usize,
        /// `keys` or `values`.
        side: &'static str,
        /// Elements needed: `num_kv_heads * tokens * head_dim`.
        expected: usize,
        /// Elements given.
        found: usize,
    },
    /// Hidden states of a width that has no halves.
    #[error("hidden states of {hidden_size} numbers cannot be halved")]
    OddStates {
        /// Numbers of a state.
        hidden_size: usize,
    },
    /// A requested range is empty or not inside the block.
    #[error("{what} {start}..{end} are not a non-empty part of {held_start}..{held_end}")]
    OutOfRange {
        /// `layers` or `tokens`.
        what: &'static str,
        /// Start of the request.
        start: usize,
        /// End of the request.
        end: usize,
        /// Start of what the block holds.
        held_start: usize,
        /// End of what the block holds.
        held_end: usize,
    },
    /// Tokens were to be moved whose keys carry their positions.
    #[error("tokens with rotated keys cannot be moved: gather them before RoPE")]
    Rotated,
    /// Two blocks do not belong together.
    #[error("the blocks differ in their {what}: {left} against {right}")]
    Mismatch {
        /// The property.
        what: &'static str,
        /// Its value in the first block.
        left: String,
        /// Its value in the second block.
        right: String,
    },
}

/// Layers, KV heads and channels per head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvShape {
    /// Number of layers.
    pub num_layers: usize,
    /// Key/value heads per layer.
    pub num_kv_heads: usize,
    /// Channels per head.
    pub head_dim: usize,
}

impl KvShape {
    /// A shape whose dimensions are all at least one.
    ///
    /// # Errors
    /// [`KvError::Zero`] or [`KvError::TooLarge`].
    pub fn new(num_layers: usize, num_kv_heads: usize, head_dim: usize) -> Result<Self, KvError> {
        let shape = Self {
            num_layers,
            num_kv_heads,
            head_dim,
        };
        shape.validate(1)?;
        Ok(shape)
    }

    /// Checks that a block of `tokens` tokens of this shape can exist.
    ///
    /// # Errors
    /// [`KvError::Zero`] or [`KvError::TooLarge`].
    pub fn validate(&self, tokens: usize) -> Result<(), KvError> {
        for (what, value) in [
            ("num_layers", self.num_layers),
            ("num_kv_heads", self.num_kv_heads),
            ("head_dim", self.head_dim),
            ("the number of tokens", tokens),
        ] {
            if value == 0 {
                return Err(KvError::Zero { what });
            }
        }
        // 2 (K and V) x 2 bytes, and a factor of two so that f32 working copies can be counted too.
        [self.num_kv_heads, self.head_dim, tokens, 8]
            .into_iter()
            .try_fold(self.num_layers, usize::checked_mul)
            .filter(|bytes| isize::try_from(*bytes).is_ok())
            .map(|_| ())
            .ok_or(KvError::TooLarge {
                shape: *self,
                tokens,
            })
    }

    /// Elements of one token's keys (or values) in one layer: `num_kv_heads * head_dim`.
    #[must_use]
    pub const fn width(&self) -> usize {
        self.num_kv_heads.saturating_mul(self.head_dim)
    }

    /// Bytes of `tokens` tokens as fp16: 2 (K and V) x layers x heads x tokens x channels x 2.
    #[must_use]
    pub fn fp16_bytes(&self, tokens: usize) -> u64 {
        let elements = (self.width() as u64).saturating_mul(self.num_layers as u64);
        elements.saturating_mul(tokens as u64).saturating_mul(4)
    }
}

impl fmt::Display for KvShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            num_layers,
            num_kv_heads,
            head_dim,
        } = self;
        write!(
            f,
            "{num_layers} layers x {num_kv_heads} KV heads x {head_dim}"
        )
    }
}

/// Whether the keys still lack the rotary embedding or already carry it.
///
/// Blocks are stored and sent as [`KeyRope::Pre`]: maps and codecs work on unrotated keys, and
/// the edge rotates them at their absolute positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyRope {
    /// Not rotated.
    Pre,
    /// Rotated at the absolute positions of the block.
    Post,
}

impl fmt::Display for KeyRope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pre => "pre-RoPE",
            Self::Post => "post-RoPE",
        })
    }
}

/// One layer's keys and values, each `[num_kv_heads, tokens, head_dim]`, row-major.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LayerKv {
    /// Keys.
    pub k: Vec<f16>,
    /// Values.
    pub v: Vec<f16>,
}

/// Everything about a block except its numbers: what a sender declares before it sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockSpec {
    /// The model whose cache this is.
    pub fingerprint: ModelFingerprint,
    /// Shape of the block; `num_layers` counts the layers in this block only.
    pub shape: KvShape,
    /// Absolute index of the block's first layer.
    pub first_layer: usize,
    /// Absolute token positions.
    pub positions: Range<usize>,
    /// State of the keys.
    pub rope: KeyRope,
}

impl BlockSpec {
    /// Checks the declaration itself; cheap, allocates nothing.
    ///
    /// # Errors
    /// [`KvError::Zero`] or [`KvError::TooLarge`].
    pub fn validate(&self) -> Result<(), KvError> {
        self.shape.validate(self.num_tokens())?;
        match self.first_layer.checked_add(self.shape.num_layers) {
            Some(_) => Ok(()),
            None => Err(KvError::TooLarge {
                shape: self.shape,
                tokens: self.num_tokens(),
            }),
        }
    }

    /// Number of tokens.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.positions.len()
    }

    /// Absolute layer indices; saturates on a declaration that [`Self::validate`] refuses.
    #[must_use]
    pub fn layer_range(&self) -> Range<usize> {
        self.first_layer..self.first_layer.saturating_add(self.shape.num_layers)
    }

    /// Elements of one layer's keys (or values); saturates like [`Self::layer_range`].
    #[must_use]
    pub fn layer_elements(&self) -> usize {
        self.shape.width().saturating_mul(self.num_tokens())
    }

    /// Bytes of the block as fp16.
    #[must_use]
    pub fn fp16_bytes(&self) -> u64 {
        self.shape.fp16_bytes(self.num_tokens())
    }
}

/// Keys and values of a run of tokens and a run of layers. Every instance is well formed.
#[derive(Debug, Clone, PartialEq)]
pub struct KvBlock {
    spec: BlockSpec,
    layers: Vec<LayerKv>,
}

impl KvBlock {
    /// Builds a block from its parts; `layers[i]` is absolute layer `first_layer + i`.
    ///
    /// # Errors
    /// [`KvError`] when a dimension is zero or a buffer's length does not follow from the shape.
    pub fn new(
        fingerprint: ModelFingerprint,
        shape: KvShape,
        first_layer: usize,
        positions: Range<usize>,
        rope: KeyRope,
        layers: Vec<LayerKv>,
    ) -> Result<Self, KvError> {
        Self::from_spec(
            BlockSpec {
                fingerprint,
                shape,
                first_layer,
                positions,
                rope,
            },
            layers,
        )
    }

    /// Builds a block from its declaration.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn from_spec(spec: BlockSpec, layers: Vec<LayerKv>) -> Result<Self, KvError> {
        spec.validate()?;
        if layers.len() != spec.shape.num_layers {
            return Err(KvError::LayerCount {
                shape: spec.shape,
                found: layers.len(),
            });
        }
        let expected = spec.layer_elements();
        for (index, layer) in layers.iter().enumerate() {
            for (side, buffer) in [("keys", &layer.k), ("values", &layer.v)] {
                if buffer.len() != expected {
                    let (layer, found) = (spec.first_layer + index, buffer.len());
                    return Err(KvError::LayerLength {
                        layer,
                        side,
                        expected,
                        found,
                    });
                }
            }
        }
        Ok(Self { spec, layers })
    }

    /// What the block declares about itself.
    #[must_use]
    pub const fn spec(&self) -> &BlockSpec {
        &self.spec
    }

    /// The model whose cache this is.
    #[must_use]
    pub const fn fingerprint(&self) -> &ModelFingerprint {
        &self.spec.fingerprint
    }

    /// Shape; `num_layers` counts the layers in this block.
    #[must_use]
    pub const fn shape(&self) -> KvShape {
        self.spec.shape
    }

    /// Absolute index of the first layer.
    #[must_use]
    pub const fn first_layer(&self) -> usize {
        self.spec.first_layer
    }

    /// Absolute layer indices.
    #[must_use]
    pub fn layer_range(&self) -> Range<usize> {
        self.spec.layer_range()
    }

    /// Absolute token positions.
    #[must_use]
    pub fn positions(&self) -> Range<usize> {
        self.spec.positions.clone()
    }

    /// Number of tokens.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.spec.num_tokens()
    }

    /// State of the keys.
    #[must_use]
    pub const fn rope(&self) -> KeyRope {
        self.spec.rope
    }

    /// All layers, in order.
    #[must_use]
    pub fn layers(&self) -> &[LayerKv] {
        &self.layers
    }

    /// One layer by its absolute index, if the block holds it.
    #[must_use]
    pub fn layer(&self, layer: usize) -> Option<&LayerKv> {
        self.layers.get(layer.checked_sub(self.spec.first_layer)?)
    }

    /// Gives the layers up without copying them.
    #[must_use]
    pub fn into_layers(self) -> Vec<LayerKv> {
        self.layers
    }

    /// Bytes of the block as fp16, which is also what it occupies in memory.
    #[must_use]
    pub fn fp16_bytes(&self) -> u64 {
        self.spec.fp16_bytes()
    }

    /// Copies one layer's tokens `tokens` (absolute positions), each side
    /// `[num_kv_heads, tokens.len(), head_dim]`.
    ///
    /// # Errors
    /// [`KvError::OutOfRange`].
    pub fn tile(&self, layer: usize, tokens: &Range<usize>) -> Result<LayerKv, KvError> {
        let span = self.token_span(tokens)?;
        let held = self.layer_range();
        let source = self.layer(layer).ok_or(KvError::OutOfRange {
            what: "layers",
            start: layer,
            end: layer.saturating_add(1),
            held_start: held.start,
            held_end: held.end,
        })?;
        Ok(LayerKv {
            k: self.copy_span(&source.k, &span),
            v: self.copy_span(&source.v, &span),
        })
    }

    /// The part of the block at the absolute positions `tokens`, all layers.
    ///
    /// # Errors
    /// [`KvError::OutOfRange`] when `tokens` is empty or reaches outside the block.
    pub fn slice_tokens(&self, tokens: Range<usize>) -> Result<Self, KvError> {
        let span = self.token_span(&tokens)?;
        let copy = |layer: &LayerKv| LayerKv {
            k: self.copy_span(&layer.k, &span),
            v: self.copy_span(&layer.v, &span),
        };
        let layers = self.layers.iter().map(copy).collect();
        Self::from_spec(
            BlockSpec {
                positions: tokens,
                ..self.spec.clone()
            },
            layers,
        )
    }

    /// The tokens with these indices in the block, all layers, as one run that begins where the
    /// block does. A token may be taken several times.
    ///
    /// # Errors
    /// [`KvError::Rotated`] when the keys are rotated, [`KvError::OutOfRange`] for an index that
    /// the block does not have, [`KvError::Zero`] or [`KvError::TooLarge`] for none or too many.
    pub fn gather_tokens(&self, tokens: &[usize]) -> Result<Self, KvError> {
        if self.spec.rope != KeyRope::Pre {
            return Err(KvError::Rotated);
        }
        let held = 0..self.num_tokens();
        if let Some(missing) = tokens.iter().find(|token| !held.contains(token)) {
            return Err(KvError::OutOfRange {
                what: "tokens",
                start: *missing,
                end: missing.saturating_add(1),
                held_start: held.start,
                held_end: held.end,
            });
        }
        let start = self.spec.positions.start;
        let spec = BlockSpec {
            positions: start..start.saturating_add(tokens.len()),
            ..self.spec.clone()
        };
        spec.validate()?;
        let head_dim = spec.shape.head_dim;
        let gather = |side: &[f16]| {
            let mut gathered = Vec::with_capacity(spec.layer_elements());
            for head in side.chunks_exact(held.len() * head_dim) {
                for token in tokens {
                    gathered.extend_from_slice(&head[token * head_dim..][..head_dim]);
                }
            }
            gathered
        };
        let gather = |layer: &LayerKv| LayerKv {
            k: gather(&layer.k),
            v: gather(&layer.v),
        };
        let layers = self.layers.iter().map(gather).collect();
        Self::from_spec(spec, layers)
    }

    /// The part of the block with the absolute layers `layers`, all tokens.
    ///
    /// # Errors
    /// [`KvError::OutOfRange`] when `layers` is empty or reaches outside the block.
    pub fn slice_layers(&self, layers: Range<usize>) -> Result<Self, KvError> {
        let span = within("layers", &layers, &self.layer_range())?;
        let spec = BlockSpec {
            first_layer: layers.start,
            shape: KvShape {
                num_layers: layers.len(),
                ..self.spec.shape
            },
            ..self.spec.clone()
        };
        Self::from_spec(spec, self.layers[span].to_vec())
    }

    /// Appends the tokens of `next`, which must start where this block ends.
    ///
    /// Copies the whole block: use [`Self::concat`] for more than two.
    ///
    /// # Errors
    /// [`KvError::Mismatch`] when the blocks are of different models, shapes, layers or key
    /// states, or not adjacent. The block is unchanged then.
    pub fn append(&mut self, next: &Self) -> Result<(), KvError> {
        *self = Self::concat(&[&*self, next])?;
        Ok(())
    }

    /// Joins adjacent runs of tokens.
    ///
    /// # Errors
    /// [`KvError::Zero`] for an empty list, otherwise as for [`Self::append`].
    pub fn concat(parts: &[&Self]) -> Result<Self, KvError> {
        let first = parts.first().ok_or(KvError::Zero {
            what: "the number of blocks",
        })?;
        let mut positions = first.positions();
        for part in &parts[1..] {
            first.check_same_kind(part)?;
            if part.spec.positions.start != positions.end {
                return Err(KvError::Mismatch {
                    what: "adjacent positions",
                    left: format!("one ends at {}", positions.end),
                    right: format!("the next starts at {}", part.spec.positions.start),
                });
            }
            positions.end = part.spec.positions.end;
        }
        let spec = BlockSpec {
            positions,
            ..first.spec.clone()
        };
        spec.validate()?;
        let head_dim = spec.shape.head_dim;
        let join = |side: fn(&LayerKv) -> &Vec<f16>, index: usize| {
            let mut joined = Vec::with_capacity(spec.layer_elements());
            for head in 0..spec.shape.num_kv_heads {
                for part in parts {
                    let run = part.num_tokens() * head_dim;
                    joined.extend_from_slice(&side(&part.layers[index])[head * run..][..run]);
                }
            }
            joined
        };
        let layers = (0..spec.shape.num_layers)
            .map(|index| LayerKv {
                k: join(|layer| &layer.k, index),
                v: join(|layer| &layer.v, index),
            })
            .collect();
        Self::from_spec(spec, layers)
    }

    /// Overwrites the absolute positions `tokens` with those of `exact`, for example the
    /// attention sinks at the start of a mapped context. `exact` may hold more tokens than
    /// `tokens`, and must hold the same layers.
    ///
    /// # Errors
    /// [`KvError::OutOfRange`] when either block lacks the tokens, [`KvError::Mismatch`] when
    /// they are not of the same model, shape, layers and key state. The block is unchanged then.
    pub fn replace_tokens(&mut self, tokens: Range<usize>, exact: &Self) -> Result<(), KvError> {
        self.check_same_kind(exact)?;
        let to = self.token_span(&tokens)?;
        let from = exact.token_span(&tokens)?;
        let head_dim = self.spec.shape.head_dim;
        let (own_run, exact_run) = (self.num_tokens() * head_dim, exact.num_tokens() * head_dim);
        for (own, other) in self.layers.iter_mut().zip(&exact.layers) {
            for (own, other) in [(&mut own.k, &other.k), (&mut own.v, &other.v)] {
                for head in 0..self.spec.shape.num_kv_heads {
                    own[head * own_run..][to.start * head_dim..to.end * head_dim].copy_from_slice(
                        &other[head * exact_run..][from.start * head_dim..from.end * head_dim],
                    );
                }
            }
        }
        Ok(())
    }

    /// BLAKE3 of the declaration and of every number, as little-endian fp16.
    #[must_use]
    pub fn content_hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        let BlockSpec {
            fingerprint,
            shape,
            first_layer,
            positions,
            rope,
        } = &self.spec;
        hasher.update(b"celslm kv block 1");
        hasher.update(fingerprint.as_bytes());
        for number in [
            shape.num_layers,
            shape.num_kv_heads,
            shape.head_dim,
            *first_layer,
            positions.start,
            positions.end,
            usize::from(*rope == KeyRope::Post),
        ] {
            hasher.update(&(number as u64).to_le_bytes());
        }
        let mut bytes = [0_u8; 1 << 14];
        for layer in &self.layers {
            for part in [&layer.k, &layer.v]
                .into_iter()
                .flat_map(|side| side.chunks(1 << 13))
            {
                let bytes = &mut bytes[..part.len() * 2];
                write_f16_le(part, bytes);
                hasher.update(bytes);
            }
        }
        *hasher.finalize().as_bytes()
    }

    /// Checks that two blocks describe the same layers of the same model in the same state.
    fn check_same_kind(&self, other: &Self) -> Result<(), KvError> {
        let (a, b) = (&self.spec, &other.spec);
        let differ = |what, left: &dyn fmt::Display, right: &dyn fmt::Display| {
            Err(KvError::Mismatch {
                what,
                left: left.to_string(),
                right: right.to_string(),
            })
        };
        if a.fingerprint != b.fingerprint {
            return differ("model fingerprint", &a.fingerprint, &b.fingerprint);
        }
        if a.shape != b.shape {
            return differ("shape", &a.shape, &b.shape);
        }
        if a.first_layer != b.first_layer {
            return differ("first layer", &a.first_layer, &b.first_layer);
        }
        if a.rope != b.rope {
            return differ("key state", &a.rope, &b.rope);
        }
        Ok(())
    }

    fn token_span(&self, tokens: &Range<usize>) -> Result<Range<usize>, KvError> {
        within("tokens", tokens, &self.spec.positions)
    }

    fn copy_span(&self, side: &[f16], span: &Range<usize>) -> Vec<f16> {
        let head_dim = self.spec.shape.head_dim;
        let mut copy = Vec::with_capacity(self.spec.shape.width() * span.len());
        for head in side.chunks_exact(self.num_tokens() * head_dim) {
            copy.extend_from_slice(&head[span.start * head_dim..span.end * head_dim]);
        }
        copy
    }
}

/// `part` relative to the start of `held`, or why it is not a non-empty part of it.
fn within(
    what: &'static str,
    part: &Range<usize>,
    held: &Range<usize>,
) -> Result<Range<usize>, KvError> {
    if part.is_empty() || part.start < held.start || part.end > held.end {
        return Err(KvError::OutOfRange {
            what,
            start: part.start,
            end: part.end,
            held_start: held.start,
            held_end: held.end,
        });
    }
    Ok(part.start - held.start..part.end - held.start)
}

/// Writes fp16 numbers as little-endian bytes; `bytes` must hold two bytes per number.
pub(crate) fn write_f16_le(numbers: &[f16], bytes: &mut [u8]) {
    debug_assert_eq!(bytes.len(), numbers.len() * 2);
    for (pair, number) in bytes
        .as_chunks_mut::<2>()
        .0
        .iter_mut()
        .zip(numbers.reinterpret_cast())
    {
        *pair = number.to_le_bytes();
    }
}

/// Reads little-endian fp16 numbers; `bytes` must hold two bytes per number.
pub(crate) fn read_f16_le(bytes: &[u8], numbers: &mut [f16]) {
    debug_assert_eq!(bytes.len(), numbers.len() * 2);
    for (number, pair) in numbers
        .reinterpret_cast_mut()
        .iter_mut()
        .zip(bytes.as_chunks::<2>().0)
    {
        *number = u16::from_le_bytes(*pair);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: KvShape = KvShape {
        num_layers: 3,
        num_kv_heads: 2,
        head_dim: 4,
    };

    /// A block whose every element names its layer, head, absolute token and channel.
    fn block(positions: Range<usize>) -> KvBlock {
        let side = |layer: usize, sign: f32| {
            let mut side = Vec::new();
            for head in 0..SHAPE.num_kv_heads {
                for token in positions.clone() {
                    for channel in 0..SHAPE.head_dim {
                        let number = layer * 512 + head * 256 + token * 8 + channel;
                        side.push(f16::from_f32(sign * number as f32));
                    }
                }
            }
            side
        };
        let layers = (0..3)
            .map(|layer| LayerKv {
                k: side(layer, 1.0),
                v: side(layer, -1.0),
            })
            .collect();
        let fingerprint = ModelFingerprint::from_bytes([7; 32]);
        KvBlock::new(fingerprint, SHAPE, 5, positions, KeyRope::Pre, layers).unwrap()
    }

    #[test]
    fn sizes() {
        let block = block(10..16);
        assert_eq!(block.fp16_bytes(), 2 * 3 * 2 * 6 * 4 * 2);
        // The figure that the break-even of the default edge model starts from.
        assert_eq!(KvShape::new(24, 2, 64).unwrap().fp16_bytes(1), 12_288);
    }

    #[test]
    fn malformed_blocks_are_refused() {
        let good = block(0..4);
        let build = |shape, positions, layers| {
            KvBlock::new(
                *good.fingerprint(),
                shape,
                0,
                positions,
                KeyRope::Pre,
                layers,
            )
        };
        let layers = good.layers().to_vec();
        assert!(build(SHAPE, 0..4, layers.clone()).is_ok());
        assert!(matches!(
            build(SHAPE, 0..5, layers.clone()),
            Err(KvError::LayerLength {
                side: "keys",
                expected: 40,
                found: 32,
                ..
            })
        ));
        assert!(matches!(
            build(SHAPE, 0..4, layers[..2].to_vec()),
            Err(KvError::LayerCount { found: 2, .. })
        ));
        assert!(matches!(
            build(SHAPE, 4..4, layers.clone()),
            Err(KvError::Zero { .. })
        ));
        let huge = KvShape {
            num_layers: usize::MAX,
            ..SHAPE
        };
        assert!(matches!(
            build(huge, 0..4, layers.clone()),
            Err(KvError::TooLarge { .. })
        ));
        assert!(KvShape::new(0, 1, 1).is_err());
        let at_the_end = KvBlock::new(
            *good.fingerprint(),
            SHAPE,
            usize::MAX - 1,
            0..4,
            KeyRope::Pre,
            layers,
        );
        assert!(matches!(at_the_end, Err(KvError::TooLarge { .. })));
    }

    #[test]
    fn slices_keep_absolute_places() {
        let whole = block(10..20);
        assert_eq!(whole.slice_tokens(12..15).unwrap(), block(12..15));
        let layers = whole.slice_layers(6..8).unwrap();
        assert_eq!(layers.layer_range(), 6..8);
        assert_eq!(layers.layer(6), whole.layer(6));
        assert_eq!(layers.layer(5), None);
        assert_eq!(
            &whole.tile(7, &(12..15)).unwrap(),
            block(12..15).layer(7).unwrap()
        );
        for bad in [9..12, 19..21, 12..12] {
            assert!(matches!(
                whole.slice_tokens(bad),
                Err(KvError::OutOfRange { .. })
            ));
        }
        assert!(whole.slice_layers(4..6).is_err());
        assert!(whole.tile(8, &(12..15)).is_err());
        assert!(whole.tile(usize::MAX, &(12..15)).is_err());
    }

    #[test]
    fn gathered_tokens_stand_where_the_block_begins() {
        let whole = block(10..16);
        let every: Vec<usize> = (0..6).collect();
        assert_eq!(whole.gather_tokens(&every).unwrap(), whole);
        let some = whole.gather_tokens(&[4, 4, 0, 5, 1, 1, 2]).unwrap();
        assert_eq!(some.positions(), 10..17);
        assert_eq!(some.layer_range(), whole.layer_range());
        for (index, token) in [4, 4, 0, 5, 1, 1, 2].into_iter().enumerate() {
            let at = |block: &KvBlock, place: usize| {
                let place = 10 + place;
                block.slice_tokens(place..place + 1).unwrap().into_layers()
            };
            assert_eq!(at(&some, index), at(&whole, token));
        }
        assert!(matches!(
            whole.gather_tokens(&[0, 6]),
            Err(KvError::OutOfRange { start: 6, .. })
        ));
        assert!(matches!(
            whole.gather_tokens(&[]),
            Err(KvError::Zero { .. })
        ));
        let mut rotated = whole;
        rotated.spec.rope = KeyRope::Post;
        assert_eq!(rotated.gather_tokens(&every), Err(KvError::Rotated));
    }

    #[test]
    fn append_joins_what_slice_parted() {
        let whole = block(10..20);
        let mut joined = whole.slice_tokens(10..13).unwrap();
        joined.append(&whole.slice_tokens(13..20).unwrap()).unwrap();
        assert_eq!(joined, whole);
        assert_eq!(joined.content_hash(), whole.content_hash());
        let before = joined.clone();
        assert!(matches!(
            joined.append(&block(30..31)),
            Err(KvError::Mismatch { .. })
        ));
        assert_eq!(joined, before);
        assert!(KvBlock::concat(&[]).is_err());
    }

    #[test]
    fn replaced_tokens_come_from_the_other_block() {
        let mut mapped = block(0..6);
        for layer in &mut mapped.layers {
            layer.k.fill(f16::ZERO);
            layer.v.fill(f16::ZERO);
        }
        mapped.replace_tokens(1..3, &block(0..4)).unwrap();
        assert_eq!(mapped.slice_tokens(1..3).unwrap(), block(1..3));
        let rest = mapped.slice_tokens(3..6).unwrap();
        assert!(
            rest.layers()
                .iter()
                .all(|l| l.k.iter().chain(&l.v).all(|x| *x == f16::ZERO))
        );
        assert!(mapped.replace_tokens(3..5, &block(0..4)).is_err());
        let mut rotated = block(0..4);
        rotated.spec.rope = KeyRope::Post;
        assert!(matches!(
            mapped.replace_tokens(1..3, &rotated),
            Err(KvError::Mismatch {
                what: "key state",
                ..
            })
        ));
    }

    #[test]
    fn content_hash_sees_every_part() {
        let base = block(0..4);
        let hash = base.content_hash();
        let mut other = base.clone();
        other.layers[2].v[31] = f16::from_f32(1.0);
        assert_ne!(other.content_hash(), hash);
        let mut other = base.clone();
        other.spec.rope = KeyRope::Post;
        assert_ne!(other.content_hash(), hash);
        let mut other = base;
        other.spec.first_layer += 1;
        assert_ne!(other.content_hash(), hash);
    }
}
