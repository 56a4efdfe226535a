//! The decoder against candle-transformers' quantised models on the same file, and against
//! itself under every way of cutting a sequence up.

use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};
use candle_transformers::models::{quantized_llama, quantized_qwen2};
use celslm_model::store::{ModelStore, Silent, load_specs};
use celslm_model::synthetic::SyntheticModel;
use celslm_model::{
    ChatTemplate, Decoder, GgufFile, KeyRetention, KvCache, KvPrefix, ModelError, Tokenizer,
};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const QWEN2: SyntheticModel = SyntheticModel {
    architecture: "qwen2",
    num_layers: 3,
    num_heads: 4,
    num_kv_heads: 2,
    head_dim: 16,
    quantised: false,
    seed: 1,
};
const LLAMA: SyntheticModel = SyntheticModel {
    architecture: "llama",
    seed: 2,
    ..QWEN2
};

fn write(model: SyntheticModel, dir: &Path) -> PathBuf {
    let path = dir.join(format!("{}-{}.gguf", model.architecture, model.seed));
    model.write(&path).unwrap();
    path
}

fn load(path: &Path) -> Decoder {
    Decoder::load(&mut GgufFile::open(path).unwrap()).unwrap()
}

fn new_cache(model: &Decoder, prefix: Option<Arc<KvPrefix>>, retention: KeyRetention) -> KvCache {
    KvCache::new(model.kv_shape(), prefix, 1024, retention).unwrap()
}

/// Tokens that spell some bytes; valid in every vocabulary here.
fn tokens(n: usize) -> Vec<u32> {
    (0..n as u32)
        .map(|i| 32 + (i * 37 + i * i % 11) % 90)
        .collect()
}

/// Our logits of the last token, then `steps` greedy ids.
fn ours(model: &Decoder, prompt: &[u32], steps: usize) -> (Vec<f32>, Vec<u32>) {
    let mut cache = new_cache(model, None, KeyRetention::RotatedOnly);
    let first = model
        .logits(&model.forward(prompt, &mut cache).unwrap())
        .unwrap();
    let mut ids = vec![argmax(&first)];
    while ids.len() < steps {
        let hidden = model.forward(&[ids[ids.len() - 1]], &mut cache).unwrap();
        ids.push(argmax(&model.logits(&hidden).unwrap()));
    }
    (first, ids)
}

/// The same from candle-transformers: `step(ids, position)` gives the logits of the last id.
fn reference_model(path: &Path) -> impl FnMut(&[u32], usize) -> Vec<f32> {
    type Forward = Box<dyn FnMut(&Tensor, usize) -> Tensor>;
    let mut file = File::open(path).unwrap();
    let content = gguf_file::Content::read(&mut file).unwrap();
    let llama = content.metadata["general.architecture"]
        .to_string()
        .unwrap()
        == "llama";
    let mut forward: Forward = if llama {
        let mut model =
            quantized_llama::ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap();
        Box::new(move |x, position| model.forward(x, position).unwrap())
    } else {
        let mut model =
            quantized_qwen2::ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap();
        Box::new(move |x, position| model.forward(x, position).unwrap())
    };
    move |ids, position| {
        let x = Tensor::new(ids, &Device::Cpu)
            .unwrap()
            .unsqueeze(0)
            .unwrap();
        forward(&x, position)
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap()
    }
}

fn reference(path: &Path, prompt: &[u32], steps: usize) -> (Vec<f32>, Vec<u32>) {
    let mut step = reference_model(path);
    let first = step(prompt, 0);
    let mut ids = vec![argmax(&first)];
    while ids.len() < steps {
        let position = prompt.len() + ids.len() - 1;
        ids.push(argmax(&step(&[ids[ids.len() - 1]], position)));
    }
    (first, ids)
}

fn argmax(logits: &[f32]) -> u32 {
    let best = logits
        .iter()
        .enumerate()
        .max_by(|a, b| a.1.total_cmp(b.1))
        .unwrap();
    best.0 as u32
}

/// Root mean square of the difference, relative to the spread of the expected logits: noise of
/// rounding shows here as what it is, whatever the size of the vocabulary.
fn rms_distance(found: &[f32], expected: &[f32]) -> f32 {
    let n = expected.len() as f32;
    let mean = expected.iter().sum::<f32>() / n;
    let rms =
        |values: &mut dyn Iterator<Item = f32>| (values.map(|x| x * x).sum::<f32>() / n).sqrt();
    rms(&mut found.iter().zip(expected).map(|(a, b)| a - b))
        / rms(&mut expected.iter().map(|x| x - mean))
}

/// Largest difference relative to the spread of the expected logits.
fn distance(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let n = expected.len() as f32;
    let mean = expected.iter().sum::<f32>() / n;
    let spread = (expected.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / n).sqrt();
    found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
        / spread
}

#[test]
fn both_families_match_candle_transformers() {
    let dir = tempfile::tempdir().unwrap();
    for model in [QWEN2, LLAMA] {
        let path = write(model, dir.path());
        let prompt = tokens(70);
        let (found, ids) = ours(&load(&path), &prompt, 12);
        let (expected, expected_ids) = reference(&path, &prompt, 12);
        // The cache is fp16 here and f32 there.
        let distance = distance(&found, &expected);
        assert!(distance < 0.02, "{}: {distance}", model.architecture);
        assert_eq!(ids, expected_ids, "{}", model.architecture);
    }
}

/// One piece, pieces, one token at a time, an imported block, and a shared prefix.
#[test]
fn every_way_of_prefilling_gives_the_same_logits() {
    let dir = tempfile::tempdir().unwrap();
    for model in [QWEN2, LLAMA] {
        let model = load(&write(model, dir.path()));
        let prompt = tokens(300);
        let whole = {
            let mut cache = new_cache(&model, None, KeyRetention::RotatedOnly);
            model
                .logits(&model.forward(&prompt, &mut cache).unwrap())
                .unwrap()
        };
        for piece in [1, 7, 128, 299] {
            let mut cache = new_cache(&model, None, KeyRetention::RotatedOnly);
            let mut last = Vec::new();
            for ids in prompt.chunks(piece) {
                last = model
                    .logits(&model.forward(ids, &mut cache).unwrap())
                    .unwrap();
            }
            assert!(distance(&last, &whole) < 1e-3, "pieces of {piece}");
        }
        let (context, rest) = prompt.split_at(250);
        let block = model.context_kv(context, || true).unwrap().unwrap();
        let imported = Arc::new(KvPrefix::from_block(&block, model.rope()).unwrap());
        let own = {
            let mut cache = new_cache(&model, None, KeyRetention::RotatedOnly);
            assert!(model.prefill(context, &mut cache, || true).unwrap());
            Arc::new(cache.freeze().unwrap())
        };
        let mut logits = [imported, own].map(|prefix| {
            let mut cache = new_cache(&model, Some(prefix), KeyRetention::RotatedOnly);
            model
                .logits(&model.forward(rest, &mut cache).unwrap())
                .unwrap()
        });
        assert!(distance(&logits[0], &whole) < 1e-3);
        // The hand-off is exact to the bit, not merely close.
        let [imported, own] = &mut logits;
        assert_eq!(imported, own);
    }
}

/// The states of a context are what its layers are given one after another, whatever the pieces.
#[test]
fn hidden_states_are_those_between_the_layers() {
    let dir = tempfile::tempdir().unwrap();
    for model in [QWEN2, LLAMA] {
        let model = load(&write(model, dir.path()));
        let prompt = tokens(300);
        let block = model.context_states(&prompt, || true).unwrap().unwrap();
        assert_eq!(block.shape(), model.states_shape().unwrap());
        assert_eq!((block.num_tokens(), block.layers().len()), (300, 4));
        assert_ne!(*block.fingerprint(), model.fingerprint());
        let (width, eps) = (model.config().hidden_size, model.config().rms_norm_eps);
        let half = width / 2;
        let mut cache = new_cache(&model, None, KeyRetention::RotatedOnly);
        let mut hidden = model.embed(&prompt).unwrap();
        for (layer, found) in block.layers().iter().enumerate() {
            let rows = hidden.to_vec().unwrap();
            for (token, row) in rows.chunks_exact(width).enumerate() {
                let square = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
                let norm = (square / width as f64 + f64::from(eps)).sqrt();
                let halves = [&found.k, &found.v].map(|side| &side[token * half..][..half]);
                for (found, x) in halves.into_iter().flatten().zip(row) {
                    let expected = f64::from(*x) / norm;
                    let away = (found.to_f64() - expected).abs();
                    assert!(away < 1e-3 * expected.abs() + 1e-5, "layer {layer}");
                }
            }
            if layer < 3 {
                hidden = model.forward_layer(layer, &hidden, &mut cache).unwrap();
            }
        }
        let mut pieces = 0;
        let stopped = model.context_states(&prompt, || {
            pieces += 1;
            pieces < 2
        });
        assert!(stopped.unwrap().is_none());
    }
}

/// Reading a token range back gives what a whole read holds there, pre-RoPE.
#[test]
fn the_cache_can_be_read_and_truncated() {
    let dir = tempfile::tempdir().unwrap();
    let model = load(&write(QWEN2, dir.path()));
    let prompt = tokens(40);
    let mut cache = new_cache(&model, None, KeyRetention::PreRope);
    model.forward(&prompt, &mut cache).unwrap();
    let all = cache.read(model.fingerprint(), 0..40).unwrap();
    let part = cache.read(model.fingerprint(), 10..25).unwrap();
    assert_eq!(all.slice_tokens(10..25).unwrap(), part);
    assert!(cache.read(model.fingerprint(), 10..41).is_err());
    // What follows a truncation is what would have followed the shorter sequence.
    cache.truncate(20).unwrap();
    let again = model
        .logits(&model.forward(&prompt[20..], &mut cache).unwrap())
        .unwrap();
    assert_eq!(
        cache
            .read(model.fingerprint(), 0..40)
            .unwrap()
            .content_hash()
            .len(),
        32
    );
    let mut fresh = new_cache(&model, None, KeyRetention::RotatedOnly);
    let whole = model
        .logits(&model.forward(&prompt, &mut fresh).unwrap())
        .unwrap();
    assert!(distance(&again, &whole) < 1e-3);
    let rotated_only = new_cache(&model, None, KeyRetention::RotatedOnly);
    assert!(rotated_only.read(model.fingerprint(), 0..0).is_err());
}

#[test]
fn limits_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let model = load(&write(QWEN2, dir.path()));
    let mut small = KvCache::new(model.kv_shape(), None, 4, KeyRetention::RotatedOnly).unwrap();
    let error = model.forward(&tokens(5), &mut small).err().unwrap();
    assert!(
        matches!(
            error,
            ModelError::TooLong {
                wanted: 5,
                limit: 4,
                ..
            }
        ),
        "{error}"
    );
    let mut cache = new_cache(&model, None, KeyRetention::RotatedOnly);
    assert!(model.forward(&[100_000], &mut cache).is_err());
    let missing = Arc::new(KvPrefix::new(model.kv_shape(), 8));
    let mut cache = new_cache(&model, Some(missing), KeyRetention::RotatedOnly);
    let error = model
        .forward(&tokens(2), &mut cache)
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("layer 0 of the prefix has not arrived"),
        "{error}"
    );
}

/// A file that is cut anywhere, or whose header lies, is an error and never a panic.
#[test]
fn damaged_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(QWEN2, dir.path());
    let bytes = std::fs::read(&path).unwrap();
    let damaged = dir.path().join("damaged.gguf");
    let open = |bytes: &[u8]| {
        std::fs::write(&damaged, bytes).unwrap();
        GgufFile::open(&damaged).and_then(|mut gguf| {
            Tokenizer::load(&gguf)?;
            ChatTemplate::load(&gguf)?;
            Decoder::load(&mut gguf)
        })
    };
    assert!(open(&bytes).is_ok());
    for cut in [0, 3, 10, 100, 3000, bytes.len() / 2, bytes.len() - 64] {
        let error = open(&bytes[..cut])
            .err()
            .unwrap_or_else(|| panic!("cut at {cut} was loaded"));
        assert!(error.to_string().contains("damaged.gguf"), "{error}");
    }
    for at in (0..2000).step_by(7) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x55;
        // Some flips change a name or a number that nothing depends on; none may panic.
        let _ = open(&flipped);
    }
    let mut zero_alignment = bytes.clone();
    // The metadata count grows by one, and the new entry declares an alignment of zero.
    zero_alignment[16] += 1;
    let key = b"general.alignment";
    let mut entry = (key.len() as u64).to_le_bytes().to_vec();
    entry.extend_from_slice(key);
    entry.extend_from_slice(&4u32.to_le_bytes());
    entry.extend_from_slice(&0u32.to_le_bytes());
    zero_alignment.splice(24..24, entry);
    assert!(open(&zero_alignment).is_err());
}

/// The default pair and the Llama-family edge model, from the store; fetched if missing.
fn real_model(name: &str) -> PathBuf {
    let specs = load_specs(Path::new("../../configs/models")).unwrap();
    let spec = specs.iter().find(|spec| spec.name == name).unwrap();
    let store = ModelStore::open_default().unwrap();
    store
        .fetch(spec, &mut Silent)
        .unwrap_or_else(|error| panic!("{error}"))
}

/// Text whose every next token is asked for.
const PROMPT: &str = "The capital of France is Paris. Water boils at 100 degrees Celsius and \
     freezes at 0 degrees.\n\ndef fibonacci(n):\n    if n < 2:\n        return n\n    return";
/// Steps of forced decoding after the prompt.
const STEPS: usize = 24;

/// Follows the reference's greedy ids and compares every step. Kernels round activations to 8
/// bits in other blocks here than there, so the logits agree closely and not exactly: a greedy
/// id may differ only where the reference itself is undecided within that distance.
fn matches_on_the_real_file(name: &str, tolerance: f32) {
    let path = real_model(name);
    let mut gguf = GgufFile::open(&path).unwrap();
    let tokenizer = Tokenizer::load(&gguf).unwrap();
    let model = Decoder::load(&mut gguf).unwrap();
    let mut cache = new_cache(&model, None, KeyRetention::RotatedOnly);
    let mut reference = reference_model(&path);
    let mut ids = tokenizer.encode(PROMPT).unwrap();
    assert_eq!(tokenizer.decode(&ids).unwrap(), PROMPT);
    let (mut position, mut same, mut furthest) = (0, 0, 0f32);
    for step in 0..STEPS {
        let expected = reference(&ids, position);
        let found = model
            .logits(&model.forward(&ids, &mut cache).unwrap())
            .unwrap();
        let distance = rms_distance(&found, &expected);
        furthest = furthest.max(distance);
        assert!(distance < tolerance, "step {step}: {distance}");
        let (id, expected_id) = (argmax(&found), argmax(&expected));
        if id == expected_id {
            same += 1;
        } else {
            let worst = found
                .iter()
                .zip(&expected)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            let margin = expected[expected_id as usize] - expected[id as usize];
            assert!(margin <= 2.0 * worst, "step {step}: {id} for {expected_id}");
        }
        position += ids.len();
        ids = vec![expected_id];
    }
    println!("{name}: {same} of {STEPS} greedy ids equal, logits within {furthest:.3}");
    assert!(same >= STEPS - 3, "{same} of {STEPS} greedy ids equal");
}

#[test]
fn the_edge_model_matches_candle_transformers() {
    matches_on_the_real_file("qwen2.5-coder-0.5b-instruct-q4_k_m", 0.2);
}

#[test]
fn the_cloud_model_matches_candle_transformers() {
    matches_on_the_real_file("qwen2.5-coder-1.5b-instruct-q4_k_m", 0.2);
}

#[test]
fn the_llama_model_matches_candle_transformers() {
    matches_on_the_real_file("smollm2-135m-instruct-q4_1", 0.2);
}

/// Golden ids, from the models' published tokenizer files.
#[test]
fn the_real_tokenizers_give_the_published_ids() {
    let qwen = real_model("qwen2.5-coder-0.5b-instruct-q4_k_m");
    let gguf = GgufFile::open(&qwen).unwrap();
    let tokenizer = Tokenizer::load(&gguf).unwrap();
    let ids = tokenizer
        .encode("<|im_start|>user\nHello, world! 1234<|im_end|>\n")
        .unwrap();
    assert_eq!(
        ids,
        [
            151644, 872, 198, 9707, 11, 1879, 0, 220, 16, 17, 18, 19, 151645, 198
        ]
    );
    assert!(tokenizer.is_end(151645) && !tokenizer.is_end(198));
    let template = ChatTemplate::load(&gguf).unwrap();
    let split = template.split("Be brief.", "What is it?").unwrap();
    assert_eq!(split.context, "<|im_start|>system\nBe brief.<|im_end|>\n");
    assert_eq!(
        split.private,
        "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
    );
    let history = [("Who?".to_owned(), "Ann.".to_owned())];
    let later = template
        .split_conversation("Be brief.", &history, "What is it?")
        .unwrap();
    assert_eq!(later.context, split.context);
    assert_eq!(
        later.private,
        format!(
            "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nAnn.<|im_end|>\n{}",
            split.private
        )
    );
}
