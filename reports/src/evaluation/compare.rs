//! Which family needs how many bytes for the same loss.

use super::family::{Family, Loss, ONE_POINT, Reach, factor};

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
        let reached = family.front(Loss::Nats).at(0.02).ratio();
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
        let own = leader.front(Loss::Nats);
        let level = |&level: &f64| {
            let (against, base) = others(families, leader)
                .map(|f| (f.name, f.front(Loss::Nats).at(level)))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::arm::{Arm, Board, read};
    use crate::evaluation::family::families;
    use crate::evaluation::fixture;
    use crate::quality::Paired;

    /// Gives the arms of the fixture these wire ratios and losses of likelihood.
    fn board(dir: &std::path::Path, figures: &[(&str, f64, f64)]) -> Board {
        let mut board = read(&fixture::run(dir)).unwrap().remove(0);
        board.arms.retain(|arm: &Arm| {
            figures.iter().any(|f| f.0 == arm.identity.name) || arm.identity.family == "exact"
        });
        board.reference = Some(0);
        for &(name, ratio, difference) in figures {
            let arm = board.arms.iter_mut().find(|a| a.identity.name == name);
            let summary = &mut arm.unwrap().summary;
            summary.wire_ratio = Some(ratio);
            summary.nll_difference = Some(Paired {
                questions: 9,
                difference,
                interval: None,
            });
        }
        board
    }

    #[test]
    fn factors_are_against_the_best_of_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let board = board(
            dir.path(),
            &[
                ("groups-8bit", 2.0, 0.001),
                ("groups-3bit", 6.0, 0.05),
                ("kvtc-4x", 4.0, 0.01),
                ("kvtc-16x", 8.0, 0.06),
                ("celslm-4x", 5.0, 0.01),
                ("celslm-16x", 20.0, 0.03),
            ],
        );
        let families = families(&board);
        let found = at_equal_nll(&families);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].name, "celslm");
        let at = |index: usize| {
            let level = found[0].levels[index].as_ref();
            level.map(|a| (a.against, a.bound, a.factor, a.own, a.base))
        };
        // Its first arm loses 0.01 already.
        assert_eq!(at(0), None);
        let (against, bound, factor, own, base) = at(1).unwrap();
        assert_eq!((against, bound), ("kvtc", ""));
        assert!((factor - 1.25).abs() < 1e-9 && (own - 5.0).abs() < 1e-9);
        assert!((base - 4.0).abs() < 1e-9);
        // Halfway to 20x is 10x; kvtc is a fifth of an octave beyond 4x.
        let (against, bound, factor, own, base) = at(2).unwrap();
        assert_eq!((against, bound), ("kvtc", ""));
        assert!((own - 10.0).abs() < 1e-9 && (base - 4.0 * 2f64.powf(0.2)).abs() < 1e-9);
        assert!((factor - own / base).abs() < 1e-12);
        // Taken no further than 20x, and there still below 0.05.
        let (_, bound, factor, own, base) = at(3).unwrap();
        assert_eq!((bound, own), ("more than ", 20.0));
        assert!((factor - 20.0 / base).abs() < 1e-12);
        // Neither was taken to 0.1.
        assert_eq!(at(4), None);
    }

    #[test]
    fn without_an_own_family_the_best_leads() {
        let dir = tempfile::tempdir().unwrap();
        let board = board(
            dir.path(),
            &[
                ("groups-8bit", 2.0, 0.001),
                ("groups-3bit", 6.0, 0.02),
                ("kvtc-4x", 4.0, 0.01),
                ("kvtc-16x", 9.0, 0.02),
            ],
        );
        let families = families(&board);
        let names: Vec<_> = leaders(&families).iter().map(|f| f.name).collect();
        assert_eq!(names, ["kvtc"]);
        let found = at_equal_nll(&families);
        let level = found[0].levels[2].as_ref().unwrap();
        assert_eq!((level.against, level.factor), ("groups", 1.5));
    }
}
