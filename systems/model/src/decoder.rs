//! A Llama-like decoder, layer by layer.

use crate::families::read_config;
use crate::kernel::activations::Activations;
use crate::kernel::attention::{Heads, Sequence, attend, attend_to};
use crate::kernel::matmul::{Product, multiply};
use crate::kernel::packed::{Arena, PackedMatrix};
use crate::kernel::pool::{Turn, pool};
use crate::kernel::rows::{add, gated, rms_norm};
use crate::{Config, GgufFile, KeyRetention, KvCache, KvPrefix, ModelError, RotaryEmbedding};
use celslm_kv::align::{states_block, states_shape};
use celslm_kv::{KvBlock, KvShape, ModelFingerprint, SourceKind};
use half::f16;
use half::slice::HalfFloatSliceExt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

/// Activations between two layers, `[seq_len, hidden_size]`.
pub struct Hidden {
    values: Vec<f32>,
    hidden_size: usize,
}

impl Hidden {
    /// Tokens in flight.
    pub fn seq_len(&self) -> usize {
        self.values.len() / self.hidden_size.max(1)
    }

    /// Activations of zeros, for exercising schedules without a model.
    ///
    /// # Errors
    /// Never; kept fallible for its callers.
    pub fn zeros(seq_len: usize, hidden_size: usize) -> Result<Self, ModelError> {
        Ok(Self {
            values: vec![0.0; seq_len * hidden_size],
            hidden_size,
        })
    }

    /// The activations as `[seq_len, hidden_size]` in f32.
    ///
    /// # Errors
    /// Never; kept fallible for its callers.
    pub fn to_vec(&self) -> Result<Vec<f32>, ModelError> {
        Ok(self.values.clone())
    }
}

/// `y = x Wᵀ + b`.
struct Linear {
    weight: PackedMatrix,
    bias: Option<Vec<f32>>,
}

impl Linear {
    fn to<'a>(&'a self, out: &'a mut Vec<f32>, rows: usize) -> Product<'a> {
        out.resize(rows * self.weight.rows(), 0.0);
        Product {
            matrix: &self.weight,
            bias: self.bias.as_deref(),
            out,
        }
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

struct DecoderLayer {
    input_layernorm: Vec<f32>,
    self_attn: Attention,
    post_attention_layernorm: Vec<f32>,
    mlp: Mlp,
}

impl DecoderLayer {
    fn linears(&self) -> [&Linear; 7] {
        let Attention {
            q_proj,
            k_proj,
            v_proj,
            o_proj,
        } = &self.self_attn;
        let Mlp {
            gate_proj,
            up_proj,
            down_proj,
        } = &self.mlp;
        [
            q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj,
        ]
    }
}

/// Buffers of one forward pass, reused from layer to layer.
#[derive(Default)]
struct Workspace {
    activations: Activations,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    /// What a block adds to the residual stream.
    residual: Vec<f32>,
}

/// Logits of one token, `[vocab_size]`. The logits of a batch share one buffer, which goes back
/// to be reused when the last of them is dropped: fresh memory for every step would cost more in
/// page faults than the sampling.
pub struct Logits {
    shared: Arc<Buffer>,
    start: usize,
    len: usize,
}

impl Deref for Logits {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.shared.0[self.start..self.start + self.len]
    }
}

struct Buffer(Vec<f32>);

/// Buffers that wait to be reused, of whichever model.
static SPARE: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());
/// Most of them: one for each model of a process, and one in use.
const MAX_SPARE: usize = 4;

impl Buffer {
    fn with_len(len: usize) -> Vec<f32> {
        let spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut values = spare.unwrap_or_default();
        values.resize(len, 0.0);
        values
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < MAX_SPARE {
            spare.push(std::mem::take(&mut self.0));
        }
    }
}

/// A sequence's rows in a pass: as many as it has tokens there.
struct Span<'a> {
    tokens: usize,
    cache: &'a mut KvCache,
    /// Where its rotated queries are appended, `[tokens, num_heads, head_dim]`.
    queries: Option<&'a mut Vec<f32>>,
}

/// What a pass shows of one layer; see [`Decoder::observe`].
pub struct Observed<'a> {
    /// The layer.
    pub layer: usize,
    /// Rotated queries of the pass's tokens, `[tokens, num_heads, head_dim]`.
    pub queries: &'a [f32],
    /// The cache after the layer.
    pub cache: &'a KvCache,
}

/// A loaded model. Immutable: any number of sequences, each with its own [`KvCache`], may run
/// through it at once.
pub struct Decoder {
    config: Config,
    fingerprint: ModelFingerprint,
    rope: RotaryEmbedding,
    embed_tokens: PackedMatrix,
    layers: Vec<DecoderLayer>,
    norm: Vec<f32>,
    /// `None` where the model ties it to the embedding.
    lm_head: Option<PackedMatrix>,
    /// Used by whoever has the pool's turn.
    workspace: Mutex<Workspace>,
}

impl Decoder {
    /// Loads every tensor of a GGUF file.
    ///
    /// # Errors
    /// [`ModelError::UnknownArchitecture`], or whatever the file lacks.
    pub fn load(gguf: &mut GgufFile) -> Result<Self, ModelError> {
        let config = read_config(gguf)?;
        // Before the weights: hashing maps the whole file.
        let fingerprint = gguf.fingerprint()?;
        let turn = pool().turn();
        let hidden = config.hidden_size;
        let q_width = config.num_attention_heads * config.head_dim;
        let kv_width = config.num_key_value_heads * config.head_dim;
        let vocab_size = gguf.rows("token_embd.weight")?;
        let mut arena = Arena::new(gguf.matrices())?;
        let embedding = [vocab_size, hidden];
        let embed_tokens = gguf.pack("token_embd.weight", embedding, &mut arena, &turn)?;
        let lm_head = match gguf.has_tensor("output.weight") {
            true => Some(gguf.pack("output.weight", embedding, &mut arena, &turn)?),
            false => None,
        };
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for layer in 0..config.num_hidden_layers {
            let name = |part: &str| format!("blk.{layer}.{part}");
            let norm = |gguf: &mut GgufFile, part: &str| gguf.dense(&name(part), &[hidden]);
            let input_layernorm = norm(gguf, "attn_norm.weight")?;
            let post_attention_layernorm = norm(gguf, "ffn_norm.weight")?;
            let mut linear = |part: &str, rows: usize, columns: usize, biased: bool| {
                let weight = name(&format!("{part}.weight"));
                let weight = gguf.pack(&weight, [rows, columns], &mut arena, &turn)?;
                let bias = match biased {
                    true => Some(gguf.dense(&name(&format!("{part}.bias")), &[rows])?),
                    false => None,
                };
                Ok::<_, ModelError>(Linear { weight, bias })
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
                input_layernorm,
                self_attn,
                post_attention_layernorm,
                mlp,
            });
        }
        let norm = gguf.dense("output_norm.weight", &[hidden])?;
        arena.finish()?;
        Ok(Self {
            rope: RotaryEmbedding::new(config.rope_style, config.head_dim, config.rope_theta),
            fingerprint,
            norm,
            embed_tokens,
            layers,
            lm_head,
            config,
            workspace: Mutex::default(),
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
        let layers = self.layers.iter().flat_map(DecoderLayer::linears);
        let head = self.lm_head.iter().map(PackedMatrix::bytes);
        layers
            .map(|linear| linear.weight.bytes())
            .chain(head)
            .sum::<usize>()
            + self.embed_tokens.bytes()
    }

    /// Shape of the KV of a context.
    pub fn kv_shape(&self) -> KvShape {
        self.config.kv_shape()
    }

    /// Shape of a block of the hidden states of a context.
    ///
    /// # Errors
    /// [`ModelError::Kv`] for a model whose states have an odd width.
    pub fn states_shape(&self) -> Result<KvShape, ModelError> {
        states_shape(self.layers.len(), self.config.hidden_size)
            .map_err(|error| ModelError::Kv(error.to_string()))
    }

    /// The model's rotary tables, with which imported keys are rotated.
    pub fn rope(&self) -> &RotaryEmbedding {
        &self.rope
    }

    /// Entries of the vocabulary, and the length of a row of logits.
    pub fn vocab_size(&self) -> usize {
        self.embed_tokens.rows()
    }

    /// Embeds tokens: the input of layer 0.
    ///
    /// # Errors
    /// [`ModelError::Incomplete`]-like computation errors for ids outside the vocabulary.
    pub fn embed(&self, tokens: &[u32]) -> Result<Hidden, ModelError> {
        let vocab_size = self.vocab_size();
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocab_size) {
            return Err(ModelError::Kv(format!(
                "token {token} lies outside the vocabulary of {vocab_size}"
            )));
        }
        let hidden_size = self.config.hidden_size;
        let mut values = vec![0f32; tokens.len() * hidden_size];
        for (token, out) in tokens.iter().zip(values.chunks_exact_mut(hidden_size)) {
            self.embed_tokens.row(*token as usize, out);
        }
        Ok(Hidden {
            values,
            hidden_size,
        })
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
        self.forward_pieces(layer, hidden, cache, None)
    }

    fn forward_pieces(
        &self,
        layer: usize,
        hidden: &Hidden,
        cache: &mut KvCache,
        mut queries: Option<&mut Vec<f32>>,
    ) -> Result<Hidden, ModelError> {
        let turn = pool().turn();
        let mut workspace = self.workspace();
        let mut values = Vec::with_capacity(hidden.values.len());
        for piece in hidden
            .values
            .chunks(PREFILL_CHUNK * self.config.hidden_size)
        {
            let mut x = piece.to_vec();
            let span = Span {
                tokens: x.len() / self.config.hidden_size,
                cache: &mut *cache,
                queries: queries.as_deref_mut(),
            };
            self.layer(layer, &turn, &mut x, &mut [span], None, &mut workspace)?;
            values.extend(x);
        }
        Ok(Hidden {
            values,
            hidden_size: hidden.hidden_size,
        })
    }

    fn workspace(&self) -> MutexGuard<'_, Workspace> {
        // Every pass sets the sizes it needs, so one that failed leaves nothing behind.
        self.workspace
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the rows `x: [rows, hidden_size]` of several sequences through a layer, in place.
    /// With `keep`, only the last row of the sequences that it marks comes out.
    fn layer(
        &self,
        layer: usize,
        turn: &Turn<'_>,
        x: &mut Vec<f32>,
        spans: &mut [Span<'_>],
        keep: Option<&[bool]>,
        workspace: &mut Workspace,
    ) -> Result<(), ModelError> {
        let Workspace {
            activations,
            q,
            k,
            v,
            attended,
            gate,
            up,
            residual,
        } = workspace;
        let config = &self.config;
        let weights = &self.layers[layer];
        let (hidden, eps) = (config.hidden_size, config.rms_norm_eps);
        let rows = x.len() / hidden;
        for span in spans.iter() {
            let wanted = span.cache.len(layer) + span.tokens;
            if wanted > config.max_position_embeddings {
                return Err(ModelError::TooLong {
                    wanted,
                    limit: config.max_position_embeddings,
                    what: "the model's context window",
                });
            }
        }

        let normed = |norm: &[f32], x: &[f32], activations: &mut Activations| {
            activations.reset(x.len() / hidden, hidden);
            activations.fill(turn, |row, out| {
                rms_norm(&x[row * hidden..(row + 1) * hidden], norm, eps, out);
            });
        };
        normed(&weights.input_layernorm, x, activations);
        let attention = &weights.self_attn;
        let products = vec![
            attention.q_proj.to(q, rows),
            attention.k_proj.to(k, rows),
            attention.v_proj.to(v, rows),
        ];
        multiply(turn, activations, products);

        let q_width = config.num_attention_heads * config.head_dim;
        let kv_width = config.num_key_value_heads * config.head_dim;
        let mut start = 0;
        for span in spans.iter_mut() {
            let end = start + span.tokens;
            let position = span.cache.len(layer);
            let q = &mut q[start * q_width..end * q_width];
            self.rope.rotate(q, config.num_attention_heads, position);
            if let Some(queries) = &mut span.queries {
                queries.extend_from_slice(q);
            }
            let kv = start * kv_width..end * kv_width;
            span.cache
                .append(layer, &k[kv.clone()], &v[kv], &self.rope)?;
            start = end;
        }

        // From here on the rows of a sequence need each other no more.
        if let Some(keep) = keep {
            keep_last(x, hidden, spans, keep);
            keep_last(q, q_width, spans, keep);
        }
        let rows = x.len() / hidden;
        if rows == 0 {
            return Ok(());
        }
        let mut sequences = Vec::with_capacity(spans.len());
        let mut start = 0;
        for (index, span) in spans.iter().enumerate() {
            let tokens = match keep {
                Some(keep) => usize::from(keep[index]),
                None => span.tokens,
            };
            let (prefix, tail) = span.cache.segments(layer)?;
            sequences.push(Sequence {
                rows: start..start + tokens,
                prefix,
                tail,
            });
            start += tokens;
        }
        attended.resize(rows * q_width, 0.0);
        attend(turn, q, self.heads(), &sequences, attended)?;
        activations.reset(rows, q_width);
        activations.fill(turn, |row, out| {
            out.copy_from_slice(&attended[row * q_width..(row + 1) * q_width]);
        });
        multiply(turn, activations, vec![attention.o_proj.to(residual, rows)]);
        add(x, residual);

        normed(&weights.post_attention_layernorm, x, activations);
        let mlp = &weights.mlp;
        let products = vec![mlp.gate_proj.to(gate, rows), mlp.up_proj.to(up, rows)];
        multiply(turn, activations, products);
        let width = config.intermediate_size;
        activations.reset(rows, width);
        activations.fill(turn, |row, out| {
            let range = row * width..(row + 1) * width;
            gated(&gate[range.clone()], &up[range], out);
        });
        multiply(turn, activations, vec![mlp.down_proj.to(residual, rows)]);
        add(x, residual);
        Ok(())
    }

    /// Logits of the last token, `[vocab_size]`, from the output of the last layer.
    ///
    /// # Errors
    /// [`ModelError::Compute`] on a defect.
    pub fn logits(&self, hidden: &Hidden) -> Result<Vec<f32>, ModelError> {
        let start = hidden.values.len().saturating_sub(hidden.hidden_size);
        Ok(self.head(&pool().turn(), &hidden.values[start..]))
    }

    /// Logits of every token, `[seq_len, vocab_size]`: for likelihoods, not for generation.
    ///
    /// # Errors
    /// [`ModelError::Compute`] on a defect.
    pub fn all_logits(&self, hidden: &Hidden) -> Result<Vec<f32>, ModelError> {
        Ok(self.head(&pool().turn(), &hidden.values))
    }

    /// Logits of every row of `x: [rows, hidden_size]`.
    fn head(&self, turn: &Turn<'_>, x: &[f32]) -> Vec<f32> {
        let hidden = self.config.hidden_size;
        let mut activations = Activations::default();
        activations.reset(x.len() / hidden, hidden);
        activations.fill(turn, |row, out| {
            let x = &x[row * hidden..(row + 1) * hidden];
            rms_norm(x, &self.norm, self.config.rms_norm_eps, out);
        });
        let matrix = self.lm_head.as_ref().unwrap_or(&self.embed_tokens);
        let mut out = Buffer::with_len(activations.rows() * matrix.rows());
        let product = Product {
            matrix,
            bias: None,
            out: &mut out,
        };
        multiply(turn, &activations, vec![product]);
        out
    }

    /// Runs tokens through all layers.
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

    /// Runs tokens through all layers and shows each layer's queries, with the cache behind it.
    /// The results are those of [`Decoder::forward`].
    ///
    /// # Errors
    /// As [`Decoder::forward_layer`].
    pub fn observe(
        &self,
        tokens: &[u32],
        cache: &mut KvCache,
        mut observer: impl FnMut(&Observed<'_>),
    ) -> Result<Hidden, ModelError> {
        let mut hidden = self.embed(tokens)?;
        let mut queries = Vec::new();
        for layer in 0..self.layers.len() {
            queries.clear();
            hidden = self.forward_pieces(layer, &hidden, cache, Some(&mut queries))?;
            observer(&Observed {
                layer,
                queries: &queries,
                cache,
            });
        }
        Ok(hidden)
    }

    /// What rotated queries `[rows, num_heads, head_dim]` read from a layer of a prefix alone,
    /// in the same shape; zeros where the layer holds no token.
    ///
    /// # Errors
    /// [`ModelError::Kv`] for a layer that has not arrived, or a prefix or queries of another
    /// shape.
    pub fn attention_output(
        &self,
        layer: usize,
        queries: &[f32],
        prefix: &KvPrefix,
    ) -> Result<Vec<f32>, ModelError> {
        let segment = prefix.segment(layer, self.kv_shape())?;
        let heads = self.heads();
        if !queries
            .len()
            .is_multiple_of(heads.num_heads * heads.head_dim)
        {
            return Err(ModelError::Kv(format!(
                "{} numbers are no queries of {} heads",
                queries.len(),
                heads.num_heads
            )));
        }
        let mut out = vec![0.0; queries.len()];
        if segment.len > 0 {
            attend_to(&pool().turn(), queries, heads, segment, &mut out);
        }
        Ok(out)
    }

    fn heads(&self) -> Heads {
        Heads {
            num_heads: self.config.num_attention_heads,
            num_kv_heads: self.config.num_key_value_heads,
            head_dim: self.config.head_dim,
        }
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
    ) -> Result<Vec<Option<Logits>>, ModelError> {
        let keep: Vec<bool> = items.iter().map(|item| item.logits).collect();
        let mut logits = self.pass(items, Some(&keep))?.into_iter();
        Ok(keep
            .into_iter()
            .map(|keep| if keep { logits.next() } else { None })
            .collect())
    }

    /// As [`Decoder::forward_batch`], with the logits of every token of every item, in order,
    /// whatever the items want: for likelihoods. They take `vocab_size` numbers a token.
    ///
    /// # Errors
    /// As [`Decoder::forward_layer`]. The caches may have grown by part of the tokens then.
    pub fn forward_all_logits(
        &self,
        items: &mut [BatchItem<'_>],
    ) -> Result<Vec<Logits>, ModelError> {
        self.pass(items, None)
    }

    /// A pass with the logits of the last token of the items that `keep` marks, or of all tokens.
    fn pass(
        &self,
        items: &mut [BatchItem<'_>],
        keep: Option<&[bool]>,
    ) -> Result<Vec<Logits>, ModelError> {
        let turn = pool().turn();
        let tokens: Vec<u32> = items.iter().flat_map(|item| item.tokens).copied().collect();
        let mut x = self.embed(&tokens)?.values;
        let mut spans: Vec<Span<'_>> = items
            .iter_mut()
            .map(|item| Span {
                tokens: item.tokens.len(),
                cache: &mut *item.cache,
                queries: None,
            })
            .collect();
        let mut workspace = self.workspace();
        let last = self.layers.len() - 1;
        for layer in 0..=last {
            let keep = keep.filter(|_| layer == last);
            self.layer(layer, &turn, &mut x, &mut spans, keep, &mut workspace)?;
        }
        if x.is_empty() {
            return Ok(Vec::new());
        }
        let shared = Arc::new(Buffer(self.head(&turn, &x)));
        let len = self.vocab_size();
        Ok((0..x.len() / self.config.hidden_size)
            .map(|row| Logits {
                shared: shared.clone(),
                start: row * len,
                len,
            })
            .collect())
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
            self.forward_batch(&mut [BatchItem {
                tokens: piece,
                cache: &mut *cache,
                logits: false,
            }])?;
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

    /// Computes the hidden states of a context from its start, in the pieces of
    /// [`Decoder::prefill`]: the residual stream before each layer and behind the last, each row
    /// divided by its root mean square, in fp16, as [`states_block`] lays them out. They take
    /// `2 · (num_layers + 1) · hidden_size` bytes a token. `Ok(None)` when `proceed` said stop.
    ///
    /// # Errors
    /// As [`Decoder::forward_layer`].
    pub fn context_states(
        &self,
        tokens: &[u32],
        mut proceed: impl FnMut() -> bool,
    ) -> Result<Option<KvBlock>, ModelError> {
        let width = self.states_shape()?.head_dim * 2;
        let shape = self.kv_shape();
        let mut cache = KvCache::new(shape, None, tokens.len(), KeyRetention::RotatedOnly)?;
        let mut states = vec![Vec::with_capacity(tokens.len() * width); self.layers.len() + 1];
        for piece in tokens.chunks(PREFILL_CHUNK) {
            if !proceed() {
                return Ok(None);
            }
            let mut hidden = self.embed(piece)?;
            for (layer, states) in states.iter_mut().enumerate() {
                self.append_normed(&hidden, states);
                if layer < self.layers.len() {
                    hidden = self.forward_layer(layer, &hidden, &mut cache)?;
                }
            }
        }
        states_block(&self.fingerprint, width, states)
            .map(Some)
            .map_err(|error| ModelError::Kv(error.to_string()))
    }

    /// Appends rows divided by their root mean square. The norm's weight is left out: it differs
    /// from layer to layer, and a map has weights of its own.
    fn append_normed(&self, hidden: &Hidden, states: &mut Vec<f16>) {
        let width = hidden.hidden_size;
        let weight = vec![1.0; width];
        let mut normed = vec![0.0; width];
        for row in hidden.values.chunks_exact(width) {
            rms_norm(row, &weight, self.config.rms_norm_eps, &mut normed);
            let start = states.len();
            states.resize(start + width, f16::ZERO);
            states[start..].convert_from_f32_slice(&normed);
        }
    }

    /// What a map reads of a context: its pre-RoPE KV or its hidden states. `Ok(None)` when
    /// `proceed` said stop.
    ///
    /// # Errors
    /// As [`Decoder::forward_layer`].
    pub fn context_source(
        &self,
        kind: SourceKind,
        tokens: &[u32],
        proceed: impl FnMut() -> bool,
    ) -> Result<Option<KvBlock>, ModelError> {
        match kind {
            SourceKind::Kv => self.context_kv(tokens, proceed),
            SourceKind::States => self.context_states(tokens, proceed),
        }
    }

    /// Runs a prefill-shaped and a decode-shaped pass and throws the result away: threads start
    /// and memory is touched at first use, and that must not land in a measurement.
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

/// A vector of a file in f32: norms and biases.
/// Keeps the last row of the marked sequences of `x: [rows, width]`.
fn keep_last(x: &mut Vec<f32>, width: usize, spans: &[Span<'_>], keep: &[bool]) {
    let (mut end, mut kept) = (0, 0);
    for (span, &keep) in spans.iter().zip(keep) {
        end += span.tokens;
        if keep && span.tokens > 0 {
            x.copy_within((end - 1) * width..end * width, kept * width);
            kept += 1;
        }
    }
    x.truncate(kept * width);
}
