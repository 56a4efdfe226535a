//! Rate by datagrams offered above it: what a path carries that TCP does not fill.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::{CONNECT_TIMEOUT, DATAGRAM_HEADER_BYTES, at, enlarge_receive_buffer, join};
use crate::calibration::{FULL_BYTES, Window, flood_gap};
use crate::clock::Clock;
use crate::error::Fault;
use crate::host::backend::End;

/// How long the receiver waits for a datagram before it looks at the time.
const RECEIVE_TIMEOUT: Duration = Duration::from_millis(20);
/// The longest step by which the sender may fall behind without catching up in a burst.
const GREATEST_BURST: Duration = Duration::from_millis(5);

/// Offers full datagrams at `offered_mbit` and returns the rate at which they arrive in a window
/// after warm-up, in Mbit/s with IP headers; `None` if fewer than two did. The window is that of
/// the clock that is given.
pub(super) fn rate_mbit(
    from: &End,
    to: &End,
    clock: Clock,
    offered_mbit: f64,
    warm_up: Duration,
    window: Duration,
) -> Result<(Option<f64>, Window), Fault> {
    let stop = &AtomicBool::new(false);
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        let sink = at(scope, to, move || {
            let socket =
                UdpSocket::bind((to.address, 0)).map_err(Fault::failed("open the flood's sink"))?;
            enlarge_receive_buffer(&socket);
            socket
                .set_read_timeout(Some(RECEIVE_TIMEOUT))
                .map_err(Fault::failed("set a timeout"))?;
            let address = socket
                .local_addr()
                .map_err(Fault::failed("name the flood's sink"))?;
            // Nobody waits for it if the sender has failed.
            let _ = sender.send(address);
            let start = clock.now();
            let window = Window {
                start,
                from: start + warm_up,
                until: start + warm_up + window,
            };
            let rate = receive(&socket, clock, window);
            stop.store(true, Ordering::Relaxed);
            Ok((rate, window))
        });
        let source = at(scope, from, move || {
            let receiver = receiver
                .recv_timeout(CONNECT_TIMEOUT)
                .map_err(|_| Fault::Failed("the flood's sink did not open".to_owned()))?;
            let socket = UdpSocket::bind((from.address, 0))
                .and_then(|socket| socket.connect(receiver).map(|()| socket))
                .map_err(Fault::failed("open the flood's source"))?;
            let payload = vec![0; FULL_BYTES - DATAGRAM_HEADER_BYTES];
            let gap = flood_gap(offered_mbit);
            let clock = Clock::start();
            let mut due = Duration::ZERO;
            while !stop.load(Ordering::Relaxed) && clock.now() < warm_up + 2 * window {
                let now = clock.now();
                due = due.max(now.saturating_sub(GREATEST_BURST));
                if due > now {
                    thread::sleep((due - now).max(Duration::from_micros(200)));
                    continue;
                }
                socket
                    .send(&payload)
                    .map_err(Fault::failed("send a flood's datagram"))?;
                due += gap;
            }
            Ok(())
        });
        let rate = join(sink)?;
        join(source)?;
        Ok(rate)
    })
}

fn receive(socket: &UdpSocket, clock: Clock, window: Window) -> Option<f64> {
    let mut buffer = [0; 2048];
    let mut first = None;
    let mut last = Duration::ZERO;
    let mut bytes = 0_u64;
    while clock.now() < window.until {
        let Ok(len) = socket.recv(&mut buffer) else {
            continue;
        };
        let now = clock.now();
        if now < window.from {
            continue;
        }
        if first.is_some() {
            bytes += (len + DATAGRAM_HEADER_BYTES) as u64;
        } else {
            first = Some(now);
        }
        last = now;
    }
    let span = last.checked_sub(first?)?.as_secs_f64();
    (span > 0.0).then(|| bytes as f64 * 8.0 / 1e6 / span)
}
