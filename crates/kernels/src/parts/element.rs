//! Element types: how single elements and pairs of them move and round.

use cuda_std::mma::{m16n8k16_bf16, m16n8k16_f16};
use cuda_std::{bf16, copy, f16, math, shared};

/// An element type of a tensor.
pub trait Element: Copy {
    /// Bytes of an element.
    const BYTES: usize;
    /// Elements in 16 bytes.
    const CHUNK: usize = 16 / Self::BYTES;
    /// The sign bits in a 32-bit word of elements.
    const SIGN_BITS: u32;
    /// Largest scaled maximum of a row, in powers of two, against which weights of this type are measured: half a unit in its last place
    /// is below half a unit of a weight near 1, so that the weight of the largest score is rounded to 1.
    const LARGEST_MAX_LOG2: f32;
    /// The smallest number that is rounded to infinity: half a unit above the largest element.
    const TOO_LARGE: f32;

    /// Whether a number is a finite element once it is rounded.
    #[inline(always)]
    fn rounds_to_number(x: f32) -> bool {
        math::abs(x) < Self::TOO_LARGE
    }

    /// Reads one element.
    ///
    /// # Safety
    /// The address is valid.
    unsafe fn load(global: u64) -> f32;

    /// Reads one element where `index < bound`, without a branch, and gives 0 elsewhere.
    ///
    /// # Safety
    /// Where it reads, the address is valid.
    unsafe fn load_within(global: u64, index: u32, bound: u32) -> f32;

    /// Reads two neighbours where `index < bound`, without a branch, and gives zeros elsewhere.
    ///
    /// # Safety
    /// Where it reads, the address is valid and aligned to both elements together.
    unsafe fn load_two_within(global: u64, index: u32, bound: u32) -> [f32; 2];

    /// Rounds one element and writes it where `index < bound`, without a branch.
    ///
    /// # Safety
    /// Where it writes, the address is valid, and no other thread touches it.
    unsafe fn store_within(global: u64, value: f32, index: u32, bound: u32);

    /// Reads four neighbours.
    ///
    /// # Safety
    /// The address is valid and aligned to the four elements together.
    unsafe fn load_four(global: u64) -> [f32; 4];

    /// The elements in 16 bytes, of which there are [`CHUNK`](Element::CHUNK): what is behind them is 0.
    fn widen_chunk(words: [u32; 4]) -> [f32; 8];

    /// The first [`CHUNK`](Element::CHUNK) numbers, rounded, in 16 bytes.
    fn round_chunk(values: [f32; 8]) -> [u32; 4];

    /// The sum of the products of the elements in 16 bytes at `a` and at `b`, in global memory, and of `sum`.
    ///
    /// # Safety
    /// Both addresses are valid and multiples of 16.
    unsafe fn dot_chunk(a: u64, b: u64, sum: f32) -> f32;

    /// Rounds and writes one element.
    ///
    /// # Safety
    /// The address is valid, and no other thread touches it.
    unsafe fn store(global: u64, value: f32);

    /// Copies one element from global to shared memory, or writes zero.
    ///
    /// # Safety
    /// Both addresses are valid; the global one only has to be when `inside`.
    unsafe fn copy_or_zero(shared: u32, global: u64, inside: bool);

    /// Copies one element from shared to global memory.
    ///
    /// # Safety
    /// Both addresses are valid.
    unsafe fn copy_out(global: u64, shared: u32);

    /// Rounds two neighbours and writes them to shared memory.
    ///
    /// # Safety
    /// The address is valid and aligned to both elements together.
    unsafe fn store_pair(shared: u32, pair: [f32; 2]);

    /// Rounds two neighbours and writes them to global memory.
    ///
    /// # Safety
    /// The address is valid and aligned to both elements together.
    unsafe fn store_two(global: u64, two: [f32; 2]);

    /// Rounds four neighbours and writes them to global memory.
    ///
    /// # Safety
    /// The address is valid and aligned to the four elements together.
    unsafe fn store_four(global: u64, four: [f32; 4]);
}

/// A 16-bit element type of the tensor cores.
pub trait TensorCore: Copy {
    /// See [`Element::LARGEST_MAX_LOG2`].
    const LARGEST_MAX_LOG2: f32;
    /// See [`Element::TOO_LARGE`].
    const TOO_LARGE: f32;

    /// The nearest element, as its bits.
    fn round(x: f32) -> u16;

    /// The value of an element, given its bits.
    fn widen(bits: u16) -> f32;

    /// `d += a b` (see `cuda_std::mma`).
    ///
    /// # Safety
    /// Converged warp.
    unsafe fn mma(d: &mut [f32; 4], a: [u32; 4], b: [u32; 2]);

    /// Rounds two values and packs them, `low` in the lower half.
    fn pack(low: f32, high: f32) -> u32;

    /// `a b + c` for pairs of elements.
    fn fma_pair(a: u32, b: u32, c: u32) -> u32;
}

impl TensorCore for f16 {
    // Half a unit of it is 2^-12 and turns a weight of 1 into at most 1 + 0.7 * 2^-12, where the next f16 is 1 + 2^-10.
    const LARGEST_MAX_LOG2: f32 = 4096.0;
    const TOO_LARGE: f32 = 65520.0;

    #[inline(always)]
    fn round(x: f32) -> u16 {
        f16::from_f32(x).0
    }

    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        f16(bits).to_f32()
    }

    #[inline(always)]
    unsafe fn mma(d: &mut [f32; 4], a: [u32; 4], b: [u32; 2]) {
        // SAFETY: passed on.
        unsafe { m16n8k16_f16(d, a, b) }
    }

    #[inline(always)]
    fn pack(low: f32, high: f32) -> u32 {
        f16::pack(low, high)
    }

    #[inline(always)]
    fn fma_pair(a: u32, b: u32, c: u32) -> u32 {
        f16::fma_pair(a, b, c)
    }
}

impl TensorCore for bf16 {
    // As for f16, with three bits less.
    const LARGEST_MAX_LOG2: f32 = 32768.0;
    const TOO_LARGE: f32 = f32::from_bits(0x7f7f_8000);

    #[inline(always)]
    fn round(x: f32) -> u16 {
        bf16::from_f32(x).0
    }

    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        bf16(bits).to_f32()
    }

    #[inline(always)]
    unsafe fn mma(d: &mut [f32; 4], a: [u32; 4], b: [u32; 2]) {
        // SAFETY: passed on.
        unsafe { m16n8k16_bf16(d, a, b) }
    }

    #[inline(always)]
    fn pack(low: f32, high: f32) -> u32 {
        bf16::pack(low, high)
    }

    #[inline(always)]
    fn fma_pair(a: u32, b: u32, c: u32) -> u32 {
        bf16::fma_pair(a, b, c)
    }
}

impl<T: TensorCore> Element for T {
    const BYTES: usize = 2;
    const SIGN_BITS: u32 = 0x8000_8000;
    const LARGEST_MAX_LOG2: f32 = <T as TensorCore>::LARGEST_MAX_LOG2;
    const TOO_LARGE: f32 = <T as TensorCore>::TOO_LARGE;

    #[inline(always)]
    unsafe fn load(global: u64) -> f32 {
        // SAFETY: passed on.
        T::widen(unsafe { copy::load_u16(global) })
    }

    #[inline(always)]
    unsafe fn load_within(global: u64, index: u32, bound: u32) -> f32 {
        // SAFETY: passed on.
        T::widen(unsafe { copy::load_u16_within(global, index, bound) })
    }

    #[inline(always)]
    unsafe fn load_two_within(global: u64, index: u32, bound: u32) -> [f32; 2] {
        // SAFETY: passed on.
        let two = unsafe { copy::load_u32_within(global, index, bound) };
        [T::widen(two as u16), T::widen((two >> 16) as u16)]
    }

    #[inline(always)]
    unsafe fn store_within(global: u64, value: f32, index: u32, bound: u32) {
        // SAFETY: passed on.
        unsafe { copy::store_u16_within(global, T::round(value), index, bound) };
    }

    #[inline(always)]
    unsafe fn load_four(global: u64) -> [f32; 4] {
        // SAFETY: passed on.
        let [low, high] = unsafe { copy::load_u32x2(global) };
        [T::widen(low as u16), T::widen((low >> 16) as u16), T::widen(high as u16), T::widen((high >> 16) as u16)]
    }

    #[inline(always)]
    fn widen_chunk(words: [u32; 4]) -> [f32; 8] {
        let mut values = [0.0; 8];
        for i in 0..4 {
            values[2 * i] = T::widen(words[i] as u16);
            values[2 * i + 1] = T::widen((words[i] >> 16) as u16);
        }
        values
    }

    #[inline(always)]
    fn round_chunk(values: [f32; 8]) -> [u32; 4] {
        let mut words = [0; 4];
        for i in 0..4 {
            words[i] = T::pack(values[2 * i], values[2 * i + 1]);
        }
        words
    }

    #[inline(always)]
    unsafe fn dot_chunk(a: u64, b: u64, mut sum: f32) -> f32 {
        // SAFETY: passed on.
        let (a, b) = unsafe { (copy::load_u32x4(a), copy::load_u32x4(b)) };
        // By index: iterators over arrays would put them into local memory.
        for i in 0..4 {
            let (a, b) = (a[i], b[i]);
            sum = math::fma(T::widen(a as u16), T::widen(b as u16), sum);
            sum = math::fma(T::widen((a >> 16) as u16), T::widen((b >> 16) as u16), sum);
        }
        sum
    }

    #[inline(always)]
    unsafe fn store(global: u64, value: f32) {
        // SAFETY: passed on.
        unsafe { copy::store_u16(global, T::round(value)) };
    }

    #[inline(always)]
    unsafe fn copy_or_zero(shared: u32, global: u64, inside: bool) {
        // SAFETY: passed on.
        unsafe { shared::store_u16(shared, if inside { copy::load_u16(global) } else { 0 }) };
    }

    #[inline(always)]
    unsafe fn copy_out(global: u64, shared: u32) {
        // SAFETY: passed on.
        unsafe { copy::store_u16(global, shared::load_u16(shared)) };
    }

    #[inline(always)]
    unsafe fn store_pair(shared: u32, pair: [f32; 2]) {
        // SAFETY: passed on.
        unsafe { shared::store_u32(shared, T::pack(pair[0], pair[1])) };
    }

    #[inline(always)]
    unsafe fn store_two(global: u64, two: [f32; 2]) {
        // SAFETY: passed on.
        unsafe { copy::store_u32(global, T::pack(two[0], two[1])) };
    }

    #[inline(always)]
    unsafe fn store_four(global: u64, four: [f32; 4]) {
        // SAFETY: passed on.
        unsafe { copy::store_u32x2(global, [T::pack(four[0], four[1]), T::pack(four[2], four[3])]) };
    }
}

impl Element for f32 {
    const BYTES: usize = 4;
    const SIGN_BITS: u32 = 0x8000_0000;
    // Weights are not rounded, so the factor cancels; but scores of this size have errors that show.
    const LARGEST_MAX_LOG2: f32 = 4096.0;
    const TOO_LARGE: f32 = f32::INFINITY;

    #[inline(always)]
    unsafe fn load(global: u64) -> f32 {
        // SAFETY: passed on.
        unsafe { copy::load_f32(global) }
    }

    #[inline(always)]
    unsafe fn load_within(global: u64, index: u32, bound: u32) -> f32 {
        // SAFETY: passed on.
        f32::from_bits(unsafe { copy::load_u32_within(global, index, bound) })
    }

    #[inline(always)]
    unsafe fn load_two_within(global: u64, index: u32, bound: u32) -> [f32; 2] {
        // SAFETY: passed on.
        [0, 4].map(|offset| f32::from_bits(unsafe { copy::load_u32_within(global + offset, index, bound) }))
    }

    #[inline(always)]
    unsafe fn store_within(global: u64, value: f32, index: u32, bound: u32) {
        // SAFETY: passed on.
        unsafe { copy::store_u32_within(global, value.to_bits(), index, bound) };
    }

    #[inline(always)]
    unsafe fn load_four(global: u64) -> [f32; 4] {
        // SAFETY: passed on.
        unsafe { copy::load_f32x4(global) }
    }

    #[inline(always)]
    fn widen_chunk(words: [u32; 4]) -> [f32; 8] {
        let mut values = [0.0; 8];
        for i in 0..4 {
            values[i] = f32::from_bits(words[i]);
        }
        values
    }

    #[inline(always)]
    fn round_chunk(values: [f32; 8]) -> [u32; 4] {
        let mut words = [0; 4];
        for i in 0..4 {
            words[i] = values[i].to_bits();
        }
        words
    }

    #[inline(always)]
    unsafe fn dot_chunk(a: u64, b: u64, mut sum: f32) -> f32 {
        // SAFETY: passed on.
        let (a, b) = unsafe { (copy::load_f32x4(a), copy::load_f32x4(b)) };
        for i in 0..4 {
            sum = math::fma(a[i], b[i], sum);
        }
        sum
    }

    #[inline(always)]
    unsafe fn store(global: u64, value: f32) {
        // SAFETY: passed on.
        unsafe { copy::store_f32(global, value) };
    }

    #[inline(always)]
    unsafe fn copy_or_zero(shared: u32, global: u64, inside: bool) {
        // SAFETY: passed on.
        unsafe { shared::store_f32(shared, if inside { copy::load_f32(global) } else { 0.0 }) };
    }

    #[inline(always)]
    unsafe fn copy_out(global: u64, shared: u32) {
        // SAFETY: passed on.
        unsafe { copy::store_f32(global, shared::load_f32(shared)) };
    }

    #[inline(always)]
    unsafe fn store_pair(shared: u32, pair: [f32; 2]) {
        // SAFETY: passed on.
        unsafe { shared::store_f32x2(shared, pair) };
    }

    #[inline(always)]
    unsafe fn store_two(global: u64, two: [f32; 2]) {
        // SAFETY: passed on.
        unsafe { copy::store_f32x2(global, two) };
    }

    #[inline(always)]
    unsafe fn store_four(global: u64, four: [f32; 4]) {
        // SAFETY: passed on.
        unsafe { copy::store_u32x4(global, four.map(f32::to_bits)) };
    }
}
