//! `multi_turn`: conversations.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Arrival, ArrivalProcess, MAX_REQUESTS, Popularity, Request, Workload, check_concurrency,
    check_positive, check_seconds, number,
};
use crate::document::Document;
use crate::error::DatasetError;
use crate::rank;

/// Users who ask several questions about one document. Each turn carries the
/// turns before it, so that the private part grows, and is made when the answer
/// before it is complete and the user has thought. Conversations start at
/// `rate_rps`, or, without a rate, `concurrency` of them are under way at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MultiTurn {
    /// How many conversations to have.
    pub conversations: u32,
    /// Questions of each.
    pub turns: u32,
    /// Pause before each turn but the first, in milliseconds.
    pub think_ms: u64,
    /// Starts of conversations per second, as a Poisson process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_rps: Option<f64>,
    /// Conversations under way at once, where there is no rate.
    pub concurrency: usize,
    /// How conversations spread over the documents.
    pub popularity: Popularity,
}

impl Default for MultiTurn {
    fn default() -> Self {
        Self {
            conversations: 10,
            turns: 3,
            think_ms: 0,
            rate_rps: None,
            concurrency: 1,
            popularity: Popularity::default(),
        }
    }
}

impl Workload for MultiTurn {
    fn name(&self) -> &'static str {
        "multi_turn"
    }

    fn requests(&self, documents: &[Document], seed: u64) -> Result<Vec<Request>, DatasetError> {
        for (setting, value) in [("conversations", self.conversations), ("turns", self.turns)] {
            if value == 0 {
                return Err(DatasetError::Zero { setting });
            }
        }
        check_concurrency(self.concurrency)?;
        check_seconds("think_ms", self.think_ms as f64 / 1e3)?;
        self.popularity.check()?;
        if let Some(rate) = self.rate_rps {
            check_positive("rate_rps", rate)?;
        }
        let total = u128::from(self.conversations) * u128::from(self.turns);
        if total > MAX_REQUESTS as u128 {
            return Err(DatasetError::TooManyRequests {
                requests: total,
                limit: MAX_REQUESTS,
                setting: "conversations",
            });
        }
        let mut requests = Vec::with_capacity(total as usize);
        let mut start = 0.0;
        for conversation in 0..self.conversations {
            if let Some(rate) = self.rate_rps {
                let gap = ArrivalProcess::Poisson.gap(seed, "multi_turn", u64::from(conversation));
                start += gap / rate;
                check_seconds("rate_rps", start)?;
            }
            let name = conversation.to_string();
            let Some(place) = self.popularity.document(documents, seed, &name) else {
                break;
            };
            let document = &documents[place];
            // Every question once before one is asked again.
            let questions = rank::draw((0..document.questions.len()).collect(), None, |&q| {
                let id = &document.questions[q].id;
                rank::hash(seed, &["question of", &name, &document.id, id])
            });
            for turn in 0..self.turns {
                let question = questions[turn as usize % questions.len()];
                let id = &document.questions[question].id;
                let number = turn.to_string();
                let seed = rank::derive(seed, &["request", &name, &number, &document.id, id]);
                requests.push(Request {
                    arrival: match self.rate_rps {
                        Some(_) if turn == 0 => Arrival::At(Duration::from_secs_f64(start)),
                        _ => Arrival::WhenFree,
                    },
                    conversation: Some(conversation),
                    turn,
                    think: match turn {
                        0 => Duration::ZERO,
                        _ => Duration::from_millis(self.think_ms),
                    },
                    ..Request::new(place, question, turn / questions.len() as u32, seed)
                });
            }
        }
        Ok(number(requests))
    }

    fn concurrency(&self) -> usize {
        self.concurrency
    }

    /// None: how often the later turns come is up to the answers.
    fn offered_rps(&self) -> Option<f64> {
        None
    }

    fn label(&self) -> String {
        let mut label = format!("turns{}", self.turns);
        if self.think_ms > 0 {
            label.push_str(&format!("-think{}ms", self.think_ms));
        }
        match self.rate_rps {
            Some(rate) => label.push_str(&format!("-poisson-{rate:?}rps")),
            None => label.push_str(&format!("-closed-{}", self.concurrency)),
        }
        label.push_str(&self.popularity.suffix());
        label
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::workload::tests::{documents, shifts_nothing};

    #[test]
    fn a_conversation_stays_with_its_document() {
        let method = MultiTurn {
            conversations: 20,
            turns: 7,
            think_ms: 250,
            ..MultiTurn::default()
        };
        let requests = method.requests(&documents(4), 1).unwrap();
        assert_eq!(requests.len(), 140);
        for (c, turns) in requests.chunks(7).enumerate() {
            assert!(turns.iter().all(|r| r.document == turns[0].document));
            assert!(turns.iter().all(|r| r.conversation == Some(c as u32)));
            let numbers: Vec<u32> = turns.iter().map(|r| r.turn).collect();
            assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6]);
            // Five questions, then two of them again.
            let first: BTreeSet<usize> = turns[..5].iter().map(|r| r.question).collect();
            assert_eq!(first.len(), 5);
            assert_eq!(
                (turns[5].question, turns[5].repetition),
                (turns[0].question, 1)
            );
            assert_eq!(turns[0].think, Duration::ZERO);
            assert_eq!(turns[1].think, Duration::from_millis(250));
            assert!(turns.iter().all(|r| r.arrival == Arrival::WhenFree));
        }
        let seeds: BTreeSet<u64> = requests.iter().map(|r| r.seed).collect();
        assert_eq!(seeds.len(), 140);
    }

    #[test]
    fn first_turns_arrive_at_the_rate() {
        let method = MultiTurn {
            conversations: 1000,
            turns: 2,
            rate_rps: Some(4.0),
            ..MultiTurn::default()
        };
        let requests = method.requests(&documents(4), 1).unwrap();
        let starts: Vec<f64> = requests
            .iter()
            .filter_map(|r| match (r.turn, r.arrival) {
                (0, Arrival::At(at)) => Some(at.as_secs_f64()),
                (1, Arrival::WhenFree) => None,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(starts.len(), 1000);
        // Mean 250 s; four standard deviations are 32 s.
        assert!(starts.is_sorted() && (starts[999] - 250.0).abs() < 32.0);
        let three = method.requests(&documents(3), 1).unwrap();
        shifts_nothing(&three, &requests, 3);
    }

    #[test]
    fn empty_conversations_are_errors() {
        for (change, expected) in [
            ((|m| m.turns = 0) as fn(&mut MultiTurn), "`turns = 0`"),
            (|m| m.conversations = 0, "`conversations = 0`"),
            (|m| m.conversations = u32::MAX, "lower `conversations`"),
            (|m| m.concurrency = 0, "`concurrency = 0`"),
            (|m| m.rate_rps = Some(0.0), "`rate_rps = 0`"),
            (|m| m.think_ms = u64::MAX, "`think_ms"),
        ] {
            let mut method = MultiTurn::default();
            change(&mut method);
            let error = method.requests(&documents(1), 1).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} lacks {expected}");
        }
    }
}
