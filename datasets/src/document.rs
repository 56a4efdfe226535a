//! Documents and the questions asked about them.

use serde::{Deserialize, Serialize};

use crate::scorer::UNANSWERABLE;

/// A shared context: the text whose KV cache the cloud computes and hands over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// Unique within its data set and stable across versions.
    pub id: String,
    /// Heading shown to the model above the text.
    pub title: String,
    /// What sort of text it is, for example "device manual".
    pub kind: String,
    /// First line of the system message, in place of
    /// [`SYSTEM_INSTRUCTION`](crate::SYSTEM_INSTRUCTION).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instruction: Option<String>,
    /// How text and questions become a prompt.
    #[serde(default, skip_serializing_if = "Framing::is_message")]
    pub framing: Framing,
    /// Tokens that an answer may take, where the data set knows better than the
    /// experiment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_tokens: Option<usize>,
    /// The text itself.
    pub text: String,
    /// The private questions, in the order of the draw.
    pub questions: Vec<Question>,
}

/// How a document becomes a context, and a question what follows it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Framing {
    /// The document is the system message, a question the user's.
    #[default]
    Message,
    /// The document is a system message that is not ended: what follows it goes
    /// on where its text stops, without instruction, heading or template between.
    Open,
}

impl Framing {
    /// Whether it is the usual one, which files leave out.
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde hands fields over by reference"
    )]
    fn is_message(&self) -> bool {
        *self == Self::Message
    }
}

/// One private question about a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Unique within its document.
    pub id: String,
    /// The question as the user types it.
    pub text: String,
    /// Accepted answers, the preferred one first; empty exactly when the
    /// question is unanswerable.
    pub answers: Vec<String>,
    /// Whether the document holds the answer.
    pub answerable: bool,
    /// What form its answer has.
    #[serde(default, skip_serializing_if = "AnswerForm::is_span")]
    pub form: AnswerForm,
}

/// What form an answer has, and so how it is had and graded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerForm {
    /// A short span of words, generated.
    #[default]
    Span,
    /// One of these options, chosen by its likelihood.
    Options(Vec<String>),
    /// A worked solution, generated, of which the final number counts
    /// ([`same_number`](crate::same_number)).
    Solution,
    /// Text that follows: only its likelihood counts, and nothing is generated.
    Continuation,
}

impl AnswerForm {
    fn is_span(&self) -> bool {
        *self == Self::Span
    }
}

impl Question {
    /// What a result row records as gold: the accepted answers, or the literal
    /// [`UNANSWERABLE`] when the document does not say.
    #[must_use]
    pub fn gold(&self) -> Vec<String> {
        if self.answerable {
            self.answers.clone()
        } else {
            vec![UNANSWERABLE.to_owned()]
        }
    }

    /// The options, where one is to be chosen; else none.
    #[must_use]
    pub fn options(&self) -> &[String] {
        match &self.form {
            AnswerForm::Options(options) => options,
            _ => &[],
        }
    }
}
