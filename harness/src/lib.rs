//! Benchmark and evaluation harness for cloud-edge LLM inference.
//!
//! [`config::Config`] → [`plan::Plan`] (ordered cells) → deployment → session →
//! [`celslm_reports::Sample`] appended to a [`store::Store`] as it happens → report. The binary
//! `celslm` is a thin shell around this crate.

pub mod artefacts;
pub mod bridges;
pub mod calibration;
pub mod campaign;
pub mod catalogue;
pub mod claims;
pub mod clock;
pub mod config;
pub mod deployment;
pub mod device;
pub mod environment;
pub mod evaluation;
pub mod exit;
pub mod explain;
pub mod fit;
pub mod load;
pub mod manifest;
pub mod plan;
pub mod recording;
pub mod relay;
pub mod reporting;
pub mod serving;
pub mod session;
pub mod store;
pub mod study;
pub mod training;

/// Version of every file that the harness writes.
pub const SCHEMA_VERSION: u32 = 1;

#[cfg(test)]
mod fixture;
