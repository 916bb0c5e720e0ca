//! Partial results of the same rows over disjoint keys, put together: `m = max lse_i`, `lse = m + ln sum e^(lse_i - m)`,
//! `out = sum e^(lse_i - lse) out_i`.
//!
//! A thread has four columns of a row, so that every lane has work whatever the head dim is, and waits for no other: it reads the few
//! log-sum-exps of its row itself, which its neighbours bring into the cache. Each partial result is read once.

use core::f32::consts::{LN_2, LOG2_E};

use core::mem::offset_of;

use cuda_std::{copy, math, thread};
use kernel_spec::families::forward::TensorParams;
use kernel_spec::families::merge::{COLUMNS, MergeParams, PartParams};

use crate::parts::element::Element;

/// Partial results that are read at a time.
const AT_A_TIME: usize = 4;

/// Weights are multiplied with this before they meet values: the sum of as many values as there are partial results at most, each of them as large as f32 has
/// numbers, is then such a number too.
const SHRINK: f32 = 1.0 / 128.0;

/// One thread block of the merge. `param` reads 8 bytes of the parameters, so many behind the first: of a partial result whose number is known
/// at run time alone.
///
/// # Safety
/// Kernel entry: all threads of the block.
#[inline(always)]
pub unsafe fn merge<T: Element, Out: Element>(p: &MergeParams, param: impl Fn(usize) -> u64) {
    let (in_block, quarter) = p.row_threads.split(thread::index());
    let index = thread::block_index() * p.block_rows + in_block;
    if in_block >= p.block_rows || index >= p.all_rows {
        return;
    }
    let (row, head) = p.heads.split(index);
    let (batch, row) = p.rows.split(row);
    let place = Place { batch, row, head, col: quarter * COLUMNS };
    let in_lse = ((batch as u64 * p.heads.value as u64 + head as u64) * p.rows.value as u64 + row as u64) * 4;

    let mut max = f32::NEG_INFINITY;
    let mut total = 0.0;
    let mut acc = [0.0; 4];
    for first in (0..p.count).step_by(AT_A_TIME) {
        // Reads first, and then the sums: one after the other, each partial result would wait for the memory.
        let mut lses = [f32::NEG_INFINITY; AT_A_TIME];
        let mut fours = [[0.0; 4]; AT_A_TIME];
        for i in 0..AT_A_TIME {
            if first + (i as u32) < p.count {
                // SAFETY: there is such a partial result, and the row and its columns are in it.
                unsafe {
                    let PartParams { out, lse } = part(first as usize + i, &param);
                    lses[i] = copy::load_f32(lse + in_lse);
                    fours[i] = load_four::<T>(place.address::<T>(&out), p.aligned != 0);
                }
            }
        }
        let mut largest = max;
        for i in 0..AT_A_TIME {
            // A NaN loses here, and makes its weight NaN.
            largest = math::max(largest, lses[i]);
        }
        let base = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
        let rescale = math::exp2((max - base) * LOG2_E);
        max = largest;
        // With no sum yet there may be no number to multiply with.
        total = if first == 0 { 0.0 } else { total * rescale };
        for c in 0..4 {
            acc[c] = if first == 0 { 0.0 } else { acc[c] * rescale };
        }
        for i in 0..AT_A_TIME {
            // Where no key was seen, whatever is there plays no part.
            let counts = lses[i] != f32::NEG_INFINITY;
            let weight = if counts { math::exp2((lses[i] - base) * LOG2_E) } else { 0.0 };
            total += weight;
            for c in 0..4 {
                acc[c] = math::fma(weight * SHRINK, if counts { fours[i][c] } else { 0.0 }, acc[c]);
            }
        }
    }

    let empty = max == f32::NEG_INFINITY && total == 0.0;
    let factor = if empty { 0.0 } else { math::reciprocal(total * SHRINK) };
    // SAFETY: inside the output and the log-sum-exp, which no other thread writes.
    unsafe {
        let to = place.address::<Out>(&p.out);
        let four = acc.map(|x| x * factor);
        if p.out_aligned != 0 {
            Out::store_four(to, four);
        } else {
            for c in 0..4 {
                Out::store(to + (c * Out::BYTES) as u64, four[c]);
            }
        }
        if p.lse != 0 && quarter == 0 {
            let lse = if empty { f32::NEG_INFINITY } else { max + math::log2(total) * LN_2 };
            copy::store_f32(p.lse + in_lse, lse);
        }
    }
}

/// A partial result.
#[inline(always)]
fn part(index: usize, param: impl Fn(usize) -> u64) -> PartParams {
    let at = |offset: usize| param(offset_of!(MergeParams, parts) + index * size_of::<PartParams>() + offset);
    let out = TensorParams {
        address: at(offset_of!(PartParams, out.address)),
        batch_stride: at(offset_of!(PartParams, out.batch_stride)),
        row_stride: at(offset_of!(PartParams, out.row_stride)),
        head_stride: at(offset_of!(PartParams, out.head_stride)),
    };
    PartParams { out, lse: at(offset_of!(PartParams, lse)) }
}

/// Where a thread works.
#[derive(Clone, Copy)]
struct Place {
    batch: u32,
    row: u32,
    head: u32,
    col: u32,
}

impl Place {
    /// The address of its first column.
    #[inline(always)]
    fn address<T: Element>(self, tensor: &TensorParams) -> u64 {
        let TensorParams { address, batch_stride, row_stride, head_stride } = *tensor;
        let rows = self.batch as u64 * batch_stride + self.row as u64 * row_stride + self.head as u64 * head_stride;
        address + (rows + self.col as u64) * T::BYTES as u64
    }
}

/// Reads four neighbours.
///
/// # Safety
/// The address is valid, and where `aligned` a multiple of the four elements together.
#[inline(always)]
unsafe fn load_four<T: Element>(global: u64, aligned: bool) -> [f32; 4] {
    // SAFETY: passed on.
    unsafe {
        if aligned {
            return T::load_four(global);
        }
        let mut four = [0.0; 4];
        for c in 0..4 {
            four[c] = T::load(global + (c * T::BYTES) as u64);
        }
        four
    }
}
