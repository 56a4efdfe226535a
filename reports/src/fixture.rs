//! Hand-made samples for tests. No figure here was measured.

use crate::sample::{SCHEMA_VERSION, Sample, TtftPart};

pub(crate) const MS: u64 = 1_000_000;

/// A sound, answered request: TTFT 100 ms, three tokens 10 ms apart.
pub(crate) fn sample() -> Sample {
    Sample {
        schema_version: SCHEMA_VERSION,
        cell_id: "fixture-cell".into(),
        scenario: "fixture".into(),
        order: 0,
        repetition: 0,
        warmup: false,
        seed: 1,
        system: "ce_lslm".into(),
        link: "20mbit-60ms".into(),
        alignment: "identity".into(),
        mapping: "none".into(),
        codec: "identity".into(),
        schedule: "layerwise".into(),
        dataset: "embedded".into(),
        contract: "primed".into(),
        compute: "live".into(),
        document_id: "doc-a".into(),
        question_id: "q01".into(),
        context_id: "00".into(),
        outcome: "ok".into(),
        error_kind: None,
        error: None,
        degraded: false,
        scheduled_ns: 1_000 * MS,
        sent_ns: 1_002 * MS,
        token_ns: vec![1_100 * MS, 1_110 * MS, 1_120 * MS],
        parts: vec![
            part("queue", 2, 0),
            part("request", 8, 0),
            part("transfer", 70, 5),
            part("first_step", 20, 0),
        ],
        context_tokens: 900,
        prompt_tokens: 940,
        output_tokens: 3,
        uplink_bytes: 2_000,
        downlink_bytes: 1_100_000,
        uplink_packets: 20,
        downlink_packets: 800,
        uplink_payload_bytes: 1_500,
        downlink_payload_bytes: 1_050_000,
        kv_fp16_bytes: 1_000_000,
        kv_payload_bytes: 1_000_000,
        private_uplink_bytes: 0,
        edge_prefill_token_layers: 960,
        edge_peak_kv_bytes: 1_200_000,
        edge_cache_hit: false,
        cloud_store_hit: true,
        output_text: "amber lamp".into(),
        output_ids: vec![11, 12, 13],
        gold: vec!["amber lamp".into()],
        answerable: true,
        em: Some(1.0),
        f1: Some(1.0),
        token_exact: Some(true),
    }
}

pub(crate) fn part(name: &str, exposed_ms: u64, overlapped_ms: u64) -> TtftPart {
    TtftPart {
        name: name.into(),
        exposed_ns: exposed_ms * MS,
        overlapped_ns: overlapped_ms * MS,
    }
}
