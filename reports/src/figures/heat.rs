//! Matrices of shares as coloured squares, side by side.

use std::fmt::Write as _;

use super::svg::{Anchor, INK, MUTED, Svg};
use crate::table::number;

/// One matrix of numbers up to 1, drawn from 0 on.
#[derive(Debug, Clone, PartialEq)]
pub struct HeatPanel {
    /// What it shows.
    pub title: String,
    /// `[rows][columns]`; a number that is none is left white.
    pub rows: Vec<Vec<f64>>,
}

/// Matrices with the same rows and columns.
#[derive(Debug, Clone, PartialEq)]
pub struct HeatMap {
    /// What rows are.
    pub row_label: String,
    /// What columns are.
    pub column_label: String,
    /// The matrices, from left to right.
    pub panels: Vec<HeatPanel>,
}

/// Sides of a square, and room around the squares of a panel, in px.
const CELL: f64 = 17.0;
const LEFT: f64 = 56.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 92.0;
const GAP: f64 = 24.0;
/// Every so many rows and columns are numbered.
const NUMBERED: usize = 4;
/// Dark blue, for 1; white is 0.
const FULL: [f64; 3] = [8.0, 48.0, 107.0];

impl HeatMap {
    /// Draws it; the largest number of every row has a frame. `label` is read out instead of the
    /// drawing.
    #[must_use]
    pub fn draw(&self, label: &str) -> String {
        let widest = |panel: &HeatPanel| panel.rows.iter().map(Vec::len).max().unwrap_or(0);
        let panel_width = |panel: &HeatPanel| LEFT + widest(panel) as f64 * CELL + GAP;
        let deepest = self.panels.iter().map(|panel| panel.rows.len()).max();
        let width = self.panels.iter().map(panel_width).sum::<f64>().max(320.0);
        let bottom = TOP + deepest.unwrap_or(0) as f64 * CELL;
        let mut svg = Svg::new(width, bottom + BOTTOM);
        let mut left = 0.0;
        for panel in &self.panels {
            self.panel(&mut svg, panel, left + LEFT);
            left += panel_width(panel);
        }
        scale(&mut svg, LEFT, bottom + 58.0);
        svg.finish(label)
    }

    fn panel(&self, svg: &mut Svg, panel: &HeatPanel, left: f64) {
        let (rows, columns) = (panel.rows.len(), panel.rows.first().map_or(0, Vec::len));
        let middle = |start: f64, count: usize| start + count as f64 * CELL / 2.0;
        svg.bold((left, TOP - 22.0), Anchor::Start, 13.0, &panel.title);
        svg.upright(
            (left - 38.0, middle(TOP, rows)),
            12.0,
            MUTED,
            &self.row_label,
        );
        let below = TOP + rows as f64 * CELL;
        let at = (middle(left, columns), below + 36.0);
        svg.text(at, Anchor::Middle, 12.0, MUTED, &self.column_label);
        for (row, numbers) in panel.rows.iter().enumerate() {
            let y = TOP + row as f64 * CELL;
            if row.is_multiple_of(NUMBERED) {
                let at = (left - 8.0, y + 13.0);
                svg.text(at, Anchor::End, 11.0, MUTED, &row.to_string());
            }
            for (column, value) in numbers.iter().enumerate() {
                let hint = format!(
                    "{} {row}, {} {column}: {}",
                    self.row_label,
                    self.column_label,
                    number(*value, 3)
                );
                let x = left + column as f64 * CELL;
                svg.rect(x, y, CELL - 1.0, CELL - 1.0, &colour(*value), &hint);
            }
            if let Some(best) = best(numbers) {
                let x = left + best as f64 * CELL;
                svg.frame((x, y), CELL - 1.0, "#d55e00");
            }
        }
        for column in (0..columns).step_by(NUMBERED) {
            let at = (middle(left + column as f64 * CELL, 1), below + 16.0);
            svg.text(at, Anchor::Middle, 11.0, MUTED, &column.to_string());
        }
    }
}

/// The place of the largest number, the first on a tie.
fn best(numbers: &[f64]) -> Option<usize> {
    let finite = numbers.iter().enumerate().filter(|(_, x)| x.is_finite());
    let best = finite.fold(None, |best: Option<(usize, f64)>, (index, x)| match best {
        Some((_, most)) if *x <= most => best,
        _ => Some((index, *x)),
    });
    best.map(|(index, _)| index)
}

fn colour(value: f64) -> String {
    let share = if value.is_finite() {
        value.clamp(0.0, 1.0)
    } else {
        0.0
    };
    let mut colour = "#".to_owned();
    for full in FULL {
        let _ = write!(
            colour,
            "{:02x}",
            (255.0 + (full - 255.0) * share).round() as u8
        );
    }
    colour
}

/// What the colours stand for.
fn scale(svg: &mut Svg, left: f64, top: f64) {
    for step in 0..=10 {
        let share = f64::from(step) / 10.0;
        let x = left + f64::from(step) * CELL;
        svg.rect(x, top, CELL, 10.0, &colour(share), "");
    }
    for (step, text) in [(0.0, "0 or less"), (11.0, "1")] {
        let at = (left + step * CELL, top + 24.0);
        svg.text(at, Anchor::Middle, 11.0, INK, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_of_a_row_is_framed() {
        let map = HeatMap {
            row_label: "edge layer".to_owned(),
            column_label: "cloud layer".to_owned(),
            panels: vec![HeatPanel {
                title: "keys".to_owned(),
                rows: vec![vec![0.25, 1.0, -3.0], vec![f64::NAN, 0.0, 0.5]],
            }],
        };
        let svg = map.draw("similarity");
        assert_eq!(svg.matches("#d55e00").count(), 2);
        assert!(svg.contains("edge layer 0, cloud layer 1: 1.000"), "{svg}");
        assert_eq!(colour(1.0), "#08306b");
        assert_eq!(colour(-3.0), "#ffffff");
        assert_eq!(colour(f64::NAN), "#ffffff");
        assert_eq!(best(&[f64::NAN, 0.5, 0.5]), Some(1));
        assert_eq!(best(&[f64::NAN]), None);
    }
}
