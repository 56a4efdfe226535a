//! The node's end of a control socket.

use super::MAX_LINE_BYTES;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Whether a node goes on after a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Serve the next command.
    Continue,
    /// Reply and end.
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

    /// Serves controllers, one after the other, until a handler says stop. A line that is no
    /// command is answered with `refuse(reason)`; a controller that goes away makes room for
    /// the next.
    ///
    /// # Errors
    /// When the socket itself fails.
    pub fn serve<C: DeserializeOwned, R: Serialize>(
        &self,
        mut handle: impl FnMut(C) -> (R, Flow),
        refuse: impl Fn(String) -> R,
    ) -> std::io::Result<()> {
        loop {
            let (stream, _) = self.listener.accept()?;
            // A broken controller connection ends that connection, not the node.
            if let Ok(Flow::Stop) = serve_one(&stream, &mut handle, &refuse) {
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

fn serve_one<C: DeserializeOwned, R: Serialize>(
    stream: &UnixStream,
    handle: &mut impl FnMut(C) -> (R, Flow),
    refuse: &impl Fn(String) -> R,
) -> std::io::Result<Flow> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    loop {
        line.clear();
        if reader.by_ref().take(MAX_LINE_BYTES).read_line(&mut line)? == 0 {
            return Ok(Flow::Continue);
        }
        let (reply, flow) = match serde_json::from_str(&line) {
            Ok(command) => handle(command),
            Err(error) => (refuse(format!("not a command: {error}")), Flow::Continue),
        };
        let mut reply = serde_json::to_vec(&reply)?;
        reply.push(b'\n');
        (&*stream).write_all(&reply)?;
        if flow == Flow::Stop {
            return Ok(flow);
        }
    }
}
