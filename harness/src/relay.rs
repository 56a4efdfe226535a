//! A way out of the emulated link to a server elsewhere.
//!
//! The nodes' namespaces reach each other and nothing else. For a server outside, the inner half
//! listens at the cloud's end of the link and passes every connection over a Unix socket, which
//! namespaces do not separate, to the outer half in the controller, which connects to the server.
//! So the traffic crosses the emulated link, and then this machine's own way to the server, whose
//! delay adds to the link's. Bytes are passed on as they are: TLS goes through.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Most connections at once; a further one is closed at once.
const MAX_CONNECTIONS: usize = 512;
/// Longest wait for the server to take a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that are passed on at a time.
const BUFFER_BYTES: usize = 64 << 10;

/// The outer half: ends with its drop, and takes no new connections then.
#[must_use = "nothing is passed on once this is dropped"]
pub struct Exit {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Exit {
    /// Listens at a Unix socket and connects each connection there to `host` and `port`.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn open(path: &Path, host: &str, port: u16) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let target = (host.to_owned(), port);
        let accepting = thread::Builder::new()
            .name("relay".to_owned())
            .spawn(move || {
                let count = Arc::new(AtomicUsize::new(0));
                for stream in listener.incoming() {
                    if ended.load(Ordering::Relaxed) {
                        return;
                    }
                    let Ok(stream) = stream else { continue };
                    let target = target.clone();
                    pass_on(&count, stream, move || connect(&target.0, target.1));
                }
            })?;
        Ok(Self {
            path: path.to_owned(),
            stop,
            accepting: Some(accepting),
        })
    }
}

impl Drop for Exit {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread, which then ends; without the socket it cannot be woken and is left.
        if UnixStream::connect(&self.path).is_ok()
            && let Some(thread) = self.accepting.take()
        {
            let _ = thread.join();
        }
    }
}

/// The inner half: serves until the process is ended.
///
/// # Errors
/// When it cannot listen.
pub fn serve(listen: SocketAddr, exit: &Path) -> io::Result<()> {
    let listener = TcpListener::bind(listen)?;
    let count = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        let exit = exit.to_owned();
        pass_on(&count, stream, move || UnixStream::connect(exit));
    }
    Ok(())
}

fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Opens the other side of a connection and passes bytes both ways, on threads of their own.
fn pass_on<A: Side, B: Side>(
    count: &Arc<AtomicUsize>,
    here: A,
    open: impl FnOnce() -> io::Result<B> + Send + 'static,
) {
    if count.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
        count.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    let place = Place(Arc::clone(count));
    // Without a thread the connection is closed, which its other end sees.
    let _ = thread::Builder::new()
        .name("relay-up".to_owned())
        .spawn(move || {
            let _place = place;
            // The reason is for the other end to find out: its connection closes.
            if let Ok(there) = open() {
                let _ = both_ways(here, there);
            }
        });
}

/// One of the connections that may be open at once.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn both_ways<A: Side, B: Side>(here: A, there: B) -> io::Result<()> {
    here.prepare()?;
    there.prepare()?;
    let (mut from_there, mut to_here) = (there.copy()?, here.copy()?);
    let down = thread::Builder::new()
        .name("relay-down".to_owned())
        .spawn(move || pump(&mut from_there, &mut to_here))?;
    let (mut here, mut there) = (here, there);
    pump(&mut here, &mut there);
    let _ = down.join();
    Ok(())
}

/// Passes on until either side ends, then ends both: HTTP has no use for half a connection. What
/// has been written still arrives.
fn pump(from: &mut impl Side, to: &mut impl Side) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    from.end();
    to.end();
}

/// One side of a connection.
trait Side: Read + Write + Send + Sized + 'static {
    fn prepare(&self) -> io::Result<()>;
    fn copy(&self) -> io::Result<Self>;
    fn end(&self);
}

impl Side for TcpStream {
    fn prepare(&self) -> io::Result<()> {
        self.set_nodelay(true)
    }

    fn copy(&self) -> io::Result<Self> {
        self.try_clone()
    }

    fn end(&self) {
        // It may have ended by itself.
        let _ = self.shutdown(Shutdown::Both);
    }
}

impl Side for UnixStream {
    fn prepare(&self) -> io::Result<()> {
        Ok(())
    }

    fn copy(&self) -> io::Result<Self> {
        self.try_clone()
    }

    fn end(&self) {
        let _ = self.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A free port of the loopback device.
    fn free() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    }

    fn dial(address: SocketAddr) -> TcpStream {
        for _ in 0..200 {
            if let Ok(stream) = TcpStream::connect(address) {
                stream
                    .set_read_timeout(Some(Duration::from_secs(20)))
                    .unwrap();
                return stream;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("nobody listens at {address}");
    }

    #[test]
    fn bytes_pass_both_ways_and_ends_are_passed_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exit.sock");
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let exit = Exit::open(&path, "127.0.0.1", server.local_addr().unwrap().port()).unwrap();
        let inside = free();
        let inner = path.clone();
        thread::spawn(move || serve(inside, &inner));
        let mut client = dial(inside);
        let (mut served, _) = server.accept().unwrap();
        client.write_all(b"ping").unwrap();
        let mut four = [0; 4];
        served.read_exact(&mut four).unwrap();
        assert_eq!(&four, b"ping");
        // The server's last words arrive although it closes at once.
        let long = vec![7u8; 3 << 20];
        let writer = {
            let long = long.clone();
            thread::spawn(move || {
                served.write_all(&long).unwrap();
                drop(served);
            })
        };
        let mut received = Vec::new();
        client.read_to_end(&mut received).unwrap();
        writer.join().unwrap();
        assert!(received == long, "{} bytes", received.len());
        // With the outer half gone, connections close instead of hanging.
        drop(exit);
        std::fs::remove_file(&path).unwrap();
        let mut orphan = dial(inside);
        let _ = orphan.write_all(b"anyone?");
        assert!(matches!(orphan.read(&mut four), Ok(0) | Err(_)));
    }
}
