//! What a profile says of one direction.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::parts::{
    JitterDistribution, LossConfig, OutagesConfig, QueueConfig, ReorderConfig, TraceSource,
};
use crate::core::{Bandwidth, LossModel};

/// Size of a full packet, in bytes, that turns a rate into packets.
const FULL_PACKET_BYTES: f64 = 1500.0;
/// Packets per second assumed of a direction without a rate: above what the packet thread moves.
const UNLIMITED_PACKETS_PER_SECOND: f64 = 250_000.0;

/// What one direction does to packets.
///
/// Every key may be absent, which impairs nothing. Keys that were never written are not written
/// back, so that a profile reads the same after every version of this program that knows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Impairments {
    /// Rate in Mbit/s (10⁶ bit/s), IP headers counted; absent for no bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_mbit: Option<f64>,
    /// One-way delay in milliseconds: the delays of both directions add up to the RTT.
    pub delay_ms: f64,
    /// Half width of the uniform distribution around the delay, in milliseconds, or the scale of
    /// `jitter_distribution`. A direction without a rate then reorders packets; one with a rate
    /// does not.
    pub jitter_ms: f64,
    /// Probability, 0 to 1, that a packet is lost, each independently of the others.
    pub loss: f64,
    /// Packets on the link at once, those in propagation included. Absent: see
    /// [`LinkProfile::settings`](super::LinkProfile::settings) for the rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_packets: Option<usize>,
    /// Bytes of lower layers that the rate counts for each packet; negative to discount.
    pub overhead_bytes: i32,
    /// IP bytes on the link at once, those in propagation included, in place of `limit_packets`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<usize>,
    /// Payload of a cell of a lower layer, in bytes: the rate counts whole cells. 0 for none.
    #[serde(skip_serializing_if = "is_zero")]
    pub cell_bytes: u32,
    /// Header of a cell in bytes; negative to discount.
    #[serde(skip_serializing_if = "is_zero")]
    pub cell_overhead_bytes: i32,
    /// Probability, 0 to 1, that a packet comes twice.
    #[serde(skip_serializing_if = "is_zero")]
    pub duplicate: f64,
    /// Probability, 0 to 1, that one bit of a packet is flipped.
    #[serde(skip_serializing_if = "is_zero")]
    pub corrupt: f64,
    /// The distribution of the delay around its mean.
    #[serde(skip_serializing_if = "JitterDistribution::is_default")]
    pub jitter_distribution: JitterDistribution,
    /// Bandwidth that changes over time, in place of `rate_mbit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceSource>,
    /// Losses in bursts, in place of `loss`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_model: Option<LossConfig>,
    /// Packets that overtake the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reorder: Option<ReorderConfig>,
    /// Which packets are dropped before the limit is reached.
    #[serde(skip_serializing_if = "QueueConfig::is_default")]
    pub queue: QueueConfig,
    /// When the link is cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outages: Option<OutagesConfig>,
}

fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Impairments {
    /// The largest `limit_packets`, which bounds the emulator's memory at about 2 GiB.
    pub const MAX_LIMIT_PACKETS: usize = 1_000_000;
    /// The largest `limit_bytes`, for the same reason.
    pub const MAX_LIMIT_BYTES: usize = 1 << 30;

    /// Whether this direction does anything to packets. A queue does nothing by itself.
    #[must_use]
    pub fn impairs(&self) -> bool {
        self.rate_mbit.is_some()
            || self.trace.is_some()
            || self.delay_ms > 0.0
            || self.jitter_ms > 0.0
            || self.loss_model().stationary_loss() > 0.0
            || self.duplicate > 0.0
            || self.corrupt > 0.0
            || self
                .reorder
                .is_some_and(|reorder| reorder.probability > 0.0)
            || self.outages.is_some()
    }

    /// What the rate is in the mean, in Mbit/s: `rate_mbit`, or the mean of the trace; `None` for
    /// no bound.
    #[must_use]
    pub fn mean_mbit(&self) -> Option<f64> {
        match &self.trace {
            Some(TraceSource::Synthetic(model)) => Some(model.mean_mbit()),
            Some(_) => self
                .bandwidth()
                .mean_bits_per_second()
                .map(|bits| bits / 1e6),
            None => self.rate_mbit,
        }
    }

    /// The loss model: `loss_model`, or `loss`.
    #[must_use]
    pub fn loss_model(&self) -> LossModel {
        match self.loss_model {
            Some(config) => config.model(),
            None if self.loss > 0.0 => LossModel::Independent {
                probability: self.loss,
            },
            None => LossModel::None,
        }
    }

    pub(super) fn bandwidth(&self) -> Bandwidth {
        let trace = self.trace.as_ref().map(TraceSource::trace);
        if let Some(Ok(Some(trace))) = trace {
            return Bandwidth::Trace(Arc::new(trace));
        }
        self.rate_mbit.map_or(Bandwidth::Unlimited, |mbit| {
            let bits_per_second = (mbit * 1e6).round() as u64;
            Bandwidth::Fixed { bits_per_second }
        })
    }

    /// The first field out of range and what is wrong with it. Ranges are written so that NaN
    /// is outside of them.
    pub(super) fn problem(&self) -> Option<(&'static str, String)> {
        let number = |name, value: f64, low: f64, high: f64, unit: &str| {
            let problem = format!("is {value}; it must be {low} to {high}{unit}");
            (!(low..=high).contains(&value)).then_some((name, problem))
        };
        let integer = |name, value: i64, low: i64, high: i64| {
            let problem = format!("is {value}; it must be {low} to {high}");
            (!(low..=high).contains(&value)).then_some((name, problem))
        };
        let count = |name, value: Option<usize>, low: usize, high: usize| {
            let value = value.filter(|value| !(low..=high).contains(value))?;
            Some((name, format!("is {value}; it must be {low} to {high}")))
        };
        let instead = |name, given: bool, of: &str| {
            given.then(|| {
                (
                    name,
                    format!("stands in place of {of}; give one of the two"),
                )
            })
        };
        let part = |name, problem: Option<String>| problem.map(|problem| (name, problem));
        let rate = self.rate_mbit;
        rate.and_then(|rate| number("rate_mbit", rate, 0.01, 100_000.0, " Mbit/s"))
            .or_else(|| instead("trace", self.trace.is_some() && rate.is_some(), "rate_mbit"))
            .or_else(|| number("delay_ms", self.delay_ms, 0.0, 10_000.0, " ms"))
            .or_else(|| {
                let jitter = self.jitter_ms;
                let problem = format!("is {jitter}; it must be 0 to delay_ms");
                (!(0.0..=self.delay_ms).contains(&jitter)).then_some(("jitter_ms", problem))
            })
            .or_else(|| part("jitter_distribution", self.jitter_distribution.problem()))
            .or_else(|| number("loss", self.loss, 0.0, 1.0, ""))
            .or_else(|| {
                instead(
                    "loss_model",
                    self.loss_model.is_some() && self.loss > 0.0,
                    "loss",
                )
            })
            .or_else(|| part("loss_model", self.loss_model.and_then(LossConfig::problem)))
            .or_else(|| number("duplicate", self.duplicate, 0.0, 1.0, ""))
            .or_else(|| number("corrupt", self.corrupt, 0.0, 1.0, ""))
            .or_else(|| part("reorder", self.reorder.and_then(ReorderConfig::problem)))
            .or_else(|| {
                count(
                    "limit_packets",
                    self.limit_packets,
                    1,
                    Self::MAX_LIMIT_PACKETS,
                )
            })
            .or_else(|| {
                count(
                    "limit_bytes",
                    self.limit_bytes,
                    1_500,
                    Self::MAX_LIMIT_BYTES,
                )
            })
            .or_else(|| {
                let both = self.limit_bytes.is_some() && self.limit_packets.is_some();
                instead("limit_bytes", both, "limit_packets")
            })
            .or_else(|| part("queue", self.queue.problem()))
            .or_else(|| integer("overhead_bytes", self.overhead_bytes.into(), -64, 256))
            .or_else(|| integer("cell_bytes", self.cell_bytes.into(), 0, 9_000))
            .or_else(|| {
                integer(
                    "cell_overhead_bytes",
                    self.cell_overhead_bytes.into(),
                    -64,
                    256,
                )
            })
            .or_else(|| {
                let cell = i64::from(self.cell_bytes) + i64::from(self.cell_overhead_bytes);
                let overhead = self.cell_overhead_bytes;
                let problem = format!("is {overhead}; it must leave something of a cell");
                (self.cell_bytes > 0 && cell <= 0).then_some(("cell_overhead_bytes", problem))
            })
            .or_else(|| {
                part(
                    "outages",
                    self.outages.as_ref().and_then(OutagesConfig::problem),
                )
            })
            .or_else(|| part("trace", self.trace.as_ref().and_then(TraceSource::problem)))
    }
}

/// Full packets per second that a bandwidth carries in the mean.
pub(super) fn full_packets_per_second(bandwidth: &Bandwidth) -> f64 {
    bandwidth
        .mean_bits_per_second()
        .map_or(UNLIMITED_PACKETS_PER_SECOND, |bits| {
            bits / 8.0 / FULL_PACKET_BYTES
        })
}

/// The greatest delay that a bandwidth's trace adds, in milliseconds.
pub(super) fn traced_delay_ms(bandwidth: &Bandwidth) -> f64 {
    match bandwidth {
        Bandwidth::Trace(trace) => trace.greatest_delay().as_secs_f64() * 1e3,
        _ => 0.0,
    }
}
