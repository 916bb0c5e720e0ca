//! The sort of an embedding's gradient with its barriers taken out one at a time: the emulator reports every one of them, or the result has other bits.

use crate::mutants::{Needless, planner, unexcused};
use crate::support::edits::{Edit, Mutant, mutants};
use ferroflash::operators::{Embedding, Operation, OperatorPlan};
use ferroflash::{Device, Indices, Layout, Operand, Tensor};
use kernel_spec::families::embedding::{Pass, VARIANTS};
use ptx_emu::{EmuError, Emulator, EmulatorOptions, Launch, Module};
use std::collections::BTreeMap;
use std::time::Duration;

/// Tokens of three thread blocks of the sort, of which the last has few.
const TOKENS: usize = 1100;
const VOCABULARY: usize = 300;
const COLUMNS: usize = 4;

/// The steps that are edited, with the least number of mutants.
const SUBJECTS: [(usize, &str, usize, &[Needless]); 2] =
    [(0, "embedding_count", 2, &[]), (1, "embedding_place", 5, &[])];

/// Values that are the same often, next to each other and apart.
fn ids() -> Vec<i32> {
    (0..TOKENS).map(|i| ((i * i / 7) % 40 * 7) as i32).collect()
}

fn plan(device: &Device) -> OperatorPlan {
    let table = Tensor::zeros(device, ferroflash::DType::F32, [VOCABULARY, COLUMNS], Layout::RowMajor).unwrap();
    let dout = Tensor::zeros(device, ferroflash::DType::F32, [TOKENS, COLUMNS], Layout::RowMajor).unwrap();
    let ids = Indices::from_slice(device, &ids()).unwrap();
    Embedding::new(&table.view()).plan_backward(&ids.view(), &dout.view()).unwrap()
}

/// The gradient, with another module for one of the steps.
fn run(
    device: &Device,
    plan: &OperatorPlan,
    modules: &[Module],
    edited: Option<(usize, &Module)>,
    seed: u64,
) -> Result<Vec<u8>, EmuError> {
    let options = EmulatorOptions::default()
        .with_seed(seed)
        .with_instruction_limit(Some(100_000_000))
        .with_time_limit(Some(Duration::from_secs(60)));
    let memory = Emulator::new(options);
    let dout: Vec<f32> = (0..TOKENS * COLUMNS).map(|i| ((i * 37) % 97) as f32 / 31.0).collect();
    let mut operands = Vec::new();
    let given = [
        (Operand::Ids, bytemuck::cast_slice(&ids()).to_vec()),
        (Operand::Dout, bytemuck::cast_slice(&dout).to_vec()),
        (Operand::Dtable, vec![0xff; VOCABULARY * COLUMNS * 4]),
    ];
    for (operand, bytes) in given {
        let address = memory.alloc(bytes.len() as u64)?;
        memory.write(address, &bytes)?;
        operands.push((operand, address));
    }
    let buffers = plan.buffers().iter().map(|buffer| memory.alloc(buffer.bytes)).collect::<Result<Vec<_>, _>>()?;
    for (i, step) in plan.steps().iter().enumerate() {
        let params = step.params(device, &operands, &buffers).unwrap();
        let entry = step.kernel.entry;
        let launch = Launch::new([step.ctas, 1, 1], [entry.threads, 1, 1])
            .with_dynamic_shared_bytes(entry.shared_bytes)
            .with_param(&params);
        let module = edited.filter(|(of, _)| *of == i).map_or(&modules[i], |(_, module)| module);
        memory.launch(module, entry.symbol, &launch)?;
    }
    let mut dtable = vec![0; VOCABULARY * COLUMNS * 4];
    memory.read(operands[2].1, &mut dtable)?;
    Ok(dtable)
}

#[test]
fn no_barrier_may_go() {
    let device = planner(2);
    let plan = plan(&device);
    let modules: Vec<Module> =
        plan.steps().iter().map(|step| Module::parse(&step.kernel.text().unwrap()).unwrap()).collect();
    let expected = run(&device, &plan, &modules, None, 0).unwrap();
    let mut all_wrong = String::new();
    for (edited, symbol, least, needless) in SUBJECTS {
        assert_eq!(plan.symbols()[edited], symbol, "{plan}");
        let list = mutants(&plan.steps()[edited].kernel.text().unwrap());
        assert!(list.len() >= least, "{} mutants of {symbol}", list.len());
        let mut unnoticed: BTreeMap<Edit, Vec<&Mutant>> = BTreeMap::new();
        for mutant in &list {
            let module = Module::parse(&mutant.ptx).unwrap_or_else(|error| panic!("line {}: {error}", mutant.line));
            let is_noticed = (0..16).any(|seed| match run(&device, &plan, &modules, Some((edited, &module)), seed) {
                Ok(found) => found != expected,
                Err(EmuError::Fault(_)) => true,
                Err(error) => panic!("{:?} of line {}: {error}", mutant.edit, mutant.line),
            });
            if !is_noticed {
                unnoticed.entry(mutant.edit).or_default().push(mutant);
            }
        }
        let wrong = unexcused(unnoticed, needless);
        if !wrong.is_empty() {
            all_wrong += &format!("{symbol}: {wrong}");
        }
    }
    assert!(all_wrong.is_empty(), "{all_wrong}");
}

/// Passes over rows wait for nobody, and no number is kept in local memory.
#[test]
fn no_entry_has_local_memory() {
    for row in VARIANTS {
        let text = ferroflash::embedded_ptx(&row.entry).expect("every build has it");
        assert!(!text.contains(".local"), "{}", row.entry.symbol);
        let waits = !mutants(&text).is_empty();
        assert_eq!(waits, matches!(row.pass, Pass::Count | Pass::Place), "{}", row.entry.symbol);
    }
}
