//! Warp-level matrix instructions: mma, ldmatrix, stmatrix.

use crate::access::{Banks, Stored};
use crate::alu::{LANES, Regs, each};
use crate::float::*;
use crate::ir::*;
use crate::machine::{Cta, Exec, Where, lanes};

/// Element of a matrix operand as f32; exact for every type that the tensor units multiply.
#[inline(always)]
pub(crate) fn element(bits: u32, ty: Ty) -> f32 {
    match ty {
        Ty::F16 => f16_to_f32(bits as u16),
        Ty::BF16 => bf16_to_f32(bits as u16),
        // The tensor units ignore the low 13 bits of a tf32 register.
        Ty::TF32 => f32::from_bits(bits & 0xffff_e000),
        Ty::E4M3 => E4M3.decode(bits & 0xff) as f32,
        _ => E5M2.decode(bits & 0xff) as f32,
    }
}

/// The `E` elements of one register of every lane, row by row: 8 rows of 4 lanes. The type is looked at once, so that the loops
/// vectorise.
#[inline(always)]
fn elements<const E: usize>(v: &[u32; LANES], ty: Ty) -> [[f32; LANES]; 4] {
    let mut x = [[0f32; LANES]; 4];
    let flat = x.as_flattened_mut();
    match ty {
        Ty::F16 => {
            for (l, v) in v.iter().enumerate() {
                flat[2 * l] = f16_to_f32(*v as u16);
                flat[2 * l + 1] = f16_to_f32((*v >> 16) as u16);
            }
        }
        Ty::BF16 => {
            for (l, v) in v.iter().enumerate() {
                flat[2 * l] = bf16_to_f32(*v as u16);
                flat[2 * l + 1] = bf16_to_f32((*v >> 16) as u16);
            }
        }
        _ => {
            let field = if E == 1 { !0 } else { (1u32 << ty.bits()) - 1 };
            for (i, x) in flat[..E * LANES].iter_mut().enumerate() {
                *x = element(v[i / E] >> ((i % E) as u32 * ty.bits()) & field, ty);
            }
        }
    }
    x
}

/// `acc += a * b` over tiles of 16 rows and 8 columns; products of these types are exact in f32, sums are rounded to
/// nearest in the order of k.
#[inline(always)]
fn multiply<const K: usize>(acc: &mut [[f32; 8]; 16], a: &[[f32; 32]; 16], b: &[[f32; 8]; 32]) {
    for (row, arow) in acc.iter_mut().zip(a) {
        let mut c = *row;
        for (x, brow) in arow[..K].iter().zip(&b[..K]) {
            for n in 0..8 {
                c[n] += x * brow[n];
            }
        }
        *row = c;
    }
}

/// mma with `E` floating-point elements in a register: fragments as the PTX ISA lays them out.
#[inline(always)]
fn float_mma<const E: usize>(regs: &mut Regs, m: &Mma) {
    let mut a = [[0f32; 32]; 16];
    for (r, &s) in m.a.iter().enumerate() {
        let x = elements::<E>(regs.r32(s), m.a_ty);
        let x = x.as_flattened();
        for row in 0..8 {
            let to = &mut a[row + 8 * (r & 1)][4 * E * (r >> 1)..][..4 * E];
            for (k, to) in to.iter_mut().enumerate() {
                *to = x[4 * E * row + k];
            }
        }
    }
    let mut b = [[0f32; 8]; 32];
    for (r, &s) in m.b.iter().enumerate() {
        let x = elements::<E>(regs.r32(s), m.b_ty);
        let x = x.as_flattened();
        for (k, row) in b[4 * E * r..][..4 * E].iter_mut().enumerate() {
            for n in 0..8 {
                row[n] = x[4 * E * n + k];
            }
        }
    }
    let mut acc = [[0f32; 8]; 16];
    let half = m.acc == Ty::F16;
    for (i, &s) in m.c.iter().enumerate() {
        let v = regs.r32(s);
        for lane in 0..LANES {
            if half {
                acc[lane / 4 + 8 * i][2 * (lane % 4)] = f16_to_f32(v[lane] as u16);
                acc[lane / 4 + 8 * i][2 * (lane % 4) + 1] = f16_to_f32((v[lane] >> 16) as u16);
            } else {
                acc[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2] = f32::from_bits(v[lane]);
            }
        }
    }
    match m.k {
        4 => multiply::<4>(&mut acc, &a, &b),
        8 => multiply::<8>(&mut acc, &a, &b),
        16 => multiply::<16>(&mut acc, &a, &b),
        _ => multiply::<32>(&mut acc, &a, &b),
    }
    for (i, &d) in m.d.iter().enumerate() {
        let v = each(|lane| {
            let col = 2 * (lane % 4);
            if half {
                let row = lane / 4 + 8 * i;
                f32_to_f16(acc[row][col]) as u32 | (f32_to_f16(acc[row][col + 1]) as u32) << 16
            } else {
                canon(acc[lane / 4 + 8 * (i / 2)][col + i % 2]).to_bits()
            }
        });
        regs.put32(d, &v, !0);
        if d != SINK {
            regs.set_init(d, !0, !0);
        }
    }
}

#[inline(always)]
fn float_mma_any(regs: &mut Regs, m: &Mma) {
    match m.a_ty.bits() {
        32 => float_mma::<1>(regs, m),
        16 => float_mma::<2>(regs, m),
        _ => float_mma::<4>(regs, m),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn float_mma_avx2(regs: &mut Regs, m: &Mma) {
    float_mma_any(regs, m);
}

impl Cta<'_> {
    /// mma.sync with shape m16n8k*: fragments as the PTX ISA lays them out.
    pub(crate) fn mma(&mut self, w: usize, m: &Mma) {
        let regs = &mut self.warps[w].regs;
        let k = m.k as usize;
        let e = (32 / m.a_ty.bits()) as usize;
        if m.acc == Ty::S32 {
            let pick = |v: u32, i: usize, signed: bool| {
                let b = (v >> (8 * i)) as u8;
                if signed { b as i8 as i32 } else { b as i32 }
            };
            let mut a = [[0i32; 32]; 16];
            let mut b = [[0i32; 8]; 32];
            for (r, &s) in m.a.iter().enumerate() {
                for (lane, &v) in regs.r32(s).iter().enumerate() {
                    for i in 0..e {
                        a[lane / 4 + 8 * (r & 1)][lane % 4 * e + i + 4 * e * (r >> 1)] = pick(v, i, m.a_ty == Ty::S8);
                    }
                }
            }
            for (r, &s) in m.b.iter().enumerate() {
                for (lane, &v) in regs.r32(s).iter().enumerate() {
                    for i in 0..e {
                        b[lane % 4 * e + i + 4 * e * r][lane / 4] = pick(v, i, m.b_ty == Ty::S8);
                    }
                }
            }
            let mut out = [[0u32; LANES]; 4];
            for (i, o) in out.iter_mut().enumerate() {
                let c = regs.r32(m.c[i]);
                for lane in 0..LANES {
                    let (row, col) = (lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2);
                    let sum: i64 =
                        (0..k).map(|x| a[row][x] as i64 * b[x][col] as i64).sum::<i64>() + c[lane] as i32 as i64;
                    o[lane] = if m.sat { sum.clamp(i32::MIN as i64, i32::MAX as i64) as u32 } else { sum as u32 };
                }
            }
            for (i, o) in out.iter().enumerate() {
                regs.put32(m.d[i], o, !0);
                if m.d[i] != SINK {
                    regs.set_init(m.d[i], !0, !0);
                }
            }
            return;
        }
        #[cfg(target_arch = "x86_64")]
        if self.ctx.simd {
            // SAFETY: `simd` is only true when the processor has AVX2.
            unsafe { float_mma_avx2(regs, m) };
            return;
        }
        float_mma_any(regs, m);
    }

    /// The 8-row matrices of ldmatrix: lanes 8i to 8i+7 give the addresses of the rows of matrix i.
    pub(crate) fn ldmatrix(
        &mut self,
        w: usize,
        pc: u32,
        active: u32,
        d: &[Slot; 4],
        n: u8,
        trans: bool,
        space: MemSpace,
        addr: Addr,
    ) -> Exec<()> {
        self.aligned(w, pc, active)?;
        let rows = 8 * n as usize;
        let used = if rows == 32 { !0 } else { (1u32 << rows) - 1 };
        let addrs = self.addresses(w, pc, active & used, addr)?;
        let mut data = [[0u8; 16]; 32];
        let mut banks = Banks::new(16);
        for lane in lanes(used) {
            let Where::Shared(off) = self.locate(w, pc, lane, space, addrs[lane], 16, 16)? else {
                return Err(self.not_shared(w, pc, lane, addrs[lane]));
            };
            self.read_shared(w, pc, 1 << lane, off, &mut data[lane])?;
            self.whole_shared(w, pc, Some(lane as u32), off, 16)?;
            banks.add(lane, off);
        }
        self.count_banks(&banks);
        let regs = &mut self.warps[w].regs;
        for (i, &slot) in d[..n as usize].iter().enumerate() {
            let rows: &[[u8; 16]; 8] = data[8 * i..].first_chunk().expect("four matrices of eight rows");
            let v = if trans {
                let at = |r: usize, c: usize| u16::from_le_bytes([rows[r][2 * c], rows[r][2 * c + 1]]) as u32;
                each(|t| at(2 * (t % 4), t / 4) | at(2 * (t % 4) + 1, t / 4) << 16)
            } else {
                // The matrix row by row is the register lane by lane.
                let words = rows.as_flattened().as_chunks().0;
                each(|t| u32::from_le_bytes(words[t]))
            };
            regs.put32(slot, &v, active);
            if slot != SINK {
                regs.set_init(slot, active, !0);
            }
        }
        Ok(())
    }

    pub(crate) fn stmatrix(
        &mut self,
        w: usize,
        pc: u32,
        active: u32,
        s: &[Slot; 4],
        n: u8,
        trans: bool,
        space: MemSpace,
        addr: Addr,
    ) -> Exec<()> {
        self.aligned(w, pc, active)?;
        let rows = 8 * n as usize;
        let used = if rows == 32 { !0 } else { (1u32 << rows) - 1 };
        let addrs = self.addresses(w, pc, active & used, addr)?;
        let mut data = [[0u8; 16]; 32];
        let mut known = true;
        let regs = &self.warps[w].regs;
        for (i, &slot) in s[..n as usize].iter().enumerate() {
            known &= regs.init(slot) == !0 || !self.ctx.checks.uninitialized;
            for (t, &v) in regs.r32(slot).iter().enumerate() {
                for h in 0..2 {
                    let (r, c) = if trans { (2 * (t % 4) + h, t / 4) } else { (t / 4, 2 * (t % 4) + h) };
                    let b = ((v >> (16 * h)) as u16).to_le_bytes();
                    data[8 * i + r][2 * c..2 * c + 2].copy_from_slice(&b);
                }
            }
        }
        let mut banks = Banks::new(16);
        for lane in lanes(used) {
            let Where::Shared(off) = self.locate(w, pc, lane, space, addrs[lane], 16, 16)? else {
                return Err(self.not_shared(w, pc, lane, addrs[lane]));
            };
            self.write_shared(w, pc, lane, off, &data[lane], Stored::new(known))?;
            banks.add(lane, off);
        }
        self.count_banks(&banks);
        Ok(())
    }

    pub(crate) fn not_shared(&self, w: usize, pc: u32, lane: usize, addr: u64) -> Box<crate::error::Fault> {
        let d = format!("address {addr:#x} is not in shared memory");
        self.fault(w, Some(lane as u32), pc, crate::error::FaultKind::InvalidOperand, d)
    }
}
