//! What a config file or a codec id says about a chain.

use std::fmt;
use std::str::FromStr;

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{
    Adaptive, Allocated, AnchorDelta, ArtefactId, Bins, Centre, Chain, Codec as _, CodecContext,
    CodecError, Context, Exact, GroupQuant, Hadamard, Identity, Knorm, LloydMax, Merge, Outliers,
    Pca, Prefix, Progressive, Random, Scored, ScoredBy, Step, Streaming, Svd, Tables, Vectorwise,
    Zstd, names, presets, registry,
};

/// A chain holds at most this many stages; ids come from the wire.
const MAX_STAGES: usize = 8;

/// Where a stage stands in a chain; the order of the variants is the order of the stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StageKind {
    /// Tile to a tile with fewer tokens.
    Select,
    /// Tile to a tile of other coordinates.
    Transform,
    /// Tile to bytes. Every chain has exactly one.
    Quantise,
    /// Bytes to fewer bytes, without loss.
    Entropy,
}

/// One stage: `"identity"` or `{ group_quant = { bits = 4, group = 32 } }`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum StageConfig {
    /// See [`Prefix`].
    Prefix(Prefix),
    /// See [`Exact`].
    Exact(Exact),
    /// See [`Streaming`].
    Streaming(Streaming),
    /// See [`Knorm`].
    Knorm(Knorm),
    /// See [`Random`].
    Random(Random),
    /// See [`Scored`] and [`scores::snapkv`](super::scores::snapkv).
    Snapkv(Scored),
    /// See [`Scored`] and [`scores::expected_attention`](super::scores::expected_attention).
    ExpectedAttention(Scored),
    /// See [`Scored`] and [`scores::h2o`](super::scores::h2o).
    H2o(Scored),
    /// See [`AnchorDelta`].
    AnchorDelta(AnchorDelta),
    /// See [`Centre`].
    Centre,
    /// See [`Outliers`].
    Outliers(Outliers),
    /// See [`Merge`].
    Merge(Merge),
    /// See [`Hadamard`].
    Hadamard(Hadamard),
    /// See [`Pca`].
    Pca(Pca),
    /// See [`Svd`].
    Svd(Svd),
    /// See [`Identity`].
    Identity,
    /// See [`GroupQuant`].
    GroupQuant(GroupQuant),
    /// See [`Bins`].
    Bins(Bins),
    /// See [`Vectorwise`].
    Vectorwise(Vectorwise),
    /// See [`LloydMax`].
    LloydMax(LloydMax),
    /// See [`Allocated`].
    Allocated(Allocated),
    /// See [`Step`].
    Step(Step),
    /// See [`Progressive`].
    Progressive(Progressive),
    /// See [`Tables`].
    Tables(Tables),
    /// See [`Adaptive`].
    Adaptive,
    /// See [`Context`].
    Context,
    /// See [`Zstd`].
    Zstd(Zstd),
}

impl StageConfig {
    /// Where in a chain the stage stands.
    #[must_use]
    pub const fn kind(&self) -> StageKind {
        match self {
            Self::Prefix(_)
            | Self::Exact(_)
            | Self::Streaming(_)
            | Self::Knorm(_)
            | Self::Random(_)
            | Self::Snapkv(_)
            | Self::ExpectedAttention(_)
            | Self::H2o(_) => StageKind::Select,
            Self::AnchorDelta(_)
            | Self::Centre
            | Self::Outliers(_)
            | Self::Merge(_)
            | Self::Hadamard(_)
            | Self::Pca(_)
            | Self::Svd(_) => StageKind::Transform,
            Self::Identity
            | Self::GroupQuant(_)
            | Self::Bins(_)
            | Self::Vectorwise(_)
            | Self::LloydMax(_)
            | Self::Allocated(_)
            | Self::Step(_)
            | Self::Progressive(_) => StageKind::Quantise,
            Self::Tables(_) | Self::Adaptive | Self::Context | Self::Zstd(_) => StageKind::Entropy,
        }
    }

    /// Whether tokens may be missing from what the receiver decodes.
    const fn leaves_tokens_out(&self) -> bool {
        matches!(
            self,
            Self::Streaming(_)
                | Self::Knorm(_)
                | Self::Random(_)
                | Self::Snapkv(_)
                | Self::ExpectedAttention(_)
                | Self::H2o(_)
        )
    }

    /// Which scores of the context's tokens the encoder needs.
    const fn scored_by(&self) -> Option<ScoredBy> {
        match self {
            Self::Snapkv(_) => Some(ScoredBy::SnapKv),
            Self::ExpectedAttention(_) => Some(ScoredBy::ExpectedAttention),
            Self::H2o(_) => Some(ScoredBy::H2o),
            _ => None,
        }
    }

    /// Whether both ends must hold something that was fitted beforehand.
    const fn needs_artefact(&self) -> bool {
        matches!(self, Self::Prefix(_) | Self::Pca(_))
    }

    /// Bits that the stage adds to the quantiser's for a part of the channels.
    const fn extra_bits(&self) -> usize {
        match self {
            Self::Outliers(stage) => stage.extra(),
            _ => 0,
        }
    }

    /// Whether the stage codes a quantiser's integers, and so has to stand right behind it.
    const fn codes_symbols(&self) -> bool {
        matches!(self, Self::Tables(_) | Self::Adaptive | Self::Context)
    }
}

impl fmt::Display for StageConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&match self {
            Self::Prefix(stage) => stage.id(),
            Self::Exact(stage) => stage.id(),
            Self::Streaming(stage) => stage.id(),
            Self::Knorm(stage) => stage.id(),
            Self::Random(stage) => stage.id(),
            Self::Snapkv(stage) => stage.id(ScoredBy::SnapKv),
            Self::ExpectedAttention(stage) => stage.id(ScoredBy::ExpectedAttention),
            Self::H2o(stage) => stage.id(ScoredBy::H2o),
            Self::AnchorDelta(stage) => stage.id(),
            Self::Centre => Centre::NAME.to_owned(),
            Self::Outliers(stage) => stage.id(),
            Self::Merge(stage) => stage.id(),
            Self::Hadamard(stage) => stage.id(),
            Self::Pca(stage) => stage.id(),
            Self::Svd(stage) => stage.id(),
            Self::Identity => Identity::NAME.to_owned(),
            Self::GroupQuant(stage) => stage.id(),
            Self::Bins(stage) => stage.id(),
            Self::Vectorwise(stage) => stage.id(),
            Self::LloydMax(stage) => stage.id(),
            Self::Allocated(stage) => stage.id(),
            Self::Step(stage) => stage.id(),
            Self::Progressive(stage) => stage.id(),
            Self::Tables(stage) => stage.id(),
            Self::Adaptive => Adaptive::NAME.to_owned(),
            Self::Context => Context::NAME.to_owned(),
            Self::Zstd(stage) => stage.id(),
        })
    }
}

impl FromStr for StageConfig {
    type Err = CodecError;

    fn from_str(id: &str) -> Result<Self, CodecError> {
        let (name, parameters) = id.split_once('-').unwrap_or((id, ""));
        let none = |stage: Self| id.eq(name).then_some(stage);
        let scored = || Scored::parse(parameters);
        let stage = match name {
            Prefix::NAME => Prefix::parse(parameters).map(Self::Prefix),
            Exact::NAME => Exact::parse(parameters).map(Self::Exact),
            Streaming::NAME => Streaming::parse(parameters).map(Self::Streaming),
            Knorm::NAME => Knorm::parse(parameters).map(Self::Knorm),
            Random::NAME => Random::parse(parameters).map(Self::Random),
            "snapkv" => scored().map(Self::Snapkv),
            "expected_attention" => scored().map(Self::ExpectedAttention),
            "h2o" => scored().map(Self::H2o),
            AnchorDelta::NAME => AnchorDelta::parse(parameters).map(Self::AnchorDelta),
            Centre::NAME => none(Self::Centre),
            Outliers::NAME => Outliers::parse(parameters).map(Self::Outliers),
            Merge::NAME => Merge::parse(parameters).map(Self::Merge),
            Hadamard::NAME => Hadamard::parse(parameters).map(Self::Hadamard),
            Pca::NAME => Pca::parse(parameters).map(Self::Pca),
            Svd::NAME => Svd::parse(parameters).map(Self::Svd),
            Identity::NAME => none(Self::Identity),
            GroupQuant::NAME => {
                let stage = GroupQuant::from_parameters(parameters)
                    .map_err(|reason| unreadable(id, &reason))?;
                Some(Self::GroupQuant(stage))
            }
            Bins::NAME => Bins::parse(parameters).map(Self::Bins),
            Vectorwise::NAME => Vectorwise::parse(parameters).map(Self::Vectorwise),
            LloydMax::NAME => LloydMax::parse(parameters).map(Self::LloydMax),
            Allocated::NAME => Allocated::parse(parameters).map(Self::Allocated),
            Step::NAME => Step::parse(parameters).map(Self::Step),
            Progressive::NAME => Progressive::parse(parameters).map(Self::Progressive),
            Tables::NAME => Tables::parse(parameters).map(Self::Tables),
            Adaptive::NAME => none(Self::Adaptive),
            Context::NAME => none(Self::Context),
            Zstd::NAME => Zstd::parse(parameters).map(Self::Zstd),
            _ => {
                return Err(CodecError::UnknownStage {
                    name: name.chars().take(80).collect(),
                    known: names(),
                });
            }
        };
        // One codec has one id: refuses forms like 04b or +32 too.
        stage
            .filter(|stage| stage.to_string() == id)
            .ok_or_else(|| {
                let example = registry().iter().find(|entry| entry.name == name);
                let example = example.map_or_else(String::new, |entry| entry.example().id());
                unreadable(id, &format!("expected parameters as in {example}"))
            })
    }
}

/// A chain as configured: one stage, or a list of stages in order.
///
/// Its [`Display`](fmt::Display) form is the codec id that travels with chunks and stands in
/// samples: the ids of the stages joined by `+`. [`FromStr`] reads it back.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CodecConfig {
    stages: Vec<StageConfig>,
}

impl CodecConfig {
    /// A chain of these stages.
    ///
    /// # Errors
    /// [`CodecError::Order`] unless the stages are in order and exactly one quantises.
    pub fn new(stages: Vec<StageConfig>) -> Result<Self, CodecError> {
        let kinds: Vec<_> = stages.iter().map(StageConfig::kind).collect();
        let checked = check_order(&kinds)
            .and_then(|()| check_symbols(&stages))
            .and_then(|()| check_outliers(&stages))
            .and_then(|()| check_scores(&stages));
        match checked {
            Ok(()) => Ok(Self { stages }),
            Err(reason) => Err(CodecError::Order {
                id: join(&stages),
                reason,
            }),
        }
    }

    /// The stages in order.
    #[must_use]
    pub fn stages(&self) -> &[StageConfig] {
        &self.stages
    }

    /// The codec id, the same as the [`Display`](fmt::Display) form.
    #[must_use]
    pub fn id(&self) -> String {
        join(&self.stages)
    }

    /// Whether tokens may be missing from what the receiver decodes, which its attention then has
    /// to leave out.
    #[must_use]
    pub fn leaves_tokens_out(&self) -> bool {
        self.stages.iter().any(StageConfig::leaves_tokens_out)
    }

    /// Whether both ends must hold something that was fitted beforehand, see
    /// [`Self::build_with`].
    #[must_use]
    pub fn needs_artefact(&self) -> bool {
        self.stages.iter().any(StageConfig::needs_artefact)
    }

    /// The artefact that a stage names; `None` also where none is needed.
    #[must_use]
    pub fn artefact(&self) -> Option<ArtefactId> {
        self.stages.iter().find_map(|stage| match stage {
            StageConfig::Pca(pca) => pca.artefact,
            StageConfig::Prefix(prefix) => prefix.artefact,
            _ => None,
        })
    }

    /// The same stages, none of which names its artefact.
    #[must_use]
    pub fn unbound(mut self) -> Self {
        for stage in &mut self.stages {
            match stage {
                StageConfig::Pca(pca) => pca.artefact = None,
                StageConfig::Prefix(prefix) => prefix.artefact = None,
                _ => {}
            }
        }
        self
    }

    /// Which scores of the context's tokens an encoder needs, see
    /// [`ChunkEncoder::with_scores`](crate::ChunkEncoder::with_scores).
    #[must_use]
    pub fn scored_by(&self) -> Option<ScoredBy> {
        self.stages.iter().find_map(StageConfig::scored_by)
    }

    /// Builds the codec. Stages that need a fitted artefact refuse every tile; see
    /// [`Self::build_with`].
    #[must_use]
    pub fn build(&self) -> Chain {
        Chain::without_artefact(self.clone())
    }

    /// Builds the codec with what was fitted beforehand. The chain's id then names the artefact.
    ///
    /// # Errors
    /// [`CodecError::Artefact`] when a stage names another artefact than the context holds.
    pub fn build_with(&self, context: &CodecContext) -> Result<Chain, CodecError> {
        Chain::new(self.clone(), context)
    }

    /// The config whose stages name the artefact that they use.
    pub(super) fn bind(mut self, context: &CodecContext) -> Result<Self, CodecError> {
        for stage in &mut self.stages {
            match stage {
                StageConfig::Pca(pca) => {
                    pca.artefact = context.bind(Pca::NAME, pca.artefact)?;
                }
                StageConfig::Prefix(prefix) => {
                    prefix.artefact = context.bind(Prefix::NAME, prefix.artefact)?;
                }
                _ => {}
            }
        }
        Ok(self)
    }
}

impl Default for CodecConfig {
    fn default() -> Self {
        StageConfig::Identity.into()
    }
}

impl From<StageConfig> for CodecConfig {
    fn from(stage: StageConfig) -> Self {
        Self {
            stages: vec![stage],
        }
    }
}

impl fmt::Display for CodecConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id())
    }
}

impl FromStr for CodecConfig {
    type Err = CodecError;

    fn from_str(id: &str) -> Result<Self, CodecError> {
        if id.split('+').nth(MAX_STAGES).is_some() {
            return Err(unreadable(id, &format!("more than {MAX_STAGES} stages")));
        }
        Self::new(id.split('+').map(str::parse).collect::<Result<_, _>>()?)
    }
}

impl Serialize for CodecConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.stages.as_slice() {
            [stage] => stage.serialize(serializer),
            stages => stages.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for CodecConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // An untagged enum would swallow the message that names the known stages or fields.
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = CodecConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a codec stage, a list of codec stages, a preset's name or a codec's id",
                )
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<CodecConfig, E> {
                if let Some(preset) = presets().iter().find(|preset| preset.name == name) {
                    return Ok(preset.config());
                }
                if name.contains(['-', '+']) {
                    return name.parse().map_err(de::Error::custom);
                }
                StageConfig::deserialize(StrDeserializer::new(name)).map(CodecConfig::from)
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<CodecConfig, A::Error> {
                StageConfig::deserialize(MapAccessDeserializer::new(map)).map(CodecConfig::from)
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<CodecConfig, A::Error> {
                let mut stages = Vec::new();
                while let Some(stage) = seq.next_element()? {
                    if stages.len() == MAX_STAGES {
                        return Err(de::Error::invalid_length(MAX_STAGES + 1, &self));
                    }
                    stages.push(stage);
                }
                CodecConfig::new(stages).map_err(de::Error::custom)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

fn join(stages: &[StageConfig]) -> String {
    stages
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("+")
}

fn unreadable(id: &str, reason: &str) -> CodecError {
    CodecError::Id {
        id: id.chars().take(80).collect(),
        reason: reason.to_owned(),
    }
}

fn check_order(kinds: &[StageKind]) -> Result<(), &'static str> {
    match kinds
        .iter()
        .filter(|kind| **kind == StageKind::Quantise)
        .count()
    {
        0 => return Err("one stage must quantise, for example group_quant or identity"),
        1 => {}
        _ => return Err("only one stage may quantise"),
    }
    if kinds.is_sorted() {
        Ok(())
    } else {
        Err("the order is select, transform, quantise, entropy-code")
    }
}

/// Coders of symbols need a quantiser that gives some, and nothing between it and them.
fn check_symbols(stages: &[StageConfig]) -> Result<(), &'static str> {
    for (index, stage) in stages.iter().enumerate() {
        if stage.codes_symbols() {
            let before = index.checked_sub(1).map(|before| stages[before]);
            match before {
                Some(StageConfig::Identity | StageConfig::Progressive(_)) => {
                    return Err(
                        "identity and progressive give bytes; tables, adaptive and context code integers",
                    );
                }
                Some(before) if before.kind() == StageKind::Quantise => {}
                _ => return Err("tables, adaptive and context stand right behind the quantiser"),
            }
        }
    }
    Ok(())
}

/// Outliers need a quantiser that can be given more bits.
fn check_outliers(stages: &[StageConfig]) -> Result<(), &'static str> {
    let extra: usize = stages.iter().map(StageConfig::extra_bits).sum();
    let widened = stages.iter().all(|stage| match stage {
        StageConfig::LloydMax(stage) => stage.widened(extra).is_ok(),
        stage => extra == 0 || stage.kind() != StageKind::Quantise,
    });
    if widened {
        Ok(())
    } else {
        Err("outliers need lloyd_max, with room for their additional bits: 5 in all")
    }
}

/// A tile comes with one set of scores.
fn check_scores(stages: &[StageConfig]) -> Result<(), &'static str> {
    let mut scores = stages.iter().filter_map(StageConfig::scored_by);
    let first = scores.next();
    match scores.find(|other| Some(*other) != first) {
        Some(_) => Err("selections of one chain use the same scores"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn json(text: &str) -> Result<CodecConfig, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn configs_are_externally_tagged() {
        let four: CodecConfig = StageConfig::GroupQuant(GroupQuant::BITS_4).into();
        assert_eq!(json(r#""identity""#), Ok(CodecConfig::default()));
        assert_eq!(json(r#"{"group_quant": {"bits": 4}}"#), Ok(four.clone()));
        assert_eq!(
            json(r#"{"group_quant": {"bits": 4, "group": 32}}"#),
            Ok(four.clone())
        );
        assert_eq!(json(r#"[{"group_quant": {"bits": 4}}]"#), Ok(four.clone()));
        let text = serde_json::to_string(&four).unwrap();
        assert_eq!(text, r#"{"group_quant":{"bits":4,"group":32}}"#);
        assert_eq!(json(&text), Ok(four));
    }

    #[test]
    fn presets_and_ids_are_strings() {
        for preset in presets() {
            let config = preset.config();
            assert_eq!(json(&format!("{:?}", preset.name)), Ok(config.clone()));
            assert_eq!(json(&format!("{:?}", preset.id)), Ok(config.clone()));
            let text = serde_json::to_string(&config).unwrap();
            assert_eq!(json(&text), Ok(config.clone()));
            // The resolved copy of an experiment is TOML.
            let text = toml::to_string(&BTreeMap::from([("codec", &config)])).unwrap();
            let read: BTreeMap<String, CodecConfig> = toml::from_str(&text).unwrap();
            assert_eq!(read["codec"], config);
        }
        let error = json(r#""exact-s0-w32+grup_quant-4b""#).unwrap_err();
        assert!(error.contains("grup_quant"), "{error}");
    }

    #[test]
    fn config_errors_name_what_exists() {
        for (text, part) in [
            (r#""identical""#, "unknown variant `identical`"),
            (r#""identical""#, "`group_quant`"),
            (
                r#"{"group_quont": {"bits": 4}}"#,
                "unknown variant `group_quont`",
            ),
            (
                r#"{"group_quant": {"bits": 4, "size": 32}}"#,
                "expected `bits` or `group`",
            ),
            (
                r#"{"group_quant": {"bits": 5}}"#,
                "bits = 5 is not possible, use 8, 4, 3 or 2",
            ),
            (
                r#"{"group_quant": {"bits": 4, "group": 12}}"#,
                "multiple of 8",
            ),
            (r#"["identity", "identity"]"#, "only one stage may quantise"),
            ("[]", "one stage must quantise"),
            ("7", "a codec stage"),
        ] {
            let error = json(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn experiment_files_keep_the_place_of_an_error() {
        #[derive(Debug, Deserialize)]
        struct File {
            codec: Vec<CodecConfig>,
        }

        let file = |text: &str| toml::from_str::<File>(text);
        let read = file("codec = ['identity', { group_quant = { bits = 4 } }]").unwrap();
        let ids: Vec<_> = read.codec.iter().map(ToString::to_string).collect();
        assert_eq!(ids, ["identity", "group_quant-4b-g32"]);
        let error = file("codec = [\n  { group_quant = { bits = 4, size = 8 } },\n]").unwrap_err();
        let error = error.to_string();
        assert!(error.contains("line 2"), "{error}");
        assert!(
            error.contains("unknown field `size`, expected `bits` or `group`"),
            "{error}"
        );
    }

    #[test]
    fn ids_round_trip() {
        for id in [
            "identity",
            "group_quant-4b-g32",
            "group_quant-8b-g64",
            "exact-s4-w32+group_quant-2b-g32",
            "snapkv-k25+hadamard-s7+lloyd_max-3b",
            "anchor_delta-g10+bins-w100+adaptive",
            "group_quant-3b-g32+tables-c8+zstd-l3",
            "outliers-c25-b2+hadamard-s0+lloyd_max-3b",
            "merge-s50-a30+group_quant-4b-g32",
            "centre+hadamard-s0+lloyd_max-4b",
            "pca+allocated-t20-dp+zstd-l3",
            "exact-s4-w0+pca-predict-0123456789abcdef+step-m500-d15+context",
            "pca-0123456789abcdef+progressive-m250",
            "pca-plain-0123456789abcdef+allocated-t20-dp",
        ] {
            assert_eq!(id.parse::<CodecConfig>().unwrap().to_string(), id);
        }
        for bad in [
            "",
            "+",
            "identity-1",
            "identity+",
            "identity+identity",
            "group_quant",
            "group_quant-4b",
            "group_quant-5b-g32",
            "group_quant-4b-g0",
            "exact-s04-w1+identity",
            "exact",
            "knorm-k0+identity",
            "knorm-k101+identity",
            "adaptive",
            "adaptive-1",
            "identity+context",
            "group_quant-4b-g32+zstd-l3+context",
            "group_quant-4b-g32+context+tables-c8",
            "zstd-l20",
            "centre-1+identity",
            "pca-+step-m500-d15",
            "pca-0123456789ABCDEF+step-m500-d15",
            "pca-predict-+step-m500-d15",
            "pca-plain-predict+step-m500-d15",
            "pca+progressive-m250+context",
            "outliers-c25-b2+hadamard-s0+lloyd_max-4b",
            "outliers-c25-b1+group_quant-4b-g32",
            "outliers-c0-b1+lloyd_max-2b",
            "outliers-c25-b0+lloyd_max-2b",
            "group_quant-4b-g32-x",
            "group_quant-04b-g32",
            "group_quant-4b-g+32",
            "kivi",
        ] {
            assert!(bad.parse::<CodecConfig>().is_err(), "{bad:?}");
        }
        let error = "kivi".parse::<CodecConfig>().unwrap_err().to_string();
        assert!(error.contains("identity"), "{error}");
        assert!("identity+".repeat(1000).parse::<CodecConfig>().is_err());
    }

    #[test]
    fn a_config_says_what_its_ends_need() {
        let of = |id: &str| id.parse::<CodecConfig>().unwrap();
        let bound = of("prefix-0123456789abcdef+pca-0123456789abcdef+step-m500-d15");
        assert_eq!(
            bound.artefact().map(|id| id.to_string()).as_deref(),
            Some("0123456789abcdef")
        );
        assert_eq!(bound.unbound(), of("prefix+pca+step-m500-d15"));
        assert_eq!(of("identity").artefact(), None);
        assert_eq!(of("h2o-k50+identity").scored_by(), Some(ScoredBy::H2o));
        assert_eq!(of("knorm-k50+identity").scored_by(), None);
        assert!("h2o-k50+h2o-k20+identity".parse::<CodecConfig>().is_ok());
        let error = "h2o-k50+snapkv-k50+identity".parse::<CodecConfig>();
        let error = error.unwrap_err().to_string();
        assert!(error.contains("the same scores"), "{error}");
    }

    #[test]
    fn order_is_enforced() {
        use StageKind::{Entropy, Quantise, Select, Transform};
        assert!(check_order(&[Select, Transform, Quantise, Entropy]).is_ok());
        assert!(check_order(&[Quantise]).is_ok());
        assert!(check_order(&[Select, Transform]).is_err());
        assert!(check_order(&[Quantise, Quantise]).is_err());
        assert!(check_order(&[Quantise, Transform]).is_err());
    }
}
