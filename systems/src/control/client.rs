//! The controller's end of a control socket.

use super::MAX_LINE_BYTES;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::marker::PhantomData;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a node could not be commanded.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket cannot be connected to, or broke.
    #[error("talk to the node at {path}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The node closed the connection: it has ended.
    #[error("talk to the node at {path}: it closed the connection")]
    Closed {
        /// The socket.
        path: PathBuf,
    },
    /// The node sent something else than a reply.
    #[error("talk to the node at {path}: it sent no valid reply ({reason})")]
    Invalid {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// A connection to a node's control socket, for commands `C` and replies `R`.
pub struct ControlClient<C, R> {
    reader: BufReader<UnixStream>,
    path: PathBuf,
    types: PhantomData<fn(C) -> R>,
}

impl<C: Serialize, R: DeserializeOwned> ControlClient<C, R> {
    /// Connects to a node.
    ///
    /// # Errors
    /// [`ControlError::Io`] when nobody listens.
    pub fn connect(path: &Path) -> Result<Self, ControlError> {
        let stream = UnixStream::connect(path).map_err(|source| ControlError::Io {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            reader: BufReader::new(stream),
            path: path.to_owned(),
            types: PhantomData,
        })
    }

    /// Sends a command and waits at most `timeout` for its reply. After an error the connection
    /// is out of step and must not be used again.
    ///
    /// # Errors
    /// [`ControlError::Closed`] when the node ended, [`ControlError::Io`] on a timeout.
    pub fn call(&mut self, command: &C, timeout: Duration) -> Result<R, ControlError> {
        let path = self.path.clone();
        let io = |source| ControlError::Io {
            path: path.clone(),
            source,
        };
        let mut line = serde_json::to_vec(command).map_err(|error| ControlError::Invalid {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        line.push(b'\n');
        self.reader
            .get_ref()
            .set_read_timeout(Some(timeout))
            .map_err(io)?;
        self.reader.get_mut().write_all(&line).map_err(io)?;
        let mut reply = String::new();
        let read = self
            .reader
            .by_ref()
            .take(MAX_LINE_BYTES)
            .read_line(&mut reply)
            .map_err(io)?;
        if read == 0 {
            return Err(ControlError::Closed { path });
        }
        serde_json::from_str(&reply).map_err(|error| ControlError::Invalid {
            path,
            reason: error.to_string(),
        })
    }
}
