//! Gradients: what the forward pass keeps for them, and what candle gets when it asks for them.

use crate::FlashAttn;
use crate::op::Options;
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, CustomOp3, Error, Layout, Result, Shape, Storage, Tensor};
use std::sync::OnceLock;

/// Gradients with respect to q, k and v, where they are wanted.
pub(crate) type Gradients = (Option<Tensor>, Option<Tensor>, Option<Tensor>);

/// What the backward pass reads beside the log-sum-exp: q, k, v, what attention made of them, and the gradient with respect to that.
pub(crate) type Inputs<'a, S> = [(&'a S, &'a Layout); 5];

/// One call of attention.
///
/// candle hands `bwd` the tensors of the forward pass, but an operation has one result, so that there is no tensor for the log-sum-exp. It is
/// kept in the operation: [`apply`] makes one for each call and nobody else has it, so that what is kept belongs to the tensors that `bwd`
/// is given. Computing it again would cost a forward pass; this costs 4 bytes a row and head for as long as the graph lives.
struct Call {
    options: FlashAttn,
    /// Sinks of the heads, which get no gradient.
    sink: Option<Tensor>,
    name: &'static str,
    /// Whether a gradient may be asked for.
    keeps: bool,
    /// `f32 [batch, q_heads, q_rows]`, when it was kept.
    lse: OnceLock<Storage>,
}

/// Attention of q, k and v as a part of candle's graph.
pub(crate) fn apply(
    tensors: [&Tensor; 3],
    options: FlashAttn,
    sink: Option<&Tensor>,
    name: &'static str,
) -> Result<Tensor> {
    // candle records an operation when, and only when, one of its inputs is a variable or depends on one.
    let keeps = tensors.iter().any(|tensor| tensor.track_op());
    let [q, k, v] = tensors;
    let sink = sink.map(Tensor::detach);
    q.apply_op3(k, v, Call { options, sink, name, keeps, lse: OnceLock::new() })
}

/// The gradients of an operation that kept nothing.
pub(crate) fn again(
    options: &FlashAttn,
    name: &'static str,
    [q, k, v]: [&Tensor; 3],
    dout: &Tensor,
) -> Result<Gradients> {
    let call = Call { options: options.clone(), sink: None, name, keeps: true, lse: OnceLock::new() };
    let out = q.apply_op3_no_bwd(k, v, &call)?;
    call.bwd(q, k, v, &out, dout)
}

impl Call {
    fn options(&self) -> Options<'_> {
        Options { options: &self.options, sink: self.sink.as_ref() }
    }

    fn keep(&self, lse: Option<Storage>) {
        if let Some(lse) = lse {
            // An operation is applied once: see above.
            assert!(self.lse.set(lse).is_ok(), "an operation of one call was applied twice");
        }
    }
}

impl CustomOp3 for Call {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_l: &Layout,
        k: &CpuStorage,
        k_l: &Layout,
        v: &CpuStorage,
        v_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (out, lse) = crate::cpu::forward(self.options(), self.name, [(q, q_l), (k, k_l), (v, v_l)], self.keeps)?;
        self.keep(lse.map(Storage::Cpu));
        Ok((out, q_l.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &candle_core::CudaStorage,
        q_l: &Layout,
        k: &candle_core::CudaStorage,
        k_l: &Layout,
        v: &candle_core::CudaStorage,
        v_l: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let (out, lse) = crate::cuda::forward(self.options(), self.name, [(q, q_l), (k, k_l), (v, v_l)], self.keeps)?;
        self.keep(lse.map(Storage::Cuda));
        Ok((out, q_l.shape().clone()))
    }

    fn bwd(&self, q: &Tensor, k: &Tensor, v: &Tensor, out: &Tensor, dout: &Tensor) -> Result<Gradients> {
        // ferroflash takes any strides but those of a last dim with gaps, which candle's gradients of transposed or broadcast results have.
        let dout = if dout.stride().last() == Some(&1) { dout.clone() } else { dout.contiguous()? };
        let locked = [q, k, v, out, &dout].map(|tensor| tensor.storage_and_layout());
        let inputs = locked.each_ref().map(|(storage, layout)| (&**storage, *layout));
        let (options, op) = (self.options(), self.name);
        let gradients = match self.lse.get() {
            Some(Storage::Cpu(lse)) => {
                crate::cpu::backward(options, op, of_one_device(op, inputs, on_cpu)?, lse)?.map(Storage::Cpu)
            }
            #[cfg(feature = "cuda")]
            Some(Storage::Cuda(lse)) => {
                crate::cuda::backward(options, op, of_one_device(op, inputs, on_cuda)?, lse)?.map(Storage::Cuda)
            }
            // Nothing was kept: candle asks for gradients of what it has recorded, and `apply` keeps what it records.
            _ => return Err(Error::BackwardNotSupported { op }),
        };
        let [dq, dk, dv] = gradients;
        let wanted = |of: &Tensor, gradient| {
            of.track_op().then(|| Tensor::from_storage(gradient, of.shape(), BackpropOp::none(), false))
        };
        Ok((wanted(q, dq), wanted(k, dk), wanted(v, dv)))
    }
}

pub(crate) fn on_cpu(storage: &Storage) -> Option<&CpuStorage> {
    match storage {
        Storage::Cpu(storage) => Some(storage),
        _ => None,
    }
}

#[cfg(feature = "cuda")]
pub(crate) fn on_cuda(storage: &Storage) -> Option<&candle_core::CudaStorage> {
    match storage {
        Storage::Cuda(storage) => Some(storage),
        _ => None,
    }
}

/// The inputs as memory of the device that the log-sum-exp is on.
pub(crate) fn of_one_device<'a, S>(
    op: &'static str,
    inputs: Inputs<'a, Storage>,
    memory: impl Fn(&'a Storage) -> Option<&'a S>,
) -> Result<Inputs<'a, S>> {
    let (lhs, rhs) = (inputs[0].0.device().location(), inputs[4].0.device().location());
    let found = inputs.map(|(storage, layout)| memory(storage).map(|storage| (storage, layout)));
    let [Some(q), Some(k), Some(v), Some(out), Some(dout)] = found else {
        return Err(Error::DeviceMismatchBinaryOp { lhs, rhs, op }.bt());
    };
    Ok([q, k, v, out, dout])
}
