//! An affine map of rows, dense or in two factors, with the numbers that a bridge file holds.

use std::ops::Range;
use std::sync::OnceLock;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};

use super::bytes::ByteMap;
use super::weights::Matrix;
use super::{AlignError, Moments, Storage};

/// The linear part of an [`Affine`].
#[derive(Debug, Clone, PartialEq)]
pub enum Weights {
    /// `[source_width, target_width]`.
    Dense(Matrix),
    /// The product of two thin matrices.
    Factored {
        /// `[source_width, rank]`.
        down: Matrix,
        /// `[rank, target_width]`.
        up: Matrix,
    },
}

/// What a mapping has solved for, before it is rounded to what is stored.
#[derive(Debug, Clone)]
pub(super) enum Solution {
    Dense(Mat<f64>),
    Factored { down: Mat<f64>, up: Mat<f64> },
}

/// An affine map of rows: `y = mean + gain · (x W + bias − mean)`, the gain given on use.
///
/// `mean` is the target's mean over the calibration text: ridge shrinks towards it, and a gain
/// above one stretches the prediction away from it again.
#[derive(Debug, Clone, PartialEq)]
pub struct Affine {
    pub(super) weights: Weights,
    pub(super) bias: Vec<f32>,
    pub(super) mean: Vec<f32>,
    bytes: Derived,
}

/// What follows from the weights: equal maps have equal ones.
#[derive(Debug, Clone, Default)]
struct Derived(OnceLock<ByteMap>);

impl PartialEq for Derived {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// A map by products of bytes around the mean of some rows.
#[derive(Debug)]
pub(super) struct InBytes<'a> {
    map: &'a ByteMap,
    centre: Vec<f32>,
    /// What the centre is mapped to.
    offset: Vec<f32>,
}

impl InBytes<'_> {
    /// Maps rows to some columns, `[rows, columns.len()]`. All are computed.
    pub(super) fn predict(&self, x: &[f32], columns: Range<usize>, y: &mut Vec<f32>) {
        y.clear();
        for row in self
            .map
            .map(x, &self.centre)
            .chunks_exact(self.offset.len())
        {
            let row = row[columns.clone()]
                .iter()
                .zip(&self.offset[columns.clone()]);
            y.extend(row.map(|(y, offset)| y + offset));
        }
    }
}

/// Weights in f32, row-major, on their way into a map.
#[derive(Debug, Clone, Copy)]
pub enum Numbers<'a> {
    /// `[source_width, target_width]`.
    Dense(&'a [f32]),
    /// Two factors.
    Factored {
        /// `[source_width, rank]`.
        down: &'a [f32],
        /// `[rank, target_width]`.
        up: &'a [f32],
    },
    /// The second of two factors, `[rank, target_width]`; the first stays as it is stored.
    Second(&'a [f32]),
}

impl Affine {
    pub(super) const fn of(weights: Weights, bias: Vec<f32>, mean: Vec<f32>) -> Self {
        Self {
            weights,
            bias,
            mean,
            bytes: Derived(OnceLock::new()),
        }
    }

    /// The same widths and mean with other weights and another bias, for maps that are found by
    /// other means than a regression.
    ///
    /// # Errors
    /// [`AlignError::Rows`] for another number of numbers, [`AlignError::NotFinite`] for numbers
    /// that the storage cannot hold.
    pub fn with_numbers(
        &self,
        numbers: Numbers<'_>,
        bias: Vec<f32>,
        storage: Storage,
    ) -> Result<Self, AlignError> {
        let matrix = |rows: usize, columns: usize, numbers: &[f32], storage| {
            if numbers.len() != rows * columns {
                return Err(AlignError::Rows {
                    expected: columns,
                    rows,
                    found: numbers.len(),
                });
            }
            let exact = MatRef::from_row_major_slice(numbers, rows, columns);
            let exact = Mat::from_fn(rows, columns, |i, j| f64::from(exact[(i, j)]));
            Matrix::round(exact.as_ref(), storage)
        };
        let (p, q) = (self.source_width(), self.target_width());
        let weights = match numbers {
            Numbers::Dense(numbers) => Weights::Dense(matrix(p, q, numbers, storage.last())?),
            Numbers::Factored { down, up } => {
                let rank = down.len() / p.max(1);
                Weights::Factored {
                    down: matrix(p, rank, down, storage.first())?,
                    up: matrix(rank, q, up, storage.last())?,
                }
            }
            Numbers::Second(up) => {
                let down = match &self.weights {
                    Weights::Factored { down, .. } => down.clone(),
                    // A dense map is its own second factor.
                    Weights::Dense(_) => {
                        return self.with_numbers(Numbers::Dense(up), bias, storage);
                    }
                };
                let up = matrix(down.columns(), q, up, storage.last())?;
                Weights::Factored { down, up }
            }
        };
        if bias.len() != q {
            return Err(AlignError::Rows {
                expected: q,
                rows: 1,
                found: bias.len(),
            });
        }
        if !bias.iter().all(|x| x.is_finite()) {
            return Err(AlignError::NotFinite {
                what: "biases".to_owned(),
            });
        }
        Ok(Self::of(weights, bias, self.mean.clone()))
    }

    /// The map by products of bytes around the mean of some rows; `None` where it is dense, or its
    /// first factor is stored in more than bytes because it needs more. The bytes are laid out at the first use.
    pub(super) fn in_bytes(&self, rows: &[f32]) -> Option<InBytes<'_>> {
        let Weights::Factored { down, up } = &self.weights else {
            return None;
        };
        if down.storage() != Storage::Int8 {
            return None;
        }
        let map = self.bytes.0.get_or_init(|| ByteMap::new(down, up));
        let centre = map.centre(rows);
        let wide: Vec<f64> = centre.iter().map(|x| f64::from(*x)).collect();
        let shift = product(&product(&wide, down), up);
        let offset = self.bias.iter().zip(shift);
        Some(InBytes {
            offset: offset.map(|(bias, shift)| bias + shift as f32).collect(),
            map,
            centre,
        })
    }

    /// What is added to every row, `[target_width]`.
    #[must_use]
    pub fn bias(&self) -> &[f32] {
        &self.bias
    }

    /// Rounds a solution for centred rows. The bias is computed for the rounded weights, so that
    /// the mean of the source is mapped to that of the target whatever the storage.
    ///
    /// # Errors
    /// [`AlignError::NotFinite`] for numbers that the storage cannot hold.
    pub(super) fn new(
        solution: &Solution,
        mean_x: &[f64],
        mean_y: &[f64],
        storage: Storage,
    ) -> Result<Self, AlignError> {
        let round = |exact: &Mat<f64>, storage| Matrix::round(exact.as_ref(), storage);
        let weights = match solution {
            Solution::Dense(exact) => Weights::Dense(round(exact, storage.last())?),
            Solution::Factored { down, up } => Weights::Factored {
                down: round(down, storage.first())?,
                up: round(up, storage.last())?,
            },
        };
        let shift = match &weights {
            Weights::Dense(weight) => product(mean_x, weight),
            Weights::Factored { down, up } => product(&product(mean_x, down), up),
        };
        let bias = mean_y.iter().zip(shift).map(|(mean, shift)| mean - shift);
        let bias: Vec<f32> = bias.map(|x| x as f32).collect();
        let mean: Vec<f32> = mean_y.iter().map(|x| *x as f32).collect();
        if !bias.iter().chain(&mean).all(|x| x.is_finite()) {
            return Err(AlignError::NotFinite {
                what: "fitted biases".to_owned(),
            });
        }
        Ok(Self::of(weights, bias, mean))
    }

    /// Numbers per source row.
    #[must_use]
    pub const fn source_width(&self) -> usize {
        match &self.weights {
            Weights::Dense(weight) => weight.rows(),
            Weights::Factored { down, .. } => down.rows(),
        }
    }

    /// Numbers per target row.
    #[must_use]
    pub const fn target_width(&self) -> usize {
        self.bias.len()
    }

    /// The linear part.
    #[must_use]
    pub const fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Multiplications for one row.
    #[must_use]
    pub const fn multiplications(&self) -> usize {
        match &self.weights {
            Weights::Dense(weight) => weight.rows() * weight.columns(),
            Weights::Factored { down, up } => down.columns() * (down.rows() + up.columns()),
        }
    }

    /// Maps rows: `x` is `[n, source_width]`, `y` is `[n, target_width]`, both row-major.
    ///
    /// # Errors
    /// [`AlignError::Rows`] when the lengths do not fit together.
    pub fn apply(&self, x: &[f32], gain: f32, y: &mut [f32]) -> Result<(), AlignError> {
        self.predict(x, 0..self.target_width(), y)?;
        for row in y.chunks_exact_mut(self.target_width()) {
            self.stretch(row, 0, gain);
        }
        Ok(())
    }

    /// Maps rows to some columns of the target, at gain one: `y` is `[n, columns.len()]`.
    pub(super) fn predict(
        &self,
        x: &[f32],
        columns: Range<usize>,
        y: &mut [f32],
    ) -> Result<(), AlignError> {
        let (p, q) = (self.source_width(), columns.len());
        let rows = x.len() / p;
        for (found, expected) in [(x.len(), p), (y.len(), q)] {
            if found != rows * expected {
                return Err(AlignError::Rows {
                    expected,
                    rows,
                    found,
                });
            }
        }
        let x = MatRef::from_row_major_slice(x, rows, p);
        let multiply = |y: MatMut<'_, f32>, x: MatRef<'_, f32>, weight: MatRef<'_, f32>| {
            matmul(y, Accum::Replace, x, weight, 1.0, Par::Seq);
        };
        let target = MatMut::from_row_major_slice_mut(y, rows, q);
        match &self.weights {
            Weights::Dense(weight) => {
                multiply(target, x, weight.view().subcols(columns.start, q));
            }
            Weights::Factored { down, up } => {
                let rank = down.columns();
                let mut inner = vec![0.0; rows * rank];
                let between = MatMut::from_row_major_slice_mut(&mut inner, rows, rank);
                multiply(between, x, down.view());
                let inner = MatRef::from_row_major_slice(&inner, rows, rank);
                multiply(target, inner, up.view().subcols(columns.start, q));
            }
        }
        for row in y.chunks_exact_mut(q) {
            let bias = &self.bias[columns.clone()];
            row.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
        }
        Ok(())
    }

    /// Stretches a run of predictions, from column `start` on, away from the mean.
    pub(super) fn stretch(&self, run: &mut [f32], start: usize, gain: f32) {
        if gain == 1.0 {
            return;
        }
        for (y, mean) in run.iter_mut().zip(&self.mean[start..]) {
            *y = mean + gain * (*y - mean);
        }
    }

    /// Share of the target's variance that the map explains on other data, at gain one: one
    /// minus the squared error over the squared distance from that data's own mean, summed
    /// over channels. 0 where the target does not vary.
    #[must_use]
    pub fn r2(&self, held_out: &Moments) -> f64 {
        if held_out.count() == 0 {
            return 0.0;
        }
        let n = held_out.total();
        let (weight, moments) = (self.linear(), held_out.centred());
        let Spread { predicted, cross } = spread(&weight, &moments.xtx, &moments.xty);
        let mut residual = 0.0;
        for j in 0..self.target_width() {
            let shifts = (0..weight.nrows()).map(|i| moments.mean_x[i] * weight[(i, j)]);
            let predicted_mean = f64::from(self.bias[j]) + shifts.sum::<f64>();
            let drift = moments.mean_y[j] - predicted_mean;
            let spread = moments.yty[j] - 2.0 * cross[j] + predicted[j];
            residual += spread.max(0.0) + n * drift * drift;
        }
        let total: f64 = moments.yty.iter().sum();
        if total > 0.0 {
            1.0 - residual / total
        } else {
            0.0
        }
    }

    /// Cosine between the map's output and the target on other data, both about that data's
    /// means and over all tokens and channels at once: -1 to 1, 0 where either does not vary.
    #[must_use]
    pub fn cosine(&self, held_out: &Moments) -> f64 {
        if held_out.count() == 0 {
            return 0.0;
        }
        let moments = held_out.centred();
        let Spread { predicted, cross } = spread(&self.linear(), &moments.xtx, &moments.xty);
        let sum = |numbers: &[f64]| -> f64 { numbers.iter().sum() };
        let lengths = sum(&predicted).max(0.0) * sum(&moments.yty);
        if lengths > 0.0 {
            (sum(&cross) / lengths.sqrt()).clamp(-1.0, 1.0)
        } else {
            0.0
        }
    }

    /// The linear part as one matrix, `[source_width, target_width]`.
    fn linear(&self) -> Mat<f64> {
        match &self.weights {
            Weights::Dense(weight) => weight.widened(),
            Weights::Factored { down, up } => down.widened() * up.widened(),
        }
    }
}

/// Sums over tokens for every target channel, about the means.
struct Spread {
    /// Of the squared prediction.
    predicted: Vec<f64>,
    /// Of prediction times target.
    cross: Vec<f64>,
}

fn spread(weight: &Mat<f64>, xtx: &Mat<f64>, xty: &Mat<f64>) -> Spread {
    let product = xtx * weight;
    let against = |other: &Mat<f64>| -> Vec<f64> {
        let column = |j| {
            (0..weight.nrows())
                .map(|i| weight[(i, j)] * other[(i, j)])
                .sum()
        };
        (0..weight.ncols()).map(column).collect()
    };
    Spread {
        predicted: against(&product),
        cross: against(xty),
    }
}

/// A row times a matrix.
fn product(row: &[f64], matrix: &Matrix) -> Vec<f64> {
    let mut sums = vec![0.0; matrix.columns()];
    for (x, weights) in row
        .iter()
        .zip(matrix.numbers().chunks_exact(matrix.columns()))
    {
        for (sum, weight) in sums.iter_mut().zip(weights) {
            *sum += x * f64::from(*weight);
        }
    }
    sums
}
