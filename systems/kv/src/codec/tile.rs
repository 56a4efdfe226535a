//! One layer's keys and values as plain slices, with the place they come from.

use half::f16;

use super::{ByteCount, CodecError, TokenScores};

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
    /// Absolute position of the first token. After a selection the tokens of a tile are no run
    /// any more: [`Tile::positions`] says where they stand.
    pub first_token: usize,
    /// One past the absolute position of the last token of the block, that is, of the context.
    pub end_token: usize,
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
            end_token: shape.tokens(),
        }
    }

    /// The same place with another shape.
    #[must_use]
    pub(super) const fn with_shape(self, shape: TileShape) -> Self {
        Self { shape, ..self }
    }

    /// The same place with another number of tokens, all heads and channels.
    pub(super) fn with_tokens(self, tokens: usize) -> Result<Self, CodecError> {
        let shape = TileShape::new(self.shape.num_kv_heads(), tokens, self.shape.head_dim())?;
        Ok(self.with_shape(shape))
    }
}

/// Another layer of the same tokens: one below that was decoded, for stages that predict from it, or
/// the sender's one above.
#[derive(Debug, Clone, Copy)]
pub struct Prior<'a> {
    /// Keys, `[num_kv_heads, tokens, head_dim]`: of a layer below, as the receiver has them.
    pub k: &'a [f16],
    /// Values, same shape.
    pub v: &'a [f16],
}

/// What both ends know about a tile beside its shape and place: where its tokens stand, and the
/// layers below it that have been decoded already.
#[derive(Debug, Clone, Copy, Default)]
pub struct Beside<'a> {
    /// Absolute positions of the tokens, ascending; `None` for the run from `first_token` on.
    pub positions: Option<&'a [usize]>,
    /// Decoded layers of the same tokens, the nearest first; as many as the codec asks for
    /// ([`Codec::prior_layers`](super::Codec::prior_layers)), or as there are.
    pub prior: &'a [Prior<'a>],
}

/// Which tokens of the declared run a decoded tile holds.
///
/// The positions stay absolute: a selection drops rows and moves none. Keys are pre-RoPE, so
/// that whoever attends to a kept token rotates it at its own position in the context, and the
/// queries behind the context keep theirs. A token that is not held must be left out of the
/// attention altogether: its rows are zero, and a key of zeros has a score of 0, not of minus
/// infinity.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Held {
    /// All of them.
    #[default]
    All,
    /// These, as ascending offsets into the tile.
    Some(Vec<usize>),
}

impl Held {
    /// How many of `tokens` are held.
    #[must_use]
    pub fn count(&self, tokens: usize) -> usize {
        match self {
            Self::All => tokens,
            Self::Some(offsets) => offsets.len(),
        }
    }
}

/// A tile to encode.
#[derive(Debug, Clone, Copy)]
pub struct Tile<'a> {
    spec: TileSpec,
    k: &'a [f16],
    v: &'a [f16],
    beside: Beside<'a>,
    above: Option<Prior<'a>>,
    scores: Option<&'a TokenScores>,
}

impl<'a> Tile<'a> {
    /// Borrows keys and values of the shape stated by `spec`.
    ///
    /// # Errors
    /// [`CodecError::TileLength`].
    pub fn new(spec: TileSpec, k: &'a [f16], v: &'a [f16]) -> Result<Self, CodecError> {
        check_lengths(spec.shape, k.len(), v.len())?;
        let (beside, above, scores) = (Beside::default(), None, None);
        Ok(Self {
            spec,
            k,
            v,
            beside,
            above,
            scores,
        })
    }

    /// The tile with what both ends know beside it.
    ///
    /// # Errors
    /// [`CodecError::TileLength`] when positions or prior layers are not of the tile's shape.
    pub fn with_beside(self, beside: Beside<'a>) -> Result<Self, CodecError> {
        check_beside(self.spec.shape, &beside)?;
        Ok(Self { beside, ..self })
    }

    /// The tile with the layer above it, of the same tokens, as the sender has it: for stages that
    /// choose with a view to it what they send of this one. The receiver has no such layer.
    ///
    /// # Errors
    /// [`CodecError::TileLength`] when it is not of the tile's shape.
    pub fn with_above(self, above: Option<Prior<'a>>) -> Result<Self, CodecError> {
        if let Some(layer) = above {
            check_lengths(self.spec.shape, layer.k.len(), layer.v.len())?;
        }
        Ok(Self { above, ..self })
    }

    /// The layer above as the sender has it, where it was given.
    #[must_use]
    pub const fn above(&self) -> Option<Prior<'a>> {
        self.above
    }

    /// The tile with scores of the context's tokens, for selections that need them.
    #[must_use]
    pub const fn with_scores(self, scores: Option<&'a TokenScores>) -> Self {
        Self { scores, ..self }
    }

    /// Scores of the context's tokens, if the sender has any.
    #[must_use]
    pub const fn scores(&self) -> Option<&'a TokenScores> {
        self.scores
    }

    /// What both ends know beside shape and place.
    #[must_use]
    pub const fn beside(&self) -> Beside<'a> {
        self.beside
    }

    /// Absolute position of the token at an offset into the tile.
    #[must_use]
    pub fn position(&self, offset: usize) -> usize {
        position(&self.spec, &self.beside, offset)
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
    beside: Beside<'a>,
    held: Held,
    /// Where bytes go, stage by stage, if somebody asked.
    account: Option<Vec<ByteCount>>,
}

impl<'a> TileMut<'a> {
    /// Borrows buffers of the shape stated by `spec`.
    ///
    /// # Errors
    /// [`CodecError::TileLength`].
    pub fn new(spec: TileSpec, k: &'a mut [f16], v: &'a mut [f16]) -> Result<Self, CodecError> {
        check_lengths(spec.shape, k.len(), v.len())?;
        Ok(Self {
            spec,
            k,
            v,
            beside: Beside::default(),
            held: Held::All,
            account: None,
        })
    }

    /// The tile with what both ends know beside it.
    ///
    /// # Errors
    /// [`CodecError::TileLength`] when positions or prior layers are not of the tile's shape.
    pub fn with_beside(self, beside: Beside<'a>) -> Result<Self, CodecError> {
        check_beside(self.spec.shape, &beside)?;
        Ok(Self { beside, ..self })
    }

    /// What both ends know beside shape and place.
    #[must_use]
    pub const fn beside(&self) -> Beside<'a> {
        self.beside
    }

    /// Absolute position of the token at an offset into the tile.
    #[must_use]
    pub fn position(&self, offset: usize) -> usize {
        position(&self.spec, &self.beside, offset)
    }

    /// Which tokens the tile holds; all until a selection was decoded into it.
    #[must_use]
    pub const fn held(&self) -> &Held {
        &self.held
    }

    /// States which tokens were decoded.
    pub(super) fn set_held(&mut self, held: Held) {
        self.held = held;
    }

    /// Asks the decoders to state what they spend bytes on.
    pub(super) fn start_account(&mut self) {
        self.account = Some(Vec::new());
    }

    /// States what bytes were spent on, if somebody asked.
    pub(super) fn count(&mut self, stage: &'static str, what: &'static str, bytes: usize) {
        if bytes > 0
            && let Some(account) = &mut self.account
        {
            account.push(ByteCount { stage, what, bytes });
        }
    }

    /// What bytes were spent on so far.
    pub(super) fn take_account(&mut self) -> Option<Vec<ByteCount>> {
        self.account.take()
    }

    /// Puts an account in the place of the present one.
    pub(super) fn set_account(&mut self, account: Vec<ByteCount>) {
        self.account = Some(account);
    }

    /// Decodes into a tile of another shape or with other tokens that stands for this one, and
    /// takes over what it spent bytes on.
    pub(super) fn decode_inner(
        &mut self,
        inner: &mut TileMut<'_>,
        decode: impl FnOnce(&mut TileMut<'_>) -> Result<(), CodecError>,
    ) -> Result<(), CodecError> {
        inner.account = self.account.take();
        let outcome = decode(inner);
        self.account = inner.account.take();
        outcome
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

    /// Keys and values.
    pub fn sides(&mut self) -> [&mut [f16]; 2] {
        [self.k, self.v]
    }
}

fn position(spec: &TileSpec, beside: &Beside<'_>, offset: usize) -> usize {
    match beside.positions {
        Some(positions) => positions[offset],
        None => spec.first_token + offset,
    }
}

fn check_beside(shape: TileShape, beside: &Beside<'_>) -> Result<(), CodecError> {
    if let Some(positions) = beside.positions
        && positions.len() != shape.tokens()
    {
        return Err(CodecError::TileLength {
            side: "positions",
            expected: shape.tokens(),
            found: positions.len(),
        });
    }
    for prior in beside.prior {
        check_lengths(shape, prior.k.len(), prior.v.len())?;
    }
    Ok(())
}

/// Copies the rows of some tokens, `offsets` ascending, out of a side of shape `shape`.
pub(super) fn gather(side: &[f16], shape: TileShape, offsets: &[usize]) -> Vec<f16> {
    let head_dim = shape.head_dim();
    let mut out = Vec::with_capacity(shape.num_kv_heads() * offsets.len() * head_dim);
    for head in side.chunks_exact(shape.tokens() * head_dim) {
        for offset in offsets {
            out.extend_from_slice(&head[offset * head_dim..][..head_dim]);
        }
    }
    out
}

/// The reverse of [`gather`]: writes rows to their places and leaves the others alone.
pub(super) fn scatter(rows: &[f16], side: &mut [f16], shape: TileShape, offsets: &[usize]) {
    let head_dim = shape.head_dim();
    let mut rows = rows.chunks_exact(head_dim);
    for head in side.chunks_exact_mut(shape.tokens() * head_dim) {
        for (offset, row) in offsets.iter().zip(&mut rows) {
            head[offset * head_dim..][..head_dim].copy_from_slice(row);
        }
    }
}

/// Some tokens of a tile, copied, with what stands beside them.
#[derive(Debug)]
pub(super) struct Part<'a> {
    pub(super) spec: TileSpec,
    pub(super) k: Vec<f16>,
    pub(super) v: Vec<f16>,
    positions: Vec<usize>,
    prior: Vec<(Vec<f16>, Vec<f16>)>,
    above: Option<(Vec<f16>, Vec<f16>)>,
    scores: Option<&'a TokenScores>,
}

impl<'a> Part<'a> {
    /// The tokens at `offsets`, at least one, of a tile to encode.
    pub(super) fn of(tile: &Tile<'a>, offsets: &[usize]) -> Result<Self, CodecError> {
        let mut part = Self::beside(tile.spec(), &tile.beside, offsets)?;
        part.scores = tile.scores;
        let rows = |side| gather(side, tile.shape(), offsets);
        (part.k, part.v) = (rows(tile.k), rows(tile.v));
        part.above = tile.above.map(|layer| (rows(layer.k), rows(layer.v)));
        Ok(part)
    }

    /// Room for the tokens at `offsets`, at least one, of a tile to decode.
    pub(super) fn room(tile: &TileMut<'_>, offsets: &[usize]) -> Result<Self, CodecError> {
        let mut part = Self::beside(tile.spec(), &tile.beside, offsets)?;
        let elements = part.spec.shape.elements();
        part.k = vec![f16::ZERO; elements];
        part.v = vec![f16::ZERO; elements];
        Ok(part)
    }

    fn beside(spec: &TileSpec, beside: &Beside<'_>, offsets: &[usize]) -> Result<Self, CodecError> {
        let prior = beside.prior.iter().map(|layer| {
            (
                gather(layer.k, spec.shape, offsets),
                gather(layer.v, spec.shape, offsets),
            )
        });
        Ok(Self {
            spec: spec.with_tokens(offsets.len())?,
            k: Vec::new(),
            v: Vec::new(),
            positions: offsets
                .iter()
                .map(|offset| position(spec, beside, *offset))
                .collect(),
            prior: prior.collect(),
            above: None,
            scores: None,
        })
    }

    /// Calls `encode` with the part as a tile.
    pub(super) fn encode<T>(
        &self,
        encode: impl FnOnce(&Tile<'_>) -> Result<T, CodecError>,
    ) -> Result<T, CodecError> {
        let prior = priors(&self.prior);
        let beside = Beside {
            positions: Some(&self.positions),
            prior: &prior,
        };
        let above = self.above.as_ref().map(|(k, v)| Prior { k, v });
        let tile = Tile::new(self.spec, &self.k, &self.v)?.with_beside(beside)?;
        encode(&tile.with_above(above)?.with_scores(self.scores))
    }

    /// Fills the part with what `decode` decodes and writes its rows into `tile` at `offsets`;
    /// returns which of the part's tokens are held.
    pub(super) fn decode_into(
        mut self,
        tile: &mut TileMut<'_>,
        offsets: &[usize],
        decode: impl FnOnce(&mut TileMut<'_>) -> Result<(), CodecError>,
    ) -> Result<Held, CodecError> {
        let prior = priors(&self.prior);
        let beside = Beside {
            positions: Some(&self.positions),
            prior: &prior,
        };
        let mut inner = TileMut::new(self.spec, &mut self.k, &mut self.v)?.with_beside(beside)?;
        tile.decode_inner(&mut inner, decode)?;
        let held = inner.held;
        let shape = tile.shape();
        scatter(&self.k, tile.k, shape, offsets);
        scatter(&self.v, tile.v, shape, offsets);
        Ok(held)
    }
}

fn priors(layers: &[(Vec<f16>, Vec<f16>)]) -> Vec<Prior<'_>> {
    layers.iter().map(|(k, v)| Prior { k, v }).collect()
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
