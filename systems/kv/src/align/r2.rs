//! `r2`: layers that explain most of the target.

use serde::{Deserialize, Serialize};

use super::{AlignError, Alignment, Scores, Similarity, TopRoute};

/// The `sources` source layers whose single-layer ridge map has the highest R² on held-out text,
/// keys and values averaged.
///
/// The nearest to what ridge maps are fitted for. The best layers for one target layer say much
/// the same, so with several sources it may lose to a choice that looks at them together.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct R2(pub TopRoute);

impl R2 {
    pub(super) const NAME: &str = "r2";
}

impl Alignment for R2 {
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
        let measure: fn(&Similarity) -> &Scores = |similarity| &similarity.r2;
        Similarity::layer_map(Self::NAME, similarity, measure, self.0.sources, layers)
    }
}
