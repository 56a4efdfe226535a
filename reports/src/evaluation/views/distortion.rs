//! How far the decoded KV is from the exact one.

use super::{marked, ratio, text};
use crate::evaluation::arm::Board;
use crate::table::{Column, Table, Value};

pub(super) fn table(board: &Board) -> Option<Table> {
    let rows: Vec<_> = board
        .methods()
        .into_iter()
        .filter_map(|arm| {
            let d = arm.summary.distortion?;
            Some(vec![
                marked(arm),
                text(&arm.identity.family),
                ratio(arm.summary.wire_ratio),
                Value::significant(Some(d.k_error), 3),
                Value::significant(Some(d.v_error), 3),
                Value::Number(d.k_cosine, 4),
                Value::Number(d.v_cosine, 4),
                Value::significant(Some(d.attention_error), 3),
            ])
        })
        .collect();
    (!rows.is_empty()).then(|| Table {
        title: format!("Distortion{}", board.suffix),
        columns: vec![
            Column::text("arm"),
            Column::text("family"),
            Column::figure("wire ratio", "×"),
            Column::figure("K MSE / variance", ""),
            Column::figure("V MSE / variance", ""),
            Column::figure("K cosine", ""),
            Column::figure("V cosine", ""),
            Column::figure("attention error", ""),
        ],
        rows,
        notes: vec![
            "Means over layers. Keys and values over the tokens that the arm holds, keys before RoPE; the attention error is that of what the questions' own queries read, and counts dropped tokens."
                .to_owned(),
        ],
    })
}
