//! The cloud's knowledge of a context as text.

use celslm_datasets::Prompt;

use super::{Arm, Served, prefilled};
use crate::{Case, EvaluationError, Evaluator, framing, notes};

/// The cloud's model writes notes of the context, and the edge prefills them in the context's place:
/// a few hundred bytes cross the link. What the notes leave out is lost.
///
/// The whole system message around the notes counts as sent.
#[derive(Debug, Clone, Copy)]
pub struct TextHandoff {
    /// Most tokens of the notes.
    pub notes_tokens: usize,
}

impl Arm for TextHandoff {
    fn serve(&self, evaluator: &Evaluator<'_>, case: &Case<'_>) -> Result<Served, EvaluationError> {
        let document =
            notes::instead_of(case.document(), &case.notes(evaluator, self.notes_tokens)?);
        let tokens = framing::document_tokens(evaluator.model, &document)?;
        let bytes = Prompt::system(&document).len() as u64;
        Ok(Served {
            payload_bytes: bytes,
            message_bytes: bytes,
            ..Served::computed(prefilled(evaluator.model, &tokens)?)
        })
    }
}
