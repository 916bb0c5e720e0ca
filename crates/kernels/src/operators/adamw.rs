//! AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 2), of each element of a list of tensors:
//!
//! ```text
//! g = scale gradient        m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2
//! w = (1 - rate decay) w - rate / (1 - beta1^step) m / (sqrt(v) / sqrt(1 - beta2^step) + epsilon)
//! ```
//!
//! All in f32; where parameters are kept in f32 too, `w` is that, and the parameter is what it rounds to.
//!
//! It is bound by memory. A thread has 16 bytes of parameters, and loads all that goes with them before it computes; nobody waits for anybody. Which tensor a
//! thread block works on is found by halving the list, which lies in the parameters of the kernel:
//!
//! ```text
//! thread blocks  0 1 2 3 | 4 | 5 6 7 8 9 10 | 11 12        tensors  0, 1, 2, 3: the last whose first block is not behind
//! ```

use core::mem::offset_of;

use cuda_std::{copy, math, thread};
use kernel_spec::Divisor;
use kernel_spec::families::adamw::{AdamWParams, TensorParams};
use kernel_spec::families::rows::VECTOR_BYTES;

use crate::operators::row::{Columns, Config, Seat};
use crate::parts::element::Element;

/// One thread block. `param` reads 8 bytes of the parameters, so many behind the first: of a tensor whose number is known at run time alone.
///
/// # Safety
/// Kernel entry: all threads of the block.
#[inline(always)]
pub unsafe fn adamw<C: Config>(p: &AdamWParams, param: impl Fn(usize) -> u64) {
    let (tensor, block) = find(p, &param);
    let own_elements = const { C::TILE.columns() };
    let before = block as u64 * own_elements as u64;
    // Fits: the smaller of the two is.
    let room = (tensor.elements - before).min(own_elements as u64) as u32;
    let all = tensor.parameter | tensor.gradient | tensor.moment | tensor.second_moment | tensor.master;
    // Of a last thread block with a piece of a vector, all threads read single elements.
    let aligned = all % VECTOR_BYTES as u64 == 0 && room % C::CHUNK == 0;
    let own = Columns::of::<C>(&Seat::of::<C>(&const { Divisor::new(1) }), 0, room, room, aligned, true);
    let wide_gradient = tensor.first_block & TensorParams::WIDE_GRADIENT != 0;
    let at = #[inline(always)]
    |address: u64, wide: bool| address + before * if wide { 4 } else { C::T::BYTES as u64 };
    // SAFETY: the elements of the thread block are in all tensors, and are this thread's alone; single numbers are there where they have an address.
    unsafe {
        let gradient = own.load_one::<C>(at(tensor.gradient, wide_gradient), wide_gradient, 0);
        let mut moment = own.load_one::<C>(at(tensor.moment, true), true, 0);
        let mut second_moment = own.load_one::<C>(at(tensor.second_moment, true), true, 0);
        let mut weight = if tensor.master != 0 {
            own.load_one::<C>(at(tensor.master, true), true, 0)
        } else {
            own.load_one::<C>(at(tensor.parameter, false), false, 0)
        };
        let scale = if p.gradient_factor == 0 {
            p.gradient_scale
        } else {
            p.gradient_scale * copy::load_f32(p.gradient_factor)
        };
        let [mut rate, root] = if p.step == 0 { [p.rate, p.root] } else { corrected(p) };
        let mut decay = p.decay;
        if p.device_rate != 0 {
            let on_device = copy::load_f32(p.device_rate);
            (rate, decay) = (rate * on_device, decay * on_device);
        }
        for e in 0..C::T::CHUNK {
            let g = gradient[e] * scale;
            moment[e] = math::fma(p.moment[0], moment[e], p.moment[1] * g);
            second_moment[e] = math::fma(p.second_moment[0], second_moment[e], p.second_moment[1] * g * g);
            let deviation = math::fma(math::sqrt(second_moment[e]), root, p.epsilon);
            let decayed = math::fma(-decay, weight[e], weight[e]);
            weight[e] = math::fma(-rate * moment[e], math::reciprocal(deviation), decayed);
        }
        own.store::<C>(at(tensor.moment, true), true, 0, moment);
        own.store::<C>(at(tensor.second_moment, true), true, 0, second_moment);
        own.store::<C>(at(tensor.parameter, false), false, 0, weight);
        if tensor.master != 0 {
            own.store::<C>(at(tensor.master, true), true, 0, weight);
        }
    }
}

/// The tensor of this thread block, and which of those of the tensor it is.
#[inline(always)]
fn find(p: &AdamWParams, param: impl Fn(usize) -> u64) -> (TensorParams, u32) {
    let at = |index: u32, offset: usize| {
        param(offset_of!(AdamWParams, tensors) + index as usize * size_of::<TensorParams>() + offset)
    };
    let (mut first, mut end) = (0, p.count);
    while end - first > 1 {
        let middle = (first + end) / 2;
        let starts = at(middle, offset_of!(TensorParams, first_block)) as u32;
        if starts <= thread::block_index() { first = middle } else { end = middle }
    }
    let tensor = TensorParams {
        parameter: at(first, offset_of!(TensorParams, parameter)),
        gradient: at(first, offset_of!(TensorParams, gradient)),
        moment: at(first, offset_of!(TensorParams, moment)),
        second_moment: at(first, offset_of!(TensorParams, second_moment)),
        master: at(first, offset_of!(TensorParams, master)),
        elements: at(first, offset_of!(TensorParams, elements)),
        first_block: at(first, offset_of!(TensorParams, first_block)),
    };
    (tensor, thread::block_index() - tensor.first_block as u32)
}

/// The learning rate over `1 - beta1^step`, and `1 / sqrt(1 - beta2^step)`, for a step that the device counts. A number below 1 is taken for 1.
///
/// # Safety
/// There is such a number.
#[inline(always)]
unsafe fn corrected(p: &AdamWParams) -> [f32; 2] {
    // SAFETY: passed on.
    let mut left = (unsafe { copy::load_u32(p.step) } as i32).max(1) as u32;
    // In f64: what is left of 1 - 0.999 in f32 would have four digits.
    let mut squares = [f64::from_bits(p.betas[0]), f64::from_bits(p.betas[1])];
    let mut powers = [1.0, 1.0];
    while left > 0 {
        for i in 0..2 {
            powers[i] *= if left & 1 == 1 { squares[i] } else { 1.0 };
            squares[i] *= squares[i];
        }
        left >>= 1;
    }
    let [moment, second_moment] = powers.map(|power| (1.0 - power) as f32);
    [p.rate * math::reciprocal(moment), math::reciprocal(math::sqrt(second_moment))]
}
