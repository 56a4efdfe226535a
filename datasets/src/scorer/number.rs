//! The final number of a worked solution.

/// What stands before the final number of a solution in GSM8K.
pub(crate) const MARK: &str = "####";

/// Whether two worked solutions end in the same number, see [`final_number`]. A text without a
/// number equals nothing.
#[must_use]
pub fn same_number(prediction: &str, gold: &str) -> bool {
    final_number(prediction).is_some_and(|number| final_number(gold) == Some(number))
}

/// The final number of a worked solution, in digits: the first one behind `####`, or else the last
/// one of the text. Commas between digits, currency signs, and zeros that say nothing are left
/// out, so that "$1,050.00" is "1050". Source: GSM8K (Cobbe et al. 2021), and for answers without
/// the mark the "flexible" rule of evaluation harnesses.
#[must_use]
pub fn final_number(text: &str) -> Option<String> {
    let marked = text
        .split_once(MARK)
        .and_then(|(_, rest)| numbers(rest).next());
    marked.or_else(|| numbers(text).last())
}

/// The numbers of a text, in order.
fn numbers(text: &str) -> impl Iterator<Item = String> {
    let mut rest = text;
    let mut before = None;
    std::iter::from_fn(move || {
        let start = rest.find(|c: char| c.is_ascii_digit())?;
        let (head, tail) = rest.split_at(start);
        let negative = is_negative(head, before);
        let (number, length) = digits(tail);
        before = tail[..length].chars().next_back();
        rest = &tail[length..];
        Some(match negative && number != "0" {
            true => format!("-{number}"),
            false => number,
        })
    })
}

/// Whether what stands before a number makes it negative: a minus, perhaps with a currency sign,
/// that takes nothing away from what stands before it. `before` is what the text before `head`
/// ends with.
fn is_negative(head: &str, before: Option<char>) -> bool {
    let head = head.trim_end_matches(['$', '€', '£']);
    head.strip_suffix('-').is_some_and(|head| {
        let left = head.chars().next_back().or(before);
        left.is_none_or(|left| !left.is_alphanumeric() && left != ')')
    })
}

/// The number that a text begins with, and the bytes that it takes up.
fn digits(text: &str) -> (String, usize) {
    let bytes = text.as_bytes();
    let (mut whole, mut fraction) = (String::new(), String::new());
    let mut in_fraction = false;
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let digit_next = bytes.get(at + 1).is_some_and(u8::is_ascii_digit);
        match byte {
            b'0'..=b'9' if in_fraction => fraction.push(char::from(*byte)),
            b'0'..=b'9' => whole.push(char::from(*byte)),
            b',' if digit_next && !in_fraction => {}
            b'.' if digit_next && !in_fraction => in_fraction = true,
            _ => break,
        }
        at += 1;
    }
    let whole = match whole.trim_start_matches('0') {
        "" => "0",
        whole => whole,
    };
    let number = match fraction.trim_end_matches('0') {
        "" => whole.to_owned(),
        fraction => format!("{whole}.{fraction}"),
    };
    (number, at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden_examples() {
        for (text, expected) in [
            ("She makes 9 * 2 = 18 dollars.\n#### 18", Some("18")),
            ("#### $1,234.50.", Some("1234.5")),
            ("####  70000\nQuestion: 5 apples", Some("70000")),
            ("so the answer is 1,050.00.", Some("1050")),
            ("10 - 3 = 7", Some("7")),
            ("10-3", Some("3")),
            ("(2)-3", Some("3")),
            ("he has -5 left", Some("-5")),
            ("the change is -$5", Some("-5")),
            ("7-0.50", Some("0.5")),
            ("-0", Some("0")),
            ("#### none, though 3 were named", Some("3")),
            ("3 were named. ####", Some("3")),
            ("007", Some("7")),
            ("half of it", None),
            ("", None),
        ] {
            assert_eq!(final_number(text).as_deref(), expected, "{text:?}");
        }
        assert!(same_number("That is $18.", "9 * 2 = 18\n#### 18"));
        assert!(!same_number("That is 18 of 20", "#### 18"));
        assert!(!same_number("none", "none"));
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in ".{0,80}") {
            let _ = final_number(&text);
        }

        #[test]
        fn a_number_is_found_however_it_is_written(number in 0_u64..10_000_000, rest in "[a-z .,$\n]{0,20}") {
            let digits = number.to_string();
            let mut commas = String::new();
            for (index, digit) in digits.chars().enumerate() {
                if index > 0 && (digits.len() - index).is_multiple_of(3) {
                    commas.push(',');
                }
                commas.push(digit);
            }
            let own = Some(digits.clone());
            prop_assert_eq!(final_number(&format!("3 and 4\n#### {commas}. {rest}")), own.clone());
            prop_assert_eq!(final_number(&format!("3 and 4 are ${commas}.00 {rest}")), own);
        }
    }
}
