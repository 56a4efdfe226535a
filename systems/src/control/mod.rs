//! Control of the nodes by the controller: JSON lines over a Unix socket, outside the measured
//! path. A socket serves one controller at a time; its commands may overlap, and the replies
//! come in any order.

mod client;
mod message;
mod server;

pub use client::{ControlClient, ControlError, ControlResult, Encoded};
pub use message::{CloudCommand, CloudReply, EdgeCommand, EdgeReply, PublishedContext, RecordItem};
pub use server::{ControlListener, Flow, Reply};

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Longest line either side reads, in bytes: a context of 1 MiB of text fits with its escapes.
const MAX_LINE_BYTES: u64 = 8 << 20;

/// Most commands of one connection that wait for their replies.
pub const MAX_OUTSTANDING: usize = 4096;

/// Longest wait for a peer that does not read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// A line as it is written. A reply without a body tells that its command was given up.
#[derive(Serialize)]
struct Outgoing<'a, T> {
    id: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a T>,
}

/// A line as it is read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Incoming<T> {
    id: u64,
    #[serde(default = "Option::default")]
    body: Option<T>,
}

#[cfg(test)]
mod tests;
