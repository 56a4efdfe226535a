//! `edge_cost`: what is left for the edge to do.

use super::{Data, View};
use crate::table::{Column, Table, Value};

/// Prefill work and KV memory at the edge, and which caches had the context.
#[derive(Debug, Clone, Copy)]
pub struct EdgeCost;

impl View for EdgeCost {
    fn name(&self) -> &'static str {
        "edge_cost"
    }

    fn about(&self) -> &'static str {
        "prefill work and KV memory at the edge, and cache hits"
    }

    fn table(&self, data: &Data) -> Table {
        let cells: Vec<_> = data.cells.iter().filter(|c| c.summary.ok > 0).collect();
        let share = |value: Option<f64>| Value::number(value.map(|v| 100.0 * v), 0);
        let rows = cells
            .iter()
            .map(|cell| {
                let s = &cell.summary;
                vec![
                    Value::Text(data.variant(cell)),
                    Value::Text(cell.identity.link.clone()),
                    Value::number(s.edge_prefill_token_layers, 0),
                    Value::number(s.edge_peak_kv_bytes.map(|b| b as f64 / 1e6), 2),
                    Value::Text(cell.identity.contract.clone()),
                    share(s.edge_cache_hit_share),
                    share(s.cloud_store_hit_share),
                ]
            })
            .collect();
        Table {
            title: "Cost at the edge".to_owned(),
            columns: vec![
                Column::text("system"),
                Column::text("link"),
                Column::figure("edge prefill", "token-layers"),
                Column::figure("peak KV", "MB"),
                Column::text("contract"),
                Column::figure("edge cache hits", "%"),
                Column::figure("cloud store hits", "%"),
            ],
            rows,
            notes: vec![if cells.is_empty() {
                "No request was answered.".to_owned()
            } else {
                "Token-layers are tokens × layers that the edge prefilled itself, mean per request; peak KV is the largest over the requests."
                    .to_owned()
            }],
        }
    }
}
