//! What `backward_mutants` does to the kernels of uniform sequences, done to those of packed ones: every wait and barrier that is taken out is
//! reported, and the seed changes nothing.

use crate::mutants::{DTYPE, MUTANT_SEEDS, Needless, data, judge, planner};
use crate::support::device;
use crate::support::edits::{Mutant, mutants};
use ferroflash::{Attention, Binding, Mask, Operand, Problem, Sequences, Step};
use kernel_spec::families::backward::{Pass, Variant};
use ptx_emu::{EmuError, Emulator, EmulatorOptions, Fault, Launch, Module};
use std::time::Duration;

const Q_HEADS: usize = 4;
const KV_HEADS: usize = 2;

/// A call with four query heads over two of keys, by first rows and the end of the last.
#[derive(Clone, Copy, Debug)]
struct Call {
    q_starts: &'static [i32],
    kv_starts: &'static [i32],
    mask: Mask,
}

/// Together they go through both loops of the kernels and every stage and slot; most rows of the last see no key, and most of its keys are
/// seen by no row.
const CALLS: [Call; 3] = [
    Call { q_starts: &[0, 150, 150, 153], kv_starts: &[0, 200, 205, 208], mask: Mask::Causal },
    Call { q_starts: &[0, 70, 71], kv_starts: &[0, 130, 132], mask: Mask::Full },
    Call { q_starts: &[0, 3, 133], kv_starts: &[0, 130, 132], mask: Mask::Window { left: Some(0), right: Some(0) } },
];

/// A pass with its head dim.
struct Subject {
    pass: Pass,
    head_dim: usize,
    /// Fewer broken copies mean that the edits no longer find what they look for.
    least_mutants: usize,
    /// Edits that break nothing.
    needless: &'static [Needless],
}

const KEYS: Subject = Subject { pass: Pass::PackedKeys, head_dim: 64, least_mutants: 8, needless: &[] };
/// Weights through shared memory, two stages.
const KEYS_OF_TWO_PARTS: Subject = Subject { head_dim: 192, ..KEYS };
/// Weights through shared memory, one stage.
const KEYS_OF_ONE_STAGE: Subject = Subject { head_dim: 256, ..KEYS };
const QUERIES: Subject = Subject { pass: Pass::PackedQueries, ..KEYS };

/// A call with the step that is looked at, behind that of the statistics.
struct Planned {
    call: Call,
    head_dim: usize,
    statistics: Step,
    step: Step,
    /// Bytes of the buffer.
    buffer: u64,
}

impl Planned {
    fn of(call: Call, subject: &Subject) -> Planned {
        let Call { q_starts, kv_starts, mask } = call;
        let [q_rows, kv_rows] = [q_starts, kv_starts].map(|starts| starts[starts.len() - 1] as usize);
        let sequences = Sequences::Packed { batch: q_starts.len() - 1, q_rows, kv_rows };
        let problem = Problem::new(sequences, Q_HEADS, KV_HEADS, subject.head_dim, DTYPE);
        let plan = Attention::new().with_mask(mask).backward_plan(&planner(1), problem);
        let plan = plan.unwrap_or_else(|error| panic!("{call:?}: {error}"));
        let row = Variant::find(subject.pass, DTYPE, subject.head_dim as u32).expect("a row of the list");
        let [statistics, keys, queries]: [Step; 3] = plan.steps.try_into().expect("three steps");
        let step = if subject.pass == Pass::PackedKeys { keys } else { queries };
        assert_eq!(step.kernel.entry.symbol, row.entry.symbol);
        Planned { call, head_dim: subject.head_dim, statistics, step, buffer: plan.buffers[0].bytes }
    }

    /// Launches the step with `module`, its text or an edited one, after the statistics; the bytes of the gradients.
    fn run(&self, statistics: &Module, module: &Module, seed: u64) -> Result<Vec<u8>, EmuError> {
        let options = EmulatorOptions::default()
            .with_seed(seed)
            // A hundred times what the kernels take: a mutant that runs away is none that was reported.
            .with_instruction_limit(Some(100_000_000))
            .with_time_limit(Some(Duration::from_secs(60)));
        let memory = Emulator::new(options);
        let Call { q_starts, kv_starts, .. } = self.call;
        let [tokens, keys] = [q_starts, kv_starts].map(|starts| starts[starts.len() - 1] as usize);
        let (q, kv) = (tokens * Q_HEADS * self.head_dim, keys * KV_HEADS * self.head_dim);
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
        operands.push((Operand::Lse, upload(bytemuck::cast_slice(&vec![4.5_f32; tokens * Q_HEADS]))?));
        operands.push((Operand::QStarts, upload(bytemuck::cast_slice(q_starts))?));
        operands.push((Operand::KvStarts, upload(bytemuck::cast_slice(kv_starts))?));
        let gradients = [(Operand::Dq, q), (Operand::Dk, kv), (Operand::Dv, kv)];
        for (operand, elements) in gradients {
            operands.push((operand, upload(&vec![0; 2 * elements])?));
        }
        let buffers = [memory.alloc(self.buffer)?];
        for (step, module) in [(&self.statistics, statistics), (&self.step, module)] {
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
        let written = |operand| self.step.bindings().any(|binding| binding == Binding::Operand(operand));
        for (operand, elements) in gradients.into_iter().filter(|(operand, _)| written(*operand)) {
            let (_, address) = operands.iter().find(|(of, _)| *of == operand).expect("it was pushed");
            let mut bytes = vec![0; 2 * elements];
            memory.read(*address, &mut bytes)?;
            result.extend(bytes);
        }
        assert!(!result.is_empty());
        Ok(result)
    }
}

fn parse(step: &Step) -> Module {
    Module::parse(&step.kernel.text().expect("this build holds every row of the list")).expect("the kernel loads")
}

/// What the emulator said of a mutant: the first report, if there is one.
fn report(launches: &[Planned], statistics: &Module, mutant: &Mutant) -> Option<Box<Fault>> {
    let module = Module::parse(&mutant.ptx).unwrap_or_else(|error| panic!("line {}: {error}", mutant.line));
    for seed in 0..MUTANT_SEEDS {
        for launch in launches {
            match launch.run(statistics, &module, seed) {
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
    let launches = CALLS.map(|call| Planned::of(call, subject));
    let symbol = launches[0].step.kernel.entry.symbol;
    let text = launches[0].step.kernel.text().expect("this build holds every row of the list");
    let (list, statistics) = (mutants(&text), parse(&launches[0].statistics));
    assert!(list.len() >= subject.least_mutants, "{} mutants of {symbol}", list.len());
    let reports = list.iter().map(|mutant| report(&launches, &statistics, mutant)).collect();
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

/// The calls of the mutants, as the kernels are: no report, and the same bits under every interleaving.
#[test]
fn the_seed_changes_nothing() {
    if device::is_gpu() {
        return;
    }
    for subject in [&KEYS, &KEYS_OF_TWO_PARTS, &KEYS_OF_ONE_STAGE, &QUERIES] {
        for launch in CALLS.map(|call| Planned::of(call, subject)) {
            let (statistics, module) = (parse(&launch.statistics), parse(&launch.step));
            let run = |seed| launch.run(&statistics, &module, seed).unwrap_or_else(|error| panic!("{error}"));
            let in_order = run(0);
            for seed in 1..=device::seeds(4).into() {
                assert!(run(seed) == in_order, "{:?} with seed {seed}, {:?}", subject.pass, launch.call);
            }
        }
    }
}
