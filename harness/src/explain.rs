//! Where the bytes of a context's encoded KV go.

use std::sync::Arc;

use celslm_kv::codec::{Explanation, TokenScores};
use celslm_kv::{Chain, ChunkEncoder, Codec as _, KvBlock, chunk};

/// The account of one context, encoded as a cloud encodes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Id of the chain.
    pub codec: String,
    /// Chunks that it took.
    pub chunks: usize,
    /// Bytes of the messages that carry them, frames and the other messages of a fetch included.
    pub message_bytes: u64,
    /// By layer.
    pub layers: Vec<Explanation>,
    /// All layers together.
    pub total: Explanation,
}

impl Account {
    /// Encodes `block` chunk by chunk and counts.
    ///
    /// # Errors
    /// As for [`ChunkEncoder::explain`], and what cannot be a message.
    pub fn of(
        block: &KvBlock,
        chain: &Chain,
        chunk_tokens: usize,
        scores: Option<Arc<TokenScores>>,
    ) -> anyhow::Result<Self> {
        let mut encoder = ChunkEncoder::new(chain.clone()).with_scores(scores);
        let mut account = Self {
            codec: chain.id(),
            chunks: 0,
            message_bytes: 0,
            layers: vec![Explanation::default(); block.shape().num_layers],
            total: Explanation::default(),
        };
        let mut chunks = Vec::new();
        for (layer, tokens) in chunk::plan(block.spec(), chunk_tokens, chain)? {
            let (chunk, explanation) = encoder.explain(block, layer, tokens)?;
            chunks.push(chunk);
            account.layers[layer - block.first_layer()].add(&explanation);
            account.total.add(&explanation);
        }
        account.chunks = chunks.len();
        account.message_bytes =
            celslm_systems::transfer_bytes(block.spec(), &account.codec, &chunks)?;
        Ok(account)
    }

    /// fp16 bytes over payload bytes.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        self.total.fp16_bytes as f64 / self.total.bytes().max(1) as f64
    }

    /// fp16 bytes over the bytes of the messages.
    #[must_use]
    pub fn ratio_in_messages(&self) -> f64 {
        self.total.fp16_bytes as f64 / self.message_bytes.max(1) as f64
    }

    /// A row for each part of the payload, the largest first: stage, what, bytes, share.
    #[must_use]
    pub fn parts(&self) -> Vec<[String; 4]> {
        let all = self.total.bytes().max(1) as f64;
        let mut parts = self.total.parts.clone();
        parts.sort_by_key(|part| std::cmp::Reverse(part.bytes));
        parts
            .iter()
            .map(|part| {
                [
                    part.stage.to_owned(),
                    part.what.to_owned(),
                    part.bytes.to_string(),
                    format!("{:.1} %", part.bytes as f64 * 100.0 / all),
                ]
            })
            .collect()
    }

    /// A row for each layer: layer, bytes, bits per number, tokens held of those declared, ratio.
    #[must_use]
    pub fn by_layer(&self) -> Vec<[String; 5]> {
        let row = |(layer, account): (usize, &Explanation)| {
            let ratio = account.fp16_bytes as f64 / account.bytes().max(1) as f64;
            [
                layer.to_string(),
                account.bytes().to_string(),
                format!("{:.2}", 16.0 / ratio),
                format!("{} of {}", account.tokens_held, account.tokens),
                format!("{ratio:.2}"),
            ]
        };
        self.layers.iter().enumerate().map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::fitted;
    use celslm_kv::codec::{CodecConfig, CodecContext};

    fn account(codec: &str, tokens: usize) -> Account {
        let artefact = fitted(1);
        let block = artefact.draw(tokens, 3).unwrap();
        let config: CodecConfig = codec.parse().unwrap();
        let chain = config.build_with(&CodecContext::new(artefact)).unwrap();
        Account::of(&block, &chain, 128, None).unwrap()
    }

    #[test]
    fn every_byte_is_accounted_for_by_part_and_by_layer() {
        for codec in [
            "identity",
            "exact-s4-w0+pca-predict+step-m600-d15+context",
            "streaming-k50-s4+vectorwise-f32-c16",
        ] {
            let account = account(codec, 300);
            assert_eq!(account.chunks, 3 * 3);
            assert_eq!(account.total.fp16_bytes, 3 * 300 * 2 * 16 * 4);
            let by_layer: usize = account.layers.iter().map(Explanation::bytes).sum();
            assert_eq!(by_layer, account.total.bytes());
            let by_part: usize = account
                .parts()
                .iter()
                .map(|[.., bytes, _]| bytes.parse::<usize>().unwrap())
                .sum();
            assert_eq!(by_part, account.total.bytes(), "{codec}");
            assert!(account.ratio_in_messages() < account.ratio());
        }
        assert!((account("identity", 300).ratio() - 1.0).abs() < 1e-9);
        let streaming = account("streaming-k50-s4+vectorwise-f32-c16", 300);
        assert_eq!(streaming.by_layer()[1][3], "150 of 300");
    }
}
