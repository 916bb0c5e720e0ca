//! CPU tensors on the emulator, against candle's own operations and the f64 reference.
#![cfg(feature = "emulator")]

use candle_core::{D, DType, Device, Tensor};
use candle_ferroflash::{emulate_cpu, flash_attn, flash_attn_alibi_windowed_softcap, flash_attn_windowed, v3};
use ferroflash::reference::{self, Comparison};
use ferroflash::score::ScoreProgram;
use ferroflash::{Attention, Layout, Mask, Problem, Sequences};
use proptest::prelude::*;

/// Values of a fixed pattern, which repeats nowhere in these shapes: the fractional parts of multiples of an irrational number.
fn values(shape: &[usize], seed: usize) -> Tensor {
    let count = shape.iter().product::<usize>();
    let value = |i: usize| ((i + 7919 * seed) as f64 * 0.618_033_988_749_894_9).fract() as f32 * 4.0 - 2.0;
    Tensor::from_vec((0..count).map(value).collect(), shape, &Device::Cpu).unwrap()
}

fn f64s(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The result against the reference, by its tolerance rule.
fn check(out: &Tensor, q: &Tensor, k: &Tensor, v: &Tensor, attention: &Attention) {
    assert_eq!((out.dims(), out.dtype(), out.is_contiguous()), (q.dims(), q.dtype(), true));
    let (batch, q_rows, q_heads, head_dim) = q.dims4().unwrap();
    let (_, kv_rows, kv_heads, _) = k.dims4().unwrap();
    let dtype = match q.dtype() {
        DType::F16 => ferroflash::DType::F16,
        DType::BF16 => ferroflash::DType::Bf16,
        _ => ferroflash::DType::F32,
    };
    let problem = Problem::new(Sequences::Uniform { batch, q_rows, kv_rows }, q_heads, kv_heads, head_dim, dtype);
    let [q, k, v] = [q, k, v].map(f64s);
    let exact = reference::forward(&q, &k, &v, problem, attention).unwrap();
    let rounded = reference::forward_rounded(&q, &k, &v, problem, attention).unwrap();
    let comparison = Comparison::new(&f64s(out), &exact.out, &rounded.out);
    assert!(comparison.within, "{problem}: {comparison}");
}

/// Attention by candle's operations, in f32: `softmax(scale q k^T + mask) v`, with as many heads of k and v as of q.
fn by_candle(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, causal: bool) -> candle_core::Result<Tensor> {
    let [q, k, v] = [q, k, v].map(|t| t.to_dtype(DType::F32).and_then(|t| t.transpose(1, 2)?.contiguous()));
    let (q, k, v) = (q?, k?, v?);
    let mut scores = (q.matmul(&k.t()?)? * scale)?;
    if causal {
        let (rows, keys) = (q.dim(2)?, k.dim(2)?);
        let hidden = |i: usize| if i % keys > i / keys + keys - rows { f32::NEG_INFINITY } else { 0.0 };
        let mask = Tensor::from_vec((0..rows * keys).map(hidden).collect::<Vec<_>>(), (rows, keys), &Device::Cpu)?;
        scores = scores.broadcast_add(&mask)?;
    }
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    weights.matmul(&v)?.transpose(1, 2)
}

#[test]
fn candle_computes_the_same() {
    emulate_cpu(true);
    let [q, k, v] = [(30, 1), (41, 2), (41, 3)].map(|(rows, seed)| values(&[2, rows, 3, 64], seed));
    for causal in [false, true] {
        let expected = by_candle(&q, &k, &v, 0.125, causal).unwrap();
        for out in [
            flash_attn(&q, &k, &v, 0.125, causal).unwrap(),
            v3::flash_attn(&q, &k, &v, 0.125, causal, true).unwrap(),
            flash_attn_windowed(&q, &k, &v, 0.125, None, causal.then_some(0)).unwrap(),
        ] {
            let difference = (out - &expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(difference < 1e-5, "causal {causal}: {difference}");
        }
    }
}

/// f16 and bf16, over enough rows that the rule's two maxima mean something; grouped heads, and tensors in candle's usual order of axes
/// (batch, head, row, dim), transposed.
#[test]
fn types_and_grouped_heads() {
    emulate_cpu(true);
    for dtype in [DType::F16, DType::BF16] {
        let [q, k, v] = [(4, 80, 1), (2, 90, 2), (2, 90, 3)].map(|(heads, rows, seed)| {
            values(&[2, heads, rows, 64], seed).to_dtype(dtype).unwrap().transpose(1, 2).unwrap()
        });
        let out = flash_attn(&q, &k, &v, 0.125, true).unwrap();
        check(&out, &q, &k, &v, &Attention::new().causal());
        let capped = flash_attn_alibi_windowed_softcap(&q, &k, &v, None, 0.25, Some(20), Some(3), 5.0).unwrap();
        let attention = Attention::new().window(Some(20), Some(3)).with_scale(0.25).with_softcap(5.0);
        check(&capped, &q, &k, &v, &attention);
    }
}

/// No keys at all: zeros.
#[test]
fn no_keys() {
    emulate_cpu(true);
    let q = values(&[1, 3, 2, 32], 1);
    let none = q.narrow(1, 0, 0).unwrap();
    let out = flash_attn(&q, &none, &none, 0.125, false).unwrap();
    assert_eq!((out.dims(), f64s(&out)), (q.dims(), vec![0.0; 3 * 2 * 32]));
}

/// A tensor `[batch, rows, heads, head_dim]` that lies in its storage in one of the ways that candle's operations leave behind.
fn placed(dims: [usize; 4], way: usize, seed: usize) -> Tensor {
    let [batch, rows, heads, dim] = dims;
    let tensor = match way {
        0 => values(&dims, seed),
        1 => values(&[batch, heads, rows, dim], seed).transpose(1, 2).unwrap(),
        // Inside of a larger one, on every axis but the last.
        2 => {
            let larger = values(&[batch + 1, rows + 2, heads + 1, dim], seed);
            larger.narrow(0, 1, batch).unwrap().narrow(1, 2, rows).unwrap().narrow(2, 0, heads).unwrap()
        }
        // A part of every row.
        3 => values(&[batch, rows, heads, 3 * dim], seed).narrow(3, dim, dim).unwrap(),
        // The same memory for every head.
        _ => values(&[batch, rows, 1, dim], seed).broadcast_as(&dims[..]).unwrap(),
    };
    assert_eq!((tensor.dims(), tensor.stride()[3]), (&dims[..], 1));
    tensor
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_layout_and_window(
        (batch, q_rows, kv_rows) in (1usize..3, 1usize..40, 1usize..40),
        (groups, kv_heads, eighths) in (1usize..3, 1usize..3, 1usize..9),
        ways in [0usize..5, 0..5, 0..5],
        (left, right) in (proptest::option::of(0usize..50), proptest::option::of(0usize..50)),
        (scale, softcap) in (0.05f32..1.0, prop_oneof![Just(0.0f32), 2.0f32..40.0]),
        slope in proptest::option::of(-0.5f32..0.5),
    ) {
        emulate_cpu(true);
        // Of each head another.
        let slopes = slope.map(|slope| (1..=groups * kv_heads).map(|head| slope / head as f32).collect::<Vec<_>>());
        let of_heads = slopes.as_ref().map(|slopes| Tensor::new(&slopes[..], &Device::Cpu).unwrap());
        let dim = 8 * eighths;
        let q = placed([batch, q_rows, groups * kv_heads, dim], ways[0], 1);
        let k = placed([batch, kv_rows, kv_heads, dim], ways[1], 2);
        let v = placed([batch, kv_rows, kv_heads, dim], ways[2], 3);
        let out = flash_attn_alibi_windowed_softcap(&q, &k, &v, of_heads.as_ref(), scale, left, right, softcap).unwrap();
        // What candle-flash-attn computes: bounds above the number of keys are none, and one on the left brings one on the right.
        let [left, right] = [left, right].map(|bound| bound.filter(|&keys| keys <= kv_rows).map(|keys| keys as u32));
        let right = right.or(left.map(|_| kv_rows as u32));
        let mask = Mask::Window { left, right };
        let attention = Attention::new().with_mask(mask).with_scale(scale).with_softcap(softcap);
        let Some(slopes) = slopes else {
            check(&out, &q, &k, &v, &attention);
            return Ok(());
        };
        let device = ferroflash::Device::emulator().unwrap();
        let slopes = ferroflash::Tensor::from_slice(&device, &slopes, [1, slopes.len()], Layout::RowMajor).unwrap();
        let program = ScoreProgram::alibi().bind(&[("slopes", slopes.view().into())]).unwrap();
        check(&out, &q, &k, &v, &attention.with_program(&program));
    }
}
