//! Training a bridge on calibration text: lessons are contexts of it with questions about them.

use std::path::Path;

use anyhow::bail;
use celslm_datasets::{Document, Prompt, Question};
use celslm_kv::align::TrainingRecord;
use celslm_kv::{Bridge, MappingConfig, SourceKind};
use celslm_model::GgufFile;
use celslm_systems::LoadedModel;
use celslm_training::{
    FrozenDecoder, Lesson, Losses, Sequence, Trainer, TrainingOptions, default_device,
};

use crate::fit::{end, prefill, read};

/// Of every so many contexts one is held out.
const HELD_OUT: usize = 10;
/// Most contexts that losses are measured on.
const MAX_HELD_OUT: usize = 16;
/// Questions that a lesson takes of its document.
const QUESTIONS: usize = 2;
/// Steps between measurements on held-out contexts, after each of which the state is written down.
const MEASURED_EVERY: u64 = 100;
/// Contexts that say how inputs and outputs vary.
const SAMPLE: usize = 8;

/// The two models, and the edge's file for the weights that gradients pass through.
pub struct Models<'a> {
    /// The cloud's.
    pub cloud: &'a LoadedModel,
    /// The edge's.
    pub edge: &'a LoadedModel,
    /// The edge's file.
    pub edge_path: &'a Path,
}

fn sequence(
    edge: &LoadedModel,
    document: &Document,
    question: &Question,
) -> anyhow::Result<Sequence> {
    let prompt = Prompt::new(document, question);
    let mut tokens = edge.private_tokens(&prompt.system, &prompt.user)?;
    let answer = tokens.len();
    let gold = question.gold();
    tokens.extend(
        edge.tokenizer
            .encode(gold.first().map_or("", |gold| gold.trim()))?,
    );
    Ok(Sequence { tokens, answer })
}

/// A document as a lesson, with some of its questions: another `QUESTIONS` of them each turn.
fn lesson(
    models: &Models<'_>,
    reads: SourceKind,
    document: &Document,
    turn: usize,
) -> anyhow::Result<Lesson> {
    let count = document.questions.len();
    let chosen = (0..QUESTIONS.min(count)).map(|index| {
        // Steps through the list from both ends: written questions stand first, recall last.
        let at = if index % 2 == 0 {
            turn + index / 2
        } else {
            count - 1 - (turn + index / 2) % count
        };
        &document.questions[at % count]
    });
    let tokens = models.edge.context_tokens(&Prompt::system(document))?;
    let of = |question| sequence(models.edge, document, question);
    Ok(Lesson {
        source: read(models.cloud, reads, &tokens)?,
        own: prefill(models.edge, &tokens)?,
        sequences: chosen.map(of).collect::<anyhow::Result<_>>()?,
    })
}

/// What training told.
#[derive(Debug, Clone, Copy)]
pub enum Told {
    /// Losses on held-out contexts after so many steps.
    HeldOut(u64, Losses),
    /// Losses of a step, before it was taken.
    Step(u64, Losses),
}

/// Trains a bridge. `tell` hears of every step and says whether to go on. The state of a run that
/// was stopped lies in `state`, and the next call goes on from there; it is removed at the end.
///
/// # Errors
/// Lessons that do not suit, models that the bridge is not for, a state of another run, a device
/// that fails, a stop.
pub fn train(
    models: &Models<'_>,
    bridge: &Bridge,
    documents: &[Document],
    options: TrainingOptions,
    state: &Path,
    mut tell: impl FnMut(Told) -> bool,
) -> anyhow::Result<Bridge> {
    bridge.check_models(&end(models.cloud), &end(models.edge))?;
    let tag = tag(bridge, documents, options)?;
    let decoder = {
        let mut gguf = GgufFile::open(models.edge_path)?;
        FrozenDecoder::load(&mut gguf, &default_device()?)?
    };
    let reads = bridge.reads();
    let (mut held_out, mut learnt_from) = (Vec::new(), Vec::new());
    for (index, document) in documents.iter().enumerate() {
        if document.questions.is_empty() {
            continue;
        }
        match index % HELD_OUT == HELD_OUT - 1 {
            true if held_out.len() < MAX_HELD_OUT => {
                held_out.push(lesson(models, reads, document, 0)?);
            }
            true => {}
            false => learnt_from.push(document),
        }
    }
    if held_out.is_empty() || learnt_from.is_empty() {
        bail!(
            "{} lessons are too few: every tenth is held out",
            documents.len()
        );
    }
    let sample = &held_out[..SAMPLE.min(held_out.len())];
    let sample: Vec<&Lesson> = sample.iter().collect();
    let mut trainer = Trainer::new(&decoder, bridge, &sample, options)?;
    let measure = |trainer: &Trainer<'_>| -> anyhow::Result<Losses> {
        let losses = held_out.iter().map(|lesson| trainer.evaluate(lesson));
        Ok(Losses::mean(&losses.collect::<Result<Vec<_>, _>>()?))
    };
    let before = measure(&trainer)?;
    tell(Told::HeldOut(0, before));
    if state.exists() {
        trainer.restore(state, &tag)?;
    }
    let mut after = before;
    while trainer.steps() < options.steps {
        let (document, turn) = drawn(&learnt_from, trainer.steps());
        let losses = trainer.step(&[&lesson(models, reads, document, turn)?])?;
        let step = trainer.steps();
        let go_on = tell(Told::Step(step, losses));
        if !go_on {
            trainer.save(state, &tag)?;
            bail!("interrupted after {step} steps; the same command goes on from there");
        }
        if step % MEASURED_EVERY == 0 || step == options.steps {
            trainer.save(state, &tag)?;
            after = measure(&trainer)?;
            tell(Told::HeldOut(step, after));
        }
    }
    let pair = |a: f64, b: f64| [a as f32, b as f32];
    let record = TrainingRecord {
        steps: trainer.steps(),
        contexts: (learnt_from.len() as u64).min(trainer.steps()),
        held_out_contexts: held_out.len() as u64,
        kl: pair(before.kl, after.kl),
        nll: pair(before.nll, after.nll),
    };
    let bridge = trainer.bridge(MappingConfig::Trained, record)?;
    std::fs::remove_file(state).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    Ok(bridge)
}

/// What a run is: its state is of no use to another.
fn tag(
    bridge: &Bridge,
    documents: &[Document],
    options: TrainingOptions,
) -> anyhow::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bridge.to_bytes()?);
    hasher.update(&serde_json::to_vec(documents)?);
    hasher.update(format!("{options:?}").as_bytes());
    Ok(hasher.finalize().to_hex().to_string())
}

/// The document of a step, and how often it was seen before: all of them once in an order of the
/// round's own, then again.
fn drawn<'a>(documents: &[&'a Document], step: u64) -> (&'a Document, usize) {
    let count = documents.len() as u64;
    let (round, place) = (step / count, step % count);
    // A step that shares no factor with their number goes through all of them.
    let mut stride = (0.618 * count as f64) as u64 + round;
    while gcd(stride.max(1), count) != 1 {
        stride += 1;
    }
    let at = (place * stride.max(1) + round * 31) % count;
    (documents[at as usize], round as usize)
}

const fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibration::titled;

    #[test]
    fn a_round_sees_every_document_once() {
        for count in [1, 2, 7, 12, 100] {
            let documents: Vec<Document> = (0..count).map(|i| titled(&format!("w{i}"))).collect();
            let documents: Vec<&Document> = documents.iter().collect();
            for round in 0..3 {
                let mut seen: Vec<&str> = (0..count as u64)
                    .map(|place| drawn(&documents, round * count as u64 + place))
                    .inspect(|(_, turn)| assert_eq!(*turn as u64, round))
                    .map(|(document, _)| document.text.as_str())
                    .collect();
                seen.sort_unstable();
                seen.dedup();
                assert_eq!(seen.len(), count, "{count}");
            }
        }
    }
}
