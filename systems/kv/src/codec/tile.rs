//! One layer's keys and values as plain slices, with the place they come from.

use half::f16;

use super::CodecError;

/// The largest tile: 2^28 elements per side, one GiB of fp16 keys and values.
pub const MAX_TILE_ELEMENTS: usize = 1 << 28;

/// Shape of keys and of values: `[num_kv_heads, tokens, head_dim]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TileShape {
    num_kv_heads: usize,
    tokens: usize,
    head_dim: usize,
}

impl TileShape {
    /// A shape with no zero dimension and at most [`MAX_TILE_ELEMENTS`] elements per side.
    ///
    /// # Errors
    /// [`CodecError::TileShape`].
    pub fn new(num_kv_heads: usize, tokens: usize, head_dim: usize) -> Result<Self, CodecError> {
        let elements = num_kv_heads
            .checked_mul(tokens)
            .and_then(|n| n.checked_mul(head_dim));
        match elements {
            Some(1..=MAX_TILE_ELEMENTS) => Ok(Self {
                num_kv_heads,
                tokens,
                head_dim,
            }),
            _ => Err(CodecError::TileShape {
                num_kv_heads,
                tokens,
                head_dim,
            }),
        }
    }

    /// Key/value heads.
    #[must_use]
    pub const fn num_kv_heads(&self) -> usize {
        self.num_kv_heads
    }

    /// Tokens.
    #[must_use]
    pub const fn tokens(&self) -> usize {
        self.tokens
    }

    /// Channels per head.
    #[must_use]
    pub const fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Rows of `head_dim` elements per side: `num_kv_heads * tokens`.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.num_kv_heads * self.tokens
    }

    /// Elements per side.
    #[must_use]
    pub const fn elements(&self) -> usize {
        self.rows() * self.head_dim
    }

    /// Bytes of keys and values together as fp16.
    #[must_use]
    pub const fn fp16_bytes(&self) -> usize {
        self.elements() * 4
    }
}

/// Shape of a tile and its place in the model and in the context. Both ends know all of it
/// without it being sent, so a codec may depend on it (on the depth of the layer, on sinks).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TileSpec {
    /// Shape of each side.
    pub shape: TileShape,
    /// Absolute layer index.
    pub layer: usize,
    /// One past the last layer index of the block that the tile belongs to: for a block of all
    /// layers, the model's number of layers.
    pub num_layers: usize,
    /// Absolute position of the first token.
    pub first_token: usize,
}

impl TileSpec {
    /// The spec of a tile that stands alone: layer 0 of 1, starting at token 0.
    #[must_use]
    pub const fn alone(shape: TileShape) -> Self {
        Self {
            shape,
            layer: 0,
            num_layers: 1,
            first_token: 0,
        }
    }
}

/// A tile to encode.
#[derive(Debug, Clone, Copy)]
pub struct Tile<'a> {
    spec: TileSpec,
    k: &'a [f16],
    v: &'a [f16],
}

impl<'a> Tile<'a> {
    /// Borrows keys and values of the shape stated by `spec`.
    ///
    /// # Errors
    /// [`CodecError::TileLength`].
    pub fn new(spec: TileSpec, k: &'a [f16], v: &'a [f16]) -> Result<Self, CodecError> {
        check_lengths(spec.shape, k.len(), v.len())?;
        Ok(Self { spec, k, v })
    }

    /// Shape and place.
    #[must_use]
    pub const fn spec(&self) -> &TileSpec {
        &self.spec
    }

    /// Shape.
    #[must_use]
    pub const fn shape(&self) -> TileShape {
        self.spec.shape
    }

    /// Keys, `[num_kv_heads, tokens, head_dim]`.
    #[must_use]
    pub const fn k(&self) -> &'a [f16] {
        self.k
    }

    /// Values, `[num_kv_heads, tokens, head_dim]`.
    #[must_use]
    pub const fn v(&self) -> &'a [f16] {
        self.v
    }
}

/// Where to decode a tile to.
#[derive(Debug)]
pub struct TileMut<'a> {
    spec: TileSpec,
    /// Keys; the length was checked on construction and a slice cannot change it.
    k: &'a mut [f16],
    /// Values.
    v: &'a mut [f16],
}

impl<'a> TileMut<'a> {
    /// Borrows buffers of the shape stated by `spec`.
    ///
    /// # Errors
    /// [`CodecError::TileLength`].
    pub fn new(spec: TileSpec, k: &'a mut [f16], v: &'a mut [f16]) -> Result<Self, CodecError> {
        check_lengths(spec.shape, k.len(), v.len())?;
        Ok(Self { spec, k, v })
    }

    /// Shape and place.
    #[must_use]
    pub const fn spec(&self) -> &TileSpec {
        &self.spec
    }

    /// Shape.
    #[must_use]
    pub const fn shape(&self) -> TileShape {
        self.spec.shape
    }

    /// Keys, `[num_kv_heads, tokens, head_dim]`.
    pub fn k(&mut self) -> &mut [f16] {
        self.k
    }

    /// Values, `[num_kv_heads, tokens, head_dim]`.
    pub fn v(&mut self) -> &mut [f16] {
        self.v
    }
}

fn check_lengths(shape: TileShape, k: usize, v: usize) -> Result<(), CodecError> {
    let expected = shape.elements();
    for (side, found) in [("keys", k), ("values", v)] {
        if found != expected {
            return Err(CodecError::TileLength {
                side,
                expected,
                found,
            });
        }
    }
    Ok(())
}
