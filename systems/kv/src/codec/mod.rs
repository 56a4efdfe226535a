//! Codecs: chains of stages between one layer's tile and the bytes that cross the link.
//!
//! The order of a chain is select, transform, quantise, entropy-code. Exactly one stage
//! quantises, that is, turns numbers into bytes. Stages before it hand it another tile,
//! stages after it work on its bytes.
//!
//! To add a stage: one file with a type that implements [`Codec`] (a stage that is not a
//! quantiser owns the codec of the rest of the chain), one `mod` line here, one variant in
//! [`StageConfig`] and one line in [`registry`]. The conformance battery, the benches and the
//! `ls` table iterate over the registry.

mod chain;
mod config;
mod group_quant;
mod identity;
mod registry;
mod tile;

#[cfg(test)]
mod conformance;

pub use chain::Chain;
pub use config::{CodecConfig, StageConfig, StageKind};
pub use group_quant::{GroupQuant, GroupQuantLayout};
pub use identity::Identity;
pub use registry::{CodecEntry, names, registry};
pub use tile::{MAX_TILE_ELEMENTS, Tile, TileMut, TileShape, TileSpec};

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
/// - `decode` never panics and fails on any byte string that has another length than an
///   encoder could have written; whether it was altered is for the chunk's hash to find out;
/// - an element differs from its original by at most [`Codec::error_bound`].
pub trait Codec: Debug + Send + Sync {
    /// The identifier that travels with every chunk, for example `group_quant-4b-g32`.
    fn id(&self) -> String;

    /// Checks that tiles of this shape can be encoded.
    ///
    /// # Errors
    /// [`CodecError::UnsupportedShape`].
    fn check_shape(&self, shape: TileShape) -> Result<(), CodecError>;

    /// Encodes a tile and appends the bytes to `out`, which is left as it was on an error.
    ///
    /// # Errors
    /// [`CodecError::UnsupportedShape`] or [`CodecError::NotFinite`].
    fn encode(&self, tile: &Tile<'_>, out: &mut Vec<u8>) -> Result<(), CodecError>;

    /// Decodes bytes into a tile of the caller's shape. On an error the tile's content is
    /// unspecified.
    ///
    /// # Errors
    /// [`CodecError::UnsupportedShape`], [`CodecError::Length`] or [`CodecError::Corrupt`].
    fn decode(&self, bytes: &[u8], tile: &mut TileMut<'_>) -> Result<(), CodecError>;

    /// Upper bound of the encoded length of a tile of this shape, in bytes.
    fn encoded_len(&self, shape: TileShape) -> usize;

    /// Bits per element for large tiles, scales and tables included.
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
}
