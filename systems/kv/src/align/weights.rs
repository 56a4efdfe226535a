//! Fitted matrices as bridge files hold them: in fp16, or in 8 bits with a scale for each row
//! and each column.

use faer::{Mat, MatRef};
use half::f16;
use serde::{Deserialize, Serialize};

use super::AlignError;

/// Largest magnitude of an 8-bit code.
const MAX_CODE: f64 = 127.0;

/// How the numbers of fitted matrices are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// fp16, two bytes a weight.
    F16,
    /// 8 bits, one byte a weight: `code * row_scale * column_scale`. The scales let channels of
    /// very different size stand in one matrix.
    Int8,
    /// Of a map in two factors the first in 8 bits and the second in fp16; a dense one in fp16. What
    /// training leaves: it moves the second, and leans on small numbers between the two.
    Int8Down,
}

impl Storage {
    /// How a dense map and a map's second factor are stored.
    pub(super) const fn last(self) -> Self {
        match self {
            Self::Int8Down => Self::F16,
            alike => alike,
        }
    }

    /// How a map's first factor of two is stored.
    pub(super) const fn first(self) -> Self {
        match self {
            Self::Int8Down => Self::Int8,
            alike => alike,
        }
    }
}

/// A matrix whose numbers are those that a file holds, widened to f32.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    rows: usize,
    columns: usize,
    /// `[rows, columns]`, row-major.
    numbers: Vec<f32>,
    scales: Option<Scales>,
}

/// The scales of a matrix in 8 bits.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scales {
    pub(super) rows: Vec<f32>,
    pub(super) columns: Vec<f32>,
}

impl Matrix {
    /// Rounds a matrix to what will be stored.
    ///
    /// # Errors
    /// [`AlignError::NotFinite`] for numbers that the storage cannot hold.
    pub(super) fn round(exact: MatRef<'_, f64>, storage: Storage) -> Result<Self, AlignError> {
        let matrix = match storage {
            Storage::F16 | Storage::Int8Down => {
                let (rows, columns) = exact.shape();
                let numbers = (0..rows)
                    .flat_map(|i| (0..columns).map(move |j| f16::from_f64(exact[(i, j)]).to_f32()));
                Some(Self::new(rows, columns, numbers.collect(), None))
            }
            Storage::Int8 => Self::quantise(exact),
        };
        let matrix = matrix.filter(|matrix| matrix.numbers.iter().all(|x| x.is_finite()));
        matrix.ok_or_else(|| AlignError::NotFinite {
            what: "fitted weights".to_owned(),
        })
    }

    fn quantise(exact: MatRef<'_, f64>) -> Option<Self> {
        let (rows, columns) = exact.shape();
        let column_scales: Vec<f32> = (0..columns)
            .map(|j| {
                let square: f64 = (0..rows).map(|i| exact[(i, j)].powi(2)).sum();
                let rms = (square / rows as f64).sqrt() as f32;
                // A column of zeros has no scale, and any will do.
                if rms == 0.0 { 1.0 } else { rms }
            })
            .collect();
        let row_scales: Vec<f32> = (0..rows)
            .map(|i| {
                let sizes =
                    (0..columns).map(|j| (exact[(i, j)] / f64::from(column_scales[j])).abs());
                (sizes.fold(0.0, f64::max) / MAX_CODE) as f32
            })
            .collect();
        if !row_scales
            .iter()
            .chain(&column_scales)
            .all(|x| x.is_finite())
        {
            return None;
        }
        let mut codes = Vec::with_capacity(rows * columns);
        for (i, row_scale) in row_scales.iter().enumerate() {
            for (j, column_scale) in column_scales.iter().enumerate() {
                let step = f64::from(row_scale * column_scale);
                let code = if step > 0.0 {
                    exact[(i, j)] / step
                } else {
                    0.0
                };
                if code.is_nan() {
                    return None;
                }
                codes.push(code.round().clamp(-MAX_CODE, MAX_CODE) as i8);
            }
        }
        let scales = Scales {
            rows: row_scales,
            columns: column_scales,
        };
        Some(Self::from_codes(rows, columns, &codes, scales))
    }

    /// A matrix of numbers that its storage holds exactly.
    pub(super) const fn new(
        rows: usize,
        columns: usize,
        numbers: Vec<f32>,
        scales: Option<Scales>,
    ) -> Self {
        Self {
            rows,
            columns,
            numbers,
            scales,
        }
    }

    pub(super) fn from_codes(rows: usize, columns: usize, codes: &[i8], scales: Scales) -> Self {
        let mut numbers = Vec::with_capacity(codes.len());
        for (row, row_scale) in codes.chunks_exact(columns).zip(&scales.rows) {
            let row = row.iter().zip(&scales.columns);
            numbers.extend(row.map(|(code, scale)| f32::from(*code) * (row_scale * scale)));
        }
        Self::new(rows, columns, numbers, Some(scales))
    }

    /// The codes and scales of a matrix in 8 bits.
    pub(super) fn codes(&self) -> Option<(Vec<i8>, &Scales)> {
        let scales = self.scales.as_ref()?;
        let mut codes = Vec::with_capacity(self.numbers.len());
        for (row, row_scale) in self.numbers.chunks_exact(self.columns).zip(&scales.rows) {
            for (number, scale) in row.iter().zip(&scales.columns) {
                let step = row_scale * scale;
                // Exact: a code has 7 bits, the quotient 24.
                let code = if step == 0.0 { 0.0 } else { number / step };
                codes.push(code.round() as i8);
            }
        }
        Some((codes, scales))
    }

    /// Rows.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    #[must_use]
    pub const fn columns(&self) -> usize {
        self.columns
    }

    /// The numbers, `[rows, columns]`, row-major.
    #[must_use]
    pub fn numbers(&self) -> &[f32] {
        &self.numbers
    }

    /// How it is stored.
    #[must_use]
    pub const fn storage(&self) -> Storage {
        match self.scales {
            None => Storage::F16,
            Some(_) => Storage::Int8,
        }
    }

    pub(super) fn view(&self) -> MatRef<'_, f32> {
        MatRef::from_row_major_slice(&self.numbers, self.rows, self.columns)
    }

    pub(super) fn widened(&self) -> Mat<f64> {
        let at = |i, j| f64::from(self.numbers[i * self.columns + j]);
        Mat::from_fn(self.rows, self.columns, at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn exact(rows: usize, columns: usize, numbers: &[f64]) -> Mat<f64> {
        Mat::from_fn(rows, columns, |i, j| {
            numbers[(i * 31 + j * 7) % numbers.len()]
        })
    }

    proptest! {
        /// A number is off by half a step, and its step follows its row and column alone.
        #[test]
        fn eight_bits_round_to_the_nearest_code(
            numbers in proptest::collection::vec(-1e3_f64..1e3, 1..40),
            rows in 1_usize..9,
            columns in 1_usize..9,
            large in 0_usize..9,
        ) {
            let mut exact = exact(rows, columns, &numbers);
            for j in 0..columns {
                exact[(large % rows, j)] *= 1e4;
            }
            let matrix = Matrix::round(exact.as_ref(), Storage::Int8).unwrap();
            let (codes, scales) = matrix.codes().unwrap();
            prop_assert_eq!(
                &Matrix::from_codes(rows, columns, &codes, scales.clone()),
                &matrix
            );
            for i in 0..rows {
                for j in 0..columns {
                    let step = f64::from(scales.rows[i] * scales.columns[j]);
                    let error = f64::from(matrix.numbers[i * columns + j]) - exact[(i, j)];
                    let slack = exact[(i, j)].abs() * 1e-6;
                    prop_assert!(error.abs() <= step * 0.5 + slack, "{error} of {step}");
                }
            }
        }
    }

    #[test]
    fn numbers_beyond_the_storage_are_refused() {
        for (number, storage, fits) in [
            (6e4, Storage::F16, true),
            (7e4, Storage::F16, false),
            (7e4, Storage::Int8, true),
            (1e60, Storage::Int8, false),
            (f64::NAN, Storage::Int8, false),
            (f64::NAN, Storage::F16, false),
            (0.0, Storage::Int8, true),
        ] {
            let exact = Mat::from_fn(2, 2, |i, _| if i == 0 { number } else { 1.0 });
            let rounded = Matrix::round(exact.as_ref(), storage);
            assert_eq!(rounded.is_ok(), fits, "{number} {storage:?}");
        }
    }
}
