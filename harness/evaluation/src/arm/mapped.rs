//! The cloud model's KV or hidden states of the context, mapped into the edge model's space.

use std::sync::Arc;

use celslm_kv::Bridge;

use super::{Arm, Served, own_start};
use crate::{Case, EvaluationError, Evaluator};

/// The edge computes the context's first layers itself, and its first tokens in all layers; the
/// rest is the cloud's, through a bridge. With no layer of its own and no sinks, the edge has
/// computed nothing of the context.
///
/// What crosses the link is counted as fp16: the mapped layers without the sinks.
#[derive(Debug, Clone)]
pub struct Mapped {
    /// The fitted map.
    pub bridge: Arc<Bridge>,
    /// First tokens whose keys and values are the edge's own: attention sinks, which no map hits.
    pub sinks: usize,
    /// Layers that the edge computes itself.
    pub shallow_layers: usize,
}

impl Arm for Mapped {
    fn serve(&self, evaluator: &Evaluator<'_>, case: &Case<'_>) -> Result<Served, EvaluationError> {
        let own = case.block();
        let num_layers = own.shape().num_layers;
        let shallow = self.shallow_layers.min(num_layers);
        let mut layers = own.layers()[..shallow].to_vec();
        let mut elapsed = 0;
        if shallow < num_layers {
            let (tokens, source) = case.read(evaluator, self.bridge.reads())?;
            if tokens != case.tokens() {
                return Err(EvaluationError::Arm(
                    "the two models do not share a tokenizer: a bridge maps the KV of the same \
                     tokens"
                        .to_owned(),
                ));
            }
            let start = (evaluator.settings.now_ns)();
            let mapped = self.bridge.map_layers(source, shallow..num_layers)?;
            elapsed = (evaluator.settings.now_ns)().saturating_sub(start);
            let below = own.layers()[shallow..].iter();
            layers.extend(
                mapped
                    .layers()
                    .iter()
                    .zip(below)
                    .map(|(mapped, own)| own_start(mapped, own, case.block().spec(), self.sinks)),
            );
        }
        let tokens = case.tokens().len();
        let sent = tokens.saturating_sub(self.sinks) * (num_layers - shallow);
        let bytes = own.shape().fp16_bytes(sent) / num_layers as u64;
        let served = Served::of_layers(evaluator, case, layers)?;
        Ok(Served {
            payload_bytes: bytes,
            message_bytes: bytes,
            edge_token_layers: tokens * num_layers - sent,
            encode_ns: elapsed,
            ..served
        })
    }
}
