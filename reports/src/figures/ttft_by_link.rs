//! TTFT of every system over the links.

use super::svg::{Anchor, GRID, INK, MUTED, Svg, fit, text_width};
use super::{Figure, SERIES, log_ticks, tick_label, ticks};
use crate::table::number;
use crate::views::Data;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 400.0;

pub(super) fn draw(data: &Data) -> Option<Figure> {
    let links = data.links();
    // A system on one link is a point; the figure needs something to compare.
    let series: Vec<(String, Vec<(usize, f64)>)> = data
        .variants()
        .into_iter()
        .map(|variant| {
            let points = data
                .cells
                .iter()
                .filter(|c| c.comparable() && data.variant(c) == variant)
                .filter_map(|c| {
                    let link = links.iter().position(|l| *l == c.identity.link)?;
                    Some((link, c.summary.ttft_ms.p50?))
                })
                .collect();
            (variant, points)
        })
        .filter(|(_, points): &(_, Vec<_>)| !points.is_empty())
        .collect();
    let values = || series.iter().flat_map(|(_, points)| points).map(|p| p.1);
    let high = values().fold(0.0, f64::max);
    let low = values().fold(f64::INFINITY, f64::min);
    if high <= 0.0 || links.len() < 2 {
        return None;
    }
    let log = low > 0.0 && high / low > 10.0;
    let ticks = if log {
        log_ticks(low, high)
    } else {
        ticks(high, 5)
    };
    let (first, last) = (*ticks.first()?, *ticks.last()?);

    let legend = series
        .iter()
        .map(|(name, _)| text_width(name, 12.0))
        .fold(0.0, f64::max)
        .min(360.0)
        + 30.0;
    let (left, right) = (76.0, WIDTH - legend - 16.0);
    let (top, bottom) = (16.0, HEIGHT - 52.0);
    let place_y = |ms: f64| {
        let share = if log {
            (ms / first).log10() / (last / first).log10()
        } else {
            ms / last
        };
        bottom - (bottom - top) * share
    };
    let step = (right - left) / links.len() as f64;
    let place_x = |link: usize| left + step * (link as f64 + 0.5);

    // Systems that take the same time would hide each other.
    let aside = |index: usize| {
        let offset = index as f64 - (series.len() - 1) as f64 / 2.0;
        offset * (step * 0.25 / series.len() as f64).min(7.0)
    };

    let height = HEIGHT.max(40.0 + 22.0 * series.len() as f64);
    let mut svg = Svg::new(WIDTH, height);
    for &tick in &ticks {
        svg.line((left, place_y(tick)), (right, place_y(tick)), GRID, 1.0);
        svg.text(
            (left - 8.0, place_y(tick) + 4.0),
            Anchor::End,
            11.0,
            MUTED,
            &tick_label(tick),
        );
    }
    for (index, link) in links.iter().enumerate() {
        svg.text(
            (place_x(index), bottom + 20.0),
            Anchor::Middle,
            12.0,
            INK,
            &fit(link, 12.0, step),
        );
    }
    svg.text(
        (f64::midpoint(left, right), bottom + 42.0),
        Anchor::Middle,
        12.0,
        MUTED,
        "link, in the order of the plan",
    );
    let axis = if log {
        "TTFT p50 (ms, logarithmic)"
    } else {
        "TTFT p50 (ms)"
    };
    svg.upright((18.0, f64::midpoint(top, bottom)), 12.0, MUTED, axis);
    for (index, (name, points)) in series.iter().enumerate() {
        let colour = SERIES[index % SERIES.len()];
        let placed: Vec<_> = points
            .iter()
            .map(|&(link, ms)| (place_x(link) + aside(index), place_y(ms)))
            .collect();
        svg.polyline(&placed, colour);
        for (&at, &(link, ms)) in placed.iter().zip(points) {
            let hint = format!("{name} on {}: {} ms", links[link], number(ms, 1));
            svg.marker(at, index, colour, &hint);
        }
        let y = top + 12.0 + 22.0 * index as f64;
        svg.marker((right + 22.0, y - 4.0), index, colour, "");
        svg.text(
            (right + 34.0, y),
            Anchor::Start,
            12.0,
            INK,
            &fit(name, 12.0, 360.0),
        );
    }
    Some(Figure {
        name: "ttft_by_link".to_owned(),
        title: "Time to first token by link".to_owned(),
        caption: "Median TTFT of each system. The lines join cells of one system; links between them were not measured. Points on one link are set side by side."
            .to_owned(),
        svg: svg.finish("TTFT of each system by link"),
    })
}
