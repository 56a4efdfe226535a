//! Self-study (Cartridges, arXiv 2506.06266): questions that the cloud's model writes about a
//! context by itself, for whatever is trained or tuned before anything is asked.

use std::sync::Arc;

use celslm_datasets::{AnswerForm, Document, Prompt, Question};
use celslm_model::{KvPrefix, LoadedModel};

use crate::answering::write;
use crate::{EvaluationError, framing};

/// Longest answer that is kept, words.
const MAX_ANSWER_WORDS: usize = 12;

/// What the model is asked for of any document: one round of questions after another, about different
/// things.
pub const REQUESTS: [&str; 6] = [
    "Write 4 short questions that the document answers. After each question give its answer: a few \
     words copied exactly from the document. Use this form:\nQ: question\nA: answer",
    "Write 4 short questions about names of people, places and things in the document. After each \
     question give its answer: a few words copied exactly from the document. Use this form:\n\
     Q: question\nA: answer",
    "Write 4 short questions about numbers, dates and amounts in the document. After each question \
     give its answer: a few words copied exactly from the document. Use this form:\nQ: question\n\
     A: answer",
    "Write 4 short questions about the end of the document. After each question give its answer: a \
     few words copied exactly from the document. Use this form:\nQ: question\nA: answer",
    "Write 4 short questions about causes, reasons and purposes in the document. After each question \
     give its answer: a few words copied exactly from the document. Use this form:\nQ: question\n\
     A: answer",
    "Write 4 short questions about the beginning of the document. After each question give its \
     answer: a few words copied exactly from the document. Use this form:\nQ: question\nA: answer",
];

/// Words of a passage that is asked about by itself, and those that name it.
const PASSAGE_WORDS: (usize, usize) = (60, 8);

/// The first `count` requests of [`REQUESTS`], at least one.
#[must_use]
pub fn about_all(count: usize) -> Vec<String> {
    let requests = &REQUESTS[..count.clamp(1, REQUESTS.len())];
    requests
        .iter()
        .map(|request| (*request).to_owned())
        .collect()
}

/// Requests about one passage of a document after another.
#[must_use]
pub fn about_passages(document: &Document) -> Vec<String> {
    let words: Vec<&str> = document.text.split_whitespace().collect();
    let (passage, name) = PASSAGE_WORDS;
    let passages = words.chunks(passage).filter(|words| words.len() > name);
    passages
        .map(|words| {
            format!(
                "Write 4 short questions about the part of the document that begins with \"{}\". \
                 After each question give its answer: a few words copied exactly from the document. \
                 Use this form:\nQ: question\nA: answer",
                words[..name].join(" ")
            )
        })
        .collect()
}

/// Tokens that the model may write at a request.
const MAX_TOKENS: usize = 160;

/// Questions about some contexts, each with the model's KV of it and answered by a span of its text:
/// what the model writes, greedily, at the requests about its document.
///
/// # Errors
/// Failures of the model.
pub fn questions(
    model: &LoadedModel,
    contexts: &[(Arc<KvPrefix>, &Document)],
    requests: impl Fn(&Document) -> Vec<String>,
) -> Result<Vec<Vec<Question>>, EvaluationError> {
    let mut said = Vec::new();
    let mut counts = Vec::with_capacity(contexts.len());
    for (prefix, document) in contexts {
        let before = said.len();
        for request in requests(document) {
            said.push((prefix, framing::said_tokens(model, document, &request)?));
        }
        counts.push(said.len() - before);
    }
    let texts = write(model, &said, MAX_TOKENS)?;
    let mut texts = texts.iter();
    let asked = contexts.iter().zip(counts).map(|((_, document), count)| {
        let mut found = Vec::new();
        for (text, _) in texts.by_ref().take(count) {
            collect(text, &document.text, &mut found);
        }
        found
    });
    Ok(asked.collect())
}

/// The pairs of question and answer in what the model wrote whose answer stands in the document,
/// each question once.
fn collect(written: &str, document: &str, found: &mut Vec<Question>) {
    let mut asked: Option<&str> = None;
    for line in written.lines().map(str::trim) {
        if let Some(question) = line.strip_prefix("Q:") {
            asked = Some(question.trim());
        } else if let (Some(span), Some(question)) = (line.strip_prefix("A:"), asked.take()) {
            let span = span.trim().trim_end_matches('.');
            let words = span.split_whitespace().count();
            let fits = !question.is_empty() && (1..=MAX_ANSWER_WORDS).contains(&words);
            let twice = found.iter().any(|known| known.text == question);
            if fits && !twice && document.contains(span) {
                found.push(Question {
                    id: format!("written-{}", found.len()),
                    text: question.to_owned(),
                    answers: vec![span.to_owned()],
                    answerable: true,
                    form: AnswerForm::default(),
                });
            }
        }
    }
}

/// Tokens of a question's prompt behind the context of a document, in any model that shares the
/// tokenizer.
pub(crate) fn prompt_tokens(
    model: &LoadedModel,
    document: &Document,
    question: &Question,
) -> Result<Vec<u32>, EvaluationError> {
    framing::said_tokens(model, document, &Prompt::new(document, question).user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_document_does_not_say_is_left_out() {
        let document = "The lamp turns amber when the tank is empty. Wait two minutes.";
        let answer = "Here:\nQ: When does it turn amber?\nA: when the tank is empty.\n\
            Q: How long to wait?\nA: three minutes\nQ: No answer\nQ: How long?\nA: two minutes\nA: two";
        let mut found = Vec::new();
        collect(answer, document, &mut found);
        collect("Q: How long?\nA: two", document, &mut found);
        let found: Vec<(&str, &str)> = found
            .iter()
            .map(|q| (q.text.as_str(), q.answers[0].as_str()))
            .collect();
        assert_eq!(
            found,
            [
                ("When does it turn amber?", "when the tank is empty"),
                ("How long?", "two minutes")
            ]
        );
    }

    /// Each passage is named by the words that it begins with; what is left at the end is one if there is
    /// more of it than that.
    #[test]
    fn every_passage_is_asked_about() {
        let mut document = Document {
            id: "d".to_owned(),
            title: String::new(),
            kind: String::new(),
            instruction: None,
            framing: celslm_datasets::Framing::Message,
            answer_tokens: None,
            text: (0..129).map(|at| format!("w{at} ")).collect(),
            questions: Vec::new(),
        };
        let requests = about_passages(&document);
        assert_eq!(requests.len(), 3);
        assert!(requests[0].contains("\"w0 w1 w2 w3 w4 w5 w6 w7\""));
        assert!(requests[2].contains("\"w120 w121"));
        document.text.truncate(document.text.len() - "w128 ".len());
        assert_eq!(about_passages(&document).len(), 2);
    }
}
