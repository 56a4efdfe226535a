//! What can go wrong with a link.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::profile::ProfileError;

/// Why a link could not be made or asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LinkError {
    /// This machine lacks something that the request needs.
    #[error("{message}")]
    Environment {
        /// What is missing and what to do about it.
        message: String,
    },
    /// The request cannot be met by the link as it was configured.
    #[error("{message}")]
    Unsupported {
        /// What does not fit, and what would.
        message: String,
    },
    /// The link host tried and failed.
    #[error("{message}")]
    Failed {
        /// What failed.
        message: String,
    },
    /// The link host could not be started.
    #[error("start the link host {}: {source}", exe.display())]
    Start {
        /// The program.
        exe: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The link host is gone, and with it the namespaces and the nodes.
    #[error("the link host ended during {request}{}", status.as_deref().map(|status| format!(" ({status})")).unwrap_or_default())]
    HostEnded {
        /// What was being asked of it.
        request: &'static str,
        /// How it ended, where known.
        status: Option<String>,
    },
    /// The link host did not answer in time.
    #[error("the link host did not answer {request} within {seconds} s")]
    Timeout {
        /// What was being asked of it.
        request: &'static str,
        /// How long it was given.
        seconds: u64,
    },
    /// The link host answered with something that is not an answer to the request.
    #[error("the link host's answer to {request} makes no sense: {message}")]
    Protocol {
        /// What was being asked of it.
        request: &'static str,
        /// What was wrong with the answer.
        message: String,
    },
    /// The profile is invalid.
    #[error(transparent)]
    Profile(#[from] ProfileError),
}

impl LinkError {
    /// Whether the machine is at fault, not the configuration and not the program.
    #[must_use]
    pub fn is_environment(&self) -> bool {
        matches!(self, Self::Environment { .. })
    }

    /// Whether the configuration is at fault.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Unsupported { .. } | Self::Profile(_))
    }
}

/// An error as it crosses the control socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fault {
    Environment(String),
    Unsupported(String),
    Failed(String),
}

impl Fault {
    pub(crate) fn message(&self) -> &str {
        match self {
            Self::Environment(message) | Self::Unsupported(message) | Self::Failed(message) => {
                message
            }
        }
    }

    /// Turns an error of the system into a failure, naming what was tried.
    pub(crate) fn failed<E: Into<io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> Self {
        let action = action.into();
        move |error| Self::Failed(format!("{action}: {}", error.into()))
    }

    /// As [`Fault::failed`], where the likeliest cause is the machine.
    pub(crate) fn environment<E: Into<io::Error>>(
        action: impl Into<String>,
    ) -> impl FnOnce(E) -> Self {
        let action = action.into();
        move |error| Self::Environment(format!("{action}: {}", error.into()))
    }
}

impl From<Fault> for LinkError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Environment(message) => Self::Environment { message },
            Fault::Unsupported(message) => Self::Unsupported { message },
            Fault::Failed(message) => Self::Failed { message },
        }
    }
}
