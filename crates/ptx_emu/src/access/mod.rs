//! Where an access lands, with the checks of bounds and alignment.

mod atomic;
mod counting;
mod global;
mod shared;
mod transfer;

pub(crate) use counting::{Banks, Sectors};
pub(crate) use global::WEAK_READ;
pub(crate) use shared::Stored;

use crate::cluster::{PEER_BYTES, peer_of};
use crate::error::{Fault, FaultKind};
use crate::ir::*;
use crate::machine::{Cta, Exec, Where};

impl Cta<'_> {
    /// Finds the bytes of an access and checks bounds and alignment.
    pub(crate) fn locate(
        &mut self,
        w: usize,
        pc: u32,
        lane: usize,
        space: MemSpace,
        addr: u64,
        n: u64,
        align: u64,
    ) -> Exec<Where> {
        let (space, off) = match space {
            MemSpace::Generic => match addr >> 40 {
                1 => (MemSpace::SharedCluster, addr - SHARED_WINDOW),
                2 => (MemSpace::Local, addr - LOCAL_WINDOW),
                3 => (MemSpace::Param, addr - PARAM_WINDOW),
                _ => (MemSpace::Global, addr),
            },
            // A 64-bit shared address may be a generic one that lost its space, which hardware takes by its low bits.
            s => (s, addr),
        };
        debug_assert!(align.is_power_of_two());
        if addr & (align - 1) != 0 {
            let d = format!("address {addr:#x} is not a multiple of the access size of {align} bytes");
            return Err(self.fault(w, Some(lane as u32), pc, FaultKind::Misaligned, d));
        }
        let (space, off) = match (space, peer_of(off)) {
            (MemSpace::SharedCluster, Some(rank)) if rank != self.rank => {
                return self.locate_peer(w, pc, lane, rank, off & (PEER_BYTES - 1), n);
            }
            (MemSpace::SharedCluster | MemSpace::Shared, Some(rank)) if rank == self.rank => {
                (MemSpace::Shared, off & (PEER_BYTES - 1))
            }
            (MemSpace::SharedCluster, _) => (MemSpace::Shared, off),
            _ => (space, off),
        };
        match space {
            MemSpace::Shared => {
                let o = off.wrapping_sub(SHARED_BASE as u64);
                if self.shared.holds(o, n) && o <= u32::MAX as u64 {
                    return Ok(Where::Shared(o as usize));
                }
                let size = self.shared.bytes.len();
                let d = format!(
                    "{n} bytes at shared address {off:#x}; the CTA's {size} bytes are at {SHARED_BASE:#x}..{:#x}",
                    SHARED_BASE as usize + size
                );
                Err(self.fault(w, Some(lane as u32), pc, FaultKind::SharedOutOfBounds, d))
            }
            MemSpace::Local | MemSpace::Param => {
                let local = space == MemSpace::Local;
                let size = if local { self.ctx.prog.local_bytes as usize } else { self.ctx.params.len() };
                if off <= size as u64 && n <= size as u64 - off {
                    return Ok(if local {
                        Where::Local(lane * size + off as usize)
                    } else {
                        Where::Param(off as usize)
                    });
                }
                let name = if local { "local" } else { "parameter" };
                let d = format!("{n} bytes at {name} address {off:#x}; the space has {size} bytes");
                Err(self.fault(w, Some(lane as u32), pc, FaultKind::LocalOutOfBounds, d))
            }
            _ => {
                let mem = self.ctx.mem;
                let i = self.last_alloc;
                if i < mem.len() {
                    let a = mem.get(i);
                    let o = addr.wrapping_sub(a.base);
                    if o < a.len && n <= a.len - o {
                        return Ok(Where::Global(i, o));
                    }
                }
                if let Some(i) = mem.find(addr) {
                    let a = mem.get(i);
                    let o = addr - a.base;
                    if n <= a.len - o {
                        self.last_alloc = i;
                        return Ok(Where::Global(i, o));
                    }
                }
                Err(self.global_out_of_bounds(w, pc, lane, addr, n))
            }
        }
    }

    pub(crate) fn global_out_of_bounds(&self, w: usize, pc: u32, lane: usize, addr: u64, n: u64) -> Box<Fault> {
        let mem = self.ctx.mem;
        if let Some((b, len)) = mem.find_freed(addr) {
            let d = format!(
                "{n} bytes at {addr:#x}, byte {} of the allocation of {len} bytes at {b:#x}, which was freed",
                addr - b
            );
            return self.fault(w, Some(lane as u32), pc, FaultKind::GlobalUseAfterFree, d);
        }
        let near = match mem.below(addr) {
            Some(a) => format!(
                "; the closest allocation below it, of {} bytes at {:#x}, ends {} bytes before",
                a.len,
                a.base,
                addr.saturating_add(n).saturating_sub(a.base + a.len)
            ),
            None => String::new(),
        };
        let d = format!("{n} bytes at {addr:#x}, which is in no allocation{near}");
        self.fault(w, Some(lane as u32), pc, FaultKind::GlobalOutOfBounds, d)
    }
}
