//! What can go wrong on the wire, and how an error crosses it.

use std::{error::Error, io, net::SocketAddr, ops::Range, time::Duration};

use celslm_kv::ChunkError;
use tonic::{Code, ConnectError, Status, TimeoutExpired};

/// Longest error text sent, in bytes. It travels percent-encoded (three bytes for one) in a
/// header, and a peer accepts 16 KiB of headers.
const ERROR_TEXT_BYTES: usize = 2048;

/// An error that the cloud's service reports to the edge; its text arrives as it was given, up to
/// 2,048 bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// The context, model or bridge is not known here.
    #[error("not found in the cloud: {0}")]
    NotFound(String),
    /// The request is sound, but this cloud cannot do it: another codec, alignment or shape.
    #[error("unsupported by the cloud: {0}")]
    Unsupported(String),
    /// The request breaks the protocol or a bound.
    #[error("refused by the cloud as invalid: {0}")]
    InvalidArgument(String),
    /// A bounded resource is used up; the same request may succeed later.
    #[error("refused by the cloud, which is overloaded: {0}")]
    Overloaded(String),
    /// The cloud is shutting down.
    #[error("the cloud is unavailable: {0}")]
    Unavailable(String),
    /// The call's deadline passed in the cloud.
    #[error("deadline passed in the cloud: {0}")]
    DeadlineExceeded(String),
    /// A replayed cloud has no recording of this.
    #[error("not recorded in the cloud: {0}")]
    NotRecorded(String),
    /// The call was cancelled.
    #[error("cancelled in the cloud: {0}")]
    Cancelled(String),
    /// The service failed.
    #[error("internal error in the cloud: {0}")]
    Internal(String),
}

impl ServiceError {
    /// Stable short name, as written into sample rows.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "not_found",
            Self::Unsupported(_) => "unsupported",
            Self::InvalidArgument(_) => "invalid_argument",
            Self::Overloaded(_) => "overloaded",
            Self::Unavailable(_) => "unavailable",
            Self::DeadlineExceeded(_) => "deadline",
            Self::NotRecorded(_) => "not_recorded",
            Self::Cancelled(_) => "cancelled",
            Self::Internal(_) => "internal",
        }
    }

    pub(crate) fn into_status(self) -> Status {
        let (code, mut text) = match self {
            Self::NotFound(text) => (Code::NotFound, text),
            Self::Unsupported(text) => (Code::Unimplemented, text),
            Self::InvalidArgument(text) => (Code::InvalidArgument, text),
            Self::Overloaded(text) => (Code::ResourceExhausted, text),
            Self::Unavailable(text) => (Code::Unavailable, text),
            Self::DeadlineExceeded(text) => (Code::DeadlineExceeded, text),
            Self::NotRecorded(text) => (Code::FailedPrecondition, text),
            Self::Cancelled(text) => (Code::Cancelled, text),
            Self::Internal(text) => (Code::Internal, text),
        };
        text.truncate(text.floor_char_boundary(ERROR_TEXT_BYTES));
        Status::new(code, text)
    }

    fn from_status(status: &Status) -> Self {
        let text = status.message().to_owned();
        match status.code() {
            Code::NotFound => Self::NotFound(text),
            Code::Unimplemented => Self::Unsupported(text),
            Code::InvalidArgument => Self::InvalidArgument(text),
            Code::ResourceExhausted => Self::Overloaded(text),
            Code::Unavailable => Self::Unavailable(text),
            Code::DeadlineExceeded => Self::DeadlineExceeded(text),
            Code::FailedPrecondition => Self::NotRecorded(text),
            // The server side of tonic reports an expired grpc-timeout as a cancellation.
            Code::Cancelled if text == TimeoutExpired(()).to_string() => {
                Self::DeadlineExceeded(text)
            }
            Code::Cancelled => Self::Cancelled(text),
            Code::Internal => Self::Internal(text),
            code => Self::Internal(format!("{text} (gRPC status {code:?})")),
        }
    }
}

/// Everything that can fail on either side of the protocol.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The address is taken.
    #[error(
        "address {addr} is already in use; stop the process that listens there or choose another port"
    )]
    AddressInUse {
        /// What was to be bound.
        addr: SocketAddr,
    },
    /// The address cannot be bound for another reason.
    #[error("bind to {addr} failed")]
    Bind {
        /// What was to be bound.
        addr: SocketAddr,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The server failed.
    #[error("serving failed")]
    Serve {
        /// The transport's reason.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// A field of [`Limits`](crate::Limits) is out of range.
    #[error("limit {field} = {value} is out of range; give {least} to {most}")]
    InvalidLimits {
        /// The field.
        field: &'static str,
        /// What it was set to.
        value: u64,
        /// Least value allowed.
        least: u64,
        /// Greatest value allowed.
        most: u64,
    },
    /// No connection to the cloud.
    #[error("connection to the cloud at {addr} failed: {reason}; is the cloud node running there?")]
    Connect {
        /// The cloud's address.
        addr: SocketAddr,
        /// Cause of the last attempt, causes of causes included.
        reason: String,
    },
    /// The stream ended before its last message: the cloud was killed or the link was lost.
    #[error("{call} was interrupted after {received} {unit}: {reason}", unit = unit_of(call))]
    Interrupted {
        /// The call: `publish`, `lookup`, `fetch` or `generate`.
        call: &'static str,
        /// Good chunks (fetch) or tokens (generate) received before.
        received: u64,
        /// What the transport says.
        reason: String,
    },
    /// The call's deadline passed.
    #[error("deadline of {} ms for {call} passed after {received} {unit}", deadline.as_millis(), unit = unit_of(call))]
    Deadline {
        /// The call.
        call: &'static str,
        /// The deadline, from the start of the call.
        deadline: Duration,
        /// Good chunks (fetch) or tokens (generate) received before.
        received: u64,
    },
    /// A chunk's content does not match its hash.
    #[error("chunk of layer {layer}, tokens {}..{} is corrupt", tokens.start, tokens.end)]
    CorruptChunk {
        /// Layer that the chunk claims, index.
        layer: usize,
        /// Absolute token range that the chunk claims.
        tokens: Range<usize>,
        /// What the check found.
        #[source]
        source: ChunkError,
    },
    /// A message came out of turn, or a total does not add up.
    #[error("stream of {call} is out of order: {reason}")]
    OutOfOrder {
        /// The call.
        call: &'static str,
        /// What was expected and what came.
        reason: String,
    },
    /// A message does not decode, or a field of it is not valid.
    #[error("invalid message {message}: {reason}")]
    InvalidMessage {
        /// Name of the message in the proto.
        message: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A message or a text is larger than [`Limits`](crate::Limits) allow.
    #[error("message of {call} is too large: {reason}; raise max_message_bytes or send less")]
    TooLarge {
        /// The call.
        call: &'static str,
        /// Size and bound.
        reason: String,
    },
    /// The cloud answered with an error.
    #[error(transparent)]
    Service(#[from] ServiceError),
}

fn unit_of(call: &str) -> &'static str {
    match call {
        "fetch" => "chunks",
        "generate" => "tokens",
        _ => "replies",
    }
}

impl WireError {
    /// Stable short name, as written into sample rows: `address_in_use`, `bind`, `serve`,
    /// `invalid_limits`, `connect`, `interrupted`, `deadline`, `corrupt_chunk`, `out_of_order`,
    /// `invalid_message`, `too_large`, and the kinds of [`ServiceError`]: `not_found`,
    /// `unsupported`, `invalid_argument`, `refused`, `unavailable`, `deadline`, `cancelled`,
    /// `internal`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::AddressInUse { .. } => "address_in_use",
            Self::Bind { .. } => "bind",
            Self::Serve { .. } => "serve",
            Self::InvalidLimits { .. } => "invalid_limits",
            Self::Connect { .. } => "connect",
            Self::Interrupted { .. } => "interrupted",
            Self::Deadline { .. } => "deadline",
            Self::CorruptChunk { .. } => "corrupt_chunk",
            Self::OutOfOrder { .. } => "out_of_order",
            Self::InvalidMessage { .. } => "invalid_message",
            Self::TooLarge { .. } => "too_large",
            Self::Service(error) => error.kind(),
        }
    }
}

/// A message that fails its conversion: the edge reports it as [`WireError::InvalidMessage`], the
/// cloud as [`ServiceError::InvalidArgument`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}: {reason}")]
pub(crate) struct Invalid {
    pub(crate) message: &'static str,
    pub(crate) reason: String,
}

impl Invalid {
    pub(crate) fn new(message: &'static str, reason: impl Into<String>) -> Self {
        Self {
            message,
            reason: reason.into(),
        }
    }
}

impl From<Invalid> for WireError {
    fn from(invalid: Invalid) -> Self {
        Self::InvalidMessage {
            message: invalid.message,
            reason: invalid.reason,
        }
    }
}

impl From<Invalid> for ServiceError {
    fn from(invalid: Invalid) -> Self {
        Self::InvalidArgument(invalid.to_string())
    }
}

/// Where a call stands, to say so in its error.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    pub(crate) call: &'static str,
    pub(crate) addr: SocketAddr,
    pub(crate) deadline: Duration,
    pub(crate) received: u64,
}

impl Progress {
    pub(crate) fn deadline_passed(self) -> WireError {
        WireError::Deadline {
            call: self.call,
            deadline: self.deadline,
            received: self.received,
        }
    }

    pub(crate) fn interrupted(self, reason: impl Into<String>) -> WireError {
        WireError::Interrupted {
            call: self.call,
            received: self.received,
            reason: reason.into(),
        }
    }

    /// Tells what the transport met (a status with a cause) from what the peer reported (a status
    /// that came over the wire and so has none).
    pub(crate) fn error(self, status: &Status) -> WireError {
        let mut cause = status.source();
        while let Some(error) = cause {
            if let Some(invalid) = error.downcast_ref::<Invalid>() {
                return invalid.clone().into();
            }
            if error.is::<TimeoutExpired>() {
                return self.deadline_passed();
            }
            if error.is::<ConnectError>() {
                return WireError::Connect {
                    addr: self.addr,
                    reason: chain(error),
                };
            }
            cause = error.source();
        }
        match status.source() {
            Some(error) => self.interrupted(chain(error)),
            None if status.code() == Code::OutOfRange => WireError::TooLarge {
                call: self.call,
                reason: status.message().to_owned(),
            },
            None => ServiceError::from_status(status).into(),
        }
    }
}

/// An error and its causes on one line, without a cause that repeats what its parent says.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn service_errors(text: &str) -> [ServiceError; 9] {
        let text = || text.to_owned();
        [
            ServiceError::NotFound(text()),
            ServiceError::Unsupported(text()),
            ServiceError::InvalidArgument(text()),
            ServiceError::Overloaded(text()),
            ServiceError::Unavailable(text()),
            ServiceError::DeadlineExceeded(text()),
            ServiceError::NotRecorded(text()),
            ServiceError::Cancelled(text()),
            ServiceError::Internal(text()),
        ]
    }

    proptest! {
        #[test]
        fn service_errors_survive_the_headers(text in ".{0,600}") {
            for error in service_errors(&text) {
                let response = error.clone().into_status().into_http::<()>();
                let status = Status::from_header_map(response.headers()).unwrap();
                prop_assert_eq!(ServiceError::from_status(&status), error);
            }
        }

        #[test]
        fn long_texts_are_cut_at_a_character(text in "\\PC{600,2000}") {
            let status = ServiceError::Internal(text.clone()).into_status();
            prop_assert!(status.message().len() <= ERROR_TEXT_BYTES);
            prop_assert!(text.starts_with(status.message()));
        }
    }

    #[test]
    fn kinds_are_distinct() {
        let mut kinds = service_errors("x").map(|error| error.kind()).to_vec();
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(kinds.len(), 9);
    }

    #[test]
    fn a_status_with_a_cause_is_the_transports() {
        let progress = Progress {
            call: "fetch",
            addr: ([127, 0, 0, 1], 1).into(),
            deadline: Duration::from_secs(1),
            received: 3,
        };
        let mut status = Status::internal("h2");
        let reset = io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!(progress.error(&status).kind(), "internal");
        status.set_source(std::sync::Arc::new(reset));
        let error = progress.error(&status);
        assert_eq!(error.kind(), "interrupted");
        assert!(error.to_string().contains("after 3 chunks"), "{error}");
        let timeout = Status::from_error(Box::new(TimeoutExpired(())));
        assert_eq!(progress.error(&timeout).kind(), "deadline");
    }
}
