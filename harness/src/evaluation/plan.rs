//! Which arms meet which contexts.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use celslm_kv::Bridge;
use celslm_kv::codec::{CodecArtefact, CodecConfig, CodecContext, Family, families};
use celslm_model::store::ModelSpec;
use celslm_reports::evaluation::{ArmIdentity, ArmKind};
use serde::Serialize;

use crate::artefacts::name;
use crate::config::{CloudArm, Control, DistilledArm, EvaluationFile};
use crate::exit::Verdict;
use crate::plan::{DatasetDraw, cell_id, content_hash};

/// Everything that was read from disk for a plan.
#[derive(Debug, Clone)]
pub struct EvaluationInputs {
    /// The model that answers.
    pub edge_model: ModelSpec,
    /// The data sets, as drawn.
    pub draws: Vec<DatasetDraw>,
    /// The cloud's model, where an arm needs it.
    pub cloud_model: Option<ModelSpec>,
    /// What chains with fitted stages use.
    pub artefact: Option<Arc<CodecArtefact>>,
    /// The bridges of mapped arms, one for each in their order.
    pub bridges: Vec<BridgeInput>,
}

/// A bridge as read.
#[derive(Debug, Clone)]
pub struct BridgeInput {
    /// Its file.
    pub path: PathBuf,
    /// BLAKE3 (hex) of the file.
    pub blake3: String,
    /// Bytes of the file, which the end that maps holds beforehand.
    pub bytes: u64,
    /// The bridge.
    pub bridge: Arc<Bridge>,
}

/// What an arm is.
#[derive(Debug, Clone, PartialEq)]
pub enum ArmSpec {
    /// The context's own KV, uncompressed.
    Reference,
    /// The same through a codec chain, bound to its artefact.
    Codec(CodecConfig),
    /// A control.
    Control(Control),
    /// The cloud's model, which answers itself.
    CloudAlone,
    /// The cloud's notes in the context's place.
    TextHandoff,
    /// The context and the notes as KV.
    NotesKv,
    /// The same as the edge computes it.
    NotesLocal,
    /// The edge model's KV, tuned.
    Distilled(DistilledArm),
    /// The cloud's KV through a bridge.
    Mapped {
        /// Index in [`EvaluationInputs::bridges`].
        bridge: usize,
        /// First tokens that are the edge's own.
        sinks: usize,
        /// Layers that are the edge's own.
        shallow_layers: usize,
    },
}

/// One arm over one data set.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedArm {
    /// How results name it.
    pub identity: ArmIdentity,
    /// What it is.
    pub spec: ArmSpec,
    /// Index of its data set in [`EvaluationInputs::draws`].
    pub draw: usize,
}

/// The arms of an evaluation, data set by data set.
#[derive(Debug, Clone, PartialEq)]
pub struct EvaluationPlan {
    /// BLAKE3 (hex) of everything that decides the figures.
    pub hash: String,
    /// The arms; those of a data set stand together, its reference first.
    pub arms: Vec<PlannedArm>,
}

/// What decides an arm's figures.
#[derive(Serialize)]
struct Content<'a> {
    model: String,
    dataset: &'a str,
    /// Hash of the documents as drawn.
    documents: &'a str,
    chunk_tokens: usize,
    max_tokens: usize,
    arm: &'a str,
    /// The cloud's model, for arms that depend on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    cloud: Option<String>,
    /// Hash of the bridge, for arms that depend on one.
    #[serde(skip_serializing_if = "Option::is_none")]
    bridge: Option<&'a str>,
    /// Tokens of the notes, for arms that depend on them.
    #[serde(skip_serializing_if = "Option::is_none")]
    notes_tokens: Option<usize>,
}

impl EvaluationPlan {
    /// The plan of a configuration. Pure.
    ///
    /// # Errors
    /// [`Verdict::Config`] for a chain that the artefact does not suit, or that needs one where
    /// there is none.
    pub fn new(file: &EvaluationFile, inputs: &EvaluationInputs) -> Result<Self, Verdict> {
        let own = &file.evaluation;
        let context = inputs
            .artefact
            .as_ref()
            .map_or_else(CodecContext::default, |artefact| {
                CodecContext::new(Arc::clone(artefact))
            });
        let artefact_bytes = inputs.artefact.as_ref().map_or(0, |a| a.file_bytes());
        let mut kinds = vec![(
            ArmKind::Reference,
            "uncompressed".to_owned(),
            "uncompressed".to_owned(),
            ArmSpec::Reference,
        )];
        for control in &own.controls {
            let name = control.name().to_owned();
            kinds.push((
                ArmKind::Control,
                name.clone(),
                name,
                ArmSpec::Control(*control),
            ));
        }
        for (family, config) in file.codecs() {
            let bound = config
                .build_with(&context)
                .map_err(|error| Verdict::Config(format!("codec {}: {error}", name(&config))))?;
            let spec = ArmSpec::Codec(bound.config().clone());
            if kinds.iter().all(|(_, _, _, other)| *other != spec) {
                kinds.push((ArmKind::Method, family, name(&config), spec));
            }
        }
        kinds.extend(cloud_arms(&own.cloud, inputs));
        let mut arms = Vec::new();
        let mut hashes = Vec::new();
        for (draw, set) in inputs.draws.iter().enumerate() {
            let dataset = label(&inputs.draws, draw);
            let documents = content_hash(&set.documents)
                .map_err(|error| Verdict::Config(format!("hash the documents: {error}")))?;
            for (kind, family, name, spec) in &kinds {
                let codec = match spec {
                    ArmSpec::Codec(config) => Some(config.id()),
                    _ => None,
                };
                let bridge = match spec {
                    ArmSpec::Mapped { bridge, .. } => inputs.bridges.get(*bridge),
                    _ => None,
                };
                let content = Content {
                    model: inputs.edge_model.sha256.to_string(),
                    dataset: &set.hash,
                    documents: &documents,
                    chunk_tokens: own.chunk_tokens,
                    max_tokens: own.max_tokens,
                    arm: codec.as_deref().unwrap_or(name),
                    cloud: match spec {
                        ArmSpec::Reference | ArmSpec::Codec(_) | ArmSpec::Control(_) => None,
                        _ => inputs
                            .cloud_model
                            .as_ref()
                            .map(|model| model.sha256.to_string()),
                    },
                    notes_tokens: match spec {
                        ArmSpec::TextHandoff | ArmSpec::NotesKv | ArmSpec::NotesLocal => {
                            Some(own.notes_tokens)
                        }
                        _ => None,
                    },
                    bridge: bridge.map(|bridge| bridge.blake3.as_str()),
                };
                let hash = content_hash(&content)
                    .map_err(|error| Verdict::Config(format!("hash the plan: {error}")))?;
                let artefact_bytes = match spec {
                    ArmSpec::Codec(config) if config.needs_artefact() => artefact_bytes,
                    _ => bridge.map_or(0, |bridge| bridge.bytes),
                };
                arms.push(PlannedArm {
                    identity: ArmIdentity {
                        cell_id: cell_id(&[&dataset, name], &hash),
                        dataset: dataset.clone(),
                        kind: *kind,
                        family: family.clone(),
                        name: name.clone(),
                        codec,
                        artefact_bytes,
                    },
                    spec: spec.clone(),
                    draw,
                });
                hashes.push(hash);
            }
        }
        Ok(Self {
            hash: blake3::hash(hashes.concat().as_bytes())
                .to_hex()
                .to_string(),
            arms,
        })
    }

    /// The arms over one data set, the reference first.
    pub fn arms_of(&self, draw: usize) -> impl Iterator<Item = &PlannedArm> {
        self.arms.iter().filter(move |arm| arm.draw == draw)
    }
}

impl EvaluationFile {
    /// The chains that are asked for, each with its family.
    #[must_use]
    pub fn codecs(&self) -> Vec<(String, CodecConfig)> {
        let own = &self.evaluation;
        let listed = own
            .codecs
            .iter()
            .map(|config| (family_of(config), config.clone()));
        let swept = own.families.iter().flat_map(|name| {
            let family = families()
                .iter()
                .find(|family| family.name == name.as_str());
            let configs = family.map(Family::configs).unwrap_or_default();
            configs
                .into_iter()
                .map(move |config| (name.clone(), config))
        });
        listed.chain(swept).collect()
    }
}

/// The arms in which the cloud's model takes part: kind, family, name and what each is.
fn cloud_arms(
    arms: &[CloudArm],
    inputs: &EvaluationInputs,
) -> Vec<(ArmKind, String, String, ArmSpec)> {
    let named = |name: &str, spec| (name.to_owned(), name.to_owned(), spec);
    let mut bridges = inputs.bridges.iter().enumerate();
    let mut found = Vec::new();
    for arm in arms {
        let (family, name, spec) = match arm {
            CloudArm::Alone => named("cloud_alone", ArmSpec::CloudAlone),
            CloudArm::TextHandoff => named("text_handoff", ArmSpec::TextHandoff),
            CloudArm::NotesKv => named("notes_kv", ArmSpec::NotesKv),
            CloudArm::NotesLocal => named("notes_local", ArmSpec::NotesLocal),
            CloudArm::Distilled(arm) => {
                let family = format!("distilled-{}", arm.teacher.name());
                let name = format!("{family}-r{}-n{}", arm.reduction, arm.steps);
                (family, name, ArmSpec::Distilled(*arm))
            }
            CloudArm::Mapped(arm) => {
                // One for each mapped arm, in their order.
                let Some((index, input)) = bridges.next() else {
                    continue;
                };
                let method = format!("{}-{}", input.bridge.alignment(), input.bridge.mapping());
                let name = format!("{method}-s{}-l{}", arm.sinks, arm.shallow_layers);
                let spec = ArmSpec::Mapped {
                    bridge: index,
                    sinks: arm.sinks,
                    shallow_layers: arm.shallow_layers,
                };
                (method, name, spec)
            }
        };
        found.push((ArmKind::Method, family, name, spec));
    }
    found
}

/// The family that has a chain among its settings, or else its stages without their parameters.
fn family_of(config: &CodecConfig) -> String {
    if let Some(preset) = config.preset() {
        return preset.family.to_owned();
    }
    let known = families()
        .iter()
        .find(|family| family.configs().contains(config));
    known.map_or_else(
        || {
            let id = config.id();
            let stages = id
                .split('+')
                .map(|stage| stage.split('-').next().unwrap_or(stage));
            stages.collect::<Vec<_>>().join("+")
        },
        |family| family.name.to_owned(),
    )
}

/// What results call a data set: its registry name, with that of its file where several of its kind
/// are drawn, or a number where the files do not tell them apart.
fn label(draws: &[DatasetDraw], draw: usize) -> String {
    let own = &draws[draw];
    let same: Vec<&DatasetDraw> = draws
        .iter()
        .filter(|other| other.name == own.name)
        .collect();
    if same.len() < 2 {
        return own.name.to_owned();
    }
    let names: BTreeSet<Option<String>> = same.iter().map(|draw| file_name(draw)).collect();
    match file_name(own) {
        Some(file) if names.len() == same.len() && !names.contains(&None) => {
            format!("{}-{file}", own.name)
        }
        _ => {
            let before = draws[..draw].iter().filter(|other| other.name == own.name);
            format!("{}-{}", own.name, before.count() + 1)
        }
    }
}

/// The name of a data set's file up to its first dot, in small letters.
fn file_name(draw: &DatasetDraw) -> Option<String> {
    let name = draw.config.path()?.file_name()?.to_string_lossy();
    let name = name.split('.').next().filter(|name| !name.is_empty())?;
    Some(name.to_lowercase())
}

#[cfg(test)]
mod tests {
    use celslm_datasets::{ChoiceConfig, DatasetConfig};

    use super::*;

    #[test]
    fn data_sets_of_one_kind_are_told_apart_by_file_or_else_by_number() {
        let draw = |path: &str| DatasetDraw {
            config: DatasetConfig::Choice(ChoiceConfig {
                path: path.into(),
                documents: None,
                questions_per_document: 1,
                shots: 1,
            }),
            name: "choice",
            hash: String::new(),
            licence: String::new(),
            source: String::new(),
            documents: Vec::new(),
        };
        let labels = |paths: &[&str]| -> Vec<String> {
            let draws: Vec<_> = paths.iter().map(|path| draw(path)).collect();
            (0..draws.len()).map(|index| label(&draws, index)).collect()
        };
        assert_eq!(labels(&["a/ARC-Challenge.test.json"]), ["choice"]);
        assert_eq!(
            labels(&["a/ARC-Challenge.test.json", "openbookqa.test.json"]),
            ["choice-arc-challenge", "choice-openbookqa"]
        );
        for alike in [["a/x.json", "b/x.json"], ["x.json", ".."]] {
            assert_eq!(labels(&alike), ["choice-1", "choice-2"]);
        }
    }
}
