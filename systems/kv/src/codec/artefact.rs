//! What was fitted beforehand and both ends hold: bases, variances and predictors of a model's KV.
//!
//! File: safetensors, per layer a mean, weights and variances (`F32`), a basis and, from the
//! second layer on, a predictor (`F16`), and plain weights, variances and a basis; the header is
//! JSON in the file's metadata. Its bytes do not cross the link with a context, so reports state
//! them beside the wire size.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use half::f16;
use half::slice::HalfFloatSliceExt;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::CodecError;
use super::dot::{BytePanels, ZERO};
use super::matrix::Panels;
use crate::align::BridgeEnd;
use crate::block::{KvError, read_f16_le, write_f16_le};
use crate::file::{self, Unread};

/// An artefact's file larger than this is refused before it is read.
pub const MAX_ARTEFACT_BYTES: u64 = 1 << 30;

pub(super) const SCHEMA_VERSION: u32 = 2;
const METADATA_KEY: &str = "celslm_codec";
/// Most first tokens that an artefact holds.
pub(super) const MAX_PREFIX_TOKENS: usize = 256;
/// Most layers that a predictor looks at; a file may not ask for more.
pub(super) const MAX_PRIOR_LAYERS: usize = 8;

/// Why an artefact could not be fitted, read or written.
#[derive(Debug, thiserror::Error)]
pub enum ArtefactError {
    /// The file could not be read or written.
    #[error("failed to access the codec artefact {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The file is too large.
    #[error("the codec artefact {} has {bytes} bytes, the bound is {MAX_ARTEFACT_BYTES}", path.display())]
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
    #[error("the artefact's header is malformed: {reason}")]
    Header {
        /// What is wrong.
        reason: String,
    },
    /// A tensor that is missing, superfluous, of another shape than the header says, or not
    /// finite.
    #[error("tensor {name}: {reason}")]
    Tensor {
        /// Name of the tensor.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// Blocks that cannot be fitted on, or too few.
    #[error("cannot fit a codec artefact: {reason}")]
    Fit {
        /// What is wrong.
        reason: String,
    },
    /// A shape that is not possible.
    #[error(transparent)]
    Shape(#[from] KvError),
}

/// Names an artefact: the first eight bytes of the BLAKE3 of its file, as 16 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ArtefactId([u8; 8]);

impl fmt::Display for ArtefactId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ArtefactId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ArtefactId({self})")
    }
}

impl FromStr for ArtefactId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.len() == 16
            && text
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        match u64::from_str_radix(text, 16) {
            Ok(number) if digits => Ok(Self(number.to_be_bytes())),
            _ => Err("an artefact is named by 16 lower-case hex digits".to_owned()),
        }
    }
}

impl Serialize for ArtefactId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ArtefactId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// What an artefact was fitted on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArtefactManifest {
    /// Hash of the calibration data, as its owner computes it.
    pub calibration_hash: String,
    /// Tokens fitted on.
    pub fit_tokens: u64,
    /// Tokens at the start of each context that were left out: attention sinks, which are to be
    /// sent exactly.
    pub skipped_tokens: usize,
    /// Error of the layers predicted from that the predictors were fitted for, in 1/1000 of the
    /// variance.
    pub noise: u32,
    /// Whether the weights come from a measured sensitivity rather than from variances alone.
    pub sensitivity: bool,
    /// Program and version that fitted it.
    pub created_by: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    pub(super) schema_version: u32,
    pub(super) model: BridgeEnd,
    pub(super) prior_layers: usize,
    /// First tokens that all contexts had in common.
    pub(super) prefix_tokens: usize,
    pub(super) manifest: ArtefactManifest,
}

/// One layer's fitted numbers. A row is a token's keys, all heads, then its values.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LayerBasis {
    /// `[row]`.
    pub(super) mean: Vec<f32>,
    /// What a number's distance from its mean is multiplied by, so that errors of all numbers
    /// weigh the same: `[row]`, positive.
    pub(super) weight: Vec<f32>,
    /// Orthonormal rows, by falling variance: `[row, row]`.
    pub(super) basis: Vec<f16>,
    /// Variance of each component, of what the predictor leaves: `[row]`.
    pub(super) variance: Vec<f32>,
    /// From the weighted rows of the layers below, the nearest first, to this layer's:
    /// `[below * row, row]`.
    pub(super) predictor: Vec<f16>,
    /// Rows of the first tokens that all contexts had in common, as they are:
    /// `[prefix_tokens, row]`.
    pub(super) prefix: Vec<f16>,
}

/// One layer's principal components by themselves, of keys and values that are scaled by side.
#[derive(Debug)]
pub(super) struct PlainBasis {
    /// One number for keys and one for values, spread over the row: `[row]`, positive.
    pub(super) weight: Vec<f32>,
    /// Orthonormal rows, by falling variance: `[row, row]`.
    pub(super) basis: Vec<f16>,
    /// Variance of each component: `[row]`.
    pub(super) variance: Vec<f32>,
}

/// Tensors of a [`PlainBasis`] in the file.
const PLAIN_WEIGHT: &str = "plain_weight";
const PLAIN_BASIS: &str = "plain_basis";
const PLAIN_VARIANCE: &str = "plain_variance";

/// A fitted artefact.
#[derive(Debug, Clone)]
pub struct CodecArtefact {
    id: ArtefactId,
    bytes: u64,
    header: Header,
    layers: Vec<LayerBasis>,
    maps: Vec<LayerMaps>,
    /// The same with plain bases; that has none of its own.
    plain: Option<Arc<CodecArtefact>>,
}

/// By what was fitted; the rest follows from that.
impl PartialEq for CodecArtefact {
    fn eq(&self, other: &Self) -> bool {
        let fitted = |artefact: &Self| (artefact.id, artefact.header.clone());
        (fitted(self), &self.layers, &self.plain) == (fitted(other), &other.layers, &other.plain)
    }
}

impl CodecArtefact {
    pub(super) fn new(
        header: &Header,
        layers: &[LayerBasis],
        plain: &[PlainBasis],
    ) -> Result<Self, ArtefactError> {
        // What is used is what a file holds: fp16 where the file has fp16.
        Self::from_bytes(&to_bytes(header, layers, plain)?)
    }

    /// The same artefact with plain bases: of the covariance alone, as published methods have
    /// them, with no layer predicted and no weights but one a side.
    pub(super) const fn plain(&self) -> Option<&Arc<Self>> {
        self.plain.as_ref()
    }

    /// Its name, part of the ids of chains that use it.
    #[must_use]
    pub const fn id(&self) -> ArtefactId {
        self.id
    }

    /// Bytes of its file: what both ends hold, and what does not cross the link.
    #[must_use]
    pub const fn file_bytes(&self) -> u64 {
        self.bytes
    }

    /// The model whose KV it was fitted on.
    #[must_use]
    pub const fn model(&self) -> &BridgeEnd {
        &self.header.model
    }

    /// Layers below that its predictors look at.
    #[must_use]
    pub const fn prior_layers(&self) -> usize {
        self.header.prior_layers
    }

    /// First tokens of a context whose keys and values it holds.
    #[must_use]
    pub const fn prefix_tokens(&self) -> usize {
        self.header.prefix_tokens
    }

    /// Rows of these tokens in a layer, empty for a layer that is not there.
    pub(super) fn prefix(&self, layer: usize) -> &[f16] {
        self.layers.get(layer).map_or(&[], |layer| &layer.prefix)
    }

    /// What it was fitted on.
    #[must_use]
    pub const fn manifest(&self) -> &ArtefactManifest {
        &self.header.manifest
    }

    pub(super) fn layer(&self, layer: usize) -> Option<&LayerBasis> {
        self.layers.get(layer)
    }

    /// The products that a layer's tiles take.
    pub(super) fn maps(&self, layer: usize) -> Option<&LayerMaps> {
        self.maps.get(layer)
    }

    pub(super) fn layers(&self) -> &[LayerBasis] {
        &self.layers
    }

    /// Numbers of a token's keys and values in one layer.
    pub(super) const fn row(&self) -> usize {
        2 * self.header.model.shape.width()
    }

    /// The file's content. Equal artefacts give equal bytes.
    ///
    /// # Errors
    /// [`ArtefactError::Header`] or [`ArtefactError::Container`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, ArtefactError> {
        let plain: Vec<PlainBasis> = self
            .plain
            .iter()
            .flat_map(|plain| &plain.layers)
            .map(|layer| PlainBasis {
                weight: layer.weight.clone(),
                basis: layer.basis.clone(),
                variance: layer.variance.clone(),
            })
            .collect();
        to_bytes(&self.header, &self.layers, &plain)
    }

    /// Reads a file's content; every size is checked against the header before anything is
    /// allocated for it.
    ///
    /// # Errors
    /// [`ArtefactError`], see its variants.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ArtefactError> {
        let (_, metadata) = SafeTensors::read_metadata(bytes)?;
        let malformed = |reason: String| ArtefactError::Header { reason };
        let header = metadata
            .metadata()
            .as_ref()
            .and_then(|entries| entries.get(METADATA_KEY))
            .ok_or_else(|| malformed(format!("the metadata lack {METADATA_KEY}")))?;
        let header: Header =
            serde_json::from_str(header).map_err(|error| malformed(error.to_string()))?;
        if header.schema_version != SCHEMA_VERSION {
            return Err(malformed(format!(
                "schema version {}, {SCHEMA_VERSION} is known",
                header.schema_version
            )));
        }
        header.model.shape.validate(1)?;
        if header.prior_layers > MAX_PRIOR_LAYERS {
            return Err(malformed(format!(
                "predictors from {} layers, at most {MAX_PRIOR_LAYERS}",
                header.prior_layers
            )));
        }
        let tensors = SafeTensors::deserialize(bytes)?;
        if header.prefix_tokens > MAX_PREFIX_TOKENS {
            return Err(malformed(format!(
                "{} first tokens, at most {MAX_PREFIX_TOKENS}",
                header.prefix_tokens
            )));
        }
        // A header may claim any number of layers; each has seven to nine tensors.
        let num_layers = header.model.shape.num_layers;
        if tensors.len() > num_layers.saturating_mul(9) || tensors.len() < num_layers {
            return Err(malformed(format!(
                "{} tensors for {num_layers} layers",
                tensors.len()
            )));
        }
        let row = 2 * header.model.shape.width();
        let read_f32 = |layer, part| read_f32(&tensors, layer, part, row);
        let read_f16 = |layer, part, rows: usize| match rows {
            0 => Ok(Vec::new()),
            _ => read_f16(&tensors, layer, part, [rows, row]),
        };
        let (mut layers, mut plain) = (Vec::new(), Vec::new());
        let mut expected = 0;
        for layer in 0..num_layers {
            let below = layer.min(header.prior_layers);
            let basis = LayerBasis {
                mean: read_f32(layer, "mean")?,
                weight: read_f32(layer, "weight")?,
                variance: read_f32(layer, "variance")?,
                basis: read_f16(layer, "basis", row)?,
                predictor: read_f16(layer, "predictor", below * row)?,
                prefix: read_f16(layer, "prefix", header.prefix_tokens)?,
            };
            expected += 7 + usize::from(below > 0) + usize::from(header.prefix_tokens > 0);
            let alone = LayerBasis {
                mean: basis.mean.clone(),
                weight: read_f32(layer, PLAIN_WEIGHT)?,
                variance: read_f32(layer, PLAIN_VARIANCE)?,
                basis: read_f16(layer, PLAIN_BASIS, row)?,
                predictor: Vec::new(),
                prefix: Vec::new(),
            };
            for (part, numbers, smallest) in [
                ("weight", &basis.weight, f32::MIN_POSITIVE),
                ("variance", &basis.variance, 0.0),
                (PLAIN_WEIGHT, &alone.weight, f32::MIN_POSITIVE),
                (PLAIN_VARIANCE, &alone.variance, 0.0),
            ] {
                if numbers.iter().any(|x| *x < smallest) {
                    return Err(ArtefactError::Tensor {
                        name: name(layer, part),
                        reason: "a number is not positive".to_owned(),
                    });
                }
            }
            layers.push(basis);
            plain.push(alone);
        }
        if tensors.len() != expected {
            return Err(ArtefactError::Tensor {
                name: "*".to_owned(),
                reason: format!("{} tensors, {expected} are expected", tensors.len()),
            });
        }
        let hash = blake3::hash(bytes);
        let mut id = [0; 8];
        id.copy_from_slice(&hash.as_bytes()[..8]);
        let levels: Vec<Levels> = plain.iter().map(Levels::new).collect();
        let held = |header, layers: Vec<LayerBasis>, plain| Self {
            id: ArtefactId(id),
            bytes: bytes.len() as u64,
            header,
            maps: (0..num_layers)
                .map(|layer| LayerMaps::new(&layers, &levels, layer))
                .collect(),
            layers,
            plain,
        };
        let alone = Header {
            prior_layers: 0,
            prefix_tokens: 0,
            ..header.clone()
        };
        let plain = held(alone, plain, None);
        Ok(held(header, layers, Some(Arc::new(plain))))
    }

    /// Writes the file beside its final place and renames it, so that no reader sees half of it.
    ///
    /// # Errors
    /// [`ArtefactError`], see its variants.
    pub fn save(&self, path: &Path) -> Result<(), ArtefactError> {
        file::write_whole(path, &self.to_bytes()?).map_err(|source| ArtefactError::Io {
            path: path.to_owned(),
            source,
        })
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`ArtefactError`], see its variants.
    pub fn read(path: &Path) -> Result<Self, ArtefactError> {
        let path = path.to_owned();
        match file::read_bounded(&path, MAX_ARTEFACT_BYTES) {
            Ok(bytes) => Self::from_bytes(&bytes),
            Err(Unread::Io(source)) => Err(ArtefactError::Io { path, source }),
            Err(Unread::TooLarge(bytes)) => Err(ArtefactError::TooLarge { path, bytes }),
        }
    }
}

/// The file's content.
fn to_bytes(
    header: &Header,
    layers: &[LayerBasis],
    plain: &[PlainBasis],
) -> Result<Vec<u8>, ArtefactError> {
    let row = 2 * header.model.shape.width();
    let header = serde_json::to_string(header).map_err(|error| ArtefactError::Header {
        reason: error.to_string(),
    })?;
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for (layer, (basis, plain)) in layers.iter().zip(plain).enumerate() {
        for (part, numbers) in [
            ("mean", &basis.mean),
            ("weight", &basis.weight),
            ("variance", &basis.variance),
            (PLAIN_WEIGHT, &plain.weight),
            (PLAIN_VARIANCE, &plain.variance),
        ] {
            let bytes = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
            tensors.push((name(layer, part), Dtype::F32, vec![row], bytes));
        }
        for (part, numbers) in [
            ("basis", &basis.basis),
            ("predictor", &basis.predictor),
            ("prefix", &basis.prefix),
            (PLAIN_BASIS, &plain.basis),
        ] {
            if numbers.is_empty() {
                continue;
            }
            let mut bytes = vec![0; numbers.len() * 2];
            write_f16_le(numbers, &mut bytes);
            let shape = vec![numbers.len() / row, row];
            tensors.push((name(layer, part), Dtype::F16, shape, bytes));
        }
    }
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        TensorView::new(*dtype, shape.clone(), bytes).map(|view| (name, view))
    });
    let views = views.collect::<Result<Vec<_>, _>>()?;
    let metadata = HashMap::from([(METADATA_KEY.to_owned(), header)]);
    Ok(safetensors::serialize(views, Some(metadata))?)
}

fn name(layer: usize, part: &str) -> String {
    format!("layers.{layer}.{part}")
}

/// A tensor's bytes, after its type and shape were checked.
fn view<'a>(
    tensors: &'a SafeTensors<'_>,
    name: &str,
    dtype: Dtype,
    shape: &[usize],
) -> Result<&'a [u8], ArtefactError> {
    let wrong = |reason: String| ArtefactError::Tensor {
        name: name.to_owned(),
        reason,
    };
    let view = tensors
        .tensor(name)
        .map_err(|error| wrong(error.to_string()))?;
    let (found, found_shape) = (view.dtype(), view.shape());
    if found != dtype || found_shape != shape {
        return Err(wrong(format!(
            "{found:?} {found_shape:?}, expected {dtype:?} {shape:?}"
        )));
    }
    Ok(view.data())
}

fn not_finite(name: String) -> ArtefactError {
    ArtefactError::Tensor {
        name,
        reason: "a number is not finite".to_owned(),
    }
}

fn read_f32(
    tensors: &SafeTensors<'_>,
    layer: usize,
    part: &str,
    row: usize,
) -> Result<Vec<f32>, ArtefactError> {
    let name = name(layer, part);
    let data = view(tensors, &name, Dtype::F32, &[row])?;
    let numbers: Vec<f32> = data
        .as_chunks::<4>()
        .0
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect();
    match numbers.iter().all(|x| x.is_finite()) {
        true => Ok(numbers),
        false => Err(not_finite(name)),
    }
}

fn read_f16(
    tensors: &SafeTensors<'_>,
    layer: usize,
    part: &str,
    shape: [usize; 2],
) -> Result<Vec<f16>, ArtefactError> {
    let name = name(layer, part);
    let data = view(tensors, &name, Dtype::F16, &shape)?;
    let mut numbers = vec![f16::ZERO; shape[0] * shape[1]];
    read_f16_le(data, &mut numbers);
    match numbers.iter().all(|x| x.is_finite()) {
        true => Ok(numbers),
        false => Err(not_finite(name)),
    }
}

/// How a layer's rows become bytes around [`ZERO`], in units of each number's spread.
#[derive(Debug, Clone)]
pub(super) struct Levels {
    mean: Vec<f32>,
    /// Levels for each unit of the number, 0 where it does not move.
    scale: Vec<f32>,
}

impl Levels {
    /// Standard deviations that 127 levels stand for: rounding then errs by a 70th of one, far
    /// less than what decoded layers err by, and what lies beyond is rare.
    const REACH: f32 = 6.0;
    /// Added, it leaves a small integer in the lowest bits of a float, rounded to the nearest.
    const ROUND: f32 = 12_582_912.0;

    /// Of a layer's rows, by its plain basis.
    fn new(plain: &LayerBasis) -> Self {
        let row = plain.mean.len();
        let mut variance = vec![0.0_f32; row];
        let components = widen(&plain.basis);
        for (component, of) in components.chunks_exact(row).zip(&plain.variance) {
            let terms = variance.iter_mut().zip(component);
            terms.for_each(|(variance, x)| *variance += x * x * of);
        }
        let spreads = variance.iter().map(|variance| variance.sqrt());
        let scale = spreads.zip(&plain.weight).map(|(spread, weight)| {
            let scale = 127.0 * weight / (Self::REACH * spread);
            let moves = scale.is_finite() && scale.recip().is_normal();
            if moves { scale } else { 0.0 }
        });
        Self {
            mean: plain.mean.clone(),
            scale: scale.collect(),
        }
    }

    /// What one level of a number stands for.
    fn unit(&self, i: usize) -> f32 {
        match self.scale[i] {
            0.0 => 0.0,
            scale => scale.recip(),
        }
    }

    /// The bytes of a row. A difference, a product and a sum, each rounded once: the same
    /// everywhere.
    pub(super) fn write(&self, row: &[f32], bytes: &mut [u8]) {
        let levels = self.mean.iter().zip(&self.scale);
        for ((byte, x), (mean, scale)) in bytes.iter_mut().zip(row).zip(levels) {
            let level = ((x - mean) * scale).clamp(-127.0, 127.0);
            *byte = (level + (Self::ROUND + f32::from(ZERO))).to_bits() as u8;
        }
    }
}

/// The products that a layer's tiles take, means and weights multiplied in: from keys and values
/// as they are to components, and back.
///
/// Components are in the order in which the tile of `pca` has them: those of even rank, then those
/// of odd rank.
#[derive(Debug, Clone)]
pub(super) struct LayerMaps {
    /// From the rows of the layers below, the nearest first, to this layer's, means aside:
    /// `[below * row, row]`.
    pub(super) predict: BytePanels,
    /// How those rows become bytes: `[below]`.
    pub(super) predict_from: Vec<Levels>,
    /// From components of even and of odd rank to the row, `[row / 2, row]` each.
    pub(super) synthesis: [Panels; 2],
    /// From the row to components, `[row, row]`: for encoders only.
    analysis: OnceLock<Panels>,
}

impl LayerMaps {
    fn new(layers: &[LayerBasis], levels: &[Levels], layer: usize) -> Self {
        let own = &layers[layer];
        let row = own.mean.len();
        let (basis, predictor) = (widen(&own.basis), widen(&own.predictor));
        let depth = predictor.len() / row;
        let predict = BytePanels::new(depth, row, |i, j| {
            let (below, i_below) = (layer - 1 - i / row, i % row);
            let weight = layers[below].weight[i_below] / own.weight[j];
            predictor[i * row + j] * weight * levels[below].unit(i_below)
        });
        Self {
            predict,
            predict_from: levels[layer - depth / row..layer]
                .iter()
                .rev()
                .cloned()
                .collect(),
            synthesis: [0, 1].map(|parity| {
                Panels::new(row / 2, row, |i, j| {
                    basis[(2 * i + parity) * row + j] / own.weight[j]
                })
            }),
            analysis: OnceLock::new(),
        }
    }

    /// From the row to components; computed when it is first asked for. `own` is the layer's.
    pub(super) fn analysis(&self, own: &LayerBasis) -> &Panels {
        self.analysis.get_or_init(|| {
            let row = own.mean.len();
            let basis = widen(&own.basis);
            Panels::new(row, row, |i, place| {
                let component = place % (row / 2) * 2 + place / (row / 2);
                basis[component * row + i] * own.weight[i]
            })
        })
    }
}

fn widen(numbers: &[f16]) -> Vec<f32> {
    let mut wide = vec![0.0; numbers.len()];
    numbers.convert_to_f32_slice(&mut wide);
    wide
}

/// What a chain is built with beside its settings.
#[derive(Debug, Clone, Default)]
pub struct CodecContext {
    /// The artefact of the stages that need one.
    pub artefact: Option<Arc<CodecArtefact>>,
}

impl CodecContext {
    /// A context with an artefact.
    #[must_use]
    pub const fn new(artefact: Arc<CodecArtefact>) -> Self {
        Self {
            artefact: Some(artefact),
        }
    }

    /// The context of a chain whose components are plain.
    pub(super) fn plain(&self) -> Self {
        let plain = |artefact: &Arc<CodecArtefact>| artefact.plain().cloned();
        Self {
            artefact: self.artefact.as_ref().and_then(plain),
        }
    }

    /// Checks an artefact that a config may name against the one at hand; returns the name to
    /// put into ids.
    pub(super) fn bind(
        &self,
        stage: &'static str,
        named: Option<ArtefactId>,
    ) -> Result<Option<ArtefactId>, CodecError> {
        match (named, &self.artefact) {
            (Some(named), Some(held)) if named != held.id() => Err(CodecError::Artefact {
                codec: stage.to_owned(),
                reason: format!("artefact {named} is asked for, {} is here", held.id()),
            }),
            (_, Some(held)) => Ok(Some(held.id())),
            (named, None) => Ok(named),
        }
    }
}

/// The artefact's numbers of a tile's layer, for a stage that cannot do without.
pub(super) fn basis_of<'a>(
    artefact: Option<&'a Arc<CodecArtefact>>,
    stage: &'static str,
    layer: usize,
) -> Result<&'a LayerBasis, CodecError> {
    let missing = |reason: String| CodecError::Artefact {
        codec: stage.to_owned(),
        reason,
    };
    artefact
        .ok_or_else(|| missing("no artefact was given; fit one for the model".to_owned()))?
        .layer(layer)
        .ok_or_else(|| missing(format!("the artefact has no layer {layer}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_bytes_in_units_of_their_spread() {
        let levels = Levels::new(&LayerBasis {
            mean: vec![10.0, -3.0],
            weight: vec![2.0, 1.0],
            basis: [1.0, 0.0, 0.0, 1.0].map(f16::from_f32).to_vec(),
            // A standard deviation of 2 / 2, and a number that does not move.
            variance: vec![4.0, 0.0],
            predictor: Vec::new(),
            prefix: Vec::new(),
        });
        let zero = i32::from(ZERO);
        let unit = levels.unit(0);
        assert!((unit - Levels::REACH / 127.0).abs() < 1e-6 && levels.unit(1) == 0.0);
        for (x, expected) in [
            (10.0, zero),
            (11.0, zero + (1.0 / unit).round() as i32),
            (9.0, zero - (1.0 / unit).round() as i32),
            (1e9, zero + 127),
            (-1e9, zero - 127),
        ] {
            let mut bytes = [0; 2];
            levels.write(&[x, x], &mut bytes);
            assert_eq!(bytes.map(i32::from), [expected, zero], "{x}");
        }
    }
}
