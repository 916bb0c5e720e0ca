//! Gradients through the activation, and what rows add to those of the biases.

use super::super::parts::parts_bytes;
use super::Activation;
use super::matrix::Matrix;
use super::product::with_features;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::plain::{bytes_of, plain};
use crate::plan::{Binding, MAX_GRID, Params, Step, check_device};
use crate::specialise::Specialised;
use kernel_spec::Divisor;
use kernel_spec::copy_engine::ALIGNMENT;
use kernel_spec::families::activation::{ActivationGradientParams, Variant, find};
use std::mem::offset_of;

plain! {
    ActivationGradientParams { dout, z, dz, part_sums, rows, columns, parts, aligned, strips, unused, features }
}

/// `dz = dout activation'(z)`, with sums over rows.
pub(in crate::operators) struct Through<'p> {
    pub(in crate::operators) activation: Activation,
    pub(in crate::operators) dout: &'p Matrix,
    /// None of the identity.
    pub(in crate::operators) z: Option<&'p Matrix>,
    pub(in crate::operators) dz: Option<&'p Matrix>,
    row: &'static Variant,
    /// Thread blocks that share out the columns.
    strips: u64,
    /// Parts that share out the rows.
    pub(in crate::operators) parts: u64,
}

impl<'p> Through<'p> {
    pub(in crate::operators) fn new(
        activation: Activation,
        dout: &'p Matrix,
        [z, dz]: [Option<&'p Matrix>; 2],
        device: &Device,
    ) -> Through<'p> {
        let row = find(dout.placed.dtype).expect("a row for every type");
        // As many thread blocks as the GPU holds at a time, over all strips of columns.
        let held = u64::from(device.info().multiprocessors) * u64::from(row.entry.min_ctas);
        let most = dout.rows.div_ceil(row.tile.block_rows() as usize).max(1) as u64;
        let strips = dout.columns.div_ceil(row.tile.columns() as usize) as u64;
        Through { activation, dout, z, dz, row, strips, parts: held.div_ceil(strips).clamp(1, most) }
    }

    /// Bytes of the sums.
    pub(in crate::operators) fn parts_bytes(&self) -> u64 {
        let halves = if self.activation.is_gated() { 2 } else { 1 };
        parts_bytes(self.parts, self.dout.columns * halves)
    }

    /// The launch; sums over rows go to the buffer of this index.
    pub(in crate::operators) fn step(&self, device: &Device, sums: Option<usize>) -> Result<Step> {
        let Through { activation, dout, z, dz, row, strips, parts } = *self;
        check_device(&row.entry, device.info())?;
        let (needed, limit) = (parts * strips, MAX_GRID);
        if needed > limit {
            return Err(Error::GridTooLarge { symbol: row.entry.symbol, needed: needed.into(), limit });
        }
        let matrices = [Some(dout), z, dz];
        // Whole pieces of the output are whole pieces of each half of what there is twice as much of.
        let aligned = matrices.into_iter().flatten().all(Matrix::is_whole);
        let set = activation.features();
        let [dout_params, z_params, dz_params] = matrices.map(Matrix::params);
        let params = ActivationGradientParams {
            dout: dout_params,
            z: z_params,
            dz: dz_params,
            part_sums: 0,
            rows: dout.rows as u32,
            columns: dout.columns as u32,
            parts: parts as u32,
            aligned: aligned.into(),
            strips: Divisor::new(strips as u32),
            unused: 0,
            features: with_features(set),
        };
        let offsets = [
            offset_of!(ActivationGradientParams, dout.address),
            offset_of!(ActivationGradientParams, z.address),
            offset_of!(ActivationGradientParams, dz.address),
        ];
        let piece = if aligned { ALIGNMENT } else { dout.placed.dtype.bytes() as u64 };
        let there = offsets.into_iter().zip(matrices).filter_map(|(offset, matrix)| Some((offset, matrix?.binding)));
        let mut holes = there
            .fold(Params::new(bytes_of(&params)), |holes, (offset, binding)| holes.address(offset, binding, piece));
        if let Some(buffer) = sums {
            let offset = offset_of!(ActivationGradientParams, part_sums);
            holes = holes.address(offset, Binding::Buffer(buffer), ALIGNMENT);
        }
        // Without rows there is nothing to do.
        let ctas = if dout.rows == 0 { 0 } else { needed as u32 };
        let pieces = if aligned { "" } else { ", in single elements, as rows start anywhere" };
        let tile = format!("{} columns, {parts} parts of the rows: {}{pieces}", row.tile.columns(), row.reason);
        Ok(Step::new(Specialised::with_features(&row.entry, set), ctas, tile, holes))
    }
}
