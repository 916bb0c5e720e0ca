//! The parameter structs of the kernels, with holes where addresses go.

use super::options::log2_of;
use super::problem::Sizes;
use super::request::{Placed, Request, Row, Tensors};
use crate::error::Operand;
pub(super) use crate::plain::bytes_of;
use crate::plain::plain;
use crate::plan::{Binding, Buffer, Params};
use crate::score::{BoundProgram, Word};
use crate::tensor_map::TensorGeometry;
use kernel_spec::copy_engine::{ALIGNMENT, BOX_COLS, WRAPPED};
use kernel_spec::families::backward::{
    BackwardParams, FusedParams, NaiveBackwardParams, PackedBackwardParams, SinkParams,
};
use kernel_spec::families::blocks::{ClassesParams, ListsParams};
use kernel_spec::families::forward::features::{BLOCKS, FIRST_WORD, SINK};
use kernel_spec::families::merge::{MergeParams, PartParams};
use kernel_spec::families::sequences::{
    AppendParams, PagesParams, SequenceTable, SequencesParams, SplitV3Params, TilesParams,
};
use kernel_spec::layout::CHUNK_BYTES;
use kernel_spec::schedule::{Schedule, Work};
use kernel_spec::{Band, DType, ForwardParams, Kernel, NaiveParams, Pass, TensorMap, TensorParams, V3Params};
use std::mem::offset_of;

/// The buffers of the naive kernel, in this order.
const SCORES: Binding = Binding::Buffer(0);
const PROBS: Binding = Binding::Buffer(1);

/// The only buffer of v3, where keys come in the order of lists.
const LISTS: Binding = Binding::Buffer(0);

/// Device memory that a kernel needs besides its tensors, and the bytes of all of it.
pub(super) fn buffers(kernel: Kernel, sizes: &Sizes) -> (Vec<Buffer>, u128) {
    let list = match kernel {
        Kernel::Naive => {
            let scores = sizes.score_rows() * sizes.score_stride() as u128;
            let buffer = |name, dtype: DType, reason| (name, scores * dtype.bytes() as u128, reason);
            vec![
                buffer("scores", DType::F32, "the first pass writes them, the second reads them"),
                buffer("probabilities", sizes.dtype, "the second pass writes them, the third reads them"),
            ]
        }
        // Softmax over tiles needs none.
        _ => Vec::new(),
    };
    let needed = list.iter().map(|(_, bytes, _)| bytes).sum();
    // What does not fit is refused by the plan, with the sum above.
    let buffers = list.into_iter().map(|(name, bytes, reason)| Buffer { name, bytes: bytes as u64, reason });
    (buffers.collect(), needed)
}

/// The parameters of a row.
pub(super) fn of(request: &Request<'_>, row: &Row) -> Params {
    let forward = forward_params(request);
    match row.variant.pass {
        Pass::Scores | Pass::Softmax | Pass::Output => {
            let naive = NaiveParams {
                forward,
                scores: 0,
                probs: 0,
                score_stride: request.sizes.score_stride() as u64,
                // Fits: a thread block of the softmax pass has four of them, and the grid fits.
                score_rows: request.sizes.score_rows() as u64,
            };
            // Whole score rows move in pieces.
            let alignment = CHUNK_BYTES as u64;
            Params::new(bytes_of(&naive))
                .address(offset_of!(NaiveParams, scores), SCORES, alignment)
                .address(offset_of!(NaiveParams, probs), PROBS, alignment)
                .with_forward(offset_of!(NaiveParams, forward), request, &forward)
        }
        Pass::V3 => v3(request, row, forward),
        // What all passes need is all that the others take.
        _ => Params::new(bytes_of(&forward)).with_forward(0, request, &forward),
    }
}

/// How the thread blocks of a row of v3 share out the tiles.
fn schedule(request: &Request<'_>, row: &Row) -> Schedule {
    let Sizes { batch, q_rows, kv_rows, q_heads, kv_heads, head_dim, dtype, .. } = request.sizes;
    // The plan has bounded the tiles, and with them the sequences.
    let work = Work {
        batch: batch as u32,
        q_heads: q_heads as u32,
        group: (q_heads / kv_heads) as u32,
        packed: row.packed_heads,
        q_rows: q_rows as u32,
        q_block: row.variant.q_block,
        kv_head_bytes: 2 * (kv_rows * head_dim * dtype.bytes()) as u64,
        uneven: hides_something(request.attention.mask.band(), q_rows, kv_rows),
    };
    Schedule::new(&work, row.ctas)
}

/// Slots of the schedule of a row of v3: a round of all thread blocks may have idle ones.
pub(super) fn slots(request: &Request<'_>, row: &Row) -> u64 {
    u64::from(schedule(request, row).rounds) * u64::from(row.ctas)
}

fn v3(request: &Request<'_>, row: &Row, forward: ForwardParams) -> Params {
    let (variant, packed) = (row.variant, row.packed_heads);
    let none = TensorMap([0; 16]);
    let params = V3Params { q: none, k: none, v: none, forward, schedule: schedule(request, row) };
    let Tensors { q, k, v, .. } = &request.tensors;
    let map =
        |params: Params, offset, operand, geometry| params.map(offset, Binding::Operand(operand), ALIGNMENT, geometry);
    let params = Params::new(bytes_of(&params));
    let params = map(params, offset_of!(V3Params, q), Operand::Q, geometry(q, variant.q_block, packed));
    let params = map(params, offset_of!(V3Params, k), Operand::K, geometry(k, variant.kv_block, 1));
    let params = map(params, offset_of!(V3Params, v), Operand::V, geometry(v, variant.kv_block, 1));
    let params = params.with_forward(offset_of!(V3Params, forward), request, &forward);
    if !row.variant.is_listed() {
        return params;
    }
    let lists = offset_of!(V3Params, forward) + offset_of!(ForwardParams, features) + in_features(BLOCKS);
    params.address(lists, LISTS, CHUNK_BYTES as u64)
}

impl Params {
    /// The holes of the struct that every kernel's parameters hold, `offset` bytes from their start.
    pub(super) fn with_forward(self, offset: usize, request: &Request<'_>, forward: &ForwardParams) -> Params {
        self.with_addresses(offset, request, forward, Binding::Operand(Operand::Q))
    }

    /// The same, of queries that are read from `q`.
    pub(super) fn with_addresses(
        self,
        offset: usize,
        request: &Request<'_>,
        forward: &ForwardParams,
        q: Binding,
    ) -> Params {
        // Addresses that the call may have are those for which the kernel was told that rows move in pieces, or not.
        let bytes = |aligned: u32| if aligned == 1 { CHUNK_BYTES } else { request.sizes.dtype.bytes() } as u64;
        let (inputs, out) = (bytes(forward.aligned), bytes(forward.out_aligned));
        let tensor = |params: Params, at, operand, bytes| params.address(offset + at, Binding::Operand(operand), bytes);
        let params = self.address(offset + offset_of!(ForwardParams, q.address), q, inputs);
        let params = tensor(params, offset_of!(ForwardParams, k.address), Operand::K, inputs);
        let params = tensor(params, offset_of!(ForwardParams, v.address), Operand::V, inputs);
        let params = tensor(params, offset_of!(ForwardParams, out.address), Operand::Out, out);
        let params = params.with_options(offset, request);
        if !request.attention.lse {
            return params;
        }
        let lse = offset + offset_of!(ForwardParams, lse);
        params.address(lse, Binding::Operand(Operand::Lse), DType::F32.bytes() as u64)
    }
}

impl Params {
    /// The addresses of the sinks and of the tensors that a program reads, in the [`ForwardParams`] that start at `offset`.
    pub(super) fn with_options(self, offset: usize, request: &Request<'_>) -> Params {
        let features = offset + offset_of!(ForwardParams, features);
        let params = self.with_program_words(features, request.attention.changing_program());
        if request.attention.sink.is_none() {
            return params;
        }
        params.address(features + in_features(SINK), Binding::Operand(Operand::Sink), DType::F32.bytes() as u64)
    }

    /// The addresses of the tensors that a program reads, if there is one, in a block of features at `offset`.
    pub(super) fn with_program_words(self, offset: usize, program: Option<&BoundProgram<'_>>) -> Params {
        let words = program.map_or(&[][..], BoundProgram::words);
        (FIRST_WORD..).zip(words).fold(self, |params, (slot, word)| match *word {
            Word::Address(tensor, bytes) => {
                params.address(offset + in_features(slot), Binding::Operand(Operand::ProgramTensor(tensor)), bytes)
            }
            Word::Axis(_) => params,
        })
    }
}

/// Where the value of a slot is in a block of features: behind the set, which is as long as a slot.
const fn in_features(slot: u32) -> usize {
    size_of::<u64>() * (1 + slot as usize)
}

/// The smallest number above 0, 2^-149. It leaves every score that f32 holds within 5e-7 of 0; the smallest normal number would not:
/// from 1e31 on, scores times it are more than the log-sum-exp's tolerance.
const SMALLEST_SCALE: f32 = f32::from_bits(1);

pub(super) fn forward_params(request: &Request<'_>) -> ForwardParams {
    let Sizes { q_rows, kv_rows, q_heads, kv_heads, head_dim, .. } = request.sizes;
    let Tensors { q, k, v, out } = &request.tensors;
    // With a softcap the kernels multiply tanh(scores |scale| / cap) with it, where they multiply scores with it otherwise.
    let has_program = request.scaled_by_program();
    // What comes out of a program is scaled.
    let factor = if has_program { 1.0 } else { request.softcap.unwrap_or(request.scale.abs()) };
    // None of the conversions loses anything: Sizes::validate bounds rows and head_dim, the grid bounds the heads.
    ForwardParams {
        q: tensor_params(q),
        k: tensor_params(k),
        v: tensor_params(v),
        out: tensor_params(out),
        lse: 0,
        q_rows: q_rows as u32,
        kv_rows: kv_rows as u32,
        q_heads: q_heads as u32,
        group: (q_heads / kv_heads) as u32,
        dim_qk: head_dim as u32,
        dim_v: head_dim as u32,
        // Not 0: the product with a hidden score, minus infinity, would be NaN.
        scale_log2: log2_of(factor).max(SMALLEST_SCALE),
        band: request.attention.mask.band(),
        aligned: [q, k, v].iter().all(|tensor| tensor.rows_start_at(CHUNK_BYTES)).into(),
        out_aligned: out.rows_start_at(CHUNK_BYTES).into(),
        negate: (request.scale < 0.0 && !has_program).into(),
        features: request.features(),
    }
}

/// Whether some row sees less than all keys: the first misses the last key, or the last the first.
pub(super) fn hides_something(band: Band, q_rows: usize, kv_rows: usize) -> bool {
    i64::from(band.right) < q_rows as i64 - 1 || i64::from(band.left) < kv_rows as i64 - 1
}

pub(super) fn tensor_params(tensor: &Placed) -> TensorParams {
    // Nothing is stepped over along an axis of extent 1, so its stride may be anything. The kernels form the address of rows
    // that do not exist, without reading them, and even such an address has to be aligned: 0 keeps it so.
    let [batch_stride, row_stride, head_stride, _] =
        tensor.axes.map(|(extent, stride)| if extent > 1 { stride as u64 } else { 0 });
    TensorParams { address: 0, batch_stride, row_stride, head_stride }
}

/// What the copy engine has to know of a tensor that the plan has found fit for it, in boxes of `box_rows` rows: whole rows of `packed`
/// heads each.
pub(super) fn geometry(tensor: &Placed, box_rows: u32, packed: u32) -> TensorGeometry {
    let [batch, rows, heads, (dims, _)] = tensor.axes;
    let bytes = tensor.dtype.bytes();
    let axes = if packed == 1 { [rows, heads, batch] } else { [heads, rows, batch] };
    let box_extents = if packed == 1 { [box_rows, 1] } else { [packed, box_rows / packed] };
    // The stride of an axis of extent 1 is never used and may be anything; the driver checks it all the same.
    let stride = |(extent, stride): (usize, usize)| if extent > 1 { stride * bytes } else { dims * bytes } as u64;
    let [inner, outer, last] = axes.map(|(extent, _)| extent as u64);
    TensorGeometry {
        address: 0,
        wraps: false,
        dtype: tensor.dtype,
        extents: [dims as u64, inner, outer, last],
        byte_strides: axes.map(stride),
        box_extents: [BOX_COLS, box_extents[0], box_extents[1], 1],
    }
}

/// [`geometry`] of sequences, of which each box reads its own: the map wraps, see [`WRAPPED`]. From one batch entry to the next there are
/// `step` rows.
pub(super) fn listed_geometry(tensor: &Placed, box_rows: u32, packed: u32, step: u32) -> TensorGeometry {
    let whole = geometry(tensor, box_rows, packed);
    let [(entries, _), (rows, _), ..] = tensor.axes;
    let row_axis = if packed == 1 { 0 } else { 1 };
    let row_bytes = whole.byte_strides[row_axis];
    let [heads_and_rows @ .., _] = whole.byte_strides;
    let mut extents = whole.extents;
    extents[1 + row_axis] = WRAPPED.into();
    extents[3] = (entries as u64 - 1) * u64::from(step) + rows as u64 + 1;
    TensorGeometry { wraps: true, extents, byte_strides: [heads_and_rows[0], heads_and_rows[1], row_bytes], ..whole }
}

plain! {
    TensorMap { 0 }
    TensorParams { address, batch_stride, row_stride, head_stride }
    Band { left, right }
    ForwardParams {
        q, k, v, out, lse, q_rows, kv_rows, q_heads, group, dim_qk, dim_v, scale_log2, band, aligned, out_aligned, negate, features
    }
    NaiveParams { scores, probs, score_stride, score_rows, forward }
    Schedule {
        q_blocks, rounds, last_section, section_heads, last_heads, section_slots, sequence_heads, group, alternate, packed_log2
    }
    V3Params { q, k, v, schedule, forward }
    BackwardParams {
        q, k, v, out, dout, dq, dk, dv, lse, dlse, statistics, sums, counters, sum_cols, q_rows, kv_rows, padded_rows, q_heads, group, dim_qk, dim_v,
        scale, scale_log2, lse_to_log2, band, aligned, dq_aligned, dkv_aligned, features
    }
    SinkParams { table, lse, statistics, sink, dsink, q_rows, padded_rows, q_heads, unused, features }
    FusedParams { q, k, v, dout, schedule, backward }
    SequenceTable {
        q_starts, q_used, kv_starts, kv_used, kv_first, kv_entries, pages, table_stride, batch, kv_entry_count, new_starts, page_rows,
        new_rows
    }
    SequencesParams {
        table, partial, statistics, tokens, split_keys, splits, q_tiles, head_tiles, group_tiles, packed_log2, q_block, forward
    }
    TilesParams {
        table, tiles, place_step, split_step, q_rows, kv_rows, q_step, kv_step, q_block, kv_block, band, packed_log2, room, splits, split_keys,
        features
    }
    PagesParams { table, table_stride, page_rows, count, page_step, piece_rows, unused }
    SplitV3Params { pages, v3 }
    AppendParams {
        table, q, turned, new_k, new_v, k, v, cos, sin, positions, q_rows, kv_rows, q_heads, kv_heads, dim, turned_dims, interleaved,
        position_count, q_advances, features
    }
    PartParams { out, lse }
    ClassesParams { classes, q_rows, kv_rows, key_pairs, row_units, heads, count, features }
    ListsParams {
        classes, lists, q_rows, kv_rows, q_block, kv_block, tiles, row_units, key_pairs, words, head_words, batch_words, count, band, unused,
        features
    }
    MergeParams {
        parts, out, lse, count, all_rows, rows, heads, row_threads, block_rows, aligned, out_aligned, features
    }
    NaiveBackwardParams { probs, factors, score_stride, with_dout, backward }
    PackedBackwardParams { table, tiles, tokens, backward }
}
