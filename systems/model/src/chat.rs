//! The chat template inside a GGUF file, and where a prompt is cut into a shareable context
//! and a private rest.

use crate::{GgufFile, ModelError};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, context};
use serde::Serialize;
use std::ops::Range;
use std::path::PathBuf;

/// A rendered prompt in its two parts; their concatenation is the whole prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitPrompt {
    /// The system message with its document: what the cloud may hold.
    pub context: String,
    /// Earlier turns, the user's message and the opening of the answer: what never leaves the
    /// edge.
    pub private: String,
}

/// Stands for the text of a system message, to find out what a template puts around it.
const PLACEHOLDER: &str = "placeholder";

/// A rendered system message, with where its text stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderedContext {
    /// The whole of it.
    pub rendered: String,
    /// Bytes of it that are the message's text, unchanged.
    pub text: Range<usize>,
}

impl RenderedContext {
    /// The same up to where the message's text ends: more text can go on there.
    #[must_use]
    pub fn open(mut self) -> Self {
        self.rendered.truncate(self.text.end);
        self
    }
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

    /// As [`Self::context`], with where the message's text stands.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] when the template fails, or when it does not keep the text as it
    /// is.
    pub fn placed(&self, system: &str) -> Result<RenderedContext, ModelError> {
        let rendered = self.context(system)?;
        let example = self.context(PLACEHOLDER)?;
        let text = example
            .rsplit_once(PLACEHOLDER)
            .filter(|(before, after)| {
                let inner = rendered.strip_prefix(before);
                inner.and_then(|inner| inner.strip_suffix(after)) == Some(system)
            })
            .map(|(before, _)| before.len()..before.len() + system.len());
        match text {
            Some(text) => Ok(RenderedContext { rendered, text }),
            None => Err(ModelError::Tokenizer {
                path: self.path.clone(),
                reason: "the chat template does not keep a system message as it is, so it cannot \
                         be said where its text stands"
                    .to_owned(),
            }),
        }
    }

    /// Renders a prompt and cuts it behind the system message, so that the two parts can be
    /// tokenised apart.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] when the template fails, or when it does not render the system
    /// message first and independently of what follows.
    pub fn split(&self, system: &str, user: &str) -> Result<SplitPrompt, ModelError> {
        self.split_conversation(system, &[], user)
    }

    /// [`ChatTemplate::split`] with the earlier turns of the conversation, each what the user said
    /// and what was answered. They belong to the private rest; the context is the same as without.
    ///
    /// # Errors
    /// As for [`ChatTemplate::split`].
    pub fn split_conversation(
        &self,
        system: &str,
        history: &[(String, String)],
        user: &str,
    ) -> Result<SplitPrompt, ModelError> {
        let context = self.context(system)?;
        let message = |role, content| Message { role, content };
        let mut messages = vec![message("system", system)];
        for (asked, answered) in history {
            messages.push(message("user", asked));
            messages.push(message("assistant", answered));
        }
        messages.push(message("user", user));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_found_where_the_template_puts_it() {
        let template = |content: &str| ChatTemplate {
            source: format!(
                "{{% for m in messages %}}<system: message>{{{{ {content} }}}}<end>{{% endfor %}}"
            ),
            path: PathBuf::from("test"),
        };
        for system in ["message", "", " é ", "placeholder"] {
            let placed = template("m.content").placed(system).unwrap();
            assert_eq!(&placed.rendered[placed.text.clone()], system);
            assert_eq!(placed.text.start, "<system: message>".len());
            let open = placed.clone().open();
            assert_eq!(open.rendered, format!("<system: message>{system}"));
            assert_eq!(open.text, placed.text);
        }
        let trimming = template("m.content | trim");
        assert!(trimming.placed("é").is_ok());
        let error = trimming.placed(" é").unwrap_err().to_string();
        assert!(error.contains("as it is"), "{error}");
    }

    #[test]
    fn earlier_turns_are_private_and_leave_the_context_as_it_is() {
        let template = ChatTemplate {
            source: "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}\
                     {% if add_generation_prompt %}<assistant>{% endif %}"
                .to_owned(),
            path: PathBuf::from("test"),
        };
        let first = template.split("doc", "one?").unwrap();
        assert_eq!(first.private, "<user>one?\n<assistant>");
        let history = [("one?".to_owned(), "1".to_owned())];
        let second = template
            .split_conversation("doc", &history, "two?")
            .unwrap();
        assert_eq!(second.context, first.context);
        assert_eq!(
            second.private,
            "<user>one?\n<assistant>1\n<user>two?\n<assistant>"
        );
    }
}
