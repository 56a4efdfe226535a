//! Which of the cloud's tokens stands for each of the edge's, where two tokenizers cut one text.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::AlignError;
use crate::block::KvBlock;

/// A context in one model's tokens: a system message's text with the chat template around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSpans {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Bytes of the rendered context that each token covers; each begins where the one before it
    /// ends.
    pub bytes: Vec<Range<usize>>,
    /// Bytes of the rendered context that are the message's text. The text is the same for all
    /// models, what stands around it is not.
    pub text: Range<usize>,
}

/// How rows of the cloud's KV are brought to the edge's tokens before they are mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenAlignment {
    /// Both models have the same tokens.
    #[default]
    Same,
    /// The text is cut again by the edge's tokenizer. For each of the edge's tokens stands the
    /// cloud's token that covers its last byte: the first one that has read all of it. Tokens of
    /// the templates are paired from the start and from the end.
    ///
    /// Some of the cloud's tokens stand for several of the edge's, and some for none, so that what
    /// only their rows say is lost. A token that covers more than the edge's has read a little of
    /// what comes after it.
    Offsets,
}

impl TokenAlignment {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Same, Self::Offsets];

    /// Name in bridges.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Offsets => "offsets",
        }
    }

    /// Whether it is the one that a bridge does not need to state.
    #[must_use]
    pub fn is_same(&self) -> bool {
        *self == Self::Same
    }

    /// What this context needs.
    #[must_use]
    pub fn between(source: &TokenSpans, target: &TokenSpans) -> Self {
        match source.tokens == target.tokens {
            true => Self::Same,
            false => Self::Offsets,
        }
    }

    /// The cloud's KV of a context with one row for each of the edge's tokens, at their positions.
    /// The block must be of all tokens of the context, from position 0.
    ///
    /// # Errors
    /// [`AlignError::OtherTokens`] where they would have to be the same, [`AlignError::Block`] for a
    /// block of other tokens, and as [`KvBlock::gather_tokens`].
    pub fn aligned<'a>(
        self,
        source: &TokenSpans,
        target: &TokenSpans,
        block: &'a KvBlock,
    ) -> Result<Cow<'a, KvBlock>, AlignError> {
        if block.positions() != (0..source.bytes.len()) {
            return Err(AlignError::Block {
                end: "source",
                expected: format!("positions {:?}", 0..source.bytes.len()),
                found: format!("positions {:?}", block.positions()),
            });
        }
        if source.tokens == target.tokens {
            return Ok(Cow::Borrowed(block));
        }
        match self {
            Self::Same => Err(AlignError::OtherTokens {
                source_tokens: source.tokens.len(),
                target_tokens: target.tokens.len(),
            }),
            Self::Offsets => Ok(Cow::Owned(
                block.gather_tokens(&by_offsets(source, target))?,
            )),
        }
    }
}

impl fmt::Display for TokenAlignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// For each target token the index of the source token that stands for it; see
/// [`TokenAlignment::Offsets`]. Ascending where the spans are; empty where the source has no token.
/// Spans that make no sense give indices that make none, but all of them exist.
#[must_use]
pub fn by_offsets(source: &TokenSpans, target: &TokenSpans) -> Vec<usize> {
    let count = source.bytes.len();
    let Some(last) = count.checked_sub(1) else {
        return Vec::new();
    };
    let ending_by = |end: usize| source.bytes.partition_point(|own| own.end <= end);
    let before = ending_by(source.text.start);
    let behind = ending_by(source.text.end);
    let place = |(index, bytes): (usize, &Range<usize>)| {
        let place = if bytes.end <= target.text.start {
            index.min(before.saturating_sub(1))
        } else if bytes.end <= target.text.end {
            let end = (bytes.end - target.text.start).saturating_add(source.text.start);
            source.bytes.partition_point(|own| own.end < end)
        } else {
            let left = target.bytes.len() - index;
            count.saturating_sub(left).max(behind)
        };
        place.min(last)
    };
    target.bytes.iter().enumerate().map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{KeyRope, KvShape, LayerKv};
    use crate::ident::ModelFingerprint;
    use half::f16;
    use proptest::prelude::*;

    /// Spans of tokens of these lengths; the text begins and ends at these bytes.
    fn spans(lengths: &[usize], text: Range<usize>) -> TokenSpans {
        let mut at = 0;
        let bytes: Vec<Range<usize>> = lengths
            .iter()
            .map(|length| {
                at += length;
                at - length..at
            })
            .collect();
        TokenSpans {
            tokens: (0..lengths.len() as u32).collect(),
            bytes,
            text,
        }
    }

    /// Tokens of these spellings around a text.
    fn spelled(before: &[&str], text: &[&str], after: &[&str]) -> TokenSpans {
        let length = |tokens: &[&str]| tokens.iter().map(|token| token.len()).sum::<usize>();
        let all: Vec<usize> = [before, text, after]
            .concat()
            .iter()
            .map(|token| token.len())
            .collect();
        let start = length(before);
        spans(&all, start..start + length(text))
    }

    #[test]
    fn a_token_that_has_read_all_of_it_stands_for_each() {
        let cloud = spelled(&["<s>"], &["un", "believ", "able", " tale"], &["</s>"]);
        let edge = spelled(
            &["<s>"],
            &["unbel", "iev", "a", "ble", " ", "tale"],
            &["</s>"],
        );
        assert_eq!(by_offsets(&cloud, &edge), [0, 2, 2, 3, 3, 4, 4, 5]);
        assert_eq!(by_offsets(&edge, &cloud), [0, 1, 2, 4, 6, 7]);
        assert_eq!(by_offsets(&cloud, &cloud), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn characters_of_several_bytes_are_cut_anywhere() {
        // "né中" is 1 + 2 + 3 bytes.
        let text = "né中".len();
        let bytes = spans(&[1; 6], 0..text);
        let whole = spans(&[1, 2, 3], 0..text);
        let odd = spans(&[2, 3, 1], 0..text);
        assert_eq!(by_offsets(&whole, &bytes), [0, 1, 1, 2, 2, 2]);
        assert_eq!(by_offsets(&bytes, &whole), [0, 2, 5]);
        assert_eq!(by_offsets(&odd, &whole), [0, 1, 2]);
        assert_eq!(by_offsets(&whole, &odd), [1, 2, 2]);
        for same in [&bytes, &whole, &odd] {
            let all: Vec<usize> = (0..same.bytes.len()).collect();
            assert_eq!(by_offsets(same, same), all);
        }
    }

    #[test]
    fn templates_are_paired_from_both_ends() {
        let long = spelled(&["a", "b", "c"], &["xy"], &["d", "e", "f"]);
        let short = spelled(&["a"], &["x", "y"], &["f"]);
        assert_eq!(by_offsets(&short, &long), [0, 0, 0, 2, 3, 3, 3]);
        assert_eq!(by_offsets(&long, &short), [0, 3, 3, 6]);
        let bare = spelled(&[], &["x", "y"], &[]);
        assert_eq!(by_offsets(&bare, &long), [0, 0, 0, 1, 1, 1, 1]);
        assert_eq!(by_offsets(&long, &bare), [3, 3]);
        assert_eq!(by_offsets(&spans(&[], 0..0), &long), [0_usize; 0]);
        // A token that reaches from the template into the text, and one out of it.
        let across = spans(&[2, 2, 3], 1..5);
        let plain = spelled(&["<"], &["te", "xt"], &[">>"]);
        assert_eq!(by_offsets(&across, &plain), [0, 1, 2, 2]);
        assert_eq!(by_offsets(&plain, &across), [1, 2, 3]);
    }

    fn block(tokens: usize) -> KvBlock {
        let shape = KvShape::new(1, 1, 1).unwrap();
        let side = || (0..tokens).map(|t| f16::from_f32(t as f32)).collect();
        let layer = LayerKv {
            k: side(),
            v: side(),
        };
        let model = ModelFingerprint::from_bytes([1; 32]);
        KvBlock::new(model, shape, 0, 0..tokens, KeyRope::Pre, vec![layer]).unwrap()
    }

    #[test]
    fn rows_are_brought_to_the_edges_tokens_or_refused() {
        let cloud = spelled(&["<"], &["ab", "c"], &[">"]);
        let edge = spelled(&["<"], &["a", "b", "c"], &[">"]);
        let whole = block(4);
        for how in TokenAlignment::ALL {
            let own = how.aligned(&cloud, &cloud, &whole).unwrap();
            assert!(matches!(own, Cow::Borrowed(_)), "{how}");
            let error = how.aligned(&cloud, &cloud, &block(3)).unwrap_err();
            assert!(matches!(error, AlignError::Block { .. }), "{error}");
        }
        assert!(matches!(
            TokenAlignment::Same.aligned(&cloud, &edge, &whole),
            Err(AlignError::OtherTokens { .. })
        ));
        let aligned = TokenAlignment::Offsets
            .aligned(&cloud, &edge, &whole)
            .unwrap();
        let expected = [0.0, 1.0, 1.0, 2.0, 3.0].map(f16::from_f32);
        assert_eq!(aligned.layers()[0].k, expected);
        assert_eq!(
            [
                TokenAlignment::between(&cloud, &cloud),
                TokenAlignment::between(&cloud, &edge)
            ],
            TokenAlignment::ALL
        );
        for how in TokenAlignment::ALL {
            assert_eq!(serde_json::to_value(how).unwrap(), how.name());
        }
    }

    #[test]
    fn bridges_state_what_is_not_the_same() {
        let plain = crate::align::fitter::tests::fitted();
        let bytes = plain.to_bytes().unwrap();
        let states = |bytes: &[u8]| bytes.windows(8).any(|part| part == b"\\\"tokens");
        assert!(!states(&bytes), "as files from before this was known");
        assert_eq!(plain.tokens(), TokenAlignment::Same);
        let other = plain.with_tokens(TokenAlignment::Offsets);
        let bytes = other.to_bytes().unwrap();
        assert!(states(&bytes));
        assert_eq!(crate::Bridge::from_bytes(&bytes).unwrap(), other);
    }

    fn cut(lengths: impl Strategy<Value = usize>) -> impl Strategy<Value = Vec<usize>> {
        prop::collection::vec(lengths, 0..40)
    }

    proptest! {
        #[test]
        fn any_two_cuts_of_a_text_are_aligned(
            a in cut(1..6_usize), b in cut(1..6_usize),
            before in (0..4_usize, 0..4_usize), after in (0..4_usize, 0..4_usize),
        ) {
            let sum = |lengths: &[usize]| lengths.iter().sum::<usize>();
            let text = sum(&a).min(sum(&b));
            prop_assume!(text > 0);
            let model = |lengths: &[usize], before: usize, after: usize| {
                let (mut all, mut left) = (vec![1; before], text);
                for length in lengths {
                    all.push((*length).min(left));
                    left -= (*length).min(left);
                    if left == 0 {
                        break;
                    }
                }
                all.extend(vec![1; after]);
                spans(&all, before..before + text)
            };
            let (source, target) = (model(&a, before.0, after.0), model(&b, before.1, after.1));
            let found = by_offsets(&source, &target);
            prop_assert_eq!(found.len(), target.bytes.len());
            prop_assert!(found.is_sorted());
            for (index, place) in found.iter().enumerate() {
                prop_assert!(*place < source.bytes.len());
                let end = target.bytes[index].end;
                if (target.text.start + 1..=target.text.end).contains(&end) {
                    let end = end - target.text.start + source.text.start;
                    // It has read all of the token, and the one before it has not.
                    prop_assert!(source.bytes[*place].end >= end);
                    prop_assert!(source.bytes[*place].start < end);
                }
            }
            let own: Vec<usize> = (0..source.bytes.len()).collect();
            prop_assert_eq!(by_offsets(&source, &source), own);
        }

        #[test]
        fn spans_without_sense_never_panic(
            a in prop::collection::vec((any::<usize>(), any::<usize>()), 0..20),
            b in prop::collection::vec((any::<usize>(), any::<usize>()), 0..20),
            texts in any::<[usize; 4]>(),
        ) {
            let wild = |ranges: &[(usize, usize)], start, end| TokenSpans {
                tokens: Vec::new(),
                bytes: ranges.iter().map(|(start, end)| *start..*end).collect(),
                text: start..end,
            };
            let source = wild(&a, texts[0], texts[1]);
            let target = wild(&b, texts[2], texts[3]);
            let found = by_offsets(&source, &target);
            prop_assert_eq!(found.len(), if a.is_empty() { 0 } else { b.len() });
            prop_assert!(found.iter().all(|place| *place < a.len()));
        }
    }
}
