//! How an answer is graded.
//!
//! Every scorer follows SQuAD's evaluation: texts are [normalised](normalise),
//! and a prediction gets the best score over the accepted answers. A question
//! that the document does not answer has the gold [`UNANSWERABLE`]: a
//! prediction that is one of [`ACCEPTED_REFUSALS`] scores 1, anything else 0.
//!
//! Worked solutions are not texts to compare: [`same_number`] says whether two
//! end in one number.

mod exact_match;
mod f1;
mod normalise;
mod number;

pub use exact_match::ExactMatch;
pub use f1::F1;
pub use normalise::normalise;
pub(crate) use number::MARK as NUMBER_MARK;
pub use number::{final_number, same_number};

use crate::error::DatasetError;

/// The answer that is right when the document does not say.
pub const UNANSWERABLE: &str = "unanswerable";

/// Predictions that count as [`UNANSWERABLE`], compared after normalisation.
/// The prompt asks for the first; the others are the ways in which small models
/// say the same. A longer sentence that merely contains one does not count.
pub const ACCEPTED_REFUSALS: &[&str] = &[
    UNANSWERABLE,
    "not answerable",
    "not stated",
    "not mentioned",
    "not specified",
    "not given",
    "not provided",
    "not in the document",
    "not stated in the document",
    "not mentioned in the document",
    "not specified in the document",
    "not provided in the document",
    "the document does not say",
    "the document does not specify",
    "unknown",
];

/// Grades one prediction.
pub trait Scorer: Send + Sync {
    /// Registry name; results use it as the column's name.
    fn name(&self) -> &'static str;
    /// One sentence for `celslm ls`.
    fn about(&self) -> &'static str;
    /// Score of one answer to an answerable question, 0 to 1.
    fn score_answer(&self, prediction: &str, answer: &str) -> f64;

    /// Score of `prediction`, 0 to 1: the best over `answers`, or whether it is
    /// a refusal when the question is not `answerable`.
    fn score(&self, prediction: &str, answers: &[String], answerable: bool) -> f64 {
        if answerable {
            answers
                .iter()
                .map(|answer| self.score_answer(prediction, answer))
                .fold(0.0, f64::max)
        } else {
            f64::from(u8::from(is_refusal(prediction)))
        }
    }
}

/// Every scorer, in the order of the report's columns.
pub const SCORERS: &[&dyn Scorer] = &[&ExactMatch, &F1];

/// The scorer of this name.
///
/// # Errors
/// [`DatasetError::Unknown`], which lists the known names.
pub fn scorer(name: &str) -> Result<&'static dyn Scorer, DatasetError> {
    SCORERS
        .iter()
        .find(|s| s.name() == name)
        .copied()
        .ok_or_else(|| DatasetError::Unknown {
            registry: "scorer",
            name: name.to_owned(),
            known: SCORERS
                .iter()
                .map(|s| s.name())
                .collect::<Vec<_>>()
                .join(", "),
        })
}

/// Whether `prediction` is one of [`ACCEPTED_REFUSALS`] after normalisation.
#[must_use]
pub fn is_refusal(prediction: &str) -> bool {
    let prediction = normalise(prediction);
    ACCEPTED_REFUSALS.iter().any(|r| normalise(r) == prediction)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn gold(answers: &[&str]) -> Vec<String> {
        answers.iter().map(|a| (*a).to_owned()).collect()
    }

    #[test]
    fn the_best_accepted_answer_counts() {
        let answers = gold(&["blue valve", "the second valve from the left"]);
        assert_eq!(
            ExactMatch.score("Second valve from the left.", &answers, true),
            1.0
        );
        assert_eq!(ExactMatch.score("valve", &answers, true), 0.0);
        // "valve" against "blue valve": precision 1, recall 1/2.
        assert!((F1.score("valve", &answers, true) - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(F1.score("anything", &[], true), 0.0);
    }

    #[test]
    fn refusals_count_only_where_the_document_is_silent() {
        for scorer in SCORERS {
            for refusal in [
                "unanswerable",
                "Unanswerable.",
                " NOT stated ",
                "Not mentioned in the document.",
            ] {
                assert_eq!(scorer.score(refusal, &[], false), 1.0, "{refusal}");
                assert_eq!(
                    scorer.score(refusal, &gold(&["42 litres"]), true),
                    0.0,
                    "{refusal}"
                );
            }
            for other in ["", "42 litres", "it is not stated whether", "answerable"] {
                assert_eq!(
                    scorer.score(other, &gold(&["unanswerable"]), false),
                    0.0,
                    "{other}"
                );
            }
        }
    }

    #[test]
    fn names_are_unique_and_looked_up() {
        for s in SCORERS {
            assert_eq!(scorer(s.name()).unwrap().name(), s.name());
        }
        let Err(error) = scorer("bleu") else {
            panic!("bleu is not registered");
        };
        assert!(error.to_string().contains("known: exact_match, f1"));
    }

    proptest! {
        #[test]
        fn scores_are_bounded_and_exact_implies_f1(p in ".{0,60}", a in ".{0,60}", answerable: bool) {
            let answers = [a];
            let em = ExactMatch.score(&p, &answers, answerable);
            let f1 = F1.score(&p, &answers, answerable);
            prop_assert!((0.0..=1.0).contains(&f1));
            prop_assert!(em == 0.0 || em == 1.0);
            prop_assert!(em <= f1);
        }

        #[test]
        fn scores_are_symmetric(p in "[a-d ]{0,30}", a in "[a-d ]{0,30}") {
            prop_assert_eq!(ExactMatch.score_answer(&p, &a), ExactMatch.score_answer(&a, &p));
            prop_assert!((F1.score_answer(&p, &a) - F1.score_answer(&a, &p)).abs() < 1e-12);
        }

        #[test]
        fn an_answer_matches_itself(a in ".{0,60}") {
            prop_assert_eq!(ExactMatch.score_answer(&a, &a), 1.0);
            prop_assert_eq!(F1.score_answer(&a, &a), 1.0);
        }

        #[test]
        fn word_order_does_not_change_f1(mut words in prop::collection::vec("[b-z]{2,5}", 1..8)) {
            let forward = words.join(" ");
            words.reverse();
            prop_assert_eq!(F1.score_answer(&forward, &words.join(" ")), 1.0);
        }

        #[test]
        fn more_accepted_answers_never_lower_a_score(p in "[b-e ]{0,20}", a in "[b-e ]{1,20}", b in "[b-e ]{1,20}") {
            for s in SCORERS {
                let one = s.score(&p, std::slice::from_ref(&a), true);
                let two = s.score(&p, &[a.clone(), b.clone()], true);
                prop_assert!(two >= one);
            }
        }
    }
}
