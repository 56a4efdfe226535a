//! `trace`: arrivals and lengths of a published trace.
//!
//! A trace says when requests came and how long they were, not what they said.
//! Each becomes a question about one of the data set's documents:
//!
//! - arrival: its time after the window's start, times `time_scale`;
//! - output: its output tokens times `length_scale` are the most that are
//!   generated;
//! - input: its input tokens times `length_scale`, at 0.75 words a token, are
//!   the words of the whole prompt. The document is part of them, whatever its
//!   length, and the private part is padded to the rest;
//! - sharing: a Mooncake record lists the hashes of its prompt's blocks of 512
//!   tokens. Blocks that all records begin with say nothing; records that agree
//!   in the first block after them share a document. There are more such blocks
//!   than documents, so that more is shared than in the trace. Azure's traces
//!   say nothing about sharing, and their documents are drawn alike.
//!
//! Sources: Azure LLM inference trace 2023 (Patel et al., Splitwise, 2024),
//! CC-BY 4.0; Mooncake trace (Qin et al., 2024), Apache-2.0.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::popularity::request_about;
use super::{
    Arrival, MAX_REQUESTS, Popularity, Request, Workload, check_positive, check_seconds, number,
};
use crate::document::Document;
use crate::error::DatasetError;
use crate::source;

/// Words of English text to one token, about.
const WORDS_PER_TOKEN: f64 = 0.75;

/// More tokens than any model takes: a record that states them is broken.
const MAX_TOKENS: u64 = 1 << 24;

const NS_PER_S: i128 = 1_000_000_000;

/// Which trace to replay, and how it is scaled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trace {
    /// The file; a relative path starts at the data folder.
    pub file: PathBuf,
    /// How it is written.
    pub format: TraceFormat,
    /// Factor on the time between arrivals: 10 is ten times slower.
    #[serde(default = "one")]
    pub time_scale: f64,
    /// Factor on the lengths of prompts and answers.
    #[serde(default = "one")]
    pub length_scale: f64,
    /// Start of the replayed window, in seconds of the trace.
    #[serde(default)]
    pub start_s: f64,
    /// Length of the window in seconds of the trace; to the end when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_s: Option<f64>,
}

fn one() -> f64 {
    1.0
}

/// How a trace is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceFormat {
    /// CSV with the columns `TIMESTAMP,ContextTokens,GeneratedTokens`.
    Azure,
    /// JSON lines with `timestamp` (ms), `input_length`, `output_length` and
    /// `hash_ids`.
    Mooncake,
}

impl TraceFormat {
    fn home(self) -> &'static str {
        match self {
            Self::Azure => "https://github.com/Azure/AzurePublicDataset",
            Self::Mooncake => "https://github.com/kvcache-ai/Mooncake",
        }
    }
}

/// A trace that was read: its window, ready to be put over documents.
#[derive(Debug, Clone)]
pub struct LoadedTrace {
    settings: Trace,
    hash: String,
    records: Vec<Record>,
}

/// One request of a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Record {
    /// 1-based line, which names the record whatever the window.
    line: usize,
    /// Since the first record.
    at_ns: i128,
    input_tokens: u64,
    output_tokens: u64,
    /// Hashes of the prompt's blocks, empty where the format has none.
    blocks: Vec<u64>,
}

impl LoadedTrace {
    /// Reads the file and cuts the window out.
    ///
    /// # Errors
    /// A missing folder or file, a line that does not follow the format, a
    /// window without requests, and factors that are not above 0.
    pub fn load(settings: &Trace, data_dir: Option<&Path>) -> Result<Self, DatasetError> {
        check_positive("time_scale", settings.time_scale)?;
        check_positive("length_scale", settings.length_scale)?;
        check_seconds("start_s", settings.start_s)?;
        if let Some(duration) = settings.duration_s {
            check_positive("duration_s", duration)?;
            check_seconds("duration_s", duration)?;
        }
        let home = settings.format.home();
        let path = source::resolve(&settings.file, data_dir, home)?;
        let bytes = source::read(&path, home)?;
        let mut records =
            parse(&bytes, settings.format).map_err(|(line, reason)| DatasetError::Line {
                path: path.clone(),
                line,
                reason,
            })?;
        // What every prompt begins with tells none of them apart. It is found before the window
        // is cut, so that a request shares the same document in every window.
        let common = common_blocks(&records);
        let start = to_ns(settings.start_s);
        let end = settings
            .duration_s
            .map_or(i128::MAX, |duration| start + to_ns(duration));
        records.retain(|record| (start..end).contains(&record.at_ns));
        if records.is_empty() {
            return Err(DatasetError::Setting {
                setting: "start_s",
                value: format!(
                    "{}, duration_s = {:?}",
                    settings.start_s, settings.duration_s
                ),
                reason: "the trace has no request in this window",
            });
        }
        if records.len() > MAX_REQUESTS {
            return Err(DatasetError::TooManyRequests {
                requests: records.len() as u128,
                limit: MAX_REQUESTS,
                setting: "duration_s",
            });
        }
        for record in &mut records {
            record.at_ns -= start;
            record.blocks = record.blocks.get(common).copied().into_iter().collect();
        }
        let trace = Self {
            settings: settings.clone(),
            hash: blake3::hash(&bytes).to_hex().to_string(),
            records,
        };
        check_seconds("time_scale", trace.span_s())?;
        Ok(trace)
    }

    /// Length of the replay: the window's, or up to the last request.
    fn span_s(&self) -> f64 {
        let last = self.records.last().map_or(0, |record| record.at_ns);
        let window = self
            .settings
            .duration_s
            .unwrap_or(last as f64 / NS_PER_S as f64);
        window * self.settings.time_scale
    }
}

impl Workload for LoadedTrace {
    fn name(&self) -> &'static str {
        "trace"
    }

    fn requests(&self, documents: &[Document], seed: u64) -> Result<Vec<Request>, DatasetError> {
        let words: Vec<usize> = documents
            .iter()
            .map(|d| d.text.split_whitespace().count())
            .collect();
        let scale = self.settings.length_scale;
        let mut requests = Vec::with_capacity(self.records.len());
        for record in &self.records {
            let name = record.line.to_string();
            // Records of one block share a name here, and with it a document.
            let sharing = record
                .blocks
                .first()
                .map_or_else(|| format!("line {name}"), |block| format!("block {block}"));
            let Some(place) = Popularity::Uniform.document(documents, seed, &sharing) else {
                break;
            };
            let Some(request) = request_about(documents, place, seed, &name) else {
                break;
            };
            let at = record.at_ns as f64 / NS_PER_S as f64 * self.settings.time_scale;
            let prompt = (record.input_tokens as f64 * scale * WORDS_PER_TOKEN).round() as usize;
            let private = prompt.saturating_sub(words[place]);
            let question = documents[place].questions[request.question]
                .text
                .split_whitespace()
                .count();
            requests.push(Request {
                arrival: Arrival::At(Duration::from_secs_f64(at.max(0.0))),
                max_tokens: Some(((record.output_tokens as f64 * scale).round() as usize).max(1)),
                prompt_words: (private > question).then_some(private),
                ..request
            });
        }
        Ok(number(requests))
    }

    fn offered_rps(&self) -> Option<f64> {
        let span = self.span_s();
        (span > 0.0).then(|| self.records.len() as f64 / span)
    }

    fn label(&self) -> String {
        let Trace {
            file,
            time_scale,
            length_scale,
            start_s,
            duration_s,
            ..
        } = &self.settings;
        let stem = file.file_stem().unwrap_or_default().to_string_lossy();
        let mut label = format!("trace-{stem}-time{time_scale:?}-length{length_scale:?}");
        if *start_s > 0.0 {
            label.push_str(&format!("-from{start_s:?}s"));
        }
        if let Some(duration) = duration_s {
            label.push_str(&format!("-for{duration:?}s"));
        }
        label
    }

    fn source_hash(&self) -> Option<&str> {
        Some(&self.hash)
    }
}

fn to_ns(seconds: f64) -> i128 {
    (seconds * NS_PER_S as f64).round() as i128
}

/// How many blocks all records begin with.
fn common_blocks(records: &[Record]) -> usize {
    let Some(first) = records.first().filter(|_| records.len() > 1) else {
        return 0;
    };
    records.iter().fold(first.blocks.len(), |common, record| {
        let same = first.blocks.iter().zip(&record.blocks);
        same.take_while(|(a, b)| a == b).count().min(common)
    })
}

/// The records of a file, with times since the first; or a line and what is
/// wrong with it.
fn parse(bytes: &[u8], format: TraceFormat) -> Result<Vec<Record>, (usize, String)> {
    let mut records: Vec<Record> = Vec::new();
    let mut origin = 0;
    let mut header = format == TraceFormat::Azure;
    for (index, line) in bytes.split(|&b| b == b'\n').enumerate() {
        let number = index + 1;
        let bad = |reason: String| (number, reason);
        let text = std::str::from_utf8(line)
            .map_err(|_| bad("it is not UTF-8".to_owned()))?
            .trim();
        if text.is_empty() {
            continue;
        }
        if header {
            const HEADER: &str = "TIMESTAMP,ContextTokens,GeneratedTokens";
            if text.trim_start_matches('\u{feff}') != HEADER {
                return Err(bad(format!("the header is not `{HEADER}`")));
            }
            header = false;
            continue;
        }
        let (at, input_tokens, output_tokens, blocks) = match format {
            TraceFormat::Azure => azure(text).map_err(bad)?,
            TraceFormat::Mooncake => mooncake(text).map_err(bad)?,
        };
        for (what, tokens) in [("input", input_tokens), ("output", output_tokens)] {
            if tokens > MAX_TOKENS {
                return Err(bad(format!(
                    "{tokens} {what} tokens are more than any model takes"
                )));
            }
        }
        if records.is_empty() {
            origin = at;
        }
        let at_ns = at - origin;
        if records.last().is_some_and(|last| last.at_ns > at_ns) {
            return Err(bad("its time lies before the line above".to_owned()));
        }
        records.push(Record {
            line: number,
            at_ns,
            input_tokens,
            output_tokens,
            blocks,
        });
    }
    Ok(records)
}

type Fields = (i128, u64, u64, Vec<u64>);

fn azure(text: &str) -> Result<Fields, String> {
    let fields: Vec<&str> = text.split(',').collect();
    let [time, input, output] = fields[..] else {
        return Err(format!("{} fields, not three", fields.len()));
    };
    let count = |what: &str, text: &str| {
        text.parse::<u64>()
            .map_err(|_| format!("{what} is `{text}`, not a count"))
    };
    let at = timestamp(time)
        .ok_or_else(|| format!("TIMESTAMP is `{time}`, not `YYYY-MM-DD HH:MM:SS.fffffff`"))?;
    Ok((
        at,
        count("ContextTokens", input)?,
        count("GeneratedTokens", output)?,
        Vec::new(),
    ))
}

fn mooncake(text: &str) -> Result<Fields, String> {
    // Other keys are let through, as later releases of the trace have some.
    #[derive(Deserialize)]
    struct Line {
        timestamp: u64,
        input_length: u64,
        output_length: u64,
        hash_ids: Vec<u64>,
    }
    let line: Line = serde_json::from_str(text).map_err(|error| error.to_string())?;
    Ok((
        i128::from(line.timestamp) * 1_000_000,
        line.input_length,
        line.output_length,
        line.hash_ids,
    ))
}

/// Nanoseconds since the year 0 of `YYYY-MM-DD HH:MM:SS[.f…]`.
fn timestamp(text: &str) -> Option<i128> {
    let (date, time) = text.split_once([' ', 'T'])?;
    let whole = |text: &str, digits: usize| -> Option<i128> {
        (text.len() == digits && text.bytes().all(|b| b.is_ascii_digit()))
            .then(|| text.parse().ok())?
    };
    let mut date = date.split('-');
    let mut next = |digits| whole(date.next()?, digits);
    let (year, month, day) = (next(4)?, next(2)?, next(2)?);
    if date.next().is_some() {
        return None;
    }
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut clock = clock.split(':');
    let mut next = || whole(clock.next()?, 2);
    let (hour, minute, second) = (next()?, next()?, next()?);
    if clock.next().is_some()
        || !(1..=12).contains(&month)
        || !(1..=31).contains(&day)
        || hour > 23
        || minute > 59
        || second > 60
        || fraction.is_empty()
        || fraction.len() > 9
    {
        return None;
    }
    let nanos = whole(fraction, fraction.len())? * 10i128.pow(9 - fraction.len() as u32);
    // Days of the proleptic Gregorian calendar, with years that begin in March, so that the leap
    // day is the last.
    let shifted = if month > 2 { year } else { year - 1 };
    let month_day = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = shifted * 365 + shifted.div_euclid(4) - shifted.div_euclid(100)
        + shifted.div_euclid(400)
        + month_day;
    Some(((days * 24 + hour) * 3600 + minute * 60 + second) * NS_PER_S + nanos)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::workload::tests::{documents, seconds, shifts_nothing};

    const AZURE: &str = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n\
        2023-11-16 23:59:59.5000000,1000,44\r\n\
        2023-11-17 00:00:01.0000000,10,2\r\n\
        2023-11-17 00:00:09.7500000,4000,1";

    const MOONCAKE: &str = r#"{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2]}
{"timestamp": 500, "input_length": 7322, "output_length": 490, "hash_ids": [0, 14, 15]}
{"timestamp": 3000, "input_length": 7236, "output_length": 794, "hash_ids": [0, 1, 29], "more": true}
"#;

    fn settings(format: TraceFormat) -> Trace {
        Trace {
            file: "trace".into(),
            format,
            time_scale: 1.0,
            length_scale: 1.0,
            start_s: 0.0,
            duration_s: None,
        }
    }

    fn load(text: &str, settings: &Trace) -> Result<LoadedTrace, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("trace"), text).unwrap();
        LoadedTrace::load(settings, Some(dir.path())).map_err(|e| e.to_string())
    }

    #[test]
    fn azure_arrivals_and_lengths() {
        let trace = load(AZURE, &settings(TraceFormat::Azure)).unwrap();
        let requests = trace.requests(&documents(4), 1).unwrap();
        assert_eq!(seconds(&requests), [0.0, 1.5, 10.25]);
        let tokens: Vec<_> = requests.iter().map(|r| r.max_tokens).collect();
        assert_eq!(tokens, [Some(44), Some(2), Some(1)]);
        // 1,000 tokens are 750 words, 100 of them in the document.
        let words: Vec<_> = requests.iter().map(|r| r.prompt_words).collect();
        assert_eq!(words, [Some(650), None, Some(2900)]);
        assert_eq!(trace.offered_rps(), Some(3.0 / 10.25));

        let scaled = Trace {
            time_scale: 4.0,
            length_scale: 0.5,
            ..settings(TraceFormat::Azure)
        };
        let trace = load(AZURE, &scaled).unwrap();
        let requests = trace.requests(&documents(4), 1).unwrap();
        assert_eq!(seconds(&requests), [0.0, 6.0, 41.0]);
        assert_eq!(requests[0].max_tokens, Some(22));
        assert_eq!(requests[0].prompt_words, Some(275));
        // Half a token is one.
        assert_eq!(requests[2].max_tokens, Some(1));
        assert_eq!(trace.label(), "trace-trace-time4.0-length0.5");
    }

    #[test]
    fn a_window_starts_at_its_start() {
        let window = Trace {
            start_s: 1.0,
            duration_s: Some(5.0),
            ..settings(TraceFormat::Azure)
        };
        let whole = load(AZURE, &settings(TraceFormat::Azure)).unwrap();
        let cut = load(AZURE, &window).unwrap();
        let requests = cut.requests(&documents(4), 1).unwrap();
        assert_eq!(seconds(&requests), [0.5]);
        assert_eq!(cut.offered_rps(), Some(0.2));
        // The same line asks the same question in any window.
        let all = whole.requests(&documents(4), 1).unwrap();
        assert_eq!(all[1].seed, requests[0].seed);
        assert_eq!(cut.source_hash(), whole.source_hash());
        assert_ne!(cut.label(), whole.label());
        let empty = Trace {
            start_s: 100.0,
            ..window
        };
        let error = load(AZURE, &empty).unwrap_err();
        assert!(error.contains("no request in this window"), "{error}");
    }

    #[test]
    fn records_that_share_a_block_share_a_document() {
        let trace = load(MOONCAKE, &settings(TraceFormat::Mooncake)).unwrap();
        let requests = trace.requests(&documents(50), 1).unwrap();
        assert_eq!(seconds(&requests), [0.0, 0.5, 3.0]);
        assert_eq!(requests[0].document, requests[2].document);
        assert_ne!(requests[0].document, requests[1].document);
        assert_eq!(requests[0].max_tokens, Some(500));
        assert_ne!(requests[0].seed, requests[2].seed);
    }

    #[test]
    fn a_new_document_shifts_nothing() {
        let mut text = String::from("TIMESTAMP,ContextTokens,GeneratedTokens\n");
        for i in 0..60 {
            text.push_str(&format!("2023-11-16 18:17:{i:02}.0,100,10\n"));
        }
        let trace = load(&text, &settings(TraceFormat::Azure)).unwrap();
        let before = trace.requests(&documents(4), 1).unwrap();
        assert_eq!(before, trace.requests(&documents(4), 1).unwrap());
        shifts_nothing(&before, &trace.requests(&documents(5), 1).unwrap(), 4);
    }

    #[test]
    fn bad_lines_are_named() {
        let azure = |line: &str, expected: &str| {
            let text = format!("{AZURE}\n{line}\n");
            let error = load(&text, &settings(TraceFormat::Azure)).unwrap_err();
            assert!(
                error.contains("line 5") && error.contains(expected),
                "{error}"
            );
        };
        azure("2023-11-17 00:01:00.0,1", "2 fields");
        azure("2023-11-17 00:01:00.0,1,x", "GeneratedTokens is `x`");
        azure("2023-11-17 00:01:00.0,-1,2", "ContextTokens is `-1`");
        azure("2023-11-17,1,2", "TIMESTAMP is `2023-11-17`");
        azure("2023-13-17 00:01:00.0,1,2", "TIMESTAMP");
        azure("2023-11-16 00:01:00.0,1,2", "before the line above");
        azure("2023-11-17 00:01:00.0,99999999999,2", "more than any model");
        let error = load("A,B\n", &settings(TraceFormat::Azure)).unwrap_err();
        assert!(error.contains("line 1: the header is not"), "{error}");

        let mooncake = |line: &str, expected: &str| {
            let text = format!("{MOONCAKE}{line}");
            let error = load(&text, &settings(TraceFormat::Mooncake)).unwrap_err();
            assert!(
                error.contains("line 4") && error.contains(expected),
                "{error}"
            );
        };
        mooncake("{", "EOF");
        mooncake("{\"timestamp\": 4000}", "missing field `input_length`");
        mooncake(
            r#"{"timestamp": 1, "input_length": 1, "output_length": 1, "hash_ids": []}"#,
            "before the line above",
        );
        mooncake(
            r#"{"timestamp": 4000, "input_length": -1, "output_length": 1, "hash_ids": []}"#,
            "invalid value",
        );
    }

    #[test]
    fn settings_and_paths_are_checked() {
        let fails = |change: fn(&mut Trace), expected: &str| {
            let mut settings = settings(TraceFormat::Azure);
            change(&mut settings);
            let error = load(AZURE, &settings).unwrap_err();
            assert!(error.contains(expected), "{error} lacks {expected}");
        };
        fails(|t| t.time_scale = 0.0, "`time_scale = 0`");
        fails(|t| t.time_scale = 1e9, "86400");
        fails(|t| t.length_scale = f64::NAN, "`length_scale = NaN`");
        fails(|t| t.start_s = -1.0, "`start_s = -1`");
        fails(|t| t.duration_s = Some(0.0), "`duration_s = 0`");
        fails(|t| t.file = "other".into(), "AzurePublicDataset");
        let nowhere = LoadedTrace::load(&settings(TraceFormat::Mooncake), None);
        let error = nowhere.unwrap_err().to_string();
        assert!(
            error.contains("CELSLM_DATA") && error.contains("Mooncake"),
            "{error}"
        );
        let error = toml::from_str::<Trace>("file = \"a\"\nformat = \"burst\"").unwrap_err();
        assert!(error.to_string().contains("azure"), "{error}");
    }

    #[test]
    fn times_are_read() {
        let at = |text: &str| timestamp(text).unwrap();
        let day = 86_400 * NS_PER_S;
        assert_eq!(
            at("2024-03-01 00:00:00.0") - at("2024-02-28 00:00:00.0"),
            2 * day
        );
        assert_eq!(at("2023-03-01 00:00:00") - at("2023-02-28 00:00:00"), day);
        assert_eq!(
            at("2024-01-01 00:00:00") - at("2023-01-01 00:00:00"),
            365 * day
        );
        assert_eq!(
            at("2023-11-16 18:17:03.9799600") - at("2023-11-16 18:17:03"),
            979_960_000
        );
        for bad in [
            "",
            "2023-11-16",
            "2023-1-1 00:00:00",
            "x-11-16 00:00:00",
            "2023-11-16 0:0:0",
        ] {
            assert_eq!(timestamp(bad), None, "{bad}");
        }
    }

    /// The published files, where `CELSLM_DATA` names the folder that has them.
    #[test]
    fn the_published_traces_are_read() {
        let Some(dir) = std::env::var_os("CELSLM_DATA").map(PathBuf::from) else {
            return;
        };
        for (file, format, count) in [
            ("AzureLLMInferenceTrace_code.csv", TraceFormat::Azure, 8819),
            (
                "AzureLLMInferenceTrace_conv.csv",
                TraceFormat::Azure,
                19_366,
            ),
            ("conversation_trace.jsonl", TraceFormat::Mooncake, 12_031),
        ] {
            let settings = Trace {
                file: Path::new("serving").join(file),
                length_scale: 0.1,
                ..settings(format)
            };
            if !dir.join(&settings.file).exists() {
                continue;
            }
            let trace = LoadedTrace::load(&settings, Some(&dir)).unwrap();
            let requests = trace.requests(&documents(16), 1).unwrap();
            assert_eq!(requests.len(), count, "{file}");
            assert!(seconds(&requests).is_sorted());
            let mut asked = BTreeMap::<usize, usize>::new();
            for request in &requests {
                *asked.entry(request.document).or_default() += 1;
            }
            assert_eq!(asked.len(), 16, "{file}");
            if format == TraceFormat::Mooncake {
                // The block that all prompts begin with is passed over.
                let blocks: BTreeSet<_> = trace.records.iter().map(|r| &r.blocks).collect();
                assert_eq!(blocks.len(), 7373);
            }
        }
    }
}
