//! What a call of attention will do, decided before it does it.

use super::options::Attention;
use super::problem::{Problem, Sizes};
use super::{choose, params};
use crate::device::DeviceInfo;
use crate::error::{Error, Result};
use crate::plan::{Buffer, Step};
use crate::specialise::Specialised;
use crate::tensor::{HeadsView, Layout, Shape};
use kernel_spec::{DType, Kernel, Mask};

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
    /// The algorithm.
    pub kernel: Kernel,
    /// The launches in order.
    pub steps: Vec<Step>,
    /// Device memory that is allocated for the duration of the call, in the order in which steps number it.
    pub buffers: Vec<Buffer>,
    /// Query heads of a group that share a tile: above 1 where rows are few and several query heads share a key-value head.
    pub packed_heads: u32,
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
        match self.softcap {
            Some(cap) => writeln!(f, ", softcap {cap}")?,
            None => writeln!(f)?,
        }
        for Step { kernel, ctas, tile, .. } in &self.steps {
            let entry = kernel.entry;
            writeln!(
                f,
                "  launch     {} ({}): {ctas} thread blocks of {} threads, {} bytes of shared memory",
                entry.symbol,
                entry.arch.name(),
                entry.threads,
                entry.shared_bytes,
            )?;
            writeln!(f, "  this tile  {tile}")?;
        }
        if self.packed_heads > 1 {
            writeln!(
                f,
                "  packed     {} query heads of a group share a tile, whose rows they fill together",
                self.packed_heads
            )?;
        }
        for Buffer { name, bytes, reason, .. } in &self.buffers {
            writeln!(f, "  buffer     {bytes} bytes of {name}: {reason}")?;
        }
        write!(f, "  memory     {} bytes of workspace, {} bytes of log-sum-exp", self.workspace_bytes(), self.lse_bytes)
    }
}

/// Where a tensor of a call lies, as far as the plan knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    /// Axes as `(extent, stride)`: batch, row, head, dim.
    pub(crate) axes: [(usize, usize); 4],
    pub(crate) dtype: DType,
    /// `None`: memory that is still to be allocated, which suits every kernel.
    pub(crate) address: Option<u64>,
}

impl Placed {
    /// A contiguous tensor that is not there yet. Strides past the end of the address space saturate: no machine has such a tensor, and
    /// what else is wrong with the problem can be told.
    pub(crate) fn contiguous(shape: Shape, layout: Layout, dtype: DType) -> Placed {
        let Shape { batch, rows, heads, head_dim } = shape;
        let (row, head) = match layout {
            Layout::Bhsd => (head_dim, rows.saturating_mul(head_dim)),
            Layout::Bshd | Layout::RowMajor => (heads.saturating_mul(head_dim), head_dim),
        };
        let batch_stride = rows.saturating_mul(heads).saturating_mul(head_dim);
        Placed { axes: [(batch, batch_stride), (rows, row), (heads, head), (head_dim, 1)], dtype, address: None }
    }

    pub(crate) fn of(view: &HeadsView<'_>) -> Placed {
        Placed { axes: view.axes(), dtype: view.dtype(), address: Some(view.address()) }
    }

    /// Whether every row of the tensor starts at a multiple of `alignment` bytes.
    pub(crate) fn rows_start_at(&self, alignment: usize) -> bool {
        // Along an axis of extent 1 nothing is ever stepped over.
        let aligned = |&(extent, stride): &(usize, usize)| {
            extent <= 1 || stride.saturating_mul(self.dtype.bytes()).is_multiple_of(alignment)
        };
        self.address.unwrap_or(0).is_multiple_of(alignment as u64) && self.axes[..3].iter().all(aligned)
    }
}

/// The tensors of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tensors {
    pub(crate) q: Placed,
    pub(crate) k: Placed,
    pub(crate) v: Placed,
    pub(crate) out: Placed,
}

impl Tensors {
    /// Contiguous tensors of a problem, `[batch, row, head, dim]`.
    pub(crate) fn contiguous(sizes: &Sizes) -> Tensors {
        let Sizes { batch, q_rows, kv_rows, q_heads, kv_heads, head_dim, dtype } = *sizes;
        let placed = |rows, heads| Placed::contiguous(Shape::new(batch, rows, heads, head_dim), Layout::Bshd, dtype);
        let (q, k) = (placed(q_rows, q_heads), placed(kv_rows, kv_heads));
        Tensors { q, k, v: k, out: q }
    }
}

/// What a plan is made for, checked.
pub(crate) struct Request<'a> {
    pub(crate) attention: &'a Attention,
    pub(crate) sizes: Sizes,
    pub(crate) scale: f32,
    pub(crate) softcap: Option<f32>,
    pub(crate) tensors: Tensors,
}

/// Plans a problem for contiguous tensors.
pub(crate) fn plan(attention: &Attention, device: &DeviceInfo, problem: &Problem) -> Result<Plan> {
    let sizes = problem.sizes()?;
    sizes.validate()?;
    plan_for(attention, device, &sizes, Tensors::contiguous(&sizes))
}

/// Plans a problem whose sizes have been validated, for these tensors.
pub(crate) fn plan_for(attention: &Attention, device: &DeviceInfo, sizes: &Sizes, tensors: Tensors) -> Result<Plan> {
    let scale = attention.scale_for(sizes.head_dim)?;
    let softcap = attention.checked_softcap()?;
    let request = Request { attention, sizes: *sizes, scale, softcap, tensors };
    let (kernel, reason) = choose::kernel(&request, device)?;
    let rows = choose::rows(&request, device, kernel)?;
    let (buffers, needed) = params::buffers(kernel, sizes);
    let fits = |needed| u64::try_from(needed).is_ok_and(|needed| needed <= device.memory_bytes);
    if !fits(needed) {
        return Err(Error::WorkspaceTooLarge { kernel, needed, available: device.memory_bytes });
    }
    // Fits: the grid did, whose thread blocks have no more rows than a tile.
    let lse_bytes = if attention.lse { sizes.score_rows() as u64 * DType::F32.bytes() as u64 } else { 0 };
    let packed_heads = rows.iter().map(|row| row.packed_heads).max().unwrap_or(1);
    let steps = rows.into_iter().map(|row| {
        let tile = format!("{} x {}: {}", row.variant.q_block, row.variant.kv_block, row.variant.reason);
        let (features, params) = params::of(&request, &row);
        Step::new(Specialised { entry: &row.variant.entry, features }, row.ctas, tile, params)
    });
    let plan = Plan {
        problem: (*sizes).into(),
        mask: attention.mask,
        scale,
        softcap,
        kernel,
        steps: steps.collect(),
        buffers,
        packed_heads,
        lse_bytes,
        reason,
    };
    tracing::debug!(kernel = %plan.kernel, problem = %sizes, reason = plan.reason, "planned");
    Ok(plan)
}
