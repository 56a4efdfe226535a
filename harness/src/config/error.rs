//! What can be wrong with an experiment file.

use std::path::PathBuf;

/// Why a configuration was refused. Every one of them is the user's to fix.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// No such file; `tried` says where it was looked for.
    #[error("find {name}: looked at {tried}; known experiments: {known}")]
    NotFound {
        /// What the user asked for.
        name: String,
        /// The paths that were tried, comma separated.
        tried: String,
        /// The experiments there are, comma separated.
        known: String,
    },
    /// The file is there and cannot be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A fault at a place in the file.
    #[error("{path}:{line}:{column}: {message}\n{excerpt}")]
    At {
        /// The file, as the user named it.
        path: String,
        /// 1-based line.
        line: usize,
        /// 1-based column, in characters.
        column: usize,
        /// What is wrong, and what would be right.
        message: String,
        /// The line with the fault underlined.
        excerpt: String,
    },
    /// A fault of the file as a whole, or of a default value.
    #[error("{path}: {message}")]
    File {
        /// The file, as the user named it.
        path: String,
        /// What is wrong, and what would be right.
        message: String,
    },
    /// A fault that a `--set` brought in.
    #[error("--set {argument}: {message}")]
    Set {
        /// The argument, as given.
        argument: String,
        /// What is wrong, and what would be right.
        message: String,
    },
}
