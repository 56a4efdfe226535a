//! The chat template inside a GGUF file, and where a prompt is cut into a shareable context
//! and a private rest.

use crate::{GgufFile, ModelError};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, context};
use serde::Serialize;
use std::path::PathBuf;

/// A rendered prompt in its two parts; their concatenation is the whole prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitPrompt {
    /// The system message with its document: what the cloud may hold.
    pub context: String,
    /// The user's message and the opening of the answer: what never leaves the edge.
    pub private: String,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'a str,
    content: &'a str,
}

/// A model's chat template.
pub struct ChatTemplate {
    source: String,
    path: PathBuf,
}

impl ChatTemplate {
    /// Takes the template from the file's metadata.
    ///
    /// # Errors
    /// [`ModelError::Incomplete`] when the file has none.
    pub fn load(gguf: &GgufFile) -> Result<Self, ModelError> {
        let source = gguf.string("tokenizer.chat_template")?.to_owned();
        Ok(Self {
            source,
            path: gguf.path().to_owned(),
        })
    }

    /// The template's source, part of a context's identity.
    pub fn source(&self) -> &str {
        &self.source
    }

    fn render(&self, messages: &[Message<'_>], generate: bool) -> Result<String, ModelError> {
        let mut environment = Environment::new();
        // A template is data from a file: bound what it may do.
        environment.set_recursion_limit(64);
        environment.set_fuel(Some(1_000_000));
        // The whitespace settings under which chat templates are written.
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .and_then(|syntax| {
                environment.set_syntax(syntax);
                environment
                    .template_from_str(&self.source)?
                    .render(context! {
                        messages => Serde(messages),
                        add_generation_prompt => generate,
                    })
            })
            .map_err(|error| ModelError::Tokenizer {
                path: self.path.clone(),
                reason: format!("the chat template fails: {error}"),
            })
    }

    /// Renders the system message alone: the context that many prompts share.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] when the template fails.
    pub fn context(&self, system: &str) -> Result<String, ModelError> {
        self.render(
            &[Message {
                role: "system",
                content: system,
            }],
            false,
        )
    }

    /// Renders a prompt and cuts it behind the system message, so that the two parts can be
    /// tokenised apart.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] when the template fails, or when it does not render the system
    /// message first and independently of what follows.
    pub fn split(&self, system: &str, user: &str) -> Result<SplitPrompt, ModelError> {
        let context = self.context(system)?;
        let messages = [
            Message {
                role: "system",
                content: system,
            },
            Message {
                role: "user",
                content: user,
            },
        ];
        let whole = self.render(&messages, true)?;
        match whole.strip_prefix(&context) {
            Some(private) if !context.is_empty() => {
                Ok(SplitPrompt { private: private.to_owned(), context })
            }
            _ => Err(ModelError::Tokenizer {
                path: self.path.clone(),
                reason: "the chat template does not begin with the system message, so no context can be shared"
                    .to_owned(),
            }),
        }
    }
}
