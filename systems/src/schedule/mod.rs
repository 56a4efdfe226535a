//! How loading a context's KV and computing the prompt overlap.

mod layerwise;
mod sequential;

use serde::{Deserialize, Serialize};
use std::fmt;

/// An overlap of loading and computing: how far a prompt may run while its context's KV arrives.
///
/// Layers arrive in order, and a prompt runs through them in order, so a number says it all. The
/// engine does the rest, and computes others meanwhile.
pub trait Schedule: Sync {
    /// Layers, from the first on, that the prompt may run through once `arrived` of
    /// `num_layers` are there: at most `arrived`, never fewer for more, and all of them for all.
    fn runnable_layers(&self, arrived: usize, num_layers: usize) -> usize;
}

/// A registered schedule, by name in configs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// See [`sequential`].
    Sequential,
    /// See [`layerwise`].
    Layerwise,
}

/// One entry of the schedule registry.
pub struct ScheduleEntry {
    /// Name in configs.
    pub name: &'static str,
    /// One line for `celslm ls`.
    pub summary: &'static str,
    /// Its kind.
    pub kind: ScheduleKind,
    schedule: &'static dyn Schedule,
}

/// The registered schedules, in report order.
pub fn registry() -> &'static [ScheduleEntry] {
    const REGISTRY: &[ScheduleEntry] = &[
        ScheduleEntry {
            name: "sequential",
            summary: "load every layer, then prefill the prompt",
            kind: ScheduleKind::Sequential,
            schedule: &sequential::Sequential,
        },
        ScheduleEntry {
            name: "layerwise",
            summary: "prefill the prompt through a layer as soon as its KV is in",
            kind: ScheduleKind::Layerwise,
            schedule: &layerwise::Layerwise,
        },
    ];
    REGISTRY
}

impl ScheduleKind {
    fn entry(self) -> &'static ScheduleEntry {
        // Every kind has its line in the registry; the conformance test holds that.
        registry()
            .iter()
            .find(|entry| entry.kind == self)
            .unwrap_or(&registry()[0])
    }

    /// The schedule itself.
    pub fn schedule(self) -> &'static dyn Schedule {
        self.entry().schedule
    }
}

impl fmt::Display for ScheduleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.entry().name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_schedule_runs_what_has_arrived_and_ends_with_everything() {
        for entry in registry() {
            for num_layers in 0..5 {
                let runnable: Vec<_> = (0..=num_layers)
                    .map(|arrived| entry.schedule.runnable_layers(arrived, num_layers))
                    .collect();
                assert!(runnable.is_sorted(), "{}: {runnable:?}", entry.name);
                for (arrived, runnable) in runnable.iter().enumerate() {
                    assert!(*runnable <= arrived, "{}: {runnable} layers", entry.name);
                }
                assert_eq!(runnable.last(), Some(&num_layers), "{}", entry.name);
            }
            assert_eq!(entry.kind.to_string(), entry.name);
            let config: ScheduleKind = serde_json::from_str(&format!("{:?}", entry.name)).unwrap();
            assert_eq!(config, entry.kind);
        }
    }

    #[test]
    fn layerwise_runs_a_layer_before_the_next_one_is_there() {
        assert_eq!(layerwise::Layerwise.runnable_layers(1, 2), 1);
        assert_eq!(sequential::Sequential.runnable_layers(1, 2), 0);
    }
}
