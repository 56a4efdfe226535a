//! What a context is mapped from.

use super::AlignError;
use crate::block::KvBlock;

/// What a bridge may read of a context.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// The source model's KV, pre-RoPE. A bridge without parts does not read it.
    pub source: &'a KvBlock,
    /// The target model's own KV at the same positions, pre-RoPE, for bridges that add to it or
    /// pass it on ([`Bridge::reads_own`](super::Bridge::reads_own)).
    pub own: Option<&'a KvBlock>,
    /// The context's tokens in the target model, from position 0 on, which say whether it begins with
    /// those whose KV the bridge holds; none where that does not matter.
    pub tokens: &'a [u32],
}

impl<'a> From<&'a KvBlock> for Sources<'a> {
    /// The source model's KV alone.
    fn from(source: &'a KvBlock) -> Self {
        Self {
            source,
            own: None,
            tokens: &[],
        }
    }
}

impl<'a> Sources<'a> {
    /// The target model's own KV.
    ///
    /// # Errors
    /// [`AlignError::Block`] where there is none, or one of other positions.
    pub(super) fn own(&self) -> Result<&'a KvBlock, AlignError> {
        let unfit = |found: String| AlignError::Block {
            end: "target",
            expected: format!(
                "the target model's own KV at positions {:?}",
                self.source.positions()
            ),
            found,
        };
        let own = self.own.ok_or_else(|| unfit("none".to_owned()))?;
        if own.positions() != self.source.positions() {
            return Err(unfit(format!("positions {:?}", own.positions())));
        }
        Ok(own)
    }
}
