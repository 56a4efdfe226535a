//! Rounds of a load: all requests of a block, made at their times, many under way at once.
//!
//! A round begins with the caches in the state that the cell's contract names, for every context
//! that it asks about; from then on they work as they would in service. Its samples are appended
//! while it runs, and its facts (`load.json`) when it is over: a round without facts was cut off,
//! and is made again from its start.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use celslm_datasets::{Arrival, Prompt};
use celslm_reports::{LoadRound, MemoryPoint, Sample, SendDelay};
use celslm_systems::clock::now_ns;
use celslm_systems::control::EdgeCommand;
use celslm_systems::engine::NodeStats;
use celslm_systems::{Answer, CloudNeed, ContextRef, Contract, Request};

use super::{
    Observer, Outcome, Progress, REFERENCE_SYSTEM, Row, SETTLE, Session, SessionError,
    must_match_reference, rtt,
};
use crate::campaign::Campaign;
use crate::deployment::{Deployment, DeploymentError, EdgeControl};
use crate::load::arrivals::When;
use crate::load::dispatch::{Dispatch, Dispatched, Done, History, dispatch, kind};
use crate::load::overload::OverloadRule;
use crate::load::search::{Level, Search, quantile};
use crate::plan::{Block, Cell, PlannedRequest, Round};
use crate::store::Store;

/// From the moment that everything is ready until a round starts.
const LEAD: Duration = Duration::from_millis(200);
/// Beyond a request's own time, how long its reply is waited for.
const REPLY_SLACK: Duration = Duration::from_secs(30);
/// Samples are written in batches of so many …
const BATCH: usize = 256;
/// … or after so long.
const FLUSH: Duration = Duration::from_millis(500);
/// How often the nodes' memory is read, and, after a failure, whether they are still there.
const MEMORY_EVERY: Duration = Duration::from_secs(5);
/// Most readings of memory in a round.
const MEMORY_POINTS: usize = 2000;

/// How a block ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockEnd {
    /// Its rounds are in the store.
    Done,
    /// It was stopped from outside.
    Interrupted,
}

/// What one level left behind.
struct LevelEnd {
    facts: LoadRound,
    level: Level,
}

/// A level to run.
struct LevelPlan<'a> {
    block: &'a Block,
    cell: &'a Cell,
    /// Index of its round.
    round: u32,
    /// Which level of the block it is, from 0.
    index: u32,
    /// By what the plan's arrivals are stretched.
    stretch: f64,
    offered_rps: Option<f64>,
    degraded: bool,
}

/// The requests of a block with their texts.
struct Texts {
    contexts: Vec<ContextRef>,
    /// Index of the context and the private text, for each request.
    requests: Vec<(usize, String)>,
}

impl Session<'_> {
    /// Runs a block under load, which [`Session::run`] has found to be missing.
    #[expect(
        clippy::too_many_arguments,
        reason = "what a session is made of, each used here"
    )]
    pub(super) fn run_rounds(
        &self,
        block: &Block,
        round: &Round,
        deployment: &mut Deployment,
        store: &mut Store,
        observer: &mut dyn Observer,
        outcome: &mut Outcome,
        progress: &mut Progress,
    ) -> Result<BlockEnd, SessionError> {
        let cell = &self.plan.cells[block.cell];
        self.enter_link(cell, deployment, observer, outcome, progress)?;
        if let Some(campaign) = outcome.campaigns.last_mut() {
            campaign.cells.insert(cell.id.clone());
        }
        let degraded = outcome.campaigns.last().is_some_and(Campaign::degraded);
        let texts = self.texts(cell, &block.requests, deployment, progress)?;
        let mut plan = LevelPlan {
            block,
            cell,
            round: round.rounds.start,
            index: 0,
            stretch: 1.0,
            offered_rps: cell.load.offered_rps,
            degraded,
        };
        let mut rounds = Vec::new();
        let mut sink = Sink { store, observer };
        match cell.load.search {
            None => match self.run_level(&plan, &texts, deployment, &mut sink, progress)? {
                Some(end) => rounds.push(end.facts),
                None => return Ok(BlockEnd::Interrupted),
            },
            Some(rule) => {
                let planned_rps = plan.offered_rps.unwrap_or(1.0);
                let mut search = Search::new(rule);
                while let Some(rate) = search.next_rate() {
                    plan.round = round.rounds.start + plan.index;
                    plan.stretch = planned_rps / rate;
                    plan.offered_rps = Some(rate);
                    let Some(end) =
                        self.run_level(&plan, &texts, deployment, &mut sink, progress)?
                    else {
                        return Ok(BlockEnd::Interrupted);
                    };
                    search.judge(rate, self.holds(&end));
                    rounds.push(end.facts);
                    plan.index += 1;
                }
            }
        }
        sink.store.finish_rounds(&cell.id, rounds)?;
        Ok(BlockEnd::Done)
    }

    /// Whether a level kept the objective, and the dispatcher kept to its plan.
    fn holds(&self, end: &LevelEnd) -> bool {
        let slo = self.config.slo;
        end.facts.valid
            && end.facts.stopped.is_none()
            && end.facts.dropped_arrivals == 0
            && end.level.holds(slo.ttft_ms, slo.tpot_ms)
    }

    /// Publishes every context of the block.
    fn texts(
        &self,
        cell: &Cell,
        requests: &[PlannedRequest],
        deployment: &mut Deployment,
        progress: &mut Progress,
    ) -> Result<Texts, SessionError> {
        let mut texts = Texts {
            contexts: Vec::new(),
            requests: Vec::with_capacity(requests.len()),
        };
        let mut by_document: HashMap<usize, usize> = HashMap::new();
        for planned in requests {
            let (document, question) = self.asked(cell, planned);
            let mut prompt = Prompt::new(document, question);
            if let Some(words) = planned.prompt_words {
                prompt = prompt.padded(words, planned.seed);
            }
            let context = match by_document.get(&planned.document) {
                Some(&context) => context,
                None => {
                    let context = self.context(&prompt.system, deployment, progress)?;
                    texts.contexts.push(context);
                    by_document.insert(planned.document, texts.contexts.len() - 1);
                    texts.contexts.len() - 1
                }
            };
            texts.requests.push((context, prompt.user));
        }
        Ok(texts)
    }

    /// Runs one level; `None` when it was stopped from outside.
    fn run_level(
        &self,
        plan: &LevelPlan<'_>,
        texts: &Texts,
        deployment: &mut Deployment,
        sink: &mut Sink<'_>,
        progress: &mut Progress,
    ) -> Result<Option<LevelEnd>, SessionError> {
        let cell = plan.cell;
        let timeout = self.config.workload.request_timeout();
        for context in &texts.contexts {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            for edge in 0..deployment.edges() {
                deployment.prepare(edge, &cell.spec, cell.contract, context, timeout)?;
            }
        }
        let settle = SETTLE + rtt(&self.inputs.links[&cell.link]);
        std::thread::sleep(settle);
        let before = deployment.counters()?;
        deployment.stats(true)?;

        let when = when(&plan.block.requests, plan.stretch);
        let users = cell.load.users;
        let start_ns = now_ns() + LEAD.as_nanos() as u64;
        let edges: Vec<&EdgeControl> = (0..deployment.edges())
            .map(|edge| deployment.edge(edge))
            .collect();
        let edge_of = |index: usize| {
            let planned = &plan.block.requests[index];
            let client = planned.conversation.unwrap_or(index as u32);
            (client as usize % edges.len(), client)
        };
        let make = |index: usize, scheduled_ns: u64, history: History| {
            let planned = &plan.block.requests[index];
            let (context, user) = &texts.requests[index];
            let (edge, client) = edge_of(index);
            let request = Request {
                context: texts.contexts[*context].clone(),
                user: user.clone(),
                sampling: self.config.generation.sampling,
                seed: planned.seed,
                max_tokens: planned
                    .max_tokens
                    .unwrap_or(self.config.generation.max_tokens),
                scheduled_ns,
                timeout_ms: timeout.as_millis() as u64,
                history,
                client,
            };
            let spec = cell.spec.clone();
            (edge, EdgeCommand::Answer { spec, request })
        };
        // A failure here must end the dispatcher, too.
        let halt = AtomicBool::new(false);
        let stop = || halt.load(Ordering::Relaxed) || self.stop.load(Ordering::Relaxed);
        let dispatch_plan = Dispatch {
            edges: edges.clone(),
            when: &when,
            start_ns,
            users,
            max_in_flight: self.config.workload.max_in_flight.max(users),
            overload: self.overload_rule(),
            drain: timeout + REPLY_SLACK,
            make: &make,
            stop: &stop,
        };
        let mut collector = Collector {
            session: self,
            plan,
            texts,
            start_ns,
            edge_of: &edge_of,
            batch: Vec::new(),
            seen: Seen::default(),
            memory: Vec::new(),
            progress,
        };
        let (done, ends) = channel();
        let (dispatched, collected) = std::thread::scope(|scope| {
            let dispatcher = std::thread::Builder::new()
                .name("dispatch".to_owned())
                .spawn_scoped(scope, || dispatch(&dispatch_plan, done))
                .map_err(DeploymentError::Thread)?;
            let collected = collector.collect(&ends, deployment, sink);
            if collected.is_err() {
                halt.store(true, Ordering::Relaxed);
            }
            let dispatched = dispatcher
                .join()
                .map_err(|_| DeploymentError::Mismatch("the dispatcher ended early".to_owned()))?;
            Ok::<_, SessionError>((dispatched, collected))
        })?;
        let Collector { seen, memory, .. } = collector;
        collected?;
        if dispatched.interrupted {
            return Ok(None);
        }
        if seen.failed > 0 || dispatched.broken.is_some() {
            deployment.check_alive()?;
        }
        if let Some((edge, source)) = dispatched.broken {
            return Err(deployment.edge_failed(edge, source).into());
        }
        std::thread::sleep(settle);
        let after = deployment.counters()?;
        let traffic = before
            .zip(after)
            .map(|(before, after)| after.since(&before));
        check_touches(cell, &seen.touches)?;
        let stats = deployment.stats(false)?;
        let mut facts = self.facts(plan, start_ns, &dispatched, &seen, stats);
        facts.memory = memory;
        facts.uplink_bytes = traffic.map(|traffic| traffic.uplink.bytes);
        facts.downlink_bytes = traffic.map(|traffic| traffic.downlink.bytes);
        sink.observer.round(cell, &facts);
        let level = seen.level;
        Ok(Some(LevelEnd { facts, level }))
    }

    fn overload_rule(&self) -> OverloadRule {
        let overload = self.config.workload.overload;
        let ttft_ms = overload.ttft_factor * self.config.slo.ttft_ms;
        OverloadRule {
            failed_share: overload.failed_share,
            ttft: Duration::from_secs_f64(ttft_ms / 1e3),
            window: Duration::from_secs_f64(overload.window_s),
        }
    }

    fn facts(
        &self,
        plan: &LevelPlan<'_>,
        start_ns: u64,
        dispatched: &Dispatched,
        seen: &Seen,
        (edge, cloud): (NodeStats, NodeStats),
    ) -> LoadRound {
        let delays: Vec<f64> = dispatched
            .send_delays_ns
            .iter()
            .map(|&ns| ns as f64 / 1e6)
            .collect();
        let delay = |q: f64| quantile(&delays, q).unwrap_or(0.0);
        let send_delay_ms = SendDelay {
            p50: delay(0.5),
            p99: delay(0.99),
            max: delay(1.0),
        };
        let limit = self.config.workload.send_delay_p99_ms;
        let invalid_reason = (send_delay_ms.p99 > limit).then(|| {
            format!(
                "requests left late: the 99th percentile of the send delay was {:.3} ms, beyond {limit} ms",
                send_delay_ms.p99
            )
        });
        // A node that cannot say leaves a 0.
        let known = |bytes: u64| (bytes > 0).then_some(bytes);
        let weights = |stats: &NodeStats| {
            let of_engines = stats.engines.iter().map(|engine| engine.weights_bytes);
            known(of_engines.sum())
        };
        let first_ns = seen.first_ns.unwrap_or(start_ns);
        LoadRound {
            round: plan.round,
            offered_rps: plan.offered_rps,
            duration_s: dispatched.end_ns.saturating_sub(first_ns) as f64 / 1e9,
            dispatched: dispatched.send_delays_ns.len() as u64,
            completed: seen.completed,
            failed: seen.failed,
            dropped_arrivals: seen.never_sent,
            send_delay_ms,
            max_in_flight: dispatched.most_in_flight as u64,
            stopped: dispatched.stopped.clone(),
            uplink_bytes: None,
            downlink_bytes: None,
            edge_peak_kv_bytes: Some(edge.peak_kv_bytes()),
            cloud_peak_kv_bytes: Some(cloud.peak_kv_bytes()),
            edge_weights_bytes: weights(&edge),
            cloud_weights_bytes: weights(&cloud),
            edge_rss_bytes: known(edge.peak_rss_bytes),
            cloud_rss_bytes: known(cloud.peak_rss_bytes),
            memory: Vec::new(),
            valid: invalid_reason.is_none(),
            invalid_reason,
        }
    }
}

/// When each request of a block is made, with its arrivals stretched.
fn when(requests: &[PlannedRequest], stretch: f64) -> Vec<When> {
    let mut turns: HashMap<(u32, u32), usize> = HashMap::new();
    requests
        .iter()
        .enumerate()
        .map(|(index, planned)| {
            let conversation = planned.conversation;
            let before = conversation
                .filter(|_| planned.turn > 0)
                .and_then(|conversation| turns.get(&(conversation, planned.turn - 1)));
            let when = match (before, planned.arrival) {
                (Some(&turn), _) => When::After {
                    turn,
                    think_ns: planned.think.as_nanos() as u64,
                },
                (None, Arrival::At(at)) => When::At(at.mul_f64(stretch).as_nanos() as u64),
                (None, Arrival::WhenFree) => When::Free,
            };
            if let Some(conversation) = conversation {
                turns.insert((conversation, planned.turn), index);
            }
            when
        })
        .collect()
}

/// Where samples go.
struct Sink<'a> {
    store: &'a mut Store,
    observer: &'a mut dyn Observer,
}

impl Sink<'_> {
    fn write(&mut self, cell: &Cell, batch: &mut Vec<Sample>) -> Result<(), SessionError> {
        self.store.append_all(batch)?;
        for sample in batch.drain(..) {
            self.observer.sample(cell, &sample);
        }
        Ok(())
    }
}

/// What the requests of a level showed.
#[derive(Default)]
struct Seen {
    completed: u64,
    failed: u64,
    never_sent: u64,
    /// The first arrival.
    first_ns: Option<u64>,
    level: Level,
    touches: Vec<Touch>,
}

/// An answered request's use of the caches.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Touch {
    context: usize,
    /// When the edge took it up, and when it was done.
    sent_ns: u64,
    end_ns: u64,
    /// The edge's and the cloud's; `None` for a request that failed.
    hits: Option<(bool, bool)>,
}

/// Turns the ends of requests into samples while a level runs.
struct Collector<'a, 'p> {
    session: &'a Session<'a>,
    plan: &'a LevelPlan<'a>,
    texts: &'a Texts,
    start_ns: u64,
    edge_of: &'a dyn Fn(usize) -> (usize, u32),
    batch: Vec<Sample>,
    seen: Seen,
    memory: Vec<MemoryPoint>,
    progress: &'p mut Progress,
}

impl Collector<'_, '_> {
    /// Runs until the dispatcher has ended.
    fn collect(
        &mut self,
        ends: &Receiver<Done>,
        deployment: &Deployment,
        sink: &mut Sink<'_>,
    ) -> Result<(), SessionError> {
        let cell = self.plan.cell;
        let mut last_flush = now_ns();
        let mut next_memory = self.start_ns;
        let mut failed_before = 0;
        loop {
            let over = match ends.recv_timeout(FLUSH) {
                Ok(done) => {
                    self.take(done);
                    false
                }
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => true,
            };
            let now = now_ns();
            let flush = now.saturating_sub(last_flush) >= FLUSH.as_nanos() as u64;
            if over || flush || self.batch.len() >= BATCH {
                sink.write(cell, &mut self.batch)?;
                last_flush = now;
            }
            if (now >= next_memory || over) && self.memory.len() < MEMORY_POINTS {
                let (edge, cloud) = deployment.stats(false)?;
                self.memory.push(MemoryPoint {
                    at_s: now.saturating_sub(self.start_ns) as f64 / 1e9,
                    edge_rss_bytes: Some(edge.rss_bytes),
                    cloud_rss_bytes: Some(cloud.rss_bytes),
                });
                next_memory = now + MEMORY_EVERY.as_nanos() as u64;
                if self.seen.failed > failed_before {
                    failed_before = self.seen.failed;
                    // A node that has ended fails every request; nothing is left to learn.
                    deployment.check_alive()?;
                }
            }
            if over {
                return Ok(());
            }
        }
    }

    fn take(&mut self, done: Done) {
        let Done {
            index,
            scheduled_ns,
            outcome,
        } = done;
        let LevelPlan {
            block,
            cell,
            round,
            offered_rps,
            degraded,
            ..
        } = *self.plan;
        let planned = &block.requests[index];
        let (context, _) = self.texts.requests[index];
        self.seen.first_ns = Some(
            self.seen
                .first_ns
                .map_or(scheduled_ns, |first| first.min(scheduled_ns)),
        );
        let end_of = |answer: &Answer| answer.token_ns.last().copied().unwrap_or(answer.sent_ns);
        match &outcome {
            Ok(answer) => {
                self.seen.completed += 1;
                self.seen.touches.push(Touch {
                    context,
                    sent_ns: answer.sent_ns,
                    end_ns: end_of(answer),
                    hits: Some((answer.edge_cache_hit, answer.cloud_store_hit)),
                });
            }
            Err(error) if kind::NEVER_SENT.contains(&error.kind.as_str()) => {
                self.seen.never_sent += 1;
            }
            Err(_) => {
                self.seen.failed += 1;
                self.seen.touches.push(Touch {
                    context,
                    sent_ns: scheduled_ns,
                    end_ns: u64::MAX,
                    hits: None,
                });
            }
        }
        let reference = self.reference(planned, &outcome);
        let (document, question) = self.session.asked(cell, planned);
        let row = Row {
            cell,
            planned,
            order: planned.order + block.stride() * u64::from(self.plan.index),
            round,
            offered_rps,
            edge: (self.edge_of)(index).0,
            document,
            question,
            context_id: &self.texts.contexts[context].context_id,
            scheduled_ns,
            degraded,
            origin_ns: self.progress.origin_ns,
        };
        let sample = row.sample(outcome, None, reference.as_deref());
        if sample.counted() {
            let ms = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e6;
            let ttft = match (sample.ok(), sample.token_ns.first()) {
                (true, Some(&first)) => ms(sample.scheduled_ns, first),
                // Without a token there is nothing that came in time.
                _ => f64::INFINITY,
            };
            self.seen.level.ttft_ms.push(ttft);
            if let [first, .., last] = sample.token_ns[..] {
                let gaps = (sample.token_ns.len() - 1) as f64;
                self.seen.level.tpot_ms.push(ms(first, last) / gaps);
            }
        }
        self.batch.push(sample);
    }

    /// What the edge alone answered to the same request earlier in this session, where a system
    /// must answer the same. A load asks nothing in addition, so there may be none.
    fn reference(
        &mut self,
        planned: &PlannedRequest,
        outcome: &Result<Answer, celslm_systems::SystemError>,
    ) -> Option<Vec<u32>> {
        let cell = self.plan.cell;
        let sampling = self.session.config.generation.sampling;
        // A later turn depends on the answers before it, whose text is the system's own.
        if planned.turn > 0 || sampling != celslm_model::Sampling::Greedy {
            return None;
        }
        let key = (
            cell.draw,
            planned.document,
            planned.question,
            planned.max_tokens,
            planned.prompt_words,
        );
        if cell.spec.system == REFERENCE_SYSTEM
            && let Ok(answer) = outcome
        {
            let ids = || answer.output_ids.clone();
            self.progress.load_references.entry(key).or_insert_with(ids);
        }
        if !must_match_reference(&cell.spec, sampling) {
            return None;
        }
        self.progress.load_references.get(&key).cloned()
    }
}

/// Holds the caches' hits against the contract. A context's state is certain only until the first
/// request that asks about it is answered, so that of each context that first answer alone is
/// checked, and not even it where another request overlapped it; what a contract promises for as
/// long as the load lasts is checked on every answer.
fn check_touches(cell: &Cell, touches: &[Touch]) -> Result<(), SessionError> {
    let fail = |reason: String| SessionError::Contract {
        cell: cell.id.clone(),
        contract: cell.contract,
        reason,
    };
    let entry =
        celslm_systems::system::find(&cell.spec.system).map_err(|error| fail(error.message))?;
    let asks_cloud = entry.cloud_need != CloudNeed::Nothing;
    let mut firsts: HashMap<usize, &Touch> = HashMap::new();
    for touch in touches {
        let first = firsts.entry(touch.context).or_insert(touch);
        if touch.sent_ns < first.sent_ns {
            *first = touch;
        }
        let Some((edge_hit, cloud_hit)) = touch.hits else {
            continue;
        };
        let large = "are the stores large enough for the documents?";
        if edge_hit && !entry.keeps_at_edge {
            return Err(fail("an edge that keeps nothing had a context".to_owned()));
        }
        if cell.contract == Contract::Warm && entry.keeps_at_edge && !edge_hit {
            return Err(fail(format!("the edge had lost a context; {large}")));
        }
        let primed = cell.contract == Contract::Primed
            || (cell.contract == Contract::Warm && !entry.keeps_at_edge);
        if primed && asks_cloud && !edge_hit && !cloud_hit {
            return Err(fail(format!("the cloud had lost a context; {large}")));
        }
    }
    if cell.contract == Contract::Warm {
        return Ok(());
    }
    for (context, first) in firsts {
        let alone = touches
            .iter()
            .filter(|touch| touch.context == context)
            .all(|touch| std::ptr::eq(touch, first) || touch.sent_ns >= first.end_ns);
        let Some((edge_hit, cloud_hit)) = first.hits.filter(|_| alone) else {
            continue;
        };
        if edge_hit || (cloud_hit && cell.contract == Contract::Cold) {
            let who = if edge_hit { "edge" } else { "cloud" };
            return Err(fail(format!(
                "the {who} had a context before the first request about it"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{config, planned};

    fn cell(system: &str, contract: Contract) -> Cell {
        let (_, plan) = planned(&config(&[]));
        let mut cell = plan
            .cells
            .into_iter()
            .find(|cell| cell.spec.system == system)
            .unwrap();
        cell.contract = contract;
        cell
    }

    fn touch(context: usize, sent_ns: u64, end_ns: u64, hits: (bool, bool)) -> Touch {
        Touch {
            context,
            sent_ns,
            end_ns,
            hits: Some(hits),
        }
    }

    #[test]
    fn first_touches_are_held_against_the_contract() {
        let good = [
            touch(0, 5, 9, (false, true)),
            touch(0, 9, 12, (true, false)),
        ];
        let primed = cell("ce_lslm", Contract::Primed);
        check_touches(&primed, &good).unwrap();
        let lost = [
            touch(0, 5, 9, (false, true)),
            touch(1, 5, 9, (false, false)),
        ];
        assert!(check_touches(&primed, &lost).is_err());
        let kept = [touch(0, 5, 9, (true, false))];
        assert!(check_touches(&primed, &kept).is_err());
        let cold = cell("ce_lslm", Contract::Cold);
        assert!(check_touches(&cold, &good).is_err());
        let first_cold = [
            touch(0, 9, 12, (true, false)),
            touch(0, 5, 9, (false, false)),
        ];
        check_touches(&cold, &first_cold).unwrap();
        let warm = cell("edge_only", Contract::Warm);
        check_touches(&warm, &kept).unwrap();
        assert!(check_touches(&warm, &good).is_err());
        let keeps_nothing = cell("cloud_only", Contract::Warm);
        check_touches(&keeps_nothing, &[touch(0, 1, 2, (false, true))]).unwrap();
        assert!(check_touches(&keeps_nothing, &kept).is_err());
    }

    #[test]
    fn overlapping_first_touches_are_ambiguous() {
        let cold = cell("ce_lslm", Contract::Cold);
        let overlapping = [
            touch(0, 5, 9, (false, true)),
            touch(0, 6, 9, (false, false)),
        ];
        check_touches(&cold, &overlapping).unwrap();
        let failed = Touch {
            hits: None,
            ..touch(0, 4, u64::MAX, (false, false))
        };
        check_touches(&cold, &[failed, touch(0, 5, 9, (true, false))]).unwrap();
    }

    #[test]
    fn arrivals_stretch_and_turns_follow() {
        let (_, plan) = planned(&config(&[]));
        let mut requests: Vec<PlannedRequest> = plan.blocks[0].requests[..1].to_vec();
        requests = vec![requests[0].clone(); 3];
        requests[0].arrival = Arrival::At(Duration::from_secs(3));
        for (turn, request) in requests.iter_mut().take(2).enumerate() {
            request.conversation = Some(7);
            request.turn = turn as u32;
            request.think = Duration::from_millis(2);
        }
        assert_eq!(
            when(&requests, 0.5),
            [
                When::At(1_500_000_000),
                When::After {
                    turn: 0,
                    think_ns: 2_000_000
                },
                When::Free
            ]
        );
    }
}
