//! A matrix of a file for products in both directions: forwards as the decoders compute them, and
//! backwards as gradients need them.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

use crate::ModelError;
use crate::gguf::GgufFile;
use crate::kernel::activations::Activations;
use crate::kernel::matmul::{Product, multiply};
use crate::kernel::packed::{Arena, PackedMatrix, Stored};
use crate::kernel::pool::{Turn, pool};

/// Weights `W`, `[rows, columns]`, that take no gradient. Forwards they are the file's; the
/// transpose of a quantised matrix is rounded to 8 bits with a scale for 32 of its numbers. What is
/// multiplied by either is rounded as activations are.
pub struct FrozenMatrix {
    forward: PackedMatrix,
    backward: PackedMatrix,
}

impl FrozenMatrix {
    /// Reads a matrix of this shape, `[rows, columns]`. Takes about twice its size in the file, and
    /// for a moment that of its numbers in f32, three times.
    ///
    /// # Errors
    /// [`ModelError::Incomplete`] when it is missing or has another shape, [`ModelError::Gguf`]
    /// when it cannot be read, [`ModelError::Memory`].
    pub fn read(
        gguf: &mut GgufFile,
        name: &str,
        [rows, columns]: [usize; 2],
    ) -> Result<Self, ModelError> {
        let turn = pool().turn();
        let dense = gguf.dense(name, &[rows, columns])?;
        let dtype = gguf.tensor(name, &[rows, columns])?.dtype();
        let mut arena = Arena::new([(dtype, rows, columns)].into_iter())?;
        let forward = gguf.pack(name, [rows, columns], &mut arena, &turn)?;
        arena.finish()?;
        let dense = Tensor::from_vec(dense, (rows, columns), &Device::Cpu)?;
        let transposed = dense.t()?.contiguous()?;
        let rounds = !matches!(dtype, GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16)
            && rows.is_multiple_of(GgmlDType::Q8_0.block_size());
        Ok(Self {
            forward,
            backward: pack(&transposed, rounds, &turn)?,
        })
    }

    /// `x Wᵀ`, `[n, rows]`, of `x`, `[n, columns]`.
    #[must_use]
    pub fn forward(&self, x: &[f32]) -> Vec<f32> {
        times(x, &self.forward)
    }

    /// `x W`, `[n, columns]`, of `x`, `[n, rows]`: the gradient of the argument of
    /// [`Self::forward`] from that of its result.
    #[must_use]
    pub fn backward(&self, x: &[f32]) -> Vec<f32> {
        times(x, &self.backward)
    }
}

/// Packs a matrix, `[rows, columns]`, in 8 bits or as it is.
fn pack(matrix: &Tensor, rounds: bool, turn: &Turn<'_>) -> Result<PackedMatrix, ModelError> {
    let (rows, columns) = matrix.dims2()?;
    let dtype = match rounds {
        true => GgmlDType::Q8_0,
        false => GgmlDType::F32,
    };
    let rounded = match rounds {
        true => Some(QTensor::quantize(matrix, dtype)?),
        false => None,
    };
    let bytes = rounded.as_ref().map(QTensor::data).transpose()?;
    let stored = Stored {
        dtype,
        rows,
        columns,
        read: &|offset, out| {
            let bytes = bytes.as_deref().unwrap_or_default();
            let from = bytes.get(offset..offset + out.len()).ok_or_else(|| {
                ModelError::Kv("a rounded matrix is shorter than its shape says".to_owned())
            })?;
            out.copy_from_slice(from);
            Ok(())
        },
        widen: &|| Ok(matrix.flatten_all()?.to_vec1()?),
    };
    let mut arena = Arena::new([(dtype, rows, columns)].into_iter())?;
    let packed = PackedMatrix::new(&stored, &mut arena, turn)?;
    arena.finish()?;
    Ok(packed)
}

/// Rows by a matrix's transpose.
fn times(x: &[f32], matrix: &PackedMatrix) -> Vec<f32> {
    let columns = matrix.columns();
    let rows = x.len() / columns.max(1);
    let turn = pool().turn();
    let mut activations = Activations::default();
    activations.reset(rows, columns);
    activations.fill(&turn, |row, values| {
        values.copy_from_slice(&x[row * columns..][..columns]);
    });
    let mut out = vec![0.0; rows * matrix.rows()];
    let product = Product {
        matrix,
        bias: None,
        out: &mut out,
    };
    multiply(&turn, &activations, vec![product]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::SyntheticModel;

    /// Both products against those of the numbers in f32, for quantised weights and for others.
    #[test]
    fn products_are_those_of_the_dense_matrix_in_both_directions() {
        let dir = tempfile::tempdir().unwrap();
        for (quantised, allowed) in [(false, 1e-5), (true, 0.02)] {
            let path = dir.path().join(format!("{quantised}.gguf"));
            let synthetic = SyntheticModel {
                architecture: "qwen2",
                num_layers: 1,
                num_heads: 4,
                num_kv_heads: 2,
                head_dim: 64,
                quantised,
                seed: 3,
            };
            synthetic.write(&path).unwrap();
            let mut gguf = GgufFile::open(&path).unwrap();
            let name = "blk.0.attn_k.weight";
            let [rows, columns] = [128, 256];
            let dense = gguf.dense(name, &[rows, columns]).unwrap();
            let matrix = FrozenMatrix::read(&mut gguf, name, [rows, columns]).unwrap();
            let numbers = |count: usize| -> Vec<f32> {
                let turn = |i: usize| ((i * 7919 + i * i * 31) % 997) as f32 / 498.5 - 1.0;
                (0..count).map(turn).collect()
            };
            let off = |found: &[f32], exact: &dyn Fn(usize) -> f32| -> f32 {
                let mut sums = [0f32; 2];
                for (at, found) in found.iter().enumerate() {
                    sums[0] += (found - exact(at)).powi(2);
                    sums[1] += exact(at).powi(2);
                }
                (sums[0] / sums[1]).sqrt()
            };
            let x = numbers(19 * columns);
            let error = off(&matrix.forward(&x), &|at| {
                let (row, out) = (at / rows, at % rows);
                let terms = (0..columns).map(|i| x[row * columns + i] * dense[out * columns + i]);
                terms.sum()
            });
            assert!(error < allowed, "forwards, quantised {quantised}: {error}");
            let g = numbers(19 * rows);
            let error = off(&matrix.backward(&g), &|at| {
                let (row, out) = (at / columns, at % columns);
                let terms = (0..rows).map(|i| g[row * rows + i] * dense[i * columns + out]);
                terms.sum()
            });
            assert!(error < allowed, "backwards, quantised {quantised}: {error}");
        }
    }
}
