//! What a call of the backward pass over packed sequences will do, decided before it does it.

use super::super::super::blocks;
use super::super::super::options::{Attention, KernelChoice};
use super::super::super::params::bytes_of;
use super::super::super::plan::program_name;
use super::super::super::problem::{Problem, Sizes};
use super::super::super::request::Placed;
use super::super::super::sequences::{Arrays, SequenceSizes, problem_of, read, table, with_table};
use super::super::plan::{self, BackwardPlan, features, specialised, with_holes};
use super::super::sinks;
use super::super::tensors::{Beside, Tensors};
use crate::device::DeviceInfo;
use crate::error::{Error, Result, SequencesError, Unsupported};
use crate::plan::{Buffer, Params, Step};
use crate::tensor::{Layout, Shape};
use kernel_spec::families::backward::packed::statistics_rows;
use kernel_spec::families::backward::{
    BackwardParams, PackedBackwardParams, Pass, STATISTICS_BYTES, STATISTICS_ROWS, Variant,
};
use kernel_spec::{Divisor, FeatureSet, Kernel};
use std::mem::offset_of;

/// Plans a problem of packed sequences, for contiguous tensors.
pub(crate) fn plan_contiguous(attention: &Attention, device: &DeviceInfo, problem: &Problem) -> Result<BackwardPlan> {
    let (sizes, arrays) = read(problem)?;
    let SequenceSizes { q_rows, kv_rows, q_heads, kv_heads, head_dim, dtype, .. } = sizes;
    let placed = |rows, heads| Placed::contiguous(Shape::new(1, rows, heads, head_dim), Layout::Bshd, dtype);
    let (q, k) = (placed(q_rows, q_heads), placed(kv_rows, kv_heads));
    let tensors = Tensors { q, k, v: k, out: q, dout: q, dq: q, dk: k, dv: k };
    let beside = Beside { dlse: false, dsink: attention.sink.is_some() };
    plan(attention, device, &sizes, &arrays, &tensors, beside)
}

/// Plans a call whose sizes have been validated, for these tensors and what it has beside them.
pub(super) fn plan(
    attention: &Attention,
    device: &DeviceInfo,
    sizes: &SequenceSizes,
    arrays: &Arrays,
    tensors: &Tensors,
    beside: Beside,
) -> Result<BackwardPlan> {
    check_kernel(attention, sizes)?;
    let scale = attention.scale_for(sizes.head_dim)?;
    let softcap = attention.softcap_for(scale)?;
    attention.check_gradients()?;
    blocks::check_none(attention, "packed")?;
    attention.check_sink(sizes.q_heads)?;
    attention.check_no_dropout(problem_of(sizes).sequences.name())?;
    let features = features(attention, scale, softcap, None);
    let SequenceSizes { batch, q_rows, kv_rows, q_heads, kv_heads, head_dim, dtype, .. } = *sizes;
    // As a problem: what parameters and grids take of it. Rows are those of all sequences.
    let whole = Sizes { batch, q_rows, kv_rows, q_heads, kv_heads, head_dim, dtype };
    let [tokens, keys, sequences] = [q_rows, kv_rows, batch].map(|n| n as u64);
    let padded_rows = statistics_rows(tokens, sequences);
    if u32::try_from(padded_rows).is_err() {
        let limit = (u32::MAX / STATISTICS_ROWS) as usize - q_rows / STATISTICS_ROWS as usize;
        return Err(Error::Sequences(SequencesError::TooMany { found: batch, rows: q_rows, limit }));
    }
    let params = plan::params(attention, &whole, tensors, scale, softcap, padded_rows as usize);
    let params = BackwardParams { features, ..params };
    let step = |pass: Pass| -> Result<Step> {
        let (variant, ctas) = plan::row(pass, features.set(), &whole, device)?;
        let tile = format!("{} x {}: {}", variant.q_block, variant.kv_block, variant.reason);
        // Nothing to do where there are no rows.
        let rows = if pass == Pass::PackedKeys { kv_rows } else { q_rows };
        let ctas = if rows == 0 { 0 } else { ctas };
        let kernel = specialised(attention, variant, features.set());
        // Fits: the grid did.
        let tiles = Divisor::new(variant.packed_tiles(sequences, tokens, keys) as u32);
        let params = bind(variant, &params, sizes, arrays, tiles, beside.dlse);
        let params = match kernel.program {
            Some(_) => params
                .with_program_words(offset_of!(PackedBackwardParams, backward.features), attention.changing_program()),
            None => params,
        };
        Ok(Step::new(kernel, ctas, tile, params))
    };
    let mut steps = Pass::PACKED.into_iter().map(step).collect::<Result<Vec<_>>>()?;
    if beside.dsink {
        let own = plan::row(Pass::Sinks, FeatureSet::NONE, &sinks::problem(&whole), device)?;
        let table = table(sizes, arrays);
        steps.push(sinks::step(own, plan::STATISTICS, &whole, table, arrays, padded_rows as usize));
    }
    let needed = u128::from(padded_rows) * q_heads as u128 * u128::from(STATISTICS_BYTES);
    let available = device.memory_bytes;
    let bytes = u64::try_from(needed).ok().filter(|&bytes| bytes <= available);
    let bytes = bytes.ok_or(Error::WorkspaceTooLarge { kernel: Kernel::V2, needed, available })?;
    let reason = "the first step writes log-sum-exp and delta of every row, the others read them";
    let plan = BackwardPlan {
        problem: problem_of(sizes),
        mask: attention.mask,
        scale,
        softcap,
        program: program_name(attention),
        sink: attention.sink.is_some(),
        dropout: None,
        steps,
        buffers: vec![Buffer { name: "statistics", bytes, reason }],
        deterministic: true,
        reason: "packed sequences: a kernel for keys and values and one for queries, each the only owner of its sums, whose thread \
                 blocks find their sequence by lengths on the device"
            .to_owned(),
    };
    tracing::debug!(problem = %plan.problem, reason = plan.reason, "planned backward");
    Ok(plan)
}

/// The portable kernels are the only ones, as whichever kernel asked for computes the output of packed sequences.
fn check_kernel(attention: &Attention, sizes: &SequenceSizes) -> Result<()> {
    match attention.kernel {
        KernelChoice::Auto => Ok(()),
        choice => match choice.kernel() {
            None | Some(Kernel::V2) => Ok(()),
            Some(kernel) => {
                let reason = Unsupported::Sequences { found: problem_of(sizes).sequences.name(), accepted: "uniform" };
                Err(Error::KernelUnsupported { kernel, reason })
            }
        },
    }
}

/// The parameters of a step, with holes for the addresses that it uses.
fn bind(
    variant: &Variant,
    backward: &BackwardParams,
    sizes: &SequenceSizes,
    arrays: &Arrays,
    tiles: Divisor,
    with_dlse: bool,
) -> Params {
    let tokens = backward.q_rows;
    let params = PackedBackwardParams { table: table(sizes, arrays), tiles, tokens, backward: *backward };
    let holes = with_table(Params::new(bytes_of(&params)), offset_of!(PackedBackwardParams, table), arrays);
    with_holes(holes, offset_of!(PackedBackwardParams, backward), variant, backward, with_dlse)
}
