//! The crate's only source of time.

use std::time::{Duration, Instant};

/// Monotonic time since an origin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock that starts at zero now.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place where this crate reads a clock"
    )]
    pub(crate) fn start() -> Self {
        Self {
            origin: Instant::now(),
        }
    }

    /// A clock that was at zero when this one was at `time`.
    pub(crate) fn since(self, time: Duration) -> Self {
        Self {
            origin: self.origin + time,
        }
    }

    /// Time since the origin.
    pub(crate) fn now(&self) -> Duration {
        self.origin.elapsed()
    }
}
