//! The functions on candle's tensors on the first GPU, and their gradients, compared with the f64 reference. The exit status is 1 when a result is outside of the
//! tolerance.

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_ferroflash::{flash_attn_alibi_windowed_softcap, v3};
use ferroflash::reference::{self, Comparison};
use ferroflash::{Attention, Problem, Sequences};

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

/// Whether the gradients that candle's `backward` finds are within the tolerance: FlashAttention's factors, 2 for dq and 3 for sums over groups.
fn check_gradients(qkv: &[Tensor; 3], scale: f32) -> Result<bool> {
    let [q, k, v] = qkv.each_ref().map(Var::from_tensor);
    let (q, k, v) = (q?, k?, v?);
    let dout = q.randn_like(0.0, 1.0)?;
    let found = (v3::flash_attn(&q, &k, &v, scale, true, false)? * &dout)?.sum_all()?.backward()?;
    let (problem, attention) = (problem(&q, &k)?, Attention::new().causal().with_scale(scale));
    let (inputs, dout) = ([f64s(&q)?, f64s(&k)?, f64s(&v)?], f64s(&dout)?);
    let inputs = inputs.each_ref().map(|values| &values[..]);
    let exact = reference::backward(inputs, &dout, None, problem, &attention).map_err(candle_core::Error::wrap)?;
    let rounded =
        reference::backward_rounded(inputs, &dout, None, problem, &attention).map_err(candle_core::Error::wrap)?;
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
        println!("{name}: {problem}: off by {error:.3e}, the type by {of_precision:.3e}");
        fine &= error <= factor * of_precision + 1e-5;
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
                fine &= check_gradients(&qkv, scale)?;
            }
        }
    }
    println!("{}", if fine { "all within" } else { "OUTSIDE" });
    std::process::exit(i32::from(!fine))
}
