//! Training on models of random weights: the frozen decoder is the decoder, a spoilt map is mended,
//! and first tokens and residuals learn what a teacher says.

use std::path::Path;
use std::sync::Arc;

use celslm_kv::align::mapping::{Fuse, Joint};
use celslm_kv::align::{
    Alignment as _, All, BridgeEnd, BridgeFitter, CommonPrefix, Depth, FitOptions, Numbers, Part,
    Sources, Storage, TrainingRecord, Weights,
};
use celslm_kv::{Bridge, KvBlock, MappingConfig, ModelFingerprint};
use celslm_model::synthetic::SyntheticModel;
use celslm_model::{GgufFile, KeyRetention, KvCache, KvPrefix, LoadedModel};
use celslm_training::{
    Distiller, Distributions, FrozenDecoder, Lesson, Losses, Sequence, Trainer, TrainingOptions,
    default_device,
};

fn model(dir: &Path, seed: u64) -> (LoadedModel, FrozenDecoder) {
    let path = dir.join(format!("{seed}.gguf"));
    let synthetic = SyntheticModel {
        architecture: "qwen2",
        num_layers: 2,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 16,
        quantised: false,
        seed,
    };
    synthetic.write(&path).unwrap();
    let mut gguf = GgufFile::open(&path).unwrap();
    let frozen = FrozenDecoder::load(&mut gguf, &default_device().unwrap()).unwrap();
    (LoadedModel::load(&path).unwrap(), frozen)
}

fn tokens(model: &LoadedModel, count: usize, seed: usize) -> Vec<u32> {
    let vocab_size = model.decoder.vocab_size();
    (0..count)
        .map(|i| ((i * 7919 + seed * 104_729 + i * i * 31) % vocab_size) as u32)
        .collect()
}

/// Tokens that all contexts begin with.
const COMMON: usize = 6;

fn context(model: &LoadedModel, seed: usize) -> Vec<u32> {
    let mut context = tokens(model, 40, seed);
    context[..COMMON].copy_from_slice(&tokens(model, COMMON, 1000));
    context
}

fn prefill(model: &LoadedModel, tokens: &[u32]) -> KvBlock {
    model.decoder.context_kv(tokens, || true).unwrap().unwrap()
}

fn lesson(model: &LoadedModel, seed: usize) -> Lesson {
    let context = context(model, seed);
    let block = prefill(model, &context);
    let sequence = |seed, length| Sequence {
        tokens: tokens(model, length, seed),
        answer: length - 4,
    };
    Lesson {
        tokens: context,
        source: block.clone(),
        own: block,
        teacher: None,
        sequences: vec![sequence(seed + 100, 12), sequence(seed + 200, 9)],
    }
}

/// The same lesson with another model for its teacher.
fn taught_by(teacher: &LoadedModel, lesson: &Lesson) -> Lesson {
    let read = prefill(teacher, &lesson.tokens);
    let read = Arc::new(KvPrefix::from_block(&read, teacher.decoder.rope()).unwrap());
    let said = Distributions::of(&teacher.decoder, &read, &lesson.sequences).unwrap();
    Lesson {
        teacher: Some(said),
        ..lesson.clone()
    }
}

/// A joint map from the model to itself, with its prefix.
fn joint(model: &LoadedModel) -> Bridge {
    joint_in(model, Storage::Int8)
}

fn joint_in(model: &LoadedModel, storage: Storage) -> Bridge {
    let end = BridgeEnd {
        fingerprint: model.decoder.fingerprint(),
        shape: model.decoder.kv_shape(),
    };
    let layers = end.shape.num_layers;
    let map = All::default().layer_map(layers, layers, None).unwrap();
    let mapping = MappingConfig::Joint(Joint {
        rank: 32,
        stride: 1,
        ..Joint::default()
    });
    let mut options = FitOptions::new("all", "none", 0, "test").with_mapping(mapping);
    options.storage = storage;
    let mut fitter = BridgeFitter::new(end, end, &map, options).unwrap();
    for seed in 0..20 {
        let lesson = lesson(model, seed);
        fitter.add(&lesson.source, &lesson.own).unwrap();
    }
    let common = tokens(model, COMMON, 1000);
    let exact = prefill(model, &common);
    let prefix = CommonPrefix::new(common, exact).unwrap();
    fitter.finish().unwrap().with_prefix(prefix).unwrap()
}

/// A ridge from the model to itself.
fn fitted(model: &LoadedModel) -> Bridge {
    let end = BridgeEnd {
        fingerprint: model.decoder.fingerprint(),
        shape: model.decoder.kv_shape(),
    };
    let layers = end.shape.num_layers;
    let map = Depth::default().layer_map(layers, layers, None).unwrap();
    let options = FitOptions::new("depth", "none", 0, "test");
    let mut fitter = BridgeFitter::new(end, end, &map, options).unwrap();
    for seed in 0..20 {
        let lesson = lesson(model, seed);
        fitter.add(&lesson.source, &lesson.own).unwrap();
    }
    fitter.finish().unwrap()
}

fn record() -> TrainingRecord {
    TrainingRecord {
        teacher: ModelFingerprint::from_bytes([7; 32]),
        steps: 1,
        contexts: 1,
        held_out_contexts: 1,
        kl: [0.0; 2],
        nll: [0.0; 2],
    }
}

const OPTIONS: TrainingOptions = TrainingOptions {
    steps: 300,
    learning_rate: 0.1,
    warm_up: 3,
    attention: 1.0,
    divergence: 1.0,
};

/// Exact KV gives the likelihood that the decoder itself gives, and no error.
#[test]
fn the_frozen_decoder_is_the_decoder() {
    let dir = tempfile::tempdir().unwrap();
    let (model, frozen) = model(dir.path(), 3);
    let lesson = lesson(&model, 1);
    let trainer = Trainer::new(&frozen, &fitted(&model), &[&lesson], OPTIONS).unwrap();
    let found = trainer.evaluate(&lesson).unwrap();

    let (mut sum, mut count) = (0.0, 0);
    for sequence in &lesson.sequences {
        let prefix = KvPrefix::from_block(&lesson.own, model.decoder.rope()).unwrap();
        let mut cache = KvCache::new(
            model.decoder.kv_shape(),
            Some(prefix.into()),
            sequence.tokens.len(),
            KeyRetention::RotatedOnly,
        )
        .unwrap();
        let hidden = model.decoder.forward(&sequence.tokens, &mut cache).unwrap();
        let logits = model.decoder.all_logits(&hidden).unwrap();
        let rows: Vec<&[f32]> = logits.chunks_exact(model.decoder.vocab_size()).collect();
        for at in sequence.answer..sequence.tokens.len() {
            let row = rows[at - 1];
            let norm: f64 = row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
            sum += norm - f64::from(row[sequence.tokens[at] as usize]);
            count += 1;
        }
    }
    let expected = sum / f64::from(count);
    assert!(
        (found.teacher_nll - expected).abs() < 2e-3,
        "{} against {expected}",
        found.teacher_nll
    );
    assert!(found.kl < 1e-2 && found.attention < 1e-2, "{found:?}");
}

/// A map that was spoilt after it was fitted; training finds its way back.
#[test]
fn a_spoilt_map_is_mended() {
    let dir = tempfile::tempdir().unwrap();
    let (model, frozen) = model(dir.path(), 4);
    let fitted = fitted(&model);
    let spoil = |part: &Part| {
        let Weights::Dense(weight) = part.affine.weights() else {
            panic!("ridge is dense")
        };
        let numbers: Vec<f32> = weight.numbers().iter().map(|x| 0.5 * x).collect();
        let bias: Vec<f32> = part.affine.bias().iter().map(|x| 0.5 * x).collect();
        let numbers = Numbers::Dense(&numbers);
        let affine = part
            .affine
            .with_numbers(numbers, bias, fitted.storage())
            .unwrap();
        Part {
            affine,
            ..part.clone()
        }
    };
    let parts = fitted.parts().iter().map(spoil).collect();
    let begun = fitted.to_train(MappingConfig::Trained).unwrap();
    let spoilt = begun.trained(record(), parts, None).unwrap();
    let lessons: Vec<Lesson> = (0..6).map(|seed| lesson(&model, seed)).collect();
    let sample: Vec<&Lesson> = lessons.iter().collect();
    let mut trainer = Trainer::new(&frozen, &spoilt, &sample, OPTIONS).unwrap();
    let unseen = lesson(&model, 77);
    let before = trainer.evaluate(&unseen).unwrap();
    for step in 0..OPTIONS.steps as usize {
        trainer.step(&[&lessons[step % lessons.len()]]).unwrap();
    }
    // A run that was cut short goes on where it stopped; another's state is refused.
    let state = dir.path().join("state");
    trainer.save(&state, "this").unwrap();
    let mut resumed = Trainer::new(&frozen, &spoilt, &sample, OPTIONS).unwrap();
    let error = resumed.restore(&state, "other").unwrap_err().to_string();
    assert!(error.contains("another run"), "{error}");
    assert_eq!(resumed.steps(), 0);
    resumed.restore(&state, "this").unwrap();
    assert_eq!(resumed.steps(), OPTIONS.steps);
    let after = trainer.evaluate(&unseen).unwrap();
    assert_eq!(resumed.evaluate(&unseen).unwrap(), after);
    std::fs::write(&state, [0xff; 64]).unwrap();
    assert!(resumed.restore(&state, "this").is_err());
    assert!(
        after.kl < 0.5 * before.kl && after.attention < 0.5 * before.attention,
        "{before:?} {after:?}"
    );

    // What is written maps as what was trained.
    let bridge = trainer.bridge(record()).unwrap();
    assert_eq!(bridge.manifest().training, Some(record()));
    let again = Trainer::new(&frozen, &bridge, &sample, OPTIONS).unwrap();
    let read: Losses = again.evaluate(&unseen).unwrap();
    assert!(
        (read.kl - after.kl).abs() < 0.05 * after.kl + 1e-3,
        "{read:?} {after:?}"
    );
}

/// The KV of one context, tuned until the model says what it says about another.
#[test]
fn tuned_kv_says_what_the_teacher_says() {
    let dir = tempfile::tempdir().unwrap();
    let (model, frozen) = model(dir.path(), 5);
    let (taught, other) = (lesson(&model, 1), lesson(&model, 2));
    let prefix = Arc::new(KvPrefix::from_block(&taught.own, model.decoder.rope()).unwrap());
    let teacher = Distributions::of(&model.decoder, &prefix, &taught.sequences).unwrap();
    let same = Distiller::new(&frozen, &taught.own, OPTIONS).unwrap();
    let none = same.evaluate(&taught.sequences, &teacher).unwrap();
    assert!(
        none.kl < 1e-3 && (none.nll - none.teacher_nll).abs() < 1e-2,
        "{none:?}"
    );

    let mut distiller = Distiller::new(&frozen, &other.own, OPTIONS).unwrap();
    let before = distiller.evaluate(&taught.sequences, &teacher).unwrap();
    for _ in 0..OPTIONS.steps {
        distiller.step(&taught.sequences, &teacher).unwrap();
    }
    let after = distiller.evaluate(&taught.sequences, &teacher).unwrap();
    assert!(after.kl < 0.3 * before.kl, "{before:?} {after:?}");

    // Before RoPE and in fp16 it is the same KV, and its first token has not changed.
    let block = distiller.block().unwrap();
    assert_eq!(block.positions(), other.own.positions());
    let head_dim = block.shape().head_dim;
    let first = |block: &KvBlock| block.layers()[0].v[..head_dim].to_vec();
    assert_eq!(first(&block), first(&other.own));
    let again = Distiller::new(&frozen, &block, OPTIONS).unwrap();
    let read = again.evaluate(&taught.sequences, &teacher).unwrap();
    assert!(
        (read.kl - after.kl).abs() < 0.05 * after.kl + 1e-3,
        "{read:?} {after:?}"
    );

    // Of other questions the teacher has said nothing.
    assert!(again.evaluate(&other.sequences[..1], &teacher).is_err());
}

/// First tokens learn what another model says, and nothing else of a context's own KV changes.
#[test]
fn a_tuned_prefix_says_what_the_teacher_says() {
    let dir = tempfile::tempdir().unwrap();
    let (own, frozen) = model(dir.path(), 6);
    let (teacher, _) = model(dir.path(), 7);
    let bridge = joint(&own).to_train(MappingConfig::Prefix).unwrap();
    assert!(bridge.reads_own());
    let lessons: Vec<Lesson> = (0..4)
        .map(|seed| taught_by(&teacher, &lesson(&own, seed)))
        .collect();
    let sample: Vec<&Lesson> = lessons.iter().collect();
    let options = TrainingOptions {
        attention: 0.0,
        ..OPTIONS
    };
    let mut trainer = Trainer::new(&frozen, &bridge, &sample, options).unwrap();
    let mean = |trainer: &Trainer<'_>| {
        let all = lessons.iter().map(|l| trainer.evaluate(l).unwrap());
        Losses::mean(&all.collect::<Vec<_>>())
    };
    let before = mean(&trainer);
    // Without a step it is the edge's own KV.
    let untaught = trainer.evaluate(&lesson(&own, 1)).unwrap();
    assert!(untaught.kl < 1e-3, "{untaught:?}");
    for step in 0..200 {
        trainer.step(&[&lessons[step % lessons.len()]]).unwrap();
    }
    let after = mean(&trainer);
    assert!(after.kl < 0.8 * before.kl, "{before:?} {after:?}");

    let tuned = trainer.bridge(record()).unwrap();
    let read = Bridge::from_bytes(&tuned.to_bytes().unwrap()).unwrap();
    assert_eq!(read, tuned);
    let tokens = context(&own, 9);
    let block = prefill(&own, &tokens);
    let map = |tokens: &[u32]| {
        read.map(Sources {
            source: &block,
            own: Some(&block),
            tokens,
        })
        .unwrap()
    };
    let mapped = map(&tokens);
    let rest = COMMON..tokens.len();
    let part = |block: &KvBlock, run| block.slice_tokens(run).unwrap();
    assert_eq!(part(&mapped, rest.clone()), part(&block, rest));
    assert_ne!(part(&mapped, 0..COMMON), part(&block, 0..COMMON));
    assert_eq!(part(&mapped, 0..1), part(&block, 0..1), "the sink stays");
    // A context that begins otherwise has its exact beginning.
    let mut other = tokens;
    other[COMMON - 1] ^= 1;
    assert_eq!(map(&other), block);
    assert!(read.map(&block).is_err(), "it needs the edge's own KV");
}

/// A residual begins at nothing, and what training finds is what is stored.
#[test]
fn a_residual_learns_and_its_bridge_maps_alike() {
    let dir = tempfile::tempdir().unwrap();
    let (own, frozen) = model(dir.path(), 8);
    let (teacher, _) = model(dir.path(), 9);
    let fitted = joint(&own);
    assert!(
        fitted
            .to_train(MappingConfig::Fuse(Fuse { rank: 1 }))
            .is_err()
    );
    let begun = fitted
        .to_train(MappingConfig::Fuse(Fuse { rank: 16 }))
        .unwrap();
    let untaught = lesson(&own, 3);
    let sources = Sources {
        source: &untaught.source,
        own: Some(&untaught.own),
        tokens: &untaught.tokens,
    };
    assert_eq!(begun.map(sources).unwrap(), untaught.own);
    let lessons: Vec<Lesson> = (0..4)
        .map(|seed| taught_by(&teacher, &lesson(&own, seed)))
        .collect();
    let sample: Vec<&Lesson> = lessons.iter().collect();
    let mut trainer = Trainer::new(&frozen, &begun, &sample, OPTIONS).unwrap();
    let before = trainer.evaluate(&lessons[0]).unwrap();
    for step in 0..100 {
        trainer.step(&[&lessons[step % lessons.len()]]).unwrap();
    }
    let after = trainer.evaluate(&lessons[0]).unwrap();
    assert!(after.kl < 0.9 * before.kl, "{before:?} {after:?}");
    let bridge = trainer.bridge(record()).unwrap();
    // Training can go on from there, and counts the steps of both; of another mapping it says nothing.
    let goes_on = bridge.to_train(bridge.mapping().clone()).unwrap();
    assert_eq!(goes_on, bridge);
    let mut later = record();
    later.continues(&bridge.manifest().training.unwrap());
    assert_eq!(later.steps, 2);
    let prefix = bridge.to_train(MappingConfig::Prefix).unwrap();
    assert_eq!(prefix.manifest().training, None);
    let again = Trainer::new(&frozen, &bridge, &sample, OPTIONS).unwrap();
    let read = again.evaluate(&lessons[0]).unwrap();
    assert!(
        (read.kl - after.kl).abs() < 0.05 * after.kl,
        "{read:?} {after:?}"
    );
}

/// Of a map that is stored in 8 bits the first factor stays what it is, to the bit.
#[test]
fn a_first_factor_in_bytes_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (own, frozen) = model(dir.path(), 10);
    let begun = joint(&own).to_train(MappingConfig::Trained).unwrap();
    let lessons: Vec<Lesson> = (0..4).map(|seed| lesson(&own, seed)).collect();
    let sample: Vec<&Lesson> = lessons.iter().collect();
    let mut trainer = Trainer::new(&frozen, &begun, &sample, OPTIONS).unwrap();
    for step in 0..20 {
        trainer.step(&[&lessons[step % lessons.len()]]).unwrap();
    }
    let trained = trainer.bridge(record()).unwrap();
    let factors = |bridge: &Bridge| match bridge.parts()[0].affine.weights() {
        Weights::Factored { down, up } => (down.clone(), up.clone()),
        Weights::Dense(_) => panic!("joint has two factors"),
    };
    let ((down, up), (own_down, own_up)) = (factors(&trained), factors(&begun));
    assert_eq!(down, own_down);
    assert_ne!(up, own_up);
    let read = Bridge::from_bytes(&trained.to_bytes().unwrap()).unwrap();
    assert_eq!(read, trained);
}

/// Of a map in fp16 both factors are trained, and both are stored as they were found.
#[test]
fn a_first_factor_in_fp16_is_trained_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (own, frozen) = model(dir.path(), 11);
    let fitted = joint_in(&own, Storage::F16);
    let begun = fitted.to_train(MappingConfig::Trained).unwrap();
    assert_eq!(begun.storage(), Storage::F16);
    let lessons: Vec<Lesson> = (0..4).map(|seed| lesson(&own, seed)).collect();
    let sample: Vec<&Lesson> = lessons.iter().collect();
    let mut trainer = Trainer::new(&frozen, &begun, &sample, OPTIONS).unwrap();
    for step in 0..20 {
        trainer.step(&[&lessons[step % lessons.len()]]).unwrap();
    }
    let after = trainer.evaluate(&lessons[0]).unwrap();
    let trained = trainer.bridge(record()).unwrap();
    let first = |bridge: &Bridge| match bridge.parts()[0].affine.weights() {
        Weights::Factored { down, .. } => down.clone(),
        Weights::Dense(_) => panic!("joint has two factors"),
    };
    assert_ne!(first(&trained), first(&begun));
    let again = Trainer::new(&frozen, &trained, &sample, OPTIONS).unwrap();
    let read = again.evaluate(&lessons[0]).unwrap();
    assert!(
        (read.kl - after.kl).abs() < 0.05 * after.kl + 1e-3,
        "{read:?} {after:?}"
    );
}
