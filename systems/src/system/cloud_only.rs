//! The cloud alone: the private prompt goes up, the large model answers, tokens stream down.
//!
//! The context's KV stays in the cloud's store, as in any engine with prefix caching. The best
//! answers, the smallest traffic, and no privacy.

use super::System;
use crate::answer::{Answer, ContextRef, Request, SystemError};
use crate::clock::now_ns;
use crate::edge::EdgeNode;
use crate::spec::KvPath;
use crate::timeline::{Part, Timeline};
use celslm_model::Sampling;
use celslm_wire::{GenerateEvent, GenerateRequest, GenerateStarted, WireError};
use std::time::Duration;

pub(super) struct CloudOnly;

impl System for CloudOnly {
    fn warm(
        &self,
        _edge: &EdgeNode,
        _kv: Option<&KvPath>,
        _context: &ContextRef,
        _deadline_ns: u64,
    ) -> Result<(), SystemError> {
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
        let client = edge.client()?;
        let sampling = match request.sampling {
            Sampling::Greedy => celslm_wire::Sampling::Greedy,
            Sampling::Nucleus { temperature, top_p } => celslm_wire::Sampling::Draw {
                temperature: f64::from(temperature),
                top_p: f64::from(top_p),
                seed: request.seed,
            },
        };
        let call = GenerateRequest {
            context_id: edge.context_id(&request.context)?,
            history: request.history.clone(),
            prompt: request.user.clone(),
            sampling,
            max_tokens: request.max_tokens,
            deadline: Duration::from_nanos(deadline_ns.saturating_sub(now_ns())),
        };
        let mut answer = Answer {
            sent_ns: timeline.sent_ns(),
            private_uplink_bytes: request.private_bytes(),
            ..Answer::default()
        };
        edge.runtime().block_on(async {
            let mut stream = client.generate(call).await?;
            let mut started: Option<GenerateStarted> = None;
            // Tokens whose text is not visible yet get the time of the text that completes them.
            let mut invisible = 0;
            while let Some(event) = stream.next().await {
                match event? {
                    GenerateEvent::Started(event) => started = Some(event),
                    GenerateEvent::Token(token) => {
                        answer.output_ids.push(token.id);
                        answer.output_text.push_str(&token.text);
                        invisible += 1;
                        if token.text.is_empty() {
                            continue;
                        }
                        if answer.token_ns.is_empty() {
                            let reported = reported_parts(started.as_ref(), token.step_ns);
                            timeline.lap_split(&reported, Part::Request);
                            answer.parts = timeline.parts();
                        }
                        let now = now_ns();
                        answer.token_ns.extend(std::iter::repeat_n(now, invisible));
                        invisible = 0;
                    }
                    GenerateEvent::Finished(_) => {}
                }
            }
            if answer.token_ns.is_empty() {
                // An answer without visible text still has an end that its parts lead to.
                timeline.lap_split(&reported_parts(started.as_ref(), 0), Part::Request);
                answer.parts = timeline.parts();
            }
            answer
                .token_ns
                .extend(std::iter::repeat_n(now_ns(), invisible));
            answer.uplink_payload_bytes = stream.uplink_payload_bytes();
            answer.downlink_payload_bytes = stream.downlink_payload_bytes();
            if let Some(started) = started {
                answer.context_tokens = started.context_tokens;
                answer.prompt_tokens = started.prompt_tokens;
                answer.cloud_store_hit = started.store_hit;
            }
            Ok::<_, WireError>(())
        })?;
        Ok(answer)
    }
}

/// What the cloud says it did before the first token, in the order of doing.
fn reported_parts(started: Option<&GenerateStarted>, first_step_ns: u64) -> Vec<(Part, u64)> {
    started.map_or_else(Vec::new, |started| {
        vec![
            (Part::Tokenise, started.tokenise_ns),
            (Part::Queue, started.queue_ns),
            (
                Part::CloudCompute,
                started.cloud_compute_ns + started.prompt_prefill_ns,
            ),
            (Part::FirstStep, first_step_ns),
        ]
    })
}
