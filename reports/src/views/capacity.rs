//! `capacity`: the memory that a load takes.

use super::{Data, View};
use crate::load::LoadRound;
use crate::table::{Column, Table, Value};

/// Weights, peak KV and resident memory of both nodes.
#[derive(Debug, Clone, Copy)]
pub struct Capacity;

impl View for Capacity {
    fn name(&self) -> &'static str {
        "capacity"
    }

    fn about(&self) -> &'static str {
        "weights, peak KV and resident memory at the edge and in the cloud under load"
    }

    fn applies(&self, data: &Data) -> bool {
        data.loaded()
    }

    fn table(&self, data: &Data) -> Table {
        let mut rows = Vec::new();
        for cell in &data.cells {
            let Some(facts) = cell.facts.as_ref().filter(|f| !f.rounds.is_empty()) else {
                continue;
            };
            let most = |figure: fn(&LoadRound) -> Option<u64>| {
                let most = facts.rounds.iter().filter_map(figure).max();
                Value::number(most.map(|bytes| bytes as f64 / 1e6), 1)
            };
            let in_flight = facts.rounds.iter().map(|r| r.max_in_flight).max();
            rows.push(vec![
                Value::Text(data.labels.unloaded(&cell.identity)),
                Value::Text(cell.identity.link.clone()),
                Value::Text(cell.identity.load.clone()),
                in_flight.map_or(Value::Missing, Value::Count),
                most(|r| r.edge_weights_bytes),
                most(|r| r.edge_peak_kv_bytes),
                most(|r| r.edge_rss_bytes),
                most(|r| r.cloud_weights_bytes),
                most(|r| r.cloud_peak_kv_bytes),
                most(|r| r.cloud_rss_bytes),
            ]);
        }
        Table {
            title: "Memory under load".to_owned(),
            columns: vec![
                Column::text("system"),
                Column::text("link"),
                Column::text("load"),
                Column::figure("in flight, most", ""),
                Column::figure("edge weights", "MB"),
                Column::figure("edge peak KV", "MB"),
                Column::figure("edge RSS", "MB"),
                Column::figure("cloud weights", "MB"),
                Column::figure("cloud peak KV", "MB"),
                Column::figure("cloud RSS", "MB"),
            ],
            notes: vec![if rows.is_empty() {
                "No node stated its memory.".to_owned()
            } else {
                "The largest over the rounds of a cell; MB are 10⁶ bytes. A context that several requests share counts once in the KV. Both processes keep both systems' caches, so that RSS is of the process and not of the system alone."
                    .to_owned()
            }],
            rows,
        }
    }
}
