//! The parameter structs of v3 over sequences, with holes where addresses go.

use super::super::super::params::{bytes_of, forward_params, listed_geometry};
use super::super::super::request::{Request, Tensors};
use super::super::params::{self, Arrays};
use super::super::sizes::SequenceSizes;
use super::Choice;
use crate::error::Operand;
use crate::plan::{Binding, Params};
use kernel_spec::copy_engine::ALIGNMENT;
use kernel_spec::families::sequences::{PagesParams, SplitV3Params, TilesParams};
use kernel_spec::layout::CHUNK_BYTES;
use kernel_spec::schedule::{self, Schedule, Work};
use kernel_spec::{Divisor, Features, ForwardParams, TensorMap, TensorParams, V3Params};
use std::mem::offset_of;

impl Choice {
    pub(super) fn list_params(
        &self,
        request: &Request<'_>,
        sizes: &SequenceSizes,
        arrays: &Arrays,
        list: Binding,
    ) -> Params {
        let row = self.row;
        let params = TilesParams {
            table: params::table(sizes, arrays),
            tiles: 0,
            place_step: if sizes.packed_q { 0 } else { sizes.q_rows as u32 },
            // Checked when the row was chosen: all places are below 2^32.
            split_step: (sizes.q_heads * sizes.tokens()) as u32,
            q_rows: sizes.q_rows as u32,
            kv_rows: sizes.kv_rows as u32,
            q_step: self.q_step,
            kv_step: if self.piece_rows.is_some() { 0 } else { self.kv_step },
            q_block: row.q_block,
            kv_block: row.kv_block,
            band: request.attention.mask.band(),
            packed_log2: self.packed_heads.trailing_zeros(),
            room: self.room() as u32,
            splits: Divisor::new(self.splits),
            split_keys: self.split_keys,
            features: Features::OFF,
        };
        let params = Params::new(bytes_of(&params));
        let params = params::with_table(params, offset_of!(TilesParams, table), arrays);
        params.address(offset_of!(TilesParams, tiles), list, CHUNK_BYTES as u64)
    }

    /// Without addresses and maps.
    fn v3(&self, sizes: &SequenceSizes, forward: ForwardParams) -> V3Params {
        let (packed, group) = (self.packed_heads, forward.group / self.packed_heads);
        let heads = forward.q_heads / packed;
        let section_heads = section_heads(sizes, group);
        let all = Work {
            batch: 1,
            q_heads: forward.q_heads,
            group: forward.group,
            packed,
            q_rows: forward.q_rows,
            q_block: self.row.q_block,
            kv_head_bytes: 0,
            uneven: false,
        };
        // Of the schedule, only what is said of heads is used.
        let schedule = Schedule {
            section_heads: Divisor::new(section_heads),
            last_section: heads / section_heads - 1,
            ..Schedule::new(&all, 1)
        };
        let none = TensorMap([0; 16]);
        V3Params { q: none, k: none, v: none, schedule, forward }
    }

    /// The holes that both kernels have, in a struct of which [`V3Params`] start at `offset`.
    fn with_maps(&self, params: Params, offset: usize, tensors: &Tensors, [q, list]: [Binding; 2]) -> Params {
        let Tensors { q: placed, k, v, .. } = tensors;
        let row = self.row;
        let kv_box = self.piece_rows.unwrap_or(row.kv_block);
        let keys = |placed| listed_geometry(placed, kv_box, 1, self.kv_step);
        let queries = listed_geometry(placed, row.q_block, self.packed_heads, self.q_step);
        params
            .map(offset + offset_of!(V3Params, q), q, ALIGNMENT, queries)
            .map(offset + offset_of!(V3Params, k), Binding::Operand(Operand::K), ALIGNMENT, keys(k))
            .map(offset + offset_of!(V3Params, v), Binding::Operand(Operand::V), ALIGNMENT, keys(v))
            // It has its place there.
            .address(offset + offset_of!(V3Params, forward.q.batch_stride), list, CHUNK_BYTES as u64)
    }

    pub(super) fn whole_params(&self, request: &Request<'_>, sizes: &SequenceSizes, [q, list]: [Binding; 2]) -> Params {
        let mut forward = forward_params(request);
        // Until the address of the list is known, which has its place there.
        forward.q.batch_stride = 0;
        forward.out.batch_stride = if sizes.packed_q { 1 } else { sizes.q_heads as u64 };
        let params = Params::new(bytes_of(&self.v3(sizes, forward)));
        let params = self.with_maps(params, 0, &request.tensors, [q, list]);
        params.with_addresses(offset_of!(V3Params, forward), request, &forward, q)
    }

    pub(super) fn split_params(
        &self,
        request: &Request<'_>,
        sizes: &SequenceSizes,
        arrays: &Arrays,
        [q, list]: [Binding; 2],
        [sums, statistics]: [Binding; 2],
    ) -> Params {
        let none = TensorParams { address: 0, batch_stride: 0, row_stride: 0, head_stride: 0 };
        let forward = ForwardParams {
            // Read through their maps alone.
            q: none,
            k: none,
            v: none,
            out: none,
            q_rows: sizes.tokens() as u32,
            ..forward_params(request)
        };
        let pages = PagesParams {
            table: 0,
            table_stride: arrays.pages.unwrap_or(0) as u64,
            page_rows: Divisor::new(sizes.page_rows.unwrap_or(1) as u32),
            count: sizes.kv_entries as u32,
            page_step: self.kv_step,
            piece_rows: self.piece_rows.unwrap_or(0),
            unused: [0; 6],
        };
        let params = Params::new(bytes_of(&SplitV3Params { pages, v3: self.v3(sizes, forward) }));
        let offset = offset_of!(SplitV3Params, v3);
        let params = self.with_maps(params, offset, &request.tensors, [q, list]);
        let params = params
            .with_program_words(offset + offset_of!(V3Params, forward.features), request.attention.changing_program());
        let at = |field| offset + offset_of!(V3Params, forward) + field;
        let params = params.address(at(offset_of!(ForwardParams, out.address)), sums, CHUNK_BYTES as u64).address(
            at(offset_of!(ForwardParams, lse)),
            statistics,
            CHUNK_BYTES as u64,
        );
        if self.piece_rows.is_none() {
            return params;
        }
        params.address(offset_of!(SplitV3Params, pages.table), Binding::Operand(Operand::Pages), 4)
    }
}

/// Heads of a section, whole groups that divide the heads: as many as have their keys and values in the L2 cache together, those of the
/// longest sequence, whose tiles come first.
fn section_heads(sizes: &SequenceSizes, group: u32) -> u32 {
    let head_bytes = 2 * sizes.longest_kv as u64 * sizes.head_dim as u64 * sizes.dtype.bytes() as u64;
    let cached = (schedule::CACHED_BYTES / head_bytes.max(1)).clamp(1, sizes.kv_heads as u64) as u32;
    let fits = |groups: &u32| (sizes.kv_heads as u32).is_multiple_of(*groups);
    group * (1..=cached).rev().find(fits).unwrap_or(1)
}
