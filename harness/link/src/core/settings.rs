//! What a direction of a link does to packets, in integers, durations and probabilities.
//!
//! These are the settings that a backend is given; `profile.rs` makes them of a profile. The
//! terms and their meaning are those of the kernel's netem discipline wherever it has one.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::BandwidthTrace;

/// Everything that one direction does to packets.
///
/// The fields stand in the order in which a reader asks for them, not in the order in which they
/// act: see [`Direction`](super::Direction) for that.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct DirectionSettings {
    /// How many bits the link carries, and when.
    pub bandwidth: Bandwidth,
    /// What the bandwidth is charged for a packet.
    pub framing: Framing,
    /// Propagation, one way.
    pub delay: Duration,
    /// How the propagation of one packet differs from `delay`.
    pub jitter: Jitter,
    /// Which packets are lost.
    pub loss: LossModel,
    /// Probability, 0 to 1, that a packet comes twice.
    pub duplicate: f64,
    /// Probability, 0 to 1, that one bit of a packet is flipped.
    pub corrupt: f64,
    /// Which packets overtake the others.
    pub reorder: Reorder,
    /// How many packets wait, and which of them are dropped.
    pub queue: QueueSettings,
    /// When the link is cut.
    pub outages: Outages,
}

impl Default for DirectionSettings {
    /// Nothing is impaired; the queue is netem's own default of 1000 packets.
    fn default() -> Self {
        Self {
            bandwidth: Bandwidth::Unlimited,
            framing: Framing::default(),
            delay: Duration::ZERO,
            jitter: Jitter::None,
            loss: LossModel::None,
            duplicate: 0.0,
            corrupt: 0.0,
            reorder: Reorder::default(),
            queue: QueueSettings::default(),
            outages: Outages::default(),
        }
    }
}

/// How many bits a direction carries.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Bandwidth {
    /// Any number at once.
    #[default]
    Unlimited,
    /// Always as many.
    Fixed {
        /// Bits per second; 0 is taken as 1.
        bits_per_second: u64,
    },
    /// As many as a trace says, which starts when the settings are applied and repeats at its
    /// end. A trace may also state delay and loss, which then add to those of the settings.
    Trace(Arc<BandwidthTrace>),
}

impl Bandwidth {
    /// The mean rate in bits per second; `None` where there is no bound.
    #[must_use]
    pub fn mean_bits_per_second(&self) -> Option<f64> {
        match self {
            Self::Unlimited => None,
            Self::Fixed { bits_per_second } => Some(*bits_per_second as f64),
            Self::Trace(trace) => Some(trace.mean_bits_per_second()),
        }
    }
}

/// What the bandwidth is charged for a packet, as the `overhead`, `cellsize` and `celloverhead`
/// of netem's rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Framing {
    /// Bytes of lower layers added to the length of each packet; negative to discount some.
    pub overhead_bytes: i32,
    /// Payload of a cell in bytes; 0 for a link without cells.
    pub cell_bytes: u32,
    /// Bytes of each cell's own header; negative to discount some.
    pub cell_overhead_bytes: i32,
}

impl Framing {
    /// The bytes charged for a packet of `len` bytes: its length and the overhead, rounded up to
    /// whole cells, each of which is charged with its header. Never below 0.
    #[must_use]
    pub fn charged_bytes(&self, len: usize) -> u64 {
        let bytes = (len as i128 + i128::from(self.overhead_bytes)).max(0);
        let charged = match i128::from(self.cell_bytes) {
            0 => bytes,
            cell => {
                let cells = (bytes + cell - 1) / cell;
                cells * (cell + i128::from(self.cell_overhead_bytes))
            }
        };
        u64::try_from(charged.max(0)).unwrap_or(u64::MAX)
    }
}

/// How the propagation of one packet differs from the mean.
///
/// Each packet draws its own. Without a bandwidth jitter reorders packets; with one it does not,
/// because packets then leave in the order in which they came. A delay never falls below 0.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Jitter {
    /// Not at all.
    #[default]
    None,
    /// Uniformly, by at most `half_width` (cut to the delay, so that the mean holds).
    Uniform {
        /// Half the width of the distribution.
        half_width: Duration,
    },
    /// Normally.
    Normal {
        /// The standard deviation.
        sigma: Duration,
    },
    /// With the tail of a Pareto distribution of shape 3, moved to a mean of 0 and scaled to a
    /// standard deviation of `sigma`.
    Pareto {
        /// The standard deviation, before the tail is cut (see [`Jitter::table`]).
        sigma: Duration,
    },
    /// A quarter of the normal's deviation and three quarters of the Pareto's, at the same
    /// quantile.
    ParetoNormal {
        /// The standard deviation of each of the two, before the tail is cut.
        sigma: Duration,
    },
    /// By an entry of a table, each as likely as the others.
    Table {
        /// What an entry of 8192 stands for.
        sigma: Duration,
        /// Deviations in units of `sigma` / 8192.
        table: Arc<[i16]>,
    },
}

impl Jitter {
    /// What the entries of a jitter table count: an entry of this size is one sigma.
    pub const TABLE_UNIT: i64 = 8192;

    /// The scale of the deviations: half width or sigma.
    #[must_use]
    pub fn scale(&self) -> Duration {
        match self {
            Self::None => Duration::ZERO,
            Self::Uniform { half_width } => *half_width,
            Self::Normal { sigma }
            | Self::Pareto { sigma }
            | Self::ParetoNormal { sigma }
            | Self::Table { sigma, .. } => *sigma,
        }
    }

    /// The greatest deviation above the mean.
    #[must_use]
    pub fn greatest(&self) -> Duration {
        let Some(table) = self.table() else {
            return self.scale();
        };
        let top = table.iter().copied().max().unwrap_or(0).max(0);
        self.scale().saturating_mul(u32::from(top.unsigned_abs())) / Self::TABLE_UNIT as u32
    }
}

/// Which packets are lost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum LossModel {
    /// None.
    #[default]
    None,
    /// Each by itself.
    Independent {
        /// Probability, 0 to 1, that a packet is lost.
        probability: f64,
    },
    /// Gilbert–Elliott: a good and a bad state, each with a loss probability of its own.
    ///
    /// Each packet makes two draws, and both look at the state before it. In the good state the
    /// packet is lost with 1 − k, and the state turns bad with p; in the bad state it is lost
    /// with 1 − h, and the state turns good with r. The model starts in the good state. With
    /// h = 0 and k = 1 (Gilbert's simple model) bursts of losses are geometric with mean 1/r.
    GilbertElliott {
        /// Probability of a change from good to bad.
        p: f64,
        /// Probability of a change from bad to good.
        r: f64,
        /// Probability that a packet survives the bad state; netem is given `1-h`.
        h: f64,
        /// Probability that a packet survives the good state; netem is given `1-k`.
        k: f64,
    },
    /// The 4-state Markov model: gaps with isolated losses, and bursts of losses with packets
    /// that come through.
    ///
    /// States as in netem: 1, received in a gap; 2, received in a burst; 3, lost in a burst;
    /// 4, an isolated loss in a gap, always followed by state 1. Each packet makes one draw,
    /// which moves the model; the packet is lost if the new state is 3 or 4. The model starts in
    /// state 1.
    FourState {
        /// From 1 to 3: a burst begins.
        p13: f64,
        /// From 3 to 1: a burst ends.
        p31: f64,
        /// From 3 to 2: packets come through within a burst.
        p32: f64,
        /// From 2 to 3: they no longer do.
        p23: f64,
        /// From 1 to 4: an isolated loss.
        p14: f64,
    },
}

impl LossModel {
    /// The fraction of packets lost in the long run, in closed form.
    ///
    /// Gilbert–Elliott: `[r(1−k) + p(1−h)] / (p + r)`. Four states: the sum of the stationary
    /// probabilities of states 3 and 4. A model that never leaves the state in which it starts
    /// loses what that state loses.
    #[must_use]
    pub fn stationary_loss(&self) -> f64 {
        match *self {
            Self::None => 0.0,
            Self::Independent { probability } => probability,
            Self::GilbertElliott { p, r, h, k } => {
                if p <= 0.0 {
                    1.0 - k
                } else {
                    (r * (1.0 - k) + p * (1.0 - h)) / (p + r)
                }
            }
            Self::FourState {
                p13,
                p31,
                p32,
                p23,
                p14,
            } => {
                if p13 <= 0.0 {
                    return p14 / (1.0 + p14);
                }
                // Weights of states 1, 3 and 2: on balance nothing flows between gap and burst,
                // nor within the burst. Without p32 there is no state 2, whatever p23 is.
                let (gap, lost, received) = if p32 > 0.0 {
                    (p31 * p23, p13 * p23, p13 * p32)
                } else {
                    (p31, p13, 0.0)
                };
                (gap * p14 + lost) / (gap * (1.0 + p14) + lost + received)
            }
        }
    }
}

/// Which packets overtake the others.
///
/// A packet that is reordered is sent at once, ahead of everything else on the link and without
/// regard to delay and bandwidth, so that it overtakes those that are delayed. At least `gap` − 1
/// packets are delayed as usual after each reordered one; each packet after them is reordered
/// with `probability`, until one is. With a gap of 1 every packet may be. As in netem, without a
/// delay there is nothing to overtake. Draws are independent of one another; netem's correlation
/// is not offered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reorder {
    /// Probability, 0 to 1; 0 reorders nothing.
    pub probability: f64,
    /// Distance of reordered packets at least; 0, as in netem, reorders nothing.
    pub gap: u32,
}

impl Default for Reorder {
    fn default() -> Self {
        Self {
            probability: 0.0,
            gap: 1,
        }
    }
}

/// How many packets wait, and which of them are dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueSettings {
    /// What is on the link at most.
    pub limit: QueueLimit,
    /// Which packets are dropped before the limit is reached.
    pub discipline: Discipline,
}

/// What is on the link at most. It counts everything that has come and not left, packets in
/// propagation included: the limit is the bandwidth-delay product plus the buffer. What comes
/// beyond it is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueueLimit {
    /// So many packets.
    Packets(usize),
    /// So many IP bytes.
    Bytes(usize),
}

impl Default for QueueLimit {
    /// netem's default.
    fn default() -> Self {
        Self::Packets(1000)
    }
}

/// Which packets are dropped before the limit is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Discipline {
    /// None.
    #[default]
    DropTail,
    /// CoDel (RFC 8289), at the head of the queue for the bandwidth. It looks at the time that a
    /// packet waited there, propagation not counted; without a bandwidth it does nothing.
    CoDel {
        /// The wait that is acceptable for good; the RFC recommends 5 ms.
        target: Duration,
        /// How long a longer wait is accepted; the RFC recommends 100 ms, about one RTT.
        interval: Duration,
    },
}

/// When the link is cut, counted from the moment at which the settings are applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outages {
    /// The cuts; they may overlap.
    pub cuts: Arc<[Outage]>,
    /// What becomes of packets.
    pub mode: OutageMode,
}

impl Outages {
    /// Whether the link is never cut.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cuts.is_empty()
    }
}

/// One cut, or one that comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outage {
    /// When it begins.
    pub start: Duration,
    /// How long it lasts; its end is no longer part of it.
    pub duration: Duration,
    /// The time from one beginning to the next; `None` for a single cut.
    pub every: Option<Duration>,
}

/// What becomes of packets during a cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum OutageMode {
    /// What comes during the cut is lost; what was on the link before leaves it as usual.
    #[default]
    Drop,
    /// Nothing is lost. The bandwidth rests, and what would leave during the cut leaves after it.
    Hold,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn framing_rounds_up_to_cells() {
        let plain = Framing::default();
        assert_eq!(plain.charged_bytes(1500), 1500);
        // ATM: 48 bytes of payload in cells of 53.
        let atm = Framing {
            overhead_bytes: 8,
            cell_bytes: 48,
            cell_overhead_bytes: 5,
        };
        assert_eq!(atm.charged_bytes(40), 53);
        assert_eq!(atm.charged_bytes(41), 106);
        assert_eq!(atm.charged_bytes(1500), 32 * 53);
        let discount = Framing {
            overhead_bytes: -14,
            ..plain
        };
        assert_eq!(
            (discount.charged_bytes(14), discount.charged_bytes(4)),
            (0, 0)
        );
    }

    #[test]
    fn stationary_losses_of_known_models() {
        let close = |model: LossModel, loss: f64| {
            let stationary = model.stationary_loss();
            assert!((stationary - loss).abs() < 1e-12, "{model:?}: {stationary}");
        };
        let elliott = |p, r, h, k| LossModel::GilbertElliott { p, r, h, k };
        close(elliott(0.01, 0.24, 0.0, 1.0), 0.04);
        close(elliott(0.01, 0.24, 0.5, 0.75), 0.26);
        close(elliott(0.0, 0.0, 0.0, 0.9), 0.1);
        let four = |p13, p31, p32, p23, p14| LossModel::FourState {
            p13,
            p31,
            p32,
            p23,
            p14,
        };
        // Without state 2 and isolated losses it is Gilbert's simple model.
        close(four(0.01, 0.24, 0.0, 1.0, 0.0), 0.04);
        close(four(0.0, 1.0, 0.0, 1.0, 0.25), 0.2);
        // Weights 1, 0.1, 0.1/0.2, 0.1/0.2·0.3/0.5 of states 1, 4, 3, 2.
        close(four(0.1, 0.2, 0.3, 0.5, 0.1), 0.6 / 1.9);
        close(four(0.1, 0.0, 0.0, 0.5, 0.1), 1.0);
        close(four(0.1, 0.0, 0.5, 0.0, 0.1), 0.0);
        close(four(0.01, 0.24, 0.0, 0.0, 0.0), 0.04);
        close(four(0.1, 0.0, 0.0, 0.0, 0.1), 1.0);
    }
}
