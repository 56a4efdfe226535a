//! `exactness`: whether a hand-off changes the tokens.

use super::{Data, View};
use crate::table::{Column, Table, Value};

/// How many differing requests are named.
const NAMED: usize = 5;

/// Greedy tokens against those of `edge_only` on the same request, wherever the
/// two must be equal.
#[derive(Debug, Clone, Copy)]
pub struct Exactness;

impl View for Exactness {
    fn name(&self) -> &'static str {
        "exactness"
    }

    fn about(&self) -> &'static str {
        "requests whose tokens equal those of edge_only, where they must"
    }

    fn table(&self, data: &Data) -> Table {
        let mut rows = Vec::new();
        let mut notes = Vec::new();
        for cell in &data.cells {
            let s = &cell.summary;
            if s.exact_checked == 0 {
                continue;
            }
            rows.push(vec![
                Value::Text(data.variant(cell)),
                Value::Text(cell.identity.link.clone()),
                Value::Count(s.exact_checked as u64),
                Value::Count(s.exact_equal as u64),
                Value::Number(100.0 * s.exact_equal as f64 / s.exact_checked as f64, 1),
            ]);
            let differing: Vec<String> = cell
                .measured()
                .filter(|s| s.token_exact == Some(false))
                .map(|s| format!("{} {}", s.document_id, s.question_id))
                .collect();
            if !differing.is_empty() {
                notes.push(format!(
                    "Different tokens, {} on {}: {}{}.",
                    data.variant(cell),
                    cell.identity.link,
                    differing[..differing.len().min(NAMED)].join(", "),
                    if differing.len() > NAMED {
                        format!(" and {} more", differing.len() - NAMED)
                    } else {
                        String::new()
                    }
                ));
            }
        }
        if rows.is_empty() {
            notes.push("No request had to equal edge_only token by token.".to_owned());
        }
        Table {
            title: "Tokens equal to edge_only".to_owned(),
            columns: vec![
                Column::text("system"),
                Column::text("link"),
                Column::figure("checked", ""),
                Column::figure("equal", ""),
                Column::figure("share", "%"),
            ],
            rows,
            notes,
        }
    }
}
