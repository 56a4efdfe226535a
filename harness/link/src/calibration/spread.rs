//! From predictions to what a measured figure may be.

/// What a figure is to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Expected {
    /// There is nothing to compare it with.
    Unknown,
    /// It cannot be measured, since nothing arrives.
    Nothing,
    /// It lies within bounds.
    Within {
        /// The median of the predictions.
        target: f64,
        /// Their mean.
        mean: f64,
        /// The least value that a sound link shows.
        low: f64,
        /// The greatest.
        high: f64,
        /// Whether it may be that nothing arrives.
        or_nothing: bool,
    },
}

impl Expected {
    /// Moves the bounds outwards, `low` and `high` by so much, each as a function of the target.
    pub(super) fn widened(self, below: impl Fn(f64) -> f64, above: impl Fn(f64) -> f64) -> Self {
        match self {
            Self::Within {
                target,
                mean,
                low,
                high,
                or_nothing,
            } => Self::Within {
                target,
                mean,
                low: low - below(target),
                high: high + above(target),
                or_nothing,
            },
            other => other,
        }
    }

    /// A fraction of a count: its target is the mean, since the median of a count is a whole
    /// number, and its bounds are moved outwards, by so much as a function of it, but not beyond 0
    /// and 1.
    pub(super) fn around_mean(self, slack: impl Fn(f64) -> f64) -> Self {
        match self {
            Self::Within {
                mean,
                low,
                high,
                or_nothing,
                ..
            } => Self::Within {
                target: mean,
                mean,
                low: (low - slack(mean)).max(0.0),
                high: (high + slack(mean)).min(1.0),
                or_nothing,
            },
            other => other,
        }
    }
}

/// The bounds within which one more value lies that comes about as `predictions` did; `None` is a
/// prediction that nothing arrives.
///
/// `z` is the quantile of the normal distribution that fixes how sure that is. The bounds are
/// those of Student's prediction interval, moved by what the third moment says of the
/// distribution's skew (Cornish and Fisher's expansions to their first terms), and no narrower
/// than what was predicted.
pub(super) fn expected(predictions: impl Iterator<Item = Option<f64>>, z: f64) -> Expected {
    let (mut values, mut all) = (Vec::new(), 0);
    for prediction in predictions {
        all += 1;
        values.extend(prediction);
    }
    values.sort_unstable_by(f64::total_cmp);
    let count = values.len();
    let (Some(&least), Some(&greatest)) = (values.first(), values.last()) else {
        return Expected::Nothing;
    };
    let n = count as f64;
    let mean = values.iter().sum::<f64>() / n;
    let moment = |power| values.iter().map(|x| (x - mean).powi(power)).sum::<f64>() / n;
    let (second, third) = (moment(2), moment(3));
    let (mut low, mut high) = (least, greatest);
    if second > 0.0 && count > 1 {
        let freedom = n - 1.0;
        let deviation = (second * n / freedom).sqrt() * (1.0 + 1.0 / n).sqrt();
        let student = z + (z.powi(3) + z) / (4.0 * freedom);
        // Beyond a skew of 2 the expansion says nothing, and the extremes have to do.
        let skew = (third / second.powf(1.5)).clamp(-2.0, 2.0);
        let lift = (z * z - 1.0).max(0.0) / 6.0 * skew;
        // On the side of the short tail a hundred values do not show where it ends.
        low = low.min(mean - deviation * (student - lift).max(student / 2.0));
        high = high.max(mean + deviation * (student + lift).max(student / 2.0));
    }
    Expected::Within {
        target: (values[(count - 1) / 2] + values[count / 2]) / 2.0,
        mean,
        low,
        high,
        or_nothing: count < all,
    }
}

#[cfg(test)]
mod tests {
    use rand::RngExt;

    use super::*;
    use crate::core::stream;

    fn bounds(expected: Expected) -> (f64, f64) {
        match expected {
            Expected::Within { low, high, .. } => (low, high),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_prediction_is_exact() {
        let expected = expected([Some(2.5)].into_iter(), 3.29);
        assert_eq!(bounds(expected), (2.5, 2.5));
    }

    #[test]
    fn predictions_that_nothing_arrives_are_kept_apart() {
        assert_eq!(expected([None, None].into_iter(), 3.29), Expected::Nothing);
        let some = expected([None, Some(1.0), Some(3.0)].into_iter(), 0.0);
        assert_eq!(
            some,
            Expected::Within {
                target: 2.0,
                mean: 2.0,
                low: 1.0,
                high: 3.0,
                or_nothing: true
            }
        );
    }

    /// How many of 8000 values lie outside of bounds from 100 others.
    fn outside(mut draw: impl FnMut() -> f64) -> usize {
        (0..400)
            .map(|_| {
                let (low, high) = bounds(expected((0..100).map(|_| Some(draw())), 3.29));
                (0..20).filter(|_| !(low..=high).contains(&draw())).count()
            })
            .sum()
    }

    #[test]
    fn the_bounds_hold_for_normal_and_for_skewed_values() {
        let mut rng = stream(1, "test", "spread");
        let normal = outside(|| (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0);
        // 0.1% are 8.
        assert!(normal < 20, "{normal}");
        // Of skew 1, as the losses of a few bursts are.
        let mut exponential = || -(1.0 - rng.random::<f64>()).ln();
        let skewed = outside(|| (0..4).map(|_| exponential()).sum());
        assert!(skewed < 40, "{skewed}");
        // Of skew 2, which a sample of 100 mostly shows less of.
        let very_skewed = outside(exponential);
        println!("{normal} {skewed} {very_skewed}");
        assert!(very_skewed < 60, "{very_skewed}");
    }
}
