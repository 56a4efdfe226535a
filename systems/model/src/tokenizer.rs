//! The tokenizer inside a GGUF file.

use crate::{GgufFile, ModelError};
use candle_core::quantized::tokenizer::TokenizerFromGguf as _;
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
