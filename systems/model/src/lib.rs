//! Decoders with an open KV cache, GGUF loading, tokenizer and model store. The only crate
//! that knows candle: everything that leaves it is a plain slice, a [`celslm_kv`] type or
//! the opaque [`Hidden`].
//!
//! The forward pass is open too: [`Decoder::embed`], [`Decoder::forward_layer`] and
//! [`Decoder::logits`] are separate calls, because a schedule may have to wait for the KV of
//! a layer between two of them.

mod cache;
mod chat;
mod config;
mod decoder;
mod error;
mod families;
mod frozen;
mod gguf;
mod kernel;
mod loaded;
mod rope;
mod sampling;
mod scores;
pub mod store;
pub mod synthetic;
mod tokenizer;

pub use cache::{KeyRetention, KvCache, KvPrefix};
pub use chat::{ChatTemplate, RenderedContext, SplitPrompt};
pub use config::Config;
pub use decoder::{BatchItem, Decoder, Hidden, Logits, Observed, PREFILL_CHUNK};
pub use error::ModelError;
pub use families::{Family, families};
pub use frozen::FrozenMatrix;
pub use gguf::GgufFile;
pub use kernel::rows::exp;
pub use loaded::LoadedModel;
pub use rope::{RopeStyle, RotaryEmbedding};
pub use sampling::{Sampler, Sampling};
pub use tokenizer::{TextStream, Tokenizer};

/// Sets the number of compute threads of this process. Call it once, first thing in `main`:
/// threads that spin on shared cores disturb what is measured beside them.
///
/// # Errors
/// [`ModelError::Threads`] when the threads were started already.
pub fn set_threads(threads: usize) -> Result<(), ModelError> {
    let threads = threads.max(1);
    if !kernel::pool::set_threads(threads) {
        return Err(ModelError::Threads(
            "the compute threads run already".to_owned(),
        ));
    }
    // Hashing of model files runs on this one.
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("hash-{index}"))
        .build_global()
        .map_err(|error| ModelError::Threads(error.to_string()))
}
