//! The figures of a report, as SVG.

mod by_rate;
pub(crate) mod chart;
mod f1_by_bytes;
mod heat;
mod svg;
mod ttft_by_link;
mod ttft_parts;

pub use heat::{HeatMap, HeatPanel};

use crate::views::Data;

/// One drawn figure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figure {
    /// File name without extension.
    pub name: String,
    /// Heading.
    pub title: String,
    /// What is drawn, in a sentence.
    pub caption: String,
    /// The drawing.
    pub svg: String,
}

/// A figure, or `None` when no cell has what it draws.
type Draw = fn(&Data) -> Option<Figure>;

/// Every figure, in the order of the report.
const FIGURES: &[Draw] = &[
    by_rate::throughput,
    by_rate::ttft,
    ttft_parts::draw,
    ttft_by_link::draw,
    f1_by_bytes::draw,
];

pub(crate) fn figures(data: &Data) -> Vec<Figure> {
    FIGURES.iter().filter_map(|draw| draw(data)).collect()
}

/// Colours of lines and points: the qualitative set of Okabe and Ito, which
/// readers with colour-blindness can tell apart.
const SERIES: [&str; 8] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#5b3a8c", "#444444",
];

/// Round axis steps: at most `count` of them up to `max`.
fn ticks(max: f64, count: usize) -> Vec<f64> {
    if max <= 0.0 || !max.is_finite() {
        return vec![0.0, 1.0];
    }
    let rough = max / count.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .iter()
        .map(|m| m * power)
        .find(|&s| s >= rough * (1.0 - 1e-9))
        .unwrap_or(10.0 * power);
    let steps = (max / step - 1e-9).ceil() as usize;
    (0..=steps).map(|i| i as f64 * step).collect()
}

/// Powers of ten, with 2 and 5 between them when there are few, that enclose
/// `low` to `high` (both above 0).
fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let first = low.log10().floor() as i32;
    let last = high.log10().ceil() as i32;
    let multiples: &[f64] = if last - first <= 3 {
        &[1.0, 2.0, 5.0]
    } else {
        &[1.0]
    };
    let all: Vec<f64> = (first..=last)
        .flat_map(|p| multiples.iter().map(move |m| m * 10f64.powi(p)))
        .collect();
    let from = all.iter().rposition(|&t| t <= low).unwrap_or(0);
    let to = all.iter().position(|&t| t >= high).unwrap_or(all.len() - 1);
    let to = if to == from {
        (to + 1).min(all.len() - 1)
    } else {
        to
    };
    all[from..=to].to_vec()
}

/// A tick's label without needless decimals.
fn tick_label(value: f64) -> String {
    let decimals = (0..4)
        .find(|&d| {
            let scaled = value * 10f64.powi(d);
            (scaled - scaled.round()).abs() < 1e-6
        })
        .unwrap_or(4);
    crate::table::number(value, decimals as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_enclose() {
        assert_eq!(ticks(97.0, 5), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(
            ticks(4200.0, 5),
            [0.0, 1000.0, 2000.0, 3000.0, 4000.0, 5000.0]
        );
        assert_eq!(ticks(0.0, 5), [0.0, 1.0]);
        assert_eq!(ticks(f64::NAN, 5), [0.0, 1.0]);
        for max in [0.003, 1.0, 7.7, 123_456.0] {
            let ticks = ticks(max, 6);
            assert!(ticks.len() <= 8 && *ticks.last().unwrap() >= max * (1.0 - 1e-9));
        }
    }

    #[test]
    fn log_ticks_enclose() {
        assert_eq!(
            log_ticks(30.0, 900.0),
            [20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]
        );
        for (low, high) in [(1.0, 1.0), (0.2, 1e6), (5.0, 5.1), (999.0, 1001.0)] {
            let ticks = log_ticks(low, high);
            assert!(ticks.len() >= 2 && ticks[0] <= low && *ticks.last().unwrap() >= high);
        }
    }

    #[test]
    fn labels_have_no_needless_decimals() {
        assert_eq!(tick_label(2500.0), "2,500");
        assert_eq!(tick_label(0.25), "0.25");
        assert_eq!(tick_label(0.1 + 0.2), "0.3");
    }
}
