//! Sentences that are computed from the figures of an evaluation.
//!
//! Each rule states what it finds, whichever way it comes out: where another family needs fewer
//! bytes than this project's own, that is said in the same words.

use super::arm::{Arm, Board, State};
use super::cloud::{gap, over_controls, over_own_controls, over_reference, tally};
use super::compare::{at_equal_nll, leaders, others};
use super::family::{
    Family, Furthest, Limit, Loss, NLL_LIMIT, ONE_POINT, Stretch, THREE_POINTS, better,
    codec_families,
};
use super::row::ArmKind;
use crate::findings::{Finding, Topic, count};
use crate::quality::Paired;
use crate::table::number;

/// Below so many contexts, a bootstrap over them understates the spread.
const FEW_CONTEXTS: usize = 10;

/// A control that keeps more than this share of the reference's F1 comes near it.
const NEAR_SHARE: f64 = 0.5;

/// Losses closer than this are called equal: nats per gold token, points of F1.
const EQUAL_NLL: f64 = 0.001;
const EQUAL_POINTS: f64 = 0.5;

/// A rule: what it finds on one data set.
type Rule = fn(&Board) -> Vec<String>;

/// Every finding, validity first.
pub(super) fn findings(boards: &[Board]) -> Vec<Finding> {
    let rules: [(Topic, Rule); 12] = [
        (Topic::Validity, completeness),
        (Topic::Validity, unlike_gold),
        (Topic::Validity, controls),
        (Topic::Validity, intervals),
        (Topic::Result, over_controls),
        (Topic::Result, over_reference),
        (Topic::Result, over_own_controls),
        (Topic::Result, gap),
        (Topic::Result, reach),
        (Topic::Result, equal_nll),
        (Topic::Result, beaten),
        (Topic::Result, beyond),
    ];
    let mut findings = Vec::new();
    let mut counted = tally(boards);
    for (topic, rule) in rules {
        if topic == Topic::Result {
            // Before what is found on each data set.
            findings.extend(counted.drain(..).map(|text| Finding { topic, text }));
        }
        for board in boards {
            let texts = rule(board).into_iter();
            findings.extend(texts.map(|text| Finding {
                topic,
                // Of several data sets, each sentence names its own.
                text: match boards.len() {
                    1 => text,
                    _ => format!("{}: {text}", board.dataset),
                },
            }));
        }
    }
    if boards.is_empty() {
        findings.push(Finding {
            topic: Topic::Validity,
            text: "No arm was planned.".to_owned(),
        });
    }
    findings
}

/// Most arms that a finding lists.
const NAMED: usize = 10;

fn completeness(board: &Board) -> Vec<String> {
    let names = |state: State| -> Vec<String> {
        let arms = board.arms.iter().filter(|a| a.state() == state);
        arms.map(|arm| match state {
            State::Partial => format!("{} ({})", arm.name(), arm.progress()),
            _ => arm.name().to_owned(),
        })
        .collect()
    };
    let whole = names(State::Whole).len();
    let most = board.arms.iter().max_by_key(|a| a.summary.questions);
    let (contexts, questions) = most.map_or((0, 0), |a| (a.summary.contexts, a.summary.questions));
    let mut out = vec![if whole == board.arms.len() {
        format!(
            "All of {} ran over all of their contexts: {} with {}.",
            count(whole, "arm"),
            count(contexts, "context"),
            count(questions, "question")
        )
    } else {
        format!(
            "{} of {} ran over all of their contexts.",
            whole,
            count(board.arms.len(), "arm")
        )
    }];
    for (state, word) in [(State::NotRun, "Not run"), (State::Partial, "Incomplete")] {
        let names = names(state);
        if !names.is_empty() {
            // While a sweep is under way this is most of its arms.
            let more = match names.len().saturating_sub(NAMED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            out.push(format!(
                "{word}, {}: {}{more}.",
                count(names.len(), "arm"),
                names[..names.len().min(NAMED)].join(", ")
            ));
        }
    }
    if board.reference().is_none() {
        out.push("The reference has no rows, so that no loss of quality can be stated.".to_owned());
    }
    out
}

fn unlike_gold(board: &Board) -> Vec<String> {
    board
        .arms
        .iter()
        .filter(|arm| arm.summary.unlike_gold > 0)
        .map(|arm| {
            format!(
                "{} of {} have another number of gold tokens than under the reference, and are left out of its ΔNLL.",
                count(arm.summary.unlike_gold, "question"),
                arm.name()
            )
        })
        .collect()
}

/// Whether the questions test what the KV carries.
fn controls(board: &Board) -> Vec<String> {
    let Some(reference) = board.reference() else {
        return Vec::new();
    };
    let mut out = Vec::new();
    let mut beaten = Vec::new();
    for control in board.of(ArmKind::Control).filter(|a| a.ran()) {
        let (own, base) = (&control.summary, &reference.summary);
        let clear = |difference: Option<Paired>, sign: f64| {
            difference.is_none_or(|d| {
                let (low, high) = d.interval.unwrap_or((d.difference, d.difference));
                (sign * low).min(sign * high) > 0.0
            })
        };
        let near = own
            .f1
            .zip(base.f1)
            .is_some_and(|(own, base)| own.mean > NEAR_SHARE * base.mean);
        let figures = format!(
            "{} (F1 {}, NLL {})",
            control.name(),
            own.f1
                .map_or_else(|| "–".to_owned(), |s| number(100.0 * s.mean, 1)),
            own.nll
                .map_or_else(|| "–".to_owned(), |s| number(s.mean, 2)),
        );
        if own.f1_difference.is_none() && own.nll_difference.is_none() {
            continue;
        }
        if near || !clear(own.f1_difference, -1.0) || !clear(own.nll_difference, 1.0) {
            out.push(format!(
                "Warning: the control {figures} comes close to the reference {} ({}): these questions do not test the context, and differences between arms say little.",
                reference.name(),
                scores(reference)
            ));
        } else {
            beaten.push(figures);
        }
    }
    if !beaten.is_empty() {
        out.insert(
            0,
            format!(
                "The reference {} ({}) is clearly better than {}, so the questions test the context.",
                reference.name(),
                scores(reference),
                joined(&beaten)
            ),
        );
    }
    if board.of(ArmKind::Control).count() == 0 {
        out.push(
            "No control was planned, so that it is not shown that the questions test the context."
                .to_owned(),
        );
    }
    out
}

fn scores(arm: &Arm) -> String {
    let f1 = arm.summary.f1.map(|s| number(100.0 * s.mean, 1));
    let nll = arm.summary.nll.map(|s| number(s.mean, 2));
    let missing = || "–".to_owned();
    format!(
        "F1 {}, NLL {}",
        f1.unwrap_or_else(missing),
        nll.unwrap_or_else(missing)
    )
}

fn intervals(board: &Board) -> Vec<String> {
    let contexts = board.arms.iter().map(|a| a.summary.contexts).max();
    match contexts {
        Some(0) | None => Vec::new(),
        Some(1) => vec!["With one context there are no intervals.".to_owned()],
        Some(n) if n < FEW_CONTEXTS => vec![format!(
            "Intervals over {} are too narrow; {FEW_CONTEXTS} or more would be needed.",
            count(n, "context")
        )],
        Some(_) => Vec::new(),
    }
}

/// How far the leaders go within each bound, and the best of the others.
fn reach(board: &Board) -> Vec<String> {
    let families = codec_families(board);
    let mut out = Vec::new();
    for limit in [ONE_POINT, THREE_POINTS, NLL_LIMIT] {
        // Without a reference, or without answers, nothing is within a bound.
        let measured = |f: &Family<'_>| f.arms.iter().any(|a| limit.holds(a).is_some());
        if !families.iter().any(measured) {
            continue;
        }
        for leader in leaders(&families).into_iter().filter(|f| measured(f)) {
            let own = leader.furthest(limit).map_or_else(
                || format!("{} has no arm with {}", leader.name, limit.words),
                |f| {
                    format!(
                        "{} keeps {} down to {}",
                        leader.name,
                        limit.words,
                        described(f, limit)
                    )
                },
            );
            let next = others(&families, leader)
                .filter_map(|f| Some((f.name, f.furthest(limit)?)))
                .max_by(|a, b| ratio(a.1).total_cmp(&ratio(b.1)))
                .map_or_else(String::new, |(name, f)| {
                    format!(
                        "; of the others, {name} goes furthest, to {}",
                        described(f, limit)
                    )
                });
            out.push(format!("{own}{next}."));
        }
    }
    out
}

fn ratio(found: Furthest<'_>) -> f64 {
    found.arm.summary.wire_ratio.unwrap_or(0.0)
}

/// "12.3× (celslm-12, 999 bytes a token; ΔF1 −0.4 points [−1.2, 0.3])".
fn described(found: Furthest<'_>, limit: Limit) -> String {
    let s = &found.arm.summary;
    let bytes = s.bytes_per_token.unwrap_or(0.0);
    let loss = match limit.loss {
        Loss::Nats => s.nll_difference.map(|d| {
            let difference = number(d.difference, 4);
            format!("ΔNLL {difference}{}", bracket(d, 1.0, 4))
        }),
        Loss::Points => s.f1_difference.map(|d| {
            let difference = number(100.0 * d.difference, 1);
            format!("ΔF1 {difference} points{}", bracket(d, 100.0, 1))
        }),
    };
    let open = if found.open {
        ", the highest ratio that it has"
    } else {
        ""
    };
    format!(
        "{}× ({}, {} bytes a token; {}{open})",
        number(ratio(found), 1),
        found.arm.name(),
        number(bytes, 0),
        loss.unwrap_or_default()
    )
}

fn bracket(difference: Paired, scale: f64, decimals: usize) -> String {
    difference.interval.map_or_else(String::new, |(low, high)| {
        format!(
            " [{}, {}]",
            number(scale * low, decimals),
            number(scale * high, decimals)
        )
    })
}

fn equal_nll(board: &Board) -> Vec<String> {
    let families = codec_families(board);
    let mut out = Vec::new();
    for comparison in at_equal_nll(&families) {
        let clauses: Vec<String> = comparison
            .levels
            .iter()
            .flatten()
            .map(|found| {
                let (own, base) = (number(found.own, 1), number(found.base, 1));
                // "more than 0.8 times fewer" would say nothing: below 1 the other needs fewer.
                let words = match (found.factor >= 1.0, found.bound) {
                    (true, bound) => {
                        format!("{bound}{} times fewer bytes", number(found.factor, 2))
                    }
                    (false, bound) => {
                        let bound = match bound {
                            "more than " => "less than ",
                            "less than " => "more than ",
                            _ => "",
                        };
                        format!("{bound}{} times more bytes", number(1.0 / found.factor, 2))
                    }
                };
                format!(
                    "{words} than {} at {} ({own}× against {base}×)",
                    found.against, found.level
                )
            })
            .collect();
        if !clauses.is_empty() {
            out.push(format!(
                "At equal ΔNLL (nats a token, interpolated), {} needs, against the best other family: {}.",
                comparison.name,
                clauses.join("; ")
            ));
        }
    }
    out
}

/// Where another family loses less than a leader at the same wire ratio.
fn beaten(board: &Board) -> Vec<String> {
    let families = codec_families(board);
    let kinds: [(Loss, &str, f64, &str, usize); 2] = [
        (Loss::Nats, "lower NLL", EQUAL_NLL, "nats a token", 4),
        (Loss::Points, "higher F1", EQUAL_POINTS, "points", 1),
    ];
    let mut out = Vec::new();
    for leader in leaders(&families) {
        for (loss, words, margin, unit, decimals) in kinds {
            let own = leader.front(loss);
            let Some(&(first, _)) = own.points().first() else {
                continue;
            };
            // Below its first arm a leader is held to what that arm loses.
            let remark = |stretch: &Stretch| {
                if stretch.from < first {
                    format!("; {} begins at {}×", leader.name, number(first, 1))
                } else {
                    String::new()
                }
            };
            let wins: Vec<String> = others(&families, leader)
                .filter_map(|family| {
                    let stretches = better(&family.front(loss), &own, margin);
                    (!stretches.is_empty()).then(|| {
                        let each: Vec<_> = stretches
                            .iter()
                            .map(|s| {
                                let most = number(s.most, decimals);
                                format!("{} (by up to {most}{})", span(*s), remark(s))
                            })
                            .collect();
                        format!("{} {}", family.name, joined(&each))
                    })
                })
                .collect();
            out.push(if wins.is_empty() {
                format!(
                    "At no wire ratio that {} reaches has another family a {words} by more than {margin} {unit}.",
                    leader.name
                )
            } else {
                format!(
                    "Where another family has a {words} than {} at the same wire ratio, by more than {margin} {unit}: {}.",
                    leader.name,
                    wins.join("; ")
                )
            });
        }
    }
    out
}

/// "at 4.0×", "between 2.0× and 3.1×".
fn span(stretch: Stretch) -> String {
    let (from, to) = (number(stretch.from, 1), number(stretch.to, 1));
    if from == to {
        format!("at {from}×")
    } else {
        format!("between {from}× and {to}×")
    }
}

/// Families that have arms where a leader has none.
fn beyond(board: &Board) -> Vec<String> {
    let families = codec_families(board);
    let last = |f: &Family<'_>| f.arms.last().and_then(|a| a.summary.wire_ratio);
    let mut out = Vec::new();
    for leader in leaders(&families) {
        let Some(own) = last(leader) else { continue };
        let further: Vec<_> = others(&families, leader)
            .filter(|f| last(f).is_some_and(|ratio| ratio > own))
            .map(|f| f.name.to_owned())
            .collect();
        if !further.is_empty() {
            out.push(format!(
                "Above {}×, {} has no arm, so nothing is compared there; {} {}.",
                number(own, 1),
                leader.name,
                joined(&further),
                if further.len() == 1 { "has" } else { "have" }
            ));
        }
    }
    out
}

/// "a", "a and b", "a, b and c".
fn joined(texts: &[String]) -> String {
    match texts {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::arm::read;
    use crate::evaluation::fixture;

    fn board(dir: &std::path::Path) -> Board {
        read(&fixture::run(dir)).unwrap().remove(0)
    }

    fn arm<'a>(board: &'a mut Board, name: &str) -> &'a mut Arm {
        let arms = &mut board.arms;
        arms.iter_mut().find(|a| a.identity.name == name).unwrap()
    }

    fn paired(difference: f64, interval: Option<(f64, f64)>) -> Option<Paired> {
        Some(Paired {
            questions: 9,
            difference,
            interval,
        })
    }

    #[test]
    fn a_control_near_the_reference_is_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        let mut board = board(dir.path());
        assert!(controls(&board)[0].contains("so the questions test the context"));
        // Not clearly worse by likelihood.
        let control = &mut arm(&mut board, "zero_kv").summary;
        control.nll_difference = paired(0.3, Some((-0.1, 0.7)));
        let texts = controls(&board);
        assert!(texts[0].contains("better than no_context") && !texts[0].contains("zero_kv"));
        assert!(
            texts[1].starts_with("Warning: the control zero_kv"),
            "{texts:?}"
        );
        // Clearly worse, and yet it keeps most of the score.
        let control = &mut arm(&mut board, "no_context").summary;
        control.f1.as_mut().unwrap().mean = 0.34;
        let texts = controls(&board);
        assert!(
            texts[0].starts_with("Warning: the control no_context"),
            "{texts:?}"
        );
        assert_eq!(texts.len(), 2);
        board.arms.retain(|a| a.identity.kind != ArmKind::Control);
        assert!(controls(&board)[0].starts_with("No control was planned"));
    }

    #[test]
    fn where_another_family_wins_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let mut board = board(dir.path());
        for (name, ratio, loss) in [
            ("celslm-4x", 4.0, 0.0),
            ("celslm-8x", 8.0, 0.01),
            ("celslm-16x", 16.0, 0.04),
            ("celslm-32x", 32.0, 0.07),
            ("kvtc-4x", 4.0, 0.02),
            ("kvtc-8x", 8.0, 0.02),
            ("kvtc-16x", 64.0, 0.02),
        ] {
            let summary = &mut arm(&mut board, name).summary;
            summary.wire_ratio = Some(ratio);
            summary.nll_difference = paired(loss, None);
        }
        board.arms.retain(|a| a.identity.family != "groups");
        let texts = beaten(&board);
        // 0.021 is reached 11/30 of an octave above 8x.
        assert_eq!(
            texts[0],
            "Where another family has a lower NLL than celslm at the same wire ratio, by more than 0.001 nats a token: kvtc between 10.3× and 32.0× (by up to 0.0500)."
        );
        assert_eq!(
            beyond(&board),
            ["Above 31.8×, celslm has no arm, so nothing is compared there; kvtc has."]
                .map(|t| t.replace("31.8", "32.0"))
        );
        let texts = equal_nll(&board);
        assert!(
            texts[0].contains("times more bytes than kvtc at 0.02 (10.1× against 64.0×)"),
            "{texts:?}"
        );
    }

    #[test]
    fn what_is_missing_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let mut board = board(dir.path());
        arm(&mut board, "kvtc-8x").summary.unlike_gold = 2;
        assert!(unlike_gold(&board)[0].starts_with("2 questions of kvtc-8x have another number"));
        let family = |b: &Board| reach(b).len();
        assert_eq!(family(&board), 3);
        board.reference = None;
        for arm in &mut board.arms {
            arm.summary.f1_difference = None;
            arm.summary.nll_difference = None;
        }
        assert_eq!(family(&board), 0);
        assert_eq!((beaten(&board).len(), equal_nll(&board).len()), (0, 0));
        assert_eq!(controls(&board), [""; 0]);
        assert!(
            completeness(&board)
                .iter()
                .any(|t| t.starts_with("The reference has no rows"))
        );
    }

    #[test]
    fn families_without_a_loss_within_the_bound_say_so() {
        let dir = tempfile::tempdir().unwrap();
        let mut board = board(dir.path());
        for arm in &mut board.arms {
            arm.summary.f1_difference = paired(-0.2, None);
        }
        assert_eq!(
            reach(&board)[0],
            "celslm has no arm with F1 within 1 point."
        );
    }
}
