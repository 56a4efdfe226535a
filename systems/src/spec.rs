//! What is run: a system with its parameters, and the cache state it starts from.

use crate::SystemError;
use crate::schedule::ScheduleKind;
use celslm_kv::{AlignmentConfig, CodecConfig};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Tokens per chunk on the wire, unless a plan says otherwise.
pub const DEFAULT_CHUNK_TOKENS: usize = 256;

/// One system under test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemSpec {
    /// Name in the system registry.
    pub system: String,
    /// How KV travels, for the systems that move KV.
    pub kv: Option<KvPath>,
}

/// The way of a context's KV from the cloud into the edge's cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvPath {
    /// Which cloud layers feed which edge layer, and through what map.
    pub alignment: AlignmentConfig,
    /// How a layer is turned into bytes.
    pub codec: CodecConfig,
    /// How loading and computing overlap.
    pub schedule: ScheduleKind,
    /// Tokens per chunk.
    pub chunk_tokens: usize,
    /// BLAKE3 of the bridge file in hex, where the alignment maps through one.
    #[serde(default)]
    pub bridge: Option<String>,
}

impl KvPath {
    /// The form of KV that this path asks the cloud for: the cloud model's own where the edge maps.
    ///
    /// # Errors
    /// Kind `config` when the bridge's hash cannot be read.
    pub(crate) fn wire_variant(&self) -> Result<celslm_wire::Variant, SystemError> {
        if self.alignment.maps_at_edge() {
            return Ok(celslm_wire::Variant::native());
        }
        Ok(celslm_wire::Variant {
            alignment: self.alignment.id().to_owned(),
            bridge: self.bridge_hash()?,
        })
    }

    /// The hash of the bridge, where the path names one.
    ///
    /// # Errors
    /// Kind `config` when it cannot be read.
    pub(crate) fn bridge_hash(&self) -> Result<Option<[u8; 32]>, SystemError> {
        let hash = self.bridge.as_deref().map(celslm_kv::ident::from_hex);
        hash.transpose()
            .map_err(|error| SystemError::new("config", error))
    }
}

/// Where a context's KV is when a request arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Contract {
    /// Nowhere: the cloud knows the context's text alone.
    Cold,
    /// In the cloud's store, in the form that the system needs.
    Primed,
    /// In the edge's cache too. A system that keeps nothing at the edge is as primed.
    Warm,
}

impl fmt::Display for Contract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cold => "cold",
            Self::Primed => "primed",
            Self::Warm => "warm",
        })
    }
}
