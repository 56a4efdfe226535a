//! Maps in two factors, of which the first or both are stored in 8 bits, by products of bytes: what a
//! cloud computes for every context of every edge.
//!
//! Such factors have 255 levels a column; a second one in fp16 is multiplied as floats. A row is centred by the mean of the rows at hand, each of
//! its numbers weighed by how much the map makes of it, and every run of [`RUN`] numbers rounded to
//! 255 levels of a unit of its own, so that a run of large numbers costs no other its precision.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

use super::Storage;
use super::weights::Matrix;
use crate::codec::dot::{BytePanels, ROWS, ZERO};

/// Numbers of a row that share a unit: two heads of a layer.
const RUN: usize = 256;

/// A matrix as runs of its rows.
#[derive(Debug, Clone)]
struct Factor {
    /// What a row's numbers are multiplied by before they are rounded.
    weigh: Vec<f32>,
    runs: Vec<BytePanels>,
    columns: usize,
}

impl Factor {
    fn new(matrix: &Matrix) -> Self {
        let (rows, columns) = (matrix.rows(), matrix.columns());
        let numbers = matrix.numbers();
        // Columns may be of any size, so that a row counts by what it is beside the others in each.
        let mut sizes = vec![0.0f64; columns];
        for row in numbers.chunks_exact(columns) {
            for (size, x) in sizes.iter_mut().zip(row) {
                *size += f64::from(*x).powi(2);
            }
        }
        let shares: Vec<f64> = sizes
            .iter()
            .map(|size| if *size > 0.0 { 1.0 / size } else { 0.0 })
            .collect();
        let weigh: Vec<f32> = numbers
            .chunks_exact(columns)
            .map(|row| {
                let squares = row
                    .iter()
                    .zip(&shares)
                    .map(|(x, share)| f64::from(*x).powi(2) * share);
                squares.sum::<f64>().sqrt() as f32
            })
            .collect();
        let run = |start: usize| {
            let depth = RUN.min(rows - start);
            BytePanels::new(depth, columns, |row, column| {
                let weight = weigh[start + row];
                if weight > 0.0 {
                    numbers[(start + row) * columns + column] / weight
                } else {
                    0.0
                }
            })
        };
        let runs = (0..rows).step_by(RUN).map(run).collect();
        Self {
            weigh,
            runs,
            columns,
        }
    }

    /// Adds the products of rows with the matrix to `sums`, a multiple of [`ROWS`] of them.
    /// `centre` is taken off every row.
    fn add_product(&self, rows: &[f32], centre: &[f32], sums: &mut [f32]) {
        let depth = self.weigh.len();
        let count = rows.len() / depth;
        let mut bytes = Vec::new();
        let mut units = vec![0.0; count];
        let mut weighed = vec![0.0; RUN];
        for (panels, start) in self.runs.iter().zip((0..depth).step_by(RUN)) {
            let width = RUN.min(depth - start);
            bytes.clear();
            bytes.resize(count * panels.depth(), ZERO);
            let places = bytes.chunks_exact_mut(panels.depth()).zip(&mut units);
            for (row, (bytes, unit)) in rows.chunks_exact(depth).zip(places) {
                let numbers = row[start..start + width].iter().zip(&centre[start..]);
                // Anything times nothing is nothing, but for what is no number: that must show.
                let (mut largest, mut nothing) = (0.0f32, 0.0f32);
                for ((place, (x, mean)), weight) in
                    weighed.iter_mut().zip(numbers).zip(&self.weigh[start..])
                {
                    *place = (x - mean) * weight;
                    largest = largest.max(place.abs());
                    nothing += *place * 0.0;
                }
                *unit = largest / 127.0 + nothing;
                let scale = if unit.is_normal() { 1.0 / *unit } else { 0.0 };
                for (byte, x) in bytes.iter_mut().zip(&weighed[..width]) {
                    // Halves away from zero; a conversion alone would truncate.
                    let level = x * scale;
                    *byte = (level + 128.5) as u8;
                }
            }
            panels.add_product_in(&bytes, &units, sums);
        }
    }
}

/// A second factor, in bytes or as it is.
#[derive(Debug, Clone)]
enum Second {
    Bytes(Factor),
    Floats(Matrix),
}

/// Two factors, of which the first is in bytes.
#[derive(Debug, Clone)]
pub(super) struct ByteMap {
    down: Factor,
    up: Second,
}

impl ByteMap {
    pub(super) fn new(down: &Matrix, up: &Matrix) -> Self {
        Self {
            down: Factor::new(down),
            up: match up.storage() {
                Storage::Int8 => Second::Bytes(Factor::new(up)),
                _ => Second::Floats(up.clone()),
            },
        }
    }

    /// The mean of rows `[rows, source_width]`: what they are centred by.
    pub(super) fn centre(&self, rows: &[f32]) -> Vec<f32> {
        let width = self.down.weigh.len();
        let count = (rows.len() / width).max(1) as f64;
        let mut sums = vec![0.0f64; width];
        for row in rows.chunks_exact(width) {
            for (sum, x) in sums.iter_mut().zip(row) {
                *sum += f64::from(*x);
            }
        }
        sums.into_iter().map(|sum| (sum / count) as f32).collect()
    }

    /// Maps rows `[rows, source_width]` without their centre's share: `(x - centre) A B`, to
    /// `[rows, target_width]`.
    pub(super) fn map(&self, rows: &[f32], centre: &[f32]) -> Vec<f32> {
        let count = rows.len() / self.down.weigh.len();
        let padded = count.next_multiple_of(ROWS);
        let mut x = rows.to_vec();
        x.resize(padded * self.down.weigh.len(), 0.0);
        let mut inner = vec![0.0; padded * self.down.columns];
        self.down.add_product(&x, centre, &mut inner);
        let rank = self.down.columns;
        match &self.up {
            Second::Bytes(up) => {
                let mut out = vec![0.0; padded * up.columns];
                up.add_product(&inner, &vec![0.0; rank], &mut out);
                out.truncate(count * up.columns);
                out
            }
            Second::Floats(up) => {
                let mut out = vec![0.0; count * up.columns()];
                let inner = MatRef::from_row_major_slice(&inner[..count * rank], count, rank);
                let place = MatMut::from_row_major_slice_mut(&mut out, count, up.columns());
                matmul(place, Accum::Replace, inner, up.view(), 1.0, Par::Seq);
                out
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use faer::Mat;

    use super::*;
    use crate::align::Storage;

    /// Rows far from zero, channels of any size, a token that is far off: about a hundredth of the
    /// output's spread, and zeros give zeros.
    #[test]
    fn products_are_near_those_of_floats() {
        let (rows, p, rank, q) = (21, 300, 40, 70);
        // Splitmix64: what hangs together would cancel out, and leave nothing but errors.
        let noise = |i: usize, j: usize, salt: usize| {
            let mut x = ((i << 32) | (j << 8) | salt) as u64;
            for _ in 0..2 {
                x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
                x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                x ^= x >> 31;
            }
            (x >> 40) as f64 / f64::from(1 << 23) - 1.0
        };
        let size = |i: usize| 10f64.powi(i as i32 % 5 - 2);
        let down = Mat::from_fn(p, rank, |i, j| noise(i, j, 1) / size(i));
        let up = Mat::from_fn(rank, q, |i, j| noise(i, j, 2) * size(j + 1));
        let round = |exact: &Mat<f64>| Matrix::round(exact.as_ref(), Storage::F16).unwrap();
        let (down, up) = (round(&down), round(&up));
        let x = |row: usize, i: usize| {
            let far = if row == 3 { 20.0 } else { 1.0 };
            ((noise(row, i, 3) * far + 30.0) * size(i)) as f32
        };
        let numbers: Vec<f32> = (0..rows)
            .flat_map(|row| (0..p).map(move |i| x(row, i)))
            .collect();
        let coarse = Matrix::round(up.widened().as_ref(), Storage::Int8).unwrap();
        for up in [&up, &coarse] {
            let map = ByteMap::new(&down, up);
            let centre = map.centre(&numbers);
            let found = map.map(&numbers, &centre);
            assert_eq!(found.len(), rows * q);
            let product = down.widened() * up.widened();
            for j in 0..q {
                let exact: Vec<f64> = (0..rows)
                    .map(|row| {
                        (0..p)
                            .map(|i| f64::from(x(row, i) - centre[i]) * product[(i, j)])
                            .sum()
                    })
                    .collect();
                let near = exact.iter().enumerate().filter(|(row, _)| *row != 3);
                let spread = (near.map(|(_, y)| y * y).sum::<f64>() / (rows - 1) as f64).sqrt();
                let errors = exact.iter().enumerate().filter(|(row, _)| *row != 3);
                let errors: f64 = errors
                    .map(|(row, exact)| (f64::from(found[row * q + j]) - exact).powi(2))
                    .sum();
                let error = (errors / (rows - 1) as f64).sqrt();
                assert!(error < 0.04 * spread, "{j}: {error} of {spread}");
                // Twenty times as large, and so is what rounding it costs.
                let far = (f64::from(found[3 * q + j]) - exact[3]).abs();
                assert!(far < 0.1 * 20.0 * spread, "{j}: {far} of {spread}");
            }
            let mut bad = numbers.clone();
            bad[5 * p + 1] = f32::NAN;
            let bad = map.map(&bad, &centre);
            assert!(bad[5 * q..6 * q].iter().all(|y| y.is_nan()) && !bad[0].is_nan());
            let zeros = map.map(&centre, &centre);
            assert!(zeros.iter().all(|y| *y == 0.0));
        }
    }
}
