//! One direction of a link, without any input or output of its own.
//!
//! Time is a [`Duration`](std::time::Duration) since an origin that the caller chooses, so the
//! same code runs under the packet thread's clock and under a virtual clock in tests. Semantics
//! are those of the kernel's netem discipline wherever it has them; [`Direction`] says in which
//! order impairments act, and each has a file of its own.

mod chance;
mod codel;
mod corrupt;
mod delay;
mod direction;
mod duplicate;
mod encoded;
mod four_state;
mod gilbert_elliott;
mod jitter;
mod loss;
mod outages;
mod packet;
mod queue;
mod rate;
mod reorder;
mod settings;
mod stream;
mod trace;

pub use codel::CoDel;
pub use corrupt::{Corrupt, Flip};
pub use delay::Delay;
pub use direction::{Departure, Direction, DirectionCounters, DropReason, Fate, Verdict};
pub use duplicate::Duplicate;
pub(crate) use encoded::encoded_bytes;
pub use loss::Loss;
pub use outages::Cuts;
pub use packet::Packet;
pub use queue::{Queue, Rank};
pub use rate::{Rate, Turn, transmission};
pub use reorder::ReorderGap;
pub use settings::{
    Bandwidth, DirectionSettings, Discipline, Framing, Jitter, LossModel, Outage, OutageMode,
    Outages, QueueLimit, QueueSettings, Reorder,
};
pub use stream::stream;
pub use trace::{BandwidthTrace, OPPORTUNITY_BYTES, Opportunities, Step, Steps, TraceProblem};
pub(crate) use trace::{MAX_BITS_PER_SECOND, MAX_DELAY, MAX_PERIOD};
