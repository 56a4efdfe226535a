//! The assembler under a peer that sends what it likes: chunks in any order, again, cut, altered,
//! or made up. Two bytes name the chain, then each step takes a byte for what is done and a few
//! for where.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use celslm_kv::{
    Assembler, BridgeEnd, Chain, ChunkEncoder, Codec as _, KvBlock, KvChunk, ModelFingerprint,
    chunk,
};

use crate::{Entry, HEAD_DIM, HEADS, LAYERS, block, scores, shape, within};

const TOKENS: usize = 24;
/// Tokens per chunk, in units of the codec's group.
const PER_CHUNK: usize = 8;
const MOST_STEPS: usize = 12;

fn source() -> &'static KvBlock {
    static SOURCE: OnceLock<KvBlock> = OnceLock::new();
    SOURCE.get_or_init(|| {
        let model = BridgeEnd {
            fingerprint: ModelFingerprint::from_bytes([1; 32]),
            shape: shape(HEADS, HEAD_DIM),
        };
        block(model, TOKENS, 5)
    })
}

/// Chains that an assembler can tell apart: nothing beside a tile, groups of tokens, layers below,
/// layers above, dropped tokens, prefixes. What decoders do with bytes is the target `decode`'s.
const NAMES: [&str; 6] = [
    "identity",
    "kivi",
    "celslm",
    "minicache",
    "streaming-llm",
    "celslm-progressive",
];

fn chains() -> &'static [Entry] {
    static CHAINS: OnceLock<Vec<Entry>> = OnceLock::new();
    CHAINS.get_or_init(|| NAMES.iter().flat_map(|name| crate::named(name)).collect())
}

/// The chunks that an honest peer sends, made once for each chain.
fn honest(chain: &Chain) -> Arc<Vec<KvChunk>> {
    static SENT: Mutex<Option<HashMap<String, Arc<Vec<KvChunk>>>>> = Mutex::new(None);
    let mut sent = SENT.lock().expect("nothing panics in here");
    let made = sent.get_or_insert_default().entry(chain.id());
    let make = || {
        let block = source();
        let scores = Some(Arc::new(scores()));
        let mut encoder = ChunkEncoder::new(chain.clone()).with_scores(scores);
        let tokens = PER_CHUNK.next_multiple_of(chain.token_group());
        let places = chunk::plan(block.spec(), tokens, chain).expect("whole groups");
        let encode = |(layer, tokens)| encoder.encode(block, layer, tokens);
        let chunks: Result<Vec<_>, _> = places.map(encode).collect();
        // Chains that do not suit the shape send nothing.
        Arc::new(chunks.unwrap_or_default())
    };
    made.or_insert_with(make).clone()
}

/// Plays a peer's steps to an assembler; what it refuses may change nothing.
///
/// # Panics
/// If a promise is broken.
pub fn run(data: &[u8]) {
    let Some((&[low, high, may_drop], mut steps)) = data.split_first_chunk::<3>() else {
        return;
    };
    let chain = crate::chain(chains(), u16::from_le_bytes([low, high]));
    let honest = honest(chain);
    let spec = source().spec().clone();
    let mut assembler = Assembler::new(spec.clone(), vec![chain.clone()], u64::MAX)
        .expect("a small block")
        .with_dropped(may_drop & 1 == 0);
    for _ in 0..MOST_STEPS {
        let Some((&[what, a, b, c], rest)) = steps.split_first_chunk::<4>() else {
            break;
        };
        steps = rest;
        let Some(sent) = honest.get(usize::from(a) % honest.len().max(1)) else {
            break;
        };
        let reseal = |payload: Vec<u8>| {
            KvChunk::seal(
                sent.layer,
                sent.tokens.clone(),
                sent.codec.clone(),
                0,
                payload,
            )
        };
        let chunk = match what % 6 {
            0 | 1 => sent.clone(),
            2 => {
                let keep = sent.payload.len() * usize::from(b) / 256;
                reseal(sent.payload[..keep].to_vec())
            }
            3 => {
                let mut payload = sent.payload.clone();
                let at = usize::from(b) % payload.len().max(1);
                payload
                    .iter_mut()
                    .skip(at)
                    .take(1)
                    .for_each(|byte| *byte ^= c);
                reseal(payload)
            }
            4 => {
                let mut altered = sent.clone();
                altered.payload.push(c);
                altered
            }
            _ => {
                let (start, len) = (usize::from(b % 32), usize::from(c % 32));
                let layer = usize::from(what / 6) % (LAYERS + 1);
                let taken = steps.len().min(usize::from(a));
                let (payload, rest) = steps.split_at(taken);
                steps = rest;
                KvChunk::seal(
                    layer,
                    start..start + len,
                    chain.id(),
                    what >> 7,
                    payload.to_vec(),
                )
            }
        };
        let before = assembler.missing();
        match within(8 << 20, || assembler.accept(&chunk)) {
            Err(error) => {
                assert!(!error.to_string().is_empty());
                assert_eq!(assembler.missing(), before, "{error}");
            }
            Ok(finished) => {
                let after = assembler.missing();
                assert_ne!(after, before);
                if let Some((layer, kv)) = finished {
                    assert!(after.iter().all(|(missing, _)| *missing != layer));
                    assert_eq!(kv.k.len(), spec.layer_elements());
                    assert_eq!(kv.v.len(), spec.layer_elements());
                }
                assert_eq!(assembler.is_complete(), after.is_empty());
            }
        }
    }
}

/// For each chain, all chunks in order and all in the reverse order.
pub fn seeds() -> crate::Seeds {
    let mut seeds = Vec::new();
    for entry in chains() {
        let count = honest(&entry.chain).len() as u8;
        let orders: [Vec<u8>; 2] = [(0..count).collect(), (0..count).rev().collect()];
        for (index, order) in orders.into_iter().enumerate() {
            let mut input = entry.tag.to_le_bytes().to_vec();
            input.push(0);
            input.extend(order.into_iter().flat_map(|at| [index as u8, at, 200, 1]));
            seeds.push((format!("{:04x}-{index}", entry.tag), input));
        }
    }
    seeds
}
