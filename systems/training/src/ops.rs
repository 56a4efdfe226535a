//! Operations whose gradient is stated, so that nothing is computed for what is frozen.
//!
//! candle differentiates a product with respect to both factors; of frozen weights that gradient
//! would be thrown away, at the cost of a second backward pass and a copy of the model.

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, D, Layout, Result, Shape, Storage, Tensor, bail,
};
use celslm_model::{FrozenMatrix, exp};
use rayon::prelude::*;

/// An operation on one tensor, with its backward pass.
struct Stated<F, B> {
    name: &'static str,
    forward: F,
    /// From the argument, the result and the result's gradient to the argument's gradient.
    backward: B,
}

/// The argument of an operation, which lies together.
pub(crate) fn from_cpu(name: &str, storage: &CpuStorage, layout: &Layout) -> Result<Tensor> {
    let CpuStorage::F32(all) = storage else {
        bail!("{name} is computed in f32")
    };
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("{name} needs a contiguous argument")
    };
    let storage = Storage::Cpu(CpuStorage::F32(all[start..end].to_vec()));
    let shape = layout.shape().clone();
    Ok(Tensor::from_storage(
        storage,
        shape,
        BackpropOp::none(),
        false,
    ))
}

/// The same on a GPU.
pub(crate) fn from_cuda(name: &str, storage: &CudaStorage, layout: &Layout) -> Result<Tensor> {
    // The storage may hold more than the argument.
    let whole = storage.try_clone(layout)?;
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("{name} needs a contiguous argument")
    };
    let size = Shape::from(end.max(start));
    let all = Tensor::from_storage(Storage::Cuda(whole), size, BackpropOp::none(), false);
    all.narrow(0, start, end - start)?
        .copy()?
        .reshape(layout.shape())
}

/// What an operation gives back.
pub(crate) fn into_storage(y: &Tensor) -> Result<(Storage, Shape)> {
    let y = y.contiguous()?;
    let (storage, layout) = y.storage_and_layout();
    Ok((storage.try_clone(layout)?, y.shape().clone()))
}

impl<F, B> CustomOp1 for Stated<F, B>
where
    F: Fn(&Tensor) -> Result<Tensor>,
    B: Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = from_cpu(self.name, storage, layout)?;
        match into_storage(&(self.forward)(&x)?)? {
            (Storage::Cpu(storage), shape) => Ok((storage, shape)),
            _ => bail!("{} left the device", self.name),
        }
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let x = from_cuda(self.name, storage, layout)?;
        match into_storage(&(self.forward)(&x)?)? {
            (Storage::Cuda(storage), shape) => Ok((storage, shape)),
            _ => bail!("{} left the device", self.name),
        }
    }

    fn bwd(&self, arg: &Tensor, res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        (self.backward)(&arg.detach(), &res.detach(), &grad.detach()).map(Some)
    }
}

fn stated(
    name: &'static str,
    x: &Tensor,
    forward: impl Fn(&Tensor) -> Result<Tensor> + 'static + Send + Sync,
    backward: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor> + 'static + Send + Sync,
) -> Result<Tensor> {
    let op = Stated {
        name,
        forward,
        backward,
    };
    x.contiguous()?.apply_op1(op)
}

/// A frozen matrix, `[out, in]`.
#[derive(Clone)]
pub(crate) enum Weight {
    /// On any device, in f32.
    Dense(Tensor),
    /// On the CPU, by the decoders' kernels: several times as fast as f32, and a fraction of its
    /// bytes.
    Packed(Arc<FrozenMatrix>),
}

impl Weight {
    /// `x Wᵀ`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => x.matmul(&weight.t()?),
            Self::Packed(weight) => by_rows(x, |x| weight.forward(x)),
        }
    }

    /// `g W`.
    fn backward(&self, grad: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => grad.contiguous()?.matmul(weight),
            Self::Packed(weight) => by_rows(grad, |grad| weight.backward(grad)),
        }
    }
}

/// A function of rows that lie in memory one after another.
fn by_rows(x: &Tensor, f: impl Fn(&[f32]) -> Vec<f32>) -> Result<Tensor> {
    let rows = x.dims2()?.0;
    let y = read(x, |x| f(x))?;
    Tensor::from_vec(y, (rows, ()), x.device())
}

/// Hands on the numbers of a tensor on the CPU, where they lie if they lie together.
fn read<T>(x: &Tensor, f: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(all)), Some((start, end))) => Ok(f(&all[start..end])),
        _ => bail!("numbers in f32 on the CPU are needed"),
    }
}

/// `x Wᵀ` with a frozen weight; `x: [rows, in]`.
pub(crate) fn product(x: &Tensor, weight: &Weight) -> Result<Tensor> {
    let (forward, backward) = (weight.clone(), weight.clone());
    stated(
        "frozen-product",
        x,
        move |x| forward.forward(x),
        move |_, _, grad| backward.backward(grad),
    )
}

/// Softmax over the last dimension, without a gradient.
pub(crate) fn softmax(x: &Tensor) -> Result<Tensor> {
    let mask = Tensor::zeros((1, x.dim(D::Minus1)?), x.dtype(), x.device())?;
    masked_softmax(x, &mask)
}

/// Softmax over the last dimension of `x + mask`, the mask's rows again and again: as many as there are
/// in `x`, or a whole part of them. Without a gradient.
pub(crate) fn masked_softmax(x: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let (rows, width) = mask.dims2()?;
    if width == 0 || x.dim(D::Minus1)? != width || !x.elem_count().is_multiple_of(rows * width) {
        bail!("a mask of {rows} rows of {width} for {:?}", x.shape())
    }
    match x.device().is_cpu() {
        true => softmax_by_rows(x, mask),
        false => softmax_of_tensor(x, mask),
    }
}

fn softmax_of_tensor(x: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let (rows, width) = mask.dims2()?;
    let all = x.reshape(((), rows, width))?.broadcast_add(mask)?;
    let top = all.max_keepdim(D::Minus1)?;
    let raised = all.broadcast_sub(&top)?.exp()?;
    let y = raised.broadcast_div(&raised.sum_keepdim(D::Minus1)?)?;
    y.reshape(x.shape())
}

/// Weights and gradients below this are zero. They change no sum that they are part of, and a product
/// of matrices in which every other number is subnormal takes a hundred times as long.
const NOTHING: f32 = 1e-26;

/// What is to be multiplied: zero where it is as good as that.
fn flushed(x: f32) -> f32 {
    if x.abs() < NOTHING { 0.0 } else { x }
}

/// Softmax on the CPU, a row at a time while it is in the cache: as separate operations it passes
/// over memory once for each.
fn softmax_by_rows(x: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let width = mask.dim(D::Minus1)?.max(1);
    let mut numbers = x.flatten_all()?.to_vec1::<f32>()?;
    read(mask, |mask| {
        let rows = numbers.par_chunks_mut(width).enumerate();
        rows.for_each(|(index, row)| {
            let start = index * width % mask.len();
            let mask = &mask[start..start + width];
            row.iter_mut().zip(mask).for_each(|(x, mask)| *x += mask);
            let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            row.iter_mut().for_each(|x| *x = exp(*x - top));
            let scale = row.iter().sum::<f32>().recip();
            row.iter_mut().for_each(|x| *x = flushed(*x * scale));
        });
    })?;
    Tensor::from_vec(numbers, x.shape(), x.device())
}

/// The gradient of a softmax's argument from that of its result `y`.
pub(crate) fn softmax_pulled(y: &Tensor, grad: &Tensor) -> Result<Tensor> {
    match y.device().is_cpu() {
        true => softmax_pulled_by_rows(y, grad),
        false => softmax_pulled_of_tensor(y, grad),
    }
}

fn softmax_pulled_of_tensor(y: &Tensor, grad: &Tensor) -> Result<Tensor> {
    let pulled = (y * grad)?.sum_keepdim(D::Minus1)?;
    y * grad.broadcast_sub(&pulled)?
}

fn softmax_pulled_by_rows(y: &Tensor, grad: &Tensor) -> Result<Tensor> {
    let width = y.dim(D::Minus1)?.max(1);
    let mut numbers = grad.flatten_all()?.to_vec1::<f32>()?;
    read(y, |y| {
        let rows = numbers.par_chunks_mut(width).zip(y.par_chunks(width));
        rows.for_each(|(grad, y)| {
            let pulled: f32 = grad.iter().zip(y).map(|(grad, y)| grad * y).sum();
            let both = grad.iter_mut().zip(y);
            both.for_each(|(grad, y)| *grad = flushed(y * (*grad - pulled)));
        });
    })?;
    Tensor::from_vec(numbers, y.shape(), y.device())
}

/// Root-mean-square norm (arXiv 1910.07467) of rows, with a frozen `weight` `[width]`.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let scale = move |x: &Tensor| -> Result<Tensor> {
        (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()
    };
    let (forward, backward) = (weight.clone(), weight.clone());
    stated(
        "rms-norm",
        x,
        move |x| x.broadcast_mul(&scale(x)?)?.broadcast_mul(&forward),
        move |x, _, grad| {
            let (scale, grad) = (scale(x)?, grad.broadcast_mul(&backward)?);
            let along = (x * &grad)?.mean_keepdim(D::Minus1)?;
            let along = (along * scale.sqr()?)?;
            (grad - x.broadcast_mul(&along)?)?.broadcast_mul(&scale)
        },
    )
}

/// Sum over rows of the KL divergence of `softmax(logits)` from `target`, both
/// `[rows, vocab_size]`, the latter probabilities. A tensor of one number.
pub(crate) fn divergence(logits: &Tensor, target: &Tensor) -> Result<Tensor> {
    let (forward, backward) = (target.clone(), target.clone());
    stated(
        "divergence",
        logits,
        move |logits| match logits.device().is_cpu() {
            true => divergence_by_rows(logits, &forward),
            false => divergence_of_tensor(logits, &forward),
        },
        move |logits, _, grad| {
            (softmax(logits)? - &backward)?.broadcast_mul(&grad.reshape((1, 1))?)
        },
    )
}

fn divergence_of_tensor(logits: &Tensor, target: &Tensor) -> Result<Tensor> {
    let top = logits.max_keepdim(D::Minus1)?;
    let shifted = logits.broadcast_sub(&top)?;
    let norm = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let log_probs = shifted.broadcast_sub(&norm)?;
    // Nothing is there where the target's probability underflows.
    let own = (target + 1e-30)?.log()?;
    (target * (own - log_probs)?)?.sum_all()?.reshape(1)
}

/// [`divergence`] on the CPU: what [`softmax_by_rows`] is to softmax.
fn divergence_by_rows(logits: &Tensor, target: &Tensor) -> Result<Tensor> {
    let width = logits.dim(D::Minus1)?.max(1);
    let sums: Vec<f64> = read(logits, |logits| {
        read(target, |target| {
            let rows = logits.par_chunks(width).zip(target.par_chunks(width));
            let row = |(logits, target): (&[f32], &[f32])| -> f64 {
                let norm = log_sum_exp(logits);
                let terms = logits.iter().zip(target).filter(|(_, p)| **p > 0.0);
                let terms = terms.map(|(x, p)| f64::from(*p) * f64::from(p.ln() - (x - norm)));
                terms.sum()
            };
            rows.map(row).collect()
        })
    })??;
    // In their order, so that the sum does not depend on who computed which.
    let sum: f64 = sums.iter().sum();
    Tensor::from_vec(vec![sum as f32], 1, logits.device())
}

/// Logarithm of the sum of the powers of e.
fn log_sum_exp(row: &[f32]) -> f32 {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|x| f64::from(exp(x - top))).sum();
    top + sum.ln() as f32
}

/// Log-probability of one token of each row of logits; 0 where none is named.
pub(crate) fn log_probs(logits: &Tensor, tokens: &[Option<u32>]) -> Result<Vec<f32>> {
    let width = logits.dim(D::Minus1)?.max(1);
    let logits = logits.to_device(&candle_core::Device::Cpu)?;
    read(&logits, |logits| {
        let rows = logits.par_chunks(width).zip(tokens);
        rows.map(|(row, token)| {
            let found = token.and_then(|token| row.get(token as usize));
            found.map_or(0.0, |x| x - log_sum_exp(row))
        })
        .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::attention;
    use candle_core::{DType, Device, Var};

    /// Numbers between -1 and 1, the same every time.
    fn numbers(shape: (usize, usize), seed: u32) -> Tensor {
        let mut state = seed.wrapping_mul(2_654_435_761) | 1;
        let drawn: Vec<f32> = (0..shape.0 * shape.1)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect();
        Tensor::from_vec(drawn, shape, &Device::Cpu).unwrap()
    }

    /// The gradient of `f`, weighted, against differences in every number of the argument.
    fn check(f: impl Fn(&Tensor) -> Result<Tensor>) {
        let x = Var::from_tensor(&numbers((3, 5), 1)).unwrap();
        let weigh = |y: &Tensor| -> f32 {
            let flat = y.flatten_all().unwrap();
            let weights = numbers((1, flat.elem_count()), 2).flatten_all().unwrap();
            (flat * weights)
                .unwrap()
                .sum_all()
                .unwrap()
                .to_scalar()
                .unwrap()
        };
        let y = f(x.as_tensor()).unwrap();
        let weights = numbers((1, y.elem_count()), 2).reshape(y.shape()).unwrap();
        let loss = (y * weights).unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        let grad: Vec<f32> = grads
            .get(&x)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap();
        let base: Vec<f32> = x.flatten_all().unwrap().to_vec1().unwrap();
        for (index, grad) in grad.iter().enumerate() {
            let at = |step: f32| {
                let mut moved = base.clone();
                moved[index] += step;
                let moved = Tensor::from_vec(moved, (3, 5), &Device::Cpu).unwrap();
                weigh(&f(&moved).unwrap())
            };
            let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
            assert!(
                (slope - grad).abs() < 2e-3,
                "{index}: {slope} against {grad}"
            );
        }
    }

    #[test]
    fn gradients_are_those_of_differences() {
        let weight = Weight::Dense(numbers((4, 5), 3));
        check(|x| product(x, &weight));
        let (k, v) = (numbers((4, 5), 6), numbers((4, 5), 7));
        let mask = Tensor::new(&[[0.0f32, 0.0, 0.0, f32::NEG_INFINITY]], &Device::Cpu).unwrap();
        let one = |x: &Tensor| x.unsqueeze(0).unwrap();
        let of = |q: &Tensor, k: &Tensor, v: &Tensor| attention(&one(q), &one(k), &one(v), &mask);
        check(|x| of(x, &k, &v));
        let (q, mask) = (
            numbers((2, 5), 8),
            Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap(),
        );
        let of = |q: &Tensor, k: &Tensor, v: &Tensor| attention(&one(q), &one(k), &one(v), &mask);
        check(|x| of(&q, x, &k.narrow(0, 0, 3)?));
        check(|x| of(&q, &k.narrow(0, 0, 3)?, x));
        let norm = numbers((1, 5), 4).flatten_all().unwrap();
        check(|x| rms_norm(x, &norm, 1e-6));
        let target = softmax(&numbers((3, 5), 5)).unwrap();
        check(|x| divergence(x, &target));
    }

    /// What a mask hides, and what is far below the rest, would be subnormal.
    #[test]
    fn nothing_is_subnormal() {
        let row = |row: [f32; 6]| Tensor::new(&[row], &Device::Cpu).unwrap();
        let mask = row([0.0, 0.0, 0.0, 0.0, 0.0, f32::NEG_INFINITY]);
        let y = masked_softmax(&row([0.0, 3.0, -70.0, -86.0, -100.0, 5.0]), &mask).unwrap();
        let pulled = softmax_pulled(&y, &row([1e-9, 1.0, 1.0, 1e3, 1.0, 1.0])).unwrap();
        for all in [y, pulled] {
            let all: Vec<f32> = all.flatten_all().unwrap().to_vec1().unwrap();
            assert!(all[..2].iter().all(|x| *x != 0.0), "{all:?}");
            assert_eq!(all[2..], [0.0; 4]);
        }
    }

    /// On a GPU the same is computed from whole tensors.
    #[test]
    fn rows_and_tensors_agree() {
        let (logits, other) = (numbers((3, 5), 1), numbers((3, 5), 2));
        let close = |a: &Tensor, b: &Tensor| {
            let apart = (a - b).unwrap().abs().unwrap().flatten_all().unwrap();
            let apart: Vec<f32> = apart.to_vec1().unwrap();
            assert!(apart.iter().all(|x| *x < 1e-6), "{apart:?}");
        };
        let mask =
            Tensor::new(&[[0.0f32, f32::NEG_INFINITY, 0.0, 0.0, 0.0]], &Device::Cpu).unwrap();
        let y = softmax_of_tensor(&logits, &mask).unwrap();
        close(&y, &softmax_by_rows(&logits, &mask).unwrap());
        close(
            &softmax_pulled_of_tensor(&y, &other).unwrap(),
            &softmax_pulled_by_rows(&y, &other).unwrap(),
        );
        close(
            &divergence_of_tensor(&other, &y).unwrap(),
            &divergence_by_rows(&other, &y).unwrap(),
        );
    }

    /// A view into a larger tensor is read where it lies.
    #[test]
    fn views_are_read_in_place() {
        let all = numbers((6, 5), 1);
        let part = all.narrow(0, 2, 3).unwrap();
        let copy = part.copy().unwrap();
        let weight = numbers((5, 5), 2)
            .flatten_all()
            .unwrap()
            .narrow(0, 0, 5)
            .unwrap();
        let rows = |x: &Tensor| {
            let y = rms_norm(x, &weight, 1e-6).unwrap();
            (
                y.to_vec2::<f32>().unwrap(),
                softmax(x).unwrap().to_vec2::<f32>().unwrap(),
            )
        };
        assert_eq!(rows(&part), rows(&copy));
        let wide = part.to_dtype(DType::F64).unwrap();
        let error = rms_norm(&wide, &weight, 1e-6).unwrap_err();
        assert!(error.to_string().contains("f32"), "{error}");
    }

    #[test]
    fn divergence_of_a_distribution_from_itself_is_zero() {
        let logits = numbers((3, 5), 1);
        let target = softmax(&logits).unwrap();
        let zero: Vec<f32> = divergence(&logits, &target).unwrap().to_vec1().unwrap();
        assert!(zero[0].abs() < 1e-6, "{zero:?}");
    }
}
