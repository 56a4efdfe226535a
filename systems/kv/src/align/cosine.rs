//! `cosine`: layers whose best linear map points where the target does.

use serde::{Deserialize, Serialize};

use super::{AlignError, Alignment, Scores, Similarity, TopRoute};

/// The `sources` source layers whose single-layer ridge map has the highest cosine with the target
/// layer on held-out text, keys and values averaged; over all tokens and channels about their
/// means, which moments suffice for.
///
/// As [`R2`](super::R2), but blind to the shrinkage of ridge. Loses where length matters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cosine(pub TopRoute);

impl Cosine {
    pub(super) const NAME: &str = "cosine";
}

impl Alignment for Cosine {
    fn id(&self) -> &'static str {
        Self::NAME
    }

    fn layer_map(
        &self,
        num_source_layers: usize,
        num_target_layers: usize,
        similarity: Option<&Similarity>,
    ) -> Result<Vec<Vec<usize>>, AlignError> {
        let layers = (num_source_layers, num_target_layers);
        let measure: fn(&Similarity) -> &Scores = |similarity| &similarity.cosine;
        Similarity::layer_map(Self::NAME, similarity, measure, self.0.sources, layers)
    }
}
