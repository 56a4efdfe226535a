//! Calibration: what was measured over the path itself, judged against what the profile's link on
//! a virtual clock does to the same datagrams.

mod predict;
mod spread;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) use predict::{FULL_BYTES, PROBE_BYTES, Predictor, Schedule, Way, Window, flood_gap};
pub(crate) use spread::Expected;

/// How much to measure and how closely it must match.
///
/// The defaults take about 3.5 s on a link with a short RTT and 5 s at 80 ms, and 2 s more where
/// TCP does not fill the path. The predictions take some tenths of a second of that where the
/// link draws anything at random or changes over time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CalibrateOptions {
    /// Echo datagrams sent for the RTT (1 to 20,000).
    pub pings: u32,
    /// Time between them in microseconds (100 to 1,000,000).
    pub ping_interval_us: u64,
    /// Numbered datagrams sent each way for the loss (0 leaves loss unmeasured; at most 100,000).
    pub loss_datagrams: u32,
    /// How long the rate is measured each way after warm-up, in milliseconds (100 to 120,000). A
    /// trace is held to what it offers in that time, so that a second or more is needed for 1%, and
    /// its whole period to see all of it.
    pub rate_window_ms: u64,
    /// How closely the figures must match.
    pub tolerances: Tolerances,
}

/// How far a measured figure may lie from its target before it counts as degraded.
///
/// The profile's link is simulated with what the tools sent, as often as its randomness asks for.
/// The target is the median of these predictions (of a loss, their mean). A figure matches within
/// the bounds that `loss_z` sets around them, moved outwards by what else stands here.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tolerances {
    /// The median RTT may be off by this many milliseconds or by `rtt_fraction`, whichever is more.
    pub rtt_ms: f64,
    /// See `rtt_ms`.
    pub rtt_fraction: f64,
    /// The 99th percentile of the RTT may lie this much above the predictions, ms, and below them
    /// by as much as the median.
    pub rtt_p99_ms: f64,
    /// The rate may be off by this fraction.
    pub rate_fraction: f64,
    /// Standard deviations of the predictions within which a figure must lie: of losses, and of
    /// RTT and rate as far as chance has a part in them.
    ///
    /// 3.29 is the 99.9% interval: at 99%, one sound link in a hundred would be called degraded
    /// for each figure measured.
    pub loss_z: f64,
}

impl Default for CalibrateOptions {
    fn default() -> Self {
        Self {
            pings: 150,
            ping_interval_us: 5_000,
            loss_datagrams: 3_000,
            rate_window_ms: 600,
            tolerances: Tolerances::default(),
        }
    }
}

impl Default for Tolerances {
    fn default() -> Self {
        Self {
            rtt_ms: 0.3,
            rtt_fraction: 0.05,
            rtt_p99_ms: 5.0,
            rate_fraction: 0.03,
            loss_z: 3.29,
        }
    }
}

impl CalibrateOptions {
    /// What is wrong with the options, if anything.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        if !(1..=20_000).contains(&self.pings) {
            Some("pings must be 1 to 20000")
        } else if !(100..=1_000_000).contains(&self.ping_interval_us) {
            Some("ping_interval_us must be 100 to 1000000")
        } else if self.loss_datagrams > 100_000 {
            Some("loss_datagrams must be at most 100000")
        } else if !(100..=120_000).contains(&self.rate_window_ms) {
            Some("rate_window_ms must be 100 to 120000")
        } else {
            None
        }
    }
}

/// Whether a figure matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It lies within the tolerance.
    Ok,
    /// It does not, or it could not be measured.
    Degraded,
    /// There is nothing to compare it with, or nothing was to arrive and nothing did.
    Unchecked,
}

/// A measured figure, its target and the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What was measured; `None` where nothing arrived or nothing was measured.
    pub measured: Option<f64>,
    /// What is predicted of the profile's link.
    pub target: Option<f64>,
    /// The least value that counts as matching.
    pub low: Option<f64>,
    /// The greatest value that counts as matching.
    pub high: Option<f64>,
    /// Whether it matches.
    pub verdict: Verdict,
}

/// How a rate was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RateMethod {
    /// One TCP bulk transfer, counted at the receiver.
    Tcp,
    /// Datagrams offered above the rate, of a trace above its peak, counted at the receiver. Taken
    /// where TCP did not fill the path: on one with loss, or shortly after slow start has overshot,
    /// TCP measures its own congestion control. Both are lower bounds of what the path carries, so
    /// the greater counts, but for TCP beyond its bounds, which then has handed over at once what
    /// it had held back.
    Udp,
}

/// A measured rate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeasuredRate {
    /// The rate that counts, in Mbit/s, IP headers counted.
    pub mbit: Option<f64>,
    /// How it was measured.
    pub method: RateMethod,
    /// What one TCP bulk transfer reached, in Mbit/s, IP headers counted.
    pub tcp_mbit: Option<f64>,
    /// From when to when the rate that counts was measured, in milliseconds since the leg got its
    /// profile: which part of a trace that was. `None` where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_ms: Option<[f64; 2]>,
}

/// The result of a calibration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// The profile that the link had.
    pub profile: String,
    /// Median RTT in milliseconds.
    pub rtt_p50_ms: Figure,
    /// 99th percentile of the RTT in milliseconds.
    pub rtt_p99_ms: Figure,
    /// Echo datagrams that came back.
    pub pings_received: u32,
    /// Echo datagrams sent.
    pub pings_sent: u32,
    /// Edge-to-cloud rate in Mbit/s, IP headers counted.
    pub uplink_rate_mbit: Figure,
    /// Cloud-to-edge rate in Mbit/s, IP headers counted.
    pub downlink_rate_mbit: Figure,
    /// How the uplink's rate was measured, and what TCP made of it.
    pub uplink_rate: MeasuredRate,
    /// How the downlink's rate was measured, and what TCP made of it.
    pub downlink_rate: MeasuredRate,
    /// Fraction of datagrams lost from edge to cloud.
    pub uplink_loss: Figure,
    /// Fraction of datagrams lost from cloud to edge.
    pub downlink_loss: Figure,
    /// Datagrams sent each way for the loss.
    pub loss_datagrams: u32,
    /// What the figures were held against.
    pub tolerances: Tolerances,
    /// `Ok` if no figure is degraded.
    pub verdict: Verdict,
    /// How long the calibration took, in milliseconds.
    pub wall_ms: f64,
    /// How long of that was taken by predictions, while nothing was measured.
    #[serde(default)]
    pub prediction_ms: f64,
}

impl Calibration {
    /// The figures by name.
    #[must_use]
    pub fn figures(&self) -> [(&'static str, Figure); 6] {
        [
            ("rtt_p50_ms", self.rtt_p50_ms),
            ("rtt_p99_ms", self.rtt_p99_ms),
            ("uplink_rate_mbit", self.uplink_rate_mbit),
            ("downlink_rate_mbit", self.downlink_rate_mbit),
            ("uplink_loss", self.uplink_loss),
            ("downlink_loss", self.downlink_loss),
        ]
    }
}

/// What the tools saw, before judgement.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) rtts: Vec<Duration>,
    pub(crate) pings_sent: u32,
    pub(crate) uplink_lost: u32,
    pub(crate) downlink_lost: u32,
    pub(crate) loss_datagrams: u32,
    pub(crate) uplink_rate: MeasuredRate,
    pub(crate) downlink_rate: MeasuredRate,
}

/// What they are to have seen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Predicted {
    pub(crate) rtt_p50_ms: Expected,
    pub(crate) rtt_p99_ms: Expected,
    pub(crate) uplink_loss: Expected,
    pub(crate) downlink_loss: Expected,
    pub(crate) uplink_rate: Expected,
    pub(crate) downlink_rate: Expected,
}

impl Predicted {
    /// There is nothing to compare anything with.
    pub(crate) const NOTHING: Self = Self {
        rtt_p50_ms: Expected::Unknown,
        rtt_p99_ms: Expected::Unknown,
        uplink_loss: Expected::Unknown,
        downlink_loss: Expected::Unknown,
        uplink_rate: Expected::Unknown,
        downlink_rate: Expected::Unknown,
    };
}

/// The quantiles of the RTT that are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quantile {
    P50,
    P99,
}

/// A quantile of sorted round trips in milliseconds; `None` if there are none.
pub(crate) fn quantile_ms(sorted: &[Duration], quantile: Quantile) -> Option<f64> {
    let percent = match quantile {
        Quantile::P50 => 50,
        Quantile::P99 => 99,
    };
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).map(|rtt| rtt.as_secs_f64() * 1e3)
}

/// A rate as one of the tools measured it, and what it is to be in the tool's own window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RateSample {
    pub(crate) mbit: Option<f64>,
    pub(crate) expected: Expected,
    pub(crate) window: Window,
}

impl RateSample {
    /// Whether it needs no other tool: it is what it is to be, or there is nothing to compare it
    /// with.
    pub(crate) fn suffices(&self, tolerances: &Tolerances) -> bool {
        match self.expected {
            Expected::Unknown => true,
            Expected::Nothing | Expected::Within { .. } => {
                figure(self.mbit, rate_bounds(self.expected, tolerances)).verdict == Verdict::Ok
            }
        }
    }
}

/// Which of the two tools counts where TCP did not suffice.
pub(crate) fn choose(tcp: &RateSample, flood: &RateSample, tolerances: &Tolerances) -> RateMethod {
    let share = |sample: &RateSample| match sample.expected {
        Expected::Within { target, .. } => sample.mbit.unwrap_or(0.0) / target,
        _ => sample.mbit.unwrap_or(0.0),
    };
    let too_fast = match (tcp.mbit, rate_bounds(tcp.expected, tolerances)) {
        (Some(mbit), Expected::Within { high, .. }) => mbit > high,
        _ => false,
    };
    if flood.mbit.is_some() && (too_fast || share(flood) > share(tcp)) {
        RateMethod::Udp
    } else {
        RateMethod::Tcp
    }
}

fn rate_bounds(expected: Expected, tolerances: &Tolerances) -> Expected {
    let slack = |target: f64| tolerances.rate_fraction * target;
    expected.widened(slack, slack)
}

/// Holds what was measured against what was predicted.
pub(crate) fn judge(
    profile: &str,
    mut measured: Measured,
    predicted: &Predicted,
    tolerances: Tolerances,
) -> Calibration {
    measured.rtts.sort_unstable();
    let rtt_slack = |target: f64| tolerances.rtt_ms.max(tolerances.rtt_fraction * target);
    let loss = |lost: u32, expected| {
        let n = f64::from(measured.loss_datagrams);
        figure((n > 0.0).then(|| f64::from(lost) / n), expected)
    };
    let rate = |rate: MeasuredRate, expected| figure(rate.mbit, rate_bounds(expected, &tolerances));
    let mut calibration = Calibration {
        profile: profile.to_owned(),
        rtt_p50_ms: figure(
            quantile_ms(&measured.rtts, Quantile::P50),
            predicted.rtt_p50_ms.widened(rtt_slack, rtt_slack),
        ),
        rtt_p99_ms: figure(
            quantile_ms(&measured.rtts, Quantile::P99),
            predicted
                .rtt_p99_ms
                .widened(rtt_slack, |_| tolerances.rtt_p99_ms),
        ),
        pings_received: u32::try_from(measured.rtts.len()).unwrap_or(u32::MAX),
        pings_sent: measured.pings_sent,
        uplink_rate_mbit: rate(measured.uplink_rate, predicted.uplink_rate),
        downlink_rate_mbit: rate(measured.downlink_rate, predicted.downlink_rate),
        uplink_rate: measured.uplink_rate,
        downlink_rate: measured.downlink_rate,
        uplink_loss: loss(measured.uplink_lost, predicted.uplink_loss),
        downlink_loss: loss(measured.downlink_lost, predicted.downlink_loss),
        loss_datagrams: measured.loss_datagrams,
        tolerances,
        verdict: Verdict::Ok,
        wall_ms: 0.0,
        prediction_ms: 0.0,
    };
    if calibration
        .figures()
        .iter()
        .any(|(_, figure)| figure.verdict == Verdict::Degraded)
    {
        calibration.verdict = Verdict::Degraded;
    }
    calibration
}

/// A figure against what it is to be.
fn figure(measured: Option<f64>, expected: Expected) -> Figure {
    let unchecked = Figure {
        measured,
        target: None,
        low: None,
        high: None,
        verdict: Verdict::Unchecked,
    };
    match expected {
        Expected::Unknown => unchecked,
        Expected::Nothing if measured.is_none() => unchecked,
        Expected::Nothing => Figure {
            verdict: Verdict::Degraded,
            ..unchecked
        },
        Expected::Within {
            target,
            low,
            high,
            or_nothing,
            ..
        } => Figure {
            target: Some(target),
            low: Some(low),
            high: Some(high),
            verdict: match measured {
                Some(value) if (low..=high).contains(&value) => Verdict::Ok,
                None if or_nothing => Verdict::Unchecked,
                _ => Verdict::Degraded,
            },
            ..unchecked
        },
    }
}
