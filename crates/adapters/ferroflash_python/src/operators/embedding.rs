//! Embedding tables.

use super::{Caller, Given, Operands, Slot};
use ferroflash::operators::Embedding;
use ferroflash::{Device, Operand};
use pyo3::prelude::*;

const FORWARD: [Slot; 3] = [Slot::read(Operand::Table), Slot::numbers(Operand::Ids), Slot::written(Operand::Out)];

const BACKWARD: [Slot; 4] = [
    Slot::read(Operand::Table),
    Slot::numbers(Operand::Ids),
    Slot::read(Operand::Dout),
    Slot::written(Operand::Dtable),
];

fn embedding_of<'a>(
    device: &'a Device,
    operands: &Operands,
    scale: f64,
    padding: Option<usize>,
) -> ferroflash::Result<Embedding<'a>> {
    let table = operands.given(device, Operand::Table)?;
    Ok(Embedding::new(&table).with_scale(scale as f32).with_padding(padding))
}

/// Rows of a table. The tensors are the table and the ids, and out, which is written.
#[pyfunction]
#[pyo3(signature = (tensors, stream, device, scale, padding, /))]
pub(super) fn embedding(
    py: Python<'_>,
    tensors: [Given<'_>; 3],
    stream: usize,
    device: Option<usize>,
    scale: f64,
    padding: Option<usize>,
) -> PyResult<()> {
    Caller { py, stream, gpu: device }.run(FORWARD, &tensors, |device, stream, operands| {
        let ids = operands.given_indices(device, Operand::Ids)?;
        let mut out = operands.given_mut(device, Operand::Out)?;
        embedding_of(device, operands, scale, padding)?.forward_into(stream, &ids, &mut out)
    })
}

/// The gradient of a table. The tensors are the table, the ids and dout, and dtable, which is written, or added to.
#[pyfunction]
#[pyo3(signature = (tensors, stream, device, scale, padding, accumulate, /))]
pub(super) fn embedding_backward(
    py: Python<'_>,
    tensors: [Given<'_>; 4],
    stream: usize,
    device: Option<usize>,
    scale: f64,
    padding: Option<usize>,
    accumulate: bool,
) -> PyResult<()> {
    Caller { py, stream, gpu: device }.run(BACKWARD, &tensors, |device, stream, operands| {
        let ids = operands.given_indices(device, Operand::Ids)?;
        let dout = operands.given(device, Operand::Dout)?;
        let mut dtable = operands.given_mut(device, Operand::Dtable)?;
        let embedding = embedding_of(device, operands, scale, padding)?.with_accumulate(accumulate);
        embedding.backward_into(stream, &ids, &dout, &mut dtable)
    })
}
