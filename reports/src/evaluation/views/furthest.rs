//! How far each family goes within a bound on what it loses.

use super::{nats_difference, points, text};
use crate::evaluation::arm::Board;
use crate::evaluation::family::{
    Family, Furthest, Limit, NLL_LIMIT, ONE_POINT, THREE_POINTS, codec_families,
};
use crate::table::{Column, Table, Value, number};

pub(super) fn table(board: &Board) -> Option<Table> {
    let families = codec_families(board);
    if families.is_empty() {
        return None;
    }
    let rows = families
        .iter()
        .map(|family| {
            let found = family.furthest(ONE_POINT);
            let summary = found.map(|f| &f.arm.summary);
            vec![
                text(family.name),
                found.map_or(Value::Missing, |f| text(f.arm.name())),
                reached(found),
                Value::number(summary.and_then(|s| s.bytes_per_token), 0),
                points(summary.and_then(|s| s.f1_difference)),
                nats_difference(summary.and_then(|s| s.nll_difference)),
                reached(family.surely()),
                reached(family.furthest(THREE_POINTS)),
                reached(family.furthest(NLL_LIMIT)),
            ]
        })
        .collect();
    Some(Table {
        title: format!("Smallest wire size within 1 point of F1{}", board.suffix),
        columns: vec![
            Column::text("family"),
            Column::text("arm"),
            Column::figure("wire ratio", "×"),
            Column::figure("KV", "B/token"),
            Column::figure("ΔF1", "points"),
            Column::figure("ΔNLL", "nats/token"),
            Column::figure("ΔF1 interval above −1", "×"),
            heading(THREE_POINTS),
            heading(NLL_LIMIT),
        ],
        rows,
        notes: vec![
            "The arm of the highest wire ratio such that it and every arm of its family with a lower ratio stays within 1 point of the reference's F1, by the point estimate. The last three columns state the wire ratio for other bounds: of those arms the last whose whole interval of ΔF1 lies above −1 point, 3 points, and an NLL at most 0.02 nats a token above the reference. \"≥\": the family has no arm beyond the bound, so it may go further; \"–\": its first arm is beyond it."
                .to_owned(),
        ],
    })
}

/// The same for a terminal.
pub(in crate::evaluation) fn compact(board: &Board, title: &str) -> Table {
    let families = codec_families(board);
    let column = |limit: Limit| {
        move |family: &Family<'_>| {
            let found = family.furthest(limit);
            found.map_or(Value::Missing, |f| text(ratio_of(f)))
        }
    };
    let rows = families
        .iter()
        .map(|family| {
            let found = family.furthest(ONE_POINT);
            vec![
                text(family.name),
                text(format!("{}", family.arms.len())),
                column(ONE_POINT)(family),
                points(found.and_then(|f| f.arm.summary.f1_difference)),
                nats_difference(found.and_then(|f| f.arm.summary.nll_difference)),
                column(THREE_POINTS)(family),
                column(NLL_LIMIT)(family),
            ]
        })
        .collect();
    Table {
        title: format!("{title}{}", board.suffix),
        columns: vec![
            Column::text("family"),
            Column::figure("arms", ""),
            Column::figure("F1 −1: ×", ""),
            Column::figure("ΔF1 there", ""),
            Column::figure("ΔNLL there", ""),
            Column::figure("F1 −3: ×", ""),
            Column::figure("NLL +0.02: ×", ""),
        ],
        rows,
        notes: Vec::new(),
    }
}

fn heading(limit: Limit) -> Column {
    Column::figure(limit.title, "×")
}

fn reached(found: Option<Furthest<'_>>) -> Value {
    found.map_or(Value::Missing, |f| text(ratio_of(f)))
}

fn ratio_of(found: Furthest<'_>) -> String {
    let ratio = number(found.arm.summary.wire_ratio.unwrap_or(0.0), 1);
    if found.open {
        format!("≥ {ratio}")
    } else {
        ratio
    }
}
