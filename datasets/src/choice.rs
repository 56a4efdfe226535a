//! Multiple-choice questions, such as ARC and OpenBookQA, behind solved examples.
//!
//! The shared context is a few questions with their answers, as a deployment would keep them at the
//! cloud; each private question is one that is in no example. A model chooses the option that it
//! finds most likely per token, as evaluation harnesses do (Brown et al. 2020; Gao et al. 2021), so
//! options are not shown to it and no letter has to be parsed.
//!
//! Two formats are read: JSON lines as AI2 publishes them (`question.stem`, `question.choices`,
//! `answerKey`), and the JSON array of LLM-Adapters (`instruction` with `Answer1: …`, `answer`).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::document::{AnswerForm, Document, Question};
use crate::draw::draw;
use crate::error::DatasetError;
use crate::examples::Dealt;
use crate::rank;
use crate::registry::Dataset;
use crate::source;

/// First line of the context.
const INSTRUCTION: &str =
    "You answer questions as in the examples below: the answer and nothing else.";

/// Published files by a part of their names: licence, official home.
const KNOWN_FILES: &[(&str, &str, &str)] = &[
    (
        "arc-",
        "CC-BY-SA-4.0",
        "https://huggingface.co/datasets/allenai/ai2_arc",
    ),
    (
        "openbookqa",
        "Apache-2.0",
        "https://github.com/allenai/OpenBookQA",
    ),
];

/// Which file to read, and how contexts are made of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChoiceConfig {
    /// The file; a relative path starts at the data folder.
    pub path: PathBuf,
    /// Contexts to draw; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub documents: Option<usize>,
    /// Questions of each context.
    #[serde(default = "questions_per_document")]
    pub questions_per_document: usize,
    /// Solved examples that a context consists of.
    #[serde(default = "shots")]
    pub shots: usize,
}

const fn questions_per_document() -> usize {
    20
}

const fn shots() -> usize {
    16
}

/// Multiple-choice questions, drawn.
#[derive(Debug, Clone)]
pub struct Choice {
    licence: &'static str,
    source: String,
    hash: String,
    documents: Vec<Document>,
}

impl Choice {
    /// Reads the file and draws from it; see [`load`](crate::load). Questions are dealt out in an
    /// order that the seed decides: to each context its examples, then what it is asked. None is
    /// used twice.
    ///
    /// # Errors
    /// A missing folder or file, a malformed file with its location, lengths that leave no
    /// question, and an impossible draw.
    pub fn load(
        config: &ChoiceConfig,
        data_dir: Option<&Path>,
        seed: u64,
    ) -> Result<Self, DatasetError> {
        let stem = source::stem(&config.path);
        let known = KNOWN_FILES.iter().find(|known| stem.starts_with(known.0));
        let home = known.map_or("the data set's publisher", |known| known.2);
        let path = source::resolve(&config.path, data_dir, home)?;
        let dealt = Dealt {
            stem: &stem,
            instruction: INSTRUCTION,
            shots: config.shots,
            questions_per_document: config.questions_per_document,
            answer_tokens: None,
            path: path.clone(),
        };
        dealt.check()?;
        let bytes = source::read(&path, home)?;
        let questions = rank::draw(questions(&bytes, &path)?, None, |question| {
            rank::hash(seed, &["choice", &question.id])
        });
        let documents = dealt.documents(&questions)?;
        Ok(Self {
            licence: known.map_or("as stated by the file's publisher", |known| known.1),
            source: known.map_or_else(|| path.display().to_string(), |known| known.2.to_owned()),
            hash: blake3::hash(&bytes).to_hex().to_string(),
            documents: draw("choice", documents, config.documents, None, true, seed)?,
        })
    }
}

impl Dataset for Choice {
    fn name(&self) -> &'static str {
        "choice"
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
#[serde(untagged)]
enum Entry {
    Published {
        id: String,
        question: Stem,
        #[serde(rename = "answerKey")]
        answer_key: String,
    },
    Adapters {
        instruction: String,
        answer: String,
    },
}

#[derive(Deserialize)]
struct Stem {
    stem: String,
    choices: Vec<Labelled>,
}

#[derive(Deserialize)]
struct Labelled {
    text: String,
    label: String,
}

fn questions(bytes: &[u8], path: &Path) -> Result<Vec<Question>, DatasetError> {
    let json = |line_before: usize| {
        move |source: serde_json::Error| DatasetError::Json {
            path: path.to_owned(),
            format: "multiple-choice questions",
            line: line_before + source.line(),
            column: source.column(),
            source,
        }
    };
    let is_array = bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    let entries: Vec<Entry> = if is_array {
        serde_json::from_slice(bytes).map_err(json(0))?
    } else {
        bytes
            .split(|byte| *byte == b'\n')
            .enumerate()
            .filter(|(_, line)| !line.trim_ascii().is_empty())
            .map(|(index, line)| serde_json::from_slice(line).map_err(json(index)))
            .collect::<Result<_, _>>()?
    };
    let read = |(index, entry)| {
        question(index, entry).map_err(|reason| DatasetError::Format {
            path: path.to_owned(),
            at: format!("question {index}"),
            reason: reason.to_owned(),
        })
    };
    entries.into_iter().enumerate().map(read).collect()
}

fn question(index: usize, entry: Entry) -> Result<Question, &'static str> {
    let (id, text, choices, right) = match entry {
        Entry::Published {
            id,
            question: Stem { stem, choices },
            answer_key,
        } => {
            let right = choices.iter().position(|choice| choice.label == answer_key);
            let texts = choices.into_iter().map(|choice| choice.text).collect();
            (id, stem, texts, right)
        }
        Entry::Adapters {
            instruction,
            answer,
        } => {
            let (text, choices) = adapters(&instruction).ok_or(
                "the instruction is not `Please choose … question: …`, a blank line and `Answer1: …`",
            )?;
            let number = answer.trim().strip_prefix("answer");
            let number = number.and_then(|number| number.parse::<usize>().ok());
            (
                format!("{index:05}"),
                text,
                choices,
                number.and_then(|number| number.checked_sub(1)),
            )
        }
    };
    let choices: Vec<String> = choices
        .iter()
        .map(|choice: &String| choice.trim().to_owned())
        .collect();
    if text.trim().is_empty() || choices.iter().any(String::is_empty) {
        return Err("the question or an option is empty");
    }
    if choices.len() < 2 {
        return Err("there are fewer than two options");
    }
    let right = right.and_then(|right| choices.get(right));
    let answers = vec![right.ok_or("the answer is none of the options")?.clone()];
    Ok(Question {
        id,
        text: text.trim().to_owned(),
        answers,
        answerable: true,
        form: AnswerForm::Options(choices),
    })
}

/// Question and options of an instruction of LLM-Adapters.
fn adapters(instruction: &str) -> Option<(String, Vec<String>)> {
    let (_, rest) = instruction.split_once("question:")?;
    let (text, rest) = rest.split_once("\n\n")?;
    let options = rest.split("\n\n").next()?;
    let mut rest = options.trim().strip_prefix("Answer1:")?;
    let mut choices = Vec::new();
    for number in 2.. {
        let mark = format!(" Answer{number}:");
        let Some((choice, after)) = rest.split_once(&mark) else {
            choices.push(rest.to_owned());
            break;
        };
        choices.push(choice.to_owned());
        rest = after;
    }
    Some((text.to_owned(), choices))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(index: usize) -> String {
        format!(
            r#"{{"id": "q{index}", "question": {{"stem": "What is {index}?", "choices": [{{"text": "low {index}", "label": "A"}}, {{"text": "high {index}", "label": "B"}}]}}, "answerKey": "B"}}"#
        )
    }

    fn config(path: &Path) -> ChoiceConfig {
        ChoiceConfig {
            path: path.to_owned(),
            documents: None,
            questions_per_document: 3,
            shots: 2,
        }
    }

    #[test]
    fn both_formats_are_read() {
        let adapters = r#"[{"instruction": "Please choose the correct answer to the question: Why is\n the sky blue?\n\nAnswer1: It is wet. Answer2: Light scatters. Answer3: No one knows.\n\nAnswer format: answer1/answer2/answer3", "input": "", "output": "x", "answer": "answer2"}]"#;
        let found = questions(adapters.as_bytes(), Path::new("a")).unwrap();
        assert_eq!(found[0].text, "Why is\n the sky blue?");
        assert_eq!(
            found[0].options(),
            ["It is wet.", "Light scatters.", "No one knows."]
        );
        assert_eq!(found[0].answers, ["Light scatters."]);
        let lines = format!("{}\n\n{}\n", published(1), published(2));
        let found = questions(lines.as_bytes(), Path::new("a")).unwrap();
        assert_eq!(found[1].answers, ["high 2"]);
        assert_eq!((found[1].id.as_str(), found.len()), ("q2", 2));
    }

    #[test]
    fn no_question_is_an_example_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ARC-x.jsonl");
        let lines: Vec<String> = (0..12).map(published).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        let choice = Choice::load(&config(&path), None, 1).unwrap();
        assert_eq!(choice.licence(), "CC-BY-SA-4.0");
        // Two of the twelve are too few for a third context.
        assert_eq!(choice.documents().len(), 2);
        let mut seen = Vec::new();
        for document in choice.documents() {
            assert_eq!(document.questions.len(), 3);
            assert_eq!(document.text.matches("Question: ").count(), 2);
            for question in &document.questions {
                assert!(!document.text.contains(&question.text), "{}", question.text);
                seen.push(question.id.clone());
            }
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 6);
        let other = Choice::load(&config(&path), None, 2).unwrap();
        assert_ne!(other.documents(), choice.documents());
    }

    #[test]
    fn faults_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        for (text, part) in [
            ("{", "multiple-choice questions at line 1"),
            (&format!("{}\nnothing", published(1)), "at line 2"),
            (
                &published(1).replace("Key\": \"B\"", "Key\": \"C\""),
                "the answer is none of the options",
            ),
            (
                &published(1).replace("high 1", " "),
                "the question or an option is empty",
            ),
            (
                r#"[{"instruction": "What?", "answer": "answer1"}]"#,
                "the instruction is not",
            ),
            (
                &published(1),
                "it has 1 questions, and a context takes 2 as examples",
            ),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Choice::load(&config(&path), None, 1).unwrap_err();
            let error = error.to_string();
            assert!(error.contains(part), "{error}");
        }
        let none = ChoiceConfig {
            shots: 0,
            ..config(&path)
        };
        let error = Choice::load(&none, None, 1).unwrap_err().to_string();
        assert!(error.contains("shots = 0"), "{error}");
    }
}
