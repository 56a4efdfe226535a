//! `terminal`: last layer to last layer, walking back.

use serde::{Deserialize, Serialize};

use super::{AlignError, Alignment, Route, Similarity};

/// The last target layer is fed by the last source layer, the one before by the one before, and
/// so on; where the source has fewer layers, its first one feeds all that are left (the
/// arrangement of Cache-to-Cache, arXiv 2510.03215).
///
/// Loses to [`Depth`](super::Depth) in the first layers of models of different depth, which it
/// does not bring together.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Terminal(pub Route);

impl Terminal {
    pub(super) const NAME: &str = "terminal";
}

impl Alignment for Terminal {
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
        let source = |layer: usize| (num_source_layers + layer).saturating_sub(num_target_layers);
        Ok((0..num_target_layers)
            .map(|layer| vec![source(layer)])
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_layers_meet() {
        let map = |source, target| {
            let map = Terminal::default().layer_map(source, target, None);
            map.unwrap().concat()
        };
        assert_eq!(map(5, 3), [2, 3, 4]);
        assert_eq!(map(2, 4), [0, 0, 0, 1]);
        assert_eq!(map(28, 24)[0], 4);
    }
}
