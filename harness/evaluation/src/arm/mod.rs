//! Arms: what an edge holds of a context in the end, one file for each way to get there.

mod coded;
mod other;

pub use coded::Coded;
pub use other::{NoContext, WrongContext};

use std::fmt::Debug;
use std::sync::Arc;

use celslm_kv::LayerKv;
use celslm_model::KvPrefix;
use celslm_reports::evaluation::BytePart;

use crate::{Case, EvaluationError, Evaluator};

/// A way to get a context's KV to the edge, or a control.
pub trait Arm: Debug {
    /// What the questions are answered from.
    ///
    /// # Errors
    /// What the arm refuses, and failures of the model.
    fn serve(&self, evaluator: &Evaluator<'_>, case: &Case<'_>) -> Result<Served, EvaluationError>;
}

/// What an edge holds, and what it took to get there.
pub struct Served {
    /// What attention reads.
    pub prefix: Arc<KvPrefix>,
    /// The same before RoPE, where it is to be compared with the exact KV.
    pub decoded: Option<Decoded>,
    /// Encoded bytes.
    pub payload_bytes: u64,
    /// Bytes of the messages that carry them.
    pub message_bytes: u64,
    /// What the payload bytes are spent on.
    pub parts: Vec<BytePart>,
    /// Time to encode on one thread, ns.
    pub encode_ns: u64,
    /// Time to decode on one thread, ns.
    pub decode_ns: u64,
}

/// Decoded pre-RoPE KV by layer, with the positions that each layer lacks.
pub struct Decoded {
    /// `[num_kv_heads, tokens, head_dim]`, zero at dropped positions.
    pub layers: Vec<LayerKv>,
    /// Positions, ascending.
    pub dropped: Vec<Vec<usize>>,
}

impl Served {
    /// The context's own KV, of which nothing is sent.
    #[must_use]
    pub fn own(case: &Case<'_>) -> Self {
        Self::unsent(case.prefix().clone())
    }

    /// KV that was not sent.
    #[must_use]
    pub const fn unsent(prefix: Arc<KvPrefix>) -> Self {
        Self {
            prefix,
            decoded: None,
            payload_bytes: 0,
            message_bytes: 0,
            parts: Vec::new(),
            encode_ns: 0,
            decode_ns: 0,
        }
    }
}
