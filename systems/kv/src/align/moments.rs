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

impl Moments {
    /// Sums over nothing, for rows of `p` and `q` numbers.
    #[must_use]
    pub fn new(p: usize, q: usize) -> Self {
        Self {
            count: 0,
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

    /// Adds pairs of rows: `x` is `[n, p]`, `y` is `[n, q]`, both row-major.
    ///
    /// # Errors
    /// [`AlignError::Rows`] when the lengths do not fit together, [`AlignError::NotFinite`] for
    /// a NaN or an infinity. Nothing is added then.
    pub fn add(&mut self, x: &[f64], y: &[f64]) -> Result<(), AlignError> {
        let (p, q) = (self.source_width(), self.target_width());
        // Rows of no numbers cannot be counted, so they are no rows.
        let rows = if p == 0 || q == 0 { 0 } else { y.len() / q };
        for (found, expected) in [(x.len(), p), (y.len(), q)] {
            if found != rows * expected {
                return Err(AlignError::Rows {
                    expected,
                    rows,
                    found,
                });
            }
        }
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
        for row in x.chunks_exact(p) {
            self.sum_x
                .iter_mut()
                .zip(row)
                .for_each(|(sum, x)| *sum += x);
        }
        for row in y.chunks_exact(q) {
            let sums = self.sum_y.iter_mut().zip(&mut self.yty);
            sums.zip(row).for_each(|((sum, square), y)| {
                *sum += y;
                *square += y * y;
            });
        }
        let x = MatRef::from_row_major_slice(x, rows, p);
        let y = MatRef::from_row_major_slice(y, rows, q);
        triangular::matmul(
            &mut self.xtx,
            BlockStructure::TriangularLower,
            Accum::Add,
            x.transpose(),
            BlockStructure::Rectangular,
            x,
            BlockStructure::Rectangular,
            1.0,
            Par::Seq,
        );
        matmul(&mut self.xty, Accum::Add, x.transpose(), y, 1.0, Par::Seq);
        self.count += rows as u64;
        Ok(())
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

    /// Moments about the means; only for a count above zero.
    pub(crate) fn centred(&self) -> Centred {
        let n = self.count as f64;
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
        assert!(moments.add(&[], &[]).is_ok());
        assert!(moments.merge(&Moments::new(2, 2)).is_err());
        assert!(Moments::new(0, 1).add(&[], &[1.0]).is_err());
        assert!(Moments::new(1, 0).add(&[1.0], &[]).is_err());
    }
}
