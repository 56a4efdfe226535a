//! SQuAD's answer normalisation.

/// Lowercases, deletes ASCII punctuation, drops the articles "a", "an" and
/// "the", and joins what is left with single spaces, in that order. Source: the
/// SQuAD 1.1 evaluation (Rajpurkar et al. 2016). Deleted punctuation leaves no
/// gap: "co-op" becomes "coop", and "3.5" becomes "35" on both sides.
#[must_use]
pub fn normalise(text: &str) -> String {
    let plain: String = text
        .to_lowercase()
        .chars()
        .filter(|c| !c.is_ascii_punctuation())
        .collect();

    // An article is a whole run of word characters, wherever it stands: a
    // typographic dash or quote also ends a word.
    let mut spaced = String::with_capacity(plain.len());
    let mut rest = plain.as_str();
    while let Some(first) = rest.chars().next() {
        let in_word = first.is_alphanumeric();
        let end = rest
            .find(|c: char| c.is_alphanumeric() != in_word)
            .unwrap_or(rest.len());
        let (run, tail) = rest.split_at(end);
        spaced.push_str(match run {
            "a" | "an" | "the" => " ",
            other => other,
        });
        rest = tail;
    }
    spaced.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden_examples() {
        for (text, expected) in [
            ("The Kestrel 40", "kestrel 40"),
            ("  an   amber\tlamp. ", "amber lamp"),
            ("\"Dock A\"", "dock"),
            ("theatre and Anna", "theatre and anna"),
            ("3.5 bar", "35 bar"),
            ("co-operative's", "cooperatives"),
            ("the", ""),
            ("the\u{2014}valve", "\u{2014}valve"),
            ("\u{c9}T\u{c9} 40 \u{b0}C", "\u{e9}t\u{e9} 40 \u{b0}c"),
            ("", ""),
        ] {
            assert_eq!(normalise(text), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn output_is_clean(text in ".{0,80}") {
            let out = normalise(&text);
            prop_assert!(!out.chars().any(|c| c.is_ascii_punctuation() || c.is_ascii_uppercase()));
            prop_assert!(!out.contains("  ") && out.trim() == out);
            prop_assert!(!out.split(' ').any(|w| matches!(w, "a" | "an" | "the")));
        }

        #[test]
        fn case_articles_and_edges_do_not_matter(text in "[a-zA-Z .,]{0,40}") {
            let out = normalise(&text);
            prop_assert_eq!(&normalise(&text.to_uppercase()), &out);
            let dressed = format!(" The {text}! ");
            prop_assert_eq!(&normalise(&dressed), &out);
            prop_assert_eq!(&normalise(&out), &out);
        }
    }
}
