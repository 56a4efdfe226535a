//! Rotary position embedding (arXiv 2104.09864) at absolute positions.

use half::f16;
use half::slice::HalfFloatSliceExt as _;
use std::sync::OnceLock;

/// How the two halves of a rotated pair lie in a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// Pair `i` is `(x[i], x[i + head_dim/2])`, as in GPT-NeoX and Qwen2.
    Neox,
    /// Pair `i` is `(x[2i], x[2i + 1])`, as in GGUF conversions of Llama.
    Interleaved,
}

/// Positions whose angles are computed together, at their first use.
const BLOCK: usize = 256;
/// Positions whose angles are kept; further ones are computed each time.
const KEPT: usize = 1 << 17;

/// Cosines and sines of every pair, `[positions, head_dim / 2]` each.
#[derive(Debug, Clone)]
struct Angles {
    cos: Box<[f32]>,
    sin: Box<[f32]>,
}

/// Rotary tables of one model.
#[derive(Debug, Clone)]
pub struct RotaryEmbedding {
    style: RopeStyle,
    head_dim: usize,
    inverse_frequencies: Vec<f32>,
    blocks: Vec<OnceLock<Angles>>,
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
            blocks: vec![OnceLock::new(); KEPT / BLOCK],
        }
    }

    /// Which pair a channel of a head is rotated in, from 0.
    pub fn pair(&self, channel: usize) -> usize {
        match self.style {
            RopeStyle::Neox => channel % (self.head_dim / 2),
            RopeStyle::Interleaved => channel / 2,
        }
    }

    fn compute(&self, positions: std::ops::Range<usize>) -> Angles {
        let (sin, cos): (Vec<f32>, Vec<f32>) = positions
            .flat_map(|position| {
                let turns = self.inverse_frequencies.iter();
                turns.map(move |frequency| (position as f32 * frequency).sin_cos())
            })
            .unzip();
        Angles {
            cos: cos.into(),
            sin: sin.into(),
        }
    }

    /// Cosines and sines of every pair at some positions, `[positions, head_dim / 2]` each.
    pub fn angles(&self, positions: std::ops::Range<usize>) -> (Vec<f32>, Vec<f32>) {
        let Angles { cos, sin } = self.compute(positions);
        (cos.into(), sin.into())
    }

    /// Calls `rotate(token, cosines, sines)` for every token, the first at `first_position`.
    fn each(
        &self,
        first_position: usize,
        tokens: usize,
        mut rotate: impl FnMut(usize, &[f32], &[f32]),
    ) {
        let pairs = self.inverse_frequencies.len();
        for token in 0..tokens {
            let position = first_position + token;
            match self.blocks.get(position / BLOCK) {
                Some(block) => {
                    let start = position / BLOCK * BLOCK;
                    let angles = block.get_or_init(|| self.compute(start..start + BLOCK));
                    let at = (position - start) * pairs;
                    rotate(
                        token,
                        &angles.cos[at..at + pairs],
                        &angles.sin[at..at + pairs],
                    );
                }
                None => {
                    let angles = self.compute(position..position + 1);
                    rotate(token, &angles.cos, &angles.sin);
                }
            }
        }
    }

    /// Rotates heads in place: `x: [seq_len, num_heads, head_dim]`, token `t` at absolute
    /// position `first_position + t`.
    pub fn rotate(&self, x: &mut [f32], num_heads: usize, first_position: usize) {
        let width = num_heads * self.head_dim;
        self.each(first_position, x.len() / width, |token, cos, sin| {
            let token = &mut x[token * width..(token + 1) * width];
            for head in token.chunks_exact_mut(self.head_dim) {
                self.rotate_head(head, cos, sin);
            }
        });
    }

    /// Undoes [`RotaryEmbedding::rotate`].
    pub fn rotate_back(&self, x: &mut [f32], num_heads: usize, first_position: usize) {
        let width = num_heads * self.head_dim;
        let mut back = vec![0f32; self.inverse_frequencies.len()];
        self.each(first_position, x.len() / width, |token, cos, sin| {
            for (back, sin) in back.iter_mut().zip(sin) {
                *back = -sin;
            }
            let token = &mut x[token * width..(token + 1) * width];
            for head in token.chunks_exact_mut(self.head_dim) {
                self.rotate_head(head, cos, &back);
            }
        });
    }

    /// Applies the mean of the rotations at some positions (not itself a rotation) to vectors
    /// `x: [count, head_dim]`: what a vector becomes that will stand at one of them.
    pub fn rotate_mean(&self, x: &mut [f32], positions: std::ops::Range<usize>) {
        let pairs = self.inverse_frequencies.len();
        let (mut cos, mut sin) = (vec![0f32; pairs], vec![0f32; pairs]);
        let share = 1.0 / positions.len().max(1) as f32;
        self.each(positions.start, positions.len(), |_, c, s| {
            for (sums, angles) in [(&mut cos, c), (&mut sin, s)] {
                for (sum, angle) in sums.iter_mut().zip(angles) {
                    *sum += angle * share;
                }
            }
        });
        for head in x.chunks_exact_mut(self.head_dim) {
            self.rotate_head(head, &cos, &sin);
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
        let mut row = vec![0f32; self.head_dim];
        let stride = seq_len * self.head_dim;
        self.each(first_position, seq_len, |t, cos, sin| {
            let at = t * self.head_dim;
            for (keys, out) in keys.chunks_exact(stride).zip(out.chunks_exact_mut(stride)) {
                keys[at..at + self.head_dim].convert_to_f32_slice(&mut row);
                self.rotate_head(&mut row, cos, sin);
                out[at..at + self.head_dim].convert_from_f32_slice(&row);
            }
        });
    }

    fn rotate_head(&self, head: &mut [f32], cos: &[f32], sin: &[f32]) {
        let angles = cos.iter().zip(sin);
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
    fn positions_beyond_the_table_continue_it() {
        let rope = RotaryEmbedding::new(RopeStyle::Neox, 8, 1e6);
        let x = [0.3, -1.0, 0.5, 2.0, 0.1, 0.7, -0.2, 1.1];
        let mut both = [x, x].concat();
        rope.rotate(&mut both, 1, KEPT - 1);
        for (position, found) in [KEPT - 1, KEPT].into_iter().zip(both.chunks_exact(8)) {
            let mut alone = x;
            rope.rotate(&mut alone, 1, position);
            assert_eq!(alone, found);
        }
    }

    #[test]
    fn rotating_back_undoes_and_the_mean_is_the_mean() {
        for style in [RopeStyle::Neox, RopeStyle::Interleaved] {
            let rope = RotaryEmbedding::new(style, 4, 1e4);
            let x = [0.3, -1.0, 0.5, 2.0];
            let at = |position| {
                let mut x = x;
                rope.rotate(&mut x, 1, position);
                x
            };
            let mut back = at(77);
            rope.rotate_back(&mut back, 1, 77);
            let mut mean = x;
            rope.rotate_mean(&mut mean, 5..7);
            for i in 0..4 {
                assert!((back[i] - x[i]).abs() < 1e-6);
                assert!((mean[i] - (at(5)[i] + at(6)[i]) / 2.0).abs() < 1e-6);
            }
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
