//! Evaluations in process: plan, results folder, and the loop over contexts and arms.
//!
//! ```text
//! EvaluationFile ─► EvaluationPlan ─► Evaluation (contexts × arms) ─► rows ─► Report
//! ```
//!
//! Contexts are the outer loop: a context's KV, its answers from it and the distributions that
//! arms are compared with are computed once and used by every arm.

mod manifest;
mod plan;
mod run;
mod store;

pub use manifest::EvaluationManifest;
pub use plan::{ArmSpec, BridgeInput, EvaluationInputs, EvaluationPlan, PlannedArm};
pub use run::{Evaluation, Progress};
pub use store::{EvaluationStore, Found};
