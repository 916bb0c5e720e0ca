//! Sums over rows that thread blocks share out: each leaves a row of sums, and a launch adds these in their order.

use super::rows::Placed;
use crate::device::Device;
use crate::error::Result;
use crate::plain::{bytes_of, plain};
use crate::plan::{Binding, Params, Step, check_device};
use crate::specialise::Specialised;
use kernel_spec::families::norm::{NormPartsParams, PARTS_COLUMNS, Pass, find};
use kernel_spec::{DType, Features};
use std::mem::offset_of;

plain! {
    NormPartsParams { from, to, parts, columns, features }
}

/// Bytes of so many rows of sums.
pub(super) fn parts_bytes(parts: u64, columns: usize) -> u64 {
    // Whole vectors of four.
    parts * columns.next_multiple_of(4) as u64 * DType::F32.bytes() as u64
}

/// The launch that adds `parts` rows of sums: one or two results of one type, each from the buffer of this index.
pub(super) fn parts_step<'p>(
    sums: impl ExactSizeIterator<Item = (usize, &'p Placed)> + Clone,
    device: &Device,
    parts: u32,
    columns: u32,
) -> Result<Step> {
    let (_, first) = sums.clone().next().expect("one result at least");
    let row = find(Pass::Parts, first.dtype, 1, false).expect("a row of the list");
    check_device(&row.entry, device.info())?;
    let params = NormPartsParams { from: [0; 2], to: [0; 2], parts, columns, features: Features::OFF };
    let ctas = columns.div_ceil(PARTS_COLUMNS) * sums.len() as u32;
    let mut holes = Params::new(bytes_of(&params));
    for (i, (buffer, placed)) in sums.enumerate() {
        holes = holes.address(offset_of!(NormPartsParams, from) + 8 * i, Binding::Buffer(buffer), 16).address(
            offset_of!(NormPartsParams, to) + 8 * i,
            Binding::Operand(placed.operand),
            placed.dtype.bytes() as u64,
        );
        holes = holes.further(placed.further);
    }
    let tile = format!("{parts} rows of sums, in their order: {}", row.reason);
    Ok(Step::new(Specialised::plain(&row.entry), ctas, tile, holes))
}
