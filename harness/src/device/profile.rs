//! `configs/devices/NAME.toml`.

use std::path::Path;

use celslm_systems::rates::Rates;
use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, ConfigSource};

/// The profile that changes nothing: this machine, as fast as it is.
pub const HOST: &str = "host";

/// Least share of a core that a quota may grant: the kernel's shortest slice in our period.
const LEAST_QUOTA: f64 = 0.05;
/// Larger quotas and factors are slips.
const LARGEST: f64 = 4096.0;

/// How a profile's figures came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProfileKind {
    /// Measured with this project's own decoder, on the device itself.
    Measured,
    /// Published by somebody else, who is cited, usually with another engine.
    Published,
    /// A stated change to this machine, which no real device is claimed to be.
    Modelled,
}

impl ProfileKind {
    /// The word of the file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::Published => "published",
            Self::Modelled => "modelled",
        }
    }
}

/// A device. It says nothing of its network: links are profiles of their own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceProfile {
    /// The profile's name, the same as its file's without `.toml`.
    pub name: String,
    /// One line for listings.
    pub description: String,
    /// Where the figures come from.
    pub source: String,
    /// How they came about.
    pub kind: ProfileKind,
    /// Memory of the device, in bytes: models and caches that do not fit are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// How many times longer than this host the device takes for each step of the engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slowdown: Option<f64>,
    /// CPU time that the device has, in cores of this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_quota: Option<f64>,
    /// How fast it computes. Without `slowdown` and `cpu_quota`, an edge is slowed down to them;
    /// a replayed cloud is served at them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rates: Option<Rates>,
}

impl DeviceProfile {
    /// This machine, as it is.
    #[must_use]
    pub fn host() -> Self {
        Self {
            name: HOST.to_owned(),
            description: "this machine, as fast as it is".to_owned(),
            source: "by definition".to_owned(),
            kind: ProfileKind::Measured,
            memory_bytes: None,
            slowdown: None,
            cpu_quota: None,
            rates: None,
        }
    }

    /// Whether a node on this device is this host, unslowed.
    #[must_use]
    pub fn is_host(&self) -> bool {
        self.name == HOST
    }

    /// Reads a profile from a file, which must bear the profile's name.
    ///
    /// # Errors
    /// [`ConfigError`] with line and column.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let source = ConfigSource::read(path, Vec::new())?;
        let profile: Self = source.read_as()?;
        let stem = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .unwrap_or_default();
        if profile.name != stem {
            return Err(source.error_at(
                "name",
                format!("`{}` must be the file's name, `{stem}`", profile.name),
            ));
        }
        profile.validate(&source, "")?;
        Ok(profile)
    }

    /// Checks every value; `at` is the path of the profile in its file, with a dot at its end.
    ///
    /// # Errors
    /// [`ConfigError`] that points at the value.
    pub fn validate(&self, source: &ConfigSource, at: &str) -> Result<(), ConfigError> {
        match self.problem() {
            None => Ok(()),
            Some((path, message)) => Err(source.error_at(&format!("{at}{path}"), message)),
        }
    }

    fn problem(&self) -> Option<(String, String)> {
        let fault = |path: &str, message: String| Some((path.to_owned(), message));
        let plain = !self.name.is_empty()
            && self.name.len() <= 64
            && self.name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && self
                .name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if !plain {
            return fault(
                "name",
                "use letters, digits, `-`, `_` and `.`, starting with a letter or digit".to_owned(),
            );
        }
        for (path, text) in [("description", &self.description), ("source", &self.source)] {
            if text.trim().is_empty() {
                return fault(path, "is empty; a profile says where it is from".to_owned());
            }
        }
        if self.memory_bytes == Some(0) {
            return fault("memory_bytes", "0 is no memory".to_owned());
        }
        if self.slowdown.is_some() && self.cpu_quota.is_some() {
            return fault(
                "cpu_quota",
                "a profile has a slowdown or a quota, not both: the quota's effect would be multiplied"
                    .to_owned(),
            );
        }
        if let Some(slowdown) = self.slowdown
            && !(1.0..=LARGEST).contains(&slowdown)
        {
            return fault(
                "slowdown",
                format!("{slowdown} is outside 1 to {LARGEST}: no host can be made faster"),
            );
        }
        if let Some(cores) = self.cpu_quota
            && !(LEAST_QUOTA..=LARGEST).contains(&cores)
        {
            return fault(
                "cpu_quota",
                format!("{cores} is outside {LEAST_QUOTA} to {LARGEST} cores"),
            );
        }
        if let Some((path, message)) = self.rates.as_ref().and_then(Rates::problem) {
            return fault(&format!("rates.{path}"), message);
        }
        let says = [
            self.slowdown.is_some(),
            self.cpu_quota.is_some(),
            self.rates.is_some(),
        ];
        if self.is_host() && (says[0] || says[1]) {
            return fault(
                "name",
                "`host` is this machine as it is; give a slower one another name".to_owned(),
            );
        }
        if !self.is_host() && !says.contains(&true) {
            return fault(
                "name",
                "says nothing about speed: give `slowdown`, `cpu_quota` or `[rates]`".to_owned(),
            );
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PI: &str = "name = \"pi\"\ndescription = \"d\"\nsource = \"s\"\nkind = \"published\"\n\
                      [rates]\nmodel = \"m\"\nengine = \"e\"\n\
                      prefill = [{ context = 512, tok_s = 90.0 }]\n\
                      decode = [{ batch = 1, context = 128, tok_s = 27.0 }]\n";

    fn load(text: &str) -> Result<DeviceProfile, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pi.toml");
        std::fs::write(&path, text).unwrap();
        DeviceProfile::load(&path).map_err(|error| {
            error
                .to_string()
                .replace(&dir.path().display().to_string(), "")
        })
    }

    fn fault(from: &str, to: &str) -> String {
        assert!(PI.contains(from), "{from}");
        load(&PI.replace(from, to)).unwrap_err()
    }

    #[test]
    fn a_profile_is_read_and_survives_being_written() {
        let profile = load(PI).unwrap();
        assert_eq!(profile.kind, ProfileKind::Published);
        let rates = profile.rates.as_ref().unwrap();
        assert_eq!(rates.prefill[0].batch, 1);
        let text = toml::to_string(&profile).unwrap();
        assert_eq!(load(&text).unwrap(), profile, "{text}");
    }

    #[test]
    fn faults_are_shown_with_line_and_column() {
        let unknown = fault("source", "origin");
        assert!(
            unknown.contains("pi.toml:3:1: unknown field `origin`"),
            "{unknown}"
        );
        let kind = fault("\"published\"", "\"guessed\"");
        assert!(
            kind.contains("pi.toml:4:8") && kind.contains("`modelled`"),
            "{kind}"
        );
        let rate = fault("27.0", "-1.0");
        assert!(
            rate.contains("pi.toml:9") && rate.contains("rates.decode.0.tok_s: -1 is no rate"),
            "{rate}"
        );
        let name = fault("\"pi\"", "\"tau\"");
        assert!(
            name.contains("pi.toml:1:8") && name.contains("the file's name, `pi`"),
            "{name}"
        );
        let both = fault("kind", "slowdown = 2.0\ncpu_quota = 1.0\nkind");
        assert!(
            both.contains("pi.toml:5:13") && both.contains("not both"),
            "{both}"
        );
        let fast = fault("kind", "slowdown = 0.5\nkind");
        assert!(fast.contains("slowdown: 0.5 is outside 1"), "{fast}");
        let quota = fault("kind", "cpu_quota = 0.0\nkind");
        assert!(quota.contains("cpu_quota: 0 is outside 0.05"), "{quota}");
        let silent = load(PI.split("[rates]").next().unwrap()).unwrap_err();
        assert!(silent.contains("says nothing about speed"), "{silent}");
    }

    #[test]
    fn the_shipped_profiles_are_valid_and_name_their_source() {
        let catalogue = crate::catalogue::Catalogue::new(&crate::fixture::configs());
        let devices = catalogue
            .devices()
            .unwrap_or_else(|error| panic!("{error}"));
        for name in ["host", "half-core", "quarter-speed", "raspberry-pi-5"] {
            assert!(devices.contains_key(name), "{name} is missing");
        }
        assert_eq!(devices[HOST], DeviceProfile::host());
        for profile in devices.values() {
            if profile.kind == ProfileKind::Published {
                assert!(profile.source.contains("https://"), "{}", profile.name);
                assert!(profile.rates.is_some(), "{}", profile.name);
            }
        }
    }
}
