//! Framing inside a payload: counted sections, read without trusting any count.

/// Appends a number, seven bits a byte, lowest first.
pub(super) fn put_number(out: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Appends a section: its length, then the bytes.
pub(super) fn put_section(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len());
    out.extend_from_slice(bytes);
}

/// Most bytes that a section's length takes for sections of at most `bytes` bytes.
pub(super) const fn number_len(bytes: usize) -> usize {
    let bits = usize::BITS - bytes.leading_zeros();
    if bits == 0 {
        1
    } else {
        bits.div_ceil(7) as usize
    }
}

/// Reads what the functions above write; every method gives `None` where the bytes end early
/// or no encoder writes them so.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(super) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(count)?;
        self.bytes = rest;
        Some(taken)
    }

    /// A number in its one shortest form.
    pub(super) fn number(&mut self) -> Option<usize> {
        let mut number = 0_usize;
        for shift in (0..56).step_by(7) {
            let [byte, rest @ ..] = self.bytes else {
                return None;
            };
            self.bytes = rest;
            number |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return (*byte != 0 || shift == 0).then_some(number);
            }
        }
        None
    }

    pub(super) fn section(&mut self) -> Option<&'a [u8]> {
        let count = self.number()?;
        self.take(count)
    }

    pub(super) const fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip_in_one_form() {
        for number in [0, 1, 127, 128, 300, 16_383, 16_384, 1 << 40] {
            let mut out = Vec::new();
            put_number(&mut out, number);
            assert_eq!(out.len(), number_len(number));
            let mut reader = Reader::new(&out);
            assert_eq!(reader.number(), Some(number));
            assert!(reader.is_empty());
        }
        for bad in [&[][..], &[0x80], &[0x80, 0], &[0xff; 12]] {
            assert_eq!(Reader::new(bad).number(), None, "{bad:?}");
        }
    }

    #[test]
    fn sections_do_not_reach_beyond_the_bytes() {
        let mut out = Vec::new();
        put_section(&mut out, b"abc");
        assert_eq!(Reader::new(&out).section(), Some(&b"abc"[..]));
        assert_eq!(Reader::new(&out[..3]).section(), None);
        assert_eq!(
            Reader::new(&[0xff, 0xff, 0xff, 0xff, 0x7f, 1]).section(),
            None
        );
    }
}
