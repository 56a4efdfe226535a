//! The loop over contexts and arms.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use celslm_evaluation::arm::{
    CloudAlone, Coded, Distilled, Mapped, NoContext, NotesKv, NotesLocal, RandomKv, Studied,
    Teacher, TextHandoff, WrongContext, ZeroKv,
};
use celslm_evaluation::{Arm, Case, Evaluator, Settings};
use celslm_kv::codec::CodecContext;
use celslm_kv::{BlockSpec, KvChunk};
use celslm_model::LoadedModel;
use celslm_reports::evaluation::ContextRow;
use celslm_training::FrozenDecoder;

use super::{ArmSpec, EvaluationInputs, EvaluationPlan, EvaluationStore, PlannedArm};
use crate::config::{Control, DistilledBy, EvaluationFile, StudiedContext};
use crate::plan::Seeds;

/// Contexts between two whose byte accounts are taken: an account costs a second decoding.
const ACCOUNTED_EVERY: usize = 8;

/// What hears of an evaluation as it goes.
pub trait Progress {
    /// An arm has its row.
    fn row(&mut self, arm: &PlannedArm, row: &ContextRow);
    /// An arm cannot be evaluated on a context; it is left out, the others go on.
    fn refused(&mut self, arm: &PlannedArm, context: &str, reason: &str);
}

/// An evaluation that is ready to run.
pub struct Evaluation<'a> {
    /// The configuration.
    pub file: &'a EvaluationFile,
    /// What was read for the plan.
    pub inputs: &'a EvaluationInputs,
    /// The plan.
    pub plan: &'a EvaluationPlan,
    /// The edge's model, which answers.
    pub model: &'a LoadedModel,
    /// The cloud's, where an arm needs it.
    pub cloud: Option<&'a LoadedModel>,
    /// The edge's model for gradients, where an arm needs it.
    pub frozen: Option<Arc<FrozenDecoder>>,
    /// Ends it after the current row.
    pub stop: &'a AtomicBool,
}

impl Evaluation<'_> {
    /// Makes every row that is missing. `Ok(false)` when it was stopped.
    ///
    /// # Errors
    /// Failures of the model and of the folder. What a single arm refuses is told to `progress`.
    pub fn run(
        &self,
        store: &mut EvaluationStore,
        progress: &mut dyn Progress,
    ) -> anyhow::Result<bool> {
        let own = &self.file.evaluation;
        let evaluator = Evaluator {
            model: self.model,
            cloud: self.cloud,
            settings: Settings {
                max_tokens: own.max_tokens,
                chunk_tokens: own.chunk_tokens,
                batch: own.batch,
                now_ns: celslm_systems::clock::now_ns,
                message_bytes,
            },
        };
        let stopped = || self.stop.load(Ordering::Relaxed);
        for (draw, set) in self.inputs.draws.iter().enumerate() {
            for (index, document) in set.documents.iter().enumerate() {
                let missing: Vec<&PlannedArm> = self
                    .plan
                    .arms_of(draw)
                    .filter(|arm| !store.has(&arm.identity.cell_id, &document.id))
                    .collect();
                if missing.is_empty() {
                    continue;
                }
                let other = &set.documents[(index + 1) % set.documents.len()];
                let Some(case) = Case::new(&evaluator, document, other, || !stopped())? else {
                    return Ok(false);
                };
                let case = case.accounted(index % ACCOUNTED_EVERY == 0);
                for arms in missing.chunks(evaluator.arms_together(&case)) {
                    if stopped() {
                        return Ok(false);
                    }
                    let built = arms.iter().map(|arm| self.arm(&arm.spec));
                    let built = built.collect::<anyhow::Result<Vec<_>>>()?;
                    let together: Vec<_> = arms
                        .iter()
                        .zip(&built)
                        .map(|(arm, built)| (arm.identity.cell_id.as_str(), built.as_deref()))
                        .collect();
                    for (arm, row) in arms.iter().zip(evaluator.rows(&case, &together)?) {
                        match row {
                            Ok(row) => {
                                store.append(&row)?;
                                progress.row(arm, &row);
                            }
                            Err(error) => {
                                let reason = format!("{:#}", anyhow::Error::from(error));
                                progress.refused(arm, &document.id, &reason);
                            }
                        }
                    }
                }
            }
        }
        Ok(true)
    }

    /// The arm of a plan; none for the reference.
    fn arm(&self, spec: &ArmSpec) -> anyhow::Result<Option<Box<dyn Arm>>> {
        let notes_tokens = self.file.evaluation.notes_tokens;
        Ok(match spec {
            ArmSpec::Reference => None,
            ArmSpec::Control(Control::NoContext) => Some(Box::new(NoContext)),
            ArmSpec::Control(Control::WrongContext) => Some(Box::new(WrongContext)),
            ArmSpec::Control(Control::ZeroKv) => Some(Box::new(ZeroKv)),
            ArmSpec::Control(Control::RandomKv) => Some(Box::new(RandomKv {
                seed: Seeds::new(self.file.experiment.seed).derive("random_kv"),
            })),
            ArmSpec::CloudAlone => Some(Box::new(CloudAlone)),
            ArmSpec::TextHandoff => Some(Box::new(TextHandoff { notes_tokens })),
            ArmSpec::NotesKv => Some(Box::new(NotesKv { notes_tokens })),
            ArmSpec::NotesLocal => Some(Box::new(NotesLocal { notes_tokens })),
            ArmSpec::Distilled { arm, first_tokens } => {
                let decoder = self.frozen.as_ref();
                let decoder = decoder.context("the edge's model was not loaded for gradients")?;
                Some(Box::new(Distilled {
                    decoder: Arc::clone(decoder),
                    teacher: match arm.teacher {
                        DistilledBy::Cloud => Teacher::Cloud,
                        DistilledBy::Edge => Teacher::Edge,
                    },
                    studied: match arm.studied {
                        StudiedContext::Own => Studied::Own,
                        StudiedContext::Other => Studied::Other,
                    },
                    reduction: arm.reduction,
                    steps: arm.steps,
                    first_tokens: first_tokens
                        .and_then(|index| self.inputs.bridges.get(index))
                        .map(|input| Arc::clone(&input.bridge)),
                }))
            }
            ArmSpec::Mapped {
                bridge,
                sinks,
                shallow_layers,
                own_kv,
            } => Some(Box::new(Mapped {
                bridge: Arc::clone(&self.inputs.bridges[*bridge].bridge),
                sinks: *sinks,
                shallow_layers: *shallow_layers,
                own_kv: *own_kv,
            })),
            ArmSpec::Codec(config) => {
                let context = self
                    .inputs
                    .artefact
                    .as_ref()
                    .map_or_else(CodecContext::default, |artefact| {
                        CodecContext::new(Arc::clone(artefact))
                    });
                // The plan has built it with the same artefact.
                let chain = config
                    .build_with(&context)
                    .unwrap_or_else(|_| config.build());
                Some(Box::new(Coded { chain }))
            }
        })
    }
}

fn message_bytes(spec: &BlockSpec, codec: &str, chunks: &[KvChunk]) -> Result<u64, String> {
    celslm_systems::transfer_bytes(spec, codec, chunks).map_err(|error| error.to_string())
}
