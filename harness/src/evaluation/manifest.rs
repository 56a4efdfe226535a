//! `manifest.json` of an evaluation.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{EvaluationInputs, EvaluationPlan};
use crate::config::EvaluationFile;
use crate::environment::Environment;
use crate::manifest::{Build, DatasetRecord, ModelRecord, RunState, SessionRecord};
use crate::plan::Seeds;

/// What an evaluation was, so that it can be judged and repeated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationManifest {
    /// Version of this shape.
    pub schema_version: u32,
    /// `evaluation`; a run over a link has no such key.
    pub kind: String,
    /// Name of the experiment.
    pub experiment: String,
    /// Its heading.
    pub title: String,
    /// What it asks.
    pub description: String,
    /// How far it came.
    pub state: RunState,
    /// [`EvaluationPlan::hash`]: evaluations with one hash measure the same.
    pub plan_hash: String,
    /// Arms over data sets.
    pub cells: usize,
    /// Each time that `celslm run` worked on this folder.
    pub sessions: Vec<SessionRecord>,
    /// The binary.
    pub build: Build,
    /// Models by role.
    pub models: BTreeMap<String, ModelRecord>,
    /// Data sets.
    pub datasets: Vec<DatasetRecord>,
    /// Id of the codec artefact, where one is used.
    pub artefact: Option<String>,
    /// BLAKE3 (hex) of the bridges that arms use, in the order of the arms.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bridges: Vec<String>,
    /// The root seed and the seeds derived from it, by name.
    pub seeds: BTreeMap<String, u64>,
    /// The machine.
    pub environment: Environment,
}

impl EvaluationManifest {
    /// The manifest of an evaluation that begins now.
    #[must_use]
    pub fn new(file: &EvaluationFile, inputs: &EvaluationInputs, plan: &EvaluationPlan) -> Self {
        let seed = file.experiment.seed;
        Self {
            schema_version: crate::SCHEMA_VERSION,
            kind: "evaluation".to_owned(),
            experiment: file.experiment.name.clone(),
            title: file.title().to_owned(),
            description: file.experiment.description.clone(),
            state: RunState::Running,
            plan_hash: plan.hash.clone(),
            cells: plan.arms.len(),
            sessions: vec![SessionRecord::begin()],
            build: Build::current(),
            models: [
                ("edge", Some(&inputs.edge_model)),
                ("cloud", inputs.cloud_model.as_ref()),
            ]
            .into_iter()
            .filter_map(|(role, model)| Some((role.to_owned(), ModelRecord::new(model?))))
            .collect(),
            datasets: inputs.draws.iter().map(DatasetRecord::new).collect(),
            artefact: inputs.artefact.as_ref().map(|a| a.id().to_string()),
            bridges: inputs
                .bridges
                .iter()
                .map(|bridge| bridge.blake3.clone())
                .collect(),
            seeds: BTreeMap::from([
                ("root".to_owned(), seed),
                ("dataset".to_owned(), Seeds::new(seed).derive("dataset")),
            ]),
            environment: Environment::capture(),
        }
    }

    /// Takes over the sessions of the manifest that a resumed evaluation found.
    pub fn continue_from(&mut self, earlier: &Self) {
        let own = std::mem::take(&mut self.sessions);
        self.sessions = earlier.sessions.iter().cloned().chain(own).collect();
    }

    /// States how the session ended.
    pub fn end(&mut self, state: RunState) {
        self.state = state;
        if let Some(session) = self.sessions.last_mut() {
            session.end();
        }
    }
}
