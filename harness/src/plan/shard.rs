//! `--shard i/n`: one of n machines' share of a plan.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Share `index` of `count`, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Which share, from 1.
    pub index: usize,
    /// How many shares there are.
    pub count: usize,
}

impl Shard {
    /// Whether this share holds group number `group` (from 0). Groups are dealt out in turn and
    /// never split, because compared systems must be measured by one machine in one run.
    #[must_use]
    pub fn holds(&self, group: usize) -> bool {
        group % self.count == self.index - 1
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

/// A `--shard` argument that names no share.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` names no shard; write i/n with 1 ≤ i ≤ n, for example 1/4")]
pub struct ShardError(String);

impl FromStr for Shard {
    type Err = ShardError;

    fn from_str(text: &str) -> Result<Self, ShardError> {
        let fail = || ShardError(text.to_owned());
        let (index, count) = text.split_once('/').ok_or_else(fail)?;
        let shard = Self {
            index: index.parse().map_err(|_| fail())?,
            count: count.parse().map_err(|_| fail())?,
        };
        if (1..=shard.count).contains(&shard.index) {
            Ok(shard)
        } else {
            Err(fail())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_disjoint_and_complete() {
        for count in 1..5 {
            for group in 0..11 {
                let holders = (1..=count)
                    .filter(|&index| Shard { index, count }.holds(group))
                    .count();
                assert_eq!(holders, 1);
            }
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "1", "0/2", "3/2", "a/b", "1/0", "-1/2", "1/2/3"] {
            let error = text.parse::<Shard>().unwrap_err().to_string();
            assert!(error.contains("1/4"), "{error}");
        }
        assert_eq!("2/3".parse::<Shard>().unwrap().to_string(), "2/3");
    }
}
