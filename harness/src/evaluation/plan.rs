//! Which arms meet which contexts.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use celslm_kv::Bridge;
use celslm_kv::codec::{CodecArtefact, CodecConfig, CodecContext, Family, families};
use celslm_model::store::ModelSpec;
use celslm_reports::evaluation::{ArmIdentity, ArmKind, CloudPart};
use serde::Serialize;

use crate::artefacts::name;
use crate::config::{
    CloudArm, Control, DistilledArm, DistilledBy, EvaluationFile, MappedArm, StudiedContext,
};
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
    /// The bridges of arms, one for each arm that has one, in their order.
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

impl BridgeInput {
    /// Whether it maps a model's KV into that model's own space.
    #[must_use]
    pub fn maps_onto_itself(&self) -> bool {
        self.bridge.source().fingerprint == self.bridge.target().fingerprint
    }

    /// Whether it was taught by the model that it is for, and reads that model's KV alone.
    fn is_its_own_teacher(&self) -> bool {
        let teacher = self
            .bridge
            .manifest()
            .training
            .map(|training| training.teacher);
        self.bridge.parts().is_empty() && teacher == Some(self.bridge.target().fingerprint)
    }

    /// Seconds that it took to make it, as far as it says all of them.
    fn fit_s(&self) -> Option<f64> {
        let cost = self.bridge.manifest().cost?;
        Some(f64::from(cost.fit_s?) + f64::from(cost.train_s))
    }
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
    Distilled {
        /// How.
        arm: DistilledArm,
        /// Index in [`EvaluationInputs::bridges`] of the first tokens that tuning begins behind.
        first_tokens: Option<usize>,
    },
    /// The cloud's KV through a bridge.
    Mapped {
        /// Index in [`EvaluationInputs::bridges`].
        bridge: usize,
        /// First tokens that are the edge's own.
        sinks: usize,
        /// Layers that are the edge's own.
        shallow_layers: usize,
        /// Whether the edge's own KV is mapped in place of the cloud's.
        own_kv: bool,
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

/// An arm before it meets a data set.
struct Kind {
    kind: ArmKind,
    family: String,
    name: String,
    spec: ArmSpec,
    cloud: Option<CloudPart>,
    own_controls: Vec<String>,
}

impl Kind {
    /// An arm in which the cloud's model takes no part.
    const fn plain(kind: ArmKind, family: String, name: String, spec: ArmSpec) -> Self {
        Self {
            kind,
            family,
            name,
            spec,
            cloud: None,
            own_controls: Vec::new(),
        }
    }
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
    /// there is none, for two arms of one name, and for an own control that is no arm.
    pub fn new(file: &EvaluationFile, inputs: &EvaluationInputs) -> Result<Self, Verdict> {
        let own = &file.evaluation;
        let context = inputs
            .artefact
            .as_ref()
            .map_or_else(CodecContext::default, |artefact| {
                CodecContext::new(Arc::clone(artefact))
            });
        let artefact_bytes = inputs.artefact.as_ref().map_or(0, |a| a.file_bytes());
        let mut kinds = vec![Kind::plain(
            ArmKind::Reference,
            "uncompressed".to_owned(),
            "uncompressed".to_owned(),
            ArmSpec::Reference,
        )];
        for control in &own.controls {
            let name = control.name().to_owned();
            let spec = ArmSpec::Control(*control);
            kinds.push(Kind::plain(ArmKind::Control, name.clone(), name, spec));
        }
        for (family, config) in file.codecs() {
            let bound = config
                .build_with(&context)
                .map_err(|error| Verdict::Config(format!("codec {}: {error}", name(&config))))?;
            let spec = ArmSpec::Codec(bound.config().clone());
            if kinds.iter().all(|kind| kind.spec != spec) {
                kinds.push(Kind::plain(ArmKind::Method, family, name(&config), spec));
            }
        }
        kinds.extend(cloud_arms(&own.cloud, inputs)?);
        let mut arms = Vec::new();
        let mut hashes = Vec::new();
        for (draw, set) in inputs.draws.iter().enumerate() {
            let dataset = label(&inputs.draws, draw);
            let documents = content_hash(&set.documents)
                .map_err(|error| Verdict::Config(format!("hash the documents: {error}")))?;
            for Kind {
                kind,
                family,
                name,
                spec,
                cloud,
                own_controls,
            } in &kinds
            {
                let codec = match spec {
                    ArmSpec::Codec(config) => Some(config.id()),
                    _ => None,
                };
                let bridge = match spec {
                    ArmSpec::Mapped { bridge, .. }
                    | ArmSpec::Distilled {
                        first_tokens: Some(bridge),
                        ..
                    } => inputs.bridges.get(*bridge),
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
                        ArmSpec::Reference
                        | ArmSpec::Codec(_)
                        | ArmSpec::Control(_)
                        | ArmSpec::Mapped { own_kv: true, .. } => None,
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
                        cloud: *cloud,
                        fit_s: bridge.and_then(BridgeInput::fit_s),
                        tuned_per_context: matches!(spec, ArmSpec::Distilled { .. }),
                        own_controls: own_controls.clone(),
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

/// The arms in which the cloud's model takes part, and their own controls.
fn cloud_arms(arms: &[CloudArm], inputs: &EvaluationInputs) -> Result<Vec<Kind>, Verdict> {
    let same_model = inputs
        .cloud_model
        .as_ref()
        .is_some_and(|cloud| cloud.sha256 == inputs.edge_model.sha256);
    let mut bridges = inputs.bridges.iter().enumerate();
    let mut found: Vec<Kind> = Vec::new();
    // Each with what the configuration says of it, to find its control among the others.
    let mut mapped: Vec<(usize, &MappedArm, &BridgeInput)> = Vec::new();
    for arm in arms {
        let informs =
            |name: &str, spec| (name.to_owned(), name.to_owned(), spec, CloudPart::Informs);
        let (family, name, spec, cloud) = match arm {
            CloudArm::Alone => {
                let (family, name, spec, _) = informs("cloud_alone", ArmSpec::CloudAlone);
                (family, name, spec, CloudPart::Alone)
            }
            CloudArm::TextHandoff => informs("text_handoff", ArmSpec::TextHandoff),
            CloudArm::NotesKv => informs("notes_kv", ArmSpec::NotesKv),
            CloudArm::NotesLocal => informs("notes_local", ArmSpec::NotesLocal),
            CloudArm::Distilled(arm) => {
                let (family, name) = distilled_name(arm);
                let cloud = match (arm.teacher, arm.studied) {
                    (DistilledBy::Cloud, StudiedContext::Own) => CloudPart::Informs,
                    _ => CloudPart::Withheld,
                };
                let spec = ArmSpec::Distilled {
                    arm: arm.clone(),
                    // In the order of the arms, as they were read.
                    first_tokens: arm.first_tokens.as_ref().and(bridges.next()).map(|b| b.0),
                };
                (family, name, spec, cloud)
            }
            CloudArm::Mapped(arm) => {
                // One for each arm that has one, in their order.
                let Some((index, input)) = bridges.next() else {
                    continue;
                };
                // Where both ends have one model, the cloud's KV is what the edge would compute.
                let own_kv =
                    (input.maps_onto_itself() || input.is_its_own_teacher()) && !same_model;
                let method = arm.name.clone().unwrap_or_else(|| {
                    format!("{}-{}", input.bridge.alignment(), input.bridge.mapping())
                });
                let (method, cloud) = match own_kv {
                    true => (format!("self-{method}"), CloudPart::Withheld),
                    false => (method, CloudPart::Informs),
                };
                mapped.push((found.len(), arm, input));
                let name = format!("{method}-s{}-l{}", arm.sinks, arm.shallow_layers);
                let spec = ArmSpec::Mapped {
                    bridge: index,
                    sinks: arm.sinks,
                    shallow_layers: arm.shallow_layers,
                    own_kv,
                };
                (method, name, spec, cloud)
            }
        };
        if found.iter().any(|other| other.name == name) {
            let message = format!(
                "two arms of evaluation.cloud are called {name}; give a mapped one a `name` of its own, or leave one out"
            );
            return Err(Verdict::Config(message));
        }
        found.push(Kind {
            kind: ArmKind::Method,
            family,
            name,
            spec,
            cloud: Some(cloud),
            own_controls: Vec::new(),
        });
    }
    let controls: Vec<Vec<String>> = (0..found.len())
        .map(|index| own_controls(index, &found, &mapped))
        .collect::<Result<_, _>>()?;
    for (kind, controls) in found.iter_mut().zip(controls) {
        kind.own_controls = controls;
    }
    Ok(found)
}

/// Family and name of an arm whose KV is tuned.
fn distilled_name(arm: &DistilledArm) -> (String, String) {
    let other = match arm.studied {
        StudiedContext::Own => "",
        StudiedContext::Other => "-other",
    };
    let behind = match arm.first_tokens {
        None => "",
        Some(_) => "-prefix",
    };
    let family = format!("distilled-{}{other}{behind}", arm.teacher.name());
    let name = format!("{family}-r{}-n{}", arm.reduction, arm.steps);
    (family, name)
}

/// The own controls of an arm: the one that is made alike without what the cloud's model knows, if it was
/// planned, and the one that the configuration names.
fn own_controls(
    index: usize,
    arms: &[Kind],
    mapped: &[(usize, &MappedArm, &BridgeInput)],
) -> Result<Vec<String>, Verdict> {
    let settings = mapped.iter().find(|(at, _, _)| *at == index);
    let (twin, wanted) = match (settings, &arms[index].spec) {
        (Some((_, arm, input)), _) => (
            self_control(index, arm, input, arms, mapped),
            arm.control.as_deref(),
        ),
        (None, ArmSpec::Distilled { arm, .. }) => {
            let edge = DistilledArm {
                teacher: DistilledBy::Edge,
                ..arm.clone()
            };
            let informs = arms[index].cloud == Some(CloudPart::Informs);
            (
                informs.then(|| distilled_name(&edge).1),
                arm.control.as_deref(),
            )
        }
        (None, ArmSpec::NotesKv) => (Some("notes_local".to_owned()), None),
        (None, _) => (None, None),
    };
    let twin = twin.filter(|name| arms.iter().any(|arm| arm.name == *name));
    let named = wanted.map(|wanted| named_control(index, wanted, arms, mapped));
    let named = named
        .transpose()?
        .filter(|name| twin.as_ref() != Some(name));
    Ok(twin.into_iter().chain(named).collect())
}

/// Whether the edge computes the same of a context in two mapped arms.
fn alike(arm: &MappedArm, other: &MappedArm) -> bool {
    (other.sinks, other.shallow_layers) == (arm.sinks, arm.shallow_layers)
}

/// The arm that the configuration names as the own control of another: by its name, or by the part of a
/// mapped arm's name that says how it is mapped, where the edge computes the same of a context in both.
fn named_control(
    index: usize,
    wanted: &str,
    arms: &[Kind],
    mapped: &[(usize, &MappedArm, &BridgeInput)],
) -> Result<String, Verdict> {
    let settings = |of: usize| mapped.iter().find(|(at, _, _)| *at == of).map(|m| m.1);
    let others = || {
        arms.iter()
            .enumerate()
            .filter(move |(other, _)| *other != index)
    };
    let exact = others().find(|(_, kind)| kind.name == wanted);
    let family = || {
        others().find(|(other, kind)| {
            kind.family == wanted
                && settings(*other)
                    .is_some_and(|other| settings(index).is_none_or(|arm| alike(arm, other)))
        })
    };
    let Some((_, control)) = exact.or_else(family) else {
        let known: Vec<&str> = others().map(|(_, kind)| kind.name.as_str()).collect();
        return Err(Verdict::Config(format!(
            "the own control `{wanted}` of the arm {} is no other arm of evaluation.cloud; known: {}",
            arms[index].name,
            known.join(", ")
        )));
    };
    Ok(control.name.clone())
}

/// The arm that maps the edge's own KV with a bridge of the same kind.
fn self_control(
    index: usize,
    arm: &MappedArm,
    input: &BridgeInput,
    arms: &[Kind],
    mapped: &[(usize, &MappedArm, &BridgeInput)],
) -> Option<String> {
    if arms[index].cloud != Some(CloudPart::Informs) {
        return None;
    }
    let method = |input: &BridgeInput| {
        (
            input.bridge.alignment().to_owned(),
            input.bridge.mapping().clone(),
        )
    };
    let candidates: Vec<&(usize, &MappedArm, &BridgeInput)> = mapped
        .iter()
        .filter(|(other, settings, bridge)| {
            arms[*other].cloud == Some(CloudPart::Withheld)
                && alike(arm, settings)
                && method(bridge) == method(input)
        })
        .collect();
    let named = candidates.iter().find(|other| other.1.name == arm.name);
    let chosen = match (named, candidates.as_slice()) {
        (Some(other), _) => other.0,
        (None, [one]) => one.0,
        // Which of several it is only the configuration can say.
        _ => return None,
    };
    Some(arms[chosen].name.clone())
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

impl EvaluationInputs {
    /// What results call a data set.
    #[must_use]
    pub fn label(&self, draw: usize) -> String {
        label(&self.draws, draw)
    }
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
