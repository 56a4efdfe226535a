//! KV of the tokens that all contexts begin with: the template's and the instruction's.

use super::AlignError;
use crate::block::{KeyRope, KvBlock};

/// Tokens that a bridge may hold the KV of: far above any instruction.
pub const MAX_PREFIX_TOKENS: usize = 1024;

/// The first tokens of all contexts of a kind with the target model's KV of them, which depends on
/// nothing that follows. Attention leans on them, and no map hits them; whoever holds them beforehand
/// need not compute them.
#[derive(Debug, Clone, PartialEq)]
pub struct CommonPrefix {
    tokens: Vec<u32>,
    exact: KvBlock,
    tuned: Option<KvBlock>,
}

impl CommonPrefix {
    /// `exact` is the target model's KV of the tokens, from position 0, pre-RoPE.
    ///
    /// # Errors
    /// [`AlignError::Block`] for KV of other tokens, or rotated, and [`AlignError::NotFinite`].
    pub fn new(tokens: Vec<u32>, exact: KvBlock) -> Result<Self, AlignError> {
        if tokens.len() > MAX_PREFIX_TOKENS {
            return Err(AlignError::Parameter {
                name: "prefix tokens",
                value: tokens.len() as f64,
                allowed: "at most 1024",
            });
        }
        check(&tokens, &exact)?;
        Ok(Self {
            tokens,
            exact,
            tuned: None,
        })
    }

    /// The same with KV that training found, for contexts that begin with all of the tokens.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn with_tuned(self, tuned: KvBlock) -> Result<Self, AlignError> {
        check(&self.tokens, &tuned)?;
        if tuned.spec() != self.exact.spec() {
            return Err(AlignError::Block {
                end: "target",
                expected: self.exact.shape().to_string(),
                found: tuned.shape().to_string(),
            });
        }
        Ok(Self {
            tuned: Some(tuned),
            ..self
        })
    }

    /// The tokens.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Their KV as the model computes it.
    #[must_use]
    pub const fn exact(&self) -> &KvBlock {
        &self.exact
    }

    /// Their KV as trained, where it was.
    #[must_use]
    pub const fn tuned(&self) -> Option<&KvBlock> {
        self.tuned.as_ref()
    }

    /// What a context begins with: so many tokens, and their KV. Tuned KV is for all of them or none.
    pub(super) fn of(&self, context: &[u32]) -> (usize, &KvBlock) {
        let same = self.tokens.iter().zip(context).take_while(|(a, b)| a == b);
        let count = same.count();
        match &self.tuned {
            Some(tuned) if count == self.tokens.len() => (count, tuned),
            _ => (count, &self.exact),
        }
    }
}

fn check(tokens: &[u32], block: &KvBlock) -> Result<(), AlignError> {
    if block.positions() != (0..tokens.len()) || block.rope() != KeyRope::Pre {
        return Err(AlignError::Block {
            end: "target",
            expected: format!("{} keys of positions {:?}", KeyRope::Pre, 0..tokens.len()),
            found: format!("{} keys of positions {:?}", block.rope(), block.positions()),
        });
    }
    let layers = block.layers().iter();
    let mut sides = layers.flat_map(|layer| [&layer.k, &layer.v]);
    match sides.all(|side| side.iter().all(|x| x.is_finite())) {
        true => Ok(()),
        false => Err(AlignError::NotFinite {
            what: "the prefix's keys or values".to_owned(),
        }),
    }
}
