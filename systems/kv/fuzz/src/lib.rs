//! What the fuzz targets share: chains with an artefact, synthetic KV, and a bound on memory.
//!
//! A target is a function of bytes in the module of its name. It panics where a promise of the
//! crate under test does not hold; all else is for the crate to refuse.

pub mod artefact;
pub mod chunk;
pub mod config;
pub mod decode;

use std::alloc::System;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use cap::Cap;
use celslm_kv::codec::{
    ArtefactFitter, ArtefactOptions, Chain, Codec as _, CodecConfig, CodecContext, TokenScores,
    names, presets, registry,
};
use celslm_kv::{BridgeEnd, KeyRope, KvBlock, KvShape, LayerKv, ModelFingerprint};
use half::f16;

#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, usize::MAX);

/// Heads and channels of the model that the artefact is fitted for.
pub const HEADS: usize = 1;
pub const HEAD_DIM: usize = 32;
pub const LAYERS: usize = 2;

/// Runs `work` with at most `bytes` more memory than there is now; beyond that the process is
/// aborted, which the fuzzer reports.
pub fn within<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let now = MEMORY.allocated();
    MEMORY
        .set_limit(now.saturating_add(bytes))
        .expect("a limit above what is allocated");
    let outcome = work();
    MEMORY.set_limit(usize::MAX).expect("no limit");
    outcome
}

/// Inputs with the names of their files.
pub type Seeds = Vec<(String, Vec<u8>)>;

/// What a target does before it fuzzes: where `CELSLM_FUZZ_SEEDS` names a folder, it writes valid
/// inputs there and exits; where `CELSLM_FUZZ_LIST` is set, it prints the names of the stages and
/// exits.
///
/// # Panics
/// If the folder cannot be written to.
pub fn start(seeds: fn() -> Seeds) {
    if let Some(folder) = std::env::var_os("CELSLM_FUZZ_SEEDS") {
        let folder = Path::new(&folder);
        std::fs::create_dir_all(folder).expect("a folder for the seeds");
        for (name, bytes) in seeds() {
            std::fs::write(folder.join(name), bytes).expect("a file for a seed");
        }
        std::process::exit(0);
    }
    if std::env::var_os("CELSLM_FUZZ_LIST").is_some() {
        names().iter().for_each(|name| println!("{name}"));
        std::process::exit(0);
    }
}

/// A chain with the tag by which inputs name it.
#[derive(Debug)]
pub struct Entry {
    pub tag: u16,
    pub chain: Chain,
}

/// The chains under test: those of the stage or preset that `CELSLM_FUZZ_DECODER` names, or all.
///
/// # Panics
/// If there is none of that name.
pub fn chains() -> &'static [Entry] {
    static CHAINS: OnceLock<Vec<Entry>> = OnceLock::new();
    CHAINS.get_or_init(|| {
        let wanted = std::env::var("CELSLM_FUZZ_DECODER").ok();
        let entries = entries(|name| wanted.as_deref().is_none_or(|wanted| wanted == name));
        assert!(!entries.is_empty(), "no decoder is called {wanted:?}");
        entries
    })
}

/// The chains of one stage or preset.
pub fn named(wanted: &str) -> Vec<Entry> {
    entries(|name| name == wanted)
}

/// The chains of stages and presets, each once.
fn entries(is_wanted: impl Fn(&str) -> bool) -> Vec<Entry> {
    let mut configs: Vec<CodecConfig> = Vec::new();
    let stages = registry().iter().filter(|entry| is_wanted(entry.name));
    configs.extend(stages.flat_map(|entry| (entry.examples)()));
    let presets = presets().iter().filter(|preset| is_wanted(preset.name));
    configs.extend(presets.map(|preset| preset.config()));
    let mut entries: Vec<Entry> = Vec::new();
    for config in configs {
        let tag = tag(&config.id());
        if entries.iter().all(|entry| entry.tag != tag) {
            let chain = config
                .build_with(context())
                .expect("no id names an artefact");
            entries.push(Entry { tag, chain });
        }
    }
    entries
}

/// The chain that two bytes name; any others name some chain too.
pub fn chain(chains: &'static [Entry], tag: u16) -> &'static Chain {
    let entry = chains.iter().find(|entry| entry.tag == tag);
    &entry
        .unwrap_or(&chains[usize::from(tag) % chains.len()])
        .chain
}

/// Sixteen bits of an id, the same for as long as the id is: FNV-1a.
fn tag(id: &str) -> u16 {
    let hash = id.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    (hash ^ (hash >> 16)) as u16
}

/// An artefact of [`LAYERS`] layers, fitted once, with a layer to predict from.
pub fn context() -> &'static CodecContext {
    static CONTEXT: OnceLock<CodecContext> = OnceLock::new();
    CONTEXT.get_or_init(|| {
        let model = BridgeEnd {
            fingerprint: ModelFingerprint::from_bytes([1; 32]),
            shape: shape(HEADS, HEAD_DIM),
        };
        CodecContext::new(Arc::new(fit(model)))
    })
}

/// An artefact for a model, fitted on four synthetic contexts.
pub fn fit(model: BridgeEnd) -> celslm_kv::codec::CodecArtefact {
    let mut options = ArtefactOptions::new("none", "fuzz");
    options.prior_layers = 1;
    let mut fitter = ArtefactFitter::new(model, options).expect("options in range");
    for seed in 0..4 {
        fitter
            .add(&block(model, 200, seed))
            .expect("finite numbers");
    }
    fitter.finish().expect("enough tokens")
}

/// A shape of [`LAYERS`] layers.
pub fn shape(heads: usize, head_dim: usize) -> KvShape {
    KvShape::new(LAYERS, heads, head_dim).expect("no zero dimension")
}

/// A block of finite numbers with offsets by channel; the first three tokens are always the same.
pub fn block(model: BridgeEnd, tokens: usize, seed: u64) -> KvBlock {
    let KvShape {
        num_layers,
        num_kv_heads,
        head_dim,
    } = model.shape;
    let side = |seed: u64| -> Vec<f16> {
        let mut side = numbers(num_kv_heads * tokens * head_dim, head_dim, seed);
        for head in side.chunks_exact_mut(tokens * head_dim) {
            head[..3.min(tokens) * head_dim].fill(f16::ONE);
        }
        side
    };
    let layers = (0..num_layers as u64).map(|layer| LayerKv {
        k: side(seed * 16 + layer),
        v: side(!(seed * 16 + layer)),
    });
    KvBlock::new(
        model.fingerprint,
        model.shape,
        0,
        0..tokens,
        KeyRope::Pre,
        layers.collect(),
    )
    .expect("layers of the shape")
}

/// Finite numbers, with an offset per channel as keys have them.
pub fn numbers(count: usize, head_dim: usize, seed: u64) -> Vec<f16> {
    let mut state = seed;
    (0..count)
        .map(|index| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let noise = (state >> 40) as f32 / (1 << 24) as f32 - 0.5;
            let offset = ((index % head_dim) as f32 * 0.7).sin() * 4.0;
            f16::from_f32(offset + noise * 3.0)
        })
        .collect()
}

/// Scores of 512 tokens of every layer, in no order.
pub fn scores() -> TokenScores {
    let layer: Vec<f32> = (0..512).map(|t| (t * 7919 % 509) as f32).collect();
    TokenScores::new(0, 0, vec![layer; LAYERS]).expect("layers of one length")
}

/// Whether what a chain decodes may hold a NaN or an infinity: where fp16 numbers travel as they
/// are, nothing looks at them.
pub fn passes_fp16(chain: &Chain) -> bool {
    let id = chain.id();
    id.split('+')
        .any(|stage| stage == "identity" || stage.starts_with("exact"))
}
