//! Programs on scores, put into the hooks of every entry that has some: what the emulator computes is what f64 says.

use crate::backend::{Launch, RawStream};
use crate::*;
use kernel_spec::families::forward::features::{FIRST_WORD, PROGRAM};

/// `s + (key (row + 1) mod 8) / 8`, in units of a score without scale: no row's bias is another's plus a constant, which the softmax would
/// take out.
const PROGRAM_TEXT: &str = ".reg .u32 place; .reg .f32 bias; mad.lo.u32 place, $key, $row, $key; and.b32 place, place, 7; \
     cvt.rn.f32.u32 bias, place; fma.rn.f32 $s, bias, 0f3E000000, $s;";

fn bias(row: usize, key: usize) -> f64 {
    (key * (row + 1) % 8) as f64 / 8.0
}

/// Multiples of 1/8 in -1..1, exact in every type, the same for the same index.
fn data(elements: usize, seed: usize) -> Vec<f64> {
    (0..elements).map(|i| ((i * 7919 + seed * 104_729) % 17) as f64 / 8.0 - 1.0).collect()
}

/// `softmax(scale (q k^T + bias)) v` of one head, row by row.
fn expected(q: &[f64], k: &[f64], v: &[f64], dim: usize, scale: f64) -> Vec<f64> {
    let row_of = |(row, q): (usize, &[f64])| {
        let weights = k.chunks(dim).enumerate().map(|(key, k)| {
            let score: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum();
            (scale * (score + bias(row, key))).exp()
        });
        let weights: Vec<f64> = weights.collect();
        let sum: f64 = weights.iter().sum();
        (0..dim)
            .map(move |col| weights.iter().zip(v.chunks(dim)).map(|(w, v)| w * v[col]).sum::<f64>() / sum)
            .collect::<Vec<_>>()
    };
    q.chunks(dim).enumerate().flat_map(row_of).collect()
}

/// Computes `rows` rows of each of `heads` query heads over one key-value head. `epsilon` is the distance of 1 to the next number of the
/// type.
fn check<T: Element>(device: &Device, variant: &'static Variant, [rows, heads]: [usize; 2], epsilon: f64) -> u32 {
    let (keys, dim) = (variant.kv_block.max(16) as usize + 9, variant.head_dim() as usize);
    let [q, k, v] = [data(rows * heads * dim, 1), data(keys * dim, 2), data(keys * dim, 3)];
    let tensor = |values: &[f64], rows, heads| {
        let values: Vec<T> = values.iter().map(|&x| T::from_f64(x)).collect();
        Tensor::from_slice(device, &values, Shape::new(1, rows, heads, dim), Layout::Bshd).unwrap()
    };
    let (q_tensor, k_tensor, v_tensor) = (tensor(&q, rows, heads), tensor(&k, keys, 1), tensor(&v, keys, 1));
    let out = tensor(&vec![f64::NAN; q.len()], rows, heads);
    let sizes = Sizes {
        batch: 1,
        q_rows: rows,
        kv_rows: keys,
        q_heads: heads,
        kv_heads: 1,
        head_dim: dim,
        dtype: variant.dtype,
    };
    let mut plan = Attention::new().with_kernel(variant).plan(device, sizes).unwrap();
    for step in &mut plan.steps {
        if step.kernel.text().unwrap().contains("// score.hook") {
            step.kernel.features = FeatureSet::of(PROGRAM);
            step.kernel.program = Some(PROGRAM_TEXT.into());
        }
    }
    let operands = [(Operand::Q, &q_tensor), (Operand::K, &k_tensor), (Operand::V, &v_tensor), (Operand::Out, &out)];
    let operands = operands.map(|(operand, tensor)| (operand, tensor.address()));
    crate::plan::run(device, RawStream::DEFAULT, &plan.steps, &plan.buffers, &operands).unwrap();
    // Weights and results are at most 1 and rounded to the type once each. f32 has its sums besides, of a hundred terms.
    let tolerance = if T::DTYPE == DType::F32 { 100.0 * epsilon } else { epsilon };
    let found = out.to_f64_vec().unwrap();
    let head_of = |all: &[f64], head: usize| -> Vec<f64> {
        (0..rows).flat_map(|row| all[(row * heads + head) * dim..][..dim].to_vec()).collect()
    };
    for head in 0..heads {
        let expected = expected(&head_of(&q, head), &k, &v, dim, f64::from(plan.scale));
        for (i, (found, expected)) in head_of(&found, head).into_iter().zip(expected).enumerate() {
            let error = (found - expected).abs();
            assert!(error <= tolerance, "{}: head {head}, element {i}: {found}, not {expected}", variant.entry.symbol);
        }
    }
    plan.packed_heads
}

#[test]
fn programs_take_the_place_of_the_hooks() {
    let device = Device::emulator().unwrap();
    let accept = VARIANTS.iter().filter(|v| v.entry.accepts.contains(FeatureSet::of(PROGRAM)) && !v.is_listed());
    // The passes of naive are one kernel: its first one stands for it.
    let tested: Vec<_> = accept.filter(|v| !matches!(v.pass, Pass::Softmax | Pass::Output)).collect();
    assert!(Kernel::ALL.iter().all(|&kernel| tested.iter().any(|v| v.pass.kernel() == kernel)));
    for variant in tested {
        // More rows than a tile has, and so few that v3 puts all heads into one.
        for [rows, heads] in [[variant.q_block as usize + 3, 1], [5, 4]] {
            let packed = match variant.dtype {
                DType::F32 => check::<f32>(&device, variant, [rows, heads], f32::EPSILON.into()),
                DType::F16 => check::<f16>(&device, variant, [rows, heads], f16::EPSILON.into()),
                DType::Bf16 => check::<bf16>(&device, variant, [rows, heads], bf16::EPSILON.into()),
                _ => panic!("{}: no such element", variant.entry.symbol),
            };
            assert_eq!(packed as usize, if variant.pass == Pass::V3 { heads } else { 1 }, "{}", variant.entry.symbol);
        }
    }
}

/// A word reaches the program, and may change from launch to launch: the score of a key is its number times the word.
#[test]
fn a_program_reads_its_words() {
    const TEXT: &str = ".reg .u32 n; cvt.u32.u64 n, $word0; mul.lo.u32 n, n, $key; cvt.rn.f32.u32 $s, n;";
    const KEYS: usize = 9;
    let device = Device::emulator().unwrap();
    let accept = VARIANTS
        .iter()
        .filter(|v| v.entry.accepts.contains(FeatureSet::of(PROGRAM)) && !v.is_listed() && v.dtype == DType::F16);
    for kernel in [Kernel::V1, Kernel::V2, Kernel::V3] {
        let variant = accept.clone().find(|v| v.pass.kernel() == kernel).expect("a row that takes programs");
        let dim = variant.head_dim() as usize;
        // Column j of the output is the weight of key j.
        let unit: Vec<f16> = (0..KEYS * dim).map(|i| f16::from_f64(f64::from(i / dim == i % dim))).collect();
        let tensor =
            |data: &[f16], rows| Tensor::from_slice(&device, data, Shape::new(1, rows, 1, dim), Layout::Bshd).unwrap();
        let (q, k) = (tensor(&vec![f16::ONE; dim], 1), tensor(&vec![f16::ONE; KEYS * dim], KEYS));
        let (v, out) = (tensor(&unit, KEYS), tensor(&vec![f16::NAN; dim], 1));
        let (batch, q_rows, q_heads, kv_heads, dtype) = (1, 1, 1, 1, DType::F16);
        let sizes = Sizes { batch, q_rows, kv_rows: KEYS, q_heads, kv_heads, head_dim: dim, dtype };
        let mut plan = Attention::new().with_kernel(variant).with_scale(0.25).plan(&device, sizes).unwrap();
        let step = &mut plan.steps[0];
        step.kernel.features = FeatureSet::of(PROGRAM);
        step.kernel.program = Some(TEXT.into());
        let operands = [(Operand::Q, &q), (Operand::K, &k), (Operand::V, &v), (Operand::Out, &out)];
        let operands = operands.map(|(operand, tensor)| (operand, tensor.address()));
        for value in [2_u64, 0, 3] {
            let mut params = step.params(&device, &operands, &[]).unwrap();
            // The slots are the end of the parameters.
            let at = params.len() - 8 * (step.kernel.entry.feature_slots - FIRST_WORD) as usize;
            params[at..][..8].copy_from_slice(&value.to_ne_bytes());
            let (kernel, ctas, stream) = (&step.kernel, step.ctas, RawStream::DEFAULT);
            device.backend().launch(&Launch { kernel, ctas, cluster: 1, params: &params, stream }).unwrap();
            let weights = (0..KEYS).map(|key| (0.25 * (key as u64 * value) as f64).exp());
            let sum: f64 = weights.clone().sum();
            for (key, (found, weight)) in out.to_f64_vec().unwrap().into_iter().zip(weights).enumerate() {
                let symbol = step.kernel.entry.symbol;
                let error = (found - weight / sum).abs();
                assert!(error < 1e-3, "{symbol}, value {value}, key {key}: {found}, {} expected", weight / sum);
            }
        }
    }
}

#[test]
fn a_program_without_a_hook_or_its_feature_is_rejected() {
    let device = Device::emulator().unwrap();
    let sizes = Sizes { batch: 1, q_rows: 1, kv_rows: 1, q_heads: 1, kv_heads: 1, head_dim: 64, dtype: DType::F16 };
    let mut plan = Attention::new().with_kernel(Kernel::V3).plan(&device, sizes).unwrap();
    plan.steps[0].kernel.program = Some(PROGRAM_TEXT.into());
    assert_error!(
        device.prepare(&plan).unwrap_err(),
        Error::NotSpecialised { symbol: "v3_f16_d64", .. },
        "v3_f16_d64 cannot be specialised: a program on scores, and its feature is off"
    );
    // The softmax of naive takes the feature, and has nothing to do for it.
    let mut plan = Attention::new().with_kernel(Kernel::Naive).plan(&device, sizes).unwrap();
    plan.steps[1].kernel.features = FeatureSet::of(PROGRAM);
    plan.steps[1].kernel.program = Some(PROGRAM_TEXT.into());
    assert_error!(
        device.prepare(&plan).unwrap_err(),
        Error::NotSpecialised { symbol: "naive_softmax_f16", .. },
        "naive_softmax_f16 cannot be specialised: a program on scores, and the entry has no score hook"
    );
}
