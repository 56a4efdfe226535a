//! What bounds an engine, and how fast it pretends to be.

use std::str::FromStr;

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
    /// Prompt and context tokens that one step takes in beside the sessions that generate, which
    /// wait for them between two tokens. A step in which nobody generates takes in a whole chunk.
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

/// How fast the engine is compared with the machine that it runs on: what a step took is stretched
/// by sleeping. 1 is this machine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Factor on the time of a step that takes in prompt or context tokens.
    pub prefill: f64,
    /// Factor on the time of a step that generates.
    pub decode: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self::uniform(1.0)
    }
}

impl Pace {
    /// The same factor on every step.
    pub fn uniform(factor: f64) -> Self {
        Self {
            prefill: factor,
            decode: factor,
        }
    }

    /// How long to sleep after computing for a while. A step that does both is charged by its
    /// tokens: in one pass each of them costs about the same.
    pub fn pause_ns(self, worked_ns: u64, prompt_tokens: usize, decoded: usize) -> u64 {
        let (prompt, decoded) = (prompt_tokens as f64, decoded as f64);
        let factor = match prompt + decoded {
            // Nothing ran but layers of a prompt.
            0.0 => self.prefill,
            tokens => (self.prefill * prompt + self.decode * decoded) / tokens,
        };
        // A factor below 1, or none that is a number, cannot be had by sleeping.
        (worked_ns as f64 * (factor - 1.0).max(0.0)) as u64
    }
}

impl FromStr for Pace {
    type Err = String;

    /// `F`, or `P,D` for prefill and decode.
    fn from_str(text: &str) -> Result<Self, String> {
        let factor = |part: &str| match part.trim().parse::<f64>() {
            Ok(factor) if (1.0..=4096.0).contains(&factor) => Ok(factor),
            _ => Err(format!(
                "`{part}` is no factor from 1 to 4096: an engine can be slowed down only"
            )),
        };
        match text.split_once(',') {
            None => factor(text).map(Self::uniform),
            Some((prefill, decode)) => Ok(Self {
                prefill: factor(prefill)?,
                decode: factor(decode)?,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slowdown_sleeps_the_difference_and_never_speeds_up() {
        assert_eq!(Pace::default().pause_ns(1000, 1, 1), 0);
        assert_eq!(Pace::uniform(3.0).pause_ns(1000, 0, 4), 2000);
        assert_eq!(Pace::uniform(0.5).pause_ns(1000, 9, 0), 0);
        assert_eq!(Pace::uniform(f64::NAN).pause_ns(1000, 1, 0), 0);
    }

    #[test]
    fn a_step_is_charged_by_what_it_held() {
        let pace = Pace {
            prefill: 7.0,
            decode: 2.0,
        };
        assert_eq!(pace.pause_ns(1000, 256, 0), 6000);
        assert_eq!(pace.pause_ns(1000, 0, 5), 1000);
        assert_eq!(pace.pause_ns(1000, 4, 4), 3500);
        // Layers of a gated prompt.
        assert_eq!(pace.pause_ns(1000, 0, 0), 6000);
    }

    #[test]
    fn a_pace_is_written_as_one_factor_or_two() {
        assert_eq!("2.5".parse(), Ok(Pace::uniform(2.5)));
        let two = Pace {
            prefill: 6.5,
            decode: 2.0,
        };
        assert_eq!("6.5,2".parse(), Ok(two));
        for wrong in ["", "0.5", "fast", "2,", "nan", "1,inf"] {
            assert!(wrong.parse::<Pace>().is_err(), "{wrong}");
        }
    }
}
