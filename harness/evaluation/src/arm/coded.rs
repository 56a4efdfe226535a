//! The edge's own KV through a codec chain, chunk by chunk as over a link.

use std::sync::Arc;

use celslm_kv::codec::{Beside, Chain, Codec as _, Explanation, Prior, TileShape, TileSpec};
use celslm_kv::{Assembler, ChunkEncoder, KvChunk, LayerKv, chunk};
use celslm_model::KvPrefix;
use celslm_reports::evaluation::BytePart;

use super::{Arm, Decoded, Served};
use crate::{Case, EvaluationError, Evaluator};

/// KV that was encoded, decoded, and is attended to as an edge would.
#[derive(Debug, Clone)]
pub struct Coded {
    /// The chain, bound to its artefact.
    pub chain: Chain,
}

impl Arm for Coded {
    fn serve(&self, evaluator: &Evaluator<'_>, case: &Case<'_>) -> Result<Served, EvaluationError> {
        let settings = evaluator.settings;
        let (block, chain) = (case.block(), &self.chain);
        let scores = match chain.config().scored_by() {
            Some(by) => Some(case.scores(evaluator.model, by)?),
            None => None,
        };
        let start = (settings.now_ns)();
        let mut encoder = ChunkEncoder::new(chain.clone()).with_scores(scores);
        let chunks: Vec<KvChunk> = chunk::plan(block.spec(), settings.chunk_tokens, chain)?
            .map(|(layer, tokens)| encoder.encode(block, layer, tokens))
            .collect::<Result<_, _>>()?;
        let encoded = (settings.now_ns)();
        let mut assembler = Assembler::new(
            block.spec().clone(),
            vec![chain.clone()],
            block.fp16_bytes(),
        )?
        .with_dropped(true);
        let mut layers: Vec<Option<LayerKv>> = vec![None; block.shape().num_layers];
        for chunk in &chunks {
            if let Some((layer, kv)) = assembler.accept(chunk)? {
                layers[layer] = Some(kv);
            }
        }
        let decoded_at = (settings.now_ns)();
        let decoded = Decoded {
            dropped: (0..layers.len())
                .map(|layer| assembler.dropped(layer).to_vec())
                .collect(),
            layers: layers.into_iter().flatten().collect(),
        };
        let model = &evaluator.model.decoder;
        let prefix = KvPrefix::new(model.kv_shape(), case.tokens().len());
        for (layer, (kv, dropped)) in decoded.layers.iter().zip(&decoded.dropped).enumerate() {
            prefix.set_layer_held(layer, kv, dropped, model.rope())?;
        }
        let id = chain.id();
        Ok(Served {
            prefix: Arc::new(prefix),
            payload_bytes: chunks.iter().map(|chunk| chunk.payload.len() as u64).sum(),
            message_bytes: (settings.message_bytes)(block.spec(), &id, &chunks)
                .map_err(EvaluationError::Message)?,
            parts: match case.is_accounted() {
                true => account(chain, case, &decoded, &chunks)?,
                false => Vec::new(),
            },
            decoded: Some(decoded),
            encode_ns: encoded.saturating_sub(start),
            decode_ns: decoded_at.saturating_sub(encoded),
        })
    }
}

/// What the payload bytes are spent on.
fn account(
    chain: &Chain,
    case: &Case<'_>,
    decoded: &Decoded,
    chunks: &[KvChunk],
) -> Result<Vec<BytePart>, EvaluationError> {
    let spec = case.block().spec();
    let refused = |error: &dyn std::fmt::Display| {
        EvaluationError::Arm(format!("account for {}: {error}", chain.id()))
    };
    let mut total = Explanation::default();
    for chunk in chunks {
        let tokens = chunk.tokens.clone();
        let shape = TileShape::new(spec.shape.num_kv_heads, tokens.len(), spec.shape.head_dim)
            .map_err(|error| refused(&error))?;
        let place = TileSpec {
            shape,
            layer: chunk.layer,
            num_layers: spec.shape.num_layers,
            first_token: tokens.start,
            end_token: spec.positions.end,
        };
        let below = chain.prior_layers().min(chunk.layer);
        let mut prior = Vec::with_capacity(below);
        for depth in 1..=below {
            let layer = &decoded.layers[chunk.layer - depth];
            prior.push(cut(layer, tokens.clone(), case.tokens().len(), shape));
        }
        let prior: Vec<Prior<'_>> = prior
            .iter()
            .map(|layer| Prior {
                k: &layer.k,
                v: &layer.v,
            })
            .collect();
        let beside = Beside {
            positions: None,
            prior: &prior,
        };
        let explained = chain
            .explain(place, beside, &chunk.payload)
            .map_err(|error| refused(&error))?;
        total.add(&explained);
    }
    Ok(total
        .parts
        .iter()
        .map(|part| BytePart {
            part: format!("{} {}", part.stage, part.what),
            bytes: part.bytes as u64,
        })
        .collect())
}

/// A run of tokens of a layer.
fn cut(layer: &LayerKv, tokens: std::ops::Range<usize>, of: usize, shape: TileShape) -> LayerKv {
    let cut = |side: &[half::f16]| {
        side.chunks_exact(of * shape.head_dim())
            .flat_map(|head| &head[tokens.start * shape.head_dim()..tokens.end * shape.head_dim()])
            .copied()
            .collect()
    };
    LayerKv {
        k: cut(&layer.k),
        v: cut(&layer.v),
    }
}
