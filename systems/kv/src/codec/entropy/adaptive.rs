//! `adaptive`: adaptive entropy coding with one distribution per channel, learnt while coding.
//!
//! `CacheGen` (arXiv 2310.07240) found that symbols of one layer and channel are distributed
//! alike, and codes them with one distribution each, profiled beforehand; this coder learns them
//! from the tile instead, so that nothing is sent and nothing has to be fitted.

use super::nibble::{DIRECT, LANES, Nibble, Source, Writer, class_of, geometric};
use super::{Plane, SymbolCoder, fit};

/// Codes the symbols token by token, each with the distribution of its channel.
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
    fn models(plane: &Plane<'_>, head: usize, columns: &[usize]) -> Vec<Nibble> {
        let head_dim = plane.shape.head_dim();
        let channel = |channel: &usize| {
            let mean = plane
                .expected
                .map_or(16, |expected| expected[head * head_dim + channel]);
            // Signs are part of what is learnt: they double the numbers.
            Nibble::new(&geometric(2 * u32::from(mean)), 3, 6)
        };
        columns.iter().map(channel).collect()
    }
}

/// Numbers of either sign as numbers from 0 on, the small magnitudes first.
const fn fold(symbol: i16) -> u32 {
    (symbol << 1 ^ symbol >> 15).cast_unsigned() as u32
}

/// The reverse of [`fold`], of numbers below 2^16.
const fn unfold(number: u32) -> i16 {
    (number >> 1) as i16 ^ -((number & 1) as i16)
}

impl SymbolCoder for AdaptiveCoder {
    fn name(&self) -> &'static str {
        Adaptive::NAME
    }

    fn encode(&self, plane: &Plane<'_>, symbols: &[i16], out: &mut Vec<u8>) {
        let mut writer = Writer::with_capacity(symbols.len());
        for (head, symbols) in symbols.chunks_exact(plane.head_run()).enumerate() {
            let columns = plane.columns(head);
            let mut models = Self::models(plane, head, &columns);
            for row in symbols.chunks_exact(plane.shape.head_dim()) {
                for (lane, (channel, model)) in columns.iter().zip(&mut models).enumerate() {
                    let number = fold(row[*channel]);
                    let class = class_of(number);
                    writer.put(lane, model, class);
                    model.learn(class);
                    writer.put_within(class, number);
                }
            }
        }
        writer.finish(out);
    }

    fn decode(&self, plane: &Plane<'_>, bytes: &[u8], symbols: &mut [i16]) -> Option<()> {
        let mut source = Source::new(bytes)?;
        let mut classes = vec![0_u8; plane.shape.head_dim()];
        for (head, symbols) in symbols.chunks_exact_mut(plane.head_run()).enumerate() {
            let columns = plane.columns(head);
            let halves = plane.halves(head, &columns);
            let mut row = vec![0_i16; columns.len()];
            let mut models = Self::models(plane, head, &columns);
            let classes = &mut classes[..columns.len()];
            for symbols in symbols.chunks_exact_mut(plane.shape.head_dim()) {
                let (fours, rest) = classes.as_chunks_mut::<LANES>();
                let (models_by_four, models_of_rest) = models.as_chunks_mut::<LANES>();
                for (classes, models) in fours.iter_mut().zip(models_by_four) {
                    for lane in 0..LANES {
                        classes[lane] = source.get(lane, &models[lane]);
                        models[lane].learn(usize::from(classes[lane]));
                    }
                }
                for (lane, (class, model)) in rest.iter_mut().zip(models_of_rest).enumerate() {
                    *class = source.get(lane, model);
                    model.learn(usize::from(*class));
                }
                let mut largest = 0;
                for (symbol, class) in row.iter_mut().zip(&*classes) {
                    *symbol = unfold(u32::from(*class));
                    largest = largest.max(*class);
                }
                if u32::from(largest) >= DIRECT {
                    for (symbol, class) in row.iter_mut().zip(&*classes) {
                        if u32::from(*class) >= DIRECT {
                            *symbol = unfold(source.within(*class));
                        }
                    }
                }
                if columns.len() == symbols.len() {
                    symbols.copy_from_slice(&row);
                } else {
                    for (symbol, channel) in row.iter().zip(&columns) {
                        symbols[*channel] = *symbol;
                    }
                }
                if !fit(&row, &halves) || source.overran() {
                    return None;
                }
            }
        }
        source.is_done().then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folding_inverts() {
        for symbol in [0, 1, -1, 7, -8, 16_383, -16_384] {
            assert_eq!(unfold(fold(symbol)), symbol);
        }
        assert_eq!([fold(0), fold(-1), fold(1), fold(-2)], [0, 1, 2, 3]);
    }
}
