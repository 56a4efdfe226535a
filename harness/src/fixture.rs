//! What the unit tests build on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use celslm_kv::align::BridgeEnd;
use celslm_kv::codec::{ArtefactFitter, ArtefactOptions, CodecArtefact};
use celslm_kv::{KeyRope, KvBlock, KvShape, LayerKv, ModelFingerprint};
use celslm_reports::{Sample, TtftPart};

use crate::catalogue::Catalogue;
use crate::config::{Config, ConfigError, ConfigSource, Override};
use crate::plan::{Cell, Inputs, Plan, PlannedRequest};

/// The repository's `configs/`.
pub(crate) fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs")
}

/// Parses `text` as `test.toml`, with `--set` arguments.
pub(crate) fn parse(text: &str, sets: &[&str]) -> Result<Config, ConfigError> {
    let overrides = sets
        .iter()
        .map(|set| Override::parse(set))
        .collect::<Result<_, _>>()?;
    ConfigSource::new("test.toml", text, overrides).parse()
}

/// A small experiment over the repository's links: two links, two codecs, six questions.
pub(crate) fn config(sets: &[&str]) -> Config {
    let text = r#"
[experiment]
name = "small"
seed = 5
[workload]
arrivals = { closed_loop = { order = "by_document" } }
[grid]
links = ["slow-20m-60ms", "none"]
datasets = [{ embedded = { documents = 3, questions_per_document = 2 } }]
codecs = ["identity", { group_quant = { bits = 4 } }]
"#;
    parse(text, sets).unwrap()
}

/// The inputs of a configuration and its plan.
pub(crate) fn planned(config: &Config) -> (Inputs, Plan) {
    let source = ConfigSource::new("test.toml", "", Vec::new());
    let inputs = Catalogue::new(&configs()).gather(config, &source).unwrap();
    let plan = Plan::new(config, &inputs).unwrap();
    (inputs, plan)
}

/// A codec artefact for KV of 3 layers x 2 heads x 16, fitted on waves that the seed shifts.
pub(crate) fn fitted(seed: u32) -> Arc<CodecArtefact> {
    const TOKENS: usize = 300;
    let model = BridgeEnd {
        fingerprint: ModelFingerprint::from_bytes([9; 32]),
        shape: KvShape::new(3, 2, 16).unwrap(),
    };
    let side = |context: usize, layer: usize| {
        (0..2 * TOKENS * 16)
            .map(|i| {
                let (token, channel) = (i / 16 % TOKENS, i % 16 + i / (16 * TOKENS) * 16);
                let phase = (context * TOKENS + token + layer) as f32 * (channel as f32 + 1.7);
                half::f16::from_f32((phase + seed as f32).sin() * (1.0 + channel as f32))
            })
            .collect()
    };
    let mut fitter = ArtefactFitter::new(model, ArtefactOptions::new("none", "tests")).unwrap();
    for context in 0..2 {
        let layers = (0..3)
            .map(|layer| LayerKv {
                k: side(context, layer),
                v: side(context, layer + 7),
            })
            .collect();
        let rope = KeyRope::Pre;
        let block = KvBlock::new(model.fingerprint, model.shape, 0, 0..TOKENS, rope, layers);
        fitter.add(&block.unwrap()).unwrap();
    }
    Arc::new(fitter.finish().unwrap())
}

/// A sample of a planned request that was answered with one token.
pub(crate) fn sample_of(cell: &Cell, request: &PlannedRequest) -> Sample {
    let identity = cell.identity();
    Sample {
        scenario: identity.scenario,
        repetition: request.repetition,
        warmup: request.warmup,
        excluded: request.warmup.then(|| "warmup".to_owned()),
        seed: request.seed,
        system: identity.system,
        link: identity.link,
        alignment: identity.alignment,
        mapping: identity.mapping,
        codec: identity.codec,
        schedule: identity.schedule,
        dataset: identity.dataset,
        contract: identity.contract,
        device: identity.device,
        load: identity.load,
        document_id: format!("d{}", request.document),
        question_id: format!("q{}", request.question),
        ..sample(&cell.id, request.order)
    }
}

/// A sample of the edge alone, answered with one token.
pub(crate) fn sample(cell_id: &str, order: u64) -> Sample {
    Sample {
        schema_version: celslm_reports::SCHEMA_VERSION,
        cell_id: cell_id.into(),
        scenario: "main".into(),
        order,
        repetition: 0,
        warmup: false,
        excluded: None,
        seed: 1,
        system: "edge_only".into(),
        link: "none".into(),
        alignment: "none".into(),
        mapping: "none".into(),
        codec: "none".into(),
        schedule: "none".into(),
        dataset: "embedded".into(),
        contract: "primed".into(),
        compute: "live".into(),
        device: "host".into(),
        load: "sequential".into(),
        round: 0,
        offered_rps: None,
        edge: 0,
        conversation: None,
        turn: 0,
        document_id: "d0".into(),
        question_id: "q0".into(),
        context_id: "00".into(),
        outcome: "ok".into(),
        error_kind: None,
        error: None,
        degraded: false,
        scheduled_ns: 10,
        sent_ns: 20,
        token_ns: vec![30],
        parts: vec![part("queue", 10), part("first_step", 10)],
        context_tokens: 5,
        prompt_tokens: 7,
        output_tokens: 1,
        tokens_estimated: false,
        uplink_bytes: 0,
        downlink_bytes: 0,
        uplink_packets: 0,
        downlink_packets: 0,
        uplink_payload_bytes: 0,
        downlink_payload_bytes: 0,
        kv_fp16_bytes: 0,
        kv_payload_bytes: 0,
        private_uplink_bytes: 0,
        edge_prefill_token_layers: 0,
        edge_peak_kv_bytes: 0,
        edge_cache_hit: false,
        cloud_store_hit: false,
        output_text: "x".into(),
        output_ids: vec![1],
        gold: vec!["x".into()],
        answerable: true,
        em: Some(1.0),
        f1: Some(1.0),
        token_exact: None,
    }
}

/// A part of TTFT that nothing hid.
fn part(name: &str, exposed_ns: u64) -> TtftPart {
    TtftPart {
        name: name.into(),
        exposed_ns,
        overlapped_ns: 0,
    }
}
