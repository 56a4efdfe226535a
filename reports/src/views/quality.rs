//! `quality`: how right the answers are.

use super::{Data, View, percent};
use crate::quality::score;
use crate::table::{Column, Table, Value};

/// EM and F1 per method, pooled over links, schedules and cache contracts,
/// which change no answer.
#[derive(Debug, Clone, Copy)]
pub struct Quality;

impl View for Quality {
    fn name(&self) -> &'static str {
        "quality"
    }

    fn about(&self) -> &'static str {
        "exact match and F1 per method, pooled over links, with intervals over documents"
    }

    fn table(&self, data: &Data) -> Table {
        let mut rows = Vec::new();
        for pool in data.pools() {
            let Some(f1) = score(pool.measured(), |s| s.f1) else {
                continue;
            };
            let of = |answerable: bool| {
                score(pool.measured(), |s| {
                    s.f1.filter(|_| s.answerable == answerable)
                })
                .map(|s| 100.0 * s.mean)
            };
            rows.push(vec![
                Value::Text(pool.label.clone()),
                Value::Count(f1.n as u64),
                Value::Count(f1.questions as u64),
                Value::Count(f1.documents as u64),
                percent(score(pool.measured(), |s| s.em)),
                percent(Some(f1)),
                Value::number(of(true), 1),
                Value::number(of(false), 1),
            ]);
        }
        let notes = if rows.is_empty() {
            vec!["No answer was scored.".to_owned()]
        } else {
            vec![
                "SQuAD-normalised, in per cent, with a 95% bootstrap interval that resamples documents. Answers to the same question on several links are counted as answers, not as questions. Failed requests have no answer to score; they are listed under failures. Cells on a degraded link count: the link changes no answer."
                    .to_owned(),
            ]
        };
        Table {
            title: "Quality, pooled over links".to_owned(),
            columns: vec![
                Column::text("method"),
                Column::figure("answers", ""),
                Column::figure("questions", ""),
                Column::figure("documents", ""),
                Column::figure("EM", "%"),
                Column::figure("F1", "%"),
                Column::figure("F1 answerable", "%"),
                Column::figure("right refusals", "%"),
            ],
            rows,
            notes,
        }
    }
}
