//! A binary range coder with adaptive probabilities.
//!
//! Range coding: Martin, 1979; the carry is handled as in the coder of `LZMA` (Pavlov), one
//! byte and a run of 0xff kept back. The decoder consumes exactly the bytes that the encoder
//! wrote, so a missing or a superfluous byte is noticed.

/// Probability of a zero, of 2^16, learnt at two speeds: the fast one follows changes, the slow
/// one is precise; their mean is used.
#[derive(Debug, Clone, Copy)]
pub(in crate::codec) struct Bit {
    fast: u16,
    slow: u16,
    /// Bits seen, up to [`SLOW`]: first ones move the estimate further.
    seen: u8,
}

const FAST: u8 = 5;
const SLOW: u8 = 8;

impl Bit {
    /// Starts from a probability of zero as though it came of so many bits.
    pub(in crate::codec) const fn sure(zero: u16, seen: u8) -> Self {
        // Neither estimate may reach the ends, or a bit would have no room in the range.
        let zero = if zero < 256 {
            256
        } else if zero > 65_280 {
            65_280
        } else {
            zero
        };
        Self {
            fast: zero,
            slow: zero,
            seen,
        }
    }

    #[inline]
    const fn zero(self) -> u32 {
        (self.fast as u32 + self.slow as u32) >> 1
    }

    #[inline]
    const fn learn(&mut self, bit: bool) {
        let step = self.seen + 1;
        let (fast, slow) = (if step < FAST { step } else { FAST }, step);
        // At most 2^-5 and 2^-8 of the way to an end that is 2^16 away: neither end is reached.
        if bit {
            self.fast -= (self.fast - 31) >> fast;
            self.slow -= (self.slow - 31) >> slow;
        } else {
            self.fast += (65_504 - self.fast) >> fast;
            self.slow += (65_504 - self.slow) >> slow;
        }
        if step < SLOW {
            self.seen = step;
        }
    }
}

/// Below this the range is widened by a byte.
const NARROW: u32 = 1 << 24;

/// Writes bits.
#[derive(Debug)]
pub(in crate::codec) struct Encoder<'a> {
    out: &'a mut Vec<u8>,
    low: u64,
    range: u32,
    /// The byte that a carry may still change, and how many bytes of 0xff stand behind it.
    kept: u8,
    run: usize,
    /// Whether a byte has been kept at all: the first is always 0 and not written.
    started: bool,
}

impl<'a> Encoder<'a> {
    pub(in crate::codec) const fn new(out: &'a mut Vec<u8>) -> Self {
        Self {
            out,
            low: 0,
            range: u32::MAX,
            kept: 0,
            run: 0,
            started: false,
        }
    }

    /// Writes a bit and lets its model learn it.
    #[inline]
    pub(in crate::codec) fn put(&mut self, model: &mut Bit, bit: bool) {
        let bound = (self.range >> 16) * model.zero();
        if bit {
            self.low += u64::from(bound);
            self.range -= bound;
        } else {
            self.range = bound;
        }
        model.learn(bit);
        while self.range < NARROW {
            self.range <<= 8;
            self.shift();
        }
    }

    fn shift(&mut self) {
        let carry = (self.low >> 32) as u8;
        if self.low < 0xff00_0000 || carry == 1 {
            if self.started {
                self.out.push(self.kept.wrapping_add(carry));
            }
            self.out
                .extend(std::iter::repeat_n(0xff_u8.wrapping_add(carry), self.run));
            self.run = 0;
            self.kept = (self.low >> 24) as u8;
            self.started = true;
        } else {
            self.run += 1;
        }
        self.low = (self.low & 0x00ff_ffff) << 8;
    }

    /// Writes what has been kept back.
    pub(in crate::codec) fn finish(mut self) {
        for _ in 0..5 {
            self.shift();
        }
    }
}

/// Reads bits; after the last byte it goes on with zeros and remembers that it did.
#[derive(Debug)]
pub(in crate::codec) struct Decoder<'a> {
    bytes: &'a [u8],
    next: usize,
    range: u32,
    code: u32,
}

impl<'a> Decoder<'a> {
    pub(in crate::codec) fn new(bytes: &'a [u8]) -> Self {
        let mut decoder = Self {
            bytes,
            next: 0,
            range: u32::MAX,
            code: 0,
        };
        for _ in 0..4 {
            decoder.code = decoder.code << 8 | u32::from(decoder.byte());
        }
        decoder
    }

    #[inline]
    fn byte(&mut self) -> u8 {
        let byte = self.bytes.get(self.next).copied().unwrap_or(0);
        self.next += 1;
        byte
    }

    /// Reads a bit and lets its model learn it.
    #[inline]
    pub(in crate::codec) fn get(&mut self, model: &mut Bit) -> bool {
        let bound = (self.range >> 16) * model.zero();
        let bit = self.code >= bound;
        if bit {
            self.code -= bound;
            self.range -= bound;
        } else {
            self.range = bound;
        }
        model.learn(bit);
        while self.range < NARROW {
            self.range <<= 8;
            self.code = self.code << 8 | u32::from(self.byte());
        }
        bit
    }

    /// Whether more bytes were read than there are: what was decoded since is made up.
    #[inline]
    pub(in crate::codec) const fn overran(&self) -> bool {
        self.next > self.bytes.len()
    }

    /// Whether exactly all bytes were read.
    pub(in crate::codec) const fn is_done(&self) -> bool {
        self.next == self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bits_round_trip_and_lengths_are_exact(
            bits in proptest::collection::vec(any::<bool>(), 0..2000), zero: u16,
        ) {
            let mut bytes = Vec::new();
            let mut encoder = Encoder::new(&mut bytes);
            let mut model = Bit::sure(zero, 0);
            bits.iter().for_each(|bit| encoder.put(&mut model, *bit));
            encoder.finish();
            let mut decoder = Decoder::new(&bytes);
            let mut model = Bit::sure(zero, 0);
            for bit in &bits {
                prop_assert_eq!(decoder.get(&mut model), *bit);
            }
            prop_assert!(decoder.is_done());
        }
    }

    #[test]
    fn sure_bits_cost_little() {
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes);
        let mut model = Bit::sure(1 << 15, 0);
        (0..80_000).for_each(|_| encoder.put(&mut model, false));
        encoder.finish();
        assert!(bytes.len() < 64, "{} bytes", bytes.len());
        let mut decoder = Decoder::new(&bytes);
        let mut model = Bit::sure(1 << 15, 0);
        assert!((0..80_000).all(|_| !decoder.get(&mut model)));
        assert!(decoder.is_done() && !decoder.overran());
    }

    #[test]
    fn probabilities_keep_off_the_ends() {
        for bit in [false, true] {
            let mut model = Bit::sure(0, 0);
            for _ in 0..100_000 {
                model.learn(bit);
                assert!((16..65_520).contains(&model.zero()), "{}", model.zero());
            }
        }
    }
}
