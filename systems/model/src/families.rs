//! The model families: how each maps its GGUF metadata to a [`Config`].
//!
//! The families share one decoder; what tells them apart is stated here and nowhere else.

mod llama;
mod qwen2;

use crate::{Config, GgufFile, ModelError};

/// One registered model family.
pub struct Family {
    /// `general.architecture` of its files.
    pub architecture: &'static str,
    /// One line for `celslm ls`.
    pub summary: &'static str,
    read_config: fn(&GgufFile) -> Result<Config, ModelError>,
}

/// The registered families, in report order.
pub fn families() -> &'static [Family] {
    &[qwen2::FAMILY, llama::FAMILY]
}

/// Reads the hyper-parameters of a file through its family.
///
/// # Errors
/// [`ModelError::UnknownArchitecture`] when no family claims the file, or whatever its
/// metadata lacks.
pub(crate) fn read_config(gguf: &GgufFile) -> Result<Config, ModelError> {
    let found = gguf.string("general.architecture")?;
    let family = families()
        .iter()
        .find(|family| family.architecture == found)
        .ok_or_else(|| ModelError::UnknownArchitecture {
            found: found.to_owned(),
            known: families()
                .iter()
                .map(|family| family.architecture)
                .collect::<Vec<_>>()
                .join(", "),
        })?;
    let config = (family.read_config)(gguf)?;
    validate(&config).map_err(|reason| gguf.incomplete(reason))?;
    Ok(config)
}

/// The metadata keys that every family spells alike, below its own prefix.
fn read_common(gguf: &GgufFile, architecture: &str) -> Result<Config, ModelError> {
    let key = |name: &str| format!("{architecture}.{name}");
    let hidden_size = gguf.usize(&key("embedding_length"))?;
    let num_attention_heads = gguf.usize(&key("attention.head_count"))?;
    let head_dim = match gguf.optional_usize(&key("attention.key_length"))? {
        Some(head_dim) => head_dim,
        None => hidden_size.checked_div(num_attention_heads).unwrap_or(0),
    };
    Ok(Config {
        architecture: architecture.to_owned(),
        hidden_size,
        intermediate_size: gguf.usize(&key("feed_forward_length"))?,
        num_hidden_layers: gguf.usize(&key("block_count"))?,
        num_attention_heads,
        num_key_value_heads: gguf
            .optional_usize(&key("attention.head_count_kv"))?
            .unwrap_or(num_attention_heads),
        head_dim,
        rms_norm_eps: gguf.f32(&key("attention.layer_norm_rms_epsilon"))?,
        rope_theta: gguf.optional_f32(&key("rope.freq_base"))?.unwrap_or(1e4),
        rope_style: crate::RopeStyle::Neox,
        max_position_embeddings: gguf.usize(&key("context_length"))?,
        attention_bias: false,
    })
}

fn validate(config: &Config) -> Result<(), String> {
    let counts = [
        ("embedding_length", config.hidden_size, 1 << 20),
        ("feed_forward_length", config.intermediate_size, 1 << 20),
        ("block_count", config.num_hidden_layers, 1 << 10),
        ("head_count", config.num_attention_heads, 1 << 10),
        ("head_count_kv", config.num_key_value_heads, 1 << 10),
        ("head width", config.head_dim, 1 << 10),
        ("context_length", config.max_position_embeddings, 1 << 24),
    ];
    for (name, value, limit) in counts {
        if value == 0 || value > limit {
            return Err(format!("{name} is {value}, expected 1 to {limit}"));
        }
    }
    if !config
        .num_attention_heads
        .is_multiple_of(config.num_key_value_heads)
    {
        return Err(format!(
            "{} query heads cannot share {} key/value heads",
            config.num_attention_heads, config.num_key_value_heads
        ));
    }
    if !config.head_dim.is_multiple_of(2) {
        return Err(format!(
            "a head width of {} cannot be rotated in pairs",
            config.head_dim
        ));
    }
    Ok(())
}
