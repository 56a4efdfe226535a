//! The edge's side of the protocol.

use std::{
    error::Error, fmt, future::Future, net::SocketAddr, pin::Pin, sync::Arc, time::Duration,
};

use prost::Message;
use tokio::time::Sleep;
use tonic::{
    Request, Status,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};

use crate::{
    FetchRequest, FetchStream, GenerateRequest, Limits, LookupReply, LookupRequest, PublishReply,
    PublishRequest, Reply, TokenStream, WireError,
    codec::{Counters, WireCodec},
    error::{Progress, chain},
    proto,
    stream::Incoming,
    verify::{FetchVerifier, GenerateVerifier},
};

/// Pause between attempts to connect, so that a cloud that is still starting is found soon.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// A connection to the cloud; clones share it, and calls may run at once.
///
/// A connection that breaks is made anew by the next call.
#[derive(Clone)]
pub struct CloudClient {
    channel: Channel,
    addr: SocketAddr,
    limits: Arc<Limits>,
}

impl fmt::Debug for CloudClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloudClient")
            .field("addr", &self.addr)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl CloudClient {
    /// Connects to the cloud node at `addr`, retrying until `deadline` has passed.
    ///
    /// # Errors
    /// [`WireError::InvalidLimits`]; [`WireError::Connect`] with the last attempt's cause.
    pub async fn connect(
        addr: SocketAddr,
        limits: Limits,
        deadline: Duration,
    ) -> Result<Self, WireError> {
        limits.validate()?;
        let failed = |reason: String| WireError::Connect { addr, reason };
        let endpoint = Endpoint::from_shared(format!("http://{addr}"))
            .map_err(|error| failed(chain(&error)))?
            .tcp_nodelay(true)
            .connect_timeout(limits.connect_timeout())
            .initial_stream_window_size(limits.stream_window_bytes)
            .initial_connection_window_size(limits.connection_window_bytes)
            .http2_keep_alive_interval(limits.keepalive_interval())
            .keep_alive_timeout(limits.keepalive_timeout());
        let mut last = format!("no answer within {} ms", deadline.as_millis());
        let mut expiry = Box::pin(tokio::time::sleep(deadline));
        loop {
            tokio::select! {
                biased;
                attempt = endpoint.connect() => match attempt {
                    Ok(channel) => {
                        return Ok(Self { channel, addr, limits: Arc::new(limits) });
                    }
                    Err(error) => last = chain(&error),
                },
                () = &mut expiry => return Err(failed(last)),
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY_PAUSE) => {}
                () = &mut expiry => return Err(failed(last)),
            }
        }
    }

    /// The cloud's address.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Registers a shared context, within [`Limits::request_deadline`].
    ///
    /// # Errors
    /// [`WireError::TooLarge`] for a context above [`Limits::max_text_bytes`]; as
    /// [`FetchStream::next`] otherwise.
    pub async fn publish(&self, request: PublishRequest) -> Result<Reply<PublishReply>, WireError> {
        let call = Call::new(self, "publish", self.limits.request_deadline());
        call.check_text(request.text_bytes())?;
        let reply = call
            .unary::<_, proto::PublishReply>(
                request.into_proto(),
                "/celslm.v1.ContextStore/Publish",
            )
            .await?;
        Ok(Reply {
            value: PublishReply::from_proto(&reply.value)?,
            traffic: reply.traffic,
        })
    }

    /// Asks what the cloud has for a context, within [`Limits::request_deadline`].
    ///
    /// # Errors
    /// As [`FetchStream::next`].
    pub async fn lookup(&self, request: LookupRequest) -> Result<Reply<LookupReply>, WireError> {
        let call = Call::new(self, "lookup", self.limits.request_deadline());
        let reply = call
            .unary::<_, proto::LookupReply>(request.into_proto(), "/celslm.v1.ContextStore/Lookup")
            .await?;
        Ok(Reply {
            value: LookupReply::from_proto(&reply.value)?,
            traffic: reply.traffic,
        })
    }

    /// Starts to fetch the KV of a context; returns when the cloud has accepted the call.
    ///
    /// # Errors
    /// As [`FetchStream::next`].
    pub async fn fetch(&self, request: FetchRequest) -> Result<FetchStream, WireError> {
        let call = Call::new(self, "fetch", request.deadline);
        let verifier = FetchVerifier::new(
            request.first_layer,
            request.chunk_tokens,
            request.codec.clone(),
        );
        let counters = Arc::clone(&call.counters);
        let incoming = call
            .streaming(request.into_proto()?, "/celslm.v1.ContextStore/Fetch")
            .await?;
        Ok(FetchStream::new(incoming, verifier, counters))
    }

    /// Starts to answer a private prompt in the cloud; returns when the cloud has accepted the
    /// call.
    ///
    /// # Errors
    /// [`WireError::TooLarge`] for a prompt above [`Limits::max_text_bytes`]; as
    /// [`TokenStream::next`] otherwise.
    pub async fn generate(&self, request: GenerateRequest) -> Result<TokenStream, WireError> {
        let call = Call::new(self, "generate", request.deadline);
        call.check_text(request.text_bytes())?;
        let verifier = GenerateVerifier::new(request.max_tokens);
        let counters = Arc::clone(&call.counters);
        let incoming = call
            .streaming(request.into_proto()?, "/celslm.v1.Generation/Generate")
            .await?;
        Ok(TokenStream::new(incoming, verifier, counters))
    }
}

/// One call: its deadline runs from here.
struct Call<'a> {
    client: &'a CloudClient,
    progress: Progress,
    expiry: Pin<Box<Sleep>>,
    counters: Arc<Counters>,
}

impl<'a> Call<'a> {
    fn new(client: &'a CloudClient, name: &'static str, deadline: Duration) -> Self {
        // Capped, because a server caps it too and grpc-timeout cannot express every duration.
        let deadline = deadline.min(client.limits.request_deadline());
        Self {
            client,
            progress: Progress {
                call: name,
                addr: client.addr,
                deadline,
                received: 0,
            },
            expiry: Box::pin(tokio::time::sleep(deadline)),
            counters: Arc::default(),
        }
    }

    fn check_text(&self, bytes: usize) -> Result<(), WireError> {
        let most = self.client.limits.max_text_bytes;
        if bytes > most {
            return Err(WireError::TooLarge {
                call: self.progress.call,
                reason: format!("{bytes} bytes of text, max_text_bytes is {most}"),
            });
        }
        Ok(())
    }

    fn request<T: Message>(&self, message: T) -> Result<Request<T>, WireError> {
        let (bytes, most) = (message.encoded_len(), self.client.limits.max_message_bytes);
        if bytes > most {
            return Err(WireError::TooLarge {
                call: self.progress.call,
                reason: format!("{bytes} bytes, max_message_bytes is {most}"),
            });
        }
        let mut request = Request::new(message);
        request.set_timeout(self.progress.deadline);
        Ok(request)
    }

    fn grpc(&self) -> Grpc<Channel> {
        let most = self.client.limits.max_message_bytes;
        Grpc::new(self.client.channel.clone())
            .max_decoding_message_size(most)
            .max_encoding_message_size(most)
    }

    /// Waits for `future` until the deadline.
    async fn until_deadline<T>(
        &mut self,
        future: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, WireError> {
        tokio::select! {
            biased;
            result = future => result.map_err(|status| self.progress.error(&status)),
            () = &mut self.expiry => Err(self.progress.deadline_passed()),
        }
    }

    async fn unary<T, U>(mut self, message: T, path: &'static str) -> Result<Reply<U>, WireError>
    where
        T: Message + 'static,
        U: Message + Default + 'static,
    {
        let (request, mut grpc) = (self.request(message)?, self.grpc());
        let codec = WireCodec::<T, U>::new(Arc::clone(&self.counters));
        let response = self
            .until_deadline(async move {
                ready(&mut grpc).await?;
                grpc.unary(request, PathAndQuery::from_static(path), codec)
                    .await
            })
            .await?;
        Ok(Reply {
            value: response.into_inner(),
            traffic: self.counters.traffic(),
        })
    }

    async fn streaming<T, U>(
        mut self,
        message: T,
        path: &'static str,
    ) -> Result<Incoming<U>, WireError>
    where
        T: Message + 'static,
        U: Message + Default + 'static,
    {
        let (request, mut grpc) = (self.request(message)?, self.grpc());
        let codec = WireCodec::<T, U>::new(Arc::clone(&self.counters));
        let response = self
            .until_deadline(async move {
                ready(&mut grpc).await?;
                grpc.server_streaming(request, PathAndQuery::from_static(path), codec)
                    .await
            })
            .await?;
        Ok(Incoming {
            messages: response.into_inner(),
            expiry: self.expiry,
            progress: self.progress,
        })
    }
}

/// Waits for the channel, which connects anew if it has to.
async fn ready(grpc: &mut Grpc<Channel>) -> Result<(), Status> {
    grpc.ready().await.map_err(|error| {
        let error: Box<dyn Error + Send + Sync> = Box::new(error);
        Status::from_error(error)
    })
}
