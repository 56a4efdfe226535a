//! From a folder of rows to its report.

use crate::error::ReportError;
use crate::frame as files;
use crate::report::{Report, unplanned_cells};

use super::arm::{Board, read};
use super::cloud::takes_part;
use super::family::codec_families;
use super::figures::figures;
use super::findings::findings;
use super::row::{EVALUATION_FILE, EvaluationInput};
use super::{frame, views};

/// How the figures are defined, at the end of the report of an evaluation.
const DEFINITIONS: &[&str] = &[
    "In process: one context's KV is encoded, decoded and given to the model, which answers all of the context's questions from it. There is no link; times are stated apart and are no benchmark.",
    "Wire ratio: fp16 bytes of the KV / bytes of the messages that carry it, headers, hashes, scales and tables included; the framing of HTTP/2, TCP and IP is not (about 3.5% more, at segments of 1,448 bytes). Nominal ratio: the same fp16 bytes / encoded bytes. Sums over contexts. What both ends hold beforehand is in neither.",
    "Bits per number: encoded bits / numbers of the fp16 KV, dropped tokens included. Held: tokens that attention may read, share of tokens times layers. Computed at the edge: tokens times layers of what stands for the context that the edge computed itself, as a share of those of the context; handed-over KV is none of it.",
    "EM and F1: SQuAD-normalised exact match and word F1 of the greedy answer, generated from a cache that never saw the gold answer.",
    "NLL: negative log-likelihood of the gold answer, teacher-forced token by token from a cache that saw the prompt and nothing of the answer before; nats per gold token over all questions.",
    "KL: of the reference's next-token distribution from the arm's, KL(reference ‖ arm), over the positions of the gold answer, mean. Top-1: share of these positions at which the most likely token is the same.",
    "ΔF1, ΔEM, ΔNLL: arm − reference on the same questions; for NLL weighted by gold tokens.",
    "Distortion: over the tokens that the arm holds; keys before RoPE. MSE / variance is the sum of squared errors over contexts against the sum of the exact numbers' variance within each channel, layer by layer, then the mean over layers. Attention error: squared error of what the questions' own queries read from a layer, relative to the squared norm of what they read from the exact KV; dropped tokens count in it.",
    "Intervals are 95% percentile bootstrap intervals from 2,000 resamples of whole contexts, with a fixed seed.",
];

/// The same of what is stated only where the cloud's model takes part.
const CLOUD_DEFINITIONS: &[&str] = &[
    "Best control: of those planned, the one that answers best on the data set. Own control: the arm that is made alike without what the cloud's model knows of the context. Better and worse: the whole interval of the paired difference is on that side of 0. Gap closed: (arm − reference) / (cloud alone − reference), both summed over the questions that all three answered; stated where the cloud is clearly ahead.",
    "Fit: wall-clock seconds of fitting and of training the arm's bridge, on the machine and the threads that made it; loading models and writing lessons are not in it. Of an arm that is tuned to each context, the mean time of that, beside everything else.",
];

/// Builds the report of an evaluation's folder and writes it there: `summary.parquet`,
/// `summary.csv`, `questions.parquet`, `layers.parquet`, `report.md`, `report.html`,
/// `figures/*.svg` and the input itself. The same rows and input give the same files.
///
/// # Errors
/// A row that is not valid, with its file and line, and files that cannot be read or
/// written. Arms that did not run are no errors: the report names them.
pub fn build(input: &EvaluationInput) -> Result<Report, ReportError> {
    let boards = read(input)?;
    let mut notes = input.notes.clone();
    let unplanned = unplanned_cells(&input.dir, |name| {
        input.arms.iter().any(|arm| arm.cell_id == name)
    })?;
    if !unplanned.is_empty() {
        notes.push(format!(
            "Cells in the folder that the plan does not name were left out: {}.",
            unplanned.join(", ")
        ));
    }
    input.write()?;

    let clouded = boards.iter().any(takes_part);
    let cloud_definitions: &[&str] = match clouded {
        true => CLOUD_DEFINITIONS,
        false => &[],
    };
    let (leading, following) = views::tables(&boards);
    let mut report = Report {
        title: input.title.clone(),
        description: input.description.clone(),
        findings: findings(&boards),
        leading_tables: leading.len(),
        tables: [leading, following].concat(),
        figures: figures(&boards),
        notes,
        environment: input.environment.clone(),
        files: vec![EVALUATION_FILE.into()],
        compact: compact(&boards, &input.title),
        definitions: [DEFINITIONS, cloud_definitions].concat(),
    };
    let summary = frame::summary(&boards)?;
    files::write_csv(summary.clone(), &input.dir.join("summary.csv"))?;
    report.files.push("summary.csv".into());
    for (kind, frame) in [
        ("summary", summary),
        ("questions", frame::questions(&boards)?),
        ("layers", frame::layers(&boards)?),
    ] {
        let file = format!("{kind}.parquet");
        files::write_parquet(frame, &input.dir.join(&file), kind)?;
        report.files.push(file.into());
    }
    report.write(&input.dir)?;
    Ok(report)
}

fn compact(boards: &[Board], title: &str) -> Vec<crate::table::Table> {
    // Where the cloud's model takes part, families of codecs are there only if they were asked for.
    let told = |board: &&Board| !takes_part(board) || !codec_families(board).is_empty();
    let families = boards.iter().filter(told);
    let families = families.map(|board| views::compact(board, title));
    let across = views::compact_overview(boards, title);
    across.into_iter().chain(families).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Topic;
    use crate::evaluation::fixture;
    use crate::evaluation::row::{ArmKind, EVALUATION_ROWS};
    use crate::table::Value;

    fn keep(dir: &std::path::Path, variable: &str) {
        if let Some(copy) = std::env::var_os(variable) {
            std::fs::copy(dir.join("report.html"), copy).unwrap();
        }
    }

    fn clean(report: &Report) {
        for figure in &report.figures {
            assert!(
                !figure.svg.contains("NaN") && !figure.svg.contains("inf"),
                "{}",
                figure.name
            );
        }
    }

    #[test]
    fn the_markdown_report() {
        let dir = tempfile::tempdir().unwrap();
        let report = build(&fixture::run(dir.path())).unwrap();
        keep(dir.path(), "CELSLM_KEEP_FIXTURE_EVALUATION");
        insta::assert_snapshot!("the_markdown_report_of_an_evaluation", report.markdown());
    }

    #[test]
    fn the_terminal_report() {
        let dir = tempfile::tempdir().unwrap();
        let text = build(&fixture::run(dir.path())).unwrap().terminal();
        assert!(text.lines().all(|l| l.chars().count() <= 120), "{text}");
        insta::assert_snapshot!("the_terminal_report_of_an_evaluation", text);
    }

    #[test]
    fn the_reports_of_arms_with_the_cloud() {
        let dir = tempfile::tempdir().unwrap();
        let report = build(&fixture::clouds(dir.path(), 2)).unwrap();
        insta::assert_snapshot!("the_markdown_report_with_the_cloud", report.markdown());
        insta::assert_snapshot!("the_terminal_report_with_the_cloud", report.terminal());
        clean(&report);
        // Nothing about codec families, which there are none of.
        assert!(report.findings.iter().all(|f| !f.text.contains("famil")));
        let titles: Vec<_> = report.tables.iter().map(|t| t.title.as_str()).collect();
        assert_eq!(titles[..2], ["Arms and data sets", "All arms, squad"]);
    }

    #[test]
    fn seven_data_sets_fit_on_a_terminal() {
        let dir = tempfile::tempdir().unwrap();
        let report = build(&fixture::clouds(dir.path(), fixture::SETS.len())).unwrap();
        keep(dir.path(), "CELSLM_KEEP_FIXTURE_CLOUDS");
        let text = report.terminal();
        assert!(text.lines().all(|l| l.chars().count() <= 120), "{text}");
        let table = text.split("\n\n").next().unwrap().to_owned();
        insta::assert_snapshot!("the_terminal_table_of_seven_data_sets", table);
        assert_eq!(report.tables[0].columns.len(), 4 + fixture::SETS.len());
        assert!(
            report.tables[0]
                .rows
                .iter()
                .all(|row| row.len() == 4 + fixture::SETS.len())
        );
    }

    #[test]
    fn every_file_is_there_and_can_be_built_again_from_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let input = fixture::run(dir.path());
        let report = build(&input).unwrap();
        let read = || -> Vec<Vec<u8>> {
            let files = report.files.iter();
            files
                .map(|f| std::fs::read(dir.path().join(f)).unwrap())
                .collect()
        };
        let first = read();
        for name in [
            "summary.parquet",
            "summary.csv",
            "questions.parquet",
            "layers.parquet",
            "report.md",
            "report.html",
        ] {
            assert!(report.files.contains(&name.into()), "{name}");
        }
        let figures: Vec<_> = report.figures.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(
            figures,
            [
                "f1_by_ratio",
                "nll_by_ratio",
                "kl_by_ratio",
                "attention_by_ratio"
            ]
        );
        clean(&report);
        let stored = EvaluationInput::read(dir.path()).unwrap().unwrap();
        assert_eq!(build(&stored).unwrap(), report);
        assert_eq!(read(), first);
    }

    #[test]
    fn only_comparable_arms_are_drawn() {
        let dir = tempfile::tempdir().unwrap();
        let report = build(&fixture::run(dir.path())).unwrap();
        for figure in &report.figures {
            assert!(figure.svg.contains("celslm-16x: "), "{}", figure.name);
            assert!(!figure.svg.contains("kvtc-32x"), "{}", figure.name);
        }
        let caption = &report.figures[0].caption;
        assert!(caption.contains("no_context"), "{caption}");
    }

    #[test]
    fn a_crowd_of_families_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let input = fixture::crowd(dir.path());
        let report = build(&input).unwrap();
        keep(dir.path(), "CELSLM_KEEP_FIXTURE_CROWD");
        clean(&report);
        for figure in &report.figures {
            for arm in input.arms.iter().filter(|a| a.kind == ArmKind::Method) {
                assert!(figure.svg.contains(&format!(">{}<", arm.family)));
            }
        }
        let warned = report
            .texts(Topic::Validity)
            .any(|t| t.contains("Warning: the control wrong_context"));
        assert!(warned, "{:#?}", report.findings);
    }

    #[test]
    fn several_data_sets_are_kept_apart() {
        let dir = tempfile::tempdir().unwrap();
        let mut input = fixture::run(dir.path());
        // The same rows under another label and other cells.
        for arm in input.arms.clone() {
            let mut other = arm.clone();
            other.cell_id = format!("{}-xquad", arm.cell_id);
            other.dataset = "xquad".into();
            let cell = |id: &str| dir.path().join("cells").join(id).join(EVALUATION_ROWS);
            if let Ok(text) = std::fs::read_to_string(cell(&arm.cell_id)) {
                let path = cell(&other.cell_id);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                let from = format!("\"cell_id\":\"{}\"", arm.cell_id);
                let to = format!("\"cell_id\":\"{}\"", other.cell_id);
                std::fs::write(path, text.replace(&from, &to)).unwrap();
            }
            input.arms.push(other);
        }
        input
            .contexts
            .push(("xquad".into(), fixture::CONTEXTS as u64));
        let report = build(&input).unwrap();
        let titles: Vec<_> = report.tables.iter().map(|t| t.title.as_str()).collect();
        assert!(titles.contains(&"All arms, squad") && titles.contains(&"All arms, xquad"));
        let table = |title: &str| report.tables.iter().find(|t| t.title == title).unwrap();
        assert_eq!(table("All arms, squad").rows, table("All arms, xquad").rows);
        assert_eq!(report.leading_tables, 2);
        assert!(report.figures.iter().any(|f| f.name == "f1_by_ratio_2"));
        assert!(
            report
                .findings
                .iter()
                .any(|f| f.text.starts_with("xquad: "))
        );
    }

    #[test]
    fn little_or_nothing_is_reported_as_such() {
        let dir = tempfile::tempdir().unwrap();
        let mut input = fixture::run(dir.path());
        let all = input.arms.clone();
        input.arms.clear();
        let report = build(&input).unwrap();
        assert_eq!((report.tables.len(), report.figures.len()), (0, 0));
        assert_eq!(report.findings[0].text, "No arm was planned.");
        assert!(report.notes.iter().any(|n| n.contains("celslm-8x")));

        // A reference and one arm: one point a figure.
        input.arms = all.clone();
        input
            .arms
            .retain(|a| matches!(a.name.as_str(), "exact" | "celslm-8x"));
        let report = build(&input).unwrap();
        assert_eq!(report.figures.len(), 4);
        clean(&report);

        // Without the reference there is no loss to state, but there are scores.
        input.arms = all.clone();
        input.arms.retain(|a| a.kind != ArmKind::Reference);
        let report = build(&input).unwrap();
        clean(&report);
        let names: Vec<_> = report.figures.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names, ["f1_by_ratio", "kl_by_ratio", "attention_by_ratio"]);
        assert!(report.tables[0].rows.iter().all(|r| r[1] == Value::Missing));
        assert!(report.markdown().contains("The reference has no rows"));

        // Planned and not begun.
        let empty = tempfile::tempdir().unwrap();
        input.arms = all;
        input.dir = empty.path().to_owned();
        let report = build(&input).unwrap();
        assert_eq!(report.figures, []);
        assert!(
            report
                .markdown()
                .contains("Not run, 15 arms: exact, no_context")
        );
        assert!(empty.path().join("questions.parquet").exists());
    }
}
