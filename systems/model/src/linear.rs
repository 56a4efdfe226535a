//! A quantised linear layer, brought at load into the layout of candle's fast kernels.
//!
//! candle repacks Q4_K, Q6_K and Q8_0 weights for vector instructions when the input width is
//! a multiple of 256; other widths and the `Q4_0/Q5_0` types fall back to kernels that are about
//! ten times slower. Both changes made here are exact: Q4_0 and Q5_0 blocks hold small
//! integers times one scale, which a Q8_0 block states literally, and columns of zeros add
//! nothing to a product.

use crate::ModelError;
use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{Device, Module, Tensor};
use std::borrow::Cow;

/// Input widths are padded to a multiple of this, candle's super-block.
const SUPER_BLOCK: usize = 256;
/// Values in one Q4_0, Q5_0 or Q8_0 block.
const BLOCK: usize = 32;
const Q8_0_BYTES: usize = 2 + BLOCK;

/// Writes one quantised block as a Q8_0 block.
type WidenBlock = fn(&[u8], &mut [u8]);

/// `y = x Wᵀ + b` with quantised `W`.
pub(crate) struct Linear {
    weight: QMatMul,
    bias: Option<Tensor>,
    in_features: usize,
    /// `in_features` rounded up to what the kernels want.
    padded: usize,
}

impl Linear {
    pub(crate) fn new(weight: QTensor, bias: Option<Tensor>) -> Result<Self, ModelError> {
        let (out_features, in_features) = weight.shape().dims2()?;
        let to_q8_0: Option<WidenBlock> = match weight.dtype() {
            GgmlDType::Q8_0 => Some(copy_block),
            GgmlDType::Q5_0 => Some(widen_q5_0),
            GgmlDType::Q4_0 => Some(widen_q4_0),
            _ => None,
        };
        let (weight, padded) = match to_q8_0 {
            Some(convert) => {
                let padded = in_features.next_multiple_of(SUPER_BLOCK);
                let data = repack(&weight, in_features, padded, convert)?;
                let storage = QStorage::from_data(Cow::Owned(data), &Device::Cpu, GgmlDType::Q8_0)?;
                (QTensor::new(storage, (out_features, padded))?, padded)
            }
            None => (weight, in_features),
        };
        Ok(Self {
            weight: QMatMul::from_qtensor(weight)?,
            bias,
            in_features,
            padded,
        })
    }

    /// The product for `x: [.., in_features]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let y = if self.padded == self.in_features {
            self.weight.forward(&x.contiguous()?)?
        } else {
            let zeros = self.padded - self.in_features;
            let x = x.pad_with_zeros(candle_core::D::Minus1, 0, zeros)?;
            self.weight.forward(&x.contiguous()?)?
        };
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }
}

/// Rewrites every row block by block as Q8_0 and fills it up with zero blocks.
fn repack(
    weight: &QTensor,
    in_features: usize,
    padded: usize,
    convert: WidenBlock,
) -> Result<Vec<u8>, ModelError> {
    let source = weight.data()?;
    let blocks = in_features / BLOCK;
    let block_bytes = weight.dtype().type_size();
    let rows = source.len() / (blocks * block_bytes);
    // A zero byte pattern is a block of zeros with scale zero.
    let mut data = vec![0u8; rows * (padded / BLOCK) * Q8_0_BYTES];
    for (row, out) in source
        .chunks_exact(blocks * block_bytes)
        .zip(data.chunks_exact_mut(padded / BLOCK * Q8_0_BYTES))
    {
        for (block, out) in row
            .chunks_exact(block_bytes)
            .zip(out.chunks_exact_mut(Q8_0_BYTES))
        {
            convert(block, out);
        }
    }
    Ok(data)
}

fn copy_block(block: &[u8], out: &mut [u8]) {
    out.copy_from_slice(block);
}

/// Q5_0: scale f16, 32 fifth bits, 16 bytes of low nibbles (first half) and high nibbles
/// (second half); the value is `scale * (q - 16)`.
fn widen_q5_0(block: &[u8], out: &mut [u8]) {
    out[..2].copy_from_slice(&block[..2]);
    let fifth = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    for j in 0..BLOCK / 2 {
        let nibbles = block[6 + j];
        let low = (nibbles & 0x0F) | (((fifth >> j) & 1) as u8) << 4;
        let high = (nibbles >> 4) | (((fifth >> (j + 16)) & 1) as u8) << 4;
        out[2 + j] = low.wrapping_sub(16);
        out[2 + j + BLOCK / 2] = high.wrapping_sub(16);
    }
}

/// Q4_0: scale f16, 16 bytes of nibbles as in Q5_0; the value is `scale * (q - 8)`.
fn widen_q4_0(block: &[u8], out: &mut [u8]) {
    out[..2].copy_from_slice(&block[..2]);
    for j in 0..BLOCK / 2 {
        let nibbles = block[2 + j];
        out[2 + j] = (nibbles & 0x0F).wrapping_sub(8);
        out[2 + j + BLOCK / 2] = (nibbles >> 4).wrapping_sub(8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: usize, columns: usize) -> Tensor {
        let values: Vec<f32> = (0..rows * columns)
            .map(|i| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0)
            .collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    }

    #[test]
    fn widening_and_padding_are_exact() {
        for dtype in [GgmlDType::Q4_0, GgmlDType::Q5_0, GgmlDType::Q8_0] {
            let quantised = QTensor::quantize(&matrix(32, 96), dtype).unwrap();
            let expected = quantised
                .dequantize(&Device::Cpu)
                .unwrap()
                .to_vec2::<f32>()
                .unwrap();
            let linear = Linear::new(quantised, None).unwrap();
            assert_eq!(linear.padded, 256);
            let QMatMul::QTensor(widened) = &linear.weight else {
                panic!("still quantised")
            };
            let widened = widened
                .dequantize(&Device::Cpu)
                .unwrap()
                .to_vec2::<f32>()
                .unwrap();
            for (row, expected) in widened.iter().zip(&expected) {
                assert_eq!(&row[..96], &expected[..], "{dtype:?}");
                assert!(row[96..].iter().all(|&v| v == 0.0));
            }
        }
    }

    #[test]
    fn product_matches_the_dense_one() {
        let quantised = QTensor::quantize(&matrix(32, 96), GgmlDType::Q5_0).unwrap();
        let dense = quantised.dequantize(&Device::Cpu).unwrap();
        let x = matrix(5, 96);
        let expected = x
            .matmul(&dense.t().unwrap())
            .unwrap()
            .to_vec2::<f32>()
            .unwrap();
        let found = Linear::new(quantised, None)
            .unwrap()
            .forward(&x)
            .unwrap()
            .to_vec2::<f32>()
            .unwrap();
        for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
            // The activations are rounded to 8 bits inside the kernel.
            assert!(
                (found - expected).abs() < 0.15,
                "{found} against {expected}"
            );
        }
    }
}
