//! The edge's own KV through a codec chain, chunk by chunk as over a link.

use std::ops::Range;
use std::sync::Arc;

use celslm_kv::codec::{ByteCount, Chain, Codec as _, Explanation};
use celslm_kv::{Assembler, ChunkEncoder, KvBlock, KvChunk, LayerKv, chunk};
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
        let encoder = || ChunkEncoder::new(chain.clone()).with_scores(scores.clone());
        let plan = chunk::plan(block.spec(), settings.chunk_tokens, chain)?;
        let start = (settings.now_ns)();
        let mut encode = encoder();
        let chunks: Vec<KvChunk> = plan
            .clone()
            .map(|(layer, tokens)| encode.encode(block, layer, tokens))
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
                true => account(encoder(), block, plan)?,
                false => Vec::new(),
            },
            decoded: Some(decoded),
            edge_token_layers: 0,
            encode_ns: encoded.saturating_sub(start),
            decode_ns: decoded_at.saturating_sub(encoded),
            answered: None,
        })
    }
}

/// What the payload bytes are spent on. Encodes again, so that the time of encoding is not that of
/// the account.
fn account(
    mut encoder: ChunkEncoder,
    block: &KvBlock,
    plan: impl Iterator<Item = (usize, Range<usize>)>,
) -> Result<Vec<BytePart>, EvaluationError> {
    let mut total = Explanation::default();
    for (layer, tokens) in plan {
        total.add(&encoder.explain(block, layer, tokens)?.1);
    }
    let part = |part: &ByteCount| BytePart {
        part: format!("{} {}", part.stage, part.what),
        bytes: part.bytes as u64,
    };
    Ok(total.parts.iter().map(part).collect())
}
