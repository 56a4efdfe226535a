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

use sequence::Numbered;

use super::backend::{End, Ends};
use super::device;
use crate::calibration::{
    CalibrateOptions, Calibration, Expected, FULL_BYTES, Measured, MeasuredRate, PROBE_BYTES,
    Predicted, Predictor, RateMethod, RateSample, Way, Window, choose, judge,
};
use crate::clock::Clock;
use crate::error::Fault;
use crate::profile::LinkProfile;

// What is simulated are the packets that are measured.
const _: () = assert!(FULL_BYTES == device::MTU as usize);

/// IP and UDP headers.
const DATAGRAM_HEADER_BYTES: usize = 28;
/// Payload of echoed and numbered datagrams.
const PROBE_PAYLOAD_BYTES: usize = PROBE_BYTES - DATAGRAM_HEADER_BYTES;
/// How much longer than the link alone explains a datagram is waited for, since the machine may be
/// busy.
const PATIENCE: Duration = Duration::from_millis(300);
/// How long connecting may take beyond the path's RTT.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest wait between two measurements.
const GREATEST_SETTLING: Duration = Duration::from_millis(500);
/// Receive buffer asked for, so that a loss counted is the link's.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;

/// Measures the path and judges it by its profile. `applied` is a clock that has run since the leg
/// got the profile, where there is one.
pub(super) fn calibrate(
    ends: &Ends,
    profile: &LinkProfile,
    emulated: bool,
    applied: Option<Clock>,
    options: &CalibrateOptions,
) -> Result<Calibration, Fault> {
    let wall = Clock::start();
    let predictor = Predictor::new(profile, applied.is_some(), options.tolerances.loss_z);
    let rtt = predictor.greatest_rtt();
    let mut measuring = Measuring {
        ends,
        predictor,
        phased: applied.is_some(),
        clock: applied.unwrap_or(wall),
        rtt,
        options,
        predicting: Duration::ZERO,
    };
    let patience = rtt + PATIENCE;

    let interval = Duration::from_micros(options.ping_interval_us);
    let echoes = echo::round_trips(ends, measuring.clock, options.pings, interval, patience)?;
    let [uplink, downlink] = measuring.losses(patience)?;
    let (uplink_rate, uplink_expected) = measuring.rate(Way::Uplink)?;
    let (downlink_rate, downlink_expected) = measuring.rate(Way::Downlink)?;

    let [rtt_p50_ms, rtt_p99_ms] = measuring.predict(|link| link.round_trips(&echoes.schedule));
    let predicted = Predicted {
        rtt_p50_ms,
        rtt_p99_ms,
        uplink_loss: measuring.predict(|link| link.loss(Way::Uplink, &uplink.schedule)),
        downlink_loss: measuring.predict(|link| link.loss(Way::Downlink, &downlink.schedule)),
        uplink_rate: uplink_expected,
        downlink_rate: downlink_expected,
    };
    // A link that emulates nothing has no RTT and no rate to keep, but loses nothing either.
    let predicted = if emulated {
        predicted
    } else {
        Predicted {
            uplink_loss: predicted.uplink_loss,
            downlink_loss: predicted.downlink_loss,
            ..Predicted::NOTHING
        }
    };
    let measured = Measured {
        rtts: echoes.round_trips,
        pings_sent: options.pings,
        uplink_lost: uplink.lost,
        downlink_lost: downlink.lost,
        loss_datagrams: options.loss_datagrams,
        uplink_rate,
        downlink_rate,
    };
    Ok(Calibration {
        wall_ms: wall.now().as_secs_f64() * 1e3,
        prediction_ms: measuring.predicting.as_secs_f64() * 1e3,
        ..judge(&profile.name, measured, &predicted, options.tolerances)
    })
}

/// One calibration.
struct Measuring<'a> {
    ends: &'a Ends,
    predictor: Predictor,
    /// Whether the clock has run since the leg got its profile.
    phased: bool,
    clock: Clock,
    /// The greatest without a queue.
    rtt: Duration,
    options: &'a CalibrateOptions,
    /// Time spent on predictions.
    predicting: Duration,
}

impl Measuring<'_> {
    /// Predicts something, which must not happen beside a measurement.
    fn predict<T>(&mut self, what: impl FnOnce(&Predictor) -> T) -> T {
        let start = self.clock.now();
        let predicted = what(&self.predictor);
        self.predicting += self.clock.now() - start;
        predicted
    }

    /// Sends numbered datagrams both ways at once.
    fn losses(&self, patience: Duration) -> Result<[Numbered; 2], Fault> {
        let count = self.options.loss_datagrams;
        if count == 0 {
            return Ok(Default::default());
        }
        let Ends { near, far, .. } = self.ends;
        let clock = self.clock;
        let [uplink_pace, downlink_pace] =
            [Way::Uplink, Way::Downlink].map(|way| self.predictor.loss_pace(way));
        thread::scope(|scope| {
            let uplink =
                scope.spawn(move || sequence::lost(near, far, clock, count, uplink_pace, patience));
            let downlink = sequence::lost(far, near, clock, count, downlink_pace, patience);
            Ok([join(uplink)?, downlink?])
        })
    }

    /// The rate of one direction, by TCP and, if that is not what the profile's link carries, by a
    /// flood; and what it is to be.
    fn rate(&mut self, way: Way) -> Result<(MeasuredRate, Expected), Fault> {
        let (from, to) = match way {
            Way::Uplink => (&self.ends.near, &self.ends.far),
            Way::Downlink => (&self.ends.far, &self.ends.near),
        };
        let (rtt, clock, tolerances) = (self.rtt, self.clock, self.options.tolerances);
        // What is still on its way must not fall into the next measurement.
        let settle = || thread::sleep((2 * rtt + Duration::from_millis(50)).min(GREATEST_SETTLING));
        let window = Duration::from_millis(self.options.rate_window_ms);
        // Slow start doubles the rate every RTT; twelve of them reach a gigabit at 60 ms.
        let warm_up = (12 * rtt).clamp(Duration::from_millis(400), Duration::from_secs(2));
        let flood_warm_up = rtt + Duration::from_millis(200);
        let (mbit, window_of_tcp) = bulk::rate_mbit(from, to, clock, warm_up, window)?;
        settle();
        let filled = Window {
            // As long before the counting as a flood would have begun.
            start: window_of_tcp.from.saturating_sub(flood_warm_up),
            ..window_of_tcp
        };
        let tcp = RateSample {
            mbit,
            expected: self.predict(|link| link.rate(way, filled)),
            window: filled,
        };
        let offered = self.predictor.flood_mbit(way);
        let (method, sample) = match offered {
            Some(offered) if !tcp.suffices(&tolerances) => {
                let (mbit, window) =
                    flood::rate_mbit(from, to, clock, offered, flood_warm_up, window)?;
                settle();
                let flood = RateSample {
                    mbit,
                    expected: self.predict(|link| link.rate(way, window)),
                    window,
                };
                match choose(&tcp, &flood, &tolerances) {
                    RateMethod::Tcp => (RateMethod::Tcp, tcp),
                    RateMethod::Udp => (RateMethod::Udp, flood),
                }
            }
            _ => (RateMethod::Tcp, tcp),
        };
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        let rate = MeasuredRate {
            mbit: sample.mbit,
            method,
            tcp_mbit: tcp.mbit,
            window_ms: self
                .phased
                .then(|| [millis(sample.window.from), millis(sample.window.until)]),
        };
        Ok((rate, sample.expected))
    }
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
