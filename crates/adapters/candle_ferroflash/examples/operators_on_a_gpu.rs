//! Operators on candle's tensors on the first GPU, and their gradients, compared with the emulator, which the tests compare with the f64 references. The
//! exit status is 1 when a result is off by more than a few units of its type.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var};
use candle_ferroflash::emulate_cpu;
use candle_ferroflash::operators::{
    Activation, AdamW, CrossEntropy, Dense, Dropout, LinearCrossEntropy, Norm, Softmax, clip_grad_norm, dense,
    embedding, grad_norm, layer_norm_residual, log_softmax, rms_norm, rope, rope_thd,
};

fn f64s(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

/// Whether the two differ by no more than four units of the type, of their largest number.
fn close(what: &str, found: &Tensor, expected: &Tensor) -> Result<bool> {
    let unit = match expected.dtype() {
        DType::F16 => 2f64.powi(-10),
        DType::BF16 => 2f64.powi(-7),
        _ => 2f64.powi(-17),
    };
    let (found, expected) = (f64s(found)?, f64s(expected)?);
    let largest = expected.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
    // What is no number is larger than all.
    let worse = |most: f64, x: f64| if x > most || x.is_nan() { x } else { most };
    let error = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, worse);
    let fine = found.len() == expected.len() && error <= 4.0 * unit * largest;
    println!("{what}: off by {error:.3e} of {largest:.3e}{}", if fine { "" } else { ": OUTSIDE" });
    Ok(fine)
}

/// Whether `compute` gives the same on the device as in the emulator, from tensors of these shapes, and gradients with respect to them.
fn check<const N: usize>(
    what: &str,
    device: &Device,
    dtype: DType,
    shapes: [&[usize]; N],
    compute: impl Fn(&[Tensor; N]) -> Result<Tensor>,
) -> Result<bool> {
    let what = format!("{what}, {dtype:?}");
    let numbers = shapes.map(|shape| Tensor::randn(0f32, 1.0, shape, &Device::Cpu)?.to_dtype(dtype));
    let mut results: Vec<(Tensor, Vec<Var>, GradStore)> = Vec::new();
    for device in [&Device::Cpu, device] {
        let vars = numbers.iter().map(|numbers| match numbers {
            Ok(numbers) => Var::from_tensor(&numbers.to_device(device)?),
            Err(error) => Err(candle_core::Error::msg(error)),
        });
        let vars = vars.collect::<Result<Vec<_>>>()?;
        let out = compute(&std::array::from_fn(|i| vars[i].as_tensor().clone()))?;
        // Not the sum, of which softmax has no gradient.
        let gradients = out.sqr()?.sum_all()?.backward()?;
        results.push((out, vars, gradients));
    }
    let [(expected, cpu_vars, cpu), (found, gpu_vars, gpu)] = &results[..] else { unreachable!("two devices") };
    let mut fine = close(&what, found, expected)?;
    for (i, (of, on)) in cpu_vars.iter().zip(gpu_vars).enumerate() {
        let (expected, found) = (cpu.get(of).expect("a gradient"), gpu.get(on).expect("a gradient"));
        fine &= close(&format!("{what}: gradient {i}"), found, expected)?;
    }
    Ok(fine)
}

/// Whether steps of AdamW, clipped and with masters, are the same, with a learning rate of the host or of a schedule on the device.
fn check_adamw(device: &Device, dtype: DType, schedule: bool) -> Result<bool> {
    let numbers = (0..70).map(|i| Tensor::randn(0f32, 1.0, 7 * i + 1, &Device::Cpu)?.to_dtype(dtype));
    let numbers = numbers.collect::<Result<Vec<_>>>()?;
    let mut results = Vec::new();
    for device in [&Device::Cpu, device] {
        let vars = numbers.iter().map(|of| Var::from_tensor(&of.to_device(device)?)).collect::<Result<Vec<_>>>()?;
        let mut adamw = AdamW::new_lr(vars.clone(), 0.01)?.with_masters()?;
        let rate = Var::new(0.01f32, device)?;
        if schedule {
            adamw = adamw.with_device_rate(&rate);
        }
        let mut norms = Vec::new();
        for _ in 0..3 {
            let squares = vars.iter().map(|var| var.to_dtype(DType::F32)?.sqr()?.sum_all());
            let squares = squares.collect::<Result<Vec<_>>>()?;
            let mut gradients = Tensor::stack(&squares, 0)?.sum_all()?.backward()?;
            norms.push(adamw.step_clipped(&gradients, 0.5)?);
            clip_grad_norm(&vars, &mut gradients, 0.5)?;
            norms.push(grad_norm(&vars, &gradients)?);
            rate.set(&(rate.as_tensor() * 0.5)?)?;
        }
        let flat = vars.iter().map(|var| var.flatten_all()).collect::<Result<Vec<_>>>()?;
        results.push([Tensor::cat(&flat, 0)?, Tensor::stack(&norms, 0)?]);
    }
    let [[vars, norms], [gpu_vars, gpu_norms]] = &results[..] else { unreachable!("two devices") };
    let what = if schedule { "AdamW with a rate on the device" } else { "AdamW" };
    Ok(close(&format!("{what}, {dtype:?}"), gpu_vars, vars)? & close("norms", gpu_norms, norms)?)
}

fn main() -> Result<()> {
    emulate_cpu(true);
    let mut fine = true;
    // The stream of the thread, and one that waits for nothing else.
    for device in [Device::new_cuda(0)?, Device::new_cuda_with_stream(0)?] {
        for dtype in [DType::F16, DType::BF16, DType::F32] {
            let on = &device;
            fine &= check("rms_norm", on, dtype, [&[40, 1000], &[1000]], |[x, weight]| rms_norm(x, weight, 1e-6))?;
            fine &= check("transposed", on, dtype, [&[5, 9, 64], &[64]], |[x, weight]| {
                Norm::rms(1e-6).with_weight(weight).zero_centred().forward(&x.transpose(0, 1)?)
            })?;
            let shapes: [&[usize]; 4] = [&[40, 256], &[40, 256], &[256], &[256]];
            fine &= check("layer_norm_residual", on, dtype, shapes, |[x, residual, weight, bias]| {
                let (out, sum) = layer_norm_residual(x, residual, weight, bias, 1e-5)?;
                out * sum
            })?;
            fine &= check("dropout and rowscale", on, dtype, shapes, |[x, residual, weight, bias]| {
                let rowscale = (Tensor::arange(0f32, 40.0, x.device())? * 0.125)?;
                let norm =
                    Norm::layer(1e-5).with_weight(weight).with_bias(bias).with_dropout(Dropout::new(0.25, 42, 7));
                let (out, sum) = norm.with_rowscale(&rowscale).forward_residual(x, residual)?;
                out * sum
            })?;
            fine &= check("dropout without a residual", on, dtype, [&[40, 250]], |[x]| {
                Norm::rms(1e-6).with_dropout(Dropout::new(0.5, 42, 8)).forward(x)
            })?;
            fine &= check("softmax", on, dtype, [&[2, 3, 50, 70]], |[x]| Softmax::new().causal(true).forward(x))?;
            // Odd rows of the mask are read in single elements, and those of batch entries are shared.
            for columns in [64, 70] {
                fine &= check("softmax of what is shown", on, dtype, [&[2, 3, 50, columns]], |[x]| {
                    let seen = Tensor::from_iter((0..100 * columns as u32).map(|i| (i * 7 + i / 11) % 3), x.device())?;
                    let seen = seen.ne(0u32)?.reshape((2, 1, 50, columns))?;
                    Softmax::new().with_mask(&seen).forward(x)
                })?;
            }
            fine &= check("log_softmax", on, dtype, [&[30, 500]], |[x]| log_softmax(x, 1))?;
            let loss = CrossEntropy::new().with_ignored(-100).with_smoothing(0.1);
            for signed in [true, false] {
                let targets = |device: &Device| {
                    let targets = (0..30).map(|row| if row % 5 == 0 { -100 } else { 31 * row });
                    match signed {
                        true => Tensor::from_iter(targets, device),
                        false => Tensor::from_iter(targets.map(|target| target as u32), device),
                    }
                };
                fine &= check("cross_entropy", on, dtype, [&[30, 999]], |[logits]| {
                    loss.mean(logits, &targets(logits.device())?)
                })?;
                // In one chunk of the classes and in four, the last of which is no whole one.
                for bytes in [u64::MAX, 1] {
                    let shapes: [&[usize]; 3] = [&[30, 64], &[999, 64], &[999]];
                    fine &= check("linear_cross_entropy", on, dtype, shapes, |[x, weight, bias]| {
                        let layer = LinearCrossEntropy::new(weight).with_bias(bias).with_chunk_bytes(bytes);
                        layer.with_loss(loss.clone().with_scale(0.125)).mean(x, &targets(x.device())?)
                    })?;
                }
            }
            let table = |[a, b]: [usize; 2], device: &Device| {
                let angles = Tensor::arange(0f32, (a * b) as f32, device)?.reshape((a, b))?;
                Ok::<_, candle_core::Error>([angles.cos()?, angles.sin()?])
            };
            fine &= check("rope", on, dtype, [&[2, 4, 20, 64]], |[x]| {
                let [cos, sin] = table([20, 32], x.device())?;
                rope(x, &cos, &sin)
            })?;
            fine &= check("rope_thd", on, dtype, [&[2, 20, 4, 64]], |[x]| {
                let [cos, sin] = table([40, 32], x.device())?;
                rope_thd(x, &cos.reshape((2, 20, 32))?, &sin.reshape((2, 20, 32))?)
            })?;
            fine &= check("embedding", on, dtype, [&[100, 48]], |[rows]| {
                embedding(&Tensor::from_iter((0..300u32).map(|token| token * token % 100), rows.device())?, rows)
            })?;
            let shapes: [&[usize]; 4] = [&[33, 64], &[160, 64], &[160], &[33, 80]];
            fine &= check("dense", on, dtype, shapes, |[x, weight, bias, residual]| {
                let layer = Dense::new(weight).with_bias(bias).with_residual(residual);
                // Of numbers whose gradients f16 holds: three products of sums follow one another.
                layer.with_activation(Activation::SwiGlu).forward(&(x * 0.125)?)
            })?;
            fine &= check("dense of odd rows", on, dtype, [&[33, 63], &[79, 63]], |[x, weight]| {
                dense(x, weight, None, Activation::GeluTanh)
            })?;
            fine &= check_adamw(on, dtype, false)? & check_adamw(on, dtype, true)?;
        }
    }
    println!("{}", if fine { "all within" } else { "OUTSIDE" });
    std::process::exit(i32::from(!fine))
}
