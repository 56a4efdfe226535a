//! Rows of activations, as f32 and rounded to signed bytes with one scale a group of 32.
//!
//! That rounding is the only one a quantised product makes: the weights are the file's, and
//! integer dot products are exact.

use super::pool::Turn;
use super::{GROUP, TILE};

/// Activations `[rows, columns]` ready to be multiplied by any number of matrices.
#[derive(Default)]
pub(crate) struct Activations {
    rows: usize,
    columns: usize,
    /// Groups a row, rounded up to even: blocks of matrices hold two or eight.
    groups: usize,
    /// `[rows, columns]`.
    values: Vec<f32>,
    /// `[tiles, groups, TILE, GROUP]`: what one pass over a panel reads, in its order.
    bytes: Vec<i8>,
    /// `[tiles, groups, TILE]`.
    scales: Vec<f32>,
    /// `[tiles, groups, TILE]` each.
    sums: Sums<Vec<i32>>,
    /// Scale times the sum of a group's bytes, `[tiles, groups, TILE]`.
    totals: Vec<f32>,
}

/// Sums of a group's bytes, negated: with them a dot product begins, so that the weights' zero
/// point is taken off exactly.
#[derive(Clone, Copy, Default)]
pub(super) struct Sums<T> {
    /// Of the whole group.
    pub(super) whole: T,
    /// Of its first half.
    pub(super) low: T,
    /// Of its second half.
    pub(super) high: T,
}

/// Up to [`TILE`] rows, as a kernel sees them.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    /// Rows that are there.
    pub(super) rows: usize,
    /// Whether there is no other tile: every panel is read once.
    pub(super) only: bool,
    pub(super) groups: usize,
    /// `[groups, TILE, GROUP]`.
    pub(super) bytes: &'a [i8],
    /// `[groups, TILE]`.
    pub(super) scales: &'a [f32],
    /// `[groups, TILE]` each.
    pub(super) sums: Sums<&'a [i32]>,
    /// `[groups, TILE]`.
    pub(super) totals: &'a [f32],
}

impl Activations {
    /// Sets the shape; [`Activations::row_mut`] and [`Activations::quantise`] fill it.
    pub(crate) fn reset(&mut self, rows: usize, columns: usize) {
        self.rows = rows;
        self.columns = columns;
        // Kernels read whole blocks, so the groups reach as far as the largest one.
        self.groups = columns.div_ceil(GROUP).next_multiple_of(2);
        self.values.resize(rows * columns, 0.0);
        let cells = rows.div_ceil(TILE) * self.groups * TILE;
        self.bytes.resize(cells * GROUP, 0);
        self.scales.resize(cells, 0.0);
        self.sums.whole.resize(cells, 0);
        self.sums.low.resize(cells, 0);
        self.sums.high.resize(cells, 0);
        self.totals.resize(cells, 0.0);
    }

    /// Rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Width of a row.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Computes every row's values with `fill(row, values)` and rounds them.
    pub(crate) fn fill(&mut self, turn: &Turn<'_>, fill: impl Fn(usize, &mut [f32]) + Sync) {
        let (columns, groups) = (self.columns, self.groups);
        let rows = self.rows;
        let values = Slices::new(&mut self.values);
        let bytes = Slices::new(&mut self.bytes);
        let scales = Slices::new(&mut self.scales);
        let whole = Slices::new(&mut self.sums.whole);
        let low = Slices::new(&mut self.sums.low);
        let high = Slices::new(&mut self.sums.high);
        let totals = Slices::new(&mut self.totals);
        turn.each(rows.div_ceil(ROWS_A_TASK), &|task| {
            for row in task * ROWS_A_TASK..rows.min((task + 1) * ROWS_A_TASK) {
                #[expect(unsafe_code, reason = "tasks write disjoint rows")]
                // SAFETY: every row belongs to one task, and the ranges of different rows are
                // disjoint: `values` by row, the others by `(tile, group, row in tile)`.
                unsafe {
                    let values = values.get(row * columns, columns);
                    fill(row, values);
                    let mut chunks = values.chunks(GROUP);
                    for group in 0..groups {
                        let cell = (row / TILE * groups + group) * TILE + row % TILE;
                        let bytes = bytes.get(cell * GROUP, GROUP);
                        // Beyond the last column all is zero.
                        let (scale, sums) = round_group(chunks.next().unwrap_or(&[]), bytes);
                        let total = sums[0] + sums[1];
                        scales.get(cell, 1)[0] = scale;
                        totals.get(cell, 1)[0] = scale * total as f32;
                        whole.get(cell, 1)[0] = -total;
                        low.get(cell, 1)[0] = -sums[0];
                        high.get(cell, 1)[0] = -sums[1];
                    }
                }
            }
        });
    }

    /// The f32 values of rows from `first` on.
    pub(super) fn values(&self, first: usize, rows: usize) -> &[f32] {
        &self.values[first * self.columns..][..rows * self.columns]
    }

    /// Tile `index`.
    pub(super) fn tile(&self, index: usize) -> Tile<'_> {
        let cells = self.groups * TILE;
        Tile {
            rows: TILE.min(self.rows - index * TILE),
            only: self.rows <= TILE,
            groups: self.groups,
            bytes: &self.bytes[index * cells * GROUP..][..cells * GROUP],
            scales: &self.scales[index * cells..][..cells],
            sums: Sums {
                whole: &self.sums.whole[index * cells..][..cells],
                low: &self.sums.low[index * cells..][..cells],
                high: &self.sums.high[index * cells..][..cells],
            },
            totals: &self.totals[index * cells..][..cells],
        }
    }
}

/// Rows that a thread takes at once.
const ROWS_A_TASK: usize = 4;

/// Added to a small number, it rounds it to an integer and leaves that in the low bits.
const ROUND: f32 = 12_582_912.0;

/// Rounds a group to bytes; returns its scale and the sums of its halves. What a short group
/// lacks is zero.
fn round_group(values: &[f32], bytes: &mut [i8]) -> (f32, [i32; 2]) {
    let mut short = [0f32; GROUP];
    let values: &[f32; GROUP] = match values.try_into() {
        Ok(values) => values,
        Err(_) => {
            short[..values.len()].copy_from_slice(values);
            &short
        }
    };
    match bytes.first_chunk_mut() {
        Some(bytes) => round(values, bytes),
        None => (0.0, [0, 0]),
    }
}

#[cfg(all(target_arch = "x86_64", target_feature = "avx512f"))]
fn round(values: &[f32; GROUP], bytes: &mut [i8; GROUP]) -> (f32, [i32; 2]) {
    use std::arch::x86_64::*;
    #[expect(unsafe_code, reason = "vector loads and stores")]
    // SAFETY: both halves of both arrays are 16 elements, which is what is read and written.
    unsafe {
        let halves = [0, GROUP / 2].map(|at| _mm512_loadu_ps(values.as_ptr().add(at)));
        // The second operand is what remains beside a NaN.
        let size = |half| _mm512_max_ps(_mm512_abs_ps(half), _mm512_setzero_ps());
        let largest = _mm512_reduce_max_ps(_mm512_max_ps(size(halves[0]), size(halves[1])));
        let scale = largest / 127.0;
        let inverse = _mm512_set1_ps(if scale > 0.0 { 1.0 / scale } else { 0.0 });
        let mut at = bytes.as_mut_ptr();
        let sums = halves.map(|half| {
            let rounded = _mm512_fmadd_ps(half, inverse, _mm512_set1_ps(ROUND));
            let low = _mm512_slli_epi32::<24>(_mm512_castps_si512(rounded));
            let rounded = _mm512_srai_epi32::<24>(low);
            _mm_storeu_si128(at.cast(), _mm512_cvtepi32_epi8(rounded));
            at = at.add(GROUP / 2);
            _mm512_reduce_add_epi32(rounded)
        });
        (scale, sums)
    }
}

#[cfg(not(all(target_arch = "x86_64", target_feature = "avx512f")))]
use portable_round as round;

/// The same in plain Rust.
#[cfg(any(test, not(all(target_arch = "x86_64", target_feature = "avx512f"))))]
fn portable_round(values: &[f32; GROUP], bytes: &mut [i8; GROUP]) -> (f32, [i32; 2]) {
    let largest = values.iter().fold(0f32, |largest, value| {
        if value.abs() > largest {
            value.abs()
        } else {
            largest
        }
    });
    let scale = largest / 127.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let mut rounded = [0i32; GROUP];
    for (rounded, value) in rounded.iter_mut().zip(values) {
        // Values are within ±127 and some rounding error of it; a NaN becomes some byte.
        *rounded = (value.mul_add(inverse, ROUND).to_bits() << 24) as i32 >> 24;
    }
    for (byte, rounded) in bytes.iter_mut().zip(&rounded) {
        *byte = *rounded as i8;
    }
    let (low, high) = rounded.split_at(GROUP / 2);
    (scale, [low.iter().sum(), high.iter().sum()])
}

/// A slice of which threads write disjoint parts.
pub(super) struct Slices<'a, T> {
    start: *mut T,
    len: usize,
    _borrow: std::marker::PhantomData<&'a mut [T]>,
}

#[expect(unsafe_code, reason = "parts are handed to several threads")]
// SAFETY: `get` is unsafe, and its caller vouches that parts in use do not overlap.
unsafe impl<T: Send> Sync for Slices<'_, T> {}

impl<'a, T> Slices<'a, T> {
    pub(super) fn new(slice: &'a mut [T]) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            _borrow: std::marker::PhantomData,
        }
    }

    /// A part of the slice.
    ///
    /// # Safety
    /// No two parts that are in use at the same time may overlap.
    #[expect(unsafe_code, reason = "see above")]
    #[expect(clippy::mut_from_ref, reason = "the parts are disjoint")]
    pub(super) unsafe fn get(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: in bounds by the assertion, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::pool::pool;

    #[test]
    fn rounding_keeps_half_a_step_and_sums() {
        let mut activations = Activations::default();
        activations.reset(19, 96);
        let value = |row: usize, i: usize| ((row * 96 + i) * 31 % 101) as f32 / 7.0 - 6.0;
        activations.fill(&pool().turn(), |row, values| {
            for (i, v) in values.iter_mut().enumerate() {
                *v = value(row, i);
            }
        });
        for row in 0..19 {
            let tile = activations.tile(row / TILE);
            for group in 0..3 {
                let cell = group * TILE + row % TILE;
                let bytes = &tile.bytes[cell * GROUP..][..GROUP];
                for (i, &byte) in bytes.iter().enumerate() {
                    let found = f32::from(byte) * tile.scales[cell];
                    let expected = value(row, group * GROUP + i);
                    assert!((found - expected).abs() <= tile.scales[cell] * 0.5001);
                }
                let [low, high] = [0, 1].map(|half| {
                    let half = bytes[half * 16..][..16].iter();
                    half.map(|&b| i32::from(b)).sum::<i32>()
                });
                let sums = Sums {
                    whole: tile.sums.whole[cell],
                    low: tile.sums.low[cell],
                    high: tile.sums.high[cell],
                };
                assert_eq!(
                    [sums.whole, sums.low, sums.high],
                    [-low - high, -low, -high]
                );
                assert_eq!(tile.totals[cell], tile.scales[cell] * (low + high) as f32);
            }
            // The padding group multiplies to zero.
            let cell = 3 * TILE + row % TILE;
            assert!(tile.bytes[cell * GROUP..][..GROUP].iter().all(|&b| b == 0));
        }
    }

    #[test]
    fn vectors_round_as_the_portable_code_states() {
        for salt in 0..200 {
            let values: [f32; GROUP] =
                std::array::from_fn(|i| ((i * 7919 + salt * 104_729) % 2003) as f32 / 97.0 - 10.0);
            let (mut found, mut expected) = ([0; GROUP], [0; GROUP]);
            assert_eq!(
                round(&values, &mut found),
                portable_round(&values, &mut expected)
            );
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn zeros_and_nonsense_stay_finite() {
        for value in [0.0, f32::NAN, f32::MIN_POSITIVE / 4.0] {
            let mut bytes = [1i8; GROUP];
            let (scale, _) = round_group(&[value; GROUP], &mut bytes);
            assert!(scale.is_finite());
        }
    }
}
