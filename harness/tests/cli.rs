//! The command line from outside: help, dry run, errors and exit codes.

use std::path::Path;
use std::process::{Command, Output};

/// Runs the binary in the repository's root, with a model store that is empty.
fn celslm(arguments: &[&str]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let store = Path::new(env!("CARGO_TARGET_TMPDIR")).join("no-models");
    Command::new(env!("CARGO_BIN_EXE_celslm"))
        .args(arguments)
        .current_dir(root)
        .env("CELSLM_MODELS", store)
        .env("CELSLM_OFFLINE", "1")
        .env_remove("CELSLM_DATA")
        .output()
        .expect("the binary runs")
}

fn stdout(arguments: &[&str]) -> String {
    let output = celslm(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("utf-8")
}

/// Exit code and standard error of a command that fails.
fn failure(arguments: &[&str]) -> (i32, String) {
    let output = celslm(arguments);
    let code = output.status.code().expect("an exit code");
    assert_ne!(code, 0, "{arguments:?}");
    (code, String::from_utf8(output.stderr).expect("utf-8"))
}

#[test]
fn help_teaches() {
    insta::assert_snapshot!("help", stdout(&["--help"]));
    for command in [
        "run", "models", "link", "device", "codec", "report", "doctor", "ls",
    ] {
        insta::assert_snapshot!(format!("help_{command}"), stdout(&[command, "--help"]));
    }
    insta::assert_snapshot!(
        "help_device_measure",
        stdout(&["device", "measure", "--help"])
    );
    for command in ["fit", "explain"] {
        insta::assert_snapshot!(
            format!("help_codec_{command}"),
            stdout(&["codec", command, "--help"])
        );
    }
    for command in ["fit", "score"] {
        insta::assert_snapshot!(
            format!("help_align_{command}"),
            stdout(&["align", command, "--help"])
        );
    }
    for command in ["run", "calibrate"] {
        insta::assert_snapshot!(
            format!("help_link_{command}"),
            stdout(&["link", command, "--help"])
        );
    }
}

#[test]
fn a_dry_run_shows_the_plan_and_writes_nothing() {
    let out = tempfile::tempdir().expect("a folder");
    let dir = out.path().join("results");
    let dir = dir.to_str().expect("utf-8");
    let text = stdout(&["run", "smoke", "--dry-run", "--out", dir]);
    for part in [
        "experiment smoke",
        "edge_only",
        "cloud_only",
        "ce_lslm",
        "order: 1 2 3",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!Path::new(dir).exists());
    // The same experiment by path, with an override.
    let path = "configs/experiments/smoke.toml";
    let set = "experiment.title='another heading'";
    let by_path = stdout(&["run", path, "--dry-run", "--set", set]);
    assert!(by_path.contains("another heading"), "{by_path}");
}

#[test]
fn mistakes_in_the_configuration_end_with_2() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("mine.toml");
    let path = file.to_str().expect("utf-8");
    let cases: [(&str, &[&str], &str); 13] = [
        (
            "[experiment]\nname = 'x'\n[grid]\nlink = ['none']\n",
            &[],
            "mine.toml:4:1: unknown field `link`",
        ),
        (
            "[experiment]\nname = 'x'\n[grid]\nsystems = ['edge']\n",
            &[],
            "mine.toml:4:12: unknown system `edge`; known: edge_only",
        ),
        (
            "[experiment]\nname = 'x'\n[grid]\nlinks = ['lan']\n",
            &[],
            "mine.toml:4:10: grid.links.0: unknown link `lan`; known: ",
        ),
        (
            "[experiment]\nname = 'x'\n[edge]\ndevice = 'toaster'\n",
            &[],
            "mine.toml:4:10: edge.device: unknown device `toaster`; known: ",
        ),
        (
            "[experiment]\nname = 'x'\n[cloud]\ncompute = { replay = 'half-core' }\n",
            &[],
            "device `half-core` states no rates to serve at; those that do: dgx-spark-7b",
        ),
        (
            "[experiment]\nname = 'x'\n[cloud]\ncompute = 'dead'\n",
            &[],
            "mine.toml:4:11: unknown variant `dead`, expected `live` or `replay`",
        ),
        (
            "[experiment]\nname = 'x'\n[devices.d]\nname = 'd'\ndescription = 'd'\n\
             source = 's'\nkind = 'modelled'\nslowdown = 0.5\n",
            &[],
            "mine.toml:8:12: devices.d.slowdown: 0.5 is outside 1 to 4096",
        ),
        (
            "[experiment]\nname = 'x'\n[models]\nedge = 'gpt'\n",
            &[],
            "mine.toml:4:8: models.edge: unknown model `gpt`; known: ",
        ),
        (
            "[experiment]\nname = 'x'\n",
            &["--set", "grid.codec=1"],
            "--set grid.codec=1: unknown field `codec`",
        ),
        (
            "[experiment]\nname = 'x'\n",
            &["--set", "grid.links=['lan']"],
            "--set grid.links=['lan']: grid.links.0: unknown link `lan`",
        ),
        ("[experiment]\nname = 'x'\n", &["--set", "oops"], "no `=`"),
        (
            "[experiment]\nname = 'x'\n",
            &["--shard", "3/2"],
            "names no shard",
        ),
        (
            "[experiment]\nname = 'x'\n",
            &[
                "--set",
                "grid.datasets=[{ embedded = { documents = 999 } }]",
            ],
            "draw 999 documents",
        ),
    ];
    for (text, arguments, part) in cases {
        std::fs::write(&file, text).expect("write");
        let mut all = vec!["run", path, "--dry-run"];
        all.extend(arguments);
        let (code, error) = failure(&all);
        assert_eq!(code, 2, "{error}");
        assert!(error.contains(part), "{error}\nlacks {part}");
    }
    let (code, error) = failure(&["run", "no-such-experiment", "--dry-run"]);
    assert_eq!(code, 2, "{error}");
    assert!(
        error.contains(
            "known experiments: alignment-sweep, burst, codec-sweep, distilled, example, load"
        ),
        "{error}"
    );
}

#[test]
fn a_wrong_command_line_ends_with_2() {
    for arguments in [
        &["fly"][..],
        &["run"],
        &["ls", "planets"],
        &["models", "fetch", "gpt-5"],
    ] {
        let (code, error) = failure(arguments);
        assert_eq!(code, 2, "{arguments:?}: {error}");
    }
}

#[test]
fn nonsense_is_not_measured() {
    let cases: [(&[&str], &str); 9] = [
        (&["--prefill", "0"], "--prefill 0 is outside"),
        (&["--decode", "0"], "--decode 0 is outside"),
        (&["--batch", "1,0"], "--batch 0 is outside"),
        (&["--context", "9999999"], "--context 9999999 is outside"),
        (&["--repeat", "0"], "--repeat 0 is outside"),
        (&["--threads", "5000"], "--threads 5000 is outside"),
        (&["--sessions", "0"], "--sessions 0 is outside"),
        (&["--tail", "4"], "--sessions"),
        (&["--model", "gpt"], "no known model: edge, cloud, qwen2.5"),
    ];
    for (arguments, part) in cases {
        let mut all = vec!["device", "measure"];
        all.extend(arguments);
        let (code, error) = failure(&all);
        assert_eq!(code, 2, "{arguments:?}: {error}");
        assert!(error.contains(part), "{error}\nlacks {part}");
    }
    for (file, part) in [
        ("here.txt", "a profile is a .toml file"),
        ("no/such/folder.toml", "there is no such folder"),
        ("host.toml", "this machine by definition"),
    ] {
        let (code, error) = failure(&["device", "measure", "--write", file]);
        assert_eq!(code, 2, "{error}");
        assert!(error.contains(part), "{error}\nlacks {part}");
    }
    let (code, error) = failure(&["device", "measure"]);
    assert_eq!(code, 4, "{error}");
    assert!(error.contains("celslm models fetch qwen2.5"), "{error}");
}

#[test]
fn a_codec_that_cannot_be_explained_says_why() {
    let dir = tempfile::tempdir().expect("a folder");
    let text = dir.path().join("text.txt");
    std::fs::write(&text, "one two three").expect("write");
    let text = text.to_str().expect("utf-8");
    let none = dir.path().join("none.safetensors");
    let none = none.to_str().expect("utf-8");
    let cases: [(&[&str], i32, &str); 5] = [
        (&["gzip"], 2, "presets are kivi, kivi-4bit, cachegen"),
        (&["kivi"], 2, "the text has fewer than 400 words"),
        (
            &["celslm", "--context-words", "2", "--artefact", none],
            2,
            "celslm codec fit --model qwen2.5",
        ),
        (
            &["kivi", "--context-words", "2", "--chunk-tokens", "33"],
            2,
            "--chunk-tokens must be a positive multiple of 32",
        ),
        (
            &["identity", "--context-words", "2"],
            4,
            "celslm models fetch qwen2.5",
        ),
    ];
    for (arguments, wanted, part) in cases {
        let mut all = vec!["codec", "explain", "--text", text];
        all.extend(arguments);
        let (code, error) = failure(&all);
        assert_eq!(code, wanted, "{error}");
        assert!(error.contains(part), "{error}\nlacks {part}");
    }
}

#[test]
fn a_measured_machine_becomes_a_profile() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = dir.path().join("tiny.gguf");
    celslm_model::synthetic::SyntheticModel {
        architecture: "qwen2",
        num_layers: 2,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 32,
        quantised: false,
        seed: 1,
    }
    .write(&model)
    .expect("a model");
    let model = model.to_str().expect("utf-8");
    let profile = dir.path().join("my-box.toml");
    let small = [
        "device",
        "measure",
        "--model",
        model,
        "--decode",
        "4",
        "--threads",
        "1",
    ];
    let mut all = small.to_vec();
    all.extend([
        "--prefill",
        "20",
        "--batch",
        "2",
        "--format",
        "json",
        "--write",
    ]);
    all.push(profile.to_str().expect("utf-8"));
    let found: serde_json::Value = serde_json::from_str(&stdout(&all)).expect("JSON");
    for key in ["prefill_tok_s", "decode_tok_s", "peak_rss_bytes", "load_s"] {
        assert!(
            found[key].as_f64().is_some_and(|value| value > 0.0),
            "{key} in {found}"
        );
    }
    assert_eq!(found["decode"].as_array().map(Vec::len), Some(2));
    let profile = std::fs::read_to_string(profile).expect("a profile");
    assert!(
        profile.contains("kind = \"measured\"") && profile.contains("[rates]"),
        "{profile}"
    );
    let mut all = small.to_vec();
    all.extend(["--sessions", "3", "--shared-context", "40", "--tail", "5"]);
    let table = stdout(&all);
    assert!(
        table.contains("first token, all arriving at once"),
        "{table}"
    );
}

#[test]
fn what_the_machine_lacks_ends_with_4() {
    let set = "grid.datasets=[{ squad = { path = 'quality/xquad.en.json' } }]";
    let (code, error) = failure(&["run", "smoke", "--dry-run", "--set", set]);
    assert_eq!(code, 4, "{error}");
    assert!(error.contains("no data folder is set"), "{error}");
    let (code, error) = failure(&["models", "verify", "smollm2-135m-instruct-q4_1"]);
    assert_eq!(code, 4, "{error}");
    assert!(
        error.contains("celslm models fetch smollm2-135m-instruct-q4_1"),
        "{error}"
    );
}

#[test]
fn a_folder_that_no_run_wrote_makes_no_report() {
    let dir = tempfile::tempdir().expect("a folder");
    let (code, error) = failure(&["report", dir.path().to_str().expect("utf-8")]);
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("not a results folder"), "{error}");
}

#[test]
fn every_registry_is_listed() {
    let all = stdout(&["ls"]);
    for entry in [
        "edge_only",
        "group_quant",
        "layerwise",
        "userspace",
        "embedded",
        "metro-100m-20ms",
        "qwen2.5",
        "quick",
    ] {
        assert!(all.contains(entry), "{entry} is missing in\n{all}");
    }
    let systems = stdout(&["ls", "systems"]);
    assert!(
        systems.contains("ce_lslm") && !systems.contains("group_quant"),
        "{systems}"
    );
    let profiles = stdout(&["link", "profiles"]);
    assert!(
        profiles.contains("slow-20m-60ms") && profiles.contains("60 ms"),
        "{profiles}"
    );
    let devices = stdout(&["device", "ls"]);
    assert!(
        devices.contains("raspberry-pi-5") && devices.contains("published"),
        "{devices}"
    );
    let models = stdout(&["models", "ls"]);
    assert!(models.contains("absent"), "{models}");
}
