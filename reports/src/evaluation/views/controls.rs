//! Controls beside the reference.

use super::{marked, nats, nats_difference, percent, percent_mean, points};
use crate::evaluation::arm::Board;
use crate::evaluation::row::ArmKind;
use crate::table::{Column, Table, Value};

pub(super) fn table(board: &Board) -> Option<Table> {
    let controls: Vec<_> = board.of(ArmKind::Control).filter(|a| a.ran()).collect();
    if controls.is_empty() {
        return None;
    }
    let rows = board
        .reference()
        .into_iter()
        .chain(controls)
        .map(|arm| {
            let s = &arm.summary;
            vec![
                marked(arm),
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
    Some(Table {
        title: format!("Controls{}", board.suffix),
        columns: vec![
            Column::text("arm"),
            Column::figure("F1", "%"),
            Column::figure("ΔF1", "points"),
            Column::figure("EM", "%"),
            Column::figure("NLL", "nats/token"),
            Column::figure("ΔNLL", "nats/token"),
            Column::figure("KL", "nats/token"),
            Column::figure("top-1", "%"),
        ],
        rows,
        notes: vec![
            "What answers without the context's own KV. Where a control comes near the reference, the questions do not test what the KV carries."
                .to_owned(),
        ],
    })
}
