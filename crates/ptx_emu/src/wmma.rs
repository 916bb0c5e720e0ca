//! wmma.load, wmma.mma and wmma.store of f16 and bf16.
//!
//! Which lane holds which element of a fragment is not specified (PTX ISA, wmma), so that any layout will do: here the elements lie
//! row by row over the lanes, again from the first where the registers hold more. For the same reason every lane counts as one
//! that reads all of a matrix.

use crate::access::Stored;
use crate::alu::LANES;
use crate::error::FaultKind;
use crate::float::{canon, f32_to_f16};
use crate::history::Kind;
use crate::ir::*;
use crate::machine::{Cta, Exec, Where};
use crate::mma::element;

/// Bytes of the longest row or column: 32 elements of f32.
const LONGEST_LINE: usize = 128;

impl Fragment {
    fn per_register(&self) -> usize {
        (32 / self.ty.bits()) as usize
    }

    fn count(&self) -> usize {
        (self.rows * self.cols) as usize
    }

    fn per_lane(&self) -> usize {
        self.regs.len() * self.per_register()
    }

    /// The element at a position of a lane.
    fn element_at(&self, lane: usize, position: usize) -> usize {
        (lane * self.per_lane() + position) % self.count()
    }
}

impl Cta<'_> {
    /// The bits of all elements, row by row.
    fn gather(&self, w: usize, f: &Fragment) -> Vec<u32> {
        let mut out = vec![0; f.count()];
        let (per, bits) = (f.per_register(), f.ty.bits());
        for (r, &slot) in f.regs.iter().enumerate() {
            let v = self.warps[w].regs.r32(slot);
            for (lane, v) in v.iter().enumerate() {
                for i in 0..per {
                    let field = if bits == 32 { *v } else { v >> (16 * i) & 0xffff };
                    out[f.element_at(lane, r * per + i)] = field;
                }
            }
        }
        out
    }

    fn scatter(&mut self, w: usize, f: &Fragment, elements: &[u32]) {
        let per = f.per_register();
        let regs = &mut self.warps[w].regs;
        for (r, &slot) in f.regs.iter().enumerate() {
            let v: [u32; LANES] = std::array::from_fn(|lane| {
                (0..per).fold(0, |v, i| v | elements[f.element_at(lane, r * per + i)] << (16 * i))
            });
            regs.put32(slot, &v, !0);
            if slot != SINK {
                regs.set_init(slot, !0, !0);
            }
        }
    }

    /// Addresses of the rows or columns of a matrix, which all lanes give alike.
    fn lines(&self, w: usize, pc: u32, active: u32, a: &WmmaAccess) -> Exec<Vec<u64>> {
        let addrs = self.addresses(w, pc, active, a.addr)?;
        if self.ctx.checks.uninitialized {
            self.known_operands(w, pc, active)?;
        }
        let f = &a.fragment;
        let (count, length) = if a.by_columns { (f.cols, f.rows) } else { (f.rows, f.cols) };
        let strides = a.stride.map(|s| *self.warps[w].regs.r32(s));
        let same = |v: &dyn Fn(usize) -> u64| {
            (0..LANES).all(|l| active >> l & 1 == 0 || v(l) == v(active.trailing_zeros() as usize))
        };
        if !same(&|l| addrs[l]) || !strides.is_none_or(|s| same(&|l| s[l] as u64)) {
            let d = "lanes give different addresses or strides of one matrix".to_owned();
            return Err(self.fault(w, None, pc, FaultKind::InvalidOperand, d));
        }
        let first = active.trailing_zeros() as usize;
        let stride = strides.map_or(length, |s| s[first]) as u64 * (f.ty.bits() / 8) as u64;
        Ok((0..count as u64).map(|i| addrs[first].wrapping_add(i * stride)).collect())
    }

    /// wmma.load.
    pub(crate) fn wmma_load(&mut self, w: usize, pc: u32, active: u32, a: &WmmaAccess) -> Exec<()> {
        self.aligned(w, pc, active)?;
        let f = &a.fragment;
        let size = (f.ty.bits() / 8) as usize;
        let length = if a.by_columns { f.rows } else { f.cols } as usize;
        let lane = active.trailing_zeros() as usize;
        let mut elements = vec![0; f.count()];
        for (i, addr) in self.lines(w, pc, active, a)?.into_iter().enumerate() {
            let mut line = [0u8; LONGEST_LINE];
            let line = &mut line[..length * size];
            match self.locate(w, pc, lane, a.space, addr, line.len() as u64, size as u64)? {
                Where::Global(m, off) => {
                    self.read_global_by(w, pc, active, (m, off), line, Kind::Read)?;
                    if self.ctx.checks.uninitialized
                        && self.ctx.mem.get(m).first_unknown(off, line.len() as u64).is_some()
                    {
                        let d = format!("a line of the matrix at {addr:#x} has bits that nobody wrote");
                        return Err(self.fault(w, None, pc, FaultKind::UninitializedGlobal, d));
                    }
                }
                Where::Shared(off) => {
                    self.read_shared(w, pc, active, off, line)?;
                    self.whole_shared(w, pc, None, off, line.len())?;
                }
                _ => return Err(self.no_matrix(w, pc, addr)),
            }
            for (k, bytes) in line.chunks_exact(size).enumerate() {
                let (row, col) = if a.by_columns { (k, i) } else { (i, k) };
                let mut word = [0; 4];
                word[..size].copy_from_slice(bytes);
                elements[row * f.cols as usize + col] = u32::from_le_bytes(word);
            }
        }
        self.scatter(w, f, &elements);
        Ok(())
    }

    /// wmma.store.
    pub(crate) fn wmma_store(&mut self, w: usize, pc: u32, active: u32, a: &WmmaAccess) -> Exec<()> {
        self.aligned(w, pc, active)?;
        let f = &a.fragment;
        let size = (f.ty.bits() / 8) as usize;
        let length = if a.by_columns { f.rows } else { f.cols } as usize;
        let elements = self.gather(w, f);
        for (i, addr) in self.lines(w, pc, active, a)?.into_iter().enumerate() {
            for k in 0..length {
                let (row, col) = if a.by_columns { (k, i) } else { (i, k) };
                let e = row * f.cols as usize + col;
                // Of the lanes that hold it, one writes it.
                let lane = e / f.per_lane();
                let bytes = elements[e].to_le_bytes();
                let addr = addr + (k * size) as u64;
                match self.locate(w, pc, lane, a.space, addr, size as u64, size as u64)? {
                    Where::Global(m, off) => self.write_global(w, pc, lane, (m, off), &bytes[..size], None, None)?,
                    Where::Shared(off) => self.write_shared(w, pc, lane, off, &bytes[..size], Stored::Known)?,
                    _ => return Err(self.no_matrix(w, pc, addr)),
                }
            }
        }
        Ok(())
    }

    fn no_matrix(&self, w: usize, pc: u32, addr: u64) -> Box<crate::error::Fault> {
        let d = format!("the matrix at {addr:#x} is neither in global memory nor in the CTA's shared memory");
        self.fault(w, None, pc, FaultKind::InvalidOperand, d)
    }

    /// wmma.mma: products are exact in f32, sums are rounded to nearest in the order of k.
    pub(crate) fn wmma_mma(&mut self, w: usize, pc: u32, active: u32, m: &WmmaMma) -> Exec<()> {
        self.aligned(w, pc, active)?;
        if self.ctx.checks.uninitialized {
            self.known_operands(w, pc, active)?;
        }
        let [a, b, c] = [&m.a, &m.b, &m.c].map(|f| {
            let bits = self.gather(w, f);
            bits.into_iter()
                .map(|v| if f.ty == Ty::F32 { f32::from_bits(v) } else { element(v, f.ty) })
                .collect::<Vec<f32>>()
        });
        let (n, k) = (m.b.cols as usize, m.b.rows as usize);
        let d: Vec<u32> = (0..m.d.count())
            .map(|e| {
                let (row, col) = (e / n, e % n);
                let sum = (0..k).fold(c[e], |sum, i| sum + a[row * k + i] * b[i * n + col]);
                if m.d.ty == Ty::F16 { f32_to_f16(sum) as u32 } else { canon(sum).to_bits() }
            })
            .collect();
        self.scatter(w, &m.d, &d);
        self.counters.tensor_flops += 2 * (m.d.count() * k) as u64;
        Ok(())
    }
}
