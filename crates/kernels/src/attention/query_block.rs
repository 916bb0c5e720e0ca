//! What one thread block works on: a block of query rows of one head, and the key blocks that it has to visit.

use core::marker::PhantomData;

use cuda_std::{copy, math, sync, thread, warp};
use kernel_spec::families::forward::features::{DROPOUT, MASK_ONLY, PROGRAM, SINK};
use kernel_spec::layout::{fragment_col, fragment_row};
use kernel_spec::{Band, ForwardFeatures, ForwardParams, KvBlocks, TensorParams};

use crate::attention::Config;
use crate::attention::dropout::{self, RowMarks, Stream};
use crate::attention::exponent::Exponent;
use crate::attention::score::{self, Place};
use crate::attention::sink;
use crate::parts::element::Element;
use crate::parts::fragments::{Fragments, PerRow};
use crate::parts::rows::{GlobalRows, RowSource};
use crate::parts::shared_tile::{SharedMatrix, ThreadBlock};

/// A block of query rows of one head of one batch entry.
///
/// Where several heads are packed together, it counts every row once for each of them, see [`Self::row`].
pub struct QueryBlock<C: Config> {
    /// The head's queries.
    pub q: GlobalRows<C::T>,
    /// The keys of its key-value head.
    pub k: GlobalRows<C::T>,
    /// The values of its key-value head.
    pub v: GlobalRows<C::T>,
    /// The head's output.
    pub out: GlobalRows<C::Out>,
    /// Batch entry, or sequence, of programs on scores.
    pub batch: u32,
    /// Query head, or the first of those that are packed together, likewise.
    pub q_head: u32,
    /// First query row of the block.
    pub first_row: u32,
    /// The key blocks to visit.
    pub kv_blocks: KvBlocks,
    /// Index of the head among all heads of the batch: `batch * q_heads + q_head`.
    pub head: u64,
    /// Logarithm to base 2 of the heads that are packed together.
    pub packed_log2: u32,
    /// Bytes from one head's output to the next.
    out_head_bytes: u64,
    lse: u64,
    /// Rows of all sequences, where they are packed: elements from one head's log-sum-exp to the next one's. Else 0, and those are `q.rows`.
    pub packed_rows: u32,
    band: Band,
    /// What makes exponents of scores, above 0.
    pub scale: f32,
    /// Whether the scale is negative. The running maximum is taken before scaling, which needs a positive scale: the kernels
    /// negate the queries instead.
    pub negative_scale: bool,
    features: ForwardFeatures,
    q_heads: u32,
}

/// A row of a [`QueryBlock`].
#[derive(Clone, Copy)]
pub struct QueryRow {
    /// Head, counted from the block's own.
    pub head: u32,
    /// Row of the head.
    pub row: u32,
}

/// One head's rows of a `[batch, row, head, dim]` tensor.
#[inline(always)]
fn head_rows<T: Element>(
    tensor: &TensorParams,
    batch: u32,
    head: u32,
    [rows, cols]: [u32; 2],
    [aligned, whole]: [bool; 2],
) -> GlobalRows<T> {
    let elements = batch as u64 * tensor.batch_stride + head as u64 * tensor.head_stride;
    GlobalRows {
        address: tensor.address + elements * T::BYTES as u64,
        row_bytes: tensor.row_stride * T::BYTES as u64,
        rows,
        cols,
        aligned,
        whole,
        element: PhantomData,
    }
}

impl<C: Config> QueryBlock<C> {
    /// The share of thread block `cta`: query blocks are numbered last row first, then heads, then batch.
    ///
    /// Last rows first: under a causal mask they have the most keys to visit, and the long blocks should not come at the end.
    /// Neighbouring blocks share a head, so that its keys and values are read from L2.
    #[inline(always)]
    pub fn of(cta: u32, p: &ForwardParams) -> Self {
        let (q_block, kv_block) = (C::ROW.q_block, C::ROW.kv_block);
        // SAFETY: the host launches no block for an empty problem. Without this, every division could panic.
        unsafe { core::hint::assert_unchecked(p.q_rows > 0 && p.q_heads > 0 && p.group > 0) };
        let q_blocks = p.q_rows.div_ceil(q_block);
        let (head, index) = (cta / q_blocks, cta % q_blocks);
        let (batch, q_head) = (head / p.q_heads, head % p.q_heads);
        // From one lane to all: ptxas then keeps what follows from these in uniform registers. Without it v2 spills at head dims 128
        // and 256.
        // SAFETY: the first thing that a whole block does.
        let [batch, q_head, kv_head, index, head] =
            [batch, q_head, q_head / p.group, index, head].map(|x| unsafe { warp::broadcast(x, 0) });
        let first_row = (q_blocks - 1 - index) * q_block;
        let kv_blocks = p.band.kv_blocks(first_row, q_block, p.q_rows, p.kv_rows, kv_block);
        QueryBlock { head: head.into(), ..Self::at(p, batch, q_head, kv_head, first_row, kv_blocks) }
    }

    /// The share of this thread block, computed anew.
    ///
    /// What only a later part of a kernel reads of it would otherwise live in registers through the loop before. All threads of the
    /// block, converged.
    #[inline(always)]
    pub fn again(p: &ForwardParams) -> Self {
        // Opaque, or the compiler would find that all of this is known.
        let p = ForwardParams { q_rows: math::opaque(p.q_rows), ..*p };
        Self::of(thread::block_index(), &p)
    }

    /// The block of query rows from `first_row` on, of one head of one batch entry, that visits `kv_blocks`.
    #[inline(always)]
    pub fn at(p: &ForwardParams, batch: u32, q_head: u32, kv_head: u32, first_row: u32, kv_blocks: KvBlocks) -> Self {
        let aligned = p.aligned != 0;
        // One answer for all three: each would cost registers in the loop over the keys.
        let fills = |dim: u32, tile_dim: u32| (tile_dim == 0) | (dim == tile_dim);
        let whole = aligned & fills(p.dim_qk, C::ROW.dim_qk) & fills(p.dim_v, C::ROW.dim_v);
        let rows = [aligned, whole];
        QueryBlock {
            q: head_rows(&p.q, batch, q_head, [p.q_rows, p.dim_qk], rows),
            k: head_rows(&p.k, batch, kv_head, [p.kv_rows, p.dim_qk], rows),
            v: head_rows(&p.v, batch, kv_head, [p.kv_rows, p.dim_v], rows),
            out: head_rows(&p.out, batch, q_head, [p.q_rows, p.dim_v], [p.out_aligned != 0, false]),
            batch,
            q_head,
            first_row,
            kv_blocks,
            // In 32 bits, which hold it because the thread blocks are counted in 32 bits; in 64, v2 at head dim 128 spills.
            head: (batch * p.q_heads + q_head) as u64,
            packed_log2: 0,
            out_head_bytes: p.out.head_stride * C::Out::BYTES as u64,
            lse: p.lse,
            packed_rows: 0,
            band: p.band,
            scale: C::T::scale(p.scale_log2),
            negative_scale: p.negate != 0,
            features: p.features,
            q_heads: p.q_heads,
        }
    }

    /// Negates the queries when the scale is negative, see [`Self::negative_scale`].
    ///
    /// # Safety
    /// All threads of the block, converged, with the load of `q` under way.
    #[inline(always)]
    pub unsafe fn apply_sign<B: ThreadBlock, Q: SharedMatrix>(&self, q: Q) {
        if self.negative_scale {
            copy::wait_group::<0>();
            // SAFETY: the whole block takes this branch; the stream's first barrier follows.
            unsafe {
                sync::block();
                q.negate(0, Q::ROWS as u32, thread::index(), B::THREADS as u32);
            }
        }
    }

    /// Which head and row the block's row `row` is.
    #[inline(always)]
    pub fn row(&self, row: u32) -> QueryRow {
        QueryRow { head: row & ((1 << self.packed_log2) - 1), row: row >> self.packed_log2 }
    }

    /// How many rows of the head, the first of all, see no key.
    #[inline(always)]
    pub fn rows_without_keys(&self) -> i32 {
        self.band.rows_without_keys(self.q.rows, self.k.rows)
    }

    /// Address of a row of the output.
    #[inline(always)]
    pub fn out_row(&self, QueryRow { head, row }: QueryRow) -> u64 {
        self.out.address + row as u64 * self.out.row_bytes + head as u64 * self.out_head_bytes
    }

    /// Changes scores as the features of the call say, see [`score`]: rows from `row` on, keys from `key` on.
    #[inline(always)]
    pub fn modify<F: Fragments>(&self, scores: &mut F, row: u32, key: u32) {
        score::modify::<C, _>(scores, &self.features, |tile_row, tile_col| {
            self.place(self.row(row + tile_row), key + tile_col)
        });
    }

    /// The same where the program, which only hides keys, would hide none.
    #[inline(always)]
    pub fn modify_seen<F: Fragments>(&self, scores: &mut F, row: u32, key: u32) {
        score::cap::<C, _>(scores, &self.features, &|tile_row, tile_col| {
            self.place(self.row(row + tile_row), key + tile_col)
        });
    }

    /// Where the score of a row and a key is.
    #[inline(always)]
    pub fn place(&self, QueryRow { head, row }: QueryRow, key: u32) -> Place {
        let (q_rows, kv_rows) = (self.q.rows, self.k.rows);
        Place { batch: self.batch, head: self.q_head + head, row, key, q_rows, kv_rows }
    }

    /// Whether keys may be hidden that no mask hides, see [`score::may_hide`]. Known when the entry is compiled where it accepts nothing of the
    /// kind.
    #[inline(always)]
    pub fn may_hide(&self) -> bool {
        let accepts = const { C::ROW.entry.takes(PROGRAM) };
        accepts && score::may_hide(&self.features)
    }

    /// Whether the call's program only hides keys.
    #[inline(always)]
    pub fn is_mask_only(&self) -> bool {
        self.features.has(MASK_ONLY)
    }

    /// The sink of a head, counted from the block's own, if the call has sinks. Which one is asked where the entry takes any alone: LLVM orders
    /// the others by what is computed for nothing, too.
    #[inline(always)]
    pub fn sink(&self, head: impl FnOnce() -> u32) -> Option<f32> {
        if !const { C::ROW.entry.takes(SINK) } {
            return None;
        }
        // Heads that a group does not have are rows that do not exist: whichever sink those take is stored nowhere.
        sink::of_head(&self.features, (self.q_head + head()).min(self.q_heads - 1))
    }

    /// Whether the call has sinks.
    #[inline(always)]
    pub fn has_sink(&self) -> bool {
        let accepted = const { C::ROW.entry.takes(SINK) };
        accepted && self.features.has(SINK)
    }

    /// Drops weights, where the row does: rows from `row` on, keys from `key` on. Behind the sum of the row.
    #[inline(always)]
    pub fn drop<F: Fragments>(&self, weights: &mut F, row: u32, key: u32) {
        if const { C::ROW.entry.takes(DROPOUT) } {
            dropout::drop_weights(weights, &RowMarks::of::<F>(&self.random(), row, key));
        }
    }

    /// The factor on what is left of the weights, for [`Self::drop`]; 1 where none are dropped.
    #[inline(always)]
    pub fn kept_factor(&self) -> f32 {
        if const { C::ROW.entry.takes(DROPOUT) } { self.random().factor } else { 1.0 }
    }

    /// The random numbers of the head.
    #[inline(always)]
    pub fn random(&self) -> Stream {
        Stream::of(&self.features, self.head as u32)
    }

    /// Sets the scores that the mask hides to minus infinity: rows from `row` on, keys from `key` on.
    #[inline(always)]
    pub fn hide<F: Fragments>(&self, scores: &mut F, row: u32, key: u32) {
        // Opaque: few blocks need a mask, so its limits must not live in registers in between.
        let [lane, q_rows, kv_rows] = [thread::lane(), self.q.rows, self.k.rows].map(math::opaque);
        let (q_rows, kv_rows) = (q_rows as i32, kv_rows as i32);
        for m in 0..F::M {
            for i in 0..4 {
                let row = self.row(row + 16 * m as u32 + fragment_row(lane, i)).row;
                let diagonal = row as i32 + kv_rows - q_rows;
                // Visible columns of this tile, counted from the lane's own first column.
                let from = (key + fragment_col(lane, i)) as i32;
                let first = diagonal - self.band.left - from;
                let last = (diagonal + self.band.right).min(kv_rows - 1) - from;
                for n in 0..F::N {
                    let score = &mut scores.at_mut(m, n)[i as usize];
                    let col = 8 * n as i32;
                    *score = if col < first || col > last { f32::NEG_INFINITY } else { *score };
                }
            }
        }
    }

    /// Writes the log-sum-exp `ln(sum_j e^(scale * s_j))` of rows from `row` on, given scaled maxima and sums, with the sink where there are any; minus infinity for a row that
    /// sees no key, and its sink if it has one.
    ///
    /// # Safety
    /// All threads of the warp, converged; no other warp writes these rows.
    #[inline(always)]
    pub unsafe fn store_lse<R: PerRow>(&self, row: u32, max: &R, sum: &R) {
        if self.lse == 0 {
            return;
        }
        let lane = thread::lane();
        for m in 0..R::M {
            for half in 0..2 {
                let QueryRow { head, row } = self.row(row + 16 * m as u32 + fragment_row(lane, 2 * half));
                let lse = sink::lse::<C::T>(max.at(m, half as usize), sum.at(m, half as usize), self.sink(|| head));
                // The four lanes of a quad hold the same row.
                if lane % 4 == 0 && row < self.q.rows {
                    let index = (self.head + head as u64) * self.q.rows as u64 + row as u64;
                    // SAFETY: inside `[batch, q_heads, q_rows]`.
                    unsafe { copy::store_f32(self.lse + index * 4, lse) };
                }
            }
        }
    }

    /// [`Self::store_lse`] of packed sequences. Not one function with it: LLVM would put its branches otherwise, and ptxas the loops of v3.
    ///
    /// # Safety
    /// As for [`Self::store_lse`].
    #[inline(always)]
    pub unsafe fn store_packed_lse<R: PerRow>(&self, row: u32, max: &R, sum: &R) {
        if self.lse == 0 {
            return;
        }
        let lane = thread::lane();
        for m in 0..R::M {
            for half in 0..2 {
                let QueryRow { head, row } = self.row(row + 16 * m as u32 + fragment_row(lane, 2 * half));
                let lse = sink::lse::<C::T>(max.at(m, half as usize), sum.at(m, half as usize), self.sink(|| head));
                if lane % 4 == 0 && row < self.q.rows {
                    let index = (self.head + head as u64) * self.packed_rows as u64 + row as u64;
                    // SAFETY: inside `[q_heads, rows of all sequences]`.
                    unsafe { copy::store_f32(self.lse + index * 4, lse) };
                }
            }
        }
    }

    /// Writes the block's output: every warp its fragments, from `row` and `col` on, through the shared memory of the queries.
    ///
    /// # Safety
    /// All threads of the block, converged; warps write disjoint parts of the tile.
    #[inline(always)]
    pub unsafe fn store_out<B: ThreadBlock, S: SharedMatrix<Element = C::Out>>(
        &self,
        tile: S,
        row: u32,
        col: u32,
        out: &impl Fragments,
    ) {
        // SAFETY: passed on.
        unsafe { self.store_tile::<B, S>(tile, &self.out, row, col, out) };
    }

    /// [`Self::store_out`] to rows of `target`, as the block counts them.
    ///
    /// # Safety
    /// As for [`Self::store_out`].
    #[inline(always)]
    pub unsafe fn store_tile<B: ThreadBlock, S: SharedMatrix<Element = C::Out>>(
        &self,
        tile: S,
        target: &impl RowSource,
        row: u32,
        col: u32,
        out: &impl Fragments,
    ) {
        // SAFETY: the barriers stand between the last read of the queries, the writes and the reads of other threads.
        unsafe {
            // A block without keys never waited for its queries.
            copy::wait_group::<0>();
            sync::block();
            tile.write(row, col, out);
            sync::block();
            tile.store::<B>(target, self.first_row);
        }
    }
}
