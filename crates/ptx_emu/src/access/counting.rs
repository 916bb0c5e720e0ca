//! The counting of sectors and banks.

use crate::alu::LANES;
use crate::machine::{Cta, lanes};

impl Cta<'_> {
    pub(crate) fn count_sectors(&mut self, s: &Sectors, write: bool) {
        for &(alloc, sector) in s.items() {
            let first = self.ctx.mem.get(alloc as usize).touch(sector, write);
            if write {
                self.counters.global_sectors_written += 1;
                self.counters.unique_bytes_written += 32 * first as u64;
            } else {
                self.counters.global_sectors_read += 1;
                self.counters.unique_bytes_read += 32 * first as u64;
            }
        }
    }

    pub(crate) fn count_banks(&mut self, b: &Banks) {
        let (waves, least) = b.wavefronts();
        self.counters.shared_wavefronts += waves;
        self.counters.shared_bank_conflicts += waves - least;
    }
}

/// The 32-byte sectors that one warp instruction touches, each once.
#[derive(Default)]
pub(crate) struct Sectors {
    list: Vec<(u32, u64)>,
}

impl Sectors {
    pub(crate) fn add(&mut self, alloc: usize, off: u64, n: u64) {
        for s in off / 32..=(off + n - 1) / 32 {
            let item = (alloc as u32, s);
            // Lanes mostly go up through memory: the last ones are the likely repeats.
            if !self.list.iter().rev().any(|x| *x == item) {
                self.list.push(item);
            }
        }
    }

    pub(crate) fn items(&self) -> &[(u32, u64)] {
        &self.list
    }
}

/// The words of shared memory that one warp instruction touches, by bank.
pub(crate) struct Banks {
    bytes: usize,
    offs: [u32; LANES],
    mask: u32,
}

impl Banks {
    pub(crate) fn new(bytes: usize) -> Self {
        Banks { bytes, offs: [0; LANES], mask: 0 }
    }

    pub(crate) fn add(&mut self, lane: usize, off: usize) {
        self.offs[lane] = off as u32;
        self.mask |= 1 << lane;
    }

    /// Passes taken, and the passes that conflict-free addresses would take.
    pub(crate) fn wavefronts(&self) -> (u64, u64) {
        if self.mask == 0 {
            return (0, 0);
        }
        // 8-byte accesses go in half warps, 16-byte accesses in quarter warps.
        let group = match self.bytes {
            0..=4 => 32,
            5..=8 => 16,
            _ => 8,
        };
        // Naturally aligned accesses of one size meet in all of their banks or in none: one unit a lane, at most 16 bytes.
        let unit = self.bytes.clamp(4, 16).next_power_of_two() as u32;
        let (shift, banks) = (unit.trailing_zeros(), 128 / unit);
        let (mut total, mut least) = (0, 0);
        for g in (0..LANES).step_by(group) {
            let m = self.mask >> g & (((1u64 << group) - 1) as u32);
            if m == 0 {
                continue;
            }
            let mut seen = [u32::MAX; LANES];
            let mut depth = [0u32; LANES];
            let mut extra: Vec<u32> = Vec::new();
            for l in lanes(m) {
                for k in 0..self.bytes as u32 / 16 + (self.bytes < 16) as u32 {
                    let place = (self.offs[g + l] >> shift) + k;
                    let bank = (place & (banks - 1)) as usize;
                    if seen[bank] == place || (seen[bank] != u32::MAX && extra.contains(&place)) {
                        continue;
                    }
                    if seen[bank] == u32::MAX {
                        seen[bank] = place;
                    } else {
                        extra.push(place);
                    }
                    depth[bank] += 1;
                }
            }
            total += *depth.iter().max().expect("32 banks") as u64;
            least += 1;
        }
        (total, least)
    }
}
