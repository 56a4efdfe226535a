//! KV blocks, the codec registry, alignment and mapping on plain slices: no candle, no tokio.
//!
//! - [`block`]: [`KvBlock`], the keys and values of a run of tokens and layers, always fp16.
//! - [`ident`]: what a block belongs to ([`ModelFingerprint`], [`ContextId`]).
//! - [`codec`]: chains of stages that turn one layer's tile into bytes and back.
//! - [`chunk`]: [`KvChunk`], one encoded tile with its hash, and the [`Assembler`] that puts
//!   tiles from an untrusted peer together again.
//! - [`align`]: which source layers feed which target layer, and the fitted [`Bridge`] that
//!   maps one model's KV into another's.
//! - [`store`]: [`KvStore`], a bounded cache of blocks by context.
//!
//! Layout everywhere: `[num_kv_heads, tokens, head_dim]`, row-major, batch size one.

pub mod align;
pub mod block;
pub mod chunk;
pub mod codec;
mod file;
pub mod ident;
pub mod store;

pub use align::{
    AlignError, AlignmentConfig, Bridge, BridgeEnd, BridgeError, BridgeFitter, MappingConfig,
    SourceKind,
};
pub use block::{BlockSpec, KeyRope, KvBlock, KvError, KvShape, LayerKv};
pub use chunk::{Assembler, ChunkEncoder, ChunkError, KvChunk};
pub use codec::{Chain, Codec, CodecConfig, CodecError};
pub use ident::{ContextId, HexError, ModelFingerprint};
pub use store::{KvStore, StoreError, StoreStats};
