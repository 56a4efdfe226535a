//! The cloud's side of the protocol: a [`CloudService`] on a listener.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use prost::Message;
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::Sleep,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
    metadata::MetadataMap,
    transport::{Server, server::TcpIncoming},
};

use crate::{
    CloudService, FetchEvent, FetchRequest, GenerateEvent, GenerateRequest, Limits, LookupRequest,
    PublishRequest, ServiceError, WireError,
    error::Invalid,
    proto::{
        self,
        context_store_server::{ContextStore, ContextStoreServer},
        generation_server::{Generation, GenerationServer},
    },
};

/// Time for streams to deliver their last error after the drain, before sockets are left to the
/// process's end.
const FAREWELL: Duration = Duration::from_millis(500);

/// Binds a listener for [`serve`].
///
/// # Errors
/// [`WireError::AddressInUse`] if something listens there, else [`WireError::Bind`].
pub async fn bind(addr: SocketAddr) -> Result<TcpListener, WireError> {
    TcpListener::bind(addr).await.map_err(|source| {
        if source.kind() == io::ErrorKind::AddrInUse {
            WireError::AddressInUse { addr }
        } else {
            WireError::Bind { addr, source }
        }
    })
}

/// Serves `service` on `listener` until `shutdown` completes, then refuses new calls, lets open
/// ones finish for [`Limits::drain_timeout`], and ends the rest as unavailable. Dropping the
/// future ends open calls too.
///
/// # Errors
/// [`WireError::InvalidLimits`], or [`WireError::Serve`] if the transport fails.
pub async fn serve<S: CloudService>(
    listener: TcpListener,
    service: S,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) -> Result<(), WireError> {
    limits.validate()?;
    let (closing, closed) = watch::channel(false);
    let (stop, stopped) = oneshot::channel::<()>();
    let drain_timeout = limits.drain_timeout();
    let builder = Server::builder()
        .initial_stream_window_size(limits.stream_window_bytes)
        .initial_connection_window_size(limits.connection_window_bytes)
        .max_concurrent_streams(limits.max_concurrent_streams)
        .http2_keepalive_interval(Some(limits.keepalive_interval()))
        .http2_keepalive_timeout(Some(limits.keepalive_timeout()));
    let router = Router::new(Adapter {
        service: Arc::new(service),
        calls: Arc::new(Semaphore::new(limits.max_server_calls)),
        limits: Arc::new(limits),
        closed,
    });
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = builder.serve_with_incoming_shutdown(router, incoming, async {
        // A dropped sender means the same as a sent stop.
        let _ = stopped.await;
    });
    let mut server = std::pin::pin!(server);
    let mut result = tokio::select! {
        result = &mut server => Some(result),
        () = shutdown => None,
    };
    if result.is_none() {
        let _ = stop.send(());
        result = tokio::time::timeout(drain_timeout, &mut server).await.ok();
    }
    if result.is_none() {
        let _ = closing.send(true);
        result = tokio::time::timeout(FAREWELL, &mut server).await.ok();
    }
    // A peer that reads nothing may keep its socket open beyond the farewell; its calls have been
    // ended, so nothing is computed for it any more.
    result.unwrap_or(Ok(())).map_err(|error| WireError::Serve {
        source: error.into(),
    })
}

/// Sends a request to the service named in its path; two services need no routing framework.
struct Router<S> {
    store: ContextStoreServer<Adapter<S>>,
    generation: GenerationServer<Adapter<S>>,
}

impl<S: CloudService> Router<S> {
    fn new(adapter: Adapter<S>) -> Self {
        let most = adapter.limits.max_message_bytes;
        Self {
            store: ContextStoreServer::new(adapter.clone())
                .max_decoding_message_size(most)
                .max_encoding_message_size(most),
            generation: GenerationServer::new(adapter)
                .max_decoding_message_size(most)
                .max_encoding_message_size(most),
        }
    }
}

impl<S> Clone for Router<S> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            generation: self.generation.clone(),
        }
    }
}

impl<S: CloudService> Service<http::Request<Body>> for Router<S> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match request.uri().path().split('/').nth(1) {
            Some("celslm.v1.ContextStore") => self.store.call(request),
            Some("celslm.v1.Generation") => self.generation.call(request),
            _ => {
                let status = Status::unimplemented("no such service here");
                Box::pin(async move { Ok(status.into_http()) })
            }
        }
    }
}

/// Implements the generated traits over a [`CloudService`].
struct Adapter<S> {
    service: Arc<S>,
    limits: Arc<Limits>,
    calls: Arc<Semaphore>,
    closed: watch::Receiver<bool>,
}

impl<S> Clone for Adapter<S> {
    fn clone(&self) -> Self {
        Self {
            service: Arc::clone(&self.service),
            limits: Arc::clone(&self.limits),
            calls: Arc::clone(&self.calls),
            closed: self.closed.clone(),
        }
    }
}

impl<S> Adapter<S> {
    /// Admits a call, or refuses it as overloaded.
    fn admit(&self, metadata: &MetadataMap) -> Result<Call, ServiceError> {
        let permit = Arc::clone(&self.calls).try_acquire_owned().map_err(|_| {
            ServiceError::Overloaded(format!(
                "all {} calls of max_server_calls are in use",
                self.limits.max_server_calls
            ))
        })?;
        let asked = match metadata.get("grpc-timeout") {
            None => None,
            Some(value) => Some(value.to_str().ok().and_then(parse_timeout).ok_or_else(|| {
                ServiceError::InvalidArgument("grpc-timeout does not parse".to_owned())
            })?),
        };
        let most = self.limits.request_deadline();
        let deadline = asked.unwrap_or(most).min(most);
        let mut closed = self.closed.clone();
        Ok(Call {
            deadline,
            max_message_bytes: self.limits.max_message_bytes,
            farewell: self.limits.keepalive_timeout(),
            end: CallEnd {
                deadline,
                expiry: Box::pin(tokio::time::sleep(deadline)),
                // An error means that the sender, and with it the server, is gone.
                closed: Box::pin(async move { drop(closed.wait_for(|closed| *closed).await) }),
            },
            _permit: permit,
        })
    }

    fn check_text(&self, bytes: usize) -> Result<(), ServiceError> {
        let most = self.limits.max_text_bytes;
        if bytes > most {
            return Err(ServiceError::InvalidArgument(format!(
                "{bytes} bytes of text, max_text_bytes is {most}"
            )));
        }
        Ok(())
    }
}

/// Parses a `grpc-timeout` value: up to eight digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

/// What ends a call from outside: its deadline, or the server's shutdown.
struct CallEnd {
    deadline: Duration,
    expiry: Pin<Box<Sleep>>,
    closed: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl CallEnd {
    /// Waits for the end; must not be awaited again after it returned.
    async fn wait(&mut self) -> ServiceError {
        tokio::select! {
            () = &mut self.expiry => ServiceError::DeadlineExceeded(format!(
                "{} ms have passed", self.deadline.as_millis()
            )),
            () = &mut self.closed => {
                ServiceError::Unavailable("the cloud node is shutting down".to_owned())
            }
        }
    }
}

/// An admitted call.
struct Call {
    deadline: Duration,
    max_message_bytes: usize,
    farewell: Duration,
    end: CallEnd,
    _permit: OwnedSemaphorePermit,
}

impl Call {
    /// Runs a service method until it returns or the call ends.
    async fn run<T>(
        &mut self,
        method: impl Future<Output = Result<T, ServiceError>>,
    ) -> Result<T, ServiceError> {
        tokio::select! {
            biased;
            result = method => result,
            reason = self.end.wait() => Err(reason),
        }
    }

    /// Answers with the service's events. They pass through a task, so that the service is
    /// released at the deadline even if the peer has stopped reading and nobody polls the
    /// response.
    fn stream<E: Event>(
        self,
        events: mpsc::Receiver<Result<E, ServiceError>>,
    ) -> ReceiverStream<Result<E::Message, Status>> {
        // One message in the hand-over: the service's own channel is the queue.
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(self.forward(events, sender));
        ReceiverStream::new(receiver)
    }

    async fn forward<E: Event>(
        mut self,
        mut events: mpsc::Receiver<Result<E, ServiceError>>,
        sender: mpsc::Sender<Result<E::Message, Status>>,
    ) {
        let error = loop {
            let event = tokio::select! {
                biased;
                () = sender.closed() => return,
                reason = self.end.wait() => break reason,
                event = events.recv() => event,
            };
            let (message, is_last) = match event {
                Some(Ok(event)) => {
                    let is_last = event.is_last();
                    match self.encode(event) {
                        Ok(message) => (message, is_last),
                        Err(error) => break error,
                    }
                }
                Some(Err(error)) => break error,
                None => {
                    break ServiceError::Internal(
                        "the service ended its stream without the last message".to_owned(),
                    );
                }
            };
            tokio::select! {
                biased;
                () = sender.closed() => return,
                reason = self.end.wait() => break reason,
                permit = sender.reserve() => match permit {
                    Ok(permit) => permit.send(Ok(message)),
                    Err(_) => return,
                },
            }
            if is_last {
                return;
            }
        };
        // Release the service and the call's place before waiting for a peer that may not read.
        let Self {
            farewell, _permit, ..
        } = self;
        drop((events, _permit));
        let _ = tokio::time::timeout(farewell, sender.send(Err(error.into_status()))).await;
    }

    fn encode<E: Event>(&self, event: E) -> Result<E::Message, ServiceError> {
        let message = event.into_message().map_err(|invalid| {
            ServiceError::Internal(format!("the service made an invalid message: {invalid}"))
        })?;
        let bytes = message.encoded_len();
        if bytes > self.max_message_bytes {
            return Err(ServiceError::Internal(format!(
                "a message of {bytes} bytes, max_message_bytes is {}; ask for fewer chunk_tokens",
                self.max_message_bytes
            )));
        }
        Ok(message)
    }
}

/// What a service streams.
trait Event: Send + 'static {
    type Message: Message + 'static;

    fn into_message(self) -> Result<Self::Message, Invalid>;

    fn is_last(&self) -> bool;
}

impl Event for FetchEvent {
    type Message = proto::FetchMessage;

    fn into_message(self) -> Result<Self::Message, Invalid> {
        self.into_proto()
    }

    fn is_last(&self) -> bool {
        matches!(self, Self::Trailer(_))
    }
}

impl Event for GenerateEvent {
    type Message = proto::GenerateMessage;

    fn into_message(self) -> Result<Self::Message, Invalid> {
        self.into_proto()
    }

    fn is_last(&self) -> bool {
        matches!(self, Self::Finished(_))
    }
}

impl<S: CloudService> Adapter<S> {
    async fn publish(
        &self,
        request: Request<proto::PublishRequest>,
    ) -> Result<proto::PublishReply, ServiceError> {
        let mut call = self.admit(request.metadata())?;
        let request = PublishRequest::from_proto(request.into_inner())?;
        self.check_text(request.text_bytes())?;
        let reply = call.run(self.service.publish(request)).await?;
        reply
            .into_proto()
            .map_err(|invalid| ServiceError::Internal(invalid.to_string()))
    }

    async fn lookup(
        &self,
        request: Request<proto::LookupRequest>,
    ) -> Result<proto::LookupReply, ServiceError> {
        let mut call = self.admit(request.metadata())?;
        let request = LookupRequest::from_proto(request.into_inner())?;
        let reply = call.run(self.service.lookup(request)).await?;
        reply
            .into_proto()
            .map_err(|invalid| ServiceError::Internal(invalid.to_string()))
    }

    async fn fetch(
        &self,
        request: Request<proto::FetchRequest>,
    ) -> Result<ReceiverStream<Result<proto::FetchMessage, Status>>, ServiceError> {
        let mut call = self.admit(request.metadata())?;
        let request = FetchRequest::from_proto(request.into_inner(), call.deadline)?;
        let events = call.run(self.service.fetch(request)).await?;
        Ok(call.stream(events))
    }

    async fn generate(
        &self,
        request: Request<proto::GenerateRequest>,
    ) -> Result<ReceiverStream<Result<proto::GenerateMessage, Status>>, ServiceError> {
        let mut call = self.admit(request.metadata())?;
        let caller = caller(&request);
        let request = GenerateRequest::from_proto(request.into_inner(), call.deadline)?;
        self.check_text(request.text_bytes())?;
        let events = call.run(self.service.generate(caller, request)).await?;
        Ok(call.stream(events))
    }
}

/// A number for the connection: an edge keeps one, and edges may share an address.
fn caller<T>(request: &Request<T>) -> u32 {
    request
        .remote_addr()
        .map_or(0, |address| u32::from(address.port()))
}

/// A service's result as a gRPC response.
fn respond<T>(result: Result<T, ServiceError>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(ServiceError::into_status)
}

#[tonic::async_trait]
impl<S: CloudService> ContextStore for Adapter<S> {
    type FetchStream = ReceiverStream<Result<proto::FetchMessage, Status>>;

    async fn publish(
        &self,
        request: Request<proto::PublishRequest>,
    ) -> Result<Response<proto::PublishReply>, Status> {
        respond(Self::publish(self, request).await)
    }

    async fn lookup(
        &self,
        request: Request<proto::LookupRequest>,
    ) -> Result<Response<proto::LookupReply>, Status> {
        respond(Self::lookup(self, request).await)
    }

    async fn fetch(
        &self,
        request: Request<proto::FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        respond(Self::fetch(self, request).await)
    }
}

#[tonic::async_trait]
impl<S: CloudService> Generation for Adapter<S> {
    type GenerateStream = ReceiverStream<Result<proto::GenerateMessage, Status>>;

    async fn generate(
        &self,
        request: Request<proto::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        respond(Self::generate(self, request).await)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn timeouts_parse_by_unit() {
        let cases = [
            ("1H", 3_600_000_000_000),
            ("2M", 120_000_000_000),
            ("3S", 3_000_000_000),
            ("4m", 4_000_000),
            ("5u", 5_000),
            ("00000006n", 6),
        ];
        for (text, ns) in cases {
            assert_eq!(
                parse_timeout(text),
                Some(Duration::from_nanos(ns)),
                "{text}"
            );
        }
        for text in ["", "S", "1", "1s", "-1S", "+1S", "123456789S", "1.5S", "1é"] {
            assert_eq!(parse_timeout(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_timeout_text_is_harmless(text in "\\PC{0,12}") {
            let _ = parse_timeout(&text);
        }

        #[test]
        fn what_tonic_writes_is_read_back(ms in 1_u64..=86_400_000) {
            let mut request = Request::new(());
            request.set_timeout(Duration::from_millis(ms));
            let text = request.metadata().get("grpc-timeout").unwrap().to_str().unwrap();
            let read = parse_timeout(text).unwrap();
            // tonic rounds down to a unit that fits eight digits.
            prop_assert!(read <= Duration::from_millis(ms));
            prop_assert!(read + Duration::from_secs(1) > Duration::from_millis(ms));
        }
    }
}
