//! Encode and decode throughput of every registered codec, in bytes of fp16 KV per second on
//! one core, beside a plain copy of the same bytes in the same run.
//!
//! The input is synthetic and seeded: one chunk (256 tokens) of every layer of a cache shaped
//! like the default edge model's, 24 layers x 2 KV heads x 64. It imitates what measured caches
//! look like before RoPE: key channels have a fixed offset that is mostly larger than their
//! spread over tokens and, in a few channels, tens of times larger; values have no offsets,
//! their spread differs from token to token, and the first token is an outlier. Quantisers
//! here take the same time for any finite numbers; entropy coders will not, so figures that
//! matter for a claim are taken on real KV.

use std::hint::black_box;

use celslm_kv::codec::{Codec, Tile, TileMut, TileShape, TileSpec, registry};
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

fn codecs(criterion: &mut Criterion) {
    let shape = TileShape::new(NUM_KV_HEADS, TOKENS, HEAD_DIM).expect("constants form a tile");
    let spec = |layer| TileSpec {
        shape,
        layer,
        num_layers: NUM_LAYERS,
        first_token: 0,
        end_token: TOKENS,
    };
    let mut normal = Normal(SEED);
    let layers: Vec<_> = (0..NUM_LAYERS).map(|_| layer(&mut normal)).collect();
    let fp16_bytes = (shape.fp16_bytes() * NUM_LAYERS) as u64;
    let mut out = layers.clone();

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
    for config in registry().iter().flat_map(|entry| (entry.examples)()) {
        let codec = config.build();
        let encode = |layer: usize, bytes: &mut Vec<u8>| {
            let (k, v) = &layers[layer];
            let tile = Tile::new(spec(layer), k, v).expect("the layers have the tile's shape");
            codec.encode(&tile, bytes).expect("the numbers are finite");
        };
        group.bench_function(format!("{config}/encode"), |bencher| {
            let empty = || -> Vec<Vec<u8>> {
                (0..NUM_LAYERS)
                    .map(|_| Vec::with_capacity(codec.encoded_len(shape)))
                    .collect()
            };
            bencher.iter_batched_ref(
                empty,
                |buffers| {
                    for (layer, bytes) in buffers.iter_mut().enumerate() {
                        encode(layer, bytes);
                    }
                },
                BatchSize::LargeInput,
            );
        });
        let encoded: Vec<Vec<u8>> = (0..NUM_LAYERS)
            .map(|layer| {
                let mut bytes = Vec::new();
                encode(layer, &mut bytes);
                bytes
            })
            .collect();
        // A codec that does not hold its declared error has no speed worth reporting.
        for (layer, bytes) in encoded.iter().enumerate() {
            let (k_out, v_out) = &mut out[layer];
            let mut tile = TileMut::new(spec(layer), k_out, v_out).expect("same shape");
            codec
                .decode(bytes, &mut tile)
                .expect("bytes come from the encoder");
            for (before, after) in [(&layers[layer].0, &*k_out), (&layers[layer].1, &*v_out)] {
                let numbers = before.iter().map(|x| x.to_f32());
                let min = numbers.clone().fold(f32::INFINITY, f32::min);
                let max = numbers.fold(f32::NEG_INFINITY, f32::max);
                let Some(bound) = codec.error_bound(min, max) else {
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
        }
        group.bench_function(format!("{config}/decode"), |bencher| {
            bencher.iter(|| {
                for (layer, (bytes, (k, v))) in encoded.iter().zip(&mut out).enumerate() {
                    let mut tile = TileMut::new(spec(layer), k, v).expect("same shape");
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

criterion_group!(benches, codecs);
criterion_main!(benches);
