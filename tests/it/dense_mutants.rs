//! The kernels of dense layers with their waits, arrivals and fences taken out one at a time: the emulator reports every one of them, or the result has
//! other bits.

use crate::mutants::{Needless, planner, unexcused};
use crate::support::device;
use crate::support::edits::{Edit, Mutant, mutants};
use crate::support::planned::Planned;
use ferroflash::operators::{Activation, CrossEntropy, Dense, LinearCrossEntropy, LinearCrossEntropySaved, Operation};
use ferroflash::{Indices, Layout, Operand, Tensor, bf16};
use ptx_emu::{EmuError, Module};
use std::collections::BTreeMap;

/// A call: rows, depth, columns and activation.
type Call = ([usize; 3], Activation);

/// What a call computes.
#[derive(Clone, Copy, PartialEq)]
enum Of {
    Layer,
    Gradients,
    /// Losses of the layer's outputs, and the gradients of these.
    Losses,
    LossGradients,
}

/// Calls that go through every wait of a kernel: several tiles a thread block, and more steps than buffers and fewer;
/// and a gated activation, whose weights are loaded in a loop of its own.
struct Subject {
    /// The kernel, launched by step `step`.
    symbol: &'static str,
    step: usize,
    of: Of,
    multiprocessors: u32,
    hopper: bool,
    calls: &'static [Call],
    least_mutants: usize,
    needless: &'static [Needless],
}

/// One for each four fragments whose biases are read from shared memory.
const fn biases(count: usize) -> Needless {
    (
        Edit::NoWarpSync,
        count,
        "ptxas alone needs them: it would begin with the biases of all fragments, which do not fit the registers",
    )
}

/// Of the steps behind the first.
const LATER_FENCES: Needless =
    (Edit::NoWgmmaFence, 1, "nothing but products touches the sums, and ptxas alone needs it");

const SUBJECTS: [Subject; 13] = [
    Subject {
        symbol: "dense_bf16_128x128",
        step: 0,
        of: Of::Layer,
        multiprocessors: 4,
        hopper: false,
        calls: &[([130, 200, 40], Activation::Relu)],
        least_mutants: 5,
        needless: &[],
    },
    Subject {
        symbol: "dense_hopper_bf16_128x256",
        step: 0,
        of: Of::Layer,
        multiprocessors: 1,
        hopper: true,
        calls: &[
            ([300, 312, 504], Activation::Relu),
            ([130, 40, 504], Activation::Relu),
            ([300, 328, 136], Activation::SwiGlu),
        ],
        least_mutants: 20,
        needless: &[LATER_FENCES, biases(12)],
    },
    Subject {
        symbol: "dense_hopper_bf16_128x160",
        step: 0,
        of: Of::Layer,
        multiprocessors: 1,
        hopper: true,
        calls: &[([300, 312, 312], Activation::Relu), ([130, 40, 312], Activation::Relu)],
        least_mutants: 20,
        needless: &[LATER_FENCES, biases(5)],
    },
    Subject {
        symbol: "dense_hopper_bf16_128x128",
        step: 0,
        of: Of::Layer,
        multiprocessors: 2,
        hopper: true,
        calls: &[
            ([300, 440, 248], Activation::Relu),
            ([300, 40, 248], Activation::Relu),
            ([300, 456, 72], Activation::SwiGlu),
        ],
        least_mutants: 20,
        needless: &[LATER_FENCES, biases(6)],
    },
    Subject {
        symbol: "dense_dx_bf16_128x128",
        step: 0,
        of: Of::Gradients,
        multiprocessors: 4,
        hopper: false,
        calls: &[([130, 40, 200], Activation::Identity)],
        least_mutants: 5,
        needless: &[],
    },
    Subject {
        symbol: "dense_dw_bf16_128x128",
        step: 1,
        of: Of::Gradients,
        multiprocessors: 4,
        hopper: false,
        calls: &[([200, 40, 136], Activation::Identity)],
        least_mutants: 5,
        needless: &[],
    },
    Subject {
        symbol: "dense_dx_hopper_bf16_128x256",
        step: 0,
        of: Of::Gradients,
        multiprocessors: 1,
        hopper: true,
        calls: &[([300, 264, 312], Activation::Identity), ([130, 264, 40], Activation::Identity)],
        least_mutants: 20,
        needless: &[LATER_FENCES],
    },
    Subject {
        symbol: "dense_dw_hopper_bf16_128x128",
        step: 1,
        of: Of::Gradients,
        multiprocessors: 2,
        hopper: true,
        calls: &[([440, 136, 304], Activation::Identity), ([40, 136, 304], Activation::Identity)],
        least_mutants: 20,
        needless: &[LATER_FENCES],
    },
    Subject {
        symbol: "dense_dz_bf16",
        step: 0,
        of: Of::Gradients,
        multiprocessors: 2,
        hopper: true,
        calls: &[([50, 8, 264], Activation::SwiGlu)],
        least_mutants: 1,
        needless: &[],
    },
    Subject {
        symbol: "linear_cross_entropy_bf16_128x128",
        step: 0,
        of: Of::Losses,
        multiprocessors: 4,
        hopper: false,
        calls: &[([130, 200, 40], Activation::Identity)],
        least_mutants: 5,
        needless: &[],
    },
    Subject {
        symbol: "linear_cross_entropy_hopper_bf16_128x256",
        step: 0,
        of: Of::Losses,
        multiprocessors: 1,
        hopper: true,
        calls: &[([300, 312, 264], Activation::Identity), ([130, 40, 264], Activation::Identity)],
        least_mutants: 20,
        needless: &[LATER_FENCES],
    },
    Subject {
        symbol: "linear_cross_entropy_dlogits_bf16_128x128",
        step: 0,
        of: Of::LossGradients,
        multiprocessors: 4,
        hopper: false,
        calls: &[([130, 200, 40], Activation::Identity)],
        least_mutants: 5,
        needless: &[],
    },
    Subject {
        symbol: "linear_cross_entropy_dlogits_hopper_bf16_128x256",
        step: 0,
        of: Of::LossGradients,
        multiprocessors: 1,
        hopper: true,
        calls: &[([300, 312, 264], Activation::Identity), ([130, 40, 264], Activation::Identity)],
        least_mutants: 20,
        needless: &[LATER_FENCES, biases(8)],
    },
];

/// Small numbers, the same for the same index.
fn data(elements: usize, seed: usize) -> Vec<bf16> {
    (0..elements).map(|i| bf16::from_f32(((i * 37 + seed * 101) % 97) as f32 / 32.0 - 1.0)).collect()
}

impl Subject {
    fn planned(&self, call: Call) -> Planned {
        match self.of {
            Of::Layer | Of::Gradients => self.planned_layer(call),
            Of::Losses | Of::LossGradients => self.planned_losses(call),
        }
    }

    /// Losses, and what merges them; or the gradient of logits, and a product with it.
    fn planned_losses(&self, ([rows, depth, classes], _): Call) -> Planned {
        let device = planner(self.multiprocessors);
        let tensor = |shape: [usize; 2], seed| {
            Tensor::from_slice(&device, &data(shape[0] * shape[1], seed), shape, Layout::RowMajor).unwrap()
        };
        let (x, weight) = (tensor([rows, depth], 0), tensor([classes, depth], 1));
        let targets: Vec<i32> = (0..rows).map(|row| (row * 7 % classes) as i32).collect();
        // Numbers near those of forward, so that gradients are no infinities.
        let numbers: Vec<f32> = (0..rows).map(|row| 40.0 + (row % 5) as f32).collect();
        let indices = Indices::from_slice(&device, &targets).unwrap();
        let lse = Tensor::from_slice(&device, &numbers, [rows], Layout::RowMajor).unwrap();
        let weight_view = weight.view();
        let loss = CrossEntropy::new().with_lse(true);
        let of = LinearCrossEntropy::new(&weight_view).with_loss(loss).with_hopper(self.hopper);
        let backward = self.of == Of::LossGradients;
        let mut plan = if backward {
            let saved = LinearCrossEntropySaved::new(&x.view(), &indices.view(), &lse.view());
            of.plan_backward(&saved, &lse.view()).unwrap()
        } else {
            of.plan(&x.view(), &indices.view()).unwrap()
        };
        plan.steps.truncate(2);
        assert_eq!(plan.symbols()[self.step], self.symbol, "{plan}");
        let bytes = |tensor: &Tensor| bytemuck::cast_slice(&tensor.to_vec::<bf16>().unwrap()).to_vec();
        let words = |numbers: &[f32]| bytemuck::cast_slice(numbers).to_vec();
        let poison = |bytes: usize| vec![0xff; bytes];
        let mut operands = vec![
            (Operand::X, bytes(&x), false),
            (Operand::Weight, bytes(&weight), false),
            (Operand::Targets, bytemuck::cast_slice(&targets).to_vec(), false),
        ];
        operands.extend(if backward {
            let ones = vec![1.0; rows];
            let read = [(Operand::Lse, words(&numbers), false), (Operand::Dloss, words(&ones), false)];
            read.into_iter().chain([(Operand::Dx, poison(2 * rows * depth), true)]).collect::<Vec<_>>()
        } else {
            vec![(Operand::Loss, poison(4 * rows), true), (Operand::Lse, poison(4 * rows), true)]
        });
        drop((x, weight, lse, indices));
        Planned::new(device, plan, operands)
    }

    fn planned_layer(&self, ([rows, depth, columns], activation): Call) -> Planned {
        let device = planner(self.multiprocessors);
        let backward = self.of == Of::Gradients;
        let sums = columns * if activation.is_gated() { 2 } else { 1 };
        let tensor = |shape: [usize; 2], seed| {
            Tensor::from_slice(&device, &data(shape[0] * shape[1], seed), shape, Layout::RowMajor).unwrap()
        };
        let (x, weight) = (tensor([rows, depth], 0), tensor([sums, depth], 1));
        let (z, dout) = (tensor([rows, sums], 3), tensor([rows, columns], 4));
        let bias = Tensor::from_slice(&device, &data(sums, 2), [sums], Layout::RowMajor).unwrap();
        let weight_view = weight.view();
        let mut layer = Dense::new(&weight_view).with_activation(activation).with_hopper(self.hopper);
        let (bends, bias_view) = (activation != Activation::Identity, bias.view());
        if bends {
            layer = layer.with_bias(&bias_view);
        }
        let mut plan = if backward {
            layer.plan_backward(&x.view(), bends.then_some(&z.view()), &dout.view()).unwrap()
        } else {
            layer.plan(&x.view()).unwrap()
        };
        // Products of gradients do not need one another; what is summed up over rows, the launch that adds it.
        let launches = if backward && bends { 2 } else { 1 };
        plan.steps = plan.steps.drain(self.step..self.step + launches).collect();
        assert_eq!(plan.symbols()[0], self.symbol, "{plan}");
        let bytes = |tensor: &Tensor| bytemuck::cast_slice(&tensor.to_vec::<bf16>().unwrap()).to_vec();
        let read = [
            (Operand::X, &x),
            (Operand::Weight, &weight),
            (Operand::Bias, &bias),
            (Operand::Z, &z),
            (Operand::Dout, &dout),
        ];
        let mut operands: Vec<_> = read.map(|(operand, tensor)| (operand, bytes(tensor), false)).into();
        let written = [
            (Operand::Out, rows * columns),
            (Operand::Dx, rows * depth),
            (Operand::Dweight, sums * depth),
            (Operand::Dbias, sums),
        ];
        let written = written.iter().filter(|(operand, _)| backward != (*operand == Operand::Out));
        operands.extend(written.map(|&(operand, elements)| (operand, vec![0xff; 2 * elements], true)));
        drop((x, weight, bias, z, dout));
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
        let calls: Vec<Planned> = subject.calls.iter().map(|&call| subject.planned(call)).collect();
        let run = |call: &Planned, edited: Option<&Module>, seed| call.run(edited.map(|module| (0, module)), seed);
        let expected: Vec<_> = calls
            .iter()
            .map(|call| run(call, None, 0).unwrap_or_else(|error| panic!("{}: {error}", subject.symbol)))
            .collect();
        // The texts of different activations have the same statements in the same lines, with other constants.
        let lists: Vec<_> = calls.iter().map(|call| mutants(&call.plan.steps()[0].kernel.text().unwrap())).collect();
        assert!(lists[0].len() >= subject.least_mutants, "{} mutants of {}", lists[0].len(), subject.symbol);
        assert!(lists.iter().all(|list| list.len() == lists[0].len()), "{}", subject.symbol);
        let mut unnoticed: BTreeMap<_, Vec<&Mutant>> = BTreeMap::new();
        for (i, mutant) in lists[0].iter().enumerate() {
            let is_noticed = calls.iter().zip(&lists).zip(&expected).any(|((call, list), expected)| {
                assert_eq!((list[i].edit, list[i].line), (mutant.edit, mutant.line));
                let module =
                    Module::parse(&list[i].ptx).unwrap_or_else(|error| panic!("line {}: {error}", mutant.line));
                (0..8).any(|seed| match run(call, Some(&module), seed) {
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
    let products = kernel_spec::families::dense::VARIANTS.iter().map(|row| &row.entry);
    let activations = kernel_spec::families::activation::VARIANTS.iter().map(|row| &row.entry);
    for entry in products.chain(activations) {
        let text = ferroflash::embedded_ptx(entry).expect("every build has it");
        assert!(!text.contains(".local"), "{}", entry.symbol);
    }
}
