//! Products of `f32` on the ordinary float units.

use cuda_std::{math, shared, warp};
use kernel_spec::layout::{CHUNK_BYTES, PANEL_BYTES};

use crate::parts::fragments::{Fragments, RegTile};
use crate::parts::products::{Products, fresh_lane};
use crate::parts::shared_tile::SharedTile;

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
const F32_PANEL_CHUNKS: usize = PANEL_BYTES / CHUNK_BYTES;

/// Floats of a chunk.
const F32_CHUNK: usize = CHUNK_BYTES / 4;

/// Columns of a panel of `f32`.
const F32_PANEL_COLS: usize = F32_PANEL_CHUNKS * F32_CHUNK;

impl Products for f32 {
    type Probs<const M: usize, const K: usize> = RegTile<M, K>;

    #[inline(always)]
    unsafe fn mul_transposed<const M: usize, const N: usize, const AR: usize, const BR: usize, const D: usize>(
        acc: &mut RegTile<M, N>,
        a: SharedTile<f32, AR, D>,
        a_row: u32,
        b: SharedTile<f32, BR, D>,
        b_row: u32,
    ) {
        const { assert!(D.is_multiple_of(F32_PANEL_COLS), "whole panels: columns behind the last would be left out") };
        let lane = fresh_lane();
        // A lane needs rows l / 4 and l / 4 + 8 of `a`, and rows 2 (l % 4) and the next of `b`: its accumulators' place.
        let a = a.window(a_row + lane / 4, 0);
        let b = [b.window(b_row + lane % 4 * 2, 0), b.window(b_row + lane % 4 * 2 + 1, 0)];
        // One panel at a time, rolled: unrolled over 256 dims the body would not fit the instruction cache.
        for panel in 0..math::opaque((D / F32_PANEL_COLS) as u32) as usize {
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
    unsafe fn mul_part<const M: usize, const N: usize, const AR: usize, const K: usize, const D: usize>(
        acc: &mut RegTile<M, N>,
        a: SharedTile<f32, AR, K>,
        a_row: u32,
        v: SharedTile<f32, K, D>,
        part: u32,
    ) {
        let parts = const {
            assert!(D == 16 * N || D == 8 * N, "two parts, or one");
            D / (8 * N)
        };
        let lane = fresh_lane();
        let a = a.window(a_row + lane / 4, 0);
        // A pair of 8 columns is four chunks.
        let v = v.window(0, lane % 4 / 2 + 4 * part).inside_chunk(lane % 2 * 8);
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
                let at = |n: usize| v.at(F32_CHUNK * chunk + i, n / 2 * 4 * parts + n % 2 * 2);
                // SAFETY: passed on; inside the tile.
                unsafe { mul_row(acc, &factors, at) };
            }
        }
    }

    #[inline(always)]
    unsafe fn transposed_mul<const M: usize, const N: usize, const K: usize, const AC: usize, const D: usize>(
        acc: &mut RegTile<M, N>,
        a: SharedTile<f32, K, AC>,
        a_col: u32,
        b: SharedTile<f32, K, D>,
    ) {
        const { assert!(AC <= F32_PANEL_COLS, "a window moves along one panel") };
        let lane = fresh_lane();
        // Of 16 columns, which are four chunks, a lane needs l / 4 and the one 8 further on.
        let a = a.window(0, a_col / F32_CHUNK as u32 + lane / 16).inside_chunk(lane / 4 % 4 * 4);
        let b = b.window(0, lane % 4 / 2).inside_chunk(lane % 2 * 8);
        for row in 0..K {
            let mut factors = [[0.0; 2]; M];
            for (m, factors) in factors.iter_mut().enumerate() {
                for (half, factor) in factors.iter_mut().enumerate() {
                    // SAFETY: passed on; inside the tile.
                    *factor = unsafe { shared::load_f32(a.at(row, 4 * m + 2 * half)) };
                }
            }
            // SAFETY: passed on; inside the tile.
            unsafe { mul_row(acc, &factors, |n| b.at(row, 2 * n)) };
        }
    }
}
