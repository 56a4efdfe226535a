//! Rotary position embedding (arXiv 2104.09864) at absolute positions.

use half::f16;

/// How the two halves of a rotated pair lie in a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// Pair `i` is `(x[i], x[i + head_dim/2])`, as in GPT-NeoX and Qwen2.
    Neox,
    /// Pair `i` is `(x[2i], x[2i + 1])`, as in GGUF conversions of Llama.
    Interleaved,
}

/// Rotary tables of one model.
#[derive(Debug, Clone)]
pub struct RotaryEmbedding {
    style: RopeStyle,
    head_dim: usize,
    /// `theta^(-2i/head_dim)` for pair `i`.
    inverse_frequencies: Vec<f32>,
}

impl RotaryEmbedding {
    /// Tables for heads of width `head_dim` (even) and base `theta`.
    pub fn new(style: RopeStyle, head_dim: usize, theta: f32) -> Self {
        let inverse_frequencies = (0..head_dim)
            .step_by(2)
            .map(|i| theta.powf(-(i as f32) / head_dim as f32))
            .collect();
        Self {
            style,
            head_dim,
            inverse_frequencies,
        }
    }

    /// Cosine and sine of every pair at a position, `[head_dim / 2]` each.
    fn angles(&self, position: usize, angles: &mut Vec<(f32, f32)>) {
        angles.clear();
        angles.extend(self.inverse_frequencies.iter().map(|frequency| {
            let (sin, cos) = (position as f32 * frequency).sin_cos();
            (cos, sin)
        }));
    }

    /// Rotates heads in place: `x: [seq_len, num_heads, head_dim]`, token `t` at absolute
    /// position `first_position + t`.
    pub fn rotate(&self, x: &mut [f32], num_heads: usize, first_position: usize) {
        let mut angles = Vec::with_capacity(self.head_dim / 2);
        for (t, token) in x.chunks_exact_mut(num_heads * self.head_dim).enumerate() {
            self.angles(first_position + t, &mut angles);
            for head in token.chunks_exact_mut(self.head_dim) {
                self.rotate_head(head, &angles);
            }
        }
    }

    /// Rotates fp16 keys: `keys, out: [num_kv_heads, seq_len, head_dim]`. The arithmetic is
    /// f32 and the result is rounded once, so the same fp16 key gives the same rotated key
    /// wherever it was computed.
    pub fn rotate_keys(
        &self,
        keys: &[f16],
        out: &mut [f16],
        seq_len: usize,
        first_position: usize,
    ) {
        let mut angles = Vec::with_capacity(self.head_dim / 2);
        let mut row = vec![0f32; self.head_dim];
        let stride = seq_len * self.head_dim;
        for t in 0..seq_len {
            self.angles(first_position + t, &mut angles);
            let at = t * self.head_dim;
            for (keys, out) in keys.chunks_exact(stride).zip(out.chunks_exact_mut(stride)) {
                for (value, key) in row.iter_mut().zip(&keys[at..at + self.head_dim]) {
                    *value = key.to_f32();
                }
                self.rotate_head(&mut row, &angles);
                for (out, value) in out[at..at + self.head_dim].iter_mut().zip(&row) {
                    *out = f16::from_f32(*value);
                }
            }
        }
    }

    fn rotate_head(&self, head: &mut [f32], angles: &[(f32, f32)]) {
        match self.style {
            RopeStyle::Neox => {
                let (first, second) = head.split_at_mut(self.head_dim / 2);
                for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(angles) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            }
            RopeStyle::Interleaved => {
                for (pair, (cos, sin)) in head.chunks_exact_mut(2).zip(angles) {
                    let (a, b) = (pair[0], pair[1]);
                    pair[0] = a * cos - b * sin;
                    pair[1] = a * sin + b * cos;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scores of rotated vectors depend on the distance of their positions alone.
    #[test]
    fn dot_product_depends_on_distance_only() {
        for style in [RopeStyle::Neox, RopeStyle::Interleaved] {
            let rope = RotaryEmbedding::new(style, 8, 1e4);
            let dot = |q_position, k_position| {
                let mut q = vec![0.3, -1.0, 0.5, 2.0, 0.1, 0.7, -0.2, 1.1];
                let mut k = vec![1.0, 0.2, -0.4, 0.6, 0.9, -0.5, 0.3, 0.8];
                rope.rotate(&mut q, 1, q_position);
                rope.rotate(&mut k, 1, k_position);
                q.iter().zip(&k).map(|(a, b)| a * b).sum::<f32>()
            };
            assert!((dot(9, 4) - dot(105, 100)).abs() < 1e-4);
            assert!((dot(9, 4) - dot(9, 7)).abs() > 1e-3);
        }
    }

    #[test]
    fn position_zero_is_the_identity() {
        let rope = RotaryEmbedding::new(RopeStyle::Neox, 4, 1e4);
        let keys: Vec<f16> = [1.0, 2.0, 3.0, 4.0].map(f16::from_f32).to_vec();
        let mut out = vec![f16::ZERO; 4];
        rope.rotate_keys(&keys, &mut out, 1, 0);
        assert_eq!(keys, out);
    }
}
