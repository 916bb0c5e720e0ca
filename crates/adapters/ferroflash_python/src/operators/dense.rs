//! Dense layers.

use super::{Caller, Given, Operands, Slot};
use crate::errors;
use ferroflash::operators::{Activation, Dense, DenseGradientsViewMut, DenseOutputViewMut};
use ferroflash::{Device, Operand};
use pyo3::prelude::*;

const FORWARD: [Slot; 6] = [
    Slot::read(Operand::X),
    Slot::read(Operand::Weight),
    Slot::read(Operand::Bias).or_none(),
    Slot::read(Operand::Residual).or_none(),
    Slot::written(Operand::Out),
    Slot::written(Operand::Z).or_none(),
];

const BACKWARD: [Slot; 8] = [
    Slot::read(Operand::X),
    Slot::read(Operand::Weight),
    Slot::read(Operand::Bias).or_none(),
    Slot::read(Operand::Z).or_none(),
    Slot::read(Operand::Dout),
    Slot::written(Operand::Dx).or_none(),
    Slot::written(Operand::Dweight).or_none(),
    Slot::written(Operand::Dbias).or_none(),
];

fn activation_of(py: Python<'_>, name: &str) -> PyResult<Activation> {
    Activation::ALL.into_iter().find(|known| known.name() == name).ok_or_else(|| {
        let names = Activation::ALL.map(|known| format!("'{}'", known.name())).join(", ");
        errors::of_input(py, format!("activation is '{name}'; {names} are accepted"))
    })
}

fn dense_of<'a>(device: &'a Device, operands: &Operands, activation: Activation) -> ferroflash::Result<Dense<'a>> {
    let dense = Dense::new(&operands.given(device, Operand::Weight)?).with_activation(activation);
    Ok(match operands.view(device, Operand::Bias)? {
        Some(bias) => dense.with_bias(&bias),
        None => dense,
    })
}

/// A layer of rows. The tensors are x, weight, bias and residual, and out and z, which are written.
#[pyfunction]
#[pyo3(signature = (tensors, stream, device, activation, /))]
pub(super) fn dense(
    py: Python<'_>,
    tensors: [Given<'_>; 6],
    stream: usize,
    device: Option<usize>,
    activation: &str,
) -> PyResult<()> {
    let activation = activation_of(py, activation)?;
    Caller { py, stream, gpu: device }.run(FORWARD, &tensors, |device, stream, operands| {
        let mut dense = dense_of(device, operands, activation)?;
        if let Some(residual) = operands.view(device, Operand::Residual)? {
            dense = dense.with_residual(&residual);
        }
        let mut into = DenseOutputViewMut::new(operands.given_mut(device, Operand::Out)?);
        into.z = operands.view_mut(device, Operand::Z)?;
        dense.forward_into(stream, &operands.given(device, Operand::X)?, &mut into)
    })
}

/// Gradients of [`dense`]. The tensors are x, weight, bias, z and dout, and dx, dweight and dbias, of which those that are given are written.
#[pyfunction]
#[pyo3(signature = (tensors, stream, device, activation, /))]
pub(super) fn dense_backward(
    py: Python<'_>,
    tensors: [Given<'_>; 8],
    stream: usize,
    device: Option<usize>,
    activation: &str,
) -> PyResult<()> {
    let activation = activation_of(py, activation)?;
    Caller { py, stream, gpu: device }.run(BACKWARD, &tensors, |device, stream, operands| {
        let (x, dout) = (operands.given(device, Operand::X)?, operands.given(device, Operand::Dout)?);
        let z = operands.view(device, Operand::Z)?;
        let mut into = DenseGradientsViewMut::new();
        into.dx = operands.view_mut(device, Operand::Dx)?;
        into.dweight = operands.view_mut(device, Operand::Dweight)?;
        into.dbias = operands.view_mut(device, Operand::Dbias)?;
        dense_of(device, operands, activation)?.backward_into(stream, &x, z.as_ref(), &dout, &mut into)
    })
}
