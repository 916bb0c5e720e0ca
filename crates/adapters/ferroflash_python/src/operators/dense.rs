//! Dense layers.

use super::{Caller, Given, Slot};
use crate::errors;
use ferroflash::Operand;
use ferroflash::operators::{Activation, Dense, DenseOutputViewMut};
use pyo3::prelude::*;

const FORWARD: [Slot; 6] = [
    Slot::read(Operand::X),
    Slot::read(Operand::Weight),
    Slot::read(Operand::Bias).or_none(),
    Slot::read(Operand::Residual).or_none(),
    Slot::written(Operand::Out),
    Slot::written(Operand::Z).or_none(),
];

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
    let Some(activation) = Activation::ALL.into_iter().find(|known| known.name() == activation) else {
        let names = Activation::ALL.map(|known| format!("'{}'", known.name())).join(", ");
        return Err(errors::of_input(py, format!("activation is '{activation}'; {names} are accepted")));
    };
    Caller { py, stream, gpu: device }.run(FORWARD, &tensors, |device, stream, operands| {
        let mut dense = Dense::new(&operands.given(device, Operand::Weight)?).with_activation(activation);
        if let Some(bias) = operands.view(device, Operand::Bias)? {
            dense = dense.with_bias(&bias);
        }
        if let Some(residual) = operands.view(device, Operand::Residual)? {
            dense = dense.with_residual(&residual);
        }
        let mut into = DenseOutputViewMut::new(operands.given_mut(device, Operand::Out)?);
        into.z = operands.view_mut(device, Operand::Z)?;
        dense.forward_into(stream, &operands.given(device, Operand::X)?, &mut into)
    })
}
