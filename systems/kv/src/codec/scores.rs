//! Scores of a context's tokens, for selections that keep the tokens with the highest.
//!
//! They come from attention statistics, which only the holder of the model has: it computes them
//! beside the KV and hands them to the encoder with the tile. They do not travel; the selection
//! itself does. The functions here turn statistics into scores as the cited papers do, averaged
//! over the heads of a layer: a tile keeps one set of tokens for all of its heads, where the
//! papers choose for each head apart.

use super::CodecError;

/// One score for every token of a context in every layer; higher is more important.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenScores {
    first_layer: usize,
    first_token: usize,
    layers: Vec<Vec<f32>>,
}

impl TokenScores {
    /// Scores by layer, `layers[i][t]` for absolute layer `first_layer + i` and absolute
    /// position `first_token + t`.
    ///
    /// # Errors
    /// [`CodecError::TileLength`] when the layers differ in length or are empty.
    pub fn new(
        first_layer: usize,
        first_token: usize,
        layers: Vec<Vec<f32>>,
    ) -> Result<Self, CodecError> {
        let expected = layers.first().map_or(1, |layer| layer.len().max(1));
        for found in layers.iter().map(Vec::len) {
            if found != expected {
                return Err(CodecError::TileLength {
                    side: "token scores",
                    expected,
                    found,
                });
            }
        }
        Ok(Self {
            first_layer,
            first_token,
            layers,
        })
    }

    /// The scores of an absolute layer and the absolute position of the first.
    #[must_use]
    pub fn layer(&self, layer: usize) -> Option<(usize, &[f32])> {
        let scores = self.layers.get(layer.checked_sub(self.first_layer)?)?;
        Some((self.first_token, scores))
    }
}

/// Scores of one layer by `SnapKV` (Li et al., arXiv 2404.14469): the attention that the last
/// `window` tokens of the context pay to each token, averaged over queries and heads, then
/// smoothed by a running maximum over `kernel` tokens (an odd number). The window itself is kept.
///
/// `attention` is `[queries, tokens]`, the probabilities of the window's queries averaged over
/// heads. Loses where the question asks for something that the end of the context does not.
#[must_use]
pub fn snapkv(attention: &[f32], tokens: usize, kernel: usize) -> Vec<f32> {
    let queries = attention.len() / tokens.max(1);
    let mean = column_means(attention, tokens);
    let half = kernel / 2;
    (0..tokens)
        .map(|token| {
            if token + queries >= tokens {
                return f32::INFINITY;
            }
            let run = token.saturating_sub(half)..(token + half + 1).min(tokens - queries);
            mean[run].iter().copied().fold(0.0, f32::max)
        })
        .collect()
}

/// Scores of one layer by `H2O` (Zhang et al., arXiv 2306.14048): the attention that each token
/// has received from all later tokens of the context; the last `recent` tokens are kept.
///
/// `received` is `[tokens]`: the attention that a token got from every query, itself included,
/// averaged over heads. Loses for long contexts, whose early tokens collect more attention merely
/// by being seen more often.
#[must_use]
pub fn h2o(mut received: Vec<f32>, recent: usize) -> Vec<f32> {
    let start = received.len().saturating_sub(recent);
    received[start..].fill(f32::INFINITY);
    received
}

/// Scores of one layer by expected attention (Devoto et al., arXiv 2510.00636): the attention
/// that a query drawn from a normal distribution is expected to pay to each key, times the norm
/// of its value. Averaged over KV heads.
///
/// `mean` is `[num_kv_heads, head_dim]` and `covariance` `[num_kv_heads, head_dim, head_dim]`,
/// of the queries behind the context; `k` and `v` are `[num_kv_heads, tokens, head_dim]`. Keys
/// and queries must stand in one frame, that is, both be rotated. Loses where queries are far
/// from normal.
#[must_use]
pub fn expected_attention(
    mean: &[f32],
    covariance: &[f32],
    k: &[f32],
    v: &[f32],
    num_kv_heads: usize,
    head_dim: usize,
) -> Vec<f32> {
    let tokens = k.len() / (num_kv_heads * head_dim).max(1);
    let mut scores = vec![0.0; tokens];
    let scale = (head_dim as f32).sqrt().recip();
    for head in 0..num_kv_heads {
        let mean = &mean[head * head_dim..][..head_dim];
        let covariance = &covariance[head * head_dim * head_dim..][..head_dim * head_dim];
        let run = head * tokens * head_dim..(head + 1) * tokens * head_dim;
        let logits: Vec<f32> = k[run.clone()]
            .chunks_exact(head_dim)
            .map(|key| {
                let spread: f32 = covariance
                    .chunks_exact(head_dim)
                    .zip(key)
                    .map(|(row, x)| x * dot(row, key))
                    .sum();
                dot(mean, key) * scale + spread * scale * scale / 2.0
            })
            .collect();
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f32> = logits.iter().map(|logit| (logit - top).exp()).collect();
        let total: f32 = weights.iter().sum();
        let values = v[run].chunks_exact(head_dim);
        for ((score, weight), value) in scores.iter_mut().zip(&weights).zip(values) {
            *score += weight / total * dot(value, value).sqrt();
        }
    }
    scores
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn column_means(matrix: &[f32], columns: usize) -> Vec<f32> {
    let rows = matrix.chunks_exact(columns.max(1));
    let share = 1.0 / rows.len().max(1) as f32;
    let mut means = vec![0.0; columns];
    for row in rows {
        means
            .iter_mut()
            .zip(row)
            .for_each(|(mean, x)| *mean += x * share);
    }
    means
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapkv_keeps_its_window_and_smooths() {
        // Two queries over five tokens; token 1 is looked at.
        let attention = [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.0, 0.0];
        let scores = snapkv(&attention, 5, 3);
        assert_eq!(scores[..3], [0.75, 0.75, 0.75]);
        assert!(scores[3..].iter().all(|score| score.is_infinite()));
        assert_eq!(snapkv(&attention, 5, 1)[..3], [0.0, 0.75, 0.25]);
    }

    #[test]
    fn h2o_keeps_the_recent_tokens() {
        let scores = h2o(vec![1.7, 0.8, 0.5], 1);
        assert_eq!(scores, [1.7, 0.8, f32::INFINITY]);
    }

    #[test]
    fn expected_attention_prefers_keys_along_the_mean_query() {
        let (mean, covariance) = ([2.0, 0.0], [1.0, 0.0, 0.0, 1.0]);
        let k = [1.0, 0.0, -1.0, 0.0, 0.0, 0.0];
        let v = [1.0, 0.0, 1.0, 0.0, 9.0, 0.0];
        let scores = expected_attention(&mean, &covariance, &k, &v, 1, 2);
        assert!(scores[0] > scores[1]);
        assert!(scores[2] > scores[1], "a large value counts");
    }

    #[test]
    fn scores_of_unequal_layers_are_refused() {
        assert!(TokenScores::new(0, 0, vec![vec![1.0], vec![1.0, 2.0]]).is_err());
        assert!(TokenScores::new(0, 0, vec![vec![]]).is_err());
        let scores = TokenScores::new(4, 7, vec![vec![1.0, 2.0]]).unwrap();
        assert_eq!(scores.layer(4), Some((7, &[1.0, 2.0][..])));
        assert_eq!(scores.layer(3), None);
        assert_eq!(scores.layer(5), None);
    }
}
