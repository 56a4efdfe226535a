//! Continuation of text: how likely a model finds what follows a long context.
//!
//! The context is a stretch of running text, and the gold answer is the text that comes next. There
//! is no question and nothing is generated: only likelihoods count, from which a report states nats
//! per token, the logarithm of perplexity. The text goes on where the context stops, inside the same
//! message ([`Framing::Open`]), so that nothing but the text itself leads to it. Its first token is
//! given, as the private part that a prompt must have.
//!
//! Where bridges or codec artefacts were fitted on the same files, `skip_percent` keeps evaluation
//! apart: fits with seed 0 read every file from its start.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::document::{AnswerForm, Document, Framing, Question};
use crate::draw::draw;
use crate::error::DatasetError;
use crate::registry::Dataset;
use crate::source::{self, Texts};

/// Where the text is, and how it is cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContinuationConfig {
    /// A text file in UTF-8, or a folder whose `.txt` files are read; a relative path starts at the
    /// data folder.
    pub path: PathBuf,
    /// Share of each file that is left out at its start, in per cent.
    #[serde(default)]
    pub skip_percent: u8,
    /// Contexts to draw; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub documents: Option<usize>,
    /// Words of a context.
    #[serde(default = "words")]
    pub words: usize,
    /// Words that follow it.
    #[serde(default = "continuation_words")]
    pub continuation_words: usize,
}

const fn words() -> usize {
    600
}

const fn continuation_words() -> usize {
    80
}

/// Stretches of text with what follows them, drawn.
#[derive(Debug, Clone)]
pub struct Continuation {
    source: String,
    hash: String,
    documents: Vec<Document>,
}

impl Continuation {
    /// Reads the text and draws from it; see [`load`](crate::load). Stretches do not overlap.
    ///
    /// # Errors
    /// A missing folder or file, text that is not UTF-8, lengths that leave nothing, and an
    /// impossible draw.
    pub fn load(
        config: &ContinuationConfig,
        data_dir: Option<&Path>,
        seed: u64,
    ) -> Result<Self, DatasetError> {
        let ContinuationConfig {
            words,
            continuation_words,
            ..
        } = *config;
        for (setting, value) in [("words", words), ("continuation_words", continuation_words)] {
            if value == 0 {
                return Err(DatasetError::Zero { setting });
            }
        }
        let texts = Texts::read(&config.path, data_dir)?;
        let step = words.saturating_add(continuation_words);
        let mut documents = Vec::new();
        for (stem, text) in &texts.files {
            let all: Vec<&str> = text.split_whitespace().collect();
            let start = source::skipped(all.len(), config.skip_percent)?;
            for (index, piece) in all[start..].chunks_exact(step).enumerate() {
                let (context, continuation) = piece.split_at(words);
                documents.push(Document {
                    id: format!("{stem}-{:07}", start + index * step),
                    title: stem.replace(['-', '_'], " "),
                    kind: "running text".to_owned(),
                    instruction: None,
                    framing: Framing::Open,
                    answer_tokens: None,
                    text: context.join(" "),
                    questions: vec![Question {
                        id: "continuation".to_owned(),
                        text: String::new(),
                        answers: vec![format!(" {}", continuation.join(" "))],
                        answerable: true,
                        form: AnswerForm::Continuation,
                    }],
                });
            }
        }
        Ok(Self {
            source: texts.path.display().to_string(),
            hash: texts.hash,
            documents: draw(
                "continuation",
                documents,
                config.documents,
                None,
                true,
                seed,
            )?,
        })
    }
}

impl Dataset for Continuation {
    fn name(&self) -> &'static str {
        "continuation"
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

#[cfg(test)]
mod tests {
    use super::*;

    fn config(path: &Path) -> ContinuationConfig {
        ContinuationConfig {
            path: path.to_owned(),
            skip_percent: 0,
            documents: None,
            words: 20,
            continuation_words: 5,
        }
    }

    #[test]
    fn the_gold_answer_is_the_text_that_follows() {
        let dir = tempfile::tempdir().unwrap();
        let all: Vec<String> = (0..110).map(|i| format!("w{i}")).collect();
        std::fs::write(dir.path().join("a_b.txt"), all.join("\n")).unwrap();
        let whole = all.join(" ");
        let set = Continuation::load(&config(dir.path()), None, 1).unwrap();
        assert_eq!(set.documents().len(), 4, "ten words are left over");
        for document in set.documents() {
            let [question] = &document.questions[..] else {
                panic!("one question");
            };
            let text = format!("{}{}", document.text, question.answers[0]);
            let at = whole.find(&text).unwrap();
            let words = whole[..at].split_whitespace().count();
            assert_eq!(document.id, format!("a_b-{words:07}"));
            assert_eq!(text.split(' ').count(), 25);
            assert_eq!(document.framing, Framing::Open);
            assert_eq!(question.form, AnswerForm::Continuation);
        }
    }

    #[test]
    fn what_was_skipped_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let all: Vec<String> = (0..100).map(|i| format!("w{i}")).collect();
        std::fs::write(dir.path().join("a.txt"), all.join(" ")).unwrap();
        let last = ContinuationConfig {
            skip_percent: 50,
            ..config(dir.path())
        };
        let set = Continuation::load(&last, None, 1).unwrap();
        assert_eq!(set.documents().len(), 2);
        for document in set.documents() {
            for early in 0..50 {
                assert!(!document.text.split(' ').any(|w| w == format!("w{early}")));
            }
        }
        for (skip_percent, part) in [(100, "skip_percent = 100"), (90, "draw 0 documents")] {
            let wrong = ContinuationConfig {
                skip_percent,
                ..last.clone()
            };
            let error = Continuation::load(&wrong, None, 1).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
        let none = ContinuationConfig {
            continuation_words: 0,
            ..last
        };
        let error = Continuation::load(&none, None, 1).unwrap_err().to_string();
        assert!(error.contains("continuation_words = 0"), "{error}");
    }
}
