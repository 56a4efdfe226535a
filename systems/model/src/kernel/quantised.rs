//! One panel of packed weights times up to sixteen rows of activations.
//!
//! For every group of 32 columns: unpack the integers of sixteen rows into eight vectors, take
//! the integer dot product with each row of activations, and add it, scaled, to that row's
//! sixteen sums in f32. The order of additions is the order of the columns, whatever the number
//! of rows, so a row's sums do not depend on its neighbours.

use super::activations::{Sums, Tile};
use super::blocks::{Bits, Format, Scales};
use super::packed::unpack;
use super::{GROUP, PANEL, TILE};

/// `sums[row] = panel · activations[row]` for the rows of a tile from `first` on.
pub(super) fn multiply(
    format: Format,
    panel: &[u8],
    tile: &Tile<'_>,
    sums: &mut [[f32; PANEL]; TILE],
) {
    #[cfg(all(
        target_arch = "x86_64",
        target_feature = "avx512f",
        target_feature = "avx512bw",
        target_feature = "avx512vnni",
        target_feature = "f16c",
    ))]
    vectors::multiply(format, panel, tile, sums);
    #[cfg(not(all(
        target_arch = "x86_64",
        target_feature = "avx512f",
        target_feature = "avx512bw",
        target_feature = "avx512vnni",
        target_feature = "f16c",
    )))]
    portable(format, panel, tile, sums);
}

/// Groups of a panel that meet groups of the activations; what lies beyond is padding on
/// either side, and zero.
fn groups(format: Format, panel: &[u8], tile: &Tile<'_>) -> usize {
    let held = panel.len() / format.block_bytes() * format.scales.groups();
    held.min(tile.groups)
}

/// The same arithmetic in plain Rust: what runs without vector instructions, and what they are
/// tested against, bit for bit.
pub(super) fn portable(
    format: Format,
    panel: &[u8],
    tile: &Tile<'_>,
    sums: &mut [[f32; PANEL]; TILE],
) {
    for lane in 0..PANEL {
        for sums in &mut sums[..tile.rows] {
            sums[lane] = 0.0;
        }
        for index in 0..groups(format, panel, tile) {
            let group = unpack(format, panel, index, lane);
            let scale = group.scale.to_f32();
            let minimum = group.minimum.to_f32();
            for (row, sums) in sums.iter_mut().enumerate().take(tile.rows) {
                let cell = index * TILE + row;
                let bytes = &tile.bytes[cell * GROUP..][..GROUP];
                let dot = |half: usize| -> i32 {
                    let range = half * GROUP / 2..(half + 1) * GROUP / 2;
                    let pairs = group.q[range.clone()].iter().zip(&bytes[range]);
                    pairs.map(|(q, a)| i32::from(*q) * i32::from(*a)).sum()
                };
                let activation = tile.scales[cell];
                let total = tile.totals[cell];
                let sum = &mut sums[lane];
                match format.scales {
                    Scales::Plain { zero_log2 } => {
                        let dot = dot(0) + dot(1) + (tile.sums.whole[cell] << zero_log2);
                        *sum = (dot as f32 * scale).mul_add(activation, *sum);
                    }
                    Scales::Minimum => {
                        let dot = dot(0) + dot(1);
                        *sum = (dot as f32 * scale).mul_add(activation, *sum);
                        *sum = minimum.mul_add(total, *sum);
                    }
                    Scales::SuperMinimum => {
                        let dot = dot(0) + dot(1);
                        let scale = scale * f32::from(group.small[0]);
                        let minimum = minimum * f32::from(group.small[1]);
                        *sum = (dot as f32 * scale).mul_add(activation, *sum);
                        *sum = (-minimum).mul_add(total, *sum);
                    }
                    Scales::SuperHalves => {
                        let scales = group
                            .small
                            .map(|small| scale * f32::from(small.cast_signed()));
                        let low = dot(0) + (tile.sums.low[cell] << 5);
                        let high = dot(1) + (tile.sums.high[cell] << 5);
                        let both = (high as f32).mul_add(scales[1], low as f32 * scales[0]);
                        *sum = both.mul_add(activation, *sum);
                    }
                }
            }
        }
    }
}

#[cfg(all(
    target_arch = "x86_64",
    target_feature = "avx512f",
    target_feature = "avx512bw",
    target_feature = "avx512vnni",
    target_feature = "f16c",
))]
mod vectors {
    //! AVX-512 with byte dot products. Rows of activations are broadcast four bytes at a time
    //! against vectors of four columns of sixteen weight rows.
    #![expect(
        unsafe_code,
        reason = "vector loads from raw pointers; `multiply` checks that the panel and the tile \
                  hold what is read"
    )]

    use super::{Bits, Format, GROUP, PANEL, Scales, Sums, TILE, Tile, groups};
    use std::arch::x86_64::*;

    /// Bytes ahead of use that a pass which reads its weights once asks memory for them.
    const AHEAD: usize = 8192;
    /// Bytes that memory delivers at once.
    const LINE: usize = 64;

    /// The integers of a group of a panel: eight vectors of four columns.
    type Quants = [__m512i; 8];

    trait Unpack {
        const BITS: Bits;
        /// # Safety
        /// `at` points to a packed group.
        unsafe fn quants(at: *const u8) -> Quants;
    }

    struct Four;
    struct Five;
    struct Six;
    struct Eight;

    #[inline(always)]
    unsafe fn vector(at: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(at.cast()) }
    }

    #[inline(always)]
    unsafe fn nibbles(at: *const u8) -> Quants {
        unsafe {
            let mask = _mm512_set1_epi8(15);
            let packed: [__m512i; 4] = std::array::from_fn(|i| vector(at.add(64 * i)));
            std::array::from_fn(|i| match i < 4 {
                true => _mm512_and_si512(packed[i], mask),
                false => _mm512_and_si512(_mm512_srli_epi16::<4>(packed[i - 4]), mask),
            })
        }
    }

    impl Unpack for Four {
        const BITS: Bits = Bits::Four;
        #[inline(always)]
        unsafe fn quants(at: *const u8) -> Quants {
            unsafe { nibbles(at) }
        }
    }

    impl Unpack for Five {
        const BITS: Bits = Bits::Five;
        #[inline(always)]
        unsafe fn quants(at: *const u8) -> Quants {
            unsafe {
                let low = nibbles(at);
                let fifth = at.add(PANEL * GROUP / 2).cast::<u64>();
                let sixteen = _mm512_set1_epi8(16);
                std::array::from_fn(|i| {
                    let mask = fifth.add(i).read_unaligned();
                    _mm512_mask_add_epi8(low[i], mask, low[i], sixteen)
                })
            }
        }
    }

    impl Unpack for Six {
        const BITS: Bits = Bits::Six;
        #[inline(always)]
        unsafe fn quants(at: *const u8) -> Quants {
            unsafe {
                let low = nibbles(at);
                let upper = at.add(PANEL * GROUP / 2);
                let upper = [vector(upper), vector(upper.add(64))];
                let mask = _mm512_set1_epi8(0x30);
                std::array::from_fn(|i| {
                    let packed = upper[i / 4];
                    let moved = match i % 4 {
                        0 => _mm512_slli_epi16::<4>(packed),
                        1 => _mm512_slli_epi16::<2>(packed),
                        2 => packed,
                        _ => _mm512_srli_epi16::<2>(packed),
                    };
                    _mm512_or_si512(low[i], _mm512_and_si512(moved, mask))
                })
            }
        }
    }

    impl Unpack for Eight {
        const BITS: Bits = Bits::Eight;
        #[inline(always)]
        unsafe fn quants(at: *const u8) -> Quants {
            unsafe { std::array::from_fn(|i| vector(at.add(64 * i))) }
        }
    }

    #[inline(always)]
    unsafe fn halves(at: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }

    #[inline(always)]
    unsafe fn unsigned(at: *const u8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast()))) }
    }

    #[inline(always)]
    unsafe fn signed(at: *const u8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast()))) }
    }

    /// How a group's integers become a contribution to the sums.
    trait Scale {
        const SCALES: Scales;
        /// What a block's groups share.
        type Block: Copy;
        /// A group's scale, and its minimum or the scale of its second half.
        ///
        /// # Safety
        /// `head` points to the head of a block.
        unsafe fn block(head: *const u8) -> Self::Block;
        /// # Safety
        /// As above.
        unsafe fn group(block: Self::Block, head: *const u8, group: usize) -> [__m512; 2];
    }

    struct Plain<const ZERO_LOG2: u32>;
    struct Minimum;
    struct SuperMinimum;
    struct SuperHalves;

    impl<const ZERO_LOG2: u32> Scale for Plain<ZERO_LOG2> {
        const SCALES: Scales = Scales::Plain {
            zero_log2: ZERO_LOG2,
        };
        type Block = ();
        #[inline(always)]
        unsafe fn block(_: *const u8) {}
        #[inline(always)]
        unsafe fn group((): (), head: *const u8, group: usize) -> [__m512; 2] {
            unsafe { [halves(head.add(group * PANEL * 2)), _mm512_setzero_ps()] }
        }
    }

    impl Scale for Minimum {
        const SCALES: Scales = Scales::Minimum;
        type Block = ();
        #[inline(always)]
        unsafe fn block(_: *const u8) {}
        #[inline(always)]
        unsafe fn group((): (), head: *const u8, group: usize) -> [__m512; 2] {
            unsafe {
                let at = head.add(2 * group * PANEL * 2);
                [halves(at), halves(at.add(PANEL * 2))]
            }
        }
    }

    impl Scale for SuperMinimum {
        const SCALES: Scales = Scales::SuperMinimum;
        type Block = [__m512; 2];
        #[inline(always)]
        unsafe fn block(head: *const u8) -> [__m512; 2] {
            unsafe {
                let minimum = halves(head.add(PANEL * 2));
                [halves(head), _mm512_sub_ps(_mm512_setzero_ps(), minimum)]
            }
        }
        #[inline(always)]
        unsafe fn group(block: [__m512; 2], head: *const u8, group: usize) -> [__m512; 2] {
            unsafe {
                let at = head.add(4 * PANEL + 2 * group * PANEL);
                [
                    _mm512_mul_ps(block[0], unsigned(at)),
                    _mm512_mul_ps(block[1], unsigned(at.add(PANEL))),
                ]
            }
        }
    }

    impl Scale for SuperHalves {
        const SCALES: Scales = Scales::SuperHalves;
        type Block = __m512;
        #[inline(always)]
        unsafe fn block(head: *const u8) -> __m512 {
            unsafe { _mm512_loadu_ps(head.cast()) }
        }
        #[inline(always)]
        unsafe fn group(block: __m512, head: *const u8, group: usize) -> [__m512; 2] {
            unsafe {
                let at = head.add(4 * PANEL + 2 * group * PANEL);
                [
                    _mm512_mul_ps(block, signed(at)),
                    _mm512_mul_ps(block, signed(at.add(PANEL))),
                ]
            }
        }
    }

    /// `count` vectors of columns from `from` on, times the bytes of one row.
    #[inline(always)]
    unsafe fn dot(
        start: __m512i,
        quants: &Quants,
        bytes: *const i8,
        from: usize,
        count: usize,
    ) -> __m512i {
        unsafe {
            let mut sum = start;
            for (i, quants) in quants.iter().enumerate().skip(from).take(count) {
                let four = _mm512_set1_epi32(bytes.add(4 * i).cast::<i32>().read_unaligned());
                sum = _mm512_dpbusd_epi32(sum, *quants, four);
            }
            sum
        }
    }

    /// The bytes before the first row, and how far the groups of a tile reach.
    #[derive(Clone, Copy)]
    struct Rows {
        bytes: *const i8,
        scales: *const f32,
        sums: Sums<*const i32>,
        totals: *const f32,
        /// Whether the panel comes from memory and not from a cache.
        stream: bool,
    }

    /// # Safety
    /// `panel` holds `groups` groups, `rows` as many groups of a tile with at least `M` rows.
    #[inline(never)]
    unsafe fn rows<U: Unpack, S: Scale, const M: usize>(
        panel: *const u8,
        groups: usize,
        rows: Rows,
        out: &mut [[f32; PANEL]],
    ) {
        unsafe {
            let format = Format {
                bits: U::BITS,
                scales: S::SCALES,
            };
            let mut sums = [_mm512_setzero_ps(); M];
            let per_block = const { S::SCALES.groups() };
            let lines = format.block_bytes() / LINE;
            let mut block = panel;
            let mut index = 0;
            while index < groups {
                let shared = S::block(block);
                let quants = block.add(S::SCALES.head_bytes());
                for g in 0..per_block.min(groups - index) {
                    // Each group asks for its share of a later block's lines: all of them at once
                    // fill the core's queue of misses, and the sums then wait for memory in turns.
                    if rows.stream {
                        for line in lines * g / per_block..lines * (g + 1) / per_block {
                            let ahead = block.wrapping_add(AHEAD + line * LINE);
                            _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                        }
                    }
                    let q = U::quants(quants.add(g * U::BITS.group_bytes()));
                    let [first, second] = S::group(shared, block, g);
                    let cell = (index + g) * TILE;
                    for m in 0..M {
                        let bytes = rows.bytes.add((cell + m) * GROUP);
                        let scale = _mm512_set1_ps(*rows.scales.add(cell + m));
                        let sum = |sums: *const i32| _mm512_set1_epi32(*sums.add(cell + m));
                        sums[m] = match S::SCALES {
                            Scales::Plain { zero_log2 } => {
                                let start = sum(rows.sums.whole);
                                let start = match zero_log2 {
                                    3 => _mm512_slli_epi32::<3>(start),
                                    4 => _mm512_slli_epi32::<4>(start),
                                    _ => _mm512_slli_epi32::<7>(start),
                                };
                                let dot = _mm512_cvtepi32_ps(dot(start, &q, bytes, 0, 8));
                                _mm512_fmadd_ps(_mm512_mul_ps(dot, first), scale, sums[m])
                            }
                            Scales::Minimum | Scales::SuperMinimum => {
                                let dot = dot(_mm512_setzero_si512(), &q, bytes, 0, 8);
                                let dot = _mm512_cvtepi32_ps(dot);
                                let sum =
                                    _mm512_fmadd_ps(_mm512_mul_ps(dot, first), scale, sums[m]);
                                let total = _mm512_set1_ps(*rows.totals.add(cell + m));
                                _mm512_fmadd_ps(second, total, sum)
                            }
                            Scales::SuperHalves => {
                                let low = _mm512_slli_epi32::<5>(sum(rows.sums.low));
                                let high = _mm512_slli_epi32::<5>(sum(rows.sums.high));
                                let one = _mm512_cvtepi32_ps(dot(low, &q, bytes, 0, 4));
                                let two = _mm512_cvtepi32_ps(dot(high, &q, bytes, 4, 4));
                                let both = _mm512_fmadd_ps(two, second, _mm512_mul_ps(one, first));
                                _mm512_fmadd_ps(both, scale, sums[m])
                            }
                        };
                    }
                }
                index += per_block;
                block = block.add(format.block_bytes());
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                _mm512_storeu_ps(out.as_mut_ptr(), sum);
            }
        }
    }

    /// Cuts the rows of a tile into the counts that have a kernel.
    ///
    /// # Safety
    /// As for [`rows`].
    unsafe fn all_rows<U: Unpack, S: Scale>(
        panel: *const u8,
        groups: usize,
        tile: &Tile<'_>,
        out: &mut [[f32; PANEL]; TILE],
    ) {
        let mut first = 0;
        while first < tile.rows {
            // SAFETY: `first` and the count stay below `tile.rows`, which is at most `TILE`.
            unsafe {
                let at = Rows {
                    bytes: tile.bytes.as_ptr().add(first * GROUP),
                    scales: tile.scales.as_ptr().add(first),
                    sums: Sums {
                        whole: tile.sums.whole.as_ptr().add(first),
                        low: tile.sums.low.as_ptr().add(first),
                        high: tile.sums.high.as_ptr().add(first),
                    },
                    totals: tile.totals.as_ptr().add(first),
                    stream: tile.only && first == 0,
                };
                let out = &mut out[first..];
                first += match tile.rows - first {
                    16 => {
                        rows::<U, S, 16>(panel, groups, at, out);
                        16
                    }
                    12..16 => {
                        rows::<U, S, 12>(panel, groups, at, out);
                        12
                    }
                    8..12 => {
                        rows::<U, S, 8>(panel, groups, at, out);
                        8
                    }
                    6..8 => {
                        rows::<U, S, 6>(panel, groups, at, out);
                        6
                    }
                    4..6 => {
                        rows::<U, S, 4>(panel, groups, at, out);
                        4
                    }
                    3 => {
                        rows::<U, S, 3>(panel, groups, at, out);
                        3
                    }
                    2 => {
                        rows::<U, S, 2>(panel, groups, at, out);
                        2
                    }
                    _ => {
                        rows::<U, S, 1>(panel, groups, at, out);
                        1
                    }
                };
            }
        }
    }

    pub(super) fn multiply(
        format: Format,
        panel: &[u8],
        tile: &Tile<'_>,
        out: &mut [[f32; PANEL]; TILE],
    ) {
        let groups = groups(format, panel, tile);
        let cells = groups * TILE;
        assert!(tile.rows <= TILE);
        assert!(tile.bytes.len() >= cells * GROUP && tile.scales.len() >= cells);
        let Sums { whole, low, high } = tile.sums;
        assert!(whole.len() >= cells && low.len() >= cells && high.len() >= cells);
        assert!(tile.totals.len() >= cells);
        let panel = panel.as_ptr();
        // SAFETY: `groups` is bounded by the panel's blocks, and the assertions bound the tile.
        unsafe {
            match (format.bits, format.scales) {
                (Bits::Four, Scales::Plain { .. }) => {
                    all_rows::<Four, Plain<3>>(panel, groups, tile, out);
                }
                (Bits::Five, Scales::Plain { .. }) => {
                    all_rows::<Five, Plain<4>>(panel, groups, tile, out);
                }
                (Bits::Eight, Scales::Plain { .. }) => {
                    all_rows::<Eight, Plain<7>>(panel, groups, tile, out);
                }
                (Bits::Four, Scales::Minimum) => {
                    all_rows::<Four, Minimum>(panel, groups, tile, out);
                }
                (Bits::Five, Scales::Minimum) => {
                    all_rows::<Five, Minimum>(panel, groups, tile, out);
                }
                (Bits::Four, Scales::SuperMinimum) => {
                    all_rows::<Four, SuperMinimum>(panel, groups, tile, out);
                }
                (Bits::Five, Scales::SuperMinimum) => {
                    all_rows::<Five, SuperMinimum>(panel, groups, tile, out);
                }
                (Bits::Six, Scales::SuperHalves) => {
                    all_rows::<Six, SuperHalves>(panel, groups, tile, out);
                }
                // `Format::of` makes no other pair.
                _ => super::portable(format, &[], tile, out),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::activations::Activations;
    use crate::kernel::packed::Panel;
    use crate::kernel::packed::tests::{FORMATS, matrix, packed};
    use crate::kernel::pool::pool;

    fn activations(rows: usize, columns: usize) -> Activations {
        let mut activations = Activations::default();
        activations.reset(rows, columns);
        activations.fill(&pool().turn(), |row, values| {
            for (i, value) in values.iter_mut().enumerate() {
                *value = ((row * columns + i) * 37 % 211) as f32 / 40.0 - 2.6;
            }
        });
        activations
    }

    /// Bit for bit, for every format and every number of rows.
    #[test]
    fn vectors_compute_what_the_portable_code_states() {
        for dtype in FORMATS {
            let columns = dtype.block_size().max(GROUP) * 3;
            let packed = packed(&matrix(16, columns, dtype));
            let Panel::Packed(format, panel) = packed.panel(0) else {
                panic!("{dtype:?} packs");
            };
            for rows in 1..=TILE {
                let activations = activations(rows, columns);
                let tile = activations.tile(0);
                let mut found = [[0f32; PANEL]; TILE];
                multiply(format, panel, &tile, &mut found);
                let mut expected = [[0f32; PANEL]; TILE];
                portable(format, panel, &tile, &mut expected);
                for row in 0..rows {
                    assert_eq!(
                        found[row].map(f32::to_bits),
                        expected[row].map(f32::to_bits),
                        "{dtype:?}, row {row} of {rows}"
                    );
                }
            }
        }
    }
}
