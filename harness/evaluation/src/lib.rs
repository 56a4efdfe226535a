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
mod sensitivity;

pub use arm::{Arm, Served};
pub use case::Case;
pub use error::EvaluationError;
pub use sensitivity::Sensitivity;

use celslm_kv::{BlockSpec, KvChunk};
use celslm_model::LoadedModel;
use celslm_reports::SCHEMA_VERSION;
use celslm_reports::evaluation::{ContextRow, QuestionRow};

use answering::{Reading, ask};

/// What every arm of an evaluation has in common.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Most tokens of an answer.
    pub max_tokens: usize,
    /// Tokens of one chunk.
    pub chunk_tokens: usize,
    /// Questions that are computed together; results do not depend on it.
    pub batch: usize,
    /// Monotonic time in ns, for the speed of encoding and decoding.
    pub now_ns: fn() -> u64,
    /// Bytes of the messages that would carry the chunks of a block under a codec id.
    pub message_bytes: fn(&BlockSpec, &str, &[KvChunk]) -> Result<u64, String>,
}

/// Evaluates arms on contexts with the edge's model.
pub struct Evaluator<'a> {
    /// The model that answers.
    pub model: &'a LoadedModel,
    /// The settings.
    pub settings: Settings,
}

impl Evaluator<'_> {
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
        let shape = self.model.decoder.kv_shape();
        let tokens = case.tokens().len();
        let served = match arm {
            None => Served::own(case),
            Some(arm) => arm.serve(self, case)?,
        };
        let layers = match &served.decoded {
            Some(decoded) => distortion::by_layer(self.model, case, decoded, &served.prefix)?,
            None => Vec::new(),
        };
        let held = (0..shape.num_layers).filter_map(|layer| served.prefix.held(layer));
        let questions = match arm {
            None => case.reference_rows(),
            Some(_) => self.questions(case, &served)?,
        };
        Ok(ContextRow {
            schema_version: SCHEMA_VERSION,
            cell_id: cell_id.to_owned(),
            context_id: case.document().id.clone(),
            context_tokens: tokens as u64,
            held_token_layers: held.map(|held| held as u64).sum(),
            token_layers: (tokens * shape.num_layers) as u64,
            fp16_bytes: shape.fp16_bytes(tokens),
            payload_bytes: served.payload_bytes,
            message_bytes: served.message_bytes,
            parts: served.parts,
            encode_ns: served.encode_ns,
            decode_ns: served.decode_ns,
            layers,
            questions,
        })
    }

    fn questions(
        &self,
        case: &Case<'_>,
        served: &Served,
    ) -> Result<Vec<QuestionRow>, EvaluationError> {
        let mut rows = Vec::with_capacity(case.asked().len());
        ask(
            self.model,
            &served.prefix,
            case.asked(),
            self.settings,
            |index, reading: Reading<'_>| {
                let asked = &case.asked()[index];
                rows.push(asked.row(&reading, case.reference(index)));
            },
        )?;
        Ok(rows)
    }
}
