//! `celslm run` over real processes and a real link, with random-weight models: every path of the
//! main job in seconds. The real pair is for the smoke run.

mod lab;

use std::io::{Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use celslm_kv::align::CommonPrefix;
use celslm_kv::{Bridge, KeyRope, KvBlock, LayerKv, MappingConfig};
use celslm_reports::Sample;
use lab::{BIN, Background, Lab, assert_code, can_emulate, find_process, follow, wait_until};

const GRID: &str = "
[workload]
warmup = 1
block_requests = 1
[grid]
links = [\"brisk\"]
datasets = [{ squad = { path = \"squad.json\" } }]
codecs = [\"identity\", { group_quant = { bits = 4 } }]
alignments = [\"identity\", \"depth\"]
schedules = [\"sequential\", \"layerwise\"]
";

/// The cloud maps its KV to the tokens of an edge that cuts text in another way.
#[test]
fn an_edge_with_other_tokens_gets_mapped_kv() {
    if !can_emulate() {
        return;
    }
    let lab = Lab::new();
    lab.experiment(
        "other",
        "[workload]\nwarmup = 0\n[grid]\nlinks = [\"brisk\"]\ncodecs = [\"identity\"]\n\
         datasets = [{ squad = { path = \"squad.json\" } }]\nschedules = [\"layerwise\"]\n\
         alignments = [\"identity\", \"depth\"]\n",
    );
    let text: String = (0..6000)
        .map(|i| format!("amber{} ", i * 7919 % 977))
        .collect();
    std::fs::write(lab.path("text.txt"), text).unwrap();
    let fit = |edge: &str, out: &str| {
        let fit = lab.run(&[
            "align",
            "fit",
            "--text",
            "text.txt",
            "--cloud",
            "tiny-cloud",
            "--edge",
            edge,
            "--tokens",
            "4000",
            "--context-words",
            "60",
            "--out",
            out,
        ]);
        assert_code(&fit, 0)
    };
    let own = "configs/bridges/tiny-cloud.to.tiny-other.depth-ridge.safetensors";
    let said = fit("tiny-other", own);
    assert!(said.contains("tokens by offsets"), "{said}");
    let said = fit("tiny-edge", "same.safetensors");
    assert!(!said.contains("offsets"), "{said}");
    let run = ["run", "other", "--set", "models.edge=tiny-other"];
    let text = assert_code(&lab.run(&run), 0);
    let samples = lab.samples("other");
    assert!(samples.iter().all(Sample::ok), "{text}");
    let tokens = |system: &str, alignment: &str| {
        let of = |sample: &&Sample| sample.system == system && sample.alignment == alignment;
        let found: Vec<u32> = samples
            .iter()
            .filter(of)
            .map(|s| s.context_tokens)
            .collect();
        assert!(!found.is_empty(), "{system} {alignment}");
        found
    };
    let edge = tokens("edge_only", "none");
    assert_eq!(tokens("ce_lslm", "depth"), edge);
    assert_eq!(tokens("ce_lslm", "identity"), edge);
    assert!(tokens("cloud_only", "none")[0] > edge[0]);
}

/// Fits the tiny pair's ridge bridge over the same depth; gives what was said.
fn fit_bridge(lab: &Lab) -> String {
    let text: String = (0..6000)
        .map(|i| format!("word{} ", i * 7919 % 977))
        .collect();
    std::fs::write(lab.path("text.txt"), text).unwrap();
    let mut fit = vec!["align", "fit", "--text", "text.txt"];
    fit.extend(["--cloud", "tiny-cloud", "--edge", "tiny-edge"]);
    fit.extend(["--tokens", "6000", "--context-words", "60"]);
    assert_code(&lab.run(&fit), 0)
}

#[test]
fn the_whole_job_and_its_contracts() {
    if !can_emulate() {
        return;
    }
    let lab = Lab::new();
    lab.experiment(
        "job",
        &format!(
            "{GRID}[[scenario]]\nname = \"cold\"\ncontracts = [\"cold\"]\ncodecs = [\"identity\"]\n\
             schedules = [\"layerwise\"]\n[[scenario]]\nname = \"warm\"\ncontracts = [\"warm\"]\n\
             codecs = [\"identity\"]\nschedules = [\"layerwise\"]\n"
        ),
    );
    // Without a bridge the error says how to fit one, and a fit makes it run.
    let missing = assert_code(&lab.run(&["run", "job"]), 2);
    assert!(missing.contains("celslm align fit"), "{missing}");
    assert!(fit_bridge(&lab).contains("held-out R²"));

    let text = assert_code(&lab.run(&["run", "job"]), 0);
    let samples = lab.samples("job");
    // Per group: 2 systems without KV and the KV paths, each with 1 warm-up and 4 questions.
    assert_eq!(samples.len(), (2 + 8) * 5 + 2 * (2 + 2) * 5, "{text}");
    assert!(samples.iter().all(Sample::ok));
    for sample in &samples {
        let sum: u64 = sample.parts.iter().map(|part| part.exposed_ns).sum();
        let ttft = sample
            .token_ns
            .first()
            .map(|first| first - sample.scheduled_ns);
        if let Some(ttft) = ttft {
            assert!(
                sum.abs_diff(ttft) * 50 <= ttft,
                "{sum} against {ttft} in {}",
                sample.cell_id
            );
        }
        let private = sample.system == "cloud_only";
        assert_eq!(sample.private_uplink_bytes > 0, private);
        let warm = sample.contract == "warm" && sample.system != "cloud_only";
        assert_eq!(sample.edge_cache_hit, warm, "{}", sample.cell_id);
        let asks = sample.system != "edge_only" && !warm;
        assert_eq!(
            sample.cloud_store_hit,
            asks && sample.contract != "cold",
            "{}",
            sample.cell_id
        );
        let fetched = sample.system == "ce_lslm" && !warm;
        assert_eq!(sample.kv_payload_bytes > 0, fetched);
        if fetched {
            // What the link counted holds the messages, and these hold the chunks.
            assert!(sample.downlink_bytes > sample.downlink_payload_bytes);
            assert!(sample.downlink_payload_bytes > sample.kv_payload_bytes);
            let ratio = sample.kv_fp16_bytes as f64 / sample.kv_payload_bytes as f64;
            assert!(
                if sample.codec == "identity" {
                    ratio == 1.0
                } else {
                    ratio > 2.5
                },
                "{ratio}"
            );
        }
        if sample.system == "edge_only" {
            assert!(sample.downlink_bytes < 2000, "the edge alone needs no link");
        }
        let exact = sample.codec == "identity" && sample.alignment == "identity";
        assert_eq!(
            sample.token_exact,
            exact.then_some(true),
            "{}",
            sample.cell_id
        );
    }
    for file in [
        "manifest.json",
        "config.resolved.toml",
        "environment.json",
        "calibration.json",
        "summary.parquet",
        "summary.csv",
        "report.md",
        "report.html",
    ] {
        assert!(lab.path("results/job").join(file).exists(), "{file}");
    }
    let manifest = std::fs::read_to_string(lab.path("results/job/manifest.json")).unwrap();
    for fact in [
        "\"state\": \"complete\"",
        "fingerprint",
        "cargo_lock_blake3",
        "congestion_control",
    ] {
        assert!(manifest.contains(fact), "{fact}");
    }
    // A finished run that goes on makes no request again.
    assert_code(&lab.run(&["run", "job", "--resume"]), 0);
    assert_eq!(lab.samples("job"), samples);
    let changed = lab.run(&["run", "job", "--resume", "--set", "generation.max_tokens=7"]);
    assert!(assert_code(&changed, 2).contains("max_tokens"));
}

const AT_EDGE: &str = "
[workload]
warmup = 0
[grid]
systems = [\"ce_lslm\"]
links = [\"brisk\"]
datasets = [{ squad = { path = \"squad.json\" } }]
alignments = [\"depth\", { depth = { at = \"edge\" } }]
schedules = [\"sequential\", \"layerwise\"]
contracts = [\"cold\", \"primed\", \"warm\"]
";

/// One bridge at either end, over the same numbers: the same answers, another shape on the link, and
/// the time of the map where it was spent.
#[test]
fn what_the_edge_maps_is_what_the_cloud_would_have() {
    if !can_emulate() {
        return;
    }
    let lab = Lab::new();
    lab.experiment("mapped", AT_EDGE);
    fit_bridge(&lab);
    assert_code(&lab.run(&["run", "mapped"]), 0);
    let samples = lab.samples("mapped");
    assert_eq!(samples.len(), 2 * 2 * 3 * 4);
    let align = |sample: &Sample| {
        let part = sample.parts.iter().find(|part| part.name == "align");
        part.map_or(0, |part| part.exposed_ns)
    };
    for sample in &samples {
        assert!(sample.ok(), "{sample:?}");
        let sum: u64 = sample.parts.iter().map(|part| part.exposed_ns).sum();
        if let Some(first) = sample.token_ns.first() {
            let ttft = first - sample.scheduled_ns;
            assert!(sum.abs_diff(ttft) * 50 <= ttft, "{sum} against {ttft}");
        }
        assert_eq!(sample.private_uplink_bytes, 0);
        let (warm, cold) = (sample.contract == "warm", sample.contract == "cold");
        assert_eq!(sample.edge_cache_hit, warm, "{}", sample.cell_id);
        assert_eq!(sample.cloud_store_hit, !warm && !cold, "{}", sample.cell_id);
        let at_edge = sample.alignment == "depth@edge";
        assert!(at_edge || sample.alignment == "depth");
        let model = if at_edge { lab::CLOUD } else { lab::EDGE };
        let per_token = 4 * model.num_layers * model.num_kv_heads * model.head_dim;
        let served = if warm { 0 } else { sample.context_tokens };
        assert_eq!(sample.kv_fp16_bytes, (served as usize * per_token) as u64);
        assert_eq!(sample.kv_payload_bytes, sample.kv_fp16_bytes);
        // The edge maps whatever it fetches, the cloud what it does not have.
        assert_eq!(align(sample) > 0, !warm && (at_edge || cold), "{sample:?}");
        let prompt = (sample.prompt_tokens - sample.context_tokens) as usize;
        let prefilled = (prompt * lab::EDGE.num_layers) as u64;
        assert_eq!(sample.edge_prefill_token_layers, prefilled);
        let same = |other: &&Sample| other.question_id == sample.question_id;
        for other in samples.iter().filter(same) {
            assert_eq!(sample.output_ids, other.output_ids, "{}", sample.cell_id);
        }
    }
    // Each end was given the bridge for what it maps.
    let edge_alone = "grid.alignments=[{ depth = { at = \"edge\" } }]";
    let coded = "grid.codecs=[{ group_quant = { bits = 4 } }]";
    let sets = [
        "--set",
        edge_alone,
        "--set",
        coded,
        "--set",
        "experiment.name=alone",
    ];
    assert_code(&lab.run(&[&["run", "mapped"][..], &sets[..]].concat()), 0);
    for sample in lab
        .samples("alone")
        .iter()
        .filter(|sample| sample.contract != "warm")
    {
        let ratio = sample.kv_fp16_bytes as f64 / sample.kv_payload_bytes as f64;
        assert!(sample.ok() && ratio > 2.5, "{ratio}: {sample:?}");
    }

    // A replayed cloud hands the same KV over.
    let replay = "[cloud]\ncompute = { replay = \"far\" }\n\
                  [devices.far]\nname = \"far\"\ndescription = \"d\"\nsource = \"s\"\n\
                  kind = \"modelled\"\n[devices.far.rates]\nmodel = \"m\"\nengine = \"e\"\n\
                  prefill = [{ context = 100, tok_s = 4000.0 }]\n\
                  decode = [{ context = 100, tok_s = 50.0 }]\n";
    lab.experiment("recorded", &format!("{AT_EDGE}{replay}"));
    assert_code(&lab.run(&["run", "recorded"]), 0);
    let replayed = lab.samples("recorded");
    assert_eq!(replayed.len(), samples.len());
    for (live, replayed) in samples.iter().zip(&replayed) {
        assert_eq!(replayed.compute, "replayed");
        assert_eq!(live.output_ids, replayed.output_ids);
        assert_eq!(live.kv_payload_bytes, replayed.kv_payload_bytes);
        assert_eq!(live.cloud_store_hit, replayed.cloud_store_hit);
    }
}

#[test]
fn what_an_edge_cannot_map_is_code_2() {
    let lab = Lab::new();
    lab.experiment("mapped", AT_EDGE);
    let refused = |sets: &[&str], parts: &[&str]| {
        let sets = sets.iter().flat_map(|set| ["--set", *set]);
        let args: Vec<&str> = ["run", "mapped"].into_iter().chain(sets).collect();
        let told = assert_code(&lab.run(&args), 2);
        for part in parts {
            assert!(told.contains(part), "{told}\nlacks {part}");
        }
    };
    // Before any bridge or artefact is looked for.
    for (codec, reason) in [
        ("celslm", "an artefact of the edge's model"),
        ("streaming-llm", "it leaves tokens out"),
    ] {
        let name = format!("codec {codec} does not go with alignment depth@edge");
        refused(&[&format!("grid.codecs=[{codec:?}]")], &[&name, reason]);
    }
    refused(
        &["grid.alignments=[{ depth = { at = \"middle\" } }]"],
        &["expected `cloud` or `edge`"],
    );

    // A bridge that adds to the edge model's own KV: here behind tuned first tokens.
    fit_bridge(&lab);
    let file = std::fs::read_dir(lab.path("configs/bridges")).unwrap();
    let file = file.map(|entry| entry.unwrap().path()).next().unwrap();
    let fitted = Bridge::read(&file).unwrap();
    let end = *fitted.target();
    let side = || vec![half::f16::ZERO; end.shape.width()];
    let layer = |_| LayerKv {
        k: side(),
        v: side(),
    };
    let layers = (0..end.shape.num_layers).map(layer).collect();
    let first = KvBlock::new(end.fingerprint, end.shape, 0, 0..1, KeyRope::Pre, layers);
    let prefix = CommonPrefix::new(vec![1], first.unwrap()).unwrap();
    let own = fitted.to_train(MappingConfig::Prefix).unwrap();
    let own = own.with_prefix(prefix).unwrap();
    own.save(&lab.path("own.safetensors")).unwrap();
    let at = |at: &str| {
        format!(
            "grid.alignments=[{{ depth = {{ bridge = \"own.safetensors\", mapping = \"prefix\", \
             at = {at:?} }} }}]"
        )
    };
    let parts = ["alignment depth@edge", "own.safetensors", "at = \"cloud\""];
    refused(&[&at("edge")], &parts);
    let dry = ["run", "mapped", "--dry-run", "--set", &at("cloud")];
    let told = assert_code(&lab.run(&dry), 0);
    assert!(!told.contains("note:"), "{told}");
    // And so does the node itself.
    let model = lab.path("store/tiny-edge.gguf");
    let node = |bridge: &str| {
        let bridge = lab.path(bridge);
        let mut args = vec!["edge", "--control", "x.sock"];
        args.extend(["--model", model.to_str().unwrap()]);
        args.extend(["--bridge", bridge.to_str().unwrap()]);
        lab.run(&args)
    };
    let told = assert_code(&node("own.safetensors"), 2);
    assert!(told.contains("needs the edge model's own KV"), "{told}");
    let told = assert_code(&node("text.txt"), 2);
    assert!(told.contains("not a safetensors file"), "{told}");
    assert_code(&node("absent.safetensors"), 4);
}

#[test]
fn a_cloud_killed_mid_stream_is_a_failed_row_and_code_5() {
    if !can_emulate() {
        return;
    }
    let lab = Lab::new();
    // A context takes many seconds to cross this link, so the kill falls into a transfer.
    lab.experiment(
        "killed",
        "[workload]\nwarmup = 0\n[grid]\nsystems = [\"ce_lslm\"]\nlinks = [\"crawl\"]\n\
         datasets = [{ squad = { path = \"squad.json\" } }]\n\
         [links.crawl]\nname = \"crawl\"\ndescription = \"slow\"\nsource = \"made up\"\n\
         uplink = { rate_mbit = 3.0, delay_ms = 1.0 }\ndownlink = { rate_mbit = 3.0, delay_ms = 1.0 }\n",
    );
    let store = lab.path("store").display().to_string();
    let mut child = Background(lab.command(&["run", "killed"]).spawn().unwrap());
    let cloud = wait_until("the cloud node", || {
        find_process(&["cloud", "--listen", &store])
    });
    // The link is measured first; the first request follows at once.
    let log = follow(child.0.stderr.take().unwrap());
    wait_until("the calibration", || {
        log.so_far().contains("link crawl: RTT").then_some(())
    });
    wait_until("the first transfer", || {
        let sockets = std::fs::read_to_string(format!("/proc/{cloud}/net/tcp")).ok()?;
        // An established connection with bytes that wait to leave: `tx_queue:rx_queue` in hex.
        sockets
            .lines()
            .any(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                let queued = fields
                    .get(4)
                    .and_then(|queue| queue.split(':').next())
                    .unwrap_or("0");
                fields.get(3) == Some(&"01")
                    && u64::from_str_radix(queued, 16).is_ok_and(|bytes| bytes > 20_000)
            })
            .then_some(())
    });
    std::thread::sleep(Duration::from_millis(300));
    Command::new("kill")
        .args(["-9", &cloud.to_string()])
        .status()
        .unwrap();
    let status = child.0.wait().unwrap();
    let text = log.whole();
    assert_eq!(status.code(), Some(5), "{text}");
    assert!(text.contains("the cloud node ended (signal 9)"), "{text}");
    let samples = lab.samples("killed");
    let last = samples.last().expect("the interrupted request has its row");
    assert_eq!(last.outcome, "failed", "{last:?}");
    assert_eq!(last.error_kind.as_deref(), Some("interrupted"), "{last:?}");
    let manifest = std::fs::read_to_string(lab.path("results/killed/manifest.json")).unwrap();
    assert!(manifest.contains("\"state\": \"failed\""), "{manifest}");
    // Nothing stays behind.
    wait_until("the nodes to end", || {
        find_process(&["edge", &store]).is_none().then_some(())
    });
    // The report of what was measured is there to be made.
    assert_code(&lab.run(&["report", "results/killed"]), 0);
}

#[test]
fn ctrl_c_leaves_a_run_that_resumes() {
    if !can_emulate() {
        return;
    }
    let lab = Lab::new();
    lab.experiment(
        "stopped",
        "[workload]\nwarmup = 0\nblock_requests = 1\narrivals = { closed_loop = { repetitions = 3 } }\n\
         [grid]\nlinks = [\"brisk\"]\ndatasets = [{ squad = { path = \"squad.json\" } }]\n",
    );
    let mut child = Background(lab.command(&["run", "stopped"]).spawn().unwrap());
    let cells = lab.path("results/stopped/cells");
    wait_until("the first sample", || {
        let mut cells = std::fs::read_dir(&cells).ok()?;
        cells
            .any(|cell| cell.is_ok_and(|cell| cell.path().join("samples.jsonl").exists()))
            .then_some(())
    });
    Command::new("kill")
        .args(["-INT", &child.0.id().to_string()])
        .status()
        .unwrap();
    let status = child.0.wait().unwrap();
    assert_eq!(status.code(), Some(5));
    let before = lab.samples("stopped");
    assert!(!before.is_empty() && before.len() < 36, "{}", before.len());
    assert_code(&lab.run(&["run", "stopped", "--resume"]), 0);
    let after = lab.samples("stopped");
    assert_eq!(after.len(), 36);
    assert!(
        before.iter().all(|sample| after.contains(sample)),
        "samples were lost or changed"
    );
}

const SEVERAL_EDGES: &str = "
[deployment]
edges = 2
[workload]
warmup = 0
block_requests = 1
[grid]
systems = [\"edge_only\", \"ce_lslm\"]
links = [\"brisk\"]
datasets = [{ squad = { path = \"squad.json\" } }]
";

#[test]
fn several_edges_share_a_cloud() {
    if !can_emulate() {
        return;
    }
    let lab = Lab::new();
    lab.experiment("edges", SEVERAL_EDGES);
    assert_code(&lab.run(&["run", "edges"]), 0);
    let samples = lab.samples("edges");
    assert_eq!(samples.len(), 8);
    assert!(samples.iter().all(Sample::ok));
    assert!(samples.iter().all(|s| u64::from(s.edge) == s.order % 2));
    for log in ["edge-0.log", "edge-1.log", "cloud.log"] {
        let text = std::fs::read_to_string(lab.path("results/edges/logs").join(log)).unwrap();
        assert!(
            text.contains("ready") || text.contains("serving"),
            "{log}: {text}"
        );
    }
}

#[test]
fn a_slowed_edge_and_a_replayed_cloud_answer_as_the_live_ones() {
    if !can_emulate() {
        return;
    }
    let lab = Lab::new();
    let grid = "[workload]\nwarmup = 0\n[grid]\nlinks = [\"brisk\"]\ncontracts = [\"cold\"]\n\
                datasets = [{ squad = { path = \"squad.json\" } }]\n";
    lab.experiment("alive", grid);
    assert_code(&lab.run(&["run", "alive"]), 0);
    let devices = "[edge]\ndevice = \"slow\"\n\
                   [cloud]\ncompute = { replay = \"far\" }\n\
                   [devices.slow]\nname = \"slow\"\ndescription = \"d\"\nsource = \"s\"\n\
                   kind = \"modelled\"\nslowdown = 3.0\n\
                   [devices.far]\nname = \"far\"\ndescription = \"d\"\nsource = \"s\"\n\
                   kind = \"modelled\"\n[devices.far.rates]\nmodel = \"m\"\nengine = \"e\"\n\
                   prefill = [{ context = 100, tok_s = 4000.0 }]\n\
                   decode = [{ context = 100, tok_s = 50.0 }]\n";
    lab.experiment("recorded", &format!("{grid}{devices}"));
    let told = assert_code(&lab.run(&["run", "recorded"]), 0);
    assert!(told.contains("edge device slow: every step × 3"), "{told}");
    assert!(told.contains("to be served as far"), "{told}");
    let (live, replayed) = (lab.samples("alive"), lab.samples("recorded"));
    assert_eq!(live.len(), replayed.len());
    for (live, replayed) in live.iter().zip(&replayed) {
        assert_eq!(live.output_text, replayed.output_text);
        let asks_cloud = replayed.system != "edge_only";
        let wanted = match asks_cloud {
            true => ("replayed", "slow+far"),
            false => ("live", "slow"),
        };
        assert_eq!(
            (replayed.compute.as_str(), replayed.device.as_str()),
            wanted
        );
        assert_eq!(
            (live.compute.as_str(), live.device.as_str()),
            ("live", "host")
        );
        // Twenty milliseconds a token, however fast the recording was made; the text of the
        // first may have been held back for a whole character.
        if let ("cloud_only", [first, .., last]) =
            (replayed.system.as_str(), &replayed.token_ns[..])
        {
            let steps = replayed.token_ns.iter().filter(|&at| at > first).count() as u64;
            assert!(
                last - first >= steps.saturating_sub(1) * 18_000_000,
                "{replayed:?}"
            );
        }
    }
    let manifest = std::fs::read_to_string(lab.path("results/recorded/manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["compute"], "replayed");
    assert_eq!(
        manifest["devices"]["edge"]["throttle"]["decode_slowdown"],
        3.0
    );
    assert_eq!(manifest["devices"]["replay"]["profile"]["name"], "far");
    // What is on disk answers a resumed run, and the resolved copy knows its devices.
    let resolved = lab.path("results/recorded/config.resolved.toml");
    let again = ["run", resolved.to_str().unwrap(), "--dry-run"];
    let told = lab.run(&again);
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(
        text.contains("devices    edge slow · cloud far, replayed"),
        "{text}"
    );
}

#[test]
fn an_edge_with_a_cpu_quota_leaves_no_group_behind() {
    if !can_emulate() {
        return;
    }
    let controller = match celslm::device::CpuController::find().and_then(|found| {
        found.probe()?;
        Ok(found)
    }) {
        Ok(controller) => controller,
        Err(error) => {
            eprintln!("skipped: {error}");
            return;
        }
    };
    let lab = Lab::new();
    let rest = "[grid]\nlinks = [\"brisk\"]\nsystems = [\"edge_only\"]\n\
                datasets = [{ squad = { path = \"squad.json\" } }]\n\
                [edge]\ndevice = \"half\"\n\
                [devices.half]\nname = \"half\"\ndescription = \"d\"\nsource = \"s\"\n\
                kind = \"modelled\"\ncpu_quota = 0.5\n";
    lab.experiment("quota", rest);
    let child = lab.command(&["run", "quota"]).spawn().unwrap();
    let own = format!("celslm-{}-", child.id());
    let output = child.wait_with_output().unwrap();
    let told = assert_code(&output, 0);
    assert!(
        told.contains("edge device half: 0.5 cores' worth of time by cgroup"),
        "{told}"
    );
    let left: Vec<_> = std::fs::read_dir(controller.parent())
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&own))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn an_edge_that_dies_is_told_from_the_others() {
    if !can_emulate() {
        return;
    }
    let lab = Lab::new();
    lab.experiment("widow", SEVERAL_EDGES);
    let store = lab.path("store").display().to_string();
    let mut child = Background(lab.command(&["run", "widow"]).spawn().unwrap());
    let log = follow(child.0.stderr.take().unwrap());
    wait_until("the link's set-up", || {
        log.so_far().contains("link brisk: measuring").then_some(())
    });
    let edge = find_process(&["edge --model", "edge-1.sock", &store]).expect("the second edge");
    Command::new("kill")
        .args(["-9", &edge.to_string()])
        .status()
        .unwrap();
    let status = child.0.wait().unwrap();
    let text = log.whole();
    assert_eq!(status.code(), Some(5), "{text}");
    assert!(text.contains("the edge-1 node ended (signal 9)"), "{text}");
    wait_until("the other edge to end", || {
        find_process(&["edge-0.sock", &store])
            .is_none()
            .then_some(())
    });
}

/// A server with the OpenAI API that answers `amber`, one letter an event, and counts its tokens.
const ENGINE: &str = r#"
import http.server, json, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *rest): pass
    def reply(self, kind, body):
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.reply("application/json", b'{"data":[]}')
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        print("asked", len(asked["messages"]), asked["max_tokens"], asked["model"],
              self.headers.get("authorization"), self.headers["host"], flush=True)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        def event(value):
            self.wfile.write(b"data: " + value.encode() + b"\n\n")
            self.wfile.flush()
        count = min(5, asked["max_tokens"])
        for letter in "amber"[:count]:
            event(json.dumps({"choices": [{"index": 0, "delta": {"content": letter}}]}))
            time.sleep(0.002)
        event(json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
        event(json.dumps({"choices": [], "usage": {"prompt_tokens": 300, "completion_tokens": count}}))
        event("[DONE]")
        self.close_connection = True
print("listening", flush=True)
http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
"#;

fn serving_experiment(serving: &str) -> String {
    format!(
        "[deployment]\nedges = 2\n[cloud]\nserving = {{ {serving} }}\n[workload]\nwarmup = 0\n\
         block_requests = 1\n[grid]\nsystems = [\"cloud_api\", \"edge_only\"]\nlinks = [\"brisk\"]\n\
         datasets = [{{ squad = {{ path = \"squad.json\" }} }}]\ncontracts = [\"primed\"]\n"
    )
}

/// What holds of a run against [`ENGINE`].
#[track_caller]
fn check_served(lab: &Lab, name: &str, log: &str) {
    let samples = lab.samples(name);
    assert_eq!(samples.len(), 8);
    assert!(samples.iter().all(Sample::ok));
    for sample in samples.iter().filter(|s| s.system == "cloud_api") {
        assert_eq!(sample.output_text, "amber");
        assert_eq!((sample.output_tokens, sample.tokens_estimated), (5, false));
        assert_eq!(sample.em, Some(1.0));
        assert_eq!(sample.prompt_tokens, 300);
        assert!(sample.private_uplink_bytes > 0 && !sample.cloud_store_hit);
        // Headers and bodies of both directions crossed the link.
        assert!(sample.uplink_bytes > sample.uplink_payload_bytes);
        assert!(sample.downlink_bytes > sample.downlink_payload_bytes);
        assert!(sample.uplink_payload_bytes > 500 && sample.downlink_payload_bytes > 200);
        let sum: u64 = sample.parts.iter().map(|part| part.exposed_ns).sum();
        let ttft = sample.token_ns[0] - sample.scheduled_ns;
        assert!(sum.abs_diff(ttft) * 50 <= ttft, "{sum} against {ttft}");
        // There and back over the link, at 2 ms each way.
        assert!(ttft >= 4_000_000, "{ttft}");
    }
    // Each request is preceded by its context with one token to generate.
    let asked: Vec<&str> = log
        .lines()
        .filter(|line| line.starts_with("asked"))
        .collect();
    assert_eq!(asked.len(), 8, "{log}");
    for pair in asked.chunks(2) {
        assert!(pair[0].starts_with("asked 2 1 large "), "{log}");
        assert!(pair[1].starts_with("asked 2 6 large "), "{log}");
    }
}

#[test]
fn a_serving_engine_is_started_asked_and_ended() {
    if !can_emulate() {
        return;
    }
    let lab = Lab::new();
    std::fs::write(lab.path("engine.py"), ENGINE).unwrap();
    lab.experiment(
        "served",
        &serving_experiment(
            "command = [\"python3\", \"engine.py\", \"{host}\", \"{port}\"], model = \"large\", port = 8123",
        ),
    );
    assert_code(&lab.run(&["run", "served"]), 0);
    let log = std::fs::read_to_string(lab.path("results/served/logs/serving.log")).unwrap();
    check_served(&lab, "served", &log);
    wait_until("the engine to end", || {
        find_process(&["engine.py", "8123"]).is_none().then_some(())
    });

    // Killed while it runs, the controller takes the engine with it.
    let mut child = Background(lab.command(&["run", "served"]).spawn().unwrap());
    wait_until("the engine", || find_process(&["engine.py", "8123"]));
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    wait_until("the engine to end", || {
        find_process(&["engine.py", "8123"]).is_none().then_some(())
    });

    // One that ends, one that is no program, and one that is never ready.
    for (serving, part) in [
        (
            "command = [\"sh\", \"-c\", \"echo no weights here; exit 7\"]",
            "no weights here",
        ),
        (
            "command = [\"no-such-engine\"]",
            "there is no program no-such-engine",
        ),
        (
            "command = [\"sleep\", \"60\"], ready_timeout_s = 1",
            "is not ready after 1 s",
        ),
        (
            "command = [\"sleep\", \"60\"], api_key_env = \"NO_SUCH_VARIABLE\"",
            "NO_SUCH_VARIABLE",
        ),
    ] {
        lab.experiment(
            "unserved",
            &serving_experiment(&format!("{serving}, model = \"m\"")),
        );
        let text = assert_code(&lab.run(&["run", "unserved"]), 4);
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_server_elsewhere_is_asked_over_the_link() {
    if !can_emulate() {
        return;
    }
    let lab = Lab::new();
    std::fs::write(lab.path("engine.py"), ENGINE).unwrap();
    // A server of the host's network, which the namespaces do not reach by themselves.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut engine = Background(
        Command::new("python3")
            .args(["engine.py", "127.0.0.1", &port.to_string()])
            .current_dir(lab.dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let log = follow(engine.0.stdout.take().unwrap());
    wait_until("the server", || {
        log.so_far().contains("listening").then_some(())
    });
    std::thread::sleep(Duration::from_millis(200));
    lab.experiment(
        "elsewhere",
        &serving_experiment(&format!(
            "base_url = \"http://127.0.0.1:{port}/v1\", model = \"large\", api_key_env = \"TEST_SERVING_KEY\""
        )),
    );
    let output = lab
        .command(&["run", "elsewhere"])
        .env("TEST_SERVING_KEY", "sk-very-secret")
        .output()
        .unwrap();
    assert_code(&output, 0);
    engine.0.kill().unwrap();
    let log = log.whole();
    check_served(&lab, "elsewhere", &log);
    assert!(
        log.lines()
            .filter(|line| line.starts_with("asked"))
            .all(|line| line.ends_with(&format!("Bearer sk-very-secret 127.0.0.1:{port}"))),
        "{log}"
    );
    // The key is in no file of the results.
    let files = Command::new("grep")
        .args(["-rl", "sk-very-secret", "results"])
        .current_dir(lab.dir.path())
        .output()
        .unwrap();
    assert!(
        files.stdout.is_empty(),
        "{}",
        String::from_utf8_lossy(&files.stdout)
    );
}

#[test]
fn a_damaged_model_is_code_4_and_names_the_file() {
    let lab = Lab::new();
    let file = lab.path("store/tiny-edge.gguf");
    let bytes = std::fs::read(&file).unwrap();
    // A node that is given a truncated file.
    let cut = lab.path("cut.gguf");
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let socket = lab.path("edge.sock");
    let node = lab.run(&[
        "edge",
        "--model",
        cut.to_str().unwrap(),
        "--control",
        socket.to_str().unwrap(),
    ]);
    let text = assert_code(&node, 4);
    assert!(
        text.contains("cut.gguf") && text.contains("past the end"),
        "{text}"
    );
    // A run whose model has another content than its description says.
    let mut flipped = bytes;
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    std::fs::write(&file, flipped).unwrap();
    lab.experiment(
        "damaged",
        "[grid]\nlinks = [\"brisk\"]\ndatasets = [{ squad = { path = \"squad.json\" } }]\n",
    );
    let text = assert_code(&lab.run(&["run", "damaged"]), 4);
    assert!(
        text.contains("tiny-edge") && text.contains("sha256"),
        "{text}"
    );
}

#[test]
fn a_taken_port_is_code_4() {
    let lab = Lab::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let (model, socket) = (lab.path("store/tiny-cloud.gguf"), lab.path("cloud.sock"));
    let node = lab.run(&[
        "cloud",
        "--model",
        model.to_str().unwrap(),
        "--listen",
        &addr,
        "--control",
        socket.to_str().unwrap(),
    ]);
    let text = assert_code(&node, 4);
    assert!(text.contains(&addr) && text.contains("in use"), "{text}");
}

/// Without /dev/net/tun packet sockets carry the link, and the run's records say so and why.
#[test]
fn without_tun_the_link_takes_packet_sockets_and_says_so() {
    let lab = Lab::new();
    lab.experiment(
        "no-tun",
        "[deployment]\nbackend = \"userspace\"\n[grid]\nlinks = [\"brisk\"]\n\
         datasets = [{ squad = { path = \"squad.json\" } }]\n",
    );
    // A mount namespace of its own in which the device does not exist.
    let script = format!("mount -t tmpfs none /dev/net && exec {BIN} run no-tun");
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .current_dir(lab.dir.path())
        .env("CELSLM_MODELS", lab.path("store"))
        .env("CELSLM_OFFLINE", "1")
        .output()
        .unwrap();
    if output.status.code() == Some(1) {
        println!(
            "skipped: no mount namespace here: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        return;
    }
    assert_code(&output, 0);
    let records = ["manifest.json", "environment.json"]
        .map(|name| std::fs::read_to_string(lab.path(&format!("results/no-tun/{name}"))).unwrap())
        .concat();
    assert!(
        records.contains("packet sockets, since /dev/net/tun cannot be opened"),
        "{records}"
    );
}

/// Two nodes started by hand, with a proxy between them that flips one bit of a chunk: a failed
/// row of kind `corrupt_chunk`, code 5, and the next requests are answered. The proxy also sees
/// whether a private question leaves the edge.
#[test]
fn a_corrupted_chunk_is_a_failed_row() {
    let lab = Lab::new();
    let model = |name: &str| {
        lab.path(&format!("store/{name}.gguf"))
            .display()
            .to_string()
    };
    let (edge_socket, cloud_socket) = (lab.path("e.sock"), lab.path("c.sock"));
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let _cloud = Background(
        lab.command(&[
            "cloud",
            "--model",
            &model("tiny-cloud"),
            "--edge-model",
            &model("tiny-edge"),
            "--listen",
            &free.to_string(),
            "--control",
            cloud_socket.to_str().unwrap(),
            "--advertise",
            &proxy.local_addr().unwrap().to_string(),
        ])
        .spawn()
        .unwrap(),
    );
    let _edge = Background(
        lab.command(&[
            "edge",
            "--model",
            &model("tiny-edge"),
            "--control",
            edge_socket.to_str().unwrap(),
        ])
        .spawn()
        .unwrap(),
    );
    let sent = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&sent);
    std::thread::spawn(move || flip_one_bit(&proxy, free, &seen));
    wait_until("both nodes", || {
        (edge_socket.exists() && cloud_socket.exists()).then_some(())
    });
    let experiment = |name: &str, system: &str| {
        lab.experiment(
            name,
            &format!(
                "[deployment]\nexternal = {{ edge_control = \"{}\", cloud_control = \"{}\" }}\n\
             [workload]\nwarmup = 0\n[grid]\nsystems = [\"{system}\"]\nlinks = [\"none\"]\n\
             datasets = [{{ squad = {{ path = \"squad.json\" }} }}]\n",
                edge_socket.display(),
                cloud_socket.display()
            ),
        );
    };
    std::fs::copy(
        "../configs/links/none.toml",
        lab.path("configs/links/none.toml"),
    )
    .unwrap();
    experiment("corrupt", "ce_lslm");
    let text = assert_code(&lab.run(&["run", "corrupt"]), 5);
    let samples = lab.samples("corrupt");
    assert_eq!(samples.len(), 4, "{text}");
    assert_eq!(
        samples[0].error_kind.as_deref(),
        Some("corrupt_chunk"),
        "{:?}",
        samples[0]
    );
    assert!(
        samples[1..]
            .iter()
            .all(|sample| sample.ok() && sample.token_exact == Some(true))
    );
    // What went up holds nothing of the questions, until a system sends them.
    let question = b"What does it mean when it blinks?";
    let left_the_edge = || {
        let sent = sent.lock().unwrap();
        assert!(sent.len() > 100, "the proxy has seen requests");
        sent.windows(question.len())
            .any(|window| window == question)
    };
    assert!(!left_the_edge());
    experiment("told", "cloud_only");
    assert_code(&lab.run(&["run", "told"]), 0);
    assert!(left_the_edge(), "the search finds what was sent");
}

/// Forwards connections, keeps what the client sends, and inverts one bit deep in the first large
/// transfer from the server.
fn flip_one_bit(proxy: &TcpListener, server: std::net::SocketAddr, sent: &Arc<Mutex<Vec<u8>>>) {
    let mut spoilt = false;
    for client in proxy.incoming().filter_map(Result::ok) {
        let Ok(upstream) = TcpStream::connect(server) else {
            return;
        };
        let (mut from_client, mut to_server) =
            (client.try_clone().unwrap(), upstream.try_clone().unwrap());
        let sent = Arc::clone(sent);
        std::thread::spawn(move || {
            let mut buffer = [0u8; 4096];
            while let Ok(n @ 1..) = from_client.read(&mut buffer) {
                sent.lock().unwrap().extend_from_slice(&buffer[..n]);
                if to_server.write_all(&buffer[..n]).is_err() {
                    break;
                }
            }
        });
        // HTTP/2 frames: 3 bytes of length, type, flags, 4 bytes of stream. The bit must fall into
        // the body of a DATA frame (type 0), where nothing but the chunk's hash can notice it.
        let (mut upstream, mut client) = (upstream, client);
        let (mut header, mut body, mut passed) = ([0u8; 9], Vec::new(), 0usize);
        while upstream.read_exact(&mut header).is_ok() {
            body.resize(
                u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize,
                0,
            );
            if upstream.read_exact(&mut body).is_err() {
                break;
            }
            passed += body.len();
            if !spoilt && passed > 100_000 && header[3] == 0 && body.len() > 8000 {
                let middle = body.len() / 2;
                body[middle] ^= 0x10;
                spoilt = true;
            }
            if client
                .write_all(&header)
                .and_then(|()| client.write_all(&body))
                .is_err()
            {
                break;
            }
        }
    }
}
