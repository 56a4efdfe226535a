//! Packing of codes of 2, 3, 4 or 8 bits, whole rows at a time.
//!
//! A byte holds codes of the same channel and of several tokens, so that packing combines whole
//! rows with shifts, which compilers turn into vector instructions. Rows come in blocks of eight
//! tokens: with 4 bits two tokens share a row of bytes, with 2 bits four; with 3 bits a block has
//! the rows of the low two bits, then one row with the high bits of all eight.

/// Tokens of a block.
const BLOCK: usize = 8;

/// Rows of bytes that hold the codes of `tokens` tokens.
pub(super) const fn rows(tokens: usize, bits: usize) -> usize {
    match bits {
        2 => tokens.div_ceil(4),
        3 => tokens.div_ceil(4) + tokens.div_ceil(8),
        4 => tokens.div_ceil(2),
        _ => tokens,
    }
}

/// Packs `codes`, `[tokens, len]`, into `out`, `[rows(tokens, bits), len]`.
pub(super) fn pack(codes: &[u8], len: usize, bits: usize, out: &mut [u8]) {
    match bits {
        2 => merge::<2, 4, 0>(codes, len, out),
        3 => {
            for (block, out) in codes.chunks(BLOCK * len).zip(out.chunks_mut(3 * len)) {
                let (low, high) = out.split_at_mut(out.len() - len);
                merge::<2, 4, 0>(block, len, low);
                merge::<1, 8, 2>(block, len, high);
            }
        }
        4 => merge::<4, 2, 0>(codes, len, out),
        _ => out.copy_from_slice(codes),
    }
}

/// The reverse of [`pack`].
pub(super) fn unpack(bytes: &[u8], len: usize, bits: usize, codes: &mut [u8]) {
    match bits {
        2 => split::<2, 4>(bytes, len, codes, |code, _| code),
        3 => {
            for (block, bytes) in codes.chunks_mut(BLOCK * len).zip(bytes.chunks(3 * len)) {
                let (low, high) = bytes.split_at(bytes.len() - len);
                split::<2, 4>(low, len, block, |code, _| code);
                split::<1, 8>(high, len, block, |bit, code| code | bit << 2);
            }
        }
        4 => split::<4, 2>(bytes, len, codes, |code, _| code),
        _ => codes.copy_from_slice(bytes),
    }
}

/// Merges `WIDTH` bits from bit `FROM` on of `SHARE` rows into one.
#[inline]
fn merge<const WIDTH: usize, const SHARE: usize, const FROM: usize>(
    codes: &[u8],
    len: usize,
    out: &mut [u8],
) {
    let mask = (1_u8 << WIDTH) - 1;
    for (rows, out) in codes.chunks(SHARE * len).zip(out.chunks_exact_mut(len)) {
        out.fill(0);
        for (place, row) in rows.chunks_exact(len).enumerate() {
            let shift = place * WIDTH;
            for (out, code) in out.iter_mut().zip(row) {
                *out |= (code >> FROM & mask) << shift;
            }
        }
    }
}

/// The reverse of [`merge`]; `put` joins what is read with what a code holds already.
#[inline]
fn split<const WIDTH: usize, const SHARE: usize>(
    bytes: &[u8],
    len: usize,
    codes: &mut [u8],
    put: impl Fn(u8, u8) -> u8,
) {
    let mask = (1_u8 << WIDTH) - 1;
    for (rows, bytes) in codes.chunks_mut(SHARE * len).zip(bytes.chunks_exact(len)) {
        for (place, row) in rows.chunks_exact_mut(len).enumerate() {
            let shift = place * WIDTH;
            for (code, byte) in row.iter_mut().zip(bytes) {
                *code = put(byte >> shift & mask, *code);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_and_every_raggedness_round_trips() {
        for bits in [2, 3, 4, 8] {
            for tokens in 1..20 {
                let len = 5;
                let mask = ((1_u16 << bits) - 1) as u8;
                let codes: Vec<u8> = (0..tokens * len)
                    .map(|i| (i * 73 + i / 7) as u8 & mask)
                    .collect();
                let mut out = vec![0xaa; rows(tokens, bits) * len];
                pack(&codes, len, bits, &mut out);
                let mut back = vec![0xaa; codes.len()];
                unpack(&out, len, bits, &mut back);
                assert_eq!(back, codes, "{bits} bits, {tokens} tokens");
                assert!(out.len() * 8 >= codes.len() * bits);
            }
            assert_eq!(rows(8, bits), bits);
        }
    }
}
