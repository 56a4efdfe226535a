//! Arms: what an edge holds of a context in the end, one file for each way to get there.

mod blank;
mod cloud;
mod coded;
mod distilled;
mod mapped;
mod notes_kv;
mod notes_local;
mod other;
mod text_handoff;

pub use blank::{RandomKv, ZeroKv};
pub use cloud::CloudAlone;
pub use coded::Coded;
pub(crate) use distilled::Lessons;
pub use distilled::{Distilled, Studied, Teacher};
pub use mapped::Mapped;
pub use notes_kv::NotesKv;
pub use notes_local::NotesLocal;
pub use other::{NoContext, WrongContext};
pub use text_handoff::TextHandoff;

use std::fmt::Debug;
use std::sync::Arc;

use celslm_kv::{BlockSpec, KvBlock, LayerKv};
use celslm_model::{KvPrefix, LoadedModel};
use celslm_reports::evaluation::{BytePart, QuestionRow};
use half::f16;

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
    /// Tokens times layers of what stands for the context that the edge computed itself.
    pub edge_token_layers: usize,
    /// Time to encode on one thread, ns.
    pub encode_ns: u64,
    /// Time to decode on one thread, ns.
    pub decode_ns: u64,
    /// The answers, where the arm has them itself: the reference, and arms in which another model
    /// answers.
    pub answered: Option<Vec<QuestionRow>>,
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
        Self {
            answered: Some(case.reference_rows()),
            ..Self::computed(case.prefix().clone())
        }
    }

    /// Layers of all the context's tokens, pre-RoPE; what crossed the link for them is for the arm
    /// to say.
    ///
    /// # Errors
    /// Layers of another shape.
    pub fn of_layers(
        evaluator: &Evaluator<'_>,
        case: &Case<'_>,
        layers: Vec<LayerKv>,
    ) -> Result<Self, EvaluationError> {
        let block = KvBlock::from_spec(case.block().spec().clone(), layers)?;
        let prefix = KvPrefix::from_block(&block, evaluator.model.decoder.rope())?;
        Ok(Self {
            decoded: Some(Decoded {
                dropped: vec![Vec::new(); block.layers().len()],
                layers: block.into_layers(),
            }),
            ..Self::unsent(Arc::new(prefix))
        })
    }

    /// KV that the edge computed itself.
    #[must_use]
    pub fn computed(prefix: Arc<KvPrefix>) -> Self {
        let layers = (0..).map_while(|layer| prefix.held(layer));
        Self {
            edge_token_layers: layers.sum(),
            ..Self::unsent(prefix)
        }
    }

    /// KV that was not sent, and that the edge did not compute either.
    #[must_use]
    pub const fn unsent(prefix: Arc<KvPrefix>) -> Self {
        Self {
            prefix,
            decoded: None,
            payload_bytes: 0,
            message_bytes: 0,
            parts: Vec::new(),
            edge_token_layers: 0,
            encode_ns: 0,
            decode_ns: 0,
            answered: None,
        }
    }
}

/// Tokens read by a model, ready for attention.
pub(crate) fn prefilled(
    model: &LoadedModel,
    tokens: &[u32],
) -> Result<Arc<KvPrefix>, EvaluationError> {
    let block = prefill(model, tokens)?;
    Ok(Arc::new(KvPrefix::from_block(
        &block,
        model.decoder.rope(),
    )?))
}

/// Tokens read by a model.
fn prefill(model: &LoadedModel, tokens: &[u32]) -> Result<KvBlock, EvaluationError> {
    let block = model.decoder.context_kv(tokens, || true)?;
    block.ok_or_else(|| EvaluationError::Arm("the prefill was stopped".to_owned()))
}

/// A layer whose first `tokens` tokens are those of `own`.
fn own_start(other: &LayerKv, own: &LayerKv, spec: &BlockSpec, tokens: usize) -> LayerKv {
    let (all, head_dim) = (spec.num_tokens(), spec.shape.head_dim);
    let taken = tokens.min(all) * head_dim;
    let side = |other: &[f16], own: &[f16]| -> Vec<f16> {
        let heads = other.chunks_exact(all * head_dim);
        heads
            .zip(own.chunks_exact(all * head_dim))
            .flat_map(|(other, own)| own[..taken].iter().chain(&other[taken..]))
            .copied()
            .collect()
    };
    LayerKv {
        k: side(&other.k, &own.k),
        v: side(&other.v, &own.v),
    }
}
