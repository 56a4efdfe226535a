//! Frames, views and HTML. The only crate that knows polars.
//!
//! A run appends [`Sample`]s to disk; [`build`] turns the folder into frames,
//! tables, figures and pages. Nothing here measures anything, and the same
//! files always give the same report.

pub mod bootstrap;
mod cell;
mod error;
pub mod evaluation;
mod figures;
mod files;
mod findings;
#[cfg(test)]
mod fixture;
mod frame;
mod html;
mod labels;
mod level;
mod load;
mod quality;
mod report;
mod sample;
mod series;
mod table;
mod views;

pub use cell::{CellFailure, CellIdentity};
pub use error::ReportError;
pub use figures::{Figure, HeatMap, HeatPanel};
pub use findings::{Finding, Topic};
pub use frame::{
    CellSummary, P99_MIN_REQUESTS, PartMean, Quantiles, levels_frame, samples_frame, summarise,
    summary_frame, write_csv, write_parquet,
};
pub use level::{Level, LevelState, NEVER_MADE, REFUSED};
pub use load::{LOAD_FILE, LoadFacts, LoadRound, MemoryPoint, SendDelay, Slo, read_load_facts};
pub use quality::{Paired, Score, paired, score};
pub use report::{CalibrationRow, INPUT_FILE, Report, ReportInput, build};
pub use sample::{
    EXCLUSIONS, PART_NAMES, SCHEMA_VERSION, Sample, SampleFile, TtftPart, read_samples,
};
pub use table::{Column, Table, Value};
pub use views::{
    Bytes, Calibration, Capacity, Data, Drift, EdgeCost, Exactness, Failures, Load, Quality,
    Saturation, Summary, TtftBreakdown, VIEWS, View, view,
};
