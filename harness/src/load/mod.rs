//! Loads: many requests under way at once, made at the times that a plan drew.
//!
//! - [`arrivals`]: which request is made when, as a pure function of time.
//! - [`overload`]: when a level is beyond saturation and ends early.
//! - [`search`]: the search for the point of saturation.
//! - [`dispatch`]: the thread that makes the requests.

pub mod arrivals;
pub mod dispatch;
pub mod overload;
pub mod search;

use celslm_datasets::{Workload, WorkloadConfig};
use search::SearchRule;

/// Label of the load that is none: one request after the other.
pub const SEQUENTIAL: &str = "sequential";

/// Whether a failure of this kind is what overload looks like: not made, refused, or too late.
#[must_use]
pub fn is_overload(kind: &str) -> bool {
    dispatch::kind::NEVER_SENT.contains(&kind) || ["overloaded", "deadline"].contains(&kind)
}

/// How the requests of a cell arrive.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// The setting.
    pub config: WorkloadConfig,
    /// Its short name in results.
    pub label: String,
    /// BLAKE3 (hex) of the file that it was read from, if there is one.
    pub source_hash: Option<String>,
    /// Clients, where arrivals wait for answers.
    pub users: usize,
    /// Requests per second, where they do not.
    pub offered_rps: Option<f64>,
    /// How it searches for the point of saturation, if it does.
    pub search: Option<SearchRule>,
}

impl Load {
    /// The load that `config` became when it was read.
    #[must_use]
    pub fn new(config: &WorkloadConfig, workload: &dyn Workload) -> Self {
        Self {
            config: config.clone(),
            label: workload.label(),
            source_hash: workload.source_hash().map(str::to_owned),
            users: workload.concurrency(),
            offered_rps: workload.offered_rps(),
            search: match config {
                WorkloadConfig::Saturation(saturation) => Some(SearchRule {
                    start_rps: saturation.start_rps,
                    resolution: saturation.resolution,
                    max_levels: saturation.max_levels as u32,
                }),
                _ => None,
            },
        }
    }

    /// Whether it is one request after the other.
    #[must_use]
    pub fn is_sequential(&self) -> bool {
        self.label == SEQUENTIAL
    }

    /// How many rounds of a cell one turn of it may fill: one, or the levels of a search.
    #[must_use]
    pub fn levels(&self) -> u32 {
        self.search.map_or(1, |rule| rule.max_levels)
    }
}
