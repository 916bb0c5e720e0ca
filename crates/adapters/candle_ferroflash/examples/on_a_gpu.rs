//! The functions on candle's tensors on the first GPU, packed ones too, and their gradients, compared with the f64 reference. The exit status is 1
//! when a result is outside of the tolerance.

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_ferroflash::{flash_attn_alibi, flash_attn_alibi_windowed_softcap, flash_attn_varlen_paged_windowed, v3};
use ferroflash::reference::{self, Comparison, SequenceRows};
use ferroflash::score::ScoreProgram;
use ferroflash::{Attention, Layout, Problem, Sequences, Sizes};

fn f64s(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

/// The problem that tensors `[batch, rows, heads, head_dim]` are.
fn problem(q: &Tensor, k: &Tensor) -> Result<Problem> {
    let ((batch, q_rows, q_heads, head_dim), (_, kv_rows, kv_heads, _)) = (q.dims4()?, k.dims4()?);
    let dtype = match q.dtype() {
        DType::F16 => ferroflash::DType::F16,
        DType::BF16 => ferroflash::DType::Bf16,
        _ => ferroflash::DType::F32,
    };
    Ok(Problem::new(Sequences::Uniform { batch, q_rows, kv_rows }, q_heads, kv_heads, head_dim, dtype))
}

/// Whether `out` is within the tolerance.
fn check(what: &str, out: &Tensor, [q, k, v]: &[Tensor; 3], attention: &Attention) -> Result<bool> {
    let problem = problem(q, k)?;
    let (q, k, v) = (f64s(q)?, f64s(k)?, f64s(v)?);
    let exact = reference::forward(&q, &k, &v, problem, attention).map_err(candle_core::Error::wrap)?;
    let rounded = reference::forward_rounded(&q, &k, &v, problem, attention).map_err(candle_core::Error::wrap)?;
    let comparison = Comparison::new(&f64s(out)?, &exact.out, &rounded.out);
    println!("{what}: {problem}: {comparison}");
    Ok(comparison.within)
}

/// Whether attention with a slope for each head is within the tolerance, and its gradients.
fn check_slopes(qkv: &[Tensor; 3], scale: f32) -> Result<bool> {
    let [q, k, v] = qkv;
    let slopes: Vec<f32> = (1..=q.dim(2)?).map(|head| (-(head as f32)).exp2()).collect();
    let of_heads = Tensor::new(&slopes[..], q.device())?;
    let out = flash_attn_alibi(q, k, v, &of_heads, scale, true)?;
    // The reference reads the tensors of a program from a device; the emulator is one that stays out of the way.
    let there = ferroflash::Device::emulator().map_err(candle_core::Error::wrap)?;
    let slopes = ferroflash::Tensor::from_slice(&there, &slopes, [1, slopes.len()], Layout::RowMajor);
    let slopes = slopes.map_err(candle_core::Error::wrap)?;
    let program = ScoreProgram::alibi().bind(&[("slopes", slopes.view().into())]).map_err(candle_core::Error::wrap)?;
    let attention = Attention::new().causal().with_scale(scale).with_program(&program);
    let attend = |q: &Tensor, k: &Tensor, v: &Tensor| flash_attn_alibi(q, k, v, &of_heads, scale, true);
    Ok(check("slopes", &out, qkv, &attention)? & check_gradients("slopes", qkv, &attention, attend)?)
}

/// Whether the gradients that candle's `backward` finds are within the tolerance: FlashAttention's factors, 2 for dq and 3 for sums over groups.
fn check_gradients(
    what: &str,
    qkv: &[Tensor; 3],
    attention: &Attention,
    attend: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
) -> Result<bool> {
    let [q, k, v] = qkv.each_ref().map(Var::from_tensor);
    let (q, k, v) = (q?, k?, v?);
    let dout = q.randn_like(0.0, 1.0)?;
    let found = (attend(&q, &k, &v)? * &dout)?.sum_all()?.backward()?;
    let problem = problem(&q, &k)?;
    let (inputs, dout) = ([f64s(&q)?, f64s(&k)?, f64s(&v)?], f64s(&dout)?);
    let inputs = inputs.each_ref().map(|values| &values[..]);
    let exact = reference::backward(inputs, &dout, None, problem, attention).map_err(candle_core::Error::wrap)?;
    let rounded =
        reference::backward_rounded(inputs, &dout, None, problem, attention).map_err(candle_core::Error::wrap)?;
    let largest = |a: &[f64], b: &[f64]| {
        let worse = |most: f64, x: f64| if x > most || x.is_nan() { x } else { most };
        a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, worse)
    };
    let mut fine = true;
    for (name, of, exact, rounded, factor) in [
        ("dq", &q, exact.dq, rounded.dq, 2.0),
        ("dk", &k, exact.dk, rounded.dk, 3.0),
        ("dv", &v, exact.dv, rounded.dv, 3.0),
    ] {
        let gradient = found.get(of).expect("a variable has a gradient");
        let (error, of_precision) = (largest(&f64s(gradient)?, &exact), largest(&rounded, &exact));
        println!("{what}: {name}: {problem}: off by {error:.3e}, the type by {of_precision:.3e}");
        fine &= error <= factor * of_precision + 1e-5;
    }
    Ok(fine)
}

/// Rows of q and keys of packed sequences.
const LENGTHS: [[u32; 2]; 5] = [[100, 130], [0, 20], [33, 0], [1, 300], [200, 70]];
/// Rows of a page.
const PAGE_ROWS: usize = 32;

/// Whether packed sequences are within the tolerance, and the same sequences in pages.
fn check_packed(device: &Device, dtype: DType, head_dim: usize) -> Result<bool> {
    let [starts, kv_starts] = [0, 1].map(|side| {
        LENGTHS.iter().fold(vec![0u32], |mut starts, lengths| {
            starts.push(starts[starts.len() - 1] + lengths[side]);
            starts
        })
    });
    let tensor = |heads, rows: u32| Tensor::randn(0f32, 1.0, (rows as usize, heads, head_dim), device)?.to_dtype(dtype);
    let (rows, keys) = (starts[LENGTHS.len()], kv_starts[LENGTHS.len()]);
    let (q, k, v) = (tensor(8, rows)?, tensor(2, keys)?, tensor(2, keys)?);
    let (at, kv_at) = (Tensor::new(&starts[..], device)?, Tensor::new(&kv_starts[..], device)?);
    let scale = 1.0 / (head_dim as f32).sqrt();

    // Page `p` of all rows, one sequence behind the other, each in whole pages.
    let width = 300usize.div_ceil(PAGE_ROWS);
    let mut table = vec![0u32; LENGTHS.len() * width];
    let mut gathered = Vec::new();
    for (b, lengths) in LENGTHS.iter().enumerate() {
        for index in 0..(lengths[1] as usize).div_ceil(PAGE_ROWS) {
            table[b * width + index] = (gathered.len() / PAGE_ROWS) as u32;
            let row = |row: usize| kv_starts[b] + (index * PAGE_ROWS + row).min(lengths[1] as usize - 1) as u32;
            gathered.extend((0..PAGE_ROWS).map(row));
        }
    }
    let (pages, gathered) = (gathered.len() / PAGE_ROWS, Tensor::new(&gathered[..], device)?);
    let paged = |tensor: &Tensor| tensor.index_select(&gathered, 0)?.reshape((pages, PAGE_ROWS, 2, head_dim));
    let table = Tensor::from_vec(table, (LENGTHS.len(), width), device)?;
    let attention = Attention::new().causal().with_scale(scale);
    let outs = [
        ("packed", v3::flash_attn_varlen(&q, &k, &v, &at, &kv_at, 200, 300, scale, true, false)?),
        (
            "pages",
            flash_attn_varlen_paged_windowed(
                &q,
                &paged(&k)?,
                &paged(&v)?,
                &at,
                &kv_at,
                &table,
                None,
                200,
                300,
                scale,
                None,
                Some(0),
                PAGE_ROWS,
                None,
            )?,
        ),
    ];

    let range = |starts: &[u32], b: usize| starts[b] as usize..starts[b + 1] as usize;
    let sequences: Vec<_> =
        (0..LENGTHS.len()).map(|b| SequenceRows { q: range(&starts, b), kv: range(&kv_starts, b).collect() }).collect();
    let dtype = match dtype {
        DType::F16 => ferroflash::DType::F16,
        DType::BF16 => ferroflash::DType::Bf16,
        _ => ferroflash::DType::F32,
    };
    // Batch and rows are those of the sequences.
    let sizes = Sizes { batch: 1, q_rows: 1, kv_rows: 1, q_heads: 8, kv_heads: 2, head_dim, dtype };
    let tensors = [f64s(&q)?, f64s(&k)?, f64s(&v)?];
    let tensors = tensors.each_ref().map(|tensor| &tensor[..]);
    let exact =
        reference::forward_sequences(tensors, &sequences, sizes, &attention).map_err(candle_core::Error::wrap)?;
    let rounded = reference::forward_sequences_rounded(tensors, &sequences, sizes, &attention)
        .map_err(candle_core::Error::wrap)?;
    let mut fine = true;
    for (what, out) in outs {
        let comparison = Comparison::new(&f64s(&out)?, &exact.out, &rounded.out);
        println!("{what}: {dtype} {head_dim}: {comparison}");
        fine &= comparison.within;
    }
    Ok(fine)
}

fn main() -> Result<()> {
    let mut fine = true;
    // The stream of the thread, and one that waits for nothing else.
    for device in [Device::new_cuda(0)?, Device::new_cuda_with_stream(0)?] {
        for dtype in [DType::F16, DType::BF16, DType::F32] {
            for head_dim in [64, 128, 256] {
                // candle's usual order, (batch, head, row, dim), transposed.
                let tensor = |heads, rows| {
                    Tensor::randn(0f32, 1.0, (2, heads, rows, head_dim), &device)?.to_dtype(dtype)?.transpose(1, 2)
                };
                let qkv = [tensor(8, 300)?, tensor(2, 333)?, tensor(2, 333)?];
                let [q, k, v] = &qkv;
                let scale = 1.0 / (head_dim as f32).sqrt();
                let causal = Attention::new().causal().with_scale(scale);
                fine &= check("v3::flash_attn", &v3::flash_attn(q, k, v, scale, true, true)?, &qkv, &causal)?;
                let out = flash_attn_alibi_windowed_softcap(q, k, v, None, scale, Some(50), Some(9), 10.0)?;
                let window = Attention::new().window(Some(50), Some(9)).with_scale(scale).with_softcap(10.0);
                fine &= check("window and softcap", &out, &qkv, &window)?;
                fine &= check_slopes(&qkv, scale)?;
                let attend = |q: &Tensor, k: &Tensor, v: &Tensor| v3::flash_attn(q, k, v, scale, true, false);
                fine &= check_gradients("gradients", &qkv, &causal, attend)?;
                fine &= check_packed(&device, dtype, head_dim)?;
            }
        }
    }
    println!("{}", if fine { "all within" } else { "OUTSIDE" });
    std::process::exit(i32::from(!fine))
}
