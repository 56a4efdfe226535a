//! The table of alignments, in the order in which reports list them.

use super::{AlignmentConfig, All, Cka, Cosine, Depth, Identity, R2, Terminal};

/// One registered alignment.
#[derive(Debug, Clone, Copy)]
pub struct AlignmentEntry {
    /// Name in configs and in samples.
    pub name: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// Where the method was described.
    pub source: &'static str,
    /// A typical configuration.
    pub example: fn() -> AlignmentConfig,
}

/// Every alignment.
#[must_use]
pub const fn registry() -> &'static [AlignmentEntry] {
    &[
        AlignmentEntry {
            name: Identity::NAME,
            summary: "the cloud hosts the edge's model and hands its KV over unchanged",
            source: "baseline",
            example: || AlignmentConfig::Identity,
        },
        AlignmentEntry {
            name: Terminal::NAME,
            summary: "last layer to last layer, walking back",
            source: "arXiv 2510.03215",
            example: || AlignmentConfig::Terminal(Terminal::default()),
        },
        AlignmentEntry {
            name: Depth::NAME,
            summary: "layers at the same relative depth",
            source: "ridge maps between caches: arXiv 2608.03893",
            example: || AlignmentConfig::Depth(Depth::default()),
        },
        AlignmentEntry {
            name: All::NAME,
            summary: "every source layer feeds every target layer",
            source: "baseline",
            example: || AlignmentConfig::All(All::default()),
        },
        AlignmentEntry {
            name: Cka::NAME,
            summary: "source layers of the highest linear CKA",
            source: "arXiv 1905.00414",
            example: || AlignmentConfig::Cka(Cka::default()),
        },
        AlignmentEntry {
            name: Cosine::NAME,
            summary: "source layers whose ridge map has the highest held-out cosine",
            source: "CE-LSLM's similarity of layers, after the map",
            example: || AlignmentConfig::Cosine(Cosine::default()),
        },
        AlignmentEntry {
            name: R2::NAME,
            summary: "source layers whose ridge map explains most of held-out text",
            source: "ridge maps between caches: arXiv 2608.03893",
            example: || AlignmentConfig::R2(R2::default()),
        },
    ]
}

/// The names of all registered alignments.
#[must_use]
pub fn names() -> Vec<&'static str> {
    registry().iter().map(|entry| entry.name).collect()
}
