//! Where the time to the first token went.
//!
//! A request is followed from its scheduled arrival to its first token, and every nanosecond of
//! it belongs to exactly one part: that is the *exposed* time, and it adds up to TTFT. Work that
//! went on beside it (a transfer behind a computation) is *overlapped* and stands apart.
//!
//! While a request is in the engine, the engine says which moments it was computed, and in which
//! it waited for its turn. What remains is what it was blocked on, and that its own thread says:
//! a [`Track`] of what it did meanwhile.

use crate::clock::now_ns;
use crate::engine::Times;
use serde::{Deserialize, Serialize};

/// A part of TTFT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// From the scheduled arrival until the edge takes the request up, and in queues of the cloud.
    Queue,
    /// Text to tokens.
    Tokenise,
    /// The request on its way, and the reply's first byte on its way back.
    Request,
    /// The cloud's prefill, and its first step where the cloud answers.
    CloudCompute,
    /// Mapping KV between models.
    Align,
    /// Encoding KV.
    Encode,
    /// Waiting for KV in flight.
    Transfer,
    /// Decoding KV and putting it into the cache.
    Decode,
    /// The edge's prefill.
    EdgePrefill,
    /// From the end of the prefill to the first non-empty token.
    FirstStep,
}

impl Part {
    /// All parts, in the order in which they usually occur.
    pub const ALL: [Self; 10] = [
        Self::Queue,
        Self::Tokenise,
        Self::Request,
        Self::CloudCompute,
        Self::Align,
        Self::Encode,
        Self::Transfer,
        Self::Decode,
        Self::EdgePrefill,
        Self::FirstStep,
    ];

    /// Name in sample rows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Tokenise => "tokenise",
            Self::Request => "request",
            Self::CloudCompute => "cloud_compute",
            Self::Align => "align",
            Self::Encode => "encode",
            Self::Transfer => "transfer",
            Self::Decode => "decode",
            Self::EdgePrefill => "edge_prefill",
            Self::FirstStep => "first_step",
        }
    }
}

/// Time of one part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartTime {
    /// The part.
    pub part: Part,
    /// Nanoseconds on the way to the first token.
    pub exposed_ns: u64,
    /// Nanoseconds hidden behind other parts.
    pub overlapped_ns: u64,
}

/// Follows one request up to its first token.
pub struct Timeline {
    sent_ns: u64,
    last_ns: u64,
    exposed: [u64; Part::ALL.len()],
    overlapped: [u64; Part::ALL.len()],
}

impl Timeline {
    /// Starts when the edge takes a request up that was scheduled at `scheduled_ns`.
    pub fn start(scheduled_ns: u64) -> Self {
        let sent_ns = now_ns();
        let mut timeline = Self {
            sent_ns,
            last_ns: sent_ns,
            exposed: Default::default(),
            overlapped: Default::default(),
        };
        timeline.exposed[Part::Queue as usize] = sent_ns.saturating_sub(scheduled_ns);
        timeline
    }

    /// When the edge took the request up.
    pub fn sent_ns(&self) -> u64 {
        self.sent_ns
    }

    /// Ends a stretch that belonged to one part.
    pub fn lap(&mut self, part: Part) {
        self.lap_split(&[], part);
    }

    /// Ends a stretch spent waiting for a peer that reports how long its own steps took: each
    /// step gets its reported share, as far as the wait covers it, and `rest` what remains.
    pub fn lap_split(&mut self, reported: &[(Part, u64)], rest: Part) {
        self.lap_split_at(now_ns(), reported, rest);
    }

    /// As [`Timeline::lap_split`], for a stretch that ended at a moment not long ago.
    pub fn lap_split_at(&mut self, at_ns: u64, reported: &[(Part, u64)], rest: Part) {
        let now = at_ns.max(self.last_ns);
        let mut left = now - self.last_ns;
        for &(part, ns) in reported {
            let share = ns.min(left);
            self.exposed[part as usize] += share;
            self.overlapped[part as usize] += ns - share;
            left -= share;
        }
        self.exposed[rest as usize] += left;
        self.last_ns = now;
    }

    /// Ends a stretch in which the engine had the request, at `at_ns`. Of the time in which it
    /// was blocked, each moment belongs to what the track says was done then.
    pub(crate) fn lap_engine(
        &mut self,
        at_ns: u64,
        times: &Times,
        blocked: &[(u64, u64)],
        track: Option<&Track>,
    ) {
        let mut reported = vec![
            (Part::Queue, times.queued_ns),
            (Part::EdgePrefill, times.prefill_ns),
            (Part::FirstStep, times.decode_ns),
        ];
        let mut seen = [0; Part::ALL.len()];
        if let Some(track) = track {
            seen = track.within(blocked);
            for part in [Part::Encode, Part::Align, Part::Decode] {
                let done = track.total(part);
                self.overlap(part, done.saturating_sub(seen[part as usize]));
            }
            // KV goes on arriving while what has arrived is decoded.
            let seen = seen[Part::Transfer as usize] + seen[Part::Encode as usize];
            self.overlap(Part::Transfer, track.under_way_ns.saturating_sub(seen));
        }
        // What it was blocked on and nobody worked at was on its way.
        let worked: u64 = seen.iter().sum();
        seen[Part::Transfer as usize] += times.blocked_ns.saturating_sub(worked);
        reported.extend(
            Part::ALL
                .into_iter()
                .map(|part| (part, seen[part as usize])),
        );
        self.lap_split_at(at_ns, &reported, Part::FirstStep);
    }

    /// Adds time of a part that was hidden behind others.
    pub fn overlap(&mut self, part: Part, ns: u64) {
        self.overlapped[part as usize] += ns;
    }

    /// Exposed time of a part so far.
    pub fn exposed_ns(&self, part: Part) -> u64 {
        self.exposed[part as usize]
    }

    /// The parts that took any time.
    pub fn parts(&self) -> Vec<PartTime> {
        Part::ALL
            .into_iter()
            .map(|part| PartTime {
                part,
                exposed_ns: self.exposed[part as usize],
                overlapped_ns: self.overlapped[part as usize],
            })
            .filter(|time| time.exposed_ns + time.overlapped_ns > 0)
            .collect()
    }
}

/// What a request's own thread did while the engine had the request: stretches without gaps.
pub(crate) struct Track {
    last_ns: u64,
    /// End and part of each stretch. One or two for each message that is waited for.
    stretches: Vec<(u64, Part)>,
    start_ns: u64,
    /// From the first to the last arrival of the transfer that it followed.
    under_way_ns: u64,
}

impl Track {
    /// Starts now.
    pub(crate) fn start() -> Self {
        let start_ns = now_ns();
        Self {
            last_ns: start_ns,
            stretches: Vec::new(),
            start_ns,
            under_way_ns: 0,
        }
    }

    /// States how long the transfer went on.
    pub(crate) fn transferred(&mut self, ns: u64) {
        self.under_way_ns = ns;
    }

    /// Ends a stretch.
    pub(crate) fn lap(&mut self, part: Part) {
        self.lap_split(&[], part);
    }

    /// Ends a stretch, the first of which belongs to the parts reported, as far as it goes.
    pub(crate) fn lap_split(&mut self, reported: &[(Part, u64)], rest: Part) {
        let now = now_ns();
        for &(part, ns) in reported {
            self.last_ns = self.last_ns.saturating_add(ns).min(now);
            self.stretches.push((self.last_ns, part));
        }
        self.last_ns = now;
        self.stretches.push((now, rest));
    }

    /// Time of a part.
    fn total(&self, part: Part) -> u64 {
        let mut start_ns = self.start_ns;
        let mut total = 0;
        for &(end_ns, of) in &self.stretches {
            if of == part {
                total += end_ns - start_ns;
            }
            start_ns = end_ns;
        }
        total
    }

    /// Time of every part inside intervals, which are in order and apart.
    fn within(&self, intervals: &[(u64, u64)]) -> [u64; Part::ALL.len()] {
        let mut shares = [0; Part::ALL.len()];
        let mut start_ns = self.start_ns;
        let mut intervals = intervals.iter().copied().peekable();
        for &(end_ns, part) in &self.stretches {
            while let Some(&(from, to)) = intervals.peek() {
                let (first, last) = (from.max(start_ns), to.min(end_ns));
                shares[part as usize] += last.saturating_sub(first);
                if to > end_ns {
                    break;
                }
                intervals.next();
            }
            start_ns = end_ns;
        }
        shares
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn exposed_parts_add_up_to_the_elapsed_time() {
        let scheduled = now_ns();
        let mut timeline = Timeline::start(scheduled);
        timeline.lap(Part::Tokenise);
        std::thread::sleep(Duration::from_millis(3));
        // A peer that claims more than the wait cannot inflate the sum.
        timeline.lap_split(
            &[(Part::CloudCompute, 1_000_000), (Part::Encode, 1 << 40)],
            Part::Request,
        );
        timeline.lap(Part::FirstStep);
        let elapsed = timeline.last_ns - scheduled;
        let sum: u64 = timeline.parts().iter().map(|time| time.exposed_ns).sum();
        assert_eq!(sum, elapsed);
        assert_eq!(timeline.exposed_ns(Part::CloudCompute), 1_000_000);
        assert_eq!(timeline.exposed_ns(Part::Request), 0);
    }

    #[test]
    fn blocked_time_belongs_to_what_was_done_meanwhile() {
        let track = Track {
            start_ns: 100,
            last_ns: 180,
            under_way_ns: 60,
            stretches: vec![
                (120, Part::Transfer),
                (130, Part::Decode),
                (135, Part::Encode),
                (160, Part::Transfer),
                (180, Part::Decode),
            ],
        };
        assert_eq!(track.total(Part::Transfer), 45);
        assert_eq!(track.total(Part::Decode), 30);
        let seen = track.within(&[(90, 125), (128, 129), (150, 200)]);
        assert_eq!(seen[Part::Transfer as usize], 30);
        assert_eq!(seen[Part::Decode as usize], 26);
        assert_eq!(seen[Part::Encode as usize], 0);

        let mut timeline = Timeline::start(0);
        let start = timeline.last_ns;
        let shifted = |ns: u64| start + ns;
        let track = Track {
            start_ns: shifted(track.start_ns),
            last_ns: shifted(track.last_ns),
            under_way_ns: track.under_way_ns,
            stretches: track
                .stretches
                .iter()
                .map(|&(end, part)| (shifted(end), part))
                .collect(),
        };
        let times = Times {
            queued_ns: 10,
            blocked_ns: 35,
            prefill_ns: 40,
            decode_ns: 5,
        };
        timeline.lap_engine(
            shifted(190),
            &times,
            &[(shifted(100), shifted(125)), (shifted(175), shifted(185))],
            Some(&track),
        );
        // 20 and 5 of the first stretch, 5 of the second; the last 5 were on nobody's track.
        assert_eq!(timeline.exposed_ns(Part::Transfer), 20 + 5);
        assert_eq!(timeline.exposed_ns(Part::Decode), 10);
        assert_eq!(timeline.exposed_ns(Part::EdgePrefill), 40);
        // All that the engine does not account for lies before the submission.
        assert_eq!(timeline.exposed_ns(Part::FirstStep), 5 + 100);
        let exposed: u64 = timeline.parts().iter().map(|time| time.exposed_ns).sum();
        assert_eq!(exposed, shifted(190));
        assert_eq!(timeline.overlapped[Part::Decode as usize], 20);
        assert_eq!(timeline.overlapped[Part::Transfer as usize], 60 - 20);
    }
}
