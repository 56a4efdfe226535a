//! Scores with intervals, and paired comparisons of two systems.

use std::collections::BTreeMap;

use crate::bootstrap::{Cluster, interval, mean};
use crate::sample::Sample;

/// A mean score over requests, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Scored requests.
    pub n: usize,
    /// Different questions among them.
    pub questions: usize,
    /// Different documents among them.
    pub documents: usize,
    /// Mean over the requests.
    pub mean: f64,
    /// 95% bootstrap interval over documents; `None` with fewer than two.
    pub interval: Option<(f64, f64)>,
}

/// Mean of `value` over the samples that have one, with its interval over
/// documents; `None` when no sample has one.
pub fn score<'a>(
    samples: impl Iterator<Item = &'a Sample>,
    value: impl Fn(&Sample) -> Option<f64>,
) -> Option<Score> {
    let mut clusters: BTreeMap<(&str, &str), Cluster> = BTreeMap::new();
    let mut questions = std::collections::BTreeSet::new();
    for sample in samples {
        let Some(value) = value(sample) else { continue };
        let document = (sample.dataset.as_str(), sample.document_id.as_str());
        let cluster = clusters
            .entry(document)
            .or_insert(Cluster { sum: 0.0, count: 0 });
        cluster.sum += value;
        cluster.count += 1;
        questions.insert((document, sample.question_id.as_str()));
    }
    let clusters: Vec<Cluster> = clusters.into_values().collect();
    Some(Score {
        n: clusters.iter().map(|c| c.count).sum(),
        questions: questions.len(),
        documents: clusters.len(),
        mean: mean(&clusters)?,
        interval: interval(&clusters),
    })
}

/// A difference of scores on the same questions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Paired {
    /// Questions that both answered.
    pub questions: usize,
    /// Mean of (first − second) over those questions.
    pub difference: f64,
    /// 95% bootstrap interval over documents; `None` with fewer than two.
    pub interval: Option<(f64, f64)>,
}

/// Compares two lists of samples question by question; a question asked several
/// times counts with its mean. `None` when they share no question.
pub fn paired<'a>(
    first: impl Iterator<Item = &'a Sample>,
    second: impl Iterator<Item = &'a Sample>,
    value: impl Fn(&Sample) -> Option<f64>,
) -> Option<Paired> {
    type Key<'a> = (&'a str, &'a str, &'a str);
    fn by_question<'a>(
        samples: impl Iterator<Item = &'a Sample>,
        value: &impl Fn(&Sample) -> Option<f64>,
    ) -> BTreeMap<Key<'a>, Cluster> {
        let mut means: BTreeMap<Key<'a>, Cluster> = BTreeMap::new();
        for sample in samples {
            let Some(value) = value(sample) else { continue };
            let cluster = means
                .entry((&sample.dataset, &sample.document_id, &sample.question_id))
                .or_insert(Cluster { sum: 0.0, count: 0 });
            cluster.sum += value;
            cluster.count += 1;
        }
        means
    }
    let first = by_question(first, &value);
    let second = by_question(second, &value);
    let mut clusters: BTreeMap<(&str, &str), Cluster> = BTreeMap::new();
    for (key, a) in &first {
        let Some(b) = second.get(key) else { continue };
        let cluster = clusters
            .entry((key.0, key.1))
            .or_insert(Cluster { sum: 0.0, count: 0 });
        cluster.sum += a.sum / a.count as f64 - b.sum / b.count as f64;
        cluster.count += 1;
    }
    let clusters: Vec<Cluster> = clusters.into_values().collect();
    Some(Paired {
        questions: clusters.iter().map(|c| c.count).sum(),
        difference: mean(&clusters)?,
        interval: interval(&clusters),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    fn asked(document: &str, question: &str, f1: Option<f64>) -> Sample {
        Sample {
            document_id: document.into(),
            question_id: question.into(),
            f1,
            ..fixture::sample()
        }
    }

    #[test]
    fn scores_by_hand() {
        let samples = [
            asked("a", "1", Some(1.0)),
            asked("a", "1", Some(1.0)),
            asked("a", "2", Some(0.5)),
            asked("b", "1", Some(0.0)),
            asked("b", "2", None),
        ];
        let score = score(samples.iter(), |s| s.f1).unwrap();
        assert_eq!((score.n, score.questions, score.documents), (4, 3, 2));
        assert_eq!(score.mean, 0.625);
        // Resamples are {a,a}, {a,b} and {b,b}: 5/6, 5/8 and 0.
        let (low, high) = score.interval.unwrap();
        assert_eq!(low, 0.0);
        assert!((high - 2.5 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn pairs_by_hand() {
        let first = [
            asked("a", "1", Some(1.0)),
            asked("a", "1", Some(0.0)),
            asked("b", "1", Some(0.25)),
            asked("c", "9", Some(1.0)),
        ];
        let second = [asked("a", "1", Some(0.25)), asked("b", "1", Some(0.75))];
        let paired = paired(first.iter(), second.iter(), |s| s.f1).unwrap();
        assert_eq!(paired.questions, 2);
        // (0.5 − 0.25 + 0.25 − 0.75) / 2.
        assert_eq!(paired.difference, -0.125);
        assert_eq!(paired.interval, Some((-0.5, 0.25)));
    }

    #[test]
    fn nothing_to_score_is_none() {
        assert_eq!(score([].iter(), |s| s.f1), None);
        let one = [asked("a", "1", Some(1.0))];
        let other = [asked("a", "2", Some(1.0))];
        assert_eq!(paired(one.iter(), other.iter(), |s| s.f1), None);
        assert_eq!(score(one.iter(), |s| s.f1).unwrap().interval, None);
    }
}
