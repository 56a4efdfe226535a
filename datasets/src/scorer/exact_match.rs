//! `exact_match`: the whole answer or nothing.

use super::{Scorer, normalise};

/// 1 when prediction and answer are equal after normalisation, else 0. Source:
/// SQuAD 1.1. Harsh on a right answer inside a longer sentence; read it beside
/// [`F1`](super::F1).
#[derive(Debug, Clone, Copy)]
pub struct ExactMatch;

impl Scorer for ExactMatch {
    fn name(&self) -> &'static str {
        "exact_match"
    }

    fn about(&self) -> &'static str {
        "1 when the normalised answer equals an accepted one (SQuAD EM)"
    }

    fn score_answer(&self, prediction: &str, answer: &str) -> f64 {
        f64::from(u8::from(normalise(prediction) == normalise(answer)))
    }
}
