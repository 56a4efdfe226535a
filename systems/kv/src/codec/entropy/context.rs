//! `context`: adaptive arithmetic coding whose models are chosen by what was coded before, as
//! coders of images do (Wu and Memon, "Context-based, adaptive, lossless image coding", 1997).
//!
//! The magnitude of a coefficient is announced by two things: how large its channel has been in
//! the tokens before, and how large this token's other coefficients are compared with what
//! theirs have been. Their product predicts the magnitude, and a symbol is coded with the models
//! of its prediction's size.

use super::model::IntegerModel;
use super::range_coder::{Decoder, Encoder};
use super::{Plane, SymbolCoder, fits};

/// Codes the symbols token by token, with models shared by all symbols of similar prospects.
///
/// Models are few and shared by all channels, so that they are learnt within some tokens. Loses
/// speed: every decision waits for the one before, about ten nanoseconds a coefficient that is
/// not zero.
#[derive(Debug, Clone, Copy)]
pub struct Context;

impl Context {
    pub(in crate::codec) const NAME: &str = "context";
}

#[derive(Debug, Clone, Copy)]
pub(in crate::codec) struct ContextCoder;

/// Sizes of a channel's mean magnitude, two for each doubling.
const SIZES: usize = 24;
/// Kinds of neighbourhoods: how the token's energy so far compares with what was to be expected.
const KINDS: usize = 6;

/// The state that both directions keep alike. All of it is integer arithmetic.
struct Contexts {
    /// Mean magnitude of each channel, in 1/256, moving.
    means: Vec<u32>,
    /// Magnitudes of the last symbols of this token, and what was expected of them; decaying.
    found: u32,
    expected: u32,
    models: Vec<IntegerModel>,
}

impl Contexts {
    fn new() -> Self {
        let mut models = Vec::with_capacity(SIZES * KINDS);
        for size in 0..SIZES {
            for kind in 0..KINDS {
                // A token with half of the energy expected so far tends to go on with less.
                let mean = centre(size) * (5 + 2 * kind as u32) / 10;
                models.push(IntegerModel::with_mean(mean.max(1), 2));
            }
        }
        Self {
            means: Vec::new(),
            found: 0,
            expected: 0,
            models,
        }
    }

    fn start_head(&mut self, plane: &Plane<'_>, head: usize) {
        let head_dim = plane.shape.head_dim();
        self.means.clear();
        self.means
            .extend((0..head_dim).map(|channel| match plane.expected {
                Some(expected) => u32::from(expected[head * head_dim + channel]) << 4,
                None => 256,
            }));
    }

    const fn start_token(&mut self) {
        self.found = 2048;
        self.expected = 2048;
    }

    #[inline]
    fn model(&mut self, channel: usize) -> &mut IntegerModel {
        // Quarters of an octave around what was expected, by comparison instead of division.
        let (found, expected) = (u64::from(self.found) << 4, u64::from(self.expected));
        let kind = usize::from(found > expected * 9)
            + usize::from(found > expected * 13)
            + usize::from(found > expected * 16)
            + usize::from(found > expected * 20)
            + usize::from(found > expected * 28);
        &mut self.models[size(self.means[channel]) * KINDS + kind]
    }

    #[inline]
    fn learn(&mut self, channel: usize, symbol: i32) {
        let magnitude = symbol.unsigned_abs() << 8;
        let mean = &mut self.means[channel];
        self.found = self.found - (self.found >> 5) + (magnitude >> 3);
        self.expected = self.expected - (self.expected >> 5) + (*mean >> 3);
        // A thirty-second of the way.
        *mean = *mean - (*mean >> 5) + (magnitude >> 5);
    }
}

/// The size of a mean in 1/256: half octaves from 1/32 up.
#[inline]
fn size(mean: u32) -> usize {
    let mean = mean.max(8);
    let octave = mean.ilog2();
    let half = mean >> (octave - 1) & 1;
    (((octave - 3) * 2 + half) as usize).min(SIZES - 1)
}

/// The middle of a size, in 1/16.
fn centre(index: usize) -> u32 {
    let octave = index as u32 / 2 + 3;
    let middle = if index.is_multiple_of(2) { 5 } else { 7 };
    (middle << octave >> 2 >> 4).max(1)
}

impl SymbolCoder for ContextCoder {
    fn name(&self) -> &'static str {
        Context::NAME
    }

    fn encode(&self, plane: &Plane<'_>, symbols: &[i16], out: &mut Vec<u8>) {
        let mut encoder = Encoder::new(out);
        let mut contexts = Contexts::new();
        for (head, symbols) in symbols.chunks_exact(plane.head_run()).enumerate() {
            let widths = plane.head_widths(head);
            contexts.start_head(plane, head);
            for row in symbols.chunks_exact(widths.len()) {
                contexts.start_token();
                for (channel, (symbol, width)) in row.iter().zip(widths).enumerate() {
                    if *width > 0 {
                        let symbol = i32::from(*symbol);
                        contexts.model(channel).put(&mut encoder, symbol);
                        contexts.learn(channel, symbol);
                    }
                }
            }
        }
        encoder.finish();
    }

    fn decode(&self, plane: &Plane<'_>, bytes: &[u8], symbols: &mut [i16]) -> Option<()> {
        let mut decoder = Decoder::new(bytes);
        let mut contexts = Contexts::new();
        for (head, symbols) in symbols.chunks_exact_mut(plane.head_run()).enumerate() {
            let widths = plane.head_widths(head);
            contexts.start_head(plane, head);
            for row in symbols.chunks_exact_mut(widths.len()) {
                contexts.start_token();
                for (channel, (symbol, width)) in row.iter_mut().zip(widths).enumerate() {
                    if *width > 0 {
                        let number = contexts.model(channel).get(&mut decoder);
                        if !fits(number, *width) {
                            return None;
                        }
                        contexts.learn(channel, number);
                        *symbol = number as i16;
                    }
                }
                if decoder.overran() {
                    return None;
                }
            }
        }
        decoder.is_done().then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_half_octaves() {
        let sizes: Vec<usize> = [0, 8, 12, 16, 24, 32, 256, 384, u32::MAX]
            .into_iter()
            .map(size)
            .collect();
        assert_eq!(sizes, [0, 0, 1, 2, 3, 4, 10, 11, SIZES - 1]);
        assert_eq!(centre(10), 20);
        for index in 0..SIZES - 1 {
            assert!(centre(index) <= centre(index + 1));
        }
    }
}
