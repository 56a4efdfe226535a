//! What a cell's load looked like from outside its requests.
//!
//! A cell that runs under load writes `cells/<cell-id>/load.json` beside its
//! samples: one [`LoadRound`] for each pass over its requests, or for each level
//! of a search. Samples name their round; everything about single requests is
//! derived from them, and a round states only what no sample can: bytes of the
//! link, memory of the nodes, and how well the generator kept to its plan.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::ReportError;
use crate::sample::SCHEMA_VERSION;

/// Name of the file in a cell's folder.
pub const LOAD_FILE: &str = "load.json";

/// What a request must meet to count as good.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slo {
    /// Longest time to the first token, counted from the scheduled arrival.
    pub ttft_ms: f64,
    /// Longest time per output token.
    pub tpot_ms: f64,
}

/// The rounds of one cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadFacts {
    /// Version of this shape, [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The cell.
    pub cell_id: String,
    /// The rounds, by index.
    pub rounds: Vec<LoadRound>,
}

/// One pass over a cell's requests, or one level of a search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadRound {
    /// Index among the cell's rounds, which its samples state.
    pub round: u32,
    /// Requests per second that were offered; `None` where the next request
    /// waits for an answer.
    pub offered_rps: Option<f64>,
    /// From the first planned arrival to the last answer or failure.
    pub duration_s: f64,
    /// Requests handed to an edge, warm-up and cool-down included.
    pub dispatched: u64,
    /// Of those, answered.
    pub completed: u64,
    /// Of those, failed or refused.
    pub failed: u64,
    /// Planned requests that were never handed to an edge, as after a stop.
    pub dropped_arrivals: u64,
    /// How late requests were handed over.
    pub send_delay_ms: SendDelay,
    /// Most requests under way at once.
    pub max_in_flight: u64,
    /// Why the round was stopped early, in words.
    pub stopped: Option<String>,
    /// IP bytes edge to cloud, counted at the link; `None` where nothing counts.
    pub uplink_bytes: Option<u64>,
    /// IP bytes cloud to edge.
    pub downlink_bytes: Option<u64>,
    /// Most KV bytes at the edge at once, shared contexts counted once.
    pub edge_peak_kv_bytes: Option<u64>,
    /// Most KV bytes in the cloud at once, shared contexts counted once.
    pub cloud_peak_kv_bytes: Option<u64>,
    /// Bytes of the edge's weights.
    #[serde(default)]
    pub edge_weights_bytes: Option<u64>,
    /// Bytes of the cloud's weights.
    #[serde(default)]
    pub cloud_weights_bytes: Option<u64>,
    /// Largest resident memory of the edge process.
    pub edge_rss_bytes: Option<u64>,
    /// Largest resident memory of the cloud process.
    pub cloud_rss_bytes: Option<u64>,
    /// Memory over the round, in the order of time; empty where it was not
    /// followed.
    #[serde(default)]
    pub memory: Vec<MemoryPoint>,
    /// Whether the generator kept to its plan.
    pub valid: bool,
    /// Why it did not.
    pub invalid_reason: Option<String>,
}

/// Time from the scheduled arrival of a request to its hand-over, ms.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SendDelay {
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Largest.
    pub max: f64,
}

/// Resident memory of the nodes at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryPoint {
    /// Seconds since the round's start.
    pub at_s: f64,
    /// Of the edge process.
    pub edge_rss_bytes: Option<u64>,
    /// Of the cloud process.
    pub cloud_rss_bytes: Option<u64>,
}

impl LoadFacts {
    /// Facts of a cell without a round yet.
    #[must_use]
    pub fn new(cell_id: impl Into<String>) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            cell_id: cell_id.into(),
            rounds: Vec::new(),
        }
    }

    /// Checks what the views rely on: rounds in order, finite figures, counts
    /// that agree, a reason for what is not valid.
    ///
    /// # Errors
    /// The first fault found, in words.
    pub fn validate(&self) -> Result<(), String> {
        if self.cell_id.is_empty() {
            return Err("`cell_id` is empty".to_owned());
        }
        let mut last = None;
        for round in &self.rounds {
            round
                .validate()
                .map_err(|reason| format!("round {}: {reason}", round.round))?;
            if last.is_some_and(|last| last >= round.round) {
                return Err(format!("round {} is out of order", round.round));
            }
            last = Some(round.round);
        }
        Ok(())
    }
}

impl LoadRound {
    fn validate(&self) -> Result<(), String> {
        if self
            .offered_rps
            .is_some_and(|rate| !(rate.is_finite() && rate > 0.0))
        {
            return Err("`offered_rps` is not a rate above 0".to_owned());
        }
        let delays = self.send_delay_ms;
        for (field, value) in [
            ("duration_s", self.duration_s),
            ("send_delay_ms.p50", delays.p50),
            ("send_delay_ms.p99", delays.p99),
            ("send_delay_ms.max", delays.max),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(format!("`{field}` is negative or not finite"));
            }
        }
        if self.completed.saturating_add(self.failed) > self.dispatched {
            return Err(format!(
                "{} answered and {} failed of {} dispatched",
                self.completed, self.failed, self.dispatched
            ));
        }
        if self.valid == self.invalid_reason.is_some() {
            return Err("`valid` and `invalid_reason` contradict each other".to_owned());
        }
        if !self.memory.is_sorted_by(|a, b| a.at_s <= b.at_s) {
            return Err("`memory` goes back in time".to_owned());
        }
        Ok(())
    }
}

/// Reads a cell's `load.json`; `None` where there is none, as for a cell that
/// made its requests one after the other.
///
/// # Errors
/// A file that cannot be read, of another version or shape, of another cell, or
/// whose figures contradict each other.
pub fn read_load_facts(path: &Path, cell_id: &str) -> Result<Option<LoadFacts>, ReportError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(ReportError::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    #[derive(Deserialize)]
    struct Version {
        schema_version: u32,
    }
    let json = |source| ReportError::Json {
        path: path.to_owned(),
        source,
    };
    // The version comes first: another one is the likely reason for another shape.
    let Version { schema_version } = serde_json::from_slice(&bytes).map_err(json)?;
    if schema_version != SCHEMA_VERSION {
        return Err(ReportError::Schema {
            path: path.to_owned(),
            found: schema_version,
            expected: SCHEMA_VERSION,
        });
    }
    let facts: LoadFacts = serde_json::from_slice(&bytes).map_err(json)?;
    let bad = |reason| ReportError::BadFacts {
        path: path.to_owned(),
        reason,
    };
    facts.validate().map_err(bad)?;
    if facts.cell_id != cell_id {
        return Err(bad(format!(
            "it belongs to another cell: `cell_id` is `{}`",
            facts.cell_id
        )));
    }
    Ok(Some(facts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    fn read(text: &str) -> Result<Option<LoadFacts>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOAD_FILE);
        std::fs::write(&path, text).unwrap();
        read_load_facts(&path, "cell").map_err(|e| e.to_string())
    }

    #[test]
    fn facts_round_trip_and_may_be_absent() {
        let mut facts = LoadFacts::new("cell");
        facts.rounds = vec![fixture::round(0, Some(2.0)), fixture::round(1, None)];
        let text = serde_json::to_string(&facts).unwrap();
        assert_eq!(read(&text).unwrap(), Some(facts));
        assert_eq!(
            read_load_facts(Path::new("/nowhere/load.json"), "cell").unwrap(),
            None
        );
    }

    #[test]
    fn faults_are_named() {
        type Change = fn(&mut LoadFacts);
        let cases: [(Change, &str); 8] = [
            (|f| f.schema_version = 1, "schema version 1"),
            (|f| f.cell_id = "other".into(), "another cell"),
            (|f| f.rounds[1].round = 0, "out of order"),
            (
                |f| f.rounds[0].offered_rps = Some(-1.0),
                "round 0: `offered_rps`",
            ),
            (|f| f.rounds[0].duration_s = -1.0, "`duration_s`"),
            (|f| f.rounds[0].failed = 1000, "1000 failed of"),
            (|f| f.rounds[0].valid = false, "contradict"),
            (|f| f.rounds[0].memory.reverse(), "back in time"),
        ];
        for (change, expected) in cases {
            let mut facts = LoadFacts::new("cell");
            facts.rounds = vec![fixture::round(0, Some(2.0)), fixture::round(1, Some(4.0))];
            change(&mut facts);
            let error = read(&serde_json::to_string(&facts).unwrap()).unwrap_err();
            assert!(error.contains(expected), "{error} lacks {expected}");
        }
        assert!(read("{").unwrap_err().contains("line 1"));
        assert!(
            read(r#"{"schema_version": 2, "cell_id": "cell", "rounds": [], "x": 1}"#)
                .unwrap_err()
                .contains("unknown field `x`")
        );
    }
}
