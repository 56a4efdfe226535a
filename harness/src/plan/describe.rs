//! The plan in words, for `--dry-run`.

use std::fmt::Write as _;

use super::estimate::Basis;
use super::{Inputs, Plan, Shard};
use crate::config::{CloudConfig, Config, EdgeConfig, Interleave};
use crate::load::SEQUENTIAL;

/// Most blocks of a group whose order is spelt out.
const SHOWN_TURNS: usize = 60;

/// What `config` would run: every cell with its requests and its estimated bytes, and the order.
#[must_use]
pub fn describe(config: &Config, inputs: &Inputs, plan: &Plan, shard: Option<Shard>) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut out, config, inputs, plan, shard);
    out
}

fn write(
    out: &mut String,
    config: &Config,
    inputs: &Inputs,
    plan: &Plan,
    shard: Option<Shard>,
) -> std::fmt::Result {
    writeln!(
        out,
        "experiment {}: {}",
        config.experiment.name,
        config.title()
    )?;
    writeln!(
        out,
        "models     cloud {} · edge {}",
        inputs.cloud_model.name, inputs.edge_model.name
    )?;
    if let Some(file) = &inputs.artefact {
        writeln!(
            out,
            "artefact   {} · {} that both ends hold beforehand, in no request's bytes",
            file.artefact.id(),
            mega(file.artefact.file_bytes())
        )?;
    }
    let devices = &inputs.devices;
    if config.edge != EdgeConfig::default() || config.cloud != CloudConfig::default() {
        writeln!(
            out,
            "devices    edge {} · cloud {}, {}",
            devices.edge.name,
            devices.replay.as_ref().unwrap_or(&devices.cloud).name,
            config.cloud.compute.name()
        )?;
    }
    let held = |group: usize| shard.is_none_or(|shard| shard.holds(group));
    let groups = (0..plan.groups.len()).filter(|&g| held(g)).count();
    let cells: usize = plan
        .groups
        .iter()
        .enumerate()
        .filter(|(g, _)| held(*g))
        .map(|(_, group)| group.cells.len())
        .sum();
    let warmup: usize = plan
        .blocks_of(shard)
        .flat_map(|block| &block.requests)
        .filter(|request| request.warmup)
        .count();
    writeln!(
        out,
        "plan       {} · cells: {cells} · groups: {groups} · requests: {}, of which warm-up: {warmup}",
        &plan.hash[..12],
        plan.requests_of(shard)
    )?;
    if let Some(shard) = shard {
        writeln!(out, "shard      {shard} of {} groups", plan.groups.len())?;
    }
    if inputs.kv.is_none() {
        writeln!(
            out,
            "bytes      not estimated: the edge's model is not in the store (`celslm models fetch`)"
        )?;
    }
    for (index, group) in plan.groups.iter().enumerate().filter(|(g, _)| held(*g)) {
        let draw = &inputs.draws[group.draw];
        let questions: usize = draw.documents.iter().map(|d| d.questions.len()).sum();
        writeln!(out)?;
        let load = match group.load.as_str() {
            SEQUENTIAL => String::new(),
            load => format!(" · {load}"),
        };
        writeln!(
            out,
            "{} · {} · {}{load} (documents: {}, questions: {questions})",
            group.scenario,
            group.link,
            draw.name,
            draw.documents.len()
        )?;
        for (number, &cell_index) in group.cells.iter().enumerate() {
            let cell = &plan.cells[cell_index];
            let (warmup, counted) = plan
                .blocks
                .iter()
                .filter(|block| block.cell == cell_index)
                .flat_map(|block| &block.requests)
                .fold((0, 0), |(warmup, counted), request| {
                    match request.counted() {
                        false => (warmup + 1, counted),
                        true => (warmup, counted + 1),
                    }
                });
            writeln!(out, "  {:>2}  {}", number + 1, cell.id)?;
            write!(
                out,
                "      requests: {counted} + {warmup} {} · {}",
                match group.load.as_str() {
                    SEQUENTIAL => "warm-up",
                    _ => "warm-up and cool-down",
                },
                cell.label()
            )?;
            let estimate = inputs
                .kv
                .as_ref()
                .zip(inputs.links.get(&group.link))
                .and_then(|(kv, link)| kv.estimate(cell, link));
            if let Some(estimate) = estimate {
                let (about, basis) = match estimate.basis {
                    Basis::Shape => ("about", ""),
                    Basis::Drawn => (
                        "estimate:",
                        "; the codec on KV drawn from the artefact's statistics",
                    ),
                    Basis::Bound => ("at most", "; how much less depends on the numbers"),
                };
                write!(
                    out,
                    "\n      {about} {} of KV per request ({} in fp16, {} tokens in the mean{basis})",
                    mega(estimate.kv_payload_bytes),
                    mega(estimate.kv_fp16_bytes),
                    estimate.context_tokens
                )?;
                if let Some(ms) = estimate.transfer_ms {
                    match ms {
                        0..100 => write!(out, ", {ms} ms")?,
                        _ => write!(out, ", {}.{} s", ms / 1000, ms % 1000 / 100)?,
                    }
                    write!(out, " at the link's rate")?;
                }
            }
            writeln!(out)?;
        }
        writeln!(out, "      order: {}", turns(config, plan, index))?;
    }
    Ok(())
}

/// The turns of a group's cells by their numbers, one bar between rounds.
fn turns(config: &Config, plan: &Plan, group: usize) -> String {
    let cells = &plan.groups[group].cells;
    let numbers: Vec<usize> = plan
        .blocks
        .iter()
        .filter(|block| block.group == group)
        .filter_map(|block| cells.iter().position(|&cell| cell == block.cell))
        .map(|at| at + 1)
        .collect();
    let round = match config.workload.interleave {
        Interleave::Abba => cells.len(),
        Interleave::Sequential => numbers.len() / cells.len().max(1),
    };
    let shown: Vec<String> = numbers
        .iter()
        .take(SHOWN_TURNS)
        .collect::<Vec<_>>()
        .chunks(round.max(1))
        .map(|turns| {
            turns
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    let more = numbers.len().saturating_sub(SHOWN_TURNS);
    let tail = if more > 0 {
        format!(" … {more} more")
    } else {
        String::new()
    };
    format!("{}{tail}", shown.join(" | "))
}

fn mega(bytes: u64) -> String {
    format!("{}.{:02} MB", bytes / 1_000_000, bytes % 1_000_000 / 10_000)
}

#[cfg(test)]
mod tests {
    use celslm_kv::KvShape;

    use super::*;
    use crate::fixture::{config, fitted, planned};
    use crate::plan::{ArtefactFile, KvEstimator};

    /// Hashes change with every model and data file, and readers do not need them here.
    fn without_hashes(text: &str, plan: &Plan) -> String {
        plan.cells
            .iter()
            .fold(text.replace(&plan.hash[..12], "[plan]"), |text, cell| {
                text.replace(&cell.hash[..8], "[hash]")
            })
    }

    #[test]
    fn the_dry_run_says_what_would_run() {
        let config = config(&[]);
        let (mut inputs, plan) = planned(&config);
        let text = describe(&config, &inputs, &plan, None);
        insta::assert_snapshot!("without_model", without_hashes(&text, &plan));
        let shape = KvShape {
            num_layers: 24,
            num_kv_heads: 2,
            head_dim: 64,
        };
        inputs.kv = Some(KvEstimator::new(shape, vec![1300]));
        let shard = Shard { index: 1, count: 2 };
        let text = describe(&config, &inputs, &plan, Some(shard));
        insta::assert_snapshot!("with_model_and_shard", without_hashes(&text, &plan));
    }

    /// A size that depends on the numbers is called what it is, and a codec by its name.
    #[test]
    fn the_dry_run_tells_estimates_from_bounds() {
        let config = config(&["grid.codecs=['celslm', 'streaming-llm']"]);
        let (mut inputs, plan) = planned(&config);
        let artefact = fitted(1);
        let kv = KvEstimator::new(artefact.model().shape, vec![1300]);
        inputs.kv = Some(kv.clone());
        let bounds = describe(&config, &inputs, &plan, None);
        assert_eq!(bounds.matches("at most").count(), 4, "{bounds}");
        inputs.kv = Some(kv.with_artefact(Some(artefact.clone())));
        inputs.artefact = Some(ArtefactFile {
            path: "x".into(),
            artefact: artefact.clone(),
        });
        let plan = Plan::new(&config, &inputs).unwrap();
        let text = describe(&config, &inputs, &plan, None);
        assert_eq!(text.matches("estimate:").count(), 4, "{text}");
        let named = format!("artefact   {} · ", artefact.id());
        for part in [&named, "identity · celslm · layerwise"] {
            assert!(text.contains(part), "{text}\nlacks {part}");
        }
        let cell = plan.cells.iter().find(|cell| cell.id.contains("-celslm-"));
        let codec = cell.unwrap().identity().codec;
        assert!(codec.contains(&artefact.id().to_string()), "{codec}");
    }
}
