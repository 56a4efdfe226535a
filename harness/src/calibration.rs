//! Calibration text: what artefacts are fitted on.
//!
//! Contexts are system messages cut from the text, of the kind that runs share, so that
//! positions and template tokens are those of real use; those of a codec artefact have the runs'
//! instruction too ([`as_document`]). Evaluation data never comes here.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use celslm_datasets::{Document, Framing, Prompt};

/// Most bytes of one calibration file.
const MAX_TEXT_BYTES: u64 = 1 << 30;

/// Which text a fit reads, and how it is cut.
#[derive(Debug, Clone)]
pub struct Calibration {
    /// Text files, or folders of `.txt` files.
    pub texts: Vec<PathBuf>,
    /// Tokens to use in all.
    pub tokens: usize,
    /// Words of one context.
    pub context_words: usize,
    /// Where in the texts the contexts start.
    pub seed: u64,
}

/// Text that was read for a fit.
#[derive(Debug)]
pub struct CalibrationText {
    /// BLAKE3 (hex) over all of it.
    pub hash: String,
    texts: Vec<String>,
    cut: Calibration,
}

impl Calibration {
    /// Reads the text.
    ///
    /// # Errors
    /// A path that cannot be read, or none that holds text.
    pub fn read(&self) -> anyhow::Result<CalibrationText> {
        let (texts, hash) = read_texts(&self.texts)?;
        Ok(CalibrationText {
            hash,
            texts,
            cut: self.clone(),
        })
    }
}

impl CalibrationText {
    /// Contexts in the order in which a fit uses them.
    pub fn contexts(&self) -> impl Iterator<Item = String> {
        contexts(&self.texts, self.cut.context_words, self.cut.seed)
    }

    /// Hands contexts to `use_one`, which says how many tokens each has, until there are enough.
    /// `tell` hears of progress (tokens used, tokens in all) and says whether to go on.
    ///
    /// # Errors
    /// What `use_one` says; a stop; text that is too short.
    pub fn feed(
        &self,
        mut use_one: impl FnMut(&str) -> anyhow::Result<usize>,
        mut tell: impl FnMut(usize, usize) -> bool,
    ) -> anyhow::Result<()> {
        let wanted = self.cut.tokens;
        let mut used = 0;
        for context in self.contexts() {
            if used >= wanted {
                break;
            }
            used += use_one(&context)?;
            if !tell(used, wanted) {
                bail!("interrupted; nothing was written");
            }
        }
        if used < wanted {
            bail!(
                "the text has {used} tokens, {wanted} were asked for: give more text or --tokens {used}"
            );
        }
        Ok(())
    }
}

/// A piece of text as the context that a run would make of it: behind the instruction and a title,
/// for which its first words stand. What all contexts begin with is then what it is in runs.
#[must_use]
pub fn as_document(piece: &str) -> String {
    Prompt::system(&titled(piece))
}

/// A piece of text as a document without questions.
#[must_use]
pub fn titled(piece: &str) -> Document {
    const TITLE_WORDS: usize = 3;
    let title: Vec<&str> = piece.split_whitespace().take(TITLE_WORDS).collect();
    Document {
        id: String::new(),
        title: title.join(" "),
        kind: "calibration".to_owned(),
        instruction: None,
        framing: Framing::default(),
        answer_tokens: None,
        text: piece.to_owned(),
        questions: Vec::new(),
    }
}

/// The texts in the order of their names, and BLAKE3 over all of them.
fn read_texts(paths: &[PathBuf]) -> anyhow::Result<(Vec<String>, String)> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            let entries =
                std::fs::read_dir(path).with_context(|| format!("read {}", path.display()))?;
            for entry in entries {
                let path = entry?.path();
                if path.extension().is_some_and(|extension| extension == "txt") {
                    files.push(path);
                }
            }
        } else {
            files.push(path.clone());
        }
    }
    files.sort();
    if files.is_empty() {
        bail!("no .txt file in {paths:?}");
    }
    let mut hasher = blake3::Hasher::new();
    let texts = files
        .iter()
        .map(|path| read_text(path, &mut hasher))
        .collect::<anyhow::Result<_>>()?;
    Ok((texts, hasher.finalize().to_hex().to_string()))
}

fn read_text(path: &Path, hasher: &mut blake3::Hasher) -> anyhow::Result<String> {
    let bytes = std::fs::metadata(path)
        .with_context(|| format!("read {}", path.display()))?
        .len();
    if bytes > MAX_TEXT_BYTES {
        bail!(
            "{} has {bytes} bytes: split it, {MAX_TEXT_BYTES} is the limit",
            path.display()
        );
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    hasher.update(text.as_bytes());
    Ok(text)
}

/// Contexts of `words` words, taken from the texts in turn, each text read on from a place that
/// the seed chooses, so that a fit on few tokens still sees every book.
fn contexts(texts: &[String], words: usize, seed: u64) -> impl Iterator<Item = String> {
    let mut pieces: Vec<std::vec::IntoIter<String>> = texts
        .iter()
        .map(|text| {
            let all: Vec<&str> = text.split_whitespace().collect();
            let mut pieces: Vec<String> = all
                .chunks_exact(words.max(1))
                .map(|piece| piece.join(" "))
                .collect();
            if !pieces.is_empty() {
                let start = (seed % pieces.len() as u64) as usize;
                pieces.rotate_left(start);
            }
            pieces.into_iter()
        })
        .collect();
    let mut turn = 0;
    std::iter::from_fn(move || {
        for _ in 0..pieces.len() {
            let index = turn % pieces.len();
            turn += 1;
            if let Some(piece) = pieces[index].next() {
                return Some(piece);
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_becomes_a_runs_context() {
        let context = as_document("Call me Ishmael. Some years ago");
        assert!(context.starts_with("You answer questions"), "{context}");
        assert!(context.ends_with("\n\n# Call me Ishmael.\n\nCall me Ishmael. Some years ago"));
    }

    #[test]
    fn contexts_take_turns_between_texts() {
        let texts = ["a b c d e f".to_owned(), "x y z".to_owned()];
        let found: Vec<String> = contexts(&texts, 2, 0).collect();
        assert_eq!(found, ["a b", "x y", "c d", "e f"]);
        let found: Vec<String> = contexts(&texts, 2, 1).collect();
        assert_eq!(found, ["c d", "x y", "e f", "a b"]);
    }
}
