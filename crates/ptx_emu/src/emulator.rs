//! The public face: modules, device memory and launches.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rayon::prelude::*;

use crate::ast::{Ast, InitItem, Space};
use crate::counters::Counters;
use crate::error::{EmuError, Fault, FaultKind, ParseError};
use crate::ir::{Const, Program};
use crate::machine::{Cta, LaunchCtx};
use crate::memory::GlobalMemory;

/// A loaded PTX text: every entry parsed, checked and ready to run.
pub struct Module {
    id: u64,
    source: String,
    line_starts: Vec<usize>,
    ast: Ast,
    entries: BTreeMap<String, Program>,
    /// Entries with something that the emulator does not run.
    refused: BTreeMap<String, ParseError>,
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Module").field("target", &self.ast.target).field("entries", &self.entries.keys()).finish()
    }
}

/// One parameter of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamInfo {
    /// Name in the PTX.
    pub name: String,
    /// Offset in the parameter block, in bytes.
    pub offset: u32,
    /// Size in bytes.
    pub bytes: u32,
    /// Alignment in bytes.
    pub align: u32,
}

/// What a launch of an entry needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryInfo {
    /// Name of the entry.
    pub name: String,
    /// Parameters in order.
    pub params: Vec<ParamInfo>,
    /// Block size that `.reqntid` demands.
    pub required_block: Option<[u32; 3]>,
    /// Largest number of threads that `.maxntid` allows, as dimensions.
    pub max_block: Option<[u32; 3]>,
    /// Bytes of static shared memory.
    pub static_shared_bytes: u32,
    /// Bytes of local memory a thread.
    pub local_bytes: u32,
    /// Instructions with calls inlined.
    pub instructions: usize,
}

impl Module {
    /// Parses a PTX text (ISA 6.0 to 9.x, 64-bit addresses) and prepares all its entries.
    ///
    /// An entry with an opcode, type or modifier that the emulator does not run is an error when it is launched, as long as
    /// the module has another one: see [`Module::refused`]. Indirect, recursive and external calls are an error when they
    /// are executed.
    ///
    /// # Errors
    /// [`ParseError`] with line and column, for text that is not PTX and for a module none of whose entries can be run: the
    /// error of the first.
    pub fn parse(ptx: &str) -> Result<Module, ParseError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let ast = crate::parser::parse(ptx)?;
        let (mut entries, mut refused) = (BTreeMap::new(), BTreeMap::new());
        let mut first = None;
        for (i, f) in ast.functions.iter().enumerate().filter(|(_, f)| f.is_entry && f.has_body) {
            match crate::lower::lower_entry(&ast, i as u32) {
                Ok(program) => {
                    entries.insert(f.name.clone(), program);
                }
                Err(error) => {
                    first.get_or_insert_with(|| error.clone());
                    refused.insert(f.name.clone(), error);
                }
            }
        }
        if entries.is_empty()
            && let Some(error) = first
        {
            return Err(error);
        }
        let mut line_starts = vec![0];
        line_starts.extend(ptx.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1));
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Module { id, source: ptx.to_owned(), line_starts, ast, entries, refused })
    }

    /// Entries that cannot be launched, by name, with what in them the emulator does not run.
    pub fn refused(&self) -> impl Iterator<Item = (&str, &ParseError)> {
        self.refused.iter().map(|(name, error)| (name.as_str(), error))
    }

    /// Names of the entries that can be launched, in order.
    pub fn entries(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// What the entry takes and needs; `None` when the module has not got it, or when it is [refused](Module::refused).
    pub fn entry(&self, name: &str) -> Option<EntryInfo> {
        let p = self.entries.get(name)?;
        Some(EntryInfo {
            name: p.name.clone(),
            params: p
                .params
                .iter()
                .map(|q| ParamInfo { name: q.name.clone(), offset: q.offset, bytes: q.size, align: q.align })
                .collect(),
            required_block: p.reqntid,
            max_block: p.maxntid,
            static_shared_bytes: p.static_shared,
            local_bytes: p.local_bytes,
            instructions: p.code.len(),
        })
    }

    /// The `.target` of the module, such as `sm_80`.
    pub fn target(&self) -> &str {
        &self.ast.target
    }

    /// The `.version` of the module: major and minor number of the PTX ISA.
    pub fn version(&self) -> (u32, u32) {
        self.ast.version
    }
}

/// Which errors a launch looks for beyond bounds and alignment, which are always checked.
///
/// All of them together take 1.2 times the time of none on tensor instructions, 1.45 times on scalar loops over shared
/// memory (`cargo bench -p ptx_emu`), and memory for records: see [`EmulatorOptions::memory_limit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checks {
    /// Reads of global, shared and local memory and uses of registers that nobody wrote.
    pub uninitialized: bool,
    /// Data races in shared and global memory. The dearest check: it keeps a record for each four bytes.
    pub races: bool,
    /// Asynchronous operations: copies not waited for, wgmma registers touched in flight, copies in flight at exit.
    /// The use of memory in flight is found through the records of `races`.
    pub asynchronous: bool,
    /// Divergent execution of `.aligned` and full-mask instructions.
    pub convergence: bool,
}

impl Checks {
    /// Every check.
    pub const fn all() -> Self {
        Checks { uninitialized: true, races: true, asynchronous: true, convergence: true }
    }

    /// Only bounds, alignment, barriers and deadlock, which no launch can do without.
    pub const fn none() -> Self {
        Checks { uninitialized: false, races: false, asynchronous: false, convergence: false }
    }
}

impl Default for Checks {
    fn default() -> Self {
        Self::all()
    }
}

/// Settings of an [`Emulator`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EmulatorOptions {
    /// Errors to look for.
    pub checks: Checks,
    /// 0 runs warps in order and completes every asynchronous operation at the last legal moment. Any other seed picks
    /// the interleaving of warps and diverged parts and the moment of each completion; the same seed picks the same. Under odd seeds
    /// no bulk copy completes before nothing else can go on.
    pub seed: u64,
    /// Bytes of device memory. The records of the checks come on top: up to 4.2 bytes for each byte that is touched.
    pub memory_limit: u64,
    /// Warp instructions of one launch, over all CTAs; `None` sets no limit.
    pub instruction_limit: Option<u64>,
    /// Wall time of one launch; `None` sets no limit.
    pub time_limit: Option<Duration>,
    /// Compute capability of the device, as in `sm_90`: modules for a later one are refused.
    pub sm_target: u32,
    /// Most shared memory of a CTA, static and dynamic, in bytes.
    pub max_shared_bytes: u32,
    /// Threads that run CTAs; 0 takes one per processor, 1 the caller's own.
    pub threads: usize,
}

impl Default for EmulatorOptions {
    fn default() -> Self {
        EmulatorOptions {
            checks: Checks::all(),
            seed: 0,
            memory_limit: 4 << 30,
            instruction_limit: None,
            time_limit: Some(Duration::from_secs(600)),
            sm_target: 90,
            // What a Hopper CTA can have.
            max_shared_bytes: 227 << 10,
            threads: 0,
        }
    }
}

impl EmulatorOptions {
    /// Sets the checks.
    pub fn with_checks(mut self, checks: Checks) -> Self {
        self.checks = checks;
        self
    }

    /// Sets the seed.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets the bytes of device memory.
    pub fn with_memory_limit(mut self, bytes: u64) -> Self {
        self.memory_limit = bytes;
        self
    }

    /// Sets the warp instructions that a launch may execute.
    pub fn with_instruction_limit(mut self, limit: Option<u64>) -> Self {
        self.instruction_limit = limit;
        self
    }

    /// Sets the time that a launch may take.
    pub fn with_time_limit(mut self, limit: Option<Duration>) -> Self {
        self.time_limit = limit;
        self
    }

    /// Sets the compute capability, as in 90 for `sm_90`.
    pub fn with_sm_target(mut self, sm: u32) -> Self {
        self.sm_target = sm;
        self
    }

    /// Sets the most shared memory of a CTA.
    pub fn with_max_shared_bytes(mut self, bytes: u32) -> Self {
        self.max_shared_bytes = bytes;
        self
    }

    /// Sets the number of threads; 0 takes one per processor.
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }
}

/// Dimensions and arguments of a launch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Launch {
    /// CTAs along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a CTA along x, y, z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared_bytes: u32,
    /// The bytes of each kernel parameter, in order.
    pub params: Vec<Vec<u8>>,
    /// Replaces the emulator's seed for this launch.
    pub seed: Option<u64>,
}

impl Launch {
    /// A launch without dynamic shared memory and parameters.
    pub fn new(grid: [u32; 3], block: [u32; 3]) -> Self {
        Launch { grid, block, ..Launch::default() }
    }

    /// Sets the dynamic shared memory.
    pub fn with_dynamic_shared_bytes(mut self, bytes: u32) -> Self {
        self.dynamic_shared_bytes = bytes;
        self
    }

    /// Adds a parameter by its bytes.
    pub fn with_param(mut self, bytes: &[u8]) -> Self {
        self.params.push(bytes.to_vec());
        self
    }

    /// Adds a device address as a parameter.
    pub fn with_ptr(self, ptr: u64) -> Self {
        self.with_param(&ptr.to_le_bytes())
    }

    /// Adds a 32-bit integer as a parameter.
    pub fn with_u32(self, v: u32) -> Self {
        self.with_param(&v.to_le_bytes())
    }

    /// Adds an f32 as a parameter.
    pub fn with_f32(self, v: f32) -> Self {
        self.with_param(&v.to_le_bytes())
    }

    /// Sets the seed of this launch.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }
}

/// What a launch did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LaunchReport {
    /// Deterministic counts.
    pub counters: Counters,
    /// The seed that the launch ran with.
    pub seed: u64,
    /// Wall time of the launch.
    pub elapsed: Duration,
}

struct State {
    memory: GlobalMemory,
    /// Addresses of each module's global variables.
    modules: HashMap<u64, Arc<Vec<u64>>>,
}

/// A device: memory and a machine that runs kernels. Launches of different threads run one after the other.
pub struct Emulator {
    options: EmulatorOptions,
    state: Mutex<State>,
    running: Mutex<()>,
    pool: Option<rayon::ThreadPool>,
    simd: bool,
}

impl fmt::Debug for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Emulator").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Default for Emulator {
    fn default() -> Self {
        Emulator::new(EmulatorOptions::default())
    }
}

impl Emulator {
    /// A device with empty memory.
    pub fn new(options: EmulatorOptions) -> Emulator {
        // One thread is the caller's own: no pool to start and stop.
        let pool = (options.threads > 1)
            .then(|| rayon::ThreadPoolBuilder::new().num_threads(options.threads).build().ok())
            .flatten();
        let state = State { memory: GlobalMemory::new(options.memory_limit), modules: HashMap::new() };
        Emulator { options, state: Mutex::new(state), running: Mutex::new(()), pool, simd: crate::alu::has_simd() }
    }

    /// The settings that the device was made with.
    pub fn options(&self) -> &EmulatorOptions {
        &self.options
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Allocates memory, aligned to 256 bytes; nobody wrote it yet. Addresses are never used again.
    ///
    /// # Errors
    /// [`EmuError::OutOfMemory`] when the memory limit does not allow it.
    pub fn alloc(&self, bytes: u64) -> Result<u64, EmuError> {
        self.state().memory.alloc(bytes)
    }

    /// Frees an allocation by its first address.
    ///
    /// # Errors
    /// [`EmuError::InvalidDeviceAddress`] when it is not the start of a live allocation.
    pub fn free(&self, ptr: u64) -> Result<(), EmuError> {
        self.state().memory.free(ptr)
    }

    /// Copies bytes to device memory.
    ///
    /// # Errors
    /// [`EmuError::InvalidDeviceAddress`] when the range is not inside of one allocation.
    pub fn write(&self, ptr: u64, bytes: &[u8]) -> Result<(), EmuError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let state = self.state();
        let (a, off) = state.memory.range(ptr, bytes.len() as u64)?;
        // Word by word where aligned, so that large tensors copy fast.
        let head = (8 - off % 8) as usize % 8;
        let head = head.min(bytes.len());
        let (h, rest) = bytes.split_at(head);
        let (body, tail) = rest.split_at(rest.len() / 8 * 8);
        let mut at = off;
        for part in [h, body, tail] {
            if part.len() % 8 == 0 && at % 8 == 0 && !part.is_empty() {
                a.store(at, part);
            } else {
                for (i, b) in part.iter().enumerate() {
                    a.store(at + i as u64, std::slice::from_ref(b));
                }
            }
            at += part.len() as u64;
        }
        a.mark_written(off, bytes.len() as u64);
        Ok(())
    }

    /// Copies bytes from device memory.
    ///
    /// # Errors
    /// [`EmuError::InvalidDeviceAddress`] when the range is not inside of one allocation, or when the checks are on and
    /// a byte of it was never written.
    pub fn read(&self, ptr: u64, out: &mut [u8]) -> Result<(), EmuError> {
        if out.is_empty() {
            return Ok(());
        }
        let state = self.state();
        let n = out.len() as u64;
        let (a, off) = state.memory.range(ptr, n)?;
        if self.options.checks.uninitialized
            && let Some(o) = a.first_unwritten(off, n)
        {
            return Err(EmuError::InvalidDeviceAddress {
                address: ptr,
                bytes: n,
                what: format!("byte {} of the range was never written", o - off),
            });
        }
        let head = (8 - off % 8) as usize % 8;
        let head = head.min(out.len());
        let (h, rest) = out.split_at_mut(head);
        let (body, tail) = rest.split_at_mut(rest.len() / 8 * 8);
        let mut at = off;
        for part in [h, body, tail] {
            if part.len() % 8 == 0 && at % 8 == 0 && !part.is_empty() {
                a.load(at, part);
            } else {
                for (i, b) in part.iter_mut().enumerate() {
                    a.load(at + i as u64, std::slice::from_mut(b));
                }
            }
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Sets a range of device memory to one byte value.
    ///
    /// # Errors
    /// [`EmuError::InvalidDeviceAddress`] when the range is not inside of one allocation.
    pub fn fill(&self, ptr: u64, byte: u8, len: u64) -> Result<(), EmuError> {
        self.state().memory.range(ptr, len)?;
        // In pieces, so that the host needs no second copy of a large range.
        let piece = vec![byte; len.min(1 << 20) as usize];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(1 << 20) as usize;
            self.write(ptr + done, &piece[..n])?;
            done += n as u64;
        }
        Ok(())
    }

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
    /// [`EmuError::Fault`] with the first thing that a kernel did wrong (of the CTAs that ran, the one with the lowest number). Memory keeps what
    /// was written until then.
    pub fn launch(&self, module: &Module, entry: &str, launch: &Launch) -> Result<LaunchReport, EmuError> {
        let started = Instant::now();
        if let Some(error) = module.refused.get(entry) {
            return Err(EmuError::UnsupportedEntry { entry: entry.to_owned(), error: error.clone() });
        }
        let Some(prog) = module.entries.get(entry) else {
            let names: Vec<&str> = module.entries().collect();
            return Err(EmuError::UnknownEntry { name: entry.to_owned(), available: names.join(", ") });
        };
        let params = self.check_launch(module, prog, launch)?;
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
            syncs: Mutex::new(HashMap::new()),
        };
        let total = launch.grid.iter().map(|&g| g as u64).product::<u64>() as u32;
        let (counters, fault) = match &self.pool {
            Some(pool) => pool.install(|| run_grid(&ctx, total, false)),
            None => run_grid(&ctx, total, self.options.threads == 1),
        };
        match fault {
            Some((_, f)) => Err(EmuError::Fault(f)),
            None => Ok(LaunchReport { counters, seed, elapsed: started.elapsed() }),
        }
    }

    fn check_launch(&self, module: &Module, prog: &Program, launch: &Launch) -> Result<Vec<u8>, EmuError> {
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
        if prog.cluster.required.is_some_and(|c| c != [1; 3]) {
            return bad("clusters of more than one CTA are not executed yet".to_owned());
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
        let machine = workers.min(total) * warps * (prog.slots as u64 * 132 + prog.local_bytes as u64 * 64);
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

/// Runs all CTAs, on the calling thread alone if `serial`; a worker keeps its machine from one CTA to the next.
fn run_grid(ctx: &LaunchCtx<'_>, total: u32, serial: bool) -> (Counters, Option<(u32, Box<Fault>)>) {
    let idle: Mutex<Vec<Cta<'_>>> = Mutex::new(Vec::new());
    let faults: Mutex<Option<(u32, Box<Fault>)>> = Mutex::new(None);
    let lock = || idle.lock().unwrap_or_else(|e| e.into_inner());
    let run = |index| {
        if ctx.stop.load(Ordering::Relaxed) {
            return;
        }
        let cta = lock().pop();
        let mut cta = cta.unwrap_or_else(|| Cta::new(ctx));
        if let Err(f) = cta.run(index) {
            let stopped = f.kind == FaultKind::TimeLimit && ctx.stop.load(Ordering::Relaxed);
            ctx.stop.store(true, Ordering::Relaxed);
            let mut first = faults.lock().unwrap_or_else(|e| e.into_inner());
            if !stopped && first.as_ref().is_none_or(|(i, _)| index < *i) {
                *first = Some((index, f));
            }
        }
        lock().push(cta);
    };
    if serial {
        (0..total).for_each(run);
    } else {
        (0..total).into_par_iter().with_max_len(16).for_each(run);
    }
    let mut counters = Counters::default();
    for c in idle.into_inner().unwrap_or_else(|e| e.into_inner()) {
        counters.add(&c.counters);
    }
    (counters, faults.into_inner().unwrap_or_else(|e| e.into_inner()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_is_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Emulator>();
        shared::<Module>();
    }

    #[test]
    fn device_memory_round_trips_at_any_offset() {
        let e = Emulator::default();
        let p = e.alloc(100).unwrap();
        assert_eq!(p % 256, 0);
        e.fill(p, 7, 100).unwrap();
        let data: Vec<u8> = (0..90).collect();
        e.write(p + 3, &data).unwrap();
        let mut out = vec![0; 100];
        e.read(p, &mut out).unwrap();
        assert_eq!(&out[3..93], &data[..]);
        assert_eq!(&out[..3], &[7; 3]);
        assert!(e.write(p + 50, &[0; 51]).is_err());
        e.free(p).unwrap();
        assert!(e.free(p).is_err());
        assert!(e.read(p, &mut out).is_err());
        assert_ne!(e.alloc(100).unwrap(), p);
    }

    #[test]
    fn unwritten_memory_cannot_be_read_back() {
        let e = Emulator::default();
        let p = e.alloc(16).unwrap();
        e.write(p, &[1; 8]).unwrap();
        assert!(e.read(p, &mut [0; 8]).is_ok());
        assert!(e.read(p, &mut [0; 9]).is_err());
        let e = Emulator::new(EmulatorOptions::default().with_checks(Checks::none()));
        let p = e.alloc(16).unwrap();
        assert!(e.read(p, &mut [0; 9]).is_ok());
    }

    #[test]
    fn the_memory_limit_holds() {
        let e = Emulator::new(EmulatorOptions::default().with_memory_limit(1000));
        let p = e.alloc(900).unwrap();
        assert!(matches!(e.alloc(101), Err(EmuError::OutOfMemory { requested: 101, in_use: 900, limit: 1000 })));
        e.free(p).unwrap();
        assert!(e.alloc(1000).is_ok());
    }
}
