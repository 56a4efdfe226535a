//! Every arm over every data set: what it costs and how well it answers.

use super::{percent, text};
use crate::evaluation::arm::{Arm, Board, State};
use crate::evaluation::cloud::takes_part;
use crate::evaluation::row::{ArmKind, CloudPart, ContextRow};
use crate::table::{Column, Table, Value, number, shorten};

/// More data sets than these do not fit beside each other; the others get a table of their own.
const MAX_SETS: usize = 7;

/// So many data sets fit on a terminal with all of their intervals.
const WITH_INTERVALS: usize = 2;

/// Characters of a data set's name on a terminal, where more than that stand beside each other.
const SHORT_NAME: usize = 9;

/// Tables of at most [`MAX_SETS`] data sets; none where the cloud's model takes no part.
pub(super) fn tables(boards: &[Board]) -> Vec<Table> {
    if !boards.iter().any(takes_part) {
        return Vec::new();
    }
    let names = names(boards);
    let of = |some: &[Board]| {
        let mut columns = vec![
            Column::text("arm"),
            Column::figure("on the wire", "B/token"),
            Column::figure("computed at the edge", "%"),
            Column::figure("fit", ""),
        ];
        columns.extend(
            some.iter()
                .map(|board| Column::figure(&board.dataset, unit(board))),
        );
        let rows = names.iter().map(|name| {
            let mut row = vec![text(*name)];
            row.extend(costs(boards, name));
            row.extend(some.iter().map(|board| quality(board, name)));
            row
        });
        Table {
            title: "Arms and data sets".to_owned(),
            columns,
            rows: rows.collect(),
            notes: vec![
                "Above F1, which is accuracy where an option or a number is the answer, in per cent; below NLL, nats per gold token; with 95% intervals over contexts. On the wire: bytes of the messages per token of context, over all data sets, KV unless the arm sends text; to the cloud alone only the question goes, which is not counted. Computed at the edge: token-layers of what stands for the context, share of the context's. Fit: what fitting and training the arm's bridge took, once for any number of contexts; per context where the arm is tuned to each."
                    .to_owned(),
            ],
        }
    };
    boards.chunks(MAX_SETS).map(of).collect()
}

/// The same for a terminal of 120 columns: without what a bridge cost, and of more than
/// [`WITH_INTERVALS`] data sets without intervals.
pub(in crate::evaluation) fn compact(boards: &[Board], title: &str) -> Vec<Table> {
    if !boards.iter().any(takes_part) {
        return Vec::new();
    }
    let names = names(boards);
    let whole = boards.len() <= WITH_INTERVALS;
    let of = |some: &[Board]| {
        let mut columns = vec![
            Column::text("arm"),
            Column::figure("B/token", ""),
            Column::figure("edge %", ""),
        ];
        columns.extend(some.iter().map(|board| match whole {
            true => Column::figure(&board.dataset, unit(board)),
            false => Column::figure(&short(&board.dataset), ""),
        }));
        let rows = names.iter().map(|name| {
            let [wire, edge, _] = costs(boards, name);
            let mut row = vec![text(*name), wire, edge];
            row.extend(some.iter().map(|board| match whole {
                true => quality(board, name),
                false => brief(board, name),
            }));
            row
        });
        Table {
            title: format!("{title}: F1 % / NLL"),
            columns,
            rows: rows.collect(),
            notes: Vec::new(),
        }
    };
    boards.chunks(MAX_SETS).map(of).collect()
}

/// Names of the arms that ran: the reference, the cloud's model alone, methods, controls.
fn names(boards: &[Board]) -> Vec<&str> {
    let place = |arm: &Arm| match (arm.identity.kind, arm.identity.cloud) {
        (ArmKind::Reference, _) => 0,
        (ArmKind::Method, Some(CloudPart::Alone)) => 1,
        (ArmKind::Method, _) => 2,
        (ArmKind::Control, _) => 3,
    };
    let mut found: Vec<(u8, &str)> = Vec::new();
    for arm in boards.iter().flat_map(|b| &b.arms).filter(|a| a.ran()) {
        if found.iter().all(|(_, name)| *name != arm.name()) {
            found.push((place(arm), arm.name()));
        }
    }
    found.sort_by_key(|(place, _)| *place);
    found.into_iter().map(|(_, name)| name).collect()
}

fn arm<'a>(board: &'a Board, name: &str) -> Option<&'a Arm> {
    let mut arms = board.arms.iter();
    arms.find(|arm| arm.name() == name && arm.ran())
}

/// Bytes on the wire, share of the work and fit of an arm, over all data sets.
fn costs(boards: &[Board], name: &str) -> [Value; 3] {
    let arms: Vec<&Arm> = boards.iter().filter_map(|board| arm(board, name)).collect();
    let rows = || arms.iter().flat_map(|arm| &arm.rows);
    let sum = |field: fn(&ContextRow) -> u64| rows().map(field).sum::<u64>() as f64;
    let ratio = |above: f64, below: f64| (below > 0.0).then(|| above / below);
    let sent = ratio(sum(|r| r.message_bytes), sum(|r| r.context_tokens));
    let computed = ratio(sum(|r| r.edge_token_layers), sum(|r| r.token_layers));
    let identity = arms.first().map(|arm| &arm.identity);
    let fit = match identity {
        Some(identity) if identity.tuned_per_context => {
            let tuned = ratio(1e-9 * sum(|r| r.encode_ns), rows().count() as f64);
            tuned.map_or(Value::Missing, |s| {
                Value::Stack(vec![text(duration(s)), text("per context")])
            })
        }
        Some(identity) => match identity.fit_s {
            Some(seconds) => text(duration(seconds)),
            // It holds something beforehand, which took somebody some time.
            None if identity.artefact_bytes > 0 => text("not stated"),
            None => Value::Missing,
        },
        None => Value::Missing,
    };
    [
        Value::number(sent, 0),
        Value::number(computed.map(|share| 100.0 * share), 1),
        fit,
    ]
}

/// "75 s", "12 min", "3.4 h".
fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{} s", number(s, 1)),
        s if s < 120.0 => format!("{} s", number(s, 0)),
        s if s < 7200.0 => format!("{} min", number(s / 60.0, 0)),
        s => format!("{} h", number(s / 3600.0, 1)),
    }
}

/// Whether nothing but likelihood counts there.
fn likelihood_alone(board: &Board) -> bool {
    board.arms.iter().all(|arm| arm.summary.f1.is_none())
}

fn unit(board: &Board) -> &'static str {
    match likelihood_alone(board) {
        true => "NLL",
        false => "F1 %, NLL",
    }
}

/// F1 and NLL with their intervals, and how far the arm came.
fn quality(board: &Board, name: &str) -> Value {
    let Some(arm) = arm(board, name) else {
        return Value::Missing;
    };
    let s = &arm.summary;
    let mut lines = Vec::new();
    lines.extend(s.f1.map(|f1| percent(Some(f1))));
    lines.extend(s.nll.map(|nll| Value::Interval(nll.mean, nll.interval, 2)));
    if arm.state() == State::Partial {
        lines.push(text(arm.progress()));
    }
    Value::Stack(lines)
}

/// "61.2/1.18", with a star where contexts are missing.
fn brief(board: &Board, name: &str) -> Value {
    let Some(arm) = arm(board, name) else {
        return Value::Missing;
    };
    let (f1, nll) = (arm.summary.f1, arm.summary.nll);
    let nll = nll.map(|score| number(score.mean, if score.mean < 10.0 { 2 } else { 1 }));
    let f1 = f1.map(|score| number(100.0 * score.mean, usize::from(score.mean < 1.0)));
    let figures: Vec<String> = [f1, nll].into_iter().flatten().collect();
    let star = if arm.state() == State::Partial {
        "*"
    } else {
        ""
    };
    text(format!("{}{star}", figures.join("/")))
}

/// A data set's name for a narrow column: of several of a kind, what follows the kind.
fn short(dataset: &str) -> String {
    let own = dataset.split_once('-').map_or(dataset, |(_, own)| own);
    shorten(own, SHORT_NAME)
}
