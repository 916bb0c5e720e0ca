//! `build`: kernels to PTX, one file per entry, and a table of them.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use cuda_builder::ptxas::{Ptxas, Report};
use cuda_builder::{Arch, CudaBuilder, Module, PtxVersion};
use kernel_spec::{Entry, FeatureSet, Unit, entries, specialise};
use lexopt::Arg;

use crate::{arguments, output, setup, table, workspace};

const HELP: &str = "\
Usage: cargo xtask build [OPTIONS]

Compiles the kernels to PTX and tabulates the entries, each alone and with every combination of the features that it accepts. With
ptxas, which needs no GPU, the table shows registers, spills and warnings. Fails on a spill, on local memory and on serialised wgmma
instructions.

Options
  --out DIR            where ENTRY.ptx goes, in a folder per architecture [target/ptx]
  --ptxas-arch LIST    GPUs to assemble for, such as sm_80,sm_90; `all` is
                       sm_80,sm_86,sm_89,sm_90,sm_100,sm_120 [the architecture of each entry]
  --entry TEXT         only entries whose name contains TEXT in the table and the check; of attention and operators, what has none of them is not compiled

Examples
  cargo xtask build
  cargo xtask setup --ptxas && cargo xtask build --ptxas-arch all
  cargo xtask build --entry v2_bf16 --ptxas-arch sm_90
";

/// GPUs that `--ptxas-arch all` stands for: every generation that the kernels have to run on.
const PTXAS_ARCHS: [Arch; 6] = [Arch::Sm80, Arch::Sm86, Arch::Sm89, Arch::Sm90, Arch::Sm100, Arch::Sm120];

struct Options {
    out: Option<PathBuf>,
    ptxas_archs: Vec<Arch>,
    entry: Option<String>,
}

pub(crate) fn run(rest: Vec<OsString>) -> Result<()> {
    let mut options = Options { out: None, ptxas_archs: Vec::new(), entry: None };
    let mut parser = arguments::parser(rest);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("out") => options.out = Some(parser.value()?.into()),
            Arg::Long("ptxas-arch") => options.ptxas_archs = arguments::archs(&mut parser, &PTXAS_ARCHS)?,
            Arg::Long("entry") => options.entry = Some(parser.value()?.to_string_lossy().into_owned()),
            Arg::Long("help") | Arg::Short('h') => {
                return output::print(HELP);
            }
            other => return Err(arguments::unexpected(other, HELP)),
        }
    }
    setup::require_rust_src()?;
    let started = Instant::now();
    let modules = kernels_with(options.out.clone(), options.entry.as_deref().unwrap_or_default())?;
    report(&modules, &options, started)
}

/// A builder of a unit of the kernel crate, for every architecture of its entries.
pub(crate) fn builder(unit: Unit) -> Result<CudaBuilder> {
    // The folder that the build scripts of `ferroflash_ptx_*` use too: each compiles what the other has not.
    let mut builder = CudaBuilder::new(workspace::kernels())
        .target_dir(workspace::target_dir()?.join("cuda_builder"))
        .default_features(false)
        .feature(unit.feature());
    for entry in unit.entries() {
        let arch = entry.arch.name().parse()?;
        builder = builder.arch(arch);
        if let Some((major, minor)) = entry.arch.ptx_version() {
            builder = builder.ptx_version(arch, PtxVersion::new(major, minor)?);
        }
    }
    Ok(builder)
}

/// Compiles every entry of the list and checks that PTX and list agree. `out` is `target/ptx` by default.
pub(crate) fn kernels(out: Option<PathBuf>) -> Result<Vec<Module>> {
    kernels_with(out, "")
}

/// The same for the units that have an entry with this text in its name.
fn kernels_with(out: Option<PathBuf>, text: &str) -> Result<Vec<Module>> {
    let out = match out {
        Some(out) => out,
        None => workspace::target_dir()?.join("ptx"),
    };
    workspace::step("kernels to PTX");
    let mut modules: Vec<Module> = Vec::new();
    let named = |unit: &Unit| unit.entries().any(|entry| entry.symbol.contains(text));
    let units: Vec<Unit> = Unit::ALL.into_iter().filter(named).collect();
    for &unit in &units {
        for mut module in builder(unit)?.build()?.modules {
            check(unit, &mut module)?;
            match modules.iter_mut().find(|other| other.arch == module.arch) {
                Some(other) => other.kernels.append(&mut module.kernels),
                None => modules.push(module),
            }
        }
    }
    for module in &modules {
        if units.len() == Unit::ALL.len() {
            module.copy_to(&out)?;
        } else {
            // What is there of other units stays.
            let folder = out.join(module.arch.name());
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
            for kernel in &module.kernels {
                let file = folder.join(format!("{}.ptx", kernel.name));
                fs::write(&file, &kernel.ptx).with_context(|| format!("cannot write {}", file.display()))?;
            }
        }
    }
    workspace::step(&format!("PTX is in {}", out.display()));
    Ok(modules)
}

/// That a module has the entries of its unit and architecture; it is left with them.
fn check(unit: Unit, module: &mut Module) -> Result<()> {
    let arch = module.arch;
    if !module.warnings.trim().is_empty() {
        output::note(format_args!("{}", module.warnings.trim_end()));
    }
    if let Some(kernel) = module.kernels.iter().find(|kernel| entries().all(|entry| entry.symbol != kernel.name)) {
        bail!("{arch}: the entry `{}` is not in kernel_spec::entries", kernel.name);
    }
    // An entry belongs to the architecture that its row of the list names.
    module.kernels.retain(|kernel| entries_of(arch).any(|entry| entry.symbol == kernel.name));
    for entry in unit.entries().filter(|entry| entry.arch.name() == arch.name()) {
        let kernel = module
            .kernel(entry.symbol)
            .with_context(|| format!("{arch}: `{}` of kernel_spec::entries has no entry point", entry.symbol))?;
        if kernel.bounds.threads != Some([entry.threads, 1, 1]) {
            let (bounds, threads) = (kernel.bounds.threads, entry.threads);
            bail!("`{}` is compiled for {bounds:?} threads, but kernel_spec::entries says {threads}", kernel.name);
        }
    }
    Ok(())
}

fn entries_of(arch: Arch) -> impl Iterator<Item = &'static Entry> {
    entries().filter(move |entry| entry.arch.name() == arch.name())
}

/// One line of the table: an entry with some of the features that it accepts, and an assembled GPU if there is a ptxas.
struct Row {
    entry: &'static Entry,
    features: FeatureSet,
    ptx: Arc<str>,
    local_memory: bool,
    gpu: Option<Arch>,
}

impl Row {
    /// The entry, and the features that are on, for people.
    fn name(&self) -> String {
        let symbol = self.entry.symbol;
        if self.features.is_empty() { symbol.to_string() } else { format!("{symbol} +{:#b}", self.features.bits()) }
    }
}

fn report(modules: &[Module], options: &Options, started: Instant) -> Result<()> {
    let ptxas = match Ptxas::find() {
        Ok(ptxas) => Some(ptxas),
        Err(error) if options.ptxas_archs.is_empty() => {
            workspace::step(&format!("no registers and spills in the table: {error}"));
            None
        }
        Err(error) => return Err(error.into()),
    };
    let mut rows = Vec::new();
    for module in modules {
        let gpus: Vec<Option<Arch>> = match (&ptxas, options.ptxas_archs.as_slice()) {
            (None, _) => vec![None],
            (Some(_), []) => vec![Some(module.arch)],
            // PTX of one generation is assembled for that one only.
            (Some(_), _) if module.arch.is_specific() => vec![Some(module.arch)],
            (Some(_), gpus) => gpus.iter().copied().filter(|&gpu| gpu >= module.arch).map(Some).collect(),
        };
        for entry in entries_of(module.arch) {
            if options.entry.as_deref().is_none_or(|text| entry.symbol.contains(text)) {
                let kernel = module.kernel(entry.symbol).context("checked after the build")?;
                let local_memory = kernel.uses_local_memory();
                // Every combination: what a row accepts is what this has seen assemble.
                for features in entry.accepts.subsets() {
                    let ptx: Arc<str> =
                        specialise(&kernel.ptx, entry, features, None).with_context(|| entry.symbol)?.into();
                    rows.extend(gpus.iter().map(|&gpu| Row { entry, features, ptx: ptx.clone(), local_memory, gpu }));
                }
            }
        }
    }
    if rows.is_empty() {
        bail!("no entry has `{}` in its name", options.entry.as_deref().unwrap_or_default());
    }
    let reports = match &ptxas {
        Some(ptxas) => assemble(ptxas, &rows)?,
        None => vec![None; rows.len()],
    };
    let mut header = vec!["entry", "arch", "threads", "shared KiB", "PTX KiB"];
    if ptxas.is_some() {
        header.extend(["assembled", "registers", "spill B", "warnings"]);
    }
    let mut defects = Vec::new();
    let mut cells = Vec::new();
    for (row, report) in rows.iter().zip(&reports) {
        cells.push(line(row, report.as_ref()));
        let gpu = row.gpu.map(|gpu| format!(" on {gpu}")).unwrap_or_default();
        if row.local_memory {
            defects.push(format!("{}: local memory in the PTX", row.name()));
        }
        for defect in report.iter().flat_map(Report::defects) {
            defects.push(format!("{}{gpu}: {defect}", row.name()));
        }
    }
    output::print(&table::format(&header, &cells))?;
    let entries: HashSet<&str> = rows.iter().map(|row| row.entry.symbol).collect();
    let texts: HashSet<_> = rows.iter().map(|row| (row.entry.symbol, row.features)).collect();
    let seconds = started.elapsed().as_secs_f64();
    output::print(&format!(
        "{} entries, {} with features, {seconds:.1} s\n",
        entries.len(),
        texts.len() - entries.len()
    ))?;
    if defects.is_empty() {
        return Ok(());
    }
    defects.dedup();
    bail!("{} defects:\n  {}", defects.len(), defects.join("\n  "))
}

fn line(row: &Row, report: Option<&Report>) -> Vec<String> {
    let entry = row.entry;
    let mut cells = vec![
        row.name(),
        entry.arch.name().to_string(),
        entry.threads.to_string(),
        format!("{:.1}", f64::from(entry.shared_bytes) / 1024.0),
        format!("{}", row.ptx.len() / 1024),
    ];
    if let Some(report) = report {
        cells.push(row.gpu.map(|gpu| gpu.to_string()).unwrap_or_default());
        cells.push(report.registers.to_string());
        cells.push((report.spill_store_bytes + report.spill_load_bytes).to_string());
        let codes = report.messages.iter().map(|message| message.code.clone().unwrap_or_else(|| message.text.clone()));
        cells.push(codes.collect::<Vec<_>>().join(", "));
    }
    cells
}

/// Assembles every row, on all cores: a row takes a few tenths of a second.
fn assemble(ptxas: &Ptxas, rows: &[Row]) -> Result<Vec<Option<Report>>> {
    workspace::step(&format!("ptxas {}: {} assemblies", ptxas.version(), rows.len()));
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(row) = rows.get(index) else { return Ok(done) };
            let gpu = row.gpu.context("a row to assemble names a GPU")?;
            done.push((index, ptxas.assemble(row.entry.symbol, &row.ptx, gpu)?));
        }
    };
    let mut reports = vec![None; rows.len()];
    std::thread::scope(|scope| {
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(worker)).collect();
        for thread in threads {
            let done: Result<Vec<(usize, Report)>> =
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            for (index, report) in done? {
                reports[index] = Some(report);
            }
        }
        Ok(reports)
    })
}
