//! `load`: what every system does at every load level.

use super::{Data, View, p99};
use crate::series::rate;
use crate::table::{Column, Table, Value};

/// Throughput, goodput, latencies and failures of every load level.
#[derive(Debug, Clone, Copy)]
pub struct Load;

impl View for Load {
    fn name(&self) -> &'static str {
        "load"
    }

    fn about(&self) -> &'static str {
        "throughput, goodput, latency and failures at every load level"
    }

    fn applies(&self, data: &Data) -> bool {
        data.loaded()
    }

    fn table(&self, data: &Data) -> Table {
        let mut rows = Vec::new();
        let mut excluded = 0;
        for cell in &data.cells {
            for level in &cell.levels {
                excluded += level.excluded;
                let failures: Vec<String> = level
                    .failures
                    .iter()
                    .map(|(kind, count)| format!("{kind} {count}"))
                    .collect();
                rows.push(vec![
                    Value::Text(data.labels.unloaded(&cell.identity)),
                    Value::Text(cell.identity.link.clone()),
                    Value::Text(cell.identity.load.clone()),
                    level
                        .offered_rps
                        .map_or(Value::Missing, |r| Value::Text(rate(r))),
                    Value::Count(level.requests as u64),
                    Value::Count(level.ok as u64),
                    Value::Text(if failures.is_empty() {
                        "none".to_owned()
                    } else {
                        failures.join(", ")
                    }),
                    Value::number(level.throughput_rps(), 2),
                    Value::number(level.throughput_tok_s(), 1),
                    Value::number(level.goodput_rps(), 2),
                    Value::number(level.good_share().map(|s| 100.0 * s), 1),
                    Value::number(level.ttft_ms.p50, 1),
                    Value::number(level.ttft_ms.p95, 1),
                    p99(level.ttft_ms, level.ok),
                    Value::number(level.tpot_ms.p50, 2),
                    Value::number(level.tpot_ms.p95, 2),
                    p99(level.tpot_ms, level.ok),
                    level.max_in_flight.map_or(Value::Missing, Value::Count),
                    Value::number(level.send_delay_p99_ms, 2),
                    Value::Text(level.state.words()),
                ]);
            }
        }
        let mut notes = Vec::new();
        if rows.is_empty() {
            notes.push("No cell ran under load.".to_owned());
        } else {
            notes.push(
                "One row per cell and offered rate. Throughput is what was answered, goodput what met every limit of the SLO, both over the time from the first send to the last response of the requests that count. Latencies are over answered requests: where many fail, they are those of the lucky ones."
                    .to_owned(),
            );
            notes.push(match data.input.slo {
                Some(slo) => format!(
                    "SLO: TTFT up to {} ms and TPOT up to {} ms.",
                    rate(slo.ttft_ms),
                    rate(slo.tpot_ms)
                ),
                None => "No SLO was set, so that goodput is not defined.".to_owned(),
            });
            if excluded > 0 {
                notes.push(format!(
                    "{excluded} requests of warm-up and cool-down are stored and counted in nothing."
                ));
            }
            notes.push(
                "An INVALID level is one in which the load generator did not keep to its plan; neither it nor a degraded or incomplete one is drawn or compared."
                    .to_owned(),
            );
        }
        Table {
            title: "Load".to_owned(),
            columns: vec![
                Column::text("system"),
                Column::text("link"),
                Column::text("load"),
                Column::figure("offered", "req/s"),
                Column::figure("n", ""),
                Column::figure("answered", ""),
                Column::text("failures"),
                Column::figure("throughput", "req/s"),
                Column::figure("throughput", "tok/s"),
                Column::figure("goodput", "req/s"),
                Column::figure("within SLO", "%"),
                Column::figure("TTFT p50", "ms"),
                Column::figure("TTFT p95", "ms"),
                Column::figure("TTFT p99", "ms"),
                Column::figure("TPOT p50", "ms"),
                Column::figure("TPOT p95", "ms"),
                Column::figure("TPOT p99", "ms"),
                Column::figure("in flight, most", ""),
                Column::figure("send delay p99", "ms"),
                Column::text("state"),
            ],
            rows,
            notes,
        }
    }
}
