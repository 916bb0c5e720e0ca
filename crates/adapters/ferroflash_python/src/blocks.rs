//! Blocks of keys that a mask hides: found once, kept by Python, given to calls together with programs.

use crate::call::Place;
use crate::program::{ArrayProgram, OnScores, TorchProgram, arrays_of_program, torch_program};
use crate::{emulated, errors};
use ferroflash::Device;
use ferroflash::score::{BoundProgram, FoundBlocks, ScoreShape};
use pyo3::prelude::*;

/// What `find_blocks` returns and programs bring along.
#[pyclass(frozen, module = "ferroflash._native")]
pub(crate) struct Blocks(pub(crate) FoundBlocks);

/// `[batch, heads, q_rows, kv_rows]` of the scores of a call.
type Extents = [usize; 4];

/// The blocks that a program on tensors of torch hides, on the GPU of this number, or on the CPU (-1). Waits until they are found.
#[pyfunction]
#[pyo3(signature = (program, ordinal, extents, /))]
pub(crate) fn find_torch_blocks(
    py: Python<'_>,
    program: TorchProgram<'_>,
    ordinal: i32,
    extents: Extents,
) -> PyResult<Blocks> {
    find(py, &torch_program(program)?, ordinal, extents)
}

/// [`find_torch_blocks`] of a program on arrays that speak DLPack or `__cuda_array_interface__`.
#[pyfunction]
#[pyo3(signature = (program, ordinal, extents, /))]
pub(crate) fn find_blocks(
    py: Python<'_>,
    program: ArrayProgram<'_>,
    ordinal: i32,
    extents: Extents,
) -> PyResult<Blocks> {
    let device = usize::try_from(ordinal).ok();
    // The arrays are held until the blocks are found, on the default stream.
    let (program, _arrays) = arrays_of_program(program, 0, device)?;
    find(py, &program, ordinal, extents)
}

fn find(py: Python<'_>, program: &OnScores, ordinal: i32, extents: Extents) -> PyResult<Blocks> {
    let [batch, heads, q_rows, kv_rows] = extents;
    let shape = ScoreShape { batch, heads, q_rows, kv_rows };
    let place = usize::try_from(ordinal).map_or(Place::Cpu, Place::Cuda);
    program.check(py, place)?;
    let found = match place {
        Place::Cpu => {
            emulated::warn(py)?;
            py.detach(|| emulated::find_blocks(program, shape))
        }
        Place::Cuda(ordinal) => py.detach(|| found_by(program, &Device::cuda(ordinal)?, shape)),
    };
    found.map(Blocks).map_err(|error| errors::raise(py, error))
}

/// Those of a program whose tensors are in the memory of `device`.
pub(crate) fn found_by(program: &OnScores, device: &Device, shape: ScoreShape) -> ferroflash::Result<FoundBlocks> {
    let bound: BoundProgram<'_> = program.bind(device)?.with_blocks(device, shape)?;
    Ok(bound.found_blocks().expect("they were found"))
}
