//! What the fused pass of Hopper runs, allocates and is told: all gradients in one pass, those of the queries as sums.

use super::super::choose::check_copies;
use super::super::options::Attention;
use super::super::params::{bytes_of, geometry, hides_something};
use super::super::problem::Sizes;
use super::tensors::Tensors;
use crate::device::DeviceInfo;
use crate::error::{Operand, Unsupported};
use crate::plan::{Binding, Buffer, Params, check_hopper};
use kernel_spec::copy_engine::ALIGNMENT;
use kernel_spec::families::backward::order::COUNTER_ROWS;
use kernel_spec::families::backward::{BackwardParams, FusedParams, Pass, VARIANTS, Variant};
use kernel_spec::schedule::{MAX_TILES, Schedule, Work};
use kernel_spec::{DType, TensorMap};
use std::mem::offset_of;

/// The buffer of the sums of dq, behind that of the statistics.
pub(super) const SUMS: Binding = Binding::Buffer(1);

/// The buffer of the counters of their parts, where these are added in order.
pub(super) const COUNTERS: Binding = Binding::Buffer(2);

/// Key blocks that add to the same sums in any order with one result: of two numbers, and 0 before them.
const ORDERLESS_BLOCKS: usize = 2;

/// Whether equal inputs give equal bits: sums get their parts in order, or are the same in any.
pub(super) fn is_deterministic(row: &Variant, sizes: &Sizes) -> bool {
    row.pass == Pass::Ordered || sizes.kv_rows <= ORDERLESS_BLOCKS * row.kv_block as usize
}

/// The buffers of the sums and of what orders them, for so many rows of all heads.
pub(super) fn buffers(row: &Variant, rows: u64) -> Vec<Buffer> {
    let bytes = rows * u64::from(row.tile_cols()) * DType::F32.bytes() as u64;
    let reason = "the first step sets them to 0, the second adds, the third rounds";
    let mut buffers = vec![Buffer { name: "sums of dq", bytes, reason }];
    if row.pass == Pass::Ordered {
        let bytes = rows / u64::from(COUNTER_ROWS) * size_of::<u32>() as u64;
        let reason = "thread blocks add to the sums in order, which takes counting";
        buffers.push(Buffer { name: "counters of dq", bytes, reason });
    }
    buffers
}

/// The row of the pass, or what rules it out, such as the features of a call: the one place of its conditions. With [`Attention::deterministic`], equal inputs have to give equal bits.
pub(super) fn row(
    attention: &Attention<'_>,
    features: [Option<&'static str>; 2],
    sizes: &Sizes,
    tensors: &Tensors,
    device: &DeviceInfo,
) -> std::result::Result<&'static Variant, Unsupported> {
    check_hopper(device)?;
    if !VARIANTS.iter().any(|v| v.pass == Pass::Fused && v.dtype == sizes.dtype) {
        return Err(Unsupported::DType { found: sizes.dtype });
    }
    let find = |pass| Variant::find(pass, sizes.dtype, sizes.head_dim as u32);
    let row = find(Pass::Fused).filter(|row| !attention.deterministic || is_deterministic(row, sizes));
    let Some(row) = row.or_else(|| find(Pass::Ordered)) else {
        return Err(Unsupported::HeadDim { found: sizes.head_dim, largest: largest_dim() });
    };
    let program = attention.changing_program().map(|_| "a program on scores");
    if let Some(feature) = features.into_iter().flatten().next().or(program) {
        let Sizes { dtype, head_dim, .. } = *sizes;
        return Err(Unsupported::Feature { feature, dtype, head_dim });
    }
    if sizes.kv_rows == 0 {
        return Err(Unsupported::NoKeys);
    }
    let blocks = sizes.kv_rows.div_ceil(row.kv_block as usize) as u128;
    let found = (sizes.batch as u128 * sizes.kv_heads as u128).saturating_mul(blocks);
    if found > MAX_TILES.into() {
        return Err(Unsupported::TooManyTiles { found, limit: MAX_TILES });
    }
    let Tensors { q, k, v, dout, dq, dk, dv, .. } = tensors;
    let named = [
        (Operand::Q, q),
        (Operand::K, k),
        (Operand::V, v),
        (Operand::Dout, dout),
        (Operand::Dq, dq),
        (Operand::Dk, dk),
        (Operand::Dv, dv),
    ];
    named.iter().try_for_each(|(operand, placed)| check_copies(*operand, placed))?;
    Ok(row)
}

/// Largest head dim of the fused pass.
fn largest_dim() -> usize {
    VARIANTS.iter().filter(|v| v.pass == Pass::Fused).map(|v| v.dim as usize).max().unwrap_or(0)
}

/// The parameters of the pass on `ctas` thread blocks, with its tensor maps.
pub(super) fn params(
    variant: &Variant,
    backward: &BackwardParams,
    sizes: &Sizes,
    tensors: &Tensors,
    ctas: u32,
) -> Params {
    let Sizes { batch, q_rows, kv_rows, q_heads, kv_heads, head_dim, dtype } = *sizes;
    // Blocks of keys in the place of queries: what their thread blocks share are queries, output gradients and the sums of dq.
    let row_bytes = head_dim * 2 * dtype.bytes() + backward.sum_cols as usize * DType::F32.bytes();
    let work = Work {
        batch: batch as u32,
        q_heads: kv_heads as u32,
        group: 1,
        packed: 1,
        q_rows: backward.kv_rows,
        q_block: variant.kv_block,
        kv_head_bytes: (q_heads / kv_heads * q_rows * row_bytes) as u64,
        uneven: hides_something(backward.band, q_rows, kv_rows),
    };
    let none = TensorMap([0; 16]);
    let schedule = Schedule::new(&work, ctas);
    let params = FusedParams { q: none, k: none, v: none, dout: none, schedule, backward: *backward };
    let Tensors { q, k, v, dout, .. } = tensors;
    [
        (offset_of!(FusedParams, q), Operand::Q, geometry(q, variant.q_block, 1)),
        (offset_of!(FusedParams, k), Operand::K, geometry(k, variant.kv_block, 1)),
        (offset_of!(FusedParams, v), Operand::V, geometry(v, variant.kv_block, 1)),
        (offset_of!(FusedParams, dout), Operand::Dout, geometry(dout, variant.q_block, 1)),
    ]
    .into_iter()
    .fold(Params::new(bytes_of(&params)), |params, (offset, operand, geometry)| {
        params.map(offset, Binding::Operand(operand), ALIGNMENT, geometry)
    })
}
