//! Products of many rows with one fixed matrix of floats, for transforms; predictors have `dot.rs`.
//!
//! Every sum runs in the order of the matrix's rows, whatever the number of tokens, and in
//! vectors as wide as the target has: the compiler keeps a tile of sums in registers, so that the
//! product runs at nearly the machine's rate of multiplications without a line of assembly.

/// Columns of a panel, and rows that are multiplied at a time: 16 sums of 16 numbers.
const COLUMNS: usize = 32;
pub(super) const ROWS: usize = 8;

/// A matrix of `depth` rows, stored in panels of [`COLUMNS`] columns, the last filled up with
/// zeros.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Panels {
    depth: usize,
    columns: usize,
    /// `[columns / COLUMNS][depth][COLUMNS]`.
    numbers: Vec<[f32; COLUMNS]>,
}

impl Panels {
    /// The matrix `[depth, columns]` whose numbers `at(row, column)` gives.
    pub(super) fn new(depth: usize, columns: usize, at: impl Fn(usize, usize) -> f32) -> Self {
        let starts = (0..columns).step_by(COLUMNS);
        let numbers = starts
            .flat_map(|start| (0..depth).map(move |row| (start, row)))
            .map(|(start, row)| {
                let mut numbers = [0.0; COLUMNS];
                let run = start..(start + COLUMNS).min(columns);
                for (number, column) in numbers.iter_mut().zip(run) {
                    *number = at(row, column);
                }
                numbers
            })
            .collect();
        Self {
            depth,
            columns,
            numbers,
        }
    }

    /// Adds the products of rows, `[rows, depth]`, with the matrix to `sums`, `[rows, columns]`:
    /// a multiple of [`ROWS`] of them. `used(index)` says how many numbers of each row of the
    /// `index`th [`ROWS`] take part, the first ones.
    pub(super) fn add_product(
        &self,
        rows: &[f32],
        sums: &mut [f32],
        used: impl Fn(usize) -> usize,
    ) {
        if self.depth == 0 {
            return;
        }
        for (index, panel) in self.numbers.chunks_exact(self.depth).enumerate() {
            let start = index * COLUMNS;
            let width = COLUMNS.min(self.columns - start);
            let rows = rows.chunks_exact(self.depth * ROWS);
            let tiles = rows.zip(sums.chunks_exact_mut(self.columns * ROWS));
            for (tile, (rows, sums)) in tiles.enumerate() {
                let depth = used(tile).min(self.depth);
                if depth == 0 {
                    continue;
                }
                let mut tile = [[0.0; COLUMNS]; ROWS];
                for (tile, sums) in tile.iter_mut().zip(sums.chunks_exact(self.columns)) {
                    tile[..width].copy_from_slice(&sums[start..start + width]);
                }
                multiply(rows, self.depth, &panel[..depth], &mut tile);
                for (tile, sums) in tile.iter().zip(sums.chunks_exact_mut(self.columns)) {
                    sums[start..start + width].copy_from_slice(&tile[..width]);
                }
            }
        }
    }
}

#[inline(never)]
fn multiply(
    rows: &[f32],
    stride: usize,
    panel: &[[f32; COLUMNS]],
    tile: &mut [[f32; COLUMNS]; ROWS],
) {
    let rows: [&[f32]; ROWS] = std::array::from_fn(|row| &rows[row * stride..][..panel.len()]);
    let mut sums = *tile;
    for (place, numbers) in panel.iter().enumerate() {
        for (sums, row) in sums.iter_mut().zip(&rows) {
            let factor = row[place];
            for (sum, number) in sums.iter_mut().zip(numbers) {
                *sum = multiply_add(factor, *number, *sum);
            }
        }
    }
    *tile = sums;
}

/// Rounded once where the target has an instruction for it; the function of the library that
/// stands in for it elsewhere would take a hundred times as long.
#[inline(always)]
fn multiply_add(a: f32, b: f32, sum: f32) -> f32 {
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
        a.mul_add(b, sum)
    } else {
        a * b + sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_those_of_the_definition() {
        for (depth, columns) in [(1, 1), (5, 7), (16, 32), (33, 70)] {
            let at = |row: usize, column: usize| ((row * 7 + column * 3) % 11) as f32 - 5.0;
            let panels = Panels::new(depth, columns, at);
            let rows: Vec<f32> = (0..2 * ROWS * depth)
                .map(|i| (i % 13) as f32 - 6.0)
                .collect();
            for used in [0, 1, depth / 2, depth] {
                let mut sums = vec![1.0; 2 * ROWS * columns];
                panels.add_product(&rows, &mut sums, |_| used);
                for (index, sum) in sums.iter().enumerate() {
                    let (row, column) = (index / columns, index % columns);
                    let product: f32 = (0..used)
                        .map(|place| rows[row * depth + place] * at(place, column))
                        .sum();
                    assert_eq!(*sum, product + 1.0);
                }
            }
        }
    }
}
