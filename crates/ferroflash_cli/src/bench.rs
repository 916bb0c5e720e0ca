//! `ferroflash bench`: how fast, how much memory, how exact, beside whom, and how far from what the device can do.

mod ceilings;
mod environment;
mod measure;
mod method;
mod nvml;
pub(crate) mod operators;
mod peers;
mod preset;
mod print;
mod ratios;
pub(crate) mod record;
mod sequences;
pub(crate) mod stats;
mod sweep;
mod sweep_file;
mod table;
mod visit;

use crate::compare::CompareArgs;
use crate::export::ExportArgs;
use crate::files;
use crate::output::{self, say, status, warning};
use crate::usage::OrUnusable;
use crate::values::Values;
use crate::workload::{L2, Ours, Pass};
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
pub(crate) use environment::commit;
use ferroflash::{DType, Device, Kernel};
use measure::{Bench, Timing};
use nvml::{Gpu, Probe, Sampler};
use peers::{Operation, Outcome, PeerName, Peers};
use record::{BENCH_KIND, Record, SCHEMA_VERSION, SweepRecord};
use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;
use sweep::{Sweep, SweepArgs};
use visit::{check_size, run_sweep};

/// Measures the kernels and checks every result.
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Inputs are standard normal and fresh for each cell. Every output is compared with an f64 reference; a result outside the
tolerance rule makes the exit status 1. On a GPU times come from CUDA events, everything taking turns in a drawn order; on the
emulator there are counts instead of times. docs/benchmarking.md describes the method and the files.

Examples:
  ferroflash bench
  ferroflash bench --preset paper --peers --json paper.json
  ferroflash bench --preset paper --peers --json paper.json --resume
  ferroflash bench --kernel v2,v3 --dtype bf16 --head-dim 128 --seq 1024,4096 --causal --peers cudnn,flash
  ferroflash bench --preset memory --device emulator
  ferroflash bench --sweep mine.toml --l2 flush
  ferroflash bench --dtype f16 --head-dim 128 --seq 16384 --window 1023/0 --kv-heads 4 --peers fa3,fa4,cudnn
  ferroflash bench --pass backward --preset paper --peers flash,cudnn
  ferroflash bench --pass backward --deterministic --head-dim 64,128
  ferroflash bench --pass both --kernel naive --preset memory
  ferroflash bench --preset decode --pages none,16,64 --cold --peers fa3,cudnn,flash
  ferroflash bench --preset varlen --peers fa3,fa4
  ferroflash bench --program alibi,documents --dtype bf16 --head-dim 128 --seq 4096 --peers triton,fa4
  ferroflash bench --operator rmsnorm,layernorm,softmax,cross_entropy --peers eager,compile,quack
  ferroflash bench --operator rotary,embedding --peers eager,compile
  ferroflash bench --operator rmsnorm --pass backward --rows 16384 --columns 4096
  ferroflash bench --ceilings --peers
  ferroflash bench peers --python venv/bin/python3
  ferroflash bench --json results.json --plot pictures --html report.html
  ferroflash bench compare before.json after.json"
)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    sweep: SweepArgs,
    #[command(flatten)]
    operators: operators::OperatorArgs,
    /// What of a training step is measured. The library chooses the kernels of backward and both; `--kernel naive` adds naive
    #[arg(long, value_name = "PASS", value_enum, ignore_case = true, default_value_t = Pass::Forward)]
    pass: Pass,
    /// With backward or both: measure, beside what the library chooses, what it chooses where equal inputs have to give equal bits
    #[arg(long)]
    deterministic: bool,
    /// Device: best, cuda, cuda:N or emulator
    #[arg(long, value_name = "DEVICE", default_value = "best", value_parser = crate::usage::device_name)]
    device: String,
    /// Measure other implementations beside ours: all that Python can import, or those named, comma separated. `bench peers` lists
    /// them. FERROFLASH_FA3_LIBRARY names the library _vllm_fa3_C.abi3.so of vLLM's build of FlashAttention-3
    #[arg(long, value_name = "PEERS", num_args = 0..=1, value_delimiter = ',', ignore_case = true)]
    peers: Option<Vec<PeerName>>,
    /// The Python that has PyTorch [default: python3 or python of the path]
    #[arg(long, value_name = "PATH", requires = "peers")]
    python: Option<PathBuf>,
    /// Timed samples of each implementation and cell, at least 3
    #[arg(long, value_name = "N", default_value_t = 21)]
    repeats: u32,
    /// Milliseconds of warm-up of each implementation and cell
    #[arg(long, value_name = "MS", default_value_t = 200)]
    warmup: u64,
    /// Milliseconds of one sample: launches are repeated until they fill it
    #[arg(long, value_name = "MS", default_value_t = 5.0)]
    sample: f64,
    /// Milliseconds that the GPU rests before each sample: its power limit then slows it down less, as in single calls; 0: back to
    /// back, at the speed that it can keep up
    #[arg(long, value_name = "MS", default_value_t = 0)]
    rest: u64,
    /// What a timed launch finds in the level-two cache
    #[arg(long, value_name = "POLICY", value_enum, ignore_case = true, default_value_t = L2::Warm)]
    l2: L2,
    /// Short for `--l2 rotate`: caches of decode that the level-two cache does not hold
    #[arg(long, conflicts_with = "l2")]
    cold: bool,
    /// Measure only what the device reaches at most, and no cell
    #[arg(long, conflicts_with_all = ["resume", "plot", "html", "csv", "markdown"])]
    ceilings: bool,
    /// The numbers that are multiplied, which decide how much power a GPU takes, and at its limit how fast it is
    #[arg(long, value_name = "VALUES", value_enum, ignore_case = true, default_value_t = Values::Normal)]
    values: Values,
    /// Seed of the inputs
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Seed of the order in which cells and implementations take turns
    #[arg(long, value_name = "N", default_value_t = 0)]
    order_seed: u64,
    /// Write the results and the environment to this file, anew after each cell; - is standard output, once, at the end
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Go on with the run that the --json file holds; what it has is not measured again
    #[arg(long, requires = "json")]
    resume: bool,
    /// Take times by the clock of the host on the emulator too: for tests of this program, no statement about a GPU
    #[arg(long, value_enum, default_value_t = Clock::Device, hide = true)]
    clock: Clock,
    #[command(flatten)]
    export: ExportArgs,
    #[command(subcommand)]
    verb: Option<BenchVerb>,
}

/// What `bench` does instead of measuring.
#[derive(Subcommand, Debug)]
enum BenchVerb {
    Compare(CompareArgs),
    Peers(peers::ListArgs),
}

/// What times come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Clock {
    /// Events of the device; the emulator has none.
    Device,
    /// Whatever the device offers.
    Host,
}

pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    if let Some(BenchVerb::Peers(args)) = &args.verb {
        return peers::list(args);
    }
    if !args.operators.is_empty() {
        return operators::run(args);
    }
    args.validate(Operation::ForwardAttention).or_unusable()?;
    let device = Device::open(&args.device)?;
    let emulator = device.info().is_emulator();
    let timed = !emulator || args.clock == Clock::Host;
    args.check_clock(timed).or_unusable()?;
    let has_instructions = |kernel: &Kernel| kernel.passes().iter().all(|pass| device.info().runs(pass.arch()));
    let runnable: Vec<Kernel> = Kernel::ALL.into_iter().filter(has_instructions).collect();
    let sweep = args.sweep.sweep(emulator, &runnable).or_unusable()?;
    let ours = args.ours(&sweep).or_unusable()?;
    sweep.cases.iter().try_for_each(|case| check_size(case, args.pass, &device)).or_unusable()?;

    let mut gpu = if emulator { Err(String::new()) } else { Gpu::open(device.info()) };
    let mut environment = environment::environment(device.info(), &gpu);
    let throttled_before = gpu.as_mut().map(|gpu| gpu.read().throttle_reasons).unwrap_or_default();
    let sampler = gpu.ok().map(Sampler::start);
    let mut peers = match args.start_peers(&device, timed, Operation::ForwardAttention)? {
        Some(Ok(peers)) => Some(peers),
        Some(Err(reason)) => {
            environment.peers_missing = Some(reason);
            None
        }
        None => None,
    };
    let mut peer_names = Vec::new();
    if let Some(peers) = &peers {
        environment.peers = peers.versions.clone();
        peer_names = peers.imported();
    }

    let mut record = Record {
        kind: BENCH_KIND.to_owned(),
        schema_version: SCHEMA_VERSION,
        environment,
        method: method::method(args, timed, &sweep),
        sweep: SweepRecord {
            name: sweep.name.clone(),
            scaled: sweep.scaled.clone(),
            kernels: ours.iter().map(|ours| ours.name().to_owned()).collect(),
            peers: peer_names.iter().map(|peer| peer.name().to_owned()).collect(),
            problems: sweep.cases.iter().map(measure::cell_problem).collect(),
        },
        ceilings: None,
        noise: None,
        cells: Vec::new(),
    };
    if let (true, Some(path)) = (args.resume, &args.json)
        && path.exists()
    {
        let earlier = Record::read("--json", path)?;
        record.resume(earlier).with_context(|| format!("--resume {}", path.display()))?;
    }
    print::heading(&record, timed, &throttled_before)?;
    if timed && record.ceilings.is_none() {
        let mut dtypes: Vec<DType> = Vec::new();
        for case in &sweep.cases {
            if !dtypes.contains(&case.problem.dtype) {
                dtypes.push(case.problem.dtype);
            }
        }
        let reads = sweep.cases.iter().any(|case| case.rows.cached());
        record.ceilings = Some(ceilings::measure(&device, &dtypes, reads, peers.as_mut(), sampler.as_ref())?);
    }
    if let Some(ceilings) = &record.ceilings {
        print::ceilings(ceilings)?;
    }
    args.keep(&record)?;
    if args.ceilings {
        return args.finish(&record);
    }

    let ceilings = record.ceilings.clone();
    let timing = timed.then(|| args.timing());
    let bench = Bench {
        device: &device,
        pass: args.pass,
        ours: &ours,
        peer_names: &peer_names,
        peers,
        values: args.values,
        timing,
        ceilings: ceilings.as_ref(),
        sampler: sampler.as_ref(),
        compiled: HashSet::new(),
    };
    run_sweep(bench, &sweep, args, &mut record)?;
    // A reader who left does not cost the files.
    let printed = print::results(&record, timed);
    args.finish(&record)?;
    args.export.write(&record)?;
    printed?;
    let (checked, wrong) = record.verdict();
    if !wrong.is_empty() {
        bail!("{} of {checked} results are outside the tolerance rule:\n  {}", wrong.len(), wrong.join("\n  "));
    }
    ensure!(checked > 0, "no kernel ran; the reasons are above");
    say!("{checked} results compared with the f64 reference, all within the tolerance rule")
}

impl BenchArgs {
    /// The comparison that was asked for in the place of a run.
    pub(crate) fn compare(&self) -> Option<&CompareArgs> {
        match &self.verb {
            Some(BenchVerb::Compare(args)) => Some(args),
            Some(BenchVerb::Peers(_)) | None => None,
        }
    }

    fn validate(&self, measured: Operation) -> Result<()> {
        // A quartile of fewer is no quartile.
        ensure!(self.repeats >= 3, "--repeats {} is not accepted; at least 3 samples are needed", self.repeats);
        ensure!(
            self.sample.is_finite() && self.sample > 0.0,
            "--sample {} is not accepted; a time above 0 is needed",
            self.sample
        );
        sweep::unique("--peers", self.peers.iter().flatten())?;
        for peer in self.peers.iter().flatten() {
            ensure!(
                peer.operation() == measured,
                "--peers {peer} is not accepted: {} is for {}, and what is measured is {}",
                peer.name(),
                peer.operation(),
                measured
            );
        }
        if let Some(path) = &self.json {
            files::check_file("--json", path)?;
            ensure!(
                !(self.resume && files::is_stream(path)),
                "--resume reads what an earlier run wrote to --json; {} holds none",
                files::written_name(path)
            );
            if files::is_stdout(path) {
                output::leave_stdout_to_a_file();
            }
        }
        self.export.check(&self.json.iter().map(|path| ("--json", path.as_path())).collect::<Vec<_>>())
    }

    /// What of ours is measured. Backward passes are those of naive, where that is asked for, and what the library chooses.
    fn ours(&self, sweep: &Sweep) -> Result<Vec<Ours>> {
        if sweep.kernels.is_empty() {
            let (name, pass) = (&sweep.name, self.pass);
            ensure!(
                pass == Pass::Forward,
                "--pass {pass} is not accepted with the sweep {name}, which is of forward passes"
            );
            // A copy that empties the cache before each call would be in the time of a graph of several.
            ensure!(self.l2 != L2::Flush, "--l2 flush is not accepted with the sweep {name}; --l2 rotate is");
        }
        let mut ours: Vec<Ours> = sweep.kernels.iter().map(|&kernel| Ours::Kernel(kernel)).collect();
        if self.pass == Pass::Forward {
            ensure!(
                !self.deterministic,
                "--deterministic is not accepted with --pass forward, whose bits are the same from run to run"
            );
            return Ok(if ours.is_empty() { vec![Ours::Chosen] } else { ours });
        }
        if !sweep.kernels_named {
            ours.clear();
        }
        for one in &ours {
            ensure!(
                *one == Ours::Kernel(Kernel::Naive),
                "kernel {one} is not accepted with --pass {}, where there is naive, and beside it always what the library chooses; \
                 --pass forward takes {}",
                self.pass,
                Kernel::ALL.map(Kernel::name).join(", ")
            );
        }
        ours.push(Ours::Chosen);
        if self.deterministic {
            ours.push(Ours::Deterministic);
        }
        Ok(ours)
    }

    fn l2(&self) -> L2 {
        if self.cold { L2::Rotate } else { self.l2 }
    }

    fn timing(&self) -> Timing {
        Timing {
            repeats: self.repeats,
            warmup: Duration::from_millis(self.warmup),
            sample_ms: self.sample,
            rest: Duration::from_millis(self.rest),
            l2: self.l2(),
            order_seed: self.order_seed,
        }
    }

    /// The peers, if some were asked for, or why there are none. Who is left out is said here.
    ///
    /// # Errors
    /// A peer that was asked for by name and is not there, with the reason.
    fn start_peers(&self, device: &Device, timed: bool, measured: Operation) -> Result<Option<Outcome<Peers>>> {
        let Some(named) = &self.peers else { return Ok(None) };
        let asked = if named.is_empty() { PeerName::of(measured) } else { named.clone() };
        let started = if timed {
            Peers::start(self.python.as_deref(), &device.info().kind, &asked)?
        } else {
            Err("they need a GPU, and this is the emulator".to_owned())
        };
        let peers = match started {
            Ok(peers) => peers,
            Err(reason) if named.is_empty() => return Ok(Some(Err(reason))),
            Err(reason) => {
                bail!("--peers {}: {reason}", asked.iter().map(PeerName::to_string).collect::<Vec<_>>().join(","))
            }
        };
        for peer in asked {
            match peers.import(peer) {
                Ok(_) => {}
                Err(reason) if named.is_empty() => {
                    warning!(
                        "{peer} is left out of --peers, since {} cannot import it: {reason}",
                        peers.python().display()
                    );
                }
                Err(reason) => bail!("--peers {peer}: {} cannot import it: {reason}", peers.python().display()),
            }
        }
        Ok(Some(Ok(peers)))
    }

    fn check_clock(&self, timed: bool) -> Result<()> {
        ensure!(timed || !self.ceilings, "--ceilings needs a GPU: the emulator counts, and has no rates");
        Ok(())
    }

    /// Writes what is there, if it was asked for and can be written anew when there is more.
    fn keep(&self, record: &Record) -> Result<()> {
        self.json.as_deref().filter(|path| !files::is_stream(path)).map_or(Ok(()), |path| record.write(path))
    }

    /// Writes what can be written only once, and says where the results are.
    fn finish(&self, record: &Record) -> Result<()> {
        if let Some(path) = &self.json {
            if files::is_stream(path) {
                record.write(path)?;
            }
            status!("results written to {}", files::written_name(path));
        }
        Ok(())
    }
}
