//! A context's KV for the edge's model, tuned before anything is asked about it: self-study
//! (Cartridges, arXiv 2506.06266) with another model's distributions as the teacher.

use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use celslm_kv::{BlockSpec, KvBlock, LayerKv};
use celslm_model::{BatchItem, Decoder, KeyRetention, KvCache, KvPrefix, ModelError};
use half::f16;

use crate::adam::Adam;
use crate::frozen::{FrozenDecoder, Kv, Packed};
use crate::trainer::{Losses, Sequence, TrainingOptions, answers, nll, number};
use crate::{Result, ops};

/// First tokens that stay as they are: attention sinks, which everything hangs on.
const FROZEN: usize = 1;

/// What a teacher says at the answers of some sequences.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Distributions {
    /// Probabilities, `[answer rows, vocab_size]`.
    rows: Vec<f32>,
    vocab_size: usize,
}

impl Distributions {
    /// A model's, from its own KV of the context.
    ///
    /// # Errors
    /// As [`Decoder::forward_all_logits`].
    pub fn of(decoder: &Decoder, context: &Arc<KvPrefix>, sequences: &[Sequence]) -> Result<Self> {
        let mut rows = Vec::new();
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
                let start = rows.len();
                rows.extend(logits.iter().map(|x| (x - top).exp()));
                let sum: f64 = rows[start..].iter().map(|x| f64::from(*x)).sum();
                rows[start..].iter_mut().for_each(|x| *x /= sum as f32);
            }
        }
        Ok(Self {
            rows,
            vocab_size: decoder.vocab_size(),
        })
    }
}

impl Distributions {
    /// Those of further sequences behind these.
    pub fn extend(&mut self, more: &Self) {
        self.rows.extend_from_slice(&more.rows);
        self.vocab_size = more.vocab_size;
    }
}

/// One layer, in units of how its numbers vary.
struct Layer {
    /// What stays, `[num_kv_heads, frozen tokens, head_dim]`.
    fixed: Kv,
    k: Var,
    v: Var,
    /// Spread of each channel, `[num_kv_heads, 1, head_dim]`.
    spread: Kv,
}

/// A context's KV being tuned.
pub struct Distiller<'a> {
    decoder: &'a FrozenDecoder,
    spec: BlockSpec,
    layers: Vec<Layer>,
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
        let layers = decoder.own_kv(block)?;
        let layer = |kv: Kv| -> Result<Layer> {
            let spread = |x: &Tensor| -> Result<Tensor> {
                let rest = x.narrow(1, FROZEN, tokens - FROZEN)?;
                let centred = rest.broadcast_sub(&rest.mean_keepdim(1)?)?;
                Ok((centred.sqr()?.mean_keepdim(1)?.sqrt()? + 1e-4)?)
            };
            let spread = Kv {
                k: spread(&kv.k)?,
                v: spread(&kv.v)?,
            };
            let var = |x: &Tensor, spread: &Tensor| -> Result<Var> {
                let rest = x.narrow(1, FROZEN, tokens - FROZEN)?;
                Ok(Var::from_tensor(
                    &rest.broadcast_div(spread)?.contiguous()?,
                )?)
            };
            Ok(Layer {
                k: var(&kv.k, &spread.k)?,
                v: var(&kv.v, &spread.v)?,
                fixed: Kv {
                    k: kv.k.narrow(1, 0, FROZEN)?,
                    v: kv.v.narrow(1, 0, FROZEN)?,
                },
                spread,
            })
        };
        let layers = layers.into_iter().map(layer).collect::<Result<Vec<_>>>()?;
        let adam = Adam::new(&variables(&layers));
        Ok(Self {
            decoder,
            spec: block.spec().clone(),
            layers,
            options,
            adam,
        })
    }

    /// One step towards what a teacher says; the losses before it. `own_nll` is the teacher's.
    ///
    /// # Errors
    /// Distributions of other sequences or of another vocabulary, and a device that fails.
    pub fn step(&mut self, sequences: &[Sequence], teacher: &Distributions) -> Result<Losses> {
        let (loss, losses) = self.loss(sequences, teacher)?;
        let gradients = loss.backward()?;
        let rate = self.options.rate(self.adam.steps);
        self.adam.step(&variables(&self.layers), &gradients, rate)?;
        Ok(losses)
    }

    /// What the KV as tuned so far gives.
    ///
    /// # Errors
    /// As for [`Self::step`].
    pub fn evaluate(&self, sequences: &[Sequence], teacher: &Distributions) -> Result<Losses> {
        Ok(self.loss(sequences, teacher)?.1)
    }

    fn loss(&self, sequences: &[Sequence], teacher: &Distributions) -> Result<(Tensor, Losses)> {
        let device = self.decoder.device();
        let tokens: Vec<&[u32]> = sequences.iter().map(|s| &s.tokens[..]).collect();
        let packed = Packed::new(&tokens, self.spec.num_tokens(), device)?;
        let (kept, answers) = answers(sequences);
        let size = (kept.len(), teacher.vocab_size);
        if teacher.rows.len() != size.0 * size.1 {
            return Err(ModelError::Kv("the teacher spoke of other sequences".to_owned()).into());
        }
        let target = Tensor::from_slice(&teacher.rows, size, device)?;
        let context = self.kv()?;
        let hidden = self.decoder.forward(&packed, &context, |_, _| Ok(()))?;
        let logits = self.decoder.logits(&hidden, &kept)?;
        let kl = (ops::divergence(&logits, &target)? / kept.len().max(1) as f64)?;
        let losses = Losses {
            attention: 0.0,
            kl: number(&kl)?,
            nll: nll(&ops::softmax(&logits.detach())?, &answers)?,
            own_nll: nll(&target, &answers)?,
        };
        Ok((kl, losses))
    }

    /// Keys and values with gradients.
    fn kv(&self) -> Result<Vec<Kv>> {
        let side = |fixed: &Tensor, x: &Var, spread: &Tensor| -> Result<Tensor> {
            Ok(Tensor::cat(&[fixed, &x.broadcast_mul(spread)?], 1)?)
        };
        let layer = |layer: &Layer| -> Result<Kv> {
            Ok(Kv {
                k: side(&layer.fixed.k, &layer.k, &layer.spread.k)?,
                v: side(&layer.fixed.v, &layer.v, &layer.spread.v)?,
            })
        };
        self.layers.iter().map(layer).collect()
    }

    /// The KV as tuned so far, pre-RoPE like every block.
    ///
    /// # Errors
    /// A device that fails.
    pub fn block(&self) -> Result<KvBlock> {
        let kv = self.kv()?;
        let narrow = |x: &Tensor| -> Result<Vec<f16>> {
            let numbers: Vec<f32> = x
                .contiguous()?
                .to_device(&Device::Cpu)?
                .flatten_all()?
                .to_vec1()?;
            Ok(numbers
                .iter()
                .map(|x| f16::from_f32(x.clamp(-65504.0, 65504.0)))
                .collect())
        };
        let layer = |kv: &Kv| -> Result<LayerKv> {
            Ok(LayerKv {
                k: narrow(&self.decoder.unrotated(&kv.k)?)?,
                v: narrow(&kv.v)?,
            })
        };
        let layers = kv.iter().map(layer).collect::<Result<Vec<_>>>()?;
        Ok(KvBlock::from_spec(self.spec.clone(), layers).map_err(celslm_kv::AlignError::from)?)
    }
}

fn variables(layers: &[Layer]) -> Vec<&Var> {
    layers
        .iter()
        .flat_map(|layer| [&layer.k, &layer.v])
        .collect()
}
