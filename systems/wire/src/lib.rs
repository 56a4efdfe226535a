//! The protocol between edge and cloud: proto, conversion, streaming. The only crate that knows
//! tonic.
//!
//! - [`CloudService`] is what the cloud node implements; [`serve`] puts it on a bound listener.
//! - [`CloudClient`] is what the edge node calls. Its streams check what arrives: order, token
//!   ranges, BLAKE3 of every chunk, totals of the trailer.
//! - [`Limits`] bounds every message, window, wait and queue.
//! - Nothing that the network sends can panic: a bad message is a [`WireError`].
//!
//! Private text travels in [`GenerateRequest`] only; the messages of the context store have no
//! field for it.

mod client;
mod codec;
mod error;
mod limits;
mod message;
mod proto;
mod server;
mod service;
mod stream;
mod verify;

pub use client::CloudClient;
pub use codec::{GRPC_FRAME_BYTES, Traffic};
pub use error::{ServiceError, WireError};
pub use limits::Limits;
pub use message::{
    ContextContent, ContextEntry, FetchChunk, FetchEvent, FetchHeader, FetchRequest, FetchTrailer,
    FinishReason, GenerateEvent, GenerateFinished, GenerateRequest, GenerateStarted, GenerateToken,
    LookupReply, LookupRequest, PublishReply, PublishRequest, Sampling, Variant, transfer_bytes,
};
pub use server::{bind, serve};
pub use service::CloudService;
pub use stream::{FetchStream, Reply, TokenStream};
pub use verify::TrailerBuilder;
