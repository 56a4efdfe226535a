//! `prefix`: the target model's own KV behind first tokens that training has tuned.

use super::Mapping;

/// Nothing of the source's KV is read: the context is the target model's own, and only the KV of the
/// tokens that all contexts begin with has been trained (prefix tuning, arXiv 2101.00190), towards
/// what a teacher says. With the source's model for a teacher it learns how that model answers,
/// once for all contexts; with the target's own it can learn nothing and is the control. The self
/// control of every map that is trained with a tuned prefix.
///
/// Loses nothing to the target's own KV but what the teacher does worse. Contexts that begin
/// otherwise are left as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix;

impl Prefix {
    pub(super) const NAME: &str = "prefix";
}

impl Mapping for Prefix {
    fn id(&self) -> &'static str {
        Self::NAME
    }
}
