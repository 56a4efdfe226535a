//! Published methods as chains with a name.
//!
//! A preset is what its authors describe, as far as the stages express it; `remark` says where it
//! differs. Figures that a preset reaches are this implementation's, not the authors'.
//!
//! A family is one method over its range of sizes: one line in a chart of rate and quality. What
//! varies along it is the method's own parameter, or the share of tokens that a selection keeps.

use super::{CodecConfig, CodecError};

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
    /// Name of the [`Family`] that the chain is one point of.
    pub family: &'static str,
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
            family: "kivi",
        },
        Preset {
            name: "kivi-4bit",
            source: "KIVI, arXiv 2402.02750",
            remark: "as kivi, with 4 bits",
            id: "exact-s0-w32+group_quant-4b-g32",
            family: "kivi",
        },
        Preset {
            name: "cachegen",
            source: "CacheGen, arXiv 2310.07240",
            remark: "the paper's anchors and bins; distributions are learnt while coding instead \
                     of profiled beforehand, and there is no choice of level per chunk (its family has \
                     levels)",
            id: "anchor_delta-g10+bins-w100+adaptive",
            family: "cachegen",
        },
        Preset {
            name: "cachegen-code",
            source: "CacheGen's released code (LMCache)",
            remark: "no anchors: one scale per token, levels by depth, a distribution per channel \
                     that is sent; keys before RoPE instead of after it",
            id: "vectorwise-f32-c16+tables-c0",
            family: "cachegen-code",
        },
        Preset {
            name: "kvtc",
            source: "KVTC, arXiv 2511.01815",
            remark: "principal components per layer, keys and values together and scaled alike, \
                     instead of across layers; bits by dynamic programming at 2.0 a number, zstd \
                     for DEFLATE; 4 sinks and a window of 32 (paper: 128)",
            id: "exact-s4-w32+pca-plain+allocated-t20-dp+zstd-l3",
            family: "kvtc",
        },
        Preset {
            name: "turbo",
            source: "TurboQuant, arXiv 2504.19874",
            remark: "the variant for mean squared error at 4 bits; keys before RoPE, whose offsets \
                     its scale, a token's norm, does not see (turbo-centred takes them off)",
            id: "hadamard-s0+lloyd_max-4b",
            family: "turbo",
        },
        Preset {
            name: "turbo-3bit",
            source: "TurboQuant, arXiv 2504.19874",
            remark: "as turbo, with 3 bits",
            id: "hadamard-s0+lloyd_max-3b",
            family: "turbo",
        },
        Preset {
            name: "turbo-3.5bit",
            source: "TurboQuant, arXiv 2504.19874",
            remark: "3 bits, and 5 for the quarter of the channels with the most energy in the tile, \
                     whose map and second norm are sent",
            id: "outliers-c25-b2+hadamard-s0+lloyd_max-3b",
            family: "turbo",
        },
        Preset {
            name: "turbo-2.5bit",
            source: "TurboQuant, arXiv 2504.19874",
            remark: "as turbo-3.5bit, with 2 and 4 bits",
            id: "outliers-c25-b2+hadamard-s0+lloyd_max-2b",
            family: "turbo",
        },
        Preset {
            name: "turbo-centred",
            source: "TurboQuant, arXiv 2504.19874, with the offsets of channels taken off",
            remark: "as turbo-3.5bit, behind each channel's mean over the chunk, which is sent: not \
                     in the paper, and what this quantiser needs on models whose keys stand far \
                     from zero",
            id: "centre+outliers-c25-b2+hadamard-s0+lloyd_max-3b",
            family: "turbo-centred",
        },
        Preset {
            name: "minicache",
            source: "MiniCache, arXiv 2405.14366",
            remark: "pairs of layers from the middle on, 4 bits; tokens are spared by the angle \
                     between their layers instead of relative to the largest: of the default edge \
                     model's, whose layers are as good as unrelated, a fifteenth; keys before RoPE, \
                     which turns both layers alike",
            id: "merge-s50-a95+group_quant-4b-g32",
            family: "minicache",
        },
        Preset {
            name: "celslm",
            source: "this project",
            remark: "common first tokens left out, other sinks exact, prediction from decoded layers, \
                     principal components of the rest, one step everywhere, context-modelled \
                     arithmetic coding",
            id: "prefix+exact-s4-w0+pca-predict+step-m600-d15+context",
            family: "celslm",
        },
        Preset {
            name: "celslm-fine",
            source: "this project",
            remark: "as celslm with a finer step: about ten times smaller than fp16",
            id: "prefix+exact-s4-w0+pca-predict+step-m350-d15+context",
            family: "celslm",
        },
        Preset {
            name: "celslm-coarse",
            source: "this project",
            remark: "as celslm with a coarser step",
            id: "prefix+exact-s4-w0+pca-predict+step-m1000-d15+context",
            family: "celslm",
        },
        Preset {
            name: "celslm-fast",
            source: "this project",
            remark: "as celslm with static distributions: encodes a fifth faster, some 5% larger",
            id: "prefix+exact-s4-w0+pca-predict+step-m600-d15+tables-c16",
            family: "celslm-fast",
        },
        Preset {
            name: "celslm-progressive",
            source: "this project",
            remark: "as celslm without prediction, as an embedded stream; the components are those \
                     of what prediction would leave",
            id: "prefix+exact-s4-w0+pca+progressive-m350",
            family: "celslm-progressive",
        },
        Preset {
            name: "streaming-llm",
            source: "StreamingLLM, arXiv 2309.17453; in kvpress",
            remark: "half of the context",
            id: "streaming-k50-s4+identity",
            family: "streaming-llm",
        },
        Preset {
            name: "knorm-press",
            source: "Devoto et al., arXiv 2406.11430; in kvpress",
            remark: "half of each chunk, the same tokens for all heads",
            id: "knorm-k50+identity",
            family: "knorm-press",
        },
        Preset {
            name: "random-press",
            source: "control of kvpress",
            remark: "half of each chunk",
            id: "random-k50-s0+identity",
            family: "random-press",
        },
        Preset {
            name: "snapkv-press",
            source: "SnapKV, arXiv 2404.14469; in kvpress",
            remark: "half of the context, the same tokens for all heads; needs token scores",
            id: "snapkv-k50+identity",
            family: "snapkv-press",
        },
        Preset {
            name: "expected-attention-press",
            source: "Devoto et al., arXiv 2510.00636; in kvpress",
            remark: "half of the context, the same tokens for all heads; needs token scores",
            id: "expected_attention-k50+identity",
            family: "expected-attention-press",
        },
        Preset {
            name: "h2o-press",
            source: "H2O, arXiv 2306.14048; in kvpress as observed attention",
            remark: "half of the context, the same tokens for all heads; needs token scores",
            id: "h2o-k50+identity",
            family: "h2o-press",
        },
    ]
}

/// A method over its range of sizes: the chains of one line in a chart of rate and quality.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// Name: that of its best known preset, or of the stage.
    pub name: &'static str,
    /// What varies, and how far that reaches.
    pub varies: &'static str,
    /// Ids, from the largest payload to the smallest.
    pub ids: fn() -> Vec<String>,
}

impl Family {
    /// The chains, from the largest payload to the smallest.
    #[must_use]
    pub fn configs(&self) -> Vec<CodecConfig> {
        // The conformance battery parses every one.
        let config = |id: String| id.parse().unwrap_or_default();
        (self.ids)().into_iter().map(config).collect()
    }
}

/// Shares of tokens that selections keep in a sweep, in percent: 2 to 33 times fewer.
const KEPT: [usize; 5] = [50, 25, 12, 6, 3];

/// Ids made of `numbers` between what stands before and behind them.
fn ids(before: &str, numbers: &[usize], behind: &str) -> Vec<String> {
    numbers
        .iter()
        .map(|number| format!("{before}{number}{behind}"))
        .collect()
}

/// Ids with `parts` between what stands before and behind them.
fn between(before: &str, parts: &[&str], behind: &str) -> Vec<String> {
    parts
        .iter()
        .map(|part| format!("{before}{part}{behind}"))
        .collect()
}

/// Bits and group of `group_quant`, by what they send; groups of values lie within a head.
const GROUPS: [&str; 8] = [
    "8b-g32", "8b-g64", "4b-g32", "4b-g64", "3b-g32", "3b-g64", "2b-g32", "2b-g64",
];

/// `TurboQuant`'s chains, by what they send.
const ROTATED: [&str; 8] = [
    "hadamard-s0+lloyd_max-5b",
    "hadamard-s0+lloyd_max-4b",
    "outliers-c25-b2+hadamard-s0+lloyd_max-3b",
    "hadamard-s0+lloyd_max-3b",
    "outliers-c25-b2+hadamard-s0+lloyd_max-2b",
    "hadamard-s0+lloyd_max-2b",
    "outliers-c25-b2+hadamard-s0+lloyd_max-1b",
    "hadamard-s0+lloyd_max-1b",
];

/// Thousandths of a step, of a mean standard deviation of the components: 5 to 64 times smaller.
const STEPS: [usize; 11] = [200, 275, 350, 450, 600, 800, 1000, 1400, 2000, 2800, 4000];

/// The families, in the order in which charts list them.
///
/// Where a method publishes several settings these are among the points; the others continue its
/// parameter as far as its stages can be coded. No family is stretched by another method's stage,
/// except those named after a press and `4bit`, which quantise what the press keeps.
#[must_use]
pub const fn families() -> &'static [Family] {
    FAMILIES
}

const FAMILIES: &[Family] = &[
    Family {
        name: "group_quant",
        varies: "bits and group size; up to 6 times smaller",
        ids: || between("group_quant-", &GROUPS, ""),
    },
    Family {
        name: "kivi",
        varies: "4 or 2 bits and group size, the window kept; up to 6 times smaller",
        ids: || {
            let groups = ["4b-g32", "4b-g64", "2b-g16", "2b-g32", "2b-g64"];
            between("exact-s0-w32+group_quant-", &groups, "")
        },
    },
    Family {
        name: "cachegen",
        varies: "bin width in percent of the default level's (the paper has levels and does not \
                 state their widths); anchors of 8 bits bound it at some 13 times",
        ids: || {
            let widths = [25, 50, 75, 100, 150, 200, 300, 450, 700, 1000];
            ids("anchor_delta-g10+bins-w", &widths, "+adaptive")
        },
    },
    Family {
        name: "cachegen-code",
        varies: "numbers of bins of the first and of the other layers, the released code's 32 and \
                 16 among them",
        ids: || {
            let bins = [
                "f256-c128",
                "f128-c64",
                "f64-c32",
                "f32-c16",
                "f16-c8",
                "f8-c4",
                "f4-c4",
            ];
            between("vectorwise-", &bins, "+tables-c0")
        },
    },
    Family {
        name: "kvtc",
        varies: "tenths of a bit per number",
        ids: || {
            let tenths = [40, 30, 25, 20, 15, 10, 7, 5, 3, 2];
            ids("exact-s4-w32+pca-plain+allocated-t", &tenths, "-dp+zstd-l3")
        },
    },
    Family {
        name: "turbo",
        varies: "bits, by halves with outlier channels; up to 12 times smaller",
        ids: || between("", &ROTATED, ""),
    },
    Family {
        name: "turbo-centred",
        varies: "as turbo, behind each channel's mean",
        ids: || between("centre+", &ROTATED, ""),
    },
    Family {
        name: "minicache",
        varies: "bits and group size; a quarter fewer numbers at the most, beside their bits",
        ids: || between("merge-s50-a95+group_quant-", &GROUPS, ""),
    },
    Family {
        name: "celslm",
        varies: "step",
        ids: || {
            ids(
                "prefix+exact-s4-w0+pca-predict+step-m",
                &STEPS,
                "-d15+context",
            )
        },
    },
    Family {
        name: "celslm-fast",
        varies: "step",
        ids: || {
            let stages = "prefix+exact-s4-w0+pca-predict+step-m";
            ids(stages, &STEPS, "-d15+tables-c16")
        },
    },
    Family {
        name: "celslm-progressive",
        varies: "step of the last plane; a shorter prefix of any payload is a point too",
        ids: || ids("prefix+exact-s4-w0+pca+progressive-m", &STEPS, ""),
    },
    Family {
        name: "streaming-llm",
        varies: "share of tokens",
        ids: || ids("streaming-k", &KEPT, "-s4+identity"),
    },
    Family {
        name: "streaming-llm-4bit",
        varies: "share of tokens, quantised to 4 bits",
        ids: || ids("streaming-k", &KEPT, "-s4+group_quant-4b-g32"),
    },
    Family {
        name: "knorm-press",
        varies: "share of tokens",
        ids: || ids("knorm-k", &KEPT, "+identity"),
    },
    Family {
        name: "knorm-press-4bit",
        varies: "share of tokens, quantised to 4 bits",
        ids: || ids("knorm-k", &KEPT, "+group_quant-4b-g32"),
    },
    Family {
        name: "random-press",
        varies: "share of tokens",
        ids: || ids("random-k", &KEPT, "-s0+identity"),
    },
    Family {
        name: "random-press-4bit",
        varies: "share of tokens, quantised to 4 bits",
        ids: || ids("random-k", &KEPT, "-s0+group_quant-4b-g32"),
    },
    Family {
        name: "snapkv-press",
        varies: "share of tokens",
        ids: || ids("snapkv-k", &KEPT, "+identity"),
    },
    Family {
        name: "snapkv-press-4bit",
        varies: "share of tokens, quantised to 4 bits",
        ids: || ids("snapkv-k", &KEPT, "+group_quant-4b-g32"),
    },
    Family {
        name: "expected-attention-press",
        varies: "share of tokens",
        ids: || ids("expected_attention-k", &KEPT, "+identity"),
    },
    Family {
        name: "expected-attention-press-4bit",
        varies: "share of tokens, quantised to 4 bits",
        ids: || ids("expected_attention-k", &KEPT, "+group_quant-4b-g32"),
    },
    Family {
        name: "h2o-press",
        varies: "share of tokens",
        ids: || ids("h2o-k", &KEPT, "+identity"),
    },
    Family {
        name: "h2o-press-4bit",
        varies: "share of tokens, quantised to 4 bits",
        ids: || ids("h2o-k", &KEPT, "+group_quant-4b-g32"),
    },
];

/// The chains of a family, or of a preset's family, from the largest payload to the smallest.
///
/// # Errors
/// [`CodecError::UnknownFamily`].
pub fn sweep(name: &str) -> Result<Vec<CodecConfig>, CodecError> {
    let preset = presets().iter().find(|preset| preset.name == name);
    let family = preset.map_or(name, |preset| preset.family);
    families()
        .iter()
        .find(|entry| entry.name == family)
        .map(Family::configs)
        .ok_or_else(|| CodecError::UnknownFamily {
            name: name.chars().take(80).collect(),
            known: families().iter().map(|family| family.name).collect(),
        })
}
