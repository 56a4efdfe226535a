//! Which document a request is about.

use serde::{Deserialize, Serialize};

use super::{Request, check_positive};
use crate::document::Document;
use crate::error::DatasetError;
use crate::rank;

/// How requests spread over the documents.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Popularity {
    /// Every document alike.
    #[default]
    Uniform,
    /// The document at place k of the draw has a weight of k^−s.
    Zipf {
        /// Exponent: 1 is usual, larger is more skewed.
        s: f64,
    },
}

impl Popularity {
    /// Refuses settings that give no weights.
    pub(super) fn check(self) -> Result<(), DatasetError> {
        match self {
            Self::Uniform => Ok(()),
            Self::Zipf { s } => {
                check_positive("s", s)?;
                if s > 20.0 {
                    return Err(DatasetError::Setting {
                        setting: "s",
                        value: s.to_string(),
                        reason: "above 20 nothing but the first document is asked about",
                    });
                }
                Ok(())
            }
        }
    }

    /// The document that `name` falls to. Every document draws a score of its
    /// own, and the lowest wins: a document added at the end of the draw takes
    /// names over and moves none between the others.
    pub(super) fn document(self, documents: &[Document], seed: u64, name: &str) -> Option<usize> {
        let score = |place: usize| {
            let draw = rank::uniform(seed, &["document of", name, &documents[place].id]);
            let weight = match self {
                Self::Uniform => 1.0,
                Self::Zipf { s } => (place as f64 + 1.0).powf(-s),
            };
            // An exponential variate of rate `weight`: the chance to be the lowest of all is
            // the share of the weight.
            -draw.ln() / weight
        };
        (0..documents.len())
            .filter(|&place| !documents[place].questions.is_empty())
            .map(|place| (score(place), place))
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, place)| place)
    }

    /// The request of this name: a document, and one of its questions, all of
    /// them alike.
    pub(super) fn request(self, documents: &[Document], seed: u64, name: &str) -> Option<Request> {
        let document = self.document(documents, seed, name)?;
        request_about(documents, document, seed, name)
    }

    /// As it appears in a label, with its hyphen.
    pub(super) fn suffix(self) -> String {
        match self {
            Self::Uniform => String::new(),
            Self::Zipf { s } => format!("-zipf{s:?}"),
        }
    }
}

/// The request of this name about `document`.
pub(super) fn request_about(
    documents: &[Document],
    document: usize,
    seed: u64,
    name: &str,
) -> Option<Request> {
    let Document { id, questions, .. } = &documents[document];
    let question = (0..questions.len())
        .min_by_key(|&q| rank::hash(seed, &["question of", name, id, &questions[q].id]))?;
    let seed = rank::derive(seed, &["request", name, id, &questions[question].id]);
    Some(Request::new(document, question, 0, seed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::tests::documents;

    fn counts(popularity: Popularity, documents: &[Document]) -> Vec<f64> {
        let mut counts = vec![0.0; documents.len()];
        for i in 0..20_000 {
            let document = popularity.document(documents, 1, &i.to_string()).unwrap();
            counts[document] += 1.0;
        }
        counts
    }

    fn chi_square(counts: &[f64], weights: &[f64]) -> f64 {
        let total: f64 = counts.iter().sum();
        let sum: f64 = weights.iter().sum();
        counts
            .iter()
            .zip(weights)
            .map(|(count, weight)| {
                let expected = total * weight / sum;
                (count - expected).powi(2) / expected
            })
            .sum()
    }

    #[test]
    fn documents_are_asked_by_their_weights() {
        let documents = documents(8);
        // 7 degrees of freedom: above 18.5 in one of a hundred seeds.
        let chi = chi_square(&counts(Popularity::Uniform, &documents), &[1.0; 8]);
        assert!(chi < 18.5, "{chi}");
        let weights: Vec<f64> = (1..=8).map(|k| f64::from(k).powf(-1.2)).collect();
        let zipf = counts(Popularity::Zipf { s: 1.2 }, &documents);
        let chi = chi_square(&zipf, &weights);
        assert!(chi < 18.5, "{chi}");
    }

    #[test]
    fn questions_are_asked_alike() {
        let documents = documents(1);
        let mut counts = [0.0; 5];
        for i in 0..5_000 {
            let request = Popularity::Uniform
                .request(&documents, 1, &i.to_string())
                .unwrap();
            counts[request.question] += 1.0;
        }
        // 4 degrees of freedom.
        assert!(chi_square(&counts, &[1.0; 5]) < 13.3, "{counts:?}");
    }

    #[test]
    fn documents_without_questions_are_left_out() {
        let mut documents = documents(2);
        documents[0].questions.clear();
        for i in 0..20 {
            let request = Popularity::Uniform.request(&documents, 1, &i.to_string());
            assert_eq!(request.unwrap().document, 1);
        }
        assert_eq!(Popularity::Uniform.request(&documents[..1], 1, "a"), None);
        assert!(Popularity::Zipf { s: 0.0 }.check().is_err());
    }
}
