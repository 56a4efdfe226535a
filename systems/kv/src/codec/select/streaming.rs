//! `streaming`: the first tokens and the most recent ones (Xiao et al., arXiv 2309.17453).

use serde::{Deserialize, Serialize};

use super::{Selector, check_keep, share};
use crate::codec::{CodecError, Tile, TileSpec};

/// Keeps `keep` percent of the context: its first `sinks` tokens and as many of its last ones.
///
/// Costs nothing to signal, since both ends know where a tile stands. Loses everything that the
/// middle of a document says: a baseline that a selection by content has to beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Streaming {
    keep: usize,
    sinks: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(rename = "Streaming", deny_unknown_fields)]
struct Fields {
    keep: usize,
    #[serde(default = "default_sinks")]
    sinks: usize,
}

const fn default_sinks() -> usize {
    4
}

impl TryFrom<Fields> for Streaming {
    type Error = CodecError;

    fn try_from(fields: Fields) -> Result<Self, CodecError> {
        Self::new(fields.keep, fields.sinks)
    }
}

impl From<Streaming> for Fields {
    fn from(stage: Streaming) -> Self {
        let Streaming { keep, sinks } = stage;
        Self { keep, sinks }
    }
}

impl Streaming {
    pub(in crate::codec) const NAME: &str = "streaming";

    /// `keep` percent of the context, `sinks` of them at its start.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] unless `keep` is 1 to 100.
    pub fn new(keep: usize, sinks: usize) -> Result<Self, CodecError> {
        check_keep(Self::NAME, keep)?;
        Ok(Self { keep, sinks })
    }

    /// Reads the parameters of an id, `k50-s4`.
    pub(in crate::codec) fn parse(text: &str) -> Option<Self> {
        let (keep, sinks) = text.strip_prefix('k')?.split_once("-s")?;
        Self::new(keep.parse().ok()?, sinks.parse().ok()?).ok()
    }

    pub(in crate::codec) fn id(&self) -> String {
        format!("{}-k{}-s{}", Self::NAME, self.keep, self.sinks)
    }
}

impl Selector for Streaming {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn known(&self, spec: &TileSpec, position: &dyn Fn(usize) -> usize) -> Option<Vec<usize>> {
        let kept = share(spec.end_token, self.keep);
        let window = spec.end_token - kept.saturating_sub(self.sinks);
        let keeps = |offset: &usize| {
            let at = position(*offset);
            at < self.sinks.min(kept) || at >= window
        };
        Some((0..spec.shape.tokens()).filter(keeps).collect())
    }

    fn choose(&self, _tile: &Tile<'_>) -> Result<Vec<usize>, CodecError> {
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::TileShape;

    #[test]
    fn sinks_and_the_end_of_the_context_are_kept() {
        let spec = TileSpec {
            first_token: 4,
            end_token: 20,
            ..TileSpec::alone(TileShape::new(1, 16, 8).unwrap())
        };
        let stage = Streaming::new(50, 4).unwrap();
        let kept = stage.known(&spec, &|offset| 4 + offset).unwrap();
        assert_eq!(kept, [10, 11, 12, 13, 14, 15]);
        let whole = TileSpec {
            first_token: 0,
            ..spec
        };
        let kept = stage.known(&whole, &|offset| offset).unwrap();
        assert_eq!(kept, [0, 1, 2, 3, 14, 15]);
        assert!(Streaming::new(0, 4).is_err() && Streaming::new(101, 4).is_err());
    }
}
