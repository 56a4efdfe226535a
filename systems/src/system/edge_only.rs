//! The edge alone: the small model prefills context and prompt and decodes.
//!
//! It needs no link and leaks nothing; it loses where contexts are long and the edge is slow,
//! and it answers no better than its model.

use super::System;
use crate::answer::{Answer, ContextRef, Request, SystemError};
use crate::clock::now_ns;
use crate::edge::EdgeNode;
use crate::spec::KvPath;
use crate::timeline::{Part, Timeline};
use celslm_model::{KeyRetention, KvCache, KvPrefix};
use std::sync::Arc;

pub(super) struct EdgeOnly;

/// The edge's cache keeps what it computed itself under this variant.
const VARIANT: &str = "local";

impl EdgeOnly {
    fn prefill(
        &self,
        edge: &EdgeNode,
        tokens: &[u32],
        deadline_ns: u64,
    ) -> Result<Arc<KvPrefix>, SystemError> {
        let decoder = &edge.model().decoder;
        let mut cache = KvCache::new(
            decoder.kv_shape(),
            None,
            tokens.len(),
            KeyRetention::RotatedOnly,
        )?;
        if !decoder.prefill(tokens, &mut cache, || now_ns() <= deadline_ns)? {
            return Err(SystemError::new("deadline", "the request's time is up"));
        }
        Ok(Arc::new(cache.freeze()?))
    }
}

impl System for EdgeOnly {
    fn warm(
        &self,
        edge: &EdgeNode,
        _kv: Option<&KvPath>,
        context: &ContextRef,
        deadline_ns: u64,
    ) -> Result<(), SystemError> {
        if edge.cached(context, VARIANT).is_none() {
            let tokens = edge.model().context_tokens(&context.system)?;
            let prefix = self.prefill(edge, &tokens, deadline_ns)?;
            edge.keep(context, VARIANT, prefix)?;
        }
        Ok(())
    }

    fn answer(
        &self,
        edge: &EdgeNode,
        _kv: Option<&KvPath>,
        request: &Request,
        mut timeline: Timeline,
        deadline_ns: u64,
    ) -> Result<Answer, SystemError> {
        let model = edge.model();
        let prompt =
            model.conversation_tokens(&request.context.system, &request.history, &request.user)?;
        let cached = edge.cached(&request.context, VARIANT);
        let edge_cache_hit = cached.is_some();
        let (prefix, computed) = match cached {
            Some(prefix) => {
                timeline.lap(Part::Tokenise);
                (prefix, 0)
            }
            None => {
                let tokens = model.context_tokens(&request.context.system)?;
                timeline.lap(Part::Tokenise);
                (self.prefill(edge, &tokens, deadline_ns)?, tokens.len())
            }
        };
        let context_tokens = prefix.len();
        let mut cache = edge.session_cache(Some(prefix), prompt.len(), request)?;
        let hidden = model.decoder.forward(&prompt, &mut cache)?;
        timeline.lap(Part::EdgePrefill);
        let num_layers = model.decoder.config().num_hidden_layers;
        let answer = Answer {
            context_tokens,
            prompt_tokens: prompt.len(),
            edge_prefill_token_layers: ((computed + prompt.len()) * num_layers) as u64,
            edge_cache_hit,
            ..Answer::default()
        };
        edge.decode(&mut cache, hidden, request, timeline, deadline_ns, answer)
    }
}
