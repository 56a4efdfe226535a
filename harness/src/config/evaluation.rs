//! Experiments in process: files with an `[evaluation]` section.

use std::path::PathBuf;

use celslm_datasets::DatasetConfig;
use celslm_kv::AlignmentConfig;
use celslm_kv::align::Depth;
use celslm_kv::codec::CodecConfig;
use serde::{Deserialize, Serialize};

use super::{ConfigError, ConfigSource, ExperimentConfig, ModelsConfig, sections};

/// An experiment in process: what methods leave of a context's KV, without nodes and link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationFile {
    /// Version of the file's format; written into the resolved copy, and left out by users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_version: Option<u32>,
    /// Folder of data files: relative data set paths start here. When absent, the environment
    /// variable `CELSLM_DATA` says; embedded data needs neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// What the experiment is called.
    pub experiment: ExperimentConfig,
    /// The models; the edge's answers.
    #[serde(default)]
    pub models: ModelsConfig,
    /// What is evaluated on what.
    pub evaluation: EvaluationConfig,
}

/// `[evaluation]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluationConfig {
    /// Data sets; see `celslm ls datasets`.
    pub datasets: Vec<DatasetConfig>,
    /// Codec chains, by name, id or stages; see `celslm ls codecs`.
    pub codecs: Vec<CodecConfig>,
    /// Families of codec chains: one method at all of its settings; see `celslm ls families`.
    pub families: Vec<String>,
    /// Arms in which the cloud's model takes part: alone, with its KV mapped for the edge, or with
    /// its notes.
    pub cloud: Vec<CloudArm>,
    /// Controls, which a method must beat to have shown anything.
    pub controls: Vec<Control>,
    /// Tokens of one KV chunk.
    pub chunk_tokens: usize,
    /// Most tokens of an answer, where the data set does not say.
    pub max_tokens: usize,
    /// Most tokens of the notes that the cloud's model writes of a context, for the arms that use
    /// them.
    pub notes_tokens: usize,
    /// Questions, of one arm or of several, that are computed together; changes the speed, not the
    /// results.
    pub batch: usize,
    /// Compute threads; 0 means every CPU.
    pub threads: usize,
}

impl Default for EvaluationConfig {
    fn default() -> Self {
        Self {
            datasets: vec![DatasetConfig::default()],
            codecs: Vec::new(),
            families: Vec::new(),
            cloud: Vec::new(),
            controls: vec![Control::NoContext, Control::WrongContext],
            chunk_tokens: 256,
            max_tokens: 32,
            notes_tokens: 200,
            batch: 32,
            threads: 0,
        }
    }
}

/// A control arm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Control {
    /// The instruction without a document.
    NoContext,
    /// Another document of the set.
    WrongContext,
    /// Zeros in place of keys and values, but for the first four tokens.
    ZeroKv,
    /// Normal numbers with each channel's mean and variance, but for the first four tokens.
    RandomKv,
}

/// An arm in which the cloud's model takes part: `"alone"`, `"notes_kv"`, or
/// `{ mapped = { sinks = 4 } }`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum CloudArm {
    /// The cloud's model reads everything and answers.
    Alone,
    /// Its KV of the context, through a bridge, for the edge's model to answer from.
    Mapped(MappedArm),
    /// Its notes of the context, which the edge prefills in the context's place.
    TextHandoff,
    /// The context and its notes, prefilled at the cloud in the edge's model.
    NotesKv,
    /// The same prefilled at the edge.
    NotesLocal,
    /// The edge model's KV of the context, tuned at the cloud by self-study.
    Distilled(DistilledArm),
}

/// `distilled = { … }`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DistilledArm {
    /// Whose distributions are learnt.
    pub teacher: DistilledBy,
    /// Which context is studied.
    #[serde(skip_serializing_if = "StudiedContext::is_own")]
    pub studied: StudiedContext,
    /// The KV has one token for so many of the context's.
    pub reduction: usize,
    /// Steps for each context, of one to three seconds.
    pub steps: usize,
    /// A `prefix` bridge: tuning begins behind its first tokens in place of the edge's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_tokens: Option<PathBuf>,
    /// An arm of the list that it is held against, beside the one that is otherwise the same and has
    /// the edge's model for its teacher.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control: Option<String>,
}

impl Default for DistilledArm {
    fn default() -> Self {
        Self {
            teacher: DistilledBy::Cloud,
            studied: StudiedContext::Own,
            reduction: 1,
            steps: 60,
            first_tokens: None,
            control: None,
        }
    }
}

/// A context of self-study.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StudiedContext {
    /// The one that is asked about.
    Own,
    /// Another, of whose KV the first tokens are taken that both contexts begin with: the control.
    Other,
}

impl StudiedContext {
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "the shape that serde asks for"
    )]
    fn is_own(&self) -> bool {
        *self == Self::Own
    }
}

/// A teacher of self-study.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DistilledBy {
    /// The cloud's model.
    Cloud,
    /// The edge's own: the control.
    Edge,
}

impl DistilledBy {
    /// Name in configurations and results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Edge => "edge",
        }
    }
}

/// `mapped = { … }`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MappedArm {
    /// The alignment, with its mapping and, where it is not the pair's default one, its bridge.
    pub alignment: AlignmentConfig,
    /// First tokens whose keys and values are the edge's own.
    pub sinks: usize,
    /// Layers of the context that the edge computes itself.
    pub shallow_layers: usize,
    /// What results call it, in place of alignment and mapping: two bridges of one kind need it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// An arm of the list that it is held against as its own control, beside the one whose bridge is of
    /// the same kind and maps the edge's own KV.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control: Option<String>,
}

impl Default for MappedArm {
    fn default() -> Self {
        Self {
            alignment: AlignmentConfig::Depth(Depth::default()),
            sinks: 4,
            shallow_layers: 0,
            name: None,
            control: None,
        }
    }
}

impl Control {
    /// Name in configurations and results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoContext => "no_context",
            Self::WrongContext => "wrong_context",
            Self::ZeroKv => "zero_kv",
            Self::RandomKv => "random_kv",
        }
    }
}

impl EvaluationFile {
    /// The heading of the report.
    #[must_use]
    pub fn title(&self) -> &str {
        match self.experiment.title.as_str() {
            "" => &self.experiment.name,
            title => title,
        }
    }

    /// Checks every range that the types leave open.
    pub(super) fn validate(&self, source: &ConfigSource) -> Result<(), ConfigError> {
        let fail = |path: &str, message: &str| Err(source.error_at(path, message));
        sections::validate_head(self.schema_version, &self.experiment, source)?;
        let own = &self.evaluation;
        for (path, value, range) in [
            ("evaluation.chunk_tokens", own.chunk_tokens, 1..=65_536),
            ("evaluation.max_tokens", own.max_tokens, 1..=4096),
            ("evaluation.notes_tokens", own.notes_tokens, 2..=2048),
            ("evaluation.batch", own.batch, 1..=256),
            ("evaluation.threads", own.threads, 0..=1024),
        ] {
            if !range.contains(&value) {
                let message = format!("{value}; use {} to {}", range.start(), range.end());
                return fail(path, &message);
            }
        }
        for (index, arm) in own.cloud.iter().enumerate() {
            if let CloudArm::Distilled(arm) = arm {
                for (field, value) in [("reduction", arm.reduction), ("steps", arm.steps)] {
                    if !(1..=10_000).contains(&value) {
                        let path = format!("evaluation.cloud.{index}.distilled.{field}");
                        return fail(&path, &format!("{value}; use 1 to 10000"));
                    }
                }
            }
            let CloudArm::Mapped(arm) = arm else { continue };
            if !arm.alignment.needs_bridge() {
                let path = format!("evaluation.cloud.{index}.mapped.alignment");
                let message = "this alignment maps nothing: its KV is the reference's";
                return fail(&path, message);
            }
            if arm.alignment.maps_at_edge() {
                let path = format!("evaluation.cloud.{index}.mapped.alignment");
                let message = "an evaluation has no link with two ends: leave `at` out, and run \
                               `at = \"edge\"` in a [grid]";
                return fail(&path, message);
            }
            if arm
                .name
                .as_ref()
                .is_some_and(|name| !sections::is_slug(name))
            {
                let path = format!("evaluation.cloud.{index}.mapped.name");
                let message = "use 1 to 64 letters, digits, `-`, `_` or `.`, starting with a letter or digit: it is part of a folder's name";
                return fail(&path, message);
            }
            for (field, value) in [("sinks", arm.sinks), ("shallow_layers", arm.shallow_layers)] {
                if value > 1024 {
                    let path = format!("evaluation.cloud.{index}.mapped.{field}");
                    return fail(&path, &format!("{value}; use 0 to 1024"));
                }
            }
        }
        if own.datasets.is_empty() {
            return fail("evaluation.datasets", "name at least one data set");
        }
        let known = celslm_kv::codec::families();
        for (index, name) in own.families.iter().enumerate() {
            if !known.iter().any(|family| family.name == name.as_str()) {
                let names: Vec<&str> = known.iter().map(|family| family.name).collect();
                let message = format!("unknown family `{name}`; known: {}", names.join(", "));
                return fail(&format!("evaluation.families.{index}"), &message);
            }
        }
        Ok(())
    }
}
