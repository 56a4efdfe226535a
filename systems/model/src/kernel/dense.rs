//! Products with f32 panels: files that are not quantised, and random-weight test models.

use super::{PANEL, TILE};

/// `sums[row] = panel · values[row]` for up to [`TILE`] rows of `columns` values.
pub(super) fn multiply(
    panel: &[f32],
    values: &[f32],
    columns: usize,
    sums: &mut [[f32; PANEL]; TILE],
) {
    for (values, sums) in values.chunks_exact(columns.max(1)).zip(sums) {
        *sums = [0.0; PANEL];
        for (value, weights) in values.iter().zip(panel.chunks_exact(PANEL)) {
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum = weight.mul_add(*value, *sum);
            }
        }
    }
}
