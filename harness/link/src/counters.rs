//! What passed over the link, and how well the emulator kept its times.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::core::DirectionCounters;

/// What passed in each direction since the link was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Edge to cloud.
    pub uplink: TrafficCounters,
    /// Cloud to edge.
    pub downlink: TrafficCounters,
}

/// What passed in one direction since the link was made. Every figure only ever grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficCounters {
    /// Packets that the sender put on the link, those dropped afterwards included.
    pub packets: u64,
    /// IP bytes (headers included) that the sender put on the link, retransmissions and packets
    /// dropped afterwards included.
    pub bytes: u64,
    /// Packets that came out at the far end.
    pub delivered_packets: u64,
    /// IP bytes that came out at the far end.
    pub delivered_bytes: u64,
    /// Packets taken by the loss model.
    pub dropped_loss: u64,
    /// Packets dropped because the link's queue was full.
    pub dropped_queue: u64,
    /// Packets dropped by the link's AQM.
    #[serde(default)]
    pub dropped_codel: u64,
    /// Packets that came while the link was cut.
    #[serde(default)]
    pub dropped_outage: u64,
    /// Packets still on the link when its profile was changed and it did not drain in time.
    pub dropped_flush: u64,
    /// Packets that the kernel's netem dropped under a profile with loss: it counts what its loss
    /// model takes together with what finds the queue full. 0 on other backends.
    #[serde(default)]
    pub dropped_undistinguished: u64,
    /// Copies of packets that the link made, those dropped afterwards included.
    #[serde(default)]
    pub duplicated: u64,
    /// Packets of which the link flipped a bit.
    #[serde(default)]
    pub corrupted: u64,
    /// Packets that the link sent ahead of others.
    #[serde(default)]
    pub reordered: u64,
}

impl TrafficCounters {
    /// What passed since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            packets: self.packets.saturating_sub(earlier.packets),
            bytes: self.bytes.saturating_sub(earlier.bytes),
            delivered_packets: self
                .delivered_packets
                .saturating_sub(earlier.delivered_packets),
            delivered_bytes: self.delivered_bytes.saturating_sub(earlier.delivered_bytes),
            dropped_loss: self.dropped_loss.saturating_sub(earlier.dropped_loss),
            dropped_queue: self.dropped_queue.saturating_sub(earlier.dropped_queue),
            dropped_codel: self.dropped_codel.saturating_sub(earlier.dropped_codel),
            dropped_outage: self.dropped_outage.saturating_sub(earlier.dropped_outage),
            dropped_flush: self.dropped_flush.saturating_sub(earlier.dropped_flush),
            dropped_undistinguished: self
                .dropped_undistinguished
                .saturating_sub(earlier.dropped_undistinguished),
            duplicated: self.duplicated.saturating_sub(earlier.duplicated),
            corrupted: self.corrupted.saturating_sub(earlier.corrupted),
            reordered: self.reordered.saturating_sub(earlier.reordered),
        }
    }
}

impl TrafficCounters {
    /// The sum of this and another leg's.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
            delivered_packets: self.delivered_packets + other.delivered_packets,
            delivered_bytes: self.delivered_bytes + other.delivered_bytes,
            dropped_loss: self.dropped_loss + other.dropped_loss,
            dropped_queue: self.dropped_queue + other.dropped_queue,
            dropped_codel: self.dropped_codel + other.dropped_codel,
            dropped_outage: self.dropped_outage + other.dropped_outage,
            dropped_flush: self.dropped_flush + other.dropped_flush,
            dropped_undistinguished: self.dropped_undistinguished + other.dropped_undistinguished,
            duplicated: self.duplicated + other.duplicated,
            corrupted: self.corrupted + other.corrupted,
            reordered: self.reordered + other.reordered,
        }
    }
}

impl Counters {
    /// What passed since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            uplink: self.uplink.since(&earlier.uplink),
            downlink: self.downlink.since(&earlier.downlink),
        }
    }
}

impl Counters {
    /// The sum of this and another leg's.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            uplink: self.uplink.with(other.uplink),
            downlink: self.downlink.with(other.downlink),
        }
    }
}

impl From<DirectionCounters> for TrafficCounters {
    fn from(counters: DirectionCounters) -> Self {
        Self {
            packets: counters.packets,
            bytes: counters.bytes,
            delivered_packets: counters.delivered_packets,
            delivered_bytes: counters.delivered_bytes,
            dropped_loss: counters.dropped_loss,
            dropped_queue: counters.dropped_queue,
            dropped_codel: counters.dropped_codel,
            dropped_outage: counters.dropped_outage,
            dropped_flush: counters.dropped_flush,
            duplicated: counters.duplicated,
            corrupted: counters.corrupted,
            reordered: counters.reordered,
            ..Self::default()
        }
    }
}

/// How late packets left the emulator, since the profile was last changed or this was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Audit {
    /// Packets that left.
    pub packets: u64,
    /// Median lateness in microseconds: time handed to the far end less time due.
    pub lateness_p50_us: f64,
    /// 99th percentile of lateness in microseconds.
    pub lateness_p99_us: f64,
    /// Greatest lateness in microseconds.
    pub lateness_max_us: f64,
    /// Packets that the far end's device refused.
    pub write_failures: u64,
    /// Reads from a device that failed otherwise than by finding nothing.
    pub read_failures: u64,
    /// Packets that the senders' devices dropped before the emulator saw them.
    pub device_drops: u64,
    /// Processor time of the packet thread in seconds, on all legs.
    #[serde(default)]
    pub cpu_s: f64,
}

impl Audit {
    /// This and another leg's: of times the greater, of counts the sum.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            lateness_p50_us: self.lateness_p50_us.max(other.lateness_p50_us),
            lateness_p99_us: self.lateness_p99_us.max(other.lateness_p99_us),
            lateness_max_us: self.lateness_max_us.max(other.lateness_max_us),
            write_failures: self.write_failures + other.write_failures,
            read_failures: self.read_failures + other.read_failures,
            device_drops: self.device_drops + other.device_drops,
            // One thread carries all legs.
            cpu_s: self.cpu_s.max(other.cpu_s),
        }
    }
}

/// A histogram of durations with a resolution of 1/32, in constant memory.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max: u64,
}

/// Buckets per power of two.
const SUBDIVISIONS: u64 = 32;
const SUBDIVISION_BITS: u32 = SUBDIVISIONS.trailing_zeros();

impl Histogram {
    pub(crate) fn new() -> Self {
        let buckets = (64 - SUBDIVISION_BITS as usize + 1) * SUBDIVISIONS as usize;
        Self {
            buckets: vec![0; buckets],
            count: 0,
            max: 0,
        }
    }

    pub(crate) fn record(&mut self, value: Duration) {
        let nanos = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[Self::bucket(nanos)] += 1;
        self.count += 1;
        self.max = self.max.max(nanos);
    }

    pub(crate) fn clear(&mut self) {
        self.buckets.fill(0);
        self.count = 0;
        self.max = 0;
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The value below or at which the fraction `quantile` of the records lies, in
    /// microseconds; 0 for an empty histogram.
    pub(crate) fn quantile_us(&self, quantile: f64) -> f64 {
        let rank = ((self.count as f64 * quantile).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Self::upper(bucket).min(self.max) as f64 / 1e3;
            }
        }
        0.0
    }

    pub(crate) fn max_us(&self) -> f64 {
        self.max as f64 / 1e3
    }

    fn bucket(nanos: u64) -> usize {
        if nanos < SUBDIVISIONS {
            return nanos as usize;
        }
        // The top SUBDIVISION_BITS + 1 bits choose the bucket.
        let shift = 63 - nanos.leading_zeros() - SUBDIVISION_BITS;
        (u64::from(shift) * SUBDIVISIONS + (nanos >> shift)) as usize
    }

    /// The greatest value of a bucket.
    fn upper(bucket: usize) -> u64 {
        let bucket = bucket as u64;
        if bucket < SUBDIVISIONS {
            return bucket;
        }
        let shift = bucket / SUBDIVISIONS - 1;
        let low = u128::from(bucket - shift * SUBDIVISIONS) << shift;
        u64::try_from(low + (1 << shift) - 1).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantiles_of_a_known_sequence() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.quantile_us(0.5), 0.0);
        for value in 1..=1000 {
            histogram.record(Duration::from_micros(value));
        }
        assert!((histogram.quantile_us(0.5) / 500.0 - 1.0).abs() < 1.0 / 32.0);
        assert!((histogram.quantile_us(0.99) / 990.0 - 1.0).abs() < 1.0 / 32.0);
        assert_eq!((histogram.max_us(), histogram.count()), (1000.0, 1000));
        histogram.clear();
        assert_eq!((histogram.max_us(), histogram.count()), (0.0, 0));
    }

    #[test]
    fn records_of_older_versions_can_be_read() {
        let old = r#"{"packets":5,"bytes":700,"delivered_packets":3,"delivered_bytes":400,
            "dropped_loss":1,"dropped_queue":1,"dropped_flush":0}"#;
        let counters: TrafficCounters = serde_json::from_str(old).expect("readable");
        assert_eq!((counters.packets, counters.dropped_codel), (5, 0));
        let later = TrafficCounters {
            packets: 9,
            reordered: 2,
            ..counters
        };
        let since = later.since(&counters);
        assert_eq!((since.packets, since.reordered, since.bytes), (4, 2, 0));
    }

    proptest! {
        #[test]
        fn every_value_lies_in_its_bucket(nanos in any::<u64>()) {
            let upper = Histogram::upper(Histogram::bucket(nanos));
            prop_assert!(upper >= nanos);
            prop_assert!((upper - nanos) as f64 <= nanos as f64 / 31.0);
        }
    }
}
