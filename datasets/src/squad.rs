//! Files in SQuAD 1.1 or 2.0 format.
//!
//! Format: Rajpurkar et al. 2016 (1.1) and 2018 (2.0); XQuAD uses 1.1. Articles
//! hold paragraphs, paragraphs hold questions, and 2.0 marks a question that
//! its paragraph does not answer with `is_impossible`. Extra keys are let
//! through, as published files carry several.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::document::{AnswerForm, Document, Framing, Question};
use crate::draw::draw;
use crate::error::DatasetError;
use crate::registry::Dataset;
use crate::source;

/// Published files by name, for the licence and for telling a user where to
/// look: file name, licence, official home.
const KNOWN_FILES: &[(&str, &str, &str)] = &[
    (
        "xquad.en.json",
        "CC-BY-SA-4.0",
        "https://github.com/google-deepmind/xquad",
    ),
    (
        "dev-v1.1.json",
        "CC-BY-SA-4.0",
        "https://rajpurkar.github.io/SQuAD-explorer/",
    ),
    (
        "dev-v2.0.json",
        "CC-BY-SA-4.0",
        "https://rajpurkar.github.io/SQuAD-explorer/",
    ),
    (
        "train-v1.1.json",
        "CC-BY-SA-4.0",
        "https://rajpurkar.github.io/SQuAD-explorer/",
    ),
    (
        "train-v2.0.json",
        "CC-BY-SA-4.0",
        "https://rajpurkar.github.io/SQuAD-explorer/",
    ),
];

/// Which file to read, and how much of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SquadConfig {
    /// The file; a relative path starts at the data folder.
    pub path: PathBuf,
    /// Documents to draw; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub documents: Option<usize>,
    /// Questions to draw from each document; all when absent, and all that a
    /// document has when it has fewer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub questions_per_document: Option<usize>,
    /// `true`: an article's paragraphs, joined, are one document with all of
    /// their questions. `false`: each paragraph is a document. A joined article
    /// could answer a question that its own paragraph does not, so SQuAD 2.0's
    /// unanswerable questions are safest with `false`.
    #[serde(default)]
    pub merge_paragraphs: bool,
    /// Whether questions marked `is_impossible` are kept.
    #[serde(default = "yes")]
    pub unanswerable: bool,
}

fn yes() -> bool {
    true
}

/// A SQuAD file, drawn.
#[derive(Debug, Clone)]
pub struct Squad {
    licence: &'static str,
    source: String,
    hash: String,
    documents: Vec<Document>,
}

impl Squad {
    /// Reads the file and draws from it; see [`load`](crate::load).
    ///
    /// # Errors
    /// A missing folder or file, a malformed file with its location, and an
    /// impossible draw.
    pub fn load(
        config: &SquadConfig,
        data_dir: Option<&Path>,
        seed: u64,
    ) -> Result<Self, DatasetError> {
        let known = config
            .path
            .file_name()
            .and_then(|name| KNOWN_FILES.iter().find(|k| name == k.0));
        let home = known.map_or("the data set's publisher", |k| k.2);
        let path = source::resolve(&config.path, data_dir, home)?;
        let bytes = source::read(&path, home)?;
        let documents = documents(&bytes, &path, config.merge_paragraphs)?;
        Ok(Self {
            licence: known.map_or("as stated by the file's publisher", |k| k.1),
            source: known.map_or_else(|| path.display().to_string(), |k| k.2.to_owned()),
            hash: blake3::hash(&bytes).to_hex().to_string(),
            documents: draw(
                "squad",
                documents,
                config.documents,
                config.questions_per_document,
                config.unanswerable,
                seed,
            )?,
        })
    }
}

impl Dataset for Squad {
    fn name(&self) -> &'static str {
        "squad"
    }

    fn licence(&self) -> &str {
        self.licence
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

#[derive(Deserialize)]
struct File {
    data: Vec<Article>,
}

#[derive(Deserialize)]
struct Article {
    #[serde(default)]
    title: String,
    paragraphs: Vec<Paragraph>,
}

#[derive(Deserialize)]
struct Paragraph {
    context: String,
    qas: Vec<Qa>,
}

#[derive(Deserialize)]
struct Qa {
    id: String,
    question: String,
    #[serde(default)]
    answers: Vec<Answer>,
    #[serde(default)]
    is_impossible: bool,
}

#[derive(Deserialize)]
struct Answer {
    text: String,
}

fn documents(bytes: &[u8], path: &Path, merge: bool) -> Result<Vec<Document>, DatasetError> {
    let file: File = serde_json::from_slice(bytes).map_err(|source| DatasetError::Json {
        path: path.to_owned(),
        format: "a SQuAD file",
        line: source.line(),
        column: source.column(),
        source,
    })?;
    let fault = |at: String, reason: &str| DatasetError::Format {
        path: path.to_owned(),
        at,
        reason: reason.to_owned(),
    };

    let mut used: BTreeMap<String, usize> = BTreeMap::new();
    let mut documents = Vec::new();
    for (a, article) in file.data.into_iter().enumerate() {
        let stem = if article.title.trim().is_empty() {
            format!("article-{a:03}")
        } else {
            article.title.trim().replace(char::is_whitespace, "_")
        };
        // Titles are not unique in every file, ids are.
        let times = used.entry(stem.clone()).or_insert(0);
        *times += 1;
        let stem = match *times {
            1 => stem,
            n => format!("{stem}~{n}"),
        };
        let title = if article.title.trim().is_empty() {
            stem.clone()
        } else {
            article.title.trim().replace('_', " ")
        };

        let mut parts = Vec::with_capacity(article.paragraphs.len());
        for (p, paragraph) in article.paragraphs.into_iter().enumerate() {
            let at = format!("data[{a}].paragraphs[{p}]");
            if paragraph.context.trim().is_empty() {
                return Err(fault(at, "the context is empty"));
            }
            let mut questions = Vec::with_capacity(paragraph.qas.len());
            for (q, qa) in paragraph.qas.into_iter().enumerate() {
                questions
                    .push(question(qa).map_err(|reason| fault(format!("{at}.qas[{q}]"), reason))?);
            }
            parts.push((paragraph.context, questions));
        }
        let merged = if merge && !parts.is_empty() {
            let (texts, questions): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
            vec![(stem, texts.join("\n\n"), questions.concat())]
        } else {
            parts
                .into_iter()
                .enumerate()
                .map(|(p, (text, questions))| (format!("{stem}.p{p:02}"), text, questions))
                .collect()
        };
        for (id, text, questions) in merged {
            let mut ids = BTreeSet::new();
            if let Some(twice) = questions.iter().find(|q| !ids.insert(q.id.clone())) {
                return Err(fault(
                    format!("data[{a}]"),
                    &format!("question id `{}` appears twice in one document", twice.id),
                ));
            }
            documents.push(Document {
                id,
                title: title.clone(),
                kind: "encyclopedia article".to_owned(),
                instruction: None,
                framing: Framing::Message,
                answer_tokens: None,
                text,
                questions,
            });
        }
    }
    if documents.is_empty() {
        return Err(fault("data".to_owned(), "it holds no paragraph"));
    }
    Ok(documents)
}

fn question(qa: Qa) -> Result<Question, &'static str> {
    let mut answers: Vec<String> = Vec::new();
    for answer in qa.answers {
        if !answer.text.trim().is_empty() && !answers.contains(&answer.text) {
            answers.push(answer.text);
        }
    }
    if qa.question.trim().is_empty() {
        return Err("the question is empty");
    }
    match (qa.is_impossible, answers.is_empty()) {
        (false, true) => Err("there is no answer, and `is_impossible` is not set"),
        (true, false) => Err("`is_impossible` is set, and there are answers"),
        _ => Ok(Question {
            id: qa.id,
            text: qa.question.trim().to_owned(),
            answers,
            answerable: !qa.is_impossible,
            form: AnswerForm::Span,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = r#"{"version": "1.1", "data": [{"title": "Ivory_Gull", "paragraphs": [
        {"context": "Gulls nest on scree.", "qas": [
            {"id": "a", "question": "Where do gulls nest?", "answers": [
                {"answer_start": 14, "text": "scree"}, {"answer_start": 14, "text": "scree"}, {"answer_start": 11, "text": "on scree"}]}]},
        {"context": "They winter at sea.", "qas": [
            {"id": "b", "question": "Where do they winter?", "answers": [{"answer_start": 12, "text": "at sea"}]}]}]}]}"#;

    const V2: &str = r#"{"version": "v2.0", "data": [{"title": "Weir", "paragraphs": [
        {"context": "The weir is low.", "qas": [
            {"id": "a", "question": "Is it low?", "answers": [{"text": "low", "answer_start": 12}], "is_impossible": false},
            {"id": "b", "question": "Who built it?", "answers": [], "is_impossible": true,
             "plausible_answers": [{"text": "weir", "answer_start": 4}]}]}]}]}"#;

    fn load(text: &str, change: impl FnOnce(&mut SquadConfig)) -> Result<Squad, DatasetError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("set.json"), text).unwrap();
        let mut config = SquadConfig {
            path: "set.json".into(),
            documents: None,
            questions_per_document: None,
            merge_paragraphs: false,
            unanswerable: true,
        };
        change(&mut config);
        Squad::load(&config, Some(dir.path()), 0)
    }

    #[test]
    fn paragraphs_are_documents() {
        let squad = load(V1, |_| {}).unwrap();
        let mut ids: Vec<_> = squad.documents().iter().map(|d| d.id.as_str()).collect();
        ids.sort_unstable();
        assert_eq!(ids, ["Ivory_Gull.p00", "Ivory_Gull.p01"]);
        let first = squad
            .documents()
            .iter()
            .find(|d| d.id.ends_with("p00"))
            .unwrap();
        assert_eq!(first.title, "Ivory Gull");
        assert_eq!(first.questions[0].answers, ["scree", "on scree"]);
    }

    #[test]
    fn merged_paragraphs_are_one_context() {
        let squad = load(V1, |c| c.merge_paragraphs = true).unwrap();
        assert_eq!(squad.documents().len(), 1);
        assert_eq!(
            squad.documents()[0].text,
            "Gulls nest on scree.\n\nThey winter at sea."
        );
        assert_eq!(squad.documents()[0].questions.len(), 2);
    }

    #[test]
    fn impossible_questions_are_unanswerable() {
        let squad = load(V2, |_| {}).unwrap();
        let questions = &squad.documents()[0].questions;
        let b = questions.iter().find(|q| q.id == "b").unwrap();
        assert!(!b.answerable);
        assert_eq!(b.gold(), ["unanswerable"]);
        let squad = load(V2, |c| c.unanswerable = false).unwrap();
        assert_eq!(squad.documents()[0].questions.len(), 1);
    }

    #[test]
    fn malformed_files_are_errors_with_a_place() {
        let message = |text: &str| load(text, |_| {}).unwrap_err().to_string();
        let cut = message(&V1[..V1.len() / 2]);
        assert!(cut.contains("line") && cut.contains("column"), "{cut}");
        let shape = message("{\"data\": [\n{\"title\": 3, \"paragraphs\": []}]}");
        assert!(shape.contains("line 2"), "{shape}");
        assert!(message("").contains("line 1"));
        let none = message(&V2.replace("\"is_impossible\": true", "\"is_impossible\": false"));
        assert!(none.contains("data[0].paragraphs[0].qas[1]"), "{none}");
        let both = message(&V2.replace("\"is_impossible\": false", "\"is_impossible\": true"));
        assert!(both.contains("data[0].paragraphs[0].qas[0]"), "{both}");
        let twice = message(&V2.replace("\"id\": \"b\"", "\"id\": \"a\""));
        assert!(twice.contains("`a` appears twice"), "{twice}");
        assert!(message(r#"{"data": []}"#).contains("no paragraph"));
        let blank = message(&V2.replace("The weir is low.", " "));
        assert!(blank.contains("context is empty"), "{blank}");
    }

    #[test]
    fn missing_folders_and_files_say_what_to_do() {
        let mut config = SquadConfig {
            path: "quality/xquad.en.json".into(),
            documents: None,
            questions_per_document: None,
            merge_paragraphs: true,
            unanswerable: true,
        };
        let error = Squad::load(&config, None, 0).unwrap_err().to_string();
        assert!(
            error.contains("`data_dir`") && error.contains("google-deepmind/xquad"),
            "{error}"
        );
        let dir = tempfile::tempdir().unwrap();
        let error = Squad::load(&config, Some(dir.path()), 0)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("no such file") && error.contains("google-deepmind/xquad"),
            "{error}"
        );
        config.path = ".".into();
        let error = Squad::load(&config, Some(dir.path()), 0).unwrap_err();
        assert!(matches!(error, DatasetError::Read { .. }), "{error}");
    }

    /// Runs on the published file where the data folder has it; the counts are
    /// those that its publisher states.
    #[test]
    fn xquad_loads_whole() {
        let Some(dir) = std::env::var_os("CELSLM_DATA").map(PathBuf::from) else {
            eprintln!("skipped: CELSLM_DATA names no data folder");
            return;
        };
        let load = |merge_paragraphs| {
            let config = SquadConfig {
                path: "quality/xquad.en.json".into(),
                documents: None,
                questions_per_document: None,
                merge_paragraphs,
                unanswerable: true,
            };
            Squad::load(&config, Some(&dir), 0).unwrap()
        };
        let questions =
            |squad: &Squad| -> usize { squad.documents().iter().map(|d| d.questions.len()).sum() };
        let (merged, single) = (load(true), load(false));
        assert_eq!((merged.documents().len(), questions(&merged)), (48, 1190));
        assert_eq!((single.documents().len(), questions(&single)), (240, 1190));
        assert_eq!(merged.licence(), "CC-BY-SA-4.0");
        for document in merged.documents() {
            for question in &document.questions {
                assert!(
                    document.text.contains(&question.answers[0]),
                    "{} {}",
                    document.id,
                    question.id
                );
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn damaged_files_never_panic(cut in 0usize..900, byte: u8) {
            let mut bytes = V1.as_bytes().to_vec();
            let cut = cut % bytes.len();
            bytes[cut] = byte;
            let _ = documents(&bytes, Path::new("x"), true);
            let _ = documents(&bytes[..cut], Path::new("x"), false);
        }
    }
}
