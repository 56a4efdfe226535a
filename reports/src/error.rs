//! What can go wrong while results are read or a report is written.

use std::path::PathBuf;

/// Why a report could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// A file or folder could not be read.
    #[error("read `{path}`: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error("write `{path}`: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The folder was not written by a run.
    #[error(
        "find `{path}`: this is not a results folder; name one that a run wrote, such as results/quick"
    )]
    NotResults {
        /// The file that is missing.
        path: PathBuf,
    },
    /// A line of a sample file is not a valid sample.
    #[error("accept `{path}` line {line}: {reason}")]
    BadSample {
        /// The file.
        path: PathBuf,
        /// 1-based line.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of facts contradicts itself or its place.
    #[error("accept `{path}`: {reason}")]
    BadFacts {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A JSON file does not parse.
    #[error("parse `{path}`: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's message, with line and column.
        #[source]
        source: serde_json::Error,
    },
    /// A file was written by another version of this program.
    #[error(
        "accept `{path}`: schema version {found}, this build reads {expected}; use the build that wrote it, or run again"
    )]
    Schema {
        /// The file.
        path: PathBuf,
        /// The version it states.
        found: u32,
        /// The version that is understood.
        expected: u32,
    },
    /// Polars refused a frame.
    #[error("compute {what}: {source}")]
    Frame {
        /// Which frame.
        what: &'static str,
        /// Polars' message.
        #[source]
        source: Box<polars::error::PolarsError>,
    },
    /// No view of this name is registered.
    #[error("unknown view `{name}`; known: {known}")]
    UnknownView {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
}

impl ReportError {
    /// Wraps a Polars error with what was being computed.
    pub(crate) fn frame(what: &'static str) -> impl FnOnce(polars::error::PolarsError) -> Self {
        move |source| Self::Frame {
            what,
            source: Box::new(source),
        }
    }
}
