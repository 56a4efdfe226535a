//! Integers as one of sixteen classes and raw bits, classes with adaptive distributions, coded
//! by four interleaved states.
//!
//! Coder: asymmetric numeral systems with ranges (Duda, arXiv 1311.2540), interleaved as by Giesen
//! (arXiv 1402.3392), so that four symbols are on their way at a time. Distributions of sixteen
//! symbols are learnt as cumulative frequencies that move towards the symbol seen (Giesen, "Mixing
//! discrete probability distributions", 2015): sixteen lanes, looked up and learnt by a few vector
//! instructions, where binary models take a decision each. Integers only, so that both ends agree
//! whatever they run on.

use crate::codec::frame::{Reader, put_section};
use crate::codec::vector::count_reached;

/// Symbols of a distribution.
pub(super) const SYMBOLS: usize = 16;
/// Probabilities are fractions of `1 << BITS`.
const BITS: u32 = 15;
const TOTAL: u16 = 1 << BITS;
/// The least probability that a model moves towards: a symbol that is never seen keeps it.
const LEAST: u16 = 4;
/// States are at least this, and are refilled by two bytes at a time.
const LOWEST: u32 = 1 << 16;
/// States, and symbols that are on their way at a time.
pub(super) const LANES: usize = 4;

/// What cumulative frequencies move towards when a symbol is seen.
const TARGETS: [[u16; SYMBOLS]; SYMBOLS] = {
    let mut targets = [[0; SYMBOLS]; SYMBOLS];
    let mut seen = 0;
    while seen < SYMBOLS {
        let mut symbol = 0;
        while symbol < SYMBOLS {
            targets[seen][symbol] = if symbol <= seen {
                symbol as u16 * LEAST
            } else {
                TOTAL - (SYMBOLS - symbol) as u16 * LEAST
            };
            symbol += 1;
        }
        seen += 1;
    }
    targets
};

/// An adaptive distribution of sixteen symbols.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(super) struct Nibble {
    /// Frequency of all symbols below each; the first is 0, and one more is [`TOTAL`].
    below: [u16; SYMBOLS + 1],
    /// How far a symbol moves the distribution: `2^-rate` of the way, first ones further.
    rate: u8,
    slowest: u8,
}

impl Nibble {
    /// A distribution in proportion to `shares`, as though it came of about `2^rate` symbols;
    /// it slows down to `2^-slowest` of the way a symbol.
    pub(super) fn new(shares: &[u64; SYMBOLS], rate: u8, slowest: u8) -> Self {
        let sum: u64 = shares.iter().sum::<u64>().max(1);
        // Every symbol has its least frequency; the rest is shared out.
        let room = u64::from(TOTAL - SYMBOLS as u16 * LEAST);
        let mut below = [TOTAL; SYMBOLS + 1];
        let mut before = 0;
        for (symbol, below) in below[..SYMBOLS].iter_mut().enumerate() {
            *below = (before * room / sum) as u16 + symbol as u16 * LEAST;
            before += shares[symbol];
        }
        Self {
            below,
            rate,
            slowest,
        }
    }

    /// Start and frequency of a symbol.
    #[inline]
    fn interval(&self, symbol: usize) -> (u16, u16) {
        let start = self.below[symbol % SYMBOLS];
        let end = self.below[symbol % SYMBOLS + 1];
        (start, end - start)
    }

    /// The symbol whose interval a slot lies in.
    #[inline(always)]
    fn symbol_at(&self, slot: u16) -> usize {
        let [below @ .., _] = &self.below;
        // The first is 0, and so is always reached.
        count_reached(below, slot) - 1
    }

    /// Moves towards a symbol. No frequency falls below [`LEAST`]: a difference of two neighbours
    /// above it shrinks by at most what it exceeds the target's difference by.
    #[inline]
    pub(super) fn learn(&mut self, symbol: usize) {
        let (rate, old) = (self.rate % 16, self.below);
        let targets = &TARGETS[symbol % SYMBOLS];
        // By index from one array into another, which becomes a few instructions on vectors.
        let moved: [u16; SYMBOLS] = std::array::from_fn(|i| {
            let step = targets[i].wrapping_sub(old[i]).cast_signed() >> rate;
            old[i].wrapping_add_signed(step)
        });
        self.below[..SYMBOLS].copy_from_slice(&moved);
        self.rate += u8::from(rate < self.slowest);
    }
}

/// Numbers below this are classes by themselves.
pub(super) const DIRECT: u32 = 10;
/// Raw bits of the classes, and the smallest number of each.
const RAW_BITS: [u8; SYMBOLS] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 3, 4, 5, 8, 15];
pub(super) const SMALLEST: [u32; SYMBOLS] = {
    let mut smallest = [0; SYMBOLS];
    let mut class = 1;
    while class < SYMBOLS {
        smallest[class] = smallest[class - 1] + (1 << RAW_BITS[class - 1]);
        class += 1;
    }
    smallest
};

/// The class of a number.
pub(super) fn class_of(number: u32) -> usize {
    if number < DIRECT {
        return number as usize;
    }
    SMALLEST.partition_point(|smallest| *smallest <= number) - 1
}

/// Shares of the classes of a magnitude whose mean, in 1/16, is about `mean`: those of a geometric
/// distribution.
pub(super) fn geometric(mean: u32) -> [u64; SYMBOLS] {
    // P(|x| >= n) = ratio^n with ratio = mean / (1 + mean), in 2^-32.
    let ratio = (u64::from(mean) << 32) / (u64::from(mean) + 16);
    let reach = |from: u32| -> u64 {
        let (mut power, mut square, mut left) = (1_u64 << 32, ratio, from);
        while left > 0 {
            if left & 1 == 1 {
                power = (power * square) >> 32;
            }
            square = (square * square) >> 32;
            left >>= 1;
        }
        power
    };
    let mut shares = SMALLEST.map(reach);
    for class in 0..SYMBOLS - 1 {
        shares[class] -= shares[class + 1];
    }
    shares
}

/// Collects symbols and raw bits, and writes them in the end: the decoder reads forwards, so the
/// states work backwards.
#[derive(Debug, Default)]
pub(super) struct Writer {
    /// Lane, start and frequency of each symbol.
    intervals: Vec<u32>,
    raw: Vec<u8>,
    held: u64,
    count: u32,
}

impl Writer {
    pub(super) fn with_capacity(symbols: usize) -> Self {
        Self {
            intervals: Vec::with_capacity(symbols),
            ..Self::default()
        }
    }

    /// Adds a symbol.
    #[inline]
    pub(super) fn put(&mut self, lane: usize, model: &Nibble, symbol: usize) {
        let (start, frequency) = model.interval(symbol);
        self.intervals
            .push((lane % LANES) as u32 | u32::from(start) << 2 | u32::from(frequency) << 17);
    }

    /// Adds the lowest `count` bits, at most 16, of a number.
    #[inline]
    pub(super) fn put_raw(&mut self, bits: u32, count: u32) {
        self.held |= u64::from(bits) << self.count;
        self.count += count;
        while self.count >= 8 {
            self.raw.push(self.held as u8);
            self.held >>= 8;
            self.count -= 8;
        }
    }

    /// Adds what a number is within its class.
    #[inline]
    pub(super) fn put_within(&mut self, class: usize, number: u32) {
        self.put_raw(number - SMALLEST[class], u32::from(RAW_BITS[class]));
    }

    /// Writes a section of raw bits, the states, then their words.
    pub(super) fn finish(mut self, out: &mut Vec<u8>) {
        if self.count > 0 {
            self.raw.push(self.held as u8);
        }
        put_section(out, &self.raw);
        let mut states = [LOWEST; LANES];
        let mut words = Vec::with_capacity(self.intervals.len() / 4);
        for interval in self.intervals.iter().rev() {
            let (start, frequency) = (interval >> 2 & (u32::from(TOTAL) - 1), interval >> 17);
            let state = &mut states[*interval as usize % LANES];
            // A state of 2^31 or more cannot be: frequencies are below 2^15.
            if *state >= frequency << (32 - BITS) {
                words.push(*state as u16);
                *state >>= 16;
            }
            *state = ((*state / frequency) << BITS) + *state % frequency + start;
        }
        for state in states {
            out.extend(state.to_le_bytes());
        }
        out.extend(words.iter().rev().flat_map(|word| word.to_le_bytes()));
    }
}

/// Reads what [`Writer`] writes; after the last byte it goes on with zeros and remembers it.
#[derive(Debug)]
pub(super) struct Source<'a> {
    states: [u32; LANES],
    words: &'a [[u8; 2]],
    next: usize,
    raw: RawBits<'a>,
}

impl<'a> Source<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let raw = RawBits::new(reader.section()?);
        let mut states = [0; LANES];
        for state in &mut states {
            *state = u32::from_le_bytes(*reader.take(4)?.first_chunk()?);
            if *state < LOWEST {
                return None;
            }
        }
        let (words, []) = reader.rest().as_chunks() else {
            return None;
        };
        Some(Self {
            states,
            words,
            next: 0,
            raw,
        })
    }

    /// Reads a symbol.
    #[inline(always)]
    pub(super) fn get(&mut self, lane: usize, model: &Nibble) -> u8 {
        let state = &mut self.states[lane % LANES];
        let slot = *state as u16 & (TOTAL - 1);
        let symbol = model.symbol_at(slot);
        let (start, frequency) = model.interval(symbol);
        let left = u32::from(frequency) * (*state >> BITS) + u32::from(slot - start);
        let word = self
            .words
            .get(self.next)
            .map_or(0, |word| u16::from_le_bytes(*word));
        let refill = left < LOWEST;
        *state = if refill {
            left << 16 | u32::from(word)
        } else {
            left
        };
        self.next += usize::from(refill);
        symbol as u8
    }

    /// Reads the number of a class.
    #[inline]
    pub(super) fn within(&mut self, class: u8) -> u32 {
        let class = usize::from(class) % SYMBOLS;
        SMALLEST[class] + self.raw.get(u32::from(RAW_BITS[class]))
    }

    /// Raw bits.
    #[inline]
    pub(super) fn raw(&mut self) -> &mut RawBits<'a> {
        &mut self.raw
    }

    /// Whether more was read than there is: what was decoded since is made up.
    #[inline]
    pub(super) fn overran(&self) -> bool {
        self.next > self.words.len() || self.raw.overran()
    }

    /// Whether exactly everything was read, and the states are where an encoder starts from.
    pub(super) fn is_done(&self) -> bool {
        self.next == self.words.len() && self.raw.is_done() && self.states == [LOWEST; LANES]
    }
}

/// Bits, the first in the lowest place of the first byte.
#[derive(Debug)]
pub(super) struct RawBits<'a> {
    bytes: &'a [u8],
    next: usize,
    held: u64,
    count: u32,
}

impl<'a> RawBits<'a> {
    const fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            next: 0,
            held: 0,
            count: 0,
        }
    }

    /// Holds at least 32 bits, zeros behind the end.
    #[inline]
    fn fill(&mut self) {
        if self.count < 32 {
            let four = match self
                .bytes
                .get(self.next..)
                .and_then(|rest| rest.first_chunk::<4>())
            {
                Some(four) => u32::from_le_bytes(*four),
                None => (0..4).fold(0, |four, place| {
                    let byte = self.bytes.get(self.next + place).copied().unwrap_or(0);
                    four | u32::from(byte) << (8 * place)
                }),
            };
            self.held |= u64::from(four) << self.count;
            self.next += 4;
            self.count += 32;
        }
    }

    /// Reads at most 16 bits.
    #[inline]
    pub(super) fn get(&mut self, count: u32) -> u32 {
        self.fill();
        let bits = self.held as u32 & ((1 << count) - 1);
        self.held >>= count;
        self.count -= count;
        bits
    }

    /// Gives the numbers that are not zero their signs, a bit each; `numbers` are at most 32.
    #[inline]
    pub(super) fn sign(&mut self, numbers: &mut [i16]) {
        self.fill();
        let (mut held, mut taken) = (self.held, 0);
        for number in numbers {
            let some = u32::from(*number != 0);
            let negative = (held as u16 & some as u16).cast_signed();
            *number = (*number ^ -negative).wrapping_add(negative);
            held >>= some;
            taken += some;
        }
        self.held = held;
        self.count -= taken;
    }

    fn consumed(&self) -> usize {
        self.next * 8 - self.count as usize
    }

    #[inline]
    fn overran(&self) -> bool {
        self.consumed() > self.bytes.len() * 8
    }

    /// Whether all bits were read but those that fill the last byte up, which are zero.
    fn is_done(&self) -> bool {
        self.consumed().div_ceil(8) == self.bytes.len() && self.held == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn symbols_and_raw_bits_round_trip(
            symbols in proptest::collection::vec(0_usize..SYMBOLS, 0..3000),
            shares in proptest::array::uniform16(0_u64..1_000_000), rate in 1_u8..8,
        ) {
            let start = Nibble::new(&shares, rate, 7);
            let mut writer = Writer::default();
            let mut model = start;
            for (place, symbol) in symbols.iter().enumerate() {
                writer.put(place, &model, *symbol);
                model.learn(*symbol);
                writer.put_raw(*symbol as u32, 4);
            }
            let mut bytes = Vec::new();
            writer.finish(&mut bytes);
            let mut source = Source::new(&bytes).unwrap();
            let mut model = start;
            for (place, symbol) in symbols.iter().enumerate() {
                prop_assert_eq!(usize::from(source.get(place, &model)), *symbol);
                model.learn(*symbol);
                prop_assert_eq!(source.raw().get(4), *symbol as u32);
                prop_assert!(!source.overran());
            }
            prop_assert!(source.is_done());
        }

        #[test]
        fn frequencies_keep_off_zero(
            symbols in proptest::collection::vec(0_usize..SYMBOLS, 0..3000),
            shares in proptest::array::uniform16(0_u64..1_000_000),
        ) {
            let mut model = Nibble::new(&shares, 1, 7);
            for symbol in symbols {
                model.learn(symbol);
                let frequencies = (0..SYMBOLS).map(|symbol| u32::from(model.interval(symbol).1));
                prop_assert!(frequencies.clone().all(|f| f >= u32::from(LEAST)));
                prop_assert_eq!(frequencies.sum::<u32>(), u32::from(TOTAL));
            }
        }
    }

    #[test]
    fn classes_cover_all_numbers() {
        for number in 0..1 << 15 {
            let class = class_of(number);
            let within = number - SMALLEST[class];
            assert!(within < 1 << RAW_BITS[class], "{number}");
        }
        assert_eq!(
            (class_of(9), class_of(10), class_of(13), class_of(14)),
            (9, 10, 10, 11)
        );
    }

    #[test]
    fn signs_take_a_bit_each_of_what_is_not_zero() {
        let bytes = [0b0000_0101];
        let mut bits = RawBits::new(&bytes);
        let mut numbers = [3, 0, 2, 0, 0, 1];
        bits.sign(&mut numbers);
        assert_eq!(numbers, [-3, 0, 2, 0, 0, -1]);
        assert!(bits.is_done() && !bits.overran());
        bits.get(6);
        assert!(bits.overran());
    }
}
