//! The project's own documents, compiled into the binary.
//!
//! Every fact in them is invented, so that a right answer must come from the
//! document and not from a model's memory. One TOML file per document lies in
//! `embedded/`, named after the document's id.

use serde::{Deserialize, Serialize};

use crate::document::{AnswerForm, Document, Framing, Question};
use crate::draw::draw;
use crate::error::DatasetError;
use crate::registry::Dataset;

pub(crate) const LICENCE: &str = "MIT OR Apache-2.0";
pub(crate) const SOURCE: &str = "datasets/embedded in this repository";

/// Id and text of every embedded document: one line per file.
macro_rules! files {
    ($($id:literal),* $(,)?) => {
        &[$(($id, include_str!(concat!("../embedded/", $id, ".toml")))),*]
    };
}

const FILES: &[(&str, &str)] = files![
    "aubrel-n3-night-exchanger",
    "dorrant-hall-cooling-failure",
    "fennick-lane-trips-allergies",
    "halvern-night-bus-handbook",
    "hobbermere-estate-mushrooms",
    "kestrel-40-heat-pump",
    "lindenhook-house-rules",
    "lindmere-sample-transport",
    "lower-brannick-water-alarms",
    "merrowick-tram-fares",
    "pellingate-payment-outage",
    "quarrendale-visiting-rules",
    "quelu-atoll-reef-fish",
    "skarrow-ferry-carriage-rules",
    "tarnwick-child-phone-triage",
    "tavrin-hut-warden-manual",
    "vantrel-c2-cargo-drive",
    "wythrick-fell-mineral-trails",
];

/// How much of the embedded data set to use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EmbeddedConfig {
    /// Documents to draw; all when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub documents: Option<usize>,
    /// Questions to draw from each document; all when absent, and all that a
    /// document has when it has fewer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub questions_per_document: Option<usize>,
    /// Whether questions that the document does not answer are kept.
    pub unanswerable: bool,
}

impl Default for EmbeddedConfig {
    fn default() -> Self {
        Self {
            documents: None,
            questions_per_document: None,
            unanswerable: true,
        }
    }
}

/// The embedded data set, drawn.
#[derive(Debug, Clone)]
pub struct Embedded {
    hash: String,
    documents: Vec<Document>,
}

impl Embedded {
    /// Parses the embedded documents and draws from them.
    ///
    /// # Errors
    /// A draw of nothing or of more documents than there are. A document that
    /// does not parse is an error too; the tests make sure that none exists.
    pub fn load(config: &EmbeddedConfig, seed: u64) -> Result<Self, DatasetError> {
        let mut hasher = blake3::Hasher::new();
        let mut documents = Vec::with_capacity(FILES.len());
        for &(id, text) in FILES {
            for part in [id, text] {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part.as_bytes());
            }
            documents.push(parse(id, text)?);
        }
        Ok(Self {
            hash: hasher.finalize().to_hex().to_string(),
            documents: draw(
                "embedded",
                documents,
                config.documents,
                config.questions_per_document,
                config.unanswerable,
                seed,
            )?,
        })
    }
}

impl Dataset for Embedded {
    fn name(&self) -> &'static str {
        "embedded"
    }

    fn licence(&self) -> &str {
        LICENCE
    }

    fn source(&self) -> &str {
        SOURCE
    }

    fn hash(&self) -> &str {
        &self.hash
    }

    fn documents(&self) -> &[Document] {
        &self.documents
    }
}

/// A document file as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    id: String,
    title: String,
    kind: String,
    text: String,
    question: Vec<FileQuestion>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileQuestion {
    id: String,
    text: String,
    #[serde(default)]
    answers: Vec<String>,
    #[serde(default = "yes")]
    answerable: bool,
}

fn yes() -> bool {
    true
}

fn parse(id: &'static str, text: &str) -> Result<Document, DatasetError> {
    let file: File = toml::from_str(text).map_err(|source| DatasetError::Embedded {
        id,
        source: Box::new(source),
    })?;
    Ok(Document {
        id: file.id,
        title: file.title,
        kind: file.kind,
        instruction: None,
        framing: Framing::Message,
        answer_tokens: None,
        text: file.text.trim().to_owned(),
        questions: file
            .question
            .into_iter()
            .map(|q| Question {
                id: q.id,
                text: q.text,
                answers: q.answers,
                answerable: q.answerable,
                form: AnswerForm::Span,
            })
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::scorer::{is_refusal, normalise};

    fn all() -> Vec<Document> {
        FILES
            .iter()
            .map(|&(id, text)| parse(id, text).unwrap())
            .collect()
    }

    #[test]
    fn the_table_lists_the_folder() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("embedded");
        let on_disk: BTreeSet<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.extension().is_some_and(|e| e == "toml"))
            .map(|p| p.file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        let in_table: BTreeSet<String> = FILES.iter().map(|(id, _)| (*id).to_owned()).collect();
        assert_eq!(in_table.len(), FILES.len(), "a document is listed twice");
        assert_eq!(in_table, on_disk);
        assert!(FILES.len() >= 16, "{} documents", FILES.len());
    }

    #[test]
    fn documents_are_as_described() {
        let mut faults = Vec::new();
        for ((stem, _), document) in FILES.iter().zip(all()) {
            let id = &document.id;
            if id != stem {
                faults.push(format!("{stem}: id `{id}` differs from the file name"));
            }
            let words = document.text.split_whitespace().count();
            if !(600..=1500).contains(&words) {
                faults.push(format!("{id}: {words} words"));
            }
            if document.title.trim().is_empty() || document.kind.trim().is_empty() {
                faults.push(format!("{id}: no title or kind"));
            }
            let answerable = document.questions.iter().filter(|q| q.answerable).count();
            let unanswerable = document.questions.len() - answerable;
            if answerable < 8 || unanswerable < 1 {
                faults.push(format!(
                    "{id}: {answerable} answerable, {unanswerable} unanswerable questions"
                ));
            }
            let ids: BTreeSet<_> = document.questions.iter().map(|q| &q.id).collect();
            if ids.len() != document.questions.len() {
                faults.push(format!("{id}: question ids repeat"));
            }
        }
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }

    #[test]
    fn answers_are_short_spans_of_the_text() {
        let mut faults = Vec::new();
        for document in all() {
            // Padded, so that a span is found at word boundaries only.
            let text = format!(" {} ", normalise(&document.text));
            for question in &document.questions {
                let at = format!("{} {}", document.id, question.id);
                if question.answerable == question.answers.is_empty() {
                    faults.push(format!("{at}: answers and `answerable` contradict"));
                }
                if let Some(first) = question.answers.first()
                    && !text.contains(&format!(" {} ", normalise(first)))
                {
                    faults.push(format!("{at}: `{first}` is not in the text"));
                }
                for answer in &question.answers {
                    let words = answer.split_whitespace().count();
                    if words == 0 || words > 8 || normalise(answer).is_empty() {
                        faults.push(format!("{at}: `{answer}` has {words} words"));
                    }
                    if is_refusal(answer) {
                        faults.push(format!("{at}: `{answer}` reads as a refusal"));
                    }
                }
            }
        }
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }

    #[test]
    fn draws_are_seeded_and_grow_by_prefix() {
        let draw = |documents, questions, seed| {
            Embedded::load(
                &EmbeddedConfig {
                    documents,
                    questions_per_document: questions,
                    unanswerable: true,
                },
                seed,
            )
            .unwrap()
            .documents
        };
        let small = draw(Some(3), Some(2), 1);
        let large = draw(Some(6), Some(4), 1);
        for (s, l) in small.iter().zip(&large) {
            assert_eq!(s.id, l.id);
            assert_eq!(s.questions, l.questions[..2]);
        }
        let ids = |d: &[Document]| d.iter().map(|d| d.id.clone()).collect::<Vec<_>>();
        assert_eq!(ids(&draw(None, None, 1))[..6], ids(&large));
        assert_ne!(ids(&draw(None, None, 1)), ids(&draw(None, None, 2)));
    }

    #[test]
    fn unanswerable_questions_can_be_left_out() {
        let config = EmbeddedConfig {
            unanswerable: false,
            ..EmbeddedConfig::default()
        };
        let set = Embedded::load(&config, 0).unwrap();
        assert!(
            set.documents()
                .iter()
                .flat_map(|d| &d.questions)
                .all(|q| q.answerable)
        );
    }

    #[test]
    fn impossible_draws_are_errors() {
        for documents in [0, FILES.len() + 1] {
            let config = EmbeddedConfig {
                documents: Some(documents),
                ..EmbeddedConfig::default()
            };
            let error = Embedded::load(&config, 0).unwrap_err().to_string();
            assert!(error.contains("set `documents` between 1 and"), "{error}");
        }
        let config = EmbeddedConfig {
            questions_per_document: Some(0),
            ..EmbeddedConfig::default()
        };
        assert!(matches!(
            Embedded::load(&config, 0),
            Err(DatasetError::Zero { .. })
        ));
    }

    #[test]
    fn the_hash_is_of_the_source_and_not_of_the_draw() {
        let one = EmbeddedConfig {
            documents: Some(1),
            ..EmbeddedConfig::default()
        };
        let drawn = Embedded::load(&one, 5).unwrap();
        let whole = Embedded::load(&EmbeddedConfig::default(), 6).unwrap();
        assert_eq!(drawn.hash(), whole.hash());
        assert_eq!(drawn.hash().len(), 64);
    }
}
