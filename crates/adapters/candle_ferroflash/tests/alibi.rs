//! Slopes of heads on CPU tensors in the emulator, against candle's own operations and the f64 reference.
#![cfg(feature = "emulator")]

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_ferroflash::{
    Error, FlashAttn, emulate_cpu, flash_attn, flash_attn_alibi, flash_attn_alibi_windowed,
    flash_attn_alibi_windowed_softcap, flash_attn_varlen, flash_attn_varlen_alibi, flash_attn_varlen_alibi_windowed,
    flash_attn_varlen_alibi_windowed_softcap, v3,
};
use ferroflash::reference::{self, Comparison, ReferenceGradients, SequenceRows};
use ferroflash::score::ScoreProgram;
use ferroflash::{Attention, Layout, Problem, Sequences, Sizes, Unsupported};

/// Values of a fixed pattern, which repeats nowhere in these shapes: the fractional parts of multiples of an irrational number.
fn values(shape: &[usize], seed: usize) -> Tensor {
    let count = shape.iter().product::<usize>();
    let value = |i: usize| ((i + 7919 * seed) as f64 * 0.618_033_988_749_894_9).fract() as f32 * 4.0 - 2.0;
    Tensor::from_vec((0..count).map(value).collect(), shape, &Device::Cpu).unwrap()
}

fn f64s(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// One for each head, of either sign, and inside of a larger tensor with gaps.
fn slopes() -> (Vec<f32>, Tensor) {
    let slopes = vec![0.5f32, 0.0625, -0.125, 0.0];
    let wide: Vec<f32> = slopes.iter().flat_map(|&slope| [slope, 99.0]).collect();
    let wide = Tensor::from_vec(wide, (4, 2), &Device::Cpu).unwrap();
    (slopes, wide.narrow(1, 0, 1).unwrap().squeeze(1).unwrap())
}

/// `softmax(scale q k^T - slope |i + keys - rows - j| + mask) v` of one batch entry `(rows, heads, dim)` by candle's operations.
fn by_candle([q, k, v]: [&Tensor; 3], slopes: &[f32], scale: f64, causal: bool) -> Result<Tensor> {
    let [q, k, v] = [q, k, v].map(|t| t.transpose(0, 1)?.contiguous());
    let (q, k, v) = (q?, k?, v?);
    let (rows, keys) = (q.dim(1)?, k.dim(1)?);
    let bias = slopes.iter().flat_map(|slope| (0..rows * keys).map(move |i| (slope, i / keys, i % keys)));
    let bias = bias.map(|(slope, row, key)| {
        let distance = (row as f32 + keys as f32 - rows as f32 - key as f32).abs();
        if causal && key + rows > row + keys { f32::NEG_INFINITY } else { -slope * distance }
    });
    let bias = Tensor::from_vec(bias.collect::<Vec<_>>(), (slopes.len(), rows, keys), &Device::Cpu)?;
    let scores = ((q.matmul(&k.t()?)? * scale)? + bias)?;
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    weights.matmul(&v)?.transpose(0, 1)
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
}

/// Rows of q and keys of each packed sequence. No sequence has more rows than keys: candle's softmax has no answer for rows that see none.
const LENGTHS: [[usize; 2]; 4] = [[40, 57], [0, 20], [64, 64], [5, 90]];

/// First row of each sequence, and the end of the last.
fn starts(side: usize) -> Vec<u32> {
    let mut starts = vec![0];
    for lengths in LENGTHS {
        starts.push(starts[starts.len() - 1] + lengths[side] as u32);
    }
    starts
}

fn numbers(side: usize) -> Tensor {
    Tensor::new(starts(side), &Device::Cpu).unwrap()
}

/// Packed q, k and v.
fn packed(kv_heads: usize, dim: usize, dtype: DType) -> [Tensor; 3] {
    let [q_rows, kv_rows] = [0, 1].map(|side| starts(side)[LENGTHS.len()] as usize);
    [(4, q_rows, 1), (kv_heads, kv_rows, 2), (kv_heads, kv_rows, 3)]
        .map(|(heads, rows, seed)| values(&[rows, heads, dim], seed).to_dtype(dtype).unwrap())
}

/// Every function with slopes, and the operations themselves.
#[test]
fn candle_computes_the_same() {
    emulate_cpu(true);
    let [q, k, v] = [(30, 1), (41, 2), (41, 3)].map(|(rows, seed)| values(&[2, rows, 4, 64], seed));
    let (of_heads, slopes) = slopes();
    for causal in [false, true] {
        let right = causal.then_some(0);
        let op = FlashAttn {
            softmax_scale: 0.125,
            alibi_slopes: Some(slopes.clone()),
            window_size_left: None,
            window_size_right: right,
            softcap: None,
        };
        let outs = [
            flash_attn_alibi(&q, &k, &v, &slopes, 0.125, causal),
            flash_attn_alibi_windowed(&q, &k, &v, &slopes, 0.125, None, right),
            flash_attn_alibi_windowed_softcap(&q, &k, &v, Some(&slopes), 0.125, None, right, 0.0),
            v3::flash_attn_alibi(&q, &k, &v, &slopes, 0.125, causal, true),
            v3::flash_attn_alibi_windowed(&q, &k, &v, &slopes, 0.125, None, right, false),
            q.apply_op3(&k, &v, op),
        ];
        for out in outs.map(Result::unwrap) {
            assert_eq!((out.dims(), out.dtype(), out.is_contiguous()), (q.dims(), DType::F32, true));
            for b in 0..2 {
                let [q, k, v] = [&q, &k, &v].map(|tensor| tensor.get(b).unwrap());
                let expected = by_candle([&q, &k, &v], &of_heads, 0.125, causal).unwrap();
                let difference = largest_difference(&out.get(b).unwrap(), &expected);
                assert!(difference < 1e-5, "causal {causal}: {difference}");
            }
        }
    }
}

/// Distances are counted from the ends of each sequence.
#[test]
fn candle_computes_the_same_for_each_sequence() {
    emulate_cpu(true);
    let [q, k, v] = packed(4, 64, DType::F32);
    let (at, kv_at, (of_heads, s)) = (numbers(0), numbers(1), slopes());
    for causal in [false, true] {
        let right = causal.then_some(0);
        let outs = [
            flash_attn_varlen_alibi(&q, &k, &v, &s, &at, &kv_at, 64, 90, 0.125, causal),
            flash_attn_varlen_alibi_windowed(&q, &k, &v, &s, &at, &kv_at, 64, 90, 0.125, None, right),
            flash_attn_varlen_alibi_windowed_softcap(
                &q,
                &k,
                &v,
                Some(&s),
                &at,
                &kv_at,
                64,
                90,
                0.125,
                None,
                right,
                0.0,
            ),
            v3::flash_attn_varlen_alibi(&q, &k, &v, &s, &at, &kv_at, 64, 90, 0.125, causal, true),
            v3::flash_attn_varlen_alibi_windowed(&q, &k, &v, &s, &at, &kv_at, 64, 90, 0.125, None, right, false),
        ];
        for out in outs.map(Result::unwrap) {
            for (b, [rows, keys]) in LENGTHS.into_iter().enumerate().filter(|(_, [rows, _])| *rows > 0) {
                let part =
                    |tensor: &Tensor, side: usize, count| tensor.narrow(0, starts(side)[b] as usize, count).unwrap();
                let tensors = [part(&q, 0, rows), part(&k, 1, keys), part(&v, 1, keys)];
                let expected = by_candle(tensors.each_ref(), &of_heads, 0.125, causal).unwrap();
                let difference = largest_difference(&part(&out, 0, rows), &expected);
                assert!(difference < 1e-5, "causal {causal}, sequence {b}: {difference}");
            }
        }
    }
}

/// f16 and bf16 with grouped heads, a window and a softcap, which comes before the slopes: by the rule of the reference, uniform and packed.
#[test]
fn types_windows_and_grouped_heads() {
    emulate_cpu(true);
    let (of_heads, slopes) = slopes();
    let there = on_the_emulator(&of_heads);
    let program = ScoreProgram::alibi().bind(&[("slopes", there.view().into())]).unwrap();
    let attention =
        Attention::new().window(Some(20), Some(3)).with_scale(0.25).with_softcap(5.0).with_program(&program);
    for (dtype, of) in [(DType::F16, ferroflash::DType::F16), (DType::BF16, ferroflash::DType::Bf16)] {
        let [q, k, v] = [(4, 80, 1), (2, 90, 2), (2, 90, 3)].map(|(heads, rows, seed)| {
            values(&[2, heads, rows, 64], seed).to_dtype(dtype).unwrap().transpose(1, 2).unwrap()
        });
        let out = flash_attn_alibi_windowed_softcap(&q, &k, &v, Some(&slopes), 0.25, Some(20), Some(3), 5.0).unwrap();
        let problem = Problem::new(Sequences::Uniform { batch: 2, q_rows: 80, kv_rows: 90 }, 4, 2, 64, of);
        let [q, k, v] = [&q, &k, &v].map(f64s);
        let exact = reference::forward(&q, &k, &v, problem, &attention).unwrap();
        let rounded = reference::forward_rounded(&q, &k, &v, problem, &attention).unwrap();
        let comparison = Comparison::new(&f64s(&out), &exact.out, &rounded.out);
        assert!(comparison.within, "{problem}: {comparison}");

        let [q, k, v] = packed(2, 64, dtype);
        let (at, kv_at, s) = (numbers(0), numbers(1), Some(&slopes));
        let out =
            flash_attn_varlen_alibi_windowed_softcap(&q, &k, &v, s, &at, &kv_at, 64, 90, 0.25, Some(20), Some(3), 5.0);
        // Batch and rows are those of the sequences.
        let sizes = Sizes { batch: 1, q_rows: 1, kv_rows: 1, q_heads: 4, kv_heads: 2, head_dim: 64, dtype: of };
        let rows = |side: usize, b: usize| starts(side)[b] as usize..starts(side)[b + 1] as usize;
        let sequences: Vec<_> =
            (0..LENGTHS.len()).map(|b| SequenceRows { q: rows(0, b), kv: rows(1, b).collect() }).collect();
        let tensors = [&q, &k, &v].map(f64s);
        let tensors = tensors.each_ref().map(|tensor| &tensor[..]);
        let exact = reference::forward_sequences(tensors, &sequences, sizes, &attention).unwrap();
        let rounded = reference::forward_sequences_rounded(tensors, &sequences, sizes, &attention).unwrap();
        let comparison = Comparison::new(&f64s(&out.unwrap()), &exact.out, &rounded.out);
        assert!(comparison.within, "packed, {of}: {comparison}");
    }
}

/// Slopes of 0 are no slopes, to the bit where the kernels are the same: what is lowered by 0 is as it was.
#[test]
fn slopes_of_nothing() {
    emulate_cpu(true);
    let [q, k, v] = [(30, 1), (41, 2), (41, 3)].map(|(rows, seed)| values(&[1, rows, 4, 32], seed));
    let none = Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap();
    let (found, plain) = (flash_attn_alibi(&q, &k, &v, &none, 0.2, true), flash_attn(&q, &k, &v, 0.2, true));
    assert!(largest_difference(&found.unwrap(), &plain.unwrap()) < 1e-5);
    let [q, k, v] = packed(4, 32, DType::F32);
    let (at, kv_at) = (numbers(0), numbers(1));
    let found = flash_attn_varlen_alibi(&q, &k, &v, &none, &at, &kv_at, 64, 90, 0.2, true).unwrap();
    let plain = flash_attn_varlen(&q, &k, &v, &at, &kv_at, 64, 90, 0.2, true).unwrap();
    assert!(largest_difference(&found, &plain) < 1e-5);
}

/// What the error of this crate in candle's says.
fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
    let error = result.unwrap_err();
    Error::find(&error).unwrap_or_else(|| panic!("{error}")).to_string()
}

/// Slopes of another type or shape are refused as the original refuses them, before anything is computed.
#[test]
fn bad_slopes() {
    emulate_cpu(true);
    let q = values(&[1, 5, 4, 32], 1);
    let (_, slopes) = slopes();
    let says = |slopes: &Tensor, expected: &str| {
        let of_v3 = expected.replace("flash-attn", "flash-attn-v3");
        assert_eq!(message(flash_attn_alibi(&q, &q, &q, slopes, 0.2, true)), expected);
        assert_eq!(message(v3::flash_attn_alibi_windowed(&q, &q, &q, slopes, 0.2, None, None, true)), of_v3);
        let (rows, at) = (q.squeeze(0).unwrap(), Tensor::new(&[0u32, 5], &Device::Cpu).unwrap());
        let packed = flash_attn_varlen_alibi(&rows, &rows, &rows, slopes, &at, &at, 5, 5, 0.2, true);
        assert_eq!(message(packed), expected.replace("flash-attn", "flash-attn-varlen"));
    };
    let halves = slopes.to_dtype(DType::F16).unwrap();
    says(&halves, "flash-attn expects alibi_slopes to hold f32; it holds F16");
    let three = slopes.narrow(0, 0, 3).unwrap();
    says(&three, "flash-attn expects alibi_slopes of shape (4), one for each head of q; it has shape [3]");
    let rows = slopes.unsqueeze(0).unwrap();
    says(&rows, "flash-attn expects alibi_slopes of shape (4), one for each head of q; it has shape [1, 4]");
}

/// The slopes as ferroflash's program reads them.
fn on_the_emulator(slopes: &[f32]) -> ferroflash::Tensor {
    let device = ferroflash::Device::emulator().unwrap();
    ferroflash::Tensor::from_slice(&device, slopes, [1, slopes.len()], Layout::RowMajor).unwrap()
}

/// The gradients of `sum(dout * out)` with respect to q, k and v.
fn gradients_of(out: Result<Tensor>, dout: &Tensor, qkv: &[Var; 3]) -> [Vec<f64>; 3] {
    let found = (out.unwrap() * dout).unwrap().sum_all().unwrap().backward().unwrap();
    qkv.each_ref().map(|of| {
        let gradient = found.get(of).unwrap();
        assert_eq!((gradient.dims(), gradient.dtype()), (of.dims(), of.dtype()));
        f64s(gradient)
    })
}

/// By the rule of the reference, with FlashAttention's factors for gradients: 2 for dq, and 3 for the sums over a group.
fn check_gradients(found: &[Vec<f64>; 3], exact: ReferenceGradients, rounded: ReferenceGradients, what: &str) {
    let exact = [exact.dq, exact.dk, exact.dv];
    for (i, rounded) in [rounded.dq, rounded.dk, rounded.dv].iter().enumerate() {
        let bound = [2.0, 3.0, 3.0][i] * reference::max_abs_difference(rounded, &exact[i]) + 1e-5;
        let error = reference::max_abs_difference(&found[i], &exact[i]);
        assert!(error <= bound, "gradient {i}, {what}: off by {error:e}, not {bound:e}");
    }
}

const DTYPES: [(DType, ferroflash::DType); 3] = [
    (DType::F16, ferroflash::DType::F16),
    (DType::BF16, ferroflash::DType::Bf16),
    (DType::F32, ferroflash::DType::F32),
];

/// Gradients of q, k and v through slopes, of every function and of the operation itself. Slopes have none.
#[test]
fn gradients() {
    emulate_cpu(true);
    let (of_heads, slopes) = slopes();
    let there = on_the_emulator(&of_heads);
    let program = ScoreProgram::alibi().bind(&[("slopes", there.view().into())]).unwrap();
    let variable = Var::from_tensor(&slopes).unwrap();
    for (dtype, of) in DTYPES {
        let qkv = [(80, 4, 1), (90, 2, 2), (90, 2, 3)].map(|(rows, heads, seed)| {
            Var::from_tensor(&values(&[2, rows, heads, 64], seed).to_dtype(dtype).unwrap()).unwrap()
        });
        let [q, k, v] = &qkv;
        let dout = values(q.dims(), 4).to_dtype(dtype).unwrap();
        let problem = Problem::new(Sequences::Uniform { batch: 2, q_rows: 80, kv_rows: 90 }, 4, 2, 64, of);
        let [exact_q, exact_k, exact_v, exact_dout] = [q, k, v, &dout].map(f64s);
        let inputs = [&exact_q[..], &exact_k, &exact_v];
        for window in [[None, None], [None, Some(0)], [Some(20), Some(3)]] {
            let [left, right] = window;
            let bounds = window.map(|bound| bound.map(|keys| keys as u32));
            let attention = Attention::new().window(bounds[0], bounds[1]).with_scale(0.125).with_program(&program);
            let exact = reference::backward(inputs, &exact_dout, None, problem, &attention).unwrap();
            let rounded = reference::backward_rounded(inputs, &exact_dout, None, problem, &attention).unwrap();
            let first = gradients_of(flash_attn_alibi_windowed(q, k, v, &slopes, 0.125, left, right), &dout, &qkv);
            check_gradients(&first, exact, rounded, &format!("{problem}, {window:?}"));
            if window != [None, Some(0)] || dtype != DType::F16 {
                continue;
            }
            let op = FlashAttn {
                softmax_scale: 0.125,
                alibi_slopes: Some(slopes.clone()),
                window_size_left: left,
                window_size_right: right,
                softcap: None,
            };
            for out in [
                flash_attn_alibi(q, k, v, &variable, 0.125, true),
                flash_attn_alibi_windowed_softcap(q, k, v, Some(&slopes), 0.125, left, right, 0.0),
                v3::flash_attn_alibi(q, k, v, &slopes, 0.125, true, false),
                v3::flash_attn_alibi_windowed(q, k, v, &slopes, 0.125, left, right, false),
                // It computes the log-sum-exp again.
                q.apply_op3(k, v, op),
            ] {
                // To the bit: the order of every sum is fixed.
                assert_eq!(gradients_of(out, &dout, &qkv), first);
            }
        }
    }
    let q = Var::from_tensor(&values(&[1, 5, 4, 32], 1)).unwrap();
    let found = flash_attn_alibi(&q, &q, &q, &variable, 0.2, true).unwrap().sum_all().unwrap().backward().unwrap();
    assert!(found.get(&q).is_some() && found.get(&variable).is_none());
}

/// The same of packed sequences, each with distances of its own.
#[test]
fn gradients_of_each_sequence() {
    emulate_cpu(true);
    let (of_heads, s) = slopes();
    let there = on_the_emulator(&of_heads);
    let program = ScoreProgram::alibi().bind(&[("slopes", there.view().into())]).unwrap();
    let (at, kv_at) = (numbers(0), numbers(1));
    let rows = |side: usize, b: usize| starts(side)[b] as usize..starts(side)[b + 1] as usize;
    let sequences: Vec<_> =
        (0..LENGTHS.len()).map(|b| SequenceRows { q: rows(0, b), kv: rows(1, b).collect() }).collect();
    for (dtype, of) in DTYPES {
        let qkv = packed(2, 64, dtype).map(|tensor| Var::from_tensor(&tensor).unwrap());
        let [q, k, v] = &qkv;
        let dout = values(q.dims(), 4).to_dtype(dtype).unwrap();
        // Batch and rows are those of the sequences.
        let sizes = Sizes { batch: 1, q_rows: 1, kv_rows: 1, q_heads: 4, kv_heads: 2, head_dim: 64, dtype: of };
        let [exact_q, exact_k, exact_v, of_out] = [q, k, v, &dout].map(f64s);
        let inputs = [&exact_q[..], &exact_k, &exact_v];
        for causal in [false, true] {
            let plain = Attention::new().with_scale(0.125).with_program(&program);
            let attention = if causal { plain.causal() } else { plain };
            let exact = reference::backward_sequences(inputs, &of_out, None, &sequences, sizes, &attention).unwrap();
            let rounded =
                reference::backward_sequences_rounded(inputs, &of_out, None, &sequences, sizes, &attention).unwrap();
            let out = flash_attn_varlen_alibi(q, k, v, &s, &at, &kv_at, 64, 90, 0.125, causal);
            let first = gradients_of(out, &dout, &qkv);
            check_gradients(&first, exact, rounded, &format!("packed, {of}, causal {causal}"));
            if causal && dtype == DType::F16 {
                for out in [
                    flash_attn_varlen_alibi_windowed(q, k, v, &s, &at, &kv_at, 64, 90, 0.125, None, Some(0)),
                    v3::flash_attn_varlen_alibi(q, k, v, &s, &at, &kv_at, 64, 90, 0.125, causal, false),
                ] {
                    assert_eq!(gradients_of(out, &dout, &qkv), first);
                }
            }
        }
    }
}

/// Slopes and a softcap together have no gradients: the forward pass computes, and the backward pass is ferroflash's refusal.
#[test]
fn gradients_through_a_softcap_too() {
    emulate_cpu(true);
    let (_, slopes) = slopes();
    let x = Var::from_tensor(&values(&[5, 4, 32], 1)).unwrap();
    let at = Tensor::new(&[0u32, 5], &Device::Cpu).unwrap();
    let (uniform, s) = (x.unsqueeze(0).unwrap(), Some(&slopes));
    for out in [
        flash_attn_alibi_windowed_softcap(&uniform, &uniform, &uniform, s, 0.2, None, Some(0), 5.0),
        flash_attn_varlen_alibi_windowed_softcap(&x, &x, &x, s, &at, &at, 5, 5, 0.2, None, Some(0), 5.0),
    ] {
        let error = out.unwrap().sum_all().unwrap().backward().unwrap_err();
        let refused = Unsupported::CappedProgram { program: "alibi".to_owned() };
        assert!(
            matches!(Error::find(&error), Some(Error::Ferroflash(ferroflash::Error::Unsupported(found))) if *found == refused),
            "{error}"
        );
    }
}
