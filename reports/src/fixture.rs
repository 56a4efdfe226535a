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
        excluded: None,
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
        device: "host".into(),
        load: "sequential".into(),
        round: 0,
        offered_rps: None,
        edge: 0,
        conversation: None,
        turn: 0,
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
        tokens_estimated: false,
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

/// A small run: five methods on three links, six questions about three
/// documents each, with one failed request, one degraded cell and one cell that
/// did not run. Times follow from made-up rates.
pub(crate) fn run(dir: &std::path::Path) -> crate::ReportInput {
    let mut input = crate::ReportInput::new(dir, "Fixture run");
    input.description =
        "Hand-made figures that test the report.\n\nNothing here was measured.".into();
    input.notes = vec!["A note from the run.".into()];
    input.environment = vec![
        ("CPU".into(), "fixture | 2 cores".into()),
        ("commit".into(), "0000000".into()),
    ];
    let links = [
        ("20mbit-60ms", 20.0, 60.0),
        ("100mbit-20ms", 100.0, 20.0),
        ("1gbit-5ms", 1000.0, 5.0),
    ];
    for (link, rate, _) in links {
        input.calibration.push(crate::CalibrationRow {
            link: link.into(),
            figure: "downlink rate".into(),
            target: Some(rate),
            before: Some(rate * 0.99),
            after: (link != "1gbit-5ms").then_some(rate * 0.985),
            unit: "Mbit/s".into(),
            verdict: if link == "1gbit-5ms" { "missed" } else { "met" }.into(),
        });
    }
    let methods = [
        ("edge_only", "none", "none", "none"),
        ("cloud_only", "none", "none", "none"),
        ("ce_lslm", "identity", "none", "identity"),
        ("ce_lslm", "identity", "none", "group_quant4"),
        ("ce_lslm", "depth", "ridge", "identity"),
    ];
    let mut order = 0;
    for (l, (link, rate, rtt)) in links.into_iter().enumerate() {
        for (m, (system, alignment, mapping, codec)) in methods.into_iter().enumerate() {
            let mut lines = String::new();
            let cell_id = format!("cell-{l}{m}");
            let kv_bytes: u64 = match (system, codec) {
                ("ce_lslm", "identity") => 11_000_000,
                ("ce_lslm", _) => 3_000_000,
                _ => 0,
            };
            for (d, document) in ["doc-a", "doc-b", "doc-c"].into_iter().enumerate() {
                for q in 0..2usize {
                    let transfer = rtt as u64 + (kv_bytes as f64 * 8.0 / rate / 1e3) as u64;
                    let mut parts = match system {
                        "edge_only" => vec![
                            part("tokenise", 2, 0),
                            part("edge_prefill", 1_500 + 10 * d as u64, 0),
                        ],
                        "cloud_only" => vec![
                            part("request", rtt as u64, 0),
                            part("cloud_compute", 400, 0),
                        ],
                        _ => vec![
                            part("request", rtt as u64, 0),
                            part("transfer", transfer, 30),
                            part("decode", 20, 40),
                            part("edge_prefill", 80, 0),
                        ],
                    };
                    parts.push(part("first_step", 30, 0));
                    let ttft: u64 = parts.iter().map(|p| p.exposed_ns).sum();
                    let scheduled = order * 10_000 * MS;
                    let first = scheduled + ttft + 500_000;
                    let f1 = match (alignment, system) {
                        ("depth", _) => 0.1 * q as f64,
                        (_, "cloud_only") => 0.9,
                        _ => 0.4 + 0.2 * q as f64 + 0.05 * d as f64,
                    };
                    let mut s = Sample {
                        cell_id: cell_id.clone(),
                        order,
                        system: system.into(),
                        link: link.into(),
                        alignment: alignment.into(),
                        mapping: mapping.into(),
                        codec: codec.into(),
                        schedule: if kv_bytes > 0 { "layerwise" } else { "none" }.into(),
                        document_id: document.into(),
                        question_id: format!("q{q:02}"),
                        scheduled_ns: scheduled,
                        sent_ns: scheduled,
                        token_ns: vec![first, first + 40 * MS, first + 80 * MS],
                        parts,
                        uplink_bytes: if system == "edge_only" { 0 } else { 4_000 },
                        uplink_payload_bytes: if system == "edge_only" { 0 } else { 3_000 },
                        uplink_packets: if system == "edge_only" { 0 } else { 30 },
                        downlink_bytes: match system {
                            "edge_only" => 0,
                            "cloud_only" => 1_800,
                            _ => kv_bytes * 105 / 100,
                        },
                        downlink_payload_bytes: kv_bytes,
                        downlink_packets: kv_bytes / 1_400,
                        kv_fp16_bytes: if kv_bytes > 0 { 11_000_000 } else { 0 },
                        kv_payload_bytes: kv_bytes,
                        private_uplink_bytes: if system == "cloud_only" { 180 } else { 0 },
                        edge_prefill_token_layers: match system {
                            "edge_only" => 22_560,
                            "cloud_only" => 0,
                            _ => 960,
                        },
                        cloud_store_hit: kv_bytes > 0,
                        answerable: q == 0,
                        em: Some(if f1 > 0.55 { 1.0 } else { 0.0 }),
                        f1: Some(f1),
                        token_exact: (alignment == "identity" && codec == "identity")
                            .then_some(true),
                        degraded: alignment == "depth" && link == "1gbit-5ms",
                        ..sample()
                    };
                    if system == "cloud_only" && order == 7 {
                        s.outcome = "failed".into();
                        s.error_kind = Some("cloud_lost".into());
                        s.error = Some("connection closed after 3 chunks".into());
                        s.em = None;
                        s.f1 = None;
                    }
                    order += 1;
                    if lines.is_empty() {
                        input.cells.push(crate::CellIdentity::of(&s));
                    }
                    lines.push_str(&serde_json::to_string(&s).unwrap());
                    lines.push('\n');
                }
            }
            let folder = dir.join("cells").join(&cell_id);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("samples.jsonl"), lines).unwrap();
        }
    }
    let mut absent = input.cells[4].clone();
    absent.cell_id = "cell-absent".into();
    absent.codec = "group_quant4".into();
    input.cells.push(absent);
    input
}

/// A round in which the generator kept to its plan.
pub(crate) fn round(round: u32, offered_rps: Option<f64>) -> crate::LoadRound {
    crate::LoadRound {
        round,
        offered_rps,
        duration_s: 30.0,
        dispatched: 60,
        completed: 58,
        failed: 2,
        dropped_arrivals: 0,
        send_delay_ms: crate::SendDelay {
            p50: 0.05,
            p99: 0.4,
            max: 0.9,
        },
        max_in_flight: 5,
        stopped: None,
        uplink_bytes: Some(240_000),
        downlink_bytes: Some(60_000_000),
        edge_peak_kv_bytes: Some(14_000_000),
        cloud_peak_kv_bytes: Some(40_000_000),
        edge_weights_bytes: Some(500_000_000),
        cloud_weights_bytes: Some(1_100_000_000),
        edge_rss_bytes: Some(640_000_000),
        cloud_rss_bytes: Some(1_300_000_000),
        memory: [0.0, 15.0, 30.0]
            .map(|at_s| crate::MemoryPoint {
                at_s,
                edge_rss_bytes: Some(640_000_000),
                cloud_rss_bytes: Some(1_300_000_000),
            })
            .to_vec(),
        valid: true,
        invalid_reason: None,
    }
}

/// A small load test: three systems at five rates on one link, each with a
/// capacity of its own, one level in which the generator was late, and half an
/// hour of steady load. Times follow from made-up rates.
pub(crate) fn load_run(dir: &std::path::Path) -> crate::ReportInput {
    let mut input = crate::ReportInput::new(dir, "Fixture load");
    input.slo = Some(crate::Slo {
        ttft_ms: 1_000.0,
        tpot_ms: 50.0,
    });
    let systems = [
        ("edge_only", 1.0, 700),
        ("cloud_only", 4.5, 300),
        ("ce_lslm", 9.0, 260),
    ];
    let mut order = 0;
    for (system, capacity, ttft) in systems {
        for rate in [0.5, 1.0, 2.0, 4.0, 8.0] {
            let cell = format!("{system}-{rate:?}");
            let load = format!("poisson-{rate:?}rps");
            // Half of the time a request waits for all that came before it.
            let behind = (rate / capacity - 1.0f64).max(0.0);
            let requests = 100u64;
            let mut samples = Vec::new();
            for i in 0..requests {
                let at = (i as f64 * 1e3 / rate) as u64;
                let wait = (behind * at as f64 * 0.5) as u64;
                let mut s = loaded(system, &cell, &load, Some(rate), order + i, at);
                answer(
                    &mut s,
                    ttft + wait + 3 * (i % 7),
                    20 + (10.0 * behind) as u64,
                );
                if behind > 1.0 && i % 3 == 2 {
                    refuse(&mut s);
                }
                exclude(&mut s, i, requests);
                samples.push(s);
            }
            order += requests;
            let mut facts = crate::LoadFacts::new(&cell);
            facts.rounds.push(crate::LoadRound {
                dispatched: requests,
                completed: samples.iter().filter(|s| s.ok()).count() as u64,
                failed: samples.iter().filter(|s| !s.ok()).count() as u64,
                max_in_flight: 2 + (behind * 20.0) as u64,
                ..round(0, Some(rate))
            });
            let facts_of = &mut facts.rounds[0];
            if behind > 5.0 {
                facts_of.stopped = Some("the queue grew for 20 s".into());
                facts_of.dropped_arrivals = 12;
            }
            if system == "cloud_only" && rate == 2.0 {
                facts_of.valid = false;
                facts_of.invalid_reason = Some("send delay p99 of 14 ms".into());
            }
            store(dir, &mut input, &samples, &facts);
        }
    }
    let (cell, load) = ("ce_lslm-soak", "constant-0.1rps");
    let samples: Vec<Sample> = (0..180u64)
        .map(|i| {
            let mut s = loaded("ce_lslm", cell, load, Some(0.1), order + i, i * 10_000);
            answer(&mut s, 250 + i % 5, 20);
            s
        })
        .collect();
    let mut facts = crate::LoadFacts::new(cell);
    facts.rounds.push(crate::LoadRound {
        duration_s: 1_800.0,
        dispatched: 180,
        completed: 180,
        failed: 0,
        memory: (0..=60u32)
            .map(|i| crate::MemoryPoint {
                at_s: f64::from(i) * 30.0,
                edge_rss_bytes: Some(640_000_000 + 100_000 * u64::from(i)),
                cloud_rss_bytes: Some(1_300_000_000),
            })
            .collect(),
        ..round(0, Some(0.1))
    });
    store(dir, &mut input, &samples, &facts);
    input
}

/// A request of a load, scheduled `at` ms into its round.
fn loaded(
    system: &str,
    cell: &str,
    load: &str,
    offered_rps: Option<f64>,
    order: u64,
    at: u64,
) -> Sample {
    let none = || "none".to_owned();
    let moves_kv = system == "ce_lslm";
    Sample {
        cell_id: cell.into(),
        system: system.into(),
        load: load.into(),
        offered_rps,
        order,
        question_id: format!("q{:02}", order % 20),
        document_id: format!("doc-{}", order % 4),
        alignment: if moves_kv { "identity".into() } else { none() },
        codec: if moves_kv { "identity".into() } else { none() },
        schedule: if moves_kv { "layerwise".into() } else { none() },
        kv_fp16_bytes: if moves_kv { 1_000_000 } else { 0 },
        kv_payload_bytes: if moves_kv { 1_000_000 } else { 0 },
        // Under load the link's bytes belong to no single request.
        uplink_bytes: 0,
        downlink_bytes: 0,
        uplink_packets: 0,
        downlink_packets: 0,
        token_exact: None,
        scheduled_ns: (1_000 + at) * MS,
        sent_ns: (1_000 + at) * MS,
        ..sample()
    }
}

fn answer(sample: &mut Sample, ttft_ms: u64, tpot_ms: u64) {
    let first = sample.scheduled_ns + ttft_ms * MS;
    sample.token_ns = (0..8).map(|i| first + i * tpot_ms * MS).collect();
    sample.output_tokens = 8;
    sample.parts = vec![part("queue", ttft_ms - 100, 0), part("first_step", 100, 0)];
}

fn refuse(sample: &mut Sample) {
    sample.outcome = "failed".into();
    sample.error_kind = Some(crate::REFUSED.into());
    sample.error = Some("16 sessions and 64 waiting are the most".into());
    sample.token_ns.clear();
    sample.output_tokens = 0;
    sample.parts.clear();
    sample.em = None;
    sample.f1 = None;
}

/// The first tenth warms up, the last tenth cools down.
fn exclude(sample: &mut Sample, index: u64, of: u64) {
    sample.warmup = index < of / 10;
    sample.excluded = if sample.warmup {
        Some("warmup".into())
    } else if index >= of - of / 10 {
        Some("cooldown".into())
    } else {
        None
    };
}

fn store(
    dir: &std::path::Path,
    input: &mut crate::ReportInput,
    samples: &[Sample],
    facts: &crate::LoadFacts,
) {
    let folder = dir.join("cells").join(&facts.cell_id);
    std::fs::create_dir_all(&folder).unwrap();
    let lines: Vec<_> = samples
        .iter()
        .map(|s| serde_json::to_string(s).unwrap() + "\n")
        .collect();
    std::fs::write(folder.join("samples.jsonl"), lines.concat()).unwrap();
    let text = serde_json::to_string(facts).unwrap();
    std::fs::write(folder.join(crate::LOAD_FILE), text).unwrap();
    input.cells.push(crate::CellIdentity::of(&samples[0]));
}
