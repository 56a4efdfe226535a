//! The gRPC codec: prost, with the message bytes of each call counted where they pass.

use std::{
    fmt,
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use prost::{Message, bytes::Buf};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use crate::error::Invalid;

/// Bytes that gRPC puts before each message: a compression flag and a length.
pub const GRPC_FRAME_BYTES: u64 = 5;

/// Message bytes of one call, each message with its gRPC frame; HTTP/2, TCP and IP headers are
/// not in it (the link counts those).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes from the edge to the cloud.
    pub uplink_payload_bytes: u64,
    /// Bytes from the cloud to the edge.
    pub downlink_payload_bytes: u64,
}

/// The counters that one call's codec writes and its stream reads.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Counters {
    /// The counts so far, as seen from the client.
    pub(crate) fn traffic(&self) -> Traffic {
        Traffic {
            uplink_payload_bytes: self.sent.load(Ordering::Relaxed),
            downlink_payload_bytes: self.received.load(Ordering::Relaxed),
        }
    }
}

/// Prost messages with counters; the server uses it without reading them.
pub(crate) struct WireCodec<T, U> {
    counters: Arc<Counters>,
    messages: PhantomData<fn(T) -> U>,
}

impl<T, U> WireCodec<T, U> {
    pub(crate) fn new(counters: Arc<Counters>) -> Self {
        Self {
            counters,
            messages: PhantomData,
        }
    }
}

impl<T, U> Default for WireCodec<T, U> {
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

impl<T, U> fmt::Debug for WireCodec<T, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WireCodec")
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

impl<T, U> Codec for WireCodec<T, U>
where
    T: Message + 'static,
    U: Message + Default + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = WireCodec<T, U>;
    type Decoder = WireCodec<T, U>;

    fn encoder(&mut self) -> Self::Encoder {
        Self::new(Arc::clone(&self.counters))
    }

    fn decoder(&mut self) -> Self::Decoder {
        Self::new(Arc::clone(&self.counters))
    }
}

impl<T: Message, U> Encoder for WireCodec<T, U> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let len = item.encoded_len();
        buf.reserve(len);
        item.encode(buf)
            .map_err(|error| Status::internal(format!("message does not encode: {error}")))?;
        self.counters
            .sent
            .fetch_add(len as u64 + GRPC_FRAME_BYTES, Ordering::Relaxed);
        Ok(())
    }
}

impl<T, U: Message + Default> Decoder for WireCodec<T, U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // Counted before decoding: the bytes crossed the link whether or not they make sense.
        self.counters
            .received
            .fetch_add(buf.remaining() as u64 + GRPC_FRAME_BYTES, Ordering::Relaxed);
        U::decode(buf).map(Some).map_err(|error| {
            let invalid = Invalid::new(short_name::<U>(), format!("does not decode: {error}"));
            let mut status = Status::invalid_argument(invalid.to_string());
            status.set_source(Arc::new(invalid));
            status
        })
    }
}

/// The message's own name, without its path.
fn short_name<U>() -> &'static str {
    let name = std::any::type_name::<U>();
    name.rsplit("::").next().unwrap_or(name)
}
