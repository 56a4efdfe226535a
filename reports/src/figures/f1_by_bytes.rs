//! Answer quality against what it costs on the link.

use super::svg::{Anchor, GRID, INK, MUTED, Svg, fit, text_width};
use super::{Figure, SERIES, log_ticks, tick_label, ticks};
use crate::quality::{Score, score};
use crate::table::number;
use crate::views::Data;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 400.0;
/// Room for systems that send nothing, which a logarithmic axis cannot place.
const ZERO: f64 = 60.0;

struct Point {
    name: String,
    kilobytes: f64,
    f1: Score,
}

pub(super) fn draw(data: &Data) -> Option<Figure> {
    let points: Vec<Point> = data
        .pools_over_loads()
        .iter()
        .filter_map(|pool| {
            Some(Point {
                name: pool.label.clone(),
                f1: score(pool.measured(), |s| s.f1)?,
                kilobytes: pool.downlink_bytes()? / 1e3,
            })
        })
        .collect();
    if points.is_empty() {
        return None;
    }
    let sizes = || points.iter().map(|p| p.kilobytes).filter(|&k| k > 0.0);
    let low = sizes().fold(f64::INFINITY, f64::min);
    let high = sizes().fold(0.0, f64::max);
    let x_ticks = if high > 0.0 {
        log_ticks(low, high)
    } else {
        Vec::new()
    };
    let top_f1 = points
        .iter()
        .map(|p| p.f1.interval.map_or(p.f1.mean, |i| i.1.max(p.f1.mean)))
        .fold(0.0, f64::max);
    let y_ticks = ticks((100.0 * top_f1).max(10.0), 5);
    let last_y = *y_ticks.last()?;

    let legend = points
        .iter()
        .map(|p| text_width(&p.name, 12.0))
        .fold(0.0, f64::max)
        .min(360.0)
        + 30.0;
    let (left, right) = (62.0, WIDTH - legend - 16.0);
    let (top, bottom) = (16.0, HEIGHT - 52.0);
    let place_y = |f1: f64| bottom - (bottom - top) * 100.0 * f1 / last_y;
    let zero = points.iter().any(|p| p.kilobytes <= 0.0);
    let start = left + if zero { ZERO } else { 24.0 };
    let place_x = |kilobytes: f64| match (x_ticks.first(), x_ticks.last()) {
        (Some(&a), Some(&b)) if kilobytes > 0.0 => {
            start + (right - 12.0 - start) * (kilobytes / a).log10() / (b / a).log10()
        }
        _ => left + ZERO / 2.0,
    };

    let mut svg = Svg::new(WIDTH, HEIGHT.max(40.0 + 22.0 * points.len() as f64));
    for &tick in &y_ticks {
        let y = place_y(tick / 100.0);
        svg.line((left, y), (right, y), GRID, 1.0);
        svg.text(
            (left - 8.0, y + 4.0),
            Anchor::End,
            11.0,
            MUTED,
            &tick_label(tick),
        );
    }
    if zero {
        svg.text(
            (left + ZERO / 2.0, bottom + 18.0),
            Anchor::Middle,
            11.0,
            MUTED,
            "0",
        );
    }
    for &tick in &x_ticks {
        svg.line((place_x(tick), top), (place_x(tick), bottom), GRID, 1.0);
        svg.text(
            (place_x(tick), bottom + 18.0),
            Anchor::Middle,
            11.0,
            MUTED,
            &tick_label(tick),
        );
    }
    svg.text(
        (f64::midpoint(left, right), bottom + 40.0),
        Anchor::Middle,
        12.0,
        MUTED,
        "downlink per request (kB, logarithmic)",
    );
    svg.upright((16.0, f64::midpoint(top, bottom)), 12.0, MUTED, "F1 (%)");
    for (index, point) in points.iter().enumerate() {
        let colour = SERIES[index % SERIES.len()];
        // Points of equal size would hide each other's intervals.
        let spread = 7.0 * (index as f64 - (points.len() - 1) as f64 / 2.0);
        let crowded = points.iter().enumerate().any(|(other, p)| {
            other != index && (place_x(p.kilobytes) - place_x(point.kilobytes)).abs() < 8.0
        });
        let x = place_x(point.kilobytes) + if crowded { spread } else { 0.0 };
        let y = place_y(point.f1.mean);
        if let Some((low, high)) = point.f1.interval {
            svg.line((x, place_y(low)), (x, place_y(high)), colour, 1.5);
            for end in [low, high] {
                svg.line(
                    (x - 4.0, place_y(end)),
                    (x + 4.0, place_y(end)),
                    colour,
                    1.5,
                );
            }
        }
        let hint = format!(
            "{}: F1 {}%, {} kB",
            point.name,
            number(100.0 * point.f1.mean, 1),
            number(point.kilobytes, 1)
        );
        svg.marker((x, y), index, colour, &hint);
        let y = top + 12.0 + 22.0 * index as f64;
        svg.marker((right + 22.0, y - 4.0), index, colour, "");
        svg.text(
            (right + 34.0, y),
            Anchor::Start,
            12.0,
            INK,
            &fit(&point.name, 12.0, 360.0),
        );
    }
    Some(Figure {
        name: "f1_by_bytes".to_owned(),
        title: "Answer quality against downlink bytes".to_owned(),
        caption: "F1 with its 95% bootstrap interval over documents, pooled over links, against the mean downlink bytes of a request. Points at the same size are set side by side."
            .to_owned(),
        svg: svg.finish("F1 of each method against its downlink bytes"),
    })
}
