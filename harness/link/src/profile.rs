//! Link profiles: what a link does in each direction, read from `configs/links/*.toml`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::core::DirectionSettings;

/// Size of a full packet, in bytes, that turns a rate into packets.
const FULL_PACKET_BYTES: f64 = 1500.0;
/// Packets per second assumed of a direction without a rate: above what the packet thread moves.
const UNLIMITED_PACKETS_PER_SECOND: f64 = 250_000.0;
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
    /// Edge to cloud.
    pub uplink: Impairments,
    /// Cloud to edge.
    pub downlink: Impairments,
}

/// What one direction does to packets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Impairments {
    /// Rate in Mbit/s (10⁶ bit/s), IP headers counted; absent for no bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_mbit: Option<f64>,
    /// One-way delay in milliseconds: the delays of both directions add up to the RTT.
    pub delay_ms: f64,
    /// Half width of the uniform distribution around the delay, in milliseconds. A direction
    /// without a rate then reorders packets; one with a rate does not.
    pub jitter_ms: f64,
    /// Probability, 0 to 1, that a packet is lost, each independently of the others.
    pub loss: f64,
    /// Packets on the link at once, those in propagation included. Absent: see
    /// [`LinkProfile::settings`] for the rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_packets: Option<usize>,
    /// Bytes of lower layers that the rate counts for each packet; negative to discount.
    pub overhead_bytes: i32,
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
    /// Reads a profile from TOML text and checks it; `origin` names the text in errors.
    ///
    /// # Errors
    /// [`ProfileError::Parse`] and [`ProfileError::Invalid`].
    pub fn from_toml(text: &str, origin: &str) -> Result<Self, ProfileError> {
        let profile: Self = toml::from_str(text).map_err(|source| ProfileError::Parse {
            origin: origin.to_owned(),
            source: Box::new(source),
        })?;
        profile.validate()?;
        Ok(profile)
    }

    /// Reads the profile in a file, whose name must be the profile's with `.toml`.
    ///
    /// # Errors
    /// Every [`ProfileError`] but [`ProfileError::Unknown`].
    pub fn load(path: &Path) -> Result<Self, ProfileError> {
        let text = fs::read_to_string(path).map_err(|source| ProfileError::Read {
            path: path.to_owned(),
            source,
        })?;
        let profile = Self::from_toml(&text, &path.display().to_string())?;
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

    /// What the link does, as (uplink, downlink).
    ///
    /// A direction without `limit_packets` gets its propagation plus a buffer: full packets at
    /// the rate for `delay + jitter`, plus for the larger of the profile's RTT and 25 ms, at
    /// least 64 packets of buffer. One round trip is the classic size of a buffer that keeps one
    /// loss-based TCP flow at the full rate. The faster direction's rate is taken for both,
    /// because the slower one carries the acknowledgements of the faster, and the limit counts
    /// packets of any size. A stream of small packets can therefore fill the queue below the
    /// rate, as it can netem's; state `limit_packets` where that matters.
    #[must_use]
    pub fn settings(&self) -> (DirectionSettings, DirectionSettings) {
        let pps = self
            .uplink
            .full_packets_per_second()
            .max(self.downlink.full_packets_per_second());
        let rtt_ms = self.uplink.delay_ms + self.downlink.delay_ms;
        let buffer_s = (rtt_ms / 1e3).max(MIN_BUFFER.as_secs_f64());
        let buffer = (pps * buffer_s).max(MIN_BUFFER_PACKETS);
        let settings = |of: &Impairments| DirectionSettings {
            rate_bits_per_second: of.rate_mbit.map(|mbit| (mbit * 1e6).round() as u64),
            overhead_bytes: of.overhead_bytes,
            delay: Duration::from_secs_f64(of.delay_ms / 1e3),
            jitter: Duration::from_secs_f64(of.jitter_ms / 1e3),
            loss: of.loss,
            limit_packets: of.limit_packets.unwrap_or_else(|| {
                let propagation = pps * (of.delay_ms + of.jitter_ms) / 1e3;
                ((propagation + buffer).ceil() as usize).min(Impairments::MAX_LIMIT_PACKETS)
            }),
        };
        (settings(&self.uplink), settings(&self.downlink))
    }

    fn invalid(&self, field: &str, problem: String) -> ProfileError {
        ProfileError::Invalid {
            profile: self.name.clone(),
            field: field.to_owned(),
            problem,
        }
    }
}

impl Impairments {
    /// The largest `limit_packets`, which bounds the emulator's memory at about 2 GiB.
    pub const MAX_LIMIT_PACKETS: usize = 1_000_000;

    /// Whether this direction does anything to packets.
    #[must_use]
    pub fn impairs(&self) -> bool {
        self.rate_mbit.is_some() || self.delay_ms > 0.0 || self.jitter_ms > 0.0 || self.loss > 0.0
    }

    fn full_packets_per_second(&self) -> f64 {
        self.rate_mbit.map_or(UNLIMITED_PACKETS_PER_SECOND, |mbit| {
            mbit * 1e6 / 8.0 / FULL_PACKET_BYTES
        })
    }

    /// The first field out of range and what is wrong with it. Ranges are written so that NaN
    /// is outside of them.
    fn problem(&self) -> Option<(&'static str, String)> {
        if let Some(rate) = self.rate_mbit
            && !(0.01..=100_000.0).contains(&rate)
        {
            return Some((
                "rate_mbit",
                format!("is {rate}; it must be 0.01 to 100000 Mbit/s"),
            ));
        }
        if !(0.0..=10_000.0).contains(&self.delay_ms) {
            return Some((
                "delay_ms",
                format!("is {}; it must be 0 to 10000 ms", self.delay_ms),
            ));
        }
        if !(0.0..=self.delay_ms).contains(&self.jitter_ms) {
            let jitter = self.jitter_ms;
            return Some((
                "jitter_ms",
                format!("is {jitter}; it must be 0 to delay_ms"),
            ));
        }
        if !(0.0..=1.0).contains(&self.loss) {
            return Some(("loss", format!("is {}; it must be 0 to 1", self.loss)));
        }
        if let Some(limit) = self.limit_packets
            && !(1..=Self::MAX_LIMIT_PACKETS).contains(&limit)
        {
            let max = Self::MAX_LIMIT_PACKETS;
            return Some((
                "limit_packets",
                format!("is {limit}; it must be 1 to {max}"),
            ));
        }
        if !(-64..=256).contains(&self.overhead_bytes) {
            let overhead = self.overhead_bytes;
            return Some((
                "overhead_bytes",
                format!("is {overhead}; it must be -64 to 256"),
            ));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(uplink.rate_bits_per_second, Some(20_000_000));
        assert_eq!(uplink.delay, Duration::from_millis(30));
        // 1666.7 packets/s for 30 ms of propagation and 60 ms of buffer.
        assert_eq!(uplink.limit_packets, 150);
        assert_eq!((downlink.limit_packets, downlink.loss), (77, 0.01));
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
        ] {
            assert!(profiles.contains_key(name), "{name} is missing");
        }
        assert!(!profiles["none"].impairs());
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
