//! Frames, views and HTML. The only crate that knows polars.

pub mod bootstrap;
mod error;
#[cfg(test)]
mod fixture;
mod sample;

pub use error::ReportError;
pub use sample::{PART_NAMES, SCHEMA_VERSION, Sample, SampleFile, TtftPart, read_samples};
