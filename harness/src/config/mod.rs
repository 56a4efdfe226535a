//! The experiment file: typed, strict, and the same for a user and for the resolved copy in the
//! results.
//!
//! Every section refuses unknown keys, every method is named as its registry names it, and an
//! error points at the file, line and column, or at the `--set` that caused it.
//! `configs/experiments/example.toml` documents every default; a test keeps the two equal.

mod error;
mod evaluation;
mod overrides;
mod sections;
mod serving;
mod source;

pub use error::ConfigError;
pub use evaluation::{
    CloudArm, Control, DistilledArm, DistilledBy, EvaluationConfig, EvaluationFile, MappedArm,
    StudiedContext,
};
pub use overrides::Override;
pub use sections::{
    CloudCompute, CloudConfig, Config, DeploymentConfig, EdgeConfig, ExperimentConfig,
    ExternalNodes, GenerationConfig, Grid, Interleave, LimitsConfig, MAIN_SCENARIO, ModelsConfig,
    Pinning, Scenario, SystemName, Threads, WorkloadSettings,
};
pub use serving::{PLACEHOLDERS, ServingConfig};
pub use source::ConfigSource;
