//! GSM8K: word problems whose answer is a number, behind solved examples.
//!
//! The shared context is a few problems with their solutions, drawn from the set itself and not
//! asked about; each private question is another problem. The model writes its own solution, of
//! which the final number is compared with the gold one ([`same_number`](crate::same_number)). The
//! gold answer is the whole solution and not its number alone: that a number follows a question at
//! once is what neither the examples nor a model that reasons in steps leads to, so that its
//! likelihood would tell how much the form is missed and little of the problem.
//!
//! JSON lines with `question` and `answer` are read, as OpenAI publishes them. Calculator notes
//! (`<<48/2=24>>`) are left out of examples and gold solutions.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::document::{AnswerForm, Document, Question};
use crate::draw::draw;
use crate::error::DatasetError;
use crate::examples::Dealt;
use crate::rank;
use crate::registry::Dataset;
use crate::scorer::{NUMBER_MARK, final_number};
use crate::source;

/// First line of the context.
const INSTRUCTION: &str = "You solve problems step by step, as in the examples below. The last line is #### and the number that is asked for.";

const LICENCE: &str = "MIT";
const HOME: &str = "https://github.com/openai/grade-school-math";

/// Most tokens that `answer_tokens` may ask for.
const MAX_ANSWER_TOKENS: usize = 1024;

/// Which file to read, and how contexts are made of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gsm8kConfig {
    /// The file; a relative path starts at the data folder.
    pub path: PathBuf,
    /// Contexts to draw; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub documents: Option<usize>,
    /// Problems asked behind each context.
    #[serde(default = "questions_per_document")]
    pub questions_per_document: usize,
    /// Solved examples that a context consists of.
    #[serde(default = "shots")]
    pub shots: usize,
    /// Tokens that a solution may take.
    #[serde(default = "answer_tokens")]
    pub answer_tokens: usize,
}

const fn questions_per_document() -> usize {
    10
}

const fn shots() -> usize {
    8
}

const fn answer_tokens() -> usize {
    256
}

/// Word problems, drawn.
#[derive(Debug, Clone)]
pub struct Gsm8k {
    hash: String,
    documents: Vec<Document>,
}

impl Gsm8k {
    /// Reads the file and draws from it; see [`load`](crate::load). Problems are dealt out in an
    /// order that the seed decides: to each context its examples, then what it is asked. None is
    /// used twice.
    ///
    /// # Errors
    /// A missing folder or file, a malformed file with its line, settings that leave no question
    /// or go beyond 1024 tokens, and an impossible draw.
    pub fn load(
        config: &Gsm8kConfig,
        data_dir: Option<&Path>,
        seed: u64,
    ) -> Result<Self, DatasetError> {
        if !(1..=MAX_ANSWER_TOKENS).contains(&config.answer_tokens) {
            return Err(DatasetError::Setting {
                setting: "answer_tokens",
                value: config.answer_tokens.to_string(),
                reason: "a solution takes 1 to 1024 tokens",
            });
        }
        let path = source::resolve(&config.path, data_dir, HOME)?;
        let dealt = Dealt {
            stem: &source::stem(&config.path),
            instruction: INSTRUCTION,
            shots: config.shots,
            questions_per_document: config.questions_per_document,
            answer_tokens: Some(config.answer_tokens),
            path: path.clone(),
        };
        dealt.check()?;
        let bytes = source::read(&path, HOME)?;
        let problems = rank::draw(problems(&bytes, &path)?, None, |problem| {
            rank::hash(seed, &["gsm8k", &problem.id])
        });
        let documents = dealt.documents(&problems)?;
        Ok(Self {
            hash: blake3::hash(&bytes).to_hex().to_string(),
            documents: draw("gsm8k", documents, config.documents, None, true, seed)?,
        })
    }
}

impl Dataset for Gsm8k {
    fn name(&self) -> &'static str {
        "gsm8k"
    }

    fn licence(&self) -> &'static str {
        LICENCE
    }

    fn source(&self) -> &'static str {
        HOME
    }

    fn hash(&self) -> &str {
        &self.hash
    }

    fn documents(&self) -> &[Document] {
        &self.documents
    }
}

/// A line; a field that is not named is another version's and not looked at.
#[derive(Deserialize)]
struct Line {
    question: String,
    answer: String,
}

fn problems(bytes: &[u8], path: &Path) -> Result<Vec<Question>, DatasetError> {
    let mut problems = Vec::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let line: Line = serde_json::from_slice(line).map_err(|source| DatasetError::Json {
            path: path.to_owned(),
            format: "a problem of GSM8K",
            line: index + source.line(),
            column: source.column(),
            source,
        })?;
        let problem = problem(index, &line).map_err(|reason| DatasetError::Line {
            path: path.to_owned(),
            line: index + 1,
            reason: reason.to_owned(),
        })?;
        problems.push(problem);
    }
    Ok(problems)
}

fn problem(index: usize, line: &Line) -> Result<Question, &'static str> {
    let text = line.question.trim();
    if text.is_empty() {
        return Err("the question is empty");
    }
    let solution = without_notes(line.answer.trim()).ok_or("a `<<` is not ended by `>>`")?;
    let (_, number) = solution
        .split_once(NUMBER_MARK)
        .ok_or("the answer has no `####`, behind which its number would stand")?;
    if final_number(number).is_none() {
        return Err("no number follows `####`");
    }
    Ok(Question {
        id: format!("{index:05}"),
        text: text.to_owned(),
        answers: vec![solution],
        answerable: true,
        form: AnswerForm::Solution,
    })
}

/// A solution without its calculator notes; `None` where one does not end.
fn without_notes(solution: &str) -> Option<String> {
    let mut parts = solution.split("<<");
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        kept.push_str(part.split_once(">>")?.1);
    }
    Some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(index: usize) -> String {
        format!(
            r#"{{"question": "What is {index} and 2?", "answer": "It is <<{index}+2={sum}>>{sum}.\n#### {sum}"}}"#,
            sum = index + 2
        )
    }

    fn config(path: &Path) -> Gsm8kConfig {
        Gsm8kConfig {
            path: path.to_owned(),
            documents: None,
            questions_per_document: 3,
            shots: 2,
            answer_tokens: 100,
        }
    }

    #[test]
    fn no_problem_is_an_example_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gsm8k.test.jsonl");
        let lines: Vec<String> = (0..12).map(line).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        let set = Gsm8k::load(&config(&path), None, 1).unwrap();
        assert_eq!(set.documents().len(), 2, "two of twelve are too few");
        let mut seen = Vec::new();
        for document in set.documents() {
            assert_eq!(document.answer_tokens, Some(100));
            assert_eq!(document.text.matches("Question: ").count(), 2);
            assert_eq!(document.text.matches("#### ").count(), 2);
            assert!(!document.text.contains("<<"), "{}", document.text);
            assert_eq!(document.questions.len(), 3);
            for question in &document.questions {
                assert!(!document.text.contains(&question.text), "{}", question.text);
                assert_eq!(question.form, AnswerForm::Solution);
                let sum: usize = question.id.parse::<usize>().unwrap() + 2;
                assert_eq!(question.answers, [format!("It is {sum}.\n#### {sum}")]);
                seen.push(question.id.clone());
            }
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 6);
        assert_ne!(
            Gsm8k::load(&config(&path), None, 2).unwrap().documents(),
            set.documents()
        );
    }

    #[test]
    fn faults_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        for (text, part) in [
            (format!("{}\n{{", line(1)), "at line 2"),
            (line(1).replace("####", "###"), "line 1: the answer has no"),
            (line(1).replace("#### 3", "#### none"), "no number follows"),
            (line(1).replace(">>", ">"), "is not ended"),
            (line(1).replace("What is 1 and 2?", " "), "is empty"),
            (
                line(1),
                "it has 1 questions, and a context takes 2 as examples",
            ),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Gsm8k::load(&config(&path), None, 1).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
        for answer_tokens in [0, 1025] {
            let wrong = Gsm8kConfig {
                answer_tokens,
                ..config(&path)
            };
            let error = Gsm8k::load(&wrong, None, 1).unwrap_err().to_string();
            assert!(error.contains("1 to 1024 tokens"), "{error}");
        }
        let none = Gsm8kConfig {
            shots: 0,
            ..config(&path)
        };
        let error = Gsm8k::load(&none, None, 1).unwrap_err().to_string();
        assert!(error.contains("shots = 0"), "{error}");
    }
}
