//! The structs that the host writes and the kernels read.

use crate::divisor::Divisor;
use crate::families::forward::{ForwardFeatures, ForwardParams, TensorParams, V3Params};
use crate::mask::Band;

/// Which rows belong to which sequence: addresses of numbers on the device, 0 where there are none.
///
/// All numbers are `i32`. Whatever they are, kernels stay inside the tensors: a length or a place outside them is taken for the nearest
/// inside.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceTable {
    /// First row of each sequence in q and out, and the end of the last, `[batch + 1]`. 0: sequence `b` is batch entry `b`.
    pub q_starts: u64,
    /// Rows of q in use, `[batch]`. 0: all.
    pub q_used: u64,
    /// First row of each sequence in k and v, and the end of the last, `[batch + 1]`. 0: a sequence is a batch entry.
    pub kv_starts: u64,
    /// Rows of k and v in use, `[batch]`, without those that the call appends. 0: all.
    pub kv_used: u64,
    /// First row in use ("left padding"), `[batch]`. 0: the first.
    pub kv_first: u64,
    /// Batch entry of k and v that belongs to a sequence, `[batch]`. 0: the same.
    pub kv_entries: u64,
    /// Page of each run of rows, `[batch, table_stride]`. 0: k and v are no pages.
    pub pages: u64,
    /// Entries from one sequence's pages to the next one's.
    pub table_stride: u64,
    /// Sequences.
    pub batch: u32,
    /// Batch entries of k and v, or pages.
    pub kv_entry_count: u32,
    /// First row of what is appended to each sequence, and the end of the last, `[batch + 1]`. 0: it is in batch entry `b`.
    pub new_starts: u64,
    /// Rows of a page; 1 where there are none.
    pub page_rows: Divisor,
    /// Rows that the call appends behind those in use: of each sequence, or of all. 0: none.
    pub new_rows: u32,
}

impl SequenceTable {
    /// Sequences that are batch entries, with all of their rows in use: no array says anything else.
    pub const fn uniform(batch: u32) -> SequenceTable {
        SequenceTable {
            q_starts: 0,
            q_used: 0,
            kv_starts: 0,
            kv_used: 0,
            kv_first: 0,
            kv_entries: 0,
            pages: 0,
            table_stride: 0,
            batch,
            kv_entry_count: 0,
            new_starts: 0,
            page_rows: Divisor::new(1),
            new_rows: 0,
        }
    }
}

/// Parameters of attention over sequences: [`Decode`], [`Prefill`] and [`Merge`].
///
/// `forward.q_rows` are those of a batch entry, or of all sequences where they are packed; `forward.kv_rows` likewise, or the rows that all
/// pages of one sequence hold.
///
/// [`Decode`]: crate::Pass::Decode
/// [`Prefill`]: crate::Pass::Prefill
/// [`Merge`]: crate::Pass::Merge
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SequencesParams {
    /// The sequences.
    pub table: SequenceTable,
    /// Sums of weighted values of each split, not yet divided, `f32 [split, q_head, token, dim_v]`; 0 with one split.
    pub partial: u64,
    /// Maximum and sum of the weights of each split, `f32 [split, q_head, token, 2]`.
    pub statistics: u64,
    /// Rows of q over all sequences.
    pub tokens: u32,
    /// Keys of a split, counted from the first: a multiple of 64, or 0 for as many as make all splits of a sequence equal.
    pub split_keys: u32,
    /// Splits of the keys.
    pub splits: Divisor,
    /// Tiles of query rows of a sequence, where all have the same number of rows.
    pub q_tiles: Divisor,
    /// Tiles of heads: for each key-value head, as many as hold the group's query heads.
    pub head_tiles: Divisor,
    /// Tiles of heads of a group.
    pub group_tiles: Divisor,
    /// Logarithm to base 2 of the query heads of a tile.
    pub packed_log2: u32,
    /// Rows of a tile, which the kernels know and the merge does not.
    pub q_block: u32,
    /// The problem.
    pub forward: ForwardParams,
}

/// Parameters of [`Append`](crate::Pass::Append): new rows of keys and values go behind those in use, and queries are turned with them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AppendParams {
    /// The sequences; `q_starts`, `q_used` are those of the queries.
    pub table: SequenceTable,
    /// Queries, `[batch, q_rows, q_heads, dim]`; address 0: nothing to turn.
    pub q: TensorParams,
    /// Where turned queries go, of the same shape.
    pub turned: TensorParams,
    /// New keys, `[batch, new_rows, kv_heads, dim]`.
    pub new_k: TensorParams,
    /// New values.
    pub new_v: TensorParams,
    /// Keys: batch entries, or pages.
    pub k: TensorParams,
    /// Values.
    pub v: TensorParams,
    /// Cosines, `[position, turned_dims / 2]` in the element type, or 0: nothing is turned.
    pub cos: u64,
    /// Sines, likewise.
    pub sin: u64,
    /// Position of the first new row of a sequence, `i32 [batch]`; 0: the rows in use.
    pub positions: u64,
    /// Rows of q of a sequence, or of all.
    pub q_rows: u32,
    /// Rows of a batch entry of k and v, or of all pages of a sequence.
    pub kv_rows: u32,
    /// Heads of q.
    pub q_heads: u32,
    /// Heads of k and v.
    pub kv_heads: u32,
    /// Columns.
    pub dim: u32,
    /// Columns that are turned, from the first on: an even number.
    pub turned_dims: u32,
    /// 1: pairs are neighbours, `(2 i, 2 i + 1)`; 0: columns `i` and `turned_dims / 2 + i`.
    pub interleaved: u32,
    /// 1: query row `i` is turned by the position of the first new row plus `i`; 0: all by that of the first.
    pub q_advances: u32,
    /// Positions that there are cosines of.
    pub position_count: u64,
    /// None yet.
    pub features: ForwardFeatures,
}

/// One entry of the list of tiles: where its sequence lies, its first row as [`SequencesParams`] counts them, and its keys.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileEntry {
    /// First row of the sequence in q and out, along the row axis that moves the others, see [`V3Params`].
    pub q_first: u32,
    /// Rows of q in use.
    pub q_rows: u32,
    /// First row in k and v, likewise; 0 in pages.
    pub kv_first: u32,
    /// Rows of k and v in use.
    pub kv_rows: u32,
    /// First row of the tile: rows of the sequence times the heads that share a tile.
    pub first_row: u32,
    /// The sequence.
    pub sequence: u32,
    /// First block of keys of the split.
    pub first_block: u32,
    /// One past its last block; the mask may hide some of them.
    pub end_block: u32,
    /// Where the sequence's first row is among those of the first head of the split, in `[split, q_head, token]`.
    pub place: u32,
    /// Nothing.
    pub unused: [u32; 3],
}

/// Parameters of [`Tiles`](crate::Pass::Tiles), which lists the tiles of sequences, the longest first.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TilesParams {
    /// The sequences.
    pub table: SequenceTable,
    /// Where the list goes: how many there are, in the place of an entry, and then the [`TileEntry`]s.
    pub tiles: u64,
    /// From the place of one sequence's first row to the next one's, see [`TileEntry::place`]; 0 where rows are packed: those of a sequence
    /// start at its first token.
    pub place_step: u32,
    /// From one split's places to the next one's.
    pub split_step: u32,
    /// Rows of q of all sequences, or of each where they are not packed.
    pub q_rows: u32,
    /// Rows of k and v of all sequences, or of each.
    pub kv_rows: u32,
    /// Rows of q from one sequence to the next; 0 where they are packed.
    pub q_step: u32,
    /// Rows of k and v from one batch entry to the next; 0 where they are packed or in pages.
    pub kv_step: u32,
    /// Rows of a tile.
    pub q_block: u32,
    /// Keys of a step.
    pub kv_block: u32,
    /// Which keys a row sees.
    pub band: Band,
    /// Logarithm to base 2 of the query heads that share a tile.
    pub packed_log2: u32,
    /// Entries that there is room for.
    pub room: u32,
    /// Splits of the keys.
    pub splits: Divisor,
    /// As of [`SequencesParams`].
    pub split_keys: u32,
    /// None yet.
    pub features: ForwardFeatures,
}

/// Where the load warp of [`SplitV3`](crate::Pass::SplitV3) finds keys and values in pages.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagesParams {
    /// Page of each run of rows, `i32 [batch, table_stride]`. 0: there are no pages.
    pub table: u64,
    /// Entries from one sequence's pages to the next one's.
    pub table_stride: u64,
    /// Rows of a page.
    pub page_rows: Divisor,
    /// Pages.
    pub count: u32,
    /// Rows from one page to the next.
    pub page_step: u32,
    /// Rows that are loaded at a time, all of one page: a multiple of 8 that divides those of a page and of a block of keys.
    pub piece_rows: u32,
    /// So many bytes that tensor maps behind them are aligned.
    pub unused: [u32; 6],
}

/// Parameters of [`SplitV3`](crate::Pass::SplitV3).
///
/// `v3.forward.out` is where sums go, `f32 [split, q_head, token, dim_v]`, and `v3.forward.lse` the statistics, as those of
/// [`SequencesParams`]; `v3.forward.q_rows` are the tokens.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SplitV3Params {
    /// The pages.
    pub pages: PagesParams,
    /// The rest.
    pub v3: V3Params,
}

const _: () = assert!(size_of::<PagesParams>() == 64, "tensor maps lie at multiples of 64 bytes");
