//! One battery for every registered codec: registration is enough to be tested here.

use half::f16;
use proptest::prelude::*;

use super::{Chain, Codec, CodecConfig, Tile, TileMut, TileShape, TileSpec, registry};

fn chains() -> Vec<Chain> {
    registry()
        .iter()
        .flat_map(|entry| (entry.examples)())
        .map(|config| config.build())
        .collect()
}

/// Finite numbers with an offset per channel, as keys have them.
fn numbers(shape: TileShape, seed: u64) -> Vec<f16> {
    let mut state = seed;
    (0..shape.elements())
        .map(|index| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let noise = (state >> 40) as f32 / (1 << 24) as f32 - 0.5;
            let offset = ((index % shape.head_dim()) as f32 * 0.7).sin() * 40.0;
            f16::from_f32(offset + noise * 3.0)
        })
        .collect()
}

fn encode(codec: &Chain, shape: TileShape, seed: u64) -> (Vec<f16>, Vec<f16>, Vec<u8>) {
    let (k, v) = (numbers(shape, seed), numbers(shape, !seed));
    let mut bytes = Vec::new();
    codec
        .encode(
            &Tile::new(TileSpec::alone(shape), &k, &v).unwrap(),
            &mut bytes,
        )
        .unwrap();
    (k, v, bytes)
}

fn decode(codec: &Chain, shape: TileShape, bytes: &[u8]) -> Option<(Vec<f16>, Vec<f16>)> {
    let mut k = vec![f16::NAN; shape.elements()];
    let mut v = vec![f16::NAN; shape.elements()];
    let mut tile = TileMut::new(TileSpec::alone(shape), &mut k, &mut v).unwrap();
    codec.decode(bytes, &mut tile).ok()?;
    Some((k, v))
}

fn range(side: &[f16]) -> (f32, f32) {
    let numbers = side.iter().map(|x| x.to_f32());
    (
        numbers.clone().fold(f32::INFINITY, f32::min),
        numbers.fold(f32::NEG_INFINITY, f32::max),
    )
}

#[test]
fn entries_are_complete_and_ids_round_trip() {
    let mut names: Vec<_> = registry().iter().map(|entry| entry.name).collect();
    for entry in registry() {
        assert!(!entry.summary.is_empty() && !entry.source.is_empty());
        let config = entry.example();
        assert!(
            config
                .stages()
                .iter()
                .any(|stage| stage.to_string().starts_with(entry.name))
        );
        assert!(
            config
                .stages()
                .iter()
                .any(|stage| stage.kind() == entry.kind)
        );
        for config in (entry.examples)() {
            assert_eq!(config.id().parse(), Ok(config.clone()));
            assert_eq!(config.build().id(), config.to_string());
            let json = serde_json::to_string(&config).unwrap();
            assert_eq!(serde_json::from_str::<CodecConfig>(&json).unwrap(), config);
        }
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), registry().len());
}

#[test]
fn encode_appends() {
    let shape = TileShape::new(2, 5, 64).unwrap();
    for codec in chains() {
        let (k, v, bytes) = encode(&codec, shape, 3);
        let mut out = vec![9, 9];
        codec
            .encode(
                &Tile::new(TileSpec::alone(shape), &k, &v).unwrap(),
                &mut out,
            )
            .unwrap();
        assert_eq!(out[..2], [9, 9]);
        assert_eq!(out[2..], bytes);
    }
}

#[test]
fn large_tiles_cost_the_nominal_bits() {
    let shape = TileShape::new(2, 256, 64).unwrap();
    for codec in chains() {
        let (_, _, bytes) = encode(&codec, shape, 11);
        let bits = bytes.len() as f64 * 8.0 / (2 * shape.elements()) as f64;
        assert!(
            bits <= codec.nominal_bits() + 0.01,
            "{}: {bits} bits",
            codec.id()
        );
        assert_eq!(
            256 % codec.token_group(),
            0,
            "chunks of 256 tokens cut a group"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn round_trip_keeps_shape_length_and_bound(
        heads in 1_usize..4, tokens in 1_usize..80, wide in 1_usize..4, seed: u64,
    ) {
        let shape = TileShape::new(heads, tokens, wide * 32).unwrap();
        for codec in chains() {
            let (k, v, bytes) = encode(&codec, shape, seed);
            prop_assert!(bytes.len() <= codec.encoded_len(shape));
            let (k_out, v_out) = decode(&codec, shape, &bytes).unwrap();
            for (before, after) in [(&k, &k_out), (&v, &v_out)] {
                let (min, max) = range(before);
                let Some(bound) = codec.error_bound(min, max) else { continue };
                for (x, y) in before.iter().zip(after) {
                    let error = (x.to_f32() - y.to_f32()).abs();
                    prop_assert!(error <= bound, "{}: {error} > {bound}", codec.id());
                }
            }
        }
    }

    #[test]
    fn wrong_lengths_are_refused(tokens in 1_usize..40, seed: u64, cut in 1_usize..64) {
        let shape = TileShape::new(2, tokens, 32).unwrap();
        for codec in chains() {
            let (_, _, mut bytes) = encode(&codec, shape, seed);
            prop_assert!(decode(&codec, shape, &bytes[..bytes.len() - cut]).is_none());
            bytes.resize(bytes.len() + cut, 0);
            prop_assert!(decode(&codec, shape, &bytes).is_none());
            let other = TileShape::new(2, tokens + 1, 32).unwrap();
            bytes.truncate(bytes.len() - cut);
            prop_assert!(decode(&codec, other, &bytes).is_none());
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        tokens in 1_usize..5,
        bytes in proptest::collection::vec(any::<u8>(), 0..4096),
    ) {
        let shape = TileShape::new(1, tokens, 32).unwrap();
        for codec in chains() {
            decode(&codec, shape, &bytes);
            // The right length, so that the content is looked at too.
            let exact: Vec<u8> =
                bytes.iter().copied().chain(std::iter::repeat(0x3c)).take(codec.encoded_len(shape)).collect();
            decode(&codec, shape, &exact);
        }
    }
}

#[test]
fn constant_tiles_are_exact_where_a_bound_is_declared() {
    let shape = TileShape::new(2, 33, 32).unwrap();
    let side = vec![f16::from_f32(-3.3); shape.elements()];
    for codec in chains() {
        if codec.error_bound(1.0, 1.0) == Some(0.0) {
            let mut bytes = Vec::new();
            let tile = Tile::new(TileSpec::alone(shape), &side, &side).unwrap();
            codec.encode(&tile, &mut bytes).unwrap();
            assert_eq!(
                decode(&codec, shape, &bytes),
                Some((side.clone(), side.clone()))
            );
        }
    }
}
