//! `adaptive`: adaptive arithmetic coding with one distribution per channel, learnt while coding.
//!
//! `CacheGen` (arXiv 2310.07240) found that symbols of one layer and channel are distributed
//! alike, and codes them with one distribution each, profiled beforehand; this coder learns them
//! from the tile instead, so that nothing is sent and nothing has to be fitted.

use super::model::IntegerModel;
use super::range_coder::{Decoder, Encoder};
use super::{Plane, SymbolCoder, fits};

/// Codes the symbols token by token, each with the models of its channel.
///
/// Loses on short tiles, whose channels do not live long enough to be learnt, and against
/// [`Context`](super::Context) where neighbours say how large a symbol will be.
#[derive(Debug, Clone, Copy)]
pub struct Adaptive;

impl Adaptive {
    pub(in crate::codec) const NAME: &str = "adaptive";
}

#[derive(Debug, Clone, Copy)]
pub(in crate::codec) struct AdaptiveCoder;

impl AdaptiveCoder {
    fn models(plane: &Plane<'_>, head: usize) -> Vec<IntegerModel> {
        let head_dim = plane.shape.head_dim();
        let channel = |channel: usize| {
            let mean = plane
                .expected
                .map_or(16, |expected| expected[head * head_dim + channel]);
            IntegerModel::with_mean(u32::from(mean), 1)
        };
        (0..head_dim).map(channel).collect()
    }
}

impl SymbolCoder for AdaptiveCoder {
    fn name(&self) -> &'static str {
        Adaptive::NAME
    }

    fn encode(&self, plane: &Plane<'_>, symbols: &[i16], out: &mut Vec<u8>) {
        let mut encoder = Encoder::new(out);
        for (head, symbols) in symbols.chunks_exact(plane.head_run()).enumerate() {
            let widths = plane.head_widths(head);
            let mut models = Self::models(plane, head);
            for row in symbols.chunks_exact(widths.len()) {
                for ((symbol, width), model) in row.iter().zip(widths).zip(&mut models) {
                    if *width > 0 {
                        model.put(&mut encoder, i32::from(*symbol));
                    }
                }
            }
        }
        encoder.finish();
    }

    fn decode(&self, plane: &Plane<'_>, bytes: &[u8], symbols: &mut [i16]) -> Option<()> {
        let mut decoder = Decoder::new(bytes);
        for (head, symbols) in symbols.chunks_exact_mut(plane.head_run()).enumerate() {
            let widths = plane.head_widths(head);
            let mut models = Self::models(plane, head);
            for row in symbols.chunks_exact_mut(widths.len()) {
                for ((symbol, width), model) in row.iter_mut().zip(widths).zip(&mut models) {
                    if *width > 0 {
                        let number = model.get(&mut decoder);
                        if !fits(number, *width) {
                            return None;
                        }
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
