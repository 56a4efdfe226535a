//! What a method in which the cloud's model takes part is held against: the best of the controls,
//! the reference, the arm that is made alike without what the cloud's model knows, and the way from
//! the reference to the cloud's model alone.

use super::arm::{Arm, Board};
use super::row::{ArmKind, CloudPart};
use super::summary::{Metric, difference, share};
use crate::quality::{Paired, Share};

/// How a difference comes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Its whole interval is on the good side of 0.
    Better,
    /// Its interval holds 0, or there is none.
    Unclear,
    /// Its whole interval is on the bad side of 0.
    Worse,
}

impl Outcome {
    pub(super) const ALL: [Self; 3] = [Self::Better, Self::Unclear, Self::Worse];
}

impl Metric {
    /// By how much a difference is an improvement.
    pub(super) fn gain(self, difference: f64) -> f64 {
        match self {
            Self::F1 => difference,
            Self::Nll => -difference,
        }
    }

    pub(super) fn outcome(self, difference: Paired) -> Outcome {
        let Some((low, high)) = difference.interval else {
            return Outcome::Unclear;
        };
        let (one, other) = (self.gain(low), self.gain(high));
        match (one.min(other) > 0.0, one.max(other) < 0.0) {
            (true, _) => Outcome::Better,
            (_, true) => Outcome::Worse,
            _ => Outcome::Unclear,
        }
    }
}

/// Methods that cover the reference's contexts and that the cloud's model informs, in plan order.
pub(super) fn informed(board: &Board) -> impl Iterator<Item = &Arm> {
    let methods = board.of(ArmKind::Method);
    methods.filter(|arm| arm.comparable && arm.identity.cloud == Some(CloudPart::Informs))
}

/// The control that answers best.
pub(super) fn best_control(board: &Board, metric: Metric) -> Option<&Arm> {
    let merit = |arm: &Arm| metric.of(&arm.summary).map(|score| metric.gain(score.mean));
    board
        .of(ArmKind::Control)
        .filter(|arm| arm.comparable && merit(arm).is_some())
        .max_by(|a, b| {
            let (a, b) = (merit(a).unwrap_or(f64::MIN), merit(b).unwrap_or(f64::MIN));
            a.total_cmp(&b)
        })
}

/// The arm's own control, if it ran.
pub(super) fn own_control<'a>(board: &'a Board, arm: &Arm) -> Option<&'a Arm> {
    let name = arm.identity.own_control.as_deref()?;
    let found = board.arms.iter().find(|other| other.name() == name)?;
    found.comparable.then_some(found)
}

/// The cloud's model alone, if it ran.
pub(super) fn cloud_alone(board: &Board) -> Option<&Arm> {
    let alone = |arm: &&Arm| arm.identity.cloud == Some(CloudPart::Alone);
    board.arms.iter().filter(alone).find(|arm| arm.comparable)
}

/// What part of the way from the reference to the cloud's model alone an arm has covered; `None`
/// where the cloud is not clearly ahead on the questions that all three answered.
pub(super) fn gap_closed(board: &Board, arm: &Arm, metric: Metric) -> Option<Share> {
    let share = share(metric, arm, board.reference()?, cloud_alone(board)?)?;
    (metric.outcome(share.gap) == Outcome::Better).then_some(share)
}

/// The arm less another one, which is named.
pub(super) fn less<'a>(
    metric: Metric,
    arm: &Arm,
    other: Option<&'a Arm>,
) -> Option<(&'a str, Paired)> {
    let other = other.filter(|other| other.identity.cell_id != arm.identity.cell_id)?;
    Some((other.name(), difference(metric, arm, other)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_go_by_the_whole_interval_and_by_what_is_good() {
        let paired = |interval| Paired {
            questions: 5,
            difference: 0.1,
            interval,
        };
        for (interval, f1, nll) in [
            (Some((0.1, 0.3)), Outcome::Better, Outcome::Worse),
            (Some((-0.3, -0.1)), Outcome::Worse, Outcome::Better),
            (Some((-0.1, 0.3)), Outcome::Unclear, Outcome::Unclear),
            (Some((0.0, 0.3)), Outcome::Unclear, Outcome::Unclear),
            (None, Outcome::Unclear, Outcome::Unclear),
        ] {
            assert_eq!(Metric::F1.outcome(paired(interval)), f1);
            assert_eq!(Metric::Nll.outcome(paired(interval)), nll);
        }
    }
}
