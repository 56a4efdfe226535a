//! `saturation`: a search over rates.

use serde::{Deserialize, Serialize};

use super::{ArrivalProcess, OpenLoop, Popularity, Request, Workload, check_positive};
use crate::document::Document;
use crate::error::DatasetError;

/// Looks for the highest rate at which a system still meets the run's SLO. Every
/// level is an open loop of the same pattern at another rate; who runs it
/// doubles the rate while the SLO is met, then halves the bracket until it is
/// narrower than `resolution`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Saturation {
    /// Rate of the first level, per second.
    pub start_rps: f64,
    /// The search ends when the bracket is narrower than this share of its lower
    /// end.
    pub resolution: f64,
    /// Requests of each level. A p99 rests on 459 or more.
    pub requests_per_level: usize,
    /// Most levels, whatever the bracket.
    pub max_levels: usize,
    /// How the gaps are distributed.
    pub process: ArrivalProcess,
    /// How requests spread over the documents.
    pub popularity: Popularity,
}

impl Default for Saturation {
    fn default() -> Self {
        Self {
            start_rps: 0.5,
            resolution: 0.1,
            requests_per_level: 60,
            max_levels: 10,
            process: ArrivalProcess::default(),
            popularity: Popularity::default(),
        }
    }
}

impl Saturation {
    /// The requests of the level at `rate_rps`: the same questions with the same
    /// pattern of arrivals at every rate.
    ///
    /// # Errors
    /// Settings that ask for nothing, or for more than a run can hold.
    pub fn requests_at(
        &self,
        documents: &[Document],
        seed: u64,
        rate_rps: f64,
    ) -> Result<Vec<Request>, DatasetError> {
        self.check()?;
        let level = OpenLoop {
            rate_rps,
            process: self.process,
            requests: Some(self.requests_per_level),
            duration_s: None,
            popularity: self.popularity,
        };
        level.requests(documents, seed)
    }

    fn check(&self) -> Result<(), DatasetError> {
        check_positive("start_rps", self.start_rps)?;
        check_positive("resolution", self.resolution)?;
        for (setting, value) in [
            ("requests_per_level", self.requests_per_level),
            ("max_levels", self.max_levels),
        ] {
            if value == 0 {
                return Err(DatasetError::Zero { setting });
            }
        }
        if self.max_levels > 64 {
            return Err(DatasetError::Setting {
                setting: "max_levels",
                value: self.max_levels.to_string(),
                reason: "no search needs more than 64",
            });
        }
        Ok(())
    }
}

impl Workload for Saturation {
    fn name(&self) -> &'static str {
        "saturation"
    }

    /// The requests of the first level.
    fn requests(&self, documents: &[Document], seed: u64) -> Result<Vec<Request>, DatasetError> {
        self.requests_at(documents, seed, self.start_rps)
    }

    fn offered_rps(&self) -> Option<f64> {
        Some(self.start_rps)
    }

    fn label(&self) -> String {
        format!(
            "saturation-{}{}",
            self.process.label(),
            self.popularity.suffix()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::tests::{documents, seconds};

    #[test]
    fn levels_differ_in_time_only() {
        let method = Saturation::default();
        let documents = documents(4);
        let first = method.requests(&documents, 1).unwrap();
        assert_eq!(first.len(), 60);
        let next = method.requests_at(&documents, 1, 1.0).unwrap();
        let asked = |r: &[Request]| r.iter().map(|r| r.seed).collect::<Vec<_>>();
        assert_eq!(asked(&first), asked(&next));
        assert!((seconds(&first)[59] - 2.0 * seconds(&next)[59]).abs() < 1e-6);
    }

    #[test]
    fn a_search_needs_levels() {
        for (change, expected) in [
            ((|m| m.max_levels = 0) as fn(&mut Saturation), "max_levels"),
            (|m| m.max_levels = 65, "64"),
            (|m| m.requests_per_level = 0, "requests_per_level"),
            (|m| m.start_rps = -1.0, "start_rps"),
            (|m| m.resolution = 0.0, "resolution"),
        ] {
            let mut method = Saturation::default();
            change(&mut method);
            let error = method.requests(&documents(1), 1).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} lacks {expected}");
        }
    }
}
