//! Lines over a logarithmic axis, one a series; what lies beyond an axis is marked at its edge.

use super::SERIES;
use super::svg::{Anchor, GRID, INK, MUTED, Svg, fit, text_width};
use super::{log_ticks, tick_label, ticks};

const WIDTH: f64 = 1060.0;
const HEIGHT: f64 = 560.0;
const LEGEND_ROW: f64 = 21.0;
const LEGEND_MAX: f64 = 220.0;

/// How values are placed along an axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Scale {
    /// Evenly.
    Linear,
    /// By their logarithm.
    Log,
    /// Evenly around 0, and by their logarithm well beyond the value given.
    Symlog(f64),
}

/// One axis.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Axis {
    label: String,
    scale: Scale,
    low: f64,
    high: f64,
    ticks: Vec<f64>,
}

/// One point of a line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) y: f64,
    pub(crate) interval: Option<(f64, f64)>,
    /// What is shown when it is pointed at.
    pub(crate) hint: String,
}

/// One series.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Line {
    pub(crate) name: String,
    /// In the order in which they are joined.
    pub(crate) points: Vec<Point>,
    /// Whether it is drawn before the others' eyes: thick, and on top.
    pub(crate) strong: bool,
}

/// A value that does not depend on the abscissa.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Level {
    pub(crate) name: String,
    pub(crate) y: f64,
    pub(crate) strong: bool,
}

/// A whole drawing.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Chart {
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) lines: Vec<Line>,
    pub(crate) levels: Vec<Level>,
}

impl Scale {
    fn map(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            // What a logarithm cannot place lies below everything.
            Self::Log if value > 0.0 => value.ln(),
            Self::Log => f64::NEG_INFINITY,
            Self::Symlog(around) => value.signum() * (value.abs() / around).ln_1p(),
        }
    }
}

impl Axis {
    /// An axis from `low` to `high` with a little room at both ends. A logarithmic one needs
    /// both above 0.
    pub(crate) fn new(label: impl Into<String>, scale: Scale, low: f64, high: f64) -> Self {
        let (low, high, ticks) = match scale {
            Scale::Linear => {
                let room = (0.04 * (high - low)).max(1e-9);
                let (low, high) = (low - room, high + room);
                let step = ticks(high - low, 8)[1];
                let first = (low / step).ceil() as i64;
                let last = (high / step).floor() as i64;
                let ticks = (first..=last).map(|i| i as f64 * step).collect();
                (low, high, ticks)
            }
            Scale::Log => {
                let room = (high / low).powf(0.03).max(1.05);
                let (low, high) = (low / room, high * room);
                (low, high, inside(log_steps(low, high), low, high))
            }
            Scale::Symlog(around) => {
                let room = 0.3 * around;
                let (low, high) = (low - room, high * 1.1 + room);
                let steps = decimal_steps(around, high.max(-low));
                let all = steps
                    .iter()
                    .rev()
                    .map(|t| -t)
                    .chain([0.0])
                    .chain(steps.iter().copied())
                    .collect();
                (low, high, inside(all, low, high))
            }
        };
        Self {
            label: label.into(),
            scale,
            low,
            high,
            ticks,
        }
    }

    /// Where `value` lies: 0 at the low end, 1 at the high end.
    fn place(&self, value: f64) -> f64 {
        let (low, high) = (self.scale.map(self.low), self.scale.map(self.high));
        (self.scale.map(value) - low) / (high - low)
    }

    fn holds(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

/// 1, 2 and 5 times powers of ten, from `low` to `high`.
fn decimal_steps(low: f64, high: f64) -> Vec<f64> {
    let first = low.log10().floor() as i32;
    let last = high.log10().ceil() as i32;
    let all = (first..=last).flat_map(|p| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(p)));
    all.filter(|t| *t >= low * (1.0 - 1e-9)).collect()
}

fn inside(ticks: Vec<f64>, low: f64, high: f64) -> Vec<f64> {
    ticks
        .into_iter()
        .filter(|t| (low..=high).contains(t))
        .collect()
}

/// Powers of two with their halves between where there are few, or powers of ten where there
/// are many.
fn log_steps(low: f64, high: f64) -> Vec<f64> {
    let octaves = (high / low).log2();
    if octaves > 8.0 || low < 0.5 {
        return log_ticks(low, high);
    }
    let first = low.log2().floor() as i32;
    let last = high.log2().ceil() as i32;
    (first..=last)
        .flat_map(|p| [1.0, 1.5].map(|m| m * f64::from(p).exp2()))
        .collect()
}

/// Marker and dashes of a series, so that those of one colour differ.
fn marker(index: usize) -> usize {
    index + index / SERIES.len()
}

fn dashes(index: usize) -> &'static str {
    match index / SERIES.len() {
        0 => "",
        1 => "7 4",
        _ => "2 4",
    }
}

impl Chart {
    /// Names of the levels that lie beyond the axis, with their values.
    pub(crate) fn levels_beyond(&self) -> impl Iterator<Item = &Level> {
        self.levels.iter().filter(|l| !self.y.holds(l.y))
    }

    /// The drawing; `label` is read out instead of it.
    pub(crate) fn draw(&self, label: &str) -> String {
        let legend = self
            .lines
            .iter()
            .map(|l| text_width(&l.name, 12.5))
            .fold(60.0, f64::max)
            .min(LEGEND_MAX)
            + 44.0;
        let (left, right) = (72.0, WIDTH - legend - 20.0);
        let height = HEIGHT.max(40.0 + LEGEND_ROW * self.lines.len() as f64);
        let (top, bottom) = (20.0, height - 54.0);
        let frame = Frame {
            x: &self.x,
            y: &self.y,
            left,
            right,
            top,
            bottom,
        };
        let mut svg = Svg::new(WIDTH, height);
        frame.grid(&mut svg);
        frame.levels(&mut svg, &self.levels);
        let drawn = |strong: bool| {
            let lines = self.lines.iter().enumerate();
            lines.filter(move |(_, line)| line.strong == strong)
        };
        for (index, line) in drawn(false).chain(drawn(true)) {
            frame.line(&mut svg, index, line);
        }
        frame.level_names(&mut svg, &self.levels);
        for (index, line) in self.lines.iter().enumerate() {
            let y = top + 10.0 + LEGEND_ROW * index as f64;
            let colour = SERIES[index % SERIES.len()];
            let x = right + 22.0;
            let width = if line.strong { 3.2 } else { 1.8 };
            svg.dashed((x - 8.0, y), (x + 16.0, y), colour, width, dashes(index));
            svg.marker((x + 4.0, y), marker(index), colour, "");
            let name = fit(&line.name, 12.5, LEGEND_MAX);
            let at = (x + 24.0, y + 4.0);
            if line.strong {
                svg.bold(at, Anchor::Start, 12.5, &name);
            } else {
                svg.text(at, Anchor::Start, 12.5, INK, &name);
            }
        }
        svg.finish(label)
    }
}

/// Where the axes lie on the page.
struct Frame<'a> {
    x: &'a Axis,
    y: &'a Axis,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Frame<'_> {
    fn across(&self, value: f64) -> f64 {
        self.left + (self.right - self.left) * self.x.place(value)
    }

    /// Bounded, so that what a line runs to can always be drawn.
    fn up(&self, value: f64) -> f64 {
        self.bottom - (self.bottom - self.top) * self.y.place(value).clamp(-20.0, 20.0)
    }

    fn grid(&self, svg: &mut Svg) {
        for &tick in &self.y.ticks {
            let y = self.up(tick);
            svg.line((self.left, y), (self.right, y), GRID, 1.0);
            let at = (self.left - 8.0, y + 4.0);
            svg.text(at, Anchor::End, 11.0, MUTED, &short(tick));
        }
        for &tick in &self.x.ticks {
            let x = self.across(tick);
            svg.line((x, self.top), (x, self.bottom), GRID, 1.0);
            let at = (x, self.bottom + 20.0);
            svg.text(at, Anchor::Middle, 11.0, MUTED, &short(tick));
        }
        let middle = f64::midpoint(self.left, self.right);
        let at = (middle, self.bottom + 42.0);
        svg.text(at, Anchor::Middle, 12.0, MUTED, &self.x.label);
        let at = (18.0, f64::midpoint(self.top, self.bottom));
        svg.upright(at, 12.0, MUTED, &self.y.label);
    }

    fn levels(&self, svg: &mut Svg, levels: &[Level]) {
        for level in levels.iter().filter(|l| self.y.holds(l.y)) {
            let y = self.up(level.y);
            let (colour, dashes) = if level.strong {
                (INK, "")
            } else {
                (MUTED, "5 4")
            };
            svg.dashed((self.left, y), (self.right, y), colour, 1.3, dashes);
        }
    }

    /// Names of the levels, each above its line at the right, where most lines have gone
    /// elsewhere; names that would touch stand beside each other.
    fn level_names(&self, svg: &mut Svg, levels: &[Level]) {
        let mut named: Vec<(f64, f64)> = Vec::new();
        for level in levels.iter().filter(|l| self.y.holds(l.y)) {
            let y = self.up(level.y);
            let colour = if level.strong { INK } else { MUTED };
            let end = named
                .iter()
                .filter(|(other, _)| (other - y).abs() < 14.0)
                .map(|n| n.1)
                .fold(self.right - 4.0, f64::min);
            let at = (end, y - 5.0);
            svg.over(at, Anchor::End, 11.5, colour, &level.name);
            named.push((y, end - text_width(&level.name, 11.5) - 10.0));
        }
    }

    fn line(&self, svg: &mut Svg, index: usize, line: &Line) {
        let colour = SERIES[index % SERIES.len()];
        let width = if line.strong { 3.2 } else { 1.8 };
        let at = |p: &Point| (self.across(p.x), self.up(p.y));
        let points: Vec<&Point> = line
            .points
            .iter()
            .filter(|p| self.across(p.x).is_finite() && !p.y.is_nan())
            .collect();
        for pair in points.windows(2) {
            if let Some((from, to)) = self.clip(at(pair[0]), at(pair[1])) {
                svg.dashed(from, to, colour, width, dashes(index));
            }
        }
        for point in &points {
            if let Some((low, high)) = point.interval {
                let x = self.across(point.x);
                if let Some((from, to)) = self.clip((x, self.up(low)), (x, self.up(high))) {
                    svg.faint(from, to, colour);
                }
            }
        }
        for point in &points {
            let (x, y) = at(point);
            if y < self.top {
                svg.arrow((x, self.top + 8.0), true, colour, &point.hint);
            } else if y > self.bottom {
                svg.arrow((x, self.bottom - 8.0), false, colour, &point.hint);
            } else {
                svg.marker((x, y), marker(index), colour, &point.hint);
            }
        }
    }

    /// What of a stretch lies between top and bottom.
    fn clip(&self, from: (f64, f64), to: (f64, f64)) -> Option<((f64, f64), (f64, f64))> {
        let (mut first, mut last) = (0.0f64, 1.0f64);
        let rise = to.1 - from.1;
        for (edge, inside) in [(self.top, rise > 0.0), (self.bottom, rise < 0.0)] {
            if rise.abs() < f64::EPSILON {
                if from.1 < self.top || from.1 > self.bottom {
                    return None;
                }
                continue;
            }
            let crossing = (edge - from.1) / rise;
            if inside {
                first = first.max(crossing);
            } else {
                last = last.min(crossing);
            }
        }
        let point = |t: f64| (from.0 + t * (to.0 - from.0), from.1 + t * rise);
        (first <= last).then(|| (point(first), point(last)))
    }
}

/// A tick's label; small ones keep their digits.
fn short(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-3 {
        format!("{value:.0e}")
    } else {
        tick_label(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: &[(f64, f64)]) -> Chart {
        Chart {
            x: Axis::new("ratio", Scale::Log, 2.0, 64.0),
            y: Axis::new("F1", Scale::Linear, 40.0, 60.0),
            lines: vec![Line {
                name: "one".into(),
                points: points
                    .iter()
                    .map(|&(x, y)| Point {
                        x,
                        y,
                        interval: Some((y - 1.0, y + 1.0)),
                        hint: format!("at {x}"),
                    })
                    .collect(),
                strong: false,
            }],
            levels: vec![
                Level {
                    name: "within".into(),
                    y: 50.0,
                    strong: true,
                },
                Level {
                    name: "beyond".into(),
                    y: 3.0,
                    strong: false,
                },
            ],
        }
    }

    #[test]
    fn scales_by_hand() {
        let linear = Axis::new("", Scale::Linear, 40.0, 60.0);
        assert!((linear.place(50.0) - 0.5).abs() < 1e-12);
        assert_eq!(linear.ticks.first(), Some(&40.0));
        assert_eq!(linear.ticks.last(), Some(&60.0));
        let log = Axis::new("", Scale::Log, 2.0, 32.0);
        assert!((log.place(8.0) - 0.5).abs() < 1e-12);
        assert_eq!(log.ticks, [2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0]);
        assert_eq!(log.place(0.0), f64::NEG_INFINITY);
        let symlog = Axis::new("", Scale::Symlog(0.005), -0.005, 1.0);
        assert_eq!(symlog.ticks[..4], [-0.005, 0.0, 0.005, 0.01]);
        assert_eq!(symlog.ticks.last(), Some(&1.0));
        let step = |a, b| symlog.place(b) - symlog.place(a);
        assert!((step(-0.005, 0.0) - step(0.0, 0.005)).abs() < 1e-12);
        // Far out, equal factors are nearly equal steps.
        assert!((step(0.25, 0.5) / step(0.5, 1.0) - 1.0).abs() < 0.03);
    }

    #[test]
    fn what_lies_beyond_is_marked_at_the_edge() {
        let svg = chart(&[(2.0, 52.0), (8.0, 49.0), (32.0, 5.0), (64.0, 90.0)]).draw("F1");
        assert_eq!(
            svg.matches("<circle").count(),
            3,
            "two points and the legend"
        );
        assert_eq!(
            svg.matches("<polygon").count(),
            2,
            "an arrow down and one up"
        );
        assert!(svg.contains(">within<") && !svg.contains(">beyond<"));
        for y in svg.split("y1=\"").skip(1).chain(svg.split("y2=\"").skip(1)) {
            let y: f64 = y.split('"').next().unwrap().parse().unwrap();
            assert!((19.0..=HEIGHT - 53.0).contains(&y), "{y}");
        }
        let names: Vec<_> = chart(&[]).levels_beyond().map(|l| l.name.clone()).collect();
        assert_eq!(names, ["beyond"]);
    }

    #[test]
    fn stretches_are_cut_at_the_edges() {
        let chart = chart(&[]);
        let frame = Frame {
            x: &chart.x,
            y: &chart.y,
            left: 0.0,
            right: 100.0,
            top: 10.0,
            bottom: 20.0,
        };
        let whole = ((0.0, 12.0), (8.0, 18.0));
        assert_eq!(frame.clip(whole.0, whole.1), Some(whole));
        assert_eq!(
            frame.clip((0.0, 15.0), (10.0, 25.0)),
            Some(((0.0, 15.0), (5.0, 20.0)))
        );
        assert_eq!(
            frame.clip((0.0, 25.0), (20.0, 5.0)),
            Some(((5.0, 20.0), (15.0, 10.0)))
        );
        assert_eq!(frame.clip((0.0, 21.0), (9.0, 30.0)), None);
        assert_eq!(frame.clip((0.0, 5.0), (9.0, 5.0)), None);
        assert_eq!(
            frame.clip((0.0, 15.0), (9.0, 15.0)),
            Some(((0.0, 15.0), (9.0, 15.0)))
        );
    }

    #[test]
    fn a_single_point_and_none_are_drawn() {
        for points in [&[][..], &[(8.0, 50.0)], &[(8.0, f64::NAN)]] {
            let mut chart = chart(points);
            chart.x = Axis::new("ratio", Scale::Log, 8.0, 8.0);
            chart.y = Axis::new("F1", Scale::Linear, 50.0, 50.0);
            let svg = chart.draw("F1");
            assert!(svg.ends_with("</svg>\n"));
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }
}
