//! The kernels of RMSNorm and LayerNorm with their barriers taken out one at a time: the emulator reports every one of them, or the result has other bits.

use crate::mutants::{Needless, planner, unexcused};
use crate::support::device;
use crate::support::edits::{Edit, Mutant, mutants};
use ferroflash::operators::{Norm, NormSaved, Operation, OperatorPlan};
use ferroflash::{Binding, Device, Layout, Operand, Tensor, bf16};
use ptx_emu::{EmuError, Emulator, EmulatorOptions, Launch, Module};
use std::collections::BTreeMap;
use std::time::Duration;

/// A call that goes through every barrier of its kernels.
struct Subject {
    rows: usize,
    columns: usize,
    backward: bool,
    /// The step whose kernel is edited.
    edited: usize,
    symbol: &'static str,
    least_mutants: usize,
    needless: &'static [Needless],
}

const SUBJECTS: [Subject; 6] = [
    Subject {
        rows: 2,
        columns: 2000,
        backward: false,
        edited: 0,
        symbol: "norm_bf16_128x4",
        least_mutants: 2,
        needless: &[],
    },
    Subject {
        rows: 2,
        columns: 20_000,
        backward: false,
        edited: 0,
        symbol: "norm_cluster_bf16_512x4",
        least_mutants: 6,
        needless: &[],
    },
    Subject {
        rows: 30,
        columns: 100,
        backward: true,
        edited: 0,
        symbol: "norm_backward_bf16_16x1",
        least_mutants: 2,
        needless: &[(Edit::NoBarrier, 1, "before the sums for the weights: nobody has used their place yet")],
    },
    Subject {
        rows: 30,
        columns: 100,
        backward: true,
        edited: 1,
        symbol: "norm_parts_bf16",
        least_mutants: 1,
        needless: &[],
    },
    Subject {
        rows: 9,
        columns: 1500,
        backward: true,
        edited: 0,
        symbol: "norm_backward_bf16_128x2",
        least_mutants: 1,
        needless: &[],
    },
    Subject {
        rows: 7,
        columns: 10_000,
        backward: true,
        edited: 0,
        symbol: "norm_backward_cluster_bf16_512x2",
        least_mutants: 3,
        needless: &[],
    },
];

/// Small numbers, the same for the same index; not around 0, so that a mean is one.
fn data(elements: usize, seed: usize) -> Vec<bf16> {
    (0..elements).map(|i| bf16::from_f32(((i * 37 + seed * 101) % 97) as f32 / 32.0 - 1.0)).collect()
}

impl Subject {
    /// What the library would launch, and the bytes of the operands: what is read, and as many of what is written.
    fn plan(&self, device: &Device) -> (OperatorPlan, Vec<(Operand, Vec<u8>, bool)>) {
        let shape = [self.rows, self.columns];
        let tensor =
            |seed| Tensor::from_slice(device, &data(self.rows * self.columns, seed), shape, Layout::RowMajor).unwrap();
        let (mut x, dout) = (tensor(0), tensor(1));
        if !self.backward {
            // The squares of the first row overflow, so that its statistics are computed twice.
            let mut values = data(self.rows * self.columns, 0);
            values[..self.columns].iter_mut().for_each(|x| *x = bf16::from_f32(x.to_f32() * 1e30));
            x = Tensor::from_slice(device, &values, shape, Layout::RowMajor).unwrap();
        }
        let weight = Tensor::from_slice(device, &data(self.columns, 2), [self.columns], Layout::RowMajor).unwrap();
        let norm = Norm::layer(1e-5).with_weight(&weight.view()).with_bias(&weight.view()).with_statistics(true);
        let bytes = |tensor: &Tensor| bytemuck::cast_slice(&tensor.to_vec::<bf16>().unwrap()).to_vec();
        let numbers = |value: f32| bytemuck::cast_slice(&vec![value; self.rows]).to_vec();
        let (rows_bytes, columns_bytes) = (vec![0xff; 2 * self.rows * self.columns], vec![0xff; 2 * self.columns]);
        if !self.backward {
            let operands = vec![
                (Operand::X, bytes(&x), false),
                (Operand::Weight, bytes(&weight), false),
                (Operand::Bias, bytes(&weight), false),
                (Operand::Out, rows_bytes, true),
                (Operand::Mean, numbers(0.0), true),
                (Operand::Rstd, numbers(0.0), true),
            ];
            return (norm.plan(&x.view()).unwrap(), operands);
        }
        let statistics = Tensor::from_slice(device, &vec![0.5f32; self.rows], [self.rows], Layout::RowMajor).unwrap();
        let saved = NormSaved::new(&x.view(), &statistics.view()).with_mean(&statistics.view());
        let operands = vec![
            (Operand::Normalised, bytes(&x), false),
            (Operand::Dout, bytes(&dout), false),
            (Operand::Weight, bytes(&weight), false),
            (Operand::Mean, numbers(0.5), false),
            (Operand::Rstd, numbers(0.5), false),
            (Operand::Dx, rows_bytes, true),
            (Operand::Dweight, columns_bytes.clone(), true),
            (Operand::Dbias, columns_bytes, true),
        ];
        (norm.plan_backward(&saved, &dout.view(), None).unwrap(), operands)
    }
}

/// A plan, what it reads and writes, and the modules of its steps.
pub(crate) struct Planned {
    device: Device,
    pub(crate) plan: OperatorPlan,
    operands: Vec<(Operand, Vec<u8>, bool)>,
    modules: Vec<Module>,
}

impl Planned {
    fn of(subject: &Subject) -> Planned {
        // Two multiprocessors: thread blocks that share out rows have several each.
        let device = planner(2);
        let (plan, operands) = subject.plan(&device);
        assert_eq!(plan.symbols()[subject.edited], subject.symbol, "{plan}");
        Planned::new(device, plan, operands)
    }

    /// Of operands that say whether they are written.
    pub(crate) fn new(device: Device, plan: OperatorPlan, operands: Vec<(Operand, Vec<u8>, bool)>) -> Planned {
        let modules = plan.steps().iter().map(|step| Module::parse(&step.kernel.text().unwrap()).unwrap());
        Planned { modules: modules.collect(), device, plan, operands }
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

#[test]
fn every_barrier_is_needed() {
    if device::is_gpu() {
        return;
    }
    let mut all_wrong = String::new();
    for subject in &SUBJECTS {
        let planned = Planned::of(subject);
        let expected = planned.run(None, 0).unwrap_or_else(|error| panic!("{}: {error}", subject.symbol));
        let list = mutants(&planned.plan.steps()[subject.edited].kernel.text().unwrap());
        assert!(list.len() >= subject.least_mutants, "{} mutants of {}", list.len(), subject.symbol);
        let mut unnoticed: BTreeMap<_, Vec<&Mutant>> = BTreeMap::new();
        for mutant in &list {
            let module = Module::parse(&mutant.ptx).unwrap_or_else(|error| panic!("line {}: {error}", mutant.line));
            let is_noticed = (0..16).any(|seed| match planned.run(Some((subject.edited, &module)), seed) {
                Ok(found) => found != expected,
                Err(EmuError::Fault(_)) => true,
                Err(error) => panic!("{:?} of line {}: {error}", mutant.edit, mutant.line),
            });
            if !is_noticed {
                unnoticed.entry(mutant.edit).or_default().push(mutant);
            }
        }
        let wrong = unexcused(unnoticed, subject.needless);
        if !wrong.is_empty() {
            all_wrong += &format!("{}: {wrong}", subject.symbol);
        }
    }
    assert!(all_wrong.is_empty(), "{all_wrong}");
}

/// Rows of a warp, and those that are read again with nobody to wait for, have nothing to take out but what the list above has.
#[test]
fn no_entry_has_local_memory() {
    for row in kernel_spec::families::norm::VARIANTS {
        let text = ferroflash::embedded_ptx(&row.entry).expect("every build has it");
        assert!(!text.contains(".local"), "{}", row.entry.symbol);
        let waits = !mutants(&text).is_empty();
        let alone = row.tile.row_threads <= 32
            && row.tile.block_rows() > 1
            && row.pass == kernel_spec::families::norm::Pass::Forward;
        assert!(!(alone && waits), "{} waits", row.entry.symbol);
    }
}
