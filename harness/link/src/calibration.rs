//! Calibration: what was measured over the path itself, judged against the profile.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::profile::{Impairments, LinkProfile};

/// How much to measure and how closely it must match.
///
/// The defaults take about 3.5 s on a link with a short RTT and 5 s at 80 ms, and 2 s more where
/// TCP does not fill the path.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CalibrateOptions {
    /// Echo datagrams sent for the RTT (1 to 20,000).
    pub pings: u32,
    /// Time between them in microseconds (100 to 1,000,000).
    pub ping_interval_us: u64,
    /// Numbered datagrams sent each way for the loss (0 leaves loss unmeasured; at most 100,000).
    pub loss_datagrams: u32,
    /// How long the rate is measured each way after warm-up, in milliseconds (100 to 10,000).
    pub rate_window_ms: u64,
    /// How closely the figures must match.
    pub tolerances: Tolerances,
}

/// How far a measured figure may lie from its target before it counts as degraded.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tolerances {
    /// The median RTT may be off by this many milliseconds or by `rtt_fraction`, whichever is more.
    pub rtt_ms: f64,
    /// See `rtt_ms`.
    pub rtt_fraction: f64,
    /// The 99th percentile of the RTT may exceed the greatest RTT of the profile by this much, ms.
    pub rtt_p99_ms: f64,
    /// The rate may be off by this fraction.
    pub rate_fraction: f64,
    /// Standard deviations of the binomial count within which losses must lie.
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
        } else if !(100..=10_000).contains(&self.rate_window_ms) {
            Some("rate_window_ms must be 100 to 10000")
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
    /// There is nothing to compare it with.
    Unchecked,
}

/// A measured figure, its target and the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What was measured; `None` where nothing arrived or nothing was measured.
    pub measured: Option<f64>,
    /// What the profile says.
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
    /// Datagrams offered above the rate, counted at the receiver. Taken where TCP did not fill
    /// the path: on one with loss, or shortly after slow start has overshot, TCP measures its
    /// own congestion control. Both are lower bounds of what the path carries, so the greater
    /// counts.
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
    pub(crate) wall: Duration,
}

/// The rate of full packets, in Mbit/s with IP headers, that a direction is to carry.
pub(crate) fn rate_target(of: &Impairments, mtu: f64) -> Option<f64> {
    of.rate_mbit
        .map(|mbit| mbit * mtu / (mtu + f64::from(of.overhead_bytes)))
}

/// Holds what was measured against the profile.
///
/// `ping_bytes` is the IP length of an echo datagram, `mtu` that of the rate's packets. A link
/// that emulates nothing has no targets: everything is measured and nothing judged but loss.
pub(crate) fn judge(
    profile: &LinkProfile,
    emulated: bool,
    mut measured: Measured,
    tolerances: Tolerances,
    ping_bytes: f64,
    mtu: f64,
) -> Calibration {
    measured.rtts.sort_unstable();
    let quantile = |quantile: f64| {
        let rank = (measured.rtts.len() as f64 * quantile).ceil() as usize;
        measured
            .rtts
            .get(rank.max(1) - 1)
            .map(|rtt| rtt.as_secs_f64() * 1e3)
    };
    let (up, down) = (&profile.uplink, &profile.downlink);
    let tx_ms = |of: &Impairments| {
        of.rate_mbit.map_or(0.0, |mbit| {
            (ping_bytes + f64::from(of.overhead_bytes)) * 8.0 / mbit / 1e3
        })
    };
    let rtt_target = up.delay_ms + down.delay_ms + tx_ms(up) + tx_ms(down);
    let rtt_slack = tolerances.rtt_ms.max(tolerances.rtt_fraction * rtt_target);
    let rtt_greatest = rtt_target + up.jitter_ms + down.jitter_ms;
    // The median of a sum of two uniform jitters is their mean, but a sample's median scatters;
    // four standard errors of the median of a distribution that wide are allowed.
    let scatter = 4.0 * 1.2533 * (up.jitter_ms + down.jitter_ms)
        / 3.0_f64.sqrt()
        / (measured.rtts.len().max(1) as f64).sqrt();
    let has_rtt = emulated;
    let rtt_p50_ms = figure(
        quantile(0.5),
        has_rtt.then_some((
            rtt_target,
            rtt_target - rtt_slack - scatter,
            rtt_target + rtt_slack + scatter,
        )),
    );
    let rtt_p99_ms = figure(
        quantile(0.99),
        has_rtt.then_some((
            rtt_greatest,
            rtt_target - rtt_slack - scatter,
            rtt_greatest + tolerances.rtt_p99_ms,
        )),
    );
    let rate = |measured, of: &Impairments| {
        let target = rate_target(of, mtu);
        let slack = tolerances.rate_fraction;
        figure(
            measured,
            target.map(|rate| (rate, rate * (1.0 - slack), rate * (1.0 + slack))),
        )
    };
    let loss = |lost: u32, of: &Impairments| {
        let n = f64::from(measured.loss_datagrams);
        let spread = tolerances.loss_z * (of.loss * (1.0 - of.loss) / n).sqrt();
        let measured = (n > 0.0).then(|| f64::from(lost) / n);
        let bounds = (
            of.loss,
            (of.loss - spread).max(0.0),
            (of.loss + spread).min(1.0),
        );
        figure(measured, (n > 0.0).then_some(bounds))
    };
    let mut calibration = Calibration {
        profile: profile.name.clone(),
        rtt_p50_ms,
        rtt_p99_ms,
        pings_received: u32::try_from(measured.rtts.len()).unwrap_or(u32::MAX),
        pings_sent: measured.pings_sent,
        uplink_rate_mbit: rate(measured.uplink_rate.mbit, up),
        downlink_rate_mbit: rate(measured.downlink_rate.mbit, down),
        uplink_rate: measured.uplink_rate,
        downlink_rate: measured.downlink_rate,
        uplink_loss: loss(measured.uplink_lost, up),
        downlink_loss: loss(measured.downlink_lost, down),
        loss_datagrams: measured.loss_datagrams,
        tolerances,
        verdict: Verdict::Ok,
        wall_ms: measured.wall.as_secs_f64() * 1e3,
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

/// A figure against (target, low, high).
fn figure(measured: Option<f64>, bounds: Option<(f64, f64, f64)>) -> Figure {
    let verdict = match (measured, bounds) {
        (_, None) => Verdict::Unchecked,
        (Some(value), Some((_, low, high))) if (low..=high).contains(&value) => Verdict::Ok,
        (_, Some(_)) => Verdict::Degraded,
    };
    Figure {
        measured,
        target: bounds.map(|(target, _, _)| target),
        low: bounds.map(|(_, low, _)| low),
        high: bounds.map(|(_, _, high)| high),
        verdict,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile() -> LinkProfile {
        let mut profile = LinkProfile::unimpaired();
        for direction in [&mut profile.uplink, &mut profile.downlink] {
            direction.rate_mbit = Some(100.0);
            direction.delay_ms = 10.0;
        }
        profile
    }

    fn rate(mbit: Option<f64>) -> MeasuredRate {
        MeasuredRate {
            mbit,
            method: RateMethod::Tcp,
            tcp_mbit: mbit,
        }
    }

    fn measured() -> Measured {
        Measured {
            rtts: (0..100)
                .map(|i| Duration::from_micros(20_050 + i))
                .collect(),
            pings_sent: 100,
            uplink_lost: 0,
            downlink_lost: 0,
            loss_datagrams: 1000,
            uplink_rate: rate(Some(99.8)),
            downlink_rate: rate(Some(99.8)),
            wall: Duration::from_secs(3),
        }
    }

    fn verdicts(profile: &LinkProfile, measured: Measured) -> Vec<&'static str> {
        let judged = judge(profile, true, measured, Tolerances::default(), 60.0, 1500.0);
        let degraded: Vec<&str> = judged
            .figures()
            .iter()
            .filter(|(_, figure)| figure.verdict == Verdict::Degraded)
            .map(|(name, _)| *name)
            .collect();
        assert_eq!(judged.verdict == Verdict::Degraded, !degraded.is_empty());
        degraded
    }

    #[test]
    fn each_figure_is_judged_on_its_own() {
        assert!(verdicts(&profile(), measured()).is_empty());
        let late = Measured {
            rtts: vec![Duration::from_millis(22); 100],
            ..measured()
        };
        assert_eq!(verdicts(&profile(), late), ["rtt_p50_ms"]);
        let mut tail = measured();
        tail.rtts[98..].fill(Duration::from_millis(40));
        assert_eq!(verdicts(&profile(), tail), ["rtt_p99_ms"]);
        let slow = Measured {
            downlink_rate: rate(Some(96.0)),
            ..measured()
        };
        assert_eq!(verdicts(&profile(), slow), ["downlink_rate_mbit"]);
        let lossy = Measured {
            uplink_lost: 1,
            ..measured()
        };
        assert_eq!(verdicts(&profile(), lossy), ["uplink_loss"]);
        let silent = Measured {
            rtts: vec![],
            uplink_rate: rate(None),
            ..measured()
        };
        assert_eq!(
            verdicts(&profile(), silent),
            ["rtt_p50_ms", "rtt_p99_ms", "uplink_rate_mbit"]
        );
    }

    #[test]
    fn loss_is_held_against_the_binomial_interval() {
        let mut lossy = profile();
        lossy.uplink.loss = 0.05;
        let with = |lost| Measured {
            uplink_lost: lost,
            ..measured()
        };
        assert!(verdicts(&lossy, with(50)).is_empty());
        assert!(verdicts(&lossy, with(72)).is_empty());
        assert_eq!(verdicts(&lossy, with(74)), ["uplink_loss"]);
        assert_eq!(verdicts(&lossy, with(20)), ["uplink_loss"]);
    }

    #[test]
    fn the_rate_of_full_packets_counts_overhead() {
        let mut profile = profile();
        profile.uplink.overhead_bytes = 100;
        assert_eq!(rate_target(&profile.uplink, 1500.0), Some(93.75));
        assert_eq!(rate_target(&profile.downlink, 1500.0), Some(100.0));
        assert_eq!(rate_target(&LinkProfile::unimpaired().uplink, 1500.0), None);
    }

    #[test]
    fn without_emulation_there_are_no_targets() {
        let judged = judge(
            &LinkProfile::unimpaired(),
            false,
            measured(),
            Tolerances::default(),
            60.0,
            1500.0,
        );
        assert_eq!(judged.rtt_p50_ms.verdict, Verdict::Unchecked);
        assert_eq!(judged.uplink_rate_mbit.target, None);
        assert_eq!(
            (judged.uplink_loss.verdict, judged.verdict),
            (Verdict::Ok, Verdict::Ok)
        );
    }
}
