//! KV of a context that the cloud has tuned for the edge's model before anything is asked.

use std::fmt;
use std::sync::Arc;

use celslm_datasets::{Document, Question};
use celslm_kv::KvBlock;
use celslm_model::{KvPrefix, LoadedModel};
use celslm_training::{Distiller, Distributions, FrozenDecoder, Sequence, TrainingOptions};

use super::{Arm, Served, prefill};
use crate::answering::write_tokens;
use crate::{Case, EvaluationError, Evaluator, framing, study};

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

/// Which context is studied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Studied {
    /// The one that is asked about.
    Own,
    /// Another one: of its tuned KV the tokens that both begin with stand before the context's own. A
    /// control, which passes on the form of answers and the cloud's way of reading, and nothing of the
    /// context.
    Other,
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
    /// What is studied.
    pub studied: Studied,
    /// The KV has this part of the context's tokens: it begins at the first of them.
    pub reduction: usize,
    /// Steps.
    pub steps: usize,
}

impl fmt::Debug for Distilled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Distilled")
            .field("teacher", &self.teacher)
            .field("studied", &self.studied)
            .field("reduction", &self.reduction)
            .field("steps", &self.steps)
            .finish_non_exhaustive()
    }
}

impl Arm for Distilled {
    fn serve(&self, evaluator: &Evaluator<'_>, case: &Case<'_>) -> Result<Served, EvaluationError> {
        let start = (evaluator.settings.now_ns)();
        let block = match self.studied {
            Studied::Own => {
                let (_, source) = case.source(evaluator)?;
                let own = Context {
                    document: case.document(),
                    tokens: case.tokens(),
                    source,
                    block: case.block(),
                };
                let read = own.read(evaluator)?;
                let lessons = case.lessons(|| lessons(evaluator.cloud()?, &read, own.document))?;
                self.tune(evaluator, &own, &read, lessons)?
            }
            Studied::Other => {
                let cloud = evaluator.cloud()?;
                let tokens = framing::document_tokens(evaluator.model, case.other())?;
                let source = prefill(cloud, &tokens)?;
                let block = prefill(evaluator.model, &tokens)?;
                let other = Context {
                    document: case.other(),
                    tokens: &tokens,
                    source: &source,
                    block: &block,
                };
                let read = other.read(evaluator)?;
                let lessons = lessons(cloud, &read, other.document)?;
                let tuned = self.tune(evaluator, &other, &read, &lessons)?;
                let same = case.tokens().iter().zip(other.tokens);
                let same = same.take_while(|(a, b)| a == b).count();
                let mut begun = self.begin(case.tokens().len(), case.block())?;
                let same = same.min(begun.num_tokens()).min(tuned.num_tokens());
                if same > 0 {
                    begun.replace_tokens(0..same, &tuned)?;
                }
                begun
            }
        };
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

/// A context that is studied.
struct Context<'a> {
    document: &'a Document,
    tokens: &'a [u32],
    /// The cloud model's KV.
    source: &'a KvBlock,
    /// The edge model's.
    block: &'a KvBlock,
}

impl Context<'_> {
    /// As the cloud's model reads it.
    fn read(&self, evaluator: &Evaluator<'_>) -> Result<Arc<KvPrefix>, EvaluationError> {
        let cloud = evaluator.cloud()?;
        if framing::document_tokens(cloud, self.document)? != self.tokens {
            return Err(EvaluationError::Arm(
                "the two models do not share a tokenizer: the cloud's distributions are of other \
                 tokens"
                    .to_owned(),
            ));
        }
        let prefix = KvPrefix::from_block(self.source, cloud.decoder.rope())?;
        Ok(Arc::new(prefix))
    }
}

impl Distilled {
    /// The KV that tuning begins at: the first tokens of the context's.
    fn begin(&self, tokens: usize, block: &KvBlock) -> Result<KvBlock, EvaluationError> {
        let length = tokens.div_ceil(self.reduction.max(1));
        Ok(block.slice_tokens(0..length.max(2))?)
    }

    fn tune(
        &self,
        evaluator: &Evaluator<'_>,
        context: &Context<'_>,
        read: &Arc<KvPrefix>,
        lessons: &[Sequence],
    ) -> Result<KvBlock, EvaluationError> {
        let cloud = evaluator.cloud()?;
        let own = Arc::new(KvPrefix::from_block(
            context.block,
            evaluator.model.decoder.rope(),
        )?);
        let teach = |sequence: &Sequence| {
            let one = std::slice::from_ref(sequence);
            match self.teacher {
                Teacher::Cloud => Distributions::of(&cloud.decoder, read, one),
                Teacher::Edge => Distributions::of(&evaluator.model.decoder, &own, one),
            }
        };
        let taught = lessons.iter().map(teach).collect::<Result<Vec<_>, _>>()?;
        let steps = self.steps as u64;
        let options = TrainingOptions {
            steps,
            learning_rate: 0.02,
            warm_up: (steps / 10).max(1),
            attention: 0.0,
            divergence: 1.0,
        };
        let begun = self.begin(context.tokens.len(), context.block)?;
        let mut distiller = Distiller::new(&self.decoder, &begun, options)?;
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
        Ok(distiller.block()?)
    }
}

/// What the cloud's model asks about the context, with its own answers.
fn lessons(
    cloud: &LoadedModel,
    read: &Arc<KvPrefix>,
    document: &Document,
) -> Result<Vec<Sequence>, EvaluationError> {
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
