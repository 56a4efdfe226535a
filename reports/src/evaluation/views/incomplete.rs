//! Planned arms that did not run, or not over all of their contexts.

use super::text;
use crate::evaluation::arm::{Board, State};
use crate::table::{Column, Table};

pub(super) fn table(board: &Board) -> Option<Table> {
    let rows: Vec<_> = board
        .arms
        .iter()
        .filter(|arm| arm.state() != State::Whole)
        .map(|arm| {
            let state = match arm.state() {
                State::NotRun => "not run".to_owned(),
                _ => arm.progress(),
            };
            let drawn = if arm.comparable { "yes" } else { "no" };
            vec![
                text(arm.name()),
                text(&arm.identity.family),
                text(state),
                text(drawn),
            ]
        })
        .collect();
    (!rows.is_empty()).then(|| Table {
        title: format!("Arms that are not complete{}", board.suffix),
        columns: vec![
            Column::text("arm"),
            Column::text("family"),
            Column::text("state"),
            Column::text("ranked and drawn"),
        ],
        rows,
        notes: vec![
            "An arm that does not cover the contexts of the reference is neither ranked nor drawn; while the reference itself is under way, its last context is spared."
                .to_owned(),
        ],
    })
}
