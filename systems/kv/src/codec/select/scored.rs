//! `snapkv`, `expected_attention`, `h2o`: tokens with the highest scores, which whoever holds
//! the model computes from attention; see [`TokenScores`](crate::codec::TokenScores) and the
//! functions of [`scores`](crate::codec::scores), which cite the papers.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Selector, check_keep, highest, share};
use crate::codec::{CodecError, Tile, TileSpec};

/// Where scores come from. All are used in the same way; the name keeps results apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScoredBy {
    /// [`scores::snapkv`](crate::codec::scores::snapkv).
    SnapKv,
    /// [`scores::expected_attention`](crate::codec::scores::expected_attention).
    ExpectedAttention,
    /// [`scores::h2o`](crate::codec::scores::h2o).
    H2o,
}

impl ScoredBy {
    /// Stage name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SnapKv => "snapkv",
            Self::ExpectedAttention => "expected_attention",
            Self::H2o => "h2o",
        }
    }
}

impl fmt::Display for ScoredBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Keeps the `keep` percent of the context's tokens with the highest scores, layer by layer.
///
/// The rank of a token is that in the whole context, so that a tile may keep all of its tokens
/// or none. Fails without scores. Loses when a later question needs a token that the
/// statistics did not ask for; dropped tokens cannot be had back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Scored {
    keep: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(rename = "Scored", deny_unknown_fields)]
struct Fields {
    keep: usize,
}

impl TryFrom<Fields> for Scored {
    type Error = CodecError;

    fn try_from(fields: Fields) -> Result<Self, CodecError> {
        Self::new(fields.keep)
    }
}

impl From<Scored> for Fields {
    fn from(stage: Scored) -> Self {
        Self { keep: stage.keep }
    }
}

impl Scored {
    /// `keep` percent of the context.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] unless `keep` is 1 to 100.
    pub fn new(keep: usize) -> Result<Self, CodecError> {
        check_keep("a selection by scores", keep)?;
        Ok(Self { keep })
    }

    /// Reads the parameters of an id, `k50`.
    pub(in crate::codec) fn parse(text: &str) -> Option<Self> {
        Self::new(text.strip_prefix('k')?.parse().ok()?).ok()
    }

    pub(in crate::codec) fn id(&self, by: ScoredBy) -> String {
        format!("{by}-k{}", self.keep)
    }

    pub(in crate::codec) fn selector(self, by: ScoredBy) -> Box<dyn Selector> {
        Box::new(ScoredSelector {
            keep: self.keep,
            by,
        })
    }
}

#[derive(Debug)]
struct ScoredSelector {
    keep: usize,
    by: ScoredBy,
}

impl Selector for ScoredSelector {
    fn name(&self) -> &'static str {
        self.by.name()
    }

    fn known(&self, _: &TileSpec, _: &dyn Fn(usize) -> usize) -> Option<Vec<usize>> {
        None
    }

    fn choose(&self, tile: &Tile<'_>) -> Result<Vec<usize>, CodecError> {
        let missing = || CodecError::Scores {
            codec: self.by.name(),
            layer: tile.spec().layer,
        };
        let (first, scores) = tile
            .scores()
            .and_then(|scores| scores.layer(tile.spec().layer))
            .ok_or_else(missing)?;
        let kept = highest(scores, share(scores.len(), self.keep));
        let mut chosen = Vec::new();
        for offset in 0..tile.shape().tokens() {
            let index = tile
                .position(offset)
                .checked_sub(first)
                .ok_or_else(missing)?;
            if index >= scores.len() {
                return Err(missing());
            }
            if kept.binary_search(&index).is_ok() {
                chosen.push(offset);
            }
        }
        Ok(chosen)
    }
}
