//! Context and notes as KV that the cloud has computed.

use super::{Arm, Served};
use crate::{Case, EvaluationError, Evaluator};

/// The cloud's model writes notes of the context; the cloud prefills the context with its notes in
/// the edge's model and hands all of that KV over, uncompressed. The edge computes nothing.
///
/// [`NotesLocal`](super::NotesLocal) is its twin: the same tokens in the same model, so the same KV
/// and answers, computed at the other end.
#[derive(Debug, Clone, Copy)]
pub struct NotesKv {
    /// Most tokens of the notes.
    pub notes_tokens: usize,
}

impl Arm for NotesKv {
    fn serve(&self, evaluator: &Evaluator<'_>, case: &Case<'_>) -> Result<Served, EvaluationError> {
        let noted = case.noted(evaluator, self.notes_tokens)?;
        let bytes = evaluator.model.decoder.kv_shape().fp16_bytes(noted.tokens);
        Ok(Served {
            payload_bytes: bytes,
            message_bytes: bytes,
            ..Served::unsent(noted.prefix.clone())
        })
    }
}
