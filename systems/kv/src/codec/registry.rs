//! The table of codec stages, in the order in which reports list them.

use super::{
    Adaptive, Allocated, AnchorDelta, Bins, Centre, CodecConfig, Context, Exact, GroupQuant,
    Hadamard, Identity, Knorm, LloydMax, Merge, Outliers, Pca, Prefix, Progressive, Random,
    ScoredBy, StageKind, Step, Streaming, Svd, Tables, Vectorwise, Zstd,
};

/// One registered stage.
#[derive(Debug, Clone, Copy)]
pub struct CodecEntry {
    /// Name in configs and the first word of the id.
    pub name: &'static str,
    /// Where in a chain the stage stands.
    pub kind: StageKind,
    /// What it does, in one line.
    pub summary: &'static str,
    /// Where the method was described.
    pub source: &'static str,
    /// Complete chains that use the stage, with typical parameters; never empty. Tests and
    /// benches run all of them, `ls` shows the first.
    pub examples: fn() -> Vec<CodecConfig>,
}

impl CodecEntry {
    /// The chain to show for this stage.
    #[must_use]
    pub fn example(&self) -> CodecConfig {
        (self.examples)().swap_remove(0)
    }
}

/// Chains by their ids. Every id below is parsed by the conformance battery.
fn chains(ids: &[&str]) -> Vec<CodecConfig> {
    ids.iter()
        .map(|id| id.parse().unwrap_or_default())
        .collect()
}

/// Every codec stage.
#[must_use]
pub const fn registry() -> &'static [CodecEntry] {
    STAGES
}

const STAGES: &[CodecEntry] = &[
    CodecEntry {
        name: Identity::NAME,
        kind: StageKind::Quantise,
        summary: "fp16 unchanged",
        source: "baseline",
        examples: || chains(&["identity"]),
    },
    CodecEntry {
        name: GroupQuant::NAME,
        kind: StageKind::Quantise,
        summary: "asymmetric 8, 4, 3 or 2 bit groups: keys per channel, values per token",
        source: "KIVI, arXiv 2402.02750",
        examples: || {
            chains(&[
                "group_quant-4b-g32",
                "group_quant-8b-g32",
                "group_quant-3b-g32",
                "group_quant-2b-g32",
            ])
        },
    },
    CodecEntry {
        name: Bins::NAME,
        kind: StageKind::Quantise,
        summary: "equal bins in units of the channel's spread, wider in deeper layers",
        source: "CacheGen, arXiv 2310.07240",
        examples: || chains(&["bins-w50+adaptive"]),
    },
    CodecEntry {
        name: Vectorwise::NAME,
        kind: StageKind::Quantise,
        summary: "one scale per token, fewer levels in deeper layers",
        source: "CacheGen's released code",
        examples: || chains(&["vectorwise-f32-c16+tables-c8", "vectorwise-f32-c16"]),
    },
    CodecEntry {
        name: LloydMax::NAME,
        kind: StageKind::Quantise,
        summary: "best levels for normal numbers, one norm per vector",
        source: "TurboQuant, arXiv 2504.19874",
        examples: || chains(&["hadamard-s0+lloyd_max-4b", "hadamard-s0+lloyd_max-2b"]),
    },
    CodecEntry {
        name: Allocated::NAME,
        kind: StageKind::Quantise,
        summary: "fixed bits per principal component; needs an artefact",
        source: "KVTC, arXiv 2511.01815",
        examples: || {
            chains(&[
                "pca-plain+allocated-t20-dp+zstd-l3",
                "pca+allocated-t30-wf+tables-c16",
            ])
        },
    },
    CodecEntry {
        name: Step::NAME,
        kind: StageKind::Quantise,
        summary: "one step for all components, rates by reverse water-filling; needs an entropy coder",
        source: "Gish and Pierce 1968; Sullivan 1996",
        examples: || chains(&["pca+step-m700-d15+context", "pca+step-m300-d10+adaptive"]),
    },
    CodecEntry {
        name: Progressive::NAME,
        kind: StageKind::Quantise,
        summary: "bit planes, decodable at every prefix",
        source: "Shapiro 1993; Taubman 2000",
        examples: || chains(&["exact-s4-w0+pca+progressive-m250", "progressive-m250"]),
    },
    CodecEntry {
        name: Prefix::NAME,
        kind: StageKind::Select,
        summary: "leaves out first tokens that both ends have; needs an artefact",
        source: "this project",
        examples: || {
            chains(&[
                "prefix+exact-s4-w0+group_quant-4b-g32",
                "prefix+knorm-k50+identity",
            ])
        },
    },
    CodecEntry {
        name: Exact::NAME,
        kind: StageKind::Select,
        summary: "first and last tokens of the context as fp16, the rest through the chain",
        source: "KIVI, arXiv 2402.02750; StreamingLLM, arXiv 2309.17453",
        examples: || chains(&["exact-s4-w32+group_quant-4b-g32"]),
    },
    CodecEntry {
        name: Streaming::NAME,
        kind: StageKind::Select,
        summary: "keeps the first and the most recent tokens",
        source: "StreamingLLM, arXiv 2309.17453",
        examples: || chains(&["streaming-k50-s4+identity"]),
    },
    CodecEntry {
        name: Knorm::NAME,
        kind: StageKind::Select,
        summary: "keeps tokens with short keys",
        source: "Devoto et al., arXiv 2406.11430",
        examples: || chains(&["knorm-k50+group_quant-4b-g32"]),
    },
    CodecEntry {
        name: ScoredBy::SnapKv.name(),
        kind: StageKind::Select,
        summary: "keeps tokens that the end of the context attends to; needs token scores",
        source: "SnapKV, arXiv 2404.14469",
        examples: || chains(&["snapkv-k25+group_quant-4b-g32"]),
    },
    CodecEntry {
        name: ScoredBy::ExpectedAttention.name(),
        kind: StageKind::Select,
        summary: "keeps tokens that future queries should attend to; needs token scores",
        source: "Devoto et al., arXiv 2510.00636",
        examples: || chains(&["exact-s4-w0+expected_attention-k50+group_quant-8b-g32"]),
    },
    CodecEntry {
        name: ScoredBy::H2o.name(),
        kind: StageKind::Select,
        summary: "keeps tokens that received most attention; needs token scores",
        source: "H2O, arXiv 2306.14048",
        examples: || chains(&["h2o-k50+identity"]),
    },
    CodecEntry {
        name: Random::NAME,
        kind: StageKind::Select,
        summary: "keeps tokens drawn blindly: the control of every selection",
        source: "control",
        examples: || chains(&["random-k50-s0+identity"]),
    },
    CodecEntry {
        name: AnchorDelta::NAME,
        kind: StageKind::Transform,
        summary: "differences to the first token of each group",
        source: "CacheGen, arXiv 2310.07240",
        examples: || {
            chains(&[
                "anchor_delta-g10+bins-w100+adaptive",
                "anchor_delta-g10+group_quant-4b-g32",
            ])
        },
    },
    CodecEntry {
        name: Centre::NAME,
        kind: StageKind::Transform,
        summary: "takes each channel's mean over the tile off",
        source: "zero points of channels: KIVI, arXiv 2402.02750",
        examples: || {
            chains(&[
                "centre+hadamard-s0+lloyd_max-4b",
                "centre+outliers-c25-b2+hadamard-s0+lloyd_max-3b",
                "exact-s4-w0+centre+identity",
            ])
        },
    },
    CodecEntry {
        name: Outliers::NAME,
        kind: StageKind::Transform,
        summary: "more bits for the channels with the most energy",
        source: "TurboQuant, arXiv 2504.19874",
        examples: || {
            chains(&[
                "outliers-c25-b2+hadamard-s0+lloyd_max-2b",
                "outliers-c50-b1+lloyd_max-3b+context",
            ])
        },
    },
    CodecEntry {
        name: Merge::NAME,
        kind: StageKind::Transform,
        summary: "directions shared by pairs of neighbouring layers",
        source: "MiniCache, arXiv 2405.14366",
        examples: || {
            chains(&[
                "merge-s50-a30+group_quant-4b-g32",
                "exact-s4-w0+merge-s0-a60+identity",
            ])
        },
    },
    CodecEntry {
        name: Hadamard::NAME,
        kind: StageKind::Transform,
        summary: "random rotation of each head's channels",
        source: "QuaRot, arXiv 2404.00456; TurboQuant, arXiv 2504.19874",
        examples: || chains(&["hadamard-s0+group_quant-4b-g32"]),
    },
    CodecEntry {
        name: Pca::NAME,
        kind: StageKind::Transform,
        summary: "principal components, of what the layers below do not predict or plain; needs an artefact",
        source: "KVTC, arXiv 2511.01815; prediction is this project's",
        examples: || {
            chains(&[
                "exact-s4-w0+pca-predict+step-m500-d15+context",
                "pca+group_quant-4b-g32",
            ])
        },
    },
    CodecEntry {
        name: Svd::NAME,
        kind: StageKind::Transform,
        summary: "low rank, found on the fly, factors sent",
        source: "Palu, arXiv 2407.21118; xKV, arXiv 2503.18893",
        examples: || chains(&["svd-r32+group_quant-4b-g32", "svd-r8+identity"]),
    },
    CodecEntry {
        name: Tables::NAME,
        kind: StageKind::Entropy,
        summary: "asymmetric numeral systems with sent distributions",
        source: "Duda, arXiv 1311.2540; Giesen, arXiv 1402.3392",
        examples: || chains(&["group_quant-4b-g32+tables-c8"]),
    },
    CodecEntry {
        name: Adaptive::NAME,
        kind: StageKind::Entropy,
        summary: "arithmetic coding, a distribution per channel learnt while coding",
        source: "CacheGen, arXiv 2310.07240; Martin 1979",
        examples: || chains(&["group_quant-3b-g32+adaptive"]),
    },
    CodecEntry {
        name: Context::NAME,
        kind: StageKind::Entropy,
        summary: "arithmetic coding with models chosen by neighbouring magnitudes",
        source: "CALIC, Wu and Memon 1997",
        examples: || chains(&["group_quant-3b-g32+context"]),
    },
    CodecEntry {
        name: Zstd::NAME,
        kind: StageKind::Entropy,
        summary: "general compression of the bytes before it",
        source: "RFC 8878",
        examples: || {
            chains(&[
                "group_quant-4b-g32+zstd-l3",
                "identity+zstd-l3",
                "vectorwise-f32-c16+tables-c8+zstd-l1",
            ])
        },
    },
];

/// The names of all registered stages.
#[must_use]
pub fn names() -> Vec<&'static str> {
    registry().iter().map(|entry| entry.name).collect()
}
