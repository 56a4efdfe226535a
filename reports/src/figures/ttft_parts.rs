//! Stacked bars of the TTFT parts, by link and system.

use super::svg::{Anchor, GRID, INK, MUTED, Svg, fit, text_width};
use super::{Figure, tick_label, ticks};
use crate::cell::Cell;
use crate::sample::PART_NAMES;
use crate::table::number;
use crate::views::Data;

/// One colour per part, in the order of [`PART_NAMES`]: greys for waiting and
/// bookkeeping, blues for the cloud and the link, warm for the edge.
const COLOURS: [&str; PART_NAMES.len()] = [
    "#9aa5b1", "#cbd2d9", "#7b8794", "#2f6690", "#81a4cd", "#3a9ad9", "#8fd3c7", "#3d9970",
    "#e07a3f", "#f2b84b",
];

const WIDTH: f64 = 960.0;
const BAR: f64 = 18.0;
const ROW: f64 = 26.0;
const GROUP: f64 = 34.0;

pub(super) fn draw(data: &Data) -> Option<Figure> {
    let groups: Vec<(&str, Vec<&Cell>)> = data
        .links()
        .into_iter()
        .map(|link| {
            let cells = data
                .cells
                .iter()
                .filter(|c| c.identity.link == link && c.comparable())
                .filter(|c| c.summary.ttft_mean_ms.is_some())
                .collect();
            (link, cells)
        })
        .filter(|(_, cells): &(_, Vec<_>)| !cells.is_empty())
        .collect();
    let sum = |cell: &Cell| cell.summary.parts.iter().map(|p| p.exposed_ms).sum::<f64>();
    let max = groups
        .iter()
        .flat_map(|(_, cells)| cells)
        .map(|c| sum(c).max(c.summary.ttft_mean_ms.unwrap_or(0.0)))
        .fold(0.0, f64::max);
    if max <= 0.0 {
        return None;
    }

    let shown: Vec<usize> = (0..PART_NAMES.len())
        .filter(|&i| {
            groups
                .iter()
                .flat_map(|(_, cells)| cells)
                .any(|c| c.summary.parts[i].exposed_ms > 0.0)
        })
        .collect();
    let longest = groups
        .iter()
        .flat_map(|(_, cells)| cells)
        .map(|c| text_width(&data.variant(c), 12.0))
        .fold(0.0, f64::max);
    let left = (longest + 16.0).clamp(90.0, 380.0);
    let right = WIDTH - 76.0;

    // The legend wraps, so that its height is known only after it is laid out.
    let mut legend = Vec::new();
    let (mut x, mut y) = (left, 14.0);
    for &i in &shown {
        let name = PART_NAMES[i].replace('_', " ");
        let width = text_width(&name, 12.0) + 34.0;
        if x + width > WIDTH {
            x = left;
            y += 20.0;
        }
        legend.push((i, name, x, y));
        x += width;
    }
    let top = y + 20.0;
    let rows: usize = groups.iter().map(|(_, cells)| cells.len()).sum();
    let bottom = top + rows as f64 * ROW + groups.len() as f64 * GROUP;
    let mut svg = Svg::new(WIDTH, bottom + 44.0);

    for (i, name, x, y) in legend {
        svg.rect(x, y - 10.0, 12.0, 12.0, COLOURS[i], "");
        svg.text((x + 17.0, y), Anchor::Start, 12.0, INK, &name);
    }
    let ticks = ticks(max, 6);
    let end = *ticks.last()?;
    let place = |ms: f64| left + (right - left) * ms / end;
    for &tick in &ticks {
        svg.line((place(tick), top), (place(tick), bottom), GRID, 1.0);
        svg.text(
            (place(tick), bottom + 16.0),
            Anchor::Middle,
            11.0,
            MUTED,
            &tick_label(tick),
        );
    }
    svg.text(
        (f64::midpoint(left, right), bottom + 36.0),
        Anchor::Middle,
        12.0,
        MUTED,
        "mean time to first token (ms)",
    );

    let mut y = top;
    for (link, cells) in &groups {
        svg.bold((8.0, y + 22.0), Anchor::Start, 13.0, link);
        y += GROUP;
        for cell in cells {
            svg.text(
                (left - 8.0, y + 13.0),
                Anchor::End,
                12.0,
                INK,
                &fit(&data.variant(cell), 12.0, left - 12.0),
            );
            let mut from = 0.0;
            for &i in &shown {
                let ms = cell.summary.parts[i].exposed_ms;
                if ms > 0.0 {
                    svg.rect(
                        place(from),
                        y,
                        place(from + ms) - place(from),
                        BAR,
                        COLOURS[i],
                        &format!("{}: {} ms", PART_NAMES[i].replace('_', " "), number(ms, 1)),
                    );
                    from += ms;
                }
            }
            svg.text(
                (place(from) + 6.0, y + 13.0),
                Anchor::Start,
                11.0,
                MUTED,
                &number(from, 0),
            );
            y += ROW;
        }
    }
    Some(Figure {
        name: "ttft_parts".to_owned(),
        title: "Where the time to the first token goes".to_owned(),
        caption: "Exposed parts of TTFT, mean over the answered requests of each cell; all bars share one scale."
            .to_owned(),
        svg: svg.finish("Stacked bars of the parts of TTFT by link and system"),
    })
}
