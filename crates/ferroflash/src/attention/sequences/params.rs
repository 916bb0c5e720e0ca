//! The parameter structs of the kernels for sequences, with holes where addresses go.

use super::super::params::{bytes_of, forward_params, tensor_params};
use super::super::request::{Placed, Request};
use super::sizes::SequenceSizes;
use crate::error::Operand;
use crate::plan::{Binding, Params};
use kernel_spec::families::forward::features::PAGED;
use kernel_spec::families::sequences::{AppendParams, SequenceTable, SequencesParams, packed_log2};
use kernel_spec::layout::CHUNK_BYTES;
use kernel_spec::{DType, Divisor, FORWARD_SLOTS, Features, ForwardParams, Variant};
use std::mem::offset_of;

/// The arrays of numbers that a call has.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Arrays {
    pub(super) q_starts: bool,
    pub(super) q_used: bool,
    pub(super) kv_starts: bool,
    pub(super) kv_used: bool,
    pub(super) kv_first: bool,
    pub(super) kv_entries: bool,
    /// Numbers from one sequence's pages to the next one's.
    pub(super) pages: Option<usize>,
    pub(super) new_starts: bool,
    pub(super) rotary: Option<RotaryShape>,
}

/// What a plan has to know of a rotary embedding.
#[derive(Clone, Copy, Debug)]
pub(super) struct RotaryShape {
    pub(super) positions: usize,
    pub(super) turned_dims: usize,
    pub(super) interleaved: bool,
    /// Whether positions are given.
    pub(super) given: bool,
    /// Whether each query row has a position of its own.
    pub(super) q_advances: bool,
}

/// How the work of a call is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// Logarithm to base 2 of the query heads of a tile.
    pub(super) packed_log2: u32,
    /// Rows of a tile.
    pub(super) q_block: u32,
    /// Tiles of heads of a group.
    pub(super) group_tiles: u32,
    /// Tiles of query rows, at most.
    pub(super) tiles: u64,
    /// Splits of the keys.
    pub(super) splits: u32,
    /// Keys of a split, or 0.
    pub(super) split_keys: u32,
}

impl Cut {
    /// For a row of decode or prefill, without splits.
    pub(super) fn of(row: &Variant, sizes: &SequenceSizes) -> Cut {
        let q_block = row.q_block;
        // Below MAX_ROWS each.
        let [longest, group] = [sizes.longest_q, sizes.q_heads / sizes.kv_heads].map(|x| x as u32);
        let packed_log2 = packed_log2(longest.max(1), group, q_block);
        let tiles_of = |rows: usize| ((rows as u64) << packed_log2).div_ceil(q_block.into());
        // Each packed sequence has at most one tile that is not full.
        let tiles = if sizes.packed_q {
            ((sizes.q_rows as u64) << packed_log2) / u64::from(q_block) + sizes.batch as u64
        } else {
            sizes.batch as u64 * tiles_of(sizes.q_rows)
        };
        Cut { packed_log2, q_block, group_tiles: group.div_ceil(1 << packed_log2), tiles, splits: 1, split_keys: 0 }
    }

    /// Tiles of rows and heads.
    pub(super) fn places(&self, sizes: &SequenceSizes) -> u64 {
        self.tiles.saturating_mul(u64::from(self.group_tiles)).saturating_mul(sizes.kv_heads as u64)
    }
}

/// The table of a call, without addresses.
pub(crate) fn table(sizes: &SequenceSizes, arrays: &Arrays) -> SequenceTable {
    SequenceTable {
        table_stride: arrays.pages.unwrap_or(0) as u64,
        kv_entry_count: sizes.kv_entries as u32,
        page_rows: Divisor::new(sizes.page_rows.unwrap_or(1) as u32),
        new_rows: sizes.new_rows as u32,
        ..SequenceTable::uniform(sizes.batch as u32)
    }
}

/// Fills the holes of a table that starts `offset` bytes into a struct.
pub(crate) fn with_table(params: Params, offset: usize, arrays: &Arrays) -> Params {
    let holes = [
        (arrays.q_starts, offset_of!(SequenceTable, q_starts), Operand::QStarts),
        (arrays.q_used, offset_of!(SequenceTable, q_used), Operand::QUsed),
        (arrays.kv_starts, offset_of!(SequenceTable, kv_starts), Operand::KvStarts),
        (arrays.kv_used, offset_of!(SequenceTable, kv_used), Operand::KvUsed),
        (arrays.kv_first, offset_of!(SequenceTable, kv_first), Operand::KvFirst),
        (arrays.kv_entries, offset_of!(SequenceTable, kv_entries), Operand::KvEntries),
        (arrays.pages.is_some(), offset_of!(SequenceTable, pages), Operand::Pages),
        (arrays.new_starts, offset_of!(SequenceTable, new_starts), Operand::NewStarts),
    ];
    let present = holes.into_iter().filter(|(is_there, ..)| *is_there);
    present.fold(params, |params, (_, at, operand)| params.address(offset + at, Binding::Operand(operand), 4))
}

/// Parameters of attention, where q is read from `q`.
pub(super) fn attend(
    request: &Request<'_>,
    sizes: &SequenceSizes,
    arrays: &Arrays,
    cut: &Cut,
    q: Binding,
    buffers: Option<[Binding; 2]>,
) -> (ForwardParams, Params) {
    let mut forward = forward_params(request);
    if arrays.pages.is_some() {
        forward.features = forward.features.with(PAGED, 0);
    }
    let q_tiles = ((sizes.q_rows as u64) << cut.packed_log2).div_ceil(cut.q_block.into());
    let params = SequencesParams {
        table: table(sizes, arrays),
        partial: 0,
        statistics: 0,
        tokens: sizes.tokens() as u32,
        split_keys: cut.split_keys,
        splits: Divisor::new(cut.splits),
        q_tiles: Divisor::new(q_tiles.max(1) as u32),
        head_tiles: Divisor::new(sizes.kv_heads as u32 * cut.group_tiles),
        group_tiles: Divisor::new(cut.group_tiles),
        packed_log2: cut.packed_log2,
        q_block: cut.q_block,
        forward,
    };
    let bytes = |aligned: u32| if aligned == 1 { CHUNK_BYTES } else { sizes.dtype.bytes() } as u64;
    let (inputs, out) = (bytes(forward.aligned), bytes(forward.out_aligned));
    let at = |offset| offset_of!(SequencesParams, forward) + offset;
    let mut holes = with_table(Params::new(bytes_of(&params)), offset_of!(SequencesParams, table), arrays)
        .address(at(offset_of!(ForwardParams, q.address)), q, inputs)
        .address(at(offset_of!(ForwardParams, k.address)), Binding::Operand(Operand::K), inputs)
        .address(at(offset_of!(ForwardParams, v.address)), Binding::Operand(Operand::V), inputs)
        .address(at(offset_of!(ForwardParams, out.address)), Binding::Operand(Operand::Out), out)
        .with_options(at(0), request);
    if request.attention.lse {
        let lse = at(offset_of!(ForwardParams, lse));
        holes = holes.address(lse, Binding::Operand(Operand::Lse), DType::F32.bytes() as u64);
    }
    if let Some([partial, statistics]) = buffers {
        holes = holes.address(offset_of!(SequencesParams, partial), partial, CHUNK_BYTES as u64).address(
            offset_of!(SequencesParams, statistics),
            statistics,
            CHUNK_BYTES as u64,
        );
    }
    (forward, holes)
}

/// Parameters of append. `turned` is where turned queries go, with its place.
pub(super) fn append(
    request: &Request<'_>,
    sizes: &SequenceSizes,
    arrays: &Arrays,
    [new_k, new_v]: [&Placed; 2],
    turned: Option<(&Placed, Binding)>,
) -> Params {
    let none = tensor_params(&Placed { axes: [(1, 0); 4], ..*new_k });
    let features = Features::<{ FORWARD_SLOTS as usize }>::OFF;
    let rotary = arrays.rotary;
    let params = AppendParams {
        table: table(sizes, arrays),
        q: tensor_params(&request.tensors.q),
        turned: turned.map_or(none, |(placed, _)| tensor_params(placed)),
        new_k: tensor_params(new_k),
        new_v: tensor_params(new_v),
        k: tensor_params(&request.tensors.k),
        v: tensor_params(&request.tensors.v),
        cos: 0,
        sin: 0,
        positions: 0,
        q_rows: sizes.q_rows as u32,
        kv_rows: sizes.kv_rows as u32,
        q_heads: sizes.q_heads as u32,
        kv_heads: sizes.kv_heads as u32,
        dim: sizes.head_dim as u32,
        turned_dims: rotary.map_or(0, |rotary| rotary.turned_dims as u32),
        interleaved: rotary.is_some_and(|rotary| rotary.interleaved).into(),
        position_count: rotary.map_or(1, |rotary| rotary.positions as u64),
        q_advances: rotary.is_some_and(|rotary| rotary.q_advances).into(),
        features: if arrays.pages.is_some() { features.with(PAGED, 0) } else { features },
    };
    let element = sizes.dtype.bytes() as u64;
    let operand = |params: Params, at, operand| params.address(at, Binding::Operand(operand), element);
    let params = with_table(Params::new(bytes_of(&params)), offset_of!(AppendParams, table), arrays);
    let params = operand(params, offset_of!(AppendParams, new_k.address), Operand::NewK);
    let params = operand(params, offset_of!(AppendParams, new_v.address), Operand::NewV);
    let params = operand(params, offset_of!(AppendParams, k.address), Operand::K);
    let mut params = operand(params, offset_of!(AppendParams, v.address), Operand::V);
    if let (Some(rotary), Some((_, turned))) = (rotary, turned) {
        params = operand(params, offset_of!(AppendParams, q.address), Operand::Q);
        params = params.address(offset_of!(AppendParams, turned.address), turned, element);
        params = operand(params, offset_of!(AppendParams, cos), Operand::Cos);
        params = operand(params, offset_of!(AppendParams, sin), Operand::Sin);
        if rotary.given {
            params = params.address(offset_of!(AppendParams, positions), Binding::Operand(Operand::Positions), 4);
        }
    }
    params
}
