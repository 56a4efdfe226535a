//! Loss by numbered datagrams.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::{CONNECT_TIMEOUT, PROBE_PAYLOAD_BYTES, at, enlarge_receive_buffer, join};
use crate::calibration::Schedule;
use crate::clock::Clock;
use crate::error::Fault;
use crate::host::backend::End;
use crate::host::scheduling::{self, PROBE_PRIORITY};

/// How often the receiver looks whether everything was sent.
const STOP_POLL: Duration = Duration::from_millis(20);

/// What was sent, by the clock that was given, and how many did not arrive.
#[derive(Default)]
pub(super) struct Numbered {
    pub(super) schedule: Schedule,
    pub(super) lost: u32,
}

/// Sends `count` datagrams at `packets_per_second` and returns how many did not arrive within
/// `patience` after the last was sent.
pub(super) fn lost(
    from: &End,
    to: &End,
    clock: Clock,
    count: u32,
    packets_per_second: f64,
    patience: Duration,
) -> Result<Numbered, Fault> {
    let stop = &AtomicBool::new(false);
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        let arrivals = at(scope, to, move || {
            let socket = UdpSocket::bind((to.address, 0))
                .map_err(Fault::failed("open the counting socket"))?;
            enlarge_receive_buffer(&socket);
            socket
                .set_read_timeout(Some(STOP_POLL))
                .map_err(Fault::failed("set a timeout"))?;
            let address = socket
                .local_addr()
                .map_err(Fault::failed("name the counting socket"))?;
            // Nobody waits for it if the sender has failed.
            let _ = sender.send(address);
            let mut seen = vec![false; count as usize];
            let mut arrived = 0;
            let mut buffer = [0; 2048];
            while arrived < count && !stop.load(Ordering::Relaxed) {
                let Ok(len) = socket.recv(&mut buffer) else {
                    continue;
                };
                let number = buffer[..len]
                    .first_chunk()
                    .map(|&n| u32::from_le_bytes(n) as usize);
                if let Some(seen) = number.and_then(|number| seen.get_mut(number))
                    && !*seen
                {
                    *seen = true;
                    arrived += 1;
                }
            }
            Ok(arrived)
        });
        let sent = join(at(scope, from, move || {
            let receiver = receiver
                .recv_timeout(CONNECT_TIMEOUT)
                .map_err(|_| Fault::Failed("the counting socket did not open".to_owned()))?;
            let socket = UdpSocket::bind((from.address, 0))
                .and_then(|socket| socket.connect(receiver).map(|()| socket))
                .map_err(Fault::failed("open the numbering socket"))?;
            scheduling::be_punctual(PROBE_PRIORITY);
            let start = clock.now();
            let mut sent = Vec::with_capacity(count as usize);
            let mut payload = [0; PROBE_PAYLOAD_BYTES];
            for number in 0..count {
                let due = Duration::from_secs_f64(f64::from(number) / packets_per_second);
                thread::sleep((start + due).saturating_sub(clock.now()));
                payload[..4].copy_from_slice(&number.to_le_bytes());
                sent.push(clock.now());
                socket
                    .send(&payload)
                    .map_err(Fault::failed("send a numbered datagram"))?;
            }
            Ok(sent)
        }));
        if sent.is_ok() {
            wait(patience, || arrivals.is_finished());
        }
        stop.store(true, Ordering::Relaxed);
        let arrived = join(arrivals)?;
        let sent = sent?;
        let until = sent.last().copied().unwrap_or_default() + patience;
        Ok(Numbered {
            schedule: Schedule { sent, until },
            lost: count - arrived,
        })
    })
}

/// Waits until `done` or the time is over.
fn wait(patience: Duration, done: impl Fn() -> bool) {
    let clock = Clock::start();
    while clock.now() < patience && !done() {
        thread::sleep(Duration::from_millis(2));
    }
}
