//! The cloud model's KV or hidden states of the context, mapped into the edge model's space.

use std::borrow::Cow;
use std::sync::Arc;

use celslm_kv::align::Sources;
use celslm_kv::{Bridge, KvBlock, SourceKind};
use celslm_model::LoadedModel;

use super::{Arm, Served, own_start};
use crate::{Case, EvaluationError, Evaluator, framing};

/// The edge computes the context's first layers itself, and its first tokens in all layers; the
/// rest is the cloud's, through a bridge. With no layer of its own and no sinks, the edge has
/// computed nothing of the context.
///
/// Where the two models have other tokens, the cloud's rows are first brought to the edge's, which
/// counts as a part of mapping.
///
/// Mapping is the cloud's work, and so is the edge model's own KV where a bridge adds to it. What
/// crosses the link is counted as fp16: the mapped layers without the sinks. Where a bridge reads
/// nothing of the cloud's (own KV mapped onto itself, or behind a tuned prefix) nothing crosses it, and
/// the edge has computed all of it.
#[derive(Debug, Clone)]
pub struct Mapped {
    /// The fitted map.
    pub bridge: Arc<Bridge>,
    /// First tokens whose keys and values are the edge's own: attention sinks, which no map hits. None
    /// where the bridge holds the KV of as many.
    pub sinks: usize,
    /// Layers that the edge computes itself.
    pub shallow_layers: usize,
    /// Whether the edge's own KV is mapped in place of the cloud's: the control, which is made alike
    /// and knows nothing of what the cloud's model makes of the context.
    pub own_kv: bool,
}

impl Arm for Mapped {
    fn serve(&self, evaluator: &Evaluator<'_>, case: &Case<'_>) -> Result<Served, EvaluationError> {
        let own = case.block();
        let num_layers = own.shape().num_layers;
        let shallow = self.shallow_layers.min(num_layers);
        let known = self.bridge.known_tokens(case.tokens());
        let sinks = if self.sinks > known { self.sinks } else { 0 };
        let alone = self.own_kv || self.bridge.parts().is_empty();
        // Whoever tuned the first tokens tuned them in all layers together.
        let mut layers = match shallow {
            0 => Vec::new(),
            _ => {
                let below = own.slice_layers(0..shallow)?;
                let below = self.bridge.behind_first_tokens(below, case.tokens())?;
                below.into_layers()
            }
        };
        let mut elapsed = 0;
        if shallow < num_layers {
            let spans = |model| framing::document_spans(model, case.document());
            // A self control of a bridge that reads hidden states reads the edge's.
            let states = match alone && self.bridge.reads() == SourceKind::States {
                true => Some(prefill_states(evaluator.model, case.tokens())?),
                false => None,
            };
            let read = match alone {
                true => None,
                false => {
                    let (_, source) = case.read(evaluator, self.bridge.reads())?;
                    Some((spans(evaluator.cloud()?)?, spans(evaluator.model)?, source))
                }
            };
            let start = (evaluator.settings.now_ns)();
            let source = match &read {
                Some((cloud, edge, source)) => self.bridge.tokens().aligned(cloud, edge, source)?,
                None => Cow::Borrowed(states.as_ref().unwrap_or(own)),
            };
            let from = Sources {
                source: &source,
                own: self.bridge.reads_own().then_some(own),
                tokens: case.tokens(),
            };
            let mapped = self.bridge.map_layers(from, shallow..num_layers)?;
            elapsed = (evaluator.settings.now_ns)().saturating_sub(start);
            let below = own.layers()[shallow..].iter();
            layers.extend(
                mapped
                    .layers()
                    .iter()
                    .zip(below)
                    .map(|(mapped, own)| own_start(mapped, own, case.block().spec(), sinks)),
            );
        }
        let tokens = case.tokens().len();
        let sent = match alone {
            true => 0,
            false => tokens.saturating_sub(sinks) * (num_layers - shallow),
        };
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

fn prefill_states(model: &LoadedModel, tokens: &[u32]) -> Result<KvBlock, EvaluationError> {
    let states = model.decoder.context_states(tokens, || true)?;
    states.ok_or_else(|| EvaluationError::Arm("the prefill was stopped".to_owned()))
}
