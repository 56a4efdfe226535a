//! What can go wrong while a data set is loaded.

use std::path::PathBuf;

use crate::registry::DATA_DIR_SETTING;

/// Why a data set, scorer or workload could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatasetError {
    /// No method of this name is registered.
    #[error("unknown {registry} `{name}`; known: {known}")]
    Unknown {
        /// Which registry was asked.
        registry: &'static str,
        /// The name asked for.
        name: String,
        /// The names there are, comma separated.
        known: String,
    },
    /// A relative path was configured, but no data folder.
    #[error(
        "find `{path}`: the path is relative and no data folder is set; set `{DATA_DIR_SETTING}` or the variable CELSLM_DATA to the folder that holds it (official home: {home})"
    )]
    NoDataDir {
        /// The path as configured.
        path: PathBuf,
        /// Where the file can be had.
        home: String,
    },
    /// The file is not there.
    #[error(
        "find `{path}`: no such file; fetch it from {home}, or point `{DATA_DIR_SETTING}` or `path` at it"
    )]
    FileMissing {
        /// The resolved path.
        path: PathBuf,
        /// Where the file can be had.
        home: String,
    },
    /// The file is there and cannot be read.
    #[error("read `{path}`")]
    Read {
        /// The resolved path.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The file is larger than the loader takes into memory.
    #[error("read `{path}`: {bytes} bytes exceed the limit of {limit_bytes}; split the file")]
    TooLarge {
        /// The resolved path.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The largest size accepted.
        limit_bytes: u64,
    },
    /// The file is not JSON of the expected shape.
    #[error("parse `{path}` as {format} at line {line}, column {column}: {source}")]
    Json {
        /// The resolved path.
        path: PathBuf,
        /// What it should be.
        format: &'static str,
        /// 1-based line of the fault.
        line: usize,
        /// 1-based column of the fault.
        column: usize,
        /// The parser's message.
        #[source]
        source: serde_json::Error,
    },
    /// The JSON is well formed, but an entry contradicts the format.
    #[error("accept `{path}` at {at}: {reason}")]
    Format {
        /// The resolved path.
        path: PathBuf,
        /// The entry, for example `data[3].paragraphs[0].qas[2]`.
        at: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A document compiled into the binary does not parse.
    #[error("parse embedded document `{id}`: {source}")]
    Embedded {
        /// Its id.
        id: &'static str,
        /// The parser's message, with line and column.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// More documents (or none) were asked for than the data set has.
    #[error(
        "draw {asked} documents from `{dataset}`, which has {available} with a question to ask; set `documents` between 1 and {available}, or leave it out for all"
    )]
    Documents {
        /// The data set.
        dataset: &'static str,
        /// How many were asked for.
        asked: usize,
        /// How many there are.
        available: usize,
    },
    /// A setting has a value that yields nothing to run.
    #[error("use `{setting} = 0`: nothing would be asked; set it to 1 or more, or leave it out")]
    Zero {
        /// The setting's name.
        setting: &'static str,
    },
    /// A workload was asked for more requests than a run could hold.
    #[error("plan {requests} requests: more than the limit of {limit}; lower `{setting}`")]
    TooManyRequests {
        /// Requests the settings ask for.
        requests: u128,
        /// The largest number accepted.
        limit: usize,
        /// The setting that asks for them.
        setting: &'static str,
    },
    /// A setting has a value that the method cannot use.
    #[error("use `{setting} = {value}`: {reason}")]
    Setting {
        /// The setting's name.
        setting: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        reason: &'static str,
    },
    /// A line of a file does not follow its format.
    #[error("accept `{path}` line {line}: {reason}")]
    Line {
        /// The resolved path.
        path: PathBuf,
        /// 1-based line.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
}
