//! What can go wrong between a model file and a token.

use std::path::PathBuf;

/// Errors of loading and running a model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file cannot be opened or mapped.
    #[error("read the model file {path}: {source}")]
    Io {
        /// The model file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The file is not a GGUF file, or is cut short or damaged.
    #[error("parse {path} as GGUF: {reason}; check it with `celslm models verify`")]
    Gguf {
        /// The model file.
        path: PathBuf,
        /// The first inconsistency found.
        reason: String,
    },
    /// The file parses but lacks something that its architecture needs.
    #[error("load {path}: {reason}")]
    Incomplete {
        /// The model file.
        path: PathBuf,
        /// What is missing or inconsistent.
        reason: String,
    },
    /// No decoder is registered for the file's architecture.
    #[error("load a model of architecture {found:?}: the known ones are {known}")]
    UnknownArchitecture {
        /// `general.architecture` of the file.
        found: String,
        /// The registered families.
        known: String,
    },
    /// The tokenizer or the chat template of the file is unusable.
    #[error("use the tokenizer of {path}: {reason}")]
    Tokenizer {
        /// The model file.
        path: PathBuf,
        /// What the tokenizer or template engine said.
        reason: String,
    },
    /// A sequence would not fit into the cache or the model's context window.
    #[error("hold {wanted} tokens: the limit is {limit} ({what})")]
    TooLong {
        /// Tokens that were to be held.
        wanted: usize,
        /// Tokens that fit.
        limit: usize,
        /// Which limit it is.
        what: &'static str,
    },
    /// The memory for the weights cannot be had.
    #[error("get memory for the weights: {0}")]
    Memory(#[source] std::io::Error),
    /// KV that does not fit the model or the cache.
    #[error("import KV: {0}")]
    Kv(String),
    /// The compute threads are running already.
    #[error("set the number of compute threads: {0}")]
    Threads(String),
    /// A tensor operation failed; this is a defect of this crate or of the file's shapes.
    #[error("compute: {0}")]
    Compute(#[from] candle_core::Error),
}
