//! The commands and their replies.

use crate::answer::{Answer, ContextRef, Request, SystemError};
use crate::engine::NodeStats;
use crate::openai::Endpoint;
use crate::spec::{Contract, SystemSpec};
use celslm_model::Sampling;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// What a controller asks of an edge node.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum EdgeCommand {
    /// Who are you?
    Hello,
    /// Opens a fresh connection to the cloud, dropping the old one.
    Connect {
        /// The cloud's address.
        addr: SocketAddr,
    },
    /// Takes a serving engine into use, if it is ready.
    Serve {
        /// Where it is.
        endpoint: Endpoint,
        /// Longest wait for its reply, in milliseconds.
        timeout_ms: u64,
    },
    /// Brings the edge's cache into the state that a contract names, unmeasured.
    Prepare {
        /// The system that is about to be asked.
        spec: SystemSpec,
        /// The state.
        contract: Contract,
        /// The context that it is about.
        context: ContextRef,
        /// Longest time it may take, in milliseconds.
        timeout_ms: u64,
    },
    /// Answers a request.
    Answer {
        /// The system that answers.
        spec: SystemSpec,
        /// The request.
        request: Request,
    },
    /// How much is in work, and what was done and held at most since the last reset.
    Stats {
        /// Start anew afterwards.
        reset: bool,
    },
    /// Ends the process.
    Shutdown,
}

/// An edge node's reply.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EdgeReply {
    /// To `Hello`.
    Edge {
        /// Fingerprint of its model, in hex.
        fingerprint: String,
        /// BLAKE3 of its tokenizer, in hex.
        tokenizer: String,
        /// Id of the codec artefact that it holds.
        #[serde(default)]
        codec_artefact: Option<String>,
        /// Its model's layers.
        num_layers: usize,
        /// Threads it computes with.
        threads: usize,
    },
    /// To `Stats`.
    Stats(NodeStats),
    /// Done.
    Done,
    /// To `Answer`.
    Answered(Box<Answer>),
    /// The command failed.
    Failed(SystemError),
}

/// What a controller asks of a cloud node.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum CloudCommand {
    /// Who are you?
    Hello,
    /// Registers a shared context by its system message.
    Publish {
        /// The system message.
        system: String,
    },
    /// Brings the store into the state that a contract names for one context, unmeasured.
    Prepare {
        /// The system that is about to be asked.
        spec: SystemSpec,
        /// The state.
        contract: Contract,
        /// The context, in hex.
        context_id: String,
    },
    /// How much is in work, and what was done and held at most since the last reset.
    Stats {
        /// Start anew afterwards.
        reset: bool,
    },
    /// Has the live models make what a replayed cloud will serve, unless it was made before.
    Record {
        /// What.
        item: RecordItem,
    },
    /// Ends the process.
    Shutdown,
}

/// What a replayed cloud is to have recorded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RecordItem {
    /// A context's KV, as a system will fetch it.
    Context {
        /// The context, in hex.
        context_id: String,
        /// The system, whose KV path names the form.
        spec: SystemSpec,
    },
    /// An answer of the cloud's own model.
    Answer {
        /// The context, in hex.
        context_id: String,
        /// Earlier turns.
        history: Vec<(String, String)>,
        /// The private prompt.
        user: String,
        /// How tokens are chosen.
        sampling: Sampling,
        /// Seed of the request.
        seed: u64,
        /// Most tokens.
        max_tokens: usize,
    },
}

/// A published context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedContext {
    /// Its id, in hex.
    pub context_id: String,
    /// Tokens under the cloud model's tokenizer.
    pub context_tokens: usize,
}

/// A cloud node's reply.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloudReply {
    /// To `Hello`.
    Cloud {
        /// Fingerprint of its model, in hex.
        fingerprint: String,
        /// BLAKE3 of its tokenizer, in hex.
        tokenizer: String,
        /// Fingerprint of the edge's model that it hosts, in hex.
        edge_fingerprint: Option<String>,
        /// Id of the codec artefact that it holds.
        #[serde(default)]
        codec_artefact: Option<String>,
        /// The address on which it serves the edges.
        addr: SocketAddr,
        /// Threads it computes with.
        threads: usize,
    },
    /// To `Publish`.
    Published(PublishedContext),
    /// To `Stats`.
    Stats(NodeStats),
    /// To `Record`: the text of an answer, for the turns that follow it.
    Recorded {
        /// `None` for a context.
        text: Option<String>,
    },
    /// Done.
    Done,
    /// The command failed.
    Failed(SystemError),
}
