//! Rate by one TCP bulk transfer, counted at the receiver.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};

use super::{CONNECT_TIMEOUT, at, discard_on_close, join};
use crate::calibration::Window;
use crate::clock::Clock;
use crate::error::Fault;
use crate::host::backend::End;
use crate::host::device::{LOOPBACK_MTU, MTU};

/// How long a read or write waits before it looks at the time.
const IO_TIMEOUT: Duration = Duration::from_millis(50);
/// Bytes handed to the kernel at once.
const BLOCK_BYTES: usize = 256 << 10;

/// Sends as fast as TCP allows and returns the rate in a window after warm-up, in Mbit/s with IP
/// headers; `None` if nothing arrived. The window is that of the clock that is given.
pub(super) fn rate_mbit(
    from: &End,
    to: &End,
    clock: Clock,
    warm_up: Duration,
    window: Duration,
) -> Result<(Option<f64>, Window), Fault> {
    let stop = AtomicBool::new(false);
    connected(
        from,
        to,
        |mut stream| {
            let mtu = if from.namespace.is_some() {
                MTU
            } else {
                LOOPBACK_MTU
            };
            let segment = getsockopt(&stream, sockopt::TcpMaxSeg)
                .map_err(Fault::failed("read the segment size"))?;
            let block = vec![0; BLOCK_BYTES];
            let clock = Clock::start();
            while !stop.load(Ordering::Relaxed) && clock.now() < warm_up + window + CONNECT_TIMEOUT
            {
                match stream.write(&block) {
                    Ok(_) => {}
                    Err(error) if is_timeout(&error) => {}
                    // The receiver resets the connection once it has seen enough.
                    Err(_) => break,
                }
            }
            Ok(f64::from(mtu) / f64::from(segment.max(1)))
        },
        |mut stream| {
            let start = clock.now();
            let window = Window {
                start,
                from: start + warm_up,
                until: start + warm_up + window,
            };
            let goodput = receive(&mut stream, clock, window);
            stop.store(true, Ordering::Relaxed);
            Ok((goodput, window))
        },
    )
    .map(|(headers, (goodput, window))| (goodput.map(|goodput| goodput * headers), window))
}

/// The congestion controls at both ends of a connection.
pub(super) fn congestion_controls(from: &End, to: &End) -> Result<(String, String), Fault> {
    let read = |stream: &TcpStream| {
        let name = getsockopt(stream, sockopt::TcpCongestion)
            .map_err(Fault::failed("read a connection's congestion control"))?;
        Ok(name.to_string_lossy().trim_end_matches('\0').to_owned())
    };
    connected(
        from,
        to,
        |stream| read(&stream),
        |mut stream| {
            let name = read(&stream)?;
            // Closing before the client has seen the connection would fail its connecting.
            let clock = Clock::start();
            let mut byte = [0];
            while clock.now() < CONNECT_TIMEOUT {
                match stream.read(&mut byte) {
                    Err(error) if is_timeout(&error) => {}
                    _ => break,
                }
            }
            Ok(name)
        },
    )
}

/// Makes a connection and runs `client` and `server` at its ends.
fn connected<C: Send, S: Send>(
    from: &End,
    to: &End,
    client: impl FnOnce(TcpStream) -> Result<C, Fault> + Send,
    server: impl FnOnce(TcpStream) -> Result<S, Fault> + Send,
) -> Result<(C, S), Fault> {
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        let server = at(scope, to, move || {
            let listener =
                TcpListener::bind((to.address, 0)).map_err(Fault::failed("listen on the path"))?;
            let address = listener
                .local_addr()
                .map_err(Fault::failed("name the listener"))?;
            // Nobody waits for it if the client has failed.
            let _ = sender.send(address);
            server(prepare(accept(&listener)?)?)
        });
        let client = at(scope, from, move || {
            let address = receiver
                .recv_timeout(CONNECT_TIMEOUT)
                .map_err(|_| Fault::Failed("the listener did not start".to_owned()))?;
            let stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)
                .map_err(Fault::failed("connect over the path"))?;
            client(prepare(stream)?)
        });
        let client = join(client);
        let server = join(server);
        Ok((client?, server?))
    })
}

/// Accepts one connection, in bounded time.
fn accept(listener: &TcpListener) -> Result<TcpStream, Fault> {
    let failed = Fault::failed::<io::Error>("accept a connection over the path");
    if let Err(error) = listener.set_nonblocking(true) {
        return Err(failed(error));
    }
    let clock = Clock::start();
    loop {
        match listener.accept() {
            Ok((stream, _)) => return Ok(stream),
            Err(error) if is_timeout(&error) && clock.now() < 2 * CONNECT_TIMEOUT => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(failed(error)),
        }
    }
}

fn prepare(stream: TcpStream) -> Result<TcpStream, Fault> {
    stream
        .set_nonblocking(false)
        .and_then(|()| stream.set_read_timeout(Some(IO_TIMEOUT)))
        .and_then(|()| stream.set_write_timeout(Some(IO_TIMEOUT)))
        .map_err(Fault::failed("prepare a connection"))?;
    discard_on_close(&stream)?;
    Ok(stream)
}

/// The rate of the payload that arrives in the window, in Mbit/s.
fn receive(stream: &mut TcpStream, clock: Clock, window: Window) -> Option<f64> {
    let mut block = vec![0; BLOCK_BYTES];
    let mut first = None;
    let mut last = Duration::ZERO;
    let mut bytes = 0_u64;
    while clock.now() < window.until {
        let len = match stream.read(&mut block) {
            Ok(0) => break,
            Ok(len) => len,
            Err(error) if is_timeout(&error) => continue,
            Err(_) => break,
        };
        let now = clock.now();
        if now < window.from {
            continue;
        }
        // The window opens with the end of a read, so the bytes of that read lie before it.
        if first.is_some() {
            bytes += len as u64;
        } else {
            first = Some(now);
        }
        last = now;
    }
    let span = last.checked_sub(first?)?.as_secs_f64();
    (span > 0.0).then(|| bytes as f64 * 8.0 / 1e6 / span)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}
