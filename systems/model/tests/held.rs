//! Prefixes that hold some of their tokens, and the scores by which tokens are chosen, against
//! attention written out.

use celslm_kv::codec::ScoredBy;
use celslm_kv::{KvBlock, LayerKv};
use celslm_model::synthetic::SyntheticModel;
use celslm_model::{BatchItem, Decoder, GgufFile, KeyRetention, KvCache, KvPrefix};
use half::f16;
use std::sync::Arc;

const HEADS: usize = 6;
const KV_HEADS: usize = 2;
const DIM: usize = 32;
const TOKENS: usize = 90;

fn decoder() -> Decoder {
    let model = SyntheticModel {
        architecture: "qwen2",
        num_layers: 3,
        num_heads: HEADS,
        num_kv_heads: KV_HEADS,
        head_dim: DIM,
        quantised: false,
        seed: 6,
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    model.write(&path).unwrap();
    Decoder::load(&mut GgufFile::open(&path).unwrap()).unwrap()
}

fn tokens() -> Vec<u32> {
    (0..TOKENS as u32)
        .map(|i| 32 + (i * 37 + i * i % 13) % 90)
        .collect()
}

/// Rotated queries of every layer, and the context's KV.
fn observed(model: &Decoder) -> (Vec<Vec<f32>>, KvBlock) {
    let mut cache = KvCache::new(model.kv_shape(), None, TOKENS, KeyRetention::PreRope).unwrap();
    let mut queries = Vec::new();
    let hidden = model
        .observe(&tokens(), &mut cache, |seen| {
            queries.push(seen.queries.to_vec());
        })
        .unwrap();
    let mut again = KvCache::new(model.kv_shape(), None, TOKENS, KeyRetention::PreRope).unwrap();
    let plain = model.forward(&tokens(), &mut again).unwrap();
    assert_eq!(hidden.to_vec().unwrap(), plain.to_vec().unwrap());
    (queries, cache.read(model.fingerprint(), 0..TOKENS).unwrap())
}

/// Attention of one query over the keys of the given tokens.
fn weights(
    model: &Decoder,
    layer: &LayerKv,
    query: &[f32],
    head: usize,
    seen: &[usize],
) -> Vec<f32> {
    let mut rotated = vec![f16::ZERO; layer.k.len()];
    model.rope().rotate_keys(&layer.k, &mut rotated, TOKENS, 0);
    let logits: Vec<f32> = seen
        .iter()
        .map(|token| {
            let at = (head / (HEADS / KV_HEADS) * TOKENS + token) * DIM;
            let key = &rotated[at..at + DIM];
            let dot: f32 = query.iter().zip(key).map(|(q, k)| q * k.to_f32()).sum();
            dot / (DIM as f32).sqrt()
        })
        .collect();
    let top = logits.iter().copied().fold(f32::MIN, f32::max);
    let total: f32 = logits.iter().map(|x| (x - top).exp()).sum();
    logits.iter().map(|x| (x - top).exp() / total).collect()
}

#[test]
fn a_prefix_is_read_without_its_dropped_tokens() {
    let model = decoder();
    let (queries, block) = observed(&model);
    let dropped: Vec<usize> = (0..TOKENS).filter(|token| token % 3 == 1).collect();
    let held: Vec<usize> = (0..TOKENS).filter(|token| token % 3 != 1).collect();
    let prefix = KvPrefix::new(model.kv_shape(), TOKENS);
    for (layer, kv) in block.layers().iter().enumerate() {
        // What stands at dropped positions must not matter.
        let mut kv = kv.clone();
        for token in &dropped {
            for head in 0..KV_HEADS {
                let at = (head * TOKENS + token) * DIM;
                kv.k[at..at + DIM].fill(f16::from_f32(9.0));
                kv.v[at..at + DIM].fill(f16::from_f32(9.0));
            }
        }
        prefix
            .set_layer_held(layer, &kv, &dropped, model.rope())
            .unwrap();
        assert_eq!(prefix.held(layer), Some(held.len()));
    }
    assert_eq!(prefix.len(), TOKENS);
    for (layer, queries) in queries.iter().enumerate() {
        let rows = &queries[..20 * HEADS * DIM];
        let found = model.attention_output(layer, rows, &prefix).unwrap();
        let kv = &block.layers()[layer];
        for (index, query) in rows.chunks_exact(DIM).enumerate() {
            let head = index % HEADS;
            let weights = weights(&model, kv, query, head, &held);
            for d in 0..DIM {
                let at = |token: usize| (head / (HEADS / KV_HEADS) * TOKENS + token) * DIM + d;
                let pairs = weights.iter().zip(&held);
                let expected: f32 = pairs.map(|(w, t)| w * kv.v[at(*t)].to_f32()).sum();
                let found = found[index * DIM + d];
                assert!((found - expected).abs() < 1e-3, "{found} {expected}");
            }
        }
    }
    let next = |prefix: KvPrefix| {
        let mut cache = KvCache::new(
            model.kv_shape(),
            Some(Arc::new(prefix)),
            8,
            KeyRetention::RotatedOnly,
        )
        .unwrap();
        let item = BatchItem {
            tokens: &[40, 41],
            cache: &mut cache,
            logits: true,
        };
        let logits = model
            .forward_batch(&mut [item])
            .unwrap()
            .remove(0)
            .unwrap()
            .to_vec();
        assert_eq!(
            cache.len(0),
            TOKENS + 2,
            "dropped tokens keep their positions"
        );
        logits
    };
    let with_none = KvPrefix::new(model.kv_shape(), TOKENS);
    for (layer, kv) in block.layers().iter().enumerate() {
        with_none
            .set_layer_held(layer, kv, &[], model.rope())
            .unwrap();
    }
    let whole = next(KvPrefix::from_block(&block, model.rope()).unwrap());
    assert_eq!(next(with_none), whole);
    assert_ne!(next(prefix), whole);
}

#[test]
fn a_layer_may_be_empty_and_nonsense_is_refused() {
    let model = decoder();
    let (queries, block) = observed(&model);
    let prefix = KvPrefix::new(model.kv_shape(), TOKENS);
    let kv = &block.layers()[0];
    for bad in [vec![3, 2], vec![2, 2], vec![TOKENS]] {
        let error = prefix
            .set_layer_held(0, kv, &bad, model.rope())
            .unwrap_err();
        assert!(
            error.to_string().contains("out of order or range"),
            "{error}"
        );
    }
    assert!(model.attention_output(0, &queries[0], &prefix).is_err());
    let all: Vec<usize> = (0..TOKENS).collect();
    prefix.set_layer_held(0, kv, &all, model.rope()).unwrap();
    let out = model.attention_output(0, &queries[0], &prefix).unwrap();
    assert!(out.iter().all(|x| *x == 0.0));
    assert_eq!(prefix.bytes(), 0);
}

#[test]
fn scores_are_those_of_attention_written_out() {
    let model = decoder();
    let (queries, block) = observed(&model);
    let h2o = model.token_scores(&tokens(), ScoredBy::H2o).unwrap();
    let mut mean = vec![0f32; TOKENS];
    for (layer, queries) in queries.iter().enumerate() {
        let mut received = vec![0f32; TOKENS];
        for row in 0..TOKENS {
            let seen: Vec<usize> = (0..=row).collect();
            for head in 0..HEADS {
                let query = &queries[(row * HEADS + head) * DIM..][..DIM];
                let weights = weights(&model, &block.layers()[layer], query, head, &seen);
                for (sum, weight) in received.iter_mut().zip(weights) {
                    *sum += weight / HEADS as f32;
                }
            }
        }
        let (first, scores) = h2o.layer(layer).unwrap();
        assert_eq!((first, scores.len()), (0, TOKENS));
        let recent = TOKENS - 64;
        for (score, expected) in scores[..recent].iter().zip(&received) {
            assert!((score - expected).abs() < 1e-3, "{score} {expected}");
        }
        assert!(scores[recent..].iter().all(|score| score.is_infinite()));
        for (token, (mean, received)) in mean.iter_mut().zip(&received).enumerate() {
            let seen_by = TOKENS - token;
            *mean += received / (seen_by * block.shape().num_layers) as f32;
        }
    }
    let found = model.attention_received(&tokens()).unwrap();
    for (found, expected) in found.iter().zip(&mean) {
        assert!((found - expected).abs() < 1e-4, "{found} {expected}");
    }
    for by in [ScoredBy::SnapKv, ScoredBy::ExpectedAttention] {
        let scores = model.token_scores(&tokens(), by).unwrap();
        let (_, first) = scores.layer(0).unwrap();
        let (_, last) = scores.layer(2).unwrap();
        assert_ne!(first, last);
        let finite = first.iter().filter(|score| score.is_finite());
        assert!(finite.clone().count() > 20 && finite.clone().all(|score| *score >= 0.0));
    }
}
