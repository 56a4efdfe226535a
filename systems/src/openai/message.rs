//! What goes over the API, in both directions.

use celslm_model::Sampling;
use serde::{Deserialize, Serialize};

/// Who says a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The instruction with the shared context.
    System,
    /// The user: private.
    User,
    /// The model, earlier in the conversation.
    Assistant,
}

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message<'a> {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: &'a str,
}

/// A request for one answer.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest<'a> {
    /// The conversation so far.
    pub messages: Vec<Message<'a>>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Seed of the server's sampler. Servers differ in the width they take, so that its lowest
    /// 31 bits are sent.
    pub seed: u64,
    /// Most tokens to generate.
    pub max_tokens: usize,
}

/// The body of a request.
#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    messages: &'a [Message<'a>],
    stream: bool,
    stream_options: StreamOptions,
    max_tokens: usize,
    temperature: f32,
    top_p: f32,
    seed: u32,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

impl ChatRequest<'_> {
    /// The body that asks `model`.
    pub(super) fn body(&self, model: &str) -> Result<Vec<u8>, serde_json::Error> {
        let (temperature, top_p) = match self.sampling {
            Sampling::Greedy => (0.0, 1.0),
            Sampling::Nucleus { temperature, top_p } => (temperature, top_p),
        };
        serde_json::to_vec(&Body {
            model,
            messages: &self.messages,
            stream: true,
            stream_options: StreamOptions {
                include_usage: true,
            },
            max_tokens: self.max_tokens,
            temperature,
            top_p,
            seed: (self.seed & 0x7fff_ffff) as u32,
        })
    }
}

/// One event of an answer. Servers add fields of their own and leave others out; only what is
/// used has a type.
#[derive(Deserialize)]
pub(super) struct Chunk {
    #[serde(default)]
    pub(super) choices: Option<Vec<Choice>>,
    #[serde(default)]
    pub(super) usage: Option<Usage>,
    #[serde(default)]
    pub(super) error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
pub(super) struct Choice {
    #[serde(default)]
    pub(super) delta: Option<Delta>,
    #[serde(default)]
    pub(super) finish_reason: Option<String>,
}

#[derive(Default, Deserialize)]
pub(super) struct Delta {
    #[serde(default)]
    pub(super) content: Option<String>,
    /// What a model says to itself before it answers, under both names in use.
    #[serde(default, alias = "reasoning")]
    pub(super) reasoning_content: Option<String>,
}

/// What the server counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub struct Usage {
    /// Tokens of the whole prompt, its template included.
    #[serde(default)]
    pub prompt_tokens: Option<u64>,
    /// Tokens generated; some servers count the end token too.
    #[serde(default)]
    pub completion_tokens: Option<u64>,
}
