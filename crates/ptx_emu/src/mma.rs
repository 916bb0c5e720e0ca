//! Warp-level matrix instructions: mma, ldmatrix, stmatrix.

use crate::access::Banks;
use crate::alu::LANES;
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

/// `acc += a * b` over tiles of 16 rows and 8 columns; products of these types are exact in f32, sums are rounded to
/// nearest in the order of k.
#[inline(always)]
fn multiply(acc: &mut [[f32; 8]; 16], a: &[[f32; 32]; 16], b: &[[f32; 8]; 32], k: usize) {
    for (row, arow) in acc.iter_mut().zip(a) {
        let mut c = *row;
        for (x, brow) in arow[..k].iter().zip(&b[..k]) {
            for n in 0..8 {
                c[n] += x * brow[n];
            }
        }
        *row = c;
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn multiply_avx2(acc: &mut [[f32; 8]; 16], a: &[[f32; 32]; 16], b: &[[f32; 8]; 32], k: usize) {
    multiply(acc, a, b, k);
}

fn multiply_any(simd: bool, acc: &mut [[f32; 8]; 16], a: &[[f32; 32]; 16], b: &[[f32; 8]; 32], k: usize) {
    #[cfg(target_arch = "x86_64")]
    if simd {
        // SAFETY: `simd` is only true when the processor has AVX2.
        unsafe { multiply_avx2(acc, a, b, k) };
        return;
    }
    let _ = simd;
    multiply(acc, a, b, k);
}

impl Cta<'_> {
    /// mma.sync with shape m16n8k*: fragments as the PTX ISA lays them out.
    pub(crate) fn mma(&mut self, w: usize, m: &Mma) {
        let regs = &mut self.warps[w].regs;
        let k = m.k as usize;
        let bits = m.a_ty.bits();
        let e = (32 / bits) as usize;
        let field = if bits == 32 { !0 } else { (1u32 << bits) - 1 };
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
        let mut a = [[0f32; 32]; 16];
        let mut b = [[0f32; 8]; 32];
        for (r, &s) in m.a.iter().enumerate() {
            let v = regs.r32(s);
            for i in 0..e {
                let x = v.map(|v| element(v >> (i as u32 * bits) & field, m.a_ty));
                for lane in 0..LANES {
                    a[lane / 4 + 8 * (r & 1)][lane % 4 * e + i + 4 * e * (r >> 1)] = x[lane];
                }
            }
        }
        for (r, &s) in m.b.iter().enumerate() {
            let v = regs.r32(s);
            for i in 0..e {
                let x = v.map(|v| element(v >> (i as u32 * bits) & field, m.b_ty));
                for lane in 0..LANES {
                    b[lane % 4 * e + i + 4 * e * r][lane / 4] = x[lane];
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
        multiply_any(self.ctx.simd, &mut acc, &a, &b, k);
        for (i, &d) in m.d.iter().enumerate() {
            let v: [u32; LANES] = std::array::from_fn(|lane| {
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
            self.read_shared(w, pc, lane, off, &mut data[lane])?;
            banks.add(lane, off);
        }
        self.count_banks(&banks);
        let regs = &mut self.warps[w].regs;
        for (i, &slot) in d[..n as usize].iter().enumerate() {
            let at = |r: usize, c: usize| {
                let row = &data[8 * i + r];
                u16::from_le_bytes([row[2 * c], row[2 * c + 1]]) as u32
            };
            let v = std::array::from_fn(|t| {
                let (r, c) = (t / 4, 2 * (t % 4));
                if trans { at(c, r) | at(c + 1, r) << 16 } else { at(r, c) | at(r, c + 1) << 16 }
            });
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
            self.write_shared(w, pc, lane, off, &data[lane], known)?;
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
