//! The open KV cache: an immutable prefix that any number of sequences share, and a private
//! tail that grows.
//!
//! Both hold fp16. The pre-RoPE key, rounded to fp16, is the canonical value: the attention
//! copy is the rotation of exactly that value, so KV that was computed here and KV that was
//! computed elsewhere and imported uncompressed are the same bits.

use crate::{ModelError, RotaryEmbedding};
use celslm_kv::{KeyRope, KvBlock, KvShape, LayerKv, ModelFingerprint};
use half::f16;
use half::slice::HalfFloatSliceExt as _;
use std::sync::{Arc, OnceLock};

/// Whether a cache keeps pre-RoPE keys beside the rotated ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyRetention {
    /// Rotated keys only: enough to generate.
    RotatedOnly,
    /// Both: the cache can be read out as a [`KvBlock`].
    PreRope,
}

/// Tokens per page: memory grows by pages, and attention reads keys by the page.
pub(crate) const PAGE: usize = 16;

/// Keys (rotated) and values of one layer, in pages of [`PAGE`] tokens and, within a page, by
/// KV head. Keys of a page and head are transposed, `[head_dim, PAGE]`; values are
/// `[PAGE, head_dim]`. What lies beyond the last token is zero or forgotten.
pub(crate) struct LayerSegment {
    k: Vec<f16>,
    v: Vec<f16>,
    num_kv_heads: usize,
    head_dim: usize,
    /// Tokens.
    pub(crate) len: usize,
}

impl LayerSegment {
    pub(crate) fn new(num_kv_heads: usize, head_dim: usize) -> Self {
        Self {
            k: Vec::new(),
            v: Vec::new(),
            num_kv_heads,
            head_dim,
            len: 0,
        }
    }

    /// Bytes taken.
    fn bytes(&self) -> usize {
        (self.k.capacity() + self.v.capacity()) * size_of::<f16>()
    }

    /// Where a page of a head begins.
    fn at(&self, page: usize, kv_head: usize) -> usize {
        (page * self.num_kv_heads + kv_head) * PAGE * self.head_dim
    }

    /// Keys and values of a page and head.
    pub(crate) fn page(&self, page: usize, kv_head: usize) -> (&[f16], &[f16]) {
        let at = self.at(page, kv_head);
        let range = at..at + PAGE * self.head_dim;
        (&self.k[range.clone()], &self.v[range])
    }

    /// Appends tokens: rotated keys and values, `[num_kv_heads, tokens, head_dim]` each.
    pub(crate) fn append(&mut self, k: &[f16], v: &[f16], tokens: usize) {
        let head_dim = self.head_dim;
        let elements = (self.len + tokens).div_ceil(PAGE) * PAGE * self.num_kv_heads * head_dim;
        for store in [&mut self.k, &mut self.v] {
            if elements > store.len() {
                // Exact: what a session takes is what is counted.
                store.reserve_exact(elements - store.len());
                store.resize(elements, f16::ZERO);
            }
        }
        for kv_head in 0..self.num_kv_heads {
            for t in 0..tokens {
                let from = (kv_head * tokens + t) * head_dim;
                let token = self.len + t;
                let (page, slot) = (self.at(token / PAGE, kv_head), token % PAGE);
                for (d, key) in k[from..from + head_dim].iter().enumerate() {
                    self.k[page + d * PAGE + slot] = *key;
                }
                let to = page + slot * head_dim;
                self.v[to..to + head_dim].copy_from_slice(&v[from..from + head_dim]);
            }
        }
        self.len += tokens;
    }

    /// Values of some tokens, `[num_kv_heads, tokens, head_dim]`.
    fn values(&self, tokens: std::ops::Range<usize>) -> Vec<f16> {
        let mut values = Vec::with_capacity(self.num_kv_heads * tokens.len() * self.head_dim);
        for kv_head in 0..self.num_kv_heads {
            for token in tokens.clone() {
                let at = self.at(token / PAGE, kv_head) + token % PAGE * self.head_dim;
                values.extend_from_slice(&self.v[at..at + self.head_dim]);
            }
        }
        values
    }
}

/// The KV of a context at positions `0..len`, or of some of its tokens, shared by every sequence that continues it.
///
/// Layers may arrive one by one, in any order; a layer is set once.
pub struct KvPrefix {
    shape: KvShape,
    len: usize,
    layers: Vec<OnceLock<LayerSegment>>,
}

impl KvPrefix {
    /// An empty prefix of `len` tokens whose layers are still to come.
    pub fn new(shape: KvShape, len: usize) -> Self {
        Self {
            shape,
            len,
            layers: (0..shape.num_layers).map(|_| OnceLock::new()).collect(),
        }
    }

    /// Imports one layer: `layer_kv` is pre-RoPE, `[num_kv_heads, len, head_dim]`; its keys are
    /// rotated at positions `0..len`.
    ///
    /// # Errors
    /// [`ModelError::Kv`] for a wrong layer index or shape, or a layer that is already there.
    pub fn set_layer(
        &self,
        layer: usize,
        layer_kv: &LayerKv,
        rope: &RotaryEmbedding,
    ) -> Result<(), ModelError> {
        self.set_layer_held(layer, layer_kv, &[], rope)
    }

    /// Imports one layer without some of its tokens: as [`KvPrefix::set_layer`], but nothing
    /// attends to the positions `dropped` (ascending), whatever `layer_kv` has there, and no
    /// memory is taken for them. The others stay at their own positions.
    ///
    /// # Errors
    /// As [`KvPrefix::set_layer`], and for dropped positions out of order or range.
    pub fn set_layer_held(
        &self,
        layer: usize,
        layer_kv: &LayerKv,
        dropped: &[usize],
        rope: &RotaryEmbedding,
    ) -> Result<(), ModelError> {
        let slot = self.layers.get(layer).ok_or_else(|| {
            ModelError::Kv(format!(
                "layer {layer} of a model with {} layers",
                self.layers.len()
            ))
        })?;
        let elements = self.shape.num_kv_heads * self.len * self.shape.head_dim;
        if layer_kv.k.len() != elements || layer_kv.v.len() != elements {
            return Err(ModelError::Kv(format!(
                "layer {layer} has {} key and {} value elements, expected {elements} each",
                layer_kv.k.len(),
                layer_kv.v.len()
            )));
        }
        let mut k = vec![f16::ZERO; elements];
        if self.len > 0 {
            rope.rotate_keys(&layer_kv.k, &mut k, self.len, 0);
        }
        if !dropped.is_sorted_by(|a, b| a < b) || dropped.last().is_some_and(|t| *t >= self.len) {
            return Err(ModelError::Kv(format!(
                "the dropped tokens of layer {layer} are out of order or range"
            )));
        }
        let mut segment = LayerSegment::new(self.shape.num_kv_heads, self.shape.head_dim);
        if dropped.is_empty() {
            segment.append(&k, &layer_kv.v, self.len);
        } else {
            let held: Vec<usize> = (0..self.len)
                .filter(|token| dropped.binary_search(token).is_err())
                .collect();
            let gather = |x: &[f16]| -> Vec<f16> {
                let heads = x.chunks_exact(self.len * self.shape.head_dim);
                heads
                    .flat_map(|head| held.iter().map(move |token| (head, token)))
                    .flat_map(|(head, token)| {
                        &head[token * self.shape.head_dim..][..self.shape.head_dim]
                    })
                    .copied()
                    .collect()
            };
            segment.append(&gather(&k), &gather(&layer_kv.v), held.len());
        }
        slot.set(segment)
            .map_err(|_| ModelError::Kv(format!("layer {layer} arrived twice")))
    }

    /// Imports a whole pre-RoPE block that starts at position 0.
    ///
    /// # Errors
    /// [`ModelError::Kv`] when the block's shape, positions or key form do not fit.
    pub fn from_block(block: &KvBlock, rope: &RotaryEmbedding) -> Result<Self, ModelError> {
        if block.rope() != KeyRope::Pre || block.first_layer() != 0 || block.positions().start != 0
        {
            return Err(ModelError::Kv(
                "a prefix needs pre-RoPE keys of all layers from position 0".to_owned(),
            ));
        }
        let prefix = Self::new(block.shape(), block.positions().len());
        for (layer, layer_kv) in block.layers().iter().enumerate() {
            prefix.set_layer(layer, layer_kv, rope)?;
        }
        Ok(prefix)
    }

    /// Tokens of the prefix, whether or not a layer holds all of them.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the prefix holds no token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether every layer has arrived.
    pub fn is_complete(&self) -> bool {
        self.layers.iter().all(|layer| layer.get().is_some())
    }

    /// Whether a layer has arrived.
    pub fn has_layer(&self, layer: usize) -> bool {
        self.layers
            .get(layer)
            .is_some_and(|slot| slot.get().is_some())
    }

    /// Layers from the first on that have arrived without a gap.
    pub fn ready_layers(&self) -> usize {
        self.layers
            .iter()
            .take_while(|layer| layer.get().is_some())
            .count()
    }

    /// What a layer holds, for a model of this shape.
    pub(crate) fn segment(
        &self,
        layer: usize,
        shape: KvShape,
    ) -> Result<&LayerSegment, ModelError> {
        if self.shape != shape {
            return Err(ModelError::Kv(format!(
                "the prefix has shape {:?}, the model {shape:?}",
                self.shape
            )));
        }
        let segment = self.layers.get(layer).and_then(OnceLock::get);
        segment
            .ok_or_else(|| ModelError::Kv(format!("layer {layer} of the prefix has not arrived")))
    }

    /// Tokens that a layer holds; `None` before it has arrived.
    pub fn held(&self, layer: usize) -> Option<usize> {
        Some(self.layers.get(layer)?.get()?.len)
    }

    /// Bytes held now.
    pub fn bytes(&self) -> usize {
        self.layers
            .iter()
            .filter_map(OnceLock::get)
            .map(LayerSegment::bytes)
            .sum()
    }
}

/// The KV cache of one sequence.
pub struct KvCache {
    shape: KvShape,
    prefix: Option<Arc<KvPrefix>>,
    tail: Vec<LayerSegment>,
    /// Most tokens of the tail.
    capacity: usize,
    /// Pre-RoPE keys of the tail, per layer, `[tokens, num_kv_heads, head_dim]`.
    pre_rope: Option<Vec<Vec<f16>>>,
}

impl KvCache {
    /// An empty cache for up to `capacity` tokens after the prefix. Memory is taken as it
    /// fills, in pages of 16 tokens.
    ///
    /// # Errors
    /// [`ModelError::Kv`] when the prefix belongs to a model of another shape.
    pub fn new(
        shape: KvShape,
        prefix: Option<Arc<KvPrefix>>,
        capacity: usize,
        retention: KeyRetention,
    ) -> Result<Self, ModelError> {
        if let Some(prefix) = &prefix
            && prefix.shape != shape
        {
            return Err(ModelError::Kv(format!(
                "the prefix has shape {:?}, the model {shape:?}",
                prefix.shape
            )));
        }
        let tail = (0..shape.num_layers)
            .map(|_| LayerSegment::new(shape.num_kv_heads, shape.head_dim))
            .collect();
        Ok(Self {
            shape,
            prefix,
            tail,
            capacity,
            pre_rope: (retention == KeyRetention::PreRope)
                .then(|| vec![Vec::new(); shape.num_layers]),
        })
    }

    /// Shape of the model's KV.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Tokens that a layer has seen, prefix included: the position of the next one.
    pub fn len(&self, layer: usize) -> usize {
        self.prefix_len() + self.tail[layer].len
    }

    /// Whether no layer has seen a token.
    pub fn is_empty(&self) -> bool {
        self.prefix_len() == 0 && self.tail.iter().all(|layer| layer.len == 0)
    }

    /// The shared prefix that this cache continues.
    pub fn prefix(&self) -> Option<&Arc<KvPrefix>> {
        self.prefix.as_ref()
    }

    /// Bytes of KV held by this sequence alone.
    pub fn tail_bytes(&self) -> usize {
        let tail: usize = self.tail.iter().map(LayerSegment::bytes).sum();
        let pre_rope: usize = self
            .pre_rope
            .iter()
            .flatten()
            .map(|keys| keys.capacity() * size_of::<f16>())
            .sum();
        tail + pre_rope
    }

    /// Bytes of KV held, the shared prefix included.
    pub fn bytes(&self) -> usize {
        self.tail_bytes() + self.prefix.as_ref().map_or(0, |prefix| prefix.bytes())
    }

    /// Forgets the tail from position `len` on (prefix included in the count): the next token
    /// goes there. What came before is untouched.
    ///
    /// # Errors
    /// [`ModelError::Kv`] when `len` lies inside the shared prefix.
    pub fn truncate(&mut self, len: usize) -> Result<(), ModelError> {
        let tail = len.checked_sub(self.prefix_len()).ok_or_else(|| {
            ModelError::Kv("a shared prefix cannot be truncated by one of its users".to_owned())
        })?;
        let width = self.shape.num_kv_heads * self.shape.head_dim;
        for layer in &mut self.tail {
            layer.len = layer.len.min(tail);
        }
        for keys in self.pre_rope.iter_mut().flatten() {
            keys.truncate(tail * width);
        }
        Ok(())
    }

    fn prefix_len(&self) -> usize {
        self.prefix.as_ref().map_or(0, |prefix| prefix.len)
    }

    /// Appends tokens to a layer: `k` (pre-RoPE) and `v` are `[seq_len, num_kv_heads, head_dim]`
    /// in f32 and are rounded to fp16 here.
    ///
    /// # Errors
    /// [`ModelError::TooLong`] when the capacity is exceeded.
    pub(crate) fn append(
        &mut self,
        layer: usize,
        k: &[f32],
        v: &[f32],
        rope: &RotaryEmbedding,
    ) -> Result<(), ModelError> {
        let KvShape {
            num_kv_heads,
            head_dim,
            ..
        } = self.shape;
        let width = num_kv_heads * head_dim;
        let seq_len = k.len() / width;
        let first_position = self.len(layer);
        let segment = &mut self.tail[layer];
        if segment.len + seq_len > self.capacity {
            return Err(ModelError::TooLong {
                wanted: segment.len + seq_len,
                limit: self.capacity,
                what: "the capacity this cache was made with",
            });
        }
        // By head, as the cache keeps them, and rounded to fp16.
        let by_head = |x: &[f32]| {
            let mut out = vec![f16::ZERO; x.len()];
            for (t, token) in x.chunks_exact(width).enumerate() {
                for (head, x) in token.chunks_exact(head_dim).enumerate() {
                    let at = (head * seq_len + t) * head_dim;
                    out[at..at + head_dim].convert_from_f32_slice(x);
                }
            }
            out
        };
        let pre = by_head(k);
        let mut rotated = vec![f16::ZERO; pre.len()];
        rope.rotate_keys(&pre, &mut rotated, seq_len, first_position);
        segment.append(&rotated, &by_head(v), seq_len);
        if let Some(pre_rope) = &mut self.pre_rope {
            pre_rope[layer].extend(k.iter().map(|&k| f16::from_f32(k)));
        }
        Ok(())
    }

    /// Rotated keys of a layer's tail in f32, `[num_kv_heads, tokens, head_dim]`.
    pub(crate) fn rotated_keys(&self, layer: usize) -> Vec<f32> {
        let segment = &self.tail[layer];
        let head_dim = self.shape.head_dim;
        let mut keys = Vec::with_capacity(self.shape.num_kv_heads * segment.len * head_dim);
        for kv_head in 0..self.shape.num_kv_heads {
            for token in 0..segment.len {
                let (page, _) = segment.page(token / PAGE, kv_head);
                keys.extend((0..head_dim).map(|d| page[d * PAGE + token % PAGE].to_f32()));
            }
        }
        keys
    }

    /// Values of a layer's tail in f32, `[num_kv_heads, tokens, head_dim]`.
    pub(crate) fn values(&self, layer: usize) -> Vec<f32> {
        let segment = &self.tail[layer];
        let values = segment.values(0..segment.len);
        values.iter().map(|value| value.to_f32()).collect()
    }

    /// What attention reads at a layer: the prefix's segment, if any, then the tail's.
    ///
    /// # Errors
    /// [`ModelError::Kv`] when the prefix's layer has not arrived.
    pub(crate) fn segments(
        &self,
        layer: usize,
    ) -> Result<(Option<&LayerSegment>, &LayerSegment), ModelError> {
        let prefix = match &self.prefix {
            None => None,
            Some(prefix) => Some(prefix.layers[layer].get().ok_or_else(|| {
                ModelError::Kv(format!("layer {layer} of the prefix has not arrived"))
            })?),
        };
        Ok((prefix, &self.tail[layer]))
    }

    /// Reads the tail out as a pre-RoPE block over all layers and the given tail tokens
    /// (counted from the tail's start).
    ///
    /// # Errors
    /// [`ModelError::Kv`] when pre-RoPE keys were not kept or the range was not computed.
    pub fn read(
        &self,
        fingerprint: ModelFingerprint,
        tokens: std::ops::Range<usize>,
    ) -> Result<KvBlock, ModelError> {
        let Some(pre_rope) = &self.pre_rope else {
            return Err(ModelError::Kv(
                "this cache keeps rotated keys only".to_owned(),
            ));
        };
        let KvShape {
            num_kv_heads,
            head_dim,
            ..
        } = self.shape;
        let mut layers = Vec::with_capacity(self.tail.len());
        for (segment, keys) in self.tail.iter().zip(pre_rope) {
            if tokens.start > tokens.end || tokens.end > segment.len {
                return Err(ModelError::Kv(format!(
                    "tokens {tokens:?} of a tail with {} tokens",
                    segment.len
                )));
            }
            let width = num_kv_heads * head_dim;
            let mut k = Vec::with_capacity(tokens.len() * width);
            for kv_head in 0..num_kv_heads {
                for token in tokens.clone() {
                    let at = token * width + kv_head * head_dim;
                    k.extend_from_slice(&keys[at..at + head_dim]);
                }
            }
            layers.push(LayerKv {
                k,
                v: segment.values(tokens.clone()),
            });
        }
        let start = self.prefix_len() + tokens.start;
        KvBlock::new(
            fingerprint,
            self.shape,
            0,
            start..start + tokens.len(),
            KeyRope::Pre,
            layers,
        )
        .map_err(|error| ModelError::Kv(error.to_string()))
    }

    /// Turns a prefix-less cache into a shareable prefix, without keeping spare capacity.
    ///
    /// # Errors
    /// [`ModelError::Kv`] when the cache already continues a prefix or its layers differ in length.
    pub fn freeze(self) -> Result<KvPrefix, ModelError> {
        if self.prefix.is_some() {
            return Err(ModelError::Kv(
                "the cache already continues a prefix".to_owned(),
            ));
        }
        let len = self.tail.first().map_or(0, |layer| layer.len);
        if self.tail.iter().any(|layer| layer.len != len) {
            return Err(ModelError::Kv(
                "the layers have seen different tokens".to_owned(),
            ));
        }
        let prefix = KvPrefix::new(self.shape, len);
        for (slot, mut segment) in prefix.layers.iter().zip(self.tail) {
            segment.k.shrink_to_fit();
            segment.v.shrink_to_fit();
            // A fresh prefix's slots are empty.
            let _ = slot.set(segment);
        }
        Ok(prefix)
    }
}
