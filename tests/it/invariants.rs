//! What must hold between two results, whatever the reference says. Equal means equal bits: the same operations in the same order.

use crate::support::case::{Case, Inputs, Memory, compare, runs, v3_tiles};
use crate::support::device;
use ferroflash::reference::max_abs_difference;
use ferroflash::{Device, Element, EmulatorConfig, Kernel, Layout, Lse, LseShape, Mask, Sizes, Tensor, bf16, f16};

/// Several tiles of queries and of keys, none of them whole.
const Q_ROWS: usize = 130;
const KV_ROWS: usize = 147;

fn problem<T: Element>() -> Sizes {
    Sizes { batch: 2, q_rows: Q_ROWS, kv_rows: KV_ROWS, q_heads: 2, kv_heads: 2, head_dim: 40, dtype: T::DTYPE }
}

fn case<T: Element>(kernel: Kernel, mask: Mask) -> Case {
    Case::new(kernel, problem::<T>(), mask)
}

/// Runs both and demands equal bits; or, of a case that the kernel does not take, the error that says so.
fn assert_equal<T: Element>(device: &Device, a: (&Case, &Inputs<T>), b: (&Case, &Inputs<T>), what: &str) {
    for (case, inputs) in [a, b] {
        if case.is_refused(device) {
            return case.check_refusal(device, inputs).unwrap_or_else(|wrong| panic!("{what}: {wrong}\n{case:#?}"));
        }
    }
    let (x, y) = (a.0.run(device, a.1), b.0.run(device, b.1));
    assert!(bits(&x.out) == bits(&y.out), "{what}: outputs differ\n{:#?}\n{:#?}", a.0, b.0);
    assert!(bits(&x.lse) == bits(&y.lse), "{what}: log-sum-exps differ\n{:#?}\n{:#?}", a.0, b.0);
}

fn bits<T: Element>(data: &[T]) -> &[u8] {
    bytemuck::cast_slice(data)
}

crate::for_each_kernel_and_dtype!(running_twice_gives_the_same_bits);

fn running_twice_gives_the_same_bits<T: Element>(kernel: Kernel) {
    let shared = device::shared();
    let case = case::<T>(kernel, Mask::Causal);
    let inputs = case.inputs::<T>();
    assert_equal(&shared.device, (&case, &inputs), (&case, &inputs), "the same call twice");
}

crate::for_each_kernel_and_dtype!(a_softcap_depends_on_no_other_row);

/// One large score has a kernel leave the short way for its warp: those beside it stay what they are.
fn a_softcap_depends_on_no_other_row<T: Element>(kernel: Kernel) {
    let shared = device::shared();
    let mut case = case::<T>(kernel, Mask::Full);
    case.attention = case.attention.with_softcap(20.0);
    let inputs = case.inputs::<T>();
    let mut larger = inputs.q.clone();
    let row_elements = case.problem.q_heads * case.problem.head_dim;
    let is_larger = |row: usize| row % 7 == 3;
    for (_, elements) in larger.chunks_exact_mut(row_elements).enumerate().filter(|(row, _)| is_larger(*row)) {
        elements.iter_mut().for_each(|x| *x = T::from_f64(64.0 * x.to_f64()));
    }
    let [few, many] = [inputs.q.clone(), larger].map(|q| case.run(&shared.device, &Inputs { q, ..inputs.clone() }).out);
    let rows = |out: &[T]| out.chunks_exact(row_elements).map(|row| bits(row).to_vec()).collect::<Vec<_>>();
    for (row, (a, b)) in rows(&few).into_iter().zip(rows(&many)).enumerate() {
        assert_eq!(a == b, !is_larger(row), "row {row} of all batch entries\n{case:#?}");
    }
}

/// Every tile of v3 again and again, with several tiles for each thread block, and with heads that share one. On a GPU, warps, copies
/// and products race anew each time; on the emulator each run has an interleaving of its own, FERROFLASH_TEST_SEEDS of them.
#[test]
fn repeats_of_every_v3_tile_give_the_same_bits() {
    let shared = device::shared();
    let repeats = if device::is_gpu() { 250 } else { device::seeds(3) };
    let batch = (shared.device.info().multiprocessors as usize).div_ceil(2);
    repeat_tiles::<f16>(&shared.device, repeats, batch);
    repeat_tiles::<bf16>(&shared.device, repeats, batch);
}

fn repeat_tiles<T: Element>(device: &Device, repeats: u32, batch: usize) {
    for variant in v3_tiles::<T>(device) {
        for (batch, q_rows, q_heads, mask) in
            [(batch, 20, 6, Mask::Full), (batch, 20, 6, Mask::Causal), (3, 5, 16, Mask::Full)]
        {
            let (head_dim, dtype) = (variant.head_dim() as usize, T::DTYPE);
            let problem = Sizes { batch, q_rows, kv_rows: 450, q_heads, kv_heads: 2, head_dim, dtype };
            repeat::<T>(device, &Case::new(variant, problem, mask), repeats);
        }
    }
}

fn repeat<T: Element>(device: &Device, case: &Case, repeats: u32) {
    let inputs = case.inputs::<T>();
    let mut tensors = Tensors::new(device, case, &inputs);
    let mut first = None;
    for seed in 0..repeats {
        if !device::is_gpu() {
            let device = Device::emulator_with(EmulatorConfig::default().with_seed(seed.into()))
                .expect("the emulator is built in");
            tensors = Tensors::new(&device, case, &inputs);
        }
        let (out, lse) = tensors.run::<T>(case);
        let (first_out, first_lse) = first.get_or_insert_with(|| (out.clone(), lse.clone()));
        assert!(bits(&out) == bits(first_out), "out of run {seed} differs from the first\n{case:#?}");
        assert!(bits(&lse) == bits(first_lse), "log-sum-exp of run {seed} differs from the first\n{case:#?}");
    }
}

/// The tensors of a case, contiguous, which stay on their device from run to run.
struct Tensors {
    qkv: [Tensor; 3],
    out: Tensor,
    lse: Lse,
}

impl Tensors {
    fn new<T: Element>(device: &Device, case: &Case, inputs: &Inputs<T>) -> Tensors {
        let upload = |data: &[T], shape| Tensor::from_slice(device, data, shape, Layout::Bshd).unwrap();
        let (q, kv) = (case.q_shape(), case.kv_shape());
        let Sizes { batch, q_heads: heads, q_rows: rows, .. } = case.problem;
        Tensors {
            qkv: [upload(&inputs.q, q), upload(&inputs.k, kv), upload(&inputs.v, kv)],
            out: Tensor::uninit(device, T::DTYPE, q, Layout::Bshd).unwrap(),
            lse: Lse::uninit(device, LseShape { batch, heads, rows }).unwrap(),
        }
    }

    /// Output and log-sum-exp, over NaN.
    fn run<T: Element>(&mut self, case: &Case) -> (Vec<T>, Vec<f32>) {
        let Tensors { qkv: [q, k, v], out, lse } = self;
        out.fill_bytes(0xff).unwrap();
        lse.fill_bytes(0xff).unwrap();
        let stream = q.device().default_stream();
        let (q, k, v) = (q.view(), k.view(), v.view());
        case.attention.forward_into(&stream, &q, &k, &v, &mut out.view_mut(), Some(&mut lse.view_mut())).unwrap();
        stream.synchronize().unwrap();
        (out.to_vec().unwrap(), lse.to_vec().unwrap())
    }
}

crate::for_each_kernel_and_dtype!(a_causal_row_ignores_later_keys);

fn a_causal_row_ignores_later_keys<T: Element>(kernel: Kernel) {
    let shared = device::shared();
    let case = case::<T>(kernel, Mask::Causal);
    let inputs = case.inputs::<T>();
    let Sizes { batch, q_rows, kv_rows, q_heads, kv_heads, head_dim, .. } = case.problem;
    // In the middle of a tile of every kernel.
    let last_row = 70;
    let first_hidden = last_row + kv_rows - q_rows + 1;
    let mut changed = inputs.clone();
    let row = kv_heads * head_dim;
    for b in 0..batch {
        for tensor in [&mut changed.k, &mut changed.v] {
            for x in &mut tensor[(b * kv_rows + first_hidden) * row..(b + 1) * kv_rows * row] {
                // Large and of the other sign: a score that is not hidden takes the whole row over.
                *x = T::from_f64(-30.0 * x.to_f64());
            }
        }
    }
    let (a, b) = (case.run(&shared.device, &inputs), case.run(&shared.device, &changed));
    let out_row = q_heads * head_dim;
    for batch in 0..batch {
        let seen = batch * q_rows * out_row..(batch * q_rows + last_row + 1) * out_row;
        assert!(bits(&a.out[seen.clone()]) == bits(&b.out[seen]), "a row up to {last_row} saw a later key");
        let next = (batch * q_rows + last_row + 1) * out_row..(batch + 1) * q_rows * out_row;
        assert!(bits(&a.out[next.clone()]) != bits(&b.out[next]), "no row after {last_row} saw the changed keys");
        for head in 0..q_heads {
            let start = (batch * q_heads + head) * q_rows;
            assert!(bits(&a.lse[start..=start + last_row]) == bits(&b.lse[start..=start + last_row]));
        }
    }
}

crate::for_each_kernel_and_dtype!(grouped_queries_equal_repeated_heads);

fn grouped_queries_equal_repeated_heads<T: Element>(kernel: Kernel) {
    let shared = device::shared();
    let mut grouped = case::<T>(kernel, Mask::Full);
    (grouped.problem.batch, grouped.problem.q_heads, grouped.problem.kv_heads) = (1, 6, 2);
    let mut repeated = grouped.clone();
    repeated.problem.kv_heads = 6;
    let inputs = grouped.inputs::<T>();
    let head_dim = grouped.problem.head_dim;
    let repeat = |data: &[T]| -> Vec<T> {
        data.chunks(head_dim).flat_map(|head| [head, head, head]).flatten().copied().collect()
    };
    let repeated_inputs = Inputs { q: inputs.q.clone(), k: repeat(&inputs.k), v: repeat(&inputs.v) };
    assert_equal(&shared.device, (&grouped, &inputs), (&repeated, &repeated_inputs), "shared and repeated heads");
}

crate::for_each_kernel_and_dtype!(the_order_of_keys_does_not_matter);

fn the_order_of_keys_does_not_matter<T: Element>(kernel: Kernel) {
    let shared = device::shared();
    let case = case::<T>(kernel, Mask::Full);
    let inputs = case.inputs::<T>();
    let reference = case.reference(&inputs);
    let Sizes { batch, kv_rows, kv_heads, head_dim, .. } = case.problem;
    let row = kv_heads * head_dim;
    // 61 has no factor in common with 147 = 3 * 7 * 7, so that every key goes to a place of its own.
    let permute = |data: &[T]| -> Vec<T> {
        let places = (0..batch).flat_map(|b| (0..kv_rows).map(move |r| b * kv_rows + r * 61 % kv_rows));
        places.flat_map(|place| data[place * row..][..row].to_vec()).collect()
    };
    let permuted = Inputs { q: inputs.q.clone(), k: permute(&inputs.k), v: permute(&inputs.v) };
    assert!(bits(&permuted.k) != bits(&inputs.k));
    // The sums run in another order: the same reference, the same rule.
    let computed = case.run(&shared.device, &permuted);
    compare(&computed, &reference).unwrap_or_else(|wrong| panic!("permuted keys: {wrong}\n{case:#?}"));
}

crate::for_each_kernel_and_dtype!(a_window_as_wide_as_the_sequence_hides_nothing);

fn a_window_as_wide_as_the_sequence_hides_nothing<T: Element>(kernel: Kernel) {
    let shared = device::shared();
    let full = case::<T>(kernel, Mask::Full);
    let inputs = full.inputs::<T>();
    let wide = Mask::Window { left: Some(KV_ROWS as u32 - 1), right: Some(Q_ROWS as u32 - 1) };
    assert_equal(&shared.device, (&full, &inputs), (&case::<T>(kernel, wide), &inputs), "a wide window and none");
    let causal = case::<T>(kernel, Mask::Causal);
    for left in [None, Some(KV_ROWS as u32 - 1), Some(u32::MAX)] {
        let window = case::<T>(kernel, Mask::Window { left, right: Some(0) });
        assert_equal(&shared.device, (&causal, &inputs), (&window, &inputs), "a causal window and causal");
    }
}

crate::for_each_kernel_and_dtype!(memory_layout_does_not_matter);

fn memory_layout_does_not_matter<T: Element>(kernel: Kernel) {
    let shared = device::shared();
    let plain = case::<T>(kernel, Mask::Causal);
    let inputs = plain.inputs::<T>();
    let odd = |layout| Memory { layout, offset: 3, inner_gap: 1, outer_gap: 5, batch_gap: 7, ..Memory::default() };
    let padded = |layout| Memory { layout, offset: 8, inner_gap: 8, outer_gap: 16, batch_gap: 24, ..Memory::default() };
    for memory in [
        Memory::contiguous(Layout::Bhsd),
        odd(Layout::Bshd),
        odd(Layout::Bhsd),
        padded(Layout::Bshd),
        padded(Layout::Bhsd),
    ] {
        let mut other = plain.clone();
        [other.q, other.k, other.v, other.out] = [memory; 4];
        assert_equal(&shared.device, (&plain, &inputs), (&other, &inputs), "two layouts");
    }
    // Only the output lies differently, and only one input.
    let mut other = plain.clone();
    other.out = odd(Layout::Bhsd);
    assert_equal(&shared.device, (&plain, &inputs), (&other, &inputs), "another layout of out");
    let mut other = plain.clone();
    other.k = padded(Layout::Bhsd);
    assert_equal(&shared.device, (&plain, &inputs), (&other, &inputs), "another layout of k");
}

crate::for_each_kernel_and_dtype!(broadcast_equals_copies);

fn broadcast_equals_copies<T: Element>(kernel: Kernel) {
    let shared = device::shared();
    let mut broadcast = case::<T>(kernel, Mask::Full);
    broadcast.k = Memory { one_batch: true, ..Memory::default() };
    broadcast.v = Memory { one_head: true, ..Memory::default() };
    let inputs = broadcast.inputs::<T>();
    let copied = case::<T>(kernel, Mask::Full);
    assert_equal(&shared.device, (&broadcast, &inputs), (&copied, &inputs), "stride 0 and copies");
    let kv_row = broadcast.problem.kv_heads * broadcast.problem.head_dim;
    assert!(bits(&inputs.k[..kv_row]) == bits(&inputs.k[KV_ROWS * kv_row..][..kv_row]), "k is one batch entry");
}

crate::for_each_kernel_and_dtype!(probabilities_sum_to_one);

fn probabilities_sum_to_one<T: Element>(kernel: Kernel) {
    let shared = device::shared();
    for mask in [Mask::Full, Mask::Causal, Mask::Window { left: Some(20), right: Some(9) }] {
        let case = case::<T>(kernel, mask);
        let mut inputs = case.inputs::<T>();
        inputs.v.fill(T::from_f64(1.0));
        let reference = case.reference(&inputs);
        assert!(max_abs_difference(&reference.out, &vec![1.0; reference.out.len()]) < 1e-12, "the reference itself");
        let computed = case.run(&shared.device, &inputs);
        compare(&computed, &reference).unwrap_or_else(|wrong| panic!("{wrong}\n{case:#?}"));
    }
}

/// Adding one constant to every score of a row: the same output, and the log-sum-exp moved by the constant.
#[test]
fn shifting_all_scores_moves_only_the_log_sum_exp() {
    let shared = device::shared();
    for kernel in Kernel::ALL.into_iter().filter(|&kernel| runs::<f32>(&shared.device, kernel)) {
        let mut case = case::<f32>(kernel, Mask::Full);
        case.attention.scale = Some(1.0);
        let mut inputs = case.inputs::<f32>();
        let head_dim = case.problem.head_dim;
        // One column of q and k takes no part, and then adds 4 * 2 = 8 to every score: exact in f32.
        for row in inputs.q.chunks_mut(head_dim).chain(inputs.k.chunks_mut(head_dim)) {
            row[0] = 0.0;
        }
        let plain = case.run(&shared.device, &inputs);
        let reference = case.reference(&inputs);
        for (data, value) in [(&mut inputs.q, 4.0), (&mut inputs.k, 2.0)] {
            for row in data.chunks_mut(head_dim) {
                row[0] = value;
            }
        }
        let mut shifted = case.run(&shared.device, &inputs);
        for lse in &mut shifted.lse {
            *lse -= 8.0;
        }
        compare(&plain, &reference).unwrap_or_else(|wrong| panic!("{kernel}: {wrong}"));
        compare(&shifted, &reference).unwrap_or_else(|wrong| panic!("{kernel}, shifted: {wrong}"));
    }
}

/// A stream of its own gives what the default stream gives.
#[test]
fn another_stream_gives_the_same_bits() {
    use ferroflash::{Attention, Shape};
    let shared = device::shared();
    let device = &shared.device;
    let case = case::<f32>(Kernel::V2, Mask::Causal);
    let inputs = case.inputs::<f32>();
    let upload = |data: &[f32], shape: Shape| Tensor::from_slice(device, data, shape, Layout::Bshd).unwrap();
    let (q, k, v) =
        (upload(&inputs.q, case.q_shape()), upload(&inputs.k, case.kv_shape()), upload(&inputs.v, case.kv_shape()));
    let attention = Attention::new().causal();
    let expected = attention.forward(&q.view(), &k.view(), &v.view()).unwrap().out.to_vec::<f32>().unwrap();
    let stream = device.stream().unwrap();
    let mut out = Tensor::uninit(device, q.dtype(), q.shape(), Layout::Bshd).unwrap();
    out.fill_bytes(0xff).unwrap();
    attention.forward_into(&stream, &q.view(), &k.view(), &v.view(), &mut out.view_mut(), None).unwrap();
    stream.synchronize().unwrap();
    assert_eq!(out.to_vec::<f32>().unwrap(), expected);
}
