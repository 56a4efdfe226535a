//! Streaming first and second moments of pairs of rows, in f64.
//!
//! Everything a ridge map needs, its held-out score included, follows from these sums, so
//! calibration text of any length takes memory for one `p x p` and one `p x q` matrix.

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatRef, Par};

use super::AlignError;

/// Sums over pairs of a source row `x` of `p` and a target row `y` of `q` numbers.
#[derive(Debug, Clone)]
pub struct Moments {
    count: u64,
    /// Σ w, which is the count where no weights are given.
    total: f64,
    /// Σ w².
    squares: f64,
    sum_x: Vec<f64>,
    sum_y: Vec<f64>,
    /// Σ xᵀx, lower triangle only.
    xtx: Mat<f64>,
    /// Σ xᵀy.
    xty: Mat<f64>,
    /// Σ y², per target channel.
    yty: Vec<f64>,
}

/// Moments about the means.
pub(crate) struct Centred {
    pub(crate) mean_x: Vec<f64>,
    pub(crate) mean_y: Vec<f64>,
    /// Full symmetric `[p, p]`.
    pub(crate) xtx: Mat<f64>,
    pub(crate) xty: Mat<f64>,
    pub(crate) yty: Vec<f64>,
}

impl Centred {
    /// The moments of some source channels with a run of target channels.
    pub(super) fn select(&self, channels: &[usize], columns: std::ops::Range<usize>) -> Self {
        let p = channels.len();
        Self {
            mean_x: channels.iter().map(|i| self.mean_x[*i]).collect(),
            mean_y: self.mean_y[columns.clone()].to_vec(),
            xtx: Mat::from_fn(p, p, |i, j| self.xtx[(channels[i], channels[j])]),
            xty: Mat::from_fn(p, columns.len(), |i, j| {
                self.xty[(channels[i], columns.start + j)]
            }),
            yty: self.yty[columns].to_vec(),
        }
    }
}

impl Moments {
    /// Sums over nothing, for rows of `p` and `q` numbers.
    #[must_use]
    pub fn new(p: usize, q: usize) -> Self {
        Self {
            count: 0,
            total: 0.0,
            squares: 0.0,
            sum_x: vec![0.0; p],
            sum_y: vec![0.0; q],
            xtx: Mat::zeros(p, p),
            xty: Mat::zeros(p, q),
            yty: vec![0.0; q],
        }
    }

    /// Numbers per source row.
    #[must_use]
    pub fn source_width(&self) -> usize {
        self.sum_x.len()
    }

    /// Numbers per target row.
    #[must_use]
    pub fn target_width(&self) -> usize {
        self.sum_y.len()
    }

    /// Pairs added so far.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Sum of the weights of the pairs, their number where none were given.
    #[must_use]
    pub const fn total(&self) -> f64 {
        self.total
    }

    /// Number of equally weighted pairs that are as informative: `(Σ w)² / Σ w²`.
    #[must_use]
    pub fn effective_count(&self) -> f64 {
        if self.squares > 0.0 {
            self.total * self.total / self.squares
        } else {
            0.0
        }
    }

    /// Adds pairs of rows: `x` is `[n, p]`, `y` is `[n, q]`, both row-major.
    ///
    /// # Errors
    /// [`AlignError::Rows`] when the lengths do not fit together, [`AlignError::NotFinite`] for
    /// a NaN or an infinity. Nothing is added then.
    pub fn add(&mut self, x: &[f64], y: &[f64]) -> Result<(), AlignError> {
        self.accumulate(x, y, None)
    }

    /// Adds pairs of rows, each as often as its weight says; `weights` has one number a row.
    ///
    /// # Errors
    /// As for [`Self::add`], and [`AlignError::Weights`] for a weight below zero.
    pub fn add_weighted(
        &mut self,
        x: &[f64],
        y: &[f64],
        weights: &[f64],
    ) -> Result<(), AlignError> {
        self.accumulate(x, y, Some(weights))
    }

    fn accumulate(
        &mut self,
        x: &[f64],
        y: &[f64],
        weights: Option<&[f64]>,
    ) -> Result<(), AlignError> {
        let (p, q) = (self.source_width(), self.target_width());
        // Rows of no numbers cannot be counted, so they are no rows.
        let rows = if p == 0 || q == 0 { 0 } else { y.len() / q };
        let num_weights = weights.map_or(rows, <[f64]>::len);
        for (found, expected) in [(x.len(), p), (y.len(), q), (num_weights, 1)] {
            if found != rows * expected {
                return Err(AlignError::Rows {
                    expected,
                    rows,
                    found,
                });
            }
        }
        check_weights(weights.unwrap_or_default())?;
        for (what, side) in [("source rows", x), ("target rows", y)] {
            if !side.iter().all(|number| number.is_finite()) {
                return Err(AlignError::NotFinite {
                    what: what.to_owned(),
                });
            }
        }
        if rows == 0 {
            return Ok(());
        }
        let weight = |row: usize| weights.map_or(1.0, |weights| weights[row]);
        let mut weighted = x.to_vec();
        for (index, row) in weighted.chunks_exact_mut(p).enumerate() {
            let weight = weight(index);
            self.total += weight;
            self.squares += weight * weight;
            for (sum, x) in self.sum_x.iter_mut().zip(row) {
                *x *= weight;
                *sum += *x;
            }
        }
        for (index, row) in y.chunks_exact(q).enumerate() {
            let weight = weight(index);
            let sums = self.sum_y.iter_mut().zip(&mut self.yty);
            sums.zip(row).for_each(|((sum, square), y)| {
                *sum += weight * y;
                *square += weight * y * y;
            });
        }
        let weighted = MatRef::from_row_major_slice(&weighted, rows, p);
        let x = MatRef::from_row_major_slice(x, rows, p);
        let y = MatRef::from_row_major_slice(y, rows, q);
        triangular::matmul(
            &mut self.xtx,
            BlockStructure::TriangularLower,
            Accum::Add,
            weighted.transpose(),
            BlockStructure::Rectangular,
            x,
            BlockStructure::Rectangular,
            1.0,
            Par::Seq,
        );
        matmul(
            &mut self.xty,
            Accum::Add,
            weighted.transpose(),
            y,
            1.0,
            Par::Seq,
        );
        self.count += rows as u64;
        Ok(())
    }

    /// The moments of pairs of rows, from those of either side alone (as source rows) and the
    /// sum of the products.
    pub(super) fn paired(x: &Self, y: &Self, xty: Mat<f64>) -> Self {
        Self {
            count: x.count,
            total: x.total,
            squares: x.squares,
            sum_x: x.sum_x.clone(),
            sum_y: y.sum_x.clone(),
            xtx: x.xtx.clone(),
            xty,
            yty: (0..y.source_width()).map(|i| y.xtx[(i, i)]).collect(),
        }
    }

    /// Adds the sums of another stream of the same widths.
    ///
    /// # Errors
    /// [`AlignError::Rows`] when a width differs.
    pub fn merge(&mut self, other: &Self) -> Result<(), AlignError> {
        for (expected, found) in [
            (self.source_width(), other.source_width()),
            (self.target_width(), other.target_width()),
        ] {
            if expected != found {
                return Err(AlignError::Rows {
                    expected,
                    rows: 1,
                    found,
                });
            }
        }
        self.count += other.count;
        self.total += other.total;
        self.squares += other.squares;
        for (sum, other) in [
            (&mut self.sum_x, &other.sum_x),
            (&mut self.sum_y, &other.sum_y),
            (&mut self.yty, &other.yty),
        ] {
            sum.iter_mut()
                .zip(other)
                .for_each(|(sum, other)| *sum += other);
        }
        self.xtx += &other.xtx;
        self.xty += &other.xty;
        Ok(())
    }

    /// The moments of the same pairs with the weights `1 − share + share · w`: `self` has them
    /// unweighted, `weighted` with the weights `w`. All sums but `Σ w²` are linear in the weights.
    pub(super) fn blended(&self, weighted: &Self, share: f64) -> Self {
        let rest = 1.0 - share;
        let mix = |own: &[f64], other: &[f64]| {
            let pairs = own.iter().zip(other);
            pairs
                .map(|(own, other)| rest * own + share * other)
                .collect()
        };
        let mix_matrix = |own: &Mat<f64>, other: &Mat<f64>| {
            Mat::from_fn(own.nrows(), own.ncols(), |i, j| {
                rest * own[(i, j)] + share * other[(i, j)]
            })
        };
        Self {
            count: self.count,
            total: rest * self.total + share * weighted.total,
            squares: rest * rest * self.squares
                + 2.0 * rest * share * weighted.total
                + share * share * weighted.squares,
            sum_x: mix(&self.sum_x, &weighted.sum_x),
            sum_y: mix(&self.sum_y, &weighted.sum_y),
            xtx: mix_matrix(&self.xtx, &weighted.xtx),
            xty: mix_matrix(&self.xty, &weighted.xty),
            yty: mix(&self.yty, &weighted.yty),
        }
    }

    /// The largest share of the weights at which the blend's effective count stays at or above
    /// `least`; 0 where even equal weights do not reach it.
    pub(super) fn largest_share(&self, weighted: &Self, least: f64) -> f64 {
        let reaches = |share: f64| {
            let rest = 1.0 - share;
            let total = rest * self.total + share * weighted.total;
            let squares = rest * rest * self.squares
                + 2.0 * rest * share * weighted.total
                + share * share * weighted.squares;
            total * total >= least * squares
        };
        if reaches(1.0) {
            return 1.0;
        }
        // The effective count falls as the share grows, so the border is found by halving.
        let (mut low, mut high) = (0.0, 1.0);
        for _ in 0..60 {
            let middle = (low + high) / 2.0;
            if reaches(middle) {
                low = middle;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Moments about the means; only for a total above zero.
    pub(crate) fn centred(&self) -> Centred {
        let n = self.total;
        let mean = |sums: &[f64]| -> Vec<f64> { sums.iter().map(|sum| sum / n).collect() };
        let (mean_x, mean_y) = (mean(&self.sum_x), mean(&self.sum_y));
        let (p, q) = (mean_x.len(), mean_y.len());
        let xtx = Mat::from_fn(p, p, |i, j| {
            let (row, column) = (i.max(j), i.min(j));
            self.xtx[(row, column)] - n * mean_x[row] * mean_x[column]
        });
        let xty = Mat::from_fn(p, q, |i, j| self.xty[(i, j)] - n * mean_x[i] * mean_y[j]);
        // A difference of nearly equal sums may come out just below zero.
        let square = |(sum, mean): (&f64, &f64)| (sum - n * mean * mean).max(0.0);
        let yty = self.yty.iter().zip(&mean_y).map(square).collect();
        Centred {
            mean_x,
            mean_y,
            xtx,
            xty,
            yty,
        }
    }
}

/// Checks that weights are numbers of at least zero.
pub(super) fn check_weights<T: Copy + Into<f64>>(weights: &[T]) -> Result<(), AlignError> {
    let usable = |weight: f64| weight.is_finite() && weight >= 0.0;
    if weights.iter().all(|weight| usable((*weight).into())) {
        return Ok(());
    }
    Err(AlignError::Weights {
        reason: "a weight is below zero or no number".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_agree_with_the_definition_in_any_split() {
        let x: Vec<f64> = (0..12).map(|i| f64::from(i * i % 7)).collect();
        let y: Vec<f64> = (0..8).map(|i| f64::from(i * 5 % 9)).collect();
        let mut whole = Moments::new(3, 2);
        whole.add(&x, &y).unwrap();
        let mut first = Moments::new(3, 2);
        first.add(&x[..3], &y[..2]).unwrap();
        let mut rest = Moments::new(3, 2);
        rest.add(&x[3..], &y[2..]).unwrap();
        first.merge(&rest).unwrap();
        assert_eq!(first.count(), 4);
        for moments in [&whole, &first] {
            let centred = moments.centred();
            for i in 0..3 {
                let mean = (0..4).map(|t| x[t * 3 + i]).sum::<f64>() / 4.0;
                assert!((centred.mean_x[i] - mean).abs() < 1e-12);
                for j in 0..3 {
                    let other = centred.mean_x[j];
                    let sum: f64 = (0..4)
                        .map(|t| (x[t * 3 + i] - mean) * (x[t * 3 + j] - other))
                        .sum();
                    assert!((centred.xtx[(i, j)] - sum).abs() < 1e-9);
                }
                for j in 0..2 {
                    let other = centred.mean_y[j];
                    let sum: f64 = (0..4)
                        .map(|t| (x[t * 3 + i] - mean) * (y[t * 2 + j] - other))
                        .sum();
                    assert!((centred.xty[(i, j)] - sum).abs() < 1e-9);
                }
            }
        }
    }

    #[test]
    fn bad_rows_are_refused_and_change_nothing() {
        let mut moments = Moments::new(2, 1);
        assert!(matches!(
            moments.add(&[1.0], &[1.0]),
            Err(AlignError::Rows { .. })
        ));
        assert!(matches!(
            moments.add(&[1.0; 3], &[1.0; 2]),
            Err(AlignError::Rows { .. })
        ));
        let poison = moments.add(&[1.0, f64::NAN], &[1.0]);
        assert!(matches!(poison, Err(AlignError::NotFinite { .. })));
        assert_eq!(moments.count(), 0);
        for (weights, row_error) in [(&[-1.0][..], false), (&[f64::NAN], false), (&[], true)] {
            let error = moments
                .add_weighted(&[1.0, 2.0], &[1.0], weights)
                .unwrap_err();
            assert_eq!(matches!(error, AlignError::Rows { .. }), row_error);
        }
        assert_eq!(moments.total(), 0.0);
        assert!(moments.add(&[], &[]).is_ok());
        assert!(moments.merge(&Moments::new(2, 2)).is_err());
        assert!(Moments::new(0, 1).add(&[], &[1.0]).is_err());
        assert!(Moments::new(1, 0).add(&[1.0], &[]).is_err());
    }

    #[test]
    fn a_weight_of_two_counts_a_row_twice() {
        let (x, y) = ([1.0, 4.0, -2.0], [3.0, 0.5, 7.0]);
        let mut weighted = Moments::new(1, 1);
        weighted.add_weighted(&x, &y, &[2.0, 0.0, 1.0]).unwrap();
        let mut repeated = Moments::new(1, 1);
        repeated.add(&[1.0, 1.0, -2.0], &[3.0, 3.0, 7.0]).unwrap();
        let (left, right) = (weighted.centred(), repeated.centred());
        assert!((left.mean_x[0] - right.mean_x[0]).abs() < 1e-12);
        assert!((left.xtx[(0, 0)] - right.xtx[(0, 0)]).abs() < 1e-12);
        assert!((left.xty[(0, 0)] - right.xty[(0, 0)]).abs() < 1e-12);
        assert!((left.yty[0] - right.yty[0]).abs() < 1e-12);
        assert!((weighted.effective_count() - 9.0 / 5.0).abs() < 1e-12);
    }

    proptest::proptest! {
        /// A blend is what the blended weights would have summed to, and the bound on its
        /// effective count holds with no more shrinkage than it takes.
        #[test]
        fn blends_keep_the_effective_count(
            weights in proptest::collection::vec(0.0_f64..100.0, 2..40),
            least in 1.0_f64..40.0,
        ) {
            let sum: f64 = weights.iter().sum();
            proptest::prop_assume!(sum > 1e-3);
            let n = weights.len() as f64;
            let weights: Vec<f64> = weights.iter().map(|weight| weight / sum * n).collect();
            let x: Vec<f64> = (0..weights.len()).map(|i| (i * i % 7) as f64).collect();
            let y: Vec<f64> = (0..weights.len()).map(|i| (i * 3 % 5) as f64).collect();
            let mut plain = Moments::new(1, 1);
            plain.add(&x, &y).unwrap();
            let mut weighted = Moments::new(1, 1);
            weighted.add_weighted(&x, &y, &weights).unwrap();
            let least = least.min(n);
            let share = plain.largest_share(&weighted, least);
            let blend = plain.blended(&weighted, share);
            proptest::prop_assert!(blend.effective_count() >= least * (1.0 - 1e-9));
            if share < 1.0 {
                let more = plain.blended(&weighted, (share + 1e-3).min(1.0));
                proptest::prop_assert!(more.effective_count() <= least * (1.0 + 1e-6));
            }
            let mixed: Vec<f64> = weights.iter().map(|w| 1.0 - share + share * w).collect();
            let mut direct = Moments::new(1, 1);
            direct.add_weighted(&x, &y, &mixed).unwrap();
            proptest::prop_assert!((blend.effective_count() - direct.effective_count()).abs() < 1e-6);
            let (left, right) = (blend.centred(), direct.centred());
            proptest::prop_assert!((left.xty[(0, 0)] - right.xty[(0, 0)]).abs() < 1e-6);
            proptest::prop_assert!((left.xtx[(0, 0)] - right.xtx[(0, 0)]).abs() < 1e-6);
        }
    }
}
