//! The step that computes the gradient of the sinks, behind the others of a backward pass.

use super::super::params::bytes_of;
use super::super::problem::Sizes;
use super::super::sequences::{Arrays, with_table};
use crate::error::Operand;
use crate::plan::{Binding, Params, Step};
use crate::specialise::Specialised;
use kernel_spec::families::backward::{SinkParams, Variant};
use kernel_spec::families::sequences::SequenceTable;
use kernel_spec::layout::CHUNK_BYTES;
use kernel_spec::{DType, Features};
use std::mem::offset_of;

/// The problem as the choice of a row takes it: statistics and sinks are f32, whatever the tensors are.
pub(super) fn problem(sizes: &Sizes) -> Sizes {
    Sizes { dtype: DType::F32, ..*sizes }
}

/// The step of a row on so many thread blocks, for a problem whose heads have `padded_rows` rows of statistics each.
pub(super) fn step(
    (variant, ctas): (&'static Variant, u32),
    statistics: Binding,
    sizes: &Sizes,
    table: SequenceTable,
    arrays: &Arrays,
    padded_rows: usize,
) -> Step {
    let params = SinkParams {
        table,
        lse: 0,
        statistics: 0,
        sink: 0,
        dsink: 0,
        q_rows: sizes.q_rows as u32,
        padded_rows: padded_rows as u32,
        q_heads: sizes.q_heads as u32,
        unused: 0,
        features: Features::OFF,
    };
    let params = with_table(Params::new(bytes_of(&params)), offset_of!(SinkParams, table), arrays);
    let numbers = DType::F32.bytes() as u64;
    let params = [
        (offset_of!(SinkParams, lse), Binding::Operand(Operand::Lse), numbers),
        (offset_of!(SinkParams, statistics), statistics, CHUNK_BYTES as u64),
        (offset_of!(SinkParams, sink), Binding::Operand(Operand::Sink), numbers),
        (offset_of!(SinkParams, dsink), Binding::Operand(Operand::Dsink), numbers),
    ]
    .into_iter()
    .fold(params, |params, (offset, binding, alignment)| params.address(offset, binding, alignment));
    let tile = format!("gradient of the sinks: {}", variant.reason);
    Step::new(Specialised::plain(&variant.entry), ctas, tile, params)
}
