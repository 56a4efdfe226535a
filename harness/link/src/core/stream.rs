//! Random streams, one per impairment.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// The random stream of one impairment in one direction.
///
/// The root seed is the key and the names select the stream, so an impairment that is switched
/// on or added later shifts none of the others.
#[must_use]
pub fn stream(seed: u64, direction: &str, impairment: &str) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(fnv1a(&[direction, "/", impairment]));
    rng
}

/// FNV-1a, 64 bits: it only has to tell a handful of names apart and stay the same for ever.
fn fnv1a(parts: &[&str]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    parts
        .iter()
        .flat_map(|part| part.bytes())
        .fold(OFFSET, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(PRIME)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngExt;

    #[test]
    fn streams_repeat_and_differ_by_every_name() {
        let draw = |seed, direction, impairment| -> Vec<u64> {
            let mut rng = stream(seed, direction, impairment);
            (0..8).map(|_| rng.random()).collect()
        };
        let base = draw(1, "uplink", "loss");
        assert_eq!(base, draw(1, "uplink", "loss"));
        assert_ne!(base, draw(2, "uplink", "loss"));
        assert_ne!(base, draw(1, "downlink", "loss"));
        assert_ne!(base, draw(1, "uplink", "delay"));
    }

    #[test]
    fn the_hash_is_the_published_one() {
        assert_eq!(fnv1a(&["a"]), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(&["foo", "bar"]), 0x8594_4171_f739_67e8);
    }
}
