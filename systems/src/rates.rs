//! How fast a device computes: tokens per second of prefill and decode, by batch and context.
//!
//! A table states what somebody measured; everything between its points is interpolated, and
//! nothing outside of them is credited to the device:
//!
//! - Between two points, *time* is interpolated linearly, not rate: the seconds of a decode step in
//!   the context and in the batch, the seconds of a prefill in its length.
//! - Beyond the first or last context of a batch, the rate of that point holds.
//! - A batch beyond the largest of the table runs at that batch's aggregate rate, so that a step
//!   takes proportionally longer: parallelism that nobody measured is not assumed.

use serde::{Deserialize, Serialize};

/// Most points of a table; a longer one is a slip.
pub const MAX_POINTS: usize = 4096;

/// One measured rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RatePoint {
    /// Sequences at once.
    #[serde(default = "one")]
    pub batch: usize,
    /// Prefill: tokens of the prompt, from an empty cache. Decode: tokens in the cache.
    pub context: usize,
    /// Tokens per second of all sequences together.
    pub tok_s: f64,
}

fn one() -> usize {
    1
}

/// Prefill and decode rates of one model on one device.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// The model that the rates are of, with its quantisation.
    pub model: String,
    /// What computed, with the settings that matter.
    pub engine: String,
    /// Prefill rates, at least one.
    pub prefill: Vec<RatePoint>,
    /// Decode rates, at least one.
    pub decode: Vec<RatePoint>,
}

impl Rates {
    /// The first fault of the tables: the path of the value, and what is wrong with it.
    #[must_use]
    pub fn problem(&self) -> Option<(String, String)> {
        for (name, text) in [("model", &self.model), ("engine", &self.engine)] {
            if text.trim().is_empty() {
                return Some((name.to_owned(), "is empty".to_owned()));
            }
        }
        for (name, table) in [("prefill", &self.prefill), ("decode", &self.decode)] {
            if table.is_empty() || table.len() > MAX_POINTS {
                return Some((
                    name.to_owned(),
                    format!("has {} points; 1 to {MAX_POINTS} are needed", table.len()),
                ));
            }
            for (index, point) in table.iter().enumerate() {
                let fault = |key: &str, what: String| Some((format!("{name}.{index}.{key}"), what));
                if !(1..=65_536).contains(&point.batch) {
                    return fault("batch", format!("{} is outside 1 to 65536", point.batch));
                }
                if !(1..=1 << 24).contains(&point.context) {
                    return fault(
                        "context",
                        format!("{} is outside 1 to {}", point.context, 1 << 24),
                    );
                }
                if !(point.tok_s.is_finite() && point.tok_s > 0.0) {
                    return fault("tok_s", format!("{} is no rate", point.tok_s));
                }
                if table[..index]
                    .iter()
                    .any(|p| (p.batch, p.context) == (point.batch, point.context))
                {
                    return fault(
                        "context",
                        "the same batch and context stand twice".to_owned(),
                    );
                }
            }
        }
        None
    }

    /// Seconds to prefill `tokens` tokens behind `past` tokens that are in the cache already, one
    /// prompt by itself. The whole prompt's time less the past's, and never faster than the best
    /// rate of the table.
    #[must_use]
    pub fn prefill_s(&self, past: usize, tokens: usize) -> f64 {
        if tokens == 0 {
            return 0.0;
        }
        let whole = |n: usize| match n {
            0 => 0.0,
            n => n as f64 * at_batch(&self.prefill, 1, n),
        };
        let best = self
            .prefill
            .iter()
            .map(|point| point.tok_s)
            .fold(f64::MIN_POSITIVE, f64::max);
        (whole(past + tokens) - whole(past)).max(tokens as f64 / best)
    }

    /// Tokens per second of a prompt of `tokens` tokens.
    #[must_use]
    pub fn prefill_tok_s(&self, tokens: usize) -> f64 {
        let tokens = tokens.max(1);
        tokens as f64 / self.prefill_s(0, tokens)
    }

    /// Seconds of one decode step of `batch` sequences with `context` tokens each.
    #[must_use]
    pub fn step_s(&self, batch: usize, context: usize) -> f64 {
        let batch = batch.max(1);
        batch as f64 * at_batch(&self.decode, batch, context.max(1))
    }

    /// Tokens per second of `batch` sequences together.
    #[must_use]
    pub fn decode_tok_s(&self, batch: usize, context: usize) -> f64 {
        batch.max(1) as f64 / self.step_s(batch, context)
    }
}

/// Seconds per token at a batch and a context.
fn at_batch(table: &[RatePoint], batch: usize, context: usize) -> f64 {
    let mut batches: Vec<usize> = table.iter().map(|point| point.batch).collect();
    batches.sort_unstable();
    batches.dedup();
    // The table is not empty: `Rates::problem` is asked before one is used.
    let below = batches.iter().rev().find(|&&b| b <= batch).copied();
    let above = batches.iter().find(|&&b| b >= batch).copied();
    let per_token = |b: usize| at_context(table, b, context);
    match (below, above) {
        (Some(low), Some(high)) if low == high => per_token(low),
        (Some(low), Some(high)) => {
            // Interpolate the time of the step, then go back to the time of a token.
            let (low_s, high_s) = (low as f64 * per_token(low), high as f64 * per_token(high));
            let share = (batch - low) as f64 / (high - low) as f64;
            (low_s + share * (high_s - low_s)) / batch as f64
        }
        (Some(edge), None) | (None, Some(edge)) => per_token(edge),
        (None, None) => f64::INFINITY,
    }
}

/// Seconds per token at a context, from the points of one batch.
fn at_context(table: &[RatePoint], batch: usize, context: usize) -> f64 {
    let mut points: Vec<(usize, f64)> = table
        .iter()
        .filter(|point| point.batch == batch)
        .map(|point| (point.context, 1.0 / point.tok_s))
        .collect();
    points.sort_unstable_by_key(|&(context, _)| context);
    let after = points.partition_point(|&(at, _)| at < context);
    match (after.checked_sub(1).map(|i| points[i]), points.get(after)) {
        (Some((low, low_s)), Some(&(high, high_s))) => {
            let share = (context - low) as f64 / (high - low) as f64;
            low_s + share * (high_s - low_s)
        }
        (Some((_, seconds)), None) => seconds,
        (None, Some(&(_, seconds))) => seconds,
        (None, None) => f64::INFINITY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(batch: usize, context: usize, tok_s: f64) -> RatePoint {
        RatePoint {
            batch,
            context,
            tok_s,
        }
    }

    fn rates() -> Rates {
        Rates {
            model: "m".to_owned(),
            engine: "e".to_owned(),
            prefill: vec![point(1, 500, 1000.0), point(1, 1000, 500.0)],
            decode: vec![
                point(1, 500, 50.0),
                point(1, 1500, 25.0),
                point(4, 500, 100.0),
            ],
        }
    }

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9 * b.abs().max(1.0)
    }

    #[test]
    fn the_points_of_the_table_are_met() {
        let rates = rates();
        assert_eq!(rates.problem(), None);
        assert!(near(rates.prefill_tok_s(500), 1000.0));
        assert!(near(rates.prefill_tok_s(1000), 500.0));
        assert!(near(rates.decode_tok_s(1, 500), 50.0));
        assert!(near(rates.decode_tok_s(4, 500), 100.0));
    }

    #[test]
    fn times_are_interpolated_between_points() {
        let rates = rates();
        // Halfway between 20 ms and 40 ms per token.
        assert!(near(rates.step_s(1, 1000), 0.030));
        // A step of one takes 20 ms, one of four 40 ms: one of two 20 + 20/3.
        assert!(near(rates.step_s(2, 500), 0.020 + 0.020 / 3.0));
        // Per token halfway between 1 ms and 2 ms.
        assert!(near(rates.prefill_s(0, 750), 750.0 * 0.0015));
    }

    #[test]
    fn nothing_outside_the_table_is_credited() {
        let rates = rates();
        assert!(near(rates.decode_tok_s(1, 1), 50.0));
        assert!(near(rates.decode_tok_s(1, 100_000), 25.0));
        // Eight sequences share what four were measured to get.
        assert!(near(rates.decode_tok_s(8, 500), 100.0));
        assert!(near(rates.step_s(8, 500), 0.080));
    }

    #[test]
    fn a_prompt_behind_a_context_takes_the_difference() {
        let rates = rates();
        assert!(near(rates.prefill_s(500, 500), 2.0 - 0.5));
        assert!(near(rates.prefill_s(500, 0), 0.0));
        // A table whose longer prompts are faster cannot make a piece free.
        let odd = Rates {
            prefill: vec![point(1, 10, 10.0), point(1, 100, 1000.0)],
            ..rates
        };
        assert!(odd.prefill_s(10, 90) >= 90.0 / 1000.0);
    }

    #[test]
    fn faults_are_named_by_their_path() {
        let mut bad = rates();
        bad.decode[1].tok_s = 0.0;
        assert_eq!(bad.problem().unwrap().0, "decode.1.tok_s");
        let mut twice = rates();
        twice.prefill[1].context = 500;
        assert_eq!(twice.problem().unwrap().0, "prefill.1.context");
        let mut none = rates();
        none.prefill.clear();
        assert_eq!(none.problem().unwrap().0, "prefill");
        let mut nan = rates();
        nan.prefill[0].tok_s = f64::NAN;
        assert!(nan.problem().unwrap().1.contains("no rate"));
    }
}
