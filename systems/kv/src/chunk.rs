//! Chunks: one encoded tile each, and the assembler that puts a peer's chunks together.
//!
//! Everything that arrives is checked before it is used: the hash, the codec, the place in the
//! declared block, overlaps, the length. Memory follows from the declaration alone, and the
//! receiver bounds the declaration.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use half::f16;

use crate::block::{BlockSpec, KvBlock, KvError, LayerKv};
use crate::codec::{
    Beside, Chain, Codec, CodecError, Explanation, Held, Prior, Tile, TileMut, TileShape, TileSpec,
    TokenScores,
};
use crate::ident::to_hex;

/// Tokens per chunk unless configured otherwise: a multiple of every codec's token group.
pub const DEFAULT_CHUNK_TOKENS: usize = 256;

/// Why a chunk could not be made or was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// The content does not have the hash that came with it.
    #[error("chunk of layer {layer}, tokens {start}..{end}: its hash is {found}, sent was {sent}")]
    Hash {
        /// Layer stated by the chunk.
        layer: usize,
        /// First token stated by the chunk.
        start: usize,
        /// End of the tokens stated by the chunk.
        end: usize,
        /// Hash of the content as received.
        found: String,
        /// Hash that came with the chunk.
        sent: String,
    },
    /// A codec that was not agreed on.
    #[error("chunk encoded with {found:?}, agreed on were {}", agreed.join(", "))]
    Codec {
        /// Codec id of the chunk, cut to 80 characters.
        found: String,
        /// Codec ids agreed on.
        agreed: Vec<String>,
    },
    /// A quality level that the codec does not have.
    #[error("chunk of quality level {level}, {codec} has level 0 only")]
    Level {
        /// Level stated by the chunk.
        level: u8,
        /// Codec id.
        codec: String,
    },
    /// A chunk outside the declared block.
    #[error(
        "chunk of layer {layer}, tokens {start}..{end} lies outside the declared layers \
         {layers:?} and tokens {tokens:?}"
    )]
    Place {
        /// Layer stated by the chunk.
        layer: usize,
        /// First token stated by the chunk.
        start: usize,
        /// End of the tokens stated by the chunk.
        end: usize,
        /// Declared layers.
        layers: Range<usize>,
        /// Declared tokens.
        tokens: Range<usize>,
    },
    /// Tokens that had arrived before.
    #[error("layer {layer}: tokens {start}..{end} overlap with some that had arrived before")]
    Duplicate {
        /// Layer.
        layer: usize,
        /// First token.
        start: usize,
        /// End of the tokens.
        end: usize,
    },
    /// A declared block that the receiver does not want to hold.
    #[error("the declared block takes {bytes} bytes, the bound is {max_bytes}")]
    Bound {
        /// fp16 bytes of the declared block.
        bytes: u64,
        /// What the receiver allows.
        max_bytes: u64,
    },
    /// A chunk size that would cut through the codec's groups.
    #[error(
        "chunk_tokens = {chunk_tokens} is not a positive multiple of {group}, the token group of {codec}"
    )]
    ChunkTokens {
        /// Requested tokens per chunk.
        chunk_tokens: usize,
        /// The codec's token group.
        group: usize,
        /// Codec id.
        codec: String,
    },
    /// Tokens that never arrived.
    #[error("{missing} layers of the declared block are incomplete, the first is layer {layer}")]
    Incomplete {
        /// Number of layers that lack tokens.
        missing: usize,
        /// The first of them.
        layer: usize,
    },
    /// A codec that predicts from the layers below met a layer before those.
    #[error(
        "layer {layer}, tokens {start}..{end}: {codec} needs the layers below it first, in order"
    )]
    Order {
        /// Layer.
        layer: usize,
        /// First token.
        start: usize,
        /// End of the tokens.
        end: usize,
        /// Codec id.
        codec: String,
    },
    /// A chunk that leaves tokens out, for a receiver that did not say it can do without.
    #[error(
        "layer {layer}, tokens {start}..{end}: {codec} left out {dropped} tokens, and nothing here \
         keeps the attention from them"
    )]
    Dropped {
        /// Layer.
        layer: usize,
        /// First token.
        start: usize,
        /// End of the tokens.
        end: usize,
        /// How many were left out.
        dropped: usize,
        /// Codec id.
        codec: String,
    },
    /// The payload could not be encoded or decoded.
    #[error("chunk of layer {layer}, tokens {start}..{end}")]
    Coding {
        /// Layer.
        layer: usize,
        /// First token.
        start: usize,
        /// End of the tokens.
        end: usize,
        /// What the codec says.
        #[source]
        source: CodecError,
    },
    /// The block or its declaration is not well formed.
    #[error(transparent)]
    Block(#[from] KvError),
}

/// One layer of a run of tokens, encoded.
///
/// The fields are public because chunks come from the wire: nothing is known about one until
/// [`KvChunk::verify`] and an [`Assembler`] have seen it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvChunk {
    /// Absolute layer index.
    pub layer: usize,
    /// Absolute token positions.
    pub tokens: Range<usize>,
    /// Codec id.
    pub codec: String,
    /// Quality level for codecs that have several, 0 otherwise.
    pub level: u8,
    /// The encoded tile.
    pub payload: Vec<u8>,
    /// BLAKE3 of the other fields.
    pub hash: [u8; 32],
}

impl KvChunk {
    /// Makes a chunk and computes its hash.
    #[must_use]
    pub fn seal(
        layer: usize,
        tokens: Range<usize>,
        codec: String,
        level: u8,
        payload: Vec<u8>,
    ) -> Self {
        let mut chunk = Self {
            layer,
            tokens,
            codec,
            level,
            payload,
            hash: [0; 32],
        };
        chunk.hash = chunk.content_hash();
        chunk
    }

    /// Encodes one layer of `block` at the absolute positions `tokens`, by itself.
    ///
    /// # Errors
    /// [`ChunkError::Block`] outside the block, [`ChunkError::Coding`] if the codec refuses,
    /// [`ChunkError::Order`] for a codec that predicts from the layers below, which takes a
    /// [`ChunkEncoder`].
    pub fn encode(
        block: &KvBlock,
        layer: usize,
        tokens: Range<usize>,
        codec: &Chain,
    ) -> Result<Self, ChunkError> {
        ChunkEncoder::new(codec.clone()).encode(block, layer, tokens)
    }

    /// Checks that the content is what the hash was computed from.
    ///
    /// # Errors
    /// [`ChunkError::Hash`].
    pub fn verify(&self) -> Result<(), ChunkError> {
        let found = self.content_hash();
        if found == self.hash {
            return Ok(());
        }
        Err(ChunkError::Hash {
            layer: self.layer,
            start: self.tokens.start,
            end: self.tokens.end,
            found: to_hex(&found),
            sent: to_hex(&self.hash),
        })
    }

    fn content_hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"celslm kv chunk 1");
        // Lengths come before what they delimit, so no two chunks hash the same bytes.
        for number in [
            self.layer,
            self.tokens.start,
            self.tokens.end,
            self.codec.len(),
        ] {
            hasher.update(&(number as u64).to_le_bytes());
        }
        hasher.update(self.codec.as_bytes());
        hasher.update(&[self.level]);
        hasher.update(&self.payload);
        *hasher.finalize().as_bytes()
    }
}

/// The places of a block's chunks, layer by layer and, within a layer, in the order of tokens.
///
/// # Errors
/// [`ChunkError::ChunkTokens`] unless `chunk_tokens` is a positive multiple of the codec's
/// token group, [`ChunkError::Block`] for a malformed declaration.
pub fn plan(
    spec: &BlockSpec,
    chunk_tokens: usize,
    codec: &Chain,
) -> Result<impl Iterator<Item = (usize, Range<usize>)> + Clone + use<>, ChunkError> {
    spec.validate()?;
    let group = codec.token_group();
    if chunk_tokens == 0 || !chunk_tokens.is_multiple_of(group) {
        return Err(ChunkError::ChunkTokens {
            chunk_tokens,
            group,
            codec: codec.id(),
        });
    }
    let positions = spec.positions.clone();
    Ok(spec.layer_range().flat_map(move |layer| {
        let positions = positions.clone();
        positions.clone().step_by(chunk_tokens).map(move |start| {
            let end = start.saturating_add(chunk_tokens).min(positions.end);
            (layer, start..end)
        })
    }))
}

/// Encodes the chunks of one block for one receiver, and remembers what a codec that predicts
/// needs to know: the layers below as the receiver has them.
///
/// Memory: for a codec that predicts from `n` layers, `n` decoded layers of the block; otherwise
/// none.
#[derive(Debug)]
pub struct ChunkEncoder {
    codec: Chain,
    scores: Option<Arc<TokenScores>>,
    /// By first token: the last decoded layers, the nearest first, and the layer of the nearest.
    decoded: HashMap<usize, Decoded>,
}

/// Decoded tiles of a run of tokens.
#[derive(Debug, Default)]
struct Decoded {
    end: usize,
    layer: usize,
    layers: VecDeque<LayerKv>,
}

impl ChunkEncoder {
    /// An encoder for one transfer of one block.
    #[must_use]
    pub fn new(codec: Chain) -> Self {
        Self {
            codec,
            scores: None,
            decoded: HashMap::new(),
        }
    }

    /// The encoder with scores of the block's tokens, for codecs that select by them.
    #[must_use]
    pub fn with_scores(self, scores: Option<Arc<TokenScores>>) -> Self {
        Self { scores, ..self }
    }

    /// Encodes one layer of `block` at the absolute positions `tokens`. A codec that predicts
    /// needs the layers of the same tokens in order, as [`plan`] has them.
    ///
    /// # Errors
    /// [`ChunkError::Block`] outside the block, [`ChunkError::Coding`] if the codec refuses,
    /// [`ChunkError::Order`] when a layer that is predicted from was not encoded before.
    pub fn encode(
        &mut self,
        block: &KvBlock,
        layer: usize,
        tokens: Range<usize>,
    ) -> Result<KvChunk, ChunkError> {
        let (chunk, ()) = self.encode_and(block, layer, tokens, |_, _, _, _| Ok(()))?;
        Ok(chunk)
    }

    /// As [`Self::encode`], with the account of the payload's bytes ([`Chain::explain`]).
    ///
    /// # Errors
    /// As for [`Self::encode`].
    pub fn explain(
        &mut self,
        block: &KvBlock,
        layer: usize,
        tokens: Range<usize>,
    ) -> Result<(KvChunk, Explanation), ChunkError> {
        self.encode_and(block, layer, tokens, Chain::explain)
    }

    /// Encodes, and lets `also` look at the payload beside what its decoder will know.
    fn encode_and<T>(
        &mut self,
        block: &KvBlock,
        layer: usize,
        tokens: Range<usize>,
        also: impl FnOnce(&Chain, TileSpec, Beside<'_>, &[u8]) -> Result<T, CodecError>,
    ) -> Result<(KvChunk, T), ChunkError> {
        let tile = block.tile(layer, &tokens)?;
        let coding = coding_error(layer, &tokens);
        let spec = tile_spec(block.spec(), layer, &tokens).map_err(&coding)?;
        let wanted = self.codec.prior_layers();
        let below = wanted.min(layer - block.first_layer());
        let mut nothing = Decoded::default();
        let decoded = match wanted {
            0 => &mut nothing,
            _ => self.decoded.entry(tokens.start).or_default(),
        };
        if below == 0 {
            decoded.layers.clear();
        } else if decoded.end != tokens.end
            || decoded.layer + 1 != layer
            || decoded.layers.len() < below
        {
            let Range { start, end } = tokens;
            return Err(ChunkError::Order {
                layer,
                start,
                end,
                codec: self.codec.id(),
            });
        }
        let prior: Vec<Prior<'_>> = decoded.layers.iter().map(as_prior).collect();
        let beside = Beside {
            positions: None,
            prior: &prior,
        };
        let above = match self.codec.looks_above() && layer + 1 < spec.num_layers {
            true => Some(block.tile(layer + 1, &tokens)?),
            false => None,
        };
        let mut payload = Vec::new();
        Tile::new(spec, &tile.k, &tile.v)
            .and_then(|tile| tile.with_beside(beside))
            .and_then(|tile| tile.with_above(above.as_ref().map(as_prior)))
            .and_then(|tile| {
                let tile = tile.with_scores(self.scores.as_deref());
                self.codec.encode(&tile, &mut payload)
            })
            .map_err(&coding)?;
        let found = also(&self.codec, spec, beside, &payload).map_err(&coding)?;
        if wanted > 0 {
            let LayerKv { mut k, mut v } = tile;
            TileMut::new(spec, &mut k, &mut v)
                .and_then(|tile| tile.with_beside(beside))
                .and_then(|mut tile| self.codec.decode(&payload, &mut tile))
                .map_err(&coding)?;
            drop(prior);
            decoded.layers.push_front(LayerKv { k, v });
            decoded.layers.truncate(wanted);
            (decoded.layer, decoded.end) = (layer, tokens.end);
        }
        let chunk = KvChunk::seal(layer, tokens, self.codec.id(), 0, payload);
        Ok((chunk, found))
    }
}

fn as_prior(layer: &LayerKv) -> Prior<'_> {
    Prior {
        k: &layer.k,
        v: &layer.v,
    }
}

/// Encodes a block lazily, chunk by chunk in the order of [`plan`].
///
/// # Errors
/// As for [`plan`]; the items fail as [`KvChunk::encode`] does.
pub fn chunks<'a>(
    block: &'a KvBlock,
    chunk_tokens: usize,
    codec: &'a Chain,
) -> Result<impl Iterator<Item = Result<KvChunk, ChunkError>> + 'a, ChunkError> {
    let places = plan(block.spec(), chunk_tokens, codec)?;
    let mut encoder = ChunkEncoder::new(codec.clone());
    Ok(places.map(move |(layer, tokens)| encoder.encode(block, layer, tokens)))
}

/// Collects the chunks of one layer, in any order.
#[derive(Debug)]
pub struct LayerAssembler {
    spec: BlockSpec,
    layer: usize,
    k: Vec<f16>,
    v: Vec<f16>,
    /// Tokens that have arrived: disjoint, sorted, none empty, so at most one per token.
    arrived: Vec<Range<usize>>,
    tokens_arrived: usize,
    /// Whether chunks may leave tokens out, and the absolute positions that were.
    may_drop: bool,
    dropped: Vec<usize>,
}

impl LayerAssembler {
    /// Allocates the buffers of the absolute layer `layer` of a declared block.
    ///
    /// # Errors
    /// [`ChunkError::Block`] or [`ChunkError::Place`].
    pub fn new(spec: BlockSpec, layer: usize) -> Result<Self, ChunkError> {
        spec.validate()?;
        if !spec.layer_range().contains(&layer) {
            return Err(place_error(&spec, layer, &spec.positions));
        }
        let elements = spec.layer_elements();
        let (k, v) = (vec![f16::ZERO; elements], vec![f16::ZERO; elements]);
        Ok(Self {
            spec,
            layer,
            k,
            v,
            arrived: Vec::new(),
            tokens_arrived: 0,
            may_drop: false,
            dropped: Vec::new(),
        })
    }

    /// Lets chunks leave tokens out; whoever uses the layer then has to keep the attention from
    /// [`Self::dropped`].
    #[must_use]
    pub fn with_dropped(self, may_drop: bool) -> Self {
        Self { may_drop, ..self }
    }

    /// Absolute positions of arrived tokens that the codec left out, ascending; their rows are
    /// zero.
    #[must_use]
    pub fn dropped(&self) -> &[usize] {
        &self.dropped
    }

    /// Verifies and decodes one chunk. A refused chunk changes nothing: the same tokens may
    /// arrive again.
    ///
    /// # Errors
    /// [`ChunkError`], see its variants.
    pub fn accept(&mut self, chunk: &KvChunk, codecs: &[Chain]) -> Result<(), ChunkError> {
        self.accept_above(chunk, codecs, &[])
    }

    /// As [`Self::accept`], with the complete layers below this one, the nearest first, for
    /// codecs that predict from them.
    ///
    /// # Errors
    /// [`ChunkError`], see its variants.
    pub fn accept_above(
        &mut self,
        chunk: &KvChunk,
        codecs: &[Chain],
        below: &[&LayerKv],
    ) -> Result<(), ChunkError> {
        let KvChunk { layer, tokens, .. } = chunk;
        let held = &self.spec.positions;
        let inside = tokens.start >= held.start && tokens.end <= held.end && !tokens.is_empty();
        if *layer != self.layer || !inside {
            return Err(place_error(&self.spec, *layer, tokens));
        }
        let index = self.arrived.partition_point(|run| run.end <= tokens.start);
        if self
            .arrived
            .get(index)
            .is_some_and(|run| run.start < tokens.end)
        {
            let (start, end) = (tokens.start, tokens.end);
            return Err(ChunkError::Duplicate {
                layer: *layer,
                start,
                end,
            });
        }
        let Some(codec) = codecs.iter().find(|codec| codec.id() == chunk.codec) else {
            return Err(ChunkError::Codec {
                found: chunk.codec.chars().take(80).collect(),
                agreed: codecs.iter().map(Codec::id).collect(),
            });
        };
        if chunk.level != 0 {
            return Err(ChunkError::Level {
                level: chunk.level,
                codec: codec.id(),
            });
        }
        let wanted = codec.prior_layers().min(layer - self.spec.first_layer);
        let (start, end) = (tokens.start, tokens.end);
        if below.len() < wanted {
            return Err(ChunkError::Order {
                layer: *layer,
                start,
                end,
                codec: codec.id(),
            });
        }
        chunk.verify()?;
        let (tile, held) = self
            .decode(chunk, codec, &below[..wanted])
            .map_err(coding_error(*layer, tokens))?;
        if let Held::Some(offsets) = held {
            if !self.may_drop && offsets.len() < tokens.len() {
                return Err(ChunkError::Dropped {
                    layer: *layer,
                    start,
                    end,
                    dropped: tokens.len() - offsets.len(),
                    codec: codec.id(),
                });
            }
            let missing = (0..tokens.len()).filter(|offset| offsets.binary_search(offset).is_err());
            self.dropped.extend(missing.map(|offset| start + offset));
            self.dropped.sort_unstable();
        }
        self.place(tokens, &tile);
        self.arrived.insert(index, tokens.clone());
        self.tokens_arrived += tokens.len();
        Ok(())
    }

    /// Whether all tokens have arrived.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.tokens_arrived == self.spec.num_tokens()
    }

    /// The runs of tokens that have not arrived.
    #[must_use]
    pub fn missing(&self) -> Vec<Range<usize>> {
        let mut missing = Vec::new();
        let mut next = self.spec.positions.start;
        for run in self
            .arrived
            .iter()
            .chain([&(self.spec.positions.end..usize::MAX)])
        {
            if next < run.start {
                missing.push(next..run.start);
            }
            next = run.end;
        }
        missing
    }

    /// The layer, once complete.
    ///
    /// # Errors
    /// [`ChunkError::Incomplete`].
    pub fn finish(self) -> Result<LayerKv, ChunkError> {
        if self.is_complete() {
            Ok(LayerKv {
                k: self.k,
                v: self.v,
            })
        } else {
            Err(ChunkError::Incomplete {
                missing: 1,
                layer: self.layer,
            })
        }
    }

    fn decode(
        &self,
        chunk: &KvChunk,
        codec: &Chain,
        below: &[&LayerKv],
    ) -> Result<(LayerKv, Held), CodecError> {
        let spec = tile_spec(&self.spec, chunk.layer, &chunk.tokens)?;
        codec.check_shape(spec.shape)?;
        let (expected, found) = (codec.encoded_len(spec.shape), chunk.payload.len());
        if found > expected {
            return Err(CodecError::Length {
                codec: codec.id(),
                expected,
                found,
            });
        }
        let below: Vec<LayerKv> = below
            .iter()
            .map(|layer| self.same_tokens(layer, &chunk.tokens))
            .collect();
        let prior: Vec<Prior<'_>> = below.iter().map(as_prior).collect();
        let beside = Beside {
            positions: None,
            prior: &prior,
        };
        let elements = spec.shape.elements();
        let (mut k, mut v) = (vec![f16::ZERO; elements], vec![f16::ZERO; elements]);
        let mut tile = TileMut::new(spec, &mut k, &mut v)?.with_beside(beside)?;
        codec.decode(&chunk.payload, &mut tile)?;
        let held = tile.held().clone();
        Ok((LayerKv { k, v }, held))
    }

    /// The tokens `tokens` of a complete layer of the same block.
    fn same_tokens(&self, layer: &LayerKv, tokens: &Range<usize>) -> LayerKv {
        let head_dim = self.spec.shape.head_dim;
        let head_run = self.spec.num_tokens() * head_dim;
        let start = (tokens.start - self.spec.positions.start) * head_dim;
        let run = start..start + tokens.len() * head_dim;
        let cut = |side: &[f16]| -> Vec<f16> {
            let heads = side.chunks_exact(head_run);
            let cut = heads.map(|head| head.get(run.clone()).unwrap_or_default());
            cut.collect::<Vec<_>>().concat()
        };
        LayerKv {
            k: cut(&layer.k),
            v: cut(&layer.v),
        }
    }

    fn place(&mut self, tokens: &Range<usize>, tile: &LayerKv) {
        let head_dim = self.spec.shape.head_dim;
        let head_run = self.spec.num_tokens() * head_dim;
        let tile_run = tokens.len() * head_dim;
        let offset = (tokens.start - self.spec.positions.start) * head_dim;
        for (side, tile) in [(&mut self.k, &tile.k), (&mut self.v, &tile.v)] {
            for (head, tile) in side
                .chunks_exact_mut(head_run)
                .zip(tile.chunks_exact(tile_run))
            {
                head[offset..offset + tile_run].copy_from_slice(tile);
            }
        }
    }
}

/// Collects the chunks of a declared block and hands out each layer when it is complete.
///
/// Buffers of a layer are allocated when its first chunk has been accepted and given away when
/// the layer is complete, so memory never exceeds the declared block, and copies of as many
/// layers as a codec predicts from.
#[derive(Debug)]
pub struct Assembler {
    spec: BlockSpec,
    codecs: Vec<Chain>,
    layers: Vec<LayerState>,
    /// The most layers that a codec predicts from, and so many complete ones, copied, the last
    /// first.
    prior_layers: usize,
    below: VecDeque<(usize, LayerKv)>,
    may_drop: bool,
    dropped: HashMap<usize, Vec<usize>>,
}

#[derive(Debug)]
enum LayerState {
    Untouched,
    Partial(Box<LayerAssembler>),
    Done,
}

impl Assembler {
    /// Prepares to receive a block as declared by a peer, encoded with any of `codecs`.
    ///
    /// # Errors
    /// [`ChunkError::Bound`] when the declared block is larger than `max_bytes` as fp16,
    /// [`ChunkError::Block`] when the declaration is malformed.
    pub fn new(spec: BlockSpec, codecs: Vec<Chain>, max_bytes: u64) -> Result<Self, ChunkError> {
        spec.validate()?;
        let bytes = spec.fp16_bytes();
        if bytes > max_bytes {
            return Err(ChunkError::Bound { bytes, max_bytes });
        }
        let layers = (0..spec.shape.num_layers)
            .map(|_| LayerState::Untouched)
            .collect();
        let prior_layers = codecs.iter().map(Codec::prior_layers).max().unwrap_or(0);
        Ok(Self {
            spec,
            codecs,
            layers,
            prior_layers,
            below: VecDeque::new(),
            may_drop: false,
            dropped: HashMap::new(),
        })
    }

    /// Lets codecs leave tokens out; whoever uses a layer then has to keep the attention from
    /// those that [`Self::dropped`] names. Without this, a chunk that leaves tokens out is
    /// refused, so that nobody attends to rows of zeros by mistake.
    #[must_use]
    pub fn with_dropped(self, may_drop: bool) -> Self {
        Self { may_drop, ..self }
    }

    /// Absolute positions of a complete layer's tokens that the codec left out, ascending: their
    /// rows are zero. Empty for a layer that holds all, or is not complete.
    #[must_use]
    pub fn dropped(&self, layer: usize) -> &[usize] {
        self.dropped.get(&layer).map_or(&[], Vec::as_slice)
    }

    /// What was declared.
    #[must_use]
    pub const fn spec(&self) -> &BlockSpec {
        &self.spec
    }

    /// Verifies and decodes one chunk; returns the layer (absolute index) that it completes.
    ///
    /// # Errors
    /// [`ChunkError`]; a refused chunk changes nothing.
    pub fn accept(&mut self, chunk: &KvChunk) -> Result<Option<(usize, LayerKv)>, ChunkError> {
        let layer = chunk.layer;
        let index = layer.checked_sub(self.spec.first_layer);
        let Some(state) = index.and_then(|index| self.layers.get_mut(index)) else {
            return Err(place_error(&self.spec, layer, &chunk.tokens));
        };
        // Complete layers right below this one, without a gap.
        let below: Vec<&LayerKv> = (1..=self.prior_layers)
            .map_while(|depth| {
                let wanted = layer.checked_sub(depth)?;
                let found = self.below.iter().find(|(layer, _)| *layer == wanted);
                found.map(|(_, kv)| kv)
            })
            .collect();
        match state {
            LayerState::Done => {
                let Range { start, end } = chunk.tokens;
                return Err(ChunkError::Duplicate { layer, start, end });
            }
            LayerState::Partial(partial) => partial.accept_above(chunk, &self.codecs, &below)?,
            LayerState::Untouched => {
                let mut partial =
                    LayerAssembler::new(self.spec.clone(), layer)?.with_dropped(self.may_drop);
                partial.accept_above(chunk, &self.codecs, &below)?;
                *state = LayerState::Partial(Box::new(partial));
            }
        }
        match std::mem::replace(state, LayerState::Done) {
            LayerState::Partial(partial) if partial.is_complete() => {
                if !partial.dropped.is_empty() {
                    self.dropped.insert(layer, partial.dropped.clone());
                }
                let kv = partial.finish()?;
                if self.prior_layers > 0 {
                    self.below.push_front((layer, kv.clone()));
                    self.below.truncate(self.prior_layers);
                }
                Ok(Some((layer, kv)))
            }
            unfinished => {
                *state = unfinished;
                Ok(None)
            }
        }
    }

    /// Whether every layer has been handed out.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.layers
            .iter()
            .all(|state| matches!(state, LayerState::Done))
    }

    /// What has not arrived: absolute layer and token runs, in order.
    #[must_use]
    pub fn missing(&self) -> Vec<(usize, Vec<Range<usize>>)> {
        self.spec
            .layer_range()
            .zip(&self.layers)
            .filter_map(|(layer, state)| match state {
                LayerState::Untouched => Some((layer, vec![self.spec.positions.clone()])),
                LayerState::Partial(partial) => Some((layer, partial.missing())),
                LayerState::Done => None,
            })
            .collect()
    }
}

/// Assembles a whole block from its chunks.
///
/// # Errors
/// The first refusal of [`Assembler::accept`], or [`ChunkError::Incomplete`].
pub fn assemble(
    spec: BlockSpec,
    codecs: Vec<Chain>,
    max_bytes: u64,
    chunks: impl IntoIterator<Item = KvChunk>,
) -> Result<KvBlock, ChunkError> {
    let mut assembler = Assembler::new(spec, codecs, max_bytes)?;
    let mut layers: Vec<Option<LayerKv>> = vec![None; assembler.spec.shape.num_layers];
    for chunk in chunks {
        if let Some((layer, kv)) = assembler.accept(&chunk)? {
            layers[layer - assembler.spec.first_layer] = Some(kv);
        }
    }
    if let [(layer, _), ..] = *assembler.missing() {
        return Err(ChunkError::Incomplete {
            missing: assembler.missing().len(),
            layer,
        });
    }
    Ok(KvBlock::from_spec(
        assembler.spec,
        layers.into_iter().flatten().collect(),
    )?)
}

fn tile_spec(
    spec: &BlockSpec,
    layer: usize,
    tokens: &Range<usize>,
) -> Result<TileSpec, CodecError> {
    let shape = TileShape::new(spec.shape.num_kv_heads, tokens.len(), spec.shape.head_dim)?;
    let num_layers = spec.layer_range().end;
    Ok(TileSpec {
        shape,
        layer,
        num_layers,
        first_token: tokens.start,
        end_token: spec.positions.end,
    })
}

fn coding_error(layer: usize, tokens: &Range<usize>) -> impl Fn(CodecError) -> ChunkError + use<> {
    let Range { start, end } = *tokens;
    move |source| ChunkError::Coding {
        layer,
        start,
        end,
        source,
    }
}

fn place_error(spec: &BlockSpec, layer: usize, tokens: &Range<usize>) -> ChunkError {
    ChunkError::Place {
        layer,
        start: tokens.start,
        end: tokens.end,
        layers: spec.layer_range(),
        tokens: spec.positions.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{KeyRope, KvShape};
    use crate::codec::{CodecConfig, registry};
    use crate::ident::ModelFingerprint;
    use proptest::prelude::*;

    fn block(positions: Range<usize>) -> KvBlock {
        let shape = KvShape::new(3, 2, 32).unwrap();
        let side = |salt: usize| {
            let numbers = 0..shape.width() * positions.len();
            numbers
                .map(|i| f16::from_f32(((i * 31 + salt * 17) % 97) as f32 / 8.0))
                .collect()
        };
        let layers = (0..3)
            .map(|l| LayerKv {
                k: side(l),
                v: side(l + 9),
            })
            .collect();
        let fingerprint = ModelFingerprint::from_bytes([3; 32]);
        KvBlock::new(fingerprint, shape, 4, positions, KeyRope::Pre, layers).unwrap()
    }

    fn run(start: usize, end: usize) -> Vec<Range<usize>> {
        vec![Range { start, end }]
    }

    fn identity() -> Chain {
        CodecConfig::default().build()
    }

    fn all_chunks(block: &KvBlock, chunk_tokens: usize, codec: &Chain) -> Vec<KvChunk> {
        chunks(block, chunk_tokens, codec)
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap()
    }

    /// Scores for blocks of [`block`], higher for later tokens.
    fn scores() -> TokenScores {
        let layer: Vec<f32> = (0..1000).map(|token| token as f32).collect();
        TokenScores::new(0, 0, vec![layer; 8]).unwrap()
    }

    #[test]
    fn every_codec_crosses_in_chunks() {
        let block = block(100..233);
        for config in registry().iter().flat_map(|entry| (entry.examples)()) {
            let codec = config.build();
            let mut encoder =
                ChunkEncoder::new(codec.clone()).with_scores(Some(Arc::new(scores())));
            let places: Vec<_> = plan(block.spec(), 64, &codec).unwrap().collect();
            assert_eq!(places.len(), 3 * 3);
            assert_eq!(places[2], (4, 228..233));
            if codec
                .check_shape(TileShape::new(2, 64, 32).unwrap())
                .is_err()
            {
                continue;
            }
            let sent: Vec<KvChunk> = places
                .into_iter()
                .map(|(layer, tokens)| encoder.encode(&block, layer, tokens).unwrap())
                .collect();
            let receive = |chunks: &mut dyn Iterator<Item = &KvChunk>| {
                let codecs = vec![codec.clone()];
                let mut assembler = Assembler::new(block.spec().clone(), codecs, u64::MAX)
                    .unwrap()
                    .with_dropped(true);
                let mut layers = Vec::new();
                for chunk in chunks {
                    layers.extend(assembler.accept(chunk).unwrap());
                }
                assert!(assembler.is_complete());
                layers.sort_by_key(|(layer, _)| *layer);
                layers
            };
            let got = receive(&mut sent.iter());
            if config == CodecConfig::default() {
                let layers: Vec<_> = got.iter().map(|(_, kv)| kv.clone()).collect();
                assert_eq!(layers, block.layers());
            }
            if codec.prior_layers() == 0 {
                // The order of arrival does not matter.
                assert_eq!(receive(&mut sent.iter().rev()), got);
            }
        }
    }

    #[test]
    fn dropped_tokens_are_refused_unless_asked_for() {
        let block = block(0..64);
        let codec = "random-k50-s0+identity"
            .parse::<CodecConfig>()
            .unwrap()
            .build();
        let chunk = KvChunk::encode(&block, 4, 0..64, &codec).unwrap();
        let assembler =
            || Assembler::new(block.spec().clone(), vec![codec.clone()], u64::MAX).unwrap();
        let refused = assembler().accept(&chunk);
        assert!(matches!(
            refused,
            Err(ChunkError::Dropped { dropped: 32, .. })
        ));
        let mut assembler = assembler().with_dropped(true);
        let (layer, kv) = assembler.accept(&chunk).unwrap().unwrap();
        let dropped = assembler.dropped(layer);
        assert_eq!(dropped.len(), 32);
        let own = block.layer(4).unwrap();
        for token in 0..64 {
            let run = token * 32..(token + 1) * 32;
            let kept = dropped.binary_search(&token).is_err();
            assert_eq!(kv.k[run.clone()] == own.k[run], kept, "token {token}");
        }
    }

    #[test]
    fn layers_come_out_as_they_complete() {
        let block = block(0..100);
        let codec = identity();
        let mut assembler =
            Assembler::new(block.spec().clone(), vec![codec.clone()], u64::MAX).unwrap();
        let sent = all_chunks(&block, 64, &codec);
        assert_eq!(assembler.accept(&sent[1]).unwrap(), None);
        assert_eq!(assembler.missing()[0], (4, run(0, 64)));
        assert_eq!(
            assembler.accept(&sent[0]).unwrap(),
            Some((4, block.layers()[0].clone()))
        );
        assert!(matches!(
            assembler.accept(&sent[0]),
            Err(ChunkError::Duplicate { .. })
        ));
        assert_eq!(assembler.missing(), [(5, run(0, 100)), (6, run(0, 100))]);
        assert!(!assembler.is_complete());
        for chunk in &sent[2..] {
            assembler.accept(chunk).unwrap();
        }
        assert!(assembler.is_complete());
    }

    #[test]
    fn foreign_chunks_are_refused_and_change_nothing() {
        let block = block(0..64);
        let codec = identity();
        let good = KvChunk::encode(&block, 4, 0..32, &codec).unwrap();
        let mut assembler = Assembler::new(block.spec().clone(), vec![codec], u64::MAX).unwrap();
        let seal = |layer, tokens, codec: &str, level, payload: &[u8]| {
            KvChunk::seal(layer, tokens, codec.to_owned(), level, payload.to_vec())
        };
        let payload = &good.payload;
        let mut refused = |chunk: &KvChunk| assembler.accept(chunk).unwrap_err();
        for (layer, tokens) in [
            (3, 0..32),
            (7, 0..32),
            (usize::MAX, 0..32),
            (4, 40..72),
            (4, 64..64),
            (4, 0..usize::MAX),
            (4, Range { start: 32, end: 0 }),
        ] {
            let chunk = seal(layer, tokens, "identity", 0, payload);
            assert!(
                matches!(refused(&chunk), ChunkError::Place { .. }),
                "{chunk:?}"
            );
        }
        let other_codec = seal(4, 0..32, "group_quant-4b-g32", 0, payload);
        assert!(matches!(refused(&other_codec), ChunkError::Codec { .. }));
        assert!(matches!(
            refused(&seal(4, 0..32, "identity", 1, payload)),
            ChunkError::Level { level: 1, .. }
        ));
        for wrong in [&payload[1..], &[payload.as_slice(), &[0]].concat(), &[]] {
            let chunk = seal(4, 0..32, "identity", 0, wrong);
            assert!(matches!(
                refused(&chunk),
                ChunkError::Coding {
                    source: CodecError::Length { .. },
                    ..
                }
            ));
        }
        let mut altered = good.clone();
        altered.tokens = 32..64;
        assert!(matches!(refused(&altered), ChunkError::Hash { .. }));
        assert_eq!(assembler.missing().len(), 3);
        assert_eq!(assembler.accept(&good), Ok(None));
        let overlap = KvChunk::encode(&block, 4, 31..64, &identity()).unwrap();
        assert!(matches!(
            assembler.accept(&overlap),
            Err(ChunkError::Duplicate { .. })
        ));
    }

    #[test]
    fn declarations_are_bounded() {
        let block = block(0..64);
        let spec = block.spec().clone();
        let exact = spec.fp16_bytes();
        assert!(Assembler::new(spec.clone(), vec![identity()], exact).is_ok());
        assert!(matches!(
            Assembler::new(spec.clone(), vec![identity()], exact - 1),
            Err(ChunkError::Bound { .. })
        ));
        let huge = BlockSpec {
            positions: 0..usize::MAX,
            ..spec
        };
        assert!(matches!(
            Assembler::new(huge, vec![identity()], u64::MAX),
            Err(ChunkError::Block(KvError::TooLarge { .. }))
        ));
    }

    #[test]
    fn missing_chunks_are_reported() {
        let block = block(0..64);
        let mut sent = all_chunks(&block, 32, &identity());
        sent.remove(3);
        let result = assemble(block.spec().clone(), vec![identity()], u64::MAX, sent);
        assert_eq!(
            result,
            Err(ChunkError::Incomplete {
                missing: 1,
                layer: 5
            })
        );
    }

    #[test]
    fn chunks_follow_the_codecs_groups() {
        let block = block(0..64);
        let codec: CodecConfig = "group_quant-4b-g32".parse().unwrap();
        for bad in [0, 8, 33] {
            assert!(matches!(
                chunks(&block, bad, &codec.build()).map(Iterator::count),
                Err(ChunkError::ChunkTokens { group: 32, .. })
            ));
        }
        for config in registry().iter().flat_map(|entry| (entry.examples)()) {
            assert!(DEFAULT_CHUNK_TOKENS.is_multiple_of(config.build().token_group()));
        }
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_refused(bit in 0_usize..32 * 2 * 32 * 4 * 8) {
            let block = block(0..32);
            let mut chunk = KvChunk::encode(&block, 4, 0..32, &identity()).unwrap();
            chunk.payload[bit / 8] ^= 1 << (bit % 8);
            let verified = chunk.verify();
            prop_assert!(matches!(verified, Err(ChunkError::Hash { .. })), "accepted");
            let mut assembler =
                Assembler::new(block.spec().clone(), vec![identity()], u64::MAX).unwrap();
            let accepted = assembler.accept(&chunk);
            prop_assert!(matches!(accepted, Err(ChunkError::Hash { .. })), "accepted");
        }

        #[test]
        fn arbitrary_chunks_never_panic(
            layer: usize,
            near in 0_usize..9,
            start in 0_usize..70,
            len in 0_usize..70,
            level in 0_u8..2,
            payload in proptest::collection::vec(any::<u8>(), 0..2048),
        ) {
            let block = block(0..64);
            let codecs: Vec<_> = registry().iter().map(|entry| entry.example().build()).collect();
            let ids: Vec<_> = codecs.iter().map(Codec::id).chain([String::new()]).collect();
            let mut assembler = Assembler::new(block.spec().clone(), codecs, u64::MAX).unwrap();
            for layer in [layer, near] {
                for id in &ids {
                    let tokens = start..start + len;
                    let chunk = KvChunk::seal(layer, tokens, id.clone(), level, payload.clone());
                    let _refused_or_not = assembler.accept(&chunk);
                }
            }
        }
    }
}
