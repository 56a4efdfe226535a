//! What a config file or a codec id says about a chain.

use std::fmt;
use std::str::FromStr;

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Chain, Codec, CodecError, GroupQuant, Identity, names};

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
    /// See [`Identity`].
    Identity,
    /// See [`GroupQuant`].
    GroupQuant(GroupQuant),
}

impl StageConfig {
    /// Where in a chain the stage stands.
    #[must_use]
    pub const fn kind(&self) -> StageKind {
        match self {
            Self::Identity | Self::GroupQuant(_) => StageKind::Quantise,
        }
    }

    /// The stage as a codec of its own.
    pub(super) fn quantiser(&self) -> Box<dyn Codec> {
        match *self {
            Self::Identity => Box::new(Identity),
            Self::GroupQuant(stage) => Box::new(stage),
        }
    }
}

impl fmt::Display for StageConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity => f.write_str(Identity::NAME),
            Self::GroupQuant(stage) => f.write_str(&stage.id()),
        }
    }
}

impl FromStr for StageConfig {
    type Err = CodecError;

    fn from_str(id: &str) -> Result<Self, CodecError> {
        let (name, parameters) = match id.split_once('-') {
            Some((name, parameters)) => (name, Some(parameters)),
            None => (id, None),
        };
        match (name, parameters) {
            (Identity::NAME, None) => Ok(Self::Identity),
            (Identity::NAME, Some(_)) => Err(unreadable(id, "identity has no parameters")),
            (GroupQuant::NAME, parameters) => {
                GroupQuant::from_parameters(parameters.unwrap_or_default())
                    .map(Self::GroupQuant)
                    .map_err(|reason| unreadable(id, &reason))
            }
            _ => Err(CodecError::UnknownStage {
                name: name.chars().take(80).collect(),
                known: names(),
            }),
        }
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
        match check_order(&kinds) {
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

    /// Builds the codec.
    #[must_use]
    pub fn build(&self) -> Chain {
        Chain::new(self.clone())
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
                f.write_str("a codec stage or a list of codec stages")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<CodecConfig, E> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
    fn config_errors_name_what_exists() {
        for (text, part) in [
            (r#""identical""#, "expected `identity` or `group_quant`"),
            (
                r#"{"group_quont": {"bits": 4}}"#,
                "expected `identity` or `group_quant`",
            ),
            (
                r#"{"group_quant": {"bits": 4, "size": 32}}"#,
                "expected `bits` or `group`",
            ),
            (
                r#"{"group_quant": {"bits": 5}}"#,
                "bits = 5 is not possible, use 8 or 4",
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
        for id in ["identity", "group_quant-4b-g32", "group_quant-8b-g64"] {
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
            "group_quant-3b-g32",
            "group_quant-4b-g0",
            "group_quant-4b-g32-x",
            "group_quant-04b-g32",
            "group_quant-4b-g+32",
            "kivi",
        ] {
            assert!(bad.parse::<CodecConfig>().is_err(), "{bad:?}");
        }
        let error = "kivi".parse::<CodecConfig>().unwrap_err().to_string();
        assert!(error.contains("identity, group_quant"), "{error}");
        assert!("identity+".repeat(1000).parse::<CodecConfig>().is_err());
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
