//! The systems under test, and the two nodes that run them.
//!
//! - [`system`]: the trait, the registry, one file per system; they run at the edge.
//! - [`schedule`]: how loading KV and computing the prompt overlap.
//! - [`edge`] and [`cloud`]: the node processes.
//! - [`engine`]: one model, many sessions at once.
//! - [`mapping`]: an edge that maps the cloud model's KV by itself.
//! - [`openai`]: a client of serving engines behind the OpenAI API.
//! - [`control`]: how a controller drives them, outside the measured path.
//! - [`rates`]: how fast a device computes, as device profiles state it.
//! - [`timeline`]: where the time to the first token went.

pub mod answer;
pub mod clock;
pub mod cloud;
mod codecs;
pub mod control;
pub mod edge;
pub mod engine;
mod flights;
pub mod mapping;
pub mod openai;
mod prefix_cache;
pub mod rates;
pub mod schedule;
pub mod spec;
pub mod system;
pub mod timeline;
mod workers;

pub use answer::{Answer, ContextRef, Request, SystemError};
pub use celslm_model::LoadedModel;
/// Bounds of the protocol between the nodes, and the size of what it carries.
pub use celslm_wire::{Limits as WireLimits, WireError, transfer_bytes};
pub use schedule::ScheduleKind;
pub use spec::{Contract, DEFAULT_CHUNK_TOKENS, KvPath, SystemSpec};
pub use system::{CloudNeed, SystemEntry, registry};
