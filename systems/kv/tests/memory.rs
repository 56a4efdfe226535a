//! What decoding a whole context takes in memory: at most twice the decoded block, layers that are
//! kept for prediction included, whatever the chain.
//!
//! One test in a program of its own, since an allocator counts what all threads hold.

use std::sync::Arc;

use celslm_kv::align::BridgeEnd;
use celslm_kv::block::{KeyRope, KvShape};
use celslm_kv::codec::{
    ArtefactFitter, ArtefactOptions, Chain, CodecContext, TokenScores, presets,
};
use celslm_kv::{Assembler, ChunkEncoder, KvBlock, KvChunk, LayerKv, ModelFingerprint, chunk};
use half::f16;
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const LAYERS: usize = 12;
const HEADS: usize = 2;
const HEAD_DIM: usize = 32;
const TOKENS: usize = 1024;

/// A context whose numbers have offsets by channel and spread by token.
fn block(seed: u64) -> KvBlock {
    let mut state = seed;
    let mut side = || -> Vec<f16> {
        (0..HEADS * TOKENS * HEAD_DIM)
            .map(|index| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let noise = (state >> 40) as f32 / (1 << 24) as f32 - 0.5;
                let offset = ((index % HEAD_DIM) as f32 * 0.7).sin() * 10.0;
                f16::from_f32(offset + noise * 3.0)
            })
            .collect()
    };
    let layers = (0..LAYERS)
        .map(|_| LayerKv {
            k: side(),
            v: side(),
        })
        .collect();
    let shape = KvShape::new(LAYERS, HEADS, HEAD_DIM).unwrap();
    let fingerprint = ModelFingerprint::from_bytes([1; 32]);
    KvBlock::new(fingerprint, shape, 0, 0..TOKENS, KeyRope::Pre, layers).unwrap()
}

fn context() -> CodecContext {
    let first = block(1);
    let model = BridgeEnd {
        fingerprint: *first.fingerprint(),
        shape: first.shape(),
    };
    let options = ArtefactOptions::new("none", "test");
    let mut fitter = ArtefactFitter::new(model, options).unwrap();
    fitter.add(&first).unwrap();
    fitter.add(&block(2)).unwrap();
    CodecContext::new(Arc::new(fitter.finish().unwrap()))
}

fn encode(chain: &Chain, block: &KvBlock) -> Vec<KvChunk> {
    let by_token: Vec<f32> = (0..TOKENS).map(|t| (t * 7919 % 2003) as f32).collect();
    let scores = TokenScores::new(0, 0, vec![by_token; LAYERS]).unwrap();
    let mut encoder = ChunkEncoder::new(chain.clone()).with_scores(Some(Arc::new(scores)));
    chunk::plan(block.spec(), chunk::DEFAULT_CHUNK_TOKENS, chain)
        .unwrap()
        .map(|(layer, tokens)| encoder.encode(block, layer, tokens).unwrap())
        .collect()
}

#[test]
fn decoding_takes_at_most_twice_the_block() {
    let context = context();
    let block = block(3);
    for preset in presets() {
        let chain = preset.config().build_with(&context).unwrap();
        let chunks = encode(&chain, &block);
        // What is computed once and kept, such as models to start with, is no part of a decoding.
        let peaks = [(); 2].map(|()| {
            ALLOCATOR.reset_peak_usage();
            let before = ALLOCATOR.peak_usage();
            let spec = block.spec().clone();
            let mut assembler = Assembler::new(spec, vec![chain.clone()], u64::MAX)
                .unwrap()
                .with_dropped(true);
            let layers: Vec<LayerKv> = chunks
                .iter()
                .filter_map(|chunk| assembler.accept(chunk).unwrap())
                .map(|(_, kv)| kv)
                .collect();
            assert_eq!(layers.len(), LAYERS, "{}", preset.name);
            ALLOCATOR.peak_usage() - before
        });
        let peak = peaks[1];
        let times = peak as f64 / block.fp16_bytes() as f64;
        println!("{}: {times:.2} times the block", preset.name);
        assert!(
            (1.0..=2.0).contains(&times),
            "{} takes {times:.2} times the block",
            preset.name
        );
    }
}
