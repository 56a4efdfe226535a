//! The cloud alone, behind an existing serving engine: the private prompt goes up to a server
//! with the OpenAI API (vLLM, llama.cpp, a cluster), and tokens stream down.
//!
//! What [`cloud_only`](super::cloud_only) is with this project's engine. The server applies its
//! own model's chat template, and whether it reuses a context's KV is its own business: priming
//! sends the context once with one token to generate, which a server with prefix caching keeps,
//! and there is no way to empty such a cache, so that no cell of this system may be cold.
//!
//! Of TTFT it is known when the response began and when the first delta came: up to the first
//! lies in `request` (the way there, and whatever the server does before it responds), from
//! there on in `cloud_compute` (its queue, its prefill and first step, and the delta's way).
//! vLLM and llama.cpp respond before they compute; of a server that responds with its first
//! token, all is in `request`.

use super::System;
use crate::answer::{Answer, ContextRef, Request, SystemError};
use crate::clock::now_ns;
use crate::edge::EdgeNode;
use crate::openai::{
    ApiError, ChatEvent, ChatRequest, Message, Role, TokenTimes, Usage, token_times,
};
use crate::spec::KvPath;
use crate::timeline::{Part, Timeline};
use celslm_model::Sampling;
use std::time::Duration;

pub(super) struct CloudApi;

/// Asked after the context when it is primed: some templates refuse an empty message.
const PRIMING_QUESTION: &str = "?";

impl System for CloudApi {
    fn prime(
        &self,
        edge: &EdgeNode,
        context: &ContextRef,
        deadline_ns: u64,
    ) -> Result<(), SystemError> {
        let serving = edge.serving()?;
        let request = ChatRequest {
            messages: messages(&context.system, &[], PRIMING_QUESTION),
            sampling: Sampling::Greedy,
            seed: 0,
            max_tokens: 1,
        };
        edge.runtime().block_on(async {
            let mut stream = serving.client().chat(&request, left(deadline_ns)).await?;
            while stream.next().await?.is_some() {}
            Ok(())
        })
    }

    fn warm(
        &self,
        edge: &EdgeNode,
        _kv: Option<&KvPath>,
        context: &ContextRef,
        deadline_ns: u64,
    ) -> Result<(), SystemError> {
        // Nothing is kept at the edge: warm is primed.
        self.prime(edge, context, deadline_ns)
    }

    fn answer(
        &self,
        edge: &EdgeNode,
        _kv: Option<&KvPath>,
        request: &Request,
        mut timeline: Timeline,
        deadline_ns: u64,
    ) -> Result<Answer, SystemError> {
        let serving = edge.serving()?;
        let call = ChatRequest {
            messages: messages(&request.context.system, &request.history, &request.user),
            sampling: request.sampling,
            seed: request.seed,
            max_tokens: request.max_tokens,
        };
        let mut answer = Answer {
            sent_ns: timeline.sent_ns(),
            private_uplink_bytes: request.private_bytes(),
            ..Answer::default()
        };
        let mut deltas_ns = Vec::new();
        let mut usage = Usage::default();
        let ended_turn = edge.runtime().block_on(async {
            let mut stream = serving.client().chat(&call, left(deadline_ns)).await?;
            timeline.lap(Part::Request);
            while let Some(event) = stream.next().await? {
                match event {
                    ChatEvent::Usage(counted) => usage = counted,
                    ChatEvent::Text(_) | ChatEvent::Reasoning => {
                        if deltas_ns.is_empty() {
                            timeline.lap(Part::CloudCompute);
                            answer.parts = timeline.parts();
                        }
                        deltas_ns.push(now_ns());
                        if let ChatEvent::Text(text) = event {
                            answer.output_text.push_str(&text);
                        }
                    }
                }
            }
            if deltas_ns.is_empty() {
                // An answer without visible text still has an end that its parts lead to.
                timeline.lap(Part::CloudCompute);
                answer.parts = timeline.parts();
            }
            answer.uplink_payload_bytes = stream.uplink_payload_bytes();
            answer.downlink_payload_bytes = stream.downlink_payload_bytes();
            Ok::<_, ApiError>(stream.finish_reason() == Some("stop"))
        })?;
        let TokenTimes {
            token_ns,
            estimated,
        } = token_times(
            &deltas_ns,
            now_ns(),
            usage.completion_tokens,
            ended_turn,
            request.max_tokens,
        );
        answer.token_ns = token_ns;
        answer.tokens_estimated = estimated;
        count_prompt(edge, request, usage, &mut answer)?;
        Ok(answer)
    }
}

fn messages<'a>(
    system: &'a str,
    history: &'a [(String, String)],
    user: &'a str,
) -> Vec<Message<'a>> {
    let message = |role, content| Message { role, content };
    let earlier = history.iter().flat_map(|(user, answer)| {
        [
            message(Role::User, user.as_str()),
            message(Role::Assistant, answer.as_str()),
        ]
    });
    std::iter::once(message(Role::System, system))
        .chain(earlier)
        .chain([message(Role::User, user)])
        .collect()
}

/// The server counts the whole prompt; how much of it is the context is counted with the edge's
/// tokenizer, which is the cloud's for models of one family. Without the server's count, the
/// edge's stands. All of this is after the last token.
fn count_prompt(
    edge: &EdgeNode,
    request: &Request,
    usage: Usage,
    answer: &mut Answer,
) -> Result<(), SystemError> {
    let serving = edge.serving()?;
    let model = edge.model();
    let system = &request.context.system;
    let context =
        serving.context_tokens(&request.context, || Ok(model.context_tokens(system)?.len()))?;
    let counted = usage
        .prompt_tokens
        .and_then(|tokens| usize::try_from(tokens).ok())
        .filter(|&tokens| tokens > 0 && tokens < u32::MAX as usize);
    match counted {
        Some(tokens) => {
            answer.context_tokens = context.min(tokens);
            answer.prompt_tokens = tokens - answer.context_tokens;
        }
        None => {
            answer.context_tokens = context;
            answer.prompt_tokens = model
                .conversation_tokens(system, &request.history, &request.user)?
                .len();
        }
    }
    Ok(())
}

fn left(deadline_ns: u64) -> Duration {
    Duration::from_nanos(deadline_ns.saturating_sub(now_ns()))
}
