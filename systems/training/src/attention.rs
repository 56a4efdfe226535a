//! Attention as one operation with its gradient: the weights of all queries for all keys are by far the
//! largest thing between, and are computed again on the way back in place of being kept.

use candle_core::{CpuStorage, CudaStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use crate::ops;

/// What scaled queries `[kv_heads, group * rows, head_dim]` read from keys and values
/// `[kv_heads, width, head_dim]`, of the queries' shape. `mask` is `[rows, width]`: 0 where a row may look
/// and minus infinity elsewhere; nothing is learnt about it.
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let op = Attention {
        mask: mask.detach(),
    };
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    q.apply_op3(&k, &v, op)
}

struct Attention {
    mask: Tensor,
}

impl Attention {
    fn weights(&self, q: &Tensor, k: &Tensor) -> Result<Tensor> {
        ops::masked_softmax(&q.matmul(&k.transpose(1, 2)?)?, &self.mask)
    }

    fn read(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        self.weights(q, k)?.matmul(v)?.contiguous()
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let read = self.read(
            &ops::from_cpu(self.name(), q, q_layout)?,
            &ops::from_cpu(self.name(), k, k_layout)?,
            &ops::from_cpu(self.name(), v, v_layout)?,
        )?;
        match ops::into_storage(&read)? {
            (candle_core::Storage::Cpu(storage), shape) => Ok((storage, shape)),
            _ => bail!("{} left the device", self.name()),
        }
    }

    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        q_layout: &Layout,
        k: &CudaStorage,
        k_layout: &Layout,
        v: &CudaStorage,
        v_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let read = self.read(
            &ops::from_cuda(self.name(), q, q_layout)?,
            &ops::from_cuda(self.name(), k, k_layout)?,
            &ops::from_cuda(self.name(), v, v_layout)?,
        )?;
        match ops::into_storage(&read)? {
            (candle_core::Storage::Cuda(storage), shape) => Ok((storage, shape)),
            _ => bail!("{} left the device", self.name()),
        }
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _read: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (q, k, v) = (q.detach(), k.detach(), v.detach());
        let grad = grad.detach().contiguous()?;
        let weights = self.weights(&q, &k)?;
        let of_v = weights.transpose(1, 2)?.matmul(&grad)?;
        let of_weights = grad.matmul(&v.transpose(1, 2)?)?;
        let of_scores = ops::softmax_pulled(&weights, &of_weights)?;
        let of_q = of_scores.matmul(&k)?;
        let of_k = of_scores.transpose(1, 2)?.matmul(&q)?;
        Ok((Some(of_q), Some(of_k), Some(of_v)))
    }
}
