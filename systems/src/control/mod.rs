//! Control of the nodes by the controller: JSON lines over a Unix socket, outside the measured
//! path. A socket serves one controller at a time, one command at a time.

mod client;
mod message;
mod server;

pub use client::{ControlClient, ControlError};
pub use message::{CloudCommand, CloudReply, EdgeCommand, EdgeReply, PublishedContext};
pub use server::{ControlListener, Flow};

/// Longest line either side reads, in bytes: a context of 1 MiB of text fits with its escapes.
const MAX_LINE_BYTES: u64 = 8 << 20;
