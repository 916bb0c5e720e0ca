//! Measuring one cell.

use super::ceilings::roofline;
use super::nvml::{Sampler, summary};
use super::peers::{Outcome, PeerName, Peers};
use super::ratios;
use super::record::{Ceilings, Cell, CellProblem, MaskName, Measurement, NoisePair};
use super::stats::Quartiles;
use crate::values::Values;
use crate::workload::{Case, L2, Ours, Pass, Workload};
use anyhow::{Result, ensure};
use ferroflash::{Device, Error};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// What holds more than this part of device memory is timed alone, so that no two such have to fit side by side.
const HEAVY_PART: u64 = 16;

/// How samples are taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    /// Timed samples of each implementation.
    pub(crate) repeats: u32,
    /// Warm-up of each implementation: long enough for the clocks to settle under its load.
    pub(crate) warmup: Duration,
    /// Length of one sample: long beside the microseconds that two events and an idle GPU cost, short enough to alternate.
    pub(crate) sample_ms: f64,
    /// How long the device rests before each sample.
    pub(crate) rest: Duration,
    /// What a launch finds in the cache.
    pub(crate) l2: L2,
    /// Seed of the order in which implementations take turns.
    pub(crate) order_seed: u64,
}

impl Timing {
    /// How many launches fill a sample, when `launches` took `ms`, and so many go `together`.
    pub(super) fn launches(&self, launches: u32, ms: f64, together: u32) -> u32 {
        // As many as a queue of launches holds without stalling the host; with two events and a copy for each, fewer.
        let most = if self.l2 == L2::Flush { 100.0 } else { 1000.0 };
        let launches = (self.sample_ms * f64::from(launches) / ms).ceil().clamp(1.0, most) as u32;
        launches.next_multiple_of(together)
    }
}

/// Everything that measures a cell.
pub(crate) struct Bench<'a> {
    pub(crate) device: &'a Device,
    pub(crate) pass: Pass,
    pub(crate) ours: &'a [Ours],
    pub(crate) peer_names: &'a [PeerName],
    pub(crate) peers: Option<Peers>,
    pub(crate) values: Values,
    /// `None` on the emulator, which counts instead.
    pub(crate) timing: Option<Timing>,
    pub(crate) ceilings: Option<&'a Ceilings>,
    pub(crate) sampler: Option<&'a Sampler>,
    /// What was compiled for programs so far.
    pub(crate) compiled: HashSet<String>,
}

/// One that takes turns.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Who {
    Ours(Ours),
    /// The same one of ours as another contestant: the difference of the two is noise.
    Again(Ours),
    Peer(PeerName),
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Who::Ours(ours) | Who::Again(ours) => ours.name(),
            Who::Peer(peer) => peer.name(),
        }
    }
}

/// Samples of one that takes turns.
struct Contestant {
    who: Who,
    launches: u32,
    samples: Vec<f64>,
    /// Why it gave up.
    failed: Option<String>,
}

impl Bench<'_> {
    /// Runs every implementation on one problem.
    ///
    /// A kernel whose memory does not fit or that does not run this problem, and a peer that fails for whatever reason, is left out
    /// with the reason; every other failure ends the run.
    pub(crate) fn measure(
        &mut self,
        case: Case,
        seed: u64,
        mut progress: impl FnMut(&str),
    ) -> Result<(Cell, Option<NoisePair>)> {
        progress("inputs and reference");
        let mut workload = Workload::new(self.device, case, self.pass, self.values, seed)?;
        let mut results = Vec::new();
        for &ours in self.ours {
            progress(ours.name());
            results.push(self.check(&mut workload, ours)?);
        }
        if let Some(timing) = &self.timing {
            workload = workload.with_l2(timing.l2)?;
        }
        results.extend(self.check_peers(&case, &workload, &mut progress)?);
        let mut pair = None;
        let mut telemetry = None;
        if let Some(timing) = self.timing {
            progress("timing");
            let _ = self.sampler.map(Sampler::take);
            let contestants = self.time(&mut workload, &results, timing, seed)?;
            telemetry = self.sampler.and_then(|sampler| summary(&sampler.take()));
            pair = noise(&contestants, &case);
            for contestant in contestants {
                keep(&mut results, contestant, self.pass.flops(&case), case.kv_bytes());
            }
        }
        drop(workload);
        if let Some(peers) = &mut self.peers {
            peers.release();
        }
        // Freed here, so that a cell never runs short because of what the one before it kept.
        self.device.trim_memory()?;
        let roofline = self.ceilings.and_then(|ceilings| roofline(&case, self.pass, ceilings));
        ratios::beside_the_roofline(&mut results, roofline.as_ref());
        ratios::beside_naive(&mut results);
        ratios::beside_peers(&mut results);
        let (problem, flops, kv_bytes) = (cell_problem(&case), self.pass.flops(&case), case.kv_bytes());
        Ok((Cell { problem, flops, kv_bytes, roofline, telemetry, results }, pair))
    }

    /// Memory, correctness and, on the emulator, counters.
    fn check(&mut self, workload: &mut Workload, ours: Ours) -> Result<Measurement> {
        let device = self.device;
        let mut result = Measurement::new(ours.name(), false);
        let with_program = workload.program_text(ours)?;
        let times_first = self.timing.is_some() && with_program.clone().is_some_and(|text| self.compiled.insert(text));
        let measured = || -> ferroflash::Result<()> {
            result.symbols = workload.symbols(ours)?.into_iter().map(str::to_owned).collect();
            result.splits = workload.splits(ours)?;
            if times_first {
                result.first_result_ms = Some(rounded(workload.result_ms(ours)?));
                result.second_result_ms = Some(rounded(workload.result_ms(ours)?));
            }
            result.extra_bytes = Some(workload.extra_bytes(ours)?);
            device.reset_counters();
            result.check = Some(workload.check(ours)?);
            result.counters = device.counters().into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
            Ok(())
        }();
        match measured {
            Ok(()) => {
                if self.is_heavy(&result) {
                    device.trim_memory()?;
                }
            }
            Err(
                error @ (Error::OutOfMemory { .. } | Error::WorkspaceTooLarge { .. } | Error::KernelUnsupported { .. }),
            ) => {
                device.trim_memory()?;
                result.skipped = Some(error.to_string());
            }
            // Not every pass takes programs.
            Err(error @ Error::Unsupported(_)) if with_program.is_some() => result.skipped = Some(error.to_string()),
            Err(error) => return Err(error.into()),
        }
        Ok(result)
    }

    /// The same of the peers.
    fn check_peers(
        &mut self,
        case: &Case,
        workload: &Workload,
        progress: &mut impl FnMut(&str),
    ) -> Result<Vec<Measurement>> {
        let Some(peers) = &mut self.peers else { return Ok(Vec::new()) };
        progress("inputs of the peers");
        // Nothing of ours that is still to be done may run beside theirs.
        self.device.synchronize()?;
        let l2 = self.timing.map_or(L2::Warm, |timing| timing.l2);
        let prepared = peers.prepare(case, self.pass, workload, l2, self.device.info().l2_bytes.into())?;
        let mut results = Vec::new();
        for &name in self.peer_names {
            progress(name.name());
            let mut result = Measurement::new(name.name(), true);
            result.version = peers.import(name).ok().map(str::to_owned);
            let compiles = case.program.map(|program| {
                let (numbers, problem) = (program.numbers(case.problem.kv_rows), &case.problem);
                format!("{name} {} {} {:?} {program} {numbers:?}", problem.dtype, problem.head_dim, case.mask)
            });
            match prepared.clone().and_then(|()| peers.check(name, workload)) {
                Ok(checked) => {
                    result.extra_bytes = Some(checked.extra_bytes);
                    result.graph = checked.graph;
                    result.check = Some(checked.check);
                    if compiles.is_some_and(|text| self.compiled.insert(text)) {
                        result.first_result_ms = checked.first_ms.map(rounded);
                        result.second_result_ms = checked.second_ms.map(rounded);
                    }
                }
                Err(reason) => result.skipped = Some(reason),
            }
            results.push(result);
        }
        Ok(results)
    }

    fn is_heavy(&self, result: &Measurement) -> bool {
        result.extra_bytes.is_some_and(|bytes| bytes > self.device.info().memory_bytes / HEAVY_PART)
    }

    /// Times everything that ran. What is heavy comes last, one at a time.
    fn time(
        &mut self,
        workload: &mut Workload,
        results: &[Measurement],
        timing: Timing,
        seed: u64,
    ) -> Result<Vec<Contestant>> {
        let ours = self.ours.iter().map(|&ours| Who::Ours(ours));
        let all: Vec<Who> = ours.chain(self.peer_names.iter().map(|&peer| Who::Peer(peer))).collect();
        let (mut light, mut heavy) = (Vec::new(), Vec::new());
        for result in results.iter().filter(|result| result.skipped.is_none()) {
            let who = all.iter().find(|who| who.name() == result.name).copied();
            if self.is_heavy(result) { &mut heavy } else { &mut light }.extend(who);
        }
        // The newest kernel stands for all.
        let again = light.iter().rev().find_map(|who| match who {
            Who::Ours(ours) => Some(Who::Again(*ours)),
            _ => None,
        });
        light.extend(again);
        let mut order = SmallRng::seed_from_u64(timing.order_seed ^ seed);
        let mut contestants = self.block(workload, &light, timing, &mut order)?;
        for who in heavy {
            contestants.extend(self.block(workload, &[who], timing, &mut order)?);
            self.device.trim_memory()?;
            if let (Who::Peer(_), Some(peers)) = (who, &mut self.peers) {
                // A process that ended has given its memory back.
                let _ = peers.trim();
            }
        }
        Ok(contestants)
    }

    /// Warms up and then lets all take turns, in another order each round, so that drifting clocks and temperatures meet all alike.
    fn block(
        &mut self,
        workload: &mut Workload,
        who: &[Who],
        timing: Timing,
        order: &mut SmallRng,
    ) -> Result<Vec<Contestant>> {
        let new = |&who| Contestant { who, launches: 1, samples: Vec::new(), failed: None };
        let mut contestants: Vec<Contestant> = who.iter().map(new).collect();
        let together = workload.calls();
        for contestant in &mut contestants {
            let start = Instant::now();
            while contestant.failed.is_none() {
                match self.sample(workload, contestant.who, contestant.launches, timing.rest)? {
                    Ok(ms) => contestant.launches = timing.launches(contestant.launches, ms, together),
                    Err(reason) => contestant.failed = Some(reason),
                }
                if start.elapsed() >= timing.warmup {
                    break;
                }
            }
        }
        let mut turns: Vec<usize> = (0..contestants.len()).collect();
        for _ in 0..timing.repeats {
            turns.shuffle(order);
            for &turn in &turns {
                let contestant = &mut contestants[turn];
                if contestant.failed.is_some() {
                    continue;
                }
                match self.sample(workload, contestant.who, contestant.launches, timing.rest)? {
                    Ok(ms) => contestant.samples.push(ms / f64::from(contestant.launches)),
                    Err(reason) => contestant.failed = Some(reason),
                }
            }
        }
        for contestant in contestants.iter_mut().filter(|contestant| contestant.failed.is_none()) {
            match (contestant.who, &mut self.peers) {
                (Who::Peer(peer), Some(peers)) => contestant.failed = peers.verify(peer).err(),
                (Who::Ours(ours), _) => {
                    ensure!(workload.comes_again(ours)?, "{ours} gave other bits after its last sample");
                }
                _ => {}
            }
        }
        Ok(contestants)
    }

    /// Milliseconds of `launches` in a row, together; of a peer maybe the reason why there are none.
    fn sample(&mut self, workload: &mut Workload, who: Who, launches: u32, rest: Duration) -> Result<Outcome<f64>> {
        // Back to back the device has work until the host has launched more; after a rest it would wait.
        let lead = !rest.is_zero();
        std::thread::sleep(rest);
        match who {
            Who::Ours(ours) | Who::Again(ours) => Ok(Ok(workload.time_ms(ours, launches, lead)?)),
            Who::Peer(peer) => {
                let peers = self.peers.as_mut().ok_or_else(|| "no peers".to_owned());
                Ok(peers.and_then(|peers| peers.time_ms(peer, launches, lead)))
            }
        }
    }
}

/// Puts the samples of one contestant where they belong.
fn keep(results: &mut [Measurement], contestant: Contestant, flops: f64, kv_bytes: Option<u64>) {
    let Contestant { who, launches, samples, failed } = contestant;
    if matches!(who, Who::Again(_)) {
        return;
    }
    let Some(result) = results.iter_mut().find(|result| result.name == who.name()) else { return };
    if failed.is_some() {
        // Some samples of one that then broke are no measurement.
        result.skipped = failed;
        return;
    }
    result.launches = Some(launches);
    result.samples_ms = samples.iter().map(|&ms| rounded(ms)).collect();
    let quartiles = Quartiles::of(&result.samples_ms);
    result.time_ms = Some(quartiles);
    result.tflops = Some(tflops(flops, quartiles.median));
    result.kv_bytes_per_second = kv_bytes.map(|bytes| bytes as f64 / (quartiles.median * 1e-3));
}

/// 10^12 operations per second, of so many operations in `ms` milliseconds.
fn tflops(flops: f64, ms: f64) -> f64 {
    flops / (ms * 1e-3) / 1e12
}

/// Six significant digits: finer than the clock of any GPU.
fn rounded(ms: f64) -> f64 {
    format!("{ms:.5e}").parse().unwrap_or(ms)
}

/// The kernel that took part twice.
fn noise(contestants: &[Contestant], case: &Case) -> Option<NoisePair> {
    let again = contestants.iter().find(|contestant| matches!(contestant.who, Who::Again(_)))?;
    let Who::Again(ours) = again.who else { return None };
    let first = contestants.iter().find(|contestant| contestant.who == Who::Ours(ours))?;
    let samples = |contestant: &Contestant| contestant.samples.iter().map(|&ms| rounded(ms)).collect::<Vec<_>>();
    let (a_ms, b_ms) = (samples(first), samples(again));
    let (a, b) = (Quartiles::of(&a_ms).median, Quartiles::of(&b_ms).median);
    let difference_percent = 100.0 * (a.max(b) / a.min(b) - 1.0);
    Some(NoisePair { problem: cell_problem(case), kernel: ours.name().to_owned(), a_ms, b_ms, difference_percent })
}

/// The problem as the record and the tables name it.
pub(crate) fn cell_problem(case: &Case) -> CellProblem {
    CellProblem {
        dtype: case.problem.dtype.name().to_owned(),
        head_dim: case.problem.head_dim,
        mask: MaskName(case.mask),
        seq: case.problem.q_rows,
        kv_seq: case.problem.kv_rows,
        batch: case.sequences(),
        q_heads: case.problem.q_heads,
        kv_heads: case.problem.kv_heads,
        sequences: case.rows.name(),
        program: case.program.map(|program| program.name().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferroflash::{DType, Kernel, Mask, Sizes};

    #[test]
    fn speeds_are_in_tflops() {
        // A cell of the papers: 16384 rows, 16 heads of 128 columns, in 13 ms on an H200.
        let flops = 4.0 * 16.0 * 16384.0 * 16384.0 * 128.0;
        assert!((tflops(flops, 13.0) - 169.2).abs() < 0.1, "{}", tflops(flops, 13.0));
        assert_eq!(tflops(1e12, 1.0), 1000.0);
    }

    #[test]
    fn noise_is_how_far_the_slower_of_a_pair_is_behind() {
        let problem =
            Sizes { batch: 1, q_rows: 8, kv_rows: 8, q_heads: 1, kv_heads: 1, head_dim: 64, dtype: DType::F16 };
        let case = Case::new(problem, Mask::Full);
        let of = |who, ms: f64| Contestant { who, launches: 1, samples: vec![9.0 * ms, ms, 0.5 * ms], failed: None };
        // Another kernel is no part of the pair, and it does not matter which of the two is slower.
        for (first, again) in [(2.0, 2.5), (2.5, 2.0)] {
            let all = [
                of(Who::Ours(Ours::Kernel(Kernel::V1)), 100.0),
                of(Who::Ours(Ours::Kernel(Kernel::V2)), first),
                of(Who::Again(Ours::Kernel(Kernel::V2)), again),
            ];
            let pair = noise(&all, &case).unwrap();
            assert!((pair.difference_percent - 25.0).abs() < 1e-9, "{pair:?}");
            assert_eq!((pair.kernel.as_str(), pair.a_ms[1], pair.b_ms[1]), ("v2", first, again));
            assert_eq!(noise(&all[..2], &case), None);
        }
    }

    #[test]
    fn a_sample_is_as_many_launches_as_fill_it() {
        let timing =
            |l2| Timing { repeats: 3, warmup: Duration::ZERO, sample_ms: 5.0, rest: Duration::ZERO, l2, order_seed: 0 };
        assert_eq!(timing(L2::Warm).launches(10, 20.0, 1), 3);
        assert_eq!(timing(L2::Warm).launches(1, 100.0, 1), 1);
        assert_eq!(timing(L2::Warm).launches(1, 0.001, 1), 1000);
        assert_eq!(timing(L2::Flush).launches(1, 0.001, 1), 100);
        // Those of a graph go together.
        assert_eq!([10.0, 1000.0].map(|ms| timing(L2::Rotate).launches(40, ms, 24)), [24, 24]);
        assert_eq!(timing(L2::Warm).launches(20, 1.0, 20), 100);
        assert_eq!(rounded(0.123_456_789), 0.123_457);
    }
}
