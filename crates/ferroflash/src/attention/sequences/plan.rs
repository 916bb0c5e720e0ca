//! What a call over sequences will do, decided before it does it.

use super::super::blocks;
use super::super::options::{Attention, KernelChoice};
use super::super::plan::{Plan, program_name};
use super::super::problem::{Problem, Sequences, Sizes};
use super::super::request::{Placed, Request, Tensors};
use super::hopper;
use super::launches::{DECODE_ROWS, Launches, check_grid, features, find, is_decode, paged, problem_of};
use super::params::{self, Arrays, Cut};
use super::sizes::SequenceSizes;
use super::split::{clusters, split};
use crate::device::DeviceInfo;
use crate::error::Operand;
use crate::error::{Error, Result, Unsupported};
use crate::plan::{Binding, Buffer, Step, check_device, check_hopper};
use crate::tensor::{Layout, Shape};
use kernel_spec::families::sequences;
use kernel_spec::{DType, FeatureSet, Kernel, Pass, Variant};

/// Tensors that a call appends.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewTensors {
    pub(super) k: Placed,
    pub(super) v: Placed,
}

/// The sizes of a problem of packed, cached or paged sequences, validated, and the arrays of numbers that it has.
pub(crate) fn read(problem: &Problem) -> Result<(SequenceSizes, Arrays)> {
    problem.check_one_dim_and_type()?;
    let sizes = problem.sequence_sizes().expect("uniform sequences have a plan of their own");
    sizes.validate()?;
    let arrays = match problem.sequences {
        Sequences::Packed { .. } => Arrays { kv_starts: true, ..Arrays::default() },
        Sequences::Paged { width, .. } => Arrays { kv_used: true, pages: Some(width), ..Arrays::default() },
        _ => Arrays { kv_used: true, ..Arrays::default() },
    };
    Ok((sizes, Arrays { q_starts: sizes.packed_q, ..arrays }))
}

/// Plans a problem of packed, cached or paged sequences, for contiguous tensors and lengths on the device.
pub(crate) fn plan_contiguous(attention: &Attention, device: &DeviceInfo, problem: &Problem) -> Result<Plan> {
    let (sizes, arrays) = read(problem)?;
    let SequenceSizes { q_heads, kv_heads, head_dim, dtype, .. } = sizes;
    let batch = |packed| if packed { 1 } else { sizes.batch };
    let placed = |batch, rows, heads| Placed::contiguous(Shape::new(batch, rows, heads, head_dim), Layout::Bshd, dtype);
    let q = placed(batch(sizes.packed_q), sizes.q_rows, q_heads);
    let k = placed(sizes.kv_entries, sizes.page_rows.unwrap_or(sizes.kv_rows), kv_heads);
    plan(attention, device, &sizes, &arrays, Tensors { q, k, v: k, out: q }, None)
}

/// Plans a call whose sizes have been validated, for these tensors.
pub(super) fn plan(
    attention: &Attention,
    device: &DeviceInfo,
    sizes: &SequenceSizes,
    arrays: &Arrays,
    tensors: Tensors,
    new: Option<NewTensors>,
) -> Result<Plan> {
    let scale = attention.scale_for(sizes.head_dim)?;
    let softcap = attention.softcap_for(scale)?;
    blocks::check_none(attention, problem_of(sizes).sequences.name())?;
    attention.check_sink(sizes.q_heads)?;
    attention.check_no_dropout(problem_of(sizes).sequences.name())?;
    // As a problem of one sequence or equal ones: what parameters and checks take of it.
    let whole = Sizes {
        batch: sizes.batch,
        q_rows: sizes.q_rows,
        kv_rows: sizes.kv_rows,
        q_heads: sizes.q_heads,
        kv_heads: sizes.kv_heads,
        head_dim: sizes.head_dim,
        dtype: sizes.dtype,
    };
    let mut request = Request { attention, sizes: whole, scale, softcap, dropout: None, keys_per_row: 0, tensors };
    let turned = arrays.rotary.and(new).map(|_| {
        let batch = if sizes.packed_q { 1 } else { sizes.batch };
        Placed::contiguous(Shape::new(batch, sizes.q_rows, sizes.q_heads, sizes.head_dim), Layout::Bshd, sizes.dtype)
    });
    let attended = turned.unwrap_or(request.tensors.q);
    let tensors = Tensors { q: attended, ..tensors };
    // Pages are none of v3's features: its load warp asks the parameters.
    let scored = request.features().set();
    let attend = match hopper::choose(attention, device, sizes, arrays, &tensors, scored)? {
        Some(choice) => Attend::Hopper(choice),
        None => Attend::Portable(Portable::of(attention, device, sizes, features(&request, arrays))?),
    };

    let mut launches = Launches::default();
    let mut q = Binding::Operand(Operand::Q);
    if let Some(NewTensors { k, v }) = new {
        if let Some(placed) = turned {
            let elements = (sizes.tokens() * sizes.q_heads * sizes.head_dim) as u64;
            let bytes = elements * sizes.dtype.bytes() as u64;
            q = launches.buffer("turned queries", bytes, "the first step writes them, the next reads them");
            launches.append(&request, sizes, arrays, [&k, &v], Some((&placed, q)))?;
            request.tensors.q = placed;
        } else {
            launches.append(&request, sizes, arrays, [&k, &v], None)?;
        }
    }
    let (kernel, splits, packed_heads, reason) = match attend {
        Attend::Hopper(choice) => {
            choice.launch(&request, device, sizes, arrays, q, &mut launches)?;
            (Kernel::V3, choice.splits, choice.packed_heads, choice.reason())
        }
        Attend::Portable(portable) => {
            portable.launch(&request, sizes, arrays, q, &mut launches)?;
            let Portable { cut, reason, .. } = portable;
            (Kernel::V2, cut.splits, 1 << cut.packed_log2, reason)
        }
    };
    let Launches { buffers, steps } = launches;
    let needed: u128 = buffers.iter().map(|buffer: &Buffer| u128::from(buffer.bytes)).sum();
    if needed > device.memory_bytes.into() {
        return Err(Error::WorkspaceTooLarge { kernel, needed, available: device.memory_bytes });
    }
    let lse_bytes = if attention.lse { (sizes.tokens() * sizes.q_heads * DType::F32.bytes()) as u64 } else { 0 };
    let problem = problem_of(sizes);
    let plan = Plan {
        problem,
        mask: attention.mask,
        scale,
        softcap,
        program: program_name(attention),
        sink: attention.sink.is_some(),
        dropout: None,
        kernel,
        steps,
        buffers,
        packed_heads,
        splits,
        lse_bytes,
        reason,
    };
    tracing::debug!(problem = %plan.problem, splits = plan.splits, reason = plan.reason, "planned");
    Ok(plan)
}

/// What attends.
enum Attend {
    Hopper(hopper::Choice),
    Portable(Portable),
}

/// Decode or prefill.
struct Portable {
    row: &'static Variant,
    reason: String,
    cut: Cut,
}

impl Portable {
    fn of(attention: &Attention, device: &DeviceInfo, sizes: &SequenceSizes, features: FeatureSet) -> Result<Portable> {
        let (row, reason) = choose(attention, device, sizes, features)?;
        check_device(&row.entry, device)?;
        let cut = split(attention, device, sizes, row)?;
        check_grid(&row.entry, cut.places(sizes).saturating_mul(cut.splits.into()))?;
        Ok(Portable { row, reason, cut })
    }

    /// Adds the launches, and the memory between them. Queries are read from `q`.
    fn launch(
        &self,
        request: &Request<'_>,
        sizes: &SequenceSizes,
        arrays: &Arrays,
        q: Binding,
        launches: &mut Launches,
    ) -> Result<()> {
        let Portable { row, cut, .. } = self;
        let in_clusters = row.pass == Pass::ClusterDecode;
        let partial = (cut.splits > 1 && !in_clusters).then(|| launches.partial(sizes, cut.splits));
        // Nothing to do where there are no queries. Counted when the row was chosen.
        let ctas = if sizes.tokens() == 0 { 0 } else { (cut.places(sizes) * u64::from(cut.splits)) as u32 };
        let tile = format!("{} x {}: {}", row.q_block, row.kv_block, row.reason);
        let params = params::attend(request, sizes, arrays, cut, q, partial).1;
        let step = Step::new(request.specialised(row, paged(arrays)), ctas, tile, params);
        launches.steps.push(if in_clusters { step.in_clusters(cut.splits) } else { step });
        match partial {
            Some(partial) => launches.merge(request, sizes, arrays, cut, q, partial),
            None => Ok(()),
        }
    }
}

/// The row that attends, and why.
fn choose(
    attention: &Attention,
    device: &DeviceInfo,
    sizes: &SequenceSizes,
    features: FeatureSet,
) -> Result<(&'static Variant, String)> {
    match attention.kernel {
        KernelChoice::Auto | KernelChoice::Kernel(Kernel::V2) => {}
        KernelChoice::Variant(row) if matches!(row.pass, Pass::Decode | Pass::ClusterDecode | Pass::Prefill) => {
            if row.holds(sizes.dtype, [sizes.head_dim as u32; 2]) {
                return Ok((row, "asked for".to_owned()));
            }
            let (symbol, dtype, head_dim) = (row.entry.symbol, row.dtype, row.head_dim());
            return Err(Error::VariantMismatch { symbol, dtype, head_dim, problem: problem_of(sizes).to_string() });
        }
        other => {
            let kernel = other.kernel().expect("a choice");
            let reason = Unsupported::Sequences { found: problem_of(sizes).sequences.name(), accepted: "uniform" };
            return Err(Error::KernelUnsupported { kernel, reason });
        }
    }
    let group = sizes.q_heads / sizes.kv_heads;
    let rows = sizes.longest_q.saturating_mul(group);
    if is_decode(sizes) {
        let reason =
            format!("{rows} query rows of a group share its keys: a tile of {DECODE_ROWS}, bound by reading the keys");
        let cluster = sequences::find(Pass::ClusterDecode, sizes.dtype, sizes.head_dim as u32, 0, features)
            .filter(|row| check_hopper(device).is_ok() && clusters(attention, device, sizes, row) > 1);
        return match cluster {
            Some(row) => Ok((row, format!("{reason}; few of them, so a cluster splits the keys"))),
            None => Ok((find(Pass::Decode, sizes, features)?, reason)),
        };
    }
    let reason = format!("{rows} query rows of a group share its keys: v2's tiles");
    Ok((find(Pass::Prefill, sizes, features)?, reason))
}
