//! From the deltas of a stream to one timestamp for each token.
//!
//! The API says how many tokens an answer has (`usage`), and when pieces of text arrived (one
//! delta each); it does not say which tokens a delta holds. vLLM and llama.cpp send one delta per
//! token, except that a token which only begins a character, or may begin a stop sequence, waits
//! for the next. So:
//!
//! - where the count is that of the deltas, each token has its delta's time, and nothing is
//!   estimated. One token more than deltas at a model's own end is the end token, which no
//!   system here counts;
//! - where the counts differ, the server's count stands and its tokens are spread evenly over
//!   the deltas, the first on the first and the last on the last, and the times are *estimated*:
//!   TTFT and the last token's time are still those that were seen;
//! - where the server counts nothing (llama-cpp-python), a delta counts as a token, *estimated*.

/// When each token was there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TokenTimes {
    /// One time for each token, ascending if the deltas' are.
    pub(crate) token_ns: Vec<u64>,
    /// Whether the tokens' number or places are deduced from the deltas.
    pub(crate) estimated: bool,
}

/// The tokens of an answer whose visible deltas came at `deltas_ns`, which ended at `end_ns`.
/// `counted` is the server's count; `ended_turn` says whether the model ended by itself. A count
/// above `max_tokens` is no count.
pub(crate) fn token_times(
    deltas_ns: &[u64],
    end_ns: u64,
    counted: Option<u64>,
    ended_turn: bool,
    max_tokens: usize,
) -> TokenTimes {
    let deltas = deltas_ns.len();
    let counted = counted
        .and_then(|n| usize::try_from(n).ok())
        .filter(|&n| n <= max_tokens.saturating_add(1));
    match counted {
        Some(n) if n == deltas || (ended_turn && n == deltas + 1) => TokenTimes {
            token_ns: deltas_ns.to_vec(),
            estimated: false,
        },
        // Tokens without any visible text were there when the answer ended.
        Some(n) if deltas == 0 => TokenTimes {
            token_ns: vec![end_ns; n - usize::from(ended_turn)],
            estimated: true,
        },
        Some(n) if n > 0 => {
            let last = (deltas - 1) as u128;
            let steps = (n - 1).max(1) as u128;
            TokenTimes {
                // Below `deltas`, since the quotient is at most `last`.
                token_ns: (0..n as u128)
                    .map(|token| deltas_ns[(token * last / steps) as usize])
                    .collect(),
                estimated: true,
            }
        }
        _ => TokenTimes {
            token_ns: deltas_ns.to_vec(),
            estimated: true,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn counts_that_agree_are_exact() {
        for (counted, ended) in [(Some(3), true), (Some(3), false), (Some(4), true)] {
            let times = token_times(&[5, 6, 9], 10, counted, ended, 8);
            assert_eq!(times.token_ns, [5, 6, 9]);
            assert!(!times.estimated);
        }
    }

    #[test]
    fn counts_that_differ_are_spread() {
        let times = |counted, ended| token_times(&[5, 6, 9], 10, counted, ended, 8);
        assert_eq!(times(Some(5), false).token_ns, [5, 5, 6, 6, 9]);
        assert_eq!(times(Some(4), false).token_ns, [5, 5, 6, 9]);
        assert_eq!(times(Some(2), true).token_ns, [5, 9]);
        assert_eq!(times(Some(1), true).token_ns, [5]);
        // No count, and counts that cannot be.
        for counted in [None, Some(0), Some(10), Some(u64::MAX)] {
            assert_eq!(times(counted, false).token_ns, [5, 6, 9]);
            assert!(times(counted, false).estimated);
        }
        assert_eq!(token_times(&[], 10, Some(2), false, 8).token_ns, [10, 10]);
        assert_eq!(token_times(&[], 10, Some(1), true, 8).token_ns, [0u64; 0]);
        assert!(token_times(&[], 10, None, true, 8).token_ns.is_empty());
    }

    proptest! {
        #[test]
        fn times_are_ordered_and_those_that_were_seen(
            mut deltas in proptest::collection::vec(1u64..1000, 0..20),
            counted in proptest::option::of(0u64..40),
            ended: bool,
            max_tokens in 0usize..40,
        ) {
            deltas.sort_unstable();
            let TokenTimes { token_ns, .. } = token_times(&deltas, 1000, counted, ended, max_tokens);
            prop_assert!(token_ns.is_sorted());
            prop_assert_eq!(token_ns.first().copied().filter(|_| !deltas.is_empty()), deltas.first().copied());
            if token_ns.len() > 1 && !deltas.is_empty() {
                prop_assert_eq!(token_ns.last(), deltas.last());
            }
        }
    }
}
