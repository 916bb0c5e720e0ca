//! Dense layers.

use crate::support::{DTYPES, Laid, Lie, check, f64s, values, weighted};
use candle_core::{DType, Device, Tensor, Var};
use candle_ferroflash::emulate_cpu;
use candle_ferroflash::operators::{Activation, Dense, dense, linear};
use ferroflash::reference::ReferenceDense;

/// A layer, and how its tensors lie.
#[derive(Clone, Copy, Debug)]
struct Case<'a> {
    /// Axes of rows.
    outer: &'a [usize],
    depth: usize,
    columns: usize,
    activation: Activation,
    bias: bool,
    residual: bool,
    /// How x and weights lie.
    lie: Lie,
}

impl Case<'_> {
    /// Forward and backward, compared with the reference.
    fn check(&self, (dtype, of): (DType, ferroflash::DType)) {
        let Case { outer, depth, columns, activation, lie, .. } = *self;
        let name = |what: &str| format!("{what} of {dtype:?} {self:?}");
        let sums = if activation.is_gated() { 2 * columns } else { columns };
        let with = |last: usize| outer.iter().copied().chain([last]).collect::<Vec<_>>();
        let x = Laid::new(&values(&with(depth), 1, dtype), lie);
        let weight = Laid::new(&values(&[sums, depth], 2, dtype), lie);
        let bias = self.bias.then(|| Laid::new(&values(&[sums], 3, dtype), Lie::Whole));
        let residual = self.residual.then(|| Laid::new(&values(&with(columns), 4, dtype), lie));
        let mut layer = Dense::new(&weight.view()).with_activation(activation);
        if let Some(bias) = &bias {
            layer = layer.with_bias(&bias.view());
        }
        if let Some(residual) = &residual {
            layer = layer.with_residual(&residual.view());
        }
        let out = layer.forward(&x.view()).unwrap();
        assert_eq!((out.dims(), out.dtype()), (with(columns).as_slice(), dtype), "{}", name("out"));
        let dout = values(&with(columns), 5, dtype);
        let gradients = weighted(&out, &dout).backward().unwrap();

        let numbers = |laid: &Option<Laid>| laid.as_ref().map(|laid| f64s(&laid.view()));
        let (biases, added) = (numbers(&bias), numbers(&residual));
        let (numbers, weights, dout) = (f64s(&x.view()), f64s(&weight.view()), f64s(&dout));
        let reference = ReferenceDense { depth, weight: &weights, bias: biases.as_deref(), activation };
        let exact = reference.forward(&numbers, added.as_deref()).unwrap().out;
        let rounded = reference.forward_rounded(&numbers, added.as_deref(), of).unwrap().out;
        // Sums of products of up to 2 by 2; of a gated one, what becomes of it has another as a factor.
        let unit = (depth as f64).sqrt();
        check(&name("out"), &f64s(&out), &exact, &rounded, unit);
        let exact = reference.backward(&numbers, None, &dout).unwrap();
        let rounded = reference.backward_rounded(&numbers, None, &dout, of).unwrap();
        let through = if activation.is_gated() { unit } else { 1.0 };
        let rows = outer.iter().product::<usize>() as f64;
        let [over_sums, over_rows] = [sums as f64, rows].map(|count| count.sqrt() * through);
        check(&name("dx"), &x.gradient(&gradients), &exact.dx, &rounded.dx, over_sums);
        check(&name("dweight"), &weight.gradient(&gradients), &exact.dweight, &rounded.dweight, over_rows);
        if let Some(bias) = &bias {
            check(&name("dbias"), &bias.gradient(&gradients), &exact.dbias, &rounded.dbias, over_rows);
        }
        if let Some(residual) = &residual {
            // To the bit.
            assert_eq!(residual.gradient(&gradients), dout, "{}", name("dresidual"));
        }
    }
}

/// With and without biases and residual, in shapes whose rows are whole vectors and in others.
#[test]
fn every_activation_in_every_type() {
    emulate_cpu(true);
    let shapes: [(&[usize], usize, usize, Lie); 4] = [
        (&[17], 40, 24, Lie::Whole),
        (&[3, 7], 33, 19, Lie::Gaps(1, 2)),
        (&[2, 2, 9], 64, 72, Lie::Gaps(8, 8)),
        (&[], 16, 8, Lie::Whole),
    ];
    for dtype in DTYPES {
        for (i, activation) in Activation::ALL.into_iter().enumerate() {
            for (j, (outer, depth, columns, lie)) in shapes.into_iter().enumerate() {
                let (bias, residual) = ((i + j) % 2 == 0, (i / 2 + j / 2) % 2 == 0);
                Case { outer, depth, columns, activation, bias, residual, lie }.check(dtype);
            }
        }
    }
}

/// Whatever a gradient is wanted of, alone or with others, in one operation of the graph or in two.
#[test]
fn gradients_of_what_is_a_variable() {
    emulate_cpu(true);
    let shapes: [&[usize]; 4] = [&[5, 24], &[10, 24], &[10], &[5, 5]];
    let tensors: [Tensor; 4] = std::array::from_fn(|i| values(shapes[i], i, DType::F32));
    let dout = values(&[5, 5], 9, DType::F32);
    let run = |wanted: usize| {
        let vars: [Tensor; 4] = std::array::from_fn(|i| match wanted >> i & 1 {
            1 => Var::from_tensor(&tensors[i]).unwrap().into_inner(),
            _ => tensors[i].clone(),
        });
        let [x, weight, bias, residual] = &vars;
        let layer = Dense::new(weight).with_bias(bias).with_residual(residual);
        let out = layer.with_activation(Activation::SwiGlu).forward(x).unwrap();
        assert_eq!(out.track_op(), wanted != 0);
        let gradients = weighted(&out, &dout).backward().unwrap();
        (f64s(&out), vars.map(|of| gradients.get(&of).map(f64s)))
    };
    let (out, all) = run(0b1111);
    for wanted in 0..0b1111 {
        let (found, gradients) = run(wanted);
        // To the bit, and nothing is computed of the others.
        assert_eq!(found, out, "{wanted:b}");
        for (i, gradient) in gradients.into_iter().enumerate() {
            assert_eq!(gradient, all[i].clone().filter(|_| wanted >> i & 1 == 1), "{wanted:b}: {i}");
        }
    }
}

/// A loss of results that are turned or spread, a layer behind a layer, and `backward` of one graph twice: candle's own gradients, to f32's precision.
#[test]
fn candle_finds_the_same_gradients() {
    emulate_cpu(true);
    let var = |shape: &[usize], seed| Var::from_tensor(&values(shape, seed, DType::F32)).unwrap();
    let [x, first, second] = [(&[2, 3, 8][..], 1), (&[7, 8], 2), (&[8, 7], 3)].map(|(shape, seed)| var(shape, seed));
    let bias = var(&[8], 4);
    let ours = {
        let hidden = linear(&x, &first, None).unwrap();
        let layer = Dense::new(&second).with_bias(&bias).with_activation(Activation::Relu);
        layer.with_residual(&x).forward(&hidden).unwrap()
    };
    let theirs = {
        let hidden = x.broadcast_matmul(&first.t().unwrap()).unwrap();
        let sums = hidden.broadcast_matmul(&second.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
        (sums.relu().unwrap() + x.as_tensor()).unwrap()
    };
    let loss = |out: &Tensor| out.transpose(0, 1).unwrap().mean(1).unwrap().sqr().unwrap().sum_all().unwrap();
    let (ours, theirs) = (loss(&ours), loss(&theirs));
    let expected = theirs.backward().unwrap();
    for _ in 0..2 {
        let found = ours.backward().unwrap();
        for var in [&x, &first, &second, &bias] {
            let [found, expected] = [&found, &expected].map(|gradients| f64s(gradients.get(var).unwrap()));
            let near = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-4 * b.abs().max(1.0);
            assert!(found.iter().zip(&expected).all(near), "{found:?} {expected:?}");
        }
    }
}

/// Gradients are those of the sums that forward has seen, whatever has become of the weights.
#[test]
fn sums_are_kept() {
    emulate_cpu(true);
    let var = |data: &[f32], shape: &[usize]| {
        Var::from_tensor(&Tensor::from_slice(data, shape, &Device::Cpu).unwrap()).unwrap()
    };
    let (x, weight, bias) = (var(&[1.0, 2.0], &[2, 1]), var(&[1.0], &[1, 1]), var(&[0.5], &[1]));
    let loss = dense(&x, &weight, Some(&bias), Activation::Relu).unwrap().sum_all().unwrap();
    weight.set(&Tensor::new(&[[-3.0f32]], &Device::Cpu).unwrap()).unwrap();
    let gradients = loss.backward().unwrap();
    let found = [&x, &weight, &bias].map(|of| f64s(gradients.get(of).unwrap()));
    assert_eq!(found, [vec![-3.0, -3.0], vec![3.0], vec![2.0]]);
}

#[test]
fn rows_that_are_none() {
    emulate_cpu(true);
    let x = Var::from_tensor(&Tensor::zeros((0, 16), DType::F32, &Device::Cpu).unwrap()).unwrap();
    let [weight, bias] = [&[6, 16][..], &[6]].map(|shape| Var::from_tensor(&values(shape, 1, DType::F32)).unwrap());
    let out = dense(&x, &weight, Some(&bias), Activation::GeluErf).unwrap();
    assert_eq!(out.dims(), [0, 6]);
    let gradients = out.sum_all().unwrap().backward().unwrap();
    assert_eq!(f64s(gradients.get(&weight).unwrap()), [0.0; 96]);
    assert_eq!(f64s(gradients.get(&bias).unwrap()), [0.0; 6]);
}

/// The functions are the options that their names say, and the layer is candle's, to f32's precision.
#[test]
fn the_functions_are_these_options() {
    emulate_cpu(true);
    let [x, weight] = [[5, 12], [9, 12]].map(|shape| values(&shape, 1, DType::F32));
    let bias = values(&[9], 2, DType::F32);
    let found = f64s(&linear(&x, &weight, Some(&bias)).unwrap());
    assert_eq!(found, f64s(&Dense::new(&weight).with_bias(&bias).forward(&x).unwrap()));
    let theirs = x.matmul(&weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
    assert!(found.iter().zip(f64s(&theirs)).all(|(a, b)| (a - b).abs() < 1e-4));
    let silu = Dense::new(&weight).with_activation(Activation::Silu).forward(&x).unwrap();
    assert_eq!(f64s(&dense(&x, &weight, None, Activation::Silu).unwrap()), f64s(&silu));
}
