//! `cka`: layers whose representations are alike up to rotation and scale.

use serde::{Deserialize, Serialize};

use super::{AlignError, Alignment, Scores, Similarity, TopRoute};

/// The `sources` source layers of the highest linear CKA with the target layer (Kornblith et al.,
/// arXiv 1905.00414), keys and values averaged.
///
/// Needs no map to be fitted. Loses to [`R2`](super::R2) where a small part of a large
/// representation is what matters: CKA asks how alike two layers are, not what one says of the
/// other.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cka(pub TopRoute);

impl Cka {
    pub(super) const NAME: &str = "cka";
}

impl Alignment for Cka {
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
        let measure: fn(&Similarity) -> &Scores = |similarity| &similarity.cka;
        Similarity::layer_map(Self::NAME, similarity, measure, self.0.sources, layers)
    }
}
