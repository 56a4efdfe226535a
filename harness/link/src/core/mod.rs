//! One direction of a link, without any input or output of its own.
//!
//! Time is a [`Duration`] since an origin that the caller chooses, so the same code runs under
//! the packet thread's clock and under a virtual clock in tests. Semantics are those of the
//! kernel's netem discipline: a loss draw, then the queue bound, then
//! `departure = max(now + delay, last) + tx`.

mod delay;
mod direction;
mod loss;
mod packet;
mod queue;
mod rate;
mod stream;

pub use delay::Delay;
pub use direction::{
    Departure, Direction, DirectionCounters, DirectionSettings, DropReason, Verdict,
};
pub use loss::Loss;
pub use packet::Packet;
pub use queue::Queue;
pub use rate::Rate;
pub use stream::stream;
