//! Self-study: documents cut from calibration text with questions that the cloud's model writes
//! about them (after Cartridges, arXiv 2506.06266), and questions of recall. They are what trained
//! maps and caches learn from; no evaluation asks them.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use celslm_datasets::{AnswerForm, Document, Prompt, Question, recall_questions};
use celslm_model::{BatchItem, KeyRetention, KvCache, KvPrefix, Sampler, Sampling};
use celslm_systems::LoadedModel;

use crate::calibration::{Calibration, titled};
use crate::fit::prefill;

/// What the cloud's model is asked for.
const REQUEST: &str = "Write 4 short questions that the document answers. After each question \
give its answer: a few words copied exactly from the document. Use this form:\nQ: question\nA: answer";
/// Tokens that it may write.
const MAX_TOKENS: usize = 160;
/// Longest answer that is kept, words.
const MAX_ANSWER_WORDS: usize = 12;
/// Contexts that are written about at a time.
const BATCH: usize = 8;
/// Questions of recall: words quoted, words asked for.
const RECALL: [(usize, usize); 2] = [(8, 6), (6, 32)];
/// Longest line of a file of lessons, bytes.
const MAX_LINE_BYTES: usize = 1 << 20;

/// Documents with questions: `contexts` pieces of the text, those of which the model wrote nothing
/// usable left out. `tell` hears of contexts done, and of all, and says whether to go on.
///
/// # Errors
/// Unusable text, failures of the model, a stop.
pub fn study(
    cloud: &LoadedModel,
    calibration: &Calibration,
    contexts: usize,
    mut each: impl FnMut(&Document) -> anyhow::Result<()>,
    mut tell: impl FnMut(usize, usize) -> bool,
) -> anyhow::Result<()> {
    let text = calibration.read()?;
    let pieces: Vec<String> = text.contexts().take(contexts).collect();
    if pieces.len() < contexts {
        bail!(
            "the text has {} contexts of {} words, {contexts} were asked for: give more text",
            pieces.len(),
            calibration.context_words
        );
    }
    for (batch, pieces) in pieces.chunks(BATCH).enumerate() {
        let mut documents: Vec<Document> = pieces.iter().map(|piece| titled(piece)).collect();
        for (index, (document, answer)) in
            documents.iter_mut().zip(write(cloud, pieces)?).enumerate()
        {
            let at = batch * BATCH + index;
            document.id = format!("study-{at:05}");
            document.questions = written(&answer, &document.text);
            document.questions.extend(recalled(&document.text, at));
            each(document)?;
        }
        if !tell((batch * BATCH + pieces.len()).min(contexts), contexts) {
            bail!("interrupted; what was written so far stays");
        }
    }
    Ok(())
}

/// What the model writes about each document, greedily.
fn write(cloud: &LoadedModel, pieces: &[String]) -> anyhow::Result<Vec<String>> {
    let mut caches = Vec::with_capacity(pieces.len());
    let mut next = Vec::with_capacity(pieces.len());
    let mut greedy = Sampler::new(Sampling::Greedy, 0);
    for piece in pieces {
        let system = Prompt::system(&titled(piece));
        let block = prefill(cloud, &cloud.context_tokens(&system)?)?;
        let prefix = Arc::new(KvPrefix::from_block(&block, cloud.decoder.rope())?);
        let request = cloud.private_tokens(&system, REQUEST)?;
        let mut cache = KvCache::new(
            cloud.decoder.kv_shape(),
            Some(prefix),
            request.len() + MAX_TOKENS,
            KeyRetention::RotatedOnly,
        )?;
        let mut item = [BatchItem {
            tokens: &request,
            cache: &mut cache,
            logits: true,
        }];
        let logits = cloud.decoder.forward_batch(&mut item)?.remove(0);
        next.push(logits.map(|logits| greedy.sample(&logits)));
        caches.push(cache);
    }
    let mut answers: Vec<Vec<u32>> = vec![Vec::new(); pieces.len()];
    loop {
        let (mut items, mut live) = (Vec::new(), Vec::new());
        let states = next.iter_mut().zip(&mut answers).zip(&mut caches);
        for (index, ((next, answer), cache)) in states.enumerate() {
            let Some(token) = next.filter(|token| !cloud.tokenizer.is_end(*token)) else {
                *next = None;
                continue;
            };
            answer.push(token);
            if answer.len() >= MAX_TOKENS {
                *next = None;
                continue;
            }
            live.push(index);
            items.push(BatchItem {
                tokens: next.as_slice(),
                cache,
                logits: true,
            });
        }
        if items.is_empty() {
            break;
        }
        let logits = cloud.decoder.forward_batch(&mut items)?;
        for (index, logits) in live.into_iter().zip(logits) {
            next[index] = logits.map(|logits| greedy.sample(&logits));
        }
    }
    let text = |answer: &Vec<u32>| Ok(cloud.tokenizer.decode(answer)?);
    answers.iter().map(text).collect()
}

/// The pairs of question and answer in what the model wrote whose answer stands in the document.
fn written(answer: &str, document: &str) -> Vec<Question> {
    let mut found: Vec<Question> = Vec::new();
    let mut asked: Option<&str> = None;
    for line in answer.lines().map(str::trim) {
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
    found
}

/// One question of recall of each kind, from another part of the text for every document.
fn recalled(text: &str, turn: usize) -> Vec<Question> {
    let kind = |(cue, span): (usize, usize)| {
        let mut all = recall_questions(text, cue, span);
        match all.len() {
            0 => None,
            some => Some(all.swap_remove(turn * 7 % some)),
        }
    };
    RECALL.into_iter().filter_map(kind).collect()
}

/// Appends a document to a file of lessons.
///
/// # Errors
/// A disk that refuses it.
pub fn append(file: &mut File, document: &Document) -> anyhow::Result<()> {
    let mut line = serde_json::to_string(document)?;
    line.push('\n');
    Ok(file.write_all(line.as_bytes())?)
}

/// Reads a file of lessons, JSON lines.
///
/// # Errors
/// A file that cannot be read or holds something else, with the line.
pub fn read(path: &Path) -> anyhow::Result<Vec<Document>> {
    let file = File::open(path).with_context(|| format!("read {}", path.display()))?;
    let mut documents = Vec::new();
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let at = || format!("{}, line {}", path.display(), index + 1);
        let line = line.with_context(at)?;
        if line.len() > MAX_LINE_BYTES {
            bail!("{}: longer than {MAX_LINE_BYTES} bytes", at());
        }
        documents.push(serde_json::from_str(&line).with_context(at)?);
    }
    if documents.is_empty() {
        bail!(
            "{} holds no lesson; `celslm align study` writes some",
            path.display()
        );
    }
    Ok(documents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_document_does_not_say_is_left_out() {
        let document = "The lamp turns amber when the tank is empty. Wait two minutes.";
        let answer = "Here:\nQ: When does it turn amber?\nA: when the tank is empty.\n\
            Q: How long to wait?\nA: three minutes\nQ: No answer\nQ: How long?\nA: two minutes\nA: two";
        let found: Vec<(String, String)> = written(answer, document)
            .into_iter()
            .map(|q| (q.text, q.answers[0].clone()))
            .collect();
        let pair = |q: &str, a: &str| (q.to_owned(), a.to_owned());
        assert_eq!(
            found,
            [
                pair("When does it turn amber?", "when the tank is empty"),
                pair("How long?", "two minutes")
            ]
        );
    }

    #[test]
    fn lessons_are_read_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l.jsonl");
        let text: Vec<String> = (0..60).map(|i| format!("w{i}")).collect();
        let mut document = titled(&text.join(" "));
        document.questions = recalled(&document.text, 3);
        assert_eq!(document.questions.len(), 2);
        append(&mut File::create(&path).unwrap(), &document).unwrap();
        assert_eq!(read(&path).unwrap(), [document]);
        std::fs::write(&path, "{}\n").unwrap();
        let error = format!("{:#}", read(&path).unwrap_err());
        assert!(error.contains("line 1"), "{error}");
        std::fs::write(&path, "").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("align study"));
    }
}
