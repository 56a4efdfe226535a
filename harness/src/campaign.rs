//! A campaign: a stretch of the plan over one link, and what the link measured before and after.

use std::collections::BTreeSet;

use celslm_link::{Audit, Calibration, Figure, Verdict};
use celslm_reports::CalibrationRow;
use serde::{Deserialize, Serialize};

/// Lateness of the emulator, 99th percentile, from which on its delays are not the profile's.
const LATE_MS: f64 = 5.0;

/// Calibrations of one campaign: a stretch of the plan over one link.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Campaign {
    /// The link profile.
    pub link: String,
    /// The cells that were measured in it.
    pub cells: BTreeSet<String>,
    /// Before its first request.
    pub before: Option<Calibration>,
    /// How well the emulator kept its times under the nodes' load.
    pub audit: Option<Audit>,
    /// After its last one.
    pub after: Option<Calibration>,
}

/// What `calibration.json` holds beside its version.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Campaigns {
    /// Every campaign of the run, earlier sessions of a resumed one included.
    pub campaigns: Vec<Campaign>,
}

impl Campaign {
    /// A campaign that begins.
    #[must_use]
    pub fn new(link: &str, before: Option<Calibration>) -> Self {
        Self {
            link: link.to_owned(),
            cells: BTreeSet::new(),
            before,
            audit: None,
            after: None,
        }
    }

    /// Whether the link missed its profile, or the emulator fell behind.
    #[must_use]
    pub fn degraded(&self) -> bool {
        let missed = |calibration: &Calibration| calibration.verdict == Verdict::Degraded;
        [&self.before, &self.after]
            .into_iter()
            .flatten()
            .any(missed)
            || self.audit.as_ref().is_some_and(fell_behind)
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
        let audit = self.audit.as_ref().map(|audit| CalibrationRow {
            link: self.link.clone(),
            figure: "lateness p99 under load, at most".to_owned(),
            target: Some(LATE_MS),
            before: None,
            after: Some(audit.lateness_p99_us / 1000.0),
            unit: "ms".to_owned(),
            verdict: if fell_behind(audit) { "degraded" } else { "ok" }.to_owned(),
        });
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
            .chain(audit)
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

fn fell_behind(audit: &Audit) -> bool {
    audit.lateness_p99_us > LATE_MS * 1000.0 || audit.write_failures > 0 || audit.read_failures > 0
}
