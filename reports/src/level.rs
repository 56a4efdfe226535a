//! Load levels: what a cell did at one offered rate.
//!
//! A level is the rounds of a cell that offered one rate, or all of its rounds
//! where arrivals wait for answers. Levels are never pooled with each other.
//!
//! | figure | definition |
//! |---|---|
//! | span | sum over the rounds of last response − first send, of the requests that count and were made |
//! | `throughput_rps`, `throughput_tok_s` | answered requests, or their output tokens, / span |
//! | `goodput_rps` | requests that meet every limit of the SLO / span |
//! | meets the SLO | at least 99% of the requests that count are within the TTFT limit, one without an answer being beyond it, and at least 99% of the answers that have a TPOT are within its limit: both p99 ≤ limit |
//!
//! An answer of one token has no TPOT and is judged by its TTFT alone.

use std::collections::{BTreeMap, BTreeSet};

use polars::prelude::DataFrame;

use crate::error::ReportError;
use crate::frame::{self, Quantiles};
use crate::load::{LoadFacts, LoadRound, Slo};
use crate::sample::Sample;

/// Share of the requests that must be within a limit, which makes it a limit on
/// the p99.
const WITHIN: f64 = 0.99;

/// Error kind of a request that was refused at once because too many were under
/// way.
pub const REFUSED: &str = "overloaded";

/// Error kinds of requests that the generator planned and never made: too many
/// were under way, an earlier turn had failed, or the level had been stopped.
pub const NEVER_MADE: [&str; 3] = ["dropped", "abandoned", "stopped"];

/// One load level of one cell.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Level {
    /// Requests per second that were offered; `None` where arrivals wait for
    /// answers.
    pub offered_rps: Option<f64>,
    /// Rounds that are pooled.
    pub rounds: usize,
    /// Requests that count: neither warm-up nor cool-down.
    pub requests: usize,
    /// Of those, answered.
    pub ok: usize,
    /// Of those, refused or failed, by kind.
    pub failures: BTreeMap<String, usize>,
    /// Of those, meeting every limit; `None` without an SLO.
    pub good: Option<usize>,
    /// Of those, within the TTFT limit.
    pub within_ttft: Option<usize>,
    /// Answers that have a TPOT.
    pub with_tpot: usize,
    /// Of those, within the TPOT limit.
    pub within_tpot: Option<usize>,
    /// Requests of warm-up and cool-down.
    pub excluded: usize,
    /// Seconds from the first send to the last response, summed over the rounds.
    pub span_s: Option<f64>,
    /// Output tokens of the answered requests.
    pub output_tokens: u64,
    /// Time to first token.
    pub ttft_ms: Quantiles,
    /// Time per output token.
    pub tpot_ms: Quantiles,
    /// Time to the last token.
    pub e2e_ms: Quantiles,
    /// Most requests under way at once.
    pub max_in_flight: Option<u64>,
    /// Largest p99 of the rounds' send delays, ms.
    pub send_delay_p99_ms: Option<f64>,
    /// Planned requests that were never handed over.
    pub dropped_arrivals: u64,
    /// Whether the figures can be relied on.
    pub state: LevelState,
}

/// Whether the figures of a level can be relied on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LevelState {
    /// The generator kept to its plan, and the link to its target.
    #[default]
    Valid,
    /// The round was stopped because the system fell ever further behind; what
    /// was measured until then is right.
    Stopped(String),
    /// The link missed its target.
    Degraded,
    /// The generator did not keep to its plan.
    Invalid(String),
    /// The facts of a round are missing, as after a kill.
    Incomplete,
}

impl LevelState {
    /// In one word.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Valid => "ok",
            Self::Stopped(_) => "stopped",
            Self::Degraded => "degraded",
            Self::Invalid(_) => "INVALID",
            Self::Incomplete => "incomplete",
        }
    }

    /// In words, for a table.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Stopped(reason) | Self::Invalid(reason) => format!("{}: {reason}", self.word()),
            _ => self.word().to_owned(),
        }
    }
}

impl Level {
    /// Requests answered per second.
    #[must_use]
    pub fn throughput_rps(&self) -> Option<f64> {
        self.span_s.map(|span| self.ok as f64 / span)
    }

    /// Output tokens per second.
    #[must_use]
    pub fn throughput_tok_s(&self) -> Option<f64> {
        self.span_s.map(|span| self.output_tokens as f64 / span)
    }

    /// Requests per second that meet every limit.
    #[must_use]
    pub fn goodput_rps(&self) -> Option<f64> {
        Some(self.good? as f64 / self.span_s?)
    }

    /// Share of the requests that meet every limit.
    #[must_use]
    pub fn good_share(&self) -> Option<f64> {
        (self.requests > 0)
            .then_some(self.good)
            .flatten()
            .map(|good| good as f64 / self.requests as f64)
    }

    /// Requests without an answer.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.requests - self.ok
    }

    /// Requests refused at once.
    #[must_use]
    pub fn refused(&self) -> usize {
        self.failures.get(REFUSED).copied().unwrap_or(0)
    }

    /// Whether the figures may be drawn and compared.
    #[must_use]
    pub fn usable(&self) -> bool {
        self.requests > 0 && matches!(self.state, LevelState::Valid | LevelState::Stopped(_))
    }

    /// Whether the level meets the SLO; `None` without one, or where the figures
    /// cannot be relied on. A level that had to be stopped does not.
    #[must_use]
    pub fn meets(&self) -> Option<bool> {
        if !self.usable() {
            return None;
        }
        let within = self.within_ttft? >= needed(self.requests)
            && self.within_tpot? >= needed(self.with_tpot);
        Some(within && self.state == LevelState::Valid && self.dropped_arrivals == 0)
    }

    /// Why the SLO is missed, in words; empty where it is met.
    pub(crate) fn misses(&self) -> String {
        let mut reasons = Vec::new();
        let share = |within: usize, of: usize| {
            let percent = 100.0 * (of - within) as f64 / of.max(1) as f64;
            format!("{}%", crate::table::number(percent, 1))
        };
        for (name, within, of) in [
            ("TTFT", self.within_ttft, self.requests),
            ("TPOT", self.within_tpot, self.with_tpot),
        ] {
            if let Some(within) = within
                && within < needed(of)
            {
                reasons.push(format!("{} miss {name}", share(within, of)));
            }
        }
        if self.failed() > 0 {
            reasons.push(format!("{} have no answer", share(self.ok, self.requests)));
        }
        if let LevelState::Stopped(reason) = &self.state {
            reasons.push(format!("stopped: {reason}"));
        }
        if self.dropped_arrivals > 0 {
            reasons.push(format!("{} never made", self.dropped_arrivals));
        }
        reasons.join(", ")
    }
}

/// How many of `of` must be within a limit for their p99 to be, by nearest rank.
fn needed(of: usize) -> usize {
    (of as f64 * WITHIN - 1e-9).ceil() as usize
}

/// Whether a request meets the TTFT limit, and the TPOT limit if it has a TPOT.
fn within(sample: &Sample, slo: Slo) -> (bool, Option<bool>) {
    let (Some(&first), Some(&last)) = (sample.token_ns.first(), sample.token_ns.last()) else {
        return (false, None);
    };
    if !sample.ok() {
        return (false, None);
    }
    let ms = |ns: u64| ns as f64 / 1e6;
    let gaps = sample.token_ns.len() - 1;
    (
        ms(first.saturating_sub(sample.scheduled_ns)) <= slo.ttft_ms,
        (gaps > 0).then(|| ms(last - first) / gaps as f64 <= slo.tpot_ms),
    )
}

/// The levels of a cell, by rising rate. `frame` is the [`frame::samples_frame`]
/// of `samples`; `facts` are missing where the run was killed before it could
/// write them.
pub(crate) fn levels(
    samples: &[Sample],
    frame: &DataFrame,
    facts: Option<&LoadFacts>,
    slo: Option<Slo>,
) -> Result<Vec<Level>, ReportError> {
    let rounds: &[LoadRound] = facts.map_or(&[], |facts| &facts.rounds);
    let mut rates: Vec<Option<f64>> = samples
        .iter()
        .map(|s| s.offered_rps)
        .chain(rounds.iter().map(|r| r.offered_rps))
        .collect();
    rates.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    rates.dedup();
    rates
        .into_iter()
        .map(|rate| level(rate, samples, frame, rounds, slo))
        .collect()
}

fn level(
    rate: Option<f64>,
    samples: &[Sample],
    frame: &DataFrame,
    rounds: &[LoadRound],
    slo: Option<Slo>,
) -> Result<Level, ReportError> {
    let rounds: Vec<&LoadRound> = rounds.iter().filter(|r| r.offered_rps == rate).collect();
    let all: Vec<&Sample> = samples.iter().filter(|s| s.offered_rps == rate).collect();
    let counted: Vec<&Sample> = all.iter().copied().filter(|s| s.counted()).collect();
    let ok = counted.iter().filter(|s| s.ok()).count();
    let mut failures = BTreeMap::new();
    for sample in counted.iter().filter(|s| !s.ok()) {
        let kind = sample.error_kind.as_deref().unwrap_or("unknown");
        *failures.entry(kind.to_owned()).or_insert(0) += 1;
    }
    let judged: Option<Vec<(bool, Option<bool>)>> =
        slo.map(|slo| counted.iter().map(|s| within(s, slo)).collect());
    let many = |count: fn(&(bool, Option<bool>)) -> bool| {
        judged
            .as_ref()
            .map(|j| j.iter().filter(|w| count(w)).count())
    };
    let [ttft_ms, tpot_ms, e2e_ms] = frame::level_quantiles(frame, rate, ok)?;
    let made: BTreeSet<u32> = all.iter().map(|s| s.round).collect();
    let state = if made.iter().any(|m| rounds.iter().all(|r| r.round != *m)) {
        LevelState::Incomplete
    } else if let Some(invalid) = rounds.iter().find(|r| !r.valid) {
        let reason = invalid.invalid_reason.clone();
        LevelState::Invalid(reason.unwrap_or_else(|| "no reason stated".to_owned()))
    } else if counted.iter().any(|s| s.degraded) {
        LevelState::Degraded
    } else if let Some(reason) = rounds.iter().find_map(|r| r.stopped.clone()) {
        LevelState::Stopped(reason)
    } else {
        LevelState::Valid
    };
    Ok(Level {
        offered_rps: rate,
        rounds: rounds.len().max(made.len()),
        requests: counted.len(),
        ok,
        failures,
        good: many(|w| w.0 && w.1 != Some(false)),
        within_ttft: many(|w| w.0),
        with_tpot: counted
            .iter()
            .filter(|s| s.ok() && s.token_ns.len() > 1)
            .count(),
        within_tpot: many(|w| w.1 == Some(true)),
        excluded: all.len() - counted.len(),
        span_s: span_s(&counted),
        output_tokens: counted
            .iter()
            .filter(|s| s.ok())
            .map(|s| u64::from(s.output_tokens))
            .sum(),
        ttft_ms,
        tpot_ms,
        e2e_ms,
        max_in_flight: rounds.iter().map(|r| r.max_in_flight).max(),
        send_delay_p99_ms: rounds
            .iter()
            .map(|r| r.send_delay_ms.p99)
            .max_by(f64::total_cmp),
        dropped_arrivals: rounds.iter().map(|r| r.dropped_arrivals).sum(),
        state,
    })
}

/// First send to last response, summed over the rounds; `None` where no time
/// passed.
fn span_s(counted: &[&Sample]) -> Option<f64> {
    let mut rounds: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
    let made = counted.iter().filter(|s| {
        let kind = s.error_kind.as_deref().unwrap_or_default();
        !NEVER_MADE.contains(&kind)
    });
    for sample in made {
        let last = sample.token_ns.last().copied().unwrap_or(sample.sent_ns);
        let (from, to) = rounds.entry(sample.round).or_insert((sample.sent_ns, last));
        *from = (*from).min(sample.sent_ns);
        *to = (*to).max(last);
    }
    let ns: u64 = rounds.values().map(|(from, to)| to - from).sum();
    (ns > 0).then(|| ns as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{self, MS};

    const SLO: Slo = Slo {
        ttft_ms: 150.0,
        tpot_ms: 20.0,
    };

    /// A request of round `round` at two per second, `at` ms into the run, with
    /// this TTFT.
    fn request(round: u32, at: u64, ttft: u64) -> Sample {
        let scheduled_ns = (1_000 + at) * MS;
        let first = scheduled_ns + ttft * MS;
        Sample {
            load: "poisson-2.0rps".into(),
            offered_rps: Some(2.0),
            round,
            scheduled_ns,
            sent_ns: scheduled_ns,
            token_ns: vec![first, first + 10 * MS, first + 20 * MS],
            ..fixture::sample()
        }
    }

    fn failed(round: u32, at: u64) -> Sample {
        Sample {
            outcome: "failed".into(),
            error_kind: Some(REFUSED.into()),
            token_ns: Vec::new(),
            output_tokens: 0,
            em: None,
            f1: None,
            ..request(round, at, 0)
        }
    }

    fn of(samples: &[Sample], facts: Option<&LoadFacts>) -> Vec<Level> {
        let frame = frame::samples_frame(samples).unwrap();
        levels(samples, &frame, facts, Some(SLO)).unwrap()
    }

    fn facts(rounds: &[(u32, f64)]) -> LoadFacts {
        LoadFacts {
            rounds: rounds
                .iter()
                .map(|&(round, rate)| fixture::round(round, Some(rate)))
                .collect(),
            ..LoadFacts::new("fixture-cell")
        }
    }

    #[test]
    fn rates_by_hand() {
        // 0 to 1,020 ms: two answers, one of them late, and a refusal.
        let samples = [request(0, 0, 100), request(0, 800, 200), failed(0, 500)];
        let levels = of(&samples, Some(&facts(&[(0, 2.0)])));
        let [level] = &levels[..] else { panic!() };
        assert_eq!((level.requests, level.ok, level.refused()), (3, 2, 1));
        assert_eq!(level.span_s, Some(1.02));
        assert_eq!(level.throughput_rps(), Some(2.0 / 1.02));
        assert_eq!(level.throughput_tok_s(), Some(6.0 / 1.02));
        assert_eq!(level.goodput_rps(), Some(1.0 / 1.02));
        assert_eq!(level.good_share(), Some(1.0 / 3.0));
        assert_eq!(level.ttft_ms.p50, Some(150.0));
        assert_eq!(level.ttft_ms.p99, None);
        assert_eq!(level.meets(), Some(false));
        assert_eq!(level.misses(), "66.7% miss TTFT, 33.3% have no answer");
    }

    #[test]
    fn rounds_are_pooled_without_the_time_between_them() {
        let samples = [request(0, 0, 100), request(1, 60_000, 100)];
        let level = &of(&samples, Some(&facts(&[(0, 2.0), (1, 2.0)])))[0];
        assert_eq!(level.rounds, 2);
        assert_eq!(level.span_s, Some(0.24));
        assert_eq!(level.meets(), Some(true));
        assert_eq!(level.misses(), "");
    }

    #[test]
    fn rates_are_levels_of_their_own_and_rise() {
        let mut fast = request(1, 0, 400);
        fast.offered_rps = Some(8.0);
        let samples = [fast, request(0, 0, 100)];
        let levels = of(&samples, Some(&facts(&[(0, 2.0), (1, 8.0)])));
        let rates: Vec<_> = levels.iter().map(|l| l.offered_rps).collect();
        assert_eq!(rates, [Some(2.0), Some(8.0)]);
        assert_eq!(levels[0].ttft_ms.p50, Some(100.0));
        assert_eq!(levels[1].ttft_ms.p50, Some(400.0));
    }

    #[test]
    fn what_was_never_made_takes_no_time() {
        let mut unmade = failed(0, 50_000);
        unmade.error_kind = Some("stopped".into());
        let samples = [request(0, 0, 100), unmade];
        let level = &of(&samples, Some(&facts(&[(0, 2.0)])))[0];
        assert_eq!((level.requests, level.ok), (2, 1));
        assert_eq!(level.span_s, Some(0.12));
    }

    #[test]
    fn what_is_excluded_counts_in_nothing() {
        let mut cooldown = request(0, 9_000, 900);
        cooldown.excluded = Some("cooldown".into());
        let mut warmup = request(0, 0, 900);
        warmup.excluded = Some("warmup".into());
        warmup.warmup = true;
        let samples = [warmup, request(0, 500, 100), cooldown];
        let level = &of(&samples, Some(&facts(&[(0, 2.0)])))[0];
        assert_eq!((level.requests, level.excluded), (1, 2));
        assert_eq!(level.span_s, Some(0.12));
        assert_eq!(level.ttft_ms.p95, Some(100.0));
    }

    #[test]
    fn one_in_a_hundred_may_be_late() {
        let mut samples: Vec<Sample> = (0..99).map(|i| request(0, i * 10, 100)).collect();
        samples.push(request(0, 2_000, 500));
        let facts = facts(&[(0, 2.0)]);
        assert_eq!(of(&samples, Some(&facts))[0].meets(), Some(true));
        samples.push(request(0, 2_100, 500));
        assert_eq!(of(&samples, Some(&facts))[0].meets(), Some(false));
        // One token has no TPOT to miss; no token has everything to miss.
        let mut short = request(0, 0, 100);
        short.token_ns.truncate(1);
        short.output_tokens = 1;
        assert_eq!(within(&short, SLO), (true, None));
        short.token_ns.clear();
        assert_eq!(within(&short, SLO), (false, None));
        let mut slow = request(0, 0, 100);
        slow.token_ns[2] += 100 * MS;
        assert_eq!(within(&slow, SLO), (true, Some(false)));
    }

    #[test]
    fn states_come_worst_first() {
        let samples = [request(0, 0, 100)];
        let state = |change: fn(&mut LoadRound), samples: &[Sample]| {
            let mut facts = facts(&[(0, 2.0)]);
            change(&mut facts.rounds[0]);
            of(samples, Some(&facts))[0].clone()
        };
        assert_eq!(state(|_| {}, &samples).state, LevelState::Valid);
        let stopped = state(|r| r.stopped = Some("queue grew".into()), &samples);
        assert_eq!(stopped.state.words(), "stopped: queue grew");
        assert_eq!((stopped.usable(), stopped.meets()), (true, Some(false)));
        let invalid = state(
            |r| {
                r.stopped = Some("queue grew".into());
                r.valid = false;
                r.invalid_reason = Some("sent late".into());
            },
            &samples,
        );
        assert_eq!(invalid.state.words(), "INVALID: sent late");
        assert_eq!((invalid.usable(), invalid.meets()), (false, None));
        let mut degraded = samples.clone();
        degraded[0].degraded = true;
        assert_eq!(state(|_| {}, &degraded).state, LevelState::Degraded);
        assert_eq!(of(&samples, None)[0].state, LevelState::Incomplete);
        let dropped = state(|r| r.dropped_arrivals = 3, &samples);
        assert_eq!(dropped.meets(), Some(false));
    }
}
