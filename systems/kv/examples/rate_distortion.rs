//! Rate and distortion of codec chains on stored KV: fits an artefact on the contexts of one
//! folder and prints, for chains given by id, preset or family (`family:kivi`), what they send and
//! lose on another.
//!
//! `cargo run --release -p celslm-kv --example rate_distortion -- FIT HELD_OUT [CHAIN…]`
//!
//! The folders hold contexts as a replayed cloud records them: a line of JSON with the block's
//! `spec`, then per layer keys and values as little-endian fp16. Sizes are payloads of chunks of
//! 256 tokens; distortion is relative to the variance of each layer's keys and values, without the
//! first four tokens.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use celslm_kv::align::BridgeEnd;
use celslm_kv::block::BlockSpec;
use celslm_kv::codec::{
    ArtefactFitter, ArtefactOptions, Beside, Chain, Codec as _, CodecArtefact, CodecConfig,
    CodecContext, Explanation, TileShape, TileSpec, presets, sweep,
};
use celslm_kv::{Assembler, ChunkEncoder, KvBlock, LayerKv, chunk};
use half::f16;

/// Tokens at the start of a context that figures leave out.
const SKIP: usize = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [fit_on, held_out, chains @ ..] = arguments.as_slice() else {
        return Err("usage: rate_distortion FIT HELD_OUT [CHAIN…]".into());
    };
    let artefact = fit(Path::new(fit_on))?;
    println!(
        "artefact {}: {} tokens, predicts from {} layers, {:.1} MB (not on the wire)",
        artefact.id(),
        artefact.manifest().fit_tokens,
        artefact.prior_layers(),
        artefact.file_bytes() as f64 / 1e6
    );
    let context = CodecContext::new(Arc::new(artefact));
    let blocks = read_folder(Path::new(held_out))?;
    println!("| chain | bits/number | ratio | K MSE/var | V MSE/var | K cosine | V cosine |");
    println!("|---|---|---|---|---|---|---|");
    let defaults: Vec<String> = presets().iter().map(|p| p.name.to_owned()).collect();
    let mut names = Vec::new();
    for name in if chains.is_empty() { &defaults } else { chains } {
        match name.strip_prefix("family:") {
            Some(family) => names.extend(sweep(family)?.iter().map(CodecConfig::id)),
            None => names.push(name.clone()),
        }
    }
    for name in &names {
        let preset = presets().iter().find(|preset| preset.name == name);
        let config = match preset {
            Some(preset) => preset.config(),
            None => name.parse::<CodecConfig>()?,
        };
        let chain = config.build_with(&context)?;
        match score(&chain, &blocks) {
            Ok(score) => score.print(name),
            Err(error) => println!("| {name} | {error} |"),
        }
    }
    Ok(())
}

fn fit(folder: &Path) -> Result<CodecArtefact, Box<dyn Error>> {
    if folder.is_file() {
        return Ok(CodecArtefact::read(folder)?);
    }
    let blocks = read_folder(folder)?;
    let first = blocks.first().ok_or("no contexts to fit on")?;
    let model = BridgeEnd {
        fingerprint: *first.fingerprint(),
        shape: first.shape(),
    };
    let number = |name: &str, default: u32| -> Result<u32, std::num::ParseIntError> {
        std::env::var(name).map_or(Ok(default), |text| text.parse())
    };
    let mut options = ArtefactOptions::new("see the command", "rate_distortion");
    options.prior_layers = number("PRIOR_LAYERS", 2)? as usize;
    options.noise = number("NOISE", 20)?;
    let mut fitter = ArtefactFitter::new(model, options)?;
    for block in &blocks {
        fitter.add(block)?;
    }
    let artefact = fitter.finish()?;
    if let Ok(path) = std::env::var("SAVE") {
        artefact.save(Path::new(&path))?;
    }
    Ok(artefact)
}

fn read_folder(folder: &Path) -> Result<Vec<KvBlock>, Box<dyn Error>> {
    let mut paths: Vec<_> = std::fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    paths.sort();
    paths.iter().map(|path| read_block(path)).collect()
}

fn read_block(path: &Path) -> Result<KvBlock, Box<dyn Error>> {
    let bytes = std::fs::read(path)?;
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or("no first line")?;
    let head: serde_json::Value = serde_json::from_slice(&bytes[..end])?;
    let spec: BlockSpec = serde_json::from_value(head["spec"].clone())?;
    spec.validate()?;
    let numbers: Vec<f16> = bytes[end + 1..]
        .chunks_exact(2)
        .map(|pair| f16::from_le_bytes([pair[0], pair[1]]))
        .collect();
    let layers = numbers
        .chunks_exact(2 * spec.layer_elements())
        .map(|layer| {
            let (k, v) = layer.split_at(spec.layer_elements());
            let (k, v) = (k.to_vec(), v.to_vec());
            LayerKv { k, v }
        })
        .collect();
    Ok(KvBlock::from_spec(spec, layers)?)
}

/// Sums over tokens of one side of one layer.
#[derive(Debug, Clone, Default)]
struct Sums {
    error: f64,
    cosine: f64,
    rows: f64,
    /// Per channel: sum and sum of squares.
    channels: Vec<(f64, f64)>,
}

#[derive(Debug, Default)]
struct Score {
    payload: usize,
    fp16: usize,
    /// Payload by layer.
    by_layer: Vec<usize>,
    /// By layer, then by side.
    sums: Vec<[Sums; 2]>,
    account: Explanation,
}

fn score(chain: &Chain, blocks: &[KvBlock]) -> Result<Score, Box<dyn Error>> {
    let mut score = Score::default();
    for block in blocks {
        let spec = block.spec();
        score.sums.resize(spec.shape.num_layers, Default::default());
        score.by_layer.resize(spec.shape.num_layers, 0);
        let mut assembler =
            Assembler::new(spec.clone(), vec![chain.clone()], u64::MAX)?.with_dropped(true);
        let mut encoder = ChunkEncoder::new(chain.clone());
        for (layer, tokens) in chunk::plan(spec, chunk::DEFAULT_CHUNK_TOKENS, chain)? {
            let chunk = encoder.encode(block, layer, tokens.clone())?;
            score.payload += chunk.payload.len();
            score.by_layer[layer] += chunk.payload.len();
            if chain.prior_layers() == 0 {
                let heads = spec.shape.num_kv_heads;
                let shape = TileShape::new(heads, tokens.len(), spec.shape.head_dim)?;
                let place = TileSpec {
                    shape,
                    layer,
                    num_layers: spec.layer_range().end,
                    first_token: tokens.start,
                    end_token: spec.positions.end,
                };
                let account = chain.explain(place, Beside::default(), &chunk.payload)?;
                score.account.add(&account);
            }
            if let Some((layer, kv)) = assembler.accept(&chunk)? {
                let own = block.layer(layer).ok_or("a layer that was not sent")?;
                let sums = &mut score.sums[layer];
                compare(&own.k, &kv.k, spec, &mut sums[0]);
                compare(&own.v, &kv.v, spec, &mut sums[1]);
            }
        }
        score.fp16 += block.fp16_bytes() as usize;
    }
    Ok(score)
}

fn compare(own: &[f16], other: &[f16], spec: &BlockSpec, sums: &mut Sums) {
    let (tokens, head_dim) = (spec.num_tokens(), spec.shape.head_dim);
    sums.channels.resize(spec.shape.width(), (0.0, 0.0));
    let rows = own.chunks_exact(head_dim).zip(other.chunks_exact(head_dim));
    for (index, (own, other)) in rows.enumerate() {
        if index % tokens < SKIP {
            continue;
        }
        let (mut dot, mut a, mut b) = (0.0, 0.0, 0.0);
        let channels = &mut sums.channels[index / tokens * head_dim..][..head_dim];
        for ((x, y), channel) in own.iter().zip(other).zip(channels) {
            let (x, y) = (x.to_f64(), y.to_f64());
            sums.error += (x - y) * (x - y);
            channel.0 += x;
            channel.1 += x * x;
            dot += x * y;
            a += x * x;
            b += y * y;
        }
        sums.cosine += if a * b > 0.0 {
            dot / (a * b).sqrt()
        } else {
            0.0
        };
        sums.rows += 1.0;
    }
}

impl Sums {
    /// Mean squared error over the variance, and mean cosine.
    fn finish(&self, heads: usize) -> (f64, f64) {
        let tokens = self.rows / heads as f64;
        let variance: f64 = self
            .channels
            .iter()
            .map(|(sum, squares)| squares - sum * sum / tokens)
            .sum();
        (self.error / variance, self.cosine / self.rows)
    }
}

impl Score {
    fn print(&self, name: &str) {
        let layers = self.sums.len() as f64;
        let mut means = [(0.0, 0.0); 2];
        for sums in &self.sums {
            for (mean, sums) in means.iter_mut().zip(sums) {
                let heads = (sums.channels.len() / 64).max(1);
                let (error, cosine) = sums.finish(heads);
                *mean = (mean.0 + error / layers, mean.1 + cosine / layers);
            }
        }
        let ratio = self.fp16 as f64 / self.payload as f64;
        let [k, v] = means;
        println!(
            "| {name} | {:.3} | {ratio:.2} | {:.4} | {:.4} | {:.4} | {:.4} |",
            16.0 / ratio,
            k.0,
            v.0,
            k.1,
            v.1
        );
        if std::env::var_os("EXPLAIN").is_some() {
            for part in &self.account.parts {
                let share = part.bytes as f64 * 100.0 / self.payload as f64;
                eprintln!("    {share:5.1}% {} of {}", part.what, part.stage);
            }
        }
        if std::env::var_os("LAYERS").is_some() {
            for (layer, sums) in self.sums.iter().enumerate() {
                let [k, v] = [0, 1].map(|side| sums[side].finish(2).0);
                let bits = 16.0 * layers * self.by_layer[layer] as f64 / self.fp16 as f64;
                eprintln!("    layer {layer:2}: {bits:.3} bits, K {k:.4} V {v:.4}");
            }
        }
    }
}
