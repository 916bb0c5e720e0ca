//! One sequence of a call: what the device reads of it, and the problem that it poses on its own.

use cuda_std::{copy, warp};
use kernel_spec::families::forward::features::PAGED;
use kernel_spec::families::sequences::{SequenceTable, SequencesParams};
use kernel_spec::{ForwardParams, TensorParams};

use crate::attention::sequences::rows::Pages;

/// One sequence: the problem that it poses on its own.
pub struct Sequence {
    /// The problem. Tensors start at the sequence's first row, and the log-sum-exp at its first element.
    pub problem: ForwardParams,
    /// Number of its first query row among those of all sequences.
    pub first_token: u32,
    /// Where its keys and values are in pages.
    pub pages: Pages,
}

/// Number `index` of an array on the device, as a count: 0 for negative numbers.
///
/// # Safety
/// The array has it.
#[inline(always)]
pub unsafe fn count(array: u64, index: u32) -> u32 {
    // SAFETY: passed on.
    let number = unsafe { copy::load_u32(array + index as u64 * 4) } as i32;
    number.max(0) as u32
}

/// Rows `[first, end]` of sequence `index`, given where each of them starts. They lie among `rows`, whatever the numbers are.
///
/// # Safety
/// The array has one number more than there are sequences.
#[inline(always)]
pub unsafe fn span(starts: u64, index: u32, rows: u32) -> [u32; 2] {
    // SAFETY: passed on.
    let [first, end] = unsafe { [count(starts, index), count(starts, index + 1)] };
    let first = first.min(rows);
    [first, end.clamp(first, rows)]
}

/// First query row of a sequence in its tensor, and how many are in use.
///
/// # Safety
/// There is a sequence of this number.
#[inline(always)]
pub unsafe fn query_rows(table: &SequenceTable, q_rows: u32, index: u32) -> [u32; 2] {
    // SAFETY: passed on.
    unsafe {
        let [first, end] = if table.q_starts == 0 { [0, q_rows] } else { span(table.q_starts, index, q_rows) };
        let rows = end - first;
        [first, if table.q_used == 0 { rows } else { count(table.q_used, index).min(rows) }]
    }
}

/// How many rows the call appends to a sequence.
///
/// # Safety
/// There is a sequence of this number.
#[inline(always)]
unsafe fn new_rows(table: &SequenceTable, index: u32) -> u32 {
    if table.new_starts == 0 {
        return table.new_rows;
    }
    // SAFETY: passed on.
    let [first, end] = unsafe { span(table.new_starts, index, table.new_rows) };
    end - first
}

/// Moves a tensor by batch entries and rows.
#[inline(always)]
pub fn moved(tensor: &TensorParams, entry: u32, row: u32, bytes: usize) -> TensorParams {
    let elements = entry as u64 * tensor.batch_stride + row as u64 * tensor.row_stride;
    TensorParams { address: tensor.address + elements * bytes as u64, ..*tensor }
}

/// Where the keys and values of a sequence are.
pub struct CachePlace {
    /// Batch entry, 0 where keys are packed or in pages.
    pub entry: u32,
    /// Row of the tensor that the sequence's rows are counted from.
    pub base: u32,
    /// Rows from there on that there are.
    pub room: u32,
    /// Rows in use, without those that the call appends.
    pub used: u32,
}

impl CachePlace {
    /// Of sequence `index`, in tensors whose batch entries, or all pages of a sequence, or all sequences, have `kv_rows` rows.
    ///
    /// # Safety
    /// There is a sequence of this number.
    #[inline(always)]
    pub unsafe fn of(table: &SequenceTable, kv_rows: u32, index: u32) -> CachePlace {
        // SAFETY: passed on.
        unsafe {
            let [base, end] = if table.kv_starts == 0 { [0, kv_rows] } else { span(table.kv_starts, index, kv_rows) };
            let room = end - base;
            let used = if table.kv_used == 0 { room } else { count(table.kv_used, index).min(room) };
            let entry = if table.kv_entries == 0 { index } else { count(table.kv_entries, index) };
            // Of packed sequences and of pages, there is one entry, or none that is the sequence's.
            let alone = table.kv_starts != 0 || table.pages != 0;
            let entry = if alone { 0 } else { entry.min(table.kv_entry_count - 1) };
            CachePlace { entry, base, room, used }
        }
    }

    /// The rows that sequence `index` has keys in, `[first, end]` counted from the base, with those that the call appends.
    ///
    /// # Safety
    /// There is a sequence of this number.
    #[inline(always)]
    pub unsafe fn keys(&self, table: &SequenceTable, index: u32) -> [u32; 2] {
        // SAFETY: passed on.
        unsafe {
            let end = (self.used + new_rows(table, index)).min(self.room);
            [if table.kv_first == 0 { 0 } else { count(table.kv_first, index).min(end) }, end]
        }
    }
}

impl Sequence {
    /// Sequence `index` of a call whose tensors have elements of `bytes` bytes.
    ///
    /// # Safety
    /// All threads of the warp, converged; there is a sequence of this number.
    #[inline(always)]
    pub unsafe fn of(p: &SequencesParams, index: u32, bytes: usize) -> Sequence {
        let (table, f) = (&p.table, &p.forward);
        // SAFETY: passed on.
        unsafe {
            let [q_first, q_rows] = query_rows(table, f.q_rows, index);
            let cache = CachePlace::of(table, f.kv_rows, index);
            let [kv_first, end] = cache.keys(table, index);
            let q_entry = if table.q_starts == 0 { index } else { 0 };
            let packed = table.q_starts != 0;
            let first_token = if packed { q_first } else { index * f.q_rows };
            // `[head, token]` where sequences are packed, else `[batch, head, row]`.
            let lse = if packed { q_first as u64 } else { index as u64 * f.q_heads as u64 * f.q_rows as u64 };
            let paged = f.features.has(PAGED);
            let kv_row = if paged { 0 } else { cache.base + kv_first };
            // From one lane to all, as in `QueryBlock::of`.
            let [q_rows, kv_rows, kv_row, entry, first_token] =
                [q_rows, end - kv_first, kv_row, cache.entry, first_token].map(|x| warp::broadcast(x, 0));
            let problem = ForwardParams {
                q: moved(&f.q, q_entry, q_first, bytes),
                out: moved(&f.out, q_entry, q_first, bytes),
                k: moved(&f.k, entry, kv_row, bytes),
                v: moved(&f.v, entry, kv_row, bytes),
                lse: if f.lse == 0 { 0 } else { f.lse + lse * 4 },
                q_rows,
                kv_rows,
                ..*f
            };
            let pages = Pages {
                exist: paged,
                table: table.pages + index as u64 * table.table_stride * 4,
                first: kv_first,
                rows: table.page_rows,
                count: table.kv_entry_count,
            };
            Sequence { problem, first_token, pages }
        }
    }
}
