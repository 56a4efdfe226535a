//! The engine over a random-weight model.

use super::*;
use crate::LoadedModel;
use crate::SystemError;
use crate::clock::now_ns;
use crate::schedule::ScheduleKind;
use celslm_model::synthetic::SyntheticModel;
use celslm_model::{KvPrefix, Sampling};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

const NUM_LAYERS: usize = 4;
/// Far beyond what any of these tests takes.
const PATIENCE_NS: u64 = 120_000_000_000;

fn model() -> Arc<LoadedModel> {
    static MODEL: OnceLock<Arc<LoadedModel>> = OnceLock::new();
    let load = || {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        let synthetic = SyntheticModel {
            architecture: "qwen2",
            num_layers: NUM_LAYERS,
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 32,
            quantised: true,
            seed: 5,
        };
        synthetic.write(&path).unwrap();
        Arc::new(LoadedModel::load(&path).unwrap())
    };
    MODEL.get_or_init(load).clone()
}

fn engine(limits: EngineLimits) -> Engine {
    Engine::start("test", model(), limits, Pace::default()).unwrap()
}

fn tokens(len: usize, seed: usize) -> Vec<u32> {
    (0..len)
        .map(|i| ((i * 31 + seed * 97 + i * i) % 256) as u32)
        .collect()
}

fn request(context: SessionContext, prompt: Vec<u32>, max_tokens: usize) -> SessionRequest {
    SessionRequest {
        client: 0,
        context,
        prompt,
        sampling: Sampling::Greedy,
        seed: 0,
        max_tokens,
        deadline_ns: now_ns() + PATIENCE_NS,
    }
}

fn context(key: &str, tokens: Vec<u32>, output: ContextOutput) -> ContextRequest {
    ContextRequest {
        key: key.to_owned(),
        client: 0,
        tokens,
        output,
        deadline_ns: now_ns() + PATIENCE_NS,
    }
}

fn prefix(engine: &Engine, len: usize) -> Arc<KvPrefix> {
    let request = context(
        &format!("prefix-{len}"),
        tokens(len, 0),
        ContextOutput::Prefix,
    );
    engine
        .context(request)
        .unwrap()
        .wait()
        .unwrap()
        .into_prefix()
        .unwrap()
}

/// A prefix like an engine's own whose layers are still to come, with the layers.
fn arriving(engine: &Engine, len: usize) -> (Arc<ArrivingKv>, Arc<celslm_kv::KvBlock>) {
    let request = context(
        &format!("block-{len}"),
        tokens(len, 0),
        ContextOutput::Block,
    );
    let block = engine
        .context(request)
        .unwrap()
        .wait()
        .unwrap()
        .into_block()
        .unwrap();
    let empty = KvPrefix::new(model().decoder.kv_shape(), len);
    (engine.arriving(Arc::new(empty)), block)
}

fn arrive(kv: &ArrivingKv, block: &celslm_kv::KvBlock, layer: usize) {
    kv.set_layer(layer, &block.layers()[layer], &[], model().decoder.rope())
        .unwrap();
}

struct Outcome {
    ids: Vec<u32>,
    text: String,
    prefilled: Prefilled,
    first: Token,
    end: SessionEnd,
}

fn finish(handle: &mut SessionHandle) -> Result<Outcome, SystemError> {
    let SessionEvent::Prefilled(prefilled) = handle.wait()? else {
        panic!("the first event is the end of the prefill");
    };
    let (mut ids, mut text, mut first) = (Vec::new(), String::new(), None);
    loop {
        match handle.wait()? {
            SessionEvent::Prefilled(_) => panic!("prefilled twice"),
            SessionEvent::Token(token) => {
                ids.push(token.id);
                text.push_str(&token.text);
                first.get_or_insert(token);
            }
            SessionEvent::End(end) => {
                return Ok(Outcome {
                    ids,
                    text,
                    prefilled,
                    first: first.expect("these models never end their turn at once"),
                    end,
                });
            }
        }
    }
}

fn run(engine: &Engine, request: SessionRequest) -> Outcome {
    finish(&mut engine.session(request).unwrap()).unwrap()
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let give_up = now_ns() + 20_000_000_000;
    while !holds() {
        assert!(now_ns() < give_up, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn tokens_are_the_same_alone_and_beside_others_that_come_and_go() {
    let engine = engine(EngineLimits {
        step_tokens: 8,
        ..EngineLimits::default()
    });
    let shared = prefix(&engine, 700);
    let make = |index: usize| {
        let context = match index % 3 {
            0 => SessionContext::Empty,
            _ => SessionContext::Ready(shared.clone()),
        };
        let sampling = match index % 4 {
            3 => Sampling::Nucleus {
                temperature: 1.5,
                top_p: 0.9,
            },
            _ => Sampling::Greedy,
        };
        // One prompt is longer than a chunk, all are longer than a step beside others.
        let len = if index == 5 { 300 } else { 10 + 7 * index };
        SessionRequest {
            client: index as u32 % 5,
            sampling,
            seed: index as u64,
            ..request(context, tokens(len, index), 24)
        }
    };
    let alone: Vec<_> = (0..16)
        .map(|index| {
            let Outcome { ids, text, .. } = run(&engine, make(index));
            // The text comes in pieces; only an incomplete character at the end is held back.
            let whole = model().tokenizer.decode(&ids).unwrap();
            let held = whole.strip_prefix(&text).expect("pieces of the whole");
            assert!(
                held.chars().all(|c| c == char::REPLACEMENT_CHARACTER),
                "{held:?}"
            );
            ids
        })
        .collect();
    assert!(
        alone.iter().filter(|ids| ids.len() == 24).count() > 8,
        "{alone:?}"
    );
    let mut handles = Vec::new();
    for index in 0..16 {
        handles.push(engine.session(make(index)).unwrap());
        // Some that give up after a while, at their first event or before it.
        let mut passing = engine.session(make(15 - index)).unwrap();
        if index % 2 == 0 {
            passing.wait().unwrap();
        }
        drop(passing);
        std::thread::sleep(Duration::from_micros(100 * (index as u64 % 4)));
    }
    for (handle, alone) in handles.iter_mut().zip(&alone) {
        assert_eq!(finish(handle).unwrap().ids, *alone);
    }
    let stats = engine.stats(false);
    assert!(stats.peak_sessions > 4, "{stats:?}");
    assert!(stats.cancelled > 0 && stats.failed == 0, "{stats:?}");
    assert_eq!(stats.batch_rows.iter().sum::<u64>(), stats.steps);
}

#[test]
fn times_of_every_session_add_up_to_its_age() {
    let engine = engine(EngineLimits {
        max_sessions: 2,
        ..EngineLimits::default()
    });
    let mut handles = Vec::new();
    for index in 0..6 {
        let before = now_ns();
        let made = request(SessionContext::Empty, tokens(40, index), 8);
        let handle = engine.session(made).unwrap();
        handles.push((before, now_ns(), handle));
    }
    for (index, (before, after, handle)) in handles.iter_mut().enumerate() {
        let outcome = finish(handle).unwrap();
        for (at_ns, times) in [
            (outcome.prefilled.at_ns, outcome.prefilled.times),
            (outcome.first.at_ns, outcome.first.times),
            (outcome.end.at_ns, outcome.end.times),
        ] {
            let submitted = at_ns - times.total_ns();
            assert!((*before..=*after).contains(&submitted));
            assert!(times.prefill_ns > 0 && times.blocked_ns == 0);
        }
        assert!(outcome.first.times.decode_ns > 0);
        assert!(index < 2 || outcome.prefilled.times.queued_ns > 0);
    }
}

#[test]
fn a_layerwise_session_gets_on_while_others_generate() {
    let engine = engine(EngineLimits::default());
    let (kv, block) = arriving(&engine, 500);
    let whole = SessionContext::Ready(prefix(&engine, 500));
    let expected = run(&engine, request(whole, tokens(300, 3), 10)).ids;

    let mut other = engine
        .session(request(SessionContext::Empty, tokens(20, 1), 4000))
        .unwrap();
    other.wait().unwrap();
    for schedule in [ScheduleKind::Layerwise, ScheduleKind::Sequential] {
        let (kv, block) = match schedule {
            ScheduleKind::Layerwise => (kv.clone(), block.clone()),
            ScheduleKind::Sequential => arriving(&engine, 500),
        };
        let context = SessionContext::Arriving {
            kv: kv.clone(),
            schedule,
        };
        let mut gated = engine
            .session(request(context, tokens(300, 3), 10))
            .unwrap();
        let before = engine.stats(false).layer_steps;
        let ran = || engine.stats(false).layer_steps - before;
        for layer in 0..NUM_LAYERS {
            std::thread::sleep(Duration::from_millis(20));
            gated.check().unwrap();
            arrive(&kv, &block, layer);
            if schedule == ScheduleKind::Layerwise {
                eventually("the layer runs", || ran() > layer as u64);
            }
        }
        let outcome = finish(&mut gated).unwrap();
        assert_eq!(outcome.ids, expected, "{schedule}");
        let times = outcome.prefilled.times;
        let blocked: u64 = outcome
            .prefilled
            .blocked
            .iter()
            .map(|(from, to)| to - from)
            .sum();
        assert_eq!(blocked, times.blocked_ns);
        assert!(blocked >= 20_000_000, "{times:?}");
        assert!(times.prefill_ns > 0, "{times:?}");
        match schedule {
            ScheduleKind::Layerwise => assert_eq!(ran(), NUM_LAYERS as u64),
            ScheduleKind::Sequential => assert_eq!(ran(), 0),
        }
    }
    // The other one generated all the while and still does.
    let before = engine.stats(false).tokens;
    eventually("the other session stands still", || {
        engine.stats(false).tokens > before + 3
    });
}

#[test]
fn what_finds_no_place_is_refused_and_a_place_comes_back() {
    let engine = engine(EngineLimits {
        max_sessions: 1,
        max_queue: 2,
        ..EngineLimits::default()
    });
    // Sessions that hold their places, since their context never comes.
    let kv = engine.arriving(Arc::new(KvPrefix::new(model().decoder.kv_shape(), 8)));
    let stuck = || {
        let kv = kv.clone();
        let schedule = ScheduleKind::Layerwise;
        engine.session(request(
            SessionContext::Arriving { kv, schedule },
            tokens(4, 0),
            4,
        ))
    };
    let mut held: Vec<_> = (0..3).map(|_| stuck().unwrap()).collect();
    for refused in [
        stuck().map(drop),
        engine
            .context(context("c", tokens(4, 0), ContextOutput::Prefix))
            .map(drop),
    ] {
        assert_eq!(refused.unwrap_err().kind, "overloaded");
    }
    eventually("one in work, two waiting", || {
        let stats = engine.stats(false);
        (stats.sessions, stats.queued, stats.refused) == (1, 2, 2)
    });
    held.pop();
    eventually("the place comes back", || stuck().is_ok());
    held.clear();
    eventually("everything is let go", || {
        let stats = engine.stats(false);
        (stats.sessions, stats.queued, stats.kv_bytes) == (0, 0, 0)
    });
    let outcome = run(&engine, request(SessionContext::Empty, tokens(9, 0), 3));
    assert_eq!(outcome.end.ending, Ending::Length);
}

#[test]
fn what_does_not_fit_beside_others_waits_and_what_never_fits_runs_alone() {
    let shape = model().decoder.kv_shape();
    let token_bytes = shape.num_layers * shape.num_kv_heads * shape.head_dim * 4;
    let engine = engine(EngineLimits {
        kv_bytes: 60 * token_bytes,
        ..EngineLimits::default()
    });
    let mut handles: Vec<_> = [20, 20, 20, 100, 20]
        .into_iter()
        .map(|len| {
            let made = request(SessionContext::Empty, tokens(len, 1), 10);
            engine.session(made).unwrap()
        })
        .collect();
    for handle in &mut handles {
        finish(handle).unwrap();
    }
    let stats = engine.stats(false);
    assert!(stats.peak_sessions <= 2, "{stats:?}");
    assert_eq!(stats.completed, 5);
}

#[test]
fn a_session_that_nobody_reads_is_dropped_with_its_kv() {
    let engine = engine(EngineLimits::default());
    let mut handle = engine
        .session(request(SessionContext::Empty, tokens(600, 2), 4000))
        .unwrap();
    handle.wait().unwrap();
    eventually("it holds KV", || engine.stats(false).kv_bytes > 0);
    drop(handle);
    eventually("its KV is freed", || engine.stats(false).kv_bytes == 0);
    let stats = engine.stats(true);
    assert_eq!((stats.cancelled, stats.completed), (1, 0));
    assert!(stats.peak_kv_bytes > 0);
    let stats = engine.stats(false);
    assert_eq!(
        (stats.cancelled, stats.peak_kv_bytes, stats.steps),
        (0, 0, 0)
    );
    assert_eq!(stats.weights_bytes, model().decoder.weights_bytes() as u64);
}

#[test]
fn a_deadline_ends_sessions_and_contexts_in_every_state() {
    let engine = engine(EngineLimits {
        max_sessions: 3,
        ..EngineLimits::default()
    });
    let soon = || now_ns() + 60_000_000;
    let kv = engine.arriving(Arc::new(KvPrefix::new(model().decoder.kv_shape(), 8)));
    let schedule = ScheduleKind::Sequential;
    let late = |context, max_tokens| SessionRequest {
        deadline_ns: soon(),
        ..request(context, tokens(4, 0), max_tokens)
    };
    // Blocked, generating, prefilling, and waiting for a place.
    let mut blocked = engine
        .session(late(SessionContext::Arriving { kv, schedule }, 4))
        .unwrap();
    let mut generating = engine.session(late(SessionContext::Empty, 8000)).unwrap();
    let prefilling = engine
        .context(ContextRequest {
            deadline_ns: soon(),
            ..context("long", tokens(8000, 0), ContextOutput::Prefix)
        })
        .unwrap();
    let mut waiting = engine.session(late(SessionContext::Empty, 4)).unwrap();
    assert_eq!(prefilling.wait().err().unwrap().kind, "deadline");
    for handle in [&mut blocked, &mut generating, &mut waiting] {
        let error = loop {
            match handle.wait() {
                Ok(SessionEvent::End(_)) => panic!("it had no time for that"),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind, "deadline");
    }
    assert_eq!(
        run(&engine, request(SessionContext::Empty, tokens(4, 0), 2))
            .ids
            .len(),
        2
    );
}

#[test]
fn a_context_is_computed_once_and_held_once() {
    let engine = engine(EngineLimits::default());
    let asked: Vec<_> = (0..4)
        .map(|_| {
            let request = context("c", tokens(1000, 0), ContextOutput::Prefix);
            engine.context(request).unwrap()
        })
        .collect();
    let ready: Vec<_> = asked
        .into_iter()
        .map(|handle| handle.wait().unwrap())
        .collect();
    assert_eq!(ready.iter().filter(|ready| ready.computed).count(), 1);
    assert_eq!(engine.stats(true).prefill_tokens, 1000);
    let prefixes: Vec<_> = ready
        .into_iter()
        .map(|ready| ready.into_prefix().unwrap())
        .collect();
    assert!(
        prefixes
            .iter()
            .all(|prefix| Arc::ptr_eq(prefix, &prefixes[0]))
    );

    // Sixteen sessions over it hold it once.
    let mut handles: Vec<_> = (0..16)
        .map(|index| {
            let context = SessionContext::Ready(prefixes[index % 4].clone());
            engine
                .session(request(context, tokens(4, index), 8))
                .unwrap()
        })
        .collect();
    for handle in &mut handles {
        finish(handle).unwrap();
    }
    let peak = engine.stats(false).peak_kv_bytes as f64;
    let one = prefixes[0].bytes() as f64;
    assert!(
        peak >= one && peak <= 1.3 * one,
        "{peak} for a context of {one} bytes"
    );

    // It is shared for as long as somebody holds it, unless it is to be forgotten.
    let again = || {
        let request = context("c", tokens(1000, 0), ContextOutput::Prefix);
        engine.context(request).unwrap().wait().unwrap()
    };
    assert!(!again().computed);
    engine.forget("c");
    assert!(again().computed);
    drop(prefixes);
    assert!(again().computed);
}

#[test]
fn a_context_is_that_of_the_decoder_and_outlives_who_asked_first() {
    let engine = engine(EngineLimits::default());
    let first = engine
        .context(context("c", tokens(700, 4), ContextOutput::Block))
        .unwrap();
    let second = engine
        .context(context("c", tokens(700, 4), ContextOutput::Block))
        .unwrap();
    drop(first);
    let block = second.wait().unwrap().into_block().unwrap();
    let expected = model()
        .decoder
        .context_kv(&tokens(700, 4), || true)
        .unwrap();
    assert!(expected.is_some_and(|expected| expected == *block));
}

#[test]
fn a_context_is_the_same_to_the_bit_whatever_it_is_cut_into() {
    let engine = engine(EngineLimits {
        step_tokens: 7,
        ..EngineLimits::default()
    });
    let mut beside = engine
        .session(request(SessionContext::Empty, tokens(9, 2), 4000))
        .unwrap();
    beside.wait().unwrap();
    let handle = engine
        .context(context("c", tokens(700, 4), ContextOutput::Block))
        .unwrap();
    let block = handle.wait().unwrap().into_block().unwrap();
    let steps = engine.stats(false).steps;
    drop(beside);
    let whole = model()
        .decoder
        .context_kv(&tokens(700, 4), || true)
        .unwrap();
    assert!(whole.is_some_and(|whole| whole == *block));
    // Every step beside the session took in seven tokens at most.
    assert!(steps > 100, "{steps} steps: nobody generated meanwhile");
}

#[test]
fn a_client_with_much_to_prefill_does_not_hold_up_another() {
    let engine = engine(EngineLimits::default());
    let contexts: Vec<_> = (0..8)
        .map(|index| {
            let key = format!("c{index}");
            let request = context(&key, tokens(2000, index), ContextOutput::Prefix);
            engine.context(request).unwrap()
        })
        .collect();
    let outcome = run(
        &engine,
        SessionRequest {
            client: 1,
            ..request(SessionContext::Empty, tokens(20, 0), 4)
        },
    );
    let computed = engine.stats(false).prefill_tokens;
    assert_eq!(outcome.ids.len(), 4);
    assert!(computed < 8000, "{computed} of 16000 tokens came before 20");
    drop(contexts);
}

#[test]
fn what_fails_fails_alone() {
    let engine = engine(EngineLimits::default());
    let expected = run(&engine, request(SessionContext::Empty, tokens(20, 1), 40)).ids;
    let mut beside = engine
        .session(request(SessionContext::Empty, tokens(20, 1), 40))
        .unwrap();
    beside.check().unwrap();
    // A prefix that claims to be there and is not fails in the middle of a pass.
    let hollow = Arc::new(KvPrefix::new(model().decoder.kv_shape(), 8));
    let request_hollow = request(SessionContext::Ready(hollow), tokens(4, 0), 4);
    let failed = finish(&mut engine.session(request_hollow).unwrap());
    assert_eq!(failed.err().unwrap().kind, "model");
    // One of another model's shape fails at its admission.
    let mut shape = model().decoder.kv_shape();
    shape.head_dim *= 2;
    let foreign = Arc::new(KvPrefix::new(shape, 8));
    let request_foreign = request(SessionContext::Ready(foreign), tokens(4, 0), 4);
    let failed = finish(&mut engine.session(request_foreign).unwrap());
    assert_eq!(failed.err().unwrap().kind, "model");
    // What cannot be run is not even taken.
    for prompt in [vec![], vec![9999], tokens(9000, 0)] {
        assert!(
            engine
                .session(request(SessionContext::Empty, prompt, 4))
                .is_err()
        );
    }
    assert_eq!(finish(&mut beside).unwrap().ids, expected);
    assert_eq!(engine.stats(false).failed, 2);
}

#[test]
fn a_full_window_ends_a_session_well() {
    let engine = engine(EngineLimits::default());
    let window = model().decoder.config().max_position_embeddings;
    let shared = prefix(&engine, window - 10);
    let outcome = run(
        &engine,
        request(SessionContext::Ready(shared), tokens(6, 0), 100),
    );
    assert_eq!(outcome.end.ending, Ending::Full);
    // Four more tokens fit, and the last one generated needs no place.
    assert_eq!(outcome.ids.len(), 5);
}

#[test]
fn a_slower_machine_takes_longer_and_says_the_same() {
    let fast = engine(EngineLimits::default());
    let pace = Pace::uniform(5.0);
    let slow = Engine::start("slow", model(), EngineLimits::default(), pace).unwrap();
    let make = || request(SessionContext::Empty, tokens(200, 0), 20);
    let expected = run(&fast, make()).ids;
    // The fastest of a few: what else the machine does only adds to a run.
    let fastest = |engine: &Engine| {
        let runs = (0..5).map(|_| {
            let outcome = run(engine, make());
            assert_eq!(outcome.ids, expected);
            outcome.end.times.total_ns()
        });
        runs.min().unwrap_or_default()
    };
    let (quick, slowed) = (fastest(&fast), fastest(&slow));
    assert!(slowed > 2 * quick, "{quick} against {slowed}");
}

#[test]
fn an_engine_that_ends_tells_those_who_wait() {
    let engine = engine(EngineLimits::default());
    let mut handle = engine
        .session(request(SessionContext::Empty, tokens(4, 0), 8000))
        .unwrap();
    handle.wait().unwrap();
    drop(engine);
    let error = loop {
        if let Err(error) = handle.wait() {
            break error;
        }
    };
    assert_eq!(error.kind, "engine");
}
