//! Time of the products that training passes through a frozen matrix, on one core: the kernels that
//! answer against f32, in one run, at the rows of a step (four questions with their answers).
//!
//! ```text
//! CELSLM_BENCH_EDGE=edge.gguf cargo bench --workspace --profile dev --bench frozen
//! ```
//!
//! Measured on one core (AMD EPYC, AVX-512 VNNI, 2.6 GHz) with the `dev` profile: forwards 5.99 ms against
//! 17.5 ms, 2.9 times as fast, backwards 5.61 ms against 17.2 ms, 3.1 times.

use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use candle_core::{Device, Tensor};
use celslm_model::{FrozenMatrix, GgufFile};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const ROWS: usize = 172;
/// The edge model's, `[intermediate_size, hidden_size]`.
const MATRIX: (&str, [usize; 2]) = ("blk.0.ffn_up.weight", [4864, 896]);

fn numbers(count: usize) -> Vec<f32> {
    let turn = |i: usize| ((i * 7919 + i * i * 31) % 997) as f32 / 498.5 - 1.0;
    (0..count).map(turn).collect()
}

fn products(criterion: &mut Criterion) {
    let Some(file) = std::env::var_os("CELSLM_BENCH_EDGE") else {
        eprintln!("CELSLM_BENCH_EDGE does not name the edge's model: nothing is measured");
        return;
    };
    celslm_model::set_threads(1).expect("nothing was computed yet");
    let mut gguf = GgufFile::open(Path::new(&file)).expect("CELSLM_BENCH_EDGE can be read");
    let (name, [wide, narrow]) = MATRIX;
    let frozen = FrozenMatrix::read(&mut gguf, name, [wide, narrow]).expect("the edge has it");
    let dense = gguf.dense(name, &[wide, narrow]).expect("the edge has it");
    let tensor = |x: &[f32], shape: (usize, usize)| {
        Tensor::from_slice(x, shape, &Device::Cpu).expect("as many numbers as the shape says")
    };
    let weight = tensor(&dense, (wide, narrow));
    let (x, g) = (numbers(ROWS * narrow), numbers(ROWS * wide));
    let (rows, gradients) = (tensor(&x, (ROWS, narrow)), tensor(&g, (ROWS, wide)));
    let mut group = criterion.benchmark_group("frozen");
    group
        .measurement_time(Duration::from_secs(5))
        .sample_size(20);
    group.throughput(Throughput::Elements((2 * ROWS * wide * narrow) as u64));
    group.bench_function("forward/packed", |bencher| {
        bencher.iter(|| frozen.forward(black_box(&x)));
    });
    group.bench_function("forward/f32", |bencher| {
        bencher.iter(|| {
            let weight = weight.t().expect("a matrix has a transpose");
            black_box(&rows).matmul(&weight).expect("the shapes suit")
        });
    });
    group.bench_function("backward/packed", |bencher| {
        bencher.iter(|| frozen.backward(black_box(&g)));
    });
    group.bench_function("backward/f32", |bencher| {
        bencher.iter(|| {
            black_box(&gradients)
                .matmul(&weight)
                .expect("the shapes suit")
        });
    });
    group.finish();
}

criterion_group!(benches, products);
criterion_main!(benches);
