//! The bounds of the protocol, as a config section.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::WireError;

const MIB: u32 = 1024 * 1024;
/// Longest wait that a config may ask for, so that no timer or `grpc-timeout` can overflow.
const LONGEST_MS: u64 = 24 * 60 * 60 * 1000;
/// Largest window that HTTP/2 can express (RFC 9113, section 6.9.1).
const LARGEST_WINDOW_BYTES: u32 = i32::MAX as u32;
/// Room in a message for everything except its payload or text.
const SMALLEST_MESSAGE_BYTES: usize = 1024;

/// Bounds of messages, windows, waits and queues; the same section serves edge and cloud.
///
/// Every field has a default, and an unknown key is an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Largest encoded message that is sent or accepted, in bytes. Default 8 MiB: a chunk of 256
    /// tokens × 8 heads × 128 channels in fp16 is 1 MiB, so eight times that still passes.
    pub max_message_bytes: usize,
    /// Largest context or prompt text in bytes, where a token id counts as 4. Default 1 MiB.
    pub max_text_bytes: usize,
    /// HTTP/2 receive window of one stream, in bytes. Default 40 MiB.
    ///
    /// A window of W limits a stream to W bytes in flight, and h2 returns credit once a third of
    /// W is unclaimed, so a sender never stalls only if W ≥ 1.5 × rate × RTT. The fastest link
    /// considered is 1 Gbit/s × 200 ms = 25 MB; 1.5 times that is 35.8 MiB. A smaller window
    /// would be measured in place of the link.
    pub stream_window_bytes: u32,
    /// HTTP/2 receive window of a connection, in bytes. Default 64 MiB: above one stream's window,
    /// so that a stream whose reader pauses cannot block the others.
    pub connection_window_bytes: u32,
    /// Most concurrent calls on one connection; further ones wait at the client. Default 64.
    pub max_concurrent_streams: u32,
    /// Most calls that a server runs at once over all connections; a further one is refused as
    /// overloaded. Default 256.
    pub max_server_calls: usize,
    /// Longest wait for one TCP connection attempt, in milliseconds. Default 10 s.
    pub connect_timeout_ms: u64,
    /// Longest time that any call may take, in milliseconds: the deadline of publish and lookup,
    /// and the cap that a server puts on every call. Default 300 s, for a long prefill on a CPU.
    pub request_deadline_ms: u64,
    /// Interval of HTTP/2 pings while calls are open, in milliseconds. Default 20 s. A peer that
    /// vanishes without closing its socket is noticed after this and `keepalive_timeout_ms`.
    pub keepalive_interval_ms: u64,
    /// Longest wait for the answer to a ping, in milliseconds. Default 60 s, since a full queue on
    /// a slow link delays a ping by tens of seconds.
    pub keepalive_timeout_ms: u64,
    /// Longest time that a server lets open calls finish after its shutdown is asked for, in
    /// milliseconds; then they are ended. Default 5 s.
    pub drain_timeout_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_message_bytes: 8 * MIB as usize,
            max_text_bytes: MIB as usize,
            stream_window_bytes: 40 * MIB,
            connection_window_bytes: 64 * MIB,
            max_concurrent_streams: 64,
            max_server_calls: 256,
            connect_timeout_ms: 10_000,
            request_deadline_ms: 300_000,
            keepalive_interval_ms: 20_000,
            keepalive_timeout_ms: 60_000,
            drain_timeout_ms: 5_000,
        }
    }
}

impl Limits {
    /// Checks every bound.
    ///
    /// # Errors
    /// [`WireError::InvalidLimits`] names the first field that is out of range, and the range.
    pub fn validate(&self) -> Result<(), WireError> {
        let message = SMALLEST_MESSAGE_BYTES as u64..=1 << 30;
        let window = u64::from(u16::MAX)..=u64::from(LARGEST_WINDOW_BYTES);
        let wait = 1..=LONGEST_MS;
        let checks = [
            ("max_message_bytes", self.max_message_bytes as u64, message),
            (
                "max_text_bytes",
                self.max_text_bytes as u64,
                1..=self.max_message_bytes as u64,
            ),
            (
                "stream_window_bytes",
                u64::from(self.stream_window_bytes),
                window.clone(),
            ),
            (
                "connection_window_bytes",
                u64::from(self.connection_window_bytes),
                u64::from(self.stream_window_bytes)..=*window.end(),
            ),
            (
                "max_concurrent_streams",
                u64::from(self.max_concurrent_streams),
                1..=65_536,
            ),
            (
                "max_server_calls",
                self.max_server_calls as u64,
                1..=1_000_000,
            ),
            ("connect_timeout_ms", self.connect_timeout_ms, wait.clone()),
            (
                "request_deadline_ms",
                self.request_deadline_ms,
                wait.clone(),
            ),
            (
                "keepalive_interval_ms",
                self.keepalive_interval_ms,
                wait.clone(),
            ),
            (
                "keepalive_timeout_ms",
                self.keepalive_timeout_ms,
                wait.clone(),
            ),
            ("drain_timeout_ms", self.drain_timeout_ms, 0..=LONGEST_MS),
        ];
        for (field, value, range) in checks {
            if !range.contains(&value) {
                return Err(WireError::InvalidLimits {
                    field,
                    value,
                    least: *range.start(),
                    most: *range.end(),
                });
            }
        }
        Ok(())
    }

    /// Longest wait for one connection attempt.
    #[must_use]
    pub fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    /// Longest time that any call may take.
    #[must_use]
    pub fn request_deadline(&self) -> Duration {
        Duration::from_millis(self.request_deadline_ms)
    }

    /// Interval of HTTP/2 pings while calls are open.
    #[must_use]
    pub fn keepalive_interval(&self) -> Duration {
        Duration::from_millis(self.keepalive_interval_ms)
    }

    /// Longest wait for the answer to a ping.
    #[must_use]
    pub fn keepalive_timeout(&self) -> Duration {
        Duration::from_millis(self.keepalive_timeout_ms)
    }

    /// Longest time that open calls may still run after a shutdown was asked for.
    #[must_use]
    pub fn drain_timeout(&self) -> Duration {
        Duration::from_millis(self.drain_timeout_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_survive_toml() {
        let limits = Limits::default();
        limits.validate().unwrap();
        let text = toml::to_string(&limits).unwrap();
        assert_eq!(toml::from_str::<Limits>(&text).unwrap(), limits);
        assert_eq!(toml::from_str::<Limits>("").unwrap(), limits);
    }

    #[test]
    fn default_windows_cover_the_fastest_link() {
        let limits = Limits::default();
        let bdp_bytes = 1_000_000_000_u64 / 8 / 5; // 1 Gbit/s × 200 ms
        // h2 returns credit when the unclaimed part reaches half of what remains: W/3.
        assert!(u64::from(limits.stream_window_bytes) * 2 / 3 >= bdp_bytes);
        assert!(u64::from(limits.connection_window_bytes) * 2 / 3 >= bdp_bytes);
    }

    #[test]
    fn unknown_keys_are_refused() {
        let error = toml::from_str::<Limits>("max_mesage_bytes = 1").unwrap_err();
        assert!(error.to_string().contains("max_mesage_bytes"), "{error}");
    }

    #[test]
    fn every_bound_is_checked() {
        type Case = (&'static str, fn(&mut Limits));
        let cases: [Case; 9] = [
            ("max_message_bytes", |l| l.max_message_bytes = 10),
            ("max_text_bytes", |l| l.max_text_bytes = 1 << 29),
            ("stream_window_bytes", |l| l.stream_window_bytes = 1000),
            ("connection_window_bytes", |l| {
                l.connection_window_bytes = l.stream_window_bytes - 1;
            }),
            ("max_concurrent_streams", |l| l.max_concurrent_streams = 0),
            ("max_server_calls", |l| l.max_server_calls = 0),
            ("connect_timeout_ms", |l| l.connect_timeout_ms = 0),
            ("request_deadline_ms", |l| l.request_deadline_ms = u64::MAX),
            ("keepalive_interval_ms", |l| l.keepalive_interval_ms = 0),
        ];
        for (name, spoil) in cases {
            let mut limits = Limits::default();
            spoil(&mut limits);
            let error = limits.validate().unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
            assert_eq!(error.kind(), "invalid_limits");
        }
    }
}
