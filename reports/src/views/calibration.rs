//! `calibration`: whether the link was what it claims.

use super::{Data, View};
use crate::table::{Column, Table, Value};

/// Link figures measured before and after the campaign, against their targets.
#[derive(Debug, Clone, Copy)]
pub struct Calibration;

impl View for Calibration {
    fn name(&self) -> &'static str {
        "calibration"
    }

    fn about(&self) -> &'static str {
        "link figures measured before and after the run, against their targets"
    }

    fn table(&self, data: &Data) -> Table {
        let rows: Vec<_> = data
            .input
            .calibration
            .iter()
            .map(|row| {
                let figure = |value: Option<f64>| Value::number(value, 2);
                vec![
                    Value::Text(row.link.clone()),
                    Value::Text(row.figure.clone()),
                    Value::Text(row.unit.clone()),
                    figure(row.target),
                    figure(row.before),
                    figure(row.after),
                    Value::Text(row.verdict.clone()),
                ]
            })
            .collect();
        Table {
            title: "Link calibration".to_owned(),
            columns: vec![
                Column::text("link"),
                Column::text("figure"),
                Column::text("unit"),
                Column::figure("target", ""),
                Column::figure("before", ""),
                Column::figure("after", ""),
                Column::text("verdict"),
            ],
            notes: if rows.is_empty() {
                vec![
                    "The links were not calibrated in this run: their figures are what was asked for, not what was measured."
                        .to_owned(),
                ]
            } else {
                vec![
                    "Measured on the path that the run uses, before its first and after its last cell."
                        .to_owned(),
                ]
            },
            rows,
        }
    }
}
