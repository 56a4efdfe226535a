//! Generation in the cloud: the only messages with private text.

use std::time::Duration;

use celslm_kv::ContextId;

use super::{context::context_id, field};
use crate::{error::Invalid, proto};

/// A private prompt to be answered in the cloud.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateRequest {
    /// The published context that precedes the prompt.
    pub context_id: ContextId,
    /// Earlier turns of the conversation, oldest first: what the user said and what was answered.
    /// They and the prompt together are bounded by
    /// [`Limits::max_text_bytes`](crate::Limits::max_text_bytes).
    pub history: Vec<(String, String)>,
    /// The user's text.
    pub prompt: String,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Most tokens to generate; at least 1.
    pub max_tokens: usize,
    /// Longest time until the last message has arrived. Travels as `grpc-timeout`; in the cloud
    /// it is what was left. Capped by each side's `Limits::request_deadline`.
    pub deadline: Duration,
}

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// The most likely token.
    Greedy,
    /// A seeded draw from the softened, truncated distribution.
    Draw {
        /// Divisor of the logits; finite and above 0.
        temperature: f64,
        /// Probability mass kept; in (0, 1].
        top_p: f64,
        /// Seed of the draw.
        seed: u64,
    },
}

impl GenerateRequest {
    /// Bytes of private text, earlier turns included.
    pub(crate) fn text_bytes(&self) -> usize {
        let turns = self
            .history
            .iter()
            .map(|(user, answer)| user.len() + answer.len());
        turns.sum::<usize>() + self.prompt.len()
    }

    pub(crate) fn into_proto(self) -> Result<proto::GenerateRequest, Invalid> {
        use proto::generate_request::Sampling as Proto;
        Ok(proto::GenerateRequest {
            context_id: self.context_id.as_bytes().to_vec(),
            history: self
                .history
                .into_iter()
                .map(|(user, answer)| proto::Turn { user, answer })
                .collect(),
            prompt: self.prompt,
            sampling: Some(match self.sampling {
                Sampling::Greedy => Proto::Greedy(proto::Greedy {}),
                Sampling::Draw {
                    temperature,
                    top_p,
                    seed,
                } => Proto::Draw(proto::Draw {
                    temperature,
                    top_p,
                    seed,
                }),
            }),
            max_tokens: field::narrow("GenerateRequest", "max_tokens", self.max_tokens)?,
        })
    }

    pub(crate) fn from_proto(
        request: proto::GenerateRequest,
        deadline: Duration,
    ) -> Result<Self, Invalid> {
        use proto::generate_request::Sampling as Proto;
        const MESSAGE: &str = "GenerateRequest";
        let sampling = match request.sampling {
            Some(Proto::Greedy(_)) => Sampling::Greedy,
            Some(Proto::Draw(draw)) => {
                if !(draw.temperature.is_finite() && draw.temperature > 0.0) {
                    return Err(Invalid::new(
                        MESSAGE,
                        format!(
                            "temperature is {}, must be finite and above 0",
                            draw.temperature
                        ),
                    ));
                }
                if !(draw.top_p > 0.0 && draw.top_p <= 1.0) {
                    return Err(Invalid::new(
                        MESSAGE,
                        format!("top_p is {}, must be above 0 and at most 1", draw.top_p),
                    ));
                }
                Sampling::Draw {
                    temperature: draw.temperature,
                    top_p: draw.top_p,
                    seed: draw.seed,
                }
            }
            None => return Err(Invalid::new(MESSAGE, "sampling is missing")),
        };
        Ok(Self {
            context_id: context_id(MESSAGE, &request.context_id)?,
            history: request
                .history
                .into_iter()
                .map(|turn| (turn.user, turn.answer))
                .collect(),
            prompt: request.prompt,
            sampling,
            max_tokens: field::within(
                MESSAGE,
                "max_tokens",
                request.max_tokens,
                1..=field::MOST_TOKENS,
            )?,
            deadline,
        })
    }
}

/// One message of a generation: one `Started`, the `Token`s, one `Finished`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GenerateEvent {
    /// The prompt is prefilled.
    Started(GenerateStarted),
    /// One token.
    Token(GenerateToken),
    /// The last message.
    Finished(GenerateFinished),
}

/// The prompt is prefilled; durations are the cloud's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerateStarted {
    /// Length of the context, in tokens.
    pub context_tokens: usize,
    /// Length of the prompt, in tokens.
    pub prompt_tokens: usize,
    /// The context's KV was in the store.
    pub store_hit: bool,
    /// Rendering and tokenising the prompt, in nanoseconds.
    pub tokenise_ns: u64,
    /// Waiting for the cloud's compute, in nanoseconds.
    pub queue_ns: u64,
    /// Prefill of the context for this request, in nanoseconds.
    pub cloud_compute_ns: u64,
    /// Prefill of the prompt, in nanoseconds.
    pub prompt_prefill_ns: u64,
}

/// One generated token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenerateToken {
    /// Position in the output.
    pub index: usize,
    /// Vocabulary index.
    pub id: u32,
    /// Text that this token completes; empty while a character is incomplete.
    pub text: String,
    /// Model step and sampling in the cloud, in nanoseconds.
    pub step_ns: u64,
}

/// End of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerateFinished {
    /// Why it ended.
    pub reason: FinishReason,
    /// Tokens sent.
    pub output_tokens: usize,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its answer.
    EndOfSequence,
    /// `max_tokens` was reached.
    MaxTokens,
    /// The model's context window is full.
    ContextFull,
}

impl GenerateEvent {
    pub(crate) fn into_proto(self) -> Result<proto::GenerateMessage, Invalid> {
        use proto::generate_message::Event;
        let event = match self {
            Self::Started(started) => Event::Started(proto::Started {
                context_tokens: field::narrow("Started", "context_tokens", started.context_tokens)?,
                prompt_tokens: field::narrow("Started", "prompt_tokens", started.prompt_tokens)?,
                store_hit: started.store_hit,
                tokenise_ns: started.tokenise_ns,
                queue_ns: started.queue_ns,
                cloud_compute_ns: started.cloud_compute_ns,
                prompt_prefill_ns: started.prompt_prefill_ns,
            }),
            Self::Token(token) => Event::Token(proto::Token {
                index: field::narrow("Token", "index", token.index)?,
                id: token.id,
                text: token.text,
                step_ns: token.step_ns,
            }),
            Self::Finished(finished) => Event::Finished(proto::Finished {
                reason: match finished.reason {
                    FinishReason::EndOfSequence => proto::FinishReason::EndOfSequence,
                    FinishReason::MaxTokens => proto::FinishReason::MaxTokens,
                    FinishReason::ContextFull => proto::FinishReason::ContextFull,
                }
                .into(),
                output_tokens: field::narrow("Finished", "output_tokens", finished.output_tokens)?,
            }),
        };
        Ok(proto::GenerateMessage { event: Some(event) })
    }

    pub(crate) fn from_proto(message: proto::GenerateMessage) -> Result<Self, Invalid> {
        use proto::generate_message::Event;
        let tokens =
            |message, field, value| field::within(message, field, value, 0..=field::MOST_TOKENS);
        match message.event {
            Some(Event::Started(started)) => Ok(Self::Started(GenerateStarted {
                context_tokens: tokens("Started", "context_tokens", started.context_tokens)?,
                prompt_tokens: tokens("Started", "prompt_tokens", started.prompt_tokens)?,
                store_hit: started.store_hit,
                tokenise_ns: started.tokenise_ns,
                queue_ns: started.queue_ns,
                cloud_compute_ns: started.cloud_compute_ns,
                prompt_prefill_ns: started.prompt_prefill_ns,
            })),
            Some(Event::Token(token)) => Ok(Self::Token(GenerateToken {
                index: tokens("Token", "index", token.index)?,
                id: token.id,
                text: token.text,
                step_ns: token.step_ns,
            })),
            Some(Event::Finished(finished)) => Ok(Self::Finished(GenerateFinished {
                reason: match finished.reason() {
                    proto::FinishReason::EndOfSequence => FinishReason::EndOfSequence,
                    proto::FinishReason::MaxTokens => FinishReason::MaxTokens,
                    proto::FinishReason::ContextFull => FinishReason::ContextFull,
                    proto::FinishReason::Unspecified => {
                        return Err(Invalid::new(
                            "Finished",
                            format!("reason {} is not known", finished.reason),
                        ));
                    }
                },
                output_tokens: tokens("Finished", "output_tokens", finished.output_tokens)?,
            })),
            None => Err(Invalid::new("GenerateMessage", "event is missing")),
        }
    }
}
