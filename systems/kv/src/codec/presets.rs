//! Published methods as chains with a name.
//!
//! A preset is what its authors describe, as far as the stages express it; `remark` says where it
//! differs. Figures that a preset reaches are this implementation's, not the authors'.

use super::CodecConfig;

/// A chain with the name of the method it stands for.
#[derive(Debug, Clone, Copy)]
pub struct Preset {
    /// Name, as authors use it.
    pub name: &'static str,
    /// Where the method was described.
    pub source: &'static str,
    /// How the chain differs from the description.
    pub remark: &'static str,
    /// Id of the chain.
    pub id: &'static str,
}

impl Preset {
    /// The chain.
    #[must_use]
    pub fn config(&self) -> CodecConfig {
        // The conformance battery parses every one.
        self.id.parse().unwrap_or_default()
    }
}

impl CodecConfig {
    /// The preset that the chain is, whatever artefact its stages name.
    #[must_use]
    pub fn preset(&self) -> Option<&'static Preset> {
        let unbound = self.clone().unbound();
        presets().iter().find(|preset| preset.config() == unbound)
    }
}

/// Every preset, in the order in which reports list them.
#[must_use]
pub const fn presets() -> &'static [Preset] {
    &[
        Preset {
            name: "kivi",
            source: "KIVI, arXiv 2402.02750",
            remark: "2 bits in groups of 32; the window of 32 exact tokens is the context's last, \
                     and keys of a chunk's end are grouped with fewer tokens",
            id: "exact-s0-w32+group_quant-2b-g32",
        },
        Preset {
            name: "kivi-4bit",
            source: "KIVI, arXiv 2402.02750",
            remark: "as kivi, with 4 bits",
            id: "exact-s0-w32+group_quant-4b-g32",
        },
        Preset {
            name: "cachegen",
            source: "CacheGen, arXiv 2310.07240",
            remark: "the paper's anchors and bins; distributions are learnt while coding instead \
                     of profiled beforehand, and there is no choice of level per chunk",
            id: "anchor_delta-g10+bins-w100+adaptive",
        },
        Preset {
            name: "cachegen-code",
            source: "CacheGen's released code (LMCache)",
            remark: "no anchors: one scale per token, levels by depth, a distribution per channel \
                     that is sent; keys before RoPE instead of after it",
            id: "vectorwise-f32-c16+tables-c0",
        },
        Preset {
            name: "kvtc",
            source: "KVTC, arXiv 2511.01815",
            remark: "principal components per layer, keys and values together, instead of across \
                     layers; bits by dynamic programming at 2.0 a number, zstd for DEFLATE; 4 sinks \
                     and a window of 32 (paper: 128)",
            id: "exact-s4-w32+pca+allocated-t20-dp+zstd-l3",
        },
        Preset {
            name: "turbo",
            source: "TurboQuant, arXiv 2504.19874",
            remark: "the variant for mean squared error at 4 bits, without the mixture of widths \
                     for outlier channels; keys before RoPE",
            id: "hadamard-s0+lloyd_max-4b",
        },
        Preset {
            name: "turbo-3bit",
            source: "TurboQuant, arXiv 2504.19874",
            remark: "as turbo, with 3 bits",
            id: "hadamard-s0+lloyd_max-3b",
        },
        Preset {
            name: "celslm",
            source: "this project",
            remark: "common first tokens left out, other sinks exact, prediction from decoded layers, \
                     principal components of the rest, one step everywhere, context-modelled \
                     arithmetic coding",
            id: "prefix+exact-s4-w0+pca-predict+step-m600-d15+context",
        },
        Preset {
            name: "celslm-fine",
            source: "this project",
            remark: "as celslm with a finer step: about ten times smaller than fp16",
            id: "prefix+exact-s4-w0+pca-predict+step-m350-d15+context",
        },
        Preset {
            name: "celslm-coarse",
            source: "this project",
            remark: "as celslm with a coarser step",
            id: "prefix+exact-s4-w0+pca-predict+step-m1000-d15+context",
        },
        Preset {
            name: "celslm-fast",
            source: "this project",
            remark: "as celslm with static distributions, which decode faster and cost some 5% of size",
            id: "prefix+exact-s4-w0+pca-predict+step-m600-d15+tables-c16",
        },
        Preset {
            name: "celslm-progressive",
            source: "this project",
            remark: "as celslm without prediction, as an embedded stream",
            id: "prefix+exact-s4-w0+pca+progressive-m350",
        },
        Preset {
            name: "streaming-llm",
            source: "StreamingLLM, arXiv 2309.17453; in kvpress",
            remark: "half of the context",
            id: "streaming-k50-s4+identity",
        },
        Preset {
            name: "knorm-press",
            source: "Devoto et al., arXiv 2406.11430; in kvpress",
            remark: "half of each chunk, the same tokens for all heads",
            id: "knorm-k50+identity",
        },
        Preset {
            name: "random-press",
            source: "control of kvpress",
            remark: "half of each chunk",
            id: "random-k50-s0+identity",
        },
        Preset {
            name: "snapkv-press",
            source: "SnapKV, arXiv 2404.14469; in kvpress",
            remark: "half of the context, the same tokens for all heads; needs token scores",
            id: "snapkv-k50+identity",
        },
        Preset {
            name: "expected-attention-press",
            source: "Devoto et al., arXiv 2510.00636; in kvpress",
            remark: "half of the context, the same tokens for all heads; needs token scores",
            id: "expected_attention-k50+identity",
        },
        Preset {
            name: "h2o-press",
            source: "H2O, arXiv 2306.14048; in kvpress as observed attention",
            remark: "half of the context, the same tokens for all heads; needs token scores",
            id: "h2o-k50+identity",
        },
    ]
}
