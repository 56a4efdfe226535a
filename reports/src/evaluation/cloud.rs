//! Sentences about what the cloud's model does for the edge: who beats the controls, the reference
//! and its own control, and how much of the way to the cloud's model alone is covered.
//!
//! Arms are grouped by how it comes out, so that a sentence names all of them, whichever way.

use super::against::{
    Outcome, best_control, best_own_control, cloud_alone, gap_closed, informed, less, own_controls,
};
use super::arm::{Arm, Board};
use super::row::ArmKind;
use super::summary::{Metric, difference};
use crate::quality::Paired;
use crate::table::number;

impl Metric {
    const fn title(self) -> &'static str {
        match self {
            Self::F1 => "F1",
            Self::Nll => "NLL",
        }
    }

    /// What differences are in, and which ones are good.
    const fn unit(self) -> &'static str {
        match self {
            Self::F1 => "points of F1",
            Self::Nll => "nats a token of NLL, less is better",
        }
    }

    fn scaled(self, value: f64) -> f64 {
        match self {
            Self::F1 => 100.0 * value,
            Self::Nll => value,
        }
    }

    const fn decimals(self) -> usize {
        match self {
            Self::F1 => 1,
            Self::Nll => 3,
        }
    }

    /// "`wrong_context` (F1 20.1)".
    fn scored(self, arm: &Arm) -> String {
        let score = self.of(&arm.summary).map_or_else(
            || "–".to_owned(),
            |score| number(self.scaled(score.mean), self.decimals()),
        );
        format!("{} ({} {score})", arm.name(), self.title())
    }

    /// "+2.1 [0.3, 4.0]".
    fn stated(self, found: Paired) -> String {
        let decimals = self.decimals();
        let bounds = found.interval.map_or_else(String::new, |(low, high)| {
            let bound = |value: f64| number(self.scaled(value), decimals);
            format!(" [{}, {}]", bound(low), bound(high))
        });
        format!(
            "{}{bounds}",
            signed(self.scaled(found.difference), decimals)
        )
    }
}

/// One arm's part of a sentence.
struct Entry {
    outcome: Outcome,
    /// How much better it is, for the order.
    gain: f64,
    text: String,
}

impl Entry {
    fn new(metric: Metric, found: Paired, text: String) -> Self {
        Self {
            outcome: metric.outcome(found),
            gain: metric.gain(found.difference),
            text,
        }
    }
}

/// "better: a, b; not distinguishable: c; worse: d", each group from the best on.
fn grouped(mut entries: Vec<Entry>) -> String {
    entries.sort_by(|a, b| b.gain.total_cmp(&a.gain));
    let group = |outcome: Outcome| {
        let of = entries.iter().filter(|entry| entry.outcome == outcome);
        let texts: Vec<&str> = of.map(|entry| entry.text.as_str()).collect();
        let word = match outcome {
            Outcome::Better if texts.is_empty() => return Some("no arm is better".to_owned()),
            Outcome::Better => "better",
            Outcome::Unclear => "not distinguishable",
            Outcome::Worse => "worse",
        };
        (!texts.is_empty()).then(|| format!("{word}: {}", texts.join(", ")))
    };
    let groups: Vec<String> = Outcome::ALL.into_iter().filter_map(group).collect();
    groups.join("; ")
}

fn sentence(metric: Metric, against: &str, entries: Vec<Entry>) -> Option<String> {
    (!entries.is_empty()).then(|| {
        format!(
            "Against {against}, {}: {}.",
            metric.unit(),
            grouped(entries)
        )
    })
}

/// Who beats the best of the controls.
pub(super) fn over_controls(board: &Board) -> Vec<String> {
    let mut out = Vec::new();
    for metric in Metric::ALL {
        let Some(control) = best_control(board, metric) else {
            continue;
        };
        let entry = |arm: &Arm| {
            let found = difference(metric, arm, control)?;
            let text = format!("{} ({})", arm.name(), metric.stated(found));
            Some(Entry::new(metric, found, text))
        };
        let entries = informed(board).filter_map(entry).collect();
        let against = format!("the best control, {}", metric.scored(control));
        out.extend(sentence(metric, &against, entries));
    }
    if out.is_empty() && informed(board).next().is_some() {
        out.push("No control ran, so that no arm has been shown to use the context.".to_owned());
    }
    out
}

/// Who beats the reference, and what the others keep of its F1.
pub(super) fn over_reference(board: &Board) -> Vec<String> {
    let Some(reference) = board.reference() else {
        return Vec::new();
    };
    let of = |metric: Metric| {
        let base = metric.of(&reference.summary).map(|score| score.mean);
        let entry = |arm: &Arm| {
            let found = difference(metric, arm, reference)?;
            // The difference is on the same questions, the arm's own mean may not be.
            let keeps = match (metric, base) {
                (Metric::F1, Some(base)) if base > 0.0 => {
                    let kept = 100.0 * (base + found.difference) / base;
                    format!(", keeps {}%", number(kept, 0))
                }
                _ => String::new(),
            };
            let text = format!("{} ({}{keeps})", arm.name(), metric.stated(found));
            Some(Entry::new(metric, found, text))
        };
        let entries = informed(board).filter_map(entry).collect();
        let against = format!("the edge alone, {}", metric.scored(reference));
        sentence(metric, &against, entries)
    };
    Metric::ALL.into_iter().filter_map(of).collect()
}

/// Who beats the arms that are made alike without what the cloud's model knows.
pub(super) fn over_own_controls(board: &Board) -> Vec<String> {
    let mut out = Vec::new();
    for metric in Metric::ALL {
        let entry = |arm: &Arm, control: &Arm| {
            let (control, found) = less(metric, arm, Some(control))?;
            let text = format!("{} over {control} ({})", arm.name(), metric.stated(found));
            Some(Entry::new(metric, found, text))
        };
        let entries = informed(board)
            .flat_map(|arm| own_controls(board, arm).filter_map(move |own| entry(arm, own)))
            .collect();
        out.extend(sentence(metric, "its own control", entries));
    }
    let controls: Vec<&String> = board
        .arms
        .iter()
        .flat_map(|arm| &arm.identity.own_controls)
        .collect();
    let is_control = |arm: &Arm| controls.iter().any(|name| *name == arm.name());
    let lacking: Vec<&str> = informed(board)
        .filter(|arm| own_controls(board, arm).next().is_none() && !is_control(arm))
        .map(Arm::name)
        .collect();
    if !lacking.is_empty() {
        out.push(format!(
            "Without an own control that ran, so that what the cloud's model adds to them is not told from what their making adds: {}.",
            lacking.join(", ")
        ));
    }
    out
}

/// How much of the way from the reference to the cloud's model alone each arm covers.
pub(super) fn gap(board: &Board) -> Vec<String> {
    let Some(reference) = board.reference() else {
        return Vec::new();
    };
    if informed(board).next().is_none() {
        return Vec::new();
    }
    let Some(alone) = cloud_alone(board) else {
        return vec![
            "The cloud's model alone did not run, so that no share of its lead is stated."
                .to_owned(),
        ];
    };
    let of = |metric: Metric| {
        let lead = difference(metric, alone, reference)?;
        let title = metric.title();
        let stated = format!("{}, {}", metric.stated(lead), metric.unit());
        Some(match metric.outcome(lead) {
            Outcome::Unclear => format!(
                "The gap in {title} between the edge and the cloud alone cannot be told from 0 ({stated}): no share of it is stated."
            ),
            Outcome::Worse => format!(
                "The cloud alone is worse than the edge alone in {title} ({stated}): there is no gap to close."
            ),
            Outcome::Better => {
                let mut shares: Vec<(f64, String)> = informed(board)
                    .filter_map(|arm| {
                        let found = gap_closed(board, arm, metric)?;
                        Some((
                            found.share,
                            format!("{} {}", arm.name(), percent(found.share, found.interval)),
                        ))
                    })
                    .collect();
                shares.sort_by(|a, b| b.0.total_cmp(&a.0));
                let shares: Vec<String> = shares.into_iter().map(|(_, text)| text).collect();
                format!(
                    "The cloud alone is ahead of the edge alone in {title} ({stated}); of this gap the arms close, in per cent: {}.",
                    shares.join(", ")
                )
            }
        })
    };
    Metric::ALL.into_iter().filter_map(of).collect()
}

/// "45 [30, 61]".
fn percent(share: f64, interval: Option<(f64, f64)>) -> String {
    let bounds = interval.map_or_else(String::new, |(low, high)| {
        format!(" [{}, {}]", number(100.0 * low, 0), number(100.0 * high, 0))
    });
    format!("{}{bounds}", number(100.0 * share, 0))
}

/// A number with its sign.
fn signed(value: f64, decimals: usize) -> String {
    let text = number(value, decimals);
    let zero = text.bytes().all(|b| matches!(b, b'0' | b'.'));
    match value > 0.0 && !zero {
        true => format!("+{text}"),
        false => text,
    }
}

/// What an arm is held against on each data set.
type Opponent = for<'a> fn(&'a Board, &'a Arm, Metric) -> Option<&'a Arm>;

/// On how many of several data sets each arm comes out ahead.
pub(super) fn tally(boards: &[Board]) -> Vec<String> {
    if boards.len() < 2 {
        return Vec::new();
    }
    let opponents: [(&str, Opponent); 3] = [
        ("the best control", |board, _, metric| {
            best_control(board, metric)
        }),
        ("the edge alone", |board, _, _| board.reference()),
        ("its best own control", best_own_control),
    ];
    let mut names: Vec<&str> = Vec::new();
    for arm in boards.iter().flat_map(informed) {
        if !names.contains(&arm.name()) {
            names.push(arm.name());
        }
    }
    let mut out = Vec::new();
    for (words, opponent) in opponents {
        for metric in Metric::ALL {
            let counted = |name: &&str| {
                let outcome = |board| {
                    let arm = informed(board).find(|arm| arm.name() == *name)?;
                    let found = difference(metric, arm, opponent(board, arm, metric)?)?;
                    Some(metric.outcome(found))
                };
                let outcomes: Vec<Outcome> = boards.iter().filter_map(outcome).collect();
                let of = |outcome| outcomes.iter().filter(|found| **found == outcome).count();
                let counts = Outcome::ALL.map(of);
                (!outcomes.is_empty()).then(|| {
                    (
                        counts,
                        format!("{name} {}", counts.map(|n| n.to_string()).join("/")),
                    )
                })
            };
            let mut found: Vec<([usize; 3], String)> = names.iter().filter_map(counted).collect();
            found.sort_by_key(|(counts, _)| (usize::MAX - counts[0], counts[2]));
            if !found.is_empty() {
                let texts: Vec<String> = found.into_iter().map(|(_, text)| text).collect();
                out.push(format!(
                    "Against {words} in {}, data sets on which it is better/not distinguishable/worse: {}.",
                    metric.title(),
                    texts.join(", ")
                ));
            }
        }
    }
    out
}

/// Whether an arm in which the cloud's model takes part was planned.
pub(super) fn takes_part(board: &Board) -> bool {
    let mut methods = board.of(ArmKind::Method);
    methods.any(|arm| arm.identity.cloud.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::row::{
        ArmIdentity, CloudPart, ContextRow, EVALUATION_SCHEMA_VERSION, QuestionRow,
    };
    use crate::evaluation::summary::{ArmSummary, summarise};

    const INFORMS: Option<CloudPart> = Some(CloudPart::Informs);

    /// An arm with one question a context, which has this F1 and these nats for one gold token.
    fn arm(kind: ArmKind, cloud: Option<CloudPart>, name: &str, scores: &[(f64, f64)]) -> Arm {
        let row = |(index, &(f1, nll)): (usize, &(f64, f64))| ContextRow {
            schema_version: EVALUATION_SCHEMA_VERSION,
            cell_id: name.into(),
            context_id: format!("c{index}"),
            context_tokens: 10,
            held_token_layers: 10,
            token_layers: 10,
            fp16_bytes: 100,
            payload_bytes: 0,
            message_bytes: 0,
            edge_token_layers: 0,
            parts: Vec::new(),
            encode_ns: 0,
            decode_ns: 0,
            layers: Vec::new(),
            questions: vec![QuestionRow {
                question_id: "q".into(),
                answer: None,
                output_tokens: 0,
                em: None,
                f1: Some(f1),
                nll,
                nll_tokens: 1,
                kl: None,
                top1: None,
                positions: 1,
            }],
        };
        let mut arm = Arm {
            identity: ArmIdentity {
                cell_id: name.into(),
                dataset: "squad".into(),
                kind,
                family: name.into(),
                name: name.into(),
                codec: None,
                artefact_bytes: 0,
                cloud,
                fit_s: None,
                tuned_per_context: false,
                own_controls: Vec::new(),
            },
            rows: scores.iter().enumerate().map(row).collect(),
            planned: Some(scores.len() as u64),
            summary: ArmSummary::default(),
            comparable: true,
        };
        arm.summary = summarise(&arm, None);
        arm
    }

    /// The reference has an F1 of 0.5 and 2 nats everywhere.
    fn board(others: Vec<Arm>) -> Board {
        let reference = arm(ArmKind::Reference, None, "edge", &[(0.5, 2.0); 2]);
        Board {
            dataset: "squad".into(),
            suffix: String::new(),
            arms: std::iter::once(reference).chain(others).collect(),
            reference: Some(0),
        }
    }

    fn method(name: &str, scores: [(f64, f64); 2]) -> Arm {
        arm(ArmKind::Method, INFORMS, name, &scores)
    }

    fn control(name: &str, scores: [(f64, f64); 2]) -> Arm {
        arm(ArmKind::Control, None, name, &scores)
    }

    #[test]
    fn the_best_control_is_another_one_in_f1_than_in_nll() {
        let board = board(vec![
            control("zeros", [(0.1, 3.0), (0.1, 3.0)]),
            control("other", [(0.2, 4.0), (0.2, 4.0)]),
            method("good", [(0.4, 2.5), (0.6, 2.5)]),
            method("mixed", [(0.1, 3.5), (0.3, 2.5)]),
            method("bad", [(0.1, 5.0), (0.1, 5.0)]),
        ]);
        assert_eq!(
            over_controls(&board),
            [
                "Against the best control, other (F1 20.0), points of F1: better: good (+30.0 [20.0, 40.0]); not distinguishable: mixed (0.0 [-10.0, 10.0]); worse: bad (-10.0 [-10.0, -10.0]).",
                "Against the best control, zeros (NLL 3.000), nats a token of NLL, less is better: better: good (-0.500 [-0.500, -0.500]); not distinguishable: mixed (0.000 [-0.500, 0.500]); worse: bad (+2.000 [2.000, 2.000]).",
            ]
        );
    }

    #[test]
    fn without_controls_or_arms_there_is_little_to_say() {
        let lone = board(vec![method("good", [(0.4, 2.5), (0.6, 2.5)])]);
        assert!(over_controls(&lone)[0].starts_with("No control ran"));
        let none = board(vec![control("zeros", [(0.1, 3.0), (0.1, 3.0)])]);
        for rule in [over_controls, over_reference, over_own_controls, gap] {
            assert_eq!(rule(&none), [""; 0]);
        }
        assert!(!takes_part(&none) && takes_part(&lone));
        let mut partial = lone;
        partial.arms[1].comparable = false;
        assert_eq!(over_reference(&partial), [""; 0]);
    }

    #[test]
    fn the_reference_is_beaten_or_not_and_what_is_kept_is_said() {
        let beaten = board(vec![method("good", [(0.6, 1.5), (0.7, 1.75)])]);
        assert_eq!(
            over_reference(&beaten),
            [
                "Against the edge alone, edge (F1 50.0), points of F1: better: good (+15.0 [10.0, 20.0], keeps 130%).",
                "Against the edge alone, edge (NLL 2.000), nats a token of NLL, less is better: better: good (-0.375 [-0.500, -0.250]).",
            ]
        );
        let unbeaten = board(vec![
            method("bad", [(0.3, 2.5), (0.4, 3.0)]),
            method("even", [(0.4, 1.5), (0.6, 2.5)]),
        ]);
        assert_eq!(
            over_reference(&unbeaten),
            [
                "Against the edge alone, edge (F1 50.0), points of F1: no arm is better; not distinguishable: even (0.0 [-10.0, 10.0], keeps 100%); worse: bad (-15.0 [-20.0, -10.0], keeps 70%).",
                "Against the edge alone, edge (NLL 2.000), nats a token of NLL, less is better: no arm is better; not distinguishable: even (0.000 [-0.500, 0.500]); worse: bad (+0.750 [0.500, 1.000]).",
            ]
        );
    }

    #[test]
    fn own_controls_are_beaten_or_not_and_missing_ones_are_named() {
        let mut arms = vec![
            method("good", [(0.6, 1.5), (0.7, 1.5)]),
            arm(
                ArmKind::Method,
                Some(CloudPart::Withheld),
                "self",
                &[(0.5, 1.5), (0.5, 1.5)],
            ),
            method("lone", [(0.6, 1.5), (0.7, 1.5)]),
        ];
        arms[0].identity.own_controls = vec!["self".into()];
        let with = board(arms);
        assert_eq!(
            over_own_controls(&with),
            [
                "Against its own control, points of F1: better: good over self (+15.0 [10.0, 20.0]).",
                "Against its own control, nats a token of NLL, less is better: no arm is better; not distinguishable: good over self (0.000 [0.000, 0.000]).",
                "Without an own control that ran, so that what the cloud's model adds to them is not told from what their making adds: lone.",
            ]
        );
        let mut without = with;
        without.arms[2].comparable = false;
        let texts = over_own_controls(&without);
        assert_eq!(texts.len(), 1);
        assert!(texts[0].ends_with("adds: good, lone."), "{texts:?}");
        let mut both = without;
        both.arms[2].comparable = true;
        both.arms.push(arm(
            ArmKind::Method,
            Some(CloudPart::Withheld),
            "harder",
            &[(0.6, 1.4), (0.6, 1.4)],
        ));
        both.arms[1].identity.own_controls.push("harder".into());
        assert_eq!(
            over_own_controls(&both)[0],
            "Against its own control, points of F1: better: good over self (+15.0 [10.0, 20.0]); not distinguishable: good over harder (+5.0 [0.0, 10.0]).",
        );
        let hardest = best_own_control(&both, &both.arms[1], Metric::F1).unwrap();
        assert_eq!(hardest.name(), "harder");
    }

    #[test]
    fn a_share_is_stated_only_of_a_gap_that_is_one() {
        let alone = |scores: [(f64, f64); 2]| {
            arm(ArmKind::Method, Some(CloudPart::Alone), "alone", &scores)
        };
        let own = || method("good", [(0.6, 1.5), (0.8, 2.5)]);
        let ahead = board(vec![alone([(0.9, 1.0), (0.9, 1.5)]), own()]);
        assert_eq!(
            gap(&ahead),
            [
                "The cloud alone is ahead of the edge alone in F1 (+40.0 [40.0, 40.0], points of F1); of this gap the arms close, in per cent: good 50 [25, 75].",
                // Half a nat of one, and −½ of the other: nothing of 1½.
                "The cloud alone is ahead of the edge alone in NLL (-0.750 [-1.000, -0.500], nats a token of NLL, less is better); of this gap the arms close, in per cent: good 0 [-100, 50].",
            ]
        );
        let other = board(vec![alone([(0.4, 3.0), (0.6, 3.0)]), own()]);
        let texts = gap(&other);
        assert!(
            texts[0].contains("cannot be told from 0 (0.0 [-10.0, 10.0]"),
            "{texts:?}"
        );
        assert!(
            texts[1].contains("is worse than the edge alone in NLL (+1.000"),
            "{texts:?}"
        );
        let absent = board(vec![own()]);
        assert!(gap(&absent)[0].starts_with("The cloud's model alone did not run"));
    }

    #[test]
    fn several_data_sets_are_counted() {
        let one = || {
            board(vec![
                control("zeros", [(0.1, 3.0), (0.1, 3.0)]),
                method("bad", [(0.3, 2.5), (0.4, 3.0)]),
                method("good", [(0.6, 1.5), (0.7, 1.75)]),
            ])
        };
        assert_eq!(tally(&[one()]), [""; 0]);
        let mut second = one();
        second.arms[3] = method("good", [(0.4, 1.5), (0.6, 1.75)]);
        assert_eq!(
            tally(&[one(), second]),
            [
                "Against the best control in F1, data sets on which it is better/not distinguishable/worse: bad 2/0/0, good 2/0/0.",
                "Against the best control in NLL, data sets on which it is better/not distinguishable/worse: good 2/0/0, bad 0/2/0.",
                "Against the edge alone in F1, data sets on which it is better/not distinguishable/worse: good 1/1/0, bad 0/0/2.",
                "Against the edge alone in NLL, data sets on which it is better/not distinguishable/worse: good 2/0/0, bad 0/0/2.",
            ]
        );
    }
}
