//! Server-sent events (WHATWG HTML, section 9.2), as far as chat completions use them: the
//! `data` of each event, from bytes cut anywhere.

use std::collections::VecDeque;

/// Longest line and longest event, in bytes. A delta is some hundred bytes; log-probabilities
/// that nobody asked for may make it some kilobytes.
pub(super) const MAX_EVENT_BYTES: usize = 1 << 20;

/// A line or event is longer than [`MAX_EVENT_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLong;

/// Turns bytes into events.
#[derive(Debug, Default)]
pub(super) struct EventStream {
    line: Vec<u8>,
    data: Option<Vec<u8>>,
    /// The last byte was a carriage return, so that a line feed belongs to it.
    after_return: bool,
    started: bool,
    ready: VecDeque<Vec<u8>>,
}

impl EventStream {
    /// Takes in what arrived.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        for &byte in bytes {
            let joined = std::mem::replace(&mut self.after_return, byte == b'\r');
            match byte {
                b'\n' if joined => {}
                b'\n' | b'\r' => self.end_line()?,
                _ if self.line.len() >= MAX_EVENT_BYTES => return Err(TooLong),
                _ => self.line.push(byte),
            }
        }
        Ok(())
    }

    /// The next complete event's data. What the stream's end cuts off is no event.
    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        self.ready.pop_front()
    }

    fn end_line(&mut self) -> Result<(), TooLong> {
        let line = std::mem::take(&mut self.line);
        let mut line = line.as_slice();
        if !std::mem::replace(&mut self.started, true) {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            self.ready.extend(self.data.take());
            return Ok(());
        }
        // Comments, names, ids and retry times mean nothing here.
        let Some(value) = line.strip_prefix(b"data") else {
            return Ok(());
        };
        let value = match value {
            [] => value,
            [b':', b' ', value @ ..] | [b':', value @ ..] => value,
            _ => return Ok(()),
        };
        match &mut self.data {
            None => self.data = Some(value.to_vec()),
            Some(data) if data.len() + value.len() < MAX_EVENT_BYTES => {
                data.push(b'\n');
                data.extend_from_slice(value);
            }
            Some(_) => return Err(TooLong),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events(pieces: &[&[u8]]) -> Result<Vec<String>, TooLong> {
        let mut stream = EventStream::default();
        let mut events = Vec::new();
        for piece in pieces {
            stream.push(piece)?;
            while let Some(event) = stream.pop() {
                events.push(String::from_utf8_lossy(&event).into_owned());
            }
        }
        Ok(events)
    }

    #[test]
    fn events_end_at_blank_lines() {
        for text in [
            "data: a\n\ndata:b\n\n",
            "data: a\r\n\r\ndata:b\r\n\r\n",
            "data: a\r\rdata:b\r\r",
            "\u{feff}data: a\n\n: comment\nevent: x\nid: 3\ndata:b\nretry: 5\n\n\n",
        ] {
            assert_eq!(events(&[text.as_bytes()]).unwrap(), ["a", "b"], "{text:?}");
        }
        assert_eq!(
            events(&[b"data: a\ndata: b\ndata\n\n"]).unwrap(),
            ["a\nb\n"]
        );
        assert_eq!(events(&[b"data:  a\n\n"]).unwrap(), [" a"]);
        // Other fields, an event without data, and one that the end cuts off.
        assert!(
            events(&[b"database: a\n\n\n\ndata: a\n"])
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn lengths_are_bounded() {
        let long = vec![b'x'; MAX_EVENT_BYTES + 1];
        assert_eq!(events(&[&long]), Err(TooLong));
        let line = [b"data:".as_slice(), &vec![b'x'; 1 << 18], b"\n"].concat();
        assert_eq!(events(&[&line, &line, &line, &line, &line]), Err(TooLong));
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(
            bytes in proptest::collection::vec(
                prop_oneof![
                    Just(b'\n'), Just(b'\r'), Just(b'd'), Just(b':'), Just(b' '), any::<u8>()
                ],
                0..200,
            ),
            fields in proptest::collection::vec("(data: ?)?[a-z]{0,3}(\n|\r|\r\n){1,2}", 0..12),
            cut in 0usize..400,
        ) {
            let whole = [fields.concat().as_bytes(), &bytes].concat();
            let (head, tail) = whole.split_at(cut.min(whole.len()));
            let singly: Vec<&[u8]> = whole.chunks(1).collect();
            let expected = events(&[&whole]);
            prop_assert_eq!(&events(&[head, tail]), &expected);
            prop_assert_eq!(&events(&singly), &expected);
        }
    }
}
