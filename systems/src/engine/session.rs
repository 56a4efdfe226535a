//! A session: a prompt over a context, then token after token.

use super::arrival::ArrivingKv;
use super::handle::{
    Ending, Prefilled, SessionContext, SessionEnd, SessionEvent, SessionRequest, SessionSender,
    Token,
};
use super::scheduler::Want;
use super::shared::Place;
use super::times::{State, StateClock};
use crate::LoadedModel;
use crate::SystemError;
use crate::clock::now_ns;
use crate::schedule::ScheduleKind;
use celslm_model::{
    BatchItem, Hidden, KeyRetention, KvCache, KvPrefix, ModelError, PREFILL_CHUNK, Sampler,
    TextStream,
};
use std::sync::Arc;

/// A session that waits for admission.
pub(super) struct NewSession {
    pub(super) request: SessionRequest,
    /// Tokens that its tail may grow to.
    pub(super) capacity: usize,
    pub(super) events: SessionSender,
    pub(super) clock: StateClock,
    pub(super) place: Place,
}

impl NewSession {
    /// Tells the caller that it failed.
    pub(super) fn fail(self, error: SystemError) {
        let Self { events, place, .. } = self;
        drop(place);
        // A reader that is gone needs no error.
        let _ = events.try_send(Err(error));
    }
}

/// A context that is still arriving.
struct Gate {
    kv: Arc<ArrivingKv>,
    schedule: ScheduleKind,
}

enum Phase {
    /// Its prompt runs through all layers piece by piece; `done` tokens are in the cache.
    Prompt { done: usize },
    /// Its prompt's pieces have run through the layers below `layer`.
    Layers { layer: usize, pieces: Vec<Hidden> },
    /// The token to be fed next.
    Decode { next: u32 },
}

/// An admitted session.
pub(super) struct Session {
    pub(super) client: u32,
    pub(super) deadline_ns: u64,
    pub(super) clock: StateClock,
    pub(super) cache: KvCache,
    prompt: Vec<u32>,
    /// Positions at which the cache is full.
    full_at: usize,
    max_tokens: usize,
    generated: usize,
    gate: Option<Gate>,
    phase: Phase,
    sampler: Sampler,
    stream: TextStream,
    events: SessionSender,
    place: Option<Place>,
}

/// Whether a session goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    Going,
    /// Its caller is still to be told.
    Ended(Ending),
}

impl Session {
    /// The cache of a session that is being admitted.
    pub(super) fn cache(new: &NewSession, model: &LoadedModel) -> Result<KvCache, ModelError> {
        let prefix = new.request.context.prefix().cloned();
        let shape = model.decoder.kv_shape();
        KvCache::new(shape, prefix, new.capacity, KeyRetention::RotatedOnly)
    }

    /// Takes a session up with its cache.
    pub(super) fn admit(new: NewSession, cache: KvCache) -> Self {
        let prefix_len = cache.prefix().map_or(0, |prefix| prefix.len());
        let NewSession {
            request,
            capacity,
            events,
            clock,
            place,
        } = new;
        let gate = match request.context {
            SessionContext::Arriving { kv, schedule } => Some(Gate { kv, schedule }),
            SessionContext::Empty | SessionContext::Ready(_) => None,
        };
        Self {
            client: request.client,
            deadline_ns: request.deadline_ns,
            clock,
            cache,
            prompt: request.prompt,
            full_at: prefix_len + capacity,
            max_tokens: request.max_tokens,
            generated: 0,
            gate,
            phase: Phase::Prompt { done: 0 },
            sampler: Sampler::new(request.sampling, request.seed),
            stream: TextStream::default(),
            events,
            place: Some(place),
        }
    }

    /// Whether nobody reads its events any more.
    pub(super) fn is_cancelled(&self) -> bool {
        self.events.is_closed()
    }

    pub(super) fn prefix(&self) -> Option<&Arc<KvPrefix>> {
        self.cache.prefix()
    }

    /// Tokens of its prompt.
    pub(super) fn prompt_len(&self) -> usize {
        self.prompt.len()
    }

    /// Tokens that its tail may grow to.
    pub(super) fn capacity(&self) -> usize {
        self.full_at - self.prefix().map_or(0, |prefix| prefix.len())
    }

    /// The layer that it needs next, while its context arrives.
    fn gated_layer(&self) -> Option<(usize, &Gate)> {
        let layer = match &self.phase {
            Phase::Prompt { done: 0 } => 0,
            Phase::Layers { layer, .. } => *layer,
            Phase::Prompt { .. } | Phase::Decode { .. } => return None,
        };
        Some((layer, self.gate.as_ref()?))
    }

    /// What it could do next.
    pub(super) fn want(&self, num_layers: usize) -> Want {
        if let Some((layer, gate)) = self.gated_layer() {
            let runnable = gate.kv.runnable(gate.schedule);
            let whole = layer == 0 && runnable >= num_layers;
            if runnable <= layer {
                return Want::Nothing;
            }
            if !whole {
                return Want::Layers {
                    tokens: self.prompt.len(),
                    layers: runnable - layer,
                };
            }
        }
        match &self.phase {
            Phase::Prompt { done } => Want::Piece {
                tokens: (self.prompt.len() - done).min(PREFILL_CHUNK),
            },
            Phase::Decode { .. } => Want::Decode,
            // Only a session with a gate gets here, and that was looked at above.
            Phase::Layers { .. } => Want::Nothing,
        }
    }

    /// Accounts what it waited for up to now: its KV until that was there, the engine since.
    pub(super) fn settle(&mut self, now: u64) {
        let Some((layer, gate)) = self.gated_layer() else {
            return;
        };
        let runnable = gate.kv.runnable(gate.schedule) > layer;
        let ready_ns = gate.kv.ready_ns(gate.schedule, layer);
        let queued_since = match self.clock.state() {
            State::Queued => self.clock.since_ns(),
            _ => now,
        };
        if !runnable {
            self.clock.enter(State::Blocked, queued_since);
            return;
        }
        if self.clock.state() == State::Queued && ready_ns > queued_since {
            self.clock.enter(State::Blocked, queued_since);
        }
        if self.clock.state() == State::Blocked {
            self.clock.enter(State::Queued, ready_ns.min(now));
        }
    }

    /// In which state it is while it is computed.
    pub(super) fn running(&self) -> State {
        match self.phase {
            Phase::Decode { .. } => State::Decode,
            Phase::Prompt { .. } | Phase::Layers { .. } => State::Prefill,
        }
    }

    /// Its part of a ragged pass.
    pub(super) fn item(&mut self, tokens: usize) -> BatchItem<'_> {
        match &self.phase {
            Phase::Decode { next } => BatchItem {
                tokens: std::slice::from_ref(next),
                cache: &mut self.cache,
                logits: true,
            },
            Phase::Prompt { .. } | Phase::Layers { .. } => {
                let done = match self.phase {
                    Phase::Prompt { done } => done,
                    _ => 0,
                };
                let end = self.prompt.len().min(done + tokens);
                BatchItem {
                    tokens: &self.prompt[done..end],
                    cache: &mut self.cache,
                    logits: end == self.prompt.len(),
                }
            }
        }
    }

    /// Runs the whole prompt through the next layers, in the pieces that a pass through all
    /// layers would have: the same numbers, whenever they are computed. The logits come with the
    /// last layer.
    pub(super) fn run_layers(
        &mut self,
        model: &LoadedModel,
        count: usize,
    ) -> Result<Option<Vec<f32>>, SystemError> {
        let decoder = &model.decoder;
        if let Phase::Prompt { .. } = self.phase {
            let pieces = self.prompt.chunks(PREFILL_CHUNK);
            let pieces = pieces.map(|piece| decoder.embed(piece));
            self.phase = Phase::Layers {
                layer: 0,
                pieces: pieces.collect::<Result<_, _>>()?,
            };
        }
        let Phase::Layers { layer, pieces } = &mut self.phase else {
            return Ok(None);
        };
        for _ in 0..count {
            for piece in pieces.iter_mut() {
                *piece = decoder.forward_layer(*layer, piece, &mut self.cache)?;
            }
            *layer += 1;
        }
        if *layer < decoder.config().num_hidden_layers {
            return Ok(None);
        }
        let last = pieces.last().map(|piece| decoder.logits(piece));
        Ok(last.transpose()?)
    }

    /// Chooses a token.
    pub(super) fn sample(&mut self, logits: &[f32]) -> u32 {
        self.sampler.sample(logits)
    }

    /// Takes note of what a pass computed; `sampled` is what its logits led to.
    pub(super) fn advance(
        &mut self,
        model: &LoadedModel,
        tokens: usize,
        sampled: Option<u32>,
        step_end_ns: u64,
    ) -> Result<Progress, SystemError> {
        if let Phase::Prompt { done } = &mut self.phase {
            *done += tokens;
        }
        let Some(id) = sampled else {
            return Ok(Progress::Going);
        };
        if !matches!(self.phase, Phase::Decode { .. }) {
            self.gate = None;
            self.clock.enter(State::Decode, step_end_ns);
            let prefilled = Prefilled {
                at_ns: step_end_ns,
                times: self.clock.times_at(step_end_ns),
                blocked: self.clock.take_blocked(),
            };
            self.send(SessionEvent::Prefilled(prefilled));
        }
        self.phase = Phase::Decode { next: id };
        if model.tokenizer.is_end(id) {
            return Ok(Progress::Ended(Ending::Turn));
        }
        let text = self.stream.push(&model.tokenizer, id)?;
        self.generated += 1;
        let at_ns = now_ns();
        self.send(SessionEvent::Token(Token {
            id,
            text,
            at_ns,
            times: self.clock.times_at(at_ns),
        }));
        if self.generated >= self.max_tokens {
            return Ok(Progress::Ended(Ending::Length));
        }
        if self.cache.len(0) >= self.full_at {
            return Ok(Progress::Ended(Ending::Full));
        }
        Ok(Progress::Going)
    }

    /// Tells the caller that it has ended.
    pub(super) fn end(mut self, ending: Ending) {
        // Whoever reads the end may ask again at once and must find the place free.
        self.place = None;
        let at_ns = now_ns();
        self.send(SessionEvent::End(SessionEnd {
            ending,
            at_ns,
            times: self.clock.times_at(at_ns),
            kv_bytes: self.cache.bytes(),
        }));
    }

    /// Tells the caller that it failed.
    pub(super) fn fail(mut self, error: SystemError) {
        self.place = None;
        let _ = self.events.try_send(Err(error));
    }

    fn send(&self, event: SessionEvent) {
        // The channel holds every event of a session; one that is closed cancels it.
        let _ = self.events.try_send(Ok(event));
    }
}
