//! A packet in a buffer that can be used again.

/// An IP packet held in a buffer of fixed capacity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Whether the TCP or UDP checksum holds only the pseudo header's sum so far, as a sender
    /// leaves it to its device.
    pub checksum_pending: bool,
    buffer: Box<[u8]>,
    len: usize,
}

impl Packet {
    /// An empty packet whose buffer holds up to `capacity` bytes.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            checksum_pending: false,
            buffer: vec![0; capacity].into_boxed_slice(),
            len: 0,
        }
    }

    /// A packet that holds a copy of `bytes`.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self {
            checksum_pending: false,
            buffer: bytes.into(),
            len: bytes.len(),
        }
    }

    /// A packet of `len` bytes of which only `bytes` are kept: for a link on a virtual clock, where
    /// a full queue would be nothing but zeros.
    #[must_use]
    pub fn stub(bytes: &[u8], len: usize) -> Self {
        Self {
            len: len.max(bytes.len()),
            ..Self::from_bytes(bytes)
        }
    }

    /// The packet's bytes, from the IP header on; of a stub, those that are kept.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..self.len.min(self.buffer.len())]
    }

    /// As [`Packet::bytes`], for impairments that change them.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let kept = self.len.min(self.buffer.len());
        &mut self.buffer[..kept]
    }

    /// The length in bytes, IP header included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the packet holds no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The whole buffer, to be filled by a read; [`Packet::set_len`] then says how much counts.
    pub fn buffer_mut(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// States how many bytes of the buffer are the packet; more than the buffer holds is cut.
    pub fn set_len(&mut self, len: usize) {
        self.len = len.min(self.buffer.len());
    }
}
