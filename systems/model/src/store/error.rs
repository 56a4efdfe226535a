//! What can go wrong in the store.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::spec::FileDigest;

/// A place in which [`ModelStore::fetch`](super::ModelStore::fetch) looks, in the order of the
/// variants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// The store's own directory.
    Local,
    /// The cache that hub clients of this user share. Read, never written.
    HubCache,
    /// The model's official home.
    Hub,
    /// Package wheels that carry the same bytes.
    Packages,
}

impl Source {
    /// Every source, in the order in which they are tried.
    pub const ALL: [Self; 4] = [Self::Local, Self::HubCache, Self::Hub, Self::Packages];
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local store",
            Self::HubCache => "hub cache",
            Self::Hub => "hub",
            Self::Packages => "packages",
        })
    }
}

/// A source that was tried, and why it did not deliver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Where the model was looked for.
    pub source: Source,
    /// Why it was not found there, in one line.
    pub reason: String,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.source, self.reason)
    }
}

/// An error of the model store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A model's TOML file cannot be read as a [`ModelSpec`](super::ModelSpec).
    #[error("model file {} is not valid: {reason}", path.display())]
    Spec {
        /// The TOML file.
        path: PathBuf,
        /// What is wrong with it, with line and column where the parser knows them.
        reason: String,
    },
    /// No model of this name is described.
    #[error("no model is named `{name}`; known models: {}", known.join(", "))]
    UnknownModel {
        /// The name asked for.
        name: String,
        /// The names that exist.
        known: Vec<String>,
    },
    /// No directory could be derived for the store.
    #[error(
        "no place for the model store: set CELSLM_MODELS to a directory (neither it nor XDG_DATA_HOME nor HOME is set)"
    )]
    NoDirectory,
    /// The model's file is not in the store.
    #[error("model `{name}` is not in the store {}; run `celslm models fetch {name}`", dir.display())]
    Absent {
        /// The model.
        name: String,
        /// The store's directory.
        dir: PathBuf,
    },
    /// A file has the wrong length.
    #[error("{} has {found} bytes, expected {expected}; run `celslm models fetch {name}` to replace it", path.display())]
    WrongSize {
        /// The model.
        name: String,
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        found: u64,
        /// The length that the model's TOML file states.
        expected: u64,
    },
    /// A file has the right length and other content.
    #[error("{} has sha256 {found}, expected {expected}; run `celslm models fetch {name}` to replace it", path.display())]
    WrongDigest {
        /// The model.
        name: String,
        /// The file.
        path: PathBuf,
        /// The digest of its content.
        found: FileDigest,
        /// The digest that the model's TOML file states.
        expected: FileDigest,
    },
    /// No source delivered the model.
    #[error(
        "model `{name}` could not be fetched from any source:{}\nput the file at {} (sha256 {sha256}), or mend one of the sources and run `celslm models fetch {name}` again, which goes on from the parts already here",
        list(attempts),
        path.display()
    )]
    Unavailable {
        /// The model.
        name: String,
        /// Where its file belongs.
        path: PathBuf,
        /// The digest that it must have.
        sha256: FileDigest,
        /// Every source, in the order tried.
        attempts: Vec<Attempt>,
    },
    /// The file system of the store is too full for the model.
    #[error("{} has {available} bytes free and model `{name}` needs {needed}; free some space or set CELSLM_MODELS to a directory on another disk", dir.display())]
    NoSpace {
        /// The model.
        name: String,
        /// The store's directory.
        dir: PathBuf,
        /// Bytes that the fetch still needs, with the largest package in transit.
        needed: u64,
        /// Bytes that the user may write.
        available: u64,
    },
    /// Another process held the model's lock for longer than the limit.
    #[error("another process has held {} for {} s; end it or try again later", path.display(), waited.as_secs())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// How long this process waited.
        waited: Duration,
    },
    /// The user asked to stop. Finished parts are kept.
    #[error(
        "the fetch of model `{name}` was interrupted; the parts already here are kept, run it again to go on"
    )]
    Cancelled {
        /// The model.
        name: String,
    },
    /// A file operation failed.
    #[error("could not {action} {}: {source}", path.display())]
    Io {
        /// The operation, as a verb.
        action: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl StoreError {
    /// Whether this machine, as it is, cannot provide the model (exit code 4), as against a wrong
    /// name or model file (exit code 2) or a user's interrupt.
    pub fn is_environment(&self) -> bool {
        match self {
            Self::Spec { .. } | Self::UnknownModel { .. } | Self::Cancelled { .. } => false,
            Self::NoDirectory
            | Self::Absent { .. }
            | Self::WrongSize { .. }
            | Self::WrongDigest { .. }
            | Self::Unavailable { .. }
            | Self::NoSpace { .. }
            | Self::Locked { .. }
            | Self::Io { .. } => true,
        }
    }

    /// Wraps an [`io::Error`] with what was being done, for use in `map_err`.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// The attempts, each on an indented line of its own.
fn list(attempts: &[Attempt]) -> String {
    attempts
        .iter()
        .map(|attempt| format!("\n  {attempt}"))
        .collect()
}

/// Why a source delivered nothing: a reason to try the next one, or a reason to stop.
#[derive(Debug)]
pub(super) enum Failure {
    /// The source cannot deliver; the next one may.
    Next(String),
    /// No other source would do better (interrupt, disk full, file system error).
    Stop(StoreError),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Stop(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_classes_follow_who_can_mend_it() {
        let unknown = StoreError::UnknownModel {
            name: "x".into(),
            known: vec!["a".into(), "b".into()],
        };
        assert!(!unknown.is_environment());
        assert_eq!(
            unknown.to_string(),
            "no model is named `x`; known models: a, b"
        );
        assert!(StoreError::NoDirectory.is_environment());
        let io = StoreError::io("read", Path::new("/x"))(io::Error::from(
            io::ErrorKind::PermissionDenied,
        ));
        assert!(io.is_environment());
        assert!(io.to_string().starts_with("could not read /x: "));
    }
}
