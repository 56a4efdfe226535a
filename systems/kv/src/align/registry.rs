//! The table of alignments, in the order in which reports list them.

use super::{AlignmentConfig, Depth, Identity};

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
            name: Depth::NAME,
            summary: "layers at the same relative depth, mapped by closed-form ridge",
            source: "ridge maps between caches: arXiv 2608.03893",
            example: || AlignmentConfig::Depth(Depth::default()),
        },
    ]
}

/// The names of all registered alignments.
#[must_use]
pub fn names() -> Vec<&'static str> {
    registry().iter().map(|entry| entry.name).collect()
}
