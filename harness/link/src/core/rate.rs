//! Bandwidth: how long a packet occupies the link.

use std::time::Duration;

/// A fixed rate: each packet occupies the link for `(len + overhead) · 8 / rate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    bits_per_second: Option<u64>,
    overhead_bytes: i32,
}

impl Rate {
    /// A rate in bits per second, `None` for an unlimited one, with the bytes of lower layers to
    /// be counted for each packet (negative to discount them). A rate of 0 is taken as 1 bit/s.
    #[must_use]
    pub fn new(bits_per_second: Option<u64>, overhead_bytes: i32) -> Self {
        Self {
            bits_per_second: bits_per_second.map(|rate| rate.max(1)),
            overhead_bytes,
        }
    }

    /// Whether the rate bounds anything.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.bits_per_second.is_some()
    }

    /// The time for which a packet of `len` bytes occupies the link, to the nearest nanosecond.
    #[must_use]
    pub fn transmission(&self, len: usize) -> Duration {
        let Some(rate) = self.bits_per_second else {
            return Duration::ZERO;
        };
        let rate = u128::from(rate);
        let bytes = (len as i128 + i128::from(self.overhead_bytes))
            .max(0)
            .unsigned_abs();
        let nanos = (bytes * 8_000_000_000 + rate / 2) / rate;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transmission_time_counts_overhead_and_rounds() {
        assert_eq!(
            Rate::new(Some(1_000_000_000), 0).transmission(1500),
            Duration::from_micros(12)
        );
        assert_eq!(
            Rate::new(Some(20_000_000), 0).transmission(1500),
            Duration::from_micros(600)
        );
        assert_eq!(
            Rate::new(Some(8_000_000), 14).transmission(86),
            Duration::from_micros(100)
        );
        assert_eq!(
            Rate::new(Some(8_000_000), -14).transmission(14),
            Duration::ZERO
        );
        assert_eq!(
            Rate::new(Some(8_000_000), -14).transmission(4),
            Duration::ZERO
        );
        assert_eq!(
            Rate::new(Some(7_000_000), 0).transmission(1500),
            Duration::from_nanos(1_714_286)
        );
        assert_eq!(Rate::new(None, 0).transmission(1500), Duration::ZERO);
    }
}
