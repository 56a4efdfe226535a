//! Entropy coding, without loss.
//!
//! [`Zstd`] codes the bytes of whatever stands before it. The other coders code the integers of
//! a quantiser, whose distribution differs from channel to channel; without one, [`Packed`]
//! writes them at fixed widths.
//!
//! The arithmetic coders are written here rather than taken from a crate: `constriction`, the
//! best kept one, works on words of 32 bits and decodes whatever it is given, whereas a payload
//! has to be refused when a byte is missing or left over, and the progressive form has to stop at
//! the last byte that arrived.

mod adaptive;
mod context;
mod fixed;
mod nibble;
mod range_coder;
mod tables;
mod zstd;

pub use adaptive::Adaptive;
pub use context::Context;
pub use tables::Tables;
pub use zstd::Zstd;

pub(super) use adaptive::AdaptiveCoder;
pub(super) use context::ContextCoder;
pub(super) use fixed::Packed;
pub(super) use range_coder::{Bit, Decoder, Encoder};
pub(super) use tables::TablesCoder;
pub(super) use zstd::ZstdCodec;

use std::fmt::Debug;

use super::TileShape;

/// What both ends know about the integers of one side.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plane<'a> {
    /// Shape of the integers, `[num_kv_heads, tokens, head_dim]`.
    pub(super) shape: TileShape,
    /// Bits of each channel's symbols, `[num_kv_heads * head_dim]`; see
    /// [`Quantise::widths`](super::quantise::Quantise::widths).
    pub(super) widths: &'a [u8],
    /// Mean magnitude to expect of each channel, in 1/16.
    pub(super) expected: Option<&'a [u16]>,
}

impl<'a> Plane<'a> {
    /// Widths of the channels of one head.
    fn head_widths(&self, head: usize) -> &'a [u8] {
        let head_dim = self.shape.head_dim();
        &self.widths[head * head_dim..][..head_dim]
    }

    /// The coded channels of one head, ascending.
    fn columns(&self, head: usize) -> Vec<usize> {
        let widths = self.head_widths(head).iter();
        widths
            .enumerate()
            .filter(|(_, width)| **width > 0)
            .map(|(channel, _)| channel)
            .collect()
    }

    /// One more than the largest symbol of each of some channels of a head.
    fn halves(&self, head: usize, columns: &[usize]) -> Vec<i16> {
        let widths = self.head_widths(head);
        let half = |channel: &usize| 1 << (widths[*channel] - 1);
        columns.iter().map(half).collect()
    }

    /// Symbols of one head.
    const fn head_run(&self) -> usize {
        self.shape.tokens() * self.shape.head_dim()
    }
}

/// Codes the integers of one side.
pub(super) trait SymbolCoder: Debug + Send + Sync {
    /// Stage name.
    fn name(&self) -> &'static str;

    /// Appends the symbols, each within its channel's width.
    fn encode(&self, plane: &Plane<'_>, symbols: &[i16], out: &mut Vec<u8>);

    /// Decodes; `None` for bytes that no encoder writes, as far as can be seen. All symbols are
    /// within their widths; channels of width 0 are left as they are.
    fn decode(&self, plane: &Plane<'_>, bytes: &[u8], symbols: &mut [i16]) -> Option<()>;
}

/// Whether a symbol is one of a channel of this width.
const fn fits(symbol: i32, width: u8) -> bool {
    let half = 1 << (width - 1);
    -half <= symbol && symbol < half
}

/// Whether all symbols of a row are among those of their channels; see [`Plane::halves`].
fn fit(row: &[i16], halves: &[i16]) -> bool {
    row.iter().zip(halves).fold(true, |fit, (symbol, half)| {
        fit & (-half <= *symbol) & (symbol < half)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn coders() -> Vec<Box<dyn SymbolCoder>> {
        vec![
            Box::new(Packed),
            Box::new(TablesCoder::new(Tables { classes: 4 })),
            Box::new(TablesCoder::new(Tables { classes: 0 })),
            Box::new(AdaptiveCoder),
            Box::new(ContextCoder),
        ]
    }

    fn symbols(plane: &Plane<'_>, seed: u64, spread: f32) -> Vec<i16> {
        let mut state = seed;
        let mut symbols = Vec::new();
        for head in 0..plane.shape.num_kv_heads() {
            for _token in 0..plane.shape.tokens() {
                for width in plane.head_widths(head) {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    let uniform = (state >> 40) as f32 / (1 << 24) as f32 - 0.5;
                    let drawn = uniform.signum() * -(1.0 - 2.0 * uniform.abs()).ln() * spread;
                    let half = if *width == 0 { 0 } else { 1_i32 << (width - 1) };
                    let most = (half - 1).max(0);
                    symbols.push((drawn as i32).clamp(-half, most) as i16);
                }
            }
        }
        symbols
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn symbols_round_trip(
            heads in 1_usize..3, tokens in 1_usize..40, channels in 1_usize..20,
            widths in proptest::collection::vec(0_u8..16, 60), seed: u64, spread in 0.1_f32..2000.0,
            known: bool,
        ) {
            let shape = TileShape::new(heads, tokens, channels).unwrap();
            let widths = &widths[..heads * channels];
            let expected = vec![spread.min(4000.0) as u16 * 16; widths.len()];
            let plane = Plane { shape, widths, expected: known.then_some(&expected[..]) };
            let before = symbols(&plane, seed, spread);
            for coder in coders() {
                let mut bytes = Vec::new();
                coder.encode(&plane, &before, &mut bytes);
                let mut after = vec![0; before.len()];
                prop_assert_eq!(coder.decode(&plane, &bytes, &mut after), Some(()), "{}", coder.name());
                prop_assert_eq!(&after, &before, "{}", coder.name());
                // A byte too many is always seen.
                bytes.push(0);
                prop_assert_eq!(coder.decode(&plane, &bytes, &mut after), None, "{}", coder.name());
            }
        }

        #[test]
        fn arbitrary_bytes_give_symbols_within_their_widths(
            bytes in proptest::collection::vec(any::<u8>(), 0..600), width in 0_u8..16,
        ) {
            let shape = TileShape::new(1, 9, 8).unwrap();
            let widths = [width; 8];
            let plane = Plane { shape, widths: &widths, expected: None };
            for coder in coders() {
                let mut out = vec![0; shape.elements()];
                if coder.decode(&plane, &bytes, &mut out).is_some() {
                    prop_assert!(out.iter().all(|symbol| width == 0 || fits(i32::from(*symbol), width)));
                }
            }
        }
    }

    #[test]
    fn peaked_symbols_cost_about_their_entropy() {
        let shape = TileShape::new(1, 256, 64).unwrap();
        let plane = Plane {
            shape,
            widths: &[8; 64],
            expected: None,
        };
        let symbols = symbols(&plane, 7, 0.8);
        let mut counts = std::collections::BTreeMap::new();
        for symbol in &symbols {
            *counts.entry(*symbol).or_insert(0.0_f64) += 1.0;
        }
        let total = symbols.len() as f64;
        let entropy: f64 = counts.values().map(|n| -n * (n / total).log2()).sum();
        let per_channel = |coder: &dyn SymbolCoder| format!("{coder:?}").contains("classes: 0");
        for coder in &coders()[1..] {
            // 64 tables for 256 tokens cost more than they save.
            if per_channel(&**coder) {
                continue;
            }
            let mut bytes = Vec::new();
            coder.encode(&plane, &symbols, &mut bytes);
            let bits = bytes.len() as f64 * 8.0;
            // Learning a model per channel costs most here.
            assert!(
                bits < entropy * 1.15,
                "{}: {bits} for {entropy}",
                coder.name()
            );
        }
    }
}
