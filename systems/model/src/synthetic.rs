//! Random-weight models for tests and benchmarks: real files of a real format, answers without
//! meaning.
//!
//! They exercise every path that a trained model takes (loading, tokenising, prefill, hand-off,
//! generation) in milliseconds, and are never used for a reported quality figure.

use crate::ModelError;
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use rand::{RngExt as _, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

/// Dimensions of a random-weight model.
#[derive(Debug, Clone, Copy)]
pub struct SyntheticModel {
    /// `general.architecture`: `qwen2` or `llama`.
    pub architecture: &'static str,
    /// Decoder layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads.
    pub num_kv_heads: usize,
    /// Width of a head; the residual stream is `num_heads * head_dim` wide.
    pub head_dim: usize,
    /// Whether the matrices are Q8_0 instead of f32 (widths must be multiples of 32 then).
    pub quantised: bool,
    /// Seed of the weights.
    pub seed: u64,
}

const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' \
     + message['content'] + '<|im_end|>\n' }}{% endfor %}\
     {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

impl SyntheticModel {
    /// Writes the model as a GGUF file, with a byte-level tokenizer and a chat template.
    ///
    /// # Errors
    /// [`ModelError::Io`] when the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), ModelError> {
        self.write_with_merges(path, &[])
    }

    /// The same with tokens of several bytes: each pair, spelled as the vocabulary has it (a space
    /// is `Ġ`), is merged into one.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_with_merges(
        &self,
        path: &Path,
        merges: &[(&str, &str)],
    ) -> Result<(), ModelError> {
        let hidden = self.num_heads * self.head_dim;
        let kv_width = self.num_kv_heads * self.head_dim;
        let intermediate = 2 * hidden;
        let mut tokens = vocabulary();
        let end = tokens.len() as u32 - 1;
        let markers = 256..tokens.len();
        tokens.extend(merges.iter().map(|(left, right)| format!("{left}{right}")));
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut tensors: Vec<(String, QTensor)> = Vec::new();
        let mut add =
            |name: String, rows: Option<usize>, columns: usize, centre: f32, scale: f32| {
                let count = rows.unwrap_or(1) * columns;
                let values: Vec<f32> = (0..count)
                    .map(|_| centre + scale * (rng.random::<f32>() + rng.random::<f32>() - 1.0))
                    .collect();
                let (tensor, dtype) = match rows {
                    Some(rows) if self.quantised => (
                        Tensor::from_vec(values, (rows, columns), &Device::Cpu)?,
                        GgmlDType::Q8_0,
                    ),
                    Some(rows) => (
                        Tensor::from_vec(values, (rows, columns), &Device::Cpu)?,
                        GgmlDType::F32,
                    ),
                    None => (
                        Tensor::from_vec(values, columns, &Device::Cpu)?,
                        GgmlDType::F32,
                    ),
                };
                tensors.push((name, QTensor::quantize(&tensor, dtype)?));
                Ok::<_, ModelError>(())
            };
        add(
            "token_embd.weight".into(),
            Some(tokens.len()),
            hidden,
            0.0,
            1.0,
        )?;
        add("output.weight".into(), Some(tokens.len()), hidden, 0.0, 0.5)?;
        add("output_norm.weight".into(), None, hidden, 1.0, 0.1)?;
        for layer in 0..self.num_layers {
            let name = |part: &str| format!("blk.{layer}.{part}");
            add(name("attn_norm.weight"), None, hidden, 1.0, 0.1)?;
            add(name("ffn_norm.weight"), None, hidden, 1.0, 0.1)?;
            for (part, rows, columns, biased) in [
                ("attn_q", hidden, hidden, true),
                ("attn_k", kv_width, hidden, true),
                ("attn_v", kv_width, hidden, true),
                ("attn_output", hidden, hidden, false),
                ("ffn_gate", intermediate, hidden, false),
                ("ffn_up", intermediate, hidden, false),
                ("ffn_down", hidden, intermediate, false),
            ] {
                let scale = 2.0 / (columns as f32).sqrt();
                add(
                    name(&format!("{part}.weight")),
                    Some(rows),
                    columns,
                    0.0,
                    scale,
                )?;
                if biased && self.architecture == "qwen2" {
                    add(name(&format!("{part}.bias")), None, rows, 0.0, 0.5)?;
                }
            }
        }
        let key = |name: &str| format!("{}.{name}", self.architecture);
        let types = (0..tokens.len())
            .map(|id| Value::I32(if markers.contains(&id) { 3 } else { 1 }))
            .collect();
        let metadata = [
            (
                "general.architecture".to_owned(),
                Value::String(self.architecture.to_owned()),
            ),
            (key("block_count"), Value::U32(self.num_layers as u32)),
            (key("context_length"), Value::U32(8192)),
            (key("embedding_length"), Value::U32(hidden as u32)),
            (key("feed_forward_length"), Value::U32(intermediate as u32)),
            (
                key("attention.head_count"),
                Value::U32(self.num_heads as u32),
            ),
            (
                key("attention.head_count_kv"),
                Value::U32(self.num_kv_heads as u32),
            ),
            (key("attention.layer_norm_rms_epsilon"), Value::F32(1e-6)),
            (key("rope.freq_base"), Value::F32(1e4)),
            (
                key("rope.dimension_count"),
                Value::U32(self.head_dim as u32),
            ),
            (
                "tokenizer.ggml.model".to_owned(),
                Value::String("gpt2".to_owned()),
            ),
            (
                "tokenizer.ggml.pre".to_owned(),
                Value::String("qwen2".to_owned()),
            ),
            (
                "tokenizer.ggml.tokens".to_owned(),
                Value::Array(tokens.into_iter().map(Value::String).collect()),
            ),
            ("tokenizer.ggml.token_type".to_owned(), Value::Array(types)),
            (
                "tokenizer.ggml.merges".to_owned(),
                Value::Array(
                    merges
                        .iter()
                        .map(|(left, right)| Value::String(format!("{left} {right}")))
                        .collect(),
                ),
            ),
            ("tokenizer.ggml.eos_token_id".to_owned(), Value::U32(end)),
            (
                "tokenizer.chat_template".to_owned(),
                Value::String(CHAT_TEMPLATE.to_owned()),
            ),
        ];
        let metadata: Vec<_> = metadata
            .iter()
            .map(|(key, value)| (key.as_str(), value))
            .collect();
        let tensors: Vec<_> = tensors
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor))
            .collect();
        let file = File::create(path).map_err(|source| ModelError::Io {
            path: path.to_owned(),
            source,
        })?;
        Ok(gguf_file::write(
            &mut BufWriter::new(file),
            &metadata,
            &tensors,
        )?)
    }
}

/// The 256 bytes in their printable byte-level form, then the two turn markers.
fn vocabulary() -> Vec<String> {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut next = 256;
    let mut tokens: Vec<String> = (0..256u32)
        .map(|byte| {
            let code = if printable(byte) {
                byte
            } else {
                next += 1;
                next - 1
            };
            // All codes lie below U+0200.
            char::from_u32(code).map(String::from).unwrap_or_default()
        })
        .collect();
    tokens.push("<|im_start|>".to_owned());
    tokens.push("<|im_end|>".to_owned());
    tokens
}
