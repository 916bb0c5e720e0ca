//! The naive kernel of the backward pass: the tests of the kernels that recompute, and what is its own.

use crate::backward::{
    every_row_at_its_tile_edges, every_row_with_a_softcap, for_each_dtype, for_each_type, forward_and_backward,
    large_logits, large_scores_lose_what_the_formula_loses, one_key_of_large_scores,
    random_problems_agree_with_the_reference, repeats_have_the_same_bits, rows_and_keys_that_see_nothing, sizes,
};
use crate::support::gradients::BackwardCase;
use crate::support::{bf16, device};
use ferroflash::{Attention, Kernel, Layout, Mask, Shape, Tensor};

for_each_dtype!(every_row_at_its_tile_edges, ferroflash::Kernel::Naive);
for_each_dtype!(every_row_with_a_softcap, ferroflash::Kernel::Naive);
for_each_dtype!(random_problems_agree_with_the_reference, ferroflash::Kernel::Naive);
for_each_dtype!(large_logits, ferroflash::Kernel::Naive);
for_each_dtype!(one_key_of_large_scores, ferroflash::Kernel::Naive);
for_each_type!(large_scores_lose_what_the_formula_loses, ferroflash::Kernel::Naive, f32);
for_each_dtype!(rows_and_keys_that_see_nothing, ferroflash::Kernel::Naive);
for_each_dtype!(repeats_have_the_same_bits, ferroflash::Kernel::Naive);
for_each_dtype!(forward_and_backward, ferroflash::Kernel::Naive);

#[test]
fn the_plan_says_what_lies_in_memory_and_why() {
    let device = &device::shared().device;
    let problem = sizes::<bf16>(100, 70, [4, 2], 40);
    let plan = |kernel| Attention::new().with_kernel(kernel).backward_plan(device, problem).unwrap();
    let naive = plan(Kernel::Naive);
    // Rows of whole 16 bytes: 72 keys.
    let (scores, statistics) = (4 * 100 * 72, 4 * 128 * 8);
    let buffers: Vec<_> = naive.buffers.iter().map(|buffer| (buffer.name, buffer.bytes)).collect();
    let expected = [("statistics", statistics), ("probabilities", 2 * scores), ("probabilities in f32", 4 * scores)];
    assert_eq!(buffers, expected);
    assert_eq!(naive.workspace_bytes(), statistics + 6 * scores);
    assert!(naive.deterministic && naive.reason.starts_with("asked for naive"), "{naive}");
    let symbols: Vec<_> = naive.symbols().collect();
    let of_dim = |pass| format!("backward_naive_{pass}_bf16_d64");
    let [scores, keys, queries] = ["scores", "keys", "queries"].map(of_dim);
    let delta = "backward_delta_bf16";
    assert_eq!(symbols, [delta, &scores, &keys, &scores, &queries, &keys]);
    for equation in ["p = e^(scale q k^T - lse)", "dv = p^T dout", "ds = p (dout v^T - delta)", "dk = scale ds^T q"] {
        assert!(naive.to_string().contains(equation), "{naive}");
    }
    // The portable kernels of the forward pass that hold no scores have one counterpart.
    assert_eq!(plan(Kernel::V1), plan(Kernel::V2));
}

/// Keys of minus infinity are numbers in no sum: the row that sees no other gets 0.
#[test]
fn a_row_whose_keys_are_minus_infinity_gets_nothing() {
    const DIM: usize = 16;
    let device = &device::shared().device;
    let shape = Shape::new(1, 3, 1, DIM);
    let upload = |data: &[f32]| Tensor::from_slice(device, data, shape, Layout::Bshd).unwrap();
    let ones = upload(&[1.0; 3 * DIM]);
    let mut keys = [1.0; 3 * DIM];
    keys[..DIM].fill(f32::NEG_INFINITY);
    let k = upload(&keys);
    for kernel in [Kernel::Naive, Kernel::V2] {
        let attention = Attention::new().causal().with_lse(true).with_kernel(kernel);
        let (q, k, v) = (ones.view(), k.view(), ones.view());
        let output = attention.forward(&q, &k, &v).unwrap();
        let lse = output.lse.unwrap();
        assert_eq!(lse.to_vec().unwrap()[0], f32::NEG_INFINITY);
        let gradients = attention.backward(&q, &k, &v, &output.out.view(), &lse.view(), ones.view()).unwrap();
        assert_eq!(gradients.dq.to_vec::<f32>().unwrap()[..DIM], [0.0; DIM], "{kernel}");
        // The second and third row give the second key a half and a third.
        let dv = gradients.dv.to_vec::<f32>().unwrap();
        assert!((dv[DIM] - 1.5).abs() < 1e-6, "{kernel}: {}", dv[DIM]);
    }
}

/// Gradients of scores are rounded once: made of probabilities that had been rounded for `dv`, dq was up to 1.27 times as far off as the rule
/// accepts, in 9 of 400 draws of this problem, seeds among these, where the kernels that recompute never came beyond 0.76.
#[test]
fn gradients_of_scores_are_rounded_once() {
    let sizes = sizes::<bf16>(128, 193, [2, 2], 128);
    for seed in [10596217630267943683, 92, 120, 123, 140, 146, 163, 262, 283, 371] {
        let mut case = BackwardCase::of(Kernel::Naive, sizes, Mask::Causal);
        case.forward.seed = seed;
        case.with_dlse = true;
        let given = case.inputs::<bf16>();
        let computed = case.run(&device::shared().device, &given).unwrap_or_else(|wrong| panic!("{wrong}"));
        case.compare(&given, &computed).unwrap_or_else(|wrong| panic!("{wrong}\n{case:#?}"));
        // The mean tells more than the largest error: with two roundings it was 1.16 to 1.25 times that of the formula.
        let [ours, formula] = case.squared_errors_of_dq(&given, &computed);
        let times = (ours / formula).sqrt();
        assert!(times < 1.05, "seed {seed}: {times:.3} times the error of the formula");
    }
}
