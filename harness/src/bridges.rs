//! Where fitted bridges are, by the alignment that maps through them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use celslm_kv::{AlignmentConfig, Bridge};

use crate::config::{CloudArm, Config, EvaluationFile, ModelsConfig};
use crate::evaluation::BridgeInput;
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

/// The file that an alignment states or implies, and its bytes.
fn read(
    alignment: &AlignmentConfig,
    models: &ModelsConfig,
    configs: &Path,
) -> Result<(PathBuf, Vec<u8>), Verdict> {
    let path = alignment.bridge().map_or_else(
        || default_path(configs, &models.cloud, &models.edge, alignment),
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
            models.cloud,
            models.edge
        ))
    })?;
    Ok((path, bytes))
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
            let (path, bytes) = read(alignment, &config.models, configs)?;
            let blake3 = blake3::hash(&bytes).to_hex().to_string();
            bridges.push((alignment.clone(), BridgeFile { path, blake3 }));
        }
    }
    Ok(bridges)
}

/// The bridges of an evaluation's mapped arms, one for each in their order.
///
/// # Errors
/// [`Verdict::Config`] for a bridge that is not there, with the command that fits it, or that is
/// none.
pub fn of_evaluation(file: &EvaluationFile, configs: &Path) -> Result<Vec<BridgeInput>, Verdict> {
    let mut bridges = Vec::new();
    for arm in &file.evaluation.cloud {
        let CloudArm::Mapped(arm) = arm else { continue };
        let (path, bytes) = read(&arm.alignment, &file.models, configs)?;
        let bridge = Bridge::from_bytes(&bytes)
            .map_err(|error| Verdict::Config(format!("the bridge {}: {error}", path.display())))?;
        bridges.push(BridgeInput {
            blake3: blake3::hash(&bytes).to_hex().to_string(),
            bytes: bytes.len() as u64,
            bridge: Arc::new(bridge),
            path,
        });
    }
    Ok(bridges)
}
