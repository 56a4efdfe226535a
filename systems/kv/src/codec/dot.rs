//! Products of rows of bytes with one fixed matrix of bytes: predictions, four times as fast as
//! products of 32-bit floats where the target has instructions for them, and the same numbers on
//! every machine.

use super::vector::{COLUMNS, QUAD, Quad, multiply};

pub(crate) use super::vector::ROWS;

/// What a factor of zero is in a row.
pub(crate) const ZERO: u8 = 128;
/// Sums stay within 32 bits up to this many factors of 255 and 127.
const MAX_DEPTH: usize = 1 << 16;

/// A matrix of bytes, each column with a scale of its own, stored in panels of [`COLUMNS`] columns.
#[derive(Debug, Clone, Default)]
pub(crate) struct BytePanels {
    /// Rows, a multiple of [`QUAD`]; columns.
    depth: usize,
    columns: usize,
    /// `[columns / COLUMNS][depth / QUAD][COLUMNS][QUAD]`.
    numbers: Vec<Quad>,
    /// What sums start from, so that a row of [`ZERO`] gives zeros, and their unit.
    start: Vec<i32>,
    scale: Vec<f32>,
}

impl BytePanels {
    /// The matrix `[depth, columns]` whose numbers `at(row, column)` gives, rounded to 255 levels
    /// of each column's largest.
    pub(crate) fn new(depth: usize, columns: usize, at: impl Fn(usize, usize) -> f32) -> Self {
        debug_assert!(depth <= MAX_DEPTH, "{depth}");
        let quads = depth.div_ceil(QUAD);
        let mut numbers = vec![[[0; QUAD]; COLUMNS]; quads * columns.div_ceil(COLUMNS)];
        let (mut start, mut scale) = (vec![0; columns], vec![0.0; columns]);
        for column in 0..columns {
            let largest = (0..depth).fold(0.0_f32, |most, row| most.max(at(row, column).abs()));
            let unit = largest / 127.0;
            // Too small to divide by, or not a number: a column of zeros.
            if !unit.is_normal() {
                continue;
            }
            scale[column] = unit;
            for row in 0..depth {
                let number = (at(row, column) / unit).round_ties_even() as i8;
                let quad = column / COLUMNS * quads + row / QUAD;
                numbers[quad][column % COLUMNS][row % QUAD] = number;
                start[column] -= i32::from(ZERO) * i32::from(number);
            }
        }
        Self {
            depth: quads * QUAD,
            columns,
            numbers,
            start,
            scale,
        }
    }

    /// Bytes of a row: the matrix's rows, filled up to a multiple of four.
    pub(crate) const fn depth(&self) -> usize {
        self.depth
    }

    /// Adds the products of rows of bytes, `[rows, depth]` around [`ZERO`], with the matrix to
    /// `sums`, `[rows, columns]`: a multiple of [`ROWS`] of them.
    pub(crate) fn add_product(&self, rows: &[u8], sums: &mut [f32]) {
        self.add(rows, |_| 1.0, sums);
    }

    /// The same for rows that have a unit each, in which their bytes count.
    pub(crate) fn add_product_in(&self, rows: &[u8], units: &[f32], sums: &mut [f32]) {
        self.add(rows, |row| units[row], sums);
    }

    fn add(&self, rows: &[u8], unit: impl Fn(usize) -> f32, sums: &mut [f32]) {
        if self.depth == 0 {
            return;
        }
        let quads = self.depth / QUAD;
        for (index, panel) in self.numbers.chunks_exact(quads).enumerate() {
            let first = index * COLUMNS;
            let width = COLUMNS.min(self.columns - first);
            let mut start = [0; COLUMNS];
            start[..width].copy_from_slice(&self.start[first..first + width]);
            let scale = &self.scale[first..first + width];
            let rows = rows.chunks_exact(self.depth * ROWS);
            let tiles = rows.zip(sums.chunks_exact_mut(self.columns * ROWS));
            for (tile, (rows, sums)) in tiles.enumerate() {
                let products = multiply(rows.as_chunks().0, panel, &start);
                let sums = sums.chunks_exact_mut(self.columns);
                for (row, (products, sums)) in products.iter().zip(sums).enumerate() {
                    let unit = unit(tile * ROWS + row);
                    let sums = sums[first..first + width].iter_mut();
                    for ((sum, product), scale) in sums.zip(products).zip(scale) {
                        *sum += *product as f32 * (scale * unit);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_near_those_of_the_definition() {
        for (depth, columns) in [(1, 1), (5, 7), (16, 32), (34, 70)] {
            let at = |row: usize, column: usize| match column {
                // A column of nothing, and one that is too small to divide by.
                2 => 0.0,
                3 => 1e-44,
                _ => ((row * 7 + column * 3) % 11) as f32 - 5.0,
            };
            let panels = BytePanels::new(depth, columns, at);
            let mut rows: Vec<u8> = vec![ZERO; 2 * ROWS * panels.depth()];
            for (seed, row) in rows.chunks_exact_mut(panels.depth()).enumerate() {
                for (i, x) in row[..depth].iter_mut().enumerate() {
                    *x = ((i * 7919 + seed * 31) % 256) as u8;
                }
            }
            let mut sums = vec![1.0; 2 * ROWS * columns];
            panels.add_product(&rows, &mut sums);
            for (index, sum) in sums.iter().enumerate() {
                let (row, column) = (index / columns, index % columns);
                let factors = rows[row * panels.depth()..][..depth].iter().enumerate();
                let product: f32 = factors
                    .map(|(place, x)| (f32::from(*x) - f32::from(ZERO)) * at(place, column))
                    .sum();
                // Half a level of each number, times its factor.
                let bound = 0.5 / 127.0 * 5.0 * 128.0 * depth as f32 + 1e-3;
                assert!((sum - 1.0 - product).abs() <= bound, "{sum} for {product}");
            }
        }
    }

    #[test]
    fn a_row_of_zeros_adds_nothing() {
        let panels = BytePanels::new(6, 40, |row, column| (row * column) as f32 - 31.5);
        let mut sums = vec![0.5; ROWS * 40];
        panels.add_product(&vec![ZERO; ROWS * panels.depth()], &mut sums);
        assert!(sums.iter().all(|sum| *sum == 0.5));
    }
}
