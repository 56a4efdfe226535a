//! The engine's thread: admission, and step after step.

use super::context::{ContextJob, Key, Known};
use super::fair::FairQueue;
use super::handle::{ContextKv, Ending};
use super::limits::{EngineLimits, Pace};
use super::scheduler::{Candidate, Plan, Scheduler, Want};
use super::session::{NewSession, Progress, Session};
use super::shared::{Shared, Submission};
use super::times::{State, StateClock};
use crate::LoadedModel;
use crate::SystemError;
use crate::clock::now_ns;
use celslm_kv::KvShape;
use celslm_model::{BatchItem, Decoder, KvPrefix, Logits};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

/// Forgotten results are looked for when this many are known.
const KNOWN_SWEEP: usize = 64;

enum Waiting {
    Session(Box<NewSession>),
    Context(Box<ContextJob>),
}

enum Body {
    Session(Box<Session>),
    Context(Box<ContextJob>),
}

struct Job {
    id: u64,
    body: Body,
}

impl Job {
    fn client(&self) -> u32 {
        match &self.body {
            Body::Session(session) => session.client,
            Body::Context(context) => context.client,
        }
    }

    fn clock(&mut self) -> &mut StateClock {
        match &mut self.body {
            Body::Session(session) => &mut session.clock,
            Body::Context(context) => &mut context.clock,
        }
    }

    fn want(&self, num_layers: usize) -> Want {
        match &self.body {
            Body::Session(session) => session.want(num_layers),
            Body::Context(context) => context.want(),
        }
    }

    fn running(&self) -> State {
        match &self.body {
            Body::Session(session) => session.running(),
            Body::Context(_) => State::Prefill,
        }
    }

    fn item(&mut self, tokens: usize) -> Option<BatchItem<'_>> {
        match &mut self.body {
            Body::Session(session) => Some(session.item(tokens)),
            Body::Context(context) => context.item(tokens),
        }
    }

    fn fail(self, error: SystemError, now: u64) {
        match self.body {
            Body::Session(session) => session.fail(error),
            Body::Context(context) => context.answer(&Err(error), now),
        }
    }
}

/// A job's part of a step: where it is, how many tokens it ran, and what they led to.
struct Ran {
    index: usize,
    tokens: usize,
    sampled: Result<Option<u32>, SystemError>,
}

/// How a job came to its end.
enum Done {
    Failed(SystemError),
    Ended(Ending),
    Computed(ContextKv),
}

/// The thread's state.
pub(super) struct Worker {
    model: Arc<LoadedModel>,
    shared: Arc<Shared>,
    limits: EngineLimits,
    pace: Pace,
    num_layers: usize,
    scheduler: Scheduler,
    admission: FairQueue,
    waiting: Vec<Waiting>,
    /// In the order of admission.
    active: Vec<Job>,
    known: HashMap<Key, Known>,
    next_id: u64,
}

impl Worker {
    pub(super) fn new(
        model: Arc<LoadedModel>,
        shared: Arc<Shared>,
        limits: EngineLimits,
        pace: Pace,
    ) -> Self {
        let num_layers = model.decoder.config().num_hidden_layers;
        Self {
            model,
            shared,
            limits,
            pace,
            num_layers,
            scheduler: Scheduler::new(limits.step_tokens, num_layers),
            admission: FairQueue::default(),
            waiting: Vec::new(),
            active: Vec::new(),
            known: HashMap::new(),
            next_id: 0,
        }
    }

    /// Works until the engine is dropped.
    pub(super) fn run(mut self) {
        while let Some(submissions) = self.shared.receive() {
            for submission in submissions {
                self.accept(submission);
            }
            self.expire();
            self.admit();
            let plan = self.plan();
            self.publish();
            if plan.is_empty() {
                self.shared.wait(self.next_deadline());
            } else {
                self.step(&plan);
            }
        }
        self.shared.close();
    }

    fn accept(&mut self, submission: Submission) {
        match submission {
            Submission::Session(new) => self.waiting.push(Waiting::Session(new)),
            Submission::Forget(start) => {
                self.known.retain(|Key(key, _), _| !key.starts_with(&start));
            }
            Submission::Context(new) => {
                if let Some(kv) = self.known.get(&new.key).and_then(Known::get) {
                    new.share(kv, now_ns());
                    return;
                }
                let active = self
                    .active
                    .iter_mut()
                    .filter_map(|job| match &mut job.body {
                        Body::Context(context) => Some(context),
                        Body::Session(_) => None,
                    });
                let waiting = self.waiting.iter_mut().filter_map(|job| match job {
                    Waiting::Context(context) => Some(context),
                    Waiting::Session(_) => None,
                });
                match active.chain(waiting).find(|job| job.key == new.key) {
                    Some(job) => {
                        job.join(new, false);
                    }
                    None => {
                        let job = Box::new(ContextJob::new(new));
                        self.waiting.push(Waiting::Context(job));
                    }
                }
            }
        }
    }

    /// Drops what nobody wants any more, and fails what is late.
    fn expire(&mut self) {
        let now = now_ns();
        let (mut failed, mut cancelled) = (0, 0);
        for job in std::mem::take(&mut self.waiting) {
            match job {
                Waiting::Session(session) if session.events.is_closed() => cancelled += 1,
                Waiting::Session(session) if now > session.request.deadline_ns => {
                    failed += 1;
                    session.fail(late());
                }
                Waiting::Context(mut context) => {
                    let left = context.expire(now);
                    failed += left.failed;
                    cancelled += left.cancelled;
                    if context.is_wanted() {
                        self.waiting.push(Waiting::Context(context));
                    }
                }
                job @ Waiting::Session(_) => self.waiting.push(job),
            }
        }
        for mut job in std::mem::take(&mut self.active) {
            match &mut job.body {
                Body::Session(session) if session.is_cancelled() => cancelled += 1,
                Body::Session(session) if now > session.deadline_ns => {
                    failed += 1;
                    job.fail(late(), now);
                }
                Body::Context(context) => {
                    let left = context.expire(now);
                    failed += left.failed;
                    cancelled += left.cancelled;
                    if context.is_wanted() {
                        self.active.push(job);
                    }
                }
                Body::Session(_) => self.active.push(job),
            }
        }
        if failed + cancelled > 0 {
            let mut stats = self.shared.stats();
            stats.failed += failed;
            stats.cancelled += cancelled;
        }
    }

    fn next_deadline(&self) -> Option<u64> {
        let waiting = self.waiting.iter().filter_map(|job| match job {
            Waiting::Session(session) => Some(session.request.deadline_ns),
            Waiting::Context(context) => context.deadline_ns(),
        });
        let active = self.active.iter().filter_map(|job| match &job.body {
            Body::Session(session) => Some(session.deadline_ns),
            Body::Context(context) => context.deadline_ns(),
        });
        waiting.chain(active).min()
    }

    /// Admits as many as there are places and bytes for, fairly, and without letting anyone
    /// overtake who does not fit yet.
    fn admit(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let shape = self.model.decoder.kv_shape();
        let mut reserved = Reserved::new(shape, &self.active);
        let mut places = self
            .limits
            .max_sessions
            .max(1)
            .saturating_sub(self.active.len());
        let kv_bytes = self.limits.kv_bytes;
        let mut admitted = vec![false; self.waiting.len()];
        let mut full = false;
        let offers = self.waiting.iter().enumerate().map(|(index, job)| {
            let client = match job {
                Waiting::Session(session) => session.request.client,
                Waiting::Context(context) => context.client,
            };
            (client, (index, job))
        });
        self.admission.offer(offers, |(index, job)| {
            let need = reserved.need(job);
            if full || places == 0 || (reserved.bytes > 0 && reserved.bytes + need > kv_bytes) {
                full = true;
                return false;
            }
            places -= 1;
            reserved.add(job);
            admitted[index] = true;
            true
        });
        for (job, admitted) in std::mem::take(&mut self.waiting).into_iter().zip(admitted) {
            if admitted {
                self.enter(job);
            } else {
                self.waiting.push(job);
            }
        }
    }

    /// Gives an admitted job its cache.
    fn enter(&mut self, job: Waiting) {
        let body = match job {
            Waiting::Session(new) => match Session::cache(&new, &self.model) {
                Ok(cache) => Body::Session(Box::new(Session::admit(*new, cache))),
                Err(error) => {
                    self.shared.stats().failed += 1;
                    new.fail(error.into());
                    return;
                }
            },
            Waiting::Context(mut context) => match context.admit(&self.model) {
                Ok(()) => Body::Context(context),
                Err(error) => {
                    self.shared.stats().failed += 1;
                    context.answer(&Err(error.into()), now_ns());
                    return;
                }
            },
        };
        self.active.push(Job {
            id: self.next_id,
            body,
        });
        self.next_id += 1;
    }

    fn plan(&mut self) -> Plan {
        let now = now_ns();
        let candidates: Vec<_> = self
            .active
            .iter_mut()
            .map(|job| {
                if let Body::Session(session) = &mut job.body {
                    session.settle(now);
                }
                Candidate {
                    id: job.id,
                    client: job.client(),
                    want: job.want(self.num_layers),
                }
            })
            .collect();
        self.scheduler.plan(&candidates)
    }

    /// Brings the gauges up to date.
    fn publish(&self) {
        let (mut bytes, mut prefixes) = (0, Vec::new());
        for job in &self.active {
            match &job.body {
                Body::Context(context) => bytes += context.kv_bytes(),
                Body::Session(session) => {
                    bytes += session.cache.tail_bytes();
                    if let Some(prefix) = session.prefix()
                        && !prefixes.contains(&Arc::as_ptr(prefix))
                    {
                        prefixes.push(Arc::as_ptr(prefix));
                        bytes += prefix.bytes();
                    }
                }
            }
        }
        let mut stats = self.shared.stats();
        stats.kv_bytes = bytes as u64;
        stats.peak_kv_bytes = stats.peak_kv_bytes.max(stats.kv_bytes);
        stats.sessions = self.active.len() as u64;
        stats.peak_sessions = stats.peak_sessions.max(stats.sessions);
        stats.queued = self.waiting.len() as u64;
        stats.peak_queued = stats.peak_queued.max(stats.queued);
    }

    fn step(&mut self, plan: &Plan) {
        for &(id, layers) in &plan.layers {
            self.run_layers(id, layers);
        }
        if !plan.rows.is_empty() {
            self.run_rows(&plan.rows);
        }
    }

    /// A stretch of computing begins: its jobs run, and no other does.
    fn begin(&mut self, jobs: &[u64]) -> u64 {
        let now = now_ns();
        for job in &mut self.active {
            let state = match jobs.contains(&job.id) {
                true => job.running(),
                false => match job.clock().state() {
                    State::Blocked => State::Blocked,
                    _ => State::Queued,
                },
            };
            job.clock().enter(state, now);
        }
        now
    }

    /// The stretch ends once a machine of this pace would have ended it.
    fn end(&self, start_ns: u64, prompt_tokens: usize, decoded: usize) -> u64 {
        let worked_ns = now_ns() - start_ns;
        let pause_ns = self.pace.pause_ns(worked_ns, prompt_tokens, decoded);
        if pause_ns > 0 {
            std::thread::sleep(Duration::from_nanos(pause_ns));
        }
        now_ns()
    }

    /// Runs one prompt through some layers by itself.
    fn run_layers(&mut self, id: u64, layers: usize) {
        let start_ns = self.begin(&[id]);
        let Some(index) = self.active.iter().position(|job| job.id == id) else {
            return;
        };
        let model = self.model.clone();
        let Body::Session(session) = &mut self.active[index].body else {
            return;
        };
        let sampled = guarded(|| session.run_layers(&model, layers))
            .map(|logits| logits.map(|logits| session.sample(&logits)));
        let computed = match &sampled {
            Ok(Some(_)) => session.prompt_len(),
            _ => 0,
        };
        let end_ns = self.end(start_ns, 0, 0);
        {
            let mut stats = self.shared.stats();
            stats.layer_steps += layers as u64;
            stats.prefill_tokens += computed as u64;
            stats.busy_ns += end_ns - start_ns;
        }
        let goes_on = matches!(sampled, Ok(None));
        self.settle_step(
            vec![Ran {
                index,
                tokens: 0,
                sampled,
            }],
            end_ns,
        );
        if goes_on && let Body::Session(session) = &mut self.active[index].body {
            session.clock.enter(State::Queued, end_ns);
            session.settle(end_ns);
        }
    }

    /// One ragged pass.
    fn run_rows(&mut self, rows: &[(u64, usize)]) {
        let ids: Vec<u64> = rows.iter().map(|(id, _)| *id).collect();
        let start_ns = self.begin(&ids);
        let model = self.model.clone();
        let mut indices = Vec::with_capacity(rows.len());
        let mut items = Vec::with_capacity(rows.len());
        for (index, job) in self.active.iter_mut().enumerate() {
            if let Some((_, tokens)) = rows.iter().find(|(id, _)| *id == job.id)
                && let Some(item) = job.item(*tokens)
            {
                indices.push(index);
                items.push(item);
            }
        }
        let tokens: Vec<usize> = items.iter().map(|item| item.tokens.len()).collect();
        let outputs = forward(&model.decoder, &mut items);
        drop(items);
        let mut ran = Vec::with_capacity(indices.len());
        let (mut total, mut decoded) = (0, 0);
        for ((index, tokens), output) in indices.into_iter().zip(tokens).zip(outputs) {
            let sampled = output.map(|logits| {
                let Body::Session(session) = &mut self.active[index].body else {
                    return None;
                };
                logits.map(|logits| session.sample(&logits))
            });
            total += tokens;
            decoded += usize::from(self.active[index].running() == State::Decode);
            ran.push(Ran {
                index,
                tokens,
                sampled,
            });
        }
        let end_ns = self.end(start_ns, total - decoded, decoded);
        {
            let mut stats = self.shared.stats();
            stats.count_step(total);
            stats.busy_ns += end_ns - start_ns;
            stats.prefill_tokens += (total - decoded) as u64;
        }
        // The caches are at their largest now, before anyone who is done lets go of them.
        self.publish();
        self.settle_step(ran, end_ns);
    }

    /// Takes note of what a stretch computed, tells the callers, and lets go of what is done.
    fn settle_step(&mut self, ran: Vec<Ran>, end_ns: u64) {
        let model = self.model.clone();
        let (mut tokens, mut completed, mut failed) = (0, 0, 0);
        let mut done = Vec::new();
        for Ran {
            index,
            tokens: ran,
            sampled,
        } in ran
        {
            match (&mut self.active[index].body, sampled) {
                (_, Err(error)) => done.push((index, Done::Failed(error))),
                (Body::Session(session), Ok(sampled)) => {
                    tokens += u64::from(sampled.is_some());
                    match session.advance(&model, ran, sampled, end_ns) {
                        Ok(Progress::Going) => {}
                        Ok(Progress::Ended(ending)) => done.push((index, Done::Ended(ending))),
                        Err(error) => done.push((index, Done::Failed(error))),
                    }
                }
                (Body::Context(context), Ok(_)) => {
                    if context.advance(ran) {
                        done.push((
                            index,
                            match context.finish(&model) {
                                Ok(kv) => Done::Computed(kv),
                                Err(error) => Done::Failed(error),
                            },
                        ));
                    }
                }
            }
        }
        for (_, done) in &done {
            match done {
                Done::Failed(_) => failed += 1,
                Done::Ended(_) => completed += 1,
                Done::Computed(_) => {}
            }
        }
        {
            // Counted before it is told, so that whoever was told finds it counted.
            let mut stats = self.shared.stats();
            stats.tokens += tokens;
            stats.completed += completed;
            stats.failed += failed;
        }
        // From the back, so that the places of the others stay as they are.
        done.sort_by_key(|(index, _)| std::cmp::Reverse(*index));
        for (index, done) in done {
            let job = self.active.remove(index);
            match (job.body, done) {
                (body, Done::Failed(error)) => Job { id: job.id, body }.fail(error, end_ns),
                (Body::Session(session), Done::Ended(ending)) => session.end(ending),
                (Body::Context(context), Done::Computed(kv)) => {
                    self.remember(context.key.clone(), &kv);
                    context.answer(&Ok(kv), now_ns());
                }
                // No session is computed like a context, and no context ends.
                (Body::Session(_), Done::Computed(_)) | (Body::Context(_), Done::Ended(_)) => {}
            }
        }
    }

    fn remember(&mut self, key: Key, kv: &ContextKv) {
        if self.known.len() >= KNOWN_SWEEP {
            self.known.retain(|_, known| known.get().is_some());
        }
        self.known.insert(key, Known::new(kv));
    }
}

/// The error of what took too long.
pub(super) fn late() -> SystemError {
    SystemError::new("deadline", "the request's time is up")
}

/// A pass whose failure is its own: when a batch fails, its items are run one by one, so that
/// only the one at fault does.
fn forward(
    decoder: &Decoder,
    items: &mut [BatchItem<'_>],
) -> Vec<Result<Option<Logits>, SystemError>> {
    let lens: Vec<usize> = items.iter().map(|item| item.cache.len(0)).collect();
    let error = match guarded(|| Ok(decoder.forward_batch(items)?)) {
        Ok(outputs) => return outputs.into_iter().map(Ok).collect(),
        Err(error) => error,
    };
    if items.len() == 1 {
        return vec![Err(error)];
    }
    items
        .iter_mut()
        .zip(lens)
        .map(|(item, len)| {
            // The failed pass may have appended to some layers.
            item.cache.truncate(len)?;
            let mut outputs = guarded(|| Ok(decoder.forward_batch(std::slice::from_mut(item))?))?;
            Ok(outputs.pop().flatten())
        })
        .collect()
}

/// Turns a panic of the model into an error of the job that caused it.
fn guarded<T>(compute: impl FnOnce() -> Result<T, SystemError>) -> Result<T, SystemError> {
    catch_unwind(AssertUnwindSafe(compute))
        .unwrap_or_else(|_| Err(SystemError::new("model", "the model panicked in a step")))
}

/// KV bytes that the admitted may grow to.
struct Reserved {
    token_bytes: usize,
    bytes: usize,
    prefixes: Vec<*const KvPrefix>,
}

impl Reserved {
    fn new(shape: KvShape, active: &[Job]) -> Self {
        let mut reserved = Self {
            token_bytes: shape.num_layers * shape.num_kv_heads * shape.head_dim * 4,
            bytes: 0,
            prefixes: Vec::new(),
        };
        for job in active {
            match &job.body {
                Body::Session(session) => {
                    reserved.bytes += session.capacity() * reserved.token_bytes;
                    reserved.add_prefix(session.prefix());
                }
                Body::Context(context) => reserved.bytes += context.len() * reserved.token_bytes,
            }
        }
        reserved
    }

    fn tail(&self, job: &Waiting) -> usize {
        self.token_bytes
            * match job {
                Waiting::Session(session) => session.capacity,
                Waiting::Context(context) => context.len(),
            }
    }

    /// What a job would add.
    fn need(&self, job: &Waiting) -> usize {
        let prefix = match job {
            Waiting::Session(session) => session.request.context.prefix(),
            Waiting::Context(_) => None,
        };
        let shared = prefix.map_or(0, |prefix| {
            match self.prefixes.contains(&Arc::as_ptr(prefix)) {
                true => 0,
                false => prefix.len() * self.token_bytes,
            }
        });
        self.tail(job) + shared
    }

    fn add(&mut self, job: &Waiting) {
        self.bytes += self.tail(job);
        if let Waiting::Session(session) = job {
            self.add_prefix(session.request.context.prefix());
        }
    }

    fn add_prefix(&mut self, prefix: Option<&Arc<KvPrefix>>) {
        if let Some(prefix) = prefix
            && !self.prefixes.contains(&Arc::as_ptr(prefix))
        {
            self.prefixes.push(Arc::as_ptr(prefix));
            self.bytes += prefix.len() * self.token_bytes;
        }
    }
}
