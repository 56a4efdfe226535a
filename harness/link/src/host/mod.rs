//! The link host: the process that holds the namespaces, the devices and the nodes.
//!
//! It exists because namespaces belong to threads: it is started before any runtime exists, and
//! each of its threads that enters a namespace does nothing else. Whatever it makes is held by
//! its file descriptors and its children alone, so its death, however sudden, leaves nothing.

mod backend;
mod calibrate;
mod device;
mod namespace;
mod netem;
mod netlink;
mod nodes;
mod offload;
mod packet;
mod port;
mod probing;
mod scheduling;
mod serve;
mod sys;
mod sysctl;

pub(crate) use device::address as device_address;
pub(crate) use nodes::place;
pub use scheduling::be_punctual_sender;
pub use serve::host_main;
