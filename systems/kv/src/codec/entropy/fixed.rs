//! Symbols at fixed widths: what a quantiser costs without an entropy stage.

use super::{Plane, SymbolCoder};
use crate::codec::TileShape;

/// Writes the symbols token by token, each with its channel's bits, the first in the lowest
/// bits of the first byte. The rest of the last byte is zero.
#[derive(Debug, Clone, Copy)]
pub(in crate::codec) struct Packed;

impl SymbolCoder for Packed {
    fn name(&self) -> &'static str {
        "packed"
    }

    fn encode(&self, plane: &Plane<'_>, symbols: &[i16], out: &mut Vec<u8>) {
        let (mut held, mut count) = (0_u64, 0);
        for (head, symbols) in symbols.chunks_exact(plane.head_run()).enumerate() {
            let widths = plane.head_widths(head);
            for row in symbols.chunks_exact(widths.len()) {
                for (symbol, width) in row.iter().zip(widths) {
                    let mask = (1_u64 << width) - 1;
                    held |= (symbol.cast_unsigned() as u64 & mask) << count;
                    count += u32::from(*width);
                    while count >= 8 {
                        out.push(held as u8);
                        held >>= 8;
                        count -= 8;
                    }
                }
            }
        }
        if count > 0 {
            out.push(held as u8);
        }
    }

    fn decode(&self, plane: &Plane<'_>, bytes: &[u8], symbols: &mut [i16]) -> Option<()> {
        if bytes.len() != Self::len(plane.shape, plane.widths) {
            return None;
        }
        let mut bytes = bytes.iter();
        let (mut held, mut count) = (0_u64, 0);
        for (head, symbols) in symbols.chunks_exact_mut(plane.head_run()).enumerate() {
            let widths = plane.head_widths(head);
            for row in symbols.chunks_exact_mut(widths.len()) {
                for (symbol, width) in row.iter_mut().zip(widths) {
                    let width = u32::from(*width);
                    if width == 0 {
                        continue;
                    }
                    while count < width {
                        held |= u64::from(*bytes.next()?) << count;
                        count += 8;
                    }
                    // Moves the symbol's sign to the top and back down over all bits.
                    let bits = (held << (64 - width)).cast_signed() >> (64 - width);
                    *symbol = bits as i16;
                    held >>= width;
                    count -= width;
                }
            }
        }
        (held == 0).then_some(())
    }
}

impl Packed {
    /// Bytes of a side's symbols.
    pub(in crate::codec) fn len(shape: TileShape, widths: &[u8]) -> usize {
        let bits: usize = widths.iter().map(|width| usize::from(*width)).sum();
        (bits * shape.tokens()).div_ceil(8)
    }
}
