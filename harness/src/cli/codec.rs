//! `celslm codec`: fitted artefacts, and what chains spend their bytes on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use celslm::calibration::{Calibration, as_document};
use celslm::catalogue::Catalogue;
use celslm::config::ModelsConfig;
use celslm::exit::{ExitCode, Verdict};
use celslm::explain::Account;
use celslm::{artefacts, fit};
use celslm_evaluation::Sensitivity;
use celslm_kv::codec::{CodecArtefact, CodecContext, presets};
use celslm_kv::{Codec as _, CodecConfig};
use clap::{Args, Subcommand};

use super::calibration::{CalibrationArgs, Fitting, make_folder_of, safetensors_in};
use super::listing;

/// Fit what codecs need beforehand, and see where their bytes go
///
/// Codecs with the stages `pca` or `prefix` use an artefact: bases, variances, predictors and
/// common first tokens of one model's KV, which both nodes hold. `celslm ls codecs` and `celslm ls
/// presets` list the codecs.
#[derive(Debug, Args)]
pub(crate) struct CodecArgs {
    #[command(subcommand)]
    command: CodecCommand,
}

#[derive(Debug, Subcommand)]
enum CodecCommand {
    /// Fit a model's codec artefact on calibration text
    ///
    /// The model prefills contexts that are cut from the text, behind a run's instruction. Their KV gives each layer's mean,
    /// weights and principal components, what the layers below predict of it, and the first tokens
    /// that all contexts have in common. Before that, noise is added to one head at a time, and what
    /// it does to answers says how much errors there matter. A run finds the result by the name of the edge's model.
    /// Another fit has another id, and cells that use it are other cells. Use text that no
    /// evaluation asks about.
    #[command(after_help = "\
Examples:
  celslm codec fit --text data/calibration
  celslm codec fit --text books --tokens 8000 --sensitivity-contexts 2 \
                   --out /tmp/small.safetensors
  celslm run quick --set models.codec_artefact='\"/tmp/small.safetensors\"'

Exit codes:
  0  fitted and written
  2  no such model
  4  the text cannot be read, or the model is not there and cannot be fetched
  5  there is too little text, or it was interrupted; nothing was written")]
    Fit(FitArgs),
    /// List the artefacts beside the configurations: id, model, tokens, bytes
    Ls,
    /// Show what a codec spends its bytes on
    ///
    /// The model prefills one context that is cut from the text; the codec encodes it in chunks as
    /// the cloud does, with the layers below as the edge will have decoded them. Prints bytes by
    /// part of the payload and by layer, and the ratio to fp16. Nothing crosses a link.
    #[command(after_help = "\
Examples:
  celslm codec explain kivi --text book.txt
  celslm codec explain celslm --text book.txt --context-words 1000
  celslm codec explain exact-s4-w0+pca+step-m500-d15+context --text book.txt \\
                       --artefact /tmp/small.safetensors

Exit codes:
  0  explained
  2  no such codec or model, no artefact where the codec needs one, or one of another model
  4  the text cannot be read, or the model is not there and cannot be fetched
  5  the codec cannot encode this model's KV")]
    Explain(ExplainArgs),
}

#[derive(Debug, Args)]
struct FitArgs {
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// The model whose KV crosses the link: an edge's
    #[arg(long, value_name = "NAME", default_value_t = ModelsConfig::default().edge)]
    model: String,
    /// Contexts on which to measure what errors of each head cost; 0: all errors cost the same
    #[arg(long, value_name = "N", default_value_t = 6)]
    sensitivity_contexts: usize,
    /// Where to write it; the model's default place beside the configurations if absent
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ExplainArgs {
    /// A preset's name or a codec's id
    #[arg(value_name = "CODEC")]
    codec: String,
    /// The text that the context is cut from: a file, or a folder of .txt files
    #[arg(long, value_name = "PATH", required = true)]
    text: PathBuf,
    /// The model whose KV is encoded
    #[arg(long, value_name = "NAME", default_value_t = ModelsConfig::default().edge)]
    model: String,
    /// The artefact, where the codec needs one; the model's default if absent
    #[arg(long, value_name = "FILE")]
    artefact: Option<PathBuf>,
    /// Words of the context
    #[arg(long, value_name = "N", default_value_t = 400)]
    context_words: usize,
    /// Which piece of the text becomes the context
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Tokens of one chunk
    #[arg(long, value_name = "N", default_value_t = celslm_systems::DEFAULT_CHUNK_TOKENS)]
    chunk_tokens: usize,
}

/// Runs the command.
pub(crate) fn run(args: &CodecArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        CodecCommand::Fit(args) => fit(args),
        CodecCommand::Ls => ls(),
        CodecCommand::Explain(args) => explain(args),
    }
}

fn fit(args: &FitArgs) -> anyhow::Result<ExitCode> {
    let calibration = args.calibration.calibration();
    let mut fitting = Fitting::begin()?;
    let model = fitting.load(&args.model)?;
    let configs = fitting.catalogue.root();
    let out = args
        .out
        .clone()
        .unwrap_or_else(|| artefacts::default_path(configs, &args.model));
    make_folder_of(&out)?;
    let sensitivity = match args.sensitivity_contexts {
        0 => None,
        contexts => {
            eprintln!("measuring what errors of each head cost, on {contexts} contexts");
            Some(fitting.run(0, "measurements", |tell| {
                fit::measure_sensitivity(&model, &calibration, contexts, tell)
            })?)
        }
    };
    if let Some(found) = &sensitivity {
        print_sensitivity(found);
    }
    eprintln!("fitting");
    let artefact = fitting.run(calibration.tokens, "tokens", |tell| {
        fit::fit_codec(&model, &calibration, sensitivity.as_ref(), tell)
    })?;
    artefact.save(&out)?;
    println!("{}\n{}", out.display(), describe(&artefact));
    Ok(ExitCode::Ok)
}

/// What an error as large as the variance costs in each head, by layer.
fn print_sensitivity(found: &Sensitivity) {
    println!("nats per answer token and error as large as the variance; keys of each head, values");
    for (layer, heads) in found.by_layer().enumerate() {
        let heads: Vec<String> = heads.iter().map(|x| format!("{x:7.3}")).collect();
        println!("layer {layer:3} {}", heads.join(" "));
    }
}

/// An artefact in a line.
fn describe(artefact: &CodecArtefact) -> String {
    let model = artefact.model();
    let fingerprint: String = model.fingerprint.to_string().chars().take(12).collect();
    format!(
        "{}: KV of {} (model {fingerprint}…), fitted on {} tokens, {} bytes; predicts from {} \
         layers, holds the first {} tokens",
        artefact.id(),
        model.shape,
        artefact.manifest().fit_tokens,
        artefact.file_bytes(),
        artefact.prior_layers(),
        artefact.prefix_tokens()
    )
}

fn ls() -> anyhow::Result<ExitCode> {
    let folder = artefacts::folder(Catalogue::find().root());
    let paths = safetensors_in(&folder);
    if paths.is_empty() {
        println!(
            "no codec artefact in {}; `celslm codec fit` makes one",
            folder.display()
        );
    }
    for path in paths {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        match artefacts::read(&path) {
            Ok(artefact) => println!("{name}\n  {}", describe(&artefact)),
            Err(error) => println!("{name}\n  unusable: {error}"),
        }
    }
    Ok(ExitCode::Ok)
}

fn explain(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let codec = codec(&args.codec)?;
    let text = Calibration {
        texts: vec![args.text.clone()],
        tokens: 0,
        context_words: args.context_words,
        seed: args.seed,
    };
    let context = text.read()?.contexts().next();
    let context = context.ok_or_else(|| {
        Verdict::Config(format!(
            "the text has fewer than {} words: give more, or --context-words N",
            args.context_words
        ))
    })?;
    let mut fitting = Fitting::begin()?;
    let held = match codec.needs_artefact() {
        true => CodecContext::new(artefacts::read(&artefact_path(args, &fitting)).map_err(
            |error| {
                Verdict::Config(format!(
                    "codec {} needs the artefact {}: {error}; fit it with `celslm codec fit \
                     --model {} --text DIR`",
                    artefacts::name(&codec),
                    artefact_path(args, &fitting).display(),
                    args.model
                ))
            },
        )?),
        false => CodecContext::default(),
    };
    let chain = codec
        .build_with(&held)
        .map_err(|error| Verdict::Config(error.to_string()))?;
    if !args.chunk_tokens.is_multiple_of(chain.token_group()) || args.chunk_tokens == 0 {
        let group = chain.token_group();
        let message = format!("--chunk-tokens must be a positive multiple of {group}");
        return Err(Verdict::Config(message).into());
    }
    let model = fitting.load(&args.model)?;
    if let Some(artefact) = &held.artefact
        && artefact.model().fingerprint != model.decoder.fingerprint()
    {
        let message = format!(
            "artefact {} was fitted on KV of model {}, {} is {}",
            artefact.id(),
            artefact.model().fingerprint,
            args.model,
            model.decoder.fingerprint()
        );
        return Err(Verdict::Config(message).into());
    }
    let tokens = model.context_tokens(&as_document(&context))?;
    let block = fit::prefill(&model, &tokens)?;
    let scores = match codec.scored_by() {
        Some(by) => Some(Arc::new(model.decoder.token_scores(&tokens, by)?)),
        None => None,
    };
    let account = Account::of(&block, &chain, args.chunk_tokens, scores)
        .with_context(|| format!("encode with {}", chain.id()))?;
    show(args, &codec, &held, tokens.len(), &account);
    Ok(ExitCode::Ok)
}

fn artefact_path(args: &ExplainArgs, fitting: &Fitting) -> PathBuf {
    let stated = args.artefact.as_deref().map(Path::to_owned);
    stated.unwrap_or_else(|| artefacts::default_path(fitting.catalogue.root(), &args.model))
}

/// A codec by its preset's name or its id.
fn codec(name: &str) -> Result<CodecConfig, Verdict> {
    if let Some(preset) = presets().iter().find(|preset| preset.name == name) {
        return Ok(preset.config());
    }
    name.parse::<CodecConfig>().map_err(|error| {
        let known: Vec<&str> = presets().iter().map(|preset| preset.name).collect();
        Verdict::Config(format!("{error}; presets are {}", known.join(", ")))
    })
}

fn show(
    args: &ExplainArgs,
    codec: &CodecConfig,
    held: &CodecContext,
    tokens: usize,
    account: &Account,
) {
    let name = artefacts::name(codec);
    let mut text = String::new();
    let mut line = |words: String| text += &(words + "\n");
    line(match name == account.codec {
        true => name,
        false => format!("{name}: {}", account.codec),
    });
    line(format!(
        "{tokens} tokens of {}, KV of {}, {} chunks of at most {} tokens",
        args.text.display(),
        args.model,
        account.chunks,
        args.chunk_tokens
    ));
    if let Some(artefact) = &held.artefact {
        line(format!(
            "artefact {}: {} bytes at each end beforehand, none of them counted here",
            artefact.id(),
            artefact.file_bytes()
        ));
    }
    listing::show(&(text + "\n"));
    let heads = ["stage", "part of the payload", "bytes", "share"].map(str::to_owned);
    let mut rows = vec![heads];
    rows.extend(account.parts());
    listing::print("", &rows);
    let heads = ["layer", "bytes", "bits/number", "tokens held", "ratio"].map(str::to_owned);
    let mut rows = vec![heads];
    rows.extend(account.by_layer());
    listing::show("\n");
    listing::print("", &rows);
    listing::show(&format!(
        "\npayload   {} bytes of {} in fp16: ratio {:.2}\n\
         messages  {} bytes with hashes, ids, headers and frames: ratio {:.2}\n",
        account.total.bytes(),
        account.total.fp16_bytes,
        account.ratio(),
        account.message_bytes,
        account.ratio_in_messages()
    ));
}
