//! The kernels of dense layers with their waits, arrivals and fences taken out one at a time: the emulator reports every one of them, or the result has
//! other bits.

use crate::mutants::{Needless, planner, unexcused};
use crate::norms_mutants::Planned;
use crate::support::device;
use crate::support::edits::{Edit, Mutant, mutants};
use ferroflash::operators::{Activation, Dense, Operation};
use ferroflash::{Layout, Operand, Tensor, bf16};
use ptx_emu::{EmuError, Module};
use std::collections::BTreeMap;

/// Calls that go through every wait of a kernel.
struct Subject {
    symbol: &'static str,
    multiprocessors: u32,
    hopper: bool,
    /// Rows, depth and columns: several tiles a thread block, more steps than buffers; and fewer steps than the second warpgroup starts late.
    calls: &'static [[usize; 3]],
    least_mutants: usize,
    needless: &'static [Needless],
}

/// A warpgroup that starts late is one that the epilogue of the other falls under: that is all.
const LATE_START: Needless =
    (Edit::NoBarrier, 1, "the second warpgroup starts with the first, and nothing but time is lost");

const SUBJECTS: [Subject; 3] = [
    Subject {
        symbol: "dense_bf16_128x128",
        multiprocessors: 4,
        hopper: false,
        calls: &[[130, 200, 40]],
        least_mutants: 5,
        needless: &[],
    },
    Subject {
        symbol: "dense_hopper_bf16_128x256",
        multiprocessors: 1,
        hopper: true,
        calls: &[[300, 328, 264], [130, 72, 264]],
        least_mutants: 20,
        needless: &[LATE_START],
    },
    Subject {
        symbol: "dense_hopper_bf16_128x128",
        multiprocessors: 2,
        hopper: true,
        calls: &[[300, 456, 136], [300, 72, 136]],
        least_mutants: 20,
        needless: &[LATE_START],
    },
];

/// Small numbers, the same for the same index.
fn data(elements: usize, seed: usize) -> Vec<bf16> {
    (0..elements).map(|i| bf16::from_f32(((i * 37 + seed * 101) % 97) as f32 / 32.0 - 1.0)).collect()
}

impl Subject {
    fn planned(&self, [rows, depth, columns]: [usize; 3]) -> Planned {
        let device = planner(self.multiprocessors);
        let tensor = |shape: [usize; 2], seed| {
            Tensor::from_slice(&device, &data(shape[0] * shape[1], seed), shape, Layout::RowMajor).unwrap()
        };
        let (x, weight) = (tensor([rows, depth], 0), tensor([columns, depth], 1));
        let bias = Tensor::from_slice(&device, &data(columns, 2), [columns], Layout::RowMajor).unwrap();
        let weight_view = weight.view();
        let layer = Dense::new(&weight_view).with_bias(&bias.view()).with_activation(Activation::Relu);
        let plan = layer.with_hopper(self.hopper).plan(&x.view()).unwrap();
        assert_eq!(plan.symbols(), [self.symbol], "{plan}");
        let bytes = |tensor: &Tensor| bytemuck::cast_slice(&tensor.to_vec::<bf16>().unwrap()).to_vec();
        let operands = vec![
            (Operand::X, bytes(&x), false),
            (Operand::Weight, bytes(&weight), false),
            (Operand::Bias, bytes(&bias), false),
            (Operand::Out, vec![0xff; 2 * rows * columns], true),
        ];
        drop((x, weight, bias));
        Planned::new(device, plan, operands)
    }
}

#[test]
fn every_wait_is_needed() {
    if device::is_gpu() {
        return;
    }
    let mut all_wrong = String::new();
    for subject in &SUBJECTS {
        let calls: Vec<Planned> = subject.calls.iter().map(|&sizes| subject.planned(sizes)).collect();
        let run = |call: &Planned, edited: Option<&Module>, seed| call.run(edited.map(|module| (0, module)), seed);
        let expected: Vec<_> = calls
            .iter()
            .map(|call| run(call, None, 0).unwrap_or_else(|error| panic!("{}: {error}", subject.symbol)))
            .collect();
        let list = mutants(&calls[0].plan.steps()[0].kernel.text().unwrap());
        assert!(list.len() >= subject.least_mutants, "{} mutants of {}", list.len(), subject.symbol);
        let mut unnoticed: BTreeMap<_, Vec<&Mutant>> = BTreeMap::new();
        for mutant in &list {
            let module = Module::parse(&mutant.ptx).unwrap_or_else(|error| panic!("line {}: {error}", mutant.line));
            let is_noticed = (0..16).any(|seed| {
                calls.iter().zip(&expected).any(|(call, expected)| match run(call, Some(&module), seed) {
                    Ok(found) => found != *expected,
                    Err(EmuError::Fault(_)) => true,
                    Err(error) => panic!("{:?} of line {}: {error}", mutant.edit, mutant.line),
                })
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

#[test]
fn no_entry_has_local_memory() {
    for row in kernel_spec::families::dense::VARIANTS {
        let text = ferroflash::embedded_ptx(&row.entry).expect("every build has it");
        assert!(!text.contains(".local"), "{}", row.entry.symbol);
    }
}
