//! From grids to cells, and from cells to an order of requests.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use celslm_datasets::{Arrival, Request, Workload};
use celslm_systems::{CloudNeed, KvPath, SystemSpec};

use super::cell::{content_hash, id};
use super::{Cell, Inputs, Seeds, Shard};
use crate::artefacts;
use crate::config::{Config, Grid, Interleave};
use crate::load::Load;

/// Why a configuration cannot be planned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The workload refuses its settings for these documents.
    #[error("plan the requests of scenario {scenario}")]
    Workload {
        /// The scenario.
        scenario: String,
        /// The workload's reason.
        #[source]
        source: celslm_datasets::DatasetError,
    },
    /// The inputs lack something that the configuration names; the caller gathers them together.
    #[error("plan scenario {scenario}: {what} was not read beforehand")]
    MissingInput {
        /// The scenario.
        scenario: String,
        /// What is missing.
        what: String,
    },
    /// Two cells would write into one folder.
    #[error(
        "plan scenario {scenario}: two cells have the id {id}; two of its methods mean the same"
    )]
    Twins {
        /// The scenario.
        scenario: String,
        /// The id.
        id: String,
    },
    /// A part of the configuration has no JSON form, such as a number that is not finite.
    #[error("hash a cell of scenario {scenario}")]
    Hash {
        /// The scenario.
        scenario: String,
        /// The reason.
        #[source]
        source: serde_json::Error,
    },
}

/// Cells that are compared with each other: one link, one data set and one load of one scenario.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The scenario.
    pub scenario: String,
    /// The link, which is set once for the group.
    pub link: String,
    /// Index of the data set's draw in [`Inputs::draws`].
    pub draw: usize,
    /// Label of the load.
    pub load: String,
    /// Indices into [`Plan::cells`].
    pub cells: Vec<usize>,
}

/// One request of one cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedRequest {
    /// Position in the whole plan, from 0; the same whatever the shard, and the key of a sample.
    pub order: u64,
    /// Which repetition of the question this is, from 0.
    pub repetition: u32,
    /// Whether it only warms the cell up.
    pub warmup: bool,
    /// Whether it comes so late in its round that the load is about to end.
    pub cooldown: bool,
    /// Index into the draw's documents.
    pub document: usize,
    /// Index into the document's questions.
    pub question: usize,
    /// Seed of the request, the same for every cell that makes it.
    pub seed: u64,
    /// When it is made.
    pub arrival: Arrival,
    /// Most tokens to generate; the configuration's where absent.
    pub max_tokens: Option<usize>,
    /// Conversation that it is a turn of.
    pub conversation: Option<u32>,
    /// Which turn, from 0.
    pub turn: u32,
    /// Pause after the turn before.
    pub think: Duration,
    /// About how many words the private part is to have.
    pub prompt_words: Option<usize>,
}

impl PlannedRequest {
    /// Whether it counts in figures.
    #[must_use]
    pub fn counted(&self) -> bool {
        !self.warmup && !self.cooldown
    }
}

/// A block that is a whole round of a load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    /// The rounds of the cell that it fills: one, or one for each level that a search may try.
    pub rounds: Range<u32>,
}

/// Requests that one cell makes before the next has its turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Index into [`Plan::groups`].
    pub group: usize,
    /// Index into [`Plan::cells`].
    pub cell: usize,
    /// The requests, in order. A search makes them once for each level, at that level's rate.
    pub requests: Vec<PlannedRequest>,
    /// What it is of a load; `None` for requests that are made one after the other.
    pub round: Option<Round>,
}

impl Block {
    /// The orders of its samples: those of the requests, and of the further levels of a search,
    /// each of which follows the one before by [`Block::stride`].
    #[must_use]
    pub fn orders(&self) -> Range<u64> {
        let first = self.requests.first().map_or(0, |request| request.order);
        let levels = self.round.as_ref().map_or(1, |round| round.rounds.len());
        first..first + self.stride() * levels as u64
    }

    /// By how much the orders of one level differ from those of the next.
    #[must_use]
    pub fn stride(&self) -> u64 {
        self.requests.len() as u64
    }
}

/// What a run does.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// BLAKE3 (hex) over the hashes of the cells: two plans with one hash measure the same.
    pub hash: String,
    /// Every cell, group by group.
    pub cells: Vec<Cell>,
    /// The groups, in the order in which they run.
    pub groups: Vec<Group>,
    /// The blocks, in the order in which they run.
    pub blocks: Vec<Block>,
}

impl Plan {
    /// Plans `config`.
    ///
    /// # Errors
    /// Workload settings that the documents do not allow, and inputs that lack a link or draw.
    pub fn new(config: &Config, inputs: &Inputs) -> Result<Self, PlanError> {
        let mut plan = Self {
            hash: String::new(),
            cells: Vec::new(),
            groups: Vec::new(),
            blocks: Vec::new(),
        };
        let mut order = 0;
        for (scenario, grid) in config.grids() {
            for link in &grid.links {
                for dataset in &grid.datasets {
                    let (draw, _) =
                        inputs
                            .draw(dataset)
                            .ok_or_else(|| PlanError::MissingInput {
                                scenario: scenario.clone(),
                                what: format!("data set {}", dataset.name()),
                            })?;
                    for load in &grid.loads {
                        let workload =
                            inputs
                                .workload(load)
                                .ok_or_else(|| PlanError::MissingInput {
                                    scenario: scenario.clone(),
                                    what: format!("workload {}", load.name()),
                                })?;
                        let first = plan.cells.len();
                        let combination = Combination {
                            scenario: &scenario,
                            link,
                            draw,
                            workload: workload.as_ref(),
                            load: Load::new(load, workload.as_ref()),
                        };
                        plan.add_cells(config, inputs, &grid, &combination)?;
                        let cells: Vec<usize> = (first..plan.cells.len()).collect();
                        plan.add_blocks(config, inputs, &combination, &cells, &mut order)?;
                        plan.groups.push(Group {
                            scenario: scenario.clone(),
                            link: link.clone(),
                            draw,
                            load: combination.load.label,
                            cells,
                        });
                    }
                }
            }
        }
        let mut ids = BTreeSet::new();
        for cell in &plan.cells {
            if !ids.insert(&cell.id) {
                return Err(PlanError::Twins {
                    scenario: cell.scenario.clone(),
                    id: cell.id.clone(),
                });
            }
        }
        let mut hasher = blake3::Hasher::new();
        for cell in &plan.cells {
            hasher.update(cell.hash.as_bytes());
        }
        plan.hash = hasher.finalize().to_hex().to_string();
        Ok(plan)
    }

    fn add_cells(
        &mut self,
        config: &Config,
        inputs: &Inputs,
        grid: &Grid,
        combination: &Combination<'_>,
    ) -> Result<(), PlanError> {
        let &Combination {
            scenario,
            link,
            draw,
            ref load,
            ..
        } = combination;
        let profile = inputs
            .links
            .get(link)
            .ok_or_else(|| PlanError::MissingInput {
                scenario: scenario.to_owned(),
                what: format!("link {link}"),
            })?;
        // The objective decides when a level ends and what a search finds.
        let under_load =
            (!load.is_sequential()).then_some((&load.config, &load.source_hash, &config.slo));
        let dataset = &inputs.draws[draw];
        for contract in &grid.contracts {
            for spec in specs(grid, inputs) {
                let seed = Seeds::new(config.experiment.seed).derive(&format!(
                    "cell/{scenario}/{link}/{}/{contract}",
                    dataset.name
                ));
                let asks_cloud = celslm_systems::system::find(&spec.system)
                    .is_ok_and(|entry| entry.cloud_need != CloudNeed::Nothing);
                let (mut device, compute) = inputs.devices.labels(asks_cloud);
                let serving = celslm_systems::system::find(&spec.system)
                    .is_ok_and(|entry| entry.needs_serving)
                    .then_some(config.cloud.serving.as_ref())
                    .flatten();
                // What is behind somebody else's address is not this host.
                if serving.is_some_and(|serving| serving.base_url.is_some()) {
                    device.push_str("+external");
                }
                // A system that asks no cloud measures the same whatever computes there.
                let devices = match asks_cloud {
                    true => (&inputs.devices.edge, Some(&inputs.devices)),
                    false => (&inputs.devices.edge, None),
                };
                let hash = content_hash(&(
                    (crate::SCHEMA_VERSION, config.experiment.seed, scenario),
                    (&spec, link, profile, contract),
                    (&dataset.config, &dataset.hash),
                    (&inputs.cloud_model.sha256, &inputs.edge_model.sha256),
                    (&config.generation, &config.workload, &config.limits),
                    (&config.deployment, &device, compute, devices, serving),
                    &under_load,
                ))
                .map_err(|source| PlanError::Hash {
                    scenario: scenario.to_owned(),
                    source,
                })?;
                let contract_name = contract.to_string();
                let mut names = vec![scenario, spec.system.as_str()];
                let path = spec.kv.as_ref().map(|kv| {
                    [
                        kv.alignment.to_string(),
                        artefacts::name(&kv.codec),
                        kv.schedule.to_string(),
                    ]
                });
                names.extend(path.iter().flatten().map(String::as_str));
                names.extend([link, dataset.name, &contract_name]);
                if under_load.is_some() {
                    names.push(&load.label);
                }
                self.cells.push(Cell {
                    id: id(&names, &hash),
                    scenario: scenario.to_owned(),
                    link: link.to_owned(),
                    dataset: dataset.config.clone(),
                    draw,
                    contract: *contract,
                    device,
                    compute,
                    load: load.clone(),
                    seed,
                    hash,
                    spec,
                });
            }
        }
        Ok(())
    }

    fn add_blocks(
        &mut self,
        config: &Config,
        inputs: &Inputs,
        combination: &Combination<'_>,
        cells: &[usize],
        order: &mut u64,
    ) -> Result<(), PlanError> {
        let group = self.groups.len();
        let Combination { workload, load, .. } = combination;
        let seeds = Seeds::new(config.experiment.seed);
        let requests = |seed: u64| {
            workload
                .requests(&inputs.draws[combination.draw].documents, seed)
                .map_err(|source| PlanError::Workload {
                    scenario: combination.scenario.to_owned(),
                    source,
                })
        };
        let first = requests(seeds.derive("workload"))?;
        if load.is_sequential() {
            self.blocks
                .extend(blocks(config, group, cells, &first, order));
            return Ok(());
        }
        // Every round draws its arrivals anew, and every cell makes the same ones.
        let mut rounds = vec![first];
        for round in 1..config.workload.rounds {
            rounds.push(requests(seeds.derive(&format!("workload/round-{round}")))?);
        }
        let levels = load.levels();
        self.blocks
            .extend(round_blocks(config, group, cells, &rounds, levels, order));
        Ok(())
    }

    /// Index and cell with this id.
    #[must_use]
    pub fn cell(&self, id: &str) -> Option<(usize, &Cell)> {
        self.cells
            .iter()
            .enumerate()
            .find(|(_, cell)| cell.id == id)
    }

    /// Whether any cell is under load.
    #[must_use]
    pub fn has_load(&self) -> bool {
        self.cells.iter().any(|cell| !cell.load.is_sequential())
    }

    /// The blocks of a share, in order; all of them without one.
    pub fn blocks_of(&self, shard: Option<Shard>) -> impl Iterator<Item = &Block> {
        self.blocks
            .iter()
            .filter(move |block| shard.is_none_or(|shard| shard.holds(block.group)))
    }

    /// Number of requests of a share, warm-up included.
    #[must_use]
    pub fn requests_of(&self, shard: Option<Shard>) -> usize {
        self.blocks_of(shard)
            .map(|block| block.requests.len())
            .sum()
    }
}

/// What the cells of a group have in common.
struct Combination<'a> {
    scenario: &'a str,
    link: &'a str,
    draw: usize,
    workload: &'a dyn Workload,
    load: Load,
}

/// The systems of a grid, each with the KV paths that mean something for it.
fn specs(grid: &Grid, inputs: &Inputs) -> Vec<SystemSpec> {
    let mut specs = Vec::new();
    for system in &grid.systems {
        let system = system.as_str();
        let moves_kv = celslm_systems::registry()
            .iter()
            .any(|entry| entry.name == system && entry.moves_kv);
        if !moves_kv {
            specs.push(SystemSpec {
                system: system.to_owned(),
                kv: None,
            });
            continue;
        }
        for alignment in &grid.alignments {
            for codec in &grid.codecs {
                for schedule in &grid.schedules {
                    for &chunk_tokens in &grid.chunk_tokens {
                        specs.push(SystemSpec {
                            system: system.to_owned(),
                            kv: Some(KvPath {
                                alignment: alignment.clone(),
                                codec: inputs.bound(codec),
                                schedule: *schedule,
                                chunk_tokens,
                                bridge: inputs
                                    .bridge(alignment)
                                    .map(|bridge| bridge.blake3.clone()),
                            }),
                        });
                    }
                }
            }
        }
    }
    specs
}

/// The blocks of one group, in order; `order` numbers the requests of the whole plan.
fn blocks(
    config: &Config,
    group: usize,
    cells: &[usize],
    requests: &[Request],
    order: &mut u64,
) -> Vec<Block> {
    let workload = &config.workload;
    let warmup: Vec<Request> = requests
        .iter()
        .cycle()
        .take(workload.warmup)
        .copied()
        .collect();
    let rounds: Vec<&[Request]> = requests.chunks(workload.block_requests.max(1)).collect();
    let mut turns: Vec<(usize, &[Request], bool)> = Vec::new();
    match workload.interleave {
        Interleave::Abba => {
            turns.extend(cells.iter().map(|&cell| (cell, warmup.as_slice(), true)));
            for (round, requests) in rounds.iter().enumerate() {
                let forth = cells.iter().map(|&cell| (cell, *requests, false));
                if round % 2 == 0 {
                    turns.extend(forth);
                } else {
                    turns.extend(forth.rev());
                }
            }
        }
        Interleave::Sequential => {
            for &cell in cells {
                turns.push((cell, warmup.as_slice(), true));
                turns.extend(rounds.iter().map(|requests| (cell, *requests, false)));
            }
        }
    }
    turns.retain(|(_, requests, _)| !requests.is_empty());
    turns
        .into_iter()
        .map(|(cell, requests, warmup)| Block {
            group,
            cell,
            requests: requests
                .iter()
                .map(|request| {
                    let planned = planned(request, *order);
                    *order += 1;
                    PlannedRequest { warmup, ..planned }
                })
                .collect(),
            round: None,
        })
        .collect()
}

/// The blocks of one group under a load: each is a whole round of one cell.
fn round_blocks(
    config: &Config,
    group: usize,
    cells: &[usize],
    rounds: &[Vec<Request>],
    levels: u32,
    order: &mut u64,
) -> Vec<Block> {
    let workload = &config.workload;
    let mut turns: Vec<(usize, usize)> = Vec::new();
    match workload.interleave {
        Interleave::Abba => {
            for round in 0..rounds.len() {
                let forth = cells.iter().map(|&cell| (cell, round));
                if round % 2 == 0 {
                    turns.extend(forth);
                } else {
                    turns.extend(forth.rev());
                }
            }
        }
        Interleave::Sequential => {
            for &cell in cells {
                turns.extend((0..rounds.len()).map(|round| (cell, round)));
            }
        }
    }
    turns.retain(|&(_, round)| !rounds[round].is_empty());
    turns
        .into_iter()
        .map(|(cell, round)| {
            let requests = &rounds[round];
            let places = places(requests);
            let first = *order;
            *order += requests.len() as u64 * u64::from(levels);
            Block {
                group,
                cell,
                requests: requests
                    .iter()
                    .zip(places)
                    .zip(first..)
                    .map(|((request, place), order)| {
                        let warmup = place < workload.warmup_share;
                        PlannedRequest {
                            warmup,
                            cooldown: !warmup && place >= 1.0 - workload.cooldown_share,
                            ..planned(request, order)
                        }
                    })
                    .collect(),
                round: Some(Round {
                    rounds: round as u32 * levels..(round as u32 + 1) * levels,
                }),
            }
        })
        .collect()
}

fn planned(request: &Request, order: u64) -> PlannedRequest {
    PlannedRequest {
        order,
        repetition: request.repetition,
        warmup: false,
        cooldown: false,
        document: request.document,
        question: request.question,
        seed: request.seed,
        arrival: request.arrival,
        max_tokens: request.max_tokens,
        conversation: request.conversation,
        turn: request.turn,
        think: request.think,
        prompt_words: request.prompt_words,
    }
}

/// Where in its round each request stands, from 0 to 1: by its arrival, or by its number where
/// the next request waits for an answer. A conversation stands where it begins.
fn places(requests: &[Request]) -> Vec<f64> {
    let at = |request: &Request| match request.arrival {
        Arrival::At(at) => Some(at.as_secs_f64()),
        Arrival::WhenFree => None,
    };
    let end = requests.iter().filter_map(at).fold(0.0, f64::max);
    let mut begins = std::collections::HashMap::new();
    requests
        .iter()
        .enumerate()
        .map(|(index, request)| {
            let place = match at(request) {
                Some(at) if end > 0.0 => at / end,
                _ => index as f64 / requests.len() as f64,
            };
            match request.conversation {
                Some(conversation) => *begins.entry(conversation).or_insert(place),
                None => place,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::fixture::{config, planned};

    /// The requests of each cell in order, as if they all stood first in the plan.
    fn by_cell(plan: &Plan, group: usize) -> Vec<Vec<PlannedRequest>> {
        let mut requests: BTreeMap<usize, Vec<_>> = BTreeMap::new();
        for block in plan.blocks.iter().filter(|b| b.group == group) {
            let first = block.requests.iter().cloned();
            requests
                .entry(block.cell)
                .or_default()
                .extend(first.map(|request| PlannedRequest {
                    order: 0,
                    ..request
                }));
        }
        requests.into_values().collect()
    }

    #[test]
    fn kv_lists_collapse_for_systems_that_move_none() {
        let (_, plan) = planned(&config(&[]));
        // Per link: edge_only, cloud_only, and ce_lslm with two codecs.
        assert_eq!(plan.groups.len(), 2);
        assert!(plan.groups.iter().all(|group| group.cells.len() == 4));
        for cell in &plan.cells {
            assert_eq!(
                cell.spec.kv.is_some(),
                cell.spec.system == "ce_lslm",
                "{}",
                cell.id
            );
        }
    }

    #[test]
    fn every_cell_of_a_group_makes_the_same_requests() {
        let (_, plan) = planned(&config(&[]));
        for group in 0..plan.groups.len() {
            let requests = by_cell(&plan, group);
            assert_eq!(requests[0].len(), 6 + 1);
            assert!(requests.iter().all(|r| *r == requests[0]));
        }
    }

    #[test]
    fn cells_take_turns_there_and_back_within_a_link() {
        let (_, plan) = planned(&config(&[]));
        let turns: Vec<usize> = plan.blocks.iter().map(|block| block.cell).collect();
        let forth = [0, 1, 2, 3];
        let back = [3, 2, 1, 0];
        // Warm-up, then three blocks of two requests.
        let first = [forth, forth, back, forth].concat();
        assert_eq!(turns[..16], first);
        assert!(plan.blocks[..16].iter().all(|b| b.group == 0));
        assert!(plan.blocks[16..].iter().all(|b| b.group == 1));
        let warmup = |block: &Block| block.requests.iter().all(|r| r.warmup);
        assert!(plan.blocks[..4].iter().all(warmup));
        assert!(!plan.blocks[4..16].iter().any(warmup));
        let orders: Vec<u64> = plan
            .blocks
            .iter()
            .flat_map(|b| &b.requests)
            .map(|r| r.order)
            .collect();
        assert!(orders.iter().copied().eq(0..orders.len() as u64));
    }

    #[test]
    fn sequential_order_finishes_a_cell_first() {
        let sets = ["workload.interleave=sequential", "workload.warmup=0"];
        let (_, plan) = planned(&config(&sets));
        let turns: Vec<usize> = plan.blocks.iter().map(|block| block.cell).collect();
        assert_eq!(turns[..12], [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]);
    }

    #[test]
    fn plans_repeat_and_every_setting_that_matters_changes_the_hash() {
        let (_, plan) = planned(&config(&[]));
        assert_eq!(planned(&config(&[])).1, plan);
        // Words about the experiment measure nothing.
        assert_eq!(
            planned(&config(&["experiment.title='t'"])).1.hash,
            plan.hash
        );
        for set in [
            "experiment.seed=6",
            "generation.max_tokens=7",
            "workload.warmup=2",
            "workload.arrivals={ closed_loop = { repetitions = 2 } }",
            "limits.edge_cache_bytes=2097152",
            "models.edge=smollm2-135m-instruct-q4_1",
            "grid.links=['none']",
            "deployment.threads.edge=1",
        ] {
            assert_ne!(planned(&config(&[set])).1.hash, plan.hash, "{set}");
        }
    }

    #[test]
    fn compared_cells_share_the_seed_of_their_link() {
        let (_, plan) = planned(&config(&[]));
        for group in &plan.groups {
            let seeds: BTreeSet<u64> = group.cells.iter().map(|&c| plan.cells[c].seed).collect();
            assert_eq!(seeds.len(), 1);
        }
        assert_ne!(plan.cells[0].seed, plan.cells[4].seed);
    }

    #[test]
    fn a_new_scenario_leaves_the_seeds_and_cells_of_the_others_alone() {
        let (_, plan) = planned(&config(&[]));
        let extended = config(&["scenario=[{ name = 'more', links = ['none'] }]"]);
        let (_, longer) = planned(&extended);
        assert_eq!(longer.cells[..plan.cells.len()], plan.cells);
    }

    #[test]
    fn shards_share_the_groups_without_splitting_them() {
        let (_, plan) = planned(&config(&[]));
        let all: usize = (1..=3)
            .map(|index| plan.requests_of(Some(Shard { index, count: 3 })))
            .sum();
        assert_eq!(all, plan.requests_of(None));
        let first = Shard { index: 1, count: 2 };
        assert!(plan.blocks_of(Some(first)).all(|block| block.group == 0));
        assert_eq!(plan.requests_of(Some(first)), 4 * 7);
    }

    const LOADS: &str = "grid.loads=['closed_loop', { open_loop = { rate_rps = 10.0, requests = 40 } }, \
                         { saturation = { requests_per_level = 5, max_levels = 4 } }]";

    #[test]
    fn a_load_is_a_dimension_whose_rounds_alternate() {
        let (_, plan) = planned(&config(&[LOADS, "workload.rounds=3"]));
        // Per link: one after the other, an open loop, a search.
        assert_eq!(plan.groups.len(), 2 * 3);
        assert_eq!(plan.cells.len(), 2 * 3 * 4);
        assert!(plan.has_load());
        let group = &plan.groups[1];
        assert_eq!(group.load, "poisson-10.0rps");
        let blocks: Vec<&Block> = plan.blocks.iter().filter(|b| b.group == 1).collect();
        let turns: Vec<usize> = blocks.iter().map(|block| block.cell).collect();
        assert_eq!(turns, [4, 5, 6, 7, 7, 6, 5, 4, 4, 5, 6, 7]);
        let rounds: Vec<u32> = blocks
            .iter()
            .map(|block| block.round.as_ref().unwrap().rounds.start)
            .collect();
        assert_eq!(rounds, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]);
        // A round is the same for every cell, and another one draws anew.
        let arrivals = |block: &Block| -> Vec<(usize, usize, Arrival)> {
            let of = block.requests.iter();
            of.map(|r| (r.document, r.question, r.arrival)).collect()
        };
        assert_eq!(arrivals(blocks[0]), arrivals(blocks[3]));
        assert_ne!(arrivals(blocks[3]), arrivals(blocks[4]));
        assert!(plan.cells[4].id.contains("-primed-poisson-10.0rps-"));
        assert_eq!(plan.cells[4].identity().load, "poisson-10.0rps");
        // The cells that make one request after the other are as without loads.
        let (_, sequential) = planned(&config(&[
            "workload.rounds=3",
            "workload.arrivals='closed_loop'",
        ]));
        let (_, with) = planned(&config(&[
            LOADS,
            "workload.rounds=3",
            "workload.arrivals='closed_loop'",
        ]));
        assert_eq!(with.cells[..4], sequential.cells[..4]);
    }

    #[test]
    fn orders_of_a_search_leave_room_for_its_levels() {
        let (_, plan) = planned(&config(&[LOADS]));
        let mut end = 0;
        for block in &plan.blocks {
            let orders = block.orders();
            assert_eq!(orders.start, end);
            end = orders.end;
        }
        let search = plan.blocks.iter().rfind(|block| block.group == 2).unwrap();
        assert_eq!(search.requests.len(), 5);
        assert_eq!(search.orders().end - search.orders().start, 5 * 4);
        assert_eq!(search.round.as_ref().unwrap().rounds, 4..8);
    }

    #[test]
    fn the_ends_of_a_round_are_not_counted() {
        let sets = [
            LOADS,
            "workload.warmup_share=0.25",
            "workload.cooldown_share=0.1",
        ];
        let (_, plan) = planned(&config(&sets));
        let block = plan.blocks.iter().find(|block| block.group == 1).unwrap();
        let at = |request: &PlannedRequest| match request.arrival {
            Arrival::At(at) => at.as_secs_f64(),
            Arrival::WhenFree => panic!("an open loop waits for nobody"),
        };
        let end = at(&block.requests[39]);
        for request in &block.requests {
            let place = at(request) / end;
            assert_eq!(request.warmup, place < 0.25, "{place}");
            assert_eq!(request.cooldown, place >= 0.9, "{place}");
        }
        assert!(block.requests.iter().any(PlannedRequest::counted));
    }

    #[test]
    fn the_objective_changes_cells_under_load_alone() {
        let (_, plan) = planned(&config(&[LOADS]));
        let (_, other) = planned(&config(&[LOADS, "slo.ttft_ms=1.0"]));
        for (cell, other) in plan.cells.iter().zip(&other.cells) {
            assert_eq!(
                cell.hash == other.hash,
                cell.load.is_sequential(),
                "{}",
                cell.id
            );
        }
    }

    #[test]
    fn ids_are_readable_and_unique() {
        let (_, plan) = planned(&config(&[]));
        let id = &plan.cells[3].id;
        assert!(
            id.starts_with("main-ce_lslm-identity-group_quant-4b"),
            "{id}"
        );
        assert!(id.contains("-slow-20m-60ms-embedded-primed-"), "{id}");
        assert!(id.ends_with(&plan.cells[3].hash[..8]));
    }
}
