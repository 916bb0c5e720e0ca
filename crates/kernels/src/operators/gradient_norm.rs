//! The norm of all gradients of a list of tensors, and the coefficient of clipping (Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent
//! neural networks", 2013, algorithm 1):
//!
//! ```text
//! norm = scale sqrt(sum of squares)        coefficient = min(1, most / (norm + 1e-6))
//! ```
//!
//! Each thread block writes the sum of the squares of its elements; a last one adds these. Every sum is in one order, without atomics: the same bits from run
//! to run.
//!
//! ```text
//! tensors 0, 1, ..  ->  thread blocks  ->  parts  ->  one thread block  ->  norm, coefficient
//! ```

use core::mem::offset_of;

use cuda_std::{copy, math, thread};
use kernel_spec::Divisor;
use kernel_spec::families::gradient_norm::{NormParams, SquaresParams, TensorParams, VECTORS};
use kernel_spec::families::rows::VECTOR_BYTES;

use crate::operators::row::{Columns, Config, Seat};
use crate::operators::sums::Sums;
use crate::parts::element::Element;

/// Is added to the norm where it divides, so that one of 0 clips nothing.
const EPSILON: f32 = 1e-6;

/// One thread block of the squares. `param` reads 8 bytes of the parameters, so many behind the first: of a tensor whose number is known at run time alone.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the row asks for.
#[inline(always)]
pub unsafe fn squares<C: Config>(p: &SquaresParams, param: impl Fn(usize) -> u64) {
    let at = |index: u32, offset: usize| {
        param(offset_of!(SquaresParams, tensors) + index as usize * size_of::<TensorParams>() + offset)
    };
    let starts = |index: u32| at(index, offset_of!(TensorParams, first_block)) as u32;
    // The last tensor that does not start behind the thread block.
    let (mut first, mut end) = (0, p.count);
    while end - first > 1 {
        let middle = (first + end) / 2;
        if starts(middle) <= thread::block_index() { first = middle } else { end = middle }
    }
    let (address, elements) =
        (at(first, offset_of!(TensorParams, address)), at(first, offset_of!(TensorParams, elements)));
    let tile_elements = const { C::TILE.columns() as u64 };
    let before = (thread::block_index() - starts(first)) as u64 * tile_elements * VECTORS as u64;
    let seat = Seat::of::<C>(&const { Divisor::new(1) });
    let mut held = [[0.0; 8]; VECTORS as usize];
    for v in 0..VECTORS as usize {
        let from = before + v as u64 * tile_elements;
        // Fits: the smaller of the two is. Of a last tile with a piece of a vector, all threads read single elements.
        let room = elements.saturating_sub(from).min(tile_elements) as u32;
        let aligned = address % VECTOR_BYTES as u64 == 0 && room % C::CHUNK == 0;
        let own = Columns::of::<C>(&seat, 0, room, room, aligned, true);
        // SAFETY: elements behind the last are not read.
        held[v] = unsafe { own.load_one::<C>(address + from * C::T::BYTES as u64, false, 0) };
    }
    let mut sum = 0.0;
    for v in 0..VECTORS as usize {
        for e in 0..C::T::CHUNK {
            sum = math::fma(held[v][e], held[v][e], sum);
        }
    }
    // SAFETY: all threads come here; the first writes the one number of the thread block.
    unsafe {
        let [sum] = Sums::new::<C>(&seat).over::<C, 1>([sum]);
        if seat.is_first() {
            copy::store_f32(p.parts + (p.first_part + thread::block_index()) as u64 * 4, sum);
        }
    }
}

/// Sums that a thread of [`norm`] has loads of in flight at a time.
const LOADS: usize = 8;

/// The only thread block of the norm.
///
/// # Safety
/// Kernel entry: all threads of the block, with the shared memory that the row asks for.
#[inline(always)]
pub unsafe fn norm<C: Config>(p: &NormParams) {
    let seat = Seat::of::<C>(&const { Divisor::new(1) });
    let mut sum = 0.0;
    let mut first = seat.thread;
    // SAFETY: sums below their number exist; all threads come to the sum of these, and the first writes the results.
    unsafe {
        while first < p.count {
            let mut found = [0.0; LOADS];
            for i in 0..LOADS {
                let index = first + i as u32 * C::ROW_THREADS;
                if index < p.count {
                    found[i] = copy::load_f32(p.parts + index as u64 * 4);
                }
            }
            for i in 0..LOADS {
                sum += found[i];
            }
            first += LOADS as u32 * C::ROW_THREADS;
        }
        let [sum] = Sums::new::<C>(&seat).over::<C, 1>([sum]);
        if seat.is_first() {
            let norm = math::sqrt(sum) * p.scale;
            let coefficient = p.most * math::reciprocal(norm + EPSILON);
            copy::store_f32(p.out, norm);
            // What is no number stays none.
            copy::store_f32(p.out + 4, if coefficient > 1.0 { 1.0 } else { coefficient });
        }
    }
}
