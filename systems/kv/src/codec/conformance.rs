//! One battery for every registered codec: registration is enough to be tested here.

use std::sync::{Arc, OnceLock};

use half::f16;
use proptest::prelude::*;

use crate::align::BridgeEnd;
use crate::block::{KeyRope, KvBlock, KvShape, LayerKv};
use crate::ident::ModelFingerprint;

use super::{
    ArtefactFitter, ArtefactOptions, Beside, Chain, Codec, CodecArtefact, CodecConfig,
    CodecContext, CodecError, Held, Prior, StageKind, Tile, TileMut, TileShape, TileSpec,
    TokenScores, families, presets, registry, sweep,
};

fn chains() -> Vec<Chain> {
    let examples = registry().iter().flat_map(|entry| (entry.examples)());
    let presets = presets().iter().map(super::Preset::config);
    examples
        .chain(presets)
        .flat_map(|config| [config.build(), config.build_with(&context()).unwrap()])
        .collect()
}

/// Overwrites three first tokens with ones.
fn with_common_start(shape: TileShape, mut side: Vec<f16>) -> Vec<f16> {
    for head in side.chunks_exact_mut(shape.tokens() * shape.head_dim()) {
        let common = 3.min(shape.tokens()) * shape.head_dim();
        head[..common].fill(f16::ONE);
    }
    side
}

/// An artefact of two layers of 2 x 32, with a layer to predict from.
fn context() -> CodecContext {
    static ARTEFACT: OnceLock<Arc<CodecArtefact>> = OnceLock::new();
    CodecContext::new(ARTEFACT.get_or_init(|| fit(32)).clone())
}

/// An artefact of two layers of 2 x `head_dim`, from contexts with numbers as [`context_block`].
fn fit(head_dim: usize) -> Arc<CodecArtefact> {
    let shape = KvShape::new(2, 2, head_dim).unwrap();
    let fingerprint = ModelFingerprint::from_bytes([1; 32]);
    let model = BridgeEnd { fingerprint, shape };
    let mut options = ArtefactOptions::new("none", "test");
    options.prior_layers = 1;
    let mut fitter = ArtefactFitter::new(model, options).unwrap();
    for seed in 0..4 {
        fitter.add(&context_block(head_dim, 200, seed)).unwrap();
    }
    Arc::new(fitter.finish().unwrap())
}

/// Two layers of 2 x `tokens` x `head_dim`.
fn context_block(head_dim: usize, tokens: usize, seed: u64) -> KvBlock {
    let shape = KvShape::new(2, 2, head_dim).unwrap();
    let tile = TileShape::new(2, tokens, head_dim).unwrap();
    let layers = (0..2)
        .map(|layer| LayerKv {
            k: with_common_start(tile, numbers(tile, seed * 4 + layer)),
            v: with_common_start(tile, numbers(tile, !(seed * 4 + layer))),
        })
        .collect();
    let fingerprint = ModelFingerprint::from_bytes([1; 32]);
    KvBlock::new(fingerprint, shape, 0, 0..tokens, KeyRope::Pre, layers).unwrap()
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

/// Scores of 2000 tokens in two layers, in no order.
fn scores() -> TokenScores {
    let layer: Vec<f32> = (0..2000).map(|t| (t * 7919 % 2003) as f32).collect();
    TokenScores::new(0, 0, vec![layer; 2]).unwrap()
}

/// Keys, values and what they were encoded to.
type Encoded = (Vec<f16>, Vec<f16>, Vec<u8>);

fn encode_at(codec: &Chain, spec: TileSpec, seed: u64) -> Result<Encoded, CodecError> {
    let (k, v) = (numbers(spec.shape, seed), numbers(spec.shape, !seed));
    let mut bytes = Vec::new();
    let scores = scores();
    let tile = Tile::new(spec, &k, &v)?.with_scores(Some(&scores));
    codec.encode(&tile, &mut bytes)?;
    Ok((k, v, bytes))
}

fn encode(codec: &Chain, shape: TileShape, seed: u64) -> Encoded {
    encode_at(codec, TileSpec::alone(shape), seed).unwrap()
}

fn decode_at(codec: &Chain, spec: TileSpec, bytes: &[u8]) -> Option<(Vec<f16>, Vec<f16>, Held)> {
    let mut k = vec![f16::NAN; spec.shape.elements()];
    let mut v = vec![f16::NAN; spec.shape.elements()];
    let mut tile = TileMut::new(spec, &mut k, &mut v).unwrap();
    codec.decode(bytes, &mut tile).ok()?;
    let held = tile.held().clone();
    Some((k, v, held))
}

fn decode(codec: &Chain, shape: TileShape, bytes: &[u8]) -> Option<(Vec<f16>, Vec<f16>)> {
    decode_at(codec, TileSpec::alone(shape), bytes).map(|(k, v, _)| (k, v))
}

/// Chains that can code the shape.
fn suiting(shape: TileShape) -> impl Iterator<Item = Chain> {
    chains()
        .into_iter()
        .filter(move |codec| codec.check_shape(shape).is_ok())
}

fn drops_tokens(codec: &Chain) -> bool {
    let exact = |stage: &super::StageConfig| {
        matches!(
            stage,
            super::StageConfig::Exact(_) | super::StageConfig::Prefix(_)
        )
    };
    let mut stages = codec.config().stages().iter();
    stages.any(|stage| stage.kind() == StageKind::Select && !exact(stage))
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
    let scores = scores();
    for codec in suiting(shape) {
        let (k, v, bytes) = encode(&codec, shape, 3);
        let mut out = vec![9, 9];
        let tile = Tile::new(TileSpec::alone(shape), &k, &v).unwrap();
        codec
            .encode(&tile.with_scores(Some(&scores)), &mut out)
            .unwrap();
        assert_eq!(out[..2], [9, 9]);
        assert_eq!(out[2..], bytes);
    }
}

#[test]
fn presets_are_complete_and_parse() {
    let mut names: Vec<_> = presets().iter().map(|preset| preset.name).collect();
    for preset in presets() {
        assert!(!preset.source.is_empty() && !preset.remark.is_empty());
        assert_eq!(preset.config().id(), preset.id, "{}", preset.name);
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), presets().len());
}

#[test]
fn families_are_complete_and_each_chain_sends_less_than_the_one_before() {
    let context = CodecContext::new(fit(64));
    let block = context_block(64, 1000, 21);
    let mut names: Vec<_> = families().iter().map(|family| family.name).collect();
    for family in families() {
        let configs = family.configs();
        assert_eq!(sweep(family.name).unwrap(), configs);
        let mut before = u64::MAX;
        for (config, id) in configs.iter().zip((family.ids)()) {
            assert_eq!(config.id(), id);
            let chain = config.build_with(&context).unwrap();
            let scores = Some(Arc::new(scores()));
            let mut encoder = crate::ChunkEncoder::new(chain.clone()).with_scores(scores);
            let places = crate::chunk::plan(block.spec(), 256, &chain).unwrap();
            let bytes = places
                .map(|(layer, tokens)| encoder.encode(&block, layer, tokens).unwrap())
                .map(|chunk| chunk.payload.len() as u64)
                .sum();
            assert!(bytes < before, "{id}: {bytes} bytes after {before}");
            before = bytes;
        }
    }
    for preset in presets() {
        let family = sweep(preset.name).unwrap();
        // A preset that stands for its family's method is one of its points.
        let is_one = family.contains(&preset.config());
        assert!(is_one, "{} is not in {}", preset.name, preset.family);
    }
    assert!(matches!(
        sweep("kivy"),
        Err(CodecError::UnknownFamily { .. })
    ));
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), families().len());
}

#[test]
fn large_tiles_cost_at_most_the_nominal_bits() {
    let shape = TileShape::new(2, 256, 64).unwrap();
    // In the middle of a context, where no token is exact.
    let spec = TileSpec {
        first_token: 512,
        end_token: 2000,
        ..TileSpec::alone(shape)
    };
    for codec in suiting(shape) {
        let (_, _, bytes) = encode_at(&codec, spec, 11).unwrap();
        let bits = bytes.len() as f64 * 8.0 / (2 * shape.elements()) as f64;
        assert!(
            bits <= codec.nominal_bits() + 0.01,
            "{}: {bits} bits, nominal {}",
            codec.id(),
            codec.nominal_bits()
        );
        assert_eq!(
            256 % codec.token_group(),
            0,
            "chunks of 256 tokens cut a group"
        );
    }
}

#[test]
fn accounts_add_up_to_the_payload() {
    let shape = TileShape::new(2, 50, 64).unwrap();
    let whole = TileSpec::alone(shape);
    let middle = TileSpec {
        first_token: 512,
        end_token: 2000,
        ..whole
    };
    for codec in suiting(shape) {
        for spec in [whole, middle] {
            let (_, _, bytes) = encode_at(&codec, spec, 5).unwrap();
            let account = codec.explain(spec, Beside::default(), &bytes).unwrap();
            assert_eq!(account.bytes(), bytes.len(), "{}: {account:?}", codec.id());
            let (_, _, held) = decode_at(&codec, spec, &bytes).unwrap();
            assert_eq!(account.tokens_held, held.count(50));
            let mut twice = account.clone();
            twice.add(&account);
            assert_eq!(twice.bytes(), 2 * bytes.len());
            assert_eq!(twice.parts.len(), account.parts.len());
        }
    }
}

#[test]
fn numbers_that_are_not_finite_are_refused_or_kept() {
    let shape = TileShape::new(1, 6, 64).unwrap();
    let clean = vec![f16::ONE; shape.elements()];
    let scores = scores();
    for codec in suiting(shape) {
        for bad in [f16::NAN, f16::INFINITY, f16::NEG_INFINITY] {
            let mut dirty = clean.clone();
            dirty.fill(bad);
            for (k, v) in [(&dirty, &clean), (&clean, &dirty)] {
                let mut out = vec![7];
                let tile = Tile::new(TileSpec::alone(shape), k, v).unwrap();
                let outcome = codec.encode(&tile.with_scores(Some(&scores)), &mut out);
                if outcome.is_err() {
                    assert_eq!(out, [7], "{}", codec.id());
                } else {
                    let (k_out, v_out) = decode(&codec, shape, &out[1..]).unwrap();
                    let kept = k_out.iter().chain(&v_out).any(|x| !x.is_finite());
                    assert!(kept, "{}", codec.id());
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn round_trip_keeps_shape_length_and_bound(
        heads in 1_usize..4, tokens in 1_usize..80, wide in 1_usize..4, seed: u64,
        first in prop_oneof![Just(0_usize), 1_usize..300], more in prop_oneof![Just(0_usize), 1_usize..300],
    ) {
        let shape = TileShape::new(heads, tokens, wide * 32).unwrap();
        let spec = TileSpec { first_token: first, end_token: first + tokens + more, ..TileSpec::alone(shape) };
        for codec in suiting(shape) {
            let (k, v, bytes) = encode_at(&codec, spec, seed).unwrap();
            prop_assert!(bytes.len() <= codec.encoded_len(shape), "{}", codec.id());
            let (k_out, v_out, held) = decode_at(&codec, spec, &bytes).unwrap();
            prop_assert!(drops_tokens(&codec) || held == Held::All, "{}", codec.id());
            let run = tokens * shape.head_dim();
            let is_held = |index: usize| match &held {
                Held::All => true,
                Held::Some(offsets) => offsets.binary_search(&(index % run / shape.head_dim())).is_ok(),
            };
            for (before, after) in [(&k, &k_out), (&v, &v_out)] {
                let (min, max) = range(before);
                let bound = codec.error_bound(min, max);
                for (index, (x, y)) in before.iter().zip(after).enumerate() {
                    prop_assert!(y.is_finite(), "{}", codec.id());
                    if !is_held(index) {
                        prop_assert_eq!(*y, f16::ZERO, "{}", codec.id());
                    } else if let Some(bound) = bound {
                        let error = (x.to_f32() - y.to_f32()).abs();
                        prop_assert!(error <= bound, "{}: {error} > {bound}", codec.id());
                    }
                }
            }
        }
    }

    #[test]
    fn wrong_lengths_are_refused(tokens in 1_usize..40, seed: u64, cut in 1_usize..64) {
        let shape = TileShape::new(2, tokens, 32).unwrap();
        for codec in suiting(shape) {
            let (_, _, mut bytes) = encode(&codec, shape, seed);
            let cut = cut.min(bytes.len());
            if cut > 0 && !codec.decodes_prefixes() {
                prop_assert!(decode(&codec, shape, &bytes[..bytes.len() - cut]).is_none(), "{}", codec.id());
            }
            bytes.resize(bytes.len() + cut.max(1), 0);
            prop_assert!(decode(&codec, shape, &bytes).is_none(), "{}", codec.id());
            let other = TileShape::new(2, tokens + 1, 32).unwrap();
            bytes.truncate(bytes.len() - cut.max(1));
            // A selection may keep as many of one token more.
            if !drops_tokens(&codec) && !codec.decodes_prefixes() {
                prop_assert!(decode(&codec, other, &bytes).is_none(), "{}", codec.id());
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        tokens in 1_usize..20,
        bytes in proptest::collection::vec(any::<u8>(), 0..4096),
    ) {
        let shape = TileShape::new(1, tokens, 32).unwrap();
        for codec in suiting(shape) {
            decode(&codec, shape, &bytes);
            // The right length, so that the content is looked at too.
            let exact: Vec<u8> =
                bytes.iter().copied().chain(std::iter::repeat(0x3c)).take(codec.encoded_len(shape)).collect();
            decode(&codec, shape, &exact);
        }
    }

    /// Bytes that were right once, so that decoders get beyond their first checks.
    #[test]
    fn altered_bytes_never_panic(
        tokens in 1_usize..20, seed: u64, place in 0_usize..100_000, value: u8, from in 0_usize..100_000,
    ) {
        let shape = TileShape::new(1, tokens, 32).unwrap();
        for codec in suiting(shape) {
            let (_, _, mut bytes) = encode(&codec, shape, seed);
            if bytes.is_empty() { continue }
            let len = bytes.len();
            bytes[place % len] = value;
            decode(&codec, shape, &bytes);
            bytes[from % len..].iter_mut().for_each(|byte| *byte ^= 0x55);
            if let Some((k, v)) = decode(&codec, shape, &bytes) {
                let fp16 = codec.config().stages().iter().any(|stage| matches!(stage, super::StageConfig::Identity | super::StageConfig::Exact(_)));
                prop_assert!(fp16 || k.iter().chain(&v).all(|x| x.is_finite()), "{}", codec.id());
            }
            decode(&codec, TileShape::new(1, tokens + 1, 32).unwrap(), &bytes);
        }
    }
}

#[test]
fn constant_tiles_are_exact_where_a_bound_is_declared() {
    let shape = TileShape::new(2, 33, 32).unwrap();
    let side = vec![f16::from_f32(-3.3); shape.elements()];
    for codec in suiting(shape) {
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

#[test]
fn every_prefix_decodes_and_more_is_better() {
    let shape = TileShape::new(2, 40, 32).unwrap();
    let spec = TileSpec::alone(shape);
    let mut found = 0;
    for codec in suiting(shape).filter(Codec::decodes_prefixes) {
        found += 1;
        let (k, v, bytes) = encode_at(&codec, spec, 9).unwrap();
        let error = |bytes: &[u8]| -> Option<f64> {
            let (k_out, v_out, _) = decode_at(&codec, spec, bytes)?;
            let pairs = k.iter().chain(&v).zip(k_out.iter().chain(&v_out));
            Some(
                pairs
                    .map(|(x, y)| (x.to_f64() - y.to_f64()).powi(2))
                    .sum::<f64>(),
            )
        };
        // Exact tokens come first and have to be there.
        let first = (0..=bytes.len())
            .find(|len| error(&bytes[..*len]).is_some())
            .unwrap();
        assert!(first <= 1 + 4 * 2 * 32 * 4, "{}", codec.id());
        let errors: Vec<f64> = (first..=bytes.len())
            .map(|len| error(&bytes[..len]).unwrap())
            .collect();
        let quarter = errors.len() / 4;
        for start in [0, quarter, 2 * quarter] {
            let (before, after) = (errors[start], errors[start + quarter]);
            assert!(after < before * 0.9, "{}: {before} to {after}", codec.id());
        }
    }
    assert!(found > 0);
}

#[test]
fn artefacts_round_trip_and_are_checked() {
    let context = context();
    let artefact = context.artefact.clone().unwrap();
    let bytes = artefact.to_bytes().unwrap();
    assert_eq!(artefact.file_bytes(), bytes.len() as u64);
    assert_eq!(CodecArtefact::from_bytes(&bytes).unwrap(), *artefact);
    for cut in [0, 9, bytes.len() / 2, bytes.len() - 1] {
        assert!(CodecArtefact::from_bytes(&bytes[..cut]).is_err());
    }
    let config: CodecConfig = "pca-0000000000000000+step-m500-d15".parse().unwrap();
    let other = config.build_with(&context);
    assert!(matches!(other, Err(CodecError::Artefact { .. })));
    let config: CodecConfig = "pca+step-m500-d15+context".parse().unwrap();
    let chain = config.build_with(&context).unwrap();
    let id = format!("pca-{}+step-m500-d15+context", artefact.id());
    assert_eq!(chain.id(), id);
    let named: CodecConfig = id.parse().unwrap();
    assert_eq!(named.build_with(&context).unwrap().id(), id);
    let shape = TileShape::new(2, 8, 32).unwrap();
    assert!(chain.check_shape(shape).is_ok());
    let wide = TileShape::new(2, 8, 64).unwrap();
    assert!(chain.check_shape(wide).is_err());
    let without = config.build().check_shape(shape);
    assert!(matches!(without, Err(CodecError::Artefact { .. })));
}

/// Plain components know neither of the layers below nor of what errors cost, and are those of the
/// covariance: on what it was fitted on they have no correlation, and the stated variances.
#[test]
fn plain_components_are_those_of_the_covariance() {
    let model = *context().artefact.unwrap().model();
    let shape = TileShape::new(2, 400, 32).unwrap();
    let layers: Vec<LayerKv> = (0..2)
        .map(|layer| LayerKv {
            k: numbers(shape, 5 + layer),
            v: numbers(shape, 50 + layer),
        })
        .collect();
    let (fingerprint, kv_shape) = (model.fingerprint, model.shape);
    let block = KvBlock::new(fingerprint, kv_shape, 0, 0..400, KeyRope::Pre, layers).unwrap();
    let fit = |sensitivity: Option<Vec<Vec<f32>>>, prior_layers| {
        let options = crate::codec::ArtefactOptions {
            sensitivity,
            prior_layers,
            skip_tokens: 0,
            ..crate::codec::ArtefactOptions::new("hash", "test")
        };
        let mut fitter = crate::codec::ArtefactFitter::new(model, options).unwrap();
        fitter.add(&block).unwrap();
        Arc::new(fitter.finish().unwrap())
    };
    let skewed = (0..2).map(|_| (1..=128).map(|i| i as f32 / 64.0).collect());
    let (weighted, unweighted) = (fit(Some(skewed.collect()), 1), fit(None, 0));
    assert_ne!(weighted.layers(), unweighted.layers());
    assert_eq!(
        weighted.plain().unwrap().layers(),
        unweighted.plain().unwrap().layers()
    );
    for (layer, own) in weighted.plain().unwrap().layers().iter().enumerate() {
        let spec = TileSpec {
            layer,
            num_layers: 2,
            ..TileSpec::alone(shape)
        };
        let maps = weighted.plain().unwrap().maps(layer).unwrap();
        assert!(maps.predict_from.is_empty());
        let kv = &block.layers()[layer];
        let tile = Tile::new(spec, &kv.k, &kv.v).unwrap();
        // Without coding, components come back as they are: fp16 of both.
        let config: CodecConfig = "pca-plain+identity".parse().unwrap();
        let context = CodecContext::new(weighted.clone());
        let mut bytes = Vec::new();
        let chain = config.build_with(&context).unwrap();
        chain.encode(&tile, &mut bytes).unwrap();
        let (k, v, _) = decode_at(&chain, spec, &bytes).unwrap();
        let pairs = kv.k.iter().chain(&kv.v).zip(k.iter().chain(&v));
        for (x, y) in pairs {
            assert!((x.to_f32() - y.to_f32()).abs() < 0.05, "{x} {y}");
        }
        let components: Vec<f64> = bytes
            .as_chunks::<2>()
            .0
            .iter()
            .map(|pair| f16::from_le_bytes(*pair).to_f64())
            .collect();
        let (even, odd) = components.split_at(400 * 64);
        let of = |rank: usize, token: usize| [even, odd][rank % 2][token * 64 + rank / 2];
        for (rank, stated) in own.variance.iter().enumerate() {
            let together = |other: usize| -> f64 {
                (0..400).map(|t| of(rank, t) * of(other, t)).sum::<f64>() / 400.0
            };
            let stated = f64::from(*stated);
            let found = together(rank);
            assert!(
                (found - stated).abs() < 0.02 * stated + 1e-3,
                "{found} {stated}"
            );
            let other = (rank + 1) % own.variance.len();
            assert!(together(other).abs() < 0.02, "{rank}: {}", together(other));
        }
    }
    // A chain that allocates bits by variances takes those of its own components.
    let chain = |id: &str| {
        let config: CodecConfig = id.parse().unwrap();
        config
            .build_with(&CodecContext::new(weighted.clone()))
            .unwrap()
    };
    let tile = Tile::new(
        TileSpec::alone(shape),
        &block.layers()[0].k,
        &block.layers()[0].v,
    );
    let tile = tile.unwrap();
    let [alone, plain] = ["pca+allocated-t20-dp", "pca-plain+allocated-t20-dp"].map(|id| {
        let mut bytes = Vec::new();
        chain(id).encode(&tile, &mut bytes).unwrap();
        decode(&chain(id), shape, &bytes).unwrap()
    });
    assert_ne!(alone, plain);
}

/// Both directions of a chain that predicts see the same decoded layers, in a transfer by chunks.
#[test]
fn prediction_crosses_in_chunks() {
    let context = context();
    let model = *context.artefact.as_ref().unwrap().model();
    let tile = TileShape::new(2, 100, 32).unwrap();
    let layers: Vec<LayerKv> = (0..2)
        .map(|layer| LayerKv {
            k: numbers(tile, 77 + layer),
            v: numbers(tile, 177 + layer),
        })
        .collect();
    let (fingerprint, shape) = (model.fingerprint, model.shape);
    let block = KvBlock::new(fingerprint, shape, 0, 0..100, KeyRope::Pre, layers).unwrap();
    let config: CodecConfig = "exact-s4-w0+pca-predict+step-m50-d5+context"
        .parse()
        .unwrap();
    let chain = config.build_with(&context).unwrap();
    assert_eq!(chain.prior_layers(), 1);
    let sent: Vec<_> = crate::chunk::chunks(&block, 64, &chain)
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    let spec = || block.spec().clone();
    let got = crate::chunk::assemble(spec(), vec![chain.clone()], u64::MAX, sent.clone()).unwrap();
    for (own, other) in block.layers().iter().zip(got.layers()) {
        let own = own.k.iter().chain(&own.v);
        for (x, y) in own.zip(other.k.iter().chain(&other.v)) {
            assert!((x.to_f32() - y.to_f32()).abs() < 1.0, "{x} {y}");
        }
    }
    // A layer by itself, out of order, is refused at both ends.
    assert!(crate::KvChunk::encode(&block, 1, 0..64, &chain).is_err());
    let mut assembler = crate::Assembler::new(spec(), vec![chain], u64::MAX).unwrap();
    let refused = assembler.accept(&sent[2]);
    assert!(matches!(refused, Err(crate::ChunkError::Order { .. })));
}

#[test]
fn common_first_tokens_are_not_sent() {
    let shape = TileShape::new(2, 10, 32).unwrap();
    let context = context();
    assert_eq!(context.artefact.as_ref().unwrap().prefix_tokens(), 3);
    let config: CodecConfig = "prefix+identity".parse().unwrap();
    let chain = config.build_with(&context).unwrap();
    let spec = TileSpec::alone(shape);
    let plain = numbers(shape, 4);
    let common = with_common_start(shape, plain.clone());
    for (side, tokens) in [(&plain, 10), (&common, 7)] {
        let mut bytes = Vec::new();
        chain
            .encode(&Tile::new(spec, side, side).unwrap(), &mut bytes)
            .unwrap();
        assert_eq!(bytes.len(), 1 + tokens * 2 * 32 * 4);
        let (k, v) = decode(&chain, shape, &bytes).unwrap();
        assert_eq!((&k, &v), (side, side));
    }
    // Nothing is left out elsewhere in a context.
    let later = TileSpec {
        first_token: 50,
        end_token: 60,
        ..spec
    };
    let mut bytes = Vec::new();
    chain
        .encode(&Tile::new(later, &common, &common).unwrap(), &mut bytes)
        .unwrap();
    assert_eq!(bytes.len(), shape.fp16_bytes());
}

/// An id says everything that decoding depends on: where it names no artefact, none is used.
#[test]
fn chains_without_an_artefact_in_their_id_do_not_depend_on_one() {
    let shape = TileShape::new(2, 30, 32).unwrap();
    let (k, v) = (numbers(shape, 1), numbers(shape, 2));
    for config in chains().iter().map(Chain::config) {
        let bare = config.build();
        let bound = config.build_with(&context()).unwrap();
        if bare.id() != bound.id() || bare.check_shape(shape).is_err() {
            continue;
        }
        let scores = scores();
        let encode = |codec: &Chain| {
            let mut bytes = Vec::new();
            let tile = Tile::new(TileSpec::alone(shape), &k, &v).unwrap();
            let tile = tile.with_scores(Some(&scores));
            codec.encode(&tile, &mut bytes).unwrap();
            bytes
        };
        assert_eq!(encode(&bare), encode(&bound), "{}", bare.id());
    }
}

/// A sequence of draws that is the same in every run.
struct Draws(u64);

impl Draws {
    fn below(&mut self, bound: usize) -> usize {
        let step = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = step.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound.max(1)
    }

    /// Bytes made of a payload and another one as a faulty link or a peer might make them.
    fn mutate(&mut self, payload: &[u8], other: &[u8]) -> Vec<u8> {
        let mut bytes = payload.to_vec();
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len());
            match self.below(8) {
                0 => bytes.truncate(at),
                1 => bytes.rotate_left(at),
                2 => bytes.extend((0..=at % 9).map(|_| self.below(256) as u8)),
                3 => {
                    bytes.truncate(at);
                    bytes.extend_from_slice(&other[at.min(other.len())..]);
                }
                4 => {
                    let len = 1 + self.below(16);
                    bytes
                        .iter_mut()
                        .skip(at)
                        .take(len)
                        .for_each(|byte| *byte = 0xff);
                }
                5 => bytes.iter_mut().skip(at).take(4).for_each(|byte| *byte = 0),
                _ => bytes
                    .iter_mut()
                    .skip(at)
                    .take(1)
                    .for_each(|byte| *byte ^= 1 << (self.0 % 8)),
            }
        }
        bytes
    }
}

/// Chains with an artefact, each once.
fn bound_chains() -> Vec<Chain> {
    let mut bound: Vec<Chain> = Vec::new();
    for chain in chains() {
        let chain = chain.config().build_with(&context()).unwrap();
        if bound.iter().all(|other| other.id() != chain.id()) {
            bound.push(chain);
        }
    }
    bound
}

/// The numbers of `spec`, encoded with the layers below that a chain asks for.
fn encode_above(codec: &Chain, spec: TileSpec, below: &[Prior<'_>]) -> Vec<u8> {
    let (k, v) = (numbers(spec.shape, 3), numbers(spec.shape, 4));
    let scores = scores();
    let beside = Beside {
        positions: None,
        prior: below,
    };
    let tile = Tile::new(spec, &k, &v).unwrap().with_beside(beside);
    let mut bytes = Vec::new();
    let tile = tile.unwrap().with_scores(Some(&scores));
    codec.encode(&tile, &mut bytes).unwrap();
    bytes
}

/// What `systems/kv/fuzz` does for much longer: payloads that were right once, cut anywhere,
/// altered, put together from two, or decoded as another shape or at another place.
#[test]
fn mutated_payloads_are_refused_with_a_reason_or_decode_to_what_is_promised() {
    let spec = |tokens, layer, first_token, more| TileSpec {
        shape: TileShape::new(2, tokens, 32).unwrap(),
        layer,
        num_layers: 2,
        first_token,
        end_token: first_token + tokens + more,
    };
    let specs = [spec(3, 0, 0, 40), spec(8, 1, 90, 300), spec(5, 0, 30, 0)];
    let mut draws = Draws(1);
    for codec in bound_chains() {
        let passes_fp16 = codec.id().split('+').any(|stage| {
            // fp16 numbers that travel as they are may be anything.
            stage == "identity" || stage.starts_with("exact")
        });
        let below: Vec<_> = specs
            .iter()
            .map(|spec| (numbers(spec.shape, 7), numbers(spec.shape, 8)))
            .collect();
        let prior = |index: usize| -> Vec<Prior<'_>> {
            let (k, v): &(Vec<f16>, Vec<f16>) = &below[index];
            let wanted = codec.prior_layers().min(specs[index].layer);
            vec![Prior { k, v }; wanted]
        };
        let payloads: Vec<_> = (0..specs.len())
            .map(|index| encode_above(&codec, specs[index], &prior(index)))
            .collect();
        let try_at = |index: usize, bytes: &[u8]| -> bool {
            let (spec, prior) = (specs[index], prior(index));
            let (mut k, mut v) = (numbers(spec.shape, 1), numbers(spec.shape, 2));
            let beside = Beside {
                positions: None,
                prior: &prior,
            };
            let mut tile = TileMut::new(spec, &mut k, &mut v).unwrap();
            tile = tile.with_beside(beside).unwrap();
            if let Err(error) = codec.decode(bytes, &mut tile) {
                assert!(!error.to_string().is_empty());
                return false;
            }
            let held = tile.held().clone();
            assert!(
                bytes.len() <= codec.encoded_len(spec.shape),
                "{}",
                codec.id()
            );
            let finite = k.iter().chain(&v).all(|x| x.is_finite());
            assert!(finite || passes_fp16, "{}", codec.id());
            if let Held::Some(offsets) = held {
                assert!(offsets.is_sorted_by(|a, b| a < b), "{}", codec.id());
                assert!(
                    offsets
                        .last()
                        .is_none_or(|last| *last < spec.shape.tokens())
                );
            }
            true
        };
        for (index, payload) in payloads.iter().enumerate() {
            assert!(try_at(index, payload), "{}", codec.id());
            for len in 0..payload.len() {
                let decodes = try_at(index, &payload[..len]);
                assert!(
                    !decodes || codec.decodes_prefixes(),
                    "{}: {len}",
                    codec.id()
                );
            }
            for _ in 0..800 {
                let other = draws.below(payloads.len());
                let bytes = draws.mutate(payload, &payloads[other]);
                try_at(index, &bytes);
                try_at(other, &bytes);
            }
        }
    }
}

/// Chunks in any order, more than once, cut and altered: what is refused changes nothing, and
/// what is complete is what an orderly transfer gives.
#[test]
fn disorderly_chunks_are_refused_and_change_nothing() {
    let block = context_block(32, 70, 2);
    let mut draws = Draws(2);
    for codec in bound_chains() {
        let mut encoder =
            crate::ChunkEncoder::new(codec.clone()).with_scores(Some(Arc::new(scores())));
        let places = crate::chunk::plan(block.spec(), 32, &codec).unwrap();
        let sent: Vec<_> = places
            .map(|(layer, tokens)| encoder.encode(&block, layer, tokens).unwrap())
            .collect();
        let assembler = || {
            let codecs = vec![codec.clone()];
            let assembler = crate::Assembler::new(block.spec().clone(), codecs, u64::MAX);
            assembler.unwrap().with_dropped(true)
        };
        let mut orderly = assembler();
        let layers = sent
            .iter()
            .filter_map(|chunk| orderly.accept(chunk).unwrap());
        let layers: Vec<_> = layers.collect();
        assert_eq!(layers.len(), 2);
        for _ in 0..10 {
            let mut assembler = assembler();
            let mut tries = 0;
            while !assembler.is_complete() {
                tries += 1;
                assert!(tries < 2000, "{}: no honest chunk is taken", codec.id());
                let mut chunk = sent[draws.below(sent.len())].clone();
                let altered = draws.below(2) == 0 && !codec.decodes_prefixes();
                if altered {
                    let keep = draws.below(chunk.payload.len());
                    chunk.payload.truncate(keep);
                    if draws.below(2) == 0 {
                        let crate::KvChunk {
                            layer,
                            tokens,
                            codec,
                            level,
                            payload,
                            ..
                        } = chunk;
                        chunk = crate::KvChunk::seal(layer, tokens, codec, level, payload);
                    }
                }
                let before = assembler.missing();
                match assembler.accept(&chunk) {
                    // Where nothing is kept of some tokens, nothing may be all there is to send.
                    Ok(_) if altered && drops_tokens(&codec) => break,
                    Ok(Some(layer)) => {
                        assert!(!altered, "{}", codec.id());
                        assert!(layers.contains(&layer), "{}", codec.id());
                    }
                    Ok(None) => {
                        assert!(!altered, "{}", codec.id());
                        assert_ne!(assembler.missing(), before);
                    }
                    Err(error) => {
                        assert!(!error.to_string().is_empty());
                        assert_eq!(assembler.missing(), before, "{error}");
                    }
                }
            }
        }
    }
}
