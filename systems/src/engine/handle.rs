//! What callers submit to an engine, and what they hold meanwhile. Dropping a handle cancels.

use super::arrival::ArrivingKv;
use super::shared::Shared;
use super::times::Times;
use crate::SystemError;
use crate::schedule::ScheduleKind;
use celslm_kv::KvBlock;
use celslm_model::{KvPrefix, Sampling};
use std::sync::Arc;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};

/// What a session continues.
pub enum SessionContext {
    /// Nothing: the prompt is all there is.
    Empty,
    /// KV that is there.
    Ready(Arc<KvPrefix>),
    /// KV on its way.
    Arriving {
        /// The prefix with its arrivals.
        kv: Arc<ArrivingKv>,
        /// How far the prompt may run before all of it is there.
        schedule: ScheduleKind,
    },
}

impl SessionContext {
    /// The prefix, whether it is there or not.
    pub(super) fn prefix(&self) -> Option<&Arc<KvPrefix>> {
        match self {
            Self::Empty => None,
            Self::Ready(prefix) => Some(prefix),
            Self::Arriving { kv, .. } => Some(kv.prefix()),
        }
    }
}

/// A prompt to be answered.
pub struct SessionRequest {
    /// Whose it is, for fairness.
    pub client: u32,
    /// What it continues.
    pub context: SessionContext,
    /// Its tokens; at least one.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Seed of the session's own sampler.
    pub seed: u64,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// `CLOCK_MONOTONIC` time after which it is given up.
    pub deadline_ns: u64,
}

/// The prompt is in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefilled {
    /// When.
    pub at_ns: u64,
    /// Where the time went since it was submitted.
    pub times: Times,
    /// The stretches in which it was blocked on its context's KV.
    pub blocked: Vec<(u64, u64)>,
}

/// A token as it becomes visible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// The text that became final with it; empty while a character is incomplete.
    pub text: String,
    /// When.
    pub at_ns: u64,
    /// Where the time went since the session was submitted.
    pub times: Times,
}

/// Why a session ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The model ended its turn.
    Turn,
    /// `max_tokens` was reached.
    Length,
    /// The model's window is full.
    Full,
}

/// The end of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionEnd {
    /// Why.
    pub ending: Ending,
    /// When.
    pub at_ns: u64,
    /// Where the time went since the session was submitted.
    pub times: Times,
    /// KV bytes that it held, its prefix included.
    pub kv_bytes: usize,
}

/// What a session reports: one `Prefilled`, tokens, one `End`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionEvent {
    /// The prompt is in the cache.
    Prefilled(Prefilled),
    /// A token.
    Token(Token),
    /// The last event.
    End(SessionEnd),
}

pub(super) type SessionSender = mpsc::Sender<Result<SessionEvent, SystemError>>;

/// A session in work. Its events wait here, as many as it can have, so that a slow reader
/// holds nobody up.
#[must_use = "dropping it cancels the session"]
pub struct SessionHandle {
    events: mpsc::Receiver<Result<SessionEvent, SystemError>>,
    peeked: Option<Result<SessionEvent, SystemError>>,
    engine: Arc<Shared>,
}

impl SessionHandle {
    pub(super) fn new(
        events: mpsc::Receiver<Result<SessionEvent, SystemError>>,
        engine: Arc<Shared>,
    ) -> Self {
        Self {
            events,
            peeked: None,
            engine,
        }
    }

    /// Waits for the next event. Not for threads of a runtime.
    ///
    /// # Errors
    /// Whatever ended the session: kind `deadline`, or what the model reports.
    pub fn wait(&mut self) -> Result<SessionEvent, SystemError> {
        match self.peeked.take() {
            Some(event) => event,
            None => self.events.blocking_recv().unwrap_or_else(|| Err(ended())),
        }
    }

    /// Waits for the next event.
    ///
    /// # Errors
    /// As [`SessionHandle::next`].
    pub async fn next_event(&mut self) -> Result<SessionEvent, SystemError> {
        match self.peeked.take() {
            Some(event) => event,
            None => self.events.recv().await.unwrap_or_else(|| Err(ended())),
        }
    }

    /// Fails if the session has failed already; takes no event away.
    ///
    /// # Errors
    /// As [`SessionHandle::next`].
    pub fn check(&mut self) -> Result<(), SystemError> {
        if self.peeked.is_none() {
            self.peeked = match self.events.try_recv() {
                Ok(event) => Some(event),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => Some(Err(ended())),
            };
        }
        match &self.peeked {
            Some(Err(error)) => Err(error.clone()),
            _ => Ok(()),
        }
    }
}

impl Drop for SessionHandle {
    fn drop(&mut self) {
        self.events.close();
        self.engine.wake();
    }
}

/// In which form a context's KV is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContextOutput {
    /// Ready to attend to.
    Prefix,
    /// With keys before their rotation, to be sent or mapped.
    Block,
}

/// A context to be computed.
pub struct ContextRequest {
    /// Names its tokens: who asks for the same key and form while it is computed, or while
    /// anyone holds the result, gets that.
    pub key: String,
    /// Whose it is, for fairness.
    pub client: u32,
    /// Its tokens, from position 0; at least one.
    pub tokens: Vec<u32>,
    /// The form wanted.
    pub output: ContextOutput,
    /// `CLOCK_MONOTONIC` time after which it is given up.
    pub deadline_ns: u64,
}

/// A context's KV.
#[derive(Clone)]
pub enum ContextKv {
    /// Ready to attend to.
    Prefix(Arc<KvPrefix>),
    /// With keys before their rotation.
    Block(Arc<KvBlock>),
}

/// A context that is there.
pub struct ContextReady {
    /// Its KV.
    pub kv: ContextKv,
    /// Whether this request had it computed; otherwise it shares what another one did.
    pub computed: bool,
    /// Where the time went since this request took part.
    pub times: Times,
}

impl ContextReady {
    /// The prefix, where that was asked for.
    ///
    /// # Errors
    /// Kind `engine` otherwise.
    pub fn into_prefix(self) -> Result<Arc<KvPrefix>, SystemError> {
        match self.kv {
            ContextKv::Prefix(prefix) => Ok(prefix),
            ContextKv::Block(_) => Err(SystemError::new("engine", "got a block, not a prefix")),
        }
    }

    /// The block, where that was asked for.
    ///
    /// # Errors
    /// Kind `engine` otherwise.
    pub fn into_block(self) -> Result<Arc<KvBlock>, SystemError> {
        match self.kv {
            ContextKv::Block(block) => Ok(block),
            ContextKv::Prefix(_) => Err(SystemError::new("engine", "got a prefix, not a block")),
        }
    }
}

pub(super) type ContextSender = oneshot::Sender<Result<ContextReady, SystemError>>;

/// A context in work.
#[must_use = "dropping it cancels the computation, unless others wait for it too"]
pub struct ContextHandle {
    /// Gone once it is waited for.
    result: Option<oneshot::Receiver<Result<ContextReady, SystemError>>>,
    engine: Arc<Shared>,
}

impl ContextHandle {
    pub(super) fn new(
        result: oneshot::Receiver<Result<ContextReady, SystemError>>,
        engine: Arc<Shared>,
    ) -> Self {
        Self {
            result: Some(result),
            engine,
        }
    }

    /// Waits for the context.
    ///
    /// # Errors
    /// Kind `deadline`, or what the model reports.
    pub async fn ready(mut self) -> Result<ContextReady, SystemError> {
        match &mut self.result {
            Some(result) => result.await.unwrap_or_else(|_| Err(ended())),
            None => Err(ended()),
        }
    }

    /// Waits for the context. Not for threads of a runtime.
    ///
    /// # Errors
    /// As [`ContextHandle::ready`].
    pub fn wait(mut self) -> Result<ContextReady, SystemError> {
        match self.result.take() {
            Some(result) => result.blocking_recv().unwrap_or_else(|_| Err(ended())),
            None => Err(ended()),
        }
    }
}

impl Drop for ContextHandle {
    fn drop(&mut self) {
        self.result = None;
        self.engine.wake();
    }
}

fn ended() -> SystemError {
    SystemError::new("engine", "the engine has ended")
}
