//! `celslm run`: the main job.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use celslm::campaign::{Campaign, Campaigns};
use celslm::claims::{self, Claim};
use celslm::deployment::{Deployment, Materials};
use celslm::exit::{ExitCode, Verdict};
use celslm::load::{self, SEQUENTIAL};
use celslm::manifest::{ArtefactRecord, BridgeRecord, Manifest, RunState};
use celslm::plan::{Cell, Seeds};
use celslm::session::{Observer, Outcome, Session, SessionError};
use celslm::store::{Opened, Store};
use celslm::{clock, recording, reporting};
use celslm_kv::align::MapAt;
use celslm_link::{Calibration, LinkProfile};
use celslm_model::store::{BarProgress, ModelStore};
use celslm_reports::{CellFailure, LoadRound, ReportInput, SCHEMA_VERSION, Sample};
use indicatif::{ProgressBar, ProgressStyle};

use super::prepare::{Prepared, RunArgs, dry_run, prepare, read};

/// How often progress is printed where there is no terminal.
pub(super) const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// Runs the command.
pub(crate) fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let (source, catalogue) = read(args)?;
    if source.is_evaluation() {
        return super::evaluate::run(args, &source, &catalogue);
    }
    let prepared = prepare(args, &source, &catalogue)?;
    if args.dry_run {
        dry_run(args, &prepared);
        return Ok(ExitCode::Ok);
    }
    let stop = Arc::new(AtomicBool::new(false));
    watch_for_interrupts(&stop)?;
    let (mut store, opened) = open_store(args, &prepared)?;
    announce(&opened, &store);

    let Prepared {
        config,
        resolved,
        inputs,
        plan,
        ..
    } = &prepared;
    let mut manifest = Manifest::new(config, inputs, plan, args.shard);
    if matches!(opened, Opened::Resumed { .. }) {
        manifest.continue_from(&store.manifest()?);
    }
    for (alignment, bridge) in &inputs.bridges {
        let record = BridgeRecord {
            path: bridge.path.display().to_string(),
            blake3: bridge.blake3.clone(),
        };
        manifest.bridges.insert(alignment.to_string(), record);
    }
    manifest.codec_artefact = inputs.artefact.as_ref().map(ArtefactRecord::new);
    store.write_manifest(&manifest)?;
    store.write_config(resolved)?;
    store.write_environment(&manifest.environment)?;
    // A run that is killed has a report too.
    reporting::report_input(store.dir(), config, plan, &manifest).write()?;

    let mut outcome = Outcome::default();
    let measured = measure(
        args,
        &prepared,
        &stop,
        &mut store,
        &mut manifest,
        &mut outcome,
    );
    manifest.end(match &measured {
        Err(_) => RunState::Failed,
        Ok(()) if outcome.interrupted => RunState::Interrupted,
        Ok(()) => RunState::Complete,
    });
    store.write_manifest(&manifest)?;
    let mut input = reporting::report_input(store.dir(), config, plan, &manifest);
    let Campaigns { campaigns } = store.calibration()?;
    input.calibration = campaigns.iter().flat_map(Campaign::rows).collect();
    input.degraded_cells = campaigns
        .iter()
        .filter(|campaign| campaign.degraded())
        .flat_map(|campaign| campaign.cells.iter().cloned())
        .collect();
    input.write()?;
    // An error during the run outranks everything that could be said about its samples.
    measured?;
    conclude(args, &prepared, &store, input, &outcome)
}

/// Everything between the plan and the last sample.
fn measure(
    args: &RunArgs,
    prepared: &Prepared,
    stop: &Arc<AtomicBool>,
    store: &mut Store,
    manifest: &mut Manifest,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let Prepared {
        config,
        inputs,
        plan,
        ..
    } = prepared;
    if store.is_complete(plan, args.shard) {
        eprintln!("every request has its sample; nothing is run");
        return Ok(());
    }
    let models = ModelStore::open_default()?;
    let mut progress = BarProgress::new().cancel_on(Arc::clone(stop));
    let cloud_model = models.fetch(&inputs.cloud_model, &mut progress)?;
    let edge_model = models.fetch(&inputs.edge_model, &mut progress)?;

    let seeds = Seeds::new(config.experiment.seed);
    eprintln!(
        "starting link and nodes (loading {} and {})",
        inputs.cloud_model.name, inputs.edge_model.name
    );
    let materials = Materials {
        exe: std::env::current_exe().context("find this program")?,
        cloud_model,
        edge_model,
        bridges: inputs.bridges_at(MapAt::Cloud),
        edge_bridges: inputs.bridges_at(MapAt::Edge),
        artefact: inputs.artefact.clone(),
        devices: inputs.devices.clone(),
        recording: store.dir().join("recording"),
        logs: store.dir().join("logs"),
        edge_links: config
            .deployment
            .edge_links
            .iter()
            .map(|name| inputs.links[name].clone())
            .collect(),
        link_seed: seeds.derive("link"),
    };
    let mut deployment = Deployment::start(config, &materials)?;
    let facts = deployment.facts();
    for (role, fingerprint, tokenizer) in [
        ("cloud", &facts.cloud_fingerprint, &facts.cloud_tokenizer),
        ("edge", &facts.edge_fingerprint, &facts.edge_tokenizer),
    ] {
        if let Some(model) = manifest.models.get_mut(role) {
            model.fingerprint = Some(fingerprint.clone());
            model.tokenizer = Some(tokenizer.clone());
        }
    }
    for throttle in deployment.throttles() {
        // Edges are alike; the first speaks for all.
        let role = match throttle.role() {
            "cloud" => "cloud",
            _ => "edge",
        };
        if throttle.facts.means != "none" {
            eprintln!("{} device {}", throttle.role(), throttle.facts.describe());
        }
        if let Some(device) = manifest.devices.get_mut(role) {
            device
                .throttle
                .get_or_insert_with(|| throttle.facts.clone());
        }
    }
    manifest.link = deployment.link_facts().cloned();
    if let Some(link) = &manifest.link {
        eprintln!("link: {} ({})", link.backend.name(), link.reason);
        if !link.emulates {
            eprintln!(
                "link: this backend emulates nothing; rates and delays are this machine's own"
            );
        }
    }
    store.write_manifest(manifest)?;

    if let Some(device) = &inputs.devices.replay {
        eprintln!(
            "recording what the cloud will be asked, to be served as {}",
            device.name
        );
        let mut last = clock::now();
        let mut told = |done: usize, of: usize| {
            if done == of || last.elapsed() >= PLAIN_INTERVAL {
                last = clock::now();
                eprintln!("recorded {done} of {of}");
            }
        };
        let whole = recording::record(
            config,
            inputs,
            plan,
            args.shard,
            &mut deployment,
            stop,
            &mut told,
        )?;
        if !whole {
            outcome.interrupted = true;
            return Ok(());
        }
    }
    let session = Session {
        config,
        inputs,
        plan,
        shard: args.shard,
        stop,
    };
    let mut screen = Screen::new(plan.requests_of(args.shard) as u64);
    let ran = session.run(&mut deployment, store, &mut screen, outcome);
    screen.bar.finish_and_clear();
    drop(deployment);
    // A resumed run keeps what its earlier sessions measured.
    let mut all: Campaigns = store.calibration()?;
    all.campaigns.extend(outcome.campaigns.iter().cloned());
    manifest.measured_links = measured_links(&all.campaigns)?;
    store.write_calibration(&all)?;
    if let Err(SessionError::Contract { cell, reason, .. }) = &ran {
        store.write_failure(&CellFailure {
            schema_version: SCHEMA_VERSION,
            cell_id: cell.clone(),
            error_kind: "contract".to_owned(),
            error: reason.clone(),
        })?;
    }
    ran?;
    Ok(())
}

/// The report, the claims, and the exit code that follows from them.
fn conclude(
    args: &RunArgs,
    prepared: &Prepared,
    store: &Store,
    mut input: ReportInput,
    outcome: &Outcome,
) -> anyhow::Result<ExitCode> {
    let samples = store.read_samples(&prepared.plan)?;
    let claims = claims::check(&samples);
    input.notes.extend(claims.iter().map(Claim::note));
    let built = celslm_reports::build(&input)?;
    println!("{}", built.terminal());
    for claim in &claims {
        println!("{}", claim.note());
    }
    println!("\nreport: {}", store.dir().join("report.md").display());
    println!("        {}", store.dir().join("report.html").display());
    for campaign in outcome
        .campaigns
        .iter()
        .filter(|campaign| campaign.degraded())
    {
        println!(
            "warning: link {} missed its profile; its cells are marked degraded",
            campaign.link
        );
    }
    if outcome.interrupted {
        let again = format!("celslm run {} --resume", args.config.display());
        return Err(Verdict::Measurement(format!("interrupted; `{again}` goes on")).into());
    }
    let broken: Vec<&Claim> = claims.iter().filter(|claim| !claim.holds()).collect();
    if let Some(claim) = broken.first() {
        return Err(Verdict::Claim(format!("a claim does not hold: {}", claim.text)).into());
    }
    // Under load, what a system refuses or does not manage in time is the result.
    let is_result = |sample: &Sample| {
        sample.load != SEQUENTIAL && sample.error_kind.as_deref().is_some_and(load::is_overload)
    };
    let failed = samples
        .iter()
        .filter(|sample| !sample.ok() && !is_result(sample))
        .count();
    let invalid = store.invalid_rounds(&prepared.plan);
    if let Some((cell, reason)) = invalid.first() {
        let message = format!(
            "{} rounds are invalid, as the harness did not keep to its plan; the first, of {cell}: {reason}",
            invalid.len()
        );
        return Err(Verdict::Measurement(message).into());
    }
    if failed > 0 {
        let message = format!(
            "{failed} of {} requests failed; the report lists them",
            samples.len()
        );
        return Err(Verdict::Measurement(message).into());
    }
    Ok(ExitCode::Ok)
}

/// Ctrl-C ends the run after the current request; a second one at once.
pub(super) fn watch_for_interrupts(stop: &Arc<AtomicBool>) -> anyhow::Result<()> {
    let flag = Arc::clone(stop);
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(ExitCode::Measurement as i32);
        }
        eprintln!("stopping after this request or row; press Ctrl-C again to stop at once");
    })
    .context("watch for Ctrl-C")
}

fn open_store(args: &RunArgs, prepared: &Prepared) -> anyhow::Result<(Store, Opened)> {
    let dir: &Path = &prepared.results_dir;
    Ok(match args.resume {
        true => Store::resume(dir, &prepared.resolved, &prepared.plan)?,
        false => Store::create(dir)?,
    })
}

fn announce(opened: &Opened, store: &Store) {
    match opened {
        Opened::New => {}
        Opened::MovedAside(aside) => {
            eprintln!("an earlier run was moved to {}", aside.display());
        }
        Opened::Resumed {
            samples,
            repaired,
            cut,
        } => {
            eprintln!(
                "going on with {}: {samples} requests are done",
                store.dir().display()
            );
            for cell in repaired {
                eprintln!("cell {cell}: the last, unfinished sample was cut off");
            }
            for (cell, samples) in cut {
                eprintln!(
                    "cell {cell}: a round was cut off; its {samples} samples were set aside and it is made again"
                );
            }
        }
    }
}

/// The campaigns of every link, in order.
fn measured_links(campaigns: &[Campaign]) -> anyhow::Result<BTreeMap<String, serde_json::Value>> {
    let mut measured: BTreeMap<String, Vec<&Campaign>> = BTreeMap::new();
    for campaign in campaigns {
        measured
            .entry(campaign.link.clone())
            .or_default()
            .push(campaign);
    }
    let json = |(link, campaigns)| Ok((link, serde_json::to_value(campaigns)?));
    measured.into_iter().map(json).collect()
}

/// What the user sees meanwhile: a bar on a terminal, lines elsewhere.
struct Screen {
    bar: ProgressBar,
    plain: Option<Instant>,
}

impl Screen {
    fn new(requests: u64) -> Self {
        let bar = ProgressBar::new(requests);
        let style =
            ProgressStyle::with_template("{bar:30} {pos}/{len} requests, {eta} left  {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style);
        let plain = (!std::io::stderr().is_terminal()).then(clock::now);
        Self { bar, plain }
    }

    fn line(&self, text: &str) {
        match self.plain {
            Some(_) => eprintln!("{text}"),
            None => self.bar.println(text),
        }
    }
}

impl Observer for Screen {
    fn link(&mut self, profile: &LinkProfile) {
        self.line(&format!("link {}: measuring", profile.name));
    }

    fn calibrated(&mut self, profile: &LinkProfile, calibration: &Calibration) {
        let show = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |v| format!("{v:.1}"));
        self.line(&format!(
            "link {}: RTT {} ms, up {} Mbit/s, down {} Mbit/s: {:?}",
            profile.name,
            show(calibration.rtt_p50_ms.measured),
            show(calibration.uplink_rate_mbit.measured),
            show(calibration.downlink_rate_mbit.measured),
            calibration.verdict,
        ));
    }

    fn sample(&mut self, cell: &Cell, sample: &Sample) {
        self.bar.inc(1);
        self.bar.set_message(cell.label());
        // A load may fail by the thousand; its round sums it up.
        if let Some(error) = &sample.error
            && sample.load == SEQUENTIAL
        {
            self.line(&format!(
                "{}: request {} failed: {error}",
                cell.label(),
                sample.order
            ));
        }
        if self
            .plain
            .is_some_and(|last| last.elapsed() >= PLAIN_INTERVAL)
        {
            self.plain = Some(clock::now());
            eprintln!(
                "{} of {} requests",
                self.bar.position(),
                self.bar.length().unwrap_or(0)
            );
        }
    }

    fn skipped(&mut self, _cell: &Cell) {
        self.bar.inc(1);
    }

    fn round(&mut self, cell: &Cell, facts: &LoadRound) {
        let offered = facts.offered_rps.map_or_else(String::new, |rate| {
            format!(", {rate:.2} requests/s offered")
        });
        let mut line = format!(
            "{}: round {}{offered}: {} of {} answered in {:.1} s, {} failed, {} not sent, send delay p99 {:.3} ms",
            cell.label(),
            facts.round,
            facts.completed,
            facts.dispatched + facts.dropped_arrivals,
            facts.duration_s,
            facts.failed,
            facts.dropped_arrivals,
            facts.send_delay_ms.p99,
        );
        for reason in [&facts.stopped, &facts.invalid_reason]
            .into_iter()
            .flatten()
        {
            line = format!("{line}; {reason}");
        }
        self.line(&line);
    }
}
