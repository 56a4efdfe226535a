//! What alignments that map through a bridge have in common in a configuration.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::MappingConfig;

/// Which end of the link maps, and with that whose KV crosses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MapAt {
    /// The cloud maps and keeps what it mapped: KV of the edge model's shape crosses the link.
    #[default]
    Cloud,
    /// The edge maps what it has received: the cloud model's own KV crosses the link. It loses where
    /// that is the larger of the two, and nothing is computed before the last layer is there.
    Edge,
}

impl MapAt {
    /// Name in configurations and samples.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Edge => "edge",
        }
    }
}

impl fmt::Display for MapAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

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
    /// Which end maps; the cloud if absent.
    #[serde(skip_serializing_if = "is_cloud")]
    pub at: MapAt,
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
    /// Which end maps; the cloud if absent.
    #[serde(skip_serializing_if = "is_cloud")]
    pub at: MapAt,
}

impl Default for TopRoute {
    fn default() -> Self {
        Self {
            sources: 1,
            bridge: None,
            mapping: MappingConfig::default(),
            at: MapAt::default(),
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

fn is_cloud(at: &MapAt) -> bool {
    *at == MapAt::Cloud
}
