//! One server, asked over HTTP/1.1.

use super::event_stream::{EventStream, MAX_EVENT_BYTES};
use super::message::{ChatRequest, Chunk, Usage};
use crate::answer::SystemError;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue};
use reqwest::{Response, StatusCode, Url, redirect};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Longest wait for a TCP connection, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Most idle connections that are kept: more than an edge answers at once.
const MAX_IDLE: usize = 64;
/// Most bytes of one answer.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// Most bytes of a refusal that are read, and characters of it that are shown.
const MAX_REFUSAL_BYTES: usize = 64 << 10;
const SHOWN_CHARS: usize = 400;

/// Where a server is and how it is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// The API's root, such as `http://10.0.0.2:8000/v1`.
    pub base_url: String,
    /// Where to connect instead of the host that `base_url` names: the far end of the emulated
    /// link, from which the bytes are passed on. TLS still ends at the named host.
    pub via: Option<SocketAddr>,
    /// The model's name at the server.
    pub model: String,
    /// Name of the environment variable that holds the API key. The key itself is in no command,
    /// file or message.
    pub api_key_env: Option<String>,
    /// What to ask for to see whether the server is ready: a path from the server's root;
    /// `models` under `base_url` if absent.
    pub ready_path: Option<String>,
}

/// Why a server gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The endpoint is not usable as configured.
    #[error("use the serving API: {0}")]
    Config(String),
    /// No connection, or it broke.
    #[error("reach the serving API: {0}")]
    Connection(String),
    /// The time is up.
    #[error("wait for the serving API: the request's time is up")]
    Deadline,
    /// The server refused.
    #[error("get an answer from the serving API: it says {status}{excerpt}")]
    Refused {
        /// The status.
        status: u16,
        /// The beginning of what it said, after a colon.
        excerpt: String,
    },
    /// The server reported an error within an answer.
    #[error("get an answer from the serving API: it reports {0}")]
    Reported(String),
    /// The server sent something else than a stream of chat completions.
    #[error("understand the serving API: {0}")]
    Malformed(String),
    /// More than any answer needs.
    #[error("take in the serving API's answer: {0}")]
    TooLarge(String),
    /// The answer ended before its end.
    #[error("read the serving API's answer: it ended early ({0})")]
    Interrupted(String),
}

impl ApiError {
    /// A short, stable name for grouping.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Config(_) => "config",
            Self::Connection(_) => "connect",
            Self::Deadline => "deadline",
            Self::Refused { status, .. } => match status {
                401 | 403 => "unauthorised",
                404 => "not_found",
                429 | 503 => "overloaded",
                500.. => "server_error",
                _ => "refused",
            },
            Self::Reported(_) => "server_error",
            Self::Malformed(_) => "malformed",
            Self::TooLarge(_) => "too_large",
            Self::Interrupted(_) => "interrupted",
        }
    }
}

impl From<ApiError> for SystemError {
    fn from(error: ApiError) -> Self {
        Self::new(error.kind(), format!("failed to {error}"))
    }
}

/// A server. Its connections are kept open between requests.
pub struct Client {
    http: reqwest::Client,
    chat: Url,
    ready: Url,
    model: String,
    /// The key as text, so that no message repeats it.
    key: Option<String>,
}

impl Client {
    /// Prepares to ask a server; nothing is connected yet.
    ///
    /// # Errors
    /// [`ApiError::Config`] for an address that is none, and a key that is not there.
    pub fn new(endpoint: &Endpoint) -> Result<Self, ApiError> {
        let key = endpoint.api_key_env.as_deref().map(read_key).transpose()?;
        Self::with_key(endpoint, key)
    }

    pub(super) fn with_key(endpoint: &Endpoint, key: Option<String>) -> Result<Self, ApiError> {
        let config = |reason: String| ApiError::Config(reason);
        let mut base = Url::parse(&endpoint.base_url)
            .map_err(|error| config(format!("{:?}: {error}", endpoint.base_url)))?;
        let host = match (base.scheme(), base.host_str()) {
            ("http" | "https", Some(host)) => host.to_owned(),
            _ => {
                return Err(config(format!(
                    "{:?} is no http:// or https:// address",
                    endpoint.base_url
                )));
            }
        };
        let mut headers = HeaderMap::new();
        if let Some(key) = &key {
            let mut value = HeaderValue::from_str(&format!("Bearer {key}"))
                .map_err(|_| config("the API key has characters that no header may have".into()))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let mut http = reqwest::Client::builder()
            // One connection per answer in flight, as most clients of these servers have it.
            .http1_only()
            .redirect(redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_max_idle_per_host(MAX_IDLE)
            .tcp_nodelay(true);
        if let Some(via) = endpoint.via {
            let authority = match base.port() {
                Some(port) => format!("{host}:{port}"),
                None => host.clone(),
            };
            let value = HeaderValue::from_str(&authority)
                .map_err(|_| config(format!("{host:?} cannot be a host's name")))?;
            headers.insert(HOST, value);
            let named = base.domain().is_some();
            if named {
                http = http.resolve(&host, via);
            } else if base.scheme() == "https" {
                return Err(config(
                    "https needs a host's name, not an address, where the link is emulated".into(),
                ));
            } else {
                base.set_ip_host(via.ip())
                    .map_err(|()| config("the address cannot be replaced".into()))?;
            }
            base.set_port(Some(via.port()))
                .map_err(|()| config("the port cannot be replaced".into()))?;
        }
        let http = http
            .default_headers(headers)
            .build()
            .map_err(|error| config(describe(&error, None)))?;
        let under = |path: &str| {
            let mut url = base.clone();
            url.set_query(None);
            url.set_fragment(None);
            url.set_path(&format!("{}/{path}", base.path().trim_end_matches('/')));
            url
        };
        let ready = match &endpoint.ready_path {
            None => under("models"),
            Some(path) => base
                .join(path)
                .ok()
                .filter(|url| url.origin() == base.origin())
                .ok_or_else(|| config(format!("ready_path {path:?} is no path of the server")))?,
        };
        Ok(Self {
            http,
            chat: under("chat/completions"),
            ready,
            model: endpoint.model.clone(),
            key,
        })
    }

    /// Asks whether the server is ready.
    ///
    /// # Errors
    /// [`ApiError`]; everything but kinds `config` and `unauthorised` may pass with time.
    pub async fn ready(&self, patience: Duration) -> Result<(), ApiError> {
        let until = Instant::now() + patience;
        let sent = self.http.get(self.ready.clone()).send();
        let response = within(until, sent).await?.map_err(|e| self.broken(&e))?;
        if response.status().is_success() {
            // Reading it to its end keeps the connection for the next request.
            self.text(response, until).await;
            return Ok(());
        }
        Err(self.refusal(response, until).await)
    }

    /// Asks for an answer and waits for the response to begin.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn chat(
        &self,
        request: &ChatRequest<'_>,
        patience: Duration,
    ) -> Result<ChatStream<'_>, ApiError> {
        let until = Instant::now() + patience;
        let body = request
            .body(&self.model)
            .map_err(|error| ApiError::Config(format!("the request has no JSON form: {error}")))?;
        let uplink_payload_bytes = body.len() as u64;
        let sent = self
            .http
            .post(self.chat.clone())
            .header(CONTENT_TYPE, "application/json")
            .body(body)
            .send();
        let response = within(until, sent).await?.map_err(|e| self.broken(&e))?;
        if !response.status().is_success() {
            return Err(self.refusal(response, until).await);
        }
        let kind = response.headers().get(CONTENT_TYPE);
        let streams = kind
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| value.trim_start().starts_with("text/event-stream"));
        if !streams {
            let text = self.text(response, until).await;
            return Err(ApiError::Malformed(format!(
                "it answers without streaming{}",
                self.excerpt(&text)
            )));
        }
        Ok(ChatStream {
            client: self,
            response,
            until,
            events: EventStream::default(),
            pending: VecDeque::new(),
            ended: false,
            finish: None,
            uplink_payload_bytes,
            downlink_payload_bytes: 0,
        })
    }

    async fn refusal(&self, response: Response, until: Instant) -> ApiError {
        let status: StatusCode = response.status();
        let text = self.text(response, until).await;
        ApiError::Refused {
            status: status.as_u16(),
            excerpt: self.excerpt(&text),
        }
    }

    /// The beginning of a body; what cannot be read of it is left out.
    async fn text(&self, mut response: Response, until: Instant) -> String {
        let mut body = Vec::new();
        while body.len() < MAX_REFUSAL_BYTES
            && let Ok(Ok(Some(bytes))) = timeout_at(until, response.chunk()).await
        {
            body.extend_from_slice(&bytes[..bytes.len().min(MAX_REFUSAL_BYTES - body.len())]);
        }
        String::from_utf8_lossy(&body).into_owned()
    }

    /// `: ` and the beginning of a text on one line, without the key; nothing for an empty one.
    fn excerpt(&self, text: &str) -> String {
        let text = redact(text, self.key.as_deref());
        let words: Vec<&str> = text.split_whitespace().collect();
        let line: String = words
            .join(" ")
            .chars()
            .filter(|c| !c.is_control())
            .take(SHOWN_CHARS)
            .collect();
        match line.as_str() {
            "" => String::new(),
            line => format!(": {line}"),
        }
    }

    fn broken(&self, error: &reqwest::Error) -> ApiError {
        ApiError::Connection(describe(error, self.key.as_deref()))
    }
}

/// Something that an answer brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChatEvent {
    /// A piece of the answer's text, never empty.
    Text(String),
    /// A piece of what the model thinks aloud before its answer, never empty: generated and
    /// counted as tokens, and no part of the answer's text.
    Reasoning,
    /// What the server counted. May come several times; the last one counts.
    Usage(Usage),
}

/// An answer that is arriving.
pub struct ChatStream<'a> {
    client: &'a Client,
    response: Response,
    until: Instant,
    events: EventStream,
    pending: VecDeque<ChatEvent>,
    ended: bool,
    finish: Option<String>,
    uplink_payload_bytes: u64,
    downlink_payload_bytes: u64,
}

impl ChatStream<'_> {
    /// The next event; `None` at the answer's proper end.
    ///
    /// # Errors
    /// [`ApiError`]; the stream is at its end then.
    pub async fn next(&mut self) -> Result<Option<ChatEvent>, ApiError> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(Some(event));
            }
            if self.ended {
                return Ok(None);
            }
            if let Err(error) = self.advance().await {
                self.ended = true;
                return Err(error);
            }
        }
    }

    /// Why the model stopped, once it has: `stop` at its own end, `length` at `max_tokens`.
    #[must_use]
    pub fn finish_reason(&self) -> Option<&str> {
        self.finish.as_deref()
    }

    /// Bytes of the request's body.
    #[must_use]
    pub fn uplink_payload_bytes(&self) -> u64 {
        self.uplink_payload_bytes
    }

    /// Bytes of the answer's body so far.
    #[must_use]
    pub fn downlink_payload_bytes(&self) -> u64 {
        self.downlink_payload_bytes
    }

    async fn advance(&mut self) -> Result<(), ApiError> {
        if let Some(data) = self.events.pop() {
            return self.take(&data);
        }
        let read = timeout_at(self.until, self.response.chunk())
            .await
            .map_err(|_| ApiError::Deadline)?;
        let key = self.client.key.as_deref();
        let bytes = read.map_err(|error| ApiError::Interrupted(describe(&error, key)))?;
        let Some(bytes) = bytes else {
            // Some servers close without the last marker; one that never said why it stopped
            // was cut off.
            self.ended = true;
            return match self.finish {
                Some(_) => Ok(()),
                None => Err(ApiError::Interrupted(
                    "no reason to finish was given".into(),
                )),
            };
        };
        self.downlink_payload_bytes += bytes.len() as u64;
        if self.downlink_payload_bytes > MAX_ANSWER_BYTES as u64 {
            return Err(ApiError::TooLarge(format!(
                "more than {MAX_ANSWER_BYTES} bytes"
            )));
        }
        self.events.push(&bytes).map_err(|_| {
            ApiError::TooLarge(format!("an event of more than {MAX_EVENT_BYTES} bytes"))
        })
    }

    fn take(&mut self, data: &[u8]) -> Result<(), ApiError> {
        if data.trim_ascii() == b"[DONE]" {
            self.ended = true;
            return Ok(());
        }
        let chunk: Chunk = serde_json::from_slice(data).map_err(|error| {
            let text = String::from_utf8_lossy(data);
            ApiError::Malformed(format!("{error}{}", self.client.excerpt(&text)))
        })?;
        if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
            let text = self.client.excerpt(&error.to_string());
            return Err(ApiError::Reported(format!("an error{text}")));
        }
        // One answer is asked for; a server that sends more is read for its first.
        if let Some(choice) = chunk.choices.into_iter().flatten().next() {
            let delta = choice.delta.unwrap_or_default();
            if delta.reasoning_content.is_some_and(|text| !text.is_empty()) {
                self.pending.push_back(ChatEvent::Reasoning);
            }
            if let Some(text) = delta.content.filter(|text| !text.is_empty()) {
                self.pending.push_back(ChatEvent::Text(text));
            }
            if choice.finish_reason.is_some() {
                self.finish = choice.finish_reason;
            }
        }
        self.pending.extend(chunk.usage.map(ChatEvent::Usage));
        Ok(())
    }
}

async fn within<T>(until: Instant, work: impl Future<Output = T>) -> Result<T, ApiError> {
    timeout_at(until, work)
        .await
        .map_err(|_| ApiError::Deadline)
}

fn read_key(variable: &str) -> Result<String, ApiError> {
    match std::env::var(variable) {
        Ok(key) if !key.trim().is_empty() => Ok(key.trim().to_owned()),
        Ok(_) => Err(ApiError::Config(format!(
            "the variable {variable} is empty"
        ))),
        Err(_) => Err(ApiError::Config(format!(
            "the environment variable {variable} is to hold the API key, and is not set"
        ))),
    }
}

/// An error with its causes, without its address (which may be the link's inside) and the key.
fn describe(error: &reqwest::Error, key: Option<&str>) -> String {
    let mut text = match (error.is_connect(), error.is_timeout()) {
        (true, true) => "no connection in time".to_owned(),
        (true, false) => "no connection".to_owned(),
        _ => "the connection broke".to_owned(),
    };
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    redact(&text, key)
}

fn redact(text: &str, key: Option<&str>) -> String {
    match key {
        Some(key) => text.replace(key, "[the API key]"),
        None => text.to_owned(),
    }
}
