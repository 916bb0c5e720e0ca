//! Rows that f32 does not carry, computed again in f64: [`exact`] for sequences.

use core::marker::PhantomData;

use cuda_std::{math, shared, sync, thread};
use kernel_spec::TensorParams;
use kernel_spec::families::sequences::SequencesParams;

use crate::attention::query_block::QueryRow;
use crate::attention::sequences::place::{Place, lse_address, row_address};
use crate::attention::sequences::rows::SequenceRows;
use crate::attention::sequences::sequence::Sequence;
use crate::attention::{Config, exact, score, sink};
use crate::parts::element::Element;
use crate::parts::rows::{GlobalRows, RowSource, RowWalk};

/// The keys and values of a head, in the cache or wherever they are.
struct CachePlaces<T> {
    k: SequenceRows<T>,
    v: SequenceRows<T>,
}

impl<T: Element> exact::Places for CachePlaces<T> {
    #[inline(always)]
    fn key(&self, key: u32) -> u64 {
        self.k.walk(key, 1, 0).address()
    }

    #[inline(always)]
    fn value(&self, key: u32) -> u64 {
        self.v.walk(key, 1, 0).address()
    }
}

/// Computes a row in f64, see [`exact`].
///
/// # Safety
/// All threads of the warp, converged; the row exists, and nobody else touches it.
#[inline(always)]
pub unsafe fn mend_row<T: Element>(p: &SequencesParams, sequence: &Sequence, place: &Place, at: QueryRow) {
    let problem = &sequence.problem;
    let rows = |tensor: &TensorParams| GlobalRows {
        address: tensor.address + place.kv_head as u64 * tensor.head_stride * T::BYTES as u64,
        row_bytes: tensor.row_stride * T::BYTES as u64,
        rows: problem.kv_rows,
        cols: 0,
        aligned: false,
        whole: false,
        element: PhantomData::<T>,
    };
    let k = SequenceRows::new(&rows(&problem.k), sequence.pages, &problem.k);
    let v = SequenceRows::new(&rows(&problem.v), sequence.pages, &problem.v);
    let [first, end] = problem.band.keys(at.row, problem.q_rows, problem.kv_rows);
    let row = exact::Row {
        p: problem,
        q: row_address::<T>(&problem.q, place, at),
        places: CachePlaces { k, v },
        lse: if problem.lse == 0 { 0 } else { lse_address(problem.lse, p, place.q_head, at) },
        at: score::Place {
            batch: place.sequence,
            head: place.q_head + at.head,
            row: at.row,
            key: 0,
            q_rows: problem.q_rows,
            kv_rows: problem.kv_rows,
        },
        first,
        end,
        sink: sink::of_head(&problem.features, place.q_head + at.head),
        has_late_sink: false,
        random: None,
        element: PhantomData::<T>,
    };
    // SAFETY: passed on.
    unsafe { row.attend::<T>(row_address::<T>(&problem.out, place, at)) };
}

/// Computes rows of the thread block again, see [`exact::mend`]; with one split.
///
/// # Safety
/// All threads of the block, converged, when the output has been written.
#[inline(always)]
pub unsafe fn mend<C: Config<Out = <C as Config>::T>>(p: &SequencesParams, not_finite: bool) {
    // SAFETY: as in `exact::mend`.
    unsafe {
        if sync::block_any(not_finite) {
            let copy = shared::generic(shared::dynamic());
            if thread::index() == 0 {
                *(copy as *mut SequencesParams) = *p;
            }
            sync::block();
            mend_block::<C>(copy);
        }
    }
}

/// A function that is called, as in [`exact`].
///
/// # Safety
/// As for [`mend`], behind its barriers; `params` is an address of the kernel's parameters.
#[inline(never)]
unsafe fn mend_block<C: Config<Out = <C as Config>::T>>(params: u64) {
    // SAFETY: every warp takes other rows.
    unsafe {
        let p = &*(params as *const SequencesParams);
        // In a cluster, each thread block has rows of its own to look at.
        let (index, split) = p.splits.split(thread::block_index());
        let Some(place) = Place::of(p, index, C::ROW.q_block) else { return };
        let sequence = Sequence::of(p, place.sequence, C::T::BYTES);
        let rows = sequence.problem.q_rows;
        let tiles = (rows << p.packed_log2).div_ceil(C::ROW.q_block);
        let first_row = (tiles - 1 - place.tile) * C::ROW.q_block;
        let step = math::opaque(C::ROW.warps) * p.splits.value;
        let first = split + thread::warp_index() * p.splits.value;
        for index in (first..math::opaque(C::ROW.q_block)).step_by(step as usize) {
            let row = first_row + index;
            let at = QueryRow { head: row & ((1 << p.packed_log2) - 1), row: row >> p.packed_log2 };
            if at.row < rows && at.head < place.heads {
                let out = row_address::<C::T>(&sequence.problem.out, &place, at);
                if exact::holds_no_number::<C::T>(thread::lane(), out, p.forward.dim_v) {
                    mend_row::<C::T>(p, &sequence, &place, at);
                }
            }
        }
    }
}
