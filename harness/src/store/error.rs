//! What can go wrong with a results folder.

use std::path::{Path, PathBuf};

/// Why results could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A file operation failed.
    #[error("{action} {path}")]
    Io {
        /// The operation, as a verb.
        action: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Another process works on the folder.
    #[error("use {dir}: another run is writing to it; wait for it to end, or choose another --out")]
    Busy {
        /// The folder.
        dir: PathBuf,
    },
    /// The folder belongs to a plan that measures something else.
    #[error(
        "resume {dir}: {what}; run without --resume, which keeps the earlier results as {dir}.N, or undo the change"
    )]
    Changed {
        /// The folder.
        dir: PathBuf,
        /// What differs: the keys of the configuration, old and new.
        what: String,
    },
    /// The folder was not written by a run.
    #[error(
        "use {dir}: it has no manifest.json, so no run wrote it; move it away or choose another --out"
    )]
    NotResults {
        /// The folder.
        dir: PathBuf,
    },
    /// A file does not hold what it should.
    #[error("understand {path}: {message}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The parser's message, with line and column.
        message: String,
    },
    /// A sample file has a line that is no sample.
    #[error("read the samples of cell {cell}")]
    Samples {
        /// The cell.
        cell: String,
        /// The line and the fault.
        #[source]
        source: celslm_reports::ReportError,
    },
    /// Two samples of one request, or a sample of no planned request.
    #[error("resume cell {cell}: {message}")]
    Unplanned {
        /// The cell.
        cell: String,
        /// What does not fit.
        message: String,
    },
}

impl StoreError {
    /// Wraps an error of the operating system.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }
}
