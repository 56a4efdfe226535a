//! The engine: one model that many sessions share by continuous batching.
//!
//! Every step is one ragged forward pass: the next token of every session that generates, and
//! beside them up to [`EngineLimits::step_tokens`] tokens of prompts and contexts, drawn fairly
//! from the clients. A context is prefilled once however many ask for it, and held once however
//! many continue it. A prompt whose context is still arriving runs layer by layer between the
//! steps, as far as its schedule lets it.
//!
//! Nothing that a session gets depends on what else is in the batch: its pieces are cut at fixed
//! places of its own prompt, it draws from its own seed, and the decoder computes a row from that
//! row's tokens and cache alone.
//!
//! - `limits`, `fair`, `scheduler`: policy, without a clock or a model.
//! - `times`: in which state a job spends each moment.
//! - `session`, `context`, `arrival`: the two kinds of jobs, and KV on its way.
//! - `handle`: what a caller holds; `shared`: what it shares with the thread; `worker`: the thread.
//! - `stats`: what the engine says of itself.

mod arrival;
mod context;
mod fair;
mod handle;
mod limits;
mod scheduler;
mod session;
mod shared;
mod stats;
#[cfg(test)]
mod tests;
mod times;
mod worker;

pub use arrival::ArrivingKv;
pub use handle::{
    ContextHandle, ContextKv, ContextOutput, ContextReady, ContextRequest, Ending, Prefilled,
    SessionContext, SessionEnd, SessionEvent, SessionHandle, SessionRequest, Token,
};
pub use limits::{EngineLimits, Pace};
pub use shared::Engine;
pub use stats::{EngineStats, NodeStats};
pub use times::Times;
