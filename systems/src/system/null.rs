//! An echo: answers at once with the tokens asked for, and touches neither model nor cloud.
//!
//! What it takes is what the harness itself takes: a request goes through the dispatcher, the
//! control socket, the node, a timeline and the samples as any other. A figure of another
//! system that is not well above the echo's is the harness's and not the system's. It answers
//! no question, so its scores mean nothing.

use super::System;
use crate::answer::{Answer, ContextRef, Request, SystemError};
use crate::clock::now_ns;
use crate::edge::EdgeNode;
use crate::spec::KvPath;
use crate::timeline::{Part, Timeline};

pub(super) struct Null;

/// About as long as the text of a token is in English.
const TOKEN_TEXT: &str = " null";

impl System for Null {
    fn warm(
        &self,
        _edge: &EdgeNode,
        _kv: Option<&KvPath>,
        _context: &ContextRef,
        _deadline_ns: u64,
    ) -> Result<(), SystemError> {
        Ok(())
    }

    fn answer(
        &self,
        _edge: &EdgeNode,
        _kv: Option<&KvPath>,
        request: &Request,
        timeline: Timeline,
        _deadline_ns: u64,
    ) -> Result<Answer, SystemError> {
        Ok(echo(request, timeline))
    }
}

/// Every token is stamped by itself, as a decoder's would be.
fn echo(request: &Request, mut timeline: Timeline) -> Answer {
    let mut answer = Answer {
        sent_ns: timeline.sent_ns(),
        token_ns: Vec::with_capacity(request.max_tokens),
        output_ids: Vec::with_capacity(request.max_tokens),
        output_text: String::with_capacity(request.max_tokens * TOKEN_TEXT.len()),
        ..Answer::default()
    };
    for index in 0..request.max_tokens {
        answer.output_ids.push(index as u32);
        answer.output_text.push_str(TOKEN_TEXT);
        let at_ns = now_ns();
        if index == 0 {
            timeline.lap_split_at(at_ns, &[], Part::FirstStep);
            answer.parts = timeline.parts();
        }
        answer.token_ns.push(at_ns);
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use celslm_model::Sampling;

    #[test]
    fn it_answers_with_the_tokens_asked_for() {
        let request = Request {
            context: ContextRef {
                context_id: String::new(),
                system: String::new(),
            },
            user: "?".to_owned(),
            sampling: Sampling::Greedy,
            seed: 0,
            max_tokens: 5,
            scheduled_ns: now_ns(),
            timeout_ms: 1000,
            history: Vec::new(),
            client: 0,
        };
        let answer = echo(&request, Timeline::start(request.scheduled_ns));
        assert_eq!(answer.output_ids, [0, 1, 2, 3, 4]);
        assert_eq!(answer.output_text, TOKEN_TEXT.repeat(5));
        assert!(answer.token_ns.is_sorted() && answer.token_ns[0] >= answer.sent_ns);
        let exposed: u64 = answer.parts.iter().map(|part| part.exposed_ns).sum();
        assert_eq!(exposed, answer.token_ns[0] - request.scheduled_ns);
    }
}
