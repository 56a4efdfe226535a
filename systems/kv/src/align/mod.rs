//! Alignment and mapping: one model's KV made usable in another.
//!
//! An alignment says which source layers feed which target layer ([`Alignment::layer_map`]); a
//! mapping turns their keys and values into the target's. The fitted pair is a [`Bridge`].
//!
//! To add an alignment: one file with a type that implements [`Alignment`], one `mod` line
//! here, one variant in [`AlignmentConfig`] and one line in [`registry`].

mod affine;
mod all;
mod bridge;
mod bytes;
mod cka;
mod config;
mod cosine;
mod depth;
mod fitter;
mod identity;
pub mod mapping;
mod moments;
mod prefix;
mod r2;
mod registry;
pub mod ridge;
mod route;
mod similarity;
mod slot;
mod sources;
mod spectrum;
mod states;
mod terminal;
mod tokens;
mod weights;

pub use affine::{Affine, Numbers, Weights};
pub use all::All;
pub use bridge::{
    Bridge, BridgeEnd, BridgeError, BridgeManifest, FitCost, LayerFit, MAX_BRIDGE_BYTES,
    OtherModels, TrainingRecord,
};
pub use cka::Cka;
pub use config::AlignmentConfig;
pub use cosine::Cosine;
pub use depth::Depth;
pub use fitter::{BridgeFitter, FitOptions, Split};
pub use identity::Identity;
pub use mapping::{Mapping, MappingConfig, Part, mapping_names, mappings};
pub use moments::Moments;
pub use prefix::{CommonPrefix, MAX_PREFIX_TOKENS};
pub use r2::R2;
pub use registry::{AlignmentEntry, names, registry};
pub use route::{MapAt, Route, TopRoute};
pub use similarity::{Scores, Similarity, SimilarityFitter};
pub use slot::{KvSide, Slot};
pub use sources::Sources;
pub use states::{SourceKind, states_block, states_shape};
pub use terminal::Terminal;
pub use tokens::{TokenAlignment, TokenSpans, by_offsets};
pub use weights::{Matrix, Storage};

use std::fmt::Debug;

use crate::block::KvError;
use crate::ident::ModelFingerprint;

/// Why layers could not be aligned, a map not be fitted, or a block not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum AlignError {
    /// The name of no alignment.
    #[error("no alignment is called {name:?}; known are {}", known.join(", "))]
    Unknown {
        /// What was asked for, cut to 80 characters.
        name: String,
        /// What exists.
        known: Vec<&'static str>,
    },
    /// The name of no mapping.
    #[error("no mapping is called {name:?}; known are {}", known.join(", "))]
    UnknownMapping {
        /// What was asked for, cut to 80 characters.
        name: String,
        /// What exists.
        known: Vec<&'static str>,
    },
    /// Weights of tokens that are missing or no weights.
    #[error("the weights of the tokens do not suit: {reason}")]
    Weights {
        /// What is wrong with them.
        reason: String,
    },
    /// A mapping that cannot read what it is to read.
    #[error("mapping {mapping} cannot read {kind}: {reason}")]
    Source {
        /// Mapping id.
        mapping: &'static str,
        /// What it is to read.
        kind: SourceKind,
        /// Why it cannot.
        reason: String,
    },
    /// A mapping that no regression finds.
    #[error("mapping {mapping} is not fitted: train it from a fitted bridge, `celslm align train`")]
    NotFitted {
        /// Mapping id.
        mapping: &'static str,
    },
    /// `identity` between different models.
    #[error(
        "alignment identity needs one model at both ends, found {source_model} at the cloud and \
         {target_model} at the edge; use depth, or let the cloud host the edge's model"
    )]
    DifferentModels {
        /// Fingerprint of the model that computed the KV.
        source_model: ModelFingerprint,
        /// Fingerprint of the model that is to use it.
        target_model: ModelFingerprint,
    },
    /// Numbers of layers that the alignment cannot relate.
    #[error("alignment {alignment} cannot map {num_source_layers} to {num_target_layers} layers")]
    LayerCounts {
        /// Alignment id.
        alignment: &'static str,
        /// Layers of the source.
        num_source_layers: usize,
        /// Layers of the target.
        num_target_layers: usize,
    },
    /// A measured alignment without the measurement that it needs.
    #[error("alignment {alignment} needs the similarity of the models' layers: {reason}")]
    Similarity {
        /// Alignment id.
        alignment: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A layer map that does not cover the target or names layers that do not exist.
    #[error("the layer map is malformed: {reason}")]
    LayerMap {
        /// What is wrong with it.
        reason: String,
    },
    /// Rows of another width, or another number of rows, than declared.
    #[error("expected rows of {expected} numbers, found {found} numbers for {rows} rows")]
    Rows {
        /// Numbers per row.
        expected: usize,
        /// Number of rows that both sides must have.
        rows: usize,
        /// Numbers found.
        found: usize,
    },
    /// A NaN or an infinity in calibration data or in a block to map.
    #[error("{what} hold a NaN or an infinity")]
    NotFinite {
        /// Which numbers.
        what: String,
    },
    /// Too little calibration data.
    #[error("{what}: {found} found, at least {needed} are needed; calibrate on more text")]
    TooLittleData {
        /// What there is too little of.
        what: &'static str,
        /// How much there is.
        found: u64,
        /// How much is needed.
        needed: u64,
    },
    /// The normal equations have no stable solution.
    #[error("the ridge equations are singular at lambda {lambda}; use a larger one or more text")]
    Singular {
        /// Relative regularisation.
        lambda: f64,
    },
    /// A parameter outside its range.
    #[error("{name} = {value} is not possible, use {allowed}")]
    Parameter {
        /// Parameter.
        name: &'static str,
        /// Its value.
        value: f64,
        /// What is allowed.
        allowed: &'static str,
    },
    /// A block that does not suit.
    #[error("the {end} block does not suit: expected {expected}, found {found}")]
    Block {
        /// `source` or `target`.
        end: &'static str,
        /// What is needed.
        expected: String,
        /// What was given.
        found: String,
    },
    /// Two models whose tokens differ, and a bridge between models whose tokens do not.
    #[error(
        "the two models cut this context into other tokens ({source_tokens} at the cloud, \
         {target_tokens} at the edge), and the bridge maps between the same ones; fit it again, \
         `celslm align fit`"
    )]
    OtherTokens {
        /// Tokens of the context in the cloud's model.
        source_tokens: usize,
        /// Tokens of the context in the edge's model.
        target_tokens: usize,
    },
    /// A block could not be built.
    #[error(transparent)]
    Kv(#[from] KvError),
}

/// Which source layers feed which target layer.
pub trait Alignment: Debug + Send + Sync {
    /// Name in configs, samples and bridges.
    fn id(&self) -> &'static str;

    /// Checks that the alignment can relate these two models at all.
    ///
    /// # Errors
    /// [`AlignError::DifferentModels`].
    fn check_models(
        &self,
        _source: &ModelFingerprint,
        _target: &ModelFingerprint,
    ) -> Result<(), AlignError> {
        Ok(())
    }

    /// For every target layer its source layers, at least one each. The order of a layer's
    /// sources is the order in which their channels are concatenated. Measured alignments need
    /// the similarity of the layers, others ignore it.
    ///
    /// # Errors
    /// [`AlignError::LayerCounts`], [`AlignError::Parameter`], or [`AlignError::Similarity`] where
    /// one is needed and there is none or one of other models.
    fn layer_map(
        &self,
        num_source_layers: usize,
        num_target_layers: usize,
        similarity: Option<&Similarity>,
    ) -> Result<Vec<Vec<usize>>, AlignError>;
}

/// Checks a number of source layers for each target layer.
fn check_sources(sources: usize) -> Result<(), AlignError> {
    if sources > 0 {
        return Ok(());
    }
    Err(AlignError::Parameter {
        name: "sources",
        value: 0.0,
        allowed: "at least 1",
    })
}

/// Checks a layer map against two numbers of layers.
fn check_layer_map(
    map: &[Vec<usize>],
    num_source_layers: usize,
    num_target_layers: usize,
) -> Result<(), AlignError> {
    let malformed = |reason| Err(AlignError::LayerMap { reason });
    if map.len() != num_target_layers {
        return malformed(format!(
            "{} entries for {num_target_layers} target layers",
            map.len()
        ));
    }
    for (layer, sources) in map.iter().enumerate() {
        if sources.is_empty() {
            return malformed(format!("target layer {layer} has no source"));
        }
        if sources.len() > num_source_layers {
            return malformed(format!("target layer {layer} has a source twice"));
        }
        if let Some(source) = sources.iter().find(|source| **source >= num_source_layers) {
            return malformed(format!(
                "target layer {layer} names source layer {source} of {num_source_layers}"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod conformance {
    use super::*;

    #[test]
    fn entries_are_complete_and_configs_round_trip() {
        let mut names = names();
        for entry in registry() {
            assert!(!entry.summary.is_empty() && !entry.source.is_empty());
            let config = (entry.example)();
            assert_eq!(config.to_string(), entry.name);
            assert_eq!(config.method().id(), entry.name);
            let by_name: AlignmentConfig = entry.name.parse().unwrap();
            assert_eq!(by_name.to_string(), entry.name);
            let json = serde_json::to_string(&config).unwrap();
            assert_eq!(
                serde_json::from_str::<AlignmentConfig>(&json).unwrap(),
                config
            );
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), registry().len());
    }

    #[test]
    fn every_target_layer_is_covered() {
        // The nearer in relative depth, the more alike.
        let similarity = |source: usize, target: usize| {
            let depth = |layer: usize, of: usize| layer as f64 / of as f64;
            let row = |i| {
                let score = |j| -(depth(i, target) - depth(j, source)).abs();
                (0..source).map(score).collect::<Vec<f64>>()
            };
            let scores = Scores {
                k: (0..target).map(row).collect(),
                v: (0..target).map(row).collect(),
            };
            Similarity {
                cka: scores.clone(),
                cosine: scores.clone(),
                r2: scores,
                fit_tokens: 1,
                held_out_tokens: 1,
            }
        };
        for entry in registry() {
            let config = (entry.example)();
            let method = config.method();
            for target in 1..40 {
                for source in 1..40 {
                    match method.layer_map(source, target, Some(&similarity(source, target))) {
                        Ok(map) => check_layer_map(&map, source, target).unwrap(),
                        Err(error) => {
                            assert_ne!(source, target, "{}: {error}", entry.name);
                            assert!(matches!(error, AlignError::LayerCounts { .. }));
                        }
                    }
                }
                let own = similarity(target, target);
                let own = method.layer_map(target, target, Some(&own)).unwrap();
                for (layer, sources) in own.iter().enumerate() {
                    let name = entry.name;
                    assert!(sources.contains(&layer), "{name} between equal depths");
                    assert!(sources.len() == 1 || sources.len() == target, "{name}");
                }
            }
            assert!(method.layer_map(0, 3, Some(&similarity(0, 3))).is_err());
            assert!(method.layer_map(3, 0, Some(&similarity(3, 0))).is_err());
            let other = method.layer_map(3, 3, Some(&similarity(3, 2)));
            let none = method.layer_map(3, 3, None);
            for unmeasured in [other, none] {
                let refused = matches!(unmeasured, Err(AlignError::Similarity { .. }));
                assert_eq!(refused, config.needs_similarity(), "{}", entry.name);
            }
        }
    }

    #[test]
    fn equal_models_suit_every_alignment() {
        let model = ModelFingerprint::from_bytes([1; 32]);
        for entry in registry() {
            assert!(
                (entry.example)()
                    .method()
                    .check_models(&model, &model)
                    .is_ok()
            );
        }
    }

    #[test]
    fn malformed_maps_are_refused() {
        assert!(check_layer_map(&[vec![0], vec![1, 0]], 2, 2).is_ok());
        assert!(check_layer_map(&[vec![0]], 2, 2).is_err());
        assert!(check_layer_map(&[vec![0], vec![]], 2, 2).is_err());
        assert!(check_layer_map(&[vec![0], vec![2]], 2, 2).is_err());
        assert!(check_layer_map(&[vec![0], vec![0, 1, 1]], 2, 2).is_err());
    }
}
