//! The table of codec stages, in the order in which reports list them.

use super::{CodecConfig, GroupQuant, Identity, StageConfig, StageKind};

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

/// Every codec stage.
#[must_use]
pub const fn registry() -> &'static [CodecEntry] {
    &[
        CodecEntry {
            name: Identity::NAME,
            kind: StageKind::Quantise,
            summary: "fp16 unchanged",
            source: "baseline",
            examples: || vec![StageConfig::Identity.into()],
        },
        CodecEntry {
            name: GroupQuant::NAME,
            kind: StageKind::Quantise,
            summary: "asymmetric 8 or 4 bit groups: keys per channel, values per token",
            source: "KIVI, arXiv 2402.02750",
            examples: || {
                vec![
                    StageConfig::GroupQuant(GroupQuant::BITS_4).into(),
                    StageConfig::GroupQuant(GroupQuant::BITS_8).into(),
                ]
            },
        },
    ]
}

/// The names of all registered stages.
#[must_use]
pub fn names() -> Vec<&'static str> {
    registry().iter().map(|entry| entry.name).collect()
}
