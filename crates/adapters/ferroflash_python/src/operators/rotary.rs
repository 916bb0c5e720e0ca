//! Rotary embedding.

use super::{Caller, Given, Operands, Slot};
use ferroflash::operators::{Rotary, RotaryPositions};
use ferroflash::{Device, Operand};
use pyo3::prelude::*;

/// With `out`; in place, x is what is written.
const SLOTS: [Slot; 7] = [
    Slot::read(Operand::X),
    Slot::read(Operand::Cos),
    Slot::read(Operand::Sin),
    Slot::numbers(Operand::Offsets).or_none(),
    Slot::numbers(Operand::Positions).or_none(),
    Slot::numbers(Operand::Starts).or_none(),
    Slot::written(Operand::Out).or_none(),
];

fn rotary_of<'a>(
    device: &'a Device,
    operands: &Operands,
    offset: usize,
    interleaved: bool,
    conjugate: bool,
) -> ferroflash::Result<Rotary<'a>> {
    let (cos, sin) = (operands.given(device, Operand::Cos)?, operands.given(device, Operand::Sin)?);
    let offsets = operands.indices(device, Operand::Offsets)?.map(RotaryPositions::Offsets);
    let each = operands.indices(device, Operand::Positions)?.map(RotaryPositions::Each);
    let rotary = Rotary::new(&cos, &sin)
        .with_interleaved(interleaved)
        .with_positions(each.or(offsets).unwrap_or(RotaryPositions::Offset(offset)))
        .with_starts(operands.indices(device, Operand::Starts)?);
    Ok(if conjugate { rotary.conjugate() } else { rotary })
}

/// Turns rows. The tensors are x, cos, sin, and, where they are given, offsets, positions and starts; out is written, or x where there is none.
#[pyfunction]
#[pyo3(signature = (tensors, stream, device, offset, interleaved, conjugate, /))]
pub(super) fn rotary(
    py: Python<'_>,
    tensors: [Given<'_>; 7],
    stream: usize,
    device: Option<usize>,
    offset: usize,
    interleaved: bool,
    conjugate: bool,
) -> PyResult<()> {
    let mut slots = SLOTS;
    if tensors[6].is_none() {
        slots[0] = Slot::written(Operand::X);
    }
    Caller { py, stream, gpu: device }.run(slots, &tensors, |device, stream, operands| {
        let rotary = rotary_of(device, operands, offset, interleaved, conjugate)?;
        match operands.view_mut(device, Operand::Out)? {
            Some(mut out) => rotary.forward_into(stream, &operands.given(device, Operand::X)?, &mut out),
            None => rotary.in_place(stream, &mut operands.given_mut(device, Operand::X)?),
        }
    })
}
