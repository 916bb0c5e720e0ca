//! The products of attention for each element type, over tiles: `q k^T` and `p v`.
//!
//! 16-bit types use the tensor cores (`ldmatrix`, `mma.sync`). `f32` uses the ordinary float units, so that no bit of the inputs
//! is dropped, but keeps the accumulators in the same lanes; everything around the products is therefore written once.

use cuda_std::mma::{load_matrix_x4, load_matrix_x4_transposed, m16n8k16_bf16, m16n8k16_f16};
use cuda_std::{bf16, copy, f16, math, shared, thread, warp};
use kernel_spec::layout::CHUNK_BYTES;

use crate::tile::{RegTile, SharedTile};

/// An element type of q, k, v and out.
pub trait Element: Copy {
    /// Bytes of an element.
    const BYTES: usize;
    /// The sign bits in a 32-bit word of elements.
    const SIGN_BITS: u32;
    /// Probabilities of this type, in the lanes of their [`RegTile`].
    type Probs<const M: usize, const K: usize>;

    /// `acc += a b^T` for 16 M rows of `a` from `a_row` on and 8 N rows of `b` from `b_row` on.
    ///
    /// # Safety
    /// All threads of the warp, converged; both tiles are complete and behind a barrier.
    unsafe fn mul_transposed<const M: usize, const N: usize, const AR: usize, const BR: usize, const D: usize>(
        acc: &mut RegTile<M, N>,
        a: SharedTile<Self, AR, D>,
        a_row: u32,
        b: SharedTile<Self, BR, D>,
        b_row: u32,
    );

    /// Rounds probabilities to the element type.
    fn round_probs<const M: usize, const K: usize>(probs: &RegTile<M, K>) -> Self::Probs<M, K>;

    /// `acc += p v` for probabilities in registers and 8 K rows of `v` from `v_row` on.
    ///
    /// # Safety
    /// As for [`Element::mul_transposed`].
    unsafe fn mul_probs<const M: usize, const K: usize, const N: usize, const BR: usize, const D: usize>(
        acc: &mut RegTile<M, N>,
        probs: &Self::Probs<M, K>,
        v: SharedTile<Self, BR, D>,
        v_row: u32,
    );

    /// `acc += a v` for 16 M rows of `a` from `a_row` on.
    ///
    /// # Safety
    /// As for [`Element::mul_transposed`].
    unsafe fn mul<const M: usize, const N: usize, const AR: usize, const K: usize, const D: usize>(
        acc: &mut RegTile<M, N>,
        a: SharedTile<Self, AR, K>,
        a_row: u32,
        v: SharedTile<Self, K, D>,
    );

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

    /// Rounds four neighbours and writes them to global memory.
    ///
    /// # Safety
    /// The address is valid and aligned to the four elements together.
    unsafe fn store_four(global: u64, four: [f32; 4]);
}

/// A 16-bit element type of the tensor cores.
pub trait TensorCore: Copy {
    /// `d += a b` (see `cuda_std::mma`).
    ///
    /// # Safety
    /// Converged warp.
    unsafe fn mma(d: &mut [f32; 4], a: [u32; 4], b: [u32; 2]);

    /// Rounds two values and packs them, `low` in the lower half.
    fn pack(low: f32, high: f32) -> u32;
}

impl TensorCore for f16 {
    #[inline(always)]
    unsafe fn mma(d: &mut [f32; 4], a: [u32; 4], b: [u32; 2]) {
        // SAFETY: passed on.
        unsafe { m16n8k16_f16(d, a, b) }
    }

    #[inline(always)]
    fn pack(low: f32, high: f32) -> u32 {
        f16::pack(low, high)
    }
}

impl TensorCore for bf16 {
    #[inline(always)]
    unsafe fn mma(d: &mut [f32; 4], a: [u32; 4], b: [u32; 2]) {
        // SAFETY: passed on.
        unsafe { m16n8k16_bf16(d, a, b) }
    }

    #[inline(always)]
    fn pack(low: f32, high: f32) -> u32 {
        bf16::pack(low, high)
    }
}

/// The lane, opaque to the optimiser: what a product derives from it is computed anew at every step (a dozen integer
/// instructions) and holds no registers in between. v2 at head dim 128 spills otherwise.
#[inline(always)]
fn fresh_lane() -> u32 {
    math::opaque(thread::lane())
}

/// Rows of `v` that one `mma` multiplies.
const MMA_K: usize = 16;

/// `acc += a v` for one step of 16 rows of `v`; `a[m]` is the fragment of rows `16 m`, `v` gives the addresses of the step's
/// first 16 columns and `v_step` moves them by columns.
#[inline(always)]
unsafe fn mul_step<T: TensorCore, const M: usize, const N: usize>(
    acc: &mut RegTile<M, N>,
    a: &[[u32; 4]; M],
    v: impl Fn(usize) -> u32,
) {
    for n in 0..N / 2 {
        // SAFETY: passed on; 16 x 16 elements of v, as two fragments of 16 x 8.
        let [b0, b1, b2, b3] = unsafe { load_matrix_x4_transposed(v(n)) };
        for m in 0..M {
            // SAFETY: passed on.
            unsafe {
                T::mma(&mut acc.0[m][2 * n], a[m], [b0, b1]);
                T::mma(&mut acc.0[m][2 * n + 1], a[m], [b2, b3]);
            }
        }
    }
}

/// Probabilities of a 16-bit type, half the registers of a [`RegTile`]: elements 0 and 1, then 2 and 3 of each fragment.
#[derive(Clone, Copy)]
pub struct Packed<const M: usize, const K: usize>([[[u32; 2]; K]; M]);

impl<T: TensorCore> Element for T {
    const BYTES: usize = 2;
    const SIGN_BITS: u32 = 0x8000_8000;
    type Probs<const M: usize, const K: usize> = Packed<M, K>;

    #[inline(always)]
    unsafe fn mul_transposed<const M: usize, const N: usize, const AR: usize, const BR: usize, const D: usize>(
        acc: &mut RegTile<M, N>,
        a: SharedTile<T, AR, D>,
        a_row: u32,
        b: SharedTile<T, BR, D>,
        b_row: u32,
    ) {
        let lane = fresh_lane();
        // ldmatrix: lane l addresses row l % 8 of matrix l / 8. For `a` the matrices are (rows 0-7, k 0-7), (rows 8-15, k 0-7),
        // (rows 0-7, k 8-15), (rows 8-15, k 8-15); for `b` the middle two are swapped, which makes two fragments of 8 rows.
        let a = a.window(a_row + lane % 16, lane / 16);
        let b = b.window(b_row + lane / 16 * 8 + lane % 8, lane / 8 % 2);
        for k in 0..D / MMA_K {
            let mut a_fragments = [[0; 4]; M];
            for (m, fragment) in a_fragments.iter_mut().enumerate() {
                // SAFETY: passed on; inside the tile.
                *fragment = unsafe { load_matrix_x4(a.at(16 * m, 2 * k)) };
            }
            for n in 0..N / 2 {
                // SAFETY: passed on; inside the tile.
                let [b0, b1, b2, b3] = unsafe { load_matrix_x4(b.at(16 * n, 2 * k)) };
                for m in 0..M {
                    // SAFETY: passed on.
                    unsafe {
                        T::mma(&mut acc.0[m][2 * n], a_fragments[m], [b0, b1]);
                        T::mma(&mut acc.0[m][2 * n + 1], a_fragments[m], [b2, b3]);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn round_probs<const M: usize, const K: usize>(probs: &RegTile<M, K>) -> Self::Probs<M, K> {
        Packed(probs.0.map(|row| row.map(|p| [T::pack(p[0], p[1]), T::pack(p[2], p[3])])))
    }

    #[inline(always)]
    unsafe fn mul_probs<const M: usize, const K: usize, const N: usize, const BR: usize, const D: usize>(
        acc: &mut RegTile<M, N>,
        probs: &Self::Probs<M, K>,
        v: SharedTile<T, BR, D>,
        v_row: u32,
    ) {
        let lane = fresh_lane();
        let v = v.window(v_row + lane % 16, lane / 16);
        for k in 0..K / 2 {
            // Two neighbouring accumulator fragments hold exactly what one operand fragment wants, in the same lanes.
            let mut a = [[0; 4]; M];
            for m in 0..M {
                let [low, high] = [probs.0[m][2 * k], probs.0[m][2 * k + 1]];
                a[m] = [low[0], low[1], high[0], high[1]];
            }
            // SAFETY: passed on; inside the tile.
            unsafe { mul_step::<T, M, N>(acc, &a, |n| v.at(MMA_K * k, 2 * n)) };
        }
    }

    #[inline(always)]
    unsafe fn mul<const M: usize, const N: usize, const AR: usize, const K: usize, const D: usize>(
        acc: &mut RegTile<M, N>,
        a: SharedTile<T, AR, K>,
        a_row: u32,
        v: SharedTile<T, K, D>,
    ) {
        let lane = fresh_lane();
        let a = a.window(a_row + lane % 16, lane / 16);
        let v = v.window(lane % 16, lane / 16);
        for k in 0..K / MMA_K {
            let mut fragments = [[0; 4]; M];
            for (m, fragment) in fragments.iter_mut().enumerate() {
                // SAFETY: passed on; inside the tile.
                *fragment = unsafe { load_matrix_x4(a.at(16 * m, 2 * k)) };
            }
            // SAFETY: passed on; inside the tile.
            unsafe { mul_step::<T, M, N>(acc, &fragments, |n| v.at(MMA_K * k, 2 * n)) };
        }
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
    unsafe fn store_four(global: u64, four: [f32; 4]) {
        // SAFETY: passed on.
        unsafe { copy::store_u32x2(global, [T::pack(four[0], four[1]), T::pack(four[2], four[3])]) };
    }
}

/// `acc += a v` for one row of `v`: `a[m]` are the factors of a lane's two rows, `v` gives the address of its columns.
#[inline(always)]
unsafe fn mul_row<const M: usize, const N: usize>(
    acc: &mut RegTile<M, N>,
    a: &[[f32; 2]; M],
    v: impl Fn(usize) -> u32,
) {
    for n in 0..N {
        // SAFETY: passed on.
        let v = unsafe { shared::load_f32x2(v(n)) };
        for m in 0..M {
            for i in 0..4 {
                acc.0[m][n][i] = math::fma(a[m][i / 2], v[i % 2], acc.0[m][n][i]);
            }
        }
    }
}

/// 16-byte chunks in one panel row of `f32`, whose tiles always have panels of 128 bytes.
const F32_PANEL_CHUNKS: usize = 8;

/// Floats of a chunk.
const F32_CHUNK: usize = CHUNK_BYTES / 4;

impl Element for f32 {
    const BYTES: usize = 4;
    const SIGN_BITS: u32 = 0x8000_0000;
    type Probs<const M: usize, const K: usize> = RegTile<M, K>;

    #[inline(always)]
    unsafe fn mul_transposed<const M: usize, const N: usize, const AR: usize, const BR: usize, const D: usize>(
        acc: &mut RegTile<M, N>,
        a: SharedTile<f32, AR, D>,
        a_row: u32,
        b: SharedTile<f32, BR, D>,
        b_row: u32,
    ) {
        let lane = fresh_lane();
        // A lane needs rows l / 4 and l / 4 + 8 of `a`, and rows 2 (l % 4) and the next of `b`: its accumulators' place.
        let a = a.window(a_row + lane / 4, 0);
        let b = [b.window(b_row + lane % 4 * 2, 0), b.window(b_row + lane % 4 * 2 + 1, 0)];
        // One panel at a time, rolled: unrolled over 256 dims the body would not fit the instruction cache.
        for panel in 0..math::opaque((D / (F32_PANEL_CHUNKS * F32_CHUNK)) as u32) as usize {
            // Summed on its own before it joins the rest: with the long chain of 256 dims in pieces of 32, rounding errors shrink.
            let mut part = RegTile::<M, N>::zero();
            for chunk in 0..F32_PANEL_CHUNKS {
                let chunk = panel * F32_PANEL_CHUNKS + chunk;
                let mut a_values = [[[0.0; 4]; 2]; M];
                for (m, rows) in a_values.iter_mut().enumerate() {
                    for (half, row) in rows.iter_mut().enumerate() {
                        // SAFETY: passed on; inside the tile.
                        *row = unsafe { shared::load_f32x4(a.at(16 * m + 8 * half, chunk)) };
                    }
                }
                for n in 0..N {
                    for (col, b) in b.iter().enumerate() {
                        // SAFETY: passed on; inside the tile.
                        let b = unsafe { shared::load_f32x4(b.at(8 * n, chunk)) };
                        for m in 0..M {
                            for half in 0..2 {
                                let d = &mut part.0[m][n][2 * half + col];
                                for i in 0..4 {
                                    *d = math::fma(a_values[m][half][i], b[i], *d);
                                }
                            }
                        }
                    }
                }
            }
            acc.add(&part);
        }
    }

    #[inline(always)]
    fn round_probs<const M: usize, const K: usize>(probs: &RegTile<M, K>) -> Self::Probs<M, K> {
        *probs
    }

    #[inline(always)]
    unsafe fn mul_probs<const M: usize, const K: usize, const N: usize, const BR: usize, const D: usize>(
        acc: &mut RegTile<M, N>,
        probs: &Self::Probs<M, K>,
        v: SharedTile<f32, BR, D>,
        v_row: u32,
    ) {
        let lane = fresh_lane();
        // A lane's columns 2 (l % 4) and the next are half a chunk.
        let v = v.window(v_row, lane % 4 / 2).inside_chunk(lane % 2 * 8);
        for key in 0..8 * K {
            // The lane of the quad that holds this key's probability, and where.
            let owner = lane / 4 * 4 + (key % 8 / 2) as u32;
            let mut a = [[0.0; 2]; M];
            for m in 0..M {
                for half in 0..2 {
                    // SAFETY: passed on.
                    a[m][half] = unsafe { warp::shuffle(probs.0[m][key / 8][2 * half + key % 2], owner) };
                }
            }
            // SAFETY: passed on; inside the tile.
            unsafe { mul_row(acc, &a, |n| v.at(key, 2 * n)) };
        }
    }

    #[inline(always)]
    unsafe fn mul<const M: usize, const N: usize, const AR: usize, const K: usize, const D: usize>(
        acc: &mut RegTile<M, N>,
        a: SharedTile<f32, AR, K>,
        a_row: u32,
        v: SharedTile<f32, K, D>,
    ) {
        let lane = fresh_lane();
        let a = a.window(a_row + lane / 4, 0);
        let v = v.window(0, lane % 4 / 2).inside_chunk(lane % 2 * 8);
        for chunk in 0..K / F32_CHUNK {
            let mut a_values = [[[0.0; 4]; 2]; M];
            for (m, rows) in a_values.iter_mut().enumerate() {
                for (half, row) in rows.iter_mut().enumerate() {
                    // SAFETY: passed on; inside the tile.
                    *row = unsafe { shared::load_f32x4(a.at(16 * m + 8 * half, chunk)) };
                }
            }
            for i in 0..F32_CHUNK {
                let mut factors = [[0.0; 2]; M];
                for m in 0..M {
                    factors[m] = [a_values[m][0][i], a_values[m][1][i]];
                }
                // SAFETY: passed on; inside the tile.
                unsafe { mul_row(acc, &factors, |n| v.at(F32_CHUNK * chunk + i, 2 * n)) };
            }
        }
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
    unsafe fn store_four(global: u64, four: [f32; 4]) {
        // SAFETY: passed on.
        unsafe { copy::store_u32x4(global, four.map(f32::to_bits)) };
    }
}
