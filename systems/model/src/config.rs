//! The hyper-parameters of a decoder, under their `config.json` names.

use crate::families::read_config;
use crate::rope::RopeStyle;
use crate::{GgufFile, ModelError};
use celslm_kv::KvShape;

/// Hyper-parameters of a Llama-like decoder. Field names are those of the Hugging Face
/// configuration files; the values come from the GGUF metadata.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `general.architecture` of the file, e.g. `qwen2`.
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key/value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Epsilon of the RMS norms.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// How the rotary pairs are laid out.
    pub rope_style: RopeStyle,
    /// Longest sequence the model was trained for, in tokens.
    pub max_position_embeddings: usize,
    /// Whether the query, key and value projections have a bias.
    pub attention_bias: bool,
}

impl Config {
    /// Reads the hyper-parameters of a file, without its tensors.
    ///
    /// # Errors
    /// [`ModelError::UnknownArchitecture`], or whatever the metadata lacks.
    pub fn read(gguf: &GgufFile) -> Result<Self, ModelError> {
        read_config(gguf)
    }

    /// Shape of the KV that this model keeps for a context.
    pub fn kv_shape(&self) -> KvShape {
        KvShape {
            num_layers: self.num_hidden_layers,
            num_kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
        }
    }
}
