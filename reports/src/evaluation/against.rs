//! What a method in which the cloud's model takes part is held against: the best of the controls,
//! the reference, the arms that are made alike without what the cloud's model knows, and the way from
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
    let controls = board.of(ArmKind::Control);
    best(controls.filter(|arm| arm.comparable), metric)
}

/// Those of the arm's own controls that ran.
pub(super) fn own_controls<'a>(board: &'a Board, arm: &'a Arm) -> impl Iterator<Item = &'a Arm> {
    let names = arm.identity.own_controls.iter();
    let named = names.filter_map(|name| board.arms.iter().find(|other| other.name() == name));
    named.filter(|other| other.comparable)
}

/// The own control that answers best: the one that is hardest to beat.
pub(super) fn best_own_control<'a>(
    board: &'a Board,
    arm: &'a Arm,
    metric: Metric,
) -> Option<&'a Arm> {
    best(own_controls(board, arm), metric)
}

fn best<'a>(arms: impl Iterator<Item = &'a Arm>, metric: Metric) -> Option<&'a Arm> {
    let merit = |arm: &Arm| metric.of(&arm.summary).map(|score| metric.gain(score.mean));
    arms.filter_map(|arm| Some((merit(arm)?, arm)))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, arm)| arm)
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
