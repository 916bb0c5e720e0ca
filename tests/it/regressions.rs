//! Problems that once went wrong, or that sit where implementations of attention have gone wrong elsewhere.

use crate::support::case::Case;
use crate::support::device;
use ferroflash::{DType, Element, Kernel, Mask, Problem, VARIANTS, bf16, f16};

fn check_all(problem: Problem, mask: Mask, adjust: impl Fn(&mut Case)) {
    let shared = device::shared();
    for kernel in Kernel::ALL {
        for dtype in DType::ALL {
            let mut case = Case::new(kernel, Problem { dtype, ..problem }, mask);
            adjust(&mut case);
            let result = match dtype {
                DType::F32 => case.check::<f32>(&shared.device),
                DType::F16 => case.check::<f16>(&shared.device),
                DType::Bf16 => case.check::<bf16>(&shared.device),
            };
            result.unwrap_or_else(|wrong| panic!("{kernel}: {wrong}"));
        }
    }
}

fn problem(q_rows: usize, kv_rows: usize) -> Problem {
    Problem { batch: 1, q_rows, kv_rows, q_heads: 2, kv_heads: 1, head_dim: 64, dtype: DType::F32 }
}

/// Output 0 and log-sum-exp minus infinity, not NaN: there is no maximum to subtract.
#[test]
fn no_keys_at_all() {
    for mask in [Mask::Full, Mask::Causal, Mask::Window { left: Some(1), right: None }] {
        check_all(problem(70, 0), mask, |_| {});
    }
}

/// Whole blocks of rows see nothing, then a block in which some rows do.
#[test]
fn causal_with_more_queries_than_keys() {
    check_all(problem(200, 3), Mask::Causal, |_| {});
    check_all(problem(131, 64), Mask::Causal, |_| {});
}

/// A window that lies past the last key for the last rows, and before the first key for the first ones.
#[test]
fn windows_beyond_the_keys() {
    let window = |left, right| Mask::Window { left: Some(left), right: Some(right) };
    check_all(problem(100, 40), window(5, 0), |_| {});
    check_all(problem(40, 100), window(0, 0), |_| {});
    check_all(problem(65, 65), window(1, 70), |_| {});
    // Rows above the diagonal's start see keys only through the right bound.
    check_all(problem(90, 20), window(0, 60), |_| {});
}

/// One query, one key; one query over a few tiles of keys.
#[test]
fn single_rows() {
    check_all(problem(1, 1), Mask::Full, |_| {});
    check_all(problem(1, 200), Mask::Causal, |_| {});
    check_all(problem(200, 1), Mask::Full, |_| {});
}

/// The sign of the scale decides which score is the maximum: taking it before the scaling is wrong for negative scales.
#[test]
fn scales_of_either_sign_and_zero() {
    for scale in [-1.0, -0.125, 0.0, 1e-30, 3.0] {
        check_all(problem(65, 70), Mask::Causal, |case| case.attention.scale = Some(scale));
    }
}

/// Scores far outside the range of exp: only subtracting the maximum keeps them finite.
#[test]
fn scores_far_outside_the_range_of_exp() {
    check_all(problem(66, 130), Mask::Full, |case| {
        case.attention.scale = Some(1.0);
        case.deviation = 8.0;
    });
}

/// Every score is far below zero, so a maximum that starts at 0, or hidden elements at a finite minimum, shows.
#[test]
fn scores_that_are_all_very_negative() {
    let shared = device::shared();
    fn check<T: Element>(kernel: Kernel, device: &ferroflash::Device) {
        let mut case = Case::new(kernel, Problem { dtype: T::DTYPE, ..problem(70, 90) }, Mask::Causal);
        case.attention.scale = Some(1.0);
        let mut inputs = case.inputs::<T>();
        // The first columns alone add -20000 to every score.
        for (data, value) in [(&mut inputs.q, -200.0), (&mut inputs.k, 100.0)] {
            data.chunks_mut(64).for_each(|row| row[0] = T::from_f64(value));
        }
        let computed = case.run(device, &inputs);
        let (exact, rounded) = case.reference(&inputs);
        crate::support::case::compare(&computed, &exact, &rounded)
            .unwrap_or_else(|wrong| panic!("{kernel}: {wrong}\n{case:#?}"));
        assert!(exact.lse.iter().filter(|lse| lse.is_finite()).all(|&lse| lse < -19_000.0));
    }
    for kernel in Kernel::ALL {
        check::<f32>(kernel, &shared.device);
        check::<f16>(kernel, &shared.device);
        check::<bf16>(kernel, &shared.device);
    }
}

/// Keys and values that no row sees may hold NaN or infinity in whole blocks: those are never loaded into a sum.
///
/// Within a block that some row sees, hidden values meet a probability of 0, and 0 * NaN is NaN in every implementation.
#[test]
fn nan_in_key_blocks_that_no_row_sees() {
    let shared = device::shared();
    for kernel in [Kernel::V1, Kernel::V2] {
        let tiles = VARIANTS.iter().filter(|variant| variant.pass.kernel() == kernel).map(|variant| variant.kv_block);
        let hidden_rows = tiles.max().expect("every kernel has variants") as usize;
        // 64 queries at the end see the 127 last keys, none of those in the tiles before.
        let mask = Mask::Window { left: Some(63), right: Some(0) };
        let case = Case::new(kernel, Problem { dtype: DType::F16, ..problem(64, hidden_rows + 128) }, mask);
        let mut inputs = case.inputs::<f16>();
        let hidden = hidden_rows * case.problem.head_dim;
        let (exact, rounded) = case.reference(&inputs);
        inputs.k[..hidden].fill(f16::NAN);
        inputs.v[..hidden].fill(f16::INFINITY);
        let computed = case.run(&shared.device, &inputs);
        crate::support::case::compare(&computed, &exact, &rounded).unwrap_or_else(|wrong| panic!("{kernel}: {wrong}"));
    }
}
