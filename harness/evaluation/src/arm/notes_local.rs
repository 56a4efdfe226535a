//! Context and notes as the edge computes them itself.

use super::{Arm, Served};
use crate::{Case, EvaluationError, Evaluator};

/// The edge gets the cloud model's notes as text and prefills them with the context: the twin of
/// [`NotesKv`](super::NotesKv). The two are one computation with two accounts. What they have over
/// the context alone is what notes are worth; that they are handed over as KV saves the edge's work
/// and adds nothing to the answers.
#[derive(Debug, Clone, Copy)]
pub struct NotesLocal {
    /// Most tokens of the notes.
    pub notes_tokens: usize,
}

impl Arm for NotesLocal {
    fn serve(&self, evaluator: &Evaluator<'_>, case: &Case<'_>) -> Result<Served, EvaluationError> {
        let bytes = case.notes(evaluator, self.notes_tokens)?.len() as u64;
        Ok(Served {
            payload_bytes: bytes,
            message_bytes: bytes,
            ..Served::computed(case.noted(evaluator, self.notes_tokens)?.prefix.clone())
        })
    }
}
