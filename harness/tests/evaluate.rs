//! `celslm run` of an experiment in process: whole evaluations with a random-weight model.

mod lab;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use celslm_kv::{Bridge, MappingConfig};
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
        ("notes_tokens = 1", 2, "use 2 to 2048"),
        ("cloud = [\"notes\"]", 2, "text_handoff"),
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
    held_against_its_own_control(&lab);
    // A bridge of another mapping, a file that is none, and one that is for other models.
    let bridges = lab.path("configs/bridges");
    let bridge = fs::read_dir(&bridges)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let other = format!(
        "cloud = [{{ mapped = {{ alignment = {{ depth = {{ mapping = {{ low_rank = {{ rank = 3 }} }}, \
         bridge = \"{}\" }} }} }} }}]",
        bridge.display()
    );
    experiment(&lab, "other", &other);
    let refused = assert_code(&lab.run(&["run", "other"]), 2);
    for part in [
        "was fitted for alignment depth and mapping ridge",
        "celslm align fit --alignment depth --mapping 'low_rank = { rank = 3 }'",
    ] {
        assert!(refused.contains(part), "{refused}");
    }
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

/// The same adapter on the edge's own KV, and a second bridge of the same kind.
fn held_against_its_own_control(lab: &Lab) {
    let fit = "align fit --text text.txt --cloud tiny-edge --edge tiny-edge --tokens 6000";
    let out = lab.path("own.safetensors").display().to_string();
    let rest = ["--context-words", "60", "--out", out.as_str()];
    let fit: Vec<&str> = fit.split(' ').chain(rest).collect();
    assert_code(&lab.run(&fit), 0);
    let own = format!(
        "{{ mapped = {{ alignment = {{ depth = {{ bridge = \"{out}\" }} }}, sinks = 0 }} }}"
    );
    let plain = "{ mapped = { sinks = 0 } }";
    let named = |control: &str| {
        format!("{{ mapped = {{ name = \"second\", sinks = 0, control = \"{control}\" }} }}")
    };
    let arms = |arms: &[&str]| format!("cloud = [{}]\ncontrols = [\"zero_kv\"]", arms.join(", "));
    for (name, wrong, part) in [
        (
            "twice",
            arms(&[plain, plain]),
            "two arms of evaluation.cloud are called depth-ridge-s0-l0",
        ),
        (
            "unknown",
            arms(&[plain, &named("nobody")]),
            "`nobody` of the arm second-s0-l0 is no other arm of evaluation.cloud; known: depth-ridge-s0-l0",
        ),
        (
            "slug",
            arms(&["{ mapped = { name = \"a/b\" } }"]),
            "use 1 to 64 letters",
        ),
    ] {
        experiment(lab, name, &wrong);
        let told = assert_code(&lab.run(&["run", name]), 2);
        assert!(told.contains(part), "{told}");
    }
    // An arm is held against the one of the same length and steps.
    let tuned = [
        "{ distilled = {} }",
        "{ distilled = { reduction = 4 } }",
        "{ distilled = { teacher = \"edge\" } }",
    ];
    experiment(lab, "tuned", &arms(&tuned));
    let told = assert_code(&lab.run(&["run", "tuned", "--dry-run"]), 0);
    let stated = told.matches("own control: ").count();
    let named_so = told.contains("own control: distilled-edge-r1-n60");
    assert!(stated == 1 && named_so, "{told}");
    // Tuning begins behind the first tokens of a bridge that maps nothing, and is held against that.
    let first = lab.path("first.safetensors");
    let bridge = PathBuf::from(&out);
    let fitted = Bridge::read(&bridge).unwrap();
    let first_tokens = fitted.to_train(MappingConfig::Prefix).unwrap();
    first_tokens.save(&first).unwrap();
    let behind = |path: &Path| {
        let path = path.display();
        format!(
            "{{ distilled = {{ first_tokens = \"{path}\", control = \"distilled-cloud-r1-n60\" }} }}"
        )
    };
    let taught = format!(
        "{{ distilled = {{ first_tokens = \"{}\", teacher = \"edge\" }} }}",
        first.display()
    );
    experiment(lab, "both", &arms(&[tuned[0], &behind(&first), &taught]));
    let told = assert_code(&lab.run(&["run", "both", "--dry-run"]), 0);
    let both = "own controls: distilled-edge-prefix-r1-n60, distilled-cloud-r1-n60";
    assert!(told.contains(both), "{told}");
    experiment(lab, "behind", &arms(&[tuned[0], &behind(&first)]));
    let told = assert_code(&lab.run(&["run", "behind", "--dry-run"]), 0);
    let line = told
        .lines()
        .find(|line| line.contains("distilled-cloud-prefix-r1-n60"));
    assert!(
        line.is_some_and(|line| line.contains("own control: distilled-cloud-r1-n60")),
        "{told}"
    );
    for (path, part) in [
        (bridge.clone(), "this bridge maps KV"),
        (lab.path("none"), "none: "),
    ] {
        experiment(lab, "behind", &arms(&[tuned[0], &behind(&path)]));
        let told = assert_code(&lab.run(&["run", "behind", "--dry-run"]), 2);
        let advice = told.contains("align train --mapping prefix");
        assert!(told.contains(part) && advice, "{told}");
    }
    experiment(lab, "behind", &arms(&[&behind(&first)]));
    let told = assert_code(&lab.run(&["run", "behind", "--dry-run"]), 2);
    assert!(
        told.contains("the own control `distilled-cloud-r1-n60`"),
        "{told}"
    );
    let list = ["\"alone\"", plain, &own, &named("self-depth-ridge")];
    experiment(lab, "held", &arms(&list));
    let told = assert_code(&lab.run(&["run", "held", "--dry-run"]), 0);
    let stated = told.matches("own control: self-depth-ridge-s0-l0").count();
    assert_eq!(stated, 2, "{told}");
    assert_code(&lab.run(&["run", "held"]), 0);
    let found = cells(lab, "held");
    let of = |name: &str| -> &Vec<ContextRow> {
        let mut cells = found.iter();
        let cell = cells.find(|(path, _)| path.to_string_lossy().contains(name));
        cell.unwrap_or_else(|| panic!("{name}: {:?}", found.keys()))
            .1
    };
    // The edge has computed what is mapped, and nothing is sent.
    for row in of("self-depth-ridge-s0-l0") {
        assert_eq!((row.payload_bytes, row.message_bytes), (0, 0));
        assert_eq!(row.edge_token_layers, row.token_layers);
    }
    // A model's own KV is mapped better than another one's.
    let cosine = |rows: &[ContextRow]| -> f64 {
        let layers = rows.iter().flat_map(|row| &row.layers);
        layers.map(|layer| layer.k_cosine).sum()
    };
    assert!(cosine(of("self-depth-ridge-s0-l0")) > cosine(of("second-s0-l0")));
    assert!(
        of("second-s0-l0")
            .iter()
            .all(|row| row.payload_bytes == row.fp16_bytes)
    );
    let read = |file: &str| fs::read_to_string(lab.path(&format!("results/held/{file}"))).unwrap();
    let report = read("report.md");
    for part in [
        "## Arms and data sets",
        "second-s0-l0 over self-depth-ridge-s0-l0",
        "fitted in",
    ] {
        assert!(report.contains(part), "{part}: {report}");
    }
    let input: serde_json::Value = serde_json::from_str(&read("evaluation-input.json")).unwrap();
    for arm in input["arms"].as_array().unwrap() {
        let mapped = arm["name"].as_str().unwrap().ends_with("-s0-l0");
        assert_eq!(
            arm["fit_s"].as_f64().is_some_and(|s| s > 0.0),
            mapped,
            "{arm}"
        );
    }
}

#[test]
fn layers_are_scored_and_maps_take_parameters() {
    let lab = Lab::new();
    let text: String = (0..6000)
        .map(|i| format!("word{} ", i * 7919 % 977))
        .collect();
    fs::write(lab.path("text.txt"), text).unwrap();
    let models = "--text text.txt --cloud tiny-cloud --edge tiny-edge --context-words 60";
    let run = |rest: &[&str]| -> String {
        let args: Vec<&str> = ["align"].into_iter().chain(rest.iter().copied()).collect();
        let args: Vec<&str> = args.into_iter().chain(models.split(' ')).collect();
        assert_code(&lab.run(&args), 0)
    };
    let told = run(&[
        "score",
        "--tokens",
        "2000",
        "--measure",
        "cka",
        "--out",
        "score",
    ]);
    assert!(told.contains("linear centred kernel alignment"), "{told}");
    // Five edge layers, each with its best cloud layer marked.
    assert_eq!(told.matches('*').count(), 5, "{told}");
    for measure in ["r2", "cosine", "cka"] {
        let svg = fs::read_to_string(lab.path(&format!("score/{measure}.svg"))).unwrap();
        assert!(svg.contains("edge layer 4, cloud layer 6"), "{measure}");
    }
    let scores = fs::read_to_string(lab.path("score/similarity.json")).unwrap();
    let scores: serde_json::Value = serde_json::from_str(&scores).unwrap();
    let k = scores["similarity"]["r2"]["k"].as_array().unwrap();
    assert_eq!((k.len(), k[0].as_array().unwrap().len()), (5, 7));

    let fitted = run(&[
        "fit",
        "--tokens",
        "3000",
        "--mapping",
        "low_rank = { rank = 3 }",
    ]);
    assert!(
        fitted.contains("tiny-cloud.to.tiny-edge.depth-low_rank-rank3.safetensors"),
        "{fitted}"
    );
    run(&["fit", "--tokens", "3000", "--mapping", "weighted_ridge"]);
    let wrong = "align fit --text text.txt --mapping".split(' ');
    let wrong: Vec<&str> = wrong.chain(["joint = { ranks = 3 }"]).collect();
    let told = assert_code(&lab.run(&wrong), 2);
    assert!(told.contains("unknown field `ranks`"), "{told}");
}

#[test]
fn options_are_chosen_in_evaluations_alone() {
    let lab = Lab::new();
    let line = |index: usize| {
        format!(
            r#"{{"id": "q{index}", "question": {{"stem": "What is {index}?", "choices": [{{"text": "low {index}", "label": "A"}}, {{"text": "high", "label": "B"}}]}}, "answerKey": "B"}}"#
        )
    };
    let lines: Vec<String> = (0..14).map(line).collect();
    fs::write(lab.path("data/arc-tiny.jsonl"), lines.join("\n")).unwrap();
    let dataset = "datasets = [{ choice = { path = \"arc-tiny.jsonl\", shots = 2, questions_per_document = 5 } }]";
    experiment(&lab, "options", "codecs = [{ group_quant = { bits = 2 } }]");
    over(&lab, "options", dataset);
    assert_code(&lab.run(&["run", "options"]), 0);
    let found = cells(&lab, "options");
    assert_eq!(found.len(), 4);
    for rows in found.values() {
        assert_eq!(rows.len(), 2);
        for question in rows.iter().flat_map(|row| &row.questions) {
            let answer = question.answer.as_deref().unwrap();
            assert!(answer == "high" || answer.starts_with("low "), "{answer}");
            let right = f64::from(u8::from(answer == "high"));
            assert_eq!((question.f1, question.em), (Some(right), Some(right)));
        }
    }
    lab.experiment(
        "asked",
        &format!("[grid]\nsystems = [\"edge_only\"]\nlinks = [\"brisk\"]\n{dataset}\n"),
    );
    let told = assert_code(&lab.run(&["run", "asked"]), 2);
    assert!(told.contains("use `choice` in an [evaluation]"), "{told}");
}

/// Replaces the data set of an experiment that [`experiment`] has written.
fn over(lab: &Lab, name: &str, datasets: &str) {
    let path = lab.path(&format!("configs/experiments/{name}.toml"));
    let text = fs::read_to_string(&path).unwrap();
    let squad = "datasets = [{ squad = { path = \"squad.json\" } }]";
    assert!(text.contains(squad));
    fs::write(&path, text.replace(squad, datasets)).unwrap();
}

#[test]
fn problems_continuations_and_needles_are_evaluated_and_kept_apart() {
    let lab = Lab::new();
    let line = |i: usize| {
        format!(
            r#"{{"question": "What is {i} and 2?", "answer": "It is <<{i}+2={sum}>>{sum}.\n#### {sum}"}}"#,
            sum = i + 2
        )
    };
    let lines: Vec<String> = (0..10).map(line).collect();
    fs::write(lab.path("data/gsm8k.jsonl"), lines.join("\n")).unwrap();
    for book in ["oak", "elm"] {
        let text: String = (0..900)
            .map(|i| match i % 9 {
                8 => format!("{book}{}. ", i * i % 97),
                _ => format!("{book}{} ", i * i % 97),
            })
            .collect();
        fs::write(lab.path(&format!("data/{book}.txt")), text).unwrap();
    }
    let datasets = "datasets = [\n\
        { gsm8k = { path = \"gsm8k.jsonl\", shots = 2, questions_per_document = 3, answer_tokens = 9 } },\n\
        { continuation = { path = \"oak.txt\", words = 30, continuation_words = 8, documents = 3, skip_percent = 50 } },\n\
        { continuation = { path = \"elm.txt\", words = 30, continuation_words = 8, documents = 2 } },\n\
        { needle = { path = \"oak.txt\", words = [30, 60], documents = 1, depths = [20, 80] } },\n]";
    experiment(
        &lab,
        "forms",
        "codecs = [{ group_quant = { bits = 2 } }]\nnotes_tokens = 12\n\
         cloud = [\"alone\", \"text_handoff\", \"notes_kv\", \"notes_local\"]",
    );
    over(&lab, "forms", datasets);
    let told = assert_code(&lab.run(&["run", "forms", "--dry-run"]), 0);
    assert!(
        told.contains("needle: 2 contexts, 4 questions, 8 arms"),
        "{told}"
    );
    for label in [
        "continuation-oak: 3 contexts",
        "continuation-elm: 2 contexts",
    ] {
        assert!(told.contains(label), "{told}");
    }
    let told = assert_code(&lab.run(&["run", "forms"]), 0);
    let found = cells(&lab, "forms");
    assert_eq!(found.len(), 4 * 8, "{told}");
    let mut lengths = Vec::new();
    for (path, rows) in &found {
        let cell = path.to_string_lossy().into_owned();
        for question in rows.iter().flat_map(|row| &row.questions) {
            assert!(question.nll > 0.0, "{cell}");
            let is_continuation = cell.contains("continuation-");
            assert_eq!(question.f1.is_none(), is_continuation, "{cell}");
            assert_eq!(question.answer.is_none(), is_continuation, "{cell}");
            if cell.contains("gsm8k") {
                lengths.push(question.output_tokens);
            }
        }
        let ids: Vec<&str> = rows.iter().map(|row| row.context_id.as_str()).collect();
        if cell.contains("needle") {
            assert!(ids[0].starts_with("oak-30w-") && ids[1].starts_with("oak-60w-"));
            assert_eq!(rows[0].questions[1].question_id, "depth-80");
        } else if cell.contains("continuation-oak") {
            assert!(ids.iter().all(|id| *id >= "oak-0000450"), "{ids:?}");
            assert_eq!(ids.len(), 3);
        }
    }
    // Longer than the four tokens of the experiment, as the data set says.
    assert_eq!(lengths.iter().max(), Some(&9), "{lengths:?}");
    let report = fs::read_to_string(lab.path("results/forms/report.md")).unwrap();
    for part in ["All arms, continuation-oak", "All arms, continuation-elm"] {
        assert!(report.contains(part), "{report}");
    }
    assert!(!report.contains("NaN"), "{report}");
    for arm in ["text_handoff", "notes_kv", "notes_local"] {
        let rows = found
            .iter()
            .filter(|(path, _)| path.to_string_lossy().contains(arm));
        for row in rows.flat_map(|(_, rows)| rows) {
            assert_eq!(row.edge_token_layers == 0, arm == "notes_kv");
            assert!(row.message_bytes > 0, "{arm}");
        }
        assert!(report.contains(&format!("| {arm} |")), "{report}");
    }

    for (name, dataset) in [
        ("gsm8k", "{ gsm8k = { path = \"gsm8k.jsonl\" } }"),
        ("continuation", "{ continuation = { path = \"oak.txt\" } }"),
    ] {
        let grid = format!(
            "[grid]\nsystems = [\"edge_only\"]\nlinks = [\"brisk\"]\ndatasets = [{dataset}]\n"
        );
        lab.experiment("asked", &grid);
        let told = assert_code(&lab.run(&["run", "asked"]), 2);
        let part = format!("use `{name}` in an [evaluation]");
        assert!(told.contains(&part), "{told}");
    }
}
