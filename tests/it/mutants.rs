//! The kernels' own PTX with its waits, arrivals and fences taken out one at a time: the emulator reports every one of them, and
//! reports nothing of the kernels as they are, under any seed.
//!
//! On a GPU there is nothing to see of this, and the tests return at once. `FERROFLASH_TEST_SEEDS` sets the number of interleavings
//! that the kernels as they are run under.

use crate::support::device;
use crate::support::draws::draws;
use crate::support::edits::{Edit, Mutant, mutants};
use ferroflash::{
    Attention, DType, Device, Element, EmulatorConfig, Kernel, Mask, Operand, Pass, Sizes, Step, Variant,
};
use kernel_spec::FeatureSet;
use ptx_emu::{EmuError, Emulator, EmulatorOptions, Fault, FaultKind, Launch, Module};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::num::NonZero;
use std::time::Duration;

/// A call of one kernel on contiguous tensors `[batch, row, head, dim]`.
#[derive(Clone, Copy, Debug)]
struct Call {
    q_rows: usize,
    kv_rows: usize,
    /// Heads of q, and of k and v: heads that shared keys would share tiles too where rows are few, and leave fewer of them.
    heads: usize,
    mask: Mask,
    scale: f32,
}

/// A pass with its calls: together they go through every loop of the kernel, and wrap every ring of buffers.
struct Subject {
    pass: Pass,
    head_dim: u32,
    /// Keys that a row sees, which the tile is for.
    keys: u32,
    calls: &'static [Call],
    /// Fewer broken copies mean that the edits no longer find what they look for.
    least_mutants: usize,
    /// Edits that break nothing.
    needless: &'static [Needless],
}

/// An edit, how often it breaks nothing, and why.
pub(crate) type Needless = (Edit, usize, &'static str);

/// Two heads of rows that fill no tile.
const fn call(q_rows: usize, kv_rows: usize, mask: Mask, scale: f32) -> Call {
    Call { q_rows, kv_rows, heads: 2, mask, scale }
}

/// v3 on one thread block: each role passes every buffer several times, and a diagonal off the tiles' corners leaves several blocks
/// with element tests. The negative scale makes the kernel change the queries.
const V3_CALLS: [Call; 8] = [
    call(400, 460, Mask::Causal, 0.125),
    call(130, 520, Mask::Full, -0.125),
    // Tiles of two blocks of 128 keys, and of 64.
    Call { heads: 6, ..call(65, 129, Mask::Full, 0.125) },
    Call { heads: 6, ..call(65, 100, Mask::Full, 0.125) },
    // Tiles of three blocks of 128 keys, and of 64, of which the first rows skip one.
    Call { heads: 6, ..call(192, 300, Mask::Causal, 0.125) },
    Call { heads: 16, ..call(128, 192, Mask::Causal, 0.125) },
    // Most tiles see no key: nothing but their own synchronisation orders them.
    call(400, 3, Mask::Causal, 0.125),
    MENDED,
];
/// Scores that f32 does not carry: every row is computed again.
const MENDED: Call = call(70, 20, Mask::Full, 1e6);
/// v1 and v2. Most rows of the third see no key: their queries arrive in time for nobody.
const BLOCK_CALLS: [Call; 4] =
    [call(150, 290, Mask::Causal, 0.125), call(70, 70, Mask::Full, -0.125), call(200, 3, Mask::Causal, 0.125), MENDED];

const V1: Subject =
    Subject { pass: Pass::V1, head_dim: 64, keys: 0, calls: &BLOCK_CALLS, least_mutants: 20, needless: &[] };
const V2: Subject = Subject { pass: Pass::V2, ..V1 };
const V3: Subject = Subject {
    pass: Pass::V3,
    head_dim: 64,
    keys: 0,
    calls: &V3_CALLS,
    least_mutants: 60,
    needless: &[LAST_VALUES, NEGATED_QUERIES, FIRST_QUERIES, NOTES_CONVERGE],
};
pub(crate) const FIRST_QUERIES: Needless =
    (Edit::NoMbarrierWait, 1, "for the queries of a block's first tile, whose buffer is fresh");
pub(crate) const LAST_VALUES: Needless = (
    Edit::NoArrival,
    2,
    "for the last values of a block, nobody loads into their buffer again; every block has a tile, so that the note before the first one \
     never says that there is none",
);
pub(crate) const NEGATED_QUERIES: Needless = (
    Edit::NoBarrier,
    1,
    "after negating the queries of a tile but the first: the turn that follows is a barrier of the same threads",
);
pub(crate) const NOTES_CONVERGE: Needless =
    (Edit::NoWarpSync, 2, "after reading a note: it keeps the warp converged, each thread frees the note for itself");
/// One buffer for the queries instead of two, and no turns.
const V3_ONE_BUFFER: Subject = Subject {
    head_dim: 256,
    needless: &[
        (
            Edit::NoMbarrierWait,
            1,
            "for the first values of a tile: the queries before them waited for the last scores of the tile before, and whoever read \
             the buffer was done by then",
        ),
        (Edit::NoWarpSync, 1, NOTES_CONVERGE.2),
    ],
    ..V3
};

/// Two buffers for the queries, and warpgroups that skip blocks.
const V3_SKIPS: Subject = Subject {
    keys: 4096,
    needless: &[
        LAST_VALUES,
        NEGATED_QUERIES,
        (
            Edit::NoMbarrierWait,
            4,
            "for the queries of a block's first tile, as above; for skipped keys and values but the first keys of all: a warpgroup that \
             reads them passes on the turn only then, without turns they would be needed",
        ),
        NOTES_CONVERGE,
    ],
    ..V3
};

/// Element type of all subjects: the other 16-bit one has the same statements.
pub(crate) const DTYPE: DType = DType::Bf16;

impl Subject {
    fn variant(&self) -> &'static Variant {
        Variant::find(self.pass, DTYPE, [self.head_dim; 2], self.keys, FeatureSet::NONE).expect("a row of the list")
    }

    /// Its launches, one for each call.
    fn launches(&self) -> Vec<(Call, Step)> {
        let device = planner(1);
        self.calls.iter().map(|call| (*call, call.step(&device, self.variant()))).collect()
    }
}

/// The text that the library gives a device for these launches.
fn text(launches: &[(Call, Step)]) -> String {
    launches[0].1.kernel.text().expect("this build holds every row of the list")
}

/// A device to plan for: with one multiprocessor a persistent kernel has one thread block.
pub(crate) fn planner(multiprocessors: u32) -> Device {
    let multiprocessors = NonZero::new(multiprocessors).expect("at least one");
    let config = EmulatorConfig::default().with_multiprocessors(multiprocessors);
    Device::emulator_with(config).expect("the emulator is built in")
}

impl Call {
    /// How the library launches the row for this call.
    fn step(&self, device: &Device, variant: &'static Variant) -> Step {
        let Call { q_rows, kv_rows, heads, mask, scale } = *self;
        let (head_dim, dtype) = (variant.dim_qk as usize, variant.dtype);
        let problem = Sizes { batch: 1, q_rows, kv_rows, q_heads: heads, kv_heads: heads, head_dim, dtype };
        let attention = Attention::new().with_kernel(variant).with_mask(mask).with_scale(scale).with_lse(true);
        let plan = attention.plan(device, problem).unwrap_or_else(|error| panic!("{self:?}: {error}"));
        let [step] = <[Step; 1]>::try_from(plan.steps).expect("a kernel of one pass");
        step
    }
}

/// Small pseudorandom bf16 numbers, the same for the same index.
pub(crate) fn data(elements: usize, seed: u32) -> Vec<u8> {
    let value = |i: usize| {
        let bits = (i as u32).wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(0x9e37_79b9);
        let bits = (bits ^ bits >> 15).wrapping_mul(0x85eb_ca6b);
        (bits >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..elements).flat_map(|i| ((value(i).to_bits() >> 16) as u16).to_le_bytes()).collect()
}

/// Launches a step with `module`, its text or an edited one, as it is planned for a call; the bytes of output and log-sum-exp.
fn run(module: &Module, (call, step): &(Call, Step), dim: usize, seed: u64) -> Result<Vec<u8>, EmuError> {
    let options = EmulatorOptions::default()
        .with_seed(seed)
        // A hundred times what the kernels take: a mutant that runs away is none that was reported.
        .with_instruction_limit(Some(100_000_000))
        .with_time_limit(Some(Duration::from_secs(60)));
    let memory = Emulator::new(options);
    let elements = |rows: usize| rows * call.heads * dim;
    let upload = |rows, seed| -> Result<u64, EmuError> {
        let address = memory.alloc(2 * elements(rows) as u64)?;
        memory.write(address, &data(elements(rows), seed))?;
        Ok(address)
    };
    let [q, k, v] = [upload(call.q_rows, 1)?, upload(call.kv_rows, 2)?, upload(call.kv_rows, 3)?];
    let out_bytes = 2 * elements(call.q_rows);
    let out = memory.alloc(out_bytes as u64)?;
    let lse_bytes = 4 * call.q_rows * call.heads;
    let lse = memory.alloc(lse_bytes as u64)?;
    let operands = [(Operand::Q, q), (Operand::K, k), (Operand::V, v), (Operand::Out, out), (Operand::Lse, lse)];
    // The memory is not the planner's: nothing but addresses goes into the parameters.
    let params = step.params(&planner(1), &operands, &[]).unwrap_or_else(|error| panic!("{call:?}: {error}"));
    let entry = step.kernel.entry;
    let launch = Launch::new([step.ctas, 1, 1], [entry.threads, 1, 1])
        .with_dynamic_shared_bytes(entry.shared_bytes)
        .with_param(&params);
    memory.launch(module, entry.symbol, &launch)?;
    let mut result = vec![0; out_bytes + lse_bytes];
    let (out_result, lse_result) = result.split_at_mut(out_bytes);
    memory.read(out, out_result)?;
    memory.read(lse, lse_result)?;
    Ok(result)
}

/// Seeds that a mutant is tried under: in order, and interleavings. Eight of them, with six heads instead of sixteen in the last call
/// that skips, did not find that 256 dims have to wait for skipped values.
pub(crate) const MUTANT_SEEDS: u64 = 16;

/// What the emulator said of a mutant: the first report, if there is one.
fn report(subject: &Subject, launches: &[(Call, Step)], mutant: &Mutant) -> Option<Box<Fault>> {
    let module = Module::parse(&mutant.ptx).unwrap_or_else(|error| panic!("line {}: {error}", mutant.line));
    for seed in 0..MUTANT_SEEDS {
        for launch in launches {
            match run(&module, launch, subject.head_dim as usize, seed) {
                Ok(_) => {}
                Err(EmuError::Fault(fault)) => return Some(fault),
                Err(error) => panic!("{:?} of line {}: {error}", mutant.edit, mutant.line),
            }
        }
    }
    None
}

/// What a mutant may be reported as. There are several where a reader may come before or after the writer that it should have
/// waited for, and where a barrier keeps both data and turns in order.
fn accepted(edit: Edit) -> &'static [FaultKind] {
    use FaultKind::*;
    match edit {
        Edit::NoMbarrierWait => &[AsyncCopyNotWaited, AsyncReadOverwritten, SharedRace, MbarrierMisuse],
        Edit::WrongPhase => &[AsyncCopyNotWaited, AsyncReadOverwritten, SharedRace, MbarrierMisuse, Deadlock],
        Edit::NoArrival | Edit::NoBarrierArrival => &[Deadlock],
        Edit::NoExpectTx => &[AsyncCopyNotWaited, MbarrierMisuse],
        Edit::NoInit => &[MbarrierMisuse],
        // A parameter that is read before it is there is an address of anything.
        Edit::NoBarrier => &[
            SharedRace,
            UninitializedShared,
            AsyncCopyNotWaited,
            AsyncReadOverwritten,
            Deadlock,
            Misaligned,
            GlobalOutOfBounds,
        ],
        // What other lanes of the warp did, one lane's arrival does not order.
        Edit::NoWarpSync => &[SharedRace, MissingProxyFence],
        // Nothing to report: the sums have other bits.
        Edit::NoTurn => &[],
        Edit::NoCount => &[Deadlock],
        Edit::NoCopyWait | Edit::LateCopyWait | Edit::NoCopyCommit => &[AsyncCopyNotWaited],
        Edit::NoStoreWait | Edit::LateStoreWait | Edit::NoStoreCommit => {
            &[AsyncReadOverwritten, SharedRace, CopiesInFlightAtExit]
        }
        Edit::NoProxyFence | Edit::NoInitFence => &[MissingProxyFence],
        Edit::NoWgmmaFence => &[MissingWgmmaFence],
        Edit::NoWgmmaCommit | Edit::NoWgmmaWait | Edit::LateWgmmaWait => &[WgmmaRegisterInFlight, AsyncReadOverwritten],
    }
}

/// Every mutant is reported, as one of the kinds that its edit may be reported as, but for those that the subject says are needless.
fn check_mutants(subject: &Subject) {
    if device::is_gpu() {
        return;
    }
    let launches = subject.launches();
    let list = mutants(&text(&launches));
    assert!(list.len() >= subject.least_mutants, "{} mutants of {}", list.len(), subject.variant().entry.symbol);
    let reports = list.iter().map(|mutant| report(subject, &launches, mutant)).collect();
    judge(subject.variant().entry.symbol, &list, reports, subject.needless);
}

/// Panics unless every mutant is reported, as one of the kinds that its edit may be reported as, but for those that are said to be
/// needless.
pub(crate) fn judge(symbol: &str, list: &[Mutant], reports: Vec<Option<Box<Fault>>>, needless: &[Needless]) {
    let mut wrong = String::new();
    let mut unreported: BTreeMap<Edit, Vec<&Mutant>> = BTreeMap::new();
    for (mutant, fault) in list.iter().zip(reports) {
        match fault {
            None => unreported.entry(mutant.edit).or_default().push(mutant),
            Some(fault) if accepted(mutant.edit).contains(&fault.kind) => {}
            Some(fault) => {
                let Mutant { edit, line, statement, .. } = mutant;
                writeln!(wrong, "{edit:?} of line {line}, `{statement}`: {fault}").expect("a string takes all");
            }
        }
    }
    wrong += &unexcused(unreported, needless);
    assert!(wrong.is_empty(), "{symbol}: {wrong}");
}

/// What is wrong with the mutants that nobody noticed: of each edit as many are expected as are said to be needless.
pub(crate) fn unexcused(mut unnoticed: BTreeMap<Edit, Vec<&Mutant>>, needless: &[Needless]) -> String {
    let mut wrong = String::new();
    for (edit, ..) in needless {
        unnoticed.entry(*edit).or_default();
    }
    for (edit, list) in unnoticed {
        let expected = needless.iter().find(|needless| needless.0 == edit).map_or(0, |needless| needless.1);
        // Neither more nor fewer: an excuse that nothing needs any more is a lie.
        if list.len() != expected {
            let lines: Vec<_> = list.iter().map(|m| format!("line {} `{}`", m.line, m.statement)).collect();
            writeln!(wrong, "{edit:?}: {expected} expected without notice, got {}", lines.join(", "))
                .expect("a string takes all");
        }
    }
    wrong
}

#[test]
fn every_wait_of_v1_is_needed() {
    check_mutants(&V1);
}

#[test]
fn every_wait_of_v2_is_needed() {
    check_mutants(&V2);
}

#[test]
fn every_wait_of_v3_is_needed() {
    check_mutants(&V3);
}

#[test]
fn every_wait_of_v3_with_skips_is_needed() {
    check_mutants(&V3_SKIPS);
}

#[test]
fn every_wait_of_v3_with_one_query_buffer_is_needed() {
    check_mutants(&V3_ONE_BUFFER);
}

/// The calls of the mutants, as the kernels are: no report, and the same bits under every interleaving.
#[test]
fn the_seed_changes_nothing() {
    if device::is_gpu() {
        return;
    }
    for subject in [&V1, &V2, &V3, &V3_SKIPS, &V3_ONE_BUFFER] {
        let launches = subject.launches();
        let module = Module::parse(&text(&launches)).expect("the kernel loads");
        let run = |launch, seed| {
            run(&module, launch, subject.head_dim as usize, seed).unwrap_or_else(|error| panic!("{error}"))
        };
        for launch in &launches {
            let in_order = run(launch, 0);
            for seed in 1..=device::seeds(12).into() {
                let symbol = subject.variant().entry.symbol;
                assert!(run(launch, seed) == in_order, "{symbol} with seed {seed}, {:?}", launch.0);
            }
        }
    }
}

crate::for_each_kernel_and_dtype!(random_problems_under_random_seeds);

/// Random problems, masks, scales and layouts, each under a random interleaving: the reference's numbers and no report.
fn random_problems_under_random_seeds<T: Element>(kernel: Kernel) {
    if device::is_gpu() {
        return;
    }
    let strategy = (crate::properties::cases(kernel, T::DTYPE), 1u64..);
    // Shrinking ends after about a minute.
    draws(file!(), device::seeds(12), 256).check(&strategy, |(case, seed)| {
        let device =
            Device::emulator_with(EmulatorConfig::default().with_seed(seed)).expect("the emulator is built in");
        case.check::<T>(&device).map_err(|wrong| format!("seed {seed}: {wrong}"))
    });
}
