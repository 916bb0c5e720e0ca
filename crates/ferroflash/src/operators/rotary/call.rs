//! The calls, and what they refuse.

use super::super::check::Tensors;
use super::super::plan::OperatorPlan;
use super::super::rows::{MAX_ROWS, Placed};
use super::{Rotary, RotaryGradients, RotaryOutput, RotaryPositions};
use crate::backend::RawStream;
use crate::device::Stream;
#[cfg(doc)]
use crate::error::Error;
use crate::error::{Operand, OperatorError, Result};
use crate::plan::run;
use crate::tensor::{Layout, Tensor, TensorView, TensorViewMut};
use kernel_spec::DType;
use kernel_spec::families::rows::MAX_COLUMNS;

/// What x and out are for the caller.
#[derive(Clone, Copy)]
struct Names {
    x: Operand,
    out: Operand,
}

const FORWARD: Names = Names { x: Operand::X, out: Operand::Out };
const BACKWARD: Names = Names { x: Operand::Dout, out: Operand::Dx };

/// A checked call.
pub(super) struct Call {
    pub(super) pass: &'static str,
    pub(super) x: Placed,
    /// The same as x for a call in place.
    pub(super) out: Placed,
    pub(super) in_place: bool,
    pub(super) cos: Placed,
    pub(super) sin: Placed,
    /// Batch entries, rows of each, heads and columns.
    pub(super) shape: [usize; 4],
    /// Position of the first row, where the host gives it.
    pub(super) offset: usize,
    /// Packed sequences.
    pub(super) sequences: usize,
}

/// Batch entries, rows, heads and columns of x.
fn shape_of(shape: &[usize], tensor: Operand) -> Result<[usize; 4]> {
    let [batch, rows, heads, columns] = match *shape {
        [batch, rows, heads, columns] => [batch, rows, heads, columns],
        [rows, heads, columns] => [1, rows, heads, columns],
        _ => {
            let accepted = "[batch, rows, heads, columns] or [rows, heads, columns]";
            return Err(OperatorError::AxisCount { tensor, found: shape.len(), accepted }.into());
        }
    };
    if columns == 0 || columns > MAX_COLUMNS as usize {
        return Err(OperatorError::Columns { found: columns }.into());
    }
    let found = if [batch, rows, heads].contains(&0) { 0 } else { batch as u128 * rows as u128 * heads as u128 };
    // Extents that are beside a 0 too: kernels are told of them.
    if found >= MAX_ROWS.into() || [batch, rows, heads].iter().any(|&extent| extent as u64 >= MAX_ROWS) {
        return Err(OperatorError::Rows { found, limit: MAX_ROWS }.into());
    }
    Ok([batch, rows, heads, columns])
}

impl Rotary<'_> {
    /// Turns rows into a new tensor, on the default stream of their device.
    ///
    /// # Errors
    /// [`Error::Operator`] says what is refused; [`Error::LastDimNotContiguous`], [`Error::GridTooLarge`], and those of the device.
    pub fn forward(&self, x: &TensorView<'_>) -> Result<RotaryOutput> {
        let (out, plan) = self.new_tensor(FORWARD, x)?;
        Ok(RotaryOutput { out, plan })
    }

    /// [`Rotary::forward`] into this tensor, on `stream`. It needs memory of its own.
    ///
    /// It neither waits nor reads on the host, so that it can be captured into a graph, once the plan has been
    /// [prepared](crate::Device::prepare).
    ///
    /// # Errors
    /// As [`Rotary::forward`], and [`Error::OutputOverlapsItself`], [`Error::OutputOverlaps`], [`Error::DeviceMismatch`].
    pub fn forward_into(&self, stream: &Stream, x: &TensorView<'_>, out: &mut TensorViewMut<'_>) -> Result<()> {
        self.turn_to(FORWARD, stream, x, out)
    }

    /// Turns rows where they are, on `stream`; columns that are not turned are not touched. It can be captured, as [`Rotary::forward_into`].
    ///
    /// # Errors
    /// As [`Rotary::forward_into`].
    pub fn in_place(&self, stream: &Stream, x: &mut TensorViewMut<'_>) -> Result<()> {
        let (call, view) = (self.call_in_place(x)?, x.view());
        view.device().check_stream(stream)?;
        let plan = self.plan_of(&call, view.device())?;
        run(view.device(), stream.raw(), &plan.steps, &plan.buffers, &self.operands(&[(Operand::X, view.address())]))
    }

    /// The gradient of a number with respect to x, given that with respect to the output, `dout`, in a new tensor, on the default stream of its device: the
    /// opposite turn.
    ///
    /// # Errors
    /// As [`Rotary::forward`].
    pub fn backward(&self, dout: &TensorView<'_>) -> Result<RotaryGradients> {
        let (dx, plan) = self.conjugate().new_tensor(BACKWARD, dout)?;
        Ok(RotaryGradients { dx, plan })
    }

    /// [`Rotary::backward`] into this tensor, on `stream`; see [`Rotary::forward_into`]. In place it is [`Rotary::in_place`] of the
    /// [conjugate](Rotary::conjugate).
    ///
    /// # Errors
    /// As [`Rotary::forward_into`].
    pub fn backward_into(&self, stream: &Stream, dout: &TensorView<'_>, dx: &mut TensorViewMut<'_>) -> Result<()> {
        self.conjugate().turn_to(BACKWARD, stream, dout, dx)
    }

    /// What [`Rotary::forward`] of these rows would launch, and why.
    ///
    /// # Errors
    /// As [`Rotary::forward`].
    pub fn plan(&self, x: &TensorView<'_>) -> Result<OperatorPlan> {
        self.plan_of(&self.call(FORWARD, x, None)?, x.device())
    }

    /// What [`Rotary::in_place`] of these rows would launch, and why.
    ///
    /// # Errors
    /// As [`Rotary::in_place`].
    pub fn plan_in_place(&self, x: &TensorViewMut<'_>) -> Result<OperatorPlan> {
        self.plan_of(&self.call_in_place(x)?, x.device())
    }

    fn new_tensor(&self, names: Names, x: &TensorView<'_>) -> Result<(Tensor, OperatorPlan)> {
        let plan = self.plan_of(&self.call(names, x, None)?, x.device())?;
        let out = Tensor::uninit(x.device(), x.dtype(), x.shape(), Layout::RowMajor)?;
        let operands = self.operands(&[(names.x, x.address()), (names.out, out.address())]);
        run(x.device(), RawStream::DEFAULT, &plan.steps, &plan.buffers, &operands)?;
        Ok((out, plan))
    }

    fn turn_to(&self, names: Names, stream: &Stream, x: &TensorView<'_>, out: &mut TensorViewMut<'_>) -> Result<()> {
        let call = self.call(names, x, Some(out))?;
        x.device().check_stream(stream)?;
        let plan = self.plan_of(&call, x.device())?;
        let operands = self.operands(&[(names.x, x.address()), (names.out, out.view().address())]);
        run(x.device(), stream.raw(), &plan.steps, &plan.buffers, &operands)
    }

    /// Addresses of these tensors, and of those of the options.
    fn operands(&self, tensors: &[(Operand, u64)]) -> Vec<(Operand, u64)> {
        let mut operands = tensors.to_vec();
        operands.extend([(Operand::Cos, self.cos.address()), (Operand::Sin, self.sin.address())]);
        operands.extend(self.starts.map(|starts| (Operand::Starts, starts.address())));
        match &self.positions {
            RotaryPositions::Offset(_) => {}
            RotaryPositions::Offsets(offsets) => operands.push((Operand::Offsets, offsets.address())),
            RotaryPositions::Each(positions) => operands.push((Operand::Positions, positions.address())),
        }
        operands
    }

    fn call_in_place(&self, x: &TensorViewMut<'_>) -> Result<Call> {
        let mut tensors = Tensors::in_place(Operand::X, x)?;
        let placed = Placed::of(Operand::X, &x.view());
        let call = self.checked(&mut tensors, FORWARD, placed, placed, true)?;
        tensors.check_apart()?;
        Ok(call)
    }

    /// Checks everything, for an output that is given or for a new one.
    fn call(&self, names: Names, x: &TensorView<'_>, out: Option<&TensorViewMut<'_>>) -> Result<Call> {
        let mut tensors = Tensors::of(names.x, x)?;
        let dtype = x.dtype();
        let placed = match out {
            Some(out) => {
                tensors.rows_out(names.out, out, &[dtype])?;
                Placed::of(names.out, &out.view())
            }
            None => Placed::new(names.out, dtype, x.shape()),
        };
        let call = self.checked(&mut tensors, names, Placed::of(names.x, x), placed, false)?;
        tensors.check_apart()?;
        Ok(call)
    }

    fn checked(&self, tensors: &mut Tensors<'_>, names: Names, x: Placed, out: Placed, in_place: bool) -> Result<Call> {
        let shape = shape_of(&x.shape, names.x)?;
        let [batch, rows, _, columns] = shape;
        let tables = [x.dtype, DType::F32];
        for (tensor, table, accepted) in
            [(Operand::Cos, &self.cos, tables), (Operand::Sin, &self.sin, [self.cos.dtype(); 2])]
        {
            tensors.table(tensor, table, &accepted)?;
            let shape = table.shape();
            let fits = |positions: usize, half: usize| {
                (1..=MAX_ROWS as usize).contains(&positions) && half > 0 && 2 * half <= columns
            };
            if !matches!(*shape, [positions, half] if fits(positions, half)) || shape != self.cos.shape() {
                return Err(OperatorError::RotaryTable { tensor, shape: shape.to_vec(), columns }.into());
            }
        }
        let mut sequences = batch;
        if let Some(starts) = &self.starts {
            if x.shape.len() != 3 {
                let accepted = "[rows, heads, columns], of packed sequences,";
                return Err(OperatorError::AxisCount { tensor: names.x, found: x.shape.len(), accepted }.into());
            }
            if matches!(self.positions, RotaryPositions::Each(_)) {
                return Err(OperatorError::Both { first: "starts", second: "a position for each row" }.into());
            }
            // A sequence at least: where there is none, nobody has the tokens.
            tensors.indices(Operand::Starts, starts, starts.len().max(2))?;
            sequences = starts.len() - 1;
        }
        let mut offset = 0;
        match &self.positions {
            RotaryPositions::Offset(first) => {
                offset = *first;
                let positions = self.cos.shape()[0];
                // How long packed sequences are is known on the device alone.
                let more = if self.starts.is_some() { 0 } else { rows.saturating_sub(1) };
                let last = first.saturating_add(more);
                if last >= positions && rows > 0 {
                    return Err(OperatorError::PastTable { first: *first, last, positions }.into());
                }
            }
            RotaryPositions::Offsets(offsets) => tensors.indices(Operand::Offsets, offsets, sequences)?,
            RotaryPositions::Each(positions) => tensors.indices(Operand::Positions, positions, batch * rows)?,
        }
        let (cos, sin) = (Placed::of(Operand::Cos, &self.cos), Placed::of(Operand::Sin, &self.sin));
        let pass = if names.x == Operand::X { "forward" } else { "backward" };
        Ok(Call { pass, x, out, in_place, cos, sin, shape, offset, sequences })
    }
}
