//! How loading a context's KV and computing the prompt overlap.

mod layerwise;
mod sequential;

use crate::SystemError;
use celslm_model::Hidden;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a schedule drives: one prompt whose context KV is on its way.
///
/// The shape is that of the KV connectors of serving engines: loading has started, a layer can
/// be waited for, and a layer can be run once it is there.
pub trait HandOff {
    /// Layers of the edge model.
    fn num_layers(&self) -> usize;
    /// Blocks until the context's KV of a layer is in the cache.
    ///
    /// # Errors
    /// Whatever interrupted the transfer.
    fn wait_for_layer(&mut self, layer: usize) -> Result<(), SystemError>;
    /// The prompt's embedding.
    ///
    /// # Errors
    /// What the model reports.
    fn embed(&mut self) -> Result<Hidden, SystemError>;
    /// Runs the prompt through a layer whose context KV is there.
    ///
    /// # Errors
    /// What the model reports.
    fn forward_layer(&mut self, layer: usize, hidden: &Hidden) -> Result<Hidden, SystemError>;
}

/// An overlap of loading and computing.
pub trait Schedule: Sync {
    /// Brings the prompt through all layers; the result is the output of the last one.
    ///
    /// # Errors
    /// Whatever the hand-off reports.
    fn run(&self, hand_off: &mut dyn HandOff) -> Result<Hidden, SystemError>;
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

    /// Records the order of calls and refuses a layer that was not waited for.
    struct Recorder {
        calls: Vec<String>,
        ready: Vec<bool>,
    }

    impl HandOff for Recorder {
        fn num_layers(&self) -> usize {
            self.ready.len()
        }
        fn wait_for_layer(&mut self, layer: usize) -> Result<(), SystemError> {
            self.ready[layer] = true;
            self.calls.push(format!("wait {layer}"));
            Ok(())
        }
        fn embed(&mut self) -> Result<Hidden, SystemError> {
            Ok(Hidden::zeros(1, 4)?)
        }
        fn forward_layer(&mut self, layer: usize, _: &Hidden) -> Result<Hidden, SystemError> {
            assert!(
                self.ready[layer],
                "layer {layer} ran before its KV was there"
            );
            self.calls.push(format!("run {layer}"));
            Ok(Hidden::zeros(1, 4)?)
        }
    }

    #[test]
    fn every_schedule_waits_before_it_runs_and_runs_every_layer() {
        for entry in registry() {
            let mut recorder = Recorder {
                calls: Vec::new(),
                ready: vec![false; 3],
            };
            entry.schedule.run(&mut recorder).unwrap();
            for layer in 0..3 {
                let run = format!("run {layer}");
                assert_eq!(
                    recorder.calls.iter().filter(|call| **call == run).count(),
                    1
                );
            }
            assert_eq!(entry.kind.to_string(), entry.name);
            let config: ScheduleKind = serde_json::from_str(&format!("{:?}", entry.name)).unwrap();
            assert_eq!(config, entry.kind);
        }
    }

    #[test]
    fn layerwise_runs_a_layer_before_the_next_one_is_waited_for() {
        let mut recorder = Recorder {
            calls: Vec::new(),
            ready: vec![false; 2],
        };
        layerwise::Layerwise.run(&mut recorder).unwrap();
        assert_eq!(recorder.calls, ["wait 0", "run 0", "wait 1", "run 1"]);
        let mut recorder = Recorder {
            calls: Vec::new(),
            ready: vec![false; 2],
        };
        sequential::Sequential.run(&mut recorder).unwrap();
        assert_eq!(recorder.calls, ["wait 0", "wait 1", "run 0", "run 1"]);
    }
}
