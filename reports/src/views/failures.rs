//! `failures`: what did not work.

use std::collections::BTreeMap;

use super::{Data, View};
use crate::table::{Column, Table, Value, shorten};

/// Longest error message in a table; the whole one is in `samples.jsonl`.
const MESSAGE_CHARS: usize = 160;

/// Failed requests by kind, and cells that did not run or broke off.
#[derive(Debug, Clone, Copy)]
pub struct Failures;

impl View for Failures {
    fn name(&self) -> &'static str {
        "failures"
    }

    fn about(&self) -> &'static str {
        "failed requests by kind, and cells that did not run or broke off"
    }

    fn table(&self, data: &Data) -> Table {
        let mut rows = Vec::new();
        let mut notes = Vec::new();
        for cell in &data.cells {
            let mut row = |kind: &str, count: u64, message: &str| {
                rows.push(vec![
                    Value::Text(data.variant(cell)),
                    Value::Text(cell.identity.link.clone()),
                    Value::Text(kind.to_owned()),
                    Value::Count(count),
                    Value::Count(cell.summary.requests as u64),
                    Value::Text(shorten(message, MESSAGE_CHARS)),
                ]);
            };
            let mut kinds: BTreeMap<&str, (u64, &str)> = BTreeMap::new();
            for sample in cell.samples.iter().filter(|s| !s.ok() && s.counted()) {
                kinds
                    .entry(sample.error_kind.as_deref().unwrap_or("unknown"))
                    .or_insert((0, sample.error.as_deref().unwrap_or("")))
                    .0 += 1;
            }
            for (kind, (count, message)) in kinds {
                row(kind, count, message);
            }
            if let Some(failure) = &cell.failure {
                row("cell broke off", 0, failure);
            } else if cell.samples.is_empty() {
                row("cell not run", 0, "it has no samples");
            }
            if cell.torn_bytes > 0 {
                notes.push(format!(
                    "{} on {}: the last line of samples.jsonl is unfinished ({} bytes) and was left out, as after a kill.",
                    data.variant(cell),
                    cell.identity.link,
                    cell.torn_bytes
                ));
            }
        }
        let warmups = data
            .cells
            .iter()
            .flat_map(|c| &c.samples)
            .filter(|s| s.warmup && !s.ok())
            .count();
        if warmups > 0 {
            notes.push(format!(
                "{warmups} warm-up {} failed too.",
                if warmups == 1 { "request" } else { "requests" }
            ));
        }
        if rows.is_empty() {
            notes.insert(0, "No request failed and every cell ran.".to_owned());
        } else {
            notes.push(
                "The message is the first of its kind in the cell; failed requests are rows of samples.parquet like the others."
                    .to_owned(),
            );
        }
        Table {
            title: "Failures".to_owned(),
            columns: vec![
                Column::text("system"),
                Column::text("link"),
                Column::text("kind"),
                Column::figure("failed", ""),
                Column::figure("of", ""),
                Column::text("message"),
            ],
            rows,
            notes,
        }
    }
}
