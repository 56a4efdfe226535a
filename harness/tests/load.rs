//! `celslm run` under load, over real processes and random-weight models, without emulation: every
//! path of the load driver in seconds.

mod lab;

use std::collections::BTreeMap;
use std::time::Duration;

use celslm_reports::{LoadFacts, Sample, read_load_facts};
use lab::{Background, Lab, assert_code, follow, wait_until};

/// The facts of every cell, by system.
fn facts(lab: &Lab, experiment: &str) -> BTreeMap<String, LoadFacts> {
    let cells = lab.path(&format!("results/{experiment}/cells"));
    let mut facts = BTreeMap::new();
    for cell in std::fs::read_dir(cells).unwrap() {
        let dir = cell.unwrap().path();
        let id = dir.file_name().unwrap().to_str().unwrap().to_owned();
        let of = read_load_facts(&dir.join("load.json"), &id).unwrap();
        facts.insert(id, of.expect("facts of the load"));
    }
    facts
}

/// What every run promises: one row per planned request, and parts that add up.
fn check_rows(samples: &[Sample]) {
    let mut orders: Vec<u64> = samples.iter().map(|sample| sample.order).collect();
    orders.sort_unstable();
    orders.dedup();
    assert_eq!(orders.len(), samples.len(), "a request has two rows");
    for sample in samples.iter().filter(|sample| sample.ok()) {
        let sum: u64 = sample.parts.iter().map(|part| part.exposed_ns).sum();
        let ttft = sample.token_ns[0] - sample.scheduled_ns;
        assert!(
            sum.abs_diff(ttft) * 50 <= ttft.max(50_000),
            "{sum} against {ttft} in {}",
            sample.cell_id
        );
        assert_ne!(sample.token_exact, Some(false), "{}", sample.cell_id);
    }
}

const GRID: &str = "
[deployment]
backend = \"loopback\"
[slo]
ttft_ms = 5000.0
tpot_ms = 2000.0
[grid]
links = [\"none\"]
datasets = [{ squad = { path = \"squad.json\" } }]
[links.none]
name = \"none\"
description = \"no impairment\"
source = \"none\"
uplink = {}
downlink = {}
";

#[test]
fn an_echo_goes_through_the_whole_path_at_its_rate() {
    let lab = Lab::new();
    let grid = GRID.replace(
        "[grid]",
        "[grid]\nsystems = [\"null\"]\nloads = [{ open_loop = { rate_rps = 300.0, duration_s = 2.0, process = \"constant\" } }]",
    );
    lab.experiment(
        "echo",
        &format!("[workload]\nsend_delay_p99_ms = 10000.0\n{grid}"),
    );
    let text = assert_code(&lab.run(&["run", "echo"]), 0);
    let samples = lab.samples("echo");
    check_rows(&samples);
    assert!(samples.iter().all(Sample::ok), "{text}");
    let facts = facts(&lab, "echo");
    let (_, cell) = facts.first_key_value().unwrap();
    assert_eq!(cell.rounds.len(), 2);
    for round in &cell.rounds {
        let of_round: Vec<&Sample> = samples.iter().filter(|s| s.round == round.round).collect();
        assert!(of_round.len().abs_diff(600) <= 1, "{}", of_round.len());
        assert_eq!(round.dispatched as usize, of_round.len());
        assert_eq!((round.completed, round.failed), (round.dispatched, 0));
        assert_eq!(round.offered_rps, Some(300.0));
        // A loaded machine may stall once; most requests leave at their time.
        assert!(round.send_delay_ms.p50 < 5.0, "{:?}", round.send_delay_ms);
        assert!(round.valid && round.stopped.is_none());
        assert!(round.duration_s > 1.9, "{}", round.duration_s);
        assert!(!round.memory.is_empty() && round.edge_rss_bytes > Some(1 << 20));
        // A tenth at each end is stored and not counted.
        let of = |why: &str| {
            let excluded = |s: &&&Sample| s.excluded.as_deref() == Some(why);
            of_round.iter().filter(excluded).count()
        };
        assert!((55..=65).contains(&of("warmup")), "{}", of("warmup"));
        assert!((55..=65).contains(&of("cooldown")), "{}", of("cooldown"));
        let mut arrivals: Vec<u64> = of_round.iter().map(|s| s.scheduled_ns).collect();
        arrivals.sort_unstable();
        let gaps = arrivals.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(gaps.into_iter().all(|gap| gap.abs_diff(3_333_333) < 10));
    }
    for sample in &samples {
        assert_eq!((sample.output_tokens, sample.em), (6, None));
        assert_eq!(sample.load, "constant-300.0rps");
    }
    // Nothing is run again.
    assert_code(&lab.run(&["run", "echo", "--resume"]), 0);
    assert!(lab.samples("echo") == samples);
}

#[test]
fn systems_take_turns_under_open_and_closed_loops_and_conversations() {
    let lab = Lab::new();
    let grid = GRID.replace(
        "[grid]",
        "[grid]\nsystems = [\"edge_only\", \"cloud_only\", \"ce_lslm\"]\nloads = [\
         { open_loop = { rate_rps = 20.0, requests = 24 } },\
         { closed_loop = { repetitions = 3, concurrency = 3 } },\
         { multi_turn = { conversations = 3, turns = 2, think_ms = 20, concurrency = 2 } }]",
    );
    lab.experiment(
        "turns",
        &format!("[workload]\nsend_delay_p99_ms = 10000.0\n{grid}"),
    );
    let text = assert_code(&lab.run(&["run", "turns"]), 0);
    let samples = lab.samples("turns");
    check_rows(&samples);
    assert!(samples.iter().all(Sample::ok), "{text}");
    // 3 systems, 2 rounds of 24 open, 12 closed and 6 turns.
    assert_eq!(samples.len(), 3 * 2 * (24 + 12 + 6));
    // What an edge has fetched or computed serves the requests that follow it. (Arrivals of an open
    // loop may all come before the first is served: on a slow machine there are no such.)
    for system in ["edge_only", "ce_lslm"] {
        let mut followers = samples.iter().filter(|s| s.system == system && s.turn == 1);
        assert!(followers.all(|s| s.edge_cache_hit), "{system}");
        let waiting = |s: &&Sample| s.system == system && !s.load.starts_with("poisson");
        let kept = samples.iter().filter(waiting).filter(|s| s.edge_cache_hit);
        let kept = kept.count();
        assert!(kept > 15, "{system}: {kept} of 36");
    }
    // The rounds of a load alternate there and back.
    let mut turns: Vec<(&str, u32, &str)> = Vec::new();
    for sample in samples.iter().filter(|s| s.load.starts_with("poisson")) {
        let turn = (sample.load.as_str(), sample.round, sample.system.as_str());
        if turns.last() != Some(&turn) {
            turns.push(turn);
        }
    }
    let systems: Vec<&str> = turns.iter().map(|(_, _, system)| *system).collect();
    let forth = ["edge_only", "cloud_only", "ce_lslm"];
    let back = ["ce_lslm", "cloud_only", "edge_only"];
    assert_eq!(systems, [forth, back].concat());
    // Compared systems meet the same arrivals and questions.
    let asked = |system: &str, round: u32| -> Vec<(String, u64)> {
        let of =
            |s: &&Sample| s.system == system && s.round == round && s.load.starts_with("poisson");
        let mut of: Vec<&Sample> = samples.iter().filter(of).collect();
        of.sort_by_key(|s| s.order);
        let start = of.iter().map(|s| s.scheduled_ns).min().unwrap();
        of.iter()
            .map(|s| (s.question_id.clone(), s.scheduled_ns - start))
            .collect()
    };
    for round in 0..2 {
        assert_eq!(asked("edge_only", round), asked("ce_lslm", round));
    }
    assert_ne!(asked("edge_only", 0), asked("edge_only", 1));
    // A later turn follows the end of the one before it, and carries it along.
    let mut followed = 0;
    for turn in samples.iter().filter(|s| s.turn == 1) {
        let before = samples
            .iter()
            .find(|s| {
                (s.cell_id.as_str(), s.round, s.conversation, s.turn)
                    == (turn.cell_id.as_str(), turn.round, turn.conversation, 0)
            })
            .unwrap();
        // The end comes in a step after the last token where the model ends its turn.
        let last_token = *before.token_ns.last().unwrap();
        let pause = turn.scheduled_ns - last_token;
        assert!((20_000_000..2_000_000_000).contains(&pause), "{pause}");
        assert_eq!(turn.document_id, before.document_id);
        assert!(turn.prompt_tokens > before.prompt_tokens);
        followed += 1;
    }
    assert_eq!(followed, 3 * 2 * 3);
    for (cell, facts) in facts(&lab, "turns") {
        for round in &facts.rounds {
            let bound = match cell.contains("closed-3") {
                true => 3,
                false if cell.contains("turns2") => 2,
                false => 24,
            };
            assert!(
                round.max_in_flight <= bound,
                "{cell}: {}",
                round.max_in_flight
            );
        }
    }
}

#[test]
fn beyond_the_bound_arrivals_are_rows_and_a_level_ends_early() {
    let lab = Lab::new();
    let grid = GRID.replace(
        "[grid]",
        "[grid]\nsystems = [\"edge_only\"]\nloads = [{ open_loop = { rate_rps = 2000.0, requests = 8000 } }]",
    );
    lab.experiment(
        "over",
        &format!(
            "[workload]\nrounds = 1\nmax_in_flight = 2\nsend_delay_p99_ms = 10000.0\n\
             [workload.overload]\nfailed_share = 0.5\nwindow_s = 0.5\n{grid}"
        ),
    );
    // Refusals are the result of a load, not a failure of the run.
    let text = assert_code(&lab.run(&["run", "over"]), 0);
    let samples = lab.samples("over");
    check_rows(&samples);
    assert_eq!(samples.len(), 8000, "{text}");
    let count = |kind: &str| {
        let of = |s: &&Sample| s.error_kind.as_deref() == Some(kind);
        samples.iter().filter(of).count()
    };
    assert!(count("dropped") > 100, "{}", count("dropped"));
    assert!(count("stopped") > 1000, "{}", count("stopped"));
    let answered = samples.iter().filter(|s| s.ok()).count();
    assert!(answered > 0);
    assert_eq!(answered + count("dropped") + count("stopped"), 8000);
    let facts = facts(&lab, "over");
    let (_, cell) = facts.first_key_value().unwrap();
    let round = &cell.rounds[0];
    assert!(round.stopped.as_deref().unwrap().contains("failed"));
    assert_eq!(round.max_in_flight, 2);
    assert_eq!(round.completed as usize, answered);
    assert_eq!(round.dropped_arrivals as usize, 8000 - answered);
}

#[test]
fn a_search_runs_levels_and_says_where_it_ended() {
    let lab = Lab::new();
    let grid = GRID.replace(
        "[grid]",
        "[grid]\nsystems = [\"null\"]\nloads = [{ saturation = { start_rps = 50.0, requests_per_level = 40, max_levels = 3 } }]",
    );
    lab.experiment(
        "search",
        &format!("[workload]\nrounds = 2\nsend_delay_p99_ms = 10000.0\n{grid}"),
    );
    assert_code(&lab.run(&["run", "search"]), 0);
    let samples = lab.samples("search");
    check_rows(&samples);
    assert_eq!(samples.len(), 2 * 3 * 40);
    let facts = facts(&lab, "search");
    let (_, cell) = facts.first_key_value().unwrap();
    let levels: Vec<(u32, Option<f64>)> = cell
        .rounds
        .iter()
        .map(|round| (round.round, round.offered_rps))
        .collect();
    let rates = [50.0, 100.0, 200.0, 50.0, 100.0, 200.0];
    let expected: Vec<_> = (0..).zip(rates.map(Some)).collect();
    assert_eq!(levels, expected);
    assert_code(&lab.run(&["run", "search", "--resume"]), 0);
    assert_eq!(lab.samples("search").len(), samples.len());
}

#[test]
fn a_round_that_was_cut_off_is_made_again_from_its_start() {
    let lab = Lab::new();
    let grid = GRID.replace(
        "[grid]",
        "[grid]\nsystems = [\"null\", \"edge_only\"]\nloads = [{ open_loop = { rate_rps = 40.0, requests = 120 } }]",
    );
    lab.experiment(
        "cut",
        &format!("[workload]\nrounds = 1\nsend_delay_p99_ms = 10000.0\n{grid}"),
    );
    let mut child = Background(lab.command(&["run", "cut"]).spawn().unwrap());
    let log = follow(child.0.stderr.take().unwrap());
    // The first cell's round is over, the second's has begun to leave samples.
    wait_until("samples of the second round", || {
        let begun = |cell: std::fs::DirEntry| {
            let name = cell.file_name();
            name.to_str().unwrap().contains("edge_only")
                && cell.path().join("samples.jsonl").exists()
        };
        std::fs::read_dir(lab.path("results/cut/cells"))
            .ok()?
            .filter_map(Result::ok)
            .any(begun)
            .then_some(())
    });
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    let before = lab.samples("cut");
    assert!(before.len() > 120 && before.len() < 240, "{}", before.len());
    std::thread::sleep(Duration::from_millis(200));
    let text = assert_code(&lab.run(&["run", "cut", "--resume"]), 0);
    assert!(
        text.contains("a round was cut off"),
        "{text}\n{}",
        log.so_far()
    );
    let after = lab.samples("cut");
    check_rows(&after);
    assert_eq!(after.len(), 240);
    // The finished round is as it was, the other one all new.
    let of = |samples: &[Sample], system: &str| -> Vec<Sample> {
        let of = samples.iter().filter(|s| s.system == system);
        of.cloned().collect()
    };
    assert!(of(&before, "null") == of(&after, "null"));
    let cut = of(&before, "edge_only");
    assert!(cut.iter().all(|row| !after.contains(row)));
    let mut aside: Vec<Sample> = std::fs::read_dir(lab.path("results/cut/cells"))
        .unwrap()
        .map(|cell| cell.unwrap().path().join("samples.cut.jsonl"))
        .filter(|path| path.exists())
        .flat_map(|path| celslm_reports::read_samples(&path).unwrap().samples)
        .collect();
    aside.sort_by_key(|sample| sample.order);
    assert!(aside == cut, "{} set aside of {}", aside.len(), cut.len());
    assert_eq!(facts(&lab, "cut").len(), 2);
}
