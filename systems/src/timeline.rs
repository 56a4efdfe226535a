//! Where the time to the first token went.
//!
//! The edge's own thread is followed from the scheduled arrival to the first token, and every
//! nanosecond of it belongs to exactly one part: that is the *exposed* time, and it adds up to
//! TTFT. Work that went on beside it (a transfer behind a computation) is *overlapped* and
//! stands apart.

use crate::clock::now_ns;
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
        let now = now_ns();
        let mut left = now.saturating_sub(self.last_ns);
        for &(part, ns) in reported {
            let share = ns.min(left);
            self.exposed[part as usize] += share;
            self.overlapped[part as usize] += ns - share;
            left -= share;
        }
        self.exposed[rest as usize] += left;
        self.last_ns = now;
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
}
