//! `f1`: the overlap of words.

use std::collections::BTreeMap;

use super::{Scorer, normalise};

/// Harmonic mean of word precision and recall after normalisation, words
/// counted as often as they occur. Source: SQuAD 1.1; when either side has no
/// word left, 1 if both have none, else 0 (SQuAD 2.0). Rewards part of a right
/// span, and cannot tell a negated answer from a right one.
#[derive(Debug, Clone, Copy)]
pub struct F1;

impl Scorer for F1 {
    fn name(&self) -> &'static str {
        "f1"
    }

    fn about(&self) -> &'static str {
        "word overlap with the best accepted answer (SQuAD F1)"
    }

    fn score_answer(&self, prediction: &str, answer: &str) -> f64 {
        let prediction = normalise(prediction);
        let answer = normalise(answer);
        if prediction.is_empty() || answer.is_empty() {
            return f64::from(u8::from(prediction == answer));
        }
        let mut left: BTreeMap<&str, usize> = BTreeMap::new();
        let mut answer_words = 0usize;
        for word in answer.split(' ') {
            *left.entry(word).or_insert(0) += 1;
            answer_words += 1;
        }
        let mut prediction_words = 0usize;
        let mut common = 0usize;
        for word in prediction.split(' ') {
            prediction_words += 1;
            if let Some(count) = left.get_mut(word)
                && *count > 0
            {
                *count -= 1;
                common += 1;
            }
        }
        2.0 * common as f64 / (prediction_words + answer_words) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_examples() {
        for (prediction, answer, expected) in [
            ("the amber lamp", "amber lamp", 1.0),
            ("amber", "amber lamp", 2.0 / 3.0),
            // 2 common words, 4 predicted, 2 in the answer: p = 1/2, r = 1.
            ("it is amber lamp", "amber lamp", 2.0 / 3.0),
            // A repeated word counts once per occurrence in the answer.
            ("lamp lamp lamp", "lamp", 0.5),
            ("twenty minutes", "40 minutes", 0.5),
            ("valve", "lamp", 0.0),
            ("", "lamp", 0.0),
            ("The.", "a", 1.0),
        ] {
            let got = F1.score_answer(prediction, answer);
            assert!(
                (got - expected).abs() < 1e-12,
                "{prediction:?} {answer:?}: {got}"
            );
        }
    }
}
