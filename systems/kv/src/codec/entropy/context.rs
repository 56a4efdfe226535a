//! `context`: adaptive entropy coding whose models are chosen by what was coded before, as
//! coders of images do (Wu and Memon, "Context-based, adaptive, lossless image coding", 1997).
//!
//! The magnitude of a coefficient is announced by two things: how large its channel has been in
//! the tokens before, and how large this token's other coefficients are compared with what
//! theirs have been. Their product predicts the magnitude, and a symbol is coded with the models
//! of its prediction's size. The second is looked at once for each block of sixteen channels, so
//! that the symbols of a block do not wait for each other.

use std::ops::Range;
use std::sync::LazyLock;

use super::nibble::{DIRECT, LANES, Nibble, SYMBOLS, Source, Writer, class_of, geometric};
use super::{Plane, SymbolCoder, fit};

/// Codes the symbols token by token, with models shared by all symbols of similar prospects.
///
/// Models are few and shared by all channels, so that they are learnt within some tokens. Costs
/// about five nanoseconds a coefficient up to the last block of a token that is not all zero, and
/// nearly nothing behind it. Signs are taken to be even.
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
/// Models, by kind of neighbourhood and, within [`STRIDE`] places, by size.
const STRIDE: usize = 32;
const MODELS: usize = 256;
const _: () = assert!(SIZES <= STRIDE && KINDS * STRIDE <= MODELS);
/// Channels that are coded with one kind of neighbourhood.
const BLOCK: usize = 16;

/// The state that both directions keep alike. All of it is integer arithmetic.
struct Contexts {
    /// Mean magnitude of each channel, in 1/256, moving; and its size.
    means: Vec<u32>,
    sizes: Vec<u8>,
    /// Blocks of [`BLOCK`] channels that say together whether they are coded.
    blocks_a_step: usize,
    /// How many steps of a token are coded, as the token before had it.
    steps: Nibble,
    models: Box<[Nibble; MODELS]>,
    neighbours: Neighbours,
    /// Of the token at hand, by channel: which model its symbol is coded with, and its class.
    chosen: Vec<u8>,
    classes: Vec<u8>,
}

/// Magnitudes of the last symbols of this token, and what was expected of them; decaying.
#[derive(Debug, Clone, Copy)]
struct Neighbours {
    found: u32,
    expected: u32,
}

impl Neighbours {
    const START: Self = Self {
        found: 1024,
        expected: 1024,
    };

    /// Quarters of an octave around what was expected, by comparison instead of division.
    #[inline]
    fn kind(self) -> usize {
        let (found, expected) = (self.found << 4, self.expected);
        usize::from(found > expected * 9)
            + usize::from(found > expected * 13)
            + usize::from(found > expected * 16)
            + usize::from(found > expected * 20)
            + usize::from(found > expected * 28)
    }

    #[inline]
    fn learn(&mut self, classes: &[u8], means: &[u32]) {
        let magnitude = |class: &u8| {
            let class = u32::from(*class);
            // Near the middle of a class of several numbers; a shift, so that it fills a vector.
            let within = 10 + (4 << class.saturating_sub(DIRECT));
            if class < DIRECT { class } else { within }
        };
        let found: u32 = classes.iter().map(magnitude).sum();
        let expected: u32 = means.iter().map(|mean| (*mean).min(255 << 8)).sum();
        self.found = self.found / 2 + (found << 5);
        self.expected = self.expected / 2 + (expected >> 3);
    }
}

impl Contexts {
    fn new(channels: usize) -> Self {
        Self {
            means: Vec::new(),
            sizes: Vec::new(),
            blocks_a_step: channels.div_ceil(BLOCK).div_ceil(SYMBOLS - 1).max(1),
            steps: Nibble::new(&[1; SYMBOLS], 3, 6),
            models: START.clone(),
            neighbours: Neighbours::START,
            chosen: vec![0; channels],
            classes: vec![0; channels],
        }
    }

    fn start_head(&mut self, plane: &Plane<'_>, head: usize, columns: &[usize]) {
        let head_dim = plane.shape.head_dim();
        self.means.clear();
        self.means
            .extend(columns.iter().map(|channel| match plane.expected {
                Some(expected) => u32::from(expected[head * head_dim + channel]) << 4,
                None => 256,
            }));
        self.sizes.clear();
        self.sizes.extend(self.means.iter().map(|mean| size(*mean)));
    }

    /// Chooses the models of a block of channels by the present neighbourhood.
    #[inline]
    fn choose(&mut self, run: Range<usize>) {
        let first = (self.neighbours.kind() * STRIDE) as u8;
        let pairs = self.chosen[run.clone()].iter_mut().zip(&self.sizes[run]);
        pairs.for_each(|(chosen, size)| *chosen = first + size);
    }

    /// Takes the classes of a block of channels into account.
    #[inline]
    fn look(&mut self, run: Range<usize>) {
        self.neighbours
            .learn(&self.classes[run.clone()], &self.means[run]);
    }

    /// Learns a token, of which the first `coded` channels were coded. Models stay as they are
    /// within a token, so that no symbol waits for what the one before it changes.
    fn learn(&mut self, row: &[i16], coded: usize) {
        // Across the blocks: neighbours share their model, and would wait for each other.
        for lane in 0..BLOCK.min(coded) {
            let chosen = self.chosen[lane..coded].iter().step_by(BLOCK);
            for (chosen, class) in chosen.zip(self.classes[lane..].iter().step_by(BLOCK)) {
                self.models[usize::from(*chosen)].learn(usize::from(*class));
            }
        }
        for ((symbol, mean), size_of) in row.iter().zip(&mut self.means).zip(&mut self.sizes) {
            let magnitude = u32::from(symbol.unsigned_abs()) << 8;
            // A thirty-second of the way.
            *mean = *mean - (*mean >> 5) + (magnitude >> 5);
            *size_of = size(*mean);
        }
    }
}

/// Models to start with.
static START: LazyLock<Box<[Nibble; MODELS]>> = LazyLock::new(|| {
    let model = |index: usize| {
        let (kind, size) = (index / STRIDE, index % STRIDE);
        // A token with half of the energy expected so far tends to go on with less.
        let mean = centre(size) * (5 + 2 * kind as u32) / 10;
        Nibble::new(&geometric(mean.max(1)), 5, 7)
    };
    Box::new(std::array::from_fn(model))
});

/// The size of a mean in 1/256: half octaves from 1/32 up.
#[inline]
fn size(mean: u32) -> u8 {
    let mean = mean.max(8);
    let octave = mean.ilog2();
    let half = mean >> (octave - 1) & 1;
    ((octave - 3) * 2 + half).min(SIZES as u32 - 1) as u8
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
        let mut writer = Writer::with_capacity(symbols.len());
        let mut contexts = Contexts::new(plane.shape.head_dim());
        let step = contexts.blocks_a_step * BLOCK;
        let mut row = Vec::new();
        for (head, symbols) in symbols.chunks_exact(plane.head_run()).enumerate() {
            let columns = plane.columns(head);
            contexts.start_head(plane, head, &columns);
            for symbols in symbols.chunks_exact(plane.shape.head_dim()) {
                row.clear();
                row.extend(columns.iter().map(|channel| symbols[*channel]));
                let steps = row
                    .iter()
                    .rposition(|symbol| *symbol != 0)
                    .map_or(0, |last| last / step + 1);
                writer.put(0, &contexts.steps, steps);
                contexts.steps.learn(steps);
                let coded = (steps * step).min(row.len());
                for (class, symbol) in contexts.classes.iter_mut().zip(&row[..coded]) {
                    *class = class_of(u32::from(symbol.unsigned_abs())) as u8;
                }
                contexts.neighbours = Neighbours::START;
                for start in (0..coded).step_by(BLOCK) {
                    let run = start..(start + BLOCK).min(coded);
                    contexts.choose(run.clone());
                    let pairs = contexts.chosen[run.clone()]
                        .iter()
                        .zip(&contexts.classes[run.clone()]);
                    for (lane, (chosen, class)) in pairs.enumerate() {
                        let model = &contexts.models[usize::from(*chosen)];
                        writer.put(lane, model, usize::from(*class));
                    }
                    contexts.look(run);
                }
                for (symbol, class) in row.iter().zip(&contexts.classes[..coded]) {
                    if u32::from(*class) >= DIRECT {
                        writer.put_within(usize::from(*class), u32::from(symbol.unsigned_abs()));
                    }
                }
                for symbol in row[..coded].iter().filter(|symbol| **symbol != 0) {
                    writer.put_raw(u32::from(*symbol < 0), 1);
                }
                contexts.learn(&row, coded);
            }
        }
        writer.finish(out);
    }

    fn decode(&self, plane: &Plane<'_>, bytes: &[u8], symbols: &mut [i16]) -> Option<()> {
        let mut source = Source::new(bytes)?;
        let mut contexts = Contexts::new(plane.shape.head_dim());
        let step = contexts.blocks_a_step * BLOCK;
        let mut row = vec![0_i16; plane.shape.head_dim()];
        for (head, symbols) in symbols.chunks_exact_mut(plane.head_run()).enumerate() {
            let columns = plane.columns(head);
            let halves = plane.halves(head, &columns);
            contexts.start_head(plane, head, &columns);
            let row = &mut row[..columns.len()];
            for symbols in symbols.chunks_exact_mut(plane.shape.head_dim()) {
                let steps = usize::from(source.get(0, &contexts.steps));
                contexts.steps.learn(steps);
                if steps > row.len().div_ceil(step) {
                    return None;
                }
                let coded = (steps * step).min(row.len());
                contexts.neighbours = Neighbours::START;
                for start in (0..coded).step_by(BLOCK) {
                    let run = start..(start + BLOCK).min(coded);
                    contexts.choose(run.clone());
                    contexts.decode_block(&mut source, run.clone());
                    contexts.look(run);
                }
                for (symbol, class) in row.iter_mut().zip(&contexts.classes[..coded]) {
                    *symbol = i16::from(*class);
                }
                row[coded..].fill(0);
                let largest = contexts.classes[..coded]
                    .iter()
                    .fold(0, |most, class| most.max(*class));
                if u32::from(largest) >= DIRECT {
                    for (symbol, class) in row.iter_mut().zip(&contexts.classes[..coded]) {
                        if u32::from(*class) >= DIRECT {
                            *symbol = i16::try_from(source.within(*class)).ok()?;
                        }
                    }
                }
                for block in row[..coded].chunks_mut(BLOCK) {
                    source.raw().sign(block);
                }
                contexts.learn(row, coded);
                if columns.len() == symbols.len() {
                    symbols.copy_from_slice(row);
                } else {
                    for (symbol, channel) in row.iter().zip(&columns) {
                        symbols[*channel] = *symbol;
                    }
                }
                if !fit(row, &halves) || source.overran() {
                    return None;
                }
            }
        }
        source.is_done().then_some(())
    }
}

impl Contexts {
    #[inline]
    fn decode_block(&mut self, source: &mut Source<'_>, run: Range<usize>) {
        let (fours, rest) = self.classes[run.clone()].as_chunks_mut::<LANES>();
        let (chosen_fours, chosen_rest) = self.chosen[run].as_chunks::<LANES>();
        for (classes, chosen) in fours.iter_mut().zip(chosen_fours) {
            for lane in 0..LANES {
                classes[lane] = source.get(lane, &self.models[usize::from(chosen[lane])]);
            }
        }
        for (lane, (class, chosen)) in rest.iter_mut().zip(chosen_rest).enumerate() {
            *class = source.get(lane, &self.models[usize::from(*chosen)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_half_octaves() {
        let sizes: Vec<u8> = [0, 8, 12, 16, 24, 32, 256, 384, u32::MAX]
            .into_iter()
            .map(size)
            .collect();
        assert_eq!(sizes, [0, 0, 1, 2, 3, 4, 10, 11, SIZES as u8 - 1]);
        assert_eq!(centre(10), 20);
        for index in 0..SIZES - 1 {
            assert!(centre(index) <= centre(index + 1));
        }
    }
}
