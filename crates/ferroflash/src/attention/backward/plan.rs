//! What a call of the backward pass will do, decided before it does it.

use super::super::choose::{MAX_GRID, V3_DRIVER, check_copies, check_device};
use super::super::options::{Attention, log2_of};
use super::super::params::{bytes_of, geometry, hides_something, tensor_params};
use super::super::problem::{Problem, Sizes};
use super::super::request::Placed;
use crate::device::{DeviceInfo, DeviceKind};
use crate::error::{Error, Operand, Result, Unsupported, Version};
use crate::plan::{Binding, Buffer, Params, Step};
use crate::specialise::Specialised;
use crate::tensor::{Layout, Shape};
use kernel_spec::copy_engine::ALIGNMENT;
use kernel_spec::families::backward::{
    BackwardParams, FusedParams, Pass, STATISTICS_BYTES, STATISTICS_ROWS, VARIANTS, Variant,
};
use kernel_spec::layout::CHUNK_BYTES;
use kernel_spec::schedule::{MAX_TILES, Schedule, Work};
use kernel_spec::{DType, FeatureSet, Features, Kernel, Mask, TensorMap};
use std::mem::offset_of;

/// What a call of the backward pass will launch and allocate, and why. Prints as a few lines.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BackwardPlan {
    /// The problem it was made for.
    pub problem: Problem,
    /// Which keys a row sees.
    pub mask: Mask,
    /// Factor on the scores.
    pub scale: f32,
    /// The launches in order.
    pub steps: Vec<Step>,
    /// Device memory that is allocated for the duration of the call, in the order in which steps number it.
    pub buffers: Vec<Buffer>,
    /// Whether equal inputs give equal bits, whatever else the device does.
    pub deterministic: bool,
    /// Why these launches.
    pub reason: String,
}

impl BackwardPlan {
    /// Bytes of device memory allocated for the duration of the call.
    pub fn workspace_bytes(&self) -> u64 {
        self.buffers.iter().map(|buffer| buffer.bytes).sum()
    }

    /// Entry points in launch order.
    pub fn symbols(&self) -> impl Iterator<Item = &'static str> {
        self.steps.iter().map(|step| step.kernel.entry.symbol)
    }
}

impl AsRef<[Step]> for BackwardPlan {
    fn as_ref(&self) -> &[Step] {
        &self.steps
    }
}

impl std::fmt::Display for BackwardPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "backward: {}", self.reason)?;
        writeln!(f, "  problem    {}, {:?}, scale {}", self.problem, self.mask, self.scale)?;
        for step in &self.steps {
            writeln!(f, "{step}")?;
        }
        for buffer in &self.buffers {
            writeln!(f, "{buffer}")?;
        }
        let word = if self.deterministic { "the same bits" } else { "sums in any order" };
        write!(f, "  memory     {} bytes of workspace; from run to run {word}", self.workspace_bytes())
    }
}

/// The tensors of a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tensors {
    pub(super) q: Placed,
    pub(super) k: Placed,
    pub(super) v: Placed,
    pub(super) out: Placed,
    pub(super) dout: Placed,
    pub(super) dq: Placed,
    pub(super) dk: Placed,
    pub(super) dv: Placed,
}

impl Tensors {
    /// Contiguous tensors of a problem, `[batch, row, head, dim]`.
    pub(super) fn contiguous(sizes: &Sizes) -> Tensors {
        let Sizes { batch, q_rows, kv_rows, q_heads, kv_heads, head_dim, dtype } = *sizes;
        let placed = |rows, heads| Placed::contiguous(Shape::new(batch, rows, heads, head_dim), Layout::Bshd, dtype);
        let (q, k) = (placed(q_rows, q_heads), placed(kv_rows, kv_heads));
        Tensors { q, k, v: k, out: q, dout: q, dq: q, dk: k, dv: k }
    }
}

/// The buffer of the rows' statistics.
const STATISTICS: Binding = Binding::Buffer(0);

/// The buffer of the sums of dq.
const SUMS: Binding = Binding::Buffer(1);

/// Key blocks that add to the same sums in any order with one result: of two numbers, and 0 before them.
const ORDERLESS_BLOCKS: usize = 2;

/// Plans a problem whose sizes have been validated, for these tensors, with or without a gradient of the log-sum-exp.
pub(super) fn plan(
    attention: &Attention,
    device: &DeviceInfo,
    sizes: &Sizes,
    tensors: &Tensors,
    with_dlse: bool,
) -> Result<BackwardPlan> {
    let scale = attention.scale_for(sizes.head_dim)?;
    if attention.softcap_for(scale)?.is_some() {
        return Err(Error::Unsupported(Unsupported::Backward { feature: "a softcap" }));
    }
    // Padded so that the kernels read whole blocks of it.
    let padded_rows = sizes.q_rows.next_multiple_of(STATISTICS_ROWS as usize);
    let (passes, fused, reason) = match fused(attention, sizes, tensors, device)? {
        Ok(row) => {
            let reason = "one kernel for all gradients, whose thread blocks add to the sums of dq: the fastest of those that run this";
            (Pass::FUSED, Some(row), reason.to_owned())
        }
        Err(why) => {
            let reason = "a kernel for keys and values and one for queries, each the only owner of its sums";
            (Pass::TWO_SIDED, None, format!("{reason}: {why}"))
        }
    };
    let mut params = params(attention, sizes, tensors, scale, padded_rows);
    params.sum_cols = fused.map_or(0, |row| row.tile_cols().into());
    let steps = passes.map(|pass| row(pass, sizes, device)).into_iter().map(|row| {
        let (variant, ctas) = row?;
        let tile = format!("{} x {}: {}", variant.q_block, variant.kv_block, variant.reason);
        let ctas = if variant.pass == Pass::Fused { ctas.min(device.multiprocessors) } else { ctas };
        let params = bind(variant, &params, sizes, with_dlse, tensors, ctas);
        Ok(Step::new(Specialised::with_features(&variant.entry, FeatureSet::NONE), ctas, tile, params))
    });
    let steps = steps.collect::<Result<Vec<_>>>()?;
    // Fits: the grid of the first pass did, whose thread blocks have four rows each.
    let rows = (sizes.batch * sizes.q_heads * padded_rows) as u64;
    let buffer = |name, bytes, reason| Buffer { name, bytes, reason };
    let statistics = "the first step writes log-sum-exp and delta of every row, the others read them";
    let mut buffers = vec![buffer("statistics", rows * u64::from(STATISTICS_BYTES), statistics)];
    if let Some(row) = fused {
        let bytes = rows * u64::from(row.tile_cols()) * DType::F32.bytes() as u64;
        buffers.push(buffer("sums of dq", bytes, "the first step sets them to 0, the second adds, the third rounds"));
    }
    let deterministic = fused.is_none_or(|row| sizes.kv_rows.div_ceil(row.kv_block as usize) <= ORDERLESS_BLOCKS);
    let plan = BackwardPlan {
        problem: (*sizes).into(),
        mask: attention.mask,
        scale,
        steps,
        buffers,
        deterministic,
        reason,
    };
    tracing::debug!(problem = %sizes, reason = plan.reason, "planned backward");
    Ok(plan)
}

/// The row of the pass that computes all gradients at once, or why another way is taken: an error where this one was asked for.
fn fused(
    attention: &Attention,
    sizes: &Sizes,
    tensors: &Tensors,
    device: &DeviceInfo,
) -> Result<std::result::Result<&'static Variant, String>> {
    match (attention.kernel.kernel(), check_fused(sizes, tensors, device)) {
        (Some(Kernel::V3), Err(reason)) => Err(Error::KernelUnsupported { kernel: Kernel::V3, reason }),
        (Some(Kernel::V3), Ok(row)) => Ok(Ok(row)),
        (Some(_), _) => Ok(Err("asked for".to_owned())),
        (None, _) if attention.deterministic => Ok(Err("the same bits from run to run were asked for".to_owned())),
        (None, Ok(row)) => Ok(Ok(row)),
        (None, Err(reason)) => Ok(Err(format!("without the fused kernel, {reason}"))),
    }
}

/// The row of the fused pass: the one place of its conditions.
fn check_fused(sizes: &Sizes, tensors: &Tensors, device: &DeviceInfo) -> std::result::Result<&'static Variant, Unsupported> {
    if !device.runs(Pass::Fused.arch()) {
        let (major, minor) = Pass::Fused.arch().least_compute_capability();
        return Err(Unsupported::ComputeCapability { found: device.compute_capability(), accepted: Version { major, minor } });
    }
    if let DeviceKind::Cuda { driver_version: found, .. } = device.kind
        && found < V3_DRIVER
    {
        return Err(Unsupported::Driver { found, least: V3_DRIVER });
    }
    if !VARIANTS.iter().any(|v| v.pass == Pass::Fused && v.dtype == sizes.dtype) {
        return Err(Unsupported::DType { found: sizes.dtype });
    }
    let Some(row) = Variant::find(Pass::Fused, sizes.dtype, sizes.head_dim as u32) else {
        return Err(Unsupported::HeadDim { found: sizes.head_dim, largest: largest_fused() });
    };
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
fn largest_fused() -> usize {
    VARIANTS.iter().filter(|v| v.pass == Pass::Fused).map(|v| v.dim as usize).max().unwrap_or(0)
}

/// The row that carries out a pass, and its thread blocks.
fn row(pass: Pass, sizes: &Sizes, device: &DeviceInfo) -> Result<(&'static Variant, u32)> {
    let Sizes { batch, q_rows, kv_rows, q_heads, kv_heads, head_dim, dtype } = *sizes;
    // validated: at most MAX_HEAD_DIM, which every pass has rows for.
    let variant = Variant::find(pass, dtype, head_dim as u32).ok_or(Error::HeadDim { found: head_dim })?;
    check_device(&variant.entry, device)?;
    let too_large = |needed| Error::GridTooLarge { symbol: variant.entry.symbol, needed, limit: MAX_GRID };
    // A bound that cannot overflow first: each head needs at least one thread block. Then, with at most 2^31 heads and 2^29 rows, 64 bits
    // hold the thread blocks of them all.
    let heads = batch as u128 * q_heads as u128;
    if heads > MAX_GRID.into() {
        return Err(too_large(heads));
    }
    let [batch, q_heads, kv_heads, q_rows, kv_rows] = [batch, q_heads, kv_heads, q_rows, kv_rows].map(|n| n as u64);
    let ctas = variant.ctas(batch, q_heads, kv_heads, q_rows, kv_rows);
    let fits = u32::try_from(ctas).ok().filter(|&ctas| u64::from(ctas) <= MAX_GRID);
    Ok((variant, fits.ok_or_else(|| too_large(ctas.into()))?))
}

fn params(attention: &Attention, sizes: &Sizes, tensors: &Tensors, scale: f32, padded_rows: usize) -> BackwardParams {
    let Sizes { q_rows, kv_rows, q_heads, kv_heads, head_dim, .. } = *sizes;
    let Tensors { q, k, v, out, dout, dq, dk, dv } = tensors;
    let aligned = |tensors: &[&Placed]| tensors.iter().all(|tensor| tensor.rows_start_at(CHUNK_BYTES)).into();
    // None of the conversions loses anything: Sizes::validate bounds rows and head_dim, the grid bounds the heads.
    BackwardParams {
        q: tensor_params(q),
        k: tensor_params(k),
        v: tensor_params(v),
        out: tensor_params(out),
        dout: tensor_params(dout),
        dq: tensor_params(dq),
        dk: tensor_params(dk),
        dv: tensor_params(dv),
        lse: 0,
        dlse: 0,
        statistics: 0,
        sums: 0,
        sum_cols: 0,
        q_rows: q_rows as u32,
        kv_rows: kv_rows as u32,
        padded_rows: padded_rows as u32,
        q_heads: q_heads as u32,
        group: (q_heads / kv_heads) as u32,
        dim_qk: head_dim as u32,
        dim_v: head_dim as u32,
        scale,
        scale_log2: log2_of(scale),
        lse_to_log2: lse_to_log2(scale),
        band: attention.mask.band(),
        aligned: aligned(&[q, k, v, out, dout]),
        dq_aligned: aligned(&[dq]),
        dkv_aligned: aligned(&[dk, dv]),
        features: Features::OFF,
    }
}

/// [`BackwardParams::lse_to_log2`] for a scale.
fn lse_to_log2(scale: f32) -> [f32; 2] {
    // With a scale of 0, or one that underflows, all scores are 0, and any factor will do that is nearly right.
    let factor = f64::from(log2_of(scale)) / f64::from(scale);
    let factor = if factor.is_normal() { factor } else { std::f64::consts::LOG2_E };
    let high = factor as f32;
    [high, (factor - f64::from(high)) as f32]
}

/// The parameters of a step, with holes for the addresses that it uses.
fn bind(
    variant: &Variant,
    params: &BackwardParams,
    sizes: &Sizes,
    with_dlse: bool,
    tensors: &Tensors,
    ctas: u32,
) -> Params {
    let dtype = sizes.dtype;
    // Addresses that the call may have are those for which the kernel was told that rows move in pieces, or not.
    let pieces = |aligned: u32| if aligned == 1 { CHUNK_BYTES } else { dtype.bytes() } as u64;
    let (elements, numbers, chunk) = (dtype.bytes() as u64, DType::F32.bytes() as u64, CHUNK_BYTES as u64);
    let inputs = pieces(params.aligned);
    let operand = |offset, operand, alignment| (offset, Binding::Operand(operand), alignment);
    let tiles = [
        operand(offset_of!(BackwardParams, q.address), Operand::Q, inputs),
        operand(offset_of!(BackwardParams, k.address), Operand::K, inputs),
        operand(offset_of!(BackwardParams, v.address), Operand::V, inputs),
        operand(offset_of!(BackwardParams, dout.address), Operand::Dout, inputs),
    ];
    let kv_gradients = [
        operand(offset_of!(BackwardParams, dk.address), Operand::Dk, pieces(params.dkv_aligned)),
        operand(offset_of!(BackwardParams, dv.address), Operand::Dv, pieces(params.dkv_aligned)),
    ];
    let q_gradient = operand(offset_of!(BackwardParams, dq.address), Operand::Dq, pieces(params.dq_aligned));
    let mut holes = vec![(offset_of!(BackwardParams, statistics), STATISTICS, chunk)];
    if params.sum_cols > 0 {
        holes.push((offset_of!(BackwardParams, sums), SUMS, chunk));
    }
    match variant.pass {
        Pass::Keys => {
            holes.extend(tiles);
            holes.extend(kv_gradients);
        }
        Pass::Queries => {
            holes.extend(tiles);
            holes.push(q_gradient);
        }
        Pass::Fused => holes.extend(kv_gradients),
        Pass::Round => holes.push(q_gradient),
        // The only other pass that the list has.
        _ => {
            holes.push(operand(offset_of!(BackwardParams, out.address), Operand::Out, inputs));
            holes.push(operand(offset_of!(BackwardParams, dout.address), Operand::Dout, inputs));
            holes.push(operand(offset_of!(BackwardParams, lse), Operand::Lse, numbers));
            let dlse = operand(offset_of!(BackwardParams, dlse), Operand::Dlse, numbers);
            holes.extend(with_dlse.then_some(dlse));
        }
    }
    let (bytes, start) = match variant.pass {
        Pass::Fused => (fused_params(variant, params, sizes, tensors, ctas), offset_of!(FusedParams, backward)),
        _ => (Params::new(bytes_of(params)), 0),
    };
    holes.into_iter().fold(bytes, |params, (offset, binding, alignment)| params.address(start + offset, binding, alignment))
}

/// The parameters of the fused pass on `ctas` thread blocks, with its tensor maps.
fn fused_params(
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_sum_exp_is_rounded_by_the_factor_of_its_scores() {
        for scale in [0.125, -1.7, 3e-30, f32::MIN_POSITIVE, 1e38, 0.088_388_35] {
            let [high, low] = lse_to_log2(scale).map(f64::from);
            // The log-sum-exp of one score is the score.
            let (score, product) = (f64::from(scale) * 1000.0, f64::from(log2_of(scale)) * 1000.0);
            assert!((score * (high + low) - product).abs() <= product.abs() * 1e-14, "{scale}");
        }
        assert_eq!(lse_to_log2(0.0)[0], std::f32::consts::LOG2_E);
    }
}
