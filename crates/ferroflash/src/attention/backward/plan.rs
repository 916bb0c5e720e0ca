//! What a call of the backward pass will do, decided before it does it.

use super::super::blocks;
use super::super::options::{Attention, log2_of};
use super::super::params::{bytes_of, tensor_params};
use super::super::plan::program_name;
use super::super::problem::{Problem, Sizes};
use super::super::request::{Placed, with_dropout};
use super::super::sequences::Arrays;
use super::tensors::{Beside, Tensors};
use super::{fused, naive, sinks};
use crate::device::DeviceInfo;
use crate::dropout::Dropout;
use crate::error::{Error, Operand, Result, Unsupported};
use crate::plan::{Binding, Buffer, MAX_GRID, Params, Step, check_device};
use crate::score::BoundProgram;
use crate::specialise::Specialised;
use kernel_spec::families::backward::{
    BACKWARD_SLOTS, BackwardParams, FusedParams, Pass, STATISTICS_BYTES, STATISTICS_ROWS, Variant,
};
use kernel_spec::families::forward::features::{PROGRAM, SOFTCAP};
use kernel_spec::families::sequences::SequenceTable;
use kernel_spec::layout::CHUNK_BYTES;
use kernel_spec::{DType, FeatureSet, Features, Kernel, Mask};
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
    /// Bound of the scores, if there is one.
    pub softcap: Option<f32>,
    /// Name of the program that scores pass through, if there is one that changes them.
    pub program: Option<String>,
    /// Whether query heads have sinks.
    pub sink: bool,
    /// What is dropped, if anything is.
    pub dropout: Option<Dropout>,
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
        write!(f, "  problem    {}, {:?}, scale {}", self.problem, self.mask, self.scale)?;
        if let Some(cap) = self.softcap {
            write!(f, ", softcap {cap}")?;
        }
        if let Some(name) = &self.program {
            write!(f, ", program {name}")?;
        }
        if let Some(dropout) = &self.dropout {
            write!(f, ", {dropout}")?;
        }
        writeln!(f, "{}", if self.sink { ", sinks" } else { "" })?;
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

/// The buffer of the rows' statistics.
pub(super) const STATISTICS: Binding = Binding::Buffer(0);

/// Plans a problem whose sizes have been validated, for these tensors and what the call has beside them.
pub(super) fn plan(
    attention: &Attention,
    device: &DeviceInfo,
    sizes: &Sizes,
    tensors: &Tensors,
    beside: Beside,
) -> Result<BackwardPlan> {
    let scale = attention.scale_for(sizes.head_dim)?;
    let softcap = attention.softcap_for(scale)?;
    attention.check_gradients()?;
    blocks::check(attention, sizes)?;
    attention.check_sink(sizes.q_heads)?;
    let dropout = attention.checked_dropout()?;
    let features = features(attention, scale, softcap, dropout);
    // Padded so that the kernels read whole blocks of it.
    let padded_rows = sizes.q_rows.next_multiple_of(STATISTICS_ROWS as usize);
    let choice = choose(attention, [softcap.map(|_| "softcap"), dropout.map(|_| "dropout")], sizes, tensors, device)?;
    let mut params = BackwardParams { features, ..params(attention, sizes, tensors, scale, softcap, padded_rows) };
    if let Choice::Fused(row) = choice {
        params.sum_cols = row.tile_cols().into();
        // Not 0 where there are any, until the address is known.
        params.counters = (row.pass == Pass::Ordered).into();
    }
    let step = |pass, computes: Option<&str>, params: &dyn Fn(&Variant, u32) -> Params| -> Result<Step> {
        let (variant, ctas) = row(pass, features.set(), sizes, device)?;
        let equation = computes.map(|equation| format!("{equation}: ")).unwrap_or_default();
        let tile = format!("{equation}{} x {}: {}", variant.q_block, variant.kv_block, variant.reason);
        // Persistent thread blocks share out the blocks of keys.
        let ctas = if matches!(pass, Pass::Fused | Pass::Ordered) { ctas.min(device.multiprocessors) } else { ctas };
        let kernel = specialised(attention, variant, features.set());
        let params = params(variant, ctas);
        let params = match kernel.program {
            // Features are the end of every parameter struct.
            Some(_) => params.with_program_words(
                variant.entry.params_bytes as usize - size_of_val(&features),
                attention.changing_program(),
            ),
            None => params,
        };
        Ok(Step::new(kernel, ctas, tile, params))
    };
    let recomputing =
        |pass| step(pass, None, &|variant, ctas| bind(variant, &params, sizes, beside.dlse, tensors, ctas));
    let mut steps = vec![recomputing(Pass::Delta)?];
    // Fits: the grid of the first pass did.
    let rows = (sizes.batch * sizes.q_heads * padded_rows) as u64;
    let bytes = rows * u64::from(STATISTICS_BYTES);
    let reason = "the first step writes log-sum-exp and delta of every row, the others read them";
    let mut buffers = vec![Buffer { name: "statistics", bytes, reason }];
    let (mut deterministic, reason) = (true, choice.reason());
    match choice {
        Choice::Naive => {
            buffers.extend(naive::buffers(sizes, bytes.into(), device.memory_bytes)?);
            let pieces = [params.aligned, params.dq_aligned, params.dkv_aligned].map(|a| pieces(a, sizes.dtype));
            for launch in &naive::LAUNCHES {
                let params = |_: &Variant, _| naive::bind(launch, &params, sizes, STATISTICS, pieces);
                steps.push(step(launch.pass, Some(launch.computes(softcap)), &params)?);
            }
        }
        Choice::TwoSided(_) => steps.extend([recomputing(Pass::Keys)?, recomputing(Pass::Queries)?]),
        Choice::Fused(row) => {
            steps.extend([recomputing(row.pass)?, recomputing(Pass::Round)?]);
            buffers.extend(fused::buffers(row, rows));
            deterministic = fused::is_deterministic(row, sizes);
        }
    }
    if beside.dsink {
        let own = row(Pass::Sinks, FeatureSet::NONE, &sinks::problem(sizes), device)?;
        let table = SequenceTable::uniform(sizes.batch as u32);
        steps.push(sinks::step(own, STATISTICS, sizes, table, &Arrays::default(), padded_rows));
    }
    let plan = BackwardPlan {
        problem: (*sizes).into(),
        mask: attention.mask,
        scale,
        softcap,
        program: program_name(attention),
        sink: attention.sink.is_some(),
        dropout,
        steps,
        buffers,
        deterministic,
        reason,
    };
    tracing::debug!(problem = %sizes, reason = plan.reason, "planned backward");
    Ok(plan)
}

/// Which kernels compute the gradients.
#[derive(Clone, Debug)]
enum Choice {
    /// Probabilities and gradients of scores in memory.
    Naive,
    /// One for keys and values and one for queries, for the reason given.
    TwoSided(String),
    /// One for all, with this row.
    Fused(&'static Variant),
}

impl Choice {
    /// The sentence of the plan.
    fn reason(&self) -> String {
        match self {
            Choice::Naive => {
                "asked for naive: probabilities and gradients of scores in memory, each product a kernel of its own"
                    .to_owned()
            }
            Choice::TwoSided(why) => {
                format!("a kernel for keys and values and one for queries, each the only owner of its sums: {why}")
            }
            Choice::Fused(row) => {
                let order = if row.pass == Pass::Ordered { " in order, for equal bits" } else { "" };
                format!(
                    "one kernel for all gradients, whose thread blocks add to the sums of dq{order}: the fastest of those that run this"
                )
            }
        }
    }
}

/// The choice for a call that has these features: an error where a kernel was asked for that does not run it.
fn choose(
    attention: &Attention,
    features: [Option<&'static str>; 2],
    sizes: &Sizes,
    tensors: &Tensors,
    device: &DeviceInfo,
) -> Result<Choice> {
    match (attention.kernel.kernel(), fused::row(attention, features, sizes, tensors, device)) {
        (Some(Kernel::Naive), _) => Ok(Choice::Naive),
        (None | Some(Kernel::V3), Ok(row)) => Ok(Choice::Fused(row)),
        (Some(Kernel::V3), Err(reason)) => Err(Error::KernelUnsupported { kernel: Kernel::V3, reason }),
        (_, Err(_)) if features.iter().all(Option::is_some) => Err(Error::Unsupported(Unsupported::CappedDropout)),
        (None, Err(why)) => Ok(Choice::TwoSided(format!("the fused one does not run this, {why}"))),
        (Some(_), _) => Ok(Choice::TwoSided("a portable kernel was asked for".to_owned())),
    }
}

/// The row that carries out a pass, and its thread blocks.
pub(super) fn row(
    pass: Pass,
    features: FeatureSet,
    sizes: &Sizes,
    device: &DeviceInfo,
) -> Result<(&'static Variant, u32)> {
    let Sizes { batch, q_rows, kv_rows, q_heads, kv_heads, head_dim, dtype } = *sizes;
    // validated: at most MAX_HEAD_DIM, which every pass has rows for.
    let variant = Variant::find_with(pass, dtype, head_dim as u32, features);
    let variant = variant.ok_or(Error::HeadDim { found: head_dim })?;
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

/// The features of a call.
pub(super) fn features(
    attention: &Attention<'_>,
    scale: f32,
    softcap: Option<f32>,
    dropout: Option<Dropout>,
) -> Features<{ BACKWARD_SLOTS as usize }> {
    let features = match (softcap, attention.changing_program()) {
        (Some(cap), _) => Features::OFF.with(SOFTCAP, (scale / cap).to_bits().into()),
        (None, Some(program)) => program.fill(Features::OFF, scale),
        (None, None) => Features::OFF,
    };
    with_dropout(features, dropout)
}

/// What a device loads for the row of a pass: its features as far as it has them, and the program where it recomputes scores.
pub(super) fn specialised(attention: &Attention<'_>, variant: &'static Variant, features: FeatureSet) -> Specialised {
    let features = features.intersection(variant.pass.accepts());
    let program = attention.changing_program().filter(|_| features.contains(FeatureSet::of(PROGRAM)));
    let program = program.map(BoundProgram::gradient_text);
    Specialised { program, ..Specialised::with_features(&variant.entry, features) }
}

/// Without its features.
pub(super) fn params(
    attention: &Attention,
    sizes: &Sizes,
    tensors: &Tensors,
    scale: f32,
    softcap: Option<f32>,
    padded_rows: usize,
) -> BackwardParams {
    // With a softcap the kernels multiply tanh(scores scale / cap) with it, where they multiply scores with the scale otherwise.
    // What comes out of a program is scaled.
    let factor = if attention.changing_program().is_some() { 1.0 } else { softcap.unwrap_or(scale) };
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
        counters: 0,
        sum_cols: 0,
        q_rows: q_rows as u32,
        kv_rows: kv_rows as u32,
        padded_rows: padded_rows as u32,
        q_heads: q_heads as u32,
        group: (q_heads / kv_heads) as u32,
        dim_qk: head_dim as u32,
        dim_v: head_dim as u32,
        scale,
        scale_log2: log2_of(factor),
        lse_to_log2: lse_to_log2(factor),
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

/// What an address has to be a multiple of. Addresses that the call may have are those for which the kernel was told that rows move in
/// pieces, or not.
fn pieces(aligned: u32, dtype: DType) -> u64 {
    (if aligned == 1 { CHUNK_BYTES } else { dtype.bytes() }) as u64
}

/// The parameters of a step that recomputes scores, on `ctas` thread blocks, with holes for the addresses that it uses.
fn bind(
    variant: &Variant,
    params: &BackwardParams,
    sizes: &Sizes,
    with_dlse: bool,
    tensors: &Tensors,
    ctas: u32,
) -> Params {
    let (bytes, start) = match variant.pass {
        Pass::Fused | Pass::Ordered => {
            (fused::params(variant, params, sizes, tensors, ctas), offset_of!(FusedParams, backward))
        }
        _ => (Params::new(bytes_of(params)), 0),
    };
    with_holes(bytes, start, variant, params, with_dlse)
}

/// Holes for the addresses that a step that recomputes scores uses, in its [`BackwardParams`], which start so many bytes into its struct.
pub(super) fn with_holes(
    bytes: Params,
    start: usize,
    variant: &Variant,
    params: &BackwardParams,
    with_dlse: bool,
) -> Params {
    let pieces = |aligned| pieces(aligned, variant.dtype);
    let (inputs, numbers, chunk) = (pieces(params.aligned), DType::F32.bytes() as u64, CHUNK_BYTES as u64);
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
        holes.push((offset_of!(BackwardParams, sums), fused::SUMS, chunk));
    }
    if params.counters != 0 {
        holes.push((offset_of!(BackwardParams, counters), fused::COUNTERS, numbers));
    }
    match variant.pass {
        Pass::Keys | Pass::PackedKeys => {
            holes.extend(tiles);
            holes.extend(kv_gradients);
        }
        Pass::Queries | Pass::PackedQueries => {
            holes.extend(tiles);
            holes.push(q_gradient);
        }
        Pass::Fused | Pass::Ordered => holes.extend(kv_gradients),
        Pass::Round => holes.push(q_gradient),
        // Statistics: the only others that the lists have.
        _ => {
            holes.push(operand(offset_of!(BackwardParams, out.address), Operand::Out, inputs));
            holes.push(operand(offset_of!(BackwardParams, dout.address), Operand::Dout, inputs));
            holes.push(operand(offset_of!(BackwardParams, lse), Operand::Lse, numbers));
            let dlse = operand(offset_of!(BackwardParams, dlse), Operand::Dlse, numbers);
            holes.extend(with_dlse.then_some(dlse));
        }
    }
    holes
        .into_iter()
        .fold(bytes, |params, (offset, binding, alignment)| params.address(start + offset, binding, alignment))
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
