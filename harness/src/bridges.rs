//! Where fitted bridges are, by the alignment that maps through them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use celslm_kv::{AlignError, AlignmentConfig, Bridge, MappingConfig};
use celslm_systems::mapping;

use crate::config::{CloudArm, Config, DistilledArm, EvaluationFile, ModelsConfig};
use crate::evaluation::BridgeInput;
use crate::exit::Verdict;
use crate::plan::BridgeFile;

/// The file of a pair's default bridge:
/// `<configs>/bridges/<cloud>.to.<edge>.<alignment>-<mapping>.safetensors`, with the mapping's
/// parameters behind its name as far as they are not at their defaults, `joint-rank512`.
#[must_use]
pub fn default_path(
    configs: &Path,
    cloud: &str,
    edge: &str,
    alignment: &AlignmentConfig,
) -> PathBuf {
    let parameters = alignment
        .mapping_config()
        .map_or_else(Vec::new, MappingConfig::parameters);
    let parameters: String = parameters
        .into_iter()
        .map(|(name, value)| format!("-{name}{value}"))
        .collect();
    let name = format!(
        "{cloud}.to.{edge}.{}-{}{parameters}.safetensors",
        alignment.id(),
        alignment.mapping()
    );
    configs.join("bridges").join(name)
}

/// A mapping as the command line has it: its name, or `joint = { rank = 512 }`.
#[must_use]
pub fn stated(mapping: &MappingConfig) -> String {
    let parameters: Vec<String> = mapping
        .parameters()
        .into_iter()
        .map(|(name, value)| match value.parse::<f64>() {
            Ok(_) => format!("{name} = {value}"),
            Err(_) => format!("{name} = \"{value}\""),
        })
        .collect();
    match parameters.as_slice() {
        [] => mapping.id().to_owned(),
        some => format!("{} = {{ {} }}", mapping.id(), some.join(", ")),
    }
}

/// Reads what [`stated`] writes.
///
/// # Errors
/// What is wrong with it.
pub fn parse_mapping(text: &str) -> Result<MappingConfig, String> {
    #[derive(serde::Deserialize)]
    struct Entry {
        mapping: MappingConfig,
    }

    if !text.contains(['=', '{']) {
        return text.parse().map_err(|error: AlignError| error.to_string());
    }
    let table = match text.trim() {
        table if table.starts_with('{') => table.to_owned(),
        inner => format!("{{ {inner} }}"),
    };
    toml::from_str::<Entry>(&format!("mapping = {table}"))
        .map(|entry| entry.mapping)
        .map_err(|error| error.message().to_owned())
}

/// The file that an alignment states or implies, its bytes and what it holds.
fn read(
    alignment: &AlignmentConfig,
    models: &ModelsConfig,
    configs: &Path,
) -> Result<(PathBuf, Vec<u8>, Bridge), Verdict> {
    let path = alignment.bridge().map_or_else(
        || default_path(configs, &models.cloud, &models.edge, alignment),
        Path::to_owned,
    );
    let mapping = alignment.mapping_config().cloned().unwrap_or_default();
    let ModelsConfig { cloud, edge, .. } = models;
    let fit = match mapping {
        _ if mapping.is_trained() => {
            format!(
                "`celslm align train --from BRIDGE --lessons FILE --mapping '{}' --cloud {cloud} --edge {edge}`",
                stated(&mapping),
            )
        }
        _ => format!(
            "`celslm align fit --alignment {} --mapping '{}' --cloud {cloud} --edge {edge} --text DIR`",
            alignment.id(),
            stated(&mapping),
        ),
    };
    let bytes = std::fs::read(&path).map_err(|error| {
        Verdict::Config(format!(
            "alignment {} needs the bridge {}: {error}; make it with {fit}",
            alignment.id(),
            path.display(),
        ))
    })?;
    let bridge = Bridge::from_bytes(&bytes)
        .map_err(|error| Verdict::Config(format!("the bridge {}: {error}", path.display())))?;
    if (bridge.alignment(), bridge.mapping()) != (alignment.id(), &mapping) {
        return Err(Verdict::Config(format!(
            "the bridge {} was fitted for alignment {} and mapping {}, the configuration says {} \
             and {}; change it, or make another with {fit}",
            path.display(),
            bridge.alignment(),
            stated(bridge.mapping()),
            alignment.id(),
            stated(&mapping),
        )));
    }
    Ok((path, bytes, bridge))
}

/// A bridge that holds first tokens and nothing else.
fn first_tokens(path: &Path) -> Result<(PathBuf, Vec<u8>, Bridge), Verdict> {
    let fail = |reason: &dyn std::fmt::Display| {
        Verdict::Config(format!(
            "the first tokens of {}: {reason}; `celslm align train --mapping prefix` makes a bridge of them",
            path.display()
        ))
    };
    let bytes = std::fs::read(path).map_err(|error| fail(&error))?;
    let bridge = Bridge::from_bytes(&bytes).map_err(|error| fail(&error))?;
    if bridge.prefix().is_none() || !bridge.parts().is_empty() {
        return Err(fail(&"this bridge maps KV"));
    }
    Ok((path.to_owned(), bytes, bridge))
}

/// The bridge file of every alignment in the configuration that maps through one.
///
/// # Errors
/// [`Verdict::Config`] for a bridge that does not exist, with the command that fits it, and for one
/// that an edge cannot map through by itself.
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
            let (path, bytes, bridge) = read(alignment, &config.models, configs)?;
            if alignment.maps_at_edge() {
                mapping::check_sources(&path, &bridge)
                    .map_err(|error| Verdict::Config(format!("alignment {alignment}: {error}")))?;
            }
            let blake3 = blake3::hash(&bytes).to_hex().to_string();
            bridges.push((alignment.clone(), BridgeFile { path, blake3 }));
        }
    }
    Ok(bridges)
}

/// The bridges of an evaluation's arms, one for each arm that has one, in their order.
///
/// # Errors
/// [`Verdict::Config`] for a bridge that is not there, with the command that fits it, or that is
/// none.
pub fn of_evaluation(file: &EvaluationFile, configs: &Path) -> Result<Vec<BridgeInput>, Verdict> {
    let mut bridges = Vec::new();
    for arm in &file.evaluation.cloud {
        let (path, bytes, bridge) = match arm {
            CloudArm::Mapped(arm) => read(&arm.alignment, &file.models, configs)?,
            CloudArm::Distilled(DistilledArm {
                first_tokens: Some(path),
                ..
            }) => first_tokens(path)?,
            _ => continue,
        };
        bridges.push(BridgeInput {
            blake3: blake3::hash(&bytes).to_hex().to_string(),
            bytes: bytes.len() as u64,
            bridge: Arc::new(bridge),
            path,
        });
    }
    Ok(bridges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_read_as_they_are_stated() {
        for (text, expected) in [
            ("ridge", "ridge"),
            ("joint", "joint"),
            ("joint = {}", "joint"),
            ("joint = { rank = 512 }", "joint = { rank = 512 }"),
            ("{ joint = { rank = 512 } }", "joint = { rank = 512 }"),
            (
                "joint = { stride = 1, sides = \"keys\" }",
                "joint = { sides = \"keys\", stride = 1 }",
            ),
        ] {
            let mapping = parse_mapping(text).unwrap();
            assert_eq!(stated(&mapping), expected);
            assert_eq!(parse_mapping(&stated(&mapping)), Ok(mapping));
        }
        for (text, part) in [
            ("rigde", "known are"),
            ("joint = { ranks = 1 }", "unknown field `ranks`"),
            ("joint = {", ""),
        ] {
            let error = parse_mapping(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn parameters_are_in_the_name_of_the_file() {
        let named = |mapping: &str| {
            let alignment: AlignmentConfig = serde_json::from_str("\"all\"").unwrap();
            let alignment = alignment.with_mapping(parse_mapping(mapping).unwrap());
            let path = default_path(Path::new("c"), "a", "b", &alignment);
            path.display().to_string()
        };
        assert_eq!(named("joint"), "c/bridges/a.to.b.all-joint.safetensors");
        assert_eq!(
            named("joint = { rank = 512 }"),
            "c/bridges/a.to.b.all-joint-rank512.safetensors"
        );
    }
}
