//! The engine as its callers see it, and what they share with its thread.

use super::arrival::ArrivingKv;
use super::context::{Key, NewContext};
use super::handle::{ContextHandle, ContextRequest, SessionHandle, SessionRequest};
use super::limits::{EngineLimits, Pace};
use super::session::NewSession;
use super::stats::EngineStats;
use super::times::StateClock;
use super::worker::Worker;
use crate::LoadedModel;
use crate::SystemError;
use crate::clock::now_ns;
use celslm_model::{KvPrefix, ModelError};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// What comes to the thread.
pub(super) enum Submission {
    Session(Box<NewSession>),
    Context(NewContext),
    /// Results of keys that begin like this are not to be shared any further.
    Forget(String),
}

#[derive(Default)]
struct Inbox {
    incoming: Vec<Submission>,
    woken: bool,
    ended: bool,
}

/// What callers and the thread share.
pub(super) struct Shared {
    inbox: Mutex<Inbox>,
    changed: Condvar,
    stats: Mutex<EngineStats>,
    /// Sessions and waits for contexts that have a place here.
    calls: AtomicUsize,
    max_calls: usize,
}

/// A place among the bounded number of calls; given back on drop.
pub(super) struct Place(Arc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Shared {
    pub(super) fn new(name: &str, weights_bytes: u64, limits: EngineLimits) -> Self {
        Self {
            inbox: Mutex::default(),
            changed: Condvar::new(),
            stats: Mutex::new(EngineStats {
                name: name.to_owned(),
                weights_bytes,
                ..EngineStats::default()
            }),
            calls: AtomicUsize::new(0),
            max_calls: limits.max_calls(),
        }
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        // Every update leaves it consistent, so a panic elsewhere does not spoil it.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The counters.
    pub(super) fn stats(&self) -> MutexGuard<'_, EngineStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the thread look around.
    pub(super) fn wake(&self) {
        self.inbox().woken = true;
        self.changed.notify_one();
    }

    fn end(&self) {
        self.inbox().ended = true;
        self.changed.notify_one();
    }

    fn submit(&self, submission: Submission) -> Result<(), SystemError> {
        let mut inbox = self.inbox();
        if inbox.ended {
            return Err(SystemError::new("engine", "the engine has ended"));
        }
        inbox.incoming.push(submission);
        inbox.woken = true;
        drop(inbox);
        self.changed.notify_one();
        Ok(())
    }

    /// A place for one more call.
    fn place(self: &Arc<Self>) -> Result<Place, SystemError> {
        let more = |calls: usize| (calls < self.max_calls).then_some(calls + 1);
        match self
            .calls
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more)
        {
            Ok(_) => Ok(Place(self.clone())),
            Err(calls) => {
                self.stats().refused += 1;
                Err(SystemError::new(
                    "overloaded",
                    format!("{calls} sessions and contexts are in work or wait, which is all"),
                ))
            }
        }
    }

    /// What has come since the last call; `None` when it is time to end.
    pub(super) fn receive(&self) -> Option<Vec<Submission>> {
        let mut inbox = self.inbox();
        inbox.woken = false;
        (!inbox.ended).then(|| std::mem::take(&mut inbox.incoming))
    }

    /// Refuses everything from now on.
    pub(super) fn close(&self) {
        let mut inbox = self.inbox();
        inbox.ended = true;
        inbox.incoming.clear();
    }

    /// Waits until something comes, or until a time.
    pub(super) fn wait(&self, until_ns: Option<u64>) {
        let mut inbox = self.inbox();
        while !inbox.woken && !inbox.ended {
            let Some(until_ns) = until_ns else {
                inbox = self
                    .changed
                    .wait(inbox)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let now = now_ns();
            if now > until_ns {
                return;
            }
            let left = Duration::from_nanos(until_ns - now + 1);
            inbox = self
                .changed
                .wait_timeout(inbox, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// One model with its scheduler. Dropping it ends its thread; what is in work fails.
pub struct Engine {
    model: Arc<LoadedModel>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts the engine's thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        name: &str,
        model: Arc<LoadedModel>,
        limits: EngineLimits,
        pace: Pace,
    ) -> std::io::Result<Self> {
        let weights = model.decoder.weights_bytes() as u64;
        let shared = Arc::new(Shared::new(name, weights, limits));
        let worker = Worker::new(model.clone(), shared.clone(), limits, pace);
        let thread = std::thread::Builder::new()
            .name(format!("engine-{name}"))
            .spawn(move || worker.run())?;
        Ok(Self {
            model,
            shared,
            thread: Some(thread),
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<LoadedModel> {
        &self.model
    }

    /// Submits a prompt.
    ///
    /// # Errors
    /// Kind `overloaded` when there is no place; `config` and `model` for what cannot be run.
    pub fn session(&self, request: SessionRequest) -> Result<SessionHandle, SystemError> {
        let prefix_len = request.context.prefix().map_or(0, |prefix| prefix.len());
        let most = self.check(&request.prompt, prefix_len)?;
        if request.max_tokens == 0 {
            return Err(SystemError::new("config", "no token may be generated"));
        }
        let place = self.shared.place()?;
        let capacity = request.prompt.len().saturating_add(request.max_tokens);
        let capacity = capacity.min(most);
        // Room for every event that a session can have: the engine never waits for a reader.
        let (outbox, inbox) = mpsc::channel(capacity - request.prompt.len() + 4);
        self.shared
            .submit(Submission::Session(Box::new(NewSession {
                clock: StateClock::new(now_ns()),
                request,
                capacity,
                events: outbox,
                place,
            })))?;
        Ok(SessionHandle::new(inbox, self.shared.clone()))
    }

    /// Submits a context.
    ///
    /// # Errors
    /// As [`Engine::session`].
    pub fn context(&self, request: ContextRequest) -> Result<ContextHandle, SystemError> {
        self.check(&request.tokens, 0)?;
        let place = self.shared.place()?;
        let (outbox, inbox) = oneshot::channel();
        self.shared.submit(Submission::Context(NewContext {
            key: Key(request.key, request.output),
            client: request.client,
            tokens: request.tokens,
            deadline_ns: request.deadline_ns,
            submitted_ns: now_ns(),
            result: outbox,
            place,
        }))?;
        Ok(ContextHandle::new(inbox, self.shared.clone()))
    }

    /// Makes a prefix whose layers arrive while a session waits for them.
    pub fn arriving(&self, prefix: Arc<KvPrefix>) -> Arc<ArrivingKv> {
        let num_layers = self.model.decoder.config().num_hidden_layers;
        Arc::new(ArrivingKv::new(prefix, num_layers, self.shared.clone()))
    }

    /// Shares no results of contexts any more whose keys begin like this.
    pub fn forget(&self, start: &str) {
        // An engine that has ended shares nothing.
        let _ = self.shared.submit(Submission::Forget(start.to_owned()));
    }

    /// The counters; `reset` starts them anew afterwards.
    pub fn stats(&self, reset: bool) -> EngineStats {
        let mut stats = self.shared.stats();
        let taken = stats.clone();
        if reset {
            stats.reset();
        }
        taken
    }

    /// Checks tokens; the result is the most that may follow the prefix, they included.
    fn check(&self, tokens: &[u32], prefix_len: usize) -> Result<usize, SystemError> {
        if tokens.is_empty() {
            return Err(SystemError::new("config", "the prompt is empty"));
        }
        let decoder = &self.model.decoder;
        let limit = decoder.config().max_position_embeddings;
        let wanted = prefix_len.saturating_add(tokens.len());
        if wanted > limit {
            return Err(SystemError::from(ModelError::TooLong {
                wanted,
                limit,
                what: "the model's context window",
            }));
        }
        let vocab_size = decoder.vocab_size();
        match tokens.iter().find(|token| **token as usize >= vocab_size) {
            Some(token) => Err(SystemError::new(
                "model",
                format!("token {token} lies outside the vocabulary of {vocab_size}"),
            )),
            None => Ok(limit - prefix_len),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.end();
        if let Some(thread) = self.thread.take() {
            // A panic there has failed its sessions already.
            let _ = thread.join();
        }
    }
}
