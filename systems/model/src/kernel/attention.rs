//! Causal grouped-query attention over fp16 KV in two pieces, the shared prefix and the
//! private tail, without copying or repeating either.
//!
//! Keys and values are visited in blocks; a running maximum and sum per query row carry the
//! softmax across blocks and pieces (the log-sum-exp merge of CE-LSLM, arXiv 2505.14085, done
//! blockwise as in FlashAttention-2, arXiv 2307.08691). Queries of sequences that share a
//! prefix read it together, so that sixteen sessions cost one pass over their common context.
//!
//! Block borders lie at fixed offsets of each piece and every sum runs over dimensions or keys
//! in ascending order, so a row's result depends neither on the rows beside it nor on how its
//! sequence was cut into calls.

use super::activations::Slices;
use super::pool::Turn;
use super::rows::exp;
use crate::ModelError;
use crate::cache::{LayerSegment, PAGE};
use half::f16;

/// Keys per block.
const KEY_BLOCK: usize = 64;
/// Query tokens per task; times the group size, these rows share a pass over keys and values.
const QUERY_TILE: usize = 16;

/// Heads of one attention call.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
}

/// One sequence's rows in a ragged batch. Its queries are the last `rows.len()` tokens of
/// `tail`, whose KV is already in it.
pub(crate) struct Sequence<'a> {
    pub(crate) rows: std::ops::Range<usize>,
    pub(crate) prefix: Option<&'a LayerSegment>,
    pub(crate) tail: &'a LayerSegment,
}

/// Consecutive tokens of one sequence within a task.
#[derive(Clone, Copy)]
struct Member {
    sequence: usize,
    /// First token, counted from the sequence's first row.
    first: usize,
    tokens: usize,
}

/// Attention output for rotated queries, both `[rows, num_heads, head_dim]`.
///
/// # Errors
/// [`ModelError::Kv`] when a sequence's own keys are not in its tail.
pub(crate) fn attend(
    turn: &Turn<'_>,
    queries: &[f32],
    heads: Heads,
    sequences: &[Sequence<'_>],
    out: &mut [f32],
) -> Result<(), ModelError> {
    if sequences.iter().any(|s| s.tail.len < s.rows.len()) {
        return Err(ModelError::Kv(
            "the queries' own keys are not in the cache".to_owned(),
        ));
    }
    let tasks = tasks(sequences);
    let out = Slices::new(out);
    turn.each(tasks.len() * heads.num_kv_heads, &|index| {
        let members = &tasks[index / heads.num_kv_heads];
        let kv_head = index % heads.num_kv_heads;
        let mut tile = Tile::new(queries, heads, sequences, members, kv_head);
        tile.attend(sequences, members, kv_head);
        tile.finish(heads, sequences, members, kv_head, &out);
    });
    Ok(())
}

/// Attention output over all keys of one segment, for rotated queries, both
/// `[rows, num_heads, head_dim]`.
pub(crate) fn attend_to(
    turn: &Turn<'_>,
    queries: &[f32],
    heads: Heads,
    segment: &LayerSegment,
    out: &mut [f32],
) {
    let rows = queries.len() / (heads.num_heads * heads.head_dim);
    let all = [Sequence {
        rows: 0..rows,
        prefix: Some(segment),
        tail: segment,
    }];
    let tasks = tasks(&all);
    let out = Slices::new(out);
    turn.each(tasks.len() * heads.num_kv_heads, &|index| {
        let members = &tasks[index / heads.num_kv_heads];
        let kv_head = index % heads.num_kv_heads;
        let mut tile = Tile::new(queries, heads, &all, members, kv_head);
        let rows = tile.max.len();
        tile.visit(segment, kv_head, 0..rows, |_| segment.len);
        tile.finish(heads, &all, members, kv_head, &out);
    });
}

/// Cuts long sequences into tasks, and puts short ones that share a prefix together.
fn tasks(sequences: &[Sequence<'_>]) -> Vec<Vec<Member>> {
    let mut tasks: Vec<Vec<Member>> = Vec::new();
    // Tasks with room, by the prefix that their members share.
    let mut open: Vec<(*const LayerSegment, usize, usize)> = Vec::new();
    for (sequence, s) in sequences.iter().enumerate() {
        let mut first = 0;
        while first < s.rows.len() {
            let tokens = QUERY_TILE.min(s.rows.len() - first);
            let member = Member {
                sequence,
                first,
                tokens,
            };
            first += tokens;
            let shared = s.prefix.map(std::ptr::from_ref);
            let fitting = open
                .iter_mut()
                .find(|(prefix, _, room)| shared == Some(*prefix) && tokens <= *room);
            match (fitting, shared) {
                (Some((_, task, room)), _) => {
                    tasks[*task].push(member);
                    *room -= tokens;
                }
                (None, Some(prefix)) if tokens < QUERY_TILE => {
                    open.push((prefix, tasks.len(), QUERY_TILE - tokens));
                    tasks.push(vec![member]);
                }
                _ => tasks.push(vec![member]),
            }
        }
    }
    tasks
}

/// The running softmax of one task: rows are (member, token, head of the group), in this order.
struct Tile {
    group: usize,
    head_dim: usize,
    /// `[rows, head_dim]`, scaled by `1/sqrt(head_dim)`.
    queries: Vec<f32>,
    /// `[rows, head_dim]`, not yet divided by `sum`.
    output: Vec<f32>,
    max: Vec<f32>,
    sum: Vec<f32>,
    /// `[rows, KEY_BLOCK]`.
    scores: Vec<f32>,
}

impl Tile {
    fn new(
        queries: &[f32],
        heads: Heads,
        sequences: &[Sequence<'_>],
        members: &[Member],
        kv_head: usize,
    ) -> Self {
        let Heads {
            num_heads,
            num_kv_heads,
            head_dim,
        } = heads;
        let group = num_heads / num_kv_heads;
        let tokens: usize = members.iter().map(|member| member.tokens).sum();
        let rows = tokens * group;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let mut own = Vec::with_capacity(rows * head_dim);
        for member in members {
            let first = sequences[member.sequence].rows.start + member.first;
            for row in first..first + member.tokens {
                let at = (row * num_heads + kv_head * group) * head_dim;
                own.extend(queries[at..at + group * head_dim].iter().map(|q| q * scale));
            }
        }
        Self {
            group,
            head_dim,
            queries: own,
            output: vec![0.0; rows * head_dim],
            max: vec![f32::NEG_INFINITY; rows],
            sum: vec![0.0; rows],
            scores: vec![0.0; rows * KEY_BLOCK],
        }
    }

    fn attend(&mut self, sequences: &[Sequence<'_>], members: &[Member], kv_head: usize) {
        let rows = self.max.len();
        if let Some(prefix) = sequences[members[0].sequence].prefix {
            self.visit(prefix, kv_head, 0..rows, |_| prefix.len);
        }
        let mut start = 0;
        for member in members {
            let Sequence { rows, tail, .. } = &sequences[member.sequence];
            let seen_before = tail.len - rows.len() + member.first;
            let end = start + member.tokens * self.group;
            self.visit(tail, kv_head, start..end, |token| seen_before + token + 1);
            start = end;
        }
    }

    /// Attends with some rows to a piece of which token `t` of those rows sees the first
    /// `visible(t)` keys; that number grows with the token.
    fn visit(
        &mut self,
        segment: &LayerSegment,
        kv_head: usize,
        rows: std::ops::Range<usize>,
        visible: impl Fn(usize) -> usize,
    ) {
        let Self {
            group, head_dim, ..
        } = *self;
        let tokens = rows.len() / group;
        let end = visible(tokens - 1).min(segment.len);
        for start in (0..end).step_by(KEY_BLOCK) {
            let keys = KEY_BLOCK.min(end - start);
            let pages = start / PAGE..(start + keys).div_ceil(PAGE);
            // Rows before this token see nothing of the block.
            let blind = (0..tokens)
                .take_while(|&token| visible(token) <= start)
                .count();
            let rows = rows.start + blind * group..rows.end;
            let queries = &self.queries[rows.start * head_dim..rows.end * head_dim];
            let scores = &mut self.scores[rows.start * KEY_BLOCK..rows.end * KEY_BLOCK];
            for (page, number) in pages.clone().enumerate() {
                let (k, _) = segment.page(number, kv_head);
                kernels::scores(queries, head_dim, k, scores, page * PAGE);
            }
            for (index, scores) in scores.chunks_exact_mut(KEY_BLOCK).enumerate() {
                let seen = visible(blind + index / group) - start;
                let row = rows.start + index;
                let (max, sum) = soften(scores, seen.min(keys), self.max[row]);
                // On the first block there is nothing to shrink, and 0 stays 0.
                let shrink = exp(self.max[row] - max);
                self.sum[row] = self.sum[row] * shrink + sum;
                if max != self.max[row] {
                    self.max[row] = max;
                    for value in &mut self.output[row * head_dim..(row + 1) * head_dim] {
                        *value *= shrink;
                    }
                }
            }
            let output = &mut self.output[rows.start * head_dim..rows.end * head_dim];
            let mut values: [&[f16]; KEY_BLOCK / PAGE] = [&[]; _];
            for (slot, number) in values.iter_mut().zip(pages.clone()) {
                *slot = segment.page(number, kv_head).1;
            }
            kernels::values(scores, keys, &values[..pages.len()], head_dim, output);
        }
    }

    fn finish(
        mut self,
        heads: Heads,
        sequences: &[Sequence<'_>],
        members: &[Member],
        kv_head: usize,
        out: &Slices<'_, f32>,
    ) {
        for (row, sum) in self.output.chunks_exact_mut(self.head_dim).zip(&self.sum) {
            for value in row {
                *value /= sum;
            }
        }
        let width = self.group * self.head_dim;
        let mut tokens = self.output.chunks_exact(width);
        for member in members {
            let first = sequences[member.sequence].rows.start + member.first;
            for (row, source) in (first..first + member.tokens).zip(&mut tokens) {
                let at = row * heads.num_heads * heads.head_dim + kv_head * width;
                #[expect(unsafe_code, reason = "tasks write disjoint heads of disjoint rows")]
                // SAFETY: a row belongs to one member of one task, and its heads of one KV head
                // to one index of that task.
                unsafe {
                    out.get(at, width).copy_from_slice(source);
                }
            }
        }
    }
}

/// Turns the first `seen` scores of a block into exponentials relative to the new maximum, the
/// rest into zeros. Returns that maximum and their sum, both taken in sixteen lanes.
fn soften(scores: &mut [f32], seen: usize, max: f32) -> (f32, f32) {
    let Some(scores) = scores.first_chunk_mut::<KEY_BLOCK>() else {
        return (max, 0.0);
    };
    // Whole blocks throughout, so that the loops have no remainders.
    scores[seen..].fill(f32::NEG_INFINITY);
    let mut lanes = [max; PAGE];
    for chunk in scores.as_chunks::<PAGE>().0 {
        for (lane, score) in lanes.iter_mut().zip(chunk) {
            *lane = if *score > *lane { *score } else { *lane };
        }
    }
    let max = lanes.iter().copied().fold(max, f32::max);
    for score in &mut *scores {
        *score = exp(*score - max);
    }
    scores[seen..].fill(0.0);
    let mut lanes = [0f32; PAGE];
    for chunk in scores.as_chunks::<PAGE>().0 {
        for (lane, score) in lanes.iter_mut().zip(chunk) {
            *lane += *score;
        }
    }
    (max, lanes.iter().sum())
}

/// Keys of a page are transposed, `[head_dim, PAGE]`; values are not, `[PAGE, head_dim]`: both
/// products then run along contiguous vectors.
#[cfg(all(
    target_arch = "x86_64",
    target_feature = "avx512f",
    target_feature = "f16c"
))]
mod kernels {
    #![expect(
        unsafe_code,
        reason = "vector loads from raw pointers, in bounds by the assertions before them"
    )]

    use super::{KEY_BLOCK, PAGE};
    use half::f16;
    use std::arch::x86_64::*;

    #[inline(always)]
    unsafe fn halves(at: *const f16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }

    /// Calls a kernel for counts of rows that it is compiled for.
    macro_rules! by_rows {
        ($total:expr, $kernel:ident($($argument:expr),*), $row:ident) => {{
            let mut $row = 0;
            while $row < $total {
                $row += match $total - $row {
                    16.. => { $kernel::<16>($($argument),*); 16 }
                    12..16 => { $kernel::<12>($($argument),*); 12 }
                    8..12 => { $kernel::<8>($($argument),*); 8 }
                    7 => { $kernel::<7>($($argument),*); 7 }
                    6 => { $kernel::<6>($($argument),*); 6 }
                    5 => { $kernel::<5>($($argument),*); 5 }
                    4 => { $kernel::<4>($($argument),*); 4 }
                    3 => { $kernel::<3>($($argument),*); 3 }
                    2 => { $kernel::<2>($($argument),*); 2 }
                    _ => { $kernel::<1>($($argument),*); 1 }
                };
            }
        }};
    }

    /// `scores[row][at + key] = queries[row] · key` for the keys of a page.
    pub(super) fn scores(
        queries: &[f32],
        head_dim: usize,
        keys: &[f16],
        scores: &mut [f32],
        at: usize,
    ) {
        let rows = queries.len() / head_dim;
        assert!(keys.len() >= head_dim * PAGE && at + PAGE <= KEY_BLOCK);
        assert!(scores.len() >= rows * KEY_BLOCK);
        let (queries, keys) = (queries.as_ptr(), keys.as_ptr());
        let scores = scores.as_mut_ptr();
        // SAFETY: `row` and what follows it stay below `rows`; the assertions bound the rest.
        unsafe {
            by_rows!(
                rows,
                score_rows(
                    queries.add(row * head_dim),
                    head_dim,
                    keys,
                    scores.add(row * KEY_BLOCK + at)
                ),
                row
            );
        }
    }

    #[inline(never)]
    unsafe fn score_rows<const R: usize>(
        queries: *const f32,
        head_dim: usize,
        keys: *const f16,
        scores: *mut f32,
    ) {
        unsafe {
            let mut sums = [_mm512_setzero_ps(); R];
            for d in 0..head_dim {
                let keys = halves(keys.add(d * PAGE));
                for (r, sum) in sums.iter_mut().enumerate() {
                    let query = _mm512_set1_ps(*queries.add(r * head_dim + d));
                    *sum = _mm512_fmadd_ps(keys, query, *sum);
                }
            }
            for (r, sum) in sums.into_iter().enumerate() {
                _mm512_storeu_ps(scores.add(r * KEY_BLOCK), sum);
            }
        }
    }

    /// `output[row] += weights[row] · values` over the first `keys` values of the pages.
    pub(super) fn values(
        weights: &[f32],
        keys: usize,
        pages: &[&[f16]],
        head_dim: usize,
        output: &mut [f32],
    ) {
        if !head_dim.is_multiple_of(PAGE) {
            super::portable::values(weights, keys, pages, head_dim, output);
            return;
        }
        let rows = output.len() / head_dim;
        assert!(keys <= pages.len() * PAGE && keys <= KEY_BLOCK);
        assert!(pages.iter().all(|page| page.len() >= head_dim * PAGE));
        assert!(weights.len() >= rows * KEY_BLOCK);
        let weights = weights.as_ptr();
        let output = output.as_mut_ptr();
        for d in (0..head_dim).step_by(PAGE) {
            // SAFETY: as in `scores`.
            unsafe {
                by_rows!(
                    rows,
                    value_rows(
                        weights.add(row * KEY_BLOCK),
                        keys,
                        pages,
                        d,
                        head_dim,
                        output.add(row * head_dim + d)
                    ),
                    row
                );
            }
        }
    }

    #[inline(never)]
    unsafe fn value_rows<const R: usize>(
        weights: *const f32,
        keys: usize,
        pages: &[&[f16]],
        d: usize,
        head_dim: usize,
        output: *mut f32,
    ) {
        unsafe {
            let mut sums: [__m512; R] =
                std::array::from_fn(|r| _mm512_loadu_ps(output.add(r * head_dim)));
            for (index, page) in pages.iter().enumerate() {
                let first = index * PAGE;
                let page = page.as_ptr().add(d);
                for t in 0..PAGE.min(keys.saturating_sub(first)) {
                    let values = halves(page.add(t * head_dim));
                    for (r, sum) in sums.iter_mut().enumerate() {
                        let weight = _mm512_set1_ps(*weights.add(r * KEY_BLOCK + first + t));
                        *sum = _mm512_fmadd_ps(values, weight, *sum);
                    }
                }
            }
            for (r, sum) in sums.into_iter().enumerate() {
                _mm512_storeu_ps(output.add(r * head_dim), sum);
            }
        }
    }
}

#[cfg(not(all(
    target_arch = "x86_64",
    target_feature = "avx512f",
    target_feature = "f16c"
)))]
use portable as kernels;

/// The same sums in plain Rust.
#[cfg_attr(
    target_feature = "avx512f",
    expect(
        dead_code,
        reason = "only odd head widths need it where vectors are compiled in"
    )
)]
mod portable {
    use super::{KEY_BLOCK, PAGE};
    use half::f16;

    pub(super) fn scores(
        queries: &[f32],
        head_dim: usize,
        keys: &[f16],
        scores: &mut [f32],
        at: usize,
    ) {
        let rows = queries.chunks_exact(head_dim);
        for (query, scores) in rows.zip(scores.chunks_exact_mut(KEY_BLOCK)) {
            let mut sums = [0f32; PAGE];
            for (query, keys) in query.iter().zip(keys.chunks_exact(PAGE)) {
                for (sum, key) in sums.iter_mut().zip(keys) {
                    *sum = key.to_f32().mul_add(*query, *sum);
                }
            }
            scores[at..at + PAGE].copy_from_slice(&sums);
        }
    }

    pub(super) fn values(
        weights: &[f32],
        keys: usize,
        pages: &[&[f16]],
        head_dim: usize,
        output: &mut [f32],
    ) {
        let rows = weights.chunks_exact(KEY_BLOCK);
        for (weights, output) in rows.zip(output.chunks_exact_mut(head_dim)) {
            for (t, weight) in weights.iter().enumerate().take(keys) {
                let values = &pages[t / PAGE][t % PAGE * head_dim..][..head_dim];
                for (output, value) in output.iter_mut().zip(values) {
                    *output = value.to_f32().mul_add(*weight, *output);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::pool::pool;

    const HEADS: Heads = Heads {
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 8,
    };

    /// Wide enough for the vector kernels, with a group as odd as the default edge model's.
    const WIDE: Heads = Heads {
        num_heads: 14,
        num_kv_heads: 2,
        head_dim: 64,
    };

    fn values(n: usize, salt: usize) -> Vec<f32> {
        (0..n)
            .map(|i| (((i + salt) * 7919 % 1013) as f32 / 506.0 - 1.0) * 2.0)
            .collect()
    }

    fn segment(heads: Heads, len: usize, salt: usize) -> LayerSegment {
        let n = heads.num_kv_heads * len * heads.head_dim;
        let half = |salt| -> Vec<f16> { values(n, salt).into_iter().map(f16::from_f32).collect() };
        let mut segment = LayerSegment::new(heads.num_kv_heads, heads.head_dim);
        segment.append(&half(salt), &half(salt + 31), len);
        segment
    }

    /// Softmax attention written out, in f64.
    fn reference(
        heads: Heads,
        queries: &[f32],
        prefix: Option<&LayerSegment>,
        tail: &LayerSegment,
    ) -> Vec<f32> {
        let Heads {
            num_heads,
            num_kv_heads,
            head_dim,
        } = heads;
        let seq_len = queries.len() / (num_heads * head_dim);
        let mut out = Vec::new();
        for token in 0..seq_len {
            for head in 0..num_heads {
                let kv_head = head / (num_heads / num_kv_heads);
                let q = &queries[(token * num_heads + head) * head_dim..][..head_dim];
                let mut rows: Vec<(Vec<f16>, &[f16])> = Vec::new();
                let visible_tail = tail.len - seq_len + token + 1;
                for (segment, n) in prefix
                    .map(|p| (p, p.len))
                    .into_iter()
                    .chain([(tail, visible_tail)])
                {
                    for t in 0..n {
                        let (k, v) = segment.page(t / PAGE, kv_head);
                        let key = k.iter().skip(t % PAGE).step_by(PAGE).copied().collect();
                        rows.push((key, &v[t % PAGE * head_dim..][..head_dim]));
                    }
                }
                let scores: Vec<f64> = rows
                    .iter()
                    .map(|(k, _)| {
                        q.iter()
                            .zip(k)
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

    fn attend_to(heads: Heads, queries: &[f32], sequences: &[Sequence<'_>]) -> Vec<f32> {
        let mut out = vec![f32::NAN; queries.len()];
        attend(&pool().turn(), queries, heads, sequences, &mut out).unwrap();
        out
    }

    #[test]
    fn matches_the_written_out_softmax() {
        for heads in [HEADS, WIDE] {
            for (prefix_len, tail_len, seq_len) in [
                (0, 1, 1),
                (0, 70, 70),
                (300, 5, 5),
                (129, 200, 1),
                (128, 257, 100),
            ] {
                let prefix = (prefix_len > 0).then(|| segment(heads, prefix_len, 3));
                let tail = segment(heads, tail_len, 11);
                let queries = values(seq_len * heads.num_heads * heads.head_dim, 5);
                let sequence = Sequence {
                    rows: 0..seq_len,
                    prefix: prefix.as_ref(),
                    tail: &tail,
                };
                let found = attend_to(heads, &queries, &[sequence]);
                let expected = reference(heads, &queries, prefix.as_ref(), &tail);
                for (found, expected) in found.iter().zip(&expected) {
                    assert!(
                        (found - expected).abs() < 2e-5,
                        "{found} against {expected}"
                    );
                }
            }
        }
    }

    /// Bit for bit, whether sequences share a task, a prefix, or nothing.
    #[test]
    fn a_row_has_the_same_bits_alone_and_beside_others() {
        for heads in [HEADS, WIDE] {
            let shared = segment(heads, 100, 3);
            let other = segment(heads, 90, 4);
            let tails: Vec<LayerSegment> =
                (0..21).map(|i| segment(heads, 1 + i * 5 % 70, i)).collect();
            let mut sequences = Vec::new();
            let mut start = 0;
            for (i, tail) in tails.iter().enumerate() {
                let rows = [1, 1, 3, tail.len][i % 4].min(tail.len);
                sequences.push(Sequence {
                    rows: start..start + rows,
                    prefix: [Some(&shared), Some(&other), Some(&shared), None][i / 2 % 4],
                    tail,
                });
                start += rows;
            }
            let row = heads.num_heads * heads.head_dim;
            let queries = values(start * row, 5);
            let together = attend_to(heads, &queries, &sequences);
            for sequence in &sequences {
                let own = sequence.rows.start * row..sequence.rows.end * row;
                let alone = Sequence {
                    rows: 0..sequence.rows.len(),
                    ..*sequence
                };
                let found = attend_to(heads, &queries[own.clone()], &[alone]);
                assert_eq!(found, together[own]);
            }
        }
    }

    /// Keys beyond a query's position must not leak into it.
    #[test]
    fn the_future_is_invisible() {
        let row = HEADS.num_heads * HEADS.head_dim;
        let queries = values(64 * row, 5);
        let all = |tail: &LayerSegment| {
            let sequence = Sequence {
                rows: 0..64,
                prefix: None,
                tail,
            };
            attend_to(HEADS, &queries, &[sequence])
        };
        let before = all(&segment(HEADS, 64, 2));
        let n = HEADS.num_kv_heads * HEADS.head_dim;
        let mut tail = segment(HEADS, 64, 2);
        tail.len = 63;
        tail.append(&vec![f16::from_f32(50.0); n], &vec![f16::ONE; n], 1);
        let after = all(&tail);
        assert_eq!(before[..63 * row], after[..63 * row]);
        assert_ne!(before[63 * row..], after[63 * row..]);
    }
}
