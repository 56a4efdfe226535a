//! `celslm run` of an experiment in process: whole evaluations with a random-weight model.

mod lab;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use celslm_reports::evaluation::{ContextRow, EVALUATION_ROWS, read_rows};
use lab::{Lab, assert_code};

/// Writes an experiment over the tiny edge model and two articles of two questions.
fn experiment(lab: &Lab, name: &str, rest: &str) {
    let text = format!(
        "data_dir = \"{data}\"\n[experiment]\nname = \"{name}\"\n\
         [models]\ncloud = \"tiny-cloud\"\nedge = \"tiny-edge\"\n\
         [evaluation]\ndatasets = [{{ squad = {{ path = \"squad.json\" }} }}]\n\
         max_tokens = 4\nchunk_tokens = 64\nthreads = 1\n{rest}\n",
        data = lab.path("data").display()
    );
    fs::write(lab.path(&format!("configs/experiments/{name}.toml")), text).unwrap();
}

/// The files of rows in a results folder, with their rows, by cell.
fn cells(lab: &Lab, name: &str) -> BTreeMap<PathBuf, Vec<ContextRow>> {
    fs::read_dir(lab.path(&format!("results/{name}/cells")))
        .unwrap()
        .map(|cell| {
            let path = cell.unwrap().path().join(EVALUATION_ROWS);
            let rows = read_rows(&path).unwrap().rows;
            (path, rows)
        })
        .collect()
}

/// What a row says but for times.
fn timeless(rows: &[ContextRow]) -> Vec<ContextRow> {
    let timeless = |row: &ContextRow| ContextRow {
        encode_ns: 0,
        decode_ns: 0,
        ..row.clone()
    };
    rows.iter().map(timeless).collect()
}

#[test]
fn an_evaluation_is_made_resumed_and_reported_again() {
    let lab = Lab::new();
    experiment(
        &lab,
        "sweep",
        "codecs = [\"identity\", \"knorm-press\", \"snapkv-press\", { group_quant = { bits = 2 } }]",
    );
    let text = assert_code(&lab.run(&["run", "sweep", "--dry-run"]), 0);
    assert!(text.contains("group_quant-2b-g32"), "{text}");
    assert!(!lab.path("results/sweep").exists());

    let text = assert_code(&lab.run(&["run", "sweep"]), 0);
    let first = cells(&lab, "sweep");
    // The reference, two controls and four codecs, over two articles each.
    assert_eq!(first.len(), 7, "{text}");
    assert!(first.values().all(|rows| rows.len() == 2));
    let of = |name: &str| -> Vec<ContextRow> {
        let cell = |(path, _): &(&PathBuf, &Vec<ContextRow>)| path.to_string_lossy().contains(name);
        let found: Vec<_> = first.iter().filter(cell).collect();
        assert_eq!(found.len(), 1, "{name}: {:?}", first.keys());
        found[0].1.clone()
    };
    let nll = |rows: &[ContextRow]| -> Vec<f64> {
        let asked = rows.iter().flat_map(|row| &row.questions);
        asked.map(|question| question.nll).collect()
    };
    let reference = of("uncompressed");
    assert_eq!(nll(&reference).len(), 4);
    // What is sent as it is answers as what was never sent; what is coded or left out does not.
    assert_eq!(nll(&of("identity")), nll(&reference));
    for other in [
        "group_quant",
        "knorm",
        "snapkv",
        "no_context",
        "wrong_context",
    ] {
        assert_ne!(nll(&of(other)), nll(&reference), "{other}");
    }
    for file in [
        "report.md",
        "report.html",
        "manifest.json",
        "config.resolved.toml",
    ] {
        assert!(
            lab.path(&format!("results/sweep/{file}")).exists(),
            "{file}"
        );
    }

    // A kill in the middle: one cell is gone, one has half a line. Only these rows are made again,
    // and say what they said before.
    let paths: Vec<&PathBuf> = first.keys().collect();
    let untouched = fs::read(paths[2]).unwrap();
    fs::remove_file(paths[0]).unwrap();
    let whole = fs::read(paths[1]).unwrap();
    fs::write(paths[1], &whole[..whole.len() - 40]).unwrap();
    let text = assert_code(&lab.run(&["run", "sweep", "--resume"]), 0);
    assert!(text.contains("11 contexts are done"), "{text}");
    let again = cells(&lab, "sweep");
    for (path, rows) in &first {
        assert_eq!(timeless(rows), timeless(&again[path]), "{}", path.display());
    }
    assert_eq!(fs::read(paths[2]).unwrap(), untouched);

    // A line that is no row is refused, with the file's name, and kept.
    fs::write(paths[0], "{\"cell_id\": 7}\n").unwrap();
    let text = assert_code(&lab.run(&["run", "sweep", "--resume"]), 5);
    assert!(text.contains("line 1"), "{text}");
    assert_eq!(fs::read(paths[0]).unwrap(), b"{\"cell_id\": 7}\n");
    fs::write(paths[0], untouched_of(&again, paths[0])).unwrap();

    // Another plan keeps the rows of the arms that it still has, and leaves the others alone.
    let fewer = "evaluation.codecs=[\"identity\", \"streaming-llm\"]";
    let text = assert_code(&lab.run(&["run", "sweep", "--resume", "--set", fewer]), 0);
    assert!(text.contains("8 contexts are done"), "{text}");
    let after = cells(&lab, "sweep");
    assert_eq!(after.len(), first.len() + 1);
    assert!(again.iter().all(|(path, rows)| after[path] == *rows));
    let report = fs::read_to_string(lab.path("results/sweep/report.md")).unwrap();
    assert!(
        report.contains("left out") && !report.contains("| group_quant"),
        "{report}"
    );
    assert_code(&lab.run(&["run", "sweep", "--resume"]), 0);

    // The report is built again from the folder alone.
    fs::remove_file(lab.path("results/sweep/report.md")).unwrap();
    let text = assert_code(&lab.run(&["report", "results/sweep"]), 0);
    assert!(text.contains("group_quant-2b-g32"), "{text}");
    assert!(lab.path("results/sweep/report.md").exists());
}

/// Rows as their file holds them.
fn untouched_of(cells: &BTreeMap<PathBuf, Vec<ContextRow>>, path: &PathBuf) -> String {
    let line = |row: &ContextRow| serde_json::to_string(row).unwrap() + "\n";
    cells[path].iter().map(line).collect()
}

#[test]
fn what_an_evaluation_cannot_do_is_said_before_it_starts() {
    let lab = Lab::new();
    for (rest, code, part) in [
        (
            "codecs = [\"celslm\"]",
            2,
            "celslm codec fit --model tiny-edge",
        ),
        ("families = [\"kivvi\"]", 2, "unknown family `kivvi`"),
        ("codecs = [\"identical\"]", 2, "identical"),
        ("batch = 0", 2, "use 1 to 256"),
        ("[evaluation.more]", 2, "unknown field"),
    ] {
        experiment(&lab, "wrong", rest);
        let text = assert_code(&lab.run(&["run", "wrong"]), code);
        assert!(text.contains(part), "{rest}: {text}");
        assert!(!lab.path("results/wrong").exists(), "{rest}");
    }
    experiment(&lab, "whole", "");
    let text = assert_code(&lab.run(&["run", "whole", "--shard", "1/2"]), 2);
    assert!(text.contains("no shards"), "{text}");
    fs::remove_file(lab.path("data/squad.json")).unwrap();
    let text = assert_code(&lab.run(&["run", "whole"]), 4);
    assert!(text.contains("squad.json"), "{text}");
}

#[test]
fn the_clouds_kv_is_mapped_and_held_against_its_controls() {
    let lab = Lab::new();
    let arms = "cloud = [\"alone\", { mapped = { sinks = 0 } }, \
                { mapped = { alignment = \"depth\", shallow_layers = 5 } }]\n\
                controls = [\"zero_kv\", \"random_kv\"]";
    experiment(&lab, "mapped", arms);
    let missing = assert_code(&lab.run(&["run", "mapped"]), 2);
    assert!(
        missing.contains("celslm align fit --alignment depth"),
        "{missing}"
    );
    let text: String = (0..6000)
        .map(|i| format!("word{} ", i * 7919 % 977))
        .collect();
    fs::write(lab.path("text.txt"), text).unwrap();
    let fit = "align fit --text text.txt --cloud tiny-cloud --edge tiny-edge --tokens 6000";
    let fit: Vec<&str> = fit.split(' ').chain(["--context-words", "60"]).collect();
    assert_code(&lab.run(&fit), 0);

    let text = assert_code(&lab.run(&["run", "mapped"]), 0);
    let found = cells(&lab, "mapped");
    assert_eq!(found.len(), 6, "{text}");
    let of = |name: &str| -> &Vec<ContextRow> {
        let mut cells = found.iter();
        let cell = cells.find(|(path, _)| path.to_string_lossy().contains(name));
        cell.unwrap_or_else(|| panic!("{name}: {:?}", found.keys()))
            .1
    };
    let nll = |rows: &[ContextRow]| -> Vec<f64> {
        let asked = rows.iter().flat_map(|row| &row.questions);
        asked.map(|question| question.nll).collect()
    };
    let reference = nll(of("uncompressed"));
    // All five layers computed at the edge are the edge's own KV, and nothing is sent.
    let own = of("depth-ridge-s4-l5");
    assert_eq!(nll(own), reference);
    assert!(own.iter().all(|row| row.payload_bytes == 0));
    let mapped = of("depth-ridge-s0-l0");
    assert!(mapped.iter().all(|row| row.payload_bytes == row.fp16_bytes));
    for other in ["depth-ridge-s0-l0", "cloud_alone", "zero_kv", "random_kv"] {
        assert_ne!(nll(of(other)), reference, "{other}");
    }
    // A file that is no bridge, and one that is for other models.
    let bridges = lab.path("configs/bridges");
    let bridge = fs::read_dir(&bridges)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let swapped = bridges.join("tiny-edge.to.tiny-cloud.depth-ridge.safetensors");
    fs::copy(&bridge, &swapped).unwrap();
    fs::write(&bridge, "no bridge").unwrap();
    let refused = assert_code(&lab.run(&["run", "mapped"]), 2);
    assert!(refused.contains("tiny-cloud.to.tiny-edge"), "{refused}");
    let set = [
        "--set",
        "models.cloud=\"tiny-edge\"",
        "--set",
        "models.edge=\"tiny-cloud\"",
    ];
    let args: Vec<&str> = ["run", "mapped"].into_iter().chain(set).collect();
    let refused = assert_code(&lab.run(&args), 2);
    assert!(refused.contains("fit one for this pair"), "{refused}");
}
