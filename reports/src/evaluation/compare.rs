//! Which family needs how many bytes for the same loss.

use super::family::{Family, ONE_POINT, Reach, factor};

/// Losses of likelihood at which families are compared, nats per gold token.
pub(super) const NLL_LEVELS: [f64; 5] = [0.005, 0.01, 0.02, 0.05, 0.1];

/// One family against the best of the others at each of [`NLL_LEVELS`].
#[derive(Debug, PartialEq)]
pub(super) struct Comparison<'a> {
    pub(super) name: &'a str,
    /// `None` where one of them does not reach the level, or neither was taken to it.
    pub(super) levels: Vec<Option<Against<'a>>>,
}

/// The next family at one level.
#[derive(Debug, PartialEq)]
pub(super) struct Against<'a> {
    pub(super) level: f64,
    /// The wire ratio that was reached.
    pub(super) own: f64,
    /// Name of the best of the others, and the wire ratio that it reached.
    pub(super) against: &'a str,
    pub(super) base: f64,
    /// How many times fewer bytes, with "more than " or "less than " where a family was not
    /// taken to its end.
    pub(super) bound: &'static str,
    pub(super) factor: f64,
}

/// The families that are held against the others: this project's own, or the best one where
/// there is none.
pub(super) fn leaders<'a, 'b>(families: &'b [Family<'a>]) -> Vec<&'b Family<'a>> {
    let measured = || families.iter().filter(|f| !f.arms.is_empty());
    let own: Vec<_> = measured().filter(|f| f.own()).collect();
    if !own.is_empty() {
        return own;
    }
    let merit = |family: &Family<'_>| {
        let reached = family.nll_front().at(0.02).ratio();
        let kept = family
            .furthest(ONE_POINT)
            .and_then(|f| f.arm.summary.wire_ratio);
        (reached.unwrap_or(0.0), kept.unwrap_or(0.0))
    };
    // The first in the plan of equal ones.
    measured()
        .rev()
        .max_by(|a, b| {
            let (a, b) = (merit(a), merit(b));
            a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
        })
        .into_iter()
        .collect()
}

/// What a leader is held against.
pub(super) fn others<'a, 'b>(
    families: &'b [Family<'a>],
    leader: &'b Family<'a>,
) -> impl Iterator<Item = &'b Family<'a>> {
    families
        .iter()
        .filter(move |f| !f.arms.is_empty() && !f.own() && f.name != leader.name)
}

/// Every leader against the others.
pub(super) fn at_equal_nll<'a>(families: &[Family<'a>]) -> Vec<Comparison<'a>> {
    let of = |leader: &Family<'a>| {
        let own = leader.nll_front();
        let level = |&level: &f64| {
            let (against, base) = others(families, leader)
                .map(|f| (f.name, f.nll_front().at(level)))
                .filter(|(_, reach)| *reach != Reach::Never)
                .max_by(|a, b| {
                    a.1.ratio()
                        .partial_cmp(&b.1.ratio())
                        .unwrap_or(std::cmp::Ordering::Equal)
                })?;
            let own = own.at(level);
            let (bound, factor) = factor(own, base)?;
            Some(Against {
                level,
                own: own.ratio()?,
                against,
                base: base.ratio()?,
                bound,
                factor,
            })
        };
        Comparison {
            name: leader.name,
            levels: NLL_LEVELS.iter().map(level).collect(),
        }
    };
    leaders(families)
        .into_iter()
        .map(of)
        .filter(|c| c.levels.iter().any(Option::is_some))
        .collect()
}
