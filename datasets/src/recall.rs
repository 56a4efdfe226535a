//! Recall of passages: plain text as documents, and questions that quote some words and ask for
//! those that follow.
//!
//! Any text gives any number of such questions, at any length of document, and the answer stands
//! nowhere but in the document. It is to tune methods on text that no benchmark asks about, and to
//! see from which length on, or from which loss of the KV cache on, a model no longer finds what
//! it has read.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::document::{AnswerForm, Document, Framing, Question};
use crate::draw::draw;
use crate::error::DatasetError;
use crate::registry::Dataset;
use crate::source::{self, Texts};

/// Where the text is, and how documents and questions are cut from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecallConfig {
    /// A text file in UTF-8, or a folder whose `.txt` files are read; a relative path starts at the
    /// data folder.
    pub path: PathBuf,
    /// Documents to draw; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub documents: Option<usize>,
    /// Questions to draw from each document; as many as it has pieces for when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub questions_per_document: Option<usize>,
    /// Words of a document.
    #[serde(default = "words")]
    pub words: usize,
    /// Words that a question quotes.
    #[serde(default = "cue_words")]
    pub cue_words: usize,
    /// Words that it asks for.
    #[serde(default = "span_words")]
    pub span_words: usize,
}

const fn words() -> usize {
    600
}

const fn cue_words() -> usize {
    8
}

const fn span_words() -> usize {
    6
}

/// Documents with questions of recall, drawn.
#[derive(Debug, Clone)]
pub struct Recall {
    source: String,
    hash: String,
    documents: Vec<Document>,
}

impl Recall {
    /// Reads the text and draws from it; see [`load`](crate::load).
    ///
    /// # Errors
    /// A missing folder or file, text that is not UTF-8, lengths that leave no question, and an
    /// impossible draw.
    pub fn load(
        config: &RecallConfig,
        data_dir: Option<&Path>,
        seed: u64,
    ) -> Result<Self, DatasetError> {
        let RecallConfig {
            words,
            cue_words,
            span_words,
            ..
        } = *config;
        for (setting, value) in [
            ("words", words),
            ("cue_words", cue_words),
            ("span_words", span_words),
        ] {
            if value == 0 {
                return Err(DatasetError::Zero { setting });
            }
        }
        let texts = Texts::read(&config.path, data_dir)?;
        let mut documents = Vec::new();
        for (stem, text) in &texts.files {
            let all: Vec<&str> = text.split_whitespace().collect();
            for (index, piece) in all.chunks_exact(words).enumerate() {
                let id = format!("{stem}-{index:04}");
                let title = stem.replace(['-', '_'], " ");
                documents.push(document(id, title, piece, cue_words, span_words));
            }
        }
        Ok(Self {
            source: texts.path.display().to_string(),
            hash: texts.hash,
            documents: draw(
                "recall",
                documents,
                config.documents,
                config.questions_per_document,
                true,
                seed,
            )?,
        })
    }
}

impl Dataset for Recall {
    fn name(&self) -> &'static str {
        "recall"
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

/// A passage with its questions of recall, for text that is no file of a data set: calibration.
#[must_use]
pub fn recall_document(id: &str, text: &str) -> Document {
    let words: Vec<&str> = text.split_whitespace().collect();
    document(
        id.to_owned(),
        id.to_owned(),
        &words,
        cue_words(),
        span_words(),
    )
}

/// Questions of recall about a text: each quotes `cue_words` words that stand in it once and asks
/// for the `span_words` that follow.
#[must_use]
pub fn recall_questions(text: &str, cue_words: usize, span_words: usize) -> Vec<Question> {
    let words: Vec<&str> = text.split_whitespace().collect();
    questions(&words, cue_words.max(1), span_words.max(1))
}

fn document(
    id: String,
    title: String,
    words: &[&str],
    cue_words: usize,
    span_words: usize,
) -> Document {
    Document {
        id,
        title,
        kind: "passage".to_owned(),
        instruction: None,
        framing: Framing::Message,
        answer_tokens: None,
        questions: questions(words, cue_words, span_words),
        text: words.join(" "),
    }
}

/// A question for every piece of the text whose quoted words stand in it once.
fn questions(words: &[&str], cue_words: usize, span_words: usize) -> Vec<Question> {
    let step = cue_words + span_words;
    let once = |cue: &[&str]| words.windows(cue.len()).filter(|w| *w == cue).count() == 1;
    let piece = |range: Range<usize>| words.get(range);
    (0..words.len() / step)
        .filter_map(|index| {
            let start = index * step;
            let cue = piece(start..start + cue_words).filter(|cue| once(cue))?;
            let span = piece(start + cue_words..start + step)?.join(" ");
            Some(Question {
                id: format!("words-{start:05}"),
                text: format!(
                    "Which {span_words} words follow \"{}\" in the document?",
                    cue.join(" ")
                ),
                answers: vec![span],
                answerable: true,
                form: AnswerForm::Span,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(path: &Path) -> RecallConfig {
        RecallConfig {
            path: path.to_owned(),
            documents: None,
            questions_per_document: None,
            words: 20,
            cue_words: 3,
            span_words: 2,
        }
    }

    #[test]
    fn questions_ask_for_the_words_that_follow() {
        let dir = tempfile::tempdir().unwrap();
        let text: Vec<String> = (0..45).map(|i| format!("w{i}")).collect();
        std::fs::write(dir.path().join("a_b.txt"), text.join(" ")).unwrap();
        std::fs::write(dir.path().join("c.md"), "not read").unwrap();
        let recall = Recall::load(&config(dir.path()), None, 1).unwrap();
        assert_eq!(
            recall.documents().len(),
            2,
            "the last five words are no document"
        );
        let mut ids: Vec<&str> = recall.documents().iter().map(|d| d.id.as_str()).collect();
        ids.sort_unstable();
        assert_eq!(ids, ["a_b-0000", "a_b-0001"]);
        for document in recall.documents() {
            assert_eq!(document.title, "a b");
            assert_eq!(document.questions.len(), 4);
            for question in &document.questions {
                let cue = question.text.split('"').nth(1).unwrap();
                let whole = format!("{cue} {}", question.answers[0]);
                assert!(document.text.contains(&whole), "{whole}");
                assert_eq!(cue.split(' ').count(), 3);
                assert_eq!(question.answers[0].split(' ').count(), 2);
            }
        }
    }

    #[test]
    fn what_stands_twice_is_not_asked_for() {
        let words = ["a", "b", "c", "d", "a", "b", "e", "f"];
        let found = questions(&words, 2, 2);
        assert!(found.is_empty(), "{found:?}");
        let words = ["a", "b", "c", "d", "a", "x", "e", "f"];
        assert_eq!(questions(&words, 2, 2).len(), 2);
    }

    #[test]
    fn bad_settings_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.txt");
        std::fs::write(&file, [0xff, 0xfe, b'a']).unwrap();
        let error = Recall::load(&config(&file), None, 1)
            .unwrap_err()
            .to_string();
        assert!(error.contains("not UTF-8"), "{error}");
        let zero = RecallConfig {
            span_words: 0,
            ..config(&file)
        };
        let error = Recall::load(&zero, None, 1).unwrap_err().to_string();
        assert!(error.contains("span_words"), "{error}");
        let error = Recall::load(&config(&dir.path().join("none")), None, 1)
            .unwrap_err()
            .to_string();
        assert!(error.contains("none"), "{error}");
        std::fs::write(&file, "too short").unwrap();
        assert!(Recall::load(&config(&file), None, 1).is_err());
    }
}
