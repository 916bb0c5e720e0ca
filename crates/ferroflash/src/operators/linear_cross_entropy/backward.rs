//! Gradients.

use super::super::check::Tensors;
use super::super::dense::matrix::Matrix;
use super::super::dense::product::Product;
use super::super::dense::through::Through;
use super::super::dense::{Activation, DenseGradients, DenseGradientsViewMut, by};
use super::super::parts::parts_step;
use super::super::plan::OperatorPlan;
use super::super::rows::{Placed, Rows};
use super::LinearCrossEntropy;
use super::logits::{Use, step};
use crate::backend::RawStream;
use crate::device::{Device, Stream};
#[cfg(doc)]
use crate::error::Error;
use crate::error::{Operand, Result, Unsupported};
use crate::plan::{Buffer, Step, run};
use crate::tensor::{IndicesView, Layout, Tensor, TensorView};
use kernel_spec::DType;
use kernel_spec::families::dense::Pass;

/// Classes of a chunk, a multiple of this: whole tiles of every kernel, and rows of the weights' gradient that start where those of the tensor do.
const CHUNK_STEP: usize = 256;

/// Bytes of a chunk's gradients of logits, at most, unless the sum of dx is larger: a 50th to a 300th of a GPU's memory, and chunks of many tiles.
const CHUNK_BYTES: u64 = 512 << 20;

/// What a forward pass leaves for its gradients.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct LinearCrossEntropySaved<'a> {
    /// The rows.
    pub x: TensorView<'a>,
    /// The class of each row.
    pub targets: IndicesView<'a>,
    /// Log-sum-exps of the rows.
    pub lse: TensorView<'a>,
}

impl<'a> LinearCrossEntropySaved<'a> {
    /// These three.
    pub fn new(x: &TensorView<'a>, targets: &IndicesView<'a>, lse: &TensorView<'a>) -> LinearCrossEntropySaved<'a> {
        LinearCrossEntropySaved { x: *x, targets: *targets, lse: *lse }
    }
}

/// The tensors of a backward pass, and where each lies.
struct Call {
    x: Placed,
    classes: usize,
    dx: Option<Placed>,
    dweight: Option<Placed>,
    dbias: Option<Placed>,
}

impl LinearCrossEntropy<'_> {
    /// Gradients of a number with respect to x, weights and biases, given those with respect to the losses, `dloss`, in new tensors, on the default stream of
    /// their device:
    ///
    /// ```text
    /// p = exp(scale logits - lse)
    /// dlogits = scale dloss (p (1 + 2 z_loss lse) - smoothing / classes - (1 - smoothing) [class = target])
    /// dx = dlogits weight        dweight = dlogits^T x        dbias = sum over rows of dlogits
    /// ```
    ///
    /// The options, x and the weights are those of forward. `dlogits` are rounded to the type of x on their way into the products and sums: of f16, what is below
    /// 2^-25 is 0, so that `dloss` is where a model's factor on its loss should be already. Rows of the ignored target have a `dlogits` and a dx of 0; of their
    /// x, an infinity or a NaN makes its column of dweight NaN all the same, as 0 times it is.
    ///
    /// # Errors
    /// [`Error::Operator`] says what is refused; [`Error::LastDimNotContiguous`], [`Error::GridTooLarge`], and those of the device.
    pub fn backward(&self, saved: &LinearCrossEntropySaved<'_>, dloss: &TensorView<'_>) -> Result<DenseGradients> {
        let device = saved.x.device();
        let call = self.gradient_call(saved, dloss, None)?;
        let plan = self.gradient_plan(&call, device)?;
        let new = |placed: &Placed| Tensor::uninit(device, placed.dtype, placed.shape, Layout::RowMajor);
        let [dx, dweight] = [&call.dx, &call.dweight].map(|placed| new(placed.as_ref().expect("all but biases")));
        let (dx, dweight, dbias) = (dx?, dweight?, call.dbias.as_ref().map(new).transpose()?);
        let mut operands = self.gradient_inputs(saved, dloss);
        operands.extend([(Operand::Dx, dx.address()), (Operand::Dweight, dweight.address())]);
        operands.extend(dbias.as_ref().map(|dbias| (Operand::Dbias, dbias.address())));
        run(device, RawStream::DEFAULT, &plan.steps, &plan.buffers, &operands)?;
        Ok(DenseGradients { dx, dweight, dbias, plan })
    }

    /// [`LinearCrossEntropy::backward`] into these tensors, on `stream`: whichever of them are given are written. They need memory of their own.
    ///
    /// It neither waits nor reads on the host, so that it can be captured into a graph, once the plan has been [prepared](Device::prepare).
    ///
    /// # Errors
    /// As [`LinearCrossEntropy::backward`], and [`Error::OutputOverlapsItself`], [`Error::OutputOverlaps`], [`Error::DeviceMismatch`].
    pub fn backward_into(
        &self,
        stream: &Stream,
        saved: &LinearCrossEntropySaved<'_>,
        dloss: &TensorView<'_>,
        into: &mut DenseGradientsViewMut<'_>,
    ) -> Result<()> {
        let device = saved.x.device();
        let call = self.gradient_call(saved, dloss, Some(into))?;
        device.check_stream(stream)?;
        let plan = self.gradient_plan(&call, device)?;
        let mut operands = self.gradient_inputs(saved, dloss);
        operands.extend(into.operands());
        run(device, stream.raw(), &plan.steps, &plan.buffers, &operands)
    }

    /// What [`LinearCrossEntropy::backward`] would launch and allocate, and why.
    ///
    /// # Errors
    /// As [`LinearCrossEntropy::backward`].
    pub fn plan_backward(&self, saved: &LinearCrossEntropySaved<'_>, dloss: &TensorView<'_>) -> Result<OperatorPlan> {
        self.gradient_plan(&self.gradient_call(saved, dloss, None)?, saved.x.device())
    }

    fn gradient_inputs(&self, saved: &LinearCrossEntropySaved<'_>, dloss: &TensorView<'_>) -> Vec<(Operand, u64)> {
        let mut operands = self.inputs(&saved.x, &saved.targets);
        operands.extend([(Operand::Lse, saved.lse.address()), (Operand::Dloss, dloss.address())]);
        operands
    }

    /// Checks everything, for gradients that are given or for new ones.
    fn gradient_call(
        &self,
        saved: &LinearCrossEntropySaved<'_>,
        dloss: &TensorView<'_>,
        into: Option<&DenseGradientsViewMut<'_>>,
    ) -> Result<Call> {
        self.loss.check_options()?;
        let x = &saved.x;
        let mut tensors = Tensors::of(Operand::X, x)?;
        let classes = self.layer.check_weights(&mut tensors, x)?;
        tensors.row_indices(Operand::Targets, &saved.targets)?;
        tensors.vector(Operand::Lse, &saved.lse, &[DType::F32])?;
        tensors.vector(Operand::Dloss, dloss, &[DType::F32])?;
        let [dx, dweight, dbias] = self.layer.gradients(&mut tensors, "linear-cross-entropy", x, into)?;
        Ok(Call { x: Placed::of(Operand::X, x), classes, dx, dweight, dbias })
    }

    fn gradient_plan(&self, call: &Call, device: &Device) -> Result<OperatorPlan> {
        let Call { x, classes, dweight, dbias, .. } = call;
        let (classes, dtype) = (*classes, x.dtype);
        let by_rows: Vec<Placed> = [Some(*x), call.dx].into_iter().flatten().collect();
        let rows = Rows::of(x, &by_rows)?;
        let matrix =
            |placed: &Placed| -> Result<Matrix> { Ok(Matrix::of(placed, rows.rows, rows.one_stride(x, placed)?)) };
        let (x_matrix, weight, bias) = (matrix(x)?, self.layer.weight_matrix(), self.bias());
        let dx = call.dx.as_ref().map(matrix).transpose()?;
        let depth = weight.columns;
        let (chunk, most) = self.chunk(rows.rows, classes, depth, dtype);
        let chunks: Vec<usize> = (0..classes).step_by(chunk).collect();

        let dlogits_buffer = 0;
        let of_chunk =
            |columns: usize| Matrix::in_buffer(Operand::Dlogits, dtype, [rows.rows, columns], dlogits_buffer);
        let bytes = of_chunk(chunk).buffer_bytes();
        let mut buffers =
            vec![Buffer { name: "dlogits", bytes, reason: "the gradient of a chunk's logits, which products read" }];
        // Where dx is f32, it is the sum itself.
        let sum = match &dx {
            Some(dx) if chunks.len() > 1 && dtype != DType::F32 => {
                let sum = Matrix::in_buffer(Operand::Dx, DType::F32, [rows.rows, dx.columns], buffers.len());
                let reason = "dx of the chunks so far, in f32";
                buffers.push(Buffer { name: "sum of dx", bytes: sum.buffer_bytes(), reason });
                Some(sum)
            }
            _ => None,
        };
        let sums_buffer = dbias.map(|_| {
            let dlogits = of_chunk(chunk);
            let bytes = Through::new(Activation::Identity, &dlogits, [None, None], device).parts_bytes();
            buffers.push(Buffer {
                name: "sums for the biases",
                bytes,
                reason: "what each part of the rows adds, in f32",
            });
            buffers.len() - 1
        });

        let (mut steps, mut refusals): (Vec<Step>, Vec<(&str, Option<Unsupported>)>) = Default::default();
        for (i, &first) in chunks.iter().enumerate() {
            let range = first..(first + chunk).min(classes);
            let (columns, is_first, is_last) = (range.len(), i == 0, i + 1 == chunks.len());
            let dlogits = of_chunk(columns);
            let part = |placed: &Placed| Matrix::of(&placed.part(range.clone()), columns, placed.strides[0]);
            let (own_weight, own_bias) = (part(&weight.placed), bias.map(|bias| bias.part(range.clone())));
            let product = Product {
                pass: Pass::LogitGradient,
                activation: Activation::Identity,
                rows: rows.rows,
                columns,
                depth,
                operands: [&x_matrix, &own_weight],
                out: Some(&dlogits),
                kept: None,
                residual: None,
                bias: own_bias.as_ref(),
            };
            let (row, refused) = product.choose(device, self.layer.hopper);
            steps.push(step(&product, row, device, self.loss.params(), classes, &Use::Gradient { before: first })?);
            refusals.push(("logits", refused));
            if let (Some(dbias), Some(sums)) = (dbias, sums_buffer) {
                let through = Through::new(Activation::Identity, &dlogits, [None, None], device);
                steps.push(through.step(device, Some(sums))?);
                // Nothing to add without rows: the result is 0.
                let parts = if rows.rows == 0 { 0 } else { through.parts as u32 };
                let own = dbias.part(range.clone());
                steps.push(parts_step([(sums, &own)].into_iter(), device, parts, columns as u32)?);
            }
            let mut multiply = |name, product: Product<'_>| -> Result<()> {
                let (step, refused) = product.step(device, self.layer.hopper)?;
                steps.push(step);
                refusals.push((name, refused));
                Ok(())
            };
            if let Some(dx) = &dx {
                let so_far = sum.as_ref().unwrap_or(dx);
                multiply(
                    "dx",
                    Product {
                        pass: Pass::InputGradient,
                        columns: depth,
                        depth: columns,
                        operands: [&dlogits, &own_weight],
                        out: Some(if is_last { dx } else { so_far }),
                        residual: (!is_first).then_some(so_far),
                        bias: None,
                        ..product
                    },
                )?;
            }
            if let Some(dweight) = dweight {
                multiply(
                    "dweight",
                    Product {
                        pass: Pass::WeightGradient,
                        rows: columns,
                        columns: depth,
                        depth: rows.rows,
                        operands: [&dlogits, &x_matrix],
                        out: Some(&part(dweight)),
                        bias: None,
                        ..product
                    },
                )?;
            }
        }
        let others = [Some(weight.placed), bias, *dweight, *dbias];
        // A target, a log-sum-exp and a gradient a row.
        let of_rows = 3 * DType::F32.bytes() as u64 * rows.rows as u64;
        let cut = match chunks.len() {
            1 => format!("all classes at a time, as gradients of logits are no more than {most} bytes"),
            count => {
                format!("{count} chunks of {chunk} classes, so that gradients of logits are no more than {most} bytes")
            }
        };
        // The first chunk says it: the others are alike.
        let mut said: Vec<(&str, Option<Unsupported>)> = Vec::new();
        refusals.into_iter().for_each(|(name, refused)| {
            if said.iter().all(|(other, _)| *other != name) {
                said.push((name, refused));
            }
        });
        let products: Vec<String> = said.into_iter().map(|(name, refused)| by(name, refused)).collect();
        Ok(OperatorPlan {
            name: "linear-cross-entropy",
            pass: "backward",
            rows: rows.rows,
            columns: classes,
            dtype,
            steps,
            buffers,
            bytes: by_rows.iter().chain(others.iter().flatten()).map(Placed::bytes).sum::<u64>() + of_rows,
            reason: format!("{cut}; {}", products.join("; ")),
        })
    }

    /// Classes of a chunk, and what bounds them.
    fn chunk(&self, rows: usize, classes: usize, depth: usize, dtype: DType) -> (usize, u64) {
        let rows = rows.max(1) as u64;
        let sum = rows.saturating_mul(depth as u64).saturating_mul(DType::F32.bytes() as u64);
        let column = rows * dtype.bytes() as u64;
        let least = column.saturating_mul(CHUNK_STEP.min(classes) as u64);
        let most = self.chunk_bytes.unwrap_or(CHUNK_BYTES.max(sum)).max(least);
        // Fits: no more than the classes.
        let columns = (most / column).min(classes as u64) as usize;
        (if columns == classes { classes } else { columns / CHUNK_STEP * CHUNK_STEP }, most)
    }
}
