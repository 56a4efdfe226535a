//! A session: the plan's requests, made one after the other over a deployment, each appended to
//! the store as it finishes. Under a load ([`load`]) many of them are under way at once.

mod load;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use celslm_datasets::{Document, Prompt, Question, SCORERS};
use celslm_kv::{AlignmentConfig, CodecConfig};
use celslm_link::{Calibration, Counters, LinkProfile};
use celslm_model::Sampling;
use celslm_reports::{CellIdentity, LoadRound, SCHEMA_VERSION, Sample, TtftPart};
use celslm_systems::clock::now_ns;
use celslm_systems::{Answer, ContextRef, Contract, Request, SystemError, SystemSpec};

use crate::campaign::Campaign;
use crate::config::Config;
use crate::deployment::{Deployment, DeploymentError};
use crate::plan::{Cell, Inputs, Plan, PlannedRequest, Shard};
use crate::store::{Store, StoreError};
use load::BlockEnd;

/// Silence on the link before and after a request, beyond its RTT, so that acknowledgements of
/// one request are not counted for the next.
const SETTLE: Duration = Duration::from_millis(15);

/// The system that others are held against token by token.
const REFERENCE_SYSTEM: &str = "edge_only";

/// Why a session stopped early. What was measured is in the store.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Link or nodes failed.
    #[error(transparent)]
    Deployment(#[from] DeploymentError),
    /// A sample could not be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A cell's caches were not in the state that its contract names.
    #[error("prepare {cell} as {contract}: {reason}")]
    Contract {
        /// The cell.
        cell: String,
        /// Its contract.
        contract: Contract,
        /// What was found.
        reason: String,
    },
}

/// What is told while a session runs.
pub trait Observer {
    /// Link `profile` is set up and about to be measured.
    fn link(&mut self, profile: &LinkProfile);
    /// A link was measured.
    fn calibrated(&mut self, profile: &LinkProfile, calibration: &Calibration);
    /// A request is done.
    fn sample(&mut self, cell: &Cell, sample: &Sample);
    /// A request was found in the store.
    fn skipped(&mut self, cell: &Cell);
    /// A round under load is over.
    fn round(&mut self, cell: &Cell, facts: &LoadRound);
}

/// How a session ended.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Calibrations, in order.
    pub campaigns: Vec<Campaign>,
    /// Whether it was stopped from outside before its end.
    pub interrupted: bool,
}

/// One session.
pub struct Session<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// What the plan was made from.
    pub inputs: &'a Inputs,
    /// The plan.
    pub plan: &'a Plan,
    /// The share of it to run.
    pub shard: Option<Shard>,
    /// Set from outside to stop after the current request.
    pub stop: &'a AtomicBool,
}

impl Session<'_> {
    /// Makes every request of the share that has no sample yet.
    ///
    /// # Errors
    /// [`SessionError`]. The calibrations so far are in `outcome` whatever happens.
    pub fn run(
        &self,
        deployment: &mut Deployment,
        store: &mut Store,
        observer: &mut dyn Observer,
        outcome: &mut Outcome,
    ) -> Result<(), SessionError> {
        let mut progress = Progress {
            origin_ns: now_ns(),
            contexts: HashMap::new(),
            references: HashMap::new(),
            load_references: HashMap::new(),
            link: None,
        };
        for block in self.plan.blocks_of(self.shard) {
            let cell = &self.plan.cells[block.cell];
            if let Some(round) = &block.round {
                if store.has_rounds(&cell.id, &round.rounds) {
                    block.requests.iter().for_each(|_| observer.skipped(cell));
                    continue;
                }
                let interrupted = self.stop.load(Ordering::Relaxed)
                    || self.run_rounds(
                        block,
                        round,
                        deployment,
                        store,
                        observer,
                        outcome,
                        &mut progress,
                    )? == BlockEnd::Interrupted;
                if interrupted {
                    outcome.interrupted = true;
                    return Ok(());
                }
                continue;
            }
            for planned in &block.requests {
                if store.has(&cell.id, planned.order) {
                    observer.skipped(cell);
                    continue;
                }
                if self.stop.load(Ordering::Relaxed) {
                    outcome.interrupted = true;
                    return Ok(());
                }
                self.enter_link(cell, deployment, observer, outcome, &mut progress)?;
                let degraded = outcome.campaigns.last().is_some_and(Campaign::degraded);
                let sample = self.request(cell, planned, degraded, deployment, &mut progress)?;
                if let Some(campaign) = outcome.campaigns.last_mut() {
                    campaign.cells.insert(cell.id.clone());
                }
                let failed = sample.outcome != "ok";
                store.append(&sample)?;
                observer.sample(cell, &sample);
                if failed {
                    deployment.check_alive()?;
                }
            }
        }
        self.leave_link(deployment, observer, outcome, &mut progress)
    }

    /// Sets the cell's link up and measures it, unless it is the one in place.
    fn enter_link(
        &self,
        cell: &Cell,
        deployment: &mut Deployment,
        observer: &mut dyn Observer,
        outcome: &mut Outcome,
        progress: &mut Progress,
    ) -> Result<(), SessionError> {
        if progress.link.as_deref() == Some(&cell.link) {
            return Ok(());
        }
        self.leave_link(deployment, observer, outcome, progress)?;
        let profile = &self.inputs.links[&cell.link];
        observer.link(profile);
        deployment.set_link(profile, cell.seed)?;
        let before = deployment.calibrate()?;
        // The calibration's own packets do not count as the nodes'.
        deployment.audit()?;
        if let Some(calibration) = &before {
            observer.calibrated(profile, calibration);
        }
        outcome.campaigns.push(Campaign::new(&cell.link, before));
        progress.link = Some(cell.link.clone());
        Ok(())
    }

    /// Measures the link in place once more.
    fn leave_link(
        &self,
        deployment: &Deployment,
        observer: &mut dyn Observer,
        outcome: &mut Outcome,
        progress: &mut Progress,
    ) -> Result<(), SessionError> {
        let (Some(link), Some(campaign)) = (progress.link.take(), outcome.campaigns.last_mut())
        else {
            return Ok(());
        };
        // What the emulator says of itself under the nodes' load, before it is measured idle.
        campaign.audit = deployment.audit()?;
        campaign.after = deployment.calibrate()?;
        if let Some(calibration) = &campaign.after {
            observer.calibrated(&self.inputs.links[&link], calibration);
        }
        Ok(())
    }

    /// What a request asks about.
    fn asked(&self, cell: &Cell, planned: &PlannedRequest) -> (&Document, &Question) {
        let document = &self.inputs.draws[cell.draw].documents[planned.document];
        (document, &document.questions[planned.question])
    }

    /// A context by its system message, published at its first use.
    fn context(
        &self,
        system: &str,
        deployment: &mut Deployment,
        progress: &mut Progress,
    ) -> Result<ContextRef, SessionError> {
        if let Some(context) = progress.contexts.get(system) {
            return Ok(context.clone());
        }
        let published = deployment.publish(system)?;
        let context = ContextRef {
            context_id: published.context_id,
            system: system.to_owned(),
        };
        progress.contexts.insert(system.to_owned(), context.clone());
        Ok(context)
    }

    fn request(
        &self,
        cell: &Cell,
        planned: &PlannedRequest,
        degraded: bool,
        deployment: &mut Deployment,
        progress: &mut Progress,
    ) -> Result<Sample, SessionError> {
        let (document, question) = self.asked(cell, planned);
        let mut prompt = Prompt::new(document, question);
        if let Some(words) = planned.prompt_words {
            prompt = prompt.padded(words, planned.seed);
        }
        let context = self.context(&prompt.system, deployment, progress)?;
        let timeout = self.config.workload.request_timeout();
        let mut request = Request {
            context,
            user: prompt.user,
            sampling: self.config.generation.sampling,
            seed: planned.seed,
            max_tokens: planned
                .max_tokens
                .unwrap_or(self.config.generation.max_tokens),
            scheduled_ns: 0,
            timeout_ms: timeout.as_millis() as u64,
            history: Vec::new(),
            client: 0,
        };
        // With several edges, one request after the other goes round them.
        let edge = planned.order as usize % deployment.edges();
        let key = (cell.draw, planned.document, planned.question, planned.seed);
        let reference = if must_match_reference(&cell.spec, request.sampling) {
            self.reference(key, edge, &request, deployment, progress)?
        } else {
            None
        };
        deployment.prepare(edge, &cell.spec, cell.contract, &request.context, timeout)?;
        let settle = SETTLE + rtt(&self.inputs.links[&cell.link]);
        std::thread::sleep(settle);
        let before = deployment.counters()?;
        request.scheduled_ns = now_ns();
        let answer = deployment.answer(edge, &cell.spec, &request)?;
        std::thread::sleep(settle);
        let after = deployment.counters()?;
        if let Ok(answer) = &answer {
            check_contract(cell, answer)?;
            if cell.spec.system == REFERENCE_SYSTEM && request.sampling == Sampling::Greedy {
                progress.references.insert(key, answer.output_ids.clone());
            }
        }
        let traffic = before
            .zip(after)
            .map(|(before, after)| after.since(&before));
        let row = Row {
            cell,
            planned,
            edge,
            order: planned.order,
            round: 0,
            offered_rps: None,
            document,
            question,
            context_id: &request.context.context_id,
            scheduled_ns: request.scheduled_ns,
            degraded,
            origin_ns: progress.origin_ns,
        };
        Ok(row.sample(answer, traffic, reference.as_deref()))
    }

    /// What the edge alone answers to a request: from an earlier sample of this session, or asked
    /// now, unmeasured.
    fn reference(
        &self,
        key: ReferenceKey,
        edge: usize,
        request: &Request,
        deployment: &mut Deployment,
        progress: &mut Progress,
    ) -> Result<Option<Vec<u32>>, SessionError> {
        if let Some(ids) = progress.references.get(&key) {
            return Ok(Some(ids.clone()));
        }
        let spec = SystemSpec {
            system: REFERENCE_SYSTEM.to_owned(),
            kv: None,
        };
        let timeout = self.config.workload.request_timeout();
        deployment.prepare(edge, &spec, Contract::Primed, &request.context, timeout)?;
        let request = Request {
            scheduled_ns: now_ns(),
            ..request.clone()
        };
        // Without the edge's own answer there is nothing to compare with; the row says so.
        let Ok(answer) = deployment.answer(edge, &spec, &request)? else {
            return Ok(None);
        };
        progress.references.insert(key, answer.output_ids.clone());
        Ok(Some(answer.output_ids))
    }
}

type ReferenceKey = (usize, usize, usize, u64);

/// Draw, document, question, and what a load may change about the request.
type LoadReferenceKey = (usize, usize, usize, Option<usize>, Option<usize>);

/// What a session remembers between requests.
struct Progress {
    origin_ns: u64,
    /// Published contexts by system message.
    contexts: HashMap<String, ContextRef>,
    /// Greedy ids of the edge alone.
    references: HashMap<ReferenceKey, Vec<u32>>,
    /// Greedy ids of the edge alone under load.
    load_references: HashMap<LoadReferenceKey, Vec<u32>>,
    link: Option<String>,
}

/// Whether a system's greedy tokens must be those of the edge alone: the same model's KV, sent
/// without loss.
fn must_match_reference(spec: &SystemSpec, sampling: Sampling) -> bool {
    sampling == Sampling::Greedy
        && spec.kv.as_ref().is_some_and(|path| {
            path.alignment == AlignmentConfig::Identity && path.codec == CodecConfig::default()
        })
}

fn rtt(profile: &LinkProfile) -> Duration {
    let millis = profile.uplink.delay_ms
        + profile.uplink.jitter_ms
        + profile.downlink.delay_ms
        + profile.downlink.jitter_ms;
    Duration::from_secs_f64(millis.max(0.0) / 1000.0)
}

/// Hits are counted and held against the contract: a cell that measured another state than it
/// claims is worse than none.
fn check_contract(cell: &Cell, answer: &Answer) -> Result<(), SessionError> {
    let entry = celslm_systems::system::find(&cell.spec.system).map_err(|error| {
        SessionError::Contract {
            cell: cell.id.clone(),
            contract: cell.contract,
            reason: error.message,
        }
    })?;
    let edge_hit = cell.contract == Contract::Warm && entry.keeps_at_edge;
    let asks_cloud = entry.cloud_need != celslm_systems::CloudNeed::Nothing && !edge_hit;
    let cloud_hit = asks_cloud && cell.contract != Contract::Cold;
    let found = (answer.edge_cache_hit, answer.cloud_store_hit);
    if found == (edge_hit, cloud_hit) {
        return Ok(());
    }
    Err(SessionError::Contract {
        cell: cell.id.clone(),
        contract: cell.contract,
        reason: format!(
            "edge cache hit {} (expected {edge_hit}), cloud store hit {} (expected {cloud_hit}); \
             are the stores large enough for the documents?",
            found.0, found.1
        ),
    })
}

/// Everything that a sample states besides the answer.
struct Row<'a> {
    cell: &'a Cell,
    planned: &'a PlannedRequest,
    edge: usize,
    order: u64,
    round: u32,
    offered_rps: Option<f64>,
    document: &'a Document,
    question: &'a Question,
    context_id: &'a str,
    scheduled_ns: u64,
    degraded: bool,
    origin_ns: u64,
}

impl Row<'_> {
    fn sample(
        &self,
        answer: Result<Answer, SystemError>,
        traffic: Option<Counters>,
        reference: Option<&[u32]>,
    ) -> Sample {
        let answered = answer.is_ok();
        let (answer, error) = match answer {
            Ok(answer) => (answer, None),
            Err(error) => (
                Answer {
                    sent_ns: self.scheduled_ns,
                    ..Answer::default()
                },
                Some(error),
            ),
        };
        let CellIdentity {
            cell_id,
            scenario,
            system,
            link,
            alignment,
            mapping,
            codec,
            schedule,
            dataset,
            contract,
            compute,
            device,
            load,
        } = self.cell.identity();
        let ns = |at: u64| at.saturating_sub(self.origin_ns);
        let traffic = traffic.unwrap_or_default();
        let Question {
            answers,
            answerable,
            ..
        } = self.question;
        let gold = self.question.gold();
        // An echo answers nothing that could be right or wrong.
        let echo = celslm_systems::system::find(&system).is_ok_and(|entry| entry.echo);
        let scores: BTreeMap<&str, f64> = match error {
            None if !echo => SCORERS
                .iter()
                .map(|scorer| {
                    (
                        scorer.name(),
                        scorer.score(&answer.output_text, answers, *answerable),
                    )
                })
                .collect(),
            _ => BTreeMap::new(),
        };
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Sample {
            schema_version: SCHEMA_VERSION,
            cell_id,
            scenario,
            order: self.order,
            repetition: self.planned.repetition,
            warmup: self.planned.warmup,
            excluded: match (self.planned.warmup, self.planned.cooldown) {
                (true, _) => Some("warmup".to_owned()),
                (false, true) => Some("cooldown".to_owned()),
                (false, false) => None,
            },
            seed: self.planned.seed,
            system,
            link,
            alignment,
            mapping,
            codec,
            schedule,
            dataset,
            contract,
            compute,
            device,
            load,
            round: self.round,
            offered_rps: self.offered_rps,
            edge: count(self.edge),
            conversation: self.planned.conversation,
            turn: self.planned.turn,
            document_id: self.document.id.clone(),
            question_id: self.question.id.clone(),
            context_id: self.context_id.to_owned(),
            outcome: if error.is_none() { "ok" } else { "failed" }.to_owned(),
            error_kind: error.as_ref().map(|error| error.kind.clone()),
            error: error.map(|error| error.message),
            degraded: self.degraded,
            scheduled_ns: ns(self.scheduled_ns),
            sent_ns: ns(answer.sent_ns),
            token_ns: answer.token_ns.iter().map(|&at| ns(at)).collect(),
            parts: answer
                .parts
                .iter()
                .map(|time| TtftPart {
                    name: time.part.name().to_owned(),
                    exposed_ns: time.exposed_ns,
                    overlapped_ns: time.overlapped_ns,
                })
                .collect(),
            context_tokens: count(answer.context_tokens),
            prompt_tokens: count(answer.context_tokens + answer.prompt_tokens),
            output_tokens: count(answer.token_ns.len()),
            tokens_estimated: answer.tokens_estimated,
            uplink_bytes: traffic.uplink.bytes,
            downlink_bytes: traffic.downlink.bytes,
            uplink_packets: traffic.uplink.packets,
            downlink_packets: traffic.downlink.packets,
            uplink_payload_bytes: answer.uplink_payload_bytes,
            downlink_payload_bytes: answer.downlink_payload_bytes,
            kv_fp16_bytes: answer.kv_fp16_bytes,
            kv_payload_bytes: answer.kv_payload_bytes,
            private_uplink_bytes: answer.private_uplink_bytes,
            edge_prefill_token_layers: answer.edge_prefill_token_layers,
            edge_peak_kv_bytes: answer.edge_kv_bytes,
            edge_cache_hit: answer.edge_cache_hit,
            cloud_store_hit: answer.cloud_store_hit,
            em: scores.get("exact_match").copied(),
            f1: scores.get("f1").copied(),
            token_exact: reference
                .filter(|_| answered)
                .map(|reference| reference == answer.output_ids),
            output_text: answer.output_text,
            output_ids: answer.output_ids,
            gold,
            answerable: self.question.answerable,
        }
    }
}
