//! One call of attention: where its tensors lie, what it is asked, and who computes it.

use crate::program::OnScores;
use crate::{emulated, errors};
use ferroflash::{
    Attention, BoolView, DType, Device, Dims, Dropout, Error, LseShape, LseViewMut, Operand, Splits, Stream,
    TensorView, TensorViewMut,
};
use pyo3::prelude::*;

/// Whose memory an address is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The host: the emulator computes.
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Cpu => f.write_str("cpu"),
            Place::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// Memory that Python owns, with elements of the type `E` names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory<E> {
    pub(crate) place: Place,
    pub(crate) dtype: E,
    /// Of the first element.
    pub(crate) address: u64,
    pub(crate) shape: Dims,
    /// In elements.
    pub(crate) strides: Dims,
}

/// Memory read as a tensor.
pub(crate) type Tensor = Memory<DType>;

impl<E> Memory<E> {
    /// The same memory with elements of this type.
    pub(crate) fn of<F>(&self, dtype: F) -> Memory<F> {
        let Memory { place, address, shape, strides, .. } = *self;
        Memory { place, dtype, address, shape, strides }
    }

    /// Elements, or the most there can be.
    pub(crate) fn elements(&self) -> usize {
        self.shape.iter().fold(1, |elements, &extent| elements.saturating_mul(extent))
    }

    /// Whether there are no gaps, the last axis fastest. The stride of an axis of extent 1 plays no part.
    pub(crate) fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(self.strides.iter()).rev().all(|(&extent, &stride)| {
            let fits = extent <= 1 || stride == expected;
            expected *= extent.max(1);
            fits
        })
    }
}

impl<E> Memory<E> {
    /// The memory as booleans, of a byte each.
    ///
    /// # Safety
    /// As for [`Tensor::view`].
    pub(crate) unsafe fn bools<'a>(&self, device: &'a Device) -> ferroflash::Result<BoolView<'a>> {
        // SAFETY: the caller vouches for every element that shape and strides reach, however many these are.
        unsafe { BoolView::from_raw(device, self.address, usize::MAX, self.shape, self.strides) }
    }
}

impl Tensor {
    /// The tensor as ferroflash knows it.
    ///
    /// # Safety
    /// Its elements are memory of `device`, live and written only in order for as long as the view is used. What is only looked at, and
    /// never launched with, may be of another device.
    pub(crate) unsafe fn view<'a>(&self, device: &'a Device) -> ferroflash::Result<TensorView<'a>> {
        // SAFETY: the caller vouches for every element that shape and strides reach, however many these are.
        unsafe { TensorView::from_raw(device, self.address, usize::MAX, self.shape, self.strides, self.dtype) }
    }

    /// The tensor as ferroflash knows it, to be written.
    ///
    /// # Safety
    /// As for [`Self::view`], and nobody else uses the elements except by work that is ordered before the use of the view.
    pub(crate) unsafe fn view_mut<'a>(&self, device: &'a Device) -> ferroflash::Result<TensorViewMut<'a>> {
        // SAFETY: as for `view`.
        unsafe { TensorViewMut::from_raw(device, self.address, usize::MAX, self.shape, self.strides, self.dtype) }
    }
}

/// What attention is asked to compute, as Python says it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) scale: Option<f64>,
    pub(crate) causal: bool,
    /// Keys before the diagonal; negative is no bound.
    pub(crate) left: i64,
    /// Keys behind it. A causal mask has none.
    pub(crate) right: i64,
    /// 0 is none.
    pub(crate) softcap: f64,
    /// Of the backward pass; the forward pass always is.
    pub(crate) deterministic: bool,
    /// How the keys of sequences are split.
    pub(crate) splits: Splits,
    /// What scores pass through.
    pub(crate) program: Option<OnScores>,
    /// What is dropped.
    pub(crate) dropout: Option<Dropped>,
    /// Sinks of the query heads.
    pub(crate) sink: Option<Tensor>,
}

/// Dropout as Python hands it over: `(p, seed, offset, False)`, or `(p, address, 0, True)` with seed and offset as two numbers of 64 bits at an
/// address of the GPU.
pub(crate) type Dropped = (f64, u64, u64, bool);

/// As ferroflash's own.
pub(crate) fn dropout_of((p, first, offset, on_device): Dropped) -> Dropout {
    match on_device {
        false => Dropout::new(p as f32, first, offset),
        // SAFETY: by the word of the caller of Python, two numbers in memory of the GPU that its framework gives back in the order of the stream.
        true => unsafe { Dropout::from_device(p as f32, first, offset) },
    }
}

impl Options {
    /// Checks what the library does not see of the program and the sinks, whose tensors have to be where q is.
    pub(crate) fn check(&self, py: Python<'_>, place: Place) -> PyResult<()> {
        let sink = [(Operand::Sink, self.sink.as_ref().map(|sink| sink.place))];
        check_places(place, sink).map_err(|error| errors::raise(py, error))?;
        self.program.as_ref().map_or(Ok(()), |program| program.check(py, place))
    }

    /// Runs `call` with the options as ferroflash's own, the program and the sinks on tensors in the memory of `device`.
    pub(crate) fn with_attention<R>(
        &self,
        device: &Device,
        call: impl FnOnce(&Attention<'_>) -> ferroflash::Result<R>,
    ) -> ferroflash::Result<R> {
        let mut attention = self.attention();
        if let Some(sink) = &self.sink {
            // SAFETY: memory of this device by what its owner says, or planned with and never launched with. The arguments of the call hold it
            // until it returns, and from then on its framework gives memory back in the order of the stream.
            attention = attention.with_sink(&unsafe { sink.view(device) }?);
        }
        let Some(program) = &self.program else { return call(&attention) };
        let bound = program.bind(device)?;
        call(&attention.with_program(&bound))
    }

    fn attention<'a>(&self) -> Attention<'a> {
        let right = if self.causal { 0 } else { self.right };
        // No tensor has more rows than 32 bits count, so that a larger bound hides nothing.
        let [left, right] = [self.left, right].map(|bound| u32::try_from(bound).ok());
        let attention = match (left, right) {
            (None, None) => Attention::new(),
            (None, Some(0)) => Attention::new().causal(),
            (left, right) => Attention::new().window(left, right),
        };
        let attention = attention.with_softcap(self.softcap as f32).with_deterministic(self.deterministic);
        let attention = attention.with_splits(self.splits).with_dropout(self.dropout.map(dropout_of));
        match self.scale {
            Some(scale) => attention.with_scale(scale as f32),
            None => attention,
        }
    }
}

/// The tensors of one call.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) q: Tensor,
    pub(crate) k: Tensor,
    pub(crate) v: Tensor,
    pub(crate) out: Tensor,
    /// `f32 [batch, q_heads, q_rows]`.
    pub(crate) lse: Option<Tensor>,
}

impl Call {
    /// With a log-sum-exp at this address, contiguous and of the shape that q wants.
    pub(crate) fn with_lse_address(self, address: Option<u64>) -> Call {
        let lse = address.and_then(|address| rows_at(&self.q, address));
        Call { lse, ..self }
    }

    /// Checks everything, and launches it on `stream` (on the CPU: computes it), without the interpreter's lock.
    pub(crate) fn run(&self, py: Python<'_>, stream: usize, options: &Options) -> PyResult<()> {
        let lse = self.lse.as_ref();
        let tensors = [(Operand::K, Some(&self.k)), (Operand::V, Some(&self.v)), (Operand::Out, Some(&self.out))];
        let places = tensors.into_iter().chain([(Operand::Lse, lse)]).map(|(of, tensor)| (of, tensor.map(|x| x.place)));
        check_places(self.q.place, places).map_err(|error| errors::raise(py, error))?;
        lse.map_or(Ok(()), |lse| check_rows(py, Operand::Lse, lse))?;
        options.check(py, self.q.place)?;
        let result = match self.q.place {
            Place::Cpu => {
                emulated::warn(py)?;
                py.detach(|| emulated::forward(options, self))
            }
            Place::Cuda(ordinal) => py.detach(|| self.on_gpu(options, ordinal, stream)),
        };
        result.map_err(|error| errors::raise(py, error))
    }

    /// Address, elements and extents of the log-sum-exp.
    pub(crate) fn lse_shape(&self) -> Option<(u64, usize, LseShape)> {
        self.lse.as_ref().map(rows_of)
    }

    fn on_gpu(&self, options: &Options, ordinal: usize, stream: usize) -> ferroflash::Result<()> {
        let device = Device::cuda(ordinal)?;
        // SAFETY: the caller of Python hands over a live stream of the GPU's primary context, which is what its frameworks work in. The
        // handle is gone when this function returns, in the thread that called it, which matters for the stream of the thread.
        let stream = unsafe { Stream::from_raw(&device, std::ptr::with_exposed_provenance_mut(stream)) };
        // SAFETY: the tensors are memory of this GPU by what their owners say; the arguments of the call hold them until it returns, and
        // from then on their frameworks give memory back in the order of the stream.
        let (q, k, v) = unsafe { (self.q.view(&device)?, self.k.view(&device)?, self.v.view(&device)?) };
        // SAFETY: as for the inputs; the output is the caller's to write.
        let mut out = unsafe { self.out.view_mut(&device) }?;
        let lse = self.lse_shape().map(|(address, elements, shape)| {
            // SAFETY: as for the output.
            unsafe { LseViewMut::from_raw(&device, address, elements, shape) }
        });
        let mut lse = lse.transpose()?;
        options.with_attention(&device, |attention| attention.forward_into(&stream, &q, &k, &v, &mut out, lse.as_mut()))
    }
}

/// A log-sum-exp, or the gradient of one, at this address: contiguous, of the shape that q wants. `None` when q has no such shape, which the
/// library says of it.
pub(crate) fn rows_at(q: &Tensor, address: u64) -> Option<Tensor> {
    let [batch, rows, heads, _] = q.shape[..] else { return None };
    let (shape, strides) = (Dims::from([batch, heads, rows]), Dims::from([heads * rows, rows, 1]));
    Some(Tensor { place: q.place, dtype: DType::F32, address, shape, strides })
}

/// Address, elements and extents of a tensor that [`check_rows`] has checked.
pub(crate) fn rows_of(tensor: &Tensor) -> (u64, usize, LseShape) {
    let [batch, heads, rows] = tensor.shape[..] else { unreachable!("checked by check_rows") };
    (tensor.address, tensor.elements(), LseShape { batch, heads, rows })
}

/// Whether all tensors are where q is.
pub(crate) fn check_places(
    expected: Place,
    places: impl IntoIterator<Item = (Operand, Option<Place>)>,
) -> ferroflash::Result<()> {
    for (operand, place) in places {
        if let Some(place) = place.filter(|&place| place != expected) {
            return Err(Error::DeviceMismatch {
                what: operand.to_string(),
                found: place.to_string(),
                expected: expected.to_string(),
            });
        }
    }
    Ok(())
}

/// The library takes the log-sum-exp and its gradient as addresses: what an array says of itself beyond that is checked here.
pub(crate) fn check_rows(py: Python<'_>, operand: Operand, tensor: &Tensor) -> PyResult<()> {
    check_row_values(py, operand, tensor)?;
    if tensor.shape.len() != 3 {
        let message = format!("{operand} has {} axes; 3 (batch, head, row) are accepted", tensor.shape.len());
        return Err(errors::of_input(py, message));
    }
    Ok(())
}

/// [`check_rows`], however many axes there are.
pub(crate) fn check_row_values(py: Python<'_>, operand: Operand, tensor: &Tensor) -> PyResult<()> {
    let Tensor { dtype, shape, strides, .. } = tensor;
    if *dtype != DType::F32 {
        return Err(errors::of_type(py, format!("{operand} holds {dtype}; f32 is accepted")));
    }
    if !tensor.is_contiguous() {
        let message = format!("{operand} of shape {shape:?} has strides {strides:?}; it must be contiguous");
        return Err(errors::of_input(py, message));
    }
    Ok(())
}
