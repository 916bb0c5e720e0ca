//! Products whose sums are logits: the parameter structs as bytes, and the launches.

use super::super::dense::product::{NO_MAP, Product, Whole};
use super::super::rows::Placed;
use crate::device::Device;
use crate::error::{Operand, Result};
use crate::plain::{bytes_of, plain};
use crate::plan::{Binding, MAX_GRID, Params, Step, check_device};
use crate::specialise::Specialised;
use kernel_spec::copy_engine::ALIGNMENT;
use kernel_spec::families::cross_entropy::{self, LossOptions, LossPartsParams, Pass};
use kernel_spec::families::dense::{DenseParams, Engine, HopperDenseParams, HopperLogitsParams, LogitsParams, Variant};
use kernel_spec::{DType, Features};
use std::mem::offset_of;

plain! {
    LogitsParams { targets, pairs, totals, target_logits, lse, dloss, parts, before, classes, options, dense }
    HopperLogitsParams { a, b, out, logits }
    LossPartsParams { pairs, totals, target_logits, targets, loss, lse, z_losses, rows, parts, classes, options, features }
}

const _: () = assert!(
    offset_of!(HopperLogitsParams, a) == offset_of!(HopperDenseParams, a)
        && offset_of!(HopperLogitsParams, b) == offset_of!(HopperDenseParams, b)
        && offset_of!(HopperLogitsParams, out) == offset_of!(HopperDenseParams, out),
    "a product finds its maps"
);

/// What becomes of the logits.
pub(super) enum Use {
    /// Losses, of which each tile leaves parts, in these buffers.
    Losses(LossBuffers),
    /// Their gradient, of the classes from this one on.
    Gradient { before: usize },
}

/// Where the parts of losses are, by the indices of the buffers.
#[derive(Clone, Copy)]
pub(super) struct LossBuffers {
    pub(super) pairs: usize,
    pub(super) target_logits: usize,
    /// Of smoothing alone.
    pub(super) totals: Option<usize>,
}

/// Parts of a row of so many classes: whole tiles of them.
pub(super) fn parts(row: &Variant, classes: usize) -> u32 {
    let [_, tiles] = row.tiles(1, classes as u32, false);
    tiles * (row.tile.columns / row.part_columns())
}

/// The launch of a product, of some of `classes` classes.
pub(super) fn step(
    product: &Product<'_>,
    row: &'static Variant,
    device: &Device,
    options: LossOptions,
    classes: usize,
    of: &Use,
) -> Result<Step> {
    let number = DType::F32.bytes() as u64;
    let operand = |offset, operand| (offset, Binding::Operand(operand), number);
    let targets = operand(offset_of!(LogitsParams, targets), Operand::Targets);
    let (before, holes) = match of {
        Use::Losses(LossBuffers { pairs, target_logits, totals }) => {
            let buffer = |offset, index| (offset, Binding::Buffer(index), 2 * number);
            let mut holes = vec![
                targets,
                buffer(offset_of!(LogitsParams, pairs), *pairs),
                buffer(offset_of!(LogitsParams, target_logits), *target_logits),
            ];
            holes.extend(totals.map(|totals| buffer(offset_of!(LogitsParams, totals), totals)));
            (0, holes)
        }
        Use::Gradient { before } => {
            let lse = operand(offset_of!(LogitsParams, lse), Operand::Lse);
            (*before, vec![targets, lse, operand(offset_of!(LogitsParams, dloss), Operand::Dloss)])
        }
    };
    product.step_of(row, device, |dense: DenseParams| {
        let logits = LogitsParams {
            targets: 0,
            pairs: 0,
            totals: 0,
            target_logits: 0,
            lse: 0,
            dloss: 0,
            parts: parts(row, classes),
            before: before as u32,
            classes: classes as u32,
            options,
            dense,
        };
        let (bytes, base) = match row.engine {
            Engine::Warps => (bytes_of(&logits), 0),
            Engine::Warpgroups => (
                bytes_of(&HopperLogitsParams { a: NO_MAP, b: NO_MAP, out: NO_MAP, logits }),
                offset_of!(HopperLogitsParams, logits),
            ),
        };
        let holes = holes.into_iter().map(|(offset, binding, piece)| (base + offset, binding, piece)).collect();
        Whole { bytes, dense: base + offset_of!(LogitsParams, dense), holes }
    })
}

/// The launch that merges the parts of each row.
pub(super) fn merge(
    device: &Device,
    options: LossOptions,
    [rows, parts, classes]: [usize; 3],
    from: LossBuffers,
    to: &[Placed],
) -> Result<Step> {
    let row = cross_entropy::find(Pass::Parts, DType::F32, 1, false).expect("a row of the list");
    check_device(&row.entry, device.info())?;
    let params = LossPartsParams {
        pairs: 0,
        totals: 0,
        target_logits: 0,
        targets: 0,
        loss: 0,
        lse: 0,
        z_losses: 0,
        rows: rows as u32,
        parts: parts as u32,
        classes: classes as u32,
        options,
        features: Features::OFF,
    };
    let number = DType::F32.bytes() as u64;
    let LossBuffers { pairs, target_logits, totals } = from;
    let mut holes = Params::new(bytes_of(&params))
        .address(offset_of!(LossPartsParams, pairs), Binding::Buffer(pairs), ALIGNMENT)
        .address(offset_of!(LossPartsParams, target_logits), Binding::Buffer(target_logits), number)
        .address(offset_of!(LossPartsParams, targets), Binding::Operand(Operand::Targets), number);
    if let Some(totals) = totals {
        holes = holes.address(offset_of!(LossPartsParams, totals), Binding::Buffer(totals), number);
    }
    for placed in to {
        let offset = match placed.operand {
            Operand::Loss => offset_of!(LossPartsParams, loss),
            Operand::Lse => offset_of!(LossPartsParams, lse),
            _ => offset_of!(LossPartsParams, z_losses),
        };
        holes = holes.address(offset, Binding::Operand(placed.operand), number);
    }
    // Fits: rows are below 2^31.
    let ctas = (rows as u64).div_ceil(row.tile.block_rows().into());
    debug_assert!(ctas <= MAX_GRID);
    let tile = format!("{} rows a thread block, {parts} parts each: {}", row.tile.block_rows(), row.reason);
    Ok(Step::new(Specialised::plain(&row.entry), ctas as u32, tile, holes))
}
