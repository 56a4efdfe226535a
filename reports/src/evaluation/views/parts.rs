//! What the bytes of an arm are spent on.

use super::{marked, ratio, text};
use crate::evaluation::arm::Board;
use crate::table::{Column, Table, Value, number};

pub(super) fn table(board: &Board) -> Option<Table> {
    let rows: Vec<_> = board
        .methods()
        .into_iter()
        .filter(|arm| !arm.summary.parts.is_empty())
        .map(|arm| {
            let s = &arm.summary;
            let parts: Vec<_> = s
                .parts
                .iter()
                .map(|(name, bytes)| format!("{name} {}", number(*bytes, 1)))
                .collect();
            vec![
                marked(arm),
                ratio(s.wire_ratio),
                ratio(s.nominal_ratio),
                Value::number(s.bytes_per_token, 1),
                text(parts.join(", ")),
                Value::number(s.framing_per_token, 1),
                Value::number(Some(arm.identity.artefact_bytes as f64 / 1e3), 1),
            ]
        })
        .collect();
    (!rows.is_empty()).then(|| Table {
        title: format!("Where the bytes go{}", board.suffix),
        columns: vec![
            Column::text("arm"),
            Column::figure("wire ratio", "×"),
            Column::figure("nominal ratio", "×"),
            Column::figure("messages", "B/token"),
            Column::text("payload by part (B/token)"),
            Column::figure("hashes and headers", "B/token"),
            Column::figure("held beforehand", "kB"),
        ],
        rows,
        notes: vec![
            "Bytes per token of context. What both ends hold beforehand is sent once, whatever the number of contexts, and is in no ratio."
                .to_owned(),
        ],
    })
}
