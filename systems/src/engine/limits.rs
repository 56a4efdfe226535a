//! What bounds an engine, and how fast it pretends to be.

/// Bounds of one engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineLimits {
    /// Most sessions and contexts that are computed at once.
    pub max_sessions: usize,
    /// Most that wait for a place among them; further ones are refused.
    pub max_queue: usize,
    /// Bytes of KV that those admitted may grow to, shared prefixes counted once. One that alone
    /// needs more is admitted when nothing else is.
    pub kv_bytes: usize,
    /// Prompt and context tokens that one step takes in beside the sessions that generate.
    pub step_tokens: usize,
}

impl Default for EngineLimits {
    fn default() -> Self {
        Self {
            max_sessions: 64,
            max_queue: 256,
            kv_bytes: 512 << 20,
            step_tokens: 256,
        }
    }
}

impl EngineLimits {
    /// Calls that can be under way at an engine at once.
    pub fn max_calls(&self) -> usize {
        self.max_sessions.saturating_add(self.max_queue)
    }
}

/// How fast the engine is compared with the machine that it runs on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// A step that took t takes `slowdown * t`; the rest of it is slept. 1 is this machine.
    pub slowdown: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { slowdown: 1.0 }
    }
}

impl Pace {
    /// How long to sleep after computing for a while.
    pub fn pause_ns(self, worked_ns: u64) -> u64 {
        // A slowdown below 1, or none that is a number, cannot be had by sleeping.
        (worked_ns as f64 * (self.slowdown - 1.0).max(0.0)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slowdown_sleeps_the_difference_and_never_speeds_up() {
        assert_eq!(Pace::default().pause_ns(1000), 0);
        assert_eq!(Pace { slowdown: 3.0 }.pause_ns(1000), 2000);
        assert_eq!(Pace { slowdown: 0.5 }.pause_ns(1000), 0);
        assert_eq!(Pace { slowdown: f64::NAN }.pause_ns(1000), 0);
    }
}
