//! One request, as recorded.
//!
//! A run appends one JSON line per request to `cells/<cell-id>/samples.jsonl` as
//! it happens. Only raw figures are stored; latencies and ratios are derived
//! from them in [`frame`](crate::frame).

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::ReportError;

/// Version of every file that this crate reads and writes.
pub const SCHEMA_VERSION: u32 = 2;

/// The parts of TTFT, in the order in which a request passes through them.
pub const PART_NAMES: [&str; 10] = [
    "tokenise",
    "queue",
    "request",
    "cloud_compute",
    "encode",
    "transfer",
    "decode",
    "align",
    "edge_prefill",
    "first_step",
];

/// Why a request is stored and counted in no figure, in the order of a cell.
pub const EXCLUSIONS: [&str; 2] = ["warmup", "cooldown"];

/// A longer line is not a sample; the bound keeps a damaged file from filling
/// memory.
const MAX_LINE_BYTES: u64 = 16 << 20;

/// One request and its outcome.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// Version of this shape, [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The cell that the request belongs to.
    pub cell_id: String,
    /// Named scenario of the experiment.
    pub scenario: String,
    /// Execution index in the run, over all cells.
    pub order: u64,
    /// Repetition of the question, from 0.
    pub repetition: u32,
    /// Made before measuring began; kept, and left out of every figure.
    pub warmup: bool,
    /// Why it is left out of every figure, one of [`EXCLUSIONS`]; `None` where
    /// it counts.
    pub excluded: Option<String>,
    /// Seed of the request.
    pub seed: u64,
    /// System under test, registry name.
    pub system: String,
    /// Link profile.
    pub link: String,
    /// Alignment, registry name; "none" where a system has none.
    pub alignment: String,
    /// Mapping of the alignment; "none" where there is none.
    pub mapping: String,
    /// Codec chain; "none" where a system sends no KV.
    pub codec: String,
    /// Schedule of the hand-off; "none" where there is none.
    pub schedule: String,
    /// Data set, registry name.
    pub dataset: String,
    /// Cache contract: `cold`, `primed` (cloud has the context) or `warm` (edge has it).
    pub contract: String,
    /// What computed it: `live`, `replayed` or `simulated`.
    pub compute: String,
    /// Device profiles that the nodes ran as; "host" is this machine as it is.
    pub device: String,
    /// How requests arrived: "sequential", or the label of a load such as
    /// "closed-8" or "poisson-2.0rps".
    pub load: String,
    /// Which round over the load's requests this belongs to, from 0; the index
    /// of a [`LoadRound`](crate::LoadRound).
    pub round: u32,
    /// Requests per second that the load offered in this round; `None` where the
    /// next request waits for an answer.
    pub offered_rps: Option<f64>,
    /// Which of the edges made it, from 0.
    pub edge: u32,
    /// Conversation that it is a turn of.
    pub conversation: Option<u32>,
    /// Which turn of the conversation, from 0.
    pub turn: u32,
    /// Document that was shared.
    pub document_id: String,
    /// Question that was asked.
    pub question_id: String,
    /// Content hash of the shared context.
    pub context_id: String,
    /// `ok` or `failed`.
    pub outcome: String,
    /// Kind of the failure.
    pub error_kind: Option<String>,
    /// Message of the failure.
    pub error: Option<String>,
    /// Whether the link missed its target while this ran.
    pub degraded: bool,
    /// Planned arrival, ns since the run's origin on the edge's monotonic clock.
    pub scheduled_ns: u64,
    /// When the edge took the request up, same clock.
    pub sent_ns: u64,
    /// When each output token was there, same clock.
    pub token_ns: Vec<u64>,
    /// Where the time to the first token went.
    pub parts: Vec<TtftPart>,
    /// Tokens of the shared context.
    pub context_tokens: u32,
    /// Tokens of the whole prompt.
    pub prompt_tokens: u32,
    /// Tokens answered.
    pub output_tokens: u32,
    /// Whether the number of tokens, or some of their times, is deduced from
    /// the pieces of text that a foreign server sent.
    #[serde(default)]
    pub tokens_estimated: bool,
    /// IP bytes edge to cloud, counted at the link.
    pub uplink_bytes: u64,
    /// IP bytes cloud to edge, counted at the link.
    pub downlink_bytes: u64,
    /// Packets edge to cloud.
    pub uplink_packets: u64,
    /// Packets cloud to edge.
    pub downlink_packets: u64,
    /// Message bytes edge to cloud.
    pub uplink_payload_bytes: u64,
    /// Message bytes cloud to edge.
    pub downlink_payload_bytes: u64,
    /// fp16 size of the KV that was served, 0 when none was fetched.
    pub kv_fp16_bytes: u64,
    /// Encoded size of it, scales and tables included.
    pub kv_payload_bytes: u64,
    /// Bytes of the user's private text, or computed from it, that left the edge.
    pub private_uplink_bytes: u64,
    /// Token-layers that the edge prefilled itself.
    pub edge_prefill_token_layers: u64,
    /// Largest KV cache at the edge during the request.
    pub edge_peak_kv_bytes: u64,
    /// Whether the edge's cache had the context.
    pub edge_cache_hit: bool,
    /// Whether the cloud's store had the context.
    pub cloud_store_hit: bool,
    /// The answer.
    pub output_text: String,
    /// Its token ids.
    pub output_ids: Vec<u32>,
    /// Accepted answers.
    pub gold: Vec<String>,
    /// Whether the document holds the answer.
    pub answerable: bool,
    /// Exact match, 0 to 1.
    pub em: Option<f64>,
    /// Word F1, 0 to 1.
    pub f1: Option<f64>,
    /// Whether the tokens equal those of `edge_only` on the same request; `None`
    /// where they need not.
    pub token_exact: Option<bool>,
}

/// One part of the time to the first token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TtftPart {
    /// One of [`PART_NAMES`].
    pub name: String,
    /// Time that nothing else hid; these add up to TTFT.
    pub exposed_ns: u64,
    /// Time that ran beside another part.
    pub overlapped_ns: u64,
}

impl Sample {
    /// Checks what the figures rely on: known outcome, contract, compute and
    /// part names, timestamps in order, counts that agree, scores in 0 to 1.
    ///
    /// # Errors
    /// The first fault found, in words.
    pub fn validate(&self) -> Result<(), String> {
        if self.schema_version != SCHEMA_VERSION {
            return Err(format!(
                "schema version {}, this build reads {SCHEMA_VERSION}",
                self.schema_version
            ));
        }
        for (field, value) in [
            ("cell_id", &self.cell_id),
            ("system", &self.system),
            ("link", &self.link),
            ("dataset", &self.dataset),
            ("device", &self.device),
            ("load", &self.load),
            ("document_id", &self.document_id),
            ("question_id", &self.question_id),
        ] {
            if value.is_empty() {
                return Err(format!("`{field}` is empty"));
            }
        }
        one_of("outcome", &self.outcome, &["ok", "failed"])?;
        one_of("contract", &self.contract, &["cold", "primed", "warm"])?;
        one_of("compute", &self.compute, &["live", "replayed", "simulated"])?;
        if let Some(reason) = &self.excluded {
            one_of("excluded", reason, &EXCLUSIONS)?;
        }
        if self.warmup != (self.excluded.as_deref() == Some("warmup")) {
            return Err("`warmup` and `excluded` contradict each other".to_owned());
        }
        if self
            .offered_rps
            .is_some_and(|rate| !(rate.is_finite() && rate > 0.0))
        {
            return Err("`offered_rps` is not a rate above 0".to_owned());
        }
        if self.ok() && (self.error.is_some() || self.error_kind.is_some()) {
            return Err("the outcome is ok, and there is an error".to_owned());
        }
        if !self.ok() && self.error_kind.as_ref().is_none_or(String::is_empty) {
            return Err("the outcome is failed, and `error_kind` is missing".to_owned());
        }
        if self.sent_ns < self.scheduled_ns {
            return Err("`sent_ns` lies before `scheduled_ns`".to_owned());
        }
        if self.token_ns.first().is_some_and(|&t| t < self.sent_ns) {
            return Err("the first token lies before `sent_ns`".to_owned());
        }
        if !self.token_ns.is_sorted() {
            return Err("`token_ns` goes back in time".to_owned());
        }
        if self.token_ns.len() != self.output_tokens as usize {
            return Err(format!(
                "`token_ns` has {} entries for {} output tokens",
                self.token_ns.len(),
                self.output_tokens
            ));
        }
        let mut names = BTreeSet::new();
        for part in &self.parts {
            one_of("parts", &part.name, &PART_NAMES)?;
            if !names.insert(&part.name) {
                return Err(format!("part `{}` appears twice", part.name));
            }
        }
        for (field, score) in [("em", self.em), ("f1", self.f1)] {
            if score.is_some_and(|s| !(0.0..=1.0).contains(&s)) {
                return Err(format!("`{field}` lies outside 0 to 1"));
            }
        }
        Ok(())
    }

    /// Whether the request was answered.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.outcome == "ok"
    }

    /// Whether the sample counts at all: neither warm-up nor cool-down.
    #[must_use]
    pub fn counted(&self) -> bool {
        !self.warmup && self.excluded.is_none()
    }

    /// Whether the sample counts for latency, bytes and quality: answered, and
    /// neither warm-up nor cool-down.
    #[must_use]
    pub fn measured(&self) -> bool {
        self.ok() && self.counted()
    }
}

fn one_of(field: &str, value: &str, known: &[&str]) -> Result<(), String> {
    if known.contains(&value) {
        Ok(())
    } else {
        Err(format!(
            "`{field}` has the unknown value `{value}`; known: {}",
            known.join(", ")
        ))
    }
}

/// The samples of one file.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleFile {
    /// The samples, in file order.
    pub samples: Vec<Sample>,
    /// Bytes of an unfinished last line that were left out, 0 when there is none.
    pub torn_bytes: usize,
}

/// Reads a `samples.jsonl`.
///
/// A run that was killed may leave its last line unfinished, without a newline:
/// it is left out and reported in [`SampleFile::torn_bytes`]. Empty lines are
/// skipped.
///
/// # Errors
/// An unreadable file, or any other line that is not a valid sample, with its
/// number.
pub fn read_samples(path: &Path) -> Result<SampleFile, ReportError> {
    let read_error = |source| ReportError::Read {
        path: path.to_owned(),
        source,
    };
    let bad = |line, reason| ReportError::BadSample {
        path: path.to_owned(),
        line,
        reason,
    };
    let mut reader = BufReader::new(File::open(path).map_err(read_error)?);
    let mut samples = Vec::new();
    let mut buffer = Vec::new();
    for line in 1.. {
        buffer.clear();
        reader
            .by_ref()
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut buffer)
            .map_err(read_error)?;
        if buffer.is_empty() {
            break;
        }
        let finished = buffer.last() == Some(&b'\n');
        if !finished && buffer.len() as u64 == MAX_LINE_BYTES {
            return Err(bad(line, format!("longer than {MAX_LINE_BYTES} bytes")));
        }
        if buffer.trim_ascii().is_empty() {
            continue;
        }
        match serde_json::from_slice::<Sample>(&buffer) {
            Ok(sample) => {
                sample.validate().map_err(|reason| bad(line, reason))?;
                samples.push(sample);
            }
            // Only a line that simply stops was torn by a kill.
            Err(error) if !finished && error.is_eof() => {
                return Ok(SampleFile {
                    samples,
                    torn_bytes: buffer.len(),
                });
            }
            // The buffer is one line, so the parser's column is the line's.
            Err(error) => return Err(bad(line, error.to_string())),
        }
    }
    Ok(SampleFile {
        samples,
        torn_bytes: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    fn read(text: &str) -> Result<SampleFile, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("samples.jsonl");
        std::fs::write(&path, text).unwrap();
        read_samples(&path).map_err(|e| e.to_string())
    }

    fn line() -> String {
        serde_json::to_string(&fixture::sample()).unwrap()
    }

    #[test]
    fn samples_round_trip() {
        let file = read(&format!("{0}\n\n{0}\n", line())).unwrap();
        assert_eq!(file.samples, [fixture::sample(), fixture::sample()]);
        assert_eq!(file.torn_bytes, 0);
        assert!(read("").unwrap().samples.is_empty());
    }

    #[test]
    fn a_torn_last_line_is_left_out() {
        let whole = line();
        for cut in [1, whole.len() / 2, whole.len() - 1] {
            let file = read(&format!("{whole}\n{}", &whole[..cut])).unwrap();
            assert_eq!(file.samples.len(), 1);
            assert_eq!(file.torn_bytes, cut);
        }
        // The newline is missing, and the line is whole: it counts.
        assert_eq!(read(&format!("{whole}\n{whole}")).unwrap().samples.len(), 2);
    }

    #[test]
    fn any_other_bad_line_is_an_error_with_its_number() {
        let whole = line();
        let half = &whole[..whole.len() / 2];
        for text in [
            format!("{whole}\n{half}\n"),
            format!("{whole}\n{half}\n{whole}\n"),
            format!("{whole}\nnonsense"),
            format!("{whole}\n{}\n", whole.replace("\"ok\"", "\"fine\"")),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains("samples.jsonl` line 2"), "{error}");
        }
    }

    #[test]
    fn faults_are_named() {
        type Change = fn(&mut Sample);
        let cases: [(Change, &str); 16] = [
            (|s| s.schema_version = 1, "schema version 1"),
            (|s| s.load.clear(), "`load` is empty"),
            (|s| s.warmup = true, "contradict"),
            (
                |s| s.excluded = Some("lunch".into()),
                "known: warmup, cooldown",
            ),
            (|s| s.offered_rps = Some(0.0), "not a rate"),
            (|s| s.system.clear(), "`system` is empty"),
            (|s| s.contract = "hot".into(), "known: cold, primed, warm"),
            (|s| s.compute = "guessed".into(), "known: live"),
            (|s| s.error = Some("x".into()), "there is an error"),
            (|s| s.outcome = "failed".into(), "`error_kind` is missing"),
            (|s| s.sent_ns = 0, "before `scheduled_ns`"),
            (|s| s.token_ns[0] = s.sent_ns - 1, "before `sent_ns`"),
            (|s| s.token_ns.reverse(), "back in time"),
            (|s| s.output_tokens += 1, "output tokens"),
            (
                |s| s.parts[0].name = "magic".into(),
                "unknown value `magic`",
            ),
            (|s| s.f1 = Some(40.0), "outside 0 to 1"),
        ];
        fixture::sample().validate().unwrap();
        for (change, expected) in cases {
            let mut sample = fixture::sample();
            change(&mut sample);
            let error = sample.validate().unwrap_err();
            assert!(error.contains(expected), "{error} lacks {expected}");
        }
        let mut sample = fixture::sample();
        sample.parts[1].name = sample.parts[0].name.clone();
        assert!(sample.validate().unwrap_err().contains("appears twice"));
    }
}
