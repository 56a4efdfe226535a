//! Contexts of solved examples, and what is asked behind them.

use std::path::PathBuf;

use crate::document::{Document, Question};
use crate::error::DatasetError;

/// How questions are dealt out to contexts.
pub(crate) struct Dealt<'a> {
    /// Stem of the documents' ids.
    pub(crate) stem: &'a str,
    /// First line of the context.
    pub(crate) instruction: &'a str,
    /// Solved examples of a context.
    pub(crate) shots: usize,
    /// Questions asked behind them.
    pub(crate) questions_per_document: usize,
    /// Tokens that an answer may take.
    pub(crate) answer_tokens: Option<usize>,
    /// The file, for errors.
    pub(crate) path: PathBuf,
}

impl Dealt<'_> {
    /// Refuses settings that leave nothing to ask.
    pub(crate) fn check(&self) -> Result<(), DatasetError> {
        for (setting, value) in [
            ("questions_per_document", self.questions_per_document),
            ("shots", self.shots),
        ] {
            if value == 0 {
                return Err(DatasetError::Zero { setting });
            }
        }
        Ok(())
    }

    /// Deals questions out in their order: to each context its examples, then what it is asked.
    /// None is used twice.
    pub(crate) fn documents(&self, questions: &[Question]) -> Result<Vec<Document>, DatasetError> {
        let shots = self.shots;
        if questions.len() <= shots {
            return Err(DatasetError::Format {
                path: self.path.clone(),
                at: "the file".to_owned(),
                reason: format!(
                    "it has {} questions, and a context takes {shots} as examples; lower `shots`",
                    questions.len()
                ),
            });
        }
        Ok(questions
            .chunks(shots.saturating_add(self.questions_per_document))
            .filter(|chunk| chunk.len() > shots)
            .enumerate()
            .map(|(index, chunk)| self.document(index, chunk))
            .collect())
    }

    fn document(&self, index: usize, chunk: &[Question]) -> Document {
        let (examples, asked) = chunk.split_at(self.shots);
        let example = |question: &Question| {
            let answer = question.answers.first().map_or("", String::as_str);
            format!("Question: {}\nAnswer: {answer}", question.text)
        };
        let examples: Vec<String> = examples.iter().map(example).collect();
        Document {
            id: format!("{}-{index:03}", self.stem),
            title: "Examples".to_owned(),
            kind: "solved examples".to_owned(),
            instruction: Some(self.instruction.to_owned()),
            framing: crate::Framing::Message,
            answer_tokens: self.answer_tokens,
            text: examples.join("\n\n"),
            questions: asked.to_vec(),
        }
    }
}
