//! One context under one arm, as recorded.
//!
//! An evaluation appends one JSON line per arm and context to `cells/<cell-id>/contexts.jsonl`, so
//! that a run which is cut off goes on behind the last whole line. Sums and raw figures only;
//! ratios, means and intervals are derived from them.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::ReportError;
use crate::files;

/// Version of an evaluation's rows. Samples and reports of runs over a link have their own.
pub const EVALUATION_SCHEMA_VERSION: u32 = 4;

/// Version of an evaluation's [`EVALUATION_FILE`] and of the tables that are made of it and the rows.
pub const EVALUATION_FILE_VERSION: u32 = 5;

/// File of a cell's rows, in the cell's folder.
pub const EVALUATION_ROWS: &str = "contexts.jsonl";

/// What an evaluation's report states beside the rows, in the results folder.
pub const EVALUATION_FILE: &str = "evaluation-input.json";

/// A longer line is no row; the bound keeps a damaged file from filling memory.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// What an arm is in a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArmKind {
    /// What the others are compared with: the edge's own, uncompressed KV.
    Reference,
    /// A method under test.
    Method,
    /// What a method must beat to have shown anything.
    Control,
}

/// What the cloud's model has to do with a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloudPart {
    /// It answers itself.
    Alone,
    /// What it makes of the context reaches the edge.
    Informs,
    /// The method is made like one that it informs, without what it knows: that one's own control.
    Withheld,
}

/// What tells one arm of an evaluation from another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArmIdentity {
    /// Id of the arm over one data set, also its folder's name.
    pub cell_id: String,
    /// Data set, label.
    pub dataset: String,
    /// What it is in the comparison.
    pub kind: ArmKind,
    /// The method that it is a setting of; one line in a chart.
    pub family: String,
    /// Name of the arm in tables: a preset's name, or the id of what it does.
    pub name: String,
    /// Id of the codec chain; `None` where the KV is not encoded.
    pub codec: Option<String>,
    /// Bytes of what both ends hold beforehand, whatever the number of contexts; no part of
    /// [`ContextRow::message_bytes`].
    pub artefact_bytes: u64,
    /// What the cloud's model has to do with it; `None` where it takes no part.
    pub cloud: Option<CloudPart>,
    /// Seconds that it took to fit and to train what the arm maps through, once for any number of
    /// contexts; `None` where there is nothing of the kind, or where its maker did not say.
    pub fit_s: Option<f64>,
    /// Whether it is tuned to each context anew: [`ContextRow::encode_ns`] is what that takes.
    pub tuned_per_context: bool,
    /// Names of the arms over the same data set that are made alike without what the cloud's model
    /// knows of the context, or that the configuration wants it held against as such.
    pub own_controls: Vec<String>,
}

/// One context under one arm, with all of its questions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContextRow {
    /// Version of this shape, [`EVALUATION_SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The cell that it belongs to.
    pub cell_id: String,
    /// The context: the cluster of its questions in every interval.
    pub context_id: String,
    /// Tokens of the context.
    pub context_tokens: u64,
    /// Tokens that attention may read, summed over layers.
    pub held_token_layers: u64,
    /// Tokens times layers of the context.
    pub token_layers: u64,
    /// fp16 bytes of the context's KV.
    pub fp16_bytes: u64,
    /// Encoded bytes; 0 where nothing is encoded.
    pub payload_bytes: u64,
    /// Bytes of the messages that carry them: payloads, hashes, headers and all. Without the
    /// framing of HTTP/2, TCP and IP.
    pub message_bytes: u64,
    /// Tokens times layers of what stands for the context that the edge computed itself. The
    /// questions are not in it.
    pub edge_token_layers: u64,
    /// What the payload bytes are spent on, in the order of the stages; empty for a context whose
    /// account was not taken.
    pub parts: Vec<BytePart>,
    /// Time to encode on one thread, ns.
    pub encode_ns: u64,
    /// Time to decode on one thread, ns.
    pub decode_ns: u64,
    /// Distortion, layer by layer; empty where the KV is the reference's own or there is none.
    pub layers: Vec<LayerRow>,
    /// The context's questions.
    pub questions: Vec<QuestionRow>,
}

/// A part of a payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BytePart {
    /// Stage and what it wrote, for example "context symbols".
    pub part: String,
    /// Bytes.
    pub bytes: u64,
}

/// Distortion of one layer's KV, over the tokens that the arm holds. The first four, whose norms
/// are far beyond those of all others, count in the attention error only.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerRow {
    /// Layer, from 0.
    pub layer: u32,
    /// Mean squared error of the pre-RoPE keys.
    pub k_mse: f64,
    /// Variance of the exact keys, channel by channel, averaged.
    pub k_variance: f64,
    /// Mean cosine between exact and decoded key, per token and head.
    pub k_cosine: f64,
    /// Mean squared error of the values.
    pub v_mse: f64,
    /// Variance of the exact values, channel by channel, averaged.
    pub v_variance: f64,
    /// Mean cosine between exact and decoded value, per token and head.
    pub v_cosine: f64,
    /// Squared error of what the questions' queries read from the layer, relative to the squared
    /// norm of what they read from the exact KV; dropped tokens count here.
    pub attention_error: f64,
}

/// One question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuestionRow {
    /// Question.
    pub question_id: String,
    /// What the model answered; `None` where only likelihoods are taken.
    pub answer: Option<String>,
    /// Tokens of the answer.
    pub output_tokens: u64,
    /// Exact match, 0 or 1.
    pub em: Option<f64>,
    /// Word F1.
    pub f1: Option<f64>,
    /// Negative log-likelihood of the gold answer, nats, summed over its tokens.
    pub nll: f64,
    /// Tokens of the gold answer.
    pub nll_tokens: u64,
    /// Kullback-Leibler divergence of the next-token distribution from the reference's, nats,
    /// summed over the positions of the gold answer; `None` for the reference itself.
    pub kl: Option<f64>,
    /// Positions at which the most likely token is the reference's.
    pub top1: Option<u64>,
    /// Positions that `kl` and `top1` are over.
    pub positions: u64,
}

/// What an evaluation's report states beside the rows; stored as [`EVALUATION_FILE`], so that the
/// report can be built again from the folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationInput {
    /// Version of this shape, [`EVALUATION_FILE_VERSION`].
    pub schema_version: u32,
    /// The results folder; not stored, as the folder may be moved.
    #[serde(skip)]
    pub dir: PathBuf,
    /// Heading of the report.
    pub title: String,
    /// What was run and why; an empty line ends a paragraph.
    pub description: String,
    /// Sentences that a reader must know.
    pub notes: Vec<String>,
    /// Facts about the machine and the build, in display order.
    pub environment: Vec<(String, String)>,
    /// The planned arms in plan order, whether they ran or not.
    pub arms: Vec<ArmIdentity>,
    /// Contexts that each arm is planned for, by data set label.
    pub contexts: Vec<(String, u64)>,
}

impl EvaluationInput {
    /// Reads the input stored in `dir`; `None` where the folder has none.
    ///
    /// # Errors
    /// A file that cannot be read, or one of another version or shape.
    pub fn read(dir: &Path) -> Result<Option<Self>, ReportError> {
        let path = dir.join(EVALUATION_FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ReportError::Read { path, source }),
        };
        let mut input: Self = serde_json::from_slice(&bytes).map_err(|source| {
            other_version(&path, &bytes, EVALUATION_FILE_VERSION).unwrap_or_else(|| {
                ReportError::Json {
                    path: path.clone(),
                    source,
                }
            })
        })?;
        if input.schema_version != EVALUATION_FILE_VERSION {
            return Err(ReportError::Schema {
                path,
                found: input.schema_version,
                expected: EVALUATION_FILE_VERSION,
            });
        }
        dir.clone_into(&mut input.dir);
        Ok(Some(input))
    }

    /// Stores the input in its folder.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self) -> Result<(), ReportError> {
        let path = self.dir.join(EVALUATION_FILE);
        let mut text = serde_json::to_string_pretty(self).map_err(|source| ReportError::Json {
            path: path.clone(),
            source,
        })?;
        text.push('\n');
        files::write(&path, text.as_bytes())
    }
}

/// The rows of a cell.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RowFile {
    /// Whole lines, in the order in which they were written.
    pub rows: Vec<ContextRow>,
    /// Bytes of whole lines: where a file whose last line a kill has torn is to be cut.
    pub whole_bytes: u64,
}

/// Reads a cell's rows. A file that does not exist has none; a last line without its end is left
/// out.
///
/// # Errors
/// A file that cannot be read, and a whole line that is no row, with its number.
pub fn read_rows(path: &Path) -> Result<RowFile, ReportError> {
    let read = |source| ReportError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(RowFile::default());
        }
        Err(source) => return Err(read(source)),
    };
    let mut reader = BufReader::new(file);
    let mut found = RowFile::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        let bytes = (&mut reader)
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut line)
            .map_err(read)?;
        if line.last() != Some(&b'\n') {
            return Ok(found);
        }
        let row: ContextRow = serde_json::from_slice(&line).map_err(|source| {
            other_version(path, &line, EVALUATION_SCHEMA_VERSION).unwrap_or_else(|| {
                ReportError::BadSample {
                    path: path.to_owned(),
                    line: found.rows.len() + 1,
                    reason: source.to_string(),
                }
            })
        })?;
        if row.schema_version != EVALUATION_SCHEMA_VERSION {
            return Err(ReportError::Schema {
                path: path.to_owned(),
                found: row.schema_version,
                expected: EVALUATION_SCHEMA_VERSION,
            });
        }
        found.rows.push(row);
        found.whole_bytes += bytes as u64;
    }
}

/// Another version, which is the likely reason for another shape.
fn other_version(path: &Path, json: &[u8], expected: u32) -> Option<ReportError> {
    #[derive(Deserialize)]
    struct Version {
        schema_version: u32,
    }
    let found = serde_json::from_slice::<Version>(json).ok()?.schema_version;
    (found != expected).then(|| ReportError::Schema {
        path: path.to_owned(),
        found,
        expected,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_another_version_are_called_that() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(EVALUATION_ROWS);
        for (line, part) in [
            ("{\"schema_version\": 3, \"cell_id\": \"a\"}\n", "3"),
            ("{\"schema_version\": 4, \"cell_id\": \"a\"}\n", "line 1"),
            ("{\"cell_id\": 7}\n", "line 1"),
        ] {
            std::fs::write(&path, line).unwrap();
            let error = read_rows(&path).unwrap_err();
            let is_version = matches!(error, ReportError::Schema { found: 3, .. });
            assert_eq!(is_version, part == "3", "{error}");
            assert!(error.to_string().contains(part), "{error}");
        }
        let input = dir.path().join(EVALUATION_FILE);
        std::fs::write(&input, "{\"schema_version\": 3}").unwrap();
        let error = EvaluationInput::read(dir.path()).unwrap_err();
        assert!(
            matches!(error, ReportError::Schema { found: 3, .. }),
            "{error}"
        );
    }
}
