//! Evaluations in process: what a context's KV is still worth after a method has been at it.
//!
//! No link, no nodes, no clock of its own: the KV of a context is computed once, each [`Arm`] makes
//! of it what an edge would hold in the end, and the model answers the context's questions from
//! that. All arms meet the same questions with the same tokens, so that a difference between two of
//! them is the arms'.
//!
//! ```text
//! Document ─► Case (exact KV, reference answers) ─► Arm::serve ─► Served ─► ContextRow
//! ```

mod answering;
pub mod arm;
mod case;
mod distortion;
mod error;
mod framing;
mod noise;
mod notes;
mod sensitivity;
pub mod study;

pub use arm::{Arm, Served};
pub use case::Case;
pub use error::EvaluationError;
pub use sensitivity::Sensitivity;

use celslm_kv::{BlockSpec, KvChunk};
use celslm_model::LoadedModel;
use celslm_reports::evaluation::{ContextRow, EVALUATION_SCHEMA_VERSION};

use answering::ask;

/// What every arm of an evaluation has in common.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Most tokens of an answer.
    pub max_tokens: usize,
    /// Tokens of one chunk.
    pub chunk_tokens: usize,
    /// Questions, of one arm or of several, that are computed together; results do not depend on
    /// it.
    pub batch: usize,
    /// Monotonic time in ns, for the speed of encoding and decoding.
    pub now_ns: fn() -> u64,
    /// Bytes of the messages that would carry the chunks of a block under a codec id.
    pub message_bytes: fn(&BlockSpec, &str, &[KvChunk]) -> Result<u64, String>,
}

/// Evaluates arms on contexts with the edge's model.
pub struct Evaluator<'a> {
    /// The edge's model, which answers.
    pub model: &'a LoadedModel,
    /// The cloud's, for arms that need it.
    pub cloud: Option<&'a LoadedModel>,
    /// The settings.
    pub settings: Settings,
}

impl<'a> Evaluator<'a> {
    /// The cloud's model.
    ///
    /// # Errors
    /// [`EvaluationError::Arm`] where there is none.
    pub(crate) fn cloud(&self) -> Result<&'a LoadedModel, EvaluationError> {
        let missing = || EvaluationError::Arm("the cloud's model was not loaded".to_owned());
        self.cloud.ok_or_else(missing)
    }

    /// What one arm does with one context. `arm` is `None` for the reference: the context's own KV,
    /// as it was computed.
    ///
    /// # Errors
    /// What the arm refuses, and failures of the model.
    pub fn row(
        &self,
        cell_id: &str,
        case: &Case<'_>,
        arm: Option<&dyn Arm>,
    ) -> Result<ContextRow, EvaluationError> {
        let mut rows = self.rows(case, &[(cell_id, arm)])?;
        rows.pop()
            .unwrap_or_else(|| Err(EvaluationError::Arm("no arm was given".to_owned())))
    }

    /// How many arms are best evaluated together on a context: their answers are computed in one
    /// batch.
    #[must_use]
    pub fn arms_together(&self, case: &Case<'_>) -> usize {
        (self.settings.batch / case.asked().len().max(1)).max(1)
    }

    /// What several arms, each with the id of its cell, do with one context. An arm that refuses
    /// has its error in its place.
    ///
    /// # Errors
    /// Failures of the model.
    pub fn rows(
        &self,
        case: &Case<'_>,
        arms: &[(&str, Option<&dyn Arm>)],
    ) -> Result<Vec<Result<ContextRow, EvaluationError>>, EvaluationError> {
        let mut rows = Vec::with_capacity(arms.len());
        let mut prefixes = Vec::with_capacity(arms.len());
        for (cell_id, arm) in arms {
            let served = match arm {
                None => Ok(Served::own(case)),
                Some(arm) => arm.serve(self, case),
            };
            let row = served.and_then(|served| {
                let row = self.unanswered(cell_id, case, &served)?;
                Ok((row, served.prefix))
            });
            rows.push(row.map(|(row, prefix)| {
                prefixes.push((rows.len(), prefix));
                row
            }));
        }
        let mut sequences = Vec::new();
        let mut owners = Vec::new();
        for (index, prefix) in &prefixes {
            if rows[*index]
                .as_ref()
                .is_ok_and(|row| !row.questions.is_empty())
            {
                continue;
            }
            for (question, asked) in case.asked().iter().enumerate() {
                sequences.push((prefix, asked));
                owners.push((*index, question));
            }
        }
        ask(self.model, &sequences, self.settings, |at, reading| {
            let (index, question) = owners[at];
            if let Ok(row) = &mut rows[index] {
                let row_of = case.asked()[question].row(&reading, case.reference(question));
                row.questions.push(row_of);
            }
        })?;
        Ok(rows)
    }

    /// A row without the questions that the arm leaves to the evaluator.
    fn unanswered(
        &self,
        cell_id: &str,
        case: &Case<'_>,
        served: &Served,
    ) -> Result<ContextRow, EvaluationError> {
        let shape = self.model.decoder.kv_shape();
        let tokens = case.tokens().len();
        let layers = match &served.decoded {
            Some(decoded) => distortion::by_layer(self.model, case, decoded, &served.prefix)?,
            None => Vec::new(),
        };
        let held = (0..shape.num_layers).filter_map(|layer| served.prefix.held(layer));
        Ok(ContextRow {
            schema_version: EVALUATION_SCHEMA_VERSION,
            cell_id: cell_id.to_owned(),
            context_id: case.document().id.clone(),
            context_tokens: tokens as u64,
            held_token_layers: held.map(|held| held as u64).sum(),
            token_layers: (tokens * shape.num_layers) as u64,
            fp16_bytes: shape.fp16_bytes(tokens),
            payload_bytes: served.payload_bytes,
            message_bytes: served.message_bytes,
            edge_token_layers: served.edge_token_layers as u64,
            parts: served.parts.clone(),
            encode_ns: served.encode_ns,
            decode_ns: served.decode_ns,
            layers,
            questions: served.answered.clone().unwrap_or_default(),
        })
    }
}
