//! What a call of attention will do, decided before it does it.

use super::options::Attention;
use super::problem::{Problem, Sequences, Sizes};
use super::request::{Request, Tensors};
use super::{blocks, choose, params, sequences};
use crate::device::DeviceInfo;
use crate::dropout::Dropout;
use crate::error::{Error, Result};
use crate::plan::{Buffer, Step};
use kernel_spec::{DType, FeatureSet, Kernel, Mask};

/// What a call will launch and allocate, and why. Prints as a few lines.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Plan {
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
    /// The algorithm.
    pub kernel: Kernel,
    /// The launches in order.
    pub steps: Vec<Step>,
    /// Device memory that is allocated for the duration of the call, in the order in which steps number it.
    pub buffers: Vec<Buffer>,
    /// Query heads of a group that share a tile: above 1 where rows are few and several query heads share a key-value head.
    pub packed_heads: u32,
    /// Parts that the keys are split into, which different thread blocks visit: 1 but for sequences.
    pub splits: u32,
    /// Bytes of the log-sum-exp, when it is asked for.
    pub lse_bytes: u64,
    /// Why this kernel.
    pub reason: String,
}

impl Plan {
    /// Bytes of device memory allocated for the duration of the call.
    pub fn workspace_bytes(&self) -> u64 {
        self.buffers.iter().map(|buffer| buffer.bytes).sum()
    }

    /// Device memory beyond q, k, v and out, in bytes: workspace and log-sum-exp.
    pub fn extra_bytes(&self) -> u64 {
        self.workspace_bytes() + self.lse_bytes
    }

    /// Entry points in launch order.
    pub fn symbols(&self) -> impl Iterator<Item = &'static str> {
        self.steps.iter().map(|step| step.kernel.entry.symbol)
    }
}

impl AsRef<[Step]> for Plan {
    fn as_ref(&self) -> &[Step] {
        &self.steps
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}: {}", self.kernel, self.reason)?;
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
        if self.packed_heads > 1 {
            writeln!(
                f,
                "  packed     {} query heads of a group share a tile, whose rows they fill together",
                self.packed_heads
            )?;
        }
        if self.splits > 1 {
            writeln!(f, "  splits     {} parts of the keys, each for thread blocks of its own", self.splits)?;
        }
        for buffer in &self.buffers {
            writeln!(f, "{buffer}")?;
        }
        write!(f, "  memory     {} bytes of workspace, {} bytes of log-sum-exp", self.workspace_bytes(), self.lse_bytes)
    }
}

/// The name of the program that scores pass through.
pub(super) fn program_name(attention: &Attention<'_>) -> Option<String> {
    attention.changing_program().map(|bound| bound.program().name().to_owned())
}

/// Plans a problem for contiguous tensors.
pub(crate) fn plan(attention: &Attention, device: &DeviceInfo, problem: &Problem) -> Result<Plan> {
    if !matches!(problem.sequences, Sequences::Uniform { .. }) {
        return sequences::plan_contiguous(attention, device, problem);
    }
    let sizes = problem.sizes()?;
    sizes.validate()?;
    plan_for(attention, device, &sizes, Tensors::contiguous(&sizes))
}

/// Plans a problem whose sizes have been validated, for these tensors.
pub(crate) fn plan_for(attention: &Attention, device: &DeviceInfo, sizes: &Sizes, tensors: Tensors) -> Result<Plan> {
    let scale = attention.scale_for(sizes.head_dim)?;
    let softcap = attention.softcap_for(scale)?;
    blocks::check(attention, sizes)?;
    attention.check_sink(sizes.q_heads)?;
    let dropout = attention.checked_dropout()?;
    let keys_per_row = choose::keys_per_row(attention.mask, sizes);
    let request = Request { attention, sizes: *sizes, scale, softcap, dropout, keys_per_row, tensors };
    let (kernel, reason) = choose::kernel(&request, device)?;
    let rows = choose::rows(&request, device, kernel)?;
    let (mut buffers, needed) = params::buffers(kernel, sizes);
    let fits = |needed| u64::try_from(needed).is_ok_and(|needed| needed <= device.memory_bytes);
    if !fits(needed) {
        return Err(Error::WorkspaceTooLarge { kernel, needed, available: device.memory_bytes });
    }
    // Fits: the grid did, whose thread blocks have no more rows than a tile.
    let lse_bytes = if attention.lse { sizes.score_rows() as u64 * DType::F32.bytes() as u64 } else { 0 };
    let packed_heads = rows.iter().map(|row| row.packed_heads).max().unwrap_or(1);
    let mut steps = Vec::with_capacity(1 + rows.len());
    let mut reason = reason;
    if let Some(found) = attention.changing_program().and_then(|program| program.blocks()) {
        match rows.iter().find(|row| row.variant.is_listed()) {
            Some(row) => {
                let (buffer, step) =
                    blocks::lists(found, row, attention.mask.band(), params::slots(&request, row), buffers.len())?;
                buffers.push(buffer);
                steps.push(step);
                reason += "; blocks that the program hides are passed over";
            }
            None => reason += "; blocks that the program hides are visited: only v3 passes over them, in f16 and bf16",
        }
    }
    steps.extend(rows.into_iter().map(|row| {
        let tile = format!("{} x {}: {}", row.variant.q_block, row.variant.kv_block, row.variant.reason);
        let params = params::of(&request, &row);
        Step::new(request.specialised(row.variant, FeatureSet::NONE), row.ctas, tile, params)
    }));
    let plan = Plan {
        problem: (*sizes).into(),
        mask: attention.mask,
        scale,
        softcap,
        program: program_name(attention),
        sink: attention.sink.is_some(),
        dropout,
        kernel,
        steps,
        buffers,
        packed_heads,
        splits: 1,
        lse_bytes,
        reason,
    };
    tracing::debug!(kernel = %plan.kernel, problem = %sizes, reason = plan.reason, "planned");
    Ok(plan)
}
