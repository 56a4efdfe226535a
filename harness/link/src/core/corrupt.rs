//! Corruption.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::Packet;
use super::chance::Chance;

/// Packets of which one bit is flipped, as in netem: any bit, headers included.
///
/// The receiver's checksums find it, so that to TCP and UDP corruption is a loss that happens
/// after the packet has used the link. Where a sender leaves checksums to the device, a backend
/// must have them filled in before.
#[derive(Clone, Debug)]
pub struct Corrupt(Chance);

/// The bit to flip of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flip(u64);

impl Corrupt {
    /// Corruption of each packet with `probability`, 0 to 1.
    #[must_use]
    pub fn new(probability: f64, rng: ChaCha8Rng) -> Self {
        Self(Chance::new(probability, rng))
    }

    /// Whether, and where, the next packet is corrupted.
    pub fn draw(&mut self) -> Option<Flip> {
        self.0.draw().then(|| Flip(self.0.rng().random()))
    }
}

impl Flip {
    /// Flips the bit; false for an empty packet, which has none.
    #[must_use]
    pub fn apply(self, packet: &mut Packet) -> bool {
        let bytes = packet.bytes_mut();
        let bits = bytes.len() as u64 * 8;
        if bits == 0 {
            return false;
        }
        // The bias of the remainder is below 2⁻⁴⁵.
        let bit = self.0 % bits;
        bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::stream;
    use super::*;

    #[test]
    fn one_bit_is_flipped_and_every_bit_can_be() {
        let mut corrupt = Corrupt::new(1.0, stream(1, "uplink", "corrupt"));
        let mut seen = [0_u32; 32];
        for _ in 0..32_000 {
            let mut packet = Packet::from_bytes(&[0; 4]);
            let flip = corrupt.draw().expect("always");
            assert!(flip.apply(&mut packet));
            let value = u32::from_le_bytes(packet.bytes().try_into().expect("four bytes"));
            assert_eq!(value.count_ones(), 1);
            seen[value.trailing_zeros() as usize] += 1;
        }
        // Chi-square with 31 degrees of freedom: 52.2 at the 1% level.
        let chi: f64 = seen
            .iter()
            .map(|&n| (f64::from(n) - 1000.0).powi(2) / 1000.0)
            .sum();
        assert!(chi < 52.2, "{chi}");
        assert!(!Flip(7).apply(&mut Packet::from_bytes(&[])));
        // Of a stub it is one of the bits that are kept.
        let mut stub = Packet::stub(&[0; 4], 1500);
        assert!(Flip(1501 * 8).apply(&mut stub) && stub.len() == 1500);
        assert!(stub.bytes().iter().any(|&byte| byte != 0));
    }
}
