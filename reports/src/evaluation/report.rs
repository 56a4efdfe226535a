//! From a folder of rows to its report.

use crate::error::ReportError;
use crate::frame as files;
use crate::report::{Report, unplanned_cells};

use super::arm::{Board, read};
use super::row::{EVALUATION_FILE, EvaluationInput};
use super::{frame, views};

/// How the figures are defined, at the end of the report of an evaluation.
const DEFINITIONS: &[&str] = &[
    "In process: one context's KV is encoded, decoded and given to the model, which answers all of the context's questions from it. There is no link; times are stated apart and are no benchmark.",
    "Wire ratio: fp16 bytes of the KV / bytes of the messages that carry it, headers, hashes, scales and tables included; the framing of HTTP/2, TCP and IP is not (about 3.5% more, at segments of 1,448 bytes). Nominal ratio: the same fp16 bytes / encoded bytes. Sums over contexts. What both ends hold beforehand is in neither.",
    "Bits per number: encoded bits / numbers of the fp16 KV, dropped tokens included. Held: tokens that attention may read, share of tokens times layers.",
    "EM and F1: SQuAD-normalised exact match and word F1 of the greedy answer, generated from a cache that never saw the gold answer.",
    "NLL: negative log-likelihood of the gold answer, teacher-forced token by token from a cache that saw the prompt and nothing of the answer before; nats per gold token over all questions.",
    "KL: of the reference's next-token distribution from the arm's, KL(reference ‖ arm), over the positions of the gold answer, mean. Top-1: share of these positions at which the most likely token is the same.",
    "ΔF1, ΔEM, ΔNLL: arm − reference on the same questions; for NLL weighted by gold tokens.",
    "Distortion: over the tokens that the arm holds; keys before RoPE. MSE / variance is the sum of squared errors over contexts against the sum of the exact numbers' variance within each channel, layer by layer, then the mean over layers. Attention error: squared error of what the questions' own queries read from a layer, relative to the squared norm of what they read from the exact KV; dropped tokens count in it.",
    "Intervals are 95% percentile bootstrap intervals from 2,000 resamples of whole contexts, with a fixed seed.",
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

    let (leading, following) = views::tables(&boards);
    let mut report = Report {
        title: input.title.clone(),
        description: input.description.clone(),
        findings: Vec::new(),
        leading_tables: leading.len(),
        tables: [leading, following].concat(),
        figures: Vec::new(),
        notes,
        environment: input.environment.clone(),
        files: vec![EVALUATION_FILE.into()],
        compact: compact(&boards, &input.title),
        definitions: DEFINITIONS,
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
    boards
        .iter()
        .map(|board| views::compact(board, title))
        .collect()
}
