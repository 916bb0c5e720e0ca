//! What `mutants` does to the forward kernels, done to those of the backward pass: every wait and barrier that is taken out is reported,
//! and the seed changes nothing.

use crate::mutants::{DTYPE, MUTANT_SEEDS, Needless, data, judge, planner};
use crate::support::device;
use crate::support::edits::{Edit, Mutant, mutants};
use ferroflash::{Attention, Binding, Kernel, Mask, Operand, Sizes, Step};
use kernel_spec::families::backward::{Pass, Variant};
use ptx_emu::{EmuError, Emulator, EmulatorOptions, Fault, Launch, Module};
use std::time::Duration;

/// A call on contiguous tensors `[batch, row, head, dim]` with four query heads over two of keys.
#[derive(Clone, Copy, Debug)]
struct Call {
    q_rows: usize,
    kv_rows: usize,
    mask: Mask,
}

const Q_HEADS: usize = 4;
const KV_HEADS: usize = 2;

/// A pass with its head dim.
struct Subject {
    kernel: Kernel,
    pass: Pass,
    head_dim: usize,
    calls: &'static [Call],
    /// Of the device.
    multiprocessors: u32,
    /// Seeds that a mutant is tried under.
    seeds: u64,
    /// Fewer broken copies mean that the edits no longer find what they look for.
    least_mutants: usize,
    /// Edits that break nothing.
    needless: &'static [Needless],
}

/// Together they go through both loops of the kernels and every stage and slot; of the last two, most rows see no key, and most keys are
/// seen by no row: their tiles arrive in time for nobody.
const CALLS: [Call; 4] = [
    Call { q_rows: 150, kv_rows: 200, mask: Mask::Causal },
    Call { q_rows: 70, kv_rows: 130, mask: Mask::Full },
    Call { q_rows: 200, kv_rows: 3, mask: Mask::Causal },
    Call { q_rows: 3, kv_rows: 200, mask: Mask::Window { left: Some(0), right: Some(0) } },
];

/// The fused pass on one thread block: every ring is passed several times. With one block of queries, a block of keys has a step for each
/// head of the group: nothing but their own ring orders its buffers. Of the last, most blocks are seen by no row.
const FUSED_CALLS: [Call; 4] = [
    Call { q_rows: 130, kv_rows: 260, mask: Mask::Causal },
    Call { q_rows: 60, kv_rows: 400, mask: Mask::Full },
    Call { q_rows: 260, kv_rows: 130, mask: Mask::Full },
    Call { q_rows: 3, kv_rows: 600, mask: Mask::Window { left: Some(0), right: Some(0) } },
];

/// Weights in registers, two stages.
const KEYS: Subject = Subject {
    kernel: Kernel::V2,
    pass: Pass::Keys,
    head_dim: 64,
    calls: &CALLS,
    multiprocessors: 1,
    seeds: MUTANT_SEEDS,
    least_mutants: 8,
    needless: &[],
};
/// Weights through shared memory, two stages.
const KEYS_OF_TWO_PARTS: Subject = Subject { head_dim: 192, ..KEYS };
/// Weights through shared memory, one stage.
const KEYS_OF_ONE_STAGE: Subject = Subject { head_dim: 256, ..KEYS };
const QUERIES: Subject = Subject { pass: Pass::Queries, ..KEYS };
/// One tile, and nothing to take turns with.
const NAIVE_SCORES: Subject = Subject { kernel: Kernel::Naive, pass: Pass::NaiveScores, least_mutants: 2, ..KEYS };
const NAIVE_QUERIES: Subject = Subject {
    pass: Pass::NaiveQueries,
    least_mutants: 6,
    needless: &[(Edit::NoCopyCommit, 1, "in the branch around the loop, for sums of nothing: nobody waits there")],
    ..NAIVE_SCORES
};
const NAIVE_KEYS: Subject = Subject { pass: Pass::NaiveKeys, ..NAIVE_QUERIES };

/// Two buffers of keys.
const FUSED: Subject = Subject {
    kernel: Kernel::V3,
    pass: Pass::Fused,
    calls: &FUSED_CALLS,
    // A launch takes half a second, and what is reported at all is so under the first.
    seeds: 4,
    least_mutants: 45,
    needless: &[
        (Edit::NoMbarrierWait, 3, FREED_BEFORE),
        DOUT_IS_READ,
        DOUT_IS_READ_LATE,
        FRESH_REGISTERS,
        (
            Edit::NoWgmmaCommit,
            2,
            "of the gradients of values: they then belong to the next group, which is waited for as well",
        ),
    ],
    ..KEYS
};
/// One buffer of keys, three of the gradients of scores.
const FUSED_OF_ONE_BUFFER: Subject = Subject {
    head_dim: 128,
    needless: &[
        // Of the gradients of scores too: their third buffer was read in the step before the one whose queries make room for this step's.
        (Edit::NoMbarrierWait, 5, FREED_BEFORE),
        DOUT_IS_READ,
        DOUT_IS_READ_LATE,
        FRESH_REGISTERS,
        FUSED.needless[4],
    ],
    ..FUSED
};
/// Once for a block, and in the two places of a step.
const FREED_BEFORE: &str = "for room for v and dout: keys and queries are freed after them, and waited for before. Without these waits 64 dims lose 2 %";
const DOUT_IS_READ: Needless =
    (Edit::NoWgmmaWait, 2, "for the last product that reads dout: see the waits for its room");
const DOUT_IS_READ_LATE: Needless = (Edit::LateWgmmaWait, 2, DOUT_IS_READ.2);
const FRESH_REGISTERS: Needless = (
    Edit::NoWgmmaFence,
    2,
    "before the scores of the first step and the last gradients of queries, whose registers nothing was in: the manual asks for it",
);

/// Sums in order, on as many multiprocessors as one head has blocks of keys and a few, so that a head is in two rounds: what orders them.
const ORDERED: Subject = Subject {
    pass: Pass::Ordered,
    calls: &ORDERED_CALLS,
    multiprocessors: 5,
    least_mutants: 8,
    needless: &[],
    ..FUSED
};

const ORDERED_CALLS: [Call; 2] =
    [Call { q_rows: 260, kv_rows: 390, mask: Mask::Causal }, Call { q_rows: 390, kv_rows: 390, mask: Mask::Full }];

impl Subject {
    fn variant(&self) -> &'static Variant {
        Variant::find(self.pass, DTYPE, self.head_dim as u32).expect("a row of the list")
    }

    fn launches(&self) -> Vec<Planned> {
        self.calls.iter().map(|call| Planned::of(*call, self)).collect()
    }
}

/// A call with the step that is looked at, and those that it needs before.
struct Planned {
    call: Call,
    head_dim: usize,
    before: Vec<Step>,
    step: Step,
    /// Bytes of the buffers.
    buffers: Vec<u64>,
}

impl Planned {
    fn of(call: Call, subject: &Subject) -> Planned {
        let Call { q_rows, kv_rows, mask } = call;
        let (q_heads, kv_heads, head_dim) = (Q_HEADS, KV_HEADS, subject.head_dim);
        let problem = Sizes { batch: 1, q_rows, kv_rows, q_heads, kv_heads, head_dim, dtype: DTYPE };
        let in_order = subject.pass == Pass::Ordered;
        let attention = Attention::new().with_mask(mask).with_kernel(subject.kernel).with_deterministic(in_order);
        let plan = attention.backward_plan(&planner(subject.multiprocessors), problem);
        let plan = plan.unwrap_or_else(|error| panic!("{call:?}: {error}"));
        let buffers = plan.buffers.iter().map(|buffer| buffer.bytes).collect();
        let mut before = plan.steps;
        let symbol = subject.variant().entry.symbol;
        let place = before.iter().position(|step| step.kernel.entry.symbol == symbol).expect("a step of the plan");
        before.truncate(place + 1);
        let step = before.pop().expect("it is the last");
        if subject.kernel != Kernel::Naive {
            // Nothing but the statistics is passed on.
            before.truncate(1);
        }
        Planned { call, head_dim, before, step, buffers }
    }

    /// Launches the step with `module`, its text or an edited one, after those `before` it; the bytes of the gradients and of what the
    /// step leaves in buffers.
    fn run(&self, before: &[Module], module: &Module, seed: u64) -> Result<Vec<u8>, EmuError> {
        let options = EmulatorOptions::default()
            .with_seed(seed)
            // A hundred times what the kernels take: a mutant that runs away is none that was reported.
            .with_instruction_limit(Some(100_000_000))
            .with_time_limit(Some(Duration::from_secs(60)));
        let memory = Emulator::new(options);
        let Call { q_rows, kv_rows, .. } = self.call;
        let (q, kv) = (q_rows * Q_HEADS * self.head_dim, kv_rows * KV_HEADS * self.head_dim);
        let upload = |bytes: &[u8]| -> Result<u64, EmuError> {
            let address = memory.alloc(bytes.len() as u64)?;
            memory.write(address, bytes)?;
            Ok(address)
        };
        let mut operands = Vec::new();
        let inputs = [(Operand::Q, q), (Operand::K, kv), (Operand::V, kv), (Operand::Out, q), (Operand::Dout, q)];
        for (i, (operand, elements)) in inputs.into_iter().enumerate() {
            operands.push((operand, upload(&data(elements, i as u32))?));
        }
        // About that of a hundred scores of 0.
        let lse = vec![4.5_f32; q_rows * Q_HEADS];
        operands.push((Operand::Lse, upload(bytemuck::cast_slice(&lse))?));
        let gradients = [(Operand::Dq, q), (Operand::Dk, kv), (Operand::Dv, kv)];
        for (operand, elements) in gradients {
            operands.push((operand, upload(&vec![0; 2 * elements])?));
        }
        let buffers = self.buffers.iter().map(|&bytes| memory.alloc(bytes)).collect::<Result<Vec<_>, _>>()?;
        for (step, module) in self.before.iter().zip(before).chain([(&self.step, module)]) {
            // The memory is not the planner's: nothing but addresses goes into the parameters.
            let params = step.params(&planner(1), &operands, &buffers);
            let params = params.unwrap_or_else(|error| panic!("{:?}: {error}", self.call));
            let entry = step.kernel.entry;
            let launch = Launch::new([step.ctas, 1, 1], [entry.threads, 1, 1])
                .with_dynamic_shared_bytes(entry.shared_bytes)
                .with_param(&params);
            memory.launch(module, entry.symbol, &launch)?;
        }
        let mut result = Vec::new();
        for (operand, elements) in gradients {
            let (_, address) = operands.iter().find(|(of, _)| *of == operand).expect("it was pushed");
            let mut bytes = vec![0; 2 * elements];
            memory.read(*address, &mut bytes)?;
            result.extend(bytes);
        }
        for index in self.step.bindings().filter_map(|binding| match binding {
            Binding::Buffer(index) => Some(index),
            _ => None,
        }) {
            let mut bytes = vec![0; self.buffers[index] as usize];
            memory.read(buffers[index], &mut bytes)?;
            result.extend(bytes);
        }
        Ok(result)
    }

    fn modules_before(&self) -> Vec<Module> {
        self.before.iter().map(parse).collect()
    }
}

fn parse(step: &Step) -> Module {
    Module::parse(&step.kernel.text().expect("this build holds every row of the list")).expect("the kernel loads")
}

/// What the emulator said of a mutant: the first report, if there is one.
fn report(seeds: u64, launches: &[Planned], before: &[Module], mutant: &Mutant) -> Option<Box<Fault>> {
    let module = Module::parse(&mutant.ptx).unwrap_or_else(|error| panic!("line {}: {error}", mutant.line));
    for seed in 0..seeds {
        for launch in launches {
            match launch.run(before, &module, seed) {
                Ok(_) => {}
                Err(EmuError::Fault(fault)) => return Some(fault),
                Err(error) => panic!("{:?} of line {}: {error}", mutant.edit, mutant.line),
            }
        }
    }
    None
}

fn check_mutants(subject: &Subject) {
    if device::is_gpu() {
        return;
    }
    let (launches, symbol) = (subject.launches(), subject.variant().entry.symbol);
    let text = launches[0].step.kernel.text().expect("this build holds every row of the list");
    let (list, before) = (mutants(&text), launches[0].modules_before());
    assert!(list.len() >= subject.least_mutants, "{} mutants of {symbol}", list.len());
    let reports = list.iter().map(|mutant| report(subject.seeds, &launches, &before, mutant)).collect();
    judge(symbol, &list, reports, subject.needless);
}

#[test]
fn every_wait_of_keys_is_needed() {
    check_mutants(&KEYS);
}

#[test]
fn every_wait_of_keys_of_two_parts_is_needed() {
    check_mutants(&KEYS_OF_TWO_PARTS);
}

#[test]
fn every_wait_of_keys_of_one_stage_is_needed() {
    check_mutants(&KEYS_OF_ONE_STAGE);
}

#[test]
fn every_wait_of_queries_is_needed() {
    check_mutants(&QUERIES);
}

#[test]
fn every_wait_of_fused_is_needed() {
    check_mutants(&FUSED);
}

#[test]
fn every_wait_of_fused_with_one_buffer_is_needed() {
    check_mutants(&FUSED_OF_ONE_BUFFER);
}

#[test]
fn every_wait_of_naive_scores_is_needed() {
    check_mutants(&NAIVE_SCORES);
}

#[test]
fn every_wait_of_naive_queries_is_needed() {
    check_mutants(&NAIVE_QUERIES);
}

#[test]
fn every_wait_of_naive_keys_is_needed() {
    check_mutants(&NAIVE_KEYS);
}

/// Whatever is left out of the turns to add to a sum: the emulator reports it, or the sums have other bits under some seed. But for the
/// meeting of a warp before one lane says that all have added, in the two places of a step: in the emulator all lanes add at once.
#[test]
fn every_turn_of_ordered_is_needed() {
    if device::is_gpu() {
        return;
    }
    let launches = ORDERED.launches();
    let text = launches[0].step.kernel.text().expect("this build holds every row of the list");
    let before = launches[0].modules_before();
    let module = Module::parse(&text).expect("the kernel loads");
    let sound: Vec<_> = launches.iter().map(|launch| launch.run(&before, &module, 0).expect("no report")).collect();
    // What is not about turns is in the plain kernel too, which has the same source.
    let lines: Vec<&str> = text.lines().collect();
    let is_about_turns = |mutant: &&Mutant| {
        let near = mutant.line.saturating_sub(LINES_BEHIND)..(mutant.line + LINES_BEFORE).min(lines.len());
        TURNS.iter().any(|turn| lines[near.clone()].iter().any(|line| line.contains(turn)))
    };
    let list = mutants(&text);
    let list: Vec<_> = list.iter().filter(is_about_turns).collect();
    assert!(list.len() >= ORDERED.least_mutants, "{} mutants", list.len());
    let mut unnoticed = Vec::new();
    for mutant in list {
        let module = Module::parse(&mutant.ptx).unwrap_or_else(|error| panic!("line {}: {error}", mutant.line));
        let is_noticed = (0..16).any(|seed| {
            launches.iter().zip(&sound).any(|(launch, sound)| match launch.run(&before, &module, seed) {
                Ok(result) => result != *sound,
                Err(EmuError::Fault(_)) => true,
                Err(error) => panic!("{:?} of line {}: {error}", mutant.edit, mutant.line),
            })
        });
        if !is_noticed {
            unnoticed.push(mutant);
        }
    }
    let is_expected = unnoticed.iter().all(|mutant| mutant.edit == Edit::NoWarpSync) && unnoticed.len() == 2;
    let list: Vec<_> = unnoticed.iter().map(|Mutant { edit, line, .. }| format!("{edit:?} of line {line}")).collect();
    assert!(is_expected, "{}", list.join(", "));
}

/// Statements of the turns: the wait for a counter, the sums, and counting.
const TURNS: [&str; 3] = ["ld.acquire.gpu", "red.relaxed.gpu.global.add.v4", "red.release.gpu"];

/// How far behind them the statements are that order them, and how far before.
const LINES_BEHIND: usize = 18;
const LINES_BEFORE: usize = 4;

/// The calls of the mutants, as the kernels are: no report, and the same bits under every interleaving.
#[test]
fn the_seed_changes_nothing() {
    if device::is_gpu() {
        return;
    }
    let naive = [&NAIVE_SCORES, &NAIVE_QUERIES, &NAIVE_KEYS];
    let recomputing = [&KEYS, &KEYS_OF_TWO_PARTS, &KEYS_OF_ONE_STAGE, &QUERIES, &FUSED, &FUSED_OF_ONE_BUFFER, &ORDERED];
    for subject in recomputing.into_iter().chain(naive) {
        for launch in subject.launches() {
            let (before, module) = (launch.modules_before(), parse(&launch.step));
            let run = |seed| launch.run(&before, &module, seed).unwrap_or_else(|error| panic!("{error}"));
            let in_order = run(0);
            for seed in 1..=device::seeds(8).into() {
                let symbol = subject.variant().entry.symbol;
                assert!(run(seed) == in_order, "{symbol} with seed {seed}, {:?}", launch.call);
            }
        }
    }
}
