//! The crate's own message types, and their conversion to and from the proto with validation.

mod context;
mod fetch;
mod field;
mod generate;
#[cfg(test)]
mod tests;

pub use context::{
    ContextContent, ContextEntry, LookupReply, LookupRequest, PublishReply, PublishRequest, Variant,
};
pub use fetch::{FetchChunk, FetchEvent, FetchHeader, FetchRequest, FetchTrailer, transfer_bytes};
pub use generate::{
    FinishReason, GenerateEvent, GenerateFinished, GenerateRequest, GenerateStarted, GenerateToken,
    Sampling,
};
