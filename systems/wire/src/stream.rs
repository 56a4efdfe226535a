//! The edge's ends of the streams.

use std::{fmt, pin::Pin, sync::Arc};

use tokio::time::Sleep;
use tonic::Streaming;

use crate::{
    FetchEvent, GenerateEvent, WireError,
    codec::{Counters, Traffic},
    error::Progress,
    verify::{FetchVerifier, GenerateVerifier, Verifier},
};

/// The answer to a unary call, and the message bytes that it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply<T> {
    /// The answer.
    pub value: T,
    /// Message bytes of this call.
    pub traffic: Traffic,
}

/// An open response stream under its call's deadline.
pub(crate) struct Incoming<M> {
    pub(crate) messages: Streaming<M>,
    pub(crate) expiry: Pin<Box<Sleep>>,
    pub(crate) progress: Progress,
}

impl<M> Incoming<M> {
    /// The next message, or `None` at an orderly end. Safe to cancel.
    async fn message(&mut self) -> Result<Option<M>, WireError> {
        tokio::select! {
            biased;
            message = self.messages.message() => message.map_err(|status| self.progress.error(&status)),
            () = &mut self.expiry => Err(self.progress.deadline_passed()),
        }
    }
}

/// A response stream, its checks, and its byte counts.
struct Checked<V: Verifier> {
    /// `None` once the stream has ended; dropping it resets the HTTP/2 stream.
    incoming: Option<Incoming<V::Message>>,
    verifier: V,
    counters: Arc<Counters>,
}

impl<V: Verifier> Checked<V> {
    async fn next(&mut self) -> Option<Result<V::Event, WireError>> {
        let result = self.advance().await;
        if !matches!(result, Ok(Some(_))) {
            self.incoming = None;
        }
        result.transpose()
    }

    async fn advance(&mut self) -> Result<Option<V::Event>, WireError> {
        let Some(incoming) = &mut self.incoming else {
            return Ok(None);
        };
        incoming.progress.received = self.verifier.received();
        match incoming.message().await {
            Ok(Some(message)) => self.verifier.accept(message).map(Some),
            Ok(None) if self.verifier.is_complete() => Ok(None),
            Ok(None) => Err(incoming
                .progress
                .interrupted("the stream ended without its last message")),
            // The last message has come and agreed: whatever breaks now loses nothing.
            Err(WireError::Interrupted { .. } | WireError::Deadline { .. })
                if self.verifier.is_complete() =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl<V: Verifier> fmt::Debug for Checked<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checked")
            .field("open", &self.incoming.is_some())
            .field("verifier", &self.verifier)
            .field("traffic", &self.counters.traffic())
            .finish()
    }
}

/// The chunks of one fetch, checked as they arrive. Dropping it cancels the call in the cloud.
#[derive(Debug)]
pub struct FetchStream(Checked<FetchVerifier>);

/// The tokens of one generation, checked as they arrive. Dropping it cancels the call in the
/// cloud.
#[derive(Debug)]
pub struct TokenStream(Checked<GenerateVerifier>);

impl FetchStream {
    pub(crate) fn new(
        incoming: Incoming<<FetchVerifier as Verifier>::Message>,
        verifier: FetchVerifier,
        counters: Arc<Counters>,
    ) -> Self {
        Self(Checked {
            incoming: Some(incoming),
            verifier,
            counters,
        })
    }

    /// The next message; `None` after the trailer, and after the first error. Safe to cancel: no
    /// message is lost if this future is dropped.
    ///
    /// A chunk that is returned has a matching BLAKE3 and is the one due: layers ascend from the
    /// one asked for, tokens tile the header's range in order, at most `chunk_tokens` at a time.
    /// A trailer that is returned agrees with what was received, and every layer is complete.
    ///
    /// # Errors
    /// [`WireError::CorruptChunk`], [`WireError::OutOfOrder`], [`WireError::InvalidMessage`] and
    /// [`WireError::TooLarge`] for what the cloud must not send, [`WireError::Interrupted`] when
    /// the stream breaks off, [`WireError::Deadline`], and the cloud's [`WireError::Service`].
    pub async fn next(&mut self) -> Option<Result<FetchEvent, WireError>> {
        self.0.next().await
    }

    /// Message bytes of this call so far, both directions, gRPC frames included.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.0.counters.traffic()
    }

    /// Message bytes sent so far.
    #[must_use]
    pub fn uplink_payload_bytes(&self) -> u64 {
        self.traffic().uplink_payload_bytes
    }

    /// Message bytes received so far.
    #[must_use]
    pub fn downlink_payload_bytes(&self) -> u64 {
        self.traffic().downlink_payload_bytes
    }
}

impl TokenStream {
    pub(crate) fn new(
        incoming: Incoming<<GenerateVerifier as Verifier>::Message>,
        verifier: GenerateVerifier,
        counters: Arc<Counters>,
    ) -> Self {
        Self(Checked {
            incoming: Some(incoming),
            verifier,
            counters,
        })
    }

    /// The next message; `None` after `Finished`, and after the first error. Safe to cancel.
    /// Tokens come with indices 0, 1, 2, … and `Finished` agrees with their count.
    ///
    /// # Errors
    /// As [`FetchStream::next`], except for corrupt chunks.
    pub async fn next(&mut self) -> Option<Result<GenerateEvent, WireError>> {
        self.0.next().await
    }

    /// Message bytes of this call so far, both directions, gRPC frames included.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.0.counters.traffic()
    }

    /// Message bytes sent so far; the prompt is in them.
    #[must_use]
    pub fn uplink_payload_bytes(&self) -> u64 {
        self.traffic().uplink_payload_bytes
    }

    /// Message bytes received so far.
    #[must_use]
    pub fn downlink_payload_bytes(&self) -> u64 {
        self.traffic().downlink_payload_bytes
    }
}
