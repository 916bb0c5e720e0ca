//! Softmax and its logarithm.

use super::{Caller, Given, Slot};
use ferroflash::Operand;
use ferroflash::operators::Softmax;
use pyo3::prelude::*;

const FORWARD: [Slot; 3] = [Slot::read(Operand::X), Slot::mask(Operand::Mask).or_none(), Slot::written(Operand::Out)];

const BACKWARD: [Slot; 3] = [Slot::read(Operand::Out), Slot::read(Operand::Dout), Slot::written(Operand::Dx)];

fn softmax_of<'a>(is_log: bool, scale: f64) -> Softmax<'a> {
    let softmax = if is_log { Softmax::log() } else { Softmax::new() };
    softmax.with_scale(scale as f32)
}

/// The softmax of rows, or its logarithm. The tensors are x and mask, and out, which is written.
#[pyfunction]
#[pyo3(signature = (tensors, stream, device, is_log, scale, causal, /))]
pub(super) fn softmax(
    py: Python<'_>,
    tensors: [Given<'_>; 3],
    stream: usize,
    device: Option<usize>,
    is_log: bool,
    scale: f64,
    causal: bool,
) -> PyResult<()> {
    Caller { py, stream, gpu: device }.run(FORWARD, &tensors, |device, stream, operands| {
        let mut softmax = softmax_of(is_log, scale).causal(causal);
        if let Some(mask) = operands.view(device, Operand::Mask)? {
            softmax = softmax.with_mask(&mask);
        }
        if let Some(mask) = operands.bools(device, Operand::Mask)? {
            softmax = softmax.with_bool_mask(&mask);
        }
        let mut out = operands.given_mut(device, Operand::Out)?;
        softmax.forward_into(stream, &operands.given(device, Operand::X)?, &mut out)
    })
}

/// The gradient of [`softmax`]. The tensors are out and dout, and dx, which is written.
#[pyfunction]
#[pyo3(signature = (tensors, stream, device, is_log, scale, /))]
pub(super) fn softmax_backward(
    py: Python<'_>,
    tensors: [Given<'_>; 3],
    stream: usize,
    device: Option<usize>,
    is_log: bool,
    scale: f64,
) -> PyResult<()> {
    Caller { py, stream, gpu: device }.run(BACKWARD, &tensors, |device, stream, operands| {
        let (out, dout) = (operands.given(device, Operand::Out)?, operands.given(device, Operand::Dout)?);
        softmax_of(is_log, scale).backward_into(stream, &out, &dout, &mut operands.given_mut(device, Operand::Dx)?)
    })
}
