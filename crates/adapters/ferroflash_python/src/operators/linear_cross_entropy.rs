//! Cross-entropy of the logits of a dense layer.

use super::cross_entropy::{Options, cross_entropy_of};
use super::{Caller, Given, Operands, Slot};
use ferroflash::operators::{
    CrossEntropyOutputViewMut, DenseGradientsViewMut, LinearCrossEntropy, LinearCrossEntropySaved,
};
use ferroflash::{Device, Operand};
use pyo3::prelude::*;

const FORWARD: [Slot; 7] = [
    Slot::read(Operand::X),
    Slot::read(Operand::Weight),
    Slot::read(Operand::Bias).or_none(),
    Slot::numbers(Operand::Targets),
    Slot::written(Operand::Loss),
    Slot::written(Operand::Lse).or_none(),
    Slot::written(Operand::ZLosses).or_none(),
];

const BACKWARD: [Slot; 9] = [
    Slot::read(Operand::X),
    Slot::read(Operand::Weight),
    Slot::read(Operand::Bias).or_none(),
    Slot::numbers(Operand::Targets),
    Slot::read(Operand::Lse),
    Slot::read(Operand::Dloss),
    Slot::written(Operand::Dx).or_none(),
    Slot::written(Operand::Dweight).or_none(),
    Slot::written(Operand::Dbias).or_none(),
];

fn layer_of<'a>(
    device: &'a Device,
    operands: &Operands,
    options: Options,
) -> ferroflash::Result<LinearCrossEntropy<'a>> {
    let of = LinearCrossEntropy::new(&operands.given(device, Operand::Weight)?).with_loss(cross_entropy_of(options));
    Ok(match operands.view(device, Operand::Bias)? {
        Some(bias) => of.with_bias(&bias),
        None => of,
    })
}

/// Losses of rows. The tensors are x, weight, bias and targets, and loss, lse and z_losses, which are written.
#[pyfunction]
#[pyo3(signature = (tensors, stream, device, options, /))]
pub(super) fn linear_cross_entropy(
    py: Python<'_>,
    tensors: [Given<'_>; 7],
    stream: usize,
    device: Option<usize>,
    options: Options,
) -> PyResult<()> {
    Caller { py, stream, gpu: device }.run(FORWARD, &tensors, |device, stream, operands| {
        let mut into = CrossEntropyOutputViewMut::new(operands.given_mut(device, Operand::Loss)?);
        into.lse = operands.view_mut(device, Operand::Lse)?;
        into.z_losses = operands.view_mut(device, Operand::ZLosses)?;
        let (x, targets) = (operands.given(device, Operand::X)?, operands.given_indices(device, Operand::Targets)?);
        layer_of(device, operands, options)?.forward_into(stream, &x, &targets, &mut into)
    })
}

/// Gradients of [`linear_cross_entropy`], whose gradients of logits take up to `chunk_bytes` at a time. The tensors are x, weight, bias, targets, lse and dloss,
/// and dx, dweight and dbias, of which those that are given are written.
#[pyfunction]
#[pyo3(signature = (tensors, stream, device, options, chunk_bytes, /))]
pub(super) fn linear_cross_entropy_backward(
    py: Python<'_>,
    tensors: [Given<'_>; 9],
    stream: usize,
    device: Option<usize>,
    options: Options,
    chunk_bytes: Option<u64>,
) -> PyResult<()> {
    Caller { py, stream, gpu: device }.run(BACKWARD, &tensors, |device, stream, operands| {
        let given = |operand| operands.given(device, operand);
        let targets = operands.given_indices(device, Operand::Targets)?;
        let saved = LinearCrossEntropySaved::new(&given(Operand::X)?, &targets, &given(Operand::Lse)?);
        let mut into = DenseGradientsViewMut::new();
        into.dx = operands.view_mut(device, Operand::Dx)?;
        into.dweight = operands.view_mut(device, Operand::Dweight)?;
        into.dbias = operands.view_mut(device, Operand::Dbias)?;
        let mut of = layer_of(device, operands, options)?;
        if let Some(bytes) = chunk_bytes {
            of = of.with_chunk_bytes(bytes);
        }
        of.backward_into(stream, &saved, &given(Operand::Dloss)?, &mut into)
    })
}
