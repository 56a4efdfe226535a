//! `summary`: one row per cell.

use super::{Data, View, kb, p99, percent};
use crate::level::LevelState;
use crate::table::{Column, Table, Value};

/// Latency, bytes and quality of every cell.
#[derive(Debug, Clone, Copy)]
pub struct Summary;

impl View for Summary {
    fn name(&self) -> &'static str {
        "summary"
    }

    fn about(&self) -> &'static str {
        "latency, bytes and quality of every cell"
    }

    fn table(&self, data: &Data) -> Table {
        let rows = data
            .cells
            .iter()
            .map(|cell| {
                let s = &cell.summary;
                vec![
                    Value::Text(data.variant(cell)),
                    Value::Text(cell.identity.link.clone()),
                    Value::Text(state(cell)),
                    Value::Count(s.requests as u64),
                    Value::Count(s.failures as u64),
                    Value::number(s.ttft_ms.p50, 1),
                    Value::number(s.ttft_ms.p95, 1),
                    p99(s.ttft_ms, s.ok),
                    Value::number(s.tpot_ms.p50, 2),
                    Value::number(s.e2e_ms.p50, 1),
                    kb(s.uplink_bytes),
                    kb(s.downlink_bytes),
                    Value::number(s.em.map(|em| 100.0 * em.mean), 1),
                    percent(s.f1),
                ]
            })
            .collect();
        let mut notes = vec![
            "TTFT, TPOT and end-to-end time are p50 unless stated; kB are 1000 IP bytes counted at the link, mean per request; EM and F1 are in per cent, F1 with a 95% bootstrap interval over documents."
                .to_owned(),
        ];
        if data.loaded() {
            notes.push(
                "A cell at several rates states no time here, as it would mix them; the table of loads does. Bytes of a cell under load are the link's total over its requests, warm-up included."
                    .to_owned(),
            );
        }
        if data.cells.iter().any(|c| c.summary.degraded) {
            notes.push(
                "A degraded cell ran on a link that missed its target: its latencies are listed, not compared and not drawn."
                    .to_owned(),
            );
        }
        Table {
            title: "Summary".to_owned(),
            columns: vec![
                Column::text("system"),
                Column::text("link"),
                Column::text("state"),
                Column::figure("n", ""),
                Column::figure("failed", ""),
                Column::figure("TTFT p50", "ms"),
                Column::figure("TTFT p95", "ms"),
                Column::figure("TTFT p99", "ms"),
                Column::figure("TPOT", "ms"),
                Column::figure("end to end", "ms"),
                Column::figure("uplink", "kB"),
                Column::figure("downlink", "kB"),
                Column::figure("EM", "%"),
                Column::figure("F1", "%"),
            ],
            rows,
            notes,
        }
    }
}

/// In one word, whether the row can be relied on.
pub(crate) fn state(cell: &crate::cell::Cell) -> String {
    let s = &cell.summary;
    let any = |wanted: fn(&LevelState) -> bool| cell.levels.iter().any(|l| wanted(&l.state));
    if s.requests == 0 && cell.samples.is_empty() {
        "not run"
    } else if s.requests == 0 {
        "none counted"
    } else if s.ok == 0 {
        "failed"
    } else if s.degraded {
        "degraded"
    } else if any(|s| matches!(s, LevelState::Invalid(_))) {
        "INVALID"
    } else if cell.failure.is_some() || any(|s| *s == LevelState::Incomplete) {
        "incomplete"
    } else if any(|s| matches!(s, LevelState::Stopped(_))) {
        "stopped"
    } else {
        "ok"
    }
    .to_owned()
}
