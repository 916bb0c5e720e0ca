//! The kernels of RMSNorm and LayerNorm with their barriers taken out one at a time: the emulator reports every one of them, or the result has other bits.

use crate::mutants::{Needless, planner};
use crate::support::device;
use crate::support::edits::mutants;
use crate::support::planned::Planned;
use ferroflash::operators::{Norm, NormSaved, Operation, OperatorPlan};
use ferroflash::{Device, Layout, Operand, Tensor, bf16};

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

const SUBJECTS: [Subject; 10] = [
    Subject {
        rows: 2,
        columns: 2000,
        backward: false,
        edited: 0,
        symbol: "norm_bf16_64x4",
        least_mutants: 2,
        needless: &[],
    },
    Subject {
        rows: 2,
        columns: 4000,
        backward: false,
        edited: 0,
        symbol: "norm_bf16_128x4",
        least_mutants: 2,
        needless: &[],
    },
    Subject {
        rows: 4,
        columns: 20_000,
        backward: false,
        edited: 0,
        symbol: "norm_cluster_bf16_256x4",
        least_mutants: 6,
        needless: &[],
    },
    Subject {
        rows: 3,
        columns: 140_000,
        backward: false,
        edited: 0,
        symbol: "norm_cluster_bf16_512x8",
        least_mutants: 8,
        needless: &[],
    },
    Subject {
        rows: 250,
        columns: 104,
        backward: true,
        edited: 0,
        symbol: "norm_backward_bf16_8x2",
        least_mutants: 2,
        needless: &[],
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
        rows: 40,
        columns: 1000,
        backward: true,
        edited: 0,
        symbol: "norm_backward_bf16_64x2",
        least_mutants: 2,
        needless: &[],
    },
    Subject {
        rows: 20,
        columns: 1504,
        backward: true,
        edited: 0,
        symbol: "norm_backward_bf16_128x2",
        least_mutants: 1,
        needless: &[],
    },
    Subject {
        rows: 20,
        columns: 10_000,
        backward: true,
        edited: 0,
        symbol: "norm_backward_cluster_bf16_128x2",
        least_mutants: 3,
        needless: &[],
    },
    Subject {
        rows: 7,
        columns: 20_000,
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
            // The squares of the first two rows overflow, so that their statistics are computed twice.
            let mut values = data(self.rows * self.columns, 0);
            values[..2 * self.columns].iter_mut().for_each(|x| *x = bf16::from_f32(x.to_f32() * 1e30));
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

#[test]
fn every_barrier_is_needed() {
    if device::is_gpu() {
        return;
    }
    let mut all_wrong = String::new();
    for subject in &SUBJECTS {
        // Two multiprocessors: thread blocks that share out rows have several each.
        let device = planner(2);
        let (plan, operands) = subject.plan(&device);
        assert_eq!(plan.symbols()[subject.edited], subject.symbol, "{plan}");
        all_wrong +=
            &Planned::new(device, plan, operands).barriers(subject.edited, subject.least_mutants, subject.needless);
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
