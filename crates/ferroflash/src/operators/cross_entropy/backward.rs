//! The gradient.

use super::super::check::Tensors;
use super::super::plan::OperatorPlan;
use super::super::rows::{Placed, Rows};
use super::CrossEntropy;
use super::cut::backward_cut;
use crate::backend::RawStream;
use crate::device::{Device, Stream};
#[cfg(doc)]
use crate::error::Error;
use crate::error::{Operand, Result};
use crate::plain::bytes_of;
use crate::plan::{Binding, Params, run};
use crate::tensor::{IndicesView, Layout, Tensor, TensorView, TensorViewMut};
use kernel_spec::families::cross_entropy::CrossEntropyBackwardParams;
use kernel_spec::{DType, Divisor, FeatureSet, Features};
use std::mem::offset_of;

/// What a forward pass leaves for its gradient.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct CrossEntropySaved<'a> {
    /// The logits.
    pub logits: TensorView<'a>,
    /// The class of each row.
    pub targets: IndicesView<'a>,
    /// Log-sum-exps of the rows.
    pub lse: TensorView<'a>,
}

impl<'a> CrossEntropySaved<'a> {
    /// These three.
    pub fn new(logits: &TensorView<'a>, targets: &IndicesView<'a>, lse: &TensorView<'a>) -> CrossEntropySaved<'a> {
        CrossEntropySaved { logits: *logits, targets: *targets, lse: *lse }
    }
}

/// What [`CrossEntropy::backward`] returns.
#[derive(Debug)]
#[non_exhaustive]
pub struct CrossEntropyGradient {
    /// With respect to the logits; contiguous, of their type.
    pub dlogits: Tensor,
    /// What was launched.
    pub plan: OperatorPlan,
}

/// The rows of a backward pass, and where each lies.
struct Call {
    logits: Placed,
    dlogits: Placed,
}

impl CrossEntropy {
    /// The gradient of a number with respect to the logits, given those with respect to the losses, `dloss`, in a new tensor, on the default stream of
    /// their device:
    ///
    /// ```text
    /// p = exp(scale logits - lse)
    /// dlogits = scale dloss (p (1 + 2 z_loss lse) - smoothing / classes - (1 - smoothing) [class = target])
    /// ```
    ///
    /// The options are those of forward.
    ///
    /// ```
    /// # #[cfg(feature = "emulator")] {
    /// use ferroflash::operators::CrossEntropy;
    /// use ferroflash::{Device, Indices, Layout, Tensor};
    /// let device = Device::emulator()?;
    /// let logits = Tensor::from_slice(&device, &[0.0, 3f32.ln()], [1, 2], Layout::RowMajor)?;
    /// let targets = Indices::from_slice(&device, &[0])?;
    /// let cross_entropy = CrossEntropy::new().with_lse(true);
    /// let found = cross_entropy.forward(&logits.view(), &targets.view())?;
    /// let saved = found.saved(&logits.view(), &targets.view()).expect("with log-sum-exps");
    /// let one = Tensor::from_slice(&device, &[1.0f32], [1], Layout::RowMajor)?;
    /// let dlogits = cross_entropy.backward(&saved, &one.view())?.dlogits.to_vec::<f32>()?;
    /// assert!((dlogits[0] + 0.75).abs() < 1e-6 && (dlogits[1] - 0.75).abs() < 1e-6);
    /// # }
    /// # Ok::<(), ferroflash::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Operator`] says what is refused; [`Error::LastDimNotContiguous`], [`Error::GridTooLarge`], and those of the device.
    pub fn backward(&self, saved: &CrossEntropySaved<'_>, dloss: &TensorView<'_>) -> Result<CrossEntropyGradient> {
        let device = saved.logits.device();
        let call = self.gradient_call(saved, dloss, None)?;
        let plan = self.gradient_plan(&call, device)?;
        let dlogits = Tensor::uninit(device, call.dlogits.dtype, call.dlogits.shape, Layout::RowMajor)?;
        let operands = operands(saved, dloss, dlogits.address());
        run(device, RawStream::DEFAULT, &plan.steps, &plan.buffers, &operands)?;
        Ok(CrossEntropyGradient { dlogits, plan })
    }

    /// [`CrossEntropy::backward`] into this tensor, on `stream`. It needs memory of its own, or is the logits themselves: the same elements at the same places,
    /// as views that were made of raw memory can be.
    ///
    /// It neither waits nor reads on the host, so that it can be captured into a graph, once the plan has been [prepared](Device::prepare).
    ///
    /// # Errors
    /// As [`CrossEntropy::backward`], and [`Error::OutputOverlapsItself`], [`Error::OutputOverlaps`], [`Error::DeviceMismatch`].
    pub fn backward_into(
        &self,
        stream: &Stream,
        saved: &CrossEntropySaved<'_>,
        dloss: &TensorView<'_>,
        dlogits: &mut TensorViewMut<'_>,
    ) -> Result<()> {
        let device = saved.logits.device();
        let call = self.gradient_call(saved, dloss, Some(dlogits))?;
        device.check_stream(stream)?;
        let plan = self.gradient_plan(&call, device)?;
        run(device, stream.raw(), &plan.steps, &plan.buffers, &operands(saved, dloss, dlogits.view().address()))
    }

    /// [`CrossEntropy::backward_into`] the logits themselves, which are gone then: no second tensor of that size is needed.
    ///
    /// # Errors
    /// As [`CrossEntropy::backward_into`].
    pub fn backward_in_place(
        &self,
        stream: &Stream,
        logits: &mut TensorViewMut<'_>,
        targets: &IndicesView<'_>,
        lse: &TensorView<'_>,
        dloss: &TensorView<'_>,
    ) -> Result<()> {
        let view = logits.view();
        let saved = CrossEntropySaved::new(&view, targets, lse);
        let call = self.gradient_call(&saved, dloss, Some(logits))?;
        view.device().check_stream(stream)?;
        let plan = self.gradient_plan(&call, view.device())?;
        run(view.device(), stream.raw(), &plan.steps, &plan.buffers, &operands(&saved, dloss, view.address()))
    }

    /// What [`CrossEntropy::backward`] would launch, and why.
    ///
    /// # Errors
    /// As [`CrossEntropy::backward`].
    pub fn plan_backward(&self, saved: &CrossEntropySaved<'_>, dloss: &TensorView<'_>) -> Result<OperatorPlan> {
        self.gradient_plan(&self.gradient_call(saved, dloss, None)?, saved.logits.device())
    }

    fn gradient_call(
        &self,
        saved: &CrossEntropySaved<'_>,
        dloss: &TensorView<'_>,
        into: Option<&TensorViewMut<'_>>,
    ) -> Result<Call> {
        self.check_options()?;
        let logits = &saved.logits;
        let mut tensors = Tensors::of(Operand::Logits, logits)?;
        tensors.row_indices(Operand::Targets, &saved.targets)?;
        tensors.vector(Operand::Lse, &saved.lse, &[DType::F32])?;
        tensors.vector(Operand::Dloss, dloss, &[DType::F32])?;
        let dlogits = Placed::new(Operand::Dlogits, logits.dtype(), logits.shape());
        let mut call = Call { logits: Placed::of(Operand::Logits, logits), dlogits };
        if let Some(dlogits) = into {
            tensors.rows_out(Operand::Dlogits, dlogits, &[logits.dtype()])?;
            call.dlogits = Placed::of(Operand::Dlogits, &dlogits.view());
            tensors.allow_in_place([Operand::Dlogits, Operand::Logits], [&dlogits.view(), logits]);
            tensors.check_apart()?;
        }
        Ok(call)
    }

    fn gradient_plan(&self, call: &Call, device: &Device) -> Result<OperatorPlan> {
        let Call { logits, dlogits } = call;
        let dtype = logits.dtype;
        let tensors = [*logits, *dlogits];
        let rows = Rows::of(logits, &tensors)?;
        let aligned = rows.aligned(dtype, tensors.iter());
        let (cut, tiles) = backward_cut(dtype, &rows, device)?;
        let teams = rows.rows.div_ceil(cut.tile.block_rows() as usize) as u64 * u64::from(tiles);
        let params = CrossEntropyBackwardParams {
            logits: rows.params(logits),
            dlogits: rows.params(dlogits),
            targets: 0,
            lse: 0,
            dloss: 0,
            extents: rows.extents,
            tiles: Divisor::new(tiles),
            options: self.params(),
            aligned: aligned.into(),
            unused: 0,
            features: Features::OFF,
        };
        let of = |operand, offset, alignment| (offset, Binding::Operand(operand), alignment);
        let numbers = DType::F32.bytes() as u64;
        let holes = [
            of(Operand::Logits, offset_of!(CrossEntropyBackwardParams, logits.address), logits.alignment(aligned)),
            of(Operand::Dlogits, offset_of!(CrossEntropyBackwardParams, dlogits.address), dlogits.alignment(aligned)),
            of(Operand::Targets, offset_of!(CrossEntropyBackwardParams, targets), numbers),
            of(Operand::Lse, offset_of!(CrossEntropyBackwardParams, lse), numbers),
            of(Operand::Dloss, offset_of!(CrossEntropyBackwardParams, dloss), numbers),
        ];
        let holes = holes.into_iter().fold(Params::new(bytes_of(&params)), |holes, (offset, binding, alignment)| {
            holes.address(offset, binding, alignment)
        });
        Ok(OperatorPlan {
            name: "cross_entropy",
            pass: "backward",
            rows: rows.rows,
            columns: rows.columns,
            dtype,
            steps: vec![cut.step(teams, FeatureSet::NONE, aligned, holes)?],
            buffers: Vec::new(),
            // A target, a log-sum-exp and a gradient a row.
            bytes: logits.bytes() + dlogits.bytes() + 3 * numbers * rows.rows as u64,
            reason: "every logit is read once, and the thread that has read it writes its gradient".to_owned(),
        })
    }
}

fn operands(saved: &CrossEntropySaved<'_>, dloss: &TensorView<'_>, dlogits: u64) -> [(Operand, u64); 5] {
    [
        (Operand::Logits, saved.logits.address()),
        (Operand::Dlogits, dlogits),
        (Operand::Targets, saved.targets.address()),
        (Operand::Lse, saved.lse.address()),
        (Operand::Dloss, dloss.address()),
    ]
}
