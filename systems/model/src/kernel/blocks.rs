//! The weight formats of GGUF files, read block by block, and the packed form of each.
//!
//! Every format is unsigned integers with a scale, and an offset that is either a constant (the
//! zero point) or stored: `w = scale * (q - zero)` or `w = scale * q - minimum`. The layouts of
//! the blocks are those of ggml's `block_*` types.

use super::{GROUP, PANEL};
use candle_core::quantized::GgmlDType;
use half::f16;

/// How the integers of a group of 32 are packed for a panel of 16 rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bits {
    /// Two to a byte.
    Four,
    /// As four, and a bit mask with the fifth bits.
    Five,
    /// As four, and a quarter byte with the upper two bits.
    Six,
    /// One to a byte.
    Eight,
}

impl Bits {
    /// Bytes of a group of a panel.
    pub(super) const fn group_bytes(self) -> usize {
        let values = PANEL * GROUP;
        match self {
            Self::Four => values / 2,
            Self::Five => values / 2 + values / 8,
            Self::Six => values / 2 + values / 4,
            Self::Eight => values,
        }
    }
}

/// Where scales and offsets come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scales {
    /// One f16 scale a group; the zero point is a power of two, given as its logarithm.
    Plain {
        /// Logarithm of the zero point.
        zero_log2: u32,
    },
    /// One f16 scale and one f16 minimum (added) a group.
    Minimum,
    /// Super-blocks of 8 groups: f16 scale and minimum of the super-block, times six bits each of
    /// a group. The minimum is subtracted.
    SuperMinimum,
    /// Super-blocks of 8 groups: f16 scale of the super-block times a signed byte for each half
    /// group; the zero point is 32.
    SuperHalves,
}

impl Scales {
    /// Groups in a block.
    pub(super) const fn groups(self) -> usize {
        match self {
            Self::Plain { .. } | Self::Minimum => 2,
            Self::SuperMinimum | Self::SuperHalves => 8,
        }
    }

    /// Bytes of scales of a block of a panel; a multiple of 64, so that the integers after it
    /// are aligned.
    pub(super) const fn head_bytes(self) -> usize {
        match self {
            Self::Plain { .. } => 2 * PANEL * 2,
            Self::Minimum => 2 * PANEL * 2 * 2,
            // Scale and minimum in f16, then a byte each for every group.
            Self::SuperMinimum => 2 * PANEL * 2 + 8 * 2 * PANEL,
            // Scale in f32, then two bytes for every group.
            Self::SuperHalves => PANEL * 4 + 8 * 2 * PANEL,
        }
    }
}

/// A weight format of a file and its packed form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Format {
    pub(super) bits: Bits,
    pub(super) scales: Scales,
}

impl Format {
    /// The packed form of a file's format; `None` for formats that have none and are widened to
    /// f32 instead.
    pub(super) fn of(dtype: GgmlDType) -> Option<Self> {
        let plain = |bits, zero_log2| Self {
            bits,
            scales: Scales::Plain { zero_log2 },
        };
        let with = |bits, scales| Self { bits, scales };
        Some(match dtype {
            GgmlDType::Q4_0 => plain(Bits::Four, 3),
            GgmlDType::Q5_0 => plain(Bits::Five, 4),
            GgmlDType::Q8_0 => plain(Bits::Eight, 7),
            GgmlDType::Q4_1 => with(Bits::Four, Scales::Minimum),
            GgmlDType::Q5_1 => with(Bits::Five, Scales::Minimum),
            GgmlDType::Q4K => with(Bits::Four, Scales::SuperMinimum),
            GgmlDType::Q5K => with(Bits::Five, Scales::SuperMinimum),
            GgmlDType::Q6K => with(Bits::Six, Scales::SuperHalves),
            _ => return None,
        })
    }

    /// Bytes of a packed block of a panel.
    pub(super) const fn block_bytes(self) -> usize {
        self.scales.head_bytes() + self.scales.groups() * self.bits.group_bytes()
    }
}

/// One group of one row, taken out of a file's block.
#[derive(Clone, Copy)]
pub(super) struct Group {
    /// The integers, unsigned.
    pub(super) q: [u8; GROUP],
    /// `Plain`, `Minimum`: the group's scale. `Super*`: the super-block's.
    pub(super) scale: f16,
    /// `Minimum`: the group's; `SuperMinimum`: the super-block's.
    pub(super) minimum: f16,
    /// `SuperMinimum`: six-bit scale and minimum. `SuperHalves`: the bytes of both halves.
    pub(super) small: [u8; 2],
}

impl Group {
    /// A group that multiplies to zero.
    pub(super) const ZERO: Self = Self {
        q: [0; GROUP],
        scale: f16::ZERO,
        minimum: f16::ZERO,
        small: [0; 2],
    };
}

fn half(bytes: &[u8]) -> f16 {
    f16::from_le_bytes([bytes[0], bytes[1]])
}

/// Low nibbles are the first half of a group of 32, high nibbles the second.
fn nibbles(bytes: &[u8]) -> [u8; GROUP] {
    std::array::from_fn(|i| match i < GROUP / 2 {
        true => bytes[i] & 15,
        false => bytes[i - GROUP / 2] >> 4,
    })
}

fn with_fifth(mut q: [u8; GROUP], fifth: &[u8]) -> [u8; GROUP] {
    let fifth = u32::from_le_bytes([fifth[0], fifth[1], fifth[2], fifth[3]]);
    for (i, q) in q.iter_mut().enumerate() {
        *q |= ((fifth >> i & 1) as u8) << 4;
    }
    q
}

/// Six-bit scale and minimum of a group of a `Q4_K` or `Q5_K` super-block.
fn six_bits(packed: &[u8], group: usize) -> [u8; 2] {
    match group < 4 {
        true => [packed[group] & 63, packed[group + 4] & 63],
        false => [
            (packed[group + 4] & 15) | (packed[group - 4] >> 6 << 4),
            (packed[group + 4] >> 4) | (packed[group] >> 6 << 4),
        ],
    }
}

/// Group `index` of a row whose blocks lie in `row`.
///
/// # Panics
/// When the row is shorter than the format says: lengths are checked where a matrix is made.
pub(super) fn read_group(dtype: GgmlDType, row: &[u8], index: usize) -> Group {
    let size = dtype.type_size();
    let per_block = dtype.block_size() / GROUP;
    let block = &row[index / per_block * size..][..size];
    let group = index % per_block;
    let scaled = |scale, q| Group {
        q,
        scale,
        ..Group::ZERO
    };
    match dtype {
        GgmlDType::Q4_0 => scaled(half(block), nibbles(&block[2..])),
        GgmlDType::Q5_0 => scaled(half(block), with_fifth(nibbles(&block[6..]), &block[2..6])),
        GgmlDType::Q8_0 => scaled(
            half(block),
            std::array::from_fn(|i| block[2 + i].wrapping_add(128)),
        ),
        GgmlDType::Q4_1 => Group {
            minimum: half(&block[2..]),
            ..scaled(half(block), nibbles(&block[4..]))
        },
        GgmlDType::Q5_1 => Group {
            minimum: half(&block[2..]),
            ..scaled(half(block), with_fifth(nibbles(&block[8..]), &block[4..8]))
        },
        GgmlDType::Q4K | GgmlDType::Q5K => {
            let low = match dtype {
                GgmlDType::Q4K => &block[16..],
                _ => &block[48..],
            };
            let low = &low[group / 2 * GROUP..][..GROUP];
            let q = std::array::from_fn(|i| {
                let four = low[i] >> (group % 2 * 4) & 15;
                match dtype {
                    GgmlDType::Q4K => four,
                    _ => four | (block[16 + i] >> group & 1) << 4,
                }
            });
            Group {
                minimum: half(&block[2..]),
                small: six_bits(&block[4..16], group),
                ..scaled(half(block), q)
            }
        }
        GgmlDType::Q6K => {
            // Two halves of 128 values, each of four groups whose low nibbles share 64 bytes.
            let (half_block, quarter) = (group / 4, group % 4);
            let low = &block[half_block * 64 + quarter % 2 * GROUP..][..GROUP];
            let high = &block[128 + half_block * GROUP..][..GROUP];
            let q = std::array::from_fn(|i| {
                (low[i] >> (quarter / 2 * 4) & 15) | (high[i] >> (quarter * 2) & 3) << 4
            });
            let scales = &block[192 + 2 * group..];
            Group {
                small: [scales[0], scales[1]],
                ..scaled(half(&block[208..]), q)
            }
        }
        // `Format::of` admits the formats above only.
        _ => Group::ZERO,
    }
}
