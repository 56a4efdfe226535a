//! KV of a context that the cloud has tuned for the edge's model before anything is asked.

use std::cell::OnceCell;
use std::fmt;
use std::sync::Arc;

use celslm_datasets::{Document, Question, recall_questions};
use celslm_kv::{Bridge, KvBlock};
use celslm_model::{KvPrefix, LoadedModel};
use celslm_training::{Distiller, Distributions, FrozenDecoder, Sequence, TrainingOptions};

use super::{Arm, Served, prefill};
use crate::answering::write_tokens;
use crate::{Case, EvaluationError, Evaluator, framing, study};

/// Highest learning rate: of those tried on calibration text, between the two with which questions that
/// were held out gained; at 0.02 they lose.
const LEARNING_RATE: f64 = 0.003;
/// Questions that a step learns from.
const AT_A_TIME: usize = 4;
/// Most tokens of an answer that is learnt from.
const ANSWER_TOKENS: usize = 16;
/// Of every so many questions one is held out.
const HELD_OUT: usize = 4;
/// Steps between looks at the questions that are held out.
const CHECKED_EVERY: usize = 8;
/// Of so many questions one asks for the words that follow others in the context: what nobody asks
/// about must not be forgotten.
const RECALL: usize = 4;
/// Words that such a question quotes, and asks for.
const RECALLED: (usize, usize) = (8, 6);

/// What a context's KV is tuned on.
#[derive(Default)]
pub(crate) struct Lessons {
    learnt: Vec<Sequence>,
    /// Others, which say where to stop.
    held_out: Vec<Sequence>,
    /// What the cloud's model says at them, and the edge's, once one was asked: arms share it.
    by_cloud: OnceCell<Taught>,
    by_edge: OnceCell<Taught>,
}

/// What a teacher says at the answers of lessons, one by one.
struct Taught {
    learnt: Vec<Distributions>,
    held_out: Vec<Distributions>,
}

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
/// edge model's KV of the context is tuned until that model says what the teacher says. Of what was
/// found on the way, the KV is kept with which it does so best at questions that are held out. The
/// edge computes nothing, and nothing of its questions is known.
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
    /// A bridge of first tokens: tuning begins behind these in place of the edge's own.
    pub first_tokens: Option<Arc<Bridge>>,
}

impl fmt::Debug for Distilled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Distilled")
            .field("teacher", &self.teacher)
            .field("studied", &self.studied)
            .field("reduction", &self.reduction)
            .field("steps", &self.steps)
            .field("first_tokens", &self.first_tokens.is_some())
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
                let mut begun = self.begin(case.tokens(), case.block())?;
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
    fn begin(&self, tokens: &[u32], block: &KvBlock) -> Result<KvBlock, EvaluationError> {
        let length = tokens.len().div_ceil(self.reduction.max(1)).max(2);
        let begun = block.slice_tokens(0..length)?;
        Ok(match &self.first_tokens {
            Some(bridge) => bridge.behind_first_tokens(begun, tokens)?,
            None => begun,
        })
    }

    fn tune(
        &self,
        evaluator: &Evaluator<'_>,
        context: &Context<'_>,
        read: &Arc<KvPrefix>,
        lessons: &Lessons,
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
        let known = match self.teacher {
            Teacher::Cloud => &lessons.by_cloud,
            Teacher::Edge => &lessons.by_edge,
        };
        let taught = match known.get() {
            Some(taught) => taught,
            None => {
                let all = |sequences: &[Sequence]| -> Result<Vec<_>, _> {
                    sequences.iter().map(teach).collect()
                };
                let new = Taught {
                    learnt: all(&lessons.learnt)?,
                    held_out: all(&lessons.held_out)?,
                };
                known.get_or_init(|| new)
            }
        };
        let learnt = &lessons.learnt;
        let steps = self.steps as u64;
        let options = TrainingOptions {
            steps,
            learning_rate: LEARNING_RATE,
            warm_up: (steps / 10).max(1),
            attention: 0.0,
            divergence: 1.0,
        };
        let begun = self.begin(context.tokens, context.block)?;
        let mut distiller = Distiller::new(&self.decoder, &begun, options)?;
        let held_out = |distiller: &Distiller<'_>| -> Result<f64, EvaluationError> {
            let (mut sum, mut rows) = (0.0, 0);
            for (sequence, expected) in lessons.held_out.iter().zip(&taught.held_out) {
                let losses = distiller.evaluate(std::slice::from_ref(sequence), expected)?;
                sum += losses.kl * expected.rows() as f64;
                rows += expected.rows();
            }
            // Without any, the last is as good as another.
            Ok(sum / rows.max(1) as f64)
        };
        let mut best = (held_out(&distiller)?, begun);
        for step in 1..=self.steps {
            let chosen = (0..AT_A_TIME.min(learnt.len()))
                .map(|index| ((step - 1) * AT_A_TIME + index) % learnt.len());
            let (mut sequences, mut teacher) = (Vec::new(), Distributions::default());
            for index in chosen {
                sequences.push(learnt[index].clone());
                teacher.extend(&taught.learnt[index]);
            }
            distiller.step(&sequences, &teacher)?;
            if step % CHECKED_EVERY == 0 || step == self.steps {
                let kl = held_out(&distiller)?;
                if kl <= best.0 {
                    best = (kl, distiller.block()?);
                }
            }
        }
        Ok(best.1)
    }
}

/// What the cloud's model asks about the context and its passages, with its own answers, and
/// questions of recall.
fn lessons(
    cloud: &LoadedModel,
    read: &Arc<KvPrefix>,
    document: &Document,
) -> Result<Lessons, EvaluationError> {
    let contexts = [(Arc::clone(read), document)];
    let requests = |document: &Document| {
        let mut requests = study::about_all(study::REQUESTS.len());
        requests.extend(study::about_passages(document));
        requests
    };
    let questions = study::questions(cloud, &contexts, requests)?.concat();
    let prompt = |question: &Question| study::prompt_tokens(cloud, document, question);
    let said = questions
        .iter()
        .map(|question| Ok((read, prompt(question)?)))
        .collect::<Result<Vec<_>, EvaluationError>>()?;
    let answers = write_tokens(cloud, &said, ANSWER_TOKENS)?;
    let sequence = |mut tokens: Vec<u32>, answer: &[u32]| {
        let start = tokens.len();
        tokens.extend(answer);
        Sequence {
            tokens,
            answer: start,
        }
    };
    let (quoted, asked) = RECALLED;
    let recall = recall_questions(&document.text, quoted, asked);
    // Spread over the whole text.
    let apart = (recall.len() * (RECALL - 1) / questions.len().max(1)).max(1);
    let mut recall = recall.iter().step_by(apart);
    let mut found = Lessons::default();
    for (index, ((_, tokens), answer)) in said.into_iter().zip(answers).enumerate() {
        let one = sequence(tokens, &answer);
        if index % HELD_OUT == HELD_OUT - 1 {
            found.held_out.push(one);
            continue;
        }
        found.learnt.push(one);
        if found.learnt.len() % RECALL == RECALL - 1
            && let Some(question) = recall.next()
        {
            let gold = question.gold().concat();
            let answer = cloud.tokenizer.encode(&gold)?;
            found.learnt.push(sequence(prompt(question)?, &answer));
        }
    }
    match found.learnt.is_empty() {
        false => Ok(found),
        true => Err(EvaluationError::Arm(
            "the cloud's model wrote no question that the context answers".to_owned(),
        )),
    }
}
