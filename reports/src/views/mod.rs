//! The tables of a report, one file per view.

mod bytes;
mod calibration;
mod capacity;
mod drift;
mod edge_cost;
mod exactness;
mod failures;
mod load;
mod quality;
mod saturation;
mod summary;
mod ttft_breakdown;

pub use bytes::Bytes;
pub use calibration::Calibration;
pub use capacity::Capacity;
pub use drift::Drift;
pub use edge_cost::EdgeCost;
pub use exactness::Exactness;
pub use failures::Failures;
pub use load::Load;
pub use quality::Quality;
pub use saturation::Saturation;
pub use summary::Summary;
pub use ttft_breakdown::TtftBreakdown;

pub(crate) use drift::{RoundDrift, drifts};
pub(crate) use saturation::BASELINES;
pub(crate) use summary::state;

use crate::cell::{Cell, CellIdentity};
use crate::error::ReportError;
use crate::frame::Quantiles;
use crate::labels::Labels;
use crate::quality::Score;
use crate::report::ReportInput;
use crate::table::{Table, Value};

/// What a view is made from: the run's description and its cells in plan order.
#[derive(Debug)]
pub struct Data {
    pub(crate) input: ReportInput,
    pub(crate) cells: Vec<Cell>,
    pub(crate) labels: Labels,
}

/// One table of the report.
pub trait View: Send + Sync {
    /// Registry name.
    fn name(&self) -> &'static str;
    /// One sentence for `celslm ls`.
    fn about(&self) -> &'static str;
    /// Whether a run has what the view is about; without it, the report leaves the
    /// view out.
    fn applies(&self, _data: &Data) -> bool {
        true
    }
    /// The table; one without rows says in its notes why there are none.
    fn table(&self, data: &Data) -> Table;
}

/// Every view, in the order of the report.
pub const VIEWS: &[&dyn View] = &[
    &Summary,
    &Load,
    &Saturation,
    &Capacity,
    &Drift,
    &TtftBreakdown,
    &Quality,
    &Bytes,
    &EdgeCost,
    &Exactness,
    &Failures,
    &Calibration,
];

/// The view of this name.
///
/// # Errors
/// [`ReportError::UnknownView`], which lists the known names.
pub fn view(name: &str) -> Result<&'static dyn View, ReportError> {
    VIEWS
        .iter()
        .find(|v| v.name() == name)
        .copied()
        .ok_or_else(|| ReportError::UnknownView {
            name: name.to_owned(),
            known: VIEWS
                .iter()
                .map(|v| v.name())
                .collect::<Vec<_>>()
                .join(", "),
        })
}

/// Cells of one method and load whose answers cannot differ: the link, the schedule and
/// the cache contract move bytes and time, not tokens.
#[derive(Debug)]
pub(crate) struct Pool<'a> {
    pub(crate) label: String,
    pub(crate) first: &'a CellIdentity,
    pub(crate) cells: Vec<&'a Cell>,
}

impl Pool<'_> {
    pub(crate) fn measured(&self) -> impl Iterator<Item = &crate::sample::Sample> {
        self.cells.iter().flat_map(|c| c.measured())
    }

    /// Mean downlink bytes of an answered request: its own, or its share of the
    /// load's.
    pub(crate) fn downlink_bytes(&self) -> Option<f64> {
        let mut requests = 0;
        let mut bytes = 0.0;
        for cell in &self.cells {
            if let (Some(mean), ok) = (cell.summary.downlink_bytes, cell.summary.ok) {
                requests += ok;
                bytes += mean * ok as f64;
            }
        }
        (requests > 0).then(|| bytes / requests as f64)
    }
}

impl Data {
    /// Name of a cell without its link.
    pub(crate) fn variant(&self, cell: &Cell) -> String {
        self.labels.variant(&cell.identity)
    }

    /// Whether any cell ran under load.
    pub(crate) fn loaded(&self) -> bool {
        self.cells.iter().any(Cell::loaded)
    }

    /// Link profiles in plan order.
    pub(crate) fn links(&self) -> Vec<&str> {
        let mut links: Vec<&str> = Vec::new();
        for cell in &self.cells {
            if !links.contains(&cell.identity.link.as_str()) {
                links.push(&cell.identity.link);
            }
        }
        links
    }

    /// Names of the variants in plan order.
    pub(crate) fn variants(&self) -> Vec<String> {
        let mut variants: Vec<String> = Vec::new();
        for cell in &self.cells {
            let variant = self.variant(cell);
            if !variants.contains(&variant) {
                variants.push(variant);
            }
        }
        variants
    }

    /// Cells pooled by what can change an answer and by load, in plan order.
    pub(crate) fn pools(&self) -> Vec<Pool<'_>> {
        self.pooled(true)
    }

    /// The same, with all loads together: for what belongs to a request and not
    /// to the company that it was in.
    pub(crate) fn pools_over_loads(&self) -> Vec<Pool<'_>> {
        self.pooled(false)
    }

    fn pooled(&self, by_load: bool) -> Vec<Pool<'_>> {
        let key = |c: &CellIdentity| {
            [
                &c.scenario,
                &c.system,
                &c.alignment,
                &c.mapping,
                &c.codec,
                &c.dataset,
                &c.compute,
                &c.device,
                if by_load { &c.load } else { &c.system },
            ]
            .map(Clone::clone)
        };
        let mut pools: Vec<Pool<'_>> = Vec::new();
        for cell in &self.cells {
            match pools
                .iter_mut()
                .find(|p| key(p.first) == key(&cell.identity))
            {
                Some(pool) => pool.cells.push(cell),
                None => pools.push(Pool {
                    label: self.labels.pooled(&cell.identity, by_load),
                    first: &cell.identity,
                    cells: vec![cell],
                }),
            }
        }
        pools
    }
}

/// A score in per cent with its interval.
pub(crate) fn percent(score: Option<Score>) -> Value {
    score.map_or(Value::Missing, |s| {
        Value::Interval(
            100.0 * s.mean,
            s.interval.map(|(low, high)| (100.0 * low, 100.0 * high)),
            1,
        )
    })
}

/// A p99 that says why it is missing.
pub(crate) fn p99(quantiles: Quantiles, ok: usize) -> Value {
    match quantiles.p99 {
        Some(value) => Value::Number(value, 1),
        None if ok == 0 => Value::Missing,
        None => Value::Unsupported,
    }
}

/// Bytes as kB (1000 bytes).
pub(crate) fn kb(bytes: Option<f64>) -> Value {
    Value::number(bytes.map(|b| b / 1e3), 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_looked_up() {
        for v in VIEWS {
            assert_eq!(view(v.name()).unwrap().name(), v.name());
            assert!(!v.about().is_empty());
        }
        let Err(error) = view("pie") else {
            panic!("pie is not registered");
        };
        assert!(error.to_string().contains("known: summary, "), "{error}");
    }
}
