//! `open_loop`: requests at a rate, whatever is answered.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Arrival, ArrivalProcess, MAX_REQUESTS, Popularity, Request, Workload, check_positive,
    check_seconds, number,
};
use crate::document::Document;
use crate::error::DatasetError;

/// Makes requests at `rate_rps` on average, as users do who do not wait for each
/// other: a system that is too slow builds up a queue, and the queue counts in
/// its latencies. Documents are drawn by popularity and questions alike, with
/// replacement. The pattern of request n depends on the seed and n only, so that
/// another rate is the same pattern in another time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenLoop {
    /// Mean arrivals per second.
    pub rate_rps: f64,
    /// How the gaps are distributed.
    #[serde(default)]
    pub process: ArrivalProcess,
    /// How many requests to make; this or `duration_s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<usize>,
    /// How long requests arrive, in seconds; this or `requests`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_s: Option<f64>,
    /// How requests spread over the documents.
    #[serde(default)]
    pub popularity: Popularity,
}

impl Workload for OpenLoop {
    fn name(&self) -> &'static str {
        "open_loop"
    }

    fn requests(&self, documents: &[Document], seed: u64) -> Result<Vec<Request>, DatasetError> {
        check_positive("rate_rps", self.rate_rps)?;
        self.process.check()?;
        self.popularity.check()?;
        let limits = match (self.requests, self.duration_s) {
            (Some(requests), None) => {
                if requests == 0 {
                    return Err(DatasetError::Zero {
                        setting: "requests",
                    });
                }
                (requests, f64::INFINITY)
            }
            (None, Some(duration)) => {
                check_positive("duration_s", duration)?;
                check_seconds("duration_s", duration)?;
                (usize::MAX, duration)
            }
            (requests, duration) => {
                return Err(DatasetError::Setting {
                    setting: "requests",
                    value: format!("{requests:?}, duration_s = {duration:?}"),
                    reason: "state how many requests there are or how long they arrive, one of the two",
                });
            }
        };
        let (most, end) = limits;
        let about = if end.is_finite() {
            (self.rate_rps * end) as u128
        } else {
            most as u128
        };
        let too_many = |requests| DatasetError::TooManyRequests {
            requests,
            limit: MAX_REQUESTS,
            setting: if end.is_finite() {
                "duration_s"
            } else {
                "requests"
            },
        };
        if about > MAX_REQUESTS as u128 {
            return Err(too_many(about));
        }
        let mut requests = Vec::with_capacity(about as usize);
        let mut at = 0.0;
        while requests.len() < most {
            let index = requests.len() as u64;
            at += self.process.gap(seed, "open_loop", index) / self.rate_rps;
            if at >= end {
                break;
            }
            let name = index.to_string();
            let Some(request) = self.popularity.request(documents, seed, &name) else {
                break;
            };
            if requests.len() == MAX_REQUESTS {
                return Err(too_many(MAX_REQUESTS as u128 + 1));
            }
            check_seconds("rate_rps", at).map_err(|_| DatasetError::Setting {
                setting: "rate_rps",
                value: self.rate_rps.to_string(),
                reason: "the last request would arrive after more than a day",
            })?;
            requests.push(Request {
                arrival: Arrival::At(Duration::from_secs_f64(at)),
                ..request
            });
        }
        Ok(number(requests))
    }

    fn offered_rps(&self) -> Option<f64> {
        Some(self.rate_rps)
    }

    fn label(&self) -> String {
        format!(
            "{}-{:?}rps{}",
            self.process.label(),
            self.rate_rps,
            self.popularity.suffix()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::tests::{documents, seconds, shifts_nothing};

    fn method(rate_rps: f64) -> OpenLoop {
        OpenLoop {
            rate_rps,
            process: ArrivalProcess::Poisson,
            requests: None,
            duration_s: Some(500.0),
            popularity: Popularity::Uniform,
        }
    }

    #[test]
    fn the_rate_is_the_mean() {
        let requests = method(8.0).requests(&documents(4), 1).unwrap();
        // 4,000 expected; four standard deviations are 253.
        assert!(
            (requests.len() as f64 - 4000.0).abs() < 253.0,
            "{}",
            requests.len()
        );
        let times = seconds(&requests);
        assert!(times.is_sorted() && times[0] > 0.0 && times[times.len() - 1] < 500.0);
        let counted = OpenLoop {
            requests: Some(100),
            duration_s: None,
            ..method(8.0)
        };
        assert_eq!(counted.requests(&documents(4), 1).unwrap(), requests[..100]);
        let constant = OpenLoop {
            process: ArrivalProcess::Constant,
            ..method(2.0)
        };
        let times = seconds(&constant.requests(&documents(4), 1).unwrap());
        assert_eq!(times.len(), 999);
        assert!(times.windows(2).all(|w| (w[1] - w[0] - 0.5).abs() < 1e-6));
    }

    #[test]
    fn another_rate_is_the_same_pattern() {
        let slow = method(1.0).requests(&documents(4), 1).unwrap();
        let fast = method(4.0).requests(&documents(4), 1).unwrap();
        for (s, f) in slow.iter().zip(&fast) {
            assert_eq!(
                (s.document, s.question, s.seed),
                (f.document, f.question, f.seed)
            );
        }
        for (s, f) in seconds(&slow).iter().zip(seconds(&fast)) {
            assert!((s - 4.0 * f).abs() < 1e-6);
        }
    }

    #[test]
    fn the_seed_decides_and_a_new_document_shifts_nothing() {
        for popularity in [Popularity::Uniform, Popularity::Zipf { s: 1.0 }] {
            let method = OpenLoop {
                popularity,
                ..method(1.0)
            };
            let three = method.requests(&documents(3), 1).unwrap();
            assert_eq!(three, method.requests(&documents(3), 1).unwrap());
            assert_ne!(three, method.requests(&documents(3), 2).unwrap());
            let four = method.requests(&documents(4), 1).unwrap();
            shifts_nothing(&three, &four, 3);
        }
    }

    #[test]
    fn what_gives_no_load_is_an_error() {
        let fails = |change: fn(&mut OpenLoop), expected: &str| {
            let mut method = method(2.0);
            change(&mut method);
            let error = method.requests(&documents(2), 1).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} lacks {expected}");
        };
        fails(|m| m.rate_rps = 0.0, "`rate_rps = 0`");
        fails(|m| m.rate_rps = f64::NAN, "`rate_rps = NaN`");
        fails(|m| m.requests = Some(3), "one of the two");
        fails(|m| m.duration_s = None, "one of the two");
        fails(|m| m.duration_s = Some(-1.0), "`duration_s = -1`");
        fails(|m| m.duration_s = Some(1e9), "86400");
        fails(|m| m.rate_rps = 1e9, "lower `duration_s`");
        fails(
            |m| (m.duration_s, m.requests) = (None, Some(0)),
            "`requests = 0`",
        );
        fails(
            |m| (m.rate_rps, m.duration_s, m.requests) = (1e-9, None, Some(9)),
            "more than a day",
        );
        fails(
            |m| m.process = ArrivalProcess::Gamma { cv: 0.0 },
            "`cv = 0`",
        );
        fails(|m| m.popularity = Popularity::Zipf { s: -1.0 }, "`s = -1`");
    }
}
