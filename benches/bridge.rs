//! Time to map one context through a bridge of the default pair's shape, on one core: 1,024
//! tokens, 28 layers x 2 KV heads x 128 to 24 x 2 x 64 along `depth`. The weights come from
//! seeded noise; the time does not depend on them.
//!
//! `CELSLM_BENCH_BRIDGE` names bridge files (between `:`) to be measured too, on noise of their source's
//! shape, and `CELSLM_BENCH_EDGE` the edge's model, whose prefill of as many tokens is measured in the
//! same run, on one core as well: what mapping has to be held against.
//!
//! ```text
//! CELSLM_BENCH_BRIDGE=joint.safetensors CELSLM_BENCH_EDGE=edge.gguf cargo bench --workspace --profile dev --bench bridge
//! ```
//!
//! Measured on one core (AMD EPYC 9005, AVX-512, the other one busy) for the default pair, 1,024 tokens, with
//! the `dev` profile: the edge's prefill 2,120 ms, `depth` with `ridge` 20.5 ms (1.0% of it), `all` with
//! `joint` of rank 768, both factors in bytes, 63.7 ms (3.0%), the same trained, its second factor in fp16,
//! 101.7 ms (4.8%). Before maps were multiplied as bytes, rank 1024 took 181 ms (9.0% of 2,014 ms).

use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use celslm_kv::align::{Alignment, Bridge, BridgeEnd, BridgeFitter, Depth, FitOptions, Split};
use celslm_kv::{KeyRope, KvBlock, KvShape, LayerKv, ModelFingerprint};
use celslm_model::LoadedModel;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use half::f16;

const TOKENS: usize = 1024;

fn block(end: &BridgeEnd, tokens: usize, seed: u64) -> KvBlock {
    let mut state = seed;
    let mut side = || -> Vec<f16> {
        let next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(99_991);
            f16::from_f32((state >> 40) as f32 / (1_u32 << 24) as f32 - 0.5)
        };
        std::iter::repeat_with(next)
            .take(end.shape.width() * tokens)
            .collect()
    };
    let layers = (0..end.shape.num_layers)
        .map(|_| LayerKv {
            k: side(),
            v: side(),
        })
        .collect();
    KvBlock::new(
        end.fingerprint,
        end.shape,
        0,
        0..tokens,
        KeyRope::Pre,
        layers,
    )
    .expect("the layers follow from the shape")
}

fn map(criterion: &mut Criterion) {
    let end = |byte, num_layers, head_dim| BridgeEnd {
        fingerprint: ModelFingerprint::from_bytes([byte; 32]),
        shape: KvShape::new(num_layers, 2, head_dim).expect("constants form a shape"),
    };
    let (source, target) = (end(1, 28, 128), end(2, 24, 64));
    let layer_map = Depth::default()
        .layer_map(28, 24, None)
        .expect("both have layers");
    let mut options = FitOptions::new("depth", "seeded noise", 1, "bench");
    options.lambdas = vec![1.0];
    let mut fitter = BridgeFitter::new(source, target, &layer_map, options).expect("covers");
    for (seed, split) in [(1, Split::Fit), (2, Split::Validation), (3, Split::HeldOut)] {
        let (from, to) = (block(&source, 256, seed), block(&target, 256, !seed));
        fitter.add_to(split, &from, &to, None).expect("blocks pair");
    }
    let bridge = fitter.finish().expect("noise is not singular");
    let context = block(&source, TOKENS, 4);
    let mut group = criterion.benchmark_group("bridge");
    group
        .measurement_time(Duration::from_secs(10))
        .sample_size(20);
    group.throughput(Throughput::Elements(TOKENS as u64));
    group.bench_function("ridge/map", |bencher| {
        bencher.iter(|| bridge.map(black_box(&context)).expect("the block suits"));
    });
    let files = std::env::var("CELSLM_BENCH_BRIDGE").unwrap_or_default();
    for file in files.split(':').filter(|file| !file.is_empty()) {
        let bridge = Bridge::read(Path::new(file)).expect("CELSLM_BENCH_BRIDGE can be read");
        let context = block(bridge.source(), TOKENS, 4);
        let stem = Path::new(file).file_stem().unwrap_or_default();
        group.bench_function(format!("{}/map", stem.to_string_lossy()), |bencher| {
            bencher.iter(|| bridge.map(black_box(&context)).expect("the block suits"));
        });
    }
    if let Some(file) = std::env::var_os("CELSLM_BENCH_EDGE") {
        celslm_model::set_threads(1).expect("nothing was computed yet");
        let model = LoadedModel::load(Path::new(&file)).expect("CELSLM_BENCH_EDGE can be read");
        let tokens: Vec<u32> = (0..TOKENS as u32)
            .map(|t| 1000 + t * 7919 % 20_000)
            .collect();
        group.bench_function("edge/prefill", |bencher| {
            bencher.iter(|| model.decoder.context_kv(black_box(&tokens), || true));
        });
    }
    group.finish();
}

criterion_group!(benches, map);
criterion_main!(benches);
