//! A context: prefilled once, for everyone who waits for it.

use super::handle::{ContextKv, ContextOutput, ContextReady, ContextSender};
use super::scheduler::Want;
use super::shared::Place;
use super::times::{StateClock, Times};
use crate::LoadedModel;
use crate::SystemError;
use celslm_kv::KvBlock;
use celslm_model::{BatchItem, KeyRetention, KvCache, KvPrefix, ModelError, PREFILL_CHUNK};
use std::sync::{Arc, Weak};

/// Names a context's KV.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key(pub(super) String, pub(super) ContextOutput);

/// A request as it comes in.
pub(super) struct NewContext {
    pub(super) key: Key,
    pub(super) client: u32,
    pub(super) tokens: Vec<u32>,
    pub(super) deadline_ns: u64,
    pub(super) submitted_ns: u64,
    pub(super) result: ContextSender,
    pub(super) place: Place,
}

impl NewContext {
    /// Answers with what is there already.
    pub(super) fn share(self, kv: ContextKv, now: u64) {
        let Self { result, place, .. } = self;
        drop(place);
        let times = Times {
            queued_ns: now.saturating_sub(self.submitted_ns),
            ..Times::default()
        };
        // Who is gone needs no answer.
        let _ = result.send(Ok(ContextReady {
            kv,
            computed: false,
            times,
        }));
    }
}

/// Someone who waits for a context.
struct Waiter {
    result: ContextSender,
    deadline_ns: u64,
    /// What the job had spent when this one joined.
    joined: Times,
    computed: bool,
    place: Place,
}

impl Waiter {
    fn answer(self, result: Result<ContextReady, SystemError>) {
        drop(self.place);
        let _ = self.result.send(result);
    }
}

/// A context in work, or waiting to be.
pub(super) struct ContextJob {
    pub(super) key: Key,
    pub(super) client: u32,
    pub(super) clock: StateClock,
    tokens: Vec<u32>,
    done: usize,
    /// Made at admission.
    cache: Option<KvCache>,
    waiters: Vec<Waiter>,
}

/// What became of the waiters at a look.
pub(super) struct Left {
    pub(super) failed: u64,
    pub(super) cancelled: u64,
}

impl ContextJob {
    pub(super) fn new(new: NewContext) -> Self {
        let mut job = Self {
            key: new.key.clone(),
            client: new.client,
            clock: StateClock::new(new.submitted_ns),
            tokens: Vec::new(),
            done: 0,
            cache: None,
            waiters: Vec::new(),
        };
        let tokens = job.join(new, true);
        job.tokens = tokens;
        job
    }

    /// Adds someone who waits for the same; gives its tokens back.
    pub(super) fn join(&mut self, new: NewContext, computed: bool) -> Vec<u32> {
        self.waiters.push(Waiter {
            result: new.result,
            deadline_ns: new.deadline_ns,
            joined: self.clock.times_at(new.submitted_ns),
            computed,
            place: new.place,
        });
        new.tokens
    }

    /// Gives an admitted job its cache.
    pub(super) fn admit(&mut self, model: &LoadedModel) -> Result<(), ModelError> {
        let retention = match self.key.1 {
            ContextOutput::Prefix => KeyRetention::RotatedOnly,
            ContextOutput::Block => KeyRetention::PreRope,
        };
        let shape = model.decoder.kv_shape();
        self.cache = Some(KvCache::new(shape, None, self.tokens.len(), retention)?);
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    pub(super) fn kv_bytes(&self) -> usize {
        self.cache.as_ref().map_or(0, KvCache::bytes)
    }

    pub(super) fn want(&self) -> Want {
        Want::Piece {
            tokens: (self.tokens.len() - self.done).min(PREFILL_CHUNK),
        }
    }

    /// Its part of a ragged pass; `None` before its admission.
    pub(super) fn item(&mut self, tokens: usize) -> Option<BatchItem<'_>> {
        let end = self.tokens.len().min(self.done + tokens);
        Some(BatchItem {
            tokens: &self.tokens[self.done..end],
            cache: self.cache.as_mut()?,
            logits: false,
        })
    }

    /// Takes note of computed tokens; `true` when that was all.
    pub(super) fn advance(&mut self, tokens: usize) -> bool {
        self.done += tokens;
        self.done >= self.tokens.len()
    }

    /// Lets go of those who wait no longer: a job without anyone is to be dropped.
    pub(super) fn expire(&mut self, now: u64) -> Left {
        let mut left = Left {
            failed: 0,
            cancelled: 0,
        };
        for waiter in std::mem::take(&mut self.waiters) {
            if waiter.result.is_closed() {
                left.cancelled += 1;
            } else if now > waiter.deadline_ns {
                left.failed += 1;
                waiter.answer(Err(super::worker::late()));
            } else {
                self.waiters.push(waiter);
            }
        }
        left
    }

    pub(super) fn is_wanted(&self) -> bool {
        !self.waiters.is_empty()
    }

    /// The next time at which someone gives up.
    pub(super) fn deadline_ns(&self) -> Option<u64> {
        self.waiters.iter().map(|waiter| waiter.deadline_ns).min()
    }

    /// Turns the complete cache into the form wanted.
    pub(super) fn finish(&mut self, model: &LoadedModel) -> Result<ContextKv, SystemError> {
        let missing = || SystemError::new("engine", "a context without a cache");
        let cache = self.cache.take().ok_or_else(missing)?;
        Ok(match self.key.1 {
            ContextOutput::Prefix => ContextKv::Prefix(Arc::new(cache.freeze()?)),
            ContextOutput::Block => ContextKv::Block(Arc::new(
                cache.read(model.decoder.fingerprint(), 0..self.tokens.len())?,
            )),
        })
    }

    /// Answers everyone.
    pub(super) fn answer(self, result: &Result<ContextKv, SystemError>, now: u64) {
        let times = self.clock.times_at(now);
        for waiter in self.waiters {
            let ready = result.clone().map(|kv| ContextReady {
                kv,
                computed: waiter.computed,
                times: times.since(&waiter.joined),
            });
            waiter.answer(ready);
        }
    }
}

/// A result that may be shared for as long as someone holds it.
pub(super) enum Known {
    Prefix(Weak<KvPrefix>),
    Block(Weak<KvBlock>),
}

impl Known {
    pub(super) fn new(kv: &ContextKv) -> Self {
        match kv {
            ContextKv::Prefix(prefix) => Self::Prefix(Arc::downgrade(prefix)),
            ContextKv::Block(block) => Self::Block(Arc::downgrade(block)),
        }
    }

    pub(super) fn get(&self) -> Option<ContextKv> {
        match self {
            Self::Prefix(prefix) => prefix.upgrade().map(ContextKv::Prefix),
            Self::Block(block) => block.upgrade().map(ContextKv::Block),
        }
    }
}
