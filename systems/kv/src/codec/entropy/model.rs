//! How an integer becomes bits with models: whether it is zero, its sign, how many bits its
//! magnitude has, and these bits.

use super::range_coder::{Bit, Decoder, Encoder};

/// Numbers of bits that a magnitude can have behind its first one: 0 to 14.
const LENGTHS: usize = 14;
/// Lengths whose mantissas have models of their own.
const MODELLED: usize = 6;

/// Models of the integers of one kind.
#[derive(Debug, Clone)]
pub(super) struct IntegerModel {
    zero: Bit,
    sign: Bit,
    /// Whether the magnitude has more than `i` bits behind its first.
    longer: [Bit; LENGTHS],
    /// By length: the highest bit of the mantissa, then the one after it given the highest.
    mantissa: [[Bit; 3]; MODELLED],
}

impl IntegerModel {
    /// Models to start with where the mean magnitude, in 1/16, is about `mean`: those of a
    /// geometric distribution. Integer arithmetic only, so that both ends start alike.
    pub(super) fn with_mean(mean: u32, seen: u8) -> Self {
        // P(|x| >= n) = ratio^n with ratio = mean / (1 + mean), in 2^-16.
        let ratio = (u64::from(mean) << 16) / (u64::from(mean) + 16);
        let ratio = ratio.clamp(1 << 6, (1 << 16) - (1 << 6));
        let share = |power: u64| Bit::sure((65_536 - power).min(65_535) as u16, seen);
        // ratio^(2^i), by squaring.
        let mut powers = [ratio; LENGTHS + 1];
        for index in 1..powers.len() {
            powers[index] = (powers[index - 1] * powers[index - 1]) >> 16;
        }
        let half = |power: u64| {
            // The lower half of a range of equal parts outweighs the upper by 1 : power.
            Bit::sure(
                ((1_u64 << 32) / ((1 << 16) + power)).min(65_535) as u16,
                seen,
            )
        };
        let mut mantissa = [[Bit::new(1 << 15); 3]; MODELLED];
        for (index, bits) in mantissa.iter_mut().enumerate() {
            // A magnitude with `index + 1` bits behind its first: halves of 2^index each.
            let finer = half(powers[index.saturating_sub(1)]);
            *bits = [half(powers[index]), finer, finer];
        }
        let mut longer = [Bit::new(1 << 15); LENGTHS];
        for (index, bit) in longer.iter_mut().enumerate() {
            *bit = share(powers[index]);
        }
        Self {
            zero: share(ratio),
            sign: Bit::sure(1 << 15, 4),
            longer,
            mantissa,
        }
    }

    /// Writes an integer above -2^15.
    #[inline]
    pub(super) fn put(&mut self, encoder: &mut Encoder<'_>, symbol: i32) {
        encoder.put(&mut self.zero, symbol != 0);
        if symbol == 0 {
            return;
        }
        encoder.put(&mut self.sign, symbol < 0);
        let magnitude = symbol.unsigned_abs();
        let length = magnitude.ilog2() as usize;
        for bit in &mut self.longer[..length] {
            encoder.put(bit, true);
        }
        if let Some(bit) = self.longer.get_mut(length) {
            encoder.put(bit, false);
        }
        let mut left = length as u32;
        if let Some(bits) = length.checked_sub(1).and_then(|i| self.mantissa.get_mut(i)) {
            left -= 1;
            let high = magnitude >> left & 1;
            encoder.put(&mut bits[0], high == 1);
            if left > 0 {
                left -= 1;
                encoder.put(&mut bits[1 + high as usize], magnitude >> left & 1 == 1);
            }
        }
        encoder.put_raw(magnitude & ((1 << left) - 1), left);
    }

    /// Reads an integer; its magnitude is below 2^15.
    #[inline]
    pub(super) fn get(&mut self, decoder: &mut Decoder<'_>) -> i32 {
        if !decoder.get(&mut self.zero) {
            return 0;
        }
        let negative = decoder.get(&mut self.sign);
        let mut length = 0;
        while length < LENGTHS && decoder.get(&mut self.longer[length]) {
            length += 1;
        }
        let mut magnitude = 1_u32;
        let mut left = length as u32;
        if let Some(bits) = length.checked_sub(1).and_then(|i| self.mantissa.get_mut(i)) {
            left -= 1;
            let high = decoder.get(&mut bits[0]);
            magnitude = magnitude << 1 | u32::from(high);
            if left > 0 {
                left -= 1;
                let next = decoder.get(&mut bits[1 + usize::from(high)]);
                magnitude = magnitude << 1 | u32::from(next);
            }
        }
        magnitude = magnitude << left | decoder.get_raw(left);
        if negative {
            -magnitude.cast_signed()
        } else {
            magnitude.cast_signed()
        }
    }
}
