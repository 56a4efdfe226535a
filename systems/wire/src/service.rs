//! What the cloud node implements.

use std::future::Future;

use tokio::sync::mpsc;

use crate::{
    FetchEvent, FetchRequest, GenerateEvent, GenerateRequest, LookupReply, LookupRequest,
    PublishReply, PublishRequest, ServiceError,
};

/// The cloud's side of the protocol; implement the methods as `async fn`.
///
/// Requests arrive validated. A method that outlasts its deadline, or whose client goes away, is
/// dropped at its next await point; a stream's receiver is then dropped too, so a producer learns
/// of it when its `send` fails or its `is_closed` turns true, and should stop computing. Heavy
/// compute belongs on a blocking thread. A receiver is a bounded tokio channel: a slow link holds
/// the producer back instead of filling memory.
pub trait CloudService: Send + Sync + 'static {
    /// Registers a shared context. Must be idempotent.
    ///
    /// # Errors
    /// [`ServiceError::Unsupported`] for a model that is not hosted, and what else applies.
    fn publish(
        &self,
        request: PublishRequest,
    ) -> impl Future<Output = Result<PublishReply, ServiceError>> + Send;

    /// States what is known about a context, without computing.
    ///
    /// # Errors
    /// [`ServiceError::Unsupported`] for an unknown variant; an unknown context is not an error.
    fn lookup(
        &self,
        request: LookupRequest,
    ) -> impl Future<Output = Result<LookupReply, ServiceError>> + Send;

    /// Starts to stream the KV of a context: one header, chunks, one trailer (see
    /// [`TrailerBuilder`](crate::TrailerBuilder)). A channel that closes before its trailer
    /// reaches the edge as [`ServiceError::Internal`].
    ///
    /// # Errors
    /// [`ServiceError::NotFound`] for an unknown context or bridge, and what else applies.
    fn fetch(
        &self,
        request: FetchRequest,
    ) -> impl Future<Output = Result<mpsc::Receiver<Result<FetchEvent, ServiceError>>, ServiceError>>
    + Send;

    /// Starts to answer a private prompt: one `Started`, tokens, one `Finished`. A channel that
    /// closes before `Finished` reaches the edge as [`ServiceError::Internal`]. The `caller` is the
    /// same for all calls of a connection, so that a cloud can be fair to its edges.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`] for an unknown context, and what else applies.
    fn generate(
        &self,
        caller: u32,
        request: GenerateRequest,
    ) -> impl Future<
        Output = Result<mpsc::Receiver<Result<GenerateEvent, ServiceError>>, ServiceError>,
    > + Send;
}
