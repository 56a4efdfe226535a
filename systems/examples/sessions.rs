//! How an engine's throughput and memory grow with its sessions, over one shared context.
//!
//! ```text
//! cargo run --release -p celslm-systems --example sessions -- MODEL.gguf [THREADS [CONTEXT [TOKENS]]]
//! ```
//!
//! For 1, 4 and 16 sessions in turn, three times: tokens per second of all of them together
//! while all generate, the KV that they hold at most against one context's, and when their
//! first tokens come if all are submitted at once. Medians are printed.

use celslm_model::Sampling;
use celslm_systems::LoadedModel;
use celslm_systems::clock::now_ns;
use celslm_systems::engine::{
    ContextOutput, ContextRequest, Engine, EngineLimits, Pace, SessionContext, SessionEvent,
    SessionRequest,
};
use std::path::PathBuf;
use std::sync::Arc;

const ROUNDS: usize = 3;
const PROMPT_TOKENS: usize = 32;
const PATIENCE_NS: u64 = 3_600_000_000_000;

/// One round's figures.
struct Round {
    decode_tok_s: f64,
    kv_ratio: f64,
    first_p50_ms: f64,
    first_p95_ms: f64,
}

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let path: PathBuf = args
        .next()
        .ok_or_else(|| anyhow::anyhow!("give the path of a GGUF file"))?
        .into();
    let mut number = |default: usize| {
        args.next()
            .map_or(Ok(default), |text| text.parse::<usize>())
    };
    let (threads, context_tokens, tokens) = (number(2)?, number(1024)?, number(64)?);
    celslm_model::set_threads(threads)?;
    let model = Arc::new(LoadedModel::load(&path)?);
    let engine = Engine::start("bench", model, EngineLimits::default(), Pace::default())?;
    println!("{threads} threads, a context of {context_tokens} tokens, {tokens} tokens each");
    println!("sessions  decode tok/s  KV / context  first token p50 ms  p95 ms");
    let mut rounds: [Vec<Round>; 3] = Default::default();
    let counts = [1, 4, 16];
    for round in 0..ROUNDS {
        for (rounds, &count) in rounds.iter_mut().zip(&counts) {
            rounds.push(run(&engine, count, context_tokens, tokens, round)?);
        }
    }
    for (rounds, count) in rounds.iter().zip(counts) {
        let median = |figure: fn(&Round) -> f64| {
            let mut values: Vec<_> = rounds.iter().map(figure).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        println!(
            "{count:8}  {:12.1}  {:12.2}  {:18.0}  {:6.0}",
            median(|round| round.decode_tok_s),
            median(|round| round.kv_ratio),
            median(|round| round.first_p50_ms),
            median(|round| round.first_p95_ms)
        );
    }
    Ok(())
}

fn run(
    engine: &Engine,
    count: usize,
    context_tokens: usize,
    tokens: usize,
    seed: usize,
) -> anyhow::Result<Round> {
    let ids = |len: usize, seed: usize| -> Vec<u32> {
        let vocab = engine.model().decoder.vocab_size().min(20_000);
        (0..len)
            .map(|i| (1000 + (i * 7919 + seed * 104_729) % (vocab - 1000)) as u32)
            .collect()
    };
    let deadline_ns = now_ns() + PATIENCE_NS;
    let ready = engine.context(ContextRequest {
        key: "shared".to_owned(),
        client: 0,
        tokens: ids(context_tokens, 0),
        output: ContextOutput::Prefix,
        deadline_ns,
    })?;
    let prefix = ready.wait()?.into_prefix()?;
    engine.stats(true);
    let start_ns = now_ns();
    let mut handles = (0..count)
        .map(|index| {
            engine.session(SessionRequest {
                client: index as u32,
                context: SessionContext::Ready(prefix.clone()),
                prompt: ids(PROMPT_TOKENS, 1 + index + count * seed),
                sampling: Sampling::Greedy,
                seed: index as u64,
                max_tokens: tokens,
                deadline_ns,
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut stamps: Vec<Vec<u64>> = Vec::new();
    for handle in &mut handles {
        let mut times = Vec::new();
        loop {
            match handle.wait()? {
                SessionEvent::Prefilled(_) => {}
                SessionEvent::Token(token) => times.push(token.at_ns),
                SessionEvent::End(_) => break,
            }
        }
        stamps.push(times);
    }
    // From when the last has its first token until the first has its last: all generate.
    let all_began = stamps.iter().filter_map(|times| times.first()).max();
    let one_ended = stamps.iter().filter_map(|times| times.last()).min();
    let (from, to) = all_began.zip(one_ended).unwrap_or((&0, &1));
    let generated = stamps
        .iter()
        .flatten()
        .filter(|at| (*from..=*to).contains(at));
    // The first token of each falls on the border.
    let generated = generated.count().saturating_sub(count);
    let mut firsts: Vec<f64> = stamps
        .iter()
        .filter_map(|times| times.first())
        .map(|at_ns| (at_ns - start_ns) as f64 / 1e6)
        .collect();
    firsts.sort_by(f64::total_cmp);
    let at = |share: f64| firsts[((firsts.len() - 1) as f64 * share).round() as usize];
    Ok(Round {
        decode_tok_s: generated as f64 * 1e9 / to.saturating_sub(*from).max(1) as f64,
        kv_ratio: engine.stats(false).peak_kv_bytes as f64 / prefix.bytes() as f64,
        first_p50_ms: at(0.5),
        first_p95_ms: at(0.95),
    })
}
