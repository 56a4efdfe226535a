//! Data sets, scorers, prompts and workloads.
//!
//! A data set is a list of [`Document`]s, each with the questions a user could
//! ask about it. A [`Scorer`] grades an answer, [`Prompt`] says what the model
//! is shown, and a [`Workload`] says which question is asked when. Everything
//! is a pure function of its configuration, a seed and the files that it names.

mod choice;
mod config;
mod continuation;
mod document;
mod draw;
mod embedded;
mod error;
mod examples;
mod gsm8k;
mod needle;
mod prompt;
mod rank;
mod recall;
mod registry;
mod scorer;
mod source;
mod squad;
mod workload;

pub use choice::{Choice, ChoiceConfig};
pub use continuation::{Continuation, ContinuationConfig};
pub use document::{AnswerForm, Document, Framing, Question};
pub use embedded::{Embedded, EmbeddedConfig};
pub use error::DatasetError;
pub use gsm8k::{Gsm8k, Gsm8kConfig};
pub use needle::{Needle, NeedleConfig};
pub use prompt::{ANSWER_INSTRUCTION, Prompt, SYSTEM_INSTRUCTION};
pub use recall::{Recall, RecallConfig, recall_document, recall_questions};
pub use registry::{DATA_DIR_SETTING, DATASETS, Dataset, DatasetConfig, DatasetEntry, entry, load};
pub use scorer::{
    ACCEPTED_REFUSALS, ExactMatch, F1, SCORERS, Scorer, UNANSWERABLE, final_number, is_refusal,
    normalise, same_number, scorer,
};
pub use squad::{Squad, SquadConfig};
pub use workload::{
    Arrival, ArrivalProcess, ClosedLoop, LoadedTrace, MultiTurn, OpenLoop, Popularity, Request,
    RequestOrder, Saturation, Trace, TraceFormat, WORKLOADS, Workload, WorkloadConfig,
    WorkloadEntry,
};
