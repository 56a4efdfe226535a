//! The reference and every method, with what they cost and what they keep.

use super::{marked, nats, nats_difference, percent, percent_mean, points, ratio, text};
use crate::evaluation::arm::Board;
use crate::table::{Column, Table, Value, number};

pub(super) fn table(board: &Board) -> Option<Table> {
    let methods = board.methods();
    let arms: Vec<_> = board.reference().into_iter().chain(methods).collect();
    let rows: Vec<_> = arms
        .iter()
        .map(|arm| {
            let s = &arm.summary;
            vec![
                marked(arm),
                text(&arm.identity.family),
                ratio(s.wire_ratio),
                Value::number(s.bytes_per_token, 0),
                Value::number(s.bits_per_number, 2),
                Value::number(s.held_share.map(|share| 100.0 * share), 0),
                Value::number(s.edge_share.map(|share| 100.0 * share), 1),
                percent(s.f1),
                points(s.f1_difference),
                percent_mean(s.em),
                nats(s.nll),
                nats_difference(s.nll_difference),
                Value::significant(s.kl, 3),
                Value::number(s.top1.map(|share| 100.0 * share), 1),
            ]
        })
        .collect();
    if rows.is_empty() {
        return None;
    }
    let whole = arms
        .iter()
        .find_map(|arm| arm.summary.fp16_bytes_per_token)
        .map(|bytes| format!(" fp16 takes {} bytes a token.", number(bytes, 0)));
    Some(Table {
        title: format!("All arms{}", board.suffix),
        columns: vec![
            Column::text("arm"),
            Column::text("family"),
            Column::figure("wire ratio", "×"),
            Column::figure("KV", "B/token"),
            Column::figure("payload", "bit/number"),
            Column::figure("held", "%"),
            Column::figure("computed at the edge", "%"),
            Column::figure("F1", "%"),
            Column::figure("ΔF1", "points"),
            Column::figure("EM", "%"),
            Column::figure("NLL", "nats/token"),
            Column::figure("ΔNLL", "nats/token"),
            Column::figure("KL", "nats/token"),
            Column::figure("top-1", "%"),
        ],
        rows,
        notes: vec![format!(
            "The reference first, then each family by wire ratio. Intervals are over contexts; differences are to the reference on the same questions.{}",
            whole.unwrap_or_default()
        )],
    })
}
