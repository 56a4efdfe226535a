//! KV of a context that the cloud has tuned for the edge's model before anything is asked.

use std::fmt;
use std::sync::Arc;

use celslm_datasets::Question;
use celslm_model::{KvPrefix, LoadedModel};
use celslm_training::{Distiller, Distributions, FrozenDecoder, Sequence, TrainingOptions};

use super::{Arm, Served};
use crate::answering::write_tokens;
use crate::{Case, EvaluationError, Evaluator, study};

/// Questions that a step learns from.
const AT_A_TIME: usize = 4;
/// Most tokens of an answer that is learnt from.
const ANSWER_TOKENS: usize = 16;

/// Whose distributions are learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Teacher {
    /// The cloud's model, which has read the context.
    Cloud,
    /// The edge's model, from its own KV of the context: the control. It sees the same questions
    /// and answers, and can pass on nothing but the form of answers.
    Edge,
}

/// The cloud's model asks itself about the context and answers (self-study, arXiv 2506.06266); the
/// edge model's KV of the context is tuned until that model says what the teacher says. The edge
/// computes nothing, and nothing of its questions is known.
#[derive(Clone)]
pub struct Distilled {
    /// The edge's model, for gradients.
    pub decoder: Arc<FrozenDecoder>,
    /// The teacher.
    pub teacher: Teacher,
    /// The KV has this part of the context's tokens: it begins at the first of them.
    pub reduction: usize,
    /// Steps.
    pub steps: usize,
}

impl fmt::Debug for Distilled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Distilled")
            .field("teacher", &self.teacher)
            .field("reduction", &self.reduction)
            .field("steps", &self.steps)
            .finish_non_exhaustive()
    }
}

impl Arm for Distilled {
    fn serve(&self, evaluator: &Evaluator<'_>, case: &Case<'_>) -> Result<Served, EvaluationError> {
        let cloud = evaluator.cloud()?;
        let start = (evaluator.settings.now_ns)();
        let (tokens, source) = case.source(evaluator)?;
        if tokens != case.tokens() {
            return Err(EvaluationError::Arm(
                "the two models do not share a tokenizer: the cloud's distributions are of other \
                 tokens"
                    .to_owned(),
            ));
        }
        let read = Arc::new(KvPrefix::from_block(source, cloud.decoder.rope())?);
        let lessons = case.lessons(|| lessons(cloud, &read, case))?;
        let teach = |sequence: &Sequence| {
            let one = std::slice::from_ref(sequence);
            match self.teacher {
                Teacher::Cloud => Distributions::of(&cloud.decoder, &read, one),
                Teacher::Edge => Distributions::of(&evaluator.model.decoder, case.prefix(), one),
            }
        };
        let taught = lessons.iter().map(teach).collect::<Result<Vec<_>, _>>()?;
        let length = case.tokens().len().div_ceil(self.reduction.max(1));
        let own = case.block().slice_tokens(0..length.max(2))?;
        let steps = self.steps as u64;
        let options = TrainingOptions {
            steps,
            learning_rate: 0.02,
            warm_up: (steps / 10).max(1),
            attention: 0.0,
            divergence: 1.0,
        };
        let mut distiller = Distiller::new(&self.decoder, &own, options)?;
        for step in 0..self.steps {
            let chosen = (0..AT_A_TIME.min(lessons.len()))
                .map(|index| (step * AT_A_TIME + index) % lessons.len());
            let (mut sequences, mut teacher) = (Vec::new(), Distributions::default());
            for index in chosen {
                sequences.push(lessons[index].clone());
                teacher.extend(&taught[index]);
            }
            distiller.step(&sequences, &teacher)?;
        }
        let block = distiller.block()?;
        let prefix = KvPrefix::from_block(&block, evaluator.model.decoder.rope())?;
        let bytes = block.fp16_bytes();
        Ok(Served {
            payload_bytes: bytes,
            message_bytes: bytes,
            encode_ns: (evaluator.settings.now_ns)().saturating_sub(start),
            ..Served::unsent(Arc::new(prefix))
        })
    }
}

/// What the cloud's model asks about the context, with its own answers.
fn lessons(
    cloud: &LoadedModel,
    read: &Arc<KvPrefix>,
    case: &Case<'_>,
) -> Result<Vec<Sequence>, EvaluationError> {
    let document = case.document();
    let contexts = [(Arc::clone(read), document)];
    let questions = study::questions(cloud, &contexts, study::REQUESTS.len())?.concat();
    let prompt = |question: &Question| Ok((read, study::prompt_tokens(cloud, document, question)?));
    let said = questions
        .iter()
        .map(prompt)
        .collect::<Result<Vec<_>, EvaluationError>>()?;
    let answers = write_tokens(cloud, &said, ANSWER_TOKENS)?;
    let sequence = |((_, mut tokens), written): ((_, Vec<u32>), Vec<u32>)| {
        let answer = tokens.len();
        tokens.extend(written);
        Sequence { tokens, answer }
    };
    let lessons: Vec<Sequence> = said.into_iter().zip(answers).map(sequence).collect();
    if lessons.is_empty() {
        return Err(EvaluationError::Arm(
            "the cloud's model wrote no question that the context answers".to_owned(),
        ));
    }
    Ok(lessons)
}
