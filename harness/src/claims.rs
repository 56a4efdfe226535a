//! What a run claims about itself, checked on its own samples.

use celslm_reports::Sample;

/// How far the parts of TTFT may be from TTFT, as a share of it.
const PARTS_TOLERANCE: f64 = 0.02;

/// A claim and what was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The claim, as a sentence.
    pub text: String,
    /// Requests it was checked on.
    pub checked: usize,
    /// Requests that contradict it, by question and cell; the first few.
    pub against: Vec<String>,
}

impl Claim {
    /// Whether nothing contradicts it.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.against.is_empty()
    }

    /// What was found, as a sentence of the report.
    #[must_use]
    pub fn note(&self) -> String {
        match (self.checked, self.holds()) {
            (0, _) => format!("Not checked in this run: {}", self.text),
            (n, true) => format!("Checked on {n} requests, holds in all: {}", self.text),
            (n, false) => format!(
                "Checked on {n} requests, DOES NOT HOLD: {} Against it: {}.",
                self.text,
                self.against.join("; ")
            ),
        }
    }
}

/// The claims, checked on every answered request, warm-up included.
#[must_use]
pub fn check(samples: &[Sample]) -> Vec<Claim> {
    let answered = || samples.iter().filter(|sample| sample.ok());
    let claim = |text: &str, verdicts: Vec<(&Sample, bool)>| Claim {
        text: text.to_owned(),
        checked: verdicts.len(),
        against: verdicts
            .iter()
            .filter(|(_, holds)| !holds)
            .map(|(sample, _)| {
                format!(
                    "{}/{} in {}",
                    sample.document_id, sample.question_id, sample.cell_id
                )
            })
            .take(5)
            .collect(),
    };
    vec![
        claim(
            "An uncompressed hand-off of the edge model's own KV gives the greedy tokens of the edge alone.",
            answered()
                .filter_map(|s| Some((s, s.token_exact?)))
                .collect(),
        ),
        claim(
            "The parts of TTFT add up to TTFT within 2%.",
            answered()
                .filter_map(|s| Some((s, parts_gap(s)? <= PARTS_TOLERANCE)))
                .collect(),
        ),
        claim(
            "No private byte leaves the edge, except in systems that send the prompt.",
            answered()
                .filter(|s| {
                    !celslm_systems::system::find(&s.system).is_ok_and(|system| system.sends_prompt)
                })
                .map(|s| (s, s.private_uplink_bytes == 0))
                .collect(),
        ),
    ]
}

/// Distance between the sum of the exposed parts and TTFT, as a share of TTFT.
fn parts_gap(sample: &Sample) -> Option<f64> {
    let ttft = sample.token_ns.first()?.checked_sub(sample.scheduled_ns)? as f64;
    let sum: u64 = sample.parts.iter().map(|part| part.exposed_ns).sum();
    (ttft > 0.0).then(|| (sum as f64 - ttft).abs() / ttft)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn a_contradiction_is_found_and_named() {
        let mut sample = fixture::sample("cell", 0);
        sample.token_exact = Some(true);
        assert!(
            check(std::slice::from_ref(&sample))
                .iter()
                .all(Claim::holds)
        );
        sample.token_exact = Some(false);
        sample.private_uplink_bytes = 1;
        sample.parts.clear();
        sample.token_ns = vec![sample.scheduled_ns + 1000];
        sample.output_tokens = 1;
        let claims = check(std::slice::from_ref(&sample));
        assert_eq!(claims.iter().filter(|claim| !claim.holds()).count(), 3);
        assert!(claims[0].against[0].contains("cell"));
    }

    #[test]
    fn failed_requests_prove_nothing() {
        let mut sample = fixture::sample("cell", 0);
        sample.outcome = "failed".to_owned();
        sample.token_exact = Some(false);
        assert!(
            check(&[sample])
                .iter()
                .all(|claim| claim.holds() && claim.checked == 0)
        );
    }
}
