//! Documents and questions in a model's tokens: where a context ends, and what follows it.

use celslm_datasets::{AnswerForm, Document, Framing, Prompt, Question};
use celslm_kv::align::TokenSpans;
use celslm_model::LoadedModel;

use crate::EvaluationError;

/// Tokens of a context whose shared part is `system`.
pub(crate) fn context_tokens(
    model: &LoadedModel,
    framing: Framing,
    system: &str,
) -> Result<Vec<u32>, EvaluationError> {
    Ok(match framing {
        Framing::Message => model.context_tokens(system)?,
        Framing::Open => model
            .tokenizer
            .encode(&model.template.placed(system)?.open().rendered)?,
    })
}

/// Tokens of a document's context.
pub(crate) fn document_tokens(
    model: &LoadedModel,
    document: &Document,
) -> Result<Vec<u32>, EvaluationError> {
    context_tokens(model, document.framing, &Prompt::system(document))
}

/// The same with what each of them covers.
pub(crate) fn document_spans(
    model: &LoadedModel,
    document: &Document,
) -> Result<TokenSpans, EvaluationError> {
    let placed = model.template.placed(&Prompt::system(document))?;
    Ok(model.spans(match document.framing {
        Framing::Message => placed,
        Framing::Open => placed.open(),
    })?)
}

/// Tokens that follow the context when `user` is said to the model, up to where its answer begins.
/// A system message that was left open is ended first.
pub(crate) fn said_tokens(
    model: &LoadedModel,
    document: &Document,
    user: &str,
) -> Result<Vec<u32>, EvaluationError> {
    let system = Prompt::system(document);
    let prompt = model.template.split(&system, user)?;
    Ok(match document.framing {
        Framing::Message => model.tokenizer.encode(&prompt.private)?,
        Framing::Open => {
            let placed = model.template.placed(&system)?;
            let end = &placed.rendered[placed.text.end..];
            model
                .tokenizer
                .encode(&format!("{end}{}", prompt.private))?
        }
    })
}

/// Tokens of a question's prompt behind the context, and of its gold answer, at least one of each.
pub(crate) fn asked_tokens(
    model: &LoadedModel,
    document: &Document,
    question: &Question,
) -> Result<(Vec<u32>, Vec<u32>), EvaluationError> {
    let gold = question.gold();
    let gold = gold.first().map(String::as_str).unwrap_or_default();
    let short = |what: &str| {
        EvaluationError::Arm(format!(
            "question {} of {} has {what}",
            question.id, document.id
        ))
    };
    if document.framing == Framing::Open || question.form == AnswerForm::Continuation {
        if document.framing != Framing::Open || question.form != AnswerForm::Continuation {
            return Err(short(
                "no continuation of an open context: the one goes with the other",
            ));
        }
        // Every character counts, and a prompt must not be empty: the first token is given.
        let mut first = model.tokenizer.encode(gold)?;
        if first.len() < 2 {
            return Err(short("fewer than two tokens that continue its context"));
        }
        let rest = first.split_off(1);
        return Ok((first, rest));
    }
    let prompt = Prompt::new(document, question);
    let gold = model.tokenizer.encode(gold.trim())?;
    if gold.is_empty() {
        return Err(short("an empty answer"));
    }
    Ok((model.private_tokens(&prompt.system, &prompt.user)?, gold))
}
