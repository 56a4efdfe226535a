//! KV that is tuned itself: the numbers are what gradients move.

use candle_core::{Device, Tensor, Var};
use celslm_kv::{AlignError, BlockSpec, KvBlock, LayerKv};
use half::f16;

use crate::Result;
use crate::frozen::{FrozenDecoder, Kv};

/// First tokens that stay as they are: attention sinks, which everything hangs on.
pub(crate) const FROZEN: usize = 1;

/// One layer, in units of how its numbers vary.
struct Layer {
    /// What stays, `[num_kv_heads, frozen tokens, head_dim]`.
    fixed: Kv,
    k: Var,
    v: Var,
    /// Spread of each channel, `[num_kv_heads, 1, head_dim]`.
    spread: Kv,
}

/// The KV of a run of tokens from position 0, keys rotated while it is tuned.
pub(crate) struct TunedKv {
    spec: BlockSpec,
    layers: Vec<Layer>,
}

impl TunedKv {
    /// Begins at a block of more than [`FROZEN`] tokens.
    pub(crate) fn new(decoder: &FrozenDecoder, block: &KvBlock) -> Result<Self> {
        let tokens = block.num_tokens();
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
                    k: kv.k.narrow(1, 0, FROZEN)?.contiguous()?,
                    v: kv.v.narrow(1, 0, FROZEN)?.contiguous()?,
                },
                spread,
            })
        };
        let layers = decoder.own_kv(block)?.into_iter().map(layer);
        Ok(Self {
            spec: block.spec().clone(),
            layers: layers.collect::<Result<_>>()?,
        })
    }

    /// Tokens.
    pub(crate) fn len(&self) -> usize {
        self.spec.num_tokens()
    }

    /// What is tuned, always in the same order.
    pub(crate) fn variables(&self) -> impl Iterator<Item = &Var> {
        self.layers.iter().flat_map(|layer| [&layer.k, &layer.v])
    }

    /// Keys and values with gradients.
    pub(crate) fn kv(&self) -> Result<Vec<Kv>> {
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
    pub(crate) fn block(&self, decoder: &FrozenDecoder) -> Result<KvBlock> {
        let narrow = |x: &Tensor| -> Result<Vec<f16>> {
            let numbers: Vec<f32> = x
                .contiguous()?
                .to_device(&Device::Cpu)?
                .flatten_all()?
                .to_vec1()?;
            let halves = numbers
                .iter()
                .map(|x| f16::from_f32(x.clamp(-65504.0, 65504.0)));
            Ok(halves.collect())
        };
        let layer = |kv: Kv| -> Result<LayerKv> {
            Ok(LayerKv {
                k: narrow(&decoder.unrotated(&kv.k)?)?,
                v: narrow(&kv.v)?,
            })
        };
        let layers = self.kv()?.into_iter().map(layer);
        let layers = layers.collect::<Result<Vec<_>>>()?;
        Ok(KvBlock::from_spec(self.spec.clone(), layers).map_err(AlignError::from)?)
    }
}
