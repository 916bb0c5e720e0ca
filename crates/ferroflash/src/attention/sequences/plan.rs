//! What a call over sequences will do, decided before it does it.

use super::super::choose::{MAX_GRID, check_copies, check_device, check_hopper};
use super::super::options::{Attention, KernelChoice, Splits};
use super::super::plan::Plan;
use super::super::problem::{Problem, QueryRows, Sequences, Sizes};
use super::super::request::{Placed, Request, Tensors};
use super::check::SequenceSizes;
use super::params::{self, Arrays};
use super::split::{clusters, keys_per_row, split};
use crate::device::DeviceInfo;
use crate::error::Operand;
use crate::error::{Error, Result, Unsupported};
use crate::plan::{Binding, Buffer, Step};
use crate::specialise::Specialised;
use crate::tensor::{Layout, Shape};
use kernel_spec::families::forward::features::{PAGED, SOFTCAP};
use kernel_spec::families::sequences::{self, TileEntry};
use kernel_spec::schedule::{self, MAX_TILES};
use kernel_spec::{DType, FeatureSet, Kernel, Pass, Variant};

/// Query rows, over the heads of a group, up to which a tile of decode holds them.
const DECODE_ROWS: usize = 16;

/// Rows of a thread block of append: one a warp.
const APPEND_ROWS: u64 = 4;

/// Tensors that a call appends.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewTensors {
    pub(super) k: Placed,
    pub(super) v: Placed,
}

/// The sizes of a problem of packed, cached or paged sequences, validated, and the arrays of numbers that it has.
pub(crate) fn read(problem: &Problem) -> Result<(SequenceSizes, Arrays)> {
    problem.check_one_dim_and_type()?;
    let Problem { q_heads, kv_heads, dim_qk: head_dim, dtype, .. } = *problem;
    let none = SequenceSizes {
        batch: 0,
        q_rows: 0,
        packed_q: false,
        kv_rows: 0,
        kv_entries: 1,
        page_rows: None,
        packed_kv: false,
        q_heads,
        kv_heads,
        head_dim,
        dtype,
        longest_q: 0,
        longest_kv: 0,
        new_rows: 0,
        packed_new: false,
    };
    let with_queries = |sizes: SequenceSizes, rows: QueryRows| match rows {
        QueryRows::Each(q_rows) => SequenceSizes { q_rows, longest_q: q_rows, ..sizes },
        QueryRows::Packed(q_rows) => SequenceSizes { q_rows, longest_q: q_rows, packed_q: true, ..sizes },
    };
    let (sizes, arrays) = match problem.sequences {
        Sequences::Packed { batch, q_rows, kv_rows } => (
            SequenceSizes {
                batch,
                kv_rows,
                packed_kv: true,
                longest_kv: kv_rows,
                ..with_queries(none, QueryRows::Packed(q_rows))
            },
            Arrays { q_starts: true, kv_starts: true, ..Arrays::default() },
        ),
        Sequences::Cached { batch, q_rows, capacity } => (
            SequenceSizes {
                batch,
                kv_entries: batch,
                kv_rows: capacity,
                longest_kv: capacity,
                ..with_queries(none, q_rows)
            },
            Arrays { kv_used: true, ..Arrays::default() },
        ),
        Sequences::Paged { batch, q_rows, pages, page_rows, width } => {
            let kv_rows = width.saturating_mul(page_rows);
            let sizes = SequenceSizes { batch, kv_entries: pages, kv_rows, longest_kv: kv_rows, ..none };
            let sizes = SequenceSizes { page_rows: Some(page_rows), ..with_queries(sizes, q_rows) };
            (sizes, Arrays { kv_used: true, pages: Some(width), ..Arrays::default() })
        }
        Sequences::Uniform { .. } => unreachable!("has a plan of its own"),
    };
    sizes.validate()?;
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
    if let Some(row) = v3_row(attention, device, sizes, &tensors, softcap.is_some())? {
        let request = Request { attention, sizes: whole, scale, softcap, keys_per_row: 0, tensors };
        return packed(&request, device, sizes, arrays, row);
    }
    let mut request = Request { attention, sizes: whole, scale, softcap, keys_per_row: 0, tensors };
    let (row, reason) = choose(attention, device, sizes, arrays, softcap.is_some())?;
    let features = row.entry.accepts.intersection(features(arrays, softcap.is_some()));
    check_device(&row.entry, device)?;
    let cut = split(attention, device, sizes, row)?;
    let places = cut.places(sizes);
    let ctas = places.saturating_mul(cut.splits.into());
    if ctas > MAX_GRID {
        return Err(Error::GridTooLarge { symbol: row.entry.symbol, needed: ctas.into(), limit: MAX_GRID });
    }

    let mut buffers = Vec::new();
    let mut steps = Vec::new();
    let mut q = Binding::Operand(Operand::Q);
    if let Some(NewTensors { k, v }) = new {
        let turned = arrays.rotary.map(|_| {
            let shape =
                Shape::new(if sizes.packed_q { 1 } else { sizes.batch }, sizes.q_rows, sizes.q_heads, sizes.head_dim);
            Placed::contiguous(shape, Layout::Bshd, sizes.dtype)
        });
        let turned_at = Binding::Buffer(buffers.len());
        let params =
            params::append(&request, sizes, arrays, [&k, &v], turned.as_ref().map(|placed| (placed, turned_at)));
        let mut rows = 2 * (sizes.new_tokens() * sizes.kv_heads) as u64;
        if let Some(placed) = turned {
            let elements = (sizes.tokens() * sizes.q_heads * sizes.head_dim) as u64;
            rows += (sizes.tokens() * sizes.q_heads) as u64;
            let (bytes, reason) =
                (elements * sizes.dtype.bytes() as u64, "the first step writes them, the next reads them");
            buffers.push(Buffer { name: "turned queries", bytes, reason });
            (q, request.tensors.q) = (turned_at, placed);
        }
        let pass = find(Pass::Append, sizes, FeatureSet::NONE)?;
        let ctas = rows.div_ceil(APPEND_ROWS);
        if ctas > MAX_GRID {
            return Err(Error::GridTooLarge { symbol: pass.entry.symbol, needed: ctas.into(), limit: MAX_GRID });
        }
        let kernel = Specialised::with_features(&pass.entry, features.intersection(pass.entry.accepts));
        steps.push(Step::new(kernel, ctas as u32, pass.reason.to_owned(), params));
    }
    let in_clusters = row.pass == Pass::ClusterDecode;
    let partial = (cut.splits > 1 && !in_clusters).then(|| {
        let rows = cut.splits as u128 * sizes.q_heads as u128 * sizes.tokens() as u128;
        let reason = "the splits of the keys write them, the last step puts them together";
        let (first, bytes) = (buffers.len(), [rows * sizes.head_dim as u128 * 4, rows * 8]);
        buffers.extend(
            ["sums of splits", "maxima and sums of weights"].into_iter().zip(bytes).map(|(name, bytes)| Buffer {
                name,
                bytes: u64::try_from(bytes).unwrap_or(u64::MAX),
                reason,
            }),
        );
        [Binding::Buffer(first), Binding::Buffer(first + 1)]
    });
    let needed: u128 = buffers.iter().map(|buffer: &Buffer| u128::from(buffer.bytes)).sum();
    if needed > device.memory_bytes.into() {
        return Err(Error::WorkspaceTooLarge { kernel: Kernel::V2, needed, available: device.memory_bytes });
    }
    let bind = || params::attend(&request, sizes, arrays, &cut, q, partial).1;
    // Nothing to do where there are no queries.
    let ctas = if sizes.tokens() == 0 { 0 } else { ctas as u32 };
    let tile = format!("{} x {}: {}", row.q_block, row.kv_block, row.reason);
    let step = Step::new(Specialised::with_features(&row.entry, features), ctas, tile, bind());
    steps.push(if in_clusters { step.in_clusters(cut.splits) } else { step });
    if partial.is_some() {
        let merge = find(Pass::Merge, sizes, features)?;
        let ctas = if sizes.tokens() == 0 { 0 } else { places as u32 };
        steps.push(Step::new(
            Specialised::with_features(&merge.entry, features),
            ctas,
            merge.reason.to_owned(),
            bind(),
        ));
    }
    let problem = problem_of(sizes);
    let lse_bytes = if attention.lse { (sizes.tokens() * sizes.q_heads * DType::F32.bytes()) as u64 } else { 0 };
    let plan = Plan {
        problem,
        mask: attention.mask,
        scale,
        softcap,
        kernel: Kernel::V2,
        steps,
        buffers,
        packed_heads: 1 << cut.packed_log2,
        splits: cut.splits,
        lse_bytes,
        reason,
    };
    tracing::debug!(problem = %plan.problem, splits = plan.splits, reason = plan.reason, "planned");
    Ok(plan)
}

/// The row of v3 that runs a call over packed sequences, or why there is none, where v3 is asked for.
fn v3_row(
    attention: &Attention,
    device: &DeviceInfo,
    sizes: &SequenceSizes,
    tensors: &Tensors,
    softcap: bool,
) -> Result<Option<&'static Variant>> {
    let asked = match attention.kernel {
        KernelChoice::Variant(row) if row.pass == Pass::PackedV3 => Some(row),
        // A step of generation for every sequence.
        KernelChoice::Auto if is_decode(sizes) => return Ok(None),
        KernelChoice::Auto | KernelChoice::Kernel(Kernel::V3) => None,
        _ => return Ok(None),
    };
    let Tensors { q, k, v, out } = tensors;
    let check = || {
        check_hopper(device)?;
        if !(sizes.packed_q && sizes.packed_kv) {
            return Err(Unsupported::Sequences { found: problem_of(sizes).sequences.name() });
        }
        if softcap {
            let (dtype, head_dim) = (sizes.dtype, sizes.head_dim);
            return Err(Unsupported::Feature { feature: "softcap", dtype, head_dim });
        }
        if !matches!(attention.splits, Splits::Auto | Splits::Count(1)) {
            return Err(Unsupported::Splits { found: format!("{:?}", attention.splits) });
        }
        if sizes.kv_rows == 0 {
            return Err(Unsupported::NoKeys);
        }
        [(Operand::Q, q), (Operand::K, k), (Operand::V, v), (Operand::Out, out)]
            .iter()
            .try_for_each(|(operand, placed)| check_copies(*operand, placed))?;
        let seen = keys_per_row(attention, sizes);
        let row = asked
            .or_else(|| sequences::find(Pass::PackedV3, sizes.dtype, sizes.head_dim as u32, seen, FeatureSet::NONE));
        let largest = |v: &&Variant| v.pass == Pass::PackedV3 && v.dtype == sizes.dtype;
        let largest = sequences::VARIANTS.iter().filter(largest).map(|v| v.dim_qk as usize).max();
        row.filter(|row| row.holds(sizes.dtype, [sizes.head_dim as u32; 2])).ok_or(match largest {
            Some(largest) => Unsupported::HeadDim { found: sizes.head_dim, largest },
            None => Unsupported::DType { found: sizes.dtype },
        })
    };
    match check() {
        Ok(row) => Ok(Some(row)),
        Err(_) if attention.kernel == KernelChoice::Auto => Ok(None),
        Err(reason) => Err(Error::KernelUnsupported { kernel: Kernel::V3, reason }),
    }
}

/// The plan of v3 over packed sequences: a list of their tiles, and the tiles.
fn packed(
    request: &Request<'_>,
    device: &DeviceInfo,
    sizes: &SequenceSizes,
    arrays: &Arrays,
    row: &'static Variant,
) -> Result<Plan> {
    let attention = request.attention;
    check_device(&row.entry, device)?;
    let group = (sizes.q_heads / sizes.kv_heads) as u32;
    let packed_heads = schedule::packed_heads(sizes.longest_q.max(1) as u32, group, row.q_block);
    let room = params::packed_tiles(sizes, row, packed_heads);
    let found = u128::from(room) * sizes.q_heads as u128;
    if found > MAX_TILES.into() {
        let reason = Unsupported::TooManyTiles { found, limit: MAX_TILES };
        return Err(Error::KernelUnsupported { kernel: Kernel::V3, reason });
    }
    let bytes = (room + 1) * size_of::<TileEntry>() as u64;
    let reason = "the first step lists the tiles of the sequences, the longest first, the next takes them in turn";
    let buffers = vec![Buffer { name: "tiles", bytes, reason }];
    let list = find(Pass::Tiles, &SequenceSizes { dtype: DType::F32, ..*sizes }, FeatureSet::NONE)?;
    let [list_params, row_params] = params::packed(request, sizes, arrays, row, Binding::Buffer(0));
    // Nothing to do where there are no queries.
    let ctas = |ctas: u64| if sizes.tokens() == 0 { 0 } else { ctas as u32 };
    let tiles = (room * sizes.q_heads as u64 / u64::from(packed_heads)).min(device.multiprocessors.into());
    let tile = format!("{} x {}: {}", row.q_block, row.kv_block, row.reason);
    let steps = vec![
        Step::new(Specialised::plain(&list.entry), ctas(1), list.reason.to_owned(), list_params),
        Step::new(Specialised::plain(&row.entry), ctas(tiles), tile, row_params),
    ];
    let lse_bytes = if attention.lse { (sizes.tokens() * sizes.q_heads * DType::F32.bytes()) as u64 } else { 0 };
    let reason =
        "packed sequences: asynchronous copies and products, and tiles in the order of their length".to_owned();
    let plan = Plan {
        problem: problem_of(sizes),
        mask: attention.mask,
        scale: request.scale,
        softcap: None,
        kernel: Kernel::V3,
        steps,
        buffers,
        packed_heads,
        splits: 1,
        lse_bytes,
        reason,
    };
    tracing::debug!(problem = %plan.problem, reason = plan.reason, "planned");
    Ok(plan)
}

/// The problem of a call, for plans and messages.
pub(crate) fn problem_of(sizes: &SequenceSizes) -> Problem {
    let SequenceSizes { batch, q_rows, kv_rows, q_heads, kv_heads, head_dim, dtype, .. } = *sizes;
    let rows = if sizes.packed_q { QueryRows::Packed(q_rows) } else { QueryRows::Each(q_rows) };
    let sequences = match sizes.page_rows {
        _ if sizes.packed_kv => Sequences::Packed { batch, q_rows, kv_rows },
        Some(page_rows) => {
            Sequences::Paged { batch, q_rows: rows, pages: sizes.kv_entries, page_rows, width: kv_rows / page_rows }
        }
        None => Sequences::Cached { batch, q_rows: rows, capacity: kv_rows },
    };
    Problem::new(sequences, q_heads, kv_heads, head_dim, dtype)
}

/// The features of a call.
fn features(arrays: &Arrays, softcap: bool) -> FeatureSet {
    let on = [(softcap, SOFTCAP), (arrays.pages.is_some(), PAGED)].into_iter().filter(|(on, _)| *on);
    on.fold(FeatureSet::NONE, |set, (_, slot)| set.union(FeatureSet::of(slot)))
}

fn find(pass: Pass, sizes: &SequenceSizes, features: FeatureSet) -> Result<&'static Variant> {
    // validated: at most MAX_HEAD_DIM
    sequences::find(pass, sizes.dtype, sizes.head_dim as u32, 0, features)
        .ok_or(Error::HeadDim { found: sizes.head_dim })
}

/// The row that attends, and why.
fn choose(
    attention: &Attention,
    device: &DeviceInfo,
    sizes: &SequenceSizes,
    arrays: &Arrays,
    softcap: bool,
) -> Result<(&'static Variant, String)> {
    let features = features(arrays, softcap);
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
            let reason = Unsupported::Sequences { found: problem_of(sizes).sequences.name() };
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

/// Whether a tile of decode holds the query rows of a sequence.
fn is_decode(sizes: &SequenceSizes) -> bool {
    let group = sizes.q_heads / sizes.kv_heads;
    sizes.longest_q == 1 || sizes.longest_q.saturating_mul(group) <= DECODE_ROWS
}
