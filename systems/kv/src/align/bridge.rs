//! Bridges: a fitted alignment and mapping between two models, as a file and as a function.
//!
//! File: safetensors; the header is JSON in the file's metadata and says which heads each part of
//! the bridge reads and writes. Part `i` has a `weight` `[source_width, target_width]` or its
//! factors `down` `[source_width, rank]` and `up` `[rank, target_width]`, in `F16` or in `I8` with
//! scales of rows and columns, and a `bias` and a `mean` (`F32`). A bridge may hold the KV of the first
//! tokens of all contexts: `prefix.exact.k` and `.v`, and `prefix.tuned.k` and `.v` where it was
//! trained, `[num_layers, num_kv_heads, tokens, head_dim]` in `F16`.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::f16;
use half::slice::HalfFloatSliceExt;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde::{Deserialize, Serialize};

use super::mapping::Part;
use super::states::{check_kind, read_end};
use super::weights::Scales;
use super::{
    Affine, AlignError, CommonPrefix, KvSide, MAX_PREFIX_TOKENS, MappingConfig, Matrix, Slot,
    SourceKind, Sources, Storage, TokenAlignment, Weights,
};
use crate::block::{BlockSpec, KeyRope, KvBlock, KvShape, LayerKv, read_f16_le, write_f16_le};
use crate::file::{self, Unread};
use crate::ident::ModelFingerprint;

/// A bridge file larger than this is refused before it is read.
pub const MAX_BRIDGE_BYTES: u64 = 2 << 30;

/// Version 3: parts that read the target's own KV, one factor in 8 bits, a prefix. Version 2, which
/// lacks them, is read too.
const SCHEMA_VERSION: u32 = 3;
const OLDEST_VERSION: u32 = 2;
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

/// How one target layer was fitted. In f32, which survives being written as JSON exactly. The
/// largest lambda where a layer's heads differ in it, 0 where the mapping has none.
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
    /// Per target layer; of the closed form where the bridge was trained on from there.
    pub layers: Vec<LayerFit>,
    /// How it was trained, where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<TrainingRecord>,
    /// What it took to make it; older files do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<FitCost>,
}

/// What it took to make a bridge. Wall-clock time of whoever made it: two fits of one map differ in
/// it and in nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FitCost {
    /// Seconds of fitting; `None` where the bridge that training began with did not say.
    pub fit_s: Option<f32>,
    /// Seconds of training, 0 where it was not trained.
    pub train_s: f32,
    /// Compute threads of whoever worked last.
    pub threads: u32,
}

/// What a trained bridge was trained on, and what that did.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingRecord {
    /// The model whose distributions were learnt, from its own KV.
    pub teacher: ModelFingerprint,
    /// Steps taken.
    pub steps: u64,
    /// Contexts that were seen.
    pub contexts: u64,
    /// Others, on which the losses below were measured.
    pub held_out_contexts: u64,
    /// KL divergence from the teacher's distribution per token of answers about held-out
    /// contexts, nats: before the first step and after the last.
    pub kl: [f32; 2],
    /// The same for the negative log-likelihood of the answers.
    pub nll: [f32; 2],
}

impl TrainingRecord {
    /// Training that went on where an earlier one ended: steps of both, and what was lost before the
    /// first of them.
    pub fn continues(&mut self, earlier: &Self) {
        self.steps += earlier.steps;
        self.contexts = self.contexts.max(earlier.contexts);
        self.kl[0] = earlier.kl[0];
        self.nll[0] = earlier.nll[0];
    }
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
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    schema_version: u32,
    source: BridgeEnd,
    target: BridgeEnd,
    /// Shape of the source model's hidden states, where they are what is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    states: Option<KvShape>,
    alignment: String,
    /// Files from before pairs with other tokenizers lack it.
    #[serde(default, skip_serializing_if = "TokenAlignment::is_same")]
    tokens: TokenAlignment,
    mapping: MappingConfig,
    storage: Storage,
    k_gain: f32,
    v_gain: f32,
    manifest: BridgeManifest,
    parts: Vec<PartHeader>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prefix: Option<PrefixHeader>,
}

/// The tokens that all contexts begin with.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PrefixHeader {
    tokens: Vec<u32>,
    tuned: bool,
}

/// What a part reads and writes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PartHeader {
    inputs: Vec<Slot>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    own: Vec<Slot>,
    outputs: Vec<Slot>,
    /// Of a map in two factors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rank: Option<usize>,
}

/// The one field that is read before the rest of a header is.
#[derive(Deserialize)]
struct Version {
    schema_version: u32,
}

/// A fitted alignment and mapping from the cloud's model to the edge's.
///
/// It consists of parts that together write every head of every target layer once, or of none, which
/// leave the target model's own KV as it is. A source row is the pre-RoPE keys and the values of one
/// token in the heads that the part reads, `[inputs, head_dim]`, or halves of hidden states
/// ([`states_block`](super::states_block)) in their place; a target row is keys and values of the heads
/// that it writes. The first tokens of a context may have KV that the bridge holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Bridge {
    source: BridgeEnd,
    target: BridgeEnd,
    states: Option<KvShape>,
    alignment: String,
    tokens: TokenAlignment,
    mapping: MappingConfig,
    storage: Storage,
    k_gain: f32,
    v_gain: f32,
    manifest: BridgeManifest,
    parts: Vec<Part>,
    prefix: Option<CommonPrefix>,
}

impl Bridge {
    pub(super) const fn new(
        source: BridgeEnd,
        target: BridgeEnd,
        alignment: String,
        mapping: MappingConfig,
        storage: Storage,
        manifest: BridgeManifest,
        parts: Vec<Part>,
    ) -> Self {
        Self {
            source,
            target,
            states: None,
            alignment,
            tokens: TokenAlignment::Same,
            mapping,
            storage,
            k_gain: 1.0,
            v_gain: 1.0,
            manifest,
            parts,
            prefix: None,
        }
    }

    /// The same bridge where its parts read hidden states of this shape.
    pub(super) const fn reading(mut self, states: Option<KvShape>) -> Self {
        self.states = states;
        self
    }

    /// The same bridge between tokens that are aligned in another way.
    pub(super) const fn with_tokens(mut self, tokens: TokenAlignment) -> Self {
        self.tokens = tokens;
        self
    }

    /// The same bridge as training begins at it: for a mapping of the trained ones, with its parts.
    ///
    /// # Errors
    /// [`AlignError::LayerMap`] for a mapping that no training makes, or that cannot begin at this
    /// bridge's parts.
    pub fn to_train(&self, mapping: MappingConfig) -> Result<Self, AlignError> {
        let parts = match &mapping {
            // Training goes on.
            same if *same == self.mapping && same.is_trained() => self.parts.clone(),
            MappingConfig::Trained => self.parts.clone(),
            MappingConfig::Prefix => Vec::new(),
            MappingConfig::Fuse(fuse) => {
                let parts = self.parts.iter();
                let begun = parts.map(|part| fuse.begin(part, self.target.shape));
                begun.collect::<Result<_, _>>()?
            }
            fitted => {
                return Err(AlignError::LayerMap {
                    reason: format!("mapping {fitted} is fitted, not trained"),
                });
            }
        };
        // A first factor that is not in 8 bits already is trained, and what is found between codes
        // must be kept.
        let in_bytes = |part: &Part| match part.affine.weights() {
            Weights::Factored { down, .. } => down.storage() == Storage::Int8,
            Weights::Dense(_) => true,
        };
        let storage = match mapping.storage() {
            Storage::Int8Down if !parts.iter().all(in_bytes) => Storage::F16,
            storage => storage,
        };
        let mut manifest = self.manifest.clone();
        // What training did to a bridge of another kind says nothing of this one.
        manifest.training = manifest.training.filter(|_| self.mapping == mapping);
        Ok(Self {
            storage,
            // Without parts nothing of the source is read.
            states: self.states.filter(|_| !parts.is_empty()),
            mapping,
            manifest,
            parts,
            ..self.clone()
        })
    }

    /// The same bridge with the numbers that training found.
    ///
    /// # Errors
    /// [`AlignError::LayerMap`] for parts that read or write other heads.
    pub fn trained(
        &self,
        record: TrainingRecord,
        parts: Vec<Part>,
        prefix: Option<CommonPrefix>,
    ) -> Result<Self, AlignError> {
        let alike = |(own, other): (&Part, &Part)| {
            (&own.inputs, &own.own, &own.outputs) == (&other.inputs, &other.own, &other.outputs)
        };
        if parts.len() != self.parts.len() || !self.parts.iter().zip(&parts).all(alike) {
            return Err(AlignError::LayerMap {
                reason: "the trained parts read or write other heads".to_owned(),
            });
        }
        let mut bridge = self.clone();
        bridge.parts = parts;
        bridge.prefix = prefix;
        bridge.manifest.training = Some(record);
        Ok(bridge)
    }

    /// The KV of the tokens that all contexts begin with, where the bridge holds it.
    #[must_use]
    pub const fn prefix(&self) -> Option<&CommonPrefix> {
        self.prefix.as_ref()
    }

    /// The same bridge with KV of the tokens that all contexts begin with.
    ///
    /// # Errors
    /// [`AlignError::Block`] for KV that is not the target model's.
    pub fn with_prefix(self, prefix: CommonPrefix) -> Result<Self, AlignError> {
        check_end("target", &self.target, prefix.exact())?;
        if prefix.exact().shape() != self.target.shape {
            return Err(AlignError::Block {
                end: "target",
                expected: self.target.shape.to_string(),
                found: prefix.exact().shape().to_string(),
            });
        }
        Ok(Self {
            prefix: Some(prefix),
            ..self
        })
    }

    /// First tokens of a context whose KV the bridge holds.
    #[must_use]
    pub fn known_tokens(&self, context: &[u32]) -> usize {
        let known = self.prefix.as_ref().map(|prefix| prefix.of(context).0);
        known.unwrap_or(0)
    }

    /// Whether the target model's own KV of a context is needed beside the source's, or, by a bridge
    /// without parts, alone.
    #[must_use]
    pub fn reads_own(&self) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|part| !part.own.is_empty())
    }

    /// The model whose KV or hidden states are mapped.
    #[must_use]
    pub const fn source(&self) -> &BridgeEnd {
        &self.source
    }

    /// What of the source model is mapped.
    #[must_use]
    pub const fn reads(&self) -> SourceKind {
        match self.states {
            None => SourceKind::Kv,
            Some(_) => SourceKind::States,
        }
    }

    /// The model that the mapped KV is for.
    #[must_use]
    pub const fn target(&self) -> &BridgeEnd {
        &self.target
    }

    /// Id of the alignment.
    #[must_use]
    pub fn alignment(&self) -> &str {
        &self.alignment
    }

    /// How the source's rows are brought to the target's tokens, which is done before they are
    /// mapped: [`TokenAlignment::aligned`].
    #[must_use]
    pub const fn tokens(&self) -> TokenAlignment {
        self.tokens
    }

    /// The mapping, with its parameters.
    #[must_use]
    pub const fn mapping(&self) -> &MappingConfig {
        &self.mapping
    }

    /// How the weights are stored.
    #[must_use]
    pub const fn storage(&self) -> Storage {
        self.storage
    }

    /// For every target layer the source layers (or states) that it is mapped from, ascending.
    #[must_use]
    pub fn layer_map(&self) -> Vec<Vec<usize>> {
        let of = |layer: usize| {
            let writes = |part: &&Part| part.outputs.iter().any(|slot| slot.layer == layer);
            let parts = self.parts.iter().filter(writes);
            let mut layers: Vec<usize> = parts
                .flat_map(|part| part.inputs.iter().map(|slot| slot.layer))
                .collect();
            layers.sort_unstable();
            layers.dedup();
            layers
        };
        (0..self.target.shape.num_layers).map(of).collect()
    }

    /// Multiplications that mapping one token takes.
    #[must_use]
    pub fn multiplications(&self) -> usize {
        let parts = self.parts.iter();
        parts.map(|part| part.affine.multiplications()).sum()
    }

    /// What the bridge was fitted on.
    #[must_use]
    pub const fn manifest(&self) -> &BridgeManifest {
        &self.manifest
    }

    /// The maps.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Gains of keys and values.
    #[must_use]
    pub const fn gains(&self) -> (f32, f32) {
        (self.k_gain, self.v_gain)
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
        (self.k_gain, self.v_gain) = (k_gain, v_gain);
        Ok(())
    }

    /// States what it took to make the bridge. Whoever makes it has the clock.
    pub const fn set_cost(&mut self, cost: Option<FitCost>) {
        self.manifest.cost = cost;
    }

    /// Checks that the bridge is for these two models.
    ///
    /// # Errors
    /// [`BridgeError::OtherModels`], which names all four fingerprints, or
    /// [`BridgeError::OtherShape`].
    pub fn check_models(&self, source: &BridgeEnd, target: &BridgeEnd) -> Result<(), BridgeError> {
        let (own_source, own_target) = (&self.source, &self.target);
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

    /// Maps all target layers of a run of tokens. The source's block must hold what the bridge
    /// [reads](Self::reads), with every source layer that the layer map names and pre-RoPE keys; the
    /// result is pre-RoPE at the same positions.
    ///
    /// # Errors
    /// [`AlignError::Block`] when a block does not suit or the target model's own is needed and not
    /// there, [`AlignError::NotFinite`] when one holds a NaN or an infinity.
    pub fn map<'a>(&self, from: impl Into<Sources<'a>>) -> Result<KvBlock, AlignError> {
        self.map_layers(from, 0..self.target.shape.num_layers)
    }

    /// Maps some target layers, for example the next one while later source layers are still
    /// being computed.
    ///
    /// # Errors
    /// As for [`Self::map`], and [`AlignError::LayerMap`] for layers that do not exist.
    pub fn map_layers<'a>(
        &self,
        from: impl Into<Sources<'a>>,
        layers: Range<usize>,
    ) -> Result<KvBlock, AlignError> {
        let from = from.into();
        let target = &self.target;
        let block = if self.parts.is_empty() {
            from.own()?
        } else {
            check_kind(&self.source, self.states, from.source)?;
            check_end("source", &read_end(&self.source, self.states), from.source)?;
            from.source
        };
        if self.reads_own() {
            check_end("target", target, from.own()?)?;
        }
        if layers.is_empty() || layers.end > target.shape.num_layers {
            let reason = format!(
                "layers {layers:?} of {} target layers",
                target.shape.num_layers
            );
            return Err(AlignError::LayerMap { reason });
        }
        let side = || vec![f16::ZERO; block.num_tokens() * target.shape.width()];
        let begun = |layer: usize| match self.reads_own() {
            true => {
                let own = from.own()?;
                let missing = || AlignError::Block {
                    end: "target",
                    expected: format!("layer {layer}"),
                    found: format!("layers {:?}", own.layer_range()),
                };
                own.layer(layer).cloned().ok_or_else(missing)
            }
            false => Ok(LayerKv {
                k: side(),
                v: side(),
            }),
        };
        let mut mapped: Vec<LayerKv> = layers.clone().map(begun).collect::<Result<_, _>>()?;
        for part in &self.parts {
            let before = |end| part.outputs.partition_point(|slot| slot.layer < end);
            let outputs = before(layers.start)..before(layers.end);
            if !outputs.is_empty() {
                self.map_part(part, outputs, from, layers.start, &mut mapped)?;
            }
        }
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
        self.behind_first_tokens(KvBlock::from_spec(spec, mapped)?, from.tokens)
    }

    /// Layers of the target model's KV of a context behind the first tokens that the bridge holds, tuned
    /// where they were; the same layers where it holds none of the context's.
    ///
    /// # Errors
    /// [`AlignError::Block`] for KV of another shape.
    pub fn behind_first_tokens(
        &self,
        mut block: KvBlock,
        context: &[u32],
    ) -> Result<KvBlock, AlignError> {
        if let Some(prefix) = &self.prefix
            && block.positions().start == 0
        {
            let held = context.len().min(block.num_tokens());
            let (count, known) = prefix.of(&context[..held]);
            if count > 0 {
                let known = known.slice_layers(block.layer_range())?;
                block.replace_tokens(0..count, &known)?;
            }
        }
        Ok(block)
    }

    /// Maps some outputs of a part into layers that begin at `first_layer`.
    fn map_part(
        &self,
        part: &Part,
        outputs: Range<usize>,
        from: Sources<'_>,
        first_layer: usize,
        mapped: &mut [LayerKv],
    ) -> Result<(), AlignError> {
        let residual = !part.own.is_empty();
        let (seq_len, head_dim) = (from.source.num_tokens(), self.target.shape.head_dim);
        let columns = outputs.start * head_dim..outputs.end * head_dim;
        let slots = &part.outputs[outputs];
        let (mut x, mut y) = (Vec::new(), Vec::new());
        let mut in_bytes = None;
        for start in (0..seq_len).step_by(BLOCK_ROWS) {
            let tokens = start..(start + BLOCK_ROWS).min(seq_len);
            part.gather(from, tokens.clone(), &mut x)?;
            if start == 0 {
                in_bytes = part.affine.in_bytes(&x);
            }
            match &in_bytes {
                Some(map) => map.predict(&x, columns.clone(), &mut y),
                None => {
                    y.resize(tokens.len() * columns.len(), 0.0);
                    part.affine.predict(&x, columns.clone(), &mut y)?;
                }
            }
            // A saturated number is an outlier that the target model can still use; a NaN, which
            // comes from one in the source, is not.
            if y.iter().any(|number| number.is_nan()) {
                return Err(AlignError::NotFinite {
                    what: "mapped rows".to_owned(),
                });
            }
            for (token, row) in tokens.zip(y.chunks_exact_mut(columns.len())) {
                let heads = row.chunks_exact_mut(head_dim).enumerate();
                for ((index, numbers), slot) in heads.zip(slots) {
                    let gain = match slot.side {
                        KvSide::K => self.k_gain,
                        KvSide::V => self.v_gain,
                    };
                    let column = columns.start + index * head_dim;
                    part.affine.stretch(numbers, column, gain);
                    let side = slot.side.of_mut(&mut mapped[slot.layer - first_layer]);
                    let place = (slot.head * seq_len + token) * head_dim;
                    let place = &mut side[place..][..head_dim];
                    if residual {
                        let own = place.iter().map(|own| own.to_f32());
                        numbers.iter_mut().zip(own).for_each(|(y, own)| *y += own);
                    }
                    numbers
                        .iter_mut()
                        .for_each(|number| *number = number.clamp(-65504.0, 65504.0));
                    place.convert_from_f32_slice(numbers);
                }
            }
        }
        Ok(())
    }

    /// The file's content. Equal bridges give equal bytes.
    ///
    /// # Errors
    /// [`BridgeError::Header`] or [`BridgeError::Container`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, BridgeError> {
        let part = |part: &Part| PartHeader {
            inputs: part.inputs.clone(),
            own: part.own.clone(),
            outputs: part.outputs.clone(),
            rank: match part.affine.weights() {
                Weights::Dense(_) => None,
                Weights::Factored { down, .. } => Some(down.columns()),
            },
        };
        let header = Header {
            schema_version: SCHEMA_VERSION,
            source: self.source,
            target: self.target,
            states: self.states,
            alignment: self.alignment.clone(),
            tokens: self.tokens,
            mapping: self.mapping.clone(),
            storage: self.storage,
            k_gain: self.k_gain,
            v_gain: self.v_gain,
            manifest: self.manifest.clone(),
            parts: self.parts.iter().map(part).collect(),
            prefix: self.prefix.as_ref().map(|prefix| PrefixHeader {
                tokens: prefix.tokens().to_vec(),
                tuned: prefix.tuned().is_some(),
            }),
        };
        let header = serde_json::to_string(&header).map_err(|error| BridgeError::Header {
            reason: error.to_string(),
        })?;
        let mut tensors = Vec::new();
        for (index, part) in self.parts.iter().enumerate() {
            let affine = &part.affine;
            match affine.weights() {
                Weights::Dense(weight) => write_matrix(&mut tensors, index, "weight", weight),
                Weights::Factored { down, up } => {
                    write_matrix(&mut tensors, index, "down", down);
                    write_matrix(&mut tensors, index, "up", up);
                }
            }
            write_numbers(&mut tensors, index, "bias", &affine.bias);
            write_numbers(&mut tensors, index, "mean", &affine.mean);
        }
        if let Some(prefix) = &self.prefix {
            write_block(&mut tensors, "exact", prefix.exact());
            if let Some(tuned) = prefix.tuned() {
                write_block(&mut tensors, "tuned", tuned);
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
        let unreadable = |error: serde_json::Error| malformed(error.to_string());
        // Before all else: headers of other versions have other fields.
        let Version { schema_version } = serde_json::from_str(header).map_err(unreadable)?;
        if !(OLDEST_VERSION..=SCHEMA_VERSION).contains(&schema_version) {
            return Err(malformed(format!(
                "schema version {schema_version}, known are {OLDEST_VERSION} to {SCHEMA_VERSION}; \
                 fit the bridge again"
            )));
        }
        let header: Header = serde_json::from_str(header).map_err(unreadable)?;
        check_header(&header).map_err(malformed)?;
        let tensors = SafeTensors::deserialize(bytes)?;
        let mut reader = Reader {
            tensors: &tensors,
            storage: header.storage,
            read: 0,
        };
        let read = read_end(&header.source, header.states);
        let mut parts = Vec::with_capacity(header.parts.len());
        for (index, part) in header.parts.into_iter().enumerate() {
            let (p, q) = part.widths(read.shape, header.target.shape);
            let affine = reader.affine(index, p, q, part.rank)?;
            parts.push(Part {
                inputs: part.inputs,
                own: part.own,
                outputs: part.outputs,
                affine,
            });
        }
        let prefix = match header.prefix {
            Some(prefix) => Some(reader.prefix(prefix, &header.target)?),
            None => None,
        };
        // All expected tensors are there, so a larger number means superfluous ones.
        let expected = reader.read;
        if tensors.len() != expected {
            let reason = format!("{} tensors, {expected} are expected", tensors.len());
            return Err(BridgeError::Tensor {
                name: "*".to_owned(),
                reason,
            });
        }
        Ok(Self {
            source: header.source,
            target: header.target,
            states: header.states,
            alignment: header.alignment,
            tokens: header.tokens,
            mapping: header.mapping,
            storage: header.storage,
            k_gain: header.k_gain,
            v_gain: header.v_gain,
            manifest: header.manifest,
            parts,
            prefix,
        })
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

fn valid_gain(gain: f32) -> bool {
    gain > 0.0 && gain <= 16.0
}

fn check_header(header: &Header) -> Result<(), String> {
    let Header {
        source,
        target,
        manifest,
        parts,
        ..
    } = header;
    let read = read_end(source, header.states);
    for end in [source, target, &read] {
        end.shape.validate(1).map_err(|error| error.to_string())?;
    }
    // What a trained map reads, only the header says.
    let kind = header.mapping.method().reads();
    let states = header.states.is_some();
    if !header.mapping.is_trained() && (kind == SourceKind::States) != states {
        let has = if states { "a" } else { "no" };
        return Err(format!(
            "a mapping that reads {kind}, and {has} shape of states"
        ));
    }
    let num_layers = target.shape.num_layers;
    if manifest.layers.len() != num_layers {
        return Err(format!(
            "scores of {} layers of {num_layers}",
            manifest.layers.len()
        ));
    }
    if !valid_gain(header.k_gain) || !valid_gain(header.v_gain) {
        return Err(format!("gains {} and {}", header.k_gain, header.v_gain));
    }
    let mut written: Vec<Slot> = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        check_part(part, read.shape, target.shape)
            .map_err(|reason| format!("part {index} {reason}"))?;
        written.extend(&part.outputs);
    }
    written.sort_unstable();
    if let Some(twice) = written.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("two parts write {}", twice[0]));
    }
    if parts.iter().any(|part| part.own.is_empty()) && parts.iter().any(|part| !part.own.is_empty())
    {
        return Err("some parts add to the target's own KV, and others replace it".to_owned());
    }
    // All of them exist and none is there twice, so their number says whether one is missing.
    let expected = num_layers * KvSide::ALL.len() * target.shape.num_kv_heads;
    // Without parts the target's own KV stays as it is; only a prefix changes anything then.
    let own_alone = parts.is_empty() && header.prefix.is_some();
    if let Some(prefix) = &header.prefix
        && !(1..=MAX_PREFIX_TOKENS).contains(&prefix.tokens.len())
    {
        return Err(format!("a prefix of {} tokens", prefix.tokens.len()));
    }
    if written.len() != expected && !own_alone {
        return Err(format!("{} of {expected} heads are written", written.len()));
    }
    Ok(())
}

fn check_part(part: &PartHeader, source: KvShape, target: KvShape) -> Result<(), String> {
    if part.inputs.is_empty() || part.outputs.is_empty() {
        return Err("reads or writes nothing".to_owned());
    }
    let missing = |slots: &[Slot], shape| slots.iter().copied().find(|slot| !slot.is_in(shape));
    if let Some(slot) = missing(&part.inputs, source) {
        return Err(format!("reads {slot}, which the source lacks"));
    }
    if let Some(slot) = missing(&part.outputs, target) {
        return Err(format!("writes {slot}, which the target lacks"));
    }
    if let Some(slot) = missing(&part.own, target) {
        return Err(format!("reads {slot}, which the target lacks"));
    }
    if !part.outputs.is_sorted_by(|a, b| a < b) {
        return Err("writes heads out of order".to_owned());
    }
    for read in [&part.inputs, &part.own] {
        let mut read = read.clone();
        read.sort_unstable();
        if read.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("reads a head twice".to_owned());
        }
    }
    let (p, q) = part.widths(source, target);
    match part.rank {
        Some(rank) if rank == 0 || rank > p || rank > q => {
            Err(format!("has rank {rank} between widths {p} and {q}"))
        }
        _ => Ok(()),
    }
}

impl PartHeader {
    /// Numbers of a row that is read, and of one that is written.
    const fn widths(&self, source: KvShape, target: KvShape) -> (usize, usize) {
        (
            self.inputs.len() * source.head_dim + self.own.len() * target.head_dim,
            self.outputs.len() * target.head_dim,
        )
    }
}

/// Name, type, shape and bytes of a tensor.
type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

fn tensor_name(part: usize, what: &str) -> String {
    format!("parts.{part}.{what}")
}

fn write_numbers(tensors: &mut Vec<Tensor>, part: usize, what: &str, numbers: &[f32]) {
    let bytes = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    let shape = vec![numbers.len()];
    tensors.push((tensor_name(part, what), Dtype::F32, shape, bytes));
}

fn write_matrix(tensors: &mut Vec<Tensor>, part: usize, what: &str, matrix: &Matrix) {
    let (name, shape) = (
        tensor_name(part, what),
        vec![matrix.rows(), matrix.columns()],
    );
    if let Some((codes, scales)) = matrix.codes() {
        let bytes = codes.iter().map(|code| code.cast_unsigned()).collect();
        tensors.push((name, Dtype::I8, shape, bytes));
        write_numbers(tensors, part, &format!("{what}.rows"), &scales.rows);
        write_numbers(tensors, part, &format!("{what}.columns"), &scales.columns);
    } else {
        let mut halves = vec![f16::ZERO; matrix.numbers().len()];
        halves.convert_from_f32_slice(matrix.numbers());
        let mut bytes = vec![0; halves.len() * 2];
        write_f16_le(&halves, &mut bytes);
        tensors.push((name, Dtype::F16, shape, bytes));
    }
}

fn prefix_name(which: &str, side: KvSide) -> String {
    let side = match side {
        KvSide::K => 'k',
        KvSide::V => 'v',
    };
    format!("prefix.{which}.{side}")
}

fn write_block(tensors: &mut Vec<Tensor>, which: &str, block: &KvBlock) {
    let shape = block.shape();
    let dims = vec![
        shape.num_layers,
        shape.num_kv_heads,
        block.num_tokens(),
        shape.head_dim,
    ];
    for side in KvSide::ALL {
        let layers = block.layers().iter();
        let halves: Vec<f16> = layers.flat_map(|layer| side.of(layer)).copied().collect();
        let mut bytes = vec![0; halves.len() * 2];
        write_f16_le(&halves, &mut bytes);
        tensors.push((prefix_name(which, side), Dtype::F16, dims.clone(), bytes));
    }
}

/// Reads tensors of the types and shapes that the header says, and counts them.
struct Reader<'a> {
    tensors: &'a SafeTensors<'a>,
    storage: Storage,
    read: usize,
}

impl Reader<'_> {
    fn affine(
        &mut self,
        part: usize,
        p: usize,
        q: usize,
        rank: Option<usize>,
    ) -> Result<Affine, BridgeError> {
        let weights = match rank {
            None => Weights::Dense(self.matrix(part, "weight", self.storage.last(), p, q)?),
            Some(rank) => Weights::Factored {
                down: self.matrix(part, "down", self.storage.first(), p, rank)?,
                up: self.matrix(part, "up", self.storage.last(), rank, q)?,
            },
        };
        let bias = self.numbers(part, "bias", q)?;
        Ok(Affine::of(weights, bias, self.numbers(part, "mean", q)?))
    }

    fn matrix(
        &mut self,
        part: usize,
        what: &str,
        storage: Storage,
        rows: usize,
        columns: usize,
    ) -> Result<Matrix, BridgeError> {
        let shape = [rows, columns];
        let matrix = match storage {
            Storage::F16 | Storage::Int8Down => {
                let data = self.bytes(&tensor_name(part, what), Dtype::F16, &shape)?;
                let mut halves = vec![f16::ZERO; data.len() / 2];
                read_f16_le(data, &mut halves);
                Matrix::new(rows, columns, halves.to_f32_vec(), None)
            }
            Storage::Int8 => {
                let data = self.bytes(&tensor_name(part, what), Dtype::I8, &shape)?;
                let codes: Vec<i8> = data.iter().map(|byte| byte.cast_signed()).collect();
                let scales = Scales {
                    rows: self.numbers(part, &format!("{what}.rows"), rows)?,
                    columns: self.numbers(part, &format!("{what}.columns"), columns)?,
                };
                Matrix::from_codes(rows, columns, &codes, scales)
            }
        };
        finite(part, what, matrix.numbers())?;
        Ok(matrix)
    }

    fn numbers(&mut self, part: usize, what: &str, len: usize) -> Result<Vec<f32>, BridgeError> {
        let data = self.bytes(&tensor_name(part, what), Dtype::F32, &[len])?;
        let words = data.as_chunks::<4>().0.iter();
        let numbers: Vec<f32> = words.map(|word| f32::from_le_bytes(*word)).collect();
        finite(part, what, &numbers)?;
        Ok(numbers)
    }

    /// The prefix's KV, a block of the whole target model.
    fn prefix(
        &mut self,
        header: PrefixHeader,
        target: &BridgeEnd,
    ) -> Result<CommonPrefix, BridgeError> {
        let malformed = |error: AlignError| BridgeError::Header {
            reason: format!("its prefix: {error}"),
        };
        let exact = self.block("exact", header.tokens.len(), target)?;
        let prefix = CommonPrefix::new(header.tokens, exact).map_err(malformed)?;
        if !header.tuned {
            return Ok(prefix);
        }
        let tuned = self.block("tuned", prefix.tokens().len(), target)?;
        prefix.with_tuned(tuned).map_err(malformed)
    }

    fn block(
        &mut self,
        which: &str,
        tokens: usize,
        end: &BridgeEnd,
    ) -> Result<KvBlock, BridgeError> {
        let shape = end.shape;
        let dims = [shape.num_layers, shape.num_kv_heads, tokens, shape.head_dim];
        let mut side = |side| -> Result<Vec<f16>, BridgeError> {
            let data = self.bytes(&prefix_name(which, side), Dtype::F16, &dims)?;
            let mut halves = vec![f16::ZERO; data.len() / 2];
            read_f16_le(data, &mut halves);
            Ok(halves)
        };
        let (k, v) = (side(KvSide::K)?, side(KvSide::V)?);
        let each = tokens * shape.width();
        let layers = k.chunks_exact(each).zip(v.chunks_exact(each));
        let layers = layers.map(|(k, v)| LayerKv {
            k: k.to_vec(),
            v: v.to_vec(),
        });
        let spec = BlockSpec {
            fingerprint: end.fingerprint,
            shape,
            first_layer: 0,
            positions: 0..tokens,
            rope: KeyRope::Pre,
        };
        KvBlock::from_spec(spec, layers.collect()).map_err(|error| BridgeError::Header {
            reason: format!("its prefix: {error}"),
        })
    }

    /// The container has checked that the data are as long as type and shape say.
    fn bytes(&mut self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<&[u8], BridgeError> {
        let view = self.tensors.tensor(name)?;
        if view.dtype() != dtype || view.shape() != shape {
            let found = format!("{:?} {:?}", view.dtype(), view.shape());
            let reason = format!("{found} where the header needs {dtype:?} {shape:?}");
            let name = name.to_owned();
            return Err(BridgeError::Tensor { name, reason });
        }
        self.read += 1;
        Ok(view.data())
    }
}

fn finite(part: usize, what: &str, numbers: &[f32]) -> Result<(), BridgeError> {
    if numbers.iter().all(|number| number.is_finite()) {
        return Ok(());
    }
    let (name, reason) = (
        tensor_name(part, what),
        "holds a NaN or an infinity".to_owned(),
    );
    Err(BridgeError::Tensor { name, reason })
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
        bridge.set_cost(Some(FitCost {
            fit_s: Some(312.7),
            train_s: 0.1,
            threads: 2,
        }));
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

    /// KV of the first target tokens, each number telling its place.
    fn first_tokens(count: usize, sign: f32) -> KvBlock {
        let (_, target) = ends();
        let side = || {
            let places = 0..target.shape.width() * count;
            places.map(|i| f16::from_f32(sign * i as f32)).collect()
        };
        let layer = |_| LayerKv {
            k: side(),
            v: side(),
        };
        let layers = (0..target.shape.num_layers).map(layer).collect();
        let positions = 0..count;
        KvBlock::new(
            target.fingerprint,
            target.shape,
            0,
            positions,
            KeyRope::Pre,
            layers,
        )
        .unwrap()
    }

    #[test]
    fn first_tokens_are_those_that_the_bridge_holds() {
        let (exact, tuned) = (first_tokens(3, 1.0), first_tokens(3, -1.0));
        let prefix = CommonPrefix::new(vec![7, 8, 9], exact.clone()).unwrap();
        let plain = fitted();
        let with = |prefix: &CommonPrefix| plain.clone().with_prefix(prefix.clone()).unwrap();
        let block = source_block(6, 1);
        let mapped = |bridge: &Bridge, tokens: &[u32]| {
            let from = Sources {
                source: &block,
                own: None,
                tokens,
            };
            bridge.map(from).unwrap()
        };
        let without = plain.map(&block).unwrap();
        let begins = |first: &KvBlock, count: usize| {
            let mut expected = without.clone();
            expected.replace_tokens(0..count, first).unwrap();
            expected
        };
        let whole = [7, 8, 9, 1, 1, 1];
        let bridge = with(&prefix);
        assert_eq!(mapped(&bridge, &whole), begins(&exact, 3));
        assert_eq!(mapped(&bridge, &[7, 8, 1, 1, 1, 1]), begins(&exact, 2));
        assert_eq!(mapped(&bridge, &[1; 6]), without);
        assert_eq!(mapped(&bridge, &[]), without);
        // One layer at a time is the same.
        let from = Sources {
            source: &block,
            own: None,
            tokens: &whole,
        };
        let last = bridge.map_layers(from, 1..2).unwrap();
        assert_eq!(last, begins(&exact, 3).slice_layers(1..2).unwrap());
        // Tuned first tokens serve contexts that begin with all of them.
        let prefix = prefix.with_tuned(tuned.clone()).unwrap();
        let bridge = with(&prefix);
        assert_eq!(mapped(&bridge, &whole), begins(&tuned, 3));
        assert_eq!(mapped(&bridge, &[7, 8, 1, 1, 1, 1]), begins(&exact, 2));
        let read = Bridge::from_bytes(&bridge.to_bytes().unwrap()).unwrap();
        assert_eq!(read, bridge);
        assert_eq!(read.prefix(), Some(&prefix));
        for refused in [
            CommonPrefix::new(vec![7, 8], exact.clone()),
            CommonPrefix::new(vec![1; MAX_PREFIX_TOKENS + 1], exact.clone()),
            CommonPrefix::new(vec![7, 8, 9], exact.clone())
                .unwrap()
                .with_tuned(first_tokens(2, 1.0)),
        ] {
            assert!(refused.is_err());
        }
        let foreign = CommonPrefix::new(vec![1; 6], block.clone()).unwrap();
        assert!(plain.clone().with_prefix(foreign).is_err());
    }

    #[test]
    fn gains_act_and_are_bounded() {
        let mut bridge = fitted();
        let block = source_block(6, 1);
        let plain = bridge.map(&block).unwrap();
        bridge.set_gains(2.0, 1.0).unwrap();
        let stretched = bridge.map(&block).unwrap();
        assert_eq!(plain.layers()[0].v, stretched.layers()[0].v);
        let mean = bridge.parts()[0].affine.mean[0];
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

        let older = Bridge::from_bytes(&with_header(|_| ())).unwrap();
        assert_eq!(
            older.manifest().cost,
            None,
            "files that do not say are read"
        );
        let refused = |change: &dyn Fn(&mut serde_json::Value)| {
            Bridge::from_bytes(&with_header(change)).unwrap_err()
        };
        for (pointer, value) in [
            ("/schema_version", json!(1)),
            ("/schema_version", json!(4)),
            ("/mapping", json!("magic")),
            ("/storage", json!("bf16")),
            ("/parts", json!([])),
            ("/parts/1/inputs/0", json!("v3.0")),
            ("/parts/1/inputs/0", json!("v0.1")),
            ("/parts/1/inputs/0", json!("x0.1")),
            ("/parts/1/inputs", json!([])),
            ("/parts/1/outputs", json!(["k0.0", "k0.1"])),
            ("/parts/1/outputs", json!(["v0.0"])),
            ("/parts/1/outputs", json!(["v0.1", "v0.0"])),
            ("/parts/1/outputs/1", json!("v9.0")),
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
        let states = json!({"num_layers": 4, "num_kv_heads": 1, "head_dim": 8});
        for (name, value) in [("surprise", json!(1)), ("states", states)] {
            let error = refused(&|header| header[name] = value.clone());
            assert!(matches!(error, BridgeError::Header { .. }), "{error:?}");
        }
        for (pointer, value) in [
            ("/source/shape/head_dim", json!(16)),
            ("/parts/1/inputs", json!(["v0.0", "v0.1", "v1.0"])),
            ("/storage", json!("int8")),
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
