//! One combination of the grid.

use celslm_datasets::DatasetConfig;
use celslm_reports::CellIdentity;
use celslm_systems::{Contract, KvPath, SystemSpec};
use serde::Serialize;

use crate::artefacts;
use crate::load::Load;

/// One system over one link, with one data set, under one cache contract and one load.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Readable and unique: names joined by `-`, then the first 8 digits of [`Cell::hash`]. The
    /// cell's folder under `cells/`.
    pub id: String,
    /// The scenario that it belongs to.
    pub scenario: String,
    /// The system with its KV path, which is `None` for a system that moves no KV.
    pub spec: SystemSpec,
    /// Name of the link profile.
    pub link: String,
    /// The data set setting.
    pub dataset: DatasetConfig,
    /// Index of the setting's draw in [`Inputs::draws`](super::Inputs::draws).
    pub draw: usize,
    /// What the caches hold when a request arrives; under a load, when the load begins.
    pub contract: Contract,
    /// What samples call the devices that compute it.
    pub device: String,
    /// `live` or `replayed`.
    pub compute: &'static str,
    /// How its requests arrive.
    pub load: Load,
    /// Seed of what belongs to the cell's surroundings, such as the link's impairments. It does
    /// not depend on the system: compared systems meet the same link.
    pub seed: u64,
    /// BLAKE3 (hex) of everything that decides the cell's figures.
    pub hash: String,
}

impl Cell {
    /// What samples and reports call the cell.
    #[must_use]
    pub fn identity(&self) -> CellIdentity {
        let none = || "none".to_owned();
        let kv = self.spec.kv.as_ref();
        CellIdentity {
            cell_id: self.id.clone(),
            scenario: self.scenario.clone(),
            system: self.spec.system.clone(),
            link: self.link.clone(),
            alignment: kv.map_or_else(none, |kv| kv.alignment.to_string()),
            mapping: kv.map_or_else(none, |kv| kv.alignment.mapping().to_owned()),
            codec: kv.map_or_else(none, |kv| kv.codec.to_string()),
            schedule: kv.map_or_else(none, |kv| kv.schedule.to_string()),
            dataset: self.dataset.name().to_owned(),
            contract: self.contract.to_string(),
            compute: self.compute.to_owned(),
            device: self.device.clone(),
            load: self.load.label.clone(),
        }
    }

    /// The short name of the cell within its group: the system and its KV path.
    #[must_use]
    pub fn label(&self) -> String {
        let mut parts = vec![self.spec.system.clone()];
        if let Some(KvPath {
            alignment,
            codec,
            schedule,
            chunk_tokens,
            ..
        }) = &self.spec.kv
        {
            let mapped = match alignment.mapping() {
                // What every alignment maps by unless something else is said.
                "none" | "ridge" => alignment.to_string(),
                mapping => format!("{alignment} {mapping}"),
            };
            parts.extend([
                mapped,
                artefacts::name(codec),
                schedule.to_string(),
                format!("chunk {chunk_tokens}"),
            ]);
        }
        parts.push(self.contract.to_string());
        parts.join(" · ")
    }
}

/// Most characters of an id before its hash; file systems take 255 bytes for a name.
const MAX_SLUG: usize = 120;

/// The id of a cell with these names and this hash.
pub(crate) fn id(names: &[&str], hash: &str) -> String {
    let slug: Vec<String> = names.iter().map(|name| slug(name)).collect();
    let mut slug = slug.join("-");
    slug.truncate(MAX_SLUG);
    format!("{slug}-{}", &hash[..8])
}

/// Lowercase ASCII that is safe in a file name; anything else becomes `_`.
fn slug(name: &str) -> String {
    name.chars()
        .map(|c| match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9' | '-' | '_' | '.') => c,
            _ => '_',
        })
        .collect()
}

/// BLAKE3 of the JSON form of `content`, in hex. Struct fields keep their order and maps are
/// sorted, so that the same content has the same bytes.
pub(crate) fn content_hash(content: &impl Serialize) -> Result<String, serde_json::Error> {
    let bytes = serde_json::to_vec(content)?;
    Ok(blake3::hash(&bytes).to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_file_names() {
        let hash = "0123456789abcdef";
        assert_eq!(
            id(&["main", "depth:a/b c", "Slow-20m"], hash),
            "main-depth_a_b_c-slow-20m-01234567"
        );
        assert_eq!(id(&[&"é".repeat(400)], hash).len(), MAX_SLUG + 9);
    }
}
