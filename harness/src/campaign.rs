//! A campaign: a stretch of the plan over one link, and what the link measured before and after.

use celslm_link::{Calibration, Figure, Verdict};
use celslm_reports::CalibrationRow;

/// Calibrations of one campaign: a stretch of the plan over one link.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Campaign {
    /// The link profile.
    pub link: String,
    /// Before its first request.
    pub before: Option<Calibration>,
    /// After its last one.
    pub after: Option<Calibration>,
}

impl Campaign {
    /// Whether the link missed its profile.
    #[must_use]
    pub fn degraded(&self) -> bool {
        [&self.before, &self.after]
            .into_iter()
            .flatten()
            .any(|calibration| calibration.verdict == Verdict::Degraded)
    }

    /// The figures of both calibrations, for the report.
    #[must_use]
    pub fn rows(&self) -> Vec<CalibrationRow> {
        let figures = |calibration: &Option<Calibration>| {
            calibration
                .as_ref()
                .map(|calibration| calibration.figures().to_vec())
                .unwrap_or_default()
        };
        let (before, after) = (figures(&self.before), figures(&self.after));
        before
            .iter()
            .enumerate()
            .map(|(index, (name, before))| {
                let after: Option<&Figure> = after.get(index).map(|(_, figure)| figure);
                // The worse of the two verdicts counts.
                let degraded = [Some(before), after]
                    .into_iter()
                    .flatten()
                    .any(|figure| figure.verdict == Verdict::Degraded);
                let verdict = match (degraded, before.target) {
                    (true, _) => "degraded",
                    (false, Some(_)) => "ok",
                    (false, None) => "unchecked",
                };
                let (figure, unit) = split_unit(name);
                CalibrationRow {
                    link: self.link.clone(),
                    figure,
                    target: before.target,
                    before: before.measured,
                    after: after.and_then(|figure| figure.measured),
                    unit: unit.to_owned(),
                    verdict: verdict.to_owned(),
                }
            })
            .collect()
    }
}

/// `rtt_p50_ms` → (`rtt p50`, `ms`).
fn split_unit(name: &str) -> (String, &'static str) {
    for (suffix, unit) in [("_ms", "ms"), ("_mbit", "Mbit/s"), ("_loss", "fraction")] {
        if let Some(stem) = name.strip_suffix(suffix) {
            let stem = if suffix == "_loss" { name } else { stem };
            return (stem.replace('_', " "), unit);
        }
    }
    (name.replace('_', " "), "")
}
