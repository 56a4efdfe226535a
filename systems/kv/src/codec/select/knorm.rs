//! `knorm`: tokens whose keys are short (Devoto et al., arXiv 2406.11430).

use half::f16;
use serde::{Deserialize, Serialize};

use super::{Selector, check_keep, highest, share};
use crate::codec::{CodecError, Tile, TileSpec};

/// Keeps the `keep` percent of a tile's tokens with the shortest keys: they tend to receive the
/// most attention.
///
/// The rotation of RoPE changes no norm, so pre-RoPE keys serve. The norm is that of all heads
/// together, and the share is of each tile, where the paper chooses for each head over the whole
/// context. Loses in layers where the correlation does not hold, above all the first two, and
/// evenly spread attention loses with every selection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Knorm {
    keep: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(rename = "Knorm", deny_unknown_fields)]
struct Fields {
    keep: usize,
}

impl TryFrom<Fields> for Knorm {
    type Error = CodecError;

    fn try_from(fields: Fields) -> Result<Self, CodecError> {
        Self::new(fields.keep)
    }
}

impl From<Knorm> for Fields {
    fn from(stage: Knorm) -> Self {
        Self { keep: stage.keep }
    }
}

impl Knorm {
    pub(in crate::codec) const NAME: &str = "knorm";

    /// `keep` percent of every tile.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] unless `keep` is 1 to 100.
    pub fn new(keep: usize) -> Result<Self, CodecError> {
        check_keep(Self::NAME, keep)?;
        Ok(Self { keep })
    }

    /// Reads the parameters of an id, `k50`.
    pub(in crate::codec) fn parse(text: &str) -> Option<Self> {
        Self::new(text.strip_prefix('k')?.parse().ok()?).ok()
    }

    pub(in crate::codec) fn id(&self) -> String {
        format!("{}-k{}", Self::NAME, self.keep)
    }
}

impl Selector for Knorm {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn known(&self, _: &TileSpec, _: &dyn Fn(usize) -> usize) -> Option<Vec<usize>> {
        None
    }

    fn choose(&self, tile: &Tile<'_>) -> Result<Vec<usize>, CodecError> {
        let shape = tile.shape();
        let mut scores = vec![0.0; shape.tokens()];
        for head in tile.k().chunks_exact(shape.tokens() * shape.head_dim()) {
            for (score, key) in scores.iter_mut().zip(head.chunks_exact(shape.head_dim())) {
                let square: f32 = key.iter().copied().map(f16::to_f32).map(|x| x * x).sum();
                *score -= square;
            }
        }
        Ok(highest(&scores, share(shape.tokens(), self.keep)))
    }
}
