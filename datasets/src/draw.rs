//! Seeded subsets of a data set.

use crate::document::Document;
use crate::error::DatasetError;
use crate::rank;

/// Draws questions from every document and then documents from the list, both
/// by seeded rank. Documents that keep no question are left out first.
pub(crate) fn draw(
    dataset: &'static str,
    documents: Vec<Document>,
    count: Option<usize>,
    questions_per_document: Option<usize>,
    unanswerable: bool,
    seed: u64,
) -> Result<Vec<Document>, DatasetError> {
    if questions_per_document == Some(0) {
        return Err(DatasetError::Zero {
            setting: "questions_per_document",
        });
    }
    let mut kept = Vec::with_capacity(documents.len());
    for mut document in documents {
        let mut questions = std::mem::take(&mut document.questions);
        questions.retain(|q| q.answerable || unanswerable);
        document.questions = rank::draw(questions, questions_per_document, |q| {
            rank::hash(seed, &["question", &document.id, &q.id])
        });
        if !document.questions.is_empty() {
            kept.push(document);
        }
    }
    let available = kept.len();
    let asked = count.unwrap_or(available);
    if asked == 0 || asked > available {
        return Err(DatasetError::Documents {
            dataset,
            asked,
            available,
        });
    }
    Ok(rank::draw(kept, Some(asked), |d| {
        rank::hash(seed, &["document", &d.id])
    }))
}
