//! What a report states beside the samples, from the plan and the manifest.

use std::path::Path;

use celslm_reports::{ReportInput, Slo};

use crate::config::{Config, Interleave};
use crate::manifest::{Manifest, RunState, SourceTree};
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

/// Sentences that a reader must know before the figures.
fn notes(config: &Config, manifest: &Manifest) -> Vec<String> {
    let mut notes = Vec::new();
    match manifest.state {
        RunState::Complete => {}
        RunState::Running | RunState::Interrupted => {
            notes.push("The run is not finished; `celslm run … --resume` goes on.".to_owned());
        }
        RunState::Failed => notes.push(
            "The run ended with an error before all requests were made; `celslm run … --resume` tries again."
                .to_owned(),
        ),
    }
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
            "Codecs whose id names {} use numbers that were fitted beforehand: {:.1} MB that both ends hold, a fixed cost which no request's bytes contain.",
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

/// The machine and the build, in the order in which they are shown.
fn facts(config: &Config, manifest: &Manifest) -> Vec<(String, String)> {
    let build = &manifest.build;
    let here = &manifest.environment;
    let mut facts = Vec::new();
    let mut fact = |name: &str, value: String| {
        if !value.is_empty() {
            facts.push((name.to_owned(), value));
        }
    };
    fact("plan", manifest.plan_hash.chars().take(12).collect());
    fact("built from", source(build.source.as_ref()));
    fact(
        "compiler",
        format!("{} {}", build.rustc, build.rustflags)
            .trim()
            .to_owned(),
    );
    fact(
        "build profile",
        format!("{}, opt-level {}", build.profile, build.opt_level),
    );
    for (role, model) in &manifest.models {
        let sha256: String = model.sha256.chars().take(12).collect();
        fact(
            &format!("{role} model"),
            format!("{} (sha256 {sha256}…)", model.file),
        );
    }
    for (role, device) in &manifest.devices {
        let profile = &device.profile;
        if profile.is_host() {
            continue;
        }
        let stands = device.throttle.as_ref().map_or_else(
            || profile.name.clone(),
            crate::device::ThrottleFacts::describe,
        );
        fact(
            &format!("{role} device"),
            format!("{stands} ({}; {})", profile.kind.name(), profile.source),
        );
    }
    for (name, bridge) in &manifest.bridges {
        let hash: String = bridge.blake3.chars().take(12).collect();
        fact(&format!("bridge {name}"), format!("BLAKE3 {hash}…"));
    }
    if let Some(artefact) = &manifest.codec_artefact {
        fact(
            "codec artefact",
            format!(
                "{} ({} bytes at each end, fitted on {} tokens)",
                artefact.id, artefact.bytes, artefact.fitted.fit_tokens
            ),
        );
    }
    for dataset in &manifest.datasets {
        fact(
            &format!("data set {}", dataset.config.name()),
            format!(
                "{} documents, {} questions, {}",
                dataset.documents, dataset.questions, dataset.licence
            ),
        );
    }
    fact("root seed", config.experiment.seed.to_string());
    let cpu = &here.cpu;
    fact(
        "processor",
        format!(
            "{} {}, {} of {} CPUs usable",
            cpu.vendor,
            cpu.model,
            cpu.allowed.len(),
            cpu.logical
        ),
    );
    fact(
        "memory",
        format!("{:.1} GiB", here.memory_bytes as f64 / f64::from(1 << 30)),
    );
    fact("kernel", format!("{} ({})", here.kernel, here.platform));
    fact("governor", here.governor.clone().unwrap_or_default());
    fact(
        "CPU quota",
        here.cgroup
            .cpu_quota
            .map_or_else(String::new, |quota| format!("{quota} CPUs")),
    );
    if let Some(link) = &manifest.link {
        fact("link", format!("{} ({})", link.backend, link.reason));
        fact("congestion control", link.congestion_control.clone());
    }
    facts
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
