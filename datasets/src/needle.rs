//! Needle recall: made-up facts put into a long text, and a question for each.
//!
//! The text is any book, cut to contexts of several lengths. Into each, facts about places that do
//! not exist are put at stated depths, each behind the end of a sentence. Nothing in the text and
//! nothing that a model has read before helps, so that an answer shows whether the KV still holds
//! what stood at that depth. Lengths are in a document's id and depths in a question's, for example
//! `moby-dick-1250w-0030000` and `depth-50`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::document::{AnswerForm, Document, Framing, Question};
use crate::error::DatasetError;
use crate::rank;
use crate::registry::Dataset;
use crate::source::{self, Texts};

/// Most words behind a needle's depth among which the end of a sentence is looked for.
const SENTENCE_WORDS: usize = 120;

/// Names that are tried until one is found that the text does not have.
const ATTEMPTS: usize = 64;

/// Where the text is, and which needles are put where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NeedleConfig {
    /// A text file in UTF-8, or a folder whose `.txt` files are read; a relative path starts at the
    /// data folder.
    pub path: PathBuf,
    /// Share of each file that is left out at its start, in per cent.
    #[serde(default)]
    pub skip_percent: u8,
    /// Contexts of each length.
    #[serde(default = "documents")]
    pub documents: usize,
    /// Lengths of the contexts in words, without the needles. A word of a novel takes about 1.6
    /// tokens of Qwen2.5's tokenizer: the lengths that are set where none are stated make 0.5k, 2k
    /// and 8k tokens.
    #[serde(default = "words")]
    pub words: Vec<usize>,
    /// Depths of a context's needles, in per cent of its words.
    #[serde(default = "depths")]
    pub depths: Vec<u8>,
}

const fn documents() -> usize {
    4
}

fn words() -> Vec<usize> {
    vec![300, 1250, 5000]
}

fn depths() -> Vec<u8> {
    vec![10, 30, 50, 70, 90]
}

/// Texts with needles in them, drawn.
#[derive(Debug, Clone)]
pub struct Needle {
    source: String,
    hash: String,
    documents: Vec<Document>,
}

impl Needle {
    /// Reads the text, draws stretches of each length and puts needles into them; see
    /// [`load`](crate::load). Stretches of one length do not overlap.
    ///
    /// # Errors
    /// A missing folder or file, text that is not UTF-8, lists that are empty or hold something
    /// twice, and lengths of which the text has too few.
    pub fn load(
        config: &NeedleConfig,
        data_dir: Option<&Path>,
        seed: u64,
    ) -> Result<Self, DatasetError> {
        if config.documents == 0 {
            return Err(DatasetError::Zero {
                setting: "documents",
            });
        }
        check("words", &config.words, |words| words > 0)?;
        check("depths", &config.depths, |depth| depth <= 100)?;
        let texts = Texts::read(&config.path, data_dir)?;
        let mut files = Vec::new();
        for (stem, text) in &texts.files {
            let all: Vec<&str> = text.split_whitespace().collect();
            let start = source::skipped(all.len(), config.skip_percent)?;
            files.push((stem.as_str(), start, all));
        }
        let mut documents = Vec::new();
        for &words in &config.words {
            let pieces = files.iter().flat_map(|(stem, start, all)| {
                let pieces = all[*start..].chunks_exact(words).enumerate();
                pieces.map(move |(index, piece)| {
                    (
                        format!("{stem}-{words}w-{:07}", start + index * words),
                        piece,
                    )
                })
            });
            let pieces = rank::draw(pieces.collect(), Some(config.documents), |(id, _)| {
                rank::hash(seed, &["needle", id])
            });
            if pieces.len() < config.documents {
                return Err(DatasetError::Format {
                    path: texts.path,
                    at: "the text".to_owned(),
                    reason: format!(
                        "it has {} stretches of {words} words, and {} contexts of this length were \
                         asked for; lower `documents`, or leave the length out of `words`",
                        pieces.len(),
                        config.documents
                    ),
                });
            }
            for (id, piece) in pieces {
                documents.push(document(id, piece, &config.depths, seed));
            }
        }
        Ok(Self {
            source: texts.path.display().to_string(),
            hash: texts.hash,
            documents,
        })
    }
}

impl Dataset for Needle {
    fn name(&self) -> &'static str {
        "needle"
    }

    fn licence(&self) -> &'static str {
        source::TEXT_LICENCE
    }

    fn source(&self) -> &str {
        &self.source
    }

    fn hash(&self) -> &str {
        &self.hash
    }

    fn documents(&self) -> &[Document] {
        &self.documents
    }
}

fn check<T: Copy + Ord + std::fmt::Display>(
    setting: &'static str,
    list: &[T],
    fits: impl Fn(T) -> bool,
) -> Result<(), DatasetError> {
    let fault = |value: String, reason| DatasetError::Setting {
        setting,
        value,
        reason,
    };
    if list.is_empty() {
        return Err(fault("[]".to_owned(), "name at least one"));
    }
    let mut seen = BTreeSet::new();
    for &value in list {
        if !seen.insert(value) {
            return Err(fault(value.to_string(), "it is listed twice"));
        }
        if !fits(value) {
            let reason = "words are 1 or more, and depths 0 to 100";
            return Err(fault(value.to_string(), reason));
        }
    }
    Ok(())
}

/// What is said about a place, what is asked about it, and whether the answer is a number.
struct Kind {
    fact: &'static str,
    question: &'static str,
    is_number: bool,
}

const KINDS: &[Kind] = &[
    Kind {
        fact: "The code word for PLACE is VALUE.",
        question: "What is the code word for PLACE?",
        is_number: false,
    },
    Kind {
        fact: "The ferry to PLACE is called the VALUE.",
        question: "What is the ferry to PLACE called?",
        is_number: false,
    },
    Kind {
        fact: "The archive at PLACE keeps VALUE maps.",
        question: "How many maps does the archive at PLACE keep?",
        is_number: true,
    },
];

fn document(id: String, words: &[&str], depths: &[u8], seed: u64) -> Document {
    let text = words.join(" ").to_lowercase();
    let mut taken: Vec<String> = Vec::new();
    let mut needles = Vec::new();
    let mut questions = Vec::new();
    for depth in depths {
        let depth_id = format!("depth-{depth:02}");
        let mut draw = |what: &str, make: fn(u64) -> String| {
            let mut made = String::new();
            for attempt in 0..ATTEMPTS {
                let parts = ["needle", &id, &depth_id, what, &attempt.to_string()];
                made = make(rank::derive(seed, &parts));
                if !text.contains(&made.to_lowercase()) && !taken.contains(&made) {
                    break;
                }
            }
            taken.push(made.clone());
            made
        };
        let parts = ["needle", &id, &depth_id, "kind"];
        let kind = &KINDS[(rank::derive(seed, &parts) % KINDS.len() as u64) as usize];
        let place = draw("place", name);
        let value = match kind.is_number {
            true => draw("value", number),
            false => draw("value", name),
        };
        let fact = kind.fact.replace("PLACE", &place).replace("VALUE", &value);
        needles.push((place_of(words, *depth), fact));
        questions.push(Question {
            id: depth_id,
            text: kind.question.replace("PLACE", &place),
            answers: vec![value],
            answerable: true,
            form: AnswerForm::Span,
        });
    }
    needles.sort_by_key(|(at, _)| *at);
    let mut parts = Vec::new();
    let mut from = 0;
    for (at, fact) in &needles {
        parts.extend_from_slice(&words[from..*at]);
        parts.push(fact);
        from = *at;
    }
    parts.extend_from_slice(&words[from..]);
    Document {
        id,
        title: "A text".to_owned(),
        kind: "text with needles".to_owned(),
        instruction: None,
        framing: Framing::Message,
        answer_tokens: None,
        text: parts.join(" "),
        questions,
    }
}

/// Words before a needle: so many per cent of all, and then to the end of the sentence.
fn place_of(words: &[&str], depth: u8) -> usize {
    let at = words.len() * usize::from(depth) / 100;
    let ends = |word: &&str| {
        word.trim_end_matches(['"', '\'', '”', '’', ')'])
            .ends_with(['.', '!', '?'])
    };
    // A needle that stands behind an end already stays there.
    let from = at.saturating_sub(1);
    let sentence = words[from..].iter().take(SENTENCE_WORDS).position(ends);
    match (at, sentence) {
        (0, _) | (_, None) => at,
        (_, Some(word)) => from + word + 1,
    }
}

/// A name that means nothing.
fn name(mut drawn: u64) -> String {
    const BEGINNINGS: &[u8; 16] = b"bdfgklmnprstvwzh";
    const VOWELS: &[u8; 5] = b"aeiou";
    const ENDINGS: [&str; 8] = ["n", "r", "l", "s", "th", "sk", "nd", "m"];
    let mut take = |count: usize| {
        let taken = (drawn % count as u64) as usize;
        drawn /= count as u64;
        taken
    };
    let mut name = String::new();
    for _ in 0..3 {
        name.push(char::from(BEGINNINGS[take(BEGINNINGS.len())]));
        name.push(char::from(VOWELS[take(VOWELS.len())]));
    }
    name.push_str(ENDINGS[take(ENDINGS.len())]);
    name[..1].make_ascii_uppercase();
    name
}

/// A number of four digits.
fn number(drawn: u64) -> String {
    (1000 + drawn % 9000).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(path: &Path) -> NeedleConfig {
        NeedleConfig {
            path: path.to_owned(),
            skip_percent: 0,
            documents: 3,
            words: vec![60, 200],
            depths: vec![0, 50, 100],
        }
    }

    fn book(dir: &Path) {
        let word = |i: usize| match i % 7 {
            6 => format!("w{i}."),
            _ => format!("w{i}"),
        };
        let all: Vec<String> = (0..1000).map(word).collect();
        std::fs::write(dir.join("a.txt"), all.join(" ")).unwrap();
    }

    #[test]
    fn every_needle_stands_where_its_id_says_and_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        book(dir.path());
        let set = Needle::load(&config(dir.path()), None, 1).unwrap();
        assert_eq!(set.documents().len(), 6);
        let mut kinds = BTreeSet::new();
        for (index, document) in set.documents().iter().enumerate() {
            let words = [60, 200][index / 3];
            assert!(document.id.starts_with(&format!("a-{words}w-")));
            let is_book = |word: &&str| word.starts_with('w') && *word != "word";
            let total = document.text.split(' ').filter(is_book).count();
            assert_eq!(total, words, "{}", document.text);
            for (question, depth) in document.questions.iter().zip([0, 50, 100]) {
                assert_eq!(question.id, format!("depth-{depth:02}"));
                let value = &question.answers[0];
                assert_eq!(document.text.matches(value.as_str()).count(), 1);
                assert!(!question.text.contains(value.as_str()));
                let (before, _) = document.text.split_once(value.as_str()).unwrap();
                let found: Vec<&str> = before.split(' ').filter(is_book).collect();
                let behind = found.len() * 100 / words;
                assert!((depth..=depth + 12).contains(&behind), "{depth} {behind}");
                // Whole sentences stand before it.
                assert!(
                    depth != 50 || found.last().unwrap().ends_with('.'),
                    "{found:?}"
                );
                kinds.insert(question.text.split(' ').next().unwrap().to_owned());
            }
        }
        assert_eq!(kinds.len(), 2, "What and How");
        let again = Needle::load(&config(dir.path()), None, 1).unwrap();
        assert_eq!(again.documents(), set.documents());
        let other = Needle::load(&config(dir.path()), None, 2).unwrap();
        assert_ne!(other.documents(), set.documents());
    }

    #[test]
    fn faults_are_named() {
        let dir = tempfile::tempdir().unwrap();
        book(dir.path());
        let own = config(dir.path());
        let with = |change: fn(&mut NeedleConfig)| {
            let mut config = own.clone();
            change(&mut config);
            Needle::load(&config, None, 1).unwrap_err().to_string()
        };
        for (error, part) in [
            (with(|c| c.documents = 0), "documents = 0"),
            (with(|c| c.words = vec![]), "words = []"),
            (with(|c| c.words = vec![5, 0]), "words = 0"),
            (with(|c| c.depths = vec![101]), "depths = 101"),
            (with(|c| c.depths = vec![5, 5]), "listed twice"),
            (with(|c| c.skip_percent = 200), "skip_percent = 200"),
            (
                with(|c| c.words = vec![500]),
                "it has 2 stretches of 500 words, and 3 contexts",
            ),
        ] {
            assert!(error.contains(part), "{error}");
        }
    }
}
