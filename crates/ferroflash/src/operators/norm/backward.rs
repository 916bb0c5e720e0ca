//! Gradients.

use super::super::check::Tensors;
use super::super::parts::{parts_bytes, parts_step};
use super::super::plan::OperatorPlan;
use super::super::rows::{Placed, Rows};
use super::cut::cut;
use super::{Kind, Norm};
use crate::backend::RawStream;
use crate::device::{Device, Stream};
use crate::error::{Error, Operand, OperatorError, Result};
use crate::plain::bytes_of;
use crate::plan::{Binding, Buffer, MAX_GRID, Params, Step, check_device, run};
use crate::specialise::Specialised;
use crate::tensor::{Layout, Tensor, TensorView, TensorViewMut};
use kernel_spec::families::norm::features::{BRANCH, MEAN, RESIDUAL};
use kernel_spec::families::norm::{BranchParams, NormBackwardParams, Pass, find};
use kernel_spec::families::rows::{RowsParams, Sharing};
use kernel_spec::{DType, Divisor, FeatureSet, Features};
use std::mem::offset_of;

/// What a forward pass leaves for its gradients.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct NormSaved<'a> {
    /// What was normalised: x, or its sum with the residual as it was written.
    pub normalised: TensorView<'a>,
    /// Reciprocal deviations of the rows.
    pub rstd: TensorView<'a>,
    /// Means of the rows: of LayerNorm alone.
    pub mean: Option<TensorView<'a>>,
}

impl<'a> NormSaved<'a> {
    /// That of RMSNorm.
    pub fn new(normalised: &TensorView<'a>, rstd: &TensorView<'a>) -> NormSaved<'a> {
        NormSaved { normalised: *normalised, rstd: *rstd, mean: None }
    }

    /// And the means, of LayerNorm.
    pub fn with_mean(mut self, mean: &TensorView<'a>) -> NormSaved<'a> {
        self.mean = Some(*mean);
        self
    }
}

/// What [`Norm::backward`] returns. New tensors are contiguous.
#[derive(Debug)]
#[non_exhaustive]
pub struct NormGradients {
    /// With respect to x, in its type.
    pub dx: Tensor,
    /// With respect to the residual, where its type is another than that of x, or there is one beside an x that was dropped or scaled; otherwise `dx` is that
    /// too, as both are addends of one sum.
    pub dresidual: Option<Tensor>,
    /// With respect to the weights, in their type, where there are some.
    pub dweight: Option<Tensor>,
    /// With respect to the biases, in their type, where there are some.
    pub dbias: Option<Tensor>,
    /// What was launched.
    pub plan: OperatorPlan,
}

/// Where [`Norm::backward_into`] writes.
#[derive(Debug)]
#[non_exhaustive]
pub struct NormGradientsViewMut<'o> {
    /// With respect to x.
    pub dx: TensorViewMut<'o>,
    /// With respect to the residual, of the type of what was normalised.
    pub dresidual: Option<TensorViewMut<'o>>,
    /// With respect to the weights.
    pub dweight: Option<TensorViewMut<'o>>,
    /// With respect to the biases.
    pub dbias: Option<TensorViewMut<'o>>,
}

impl<'o> NormGradientsViewMut<'o> {
    /// The gradient of x alone.
    pub fn new(dx: TensorViewMut<'o>) -> NormGradientsViewMut<'o> {
        NormGradientsViewMut { dx, dresidual: None, dweight: None, dbias: None }
    }

    /// And that of the residual.
    pub fn with_dresidual(mut self, dresidual: TensorViewMut<'o>) -> NormGradientsViewMut<'o> {
        self.dresidual = Some(dresidual);
        self
    }

    /// And that of the weights.
    pub fn with_dweight(mut self, dweight: TensorViewMut<'o>) -> NormGradientsViewMut<'o> {
        self.dweight = Some(dweight);
        self
    }

    /// And that of the biases.
    pub fn with_dbias(mut self, dbias: TensorViewMut<'o>) -> NormGradientsViewMut<'o> {
        self.dbias = Some(dbias);
        self
    }
}

/// The tensors of a backward pass, and where each lies.
struct Call {
    normalised: Placed,
    dout: Placed,
    dresidual_out: Option<Placed>,
    dx: Placed,
    dresidual: Option<Placed>,
    rowscale: Option<Placed>,
    weight: Option<Placed>,
    statistics: Vec<Placed>,
    /// Gradients of weights and biases.
    sums: Vec<Placed>,
}

impl Norm<'_> {
    /// Gradients of a number with respect to x, weights and biases, given those with respect to the output, `dout`, in new tensors, on the default stream
    /// of their device:
    ///
    /// ```text
    /// n = (h - mean) rstd        g = dout weight
    /// dx = rstd (g - mean(g) - n mean(g n)) + dresidual_out        dweight = sum over rows of dout n        dbias = sum over rows of dout
    /// ```
    ///
    /// RMSNorm has no `mean(g)`. With dropout or factors of rows, which are those of forward, that is the gradient of the residual, and dx what they make
    /// of it. Where the number depends on the sum with the residual in another way too, `dresidual_out` is the gradient with respect to
    /// that, of the type of what was normalised. `dout` has the type of x, which `dx` gets; weights and biases of these options are those of forward. Of its
    /// residual nothing is read: `saved` has the sum.
    ///
    /// Sums over rows are in f32 and in one order: the same bits from run to run on one device.
    ///
    /// ```
    /// # #[cfg(feature = "emulator")] {
    /// use ferroflash::operators::Norm;
    /// use ferroflash::{Device, Layout, Tensor};
    /// let device = Device::emulator()?;
    /// let x = Tensor::from_slice(&device, &[3.0f32, 4.0, 1.0, -1.0], [2, 2], Layout::RowMajor)?;
    /// let norm = Norm::layer(1e-5).with_statistics(true);
    /// let normed = norm.forward(&x.view())?;
    /// let saved = normed.saved(&x.view()).expect("with statistics");
    /// let gradients = norm.backward(&saved, &normed.out.view(), None)?;
    /// // The sum of the squares of what is normalised does not change with x.
    /// assert!(gradients.dx.to_vec::<f32>()?.iter().all(|dx| dx.abs() < 1e-3));
    /// # }
    /// # Ok::<(), ferroflash::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Operator`] says what is refused; [`Error::LastDimNotContiguous`], [`Error::GridTooLarge`], and those of the device.
    pub fn backward(
        &self,
        saved: &NormSaved<'_>,
        dout: &TensorView<'_>,
        dresidual_out: Option<&TensorView<'_>>,
    ) -> Result<NormGradients> {
        let device = dout.device();
        let call = self.gradient_call(saved, dout, dresidual_out, None)?;
        let plan = self.gradient_plan(&call, device)?;
        let new = |placed: &Placed| Tensor::uninit(device, placed.dtype, placed.shape, Layout::RowMajor);
        let dx = new(&call.dx)?;
        let dresidual = call.dresidual.as_ref().map(new).transpose()?;
        let sum = |operand| call.sums.iter().find(|placed| placed.operand == operand).map(new).transpose();
        let (dweight, dbias) = (sum(Operand::Dweight)?, sum(Operand::Dbias)?);
        let mut operands = self.gradient_inputs(saved, dout, dresidual_out);
        operands.push((Operand::Dx, dx.address()));
        let written = [(Operand::Dresidual, &dresidual), (Operand::Dweight, &dweight), (Operand::Dbias, &dbias)];
        operands
            .extend(written.into_iter().filter_map(|(operand, tensor)| Some((operand, tensor.as_ref()?.address()))));
        run(device, RawStream::DEFAULT, &plan.steps, &plan.buffers, &operands)?;
        Ok(NormGradients { dx, dresidual, dweight, dbias, plan })
    }

    /// [`Norm::backward`] into these tensors, on `stream`: whichever of them are given are written. They need memory of their own.
    ///
    /// It neither waits nor reads on the host, so that it can be captured into a graph, once the plan has been [prepared](Device::prepare).
    ///
    /// # Errors
    /// As [`Norm::backward`], and [`Error::OutputOverlapsItself`], [`Error::OutputOverlaps`], [`Error::DeviceMismatch`].
    pub fn backward_into(
        &self,
        stream: &Stream,
        saved: &NormSaved<'_>,
        dout: &TensorView<'_>,
        dresidual_out: Option<&TensorView<'_>>,
        into: &mut NormGradientsViewMut<'_>,
    ) -> Result<()> {
        let device = dout.device();
        let call = self.gradient_call(saved, dout, dresidual_out, Some(into))?;
        device.check_stream(stream)?;
        let plan = self.gradient_plan(&call, device)?;
        let mut operands = self.gradient_inputs(saved, dout, dresidual_out);
        operands.push((Operand::Dx, into.dx.view().address()));
        let written =
            [(Operand::Dresidual, &into.dresidual), (Operand::Dweight, &into.dweight), (Operand::Dbias, &into.dbias)];
        operands
            .extend(written.into_iter().filter_map(|(operand, view)| Some((operand, view.as_ref()?.view().address()))));
        run(device, stream.raw(), &plan.steps, &plan.buffers, &operands)
    }

    /// What [`Norm::backward`] would launch and allocate, and why.
    ///
    /// # Errors
    /// As [`Norm::backward`].
    pub fn plan_backward(
        &self,
        saved: &NormSaved<'_>,
        dout: &TensorView<'_>,
        dresidual_out: Option<&TensorView<'_>>,
    ) -> Result<OperatorPlan> {
        self.gradient_plan(&self.gradient_call(saved, dout, dresidual_out, None)?, dout.device())
    }

    fn gradient_inputs(
        &self,
        saved: &NormSaved<'_>,
        dout: &TensorView<'_>,
        dresidual_out: Option<&TensorView<'_>>,
    ) -> Vec<(Operand, u64)> {
        let mut operands = vec![
            (Operand::Normalised, saved.normalised.address()),
            (Operand::Rstd, saved.rstd.address()),
            (Operand::Dout, dout.address()),
        ];
        operands.extend(saved.mean.map(|view| (Operand::Mean, view.address())));
        operands.extend(dresidual_out.map(|view| (Operand::DresidualOut, view.address())));
        operands.extend(self.rowscale.map(|view| (Operand::Rowscale, view.address())));
        operands.extend(self.weight.map(|view| (Operand::Weight, view.address())));
        operands
    }

    fn gradient_call(
        &self,
        saved: &NormSaved<'_>,
        dout: &TensorView<'_>,
        dresidual_out: Option<&TensorView<'_>>,
        into: Option<&NormGradientsViewMut<'_>>,
    ) -> Result<Call> {
        self.check_options()?;
        let mut tensors = Tensors::of(Operand::Dout, dout)?;
        let dtype = dout.dtype();
        tensors.rows(Operand::Normalised, &saved.normalised, &[dtype, DType::F32])?;
        let sum_dtype = saved.normalised.dtype();
        if let Some(upstream) = dresidual_out {
            tensors.rows(Operand::DresidualOut, upstream, &[sum_dtype])?;
        }
        self.check_rowscale(&mut tensors)?;
        self.check_weights(&mut tensors, dtype)?;
        let mut statistics = Vec::new();
        if (self.kind == Kind::Layer) != saved.mean.is_some() {
            let missing = OperatorError::Missing { operator: self.kind.name(), tensor: Operand::Mean };
            return Err(if self.kind == Kind::Rms { OperatorError::UNWANTED_MEAN } else { missing }.into());
        }
        if let Some(mean) = &saved.mean {
            tensors.vector(Operand::Mean, mean, &[DType::F32])?;
            statistics.push(Placed::of(Operand::Mean, mean));
        }
        tensors.vector(Operand::Rstd, &saved.rstd, &[DType::F32])?;
        statistics.push(Placed::of(Operand::Rstd, &saved.rstd));
        let mut call = Call {
            normalised: Placed::of(Operand::Normalised, &saved.normalised),
            dout: Placed::of(Operand::Dout, dout),
            dresidual_out: dresidual_out.map(|view| Placed::of(Operand::DresidualOut, view)),
            dx: Placed::new(Operand::Dx, dtype, dout.shape()),
            // In one type, one tensor is both, where x is an addend as it is.
            dresidual: (sum_dtype != dtype || self.residual.is_some() && self.branch()?.is_some())
                .then(|| Placed::new(Operand::Dresidual, sum_dtype, dout.shape())),
            rowscale: self.rowscale.as_ref().map(|view| Placed::of(Operand::Rowscale, view)),
            weight: self.weight.as_ref().map(|view| Placed::of(Operand::Weight, view)),
            statistics,
            sums: Vec::new(),
        };
        let of = [(Operand::Dweight, &self.weight, "weight"), (Operand::Dbias, &self.bias, "bias")];
        let Some(into) = into else {
            let new = |(operand, view, _): &(Operand, &Option<TensorView<'_>>, &str)| {
                view.as_ref().map(|view| Placed::new(*operand, view.dtype(), view.shape()))
            };
            call.sums = of.iter().filter_map(new).collect();
            return Ok(call);
        };
        tensors.rows_out(Operand::Dx, &into.dx, &[dtype])?;
        call.dx = Placed::of(Operand::Dx, &into.dx.view());
        call.dresidual = None;
        if let Some(view) = &into.dresidual {
            tensors.rows_out(Operand::Dresidual, view, &[sum_dtype])?;
            call.dresidual = Some(Placed::of(Operand::Dresidual, &view.view()));
        }
        for ((operand, given, needed), view) in of.into_iter().zip([&into.dweight, &into.dbias]) {
            let Some(view) = view else { continue };
            let Some(given) = given else { return Err(OperatorError::Unwanted { tensor: operand, needed }.into()) };
            tensors.vector_out(operand, view, &[given.dtype()])?;
            call.sums.push(Placed::of(operand, &view.view()));
        }
        tensors.check_apart()?;
        Ok(call)
    }

    fn gradient_plan(&self, call: &Call, device: &Device) -> Result<OperatorPlan> {
        let dtype = call.dout.dtype;
        let tensors: Vec<Placed> =
            [Some(call.normalised), Some(call.dout), call.dresidual_out, Some(call.dx), call.dresidual]
                .into_iter()
                .flatten()
                .collect();
        let rows = Rows::of(&call.dout, &tensors)?;
        let aligned = rows.aligned(dtype, tensors.iter().chain(&call.weight));
        let cut = cut(Pass::Backward, dtype, &rows, device, self.clusters)?;
        let again = cut.tile.sharing == Sharing::Again;
        // Each of those that share out the rows has its own sums.
        let teams = cut.teams(&rows, device, true);
        let has_mean = self.kind == Kind::Layer;
        let mut features = Features::OFF;
        let branch = self.branch()?;
        for (slot, on) in [(MEAN, has_mean), (RESIDUAL, call.dresidual_out.is_some()), (BRANCH, branch.is_some())] {
            features = if on { features.with(slot, 0) } else { features };
        }
        let place = |placed: &Option<Placed>| placed.as_ref().map_or(RowsParams::NONE, |placed| rows.params(placed));
        let params = NormBackwardParams {
            normalised: rows.params(&call.normalised),
            dout: rows.params(&call.dout),
            dresidual_out: place(&call.dresidual_out),
            dx: rows.params(&call.dx),
            dresidual: place(&call.dresidual),
            weight: 0,
            mean: 0,
            rstd: 0,
            weight_parts: 0,
            bias_parts: 0,
            branch: branch.unwrap_or(BranchParams::NONE),
            extents: rows.extents,
            sharers: Divisor::new(cut.sharers),
            share: cut.share,
            parts: teams as u32,
            weight_offset: self.weight_offset(),
            aligned: aligned.into(),
            wide_residual: u32::from(call.normalised.dtype != dtype),
            wide_weight: call.weight.map_or(0, |weight| u32::from(weight.dtype != dtype)),
            unused: 0,
            features,
        };
        let all: Vec<Placed> =
            tensors.iter().chain(&call.weight).chain(&call.rowscale).chain(&call.statistics).copied().collect();
        let mut holes = with_tensors(Params::new(bytes_of(&params)), &all, aligned);
        let mut reason = cut.reason();
        let (mut steps, mut buffers) = (Vec::new(), Vec::new());
        let mut parts = teams;
        let strips = rows
            .columns
            .div_ceil(find(Pass::Columns, dtype, 1, false).expect("a row of the list").entry.threads as usize)
            as u64;
        if again && !call.sums.is_empty() {
            // Some thread blocks of each strip of columns.
            let held = u64::from(device.info().multiprocessors) * u64::from(cut.entry.min_ctas);
            parts = (held * 4).div_ceil(strips).clamp(1, rows.rows.max(1) as u64);
        }
        for placed in &call.sums {
            let bytes = parts_bytes(parts, rows.columns);
            let (name, reason) = match placed.operand {
                Operand::Dweight => ("sums for the weights", "what the rows of each thread block add, in f32"),
                _ => ("sums for the biases", "what the rows of each thread block add, in f32"),
            };
            if !again {
                holes = holes.address(sum_offset(placed.operand), Binding::Buffer(buffers.len()), 16);
            }
            buffers.push(Buffer { name, bytes, reason });
        }
        steps.push(cut.step(teams, features.set(), aligned, holes)?);
        if again && !call.sums.is_empty() {
            steps.push(columns_step(&params, call, device, [parts, strips])?);
            reason.push_str("; sums over rows read both tensors once more");
        }
        if !call.sums.is_empty() {
            let (first, rest) = call.sums.split_first().expect("not empty");
            let apart = rest.iter().any(|other| other.dtype != first.dtype);
            assert!(!apart, "weights and biases of one type");
            // Nothing to add without rows: the result is 0.
            let parts = if rows.rows == 0 { 0 } else { parts };
            let sums = call.sums.iter().enumerate();
            steps.push(parts_step(sums, device, parts as u32, rows.columns as u32)?);
        }
        Ok(OperatorPlan {
            name: self.kind.name(),
            pass: "backward",
            rows: rows.rows,
            columns: rows.columns,
            dtype,
            steps,
            buffers,
            bytes: all.iter().chain(&call.sums).map(Placed::bytes).sum(),
            reason,
        })
    }
}

/// Addresses of the tensors of a backward pass.
fn with_tensors(holes: Params, tensors: &[Placed], aligned: bool) -> Params {
    tensors.iter().fold(holes, |holes, placed| {
        let (offset, aligned) = match placed.operand {
            Operand::Normalised => (offset_of!(NormBackwardParams, normalised.address), aligned),
            Operand::Dout => (offset_of!(NormBackwardParams, dout.address), aligned),
            Operand::DresidualOut => (offset_of!(NormBackwardParams, dresidual_out.address), aligned),
            Operand::Dx => (offset_of!(NormBackwardParams, dx.address), aligned),
            Operand::Dresidual => (offset_of!(NormBackwardParams, dresidual.address), aligned),
            Operand::Weight => (offset_of!(NormBackwardParams, weight), aligned),
            Operand::Rowscale => (offset_of!(NormBackwardParams, branch.rowscale), false),
            Operand::Mean => (offset_of!(NormBackwardParams, mean), false),
            _ => (offset_of!(NormBackwardParams, rstd), false),
        };
        holes.address(offset, Binding::Operand(placed.operand), placed.alignment(aligned))
    })
}

/// Where the sums for a result are, of each thread block.
fn sum_offset(operand: Operand) -> usize {
    match operand {
        Operand::Dweight => offset_of!(NormBackwardParams, weight_parts),
        _ => offset_of!(NormBackwardParams, bias_parts),
    }
}

/// The launch that sums columns, where the one for x does not.
fn columns_step(params: &NormBackwardParams, call: &Call, device: &Device, [parts, strips]: [u64; 2]) -> Result<Step> {
    let row = find(Pass::Columns, call.dout.dtype, 1, false).expect("a row of the list");
    check_device(&row.entry, device.info())?;
    let features = if call.statistics.len() > 1 { FeatureSet::of(MEAN) } else { FeatureSet::NONE };
    let blank = if call.statistics.len() > 1 { Features::OFF.with(MEAN, 0) } else { Features::OFF };
    let params =
        NormBackwardParams { sharers: Divisor::new(strips as u32), parts: parts as u32, features: blank, ..*params };
    let read: Vec<Placed> = [call.normalised, call.dout].into_iter().chain(call.statistics.iter().copied()).collect();
    let mut holes = with_tensors(Params::new(bytes_of(&params)), &read, false);
    for (buffer, placed) in call.sums.iter().enumerate() {
        holes = holes.address(sum_offset(placed.operand), Binding::Buffer(buffer), 16);
    }
    let (needed, limit) = (parts * strips, MAX_GRID);
    if needed > limit {
        return Err(Error::GridTooLarge { symbol: row.entry.symbol, needed: needed.into(), limit });
    }
    let tile = format!("a thread a column: {}", row.reason);
    // Without rows there is nothing to sum.
    let ctas = if params.extents.rows == 0 { 0 } else { needed as u32 };
    Ok(Step::new(Specialised::with_features(&row.entry, features), ctas, tile, holes))
}
