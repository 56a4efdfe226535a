//! Self-study and what is trained on it, by the program on the default pair: random weights ask nothing.

use std::path::Path;
use std::process::Command;

use celslm_model::store::{ModelStore, Silent, load_specs};
use celslm_reports::evaluation::{ContextRow, EVALUATION_ROWS, read_rows};

const PAIR: [&str; 2] = [
    "qwen2.5-coder-1.5b-instruct-q4_k_m",
    "qwen2.5-coder-0.5b-instruct-q4_k_m",
];

/// What the program says on both outputs.
fn celslm(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_celslm"))
        .args(arguments)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .env("CELSLM_OFFLINE", "1")
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}");
    said
}

/// Invented facts, a sentence each.
fn facts(count: usize) -> String {
    const TOWNS: [&str; 7] = [
        "Arvik",
        "Belmora",
        "Castrel",
        "Dunholm",
        "Erevan Point",
        "Fossby",
        "Garrow",
    ];
    const THINGS: [&str; 5] = ["lighthouse", "library", "tramway", "windmill", "orchard"];
    (0..count)
        .map(|at| {
            format!(
                "The {} of {} was built in {} and has {} keepers. ",
                THINGS[at % THINGS.len()],
                TOWNS[at % TOWNS.len()],
                1801 + at * 7 % 200,
                3 + at % 11
            )
        })
        .collect()
}

/// The only row of each arm, by the beginning of its cell's name.
fn row(cells: &Path, arm: &str) -> ContextRow {
    let cell = std::fs::read_dir(cells)
        .unwrap()
        .map(|cell| cell.unwrap().path())
        .find(|cell| {
            let name = cell.file_name().unwrap().to_string_lossy().into_owned();
            name.starts_with(&format!("squad-{arm}-"))
        })
        .unwrap_or_else(|| panic!("no {arm}"));
    let mut rows = read_rows(&cell.join(EVALUATION_ROWS)).unwrap().rows;
    assert_eq!(rows.len(), 1, "{arm}");
    rows.remove(0)
}

/// Lessons are written, a bridge is trained on them and goes on, and contexts are tuned on their own.
#[test]
fn lessons_are_written_and_learnt_from() {
    let store = ModelStore::open_default().unwrap();
    let specs = load_specs(Path::new("../configs/models")).unwrap();
    for spec in specs.iter().filter(|spec| PAIR.contains(&&*spec.name)) {
        store.fetch(spec, &mut Silent).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let [cloud, edge] = PAIR;
    let prefix = format!("configs/bridges/{cloud}.to.{edge}.all-prefix.safetensors");

    std::fs::write(at("facts.txt"), facts(60)).unwrap();
    let (text, lessons, trained) = (at("facts.txt"), at("lessons.jsonl"), at("t.safetensors"));
    let study = [
        "align",
        "study",
        "--text",
        &text,
        "--out",
        &lessons,
        "--contexts",
        "10",
        "--context-words",
        "36",
        "--requests",
        "1",
    ];
    let said = celslm(&study);
    assert!(said.contains("10 contexts"), "{said}");
    let train = [
        "align",
        "train",
        "--from",
        &prefix,
        "--mapping",
        "prefix",
        "--lessons",
        &lessons,
        "--teacher",
        cloud,
        "--attention",
        "0",
        "--steps",
        "2",
        "--out",
        &trained,
    ];
    let said = celslm(&train);
    assert!(said.contains("step 2, held out"), "{said}");
    assert!(Path::new(&trained).exists());

    let article = serde_json::json!({"data": [{"title": "Towns", "paragraphs": [{
        "context": facts(12),
        "qas": [{"id": "a", "question": "When was the library of Belmora built?",
            "answers": [{"text": "1808", "answer_start": 0}]}],
    }]}]});
    std::fs::write(at("squad.json"), article.to_string()).unwrap();
    let tuned =
        |rest: &str| format!("{{ distilled = {{ steps = 2, first_tokens = {trained:?}{rest} }} }}");
    let arms = [
        tuned(", control = \"all-prefix-s4-l0\""),
        tuned(", teacher = \"edge\""),
        tuned(", reduction = 4"),
    ];
    let experiment = format!(
        "data_dir = {:?}\n[experiment]\nname = \"tuned\"\n[evaluation]\n\
         datasets = [{{ squad = {{ path = \"squad.json\" }} }}]\nmax_tokens = 6\ncontrols = []\n\
         cloud = [{{ mapped = {{ alignment = {{ all = {{ mapping = \"prefix\", bridge = {trained:?} }} }} }} }}, {}]\n",
        dir.path(),
        arms.join(", ")
    );
    std::fs::write(at("tuned.toml"), experiment).unwrap();
    let (file, results) = (at("tuned.toml"), at("results"));
    celslm(&["run", &file, "--out", &results]);

    let cells = dir.path().join("results/tuned/cells");
    let reference = row(&cells, "uncompressed");
    let own = row(&cells, "distilled-cloud-prefix-r1");
    let edge_taught = row(&cells, "distilled-edge-prefix-r1");
    let quarter = row(&cells, "distilled-cloud-prefix-r4");
    for row in [&own, &edge_taught, &quarter] {
        assert_eq!(row.edge_token_layers, 0, "{row:?}");
        assert!(row.questions[0].nll.is_finite());
    }
    assert_eq!(own.fp16_bytes, reference.fp16_bytes);
    let tokens = reference.context_tokens;
    assert_eq!(
        quarter.payload_bytes,
        tokens.div_ceil(4) * (own.payload_bytes / tokens)
    );
    // Each begins at other KV than the reference's and learns something else.
    assert_ne!(own.questions[0].nll, edge_taught.questions[0].nll);
    assert_ne!(own.questions[0].nll, reference.questions[0].nll);
}
