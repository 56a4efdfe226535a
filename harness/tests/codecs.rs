//! Codecs that need something of both nodes: an artefact that was fitted beforehand, layers in
//! order, scores of tokens, attention without the tokens that were left out. Whole runs with
//! random-weight models.

mod lab;

use celslm_reports::Sample;
use lab::{Background, Lab, assert_code, can_emulate, wait_until};

const CODED: &str = "
[workload]
warmup = 0
[grid]
systems = [\"edge_only\", \"ce_lslm\"]
links = [\"brisk\"]
datasets = [{ squad = { path = \"squad.json\" } }]
";

/// Writes calibration text and fits an artefact on it, with further arguments.
fn fit(lab: &Lab, arguments: &[&str]) -> String {
    let text: String = (0..6000)
        .map(|i| format!("word{} ", i * 7919 % 977))
        .collect();
    std::fs::write(lab.path("text.txt"), text).unwrap();
    let mut all = vec!["codec", "fit", "--text", "text.txt", "--tokens", "4000"];
    all.extend(["--context-words", "60", "--model"]);
    all.extend(arguments);
    assert_code(&lab.run(&all), 0)
}

/// The first 16 hex digits in a text that stand alone.
fn id_in(text: &str) -> String {
    let digits = |word: &&str| word.len() == 16 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let mut words = text.split(|c: char| !c.is_ascii_alphanumeric());
    words.find(digits).expect("an id").to_owned()
}

fn fetched(samples: &[Sample]) -> impl Iterator<Item = &Sample> {
    samples.iter().filter(|sample| sample.system == "ce_lslm")
}

/// Bytes of fp16 over bytes of payload.
fn ratio(sample: &Sample) -> f64 {
    sample.kv_fp16_bytes as f64 / sample.kv_payload_bytes as f64
}

#[test]
fn codecs_with_an_artefact_are_fitted_explained_run_and_replayed() {
    if !can_emulate() {
        return;
    }
    let lab = Lab::new();
    let codecs = "codecs = [\"celslm\", \"kvtc\", \"celslm-progressive\"]\nchunk_tokens = [16]\n";
    lab.experiment("coded", &format!("{CODED}{codecs}"));
    let missing = assert_code(&lab.run(&["run", "coded"]), 2);
    assert!(
        missing.contains("celslm codec fit --model tiny-edge --text DIR"),
        "{missing}"
    );
    assert!(assert_code(&lab.run(&["codec", "ls"]), 0).contains("celslm codec fit"));
    let id = id_in(&fit(&lab, &["tiny-edge"]));
    let listed = assert_code(&lab.run(&["codec", "ls"]), 0);
    assert!(
        listed.contains("tiny-edge\n") && listed.contains(&id),
        "{listed}"
    );

    let text = assert_code(&lab.run(&["run", "coded"]), 0);
    let samples = lab.samples("coded");
    assert_eq!(samples.len(), 4 * 4, "{text}");
    for sample in fetched(&samples) {
        assert!(sample.ok() && sample.codec.contains(&id), "{sample:?}");
        assert!(ratio(sample) > 2.0, "{}: {}", sample.codec, ratio(sample));
        assert_eq!(sample.token_exact, None);
    }
    let read = |file: &str| std::fs::read_to_string(lab.path("results/coded").join(file)).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&read("manifest.json")).unwrap();
    let recorded = &manifest["codec_artefact"];
    assert_eq!(recorded["id"], id.as_str());
    let file = lab.path("configs/codecs/tiny-edge.safetensors");
    let bytes = std::fs::metadata(file).unwrap().len();
    assert_eq!(recorded["bytes"], bytes);
    let report = read("report.md");
    let facts = format!("{id} ({bytes} bytes at each end");
    let named = format!("| codec celslm | prefix-{id}+");
    for part in [
        "a fixed cost which no request's bytes contain",
        facts.as_str(),
        named.as_str(),
    ] {
        assert!(report.contains(part), "{report}\nlacks {part}");
    }

    // A replayed cloud sends the same bytes.
    let replay = "[cloud]\ncompute = { replay = \"far\" }\n\
                  [devices.far]\nname = \"far\"\ndescription = \"d\"\nsource = \"s\"\n\
                  kind = \"modelled\"\n[devices.far.rates]\nmodel = \"m\"\nengine = \"e\"\n\
                  prefill = [{ context = 100, tok_s = 4000.0 }]\n\
                  decode = [{ context = 100, tok_s = 50.0 }]\n";
    lab.experiment("recorded", &format!("{CODED}{codecs}{replay}"));
    assert_code(&lab.run(&["run", "recorded"]), 0);
    for (live, replayed) in samples.iter().zip(&lab.samples("recorded")) {
        assert_eq!(live.output_ids, replayed.output_ids);
        assert_eq!(live.kv_payload_bytes, replayed.kv_payload_bytes);
    }

    // The account of a context of the same kind.
    let explained = [
        "codec",
        "explain",
        "celslm",
        "--text",
        "text.txt",
        "--model",
        "tiny-edge",
        "--context-words",
        "60",
    ];
    let text = assert_code(&lab.run(&explained), 0);
    for part in [&id, "bits/number", "prefix", "step", "payload", "ratio"] {
        assert!(text.contains(part), "{text}\nlacks {part}");
    }
    // Another fit is another artefact, and its cells are other cells.
    let again = id_in(&fit(&lab, &["tiny-edge", "--seed", "1"]));
    assert_ne!(again, id);
    assert_code(&lab.run(&["run", "coded", "--resume"]), 2);
}

#[test]
fn an_artefact_that_does_not_belong_is_refused_with_both_names() {
    let lab = Lab::new();
    let planned = id_in(&fit(&lab, &["tiny-edge"]));
    let other = id_in(&fit(
        &lab,
        &["tiny-edge", "--seed", "1", "--out", "o.safetensors"],
    ));
    let cloud_own = fit(&lab, &["tiny-cloud", "--out", "c.safetensors"]);
    let model = |name: &str| format!("store/{name}.gguf");
    let (edge_model, cloud_model) = (model("tiny-edge"), model("tiny-cloud"));

    // Fitted on the KV of another model: the node does not start.
    let foreign = lab.run(&[
        "edge",
        "--model",
        &edge_model,
        "--codec-artefact",
        "c.safetensors",
        "--control",
        "x.sock",
    ]);
    let told = String::from_utf8_lossy(&foreign.stderr).into_owned();
    assert!(!foreign.status.success());
    assert!(
        told.contains(&id_in(&cloud_own)) && told.contains("was fitted on KV of model"),
        "{told}"
    );

    // Nodes that were started with another one than the plan names, and with none.
    std::fs::copy(
        "../configs/links/none.toml",
        lab.path("configs/links/none.toml"),
    )
    .unwrap();
    let planned_file = "configs/codecs/tiny-edge.safetensors";
    let cases = [
        (
            "a",
            Some("o.safetensors"),
            Some(planned_file),
            "the cloud node",
        ),
        (
            "b",
            Some(planned_file),
            Some("o.safetensors"),
            "the edge node",
        ),
        ("c", None, Some(planned_file), "none: start it with"),
    ];
    for (name, at_cloud, at_edge, part) in cases {
        let sockets = ["edge", "cloud"].map(|role| lab.path(&format!("{name}-{role}.sock")));
        let [edge_socket, cloud_socket] = sockets.each_ref().map(|path| path.to_str().unwrap());
        let with = |mut arguments: Vec<&'static str>, file: Option<&'static str>| {
            arguments.extend(file.into_iter().flat_map(|file| ["--codec-artefact", file]));
            arguments
        };
        let mut cloud = with(vec!["cloud", "--listen", "127.0.0.1:0"], at_cloud)
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>();
        cloud.extend(
            [
                "--model",
                &cloud_model,
                "--edge-model",
                &edge_model,
                "--control",
                cloud_socket,
            ]
            .map(str::to_owned),
        );
        let cloud: Vec<&str> = cloud.iter().map(String::as_str).collect();
        let mut edge = with(vec!["edge"], at_edge)
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>();
        edge.extend(["--model", &edge_model, "--control", edge_socket].map(str::to_owned));
        let edge: Vec<&str> = edge.iter().map(String::as_str).collect();
        let _cloud = Background(lab.command(&cloud).spawn().unwrap());
        let _edge = Background(lab.command(&edge).spawn().unwrap());
        wait_until("both nodes", || {
            sockets.iter().all(|path| path.exists()).then_some(())
        });
        lab.experiment(
            name,
            &format!(
                "[deployment]\nexternal = {{ edge_control = \"{edge_socket}\", \
                 cloud_control = \"{cloud_socket}\" }}\n[workload]\nwarmup = 0\n[grid]\n\
                 systems = [\"ce_lslm\"]\nlinks = [\"none\"]\ncodecs = [\"celslm\"]\n\
                 datasets = [{{ squad = {{ path = \"squad.json\" }} }}]\n"
            ),
        );
        let told = assert_code(&lab.run(&["run", name]), 5);
        assert!(told.contains(part) && told.contains(&planned), "{told}");
        let both = at_cloud.is_some() && at_edge.is_some();
        assert_eq!(told.contains(&other), both, "{told}");
    }
}

#[test]
fn tokens_that_are_left_out_are_neither_sent_nor_held() {
    if !can_emulate() {
        return;
    }
    let lab = Lab::new();
    let codecs = [
        "identity",
        "h2o-k100+identity",
        "snapkv-press",
        "expected-attention-press",
        "h2o-press",
        "streaming-llm",
    ];
    lab.experiment(
        "fewer",
        &format!(
            "{CODED}codecs = {codecs:?}\nchunk_tokens = [64]\n\
             contracts = [\"primed\", \"cold\", \"warm\"]\n"
        ),
    );
    assert_code(&lab.run(&["run", "fewer"]), 0);
    let samples = lab.samples("fewer");
    assert_eq!(samples.len(), (1 + codecs.len()) * 4 * 3);
    for sample in fetched(&samples) {
        assert!(sample.ok(), "{sample:?}");
        let same = |other: &&Sample| {
            other.codec == "identity"
                && other.question_id == sample.question_id
                && other.contract == sample.contract
        };
        let whole = fetched(&samples).find(same).unwrap();
        let warm = sample.contract == "warm";
        assert_eq!(sample.edge_cache_hit, warm, "{}", sample.cell_id);
        assert_eq!(sample.cloud_store_hit, sample.contract == "primed");
        if ["identity", "h2o-k100+identity"].contains(&sample.codec.as_str()) {
            // All tokens, so the same numbers.
            assert_eq!(sample.output_ids, whole.output_ids, "{}", sample.codec);
            continue;
        }
        if !warm {
            let ratio = ratio(sample);
            assert!((1.9..=2.01).contains(&ratio), "{}: {ratio}", sample.codec);
        }
        // The prefix is half as large, and the tail is as before.
        let (held, all) = (sample.edge_peak_kv_bytes, whole.edge_peak_kv_bytes);
        assert!(held * 10 < all * 8, "{}: {held} of {all}", sample.codec);
    }
}
