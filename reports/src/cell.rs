//! Cells and their samples, as read back from a results folder.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::ReportError;
use crate::frame::{self, CellSummary};
use crate::level::{Level, levels};
use crate::load::{LOAD_FILE, LoadFacts, Slo, read_load_facts};
use crate::sample::{Sample, read_samples};
use crate::views::{RoundDrift, drifts};

/// What tells one cell of a run from another: the identity columns of every
/// table.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellIdentity {
    /// Id of the cell, also its folder's name.
    pub cell_id: String,
    /// Named scenario.
    pub scenario: String,
    /// System under test.
    pub system: String,
    /// Link profile.
    pub link: String,
    /// Alignment.
    pub alignment: String,
    /// Mapping of the alignment.
    pub mapping: String,
    /// Codec chain.
    pub codec: String,
    /// Schedule of the hand-off.
    pub schedule: String,
    /// Data set.
    pub dataset: String,
    /// Cache contract.
    pub contract: String,
    /// What computed it: live, replayed or simulated.
    pub compute: String,
    /// Device profiles of the nodes.
    pub device: String,
    /// How requests arrived.
    pub load: String,
}

impl CellIdentity {
    /// The identity that a sample states.
    #[must_use]
    pub fn of(sample: &Sample) -> Self {
        Self {
            cell_id: sample.cell_id.clone(),
            scenario: sample.scenario.clone(),
            system: sample.system.clone(),
            link: sample.link.clone(),
            alignment: sample.alignment.clone(),
            mapping: sample.mapping.clone(),
            codec: sample.codec.clone(),
            schedule: sample.schedule.clone(),
            dataset: sample.dataset.clone(),
            contract: sample.contract.clone(),
            compute: sample.compute.clone(),
            device: sample.device.clone(),
            load: sample.load.clone(),
        }
    }

    /// The first field in which `other` differs: its name, the value here, and
    /// the value there.
    fn differs<'a>(&'a self, other: &'a Self) -> Option<(&'static str, &'a str, &'a str)> {
        [
            ("cell_id", &self.cell_id, &other.cell_id),
            ("scenario", &self.scenario, &other.scenario),
            ("system", &self.system, &other.system),
            ("link", &self.link, &other.link),
            ("alignment", &self.alignment, &other.alignment),
            ("mapping", &self.mapping, &other.mapping),
            ("codec", &self.codec, &other.codec),
            ("schedule", &self.schedule, &other.schedule),
            ("dataset", &self.dataset, &other.dataset),
            ("contract", &self.contract, &other.contract),
            ("compute", &self.compute, &other.compute),
            ("device", &self.device, &other.device),
            ("load", &self.load, &other.load),
        ]
        .into_iter()
        .find(|(_, here, there)| here != there)
        .map(|(field, here, there)| (field, here.as_str(), there.as_str()))
    }

    /// An identity of which only the folder is known.
    fn of_folder(cell_id: &str) -> Self {
        let unknown = || "unknown".to_owned();
        Self {
            cell_id: cell_id.to_owned(),
            scenario: unknown(),
            system: unknown(),
            link: unknown(),
            alignment: unknown(),
            mapping: unknown(),
            codec: unknown(),
            schedule: unknown(),
            dataset: unknown(),
            contract: unknown(),
            compute: unknown(),
            device: unknown(),
            load: unknown(),
        }
    }
}

/// Why a cell as a whole has no or not all samples: `cells/<cell-id>/failure.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellFailure {
    /// Version of this shape.
    pub schema_version: u32,
    /// The cell.
    pub cell_id: String,
    /// Kind of the failure.
    pub error_kind: String,
    /// Message of the failure.
    pub error: String,
}

/// The load of a cell that makes its requests one after the other.
const SEQUENTIAL: &str = "sequential";

/// One cell with everything that is known about it.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    pub(crate) identity: CellIdentity,
    pub(crate) samples: Vec<Sample>,
    pub(crate) summary: CellSummary,
    /// What the load was like; `None` for requests one after the other.
    pub(crate) facts: Option<LoadFacts>,
    /// Load levels by rising rate; none for requests one after the other.
    pub(crate) levels: Vec<Level>,
    /// What changed over its rounds.
    pub(crate) drifts: Vec<RoundDrift>,
    pub(crate) failure: Option<String>,
    pub(crate) torn_bytes: usize,
}

impl Cell {
    /// Reads one cell's folder and writes its `samples.parquet`. A folder or
    /// file that is not there is a cell that has not run.
    pub(crate) fn read(
        results: &Path,
        cell_id: &str,
        planned: Option<&CellIdentity>,
        degraded: bool,
        slo: Option<Slo>,
    ) -> Result<Self, ReportError> {
        let folder = results.join("cells").join(cell_id);
        let path = folder.join("samples.jsonl");
        let (mut samples, torn_bytes) = if path.exists() {
            let file = read_samples(&path)?;
            (file.samples, file.torn_bytes)
        } else {
            (Vec::new(), 0)
        };
        let identity = planned.cloned().unwrap_or_else(|| {
            samples
                .first()
                .map_or_else(|| CellIdentity::of_folder(cell_id), CellIdentity::of)
        });
        for (index, sample) in samples.iter().enumerate() {
            if let Some((field, planned, found)) = identity.differs(&CellIdentity::of(sample)) {
                return Err(ReportError::BadSample {
                    path,
                    line: index + 1,
                    reason: format!(
                        "it belongs to another cell: `{field}` is `{found}`, and `{planned}` in this one"
                    ),
                });
            }
        }
        if degraded {
            // The link was found to be off after these samples were written.
            samples.iter_mut().for_each(|sample| sample.degraded = true);
        }
        let failure = read_failure(&folder.join("failure.json"))?;
        let frame = frame::samples_frame(&samples)?;
        let mut summary = frame::summarise(&samples, &frame)?;
        let facts = read_load_facts(&folder.join(LOAD_FILE), cell_id)?;
        let loaded = facts.is_some() || samples.iter().any(|s| s.load != SEQUENTIAL);
        let levels = if loaded {
            levels(&samples, &frame, facts.as_ref(), slo)?
        } else {
            Vec::new()
        };
        summary.levels = levels.len();
        if levels.len() > 1 {
            summary = summary.without_times();
        }
        if let Some(facts) = &facts {
            share_traffic(&mut summary, &samples, facts);
        }
        if !samples.is_empty() {
            frame::write_parquet(frame, &folder.join("samples.parquet"), "samples")?;
        }
        let mut cell = Self {
            identity,
            samples,
            summary,
            facts,
            levels,
            drifts: Vec::new(),
            failure,
            torn_bytes,
        };
        cell.drifts = drifts(&cell)?;
        Ok(cell)
    }

    /// Answered requests that are no warm-ups.
    pub(crate) fn measured(&self) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(|s| s.measured())
    }

    /// Whether the latencies may be drawn and compared: something was answered,
    /// the link kept to its target, and a load, if there is one, was as planned.
    pub(crate) fn comparable(&self) -> bool {
        self.summary.ok > 0 && !self.summary.degraded && self.levels.iter().all(Level::usable)
    }

    /// Whether many requests were under way at once, so that the link's bytes
    /// belong to no single one.
    pub(crate) fn loaded(&self) -> bool {
        !self.levels.is_empty()
    }
}

/// States the traffic of a load per request: while many are under way, the link
/// counts bytes of all of them and a sample has none of its own.
fn share_traffic(summary: &mut CellSummary, samples: &[Sample], facts: &LoadFacts) {
    let dispatched: u64 = facts.rounds.iter().map(|r| r.dispatched).sum();
    let total = |bytes: fn(&crate::load::LoadRound) -> Option<u64>| {
        facts
            .rounds
            .iter()
            .map(bytes)
            .sum::<Option<u64>>()
            .filter(|_| dispatched > 0)
            .map(|bytes| bytes as f64)
    };
    let uplink = total(|r| r.uplink_bytes);
    let downlink = total(|r| r.downlink_bytes);
    summary.uplink_bytes = uplink.map(|bytes| bytes / dispatched as f64);
    summary.downlink_bytes = downlink.map(|bytes| bytes / dispatched as f64);
    summary.uplink_packets = None;
    summary.downlink_packets = None;
    let served: u64 = samples.iter().map(|s| s.kv_fp16_bytes).sum();
    summary.wire_ratio = downlink
        .filter(|&bytes| served > 0 && bytes > 0.0)
        .map(|bytes| served as f64 / bytes);
}

/// The failure in words. Another shape than [`CellFailure`] is shown as it is,
/// as a report about a failed run must not fail over it.
fn read_failure(path: &Path) -> Result<Option<String>, ReportError> {
    let text = match std::fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(ReportError::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    Ok(Some(match serde_json::from_str::<CellFailure>(&text) {
        Ok(failure) => format!("{}: {}", failure.error_kind, failure.error),
        Err(_) => text.split_whitespace().collect::<Vec<_>>().join(" "),
    }))
}
