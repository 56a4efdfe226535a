//! Controls: the questions without the context, and with another one.

use std::sync::Arc;

use celslm_datasets::{Prompt, SYSTEM_INSTRUCTION};
use celslm_model::{KvPrefix, LoadedModel};

use super::{Arm, Served};
use crate::{Case, EvaluationError, Evaluator};

/// The instruction alone, without a document: what the model knows by itself or guesses.
#[derive(Debug, Clone, Copy)]
pub struct NoContext;

impl Arm for NoContext {
    fn serve(&self, evaluator: &Evaluator<'_>, _: &Case<'_>) -> Result<Served, EvaluationError> {
        prefill(evaluator.model, SYSTEM_INSTRUCTION).map(Served::unsent)
    }
}

/// Another document of the set: what a document of the right kind is worth, whatever it says.
#[derive(Debug, Clone, Copy)]
pub struct WrongContext;

impl Arm for WrongContext {
    fn serve(&self, evaluator: &Evaluator<'_>, case: &Case<'_>) -> Result<Served, EvaluationError> {
        prefill(evaluator.model, &Prompt::system(case.other())).map(Served::unsent)
    }
}

fn prefill(model: &LoadedModel, system: &str) -> Result<Arc<KvPrefix>, EvaluationError> {
    let tokens = model.context_tokens(system)?;
    let block = model.decoder.context_kv(&tokens, || true)?;
    let block = block.ok_or_else(|| EvaluationError::Arm("the prefill was stopped".to_owned()))?;
    Ok(Arc::new(KvPrefix::from_block(
        &block,
        model.decoder.rope(),
    )?))
}
