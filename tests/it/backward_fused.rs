//! The fused kernel of the backward pass on Hopper: the tests of the others, and what is its own.

use crate::backward::{
    check, every_row_at_its_tile_edges, for_each_half, forward_and_backward, large_logits, one_key_of_large_scores,
    random_problems_agree_with_the_reference, repeats_have_the_same_bits, rows_and_keys_that_see_nothing, sizes,
};
use crate::support::gradients::BackwardCase;
use crate::support::{bf16, device, f16};
use ferroflash::{Attention, Device, EmulatorConfig, Error, Kernel, Mask};
use kernel_spec::families::backward::Pass;
use std::num::NonZero;

for_each_half!(every_row_at_its_tile_edges, ferroflash::Kernel::V3);
for_each_half!(random_problems_agree_with_the_reference, ferroflash::Kernel::V3);
for_each_half!(large_logits, ferroflash::Kernel::V3);
for_each_half!(one_key_of_large_scores, ferroflash::Kernel::V3);
for_each_half!(rows_and_keys_that_see_nothing, ferroflash::Kernel::V3);
// Two blocks of keys: their sums are the same in any order.
for_each_half!(repeats_have_the_same_bits, ferroflash::Kernel::V3);
for_each_half!(forward_and_backward, ferroflash::Kernel::V3);

/// Behind the last key lie zeros, whose scores are 0: next to very negative ones their weights would be infinite.
#[test]
fn keys_that_do_not_exist_weigh_nothing() {
    for (kv_rows, mask) in [(1, Mask::Full), (130, Mask::Causal)] {
        let mut case = BackwardCase::of(Kernel::V3, sizes::<bf16>(128, kv_rows, [1, 1], 8), mask);
        // Scores of some hundreds: 2^128 is past the range of f32.
        case.forward.magnitudes = [10.0, 10.0, 1.0];
        check::<bf16>(&case);
    }
}

/// Many blocks of keys on few multiprocessors, so that a thread block has several in turn, and sums of many parts, in whatever order.
#[test]
fn many_blocks_in_any_order() {
    for (mask, heads) in [(Mask::Full, [2, 1]), (Mask::Causal, [2, 2])] {
        let case = BackwardCase::of(Kernel::V3, sizes::<bf16>(200, 700, heads, 64), mask);
        if device::is_gpu() {
            check::<bf16>(&case);
            continue;
        }
        for seed in 0..device::seeds(3).into() {
            let device = Device::emulator_with(EmulatorConfig::default().with_seed(seed)).expect("it is built in");
            case.check::<bf16>(&device).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        }
    }
}

/// Blocks of keys of one head in one round and in several, with masks, groups, and more blocks of keys than of queries.
const MANY_BLOCKS: [([usize; 2], [usize; 2], Mask); 5] = [
    ([300, 700], [2, 1], Mask::Full),
    ([60, 600], [2, 2], Mask::Full),
    ([500, 500], [3, 3], Mask::Causal),
    ([200, 640], [4, 2], Mask::Causal),
    ([450, 450], [2, 1], Mask::Window { left: Some(150), right: Some(20) }),
];

/// Devices on which thread blocks take turns in another way each time: few multiprocessors, so that there are several rounds.
fn interleavings(times: u32) -> Vec<Device> {
    if device::is_gpu() {
        return (0..times).map(|_| device::shared().device.clone()).collect();
    }
    let multiprocessors = NonZero::new(4).expect("it is not 0");
    let config = EmulatorConfig::default().with_multiprocessors(multiprocessors);
    (0..times)
        .map(|seed| Device::emulator_with(config.clone().with_seed(seed.into())).expect("it is built in"))
        .collect()
}

/// Sums in order have the same bits, whoever comes first: on a GPU from 250 runs, on the emulator under every seed.
#[test]
fn sums_in_order_have_the_same_bits() {
    for head_dim in [64, 96, 128] {
        for (rows, heads, mask) in MANY_BLOCKS {
            let mut case = BackwardCase::of(Kernel::V3, sizes::<f16>(rows[0], rows[1], heads, head_dim), mask);
            case.forward.attention.deterministic = true;
            let given = case.inputs::<f16>();
            let devices = interleavings(if device::is_gpu() { 250 } else { device::seeds(3) });
            let run = |device: &Device| case.run(device, &given).unwrap_or_else(|wrong| panic!("{wrong}"));
            let first = run(&devices[0]);
            case.check::<f16>(&devices[0]).unwrap_or_else(|wrong| panic!("{wrong}"));
            for (i, device) in devices.iter().enumerate().skip(1) {
                assert!(run(device) == first, "{head_dim} dims, {rows:?}, {mask:?}: run {i} differs");
            }
        }
    }
}

/// What the last test would see: without an order the bits depend on who comes first. In f16, whose rounding hides fewer of them.
#[test]
fn sums_in_any_order_have_other_bits() {
    let (rows, heads, mask) = MANY_BLOCKS[0];
    let case = BackwardCase::of(Kernel::V3, sizes::<f16>(rows[0], rows[1], heads, 64), mask);
    let given = case.inputs::<f16>();
    let mut runs = interleavings(250).into_iter().map(|device| case.run(&device, &given).expect("it runs"));
    let first = runs.next().expect("there are many");
    assert!(runs.any(|run| run != first), "the same bits in every run");
}

#[test]
fn the_library_chooses_it_where_it_runs_and_says_why_not() {
    let device = &device::shared().device;
    let is_fused = |attention: Attention<'static>, problem| {
        let plan = attention.backward_plan(device, problem).unwrap();
        let fused = plan.steps.len() == Pass::FUSED.len() && plan.symbols().any(|symbol| symbol.contains("fused"));
        assert_eq!(fused, plan.buffers.iter().any(|buffer| buffer.name == "sums of dq"), "{plan}");
        (fused, plan.deterministic, plan.reason)
    };
    let (auto, hopper) = (Attention::new(), device.info().runs(kernel_spec::Arch::Sm90a));
    let problem = |kv_rows, head_dim| sizes::<f16>(100, kv_rows, [2, 1], head_dim);
    assert_eq!(is_fused(auto, problem(600, 128)).0, hopper);
    assert!(!is_fused(auto, sizes::<f32>(100, 600, [2, 1], 64)).0, "f32 has no such products");
    let (fused, deterministic, why) = is_fused(auto, problem(600, 136));
    assert!(
        !fused && deterministic && (!hopper || why.contains("the head dim is 136; up to 128 is accepted")),
        "{why}"
    );
    assert!(!is_fused(auto, problem(0, 64)).0, "without keys there is nothing to load");
    if hopper {
        let (_, deterministic, _) = is_fused(auto, problem(600, 64));
        assert!(!deterministic, "five blocks of keys add to the same sums");
        let (fused, deterministic, why) = is_fused(auto.with_deterministic(true), problem(256, 64));
        assert!(fused && deterministic && !why.contains("in order"), "two numbers have one sum: {why}");
        let plan = auto.with_deterministic(true).backward_plan(device, problem(600, 64)).unwrap();
        assert!(plan.deterministic && plan.reason.contains("add to the sums of dq in order, for equal bits"), "{plan}");
        assert!(plan.symbols().any(|symbol| symbol == "backward_ordered_f16_d64"), "{plan}");
        assert_eq!(plan.buffers.last().unwrap().name, "counters of dq");
        // Two query heads of 128 rows, which is what 100 are rounded up to.
        assert_eq!(plan.buffers.last().unwrap().bytes, 2 * 128 / 32 * 4);
    }
    let asked = auto.with_kernel(Kernel::V3);
    for attention in [asked, asked.with_deterministic(true)] {
        let refused = attention.backward_plan(device, problem(600, 136));
        assert!(matches!(refused, Err(Error::KernelUnsupported { kernel: Kernel::V3, .. })), "{refused:?}");
    }
}
