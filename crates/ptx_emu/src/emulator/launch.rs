//! Launches: global variables are set up, the request is checked, the grid runs.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::{Emulator, Launch, LaunchReport, Module};
use crate::ast::{InitItem, Space};
use crate::error::EmuError;
use crate::history::Spilled;
use crate::ir::{Const, Program};
use crate::machine::{LaunchCtx, run_grid};
use crate::talk::Talk;

impl Emulator {
    /// Allocates and initialises the module's global variables, once.
    fn load(&self, module: &Module) -> Result<Arc<Vec<u64>>, EmuError> {
        let mut state = self.state();
        if let Some(a) = state.modules.get(&module.id) {
            return Ok(a.clone());
        }
        let mut addresses = vec![0; module.ast.vars.len()];
        for (i, v) in module.ast.vars.iter().enumerate() {
            if v.space != Space::Shared {
                addresses[i] = state.memory.alloc(v.size.max(1))?;
            }
        }
        for (i, v) in module.ast.vars.iter().enumerate() {
            if v.space == Space::Shared {
                continue;
            }
            // Variables without an initialiser start as zeros.
            let mut bytes = vec![0u8; v.size as usize];
            let mut at = 0;
            for item in &v.init {
                match item {
                    InitItem::Bytes(b) => {
                        bytes[at..at + b.len()].copy_from_slice(b);
                        at += b.len();
                    }
                    InitItem::Address { name, addend, bytes: n } => {
                        let base = match (module.ast.var_names.get(name), module.ast.function_names.get(name)) {
                            (Some(&v), _) => addresses[v as usize],
                            (None, Some(&f)) => 16 * (f as u64 + 1),
                            _ => {
                                return Err(EmuError::InvalidLaunch {
                                    entry: String::new(),
                                    what: format!("the initialiser of `{}` names `{name}`, which is not there", v.name),
                                });
                            }
                        };
                        let value = base.wrapping_add(*addend as u64).to_le_bytes();
                        let n = (*n as usize).min(8);
                        bytes[at..at + n].copy_from_slice(&value[..n]);
                        at += n;
                    }
                }
            }
            if v.size > 0 {
                let (a, off) = state.memory.range(addresses[i], v.size)?;
                for (k, b) in bytes.iter().enumerate() {
                    a.store(off + k as u64, std::slice::from_ref(b));
                }
                a.mark_written(off, v.size);
            }
            if v.space == Space::Const {
                state.memory.protect(addresses[i]);
            }
        }
        let addresses = Arc::new(addresses);
        state.modules.insert(module.id, addresses.clone());
        Ok(addresses)
    }

    /// Device address and size in bytes of a global or constant variable of the module.
    ///
    /// # Errors
    /// [`EmuError::InvalidLaunch`] when the module has no such variable, [`EmuError::OutOfMemory`] when it does not fit.
    pub fn global(&self, module: &Module, name: &str) -> Result<(u64, u64), EmuError> {
        let addresses = self.load(module)?;
        match module.ast.var_names.get(name) {
            Some(&i) if module.ast.vars[i as usize].space != Space::Shared => {
                Ok((addresses[i as usize], module.ast.vars[i as usize].size))
            }
            _ => Err(EmuError::InvalidLaunch {
                entry: String::new(),
                what: format!("no global variable `{name}` in the module"),
            }),
        }
    }

    /// Runs an entry over the whole grid and waits for its end.
    ///
    /// # Errors
    /// [`EmuError::UnknownEntry`], [`EmuError::UnsupportedEntry`] and [`EmuError::InvalidLaunch`] before anything runs;
    /// [`EmuError::Fault`] with the first thing that a kernel did wrong. Of CTAs that fail on several threads at a time, it is the
    /// one that comes first in the order of the seed. Memory keeps what was written until then.
    pub fn launch(&self, module: &Module, entry: &str, launch: &Launch) -> Result<LaunchReport, EmuError> {
        let started = Instant::now();
        if let Some(error) = module.refused.get(entry) {
            return Err(EmuError::UnsupportedEntry { entry: entry.to_owned(), error: error.clone() });
        }
        let Some(prog) = module.entries.get(entry) else {
            let names: Vec<&str> = module.entries().collect();
            return Err(EmuError::UnknownEntry { name: entry.to_owned(), available: names.join(", ") });
        };
        let cluster = self.cluster(prog, launch)?;
        let params = self.check_launch(module, prog, launch, cluster)?;
        let addresses = self.load(module)?;
        let _one_at_a_time = self.running.lock().unwrap_or_else(|e| e.into_inner());
        let (view, number) = self.state().memory.snapshot();
        let consts = prog
            .consts
            .iter()
            .map(|&(s, wide, c)| {
                let c = match c {
                    Const::GlobalVar(v, off) => Const::Bits(addresses[v as usize].wrapping_add(off as u64)),
                    c => c,
                };
                (s, wide, c)
            })
            .collect();
        let seed = launch.seed.unwrap_or(self.options.seed);
        let ctx = LaunchCtx {
            prog,
            mem: &view,
            params,
            grid: launch.grid,
            block: launch.block,
            dynamic_shared: launch.dynamic_shared_bytes,
            checks: self.options.checks,
            seed,
            simd: self.simd,
            launch: number,
            consts,
            instruction_limit: self.options.instruction_limit.unwrap_or(u64::MAX),
            deadline: self.options.time_limit.and_then(|t| started.checked_add(t)),
            executed: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            source: &module.source,
            line_starts: &module.line_starts,
            locs: &module.ast.locs,
            files: &module.ast.files,
            releases: Mutex::default(),
            spilled: Spilled::default(),
            warnings: Mutex::default(),
            printed: Mutex::default(),
            talk: Talk::of(prog, cluster.iter().product::<u32>() > 1),
            cluster,
            explicit_cluster: launch.cluster.is_some() || prog.cluster.required.is_some(),
            resident_clusters: self.resident(prog, launch.block, launch.dynamic_shared_bytes)
                / cluster.iter().product::<u32>(),
            multiprocessors: self.options.multiprocessors.max(1),
        };
        let total = launch.grid.iter().map(|&g| g as u64).product::<u64>() as u32;
        let (counters, fault) = match &self.pool {
            Some(pool) => pool.install(|| run_grid(&ctx, total, false)),
            None => run_grid(&ctx, total, self.options.threads == 1),
        };
        let (warnings, printed) = ctx.into_words();
        self.state().print(printed);
        match fault {
            Some(f) => Err(EmuError::Fault(f)),
            None => Ok(LaunchReport { counters, warnings, seed, elapsed: started.elapsed() }),
        }
    }

    fn check_launch(
        &self,
        module: &Module,
        prog: &Program,
        launch: &Launch,
        cluster: [u32; 3],
    ) -> Result<Vec<u8>, EmuError> {
        let bad = |what: String| Err(EmuError::InvalidLaunch { entry: prog.name.clone(), what });
        let sm: u32 = module.ast.target.trim_start_matches("sm_").trim_end_matches(['a', 'f']).parse().unwrap_or(0);
        if sm > self.options.sm_target {
            return bad(format!(
                "the module is for {}, the device is sm_{}",
                module.ast.target, self.options.sm_target
            ));
        }
        let total = launch.grid.iter().map(|&g| g as u64).product::<u64>();
        if launch.grid.contains(&0) || total > 1 << 31 || launch.grid[1] > 65535 || launch.grid[2] > 65535 {
            return bad(format!("a grid of {:?}; 1 to 2^31 CTAs, y and z up to 65535, are accepted", launch.grid));
        }
        let threads = launch.block.iter().map(|&b| b as u64).product::<u64>();
        if threads == 0 || threads > 1024 || launch.block[2] > 64 {
            return bad(format!("a block of {:?}; 1 to 1024 threads, z up to 64, are accepted", launch.block));
        }
        if let Some(r) = prog.reqntid
            && r != launch.block
        {
            return bad(format!("a block of {:?}; the entry requires {r:?}", launch.block));
        }
        if let Some(m) = prog.maxntid
            && threads > m.iter().map(|&x| x as u64).product::<u64>()
        {
            return bad(format!("a block of {:?}; the entry allows at most {m:?}", launch.block));
        }
        let shared = prog.dynamic_shared_offset as u64 + launch.dynamic_shared_bytes as u64;
        if shared > self.options.max_shared_bytes as u64 {
            return bad(format!(
                "{shared} bytes of shared memory ({} of them dynamic); at most {}",
                launch.dynamic_shared_bytes, self.options.max_shared_bytes
            ));
        }
        // What the machine itself needs: registers with their record, local memory with its record.
        let warps = threads.div_ceil(32);
        let workers = match (&self.pool, self.options.threads) {
            (Some(pool), _) => pool.current_num_threads(),
            (None, 1) => 1,
            (None, _) => rayon::current_num_threads(),
        } as u64;
        let size = cluster.iter().product::<u32>();
        let resident = self.resident(prog, launch.block, launch.dynamic_shared_bytes);
        if resident < size {
            return bad(format!(
                "clusters of {size} CTAs; the {} multiprocessors hold {resident} of them",
                self.options.multiprocessors
            ));
        }
        let at_once = if Talk::of(prog, size > 1).talks { resident as u64 } else { workers };
        let machine = at_once.min(total) * warps * (prog.slots as u64 * 132 + prog.local_bytes as u64 * 64);
        if machine > self.options.memory_limit {
            return Err(EmuError::OutOfMemory { requested: machine, in_use: 0, limit: self.options.memory_limit });
        }
        if launch.params.len() != prog.params.len() {
            return bad(format!("{} parameters given, {} accepted", launch.params.len(), prog.params.len()));
        }
        let mut block = vec![0u8; prog.param_bytes as usize];
        for (given, p) in launch.params.iter().zip(&prog.params) {
            if given.len() != p.size as usize {
                return bad(format!("parameter `{}` takes {} bytes, {} given", p.name, p.size, given.len()));
            }
            block[p.offset as usize..p.offset as usize + given.len()].copy_from_slice(given);
        }
        Ok(block)
    }
}
