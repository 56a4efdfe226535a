//! `depth`: layers at the same relative depth belong together.

use serde::{Deserialize, Serialize};

use super::{AlignError, Alignment, Similarity, TopRoute, check_sources};

/// Target layer `i` of `Lt` is fed by the `sources` source layers `j` of `Ls` with the least
/// `|i / (Lt - 1) - j / (Ls - 1)|`, nearest first, the lower one on a tie.
///
/// Needs no data to choose layers, and loses to measured alignments where two models do their
/// work at different depths.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Depth(pub TopRoute);

impl Depth {
    pub(super) const NAME: &str = "depth";
}

impl Alignment for Depth {
    fn id(&self) -> &'static str {
        Self::NAME
    }

    fn layer_map(
        &self,
        num_source_layers: usize,
        num_target_layers: usize,
        _similarity: Option<&Similarity>,
    ) -> Result<Vec<Vec<usize>>, AlignError> {
        check_sources(self.0.sources)?;
        let (Some(last_source), Some(last_target)) = (
            num_source_layers.checked_sub(1),
            num_target_layers.checked_sub(1),
        ) else {
            let alignment = Self::NAME;
            return Err(AlignError::LayerCounts {
                alignment,
                num_source_layers,
                num_target_layers,
            });
        };
        // Multiplied out to integers, so that ties are exact. A model of one layer is at depth 0.
        let distance = |i: usize, j: usize| {
            (i as u128 * last_source as u128).abs_diff(j as u128 * last_target as u128)
        };
        let nearest = |i| {
            let mut layers: Vec<usize> = (0..num_source_layers).collect();
            layers.sort_by_key(|j| distance(i, *j));
            layers.truncate(self.0.sources);
            layers
        };
        Ok((0..num_target_layers).map(nearest).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(source: usize, target: usize) -> Vec<usize> {
        let map = Depth::default().layer_map(source, target, None);
        map.unwrap().concat()
    }

    #[test]
    fn ends_meet_and_ties_go_down() {
        assert_eq!(map(3, 2), [0, 2]);
        assert_eq!(map(2, 3), [0, 0, 1], "the middle is as near to both");
        assert_eq!(map(4, 3), [0, 1, 3], "1/2 is as near to 1/3 as to 2/3");
        assert_eq!(map(5, 1), [0]);
        assert_eq!(map(1, 3), [0, 0, 0]);
        let default_pair = map(28, 24);
        assert_eq!(default_pair[..3], [0, 1, 2]);
        assert_eq!(default_pair[12], 14);
        assert_eq!(default_pair[23], 27);
        assert!(default_pair.is_sorted());
    }

    #[test]
    fn several_sources_are_the_nearest_ones() {
        let depth = |sources| {
            Depth(TopRoute {
                sources,
                ..TopRoute::default()
            })
        };
        let map = depth(3).layer_map(5, 3, None).unwrap();
        assert_eq!(map, [[0, 1, 2], [2, 1, 3], [4, 3, 2]]);
        let all = depth(9).layer_map(2, 1, None).unwrap();
        assert_eq!(all, [[0, 1]]);
        let none = depth(0).layer_map(2, 1, None);
        assert!(matches!(none, Err(AlignError::Parameter { .. })));
    }
}
