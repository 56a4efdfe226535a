//! Traces of the Mahimahi link emulator (Netravali and others, USENIX ATC 2015).
//!
//! A line is an integer, the millisecond of one opportunity to deliver 1,504 bytes. Lines do not
//! go back in time, several may be the same, and the trace repeats after the last. Beyond that,
//! empty lines and lines that begin with `#` are passed over.
//!
//! Mahimahi charges each packet with the 4 bytes that its tunnel device puts before it; a profile
//! with `overhead_bytes = 4` does the same, so that a full packet takes exactly one opportunity.

use std::fmt::Write as _;
use std::time::Duration;

use super::{MAX_OPPORTUNITIES, TraceError, lines, quote};
use crate::core::{BandwidthTrace, MAX_PERIOD, OPPORTUNITY_BYTES, Opportunities};

/// Reads a trace.
///
/// # Errors
/// [`TraceError::Line`] for a line that is no time or goes back in time, [`TraceError::TooLong`],
/// and [`TraceError::Values`] for a trace that carries next to nothing.
pub fn parse(bytes: &[u8]) -> Result<Opportunities, TraceError> {
    let mut times = Vec::new();
    for line in lines(bytes) {
        let (line, text) = line?;
        let time: u32 = text.parse().map_err(|_| {
            let problem = format!("\"{}\" is not a time in whole milliseconds", quote(text));
            TraceError::line(line, problem)
        })?;
        if let Some(&last) = times.last()
            && time < last
        {
            let problem = format!("{time} ms lies before the {last} ms of the line ahead");
            return Err(TraceError::line(line, problem));
        }
        if u128::from(time) > MAX_PERIOD.as_millis() {
            return Err(TraceError::line(line, format!("{time} ms is beyond a day")));
        }
        if times.len() == MAX_OPPORTUNITIES {
            return Err(too_long());
        }
        times.push(time);
    }
    Ok(Opportunities::new(times)?)
}

/// The opportunities of a trace, with which it has offered the same number of bytes at the end of
/// each millisecond, to less than one opportunity.
///
/// A Mahimahi trace ends with its last opportunity, so that the period of what is returned can be
/// shorter, by as long as an opportunity takes to add up, or as the trace ends with no rate. What
/// the trace states of delay and loss is lost.
///
/// # Errors
/// [`TraceError::TooLong`], and [`TraceError::Values`] for a trace without one opportunity.
pub fn from_trace(trace: &BandwidthTrace) -> Result<Opportunities, TraceError> {
    if let BandwidthTrace::Opportunities(trace) = trace {
        return Ok(trace.clone());
    }
    let mut times = Vec::new();
    let mut bytes = OPPORTUNITY_BYTES;
    loop {
        let at = trace.finished(trace.work(bytes));
        let millis = at.as_nanos().div_ceil(1_000_000);
        if Duration::from_millis(millis as u64) > trace.period() {
            break;
        }
        if times.len() == MAX_OPPORTUNITIES {
            return Err(too_long());
        }
        // A trace is no longer than a day.
        times.push(millis as u32);
        bytes += OPPORTUNITY_BYTES;
    }
    Ok(Opportunities::new(times)?)
}

/// The text of a trace.
#[must_use]
pub fn format(trace: &Opportunities) -> String {
    let mut text = String::new();
    for time in trace.times_ms() {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{time}");
    }
    text
}

fn too_long() -> TraceError {
    TraceError::TooLong {
        limit: MAX_OPPORTUNITIES as u64,
        what: "opportunities",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::{Step, Steps};

    fn error(text: &str) -> String {
        parse(text.as_bytes()).expect_err("no trace").to_string()
    }

    #[test]
    fn a_trace_is_read_and_written() {
        let trace = parse(b"# up\n0\n\n 3 \r\n3\n10").expect("a trace");
        assert_eq!(trace.times_ms(), [0, 3, 3, 10]);
        assert_eq!(format(&trace), "0\n3\n3\n10\n");
    }

    #[test]
    fn errors_name_the_line() {
        assert_eq!(
            error("1\n2.5\n"),
            "line 2: \"2.5\" is not a time in whole milliseconds"
        );
        assert_eq!(
            error("1\n\n5\n4\n"),
            "line 4: 4 ms lies before the 5 ms of the line ahead"
        );
        assert!(error("1\n-1").contains("line 2"));
        assert!(error("99999999999").contains("line 1"));
        assert!(error("90000000").contains("beyond a day"));
        assert!(error("# nothing\n").contains("empty"));
        assert!(error("0\n0\n").contains("lasts no time"));
        assert!(error("60000\n").contains("10000 bit/s at least"));
        let error = parse(b"1\n\xff\n").expect_err("no text").to_string();
        assert_eq!(error, "line 2: is not UTF-8 text");
        let long = "x".repeat(1000);
        assert!(self::error(&long).len() < 120);
    }

    #[test]
    fn a_trace_of_steps_offers_the_same_bytes_by_the_millisecond() {
        let step = |start_ms, bits_per_second| Step {
            start: Duration::from_millis(start_ms),
            bits_per_second,
            delay: Duration::ZERO,
            loss: 0.0,
        };
        let steps = vec![step(0, 12_032_000), step(10, 0), step(20, 36_096_000)];
        let period = Duration::from_millis(30);
        let steps = Steps::new(steps, period).expect("a trace");
        let trace = from_trace(&BandwidthTrace::Steps(steps)).expect("a trace");
        // One opportunity a millisecond, then none, then three.
        let mut expected: Vec<u32> = (1..=10).collect();
        expected.extend((21..=30).flat_map(|at| [at; 3]));
        assert_eq!(trace.times_ms(), expected);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn no_lines_panic(text in "([0-9]{1,11}\n|[-+.#e ]|\r?\n){0,40}") {
            if let Ok(trace) = parse(text.as_bytes()) {
                prop_assert_eq!(parse(format(&trace).as_bytes()), Ok(trace));
            }
        }
    }
}
