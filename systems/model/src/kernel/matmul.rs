//! Matrix products of many rows, cut into panels and tiles for the caches and the threads.

use super::activations::{Activations, Slices};
use super::packed::{PackedMatrix, Panel};
use super::pool::Turn;
use super::{PANEL, TILE, dense, quantised};
use std::sync::atomic::{AtomicUsize, Ordering};

/// One product of a region: `out = activations · matrixᵀ + bias`.
pub(crate) struct Product<'a> {
    pub(crate) matrix: &'a PackedMatrix,
    /// `[matrix.rows()]`.
    pub(crate) bias: Option<&'a [f32]>,
    /// `[activations.rows(), matrix.rows()]`.
    pub(crate) out: &'a mut [f32],
}

/// Bytes of weights that a thread takes at once: a fraction of its L2 cache, so that they are
/// still there for the next rows.
const WEIGHTS_AT_ONCE: usize = 192 << 10;
/// Pieces for each thread where a few rows make the weights a stream that is read once: streams
/// are fast once they run, so few, and even, so that the threads finish together.
const PIECES_STREAMING: usize = 4;
/// Bytes of activations that stay in the L2 cache beside them.
const ACTIVATIONS_AT_ONCE: usize = 384 << 10;

/// Computes several products of the same activations in one parallel region.
///
/// # Panics
/// When a shape does not fit; shapes come from the model's configuration.
pub(crate) fn multiply(turn: &Turn<'_>, activations: &Activations, products: Vec<Product<'_>>) {
    let rows = activations.rows();
    let at_once = match rows <= TILE {
        true => {
            let bytes: usize = products.iter().map(|product| product.matrix.bytes()).sum();
            bytes.div_ceil(turn.threads() * PIECES_STREAMING)
        }
        false => WEIGHTS_AT_ONCE,
    };
    let mut work = Vec::with_capacity(products.len());
    let mut pieces = 0;
    for Product { matrix, bias, out } in products {
        assert_eq!(matrix.columns(), activations.columns());
        assert_eq!(out.len(), rows * matrix.rows());
        assert!(bias.is_none_or(|bias| bias.len() == matrix.rows()));
        let panels = at_once.div_ceil(matrix.panel_bytes().max(1)).max(1);
        work.push((pieces, panels, matrix, bias, Slices::new(out)));
        pieces += matrix.panels().div_ceil(panels);
    }
    let tiles_at_once = (ACTIVATIONS_AT_ONCE / (activations.columns() * TILE).max(1)).max(1);
    let tiles = rows.div_ceil(TILE);
    let next = AtomicUsize::new(0);
    turn.run(&|_| {
        loop {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            if piece >= pieces {
                return;
            }
            let index = work.partition_point(|(first, ..)| *first <= piece) - 1;
            let (first, panels, matrix, bias, out) = &work[index];
            let start = (piece - first) * panels;
            let end = (start + panels).min(matrix.panels());
            for tile in (0..tiles).step_by(tiles_at_once) {
                for panel in start..end {
                    for tile in tile..tiles.min(tile + tiles_at_once) {
                        one(activations, matrix, *bias, out, panel, tile);
                    }
                }
            }
        }
    });
}

/// One panel times one tile, written to its place.
fn one(
    activations: &Activations,
    matrix: &PackedMatrix,
    bias: Option<&[f32]>,
    out: &Slices<'_, f32>,
    panel: usize,
    tile: usize,
) {
    let first_row = tile * TILE;
    let rows = TILE.min(activations.rows() - first_row);
    let mut sums = [[0f32; PANEL]; TILE];
    match matrix.panel(panel) {
        Panel::Packed(format, bytes) => {
            quantised::multiply(format, bytes, &activations.tile(tile), &mut sums);
        }
        Panel::Dense(values) => dense::multiply(
            values,
            activations.values(first_row, rows),
            activations.columns(),
            &mut sums,
        ),
    }
    let width = PANEL.min(matrix.rows() - panel * PANEL);
    for (row, sums) in sums.iter().enumerate().take(rows) {
        let at = (first_row + row) * matrix.rows() + panel * PANEL;
        #[expect(unsafe_code, reason = "threads write disjoint panels of the output")]
        // SAFETY: each (panel, tile) is computed by one thread, and its part of the output is
        // touched by no other.
        let out = unsafe { out.get(at, width) };
        match bias {
            Some(bias) => {
                let bias = &bias[panel * PANEL..][..width];
                for ((out, sum), bias) in out.iter_mut().zip(sums).zip(bias) {
                    *out = sum + bias;
                }
            }
            None => out.copy_from_slice(&sums[..width]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::packed::tests::{FORMATS, matrix, packed};
    use crate::kernel::pool::pool;
    use candle_core::Device;
    use candle_core::quantized::GgmlDType;

    fn value(row: usize, column: usize) -> f32 {
        ((row * 977 + column) * 37 % 211) as f32 / 40.0 - 2.6
    }

    fn activations(rows: std::ops::Range<usize>, columns: usize) -> Activations {
        let mut activations = Activations::default();
        activations.reset(rows.len(), columns);
        activations.fill(&pool().turn(), |row, values| {
            for (column, v) in values.iter_mut().enumerate() {
                *v = value(rows.start + row, column);
            }
        });
        activations
    }

    fn product(weight: &PackedMatrix, activations: &Activations, bias: &[f32]) -> Vec<f32> {
        let mut out = vec![f32::NAN; activations.rows() * weight.rows()];
        multiply(
            &pool().turn(),
            activations,
            vec![Product {
                matrix: weight,
                bias: Some(bias),
                out: &mut out,
            }],
        );
        out
    }

    #[test]
    fn products_are_those_of_the_dense_matrix_up_to_the_rounding_of_activations() {
        for dtype in FORMATS.into_iter().chain([GgmlDType::F32]) {
            let columns = dtype.block_size().max(32) * 3;
            // Neither the rows nor the activations fill their last panel or tile.
            let (rows, tokens) = (53, 37);
            let weight = matrix(rows, columns, dtype);
            let dense: Vec<Vec<f32>> = weight.dequantize(&Device::Cpu).unwrap().to_vec2().unwrap();
            let packed = packed(&weight);
            let bias: Vec<f32> = (0..rows).map(|i| i as f32).collect();
            let found = product(&packed, &activations(0..tokens, columns), &bias);
            for token in 0..tokens {
                for (row, weights) in dense.iter().enumerate() {
                    let terms = weights
                        .iter()
                        .enumerate()
                        .map(|(column, w)| f64::from(*w) * f64::from(value(token, column)));
                    let (sum, size) = terms.fold((f64::from(bias[row]), 0.0), |(sum, size), t| {
                        (sum + t, size + t * t)
                    });
                    let error = (f64::from(found[token * rows + row]) - sum).abs();
                    // Half a step of 1/127 on each term, adding up at random.
                    assert!(
                        error <= 0.02 * size.sqrt() + 1e-3,
                        "{dtype:?} [{token}, {row}]: off by {error} of {}",
                        size.sqrt()
                    );
                }
            }
        }
    }

    /// The promise on which the engine's determinism rests.
    #[test]
    fn a_row_has_the_same_bits_alone_and_beside_others() {
        for dtype in [
            GgmlDType::Q4K,
            GgmlDType::Q5_0,
            GgmlDType::Q6K,
            GgmlDType::F32,
        ] {
            let columns = 768;
            let packed = packed(&matrix(40, columns, dtype));
            let bias = vec![0.5; 40];
            let together = product(&packed, &activations(0..50, columns), &bias);
            for row in [0, 15, 16, 31, 49] {
                let alone = product(&packed, &activations(row..row + 1, columns), &bias);
                assert_eq!(alone, together[row * 40..(row + 1) * 40], "{dtype:?}");
            }
        }
    }
}
