//! What a request will put on the link, as far as it can be known beforehand.

use std::sync::Arc;

use celslm_kv::codec::{
    CodecArtefact, CodecContext, StageConfig, StageKind, TileShape, TokenScores,
};
use celslm_kv::{Chain, ChunkEncoder, Codec as _, CodecConfig, KvBlock, KvShape, chunk};
use celslm_link::LinkProfile;
use celslm_systems::{Contract, KvPath};

use super::Cell;

/// Tokens of the context that is drawn from an artefact.
const DRAWN_TOKENS: usize = 512;

/// Sizes of the contexts' KV in the shape in which it crosses the link.
#[derive(Debug, Clone, PartialEq)]
pub struct KvEstimator {
    shape: KvShape,
    /// Of the cloud model's own KV, for edges that map.
    native: Option<KvShape>,
    context_tokens: Vec<u64>,
    drawn: Option<Drawn>,
}

/// KV as the artefact of the edge's model describes it.
#[derive(Debug, Clone, PartialEq)]
struct Drawn {
    artefact: Arc<CodecArtefact>,
    block: KvBlock,
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
    /// Where the last figure comes from.
    pub basis: Basis,
    /// Milliseconds that they take at the downlink's rate; `None` where it has no bound.
    pub transfer_ms: Option<u64>,
}

/// Where the size of encoded KV comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// It follows from the shape.
    Shape,
    /// The chain coded KV drawn from the artefact's statistics.
    Drawn,
    /// The size depends on the numbers, and nothing says what they will be: the bound.
    Bound,
}

impl KvEstimator {
    /// Estimates for an edge model with KV of this shape. `context_tokens` holds the tokens of the
    /// mean document for each of [`Inputs::draws`](super::Inputs::draws).
    #[must_use]
    pub fn new(shape: KvShape, context_tokens: Vec<u64>) -> Self {
        Self {
            shape,
            native: None,
            context_tokens,
            drawn: None,
        }
    }

    /// With the shape of the cloud model's KV, which is what an edge that maps fetches.
    #[must_use]
    pub fn with_native(self, native: Option<KvShape>) -> Self {
        Self { native, ..self }
    }

    /// With the artefact of the edge's model, which says what its KV is like.
    #[must_use]
    pub fn with_artefact(self, artefact: Option<Arc<CodecArtefact>>) -> Self {
        let drawn = artefact
            .filter(|artefact| artefact.model().shape == self.shape)
            .and_then(|artefact| {
                let block = artefact.draw(DRAWN_TOKENS, 0).ok()?;
                Some(Drawn { artefact, block })
            });
        Self { drawn, ..self }
    }

    /// The forecast for a request of `cell`; `None` where no KV crosses the link.
    #[must_use]
    pub fn estimate(&self, cell: &Cell, link: &LinkProfile) -> Option<Estimate> {
        let path = cell.spec.kv.as_ref()?;
        if cell.contract == Contract::Warm {
            return None;
        }
        let context_tokens = *self.context_tokens.get(cell.draw)?;
        let shape = self.shape_of(path)?;
        let (payload, basis) = self.payload_bytes(path, context_tokens as usize)?;
        let transfer_ms = link
            .downlink
            .rate_mbit
            .map(|mbit| (payload as f64 * 8.0 / (mbit * 1e3)).round() as u64);
        Some(Estimate {
            context_tokens,
            kv_fp16_bytes: shape.fp16_bytes(context_tokens as usize),
            kv_payload_bytes: payload,
            basis,
            transfer_ms,
        })
    }

    /// The shape of what crosses the link; `None` where that is not known.
    fn shape_of(&self, path: &KvPath) -> Option<KvShape> {
        match path.alignment.maps_at_edge() {
            true => self.native,
            false => Some(self.shape),
        }
    }

    /// Encoded bytes of `tokens`, and how they are known.
    fn payload_bytes(&self, path: &KvPath, tokens: usize) -> Option<(u64, Basis)> {
        let varies = path.codec.stages().iter().any(|stage| {
            matches!(stage.kind(), StageKind::Select | StageKind::Entropy)
                || matches!(stage, StageConfig::Progressive(_))
        });
        if !varies {
            return Some((self.bound(path, tokens)?, Basis::Shape));
        }
        // An artefact says what the KV of the edge's model is like.
        let drawn = self.drawn.as_ref();
        let drawn = drawn.filter(|_| !path.alignment.maps_at_edge());
        match drawn.and_then(|drawn| drawn.encoded_bytes(&path.codec, path.chunk_tokens)) {
            Some(bytes) => {
                let share = tokens as f64 / DRAWN_TOKENS as f64;
                Some(((bytes as f64 * share).round() as u64, Basis::Drawn))
            }
            None => Some((self.bound(path, tokens)?, Basis::Bound)),
        }
    }

    /// Most encoded bytes of `tokens`, chunk by chunk, as the codec itself states them.
    fn bound(&self, path: &KvPath, tokens: usize) -> Option<u64> {
        let codec = path.codec.build();
        let shape = self.shape_of(path)?;
        let encoded = |tokens: usize| {
            TileShape::new(shape.num_kv_heads, tokens, shape.head_dim)
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
        Some(layer_bytes * shape.num_layers as u64)
    }
}

impl Drawn {
    /// Payload bytes of the drawn context; `None` where the chain cannot code it.
    fn encoded_bytes(&self, codec: &CodecConfig, chunk_tokens: usize) -> Option<usize> {
        let context = CodecContext::new(Arc::clone(&self.artefact));
        let chain: Chain = codec.build_with(&context).ok()?;
        // A selection keeps the same share whatever the scores are.
        let layers = vec![vec![0.0; DRAWN_TOKENS]; self.block.shape().num_layers];
        let scores = TokenScores::new(0, 0, layers).ok()?;
        let mut encoder = ChunkEncoder::new(chain.clone()).with_scores(Some(Arc::new(scores)));
        let mut bytes = 0;
        for (layer, tokens) in chunk::plan(self.block.spec(), chunk_tokens, &chain).ok()? {
            bytes += encoder
                .encode(&self.block, layer, tokens)
                .ok()?
                .payload
                .len();
        }
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::fitted;
    use celslm_kv::AlignmentConfig;
    use celslm_systems::ScheduleKind;

    #[test]
    fn sizes_come_from_the_shape_the_artefact_or_the_bound() {
        let artefact = fitted(1);
        let shape = artefact.model().shape;
        let bare = KvEstimator::new(shape, vec![700]);
        let full = bare.clone().with_artefact(Some(artefact));
        let path = |codec: &str| KvPath {
            alignment: AlignmentConfig::Identity,
            codec: codec.parse().unwrap(),
            schedule: ScheduleKind::Layerwise,
            chunk_tokens: 256,
            bridge: None,
        };
        let fp16 = shape.fp16_bytes(700);
        let identity = path("identity");
        assert_eq!(
            full.payload_bytes(&identity, 700),
            Some((fp16, Basis::Shape))
        );
        let coded = path("prefix+exact-s4-w0+pca-predict+step-m600-d15+context");
        let (bound, basis) = bare.payload_bytes(&coded, 700).unwrap();
        assert_eq!(basis, Basis::Bound);
        let (bytes, basis) = full.payload_bytes(&coded, 700).unwrap();
        assert_eq!(basis, Basis::Drawn);
        assert!(bytes * 3 < bound && bytes * 2 < fp16, "{bytes} of {bound}");
        // Half of the tokens is half of the bytes, but for the map of those that are kept.
        let (bytes, basis) = full.payload_bytes(&path("h2o-k50+identity"), 1024).unwrap();
        let half = shape.fp16_bytes(1024) / 2;
        assert_eq!(basis, Basis::Drawn);
        assert!((half..half + half / 10).contains(&bytes), "{bytes} {half}");
        // The cloud model's own KV has that model's shape, and no artefact describes it.
        let at_edge = |codec: &str| KvPath {
            alignment: serde_json::from_str(r#"{"depth": {"at": "edge"}}"#).unwrap(),
            ..path(codec)
        };
        assert_eq!(full.payload_bytes(&at_edge("identity"), 700), None);
        let native = KvShape::new(5, 4, 32).unwrap();
        let known = full.with_native(Some(native));
        assert_eq!(
            known.payload_bytes(&at_edge("identity"), 700),
            Some((native.fp16_bytes(700), Basis::Shape))
        );
        let (_, basis) = known
            .payload_bytes(&at_edge("group_quant-4b-g32+zstd-l3"), 700)
            .unwrap();
        assert_eq!(basis, Basis::Bound);
    }
}
