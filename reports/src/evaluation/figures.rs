//! Quality and distortion over the wire ratio, one line a family.

use super::arm::{Arm, Board};
use super::family::{Family, families};
use super::row::ArmKind;
use super::summary::ArmSummary;
use crate::figures::Figure;
use crate::figures::chart::{Axis, Chart, Level, Line, Point, Scale};
use crate::table::{Value, number};

/// So many points of F1 below the reference are shown; what lies lower is marked at the edge.
const F1_SHOWN: f64 = 20.0;

/// A loss of likelihood beyond this is marked at the edge, as is a gain beyond the second.
const NLL_SHOWN: f64 = 1.0;
const NLL_GAIN_SHOWN: f64 = 0.02;

/// Up to this difference of likelihood the axis is even.
const NLL_EVEN: f64 = 0.005;

/// Orders of magnitude that a logarithmic axis shows below its highest value.
const DECADES_SHOWN: f64 = 4.5;

/// What a figure draws of an arm, with its interval.
type Figures = fn(&ArmSummary, Option<&Arm>) -> Option<(f64, Option<(f64, f64)>)>;

/// One figure.
struct Subject {
    name: &'static str,
    title: &'static str,
    label: &'static str,
    caption: &'static str,
    scale: Scale,
    figure: Figures,
    /// Whether the reference and the controls are levels of it.
    levels: bool,
}

const SUBJECTS: [Subject; 4] = [
    Subject {
        name: "f1_by_ratio",
        title: "F1 over wire ratio",
        label: "F1 (%)",
        caption: "Right and up is better. Bars: 95% interval of the paired difference to the reference.",
        scale: Scale::Linear,
        figure: f1,
        levels: true,
    },
    Subject {
        name: "nll_by_ratio",
        title: "Loss of likelihood over wire ratio",
        label: "ΔNLL (nats per gold token, logarithmic away from 0)",
        caption: "Right and down is better. Bars: 95% interval of the paired difference to the reference.",
        scale: Scale::Symlog(NLL_EVEN),
        figure: nll,
        levels: true,
    },
    Subject {
        name: "kl_by_ratio",
        title: "Divergence of next-token distributions over wire ratio",
        label: "KL (nats per position, logarithmic)",
        caption: "Right and down is better.",
        scale: Scale::Log,
        figure: |s, _| Some((s.kl?, None)),
        levels: false,
    },
    Subject {
        name: "attention_by_ratio",
        title: "Attention error over wire ratio",
        label: "squared error of what is read, relative (logarithmic)",
        caption: "Right and down is better. Mean over layers; dropped tokens count.",
        scale: Scale::Log,
        figure: |s, _| Some((s.distortion?.attention_error, None)),
        levels: false,
    },
];

/// F1 in per cent, from the paired difference where there is one, so that an arm that covers
/// fewer contexts than the reference stands where it would with all of them.
fn f1(summary: &ArmSummary, reference: Option<&Arm>) -> Option<(f64, Option<(f64, f64)>)> {
    let percent = |v: f64| 100.0 * v;
    let base = reference.and_then(|r| r.summary.f1);
    match (base, summary.f1_difference) {
        (Some(base), Some(d)) => Some((
            percent(base.mean + d.difference),
            d.interval
                .map(|(low, high)| (percent(base.mean + low), percent(base.mean + high))),
        )),
        _ => {
            let f1 = summary.f1?;
            let interval = f1.interval.map(|(low, high)| (percent(low), percent(high)));
            Some((percent(f1.mean), interval))
        }
    }
}

fn nll(summary: &ArmSummary, _: Option<&Arm>) -> Option<(f64, Option<(f64, f64)>)> {
    summary.nll_difference.map(|d| (d.difference, d.interval))
}

/// The figures of every data set for which there is something to draw.
pub(super) fn figures(boards: &[Board]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (index, board) in boards.iter().enumerate() {
        let families = families(board);
        for subject in &SUBJECTS {
            let Some(mut figure) = draw(board, &families, subject) else {
                continue;
            };
            if boards.len() > 1 {
                figure.name.push_str(&format!("_{}", index + 1));
            }
            figures.push(figure);
        }
    }
    figures
}

fn draw(board: &Board, families: &[Family<'_>], subject: &Subject) -> Option<Figure> {
    let mut lines: Vec<Line> = families
        .iter()
        .map(|family| Line {
            name: family.name.to_owned(),
            points: family
                .arms
                .iter()
                .filter_map(|arm| point(arm, board.reference(), subject))
                .collect(),
            strong: family.own(),
        })
        .filter(|line| !line.points.is_empty())
        .collect();
    // The first colours are the clearest, and no line of the first eight is broken.
    lines.sort_by_key(|line| !line.strong);
    let points = || lines.iter().flat_map(|line| &line.points);
    let extent = |values: &mut dyn Iterator<Item = f64>| {
        values
            .filter(|v| v.is_finite())
            .fold(None, |found: Option<(f64, f64)>, v| {
                Some(found.map_or((v, v), |(low, high)| (low.min(v), high.max(v))))
            })
    };
    let (first, last) = extent(&mut points().map(|p| p.x))?;
    let levels = levels(board, subject);
    let reference = levels.iter().find(|l| l.strong).map(|l| l.y);
    let (low, high) = match subject.scale {
        Scale::Linear => {
            let values = points().map(|p| p.y).chain(reference);
            let (low, high) = extent(&mut { values })?;
            let shown = reference.unwrap_or(high) - F1_SHOWN;
            (low.max(shown), high)
        }
        Scale::Symlog(_) => {
            let values = points().map(|p| p.y).chain([0.0]);
            let (low, high) = extent(&mut { values })?;
            (low.max(-NLL_GAIN_SHOWN), high.min(NLL_SHOWN))
        }
        Scale::Log => {
            let values = points().map(|p| p.y).filter(|&y| y > 0.0);
            let (low, high) = extent(&mut { values })?;
            (low.max(high / 10f64.powf(DECADES_SHOWN)), high)
        }
    };
    let chart = Chart {
        x: Axis::new("wire ratio (×, logarithmic)", Scale::Log, first, last),
        y: Axis::new(subject.label, subject.scale, low, high),
        lines,
        levels,
    };
    let beyond: Vec<_> = chart
        .levels_beyond()
        .map(|l| format!("{} {}", l.name, Value::significant(Some(l.y), 3).render()))
        .collect();
    let beyond = if beyond.is_empty() {
        String::new()
    } else {
        format!(" Beyond the axis: {}.", beyond.join(", "))
    };
    Some(Figure {
        name: subject.name.to_owned(),
        title: format!("{}{}", subject.title, board.suffix),
        caption: format!(
            "{} Arrowheads at the edge mark arms beyond it.{beyond}",
            subject.caption
        ),
        svg: chart.draw(&format!("{} of each family", subject.title)),
    })
}

fn point(arm: &Arm, reference: Option<&Arm>, subject: &Subject) -> Option<Point> {
    let (y, interval) = (subject.figure)(&arm.summary, reference)?;
    let x = arm.summary.wire_ratio?;
    let figure = |v: f64| Value::significant(Some(v), 3).render();
    let range = interval.map_or_else(String::new, |(low, high)| {
        format!(" [{}, {}]", figure(low), figure(high))
    });
    Some(Point {
        x,
        y,
        interval,
        hint: format!("{}: {}×, {}{range}", arm.name(), number(x, 1), figure(y)),
    })
}

/// The reference and the controls; one that only just began says nothing.
fn levels(board: &Board, subject: &Subject) -> Vec<Level> {
    if !subject.levels {
        return Vec::new();
    }
    let reference = board.reference();
    let of = |arm: &Arm, strong: bool| {
        let y = match subject.scale {
            // The difference of the reference to itself.
            Scale::Symlog(_) if strong => 0.0,
            _ => (subject.figure)(&arm.summary, reference)?.0,
        };
        Some(Level {
            name: arm.name().to_owned(),
            y,
            strong,
        })
    };
    let controls = board.of(ArmKind::Control).filter(|arm| arm.comparable);
    reference
        .and_then(|arm| of(arm, true))
        .into_iter()
        .chain(controls.filter_map(|arm| of(arm, false)))
        .collect()
}
