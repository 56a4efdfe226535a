//! `all`: every source layer feeds every target layer.

use serde::{Deserialize, Serialize};

use super::{AlignError, Alignment, Route, Similarity};

/// All source layers, in order, for every target layer.
///
/// The most that a linear map can know of a token. Loses where calibration text is short, or the
/// map has to be small: a dense map from 28 x 256 to 128 channels has 0.9 million weights, and
/// there are 48 of them; see [`Joint`](super::mapping::Joint).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct All(pub Route);

impl All {
    pub(super) const NAME: &str = "all";
}

impl Alignment for All {
    fn id(&self) -> &'static str {
        Self::NAME
    }

    fn layer_map(
        &self,
        num_source_layers: usize,
        num_target_layers: usize,
        _similarity: Option<&Similarity>,
    ) -> Result<Vec<Vec<usize>>, AlignError> {
        if num_source_layers == 0 || num_target_layers == 0 {
            let alignment = Self::NAME;
            return Err(AlignError::LayerCounts {
                alignment,
                num_source_layers,
                num_target_layers,
            });
        }
        Ok(vec![(0..num_source_layers).collect(); num_target_layers])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layer_feeds_every_layer() {
        let map = All::default().layer_map(3, 2, None).unwrap();
        assert_eq!(map, [[0, 1, 2], [0, 1, 2]]);
    }
}
