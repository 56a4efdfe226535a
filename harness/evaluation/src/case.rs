//! One context with everything that arms are measured against.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;

use celslm_datasets::{AnswerForm, Document, SCORERS, same_number};
use celslm_kv::codec::{ScoredBy, TokenScores};
use celslm_kv::{KvBlock, SourceKind};
use celslm_model::{KeyRetention, KvCache, KvPrefix, LoadedModel, ModelError};
use celslm_reports::evaluation::QuestionRow;

use crate::answering::{Reading, ask};
use crate::arm::Lessons;
use crate::{EvaluationError, Evaluator, arm, framing, notes};

/// Last tokens of each question whose queries measure the error of attention.
const QUERY_TOKENS: usize = 4;

/// Tokens of a gold answer at which distributions are kept and compared: a row of the vocabulary is
/// hundreds of kilobytes, and a worked solution has hundreds of tokens.
const COMPARED_TOKENS: usize = 64;

/// A question in tokens.
pub(crate) struct Asked {
    id: String,
    /// The private rest of the prompt.
    pub(crate) prompt: Vec<u32>,
    /// The preferred answer; at least one token.
    pub(crate) gold: Vec<u32>,
    answers: Vec<String>,
    answerable: bool,
    form: AnswerForm,
    /// Tokens that the answer may take, where the data set says.
    answer_tokens: Option<usize>,
    /// Options in tokens and in words, where one is to be chosen.
    pub(crate) choices: Vec<(Vec<u32>, String)>,
}

/// A distribution over the vocabulary at every position of a gold answer.
pub(crate) struct Distributions {
    /// Log-probabilities, `[positions, vocab_size]`.
    log_probs: Vec<Vec<f32>>,
}

/// A context: its tokens, its exact KV, its questions, and what the model makes of them from that
/// KV. All in memory: about 25 kB a token of context, and a row of the vocabulary for every token
/// of a gold answer up to its 64th.
pub struct Case<'a> {
    document: &'a Document,
    /// Another document, for the control that answers from the wrong one.
    other: &'a Document,
    tokens: Vec<u32>,
    block: KvBlock,
    prefix: Arc<KvPrefix>,
    asked: Vec<Asked>,
    reference: Vec<Distributions>,
    rows: Vec<QuestionRow>,
    /// Rotated queries of the questions by layer, `[rows, num_heads, head_dim]`, and what they
    /// read from the exact KV.
    queries: Vec<Vec<f32>>,
    attended: Vec<Vec<f32>>,
    scores: RefCell<Vec<(ScoredBy, Arc<TokenScores>)>>,
    accounted: bool,
    source: OnceCell<(Vec<u32>, KvBlock)>,
    states: OnceCell<(Vec<u32>, KvBlock)>,
    /// By the tokens that notes may have.
    notes: RefCell<BTreeMap<usize, Arc<str>>>,
    noted: RefCell<BTreeMap<usize, Arc<Noted>>>,
    lessons: OnceCell<Lessons>,
}

/// A context with the notes of it, read by the edge's model.
pub(crate) struct Noted {
    /// Ready for attention.
    pub(crate) prefix: Arc<KvPrefix>,
    /// Tokens of both.
    pub(crate) tokens: usize,
}

impl<'a> Case<'a> {
    /// Computes the context's KV and the reference. `other` is a document that is not asked about.
    /// `Ok(None)` when `proceed` said stop.
    ///
    /// # Errors
    /// Failures of the model or its tokenizer.
    pub fn new(
        evaluator: &Evaluator<'_>,
        document: &'a Document,
        other: &'a Document,
        proceed: impl FnMut() -> bool,
    ) -> Result<Option<Self>, EvaluationError> {
        let model = evaluator.model;
        let tokens = framing::document_tokens(model, document)?;
        let Some(block) = model.decoder.context_kv(&tokens, proceed)? else {
            return Ok(None);
        };
        let prefix = Arc::new(KvPrefix::from_block(&block, model.decoder.rope())?);
        let asked = Self::asked_of(model, document)?;
        let mut rows = Vec::with_capacity(asked.len());
        let mut reference = Vec::with_capacity(asked.len());
        let sequences: Vec<_> = asked.iter().map(|asked| (&prefix, asked)).collect();
        ask(model, &sequences, evaluator.settings, |index, reading| {
            rows.push(asked[index].row(&reading, None));
            reference.push(Distributions {
                log_probs: reading
                    .gold
                    .iter()
                    .take(COMPARED_TOKENS)
                    .map(|l| log_softmax(l))
                    .collect(),
            });
        })?;
        let queries = queries(model, &prefix, &asked)?;
        let attended = queries
            .iter()
            .enumerate()
            .map(|(layer, rows)| model.decoder.attention_output(layer, rows, &prefix))
            .collect::<Result<_, _>>()?;
        Ok(Some(Self {
            document,
            other,
            tokens,
            block,
            prefix,
            asked,
            reference,
            rows,
            queries,
            attended,
            scores: RefCell::default(),
            accounted: true,
            source: OnceCell::new(),
            states: OnceCell::new(),
            notes: RefCell::default(),
            noted: RefCell::default(),
            lessons: OnceCell::new(),
        }))
    }

    /// A document's questions in a model's tokens.
    pub(crate) fn asked_of(
        model: &LoadedModel,
        document: &Document,
    ) -> Result<Vec<Asked>, EvaluationError> {
        let mut asked = Vec::with_capacity(document.questions.len());
        for question in &document.questions {
            let (prompt, gold) = framing::asked_tokens(model, document, question)?;
            let option = |text: &String| -> Result<(Vec<u32>, String), EvaluationError> {
                let tokens = model.tokenizer.encode(text.trim())?;
                match tokens.is_empty() {
                    false => Ok((tokens, text.clone())),
                    true => Err(EvaluationError::Arm(format!(
                        "question {} of {} has an empty option",
                        question.id, document.id
                    ))),
                }
            };
            asked.push(Asked {
                choices: question
                    .options()
                    .iter()
                    .map(option)
                    .collect::<Result<_, _>>()?,
                id: question.id.clone(),
                prompt,
                gold,
                form: question.form.clone(),
                answer_tokens: document.answer_tokens,
                answers: question.answers.clone(),
                answerable: question.answerable,
            });
        }
        Ok(asked)
    }

    /// The context's tokens and pre-RoPE KV in the cloud's model, computed at their first use.
    pub(crate) fn source(
        &self,
        evaluator: &Evaluator<'_>,
    ) -> Result<&(Vec<u32>, KvBlock), EvaluationError> {
        self.read(evaluator, SourceKind::Kv)
    }

    /// The context's tokens and what a bridge reads of them in the cloud's model, computed at the
    /// first use.
    pub(crate) fn read(
        &self,
        evaluator: &Evaluator<'_>,
        kind: SourceKind,
    ) -> Result<&(Vec<u32>, KvBlock), EvaluationError> {
        let held = match kind {
            SourceKind::Kv => &self.source,
            SourceKind::States => &self.states,
        };
        if let Some(source) = held.get() {
            return Ok(source);
        }
        let cloud = evaluator.cloud()?;
        let tokens = framing::document_tokens(cloud, self.document)?;
        let block = cloud.decoder.context_source(kind, &tokens, || true)?;
        let stopped = || EvaluationError::Arm("the prefill was stopped".to_owned());
        let source = (tokens, block.ok_or_else(stopped)?);
        Ok(held.get_or_init(|| source))
    }

    /// What the cloud's model notes down of the context, written at its first use.
    pub(crate) fn notes(
        &self,
        evaluator: &Evaluator<'_>,
        notes_tokens: usize,
    ) -> Result<Arc<str>, EvaluationError> {
        if let Some(notes) = self.notes.borrow().get(&notes_tokens) {
            return Ok(Arc::clone(notes));
        }
        let notes: Arc<str> = notes::written(evaluator, self, notes_tokens)?.into();
        self.notes
            .borrow_mut()
            .insert(notes_tokens, Arc::clone(&notes));
        Ok(notes)
    }

    /// Context and notes in the edge's model, computed at their first use.
    pub(crate) fn noted(
        &self,
        evaluator: &Evaluator<'_>,
        notes_tokens: usize,
    ) -> Result<Arc<Noted>, EvaluationError> {
        if let Some(noted) = self.noted.borrow().get(&notes_tokens) {
            return Ok(Arc::clone(noted));
        }
        let document = notes::beside(self.document, &self.notes(evaluator, notes_tokens)?);
        let tokens = framing::document_tokens(evaluator.model, &document)?;
        let noted = Arc::new(Noted {
            prefix: arm::prefilled(evaluator.model, &tokens)?,
            tokens: tokens.len(),
        });
        self.noted
            .borrow_mut()
            .insert(notes_tokens, Arc::clone(&noted));
        Ok(noted)
    }

    /// What the context's KV is tuned on, as `write` makes it at the first use.
    pub(crate) fn lessons(
        &self,
        write: impl FnOnce() -> Result<Lessons, EvaluationError>,
    ) -> Result<&Lessons, EvaluationError> {
        if let Some(lessons) = self.lessons.get() {
            return Ok(lessons);
        }
        let lessons = write()?;
        Ok(self.lessons.get_or_init(|| lessons))
    }

    /// The case with or without accounts of what its payloads are spent on, which cost a second
    /// decoding.
    #[must_use]
    pub fn accounted(self, accounted: bool) -> Self {
        Self { accounted, ..self }
    }

    pub(crate) const fn is_accounted(&self) -> bool {
        self.accounted
    }

    /// The document.
    #[must_use]
    pub const fn document(&self) -> &Document {
        self.document
    }

    /// A document that is not asked about.
    #[must_use]
    pub const fn other(&self) -> &Document {
        self.other
    }

    /// The context's tokens.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Its KV as computed, pre-RoPE.
    #[must_use]
    pub const fn block(&self) -> &KvBlock {
        &self.block
    }

    /// Its KV, ready for attention.
    #[must_use]
    pub const fn prefix(&self) -> &Arc<KvPrefix> {
        &self.prefix
    }

    /// Scores of its tokens, computed at their first use.
    ///
    /// # Errors
    /// Failures of the model.
    pub fn scores(
        &self,
        model: &LoadedModel,
        by: ScoredBy,
    ) -> Result<Arc<TokenScores>, ModelError> {
        if let Some((_, scores)) = self.scores.borrow().iter().find(|(own, _)| *own == by) {
            return Ok(scores.clone());
        }
        let scores = Arc::new(model.decoder.token_scores(&self.tokens, by)?);
        self.scores.borrow_mut().push((by, scores.clone()));
        Ok(scores)
    }

    pub(crate) fn asked(&self) -> &[Asked] {
        &self.asked
    }

    pub(crate) fn reference(&self, index: usize) -> Option<&Distributions> {
        self.reference.get(index)
    }

    pub(crate) fn reference_rows(&self) -> Vec<QuestionRow> {
        self.rows.clone()
    }

    /// Queries of the questions at a layer, and what they read from the exact KV.
    pub(crate) fn attention(&self, layer: usize) -> (&[f32], &[f32]) {
        (&self.queries[layer], &self.attended[layer])
    }
}

/// Queries of the last tokens of every question, by layer, as they are with the exact KV.
fn queries(
    model: &LoadedModel,
    prefix: &Arc<KvPrefix>,
    asked: &[Asked],
) -> Result<Vec<Vec<f32>>, ModelError> {
    let shape = model.decoder.kv_shape();
    let width = {
        let config = model.decoder.config();
        config.num_attention_heads * config.head_dim
    };
    let mut queries = vec![Vec::new(); shape.num_layers];
    for question in asked {
        let mut cache = KvCache::new(
            shape,
            Some(prefix.clone()),
            question.prompt.len(),
            KeyRetention::RotatedOnly,
        )?;
        model
            .decoder
            .observe(&question.prompt, &mut cache, |observed| {
                let wanted = (QUERY_TOKENS * width).min(observed.queries.len());
                let last = &observed.queries[observed.queries.len() - wanted..];
                queries[observed.layer].extend_from_slice(last);
            })?;
    }
    Ok(queries)
}

impl Asked {
    /// Tokens that the model may write; 0 where nothing is generated.
    pub(crate) fn answer_tokens(&self, most: usize) -> usize {
        match self.form {
            AnswerForm::Options(_) | AnswerForm::Continuation => 0,
            AnswerForm::Span | AnswerForm::Solution => self.answer_tokens.unwrap_or(most),
        }
    }

    /// The row of a reading, compared with the reference where there is one.
    pub(crate) fn row(
        &self,
        reading: &Reading<'_>,
        reference: Option<&Distributions>,
    ) -> QuestionRow {
        let grade = |name: &str| -> Option<f64> {
            let yes = |right: bool| f64::from(u8::from(right));
            let answer = reading.answer.as_deref()?;
            match &self.form {
                AnswerForm::Continuation => None,
                AnswerForm::Options(_) => {
                    Some(yes(self.answers.iter().any(|right| right == answer)))
                }
                AnswerForm::Solution => {
                    let mut right = self.answers.iter();
                    Some(yes(right.any(|right| same_number(answer, right))))
                }
                AnswerForm::Span => SCORERS
                    .iter()
                    .find(|scorer| scorer.name() == name)
                    .map(|scorer| scorer.score(answer, &self.answers, self.answerable)),
            }
        };
        let positions = self.gold.len().min(COMPARED_TOKENS) as u64;
        let mut nll = 0.0;
        let mut kl = 0.0;
        let mut top1 = 0;
        for (index, (logits, token)) in reading.gold.iter().zip(&self.gold).enumerate() {
            let norm = log_sum_exp(logits);
            nll += norm - f64::from(logits[*token as usize]);
            if let Some(own) = reference.and_then(|r| r.log_probs.get(index)) {
                kl += divergence(own, logits, norm);
                top1 += u64::from(best(own) == best(logits));
            }
        }
        QuestionRow {
            question_id: self.id.clone(),
            answer: reading.answer.clone(),
            output_tokens: reading.output_tokens as u64,
            em: grade("exact_match"),
            f1: grade("f1"),
            nll,
            nll_tokens: self.gold.len() as u64,
            kl: reference.map(|_| kl),
            top1: reference.map(|_| top1),
            positions,
        }
    }
}

pub(crate) fn log_sum_exp(logits: &[f32]) -> f64 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from((x - top).exp())).sum();
    f64::from(top) + sum.ln()
}

fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let norm = log_sum_exp(logits);
    logits
        .iter()
        .map(|x| (f64::from(*x) - norm) as f32)
        .collect()
}

/// KL divergence of the distribution behind `logits` from the one with these log-probabilities.
fn divergence(own: &[f32], logits: &[f32], norm: f64) -> f64 {
    let terms = own.iter().zip(logits).map(|(own, logit)| {
        let (own, other) = (f64::from(*own), f64::from(*logit) - norm);
        f64::from((own as f32).exp()) * (own - other)
    });
    // Rounding may push a sum of nothing below zero.
    terms.sum::<f64>().max(0.0)
}

/// The most likely token; the lowest id on a tie.
fn best(x: &[f32]) -> usize {
    let mut best = 0;
    for (index, value) in x.iter().enumerate() {
        if *value > x[best] {
            best = index;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_of_answer_has_its_own_grade() {
        let asked = |form| Asked {
            id: "q".to_owned(),
            prompt: vec![1],
            gold: vec![0; COMPARED_TOKENS + 1],
            answers: vec!["9 * 2 = 18.\n#### 18".to_owned()],
            answerable: true,
            form,
            answer_tokens: Some(7),
            choices: Vec::new(),
        };
        let logits = vec![&[0.0f32, 0.0][..]; COMPARED_TOKENS + 1];
        let graded = |form, answer: Option<&str>| {
            let reading = Reading {
                answer: answer.map(str::to_owned),
                output_tokens: 3,
                gold: &logits,
            };
            let row = asked(form).row(&reading, None);
            let nll = logits.len() as f64 * 2f64.ln();
            assert!((row.nll - nll).abs() < 1e-9, "over all tokens");
            assert_eq!(row.nll_tokens as usize, logits.len());
            assert_eq!(row.positions as usize, COMPARED_TOKENS);
            (row.em, row.f1)
        };
        let (right, wrong) = ((Some(1.0), Some(1.0)), (Some(0.0), Some(0.0)));
        let solution = || AnswerForm::Solution;
        assert_eq!(graded(solution(), Some("She makes $18.00.")), right);
        assert_eq!(graded(solution(), Some("18 or 81")), wrong);
        let options = || AnswerForm::Options(Vec::new());
        assert_eq!(graded(options(), Some("18")), wrong);
        assert_eq!(graded(options(), Some("9 * 2 = 18.\n#### 18")), right);
        let (em, f1) = graded(AnswerForm::Span, Some("18"));
        assert!(em == Some(0.0) && f1 > Some(0.0) && f1 < Some(1.0));
        assert_eq!(graded(AnswerForm::Continuation, None), (None, None));
        let limits = [
            AnswerForm::Span,
            solution(),
            options(),
            AnswerForm::Continuation,
        ];
        let limits = limits.map(|form| asked(form).answer_tokens(32));
        assert_eq!(limits, [7, 7, 0, 0]);
    }

    #[test]
    fn divergences_by_hand() {
        let own = log_softmax(&[2f32.ln(), 1f32.ln(), 1f32.ln()]);
        assert!((own[0].exp() - 0.5).abs() < 1e-6);
        let flat = [0.0; 3];
        let norm = log_sum_exp(&flat);
        assert!((norm - 3f64.ln()).abs() < 1e-9);
        let expected = 0.5 * (0.5f64 * 3.0).ln() + 0.5 * (0.25f64 * 3.0).ln();
        assert!((divergence(&own, &flat, norm) - expected).abs() < 1e-6);
        assert_eq!(divergence(&log_softmax(&flat), &flat, norm), 0.0);
        assert_eq!(best(&[1.0, 3.0, 3.0]), 1);
    }
}
