//! What goes into a system and what comes out of it.

use crate::timeline::PartTime;
use celslm_model::Sampling;
use serde::{Deserialize, Serialize};

/// A shared context, as the edge knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContextRef {
    /// Its id, in hex, as the cloud gave it when the context was published.
    pub context_id: String,
    /// The system message with the document. Shared, not private.
    pub system: String,
}

/// One request of a user at the edge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The context it is about.
    pub context: ContextRef,
    /// The user's message: private.
    pub user: String,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Seed of the sampler.
    pub seed: u64,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// When it was to arrive, in nanoseconds of `CLOCK_MONOTONIC` of the edge's host.
    pub scheduled_ns: u64,
    /// Longest time it may take from the moment the edge takes it up, in milliseconds.
    pub timeout_ms: u64,
    /// Earlier turns of the conversation, oldest first: what the user said and what was
    /// answered. Private.
    #[serde(default)]
    pub history: Vec<(String, String)>,
    /// Whom it is for: waiting requests of different clients take turns.
    #[serde(default)]
    pub client: u32,
}

impl Request {
    /// Bytes of private text: the user's message and the earlier turns.
    #[must_use]
    pub fn private_bytes(&self) -> u64 {
        let turns = self
            .history
            .iter()
            .map(|(user, answer)| user.len() + answer.len());
        (turns.sum::<usize>() + self.user.len()) as u64
    }
}

/// A complete answer with everything that was measured on the way.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Answer {
    /// When the edge took the request up (`CLOCK_MONOTONIC`, ns).
    pub sent_ns: u64,
    /// When each token's text became visible at the edge (`CLOCK_MONOTONIC`, ns).
    pub token_ns: Vec<u64>,
    /// When the edge knew that nothing more would come (`CLOCK_MONOTONIC`, ns): after the last
    /// token by the step in which the model ended its turn.
    pub end_ns: u64,
    /// The parts of TTFT.
    pub parts: Vec<PartTime>,
    /// Generated ids, without the end token.
    pub output_ids: Vec<u32>,
    /// Their text.
    pub output_text: String,
    /// Tokens of the shared context.
    pub context_tokens: usize,
    /// Tokens of the private rest of the prompt.
    pub prompt_tokens: usize,
    /// Message bytes sent up, gRPC frames included.
    pub uplink_payload_bytes: u64,
    /// Message bytes received, gRPC frames included.
    pub downlink_payload_bytes: u64,
    /// What the KV that was fetched takes in fp16.
    pub kv_fp16_bytes: u64,
    /// Encoded chunk payloads received, tables and scales included.
    pub kv_payload_bytes: u64,
    /// Bytes of the user's text, or of anything computed from it, that left the edge.
    pub private_uplink_bytes: u64,
    /// Tokens times layers that the edge ran itself before the first token.
    pub edge_prefill_token_layers: u64,
    /// KV bytes held at the edge for this request at its end.
    pub edge_kv_bytes: u64,
    /// Whether the number of tokens, or some of their times, is deduced from pieces of text that
    /// a foreign server sent.
    #[serde(default)]
    pub tokens_estimated: bool,
    /// Whether the context's KV was in the edge's cache.
    pub edge_cache_hit: bool,
    /// Whether the cloud had the context's KV in the form asked for.
    pub cloud_store_hit: bool,
}

/// Why a request failed: becomes a row, never a missing row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct SystemError {
    /// A short, stable name for grouping.
    pub kind: String,
    /// What happened.
    pub message: String,
}

impl SystemError {
    /// An error of the given kind.
    pub fn new(kind: &str, message: impl std::fmt::Display) -> Self {
        Self {
            kind: kind.to_owned(),
            message: message.to_string(),
        }
    }
}

impl From<celslm_model::ModelError> for SystemError {
    fn from(error: celslm_model::ModelError) -> Self {
        Self::new("model", format!("failed to {error}"))
    }
}

impl From<celslm_wire::WireError> for SystemError {
    fn from(error: celslm_wire::WireError) -> Self {
        let mut message = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        Self::new(error.kind(), message)
    }
}
