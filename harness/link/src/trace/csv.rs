//! Traces as comma-separated values.
//!
//! The first line names the columns: `time_s` and `rate_mbit`, and if wanted `delay_ms` and
//! `loss`, in any order. Each further line holds from its time on until that of the next. Times
//! count from the first line's, so that a log with times of day can be used as it is. The last
//! line holds for as long as the one before it did, or for a second if it is the only one; then
//! the trace repeats. Empty lines and lines that begin with `#` are passed over.
//!
//! Rates are IP bits; delays are one way and add to those of the profile; loss is a probability
//! from 0 to 1, beside the profile's loss model.

use std::fmt::Write as _;
use std::time::Duration;

use super::{MAX_STEPS, TraceError, lines, quote};
use crate::core::{
    BandwidthTrace, MAX_BITS_PER_SECOND, MAX_DELAY, MAX_PERIOD, OPPORTUNITY_BYTES, Opportunities,
    Step, Steps,
};

/// The columns that there are, with the range of their values.
const COLUMNS: [Column; 4] = [
    Column {
        name: "time_s",
        // Times of day since 1970, in seconds, are 2·10⁹; a nanosecond is not told beyond that.
        max: 1e10,
    },
    Column {
        name: "rate_mbit",
        max: MAX_BITS_PER_SECOND as f64 / 1e6,
    },
    Column {
        name: "delay_ms",
        max: MAX_DELAY.as_millis() as f64,
    },
    Column {
        name: "loss",
        max: 1.0,
    },
];
const TIME: usize = 0;
const RATE: usize = 1;
const DELAY: usize = 2;
const LOSS: usize = 3;

struct Column {
    name: &'static str,
    max: f64,
}

/// Reads a trace.
///
/// # Errors
/// [`TraceError::Line`] for a first line that does not name the columns, and for one with a value
/// missing, too many, no number, out of range or back in time; [`TraceError::TooLong`]; and
/// [`TraceError::Values`] for a trace that carries next to nothing.
pub fn parse(bytes: &[u8]) -> Result<Steps, TraceError> {
    let mut lines = lines(bytes);
    let (line, text) = lines
        .next()
        .ok_or(TraceError::Values(crate::core::TraceProblem::Empty))??;
    let header = header(line, text)?;
    let mut first = None;
    let mut steps: Vec<Step> = Vec::new();
    for next in lines {
        let (line, text) = next?;
        let values = values(&header, line, text)?;
        let time = values[TIME] - *first.get_or_insert(values[TIME]);
        if !(0.0..=MAX_PERIOD.as_secs_f64()).contains(&time) {
            let problem = format!("its time is {time} s after the first; it must be 0 to 86400 s");
            return Err(TraceError::line(line, problem));
        }
        let start = Duration::from_secs_f64(time);
        if steps.last().is_some_and(|last| start <= last.start) {
            let problem = "its time must be after that of the line ahead";
            return Err(TraceError::line(line, problem));
        }
        if steps.len() == MAX_STEPS {
            return Err(TraceError::TooLong {
                limit: MAX_STEPS as u64,
                what: "lines",
            });
        }
        steps.push(Step {
            start,
            bits_per_second: (values[RATE] * 1e6).round() as u64,
            delay: Duration::from_secs_f64(values[DELAY] / 1e3),
            loss: values[LOSS],
        });
    }
    let period = match steps.as_slice() {
        [.., before, last] => last.start + (last.start - before.start),
        _ => Duration::from_secs(1),
    };
    Ok(Steps::new(steps, period)?)
}

/// The columns of a file, in its order.
fn header(line: usize, text: &str) -> Result<Vec<usize>, TraceError> {
    let known = || COLUMNS.map(|column| column.name).join(", ");
    let mut header = Vec::new();
    for name in text.split(',').map(str::trim) {
        let Some(column) = COLUMNS.iter().position(|column| column.name == name) else {
            let problem = format!("unknown column \"{}\"; known: {}", quote(name), known());
            return Err(TraceError::line(line, problem));
        };
        if header.contains(&column) {
            return Err(TraceError::line(line, format!("{name} is there twice")));
        }
        header.push(column);
    }
    for needed in [TIME, RATE] {
        if !header.contains(&needed) {
            let name = COLUMNS[needed].name;
            return Err(TraceError::line(line, format!("there is no column {name}")));
        }
    }
    Ok(header)
}

/// The values of a line by column; 0 for a column that the file does not have.
fn values(header: &[usize], line: usize, text: &str) -> Result<[f64; 4], TraceError> {
    let cells: Vec<&str> = text.split(',').map(str::trim).collect();
    if cells.len() != header.len() {
        let problem = format!("has {} values for {} columns", cells.len(), header.len());
        return Err(TraceError::line(line, problem));
    }
    let mut values = [0.0; 4];
    for (&column, cell) in header.iter().zip(cells) {
        let Column { name, max } = COLUMNS[column];
        let value = cell.parse::<f64>().ok();
        // Written so that NaN is out of range.
        let Some(value) = value.filter(|value| (0.0..=max).contains(value)) else {
            let problem = format!("{name} is \"{}\"; it must be 0 to {max}", quote(cell));
            return Err(TraceError::line(line, problem));
        };
        values[column] = value;
    }
    Ok(values)
}

/// The steps of a trace. Opportunities become the rate of the millisecond before them, those at 0
/// the rate of the last.
///
/// # Errors
/// [`TraceError::TooLong`].
pub fn from_trace(trace: &BandwidthTrace) -> Result<Steps, TraceError> {
    match trace {
        BandwidthTrace::Steps(trace) => Ok(trace.clone()),
        BandwidthTrace::Opportunities(trace) => from_opportunities(trace),
    }
}

fn from_opportunities(trace: &Opportunities) -> Result<Steps, TraceError> {
    let bits = |opportunities: usize| opportunities as u64 * OPPORTUNITY_BYTES * 8 * 1000;
    let times = trace.times_ms();
    let at_zero = times.partition_point(|&at| at == 0);
    let mut steps: Vec<Step> = Vec::new();
    let mut push = |start_ms: u32, bits_per_second: u64| {
        if steps
            .last()
            .is_none_or(|last| last.bits_per_second != bits_per_second)
        {
            steps.push(Step {
                start: Duration::from_millis(u64::from(start_ms)),
                bits_per_second,
                delay: Duration::ZERO,
                loss: 0.0,
            });
        }
        steps.len() <= MAX_STEPS
    };
    let mut fits = true;
    let mut done = 0;
    for same in times[at_zero..].chunk_by(|a, b| a == b) {
        let at = same[0];
        let last = Duration::from_millis(u64::from(at)) == trace.period();
        if at - 1 > done {
            fits = fits && push(done, 0);
        }
        let wrapped = if last { at_zero } else { 0 };
        fits = fits && push(at - 1, bits(same.len() + wrapped));
        done = at;
    }
    if !fits {
        return Err(TraceError::TooLong {
            limit: MAX_STEPS as u64,
            what: "steps",
        });
    }
    Ok(Steps::new(steps, trace.period())?)
}

/// The text of a trace, with the columns that say something.
///
/// The format states no end. Where a line cannot be what says so, because the last step is not
/// as long as the one before it, a line repeats the last step's values.
#[must_use]
pub fn format(trace: &Steps) -> String {
    let steps = trace.steps();
    let mut columns = vec![TIME, RATE];
    if steps.iter().any(|step| !step.delay.is_zero()) {
        columns.push(DELAY);
    }
    if steps.iter().any(|step| step.loss > 0.0) {
        columns.push(LOSS);
    }
    let mut text = columns
        .iter()
        .map(|&column| COLUMNS[column].name)
        .collect::<Vec<_>>()
        .join(",");
    text.push('\n');
    let mut line = |start: Duration, step: &Step| {
        let values = [
            start.as_nanos() as f64 / 1e9,
            step.bits_per_second as f64 / 1e6,
            step.delay.as_nanos() as f64 / 1e6,
            step.loss,
        ];
        for (index, &column) in columns.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            // Writing to a string cannot fail.
            let _ = write!(text, "{comma}{}", values[column]);
        }
        text.push('\n');
    };
    for step in steps {
        line(step.start, step);
    }
    if let Some(last) = steps.last() {
        let length = trace.period() - last.start;
        let assumed = match steps {
            [.., before, last] => last.start - before.start,
            _ => Duration::from_secs(1),
        };
        if length != assumed {
            // In its middle, so that what follows it is as long as what lies ahead of it.
            line(last.start + length / 2, last);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error(text: &str) -> String {
        parse(text.as_bytes()).expect_err("no trace").to_string()
    }

    #[test]
    fn times_count_from_the_first_and_the_last_step_is_as_long_as_the_one_before() {
        let text = "time_s,rate_mbit,loss\n1700000000,5,0\n1700000002,10.5,0.25\n";
        let trace = parse(text.as_bytes()).expect("a trace");
        assert_eq!(trace.period(), Duration::from_secs(4));
        let [first, second] = trace.steps() else {
            panic!("two steps")
        };
        assert_eq!((first.bits_per_second, first.loss), (5_000_000, 0.0));
        assert_eq!(second.start, Duration::from_secs(2));
        assert_eq!((second.bits_per_second, second.loss), (10_500_000, 0.25));
        let one = parse(b"rate_mbit, delay_ms, time_s\n# c\n3, 20.5, 7\n").expect("a trace");
        assert_eq!(one.period(), Duration::from_secs(1));
        assert_eq!(one.steps()[0].delay, Duration::from_micros(20_500));
    }

    #[test]
    fn errors_name_the_line_and_the_column() {
        assert!(error("").contains("empty"));
        assert!(error("time_s,rate_mbit\n").contains("empty"));
        assert_eq!(
            error("\n1,2\n"),
            "line 2: unknown column \"1\"; known: time_s, rate_mbit, delay_ms, loss"
        );
        assert_eq!(
            error("time_s,loss\n"),
            "line 1: there is no column rate_mbit"
        );
        assert_eq!(
            error("time_s,rate_mbit,time_s\n"),
            "line 1: time_s is there twice"
        );
        let with = |line: &str| error(&format!("time_s,rate_mbit\n0,1\n{line}\n"));
        assert_eq!(with("1"), "line 3: has 1 values for 2 columns");
        assert_eq!(
            with("1,fast"),
            "line 3: rate_mbit is \"fast\"; it must be 0 to 100000"
        );
        for value in ["nan", "inf", "-1", "100001", ""] {
            assert!(with(&format!("1,{value}")).contains("line 3: rate_mbit is"));
        }
        assert!(with("0,1").contains("line 3: its time must be after"));
        assert!(with("90000,1").contains("line 3: its time is 90000 s after"));
        assert!(error("time_s,rate_mbit\n0,0\n").contains("10000 bit/s at least"));
        let earlier = error("time_s,rate_mbit\n5,1\n4,1\n");
        assert!(
            earlier.contains("line 3: its time is -1 s after"),
            "{earlier}"
        );
    }

    #[test]
    fn opportunities_become_the_rate_of_the_millisecond_before_them() {
        let trace = Opportunities::new(vec![0, 1, 2, 2, 5, 10]).expect("a trace");
        let steps = from_trace(&BandwidthTrace::Opportunities(trace.clone())).expect("a trace");
        let rates: Vec<(u128, u64)> = steps
            .steps()
            .iter()
            .map(|step| (step.start.as_millis(), step.bits_per_second / 12_032_000))
            .collect();
        assert_eq!(rates, [(0, 1), (1, 2), (2, 0), (4, 1), (5, 0), (9, 2)]);
        assert_eq!(steps.period(), trace.period());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn no_lines_panic(text in "([0-9.eE+-]{1,12},){1,3}[0-9.]{1,9}\n") {
            let text = format!("time_s,rate_mbit,delay_ms,loss\n{}", text.repeat(3));
            let _ = parse(text.as_bytes());
        }

        #[test]
        fn what_is_written_is_read(
            list in prop::collection::vec(
                (1_u64..100_000, 1_u64..100_000_000, 0_u64..10_000_000, 0.0_f64..1.0), 1..20,
            ),
        ) {
            let mut at = Duration::ZERO;
            let mut steps = Vec::new();
            for (length, rate, delay, loss) in list {
                steps.push(Step {
                    start: at,
                    bits_per_second: rate * 1000,
                    delay: Duration::from_micros(delay),
                    loss,
                });
                at += Duration::from_micros(2 * length);
            }
            let Ok(trace) = Steps::new(steps, at) else { return Ok(()) };
            let read = parse(format(&trace).as_bytes()).expect("what was written");
            prop_assert_eq!(read.period(), trace.period());
            for (read, written) in read.steps().iter().zip(trace.steps()) {
                prop_assert_eq!(read, written);
            }
            // The line that marks the end, if there is one, changes nothing.
            if let Some(marker) = read.steps().get(trace.steps().len()) {
                let last = trace.steps()[trace.steps().len() - 1];
                prop_assert_eq!(Step { start: last.start, ..*marker }, last);
            }
        }
    }
}
