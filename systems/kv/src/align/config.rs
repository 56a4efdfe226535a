//! What a config file says about alignment.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::de::value::MapAccessDeserializer;
use serde::{Deserialize, Deserializer, Serialize, de};

use super::{
    AlignError, Alignment, All, Cka, Cosine, Depth, Identity, MapAt, MappingConfig, R2, Terminal,
    names, registry,
};

/// An alignment as configured: `"identity"`, `"depth"`, `{ depth = { bridge = "…" } }`,
/// `{ depth = { at = "edge" } }`, or `{ all = { mapping = { joint = { rank = 512 } } } }`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AlignmentConfig {
    /// See [`Identity`].
    Identity,
    /// See [`Terminal`].
    Terminal(Terminal),
    /// See [`Depth`].
    Depth(Depth),
    /// See [`All`].
    All(All),
    /// See [`Cka`].
    Cka(Cka),
    /// See [`Cosine`].
    Cosine(Cosine),
    /// See [`R2`].
    R2(R2),
}

impl AlignmentConfig {
    /// The alignment itself.
    #[must_use]
    pub fn method(&self) -> Box<dyn Alignment> {
        match self {
            Self::Identity => Box::new(Identity),
            Self::Terminal(terminal) => Box::new(terminal.clone()),
            Self::Depth(depth) => Box::new(depth.clone()),
            Self::All(all) => Box::new(all.clone()),
            Self::Cka(cka) => Box::new(cka.clone()),
            Self::Cosine(cosine) => Box::new(cosine.clone()),
            Self::R2(r2) => Box::new(r2.clone()),
        }
    }

    /// The alignment's name, without parameters.
    #[must_use]
    pub const fn id(&self) -> &'static str {
        match self {
            Self::Identity => Identity::NAME,
            Self::Terminal(_) => Terminal::NAME,
            Self::Depth(_) => Depth::NAME,
            Self::All(_) => All::NAME,
            Self::Cka(_) => Cka::NAME,
            Self::Cosine(_) => Cosine::NAME,
            Self::R2(_) => R2::NAME,
        }
    }

    /// Bridge, mapping and its place, of an alignment that maps through one.
    const fn route(&self) -> Option<(&Option<PathBuf>, &MappingConfig, MapAt)> {
        match self {
            Self::Identity => None,
            Self::Terminal(Terminal(route)) | Self::All(All(route)) => {
                Some((&route.bridge, &route.mapping, route.at))
            }
            Self::Depth(Depth(route))
            | Self::Cka(Cka(route))
            | Self::Cosine(Cosine(route))
            | Self::R2(R2(route)) => Some((&route.bridge, &route.mapping, route.at)),
        }
    }

    /// Which end maps, where something is mapped.
    #[must_use]
    pub const fn maps_at(&self) -> Option<MapAt> {
        match self.route() {
            None => None,
            Some((_, _, at)) => Some(at),
        }
    }

    /// Whether the cloud model's own KV crosses the link, and the edge maps it.
    #[must_use]
    pub const fn maps_at_edge(&self) -> bool {
        matches!(self.maps_at(), Some(MapAt::Edge))
    }

    /// The id of the mapping that goes with it; `none` where nothing is mapped.
    #[must_use]
    pub const fn mapping(&self) -> &'static str {
        match self.route() {
            None => "none",
            Some((_, mapping, _)) => mapping.id(),
        }
    }

    /// The mapping that goes with it, where something is mapped.
    #[must_use]
    pub const fn mapping_config(&self) -> Option<&MappingConfig> {
        match self.route() {
            None => None,
            Some((_, mapping, _)) => Some(mapping),
        }
    }

    /// The same with another mapping; `identity` maps nothing and stays as it is.
    #[must_use]
    pub fn with_mapping(mut self, mapping: MappingConfig) -> Self {
        match &mut self {
            Self::Identity => {}
            Self::Terminal(Terminal(route)) | Self::All(All(route)) => route.mapping = mapping,
            Self::Depth(Depth(route))
            | Self::Cka(Cka(route))
            | Self::Cosine(Cosine(route))
            | Self::R2(R2(route)) => route.mapping = mapping,
        }
        self
    }

    /// Whether a [`Bridge`](super::Bridge) is needed.
    #[must_use]
    pub const fn needs_bridge(&self) -> bool {
        self.route().is_some()
    }

    /// Whether the layer map needs a [`Similarity`](super::Similarity).
    #[must_use]
    pub const fn needs_similarity(&self) -> bool {
        matches!(self, Self::Cka(_) | Self::Cosine(_) | Self::R2(_))
    }

    /// The configured bridge file. Where a bridge is needed and none is configured, the
    /// default bridge of the model pair is meant.
    #[must_use]
    pub fn bridge(&self) -> Option<&Path> {
        self.route().and_then(|(bridge, _, _)| bridge.as_deref())
    }
}

/// As it stands in samples: the name, with `@edge` behind it where the edge maps, which has another
/// shape on the link and other times.
impl fmt::Display for AlignmentConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())?;
        match self.maps_at() {
            Some(at @ MapAt::Edge) => write!(f, "@{at}"),
            Some(MapAt::Cloud) | None => Ok(()),
        }
    }
}

impl FromStr for AlignmentConfig {
    type Err = AlignError;

    /// Reads a bare name; parameters take their defaults.
    fn from_str(name: &str) -> Result<Self, AlignError> {
        let entry = registry().iter().find(|entry| entry.name == name);
        entry.map_or_else(
            || {
                Err(AlignError::Unknown {
                    name: name.chars().take(80).collect(),
                    known: names(),
                })
            },
            |entry| Ok((entry.example)()),
        )
    }
}

impl<'de> Deserialize<'de> for AlignmentConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename = "alignment", rename_all = "snake_case", deny_unknown_fields)]
        enum Tagged {
            Identity,
            Terminal(Terminal),
            Depth(Depth),
            All(All),
            Cka(Cka),
            Cosine(Cosine),
            R2(R2),
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
                        Tagged::Terminal(terminal) => AlignmentConfig::Terminal(terminal),
                        Tagged::Depth(depth) => AlignmentConfig::Depth(depth),
                        Tagged::All(all) => AlignmentConfig::All(all),
                        Tagged::Cka(cka) => AlignmentConfig::Cka(cka),
                        Tagged::Cosine(cosine) => AlignmentConfig::Cosine(cosine),
                        Tagged::R2(r2) => AlignmentConfig::R2(r2),
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
    use crate::align::TopRoute;
    use crate::align::mapping::Joint;

    fn json(text: &str) -> Result<AlignmentConfig, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn configs_are_externally_tagged() {
        let depth = |bridge: Option<&str>| {
            AlignmentConfig::Depth(Depth(TopRoute {
                bridge: bridge.map(Into::into),
                ..TopRoute::default()
            }))
        };
        assert_eq!(json(r#""identity""#), Ok(AlignmentConfig::Identity));
        assert_eq!(json(r#""depth""#), Ok(depth(None)));
        assert_eq!(json(r#"{"depth": {}}"#), Ok(depth(None)));
        let config = json(r#"{"depth": {"bridge": "a.safetensors"}}"#).unwrap();
        assert_eq!(config, depth(Some("a.safetensors")));
        assert_eq!(config.bridge(), Some(Path::new("a.safetensors")));
        assert_eq!((config.id(), config.mapping()), ("depth", "ridge"));
        assert!(config.needs_bridge() && !AlignmentConfig::Identity.needs_bridge());
        // As it was before there were other parameters: it is part of what cells are named by.
        let written = serde_json::to_string(&config).unwrap();
        assert_eq!(written, r#"{"depth":{"bridge":"a.safetensors"}}"#);
    }

    #[test]
    fn the_end_that_maps_is_named_where_it_is_not_the_cloud() {
        for name in ["terminal", "depth", "all", "cka", "cosine", "r2"] {
            let config = |at: &str| json(&format!(r#"{{"{name}": {{"at": "{at}"}}}}"#));
            let (cloud, edge) = (config("cloud").unwrap(), config("edge").unwrap());
            assert_eq!(Ok(&cloud), json(&format!("\"{name}\"")).as_ref());
            assert_eq!(
                (cloud.maps_at(), edge.maps_at()),
                (Some(MapAt::Cloud), Some(MapAt::Edge))
            );
            assert!(edge.maps_at_edge() && !cloud.maps_at_edge());
            assert_eq!(edge.id(), name);
            assert_eq!(
                (cloud.to_string(), edge.to_string()),
                (name.to_owned(), format!("{name}@edge"))
            );
            // The default is left out: cells are named by what is written.
            let written = |config| serde_json::to_string(config).unwrap();
            assert_eq!(written(&cloud), format!(r#"{{"{name}":{{}}}}"#));
            assert_eq!(written(&edge), format!(r#"{{"{name}":{{"at":"edge"}}}}"#));
            assert_eq!(json(&written(&edge)), Ok(edge.clone()));
            let joint = MappingConfig::Joint(Joint::default());
            assert!(edge.with_mapping(joint).maps_at_edge());
            let error = config("middle").unwrap_err();
            assert!(error.contains("expected `cloud` or `edge`"), "{error}");
        }
        assert_eq!(AlignmentConfig::Identity.maps_at(), None);
        assert!(json(r#"{"identity": {"at": "edge"}}"#).is_err());
    }

    #[test]
    fn mappings_are_named_with_their_alignment() {
        let text = r#"{"r2": {"sources": 4, "mapping": {"joint": {"rank": 64}}}}"#;
        let config = json(text).unwrap();
        assert_eq!((config.id(), config.mapping()), ("r2", "joint"));
        assert!(config.needs_similarity() && !json(r#""depth""#).unwrap().needs_similarity());
        let joint = MappingConfig::Joint(Joint {
            rank: 64,
            ..Joint::default()
        });
        assert_eq!(config.mapping_config(), Some(&joint));
        let written = serde_json::to_string(&config).unwrap();
        assert_eq!(json(&written), Ok(config.clone()));
        let all = json(r#"{"all": {"mapping": "joint"}}"#).unwrap();
        assert_eq!(all.mapping(), "joint");
        assert_eq!(
            all.with_mapping(MappingConfig::Ridge),
            json(r#""all""#).unwrap()
        );
        let none = AlignmentConfig::Identity.with_mapping(joint);
        assert_eq!((none.mapping(), none.mapping_config()), ("none", None));
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
            error.contains(
                "unknown field `bridg`, expected one of `sources`, `bridge`, `mapping`, `at`"
            ),
            "{error}"
        );
    }

    #[test]
    fn config_errors_name_what_exists() {
        for (text, part) in [
            (
                r#""dept""#,
                "known are identity, terminal, depth, all, cka, cosine, r2",
            ),
            (
                r#"{"dept": {}}"#,
                "expected one of `identity`, `terminal`, `depth`",
            ),
            (r#"{"depth": {"brigde": "a"}}"#, "expected one of `sources`"),
            (
                r#"{"all": {"sources": 2}}"#,
                "expected one of `bridge`, `mapping`, `at`",
            ),
            (r#"{"depth": {"mapping": "rigde"}}"#, "no mapping is called"),
            ("3", "an alignment"),
        ] {
            let error = json(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
