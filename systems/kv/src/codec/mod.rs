//! Codecs: chains of stages between one layer's tile and the bytes that cross the link.
//!
//! The order of a chain is select, transform, quantise, entropy-code. Exactly one stage
//! quantises, that is, turns numbers into bytes or into integers. Stages before it hand it
//! another tile, stages after it work on what it writes:
//!
//! - `select/`: which tokens the rest of the chain sees; what was dropped is stated by the
//!   decoded tile ([`Held`]);
//! - `transform/`: other coordinates, some of them fitted beforehand ([`CodecContext`]);
//! - `quantise/`: bytes, or integers with a width for each channel;
//! - `entropy/`: coders of these integers (directly behind the quantiser), and of bytes.
//!
//! Published methods are chains with a name: [`presets`].
//!
//! To add a stage: one file with a type that holds its parameters and one that implements
//! [`Codec`] around the rest of the chain (or the folder's own trait), its `mod` line, one
//! variant in [`StageConfig`] with its line in the table there, its arm in `chain.rs` and one
//! line in [`registry`]. The conformance battery, the benches and the `ls` table iterate over
//! the registry.

mod artefact;
mod chain;
mod config;
pub(crate) mod dot;
mod draw;
mod entropy;
mod explain;
mod fit;
mod frame;
mod matrix;
mod presets;
mod quantise;
mod registry;
pub mod scores;
mod select;
mod tile;
mod transform;
mod vector;

#[cfg(test)]
mod conformance;

pub use artefact::{
    ArtefactError, ArtefactId, ArtefactManifest, CodecArtefact, CodecContext, MAX_ARTEFACT_BYTES,
};
pub use chain::Chain;
pub use config::{CodecConfig, StageConfig, StageKind};
pub use entropy::{Adaptive, Context, Tables, Zstd};
pub use explain::{ByteCount, Explanation};
pub use fit::{ArtefactFitter, ArtefactOptions};
pub use presets::{Family, Preset, families, presets, sweep};
pub use quantise::{
    Allocated, Allocation, Bins, GroupQuant, GroupQuantLayout, Identity, LloydMax, Progressive,
    Step, Vectorwise,
};
pub use registry::{CodecEntry, names, registry};
pub use scores::TokenScores;
pub use select::{Exact, Knorm, Prefix, Random, Scored, ScoredBy, Streaming};
pub use tile::{Beside, Held, MAX_TILE_ELEMENTS, Prior, Tile, TileMut, TileShape, TileSpec};
pub use transform::{AnchorDelta, Centre, Hadamard, Merge, Outliers, Pca, PcaBasis, Svd};

use std::fmt::Debug;

/// Why a tile could not be encoded or bytes could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The name of no stage.
    #[error("no codec stage is called {name:?}; known are {}", known.join(", "))]
    UnknownStage {
        /// What was asked for.
        name: String,
        /// What exists.
        known: Vec<&'static str>,
    },
    /// The name of no family of chains.
    #[error("no family of codecs is called {name:?}; known are {}", known.join(", "))]
    UnknownFamily {
        /// What was asked for.
        name: String,
        /// What exists.
        known: Vec<&'static str>,
    },
    /// A codec id that cannot be read.
    #[error("codec id {id:?} cannot be read: {reason}")]
    Id {
        /// The id, cut to 80 characters.
        id: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A parameter outside its range.
    #[error("{stage}: {parameter} = {value} is not possible, use {allowed}")]
    Parameter {
        /// Stage name.
        stage: &'static str,
        /// Parameter name.
        parameter: &'static str,
        /// Given value.
        value: usize,
        /// What is allowed.
        allowed: &'static str,
    },
    /// The stages do not form a chain.
    #[error("the stages {id} are no chain: {reason}")]
    Order {
        /// The stages in the order given.
        id: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A tile with a zero dimension or more elements than [`MAX_TILE_ELEMENTS`].
    #[error(
        "a tile of {num_kv_heads} heads x {tokens} tokens x {head_dim} channels is empty or too large"
    )]
    TileShape {
        /// Heads.
        num_kv_heads: usize,
        /// Tokens.
        tokens: usize,
        /// Channels per head.
        head_dim: usize,
    },
    /// A buffer that does not hold `num_kv_heads * tokens * head_dim` elements.
    #[error("the tile's {side} hold {found} elements, its shape needs {expected}")]
    TileLength {
        /// `keys` or `values`.
        side: &'static str,
        /// Elements needed.
        expected: usize,
        /// Elements given.
        found: usize,
    },
    /// The codec cannot work on this shape.
    #[error("{codec} cannot encode this shape: {reason}")]
    UnsupportedShape {
        /// Codec id.
        codec: String,
        /// Why, and what would work.
        reason: String,
    },
    /// A NaN or an infinity where the codec needs finite numbers.
    #[error("the tile's {side} hold a NaN or an infinity, which {codec} cannot represent")]
    NotFinite {
        /// Codec id.
        codec: String,
        /// `keys` or `values`.
        side: &'static str,
    },
    /// Bytes of the wrong length.
    #[error("{codec}: found {found} bytes where the tile's shape needs {expected}")]
    Length {
        /// Codec id.
        codec: String,
        /// Bytes that follow from the shape.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// A selection that needs scores of the context's tokens, and has none.
    #[error("{codec}: no scores of layer {layer}'s tokens were given")]
    Scores {
        /// Codec id.
        codec: &'static str,
        /// Absolute layer index.
        layer: usize,
    },
    /// A stage that needs a fitted artefact, and has none or another one.
    #[error("{codec}: {reason}")]
    Artefact {
        /// Codec id.
        codec: String,
        /// What is missing or does not suit.
        reason: String,
    },
    /// Bytes that no encoder writes.
    #[error("{codec}: {reason}")]
    Corrupt {
        /// Codec id.
        codec: String,
        /// What is wrong with them.
        reason: String,
    },
}

/// Turns one layer's tile into bytes and back.
///
/// Both directions work on plain slices of shape `[num_kv_heads, tokens, head_dim]`. The
/// shape is never part of the bytes: the receiver states it, so that foreign bytes cannot
/// make it allocate. Keys are pre-RoPE.
///
/// Promises that the conformance battery checks for every registered codec:
/// - `encode` appends at most [`Codec::encoded_len`] bytes, exactly the bytes that count as sent;
/// - `decode` never panics, allocates no more than follows from the shape, and fails on any byte
///   string that has another length than an encoder could have written (unless it
///   [decodes prefixes](Codec::decodes_prefixes)); whether it was altered is for the chunk's hash
///   to find out;
/// - an element that is [held](TileMut::held) differs from its original by at most
///   [`Codec::error_bound`], and is finite where the original was.
pub trait Codec: Debug + Send + Sync {
    /// The identifier that travels with every chunk, for example `group_quant-4b-g32`.
    fn id(&self) -> String;

    /// Checks that tiles of this shape can be encoded.
    ///
    /// # Errors
    /// [`CodecError::UnsupportedShape`], or [`CodecError::Artefact`] for a stage that lacks its
    /// artefact.
    fn check_shape(&self, shape: TileShape) -> Result<(), CodecError>;

    /// Encodes a tile and appends the bytes to `out`, which is left as it was on an error.
    ///
    /// # Errors
    /// [`CodecError::UnsupportedShape`], [`CodecError::NotFinite`], [`CodecError::Scores`] or
    /// [`CodecError::Artefact`].
    fn encode(&self, tile: &Tile<'_>, out: &mut Vec<u8>) -> Result<(), CodecError>;

    /// Decodes bytes into a tile of the caller's shape, which states afterwards which of its
    /// tokens it holds; the rows of others are zero. On an error the tile's content is
    /// unspecified.
    ///
    /// # Errors
    /// [`CodecError::UnsupportedShape`], [`CodecError::Length`], [`CodecError::Corrupt`] or
    /// [`CodecError::Artefact`].
    fn decode(&self, bytes: &[u8], tile: &mut TileMut<'_>) -> Result<(), CodecError>;

    /// Upper bound of the encoded length of a tile of this shape, in bytes, wherever it stands.
    fn encoded_len(&self, shape: TileShape) -> usize;

    /// Bits per element that follow from the settings alone, scales and tables included: what a
    /// tile of 256 tokens without exact or dropped tokens takes at most. An entropy stage needs
    /// fewer, which only coding shows.
    fn nominal_bits(&self) -> f64;

    /// The number of tokens that share side information: chunks are cut at its multiples, so
    /// that cutting costs nothing.
    fn token_group(&self) -> usize {
        1
    }

    /// The largest absolute error of an element whose quantisation group spans `min..=max`;
    /// grows with the span, so the range of a whole tile is a valid, looser input. `None` for
    /// a codec that drops information without such a bound.
    fn error_bound(&self, min: f32, max: f32) -> Option<f32>;

    /// How many decoded layers below the tile's the codec looks at ([`Beside::prior`]); a chunk
    /// can be decoded only after those of the same tokens. Fewer are given to the first layers.
    fn prior_layers(&self) -> usize {
        0
    }

    /// Whether the encoder has use for the layer above, which only the sender has
    /// ([`Tile::above`]).
    fn looks_above(&self) -> bool {
        false
    }

    /// Whether every prefix of a payload decodes, the longer the better.
    fn decodes_prefixes(&self) -> bool {
        false
    }
}
