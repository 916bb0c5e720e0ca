//! Tensor copies: the box that a tensor map and coordinates name, in pieces of 16 bytes.

use super::Piece;
use crate::error::FaultKind;
use crate::ir::*;
use crate::machine::{Cta, Exec, Where, lanes};
use crate::tensor_map::{TensorDataType, TensorFill, TensorMap, TensorMapSpec};

impl Cta<'_> {
    pub(crate) fn bulk_tensor(&mut self, w: usize, pc: u32, active: u32, b: &Bulk) -> Exec<()> {
        if self.ctx.checks.uninitialized {
            self.known_operands(w, pc, active)?;
        }
        let (map, tile) = if b.to_global { (b.dst, b.src) } else { (b.src, b.dst) };
        let maps = self.addresses(w, pc, active, map)?;
        let tiles = self.addresses(w, pc, active, tile)?;
        let mbar = match b.mbar {
            Some(m) => Some(self.addresses(w, pc, active, m)?),
            None => None,
        };
        for lane in lanes(active) {
            let mut raw = [0u8; 128];
            match self.locate(w, pc, lane, MemSpace::Generic, maps[lane], 128, 64)? {
                Where::Global(i, off) => self.ctx.mem.get(i).load(off, &mut raw),
                Where::Param(off) => raw.copy_from_slice(&self.ctx.params[off..off + 128]),
                _ => {
                    let d = format!("a tensor map at {:#x}, neither in global memory nor a parameter", maps[lane]);
                    return Err(self.fault(w, Some(lane as u32), pc, FaultKind::InvalidOperand, d));
                }
            }
            let Some(spec) = TensorMap::decode(&raw) else {
                let d = format!("the 128 bytes at {:#x} are not a tensor map of the emulator", maps[lane]);
                return Err(self.fault(w, Some(lane as u32), pc, FaultKind::InvalidOperand, d));
            };
            if spec.dims.len() != b.coords.len() {
                let d = format!("{} coordinates for a tensor map of {} dimensions", b.coords.len(), spec.dims.len());
                return Err(self.fault(w, Some(lane as u32), pc, FaultKind::InvalidOperand, d));
            }
            let regs = &self.warps[w].regs;
            let coords: Vec<i64> = b.coords.iter().map(|&c| regs.r32(c)[lane] as i32 as i64).collect();
            let bytes = spec.box_dims.iter().map(|&b| b as u64).product::<u64>() * spec.data_type.bytes() as u64;
            // Measured on an H200: anything else is an illegal instruction.
            let e = spec.data_type.bytes();
            if coords[0] * e as i64 % 16 != 0 {
                let d = format!(
                    "the innermost coordinate {} of elements of {e} bytes; multiples of 16 bytes are accepted",
                    coords[0]
                );
                return Err(self.fault(w, Some(lane as u32), pc, FaultKind::InvalidOperand, d));
            }
            // A tile may hang over every edge of the tensor, but what is written must not begin before it: an illegal
            // instruction on hardware.
            if b.to_global && coords.iter().any(|&c| c < 0) {
                let d = format!("coordinates {coords:?} of a tensor store; none below 0 is accepted");
                return Err(self.fault(w, Some(lane as u32), pc, FaultKind::InvalidOperand, d));
            }
            let sh = tiles[lane];
            // 128, with and without a swizzle (PTX ISA, cp.async.bulk.tensor).
            let (rank, s_off) = self.bulk_tile(w, pc, lane, b, sh, bytes, 128)?;
            let pieces = self.tile_pieces(w, pc, lane, &spec, &coords, s_off as u32, b.to_global)?;
            let fill = fill_pattern(&spec);
            let m = mbar.map(|m| m[lane]);
            let mut b = b.clone();
            if let Some((_, ty)) = &mut b.reduce {
                *ty = element_type(spec.data_type);
            }
            self.issue_bulk(w, pc, lane, pieces, fill, &b, m, bytes as u32, rank)?;
        }
        Ok(())
    }

    /// The 16-byte pieces of a box, swizzled, each with the part of it that lies in the tensor. A store writes the last piece of a
    /// row as a whole, behind the row's end too, as an H200 does.
    fn tile_pieces(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        spec: &TensorMapSpec,
        coords: &[i64],
        s_off: u32,
        to_global: bool,
    ) -> Exec<Vec<Piece>> {
        let e = spec.data_type.bytes() as i64;
        let row_bytes = spec.box_dims[0] as i64 * e;
        let rows: u32 = spec.box_dims[1..].iter().product();
        let mut pieces = Vec::with_capacity((rows as i64 * row_bytes / 16) as usize);
        for r in 0..rows {
            let mut rest = r;
            let mut inside = true;
            let mut row_addr = spec.address;
            for (d, &n) in spec.box_dims[1..].iter().enumerate() {
                let i = coords[d + 1] + (rest % n) as i64;
                rest /= n;
                inside &= i >= 0 && (i as u64) < spec.dims[d + 1];
                row_addr = row_addr.wrapping_add((i as u64).wrapping_mul(spec.strides[d]));
            }
            for piece in 0..row_bytes / 16 {
                let linear = s_off + (r as i64 * row_bytes + piece * 16) as u32;
                let shared = spec.swizzle.apply(linear + SHARED_BASE) - SHARED_BASE;
                // Bytes of the row that exist, relative to the piece.
                let first = coords[0] * e + piece * 16;
                let end = spec.dims[0] as i64 * e;
                let part = if first < 0 { 0 } else { (end - first).clamp(0, 16) };
                let hi = match part {
                    _ if !inside => 0,
                    0 => 0,
                    _ if to_global => 16,
                    part => part as u8,
                };
                let (mut alloc, mut off) = (0, 0);
                if hi > 0 {
                    let at = row_addr.wrapping_add(first as u64);
                    match self.locate(w, pc, lane, MemSpace::Global, at, hi as u64, 1)? {
                        Where::Global(a, o) => (alloc, off) = (a as u32, o),
                        _ => unreachable!("the space is global"),
                    }
                }
                pieces.push(Piece { shared, bytes: 16, hi, alloc, off });
            }
        }
        // Measured on an H200: of a box with nothing inside of the tensor, the address that the map begins at is touched.
        if !to_global && pieces.iter().all(|piece| piece.hi == 0) {
            self.locate(w, pc, lane, MemSpace::Global, spec.address, 1, 1)?;
        }
        Ok(pieces)
    }
}

fn fill_pattern(spec: &TensorMapSpec) -> [u8; 16] {
    if spec.fill == TensorFill::Zero {
        return [0; 16];
    }
    // The pattern of an H200, for every type.
    std::array::from_fn(|i| 0x7ff7u16.to_le_bytes()[i % 2])
}

fn element_type(t: TensorDataType) -> Ty {
    match t {
        TensorDataType::Uint8 | TensorDataType::Uint16 => Ty::U16,
        TensorDataType::Uint32 => Ty::U32,
        TensorDataType::Int32 => Ty::S32,
        TensorDataType::Uint64 => Ty::U64,
        TensorDataType::Int64 => Ty::S64,
        TensorDataType::Float16 => Ty::F16,
        TensorDataType::Float32 => Ty::F32,
        TensorDataType::Float64 => Ty::F64,
        TensorDataType::Bfloat16 => Ty::BF16,
    }
}
