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

impl<F: Fn(&Tensor) -> Result<Tensor>, B> Stated<F, B> {
    fn run(&self, storage: Storage, shape: &Shape) -> Result<(Storage, Shape)> {
        let x = Tensor::from_storage(storage, shape, BackpropOp::none(), false);
        let y = (self.forward)(&x)?.contiguous()?;
        let (storage, layout) = y.storage_and_layout();
        Ok((storage.try_clone(layout)?, y.shape().clone()))
    }
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
        let CpuStorage::F32(all) = storage else {
            bail!("{} is computed in f32", self.name)
        };
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("{} needs a contiguous argument", self.name)
        };
        let storage = Storage::Cpu(CpuStorage::F32(all[start..end].to_vec()));
        match self.run(storage, layout.shape())? {
            (Storage::Cpu(storage), shape) => Ok((storage, shape)),
            _ => bail!("{} left the device", self.name),
        }
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        // The storage may hold more than the argument.
        let whole = storage.try_clone(layout)?;
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("{} needs a contiguous argument", self.name)
        };
        let size = Shape::from(end.max(start));
        let all = Tensor::from_storage(Storage::Cuda(whole), size, BackpropOp::none(), false);
        let x = all.narrow(0, start, end - start)?.copy()?;
        let (storage, own) = x.storage_and_layout();
        match self.run(storage.try_clone(own)?, layout.shape())? {
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

/// Softmax over the last dimension.
pub(crate) fn softmax(x: &Tensor) -> Result<Tensor> {
    stated("softmax", x, softmax_of, |_, y, grad| {
        if y.device().is_cpu() {
            return softmax_pulled(y, grad);
        }
        let pulled = (y * grad)?.sum_keepdim(D::Minus1)?;
        y * grad.broadcast_sub(&pulled)?
    })
}

fn softmax_of(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        return softmax_by_rows(x);
    }
    let top = x.max_keepdim(D::Minus1)?;
    let raised = x.broadcast_sub(&top)?.exp()?;
    raised.broadcast_div(&raised.sum_keepdim(D::Minus1)?)
}

/// Softmax on the CPU, a row at a time while it is in the cache: as separate operations it passes
/// over memory once for each.
fn softmax_by_rows(x: &Tensor) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?.max(1);
    let mut numbers = x.flatten_all()?.to_vec1::<f32>()?;
    numbers.par_chunks_mut(width).for_each(|row| {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        row.iter_mut().for_each(|x| *x = exp(*x - top));
        let scale = row.iter().sum::<f32>().recip();
        row.iter_mut().for_each(|x| *x *= scale);
    });
    Tensor::from_vec(numbers, x.shape(), x.device())
}

/// The gradient of a softmax's argument from that of its result `y`.
fn softmax_pulled(y: &Tensor, grad: &Tensor) -> Result<Tensor> {
    let width = y.dim(D::Minus1)?.max(1);
    let mut numbers = grad.flatten_all()?.to_vec1::<f32>()?;
    read(y, |y| {
        let rows = numbers.par_chunks_mut(width).zip(y.par_chunks(width));
        rows.for_each(|(grad, y)| {
            let pulled: f32 = grad.iter().zip(y).map(|(grad, y)| grad * y).sum();
            let both = grad.iter_mut().zip(y);
            both.for_each(|(grad, y)| *grad = y * (*grad - pulled));
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
        move |logits| {
            if logits.device().is_cpu() {
                return divergence_by_rows(logits, &forward);
            }
            let top = logits.max_keepdim(D::Minus1)?;
            let shifted = logits.broadcast_sub(&top)?;
            let norm = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
            let log_probs = shifted.broadcast_sub(&norm)?;
            // Nothing is there where the target's probability underflows.
            let own = (&forward + 1e-30)?.log()?;
            (&forward * (own - log_probs)?)?.sum_all()?.reshape(1)
        },
        move |logits, _, grad| {
            (softmax_of(logits)? - &backward)?.broadcast_mul(&grad.reshape((1, 1))?)
        },
    )
}

/// [`divergence`] on the CPU: what is [`softmax_by_rows`] to softmax.
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
        check(softmax);
        let norm = numbers((1, 5), 4).flatten_all().unwrap();
        check(|x| rms_norm(x, &norm, 1e-6));
        let target = softmax_of(&numbers((3, 5), 5)).unwrap();
        check(|x| divergence(x, &target));
    }

    /// A view into a larger tensor is read where it lies.
    #[test]
    fn views_are_read_in_place() {
        let all = numbers((6, 5), 1);
        let part = all.narrow(0, 2, 3).unwrap();
        let copy = part.copy().unwrap();
        let rows = |x: &Tensor| softmax(x).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(rows(&part), rows(&copy));
        let error = softmax(&part.to_dtype(DType::F64).unwrap()).unwrap_err();
        assert!(error.to_string().contains("f32"), "{error}");
    }

    #[test]
    fn divergence_of_a_distribution_from_itself_is_zero() {
        let logits = numbers((3, 5), 1);
        let target = softmax_of(&logits).unwrap();
        let zero: Vec<f32> = divergence(&logits, &target).unwrap().to_vec1().unwrap();
        assert!(zero[0].abs() < 1e-6, "{zero:?}");
    }
}
