//! Before a replayed cloud is measured, its live models record everything that the plan will ask.
//!
//! Nothing here is measured. The recording lies in the run's folder, so that a resumed run finds
//! what an earlier session recorded; an item that is there already takes no time.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use celslm_datasets::Prompt;
use celslm_kv::codec::ScoredBy;
use celslm_systems::control::RecordItem;
use celslm_systems::{CloudNeed, SystemSpec};

use crate::config::Config;
use crate::deployment::{Deployment, DeploymentError};
use crate::plan::{Inputs, Plan, Shard};

/// Longest time for one item: a long context on a slow machine.
const PATIENCE: Duration = Duration::from_secs(3600);

/// A request that a recording is made for.
struct Wanted<'a> {
    spec: &'a SystemSpec,
    need: CloudNeed,
    prompt: Prompt,
    seed: u64,
    max_tokens: usize,
    /// The conversation, by the first order of its block and its number, and the turn.
    turn: Option<((u64, u32), u32)>,
}

/// Has the cloud record what the requests of a share will ask of it. `progress` is told how many
/// of how many are done. `false` when it was stopped from outside.
///
/// # Errors
/// [`DeploymentError`].
pub fn record(
    config: &Config,
    inputs: &Inputs,
    plan: &Plan,
    shard: Option<Shard>,
    deployment: &mut Deployment,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<bool, DeploymentError> {
    let wanted = wanted(config, inputs, plan, shard);
    let mut contexts: HashMap<String, String> = HashMap::new();
    let mut forms: HashSet<(String, String)> = HashSet::new();
    // A later turn follows the answers that the cloud itself gave.
    let mut histories: HashMap<(u64, u32), Vec<(String, String)>> = HashMap::new();
    for (index, wanted_one) in wanted.iter().enumerate() {
        if stop.load(Ordering::Relaxed) {
            return Ok(false);
        }
        progress(index, wanted.len());
        let Wanted {
            spec,
            need,
            prompt,
            seed,
            max_tokens,
            turn,
        } = wanted_one;
        let context_id = match contexts.get(&prompt.system) {
            Some(id) => id.clone(),
            None => {
                let id = deployment.publish(&prompt.system)?.context_id;
                contexts.insert(prompt.system.clone(), id.clone());
                id
            }
        };
        match need {
            CloudNeed::Nothing => {}
            CloudNeed::EdgeShaped => {
                let form = spec.kv.as_ref().map_or_else(String::new, |kv| {
                    let scored = kv.codec.scored_by().map_or("", ScoredBy::name);
                    let bridge = kv.bridge.as_deref().unwrap_or("");
                    // The cloud model's own KV is the same whatever an edge maps it through.
                    match kv.alignment.maps_at_edge() {
                        true => "native".to_owned(),
                        false => format!("{}/{bridge}/{scored}", kv.alignment),
                    }
                });
                if forms.insert((context_id.clone(), form)) {
                    let item = RecordItem::Context {
                        context_id,
                        spec: (*spec).clone(),
                    };
                    deployment.record(&item, PATIENCE)?;
                }
            }
            CloudNeed::Native => {
                let key = turn.map(|(conversation, _)| conversation);
                let history = match (&key, turn) {
                    (Some(key), Some((_, turn))) if *turn > 0 => {
                        histories.get(key).cloned().unwrap_or_default()
                    }
                    _ => Vec::new(),
                };
                let item = RecordItem::Answer {
                    context_id,
                    history: history.clone(),
                    user: prompt.user.clone(),
                    sampling: config.generation.sampling,
                    seed: *seed,
                    max_tokens: *max_tokens,
                };
                let text = deployment.record(&item, PATIENCE)?;
                if let (Some(key), Some(text)) = (key, text) {
                    let mut history = history;
                    history.push((prompt.user.clone(), text));
                    histories.insert(key, history);
                }
            }
        }
    }
    progress(wanted.len(), wanted.len());
    Ok(true)
}

/// Every request of the share that asks the cloud, the turns of a conversation in order.
fn wanted<'a>(
    config: &Config,
    inputs: &Inputs,
    plan: &'a Plan,
    shard: Option<Shard>,
) -> Vec<Wanted<'a>> {
    let mut wanted = Vec::new();
    for block in plan.blocks_of(shard) {
        let cell = &plan.cells[block.cell];
        let Ok(entry) = celslm_systems::system::find(&cell.spec.system) else {
            continue;
        };
        if entry.cloud_need == CloudNeed::Nothing {
            continue;
        }
        let requests: Vec<_> = block.requests.iter().collect();
        for planned in requests {
            let document = &inputs.draws[cell.draw].documents[planned.document];
            let question = &document.questions[planned.question];
            let mut prompt = Prompt::new(document, question);
            if let Some(words) = planned.prompt_words {
                prompt = prompt.padded(words, planned.seed);
            }
            let conversation = planned.conversation.map(|c| (block.orders().start, c));
            wanted.push(Wanted {
                spec: &cell.spec,
                need: entry.cloud_need,
                prompt,
                seed: planned.seed,
                max_tokens: planned.max_tokens.unwrap_or(config.generation.max_tokens),
                turn: conversation.map(|conversation| (conversation, planned.turn)),
            });
        }
    }
    wanted
}
