//! Sentences that are computed from the figures.
//!
//! Each rule looks at one question and states what it finds, whichever way it
//! comes out: a slower or worse system is said as plainly as a faster or better
//! one. Comparisons are against `edge_only`, the system that needs no cloud.

use crate::cell::{Cell, CellIdentity};
use crate::level::LevelState;
use crate::quality::{paired, score};
use crate::series::{rate, ratio, series, times};
use crate::table::number;
use crate::views::{BASELINES, Data, Pool};

/// The system that the others are compared with.
const REFERENCE: &str = "edge_only";

/// Parts must add up to TTFT within this share of it.
const PARTS_GAP_LIMIT: f64 = 0.02;

/// Below so many documents, a bootstrap over them understates the spread.
const FEW_DOCUMENTS: usize = 10;

/// A load of this length is a soak, whose drift is stated.
const SOAK_S: f64 = 600.0;

/// Growth from the first to the last third of a soak that is called one.
const DRIFT_LIMIT: f64 = 0.1;

/// Two medians closer than this are called equal.
const EQUAL_RATIO: f64 = 0.05;

/// One sentence of the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is about.
    pub topic: Topic,
    /// The sentence.
    pub text: String,
}

/// What a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// Whether the figures can be relied on.
    Validity,
    /// What the figures say.
    Result,
}

/// Every finding, validity first.
pub(crate) fn findings(data: &Data) -> Vec<Finding> {
    let of = |topic: Topic, texts: Vec<String>| {
        texts
            .into_iter()
            .map(move |text| Finding { topic, text })
            .collect::<Vec<_>>()
    };
    [
        of(Topic::Validity, completeness(data)),
        of(Topic::Validity, degraded(data)),
        of(Topic::Validity, parts(data)),
        of(Topic::Validity, exactness(data)),
        of(Topic::Validity, contracts(data)),
        of(Topic::Validity, compute(data)),
        of(Topic::Validity, tails(data)),
        of(Topic::Validity, generator(data)),
        of(Topic::Validity, drifting(data)),
        of(Topic::Validity, intervals(data)),
        of(Topic::Result, latency(data)),
        of(Topic::Result, saturation(data)),
        of(Topic::Result, quality(data)),
        of(Topic::Result, codecs(data)),
        of(Topic::Result, privacy(data)),
        of(Topic::Result, edge_work(data)),
    ]
    .concat()
}

/// "1 cell", "2 cells".
pub(crate) fn count(n: usize, noun: &str) -> String {
    format!(
        "{} {noun}{}",
        number(n as f64, 0),
        if n == 1 { "" } else { "s" }
    )
}

fn at(data: &Data, cell: &Cell) -> String {
    format!("{} on {}", data.variant(cell), cell.identity.link)
}

fn completeness(data: &Data) -> Vec<String> {
    let requests: usize = data.cells.iter().map(|c| c.summary.requests).sum();
    let failures: usize = data.cells.iter().map(|c| c.summary.failures).sum();
    let without = |samples: bool| -> Vec<_> {
        let cells = data.cells.iter().filter(|c| c.summary.requests == 0);
        cells
            .filter(|c| c.samples.is_empty() != samples)
            .map(|c| at(data, c))
            .collect()
    };
    let (silent, uncounted) = (without(false), without(true));
    let mut out = vec![match (requests, failures) {
        (0, _) => "No request was measured.".to_owned(),
        (n, 0) => format!(
            "All of {} in {} were answered.",
            count(n, "request"),
            count(data.cells.len() - silent.len() - uncounted.len(), "cell")
        ),
        (n, failed) => format!(
            "{} of {} failed; the table of failures names them.",
            number(failed as f64, 0),
            count(n, "request")
        ),
    }];
    if !silent.is_empty() {
        out.push(format!(
            "{} did not run: {}.",
            count(silent.len(), "cell"),
            silent.join("; ")
        ));
    }
    if !uncounted.is_empty() {
        out.push(format!(
            "{} made requests of which none counts, since all were warm-up or cool-down (make the load longer, or lower workload.warmup_share and workload.cooldown_share): {}.",
            count(uncounted.len(), "cell"),
            uncounted.join("; ")
        ));
    }
    out
}

fn degraded(data: &Data) -> Vec<String> {
    let cells: Vec<_> = data
        .cells
        .iter()
        .filter(|c| c.summary.degraded)
        .map(|c| at(data, c))
        .collect();
    if cells.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "{} ran on a link that missed its target, and {} neither drawn nor compared in time: {}.",
        count(cells.len(), "cell"),
        if cells.len() == 1 { "is" } else { "are" },
        cells.join("; ")
    )]
}

fn parts(data: &Data) -> Vec<String> {
    let mut answered = 0;
    let mut worst: Option<(f64, &Cell)> = None;
    for cell in &data.cells {
        answered += cell.summary.ok;
        if let Some(gap) = cell.summary.parts_gap_max
            && worst.is_none_or(|(w, _)| gap > w)
        {
            worst = Some((gap, cell));
        }
    }
    let Some((gap, cell)) = worst else {
        return Vec::new();
    };
    vec![if gap <= PARTS_GAP_LIMIT {
        format!(
            "TTFT parts add up to TTFT within {}% (largest gap over {}).",
            number(100.0 * gap, 2),
            count(answered, "request")
        )
    } else {
        format!(
            "TTFT parts do not add up: the largest gap is {}% of TTFT, against a limit of {}% ({}). The breakdown misses or double-counts something.",
            number(100.0 * gap, 1),
            number(100.0 * PARTS_GAP_LIMIT, 0),
            at(data, cell)
        )
    }]
}

fn exactness(data: &Data) -> Vec<String> {
    data.pools_over_loads()
        .iter()
        .filter_map(|pool| {
            let checked: usize = pool.cells.iter().map(|c| c.summary.exact_checked).sum();
            let equal: usize = pool.cells.iter().map(|c| c.summary.exact_equal).sum();
            (checked > 0).then(|| {
                format!(
                    "{}: greedy tokens equal {REFERENCE} in {} of {}{}.",
                    pool.label,
                    number(equal as f64, 0),
                    count(checked, "request"),
                    if equal < checked {
                        ", where all of them should"
                    } else {
                        ""
                    }
                )
            })
        })
        .collect()
}

/// Cache hits that contradict the cell's contract.
fn contracts(data: &Data) -> Vec<String> {
    data.cells
        .iter()
        // Under load a contract is the state in which a round begins, which the run itself checks.
        .filter(|cell| !cell.loaded())
        .filter_map(|cell| {
            let broken = cell
                .measured()
                .filter(|s| {
                    let fetched = s.kv_payload_bytes > 0;
                    match s.contract.as_str() {
                        "cold" => s.edge_cache_hit || s.cloud_store_hit,
                        "primed" => s.edge_cache_hit || (fetched && !s.cloud_store_hit),
                        _ => fetched,
                    }
                })
                .count();
            (broken > 0).then(|| {
                format!(
                    "{}: {} of {} broke the cache contract `{}` (hits are listed under cost at the edge); its latencies mix cached and uncached requests.",
                    at(data, cell),
                    number(broken as f64, 0),
                    count(cell.summary.ok, "request"),
                    cell.identity.contract
                )
            })
        })
        .collect()
}

fn compute(data: &Data) -> Vec<String> {
    ["replayed", "simulated"]
        .iter()
        .filter_map(|kind| {
            let cells = data
                .cells
                .iter()
                .filter(|c| c.identity.compute == *kind)
                .count();
            (cells > 0).then(|| {
                format!(
                    "{} {} {kind}, not computed live, and marked [{kind}].",
                    count(cells, "cell"),
                    if cells == 1 { "is" } else { "are" }
                )
            })
        })
        .collect()
}

fn tails(data: &Data) -> Vec<String> {
    let largest = data.cells.iter().map(|c| c.summary.ok).max().unwrap_or(0);
    let few = data
        .cells
        .iter()
        .filter(|c| c.summary.ok > 0 && c.summary.ok < crate::frame::P99_MIN_REQUESTS)
        .count();
    if few == 0 {
        return Vec::new();
    }
    vec![format!(
        "A p99 needs {} requests in a cell; {} {} fewer (at most {} in any cell), so p99 is not stated there and a p95 rests on few requests.",
        crate::frame::P99_MIN_REQUESTS,
        count(few, "cell"),
        if few == 1 { "has" } else { "have" },
        number(largest as f64, 0)
    )]
}

/// Whether the load generator kept to its plan.
fn generator(data: &Data) -> Vec<String> {
    let levels = || {
        data.cells
            .iter()
            .flat_map(|c| c.levels.iter().map(move |l| (c, l)))
    };
    let total = levels().count();
    if total == 0 {
        return Vec::new();
    }
    let invalid: Vec<String> = levels()
        .filter_map(|(cell, level)| match &level.state {
            LevelState::Invalid(reason) => Some(format!(
                "{}{} ({reason})",
                at(data, cell),
                level
                    .offered_rps
                    .filter(|_| cell.levels.len() > 1)
                    .map_or_else(String::new, |r| format!(" at {} req/s", rate(r)))
            )),
            _ => None,
        })
        .collect();
    let worst = levels()
        .filter_map(|(_, level)| level.send_delay_p99_ms)
        .max_by(f64::total_cmp);
    if invalid.is_empty() {
        return vec![match worst {
            Some(worst) => format!(
                "The load generator kept to its plan in {}: send delay p99 at most {} ms.",
                count(total, "load level"),
                number(worst, 2)
            ),
            None => "The load generator stated nothing about itself.".to_owned(),
        }];
    }
    vec![format!(
        "{} INVALID, as the load generator did not keep to its plan, and {} neither drawn nor compared: {}.",
        if invalid.len() == 1 {
            "1 load level is".to_owned()
        } else {
            format!("{} load levels are", invalid.len())
        },
        if invalid.len() == 1 { "is" } else { "are" },
        invalid.join("; ")
    )]
}

/// Whether latency or memory grew over a long load.
fn drifting(data: &Data) -> Vec<String> {
    let mut out = Vec::new();
    for cell in &data.cells {
        for drift in cell.drifts.iter().filter(|d| d.duration_s >= SOAK_S) {
            let clauses: Vec<String> = drift
                .figures()
                .into_iter()
                .filter_map(|(name, change)| {
                    let growth = change.growth()?;
                    let sign = if growth >= 0.0 { "+" } else { "−" };
                    Some(format!("{name} {sign}{}%", number(100.0 * growth.abs(), 1)))
                })
                .collect();
            if clauses.is_empty() {
                continue;
            }
            let grew = drift
                .figures()
                .into_iter()
                .any(|(_, change)| change.growth().is_some_and(|g| g > DRIFT_LIMIT));
            out.push(format!(
                "{} on {}, {} minutes of {}: the last third against the first, {}{}.",
                data.labels.unloaded(&cell.identity),
                cell.identity.link,
                number(drift.duration_s / 60.0, 0),
                cell.identity.load,
                clauses.join(", "),
                if grew {
                    format!(
                        "; something grew by more than {}%, so that the load was not steady",
                        number(100.0 * DRIFT_LIMIT, 0)
                    )
                } else {
                    String::new()
                }
            ));
        }
    }
    out
}

/// A bootstrap over few clusters cannot show how much they vary.
fn intervals(data: &Data) -> Vec<String> {
    let documents = data
        .pools_over_loads()
        .iter()
        .filter_map(|p| score(p.measured(), |s| s.f1))
        .map(|s| s.documents)
        .min();
    match documents {
        Some(documents) if documents < FEW_DOCUMENTS => vec![format!(
            "Quality rests on {} where fewest: an interval that resamples fewer than {FEW_DOCUMENTS} is too narrow, so a small difference may be chance.",
            count(documents, "document")
        )],
        _ => Vec::new(),
    }
}

/// How well `reference` matches `identity` in what is not compared; the best
/// match is used, and what differs is said.
fn likeness(identity: &CellIdentity, reference: &CellIdentity) -> [bool; 5] {
    // The reference alone does the same work cold and primed: only a warm edge differs.
    let warm = |cell: &CellIdentity| cell.contract == "warm";
    [
        identity.load == reference.load,
        identity.device == reference.device,
        warm(identity) == warm(reference),
        identity.scenario == reference.scenario,
        identity.compute == reference.compute,
    ]
}

fn latency(data: &Data) -> Vec<String> {
    let mut out = Vec::new();
    for variant in data.variants() {
        let mut clauses = Vec::new();
        for cell in data.cells.iter().filter(|c| data.variant(c) == variant) {
            if cell.identity.system == REFERENCE || !cell.comparable() || cell.loaded() {
                continue;
            }
            let mut best: Option<&Cell> = None;
            for candidate in data.cells.iter().filter(|r| {
                r.identity.system == REFERENCE
                    && r.identity.link == cell.identity.link
                    && r.identity.dataset == cell.identity.dataset
                    && r.identity.load == cell.identity.load
                    && r.comparable()
            }) {
                let score = |r: &Cell| likeness(&cell.identity, &r.identity);
                if best.is_none_or(|b| score(candidate) > score(b)) {
                    best = Some(candidate);
                }
            }
            let Some(reference) = best else { continue };
            let (Some(own), Some(other)) =
                (cell.summary.ttft_ms.p50, reference.summary.ttft_ms.p50)
            else {
                continue;
            };
            if other <= 0.0 {
                continue;
            }
            let ratio = own / other;
            let word = if ratio > 1.0 + EQUAL_RATIO {
                "slower"
            } else if ratio < 1.0 - EQUAL_RATIO {
                "faster"
            } else {
                "about as fast"
            };
            let mut clause = format!(
                "{word} on {} (ratio {}: {} ms against {} ms",
                cell.identity.link,
                number(ratio, 2),
                number(own, 0),
                number(other, 0)
            );
            if reference.identity.contract != cell.identity.contract {
                clause.push_str(&format!(
                    ", {} against {}",
                    cell.identity.contract, reference.identity.contract
                ));
            }
            clause.push(')');
            clauses.push(clause);
        }
        if !clauses.is_empty() {
            out.push(format!(
                "{variant}: TTFT p50 against {REFERENCE}: {}.",
                clauses.join("; ")
            ));
        }
    }
    out
}

/// What each system sustains, and how that compares with both baselines.
fn saturation(data: &Data) -> Vec<String> {
    let Some(slo) = data.input.slo else {
        return Vec::new();
    };
    let all = series(data);
    let mut out = Vec::new();
    let rests = |requests: usize| match requests {
        n if n < crate::frame::P99_MIN_REQUESTS => format!(" on {}", count(n, "request")),
        _ => String::new(),
    };
    for own in &all {
        let Some(point) = own.saturation() else {
            continue;
        };
        let place = format!("{} on {} ({})", own.label, own.first.link, own.family);
        let limits = format!(
            "TTFT ≤ {} ms and TPOT ≤ {} ms at p99",
            rate(slo.ttft_ms),
            rate(slo.tpot_ms)
        );
        let mut text = match (point.holds, &point.breaks) {
            (Some(holds), Some((breaks, why))) => format!(
                "{place} holds {limits} up to {} req/s{} and breaks at {} ({why})",
                rate(holds),
                rests(point.requests),
                rate(*breaks)
            ),
            (Some(holds), None) => format!(
                "{place} holds {limits} at every rate that was offered, up to {} req/s{}",
                rate(holds),
                rests(point.requests)
            ),
            (None, Some((breaks, why))) => format!(
                "{place} holds {limits} at no rate that was offered: already {} req/s is too much ({why})",
                rate(*breaks)
            ),
            (None, None) => continue,
        };
        let clauses: Vec<String> = BASELINES
            .iter()
            .filter_map(|system| {
                let base = own.baseline(&all, system)?;
                let ratio = ratio(&point, &base.saturation()?)?;
                let throughput = own.highest_throughput()? / base.highest_throughput()?;
                Some(format!(
                    "{ratio} times the rate of {system}, and {} times its highest throughput",
                    times(throughput)
                ))
            })
            .collect();
        if !clauses.is_empty() {
            text.push_str(&format!(". That is {}", clauses.join("; ")));
        }
        text.push('.');
        out.push(text);
    }
    out
}

/// "48.1 [40.2, 56.0]".
fn f1_of(pool: &Pool<'_>) -> Option<String> {
    score(pool.measured(), |s| s.f1).map(|s| interval(s.mean, s.interval))
}

fn interval(mean: f64, interval: Option<(f64, f64)>) -> String {
    let mean = number(100.0 * mean, 1);
    match interval {
        Some((low, high)) => format!(
            "{mean} [{}, {}]",
            number(100.0 * low, 1),
            number(100.0 * high, 1)
        ),
        None => format!("{mean} [no interval from one document]"),
    }
}

/// "answers worse than", from the interval of the paired difference.
fn verdict(difference: f64, interval: Option<(f64, f64)>) -> &'static str {
    match interval {
        Some((low, _)) if low > 0.0 => "answers better than",
        Some((_, high)) if high < 0.0 => "answers worse than",
        Some((low, high)) if low == 0.0 && high == 0.0 => "scores the same as",
        Some(_) => "shows no clear difference from",
        None if difference == 0.0 => "scores the same as",
        None => "cannot be told apart, on one document, from",
    }
}

fn quality(data: &Data) -> Vec<String> {
    let pools = data.pools_over_loads();
    let mut out = Vec::new();
    for pool in pools.iter().filter(|p| p.first.system != REFERENCE) {
        let reference = pools
            .iter()
            .filter(|p| p.first.system == REFERENCE && p.first.dataset == pool.first.dataset)
            .max_by_key(|p| likeness(pool.first, p.first));
        let Some(reference) = reference else { continue };
        let (Some(pair), Some(own), Some(other)) = (
            paired(pool.measured(), reference.measured(), |s| s.f1),
            f1_of(pool),
            f1_of(reference),
        ) else {
            continue;
        };
        out.push(format!(
            "{} {} {}: F1 {own} against {other}; difference {} on the same {}.",
            pool.label,
            verdict(pair.difference, pair.interval),
            reference.label,
            interval(pair.difference, pair.interval),
            count(pair.questions, "question")
        ));
    }
    out
}

/// What a codec saves and costs, against the same method without one.
fn codecs(data: &Data) -> Vec<String> {
    let plain = |codec: &str| matches!(codec, "identity" | "fp16");
    let pools = data.pools_over_loads();
    let mut out = Vec::new();
    for pool in &pools {
        let Some(base) = pools.iter().find(|p| {
            plain(&p.first.codec)
                && !plain(&pool.first.codec)
                && p.first.system == pool.first.system
                && p.first.alignment == pool.first.alignment
                && p.first.mapping == pool.first.mapping
                && p.first.dataset == pool.first.dataset
                && p.first.scenario == pool.first.scenario
                && p.first.compute == pool.first.compute
                && p.first.device == pool.first.device
        }) else {
            continue;
        };
        let bytes = |p: &Pool<'_>| {
            let fetched: Vec<u64> = p
                .measured()
                .filter(|s| s.kv_payload_bytes > 0)
                .map(|s| s.downlink_bytes)
                .collect();
            let sum: u64 = fetched.iter().sum();
            (sum > 0).then(|| sum as f64 / fetched.len() as f64)
        };
        let (Some(own), Some(whole)) = (bytes(pool), bytes(base)) else {
            continue;
        };
        let mut text = format!(
            "{} takes {} times the downlink bytes of {} ({} kB against {} kB)",
            pool.label,
            number(own / whole, 2),
            base.label,
            number(own / 1e3, 0),
            number(whole / 1e3, 0)
        );
        if let Some(pair) = paired(pool.measured(), base.measured(), |s| s.f1) {
            text.push_str(&format!(
                " and {} it: F1 difference {}",
                verdict(pair.difference, pair.interval),
                interval(pair.difference, pair.interval)
            ));
        }
        text.push('.');
        out.push(text);
    }
    out
}

fn privacy(data: &Data) -> Vec<String> {
    let clauses: Vec<String> = data
        .pools_over_loads()
        .iter()
        .filter_map(|pool| {
            let sent: Vec<u64> = pool.measured().map(|s| s.private_uplink_bytes).collect();
            let sum: u64 = sent.iter().sum();
            (!sent.is_empty()).then(|| {
                if sum == 0 {
                    format!("{} none", pool.label)
                } else {
                    format!(
                        "{} {} bytes",
                        pool.label,
                        number(sum as f64 / sent.len() as f64, 0)
                    )
                }
            })
        })
        .collect();
    if clauses.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "Private text that left the edge, mean per request: {}.",
        clauses.join("; ")
    )]
}

fn edge_work(data: &Data) -> Vec<String> {
    let pools = data.pools_over_loads();
    let work = |p: &Pool<'_>| {
        let each: Vec<u64> = p.measured().map(|s| s.edge_prefill_token_layers).collect();
        (!each.is_empty()).then(|| each.iter().sum::<u64>() as f64 / each.len() as f64)
    };
    let clauses: Vec<String> = pools
        .iter()
        // Under load an edge keeps its contexts, so that no request has the whole work.
        .filter(|p| p.first.system != REFERENCE && !p.cells.iter().any(|c| c.loaded()))
        .filter_map(|pool| {
            let reference = pools
                .iter()
                .filter(|p| p.first.system == REFERENCE && p.first.dataset == pool.first.dataset)
                .filter(|p| !p.cells.iter().any(|c| c.loaded()))
                // The whole work is that of an edge which has nothing yet.
                .filter(|p| p.first.contract != "warm")
                .max_by_key(|p| likeness(pool.first, p.first))?;
            let (own, whole) = (work(pool)?, work(reference)?);
            (whole > 0.0).then(|| format!("{} {}%", pool.label, number(100.0 * own / whole, 1)))
        })
        .collect();
    if clauses.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "Prefill left to the edge, as a share of {REFERENCE}'s token-layers: {}.",
        clauses.join("; ")
    )]
}
