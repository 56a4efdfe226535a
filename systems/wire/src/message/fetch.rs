//! Fetching the KV of a context.

use std::time::Duration;

use celslm_kv::{BlockSpec, ContextId, KeyRope, KvChunk, ModelFingerprint};

use super::{
    context::{Variant, context_id},
    field,
};
use crate::codec::GRPC_FRAME_BYTES;
use crate::{TrailerBuilder, WireError, error::Invalid, proto};
use prost::Message as _;

/// Asks for the KV of a context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchRequest {
    /// The context.
    pub context_id: ContextId,
    /// Alignment and bridge.
    pub variant: Variant,
    /// Codec chain to encode with, as the codec registry writes it.
    pub codec: String,
    /// Most tokens in one chunk; at least 1.
    pub chunk_tokens: usize,
    /// First layer to send; the edge computes the layers below it.
    pub first_layer: usize,
    /// Longest time until the last message has arrived. Travels as `grpc-timeout`; in the cloud
    /// it is what was left. Capped by each side's `Limits::request_deadline`.
    pub deadline: Duration,
}

impl FetchRequest {
    pub(crate) fn into_proto(self) -> Result<proto::FetchRequest, Invalid> {
        const MESSAGE: &str = "FetchRequest";
        Ok(proto::FetchRequest {
            context_id: self.context_id.as_bytes().to_vec(),
            variant: Some(self.variant.into_proto()),
            codec: self.codec,
            chunk_tokens: field::narrow(MESSAGE, "chunk_tokens", self.chunk_tokens)?,
            first_layer: field::narrow(MESSAGE, "first_layer", self.first_layer)?,
        })
    }

    pub(crate) fn from_proto(
        request: proto::FetchRequest,
        deadline: Duration,
    ) -> Result<Self, Invalid> {
        const MESSAGE: &str = "FetchRequest";
        Ok(Self {
            context_id: context_id(MESSAGE, &request.context_id)?,
            variant: Variant::from_proto(MESSAGE, request.variant)?,
            codec: field::named(MESSAGE, "codec", request.codec, field::CODEC_BYTES)?,
            chunk_tokens: field::within(
                MESSAGE,
                "chunk_tokens",
                request.chunk_tokens,
                1..=field::MOST_TOKENS,
            )?,
            first_layer: field::layer(MESSAGE, "first_layer", request.first_layer)?,
            deadline,
        })
    }
}

/// One message of a fetch: one `Header`, the `Chunk`s with layers ascending and tokens ascending
/// within a layer, one `Trailer`.
#[derive(Clone, Debug, PartialEq)]
pub enum FetchEvent {
    /// What is about to come.
    Header(FetchHeader),
    /// One layer of a run of tokens.
    Chunk(FetchChunk),
    /// The last message.
    Trailer(FetchTrailer),
}

/// What a fetch is about to send; durations are the cloud's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchHeader {
    /// Model that the KV fits, shape, first layer, token positions, state of the keys.
    /// `spec.shape.num_layers` counts the layers sent, from `spec.first_layer` on.
    pub spec: BlockSpec,
    /// Codec chain that was asked for; a chunk states its own, which may differ.
    pub codec: String,
    /// The KV was in the store.
    pub store_hit: bool,
    /// Waiting for the cloud's compute, in nanoseconds.
    pub queue_ns: u64,
    /// Prefill of the context for this request, in nanoseconds.
    pub cloud_compute_ns: u64,
    /// Alignment and mapping for this request, in nanoseconds.
    pub align_ns: u64,
}

/// One encoded chunk and what its encoding took.
#[derive(Clone, Debug, PartialEq)]
pub struct FetchChunk {
    /// The chunk.
    pub chunk: KvChunk,
    /// Encoding in the cloud, in nanoseconds; 0 if it was stored encoded.
    pub encode_ns: u64,
}

/// Totals of a fetch; [`TrailerBuilder`](crate::TrailerBuilder) makes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchTrailer {
    /// Chunks sent.
    pub chunks: u64,
    /// Sum of payload lengths, in bytes.
    pub payload_bytes: u64,
    /// BLAKE3 over the chunk hashes in the order sent.
    pub hash: [u8; 32],
    /// Sum of the chunks' encoding times, in nanoseconds.
    pub encode_ns: u64,
}

impl FetchEvent {
    pub(crate) fn into_proto(self) -> Result<proto::FetchMessage, Invalid> {
        use proto::fetch_message::Event;
        let event = match self {
            Self::Header(header) => Event::Header(header.into_proto()?),
            Self::Chunk(chunk) => Event::Chunk(chunk.into_proto()?),
            Self::Trailer(trailer) => Event::Trailer(proto::Trailer {
                chunks: trailer.chunks,
                payload_bytes: trailer.payload_bytes,
                hash: trailer.hash.to_vec(),
                encode_ns: trailer.encode_ns,
            }),
        };
        Ok(proto::FetchMessage { event: Some(event) })
    }

    pub(crate) fn from_proto(message: proto::FetchMessage) -> Result<Self, Invalid> {
        use proto::fetch_message::Event;
        match message.event {
            Some(Event::Header(header)) => FetchHeader::from_proto(header).map(Self::Header),
            Some(Event::Chunk(chunk)) => FetchChunk::from_proto(chunk).map(Self::Chunk),
            Some(Event::Trailer(trailer)) => Ok(Self::Trailer(FetchTrailer {
                chunks: trailer.chunks,
                payload_bytes: trailer.payload_bytes,
                hash: field::hash("Trailer", "hash", &trailer.hash)?,
                encode_ns: trailer.encode_ns,
            })),
            None => Err(Invalid::new("FetchMessage", "event is missing")),
        }
    }
}

impl FetchHeader {
    fn into_proto(self) -> Result<proto::Header, Invalid> {
        const MESSAGE: &str = "Header";
        let positions = self.spec.positions;
        Ok(proto::Header {
            fingerprint: self.spec.fingerprint.as_bytes().to_vec(),
            shape: Some(field::shape_to_proto(MESSAGE, self.spec.shape)?),
            first_layer: field::narrow(MESSAGE, "first_layer", self.spec.first_layer)?,
            tokens_start: field::narrow(MESSAGE, "tokens_start", positions.start)?,
            tokens_end: field::narrow(MESSAGE, "tokens_end", positions.end)?,
            key_rope: match self.spec.rope {
                KeyRope::Pre => proto::KeyRope::Pre,
                KeyRope::Post => proto::KeyRope::Post,
            }
            .into(),
            codec: self.codec,
            store_hit: self.store_hit,
            queue_ns: self.queue_ns,
            cloud_compute_ns: self.cloud_compute_ns,
            align_ns: self.align_ns,
        })
    }

    fn from_proto(header: proto::Header) -> Result<Self, Invalid> {
        const MESSAGE: &str = "Header";
        let rope = match header.key_rope() {
            proto::KeyRope::Pre => KeyRope::Pre,
            proto::KeyRope::Post => KeyRope::Post,
            proto::KeyRope::Unspecified => {
                return Err(Invalid::new(
                    MESSAGE,
                    format!("key_rope {} is not known", header.key_rope),
                ));
            }
        };
        let spec = BlockSpec {
            fingerprint: ModelFingerprint::from_bytes(field::hash(
                MESSAGE,
                "fingerprint",
                &header.fingerprint,
            )?),
            shape: field::shape(MESSAGE, header.shape)?,
            first_layer: field::layer(MESSAGE, "first_layer", header.first_layer)?,
            positions: field::tokens(MESSAGE, header.tokens_start, header.tokens_end)?,
            rope,
        };
        spec.validate()
            .map_err(|error| Invalid::new(MESSAGE, error.to_string()))?;
        Ok(Self {
            spec,
            codec: field::named(MESSAGE, "codec", header.codec, field::CODEC_BYTES)?,
            store_hit: header.store_hit,
            queue_ns: header.queue_ns,
            cloud_compute_ns: header.cloud_compute_ns,
            align_ns: header.align_ns,
        })
    }
}

impl FetchChunk {
    fn into_proto(self) -> Result<proto::Chunk, Invalid> {
        const MESSAGE: &str = "Chunk";
        let Self { chunk, encode_ns } = self;
        Ok(proto::Chunk {
            layer: field::narrow(MESSAGE, "layer", chunk.layer)?,
            tokens_start: field::narrow(MESSAGE, "tokens_start", chunk.tokens.start)?,
            tokens_end: field::narrow(MESSAGE, "tokens_end", chunk.tokens.end)?,
            codec: chunk.codec,
            level: chunk.level.into(),
            // Takes the allocation over; nothing is copied before the send buffer.
            payload: chunk.payload.into(),
            hash: chunk.hash.to_vec(),
            encode_ns,
        })
    }

    fn from_proto(chunk: proto::Chunk) -> Result<Self, Invalid> {
        const MESSAGE: &str = "Chunk";
        Ok(Self {
            encode_ns: chunk.encode_ns,
            chunk: KvChunk {
                layer: field::layer(MESSAGE, "layer", chunk.layer)?,
                tokens: field::tokens(MESSAGE, chunk.tokens_start, chunk.tokens_end)?,
                codec: field::named(MESSAGE, "codec", chunk.codec, field::CODEC_BYTES)?,
                level: u8::try_from(chunk.level).map_err(|_| {
                    Invalid::new(MESSAGE, format!("level is {}, above 255", chunk.level))
                })?,
                payload: chunk.payload.into(),
                hash: field::hash(MESSAGE, "hash", &chunk.hash)?,
            },
        })
    }
}

/// Bytes of the messages that carry `chunks` of a block, header and trailer included, each with
/// its gRPC frame; without the framing of HTTP/2, TCP and IP. For sizes where nothing is sent: a
/// link's counters say what a real transfer took.
///
/// # Errors
/// A chunk or block that the protocol cannot express.
pub fn transfer_bytes(spec: &BlockSpec, codec: &str, chunks: &[KvChunk]) -> Result<u64, WireError> {
    let mut totals = TrailerBuilder::default();
    for chunk in chunks {
        totals.add(chunk, NOMINAL_NS);
    }
    let header = FetchHeader {
        spec: spec.clone(),
        codec: codec.to_owned(),
        store_hit: true,
        queue_ns: NOMINAL_NS,
        cloud_compute_ns: NOMINAL_NS,
        align_ns: 0,
    };
    let chunks = chunks.iter().cloned().map(|chunk| {
        FetchEvent::Chunk(FetchChunk {
            chunk,
            encode_ns: NOMINAL_NS,
        })
    });
    [FetchEvent::Header(header)]
        .into_iter()
        .chain(chunks)
        .chain([FetchEvent::Trailer(totals.finish())])
        .map(|event| Ok(event.into_proto()?.encoded_len() as u64 + GRPC_FRAME_BYTES))
        .sum()
}

/// A millisecond: durations are varints, so that their length depends on their size.
const NOMINAL_NS: u64 = 1_000_000;
