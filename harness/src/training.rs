//! Training a bridge on calibration text: lessons are contexts of it with questions about them.

use std::cell::OnceCell;
use std::path::Path;
use std::sync::Arc;

use anyhow::bail;
use celslm_datasets::{Document, Prompt, Question};
use celslm_kv::align::TrainingRecord;
use celslm_kv::{Bridge, SourceKind};
use celslm_model::{GgufFile, KvPrefix};
use celslm_systems::LoadedModel;
use celslm_training::{
    Distributions, FrozenDecoder, Lesson, Losses, Sequence, Trainer, TrainingOptions,
    default_device,
};

use crate::exit::Verdict;
use crate::fit::{end, prefill, read};

/// Of every so many contexts one is held out.
const HELD_OUT: usize = 10;
/// Most contexts that losses are measured on.
const MAX_HELD_OUT: usize = 16;
/// Questions that the cloud wrote, of those that a lesson takes of its document.
const WRITTEN: usize = 3;
/// Others: of recall, and such as the document does not answer.
const OTHERS: usize = 1;
/// Steps between measurements on held-out contexts, after each of which the state is written down.
const MEASURED_EVERY: u64 = 100;
/// Contexts that say how inputs and outputs vary.
const SAMPLE: usize = 8;
/// Lessons that are kept in memory once they were computed, some 20 MB each: both models' KV of a
/// context, and the teacher's ready for attention. Computing them takes as long as learning from them.
const KEPT: usize = 400;

/// The models, and the edge's file for the weights that gradients pass through.
pub struct Models<'a> {
    /// Whose KV is mapped.
    pub cloud: &'a LoadedModel,
    /// The edge's.
    pub edge: &'a LoadedModel,
    /// Whose distributions are learnt, where it is not the edge's.
    pub teacher: Option<&'a LoadedModel>,
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

/// A document's questions, and what the models make of it as far as it was needed.
struct Source<'a> {
    document: &'a Document,
    computed: OnceCell<Computed>,
}

/// A context in both models with all of its questions, and as the teacher reads it.
struct Computed {
    lesson: Lesson,
    read: Option<Arc<KvPrefix>>,
    /// What the teacher says at each question's answer, once it was asked.
    taught: Vec<OnceCell<Distributions>>,
}

impl<'a> Source<'a> {
    const fn new(document: &'a Document) -> Self {
        Self {
            document,
            computed: OnceCell::new(),
        }
    }

    /// Some of the questions as a lesson: others at each turn.
    fn lesson(
        &self,
        models: &Models<'_>,
        reads: Option<SourceKind>,
        turn: usize,
        keep: bool,
    ) -> anyhow::Result<Lesson> {
        let computed;
        let all = match self.computed.get() {
            Some(known) => known,
            None if keep => {
                let new = self.compute(models, reads)?;
                self.computed.get_or_init(|| new)
            }
            None => {
                computed = self.compute(models, reads)?;
                &computed
            }
        };
        let chosen = chosen(self.document, turn);
        let mut lesson = Lesson {
            sequences: chosen
                .iter()
                .map(|at| all.lesson.sequences[*at].clone())
                .collect(),
            ..all.lesson.clone()
        };
        if let (Some(teacher), Some(read)) = (models.teacher, &all.read) {
            let mut said = Distributions::default();
            for at in chosen {
                let cell = &all.taught[at];
                if cell.get().is_none() {
                    let sequence = std::slice::from_ref(&all.lesson.sequences[at]);
                    let new = Distributions::of(&teacher.decoder, read, sequence)?;
                    cell.get_or_init(|| new);
                }
                if let Some(one) = cell.get() {
                    said.extend(one);
                }
            }
            lesson.teacher = Some(said);
        }
        Ok(lesson)
    }

    fn compute(&self, models: &Models<'_>, reads: Option<SourceKind>) -> anyhow::Result<Computed> {
        let (document, edge) = (self.document, models.edge);
        let tokens = edge.context_tokens(&Prompt::system(document))?;
        let own = prefill(edge, &tokens)?;
        let source = match reads {
            Some(kind) => read(models.cloud, kind, &tokens)?,
            None => own.clone(),
        };
        let questions = document.questions.iter();
        let sequences = questions
            .map(|question| sequence(edge, document, question))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let read = match models.teacher {
            Some(teacher) if teacher.decoder.fingerprint() == *source.fingerprint() => {
                Some(KvPrefix::from_block(&source, teacher.decoder.rope())?)
            }
            Some(teacher) => {
                let block = prefill(teacher, &tokens)?;
                Some(KvPrefix::from_block(&block, teacher.decoder.rope())?)
            }
            None => None,
        };
        Ok(Computed {
            read: read.map(Arc::new),
            taught: sequences.iter().map(|_| OnceCell::new()).collect(),
            lesson: Lesson {
                tokens,
                source,
                own,
                sequences,
                teacher: None,
            },
        })
    }
}

/// Which of a document's questions a turn asks: those that were written stand first.
fn chosen(document: &Document, turn: usize) -> Vec<usize> {
    let written = |question: &&Question| question.id.starts_with("written-");
    let first = document.questions.iter().take_while(written).count();
    let rest = document.questions.len() - first;
    let own = (0..WRITTEN.min(first)).map(|index| (turn * WRITTEN + index) % first);
    let others = (0..OTHERS.min(rest)).map(|index| first + (turn * OTHERS + index) % rest);
    own.chain(others).collect()
}

/// What training told.
#[derive(Debug, Clone, Copy)]
pub enum Told {
    /// Losses on held-out contexts after so many steps.
    HeldOut(u64, Losses),
    /// Losses of a step, before it was taken.
    Step(u64, Losses),
}

/// Trains a bridge ([`Bridge::to_train`]). `tell` hears of every step and says whether to go on. The
/// state of a run that was stopped lies in `state`, and the next call goes on from there; it is removed
/// at the end.
///
/// # Errors
/// Lessons that do not suit, models that the bridge is not for, a teacher of another vocabulary, a
/// state of another run, a device that fails, a stop.
pub fn train(
    models: &Models<'_>,
    bridge: &Bridge,
    documents: &[Document],
    options: TrainingOptions,
    state: &Path,
    mut tell: impl FnMut(Told) -> bool,
) -> anyhow::Result<Bridge> {
    bridge.check_models(&end(models.cloud), &end(models.edge))?;
    let teacher = models.teacher.unwrap_or(models.edge);
    let vocabulary = |model: &LoadedModel| -> anyhow::Result<_> {
        Ok((model.tokenizer.hash()?, model.decoder.vocab_size()))
    };
    if vocabulary(teacher)? != vocabulary(models.edge)? {
        let message = "the teacher has another vocabulary: its distributions are over other tokens";
        return Err(Verdict::Config(message.to_owned()).into());
    }
    let fingerprint = teacher.decoder.fingerprint();
    let tag = tag(bridge, documents, options, &fingerprint.to_string())?;
    let decoder = {
        let mut gguf = GgufFile::open(models.edge_path)?;
        FrozenDecoder::load(&mut gguf, &default_device()?)?
    };
    // Without parts nothing of the cloud's is read, and it need not be computed.
    let reads = (!bridge.parts().is_empty()).then(|| bridge.reads());
    let (mut held_out, mut learnt_from) = (Vec::new(), Vec::new());
    for (index, document) in documents.iter().enumerate() {
        if document.questions.is_empty() {
            continue;
        }
        match index % HELD_OUT == HELD_OUT - 1 {
            true if held_out.len() < MAX_HELD_OUT => {
                held_out.push(Source::new(document).lesson(models, reads, 0, false)?);
            }
            true => {}
            false => learnt_from.push(Source::new(document)),
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
    let mut after = match trainer.steps() == options.steps {
        true => measure(&trainer)?,
        false => before,
    };
    while trainer.steps() < options.steps {
        let (at, turn) = drawn(learnt_from.len(), trainer.steps());
        let lesson = learnt_from[at].lesson(models, reads, turn, at < KEPT)?;
        let losses = trainer.step(&[&lesson])?;
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
    let mut record = TrainingRecord {
        teacher: fingerprint,
        steps: trainer.steps(),
        contexts: (learnt_from.len() as u64).min(trainer.steps()),
        held_out_contexts: held_out.len() as u64,
        kl: pair(before.kl, after.kl),
        nll: pair(before.nll, after.nll),
    };
    let same = |earlier: &TrainingRecord| earlier.teacher == fingerprint;
    if let Some(earlier) = bridge.manifest().training.filter(same) {
        record.continues(&earlier);
    }
    let bridge = trainer.bridge(record)?;
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
    teacher: &str,
) -> anyhow::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bridge.to_bytes()?);
    hasher.update(&serde_json::to_vec(documents)?);
    hasher.update(format!("{options:?} {teacher}").as_bytes());
    Ok(hasher.finalize().to_hex().to_string())
}

/// The document of a step, of `count`, and how often it was seen before: all of them once in an order
/// of the round's own, then again.
fn drawn(count: usize, step: u64) -> (usize, usize) {
    let count = count as u64;
    let (round, place) = (step / count, step % count);
    // A step that shares no factor with their number goes through all of them.
    let mut stride = (0.618 * count as f64) as u64 + round;
    while gcd(stride.max(1), count) != 1 {
        stride += 1;
    }
    let at = (place * stride.max(1) + round * 31) % count;
    (at as usize, round as usize)
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
            for round in 0..3 {
                let mut seen: Vec<usize> = (0..count as u64)
                    .map(|place| drawn(count, round * count as u64 + place))
                    .inspect(|(_, turn)| assert_eq!(*turn as u64, round))
                    .map(|(at, _)| at)
                    .collect();
                seen.sort_unstable();
                seen.dedup();
                assert_eq!(seen.len(), count, "{count}");
            }
        }
    }

    #[test]
    fn turns_go_through_what_was_written_and_through_the_rest() {
        let mut document = titled("some words");
        let question = |id: &str| Question {
            id: id.to_owned(),
            text: String::new(),
            answers: Vec::new(),
            answerable: false,
            form: Default::default(),
        };
        document.questions = ["written-0", "written-1", "recall-0", "foreign-0"]
            .map(question)
            .to_vec();
        assert_eq!(chosen(&document, 0), [0, 1, 2]);
        assert_eq!(chosen(&document, 1), [1, 0, 3]);
        document.questions = (0..5).map(|i| question(&format!("written-{i}"))).collect();
        assert_eq!(chosen(&document, 1), [3, 4, 0]);
    }
}
