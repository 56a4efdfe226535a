//! Fitting a bridge: both models read the same calibration text, and a ridge regression relates
//! their KV.
//!
//! Contexts are system messages cut from the text, of the kind that runs share, so that
//! positions and template tokens are those of real use. Evaluation data never comes here.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use celslm_kv::AlignmentConfig;
use celslm_kv::align::{Bridge, BridgeEnd, BridgeFitter, FitOptions};
use celslm_systems::LoadedModel;

/// Most bytes of one calibration file.
const MAX_TEXT_BYTES: u64 = 1 << 30;

/// What to fit.
#[derive(Debug, Clone)]
pub struct FitPlan {
    /// The alignment.
    pub alignment: AlignmentConfig,
    /// Text files, or folders of `.txt` files.
    pub texts: Vec<PathBuf>,
    /// Tokens to use in all.
    pub tokens: usize,
    /// Words of one context.
    pub context_words: usize,
    /// Recorded in the bridge, and where in the texts the contexts start.
    pub seed: u64,
}

/// Fits a bridge. `tell` hears of progress: tokens used, tokens in all.
///
/// # Errors
/// Unusable text, two models that do not share a tokenizer, and a fit that does not solve.
pub fn fit(
    cloud: &LoadedModel,
    edge: &LoadedModel,
    plan: &FitPlan,
    mut tell: impl FnMut(usize, usize) -> bool,
) -> anyhow::Result<Bridge> {
    let (texts, hash) = read_texts(&plan.texts)?;
    let method = plan.alignment.method();
    let (source, target) = (end(cloud), end(edge));
    let layer_map = method.layer_map(source.shape.num_layers, target.shape.num_layers)?;
    let created_by = format!("celslm {}", env!("CARGO_PKG_VERSION"));
    let options = FitOptions::new(plan.alignment.id(), &hash, plan.seed, &created_by);
    let mut fitter = BridgeFitter::new(source, target, layer_map, options)?;
    let mut used = 0;
    for context in contexts(&texts, plan.context_words, plan.seed) {
        if used >= plan.tokens {
            break;
        }
        let tokens = cloud.context_tokens(&context)?;
        if tokens != edge.context_tokens(&context)? {
            bail!(
                "the two models do not share a tokenizer: a bridge relates the KV of the same tokens"
            );
        }
        let kv = |model: &LoadedModel| -> anyhow::Result<_> {
            let block = model.decoder.context_kv(&tokens, || true)?;
            block.context("the prefill was stopped")
        };
        fitter.add(&kv(cloud)?, &kv(edge)?)?;
        used += tokens.len();
        if !tell(used, plan.tokens) {
            bail!("interrupted; nothing was written");
        }
    }
    if used < plan.tokens {
        bail!(
            "the text has {used} tokens, {} were asked for: give more text or --tokens {used}",
            plan.tokens
        );
    }
    Ok(fitter.finish()?)
}

fn end(model: &LoadedModel) -> BridgeEnd {
    BridgeEnd {
        fingerprint: model.decoder.fingerprint(),
        shape: model.decoder.kv_shape(),
    }
}

/// The texts in the order of their names, and BLAKE3 over all of them.
fn read_texts(paths: &[PathBuf]) -> anyhow::Result<(Vec<String>, String)> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            let entries =
                std::fs::read_dir(path).with_context(|| format!("read {}", path.display()))?;
            for entry in entries {
                let path = entry?.path();
                if path.extension().is_some_and(|extension| extension == "txt") {
                    files.push(path);
                }
            }
        } else {
            files.push(path.clone());
        }
    }
    files.sort();
    if files.is_empty() {
        bail!("no .txt file in {paths:?}");
    }
    let mut hasher = blake3::Hasher::new();
    let texts = files
        .iter()
        .map(|path| read_text(path, &mut hasher))
        .collect::<anyhow::Result<_>>()?;
    Ok((texts, hasher.finalize().to_hex().to_string()))
}

fn read_text(path: &Path, hasher: &mut blake3::Hasher) -> anyhow::Result<String> {
    let bytes = std::fs::metadata(path)
        .with_context(|| format!("read {}", path.display()))?
        .len();
    if bytes > MAX_TEXT_BYTES {
        bail!(
            "{} has {bytes} bytes: split it, {MAX_TEXT_BYTES} is the limit",
            path.display()
        );
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    hasher.update(text.as_bytes());
    Ok(text)
}

/// Contexts of `words` words, taken from the texts in turn, each text read on from a place that
/// the seed chooses, so that a fit on few tokens still sees every book.
fn contexts(texts: &[String], words: usize, seed: u64) -> impl Iterator<Item = String> {
    let mut pieces: Vec<std::vec::IntoIter<String>> = texts
        .iter()
        .map(|text| {
            let all: Vec<&str> = text.split_whitespace().collect();
            let mut pieces: Vec<String> = all
                .chunks_exact(words.max(1))
                .map(|piece| piece.join(" "))
                .collect();
            if !pieces.is_empty() {
                let start = (seed % pieces.len() as u64) as usize;
                pieces.rotate_left(start);
            }
            pieces.into_iter()
        })
        .collect();
    let mut turn = 0;
    std::iter::from_fn(move || {
        for _ in 0..pieces.len() {
            let index = turn % pieces.len();
            turn += 1;
            if let Some(piece) = pieces[index].next() {
                return Some(piece);
            }
        }
        None
    })
}

/// The summary of a fit, for the terminal.
#[must_use]
pub fn describe(bridge: &Bridge) -> String {
    let manifest = bridge.manifest();
    let (k, v) = manifest.mean_r2();
    format!(
        "{} → {}: {} tokens fitted, {} held out, held-out R² {k:.3} (keys) {v:.3} (values)",
        bridge.source().shape,
        bridge.target().shape,
        manifest.fit_tokens,
        manifest.held_out_tokens
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use celslm_model::synthetic::SyntheticModel;

    #[test]
    fn contexts_take_turns_between_texts() {
        let texts = ["a b c d e f".to_owned(), "x y z".to_owned()];
        let found: Vec<String> = contexts(&texts, 2, 0).collect();
        assert_eq!(found, ["a b", "x y", "c d", "e f"]);
        let found: Vec<String> = contexts(&texts, 2, 1).collect();
        assert_eq!(found, ["c d", "x y", "e f", "a b"]);
    }

    /// A model bridged to itself is an identity, up to the ridge's shrinkage and fp16.
    #[test]
    fn a_model_maps_onto_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let model = SyntheticModel {
            architecture: "qwen2",
            num_layers: 2,
            num_heads: 2,
            num_kv_heads: 1,
            head_dim: 16,
            quantised: false,
            seed: 3,
        };
        model.write(&path).unwrap();
        let model = LoadedModel::load(&path).unwrap();
        let text: String = (0..4000).map(|i| format!("w{} ", i * 7919 % 977)).collect();
        let text_path = dir.path().join("t.txt");
        std::fs::write(&text_path, text).unwrap();
        let plan = FitPlan {
            alignment: "depth".parse::<AlignmentName>().unwrap().0,
            texts: vec![text_path],
            tokens: 4000,
            context_words: 30,
            seed: 1,
        };
        let bridge = fit(&model, &model, &plan, |_, _| true).unwrap();
        let (k, v) = bridge.manifest().mean_r2();
        assert!(k > 0.999 && v > 0.999, "{k} {v}");
        let more = FitPlan {
            tokens: 1 << 20,
            ..plan
        };
        let error = fit(&model, &model, &more, |_, _| true)
            .unwrap_err()
            .to_string();
        assert!(error.contains("give more text"), "{error}");
    }

    struct AlignmentName(AlignmentConfig);
    impl std::str::FromStr for AlignmentName {
        type Err = serde_json::Error;
        fn from_str(name: &str) -> Result<Self, Self::Err> {
            serde_json::from_value(serde_json::json!({ name: {} })).map(Self)
        }
    }
}
