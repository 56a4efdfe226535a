//! Causal grouped-query attention over fp16 KV in two pieces, the shared prefix and the
//! private tail, without copying or repeating either.
//!
//! Keys and values are visited in blocks; a running maximum and sum per query row carry the
//! softmax across blocks and pieces (the log-sum-exp merge of CE-LSLM, arXiv 2505.14085, done
//! blockwise as in FlashAttention-2, arXiv 2307.08691). Block borders lie at fixed offsets of
//! each piece, so a row's result does not depend on how its sequence was cut into calls.

use crate::ModelError;
use crate::cache::LayerSegment;
use gemm::{Parallelism, gemm};
use half::f16;
use half::slice::HalfFloatSliceExt as _;
use rayon::prelude::*;

/// Keys per block: the f32 copies of a block's keys and values stay in the L1/L2 cache.
const KEY_BLOCK: usize = 128;
/// Query tokens per task; times the group size, these are the rows that share a block's copy.
const QUERY_TILE: usize = 32;

/// Heads of one attention call.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
}

/// Attention output `[seq_len, num_heads, head_dim]` for rotated queries of the same shape.
/// The queries are the last `seq_len` tokens of `tail`, whose KV is already in it.
pub(crate) fn attend(
    queries: &[f32],
    heads: Heads,
    prefix: Option<&LayerSegment>,
    tail: &LayerSegment,
) -> Result<Vec<f32>, ModelError> {
    let Heads {
        num_heads,
        num_kv_heads,
        head_dim,
    } = heads;
    let row = num_heads * head_dim;
    let seq_len = queries.len() / row;
    let first_query = tail
        .len
        .checked_sub(seq_len)
        .ok_or_else(|| ModelError::Kv("the queries' own keys are not in the cache".to_owned()))?;
    let group = num_heads / num_kv_heads;
    let tiles: Vec<(usize, usize)> = (0..seq_len.div_ceil(QUERY_TILE))
        .flat_map(|tile| (0..num_kv_heads).map(move |kv_head| (tile * QUERY_TILE, kv_head)))
        .collect();
    let outputs: Vec<Vec<f32>> = tiles
        .par_iter()
        .map(|&(start, kv_head)| {
            let tokens = QUERY_TILE.min(seq_len - start);
            let mut tile = Tile::new(queries, heads, start, tokens, kv_head);
            if let Some(prefix) = prefix {
                tile.visit(prefix, kv_head, |_| prefix.len);
            }
            tile.visit(tail, kv_head, |token| first_query + start + token + 1);
            tile.finish()
        })
        .collect();
    let mut out = vec![0f32; queries.len()];
    for (&(start, kv_head), output) in tiles.iter().zip(&outputs) {
        for (index, source) in output.chunks_exact(group * head_dim).enumerate() {
            let at = (start + index) * row + kv_head * group * head_dim;
            out[at..at + group * head_dim].copy_from_slice(source);
        }
    }
    Ok(out)
}

/// The running softmax of one tile: rows are (query token, head of the group), token-major.
struct Tile {
    group: usize,
    head_dim: usize,
    /// `[rows, head_dim]`, scaled by `1/sqrt(head_dim)`.
    queries: Vec<f32>,
    /// `[rows, head_dim]`, not yet divided by `sum`.
    output: Vec<f32>,
    max: Vec<f32>,
    sum: Vec<f32>,
    scores: Vec<f32>,
    block: Vec<f32>,
}

impl Tile {
    fn new(queries: &[f32], heads: Heads, start: usize, tokens: usize, kv_head: usize) -> Self {
        let Heads {
            num_heads,
            num_kv_heads,
            head_dim,
        } = heads;
        let group = num_heads / num_kv_heads;
        let rows = tokens * group;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let queries = (start..start + tokens)
            .flat_map(|token| {
                let at = (token * num_heads + kv_head * group) * head_dim;
                &queries[at..at + group * head_dim]
            })
            .map(|q| q * scale)
            .collect();
        Self {
            group,
            head_dim,
            queries,
            output: vec![0.0; rows * head_dim],
            max: vec![f32::NEG_INFINITY; rows],
            sum: vec![0.0; rows],
            scores: vec![0.0; rows * KEY_BLOCK],
            block: vec![0.0; KEY_BLOCK * head_dim],
        }
    }

    /// Attends to a piece of which token `t` of the tile sees the first `visible(t)` keys.
    fn visit(&mut self, segment: &LayerSegment, kv_head: usize, visible: impl Fn(usize) -> usize) {
        let rows = self.max.len();
        let tokens = rows / self.group;
        let head_dim = self.head_dim;
        // Visibility grows with the token, so the last token bounds the piece.
        let end = visible(tokens - 1).min(segment.len);
        for start in (0..end).step_by(KEY_BLOCK) {
            let keys = KEY_BLOCK.min(end - start);
            let at = (kv_head * segment.capacity + start) * head_dim;
            let range = at..at + keys * head_dim;
            widen(&segment.k[range.clone()], &mut self.block);
            product(
                [rows, keys, head_dim],
                (&self.queries, [head_dim, 1]),
                (&self.block, [1, head_dim]),
                (&mut self.scores, KEY_BLOCK, false),
            );
            for row in 0..rows {
                let visible = visible(row / self.group).saturating_sub(start).min(keys);
                let scores = &mut self.scores[row * KEY_BLOCK..row * KEY_BLOCK + keys];
                let (seen, hidden) = scores.split_at_mut(visible);
                hidden.fill(0.0);
                let max = seen.iter().copied().fold(self.max[row], f32::max);
                if max == f32::NEG_INFINITY {
                    continue;
                }
                let shrink = (self.max[row] - max).exp();
                let mut sum = 0.0;
                for score in seen {
                    *score = (*score - max).exp();
                    sum += *score;
                }
                self.sum[row] = self.sum[row] * shrink + sum;
                self.max[row] = max;
                if shrink != 1.0 {
                    for value in &mut self.output[row * head_dim..(row + 1) * head_dim] {
                        *value *= shrink;
                    }
                }
            }
            widen(&segment.v[range], &mut self.block);
            product(
                [rows, head_dim, keys],
                (&self.scores, [KEY_BLOCK, 1]),
                (&self.block, [head_dim, 1]),
                (&mut self.output, head_dim, true),
            );
        }
    }

    fn finish(mut self) -> Vec<f32> {
        for (row, sum) in self.output.chunks_exact_mut(self.head_dim).zip(&self.sum) {
            for value in row {
                *value /= sum;
            }
        }
        self.output
    }
}

fn widen(source: &[f16], out: &mut [f32]) {
    source.convert_to_f32_slice(&mut out[..source.len()]);
}

/// `out = lhs · rhs`, or `out += lhs · rhs`, for an `m × k` and a `k × n` operand given with
/// their `[row, column]` strides; `out` is row-major with the given row stride.
fn product(
    [m, n, k]: [usize; 3],
    (lhs, lhs_strides): (&[f32], [usize; 2]),
    (rhs, rhs_strides): (&[f32], [usize; 2]),
    (out, out_stride, accumulate): (&mut [f32], usize, bool),
) {
    let last = |rows: usize, columns: usize, [row, column]: [usize; 2]| {
        (rows - 1) * row + (columns - 1) * column
    };
    assert!(last(m, k, lhs_strides) < lhs.len() && last(k, n, rhs_strides) < rhs.len());
    assert!(last(m, n, [out_stride, 1]) < out.len());
    #[expect(unsafe_code, reason = "the gemm crate takes raw strided matrices")]
    // SAFETY: the assertions above bound every element that the strides reach, and `out` is
    // borrowed mutably, so it overlaps neither operand.
    unsafe {
        gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_stride as isize,
            accumulate,
            lhs.as_ptr(),
            lhs_strides[1] as isize,
            lhs_strides[0] as isize,
            rhs.as_ptr(),
            rhs_strides[1] as isize,
            rhs_strides[0] as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: Heads = Heads {
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 8,
    };

    fn values(n: usize, salt: usize) -> Vec<f32> {
        (0..n)
            .map(|i| (((i + salt) * 7919 % 1013) as f32 / 506.0 - 1.0) * 2.0)
            .collect()
    }

    fn segment(len: usize, salt: usize) -> LayerSegment {
        let n = HEADS.num_kv_heads * len * HEADS.head_dim;
        let half = |salt| values(n, salt).into_iter().map(f16::from_f32).collect();
        LayerSegment {
            k: half(salt),
            v: half(salt + 31),
            capacity: len,
            len,
        }
    }

    /// Softmax attention written out, in f64.
    fn reference(queries: &[f32], prefix: Option<&LayerSegment>, tail: &LayerSegment) -> Vec<f32> {
        let Heads {
            num_heads,
            num_kv_heads,
            head_dim,
        } = HEADS;
        let seq_len = queries.len() / (num_heads * head_dim);
        let mut out = Vec::new();
        for token in 0..seq_len {
            for head in 0..num_heads {
                let kv_head = head / (num_heads / num_kv_heads);
                let q = &queries[(token * num_heads + head) * head_dim..][..head_dim];
                let mut rows: Vec<(&[f16], &[f16])> = Vec::new();
                let visible_tail = tail.len - seq_len + token + 1;
                for (segment, n) in prefix
                    .map(|p| (p, p.len))
                    .into_iter()
                    .chain([(tail, visible_tail)])
                {
                    for t in 0..n {
                        let at = (kv_head * segment.capacity + t) * head_dim;
                        rows.push((&segment.k[at..at + head_dim], &segment.v[at..at + head_dim]));
                    }
                }
                let scores: Vec<f64> = rows
                    .iter()
                    .map(|(k, _)| {
                        q.iter()
                            .zip(*k)
                            .map(|(q, k)| f64::from(*q) * k.to_f64())
                            .sum::<f64>()
                            / (head_dim as f64).sqrt()
                    })
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let total: f64 = weights.iter().sum();
                for d in 0..head_dim {
                    let value: f64 = rows
                        .iter()
                        .zip(&weights)
                        .map(|((_, v), w)| v[d].to_f64() * w)
                        .sum();
                    out.push((value / total) as f32);
                }
            }
        }
        out
    }

    #[test]
    fn matches_the_written_out_softmax() {
        for (prefix_len, tail_len, seq_len) in [
            (0, 1, 1),
            (0, 70, 70),
            (300, 5, 5),
            (129, 200, 1),
            (128, 257, 100),
        ] {
            let prefix = (prefix_len > 0).then(|| segment(prefix_len, 3));
            let tail = segment(tail_len, 11);
            let queries = values(seq_len * HEADS.num_heads * HEADS.head_dim, 5);
            let found = attend(&queries, HEADS, prefix.as_ref(), &tail).unwrap();
            let expected = reference(&queries, prefix.as_ref(), &tail);
            for (found, expected) in found.iter().zip(&expected) {
                assert!(
                    (found - expected).abs() < 2e-5,
                    "{found} against {expected}"
                );
            }
        }
    }

    /// Keys beyond a query's position must not leak into it, even as NaN.
    #[test]
    fn the_future_is_invisible() {
        let mut tail = segment(64, 2);
        let queries = values(64 * HEADS.num_heads * HEADS.head_dim, 5);
        let before = attend(&queries, HEADS, None, &tail).unwrap();
        for head in 0..HEADS.num_kv_heads {
            let last = (head * tail.capacity + 63) * HEADS.head_dim;
            tail.k[last..last + HEADS.head_dim].fill(f16::from_f32(50.0));
        }
        let after = attend(&queries, HEADS, None, &tail).unwrap();
        let row = HEADS.num_heads * HEADS.head_dim;
        assert_eq!(before[..63 * row], after[..63 * row]);
        assert_ne!(before[63 * row..], after[63 * row..]);
    }
}
