//! The launch.

use super::super::plan::OperatorPlan;
use super::super::rows::Placed;
use super::call::Call;
use super::{Rotary, RotaryPositions};
use crate::device::Device;
use crate::error::{Error, Operand, Result};
use crate::plain::{bytes_of, plain};
use crate::plan::{Binding, Params, Step, check_device};
use crate::specialise::Specialised;
use kernel_spec::families::rotary::features::INTERLEAVED;
use kernel_spec::families::rotary::{RotaryParams, find};
use kernel_spec::families::rows::{RowsParams, VECTOR_BYTES};
use kernel_spec::{Divisor, Features};
use std::mem::offset_of;

plain! {
    RotaryParams {
        x, out, cos, sin, positions, offsets, starts, tokens, heads, rows, groups, units, turning_units, half, columns, position_count, offset,
        sequences, sign, aligned, wide_tables, features
    }
}

/// Pairs of a head that a thread turns where it reads single elements.
const PAIRS: usize = 4;

/// A tensor as the kernel reads it, its address missing.
fn placed(tensor: &Placed) -> RowsParams {
    let stride = |axis: usize| tensor.strides[axis] as u64;
    let strides = match tensor.shape.len() {
        4 => [stride(0), stride(1), stride(2)],
        _ => [0, stride(0), stride(1)],
    };
    RowsParams { address: 0, strides }
}

impl Rotary<'_> {
    pub(super) fn plan_of(&self, call: &Call, device: &Device) -> Result<OperatorPlan> {
        let Call { x, out, cos, sin, shape: [batch, rows, heads, columns], .. } = call;
        let row = find(x.dtype).expect("every type has a row");
        check_device(&row.entry, device.info())?;
        let bytes = x.dtype.bytes();
        let half = cos.shape[1];
        let written = if call.in_place { 2 * half } else { *columns };
        let whole = |elements: usize| (elements * bytes).is_multiple_of(VECTOR_BYTES as usize);
        let aligned = whole(half) && whole(written) && [x, out, cos, sin].into_iter().all(Placed::is_aligned);
        let chunk = VECTOR_BYTES as usize / bytes;
        let turning_units = if aligned { half / chunk } else { half.div_ceil(PAIRS) };
        let copying_units = if aligned { ((written - 2 * half) / chunk).div_ceil(2) } else { 0 };
        let units = turning_units + copying_units;
        let groups = heads.div_ceil(row.heads as usize).max(1);
        let tokens = batch * rows;
        let idle = tokens == 0 || *heads == 0;
        let threads = if idle { 0 } else { tokens as u128 * groups as u128 * units as u128 };
        let needed = threads.div_ceil(row.entry.threads.into());
        // Threads are counted in 31 bits.
        let limit = (1 << 31) / u64::from(row.entry.threads) - 1;
        if needed > limit.into() {
            return Err(Error::GridTooLarge { symbol: row.entry.symbol, needed, limit });
        }
        let mut features = Features::OFF;
        if self.interleaved {
            features = features.with(INTERLEAVED, 0);
        }
        // None of the conversions loses anything: the extents and the tables have been checked.
        let params = RotaryParams {
            x: placed(x),
            out: placed(out),
            cos: 0,
            sin: 0,
            positions: 0,
            offsets: 0,
            starts: 0,
            tokens: tokens as u32,
            heads: *heads as u32,
            rows: Divisor::new((*rows).max(1) as u32),
            groups: Divisor::new(groups as u32),
            units: Divisor::new(units as u32),
            turning_units: turning_units as u32,
            half: half as u32,
            columns: written as u32,
            position_count: cos.shape[0] as u32,
            offset: call.offset as u32,
            sequences: call.sequences as u32,
            sign: if self.conjugate { -1.0 } else { 1.0 },
            aligned: aligned.into(),
            wide_tables: u32::from(cos.dtype != x.dtype),
            features,
        };
        let mut holes = Params::new(bytes_of(&params));
        for (offset, of) in [
            (offset_of!(RotaryParams, x.address), x),
            (offset_of!(RotaryParams, out.address), out),
            (offset_of!(RotaryParams, cos), cos),
            (offset_of!(RotaryParams, sin), sin),
        ] {
            holes = holes.address(offset, Binding::Operand(of.operand), of.alignment(aligned));
        }
        let array = match self.positions {
            RotaryPositions::Offset(_) => None,
            RotaryPositions::Offsets(_) => Some((offset_of!(RotaryParams, offsets), Operand::Offsets)),
            RotaryPositions::Each(_) => Some((offset_of!(RotaryParams, positions), Operand::Positions)),
        };
        let starts = self.starts.map(|_| (offset_of!(RotaryParams, starts), Operand::Starts));
        for (offset, operand) in array.into_iter().chain(starts) {
            holes = holes.address(offset, Binding::Operand(operand), size_of::<i32>() as u64);
        }
        let pieces = if aligned { "" } else { ", in single elements, as rows, halves or tables start anywhere" };
        let tile = format!("{units} threads for {} heads of a token: {}{pieces}", row.heads, row.reason);
        let step = Step::new(Specialised::with_features(&row.entry, features.set()), needed as u32, tile, holes);
        let moved = 2 * tokens * heads * written * bytes;
        // Rows of the tables that the call can need.
        let looked_up = 2 * cos.shape[0].min(tokens) * half * cos.dtype.bytes();
        let style = if self.interleaved { "neighbours" } else { "columns of both halves" };
        let rest = match (columns - 2 * half, call.in_place) {
            (0, _) => "",
            (_, true) => ", and the columns behind are left alone",
            (_, false) => ", and the columns behind are copied",
        };
        Ok(OperatorPlan {
            name: "rotary",
            pass: call.pass,
            rows: tokens * heads,
            columns: *columns,
            dtype: x.dtype,
            steps: vec![step],
            buffers: Vec::new(),
            bytes: (moved + looked_up) as u64,
            reason: format!("a row is read once, {} pairs of {style} are turned{rest}", half),
        })
    }
}
