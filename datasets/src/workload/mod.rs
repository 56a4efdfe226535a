//! Which question is asked when.
//!
//! A workload turns documents into an ordered list of [`Request`]s. Every system
//! that is compared gets the same list. Everything is drawn by name from the
//! seed: the arrival of request 7 is the same whatever is asked, what it asks is
//! the same at every rate, and another document takes requests over but moves
//! none of the others.

mod arrivals;
mod closed_loop;
mod multi_turn;
mod open_loop;
mod popularity;
mod saturation;
mod trace;

pub use arrivals::ArrivalProcess;
pub use closed_loop::{ClosedLoop, RequestOrder};
pub use multi_turn::MultiTurn;
pub use open_loop::OpenLoop;
pub use popularity::Popularity;
pub use saturation::Saturation;
pub use trace::{LoadedTrace, Trace, TraceFormat};

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::config::method_config;
use crate::document::Document;
use crate::error::DatasetError;

/// A longer list would not end in any run, and is a slip in the settings.
const MAX_REQUESTS: usize = 1 << 20;

/// More clients than this are no load test but a slip in the settings.
const MAX_CONCURRENCY: usize = 4096;

/// A day: longer times than this are slips.
const MAX_SECONDS: f64 = 24.0 * 60.0 * 60.0;

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
    /// what is asked and not on `order`.
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
    /// About how many words the private part is to have; it is padded to them,
    /// see [`Prompt::padded`](crate::Prompt::padded). `None` leaves the question
    /// as it is.
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
    /// other than the first follows the one before it, in every workload.
    WhenFree,
    /// This long after the start of the cell's round, whatever else is under
    /// way: an open loop.
    At(Duration),
}

/// Makes the list of requests.
pub trait Workload: Debug + Send + Sync {
    /// Registry name.
    fn name(&self) -> &'static str;

    /// The requests over `documents`, in the order in which they are made; the
    /// turns of a conversation follow each other. The same arguments give the
    /// same list.
    ///
    /// # Errors
    /// Settings that ask for nothing, or for more than a run can hold.
    fn requests(&self, documents: &[Document], seed: u64) -> Result<Vec<Request>, DatasetError>;

    /// Clients, where arrivals wait for answers: requests, or conversations,
    /// under way at once.
    fn concurrency(&self) -> usize {
        1
    }

    /// Requests per second, where arrivals do not wait for answers.
    fn offered_rps(&self) -> Option<f64> {
        None
    }

    /// A short name that tells this load from others in results; "sequential"
    /// is one request at a time.
    fn label(&self) -> String;

    /// BLAKE3 (hex) of the file that it was read from, if there is one.
    fn source_hash(&self) -> Option<&str> {
        None
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
pub const WORKLOADS: &[WorkloadEntry] = &[
    WorkloadEntry {
        name: "closed_loop",
        about: "every question in turn; each of `concurrency` clients waits for its answer",
    },
    WorkloadEntry {
        name: "open_loop",
        about: "questions at a rate, with Poisson, gamma or constant gaps, whatever is answered",
    },
    WorkloadEntry {
        name: "trace",
        about: "arrivals and lengths of a published trace (Azure, Mooncake), scaled, over the documents",
    },
    WorkloadEntry {
        name: "multi_turn",
        about: "conversations of several questions about one document, with pauses",
    },
    WorkloadEntry {
        name: "saturation",
        about: "a search for the highest rate that meets the SLO",
    },
];

/// Which workload to run: `"closed_loop"` or
/// `{ closed_loop = { repetitions = 3 } }`.
#[derive(Debug, Clone, PartialEq)]
pub enum WorkloadConfig {
    /// So many requests at a time.
    ClosedLoop(ClosedLoop),
    /// Requests at a rate.
    OpenLoop(OpenLoop),
    /// Arrivals and lengths of a file.
    Trace(Trace),
    /// Conversations.
    MultiTurn(MultiTurn),
    /// A search over rates.
    Saturation(Saturation),
}

method_config!(WorkloadConfig, "workload", {
    "closed_loop" => ClosedLoop(ClosedLoop),
    "open_loop" => OpenLoop(OpenLoop),
    "trace" => Trace(Trace),
    "multi_turn" => MultiTurn(MultiTurn),
    "saturation" => Saturation(Saturation),
});

impl Default for WorkloadConfig {
    fn default() -> Self {
        Self::ClosedLoop(ClosedLoop::default())
    }
}

impl WorkloadConfig {
    /// Registry name of the workload.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::ClosedLoop(_) => "closed_loop",
            Self::OpenLoop(_) => "open_loop",
            Self::Trace(_) => "trace",
            Self::MultiTurn(_) => "multi_turn",
            Self::Saturation(_) => "saturation",
        }
    }

    /// The configured method, with the file that it needs, if any. `data_dir` is
    /// where relative paths start.
    ///
    /// # Errors
    /// A missing data folder or file, and a malformed file with its line.
    pub fn load(&self, data_dir: Option<&Path>) -> Result<Arc<dyn Workload>, DatasetError> {
        Ok(match self {
            Self::ClosedLoop(method) => Arc::new(method.clone()),
            Self::OpenLoop(method) => Arc::new(method.clone()),
            Self::Trace(settings) => Arc::new(LoadedTrace::load(settings, data_dir)?),
            Self::MultiTurn(method) => Arc::new(method.clone()),
            Self::Saturation(method) => Arc::new(method.clone()),
        })
    }
}

/// The requests with their positions.
fn number(mut requests: Vec<Request>) -> Vec<Request> {
    for (order, request) in requests.iter_mut().enumerate() {
        request.order = order as u64;
    }
    requests
}

fn check_concurrency(concurrency: usize) -> Result<(), DatasetError> {
    if (1..=MAX_CONCURRENCY).contains(&concurrency) {
        return Ok(());
    }
    Err(DatasetError::Setting {
        setting: "concurrency",
        value: concurrency.to_string(),
        reason: "the number of clients lies between 1 and 4096",
    })
}

/// Refuses what is not a number above 0.
fn check_positive(setting: &'static str, value: f64) -> Result<(), DatasetError> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(DatasetError::Setting {
        setting,
        value: value.to_string(),
        reason: "it must be a number above 0",
    })
}

/// Refuses what is no length of time up to a day.
fn check_seconds(setting: &'static str, value: f64) -> Result<(), DatasetError> {
    if (0.0..=MAX_SECONDS).contains(&value) {
        return Ok(());
    }
    Err(DatasetError::Setting {
        setting,
        value: value.to_string(),
        reason: "a time lies between 0 and 86400 seconds",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::{AnswerForm, Framing, Question};

    /// `count` documents of 100 words with five questions each.
    pub(super) fn documents(count: usize) -> Vec<Document> {
        (0..count)
            .map(|d| Document {
                id: format!("d{d}"),
                title: String::new(),
                kind: String::new(),
                instruction: None,
                framing: Framing::Message,
                answer_tokens: None,
                text: "word ".repeat(100),
                questions: (0..5)
                    .map(|q| Question {
                        id: format!("q{q}"),
                        text: "what is it?".into(),
                        answers: vec!["x".into()],
                        answerable: true,
                        form: AnswerForm::Span,
                    })
                    .collect(),
            })
            .collect()
    }

    /// Arrivals in seconds.
    pub(super) fn seconds(requests: &[Request]) -> Vec<f64> {
        requests
            .iter()
            .map(|r| match r.arrival {
                Arrival::At(at) => at.as_secs_f64(),
                Arrival::WhenFree => panic!("request {} waits", r.order),
            })
            .collect()
    }

    /// What adding a document may do: take requests over. Everything else stays.
    pub(super) fn shifts_nothing(before: &[Request], after: &[Request], documents: usize) {
        assert_eq!(before.len(), after.len());
        let mut taken = 0;
        for (b, a) in before.iter().zip(after) {
            if a.document == documents {
                taken += 1;
                assert_eq!((a.arrival, a.order), (b.arrival, b.order));
            } else {
                assert_eq!(a, b);
            }
        }
        assert!(taken > 0 && taken < before.len() / 2, "{taken}");
    }

    #[test]
    fn names_and_tables_parse() {
        let bare: WorkloadConfig = serde_json::from_str(r#""closed_loop""#).unwrap();
        assert_eq!(bare, WorkloadConfig::default());
        let table: WorkloadConfig =
            serde_json::from_str(r#"{"closed_loop": {"repetitions": 3, "order": "by_document"}}"#)
                .unwrap();
        let WorkloadConfig::ClosedLoop(method) = &table else {
            panic!("{table:?}");
        };
        assert_eq!(method.repetitions, 3);
        assert_eq!(method.order, RequestOrder::ByDocument);
        let error = serde_json::from_str::<WorkloadConfig>(r#""half_open""#).unwrap_err();
        assert!(
            error.to_string().contains("known: closed_loop, open_loop"),
            "{error}"
        );
    }

    #[test]
    fn every_config_is_registered_and_round_trips() {
        let configs = [
            r#"{"closed_loop": {}}"#,
            r#"{"open_loop": {"rate_rps": 2.0, "requests": 10}}"#,
            r#"{"trace": {"file": "a.csv", "format": "azure"}}"#,
            r#"{"multi_turn": {}}"#,
            r#"{"saturation": {}}"#,
        ];
        assert_eq!(configs.len(), WORKLOADS.len());
        for (text, entry) in configs.iter().zip(WORKLOADS) {
            let config: WorkloadConfig = serde_json::from_str(text).unwrap();
            assert_eq!(config.name(), entry.name);
            let again = serde_json::to_string(&config).unwrap();
            assert_eq!(
                serde_json::from_str::<WorkloadConfig>(&again).unwrap(),
                config
            );
            if !matches!(config, WorkloadConfig::Trace(_)) {
                let workload = config.load(None).unwrap();
                assert_eq!(workload.name(), entry.name);
                assert!(!workload.label().is_empty());
                assert!(!workload.requests(&documents(3), 1).unwrap().is_empty());
                assert!(workload.requests(&[], 1).unwrap().is_empty());
            }
        }
    }

    #[test]
    fn labels_tell_loads_apart() {
        let label = |text: &str| {
            let config: WorkloadConfig = serde_json::from_str(text).unwrap();
            config.load(None).unwrap().label()
        };
        let open = |more: &str| {
            label(&format!(
                r#"{{"open_loop": {{"rate_rps": 2.0, "requests": 10{more}}}}}"#
            ))
        };
        assert_eq!(open(""), "poisson-2.0rps");
        assert_eq!(open(r#", "process": "constant""#), "constant-2.0rps");
        assert_eq!(
            open(r#", "process": {"gamma": {"cv": 2.5}}"#),
            "gamma2.5-2.0rps"
        );
        assert_eq!(
            open(r#", "popularity": {"zipf": {"s": 1.0}}"#),
            "poisson-2.0rps-zipf1.0"
        );
        assert_eq!(label(r#""multi_turn""#), "turns3-closed-1");
        assert_eq!(
            label(r#"{"multi_turn": {"turns": 2, "think_ms": 500, "rate_rps": 0.5}}"#),
            "turns2-think500ms-poisson-0.5rps"
        );
        assert_eq!(label(r#""saturation""#), "saturation-poisson");
    }
}
