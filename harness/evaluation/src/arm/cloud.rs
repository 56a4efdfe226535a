//! The cloud's model alone: what the edge could gain at the most.

use std::sync::Arc;

use celslm_model::KvPrefix;

use super::{Arm, Served};
use crate::answering::ask;
use crate::{Case, EvaluationError, Evaluator};

/// The cloud's model reads context and question and answers. Nothing of that is the edge's, and
/// the private prompt is uploaded.
#[derive(Debug, Clone, Copy)]
pub struct CloudAlone;

impl Arm for CloudAlone {
    fn serve(&self, evaluator: &Evaluator<'_>, case: &Case<'_>) -> Result<Served, EvaluationError> {
        let cloud = evaluator.cloud()?;
        let (_, block) = case.source(evaluator)?;
        let prefix = Arc::new(KvPrefix::from_block(block, cloud.decoder.rope())?);
        let asked = Case::asked_of(cloud, case.document())?;
        let sequences: Vec<_> = asked.iter().map(|asked| (&prefix, asked)).collect();
        let mut rows = Vec::with_capacity(asked.len());
        ask(cloud, &sequences, evaluator.settings, |index, reading| {
            rows.push(asked[index].row(&reading, None));
        })?;
        Ok(Served {
            answered: Some(rows),
            ..Served::unsent(case.prefix().clone())
        })
    }
}
