//! The bridges through which an edge maps by itself, and what may cross the link for them.

use crate::answer::SystemError;
use crate::clock::now_ns;
use crate::engine::Pace;
use crate::spec::KvPath;
use celslm_kv::align::Sources;
use celslm_kv::{Bridge, BridgeEnd, BridgeError, CodecConfig, KvBlock, SourceKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Why an edge does not take a bridge.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnfitBridge {
    /// The file cannot be read, or holds no bridge.
    #[error("failed to load the bridge {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: BridgeError,
    },
    /// It maps to another model than the edge's.
    #[error(
        "the bridge {} maps to model {} ({}), this edge runs {} ({})",
        path.display(), target.fingerprint, target.shape, model.fingerprint, model.shape
    )]
    OtherModel {
        /// The file.
        path: PathBuf,
        /// The model that it maps to.
        target: Box<BridgeEnd>,
        /// The edge's model.
        model: Box<BridgeEnd>,
    },
    /// It reads what does not cross the link.
    #[error(
        "the bridge {} (mapping {mapping}) needs {what}, which is not there when an edge maps: let \
         the cloud map, at = \"cloud\"",
        path.display()
    )]
    ReadsMore {
        /// The file.
        path: PathBuf,
        /// Its mapping.
        mapping: &'static str,
        /// What it reads.
        what: &'static str,
    },
}

/// Checks that a bridge needs no more than what crosses the link.
///
/// # Errors
/// [`UnfitBridge::ReadsMore`].
pub fn check_sources(path: &Path, bridge: &Bridge) -> Result<(), UnfitBridge> {
    let what = if bridge.reads_own() {
        "the edge model's own KV of the context"
    } else if bridge.reads() == SourceKind::States {
        "the cloud model's hidden states"
    } else if !bridge.tokens().is_same() {
        "where the cloud's tokens stand in the text"
    } else {
        return Ok(());
    };
    Err(UnfitBridge::ReadsMore {
        path: path.to_owned(),
        mapping: bridge.mapping().id(),
        what,
    })
}

/// Why a codec cannot carry the cloud model's own KV to an edge that maps it; `None` if it can.
#[must_use]
pub fn codec_problem(codec: &CodecConfig) -> Option<String> {
    if codec.needs_artefact() {
        return Some(
            "it codes with an artefact of the edge's model, and the cloud model's KV crosses the \
             link"
                .to_owned(),
        );
    }
    codec.leaves_tokens_out().then(|| {
        "it leaves tokens out, and a map needs every token in all of its source layers".to_owned()
    })
}

/// The bridges of one edge. Empty where the cloud maps.
#[derive(Debug, Default)]
pub(crate) struct EdgeBridges {
    bridges: Vec<(Arc<Bridge>, [u8; 32])>,
}

impl EdgeBridges {
    /// Reads the bridges of an edge that runs `model`.
    ///
    /// # Errors
    /// [`UnfitBridge`].
    pub(crate) fn load(paths: &[PathBuf], model: &BridgeEnd) -> Result<Self, UnfitBridge> {
        let load = |path: &PathBuf| {
            let failed = |source| UnfitBridge::Read {
                path: path.clone(),
                source,
            };
            let bridge = Bridge::read(path).map_err(failed)?;
            check_sources(path, &bridge)?;
            let target = bridge.target();
            if target != model {
                return Err(UnfitBridge::OtherModel {
                    path: path.clone(),
                    target: Box::new(*target),
                    model: Box::new(*model),
                });
            }
            let mut hasher = blake3::Hasher::new();
            hasher.update_mmap(path).map_err(|source| {
                failed(BridgeError::Io {
                    path: path.clone(),
                    source,
                })
            })?;
            Ok((Arc::new(bridge), *hasher.finalize().as_bytes()))
        };
        let bridges = paths.iter().map(load).collect::<Result<_, _>>()?;
        Ok(Self { bridges })
    }

    /// The bridge of a path whose edge maps; `None` where what arrives is the edge model's.
    ///
    /// # Errors
    /// Kind `config` when this edge does not hold it, or its hash cannot be read.
    pub(crate) fn of(&self, path: &KvPath) -> Result<Option<Arc<Bridge>>, SystemError> {
        if !path.alignment.maps_at_edge() {
            return Ok(None);
        }
        let wanted = path.bridge_hash()?;
        let found = self.bridges.iter().find(|(bridge, hash)| {
            bridge.alignment() == path.alignment.id() && wanted.is_none_or(|wanted| wanted == *hash)
        });
        match found {
            Some((bridge, _)) => Ok(Some(bridge.clone())),
            None => Err(SystemError::new(
                "config",
                format!(
                    "this edge holds no bridge for the alignment {}: start it with --bridge FILE",
                    path.alignment
                ),
            )),
        }
    }
}

/// Maps a whole context, in the time that a device of this pace would take: it is arithmetic, as the
/// steps of the model are.
///
/// # Errors
/// Kind `align` when the block does not suit or holds a NaN or an infinity.
pub(crate) fn map(
    bridge: &Bridge,
    source: &KvBlock,
    tokens: &[u32],
    pace: Pace,
) -> Result<KvBlock, SystemError> {
    let start_ns = now_ns();
    let mapped = bridge.map(Sources {
        source,
        own: None,
        tokens,
    });
    let mapped = mapped.map_err(|error| SystemError::new("align", error))?;
    let pause_ns = pace.pause_ns(now_ns() - start_ns, 0, 0);
    if pause_ns > 0 {
        std::thread::sleep(Duration::from_nanos(pause_ns));
    }
    Ok(mapped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use celslm_kv::align::{BridgeFitter, CommonPrefix, FitOptions};
    use celslm_kv::{AlignmentConfig, KeyRope, KvShape, LayerKv, MappingConfig, ModelFingerprint};
    use half::f16;

    const TOKENS: usize = 96;

    fn end(byte: u8, num_layers: usize) -> BridgeEnd {
        BridgeEnd {
            fingerprint: ModelFingerprint::from_bytes([byte; 32]),
            shape: KvShape::new(num_layers, 1, 4).unwrap(),
        }
    }

    fn block(end: &BridgeEnd, seed: usize) -> KvBlock {
        let side = |shift: usize| {
            let number = |i: usize| ((i * (i % 4 + 3) + shift * 17 + seed) as f32).sin();
            (0..TOKENS * 4).map(|i| f16::from_f32(number(i))).collect()
        };
        let layer = |layer| LayerKv {
            k: side(layer),
            v: side(layer + 9),
        };
        let layers = (0..end.shape.num_layers).map(layer).collect();
        let rope = KeyRope::Pre;
        KvBlock::new(end.fingerprint, end.shape, 0, 0..TOKENS, rope, layers).unwrap()
    }

    /// From 3 layers to 2, over the same depth.
    fn bridge() -> Bridge {
        let (source, target) = (end(1, 3), end(2, 2));
        let options = FitOptions::new("depth", "none", 0, "tests");
        let map = [vec![0], vec![2]];
        let mut fitter = BridgeFitter::new(source, target, &map, options).unwrap();
        for context in 0..10 {
            fitter
                .add(&block(&source, context), &block(&target, context))
                .unwrap();
        }
        fitter.finish().unwrap()
    }

    fn path(alignment: &str, bridge: Option<String>) -> KvPath {
        KvPath {
            alignment: serde_json::from_str::<AlignmentConfig>(alignment).unwrap(),
            codec: CodecConfig::default(),
            schedule: crate::ScheduleKind::Layerwise,
            chunk_tokens: 64,
            bridge,
        }
    }

    #[test]
    fn an_edge_takes_bridges_to_its_own_model_from_the_clouds_kv_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        let bridge = bridge();
        bridge.save(&file("a")).unwrap();
        let load = |name: &str, model: &BridgeEnd| EdgeBridges::load(&[file(name)], model);
        let held = load("a", bridge.target()).unwrap();
        let hash = blake3::hash(&std::fs::read(file("a")).unwrap());
        let (edge, hash) = (r#"{"depth": {"at": "edge"}}"#, hash.to_hex().to_string());
        let found = |path: &KvPath| held.of(path);
        for named in [None, Some(hash.clone())] {
            let got = found(&path(edge, named)).unwrap().unwrap();
            assert_eq!(*got, bridge);
        }
        // Where the cloud maps there is nothing to map here.
        assert!(found(&path(r#""depth""#, Some(hash))).unwrap().is_none());
        for (alignment, hash) in [
            (edge, Some("00".repeat(32))),
            (r#"{"all": {"at": "edge"}}"#, None),
        ] {
            let error = found(&path(alignment, hash)).unwrap_err();
            assert_eq!(error.kind, "config");
            assert!(error.message.contains("--bridge FILE"), "{error}");
        }

        let error = load("a", &end(3, 2)).unwrap_err();
        assert!(matches!(error, UnfitBridge::OtherModel { .. }), "{error}");
        let text = error.to_string();
        for end in [bridge.target(), &end(3, 2)] {
            assert!(text.contains(&end.fingerprint.to_string()), "{text}");
        }
        assert!(matches!(
            load("a", &end(2, 4)),
            Err(UnfitBridge::OtherModel { .. })
        ));
        std::fs::write(file("b"), "no bridge").unwrap();
        for name in ["b", "absent"] {
            let error = load(name, bridge.target()).unwrap_err();
            assert!(matches!(error, UnfitBridge::Read { .. }), "{error}");
        }
        // Tuned first tokens before the edge model's own KV.
        let first = block(bridge.target(), 0).slice_tokens(0..2).unwrap();
        let prefix = CommonPrefix::new(vec![1, 2], first).unwrap();
        let own = bridge.to_train(MappingConfig::Prefix).unwrap();
        own.with_prefix(prefix).unwrap().save(&file("c")).unwrap();
        let error = load("c", bridge.target()).unwrap_err();
        assert!(matches!(error, UnfitBridge::ReadsMore { .. }), "{error}");
        assert!(error.to_string().contains("at = \"cloud\""), "{error}");
    }

    #[test]
    fn a_context_is_mapped_as_the_bridge_maps_it_and_at_the_devices_pace() {
        let bridge = bridge();
        let source = block(bridge.source(), 3);
        let mapped = map(&bridge, &source, &[], Pace::default()).unwrap();
        assert_eq!(mapped, bridge.map(&source).unwrap());
        let start = now_ns();
        map(&bridge, &source, &[], Pace::default()).unwrap();
        let fast = now_ns() - start;
        let start = now_ns();
        map(&bridge, &source, &[], Pace::uniform(4096.0)).unwrap();
        assert!(now_ns() - start > 10 * fast);
        let error = map(&bridge, &mapped, &[], Pace::default()).unwrap_err();
        assert_eq!(error.kind, "align");
    }

    #[test]
    fn codecs_that_need_the_edge_models_kv_or_drop_tokens_are_no_way_to_an_edge_that_maps() {
        let problem = |codec: &str| codec_problem(&codec.parse().unwrap());
        for fine in [
            "identity",
            "group_quant-4b-g32+zstd-l3",
            "exact-s4-w32+group_quant-4b-g32",
        ] {
            assert_eq!(problem(fine), None);
        }
        let artefact = problem("pca+step-m600-d15+context").unwrap();
        assert!(artefact.contains("an artefact of the edge's model"));
        for dropping in ["h2o-k50+identity", "knorm-k50+identity"] {
            assert!(problem(dropping).unwrap().contains("leaves tokens out"));
        }
    }
}
