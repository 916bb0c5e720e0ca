//! Cross-entropy.

use super::{Caller, Given, Slot};
use ferroflash::Operand;
use ferroflash::operators::{CrossEntropy, CrossEntropyOutputViewMut, CrossEntropySaved};
use pyo3::prelude::*;

const FORWARD: [Slot; 5] = [
    Slot::read(Operand::Logits),
    Slot::numbers(Operand::Targets),
    Slot::written(Operand::Loss),
    Slot::written(Operand::Lse).or_none(),
    Slot::written(Operand::ZLosses).or_none(),
];

const BACKWARD: [Slot; 5] = [
    Slot::read(Operand::Logits),
    Slot::numbers(Operand::Targets),
    Slot::read(Operand::Lse),
    Slot::read(Operand::Dloss),
    Slot::written(Operand::Dlogits),
];

/// The options, as Python says them: scale, smoothing, factor of the loss of the log-sum-exp, and the ignored target.
pub(super) type Options = (f64, f64, f64, Option<i32>);

pub(super) fn cross_entropy_of((scale, smoothing, z_loss, ignored): Options) -> CrossEntropy {
    let of = CrossEntropy::new().with_scale(scale as f32).with_smoothing(smoothing as f32).with_z_loss(z_loss as f32);
    ignored.map_or(of, |ignored| of.with_ignored(ignored))
}

/// Losses of rows. The tensors are logits and targets, and loss, lse and z_losses, which are written.
#[pyfunction]
#[pyo3(signature = (tensors, stream, device, options, /))]
pub(super) fn cross_entropy(
    py: Python<'_>,
    tensors: [Given<'_>; 5],
    stream: usize,
    device: Option<usize>,
    options: Options,
) -> PyResult<()> {
    Caller { py, stream, gpu: device }.run(FORWARD, &tensors, |device, stream, operands| {
        let mut into = CrossEntropyOutputViewMut::new(operands.given_mut(device, Operand::Loss)?);
        into.lse = operands.view_mut(device, Operand::Lse)?;
        into.z_losses = operands.view_mut(device, Operand::ZLosses)?;
        let targets = operands.given_indices(device, Operand::Targets)?;
        cross_entropy_of(options).forward_into(stream, &operands.given(device, Operand::Logits)?, &targets, &mut into)
    })
}

/// Gradients of [`cross_entropy`]. The tensors are logits, targets, lse and dloss, and dlogits, which is written and may be the logits themselves.
#[pyfunction]
#[pyo3(signature = (tensors, stream, device, options, /))]
pub(super) fn cross_entropy_backward(
    py: Python<'_>,
    tensors: [Given<'_>; 5],
    stream: usize,
    device: Option<usize>,
    options: Options,
) -> PyResult<()> {
    Caller { py, stream, gpu: device }.run(BACKWARD, &tensors, |device, stream, operands| {
        let given = |operand| operands.given(device, operand);
        let targets = operands.given_indices(device, Operand::Targets)?;
        let saved = CrossEntropySaved::new(&given(Operand::Logits)?, &targets, &given(Operand::Lse)?);
        let mut dlogits = operands.given_mut(device, Operand::Dlogits)?;
        cross_entropy_of(options).backward_into(stream, &saved, &given(Operand::Dloss)?, &mut dlogits)
    })
}
