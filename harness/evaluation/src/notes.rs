//! What the cloud's model writes about a context for the edge, before anything is asked.

use std::collections::BTreeSet;
use std::sync::Arc;

use celslm_datasets::{Document, Framing};
use celslm_model::KvPrefix;

use crate::answering::write;
use crate::{Case, EvaluationError, Evaluator, framing};

/// What the model is asked to write. Both are written in one batch, each with half of the tokens.
const ASKED: [&str; 2] = [
    "Write down the facts of this document that someone may ask about, each in one short line: \
     names, numbers, dates, places, causes. Write nothing else.",
    "Write questions that someone may ask about this document, each in one line with its short \
     answer behind it. Write nothing else.",
];

/// The cloud model's notes of a context: facts, and likely questions with short answers. They come
/// of the context alone and know none of its questions, and have so many tokens at most.
pub(crate) fn written(
    evaluator: &Evaluator<'_>,
    case: &Case<'_>,
    notes_tokens: usize,
) -> Result<String, EvaluationError> {
    let cloud = evaluator.cloud()?;
    let (_, block) = case.source(evaluator)?;
    let prefix = Arc::new(KvPrefix::from_block(block, cloud.decoder.rope())?);
    let said = ASKED
        .iter()
        .map(|asked| {
            Ok((
                &prefix,
                framing::said_tokens(cloud, case.document(), asked)?,
            ))
        })
        .collect::<Result<Vec<_>, EvaluationError>>()?;
    let each = notes_tokens.div_ceil(ASKED.len());
    let parts = write(cloud, &said, each)?;
    let parts: Vec<String> = parts
        .iter()
        .map(|(text, ended)| tidied(text, *ended))
        .filter(|part| !part.is_empty())
        .collect();
    Ok(parts.join("\n\n"))
}

/// Lines that say something, each once; the last one of many is left out where it was cut off.
fn tidied(text: &str, ended: bool) -> String {
    let mut seen = BTreeSet::new();
    let mut lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    if !ended && lines.len() > 1 {
        lines.pop();
    }
    lines.retain(|line| !line.trim().is_empty() && seen.insert(*line));
    lines.join("\n")
}

/// A document of nothing but notes.
pub(crate) fn instead_of(document: &Document, notes: &str) -> Document {
    with_text(document, notes.to_owned())
}

/// A document with notes behind its text. Where other text is to follow without a break, they stand
/// before it.
pub(crate) fn beside(document: &Document, notes: &str) -> Document {
    let text = document.text.trim();
    let text = match document.framing {
        Framing::Message => format!("{text}\n\n# Notes\n\n{notes}"),
        Framing::Open => format!("{notes}\n\n{}", document.text),
    };
    with_text(document, text)
}

fn with_text(document: &Document, text: String) -> Document {
    Document {
        id: document.id.clone(),
        title: document.title.clone(),
        kind: document.kind.clone(),
        instruction: document.instruction.clone(),
        framing: document.framing,
        answer_tokens: document.answer_tokens,
        text,
        questions: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_and_stand_once() {
        let text = "- a lamp \n\n- a lamp\n- a horn\n- a lam";
        assert_eq!(tidied(text, true), "- a lamp\n- a horn\n- a lam");
        assert_eq!(tidied(text, false), "- a lamp\n- a horn");
        assert_eq!(
            tidied("one line that was cu", false),
            "one line that was cu"
        );
        assert_eq!(tidied(" \n", true), "");
    }
}
