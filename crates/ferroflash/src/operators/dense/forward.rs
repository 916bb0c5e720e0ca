//! The output.

use super::super::check::Tensors;
use super::super::plan::OperatorPlan;
use super::super::rows::{Placed, Rows};
use super::Dense;
use super::matrix::Matrix;
use super::product::Product;
use crate::backend::RawStream;
use crate::device::{Device, Stream};
#[cfg(doc)]
use crate::error::Error;
use crate::error::{Operand, OperatorError, Result};
use crate::plan::run;
use crate::tensor::{Dims, Layout, Tensor, TensorView, TensorViewMut};
use kernel_spec::families::dense::Pass;
use kernel_spec::families::rows::MAX_COLUMNS;

/// What [`Dense::forward`] returns. New tensors are contiguous.
#[derive(Debug)]
#[non_exhaustive]
pub struct DenseOutput {
    /// The output.
    pub out: Tensor,
    /// The sums before the activation, where [`Dense::with_z`] asks for them.
    pub z: Option<Tensor>,
    /// What was launched.
    pub plan: OperatorPlan,
}

/// Where [`Dense::forward_into`] writes.
#[derive(Debug)]
#[non_exhaustive]
pub struct DenseOutputViewMut<'o> {
    /// The output.
    pub out: TensorViewMut<'o>,
    /// The sums before the activation.
    pub z: Option<TensorViewMut<'o>>,
}

impl<'o> DenseOutputViewMut<'o> {
    /// The output alone.
    pub fn new(out: TensorViewMut<'o>) -> DenseOutputViewMut<'o> {
        DenseOutputViewMut { out, z: None }
    }

    /// And the sums before the activation.
    pub fn with_z(mut self, z: TensorViewMut<'o>) -> DenseOutputViewMut<'o> {
        self.z = Some(z);
        self
    }
}

/// The tensors of a forward pass, and where each lies.
struct Call {
    x: Placed,
    weight: Placed,
    bias: Option<Placed>,
    residual: Option<Placed>,
    out: Placed,
    z: Option<Placed>,
}

impl Dense<'_> {
    /// The layer of these rows into new tensors, on the default stream of their device.
    ///
    /// # Errors
    /// [`Error::Operator`] says what is refused; [`Error::LastDimNotContiguous`], [`Error::GridTooLarge`], and those of the device.
    pub fn forward(&self, x: &TensorView<'_>) -> Result<DenseOutput> {
        let call = self.call(x, None)?;
        let plan = self.forward_plan(&call, x.device())?;
        let new = |placed: &Placed| Tensor::uninit(x.device(), placed.dtype, placed.shape, Layout::RowMajor);
        let out = new(&call.out)?;
        let z = call.z.as_ref().map(new).transpose()?;
        let mut operands = self.inputs(x);
        operands.push((Operand::Out, out.address()));
        operands.extend(z.as_ref().map(|z| (Operand::Z, z.address())));
        run(x.device(), RawStream::DEFAULT, &plan.steps, &plan.buffers, &operands)?;
        Ok(DenseOutput { out, z, plan })
    }

    /// [`Dense::forward`] into these tensors, on `stream`: z is written where it is given. They need memory of their own.
    ///
    /// It neither waits nor reads on the host, so that it can be captured into a graph, once the plan has been [prepared](Device::prepare).
    ///
    /// # Errors
    /// As [`Dense::forward`], and [`Error::OutputOverlapsItself`], [`Error::OutputOverlaps`], [`Error::DeviceMismatch`].
    pub fn forward_into(&self, stream: &Stream, x: &TensorView<'_>, into: &mut DenseOutputViewMut<'_>) -> Result<()> {
        let call = self.call(x, Some(into))?;
        x.device().check_stream(stream)?;
        let plan = self.forward_plan(&call, x.device())?;
        let mut operands = self.inputs(x);
        operands.push((Operand::Out, into.out.view().address()));
        operands.extend(into.z.as_ref().map(|z| (Operand::Z, z.view().address())));
        run(x.device(), stream.raw(), &plan.steps, &plan.buffers, &operands)
    }

    /// What [`Dense::forward`] of these rows would launch, and why.
    ///
    /// # Errors
    /// As [`Dense::forward`].
    pub fn plan(&self, x: &TensorView<'_>) -> Result<OperatorPlan> {
        self.forward_plan(&self.call(x, None)?, x.device())
    }

    fn inputs(&self, x: &TensorView<'_>) -> Vec<(Operand, u64)> {
        let given = [(Operand::Bias, &self.bias), (Operand::Residual, &self.residual)];
        let given = given.into_iter().filter_map(|(operand, view)| Some((operand, view.as_ref()?.address())));
        [(Operand::X, x.address()), (Operand::Weight, self.weight.address())].into_iter().chain(given).collect()
    }

    /// Checks weights and biases, and gives the number of sums of a row.
    pub(in crate::operators) fn check_weights(&self, tensors: &mut Tensors<'_>, x: &TensorView<'_>) -> Result<usize> {
        let (dtype, gated) = (x.dtype(), self.activation.is_gated());
        let columns = *x.shape().last().expect("checked");
        let halves = if gated { 2 } else { 1 };
        let sums = match self.weight.shape()[..] {
            [sums, depth] if depth == columns && sums > 0 && sums.is_multiple_of(halves) => sums,
            _ => {
                let found = self.weight.shape().to_vec();
                return Err(OperatorError::Weights { found, columns, gated }.into());
            }
        };
        if sums > MAX_COLUMNS as usize {
            return Err(OperatorError::Columns { found: sums }.into());
        }
        tensors.matrix(Operand::Weight, &self.weight, &self.weight.shape(), &[dtype])?;
        if let Some(bias) = &self.bias {
            tensors.line(Operand::Bias, bias, &Dims::from([sums]), Operand::Weight, &[dtype])?;
        }
        Ok(sums)
    }

    /// Columns of the output, of so many sums.
    pub(super) fn columns(&self, sums: usize) -> usize {
        if self.activation.is_gated() { sums / 2 } else { sums }
    }

    /// The weights as a matrix.
    pub(in crate::operators) fn weight_matrix(&self) -> Matrix {
        let placed = Placed::of(Operand::Weight, &self.weight);
        Matrix::of(&placed, placed.shape[0], placed.strides[0])
    }

    /// Checks everything, for outputs that are given or for new ones.
    fn call(&self, x: &TensorView<'_>, into: Option<&DenseOutputViewMut<'_>>) -> Result<Call> {
        let mut tensors = Tensors::of(Operand::X, x)?;
        let (dtype, shape) = (x.dtype(), x.shape());
        let sums = self.check_weights(&mut tensors, x)?;
        let with = |columns: usize| with_columns(&shape, columns);
        let (out_shape, z_shape) = (with(self.columns(sums)), with(sums));
        if let Some(residual) = &self.residual {
            tensors.matrix(Operand::Residual, residual, &out_shape, &[dtype])?;
        }
        let given = |operand, view: &Option<TensorView<'_>>| view.as_ref().map(|view| Placed::of(operand, view));
        let mut call = Call {
            x: Placed::of(Operand::X, x),
            weight: Placed::of(Operand::Weight, &self.weight),
            bias: given(Operand::Bias, &self.bias),
            residual: given(Operand::Residual, &self.residual),
            out: Placed::new(Operand::Out, dtype, out_shape),
            z: self.keeps.then(|| Placed::new(Operand::Z, dtype, z_shape)),
        };
        if let Some(into) = into {
            tensors.matrix_out(Operand::Out, &into.out, &out_shape, &[dtype])?;
            call.out = Placed::of(Operand::Out, &into.out.view());
            call.z = None;
            if let Some(z) = &into.z {
                tensors.matrix_out(Operand::Z, z, &z_shape, &[dtype])?;
                call.z = Some(Placed::of(Operand::Z, &z.view()));
            }
            tensors.check_apart()?;
        }
        Ok(call)
    }

    fn forward_plan(&self, call: &Call, device: &Device) -> Result<OperatorPlan> {
        let by_rows: Vec<Placed> =
            [Some(call.x), Some(call.out), call.residual, call.z].into_iter().flatten().collect();
        let rows = Rows::of(&call.x, &by_rows)?;
        let matrix = |placed: &Placed| -> Result<Matrix> {
            Ok(Matrix::of(placed, rows.rows, rows.one_stride(&call.x, placed)?))
        };
        let (x, out, weight) = (matrix(&call.x)?, matrix(&call.out)?, self.weight_matrix());
        let (residual, z) = (call.residual.as_ref().map(matrix).transpose()?, call.z.as_ref().map(matrix).transpose()?);
        let (columns, depth, bias) = (out.columns, weight.columns, call.bias.as_ref());
        let product = Product {
            pass: Pass::Forward,
            activation: self.activation,
            rows: rows.rows,
            columns,
            depth,
            operands: [&x, &weight],
            out: Some(&out),
            kept: z.as_ref(),
            residual: residual.as_ref(),
            bias,
        };
        let (step, refused) = product.step(device, self.hopper)?;
        let all = by_rows.iter().chain([&call.weight]).chain(bias);
        Ok(OperatorPlan {
            name: "dense",
            pass: "forward",
            rows: rows.rows,
            columns,
            dtype: call.x.dtype,
            steps: vec![step],
            buffers: Vec::new(),
            bytes: all.map(Placed::bytes).sum(),
            reason: match refused {
                None => format!("products of warpgroups, {depth} deep, {}", self.activation),
                Some(why) => {
                    format!("products of warps, {depth} deep, {}, and not those of warpgroups: {why}", self.activation)
                }
            },
        })
    }
}

/// The shape of rows like those of `shape`, of so many columns.
pub(super) fn with_columns(shape: &Dims, columns: usize) -> Dims {
    let (_, outer) = shape.split_last().expect("at least the axis of the columns");
    Dims::new(&[outer, &[columns]].concat()).expect("as many axes as there are")
}
