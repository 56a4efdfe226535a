//! Evaluations in process: what arms did to the KV of stored contexts, and what the model answered
//! from it. No link and no clock is in them.

mod against;
mod arm;
mod cloud;
mod compare;
mod family;
mod figures;
mod findings;
#[cfg(test)]
mod fixture;
mod frame;
mod report;
mod row;
mod summary;
mod views;

pub use report::build;
pub use row::{
    ArmIdentity, ArmKind, BytePart, CloudPart, ContextRow, EVALUATION_FILE,
    EVALUATION_FILE_VERSION, EVALUATION_ROWS, EVALUATION_SCHEMA_VERSION, EvaluationInput, LayerRow,
    QuestionRow, RowFile, read_rows,
};
