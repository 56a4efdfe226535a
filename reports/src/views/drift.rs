//! `drift`: whether anything grows over a long load.

use super::{Data, View};
use crate::cell::Cell;
use crate::error::ReportError;
use crate::frame;
use crate::load::{LoadRound, MemoryPoint};
use crate::sample::Sample;
use crate::table::{Column, Table, Value};

/// A third of fewer requests than this has no median worth comparing.
const MIN_THIRD: usize = 30;

/// First against last third of a round: latency, and memory of the nodes.
#[derive(Debug, Clone, Copy)]
pub struct Drift;

/// One figure in the first and the last third of a round.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Change {
    pub(crate) first: Option<f64>,
    pub(crate) last: Option<f64>,
}

impl Change {
    /// Growth as a share of the first.
    pub(crate) fn growth(self) -> Option<f64> {
        let first = self.first.filter(|f| *f > 0.0)?;
        Some(self.last? / first - 1.0)
    }
}

/// What changed over one round.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RoundDrift {
    pub(crate) duration_s: f64,
    pub(crate) requests: usize,
    pub(crate) ttft_p50_ms: Change,
    pub(crate) tpot_p50_ms: Change,
    pub(crate) edge_rss_bytes: Change,
    pub(crate) cloud_rss_bytes: Change,
}

impl RoundDrift {
    pub(crate) fn figures(&self) -> [(&'static str, Change); 4] {
        [
            ("TTFT p50", self.ttft_p50_ms),
            ("TPOT p50", self.tpot_p50_ms),
            ("edge RSS", self.edge_rss_bytes),
            ("cloud RSS", self.cloud_rss_bytes),
        ]
    }
}

/// The drifts of a cell's rounds: those with requests enough that can be relied
/// on.
pub(crate) fn drifts(cell: &Cell) -> Result<Vec<RoundDrift>, ReportError> {
    let Some(facts) = &cell.facts else {
        return Ok(Vec::new());
    };
    if cell.summary.degraded {
        return Ok(Vec::new());
    }
    let mut drifts = Vec::new();
    for round in facts.rounds.iter().filter(|r| r.valid) {
        let mut samples: Vec<Sample> = cell
            .measured()
            .filter(|s| s.round == round.round)
            .cloned()
            .collect();
        let third = samples.len() / 3;
        if third < MIN_THIRD {
            continue;
        }
        samples.sort_by_key(|s| s.scheduled_ns);
        let medians = |samples: &[Sample]| -> Result<[Option<f64>; 2], ReportError> {
            let frame = frame::samples_frame(samples)?;
            let [ttft, tpot, _] = frame::level_quantiles(&frame, round.offered_rps, 0)?;
            Ok([ttft.p50, tpot.p50])
        };
        let first = medians(&samples[..third])?;
        let last = medians(&samples[samples.len() - third..])?;
        let change = |i: usize| Change {
            first: first[i],
            last: last[i],
        };
        drifts.push(RoundDrift {
            duration_s: round.duration_s,
            requests: samples.len(),
            ttft_p50_ms: change(0),
            tpot_p50_ms: change(1),
            edge_rss_bytes: memory(round, |m| m.edge_rss_bytes),
            cloud_rss_bytes: memory(round, |m| m.cloud_rss_bytes),
        });
    }
    Ok(drifts)
}

/// Mean memory in the first and the last third of a round's time.
fn memory(round: &LoadRound, figure: fn(&MemoryPoint) -> Option<u64>) -> Change {
    let mean = |within: &dyn Fn(f64) -> bool| {
        let points: Vec<f64> = round
            .memory
            .iter()
            .filter(|m| within(m.at_s))
            .filter_map(|m| figure(m).map(|bytes| bytes as f64))
            .collect();
        (!points.is_empty()).then(|| points.iter().sum::<f64>() / points.len() as f64)
    };
    let end = round.memory.last().map_or(0.0, |m| m.at_s);
    Change {
        first: mean(&|at| at <= end / 3.0),
        last: mean(&|at| at >= end * 2.0 / 3.0),
    }
}

impl View for Drift {
    fn name(&self) -> &'static str {
        "drift"
    }

    fn about(&self) -> &'static str {
        "first against last third of a load: latency and memory"
    }

    fn applies(&self, data: &Data) -> bool {
        data.loaded()
    }

    fn table(&self, data: &Data) -> Table {
        let mut rows = Vec::new();
        for cell in &data.cells {
            for drift in &cell.drifts {
                let mut row = vec![
                    Value::Text(data.labels.unloaded(&cell.identity)),
                    Value::Text(cell.identity.link.clone()),
                    Value::Text(cell.identity.load.clone()),
                    Value::Number(drift.duration_s / 60.0, 1),
                    Value::Count(drift.requests as u64),
                ];
                for (index, (_, change)) in drift.figures().into_iter().enumerate() {
                    // Latencies are ms as they are; memory is shown in MB.
                    let scale = if index < 2 { 1.0 } else { 1e6 };
                    row.extend([
                        Value::number(change.first.map(|v| v / scale), 1),
                        Value::number(change.last.map(|v| v / scale), 1),
                        Value::number(change.growth().map(|g| 100.0 * g), 1),
                    ]);
                }
                rows.push(row);
            }
        }
        Table {
            title: "Drift over a load".to_owned(),
            columns: vec![
                Column::text("system"),
                Column::text("link"),
                Column::text("load"),
                Column::figure("duration", "min"),
                Column::figure("n", ""),
                Column::figure("TTFT p50, first third", "ms"),
                Column::figure("last third", "ms"),
                Column::figure("change", "%"),
                Column::figure("TPOT p50, first third", "ms"),
                Column::figure("last third", "ms"),
                Column::figure("change", "%"),
                Column::figure("edge RSS, first third", "MB"),
                Column::figure("last third", "MB"),
                Column::figure("change", "%"),
                Column::figure("cloud RSS, first third", "MB"),
                Column::figure("last third", "MB"),
                Column::figure("change", "%"),
            ],
            notes: vec![if rows.is_empty() {
                format!(
                    "No valid round has {} answered requests, so that no third of one has a median worth comparing.",
                    3 * MIN_THIRD
                )
            } else {
                "Thirds of a round's answered requests by scheduled arrival, and of its time for the resident memory."
                    .to_owned()
            }],
            rows,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_a_share_of_the_first() {
        let change = |first, last| Change { first, last }.growth();
        assert_eq!(change(Some(100.0), Some(125.0)), Some(0.25));
        assert_eq!(change(Some(0.0), Some(1.0)), None);
        assert_eq!(change(None, Some(1.0)), None);
        assert_eq!(change(Some(1.0), None), None);
    }

    #[test]
    fn memory_is_compared_by_time() {
        let mut round = crate::fixture::round(0, None);
        round.memory = (0..10u32)
            .map(|i| MemoryPoint {
                at_s: f64::from(i) * 10.0,
                edge_rss_bytes: Some(u64::from(i)),
                cloud_rss_bytes: None,
            })
            .collect();
        // 0 to 30 s and 60 to 90 s.
        let edge = memory(&round, |m| m.edge_rss_bytes);
        assert_eq!((edge.first, edge.last), (Some(1.5), Some(7.5)));
        assert_eq!(memory(&round, |m| m.cloud_rss_bytes), Change::default());
    }
}
