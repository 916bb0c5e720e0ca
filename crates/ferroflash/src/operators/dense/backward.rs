//! Gradients.

use super::super::check::Tensors;
use super::super::parts::parts_step;
use super::super::plan::OperatorPlan;
use super::super::rows::{Placed, Rows};
use super::forward::with_columns;
use super::matrix::Matrix;
use super::product::Product;
use super::through::Through;
use super::{Activation, Dense};
use crate::backend::RawStream;
use crate::device::{Device, Stream};
#[cfg(doc)]
use crate::error::Error;
use crate::error::{Operand, OperatorError, Result, Unsupported};
use crate::plan::{Buffer, Step, run};
use crate::tensor::{Dims, Layout, Tensor, TensorView, TensorViewMut};
use kernel_spec::families::dense::Pass;

/// What [`Dense::backward`] returns. New tensors are contiguous. The gradient of the residual is `dout`.
#[derive(Debug)]
#[non_exhaustive]
pub struct DenseGradients {
    /// With respect to x.
    pub dx: Tensor,
    /// With respect to the weights.
    pub dweight: Tensor,
    /// With respect to the biases, where there are some.
    pub dbias: Option<Tensor>,
    /// What was launched.
    pub plan: OperatorPlan,
}

/// Where [`Dense::backward_into`] writes: what is not given is not computed.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct DenseGradientsViewMut<'o> {
    /// With respect to x.
    pub dx: Option<TensorViewMut<'o>>,
    /// With respect to the weights.
    pub dweight: Option<TensorViewMut<'o>>,
    /// With respect to the biases.
    pub dbias: Option<TensorViewMut<'o>>,
}

impl<'o> DenseGradientsViewMut<'o> {
    /// None yet.
    pub fn new() -> DenseGradientsViewMut<'o> {
        DenseGradientsViewMut::default()
    }

    /// The gradient of x.
    pub fn with_dx(mut self, dx: TensorViewMut<'o>) -> DenseGradientsViewMut<'o> {
        self.dx = Some(dx);
        self
    }

    /// That of the weights.
    pub fn with_dweight(mut self, dweight: TensorViewMut<'o>) -> DenseGradientsViewMut<'o> {
        self.dweight = Some(dweight);
        self
    }

    /// That of the biases.
    pub fn with_dbias(mut self, dbias: TensorViewMut<'o>) -> DenseGradientsViewMut<'o> {
        self.dbias = Some(dbias);
        self
    }

    pub(in crate::operators) fn operands(&self) -> impl Iterator<Item = (Operand, u64)> {
        let given = [(Operand::Dx, &self.dx), (Operand::Dweight, &self.dweight), (Operand::Dbias, &self.dbias)];
        given.into_iter().filter_map(|(operand, view)| Some((operand, view.as_ref()?.view().address())))
    }
}

/// The tensors of a backward pass, and where each lies.
struct Call {
    x: Placed,
    weight: Placed,
    bias: Option<Placed>,
    z: Option<Placed>,
    dout: Placed,
    dx: Option<Placed>,
    dweight: Option<Placed>,
    dbias: Option<Placed>,
    /// Sums of a row.
    sums: usize,
}

impl Dense<'_> {
    /// Gradients of a number with respect to x, weights and biases, given those with respect to the output, `dout`, in new tensors, on the default stream
    /// of their device:
    ///
    /// ```text
    /// dz = dout activation'(z)        SwiGLU: dgate = dout up silu'(gate), dup = dout silu(gate)
    /// dx = dz weight                  dweight = dz^T x                     dbias = sum over rows of dz
    /// ```
    ///
    /// `z` is what forward kept ([`Dense::with_z`]); without it, it is computed again from x, weights and biases, in a product more. The identity has no need
    /// of it. `dout` has the shape of the output, and all tensors have the type of x. The residual of these options is not looked at: its gradient is `dout`.
    ///
    /// `dz` is rounded to the type of x between the activation and the products, sums are in f32 and in one order: the same bits from run to run on one
    /// device. ReLU has a slope of 0 at 0. Infinite sums have the slopes of large ones.
    ///
    /// ```
    /// # #[cfg(feature = "emulator")] {
    /// use ferroflash::operators::{Activation, Dense};
    /// use ferroflash::{Device, Layout, Tensor};
    /// let device = Device::emulator()?;
    /// let tensor = |data: &[f32], shape: [usize; 2]| Tensor::from_slice(&device, data, shape, Layout::RowMajor);
    /// let (x, weight) = (tensor(&[1.0, 2.0, 3.0, -1.0], [2, 2])?, tensor(&[1.0, 0.0, 1.0, 1.0], [2, 2])?);
    /// let weight = weight.view();
    /// let layer = Dense::new(&weight).with_activation(Activation::Relu).with_z(true);
    /// let output = layer.forward(&x.view())?;
    /// let z = output.z.as_ref().map(Tensor::view);
    /// let gradients = layer.backward(&x.view(), z.as_ref(), &tensor(&[1.0; 4], [2, 2])?.view())?;
    /// assert_eq!(gradients.dx.to_vec::<f32>()?, [2.0, 1.0, 2.0, 1.0]);
    /// assert_eq!(gradients.dweight.to_vec::<f32>()?, [4.0, 1.0, 4.0, 1.0]);
    /// # }
    /// # Ok::<(), ferroflash::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Operator`] says what is refused; [`Error::LastDimNotContiguous`], [`Error::GridTooLarge`], and those of the device.
    pub fn backward(
        &self,
        x: &TensorView<'_>,
        z: Option<&TensorView<'_>>,
        dout: &TensorView<'_>,
    ) -> Result<DenseGradients> {
        let call = self.gradient_call(x, z, dout, None)?;
        let plan = self.gradient_plan(&call, x.device())?;
        let new = |placed: &Placed| Tensor::uninit(x.device(), placed.dtype, placed.shape, Layout::RowMajor);
        let [dx, dweight] = [&call.dx, &call.dweight].map(|placed| new(placed.as_ref().expect("all but biases")));
        let (dx, dweight, dbias) = (dx?, dweight?, call.dbias.as_ref().map(new).transpose()?);
        let mut operands = self.gradient_inputs(x, z, dout);
        operands.extend([(Operand::Dx, dx.address()), (Operand::Dweight, dweight.address())]);
        operands.extend(dbias.as_ref().map(|dbias| (Operand::Dbias, dbias.address())));
        run(x.device(), RawStream::DEFAULT, &plan.steps, &plan.buffers, &operands)?;
        Ok(DenseGradients { dx, dweight, dbias, plan })
    }

    /// [`Dense::backward`] into these tensors, on `stream`: whichever of them are given are written. They need memory of their own.
    ///
    /// It neither waits nor reads on the host, so that it can be captured into a graph, once the plan has been [prepared](Device::prepare).
    ///
    /// # Errors
    /// As [`Dense::backward`], and [`Error::OutputOverlapsItself`], [`Error::OutputOverlaps`], [`Error::DeviceMismatch`].
    pub fn backward_into(
        &self,
        stream: &Stream,
        x: &TensorView<'_>,
        z: Option<&TensorView<'_>>,
        dout: &TensorView<'_>,
        into: &mut DenseGradientsViewMut<'_>,
    ) -> Result<()> {
        let call = self.gradient_call(x, z, dout, Some(into))?;
        x.device().check_stream(stream)?;
        let plan = self.gradient_plan(&call, x.device())?;
        let mut operands = self.gradient_inputs(x, z, dout);
        operands.extend(into.operands());
        run(x.device(), stream.raw(), &plan.steps, &plan.buffers, &operands)
    }

    /// What [`Dense::backward`] would launch and allocate, and why.
    ///
    /// # Errors
    /// As [`Dense::backward`].
    pub fn plan_backward(
        &self,
        x: &TensorView<'_>,
        z: Option<&TensorView<'_>>,
        dout: &TensorView<'_>,
    ) -> Result<OperatorPlan> {
        self.gradient_plan(&self.gradient_call(x, z, dout, None)?, x.device())
    }

    fn gradient_inputs(
        &self,
        x: &TensorView<'_>,
        z: Option<&TensorView<'_>>,
        dout: &TensorView<'_>,
    ) -> Vec<(Operand, u64)> {
        let given = [(Operand::Bias, self.bias.as_ref()), (Operand::Z, z)];
        let given = given.into_iter().filter_map(|(operand, view)| Some((operand, view?.address())));
        let all = [(Operand::X, x), (Operand::Weight, &self.weight), (Operand::Dout, dout)];
        all.map(|(operand, view)| (operand, view.address())).into_iter().chain(given).collect()
    }

    /// Checks everything, for gradients that are given or for new ones.
    fn gradient_call(
        &self,
        x: &TensorView<'_>,
        z: Option<&TensorView<'_>>,
        dout: &TensorView<'_>,
        into: Option<&DenseGradientsViewMut<'_>>,
    ) -> Result<Call> {
        let mut tensors = Tensors::of(Operand::X, x)?;
        let (dtype, shape) = (x.dtype(), x.shape());
        let sums = self.check_weights(&mut tensors, x)?;
        tensors.matrix(Operand::Dout, dout, &with_columns(&shape, self.columns(sums)), &[dtype])?;
        if let Some(z) = z {
            if self.activation == Activation::Identity {
                return Err(OperatorError::Unwanted { tensor: Operand::Z, needed: "activation" }.into());
            }
            tensors.matrix(Operand::Z, z, &with_columns(&shape, sums), &[dtype])?;
        }
        let [dx, dweight, dbias] = self.gradients(&mut tensors, "dense", x, into)?;
        Ok(Call {
            x: Placed::of(Operand::X, x),
            weight: Placed::of(Operand::Weight, &self.weight),
            bias: self.bias.as_ref().map(|bias| Placed::of(Operand::Bias, bias)),
            z: z.map(|z| Placed::of(Operand::Z, z)),
            dout: Placed::of(Operand::Dout, dout),
            dx,
            dweight,
            dbias,
            sums,
        })
    }

    /// The gradients of `x`, weights and biases that a call writes, those that are given or new ones of all, checked.
    pub(in crate::operators) fn gradients(
        &self,
        tensors: &mut Tensors<'_>,
        operator: &'static str,
        x: &TensorView<'_>,
        into: Option<&DenseGradientsViewMut<'_>>,
    ) -> Result<[Option<Placed>; 3]> {
        let (dtype, shape, weight_shape) = (x.dtype(), x.shape(), self.weight.shape());
        let bias_shape = Dims::from([weight_shape[0]]);
        let Some(into) = into else {
            let new = |operand, shape| Placed::new(operand, dtype, shape);
            let dbias = self.bias.is_some().then(|| new(Operand::Dbias, bias_shape));
            return Ok([Some(new(Operand::Dx, shape)), Some(new(Operand::Dweight, weight_shape)), dbias]);
        };
        let mut given = |operand, view: &Option<TensorViewMut<'_>>, shape: &Dims| -> Result<Option<Placed>> {
            let Some(view) = view else { return Ok(None) };
            tensors.matrix_out(operand, view, shape, &[dtype])?;
            Ok(Some(Placed::of(operand, &view.view())))
        };
        let all = [
            given(Operand::Dx, &into.dx, &shape)?,
            given(Operand::Dweight, &into.dweight, &weight_shape)?,
            given(Operand::Dbias, &into.dbias, &bias_shape)?,
        ];
        if all[2].is_some() && self.bias.is_none() {
            return Err(OperatorError::Unwanted { tensor: Operand::Dbias, needed: "bias" }.into());
        }
        if all.iter().all(Option::is_none) {
            return Err(OperatorError::NothingAsked { operator, accepted: "dx, dweight and dbias" }.into());
        }
        tensors.check_apart()?;
        Ok(all)
    }

    fn gradient_plan(&self, call: &Call, device: &Device) -> Result<OperatorPlan> {
        let dtype = call.x.dtype;
        let by_rows: Vec<Placed> = [Some(call.x), Some(call.dout), call.z, call.dx].into_iter().flatten().collect();
        let rows = Rows::of(&call.x, &by_rows)?;
        let matrix = |placed: &Placed| -> Result<Matrix> {
            Ok(Matrix::of(placed, rows.rows, rows.one_stride(&call.x, placed)?))
        };
        let (x, dout, weight) = (matrix(&call.x)?, matrix(&call.dout)?, self.weight_matrix());
        let (mut steps, mut buffers, mut reasons): (Vec<Step>, Vec<Buffer>, Vec<String>) = Default::default();
        let product = Product {
            pass: Pass::Forward,
            activation: Activation::Identity,
            rows: rows.rows,
            columns: call.sums,
            depth: weight.columns,
            operands: [&x, &weight],
            out: None,
            kept: None,
            residual: None,
            bias: None,
        };
        let mut multiply = |name: &str, product: Product<'_>, steps: &mut Vec<Step>| -> Result<()> {
            let (step, refused) = product.step(device, self.hopper)?;
            steps.push(step);
            reasons.push(by(name, refused));
            Ok(())
        };
        let size = [rows.rows, call.sums];

        // The identity has the gradient of the output as that of its sums.
        let bends = self.activation != Activation::Identity;
        let z = match &call.z {
            Some(z) => Some(matrix(z)?),
            None if bends => {
                let z = Matrix::in_buffer(Operand::Z, dtype, size, buffers.len());
                let reason = "the sums before the activation, computed again";
                buffers.push(Buffer { name: "z", bytes: z.buffer_bytes(), reason });
                multiply("z", Product { out: Some(&z), bias: call.bias.as_ref(), ..product }, &mut steps)?;
                Some(z)
            }
            None => None,
        };
        let dz = (bends && (call.dx.is_some() || call.dweight.is_some())).then(|| {
            let dz = Matrix::in_buffer(Operand::Dz, dtype, size, buffers.len());
            let reason = "the gradient of the sums, which products read";
            buffers.push(Buffer { name: "dz", bytes: dz.buffer_bytes(), reason });
            dz
        });
        if dz.is_some() || call.dbias.is_some() {
            let through = Through::new(self.activation, &dout, [z.as_ref(), dz.as_ref()], device);
            let sums = call.dbias.map(|dbias| {
                let (name, bytes) = ("sums for the biases", through.parts_bytes());
                buffers.push(Buffer { name, bytes, reason: "what each part of the rows adds, in f32" });
                (buffers.len() - 1, dbias)
            });
            steps.push(through.step(device, sums.map(|(buffer, _)| buffer))?);
            if let Some((buffer, dbias)) = &sums {
                // Nothing to add without rows: the result is 0.
                let parts = if rows.rows == 0 { 0 } else { through.parts as u32 };
                steps.push(parts_step([(*buffer, dbias)].into_iter(), device, parts, call.sums as u32)?);
            }
        }
        let dz = dz.as_ref().unwrap_or(&dout);
        if let Some(dx) = &call.dx {
            let (pass, dx) = (Pass::InputGradient, matrix(dx)?);
            let (columns, depth, operands) = (weight.columns, call.sums, [dz, &weight]);
            multiply("dx", Product { pass, columns, depth, operands, out: Some(&dx), ..product }, &mut steps)?;
        }
        if let Some(dweight) = &call.dweight {
            let (pass, dweight) = (Pass::WeightGradient, Matrix::of(dweight, call.sums, dweight.strides[0]));
            let (columns, depth, operands) = (weight.columns, rows.rows, [dz, &x]);
            let product = Product { pass, rows: call.sums, columns, depth, operands, out: Some(&dweight), ..product };
            multiply("dweight", product, &mut steps)?;
        }
        let others = [Some(call.weight), call.bias.filter(|_| bends && call.z.is_none()), call.dweight, call.dbias];
        Ok(OperatorPlan {
            name: "dense",
            pass: "backward",
            rows: rows.rows,
            columns: dout.columns,
            dtype,
            steps,
            buffers,
            bytes: by_rows.iter().chain(others.iter().flatten()).map(Placed::bytes).sum(),
            reason: format!("{}{}{}", self.activation, if reasons.is_empty() { "" } else { "; " }, reasons.join("; ")),
        })
    }
}

/// Which product it is, and by what.
pub(in crate::operators) fn by(name: &str, refused: Option<Unsupported>) -> String {
    match refused {
        None => format!("{name} by products of warpgroups"),
        Some(why) => format!("{name} by products of warps, and not by those of warpgroups: {why}"),
    }
}
