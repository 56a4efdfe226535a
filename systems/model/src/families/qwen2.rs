//! Qwen2 and Qwen2.5 (arXiv 2407.10671): biased QKV projections, half-split rotary pairs.

use super::{Family, read_common};
use crate::{Config, GgufFile, ModelError, RopeStyle};

pub(super) const FAMILY: Family = Family {
    architecture: "qwen2",
    summary: "Qwen2 and Qwen2.5 dense decoders",
    read_config,
};

fn read_config(gguf: &GgufFile) -> Result<Config, ModelError> {
    Ok(Config {
        attention_bias: true,
        rope_style: RopeStyle::Neox,
        ..read_common(gguf, "qwen2")?
    })
}
