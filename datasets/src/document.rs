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
    /// The text itself.
    pub text: String,
    /// The private questions, in the order of the draw.
    pub questions: Vec<Question>,
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
    /// The options, one of which is the answer, where one is to be chosen by its likelihood;
    /// empty where the answer is to be generated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<String>,
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
}
