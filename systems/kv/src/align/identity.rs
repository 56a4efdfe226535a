//! `identity`: the cloud hosts the edge's own model and hands its KV over as it is.

use serde::{Deserialize, Serialize};

use super::{AlignError, Alignment, Similarity};
use crate::ident::ModelFingerprint;

/// Layer `i` feeds layer `i` of the same model; nothing is mapped.
///
/// Exact, and the ceiling for every mapping. Brings the edge no knowledge of a larger model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Identity;

impl Identity {
    pub(super) const NAME: &str = "identity";
}

impl Alignment for Identity {
    fn id(&self) -> &'static str {
        Self::NAME
    }

    fn check_models(
        &self,
        source: &ModelFingerprint,
        target: &ModelFingerprint,
    ) -> Result<(), AlignError> {
        if source == target {
            return Ok(());
        }
        Err(AlignError::DifferentModels {
            source_model: *source,
            target_model: *target,
        })
    }

    fn layer_map(
        &self,
        num_source_layers: usize,
        num_target_layers: usize,
        _similarity: Option<&Similarity>,
    ) -> Result<Vec<Vec<usize>>, AlignError> {
        if num_source_layers != num_target_layers || num_target_layers == 0 {
            let alignment = Self::NAME;
            return Err(AlignError::LayerCounts {
                alignment,
                num_source_layers,
                num_target_layers,
            });
        }
        Ok((0..num_target_layers).map(|layer| vec![layer]).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_models_are_refused_by_name() {
        let (a, b) = (
            ModelFingerprint::from_bytes([1; 32]),
            ModelFingerprint::from_bytes([2; 32]),
        );
        let error = Identity.check_models(&a, &b).unwrap_err().to_string();
        assert!(
            error.contains(&a.to_string()) && error.contains(&b.to_string()),
            "{error}"
        );
        assert!(matches!(
            Identity.layer_map(28, 24, None),
            Err(AlignError::LayerCounts { .. })
        ));
    }
}
