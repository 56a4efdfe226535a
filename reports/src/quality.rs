//! Scores with intervals, and paired comparisons of two systems.

use std::collections::BTreeMap;

use crate::bootstrap::{Cluster, interval, mean, ratio_interval};
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

/// What one answer contributes to a mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Scored<'a> {
    /// Data set and document: the cluster of every interval.
    pub(crate) document: (&'a str, &'a str),
    /// Question about the document.
    pub(crate) question: &'a str,
    /// Its score.
    pub(crate) value: f64,
    /// What it counts for: 1, or the tokens that `value` is a mean over.
    pub(crate) weight: usize,
}

impl<'a> Scored<'a> {
    fn of(sample: &'a Sample, value: f64) -> Self {
        Self {
            document: (&sample.dataset, &sample.document_id),
            question: &sample.question_id,
            value,
            weight: 1,
        }
    }
}

const NOTHING: Cluster = Cluster { sum: 0.0, count: 0 };

/// Mean of `value` over the samples that have one, with its interval over
/// documents; `None` when no sample has one.
pub fn score<'a>(
    samples: impl Iterator<Item = &'a Sample>,
    value: impl Fn(&Sample) -> Option<f64>,
) -> Option<Score> {
    weighted_score(samples.filter_map(|s| value(s).map(|v| Scored::of(s, v))))
}

/// Weighted mean with its interval over documents; `None` when nothing has a
/// weight.
pub(crate) fn weighted_score<'a>(scored: impl Iterator<Item = Scored<'a>>) -> Option<Score> {
    let mut clusters: BTreeMap<(&str, &str), Cluster> = BTreeMap::new();
    let mut questions = std::collections::BTreeSet::new();
    let mut n = 0;
    for one in scored.filter(|s| s.weight > 0) {
        let cluster = clusters.entry(one.document).or_insert(NOTHING);
        cluster.sum += one.value * one.weight as f64;
        cluster.count += one.weight;
        questions.insert((one.document, one.question));
        n += 1;
    }
    let clusters: Vec<Cluster> = clusters.into_values().collect();
    Some(Score {
        n,
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
    fn scored<'a>(
        samples: impl Iterator<Item = &'a Sample>,
        value: &impl Fn(&Sample) -> Option<f64>,
    ) -> impl Iterator<Item = Scored<'a>> {
        samples.filter_map(move |s| value(s).map(|v| Scored::of(s, v)))
    }
    weighted_paired(scored(first, &value), scored(second, &value))
}

type Key<'a> = ((&'a str, &'a str), &'a str);

/// Values of one question's answers, and its weight.
fn by_question<'a>(
    scored: impl Iterator<Item = Scored<'a>>,
) -> BTreeMap<Key<'a>, (Cluster, usize)> {
    let mut means: BTreeMap<Key<'a>, (Cluster, usize)> = BTreeMap::new();
    for one in scored.filter(|s| s.weight > 0) {
        let (cluster, _) = means
            .entry((one.document, one.question))
            .or_insert((NOTHING, one.weight));
        cluster.sum += one.value;
        cluster.count += 1;
    }
    means
}

/// The same for what has weights. A question whose weight is not the same on both
/// sides was not the same question, and is left out.
pub(crate) fn weighted_paired<'a>(
    first: impl Iterator<Item = Scored<'a>>,
    second: impl Iterator<Item = Scored<'a>>,
) -> Option<Paired> {
    let first = by_question(first);
    let second = by_question(second);
    let mut clusters: BTreeMap<(&str, &str), Cluster> = BTreeMap::new();
    let mut questions = 0;
    for (key, (a, weight)) in &first {
        let Some((b, _)) = second.get(key).filter(|other| other.1 == *weight) else {
            continue;
        };
        let cluster = clusters.entry(key.0).or_insert(NOTHING);
        let difference = a.sum / a.count as f64 - b.sum / b.count as f64;
        cluster.sum += difference * *weight as f64;
        cluster.count += weight;
        questions += 1;
    }
    let clusters: Vec<Cluster> = clusters.into_values().collect();
    Some(Paired {
        questions,
        difference: mean(&clusters)?,
        interval: interval(&clusters),
    })
}

/// A part of the way from one score to another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Share {
    /// The whole way on the questions that all three answered.
    pub(crate) gap: Paired,
    /// What part of it lies behind the one that is on the way.
    pub(crate) share: f64,
    /// 95% bootstrap interval over documents; `None` with fewer than two.
    pub(crate) interval: Option<(f64, f64)>,
}

/// How far `own` is on the way from `from` to `to`, on the questions that all three have with the
/// same weight: a ratio of the sums of their differences, so that no question is divided by its own
/// gap. `None` when they share no question, or when there is no way between the two.
pub(crate) fn weighted_share<'a>(
    own: impl Iterator<Item = Scored<'a>>,
    from: impl Iterator<Item = Scored<'a>>,
    to: impl Iterator<Item = Scored<'a>>,
) -> Option<Share> {
    let (own, from, to) = (by_question(own), by_question(from), by_question(to));
    let mean_of = |values: &BTreeMap<Key<'a>, (Cluster, usize)>, key: &Key<'a>, weight: usize| {
        let (cluster, _) = values.get(key).filter(|other| other.1 == weight)?;
        Some(cluster.sum / cluster.count as f64)
    };
    let mut covered: BTreeMap<(&str, &str), f64> = BTreeMap::new();
    let mut whole: BTreeMap<(&str, &str), Cluster> = BTreeMap::new();
    let mut questions = 0;
    for (key, (start, weight)) in &from {
        let start = start.sum / start.count as f64;
        let Some((at, end)) = mean_of(&own, key, *weight).zip(mean_of(&to, key, *weight)) else {
            continue;
        };
        *covered.entry(key.0).or_insert(0.0) += (at - start) * *weight as f64;
        let cluster = whole.entry(key.0).or_insert(NOTHING);
        cluster.sum += (end - start) * *weight as f64;
        cluster.count += weight;
        questions += 1;
    }
    let pairs: Vec<(f64, f64)> = covered
        .values()
        .zip(whole.values())
        .map(|(covered, whole)| (*covered, whole.sum))
        .collect();
    let whole: Vec<Cluster> = whole.into_values().collect();
    let gap = Paired {
        questions,
        difference: mean(&whole)?,
        interval: interval(&whole),
    };
    let (covered, all) = pairs
        .iter()
        .fold((0.0, 0.0), |sum, pair| (sum.0 + pair.0, sum.1 + pair.1));
    (all != 0.0).then(|| Share {
        gap,
        share: covered / all,
        interval: ratio_interval(&pairs),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn shares_by_hand() {
        let scored = |values: &'static [(&'static str, f64, usize)]| {
            values.iter().map(|&(document, value, weight)| Scored {
                document: ("d", document),
                question: "q",
                value,
                weight,
            })
        };
        let from = || scored(&[("a", 0.2, 1), ("b", 0.0, 3), ("c", 0.5, 1)]);
        let to = || scored(&[("a", 0.6, 1), ("b", 0.4, 3), ("d", 1.0, 1)]);
        // Half of 0.4, and all of three times 0.4; "c" has no end and "d" no start.
        let own = || scored(&[("a", 0.4, 1), ("b", 0.4, 3), ("c", 1.0, 1), ("d", 1.0, 1)]);
        let share = weighted_share(own(), from(), to()).unwrap();
        assert!((share.share - 0.875).abs() < 1e-12, "{share:?}");
        assert_eq!(share.gap.questions, 2);
        assert!((share.gap.difference - 0.4).abs() < 1e-12, "{share:?}");
        let (low, high) = share.interval.unwrap();
        assert!((low - 0.5).abs() < 1e-12 && (high - 1.0).abs() < 1e-12);
        // Another weight is another question.
        let other = || scored(&[("a", 0.4, 1), ("b", 0.4, 2)]);
        let share = weighted_share(other(), from(), to()).unwrap();
        assert!((share.share - 0.5).abs() < 1e-12 && share.interval.is_none());
        assert_eq!(weighted_share(own(), from(), from()), None);
        assert_eq!(weighted_share(own(), from(), scored(&[])), None);
    }

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

    fn weighing<'a>(document: &'a str, question: &'a str, value: f64, weight: usize) -> Scored<'a> {
        Scored {
            document: ("squad", document),
            question,
            value,
            weight,
        }
    }

    #[test]
    fn weights_by_hand() {
        let first = [
            weighing("a", "1", 2.0, 3),
            weighing("a", "2", 1.0, 1),
            weighing("b", "1", 5.0, 2),
            weighing("b", "2", 9.0, 0),
        ];
        let score = weighted_score(first.iter().copied()).unwrap();
        // (2·3 + 1·1 + 5·2) / 6; documents alone have 7/4 and 5.
        assert_eq!((score.n, score.questions, score.documents), (3, 3, 2));
        assert_eq!(score.mean, 17.0 / 6.0);
        assert_eq!(score.interval, Some((1.75, 5.0)));

        let second = [
            weighing("a", "1", 1.0, 3),
            weighing("a", "2", 0.0, 2),
            weighing("b", "1", 3.0, 2),
        ];
        let paired = weighted_paired(first.iter().copied(), second.iter().copied()).unwrap();
        // "a 2" has another weight, "b 2" has none: (1·3 + 2·2) / 5.
        assert_eq!(paired.questions, 2);
        assert_eq!(paired.difference, 1.4);
        assert_eq!(paired.interval, Some((1.0, 2.0)));
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
