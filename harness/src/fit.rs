//! Fitting on calibration text: a bridge, for which both models read the same text and a ridge
//! regression relates their KV, and a codec artefact, which describes one model's KV.

use anyhow::{Context as _, bail};
use celslm_datasets::recall_document;
use celslm_evaluation::{Case, Evaluator, Sensitivity, Settings};
use celslm_kv::align::{
    Bridge, BridgeEnd, BridgeFitter, CommonPrefix, FitOptions, MAX_PREFIX_TOKENS, Similarity,
    SimilarityFitter, TokenAlignment,
};
use celslm_kv::codec::{ArtefactFitter, ArtefactOptions, CodecArtefact};
use celslm_kv::{AlignmentConfig, KvBlock, SourceKind};
use celslm_systems::{DEFAULT_CHUNK_TOKENS, LoadedModel};

use crate::calibration::{Calibration, CalibrationText, as_document};

/// How the cloud's tokens are brought to the edge's in a fit on this text: as its first context
/// needs it.
///
/// # Errors
/// Failures of a tokenizer or a chat template.
pub fn token_alignment(
    cloud: &LoadedModel,
    edge: &LoadedModel,
    text: &CalibrationText,
) -> anyhow::Result<TokenAlignment> {
    let context = as_document(&text.contexts().next().unwrap_or_default());
    let (from, to) = (
        cloud.context_spans(&context)?,
        edge.context_spans(&context)?,
    );
    Ok(TokenAlignment::between(&from, &to))
}

/// The edge's tokens of one context and both models' KV of it as runs would compute it, the
/// cloud's brought to these tokens.
///
/// # Errors
/// Tokens that differ where they should not, failures of a model.
fn pair(
    cloud: &LoadedModel,
    edge: &LoadedModel,
    reads: SourceKind,
    tokens: TokenAlignment,
    piece: &str,
) -> anyhow::Result<(Vec<u32>, KvBlock, KvBlock)> {
    let context = as_document(piece);
    let (from, to) = (
        cloud.context_spans(&context)?,
        edge.context_spans(&context)?,
    );
    let source = read(cloud, reads, &from.tokens)?;
    let source = tokens.aligned(&from, &to, &source)?.into_owned();
    let target = prefill(edge, &to.tokens)?;
    Ok((to.tokens, source, target))
}

/// Compares every layer of the one model with every layer of the other. `tell` hears of progress
/// (tokens used, tokens in all) and says whether to go on.
///
/// # Errors
/// Unusable text, and failures of a model.
pub fn similarity(
    cloud: &LoadedModel,
    edge: &LoadedModel,
    calibration: &Calibration,
    tell: impl FnMut(usize, usize) -> bool,
) -> anyhow::Result<Similarity> {
    let text = calibration.read()?;
    let tokens = token_alignment(cloud, edge, &text)?;
    let mut fitter = SimilarityFitter::new(end(cloud), end(edge), SKIP_TOKENS)?;
    let add = |piece: &str| -> anyhow::Result<usize> {
        let (_, from, to) = pair(cloud, edge, SourceKind::Kv, tokens, piece)?;
        fitter.add(&from, &to)?;
        Ok(from.num_tokens())
    };
    text.feed(add, tell)?;
    Ok(fitter.finish()?)
}

/// Fits a bridge, which also holds the edge's KV of the tokens that all contexts begin with, so that
/// an edge need not compute them. `tell` is as for [`similarity`]. For an alignment that is measured the text is
/// read twice: first to compare the layers, then to fit along the map that follows.
///
/// # Errors
/// Unusable text, failures of a model, a mapping of hidden states along a measured alignment, and a fit
/// that does not solve.
pub fn fit(
    cloud: &LoadedModel,
    edge: &LoadedModel,
    alignment: &AlignmentConfig,
    calibration: &Calibration,
    mut tell: impl FnMut(usize, usize) -> bool,
) -> anyhow::Result<Bridge> {
    let text = calibration.read()?;
    let (source, target) = (end(cloud), end(edge));
    let mut options = FitOptions::new(alignment.id(), &text.hash, calibration.seed, &created_by());
    options.skip_tokens = SKIP_TOKENS;
    options.tokens = token_alignment(cloud, edge, &text)?;
    if let Some(mapping) = alignment.mapping_config() {
        options = options.with_mapping(mapping.clone());
    }
    let reads = options.mapping.method().reads();
    let mut num_source_layers = source.shape.num_layers;
    if reads == SourceKind::States {
        if alignment.needs_similarity() {
            bail!(
                "alignment {} compares layers by their KV and cannot choose among hidden states: \
                 fit along `all`",
                alignment.id()
            );
        }
        let shape = cloud.decoder.states_shape()?;
        num_source_layers = shape.num_layers;
        options.states = Some(shape);
    }
    let similarity = if alignment.needs_similarity() {
        Some(similarity(cloud, edge, calibration, &mut tell)?)
    } else {
        None
    };
    let layer_map = alignment.method().layer_map(
        num_source_layers,
        target.shape.num_layers,
        similarity.as_ref(),
    )?;
    let weighted = options.mapping.method().needs_weights();
    let aligned = options.tokens;
    let mut fitter = BridgeFitter::new(source, target, &layer_map, options)?;
    let mut common: Option<Vec<u32>> = None;
    let add = |piece: &str| -> anyhow::Result<usize> {
        let (tokens, from, to) = pair(cloud, edge, reads, aligned, piece)?;
        match &mut common {
            Some(common) => {
                let same = common.iter().zip(&tokens).take_while(|(a, b)| a == b);
                common.truncate(same.count());
            }
            None => common = Some(tokens.clone()),
        }
        if weighted {
            fitter.add_weighted(&from, &to, &edge.decoder.attention_received(&tokens)?)?;
        } else {
            fitter.add(&from, &to)?;
        }
        Ok(from.num_tokens())
    };
    text.feed(add, &mut tell)?;
    let bridge = fitter.finish()?;
    let mut common = common.unwrap_or_default();
    common.truncate(MAX_PREFIX_TOKENS);
    if common.len() <= SKIP_TOKENS {
        return Ok(bridge);
    }
    let exact = prefill(edge, &common)?;
    Ok(bridge.with_prefix(CommonPrefix::new(common, exact)?)?)
}

/// First tokens that no map is fitted on: attention sinks, better sent exactly.
const SKIP_TOKENS: usize = 4;

/// Share of a head's variance that is added as noise when its sensitivity is measured.
const NOISE: f64 = 0.1;

/// Measures what errors in each head of a model's KV cost: questions of recall on as many contexts
/// of the text, answered from KV with noise in one place at a time. `tell` hears of measurements
/// done, and of all.
///
/// # Errors
/// Unusable text, or a stop.
pub fn measure_sensitivity(
    model: &LoadedModel,
    calibration: &Calibration,
    contexts: usize,
    mut tell: impl FnMut(usize, usize) -> bool,
) -> anyhow::Result<Sensitivity> {
    let evaluator = Evaluator {
        model,
        cloud: None,
        settings: Settings {
            max_tokens: 1,
            chunk_tokens: DEFAULT_CHUNK_TOKENS,
            batch: QUESTIONS,
            now_ns: celslm_systems::clock::now_ns,
            message_bytes: |_, _, _| Ok(0),
        },
    };
    let text = calibration.read()?;
    let mut found = Sensitivity::new(model.decoder.kv_shape());
    let all = contexts * found.measurements();
    let mut done = 0;
    for (index, context) in text.contexts().enumerate() {
        if found.contexts() == contexts {
            break;
        }
        let mut document = recall_document(&format!("context {index}"), &context);
        // From the whole of the context, not from its beginning alone.
        let step = document.questions.len().div_ceil(QUESTIONS).max(1);
        document.questions = document.questions.into_iter().step_by(step).collect();
        if document.questions.is_empty() {
            continue;
        }
        let case = Case::new(&evaluator, &document, &document, || true)?;
        let case = case.context("the prefill was stopped")?;
        let proceed = || {
            done += 1;
            tell(done - 1, all)
        };
        if !found.add(&evaluator, &case, NOISE, proceed)? {
            bail!("interrupted; nothing was written");
        }
    }
    if found.contexts() < contexts {
        bail!(
            "the text has {} contexts with questions, {contexts} were asked for: give more text",
            found.contexts()
        );
    }
    Ok(found)
}

/// Questions of a context whose sensitivity is measured.
const QUESTIONS: usize = 8;

/// Fits a codec artefact for a model's KV, with errors weighted by a measured sensitivity where
/// one is given. `tell` is as for [`fit`].
///
/// # Errors
/// Unusable text, and a fit that does not solve.
pub fn fit_codec(
    model: &LoadedModel,
    calibration: &Calibration,
    sensitivity: Option<&Sensitivity>,
    tell: impl FnMut(usize, usize) -> bool,
) -> anyhow::Result<CodecArtefact> {
    let text = calibration.read()?;
    let mut options = ArtefactOptions::new(&text.hash, &created_by());
    options.sensitivity = sensitivity.map(Sensitivity::factors);
    let mut fitter = ArtefactFitter::new(end(model), options)?;
    let add = |context: &str| -> anyhow::Result<usize> {
        let tokens = model.context_tokens(&as_document(context))?;
        fitter.add(&prefill(model, &tokens)?)?;
        Ok(tokens.len())
    };
    text.feed(add, tell)?;
    Ok(fitter.finish()?)
}

/// A context's KV as a run's cloud would compute it.
///
/// # Errors
/// As [`Decoder::context_kv`](celslm_model::Decoder::context_kv).
pub fn prefill(model: &LoadedModel, tokens: &[u32]) -> anyhow::Result<KvBlock> {
    read(model, SourceKind::Kv, tokens)
}

/// What a bridge reads of a context, as a run's cloud would compute it.
///
/// # Errors
/// As [`Decoder::context_source`](celslm_model::Decoder::context_source).
pub fn read(model: &LoadedModel, reads: SourceKind, tokens: &[u32]) -> anyhow::Result<KvBlock> {
    let block = model.decoder.context_source(reads, tokens, || true)?;
    block.context("the prefill was stopped")
}

fn created_by() -> String {
    format!("celslm {}", env!("CARGO_PKG_VERSION"))
}

/// What a model's fingerprint and shape are.
#[must_use]
pub fn end(model: &LoadedModel) -> BridgeEnd {
    BridgeEnd {
        fingerprint: model.decoder.fingerprint(),
        shape: model.decoder.kv_shape(),
    }
}

/// The summary of a fit, for the terminal.
#[must_use]
pub fn describe(bridge: &Bridge) -> String {
    let manifest = bridge.manifest();
    let (k, v) = manifest.mean_r2();
    let of = match bridge.reads() {
        SourceKind::Kv => "",
        SourceKind::States => "hidden states of ",
    };
    let tokens = match bridge.tokens() {
        TokenAlignment::Same => String::new(),
        other => format!(", tokens by {other}"),
    };
    let training = manifest.training.map_or_else(String::new, |training| {
        let teacher = match training.teacher == bridge.target().fingerprint {
            true => "the edge's model",
            false => "another model",
        };
        format!(
            "; begun there, then {} steps with {teacher} as teacher: held-out KL {:.3} before, {:.3} after",
            training.steps, training.kl[0], training.kl[1]
        )
    });
    format!(
        "{of}{} → {}, {} {}{tokens}: {} tokens fitted, {} held out, held-out R² {k:.3} (keys) {v:.3} (values){training}",
        bridge.source().shape,
        bridge.target().shape,
        bridge.alignment(),
        bridge.mapping(),
        manifest.fit_tokens,
        manifest.held_out_tokens
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridges::parse_mapping;
    use celslm_kv::MappingConfig;
    use celslm_model::synthetic::SyntheticModel;

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
        let AlignmentName(alignment) = "depth".parse().unwrap();
        let calibration = Calibration {
            texts: vec![text_path],
            tokens: 4000,
            context_words: 30,
            seed: 1,
        };
        let bridge = fit(&model, &model, &alignment, &calibration, |_, _| true).unwrap();
        let (k, v) = bridge.manifest().mean_r2();
        assert!(k > 0.999 && v > 0.999, "{k} {v}");
        // Attention decides what counts, and a measured alignment finds each layer itself.
        let AlignmentName(measured) = "r2".parse().unwrap();
        let measured = measured.with_mapping(MappingConfig::WeightedRidge);
        let mut told = Vec::new();
        let bridge = fit(&model, &model, &measured, &calibration, |used, _| {
            told.push(used);
            true
        })
        .unwrap();
        let (k, v) = bridge.manifest().mean_r2();
        assert!(k > 0.999 && v > 0.999, "{k} {v}");
        assert_eq!(bridge.mapping(), &MappingConfig::WeightedRidge);
        let again = told.windows(2).position(|pair| pair[1] < pair[0]);
        assert!(again.is_some(), "the text is read twice");
        let scores = similarity(&model, &model, &calibration, |_, _| true).unwrap();
        assert_eq!(scores.r2.best(1), [[0], [1]]);
        // What a layer computes is linear in the state that it is given.
        let states = |alignment: &AlignmentConfig| {
            let mapping = parse_mapping("joint = { source = \"states\", stride = 1 }").unwrap();
            let alignment = alignment.clone().with_mapping(mapping);
            fit(&model, &model, &alignment, &calibration, |_, _| true)
        };
        let AlignmentName(all) = "all".parse().unwrap();
        let bridge = states(&all).unwrap();
        assert_eq!(bridge.reads(), SourceKind::States);
        assert!(describe(&bridge).starts_with("hidden states of 2 layers"));
        let (k, v) = bridge.manifest().mean_r2();
        assert!(k > 0.99 && v > 0.99, "{k} {v}");
        let AlignmentName(measured) = "r2".parse().unwrap();
        let error = states(&measured).unwrap_err().to_string();
        assert!(error.contains("fit along `all`"), "{error}");
        let artefact = fit_codec(&model, &calibration, None, |_, _| true).unwrap();
        assert!(artefact.manifest().fit_tokens >= 3900, "sinks are left out");
        assert!(
            artefact.prefix_tokens() > 0,
            "the template's first tokens are common"
        );
        assert_eq!(artefact.model().fingerprint, model.decoder.fingerprint());
        assert!(!artefact.manifest().sensitivity);
        let long = Calibration {
            context_words: 60,
            ..calibration.clone()
        };
        let mut told = Vec::new();
        let measured = measure_sensitivity(&model, &long, 1, |done, all| {
            told.push((done, all));
            true
        })
        .unwrap();
        assert_eq!(told, (0..4).map(|done| (done, 4)).collect::<Vec<_>>());
        let weighted = fit_codec(&model, &calibration, Some(&measured), |_, _| true).unwrap();
        assert!(weighted.manifest().sensitivity);
        assert_ne!(weighted.id(), artefact.id());
        assert!(fit_codec(&model, &calibration, None, |_, _| false).is_err());
        let more = Calibration {
            tokens: 1 << 20,
            ..calibration
        };
        let error = fit(&model, &model, &alignment, &more, |_, _| true)
            .unwrap_err()
            .to_string();
        assert!(error.contains("give more text"), "{error}");
    }

    #[test]
    fn models_with_other_tokens_are_fitted_by_offsets() {
        let dir = tempfile::tempdir().unwrap();
        let model = |name: &str, merges: &[(&str, &str)]| {
            let path = dir.path().join(name);
            let model = SyntheticModel {
                architecture: "qwen2",
                num_layers: 2,
                num_heads: 2,
                num_kv_heads: 1,
                head_dim: 16,
                quantised: false,
                seed: 3,
            };
            model.write_with_merges(&path, merges).unwrap();
            LoadedModel::load(&path).unwrap()
        };
        let (cloud, edge) = (model("a", &[]), model("b", &[("Ġ", "w"), ("1", "2")]));
        let text: String = (0..4000).map(|i| format!("w{} ", i * 7919 % 977)).collect();
        let text_path = dir.path().join("t.txt");
        std::fs::write(&text_path, text).unwrap();
        let calibration = Calibration {
            texts: vec![text_path],
            tokens: 3000,
            context_words: 30,
            seed: 1,
        };
        let AlignmentName(alignment) = "r2".parse().unwrap();
        let bridge = fit(&cloud, &edge, &alignment, &calibration, |_, _| true).unwrap();
        assert_eq!(bridge.tokens(), TokenAlignment::Offsets);
        assert!(describe(&bridge).contains("tokens by offsets"));
    }

    struct AlignmentName(AlignmentConfig);
    impl std::str::FromStr for AlignmentName {
        type Err = serde_json::Error;
        fn from_str(name: &str) -> Result<Self, Self::Err> {
            serde_json::from_value(serde_json::json!({ name: {} })).map(Self)
        }
    }
}
