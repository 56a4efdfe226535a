//! Answers to questions from a context's KV: generated ones, and how likely the right ones are.
//!
//! The order is the safeguard. A question's cache sees the prompt, and nothing but the prompt and
//! the model's own tokens, until the answer is complete; then it is cut back to the prompt, and
//! only now the gold answer is read. Of a continuation nothing but that is done. Where there are options, each is read behind the prompt alone,
//! and the one with the greatest mean log-likelihood of its tokens is the answer.

use std::sync::Arc;

use celslm_model::{
    BatchItem, KeyRetention, KvCache, KvPrefix, LoadedModel, Logits, ModelError, PREFILL_CHUNK,
    Sampler, Sampling,
};

use crate::Settings;
use crate::case::{Asked, log_sum_exp};

/// Tokens of gold answers whose logits are in memory at once, about 600 kB each for a vocabulary of
/// 150,000; those of one answer are in any case.
const GOLD_POSITIONS: usize = 512;

/// What the model made of one question.
pub(crate) struct Reading<'a> {
    /// The generated answer, or the chosen option; `None` where only likelihoods count.
    pub(crate) answer: Option<String>,
    /// Its tokens, the end not counted.
    pub(crate) output_tokens: usize,
    /// Logits at the positions of the gold answer's tokens, `[vocab_size]` each.
    pub(crate) gold: &'a [&'a [f32]],
}

/// Asks questions, each of the KV of its own context, and hands each reading on, in order.
///
/// # Errors
/// Failures of the model.
pub(crate) fn ask(
    model: &LoadedModel,
    sequences: &[(&Arc<KvPrefix>, &Asked)],
    settings: Settings,
    mut each: impl FnMut(usize, Reading<'_>),
) -> Result<(), ModelError> {
    let batch = settings.batch.max(1);
    for (index, sequences) in sequences.chunks(batch).enumerate() {
        let asked: Vec<&Asked> = sequences.iter().map(|(_, asked)| *asked).collect();
        let limits: Vec<usize> = asked
            .iter()
            .map(|asked| asked.answer_tokens(settings.max_tokens))
            .collect();
        let mut caches = Vec::with_capacity(sequences.len());
        for ((prefix, question), limit) in sequences.iter().zip(&limits) {
            let options = question.choices.iter().map(|(tokens, _)| tokens.len());
            let longest = options.max().unwrap_or(0).max(question.gold.len());
            caches.push(cache(
                model,
                prefix,
                question.prompt.len() + limit.max(&longest),
            )?);
        }
        let read: Vec<&[u32]> = asked.iter().map(|asked| &asked.prompt[..]).collect();
        let first = prompts(model, &read, &mut caches)?;
        let ends: Vec<usize> = caches.iter().map(|cache| cache.len(0)).collect();
        let answers = generate(model, &first, &mut caches, &limits)?;
        cut_back(&mut caches, &ends)?;
        let chosen = choose(model, &asked, &first, &mut caches)?;
        let mut done = 0;
        while done < asked.len() {
            let mut positions = 0;
            let fits = asked[done..].iter().take_while(|asked| {
                positions += asked.gold.len();
                positions <= GOLD_POSITIONS
            });
            let now = done..done + fits.count().max(1);
            let gold = likelihood(model, &asked[now.clone()], &mut caches[now.clone()])?;
            let mut gold = gold.iter();
            for at in now.clone() {
                let (question, ids) = (asked[at], &answers[at]);
                let rest = question.gold.len().saturating_sub(1);
                let logits: Vec<&[f32]> = std::iter::once(&first[at][..])
                    .chain(gold.by_ref().take(rest).map(|logits| &logits[..]))
                    .collect();
                let answer = match chosen[at] {
                    Some(option) => Some(question.choices[option].1.clone()),
                    None if limits[at] == 0 => None,
                    None => Some(model.tokenizer.decode(ids)?.trim().to_owned()),
                };
                let reading = Reading {
                    answer,
                    output_tokens: ids.len(),
                    gold: &logits,
                };
                each(index * batch + at, reading);
            }
            done = now.end;
        }
    }
    Ok(())
}

/// What the model writes behind each of several prompts, each over its own context, greedily, and
/// whether it came to an end within `max_tokens`.
///
/// # Errors
/// Failures of the model.
pub(crate) fn write(
    model: &LoadedModel,
    said: &[(&Arc<KvPrefix>, Vec<u32>)],
    max_tokens: usize,
) -> Result<Vec<(String, bool)>, ModelError> {
    let written = write_tokens(model, said, max_tokens)?;
    let text = |ids: &Vec<u32>| Ok((model.tokenizer.decode(ids)?, ids.len() < max_tokens));
    written.iter().map(text).collect()
}

/// The same in tokens, without the one that ends it.
pub(crate) fn write_tokens(
    model: &LoadedModel,
    said: &[(&Arc<KvPrefix>, Vec<u32>)],
    max_tokens: usize,
) -> Result<Vec<Vec<u32>>, ModelError> {
    let mut caches = Vec::with_capacity(said.len());
    for (prefix, said) in said {
        caches.push(cache(model, prefix, said.len() + max_tokens)?);
    }
    let read: Vec<&[u32]> = said.iter().map(|(_, said)| &said[..]).collect();
    let first = prompts(model, &read, &mut caches)?;
    let limits = vec![max_tokens; said.len()];
    generate(model, &first, &mut caches, &limits)
}

fn cache(model: &LoadedModel, prefix: &Arc<KvPrefix>, room: usize) -> Result<KvCache, ModelError> {
    KvCache::new(
        model.decoder.kv_shape(),
        Some(Arc::clone(prefix)),
        room,
        KeyRetention::RotatedOnly,
    )
}

/// Reads the prompts, in passes of a bounded number of tokens: the logits behind each.
fn prompts(
    model: &LoadedModel,
    read: &[&[u32]],
    caches: &mut [KvCache],
) -> Result<Vec<Logits>, ModelError> {
    let mut items: Vec<BatchItem<'_>> = read
        .iter()
        .zip(caches)
        .map(|(tokens, cache)| BatchItem {
            tokens,
            cache,
            logits: true,
        })
        .collect();
    let mut found = Vec::with_capacity(items.len());
    let mut rest = &mut items[..];
    while !rest.is_empty() {
        let mut tokens = 0;
        let fits = rest.iter().take_while(|item| {
            tokens += item.tokens.len();
            tokens <= PREFILL_CHUNK
        });
        let (now, later) = rest.split_at_mut(fits.count().max(1));
        found.extend(model.decoder.forward_batch(now)?.into_iter().flatten());
        rest = later;
    }
    Ok(found)
}

fn cut_back(caches: &mut [KvCache], ends: &[usize]) -> Result<(), ModelError> {
    let mut pairs = caches.iter_mut().zip(ends);
    pairs.try_for_each(|(cache, end)| cache.truncate(*end))
}

/// The most likely option of each question that has any, by the mean log-likelihood of its tokens;
/// the first on a tie. The caches are left as they were.
fn choose(
    model: &LoadedModel,
    asked: &[&Asked],
    first: &[Logits],
    caches: &mut [KvCache],
) -> Result<Vec<Option<usize>>, ModelError> {
    let ends: Vec<usize> = caches.iter().map(|cache| cache.len(0)).collect();
    let most = asked.iter().map(|question| question.choices.len()).max();
    let mut best: Vec<Option<(usize, f64)>> = vec![None; asked.len()];
    for option in 0..most.unwrap_or(0) {
        let read: Vec<Option<&[u32]>> = asked
            .iter()
            .map(|question| question.choices.get(option).map(|(tokens, _)| &tokens[..]))
            .collect();
        let items = read.iter().zip(&mut *caches).filter_map(|(tokens, cache)| {
            let tokens = tokens.filter(|tokens| tokens.len() > 1)?;
            Some(BatchItem {
                tokens: &tokens[..tokens.len() - 1],
                cache,
                logits: false,
            })
        });
        let mut items: Vec<BatchItem<'_>> = items.collect();
        let behind = if items.is_empty() {
            Vec::new()
        } else {
            model.decoder.forward_all_logits(&mut items)?
        };
        cut_back(caches, &ends)?;
        let mut behind = behind.iter();
        for ((tokens, first), best) in read.iter().zip(first).zip(&mut best) {
            let Some(tokens) = tokens else { continue };
            let rows = std::iter::once(first).chain(behind.by_ref().take(tokens.len() - 1));
            let sum: f64 = rows
                .zip(*tokens)
                .map(|(logits, token)| f64::from(logits[*token as usize]) - log_sum_exp(logits))
                .sum();
            let mean = sum / tokens.len() as f64;
            if best.is_none_or(|(_, most)| mean > most) {
                *best = Some((option, mean));
            }
        }
    }
    Ok(best.into_iter().map(|best| Some(best?.0)).collect())
}

/// Greedy answers of at most so many tokens each, without the token that ends them; none where the
/// limit is 0.
fn generate(
    model: &LoadedModel,
    first: &[Logits],
    caches: &mut [KvCache],
    limits: &[usize],
) -> Result<Vec<Vec<u32>>, ModelError> {
    let mut greedy = Sampler::new(Sampling::Greedy, 0);
    let mut answers: Vec<Vec<u32>> = vec![Vec::new(); caches.len()];
    let mut next: Vec<Option<u32>> = first
        .iter()
        .zip(limits)
        .map(|(logits, limit)| (*limit > 0).then(|| greedy.sample(logits)))
        .collect();
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
            if answer.len() >= limits[index] {
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
    asked: &[&Asked],
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
