//! Wire ratios at the same loss of likelihood.

use super::text;
use crate::evaluation::arm::Board;
use crate::evaluation::compare::{NLL_LEVELS, at_equal_nll};
use crate::evaluation::family::{Loss, Reach, codec_families};
use crate::table::{Column, Table, Value, number};

pub(super) fn table(board: &Board) -> Option<Table> {
    let families = codec_families(board);
    let measured: Vec<_> = families
        .iter()
        .map(|family| (family.name, family.front(Loss::Nats)))
        .filter(|(_, front)| !front.points().is_empty())
        .collect();
    if measured.is_empty() {
        return None;
    }
    let mut rows: Vec<Vec<Value>> = measured
        .iter()
        .map(|(name, front)| {
            let reached = NLL_LEVELS.iter().map(|&level| match front.at(level) {
                Reach::Never => Value::Missing,
                Reach::At(ratio) => text(number(ratio, 1)),
                Reach::Beyond(ratio) => text(format!("> {}", number(ratio, 1))),
            });
            std::iter::once(text(*name)).chain(reached).collect()
        })
        .collect();
    for comparison in at_equal_nll(&families) {
        let mut row = vec![text(format!(
            "{}: fewer bytes than the next",
            comparison.name
        ))];
        row.extend(comparison.levels.iter().map(|found| {
            found.as_ref().map_or(Value::Missing, |f| {
                text(format!(
                    "{}{}× ({})",
                    f.bound,
                    number(f.factor, 2),
                    f.against
                ))
            })
        }));
        rows.push(row);
    }
    let mut columns = vec![Column::text("family")];
    columns.extend(
        NLL_LEVELS
            .iter()
            .map(|level| Column::figure(&format!("ΔNLL {level}"), "×")),
    );
    Some(Table {
        title: format!("Wire ratio at equal NLL{}", board.suffix),
        columns,
        rows,
        notes: vec![
            "The logarithm of the wire ratio, interpolated over ΔNLL (nats a token) between those arms of the family that no other arm of it beats in both. \"–\": every arm of the family loses more; \"> x\": even the arm of its highest ratio, x, loses less. The last rows: so many times fewer bytes, or below 1 more, than the next family, which is named."
                .to_owned(),
        ],
    })
}
