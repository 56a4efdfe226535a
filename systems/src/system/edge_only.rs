//! The edge alone: the small model prefills context and prompt and decodes.
//!
//! It needs no link and leaks nothing; it loses where contexts are long and the edge is slow,
//! and it answers no better than its model.

use super::System;
use crate::answer::{Answer, ContextRef, Request, SystemError};
use crate::edge::{EdgeNode, cache_key};
use crate::engine::{ContextOutput, ContextReady, ContextRequest, SessionContext};
use crate::spec::KvPath;
use crate::timeline::{Part, Timeline};

pub(super) struct EdgeOnly;

/// The edge's cache keeps what it computed itself under this variant.
const VARIANT: &str = "local";

/// Prefills a context, together with everyone else who needs it now.
fn prefill(
    edge: &EdgeNode,
    context: &ContextRef,
    client: u32,
    tokens: Vec<u32>,
    deadline_ns: u64,
) -> Result<ContextReady, SystemError> {
    edge.engine()
        .context(ContextRequest {
            key: cache_key(context, VARIANT),
            client,
            tokens,
            output: ContextOutput::Prefix,
            deadline_ns,
        })?
        .wait()
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
            let ready = prefill(edge, context, 0, tokens, deadline_ns)?;
            edge.keep(context, VARIANT, ready.into_prefix()?)?;
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
                let ready = prefill(edge, &request.context, request.client, tokens, deadline_ns)?;
                let queued = (Part::Queue, ready.times.queued_ns);
                timeline.lap_split(&[queued], Part::EdgePrefill);
                let computed = ready.computed;
                let prefix = ready.into_prefix()?;
                // One that is too large for the cache is computed again.
                let _ = edge.keep(&request.context, VARIANT, prefix.clone());
                let computed = if computed { prefix.len() } else { 0 };
                (prefix, computed)
            }
        };
        let num_layers = model.decoder.config().num_hidden_layers;
        let answer = Answer {
            context_tokens: prefix.len(),
            prompt_tokens: prompt.len(),
            edge_prefill_token_layers: ((computed + prompt.len()) * num_layers) as u64,
            edge_cache_hit,
            ..Answer::default()
        };
        let session = edge.submit(request, prompt, SessionContext::Ready(prefix), deadline_ns)?;
        edge.collect(session, timeline, None, answer)
    }
}
