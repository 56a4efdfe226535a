//! Where the bytes of a payload go.

use serde::Serialize;

/// Bytes that one stage spends on one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ByteCount {
    /// Name of the stage.
    pub stage: &'static str,
    /// What the bytes hold, for example `scales` or `codes of keys`.
    pub what: &'static str,
    /// How many.
    pub bytes: usize,
}

/// The account of one payload, or of many added up.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Explanation {
    /// In the order in which they stand in the payload; entries of the same kind are one.
    pub parts: Vec<ByteCount>,
    /// Tokens of the declared run.
    pub tokens: usize,
    /// Tokens that the payload holds.
    pub tokens_held: usize,
    /// Bytes of the declared run as fp16.
    pub fp16_bytes: usize,
}

impl Explanation {
    pub(super) fn new(
        parts: Vec<ByteCount>,
        tokens: usize,
        tokens_held: usize,
        fp16_bytes: usize,
    ) -> Self {
        let mut explanation = Self {
            parts: Vec::new(),
            tokens,
            tokens_held,
            fp16_bytes,
        };
        parts.into_iter().for_each(|part| explanation.put(part));
        explanation
    }

    /// Bytes of the payload: the sum over all parts.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    /// Adds the account of another payload of the same chain.
    pub fn add(&mut self, other: &Self) {
        other.parts.iter().for_each(|part| self.put(*part));
        self.tokens += other.tokens;
        self.tokens_held += other.tokens_held;
        self.fp16_bytes += other.fp16_bytes;
    }

    fn put(&mut self, part: ByteCount) {
        let same = |own: &&mut ByteCount| own.stage == part.stage && own.what == part.what;
        match self.parts.iter_mut().find(same) {
            Some(own) => own.bytes += part.bytes,
            None => self.parts.push(part),
        }
    }
}
