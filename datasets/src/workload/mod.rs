//! Which question is asked when.
//!
//! A workload turns documents into an ordered list of [`Request`]s. Every system
//! that is compared gets the same list.

mod closed_loop;

pub use closed_loop::{ClosedLoop, RequestOrder};

use std::time::Duration;

use crate::config::method_config;
use crate::document::Document;
use crate::error::DatasetError;

/// One question to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Position in the workload, from 0.
    pub order: u64,
    /// Which repetition of the question this is, from 0.
    pub repetition: u32,
    /// Index into the data set's documents.
    pub document: usize,
    /// Index into that document's questions.
    pub question: usize,
    /// Seed for what the request draws itself, such as sampling. It depends on
    /// the question and the repetition and not on `order`.
    pub seed: u64,
    /// When it is made.
    pub arrival: Arrival,
    /// Most tokens to generate, where the workload says; the run's setting
    /// otherwise.
    pub max_tokens: Option<usize>,
    /// Conversation that it is a turn of.
    pub conversation: Option<u32>,
    /// Which turn of its conversation it is, from 0. A later turn is made when
    /// the turn before it has ended and [`think`](Self::think) has passed.
    pub turn: u32,
    /// Pause between the answer to the turn before and this request.
    pub think: Duration,
    /// About how many words the private part is to have; it is padded to them.
    /// `None` leaves the question as it is.
    pub prompt_words: Option<usize>,
}

impl Request {
    /// A request with nothing special about it, made when a client is free.
    #[must_use]
    pub fn new(document: usize, question: usize, repetition: u32, seed: u64) -> Self {
        Self {
            order: 0,
            repetition,
            document,
            question,
            seed,
            arrival: Arrival::WhenFree,
            max_tokens: None,
            conversation: None,
            turn: 0,
            think: Duration::ZERO,
            prompt_words: None,
        }
    }
}

/// When a request is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// As soon as a client is free: a closed loop. A turn of a conversation
    /// other than the first follows the one before it.
    WhenFree,
    /// This long after the start of the cell's round, whatever else is under
    /// way: an open loop.
    At(Duration),
}

/// Makes the list of requests.
pub trait Workload: Send + Sync {
    /// Registry name.
    fn name(&self) -> &'static str;

    /// The requests over `documents`, in the order in which they are made. The
    /// same arguments give the same list.
    ///
    /// # Errors
    /// Settings that ask for nothing, or for more than a run can hold.
    fn requests(&self, documents: &[Document], seed: u64) -> Result<Vec<Request>, DatasetError>;

    /// Requests that may be under way at once where arrivals wait for answers.
    fn concurrency(&self) -> usize {
        1
    }

    /// A short name that tells this load from others in results; "sequential"
    /// is one request at a time.
    fn label(&self) -> String {
        "sequential".to_owned()
    }
}

/// One line of the workload registry.
#[derive(Debug, Clone, Copy)]
pub struct WorkloadEntry {
    /// Name in configurations.
    pub name: &'static str,
    /// One sentence for `celslm ls`.
    pub about: &'static str,
}

/// Every workload.
pub const WORKLOADS: &[WorkloadEntry] = &[WorkloadEntry {
    name: "closed_loop",
    about: "every question in turn, the next sent when the last is answered",
}];

/// Which workload to run: `"closed_loop"` or
/// `{ closed_loop = { repetitions = 3 } }`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkloadConfig {
    /// One request at a time.
    ClosedLoop(ClosedLoop),
}

method_config!(WorkloadConfig, "workload", {
    "closed_loop" => ClosedLoop(ClosedLoop),
});

impl Default for WorkloadConfig {
    fn default() -> Self {
        Self::ClosedLoop(ClosedLoop::default())
    }
}

impl WorkloadConfig {
    /// The configured method.
    #[must_use]
    pub fn workload(&self) -> &dyn Workload {
        match self {
            Self::ClosedLoop(method) => method,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_tables_parse() {
        let bare: WorkloadConfig = serde_json::from_str(r#""closed_loop""#).unwrap();
        assert_eq!(bare, WorkloadConfig::default());
        let table: WorkloadConfig =
            serde_json::from_str(r#"{"closed_loop": {"repetitions": 3, "order": "by_document"}}"#)
                .unwrap();
        let WorkloadConfig::ClosedLoop(method) = &table;
        assert_eq!(method.repetitions, 3);
        assert_eq!(method.order, RequestOrder::ByDocument);
        let error = serde_json::from_str::<WorkloadConfig>(r#""open_loop""#).unwrap_err();
        assert!(error.to_string().contains("known: closed_loop"), "{error}");
    }

    #[test]
    fn every_config_is_registered() {
        assert_eq!(
            WORKLOADS.iter().map(|w| w.name).collect::<Vec<_>>(),
            [WorkloadConfig::default().workload().name()]
        );
    }
}
