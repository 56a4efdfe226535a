//! RTT by datagrams that the cloud sends back.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::{CONNECT_TIMEOUT, PROBE_PAYLOAD_BYTES, at, join};
use crate::calibration::Schedule;
use crate::clock::Clock;
use crate::error::Fault;
use crate::host::backend::Ends;
use crate::host::scheduling::{self, PROBE_PRIORITY};

/// How often the echoing end looks whether it is still needed.
const STOP_POLL: Duration = Duration::from_millis(20);

/// What was sent, by the clock that was given, and the round trips of what came back.
pub(super) struct Echoes {
    pub(super) schedule: Schedule,
    pub(super) round_trips: Vec<Duration>,
}

/// Sends `count` datagrams from the edge, one each `interval` whatever comes back, and returns
/// the round trips of those that came back within `patience` after the last was sent.
///
/// Both ends run under the packet thread's kind of scheduling: it is the link that is measured,
/// not the scheduler's mercy on the measuring threads.
pub(super) fn round_trips(
    ends: &Ends,
    clock: Clock,
    count: u32,
    interval: Duration,
    patience: Duration,
) -> Result<Echoes, Fault> {
    let stop = &AtomicBool::new(false);
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        let server = at(scope, &ends.far, move || {
            let socket = UdpSocket::bind((ends.far.address, 0))
                .map_err(Fault::failed("open the echo server's socket"))?;
            let address = socket
                .local_addr()
                .map_err(Fault::failed("name the echo server"))?;
            socket
                .set_read_timeout(Some(STOP_POLL))
                .map_err(Fault::failed("set a timeout"))?;
            // Nobody waits for it if the client has failed.
            let _ = sender.send(address);
            scheduling::be_punctual(PROBE_PRIORITY);
            let mut buffer = [0; 2048];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                    // An echo that cannot be sent counts as a ping that did not come back.
                    let _ = socket.send_to(&buffer[..len], from);
                }
            }
            Ok(())
        });
        let client = at(scope, &ends.near, move || {
            let server = receiver
                .recv_timeout(CONNECT_TIMEOUT)
                .map_err(|_| Fault::Failed("the echo server did not start".to_owned()))?;
            let socket = UdpSocket::bind((ends.near.address, 0))
                .and_then(|socket| socket.connect(server).map(|()| socket))
                .and_then(|socket| socket.set_nonblocking(true).map(|()| socket))
                .map_err(Fault::failed("open the echo client's socket"))?;
            scheduling::be_punctual(PROBE_PRIORITY);
            ping(&socket, clock, count, interval, patience)
        });
        let round_trips = join(client);
        stop.store(true, Ordering::Relaxed);
        join(server)?;
        round_trips
    })
}

fn ping(
    socket: &UdpSocket,
    clock: Clock,
    count: u32,
    interval: Duration,
    patience: Duration,
) -> Result<Echoes, Fault> {
    let start = clock.now();
    let mut sent: Vec<Duration> = Vec::with_capacity(count as usize);
    let mut came_back = vec![false; count as usize];
    let mut round_trips = Vec::with_capacity(count as usize);
    let mut payload = [0; PROBE_PAYLOAD_BYTES];
    let echoes = |sent: Vec<Duration>, round_trips| {
        let until = sent.last().copied().unwrap_or_default() + patience;
        Echoes {
            schedule: Schedule { sent, until },
            round_trips,
        }
    };
    loop {
        let now = clock.now();
        let all_sent = sent.len() == count as usize;
        let wake = if all_sent {
            sent.last().copied().unwrap_or_default() + patience
        } else {
            start + interval * sent.len() as u32
        };
        if now >= wake {
            if all_sent {
                return Ok(echoes(sent, round_trips));
            }
            payload[..4].copy_from_slice(&(sent.len() as u32).to_le_bytes());
            sent.push(clock.now());
            if let Err(error) = socket.send(&payload)
                && error.kind() != io::ErrorKind::WouldBlock
            {
                return Err(Fault::failed("send an echo datagram")(error));
            }
            continue;
        }
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut fds, Some(TimeSpec::from(wake - now)), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(Fault::failed("wait for an echo")(error)),
        }
        let mut buffer = [0; 2048];
        while let Ok(len) = socket.recv(&mut buffer) {
            let arrival = clock.now();
            let Some(number) = buffer[..len].first_chunk().map(|&n| u32::from_le_bytes(n)) else {
                continue;
            };
            let number = number as usize;
            if let (Some(&departure), Some(seen)) = (sent.get(number), came_back.get_mut(number))
                && !*seen
            {
                *seen = true;
                round_trips.push(arrival - departure);
            }
        }
        if round_trips.len() == count as usize {
            return Ok(echoes(sent, round_trips));
        }
    }
}
