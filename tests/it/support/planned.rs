//! A plan of an operator on the emulator alone, with kernels as they are or edited.

use crate::mutants::{Needless, unexcused};
use crate::support::edits::{Mutant, mutants};
use ferroflash::operators::{Operation, OperatorPlan};
use ferroflash::{Binding, Device, Operand};
use ptx_emu::{EmuError, Emulator, EmulatorOptions, Launch, Module};
use std::collections::BTreeMap;
use std::time::Duration;

/// A plan, the bytes of its operands and whether they are what it writes, and the modules of its steps.
pub(crate) struct Planned<P = OperatorPlan> {
    device: Device,
    pub(crate) plan: P,
    operands: Vec<(Operand, Vec<u8>, bool)>,
    modules: Vec<Module>,
}

impl<P: Operation> Planned<P> {
    pub(crate) fn new(device: Device, plan: P, operands: Vec<(Operand, Vec<u8>, bool)>) -> Planned<P> {
        let modules = plan.steps().iter().map(|step| Module::parse(&step.kernel.text().unwrap()).unwrap());
        Planned { modules: modules.collect(), device, plan, operands }
    }

    /// Takes the barriers out of the kernel of a step, one at a time: what is wrong with the list of those that nobody misses.
    pub(crate) fn barriers(&self, edited: usize, least_mutants: usize, needless: &[Needless]) -> String {
        let symbol = self.plan.symbols()[edited];
        let expected = self.run(None, 0).unwrap_or_else(|error| panic!("{symbol}: {error}"));
        let list = mutants(&self.plan.steps()[edited].kernel.text().unwrap());
        assert!(list.len() >= least_mutants, "{} mutants of {symbol}", list.len());
        let mut unnoticed: BTreeMap<_, Vec<&Mutant>> = BTreeMap::new();
        for mutant in &list {
            let module = Module::parse(&mutant.ptx).unwrap_or_else(|error| panic!("line {}: {error}", mutant.line));
            let is_noticed = (0..16).any(|seed| match self.run(Some((edited, &module)), seed) {
                Ok(found) => found != expected,
                Err(EmuError::Fault(_)) => true,
                Err(error) => panic!("{:?} of line {}: {error}", mutant.edit, mutant.line),
            });
            if !is_noticed {
                unnoticed.entry(mutant.edit).or_default().push(mutant);
            }
        }
        let wrong = unexcused(unnoticed, needless);
        if wrong.is_empty() { wrong } else { format!("{symbol}: {wrong}") }
    }

    /// All that the launches write, with another module for one of the steps.
    pub(crate) fn run(&self, edited: Option<(usize, &Module)>, seed: u64) -> Result<Vec<u8>, EmuError> {
        let options = EmulatorOptions::default()
            .with_seed(seed)
            .with_instruction_limit(Some(100_000_000))
            .with_time_limit(Some(Duration::from_secs(60)));
        let memory = Emulator::new(options);
        let mut addresses = Vec::new();
        for (operand, bytes, _) in &self.operands {
            let address = memory.alloc(bytes.len() as u64)?;
            memory.write(address, bytes)?;
            addresses.push((*operand, address));
        }
        let buffers =
            self.plan.buffers().iter().map(|buffer| memory.alloc(buffer.bytes)).collect::<Result<Vec<_>, _>>()?;
        for (i, step) in self.plan.steps().iter().enumerate() {
            let bound = |binding| match binding {
                Binding::Operand(operand) => addresses.iter().any(|(of, _)| *of == operand),
                _ => true,
            };
            assert!(step.bindings().all(bound), "{step}");
            let params = step.params(&self.device, &addresses, &buffers).unwrap();
            let entry = step.kernel.entry;
            let launch = Launch::new([step.ctas, 1, 1], [entry.threads, 1, 1])
                .with_dynamic_shared_bytes(entry.shared_bytes)
                .with_param(&params);
            let launch = if step.cluster > 1 { launch.with_cluster([step.cluster, 1, 1]) } else { launch };
            let module = edited.filter(|(of, _)| *of == i).map_or(&self.modules[i], |(_, module)| module);
            memory.launch(module, entry.symbol, &launch)?;
        }
        let mut result = Vec::new();
        for ((_, bytes, written), (_, address)) in self.operands.iter().zip(&addresses) {
            if *written {
                let mut read = vec![0; bytes.len()];
                memory.read(*address, &mut read)?;
                result.extend(read);
            }
        }
        Ok(result)
    }
}
