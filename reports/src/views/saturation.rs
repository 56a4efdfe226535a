//! `saturation`: the highest rate that each system sustains.

use super::{Data, View};
use crate::frame::P99_MIN_REQUESTS;
use crate::series::{rate, ratio, series};
use crate::table::{Column, Table, Value};

/// The systems that others are held against.
pub(crate) const BASELINES: [&str; 2] = ["edge_only", "cloud_only"];

/// Highest offered rate that meets the SLO, where it breaks, and the ratio to
/// both baselines.
#[derive(Debug, Clone, Copy)]
pub struct Saturation;

impl View for Saturation {
    fn name(&self) -> &'static str {
        "saturation"
    }

    fn about(&self) -> &'static str {
        "highest rate within the SLO per system, where it breaks, and the ratio to both baselines"
    }

    fn applies(&self, data: &Data) -> bool {
        data.loaded()
    }

    fn table(&self, data: &Data) -> Table {
        let all = series(data);
        let mut rows = Vec::new();
        let mut notes = Vec::new();
        let mut few = false;
        for own in &all {
            let Some(point) = own.saturation() else {
                if data.input.slo.is_some() {
                    notes.push(format!(
                        "{} on {}: no level can be relied on.",
                        own.label, own.first.link
                    ));
                }
                continue;
            };
            few |= point.holds.is_some() && point.requests < P99_MIN_REQUESTS;
            if let (Some(holds), Some(below)) = (point.holds, point.below) {
                notes.push(format!(
                    "{} on {} holds at {} req/s and missed the SLO at {}, which is less: its point of saturation is uncertain.",
                    own.label,
                    own.first.link,
                    rate(holds),
                    rate(below)
                ));
            }
            let mut row = vec![
                Value::Text(own.label.clone()),
                Value::Text(own.first.link.clone()),
                Value::Text(own.family.clone()),
                Value::Text(point.holds.map_or_else(|| "at no rate".to_owned(), rate)),
                Value::Text(
                    point
                        .breaks
                        .as_ref()
                        .map_or_else(|| "not reached".to_owned(), |(at, _)| rate(*at)),
                ),
                Value::Text(
                    point
                        .breaks
                        .as_ref()
                        .map_or_else(String::new, |(_, why)| why.clone()),
                ),
                Value::number(own.highest_throughput(), 2),
                Value::number(own.highest_goodput(), 2),
            ];
            for system in BASELINES {
                let ratio = own
                    .baseline(&all, system)
                    .and_then(|base| ratio(&point, &base.saturation()?));
                row.push(ratio.map_or(Value::Missing, Value::Text));
            }
            rows.push(row);
        }
        if rows.is_empty() {
            notes.push(
                if data.input.slo.is_none() {
                    "No SLO was set: what a system sustains is not defined."
                } else {
                    "No load was offered at a rate."
                }
                .to_owned(),
            );
        } else {
            notes.push(
                "A rate holds when 99% of the requests are within the TTFT limit, one without an answer being beyond it, 99% of the answers of two tokens or more are within the TPOT limit, no request was left out and the level did not have to be stopped. The point of saturation lies between the rate that holds and the one that breaks; a ratio compares the rates that hold."
                    .to_owned(),
            );
            if few {
                notes.push(format!(
                    "A rate that holds on fewer than {P99_MIN_REQUESTS} requests may have a true p99 beyond the limit."
                ));
            }
        }
        Table {
            title: "Saturation".to_owned(),
            columns: vec![
                Column::text("system"),
                Column::text("link"),
                Column::text("load"),
                Column::figure("holds", "req/s"),
                Column::figure("breaks", "req/s"),
                Column::text("because"),
                Column::figure("highest throughput", "req/s"),
                Column::figure("highest goodput", "req/s"),
                Column::figure("× edge_only", ""),
                Column::figure("× cloud_only", ""),
            ],
            rows,
            notes,
        }
    }
}
