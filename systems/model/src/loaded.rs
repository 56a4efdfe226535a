//! A model file with everything that is read from it.

use crate::{ChatTemplate, Decoder, GgufFile, ModelError, RenderedContext, Tokenizer};
use celslm_kv::align::TokenSpans;
use std::path::Path;

/// A decoder with its tokenizer and chat template.
pub struct LoadedModel {
    /// The decoder.
    pub decoder: Decoder,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The chat template.
    pub template: ChatTemplate,
}

impl LoadedModel {
    /// Loads a GGUF file and warms its kernels up.
    ///
    /// # Errors
    /// Whatever the file lacks.
    pub fn load(path: &Path) -> Result<Self, ModelError> {
        let mut gguf = GgufFile::open(path)?;
        let tokenizer = Tokenizer::load(&gguf)?;
        let template = ChatTemplate::load(&gguf)?;
        let decoder = Decoder::load(&mut gguf)?;
        decoder.warm_up()?;
        Ok(Self {
            decoder,
            tokenizer,
            template,
        })
    }

    /// Token ids of a context: the rendered system message.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] when template or tokenizer refuse it.
    pub fn context_tokens(&self, system: &str) -> Result<Vec<u32>, ModelError> {
        self.tokenizer.encode(&self.template.context(system)?)
    }

    /// The same with what each of them covers, to be aligned with another model's.
    ///
    /// # Errors
    /// As [`Self::context_tokens`], and when the template does not keep the message as it is.
    pub fn context_spans(&self, system: &str) -> Result<TokenSpans, ModelError> {
        self.spans(self.template.placed(system)?)
    }

    /// Tokens of a rendered system message, with what each of them covers.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] when the tokenizer refuses it.
    pub fn spans(&self, context: RenderedContext) -> Result<TokenSpans, ModelError> {
        let (tokens, bytes) = self.tokenizer.encode_spans(&context.rendered)?;
        Ok(TokenSpans {
            tokens,
            bytes,
            text: context.text,
        })
    }

    /// Token ids of the private rest of a prompt.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] when template or tokenizer refuse it.
    pub fn private_tokens(&self, system: &str, user: &str) -> Result<Vec<u32>, ModelError> {
        self.conversation_tokens(system, &[], user)
    }

    /// Token ids of the private rest of a prompt that follows earlier turns (user, answer).
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] when template or tokenizer refuse it.
    pub fn conversation_tokens(
        &self,
        system: &str,
        history: &[(String, String)],
        user: &str,
    ) -> Result<Vec<u32>, ModelError> {
        let prompt = self.template.split_conversation(system, history, user)?;
        self.tokenizer.encode(&prompt.private)
    }
}
