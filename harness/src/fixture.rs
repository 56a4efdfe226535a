//! What the unit tests build on.

use std::path::{Path, PathBuf};

use celslm_reports::Sample;

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
    let inputs = Catalogue::new(&configs())
        .gather(config, &source, None)
        .unwrap();
    let plan = Plan::new(config, &inputs).unwrap();
    (inputs, plan)
}

/// A sample of a planned request that was answered with one token.
pub(crate) fn sample(cell: &Cell, request: &PlannedRequest) -> Sample {
    let json = serde_json::json!({
        "schema_version": 1, "cell_id": cell.id, "scenario": cell.scenario,
        "order": request.order, "repetition": request.repetition, "warmup": request.warmup,
        "seed": request.seed, "system": cell.spec.system, "link": cell.link,
        "alignment": "none", "mapping": "none", "codec": "none", "schedule": "none",
        "dataset": cell.dataset.name(), "contract": cell.contract, "compute": "live",
        "document_id": format!("d{}", request.document),
        "question_id": format!("q{}", request.question), "context_id": "00",
        "outcome": "ok", "error_kind": null, "error": null, "degraded": false,
        "scheduled_ns": 10, "sent_ns": 20, "token_ns": [30], "parts": [],
        "context_tokens": 5, "prompt_tokens": 7, "output_tokens": 1,
        "uplink_bytes": 0, "downlink_bytes": 0, "uplink_packets": 0, "downlink_packets": 0,
        "uplink_payload_bytes": 0, "downlink_payload_bytes": 0, "kv_fp16_bytes": 0,
        "kv_payload_bytes": 0, "private_uplink_bytes": 0, "edge_prefill_token_layers": 0,
        "edge_peak_kv_bytes": 0, "edge_cache_hit": false, "cloud_store_hit": false,
        "output_text": "x", "output_ids": [1], "gold": ["x"], "answerable": true,
        "em": 1.0, "f1": 1.0, "token_exact": null,
    });
    serde_json::from_value(json).unwrap()
}
