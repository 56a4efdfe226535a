//! Scores of a context's tokens from the model's own attention, for codecs that leave tokens out.
//!
//! The formulas are in [`celslm_kv::codec::scores`]; here the statistics that they need are
//! gathered, one layer at a time, while the context runs through the model.

use crate::{Decoder, KeyRetention, KvCache, ModelError, Observed};
use celslm_kv::codec::{ScoredBy, TokenScores, scores};

/// Last tokens of the context whose queries `SnapKV` and `H2O` treat apart, as in kvpress.
const WINDOW: usize = 64;
/// Tokens over which `SnapKV` smooths.
const KERNEL: usize = 5;
/// First tokens that expected attention keeps, and leaves out of its statistics: they attract
/// attention whatever they say, and their queries are unlike all others.
const SINKS: usize = 4;
/// Positions behind the context at which the expected queries stand.
const FUTURE: usize = 512;
/// Queries whose attention is held at once.
const ROWS: usize = 64;

impl Decoder {
    /// Scores of the context's tokens in every layer. Runs the context through the model.
    ///
    /// # Errors
    /// As [`Decoder::forward_layer`].
    pub fn token_scores(&self, tokens: &[u32], by: ScoredBy) -> Result<TokenScores, ModelError> {
        let mut cache = KvCache::new(
            self.kv_shape(),
            None,
            tokens.len(),
            KeyRetention::RotatedOnly,
        )?;
        let mut layers = Vec::with_capacity(self.kv_shape().num_layers);
        self.observe(tokens, &mut cache, |observed| {
            layers.push(match by {
                ScoredBy::SnapKv => {
                    let first = tokens.len().saturating_sub(WINDOW);
                    let attention = self.attention(observed, first..tokens.len());
                    scores::snapkv(&attention, tokens.len(), KERNEL)
                }
                ScoredBy::H2o => scores::h2o(self.received(observed, tokens.len()), WINDOW),
                ScoredBy::ExpectedAttention => self.expected(observed, tokens.len()),
            });
        })?;
        TokenScores::new(0, 0, layers).map_err(|error| ModelError::Kv(error.to_string()))
    }

    /// The attention that each of a context's tokens receives from a query that sees it, averaged
    /// over queries, heads and layers: `[tokens]`. What the context's own later tokens look at
    /// stands for what a question will.
    ///
    /// # Errors
    /// Failures of the forward pass.
    pub fn attention_received(&self, tokens: &[u32]) -> Result<Vec<f32>, ModelError> {
        let shape = self.kv_shape();
        let mut cache = KvCache::new(shape, None, tokens.len(), KeyRetention::RotatedOnly)?;
        let mut mean = vec![0f32; tokens.len()];
        self.observe(tokens, &mut cache, |observed| {
            let received = self.received(observed, tokens.len());
            for (index, (mean, received)) in mean.iter_mut().zip(received).enumerate() {
                *mean += received / ((tokens.len() - index) * shape.num_layers) as f32;
            }
        })?;
        Ok(mean)
    }

    /// The attention that each token of one layer receives from all queries, averaged over heads.
    fn received(&self, observed: &Observed<'_>, tokens: usize) -> Vec<f32> {
        let mut received = vec![0f32; tokens];
        for first in (0..tokens).step_by(ROWS) {
            let attention = self.attention(observed, first..(first + ROWS).min(tokens));
            for row in attention.chunks_exact(tokens) {
                for (sum, share) in received.iter_mut().zip(row) {
                    *sum += share;
                }
            }
        }
        received
    }

    /// Causal attention of some of the context's queries, `[rows, tokens]`, averaged over heads.
    fn attention(&self, observed: &Observed<'_>, rows: std::ops::Range<usize>) -> Vec<f32> {
        let config = self.config();
        let (num_heads, head_dim) = (config.num_attention_heads, config.head_dim);
        let group = num_heads / config.num_key_value_heads;
        let keys = observed.cache.rotated_keys(observed.layer);
        let tokens = observed.cache.len(observed.layer);
        let scale = (head_dim as f32).sqrt().recip();
        let mut mean = vec![0f32; rows.len() * tokens];
        let mut logits = vec![0f32; tokens];
        for (row, out) in rows.zip(mean.chunks_exact_mut(tokens)) {
            for head in 0..num_heads {
                let query = &observed.queries[(row * num_heads + head) * head_dim..][..head_dim];
                let keys = keys[head / group * tokens * head_dim..].chunks_exact(head_dim);
                let seen = &mut logits[..=row];
                for (logit, key) in seen.iter_mut().zip(keys) {
                    *logit = dot(query, key) * scale;
                }
                let top = seen.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                for logit in &mut *seen {
                    *logit = (*logit - top).exp();
                }
                let share = 1.0 / (seen.iter().sum::<f32>() * num_heads as f32);
                for (out, weight) in out.iter_mut().zip(&*seen) {
                    *out += weight * share;
                }
            }
        }
        mean
    }

    /// Expected attention of one layer, summed over query heads.
    fn expected(&self, observed: &Observed<'_>, tokens: usize) -> Vec<f32> {
        let config = self.config();
        let (num_heads, head_dim) = (config.num_attention_heads, config.head_dim);
        let group = num_heads / config.num_key_value_heads;
        let mut queries = observed.queries.to_vec();
        self.rope().rotate_back(&mut queries, num_heads, 0);
        let keys = observed.cache.rotated_keys(observed.layer);
        let values = observed.cache.values(observed.layer);
        let skip = SINKS.min(tokens.saturating_sub(1));
        let mut total = vec![0f32; tokens];
        for head in 0..num_heads {
            let rows = || {
                let at = move |token| (token * num_heads + head) * head_dim;
                let queries = &queries;
                (skip..tokens).map(move |token| &queries[at(token)..][..head_dim])
            };
            let (mut mean, mut covariance) = moments(rows, head_dim);
            let behind = tokens..tokens + FUTURE;
            self.rope().rotate_mean(&mut mean, behind.clone());
            // R C Rᵀ: C is symmetric, so rotating its rows twice, with a transposition between.
            self.rope().rotate_mean(&mut covariance, behind.clone());
            transpose(&mut covariance, head_dim);
            self.rope().rotate_mean(&mut covariance, behind);
            let kv = head / group * tokens * head_dim..(head / group + 1) * tokens * head_dim;
            let (k, v) = (&keys[kv.clone()], &values[kv]);
            let scores = scores::expected_attention(&mean, &covariance, k, v, 1, head_dim);
            for (total, score) in total.iter_mut().zip(scores) {
                *total += score;
            }
        }
        total[..skip].fill(f32::INFINITY);
        total
    }
}

/// Mean `[width]` and covariance `[width, width]` of rows.
fn moments<'a, I: Iterator<Item = &'a [f32]>>(
    rows: impl Fn() -> I,
    width: usize,
) -> (Vec<f32>, Vec<f32>) {
    let share = 1.0 / rows().count().max(1) as f32;
    let mut mean = vec![0f32; width];
    for row in rows() {
        for (mean, x) in mean.iter_mut().zip(row) {
            *mean += x * share;
        }
    }
    let mut covariance = vec![0f32; width * width];
    let mut centred = vec![0f32; width];
    for row in rows() {
        for ((centred, x), mean) in centred.iter_mut().zip(row).zip(&mean) {
            *centred = x - mean;
        }
        for (line, x) in covariance.chunks_exact_mut(width).zip(&centred) {
            for (sum, y) in line.iter_mut().zip(&centred) {
                *sum += x * y * share;
            }
        }
    }
    (mean, covariance)
}

fn transpose(matrix: &mut [f32], width: usize) {
    for i in 0..width {
        for j in 0..i {
            matrix.swap(i * width + j, j * width + i);
        }
    }
}

/// In sixteen lanes, so that it becomes vector code.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let (a, b) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a.0.iter().zip(b.0) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    let rest: f32 = a.1.iter().zip(b.1).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + rest
}
