//! Self-study: documents cut from calibration text with questions that the cloud's model writes
//! about them (after Cartridges, arXiv 2506.06266), and questions of recall. They are what trained
//! maps and caches learn from; no evaluation asks them.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use celslm_datasets::{Document, Prompt, Question, recall_questions};
use celslm_evaluation::study;
use celslm_model::KvPrefix;
use celslm_systems::LoadedModel;

use crate::calibration::{Calibration, titled};
use crate::fit::prefill;

/// Contexts that are written about at a time.
const BATCH: usize = 8;
/// Questions of recall: words quoted, words asked for.
const RECALL: [(usize, usize); 2] = [(8, 6), (6, 32)];
/// Questions about other documents.
const FOREIGN: usize = 2;
/// Longest line of a file of lessons, bytes.
const MAX_LINE_BYTES: usize = 1 << 20;

/// Documents with questions: `contexts` pieces of the text, of which the first are `done` already.
/// `tell` hears of contexts done, and of all, and says whether to go on.
///
/// # Errors
/// Unusable text, documents of other text, failures of the model, a stop.
pub fn study(
    cloud: &LoadedModel,
    calibration: &Calibration,
    (contexts, requests): (usize, usize),
    done: &[Document],
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
    if let Some((known, _)) = done
        .iter()
        .zip(&pieces)
        .find(|(known, piece)| known.text != **piece)
    {
        bail!(
            "{} is of other text, or was cut otherwise; write to another file",
            known.id
        );
    }
    let done = done.len().min(pieces.len());
    for (batch, pieces) in pieces[done..].chunks(BATCH).enumerate() {
        let first = done + batch * BATCH;
        let mut documents: Vec<Document> = pieces.iter().map(|piece| titled(piece)).collect();
        let asked = asked_about(cloud, &documents, requests)?;
        for (index, document) in documents.iter_mut().enumerate() {
            let at = first + index;
            document.id = format!("study-{at:05}");
            document.questions.clone_from(&asked[index]);
            document.questions.extend(recalled(&document.text, at));
            let (before, rest) = (&asked[..index], &asked[index..]);
            let others = rest[1..].iter().chain(before).flatten();
            document.questions.extend(foreign(others));
            each(document)?;
        }
        if !tell(first + pieces.len(), contexts) {
            bail!("interrupted; the same command goes on behind what was written");
        }
    }
    Ok(())
}

/// What the model asks about each document.
fn asked_about(
    cloud: &LoadedModel,
    documents: &[Document],
    requests: usize,
) -> anyhow::Result<Vec<Vec<Question>>> {
    let mut contexts = Vec::with_capacity(documents.len());
    for document in documents {
        let tokens = cloud.context_tokens(&Prompt::system(document))?;
        let block = prefill(cloud, &tokens)?;
        let prefix = KvPrefix::from_block(&block, cloud.decoder.rope())?;
        contexts.push((Arc::new(prefix), document));
    }
    Ok(study::questions(cloud, &contexts, |_| {
        study::about_all(requests)
    })?)
}

/// Questions about other documents, which this one does not answer: without them, whatever is learnt
/// learns that every question has an answer.
fn foreign<'a>(others: impl Iterator<Item = &'a Question>) -> impl Iterator<Item = Question> {
    others
        .take(FOREIGN)
        .enumerate()
        .map(|(index, other)| Question {
            id: format!("foreign-{index}"),
            answers: Vec::new(),
            answerable: false,
            ..other.clone()
        })
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
