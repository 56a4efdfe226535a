//! Measuring the path over the path: RTT by echoed datagrams, loss by numbered ones, rate by a
//! TCP bulk transfer and, where that does not fill the path, by a flood of datagrams.

mod bulk;
mod echo;
mod flood;
mod sequence;

use std::os::fd::AsFd;
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use super::backend::{End, Ends};
use super::device;
use crate::calibration::{
    CalibrateOptions, Calibration, Measured, MeasuredRate, RateMethod, judge, rate_target,
};
use crate::clock::Clock;
use crate::core::{DirectionSettings, QueueLimit, transmission};
use crate::error::Fault;
use crate::profile::{Impairments, LinkProfile};

/// IP and UDP headers.
const DATAGRAM_HEADER_BYTES: usize = 28;
/// Payload of echoed and numbered datagrams.
const PROBE_PAYLOAD_BYTES: usize = 32;
/// The most numbered datagrams sent per second; at this pace no receiver's buffer overflows.
const LOSS_PACKETS_PER_SECOND: f64 = 5_000.0;
/// How long connecting may take beyond the path's RTT.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest wait between two measurements.
const GREATEST_SETTLING: Duration = Duration::from_millis(500);
/// Receive buffer asked for, so that a loss counted is the link's.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;

/// Measures the path and judges it by its profile.
pub(super) fn calibrate(
    ends: &Ends,
    profile: &LinkProfile,
    emulated: bool,
    options: &CalibrateOptions,
) -> Result<Calibration, Fault> {
    let clock = Clock::start();
    let greatest = |of: &Impairments| Duration::from_secs_f64((of.delay_ms + of.jitter_ms) / 1e3);
    let rtt = greatest(&profile.uplink) + greatest(&profile.downlink);
    // Whatever has not come back by then is lost; the rest covers a busy machine.
    let patience = rtt + Duration::from_millis(300);

    let interval = Duration::from_micros(options.ping_interval_us);
    let rtts = echo::round_trips(ends, options.pings, interval, patience)?;

    let (uplink_lost, downlink_lost) = if options.loss_datagrams == 0 {
        (0, 0)
    } else {
        thread::scope(|scope| {
            let count = options.loss_datagrams;
            let (uplink_settings, downlink_settings) = profile.settings();
            let uplink = scope.spawn(move || {
                let pace = loss_pace(&uplink_settings);
                sequence::lost(&ends.near, &ends.far, count, pace, patience)
            });
            let pace = loss_pace(&downlink_settings);
            let downlink = sequence::lost(&ends.far, &ends.near, count, pace, patience);
            Ok((join(uplink)?, downlink?))
        })?
    };

    let uplink_rate = rate(&ends.near, &ends.far, &profile.uplink, rtt, options)?;
    let downlink_rate = rate(&ends.far, &ends.near, &profile.downlink, rtt, options)?;

    let measured = Measured {
        rtts,
        pings_sent: options.pings,
        uplink_lost,
        downlink_lost,
        loss_datagrams: options.loss_datagrams,
        uplink_rate,
        downlink_rate,
        wall: clock.now(),
    };
    let ping_bytes = (PROBE_PAYLOAD_BYTES + DATAGRAM_HEADER_BYTES) as f64;
    Ok(judge(
        profile,
        emulated,
        measured,
        options.tolerances,
        ping_bytes,
        f64::from(device::MTU),
    ))
}

/// The rate of one direction: by TCP and, if that falls short of the profile, by a flood.
fn rate(
    from: &End,
    to: &End,
    of: &Impairments,
    rtt: Duration,
    options: &CalibrateOptions,
) -> Result<MeasuredRate, Fault> {
    // What is still on its way must not fall into the next measurement.
    let settle = || thread::sleep((2 * rtt + Duration::from_millis(50)).min(GREATEST_SETTLING));
    let window = Duration::from_millis(options.rate_window_ms);
    // Slow start doubles the rate every RTT; twelve of them reach a gigabit at 60 ms.
    let warm_up = (12 * rtt).clamp(Duration::from_millis(400), Duration::from_secs(2));
    let tcp_mbit = bulk::rate_mbit(from, to, warm_up, window)?;
    settle();
    let by_tcp = MeasuredRate {
        mbit: tcp_mbit,
        method: RateMethod::Tcp,
        tcp_mbit,
    };
    let enough = rate_target(of, f64::from(device::MTU))
        .map(|target| target * (1.0 - options.tolerances.rate_fraction));
    let (Some(enough), Some(limit)) = (enough, of.rate_mbit) else {
        return Ok(by_tcp);
    };
    if tcp_mbit.is_some_and(|mbit| mbit >= enough) {
        return Ok(by_tcp);
    }
    // Offered above the rate, so that after losses the path is still full.
    let offered = 1.25 * limit / (1.0 - of.loss).max(0.05);
    let flood_mbit = flood::rate_mbit(from, to, offered, rtt + Duration::from_millis(200), window)?;
    settle();
    if flood_mbit > tcp_mbit {
        return Ok(MeasuredRate {
            mbit: flood_mbit,
            method: RateMethod::Udp,
            tcp_mbit,
        });
    }
    Ok(by_tcp)
}

/// Numbered datagrams per second: at most half of what the rate carries and half of what fits
/// into the queue, which holds those in propagation too, so that what is lost is the loss model's.
fn loss_pace(settings: &DirectionSettings) -> f64 {
    let len = PROBE_PAYLOAD_BYTES + DATAGRAM_HEADER_BYTES;
    let tx = settings
        .bandwidth
        .mean_bits_per_second()
        .map_or(Duration::ZERO, |rate| {
            transmission(rate as u64, settings.framing.charged_bytes(len))
        });
    let room = match settings.queue.limit {
        QueueLimit::Bytes(bytes) => bytes / len,
        QueueLimit::Packets(packets) => packets,
    };
    let in_propagation = (settings.delay + settings.jitter.greatest()) / room.max(1) as u32;
    let gap = 2 * tx.max(in_propagation);
    LOSS_PACKETS_PER_SECOND.min(1.0 / gap.as_secs_f64().max(1e-9))
}

/// The congestion control that a connection over a leg really has, at both ends.
pub(super) fn congestion_control(ends: &Ends) -> Result<String, Fault> {
    let (near, far) = bulk::congestion_controls(&ends.near, &ends.far)?;
    if near == far {
        return Ok(near);
    }
    Err(Fault::Failed(format!(
        "connections of the {} use {near}, those of the {} {far}",
        ends.leg.near, ends.leg.far
    )))
}

/// Runs `work` on a thread of its own at an end of the path.
fn at<'scope, 'env, T: Send + 'scope>(
    scope: &'scope Scope<'scope, 'env>,
    end: &'env End,
    work: impl FnOnce() -> Result<T, Fault> + Send + 'scope,
) -> ScopedJoinHandle<'scope, Result<T, Fault>> {
    scope.spawn(move || {
        end.enter()?;
        work()
    })
}

fn join<T>(thread: ScopedJoinHandle<'_, Result<T, Fault>>) -> Result<T, Fault> {
    thread
        .join()
        .unwrap_or_else(|_| Err(Fault::Failed("a measuring thread panicked".to_owned())))
}

/// Gives a socket a large receive buffer, beyond the host's bound where the kernel allows it.
fn enlarge_receive_buffer(socket: &impl AsFd) {
    if setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES).is_err() {
        // What the kernel grants instead is enough at the pace of the tools.
        let _ = setsockopt(socket, sockopt::RcvBuf, &RECEIVE_BUFFER_BYTES);
    }
}

/// Makes closing a socket discard what it has not sent, so that it does not linger on the link.
fn discard_on_close(socket: &impl AsFd) -> Result<(), Fault> {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(socket, sockopt::Linger, &linger).map_err(Fault::failed("set a socket's linger"))
}
