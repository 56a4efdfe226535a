//! Distortion by layer, for one arm of some families.

use super::text;
use crate::evaluation::arm::{Arm, Board};
use crate::evaluation::family::families;
use crate::table::{Column, Table, Value, number};

/// Arms are compared near this wire ratio.
const NEAR: f64 = 9.0;

/// An arm further off than this factor is not near it.
const NEAR_FACTOR: f64 = 1.6;

/// More arms than these do not fit beside each other.
const MAX_ARMS: usize = 6;

pub(super) fn table(board: &Board) -> Option<Table> {
    let arms = chosen(board);
    let mut layers: Vec<u32> = arms
        .iter()
        .flat_map(|arm| arm.summary.layers.iter().map(|l| l.layer))
        .collect();
    layers.sort_unstable();
    layers.dedup();
    if layers.is_empty() {
        return None;
    }
    let rows = layers
        .iter()
        .map(|&layer| {
            let cell = |arm: &&Arm| {
                let found = arm.summary.layers.iter().find(|l| l.layer == layer);
                found.map_or(Value::Missing, |l| {
                    let figure = |v: f64| Value::significant(Some(v), 2).render();
                    let d = l.distortion;
                    text(format!(
                        "{} / {} / {}",
                        figure(d.k_error),
                        figure(d.v_error),
                        figure(d.attention_error)
                    ))
                })
            };
            std::iter::once(Value::Count(u64::from(layer)))
                .chain(arms.iter().map(cell))
                .collect()
        })
        .collect();
    let heading = |arm: &&Arm| {
        let ratio = arm.summary.wire_ratio.unwrap_or(0.0);
        Column::figure(&format!("{}, {}×", arm.name(), number(ratio, 1)), "")
    };
    Some(Table {
        title: format!("Distortion by layer, near {NEAR:.0}×{}", board.suffix),
        columns: std::iter::once(Column::figure("layer", ""))
            .chain(arms.iter().map(heading))
            .collect(),
        rows,
        notes: vec![format!(
            "K MSE / variance, V MSE / variance, attention error. Of each family the arm nearest to {NEAR:.0}×, if it is within a factor of {NEAR_FACTOR}; of these the {MAX_ARMS} with the lowest NLL, by NLL."
        )],
    })
}

fn chosen(board: &Board) -> Vec<&Arm> {
    let distance = |arm: &Arm| {
        let ratio = arm.summary.wire_ratio.unwrap_or(f64::NAN);
        (ratio / NEAR).ln().abs()
    };
    let mut arms: Vec<&Arm> = families(board)
        .iter()
        .filter_map(|family| {
            family
                .arms
                .iter()
                .copied()
                .filter(|a| !a.summary.layers.is_empty() && distance(a) <= NEAR_FACTOR.ln())
                .min_by(|a, b| distance(a).total_cmp(&distance(b)))
        })
        .collect();
    let nll = |arm: &Arm| arm.summary.nll.map_or(f64::INFINITY, |s| s.mean);
    arms.sort_by(|a, b| nll(a).total_cmp(&nll(b)));
    arms.truncate(MAX_ARMS);
    arms
}
