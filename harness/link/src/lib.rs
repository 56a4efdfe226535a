//! Link emulation: an edge and a cloud in network namespaces of their own, joined by a path that
//! delays, limits and loses packets as a profile says, and measures itself.
//!
//! [`Link::start`] starts the link host, a process of its own ([`host_main`]), which makes the
//! namespaces and the devices, moves the packets and runs the node processes. Control goes over
//! a Unix socket, never over the emulated path.

mod calibration;
mod client;
mod clock;
pub mod core;
mod counters;
mod error;
mod facts;
mod host;
mod node;
mod probe;
pub mod profile;
mod protocol;
pub mod trace;

pub use calibration::{
    CalibrateOptions, Calibration, Figure, MeasuredRate, RateMethod, Tolerances, Verdict,
};
pub use client::{HostOptions, Link};
pub use counters::{Audit, Counters, TrafficCounters};
pub use error::LinkError;
pub use facts::{
    BACKENDS, Backend, BackendAttempt, BackendChoice, BackendInfo, DeviceChoice, LinkFacts,
    Scheduling,
};
pub use host::{be_punctual_sender, host_main};
pub use node::{Leg, Node, NodeCommand, NodeExit, NodeSignal, ProcessId};
pub use probe::{Capabilities, Capability, probe};
pub use profile::{Impairments, LinkProfile, ProfileError};
