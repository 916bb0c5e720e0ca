//! What other CTAs of the cluster have sent into a CTA's shared memory and has not arrived: the schedule picks the moment.

use crate::alu;
use crate::error::FaultKind;
use crate::ir::*;
use crate::machine::{Cta, Exec};

/// Something under way, which an mbarrier of the receiving CTA counts.
#[derive(Debug, Clone)]
pub(crate) struct Landing {
    /// The instruction that sent it.
    pub(crate) pc: u32,
    pub(crate) mbar: u32,
    /// The mbarrier's phase when it was sent.
    pub(crate) phase: u32,
    pub(crate) bytes: u32,
    pub(crate) sent: Sent,
}

/// What was sent.
#[derive(Debug, Clone)]
pub(crate) enum Sent {
    Store {
        off: usize,
        data: [u8; 16],
        n: usize,
    },
    Reduce {
        off: usize,
        op: AtomOp,
        ty: Ty,
        value: u64,
    },
    /// From the shared memory of the CTA of a rank.
    FromShared {
        rank: u32,
        src: usize,
        dst: usize,
        n: usize,
    },
}

/// Bytes of something under way for a phase of an mbarrier.
pub(crate) fn bytes_in_flight(landing: &[Landing], mbar: u32, phase: u32) -> Option<u32> {
    landing.iter().find(|l| l.mbar == mbar && l.phase == phase).map(|l| l.bytes)
}

/// Whether anything is under way for an mbarrier.
pub(crate) fn any_for(landing: &[Landing], mbar: u32) -> bool {
    landing.iter().any(|l| l.mbar == mbar)
}

impl Cta<'_> {
    /// Lets one of them arrive.
    pub(crate) fn complete_landing(&mut self, i: usize) -> Exec<()> {
        let l = self.landing.swap_remove(i);
        match l.sent {
            Sent::Store { off, data, n } => self.put_shared(off, &data[..n], None),
            Sent::Reduce { off, op, ty, value } => {
                let n = (ty.bits() / 8) as usize;
                let mut old = [0u8; 8];
                old[..n].copy_from_slice(&self.shared.bytes[off..off + n]);
                let new = alu::atomic(op, ty, u64::from_le_bytes(old), value, 0, false);
                self.put_shared(off, &new.to_le_bytes()[..n], None);
            }
            Sent::FromShared { rank, src, dst, n } => {
                let from = if rank == self.rank { Some(&*self) } else { self.peers.get(rank) };
                let Some(from) = from.filter(|c| !c.exited) else {
                    let d =
                        format!("a copy from the shared memory of rank {rank}, a CTA that has ended, was under way");
                    return Err(self.fault(0, None, l.pc, FaultKind::ClusterMisuse, d));
                };
                let data = from.shared.bytes[src..src + n].to_vec();
                let unknown: Vec<[u8; 16]> =
                    (0..n / 16).map(|i| from.shared.unknown(src + 16 * i, 16).unwrap_or_default()).collect();
                let holes = unknown.iter().any(|u| *u != [0; 16]);
                self.put_shared(dst, &data, holes.then(|| unknown.as_flattened()));
            }
        }
        let Some(bar) = self.mbars.get_mut(&l.mbar) else {
            let d = format!("what was sent completes on the mbarrier at {:#x}, which is gone", l.mbar + SHARED_BASE);
            return Err(self.fault(0, None, l.pc, FaultKind::MbarrierMisuse, d));
        };
        bar.tx -= l.bytes as i64;
        match self.complete_phase(l.mbar) {
            Ok(()) => Ok(()),
            Err(d) => Err(self.fault(0, None, l.pc, FaultKind::MbarrierMisuse, d)),
        }
    }

    fn put_shared(&mut self, off: usize, data: &[u8], unknown: Option<&[u8]>) {
        self.shared.bytes[off..off + data.len()].copy_from_slice(data);
        self.shared.mark_stored(off, data.len(), unknown);
    }
}
