//! The controller's end of a control socket.

use super::{Incoming, MAX_LINE_BYTES, MAX_OUTSTANDING, Outgoing, WRITE_TIMEOUT};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::marker::PhantomData;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
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
    /// The node did not reply in time. The connection can still be used: a late reply is dropped.
    #[error("talk to the node at {path}: no reply within {} s", timeout.as_secs())]
    Timeout {
        /// The socket.
        path: PathBuf,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// The node sent something else than a reply.
    #[error("talk to the node at {path}: it sent no valid reply ({reason})")]
    Invalid {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// As many commands as a connection may have wait for their replies.
    #[error("talk to the node at {path}: {MAX_OUTSTANDING} commands wait for replies already")]
    Full {
        /// The socket.
        path: PathBuf,
    },
}

/// The outcome of one command.
pub type ControlResult<R> = Result<R, ControlError>;

/// A connection to a node's control socket, for commands `C` and replies `R`. Any number of
/// threads may use it; replies come in any order and are told apart by their ids.
pub struct ControlClient<C, R> {
    stream: Mutex<UnixStream>,
    shared: Arc<Shared<R>>,
    next_id: AtomicU64,
    reader: Option<JoinHandle<()>>,
    types: PhantomData<fn(C)>,
}

/// A command in the bytes that go over the socket, so that a sender can encode it ahead of time.
pub struct Encoded {
    id: u64,
    line: Vec<u8>,
}

/// What the reader and the senders share.
struct Shared<R> {
    path: PathBuf,
    waiting: Mutex<Waiting<R>>,
}

struct Waiting<R> {
    by_id: HashMap<u64, Waiter<R>>,
    /// Why nothing more will come.
    ended: Option<End>,
}

struct Waiter<R> {
    tag: u64,
    sink: Sender<(u64, ControlResult<R>)>,
}

/// Why a connection ended; every waiting command gets an error of its own from it.
#[derive(Clone)]
enum End {
    Closed,
    Io(std::io::ErrorKind),
    Invalid(String),
}

impl<R> Shared<R> {
    fn waiting(&self) -> MutexGuard<'_, Waiting<R>> {
        // No one panics while holding it, and the map is whole at every moment.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, end: &End) -> ControlError {
        let path = self.path.clone();
        match end {
            End::Closed => ControlError::Closed { path },
            End::Io(kind) => ControlError::Io {
                path,
                source: (*kind).into(),
            },
            End::Invalid(reason) => ControlError::Invalid {
                path,
                reason: reason.clone(),
            },
        }
    }

    fn end(&self, end: End) {
        let mut waiting = self.waiting();
        for (_, waiter) in waiting.by_id.drain() {
            // Whoever dropped the receiver no longer wants to know.
            let _ = waiter.sink.send((waiter.tag, Err(self.error(&end))));
        }
        waiting.ended.get_or_insert(end);
    }
}

impl<C: Serialize, R: DeserializeOwned + Send + 'static> ControlClient<C, R> {
    /// Connects to a node.
    ///
    /// # Errors
    /// [`ControlError::Io`] when nobody listens.
    pub fn connect(path: &Path) -> ControlResult<Self> {
        let io = |source| ControlError::Io {
            path: path.to_owned(),
            source,
        };
        let stream = UnixStream::connect(path).map_err(io)?;
        // A node that no longer reads must not hold its controller for ever.
        stream.set_write_timeout(Some(WRITE_TIMEOUT)).map_err(io)?;
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            waiting: Mutex::new(Waiting {
                by_id: HashMap::new(),
                ended: None,
            }),
        });
        let incoming = stream.try_clone().map_err(io)?;
        let reader = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || {
                    let end = read_replies(&incoming, &shared);
                    shared.end(end);
                }
            })
            .map_err(io)?;
        Ok(Self {
            stream: Mutex::new(stream),
            shared,
            next_id: AtomicU64::new(1),
            reader: Some(reader),
            types: PhantomData,
        })
    }

    /// Sends a command and waits at most `timeout` for its reply.
    ///
    /// # Errors
    /// [`ControlError::Closed`] when the node ended, [`ControlError::Timeout`] when it is late.
    pub fn call(&self, command: &C, timeout: Duration) -> ControlResult<R> {
        let encoded = self.encode(command)?;
        let id = encoded.id;
        let (sink, outcome) = channel();
        self.send(encoded, 0, &sink)?;
        // The waiter must hold the only sender, so that its loss is noticed.
        drop(sink);
        match outcome.recv_timeout(timeout) {
            Ok((_, outcome)) => outcome,
            Err(RecvTimeoutError::Timeout) => {
                self.shared.waiting().by_id.remove(&id);
                let path = self.shared.path.clone();
                Err(ControlError::Timeout { path, timeout })
            }
            Err(RecvTimeoutError::Disconnected) => Err(self.shared.error(&End::Closed)),
        }
    }

    /// Sends a command and returns; its outcome goes to `sink` together with `tag`. Every
    /// command that was sent has exactly one outcome, also when the node ends.
    ///
    /// # Errors
    /// When it cannot be sent; nothing goes to `sink` then.
    pub fn submit(
        &self,
        command: &C,
        tag: u64,
        sink: &Sender<(u64, ControlResult<R>)>,
    ) -> ControlResult<()> {
        self.send(self.encode(command)?, tag, sink)
    }

    /// The bytes of a command, for [`ControlClient::send`].
    ///
    /// # Errors
    /// [`ControlError::Invalid`] when it cannot be written as JSON.
    pub fn encode(&self, command: &C) -> ControlResult<Encoded> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut line = serde_json::to_vec(&Outgoing {
            id,
            body: Some(command),
        })
        .map_err(|error| self.shared.error(&End::Invalid(error.to_string())))?;
        line.push(b'\n');
        Ok(Encoded { id, line })
    }

    /// As [`ControlClient::submit`], with a command that has been encoded already.
    ///
    /// # Errors
    /// As [`ControlClient::submit`].
    pub fn send(
        &self,
        encoded: Encoded,
        tag: u64,
        sink: &Sender<(u64, ControlResult<R>)>,
    ) -> ControlResult<()> {
        let Encoded { id, line } = encoded;
        {
            let mut waiting = self.shared.waiting();
            if let Some(end) = &waiting.ended {
                return Err(self.shared.error(end));
            }
            if waiting.by_id.len() >= MAX_OUTSTANDING {
                let path = self.shared.path.clone();
                return Err(ControlError::Full { path });
            }
            let sink = sink.clone();
            waiting.by_id.insert(id, Waiter { tag, sink });
        }
        let written = self
            .stream
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write_all(&line);
        let Err(error) = written else {
            return Ok(());
        };
        // Half a line may be out: the connection is of no use any more.
        self.close();
        match self.shared.waiting().by_id.remove(&id) {
            Some(_) => Err(self.shared.error(&End::Io(error.kind()))),
            // The reader noticed first, and has told the sink.
            None => Ok(()),
        }
    }
}

impl<C, R> ControlClient<C, R> {
    fn close(&self) {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        // Already closed is closed.
        let _ = stream.shutdown(Shutdown::Both);
    }
}

impl<C, R> Drop for ControlClient<C, R> {
    fn drop(&mut self) {
        self.close();
        if let Some(reader) = self.reader.take() {
            // It ends with the connection; a panic of it has been told already.
            let _ = reader.join();
        }
    }
}

/// Hands replies to those who wait for them, until the connection ends.
fn read_replies<R: DeserializeOwned>(stream: &UnixStream, shared: &Shared<R>) -> End {
    let mut reader = BufReader::with_capacity(1 << 16, stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader
            .by_ref()
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut line)
        {
            Ok(0) => return End::Closed,
            Ok(_) if line.last() != Some(&b'\n') => return End::Closed,
            Ok(_) => {}
            Err(error) => return End::Io(error.kind()),
        }
        let reply: Incoming<R> = match serde_json::from_slice(&line) {
            Ok(reply) => reply,
            Err(error) => return End::Invalid(error.to_string()),
        };
        let Some(waiter) = shared.waiting().by_id.remove(&reply.id) else {
            // Its sender gave it up.
            continue;
        };
        let outcome = reply.body.ok_or_else(|| {
            shared.error(&End::Invalid("the command was given up there".to_owned()))
        });
        let _ = waiter.sink.send((waiter.tag, outcome));
    }
}
