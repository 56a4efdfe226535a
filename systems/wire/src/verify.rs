//! What the edge checks in the streams that it receives.

use std::{fmt, ops::Range};

use celslm_kv::KvChunk;

use crate::{
    FetchChunk, FetchEvent, FetchHeader, FetchTrailer, FinishReason, GenerateEvent, WireError,
    proto,
};

/// Adds up what a fetch sends, on both sides: the cloud to make the trailer, the edge to check it.
///
/// ```
/// # use celslm_wire::TrailerBuilder;
/// let trailer = TrailerBuilder::default().finish();
/// assert_eq!((trailer.chunks, trailer.payload_bytes), (0, 0));
/// ```
#[derive(Clone, Debug, Default)]
pub struct TrailerBuilder {
    chunks: u64,
    payload_bytes: u64,
    encode_ns: u64,
    hasher: blake3::Hasher,
}

impl TrailerBuilder {
    /// Counts one chunk, in the order of sending.
    pub fn add(&mut self, chunk: &KvChunk, encode_ns: u64) {
        self.chunks += 1;
        self.payload_bytes = self
            .payload_bytes
            .saturating_add(chunk.payload.len() as u64);
        self.encode_ns = self.encode_ns.saturating_add(encode_ns);
        self.hasher.update(&chunk.hash);
    }

    /// The totals so far.
    #[must_use]
    pub fn finish(&self) -> FetchTrailer {
        FetchTrailer {
            chunks: self.chunks,
            payload_bytes: self.payload_bytes,
            hash: *self.hasher.finalize().as_bytes(),
            encode_ns: self.encode_ns,
        }
    }
}

/// Follows one response stream, from message to checked event.
pub(crate) trait Verifier: fmt::Debug {
    /// The proto's message.
    type Message;
    /// The crate's own type.
    type Event;

    /// Converts and checks the next message.
    fn accept(&mut self, message: Self::Message) -> Result<Self::Event, WireError>;

    /// Good chunks or tokens so far.
    fn received(&self) -> u64;

    /// The last message has come and agreed.
    fn is_complete(&self) -> bool;
}

/// Follows one fetch. A stream passes only if its chunks tile layers × tokens of its header
/// exactly once, in order, and its trailer agrees.
#[derive(Debug)]
pub(crate) struct FetchVerifier {
    first_layer: usize,
    chunk_tokens: usize,
    codec: String,
    totals: TrailerBuilder,
    state: FetchState,
}

#[derive(Debug)]
enum FetchState {
    Header,
    Chunks {
        layers: Range<usize>,
        tokens: Range<usize>,
        /// Where the next chunk must start.
        layer: usize,
        token: usize,
    },
    Complete,
}

impl FetchVerifier {
    /// Expects the answer to a request with these fields.
    pub(crate) fn new(first_layer: usize, chunk_tokens: usize, codec: String) -> Self {
        Self {
            first_layer,
            chunk_tokens,
            codec,
            totals: TrailerBuilder::default(),
            state: FetchState::Header,
        }
    }

    fn check(&mut self, event: &FetchEvent) -> Result<(), WireError> {
        match event {
            FetchEvent::Header(header) => self.accept_header(header),
            FetchEvent::Chunk(chunk) => self.accept_chunk(chunk),
            FetchEvent::Trailer(trailer) => self.accept_trailer(trailer),
        }
    }

    fn accept_header(&mut self, header: &FetchHeader) -> Result<(), WireError> {
        if !matches!(self.state, FetchState::Header) {
            return Err(out_of_order("fetch", "a second header"));
        }
        if header.spec.first_layer != self.first_layer {
            return Err(out_of_order(
                "fetch",
                format!(
                    "header starts at layer {}, layer {} was asked for",
                    header.spec.first_layer, self.first_layer
                ),
            ));
        }
        if header.codec != self.codec {
            return Err(out_of_order(
                "fetch",
                format!(
                    "header states codec {:?}, {:?} was asked for",
                    header.codec, self.codec
                ),
            ));
        }
        let (layers, tokens) = (header.spec.layer_range(), header.spec.positions.clone());
        self.state = FetchState::Chunks {
            layer: layers.start,
            token: tokens.start,
            layers,
            tokens,
        };
        Ok(())
    }

    fn accept_chunk(
        &mut self,
        FetchChunk { chunk, encode_ns }: &FetchChunk,
    ) -> Result<(), WireError> {
        let FetchState::Chunks {
            layers,
            tokens,
            layer,
            token,
        } = &mut self.state
        else {
            return Err(out_of_order(
                "fetch",
                "a chunk before the header or after the trailer",
            ));
        };
        // The hash covers layer and tokens, so a flipped bit there is corruption, not disorder.
        chunk.verify().map_err(|source| WireError::CorruptChunk {
            layer: chunk.layer,
            tokens: chunk.tokens.clone(),
            source,
        })?;
        if *layer == layers.end {
            return Err(out_of_order(
                "fetch",
                format!("a chunk of layer {} after the last one", chunk.layer),
            ));
        }
        let most = token.saturating_add(self.chunk_tokens).min(tokens.end);
        if chunk.layer != *layer || chunk.tokens.start != *token || chunk.tokens.end > most {
            return Err(out_of_order(
                "fetch",
                format!(
                    "chunk of layer {} tokens {}..{}, expected layer {layer} tokens {token}..{most}",
                    chunk.layer, chunk.tokens.start, chunk.tokens.end
                ),
            ));
        }
        *token = chunk.tokens.end;
        if *token == tokens.end {
            *token = tokens.start;
            *layer += 1;
        }
        self.totals.add(chunk, *encode_ns);
        Ok(())
    }

    fn accept_trailer(&mut self, trailer: &FetchTrailer) -> Result<(), WireError> {
        match &self.state {
            FetchState::Chunks { layers, layer, .. } if *layer == layers.end => {}
            FetchState::Chunks { layer, token, .. } => {
                return Err(out_of_order(
                    "fetch",
                    format!("trailer before layer {layer} token {token}"),
                ));
            }
            _ => {
                return Err(out_of_order(
                    "fetch",
                    "a trailer before the header or twice",
                ));
            }
        }
        let totals = self.totals.finish();
        if *trailer != totals {
            return Err(out_of_order(
                "fetch",
                format!(
                    "trailer states {} chunks, {} payload bytes, {} ns of encoding; received {}, {}, \
                     {}{}",
                    trailer.chunks,
                    trailer.payload_bytes,
                    trailer.encode_ns,
                    totals.chunks,
                    totals.payload_bytes,
                    totals.encode_ns,
                    if trailer.hash == totals.hash {
                        ""
                    } else {
                        "; the hashes differ"
                    },
                ),
            ));
        }
        self.state = FetchState::Complete;
        Ok(())
    }
}

impl Verifier for FetchVerifier {
    type Message = proto::FetchMessage;
    type Event = FetchEvent;

    fn accept(&mut self, message: proto::FetchMessage) -> Result<FetchEvent, WireError> {
        let event = FetchEvent::from_proto(message)?;
        self.check(&event)?;
        Ok(event)
    }

    fn received(&self) -> u64 {
        self.totals.chunks
    }

    fn is_complete(&self) -> bool {
        matches!(self.state, FetchState::Complete)
    }
}

/// Follows one generation.
#[derive(Debug)]
pub(crate) struct GenerateVerifier {
    max_tokens: usize,
    received: usize,
    started: bool,
    complete: bool,
}

impl GenerateVerifier {
    /// Expects at most `max_tokens` tokens.
    pub(crate) fn new(max_tokens: usize) -> Self {
        Self {
            max_tokens,
            received: 0,
            started: false,
            complete: false,
        }
    }

    fn check(&mut self, event: &GenerateEvent) -> Result<(), WireError> {
        let fail = |reason: String| Err(out_of_order("generate", reason));
        if self.complete {
            return fail("a message after the last one".to_owned());
        }
        match event {
            GenerateEvent::Started(_) if self.started => fail("started twice".to_owned()),
            GenerateEvent::Started(_) => {
                self.started = true;
                Ok(())
            }
            _ if !self.started => fail("a message before the start".to_owned()),
            GenerateEvent::Token(token) if token.index != self.received => fail(format!(
                "token {} where token {} was expected",
                token.index, self.received
            )),
            GenerateEvent::Token(_) if self.received == self.max_tokens => fail(format!(
                "more than the {} tokens that were asked for",
                self.max_tokens
            )),
            GenerateEvent::Token(_) => {
                self.received += 1;
                Ok(())
            }
            GenerateEvent::Finished(finished) => {
                let full = self.received == self.max_tokens;
                if finished.output_tokens != self.received {
                    return fail(format!(
                        "the end states {} tokens, received {}",
                        finished.output_tokens, self.received
                    ));
                }
                if finished.reason == FinishReason::MaxTokens && !full {
                    return fail(format!(
                        "ended as full after {} of {} tokens",
                        self.received, self.max_tokens
                    ));
                }
                self.complete = true;
                Ok(())
            }
        }
    }
}

impl Verifier for GenerateVerifier {
    type Message = proto::GenerateMessage;
    type Event = GenerateEvent;

    fn accept(&mut self, message: proto::GenerateMessage) -> Result<GenerateEvent, WireError> {
        let event = GenerateEvent::from_proto(message)?;
        self.check(&event)?;
        Ok(event)
    }

    fn received(&self) -> u64 {
        self.received as u64
    }

    fn is_complete(&self) -> bool {
        self.complete
    }
}

fn out_of_order(call: &'static str, reason: impl Into<String>) -> WireError {
    WireError::OutOfOrder {
        call,
        reason: reason.into(),
    }
}
