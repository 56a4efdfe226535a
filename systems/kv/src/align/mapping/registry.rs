//! The table of mappings, in the order in which reports list them.

use super::{
    Copy, Fuse, HeadRidge, Joint, LowRank, MappingConfig, Prefix, Procrustes, Ridge, Trained,
    WeightedRidge,
};

/// One registered mapping.
#[derive(Debug, Clone, Copy)]
pub struct MappingEntry {
    /// Name in configs, samples and bridges.
    pub name: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// Where the method was described.
    pub source: &'static str,
    /// A typical configuration.
    pub example: fn() -> MappingConfig,
}

/// Every mapping.
#[must_use]
pub const fn mappings() -> &'static [MappingEntry] {
    &[
        MappingEntry {
            name: Copy::NAME,
            summary: "heads and channels cut or repeated to the target's shape",
            source: "control",
            example: || MappingConfig::Copy,
        },
        MappingEntry {
            name: Procrustes::NAME,
            summary: "a rotation with one scale, after centring",
            source: "Schönemann 1966",
            example: || MappingConfig::Procrustes,
        },
        MappingEntry {
            name: Ridge::NAME,
            summary: "dense ridge for each layer and side",
            source: "arXiv 2608.03893",
            example: || MappingConfig::Ridge,
        },
        MappingEntry {
            name: HeadRidge::NAME,
            summary: "every target head from the source heads that explain it best",
            source: "CacheBridge",
            example: || MappingConfig::HeadRidge(HeadRidge::default()),
        },
        MappingEntry {
            name: WeightedRidge::NAME,
            summary: "ridge with tokens weighted by the attention that they receive",
            source: "CacheBridge",
            example: || MappingConfig::WeightedRidge,
        },
        MappingEntry {
            name: LowRank::NAME,
            summary: "reduced-rank ridge for each layer and side",
            source: "Izenman 1975",
            example: || MappingConfig::LowRank(LowRank::default()),
        },
        MappingEntry {
            name: Joint::NAME,
            summary: "one reduced-rank ridge to all target layers and both sides, from KV or hidden states",
            source: "Izenman 1975",
            example: || MappingConfig::Joint(Joint::default()),
        },
        MappingEntry {
            name: Trained::NAME,
            summary: "another mapping, trained on through the frozen edge model",
            source: "arXiv 1503.02531",
            example: || MappingConfig::Trained,
        },
        MappingEntry {
            name: Fuse::NAME,
            summary: "a trained residual on the edge's own KV, read from both models'",
            source: "Cache-to-Cache (thu-nics/C2C)",
            example: || MappingConfig::Fuse(Fuse::default()),
        },
        MappingEntry {
            name: Prefix::NAME,
            summary: "the edge's own KV behind first tokens that were tuned",
            source: "arXiv 2101.00190",
            example: || MappingConfig::Prefix,
        },
    ]
}

/// The names of all registered mappings.
#[must_use]
pub fn mapping_names() -> Vec<&'static str> {
    mappings().iter().map(|entry| entry.name).collect()
}
