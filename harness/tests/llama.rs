//! `cloud_api` against a real llama.cpp server with the real cloud model, where there is one:
//! `CELSLM_LLAMA_SERVER_PYTHON` names a Python that has `llama_cpp.server`, else `python3` is
//! asked. Install it with `pip install 'llama-cpp-python[server]'`; `.ci/run` does so with
//! `CELSLM_CI_LLAMA=1`.

use std::path::Path;
use std::process::Command;

use celslm_reports::{Sample, read_samples};

const BIN: &str = env!("CARGO_BIN_EXE_celslm");

#[test]
fn a_real_server_answers_over_the_link() {
    let Some(python) = celslm::serving::llama_python() else {
        println!(
            "skipped: no llama_cpp.server in python3, and {} names none",
            celslm::serving::LLAMA_PYTHON_VARIABLE
        );
        return;
    };
    if !Command::new("test")
        .args(["-w", "/dev/net/tun"])
        .status()
        .is_ok_and(|status| status.success())
    {
        println!("skipped: /dev/net/tun cannot be opened here");
        return;
    }
    let out = tempfile::tempdir().unwrap();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/experiments/serving.toml");
    let output = Command::new(BIN)
        .arg("run")
        .arg(config)
        .arg("--out")
        .arg(out.path())
        .args(["--set", &format!("cloud.serving.command.0=\"{python}\"")])
        .args(["--set", "workload.warmup=0"])
        .args(["--set", "generation.max_tokens=8"])
        .args(["--set", "grid.systems=[\"cloud_only\", \"cloud_api\"]"])
        .args([
            "--set",
            "grid.datasets=[{ embedded = { documents = 1, questions_per_document = 2 } }]",
        ])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let mut samples: Vec<Sample> = Vec::new();
    for cell in std::fs::read_dir(out.path().join("serving/cells")).unwrap() {
        let file = cell.unwrap().path().join("samples.jsonl");
        samples.extend(read_samples(&file).unwrap().samples);
    }
    let of = |system: &str| -> Vec<&Sample> {
        let mut found: Vec<&Sample> = samples.iter().filter(|s| s.system == system).collect();
        found.sort_by(|a, b| a.question_id.cmp(&b.question_id));
        found
    };
    let (own, foreign) = (of("cloud_only"), of("cloud_api"));
    assert_eq!((own.len(), foreign.len()), (2, 2));
    for (own, foreign) in own.iter().zip(&foreign) {
        assert!(!foreign.output_text.is_empty() && foreign.output_tokens > 0);
        // The same model, template and messages: the edge's count of the prompt is the cloud's.
        assert_eq!(own.prompt_tokens, foreign.prompt_tokens);
        // The document goes up as text.
        assert!(foreign.uplink_bytes > 2 * u64::from(foreign.context_tokens));
        assert!(foreign.token_ns.is_sorted());
        println!(
            "{}: own {:?}, llama.cpp {:?}",
            own.question_id, own.output_text, foreign.output_text
        );
    }
}
