//! `celslm align`: fitted bridges between two models' KV.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use celslm::calibration::Calibration;
use celslm::catalogue::Catalogue;
use celslm::config::ModelsConfig;
use celslm::exit::{ExitCode, Verdict};
use celslm::fit;
use celslm::study;
use celslm::training::{self, Told};
use celslm::{bridges, clock};
use celslm_datasets::Document;
use celslm_kv::align::{Bridge, FitCost, Scores, Similarity, TokenAlignment};
use celslm_kv::{AlignError, AlignmentConfig, MappingConfig};
use celslm_model::LoadedModel;
use celslm_reports::{HeatMap, HeatPanel};
use celslm_training::{Losses, TrainingOptions};
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::calibration::{CalibrationArgs, Fitting, make_folder_of, safetensors_in};

/// Fit and inspect bridges: maps of the cloud model's KV into the edge model's
#[derive(Debug, Args)]
pub(crate) struct AlignArgs {
    #[command(subcommand)]
    command: AlignCommand,
}

#[derive(Debug, Subcommand)]
enum AlignCommand {
    /// Fit a bridge on calibration text
    ///
    /// Both models prefill the same contexts, cut from the text; the mapping relates each edge
    /// layer's keys (pre-RoPE) and values to those of the cloud layers that the alignment gives
    /// it. Where the two have different tokens, for each of the edge's stands the cloud's that
    /// covers its last byte. A tenth of the contexts chooses the regularisation, another tenth is held out for R².
    /// Use text that no evaluation asks about.
    #[command(after_help = "\
Examples:
  celslm align fit --text data/calibration
  celslm align fit --text data/calibration --alignment all --mapping joint
  celslm align fit --text data/calibration --alignment all --mapping 'joint = { rank = 512 }'
  celslm align fit --text books --tokens 8000 --out /tmp/small.safetensors")]
    Fit(FitArgs),
    /// Write lessons: contexts of calibration text with questions about them
    ///
    /// The cloud's model writes questions whose answers stand in the text, and for each context
    /// two questions of recall are added. What is there already is kept, and writing goes on
    /// behind it.
    #[command(after_help = "\
Examples:
  celslm align study --text data/calibration --out lessons.jsonl
  celslm align study --text data/calibration/wikitext2.test.txt --contexts 100 --out few.jsonl")]
    Study(StudyArgs),
    /// Train a fitted bridge through the frozen edge model
    ///
    /// Lessons are contexts with questions about them. Each step maps the
    /// cloud's KV of one and moves the map so that the edge's attention reads what it would read
    /// from its own KV, and so that answers are as likely as with it, or as another model finds them
    /// (--teacher). No model changes. A
    /// tenth of the contexts is held out, and what the map does there is printed as it learns.
    /// A run that was stopped goes on where it was when the command is given again. Needs 4 GB of
    /// memory beside the models.
    #[command(after_help = "\
Examples:
  celslm align train --from joint.safetensors --lessons lessons.jsonl --out trained.safetensors
  celslm align train --from joint.safetensors --lessons lessons.jsonl --steps 200 --out t.safetensors
  celslm align train --from joint.safetensors --lessons lessons.jsonl --mapping prefix --attention 0 \\
    --teacher qwen2.5-coder-1.5b-instruct-q4_k_m --out prefix.safetensors")]
    Train(TrainArgs),
    /// Compare every layer of the two models on calibration text
    ///
    /// Prints, for each edge layer, how much of it a linear map of each cloud layer explains
    /// (keys and values averaged), and draws all measures. The alignments `cka`, `cosine` and `r2`
    /// go by these scores; high ones do not promise good answers.
    #[command(after_help = "\
Examples:
  celslm align score --text data/calibration --tokens 8192
  celslm align score --text data/calibration --measure cka --out /tmp/score")]
    Score(ScoreArgs),
    /// List the bridges beside the configurations, with their fit
    Ls,
}

/// How alike two layers are.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Measure {
    /// R² of the best linear map on held-out contexts
    R2,
    /// Cosine between that map's output and the target
    Cosine,
    /// Linear centred kernel alignment
    Cka,
}

impl Measure {
    const ALL: [Self; 3] = [Self::R2, Self::Cosine, Self::Cka];

    const fn name(self) -> &'static str {
        match self {
            Self::R2 => "r2",
            Self::Cosine => "cosine",
            Self::Cka => "cka",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::R2 => "R² of one-layer maps on held-out contexts",
            Self::Cosine => "cosine between one-layer maps and their targets on held-out contexts",
            Self::Cka => "linear centred kernel alignment",
        }
    }

    const fn of(self, similarity: &Similarity) -> &Scores {
        match self {
            Self::R2 => &similarity.r2,
            Self::Cosine => &similarity.cosine,
            Self::Cka => &similarity.cka,
        }
    }
}

#[derive(Debug, Args)]
struct StudyArgs {
    /// Calibration text: files, or folders of .txt files
    #[arg(long, value_name = "PATH", required = true)]
    text: Vec<PathBuf>,
    /// Contexts to write about
    #[arg(long, value_name = "N", default_value_t = 500)]
    contexts: usize,
    /// Words of one context
    #[arg(long, value_name = "N", default_value_t = 150)]
    context_words: usize,
    /// Times that the model is asked for questions about a context, some four each time
    #[arg(long, value_name = "N", default_value_t = 2,
        value_parser = clap::value_parser!(u8).range(1..=6))]
    requests: u8,
    /// Seed: where in the texts the contexts start
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// The model that writes
    #[arg(long, value_name = "NAME", default_value_t = ModelsConfig::default().cloud)]
    cloud: String,
    /// File of lessons, JSON lines
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Debug, Args)]
struct TrainArgs {
    /// The fitted bridge to start from
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// What to make of it: `trained` (its maps), `fuse` (what the cloud's KV adds to the edge's own,
    /// from a joint map), or `prefix` (the edge's own KV behind tuned first tokens). The KV of the
    /// tokens that all contexts begin with is tuned in all of them
    #[arg(long, value_name = "NAME", default_value = "trained", value_parser = bridges::parse_mapping)]
    mapping: MappingConfig,
    /// Begin with the KV of the first tokens that another bridge of the edge's model has tuned
    #[arg(long, value_name = "FILE")]
    first_tokens: Option<PathBuf>,
    /// The model whose distributions are learnt; the edge's if absent
    #[arg(long, value_name = "NAME")]
    teacher: Option<String>,
    /// Lessons, as `celslm align study` writes them
    #[arg(long, value_name = "FILE", required = true)]
    lessons: Vec<PathBuf>,
    /// Steps; each learns from one context, which takes some four seconds on two cores
    #[arg(long, value_name = "N", default_value_t = 500)]
    steps: u64,
    /// Highest learning rate: by how much of its spread a step may move a number of the KV
    #[arg(long, value_name = "RATE", default_value_t = 0.02)]
    learning_rate: f64,
    /// Weight of the error of what attention reads, beside the divergence at answers
    #[arg(long, value_name = "WEIGHT", default_value_t = 1.0)]
    attention: f64,
    /// Weight of the divergence at answers, nats per token
    #[arg(long, value_name = "WEIGHT", default_value_t = 1.0)]
    divergence: f64,
    /// Cloud model
    #[arg(long, value_name = "NAME", default_value_t = ModelsConfig::default().cloud)]
    cloud: String,
    /// Edge model
    #[arg(long, value_name = "NAME", default_value_t = ModelsConfig::default().edge)]
    edge: String,
    /// Where to write it; the pair's default place beside the configurations if absent, whatever
    /// the teacher
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ScoreArgs {
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// What to print; everything is drawn and written
    #[arg(long, value_enum, default_value_t = Measure::R2)]
    measure: Measure,
    /// Cloud model
    #[arg(long, value_name = "NAME", default_value_t = ModelsConfig::default().cloud)]
    cloud: String,
    /// Edge model
    #[arg(long, value_name = "NAME", default_value_t = ModelsConfig::default().edge)]
    edge: String,
    /// Folder for the drawings and the scores
    #[arg(long, value_name = "DIR", default_value = "results/align-score")]
    out: PathBuf,
}

#[derive(Debug, Args)]
struct FitArgs {
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// Alignment to fit for
    #[arg(long, value_name = "NAME", default_value = "depth")]
    alignment: String,
    /// Mapping to fit, with parameters as in a configuration: `joint = { rank = 512 }`;
    /// `celslm ls mappings` has them
    #[arg(long, value_name = "NAME", default_value = "ridge", value_parser = bridges::parse_mapping)]
    mapping: MappingConfig,
    /// Cloud model
    #[arg(long, value_name = "NAME", default_value_t = ModelsConfig::default().cloud)]
    cloud: String,
    /// Edge model
    #[arg(long, value_name = "NAME", default_value_t = ModelsConfig::default().edge)]
    edge: String,
    /// Where to write it; the pair's default place beside the configurations if absent
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(args: &AlignArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        AlignCommand::Fit(args) => fit(args),
        AlignCommand::Study(args) => write_lessons(args),
        AlignCommand::Train(args) => train(args),
        AlignCommand::Score(args) => score(args),
        AlignCommand::Ls => ls(),
    }
}

fn fit(args: &FitArgs) -> anyhow::Result<ExitCode> {
    let alignment = alignment(&args.alignment)?.with_mapping(args.mapping.clone());
    let calibration = args.calibration.calibration();
    let mut fitting = Fitting::begin()?;
    let (cloud, edge) = (fitting.load(&args.cloud)?, fitting.load(&args.edge)?);
    let configs = fitting.catalogue.root();
    let out = args
        .out
        .clone()
        .unwrap_or_else(|| bridges::default_path(configs, &args.cloud, &args.edge, &alignment));
    make_folder_of(&out)?;
    say_tokens(&cloud, &edge, &calibration)?;
    let start = clock::now();
    let mut bridge = fitting.run(calibration.tokens, "tokens", |tell| {
        fit::fit(&cloud, &edge, &alignment, &calibration, tell)
    })?;
    bridge.set_cost(Some(FitCost {
        fit_s: Some(start.elapsed().as_secs_f32()),
        train_s: 0.0,
        threads: threads(),
    }));
    bridge.save(&out)?;
    println!("{}\n{}", out.display(), fit::describe(&bridge));
    Ok(ExitCode::Ok)
}

/// Compute threads, as the fitting commands set them.
fn threads() -> u32 {
    u32::try_from(super::edge::threads(0)).unwrap_or(u32::MAX)
}

/// How long a training run has worked, over the sessions in which it was stopped and went on. Its
/// file lies beside the run's state, and is written whenever that is.
struct Worked {
    path: PathBuf,
    /// Seconds of earlier sessions; `None` where there is a state and no word of what it took.
    before: Option<f32>,
    start: Instant,
}

impl Worked {
    fn begin(state: &Path) -> Self {
        let path = state.with_extension("training-seconds");
        let before = match state.exists() {
            true => std::fs::read_to_string(&path)
                .ok()
                .and_then(|text| text.trim().parse().ok()),
            false => Some(0.0),
        };
        Self {
            path,
            before,
            start: clock::now(),
        }
    }

    fn seconds(&self) -> Option<f32> {
        Some(self.before? + self.start.elapsed().as_secs_f32())
    }

    /// Writes it down for a later session.
    fn note(&self) -> anyhow::Result<()> {
        let Some(seconds) = self.seconds() else {
            return Ok(());
        };
        std::fs::write(&self.path, format!("{seconds}\n"))
            .with_context(|| format!("write {}", self.path.display()))
    }

    /// The run is over. What could not be removed is overwritten by the next run.
    fn end(self) -> Option<f32> {
        let _absent_or_left = std::fs::remove_file(&self.path);
        self.seconds()
    }
}

/// How the tokens of the two models are aligned; says so where they are not the same.
fn say_tokens(
    cloud: &LoadedModel,
    edge: &LoadedModel,
    calibration: &Calibration,
) -> anyhow::Result<TokenAlignment> {
    let tokens = fit::token_alignment(cloud, edge, &calibration.read()?)?;
    if !tokens.is_same() {
        eprintln!(
            "the two models cut text into other tokens: for each of the edge's stands the cloud's \
             that covers its last byte"
        );
    }
    Ok(tokens)
}

fn write_lessons(args: &StudyArgs) -> anyhow::Result<ExitCode> {
    let calibration = Calibration {
        texts: args.text.clone(),
        tokens: 0,
        context_words: args.context_words,
        seed: args.seed,
    };
    let mut fitting = Fitting::begin()?;
    let cloud = fitting.load(&args.cloud)?;
    make_folder_of(&args.out)?;
    let written = std::fs::metadata(&args.out).is_ok_and(|file| file.len() > 0);
    let done = match written {
        true => study::read(&args.out)?,
        false => Vec::new(),
    };
    let mut file = std::fs::File::options()
        .create(true)
        .append(true)
        .open(&args.out)
        .with_context(|| format!("write {}", args.out.display()))?;
    let count = |document: &Document| document.questions.len();
    let mut questions: usize = done.iter().map(count).sum();
    fitting.run(args.contexts, "contexts", |tell| {
        let each = |document: &Document| {
            questions += count(document);
            study::append(&mut file, document)
        };
        let amount = (args.contexts, usize::from(args.requests));
        study::study(&cloud, &calibration, amount, &done, each, tell)
    })?;
    println!(
        "{}\n{} contexts, {questions} questions",
        args.out.display(),
        args.contexts
    );
    Ok(ExitCode::Ok)
}

/// The bridge that training begins at. What its first tokens took counts too.
fn begun(bridge: &Bridge, args: &TrainArgs) -> Result<Bridge, Verdict> {
    let unfit = |error: AlignError| Verdict::Config(format!("{}: {error}", args.from.display()));
    let mut begun = bridge.to_train(args.mapping.clone()).map_err(unfit)?;
    if let Some(path) = &args.first_tokens {
        let other = Bridge::read(path)
            .map_err(|error| Verdict::Config(format!("{}: {error}", path.display())))?;
        let prefix = other
            .prefix()
            .cloned()
            .ok_or_else(|| Verdict::Config(format!("{} holds no first tokens", path.display())))?;
        let costs = begun.manifest().cost.zip(other.manifest().cost);
        begun.set_cost(costs.map(|(own, other)| FitCost {
            train_s: own.train_s + other.train_s,
            ..own
        }));
        begun = begun.with_prefix(prefix).map_err(unfit)?;
    }
    if begun.parts().is_empty() && begun.prefix().is_none() {
        return Err(Verdict::Config(format!(
            "{} holds no KV of common first tokens to tune; fit it again",
            args.from.display()
        )));
    }
    Ok(begun)
}

fn train(args: &TrainArgs) -> anyhow::Result<ExitCode> {
    let bridge = Bridge::read(&args.from)?;
    let bridge = begun(&bridge, args)?;
    let alignment = alignment(bridge.alignment())?.with_mapping(args.mapping.clone());
    if !bridge.tokens().is_same() {
        return Err(Verdict::Config(format!(
            "{} maps between models with different tokens; only bridges between the same ones are \
             trained",
            args.from.display()
        ))
        .into());
    }
    let mut documents = Vec::new();
    for path in &args.lessons {
        documents.extend(study::read(path)?);
    }
    let options = TrainingOptions {
        steps: args.steps,
        learning_rate: args.learning_rate,
        warm_up: (args.steps / 20).max(1),
        attention: args.attention,
        divergence: args.divergence,
    };
    let mut fitting = Fitting::begin()?;
    let (cloud, edge) = (fitting.load(&args.cloud)?, fitting.load(&args.edge)?);
    let other = args.teacher.as_ref().filter(|name| **name != args.edge);
    let teacher = match other.filter(|name| **name != args.cloud) {
        Some(name) => Some(fitting.load(name)?),
        None => None,
    };
    let edge_path = fitting.path(&args.edge)?;
    let configs = fitting.catalogue.root();
    let out = args
        .out
        .clone()
        .unwrap_or_else(|| bridges::default_path(configs, &args.cloud, &args.edge, &alignment));
    make_folder_of(&out)?;
    let state = out.with_extension("training");
    let models = training::Models {
        cloud: &cloud,
        edge: &edge,
        teacher: other.map(|_| teacher.as_ref().unwrap_or(&cloud)),
        edge_path: &edge_path,
    };
    let worked = Worked::begin(&state);
    let trained = fitting.run(args.steps as usize, "steps", |tell| {
        training::train(
            &models,
            &bridge,
            &documents,
            options,
            &state,
            |told| match told {
                Told::HeldOut(step, losses) => {
                    eprintln!("step {step}, held out: {}", stated(losses));
                    // The state was written down with it; before the first step there is none.
                    if step > 0
                        && let Err(error) = worked.note()
                    {
                        eprintln!("{error:#}; the bridge will not say what it took to make it");
                    }
                    true
                }
                Told::Step(step, losses) => {
                    if step % 10 == 0 {
                        eprintln!("step {step}: {}", stated(losses));
                    }
                    tell(step as usize, args.steps as usize)
                }
            },
        )
    });
    if trained.is_err() && state.exists() {
        worked.note()?;
    }
    let mut trained = trained?;
    let before = bridge.manifest().cost;
    trained.set_cost(worked.end().map(|seconds| FitCost {
        fit_s: before.and_then(|cost| cost.fit_s),
        train_s: before.map_or(0.0, |cost| cost.train_s) + seconds,
        threads: threads(),
    }));
    trained.save(&out)?;
    println!("{}\n{}", out.display(), fit::describe(&trained));
    Ok(ExitCode::Ok)
}

fn stated(losses: Losses) -> String {
    format!(
        "attention {:.4}, KL {:.4}, NLL {:.4} (teacher {:.4})",
        losses.attention, losses.kl, losses.nll, losses.teacher_nll
    )
}

/// What `celslm align score` writes beside its drawings.
#[derive(Debug, Serialize)]
struct ScoreFile<'a> {
    schema_version: u32,
    cloud: &'a str,
    edge: &'a str,
    seed: u64,
    #[serde(skip_serializing_if = "TokenAlignment::is_same")]
    tokens: TokenAlignment,
    similarity: &'a Similarity,
}

fn score(args: &ScoreArgs) -> anyhow::Result<ExitCode> {
    let calibration = args.calibration.calibration();
    let mut fitting = Fitting::begin()?;
    let (cloud, edge) = (fitting.load(&args.cloud)?, fitting.load(&args.edge)?);
    std::fs::create_dir_all(&args.out).with_context(|| format!("create {}", args.out.display()))?;
    let tokens = say_tokens(&cloud, &edge, &calibration)?;
    let similarity = fitting.run(calibration.tokens, "tokens", |tell| {
        fit::similarity(&cloud, &edge, &calibration, tell)
    })?;
    let write = |name: &str, text: &str| -> anyhow::Result<PathBuf> {
        let path = args.out.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    };
    let file = ScoreFile {
        schema_version: 1,
        cloud: &args.cloud,
        edge: &args.edge,
        seed: calibration.seed,
        tokens,
        similarity: &similarity,
    };
    let mut written = vec![write(
        "similarity.json",
        &serde_json::to_string_pretty(&file)?,
    )?];
    for measure in Measure::ALL {
        let title = format!("{} → {}: {}", args.cloud, args.edge, measure.title());
        let scores = measure.of(&similarity);
        let panel = |title: &str, rows: &[Vec<f64>]| HeatPanel {
            title: format!("{title}, {}", measure.name()),
            rows: rows.to_vec(),
        };
        let map = HeatMap {
            row_label: "edge layer".to_owned(),
            column_label: "cloud layer".to_owned(),
            panels: vec![panel("keys", &scores.k), panel("values", &scores.v)],
        };
        written.push(write(
            &format!("{}.svg", measure.name()),
            &map.draw(&title),
        )?);
    }
    print!("{}", matrix(args.measure, &similarity));
    for path in written {
        println!("{}", path.display());
    }
    Ok(ExitCode::Ok)
}

/// A measure's scores in hundredths, the best of each row marked.
fn matrix(measure: Measure, similarity: &Similarity) -> String {
    let scores = measure.of(similarity);
    let rows = scores.combined();
    let best = scores.best(1);
    let columns = rows.first().map_or(0, Vec::len);
    let mut text = format!(
        "{}, in hundredths; keys and values averaged; {} tokens, {} held out\n{:>12}",
        measure.title(),
        similarity.fit_tokens,
        similarity.held_out_tokens,
        "edge \\ cloud"
    );
    for column in 0..columns {
        text.push_str(&format!("{column:>4} "));
    }
    for (row, (numbers, best)) in rows.iter().zip(best).enumerate() {
        text.push_str(&format!("\n{row:>12}"));
        for (column, number) in numbers.iter().enumerate() {
            let mark = if best.contains(&column) { '*' } else { ' ' };
            text.push_str(&format!("{:>4.0}{mark}", number * 100.0));
        }
    }
    text.push('\n');
    text
}

/// The alignment of a name, with default parameters.
fn alignment(name: &str) -> Result<AlignmentConfig, Verdict> {
    let known = celslm_kv::align::names();
    let entry = celslm_kv::align::registry()
        .iter()
        .find(|entry| entry.name == name);
    let alignment = entry
        .map(|entry| (entry.example)())
        .filter(AlignmentConfig::needs_bridge);
    alignment.ok_or_else(|| {
        Verdict::Config(format!(
            "no alignment {name:?} that maps through a bridge; known alignments: {}",
            known.join(", ")
        ))
    })
}

fn ls() -> anyhow::Result<ExitCode> {
    let folder = Catalogue::find().root().join("bridges");
    let paths = safetensors_in(&folder);
    if paths.is_empty() {
        println!(
            "no bridge in {}; `celslm align fit` makes one",
            folder.display()
        );
    }
    for path in paths {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        match Bridge::read(&path) {
            Ok(bridge) => println!("{name}\n  {}", fit::describe(&bridge)),
            Err(error) => println!("{name}\n  unusable: {error}"),
        }
    }
    Ok(ExitCode::Ok)
}
