//! Controls: the questions without the context, and with another one.

use celslm_datasets::Prompt;

use super::{Arm, Served, prefilled};
use crate::{Case, EvaluationError, Evaluator, framing};

/// The instruction alone, without a document: what the model knows by itself or guesses. A message
/// that is left open has no text.
#[derive(Debug, Clone, Copy)]
pub struct NoContext;

impl Arm for NoContext {
    fn serve(&self, evaluator: &Evaluator<'_>, case: &Case<'_>) -> Result<Served, EvaluationError> {
        let (model, document) = (evaluator.model, case.document());
        let instruction = Prompt::instruction(document);
        let tokens = framing::context_tokens(model, document.framing, instruction)?;
        prefilled(model, &tokens).map(Served::computed)
    }
}

/// Another document of the set: what a document of the right kind is worth, whatever it says.
#[derive(Debug, Clone, Copy)]
pub struct WrongContext;

impl Arm for WrongContext {
    fn serve(&self, evaluator: &Evaluator<'_>, case: &Case<'_>) -> Result<Served, EvaluationError> {
        let tokens = framing::document_tokens(evaluator.model, case.other())?;
        prefilled(evaluator.model, &tokens).map(Served::computed)
    }
}
