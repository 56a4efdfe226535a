//! The tables of an evaluation, one file per view.

mod arms;
mod controls;
mod distortion;
mod equal_nll;
mod furthest;
mod incomplete;
mod layers;
mod overview;
mod parts;
mod speed;

pub(super) use furthest::compact;
pub(super) use overview::compact as compact_overview;

use super::arm::{Arm, Board};
use crate::quality::{Paired, Score};
use crate::table::{Table, Value};

/// A table of one data set, or `None` where it has nothing to say.
type View = fn(&Board) -> Option<Table>;

/// Tables over all data sets.
type Across = fn(&[Board]) -> Vec<Table>;

/// What comes first of all.
const ACROSS: &[Across] = &[overview::tables];

/// What a reader looks for first on each data set, before the figures.
const LEADING: &[View] = &[furthest::table];

/// The other tables, in the order of the report.
const FOLLOWING: &[View] = &[
    equal_nll::table,
    arms::table,
    controls::table,
    incomplete::table,
    distortion::table,
    layers::table,
    parts::table,
    speed::table,
];

/// Tables before the figures, and those after them.
pub(super) fn tables(boards: &[Board]) -> (Vec<Table>, Vec<Table>) {
    let of = |views: &[View]| -> Vec<Table> {
        views
            .iter()
            .flat_map(|view| boards.iter().filter_map(view))
            .collect()
    };
    let across = ACROSS.iter().flat_map(|view| view(boards));
    (across.chain(of(LEADING)).collect(), of(FOLLOWING))
}

fn text(value: impl Into<String>) -> Value {
    Value::Text(value.into())
}

/// A wire ratio.
fn ratio(value: Option<f64>) -> Value {
    Value::number(value, 1)
}

/// A score in per cent with its interval.
fn percent(score: Option<Score>) -> Value {
    crate::views::percent(score)
}

/// A mean in per cent without its interval.
fn percent_mean(score: Option<Score>) -> Value {
    Value::number(score.map(|s| 100.0 * s.mean), 1)
}

/// A difference in points with its interval.
fn points(difference: Option<Paired>) -> Value {
    difference.map_or(Value::Missing, |d| {
        Value::Interval(
            100.0 * d.difference,
            d.interval.map(|(low, high)| (100.0 * low, 100.0 * high)),
            1,
        )
    })
}

/// Nats per token.
fn nats(score: Option<Score>) -> Value {
    Value::number(score.map(|s| s.mean), 3)
}

/// A difference in nats per token with its interval.
fn nats_difference(difference: Option<Paired>) -> Value {
    difference.map_or(Value::Missing, |d| {
        Value::Interval(d.difference, d.interval, 4)
    })
}

/// A name, marked where it rests on other contexts than the reference.
fn marked(arm: &Arm) -> Value {
    if arm.comparable {
        text(arm.name())
    } else {
        text(format!("{} ({})", arm.name(), arm.progress()))
    }
}
