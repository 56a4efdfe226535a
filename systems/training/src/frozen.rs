//! A frozen decoder that gradients pass through, on their way to the KV that it attends to.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use celslm_kv::{KvBlock, LayerKv};
use celslm_model::{Config, FrozenMatrix, GgufFile, ModelError, RopeStyle, RotaryEmbedding};
use half::f16;

use crate::attention::attention;
use crate::ops::{self, Weight};
use crate::{Result, TrainingError};

/// `x Wᵀ + b`, frozen.
struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

impl Linear {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let y = ops::product(x, &self.weight)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

struct Layer {
    input_layernorm: Tensor,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    post_attention_layernorm: Tensor,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

/// Keys and values of one layer, `[num_kv_heads, tokens, head_dim]` each, keys rotated.
#[derive(Debug, Clone)]
pub(crate) struct Kv {
    pub(crate) k: Tensor,
    pub(crate) v: Tensor,
}

impl Kv {
    /// The same, without a way for gradients.
    pub(crate) fn detach(&self) -> Self {
        Self {
            k: self.k.detach(),
            v: self.v.detach(),
        }
    }
}

/// Private sequences behind one shared context, packed into rows: which may see which, and where
/// each stands.
pub(crate) struct Packed {
    /// Tokens of all sequences.
    pub(crate) tokens: Vec<u32>,
    positions: Vec<usize>,
    /// `[rows, rows]`, 0 where a row may look and minus infinity elsewhere.
    mask: Tensor,
}

impl Packed {
    /// Sequences that all begin behind `context` tokens.
    pub(crate) fn new(sequences: &[&[u32]], context: usize, device: &Device) -> Result<Self> {
        let tokens = sequences.concat();
        let rows = tokens.len();
        let mut positions = Vec::with_capacity(rows);
        let mut mask = vec![f32::NEG_INFINITY; rows * rows];
        for sequence in sequences {
            let start = positions.len();
            for place in 0..sequence.len() {
                let row = (start + place) * rows;
                mask[row + start..=row + start + place].fill(0.0);
                positions.push(context + place);
            }
        }
        Ok(Self {
            tokens,
            positions,
            mask: Tensor::from_vec(mask, (rows, rows), device)?,
        })
    }

    /// Which row may see which.
    pub(crate) const fn mask(&self) -> &Tensor {
        &self.mask
    }

    /// Rows.
    pub(crate) const fn len(&self) -> usize {
        self.tokens.len()
    }
}

/// What one layer's attention was asked and found.
pub(crate) struct Attended {
    /// Rotated queries, `[rows, num_heads, head_dim]`.
    pub(crate) q: Tensor,
    /// Keys and values of the rows themselves.
    pub(crate) own: Kv,
    /// What the block adds to the residual stream, `[rows, hidden_size]`.
    pub(crate) out: Tensor,
}

/// A decoder whose weights take no gradient. Half a billion parameters take 1.5 GB on the CPU, where
/// its products are those of the decoder that answers, and 2 GB on a GPU, in f32.
pub struct FrozenDecoder {
    config: Config,
    rope: RotaryEmbedding,
    device: Device,
    embed_tokens: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    lm_head: Weight,
}

/// A tensor in f32.
fn tensor(gguf: &mut GgufFile, name: &str, shape: &[usize], device: &Device) -> Result<Tensor> {
    let numbers = gguf.dense(name, shape)?;
    Ok(Tensor::from_vec(numbers, shape, device)?)
}

/// A matrix that rows are multiplied by.
fn weight(gguf: &mut GgufFile, name: &str, shape: [usize; 2], device: &Device) -> Result<Weight> {
    Ok(match device.is_cpu() {
        true => Weight::Packed(Arc::new(FrozenMatrix::read(gguf, name, shape)?)),
        false => Weight::Dense(tensor(gguf, name, &shape, device)?),
    })
}

impl FrozenDecoder {
    /// Reads every tensor of a model file.
    ///
    /// # Errors
    /// Whatever the file lacks, and a device that has no room for it.
    pub fn load(gguf: &mut GgufFile, device: &Device) -> Result<Self> {
        let config = Config::read(gguf)?;
        let hidden = config.hidden_size;
        let q_width = config.num_attention_heads * config.head_dim;
        let kv_width = config.num_key_value_heads * config.head_dim;
        let embedding = [gguf.rows("token_embd.weight")?, hidden];
        let embed_tokens = tensor(gguf, "token_embd.weight", &embedding, device)?;
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for layer in 0..config.num_hidden_layers {
            let name = |part: &str| format!("blk.{layer}.{part}");
            let input_layernorm = tensor(gguf, &name("attn_norm.weight"), &[hidden], device)?;
            let post_attention_layernorm =
                tensor(gguf, &name("ffn_norm.weight"), &[hidden], device)?;
            let mut linear = |part: &str, rows: usize, columns: usize, biased: bool| {
                let weight = weight(
                    gguf,
                    &name(&format!("{part}.weight")),
                    [rows, columns],
                    device,
                )?;
                let bias = match biased {
                    true => Some(tensor(
                        gguf,
                        &name(&format!("{part}.bias")),
                        &[rows],
                        device,
                    )?),
                    false => None,
                };
                Ok::<_, TrainingError>(Linear { weight, bias })
            };
            let (biased, wide) = (config.attention_bias, config.intermediate_size);
            layers.push(Layer {
                input_layernorm,
                q_proj: linear("attn_q", q_width, hidden, biased)?,
                k_proj: linear("attn_k", kv_width, hidden, biased)?,
                v_proj: linear("attn_v", kv_width, hidden, biased)?,
                o_proj: linear("attn_output", hidden, q_width, false)?,
                post_attention_layernorm,
                gate_proj: linear("ffn_gate", wide, hidden, false)?,
                up_proj: linear("ffn_up", wide, hidden, false)?,
                down_proj: linear("ffn_down", hidden, wide, false)?,
            });
        }
        let norm = tensor(gguf, "output_norm.weight", &[hidden], device)?;
        let tied = match gguf.has_tensor("output.weight") {
            true => "output.weight",
            false => "token_embd.weight",
        };
        let lm_head = weight(gguf, tied, embedding, device)?;
        Ok(Self {
            rope: RotaryEmbedding::new(config.rope_style, config.head_dim, config.rope_theta),
            config,
            device: device.clone(),
            embed_tokens,
            layers,
            norm,
            lm_head,
        })
    }

    /// Where it computes.
    pub(crate) const fn device(&self) -> &Device {
        &self.device
    }

    /// Hyper-parameters.
    pub(crate) const fn config(&self) -> &Config {
        &self.config
    }

    /// Runs packed sequences behind a context's KV and shows each layer's attention. What comes
    /// back is `[rows, hidden_size]`, before the last norm.
    pub(crate) fn forward(
        &self,
        packed: &Packed,
        context: &[Kv],
        mut each: impl FnMut(usize, Attended) -> Result<()>,
    ) -> Result<Tensor> {
        let Config {
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            rms_norm_eps,
            ..
        } = self.config;
        let (rows, eps) = (packed.len(), f64::from(rms_norm_eps));
        if packed
            .tokens
            .iter()
            .any(|token| *token as usize >= self.embed_tokens.dims()[0])
        {
            return Err(ModelError::Kv("a token lies outside the vocabulary".to_owned()).into());
        }
        let tokens = Tensor::new(packed.tokens.as_slice(), &self.device)?;
        let angles = self.angles(&packed.positions)?;
        let mut x = self.embed_tokens.index_select(&tokens, 0)?;
        for (index, (layer, context)) in self.layers.iter().zip(context).enumerate() {
            let h = ops::rms_norm(&x, &layer.input_layernorm, eps)?;
            let heads = |linear: &Linear, heads: usize| -> Result<Tensor> {
                Ok(linear.forward(&h)?.reshape((rows, heads, head_dim))?)
            };
            let q = self.rotate(&heads(&layer.q_proj, num_attention_heads)?, &angles)?;
            let k = self.rotate(&heads(&layer.k_proj, num_key_value_heads)?, &angles)?;
            let v = heads(&layer.v_proj, num_key_value_heads)?;
            let own = Kv {
                k: k.transpose(0, 1)?.contiguous()?,
                v: v.transpose(0, 1)?.contiguous()?,
            };
            let out = self.attend(index, &q, &own, context, &packed.mask)?;
            x = (x + &out)?;
            each(index, Attended { q, own, out })?;
            let h = ops::rms_norm(&x, &layer.post_attention_layernorm, eps)?;
            let gate = layer.gate_proj.forward(&h)?.silu()?;
            let h = (gate * layer.up_proj.forward(&h)?)?;
            x = (x + layer.down_proj.forward(&h)?)?;
        }
        Ok(x)
    }

    /// What rotated queries `[rows, num_heads, head_dim]` read from a context and from the rows
    /// that they may see, through the output projection: `[rows, hidden_size]`.
    pub(crate) fn attend(
        &self,
        layer: usize,
        q: &Tensor,
        own: &Kv,
        context: &Kv,
        mask: &Tensor,
    ) -> Result<Tensor> {
        let Config {
            num_attention_heads,
            num_key_value_heads: kv_heads,
            head_dim,
            ..
        } = self.config;
        let (rows, group) = (q.dims()[0], num_attention_heads / kv_heads);
        let q = q.reshape((rows, kv_heads, group, head_dim))?;
        let q = q
            .permute((1, 2, 0, 3))?
            .reshape((kv_heads, group * rows, head_dim))?;
        let q = (q * (head_dim as f64).powf(-0.5))?;
        let shared = context.k.dims()[1];
        let seen = Tensor::zeros((rows, shared), mask.dtype(), &self.device)?;
        let mask = Tensor::cat(&[&seen, mask], 1)?;
        let k = Tensor::cat(&[&context.k, &own.k], 1)?;
        let v = Tensor::cat(&[&context.v, &own.v], 1)?;
        let read = attention(&q, &k, &v, &mask)?.reshape((kv_heads, group, rows, head_dim))?;
        let read = read.permute((2, 0, 1, 3))?;
        let read = read.reshape((rows, num_attention_heads * head_dim))?;
        Ok(self.layers[layer].o_proj.forward(&read)?)
    }

    /// Logits of some rows, `[kept, vocab_size]`.
    pub(crate) fn logits(&self, hidden: &Tensor, kept: &[u32]) -> Result<Tensor> {
        let kept = Tensor::new(kept, &self.device)?;
        let hidden = hidden.index_select(&kept, 0)?;
        let eps = f64::from(self.config.rms_norm_eps);
        let hidden = ops::rms_norm(&hidden, &self.norm, eps)?;
        Ok(ops::product(&hidden, &self.lm_head)?)
    }

    /// Cosines and sines at some positions, `[positions, 1, head_dim / 2]`.
    pub(crate) fn angles(&self, positions: &[usize]) -> Result<(Tensor, Tensor)> {
        let end = positions.iter().max().map_or(0, |last| last + 1);
        let (cos, sin) = self.rope.angles(0..end);
        let pairs = self.config.head_dim / 2;
        let pick = |all: &[f32]| -> Result<Tensor> {
            let picked: Vec<f32> = positions
                .iter()
                .flat_map(|at| all[at * pairs..(at + 1) * pairs].iter().copied())
                .collect();
            Ok(Tensor::from_vec(
                picked,
                (positions.len(), 1, pairs),
                &self.device,
            )?)
        };
        Ok((pick(&cos)?, pick(&sin)?))
    }

    /// A block of this model's KV as tensors, keys rotated.
    pub(crate) fn own_kv(&self, block: &KvBlock) -> Result<Vec<Kv>> {
        let shape = block.shape();
        let positions: Vec<usize> = block.positions().collect();
        let angles = self.angles(&positions)?;
        let side = |numbers: &[f16]| -> Result<Tensor> {
            let numbers: Vec<f32> = numbers.iter().map(|x| x.to_f32()).collect();
            let size = (shape.num_kv_heads, block.num_tokens(), shape.head_dim);
            Ok(Tensor::from_vec(numbers, size, &self.device)?)
        };
        let layer = |kv: &LayerKv| -> Result<Kv> {
            let k = side(&kv.k)?.transpose(0, 1)?.contiguous()?;
            let k = self.rotate(&k, &angles)?;
            Ok(Kv {
                k: k.transpose(0, 1)?.contiguous()?,
                v: side(&kv.v)?,
            })
        };
        block.layers().iter().map(layer).collect()
    }

    /// Rotated keys `[num_kv_heads, tokens, head_dim]` of the first positions as they were before.
    pub(crate) fn unrotated(&self, k: &Tensor) -> Result<Tensor> {
        let positions: Vec<usize> = (0..k.dims()[1]).collect();
        let (cos, sin) = self.angles(&positions)?;
        let k = k.transpose(0, 1)?.contiguous()?;
        let k = self.rotate(&k, &(cos, sin.neg()?))?;
        Ok(k.transpose(0, 1)?.contiguous()?)
    }

    /// Rotates heads `[tokens, heads, head_dim]`.
    pub(crate) fn rotate(&self, x: &Tensor, (cos, sin): &(Tensor, Tensor)) -> Result<Tensor> {
        let (tokens, heads, width) = x.dims3()?;
        let half = width / 2;
        let turn = |a: &Tensor, b: &Tensor| -> Result<[Tensor; 2]> {
            Ok([
                (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?,
                (a.broadcast_mul(sin)? + b.broadcast_mul(cos)?)?,
            ])
        };
        Ok(match self.config.rope_style {
            RopeStyle::Neox => {
                let [a, b] = turn(&x.narrow(2, 0, half)?, &x.narrow(2, half, half)?)?;
                Tensor::cat(&[a, b], 2)?
            }
            RopeStyle::Interleaved => {
                let pairs = x.reshape((tokens, heads, half, 2))?;
                let side = |at| -> Result<Tensor> { Ok(pairs.narrow(3, at, 1)?.squeeze(3)?) };
                let [a, b] = turn(&side(0)?, &side(1)?)?;
                Tensor::stack(&[a, b], 3)?.reshape((tokens, heads, width))?
            }
        })
    }
}
