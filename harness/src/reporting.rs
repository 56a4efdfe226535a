//! What a report states beside the samples, from the plan and the manifest.

use std::collections::BTreeMap;
use std::path::Path;

use celslm_reports::evaluation::EvaluationInput;
use celslm_reports::{ReportInput, Slo};

use crate::config::{Config, EvaluationFile, Interleave};
use crate::environment::Environment;
use crate::evaluation::{BridgeInput, EvaluationInputs, EvaluationManifest, EvaluationPlan};
use crate::manifest::{Build, DatasetRecord, Manifest, ModelRecord, RunState, SourceTree};
use crate::plan::Plan;

/// The report's input for a run in `dir`. Calibration figures are the run's to add.
#[must_use]
pub fn report_input(dir: &Path, config: &Config, plan: &Plan, manifest: &Manifest) -> ReportInput {
    let mut input = ReportInput::new(dir, config.title());
    input.description.clone_from(&config.experiment.description);
    input.notes = notes(config, manifest);
    input.slo = plan.has_load().then_some(Slo {
        ttft_ms: config.slo.ttft_ms,
        tpot_ms: config.slo.tpot_ms,
    });
    input.environment = facts(config, manifest);
    // After what the machine is: what stands behind the ids of the rows.
    input.environment.extend(named_codecs(plan));
    input.cells = plan
        .groups
        .iter()
        .enumerate()
        .filter(|(group, _)| manifest.shard.is_none_or(|shard| shard.holds(*group)))
        .flat_map(|(_, group)| &group.cells)
        .map(|&cell| plan.cells[cell].identity())
        .collect();
    input
}

/// How far a run came, where it is not finished.
fn state_notes(state: RunState) -> Vec<String> {
    let note = match state {
        RunState::Complete => return Vec::new(),
        RunState::Running | RunState::Interrupted => {
            "The run is not finished; `celslm run … --resume` goes on."
        }
        RunState::Failed => {
            "The run ended with an error before all requests were made; `celslm run … --resume` tries again."
        }
    };
    vec![note.to_owned()]
}

/// Sentences that a reader must know before the figures.
fn notes(config: &Config, manifest: &Manifest) -> Vec<String> {
    let mut notes = state_notes(manifest.state);
    if let Some(shard) = manifest.shard {
        notes.push(format!("This is share {shard} of the plan."));
    }
    if config.workload.interleave == Interleave::Sequential {
        notes.push(
            "The cells were measured one after another, not interleaved: a drift of the machine looks like a difference between systems."
                .to_owned(),
        );
    }
    if let Some(serving) = config.serving() {
        let place = match &serving.base_url {
            Some(_) => "a server outside: after the link comes this machine's own way to it",
            None => "an engine started at the cloud's end of the link",
        };
        notes.push(format!(
            "cloud_api asks model {} of {place}. Whether it reuses a context's KV is its own business: each primed request is preceded by the context with one token to generate. Its part cloud_compute holds its queue and the first token's way down.",
            serving.model
        ));
    }
    if let Some(artefact) = &manifest.codec_artefact {
        notes.push(format!(
            "Codecs whose id names the artefact {} were fitted beforehand: {:.1} MB that both ends hold, a fixed cost which no request's bytes contain.",
            artefact.id,
            artefact.bytes as f64 / 1e6
        ));
    }
    if config.deployment.edges > 1 {
        notes.push(format!(
            "{} edges shared the cloud, the link and this machine.",
            config.deployment.edges
        ));
    }
    notes
}

/// Facts by name, in the order in which they are shown; what is not known is left out.
#[derive(Default)]
struct Facts(Vec<(String, String)>);

impl Facts {
    fn add(&mut self, name: &str, value: String) {
        if !value.is_empty() {
            self.0.push((name.to_owned(), value));
        }
    }

    fn build(&mut self, plan_hash: &str, build: &Build) {
        self.add("plan", plan_hash.chars().take(12).collect());
        self.add("built from", source(build.source.as_ref()));
        let compiler = format!("{} {}", build.rustc, build.rustflags);
        self.add("compiler", compiler.trim().to_owned());
        self.add(
            "build profile",
            format!("{}, opt-level {}", build.profile, build.opt_level),
        );
    }

    fn models(&mut self, models: &BTreeMap<String, ModelRecord>) {
        for (role, model) in models {
            let sha256: String = model.sha256.chars().take(12).collect();
            self.add(
                &format!("{role} model"),
                format!("{} (sha256 {sha256}…)", model.file),
            );
        }
    }

    /// A bridge of an evaluation, once for all arms that map through it.
    fn bridge(&mut self, input: &BridgeInput) {
        let hash: String = input.blake3.chars().take(12).collect();
        let file = input.path.file_name().unwrap_or_default();
        let name = format!("bridge {}", file.to_string_lossy());
        let cost = match input.bridge.manifest().cost {
            None => "what it took to make it is not stated".to_owned(),
            Some(cost) => {
                let fit = cost.fit_s.map_or_else(
                    || "its fit not stated".to_owned(),
                    |seconds| format!("fitted in {seconds:.0} s"),
                );
                let threads = cost.threads;
                match cost.train_s > 0.0 {
                    true => format!("{fit}, trained in {:.0} s, {threads} threads", cost.train_s),
                    false => format!("{fit}, {threads} threads"),
                }
            }
        };
        let value = format!("BLAKE3 {hash}…, {:.1} MB, {cost}", input.bytes as f64 / 1e6);
        if !self.0.contains(&(name.clone(), value.clone())) {
            self.add(&name, value);
        }
    }

    fn datasets(&mut self, datasets: &[DatasetRecord], seed: u64) {
        for dataset in datasets {
            self.add(
                &format!("data set {}", dataset.config.name()),
                format!(
                    "{} documents, {} questions, {}",
                    dataset.documents, dataset.questions, dataset.licence
                ),
            );
        }
        self.add("root seed", seed.to_string());
    }

    fn machine(&mut self, here: &Environment) {
        let cpu = &here.cpu;
        self.add(
            "processor",
            format!(
                "{} {}, {} of {} CPUs usable",
                cpu.vendor,
                cpu.model,
                cpu.allowed.len(),
                cpu.logical
            ),
        );
        self.add(
            "memory",
            format!("{:.1} GiB", here.memory_bytes as f64 / f64::from(1 << 30)),
        );
        self.add("kernel", format!("{} ({})", here.kernel, here.platform));
        self.add("governor", here.governor.clone().unwrap_or_default());
        let quota = here.cgroup.cpu_quota;
        self.add(
            "CPU quota",
            quota.map_or_else(String::new, |quota| format!("{quota} CPUs")),
        );
    }
}

/// The codecs that have a name, with the ids under which the report lists them.
fn named_codecs(plan: &Plan) -> Vec<(String, String)> {
    let mut named = Vec::new();
    let paths = plan.cells.iter().filter_map(|cell| cell.spec.kv.as_ref());
    for preset in paths.map(|path| (path.codec.preset(), path.codec.id())) {
        if let (Some(preset), id) = preset {
            let fact = (format!("codec {}", preset.name), id);
            if !named.contains(&fact) {
                named.push(fact);
            }
        }
    }
    named
}

/// The machine and the build of a run over a link.
fn facts(config: &Config, manifest: &Manifest) -> Vec<(String, String)> {
    let mut facts = Facts::default();
    facts.build(&manifest.plan_hash, &manifest.build);
    facts.models(&manifest.models);
    for (role, device) in &manifest.devices {
        let profile = &device.profile;
        if profile.is_host() {
            continue;
        }
        let stands = device.throttle.as_ref().map_or_else(
            || profile.name.clone(),
            crate::device::ThrottleFacts::describe,
        );
        facts.add(
            &format!("{role} device"),
            format!("{stands} ({}; {})", profile.kind.name(), profile.source),
        );
    }
    for (name, bridge) in &manifest.bridges {
        let hash: String = bridge.blake3.chars().take(12).collect();
        facts.add(&format!("bridge {name}"), format!("BLAKE3 {hash}…"));
    }
    if let Some(artefact) = &manifest.codec_artefact {
        facts.add(
            "codec artefact",
            format!(
                "{} ({} bytes at each end, fitted on {} tokens)",
                artefact.id, artefact.bytes, artefact.fitted.fit_tokens
            ),
        );
    }
    facts.datasets(&manifest.datasets, config.experiment.seed);
    facts.machine(&manifest.environment);
    if let Some(link) = &manifest.link {
        facts.add("link", format!("{} ({})", link.backend, link.reason));
        facts.add("congestion control", link.congestion_control.clone());
    }
    facts.0
}

/// What the report of an evaluation in `dir` states beside its rows.
#[must_use]
pub fn evaluation_input(
    dir: &Path,
    file: &EvaluationFile,
    inputs: &EvaluationInputs,
    plan: &EvaluationPlan,
    manifest: &EvaluationManifest,
) -> EvaluationInput {
    let mut notes = state_notes(manifest.state);
    let shared = plan
        .arms
        .iter()
        .filter(|arm| arm.identity.codec.is_some())
        .map(|arm| arm.identity.artefact_bytes)
        .max()
        .unwrap_or(0);
    if shared > 0 {
        notes.push(format!(
            "Both ends hold an artefact of {:.1} MB beforehand for the codecs that are fitted; it is sent for no context and is in no wire ratio.",
            shared as f64 / 1e6
        ));
    }
    let mut facts = Facts::default();
    facts.build(&manifest.plan_hash, &manifest.build);
    facts.models(&manifest.models);
    if let Some(artefact) = &inputs.artefact {
        let fitted = artefact.manifest();
        facts.add(
            "codec artefact",
            format!(
                "{}, fitted on {} tokens, {:.1} MB",
                artefact.id(),
                fitted.fit_tokens,
                artefact.file_bytes() as f64 / 1e6
            ),
        );
    }
    for input in &inputs.bridges {
        facts.bridge(input);
    }
    facts.datasets(&manifest.datasets, file.experiment.seed);
    facts.machine(&manifest.environment);
    EvaluationInput {
        schema_version: celslm_reports::evaluation::EVALUATION_FILE_VERSION,
        dir: dir.to_owned(),
        title: file.title().to_owned(),
        description: file.experiment.description.clone(),
        notes,
        environment: facts.0,
        arms: plan.arms.iter().map(|arm| arm.identity.clone()).collect(),
        contexts: inputs
            .draws
            .iter()
            .enumerate()
            .filter_map(|(draw, set)| {
                let arm = plan.arms_of(draw).next()?;
                Some((arm.identity.dataset.clone(), set.documents.len() as u64))
            })
            .collect(),
    }
}

fn source(tree: Option<&SourceTree>) -> String {
    let Some(tree) = tree else {
        return "a tree without a commit".to_owned();
    };
    let commit: String = tree.commit.chars().take(12).collect();
    match tree.dirty {
        Some(false) => format!("commit {commit}"),
        Some(true) => format!("commit {commit} with changes"),
        None => format!("commit {commit}, changes unknown"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{config, planned};
    use crate::plan::Shard;

    #[test]
    fn the_report_names_every_planned_cell_of_the_share() {
        let config = config(&["workload.interleave=sequential"]);
        let (inputs, plan) = planned(&config);
        let shard = Shard { index: 2, count: 2 };
        let mut manifest = Manifest::new(&config, &inputs, &plan, Some(shard));
        manifest.end(RunState::Complete);
        let input = report_input(Path::new("x"), &config, &plan, &manifest);
        let ids: Vec<&str> = input.cells.iter().map(|c| c.cell_id.as_str()).collect();
        let held: Vec<&str> = plan.cells[4..].iter().map(|c| c.id.as_str()).collect();
        assert_eq!(ids, held);
        assert_eq!(input.cells[0].codec, "none");
        assert_eq!(input.cells[2].mapping, "none");
        assert!(input.notes.iter().any(|note| note.contains("share 2/2")));
        assert!(
            input
                .notes
                .iter()
                .any(|note| note.contains("not interleaved"))
        );
        assert!(
            input
                .environment
                .iter()
                .any(|(name, _)| name == "cloud model")
        );
    }
}
