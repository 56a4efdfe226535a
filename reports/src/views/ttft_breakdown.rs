//! `ttft_breakdown`: where the time to the first token goes.

use super::{Data, View};
use crate::sample::PART_NAMES;
use crate::table::{Column, Table, Value};

/// Mean of every part of TTFT, exposed and overlapped.
#[derive(Debug, Clone, Copy)]
pub struct TtftBreakdown;

impl View for TtftBreakdown {
    fn name(&self) -> &'static str {
        "ttft_breakdown"
    }

    fn about(&self) -> &'static str {
        "parts of the time to the first token, and whether they add up to it"
    }

    fn table(&self, data: &Data) -> Table {
        let cells: Vec<_> = data
            .cells
            .iter()
            .filter(|c| c.summary.ok > 0 && c.levels.len() <= 1)
            .collect();
        // A part that no cell has would be a column of zeros.
        let shown: Vec<usize> = (0..PART_NAMES.len())
            .filter(|&i| {
                cells.iter().any(|c| {
                    let part = c.summary.parts[i];
                    part.exposed_ms > 0.0 || part.overlapped_ms > 0.0
                })
            })
            .collect();
        let mut columns = vec![Column::text("system"), Column::text("link")];
        columns.extend(
            shown
                .iter()
                .map(|&i| Column::figure(&PART_NAMES[i].replace('_', " "), "ms")),
        );
        columns.extend([
            Column::figure("sum", "ms"),
            Column::figure("TTFT mean", "ms"),
            Column::figure("largest gap", "%"),
            Column::figure("overlapped", "ms"),
        ]);
        let rows = cells
            .iter()
            .map(|cell| {
                let s = &cell.summary;
                let mut row = vec![
                    Value::Text(data.variant(cell)),
                    Value::Text(cell.identity.link.clone()),
                ];
                row.extend(
                    shown
                        .iter()
                        .map(|&i| Value::Number(s.parts[i].exposed_ms, 1)),
                );
                row.extend([
                    Value::Number(s.parts.iter().map(|p| p.exposed_ms).sum(), 1),
                    Value::number(s.ttft_mean_ms, 1),
                    Value::number(s.parts_gap_max.map(|g| 100.0 * g), 2),
                    Value::Number(s.parts.iter().map(|p| p.overlapped_ms).sum(), 1),
                ]);
                row
            })
            .collect();
        Table {
            title: "Time to first token, by part".to_owned(),
            columns,
            rows,
            notes: vec![if cells.is_empty() {
                "No request was answered.".to_owned()
            } else {
                "Means over the answered requests. A part counts as far as nothing else hid it; time that ran beside another part is summed under overlapped and is in no other column. The gap is the largest difference between the sum of the parts and TTFT over single requests."
                    .to_owned()
            }],
        }
    }
}
