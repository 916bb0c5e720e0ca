//! How many CTAs the device holds at a time, and the clusters that a launch is made of.

use super::{Emulator, Launch, Module};
use crate::cluster::MOST_CTAS;
use crate::error::EmuError;
use crate::ir::Program;

/// Limits of a multiprocessor of compute capability 9.0 (CUDA C++ Programming Guide, technical specifications): warps, CTAs, bytes of
/// shared memory, and the bytes of it that the system takes of each CTA.
const WARPS: u32 = 64;
const CTAS: u32 = 32;
const SHARED: u32 = 228 << 10;
const SHARED_OF_SYSTEM: u32 = 1 << 10;

impl Emulator {
    /// CTAs of an entry that are resident at a time: what a grid may have whose CTAs all wait for each other. It follows from threads
    /// and shared memory; registers, which PTX does not tell, are not counted.
    ///
    /// # Errors
    /// [`EmuError::UnknownEntry`] when the module has no such entry, or has it [refused](Module::refused).
    pub fn resident_ctas(
        &self,
        module: &Module,
        entry: &str,
        block: [u32; 3],
        dynamic_shared_bytes: u32,
    ) -> Result<u32, EmuError> {
        let Some(prog) = module.entries.get(entry) else {
            let names: Vec<&str> = module.entries().collect();
            return Err(EmuError::UnknownEntry { name: entry.to_owned(), available: names.join(", ") });
        };
        Ok(self.resident(prog, block, dynamic_shared_bytes))
    }

    pub(super) fn resident(&self, prog: &Program, block: [u32; 3], dynamic_shared: u32) -> u32 {
        let threads = block.iter().fold(1u32, |n, &b| n.saturating_mul(b));
        let shared = prog.dynamic_shared_offset.saturating_add(dynamic_shared).max(prog.static_shared);
        let by_warps = WARPS / threads.div_ceil(32).max(1);
        let by_shared = SHARED / shared.saturating_add(SHARED_OF_SYSTEM);
        // What a launch may have at all fits.
        let each = by_warps.min(by_shared).clamp(1, CTAS);
        self.options.multiprocessors.max(1).saturating_mul(each)
    }

    /// CTAs of a cluster along x, y, z.
    pub(super) fn cluster(&self, prog: &Program, launch: &Launch) -> Result<[u32; 3], EmuError> {
        let bad = |what: String| Err(EmuError::InvalidLaunch { entry: prog.name.clone(), what });
        let directives = &prog.cluster;
        let cluster = match (launch.cluster, directives.required) {
            (Some(given), Some(required)) if given != required => {
                return bad(format!("clusters of {given:?} CTAs; the entry requires {required:?}"));
            }
            (None, None) if directives.explicit => {
                return bad("no size of clusters; the entry asks for one".to_owned());
            }
            (given, required) => given.or(required).unwrap_or([1; 3]),
        };
        let most = directives.max_rank.unwrap_or(MOST_CTAS).min(MOST_CTAS);
        let size = cluster.iter().map(|&c| c as u64).product::<u64>();
        if size == 0 || size > most as u64 {
            return bad(format!("clusters of {cluster:?} CTAs; 1 to {most} are accepted"));
        }
        if size > 1 && self.options.sm_target < 90 {
            return bad(format!("clusters of {cluster:?} CTAs; the device is sm_{}", self.options.sm_target));
        }
        if launch.grid.iter().zip(cluster).any(|(g, c)| g % c != 0) {
            return bad(format!(
                "a grid of {:?}; a multiple of the clusters of {cluster:?} CTAs is accepted",
                launch.grid
            ));
        }
        Ok(cluster)
    }
}
