//! Families: the settings of one method, and how far they go.

use super::arm::{Arm, Board};
use super::row::ArmKind;

/// Families of this project's own chains begin with this; all others are what they are held
/// against.
pub(super) const OWN_FAMILY: &str = "celslm";

/// Room for a difference that is exactly at its limit and not exact in binary.
const ROUNDING: f64 = 1e-9;

/// The comparable arms of one method.
#[derive(Debug)]
pub(super) struct Family<'a> {
    pub(super) name: &'a str,
    /// By wire ratio, lowest first. Arms that send nothing are not in it.
    pub(super) arms: Vec<&'a Arm>,
}

/// How a loss against the reference is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// Points of F1.
    Points,
    /// Nats per gold token.
    Nats,
}

/// A bound on what an arm may lose against the reference.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    /// Heading of its column.
    pub(super) title: &'static str,
    /// The same in a sentence.
    pub(super) words: &'static str,
    pub(super) loss: Loss,
    /// The greatest loss that is within it.
    most: f64,
}

pub(super) const ONE_POINT: Limit = Limit {
    title: "F1 within 1 point",
    words: "F1 within 1 point",
    loss: Loss::Points,
    most: 1.0,
};

pub(super) const THREE_POINTS: Limit = Limit {
    title: "F1 within 3 points",
    words: "F1 within 3 points",
    loss: Loss::Points,
    most: 3.0,
};

pub(super) const NLL_LIMIT: Limit = Limit {
    title: "ΔNLL ≤ 0.02",
    words: "NLL within 0.02 nats a token",
    loss: Loss::Nats,
    most: 0.02,
};

impl Loss {
    /// What an arm loses, by the point estimate; below 0 it gains.
    fn of(self, arm: &Arm) -> Option<f64> {
        match self {
            Self::Points => Some(-100.0 * arm.summary.f1_difference?.difference),
            Self::Nats => Some(arm.summary.nll_difference?.difference),
        }
    }
}

impl Limit {
    /// Whether the arm is within it; `None` where it was not measured.
    pub(super) fn holds(self, arm: &Arm) -> Option<bool> {
        Some(self.loss.of(arm)? <= self.most + ROUNDING)
    }
}

/// The arm with which a family goes furthest within a limit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Furthest<'a> {
    pub(super) arm: &'a Arm,
    /// Whether no arm of the family goes beyond the limit, so that more may be possible.
    pub(super) open: bool,
}

/// Families of the methods, in plan order; also those without a comparable arm.
pub(super) fn families(board: &Board) -> Vec<Family<'_>> {
    gathered(board.of(ArmKind::Method))
}

/// The same for codec chains alone. How far one goes within a bound is asked of settings that send
/// less and less; what the cloud's model makes for the edge has no such settings.
pub(super) fn codec_families(board: &Board) -> Vec<Family<'_>> {
    let methods = board.of(ArmKind::Method);
    gathered(methods.filter(|arm| arm.identity.codec.is_some()))
}

fn gathered<'a>(methods: impl Iterator<Item = &'a Arm>) -> Vec<Family<'a>> {
    let mut families: Vec<Family<'_>> = Vec::new();
    for arm in methods {
        let index = families
            .iter()
            .position(|f| f.name == arm.identity.family)
            .unwrap_or_else(|| {
                families.push(Family {
                    name: &arm.identity.family,
                    arms: Vec::new(),
                });
                families.len() - 1
            });
        if arm.comparable && arm.summary.wire_ratio.is_some() {
            families[index].arms.push(arm);
        }
    }
    let ratio = |arm: &Arm| arm.summary.wire_ratio.unwrap_or(0.0);
    for family in &mut families {
        family.arms.sort_by(|a, b| ratio(a).total_cmp(&ratio(b)));
    }
    families
}

impl<'a> Family<'a> {
    pub(super) fn own(&self) -> bool {
        self.name.starts_with(OWN_FAMILY)
    }

    /// The arm with the highest wire ratio such that it and every arm below it are within the
    /// limit. Arms that were not measured for it are passed over.
    pub(super) fn furthest(&self, limit: Limit) -> Option<Furthest<'a>> {
        let (arms, open) = self.within(limit);
        arms.last().map(|&arm| Furthest { arm, open })
    }

    /// Of the arms that [`Family::furthest`] goes through for one point of F1, the last whose
    /// interval lies wholly within that point.
    pub(super) fn surely(&self) -> Option<Furthest<'a>> {
        let (arms, open) = self.within(ONE_POINT);
        let sure = |arm: &Arm| {
            let interval = arm.summary.f1_difference.and_then(|d| d.interval);
            interval.is_some_and(|(low, _)| low > -0.01)
        };
        let index = arms.iter().rposition(|arm| sure(arm))?;
        Some(Furthest {
            arm: arms[index],
            open: open && index + 1 == arms.len(),
        })
    }

    fn within(&self, limit: Limit) -> (Vec<&'a Arm>, bool) {
        let mut arms = Vec::new();
        for &arm in &self.arms {
            match limit.holds(arm) {
                Some(true) => arms.push(arm),
                Some(false) => return (arms, false),
                None => {}
            }
        }
        (arms, true)
    }

    /// What the family loses by wire ratio.
    pub(super) fn front(&self, loss: Loss) -> Front {
        Front::new(
            self.arms
                .iter()
                .filter_map(|arm| Some((arm.summary.wire_ratio?, loss.of(arm)?))),
        )
    }
}

/// The monotone envelope of a family's points: those that no other point of the family beats
/// in both wire ratio and loss.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Front {
    /// Wire ratio and loss, both rising strictly.
    points: Vec<(f64, f64)>,
}

/// The wire ratio at which a family has a given loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Reach {
    /// Every arm loses more.
    Never,
    /// Interpolated between two arms.
    At(f64),
    /// Even the arm of this, the highest ratio, loses less.
    Beyond(f64),
}

impl Reach {
    /// The ratio that was reached.
    pub(super) fn ratio(self) -> Option<f64> {
        match self {
            Self::Never => None,
            Self::At(ratio) | Self::Beyond(ratio) => Some(ratio),
        }
    }
}

impl Front {
    pub(super) fn new(points: impl Iterator<Item = (f64, f64)>) -> Self {
        let mut points: Vec<(f64, f64)> = points
            .filter(|(ratio, loss)| *ratio > 0.0 && ratio.is_finite() && loss.is_finite())
            .collect();
        points.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.total_cmp(&b.1)));
        let mut least = f64::INFINITY;
        points.retain(|&(_, loss)| {
            let kept = loss < least;
            least = least.min(loss);
            kept
        });
        points.reverse();
        Self { points }
    }

    pub(super) fn points(&self) -> &[(f64, f64)] {
        &self.points
    }

    /// The wire ratio at `loss`, by interpolation of its logarithm over the loss.
    pub(super) fn at(&self, loss: f64) -> Reach {
        let above = self.points.iter().position(|p| p.1 > loss);
        match (above, self.points.last()) {
            (_, None) | (Some(0), _) => Reach::Never,
            (None, Some(&(ratio, last))) if last < loss => Reach::Beyond(ratio),
            (None, Some(&(ratio, _))) => Reach::At(ratio),
            (Some(i), _) => {
                let ((r0, l0), (r1, l1)) = (self.points[i - 1], self.points[i]);
                let share = (loss - l0) / (l1 - l0);
                Reach::At((r0.ln() + share * (r1 / r0).ln()).exp())
            }
        }
    }

    /// The least loss with which the family reaches `ratio`; `None` beyond its last arm. Below
    /// its first arm it is that arm's, which sends even less.
    pub(super) fn loss(&self, ratio: f64) -> Option<f64> {
        let above = self.points.iter().position(|p| p.0 >= ratio)?;
        if above == 0 {
            return Some(self.points[0].1);
        }
        let ((r0, l0), (r1, l1)) = (self.points[above - 1], self.points[above]);
        Some(l0 + (l1 - l0) * (ratio / r0).ln() / (r1 / r0).ln())
    }
}

/// A stretch of wire ratios over which one front loses less than another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Stretch {
    pub(super) from: f64,
    pub(super) to: f64,
    /// The greatest difference of the losses, and where it is.
    pub(super) most: f64,
    pub(super) most_at: f64,
}

/// Where both reach, the stretches in which `other` loses less than `own` by more than
/// `margin`, in order. Losses are linear in the logarithm of the ratio between arms, so the
/// ends are exact.
pub(super) fn better(other: &Front, own: &Front, margin: f64) -> Vec<Stretch> {
    let ends = |f: &Front| Some((f.points.first()?.0, f.points.last()?.0));
    let (Some((a, b)), Some((c, d))) = (ends(other), ends(own)) else {
        return Vec::new();
    };
    // From the first arm of either on: below its own first arm, a front has that arm's loss.
    let (low, high) = (a.min(c), b.min(d));
    let mut cuts: Vec<f64> = other
        .points
        .iter()
        .chain(&own.points)
        .map(|p| p.0)
        .filter(|r| (low..=high).contains(r))
        .collect();
    cuts.sort_by(f64::total_cmp);
    cuts.dedup();
    let gain = |ratio: f64| Some(own.loss(ratio)? - other.loss(ratio)?);
    let mut stretches: Vec<Stretch> = Vec::new();
    let mut open: Option<Stretch> = None;
    let mut last: Option<(f64, f64)> = None;
    for &ratio in &cuts {
        let Some(now) = gain(ratio) else { continue };
        let crossing = |(r0, g0): (f64, f64)| {
            let share = (margin - g0) / (now - g0);
            (r0.ln() + share * (ratio / r0).ln()).exp()
        };
        if now > margin {
            let from = last.filter(|l| l.1 <= margin).map_or(ratio, crossing);
            let stretch = open.get_or_insert(Stretch {
                from,
                to: ratio,
                most: now,
                most_at: ratio,
            });
            stretch.to = ratio;
            if now > stretch.most {
                (stretch.most, stretch.most_at) = (now, ratio);
            }
        } else if let (Some(mut stretch), Some(last)) = (open.take(), last) {
            stretch.to = crossing(last);
            stretches.push(stretch);
        }
        last = Some((ratio, now));
    }
    stretches.extend(open);
    stretches
}

/// How many times the wire ratio of `base` the one of `own` is, as far as it is known: the
/// number with "more than" or "less than" where one was not taken to its end.
pub(super) fn factor(own: Reach, base: Reach) -> Option<(&'static str, f64)> {
    match (own, base) {
        (Reach::At(a), Reach::At(b)) => Some(("", a / b)),
        (Reach::Beyond(a), Reach::At(b)) => Some(("more than ", a / b)),
        (Reach::At(a), Reach::Beyond(b)) => Some(("less than ", a / b)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::fixture;
    use crate::quality::Paired;

    fn front(points: &[(f64, f64)]) -> Front {
        Front::new(points.iter().copied())
    }

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9 * b.abs().max(1.0)
    }

    #[test]
    fn the_envelope_leaves_out_what_is_beaten() {
        let found = front(&[
            (4.0, 0.01),
            (2.0, 0.02),
            (8.0, 0.03),
            (8.0, 0.05),
            (6.0, 0.03),
            (f64::NAN, 0.0),
            (9.0, f64::NAN),
            (0.0, -1.0),
        ]);
        assert_eq!(found.points(), [(4.0, 0.01), (8.0, 0.03)]);
        assert_eq!(front(&[]).points(), []);
    }

    #[test]
    fn ratios_at_a_loss_by_hand() {
        let front = front(&[(4.0, 0.01), (16.0, 0.03), (32.0, 0.1)]);
        assert_eq!(front.at(0.005), Reach::Never);
        assert_eq!(front.at(0.01), Reach::At(4.0));
        // Halfway in loss is the geometric middle in ratio.
        let Reach::At(middle) = front.at(0.02) else {
            panic!("0.02 lies between two arms");
        };
        assert!(near(middle, 8.0), "{middle}");
        assert_eq!(front.at(0.1), Reach::At(32.0));
        assert_eq!(front.at(0.2), Reach::Beyond(32.0));
        assert_eq!(Front::new([].into_iter()).at(0.1), Reach::Never);
    }

    #[test]
    fn losses_at_a_ratio_by_hand() {
        let front = front(&[(4.0, 0.01), (16.0, 0.03)]);
        assert_eq!(front.loss(2.0), Some(0.01));
        assert_eq!(front.loss(4.0), Some(0.01));
        assert!(near(front.loss(8.0).unwrap(), 0.02));
        assert_eq!(front.loss(16.0), Some(0.03));
        assert_eq!(front.loss(16.1), None);
    }

    #[test]
    fn stretches_end_where_the_lines_cross() {
        // Own: 0 at 2x, 0.04 at 32x, so 0.01 an octave. Other: 0.02 up to 4x, flat to 0.021 at 32x.
        let own = front(&[(2.0, 0.0), (32.0, 0.04)]);
        let other = front(&[(4.0, 0.02), (32.0, 0.020_000_001)]);
        let found = better(&other, &own, 0.0);
        assert_eq!(found.len(), 1);
        // Own reaches 0.02 two octaves above 2x.
        assert!((found[0].from - 8.0).abs() < 1e-5, "{found:?}");
        assert_eq!((found[0].to, found[0].most_at), (32.0, 32.0));
        assert!((found[0].most - 0.02).abs() < 1e-6);
        let back = better(&own, &other, 0.0);
        assert_eq!((back.len(), back[0].from), (1, 2.0));
        assert!((back[0].to - 8.0).abs() < 1e-5 && near(back[0].most, 0.02));
        // With a margin of 0.01 the stretch begins an octave later.
        assert!((better(&other, &own, 0.01)[0].from - 16.0).abs() < 1e-5);
        assert_eq!(better(&other, &own, 0.03), []);
        assert_eq!(better(&front(&[]), &own, 0.0), []);
        assert_eq!(better(&own, &own, 0.0), []);
        // Sending less is no gain where it loses more.
        assert_eq!(better(&front(&[(64.0, 0.5)]), &own, 0.0), []);
    }

    #[test]
    fn families_go_as_far_as_all_of_their_arms_do() {
        let dir = tempfile::tempdir().unwrap();
        let boards = crate::evaluation::arm::read(&fixture::run(dir.path())).unwrap();
        let families = families(&boards[0]);
        let names: Vec<_> = families.iter().map(|f| f.name).collect();
        assert_eq!(names, ["groups", "kvtc", "celslm"]);
        let far = |family: &str, limit: Limit| {
            let family = families.iter().find(|f| f.name == family).unwrap();
            family.furthest(limit).map(|f| (f.arm.name(), f.open))
        };
        // Made so: 0.7 points at 8x and 6 at 16x, 0.012 and 0.025 nats at 4x and 8x.
        assert_eq!(far("kvtc", ONE_POINT), Some(("kvtc-8x", false)));
        assert_eq!(far("kvtc", NLL_LIMIT), Some(("kvtc-4x", false)));
        assert_eq!(far("celslm", ONE_POINT), Some(("celslm-8x", false)));
        assert_eq!(far("celslm", THREE_POINTS), Some(("celslm-16x", false)));
        assert_eq!(far("celslm", NLL_LIMIT), Some(("celslm-16x", false)));
        // The arm that would lose most did not run.
        assert_eq!(far("groups", ONE_POINT), Some(("groups-3bit", true)));
    }

    #[test]
    fn an_arm_beyond_the_bound_ends_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let mut boards = crate::evaluation::arm::read(&fixture::run(dir.path())).unwrap();
        let board = &mut boards[0];
        let mut set = |name: &str, difference: f64, interval: Option<(f64, f64)>| {
            let arm = board.arms.iter_mut().find(|a| a.identity.name == name);
            arm.unwrap().summary.f1_difference = Some(Paired {
                questions: 9,
                difference,
                interval,
            });
        };
        set("celslm-4x", -0.01, Some((-0.009, 0.01)));
        set("celslm-8x", -0.005, Some((-0.015, 0.01)));
        set("celslm-16x", -0.011, Some((-0.02, 0.0)));
        set("celslm-32x", 0.02, Some((0.01, 0.03)));
        let families = families(board);
        let family = families.iter().find(|f| f.own()).unwrap();
        let far = |limit: Limit| family.furthest(limit).map(|f| (f.arm.name(), f.open));
        // Exactly one point is within it, and what comes after 16x does not count.
        assert_eq!(far(ONE_POINT), Some(("celslm-8x", false)));
        assert_eq!(far(THREE_POINTS), Some(("celslm-32x", true)));
        let sure = family.surely().map(|f| (f.arm.name(), f.open));
        assert_eq!(sure, Some(("celslm-4x", false)));
    }

    #[test]
    fn factors_state_their_bounds() {
        let (at, beyond) = (Reach::At, Reach::Beyond);
        assert_eq!(factor(at(12.0), at(8.0)), Some(("", 1.5)));
        assert_eq!(factor(beyond(12.0), at(8.0)), Some(("more than ", 1.5)));
        assert_eq!(factor(at(12.0), beyond(8.0)), Some(("less than ", 1.5)));
        assert_eq!(factor(beyond(12.0), beyond(8.0)), None);
        assert_eq!(factor(at(12.0), Reach::Never), None);
    }
}
