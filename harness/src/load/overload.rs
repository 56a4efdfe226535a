//! When a level is beyond saturation, so that it may end early.
//!
//! An open loop above the capacity of what it measures builds a queue that only grows: going on
//! says nothing that the first minute has not said, and takes the rest of the night.

use std::collections::VecDeque;
use std::time::Duration;

/// When to give a level up: when a whole window has gone by, and one of these has held in it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OverloadRule {
    /// More than this share of the requests that ended have failed: dropped, refused or timed
    /// out. 1 or more turns it off.
    pub failed_share: f64,
    /// The median TTFT of the answers was longer than this; zero turns it off.
    pub ttft: Duration,
    /// Length of the window.
    pub window: Duration,
}

/// Fewest ends in a window that say something.
const LEAST_ENDS: usize = 10;

/// Watches one level. Times are nanoseconds of one clock.
#[derive(Debug)]
pub struct Overload {
    rule: OverloadRule,
    start_ns: u64,
    /// When requests ended within the window, each with its TTFT if it was answered.
    ends: VecDeque<(u64, Option<u64>)>,
    failed: usize,
}

impl Overload {
    /// Watches a level that starts at `start_ns`.
    #[must_use]
    pub fn new(rule: OverloadRule, start_ns: u64) -> Self {
        Self {
            rule,
            start_ns,
            ends: VecDeque::new(),
            failed: 0,
        }
    }

    /// A request was answered.
    pub fn answered(&mut self, ttft_ns: u64, now_ns: u64) {
        self.ends.push_back((now_ns, Some(ttft_ns)));
        self.forget(now_ns);
    }

    /// A request failed, or was dropped.
    pub fn failed(&mut self, now_ns: u64) {
        self.ends.push_back((now_ns, None));
        self.failed += 1;
        self.forget(now_ns);
    }

    fn forget(&mut self, now_ns: u64) {
        let window = self.rule.window.as_nanos() as u64;
        while let Some(&(at, ttft)) = self.ends.front()
            && now_ns.saturating_sub(at) > window
        {
            self.ends.pop_front();
            self.failed -= usize::from(ttft.is_none());
        }
    }

    /// Why the level should end, if it should.
    pub fn verdict(&mut self, now_ns: u64) -> Option<String> {
        let OverloadRule {
            failed_share,
            ttft,
            window,
        } = self.rule;
        self.forget(now_ns);
        let elapsed = now_ns.saturating_sub(self.start_ns);
        if elapsed < window.as_nanos() as u64 || self.ends.len() < LEAST_ENDS {
            return None;
        }
        let window_s = window.as_secs_f64();
        let share = self.failed as f64 / self.ends.len() as f64;
        if share > failed_share {
            return Some(format!(
                "{:.0}% of the requests of {window_s} s failed",
                share * 100.0
            ));
        }
        if ttft.is_zero() {
            return None;
        }
        let mut ttfts: Vec<u64> = self.ends.iter().filter_map(|&(_, ttft)| ttft).collect();
        if ttfts.len() < LEAST_ENDS {
            return None;
        }
        let middle = ttfts.len() / 2;
        let (_, &mut median, _) = ttfts.select_nth_unstable(middle);
        (median > ttft.as_nanos() as u64).then(|| {
            format!(
                "the median TTFT of {window_s} s was {:.1} s, beyond {:.1} s",
                median as f64 / 1e9,
                ttft.as_secs_f64()
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    const RULE: OverloadRule = OverloadRule {
        failed_share: 0.5,
        ttft: Duration::from_secs(2),
        window: Duration::from_secs(20),
    };

    #[test]
    fn failures_beyond_their_share_are_overload() {
        let mut overload = Overload::new(RULE, 0);
        for second in 1..=20 {
            overload.answered(S, second * S);
            overload.failed(second * S);
        }
        // Half is not more than half.
        assert_eq!(overload.verdict(20 * S), None);
        overload.failed(20 * S);
        let reason = overload.verdict(20 * S).unwrap();
        assert!(reason.contains("51% of the requests of 20 s"), "{reason}");
        // What is past is past.
        for second in 21..=60 {
            overload.answered(S, second * S);
        }
        assert_eq!(overload.verdict(60 * S), None);
    }

    #[test]
    fn a_level_has_a_whole_window_to_show_itself() {
        let mut overload = Overload::new(RULE, 0);
        (0..50).for_each(|_| overload.failed(S));
        assert_eq!(overload.verdict(19 * S), None);
        assert!(overload.verdict(20 * S).is_some());
    }

    #[test]
    fn late_answers_of_a_whole_window_are_overload() {
        let mut overload = Overload::new(RULE, 0);
        for second in 1..=20 {
            overload.answered(S, second * S);
        }
        assert_eq!(overload.verdict(20 * S), None);
        // The window slides, until half of it is late.
        for second in 21..=30 {
            overload.answered(5 * S, second * S);
        }
        assert_eq!(overload.verdict(30 * S), None);
        overload.answered(5 * S, 31 * S);
        overload.answered(5 * S, 32 * S);
        let reason = overload.verdict(32 * S).unwrap();
        assert!(reason.contains("5.0 s, beyond 2.0 s"), "{reason}");
        // Too few answers say nothing.
        assert_eq!(overload.verdict(50 * S), None);
    }

    #[test]
    fn both_signs_can_be_turned_off() {
        let rule = OverloadRule {
            failed_share: 1.0,
            ttft: Duration::ZERO,
            ..RULE
        };
        let mut overload = Overload::new(rule, 0);
        for second in 0..50 {
            overload.failed(second * S);
        }
        assert_eq!(overload.verdict(50 * S), None);
        for second in 50..100 {
            overload.answered(99 * S, second * S);
        }
        assert_eq!(overload.verdict(100 * S), None);
    }
}
