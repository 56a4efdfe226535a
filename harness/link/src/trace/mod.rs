//! Where bandwidth traces come from: importers of files and synthetic generators.
//!
//! | source | file | what it states |
//! |---|---|---|
//! | Mahimahi | `mahimahi.rs` | one delivery opportunity of 1,504 bytes a line |
//! | CSV | `csv.rs` | a rate from each time on, with delay and loss where there are such columns |
//! | synthetic | `synthetic/` | own models with a seed: LTE, 5G NR, low earth orbit |
//!
//! No published trace comes with this program: most of them have a licence that does not allow
//! it, or none.

pub mod csv;
pub mod mahimahi;
pub mod synthetic;

use thiserror::Error;

use crate::core::TraceProblem;

pub use synthetic::Synthetic;

/// The largest file that is read: some 40 minutes of a Mahimahi trace at 20 Mbit/s.
pub const MAX_FILE_BYTES: u64 = 32 << 20;
/// The most opportunities of a trace. What fits into a profile is less, see
/// [`MAX_ENCODED_BYTES`].
pub const MAX_OPPORTUNITIES: usize = 2_000_000;
/// The most steps of a trace.
pub const MAX_STEPS: usize = 200_000;
/// The longest form of a trace as part of a profile. Two of them and the rest of a profile fit
/// into a line of the control socket.
pub const MAX_ENCODED_BYTES: usize = 1_900_000;

/// Why text is no trace, or a trace no text.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TraceError {
    /// A line cannot be understood.
    #[error("line {line}: {problem}")]
    Line {
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// There is more of it than is accepted.
    #[error("the trace has more than {limit} {what}")]
    TooLong {
        /// The bound.
        limit: u64,
        /// What there is too much of.
        what: &'static str,
    },
    /// Its lines are sound, but together they are no trace.
    #[error(transparent)]
    Values(#[from] TraceProblem),
    /// A parameter of a generator is out of range.
    #[error("{field} {problem}")]
    Parameter {
        /// The parameter.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl TraceError {
    fn line(line: usize, problem: impl Into<String>) -> Self {
        Self::Line {
            line,
            problem: problem.into(),
        }
    }
}

/// The lines of a file that say something, with their numbers: neither empty nor, after `#`, a
/// comment.
fn lines(bytes: &[u8]) -> impl Iterator<Item = Result<(usize, &str), TraceError>> {
    bytes
        .split(|&byte| byte == b'\n')
        .enumerate()
        .map(|(index, line)| {
            let text = std::str::from_utf8(line)
                .map_err(|_| TraceError::line(index + 1, "is not UTF-8 text"))?;
            Ok((index + 1, text.trim()))
        })
        .filter(|line| !matches!(line, Ok((_, text)) if text.is_empty() || text.starts_with('#')))
}

/// The beginning of a text that an error message quotes.
fn quote(text: &str) -> &str {
    &text[..text.floor_char_boundary(40)]
}
