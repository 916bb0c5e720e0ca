//! The kernels of softmax and cross-entropy with their barriers taken out one at a time: the emulator reports every one of them, or the result has other bits.

use crate::mutants::{Needless, planner};
use crate::support::device;
use crate::support::edits::{Edit, mutants};
use crate::support::planned::Planned;
use ferroflash::operators::{CrossEntropy, Operation, OperatorPlan, Softmax};
use ferroflash::{Device, Indices, Layout, Operand, Tensor, bf16};

/// A call that goes through every barrier of its kernel.
struct Subject {
    rows: usize,
    columns: usize,
    call: Call,
    symbol: &'static str,
    least_mutants: usize,
    needless: &'static [Needless],
}

#[derive(Clone, Copy)]
enum Call {
    Softmax,
    SoftmaxGradient,
    /// With label smoothing, which has a sum of its own.
    CrossEntropy,
}

/// Sums of a cluster have a barrier for each of two turns.
const SECOND_TURN: Needless = (Edit::NoInit, 1, "of the second turn, of which a thread block with one sum has none");

const SUBJECTS: [Subject; 11] = [
    Subject::new(2, 2000, Call::Softmax, "softmax_bf16_64x4", 1),
    Subject::new(2, 4000, Call::Softmax, "softmax_bf16_128x4", 1),
    Subject { needless: &[SECOND_TURN], ..Subject::new(2, 33_000, Call::Softmax, "softmax_kept_bf16", 3) },
    Subject::new(1, 140_000, Call::Softmax, "softmax_again_bf16", 1),
    Subject::new(2, 1000, Call::SoftmaxGradient, "softmax_backward_bf16_64x2", 1),
    Subject::new(2, 1500, Call::SoftmaxGradient, "softmax_backward_bf16_128x2", 1),
    Subject {
        needless: &[SECOND_TURN],
        ..Subject::new(2, 17_000, Call::SoftmaxGradient, "softmax_backward_kept_bf16", 3)
    },
    Subject::new(2, 2000, Call::CrossEntropy, "cross_entropy_bf16_64x4", 2),
    Subject::new(2, 4000, Call::CrossEntropy, "cross_entropy_bf16_128x4", 2),
    Subject::new(3, 17_000, Call::CrossEntropy, "cross_entropy_bf16", 2),
    Subject::new(1, 20_000, Call::CrossEntropy, "cross_entropy_cluster_bf16", 5),
];

/// Small numbers, the same for the same index.
fn data(elements: usize, seed: usize) -> Vec<bf16> {
    (0..elements).map(|i| bf16::from_f32(((i * 37 + seed * 101) % 97) as f32 / 32.0 - 1.0)).collect()
}

impl Subject {
    const fn new(rows: usize, columns: usize, call: Call, symbol: &'static str, least_mutants: usize) -> Subject {
        Subject { rows, columns, call, symbol, least_mutants, needless: &[] }
    }

    /// What the library would launch, and the bytes of the operands: what is read, and as many of what is written.
    fn plan(&self, device: &Device) -> (OperatorPlan, Vec<(Operand, Vec<u8>, bool)>) {
        let (rows, elements) = (self.rows, self.rows * self.columns);
        let shape = [rows, self.columns];
        let x = Tensor::from_slice(device, &data(elements, 0), shape, Layout::RowMajor).unwrap();
        let bytes = |seed| bytemuck::cast_slice(&data(elements, seed)).to_vec();
        let blank = |bytes: usize| vec![0xff; bytes];
        match self.call {
            Call::Softmax => {
                let operands = vec![(Operand::X, bytes(0), false), (Operand::Out, blank(2 * elements), true)];
                (Softmax::new().plan(&x.view()).unwrap(), operands)
            }
            Call::SoftmaxGradient => {
                let operands = vec![
                    (Operand::Out, bytes(0), false),
                    (Operand::Dout, bytes(1), false),
                    (Operand::Dx, blank(2 * elements), true),
                ];
                (Softmax::new().plan_backward(&x.view(), &x.view()).unwrap(), operands)
            }
            Call::CrossEntropy => {
                let targets = Indices::from_slice(device, &vec![1; rows]).unwrap();
                let of = CrossEntropy::new().with_smoothing(0.5).with_lse(true);
                let operands = vec![
                    (Operand::Logits, bytes(0), false),
                    (Operand::Targets, bytemuck::cast_slice(&vec![1i32; rows]).to_vec(), false),
                    (Operand::Loss, blank(4 * rows), true),
                    (Operand::Lse, blank(4 * rows), true),
                ];
                (of.plan(&x.view(), &targets.view()).unwrap(), operands)
            }
        }
    }
}

#[test]
fn every_barrier_is_needed() {
    if device::is_gpu() {
        return;
    }
    let mut all_wrong = String::new();
    for subject in &SUBJECTS {
        // Two multiprocessors: one row is few.
        let device = planner(2);
        let (plan, operands) = subject.plan(&device);
        assert_eq!(plan.symbols(), [subject.symbol], "{plan}");
        all_wrong += &Planned::new(device, plan, operands).barriers(0, subject.least_mutants, subject.needless);
    }
    assert!(all_wrong.is_empty(), "{all_wrong}");
}

/// Rows of a warp wait for nobody where none is on its way, and neither do gradients of cross-entropy; no kernel has local memory.
#[test]
fn entries_without_barriers_and_local_memory() {
    use kernel_spec::families::{cross_entropy, softmax};
    let softmax = softmax::VARIANTS.iter().map(|row| (&row.entry, row.tile.row_threads <= 32));
    let cross_entropy = cross_entropy::VARIANTS.iter();
    let cross_entropy = cross_entropy.map(|row| {
        let waits_for_nobody = row.tile.row_threads <= 32 && row.tile.ahead == 0;
        (&row.entry, waits_for_nobody || row.pass == cross_entropy::Pass::Backward)
    });
    for (entry, is_alone) in softmax.chain(cross_entropy) {
        let text = ferroflash::embedded_ptx(entry).expect("every build has it");
        assert!(!text.contains(".local"), "{}", entry.symbol);
        assert_eq!(mutants(&text).is_empty(), is_alone, "{}", entry.symbol);
    }
}
