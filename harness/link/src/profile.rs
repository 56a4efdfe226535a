//! Link profiles: what a link does in each direction, read from `configs/links/*.toml`.

mod impairments;
mod parts;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::core::{Bandwidth, DirectionSettings, Framing, QueueLimit, QueueSettings};
use crate::trace::TraceError;
use parts::{ImportError, millis};

pub use impairments::Impairments;
pub use parts::{
    CutConfig, JitterDistribution, LossConfig, OutagesConfig, QueueConfig, ReorderConfig,
    TraceSource,
};

/// Least buffer beyond propagation, as time at the rate.
const MIN_BUFFER: Duration = Duration::from_millis(25);
/// Least buffer beyond propagation, in packets, so that slow links take a small burst.
const MIN_BUFFER_PACKETS: f64 = 64.0;

/// A named link: what happens to packets in each direction, and where the numbers come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkProfile {
    /// The profile's name, the same as its file's without `.toml`.
    pub name: String,
    /// One line for listings.
    pub description: String,
    /// Where the numbers come from.
    pub source: String,
    /// Whether the numbers are what a network is to be one day, not what one was measured to be.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub target: bool,
    /// Edge to cloud.
    pub uplink: Impairments,
    /// Cloud to edge.
    pub downlink: Impairments,
}

/// Why a profile could not be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// A file or folder could not be read.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The text is no profile.
    #[error("parse the link profile {origin}: {source}")]
    Parse {
        /// Where the text came from.
        origin: String,
        /// The parser's message, with line and column.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A trace that the profile names is none.
    #[error("the trace {}, {field} of link profile \"{profile}\": {source}", path.display())]
    Trace {
        /// The profile's name.
        profile: String,
        /// The field, with its direction.
        field: String,
        /// The trace's file.
        path: PathBuf,
        /// What is wrong with it, and in which line.
        #[source]
        source: TraceError,
    },
    /// A value is out of range.
    #[error("link profile \"{profile}\": {field} {problem}")]
    Invalid {
        /// The profile's name.
        profile: String,
        /// The field, with its direction.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// No profile has that name.
    #[error("unknown link profile \"{name}\"; known: {known}")]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
}

impl LinkProfile {
    /// Reads a profile from TOML text and checks it; `origin` names the text in errors. The text
    /// has no folder, so it cannot name the files of traces.
    ///
    /// # Errors
    /// [`ProfileError::Parse`] and [`ProfileError::Invalid`].
    pub fn from_toml(text: &str, origin: &str) -> Result<Self, ProfileError> {
        let profile = Self::parse(text, origin)?;
        profile.validate()?;
        Ok(profile)
    }

    fn parse(text: &str, origin: &str) -> Result<Self, ProfileError> {
        toml::from_str(text).map_err(|source| ProfileError::Parse {
            origin: origin.to_owned(),
            source: Box::new(source),
        })
    }

    /// Reads the files of the traces that the profile names, relative to `base`, so that it needs
    /// no other file from then on. [`LinkProfile::load`] does this.
    ///
    /// # Errors
    /// [`ProfileError::Read`] and [`ProfileError::Trace`].
    pub fn import_traces(&mut self, base: &Path) -> Result<(), ProfileError> {
        for (direction, of) in [
            ("uplink", &mut self.uplink),
            ("downlink", &mut self.downlink),
        ] {
            let Some(trace) = &mut of.trace else { continue };
            let Some(path) = trace.file().map(|file| base.join(file)) else {
                continue;
            };
            trace.import(base).map_err(|error| match error {
                ImportError::Read(source) => ProfileError::Read { path, source },
                ImportError::Trace(source) => ProfileError::Trace {
                    profile: self.name.clone(),
                    field: format!("{direction}.trace"),
                    path,
                    source,
                },
            })?;
        }
        Ok(())
    }

    /// Reads the profile in a file, whose name must be the profile's with `.toml`, and the traces
    /// that it names, whose paths are relative to it.
    ///
    /// # Errors
    /// Every [`ProfileError`] but [`ProfileError::Unknown`].
    pub fn load(path: &Path) -> Result<Self, ProfileError> {
        let text = fs::read_to_string(path).map_err(|source| ProfileError::Read {
            path: path.to_owned(),
            source,
        })?;
        let mut profile = Self::parse(&text, &path.display().to_string())?;
        profile.import_traces(path.parent().unwrap_or(Path::new("")))?;
        profile.validate()?;
        let stem = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .unwrap_or_default();
        if stem != profile.name {
            return Err(ProfileError::Invalid {
                problem: format!("must be the file's name, \"{stem}\""),
                field: "name".to_owned(),
                profile: profile.name,
            });
        }
        Ok(profile)
    }

    /// Reads every `*.toml` of a folder, by name.
    ///
    /// # Errors
    /// As [`LinkProfile::load`].
    pub fn load_dir(dir: &Path) -> Result<BTreeMap<String, Self>, ProfileError> {
        let read = |source| ProfileError::Read {
            path: dir.to_owned(),
            source,
        };
        let mut profiles = BTreeMap::new();
        for entry in fs::read_dir(dir).map_err(read)? {
            let path = entry.map_err(read)?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "toml")
            {
                let profile = Self::load(&path)?;
                profiles.insert(profile.name.clone(), profile);
            }
        }
        Ok(profiles)
    }

    /// Reads the profile of that name from a folder.
    ///
    /// # Errors
    /// [`ProfileError::Unknown`], which lists the names there are, and those of
    /// [`LinkProfile::load`].
    pub fn find(dir: &Path, name: &str) -> Result<Self, ProfileError> {
        let path = dir.join(format!("{name}.toml"));
        let plain = !name.is_empty() && !name.contains(['/', '\\', '.']);
        if plain && path.is_file() {
            return Self::load(&path);
        }
        let entries = fs::read_dir(dir).map_err(|source| ProfileError::Read {
            path: dir.to_owned(),
            source,
        })?;
        let mut known: Vec<String> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "toml")
            })
            .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
            .collect();
        known.sort();
        Err(ProfileError::Unknown {
            name: name.to_owned(),
            known: known.join(", "),
        })
    }

    /// The profile that impairs nothing.
    #[must_use]
    pub fn unimpaired() -> Self {
        Self {
            name: "none".to_owned(),
            description: "no impairment".to_owned(),
            source: "by definition".to_owned(),
            target: false,
            uplink: Impairments::default(),
            downlink: Impairments::default(),
        }
    }

    /// Whether either direction does anything to packets.
    #[must_use]
    pub fn impairs(&self) -> bool {
        self.uplink.impairs() || self.downlink.impairs()
    }

    /// Checks every value.
    ///
    /// # Errors
    /// [`ProfileError::Invalid`] for the first value out of range.
    pub fn validate(&self) -> Result<(), ProfileError> {
        let name_is_plain = !self.name.is_empty()
            && self
                .name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        if !name_is_plain {
            return Err(self.invalid("name", "must be letters, digits, - and _".to_owned()));
        }
        for (direction, impairments) in [("uplink", &self.uplink), ("downlink", &self.downlink)] {
            if let Some((field, problem)) = impairments.problem() {
                return Err(self.invalid(&format!("{direction}.{field}"), problem));
            }
        }
        Ok(())
    }

    /// What the link does, as (uplink, downlink). Of a profile that [`LinkProfile::validate`]
    /// refuses, the values that it refuses are passed on or passed over; no more is promised.
    ///
    /// A direction without `limit_packets` and `limit_bytes` gets its propagation plus a buffer:
    /// full packets at the rate for `delay + jitter`, plus for the larger of the profile's RTT and
    /// 25 ms, at least 64 packets of buffer. One round trip is the classic size of a buffer that
    /// keeps one loss-based TCP flow at the full rate. The faster direction's rate is taken for
    /// both, because the slower one carries the acknowledgements of the faster, and the limit
    /// counts packets of any size. A stream of small packets can therefore fill the queue below
    /// the rate, as it can netem's; state `limit_packets` where that matters. A trace counts with
    /// its mean rate and its greatest delay.
    #[must_use]
    pub fn settings(&self) -> (DirectionSettings, DirectionSettings) {
        let bandwidths = [self.uplink.bandwidth(), self.downlink.bandwidth()];
        let [up, down] = bandwidths
            .each_ref()
            .map(impairments::full_packets_per_second);
        let pps = up.max(down);
        let [up_ms, down_ms] = [(&self.uplink, 0), (&self.downlink, 1)]
            .map(|(of, index)| of.delay_ms + impairments::traced_delay_ms(&bandwidths[index]));
        let buffer_s = ((up_ms + down_ms) / 1e3).max(MIN_BUFFER.as_secs_f64());
        let buffer = (pps * buffer_s).max(MIN_BUFFER_PACKETS);
        let settings = |of: &Impairments, bandwidth: Bandwidth, delay_ms: f64| {
            let jitter = of.jitter_distribution.jitter(millis(of.jitter_ms));
            let limit = match (of.limit_packets, of.limit_bytes) {
                (Some(packets), _) => QueueLimit::Packets(packets),
                (None, Some(bytes)) => QueueLimit::Bytes(bytes),
                (None, None) => {
                    let greatest_ms = delay_ms + jitter.greatest().as_secs_f64() * 1e3;
                    let packets = (pps * greatest_ms / 1e3 + buffer).ceil() as usize;
                    QueueLimit::Packets(packets.min(Impairments::MAX_LIMIT_PACKETS))
                }
            };
            DirectionSettings {
                bandwidth,
                framing: Framing {
                    overhead_bytes: of.overhead_bytes,
                    cell_bytes: of.cell_bytes,
                    cell_overhead_bytes: of.cell_overhead_bytes,
                },
                delay: millis(of.delay_ms),
                jitter,
                loss: of.loss_model(),
                duplicate: of.duplicate,
                corrupt: of.corrupt,
                reorder: of.reorder.map(ReorderConfig::reorder).unwrap_or_default(),
                queue: QueueSettings {
                    limit,
                    discipline: of.queue.discipline(),
                },
                outages: of
                    .outages
                    .as_ref()
                    .map(OutagesConfig::outages)
                    .unwrap_or_default(),
            }
        };
        let [up_bandwidth, down_bandwidth] = bandwidths;
        (
            settings(&self.uplink, up_bandwidth, up_ms),
            settings(&self.downlink, down_bandwidth, down_ms),
        )
    }

    fn invalid(&self, field: &str, problem: String) -> ProfileError {
        ProfileError::Invalid {
            profile: self.name.clone(),
            field: field.to_owned(),
            problem,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Discipline, Jitter, LossModel, OutageMode, Reorder};

    const SLOW: &str = r#"
        name = "slow"
        description = "d"
        source = "s"
        [uplink]
        rate_mbit = 20.0
        delay_ms = 30.0
        [downlink]
        rate_mbit = 20.0
        delay_ms = 30.0
        loss = 0.01
        limit_packets = 77
    "#;

    fn error(from: &str, to: &str) -> String {
        LinkProfile::from_toml(&SLOW.replace(from, to), "test")
            .expect_err("invalid")
            .to_string()
    }

    #[test]
    fn a_profile_becomes_settings_with_a_limit_of_propagation_plus_buffer() {
        let profile = LinkProfile::from_toml(SLOW, "test").expect("valid");
        let (uplink, downlink) = profile.settings();
        let bits_per_second = 20_000_000;
        assert_eq!(uplink.bandwidth, Bandwidth::Fixed { bits_per_second });
        assert_eq!(uplink.delay, Duration::from_millis(30));
        // 1666.7 packets/s for 30 ms of propagation and 60 ms of buffer.
        assert_eq!(uplink.queue.limit, QueueLimit::Packets(150));
        assert_eq!(downlink.queue.limit, QueueLimit::Packets(77));
        let probability = 0.01;
        assert_eq!(downlink.loss, LossModel::Independent { probability });
        assert!(profile.impairs() && !LinkProfile::unimpaired().impairs());
    }

    #[test]
    fn errors_name_the_field_and_the_range() {
        assert!(
            error("delay_ms = 30.0", "delay_ms = -1")
                .contains("uplink.delay_ms is -1; it must be 0")
        );
        assert!(error("delay_ms = 30.0", "delay_ms = nan").contains("uplink.delay_ms is NaN"));
        assert!(error("loss = 0.01", "loss = 1.5").contains("downlink.loss is 1.5"));
        assert!(error("rate_mbit = 20.0", "rate_mbit = 0").contains("uplink.rate_mbit is 0"));
        assert!(error("loss = 0.01", "jitter_ms = 31").contains("it must be 0 to delay_ms"));
        assert!(error("= 77", "= 0").contains("downlink.limit_packets is 0"));
        assert!(error("\"slow\"", "\"../slow\"").contains("name must be letters"));
        let unknown = error("loss", "los");
        assert!(
            unknown.contains("unknown field `los`") && unknown.contains("line"),
            "{unknown}"
        );
    }

    #[test]
    fn the_shipped_profiles_load_and_unknown_names_list_them() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/links");
        let profiles = LinkProfile::load_dir(&dir).expect("every shipped profile is valid");
        for name in [
            "none",
            "slow-20m-60ms",
            "metro-100m-20ms",
            "fibre-1g-5ms",
            "lte-us",
            "5g-nsa-low",
            "5g-sa-low",
            "5g-mmwave",
            "5g-static-ie",
            "5g-driving-ie",
            "lte-driving-ie",
            "wifi-home",
            "leo",
            "6g-target",
        ] {
            assert!(profiles.contains_key(name), "{name} is missing");
        }
        assert!(!profiles["none"].impairs());
        for (name, profile) in &profiles {
            assert!(!profile.source.is_empty(), "{name} names no source");
            assert_eq!(profile.target, name.ends_with("target"), "{name}");
            let (uplink, downlink) = profile.settings();
            assert_eq!(profile.impairs(), name != "none");
            for settings in [uplink, downlink] {
                assert!(settings.loss.stationary_loss() < 0.05, "{name}");
            }
        }
        let error = LinkProfile::find(&dir, "dial-up")
            .expect_err("unknown")
            .to_string();
        assert!(
            error.contains("dial-up") && error.contains("metro-100m-20ms"),
            "{error}"
        );
        assert!(LinkProfile::find(&dir, "../links/none").is_err());
        assert_eq!(LinkProfile::find(&dir, "none").expect("known").name, "none");
    }

    #[test]
    fn a_file_must_bear_its_profiles_name() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("fast.toml");
        fs::write(&path, SLOW).expect("write");
        let error = LinkProfile::load(&path)
            .expect_err("wrong name")
            .to_string();
        assert!(
            error.contains("must be the file's name, \"fast\""),
            "{error}"
        );
    }

    /// Every key that a direction can have, but those that stand in place of another.
    const EVERYTHING: &str = r#"
        name = "everything"
        description = "d"
        source = "s"
        target = true
        [uplink]
        rate_mbit = 20.0
        delay_ms = 30.0
        jitter_ms = 4.0
        jitter_distribution = "pareto_normal"
        loss_model = { gilbert_elliott = { p = 0.01, r = 0.25 } }
        duplicate = 0.001
        corrupt = 0.002
        reorder = { probability = 0.01, gap = 5 }
        limit_bytes = 100000
        queue = { codel = { target_ms = 8 } }
        overhead_bytes = 8
        cell_bytes = 48
        cell_overhead_bytes = 5
        [uplink.outages]
        mode = "hold"
        cuts = [{ start_ms = 5000, duration_ms = 200, every_ms = 15000 }]
        [downlink]
        trace = { synthetic = { leo = { seed = 1, mean_mbit = 100 } } }
        jitter_distribution = { table = [-8192, 0, 8192] }
        loss_model = { four_state = { p13 = 0.01, p31 = 0.3 } }
        queue = "drop_tail"
    "#;

    #[test]
    fn every_key_becomes_a_setting() {
        let profile = LinkProfile::from_toml(EVERYTHING, "test").expect("valid");
        assert!(profile.target);
        let (uplink, downlink) = profile.settings();
        let ms = Duration::from_millis;
        assert_eq!(uplink.jitter, Jitter::ParetoNormal { sigma: ms(4) });
        assert_eq!(
            uplink.loss,
            LossModel::GilbertElliott {
                p: 0.01,
                r: 0.25,
                h: 0.0,
                k: 1.0
            }
        );
        assert_eq!((uplink.duplicate, uplink.corrupt), (0.001, 0.002));
        assert_eq!(
            uplink.reorder,
            Reorder {
                probability: 0.01,
                gap: 5
            }
        );
        assert_eq!(uplink.queue.limit, QueueLimit::Bytes(100_000));
        assert_eq!(
            uplink.queue.discipline,
            Discipline::CoDel {
                target: ms(8),
                interval: ms(100)
            }
        );
        assert_eq!(uplink.framing.charged_bytes(1500), 32 * 53);
        assert_eq!(uplink.outages.mode, OutageMode::Hold);
        assert_eq!(uplink.outages.cuts[0].every, Some(ms(15_000)));
        assert!(matches!(downlink.bandwidth, Bandwidth::Trace(_)));
        // Without a jitter its distribution is nothing.
        assert_eq!(downlink.jitter, Jitter::None);
        assert_eq!(
            downlink.loss,
            LossModel::FourState {
                p13: 0.01,
                p31: 0.3,
                p32: 0.0,
                p23: 1.0,
                p14: 0.0
            }
        );
        assert_eq!(profile.downlink.mean_mbit(), Some(100.0));
        // 100 Mbit/s over 30 ms and up to 10 ms: 334 packets of buffer, 84 in propagation.
        let QueueLimit::Packets(limit) = downlink.queue.limit else {
            panic!("a limit in packets")
        };
        assert!((350..=420).contains(&limit), "{limit}");
    }

    #[test]
    fn new_keys_are_checked_by_name() {
        let error = |from: &str, to: &str| {
            let text = EVERYTHING.replace(from, to);
            assert_ne!(text, EVERYTHING);
            LinkProfile::from_toml(&text, "test")
                .expect_err("invalid")
                .to_string()
        };
        for (from, to, message) in [
            (
                "p = 0.01",
                "p = 1.5",
                "uplink.loss_model has p = 1.5; it must be 0 to 1",
            ),
            (
                "p31 = 0.3",
                "p31 = 0.3, p32 = 0.8",
                "downlink.loss_model has p31 + p32 = 1.1",
            ),
            (
                "duplicate = 0.001",
                "duplicate = -1",
                "uplink.duplicate is -1; it must be 0 to 1",
            ),
            (
                "corrupt = 0.002",
                "corrupt = nan",
                "uplink.corrupt is NaN; it must be 0 to 1",
            ),
            (
                "gap = 5",
                "gap = 0",
                "uplink.reorder has gap = 0; it must be at least 1",
            ),
            (
                "limit_bytes = 100000",
                "limit_bytes = 10",
                "uplink.limit_bytes is 10; it must be 1500",
            ),
            (
                "limit_bytes = 100000",
                "limit_bytes = 100000\nlimit_packets = 5",
                "uplink.limit_bytes stands in place of limit_packets; give one of the two",
            ),
            (
                "target_ms = 8",
                "target_ms = 0",
                "uplink.queue has target_ms = 0; it must be 0.1",
            ),
            (
                "target_ms = 8",
                "interval_ms = 2",
                "uplink.queue has interval_ms = 2; it must be",
            ),
            (
                "cell_bytes = 48\n        cell_overhead_bytes = 5",
                "cell_bytes = 4\ncell_overhead_bytes = -4",
                "uplink.cell_overhead_bytes is -4; it must leave something of a cell",
            ),
            (
                "every_ms = 15000",
                "every_ms = 201",
                "uplink.outages cuts more than 95% of the time",
            ),
            (
                "duration_ms = 200",
                "duration_ms = 0",
                "uplink.outages has cuts[0].duration_ms = 0; it must be",
            ),
            (
                "table = [-8192, 0, 8192]",
                "table = []",
                "downlink.jitter_distribution has 0 entries; it must have 1 to",
            ),
            (
                "trace =",
                "rate_mbit = 5\ntrace =",
                "downlink.trace stands in place of rate_mbit; give one of the two",
            ),
            (
                "loss_model = { f",
                "loss = 0.1\nloss_model = { f",
                "downlink.loss_model stands in place of loss; give one of the two",
            ),
            (
                "mean_mbit = 100",
                "mean_mbit = 0",
                "downlink.trace mean_mbit is 0; it must be",
            ),
            (
                "{ synthetic = { leo = { seed = 1, mean_mbit = 100 } } }",
                "{ csv = \"x.csv\" }",
                "downlink.trace names the file x.csv, which only a profile in a file of its own",
            ),
            (
                "{ synthetic = { leo = { seed = 1, mean_mbit = 100 } } }",
                "{ gaps_ms = [0, 0] }",
                "lasts no time",
            ),
            ("seed = 1, m", "sed = 1, m", "unknown field `sed`"),
            ("\"pareto_normal\"", "\"gauss\"", "unknown variant `gauss`"),
            ("codel = {", "red = {", "unknown variant `red`"),
            ("target = true", "target = 1", "invalid type"),
        ] {
            let error = error(from, to);
            assert!(error.contains(message), "{error}\nlacks {message}");
        }
    }

    fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, text).expect("write");
        path
    }

    #[test]
    fn traces_are_read_beside_the_profile_and_carried_in_it() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let text = |uplink: &str, downlink: &str| {
            format!(
                "name = 'traced'\ndescription = 'd'\nsource = 's'\n\
                 [uplink]\ntrace = {{ {uplink} }}\n[downlink]\ntrace = {{ {downlink} }}\n"
            )
        };
        fs::create_dir(dir.path().join("traces")).expect("make a folder");
        write(dir.path(), "traces/up.mahi", "0\n1\n1\n4\n");
        write(
            dir.path(),
            "down.csv",
            "time_s,rate_mbit,delay_ms\n0,5,20\n1,10.5,30\n",
        );
        let both = text("mahimahi = 'traces/up.mahi'", "csv = 'down.csv'");
        let path = write(dir.path(), "traced.toml", &both);
        let profile = LinkProfile::load(&path).expect("valid");
        let (uplink, downlink) = profile.settings();
        for (bandwidth, mbit) in [(uplink.bandwidth, 12.032), (downlink.bandwidth, 7.75)] {
            let mean = bandwidth.mean_bits_per_second().expect("a rate");
            assert!((mean / 1e6 - mbit).abs() < 1e-9, "{mean}");
        }
        assert_eq!(profile.downlink.mean_mbit(), Some(7.75));
        // Neither form of it needs the files.
        drop(dir);
        let json = serde_json::to_string(&profile).expect("serialise");
        assert_eq!(
            serde_json::from_str::<LinkProfile>(&json).ok().as_ref(),
            Some(&profile)
        );
        let toml = toml::to_string(&profile).expect("serialise");
        assert_eq!(LinkProfile::from_toml(&toml, "test").ok(), Some(profile));

        let dir = tempfile::tempdir().expect("temporary folder");
        let error = |up: &str, down: &str| {
            let path = write(dir.path(), "traced.toml", &text(up, down));
            LinkProfile::load(&path).expect_err("invalid").to_string()
        };
        let missing = error("csv = 'none.csv'", "csv = 'none.csv'");
        assert!(
            missing.contains("read ") && missing.contains("none.csv"),
            "{missing}"
        );
        write(dir.path(), "good.mahi", "1\n");
        write(dir.path(), "bad.mahi", "1\nx\n");
        let bad = error("mahimahi = 'good.mahi'", "mahimahi = 'bad.mahi'");
        assert!(
            bad.contains("bad.mahi, downlink.trace of link profile \"traced\": line 2"),
            "{bad}"
        );
        // More than a line of the control socket has room for.
        let long: String = (0..999_999).map(|at| format!("{at}\n")).collect();
        write(dir.path(), "long.mahi", &long);
        let long = error("mahimahi = 'good.mahi'", "mahimahi = 'long.mahi'");
        assert!(
            long.contains("downlink.trace takes") && long.contains("shorten it"),
            "{long}"
        );
    }

    #[test]
    fn the_longest_profile_fits_into_a_line_of_the_control_socket() {
        let gaps = vec!["1"; crate::trace::MAX_ENCODED_BYTES / 2 - 10].join(",");
        let text = format!("{{\"gaps_ms\":[{gaps}]}}");
        let trace: TraceSource = serde_json::from_str(&text).expect("a trace");
        let mut profile = LinkProfile::unimpaired();
        profile.uplink.trace = Some(trace);
        profile.downlink = profile.uplink.clone();
        profile.validate().expect("valid");
        let table = vec![i16::MIN; JitterDistribution::MAX_TABLE];
        for of in [&mut profile.uplink, &mut profile.downlink] {
            of.jitter_distribution = JitterDistribution::Table(table.clone());
        }
        let json = serde_json::to_string(&profile).expect("serialise");
        assert!((json.len() as u64) < crate::protocol::MAX_LINE_BYTES - 4096);
    }

    #[test]
    fn old_profiles_are_written_as_they_were() {
        let profile = LinkProfile::from_toml(SLOW, "test").expect("valid");
        let json = serde_json::to_string(&profile).expect("serialise");
        assert_eq!(
            json,
            concat!(
                r#"{"name":"slow","description":"d","source":"s","#,
                r#""uplink":{"rate_mbit":20.0,"delay_ms":30.0,"jitter_ms":0.0,"loss":0.0,"#,
                r#""overhead_bytes":0},"#,
                r#""downlink":{"rate_mbit":20.0,"delay_ms":30.0,"jitter_ms":0.0,"loss":0.01,"#,
                r#""limit_packets":77,"overhead_bytes":0}}"#
            )
        );
    }

    #[test]
    fn everything_survives_both_formats() {
        let profile = LinkProfile::from_toml(EVERYTHING, "test").expect("valid");
        let toml = toml::to_string(&profile).expect("serialise");
        assert_eq!(
            LinkProfile::from_toml(&toml, "again").ok().as_ref(),
            Some(&profile)
        );
        let json = serde_json::to_string(&profile).expect("serialise");
        assert_eq!(
            serde_json::from_str::<LinkProfile>(&json).ok(),
            Some(profile)
        );
    }

    #[test]
    fn profiles_survive_the_control_socket() {
        let profile = LinkProfile::from_toml(SLOW, "test").expect("valid");
        let json = serde_json::to_string(&profile).expect("serialise");
        assert_eq!(
            serde_json::from_str::<LinkProfile>(&json).expect("parse"),
            profile
        );
    }
}
