//! From grids to cells, and from cells to an order of requests.

use std::collections::BTreeSet;

use celslm_datasets::Request;
use celslm_systems::{CloudNeed, KvPath, SystemSpec};

use super::cell::{content_hash, id};
use super::{Cell, Inputs, Seeds, Shard};
use crate::config::{Config, Grid, Interleave};

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

/// Cells that are compared with each other: one link and one data set of one scenario.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The scenario.
    pub scenario: String,
    /// The link, which is set once for the group.
    pub link: String,
    /// Index of the data set's draw in [`Inputs::draws`].
    pub draw: usize,
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
    /// Index into the draw's documents.
    pub document: usize,
    /// Index into the document's questions.
    pub question: usize,
    /// Seed of the request, the same for every cell that makes it.
    pub seed: u64,
}

/// Requests that one cell makes before the next has its turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Index into [`Plan::groups`].
    pub group: usize,
    /// Index into [`Plan::cells`].
    pub cell: usize,
    /// The requests, in order.
    pub requests: Vec<PlannedRequest>,
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
        let seeds = Seeds::new(config.experiment.seed);
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
                    let group = plan.groups.len();
                    let first = plan.cells.len();
                    plan.add_cells(config, inputs, &scenario, &grid, link, draw)?;
                    let cells: Vec<usize> = (first..plan.cells.len()).collect();
                    let arrivals = &config.workload.arrivals;
                    let workload =
                        inputs
                            .workload(arrivals)
                            .ok_or_else(|| PlanError::MissingInput {
                                scenario: scenario.clone(),
                                what: format!("workload {}", arrivals.name()),
                            })?;
                    let requests = workload
                        .requests(&inputs.draws[draw].documents, seeds.derive("workload"))
                        .map_err(|source| PlanError::Workload {
                            scenario: scenario.clone(),
                            source,
                        })?;
                    plan.blocks
                        .extend(blocks(config, group, &cells, &requests, &mut order));
                    plan.groups.push(Group {
                        scenario: scenario.clone(),
                        link: link.clone(),
                        draw,
                        cells,
                    });
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
        scenario: &str,
        grid: &Grid,
        link: &str,
        draw: usize,
    ) -> Result<(), PlanError> {
        let profile = inputs
            .links
            .get(link)
            .ok_or_else(|| PlanError::MissingInput {
                scenario: scenario.to_owned(),
                what: format!("link {link}"),
            })?;
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
                    inputs
                        .workload(&config.workload.arrivals)
                        .and_then(|workload| workload.source_hash()),
                    (&config.deployment, &device, compute, devices, serving),
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
                        kv.codec.to_string(),
                        kv.schedule.to_string(),
                    ]
                });
                names.extend(path.iter().flatten().map(String::as_str));
                names.extend([link, dataset.name, &contract_name]);
                self.cells.push(Cell {
                    id: id(&names, &hash),
                    scenario: scenario.to_owned(),
                    link: link.to_owned(),
                    dataset: dataset.config.clone(),
                    draw,
                    contract: *contract,
                    device,
                    compute,
                    seed,
                    hash,
                    spec,
                });
            }
        }
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
                                codec: codec.clone(),
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
                    let planned = PlannedRequest {
                        order: *order,
                        repetition: request.repetition,
                        warmup,
                        document: request.document,
                        question: request.question,
                        seed: request.seed,
                    };
                    *order += 1;
                    planned
                })
                .collect(),
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
