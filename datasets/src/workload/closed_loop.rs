//! `closed_loop`: so many requests at a time.

use serde::{Deserialize, Serialize};

use super::{MAX_REQUESTS, Request, Workload, check_concurrency, number};
use crate::document::Document;
use crate::error::DatasetError;
use crate::rank;

/// Asks every question `repetitions` times. `concurrency` clients each make
/// their next request when their last one has ended. With one client no queue
/// builds up, and latencies are those of an otherwise idle system. With more, a
/// slow system is asked less often than a fast one: throughput at a fixed number
/// of users, which says nothing about what happens at a fixed rate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClosedLoop {
    /// How often each question is asked. Every repetition runs through all
    /// questions before the next begins.
    pub repetitions: u32,
    /// Order within a repetition.
    pub order: RequestOrder,
    /// Requests under way at once.
    pub concurrency: usize,
}

/// The order of the requests within one repetition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestOrder {
    /// Seeded order over all questions, drawn anew for each repetition.
    #[default]
    Shuffled,
    /// The data set's order: all questions of a document before the next.
    ByDocument,
}

impl Default for ClosedLoop {
    fn default() -> Self {
        Self {
            repetitions: 1,
            order: RequestOrder::default(),
            concurrency: 1,
        }
    }
}

impl Workload for ClosedLoop {
    fn name(&self) -> &'static str {
        "closed_loop"
    }

    fn concurrency(&self) -> usize {
        self.concurrency
    }

    fn label(&self) -> String {
        match self.concurrency {
            1 => "sequential".to_owned(),
            n => format!("closed-{n}"),
        }
    }

    fn requests(&self, documents: &[Document], seed: u64) -> Result<Vec<Request>, DatasetError> {
        check_concurrency(self.concurrency)?;
        if self.repetitions == 0 {
            return Err(DatasetError::Zero {
                setting: "repetitions",
            });
        }
        let questions: usize = documents.iter().map(|d| d.questions.len()).sum();
        let total = questions as u128 * u128::from(self.repetitions);
        if total > MAX_REQUESTS as u128 {
            return Err(DatasetError::TooManyRequests {
                requests: total,
                limit: MAX_REQUESTS,
                setting: "repetitions",
            });
        }
        let mut requests: Vec<Request> = Vec::with_capacity(total as usize);
        for repetition in 0..self.repetitions {
            let mut round = Vec::with_capacity(questions);
            let number = repetition.to_string();
            for (d, document) in documents.iter().enumerate() {
                for (q, question) in document.questions.iter().enumerate() {
                    let name = [number.as_str(), &document.id, &question.id];
                    round.push((
                        Request::new(
                            d,
                            q,
                            repetition,
                            rank::derive(seed, &[&["request"], &name[..]].concat()),
                        ),
                        rank::hash(seed, &[&["order"], &name[..]].concat()),
                    ));
                }
            }
            if self.order == RequestOrder::Shuffled {
                round = rank::draw(round, None, |(_, rank)| *rank);
            }
            requests.extend(round.into_iter().map(|(request, _)| request));
        }
        Ok(number(requests))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::workload::tests::documents;

    fn pairs(requests: &[Request]) -> Vec<(usize, usize)> {
        requests.iter().map(|r| (r.document, r.question)).collect()
    }

    #[test]
    fn every_question_is_asked_once_per_repetition() {
        let method = ClosedLoop {
            repetitions: 3,
            ..ClosedLoop::default()
        };
        let requests = method.requests(&documents(4), 9).unwrap();
        assert_eq!(requests.len(), 60);
        for (i, request) in requests.iter().enumerate() {
            assert_eq!(request.order, i as u64);
            assert_eq!(request.repetition as usize, i / 20);
        }
        for round in requests.chunks(20) {
            assert_eq!(pairs(round).into_iter().collect::<BTreeSet<_>>().len(), 20);
        }
        let seeds: BTreeSet<u64> = requests.iter().map(|r| r.seed).collect();
        assert_eq!(seeds.len(), 60);
        assert_ne!(pairs(&requests[..20]), pairs(&requests[20..40]));
    }

    #[test]
    fn the_seed_decides_the_order() {
        let method = ClosedLoop::default();
        let one = method.requests(&documents(4), 1).unwrap();
        assert_eq!(one, method.requests(&documents(4), 1).unwrap());
        assert_ne!(
            pairs(&one),
            pairs(&method.requests(&documents(4), 2).unwrap())
        );
    }

    #[test]
    fn a_new_document_shifts_nothing() {
        let method = ClosedLoop::default();
        let before = method.requests(&documents(3), 1).unwrap();
        let mut after = method.requests(&documents(4), 1).unwrap();
        after.retain(|r| r.document < 3);
        assert_eq!(pairs(&before), pairs(&after));
        let seeds = |r: &[Request]| r.iter().map(|r| r.seed).collect::<Vec<_>>();
        assert_eq!(seeds(&before), seeds(&after));
    }

    #[test]
    fn by_document_keeps_the_order_of_the_data_set() {
        let method = ClosedLoop {
            order: RequestOrder::ByDocument,
            ..ClosedLoop::default()
        };
        let requests = method.requests(&documents(2), 1).unwrap();
        assert_eq!(
            pairs(&requests)[..6],
            [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0)]
        );
    }

    #[test]
    fn nothing_and_too_much_are_errors() {
        let method = |repetitions| ClosedLoop {
            repetitions,
            ..ClosedLoop::default()
        };
        assert!(method(0).requests(&documents(1), 0).is_err());
        let error = method(u32::MAX).requests(&documents(4), 0).unwrap_err();
        assert!(error.to_string().contains("lower `repetitions`"), "{error}");
        assert_eq!(method(5).requests(&[], 0).unwrap(), []);
        let none = ClosedLoop {
            concurrency: 0,
            ..ClosedLoop::default()
        };
        let error = none.requests(&documents(1), 0).unwrap_err().to_string();
        assert!(error.contains("`concurrency = 0`"), "{error}");
    }

    #[test]
    fn clients_do_not_change_what_is_asked() {
        let eight = ClosedLoop {
            concurrency: 8,
            ..ClosedLoop::default()
        };
        let one = ClosedLoop::default();
        assert_eq!((one.label().as_str(), one.concurrency()), ("sequential", 1));
        assert_eq!(
            (eight.label().as_str(), eight.concurrency()),
            ("closed-8", 8)
        );
        let documents = documents(3);
        assert_eq!(
            one.requests(&documents, 1).unwrap(),
            eight.requests(&documents, 1).unwrap()
        );
    }
}
