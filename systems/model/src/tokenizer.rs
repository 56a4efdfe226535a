//! The tokenizer inside a GGUF file.

use crate::{GgufFile, ModelError};
use candle_core::quantized::tokenizer::TokenizerFromGguf as _;
use std::ops::Range;
use std::path::PathBuf;

/// Tokens that end an assistant's turn in the supported families, besides the declared one.
const END_OF_TURN: [&str; 3] = ["<|im_end|>", "<|endoftext|>", "<|eot_id|>"];

/// Text to token ids and back.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    end_ids: Vec<u32>,
    path: PathBuf,
}

impl Tokenizer {
    /// Builds the tokenizer from the file's vocabulary, merges and pre-tokenizer name.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] when the file has none of a supported kind.
    pub fn load(gguf: &GgufFile) -> Result<Self, ModelError> {
        let path = gguf.path().to_owned();
        let mut inner = tokenizers::Tokenizer::from_gguf(gguf.content()).map_err(|error| {
            ModelError::Tokenizer {
                path: path.clone(),
                reason: error.to_string(),
            }
        })?;
        pre_tokenizer::amend(&mut inner, gguf).map_err(|reason| ModelError::Tokenizer {
            path: path.clone(),
            reason,
        })?;
        let mut end_ids: Vec<u32> = END_OF_TURN
            .iter()
            .filter_map(|token| inner.token_to_id(token))
            .collect();
        if let Some(id) = gguf.optional_usize("tokenizer.ggml.eos_token_id")?
            && let Ok(id) = u32::try_from(id)
            && !end_ids.contains(&id)
        {
            end_ids.push(id);
        }
        Ok(Self {
            inner,
            end_ids,
            path,
        })
    }

    /// BLAKE3 of the tokenizer's whole definition, in hex.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] when it cannot be written out.
    pub fn hash(&self) -> Result<String, ModelError> {
        let definition = self
            .inner
            .to_string(false)
            .map_err(|error| self.error(&error))?;
        Ok(blake3::hash(definition.as_bytes()).to_hex().to_string())
    }

    /// Token ids of a text; special tokens in it are recognised, none are added.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] when the tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|error| self.error(&error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// As [`Self::encode`], with the bytes of the text that each token covers. Each begins where
    /// the one before it ends, so that a space before a word belongs to the word's token, and a
    /// character whose bytes are in several tokens is cut where they are.
    ///
    /// The tokenizer works on a normalised text in some families. A character that normalising
    /// composes of several is one token's as far as the tokenizer says so, and the rest of it the
    /// next one's.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_spans(&self, text: &str) -> Result<(Vec<u32>, Vec<Range<usize>>), ModelError> {
        let encoding = self
            .inner
            .encode(text, false)
            .map_err(|error| self.error(&error))?;
        let (offsets, spelled) = (encoding.get_offsets(), encoding.get_tokens());
        let mut at = 0;
        let spans = offsets.iter().enumerate().map(|(index, (_, end))| {
            let start = at;
            // The tokenizer counts a whole character to every token that has some of its bytes.
            // Spelled, a token has one character for each byte.
            let shared = offsets.get(index + 1).is_some_and(|next| next.0 < *end);
            at = match shared {
                true => (start + spelled[index].chars().count()).min(*end),
                false => *end,
            };
            at = at.max(start);
            start..at
        });
        let spans = spans.collect();
        Ok((encoding.get_ids().to_vec(), spans))
    }

    /// The text of token ids, without special tokens.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] for ids outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        self.inner
            .decode(ids, true)
            .map_err(|error| self.error(&error))
    }

    /// Whether a token ends the assistant's turn.
    pub fn is_end(&self, id: u32) -> bool {
        self.end_ids.contains(&id)
    }

    fn error(&self, error: &tokenizers::Error) -> ModelError {
        ModelError::Tokenizer {
            path: self.path.clone(),
            reason: error.to_string(),
        }
    }
}

/// Pre-tokenizers that the GGUF loader does not know by name.
mod pre_tokenizer {
    use crate::GgufFile;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;
    use tokenizers::pre_tokenizers::digits::Digits;
    use tokenizers::pre_tokenizers::sequence::Sequence;

    /// SmolLM splits every digit before the GPT-2 pattern; the loader falls back to plain GPT-2,
    /// with a space put before the text, which SmolLM does not do.
    pub(super) fn amend(
        tokenizer: &mut tokenizers::Tokenizer,
        gguf: &GgufFile,
    ) -> Result<(), String> {
        if gguf
            .string("tokenizer.ggml.pre")
            .is_ok_and(|pre| pre == "smollm")
        {
            tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
                Digits::new(true).into(),
                ByteLevel::new(false, true, true).into(),
            ])));
        }
        Ok(())
    }
}

/// Turns a growing list of ids into text pieces, holding back incomplete characters.
///
/// A token costs the same however long the text is: only ids since the piece before the last are
/// decoded, which is as far back as a decoder's rules for the start of a text reach.
#[derive(Default)]
pub struct TextStream {
    ids: Vec<u32>,
    /// Ids before here are decoded no more; the text of those up to `emitted` is out.
    start: usize,
    emitted: usize,
}

impl TextStream {
    /// Adds an id and returns the text that became final with it, possibly empty.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String, ModelError> {
        self.ids.push(id);
        let before = tokenizer.decode(&self.ids[self.start..self.emitted])?;
        let text = tokenizer.decode(&self.ids[self.start..])?;
        if text.ends_with(char::REPLACEMENT_CHARACTER) || text.len() <= before.len() {
            return Ok(String::new());
        }
        let piece = text.get(before.len()..).unwrap_or_default().to_owned();
        self.start = self.emitted;
        self.emitted = self.ids.len();
        Ok(piece)
    }

    /// The ids so far.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::SyntheticModel;

    /// A tokenizer of single bytes and these merges, with or without the trimming of offsets.
    fn tokenizer(merges: &[(&str, &str)], trimmed: bool) -> Tokenizer {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let model = SyntheticModel {
            architecture: "qwen2",
            num_layers: 1,
            num_heads: 1,
            num_kv_heads: 1,
            head_dim: 4,
            quantised: false,
            seed: 1,
        };
        model.write_with_merges(&path, merges).unwrap();
        let mut tokenizer = Tokenizer::load(&GgufFile::open(&path).unwrap()).unwrap();
        if trimmed {
            // As the loader makes it for models whose pre-tokenizer it does not know, SmolLM's too.
            let trimming = tokenizers::processors::byte_level::ByteLevel::default();
            tokenizer.inner.with_post_processor(Some(trimming));
        }
        tokenizer
    }

    fn spans(tokenizer: &Tokenizer, text: &str) -> Vec<Range<usize>> {
        let (ids, spans) = tokenizer.encode_spans(text).unwrap();
        assert_eq!(ids, tokenizer.encode(text).unwrap(), "{text:?}");
        assert_eq!(ids.len(), spans.len());
        let end = spans.iter().fold(0, |at, span| {
            assert_eq!(span.start, at, "{text:?}");
            span.end
        });
        assert_eq!(end, text.len(), "{text:?}");
        spans
    }

    #[test]
    fn spans_are_the_bytes_of_the_tokens() {
        for trimmed in [false, true] {
            let bytes = tokenizer(&[], trimmed);
            for text in ["a word", "é中🦀 ", "\n\n  x"] {
                let all: Vec<Range<usize>> = (0..text.len()).map(|at| at..at + 1).collect();
                assert_eq!(spans(&bytes, text), all);
            }
            // A turn's marker is one token, wherever it stands.
            let marked = "<|im_start|>é<|im_end|>\n";
            let expected = [0..12, 12..13, 13..14, 14..24, 24..25];
            assert_eq!(spans(&bytes, marked), expected);
            // " w", and the first two of the three bytes of 中: e4 b8 ad.
            let merged = tokenizer(&[("Ġ", "w"), ("ä", "¸")], trimmed);
            let expected = [0..1, 1..3, 3..4, 4..5, 5..7, 7..8];
            assert_eq!(spans(&merged, "a wo 中"), expected);
        }
    }

    #[test]
    fn what_normalising_composes_stays_in_order() {
        let bytes = tokenizer(&[], false);
        // An e with a combining accent, three bytes, becomes the two of é. The tokenizer counts
        // the e to them and the accent to nothing.
        let (_, spans) = bytes.encode_spans("xe\u{301}y").unwrap();
        assert_eq!(spans, [0..1, 1..2, 2..2, 2..5]);
    }
}
