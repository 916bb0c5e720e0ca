//! Gradients of CPU tensors on the emulator, against those that candle finds for its own operations and against the f64 reference.
#![cfg(feature = "emulator")]

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_ferroflash::{
    FlashAttn, emulate_cpu, flash_attn, flash_attn_alibi_windowed_softcap, flash_attn_windowed, v3,
};
use ferroflash::reference;
use ferroflash::{Attention, Problem, Sequences};

/// Values of a fixed pattern, which repeats nowhere in these shapes: the fractional parts of multiples of an irrational number.
fn values(shape: &[usize], seed: usize) -> Tensor {
    let count = shape.iter().product::<usize>();
    let value = |i: usize| ((i + 7919 * seed) as f64 * 0.618_033_988_749_894_9).fract() as f32 * 4.0 - 2.0;
    Tensor::from_vec((0..count).map(value).collect(), shape, &Device::Cpu).unwrap()
}

fn f64s(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Attention by candle's operations: `softmax(scale q k^T + mask) v`, where `group` heads of q share one of k and v, with scores `s` bounded
/// to `softcap * tanh(s / softcap)`.
fn by_candle(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, softcap: Option<f64>, causal: bool) -> Result<Tensor> {
    let group = q.dim(2)? / k.dim(2)?;
    let shared = |t: &Tensor| {
        let (batch, rows, heads, dim) = t.dims4()?;
        t.unsqueeze(3)?.broadcast_as((batch, rows, heads, group, dim))?.reshape((batch, rows, heads * group, dim))
    };
    let by_head = |t: &Tensor| t.transpose(1, 2)?.contiguous();
    let (q, k, v) = (by_head(q)?, by_head(&shared(k)?)?, by_head(&shared(v)?)?);
    let mut scores = (q.matmul(&k.t()?.contiguous()?)? * scale)?;
    if let Some(cap) = softcap {
        scores = ((scores / cap)?.tanh()? * cap)?;
    }
    if causal {
        let (rows, keys) = (q.dim(2)?, k.dim(2)?);
        let hidden = |i: usize| if i % keys > i / keys + keys - rows { f32::NEG_INFINITY } else { 0.0 };
        let mask = Tensor::from_vec((0..rows * keys).map(hidden).collect::<Vec<_>>(), (rows, keys), &Device::Cpu)?;
        scores = scores.broadcast_add(&mask)?;
    }
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    weights.matmul(&v)?.transpose(1, 2)
}

/// The gradients of `sum(weights * attend(q, k, v))`.
fn gradients(
    qkv: &[Var; 3],
    weights: &Tensor,
    attend: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
) -> [Tensor; 3] {
    let [q, k, v] = qkv;
    let number = (attend(q, k, v).unwrap() * weights).unwrap().sum_all().unwrap();
    let found = number.backward().unwrap();
    [q, k, v].map(|of| {
        let gradient = found.get(of).unwrap();
        assert_eq!((gradient.dims(), gradient.dtype()), (of.dims(), of.dtype()));
        gradient.clone()
    })
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
}

/// The functions and both operations, with and without a mask, with as many heads of k and v as of q and with fewer. Gradients are sums of
/// some tens of products of numbers up to 2 and 4; f32 rounds each to 2^-24 of itself.
#[test]
fn candle_finds_the_same() {
    emulate_cpu(true);
    for (q_heads, kv_heads, causal) in [(2, 2, false), (4, 2, true), (3, 1, true)] {
        let shapes = [(30, q_heads, 1), (41, kv_heads, 2), (41, kv_heads, 3)];
        let qkv = shapes.map(|(rows, heads, seed)| Var::from_tensor(&values(&[2, rows, heads, 32], seed)).unwrap());
        let weights = values(&[2, 30, q_heads, 32], 4);
        let expected = gradients(&qkv, &weights, |q, k, v| by_candle(q, k, v, 0.2, None, causal));
        let right = causal.then_some(0);
        let op = FlashAttn {
            softmax_scale: 0.2,
            alibi_slopes: None,
            window_size_left: None,
            window_size_right: right,
            softcap: None,
        };
        let first = gradients(&qkv, &weights, |q, k, v| flash_attn(q, k, v, 0.2, causal));
        for (found, expected) in first.iter().zip(&expected) {
            let difference = largest_difference(found, expected);
            assert!(difference < 1e-4, "{q_heads} {kv_heads} {causal}: {difference}");
        }
        for again in [
            gradients(&qkv, &weights, |q, k, v| v3::flash_attn(q, k, v, 0.2, causal, false)),
            gradients(&qkv, &weights, |q, k, v| flash_attn_windowed(q, k, v, 0.2, None, right)),
            // The operation itself, which computes the log-sum-exp again.
            gradients(&qkv, &weights, |q, k, v| q.apply_op3(k, v, op.clone())),
        ] {
            // To the bit: the order of every sum is fixed.
            assert_eq!(again.each_ref().map(f64s), first.each_ref().map(f64s));
        }
    }
}

/// f16 and bf16, tensors in candle's usual order of axes (batch, head, row, dim), transposed: by the rule of the reference, with
/// FlashAttention's factors for gradients. 2 for dq, and 3 for the sums over a group.
#[test]
fn half_precision_is_within_the_rule() {
    emulate_cpu(true);
    for (dtype, of) in [(DType::F16, ferroflash::DType::F16), (DType::BF16, ferroflash::DType::Bf16)] {
        let [q, k, v, dout] = [(4, 150, 1), (2, 160, 2), (2, 160, 3), (4, 150, 4)].map(|(heads, rows, seed)| {
            Var::from_tensor(&values(&[1, heads, rows, 64], seed).to_dtype(dtype).unwrap()).unwrap()
        });
        let by_row = |t: &Tensor| t.transpose(1, 2);
        let qkv = [q, k, v];
        let weights = dout.as_detached_tensor().transpose(1, 2).unwrap();
        let found = gradients(&qkv, &weights, |q, k, v| flash_attn(&by_row(q)?, &by_row(k)?, &by_row(v)?, 0.125, true));
        let sequences = Sequences::Uniform { batch: 1, q_rows: 150, kv_rows: 160 };
        let problem = Problem::new(sequences, 4, 2, 64, of);
        let attention = Attention::new().causal().with_scale(0.125);
        let [q, k, v] = qkv.each_ref().map(|t| f64s(&by_row(t).unwrap()));
        let (inputs, dout) = ([&q[..], &k, &v], f64s(&weights));
        let exact = reference::backward(inputs, &dout, None, problem, &attention).unwrap();
        let rounded = reference::backward_rounded(inputs, &dout, None, problem, &attention).unwrap();
        let [dq, dk, dv] = found.map(|gradient| f64s(&by_row(&gradient).unwrap()));
        for (name, found, exact, rounded, factor) in [
            ("dq", dq, exact.dq, rounded.dq, 2.0),
            ("dk", dk, exact.dk, rounded.dk, 3.0),
            ("dv", dv, exact.dv, rounded.dv, 3.0),
        ] {
            let [error, of_precision] = [&found, &rounded].map(|values| {
                values
                    .iter()
                    .zip(&exact)
                    .map(|(x, y)| (x - y).abs())
                    .fold(0.0f64, |a, b| if b > a || b.is_nan() { b } else { a })
            });
            assert!(
                error <= factor * of_precision + 1e-5,
                "{dtype:?} {name}: off by {error}, the type by {of_precision}"
            );
        }
    }
}

/// The number depends on the result through a transposition, so that the gradient comes with another order of axes; through a broadcast
/// sum, so that it repeats; and an input is used twice.
#[test]
fn gradients_of_any_layout() {
    emulate_cpu(true);
    let x = Var::from_tensor(&values(&[1, 20, 2, 16], 1)).unwrap();
    let column = values(&[1, 2, 16, 20], 2);
    let of = |attend: &dyn Fn(&Tensor) -> Result<Tensor>| {
        let out = attend(&x).unwrap();
        let turned = (out.permute((0, 2, 3, 1)).unwrap() * &column).unwrap().sum_all().unwrap();
        let repeated = out.sum_keepdim(3).unwrap().sqr().unwrap().sum_all().unwrap();
        (turned + repeated).unwrap().backward().unwrap().get(&x).unwrap().clone()
    };
    let found = of(&|x| flash_attn(x, x, x, 0.3, true));
    let expected = of(&|x| by_candle(x, x, x, 0.3, None, true));
    let scale = expected.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    let difference = largest_difference(&found, &expected);
    assert!(difference < 1e-5 * scale, "{difference} of {scale}");
}

/// Only what is a variable gets a gradient; without one nothing is recorded.
#[test]
fn only_what_is_wanted() {
    emulate_cpu(true);
    let (q, k) = (values(&[1, 5, 2, 16], 1), Var::from_tensor(&values(&[1, 7, 2, 16], 2)).unwrap());
    let out = flash_attn(&q, &k, &values(&[1, 7, 2, 16], 3), 0.3, false).unwrap();
    let found = out.sum_all().unwrap().backward().unwrap();
    assert!(found.get(&k).is_some_and(|gradient| f64s(gradient).iter().any(|&x| x != 0.0)) && found.get(&q).is_none());
    assert!(!flash_attn(&q, &q, &q, 0.3, false).unwrap().track_op());
}

/// A strong softcap, which bends most scores, and none.
#[test]
fn a_softcap_has_gradients() {
    emulate_cpu(true);
    let qkv =
        [(30, 1), (41, 2), (41, 3)].map(|(rows, seed)| Var::from_tensor(&values(&[1, rows, 2, 64], seed)).unwrap());
    let weights = values(&[1, 30, 2, 64], 4);
    for (given, softcap) in [(2.5, Some(2.5)), (0.0, None)] {
        let expected = gradients(&qkv, &weights, |q, k, v| by_candle(q, k, v, 0.2, softcap, true));
        let found = gradients(&qkv, &weights, |q, k, v| {
            flash_attn_alibi_windowed_softcap(q, k, v, None, 0.2, None, Some(0), given)
        });
        for (found, expected) in found.iter().zip(&expected) {
            let difference = largest_difference(found, expected);
            assert!(difference < 1e-4, "{softcap:?}: {difference}");
        }
    }
}
