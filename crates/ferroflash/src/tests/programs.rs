//! Programs on scores, put into the hooks of every entry that has some: what the emulator computes is what f64 says.

use crate::backend::RawStream;
use crate::*;
use kernel_spec::families::forward::features::PROGRAM;

/// `s + (key - row) / 16`, in units of a score without scale: attention with linear biases (Press et al. 2021), one slope for all.
const PROGRAM_TEXT: &str = ".reg .s32 far; .reg .f32 bias; sub.s32 far, $key, $row; cvt.rn.f32.s32 bias, far; \
     fma.rn.f32 $s, bias, 0f3D800000, $s;";
const SLOPE: f64 = 1.0 / 16.0;

/// Multiples of 1/8 in -1..1, exact in every type, the same for the same index.
fn data(elements: usize, seed: usize) -> Vec<f64> {
    (0..elements).map(|i| ((i * 7919 + seed * 104_729) % 17) as f64 / 8.0 - 1.0).collect()
}

/// `softmax(scale (q k^T + bias)) v` of one head, row by row.
fn expected(q: &[f64], k: &[f64], v: &[f64], dim: usize, scale: f64) -> Vec<f64> {
    let row_of = |(row, q): (usize, &[f64])| {
        let weights = k.chunks(dim).enumerate().map(|(key, k)| {
            let score: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum();
            (scale * (score + SLOPE * (key as f64 - row as f64))).exp()
        });
        let weights: Vec<f64> = weights.collect();
        let sum: f64 = weights.iter().sum();
        (0..dim)
            .map(move |col| weights.iter().zip(v.chunks(dim)).map(|(w, v)| w * v[col]).sum::<f64>() / sum)
            .collect::<Vec<_>>()
    };
    q.chunks(dim).enumerate().flat_map(row_of).collect()
}

/// `epsilon` is the distance of 1 to the next number of the type.
fn check<T: Element>(device: &Device, variant: &'static Variant, epsilon: f64) {
    let (rows, keys, dim) =
        (variant.q_block as usize + 3, variant.kv_block.max(16) as usize + 9, variant.head_dim().max(32) as usize);
    let [q, k, v] = [data(rows * dim, 1), data(keys * dim, 2), data(keys * dim, 3)];
    let tensor = |values: &[f64], rows| {
        let values: Vec<T> = values.iter().map(|&x| T::from_f64(x)).collect();
        Tensor::from_slice(device, &values, Shape::new(1, rows, 1, dim), Layout::Bshd).unwrap()
    };
    let (q_tensor, k_tensor, v_tensor) = (tensor(&q, rows), tensor(&k, keys), tensor(&v, keys));
    let out = tensor(&vec![f64::NAN; rows * dim], rows);
    let sizes =
        Sizes { batch: 1, q_rows: rows, kv_rows: keys, q_heads: 1, kv_heads: 1, head_dim: dim, dtype: variant.dtype };
    let mut plan = Attention::new().with_kernel(variant).plan(device, sizes).unwrap();
    for step in &mut plan.steps {
        if step.kernel.entry.accepts.contains(FeatureSet::of(PROGRAM))
            && step.kernel.text().unwrap().contains("// score.hook")
        {
            step.kernel.features = FeatureSet::of(PROGRAM);
            step.kernel.program = Some(PROGRAM_TEXT.into());
        }
    }
    let operands = [(Operand::Q, &q_tensor), (Operand::K, &k_tensor), (Operand::V, &v_tensor), (Operand::Out, &out)];
    let operands = operands.map(|(operand, tensor)| (operand, tensor.address()));
    crate::plan::run(device, RawStream::DEFAULT, &plan.steps, &plan.buffers, &operands).unwrap();
    // Weights and results are at most 1 and rounded to the type once each. f32 has its sums besides, of a hundred terms.
    let tolerance = if T::DTYPE == DType::F32 { 100.0 * epsilon } else { epsilon };
    let expected = expected(&q, &k, &v, dim, f64::from(plan.scale));
    for (i, (found, expected)) in out.to_f64_vec().unwrap().into_iter().zip(expected).enumerate() {
        let error = (found - expected).abs();
        assert!(error <= tolerance, "{}: element {i} is {found}, not {expected}", variant.entry.symbol);
    }
}

#[test]
fn programs_take_the_place_of_the_hooks() {
    let device = Device::emulator().unwrap();
    let accept = VARIANTS.iter().filter(|v| v.entry.accepts.contains(FeatureSet::of(PROGRAM)));
    // The passes of naive are one kernel: its first one stands for it.
    let tested: Vec<_> = accept.filter(|v| !matches!(v.pass, Pass::Softmax | Pass::Output)).collect();
    assert!(Kernel::ALL.iter().all(|&kernel| tested.iter().any(|v| v.pass.kernel() == kernel)));
    for variant in tested {
        match variant.dtype {
            DType::F32 => check::<f32>(&device, variant, f32::EPSILON.into()),
            DType::F16 => check::<f16>(&device, variant, f16::EPSILON.into()),
            DType::Bf16 => check::<bf16>(&device, variant, bf16::EPSILON.into()),
            _ => panic!("{}: no such element", variant.entry.symbol),
        }
    }
}

#[test]
fn a_program_without_a_hook_is_rejected() {
    let device = Device::emulator().unwrap();
    let sizes = Sizes { batch: 1, q_rows: 1, kv_rows: 1, q_heads: 1, kv_heads: 1, head_dim: 64, dtype: DType::F16 };
    let mut plan = Attention::new().with_kernel(Kernel::V3).plan(&device, sizes).unwrap();
    plan.steps[0].kernel.program = Some(PROGRAM_TEXT.into());
    assert_error!(
        device.prepare(&plan).unwrap_err(),
        Error::NotSpecialised { symbol: "v3_f16_d64", .. },
        "v3_f16_d64 cannot be specialised: a program on scores, and the entry has no score hook"
    );
}
