//! The product itself: 16 rows of A for each warp, all columns of B.

use super::Part;
use super::matrix::{Matrix, Tile};
use crate::alu::{LANES, Regs, each};
use crate::float::*;
use crate::ir::*;
use crate::machine::Cta;
use crate::mma::element;

/// The rows of one warp: of A with their k, of the accumulators with their columns.
type Rows<const N: usize> = [[f32; N]; 16];

impl Cta<'_> {
    /// The 16 rows of one warp.
    pub(super) fn quarter(&mut self, w: usize, quarter: u32, g: &Wgmma, p: &Part, b: &Tile) {
        let a = self.a_rows(w, quarter, g, p);
        let mut acc = [[0f32; 256]; 16];
        let regs = &mut self.warps[w].regs;
        if p.accumulate {
            read_accumulators(regs, g, &mut acc);
        }
        multiply_any(self.ctx.simd, &mut acc, &a, b, g.n as usize, g.k as usize);
        write_accumulators(regs, g, &acc);
    }

    /// A of one warp, with the sign of the product.
    fn a_rows(&self, w: usize, quarter: u32, g: &Wgmma, p: &Part) -> Rows<32> {
        let bits = g.a_ty.bits();
        let mut a = [[0f32; 32]; 16];
        match &g.a {
            WgmmaA::Regs(regs) => {
                let per = (32 / bits) as usize;
                let field = if bits == 32 { !0 } else { (1u32 << bits) - 1 };
                for (r, &s) in regs.iter().enumerate() {
                    let v = self.warps[w].regs.r32(s);
                    for lane in 0..LANES {
                        for i in 0..per {
                            let x = element(v[lane] >> (i as u32 * bits) & field, g.a_ty);
                            a[lane / 4 + 8 * (r & 1)][lane % 4 * per + i + 4 * per * (r >> 1)] = x;
                        }
                    }
                }
            }
            WgmmaA::Desc(_) => {
                let m = Matrix::new(p.a, bits / 8, g.trans_a);
                let tile = self.tile(&m, 16 * quarter, 16, g.k, g.a_ty);
                for (kk, column) in tile.iter().enumerate() {
                    for (row, x) in a.iter_mut().zip(column) {
                        row[kk] = *x;
                    }
                }
            }
        }
        if g.neg_a != g.neg_b {
            a.iter_mut().flatten().for_each(|x| *x = -*x);
        }
        a
    }
}

fn read_accumulators(regs: &Regs, g: &Wgmma, acc: &mut Rows<256>) {
    let half = g.acc == Ty::F16;
    for (i, &s) in g.d.iter().enumerate() {
        let v = regs.r32(s);
        for lane in 0..LANES {
            let col = 2 * (lane % 4);
            if half {
                let row = &mut acc[lane / 4 + 8 * (i % 2)];
                row[8 * (i / 2) + col] = f16_to_f32(v[lane] as u16);
                row[8 * (i / 2) + col + 1] = f16_to_f32((v[lane] >> 16) as u16);
            } else {
                acc[lane / 4 + 8 * (i / 2 % 2)][8 * (i / 4) + col + i % 2] = f32::from_bits(v[lane]);
            }
        }
    }
}

fn write_accumulators(regs: &mut Regs, g: &Wgmma, acc: &Rows<256>) {
    let half = g.acc == Ty::F16;
    for (i, &s) in g.d.iter().enumerate() {
        let v = each(|lane| {
            let col = 2 * (lane % 4);
            if half {
                let row = &acc[lane / 4 + 8 * (i % 2)];
                f32_to_f16(row[8 * (i / 2) + col]) as u32 | (f32_to_f16(row[8 * (i / 2) + col + 1]) as u32) << 16
            } else {
                canon(acc[lane / 4 + 8 * (i / 2 % 2)][8 * (i / 4) + col + i % 2]).to_bits()
            }
        });
        regs.put32(s, &v, !0);
    }
}

#[inline(always)]
fn multiply(acc: &mut [[f32; 256]], a: &Rows<32>, b: &[[f32; 256]], n: usize, k: usize) {
    for (row, arow) in acc.iter_mut().zip(a) {
        for block in (0..n).step_by(8) {
            let mut c: [f32; 8] = row[block..block + 8].try_into().expect("n is a multiple of 8");
            for (x, brow) in arow[..k].iter().zip(b) {
                let bb: &[f32; 8] = brow[block..block + 8].try_into().expect("n is a multiple of 8");
                for i in 0..8 {
                    c[i] += x * bb[i];
                }
            }
            row[block..block + 8].copy_from_slice(&c);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn multiply_avx2(acc: &mut [[f32; 256]], a: &Rows<32>, b: &[[f32; 256]], n: usize, k: usize) {
    multiply(acc, a, b, n, k);
}

fn multiply_any(simd: bool, acc: &mut [[f32; 256]], a: &Rows<32>, b: &[[f32; 256]], n: usize, k: usize) {
    #[cfg(target_arch = "x86_64")]
    if simd {
        // SAFETY: `simd` is only true when the processor has AVX2.
        unsafe { multiply_avx2(acc, a, b, n, k) };
        return;
    }
    let _ = simd;
    multiply(acc, a, b, n, k);
}
