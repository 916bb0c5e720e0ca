//! Matrices in shared memory, in the canonical layouts that a descriptor of the PTX ISA names.

use crate::float::*;
use crate::ir::*;
use crate::machine::Cta;
use crate::mma::element;
use crate::tensor_map::Swizzle;

/// Elements of a matrix in shared memory, `[k][mn]`.
pub(super) type Tile = Vec<[f32; 256]>;

/// A matrix in shared memory by its descriptor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix {
    start: u32,
    leading: u32,
    stride: u32,
    swizzle: Swizzle,
    /// Bytes of an element.
    pub(super) e: u32,
    /// The rows (of A) or columns (of B) are contiguous, not k.
    pub(super) mn_major: bool,
}

impl Matrix {
    pub(super) fn new(desc: u64, e: u32, mn_major: bool) -> Self {
        Matrix {
            start: (desc as u32 & 0x3fff) << 4,
            leading: ((desc >> 16) as u32 & 0x3fff) << 4,
            stride: ((desc >> 32) as u32 & 0x3fff) << 4,
            swizzle: match desc >> 62 {
                0 => Swizzle::None,
                1 => Swizzle::Bytes128,
                2 => Swizzle::Bytes64,
                _ => Swizzle::Bytes32,
            },
            e,
            mn_major,
        }
    }

    /// Shared address of element (`mn`, `k`), in the canonical layouts of the PTX ISA.
    #[inline]
    pub(super) fn address(&self, mn: u32, k: u32) -> u32 {
        let span = match self.swizzle {
            Swizzle::None => 16,
            Swizzle::Bytes32 => 32,
            Swizzle::Bytes64 => 64,
            Swizzle::Bytes128 => 128,
        };
        let linear = if self.mn_major {
            let per = span / self.e;
            let (outer_mn, outer_k) =
                if self.swizzle == Swizzle::None { (self.stride, self.leading) } else { (self.leading, self.stride) };
            mn / per * outer_mn + k / 8 * outer_k + k % 8 * span + mn % per * self.e
        } else {
            let kb = k * self.e;
            if self.swizzle == Swizzle::None {
                mn / 8 * self.stride + kb / 16 * self.leading + mn % 8 * 16 + kb % 16
            } else {
                mn / 8 * self.stride + mn % 8 * span + kb
            }
        };
        self.swizzle.apply(self.start.wrapping_add(linear))
    }
}

impl Cta<'_> {
    /// The elements of a matrix, `[k][mn]`, from `first` on. Pieces of 16 bytes along the contiguous side are never split by a
    /// swizzle.
    pub(super) fn tile(&self, m: &Matrix, first: u32, count: u32, k: u32, ty: Ty) -> Tile {
        let mut tile = vec![[0f32; 256]; k as usize];
        let per = 16 / m.e;
        let mut piece = [0f32; 16];
        let mut read = |mn: u32, k: u32| {
            let at = (m.address(mn, k) - SHARED_BASE) as usize;
            let bytes: &[u8; 16] = self.shared.bytes[at..].first_chunk().expect("checked at the issue");
            decode_piece(bytes, ty, &mut piece);
            piece
        };
        if m.mn_major {
            for (kk, row) in tile.iter_mut().enumerate() {
                for mn in (0..count).step_by(per as usize) {
                    row[mn as usize..][..per as usize].copy_from_slice(&read(first + mn, kk as u32)[..per as usize]);
                }
            }
        } else {
            for mn in 0..count {
                for kk in (0..k).step_by(per as usize) {
                    let x = read(first + mn, kk);
                    for (row, x) in tile[kk as usize..].iter_mut().zip(&x[..per as usize]) {
                        row[mn as usize] = *x;
                    }
                }
            }
        }
        tile
    }
}

/// The elements in 16 bytes.
fn decode_piece(bytes: &[u8; 16], ty: Ty, out: &mut [f32; 16]) {
    match ty.bits() {
        8 => out.iter_mut().zip(bytes).for_each(|(x, &b)| *x = element(b as u32, ty)),
        16 => {
            let halves = bytes.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b) as u32);
            if ty == Ty::BF16 {
                out.iter_mut().zip(halves).for_each(|(x, h)| *x = bf16_to_f32(h as u16));
            } else {
                out.iter_mut().zip(halves).for_each(|(x, h)| *x = f16_to_f32(h as u16));
            }
        }
        _ => {
            let words = bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b));
            out.iter_mut().zip(words).for_each(|(x, w)| *x = element(w, ty));
        }
    }
}
