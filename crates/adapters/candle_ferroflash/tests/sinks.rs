//! Sinks of heads on CPU tensors in the emulator, against candle's own operations.
#![cfg(feature = "emulator")]

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_ferroflash::{
    Error, emulate_cpu, flash_attn, flash_attn_sink, flash_attn_sink_windowed, flash_attn_windowed,
};

/// Values of a fixed pattern, which repeats nowhere in these shapes: the fractional parts of multiples of an irrational number.
fn values(shape: &[usize], seed: usize) -> Tensor {
    let count = shape.iter().product::<usize>();
    let value = |i: usize| ((i + 7919 * seed) as f64 * 0.618_033_988_749_894_9).fract() as f32 * 4.0 - 2.0;
    Tensor::from_vec((0..count).map(value).collect(), shape, &Device::Cpu).unwrap()
}

fn f64s(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// From most of the weight to none, and inside of a larger tensor with gaps.
fn sinks() -> Tensor {
    let wide: Vec<f32> = [5.0, 0.5, -3.0, f32::NEG_INFINITY].iter().flat_map(|&sink| [99.0, sink]).collect();
    let wide = Tensor::from_vec(wide, (4, 2), &Device::Cpu).unwrap();
    wide.narrow(1, 1, 1).unwrap().squeeze(1).unwrap()
}

/// The formula by candle's operations, which candle can differentiate: a sink is a score more of each row, whose weight is left out.
fn by_candle(q: &Tensor, k: &Tensor, v: &Tensor, sinks: &Tensor, scale: f64, causal: bool) -> Result<Tensor> {
    let by_head = |t: &Tensor| t.transpose(1, 2)?.contiguous();
    let (q, k, v) = (by_head(q)?, by_head(k)?, by_head(v)?);
    let (batch, heads, rows, keys) = (q.dim(0)?, q.dim(1)?, q.dim(2)?, k.dim(2)?);
    let mut scores = (q.matmul(&k.t()?.contiguous()?)? * scale)?;
    if causal {
        let hidden = |i: usize| if i % keys > i / keys + keys - rows { f32::NEG_INFINITY } else { 0.0 };
        let mask = Tensor::from_vec((0..rows * keys).map(hidden).collect::<Vec<_>>(), (rows, keys), &Device::Cpu)?;
        scores = scores.broadcast_add(&mask)?;
    }
    let sinks = sinks.contiguous()?.reshape((1, heads, 1, 1))?.broadcast_as((batch, heads, rows, 1))?;
    let scores = Tensor::cat(&[&scores, &sinks.contiguous()?], 3)?;
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    weights.narrow(3, 0, keys)?.contiguous()?.matmul(&v)?.transpose(1, 2)
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
}

/// Results, and gradients of q, k and v: f32 rounds each of some tens of products to 2^-24 of itself. Sinks get no gradient.
#[test]
fn candle_computes_the_same() {
    emulate_cpu(true);
    let sinks = Var::from_tensor(&sinks()).unwrap();
    let weights = values(&[2, 30, 4, 32], 4);
    for causal in [false, true] {
        let qkv =
            [(30, 1), (41, 2), (41, 3)].map(|(rows, seed)| Var::from_tensor(&values(&[2, rows, 4, 32], seed)).unwrap());
        let [q, k, v] = &qkv;
        let expected = by_candle(q, k, v, &sinks, 0.2, causal).unwrap();
        let of = |out: &Tensor| (out * &weights).unwrap().sum_all().unwrap().backward().unwrap();
        let theirs = of(&expected);
        for out in [
            flash_attn_sink(q, k, v, &sinks, 0.2, causal),
            flash_attn_sink_windowed(q, k, v, &sinks, 0.2, None, causal.then_some(0)),
        ] {
            let out = out.unwrap();
            assert_eq!((out.dims(), out.dtype(), out.is_contiguous()), (q.dims(), DType::F32, true));
            let difference = largest_difference(&out, &expected);
            assert!(difference < 1e-5, "causal {causal}: {difference}");
            let ours = of(&out);
            for of in &qkv {
                let difference = largest_difference(ours.get(of).unwrap(), theirs.get(of).unwrap());
                assert!(difference < 1e-4, "causal {causal}: {difference}");
            }
            assert!(ours.get(&sinks).is_none() && theirs.get(&sinks).is_some());
        }
    }
}

/// Of minus infinity there is none, to the bit; with a window and in f16.
#[test]
fn minus_infinity_is_none() {
    emulate_cpu(true);
    let [q, k, v] = [(30, 4, 1), (41, 2, 2), (41, 2, 3)]
        .map(|(rows, heads, seed)| values(&[1, rows, heads, 64], seed).to_dtype(DType::F16).unwrap());
    let none = Tensor::full(f32::NEG_INFINITY, 4, &Device::Cpu).unwrap();
    let with = flash_attn_sink(&q, &k, &v, &none, 0.125, true).unwrap();
    assert_eq!(f64s(&with), f64s(&flash_attn(&q, &k, &v, 0.125, true).unwrap()));
    let with = flash_attn_sink_windowed(&q, &k, &v, &none, 0.125, Some(5), Some(2)).unwrap();
    assert_eq!(f64s(&with), f64s(&flash_attn_windowed(&q, &k, &v, 0.125, Some(5), Some(2)).unwrap()));
    let with = flash_attn_sink(&q, &k, &v, &sinks(), 0.125, true).unwrap();
    assert_ne!(f64s(&with), f64s(&flash_attn(&q, &k, &v, 0.125, true).unwrap()));
}

#[test]
fn sinks_that_do_not_fit() {
    emulate_cpu(true);
    let q = values(&[1, 5, 4, 32], 1);
    let refused = |sinks: Tensor, words: &str| {
        let error = flash_attn_sink(&q, &q, &q, &sinks, 0.2, true).unwrap_err();
        let found = Error::find(&error).unwrap_or_else(|| panic!("{error}"));
        assert_eq!(found.to_string(), words);
    };
    let zeros = |heads: usize, dtype| Tensor::zeros(heads, dtype, &Device::Cpu).unwrap();
    refused(zeros(4, DType::F16), "flash-attn-sink expects sinks to hold f32; they hold F16");
    let words = "flash-attn-sink expects sinks of shape (4), one for each head of q; they have shape [3]";
    refused(zeros(3, DType::F32), words);
    let words = "flash-attn-sink expects sinks of shape (4), one for each head of q; they have shape [1, 4]";
    refused(zeros(4, DType::F32).unsqueeze(0).unwrap(), words);
}
