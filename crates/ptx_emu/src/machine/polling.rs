//! Parts of warps that wait in a loop of their own: they read again what they read before, in the state that they were in before.

use super::{Cta, lanes};

/// The last strong read at one place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pc: u32,
    lanes: u32,
    /// A hash of what was read.
    read: u64,
    /// How often in a row.
    times: u32,
    /// A hash of what the lanes had in registers and local memory.
    state: u64,
}

/// Reads of one value in a row before the state is looked at, which takes longer than the loop that waits. Locks are mostly free
/// earlier.
const PATIENCE: u32 = 16;
/// Strong reads that are remembered: a loop looks at few places in turn.
const PLACES: usize = 8;

impl Cta<'_> {
    /// A strong read of these lanes. If it read what the one before it read there, the part of the warp waits, and others go first.
    /// If it did so in the same state, with the same registers, it will do so again until somebody else changes something.
    pub(crate) fn note_strong_read(&mut self, w: usize, pc: u32, active: u32, read: u64) {
        (self.repeats, self.stuck) = (false, false);
        let warp = &mut self.warps[w];
        let Some(i) = warp.seen.iter().position(|s| (s.pc, s.lanes) == (pc, active)) else {
            if warp.seen.len() == PLACES {
                warp.seen.remove(0);
            }
            return warp.seen.push(Seen { pc, lanes: active, read, times: 0, state: 0 });
        };
        if warp.seen[i].read != read {
            warp.seen[i] = Seen { read, times: 0, state: 0, ..warp.seen[i] };
            return;
        }
        self.repeats = true;
        warp.seen[i].times += 1;
        if warp.seen[i].times > PATIENCE {
            let state = self.state(w, active);
            let seen = &mut self.warps[w].seen[i];
            self.stuck = std::mem::replace(&mut seen.state, state) == state;
        }
    }

    /// A hash of all that decides what lanes of a warp do next, except memory.
    fn state(&self, w: usize, active: u32) -> u64 {
        let warp = &self.warps[w];
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        // FNV-1a over words.
        let mut add = |v: u32| hash = (hash ^ v as u64).wrapping_mul(0x100_0000_01b3);
        for slot in 0..self.ctx.prog.slots {
            let values = warp.regs.r32(slot);
            lanes(active).for_each(|l| add(values[l]));
        }
        warp.regs.preds.iter().for_each(|p| add(p & active));
        add(warp.carry & active);
        let local = self.ctx.prog.local_bytes as usize;
        for l in lanes(active) {
            warp.local[l * local..(l + 1) * local].iter().for_each(|b| add(*b as u32));
        }
        hash
    }
}
