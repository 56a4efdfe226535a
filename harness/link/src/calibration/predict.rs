//! What a calibration is to see: the same datagrams over the same link on a virtual clock.
//!
//! The link is made of the profile, with random streams of its own, and is given what the tools
//! sent, at the times at which they sent it. Whatever the profile says (bursts of loss, a trace,
//! cuts, a queue that drops) is then in the prediction as it is in the measurement.

use std::time::Duration;

use super::spread::{Expected, expected};
use super::{Quantile, quantile_ms};
use crate::core::{
    Bandwidth, Departure, Direction, DirectionSettings, Jitter, LossModel, Packet, QueueLimit,
    transmission,
};
use crate::profile::LinkProfile;

/// IP length of the datagrams that are echoed and numbered.
pub(crate) const PROBE_BYTES: usize = 60;
/// IP length of the packets of a rate.
pub(crate) const FULL_BYTES: usize = 1500;

/// Packets simulated for one figure, unless that leaves too few predictions: some 0.1 s.
const PACKETS: usize = 300_000;
/// The least and the greatest number of predictions of an RTT or a loss.
const PREDICTIONS: (usize, usize) = (30, 200);
/// The greatest number of predictions of a rate, which varies little, and takes many packets.
const RATE_PREDICTIONS: usize = 20;
/// The most packets of one prediction of a rate that does not change over time.
const STEADY_PACKETS: u32 = 100_000;
/// How far a loss may be off besides, as a fraction of it, where the link changes over time: what a
/// queue drops around a change hangs on when each datagram got there, which nobody knows exactly.
const VARYING_LOSS: f64 = 0.05;
/// Datagrams are on the link somewhat later than they were sent. Where the link changes over time
/// that can move one to the next opportunity of a trace, or into a cut, so each prediction is late
/// by another part of this.
const GREATEST_LAG: Duration = Duration::from_micros(300);
/// Steps that bring a loss model from its first state to where traffic has left it.
const AGE: u32 = 20_000;
/// The most numbered datagrams sent per second; at this pace no receiver's buffer overflows.
const LOSS_PACKETS_PER_SECOND: f64 = 5_000.0;
/// What a flood offers, beside what the link carries.
const FLOOD_SURPLUS: f64 = 1.25;
/// The most that a flood offers over a trace, in Mbit/s: about what its sender can do here.
const FLOOD_MBIT: f64 = 2_000.0;
/// The least share of packets that a flood assumes to come through.
const LEAST_SURVIVAL: f64 = 0.05;
/// The seed of the first prediction. A link is given others, but nothing depends on that.
const SEED: u64 = 0x0a1b_5eed_ca11_b4a7;

/// One of the two directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Uplink,
    Downlink,
}

/// When datagrams were sent and how long they were waited for, on the leg's clock.
#[derive(Clone, Debug, Default)]
pub(crate) struct Schedule {
    /// One time each, in order.
    pub(crate) sent: Vec<Duration>,
    /// What had not come by then counts as lost.
    pub(crate) until: Duration,
}

/// When full packets were counted at the receiver, on the leg's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Window {
    /// When sending began.
    pub(crate) start: Duration,
    /// When counting began.
    pub(crate) from: Duration,
    /// When it ended.
    pub(crate) until: Duration,
}

/// Predicts what a link of this profile shows.
#[derive(Clone, Debug)]
pub(crate) struct Predictor {
    settings: [DirectionSettings; 2],
    /// Whether it is known when the settings were applied.
    phased: bool,
    z: f64,
}

impl Predictor {
    /// `phased` if the times passed in count from the moment at which the profile was applied.
    /// Without that nothing is predicted of a link that changes over time.
    pub(crate) fn new(profile: &LinkProfile, phased: bool, z: f64) -> Self {
        let (uplink, downlink) = profile.settings();
        Self {
            settings: [uplink, downlink],
            phased,
            z,
        }
    }

    pub(crate) fn settings(&self, way: Way) -> &DirectionSettings {
        &self.settings[way as usize]
    }

    /// Whether a direction is another at another time.
    pub(crate) fn varies(&self, way: Way) -> bool {
        let settings = self.settings(way);
        matches!(settings.bandwidth, Bandwidth::Trace(_)) || !settings.outages.is_empty()
    }

    /// The longest propagation of both directions together.
    pub(crate) fn greatest_rtt(&self) -> Duration {
        self.settings.iter().map(greatest_delay).sum()
    }

    /// What a flood is to offer in Mbit/s so that a direction is full all the time; `None` where
    /// nothing bounds it.
    pub(crate) fn flood_mbit(&self, way: Way) -> Option<f64> {
        let settings = self.settings(way);
        let survival = (1.0 - settings.loss.stationary_loss()).max(LEAST_SURVIVAL);
        let offered = |bits: f64| FLOOD_SURPLUS * bits / 1e6 / survival;
        match &settings.bandwidth {
            Bandwidth::Unlimited => None,
            Bandwidth::Fixed { bits_per_second } => Some(offered(*bits_per_second as f64)),
            Bandwidth::Trace(trace) => Some(offered(trace.peak_bits_per_second()).min(FLOOD_MBIT)),
        }
    }

    /// How many numbered datagrams are to be sent in a second: at most half of what the rate
    /// carries in the mean and half of what fits into the queue, which holds those in propagation
    /// too, so that what is lost is as a rule the loss model's.
    pub(crate) fn loss_pace(&self, way: Way) -> f64 {
        let settings = self.settings(way);
        let mean = settings.bandwidth.mean_bits_per_second();
        let tx = mean.map_or(Duration::ZERO, |rate| {
            transmission(rate as u64, settings.framing.charged_bytes(PROBE_BYTES))
        });
        let room = match settings.queue.limit {
            QueueLimit::Bytes(bytes) => bytes / PROBE_BYTES,
            QueueLimit::Packets(packets) => packets,
        };
        let in_propagation = greatest_delay(settings) / room.max(1) as u32;
        let gap = 2 * tx.max(in_propagation);
        LOSS_PACKETS_PER_SECOND.min(1.0 / gap.as_secs_f64().max(1e-9))
    }

    /// The median and the 99th percentile of the RTT of echoed datagrams, in milliseconds.
    pub(crate) fn round_trips(&self, echo: &Schedule) -> [Expected; 2] {
        let varies = self.varies(Way::Uplink) || self.varies(Way::Downlink);
        if varies && !self.phased {
            return [Expected::Unknown; 2];
        }
        let draws = self.settings.iter().any(draws);
        let runs = runs(draws || varies, 2 * echo.sent.len(), PREDICTIONS);
        let trips: Vec<Vec<Duration>> = (0..runs)
            .map(|run| {
                let lags = if varies { lags(run, runs) } else { NO_LAGS };
                let mut trips = round_trips(&self.settings, echo, lags, Seed::of(run));
                trips.sort_unstable();
                trips
            })
            .collect();
        [Quantile::P50, Quantile::P99].map(|quantile| {
            let of_runs = trips.iter().map(|trips| quantile_ms(trips, quantile));
            expected(of_runs, self.z)
        })
    }

    /// The fraction of numbered datagrams that do not arrive.
    pub(crate) fn loss(&self, way: Way, numbered: &Schedule) -> Expected {
        let varies = self.varies(way);
        if numbered.sent.is_empty() || (varies && !self.phased) {
            return Expected::Unknown;
        }
        let settings = self.settings(way);
        let count = numbered.sent.len() as f64;
        let runs = runs(draws(settings) || varies, numbered.sent.len(), PREDICTIONS);
        let losses = (0..runs).map(|run| {
            let [lag, _] = if varies { lags(run, runs) } else { NO_LAGS };
            Some(f64::from(lost(settings, way, numbered, lag, Seed::of(run))) / count)
        });
        // What happens less often than once in all predictions can still happen.
        let least = if runs > 1 { 1.0 / count } else { 0.0 };
        let share = if varies { VARYING_LOSS } else { 0.0 };
        expected(losses, self.z).around_mean(|mean| least + share * mean)
    }

    /// The rate in Mbit/s, IP headers counted, at which full packets arrive of a flood.
    pub(crate) fn rate(&self, way: Way, window: Window) -> Expected {
        let varies = self.varies(way);
        let Some(offered) = self.flood_mbit(way).filter(|_| self.phased || !varies) else {
            return Expected::Unknown;
        };
        let settings = self.settings(way);
        let gap = flood_gap(offered);
        let window = if varies { window } else { steady(window, gap) };
        let packets = (window.until - window.start).as_nanos() / gap.as_nanos().max(1);
        let packets = usize::try_from(packets).unwrap_or(usize::MAX);
        let runs = runs(draws(settings) || varies, packets, (1, RATE_PREDICTIONS));
        let rates = (0..runs).map(|run| {
            let [lag, _] = if varies { lags(run, runs) } else { NO_LAGS };
            flood(settings, way, window, gap, lag, Seed::of(run))
        });
        expected(rates, self.z)
    }
}

/// The time from one packet of a flood to the next.
pub(crate) fn flood_gap(offered_mbit: f64) -> Duration {
    Duration::from_secs_f64(FULL_BYTES as f64 * 8.0 / 1e6 / offered_mbit)
}

/// The longest propagation of a direction.
fn greatest_delay(settings: &DirectionSettings) -> Duration {
    let traced = match &settings.bandwidth {
        Bandwidth::Trace(trace) => trace.greatest_delay(),
        _ => Duration::ZERO,
    };
    settings.delay + settings.jitter.greatest() + traced
}

/// Whether two links with these settings may do different things to the same packets.
pub(super) fn draws(settings: &DirectionSettings) -> bool {
    let lossy_trace = match &settings.bandwidth {
        Bandwidth::Trace(trace) => trace.loses(),
        _ => false,
    };
    settings.jitter != Jitter::None
        || settings.loss != LossModel::None
        || settings.duplicate > 0.0
        || settings.corrupt > 0.0
        || settings.reorder.probability > 0.0
        || lossy_trace
}

/// How many predictions are to be made of so many packets each: one, if all are the same.
fn runs(differ: bool, packets: usize, (least, most): (usize, usize)) -> usize {
    if differ {
        (PACKETS / packets.max(1)).clamp(least, most)
    } else {
        1
    }
}

/// Shortens the counting on a link on which every part of it is like the others.
fn steady(window: Window, gap: Duration) -> Window {
    let counted = window.from + gap * (STEADY_PACKETS / 10);
    let until = counted.max(window.start + gap * STEADY_PACKETS);
    Window {
        until: window.until.min(until),
        ..window
    }
}

/// The seed of a prediction, and how far loss models have got when it begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seed {
    pub(super) seed: u64,
    pub(super) age: u32,
}

impl Seed {
    /// Every other prediction begins as a link does that has just got its profile, the others as
    /// one that has been used for long.
    fn of(run: usize) -> Self {
        Self {
            // Odd multiples of this constant are distinct modulo 2⁶⁴.
            seed: SEED.wrapping_add((run as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            age: if run.is_multiple_of(2) { AGE } else { 0 },
        }
    }

    fn direction(self, settings: &DirectionSettings, way: Way) -> Direction {
        let name = match way {
            Way::Uplink => "uplink",
            Way::Downlink => "downlink",
        };
        let mut direction = Direction::new(name, settings, self.seed);
        direction.age(self.age);
        direction
    }
}

/// How late one prediction's datagrams are at the two directions.
pub(super) type Lags = [Duration; 2];

pub(super) const NO_LAGS: Lags = [Duration::ZERO; 2];

/// Lags spread evenly over all that are possible, for both directions together.
fn lags(run: usize, runs: usize) -> Lags {
    const GOLDEN: f64 = 0.618_033_988_749_895;
    let even = (run as f64 + 0.5) / runs as f64;
    [even, ((run + 1) as f64 * GOLDEN).fract()].map(|part| GREATEST_LAG.mul_f64(part))
}

/// Offers numbered packets to a direction and hands on what has come out whole by `until`.
fn carry(
    mut direction: Direction,
    len: usize,
    offers: impl Iterator<Item = (Duration, u32)>,
    until: Duration,
    mut arrived: impl FnMut(Duration, u32),
) {
    let mut deliver = |direction: &mut Direction, by: Duration| {
        while let Some(Departure { departure, packet }) = direction.pop(by) {
            if let Some(number) = number(&packet).filter(|_| departure <= until) {
                arrived(departure, number);
            }
        }
    };
    for (at, number) in offers.take_while(|(at, _)| *at <= until) {
        deliver(&mut direction, at);
        direction.push(at, numbered(number, len));
    }
    deliver(&mut direction, until);
}

/// A packet that bears a number, and the number's complement as its checksum.
fn numbered(number: u32, len: usize) -> Packet {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes[4..].copy_from_slice(&(!number).to_le_bytes());
    Packet::stub(&bytes, len)
}

/// The number of a packet, unless it was corrupted, in which case a receiver does not see it.
fn number(packet: &Packet) -> Option<u32> {
    let bytes: [u8; 8] = packet.bytes().try_into().ok()?;
    let whole = u64::from_le_bytes(bytes);
    let (number, check) = (whole as u32, (whole >> 32) as u32);
    (check == !number).then_some(number)
}

/// Sends datagrams over both directions and returns the round trips of those that came back.
pub(super) fn round_trips(
    settings: &[DirectionSettings; 2],
    echo: &Schedule,
    [lag, echo_lag]: Lags,
    seed: Seed,
) -> Vec<Duration> {
    let until = echo.until + lag + echo_lag;
    let mut there = Vec::with_capacity(echo.sent.len());
    carry(
        seed.direction(&settings[0], Way::Uplink),
        PROBE_BYTES,
        echo.sent.iter().map(|&sent| sent + lag).zip(0..),
        until,
        // A copy of a datagram is echoed as well.
        |at, number| there.push((at + echo_lag, number)),
    );
    let mut back = vec![None; echo.sent.len()];
    carry(
        seed.direction(&settings[1], Way::Downlink),
        PROBE_BYTES,
        there.into_iter(),
        until,
        |at, number| {
            back[number as usize].get_or_insert(at);
        },
    );
    let trip = |(&sent, back): (&Duration, Option<Duration>)| {
        Some(back?.saturating_sub(sent + lag + echo_lag))
    };
    echo.sent.iter().zip(back).filter_map(trip).collect()
}

/// Sends datagrams over one direction and returns how many did not arrive.
pub(super) fn lost(
    settings: &DirectionSettings,
    way: Way,
    numbered: &Schedule,
    lag: Duration,
    seed: Seed,
) -> u32 {
    let mut seen = vec![false; numbered.sent.len()];
    carry(
        seed.direction(settings, way),
        PROBE_BYTES,
        numbered.sent.iter().map(|&sent| sent + lag).zip(0..),
        numbered.until + lag,
        |_, number| seen[number as usize] = true,
    );
    seen.iter().map(|seen| u32::from(!seen)).sum()
}

/// Floods one direction and returns the rate as the flood's sink reckons it, in Mbit/s.
pub(super) fn flood(
    settings: &DirectionSettings,
    way: Way,
    window: Window,
    gap: Duration,
    lag: Duration,
    seed: Seed,
) -> Option<f64> {
    let from = window.from.saturating_sub(lag);
    let until = window.until.saturating_sub(lag);
    let mut first = None;
    let (mut last, mut packets) = (Duration::ZERO, 0_u64);
    carry(
        seed.direction(settings, way),
        FULL_BYTES,
        (0..).map(|number| (window.start + gap * number, number)),
        until,
        |at, _| {
            if at < from {
                return;
            }
            // The window opens with the arrival of a packet, which thus lies before it.
            match first {
                Some(_) => packets += 1,
                None => first = Some(at),
            }
            last = at;
        },
    );
    let span = last.checked_sub(first?)?.as_secs_f64();
    (span > 0.0).then(|| (packets * FULL_BYTES as u64) as f64 * 8.0 / 1e6 / span)
}
