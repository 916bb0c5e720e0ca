//! One backward pass: where its tensors lie, and who computes it.

use crate::call::{Options, Place, Tensor, check_places, check_rows, rows_of};
use crate::{emulated, errors};
use ferroflash::{
    Attention, BackwardPlan, Device, GradientsViewMut, LseView, Operand, OutputGradients, Stream, TensorView,
};
use pyo3::prelude::*;

/// The tensors of one backward pass.
#[derive(Debug)]
pub(crate) struct Backward {
    pub(crate) q: Tensor,
    pub(crate) k: Tensor,
    pub(crate) v: Tensor,
    pub(crate) out: Tensor,
    /// `f32 [batch, q_heads, q_rows]`.
    pub(crate) lse: Tensor,
    pub(crate) dout: Tensor,
    /// `f32 [batch, q_heads, q_rows]`.
    pub(crate) dlse: Option<Tensor>,
    pub(crate) dq: Tensor,
    pub(crate) dk: Tensor,
    pub(crate) dv: Tensor,
    /// `f32 [q_heads]`, where there are sinks and it is wanted.
    pub(crate) dsink: Option<Tensor>,
}

/// The tensors as ferroflash knows them.
struct Views<'a> {
    q: TensorView<'a>,
    k: TensorView<'a>,
    v: TensorView<'a>,
    out: TensorView<'a>,
    lse: LseView<'a>,
    upstream: OutputGradients<'a>,
    into: GradientsViewMut<'a>,
}

impl Backward {
    /// Checks everything, and launches it on `stream` (on the CPU: computes it), without the interpreter's lock.
    pub(crate) fn run(&self, py: Python<'_>, stream: usize, options: &Options) -> PyResult<()> {
        check_places(self.q.place, self.other_places()).map_err(|error| errors::raise(py, error))?;
        check_rows(py, Operand::Lse, &self.lse)?;
        self.dlse.as_ref().map_or(Ok(()), |dlse| check_rows(py, Operand::Dlse, dlse))?;
        options.check(py, self.q.place)?;
        let result = match self.q.place {
            Place::Cpu => {
                emulated::warn(py)?;
                py.detach(|| emulated::backward(options, self))
            }
            Place::Cuda(ordinal) => py.detach(|| self.on_gpu(options, ordinal, stream)),
        };
        result.map_err(|error| errors::raise(py, error))
    }

    /// Where all tensors but q are.
    fn other_places(&self) -> [(Operand, Option<Place>); 10] {
        let others = [
            (Operand::K, Some(&self.k)),
            (Operand::V, Some(&self.v)),
            (Operand::Out, Some(&self.out)),
            (Operand::Lse, Some(&self.lse)),
            (Operand::Dout, Some(&self.dout)),
            (Operand::Dlse, self.dlse.as_ref()),
            (Operand::Dq, Some(&self.dq)),
            (Operand::Dk, Some(&self.dk)),
            (Operand::Dv, Some(&self.dv)),
            (Operand::Dsink, self.dsink.as_ref()),
        ];
        others.map(|(operand, tensor)| (operand, tensor.map(|tensor| tensor.place)))
    }

    fn on_gpu(&self, options: &Options, ordinal: usize, stream: usize) -> ferroflash::Result<()> {
        let device = Device::cuda(ordinal)?;
        // SAFETY: as for the forward pass: a live stream of the GPU's primary context by the word of the caller of Python, and a handle that
        // is gone when this function returns.
        let stream = unsafe { Stream::from_raw(&device, std::ptr::with_exposed_provenance_mut(stream)) };
        options.with_attention(&device, |attention| self.launch(&device, &stream, attention))
    }

    /// Launches it on tensors in the memory of `device`.
    pub(crate) fn launch(&self, device: &Device, stream: &Stream, attention: &Attention) -> ferroflash::Result<()> {
        let Views { q, k, v, out, lse, upstream, mut into } = self.views(device)?;
        attention.backward_into(stream, &q, &k, &v, &out, &lse, upstream, &mut into)
    }

    /// Checks the tensors as if they were in the memory of `device`. Nothing is launched.
    pub(crate) fn plan(&self, device: &Device, attention: &Attention) -> ferroflash::Result<BackwardPlan> {
        let Views { q, k, v, out, lse, upstream, into } = self.views(device)?;
        attention.backward_plan_for(&q, &k, &v, &out, &lse, upstream, Some(&into))
    }

    fn views<'a>(&self, device: &'a Device) -> ferroflash::Result<Views<'a>> {
        // The tensors are memory of this device by what their owners say, or are planned with and never launched with. The arguments of the
        // call hold them until it returns, and from then on their frameworks give memory back in the order of the stream. The gradients are
        // the caller's to write.
        // SAFETY: see above.
        let read = |tensor: &Tensor| unsafe { tensor.view(device) };
        // SAFETY: see above.
        let write = |tensor: &Tensor| unsafe { tensor.view_mut(device) };
        let rows = |tensor: &Tensor| {
            let (address, elements, shape) = rows_of(tensor);
            // SAFETY: see above.
            unsafe { LseView::from_raw(device, address, elements, shape) }
        };
        let mut upstream = OutputGradients::new(read(&self.dout)?);
        if let Some(dlse) = &self.dlse {
            upstream = upstream.with_dlse(rows(dlse)?);
        }
        let mut into = GradientsViewMut::new(write(&self.dq)?, write(&self.dk)?, write(&self.dv)?);
        if let Some(dsink) = &self.dsink {
            into = into.with_dsink(write(dsink)?);
        }
        Ok(Views {
            q: read(&self.q)?,
            k: read(&self.k)?,
            v: read(&self.v)?,
            out: read(&self.out)?,
            lse: rows(&self.lse)?,
            upstream,
            into,
        })
    }
}
