//! Operations whose gradient is stated, so that nothing is computed for what is frozen.
//!
//! candle differentiates a product with respect to both factors; of frozen weights that gradient
//! would be thrown away, at the cost of a second backward pass and a copy of the model.

use candle_core::backend::BackendStorage;
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, D, Layout, Result, Shape, Storage, Tensor, bail,
};

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

/// `x Wᵀ` with a frozen `weight` `[out, in]`; `x: [rows, in]`.
pub(crate) fn product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (forward, backward) = (weight.clone(), weight.clone());
    stated(
        "frozen-product",
        x,
        move |x| x.matmul(&forward.t()?),
        move |_, _, grad| grad.contiguous()?.matmul(&backward),
    )
}

/// Softmax over the last dimension.
pub(crate) fn softmax(x: &Tensor) -> Result<Tensor> {
    stated("softmax", x, softmax_of, |_, y, grad| {
        let pulled = (y * grad)?.sum_keepdim(D::Minus1)?;
        y * grad.broadcast_sub(&pulled)?
    })
}

fn softmax_of(x: &Tensor) -> Result<Tensor> {
    let top = x.max_keepdim(D::Minus1)?;
    let raised = x.broadcast_sub(&top)?.exp()?;
    raised.broadcast_div(&raised.sum_keepdim(D::Minus1)?)
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
        let weight = numbers((4, 5), 3);
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
