//! The node's end of a control socket.

use super::{Incoming, MAX_LINE_BYTES, MAX_OUTSTANDING, Outgoing, WRITE_TIMEOUT};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::marker::PhantomData;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Whether a node goes on after a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Serve the next command.
    Continue,
    /// End.
    Stop,
}

/// A listening control socket; its file is removed on drop.
pub struct ControlListener {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlListener {
    /// Listens at a path. A stale socket that nobody serves is replaced.
    ///
    /// # Errors
    /// When another process serves the path, or it cannot be bound.
    pub fn bind(path: &Path) -> std::io::Result<Self> {
        if path.exists() {
            if UnixStream::connect(path).is_ok() {
                return Err(std::io::Error::new(
                    std::io::ErrorKind::AddrInUse,
                    format!("another node serves the control socket {}", path.display()),
                ));
            }
            std::fs::remove_file(path)?;
        }
        Ok(Self {
            listener: UnixListener::bind(path)?,
            path: path.to_owned(),
        })
    }

    /// Serves controllers, one after the other, until a handler says stop. A handler replies
    /// through its [`Reply`], there or later from any thread; the next command is read as soon
    /// as it returns. A line that is no command is answered with `refuse(reason)`, and so is a
    /// command beyond [`MAX_OUTSTANDING`]; a controller that goes away makes room for the next.
    ///
    /// # Errors
    /// When the socket itself fails.
    pub fn serve<C: DeserializeOwned, R: Serialize>(
        &self,
        mut handle: impl FnMut(C, Reply<R>) -> Flow,
        refuse: impl Fn(String) -> R,
    ) -> std::io::Result<()> {
        loop {
            let (stream, _) = self.listener.accept()?;
            // A broken controller connection ends that connection, not the node.
            if let Ok(Flow::Stop) = serve_one(stream, &mut handle, &refuse) {
                return Ok(());
            }
        }
    }
}

impl Drop for ControlListener {
    fn drop(&mut self) {
        // Nothing is lost if the file is gone already.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The reply that a command waits for. Dropping it unsent tells the controller that the command
/// was given up.
#[must_use = "the controller waits for it"]
pub struct Reply<R> {
    id: u64,
    connection: Arc<Connection>,
    sent: bool,
    types: PhantomData<fn(R)>,
}

impl<R: Serialize> Reply<R> {
    /// Sends the reply. A controller that has gone away is no error of the node's.
    pub fn send(mut self, reply: &R) {
        self.sent = true;
        self.connection.write(&Outgoing {
            id: self.id,
            body: Some(reply),
        });
    }
}

impl<R> Drop for Reply<R> {
    fn drop(&mut self) {
        if !self.sent {
            self.connection.write(&Outgoing::<()> {
                id: self.id,
                body: None,
            });
        }
        self.connection.outstanding.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The writing half of a controller's connection.
struct Connection {
    stream: Mutex<UnixStream>,
    outstanding: AtomicUsize,
}

impl Connection {
    /// Writes one line at once. A connection that cannot take it is closed, which the reading
    /// half notices.
    fn write<T: Serialize>(&self, line: &Outgoing<'_, T>) {
        let bytes = serde_json::to_vec(line).map(|mut bytes| {
            bytes.push(b'\n');
            bytes
        });
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let written = bytes
            .map_err(std::io::Error::from)
            .and_then(|bytes| stream.write_all(&bytes));
        if written.is_err() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// The id of a line whose body is no command.
#[derive(Deserialize)]
struct Addressed {
    id: u64,
}

fn serve_one<C: DeserializeOwned, R: Serialize>(
    stream: UnixStream,
    handle: &mut impl FnMut(C, Reply<R>) -> Flow,
    refuse: &impl Fn(String) -> R,
) -> std::io::Result<Flow> {
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let mut reader = BufReader::with_capacity(1 << 16, stream.try_clone()?);
    let connection = Arc::new(Connection {
        stream: Mutex::new(stream),
        outstanding: AtomicUsize::new(0),
    });
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader
            .by_ref()
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(Flow::Continue);
        }
        let (id, command) = match serde_json::from_slice::<Incoming<C>>(&line) {
            Ok(Incoming { id, body }) => (id, body.ok_or_else(|| "it has no body".to_owned())),
            Err(error) => match serde_json::from_slice::<Addressed>(&line) {
                Ok(Addressed { id }) => (id, Err(error.to_string())),
                // Without an id there is nobody to answer: the peer speaks something else.
                Err(_) => return Ok(Flow::Continue),
            },
        };
        let waiting = connection.outstanding.fetch_add(1, Ordering::Relaxed);
        let reply = Reply {
            id,
            connection: Arc::clone(&connection),
            sent: false,
            types: PhantomData,
        };
        match command {
            Ok(_) if waiting >= MAX_OUTSTANDING => reply.send(&refuse(format!(
                "{MAX_OUTSTANDING} commands wait for their replies"
            ))),
            Ok(command) => {
                if handle(command, reply) == Flow::Stop {
                    return Ok(Flow::Stop);
                }
            }
            Err(reason) => reply.send(&refuse(format!("not a command: {reason}"))),
        }
    }
}
