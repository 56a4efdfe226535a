//! Every mapping against relations that it can express, and all of them through their files.

use half::f16;
use proptest::prelude::*;

use super::*;
use crate::align::{
    Bridge, BridgeEnd, BridgeFitter, FitOptions, Split, Weights, states_block, states_shape,
};
use crate::block::{KeyRope, LayerKv};
use crate::ident::ModelFingerprint;

const TOKENS: usize = 60;

/// Three layers of two heads of eight channels, to two layers of two heads of four.
fn ends() -> (BridgeEnd, BridgeEnd) {
    let end = |byte, num_layers, head_dim| BridgeEnd {
        fingerprint: ModelFingerprint::from_bytes([byte; 32]),
        shape: KvShape::new(num_layers, 2, head_dim).unwrap(),
    };
    (end(1, 3, 8), end(2, 2, 4))
}

/// Numbers in -0.5..0.5.
fn noise(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(99_991);
        (state >> 33) as f64 / (1_u64 << 31) as f64 - 0.5
    }
}

/// A block from rows of all of a token's numbers, in the order of slots.
fn block(end: &BridgeEnd, rows: &[Vec<f64>]) -> KvBlock {
    let (shape, tokens) = (end.shape, rows.len());
    let side = || vec![f16::ZERO; shape.width() * tokens];
    let mut layers = Vec::new();
    for layer in 0..shape.num_layers {
        let mut kv = LayerKv {
            k: side(),
            v: side(),
        };
        for (index, side) in KvSide::ALL.into_iter().enumerate() {
            for head in 0..shape.num_kv_heads {
                for (token, row) in rows.iter().enumerate() {
                    for channel in 0..shape.head_dim {
                        let from = ((layer * 2 + index) * shape.num_kv_heads + head)
                            * shape.head_dim
                            + channel;
                        let to = (head * tokens + token) * shape.head_dim + channel;
                        side.of_mut(&mut kv)[to] = f16::from_f64(row[from]);
                    }
                }
            }
        }
        layers.push(kv);
    }
    let positions = 0..tokens;
    KvBlock::new(end.fingerprint, shape, 0, positions, KeyRope::Pre, layers).unwrap()
}

/// All of a token's numbers from those of the source: 96 to 32.
type Truth<'a> = &'a dyn Fn(&[f64]) -> Vec<f64>;

fn pair(seed: u64, truth: Truth<'_>) -> (KvBlock, KvBlock) {
    let (source, target) = ends();
    let mut next = noise(seed);
    let rows: Vec<Vec<f64>> = (0..TOKENS)
        .map(|_| {
            let row = (0..96).map(|_| f16::from_f64(next() * 4.0 + 1.0).to_f64());
            row.collect()
        })
        .collect();
    let mapped: Vec<Vec<f64>> = rows.iter().map(|row| truth(row)).collect();
    (block(&source, &rows), block(&target, &mapped))
}

/// A relation of all 96 to all 32 numbers through `rank` directions, with an offset.
fn through(rank: usize) -> impl Fn(&[f64]) -> Vec<f64> {
    let mut next = noise(77);
    let down: Vec<f64> = (0..96 * rank).map(|_| next() * 0.5).collect();
    let up: Vec<f64> = (0..rank * 32).map(|_| next()).collect();
    move |x| {
        let inner: Vec<f64> = (0..rank)
            .map(|r| (0..96).map(|i| x[i] * down[i * rank + r]).sum())
            .collect();
        (0..32)
            .map(|j| 3.0 + (0..rank).map(|r| inner[r] * up[r * 32 + j]).sum::<f64>())
            .collect()
    }
}

/// Source numbers of a layer and side; 16 of them.
fn side(x: &[f64], layer: usize, value: bool) -> &[f64] {
    &x[(layer * 2 + usize::from(value)) * 16..][..16]
}

/// Every target layer and side from its own source side (layers 0 and 2), by `of`.
fn by_side(x: &[f64], of: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    let sides = [(0, false), (0, true), (2, false), (2, true)];
    let sides = sides.map(|(layer, value)| of(side(x, layer, value)));
    sides.concat()
}

fn options(mapping: MappingConfig) -> FitOptions {
    let mut options = FitOptions::new("depth", "hash", 7, "test 1").with_mapping(mapping);
    options.lambdas = vec![1e-8, 1e-2];
    options
}

const DEPTH: [&[usize]; 2] = [&[0], &[2]];
const ALL: [&[usize]; 2] = [&[0, 1, 2]; 2];

fn fitter(map: [&[usize]; 2], options: FitOptions, truth: Truth<'_>) -> BridgeFitter {
    let (source, target) = ends();
    let map: Vec<Vec<usize>> = map.iter().map(|layers| layers.to_vec()).collect();
    let mut fitter = BridgeFitter::new(source, target, &map, options).unwrap();
    for seed in 0..20 {
        let (source, target) = pair(seed, truth);
        let weights: Vec<f32> = (0..TOKENS).map(|token| 1.0 + (token % 3) as f32).collect();
        fitter.add_weighted(&source, &target, &weights).unwrap();
    }
    fitter
}

fn fitted(map: [&[usize]; 2], options: FitOptions, truth: Truth<'_>) -> Bridge {
    fitter(map, options, truth).finish().unwrap()
}

fn assert_exact(bridge: &Bridge) {
    for layer in &bridge.manifest().layers {
        assert!(layer.k_r2 > 0.999 && layer.v_r2 > 0.999, "{layer:?}");
    }
}

#[test]
fn low_rank_finds_a_relation_of_its_rank() {
    let truth = |x: &[f64]| {
        by_side(x, |side| {
            let sums = [
                side[..8].iter().sum::<f64>(),
                side[8..].iter().sum(),
                side[3],
            ];
            (0..8)
                .map(|j| sums[j % 3] * (j as f64 - 3.5) + sums[(j + 1) % 3])
                .collect()
        })
    };
    let low_rank = |rank| MappingConfig::LowRank(LowRank { rank });
    let enough = fitted(DEPTH, options(low_rank(3)), &truth);
    assert_exact(&enough);
    assert_eq!(enough.multiplications(), 4 * 3 * (16 + 8));
    let too_few = fitted(DEPTH, options(low_rank(1)), &truth);
    assert!(too_few.manifest().mean_r2().0 < 0.95);
    // No more than the widths allow.
    assert_exact(&fitted(DEPTH, options(low_rank(999)), &truth));
}

#[test]
fn joint_finds_one_relation_behind_all_layers_and_sides() {
    let joint = |rank, stride| {
        let mut options = options(MappingConfig::Joint(Joint {
            rank,
            stride,
            ..Joint::default()
        }));
        options.storage = Storage::F16;
        options
    };
    let truth = through(5);
    let bridge = fitted(ALL, joint(5, 1), &truth);
    assert_exact(&bridge);
    assert_eq!(bridge.parts().len(), 1);
    assert_eq!(bridge.multiplications(), 5 * (96 + 32));
    assert_eq!(bridge.layer_map(), [[0, 1, 2], [0, 1, 2]]);
    assert!(fitted(ALL, joint(3, 1), &truth).manifest().mean_r2().0 < 0.99);
    // Half of the relation is in what the stride leaves out.
    let strided = fitted(ALL, joint(5, 2), &truth);
    assert_eq!(strided.layer_map(), [[0, 2], [0, 2]]);
    assert!(strided.manifest().mean_r2().1 < 0.9);
    let keys = MappingConfig::Joint(Joint {
        sides: SourceSides::Keys,
        ..Joint::default()
    });
    let keys = fitted(ALL, options(keys), &truth);
    let inputs = &keys.parts()[0].inputs;
    assert!(inputs.iter().all(|slot| slot.side == KvSide::K));
}

/// Numbers of a token's state at each of the four places of the three source layers.
const HIDDEN: usize = 12;

/// States of a context, and KV of it that is linear in those before the first layer and behind the
/// last.
fn states_pair(seed: u64) -> (KvBlock, KvBlock) {
    let (source, target) = ends();
    let mut next = noise(seed + 500);
    let states: Vec<Vec<f16>> = (0..=source.shape.num_layers)
        .map(|_| {
            (0..TOKENS * HIDDEN)
                .map(|_| f16::from_f64(next() * 4.0))
                .collect()
        })
        .collect();
    let relation = through(7);
    let rows: Vec<Vec<f64>> = (0..TOKENS)
        .map(|token| {
            let of = |state: &Vec<f16>| -> Vec<f64> {
                let row = &state[token * HIDDEN..][..HIDDEN];
                row.iter().map(|x| x.to_f64()).collect()
            };
            let mut read = [of(&states[0]), of(&states[3])].concat();
            read.resize(96, 0.0);
            relation(&read)
        })
        .collect();
    let states = states_block(&source.fingerprint, HIDDEN, states).unwrap();
    (states, block(&target, &rows))
}

#[test]
fn joint_reads_states_and_tells_them_from_kv() {
    let (source, target) = ends();
    let shape = states_shape(source.shape.num_layers, HIDDEN).unwrap();
    let joint = Joint {
        stride: 3,
        source: SourceKind::States,
        ..Joint::default()
    };
    let map = vec![(0..shape.num_layers).collect::<Vec<_>>(); 2];
    let mut options = options(MappingConfig::Joint(joint));
    options.storage = Storage::F16;
    let prepare = |options| BridgeFitter::new(source, target, &map, options);
    let error = prepare(options.clone()).unwrap_err().to_string();
    assert!(error.contains("no shape"), "{error}");
    options.states = Some(shape);
    let mut fitter = prepare(options.clone()).unwrap();
    for seed in 0..20 {
        let (states, target) = states_pair(seed);
        fitter.add(&states, &target).unwrap();
    }
    let (kv, of_kv) = pair(1, &through(5));
    let refused = |result: Result<String, AlignError>, expected: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    refused(
        fitter.add(&kv, &of_kv).map(|split| format!("{split:?}")),
        "expected hidden states of model 0101",
    );
    let bridge = fitter.finish().unwrap();
    assert_exact(&bridge);
    assert_eq!(bridge.reads(), SourceKind::States);
    assert_eq!(bridge.layer_map(), [[0, 3], [0, 3]]);
    // It is for the two models, whatever of them it reads.
    bridge.check_models(&source, &target).unwrap();
    let read = Bridge::from_bytes(&bridge.to_bytes().unwrap()).unwrap();
    assert_eq!(read, bridge);
    // So are those that training begins at it.
    for mapping in [
        MappingConfig::Trained,
        MappingConfig::Fuse(Fuse { rank: 4 }),
    ] {
        let begun = bridge.to_train(mapping).unwrap();
        assert_eq!(begun.reads(), SourceKind::States);
        let written = Bridge::from_bytes(&begun.to_bytes().unwrap()).unwrap();
        assert_eq!(written.reads(), SourceKind::States);
    }
    let alone = bridge.to_train(MappingConfig::Prefix).unwrap();
    assert_eq!(alone.reads(), SourceKind::Kv);
    for rank in [0, 3, 1 << 20] {
        assert!(bridge.to_train(MappingConfig::Fuse(Fuse { rank })).is_err());
    }
    let (states, expected) = states_pair(99);
    let mapped = read.map(&states).unwrap();
    assert_eq!(mapped.spec(), expected.spec());
    for (mapped, expected) in mapped.layers().iter().zip(expected.layers()) {
        let pairs = mapped.k.iter().zip(&expected.k);
        for (found, expected) in pairs.chain(mapped.v.iter().zip(&expected.v)) {
            let away = (found.to_f32() - expected.to_f32()).abs();
            assert!(away < 0.05, "{found} {expected}");
        }
    }
    let mapped = |bridge: &Bridge, block| bridge.map(block).map(|block| block.shape().to_string());
    refused(mapped(&bridge, &kv), "found its KV");
    let of_kv = fitted(ALL, self::options(MappingConfig::Ridge), &through(5));
    refused(mapped(&of_kv, &states), "found its hidden states");
    // Sides are of KV.
    options.mapping = MappingConfig::Joint(Joint {
        sides: SourceSides::Keys,
        ..joint
    });
    let error = prepare(options).unwrap_err().to_string();
    assert!(error.contains("leave `sides` out"), "{error}");
}

#[test]
fn joint_maps_some_layers_as_it_maps_all() {
    let mut bridge = fitted(
        ALL,
        options(MappingConfig::Joint(Joint::default())),
        &through(5),
    );
    bridge.set_gains(1.25, 0.75).unwrap();
    let (source, _) = pair(99, &through(5));
    let whole = bridge.map(&source).unwrap();
    for layer in 0..2 {
        let one = bridge.map_layers(&source, layer..layer + 1).unwrap();
        assert_eq!(one.layer_range(), layer..layer + 1);
        let (one, all) = (&one.layers()[0], &whole.layers()[layer]);
        for (one, all) in one.k.iter().zip(&all.k).chain(one.v.iter().zip(&all.v)) {
            let (one, all) = (one.to_f32(), all.to_f32());
            assert!(
                (one - all).abs() <= 2e-3 * all.abs().max(1.0),
                "{one} {all}"
            );
        }
    }
}

#[test]
fn procrustes_finds_a_rotation_and_its_scale() {
    // Twice a rotation of eight of the sixteen channels against each other, cut to eight.
    let truth = |x: &[f64]| {
        by_side(x, |side| {
            let turned = (0..4).flat_map(|pair| {
                let (a, b) = (side[2 * pair], side[2 * pair + 9]);
                [0.6 * a - 0.8 * b, 0.8 * a + 0.6 * b]
            });
            turned.map(|x| 2.0 * x - 1.0).collect()
        })
    };
    let mut options = options(MappingConfig::Procrustes);
    options.storage = Storage::F16;
    let bridge = fitted(DEPTH, options, &truth);
    // What the rest of the channels add by chance is all that is missing.
    let (k, v) = bridge.manifest().mean_r2();
    assert!(k > 0.98 && v > 0.98, "{k} {v}");
    let Weights::Dense(weight) = bridge.parts()[0].affine.weights() else {
        panic!("procrustes is dense");
    };
    let column = |j: usize| (0..16).map(move |i| weight.numbers()[i * 8 + j]);
    for j in 0..8 {
        for other in 0..8 {
            let dot: f32 = column(j).zip(column(other)).map(|(a, b)| a * b).sum();
            let expected = if j == other { 4.0 } else { 0.0 };
            assert!((dot - expected).abs() < 0.2, "{j} {other}: {dot}");
        }
    }
}

#[test]
fn head_ridge_finds_the_heads_that_matter() {
    // Target head h of layer l is made of one source head: h crosswise of source layer 2 l.
    let truth = |x: &[f64]| {
        by_side(x, |side| {
            let heads = [&side[8..], &side[..8]];
            heads
                .iter()
                .flat_map(|head| (0..4).map(|c| head[c] - 0.5 * head[7 - c]))
                .collect()
        })
    };
    let bridge = fitted(
        ALL,
        options(MappingConfig::HeadRidge(HeadRidge { heads: 1 })),
        &truth,
    );
    assert_exact(&bridge);
    assert_eq!(bridge.parts().len(), 8);
    for part in bridge.parts() {
        let [output] = part.outputs[..] else {
            panic!("one head each");
        };
        let expected = Slot {
            layer: 2 * output.layer,
            side: output.side,
            head: 1 - output.head,
        };
        assert_eq!(part.inputs, [expected], "{output}");
    }
    let two = fitted(
        ALL,
        options(MappingConfig::HeadRidge(HeadRidge { heads: 2 })),
        &truth,
    );
    assert_exact(&two);
    assert!(two.parts().iter().all(|part| part.inputs.len() == 2));
}

#[test]
fn copy_cuts_and_keeps() {
    let bridge = fitted(ALL, options(MappingConfig::Copy), &through(5));
    let (source, _) = pair(4, &through(5));
    let mapped = bridge.map(&source).unwrap();
    for (layer, kv) in mapped.layers().iter().enumerate() {
        // Along `all` the first source layer is 0 for both.
        assert!(layer < 2);
        for head in 0..2 {
            for token in 0..TOKENS {
                let from = (head * TOKENS + token) * 8;
                let to = (head * TOKENS + token) * 4;
                assert_eq!(kv.k[to..to + 4], source.layers()[0].k[from..from + 4]);
                assert_eq!(kv.v[to..to + 4], source.layers()[0].v[from..from + 4]);
            }
        }
    }
    assert!(
        bridge.manifest().mean_r2().0 < 0.1,
        "two models share no basis"
    );
}

/// Tokens of two kinds follow two relations; the weights say that one kind matters.
#[test]
fn weights_decide_which_tokens_are_mapped_best() {
    let heavy = |x: &[f64]| x[95] > 1.0;
    let truth = |x: &[f64]| {
        let sign = if heavy(x) { 1.0 } else { -0.25 };
        by_side(x, |side| {
            (0..8).map(|j| sign * (side[j] - side[j + 8])).collect()
        })
    };
    let fit = |mapping: MappingConfig| {
        let (source, target) = ends();
        let map = [vec![0], vec![2]];
        let mut fitter = BridgeFitter::new(source, target, &map, options(mapping)).unwrap();
        for seed in 0..20 {
            let (source, target) = pair(seed, &truth);
            // The last value of the last layer's last head, which tells the kinds apart.
            let last = &source.layers()[2].v[TOKENS * 8..];
            let weights = last
                .chunks_exact(8)
                .map(|row| f32::from(u8::from(row[7].to_f32() > 1.0)) + 0.01);
            let weights: Vec<f32> = weights.collect();
            fitter.add_weighted(&source, &target, &weights).unwrap();
        }
        fitter.finish().unwrap()
    };
    let error = |bridge: &Bridge| {
        let (source, target) = pair(99, &truth);
        let mapped = bridge.map(&source).unwrap();
        let mut sum = 0.0;
        for (found, truth) in mapped.layers().iter().zip(target.layers()) {
            for (index, (found, truth)) in found.k.iter().zip(&truth.k).enumerate() {
                let token = index / 4 % TOKENS;
                let last = source.layers()[2].v[(TOKENS + token) * 8 + 7];
                if last.to_f32() > 1.0 {
                    sum += (found.to_f32() - truth.to_f32()).powi(2);
                }
            }
        }
        sum
    };
    let (plain, weighted) = (fit(MappingConfig::Ridge), fit(MappingConfig::WeightedRidge));
    let (plain, weighted) = (error(&plain), error(&weighted));
    assert!(weighted < 0.05 * plain, "{weighted} {plain}");
}

#[test]
fn weights_are_needed_and_checked() {
    let (source, target) = ends();
    let map = [vec![0], vec![2]];
    let options = options(MappingConfig::WeightedRidge);
    let mut fitter = BridgeFitter::new(source, target, &map, options).unwrap();
    let (source, target) = pair(1, &through(2));
    let error = fitter.add(&source, &target).unwrap_err().to_string();
    assert!(
        error.contains("mapping weighted_ridge needs them"),
        "{error}"
    );
    let mut negative = vec![1.0; TOKENS];
    negative[9] = -1.0;
    let mut infinite = vec![1.0; TOKENS];
    infinite[9] = f32::INFINITY;
    for bad in [vec![1.0; TOKENS - 1], vec![0.0; TOKENS], negative, infinite] {
        let error = fitter.add_weighted(&source, &target, &bad).unwrap_err();
        assert!(matches!(error, AlignError::Weights { .. }), "{error}");
    }
    assert_eq!(fitter.contexts(), 0);
}

#[test]
fn parameters_of_nothing_are_refused() {
    let (source, target) = ends();
    for mapping in [
        MappingConfig::LowRank(LowRank { rank: 0 }),
        MappingConfig::HeadRidge(HeadRidge { heads: 0 }),
        MappingConfig::Joint(Joint {
            rank: 0,
            ..Joint::default()
        }),
        MappingConfig::Joint(Joint {
            stride: 0,
            ..Joint::default()
        }),
    ] {
        let error = BridgeFitter::new(source, target, &[vec![0], vec![2]], options(mapping));
        assert!(matches!(error, Err(AlignError::Parameter { .. })));
    }
}

/// R² of all keys and of all values of a bridge, from what it maps.
fn measured(bridge: &Bridge, contexts: &[(KvBlock, KvBlock)]) -> [f64; 2] {
    KvSide::ALL.map(|side| {
        let (mut error, mut spread) = (0.0, 0.0);
        for layer in 0..2 {
            for channel in 0..8 {
                let (mut sum, mut square, mut n) = (0.0, 0.0, 0.0);
                for (source, target) in contexts {
                    let mapped = bridge.map(source).unwrap();
                    for token in 4..TOKENS {
                        let at = (channel / 4 * TOKENS + token) * 4 + channel % 4;
                        let of = |block: &KvBlock| {
                            let mut layer = block.layers()[layer].clone();
                            side.of_mut(&mut layer)[at].to_f64()
                        };
                        let (found, truth) = (of(&mapped), of(target));
                        error += (found - truth).powi(2);
                        sum += truth;
                        square += truth * truth;
                        n += 1.0;
                    }
                }
                spread += square - sum * sum / n;
            }
        }
        1.0 - error / spread
    })
}

/// What every registered mapping promises, with either storage: its file holds it, and the file
/// scores what the manifest says.
#[test]
fn what_is_scored_is_what_the_file_holds() {
    // Not linear, so that no fit is perfect and a rounded one not the same.
    let linear = through(9);
    let truth = move |x: &[f64]| {
        let mut y = linear(x);
        y.iter_mut().zip(x).for_each(|(y, x)| *y += 0.3 * x * x);
        y
    };
    let held_out: Vec<_> = [5, 15].map(|seed| pair(seed, &truth)).into();
    let (source, target) = ends();
    let map = ALL.map(<[usize]>::to_vec);
    for entry in mappings() {
        // What is trained is not fitted, and says so.
        if (entry.example)().is_trained() {
            assert!(matches!(
                BridgeFitter::new(source, target, &map, options((entry.example)())),
                Err(AlignError::NotFitted { .. })
            ));
            continue;
        }
        let mut by_storage = Vec::new();
        for storage in [Storage::F16, Storage::Int8] {
            let mut options = options((entry.example)());
            options.storage = storage;
            let bridge = fitted(ALL, options, &truth);
            let bytes = bridge.to_bytes().unwrap();
            let read = Bridge::from_bytes(&bytes).unwrap();
            assert_eq!(read, bridge, "{}", entry.name);
            assert_eq!(read.to_bytes().unwrap(), bytes, "{}", entry.name);
            assert_eq!((read.mapping().id(), read.storage()), (entry.name, storage));
            let mut layers = read.manifest().layers.iter();
            assert!(layers.all(|layer| layer.k_r2.is_finite() && layer.v_r2.is_finite()));
            let found = measured(&read, &held_out);
            by_storage.push(found);
            // The manifest has a score for each layer; with spreads alike, their mean is near.
            if found[0] > 0.5 {
                let stated = read.manifest().mean_r2();
                assert!(
                    (stated.0 - found[0]).abs() < 0.05,
                    "{}: {found:?} {stated:?}",
                    entry.name
                );
            }
        }
        // 8 bits cost less than a hundredth of the variance, in maps as small as these.
        for (half, byte) in by_storage[0].iter().zip(by_storage[1]) {
            if *half > 0.0 {
                assert!(half - byte < 0.01, "{}: {half} {byte}", entry.name);
            }
        }
    }
}

/// The default bridge of the default pair: 28 layers of 2 x 128 to 24 of 2 x 64.
#[test]
fn a_joint_bridge_of_the_default_pair_fits_sixteen_megabytes() {
    let end = |byte, num_layers, head_dim| BridgeEnd {
        fingerprint: ModelFingerprint::from_bytes([byte; 32]),
        shape: KvShape::new(num_layers, 2, head_dim).unwrap(),
    };
    let (source, target) = (end(1, 28, 128), end(2, 24, 64));
    let joint = Joint::default();
    let map = vec![(0..28).collect::<Vec<_>>(); 24];
    let group = joint
        .groups(&map, source.shape, target.shape)
        .unwrap()
        .remove(0);
    let (p, q) = (group.inputs.len() * 128, group.outputs().len() * 64);
    assert_eq!((p, q), (7168, 6144));
    let thin = |rows, columns| faer::Mat::from_fn(rows, columns, |i, j| ((i * 7 + j) % 5) as f64);
    let solution = super::super::affine::Solution::Factored {
        down: thin(p, joint.rank),
        up: thin(joint.rank, q),
    };
    let config = MappingConfig::Joint(joint);
    let storage = config.storage();
    let affine = Affine::new(&solution, &vec![0.0; p], &vec![0.0; q], storage).unwrap();
    let parts = vec![Part {
        inputs: group.inputs.clone(),
        own: Vec::new(),
        outputs: group.outputs(),
        affine,
    }];
    let example = fitted(DEPTH, options(MappingConfig::Ridge), &through(2));
    let mut manifest = example.manifest().clone();
    manifest.layers = vec![manifest.layers[0]; 24];
    let bridge = Bridge::new(
        source,
        target,
        "all".to_owned(),
        config,
        storage,
        manifest,
        parts,
    );
    assert_eq!(bridge.multiplications(), 1024 * (7168 + 6144));
    let bytes = bridge.to_bytes().unwrap();
    assert!(bytes.len() < 16_000_000, "{}", bytes.len());
    assert_eq!(Bridge::from_bytes(&bytes).unwrap(), bridge);
}

#[test]
fn later_contexts_are_fitted_on_where_enough_are_kept() {
    let mut fitter = fitter(DEPTH, options(MappingConfig::Ridge), &through(2));
    let tokens = |fitter: &BridgeFitter| fitter.tokens(Split::HeldOut);
    assert_eq!(tokens(&fitter), 2 * (TOKENS as u64 - 4));
    let (source, target) = pair(50, &through(2));
    while fitter.contexts() < 2000 {
        fitter.add(&source, &target).unwrap();
    }
    let kept = tokens(&fitter);
    assert!(kept <= 8192 && kept > 8192 - TOKENS as u64, "{kept}");
    assert_eq!(fitter.tokens(Split::Validation), kept);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn damaged_files_of_all_kinds_never_panic(
        kind in 0_usize..4,
        cut in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        byte: u8,
    ) {
        static FILES: std::sync::LazyLock<Vec<Vec<u8>>> = std::sync::LazyLock::new(|| {
            let joint = MappingConfig::Joint(Joint { rank: 3, ..Joint::default() });
            let heads = MappingConfig::HeadRidge(HeadRidge::default());
            let mut files = Vec::new();
            for mapping in [joint, heads] {
                for storage in [Storage::F16, Storage::Int8] {
                    let mut options = options(mapping.clone());
                    options.storage = storage;
                    files.push(fitted(ALL, options, &through(2)).to_bytes().unwrap());
                }
            }
            files
        });
        let mut bytes = FILES[kind].clone();
        let cut = cut.index(bytes.len());
        prop_assert!(Bridge::from_bytes(&bytes[..cut]).is_err());
        let at = at.index(bytes.len());
        bytes[at] = byte;
        // What is still read is whole: it writes a file that reads as the same.
        if let Ok(bridge) = Bridge::from_bytes(&bytes) {
            let again = Bridge::from_bytes(&bridge.to_bytes().unwrap()).unwrap();
            prop_assert_eq!(again, bridge);
        }
    }
}
