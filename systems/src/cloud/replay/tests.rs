//! From the live models into the recording and out of it again, with random-weight models.

use super::*;
use crate::LoadedModel;
use crate::cloud::variants::Compute;
use crate::codecs::Codecs;
use crate::engine::Pace;
use crate::rates::RatePoint;
use crate::spec::{KvPath, SystemSpec};
use celslm_kv::{AlignmentConfig, CodecConfig};
use celslm_model::synthetic::SyntheticModel;
use std::path::Path;

const SYSTEM: &str = "Answer from the document.\n\nThe bridge was closed on Tuesday.";

fn model(dir: &Path, name: &str, seed: u64) -> LoadedModel {
    let path = dir.join(name);
    SyntheticModel {
        architecture: "qwen2",
        num_layers: 2,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 32,
        quantised: false,
        seed,
    }
    .write(&path)
    .unwrap();
    LoadedModel::load(&path).unwrap()
}

/// A replayed cloud that prefills 1000 tokens a second and decodes 200.
fn cloud(dir: &Path, replayed: bool) -> Shared {
    bridged_cloud(dir, replayed, &[])
}

/// The same with bridges.
fn bridged_cloud(dir: &Path, replayed: bool, bridges: &[PathBuf]) -> Shared {
    let point = |tok_s| RatePoint {
        batch: 1,
        context: 100,
        tok_s,
    };
    let options = ReplayOptions {
        dir: dir.join("recording"),
        max_bytes: 1 << 24,
        rates: Rates {
            model: "m".to_owned(),
            engine: "e".to_owned(),
            prefill: vec![point(1000.0)],
            decode: vec![point(200.0)],
        },
    };
    let compute = Compute {
        limits: EngineLimits::default(),
        pace: Pace::default(),
        threads: 1,
        replay: replayed.then_some(options),
    };
    let (cloud, edge) = (model(dir, "cloud.gguf", 1), model(dir, "edge.gguf", 2));
    let codecs = Codecs::default();
    Shared::new(cloud, Some(edge), bridges, codecs, 1 << 26, compute).unwrap()
}

/// A bridge from the hidden states of the cloud's model to the edge's KV.
fn from_states(dir: &Path) -> PathBuf {
    use celslm_kv::align::mapping::Joint;
    use celslm_kv::align::{BridgeEnd, BridgeFitter, FitOptions};
    use celslm_kv::{MappingConfig, SourceKind};

    let (cloud, edge) = (model(dir, "cloud.gguf", 1), model(dir, "edge.gguf", 2));
    let end = |model: &LoadedModel| BridgeEnd {
        fingerprint: model.decoder.fingerprint(),
        shape: model.decoder.kv_shape(),
    };
    let joint = Joint {
        source: SourceKind::States,
        ..Joint::default()
    };
    let states = cloud.decoder.states_shape().unwrap();
    let mut options =
        FitOptions::new("all", "none", 0, "test").with_mapping(MappingConfig::Joint(joint));
    options.states = Some(states);
    let map = vec![(0..states.num_layers).collect(); 2];
    let mut fitter = BridgeFitter::new(end(&cloud), end(&edge), &map, options).unwrap();
    for context in 0..10 {
        let tokens = cloud
            .context_tokens(&format!("{context} {SYSTEM}").repeat(4))
            .unwrap();
        let read = |model: &LoadedModel, kind| {
            let block = model.decoder.context_source(kind, &tokens, || true);
            block.unwrap().unwrap()
        };
        let states = read(&cloud, SourceKind::States);
        fitter.add(&states, &read(&edge, SourceKind::Kv)).unwrap();
    }
    let path = dir.join("states.safetensors");
    fitter.finish().unwrap().save(&path).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_reads_states_gets_them_and_leaves_none_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = from_states(dir.path());
    let shared = bridged_cloud(dir.path(), true, std::slice::from_ref(&path));
    let (id, context) = shared.publish(SYSTEM).unwrap();
    let wanted = celslm_wire::Variant {
        alignment: "all".to_owned(),
        bridge: None,
    };
    let variant = shared.variant(&wanted).unwrap();
    let live = shared.edge_shaped_live(&id, &variant, soon()).await;
    let live = live.unwrap();
    assert!(!live.store_hit && live.compute_ns > 0 && live.align_ns > 0);
    let bridge = celslm_kv::Bridge::read(&path).unwrap();
    let decoder = &shared.model().decoder;
    let states = decoder.context_states(&context.tokens, || true);
    let expected = bridge.map(&states.unwrap().unwrap()).unwrap();
    assert_eq!(*live.block, expected);
    // Only what was mapped is kept, and neither states nor KV that nobody asked for.
    let again = shared.edge_shaped_live(&id, &variant, soon()).await;
    assert!(again.unwrap().store_hit);
    assert_eq!(shared.stats(false).cached_kv_bytes, expected.fp16_bytes());
    // A replayed device prefills for them, and holds no KV afterwards.
    let replay = shared.replay.as_ref().unwrap();
    let key = kv_key(&shared, &id, &variant);
    let (block, align_ns) = (live.block.clone(), live.align_ns);
    replay.recording.put_kv(&key, &block, align_ns).unwrap();
    let served = replay.edge_shaped(&shared, &id, &variant, soon()).await;
    let served = served.unwrap();
    assert_eq!(served.block, live.block);
    assert!(served.compute_ns as f64 / 1e6 >= context.tokens.len() as f64 * 0.99);
    assert!(!replay.hold(&shared, &id, soon()).await.unwrap().store_hit);
    shared.evict(&id);
    let late = shared.edge_shaped_live(&id, &variant, 0).await;
    assert!(matches!(
        late.map(|ready| ready.store_hit),
        Err(ServiceError::DeadlineExceeded(_))
    ));
}

fn spec() -> SystemSpec {
    SystemSpec {
        system: "ce_lslm".to_owned(),
        kv: Some(KvPath {
            alignment: AlignmentConfig::Identity,
            codec: CodecConfig::default(),
            schedule: crate::ScheduleKind::Layerwise,
            chunk_tokens: 64,
            bridge: None,
        }),
    }
}

fn soon() -> u64 {
    now_ns() + 60_000_000_000
}

fn prompt(shared: &Shared, user: &str) -> Vec<u32> {
    let model = shared.engine.model();
    model.conversation_tokens(SYSTEM, &[], user).unwrap()
}

fn asked<'a>(id: &'a ContextId, prompt: &'a [u32]) -> Asked<'a> {
    Asked {
        context: id,
        prompt,
        sampling: Sampling::Greedy,
        seed: 0,
        max_tokens: 6,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_answer_is_served_as_it_was_and_at_the_devices_speed() {
    let dir = tempfile::tempdir().unwrap();
    let shared = cloud(dir.path(), true);
    let (id, context) = shared.publish(SYSTEM).unwrap();
    let replay = shared.replay.as_ref().unwrap();
    let item = RecordItem::Answer {
        context_id: id.to_string(),
        history: Vec::new(),
        user: "When?".to_owned(),
        sampling: Sampling::Greedy,
        seed: 3,
        max_tokens: 6,
    };
    replay.record(&shared, &item, soon()).await.unwrap();
    let tokens = prompt(&shared, "When?");
    let request = asked(&id, &tokens);
    let live = live_answer(&shared, &request, soon()).await.unwrap();

    let start = now_ns();
    let held = replay.hold(&shared, &id, soon()).await.unwrap();
    let held_ms = (now_ns() - start) as f64 / 1e6;
    assert!(!held.store_hit);
    // A token of the context is a millisecond.
    assert!(held_ms >= context.tokens.len() as f64 * 0.99, "{held_ms}");
    assert!(replay.hold(&shared, &id, soon()).await.unwrap().store_hit);

    let mut answering = replay.answer(&shared, &request).unwrap();
    let (mut served, mut times) = (Vec::new(), Vec::new());
    loop {
        match answering.next(soon()).await.unwrap() {
            Replayed::Prefilled { prefill_ns, .. } => {
                assert!(prefill_ns as f64 / 1e6 >= tokens.len() as f64 * 0.99);
            }
            Replayed::Token { id, text, at_ns } => {
                served.push((id, text));
                times.push(at_ns);
            }
            Replayed::End(_) => break,
        }
    }
    assert_eq!(served, live.tokens);
    if let [first, .., last] = times[..] {
        let gaps = times.len() - 1;
        let took = (last - first) as f64 / 1e6;
        // Five milliseconds a token; the first may have been seen late.
        assert!(took >= gaps as f64 * 5.0 - 4.0, "{took} for {gaps}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_kv_has_the_live_bits_and_the_contracts_hits() {
    let dir = tempfile::tempdir().unwrap();
    let shared = cloud(dir.path(), true);
    let (id, _) = shared.publish(SYSTEM).unwrap();
    let replay = shared.replay.as_ref().unwrap();
    let variant = shared
        .variant(&spec().kv.unwrap().wire_variant().unwrap())
        .unwrap();
    let missing = shared.edge_shaped(&id, &variant, soon()).await;
    let Err(error) = missing else {
        panic!("nothing was recorded");
    };
    assert_eq!(error.kind(), "not_recorded");
    let item = RecordItem::Context {
        context_id: id.to_string(),
        spec: spec(),
    };
    replay.record(&shared, &item, soon()).await.unwrap();
    // Recording leaves nothing in the store that a cold request would hit.
    assert!(!shared.has(&id, &variant));
    let first = shared.edge_shaped(&id, &variant, soon()).await.unwrap();
    assert!(!first.store_hit && first.compute_ns > 0);
    let second = shared.edge_shaped(&id, &variant, soon()).await.unwrap();
    assert!(second.store_hit);
    let live_shared = cloud(dir.path(), false);
    let (id, _) = live_shared.publish(SYSTEM).unwrap();
    let variant = live_shared
        .variant(&spec().kv.unwrap().wire_variant().unwrap())
        .unwrap();
    let live = live_shared
        .edge_shaped(&id, &variant, soon())
        .await
        .unwrap();
    assert_eq!(*first.block, *live.block);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_recorded_is_never_computed() {
    let dir = tempfile::tempdir().unwrap();
    let shared = cloud(dir.path(), true);
    let (id, _) = shared.publish(SYSTEM).unwrap();
    let replay = shared.replay.as_ref().unwrap();
    let tokens = prompt(&shared, "Who?");
    let Err(error) = replay.answer(&shared, &asked(&id, &tokens)) else {
        panic!("nothing was recorded");
    };
    assert_eq!(error.kind(), "not_recorded");
    assert!(error.to_string().contains("computes nothing"), "{error}");
    // And a live cloud records nothing.
    assert!(cloud(dir.path(), false).replay.is_none());
}
