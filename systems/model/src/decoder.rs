//! A Llama-like decoder, layer by layer.

use crate::attention::{Heads, attend};
use crate::families::read_config;
use crate::linear::Linear;
use crate::{Config, GgufFile, KeyRetention, KvCache, ModelError, RotaryEmbedding};
use candle_core::quantized::QTensor;
use candle_core::{DType, Device, Tensor};
use candle_nn::ops::{rms_norm, silu};
use celslm_kv::{KvBlock, KvShape, ModelFingerprint};

/// Tokens per forward pass when a context is prefilled. One constant for every system, so
/// that a context's KV is computed in the same pieces wherever it is computed.
pub const PREFILL_CHUNK: usize = 256;

/// One sequence's share of a ragged forward pass.
pub struct BatchItem<'a> {
    /// The sequence's next tokens; at least one.
    pub tokens: &'a [u32],
    /// Its cache, to which they are appended.
    pub cache: &'a mut KvCache,
    /// Whether the logits of the last of them are wanted.
    pub logits: bool,
}

/// Activations between two layers, `[batch = 1, seq_len, hidden_size]`.
pub struct Hidden(Tensor);

impl Hidden {
    /// Tokens in flight.
    pub fn seq_len(&self) -> usize {
        self.0.dims().get(1).copied().unwrap_or(0)
    }

    /// Activations of zeros, for exercising schedules without a model.
    ///
    /// # Errors
    /// [`ModelError::Compute`] when they cannot be allocated.
    pub fn zeros(seq_len: usize, hidden_size: usize) -> Result<Self, ModelError> {
        Ok(Self(Tensor::zeros(
            (1, seq_len, hidden_size),
            DType::F32,
            &Device::Cpu,
        )?))
    }

    /// The activations as `[seq_len, hidden_size]` in f32.
    ///
    /// # Errors
    /// [`ModelError::Compute`] when the tensor cannot be read.
    pub fn to_vec(&self) -> Result<Vec<f32>, ModelError> {
        Ok(self.0.flatten_all()?.to_vec1()?)
    }
}

struct RmsNorm {
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    fn load(gguf: &mut GgufFile, name: &str, config: &Config) -> Result<Self, ModelError> {
        let weight = gguf
            .tensor(name, &[config.hidden_size])?
            .dequantize(&Device::Cpu)?;
        Ok(Self {
            weight,
            eps: config.rms_norm_eps,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(rms_norm(&x.contiguous()?, &self.weight, self.eps)?)
    }
}

struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
}

struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl Mlp {
    fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let gate = silu(&self.gate_proj.forward(x)?)?;
        self.down_proj.forward(&(gate * self.up_proj.forward(x)?)?)
    }
}

struct DecoderLayer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

/// A loaded model. Immutable: any number of sequences, each with its own [`KvCache`], may run
/// through it at once.
pub struct Decoder {
    config: Config,
    fingerprint: ModelFingerprint,
    rope: RotaryEmbedding,
    embed_tokens: QTensor,
    vocab_size: usize,
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
    lm_head: Linear,
    weights_bytes: usize,
}

impl Decoder {
    /// Loads every tensor of a GGUF file.
    ///
    /// # Errors
    /// [`ModelError::UnknownArchitecture`], or whatever the file lacks.
    pub fn load(gguf: &mut GgufFile) -> Result<Self, ModelError> {
        let config = read_config(gguf)?;
        let hidden = config.hidden_size;
        let q_width = config.num_attention_heads * config.head_dim;
        let kv_width = config.num_key_value_heads * config.head_dim;
        let vocab_size = gguf.rows("token_embd.weight")?;
        let embed_tokens = gguf.tensor("token_embd.weight", &[vocab_size, hidden])?;
        // A model without an output matrix ties it to the embedding.
        let output = match gguf.has_tensor("output.weight") {
            true => "output.weight",
            false => "token_embd.weight",
        };
        let lm_head = Linear::new(gguf.tensor(output, &[vocab_size, hidden])?, None)?;
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for layer in 0..config.num_hidden_layers {
            let name = |part: &str| format!("blk.{layer}.{part}");
            let mut linear = |part: &str, rows: usize, columns: usize, biased: bool| {
                let weight = gguf.tensor(&name(&format!("{part}.weight")), &[rows, columns])?;
                let bias = match biased {
                    true => {
                        let bias = gguf.tensor(&name(&format!("{part}.bias")), &[rows])?;
                        Some(bias.dequantize(&Device::Cpu)?)
                    }
                    false => None,
                };
                Linear::new(weight, bias)
            };
            let biased = config.attention_bias;
            let self_attn = Attention {
                q_proj: linear("attn_q", q_width, hidden, biased)?,
                k_proj: linear("attn_k", kv_width, hidden, biased)?,
                v_proj: linear("attn_v", kv_width, hidden, biased)?,
                o_proj: linear("attn_output", hidden, q_width, false)?,
            };
            let mlp = Mlp {
                gate_proj: linear("ffn_gate", config.intermediate_size, hidden, false)?,
                up_proj: linear("ffn_up", config.intermediate_size, hidden, false)?,
                down_proj: linear("ffn_down", hidden, config.intermediate_size, false)?,
            };
            layers.push(DecoderLayer {
                input_layernorm: RmsNorm::load(gguf, &name("attn_norm.weight"), &config)?,
                self_attn,
                post_attention_layernorm: RmsNorm::load(gguf, &name("ffn_norm.weight"), &config)?,
                mlp,
            });
        }
        Ok(Self {
            rope: RotaryEmbedding::new(config.rope_style, config.head_dim, config.rope_theta),
            fingerprint: gguf.fingerprint()?,
            weights_bytes: gguf.tensor_bytes(),
            norm: RmsNorm::load(gguf, "output_norm.weight", &config)?,
            embed_tokens,
            vocab_size,
            layers,
            lm_head,
            config,
        })
    }

    /// Hyper-parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// BLAKE3 of the model file.
    pub fn fingerprint(&self) -> ModelFingerprint {
        self.fingerprint
    }

    /// Bytes that the weights take in memory.
    pub fn weights_bytes(&self) -> usize {
        self.weights_bytes
    }

    /// Shape of the KV of a context.
    pub fn kv_shape(&self) -> KvShape {
        self.config.kv_shape()
    }

    /// The model's rotary tables, with which imported keys are rotated.
    pub fn rope(&self) -> &RotaryEmbedding {
        &self.rope
    }

    /// Entries of the vocabulary, and the length of a row of logits.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Embeds tokens: the input of layer 0.
    ///
    /// # Errors
    /// [`ModelError::Incomplete`]-like computation errors for ids outside the vocabulary.
    pub fn embed(&self, tokens: &[u32]) -> Result<Hidden, ModelError> {
        if let Some(&token) = tokens
            .iter()
            .find(|&&token| token as usize >= self.vocab_size)
        {
            return Err(ModelError::Kv(format!(
                "token {token} lies outside the vocabulary of {}",
                self.vocab_size
            )));
        }
        let ids = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        Ok(Hidden(
            self.embed_tokens.embedding(&ids)?.to_dtype(DType::F32)?,
        ))
    }

    /// Runs one layer and appends its KV to the cache, at the position that the cache states.
    ///
    /// # Errors
    /// [`ModelError::TooLong`] when the cache or the model's window is full, and
    /// [`ModelError::Kv`] when a shared prefix lacks this layer.
    pub fn forward_layer(
        &self,
        layer: usize,
        hidden: &Hidden,
        cache: &mut KvCache,
    ) -> Result<Hidden, ModelError> {
        let weights = &self.layers[layer];
        let x = &hidden.0;
        let normed = weights.input_layernorm.forward(x)?;
        let attended = self.attention(layer, &weights.self_attn, &normed, cache)?;
        let x = (x + attended)?;
        let normed = weights.post_attention_layernorm.forward(&x)?;
        Ok(Hidden((&x + weights.mlp.forward(&normed)?)?))
    }

    fn attention(
        &self,
        layer: usize,
        weights: &Attention,
        x: &Tensor,
        cache: &mut KvCache,
    ) -> Result<Tensor, ModelError> {
        let (batch, seq_len, _) = x.dims3()?;
        let config = &self.config;
        let position = cache.len(layer);
        if position + seq_len > config.max_position_embeddings {
            return Err(ModelError::TooLong {
                wanted: position + seq_len,
                limit: config.max_position_embeddings,
                what: "the model's context window",
            });
        }
        let flat = |x: Tensor| -> Result<Vec<f32>, ModelError> { Ok(x.flatten_all()?.to_vec1()?) };
        let mut queries = flat(weights.q_proj.forward(x)?)?;
        let keys = flat(weights.k_proj.forward(x)?)?;
        let values = flat(weights.v_proj.forward(x)?)?;
        self.rope
            .rotate(&mut queries, config.num_attention_heads, position);
        cache.append(layer, &keys, &values, &self.rope)?;
        let (prefix, tail) = cache.segments(layer)?;
        let heads = Heads {
            num_heads: config.num_attention_heads,
            num_kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        };
        let attended = attend(&queries, heads, prefix, tail)?;
        let width = config.num_attention_heads * config.head_dim;
        weights.o_proj.forward(&Tensor::from_vec(
            attended,
            (batch, seq_len, width),
            &Device::Cpu,
        )?)
    }

    /// Logits of the last token, `[vocab_size]`, from the output of the last layer.
    ///
    /// # Errors
    /// [`ModelError::Compute`] on a defect.
    pub fn logits(&self, hidden: &Hidden) -> Result<Vec<f32>, ModelError> {
        let last = hidden.0.narrow(1, hidden.seq_len().saturating_sub(1), 1)?;
        self.head(&last)
    }

    /// Logits of every token, `[seq_len, vocab_size]`: for likelihoods, not for generation.
    ///
    /// # Errors
    /// [`ModelError::Compute`] on a defect.
    pub fn all_logits(&self, hidden: &Hidden) -> Result<Vec<f32>, ModelError> {
        self.head(&hidden.0)
    }

    fn head(&self, x: &Tensor) -> Result<Vec<f32>, ModelError> {
        Ok(self
            .lm_head
            .forward(&self.norm.forward(x)?)?
            .flatten_all()?
            .to_vec1()?)
    }

    /// Runs tokens through all layers in one pass.
    ///
    /// # Errors
    /// As [`Decoder::forward_layer`].
    pub fn forward(&self, tokens: &[u32], cache: &mut KvCache) -> Result<Hidden, ModelError> {
        let mut hidden = self.embed(tokens)?;
        for layer in 0..self.layers.len() {
            hidden = self.forward_layer(layer, &hidden, cache)?;
        }
        Ok(hidden)
    }

    /// One pass over several sequences, each with as many tokens as it likes: the logits of the
    /// last token, `[vocab_size]`, for every item that wants them.
    ///
    /// A sequence's result depends on its own tokens and cache only, bit for bit: neither on
    /// what else is in the batch nor on how its tokens were cut into calls.
    ///
    /// # Errors
    /// As [`Decoder::forward_layer`]. The caches may have grown by part of the tokens then.
    pub fn forward_batch(
        &self,
        items: &mut [BatchItem<'_>],
    ) -> Result<Vec<Option<Vec<f32>>>, ModelError> {
        items
            .iter_mut()
            .map(|item| {
                let hidden = self.forward(item.tokens, item.cache)?;
                item.logits.then(|| self.logits(&hidden)).transpose()
            })
            .collect()
    }

    /// Prefills a context in pieces of [`PREFILL_CHUNK`] tokens. `proceed` is asked before each
    /// piece; `Ok(false)` means that it said stop.
    ///
    /// # Errors
    /// As [`Decoder::forward_layer`].
    pub fn prefill(
        &self,
        tokens: &[u32],
        cache: &mut KvCache,
        mut proceed: impl FnMut() -> bool,
    ) -> Result<bool, ModelError> {
        for piece in tokens.chunks(PREFILL_CHUNK) {
            if !proceed() {
                return Ok(false);
            }
            self.forward(piece, cache)?;
        }
        Ok(true)
    }

    /// Computes the pre-RoPE KV of a context from its start. `Ok(None)` when `proceed` said stop.
    ///
    /// # Errors
    /// As [`Decoder::forward_layer`].
    pub fn context_kv(
        &self,
        tokens: &[u32],
        proceed: impl FnMut() -> bool,
    ) -> Result<Option<KvBlock>, ModelError> {
        let mut cache = KvCache::new(self.kv_shape(), None, tokens.len(), KeyRetention::PreRope)?;
        if !self.prefill(tokens, &mut cache, proceed)? {
            return Ok(None);
        }
        cache.read(self.fingerprint, 0..tokens.len()).map(Some)
    }

    /// Runs a prefill-shaped and a decode-shaped pass and throws the result away: the kernels
    /// repack their weights at first use, and that must not land in a measurement.
    ///
    /// # Errors
    /// As [`Decoder::forward_layer`].
    pub fn warm_up(&self) -> Result<(), ModelError> {
        let tokens = vec![0u32; 64];
        let mut cache = KvCache::new(
            self.kv_shape(),
            None,
            tokens.len() + 1,
            KeyRetention::RotatedOnly,
        )?;
        let hidden = self.forward(&tokens, &mut cache)?;
        self.logits(&hidden)?;
        let hidden = self.forward(&tokens[..1], &mut cache)?;
        self.logits(&hidden)?;
        Ok(())
    }
}
