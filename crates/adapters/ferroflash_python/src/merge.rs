//! One merge of partial results: where its tensors lie, and who computes it.

use crate::arrays::Array;
use crate::call::{Place, Tensor, check_row_values};
use crate::{TorchTensor, emulated, errors, torch_tensor};
use ferroflash::{
    DType, Device, Error, LseShape, LseView, LseViewMut, MergeError, Operand, Part, Stream, merge_into, plan_merge,
};
use pyo3::prelude::*;

/// The tensors of one merge.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// Outputs, and their log-sum-exps.
    pub(crate) parts: Vec<(Tensor, Tensor)>,
    pub(crate) out: Tensor,
    pub(crate) lse: Option<Tensor>,
}

impl Call {
    /// Checks everything, and launches it on `stream` (on the CPU: computes it), without the interpreter's lock.
    pub(crate) fn run(&self, py: Python<'_>, stream: usize) -> PyResult<()> {
        let result = match self.check(py)? {
            Place::Cpu => {
                emulated::warn(py)?;
                py.detach(|| emulated::merge(self))
            }
            Place::Cuda(ordinal) => py.detach(|| self.on_gpu(ordinal, stream)),
        };
        result.map_err(|error| errors::raise(py, error))
    }

    /// Checks what the library does not see, and gives the place of all of it.
    fn check(&self, py: Python<'_>) -> PyResult<Place> {
        let raise = |error: MergeError| errors::raise(py, Error::Merge(error));
        let expected = self.parts.first().ok_or(MergeError::NoParts).map_err(raise)?.0.place;
        let parts = self.parts.iter().enumerate();
        let parts = parts.flat_map(|(i, (out, lse))| [(Operand::Part(i), out), (Operand::PartLse(i), lse)]);
        let outputs = [(Operand::Out, Some(&self.out)), (Operand::Lse, self.lse.as_ref())];
        let outputs = outputs.into_iter().filter_map(|(of, tensor)| Some((of, tensor?)));
        for (tensor, Tensor { place, .. }) in parts.chain(outputs) {
            if *place != expected {
                let (found, expected) = (place.to_string(), expected.to_string());
                return Err(raise(MergeError::Device { tensor, found, expected }));
            }
        }
        let lses = self.parts.iter().enumerate().map(|(i, (out, lse))| (Operand::PartLse(i), out, lse));
        let lse = self.lse.iter().map(|lse| (Operand::Lse, &self.out, lse));
        for (of, out, lse) in lses.chain(lse) {
            check_row_values(py, of, lse)?;
            let (accepted, names) = if out.shape.len() == 3 { (2, "(head, row)") } else { (3, "(batch, head, row)") };
            let found = lse.shape.len();
            if found != accepted {
                return Err(errors::of_input(py, format!("{of} has {found} axes; {accepted} {names} are accepted")));
            }
        }
        Ok(expected)
    }

    fn on_gpu(&self, ordinal: usize, stream: usize) -> ferroflash::Result<()> {
        let device = Device::cuda(ordinal)?;
        // SAFETY: a live stream of the GPU's primary context by the word of the caller of Python, and a handle that is gone when this function
        // returns.
        let stream = unsafe { Stream::from_raw(&device, std::ptr::with_exposed_provenance_mut(stream)) };
        self.launch(&device, &stream)
    }

    fn parts<'a>(&self, device: &'a Device) -> ferroflash::Result<Vec<Part<'a>>> {
        let part = |(out, lse): &(Tensor, Tensor)| {
            // SAFETY: the tensors are memory of this device by what their owners say, or are planned with and never launched with. The
            // arguments of the call hold them until it returns, and from then on their frameworks give memory back in the order of the stream.
            let out = unsafe { out.view(device) }?;
            // SAFETY: as for the output of the part.
            let lse = unsafe { LseView::from_raw(device, lse.address, usize::MAX, lse_shape(lse)) }?;
            Ok(Part::new(&out, &lse))
        };
        self.parts.iter().map(part).collect()
    }

    /// Says what is wrong with tensors that fit no merge. Nothing is launched.
    pub(crate) fn plan(&self, device: &Device) -> ferroflash::Result<()> {
        plan_merge(&self.parts(device)?, self.out.dtype).map(drop)
    }

    /// Launches it on tensors in the memory of `device`.
    pub(crate) fn launch(&self, device: &Device, stream: &Stream) -> ferroflash::Result<()> {
        let parts = self.parts(device)?;
        // SAFETY: as for the parts; the outputs are the caller's to write.
        let mut out = unsafe { self.out.view_mut(device) }?;
        let lse = self.lse.map(|lse| {
            // SAFETY: as for the output.
            unsafe { LseViewMut::from_raw(device, lse.address, usize::MAX, lse_shape(&lse)) }
        });
        merge_into(stream, &parts, &mut out, lse.transpose()?.as_mut())
    }
}

/// Extents of a log-sum-exp that has been checked.
fn lse_shape(lse: &Tensor) -> LseShape {
    match lse.shape[..] {
        [batch, heads, rows] => LseShape { batch, heads, rows },
        [heads, rows] => LseShape { batch: 1, heads, rows },
        _ => unreachable!("checked by `check`"),
    }
}

/// The merge of partial results on tensors of torch, all checks included.
#[pyfunction]
#[pyo3(signature = (stream, outs, lses, out, lse, /))]
pub(crate) fn launch_merge(
    py: Python<'_>,
    stream: usize,
    outs: Vec<TorchTensor<'_>>,
    lses: Vec<TorchTensor<'_>>,
    out: TorchTensor<'_>,
    lse: Option<TorchTensor<'_>>,
) -> PyResult<()> {
    let parts = outs.iter().zip(&lses).map(|(out, lse)| Ok((torch_tensor(out)?, torch_tensor(lse)?)));
    let parts = parts.collect::<PyResult<_>>()?;
    let lse = lse.as_ref().map(torch_tensor).transpose()?;
    Call { parts, out: torch_tensor(&out)?, lse }.run(py, stream)
}

/// [`launch_merge`] on objects that speak DLPack or `__cuda_array_interface__`, in place. `device` is the GPU of those that do not say theirs.
#[pyfunction(name = "merge")]
#[pyo3(signature = (outs, lses, out, lse, stream, device, /))]
pub(crate) fn merge_arrays(
    py: Python<'_>,
    outs: Vec<Bound<'_, PyAny>>,
    lses: Vec<Bound<'_, PyAny>>,
    out: &Bound<'_, PyAny>,
    lse: Option<&Bound<'_, PyAny>>,
    stream: usize,
    device: Option<usize>,
) -> PyResult<()> {
    let import = |operand: Operand, object: &Bound<'_, PyAny>, is_written| {
        Array::<DType>::import(&operand.to_string(), object, stream, device, is_written)
    };
    let parts =
        outs.iter().zip(&lses).enumerate().map(|(i, (out, lse))| {
            Ok((import(Operand::Part(i), out, false)?, import(Operand::PartLse(i), lse, false)?))
        });
    let parts = parts.collect::<PyResult<Vec<_>>>()?;
    let out = import(Operand::Out, out, true)?;
    let lse = lse.map(|lse| import(Operand::Lse, lse, true)).transpose()?;
    let tensors = parts.iter().map(|(out, lse)| (out.tensor, lse.tensor)).collect();
    // The arrays are held until the launch has returned.
    Call { parts: tensors, out: out.tensor, lse: lse.as_ref().map(|lse| lse.tensor) }.run(py, stream)
}
