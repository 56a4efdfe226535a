//! A context's KV for the edge's model, tuned before anything is asked about it: self-study
//! (Cartridges, arXiv 2506.06266) with another model's distributions as the teacher.

use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use celslm_kv::KvBlock;
use celslm_model::{BatchItem, Decoder, KeyRetention, KvCache, KvPrefix, ModelError};

use crate::adam::Adam;
use crate::frozen::{FrozenDecoder, Kv, Packed};
use crate::trainer::{Losses, Sequence, TrainingOptions, answers, likely, nll, number};
use crate::tuned::{FROZEN, TunedKv};
use crate::{Result, ops};

/// What a teacher says at the answers of some sequences.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Distributions {
    /// Tokens with their probabilities, row by row of answers. What is less likely than
    /// [`NOTHING`] is left out: nearly all of the vocabulary.
    likely: Vec<(u32, f32)>,
    /// Where each row ends among them.
    ends: Vec<usize>,
    vocab_size: usize,
}

/// Probability of a token that is as good as none.
const NOTHING: f32 = 1e-6;

impl Distributions {
    /// A model's, from its own KV of the context.
    ///
    /// # Errors
    /// As [`Decoder::forward_all_logits`].
    pub fn of(decoder: &Decoder, context: &Arc<KvPrefix>, sequences: &[Sequence]) -> Result<Self> {
        let (mut likely, mut ends) = (Vec::new(), Vec::new());
        for sequence in sequences {
            let mut cache = KvCache::new(
                decoder.kv_shape(),
                Some(Arc::clone(context)),
                sequence.tokens.len(),
                KeyRetention::RotatedOnly,
            )?;
            let mut item = [BatchItem {
                tokens: &sequence.tokens,
                cache: &mut cache,
                logits: true,
            }];
            let logits = decoder.forward_all_logits(&mut item)?;
            for logits in &logits[sequence.answer.max(1) - 1..] {
                let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let raised: Vec<f32> = logits.iter().map(|x| (x - top).exp()).collect();
                let sum: f64 = raised.iter().map(|x| f64::from(*x)).sum();
                let rows = raised.iter().map(|x| x / sum as f32).enumerate();
                likely.extend(
                    rows.filter(|(_, p)| *p >= NOTHING)
                        .map(|(at, p)| (at as u32, p)),
                );
                ends.push(likely.len());
            }
        }
        Ok(Self {
            likely,
            ends,
            vocab_size: decoder.vocab_size(),
        })
    }

    /// Answer tokens that something is said about, the end of each answer among them.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.ends.len()
    }

    /// Those of further sequences behind these.
    pub fn extend(&mut self, more: &Self) {
        let before = self.likely.len();
        self.likely.extend_from_slice(&more.likely);
        self.ends.extend(more.ends.iter().map(|end| before + end));
        self.vocab_size = more.vocab_size;
    }

    /// As a tensor of as many rows as there are answer tokens to compare.
    pub(crate) fn tensor(&self, rows: usize, device: &Device) -> Result<Tensor> {
        if self.ends.len() != rows {
            return Err(ModelError::Kv("the teacher spoke of other sequences".to_owned()).into());
        }
        let mut numbers = vec![0.0; rows * self.vocab_size];
        let mut start = 0;
        for (row, end) in numbers.chunks_mut(self.vocab_size.max(1)).zip(&self.ends) {
            for (token, p) in &self.likely[start..*end] {
                row[*token as usize] = *p;
            }
            start = *end;
        }
        Ok(Tensor::from_vec(numbers, (rows, self.vocab_size), device)?)
    }
}

/// A context's KV being tuned.
pub struct Distiller<'a> {
    decoder: &'a FrozenDecoder,
    kv: TunedKv,
    options: TrainingOptions,
    adam: Adam,
}

impl<'a> Distiller<'a> {
    /// Begins at the edge model's own KV of a context, or of its first tokens. The questions are
    /// asked behind the block's last position, however long the context was.
    ///
    /// # Errors
    /// A block of another shape, or of no token that may change.
    pub fn new(
        decoder: &'a FrozenDecoder,
        block: &KvBlock,
        options: TrainingOptions,
    ) -> Result<Self> {
        let (own, found) = (decoder.config().kv_shape(), block.shape());
        let tokens = block.num_tokens();
        if own != found || tokens <= FROZEN || block.positions().start != 0 {
            return Err(ModelError::Kv(format!(
                "{tokens} tokens of {found} from position {} cannot be tuned for a model of {own}",
                block.positions().start
            ))
            .into());
        }
        let kv = TunedKv::new(decoder, block)?;
        let adam = Adam::new(&kv.variables().collect::<Vec<_>>());
        Ok(Self {
            decoder,
            kv,
            options,
            adam,
        })
    }

    /// One step towards what a teacher says; the losses before it.
    ///
    /// # Errors
    /// Distributions of other sequences or of another vocabulary, and a device that fails.
    pub fn step(&mut self, sequences: &[Sequence], teacher: &Distributions) -> Result<Losses> {
        let (loss, losses) = self.loss(sequences, teacher, true)?;
        let gradients = loss.backward()?;
        let rate = self.options.rate(self.adam.steps);
        let variables: Vec<&Var> = self.kv.variables().collect();
        self.adam.step(&variables, &gradients, rate)?;
        Ok(losses)
    }

    /// What the KV as tuned so far gives. Sequences given together are all in memory at once.
    ///
    /// # Errors
    /// As for [`Self::step`].
    pub fn evaluate(&self, sequences: &[Sequence], teacher: &Distributions) -> Result<Losses> {
        Ok(self.loss(sequences, teacher, false)?.1)
    }

    fn loss(
        &self,
        sequences: &[Sequence],
        teacher: &Distributions,
        learns: bool,
    ) -> Result<(Tensor, Losses)> {
        let device = self.decoder.device();
        let tokens: Vec<&[u32]> = sequences.iter().map(|s| &s.tokens[..]).collect();
        let packed = Packed::new(&tokens, self.kv.len(), device)?;
        let (kept, answers) = answers(sequences);
        let target = teacher.tensor(kept.len(), device)?;
        let context = match learns {
            true => self.kv.kv()?,
            // Without gradients nothing that lies between is kept.
            false => self.kv.kv()?.iter().map(Kv::detach).collect(),
        };
        let hidden = self.decoder.forward(&packed, &context, |_, _| Ok(()))?;
        let logits = self.decoder.logits(&hidden, &kept)?;
        let kl = (ops::divergence(&logits, &target)? / kept.len().max(1) as f64)?;
        let losses = Losses {
            attention: 0.0,
            kl: number(&kl)?,
            nll: nll(&ops::log_probs(&logits.detach(), &answers)?, &answers),
            teacher_nll: nll(&likely(&target, &answers)?, &answers),
        };
        Ok((kl, losses))
    }

    /// The KV as tuned so far, pre-RoPE like every block.
    ///
    /// # Errors
    /// A device that fails.
    pub fn block(&self) -> Result<KvBlock> {
        self.kv.block(self.decoder)
    }
}
