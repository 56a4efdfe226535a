//! The store's only reading of the clock: it bounds waits and paces progress lines, and no
//! measurement uses it.

use std::time::Instant;

/// The current monotonic time.
#[expect(
    clippy::disallowed_methods,
    reason = "time-outs and progress lines only; nothing measured comes from here"
)]
pub(super) fn now() -> Instant {
    Instant::now()
}
