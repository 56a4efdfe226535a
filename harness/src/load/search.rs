//! The search for the point of saturation: the highest rate at which a cell keeps its objective.
//!
//! The rate is doubled until a level fails, or halved until one holds; then the gap between the
//! highest rate that held and the lowest that failed is halved (on a logarithmic scale, as rates
//! are compared by their ratio) until it is no wider than the resolution. It is a search over
//! noise: a level near the point may come out either way, so that a search is repeated as often as
//! a cell has rounds.

/// How to search.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SearchRule {
    /// The first rate, in requests per second.
    pub start_rps: f64,
    /// The widest gap that is left, as a share of the rate that held.
    pub resolution: f64,
    /// Most levels.
    pub max_levels: u32,
}

/// Lowest rate that is tried, as a share of the first.
const LOWEST: f64 = 1.0 / 64.0;

/// A search under way.
#[derive(Debug)]
pub struct Search {
    rule: SearchRule,
    held: Option<f64>,
    failed: Option<f64>,
    levels: u32,
}

impl Search {
    /// A search that has tried nothing.
    #[must_use]
    pub fn new(rule: SearchRule) -> Self {
        Self {
            rule,
            held: None,
            failed: None,
            levels: 0,
        }
    }

    /// The rate to try next; `None` when the search is over.
    #[must_use]
    pub fn next_rate(&self) -> Option<f64> {
        let SearchRule {
            start_rps,
            resolution,
            max_levels,
        } = self.rule;
        if self.levels >= max_levels {
            return None;
        }
        match (self.held, self.failed) {
            (None, None) => Some(start_rps),
            (Some(held), None) => Some(held * 2.0),
            (None, Some(failed)) => (failed > start_rps * LOWEST).then_some(failed / 2.0),
            (Some(held), Some(failed)) => {
                (failed / held > 1.0 + resolution).then(|| (held * failed).sqrt())
            }
        }
    }

    /// What came of the rate that [`Search::next_rate`] gave.
    pub fn judge(&mut self, rate: f64, held: bool) {
        self.levels += 1;
        if held {
            self.held = Some(rate);
        } else {
            self.failed = Some(rate);
        }
    }

    /// The highest rate that held.
    #[must_use]
    pub fn highest_held(&self) -> Option<f64> {
        self.held
    }
}

/// What one level of a search, or one round of a load, showed.
#[derive(Debug, Clone, Default)]
pub struct Level {
    /// TTFT of the counted requests, in milliseconds; infinite for a failed one.
    pub ttft_ms: Vec<f64>,
    /// TPOT of the counted, answered requests that have one, in milliseconds.
    pub tpot_ms: Vec<f64>,
}

impl Level {
    /// Whether the 99th percentiles lie within these bounds. A request that failed is later than
    /// any bound, and a level without a request holds nothing.
    #[must_use]
    pub fn holds(&self, ttft_ms: f64, tpot_ms: f64) -> bool {
        let within =
            |values: &[f64], bound: f64| quantile(values, 0.99).is_some_and(|value| value <= bound);
        within(&self.ttft_ms, ttft_ms)
            && (self.tpot_ms.is_empty() || within(&self.tpot_ms, tpot_ms))
    }
}

/// The nearest-rank quantile: the least value that at least the share `q` of them do not exceed.
#[must_use]
pub fn quantile(values: &[f64], q: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (q * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: SearchRule = SearchRule {
        start_rps: 1.0,
        resolution: 0.1,
        max_levels: 10,
    };

    /// The rates tried on a system that holds up to `capacity`.
    fn tried(rule: SearchRule, capacity: f64) -> (Vec<f64>, Option<f64>) {
        let mut search = Search::new(rule);
        let mut rates = Vec::new();
        while let Some(rate) = search.next_rate() {
            rates.push(rate);
            search.judge(rate, rate <= capacity);
        }
        (rates, search.highest_held())
    }

    #[test]
    fn it_doubles_and_then_bisects() {
        let (rates, best) = tried(RULE, 5.0);
        assert_eq!(rates[..4], [1.0, 2.0, 4.0, 8.0]);
        assert!((rates[4] - 32f64.sqrt()).abs() < 1e-9);
        let best = best.unwrap();
        assert!((5.0 / 1.1..=5.0).contains(&best), "{best}");
        assert!(rates.len() < 10, "{rates:?}");
        // The last two that matter are no further apart than the resolution.
        let lowest_failed = rates
            .iter()
            .copied()
            .filter(|&r| r > 5.0)
            .fold(f64::MAX, f64::min);
        assert!(lowest_failed / best <= 1.1);
    }

    #[test]
    fn it_halves_where_the_first_rate_is_too_high_and_gives_up_at_last() {
        let (rates, best) = tried(RULE, 0.3);
        assert_eq!(rates[..3], [1.0, 0.5, 0.25]);
        assert!((0.3 / 1.1..=0.3).contains(&best.unwrap()));
        let (rates, best) = tried(RULE, 0.0);
        assert_eq!((rates.len(), best), (7, None));
    }

    #[test]
    fn it_ends_with_its_levels() {
        let (rates, best) = tried(RULE, 1e9);
        assert_eq!((rates.len(), best), (10, Some(512.0)));
        let fine = SearchRule {
            resolution: 1e-9,
            ..RULE
        };
        assert_eq!(tried(fine, 5.0).0.len(), 10);
    }

    #[test]
    fn failures_are_later_than_any_bound() {
        let mut level = Level {
            ttft_ms: (1..=199).map(f64::from).collect(),
            tpot_ms: vec![5.0; 10],
        };
        assert!(level.holds(198.0, 5.0));
        assert!(!level.holds(197.0, 5.0));
        assert!(!level.holds(198.0, 4.9));
        level.ttft_ms.extend([f64::INFINITY; 3]);
        assert!(!level.holds(1e9, 5.0));
        assert!(!Level::default().holds(1e9, 1e9));
    }

    #[test]
    fn quantiles_are_values_that_occurred() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(quantile(&values, 0.99), Some(99.0));
        assert_eq!(quantile(&values, 0.5), Some(50.0));
        assert_eq!(quantile(&[7.0], 0.99), Some(7.0));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
