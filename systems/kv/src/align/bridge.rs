//! Bridges: a fitted alignment and mapping between two models, as a file and as a function.
//!
//! File: safetensors, per target layer and side a weight (`F16`, `[source_width,
//! target_width]`), a bias and a mean (`F32`); the header is JSON in the file's metadata.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::f16;
use half::slice::HalfFloatSliceExt;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde::{Deserialize, Serialize};

use super::ridge::Affine;
use super::{AlignError, check_layer_map, ridge};
use crate::block::{BlockSpec, KeyRope, KvBlock, KvShape, LayerKv, read_f16_le, write_f16_le};
use crate::file::{self, Unread};
use crate::ident::ModelFingerprint;

/// A bridge file larger than this is refused before it is read.
pub const MAX_BRIDGE_BYTES: u64 = 2 << 30;

const SCHEMA_VERSION: u32 = 1;
const METADATA_KEY: &str = "celslm_bridge";

/// Rows that are mapped at a time: one block of source and target rows stays in the cache.
const BLOCK_ROWS: usize = 128;

/// Why a bridge could not be read, written or used for a pair of models.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// The file could not be read or written.
    #[error("failed to access the bridge {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The file is too large to be a bridge.
    #[error("the bridge {} has {bytes} bytes, the bound is {MAX_BRIDGE_BYTES}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// Not a safetensors file.
    #[error("not a safetensors file")]
    Container(#[from] SafeTensorError),
    /// The header in the metadata is missing or malformed.
    #[error("the bridge's header is malformed: {reason}")]
    Header {
        /// What is wrong.
        reason: String,
    },
    /// A tensor that is missing, superfluous, or of another type or shape than the header says.
    #[error("tensor {name}: {reason}")]
    Tensor {
        /// Name of the tensor.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A bridge for other models.
    #[error(transparent)]
    OtherModels(Box<OtherModels>),
    /// A bridge whose shapes are not those of the models.
    #[error("the bridge expects {expected} at the {end}, the model there has {found}")]
    OtherShape {
        /// `source` or `target`.
        end: &'static str,
        /// Shape in the bridge.
        expected: KvShape,
        /// Shape of the model.
        found: KvShape,
    },
}

/// A bridge was to be used between models that it was not fitted for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the bridge maps {bridge_source} to {bridge_target}, but the cloud's model is \
     {source_model} and the edge's is {target_model}; fit one for this pair"
)]
pub struct OtherModels {
    /// Source fingerprint of the bridge.
    pub bridge_source: ModelFingerprint,
    /// Target fingerprint of the bridge.
    pub bridge_target: ModelFingerprint,
    /// Fingerprint of the cloud's model.
    pub source_model: ModelFingerprint,
    /// Fingerprint of the edge's model.
    pub target_model: ModelFingerprint,
}

/// One end of a bridge: a model and the shape of its whole cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BridgeEnd {
    /// The model.
    pub fingerprint: ModelFingerprint,
    /// Its cache: all layers.
    pub shape: KvShape,
}

/// How one target layer was fitted. In f32, which survives being written as JSON exactly.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerFit {
    /// Lambda of the keys, relative to the mean diagonal.
    pub k_lambda: f32,
    /// Held-out R² of the keys.
    pub k_r2: f32,
    /// Lambda of the values, relative to the mean diagonal.
    pub v_lambda: f32,
    /// Held-out R² of the values.
    pub v_r2: f32,
}

/// What a bridge was fitted on, and how well.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BridgeManifest {
    /// Hash of the calibration data, as its owner computes it.
    pub calibration_hash: String,
    /// Tokens fitted on, those for the choice of lambda included.
    pub fit_tokens: u64,
    /// Tokens that the R² figures were computed on; fitted on none of them.
    pub held_out_tokens: u64,
    /// Tokens at the start of each context that were left out: attention sinks, which are to be
    /// replaced by exact ones.
    pub skipped_tokens: usize,
    /// Seed of the choice of calibration text.
    pub seed: u64,
    /// Program and version that fitted it.
    pub created_by: String,
    /// Per target layer.
    pub layers: Vec<LayerFit>,
}

impl BridgeManifest {
    /// Mean held-out R² over layers, keys and values apart.
    #[must_use]
    pub fn mean_r2(&self) -> (f64, f64) {
        let n = self.layers.len().max(1) as f64;
        let k: f64 = self.layers.iter().map(|layer| f64::from(layer.k_r2)).sum();
        let v: f64 = self.layers.iter().map(|layer| f64::from(layer.v_r2)).sum();
        (k / n, v / n)
    }
}

/// Everything but the tensors, as it stands in the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    pub(super) schema_version: u32,
    pub(super) source: BridgeEnd,
    pub(super) target: BridgeEnd,
    pub(super) alignment: String,
    pub(super) mapping: String,
    pub(super) layer_map: Vec<Vec<usize>>,
    pub(super) k_gain: f32,
    pub(super) v_gain: f32,
    pub(super) manifest: BridgeManifest,
}

/// The maps of one target layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerWeights {
    /// Map of the keys, pre-RoPE to pre-RoPE.
    pub k: Affine,
    /// Map of the values.
    pub v: Affine,
}

/// A fitted alignment and mapping from the cloud's model to the edge's.
///
/// A source row is the pre-RoPE keys (or the values) of one token: all heads of the first
/// source layer, then of the next, `[num_kv_heads * head_dim]` each. A target row is all heads
/// of one target layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Bridge {
    header: Header,
    layers: Vec<LayerWeights>,
}

impl Bridge {
    pub(super) fn new(
        source: BridgeEnd,
        target: BridgeEnd,
        alignment: String,
        layer_map: Vec<Vec<usize>>,
        manifest: BridgeManifest,
        layers: Vec<LayerWeights>,
    ) -> Self {
        let (schema_version, mapping) = (SCHEMA_VERSION, ridge::NAME.to_owned());
        let header = Header {
            schema_version,
            source,
            target,
            alignment,
            mapping,
            layer_map,
            k_gain: 1.0,
            v_gain: 1.0,
            manifest,
        };
        Self { header, layers }
    }

    /// The model whose KV is mapped.
    #[must_use]
    pub const fn source(&self) -> &BridgeEnd {
        &self.header.source
    }

    /// The model that the mapped KV is for.
    #[must_use]
    pub const fn target(&self) -> &BridgeEnd {
        &self.header.target
    }

    /// Id of the alignment.
    #[must_use]
    pub fn alignment(&self) -> &str {
        &self.header.alignment
    }

    /// Id of the mapping.
    #[must_use]
    pub fn mapping(&self) -> &str {
        &self.header.mapping
    }

    /// Source layers of every target layer.
    #[must_use]
    pub fn layer_map(&self) -> &[Vec<usize>] {
        &self.header.layer_map
    }

    /// What the bridge was fitted on.
    #[must_use]
    pub const fn manifest(&self) -> &BridgeManifest {
        &self.header.manifest
    }

    /// The maps, per target layer.
    #[must_use]
    pub fn layers(&self) -> &[LayerWeights] {
        &self.layers
    }

    /// Gains of keys and values.
    #[must_use]
    pub const fn gains(&self) -> (f32, f32) {
        (self.header.k_gain, self.header.v_gain)
    }

    /// Sets the gains: how far predictions are stretched away from the calibration mean.
    ///
    /// # Errors
    /// [`AlignError::Parameter`] for a number that is not positive and at most 16.
    pub fn set_gains(&mut self, k_gain: f32, v_gain: f32) -> Result<(), AlignError> {
        for (name, gain) in [("k_gain", k_gain), ("v_gain", v_gain)] {
            if !valid_gain(gain) {
                let allowed = "a positive number up to 16";
                return Err(AlignError::Parameter {
                    name,
                    value: f64::from(gain),
                    allowed,
                });
            }
        }
        (self.header.k_gain, self.header.v_gain) = (k_gain, v_gain);
        Ok(())
    }

    /// Checks that the bridge is for these two models.
    ///
    /// # Errors
    /// [`BridgeError::OtherModels`], which names all four fingerprints, or
    /// [`BridgeError::OtherShape`].
    pub fn check_models(&self, source: &BridgeEnd, target: &BridgeEnd) -> Result<(), BridgeError> {
        let Header {
            source: own_source,
            target: own_target,
            ..
        } = &self.header;
        if (own_source.fingerprint, own_target.fingerprint)
            != (source.fingerprint, target.fingerprint)
        {
            return Err(BridgeError::OtherModels(Box::new(OtherModels {
                bridge_source: own_source.fingerprint,
                bridge_target: own_target.fingerprint,
                source_model: source.fingerprint,
                target_model: target.fingerprint,
            })));
        }
        for (end, own, other) in [
            ("source", own_source, source),
            ("target", own_target, target),
        ] {
            if own.shape != other.shape {
                let (expected, found) = (own.shape, other.shape);
                return Err(BridgeError::OtherShape {
                    end,
                    expected,
                    found,
                });
            }
        }
        Ok(())
    }

    /// Maps all target layers of a run of tokens. `block` must hold pre-RoPE keys and every
    /// source layer that the layer map names; the result is pre-RoPE at the same positions.
    ///
    /// # Errors
    /// [`AlignError::Block`] when the block does not suit, [`AlignError::NotFinite`] when it
    /// holds a NaN or an infinity.
    pub fn map(&self, block: &KvBlock) -> Result<KvBlock, AlignError> {
        self.map_layers(block, 0..self.header.target.shape.num_layers)
    }

    /// Maps some target layers, for example the next one while later source layers are still
    /// being computed.
    ///
    /// # Errors
    /// As for [`Self::map`], and [`AlignError::LayerMap`] for layers that do not exist.
    pub fn map_layers(&self, block: &KvBlock, layers: Range<usize>) -> Result<KvBlock, AlignError> {
        let Header {
            source,
            target,
            layer_map,
            k_gain,
            v_gain,
            ..
        } = &self.header;
        check_end("source", source, block)?;
        if layers.is_empty() || layers.end > target.shape.num_layers {
            let reason = format!(
                "layers {layers:?} of {} target layers",
                target.shape.num_layers
            );
            return Err(AlignError::LayerMap { reason });
        }
        let mapped = layers.clone().map(|layer| {
            let weights = &self.layers[layer];
            let sources = sources(block, &layer_map[layer])?;
            let side = |affine: &Affine, pick: fn(&LayerKv) -> &[f16], gain| {
                let sides: Vec<&[f16]> = sources.iter().map(|source| pick(source)).collect();
                map_side(affine, &sides, block, target.shape, gain)
            };
            let k = side(&weights.k, |kv| &kv.k, *k_gain)?;
            let v = side(&weights.v, |kv| &kv.v, *v_gain)?;
            Ok(LayerKv { k, v })
        });
        let mapped = mapped.collect::<Result<Vec<_>, AlignError>>()?;
        let spec = BlockSpec {
            fingerprint: target.fingerprint,
            shape: KvShape {
                num_layers: layers.len(),
                ..target.shape
            },
            first_layer: layers.start,
            positions: block.positions(),
            rope: KeyRope::Pre,
        };
        Ok(KvBlock::from_spec(spec, mapped)?)
    }

    /// The file's content. Equal bridges give equal bytes.
    ///
    /// # Errors
    /// [`BridgeError::Header`] or [`BridgeError::Container`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, BridgeError> {
        let header = serde_json::to_string(&self.header).map_err(|error| BridgeError::Header {
            reason: error.to_string(),
        })?;
        let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
        for (layer, weights) in self.layers.iter().enumerate() {
            for (side, affine) in [("k", &weights.k), ("v", &weights.v)] {
                let (p, q) = (affine.source_width, affine.target_width);
                let mut halves = vec![f16::ZERO; p * q];
                halves.convert_from_f32_slice(&affine.weight);
                let mut bytes = vec![0; halves.len() * 2];
                write_f16_le(&halves, &mut bytes);
                tensors.push((
                    tensor_name(layer, side, "weight"),
                    Dtype::F16,
                    vec![p, q],
                    bytes,
                ));
                for (part, numbers) in [("bias", &affine.bias), ("mean", &affine.mean)] {
                    let bytes = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
                    tensors.push((tensor_name(layer, side, part), Dtype::F32, vec![q], bytes));
                }
            }
        }
        let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
            TensorView::new(*dtype, shape.clone(), bytes).map(|view| (name, view))
        });
        let views = views.collect::<Result<Vec<_>, _>>()?;
        let metadata = HashMap::from([(METADATA_KEY.to_owned(), header)]);
        Ok(safetensors::serialize(views, Some(metadata))?)
    }

    /// Reads a file's content; every size is checked against the header before anything is
    /// allocated for it.
    ///
    /// # Errors
    /// [`BridgeError`], see its variants.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BridgeError> {
        let (_, metadata) = SafeTensors::read_metadata(bytes)?;
        let malformed = |reason: String| BridgeError::Header { reason };
        let header = metadata
            .metadata()
            .as_ref()
            .and_then(|entries| entries.get(METADATA_KEY))
            .ok_or_else(|| malformed(format!("the metadata lack {METADATA_KEY}")))?;
        let header: Header =
            serde_json::from_str(header).map_err(|error| malformed(error.to_string()))?;
        check_header(&header).map_err(malformed)?;
        let tensors = SafeTensors::deserialize(bytes)?;
        let mut layers = Vec::with_capacity(header.layer_map.len());
        let width = header.target.shape.width();
        for (layer, sources) in header.layer_map.iter().enumerate() {
            let source_width = sources.len() * header.source.shape.width();
            let read = |side| read_affine(&tensors, layer, side, source_width, width);
            layers.push(LayerWeights {
                k: read("k")?,
                v: read("v")?,
            });
        }
        // All expected tensors are there, so a larger number means superfluous ones.
        let expected = layers.len() * 6;
        if tensors.len() != expected {
            let reason = format!("{} tensors, {expected} are expected", tensors.len());
            return Err(BridgeError::Tensor {
                name: "*".to_owned(),
                reason,
            });
        }
        Ok(Self { header, layers })
    }

    /// Writes the file beside its final place and renames it, so that no reader sees half of it.
    ///
    /// # Errors
    /// [`BridgeError`], see its variants.
    pub fn save(&self, path: &Path) -> Result<(), BridgeError> {
        file::write_whole(path, &self.to_bytes()?).map_err(|source| BridgeError::Io {
            path: path.to_owned(),
            source,
        })
    }

    /// Reads a file whatever models it is for, for example to list it.
    ///
    /// # Errors
    /// [`BridgeError`], see its variants.
    pub fn read(path: &Path) -> Result<Self, BridgeError> {
        let path = path.to_owned();
        match file::read_bounded(&path, MAX_BRIDGE_BYTES) {
            Ok(bytes) => Self::from_bytes(&bytes),
            Err(Unread::Io(source)) => Err(BridgeError::Io { path, source }),
            Err(Unread::TooLarge(bytes)) => Err(BridgeError::TooLarge { path, bytes }),
        }
    }

    /// Reads a file for use between two models.
    ///
    /// # Errors
    /// [`BridgeError`]; a bridge for other models is refused with both pairs of fingerprints.
    pub fn load(path: &Path, source: &BridgeEnd, target: &BridgeEnd) -> Result<Self, BridgeError> {
        let bridge = Self::read(path)?;
        bridge.check_models(source, target)?;
        Ok(bridge)
    }
}

/// Checks that a block is of this model, with all heads and pre-RoPE keys.
pub(super) fn check_end(
    end: &'static str,
    model: &BridgeEnd,
    block: &KvBlock,
) -> Result<(), AlignError> {
    let differ = |expected: String, found: String| {
        Err(AlignError::Block {
            end,
            expected,
            found,
        })
    };
    if *block.fingerprint() != model.fingerprint {
        return differ(
            format!("model {}", model.fingerprint),
            format!("model {}", block.fingerprint()),
        );
    }
    if block.rope() != KeyRope::Pre {
        return differ(
            format!("{} keys", KeyRope::Pre),
            format!("{} keys", block.rope()),
        );
    }
    let (shape, found) = (model.shape, block.shape());
    if (shape.num_kv_heads, shape.head_dim) != (found.num_kv_heads, found.head_dim) {
        return differ(shape.to_string(), found.to_string());
    }
    Ok(())
}

/// The source layers of one target layer.
pub(super) fn sources<'a>(
    block: &'a KvBlock,
    layers: &[usize],
) -> Result<Vec<&'a LayerKv>, AlignError> {
    let find = |layer: &usize| {
        block.layer(*layer).ok_or_else(|| AlignError::Block {
            end: "source",
            expected: format!("layer {layer}"),
            found: format!("layers {:?}", block.layer_range()),
        })
    };
    layers.iter().map(find).collect()
}

/// Gathers the rows `tokens` (relative to the block): from `[num_kv_heads, seq_len, head_dim]`
/// per source layer to `[tokens.len(), layers * num_kv_heads * head_dim]`.
pub(super) fn gather_rows(
    sides: &[&[f16]],
    seq_len: usize,
    head_dim: usize,
    tokens: Range<usize>,
    rows: &mut Vec<f32>,
) {
    let heads: Vec<&[f16]> = sides
        .iter()
        .flat_map(|side| side.chunks_exact(seq_len * head_dim))
        .collect();
    rows.clear();
    rows.resize(tokens.len() * heads.len() * head_dim, 0.0);
    let mut slots = rows.chunks_exact_mut(head_dim);
    for token in tokens {
        for (head, slot) in heads.iter().zip(&mut slots) {
            head[token * head_dim..][..head_dim].convert_to_f32_slice(slot);
        }
    }
}

fn map_side(
    affine: &Affine,
    sides: &[&[f16]],
    block: &KvBlock,
    target: KvShape,
    gain: f32,
) -> Result<Vec<f16>, AlignError> {
    let (seq_len, source_dim) = (block.num_tokens(), block.shape().head_dim);
    let head_dim = target.head_dim;
    let mut mapped = vec![f16::ZERO; seq_len * target.width()];
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for start in (0..seq_len).step_by(BLOCK_ROWS) {
        let tokens = start..(start + BLOCK_ROWS).min(seq_len);
        gather_rows(sides, seq_len, source_dim, tokens.clone(), &mut x);
        y.resize(tokens.len() * target.width(), 0.0);
        affine.apply(&x, gain, &mut y)?;
        // A saturated number is an outlier that the target model can still use; a NaN, which
        // comes from one in the source, is not.
        if y.iter().any(|number| number.is_nan()) {
            return Err(AlignError::NotFinite {
                what: "mapped rows".to_owned(),
            });
        }
        y.iter_mut()
            .for_each(|number| *number = number.clamp(-65504.0, 65504.0));
        for (token, row) in tokens.zip(y.chunks_exact(target.width())) {
            let heads = mapped.chunks_exact_mut(seq_len * head_dim);
            for (head, row) in heads.zip(row.chunks_exact(head_dim)) {
                head[token * head_dim..][..head_dim].convert_from_f32_slice(row);
            }
        }
    }
    Ok(mapped)
}

fn valid_gain(gain: f32) -> bool {
    gain > 0.0 && gain <= 16.0
}

fn check_header(header: &Header) -> Result<(), String> {
    let Header {
        schema_version,
        source,
        target,
        mapping,
        layer_map,
        manifest,
        ..
    } = header;
    if *schema_version != SCHEMA_VERSION {
        return Err(format!(
            "schema version {schema_version}, known is {SCHEMA_VERSION}"
        ));
    }
    if mapping != ridge::NAME {
        return Err(format!("mapping {mapping:?}, known is {}", ridge::NAME));
    }
    for end in [source, target] {
        end.shape.validate(1).map_err(|error| error.to_string())?;
    }
    let (num_source, num_target) = (source.shape.num_layers, target.shape.num_layers);
    check_layer_map(layer_map, num_source, num_target).map_err(|error| error.to_string())?;
    if manifest.layers.len() != num_target {
        return Err(format!(
            "scores of {} layers of {num_target}",
            manifest.layers.len()
        ));
    }
    if !valid_gain(header.k_gain) || !valid_gain(header.v_gain) {
        return Err(format!("gains {} and {}", header.k_gain, header.v_gain));
    }
    Ok(())
}

fn tensor_name(layer: usize, side: &str, part: &str) -> String {
    format!("layers.{layer}.{side}.{part}")
}

fn read_affine(
    tensors: &SafeTensors<'_>,
    layer: usize,
    side: &str,
    source_width: usize,
    target_width: usize,
) -> Result<Affine, BridgeError> {
    let read = |part: &str, dtype: Dtype, shape: &[usize]| {
        let name = tensor_name(layer, side, part);
        let view = tensors.tensor(&name)?;
        if view.dtype() != dtype || view.shape() != shape {
            let found = format!("{:?} {:?}", view.dtype(), view.shape());
            let reason = format!("{found} where the header needs {dtype:?} {shape:?}");
            return Err(BridgeError::Tensor { name, reason });
        }
        // The container has checked that the data are as long as type and shape say.
        let numbers: Vec<f32> = if dtype == Dtype::F16 {
            let mut halves = vec![f16::ZERO; view.data().len() / 2];
            read_f16_le(view.data(), &mut halves);
            halves.to_f32_vec()
        } else {
            view.data()
                .as_chunks::<4>()
                .0
                .iter()
                .map(|x| f32::from_le_bytes(*x))
                .collect()
        };
        if !numbers.iter().all(|number| number.is_finite()) {
            let reason = "holds a NaN or an infinity".to_owned();
            return Err(BridgeError::Tensor { name, reason });
        }
        Ok(numbers)
    };
    Ok(Affine {
        source_width,
        target_width,
        weight: read("weight", Dtype::F16, &[source_width, target_width])?,
        bias: read("bias", Dtype::F32, &[target_width])?,
        mean: read("mean", Dtype::F32, &[target_width])?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::fitter::tests::{ends, fitted, source_block, target_block};
    use super::*;
    use proptest::prelude::*;

    fn other(byte: u8, end: BridgeEnd) -> BridgeEnd {
        BridgeEnd {
            fingerprint: ModelFingerprint::from_bytes([byte; 32]),
            ..end
        }
    }

    #[test]
    fn files_hold_what_was_fitted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pair.safetensors");
        let mut bridge = fitted();
        bridge.set_gains(1.15, 1.25).unwrap();
        bridge.save(&path).unwrap();
        let (source, target) = ends();
        let loaded = Bridge::load(&path, &source, &target).unwrap();
        assert_eq!(loaded, bridge);
        assert_eq!(loaded.gains(), (1.15, 1.25));
        assert_eq!(loaded.to_bytes().unwrap(), std::fs::read(&path).unwrap());
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            1,
            "nothing partial is left"
        );
        assert!(matches!(
            Bridge::read(&dir.path().join("absent")),
            Err(BridgeError::Io { .. })
        ));
    }

    #[test]
    fn other_models_are_refused_with_both_fingerprints() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pair.safetensors");
        fitted().save(&path).unwrap();
        let (source, target) = ends();
        for (cloud, edge) in [
            (other(1, source), target),
            (source, other(2, target)),
            (target, source),
        ] {
            let error = Bridge::load(&path, &cloud, &edge).unwrap_err().to_string();
            for end in [source, target, cloud, edge] {
                assert!(error.contains(&end.fingerprint.to_string()), "{error}");
            }
        }
        let taller = BridgeEnd {
            shape: KvShape {
                num_layers: 4,
                ..source.shape
            },
            ..source
        };
        assert!(matches!(
            Bridge::load(&path, &taller, &target),
            Err(BridgeError::OtherShape { end: "source", .. })
        ));
    }

    #[test]
    fn blocks_that_do_not_suit_are_refused() {
        let bridge = fitted();
        let block = source_block(6, 1);
        assert!(bridge.map(&block).is_ok());
        let no_last = block.slice_layers(0..2).unwrap();
        assert!(matches!(
            bridge.map(&no_last),
            Err(AlignError::Block { .. })
        ));
        // The first target layer needs the first source layer only.
        let first = bridge.map_layers(&no_last, 0..1).unwrap();
        assert_eq!(
            first,
            bridge.map(&block).unwrap().slice_layers(0..1).unwrap()
        );
        assert!(bridge.map_layers(&block, 1..3).is_err());
        assert!(bridge.map_layers(&block, 1..1).is_err());
        assert!(matches!(
            bridge.map(&target_block(&block)),
            Err(AlignError::Block { .. })
        ));
        let rebuild = |rope, layers| {
            KvBlock::new(*block.fingerprint(), block.shape(), 0, 0..6, rope, layers).unwrap()
        };
        let rotated = rebuild(KeyRope::Post, block.layers().to_vec());
        assert!(matches!(
            bridge.map(&rotated),
            Err(AlignError::Block { .. })
        ));
        let mut layers = block.layers().to_vec();
        layers[2].v[5] = f16::NAN;
        let poisoned = rebuild(KeyRope::Pre, layers);
        assert!(matches!(
            bridge.map(&poisoned),
            Err(AlignError::NotFinite { .. })
        ));
    }

    #[test]
    fn gains_act_and_are_bounded() {
        let mut bridge = fitted();
        let block = source_block(6, 1);
        let plain = bridge.map(&block).unwrap();
        bridge.set_gains(2.0, 1.0).unwrap();
        let stretched = bridge.map(&block).unwrap();
        assert_eq!(plain.layers()[0].v, stretched.layers()[0].v);
        let mean = bridge.layers()[0].k.mean[0];
        let (before, after) = (plain.layers()[0].k[0], stretched.layers()[0].k[0]);
        let expected = mean + 2.0 * (before.to_f32() - mean);
        assert!(
            (after.to_f32() - expected).abs() < 0.02,
            "{after} {expected}"
        );
        for bad in [0.0, -1.0, f32::NAN, f32::INFINITY, 17.0] {
            assert!(bridge.set_gains(bad, 1.0).is_err());
            assert!(bridge.set_gains(1.0, bad).is_err());
        }
    }

    /// A file with another header and the same tensors.
    fn with_header(change: impl Fn(&mut serde_json::Value)) -> Vec<u8> {
        let bytes = fitted().to_bytes().unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let text = &metadata.metadata().as_ref().unwrap()[METADATA_KEY];
        let mut header: serde_json::Value = serde_json::from_str(text).unwrap();
        change(&mut header);
        let entries = HashMap::from([(METADATA_KEY.to_owned(), header.to_string())]);
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        safetensors::serialize(tensors.tensors(), Some(entries)).unwrap()
    }

    #[test]
    fn headers_that_do_not_match_the_tensors_are_refused() {
        use serde_json::json;

        assert!(Bridge::from_bytes(&with_header(|_| ())).is_ok());
        let refused = |change: &dyn Fn(&mut serde_json::Value)| {
            Bridge::from_bytes(&with_header(change)).unwrap_err()
        };
        for (pointer, value) in [
            ("/schema_version", json!(2)),
            ("/mapping", json!("magic")),
            ("/layer_map", json!([[0]])),
            ("/layer_map/1", json!([3])),
            ("/layer_map/1", json!([])),
            ("/k_gain", json!(-1.0)),
            ("/manifest/layers", json!([])),
            ("/source/shape/head_dim", json!(0)),
            ("/source/shape/num_kv_heads", json!(u64::MAX)),
            ("/target/shape/num_layers", json!(1_u64 << 40)),
            ("/source/fingerprint", json!("beef")),
        ] {
            let error = refused(&|header| *header.pointer_mut(pointer).unwrap() = value.clone());
            assert!(
                matches!(error, BridgeError::Header { .. }),
                "{pointer}: {error:?}"
            );
        }
        let error = refused(&|header| header["surprise"] = json!(1));
        assert!(matches!(error, BridgeError::Header { .. }), "{error:?}");
        for (pointer, value) in [
            ("/source/shape/head_dim", json!(16)),
            ("/layer_map/1", json!([1, 2])),
        ] {
            let error = refused(&|header| *header.pointer_mut(pointer).unwrap() = value.clone());
            assert!(
                matches!(error, BridgeError::Tensor { .. }),
                "{pointer}: {error:?}"
            );
        }
        let plain = safetensors::serialize(Vec::<(String, TensorView<'_>)>::new(), None).unwrap();
        assert!(matches!(
            Bridge::from_bytes(&plain),
            Err(BridgeError::Header { .. })
        ));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            prop_assert!(Bridge::from_bytes(&bytes).is_err());
        }

        #[test]
        fn damaged_files_never_panic(
            cut in any::<prop::sample::Index>(),
            at in any::<prop::sample::Index>(),
            byte: u8,
        ) {
            static FILE: std::sync::LazyLock<Vec<u8>> =
                std::sync::LazyLock::new(|| fitted().to_bytes().unwrap());
            let mut bytes = FILE.clone();
            let cut = cut.index(bytes.len());
            prop_assert!(Bridge::from_bytes(&bytes[..cut]).is_err());
            let at = at.index(bytes.len());
            bytes[at] = byte;
            // A changed weight cannot be told from another one; all else is for the checks.
            let _accepted_or_not = Bridge::from_bytes(&bytes);
        }
    }
}
