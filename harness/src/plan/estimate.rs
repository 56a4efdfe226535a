//! What a request will put on the link, as far as it can be known beforehand.

use celslm_kv::KvShape;
use celslm_kv::codec::{Codec as _, TileShape};
use celslm_link::LinkProfile;
use celslm_systems::{Contract, KvPath};

use super::Cell;

/// Sizes of the contexts' KV in the edge's shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvEstimator {
    shape: KvShape,
    context_tokens: Vec<u64>,
}

/// A forecast for one request of a cell. Frame and packet headers are not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// Tokens of the mean document.
    pub context_tokens: u64,
    /// Bytes of its KV in fp16.
    pub kv_fp16_bytes: u64,
    /// Bytes of it that the codec sends.
    pub kv_payload_bytes: u64,
    /// Milliseconds that they take at the downlink's rate; `None` where it has no bound.
    pub transfer_ms: Option<u64>,
}

impl KvEstimator {
    /// Estimates for an edge model with KV of this shape. `context_tokens` holds the tokens of the
    /// mean document for each of [`Inputs::draws`](super::Inputs::draws).
    #[must_use]
    pub fn new(shape: KvShape, context_tokens: Vec<u64>) -> Self {
        Self {
            shape,
            context_tokens,
        }
    }

    /// The forecast for a request of `cell`; `None` where no KV crosses the link.
    #[must_use]
    pub fn estimate(&self, cell: &Cell, link: &LinkProfile) -> Option<Estimate> {
        let path = cell.spec.kv.as_ref()?;
        if cell.contract == Contract::Warm {
            return None;
        }
        let context_tokens = *self.context_tokens.get(cell.draw)?;
        let payload = self.payload_bytes(path, context_tokens as usize)?;
        let transfer_ms = link
            .downlink
            .rate_mbit
            .map(|mbit| (payload as f64 * 8.0 / (mbit * 1e3)).round() as u64);
        Some(Estimate {
            context_tokens,
            kv_fp16_bytes: self.fp16_bytes(context_tokens),
            kv_payload_bytes: payload,
            transfer_ms,
        })
    }

    fn fp16_bytes(&self, tokens: u64) -> u64 {
        let per_token = self.shape.num_layers * self.shape.num_kv_heads * self.shape.head_dim * 4;
        tokens * per_token as u64
    }

    /// Encoded bytes of `tokens`, chunk by chunk, as the codec itself states them.
    fn payload_bytes(&self, path: &KvPath, tokens: usize) -> Option<u64> {
        let codec = path.codec.build();
        let encoded = |tokens: usize| {
            TileShape::new(self.shape.num_kv_heads, tokens, self.shape.head_dim)
                .ok()
                .map(|shape| codec.encoded_len(shape) as u64)
        };
        let full = (tokens / path.chunk_tokens) as u64;
        let mut layer_bytes = 0;
        if full > 0 {
            layer_bytes += full * encoded(path.chunk_tokens)?;
        }
        if !tokens.is_multiple_of(path.chunk_tokens) {
            layer_bytes += encoded(tokens % path.chunk_tokens)?;
        }
        Some(layer_bytes * self.shape.num_layers as u64)
    }
}
