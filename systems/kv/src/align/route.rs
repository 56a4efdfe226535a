//! What alignments that map through a bridge have in common in a configuration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::MappingConfig;

/// Parameters of an alignment that leaves nothing to choose.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Route {
    /// The bridge file; the default bridge of the model pair if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge: Option<PathBuf>,
    /// What relates the layers; ridge if absent.
    #[serde(skip_serializing_if = "is_ridge")]
    pub mapping: MappingConfig,
}

/// Parameters of an alignment that ranks source layers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TopRoute {
    /// Source layers of each target layer; all where there are fewer.
    #[serde(skip_serializing_if = "is_one")]
    pub sources: usize,
    /// The bridge file; the default bridge of the model pair if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge: Option<PathBuf>,
    /// What relates the layers; ridge if absent.
    #[serde(skip_serializing_if = "is_ridge")]
    pub mapping: MappingConfig,
}

impl Default for TopRoute {
    fn default() -> Self {
        Self {
            sources: 1,
            bridge: None,
            mapping: MappingConfig::default(),
        }
    }
}

// Defaults are left out, so that the content of an experiment that does not name them, and with
// it the hash of its cells, stays what it was before they existed.
fn is_one(sources: &usize) -> bool {
    *sources == 1
}

fn is_ridge(mapping: &MappingConfig) -> bool {
    *mapping == MappingConfig::default()
}
