//! `celslm run` of an experiment in process.

use std::io::IsTerminal as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::Context as _;
use celslm::catalogue::Catalogue;
use celslm::config::{ConfigSource, EvaluationFile};
use celslm::evaluation::{
    ArmSpec, Evaluation, EvaluationInputs, EvaluationManifest, EvaluationPlan, EvaluationStore,
    Found, PlannedArm, Progress,
};
use celslm::exit::{ExitCode, Verdict};
use celslm::manifest::RunState;
use celslm::reporting;
use celslm::{artefacts, bridges, clock};
use celslm_model::GgufFile;
use celslm_model::store::{BarProgress, ModelSpec, ModelStore};
use celslm_reports::evaluation::ContextRow;
use celslm_systems::LoadedModel;
use celslm_training::FrozenDecoder;
use indicatif::{ProgressBar, ProgressStyle};

use super::listing;
use super::prepare::RunArgs;
use super::run::{PLAIN_INTERVAL, watch_for_interrupts};

/// Runs the command for a file that describes an evaluation.
pub(crate) fn run(
    args: &RunArgs,
    source: &ConfigSource,
    catalogue: &Catalogue,
) -> anyhow::Result<ExitCode> {
    if args.shard.is_some() {
        let message = "an evaluation in process has no shards; give each share its own codecs";
        return Err(Verdict::Config(message.to_owned()).into());
    }
    let file = source.parse_evaluation()?;
    let mut inputs = catalogue.gather_evaluation(&file, source)?;
    let codecs = file.codecs().into_iter().map(|(_, codec)| codec);
    let artefact = artefacts::resolve(codecs, &file.models, catalogue.root())?;
    inputs.artefact = artefact.map(|file| file.artefact);
    inputs.bridges = bridges::of_evaluation(&file, catalogue.root())?;
    let plan = EvaluationPlan::new(&file, &inputs)?;
    let dir = Path::new(&args.out).join(&file.experiment.name);
    if args.dry_run {
        describe(&file, &inputs, &plan, &dir);
        return Ok(ExitCode::Ok);
    }
    let stop = Arc::new(AtomicBool::new(false));
    watch_for_interrupts(&stop)?;
    let (mut store, found) = match args.resume {
        true => EvaluationStore::resume(&dir, &plan)?,
        false => EvaluationStore::create(&dir)?,
    };
    let mut manifest = EvaluationManifest::new(&file, &inputs, &plan);
    match found {
        Found::Nothing => {}
        Found::Earlier(aside) => eprintln!("an earlier run was moved to {}", aside.display()),
        Found::Rows(rows) => {
            eprintln!("going on with {}: {rows} contexts are done", dir.display());
            manifest.continue_from(&store.manifest()?);
        }
    }
    store.write_manifest(&manifest)?;
    store.write_setting(&file, &manifest.environment)?;
    reporting::evaluation_input(&dir, &file, &inputs, &plan, &manifest).write()?;

    let mut screen = Screen::new(rows(&inputs, &plan), store.rows());
    let ran = evaluate(&file, &inputs, &plan, &stop, &mut store, &mut screen);
    screen.bar.finish_and_clear();
    manifest.end(match &ran {
        Err(_) => RunState::Failed,
        Ok(true) => RunState::Complete,
        Ok(false) => RunState::Interrupted,
    });
    store.write_manifest(&manifest)?;
    let mut input = reporting::evaluation_input(&dir, &file, &inputs, &plan, &manifest);
    input.notes.extend(
        screen
            .refused
            .iter()
            .map(|(arm, reason)| format!("{arm} could not be evaluated: {reason}")),
    );
    input.write()?;
    // An error during the run outranks everything that could be said about its rows.
    let finished = ran?;
    let report = celslm_reports::evaluation::build(&input)?;
    listing::show(&report.terminal());
    println!("\nreport: {}", dir.join("report.md").display());
    println!("        {}", dir.join("report.html").display());
    if !finished {
        let again = format!("celslm run {} --resume", args.config.display());
        return Err(Verdict::Measurement(format!("interrupted; `{again}` goes on")).into());
    }
    if let Some((arm, reason)) = screen.refused.first() {
        let message = format!(
            "{} arms could not be evaluated on every context; the first, {arm}: {reason}",
            screen.refused.len()
        );
        return Err(Verdict::Measurement(message).into());
    }
    Ok(ExitCode::Ok)
}

fn evaluate(
    file: &EvaluationFile,
    inputs: &EvaluationInputs,
    plan: &EvaluationPlan,
    stop: &Arc<AtomicBool>,
    store: &mut EvaluationStore,
    screen: &mut Screen,
) -> anyhow::Result<bool> {
    if store.rows() == rows(inputs, plan) {
        eprintln!("every context has its row; nothing is run");
        return Ok(true);
    }
    celslm_model::set_threads(super::edge::threads(file.evaluation.threads))?;
    let models = ModelStore::open_default()?;
    let mut progress = BarProgress::new().cancel_on(Arc::clone(stop));
    let mut load = |spec: &ModelSpec| {
        let path = models.fetch(spec, &mut progress)?;
        eprintln!("loading {}", spec.name);
        LoadedModel::load(&path).context("load the model")
    };
    let model = load(&inputs.edge_model)?;
    let cloud = inputs.cloud_model.as_ref().map(load).transpose()?;
    if let Some(cloud) = &cloud {
        for input in &inputs.bridges {
            // A control maps the edge's own KV.
            let from = if input.maps_onto_itself() {
                &model
            } else {
                cloud
            };
            let ends = [from, &model].map(celslm::fit::end);
            input
                .bridge
                .check_models(&ends[0], &ends[1])
                .map_err(|error| {
                    Verdict::Config(format!("the bridge {}: {error}", input.path.display()))
                })?;
        }
    }
    let distils = |arm: &PlannedArm| matches!(arm.spec, ArmSpec::Distilled { .. });
    let frozen = match plan.arms.iter().any(distils) {
        true => {
            let path = models.fetch(&inputs.edge_model, &mut BarProgress::new())?;
            eprintln!("widening {}", inputs.edge_model.name);
            let mut gguf = GgufFile::open(&path)?;
            let decoder = FrozenDecoder::load(&mut gguf, &celslm_training::default_device()?)?;
            Some(Arc::new(decoder))
        }
        false => None,
    };
    let evaluation = Evaluation {
        file,
        inputs,
        plan,
        model: &model,
        cloud: cloud.as_ref(),
        frozen,
        stop,
    };
    evaluation.run(store, screen)
}

/// Rows of a whole evaluation.
fn rows(inputs: &EvaluationInputs, plan: &EvaluationPlan) -> usize {
    let arms = plan.arms.iter();
    arms.map(|arm| inputs.draws[arm.draw].documents.len()).sum()
}

/// Prints the plan.
fn describe(file: &EvaluationFile, inputs: &EvaluationInputs, plan: &EvaluationPlan, dir: &Path) {
    use std::fmt::Write as _;
    let mut text = format!("{}\n", file.title());
    for (index, draw) in inputs.draws.iter().enumerate() {
        let questions: usize = draw.documents.iter().map(|d| d.questions.len()).sum();
        let _ = writeln!(
            text,
            "\n{}: {} contexts, {questions} questions, {} arms",
            inputs.label(index),
            draw.documents.len(),
            plan.arms_of(index).count()
        );
        for arm in plan.arms_of(index) {
            let identity = &arm.identity;
            let stated = match (&identity.codec, identity.own_controls.as_slice()) {
                (Some(codec), _) => codec.clone(),
                (None, []) => "–".to_owned(),
                (None, [control]) => format!("own control: {control}"),
                (None, controls) => format!("own controls: {}", controls.join(", ")),
            };
            let _ = writeln!(
                text,
                "  {:<24} {:<40} {stated}",
                identity.family, identity.name
            );
        }
    }
    let _ = writeln!(
        text,
        "\n{} rows, one for each arm and context; nothing crosses a link\nresults would go to {}",
        rows(inputs, plan),
        dir.display()
    );
    listing::show(&text);
}

/// What the user sees meanwhile: a bar on a terminal, lines elsewhere.
struct Screen {
    bar: ProgressBar,
    plain: Option<Instant>,
    /// Arms that were refused, with the first reason.
    refused: Vec<(String, String)>,
}

impl Screen {
    fn new(rows: usize, done: usize) -> Self {
        let bar = ProgressBar::new(rows as u64);
        let style =
            ProgressStyle::with_template("{bar:30} {pos}/{len} rows, {eta} left  {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style);
        bar.set_position(done as u64);
        let plain = (!std::io::stderr().is_terminal()).then(clock::now);
        Self {
            bar,
            plain,
            refused: Vec::new(),
        }
    }
}

impl Progress for Screen {
    fn row(&mut self, arm: &PlannedArm, row: &ContextRow) {
        self.bar.inc(1);
        self.bar
            .set_message(format!("{} · {}", row.context_id, arm.identity.name));
        if self
            .plain
            .is_some_and(|last| last.elapsed() >= PLAIN_INTERVAL)
        {
            self.plain = Some(clock::now());
            eprintln!(
                "{} of {} rows",
                self.bar.position(),
                self.bar.length().unwrap_or(0)
            );
        }
    }

    fn refused(&mut self, arm: &PlannedArm, context: &str, reason: &str) {
        self.bar.inc(1);
        let name = &arm.identity.name;
        if self.refused.iter().all(|(known, _)| known != name) {
            let line = format!("{name} cannot be evaluated on {context}: {reason}");
            match self.plain {
                Some(_) => eprintln!("{line}"),
                None => self.bar.println(line),
            }
            self.refused.push((name.clone(), reason.to_owned()));
        }
    }
}
