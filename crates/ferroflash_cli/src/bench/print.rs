//! What a run says, from its heading to its tables.

use super::record::{Ceilings, Cell, Method, Record};
use super::{stats, table};
use crate::format;
use crate::output::say;
use crate::workload::Pass;
use anyhow::Result;
use std::time::Duration;

/// What runs on what, and how: before the first result. `throttled` are reasons for low clocks that were there before.
pub(super) fn heading(record: &Record, timed: bool, throttled: &[&str]) -> Result<()> {
    let Record { environment, method, sweep, .. } = record;
    let gpu = match (&environment.compute_capability, &environment.driver) {
        (Some(capability), Some(driver)) => format!(", compute capability {capability}, driver for CUDA {driver}"),
        _ => String::new(),
    };
    say!("{}{gpu}, ferroflash {}", environment.device, environment.ferroflash)?;
    if let Some(nvml) = &environment.nvml {
        let known = |value: Option<String>| value.unwrap_or_else(|| "unknown".to_owned());
        say!(
            "Highest clocks {} MHz (multiprocessors) and {} MHz (memory), power limit {} W{}",
            known(nvml.sm_clock_max_mhz.map(|mhz| mhz.to_string())),
            known(nvml.memory_clock_max_mhz.map(|mhz| mhz.to_string())),
            known(nvml.power_limit_watts.map(|watts| format!("{watts:.0}"))),
            if throttled.is_empty() {
                String::new()
            } else {
                format!("; THROTTLED at the start: {}", throttled.join(", "))
            },
        )?;
    }
    if let Some(reason) = &environment.nvml_missing {
        say!("Clocks, power and temperature are not known: {reason}")?;
    }
    if let Some(reason) = &environment.peers_missing {
        say!("No peers: {reason}")?;
    } else if !environment.peers.is_empty() {
        let versions: Vec<_> = environment.peers.iter().map(|(name, version)| format!("{name} {version}")).collect();
        say!("Peers: {} ({})", sweep.peers.join(", "), versions.join(", "))?;
    }
    if timed {
        let Method { repeats, warmup_seconds, sample_ms, l2, order_seed, .. } = method;
        say!(
            "Median and interquartile range of {repeats} samples of {sample_ms} ms {} by {} after {warmup_seconds} s of warm-up, \
             level-two cache {l2}, order drawn with seed {order_seed}.",
            method.spacing(),
            method.timer
        )?;
    } else {
        say!(
            "No GPU: the compiled kernels run in the PTX emulator. The numbers are COUNTS of what they do, not times."
        )?;
    }
    let done = match record.cells.len() {
        0 => String::new(),
        done => format!(", of which {done} were done before"),
    };
    say!("Sweep: {}, {} cells{done}.", sweep.name, sweep.problems.len())?;
    if let Some(scaled) = &sweep.scaled {
        say!("Smaller than on a GPU: {scaled}.")?;
    }
    if let Some(cached) = method.driver_cache {
        say!(
            "over plain: time with the program over time without. first result: from a program to what its kernels give, with their \
             compilation; second: the same again. The driver's cache on disk is {}.",
            if cached { "on, and may have them of earlier runs: CUDA_CACHE_DISABLE=1 is without" } else { "off" }
        )?;
    }
    if method.pass.has_backward() {
        say!("Pass: {}. FLOP: {}.", method.pass.title(), method.flop_rule)?;
        return say!(
            "max error: largest difference from the f64 reference, of what the tolerance rule accepts, of the tensor that comes nearest \
             to its bound."
        );
    }
    say!("max error: largest |out - f64 reference| of what the tolerance rule accepts.")
}

/// What the device reaches at most.
pub(super) fn ceilings(ceilings: &Ceilings) -> Result<()> {
    let Ceilings { copy_bytes_per_second: copy, read_bytes_per_second: read, matmul_flops, exp2_per_second: exp2 } =
        ceilings;
    say!("Ceilings:")?;
    say!("  copy            {} GB/s  {}", format::significant(copy.value / 1e9), copy.how)?;
    if let Some(read) = read {
        say!("  read            {} GB/s  {}", format::significant(read.value / 1e9), read.how)?;
    }
    for (dtype, matmul) in matmul_flops {
        say!("  product, {dtype:<4}   {} TFLOP/s  {}", format::significant(matmul.value / 1e12), matmul.how)?;
    }
    say!("  exponentials    {} T/s  {}", format::significant(exp2.value / 1e12), exp2.how)
}

/// One line for a cell that is done.
pub(super) fn progress(cell: &Cell, count: u64, steps: u64, left: Duration) -> String {
    let ours = cell.results.iter().filter(|result| !result.peer);
    let (speeds, unit): (Vec<String>, _) = if cell.kv_bytes.is_some() {
        let times = ours.filter_map(|result| {
            let (time, rate) = (result.time_ms?.median, result.kv_bytes_per_second? / 1e9);
            Some(format!("{} {}, {}", result.name, format::milliseconds(time), format::significant(rate)))
        });
        (times.collect(), "GB/s")
    } else {
        let speeds = ours.filter_map(|result| Some(format!("{} {}", result.name, format::significant(result.tflops?))));
        (speeds.collect(), "TFLOP/s")
    };
    let speeds = if speeds.is_empty() { String::new() } else { format!(": {} {unit}", speeds.join(", ")) };
    let best = table::beside_the_best_peer(cell).map_or(String::new(), |text| format!("; {text}"));
    let left = humantime::format_duration(Duration::from_secs(left.as_secs()));
    format!("[{count}/{steps}, {left} left] {}{speeds}{best}", cell.problem)
}

/// The tables, what is missing in them, and what to know of the times.
pub(super) fn results(record: &Record, timed: bool) -> Result<()> {
    let of_sequences = timed && record.sweep.problems.iter().any(|problem| problem.sequences.is_some());
    let same = if of_sequences { table::same_sequences } else { table::same_group };
    for cells in record.cells.chunk_by(|a, b| same(&a.problem, &b.problem)) {
        let pass = match record.method.pass {
            Pass::Forward => String::new(),
            pass => format!(", {}", pass.title()),
        };
        let title = if of_sequences { table::sequences_title } else { table::title };
        say!("\n{}{pass}", title(&cells[0].problem))?;
        let peers = &record.sweep.peers;
        let sheet = match timed {
            true if of_sequences => table::of_sequences(cells, record.ceilings.as_ref(), peers),
            true => table::timed(cells, record.method.pass, peers),
            false => table::counted(cells),
        };
        say!("{sheet}")?;
        table::skipped(cells).iter().try_for_each(|line| say!("{line}"))?;
    }
    // A record that was taken over may hold none.
    if let Some(noise) = record.noise.as_ref().filter(|noise| !noise.pairs.is_empty()) {
        let pairs: Vec<f64> = noise.pairs.iter().map(|pair| pair.difference_percent).collect();
        say!(
            "Noise: the newest kernel measured against itself differs by {:.2} % in the middle of {} cells, {:.2} % at most.",
            stats::Quartiles::of(&pairs).median,
            pairs.len(),
            noise.floor_percent
        )?;
    }
    table::throttled(&record.cells).iter().try_for_each(|line| say!("{line}"))
}
