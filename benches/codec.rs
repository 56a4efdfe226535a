//! Encode and decode throughput of every registered codec, in bytes of fp16 KV per second on
//! one core, beside a plain copy of the same bytes in the same run.
//!
//! The input is synthetic and seeded: one chunk (256 tokens) of every layer of a cache shaped
//! like the default edge model's, 24 layers x 2 KV heads x 64. It imitates what measured caches
//! look like before RoPE: key channels have a fixed offset that is mostly larger than their
//! spread over tokens and, in a few channels, tens of times larger; values have no offsets,
//! their spread differs from token to token, and the first token is an outlier. Quantisers
//! here take the same time for any finite numbers; entropy coders do not, so figures that matter
//! for a claim are taken on real KV: `CELSLM_BENCH_KV` names a context as a replayed cloud records
//! it (a line of JSON with the block's `spec`, then per layer keys and values as little-endian
//! fp16), of which the second 256 tokens are used. Stages that need an artefact get that of the
//! file which `CELSLM_BENCH_ARTEFACT` names (`SAVE=FILE` lets the example `rate_distortion` of
//! `celslm-kv` write one). Without it they get one fitted on the input itself, which flatters
//! sizes, and with them the times of entropy coders.
//!
//! Measured with `rustc` 1.95 for the machine's own instructions, on one core of a virtual machine
//! (AMD EPYC 9005, AVX-512), Qwen2.5-Coder-0.5B's KV of a text that the artefact was not fitted
//! on, in millions of fp16 bytes per second; `memcpy` of the same bytes in the same run: 64,000 to
//! 70,100. The last column compares with that model's prefill on two cores, 770 tokens of 12,288
//! bytes a second, and takes decoding on two cores to be twice as fast as on one, which was not
//! measured:
//!
//! | chain | encode | decode | decode / prefill |
//! |---|---|---|---|
//! | `group_quant-4b-g32` | 5,169 | 11,343 | 2,400 |
//! | `kivi` | 5,160 | 10,722 | 2,270 |
//! | `cachegen` | 239 | 585 | 124 |
//! | `cachegen-code` | 350 | 323 | 68 |
//! | `kvtc` | 318 | 329 | 70 |
//! | `turbo-3.5bit` | 225 | 308 | 65 |
//! | `turbo-centred` | 216 | 265 | 56 |
//! | `celslm` | 172 | 279 | 59 |
//! | `celslm-fine` | 150 | 243 to 249 | 52 |
//! | `celslm-coarse` | 181 | 305 | 64 |
//! | `celslm-fast` | 204 | 279 | 59 |
//! | `celslm-progressive` | 33 | 30 | 6 |
//!
//! Of `celslm`'s 1.8 microseconds for 512 bytes a half is entropy coding, a fifth each the product
//! with the basis and prediction (131,072 multiplications of bytes, 541 billion a second where the
//! target has the instruction, 134 billion of floats). Through an `Assembler`, which has just decoded
//! the layers to predict from, it decodes 290, `celslm-fine` 260. Without instructions for bytes, for
//! `x86-64-v3`, `celslm` decodes 130; the bytes are the same.
//!
//! The embedded stream is bounded by its binary decisions: at a step of 0.6 a coefficient is visited
//! in 6.9 planes, 1,760 decisions for 512 bytes, at 8 ns each; every decision waits for the one
//! before, through a product, a comparison and a shift, some 11 cycles or 2.8 ns, so that no coder
//! of these decisions takes less than 4.9 of the 2.05 microseconds that 250 would allow. Its payload
//! has some 465 bits for them, so that with half a bit in every decision, which leaving out empty
//! planes might come near to, 2.6 microseconds would be left, beside 0.7 for the basis.
//!
//! ```text
//! SAVE=fitted cargo run --release -p celslm-kv --example rate_distortion -- FIT HELD_OUT identity
//! CELSLM_BENCH_KV=HELD_OUT/0-0.kv CELSLM_BENCH_ARTEFACT=fitted cargo bench -p celslm-benches --bench codec
//! ```
//!
//! The group `length` decodes whole contexts of 256, 1024 and 4096 tokens through an `Assembler`,
//! chunks of 256 tokens, layers to predict from included; contexts are the input's tokens, as
//! often as they take. `kivi` decodes 4,490, 5,010 and 1,560 MB/s there: what 4,096 tokens decode to
//! goes back to the system with every round, and its pages are what takes the time. With
//! `MALLOC_TRIM_THRESHOLD_=2000000000 MALLOC_MMAP_THRESHOLD_=1000000000` it is 4,270; `celslm` 286,
//! 290 and 291.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use celslm_kv::align::BridgeEnd;
use celslm_kv::block::{BlockSpec, KeyRope, KvShape};
use celslm_kv::codec::{
    ArtefactFitter, ArtefactOptions, Beside, Codec, CodecArtefact, CodecConfig, CodecContext,
    Preset, Prior, Tile, TileMut, TileShape, TileSpec, TokenScores, presets, registry,
};
use celslm_kv::{Assembler, ChunkEncoder, KvBlock, KvChunk, LayerKv, ModelFingerprint, chunk};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use half::f16;

const NUM_LAYERS: usize = 24;
const NUM_KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const TOKENS: usize = 256;
const SEED: u64 = 0x5eed;

/// Standard normal numbers from a linear congruence through the Box-Muller transform.
struct Normal(u64);

impl Normal {
    fn uniform(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 40) as f32 + 0.5) / (1_u32 << 24) as f32
    }

    fn next(&mut self) -> f32 {
        let (radius, angle) = (self.uniform(), self.uniform());
        (-2.0 * radius.ln()).sqrt() * (std::f32::consts::TAU * angle).cos()
    }
}

/// Keys and values of one layer, each `[NUM_KV_HEADS, TOKENS, HEAD_DIM]`.
fn layer(normal: &mut Normal) -> (Vec<f16>, Vec<f16>) {
    let (mut k, mut v) = (Vec::new(), Vec::new());
    for _head in 0..NUM_KV_HEADS {
        let channels: Vec<(f32, f32)> = (0..HEAD_DIM)
            .map(|_| {
                (
                    3.0 * normal.next() * normal.next().exp(),
                    (0.5 * normal.next()).exp(),
                )
            })
            .collect();
        for token in 0..TOKENS {
            let token_scale = if token == 0 {
                0.02
            } else {
                0.4 * (0.5 * normal.next()).exp()
            };
            for (offset, spread) in &channels {
                k.push(f16::from_f32(offset + spread * normal.next()));
                v.push(f16::from_f32(token_scale * normal.next()));
            }
        }
    }
    (k, v)
}

/// The layers of a recorded context's second 256 tokens, if one is named.
fn recorded() -> Option<Vec<(Vec<f16>, Vec<f16>)>> {
    let path = std::env::var_os("CELSLM_BENCH_KV")?;
    let bytes = std::fs::read(path).expect("CELSLM_BENCH_KV can be read");
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let (head, body) = bytes.split_at(end.expect("the file has a first line"));
    let head: serde_json::Value = serde_json::from_slice(head).expect("the first line is JSON");
    let spec: BlockSpec = serde_json::from_value(head["spec"].clone()).expect("it has a spec");
    let shape = (
        spec.shape.num_layers,
        spec.shape.num_kv_heads,
        spec.shape.head_dim,
    );
    assert_eq!(
        shape,
        (NUM_LAYERS, NUM_KV_HEADS, HEAD_DIM),
        "of the default edge model"
    );
    let numbers: Vec<f16> = body[1..]
        .chunks_exact(2)
        .map(|pair| f16::from_le_bytes([pair[0], pair[1]]))
        .collect();
    let layers = numbers
        .chunks_exact(2 * spec.layer_elements())
        .map(|layer| {
            let (k, v) = layer.split_at(spec.layer_elements());
            LayerKv {
                k: k.to_vec(),
                v: v.to_vec(),
            }
        })
        .collect();
    let block = KvBlock::from_spec(spec, layers).expect("the spec describes the file");
    let part = block
        .slice_tokens(TOKENS..2 * TOKENS)
        .expect("512 tokens or more");
    Some(
        part.into_layers()
            .into_iter()
            .map(|kv| (kv.k, kv.v))
            .collect(),
    )
}

/// An artefact for the stages that need one.
fn context(layers: &[(Vec<f16>, Vec<f16>)]) -> CodecContext {
    if let Some(path) = std::env::var_os("CELSLM_BENCH_ARTEFACT") {
        let artefact = CodecArtefact::read(Path::new(&path));
        return CodecContext::new(Arc::new(artefact.expect("the artefact can be read")));
    }
    let shape = KvShape::new(NUM_LAYERS, NUM_KV_HEADS, HEAD_DIM).expect("constants form a shape");
    let fingerprint = ModelFingerprint::from_bytes([0; 32]);
    let model = BridgeEnd { fingerprint, shape };
    let mut fitter = ArtefactFitter::new(model, ArtefactOptions::new("benchmark", "benchmark"))
        .expect("the options are possible");
    let layers: Vec<LayerKv> = layers
        .iter()
        .map(|(k, v)| LayerKv {
            k: k.clone(),
            v: v.clone(),
        })
        .collect();
    // Several times, since a basis takes more tokens than numbers in a row.
    for start in [TOKENS, 2 * TOKENS, 3 * TOKENS] {
        let positions = start..start + TOKENS;
        let block = KvBlock::new(
            fingerprint,
            shape,
            0,
            positions,
            KeyRope::Pre,
            layers.clone(),
        );
        fitter
            .add(&block.expect("the layers have the shape"))
            .expect("the numbers are finite");
    }
    CodecContext::new(Arc::new(fitter.finish().expect("enough tokens")))
}

/// The input's layers, real or imitated.
fn input() -> Vec<(Vec<f16>, Vec<f16>)> {
    recorded().unwrap_or_else(|| {
        let mut normal = Normal(SEED);
        (0..NUM_LAYERS).map(|_| layer(&mut normal)).collect()
    })
}

fn codecs(criterion: &mut Criterion) {
    let shape = TileShape::new(NUM_KV_HEADS, TOKENS, HEAD_DIM).expect("constants form a tile");
    // In the middle of a context, so that no token is exact.
    let spec = |layer| TileSpec {
        shape,
        layer,
        num_layers: NUM_LAYERS,
        first_token: TOKENS,
        end_token: 4 * TOKENS,
    };
    let layers = input();
    let fp16_bytes = (shape.fp16_bytes() * NUM_LAYERS) as u64;
    let mut out = layers.clone();
    let context = context(&layers);
    let by_token: Vec<f32> = (0..4 * TOKENS)
        .map(|token| (token * 7919 % 1021) as f32)
        .collect();
    let scores =
        TokenScores::new(0, 0, vec![by_token; NUM_LAYERS]).expect("layers are equally long");

    let mut group = criterion.benchmark_group("codec");
    group.throughput(Throughput::Bytes(fp16_bytes));
    group.bench_function("memcpy", |bencher| {
        bencher.iter(|| {
            for ((k, v), (k_out, v_out)) in layers.iter().zip(&mut out) {
                k_out.copy_from_slice(black_box(k));
                v_out.copy_from_slice(black_box(v));
            }
            black_box(&mut out);
        });
    });
    let examples = registry().iter().flat_map(|entry| (entry.examples)());
    let named = presets().iter().map(Preset::config);
    let mut configs: Vec<CodecConfig> = Vec::new();
    for config in examples.chain(named) {
        if !configs.contains(&config) {
            configs.push(config);
        }
    }
    for config in configs {
        let codec = config
            .build_with(&context)
            .expect("no example names an artefact");
        // Decoded layers, which a codec may predict from; from the layers themselves to begin with.
        let mut decoded = layers.clone();
        let below = |decoded: &[(Vec<f16>, Vec<f16>)], layer: usize| -> Vec<(Vec<f16>, Vec<f16>)> {
            let depth = codec.prior_layers().min(layer);
            (1..=depth)
                .map(|depth| decoded[layer - depth].clone())
                .collect()
        };
        let mut encoded: Vec<Vec<u8>> = Vec::new();
        let mut priors = Vec::new();
        for layer in 0..NUM_LAYERS {
            let below = below(&decoded, layer);
            let prior: Vec<Prior<'_>> = below.iter().map(|(k, v)| Prior { k, v }).collect();
            let beside = Beside {
                positions: None,
                prior: &prior,
            };
            let (k, v) = &layers[layer];
            let tile = Tile::new(spec(layer), k, v).and_then(|tile| tile.with_beside(beside));
            let tile = tile.expect("the layers have the tile's shape");
            let mut bytes = Vec::new();
            codec
                .encode(&tile.with_scores(Some(&scores)), &mut bytes)
                .expect("the numbers are finite");
            let (k_out, v_out) = &mut decoded[layer];
            let mut tile = TileMut::new(spec(layer), k_out, v_out)
                .and_then(|tile| tile.with_beside(beside))
                .expect("same shape");
            codec
                .decode(&bytes, &mut tile)
                .expect("bytes come from the encoder");
            let whole = tile.held().count(TOKENS) == TOKENS;
            // A codec that does not hold its declared error has no speed worth reporting.
            for (before, after) in [(k, &*k_out), (v, &*v_out)] {
                let numbers = before.iter().map(|x| x.to_f32());
                let min = numbers.clone().fold(f32::INFINITY, f32::min);
                let max = numbers.fold(f32::NEG_INFINITY, f32::max);
                let Some(bound) = codec.error_bound(min, max).filter(|_| whole) else {
                    continue;
                };
                let error = before
                    .iter()
                    .zip(after)
                    .map(|(x, y)| (x.to_f32() - y.to_f32()).abs());
                assert!(
                    error.fold(0.0, f32::max) <= bound,
                    "{config} exceeds its error bound"
                );
            }
            encoded.push(bytes);
            priors.push(below);
        }
        group.bench_function(format!("{config}/encode"), |bencher| {
            let empty = || -> Vec<Vec<u8>> {
                encoded
                    .iter()
                    .map(|bytes| Vec::with_capacity(bytes.len()))
                    .collect()
            };
            bencher.iter_batched_ref(
                empty,
                |buffers| {
                    for (layer, bytes) in buffers.iter_mut().enumerate() {
                        let prior: Vec<Prior<'_>> =
                            priors[layer].iter().map(|(k, v)| Prior { k, v }).collect();
                        let beside = Beside {
                            positions: None,
                            prior: &prior,
                        };
                        let (k, v) = &layers[layer];
                        let tile = Tile::new(spec(layer), k, v)
                            .and_then(|tile| tile.with_beside(beside))
                            .expect("the layers have the tile's shape");
                        codec
                            .encode(&tile.with_scores(Some(&scores)), bytes)
                            .expect("the numbers are finite");
                    }
                },
                BatchSize::LargeInput,
            );
        });
        group.bench_function(format!("{config}/decode"), |bencher| {
            bencher.iter(|| {
                for (layer, (bytes, (k, v))) in encoded.iter().zip(&mut out).enumerate() {
                    let prior: Vec<Prior<'_>> =
                        priors[layer].iter().map(|(k, v)| Prior { k, v }).collect();
                    let beside = Beside {
                        positions: None,
                        prior: &prior,
                    };
                    let mut tile = TileMut::new(spec(layer), k, v)
                        .and_then(|tile| tile.with_beside(beside))
                        .expect("same shape");
                    codec
                        .decode(black_box(bytes), &mut tile)
                        .expect("same bytes");
                }
                black_box(&mut out);
            });
        });
    }
    group.finish();
}

/// A context that repeats the input's tokens.
fn repeated(layers: &[(Vec<f16>, Vec<f16>)], times: usize) -> KvBlock {
    let repeat = |side: &[f16]| -> Vec<f16> {
        side.chunks_exact(TOKENS * HEAD_DIM)
            .flat_map(|head| head.repeat(times))
            .collect()
    };
    let layers = layers
        .iter()
        .map(|(k, v)| LayerKv {
            k: repeat(k),
            v: repeat(v),
        })
        .collect();
    let shape = KvShape::new(NUM_LAYERS, NUM_KV_HEADS, HEAD_DIM).expect("constants form a shape");
    let fingerprint = ModelFingerprint::from_bytes([0; 32]);
    // Behind the first chunk, so that no token is among a context's first.
    let positions = TOKENS..TOKENS + times * TOKENS;
    KvBlock::new(fingerprint, shape, 0, positions, KeyRope::Pre, layers)
        .expect("the layers have the shape")
}

fn lengths(criterion: &mut Criterion) {
    let layers = input();
    let context = context(&layers);
    let mut group = criterion.benchmark_group("length");
    for preset in presets() {
        let chain = preset
            .config()
            .build_with(&context)
            .expect("no preset names an artefact");
        for times in [1, 4, 16] {
            let block = repeated(&layers, times);
            let by_token: Vec<f32> = (0..TOKENS + times * TOKENS)
                .map(|token| (token * 7919 % 1021) as f32)
                .collect();
            let scores = TokenScores::new(0, 0, vec![by_token; NUM_LAYERS]);
            let scores = Arc::new(scores.expect("layers are equally long"));
            let mut encoder = ChunkEncoder::new(chain.clone()).with_scores(Some(scores));
            let chunks: Vec<KvChunk> =
                chunk::plan(block.spec(), chunk::DEFAULT_CHUNK_TOKENS, &chain)
                    .expect("the block can be cut")
                    .map(|(layer, tokens)| encoder.encode(&block, layer, tokens))
                    .collect::<Result<_, _>>()
                    .expect("the numbers are finite");
            group.throughput(Throughput::Bytes(block.fp16_bytes()));
            group.bench_function(format!("{}/{}", preset.name, times * TOKENS), |bencher| {
                bencher.iter(|| {
                    let assembler =
                        Assembler::new(block.spec().clone(), vec![chain.clone()], u64::MAX);
                    let mut assembler = assembler.expect("a valid spec").with_dropped(true);
                    let decoded: Vec<(usize, LayerKv)> = chunks
                        .iter()
                        .filter_map(|chunk| {
                            let accepted = assembler.accept(black_box(chunk));
                            accepted.expect("chunks come from the encoder")
                        })
                        .collect();
                    assert_eq!(decoded.len(), NUM_LAYERS);
                    decoded
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, codecs, lengths);
criterion_main!(benches);
