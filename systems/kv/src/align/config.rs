//! What a config file says about alignment.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::de::value::MapAccessDeserializer;
use serde::{Deserialize, Deserializer, Serialize, de};

use super::{AlignError, Alignment, Depth, Identity, names};

/// An alignment as configured: `"identity"`, `"depth"`, or `{ depth = { bridge = "…" } }`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AlignmentConfig {
    /// See [`Identity`].
    Identity,
    /// See [`Depth`].
    Depth(Depth),
}

impl AlignmentConfig {
    /// The alignment itself.
    #[must_use]
    pub fn method(&self) -> Box<dyn Alignment> {
        match self {
            Self::Identity => Box::new(Identity),
            Self::Depth(depth) => Box::new(depth.clone()),
        }
    }

    /// The id as it stands in samples, without parameters.
    #[must_use]
    pub const fn id(&self) -> &'static str {
        match self {
            Self::Identity => Identity::NAME,
            Self::Depth(_) => Depth::NAME,
        }
    }

    /// The mapping that goes with it: `none` or `ridge`.
    #[must_use]
    pub const fn mapping(&self) -> &'static str {
        match self {
            Self::Identity => "none",
            Self::Depth(_) => super::ridge::NAME,
        }
    }

    /// Whether a [`Bridge`](super::Bridge) is needed.
    #[must_use]
    pub const fn needs_bridge(&self) -> bool {
        matches!(self, Self::Depth(_))
    }

    /// The configured bridge file. Where a bridge is needed and none is configured, the
    /// default bridge of the model pair is meant.
    #[must_use]
    pub fn bridge(&self) -> Option<&Path> {
        match self {
            Self::Identity => None,
            Self::Depth(depth) => depth.bridge.as_deref(),
        }
    }
}

impl fmt::Display for AlignmentConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

impl FromStr for AlignmentConfig {
    type Err = AlignError;

    /// Reads a bare name; parameters take their defaults.
    fn from_str(name: &str) -> Result<Self, AlignError> {
        match name {
            Identity::NAME => Ok(Self::Identity),
            Depth::NAME => Ok(Self::Depth(Depth::default())),
            _ => Err(AlignError::Unknown {
                name: name.chars().take(80).collect(),
                known: names(),
            }),
        }
    }
}

impl<'de> Deserialize<'de> for AlignmentConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename = "alignment", rename_all = "snake_case", deny_unknown_fields)]
        enum Tagged {
            Identity,
            Depth(Depth),
        }

        // Bare names are also allowed for methods whose parameters all have defaults.
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = AlignmentConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an alignment")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<AlignmentConfig, E> {
                name.parse().map_err(de::Error::custom)
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<AlignmentConfig, A::Error> {
                Ok(
                    match Tagged::deserialize(MapAccessDeserializer::new(map))? {
                        Tagged::Identity => AlignmentConfig::Identity,
                        Tagged::Depth(depth) => AlignmentConfig::Depth(depth),
                    },
                )
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Result<AlignmentConfig, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn configs_are_externally_tagged() {
        let depth = |bridge: Option<&str>| {
            AlignmentConfig::Depth(Depth {
                bridge: bridge.map(Into::into),
            })
        };
        assert_eq!(json(r#""identity""#), Ok(AlignmentConfig::Identity));
        assert_eq!(json(r#""depth""#), Ok(depth(None)));
        assert_eq!(json(r#"{"depth": {}}"#), Ok(depth(None)));
        let config = json(r#"{"depth": {"bridge": "a.safetensors"}}"#).unwrap();
        assert_eq!(config, depth(Some("a.safetensors")));
        assert_eq!(config.bridge(), Some(Path::new("a.safetensors")));
        assert_eq!((config.id(), config.mapping()), ("depth", "ridge"));
        assert!(config.needs_bridge() && !AlignmentConfig::Identity.needs_bridge());
    }

    #[test]
    fn experiment_files_keep_the_place_of_an_error() {
        #[derive(Debug, Deserialize)]
        struct File {
            alignment: Vec<AlignmentConfig>,
        }

        let file = |text: &str| toml::from_str::<File>(text);
        let read = file("alignment = ['identity', 'depth', { depth = { bridge = 'b' } }]").unwrap();
        assert_eq!(read.alignment[2].bridge(), Some(Path::new("b")));
        let error = file("alignment = [\n  'identity',\n  { depth = { bridg = 'b' } },\n]");
        let error = error.unwrap_err().to_string();
        assert!(error.contains("line 3"), "{error}");
        assert!(
            error.contains("unknown field `bridg`, expected `bridge`"),
            "{error}"
        );
    }

    #[test]
    fn config_errors_name_what_exists() {
        for (text, part) in [
            (r#""dept""#, "known are identity, depth"),
            (r#"{"dept": {}}"#, "expected `identity` or `depth`"),
            (r#"{"depth": {"brigde": "a"}}"#, "expected `bridge`"),
            ("3", "an alignment"),
        ] {
            let error = json(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
