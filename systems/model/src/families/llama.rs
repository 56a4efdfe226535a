//! Llama-like decoders without projection bias (Llama 2, SmolLM2, TinyLlama). Their GGUF
//! conversion permutes the query and key rows, so the rotary pairs are interleaved.

use super::{Family, read_common};
use crate::{Config, GgufFile, ModelError, RopeStyle};

pub(super) const FAMILY: Family = Family {
    architecture: "llama",
    summary: "Llama 2 and SmolLM2 dense decoders",
    read_config,
};

fn read_config(gguf: &GgufFile) -> Result<Config, ModelError> {
    if gguf
        .optional_f32("llama.rope.scaling.factor")?
        .is_some_and(|f| f != 1.0)
        || gguf.has_tensor("rope_freqs.weight")
    {
        return Err(gguf.incomplete("scaled rotary frequencies are not supported yet".to_owned()));
    }
    Ok(Config {
        attention_bias: false,
        rope_style: RopeStyle::Interleaved,
        ..read_common(gguf, "llama")?
    })
}
