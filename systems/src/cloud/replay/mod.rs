//! A cloud that was recorded beforehand: real tokens, real KV, a modelled device's time.
//!
//! The live models of this node fill the recording on their controller's command, before anything
//! is measured. From then on the edges' calls are served from it alone: what the link carries is
//! what the live cloud would have sent, encoded here and now, and it is sent when a device of the
//! profile's rates would have had it. What was not recorded fails with the kind `not_recorded`;
//! nothing is computed in its place.
//!
//! The profile has the rates of one model. A context in the edge model's own form (alignment
//! `identity`) is charged at them too, and a mapped one at them plus the time that mapping took
//! on the machine that recorded. Encoding is this host's own in every case.

mod device;
mod recording;
#[cfg(test)]
mod tests;

use super::scores::Scored;
use super::variants::{EdgeVariant, Ready, Shared, internal, invalid, to_service};
use crate::SystemError;
use crate::clock::now_ns;
use crate::control::RecordItem;
use crate::engine::{Ending, EngineLimits, SessionContext, SessionEvent, SessionRequest};
use crate::rates::Rates;
use celslm_kv::codec::ScoredBy;
use celslm_kv::{ContextId, SourceKind};
use celslm_model::Sampling;
use celslm_wire::ServiceError;
use device::{Beat, ReplayDevice, Task};
use recording::{
    AnswerKey, KvKey, RecordedAnswer, RecordedEnding, RecordedKv, Recording, ScoresKey,
};
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;

/// What a replayed cloud is started with.
#[derive(Debug, Clone)]
pub struct ReplayOptions {
    /// Folder of the recording.
    pub dir: PathBuf,
    /// Most bytes that it may hold.
    pub max_bytes: u64,
    /// The device's rates.
    pub rates: Rates,
}

/// The recording and the device at whose speed it is served.
pub(super) struct Replay {
    recording: Arc<Recording>,
    device: ReplayDevice,
    /// Contexts whose native KV the device would hold. Bounded by the contexts that can be
    /// registered; no KV is kept for them.
    native: Mutex<HashSet<ContextId>>,
}

/// A context in the device's own cache, with what it took to get it there.
pub(super) struct Native {
    pub(super) store_hit: bool,
    pub(super) queue_ns: u64,
    pub(super) compute_ns: u64,
}

/// An answer on its way.
pub(super) struct Answering {
    answer: RecordedAnswer,
    beats: mpsc::Receiver<Beat>,
    next: usize,
}

/// What an answer's caller sees, as from the engine.
pub(super) enum Replayed {
    Prefilled {
        at_ns: u64,
        queued_ns: u64,
        prefill_ns: u64,
    },
    Token {
        id: u32,
        text: String,
        at_ns: u64,
    },
    End(Ending),
}

impl Replay {
    pub(super) fn start(options: &ReplayOptions, limits: EngineLimits) -> anyhow::Result<Self> {
        if let Some((path, problem)) = options.rates.problem() {
            anyhow::bail!("rates.{path}: {problem}");
        }
        Ok(Self {
            recording: Arc::new(Recording::open(&options.dir, options.max_bytes)?),
            device: ReplayDevice::start(options.rates.clone(), limits)?,
            native: Mutex::default(),
        })
    }

    fn native(&self) -> MutexGuard<'_, HashSet<ContextId>> {
        // A set is consistent after every call, so a panic elsewhere does not spoil it.
        self.native.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device forgets a context.
    pub(super) fn evict(&self, id: &ContextId) {
        self.native().remove(id);
    }

    /// Brings a context into the device's cache, in the time that this takes it.
    pub(super) async fn hold(
        &self,
        shared: &Shared,
        id: &ContextId,
        deadline_ns: u64,
    ) -> Result<Native, ServiceError> {
        let arrived_ns = now_ns();
        if self.native().contains(id) {
            return Ok(Native {
                store_hit: true,
                queue_ns: 0,
                compute_ns: 0,
            });
        }
        let tokens = shared.context(id)?.tokens.len();
        let _flight = shared.flights.board(&format!("{id}/replay")).await;
        if self.native().contains(id) {
            return Ok(Native {
                store_hit: true,
                queue_ns: now_ns() - arrived_ns,
                compute_ns: 0,
            });
        }
        let waited_ns = now_ns() - arrived_ns;
        let (queued_ns, compute_ns) = self.prefill(tokens, deadline_ns).await?;
        self.native().insert(*id);
        Ok(Native {
            store_hit: false,
            queue_ns: waited_ns + queued_ns,
            compute_ns,
        })
    }

    async fn prefill(&self, tokens: usize, deadline_ns: u64) -> Result<(u64, u64), ServiceError> {
        let mut beats = self.device.submit(Task {
            past: 0,
            prompt: tokens,
            samples: 0,
        })?;
        match beat(&mut beats, deadline_ns).await? {
            Some(Beat::Prefilled {
                queued_ns,
                worked_ns,
                ..
            }) => Ok((queued_ns, worked_ns)),
            _ => Err(gone()),
        }
    }

    /// A context's recorded KV in the form asked for, in the time that the device would take.
    pub(super) async fn edge_shaped(
        &self,
        shared: &Shared,
        id: &ContextId,
        variant: &EdgeVariant,
        deadline_ns: u64,
    ) -> Result<Ready, ServiceError> {
        let key = kv_key(shared, id, variant);
        let what = || format!("context {id} in the form {}", variant.key());
        if !self.recording.has_kv(&key) {
            return Err(not_recorded(&what()));
        }
        let tokens = shared.context(id)?.tokens.len();
        // What a form is made of: the cloud model's KV, or else what is computed for the one form alone
        // and not held, and the edge model's KV where a bridge reads it too.
        let (held, prefills) = match variant {
            EdgeVariant::Native => (true, 0),
            EdgeVariant::Identity(_) => (false, 1),
            EdgeVariant::Bridged(bridge, _) => {
                let reads = !bridge.parts().is_empty();
                let held = reads && bridge.reads() == SourceKind::Kv;
                let computed = usize::from(reads && !held) + usize::from(bridge.reads_own());
                (held, computed)
            }
        };
        let (mut queue_ns, mut compute_ns) = (0, 0);
        if held {
            let native = self.hold(shared, id, deadline_ns).await?;
            (queue_ns, compute_ns) = (native.queue_ns, native.compute_ns);
        }
        for _ in 0..prefills {
            let (queued, computed) = self.prefill(tokens, deadline_ns).await?;
            queue_ns += queued;
            compute_ns += computed;
        }
        let reading_ns = now_ns();
        let recording = self.recording.clone();
        let read = shared.work(move || recording.kv(&key)).await?;
        let RecordedKv { block, align_ns } = read
            .map_err(|error| internal(&error))?
            .ok_or_else(|| not_recorded(&what()))?;
        // Reading the file is part of what mapping would have taken, not on top of it.
        let left = align_ns.saturating_sub(now_ns() - reading_ns);
        tokio::time::sleep(Duration::from_nanos(left)).await;
        Ok(Ready {
            block: Arc::new(block),
            store_hit: false,
            queue_ns,
            compute_ns,
            align_ns,
        })
    }

    /// Recorded scores of a context's tokens, in the time of the prefill that computing them takes.
    pub(super) async fn scores(
        &self,
        shared: &Shared,
        id: &ContextId,
        by: ScoredBy,
        deadline_ns: u64,
    ) -> Result<Scored, ServiceError> {
        let (recording, key) = (self.recording.clone(), scores_key(shared, id, by));
        let read = shared.work(move || recording.scores(&key)).await?;
        let scores = read
            .map_err(|error| internal(&error))?
            .ok_or_else(|| not_recorded(&format!("{by} scores of context {id}")))?;
        let tokens = shared.context(id)?.tokens.len();
        let (queue_ns, compute_ns) = self.prefill(tokens, deadline_ns).await?;
        Ok(Scored {
            scores: Arc::new(scores),
            store_hit: false,
            queue_ns,
            compute_ns,
        })
    }

    /// Begins a recorded answer. The context is in the device's cache.
    pub(super) fn answer(
        &self,
        shared: &Shared,
        request: &Asked<'_>,
    ) -> Result<Answering, ServiceError> {
        let key = request.key(shared);
        let answer = self
            .recording
            .answer(&key)
            .map_err(|error| internal(&error))?;
        let answer = answer.ok_or_else(|| {
            not_recorded(&format!(
                "an answer to this prompt of {} tokens over context {}",
                request.prompt.len(),
                request.context
            ))
        })?;
        let beats = self.device.submit(Task {
            past: shared.context(request.context)?.tokens.len(),
            prompt: request.prompt.len(),
            // The end of a turn is sampled too.
            samples: answer.tokens.len()
                + usize::from(answer.ending == RecordedEnding::Turn || answer.tokens.is_empty()),
        })?;
        Ok(Answering {
            answer,
            beats,
            next: 0,
        })
    }

    /// Has the live models make what a request or fetch will ask for, unless it is there. Gives
    /// the text of an answer.
    pub(super) async fn record(
        &self,
        shared: &Shared,
        item: &RecordItem,
        deadline_ns: u64,
    ) -> Result<Option<String>, SystemError> {
        let id = |text: &str| -> Result<ContextId, SystemError> {
            text.parse()
                .map_err(|error| SystemError::new("config", format!("bad context id: {error}")))
        };
        let fail = |error: ServiceError| SystemError::new(error.kind(), error);
        match item {
            RecordItem::Context { context_id, spec } => {
                let path = spec.kv.as_ref().ok_or_else(|| {
                    SystemError::new("config", format!("{} moves no KV", spec.system))
                })?;
                let id = id(context_id)?;
                let variant = shared.variant(&path.wire_variant()?).map_err(fail)?;
                if let Some(by) = path.codec.scored_by() {
                    self.record_scores(shared, &id, by).await.map_err(fail)?;
                }
                let key = kv_key(shared, &id, &variant);
                if self.recording.has_kv(&key) {
                    return Ok(None);
                }
                let ready = shared
                    .edge_shaped_live(&id, &variant, deadline_ns)
                    .await
                    .map_err(fail)?;
                let (recording, block) = (self.recording.clone(), ready.block.clone());
                let align_ns = ready.align_ns;
                let put = shared.work(move || recording.put_kv(&key, &block, align_ns));
                let put = put.await.map_err(fail)?;
                put.map_err(|error| SystemError::new("recording", error))?;
                // What was computed for the recording is not there for a measured request.
                shared.evict(&id);
                Ok(None)
            }
            RecordItem::Answer {
                context_id,
                history,
                user,
                sampling,
                seed,
                max_tokens,
            } => {
                let id = id(context_id)?;
                let context = shared.context(&id).map_err(fail)?;
                let model = shared.engine.model().clone();
                let (history, user) = (history.clone(), user.clone());
                let prompt = shared
                    .work(move || model.conversation_tokens(&context.system, &history, &user))
                    .await
                    .map_err(fail)?
                    .map_err(|error| fail(invalid(error)))?;
                let asked = Asked {
                    context: &id,
                    prompt: &prompt,
                    sampling: *sampling,
                    seed: *seed,
                    max_tokens: *max_tokens,
                };
                let key = asked.key(shared);
                let broken = |error| SystemError::new("recording", error);
                if let Some(answer) = self.recording.answer(&key).map_err(broken)? {
                    return Ok(Some(answer.text()));
                }
                let answer = live_answer(shared, &asked, deadline_ns)
                    .await
                    .map_err(fail)?;
                self.recording.put_answer(&key, &answer).map_err(broken)?;
                Ok(Some(answer.text()))
            }
        }
    }
}

impl Replay {
    /// Has the live model score a context's tokens, unless that was done.
    async fn record_scores(
        &self,
        shared: &Shared,
        id: &ContextId,
        by: ScoredBy,
    ) -> Result<(), ServiceError> {
        let key = scores_key(shared, id, by);
        let recorded = self.recording.scores(&key).map_err(internal)?;
        if recorded.is_none() {
            let scored = shared.scores_live(id, by).await?;
            let put = self.recording.put_scores(&key, &scored.scores);
            put.map_err(internal)?;
        }
        Ok(())
    }
}

/// A prompt to the cloud's model.
pub(super) struct Asked<'a> {
    pub(super) context: &'a ContextId,
    pub(super) prompt: &'a [u32],
    pub(super) sampling: Sampling,
    pub(super) seed: u64,
    pub(super) max_tokens: usize,
}

impl Asked<'_> {
    fn key(&self, shared: &Shared) -> AnswerKey {
        AnswerKey::new(
            &shared.model().decoder.fingerprint().to_string(),
            self.context,
            self.prompt,
            self.sampling,
            self.seed,
            self.max_tokens,
        )
    }
}

async fn live_answer(
    shared: &Shared,
    asked: &Asked<'_>,
    deadline_ns: u64,
) -> Result<RecordedAnswer, ServiceError> {
    let (prefix, _) = shared.native_prefix(asked.context, deadline_ns).await?;
    let session = shared.engine.session(SessionRequest {
        client: 0,
        context: SessionContext::Ready(prefix),
        prompt: asked.prompt.to_vec(),
        sampling: asked.sampling,
        seed: asked.seed,
        max_tokens: asked.max_tokens,
        deadline_ns,
    });
    let mut session = session.map_err(to_service)?;
    let mut tokens = Vec::new();
    loop {
        match session.next_event().await.map_err(to_service)? {
            SessionEvent::Prefilled(_) => {}
            SessionEvent::Token(token) => tokens.push((token.id, token.text)),
            SessionEvent::End(end) => {
                let ending = match end.ending {
                    Ending::Turn => RecordedEnding::Turn,
                    Ending::Length => RecordedEnding::Length,
                    Ending::Full => RecordedEnding::Full,
                };
                return Ok(RecordedAnswer { tokens, ending });
            }
        }
    }
}

impl Answering {
    /// The next event of the answer.
    pub(super) async fn next(&mut self, deadline_ns: u64) -> Result<Replayed, ServiceError> {
        let ended = match self.answer.ending {
            RecordedEnding::Turn => Ending::Turn,
            RecordedEnding::Length => Ending::Length,
            RecordedEnding::Full => Ending::Full,
        };
        match beat(&mut self.beats, deadline_ns).await? {
            Some(Beat::Prefilled {
                at_ns,
                queued_ns,
                worked_ns,
            }) => Ok(Replayed::Prefilled {
                at_ns,
                queued_ns,
                prefill_ns: worked_ns,
            }),
            Some(Beat::Sample { at_ns }) => match self.answer.tokens.get(self.next) {
                Some((id, text)) => {
                    self.next += 1;
                    Ok(Replayed::Token {
                        id: *id,
                        text: text.clone(),
                        at_ns,
                    })
                }
                None => Ok(Replayed::End(ended)),
            },
            None if self.next == self.answer.tokens.len() => Ok(Replayed::End(ended)),
            None => Err(gone()),
        }
    }
}

async fn beat(
    beats: &mut mpsc::Receiver<Beat>,
    deadline_ns: u64,
) -> Result<Option<Beat>, ServiceError> {
    let left = Duration::from_nanos(deadline_ns.saturating_sub(now_ns()));
    tokio::time::timeout(left, beats.recv())
        .await
        .map_err(|_| ServiceError::DeadlineExceeded("the call's time is up".to_owned()))
}

fn kv_key(shared: &Shared, id: &ContextId, variant: &EdgeVariant) -> KvKey {
    // The edge model's own KV depends on that model; a bridge's key holds the bridge's hash, and the
    // cloud model is named beside.
    let edge = match variant {
        EdgeVariant::Identity(engine) => engine.model().decoder.fingerprint().to_string(),
        EdgeVariant::Native | EdgeVariant::Bridged(..) => String::new(),
    };
    KvKey {
        model: shared.model().decoder.fingerprint().to_string(),
        context: id.to_string(),
        variant: format!("{}{edge}", variant.key()),
    }
}

fn scores_key(shared: &Shared, id: &ContextId, by: ScoredBy) -> ScoresKey {
    let engine = shared.edge_engine.as_ref();
    ScoresKey {
        model: engine.map_or_else(String::new, |engine| {
            engine.model().decoder.fingerprint().to_string()
        }),
        context: id.to_string(),
        by: by.name().to_owned(),
    }
}

fn not_recorded(what: &str) -> ServiceError {
    ServiceError::NotRecorded(format!(
        "{what} is not in the recording; a replayed cloud computes nothing"
    ))
}

fn gone() -> ServiceError {
    ServiceError::Unavailable("the cloud is shutting down".to_owned())
}
