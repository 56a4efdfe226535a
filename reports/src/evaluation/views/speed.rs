//! How fast the arms encoded and decoded, as seen in passing.

use super::{marked, ratio, text};
use crate::evaluation::arm::Board;
use crate::table::{Column, Table, Value};

pub(super) fn table(board: &Board) -> Option<Table> {
    let megabytes = |rate: Option<f64>| Value::number(rate.map(|r| r / 1e6), 0);
    let rows: Vec<_> = board
        .methods()
        .into_iter()
        .filter(|arm| {
            let s = &arm.summary;
            s.encode_bytes_per_s.or(s.decode_bytes_per_s).is_some()
        })
        .map(|arm| {
            let s = &arm.summary;
            vec![
                marked(arm),
                text(&arm.identity.family),
                ratio(s.wire_ratio),
                megabytes(s.encode_bytes_per_s),
                megabytes(s.decode_bytes_per_s),
            ]
        })
        .collect();
    (!rows.is_empty()).then(|| Table {
        title: format!("Speed beside the evaluation{}", board.suffix),
        columns: vec![
            Column::text("arm"),
            Column::text("family"),
            Column::figure("wire ratio", "×"),
            Column::figure("encode", "MB/s of fp16"),
            Column::figure("decode", "MB/s of fp16"),
        ],
        rows,
        notes: vec![
            "One thread, timed while other work was running: an order of magnitude and not a benchmark."
                .to_owned(),
        ],
    })
}
