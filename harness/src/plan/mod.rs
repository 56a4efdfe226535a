//! The plan: which cells a run has, and the order in which their requests are made.
//!
//! Planning is pure. [`Plan::new`] sees the configuration and what was read for it ([`Inputs`]),
//! and the same two give the same plan, cell ids, seeds and order.
//!
//! # Order
//! Scenarios follow each other as written, `main` first. Within a scenario the link is set once:
//! all cells of one link, data set and load form a [`Group`], and every cell of a group makes the same
//! requests. Requests are cut into blocks of `workload.block_requests`. With `abba`, the first
//! block is made by the cells in the order A B C, the second in the order C B A, the third again
//! A B C: a drift of the machine (heat, a noisy neighbour) then touches every cell alike, and no
//! system is measured wholly before another. Each cell's warm-up requests come before its first
//! block, in the order A B C.
//!
//! Under a load, that is with several requests under way or with arrivals that wait for nobody, a
//! block is a whole round of the load: every cell of the group makes all of its requests, and
//! `workload.rounds` of them alternate as blocks do. Warm-up and cool-down are shares of a round.

mod cell;
mod describe;
mod estimate;
mod inputs;
mod order;
mod seeds;
mod shard;

pub use cell::Cell;
pub(crate) use cell::{content_hash, id as cell_id};
pub use describe::describe;
pub use estimate::{Basis, Estimate, KvEstimator};
pub use inputs::{ArtefactFile, BridgeFile, DatasetDraw, Devices, Inputs};
pub use order::{Block, Group, Plan, PlanError, PlannedRequest, Round};
pub use seeds::Seeds;
pub use shard::{Shard, ShardError};
