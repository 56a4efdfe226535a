//! The vector instructions that the compiler does not find by itself, each beside its definition.
//!
//! Integers only: what runs is a matter of time, never of the result.

/// Numbers that a panel's place multiplies side by side, in each of its columns.
pub(super) const QUAD: usize = 4;
/// Columns of a panel, and rows that are multiplied at a time.
pub(super) const COLUMNS: usize = 32;
pub(crate) const ROWS: usize = 8;

/// Four numbers of each column of a panel.
pub(super) type Quad = [[i8; QUAD]; COLUMNS];

/// Products of [`ROWS`] rows, `[ROWS, panel.len()]`, with a panel, added to `start`.
#[inline]
pub(super) fn multiply(
    rows: &[[u8; QUAD]],
    panel: &[Quad],
    start: &[i32; COLUMNS],
) -> [[i32; COLUMNS]; ROWS] {
    chosen::multiply(rows, panel, start)
}

/// How many of sixteen numbers are at most `limit`; the numbers ascend.
#[inline(always)]
pub(super) fn count_reached(numbers: &[u16; 16], limit: u16) -> usize {
    chosen::count_reached(numbers, limit)
}

#[cfg(all(
    target_arch = "x86_64",
    target_feature = "avx2",
    not(all(
        target_feature = "avx512bw",
        target_feature = "avx512vl",
        target_feature = "avx512vnni"
    ))
))]
use avx2 as chosen;
#[cfg(all(
    target_arch = "x86_64",
    target_feature = "avx512bw",
    target_feature = "avx512vl",
    target_feature = "avx512vnni"
))]
use avx512 as chosen;
#[cfg(not(all(target_arch = "x86_64", target_feature = "avx2")))]
use plain as chosen;

/// The definitions, and what runs where there is nothing faster.
#[cfg_attr(
    all(not(test), target_arch = "x86_64", target_feature = "avx2"),
    expect(dead_code, reason = "what the instructions are tested against")
)]
mod plain {
    use super::{COLUMNS, QUAD, Quad, ROWS};

    #[inline(never)]
    pub(super) fn multiply(
        rows: &[[u8; QUAD]],
        panel: &[Quad],
        start: &[i32; COLUMNS],
    ) -> [[i32; COLUMNS]; ROWS] {
        let rows: [_; ROWS] = std::array::from_fn(|row| &rows[row * panel.len()..][..panel.len()]);
        let mut sums = [*start; ROWS];
        for (place, numbers) in panel.iter().enumerate() {
            for (sums, row) in sums.iter_mut().zip(&rows) {
                let factors = row[place].map(i32::from);
                for (sum, numbers) in sums.iter_mut().zip(numbers) {
                    let products = factors.iter().zip(numbers);
                    *sum += products.map(|(x, y)| x * i32::from(*y)).sum::<i32>();
                }
            }
        }
        sums
    }

    /// Which four, then which of them, without a branch and with comparisons that do not wait for
    /// each other.
    #[inline(always)]
    pub(super) fn count_reached(numbers: &[u16; 16], limit: u16) -> usize {
        let reached = |index: usize| usize::from(numbers[index % 16] <= limit);
        let four = 4 * (reached(3) + reached(7) + reached(11));
        let within = reached(four) + reached(four + 1) + reached(four + 2);
        // The last of the last four is in no comparison above.
        four + within + usize::from(four + within == 15) * reached(15)
    }
}

#[cfg(all(
    target_arch = "x86_64",
    target_feature = "avx512bw",
    target_feature = "avx512vl",
    target_feature = "avx512vnni"
))]
mod avx512 {
    #![expect(
        unsafe_code,
        reason = "loads through pointers, of what the target has by its features"
    )]

    use std::arch::x86_64::{
        __m512i, _mm256_cmple_epu16_mask, _mm256_loadu_si256, _mm256_set1_epi16,
        _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_storeu_si512,
    };

    use super::{COLUMNS, QUAD, Quad, ROWS};

    /// 32-bit numbers of a vector, and vectors of a row.
    const LANES: usize = 16;
    const VECTORS: usize = COLUMNS / LANES;
    const _: () = assert!(VECTORS == 2 && size_of::<Quad>() == VECTORS * size_of::<__m512i>());

    #[inline(never)]
    pub(super) fn multiply(
        rows: &[[u8; QUAD]],
        panel: &[Quad],
        start: &[i32; COLUMNS],
    ) -> [[i32; COLUMNS]; ROWS] {
        let rows: [_; ROWS] = std::array::from_fn(|row| &rows[row * panel.len()..][..panel.len()]);
        let mut out = [[0; COLUMNS]; ROWS];
        // SAFETY: this is compiled only where the target has the instructions. Every pointer is
        // that of an array as long as two vectors, and needs no alignment.
        unsafe {
            let load = |at: *const __m512i| [0, 1].map(|i| _mm512_loadu_si512(at.add(i)));
            let mut sums = [load(start.as_ptr().cast()); ROWS];
            for (place, numbers) in panel.iter().enumerate() {
                let numbers: [_; VECTORS] = load(numbers.as_ptr().cast());
                for (sums, row) in sums.iter_mut().zip(&rows) {
                    let factors = _mm512_set1_epi32(i32::from_ne_bytes(row[place]));
                    for (sum, numbers) in sums.iter_mut().zip(numbers) {
                        *sum = _mm512_dpbusd_epi32(*sum, factors, numbers);
                    }
                }
            }
            for (out, sums) in out.iter_mut().zip(&sums) {
                for (out, sum) in out.chunks_exact_mut(LANES).zip(sums) {
                    _mm512_storeu_si512(out.as_mut_ptr().cast(), *sum);
                }
            }
        }
        out
    }

    #[inline(always)]
    pub(super) fn count_reached(numbers: &[u16; 16], limit: u16) -> usize {
        // SAFETY: as above; the array is as long as the vector.
        let reached = unsafe {
            let numbers = _mm256_loadu_si256(numbers.as_ptr().cast());
            _mm256_cmple_epu16_mask(numbers, _mm256_set1_epi16(limit.cast_signed()))
        };
        reached.count_ones() as usize
    }
}

#[cfg(all(
    target_arch = "x86_64",
    target_feature = "avx2",
    not(all(
        target_feature = "avx512bw",
        target_feature = "avx512vl",
        target_feature = "avx512vnni"
    ))
))]
mod avx2 {
    #![expect(
        unsafe_code,
        reason = "loads through pointers, of what the target has by its features"
    )]

    use std::arch::x86_64::{
        __m256i, _mm_loadu_si128, _mm_set1_epi32, _mm256_add_epi32, _mm256_cvtepi8_epi16,
        _mm256_cvtepu8_epi16, _mm256_madd_epi16, _mm256_setzero_si256, _mm256_storeu_si256,
    };

    pub(super) use super::plain::count_reached;
    use super::{COLUMNS, QUAD, Quad, ROWS};

    /// Columns of a vector of 16-bit numbers, vectors that are worked on at a time, and rows.
    const WIDTH: usize = 16 / QUAD;
    const VECTORS: usize = 4;
    const PAIR: usize = 2;
    /// Sums of two products each.
    const HALVES: usize = 2;

    #[inline(never)]
    pub(super) fn multiply(
        rows: &[[u8; QUAD]],
        panel: &[Quad],
        start: &[i32; COLUMNS],
    ) -> [[i32; COLUMNS]; ROWS] {
        let rows: [_; ROWS] = std::array::from_fn(|row| &rows[row * panel.len()..][..panel.len()]);
        let mut out = [*start; ROWS];
        for first in (0..COLUMNS).step_by(VECTORS * WIDTH) {
            for (rows, out) in rows.chunks_exact(PAIR).zip(out.chunks_exact_mut(PAIR)) {
                let mut halves = [[[0; WIDTH * HALVES]; VECTORS]; PAIR];
                // SAFETY: this is compiled only where the target has the instructions. Pointers
                // are those of arrays as long as the vector, and need no alignment.
                unsafe {
                    let mut sums = [[_mm256_setzero_si256(); VECTORS]; PAIR];
                    for (place, numbers) in panel.iter().enumerate() {
                        let (numbers, _) = numbers[first..].as_chunks::<WIDTH>();
                        let numbers: [_; VECTORS] = std::array::from_fn(|vector| {
                            let at = numbers[vector].as_ptr().cast();
                            _mm256_cvtepi8_epi16(_mm_loadu_si128(at))
                        });
                        for (sums, row) in sums.iter_mut().zip(rows) {
                            let factors = _mm_set1_epi32(i32::from_ne_bytes(row[place]));
                            let factors = _mm256_cvtepu8_epi16(factors);
                            for (sum, numbers) in sums.iter_mut().zip(numbers) {
                                let products = _mm256_madd_epi16(factors, numbers);
                                *sum = _mm256_add_epi32(*sum, products);
                            }
                        }
                    }
                    for (halves, sum) in halves.iter_mut().flatten().zip(sums.as_flattened()) {
                        _mm256_storeu_si256(halves.as_mut_ptr().cast::<__m256i>(), *sum);
                    }
                }
                for (out, halves) in out.iter_mut().zip(&halves) {
                    let (halves, _) = halves.as_flattened().as_chunks::<HALVES>();
                    for (out, [even, odd]) in out[first..].iter_mut().zip(halves) {
                        *out += even + odd;
                    }
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(count: usize, seed: usize) -> impl Iterator<Item = u8> {
        (0..count).map(move |i| ((i * 7919 + seed * 104_729) % 256) as u8)
    }

    #[test]
    fn products_are_those_of_the_definition() {
        for (quads, seed) in [(1, 0), (3, 1), (128, 2)] {
            let numbers = bytes(quads * QUAD * COLUMNS, seed).map(u8::cast_signed);
            let numbers: Vec<i8> = numbers.collect();
            let (numbers, _) = numbers.as_chunks::<QUAD>();
            let (panel, _) = numbers.as_chunks::<COLUMNS>();
            let rows: Vec<u8> = bytes(quads * QUAD * ROWS, seed + 5).collect();
            let start = std::array::from_fn(|column| column as i32 * 1001 - 9);
            let (rows, _) = rows.as_chunks();
            let found = multiply(rows, panel, &start);
            assert_eq!(found, plain::multiply(rows, panel, &start));
            let row = 3;
            let column = 17;
            let mut sum = start[column];
            for (place, numbers) in panel.iter().enumerate() {
                for i in 0..QUAD {
                    let factor = i32::from(rows[row * quads + place][i]);
                    sum += factor * i32::from(numbers[column][i]);
                }
            }
            assert_eq!(found[row][column], sum);
        }
    }

    proptest! {
        #[test]
        fn counts_are_those_of_the_definition(mut numbers: [u16; 16], limit: u16) {
            numbers.sort_unstable();
            for limit in [limit, numbers[0], numbers[15], 0, u16::MAX] {
                let count = numbers.iter().filter(|number| **number <= limit).count();
                prop_assert_eq!(count_reached(&numbers, limit), count);
                prop_assert_eq!(plain::count_reached(&numbers, limit), count);
            }
        }
    }
}
