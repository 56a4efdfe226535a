//! Answers to questions from a context's KV: generated ones, and how likely the right ones are.
//!
//! The order is the safeguard. A question's cache sees the prompt, and nothing but the prompt and
//! the model's own tokens, until the answer is complete; then it is cut back to the prompt, and
//! only now the gold answer is read.

use std::sync::Arc;

use celslm_model::{
    BatchItem, KeyRetention, KvCache, KvPrefix, LoadedModel, Logits, ModelError, Sampler, Sampling,
};

use crate::Settings;
use crate::case::Asked;

/// What the model made of one question.
pub(crate) struct Reading<'a> {
    /// The generated answer.
    pub(crate) answer: String,
    /// Its tokens, the end not counted.
    pub(crate) output_tokens: usize,
    /// Logits at the positions of the gold answer's tokens, `[vocab_size]` each.
    pub(crate) gold: &'a [&'a [f32]],
}

/// Asks all questions of a context and hands each reading on, in order.
///
/// # Errors
/// Failures of the model.
pub(crate) fn ask(
    model: &LoadedModel,
    prefix: &Arc<KvPrefix>,
    asked: &[Asked],
    settings: Settings,
    mut each: impl FnMut(usize, Reading<'_>),
) -> Result<(), ModelError> {
    let batch = settings.batch.max(1);
    for (index, asked) in asked.chunks(batch).enumerate() {
        let mut caches = Vec::with_capacity(asked.len());
        for question in asked {
            let room = question.prompt.len() + settings.max_tokens.max(question.gold.len());
            caches.push(KvCache::new(
                model.decoder.kv_shape(),
                Some(prefix.clone()),
                room,
                KeyRetention::RotatedOnly,
            )?);
        }
        let prompts = asked.iter().map(|question| question.prompt.as_slice());
        let first = pass(model, prompts, &mut caches)?;
        let ends: Vec<usize> = caches.iter().map(|cache| cache.len(0)).collect();
        let answers = generate(model, &first, &mut caches, settings.max_tokens)?;
        for (cache, end) in caches.iter_mut().zip(&ends) {
            cache.truncate(*end)?;
        }
        let gold = likelihood(model, asked, &mut caches)?;
        let mut gold = gold.iter();
        for (at, ((question, first), ids)) in asked.iter().zip(&first).zip(&answers).enumerate() {
            let rest = question.gold.len().saturating_sub(1);
            let logits: Vec<&[f32]> = std::iter::once(&first[..])
                .chain(gold.by_ref().take(rest).map(|logits| &logits[..]))
                .collect();
            let reading = Reading {
                answer: model.tokenizer.decode(ids)?.trim().to_owned(),
                output_tokens: ids.len(),
                gold: &logits,
            };
            each(index * batch + at, reading);
        }
    }
    Ok(())
}

/// One pass over the next tokens of several sequences: the logits behind each.
fn pass<'a>(
    model: &LoadedModel,
    tokens: impl Iterator<Item = &'a [u32]>,
    caches: &mut [KvCache],
) -> Result<Vec<Logits>, ModelError> {
    let mut items: Vec<BatchItem<'_>> = tokens
        .zip(caches)
        .map(|(tokens, cache)| BatchItem {
            tokens,
            cache,
            logits: true,
        })
        .collect();
    let logits = model.decoder.forward_batch(&mut items)?;
    Ok(logits.into_iter().flatten().collect())
}

/// Greedy answers, without the token that ends them.
fn generate(
    model: &LoadedModel,
    first: &[Logits],
    caches: &mut [KvCache],
    max_tokens: usize,
) -> Result<Vec<Vec<u32>>, ModelError> {
    let mut greedy = Sampler::new(Sampling::Greedy, 0);
    let mut answers: Vec<Vec<u32>> = vec![Vec::new(); caches.len()];
    let mut next: Vec<Option<u32>> = first.iter().map(|l| Some(greedy.sample(l))).collect();
    loop {
        let mut items = Vec::new();
        let mut live = Vec::new();
        let states = next.iter_mut().zip(&mut answers).zip(&mut *caches);
        for (index, ((next, answer), cache)) in states.enumerate() {
            let Some(token) = next.filter(|token| !model.tokenizer.is_end(*token)) else {
                *next = None;
                continue;
            };
            answer.push(token);
            if answer.len() >= max_tokens {
                *next = None;
                continue;
            }
            live.push(index);
            items.push(BatchItem {
                tokens: next.as_slice(),
                cache,
                logits: true,
            });
        }
        if items.is_empty() {
            return Ok(answers);
        }
        let logits = model.decoder.forward_batch(&mut items)?;
        for (index, logits) in live.into_iter().zip(logits) {
            next[index] = logits.map(|logits| greedy.sample(&logits));
        }
    }
}

/// Logits behind every token of the gold answers but the last, question by question.
fn likelihood(
    model: &LoadedModel,
    asked: &[Asked],
    caches: &mut [KvCache],
) -> Result<Vec<Logits>, ModelError> {
    let mut items: Vec<BatchItem<'_>> = asked
        .iter()
        .zip(caches)
        .filter(|(question, _)| question.gold.len() > 1)
        .map(|(question, cache)| BatchItem {
            tokens: &question.gold[..question.gold.len() - 1],
            cache,
            logits: false,
        })
        .collect();
    if items.is_empty() {
        return Ok(Vec::new());
    }
    model.decoder.forward_all_logits(&mut items)
}
