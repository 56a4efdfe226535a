//! Where fitted bridges are, by the alignment that maps through them.

use std::path::{Path, PathBuf};

use celslm_kv::AlignmentConfig;

use crate::config::Config;
use crate::exit::Verdict;
use crate::plan::BridgeFile;

/// The file of a pair's default bridge: `<configs>/bridges/<cloud>.to.<edge>.<alignment>-<mapping>.safetensors`.
#[must_use]
pub fn default_path(
    configs: &Path,
    cloud: &str,
    edge: &str,
    alignment: &AlignmentConfig,
) -> PathBuf {
    let name = format!(
        "{cloud}.to.{edge}.{}-{}.safetensors",
        alignment.id(),
        alignment.mapping()
    );
    configs.join("bridges").join(name)
}

/// The bridge file of every alignment in the configuration that maps through one.
///
/// # Errors
/// [`Verdict::Config`] for a bridge that does not exist, with the command that fits it.
pub fn resolve(
    config: &Config,
    configs: &Path,
) -> Result<Vec<(AlignmentConfig, BridgeFile)>, Verdict> {
    let mut bridges: Vec<(AlignmentConfig, BridgeFile)> = Vec::new();
    for (_, grid) in config.grids() {
        for alignment in &grid.alignments {
            if !alignment.needs_bridge() || bridges.iter().any(|(known, _)| known == alignment) {
                continue;
            }
            let path = alignment.bridge().map_or_else(
                || {
                    default_path(
                        configs,
                        &config.models.cloud,
                        &config.models.edge,
                        alignment,
                    )
                },
                Path::to_owned,
            );
            let bytes = std::fs::read(&path).map_err(|error| {
                Verdict::Config(format!(
                    "alignment {} needs the bridge {}: {error}; fit it with \
                     `celslm align fit --alignment {} --mapping {} --cloud {} --edge {} --text DIR`",
                    alignment.id(),
                    path.display(),
                    alignment.id(),
                    alignment.mapping(),
                    config.models.cloud,
                    config.models.edge
                ))
            })?;
            let blake3 = blake3::hash(&bytes).to_hex().to_string();
            bridges.push((alignment.clone(), BridgeFile { path, blake3 }));
        }
    }
    Ok(bridges)
}
