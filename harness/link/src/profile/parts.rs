//! The keys of a direction that are more than a number.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::core::{
    BandwidthTrace, Discipline, Jitter, LossModel, Opportunities, Outage, OutageMode, Outages,
    Reorder, Steps, encoded_bytes,
};
use crate::trace::{MAX_ENCODED_BYTES, MAX_FILE_BYTES, Synthetic, TraceError, csv, mahimahi};

/// `trace`: bandwidth that changes over time, in place of `rate_mbit`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TraceSource {
    /// A file in Mahimahi's format, beside the profile's. When the profile is loaded, the file
    /// is read and this becomes [`TraceSource::GapsMs`], so that a profile needs no other file
    /// from then on.
    Mahimahi(PathBuf),
    /// A CSV file, beside the profile's, which becomes [`TraceSource::Steps`].
    Csv(PathBuf),
    /// A model of this program, with its parameters.
    Synthetic(Synthetic),
    /// Delivery opportunities, as the milliseconds from each to the next.
    GapsMs(Opportunities),
    /// A rate in steps, one list a column.
    Steps(Steps),
}

/// Why a file is no trace.
#[derive(Debug)]
pub(super) enum ImportError {
    Read(io::Error),
    Trace(TraceError),
}

impl From<TraceError> for ImportError {
    fn from(error: TraceError) -> Self {
        Self::Trace(error)
    }
}

impl TraceSource {
    /// The file that still has to be read.
    pub(super) fn file(&self) -> Option<&Path> {
        match self {
            Self::Mahimahi(path) | Self::Csv(path) => Some(path),
            Self::Synthetic(_) | Self::GapsMs(_) | Self::Steps(_) => None,
        }
    }

    /// Reads the file, if there is one.
    pub(super) fn import(&mut self, base: &Path) -> Result<(), ImportError> {
        *self = match self {
            Self::Mahimahi(path) => Self::GapsMs(mahimahi::parse(&read(&base.join(path))?)?),
            Self::Csv(path) => Self::Steps(csv::parse(&read(&base.join(path))?)?),
            Self::Synthetic(_) | Self::GapsMs(_) | Self::Steps(_) => return Ok(()),
        };
        Ok(())
    }

    /// The trace; `None` where its file has not been read.
    ///
    /// # Errors
    /// [`TraceError::Parameter`] for a synthetic trace with a parameter out of range.
    pub fn trace(&self) -> Result<Option<BandwidthTrace>, TraceError> {
        Ok(match self {
            Self::Mahimahi(_) | Self::Csv(_) => None,
            Self::Synthetic(model) => Some(BandwidthTrace::Steps(model.generate()?)),
            Self::GapsMs(trace) => Some(BandwidthTrace::Opportunities(trace.clone())),
            Self::Steps(trace) => Some(BandwidthTrace::Steps(trace.clone())),
        })
    }

    pub(super) fn problem(&self) -> Option<String> {
        if let Some(file) = self.file() {
            return Some(format!(
                "names the file {}, which only a profile in a file of its own can",
                file.display()
            ));
        }
        let trace = match self.trace() {
            Ok(trace) => trace?,
            Err(error) => return Some(error.to_string()),
        };
        // A synthetic trace travels as its parameters.
        if matches!(self, Self::Synthetic(_)) {
            return None;
        }
        let bytes = encoded_bytes(&trace);
        (bytes > MAX_ENCODED_BYTES).then(|| {
            let seconds = trace.period().as_secs();
            format!(
                "takes {bytes} bytes for {seconds} s; it may take {MAX_ENCODED_BYTES}: shorten it"
            )
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ImportError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(ImportError::Read)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(ImportError::Trace(TraceError::TooLong {
            limit: MAX_FILE_BYTES,
            what: "bytes",
        }));
    }
    Ok(bytes)
}

/// `jitter_distribution`: what `jitter_ms` is the scale of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum JitterDistribution {
    /// Uniform; `jitter_ms` is the half width.
    #[default]
    Uniform,
    /// Normal; `jitter_ms` is the standard deviation.
    Normal,
    /// Pareto of shape 3; `jitter_ms` is the standard deviation.
    Pareto,
    /// A quarter normal, three quarters Pareto; `jitter_ms` is the standard deviation of each.
    ParetoNormal,
    /// Deviations, each as likely as the others, in units of `jitter_ms` / 8192.
    Table(Vec<i16>),
}

impl JitterDistribution {
    /// The largest table, which is what netem takes.
    pub const MAX_TABLE: usize = 16_384;

    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn jitter(&self, scale: Duration) -> Jitter {
        if scale.is_zero() {
            return Jitter::None;
        }
        match self {
            Self::Uniform => Jitter::Uniform { half_width: scale },
            Self::Normal => Jitter::Normal { sigma: scale },
            Self::Pareto => Jitter::Pareto { sigma: scale },
            Self::ParetoNormal => Jitter::ParetoNormal { sigma: scale },
            Self::Table(table) => Jitter::Table {
                sigma: scale,
                table: table.as_slice().into(),
            },
        }
    }

    pub(super) fn problem(&self) -> Option<String> {
        match self {
            Self::Table(table) if !(1..=Self::MAX_TABLE).contains(&table.len()) => {
                let (len, max) = (table.len(), Self::MAX_TABLE);
                Some(format!("has {len} entries; it must have 1 to {max}"))
            }
            _ => None,
        }
    }
}

/// `loss_model`: losses that come in bursts, in place of `loss`. See [`LossModel`] for what the
/// parameters mean.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum LossConfig {
    /// Gilbert–Elliott.
    GilbertElliott {
        /// Probability of a change from good to bad.
        p: f64,
        /// Probability of a change from bad to good.
        r: f64,
        /// Probability that a packet survives the bad state.
        #[serde(default)]
        h: f64,
        /// Probability that a packet survives the good state.
        #[serde(default = "one")]
        k: f64,
    },
    /// The 4-state model.
    FourState {
        /// A burst begins.
        p13: f64,
        /// A burst ends.
        p31: f64,
        /// Packets come through within a burst.
        #[serde(default)]
        p32: f64,
        /// They no longer do.
        #[serde(default = "one")]
        p23: f64,
        /// An isolated loss.
        #[serde(default)]
        p14: f64,
    },
}

fn one() -> f64 {
    1.0
}

impl LossConfig {
    /// The settings.
    #[must_use]
    pub fn model(self) -> LossModel {
        match self {
            Self::GilbertElliott { p, r, h, k } => LossModel::GilbertElliott { p, r, h, k },
            Self::FourState {
                p13,
                p31,
                p32,
                p23,
                p14,
            } => LossModel::FourState {
                p13,
                p31,
                p32,
                p23,
                p14,
            },
        }
    }

    pub(super) fn problem(self) -> Option<String> {
        let (probabilities, sums) = match self {
            Self::GilbertElliott { p, r, h, k } => {
                (vec![("p", p), ("r", r), ("h", h), ("k", k)], vec![])
            }
            Self::FourState {
                p13,
                p31,
                p32,
                p23,
                p14,
            } => (
                vec![
                    ("p13", p13),
                    ("p31", p31),
                    ("p32", p32),
                    ("p23", p23),
                    ("p14", p14),
                ],
                // What leads out of one state.
                vec![("p13 + p14", p13 + p14), ("p31 + p32", p31 + p32)],
            ),
        };
        let out_of_range = |(_, value): &&(&str, f64)| !(0.0..=1.0).contains(value);
        if let Some((name, value)) = probabilities.iter().find(out_of_range) {
            return Some(format!("has {name} = {value}; it must be 0 to 1"));
        }
        // Sums such as 0.7 + 0.3 may lie above 1 by a rounding error.
        let above = |(_, sum): &&(&str, f64)| *sum > 1.0 + 1e-9;
        let (name, sum) = sums.iter().find(above)?;
        Some(format!("has {name} = {sum}; it must be at most 1"))
    }
}

/// `reorder`: packets that overtake the others. See [`Reorder`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReorderConfig {
    /// Probability, 0 to 1.
    pub probability: f64,
    /// Distance of reordered packets at least.
    #[serde(default = "ReorderConfig::gap")]
    pub gap: u32,
}

impl ReorderConfig {
    fn gap() -> u32 {
        1
    }

    pub(super) fn reorder(self) -> Reorder {
        Reorder {
            probability: self.probability,
            gap: self.gap,
        }
    }

    pub(super) fn problem(self) -> Option<String> {
        if !(0.0..=1.0).contains(&self.probability) {
            let probability = self.probability;
            return Some(format!(
                "has probability = {probability}; it must be 0 to 1"
            ));
        }
        (self.gap == 0).then(|| "has gap = 0; it must be at least 1".to_owned())
    }
}

/// `queue`: which packets are dropped before the limit is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum QueueConfig {
    /// None.
    #[default]
    DropTail,
    /// CoDel, RFC 8289, whose recommendations are the defaults.
    Codel {
        /// The wait that is acceptable for good, in milliseconds.
        #[serde(default = "target_ms")]
        target_ms: f64,
        /// How long a longer one is accepted, in milliseconds.
        #[serde(default = "interval_ms")]
        interval_ms: f64,
    },
}

fn target_ms() -> f64 {
    5.0
}

fn interval_ms() -> f64 {
    100.0
}

impl QueueConfig {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn discipline(self) -> Discipline {
        match self {
            Self::DropTail => Discipline::DropTail,
            Self::Codel {
                target_ms,
                interval_ms,
            } => Discipline::CoDel {
                target: millis(target_ms),
                interval: millis(interval_ms),
            },
        }
    }

    pub(super) fn problem(self) -> Option<String> {
        let Self::Codel {
            target_ms,
            interval_ms,
        } = self
        else {
            return None;
        };
        if !(0.1..=1_000.0).contains(&target_ms) {
            return Some(format!(
                "has target_ms = {target_ms}; it must be 0.1 to 1000"
            ));
        }
        if !(target_ms..=10_000.0).contains(&interval_ms) {
            return Some(format!(
                "has interval_ms = {interval_ms}; it must be target_ms to 10000"
            ));
        }
        None
    }
}

/// `outages`: when the link is cut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutagesConfig {
    /// What becomes of packets.
    #[serde(default)]
    pub mode: OutageMode,
    /// The cuts.
    pub cuts: Vec<CutConfig>,
}

/// A cut, or one that comes back.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CutConfig {
    /// When it begins, in milliseconds after the profile was applied.
    pub start_ms: f64,
    /// How long it lasts, in milliseconds.
    pub duration_ms: f64,
    /// The time from one beginning to the next, in milliseconds; absent for a single cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_ms: Option<f64>,
}

impl OutagesConfig {
    /// The most cuts of one direction: each is looked at for every packet.
    pub const MAX_CUTS: usize = 256;

    pub(super) fn outages(&self) -> Outages {
        let cut = |cut: &CutConfig| Outage {
            start: millis(cut.start_ms),
            duration: millis(cut.duration_ms),
            every: cut.every_ms.map(millis),
        };
        Outages {
            cuts: self.cuts.iter().map(cut).collect::<Arc<[_]>>(),
            mode: self.mode,
        }
    }

    pub(super) fn problem(&self) -> Option<String> {
        if !(1..=Self::MAX_CUTS).contains(&self.cuts.len()) {
            let (len, max) = (self.cuts.len(), Self::MAX_CUTS);
            return Some(format!("has {len} cuts; it must have 1 to {max}"));
        }
        let mut cut_share = 0.0;
        for (index, cut) in self.cuts.iter().enumerate() {
            let named = |name: &str, value: f64, range: &str| {
                Some(format!("has cuts[{index}].{name} = {value}; {range}"))
            };
            // A day, as for traces.
            if !(0.0..=86_400_000.0).contains(&cut.start_ms) {
                return named("start_ms", cut.start_ms, "it must be 0 to 86400000");
            }
            if !(0.001..=600_000.0).contains(&cut.duration_ms) {
                return named("duration_ms", cut.duration_ms, "it must be 0.001 to 600000");
            }
            if let Some(every) = cut.every_ms {
                if !(1.0..=86_400_000.0).contains(&every) {
                    return named("every_ms", every, "it must be 1 to 86400000");
                }
                cut_share += cut.duration_ms / every;
            }
        }
        // The bound keeps a link from never coming up again.
        (cut_share > 0.95).then(|| {
            "cuts more than 95% of the time, all cuts that come back taken together".to_owned()
        })
    }
}

/// A duration of a profile, which the checks keep finite and positive; anything else is none.
pub(super) fn millis(millis: f64) -> Duration {
    Duration::try_from_secs_f64(millis / 1e3).unwrap_or_default()
}
