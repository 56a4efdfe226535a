//! The decoder's promise to the scheduler: a sequence's numbers depend on its own tokens and
//! cache alone, bit for bit.

use celslm_model::synthetic::SyntheticModel;
use celslm_model::{BatchItem, Decoder, GgufFile, KeyRetention, KvCache, KvPrefix};
use std::sync::Arc;

fn decoder(quantised: bool) -> Decoder {
    let model = SyntheticModel {
        architecture: "qwen2",
        num_layers: 3,
        num_heads: 6,
        num_kv_heads: 2,
        head_dim: 32,
        quantised,
        seed: 5,
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    model.write(&path).unwrap();
    Decoder::load(&mut GgufFile::open(&path).unwrap()).unwrap()
}

fn tokens(n: usize, salt: u32) -> Vec<u32> {
    (0..n as u32)
        .map(|i| 32 + (i * 37 + salt * 11 + i * i % 13) % 90)
        .collect()
}

fn cache(model: &Decoder, prefix: Option<&Arc<KvPrefix>>) -> KvCache {
    KvCache::new(
        model.kv_shape(),
        prefix.cloned(),
        400,
        KeyRetention::RotatedOnly,
    )
    .unwrap()
}

/// Logits of the last of `tokens`, fed in pieces of the given lengths.
fn alone(
    model: &Decoder,
    prefix: Option<&Arc<KvPrefix>>,
    tokens: &[u32],
    piece: usize,
) -> Vec<f32> {
    let mut cache = cache(model, prefix);
    let mut logits = None;
    for tokens in tokens.chunks(piece) {
        let item = BatchItem {
            tokens,
            cache: &mut cache,
            logits: true,
        };
        logits = model.forward_batch(&mut [item]).unwrap().remove(0);
    }
    logits.unwrap().to_vec()
}

#[test]
fn neither_batch_nor_pieces_change_a_bit() {
    for quantised in [false, true] {
        let model = decoder(quantised);
        let context = tokens(90, 1);
        let mut prefill = cache(&model, None);
        model.prefill(&context, &mut prefill, || true).unwrap();
        let prefix = Arc::new(prefill.freeze().unwrap());

        // Prompts of every kind side by side: long, single tokens, with and without the prefix.
        let prompts: Vec<Vec<u32>> = (0..21)
            .map(|i| tokens([1, 7, 40, 1, 1, 19][i % 6], i as u32))
            .collect();
        let with_prefix = |i: usize| (i % 4 != 3).then_some(&prefix);
        let mut caches: Vec<KvCache> = (0..prompts.len())
            .map(|i| cache(&model, with_prefix(i)))
            .collect();
        let mut items: Vec<BatchItem<'_>> = prompts
            .iter()
            .zip(&mut caches)
            .enumerate()
            .map(|(i, (tokens, cache))| BatchItem {
                tokens,
                cache,
                logits: i % 5 != 4,
            })
            .collect();
        let together = model.forward_batch(&mut items).unwrap();
        for (i, (prompt, together)) in prompts.iter().zip(&together).enumerate() {
            assert_eq!(together.is_some(), i % 5 != 4);
            let Some(together) = together else { continue };
            for piece in [prompt.len(), 1, 3] {
                let found = alone(&model, with_prefix(i), prompt, piece);
                assert!(
                    found
                        .iter()
                        .zip(together.iter())
                        .all(|(a, b)| a.to_bits() == b.to_bits()),
                    "quantised {quantised}, item {i}, pieces of {piece}"
                );
            }
        }
    }
}

#[test]
fn layer_by_layer_is_the_batched_pass() {
    let model = decoder(true);
    let prompt = tokens(300, 3);
    let mut cache = cache(&model, None);
    let mut hidden = model.embed(&prompt).unwrap();
    for layer in 0..model.config().num_hidden_layers {
        hidden = model.forward_layer(layer, &hidden, &mut cache).unwrap();
    }
    let found = model.logits(&hidden).unwrap();
    assert_eq!(found, alone(&model, None, &prompt, prompt.len()));
}

#[test]
fn tails_take_memory_by_the_page_and_share_their_prefix() {
    let model = decoder(true);
    let mut prefill = cache(&model, None);
    model
        .prefill(&tokens(160, 1), &mut prefill, || true)
        .unwrap();
    let prefix = Arc::new(prefill.freeze().unwrap());
    let per_token = prefix.bytes() / 160;
    let mut session = cache(&model, Some(&prefix));
    assert_eq!(session.tail_bytes(), 0);
    for (token, pages) in [(1, 1), (15, 1), (1, 2)] {
        let item = BatchItem {
            tokens: &tokens(token, 2),
            cache: &mut session,
            logits: false,
        };
        model.forward_batch(&mut [item]).unwrap();
        assert_eq!(session.tail_bytes(), pages * 16 * per_token);
    }
    assert_eq!(session.bytes(), prefix.bytes() + session.tail_bytes());
}

#[test]
fn all_logits_are_those_of_each_last_token() {
    let model = decoder(true);
    let (first, second) = (tokens(7, 1), tokens(3, 2));
    let (mut a, mut b) = (cache(&model, None), cache(&model, None));
    let mut items = [
        BatchItem {
            tokens: &first,
            cache: &mut a,
            logits: false,
        },
        BatchItem {
            tokens: &second,
            cache: &mut b,
            logits: true,
        },
    ];
    let all = model.forward_all_logits(&mut items).unwrap();
    assert_eq!(all.len(), 10);
    for (index, logits) in all.iter().enumerate() {
        let tokens = match index {
            0..7 => &first[..=index],
            _ => &second[..=index - 7],
        };
        assert_eq!(logits[..], alone(&model, None, tokens, 256)[..], "{index}");
    }
    assert_eq!((a.len(0), b.len(0)), (7, 3));
}
