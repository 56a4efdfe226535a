//! Load levels of one system side by side, and where it saturates.

use crate::cell::CellIdentity;
use crate::level::Level;
use crate::table::number;
use crate::views::Data;

/// One system on one link at rising offered rates of one kind of load.
#[derive(Debug)]
pub(crate) struct Series<'a> {
    /// The system without its link and load.
    pub(crate) label: String,
    /// The kind of load, such as "poisson".
    pub(crate) family: String,
    pub(crate) first: &'a CellIdentity,
    /// Levels with an offered rate, by rising rate.
    pub(crate) points: Vec<Point<'a>>,
}

/// One level with its rate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Point<'a> {
    pub(crate) rate: f64,
    pub(crate) level: &'a Level,
}

/// The kind of a load: its label without the rate.
fn family(load: &str) -> String {
    let kept: Vec<&str> = load
        .split('-')
        .filter(|part| {
            part.strip_suffix("rps")
                .is_none_or(|rate| rate.parse::<f64>().is_err())
        })
        .collect();
    kept.join("-")
}

/// Whether two cells differ in nothing but the rate of their load.
fn same_but_rate(a: &CellIdentity, b: &CellIdentity) -> bool {
    let bare = |c: &CellIdentity| CellIdentity {
        cell_id: String::new(),
        load: family(&c.load),
        ..c.clone()
    };
    bare(a) == bare(b)
}

/// Every series in plan order.
pub(crate) fn series(data: &Data) -> Vec<Series<'_>> {
    let mut all: Vec<Series<'_>> = Vec::new();
    for cell in &data.cells {
        let points: Vec<Point<'_>> = cell
            .levels
            .iter()
            .filter_map(|level| Some((level.offered_rps?, level)))
            .map(|(rate, level)| Point { rate, level })
            .collect();
        if points.is_empty() {
            continue;
        }
        let label = data.labels.unloaded(&cell.identity);
        // A cell that shares its name with another carries its id in the label, and so stays apart.
        match all
            .iter_mut()
            .find(|s| s.label == label && same_but_rate(s.first, &cell.identity))
        {
            Some(series) => series.points.extend(points),
            None => all.push(Series {
                label,
                family: family(&cell.identity.load),
                first: &cell.identity,
                points,
            }),
        }
    }
    for series in &mut all {
        series.points.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    }
    all
}

/// Where a series stops meeting the SLO.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Saturation {
    /// The highest offered rate that meets it.
    pub(crate) holds: Option<f64>,
    /// Requests that this rests on.
    pub(crate) requests: usize,
    /// The lowest rate above that which does not, and why.
    pub(crate) breaks: Option<(f64, String)>,
    /// A lower rate than `holds` that did not meet it.
    pub(crate) below: Option<f64>,
}

impl Series<'_> {
    /// `None` without an SLO, or without a level that can be relied on.
    pub(crate) fn saturation(&self) -> Option<Saturation> {
        let judged: Vec<(f64, bool, &Level)> = self
            .points
            .iter()
            .filter_map(|p| Some((p.rate, p.level.meets()?, p.level)))
            .collect();
        if judged.is_empty() {
            return None;
        }
        let holds = judged.iter().rfind(|(_, meets, _)| *meets);
        let above = holds.map_or(f64::NEG_INFINITY, |h| h.0);
        Some(Saturation {
            holds: holds.map(|h| h.0),
            requests: holds.map_or(0, |h| h.2.requests),
            breaks: judged
                .iter()
                .find(|(rate, meets, _)| !meets && *rate > above)
                .map(|(rate, _, level)| (*rate, level.misses())),
            below: judged
                .iter()
                .find(|(rate, meets, _)| !meets && *rate < above)
                .map(|(rate, _, _)| *rate),
        })
    }

    /// The most that was answered per second at any level.
    pub(crate) fn highest_throughput(&self) -> Option<f64> {
        self.best(Level::throughput_rps)
    }

    /// The most good answers per second at any level.
    pub(crate) fn highest_goodput(&self) -> Option<f64> {
        self.best(Level::goodput_rps)
    }

    fn best(&self, figure: fn(&Level) -> Option<f64>) -> Option<f64> {
        self.points
            .iter()
            .filter(|p| p.level.usable())
            .filter_map(|p| figure(p.level))
            .max_by(f64::total_cmp)
    }

    /// The series of `system` to compare this one with: the same link, data, kind
    /// of load and device, and the same contract where there is one.
    pub(crate) fn baseline<'a>(
        &self,
        all: &'a [Series<'a>],
        system: &str,
    ) -> Option<&'a Series<'a>> {
        if self.first.system == system {
            return None;
        }
        let own = self.first;
        all.iter()
            .filter(|s| {
                s.first.system == system
                    && s.first.link == own.link
                    && s.first.dataset == own.dataset
                    && s.first.device == own.device
                    && s.family == self.family
            })
            .max_by_key(|s| {
                [
                    s.first.scenario == own.scenario,
                    (s.first.contract == "warm") == (own.contract == "warm"),
                    s.first.contract == own.contract,
                    s.first.compute == own.compute,
                ]
            })
    }
}

/// How many times the rate of `base` the rate of `own` is, as far as the levels
/// say: "4.0", "at least 4.0". `None` where they say nothing.
pub(crate) fn ratio(own: &Saturation, base: &Saturation) -> Option<String> {
    let say = |bound: &str, a: f64, b: f64| Some(format!("{bound}{}", times(a / b)));
    match (own.holds, base.holds) {
        (Some(a), Some(b)) => match (own.breaks.is_some(), base.breaks.is_some()) {
            (true, true) => say("", a, b),
            (false, true) => say("at least ", a, b),
            (true, false) => say("at most ", a, b),
            (false, false) => None,
        },
        // Where even the lowest rate fails, the ratio is bounded by it.
        (Some(a), None) => say("more than ", a, base.breaks.as_ref()?.0),
        (None, Some(b)) => say("less than ", own.breaks.as_ref()?.0, b),
        (None, None) => None,
    }
}

/// A factor: with more decimals below 1, where one would hide the most.
pub(crate) fn times(factor: f64) -> String {
    number(factor, if factor < 1.0 { 2 } else { 1 })
}

/// A rate without needless decimals: "0.5", "2", "1.25".
pub(crate) fn rate(value: f64) -> String {
    let decimals = (0..3).find(|&d| {
        let scaled = value * 10f64.powi(d);
        (scaled - scaled.round()).abs() < 1e-6 * scaled.abs().max(1.0)
    });
    number(value, decimals.unwrap_or(3) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_a_load_without_its_rate() {
        assert_eq!(family("poisson-2.0rps"), "poisson");
        assert_eq!(family("gamma2.5-0.5rps-zipf1.0"), "gamma2.5-zipf1.0");
        assert_eq!(family("saturation-poisson"), "saturation-poisson");
        assert_eq!(family("closed-8"), "closed-8");
        assert_eq!(family("trace-my-rps-time1.0"), "trace-my-rps-time1.0");
    }

    #[test]
    fn ratios_state_their_bounds() {
        let at = |holds: Option<f64>, breaks: Option<f64>| Saturation {
            holds,
            requests: 100,
            breaks: breaks.map(|b| (b, String::new())),
            below: None,
        };
        let both = at(Some(4.0), Some(5.0));
        let open = at(Some(4.0), None);
        let never = at(None, Some(0.5));
        let base = at(Some(1.0), Some(1.2));
        let says = |own, base| ratio(own, base).unwrap_or_default();
        assert_eq!(says(&both, &base), "4.0");
        assert_eq!(says(&open, &base), "at least 4.0");
        assert_eq!(says(&base, &open), "at most 0.25");
        assert_eq!(says(&both, &never), "more than 8.0");
        assert_eq!(says(&never, &base), "less than 0.50");
        assert_eq!(says(&open, &open), "");
        assert_eq!(says(&never, &never), "");
    }

    #[test]
    fn rates_are_short() {
        assert_eq!(rate(2.0), "2");
        assert_eq!(rate(0.5), "0.5");
        assert_eq!(rate(1.0 / 3.0), "0.333");
        assert_eq!(rate(1000.0), "1,000");
    }
}
