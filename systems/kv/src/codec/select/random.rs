//! `random`: tokens drawn blindly. The control that every selection has to beat.

use serde::{Deserialize, Serialize};

use super::{Selector, check_keep, share};
use crate::codec::{CodecError, Tile, TileSpec};

/// Keeps `keep` percent of a tile's tokens, drawn from `seed`, layer and position, so that both
/// ends draw the same ones and nothing is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Random {
    keep: usize,
    seed: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename = "Random", deny_unknown_fields)]
struct Fields {
    keep: usize,
    #[serde(default)]
    seed: u64,
}

impl TryFrom<Fields> for Random {
    type Error = CodecError;

    fn try_from(fields: Fields) -> Result<Self, CodecError> {
        Self::new(fields.keep, fields.seed)
    }
}

impl From<Random> for Fields {
    fn from(stage: Random) -> Self {
        let Random { keep, seed } = stage;
        Self { keep, seed }
    }
}

impl Random {
    pub(in crate::codec) const NAME: &str = "random";

    /// `keep` percent of every tile.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] unless `keep` is 1 to 100.
    pub fn new(keep: usize, seed: u64) -> Result<Self, CodecError> {
        check_keep(Self::NAME, keep)?;
        Ok(Self { keep, seed })
    }

    /// Reads the parameters of an id, `k50-s0`.
    pub(in crate::codec) fn parse(text: &str) -> Option<Self> {
        let (keep, seed) = text.strip_prefix('k')?.split_once("-s")?;
        Self::new(keep.parse().ok()?, seed.parse().ok()?).ok()
    }

    pub(in crate::codec) fn id(&self) -> String {
        format!("{}-k{}-s{}", Self::NAME, self.keep, self.seed)
    }
}

impl Selector for Random {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn known(&self, spec: &TileSpec, position: &dyn Fn(usize) -> usize) -> Option<Vec<usize>> {
        let tokens = spec.shape.tokens();
        let draw = |offset: &usize| {
            let place = (spec.layer as u64) << 40 ^ position(*offset) as u64;
            (mix(self.seed ^ mix(place)), *offset)
        };
        let mut order: Vec<usize> = (0..tokens).collect();
        order.sort_by_cached_key(draw);
        order.truncate(share(tokens, self.keep));
        order.sort_unstable();
        Some(order)
    }

    fn choose(&self, _tile: &Tile<'_>) -> Result<Vec<usize>, CodecError> {
        Ok(Vec::new())
    }
}

/// The finaliser of `SplitMix64` (Steele et al., OOPSLA 2014): a bijection that scatters.
pub(in crate::codec) const fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::TileShape;

    #[test]
    fn draws_follow_from_seed_layer_and_position() {
        let spec = TileSpec::alone(TileShape::new(1, 100, 8).unwrap());
        let draw = |seed, layer, first: usize| {
            let spec = TileSpec { layer, ..spec };
            let stage = Random::new(30, seed).unwrap();
            stage.known(&spec, &move |offset| first + offset).unwrap()
        };
        let drawn = draw(0, 0, 0);
        assert_eq!(drawn.len(), 30);
        assert!(drawn.is_sorted());
        assert_eq!(drawn, draw(0, 0, 0));
        assert_ne!(drawn, draw(1, 0, 0));
        assert_ne!(drawn, draw(0, 1, 0));
        assert_ne!(drawn, draw(0, 0, 100));
    }
}
