//! One backward pass over packed sequences: where its tensors and numbers lie, and who computes it.

use crate::call::{Options, Place, Tensor, check_places, check_row_values};
use crate::sequences::{Numbers, check_one_axis, reached};
use crate::{emulated, errors};
use ferroflash::{
    Attention, BackwardPlan, Device, GradientsViewMut, IndicesView, LseShape, LseView, Operand, OutputGradients,
    PackedRows, Stream, TensorView,
};
use pyo3::prelude::*;

/// The tensors of a call, in the order in which Python hands them over. The gradients of the log-sum-exp and of sinks
/// may be left out.
pub(crate) const TENSORS: [Operand; 11] = [
    Operand::Q,
    Operand::K,
    Operand::V,
    Operand::Out,
    Operand::Lse,
    Operand::Dout,
    Operand::Dlse,
    Operand::Dq,
    Operand::Dk,
    Operand::Dv,
    Operand::Dsink,
];

/// The numbers of a call, likewise. Rows in use may be left out.
pub(crate) const NUMBERS: [Operand; 4] = [Operand::QStarts, Operand::KvStarts, Operand::QUsed, Operand::KvUsed];

/// The tensors and numbers of one backward pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackedBackward {
    pub(crate) tensors: [Option<Tensor>; 11],
    pub(crate) numbers: [Option<Numbers>; 4],
}

/// The call as ferroflash knows it.
struct Views<'a> {
    inputs: [TensorView<'a>; 4],
    lse: LseView<'a>,
    upstream: OutputGradients<'a>,
    rows: [PackedRows<'a>; 2],
    into: GradientsViewMut<'a>,
}

/// Whether a call writes it.
pub(crate) fn is_written(operand: Operand) -> bool {
    matches!(operand, Operand::Dq | Operand::Dk | Operand::Dv | Operand::Dsink)
}

impl PackedBackward {
    /// Checks everything, and launches it on `stream` (on the CPU: computes it), without the interpreter's lock.
    pub(crate) fn run(&self, py: Python<'_>, stream: usize, options: &Options) -> PyResult<()> {
        let place = self.check(py)?;
        options.check(py, place)?;
        let result = match place {
            Place::Cpu => {
                emulated::warn(py)?;
                py.detach(|| emulated::packed_backward(options, self))
            }
            Place::Cuda(ordinal) => py.detach(|| self.on_gpu(options, ordinal, stream)),
        };
        result.map_err(|error| errors::raise(py, error))
    }

    /// Checks what the library does not see, and gives the place of all of it.
    fn check(&self, py: Python<'_>) -> PyResult<Place> {
        let needed = TENSORS.into_iter().zip(self.tensors.iter().map(Option::is_some));
        let needed = needed.chain(NUMBERS.into_iter().zip(self.numbers.iter().map(Option::is_some)));
        for (operand, is_given) in needed {
            let may_miss = matches!(operand, Operand::Dlse | Operand::Dsink | Operand::QUsed | Operand::KvUsed);
            if !is_given && !may_miss {
                return Err(errors::of_input(py, format!("{operand} is needed")));
            }
        }
        let place = self.given(Operand::Q).place;
        let places = TENSORS.into_iter().zip(self.tensors.iter().map(|tensor| tensor.map(|x| x.place)));
        let places = places.chain(NUMBERS.into_iter().zip(self.numbers.iter().map(|numbers| numbers.map(|x| x.place))));
        check_places(place, places).map_err(|error| errors::raise(py, error))?;
        for (operand, numbers) in NUMBERS.into_iter().zip(&self.numbers) {
            numbers.as_ref().map_or(Ok(()), |numbers| check_one_axis(py, operand, numbers))?;
        }
        for operand in [Operand::Lse, Operand::Dlse] {
            let Some(rows) = self.tensor(operand) else { continue };
            check_row_values(py, operand, &rows)?;
            if rows.shape.len() != 2 {
                let message = format!("{operand} has {} axes; 2 (head, row) are accepted", rows.shape.len());
                return Err(errors::of_input(py, message));
            }
        }
        Ok(place)
    }

    /// A tensor, if it is given.
    pub(crate) fn tensor(&self, operand: Operand) -> Option<Tensor> {
        TENSORS.iter().position(|&of| of == operand).and_then(|index| self.tensors[index])
    }

    /// A tensor that [`Self::check`] has found.
    fn given(&self, operand: Operand) -> Tensor {
        self.tensor(operand).expect("checked by `check`")
    }

    fn on_gpu(&self, options: &Options, ordinal: usize, stream: usize) -> ferroflash::Result<()> {
        let device = Device::cuda(ordinal)?;
        // SAFETY: a live stream of the GPU's primary context by the word of the caller of Python, and a handle that is gone when this function
        // returns.
        let stream = unsafe { Stream::from_raw(&device, std::ptr::with_exposed_provenance_mut(stream)) };
        options.with_attention(&device, |attention| self.launch(&device, &stream, attention))
    }

    /// Launches it on tensors in the memory of `device`.
    pub(crate) fn launch(&self, device: &Device, stream: &Stream, attention: &Attention) -> ferroflash::Result<()> {
        let Views { inputs: [q, k, v, out], lse, upstream, rows: [q_rows, kv_rows], mut into } = self.views(device)?;
        attention.backward_packed_into(stream, &q, &k, &v, &out, &lse, upstream, &q_rows, &kv_rows, &mut into)
    }

    /// Checks the tensors as if they were in the memory of `device`. Nothing is launched.
    pub(crate) fn plan(&self, device: &Device, attention: &Attention) -> ferroflash::Result<BackwardPlan> {
        let Views { inputs: [q, k, v, out], lse, upstream, rows: [q_rows, kv_rows], into } = self.views(device)?;
        attention.backward_plan_packed(&q, &k, &v, &out, &lse, upstream, &q_rows, &kv_rows, Some(&into))
    }

    fn views<'a>(&self, device: &'a Device) -> ferroflash::Result<Views<'a>> {
        // The tensors are memory of this device by what their owners say, or are planned with and never launched with. The arguments of the
        // call hold them until it returns, and from then on their frameworks give memory back in the order of the stream. The gradients are
        // the caller's to write.
        // SAFETY: see above.
        let read = |operand| unsafe { self.given(operand).view(device) };
        // SAFETY: see above.
        let write = |operand| unsafe { self.given(operand).view_mut(device) };
        let rows = |tensor: Tensor| {
            let [heads, rows] = tensor.shape[..] else { unreachable!("checked by `check`") };
            // SAFETY: see above.
            unsafe { LseView::from_raw(device, tensor.address, tensor.elements(), LseShape { batch: 1, heads, rows }) }
        };
        let indices = |index: usize| {
            let view = |numbers: Numbers| {
                // SAFETY: see above.
                unsafe { IndicesView::from_raw(device, numbers.address, reached(&numbers)) }
            };
            self.numbers[index].map(view).transpose()
        };
        let packed = |starts: usize, used: usize| {
            let starts = indices(starts)?.expect("checked by `check`");
            Ok::<_, ferroflash::Error>(PackedRows::new(starts).with_used(indices(used)?))
        };
        let mut upstream = OutputGradients::new(read(Operand::Dout)?);
        if let Some(dlse) = self.tensor(Operand::Dlse) {
            upstream = upstream.with_dlse(rows(dlse)?);
        }
        let mut into = GradientsViewMut::new(write(Operand::Dq)?, write(Operand::Dk)?, write(Operand::Dv)?);
        if let Some(dsink) = self.tensor(Operand::Dsink) {
            // SAFETY: see above.
            into = into.with_dsink(unsafe { dsink.view_mut(device) }?);
        }
        Ok(Views {
            inputs: [read(Operand::Q)?, read(Operand::K)?, read(Operand::V)?, read(Operand::Out)?],
            lse: rows(self.given(Operand::Lse))?,
            upstream,
            rows: [packed(0, 2)?, packed(1, 3)?],
            into,
        })
    }
}
