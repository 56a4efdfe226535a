//! Throughput and TTFT of every system over the offered rate.

use super::svg::{Anchor, GRID, INK, MUTED, Svg, fit, text_width};
use super::{Figure, SERIES, log_ticks, tick_label, ticks};
use crate::level::{Level, LevelState};
use crate::series::{Series, rate, series};
use crate::table::number;
use crate::views::Data;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 400.0;

/// What one figure draws.
struct Subject {
    name: &'static str,
    title: &'static str,
    caption: &'static str,
    axis: &'static str,
    unit: &'static str,
    decimals: usize,
    figure: fn(&Level) -> Option<f64>,
    /// Whether the line on which everything offered is answered is drawn.
    diagonal: bool,
}

/// Throughput over the offered rate.
pub(super) fn throughput(data: &Data) -> Option<Figure> {
    draw(
        data,
        &Subject {
            name: "throughput_by_rate",
            title: "Throughput by offered rate",
            caption: "Answered requests per second at each offered rate; on the grey line, everything that is offered is answered. A hollow point is a level that was stopped because the system fell behind. Levels that are invalid, degraded or incomplete are not drawn.",
            axis: "throughput (req/s)",
            unit: "req/s",
            decimals: 2,
            figure: Level::throughput_rps,
            diagonal: true,
        },
    )
}

/// TTFT over the offered rate.
pub(super) fn ttft(data: &Data) -> Option<Figure> {
    draw(
        data,
        &Subject {
            name: "ttft_by_rate",
            title: "Time to first token by offered rate",
            caption: "95th percentile of TTFT over the answered requests of each level. A hollow point is a level that was stopped because the system fell behind: its true value is higher. Levels that are invalid, degraded or incomplete are not drawn.",
            axis: "TTFT p95 (ms)",
            unit: "ms",
            decimals: 0,
            figure: |level| level.ttft_ms.p95,
            diagonal: false,
        },
    )
}

/// One axis from its lowest to its highest tick, linear from 0 or logarithmic.
struct Axis {
    ticks: Vec<f64>,
    log: bool,
}

impl Axis {
    fn new(values: impl Iterator<Item = f64> + Clone) -> Option<Self> {
        let high = values.clone().fold(0.0, f64::max);
        let low = values.fold(f64::INFINITY, f64::min);
        if high <= 0.0 {
            return None;
        }
        let log = low > 0.0 && high / low > 10.0;
        Some(Self {
            ticks: if log {
                log_ticks(low, high)
            } else {
                ticks(high, 5)
            },
            log,
        })
    }

    /// Where `value` lies, from 0 at the first tick to 1 at the last.
    fn place(&self, value: f64) -> f64 {
        match (self.ticks.first(), self.ticks.last()) {
            (Some(&first), Some(&last)) if self.log => (value / first).ln() / (last / first).ln(),
            (_, Some(&last)) => value / last,
            _ => 0.0,
        }
    }

    fn suffix(&self) -> &'static str {
        if self.log { ", logarithmic" } else { "" }
    }
}

/// Name, and points: rate, value, and whether the level ran to its end.
type Line = (String, Vec<(f64, f64, bool)>);

fn draw(data: &Data, subject: &Subject) -> Option<Figure> {
    let mut all = series(data);
    // A kind of load at one rate alone is a point, which the table says as well.
    let drawn: Vec<String> = all
        .iter()
        .filter(|s| s.points.iter().filter(|p| p.level.usable()).count() > 1)
        .map(|s| s.family.clone())
        .collect();
    all.retain(|s| drawn.contains(&s.family));
    let several_links = all.iter().any(|s| s.first.link != all[0].first.link);
    let several_loads = all.iter().any(|s| s.family != all[0].family);
    let name = |s: &Series<'_>| {
        let mut name = s.label.clone();
        if several_loads {
            name.push_str(&format!(", {}", s.family));
        }
        if several_links {
            name.push_str(&format!(", {}", s.first.link));
        }
        name
    };
    let lines: Vec<Line> = all
        .iter()
        .map(|s| {
            let points = s.points.iter().filter(|p| p.level.usable());
            let points = points.filter_map(|p| {
                let whole = p.level.state == LevelState::Valid;
                Some((p.rate, (subject.figure)(p.level)?, whole))
            });
            (name(s), points.collect())
        })
        .filter(|(_, points): &Line| !points.is_empty())
        .collect();
    let points = || lines.iter().flat_map(|(_, points)| points);
    let across = Axis::new(points().map(|p| p.0))?;
    let up = Axis::new(points().map(|p| p.1))?;

    let legend = lines
        .iter()
        .map(|(name, _)| text_width(name, 12.0))
        .fold(0.0, f64::max)
        .min(360.0)
        + 30.0;
    let (left, right) = (76.0, WIDTH - legend - 16.0);
    let (top, bottom) = (16.0, HEIGHT - 52.0);
    let place_x = |rate: f64| left + (right - left) * across.place(rate);
    let place_y = |value: f64| bottom - (bottom - top) * up.place(value);

    let mut svg = Svg::new(WIDTH, HEIGHT.max(40.0 + 22.0 * lines.len() as f64));
    for &tick in &up.ticks {
        let y = place_y(tick);
        svg.line((left, y), (right, y), GRID, 1.0);
        let at = (left - 8.0, y + 4.0);
        svg.text(at, Anchor::End, 11.0, MUTED, &tick_label(tick));
    }
    for &tick in &across.ticks {
        let x = place_x(tick);
        svg.line((x, top), (x, bottom), GRID, 1.0);
        let at = (x, bottom + 18.0);
        svg.text(at, Anchor::Middle, 11.0, MUTED, &tick_label(tick));
    }
    svg.text(
        (f64::midpoint(left, right), bottom + 40.0),
        Anchor::Middle,
        12.0,
        MUTED,
        &format!("offered rate (req/s{})", across.suffix()),
    );
    let axis = subject.axis.replace(')', &format!("{})", up.suffix()));
    svg.upright((18.0, f64::midpoint(top, bottom)), 12.0, MUTED, &axis);
    if subject.diagonal {
        let ends = |axis: &Axis| (axis.ticks.first().copied(), axis.ticks.last().copied());
        if let ((Some(a), Some(b)), (Some(c), Some(d))) = (ends(&across), ends(&up)) {
            // On two unlike scales the line bends, so it is drawn in short pieces.
            let (from, to) = (a.max(c), b.min(d));
            let pieces: Vec<(f64, f64)> = (0..=60)
                .map(|i| from + (to - from) * f64::from(i) / 60.0)
                .filter(|_| to > from)
                .map(|v| (place_x(v), place_y(v)))
                .collect();
            svg.polyline(&pieces, "#b8c2cc");
        }
    }
    for (index, (name, points)) in lines.iter().enumerate() {
        let colour = SERIES[index % SERIES.len()];
        let placed: Vec<_> = points
            .iter()
            .map(|&(rate, value, _)| (place_x(rate), place_y(value)))
            .collect();
        svg.polyline(&placed, colour);
        for (&at, &(offered, value, whole)) in placed.iter().zip(points) {
            let hint = format!(
                "{name} at {} req/s: {} {}{}",
                rate(offered),
                number(value, subject.decimals),
                subject.unit,
                if whole { "" } else { ", stopped" }
            );
            if whole {
                svg.marker(at, index, colour, &hint);
            } else {
                svg.hollow(at, index, colour, &hint);
            }
        }
        let y = top + 12.0 + 22.0 * index as f64;
        svg.marker((right + 22.0, y - 4.0), index, colour, "");
        let at = (right + 34.0, y);
        svg.text(at, Anchor::Start, 12.0, INK, &fit(name, 12.0, 360.0));
    }
    Some(Figure {
        name: subject.name.to_owned(),
        title: subject.title.to_owned(),
        caption: subject.caption.to_owned(),
        svg: svg.finish(&format!("{} of each system", subject.title)),
    })
}
