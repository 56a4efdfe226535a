//! Why an evaluation cannot go on.

use celslm_kv::{AlignError, ChunkError, KvError};
use celslm_model::ModelError;
use celslm_training::TrainingError;

/// Why one arm could not be evaluated on one context.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvaluationError {
    /// The model refused.
    #[error("run the model")]
    Model(#[from] ModelError),
    /// Chunks could not be made or read.
    #[error("encode and decode the KV")]
    Chunk(#[from] ChunkError),
    /// KV that a bridge cannot map.
    #[error("map the KV")]
    Align(#[from] AlignError),
    /// KV that cannot be tuned.
    #[error("tune the KV")]
    Training(#[from] TrainingError),
    /// KV of the wrong shape.
    #[error("put the KV together")]
    Kv(#[from] KvError),
    /// A chunk that the protocol cannot carry.
    #[error("size the messages: {0}")]
    Message(String),
    /// What an arm cannot do here.
    #[error("{0}")]
    Arm(String),
}
