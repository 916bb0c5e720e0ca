//! What a call will do, decided before it does it: problem and options in, rows of the variant list out.

use crate::attention::{Attention, KernelChoice};
use crate::device::{Device, DeviceInfo, DeviceKind};
use crate::error::{Error, Operand, Result, Unsupported, Version};
use crate::specialise::Specialised;
use crate::tensor::TensorView;
use kernel_spec::copy_engine::{ALIGNMENT, STRIDE_LIMIT};
use kernel_spec::schedule::{self, MAX_TILES};
use kernel_spec::{DType, Entry, FeatureSet, Kernel, MAX_HEAD_DIM, MAX_ROWS, Mask, Pass, Variant};

/// Sizes and element type of an attention problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    /// Sequences.
    pub batch: usize,
    /// Rows of q and out.
    pub q_rows: usize,
    /// Rows of k and v. May be 0.
    pub kv_rows: usize,
    /// Heads of q and out.
    pub q_heads: usize,
    /// Heads of k and v; divides `q_heads`.
    pub kv_heads: usize,
    /// Columns of q, k, v and out.
    pub head_dim: usize,
    /// Element type of q, k, v and out.
    pub dtype: DType,
}

impl Problem {
    /// Checks everything about the sizes that does not depend on a device.
    ///
    /// # Errors
    /// [`Error::EmptyAxis`], [`Error::HeadDim`], [`Error::HeadGroups`], [`Error::TooManyRows`].
    pub fn validate(&self) -> Result<()> {
        let empty = |tensor, axis| Err(Error::EmptyAxis { tensor, axis });
        match self {
            Problem { batch: 0, .. } => return empty(Operand::Q, "batch"),
            Problem { q_rows: 0, .. } => return empty(Operand::Q, "rows"),
            Problem { q_heads: 0, .. } => return empty(Operand::Q, "heads"),
            Problem { kv_heads: 0, .. } => return empty(Operand::K, "heads"),
            _ => {}
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(8) || self.head_dim > MAX_HEAD_DIM as usize {
            return Err(Error::HeadDim { found: self.head_dim });
        }
        if !self.q_heads.is_multiple_of(self.kv_heads) {
            return Err(Error::HeadGroups { q_heads: self.q_heads, kv_heads: self.kv_heads });
        }
        for (tensor, found) in [(Operand::Q, self.q_rows), (Operand::K, self.kv_rows)] {
            if found >= MAX_ROWS as usize {
                return Err(Error::TooManyRows { tensor, found });
            }
        }
        Ok(())
    }

    /// Elements from one row of the naive kernel's scores to the next: whole 16-byte pieces in every element type.
    pub(crate) fn score_stride(&self) -> usize {
        self.kv_rows.next_multiple_of(8)
    }

    /// Bytes of scores (`f32`) and probabilities (in the element type) of the naive kernel.
    fn naive_workspace(&self) -> [u128; 2] {
        let rows = self.batch as u128 * self.q_heads as u128 * self.q_rows as u128;
        let scores = rows * self.score_stride() as u128;
        [scores * DType::F32.bytes() as u128, scores * self.dtype.bytes() as u128]
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Problem { batch, q_rows, kv_rows, q_heads, kv_heads, head_dim, dtype } = self;
        write!(
            f,
            "batch {batch}, q_rows {q_rows}, kv_rows {kv_rows}, heads {q_heads}/{kv_heads}, head_dim {head_dim}, {dtype}"
        )
    }
}

/// One launch of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Step {
    /// The entry point, a row of [`kernel_spec::VARIANTS`].
    pub variant: &'static Variant,
    /// Thread blocks, all along x. 0: there is nothing to do, and it is not launched.
    pub ctas: u32,
    /// Query heads that share a tile: above 1 where rows are few and several query heads share a key-value head.
    pub packed_heads: u32,
    /// Threads of one thread block.
    pub threads: u32,
    /// Dynamic shared memory of one thread block, in bytes.
    pub shared_bytes: u32,
}

impl Step {
    /// What the device loads for this launch.
    pub fn kernel(&self) -> Specialised {
        Specialised::plain(&self.variant.entry)
    }
}

impl Device {
    /// Compiles and loads the kernels of a plan, so that a later call finds them: the first call of a process then takes no longer than
    /// the next, and may be captured into a graph.
    ///
    /// # Errors
    /// [`Error::PtxRejected`], [`Error::MissingVariant`], [`Error::Cuda`].
    pub fn prepare(&self, plan: &Plan) -> Result<()> {
        plan.steps.iter().try_for_each(|step| self.backend().prepare(&step.kernel()))
    }
}

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
    /// The algorithm.
    pub kernel: Kernel,
    /// The launches in order.
    pub steps: Vec<Step>,
    /// Bytes of device memory allocated for the duration of the call.
    pub workspace_bytes: u64,
    /// Bytes of the log-sum-exp, when it is asked for.
    pub lse_bytes: u64,
    /// Why this kernel.
    pub reason: String,
}

impl Plan {
    /// Device memory beyond q, k, v and out, in bytes: workspace and log-sum-exp.
    pub fn extra_bytes(&self) -> u64 {
        self.workspace_bytes + self.lse_bytes
    }

    /// Entry points in launch order.
    pub fn symbols(&self) -> impl Iterator<Item = &'static str> {
        self.steps.iter().map(|step| step.variant.entry.symbol)
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}: {}", self.kernel, self.reason)?;
        writeln!(f, "  problem    {}, {:?}, scale {}", self.problem, self.mask, self.scale)?;
        for Step { variant, ctas, packed_heads, threads, shared_bytes } in &self.steps {
            writeln!(
                f,
                "  launch     {} ({}): tile {} x {}, {ctas} thread blocks of {threads} threads, {shared_bytes} bytes of shared memory",
                variant.entry.symbol,
                variant.entry.arch.name(),
                variant.q_block,
                variant.kv_block,
            )?;
            writeln!(f, "  this tile  {}", variant.reason)?;
            if *packed_heads > 1 {
                writeln!(
                    f,
                    "  packed     {packed_heads} query heads of a group share a tile, whose rows they fill together"
                )?;
            }
        }
        write!(f, "  memory     {} bytes of workspace, {} bytes of log-sum-exp", self.workspace_bytes, self.lse_bytes)
    }
}

/// Where a call's workspace lies: bytes of scores and of probabilities. Both 0 for the flash kernels.
pub(crate) fn workspace(kernel: Kernel, problem: &Problem) -> [u128; 2] {
    match kernel {
        Kernel::Naive => problem.naive_workspace(),
        Kernel::V1 | Kernel::V2 | Kernel::V3 => [0, 0],
    }
}

/// Largest x extent of a grid (CUDA programming guide, table of technical specifications).
const MAX_GRID: u64 = (1 << 31) - 1;

/// Least CUDA version of a driver that compiles PTX 8.0, the first with v3's instructions (PTX ISA, release notes).
const V3_DRIVER: Version = Version { major: 12, minor: 0 };

/// Plans `problem` for the tensors of a call as far as they are known; those that are not given are contiguous.
pub(crate) fn plan(
    attention: &Attention,
    device: &DeviceInfo,
    problem: &Problem,
    tensors: &[(Operand, TensorView<'_>)],
) -> Result<Plan> {
    problem.validate()?;
    let scale = attention.scale_for(problem.head_dim)?;
    if let KernelChoice::Variant(asked) = attention.kernel {
        variant(attention, problem, asked.pass)?;
    }
    let v3_runs = check_v3(attention, device, problem, tensors);
    let (kernel, reason) = match (attention.kernel.kernel(), v3_runs) {
        (Some(Kernel::V3), Err(reason)) => {
            return Err(Error::KernelUnsupported { kernel: Kernel::V3, reason });
        }
        (Some(kernel), _) => (kernel, "asked for".to_owned()),
        (None, Ok(())) => (
            Kernel::V3,
            "the fastest of the kernels: asynchronous copies and products, softmax under the products of others"
                .to_owned(),
        ),
        (None, Err(reason)) => (Kernel::V2, format!("the fastest of the kernels that run this; {reason}")),
    };
    let mut steps = Vec::new();
    for &pass in kernel.passes() {
        let variant = variant(attention, problem, pass)?.ok_or(Error::HeadDim { found: problem.head_dim })?;
        check_device(variant, device)?;
        let packed_heads = packed_heads(variant, problem);
        steps.push(Step {
            variant,
            ctas: grid(variant, problem, packed_heads, device.multiprocessors)?,
            packed_heads,
            threads: variant.entry.threads,
            shared_bytes: variant.entry.shared_bytes,
        });
    }
    let needed = workspace(kernel, problem).iter().sum::<u128>();
    let workspace_bytes = u64::try_from(needed)
        .ok()
        .filter(|&needed| needed <= device.memory_bytes)
        .ok_or(Error::WorkspaceTooLarge { kernel, needed, available: device.memory_bytes })?;
    // Fits: the number of tiles did, and a tile has at most 192 rows.
    let rows = problem.batch as u64 * problem.q_heads as u64 * problem.q_rows as u64;
    let lse_bytes = if attention.lse { rows * DType::F32.bytes() as u64 } else { 0 };
    let plan =
        Plan { problem: *problem, mask: attention.mask, scale, kernel, steps, workspace_bytes, lse_bytes, reason };
    tracing::debug!(kernel = %plan.kernel, %problem, workspace_bytes, reason = plan.reason, "planned");
    Ok(plan)
}

/// The entry point for a pass: the one that is asked for, or the one whose tile is the fastest.
fn variant(attention: &Attention, problem: &Problem, pass: Pass) -> Result<Option<&'static Variant>> {
    let head_dim = problem.head_dim as u32; // validate: at most MAX_HEAD_DIM
    match attention.kernel {
        KernelChoice::Variant(variant) if variant.pass == pass => {
            if variant.holds(problem.dtype, [head_dim; 2]) {
                return Ok(Some(variant));
            }
            let Variant { entry: Entry { symbol, .. }, dtype, .. } = *variant;
            let head_dim = variant.head_dim();
            Err(Error::VariantMismatch { symbol, dtype, head_dim, problem: *problem })
        }
        _ => Ok(Variant::find(
            pass,
            problem.dtype,
            [head_dim; 2],
            keys_per_row(attention.mask, problem),
            FeatureSet::NONE,
        )),
    }
}

/// Keys that a query row sees, on average over up to 64 rows evenly spread.
fn keys_per_row(mask: Mask, problem: &Problem) -> u32 {
    const SAMPLES: usize = 64;
    let (q_rows, kv_rows) = (problem.q_rows as i64, problem.kv_rows as i64);
    let band = mask.band();
    let seen = |row: i64| {
        let diagonal = row + kv_rows - q_rows;
        let first = (diagonal - i64::from(band.left)).max(0);
        let end = (diagonal + i64::from(band.right) + 1).min(kv_rows);
        (end - first).max(0)
    };
    let samples = problem.q_rows.min(SAMPLES) as i64;
    let total: i64 = (0..samples).map(|i| seen((2 * i + 1) * q_rows / (2 * samples))).sum();
    // At most kv_rows, which validate bounds by MAX_ROWS.
    (total / samples.max(1)) as u32
}

/// Whether v3 runs this: the one place of its conditions.
fn check_v3(
    attention: &Attention,
    device: &DeviceInfo,
    problem: &Problem,
    tensors: &[(Operand, TensorView<'_>)],
) -> Result<(), Unsupported> {
    if !device.runs(Pass::V3.arch()) {
        let (major, minor) = Pass::V3.arch().least_compute_capability();
        let accepted = Version { major, minor };
        return Err(Unsupported::ComputeCapability { found: device.compute_capability(), accepted });
    }
    if let DeviceKind::Cuda { driver_version: found, .. } = device.kind
        && found < V3_DRIVER
    {
        return Err(Unsupported::Driver { found, least: V3_DRIVER });
    }
    // validate: at most MAX_HEAD_DIM, for which every type that v3 has at all has a variant.
    let Ok(Some(variant)) = variant(attention, problem, Pass::V3) else {
        return Err(Unsupported::DType { found: problem.dtype });
    };
    if problem.kv_rows == 0 {
        return Err(Unsupported::NoKeys);
    }
    let q_blocks = problem.q_rows.div_ceil(variant.q_block as usize) as u128;
    let found = (problem.batch as u128 * problem.q_heads as u128).saturating_mul(q_blocks);
    if found > MAX_TILES.into() {
        return Err(Unsupported::TooManyTiles { found, limit: MAX_TILES });
    }
    tensors.iter().try_for_each(|(tensor, view)| check_copies(*tensor, view))
}

/// Whether the copy engine takes the tensor's address and strides.
fn check_copies(tensor: Operand, view: &TensorView<'_>) -> Result<(), Unsupported> {
    let address = view.address();
    if !address.is_multiple_of(ALIGNMENT) {
        return Err(Unsupported::Address { tensor, address });
    }
    let [batch, row, head, _] = view.geometry().axes();
    for (axis, (extent, stride)) in [("batch", batch), ("row", row), ("head", head)] {
        // A stride in use fits: the tensor's span in bytes does.
        let bytes = (stride as u64).saturating_mul(view.dtype().bytes() as u64);
        // Along an axis of extent 1 nothing is ever stepped over.
        if extent > 1 && (bytes == 0 || !bytes.is_multiple_of(ALIGNMENT) || bytes >= STRIDE_LIMIT) {
            return Err(Unsupported::Stride { tensor, axis, bytes });
        }
    }
    Ok(())
}

fn check_device(variant: &'static Variant, device: &DeviceInfo) -> Result<()> {
    if !device.runs(variant.entry.arch) {
        let (major, minor) = variant.entry.arch.least_compute_capability();
        let least = Version { major, minor };
        return Err(Error::GpuTooOld { name: device.name.clone(), found: device.compute_capability(), least });
    }
    let (needed, available) = (variant.entry.shared_bytes, device.max_shared_bytes_per_block);
    if needed > available {
        return Err(Error::SharedMemory { symbol: variant.entry.symbol, needed, available });
    }
    Ok(())
}

/// Query heads of a group that share a tile; 1 but for v3.
fn packed_heads(variant: &Variant, problem: &Problem) -> u32 {
    match variant.pass {
        // At most MAX_ROWS rows; a group that does not fit 32 bits has more heads than a grid, which is told next.
        Pass::V3 => u32::try_from(problem.q_heads / problem.kv_heads)
            .map_or(1, |group| schedule::packed_heads(problem.q_rows as u32, group, variant.q_block)),
        _ => 1,
    }
}

fn grid(variant: &'static Variant, problem: &Problem, packed_heads: u32, multiprocessors: u32) -> Result<u32> {
    let too_large = |needed| Error::GridTooLarge { symbol: variant.entry.symbol, needed, limit: MAX_GRID };
    // A lower bound that cannot overflow, before the exact number in 64 bits: a thread block owns rows of one head only.
    let heads = problem.batch as u128 * problem.q_heads as u128;
    if heads > MAX_GRID.into() {
        return Err(too_large(heads));
    }
    // At most 2^31 heads and 2^29 rows: only the tiles of the naive scores can pass 64 bits, so count their rows first.
    let (batch, heads) = (problem.batch as u64, problem.q_heads as u64 / u64::from(packed_heads));
    let q_rows = problem.q_rows as u64 * u64::from(packed_heads);
    let per_row = variant.ctas(batch, heads, q_rows, variant.kv_block.max(1).into(), multiprocessors);
    if per_row > MAX_GRID {
        return Err(too_large(per_row.into()));
    }
    let ctas = variant.ctas(batch, heads, q_rows, problem.kv_rows as u64, multiprocessors);
    u32::try_from(ctas).ok().filter(|&ctas| u64::from(ctas) <= MAX_GRID).ok_or_else(|| too_large(ctas.into()))
}
