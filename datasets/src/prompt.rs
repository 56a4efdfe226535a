//! What a model is shown.
//!
//! The document is the system message: it is shared, so the cloud may compute
//! its KV cache. The question is the user message: it is private, and what a
//! system sends of it is counted as `private_uplink_bytes`. The model's own chat
//! template is put around both elsewhere.

use crate::document::{AnswerForm, Document, Framing, Question};

/// First line of the system message. The document follows after a blank line.
pub const SYSTEM_INSTRUCTION: &str =
    "You answer questions about the document below. Use nothing but the document.";

/// Follows the question, in the user message. It asks for what the scorers
/// compare: a short span, or the literal `unanswerable`.
pub const ANSWER_INSTRUCTION: &str = "(Answer with only the short span from the document; if the document does not say, answer \"unanswerable\".)";

/// Follows a problem, in the user message: without it, chat models leave the examples' form for
/// longer ones of their own.
const SOLUTION_INSTRUCTION: &str = "(Solve it in a few short lines, as in the examples; the last line is \"#### \" and the number.)";

/// Words that say nothing about any document.
const PADDING: [&str; 32] = [
    "again",
    "also",
    "around",
    "before",
    "between",
    "either",
    "even",
    "further",
    "however",
    "indeed",
    "just",
    "later",
    "maybe",
    "meanwhile",
    "mostly",
    "next",
    "often",
    "once",
    "only",
    "otherwise",
    "perhaps",
    "quite",
    "rather",
    "since",
    "some",
    "still",
    "then",
    "there",
    "though",
    "usually",
    "while",
    "yet",
];

/// The two messages of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Shared part: instruction, title and text of the document. The same for
    /// every question about a document, byte for byte.
    pub system: String,
    /// Private part: the question and the form of the answer.
    pub user: String,
}

impl Prompt {
    /// The prompt for one question about one document.
    #[must_use]
    pub fn new(document: &Document, question: &Question) -> Self {
        Self {
            system: Self::system(document),
            user: match question.form {
                AnswerForm::Span => format!("{}\n{ANSWER_INSTRUCTION}", question.text.trim()),
                AnswerForm::Solution => {
                    format!("{}\n{SOLUTION_INSTRUCTION}", question.text.trim())
                }
                AnswerForm::Options(_) | AnswerForm::Continuation => {
                    question.text.trim().to_owned()
                }
            },
        }
    }

    /// The same request with a private part of about `words` words: what is
    /// missing is put before the question as notes without meaning, drawn by
    /// `seed` so that no two requests share them. A part that is as long already
    /// stays as it is.
    #[must_use]
    pub fn padded(mut self, words: usize, seed: u64) -> Self {
        let missing = words.saturating_sub(self.user.split_whitespace().count());
        if missing == 0 {
            return self;
        }
        let mut notes = String::with_capacity(missing * 8);
        let mut state = seed;
        for index in 0..missing {
            if index > 0 {
                notes.push(' ');
            }
            // A step of the splitmix64 sequence; any other would do.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = state;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            notes.push_str(PADDING[((mixed >> 33) as usize) % PADDING.len()]);
        }
        self.user = format!("{notes}\n\n{}", self.user);
        self
    }

    /// The shared part alone, as needed to publish a context before any
    /// question is asked.
    #[must_use]
    pub fn system(document: &Document) -> String {
        match document.framing {
            Framing::Message => {
                Self::system_with(Self::instruction(document), &document.title, &document.text)
            }
            Framing::Open => document.text.clone(),
        }
    }

    /// What is left of the shared part without the document: its instruction.
    #[must_use]
    pub fn instruction(document: &Document) -> &str {
        match document.framing {
            Framing::Message => document
                .instruction
                .as_deref()
                .unwrap_or(SYSTEM_INSTRUCTION),
            Framing::Open => "",
        }
    }

    /// The shared part for a document of this title and text.
    #[must_use]
    pub fn system_of(title: &str, text: &str) -> String {
        Self::system_with(SYSTEM_INSTRUCTION, title, text)
    }

    fn system_with(instruction: &str, title: &str, text: &str) -> String {
        format!("{instruction}\n\n# {}\n\n{}", title.trim(), text.trim())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scorer::{UNANSWERABLE, is_refusal};

    #[test]
    fn the_document_is_shared_and_the_question_is_private() {
        let question = |text: &str| Question {
            id: "q".into(),
            text: text.into(),
            answers: vec!["amber".into()],
            answerable: true,
            form: AnswerForm::Span,
        };
        let document = Document {
            id: "d".into(),
            title: "Lamp codes".into(),
            kind: "device manual".into(),
            instruction: None,
            framing: Framing::Message,
            answer_tokens: None,
            text: "\nAmber means wait.\n".into(),
            questions: Vec::new(),
        };
        let one = Prompt::new(&document, &question("What does amber mean?"));
        let two = Prompt::new(&document, &question("Which lamp means wait?"));
        assert_eq!(one.system, two.system);
        assert_eq!(one.system, Prompt::system(&document));
        assert_eq!(Prompt::instruction(&document), SYSTEM_INSTRUCTION);
        let open = Document {
            framing: Framing::Open,
            ..document.clone()
        };
        assert_eq!(Prompt::system(&open), open.text);
        assert_eq!(Prompt::instruction(&open), "");
        assert!(one.system.ends_with("# Lamp codes\n\nAmber means wait."));
        assert!(!one.system.contains("What does"));
        assert!(one.user.starts_with("What does amber mean?\n("));
        let words = |prompt: &Prompt| prompt.user.split_whitespace().count();
        let long = one.clone().padded(300, 1);
        assert_eq!(words(&long), 300);
        assert_eq!(long.system, one.system);
        assert!(long.user.ends_with(&one.user));
        assert_eq!(long, one.clone().padded(300, 1));
        assert_ne!(long, one.clone().padded(300, 2));
        assert_eq!(one.clone().padded(3, 1), one);
        assert!(!one.user.contains("Amber means wait"));
    }

    #[test]
    fn the_prompt_asks_for_the_refusal_that_counts() {
        assert!(ANSWER_INSTRUCTION.contains(&format!("\"{UNANSWERABLE}\"")));
        assert!(is_refusal(UNANSWERABLE));
    }
}
