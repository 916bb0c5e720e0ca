//! The norm of all gradients of a list of tensors.

use super::list::{ListPlan, elements_of};
use super::rows::{check_contiguous, check_device, check_dtype, check_shape, footprint};
use crate::device::{Device, Stream};
use crate::error::{Error, Operand, OperatorError, Result};
use crate::plain::{bytes_of, plain};
use crate::plan::{Binding, Buffer, MAX_GRID, Params, Step, check_device as check_entry, run};
use crate::specialise::Specialised;
use crate::tensor::overlap::check_apart;
use crate::tensor::{Dims, TensorView, TensorViewMut};
use kernel_spec::families::gradient_norm::{MAX_TENSORS, NormParams, Pass, SquaresParams, TensorParams, find};
use kernel_spec::{DType, FeatureSet, Features};
use std::mem::offset_of;

plain! {
    TensorParams { address, elements, first_block }
    SquaresParams { tensors, parts, first_part, count, features }
    NormParams { parts, out, count, scale, most, unused, features }
}

/// Bytes of a sum.
const WORD: u64 = size_of::<f32>() as u64;

/// The norm of all gradients of a list of tensors as one vector, and what clipping multiplies them with (Pascanu, Mikolov and Bengio, "On the difficulty of
/// training recurrent neural networks", 2013, algorithm 1):
///
/// ```text
/// norm = |scale| sqrt(sum of squares)        coefficient = min(1, most / (norm + 1e-6))
/// ```
///
/// That is `torch.nn.utils.clip_grad_norm_`, without a look at the host: [`AdamW::with_gradient_factor`](super::AdamW::with_gradient_factor) takes the
/// coefficient where it is. Gradients are contiguous tensors of f32, f16 or bf16, and stay as they are. Sums are in f32 and in one order: the same bits from
/// run to run. A sum of squares that f32 does not hold is infinity, and the coefficient then 0, as PyTorch has it; a NaN makes both NaN.
///
/// ```
/// # #[cfg(feature = "emulator")] {
/// use ferroflash::operators::GradientNorm;
/// use ferroflash::{DType, Device, Layout, Tensor};
/// let device = Device::emulator()?;
/// let gradients = [[3.0f32, 0.0], [0.0, 4.0]].map(|g| Tensor::from_slice(&device, &g, [2], Layout::RowMajor).unwrap());
/// let mut result = Tensor::zeros(&device, DType::F32, [2], Layout::RowMajor)?;
/// let list = [gradients[0].view(), gradients[1].view()];
/// GradientNorm::new().with_most(1.0).measure(&device.default_stream(), &list, &mut result.view_mut())?;
/// let [norm, coefficient] = result.to_vec::<f32>()?[..] else { unreachable!("two numbers") };
/// assert!(norm == 5.0 && (coefficient - 0.2).abs() < 1e-6);
/// # }
/// # Ok::<(), ferroflash::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct GradientNorm {
    scale: f32,
    most: Option<f32>,
}

impl Default for GradientNorm {
    fn default() -> GradientNorm {
        GradientNorm::new()
    }
}

impl GradientNorm {
    /// Without clipping: the coefficient is 1.
    pub fn new() -> GradientNorm {
        GradientNorm { scale: 1.0, most: None }
    }

    /// The norm above which gradients are clipped: 0 or above and finite.
    pub fn with_most(mut self, most: impl Into<Option<f32>>) -> GradientNorm {
        self.most = most.into();
        self
    }

    /// Takes gradients times this number: 1 over the scale of the loss, for instance. The coefficient does not have it.
    pub fn with_gradient_scale(mut self, scale: f32) -> GradientNorm {
        self.scale = scale;
        self
    }

    /// Writes the norm of these gradients and the coefficient, in this order, into a contiguous tensor `f32 [2]`, on `stream`.
    ///
    /// It neither waits nor reads on the host, so that it can be captured into a graph, once the plan has been [prepared](Device::prepare).
    ///
    /// # Errors
    /// [`Error::Operator`] says what is refused; [`Error::OutputOverlaps`], [`Error::DeviceMismatch`], [`Error::GridTooLarge`], and those of the device.
    pub fn measure(&self, stream: &Stream, gradients: &[TensorView<'_>], result: &mut TensorViewMut<'_>) -> Result<()> {
        let view = result.view();
        let plan = self.plan(gradients, result)?;
        view.device().check_stream(stream)?;
        let list =
            gradients.iter().enumerate().map(|(index, view)| (Operand::ParameterGradient(index), view.address()));
        let operands: Vec<_> = list.chain([(Operand::Out, view.address())]).collect();
        run(view.device(), stream.raw(), &plan.steps, &plan.buffers, &operands)
    }

    /// What [`GradientNorm::measure`] would launch and allocate, and why.
    ///
    /// # Errors
    /// As [`GradientNorm::measure`].
    pub fn plan(&self, gradients: &[TensorView<'_>], result: &TensorViewMut<'_>) -> Result<ListPlan> {
        let view = result.view();
        let device = view.device();
        if !self.scale.is_finite() {
            return Err(OperatorError::NotFinite { name: "gradient scale", found: self.scale }.into());
        }
        if let Some(most) = self.most.filter(|&most| !(most >= 0.0 && most.is_finite())) {
            let (name, accepted) = ("largest norm", "0 or above and finite");
            return Err(OperatorError::Hyperparameter { name, found: most.into(), accepted }.into());
        }
        check_shape(Operand::Out, &view, Operand::Out, &Dims::from([2]))?;
        check_dtype(Operand::Out, view.dtype(), &[DType::F32])?;
        check_contiguous(Operand::Out, &view)?;
        let mut read = Vec::with_capacity(gradients.len());
        for (index, gradient) in gradients.iter().enumerate() {
            let operand = Operand::ParameterGradient(index);
            check_device(operand, gradient.device(), Operand::Out, device)?;
            check_contiguous(operand, gradient)?;
            read.push((operand, footprint(gradient)));
        }
        check_apart(&[(Operand::Out, footprint(&view))], &read)?;
        self.plan_of(gradients, device)
    }

    fn plan_of(&self, gradients: &[TensorView<'_>], device: &Device) -> Result<ListPlan> {
        let (mut steps, mut tensors) = (Vec::new(), Vec::new());
        let mut parts = 0u64;
        for dtype in DType::ALL {
            let row = find(Pass::Squares, dtype).expect("every type has a row");
            check_entry(&row.entry, device.info())?;
            let of_type = |&index: &usize| gradients[index].dtype() == dtype && elements_of(&gradients[index]) > 0;
            let own: Vec<usize> = (0..gradients.len()).filter(of_type).collect();
            for taken in own.chunks(MAX_TENSORS as usize) {
                let mut params = SquaresParams {
                    tensors: [TensorParams::NONE; MAX_TENSORS as usize],
                    parts: 0,
                    first_part: parts as u32,
                    count: taken.len() as u32,
                    features: Features::OFF,
                };
                let mut blocks = 0u64;
                for (place, &index) in params.tensors.iter_mut().zip(taken) {
                    let elements = elements_of(&gradients[index]);
                    *place = TensorParams { address: 0, elements, first_block: blocks };
                    blocks += elements.div_ceil(row.block_elements().into());
                }
                // The sums of all launches are counted as one's thread blocks are.
                if parts + blocks > MAX_GRID {
                    let (symbol, needed) = (row.entry.symbol, (parts + blocks).into());
                    return Err(Error::GridTooLarge { symbol, needed, limit: MAX_GRID });
                }
                let mut holes = Params::new(bytes_of(&params));
                for (place, &index) in taken.iter().enumerate() {
                    let offset = offset_of!(SquaresParams, tensors) + place * size_of::<TensorParams>();
                    let binding = Binding::Operand(Operand::ParameterGradient(index));
                    let offset = offset + offset_of!(TensorParams, address);
                    holes = holes.address(offset, binding, dtype.bytes() as u64);
                }
                holes = holes.address(offset_of!(SquaresParams, parts), Binding::Buffer(0), WORD);
                let tile = format!("{} elements a thread block: {}", row.block_elements(), row.reason);
                let kernel = Specialised::with_features(&row.entry, FeatureSet::NONE);
                steps.push(Step::new(kernel, blocks as u32, tile, holes));
                tensors.push(taken.to_vec());
                parts += blocks;
            }
        }
        let row = find(Pass::Norm, DType::F32).expect("a row of the list");
        check_entry(&row.entry, device.info())?;
        let params = NormParams {
            parts: 0,
            out: 0,
            count: parts as u32,
            scale: self.scale.abs(),
            most: self.most.unwrap_or(f32::INFINITY),
            unused: 0,
            features: Features::OFF,
        };
        let holes = Params::new(bytes_of(&params))
            .address(offset_of!(NormParams, parts), Binding::Buffer(0), WORD)
            .address(offset_of!(NormParams, out), Binding::Operand(Operand::Out), WORD);
        let kernel = Specialised::with_features(&row.entry, FeatureSet::NONE);
        steps.push(Step::new(kernel, 1, row.reason.to_owned(), holes));
        let bytes = gradients.iter().map(|view| elements_of(view) * view.dtype().bytes() as u64).sum::<u64>();
        Ok(ListPlan {
            name: "gradient norm",
            steps,
            tensors,
            buffers: vec![Buffer { name: "sums of squares", bytes: parts * WORD, reason: "one for each thread block" }],
            elements: gradients.iter().map(elements_of).sum(),
            bytes: bytes + 2 * WORD,
            reason: format!(
                "up to {MAX_TENSORS} tensors of one type a launch, and one thread block for the sum of all"
            ),
        })
    }
}
