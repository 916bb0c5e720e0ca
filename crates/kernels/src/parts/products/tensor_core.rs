//! Products of 16-bit types on the tensor cores.

use cuda_std::mma::{load_matrix_x4, load_matrix_x4_transposed};
use kernel_spec::layout::PANEL_COLS;

use crate::parts::element::TensorCore;
use crate::parts::fragments::RegTile;
use crate::parts::products::{Products, fresh_lane};
use crate::parts::shared_tile::SharedTile;

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

impl<T: TensorCore> Products for T {
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
    unsafe fn mul_part<const M: usize, const N: usize, const AR: usize, const K: usize, const D: usize>(
        acc: &mut RegTile<M, N>,
        a: SharedTile<T, AR, K>,
        a_row: u32,
        v: SharedTile<T, K, D>,
        part: u32,
    ) {
        let parts = const {
            assert!(D == 16 * N || D == 8 * N, "two parts, or one");
            D / (8 * N)
        };
        let lane = fresh_lane();
        let a = a.window(a_row + lane % 16, lane / 16);
        let v = v.window(lane % 16, lane / 16 + 2 * part);
        for k in 0..K / MMA_K {
            let mut fragments = [[0; 4]; M];
            for (m, fragment) in fragments.iter_mut().enumerate() {
                // SAFETY: passed on; inside the tile.
                *fragment = unsafe { load_matrix_x4(a.at(16 * m, 2 * k)) };
            }
            // SAFETY: passed on; inside the tile.
            unsafe { mul_step::<T, M, N>(acc, &fragments, |n| v.at(MMA_K * k, 2 * n * parts)) };
        }
    }

    #[inline(always)]
    unsafe fn transposed_mul<const M: usize, const N: usize, const K: usize, const AC: usize, const D: usize>(
        acc: &mut RegTile<M, N>,
        a: SharedTile<T, K, AC>,
        a_col: u32,
        b: SharedTile<T, K, D>,
    ) {
        const { assert!(AC <= PANEL_COLS, "a window moves along one panel") };
        let lane = fresh_lane();
        // As for `a` of `mul_transposed`, but each matrix lies transposed, which ldmatrix undoes: (k 0-7, columns 0-7),
        // (k 0-7, columns 8-15), (k 8-15, columns 0-7), (k 8-15, columns 8-15).
        let a = a.window(lane / 16 * 8 + lane % 8, a_col / 8 + lane / 8 % 2);
        let b = b.window(lane % 16, lane / 16);
        for k in 0..K / MMA_K {
            let mut fragments = [[0; 4]; M];
            for (m, fragment) in fragments.iter_mut().enumerate() {
                // SAFETY: passed on; inside the tile.
                *fragment = unsafe { load_matrix_x4_transposed(a.at(MMA_K * k, 2 * m)) };
            }
            // SAFETY: passed on; inside the tile.
            unsafe { mul_step::<T, M, N>(acc, &fragments, |n| b.at(MMA_K * k, 2 * n)) };
        }
    }
}
