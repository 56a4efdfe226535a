//! Training a bridge so that the edge's model answers from mapped KV as a teacher does from its own.
//!
//! The models are frozen. The teacher is the edge's model with its own KV of a context, or another
//! whose distributions are given; what is learned is the map, and the KV of the tokens that all
//! contexts begin with, from two errors: of what each layer's attention reads from the mapped KV, asked
//! with the queries that the edge's model has over its own, and of the distributions over next tokens
//! at answers.

use std::path::Path;

use candle_core::Tensor;
use celslm_kv::align::{Sources, TrainingRecord};
use celslm_kv::{Bridge, KvBlock};

use crate::adam::Adam;
use crate::distil::Distributions;
use crate::frozen::{Attended, FrozenDecoder, Kv, Packed};
use crate::map::MapNetwork;
use crate::{Result, ops, state};
use celslm_model::ModelError;

/// A question about a context with its answer, in tokens of the edge's model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Private rest of the prompt and answer.
    pub tokens: Vec<u32>,
    /// Where the answer begins; at least one token stands before it.
    pub answer: usize,
}

/// A context in both models' KV, and what is asked about it.
#[derive(Debug, Clone)]
pub struct Lesson {
    /// The context in tokens of the edge's model.
    pub tokens: Vec<u32>,
    /// The cloud model's KV.
    pub source: KvBlock,
    /// The edge model's.
    pub own: KvBlock,
    /// Questions and answers; at least one.
    pub sequences: Vec<Sequence>,
    /// What another model says at the answers; `None` where the edge's is the teacher.
    pub teacher: Option<Distributions>,
}

impl Lesson {
    fn sources(&self) -> Sources<'_> {
        Sources {
            source: &self.source,
            own: Some(&self.own),
            tokens: &self.tokens,
        }
    }
}

/// How to train.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainingOptions {
    /// Steps in all, over which the learning rate falls.
    pub steps: u64,
    /// Highest learning rate, of weights that map standardised rows.
    pub learning_rate: f64,
    /// Steps over which it rises to that.
    pub warm_up: u64,
    /// Weight of the error of attention.
    pub attention: f64,
    /// Weight of the divergence at answers.
    pub divergence: f64,
}

impl TrainingOptions {
    /// Learning rate of a step: a straight rise, then half a cosine down to a tenth.
    pub(crate) fn rate(&self, step: u64) -> f64 {
        if step < self.warm_up {
            return self.learning_rate * (step + 1) as f64 / self.warm_up as f64;
        }
        let rest = self.steps.saturating_sub(self.warm_up).max(1) as f64;
        let done = ((step - self.warm_up) as f64 / rest).min(1.0);
        let share = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
        self.learning_rate * (0.1 + 0.9 * share)
    }
}

/// What a lesson showed, per token of answers.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Losses {
    /// Squared error of what attention adds to the residual stream, relative to what it adds from
    /// the edge's own KV; mean over layers.
    pub attention: f64,
    /// KL divergence from the teacher's distribution, nats.
    pub kl: f64,
    /// Negative log-likelihood of the answer, nats.
    pub nll: f64,
    /// The teacher's.
    pub teacher_nll: f64,
}

impl Losses {
    fn scaled(self, by: f64) -> Self {
        Self {
            attention: self.attention * by,
            kl: self.kl * by,
            nll: self.nll * by,
            teacher_nll: self.teacher_nll * by,
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            attention: self.attention + other.attention,
            kl: self.kl + other.kl,
            nll: self.nll + other.nll,
            teacher_nll: self.teacher_nll + other.teacher_nll,
        }
    }

    /// The mean of some.
    #[must_use]
    pub fn mean(all: &[Self]) -> Self {
        let sum = all.iter().fold(Self::default(), |sum, one| sum.plus(*one));
        sum.scaled(1.0 / all.len().max(1) as f64)
    }
}

/// A bridge being trained.
pub struct Trainer<'a> {
    decoder: &'a FrozenDecoder,
    initial: Bridge,
    network: MapNetwork,
    options: TrainingOptions,
    adam: Adam,
}

/// What the edge's model does with its own KV of a lesson.
struct Own {
    layers: Vec<Attended>,
    /// Before the last norm, `[rows, hidden_size]`.
    hidden: Tensor,
}

impl<'a> Trainer<'a> {
    /// Begins at a bridge. Some lessons say how its inputs and outputs vary.
    ///
    /// # Errors
    /// Blocks that do not suit the bridge.
    pub fn new(
        decoder: &'a FrozenDecoder,
        bridge: &Bridge,
        sample: &[&Lesson],
        options: TrainingOptions,
    ) -> Result<Self> {
        let sample: Vec<_> = sample.iter().map(|lesson| lesson.sources()).collect();
        let network = MapNetwork::new(bridge, decoder, &sample)?;
        let adam = Adam::new(&network.variables());
        Ok(Self {
            decoder,
            initial: bridge.clone(),
            network,
            options,
            adam,
        })
    }

    /// Steps taken.
    #[must_use]
    pub const fn steps(&self) -> u64 {
        self.adam.steps
    }

    /// Numbers that are trained.
    #[must_use]
    pub fn parameters(&self) -> usize {
        let variables = self.network.variables();
        variables.iter().map(|variable| variable.elem_count()).sum()
    }

    /// One step down the errors of some lessons together; what they were before it.
    ///
    /// # Errors
    /// Blocks that do not suit, and a device that fails.
    pub fn step(&mut self, lessons: &[&Lesson]) -> Result<Losses> {
        let mut total: Option<Tensor> = None;
        let mut all = Vec::with_capacity(lessons.len());
        for lesson in lessons {
            let (loss, losses) = self.losses(lesson, true)?;
            total = Some(match total {
                Some(total) => (total + loss)?,
                None => loss,
            });
            all.push(losses);
        }
        if let Some(total) = total {
            let gradients = (total / lessons.len() as f64)?.backward()?;
            let rate = self.options.rate(self.adam.steps);
            self.adam
                .step(&self.network.variables(), &gradients, rate)?;
        }
        Ok(Losses::mean(&all))
    }

    /// What a lesson shows, without learning from it.
    ///
    /// # Errors
    /// As for [`Self::step`].
    pub fn evaluate(&self, lesson: &Lesson) -> Result<Losses> {
        Ok(self.losses(lesson, false)?.1)
    }

    /// The bridge as trained so far.
    ///
    /// # Errors
    /// Numbers that the bridge's storage cannot hold.
    pub fn bridge(&self, record: TrainingRecord) -> Result<Bridge> {
        let parts = self.network.parts(&self.initial)?;
        let prefix = self.network.prefix(&self.initial, self.decoder)?;
        Ok(self.initial.trained(record, parts, prefix)?)
    }

    /// Writes down where training stands. `tag` says what the run is.
    ///
    /// # Errors
    /// [`TrainingError::State`](crate::TrainingError::State).
    pub fn save(&self, path: &Path, tag: &str) -> Result<()> {
        state::save(path, tag, &self.network.variables(), &self.adam)
    }

    /// Goes on where a run of the same tag stopped.
    ///
    /// # Errors
    /// [`TrainingError::State`](crate::TrainingError::State) for a file that is no state, or of
    /// another run; nothing has changed then.
    pub fn restore(&mut self, path: &Path, tag: &str) -> Result<()> {
        self.adam = state::restore(path, tag, &self.network.variables())?;
        Ok(())
    }

    fn losses(&self, lesson: &Lesson, learns: bool) -> Result<(Tensor, Losses)> {
        let decoder = self.decoder;
        let context = self
            .network
            .context(&self.initial, decoder, lesson.sources())?;
        let sequences: Vec<&[u32]> = lesson.sequences.iter().map(|s| &s.tokens[..]).collect();
        let start = lesson.own.positions().end;
        let packed = Packed::new(&sequences, start, decoder.device())?;
        let (kept, answers) = answers(&lesson.sequences);
        let reads = self.options.attention > 0.0 || !learns;
        let own = match reads || lesson.teacher.is_none() {
            // What attention should read goes with the first tokens as they are; the edge's own
            // distributions, where they are the teacher's, with the exact ones.
            true => Some(match lesson.teacher.is_some() {
                true => self.own(&packed, &self.network.own(&context)?)?,
                false => self.own(&packed, &context.own)?,
            }),
            false => None,
        };
        let target = match (&lesson.teacher, &own) {
            (Some(teacher), _) => teacher.tensor(kept.len(), decoder.device())?,
            (None, Some(own)) => ops::softmax(&decoder.logits(&own.hidden, &kept)?)?.detach(),
            // Computed above wherever there is no other teacher.
            (None, None) => {
                return Err(ModelError::Kv("a lesson without a teacher".to_owned()).into());
            }
        };
        let mapped = self.network.forward(decoder, &context)?;
        let mut total = Tensor::zeros(1, candle_core::DType::F32, decoder.device())?;
        let mut losses = Losses {
            teacher_nll: nll(&likely(&target, &answers)?, &answers),
            ..Losses::default()
        };
        if let Some(own) = own.filter(|_| reads) {
            let error = self.attention_error(&packed, &own, &mapped)?;
            losses.attention = number(&error)?;
            total = (total + (error * self.options.attention)?)?;
        }
        if self.options.divergence > 0.0 || !learns {
            let hidden = decoder.forward(&packed, &mapped, |_, _| Ok(()))?;
            let logits = decoder.logits(&hidden, &kept)?;
            let kl = (ops::divergence(&logits, &target)? / kept.len().max(1) as f64)?;
            losses.kl = number(&kl)?;
            losses.nll = nll(&ops::log_probs(&logits.detach(), &answers)?, &answers);
            total = (total + (kl * self.options.divergence)?)?;
        }
        Ok((total, losses))
    }

    fn own(&self, packed: &Packed, context: &[Kv]) -> Result<Own> {
        let mut layers = Vec::with_capacity(context.len());
        let hidden = self.decoder.forward(packed, context, |_, attended| {
            layers.push(attended);
            Ok(())
        })?;
        let frozen = |a: Attended| Attended {
            q: a.q.detach(),
            own: a.own.detach(),
            out: a.out.detach(),
        };
        Ok(Own {
            layers: layers.into_iter().map(frozen).collect(),
            hidden: hidden.detach(),
        })
    }

    fn attention_error(&self, packed: &Packed, own: &Own, mapped: &[Kv]) -> Result<Tensor> {
        let mut errors = Vec::with_capacity(mapped.len());
        for (layer, (mapped, own)) in mapped.iter().zip(&own.layers).enumerate() {
            let out = self
                .decoder
                .attend(layer, &own.q, &own.own, mapped, packed.mask())?;
            let size = number(&own.out.sqr()?.sum_all()?.reshape(1)?)?.max(1e-12);
            errors.push(((out - &own.out)?.sqr()?.sum_all()?.reshape(1)? / size)?);
        }
        Ok(Tensor::cat(&errors, 0)?.mean_all()?.reshape(1)?)
    }
}

/// The rows from the one before an answer to its last, and the token behind each; none behind the
/// last, where the answer is to end.
pub(crate) fn answers(sequences: &[Sequence]) -> (Vec<u32>, Vec<Option<u32>>) {
    let (mut rows, mut tokens, mut start) = (Vec::new(), Vec::new(), 0);
    for sequence in sequences {
        for at in sequence.answer.max(1)..=sequence.tokens.len() {
            rows.push((start + at - 1) as u32);
            tokens.push(sequence.tokens.get(at).copied());
        }
        start += sequence.tokens.len();
    }
    (rows, tokens)
}

/// Log-probabilities of the tokens that there are, one for each row of probabilities.
pub(crate) fn likely(probabilities: &Tensor, tokens: &[Option<u32>]) -> Result<Vec<f32>> {
    let picked: Vec<u32> = tokens.iter().map(|token| token.unwrap_or(0)).collect();
    let picked = Tensor::new(picked.as_slice(), probabilities.device())?.unsqueeze(1)?;
    let found: Vec<f32> = probabilities.gather(&picked, 1)?.flatten_all()?.to_vec1()?;
    Ok(found.iter().map(|p| p.max(1e-30).ln()).collect())
}

/// Mean negative log-probability of the tokens that there are, nats.
pub(crate) fn nll(log_probs: &[f32], tokens: &[Option<u32>]) -> f64 {
    let there = log_probs.iter().zip(tokens);
    let there = there.filter(|(_, token)| token.is_some());
    let (sum, count) = there.fold((0.0, 0), |(sum, count), (log_prob, _)| {
        (sum - f64::from(*log_prob), count + 1)
    });
    sum / f64::from(count.max(1))
}

pub(crate) fn number(one: &Tensor) -> Result<f64> {
    let all: Vec<f32> = one.to_vec1()?;
    Ok(all.first().copied().map_or(0.0, f64::from))
}
