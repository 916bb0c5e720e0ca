//! Packed CPU tensors on the emulator, against candle's own operations on each sequence and the f64 reference.
#![cfg(feature = "emulator")]

use candle_core::{D, DType, Device, Tensor};
use candle_ferroflash::{
    emulate_cpu, flash_attn_varlen, flash_attn_varlen_alibi_windowed_softcap, flash_attn_varlen_paged_windowed,
    flash_attn_varlen_windowed, v3,
};
use ferroflash::reference::{self, Comparison, SequenceRows};
use ferroflash::{Attention, Sizes};

/// Rows of q and keys of each sequence.
const LENGTHS: [[usize; 2]; 6] = [[40, 57], [0, 20], [33, 0], [70, 31], [5, 90], [64, 64]];

/// Values of a fixed pattern, which repeats nowhere in these shapes: the fractional parts of multiples of an irrational number.
fn values(shape: &[usize], seed: usize) -> Tensor {
    let count = shape.iter().product::<usize>();
    let value = |i: usize| ((i + 7919 * seed) as f64 * 0.618_033_988_749_894_9).fract() as f32 * 4.0 - 2.0;
    Tensor::from_vec((0..count).map(value).collect(), shape, &Device::Cpu).unwrap()
}

fn f64s(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// First row of each sequence, and the end of the last.
fn starts(side: usize) -> Vec<u32> {
    let mut starts = vec![0];
    for lengths in LENGTHS {
        starts.push(starts[starts.len() - 1] + lengths[side] as u32);
    }
    starts
}

fn numbers(numbers: &[u32]) -> Tensor {
    Tensor::new(numbers, &Device::Cpu).unwrap()
}

/// The longest of each side.
fn longest() -> [usize; 2] {
    [0, 1].map(|side| LENGTHS.iter().map(|lengths| lengths[side]).max().unwrap())
}

/// Packed q, k and v, of 4 and 2 heads.
fn packed(dtype: DType, dim: usize) -> [Tensor; 3] {
    let [q_rows, kv_rows] = [0, 1].map(|side| starts(side)[LENGTHS.len()] as usize);
    [(4, q_rows, 1), (2, kv_rows, 2), (2, kv_rows, 3)]
        .map(|(heads, rows, seed)| values(&[rows, heads, dim], seed).to_dtype(dtype).unwrap())
}

/// The result against the reference of all sequences, by its tolerance rule.
fn check(out: &Tensor, [q, k, v]: [&Tensor; 3], attention: &Attention) {
    assert_eq!((out.dims(), out.dtype(), out.is_contiguous()), (q.dims(), q.dtype(), true));
    let (_, q_heads, head_dim) = q.dims3().unwrap();
    let kv_heads = k.dim(1).unwrap();
    let dtype = match q.dtype() {
        DType::F16 => ferroflash::DType::F16,
        DType::BF16 => ferroflash::DType::Bf16,
        _ => ferroflash::DType::F32,
    };
    // Batch and rows are those of the sequences.
    let sizes = Sizes { batch: 1, q_rows: 1, kv_rows: 1, q_heads, kv_heads, head_dim, dtype };
    let [q_starts, kv_starts] = [0, 1].map(|side| starts(side).into_iter().map(|row| row as usize).collect::<Vec<_>>());
    let sequences: Vec<_> = (0..LENGTHS.len())
        .map(|b| SequenceRows { q: q_starts[b]..q_starts[b + 1], kv: (kv_starts[b]..kv_starts[b + 1]).collect() })
        .collect();
    let tensors = [q, k, v].map(f64s);
    let tensors = tensors.each_ref().map(|tensor| &tensor[..]);
    let exact = reference::forward_sequences(tensors, &sequences, sizes, attention).unwrap();
    let rounded = reference::forward_sequences_rounded(tensors, &sequences, sizes, attention).unwrap();
    let comparison = Comparison::new(&f64s(out), &exact.out, &rounded.out);
    assert!(comparison.within, "{comparison}");
}

/// One sequence by candle's operations, in f32: `softmax(scale q k^T + mask) v`, for as many heads of k and v as of q.
fn by_candle(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, causal: bool) -> candle_core::Result<Tensor> {
    let [q, k, v] = [q, k, v].map(|t| t.to_dtype(DType::F32).and_then(|t| t.transpose(0, 1)?.contiguous()));
    let (q, k, v) = (q?, k?, v?);
    let mut scores = (q.matmul(&k.t()?)? * scale)?;
    if causal {
        let (rows, keys) = (q.dim(1)?, k.dim(1)?);
        let hidden = |i: usize| if i % keys + rows > i / keys + keys { f32::NEG_INFINITY } else { 0.0 };
        let mask = Tensor::from_vec((0..rows * keys).map(hidden).collect::<Vec<_>>(), (rows, keys), &Device::Cpu)?;
        scores = scores.broadcast_add(&mask)?;
    }
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    weights.matmul(&v)?.transpose(0, 1)
}

#[test]
fn candle_computes_the_same_for_each_sequence() {
    emulate_cpu(true);
    let [q, _, _] = packed(DType::F32, 64);
    let [_, k, v] = packed(DType::F32, 64).map(|t| Tensor::cat(&[&t, &t], 1).unwrap());
    let (at, kv_at, [longest_q, longest_k]) = (numbers(&starts(0)), numbers(&starts(1)), longest());
    for causal in [false, true] {
        let right = causal.then_some(0);
        for out in [
            flash_attn_varlen(&q, &k, &v, &at, &kv_at, longest_q, longest_k, 0.125, causal).unwrap(),
            flash_attn_varlen_windowed(&q, &k, &v, &at, &kv_at, longest_q, longest_k, 0.125, None, right).unwrap(),
            v3::flash_attn_varlen(&q, &k, &v, &at, &kv_at, longest_q, longest_k, 0.125, causal, true).unwrap(),
        ] {
            for (b, [rows, keys]) in LENGTHS.into_iter().enumerate() {
                let part =
                    |tensor: &Tensor, side: usize, count| tensor.narrow(0, starts(side)[b] as usize, count).unwrap();
                let found = part(&out, 0, rows);
                // The first rows of a causal sequence with fewer keys see none, and are 0: candle's softmax has no answer for them.
                let blind = if causal {
                    rows.saturating_sub(keys)
                } else if keys == 0 {
                    rows
                } else {
                    0
                };
                assert!(f64s(&found.narrow(0, 0, blind).unwrap()).iter().all(|&x| x == 0.0));
                let seeing = rows - blind;
                if seeing == 0 {
                    continue;
                }
                let (k, v) = (part(&k, 1, keys), part(&v, 1, keys));
                let q = part(&q, 0, rows).narrow(0, blind, seeing).unwrap();
                let expected = by_candle(&q, &k, &v, 0.125, causal).unwrap();
                let difference = (found.narrow(0, blind, seeing).unwrap() - expected).unwrap().abs().unwrap();
                let difference = difference.max_all().unwrap().to_scalar::<f32>().unwrap();
                assert!(difference < 1e-5, "causal {causal}, sequence {b}: {difference}");
            }
        }
    }
}

#[test]
fn types_windows_and_grouped_heads() {
    emulate_cpu(true);
    let (at, kv_at, [longest_q, longest_k]) = (numbers(&starts(0)), numbers(&starts(1)), longest());
    for dtype in [DType::F16, DType::BF16, DType::F32] {
        for dim in [64, 40] {
            let [q, k, v] = packed(dtype, dim);
            let scale = 1.0 / (dim as f32).sqrt();
            let (q_l, k_l) = (longest_q, longest_k);
            let out = v3::flash_attn_varlen_windowed(&q, &k, &v, &at, &kv_at, q_l, k_l, scale, None, Some(0), false);
            check(&out.unwrap(), [&q, &k, &v], &Attention::new().causal().with_scale(scale));
            let capped = flash_attn_varlen_alibi_windowed_softcap(
                &q,
                &k,
                &v,
                None,
                &at,
                &kv_at,
                q_l,
                k_l,
                0.25,
                Some(20),
                Some(3),
                5.0,
            );
            let attention = Attention::new().window(Some(20), Some(3)).with_scale(0.25).with_softcap(5.0);
            check(&capped.unwrap(), [&q, &k, &v], &attention);
        }
    }
}

/// Tensors inside of larger ones, numbers of either type and in a part of a tensor.
#[test]
fn layouts() {
    emulate_cpu(true);
    let [q, k, v] = packed(DType::F16, 64);
    let [longest_q, longest_k] = longest();
    let inside = |tensor: &Tensor| {
        let by_head = tensor.transpose(0, 1).unwrap().contiguous().unwrap().transpose(0, 1).unwrap();
        let wide = Tensor::cat(&[tensor, tensor], 2).unwrap().narrow(2, 64, 64).unwrap();
        [by_head, wide]
    };
    let part = numbers(&[&[7], &starts(0)[..], &[9]].concat()).narrow(0, 1, LENGTHS.len() + 1).unwrap();
    let signed = numbers(&starts(1)).to_dtype(DType::I32).unwrap();
    let attend = |q: &Tensor, k: &Tensor, v: &Tensor, at: &Tensor, kv_at: &Tensor| {
        f64s(&flash_attn_varlen(q, k, v, at, kv_at, longest_q, longest_k, 0.125, true).unwrap())
    };
    let expected = attend(&q, &k, &v, &numbers(&starts(0)), &numbers(&starts(1)));
    for (q, (k, v)) in inside(&q).iter().zip(inside(&k).iter().zip(&inside(&v))) {
        let found = attend(q, k, v, &part, &signed);
        let first = found.iter().zip(&expected).position(|(a, b)| a != b);
        assert_eq!(first, None, "{:?}", first.map(|at| (found[at], expected[at], found.len())));
    }
}

/// Pages in an order of their own, NaN wherever nothing is in use, and numbers behind the pages of a sequence that would be far outside.
#[test]
fn pages() {
    emulate_cpu(true);
    let (at, kv_at, [longest_q, longest_k]) = (numbers(&starts(0)), numbers(&starts(1)), longest());
    let [q, k, v] = packed(DType::F16, 64);
    for page_rows in [32, 7] {
        let width = longest_k.div_ceil(page_rows) + 1;
        let page = |b: usize, index: usize| (b * width + index) * 5 % (LENGTHS.len() * width);
        // 5 has to have no factor in common with the number of pages.
        assert_ne!(LENGTHS.len() * width % 5, 0);
        let mut table = vec![2_147_480_000u32; LENGTHS.len() * width];
        let row = 2 * 64;
        let mut memory = [&k, &v].map(|_| vec![f32::NAN; LENGTHS.len() * width * page_rows * row]);
        for (b, [_, keys]) in LENGTHS.into_iter().enumerate() {
            for key in 0..keys {
                table[b * width + key / page_rows] = page(b, key / page_rows) as u32;
                let to = (page(b, key / page_rows) * page_rows + key % page_rows) * row;
                for (memory, tensor) in memory.iter_mut().zip([&k, &v]) {
                    let from = tensor.narrow(0, starts(1)[b] as usize + key, 1).unwrap().to_dtype(DType::F32).unwrap();
                    memory[to..to + row].copy_from_slice(&from.flatten_all().unwrap().to_vec1::<f32>().unwrap());
                }
            }
        }
        let shape = (LENGTHS.len() * width, page_rows, 2, 64);
        let memory =
            memory.map(|data| Tensor::from_vec(data, shape, &Device::Cpu).unwrap().to_dtype(DType::F16).unwrap());
        let [k_pages, v_pages] = &memory;
        let table = numbers(&table).reshape((LENGTHS.len(), width)).unwrap();
        for table in [table.clone(), table.to_dtype(DType::I32).unwrap()] {
            let out = flash_attn_varlen_paged_windowed(
                &q,
                k_pages,
                v_pages,
                &at,
                &kv_at,
                &table,
                None,
                longest_q,
                longest_k,
                0.125,
                Some(30),
                Some(0),
                page_rows,
                Some(8.0),
            );
            let attention = Attention::new().window(Some(30), Some(0)).with_scale(0.125).with_softcap(8.0);
            check(&out.unwrap(), [&q, &k, &v], &attention);
        }
    }
}

/// Rows that no sequence has are 0.
#[test]
fn rows_of_no_sequence() {
    emulate_cpu(true);
    let [q, k, v] = packed(DType::F16, 64);
    let at = numbers(&[3, 40]);
    let out = f64s(&flash_attn_varlen(&q, &k, &v, &at, &at, 37, 37, 0.125, true).unwrap());
    let row = 4 * 64;
    assert!(out[..3 * row].iter().chain(&out[40 * row..]).all(|&x| x == 0.0));
    assert!(out[3 * row..40 * row].iter().all(|&x| x != 0.0));
}

/// Gradients of all sequences against the reference, by the rule with FlashAttention's factors; rows of no sequence get 0.
#[test]
fn gradients() {
    emulate_cpu(true);
    for (dtype, of) in [(DType::F16, ferroflash::DType::F16), (DType::F32, ferroflash::DType::F32)] {
        let [q, k, v] = packed(dtype, 64).map(|tensor| candle_core::Var::from_tensor(&tensor).unwrap());
        let [q_starts, kv_starts] = [0, 1].map(|side| numbers(&starts(side)));
        let [longest_q, longest_kv] = longest();
        let out = flash_attn_varlen(&q, &k, &v, &q_starts, &kv_starts, longest_q, longest_kv, 0.125, true).unwrap();
        let dout = values(q.dims(), 4).to_dtype(dtype).unwrap();
        let found = (out * &dout).unwrap().sum_all().unwrap().backward().unwrap();
        let found = [&q, &k, &v].map(|of| f64s(found.get(of).unwrap()));
        let sizes = Sizes { batch: 1, q_rows: 1, kv_rows: 1, q_heads: 4, kv_heads: 2, head_dim: 64, dtype: of };
        let rows = |side: usize, b: usize| starts(side)[b] as usize..starts(side)[b + 1] as usize;
        let sequences: Vec<_> =
            (0..LENGTHS.len()).map(|b| SequenceRows { q: rows(0, b), kv: rows(1, b).collect() }).collect();
        let tensors = [&*q, &*k, &*v].map(f64s);
        let tensors = tensors.each_ref().map(|tensor| &tensor[..]);
        let attention = Attention::new().causal();
        let (exact, rounded) = {
            use reference::{backward_sequences, backward_sequences_rounded};
            let dout = f64s(&dout);
            let exact = backward_sequences(tensors, &dout, None, &sequences, sizes, &attention).unwrap();
            (exact, backward_sequences_rounded(tensors, &dout, None, &sequences, sizes, &attention).unwrap())
        };
        let exact = [exact.dq, exact.dk, exact.dv];
        for (i, rounded) in [rounded.dq, rounded.dk, rounded.dv].iter().enumerate() {
            let bound = [2.0, 3.0, 3.0][i] * reference::max_abs_difference(rounded, &exact[i]) + 1e-5;
            let error = reference::max_abs_difference(&found[i], &exact[i]);
            assert!(error <= bound, "gradient {i} in {dtype:?} is off by {error:e}, not {bound:e}");
        }
    }
    // The second half of the rows is no sequence's.
    let x = candle_core::Var::from_tensor(&values(&[10, 2, 32], 5)).unwrap();
    let at = numbers(&[0, 2, 5]);
    let out = flash_attn_varlen(&x, &x, &x, &at, &at, 3, 3, 0.2, false).unwrap();
    let found = out.sum_all().unwrap().backward().unwrap();
    let found = f64s(found.get(&x).unwrap());
    let [used, unused] = [&found[..5 * 64], &found[5 * 64..]];
    assert!(used.iter().any(|&x| x != 0.0) && unused.iter().all(|&x| x == 0.0));
}
