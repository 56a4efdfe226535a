//! Traces as part of a profile: in the resolved copy of a configuration and on the control
//! socket. Integers, so that what is read is exactly what was written.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{BandwidthTrace, Opportunities, Step, Steps, TraceProblem};

/// Opportunities as the milliseconds from each to the next: mostly single digits.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Gaps(Vec<u32>);

/// Steps, one list a column; delays and losses are left out where all are 0.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Columns {
    period_ns: u64,
    start_ns: Vec<u64>,
    bits_per_second: Vec<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    delay_ns: Vec<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    loss: Vec<f64>,
}

impl From<Opportunities> for Gaps {
    fn from(trace: Opportunities) -> Self {
        let before = std::iter::once(&0).chain(trace.times_ms());
        Self(
            trace
                .times_ms()
                .iter()
                .zip(before)
                .map(|(at, before)| at - before)
                .collect(),
        )
    }
}

impl TryFrom<Gaps> for Opportunities {
    type Error = TraceProblem;

    fn try_from(Gaps(gaps): Gaps) -> Result<Self, TraceProblem> {
        let times = gaps
            .into_iter()
            .scan(0_u32, |at, gap| {
                *at = at.saturating_add(gap);
                Some(*at)
            })
            .collect();
        Self::new(times)
    }
}

impl From<Steps> for Columns {
    fn from(trace: Steps) -> Self {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let steps = trace.steps();
        let mut columns = Self {
            period_ns: nanos(trace.period()),
            start_ns: steps.iter().map(|step| nanos(step.start)).collect(),
            bits_per_second: steps.iter().map(|step| step.bits_per_second).collect(),
            delay_ns: Vec::new(),
            loss: Vec::new(),
        };
        if steps.iter().any(|step| !step.delay.is_zero()) {
            columns.delay_ns = steps.iter().map(|step| nanos(step.delay)).collect();
        }
        if steps.iter().any(|step| step.loss > 0.0) {
            columns.loss = steps.iter().map(|step| step.loss).collect();
        }
        columns
    }
}

impl TryFrom<Columns> for Steps {
    type Error = TraceProblem;

    fn try_from(columns: Columns) -> Result<Self, TraceProblem> {
        let count = columns.start_ns.len();
        let whole = |len: usize| len == count;
        let whole_or_none = |len: usize| len == count || len == 0;
        if !whole(columns.bits_per_second.len())
            || !whole_or_none(columns.delay_ns.len())
            || !whole_or_none(columns.loss.len())
        {
            return Err(TraceProblem::Lengths);
        }
        let steps = (0..count)
            .map(|index| Step {
                start: Duration::from_nanos(columns.start_ns[index]),
                bits_per_second: columns.bits_per_second[index],
                delay: Duration::from_nanos(columns.delay_ns.get(index).copied().unwrap_or(0)),
                loss: columns.loss.get(index).copied().unwrap_or(0.0),
            })
            .collect();
        Self::new(steps, Duration::from_nanos(columns.period_ns))
    }
}

/// The length of a trace's lists in JSON, in bytes, or a little more.
pub(crate) fn encoded_bytes(trace: &BandwidthTrace) -> usize {
    // Digits and a comma.
    let digits = |value: u64| value.checked_ilog10().unwrap_or(0) as usize + 2;
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    match trace {
        BandwidthTrace::Opportunities(trace) => {
            let times = trace.times_ms();
            let before = std::iter::once(&0).chain(times);
            let gaps = times.iter().zip(before).map(|(at, before)| at - before);
            gaps.map(|gap| digits(u64::from(gap))).sum()
        }
        BandwidthTrace::Steps(trace) => trace
            .steps()
            .iter()
            .map(|step| {
                // The longest form of a number from 0 to 1 has 24 characters.
                let loss = if step.loss > 0.0 { 25 } else { 4 };
                digits(nanos(step.start))
                    + digits(step.bits_per_second)
                    + digits(nanos(step.delay))
                    + loss
            })
            .sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(loss: f64, delay_ms: u64) -> Steps {
        let step = |start, bits_per_second| Step {
            start: Duration::from_millis(start),
            bits_per_second,
            delay: Duration::from_millis(delay_ms),
            loss,
        };
        let steps = vec![step(0, 5_000_000), step(120, 7)];
        Steps::new(steps, Duration::from_millis(200)).expect("a trace")
    }

    #[test]
    fn traces_survive_their_encoding() {
        let trace = Opportunities::new(vec![0, 3, 3, 10]).expect("a trace");
        let json = serde_json::to_string(&trace).expect("serialise");
        assert_eq!(json, "[0,3,0,7]");
        assert_eq!(
            serde_json::from_str::<Opportunities>(&json).ok(),
            Some(trace)
        );
        for trace in [steps(0.0, 0), steps(0.125, 30)] {
            let json = serde_json::to_string(&trace).expect("serialise");
            assert_eq!(serde_json::from_str::<Steps>(&json).ok(), Some(trace));
        }
        assert!(
            !serde_json::to_string(&steps(0.0, 0))
                .expect("serialise")
                .contains("loss")
        );
    }

    #[test]
    fn what_is_no_trace_is_refused() {
        for json in ["[]", "[0]", "[4294967295,4294967295]", "[-1]"] {
            assert!(
                serde_json::from_str::<Opportunities>(json).is_err(),
                "{json}"
            );
        }
        let columns = |rates: &str| {
            let json = format!(r#"{{"period_ns":9,"start_ns":[0,1],"bits_per_second":{rates}}}"#);
            serde_json::from_str::<Steps>(&json).map_err(|error| error.to_string())
        };
        assert!(columns("[100000,100000]").is_ok());
        assert!(columns("[100000]").is_err_and(|error| error.contains("differ in length")));
    }

    #[test]
    fn the_length_is_not_underestimated() {
        let trace = Opportunities::new(vec![0, 3, 3, 10, 1234]).expect("a trace");
        let json = serde_json::to_string(&trace).expect("serialise");
        let estimate = encoded_bytes(&BandwidthTrace::Opportunities(trace));
        assert!(estimate + 1 >= json.len() && estimate < 2 * json.len());
        let trace = steps(1.0 / 3.0, 30);
        let json = serde_json::to_string(&trace).expect("serialise");
        // The names of the columns are not counted.
        assert!(encoded_bytes(&BandwidthTrace::Steps(trace)) + 80 >= json.len());
    }
}
