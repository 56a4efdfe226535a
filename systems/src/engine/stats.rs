//! What an engine and a node say of themselves.

use serde::{Deserialize, Serialize};

/// Counts since the start or the last reset, and what holds now.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EngineStats {
    /// Which of a node's engines it is.
    pub name: String,
    /// Bytes that the model's weights take.
    pub weights_bytes: u64,
    /// KV bytes held by sessions and contexts in work, a shared prefix counted once.
    pub kv_bytes: u64,
    /// The most of them at any step.
    pub peak_kv_bytes: u64,
    /// Sessions and contexts in work.
    pub sessions: u64,
    /// The most of them.
    pub peak_sessions: u64,
    /// Those that wait for a place.
    pub queued: u64,
    /// The most of them.
    pub peak_queued: u64,
    /// Refused since the engine was full.
    pub refused: u64,
    /// Sessions that came to their end.
    pub completed: u64,
    /// Sessions and contexts that failed, their deadline included.
    pub failed: u64,
    /// Sessions and contexts that nobody wanted any more.
    pub cancelled: u64,
    /// Forward passes over a batch.
    pub steps: u64,
    /// Layers that prompts ran through by themselves, between the steps.
    pub layer_steps: u64,
    /// Tokens generated.
    pub tokens: u64,
    /// Prompt and context tokens computed.
    pub prefill_tokens: u64,
    /// Time in which the engine computed (or slept in place of a slower machine).
    pub busy_ns: u64,
    /// Steps by the tokens in them: entry `i` counts those with more than `2^(i-1)` and at most
    /// `2^i`.
    pub batch_rows: Vec<u64>,
}

impl EngineStats {
    /// Counts a step with so many rows.
    pub(super) fn count_step(&mut self, rows: usize) {
        self.steps += 1;
        let bucket = rows.max(1).next_power_of_two().trailing_zeros() as usize;
        if self.batch_rows.len() <= bucket {
            self.batch_rows.resize(bucket + 1, 0);
        }
        self.batch_rows[bucket] += 1;
    }

    /// Starts counting anew; peaks start from what holds now.
    pub(super) fn reset(&mut self) {
        *self = Self {
            name: std::mem::take(&mut self.name),
            weights_bytes: self.weights_bytes,
            kv_bytes: self.kv_bytes,
            peak_kv_bytes: self.kv_bytes,
            sessions: self.sessions,
            peak_sessions: self.sessions,
            queued: self.queued,
            peak_queued: self.queued,
            ..Self::default()
        };
    }
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeStats {
    /// Its engines.
    pub engines: Vec<EngineStats>,
    /// Bytes of contexts' KV in its caches and stores, whether in use or not.
    pub cached_kv_bytes: u64,
    /// Resident memory of the process.
    pub rss_bytes: u64,
    /// The most of it, since the start or the last reset where the kernel can reset it.
    pub peak_rss_bytes: u64,
}

impl NodeStats {
    /// Adds the process's own figures; `reset` lets the peak start anew afterwards.
    pub(crate) fn new(engines: Vec<EngineStats>, cached_kv_bytes: u64, reset: bool) -> Self {
        // Not every system has it; then the figures are 0.
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        if reset {
            // "5" sets VmHWM back (proc_pid_clear_refs(5)); where that is not allowed, it stays.
            let _ = std::fs::write("/proc/self/clear_refs", "5");
        }
        Self {
            engines,
            cached_kv_bytes,
            rss_bytes: status_bytes(&status, "VmRSS:"),
            peak_rss_bytes: status_bytes(&status, "VmHWM:"),
        }
    }

    /// The most KV bytes of all engines together, as a bound: their peaks need not coincide.
    pub fn peak_kv_bytes(&self) -> u64 {
        self.engines.iter().map(|engine| engine.peak_kv_bytes).sum()
    }
}

/// A line of `/proc/self/status` that is stated in kB.
fn status_bytes(status: &str, name: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_counted_in_powers_of_two() {
        let mut stats = EngineStats::default();
        for rows in [1, 2, 3, 4, 5, 256, 257] {
            stats.count_step(rows);
        }
        assert_eq!(stats.batch_rows, [1, 1, 2, 1, 0, 0, 0, 0, 1, 1]);
        stats.kv_bytes = 7;
        stats.peak_kv_bytes = 9;
        stats.reset();
        assert_eq!(
            (stats.steps, stats.kv_bytes, stats.peak_kv_bytes),
            (0, 7, 7)
        );
    }

    #[test]
    fn the_process_states_its_memory() {
        let stats = NodeStats::new(Vec::new(), 0, false);
        assert!(stats.rss_bytes > 1 << 20, "{stats:?}");
        assert!(stats.peak_rss_bytes >= stats.rss_bytes / 2);
        assert_eq!(status_bytes("VmRSS:\t  12 kB\n", "VmRSS:"), 12 << 10);
        assert_eq!(status_bytes("", "VmRSS:"), 0);
    }
}
